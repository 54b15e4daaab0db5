//! Looks at everything: five dumps one after the other, all of them or an error.

use std::collections::{BTreeMap, BTreeSet};

use enid_core::object::LinkIndex;
use enid_core::observed::{Link, Snapshot};
use nix::errno::Errno;
use rtnetlink::packet_core::NetlinkMessage;

use crate::connection::Requests;
use crate::driver::{Device, Drivers};
use crate::error::Error;
use crate::wire::read::{Seen, seen};
use crate::wire::write::{addresses_of, dumps};
use crate::wire::{Message, Told};

/// So many interrupted dumps of all addresses are enough to ask for those of each link by itself.
const AT_ONCE: u32 = 3;

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
    heard.all(requests.dump(tried, || ask.clone()).await?)?;
    Ok(heard.snapshot.links)
}

async fn once(requests: &mut Requests) -> Result<Heard, Error> {
    let mut heard = Heard::default();
    let [(tried, links), (tried_next, addresses), others @ ..] = dumps();
    heard.all(requests.dump(tried, || links.clone()).await?)?;
    let links: Vec<_> = heard.snapshot.links.iter().map(|link| link.index).collect();
    heard.all(every_address(requests, tried_next, &addresses, &links).await?)?;
    for (tried, ask) in others {
        heard.all(requests.dump(tried, || ask.clone()).await?)?;
    }
    Ok(heard)
}

/// All addresses. A dump that needs more than one datagram, from some 350 of them on, is interrupted
/// whenever any of them changes meanwhile, and whoever never ceases to change one would keep us from
/// ever seeing them. Those of one link fit into a datagram.
async fn every_address(
    requests: &mut Requests,
    tried: &'static str,
    all: &NetlinkMessage<Message>,
    links: &[LinkIndex],
) -> Result<Vec<Told>, Error> {
    match requests.dump_within(AT_ONCE, tried, || all.clone()).await {
        Err(Error::Interrupted { .. }) => {}
        told => return told,
    }
    let mut every = Vec::new();
    for link in links {
        match requests.dump(tried, || addresses_of(*link)).await {
            Ok(told) => every.extend(told),
            // It has gone since, and its addresses with it.
            Err(Error::Refused { errno, .. }) if errno == Errno::ENODEV as i32 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(every)
}

impl Heard {
    fn all(&mut self, told: Vec<Told>) -> Result<(), Error> {
        told.iter().try_for_each(|told| {
            self.put(seen(told)?);
            Ok(())
        })
    }

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
