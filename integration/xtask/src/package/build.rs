//! The programs, built so that they start on systems older than this one.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use super::Architecture;
use crate::tools::{self, output, succeed, top};

/// The oldest glibc that the programs start with; the manifests name it too.
pub(crate) const GLIBC: (u32, u32) = (2, 26);

/// Builds the programs; the folder that they are in.
pub(crate) fn programs(architecture: Architecture) -> anyhow::Result<PathBuf> {
    let top = top();
    let target = architecture.target();
    let mut build = Command::new(tools::cargo("cargo-zigbuild")?);
    build
        .current_dir(&top)
        .env("CARGO_ZIGBUILD_ZIG_PATH", tools::zig()?)
        .args(["zigbuild", "--quiet", "--locked", "--release", "-p", "enid", "-p", "enictl"])
        .args(["--target", &format!("{target}.{}.{}", GLIBC.0, GLIBC.1)])
        .args(["--target-dir", "target"]);
    succeed(&mut build)?;
    let programs = top.join("target").join(target).join("release");
    for name in ["enid", "enictl"] {
        check(&programs.join(name))?;
    }
    Ok(programs)
}

/// Refuses a program that needs a newer glibc than the packages say.
fn check(program: &Path) -> anyhow::Result<()> {
    let mut readelf = Command::new("readelf");
    readelf.args(["--wide", "--version-info"]).arg(program);
    let needed = newest_glibc(&output(&mut readelf)?)
        .with_context(|| format!("{} names no glibc", program.display()))?;
    ensure!(
        needed <= GLIBC,
        "{} needs glibc {}.{}, the packages promise {}.{}",
        program.display(),
        needed.0,
        needed.1,
        GLIBC.0,
        GLIBC.1
    );
    Ok(())
}

/// The newest version of glibc among the versions of a program's symbols.
fn newest_glibc(readelf: &str) -> Option<(u32, u32)> {
    let versions = readelf.split("GLIBC_").skip(1).filter_map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let mut numbers = rest[..end].split('.').map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    versions.max()
}

#[cfg(test)]
mod tests {
    use super::newest_glibc;

    #[test]
    fn versions_are_compared_as_numbers() {
        let readelf = "Name: GLIBC_2.9  Flags: none\nName: GLIBC_2.17\nName: GLIBC_2.2.5 (4)\n";
        assert_eq!(newest_glibc(readelf), Some((2, 17)));
        assert_eq!(newest_glibc("Name: GCC_3.0"), None);
    }
}
