//! What a package brings and where it goes: one list for all kinds of packages.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::tools::succeed;

/// A kind of package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Deb,
    Rpm,
}

/// Files of the workspace, and the folder or the path that they get. A `*` in a file's name stands for
/// anything, and may stand for nothing at all.
const FILES: &[(&str, &str)] = &[
    ("packaging/systemd/enid.service", "usr/lib/systemd/system/enid.service"),
    ("packaging/systemd/enid.sysusers", "usr/lib/sysusers.d/enid.conf"),
    ("packaging/networkd/50-enid.conf", "usr/lib/systemd/networkd.conf.d/50-enid.conf"),
    ("packaging/journal/*.catalog", "usr/lib/systemd/catalog/"),
    ("packaging/prometheus/*", "usr/share/enid/prometheus/"),
    ("packaging/grafana/*", "usr/share/enid/grafana/"),
    // What is below /etc stays as an administrator left it.
    ("packaging/enid.toml", "etc/enid/enid.toml"),
    ("packaging/iproute2/rt_protos.conf", "etc/iproute2/rt_protos.d/enid.conf"),
    ("packaging/iproute2/rt_tables.conf", "etc/iproute2/rt_tables.d/enid.conf"),
    ("packaging/examples/*", "usr/share/doc/enid/examples/"),
    ("docs/*.md", "usr/share/doc/enid/"),
    ("docs/decisions/*.md", "usr/share/doc/enid/decisions/"),
    ("docs/captures/*.svg", "usr/share/doc/enid/captures/"),
    ("docs/schema/*.json", "usr/share/doc/enid/schema/"),
    ("README.md", "usr/share/doc/enid/README.md"),
];

const ONLY_DEB: &[(&str, &str)] = &[
    ("packaging/deb/copyright", "usr/share/doc/enid/copyright"),
    ("packaging/deb/lintian-overrides", "usr/share/lintian/overrides/enid"),
];

const ONLY_RPM: &[(&str, &str)] = &[
    ("LICENSE-*", "usr/share/licenses/enid/"),
    ("packaging/systemd/enid.preset", "usr/lib/systemd/system-preset/80-enid.preset"),
];

/// Files that are installed compressed.
const COMPRESSED: &[(&str, &str)] = &[("packaging/deb/changelog", "usr/share/doc/enid/changelog")];

/// What is made from the command lines and the documentation, below a folder of its own.
const MANUAL: &[(&str, &str)] = &[
    ("completions/bash/*", "usr/share/bash-completion/completions/"),
    ("completions/fish/*", "usr/share/fish/vendor_completions.d/"),
];

const MANUAL_ONLY_DEB: &[(&str, &str)] =
    &[("completions/zsh/*", "usr/share/zsh/vendor-completions/")];

const MANUAL_ONLY_RPM: &[(&str, &str)] = &[("completions/zsh/*", "usr/share/zsh/site-functions/")];

const MANUAL_COMPRESSED: &[(&str, &str)] = &[
    ("man/*.1", "usr/share/man/man1/"),
    ("man/*.5", "usr/share/man/man5/"),
    ("man/*.8", "usr/share/man/man8/"),
];

/// What is not in the workspace but is made for a package.
pub(super) struct Made<'a> {
    /// The folder with the programs.
    pub(super) programs: &'a Path,
    /// The folder with the pages of the manual and the completions.
    pub(super) manual: &'a Path,
    /// The licences of what is linked into them.
    pub(super) licences: &'a str,
}

/// Lays out a package's files below a folder, which does not exist yet.
pub(super) fn lay_out(top: &Path, made: &Made<'_>, kind: Kind, tree: &Path) -> anyhow::Result<()> {
    place(&made.programs.join("enid"), &tree.join("usr/sbin/enid"), 0o755)?;
    place(&made.programs.join("enictl"), &tree.join("usr/bin/enictl"), 0o755)?;
    let (only, only_manual) = match kind {
        Kind::Deb => (ONLY_DEB, MANUAL_ONLY_DEB),
        Kind::Rpm => (ONLY_RPM, MANUAL_ONLY_RPM),
    };
    for (top, lists) in [(top, [FILES, only]), (made.manual, [MANUAL, only_manual])] {
        for (from, to) in lists.into_iter().flatten() {
            for (from, to) in matches(top, from, to)? {
                place(&from, &tree.join(to), 0o644)?;
            }
        }
    }
    for (top, list) in [(top, COMPRESSED), (made.manual, MANUAL_COMPRESSED)] {
        for (from, to) in list {
            for (from, to) in matches(top, from, to)? {
                let to = tree.join(to);
                place(&from, &to, 0o644)?;
                compress(&to)?;
            }
        }
    }
    let licences = tree.join("usr/share/doc/enid/third-party");
    fs::write(&licences, made.licences)
        .with_context(|| format!("writing {}", licences.display()))?;
    compress(&licences)
}

