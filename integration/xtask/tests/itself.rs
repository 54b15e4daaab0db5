//! The commands start themselves anew inside a world of their own.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::process::Command;

#[test]
fn a_command_goes_on_when_cargo_has_replaced_its_program() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("xtask");
    fs::copy(env!("CARGO_BIN_EXE_xtask"), &copy).unwrap();
    let program = File::open(&copy).unwrap();
    fs::remove_file(&copy).unwrap();
    let output = Command::new(format!("/proc/{}/fd/{}", std::process::id(), program.as_raw_fd()))
        .args(["demo", "--binaries"])
        .arg(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    // It has come as far as looking for the daemon.
    assert!(said.contains(&format!("{}/enid is not there", folder.path().display())), "{said}");
}
