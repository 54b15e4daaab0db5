//! What a package brings and where it goes: one list for all kinds of packages.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::tools::succeed;

/// Files of the workspace, and the folder or the path that they get. A `*` in a file's name stands for
/// anything, and may stand for nothing at all.
const FILES: &[(&str, &str)] = &[
    ("packaging/systemd/enid.service", "usr/lib/systemd/system/enid.service"),
    ("packaging/systemd/enid.sysusers", "usr/lib/sysusers.d/enid.conf"),
    ("packaging/networkd/50-enid.conf", "usr/lib/systemd/networkd.conf.d/50-enid.conf"),
    ("packaging/journal/*.catalog", "usr/lib/systemd/catalog/"),
    ("packaging/iproute2/rt_protos.conf", "etc/iproute2/rt_protos.d/enid.conf"),
    ("packaging/iproute2/rt_tables.conf", "etc/iproute2/rt_tables.d/enid.conf"),
    ("packaging/enid.toml", "etc/enid/enid.toml"),
    ("packaging/completions/*.bash", "usr/share/bash-completion/completions/"),
    ("packaging/completions/*.fish", "usr/share/fish/vendor_completions.d/"),
    ("packaging/deb/copyright", "usr/share/doc/enid/copyright"),
    ("packaging/examples/*", "usr/share/doc/enid/examples/"),
    ("docs/*.md", "usr/share/doc/enid/"),
    ("README.md", "usr/share/doc/enid/README.md"),
];

/// The same, for files that are installed compressed.
const COMPRESSED: &[(&str, &str)] = &[
    ("packaging/deb/changelog", "usr/share/doc/enid/changelog"),
    ("packaging/man/*.1", "usr/share/man/man1/"),
    ("packaging/man/*.5", "usr/share/man/man5/"),
    ("packaging/man/*.8", "usr/share/man/man8/"),
];

/// Lays out a package's files below a folder, which does not exist yet.
pub(super) fn lay_out(top: &Path, programs: &Path, tree: &Path) -> anyhow::Result<()> {
    place(&programs.join("enid"), &tree.join("usr/sbin/enid"), 0o755)?;
    place(&programs.join("enictl"), &tree.join("usr/bin/enictl"), 0o755)?;
    for (from, to) in FILES {
        for (from, to) in matches(top, from, to)? {
            place(&from, &tree.join(to), 0o644)?;
        }
    }
    for (from, to) in COMPRESSED {
        for (from, to) in matches(top, from, to)? {
            let to = tree.join(to);
            place(&from, &to, 0o644)?;
            // Neither a name nor a time inside: the same file is compressed to the same bytes.
            succeed(Command::new("gzip").args(["--best", "--no-name"]).arg(&to))?;
        }
    }
    Ok(())
}

/// The files that a line of the lists stands for, and where each goes.
fn matches(top: &Path, from: &str, to: &str) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let Some((before, after)) = from.split_once('*') else {
        return Ok(vec![(top.join(from), to.to_owned())]);
    };
    let (folder, prefix) = before.rsplit_once('/').unwrap_or((".", before));
    ensure!(!after.contains('/'), "{from}: only a file's name may have a *");
    let folder = top.join(folder);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let reading = || format!("reading {}", folder.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_file() && name.starts_with(prefix) && name.ends_with(after) {
            let to = format!("{to}{name}");
            found.push((path, to));
        }
    }
    found.sort();
    Ok(found)
}

fn place(from: &Path, to: &Path, mode: u32) -> anyhow::Result<()> {
    let placing = || format!("copying {} to {}", from.display(), to.display());
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(placing)?;
    }
    fs::copy(from, to).with_context(placing)?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).with_context(placing)
}
