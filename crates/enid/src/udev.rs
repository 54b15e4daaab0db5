//! Which links udev has not initialised yet; an interface that is up may not be renamed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use enid_core::config::Udev;
use enid_core::object::LinkIndex;
use enid_core::observed::Snapshot;

/// The links without an entry in udev's database; none where udev does not run for us.
pub(crate) fn uninitialised(choice: Udev, snapshot: &Snapshot) -> BTreeSet<LinkIndex> {
    let applies = match choice {
        Udev::Always => true,
        Udev::Never => false,
        Udev::Auto => Path::new("/run/udev/control").exists() && initial_namespace(),
    };
    let links = snapshot.links.iter().map(|link| link.index);
    links.filter(|index| applies && !initialised(*index)).collect()
}

/// Whether udev has finished with a link, which it tells the kernel's listeners nothing of.
pub(crate) fn initialised(link: LinkIndex) -> bool {
    fs::read_to_string(format!("/run/udev/data/n{}", link.0)).is_ok_and(|entry| finished(&entry))
}

/// Whether an entry of udev's database is its last word: it writes one before it renames a link
/// (systemd 247 and later) and one when it begins (256 and later), each with a mark.
pub(crate) fn finished(entry: &str) -> bool {
    !entry.lines().any(|line| matches!(line, "E:ID_PROCESSING=1" | "E:ID_RENAMING=1"))
}

/// udev knows the links of the first process's network namespace only.
fn initial_namespace() -> bool {
    match (fs::read_link("/proc/self/ns/net"), fs::read_link("/proc/1/ns/net")) {
        (Ok(ours), Ok(theirs)) => ours == theirs,
        // Without the right to look at process 1, being a service of systemd's says the same.
        _ => std::env::var_os("INVOCATION_ID").is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::finished;

    #[test]
    fn an_entry_that_udev_still_works_on_is_not_its_last_word() {
        assert!(finished("I:4711\nE:ID_BUS=pci\nE:ID_NET_NAME=ens6\nG:systemd\nV:1\n"));
        assert!(!finished("I:4711\nE:ID_PROCESSING=1\nV:1\n"));
        assert!(!finished("I:4711\nE:ID_RENAMING=1\nE:ID_NET_NAME=ens6\nV:1\n"));
    }
}
