//! What the distributions' own tools think of a package.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};

use super::Kind;
use crate::needs;
use crate::tools::{files, output, succeed, top};

/// Compares a package with what was laid out for it, and has it linted.
///
/// # Errors
/// When they differ, or there is an error that no override explains.
pub(super) fn run(package: &Path, tree: &Path, kind: Kind) -> anyhow::Result<()> {
    crate::say(&format!("linting {}", package.display()))?;
    match kind {
        Kind::Deb => {
            needs::ensure(&[("lintian", "lintian"), ("dpkg-deb", "dpkg")])?;
            contents(&output(command("dpkg-deb").arg("--contents").arg(package))?, tree)?;
            let strict = ["--pedantic", "--display-info", "--fail-on", "error"];
            succeed(command("lintian").args(strict).arg(package))
        }
        Kind::Rpm => {
            needs::ensure(&[("rpm", "rpm"), ("rpmlint", "rpmlint")])?;
            let query = "[%{FILEMODES:perms} %{FILEUSERNAME}/%{FILEGROUPNAME} .%{FILENAMES}\n]";
            let rpm = ["--query", "--queryformat", query, "--package"];
            contents(&output(command("rpm").args(rpm).arg(package))?, tree)?;
            let configuration = top().join("packaging/rpm/rpmlint.toml");
            succeed(command("rpmlint").arg("--config").arg(configuration).arg(package))
        }
    }
}

fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", needs::path());
    command
}

/// Compares a listing, where a file's line begins with its mode and owner and ends with its path, with
/// what was laid out. Folders are not compared.
fn contents(listing: &str, tree: &Path) -> anyhow::Result<()> {
    let mut has = BTreeSet::new();
    for line in listing.lines().filter(|line| line.starts_with('-')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [mode, owner, .., path] = words[..] else { continue };
        ensure!(owner == "root/root" || owner == "0/0", "{path} belongs to {owner}");
        has.insert(format!("{mode} {path}"));
    }
    let mut expected = BTreeSet::new();
    for file in files(tree)? {
        let mode = fs::metadata(&file).with_context(|| format!("looking at {}", file.display()))?;
        let mode = if mode.permissions().mode() & 0o111 == 0 { "-rw-r--r--" } else { "-rwxr-xr-x" };
        let path = file.strip_prefix(tree).context("a file outside the tree")?;
        expected.insert(format!("{mode} ./{}", path.display()));
    }
    let differing: Vec<&String> = has.symmetric_difference(&expected).collect();
    ensure!(differing.is_empty(), "the package and {} differ in {differing:?}", tree.display());
    Ok(())
}
