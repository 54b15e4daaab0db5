//! Tools that the commands use, each of the version that was tried; they live in `target/tools`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use crate::needs;

/// What `cargo install` brings.
const CRATES: [(&str, &str); 6] = [
    ("cargo-deb", "3.8.0"),
    ("cargo-deny", "0.20.2"),
    ("cargo-fuzz", "0.13.2"),
    ("cargo-generate-rpm", "0.21.1"),
    ("cargo-machete", "0.9.2"),
    ("cargo-zigbuild", "0.24.1"),
];

/// A linker, and the stubs of every glibc since 2.17, as a Python package.
const ZIG: &str = "0.15.2";

/// This very program, even when cargo has put another build of it in its place, as it does whenever a
/// step builds the workspace with other features.
pub(crate) const OWN: &str = "/proc/self/exe";

/// The workspace's folder.
pub(crate) fn top() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be started, or ends with anything but success.
pub(crate) fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("running {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

/// Runs a command to its end; what it wrote to standard output.
///
/// # Errors
/// When it cannot be started, ends with anything but success, or writes what is no UTF-8.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8(output.stdout).with_context(|| format!("reading what {command:?} says"))
}

/// Every file below a folder, in the order of their paths.
///
/// # Errors
/// When a folder cannot be read.
pub(crate) fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let reading = || format!("reading {}", folder.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        if path.is_dir() {
            found.append(&mut files(&path)?);
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// A Cargo subcommand of the pinned version, installed if it is not there yet.
///
/// # Errors
/// When it cannot be installed.
pub(crate) fn cargo(name: &str) -> anyhow::Result<PathBuf> {
    let top = top();
    let Some((_, version)) = CRATES.iter().find(|(known, _)| *known == name) else {
        bail!("no version is pinned for {name}");
    };
    let root = top.join("target/tools").join(format!("{name}-{version}"));
    let binary = root.join("bin").join(name);
    if !binary.exists() {
        crate::say(&format!("installing {name} {version} under target/tools"))?;
        let wanted = format!("{name}@{version}");
        let mut install = Command::new(env!("CARGO"));
        install
            .current_dir(&top)
            .args(["install", "--quiet", "--debug", "--locked", "--root"])
            .arg(&root);
        // Its own folder, so that it meets no build of the project; quick to build matters more than
        // quick to run.
        install.arg(wanted).env("CARGO_TARGET_DIR", top.join("target/tools/build"));
        succeed(&mut install)?;
    }
    Ok(binary)
}

/// A program of a Debian package that must not be installed here, since it would start a service: the
/// package is only unpacked.
///
/// # Errors
/// When it cannot be had, or lacks the program.
pub(crate) fn debian(package: &str, program: &str) -> anyhow::Result<PathBuf> {
    let tools = top().join("target/tools");
    let root = tools.join("debian").join(package);
    let binary = root.join(program);
    if binary.exists() {
        return Ok(binary);
    }
    needs::ensure(&[("apt-get", "apt"), ("dpkg-deb", "dpkg")])?;
    crate::say(&format!("unpacking Debian's {package} under target/tools"))?;
    fs::create_dir_all(tools.join("debian"))
        .with_context(|| format!("making {}", tools.join("debian").display()))?;
    // Beside its place, and moved there once it is whole.
    let folder = tempfile::tempdir_in(&tools).context("making a temporary folder")?;
    let apt_get = || {
        let mut apt_get = Command::new("apt-get");
        apt_get.current_dir(folder.path()).env("PATH", needs::path());
        apt_get
    };
    if output(apt_get().args(["download", package])).is_err() {
        output(apt_get().arg("update"))?;
        output(apt_get().args(["download", package]))?;
    }
    let [archive] = &files(folder.path())?[..] else {
        bail!("apt-get download {package} brought something else than one file");
    };
    let unpacked = folder.path().join("unpacked");
    let mut unpack = Command::new("dpkg-deb");
    output(unpack.env("PATH", needs::path()).arg("--extract").arg(archive).arg(&unpacked))?;
    ensure!(unpacked.join(program).is_file(), "Debian's {package} has no {program}");
    fs::rename(&unpacked, &root).with_context(|| format!("moving to {}", root.display()))?;
    Ok(binary)
}

/// The zig compiler of the pinned version, installed if it is not there yet.
///
/// # Errors
/// When it cannot be installed.
pub(crate) fn zig() -> anyhow::Result<PathBuf> {
    let root = top().join("target/tools").join(format!("ziglang-{ZIG}"));
    let binary = root.join("ziglang/zig");
    if !binary.exists() {
        needs::ensure(&[("pip3", "python3-pip")])?;
        crate::say(&format!("installing ziglang {ZIG} under target/tools"))?;
        let mut install = Command::new("pip3");
        install
            .env("PATH", needs::path())
            // What it warns of does not concern a folder of its own.
            .env("PIP_ROOT_USER_ACTION", "ignore")
            .args(["install", "--quiet", "--disable-pip-version-check", "--no-deps"])
            .args(["--only-binary", ":all:", "--target"])
            .arg(&root)
            .arg(format!("ziglang=={ZIG}"));
        succeed(&mut install)?;
    }
    Ok(binary)
}