/// The files that a line of the lists stands for, and where each goes.
fn matches(top: &Path, from: &str, to: &str) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let Some((before, after)) = from.split_once('*') else {
        return Ok(vec![(top.join(from), to.to_owned())]);
    };
    let (folder, prefix) = before.rsplit_once('/').unwrap_or(("", before));
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

/// Neither a name nor a time is kept: the same file is compressed to the same bytes.
fn compress(file: &Path) -> anyhow::Result<()> {
    succeed(Command::new("gzip").args(["--best", "--no-name"]).arg(file))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::docs::manual;
    use crate::tools::{files, top};

    /// What the manifest names itself.
    const MANIFEST: [&str; 3] =
        ["packaging/deb/postinst", "packaging/deb/postrm", "packaging/deb/prerm"];

    #[test]
    fn every_file_of_packaging_goes_into_a_package() {
        let mut packed = BTreeSet::new();
        for (from, to) in FILES.iter().chain(ONLY_DEB).chain(ONLY_RPM).chain(COMPRESSED) {
            packed.extend(matches(&top(), from, to).unwrap().into_iter().map(|(from, _)| from));
        }
        packed.extend(MANIFEST.iter().map(|file| top().join(file)));
        packed.extend(files(&top().join("packaging/rpm")).unwrap());
        let all: BTreeSet<_> = files(&top().join("packaging")).unwrap().into_iter().collect();
        assert_eq!(all.difference(&packed).collect::<Vec<_>>(), Vec::<&PathBuf>::new());
    }

    #[test]
    fn a_package_has_what_operating_it_takes() {
        let folder = tempfile::tempdir().unwrap();
        let programs = folder.path().join("programs");
        fs::create_dir(&programs).unwrap();
        fs::write(programs.join("enid"), "").unwrap();
        fs::write(programs.join("enictl"), "").unwrap();
        let manual = folder.path().join("manual");
        manual::write(&manual).unwrap();
        let made = Made { programs: &programs, manual: &manual, licences: "theirs" };
        for (kind, more, zsh) in [
            (Kind::Deb, "usr/share/lintian/overrides/enid", "vendor-completions"),
            (Kind::Rpm, "usr/lib/systemd/system-preset/80-enid.preset", "site-functions"),
        ] {
            let tree = folder.path().join(format!("{kind:?}"));
            lay_out(&top(), &made, kind, &tree).unwrap();
            let has = files(&tree).unwrap();
            for file in [
                "etc/enid/enid.toml",
                "etc/iproute2/rt_protos.d/enid.conf",
                "etc/iproute2/rt_tables.d/enid.conf",
                "usr/bin/enictl",
                "usr/lib/systemd/networkd.conf.d/50-enid.conf",
                "usr/lib/systemd/system/enid.service",
                "usr/lib/sysusers.d/enid.conf",
                "usr/lib/systemd/catalog/enid.catalog",
                "usr/sbin/enid",
                "usr/share/bash-completion/completions/enictl",
                "usr/share/doc/enid/changelog.gz",
                "usr/share/doc/enid/configuration.md",
                "usr/share/doc/enid/operating.md",
                "usr/share/doc/enid/third-party.gz",
                "usr/share/enid/grafana/enid.json",
                "usr/share/enid/prometheus/enid.rules.yml",
                "usr/share/fish/vendor_completions.d/enictl.fish",
                "usr/share/man/man1/enictl.1.gz",
                "usr/share/man/man1/enictl-status.1.gz",
                "usr/share/man/man5/enid.toml.5.gz",
                "usr/share/man/man8/enid.8.gz",
                &format!("usr/share/zsh/{zsh}/_enictl"),
                more,
            ] {
                assert!(has.contains(&tree.join(file)), "{kind:?}: {file} is not among {has:?}");
            }
        }
    }
}
