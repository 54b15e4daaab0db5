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
    Path::new(&format!("/run/udev/data/n{}", link.0)).exists()
}

/// udev knows the links of the first process's network namespace only.
fn initial_namespace() -> bool {
    match (fs::read_link("/proc/self/ns/net"), fs::read_link("/proc/1/ns/net")) {
        (Ok(ours), Ok(theirs)) => ours == theirs,
        // Without the right to look at process 1, being a service of systemd's says the same.
        _ => std::env::var_os("INVOCATION_ID").is_some(),
    }
}
