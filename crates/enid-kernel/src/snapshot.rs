//! Looks at everything: five dumps one after the other, all of them or an error.

use std::collections::BTreeSet;

use enid_core::observed::{Link, Snapshot};

use crate::connection::Requests;
use crate::error::Error;
use crate::wire::read::{Seen, seen};
use crate::wire::write::dumps;

/// All that the kernel has.
pub(crate) async fn take(requests: &mut Requests) -> Result<Snapshot, Error> {
    let first = once(requests).await?;
    if agrees(&first) {
        return Ok(first);
    }
    // A link came while we looked, so that its addresses are there and it is not.
    once(requests).await
}

/// Only the links.
pub(crate) async fn links(requests: &mut Requests) -> Result<Vec<Link>, Error> {
    let mut snapshot = Snapshot::default();
    let [(tried, ask), ..] = dumps();
    for told in requests.dump(tried, || ask.clone()).await? {
        put(&mut snapshot, seen(&told)?);
    }
    Ok(snapshot.links)
}

async fn once(requests: &mut Requests) -> Result<Snapshot, Error> {
    let mut snapshot = Snapshot::default();
    for (tried, ask) in dumps() {
        for told in requests.dump(tried, || ask.clone()).await? {
            put(&mut snapshot, seen(&told)?);
        }
    }
    Ok(snapshot)
}

fn put(snapshot: &mut Snapshot, seen: Seen) {
    match seen {
        Seen::Link(link) => snapshot.links.push(link),
        Seen::Address { seen, has_protocol } => {
            snapshot.address_protocols |= has_protocol;
            snapshot.addresses.push(seen);
        }
        Seen::Route(route) => snapshot.routes.push(route),
        Seen::Rule(rule) => snapshot.rules.push(rule),
        Seen::Router(link, address) => {
            snapshot.routers.entry(link).or_default().insert(address);
        }
        Seen::Foreign => {}
    }
}

/// Whether every address is on a link that is there.
fn agrees(snapshot: &Snapshot) -> bool {
    let links: BTreeSet<_> = snapshot.links.iter().map(|link| link.index).collect();
    snapshot.addresses.iter().all(|seen| links.contains(&seen.address.link))
}
