//! The programs, built so that they start on systems older than this one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use super::Architecture;
use crate::needs;
use crate::tools::{self, output, succeed, top};

/// The oldest glibc that the programs start with; the manifests name it too.
pub(crate) const GLIBC: (u32, u32) = (2, 26);

/// How long rustup may take to bring the standard library for another architecture.
const DOWNLOAD: Duration = Duration::from_secs(300);

/// Builds the programs and starts them once; the folder that they are in.
pub(crate) fn programs(architecture: Architecture) -> anyhow::Result<PathBuf> {
    let top = top();
    let target = architecture.target();
    standard_library(target)?;
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
        let program = programs.join(name);
        check(&program)?;
        without_faults(&program)?;
    }
    start(&programs, architecture)?;
    Ok(programs)
}

/// Has rustup bring the standard library where the toolchain lacks it.
fn standard_library(target: &str) -> anyhow::Result<()> {
    let mut rustc = Command::new("rustc");
    rustc.current_dir(top()).args(["--print", "target-libdir", "--target", target]);
    if Path::new(output(&mut rustc)?.trim()).is_dir() {
        return Ok(());
    }
    crate::say(&format!("adding the target {target}"))?;
    let mut add = Command::new("rustup");
    add.current_dir(top()).args(["target", "add", target]);
    let mut rustup = add.spawn().with_context(|| format!("starting {add:?}"))?;
    let started = Instant::now();
    loop {
        if let Some(status) = rustup.try_wait().context("waiting for rustup")? {
            ensure!(status.success(), "{add:?} ended with {status}");
            return Ok(());
        }
        if started.elapsed() > DOWNLOAD {
            rustup.kill().context("stopping rustup")?;
            rustup.wait().context("waiting for rustup")?;
            bail!("{add:?} took more than {} s", DOWNLOAD.as_secs());
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Has the programs do something, in an emulator if they are not for this machine.
fn start(programs: &Path, architecture: Architecture) -> anyhow::Result<()> {
    let mut command = Vec::new();
    if architecture != Architecture::HOST {
        let (emulator, folder, package) = match architecture {
            Architecture::Amd64 => ("qemu-x86_64-static", "x86_64-linux-gnu", "libc6-amd64-cross"),
            Architecture::Arm64 => {
                ("qemu-aarch64-static", "aarch64-linux-gnu", "libc6-arm64-cross")
            }
        };
        // A C library is looked for as a program is: from a folder of PATH, it is one up.
        let library = format!("../{folder}/lib/libc.so.6");
        needs::ensure(&[(emulator, "qemu-user-static"), (&library, package)])?;
        command = vec![emulator.to_owned(), "-L".to_owned(), format!("/usr/{folder}")];
    }
    let configuration = top().join("packaging/enid.toml").display().to_string();
    for (name, arguments) in
        [("enid", &["--check", "--config", &configuration][..]), ("enictl", &["--version"])]
    {
        let mut words = command.clone();
        words.push(programs.join(name).display().to_string());
        words.extend(arguments.iter().map(|&argument| argument.to_owned()));
        output(Command::new(&words[0]).args(&words[1..]).env("PATH", needs::path()))?;
    }
    Ok(())
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

/// What only the daemon knows that fails on demand.
const FAULTS: &[u8] = b"ENID_FAULTS";

/// Refuses a program that fails when it is told to.
fn without_faults(program: &Path) -> anyhow::Result<()> {
    let bytes = fs::read(program).with_context(|| format!("reading {}", program.display()))?;
    ensure!(
        !bytes.windows(FAULTS.len()).any(|part| part == FAULTS),
        "{} was built with the feature `faults`, which is for tests alone",
        program.display()
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
    use std::fs;

    use super::{FAULTS, GLIBC, newest_glibc, without_faults};

    #[test]
    fn the_manifests_ask_for_the_glibc_that_is_linked_against() {
        let manifest = include_str!("../../../../crates/enid/Cargo.toml");
        let version = format!("{}.{}", GLIBC.0, GLIBC.1);
        assert!(manifest.contains(&format!("libc6 (>= {version})")));
        assert!(manifest.contains(&format!("glibc = \">= {version}\"")));
    }

    #[test]
    fn a_daemon_that_fails_on_demand_is_not_packaged() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("enid");
        fs::write(&program, b"\x7fELF...ENID_CONFIG...").unwrap();
        without_faults(&program).unwrap();
        fs::write(&program, b"\x7fELF...ENID_FAULTS...").unwrap();
        assert!(without_faults(&program).is_err());
        let hook = include_str!("../../../../crates/enid-kernel/src/faults.rs");
        assert!(hook.contains(std::str::from_utf8(FAULTS).unwrap()), "it has another name now");
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        let readelf = "Name: GLIBC_2.9  Flags: none\nName: GLIBC_2.17\nName: GLIBC_2.2.5 (4)\n";
        assert_eq!(newest_glibc(readelf), Some((2, 17)));
        assert_eq!(newest_glibc("Name: GCC_3.0"), None);
    }
}
