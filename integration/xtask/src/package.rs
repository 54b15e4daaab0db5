//! `cargo xtask package`: the packages that users install, in `target/packages`.

mod architecture;
mod build;
pub(crate) mod check;
mod deb;
mod licences;
mod lint;
mod rpm;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

pub(crate) use architecture::Architecture;
use tree::{Kind, Made};

use crate::docs::manual;
use crate::needs;
use crate::tools::{output, top};

/// What to build.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The architectures to build for, as Debian calls them.
    #[arg(long, value_delimiter = ',', default_values_t = [Architecture::HOST])]
    arch: Vec<Architecture>,
    /// Build the .deb only.
    #[arg(long)]
    deb_only: bool,
    /// Lint the packages, and compare what they hold with what they should.
    #[arg(long)]
    lint: bool,
}

/// Builds packages; the last lines are their paths.
///
/// # Errors
/// When one cannot be built.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let kinds: &[Kind] = if arguments.deb_only { &[Kind::Deb] } else { &[Kind::Deb, Kind::Rpm] };
    let mut packages = Vec::new();
    for architecture in &arguments.arch {
        packages.extend(build(*architecture, kinds, arguments.lint)?);
    }
    for package in packages {
        crate::say(&package.display().to_string())?;
    }
    Ok(())
}

/// Builds the `.deb` for this machine's architecture; its path.
///
/// # Errors
/// When it cannot be built.
pub(crate) fn deb() -> anyhow::Result<PathBuf> {
    let mut packages = build(Architecture::HOST, &[Kind::Deb], false)?;
    packages.pop().context("one package was asked for")
}

fn build(architecture: Architecture, kinds: &[Kind], lint: bool) -> anyhow::Result<Vec<PathBuf>> {
    needs::ensure(&[("gzip", "gzip"), ("readelf", "binutils")])?;
    let manual = manual::folder();
    manual::write(&manual)?;
    let made = Made {
        manual: &manual,
        programs: &build::programs(architecture)?,
        licences: &licences::text(&top(), architecture)?,
    };
    let mut packages = Vec::new();
    for kind in kinds {
        let tree = tree(&made, *kind)?;
        let package = match kind {
            Kind::Deb => deb::build(architecture)?,
            Kind::Rpm => rpm::build(&tree, architecture)?,
        };
        if lint {
            lint::run(&package, &tree, *kind)?;
        }
        packages.push(package);
    }
    Ok(packages)
}

/// Lays out what a package brings, as it is installed below `/`.
fn tree(made: &Made<'_>, kind: Kind) -> anyhow::Result<PathBuf> {
    let tree = packages()?.join(match kind {
        Kind::Deb => "deb",
        Kind::Rpm => "rpm",
    });
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("removing {}", tree.display()))?;
    }
    tree::lay_out(&top(), made, kind, &tree)?;
    Ok(tree)
}

/// Where packages go.
fn packages() -> anyhow::Result<PathBuf> {
    let packages = top().join("target/packages");
    fs::create_dir_all(&packages).with_context(|| format!("making {}", packages.display()))?;
    Ok(packages)
}

/// The time of the last commit, in seconds since 1970: packages of one commit are the same.
fn epoch(top: &Path) -> anyhow::Result<String> {
    let mut git = Command::new("git");
    git.current_dir(top).args(["log", "-1", "--format=%ct"]);
    // Outside a repository, as in a tarball, any fixed time will do.
    Ok(output(&mut git).map_or_else(|_| "1767225600".to_owned(), |time| time.trim().to_owned()))
}
