//! Who may change something: root, the daemon's own user, and the members of a group, if one is named.

use nix::unistd::{Gid, Group, Uid, User};
use tokio::sync::watch;

/// Who is at the other end of a connection, as the kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Peer {
    /// Whether this is root or the daemon's own user.
    pub(super) const fn rules(self, own: u32) -> bool {
        self.uid == 0 || self.uid == own
    }
}

/// Whether the peer is in the group that may change something, if there is one.
///
/// The group database may be far away (LDAP), so a thread of its own asks it.
pub(super) async fn is_member(peer: Peer, group: &watch::Receiver<Option<String>>) -> bool {
    let Some(group) = group.borrow().clone() else { return false };
    let name = group.clone();
    let asked = tokio::task::spawn_blocking(move || member(peer, &name)).await;
    match asked {
        Ok(Ok(member)) => member,
        Ok(Err(error)) => {
            tracing::warn!(%error, group, "asking who is in the control group");
            false
        }
        Err(_) => false,
    }
}

fn member(peer: Peer, name: &str) -> nix::Result<bool> {
    let Some(group) = Group::from_name(name)? else { return Ok(false) };
    if group.gid == Gid::from_raw(peer.gid) {
        return Ok(true);
    }
    let Some(user) = User::from_uid(Uid::from_raw(peer.uid))? else { return Ok(false) };
    Ok(user.gid == group.gid || group.mem.contains(&user.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_own_group_it_is_is_a_member_and_strangers_are_not() {
        let root = Group::from_gid(Gid::from_raw(0)).unwrap().unwrap().name;
        assert_eq!(member(Peer { uid: 54_321, gid: 0 }, &root), Ok(true));
        assert_eq!(member(Peer { uid: 0, gid: 54_321 }, &root), Ok(true));
        assert_eq!(member(Peer { uid: 54_321, gid: 54_321 }, &root), Ok(false));
        assert_eq!(member(Peer { uid: 54_321, gid: 54_321 }, "no-such-group"), Ok(false));
    }
}
