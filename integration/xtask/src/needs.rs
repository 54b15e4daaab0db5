//! The ordinary Debian packages that a command needs: installed as root, named otherwise.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use nix::unistd::geteuid;

/// What a VPC in network namespaces is made with, and the packages that bring it.
pub(crate) const NAMESPACES: [(&str, &str); 2] = [("ip", "iproute2"), ("nft", "nftables")];

/// What only tests run inside: DHCP clients, the cable of a machine without an emulator, and a network
/// manager, which is where no `PATH` leads.
pub(crate) const INSIDE: [(&str, &str); 4] = [
    ("dhclient", "isc-dhcp-client"),
    ("udhcpc", "udhcpc"),
    ("socat", "socat"),
    ("../lib/systemd/systemd-networkd", "systemd"),
];

/// What real machines are made with; QEMU comes as a part of the images.
pub(crate) const MACHINES: [(&str, &str); 3] =
    [("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs"), ("tar", "tar")];

/// Where programs are that an ordinary user's `PATH` often lacks.
const SYSTEM: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// `PATH`, and after it the directories of the system's programs.
pub(crate) fn path() -> String {
    match std::env::var("PATH") {
        Ok(path) => format!("{path}:{SYSTEM}"),
        Err(_) => SYSTEM.to_owned(),
    }
}

/// Makes sure that programs are there; each stands with the package that brings it. As root,
/// apt-get installs what is missing.
///
/// # Errors
/// When something is missing and cannot be installed; without root it says which line installs it.
pub(crate) fn ensure(programs: &[(&str, &str)]) -> anyhow::Result<()> {
    let packages = missing(programs, &path());
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    ensure!(
        !missing(&[("apt-get", "apt")], &path()).contains(&"apt"),
        "this system has no apt-get: install what Debian calls {list}, then try again"
    );
    ensure!(
        geteuid().is_root(),
        "some Debian packages are missing; install them and try again:\n    \
         sudo apt-get install --no-install-recommends {list}"
    );
    crate::say(&format!("installing {list}"))?;
    apt_get(&["update"])?;
    apt_get(&[&["install", "-y", "--no-install-recommends"], &*packages].concat())?;
    let still = missing(programs, &path());
    ensure!(still.is_empty(), "apt-get installed {list}, but {} lacks programs", still.join(" "));
    Ok(())
}

/// The packages of the programs that are in no directory of a `PATH`, each once.
fn missing<'a>(programs: &[(&str, &'a str)], path: &str) -> Vec<&'a str> {
    let found = |program: &str| path.split(':').any(|at| Path::new(at).join(program).is_file());
    let mut packages: Vec<&str> = programs
        .iter()
        .filter(|(program, _)| !found(program))
        .map(|(_, package)| *package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn apt_get(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("PATH", path())
        .output()
        .context("cannot start apt-get")?;
    if !output.status.success() {
        bail!(
            "`apt-get {}` ended with {}:\n{}{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::missing;

    #[test]
    fn packages_of_missing_programs_are_named_once() {
        let programs = [
            ("sh", "dash"),
            ("no-such-program", "nftables"),
            ("nor-this-one", "nftables"),
            ("nor-that-one", "iproute2"),
        ];
        assert_eq!(missing(&programs, "/nowhere:/bin:/usr/bin"), ["iproute2", "nftables"]);
        assert_eq!(missing(&programs[..1], "/nowhere"), ["dash"]);
    }
}
