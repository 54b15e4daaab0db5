//! `cargo xtask vm`: the promises that need a real machine, kept by the package as users install it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::tools::{succeed, top};
use crate::{needs, package};

/// What `cargo xtask test` leaves out: they take too long for every change.
pub(crate) const NOW_AND_THEN: [&str; 4] = ["--skip", "neighbours::", "--skip", "kernels::"];

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Run only the promises whose name contains this: `hotplug`, `package`, `kernels`,
    /// `neighbours::networkd` …
    #[arg(value_name = "NAME")]
    filter: Option<String>,
    /// Install this package instead of building one.
    #[arg(long, value_name = "DEB")]
    package: Option<PathBuf>,
}

/// Builds the package, boots machines and runs the promises one after the other.
///
/// # Errors
/// When one is not kept.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let package = match &arguments.package {
        Some(package) => std::path::absolute(package)?,
        None => package::deb()?,
    };
    promises(&top(), &package, arguments.filter.as_deref().as_slice())
}

/// Runs the promises that these arguments of the test runner choose.
///
/// # Errors
/// When one is not kept.
pub(crate) fn promises(top: &Path, package: &Path, choice: &[&str]) -> anyhow::Result<()> {
    needs::ensure(&[needs::NAMESPACES.as_slice(), &needs::MACHINES].concat())?;
    let mut test = Command::new(env!("CARGO"));
    test.current_dir(top)
        .args(["test", "--locked", "-p", "vm", "--test", "machine", "--"])
        .args(choice)
        .env("ENID_PACKAGE", package);
    succeed(&mut test)
}
