//! The Debian package.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{Architecture, epoch, packages};
use crate::tools::{self, succeed, top};

/// Packs what was laid out; the package.
pub(super) fn build(architecture: Architecture) -> anyhow::Result<PathBuf> {
    let top = top();
    let version = env!("CARGO_PKG_VERSION");
    let package = packages()?.join(format!("enid_{version}_{architecture}.deb"));
    let mut pack = Command::new(tools::cargo("cargo-deb")?);
    // The manifest takes the files and their modes from the tree.
    pack.current_dir(&top)
        .env("SOURCE_DATE_EPOCH", epoch(&top)?)
        .args(["--quiet", "--locked", "-p", "enid", "--no-build", "--no-strip"])
        .args(["--target", architecture.target(), "--output"])
        .arg(&package)
        .stdout(Stdio::null());
    succeed(&mut pack)?;
    Ok(package)
}
