//! What of the packaging can be checked without building or installing a package.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use enid_control::EventKind;

use crate::needs;
use crate::tools::{files, output, succeed, top};

/// How exposed the unit may be, in tenths as `systemd-analyze security` counts: 0 is sealed, 100 is
/// exposed. Versions of systemd differ a little.
const EXPOSURE: u32 = 20;

/// Checks the unit, the user and the scripts with the programs that will read them.
///
/// # Errors
/// When one of them is refused, or the unit is too exposed.
pub(crate) fn run() -> anyhow::Result<()> {
    needs::ensure(&[
        ("systemd-analyze", "systemd"),
        ("systemd-sysusers", "systemd"),
        ("journalctl", "systemd"),
    ])?;
    let packaging = top().join("packaging");
    unit(&packaging.join("systemd/enid.service"))?;
    let folder = tempfile::tempdir().context("making a temporary folder")?;
    sysusers(&packaging.join("systemd/enid.sysusers"), folder.path())?;
    catalog(&packaging.join("journal/enid.catalog"), folder.path())?;
    for scripts in ["deb", "rpm"] {
        for script in files(&packaging.join(scripts))? {
            let text = fs::read_to_string(&script)
                .with_context(|| format!("reading {}", script.display()))?;
            if text.starts_with("#!/bin/sh") || script.extension().is_some_and(|end| end == "sh") {
                succeed(Command::new("sh").arg("-n").arg(&script))?;
            }
        }
    }
    Ok(())
}

fn unit(unit: &Path) -> anyhow::Result<()> {
    let threshold = format!("--threshold={EXPOSURE}");
    let security = ["security", "--offline=true", "--no-pager", &threshold];
    output(Command::new("systemd-analyze").env("PATH", needs::path()).args(security).arg(unit))?;
    // The program that it starts need not be installed here.
    let text = fs::read_to_string(unit).with_context(|| format!("reading {}", unit.display()))?;
    let folder = tempfile::tempdir().context("making a temporary folder")?;
    let copy = folder.path().join("enid.service");
    fs::write(&copy, text.replace("=/usr/sbin/enid", "=/bin/true"))
        .with_context(|| format!("writing {}", copy.display()))?;
    let mut verify = Command::new("systemd-analyze");
    verify.env("PATH", needs::path()).args(["verify", "--man=no"]).arg(&copy);
    let said = verify.output().with_context(|| format!("running {verify:?}"))?;
    // What is wrong in a unit is only a warning to it: any word about ours is an error.
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    );
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("enid.service")).collect();
    ensure!(ours.is_empty(), "{}: {}", unit.display(), ours.join("\n"));
    Ok(())
}

/// Makes the user in an empty system.
fn sysusers(file: &Path, root: &Path) -> anyhow::Result<()> {
    let folder = root.join("etc");
    fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
    let mut sysusers = Command::new("systemd-sysusers");
    sysusers.env("PATH", needs::path()).arg("--root").arg(root).arg(file);
    output(&mut sysusers)?;
    let users = fs::read_to_string(folder.join("passwd")).context("reading who was made")?;
    ensure!(
        users.lines().any(|user| user.starts_with("enid:") && user.ends_with("nologin")),
        "{} makes no user enid who cannot log in: {users}",
        file.display()
    );
    Ok(())
}

/// Has the journal of an empty system take the catalog, and asks it for every message.
fn catalog(file: &Path, root: &Path) -> anyhow::Result<()> {
    let folder = root.join("usr/lib/systemd/catalog");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    fs::copy(file, folder.join("enid.catalog"))
        .with_context(|| format!("copying {}", file.display()))?;
    let journalctl = |what: &str| {
        let mut journalctl = Command::new("journalctl");
        journalctl.env("PATH", needs::path()).arg("--root").arg(root).arg(what);
        output(&mut journalctl)
    };
    journalctl("--update-catalog")?;
    let list = journalctl("--list-catalog")?;
    for kind in EventKind::ALL {
        let id = kind.message_id();
        let entry = format!("{id} enid: ");
        ensure!(
            list.lines().any(|line| line.len() > entry.len() && line.starts_with(&entry)),
            "the journal's catalog does not explain {kind:?}, {id}: {list}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn packaging(file: &str) -> String {
        fs::read_to_string(top().join("packaging").join(file)).unwrap()
    }

    /// The lines of a file that are neither empty nor comments.
    fn lines(text: &str) -> impl Iterator<Item = &str> {
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
    }

    #[test]
    fn the_names_of_tables_tell_device_and_card() {
        let tables = packaging("iproute2/rt_tables.conf");
        let base = enid_core::config::Config::default().table_base;
        let mut seen = BTreeSet::new();
        for line in lines(&tables) {
            let (number, name) = line.split_once('\t').unwrap();
            let (device, card) = name.strip_prefix("enid-").unwrap().split_once('.').unwrap();
            let (device, card): (u32, u32) = (device.parse().unwrap(), card.parse().unwrap());
            assert_eq!(number.parse(), Ok(base + 100 * card + device), "{line}");
            assert!(seen.insert(number), "{line} is there twice");
        }
        assert!(seen.len() > 16);
    }

    #[test]
    fn routes_and_rules_are_named_by_the_protocol_that_they_carry() {
        let protocols = packaging("iproute2/rt_protos.conf");
        let expected = format!("{}\tenid", enid_core::object::Protocol::ENID.0);
        assert_eq!(lines(&protocols).collect::<Vec<_>>(), [expected]);
    }

    #[test]
    fn the_changelog_speaks_of_this_version() {
        let expected = format!("enid ({})", env!("CARGO_PKG_VERSION"));
        assert!(packaging("deb/changelog").starts_with(&expected));
    }

    #[test]
    fn drop_ins_for_networkd_only_keep_it_from_removing_what_is_not_its_own() {
        let drop_in = packaging("networkd/50-enid.conf");
        assert_eq!(
            lines(&drop_in).collect::<Vec<_>>(),
            ["[Network]", "ManageForeignRoutes=no", "ManageForeignRoutingPolicyRules=no"]
        );
    }
}
