//! Looks at everything: five dumps one after the other, all of them or an error.

use std::collections::{BTreeMap, BTreeSet};

use enid_core::object::LinkIndex;
use enid_core::observed::{Link, Snapshot};

use crate::connection::Requests;
use crate::driver::{Device, Drivers};
use crate::error::Error;
use crate::wire::read::{Seen, seen};
use crate::wire::write::dumps;

/// What the dumps have told.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) snapshot: Snapshot,
    /// Of which device each link is, where it is of one.
    devices: BTreeMap<LinkIndex, Device>,
}

/// All that the kernel has.
pub(crate) async fn take(
    requests: &mut Requests,
    drivers: &mut Drivers,
) -> Result<Snapshot, Error> {
    let mut heard = once(requests).await?;
    if !agrees(&heard.snapshot) {
        // A link came while we looked, so that its addresses are there and it is not.
        heard = once(requests).await?;
    }
    let Heard { mut snapshot, devices } = heard;
    drivers.fill(&mut snapshot.links, devices);
    Ok(snapshot)
}

/// Only the links, without their drivers.
pub(crate) async fn links(requests: &mut Requests) -> Result<Vec<Link>, Error> {
    let mut heard = Heard::default();
    let [(tried, ask), ..] = dumps();
    for told in requests.dump(tried, || ask.clone()).await? {
        heard.put(seen(&told)?);
    }
    Ok(heard.snapshot.links)
}

async fn once(requests: &mut Requests) -> Result<Heard, Error> {
    let mut heard = Heard::default();
    for (tried, ask) in dumps() {
        for told in requests.dump(tried, || ask.clone()).await? {
            heard.put(seen(&told)?);
        }
    }
    Ok(heard)
}

impl Heard {
    pub(crate) fn put(&mut self, seen: Seen) {
        let snapshot = &mut self.snapshot;
        match seen {
            Seen::Link { link, device } => {
                self.devices.extend(device.map(|device| (link.index, device)));
                snapshot.links.push(link);
            }
            #[cfg(feature = "faults")]
            Seen::Address { mut seen, .. } if crate::faults::forgets_protocols() => {
                seen.protocol = None;
                snapshot.addresses.push(seen);
            }
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
}

/// Whether every address is on a link that is there.
fn agrees(snapshot: &Snapshot) -> bool {
    let links: BTreeSet<_> = snapshot.links.iter().map(|link| link.index).collect();
    snapshot.addresses.iter().all(|seen| links.contains(&seen.address.link))
}
