//! Which program says that it manages a link: the first to suspect where the kernel names nobody.

use std::fs;
use std::path::Path;

use enid_core::object::LinkIndex;

/// systemd-networkd's or NetworkManager's name, where it says in `/run` that it manages the link.
pub(crate) fn of(link: LinkIndex) -> Option<&'static str> {
    among(link, Path::new("/run"))
}

fn among(link: LinkIndex, run: &Path) -> Option<&'static str> {
    let says = |file: String, word: &dyn Fn(&str) -> bool| {
        fs::read_to_string(run.join(file)).is_ok_and(|text| text.lines().any(word))
    };
    let by_networkd = |line: &str| {
        let state = line.strip_prefix("ADMIN_STATE=");
        state.is_some_and(|state| !["unmanaged", "linger"].contains(&state))
    };
    if says(format!("systemd/netif/links/{}", link.0), &by_networkd) {
        return Some("systemd-networkd");
    }
    let by_manager = |line: &str| line == "managed=true";
    says(format!("NetworkManager/devices/{}", link.0), &by_manager).then_some("NetworkManager")
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_manager_is_named_only_for_links_that_it_manages() {
        let run = TempDir::new().unwrap();
        for directory in ["systemd/netif/links", "NetworkManager/devices"] {
            fs::create_dir_all(run.path().join(directory)).unwrap();
        }
        for (file, text) in [
            ("systemd/netif/links/2", "ADMIN_STATE=configured\nOPER_STATE=routable\n"),
            ("systemd/netif/links/3", "ADMIN_STATE=unmanaged\n"),
            ("NetworkManager/devices/3", "[device]\nmanaged=true\n"),
            ("NetworkManager/devices/4", "[device]\nmanaged=false\n"),
        ] {
            fs::write(run.path().join(file), text).unwrap();
        }
        let named = [2, 3, 4, 5].map(|link| among(LinkIndex(link), run.path()));
        assert_eq!(named, [Some("systemd-networkd"), Some("NetworkManager"), None, None]);
    }
}
