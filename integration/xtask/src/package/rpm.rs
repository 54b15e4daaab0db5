//! The RPM package.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use super::{Architecture, epoch, packages};
use crate::tools::{self, files, succeed, top};

/// Packs what was laid out; the package.
pub(super) fn build(tree: &Path, architecture: Architecture) -> anyhow::Result<PathBuf> {
    let top = top();
    let version = env!("CARGO_PKG_VERSION");
    let package = packages()?.join(format!("enid-{version}-1.{}.rpm", architecture.rpm()));
    let mut assets = String::from("assets = [\n");
    for file in files(tree)? {
        assets.push_str(&asset(tree, &file)?);
    }
    assets.push_str("]\n");
    let mut pack = Command::new(tools::cargo("cargo-generate-rpm")?);
    pack.current_dir(&top)
        .args(["-p", "crates/enid", "--target", architecture.target(), "--source-date"])
        .arg(epoch(&top)?)
        // Every rpm can unpack it.
        .args(["--payload-compress", "xz", "--set-metadata", &assets, "--output"])
        .arg(&package);
    succeed(&mut pack)?;
    Ok(package)
}

/// What the manifest says about a file of the tree, in TOML.
fn asset(tree: &Path, file: &Path) -> anyhow::Result<String> {
    let mode = fs::metadata(file).with_context(|| format!("looking at {}", file.display()))?;
    let mode = mode.permissions().mode() & 0o7777;
    let to = file.strip_prefix(tree).context("a file outside the tree")?;
    let kind = if to.starts_with("etc") {
        ", config = \"noreplace\""
    } else if to.starts_with("usr/share/doc")
        || to.starts_with("usr/share/man")
        || to.starts_with("usr/share/licenses")
    {
        ", doc = true"
    } else {
        ""
    };
    let (file, to) = (file.display(), to.display());
    Ok(format!("  {{ source = \"{file}\", dest = \"/{to}\", mode = \"{mode:o}\"{kind} }},\n"))
}
