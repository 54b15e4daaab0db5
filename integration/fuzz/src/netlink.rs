//! Netlink messages of others: whatever they hold, each is understood, foreign or an error.

use enid_kernel::fuzzing::{self, DUMPED, Understood};

/// A datagram as a socket gives it: any number of messages with their headers.
pub fn datagram(bytes: &[u8]) {
    assert_sane(&fuzzing::datagram(bytes), bytes);
}

/// One message: the first two bytes are its type, or choose one that answers our dumps.
pub fn message(bytes: &[u8]) {
    let Some(([first, second], body)) = bytes.split_first_chunk() else { return };
    let kind = match DUMPED.get(usize::from(*first)) {
        Some(kind) => *kind,
        None => u16::from_ne_bytes([*first, *second]),
    };
    assert_sane(&fuzzing::message(kind, body), bytes);
}

fn assert_sane(understood: &Understood, bytes: &[u8]) {
    let Understood { snapshot, markings, refusals, .. } = understood;
    for prefix in snapshot.routes.iter().map(|seen| seen.route.destination) {
        assert!(prefix.prefix_len() <= prefix.max_prefix_len());
    }
    for link in &snapshot.links {
        assert!(!link.name.contains('\0') && link.name.len() <= 3 * bytes.len());
    }
    let objects = snapshot.links.len() + snapshot.addresses.len() + snapshot.routes.len();
    // The shortest message is its header.
    assert!(objects + snapshot.rules.len() + markings.len() <= 1 + bytes.len() / 4);
    assert!(refusals.len() <= 1 + bytes.len() / 4);
}
