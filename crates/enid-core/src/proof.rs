//! Removing only on proof: whether an own address or route may go.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::eni::{Eni, Facts};
use crate::memory::Memory;
use crate::metadata::facts::EniFacts;
use crate::metadata::history::Absence;
use crate::object::{Address, Family};
use crate::report::Leaving;

/// More secondaries than this must be leaving before it can be a mass removal.
const MASS: usize = 2;

/// What is to become of an own address that metadata no longer shows on its ENI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Metadata shows it on another ENI of this instance, or the operator dropped it.
    GoNow,
    /// It goes when proven, and may be.
    Leaving(Leaving),
}

impl Fate {
    pub(crate) fn goes(&self) -> bool {
        match self {
            Self::GoNow => true,
            Self::Leaving(leaving) => leaving.proven,
        }
    }
}

/// Judges the own addresses of one ENI that metadata no longer shows there.
pub(crate) fn fates(
    facts: &Facts<'_>,
    memory: &mut Memory,
    eni: &Eni<'_>,
    enis: &[Eni<'_>],
    lacking: &[Address],
    present: &BTreeSet<IpAddr>,
) -> Vec<(Address, Fate)> {
    // Whoever loses it must have been read completely as well.
    let whole = eni.facts.is_some_and(EniFacts::complete);
    let moved = |address: IpAddr| {
        whole
            && enis.iter().any(|other| {
                other.mac != eni.mac
                    && other.managed()
                    && other.wants(address)
                    && other.facts.is_some_and(EniFacts::complete)
            })
    };
    let (moving, leaving): (Vec<_>, Vec<_>) =
        lacking.iter().partition(|address| moved(address.address));
    if leaving.is_empty() {
        memory.quiet.insert(eni.mac, present.clone());
        return moving.into_iter().map(|address| (address, Fate::GoNow)).collect();
    }
    let quiet = memory.quiet.entry(eni.mac).or_insert_with(|| present.clone());
    quiet.retain(|address| !moved(*address));
    let gone = quiet.iter().filter(|address| !eni.wants(**address)).count();
    let mass = gone > MASS && gone * 2 > quiet.len();
    let mut fates: Vec<_> = moving.into_iter().map(|address| (address, Fate::GoNow)).collect();
    for address in leaving {
        let fate = match eni.facts {
            Some(known) if dropped(memory, known, address.address) => Fate::GoNow,
            known => {
                let absence = known.map_or_else(Absence::default, |known| {
                    known.addresses.absence(&address.address)
                });
                Fate::Leaving(progress(facts, eni, absence, mass))
            }
        };
        fates.push((address, fate));
    }
    fates
}

/// A dropped address goes as soon as a complete reading after the operator's word lacks it.
fn dropped(memory: &Memory, known: &EniFacts, address: IpAddr) -> bool {
    memory.drops.get(&address).is_some_and(|asked| {
        known.complete()
            && known.confirmed == Some(known.last_read)
            && known.addresses.absence(&address).span.is_some_and(|(_, last)| last > *asked)
    })
}

/// How far the proof of an absence has come.
fn progress(facts: &Facts<'_>, eni: &Eni<'_>, absence: Absence, mass: bool) -> Leaving {
    let removal = &facts.config.removal;
    let grace = if mass { removal.mass_grace } else { removal.grace };
    let lacking = absence.span.map_or(Duration::ZERO, |(first, last)| last - first);
    let listed = facts.metadata.listed.contains(&eni.mac);
    let reread = eni.facts.is_some_and(|known| {
        known.complete()
            && known.confirmed == Some(known.last_read)
            && facts.metadata.failure.is_none()
            && facts.metadata.top_read.is_some_and(|read| read >= known.last_read)
    });
    let enough = absence.readings >= removal.confirmations.max(1) && lacking >= grace;
    Leaving {
        confirmations: absence.readings,
        needed: removal.confirmations.max(1),
        lacking,
        grace,
        mass,
        paused: !eni.facts.is_some_and(EniFacts::complete) || !listed,
        proven: enough && listed && reread,
    }
}

/// Whether the route to a VPC's CIDR may go: the full readings of every ENI that may have been the
/// one to show it have long lacked it.
pub(crate) fn cidr_is_gone(
    facts: &Facts<'_>,
    eni: &Eni<'_>,
    enis: &[Eni<'_>],
    cidr: &IpNet,
) -> bool {
    let vpc = |eni: &Eni<'_>| eni.facts.and_then(|known| known.keys.vpc.clone());
    let gone = |eni: &Eni<'_>| {
        let absence = eni.facts.map(|known| known.cidrs.absence(cidr));
        absence.is_some_and(|absence| progress(facts, eni, absence, false).proven)
    };
    let same = |other: &&Eni<'_>| {
        other.link.is_some()
            && other.facts.is_some()
            && vpc(eni).is_some()
            && vpc(other) == vpc(eni)
    };
    gone(eni) && enis.iter().filter(same).all(gone)
}

/// Whether metadata has long lacked an address, whoever made it.
pub(crate) fn address_is_gone(facts: &Facts<'_>, eni: &Eni<'_>, address: IpAddr) -> bool {
    let absence = eni.facts.map(|known| known.addresses.absence(&address));
    absence.is_some_and(|absence| progress(facts, eni, absence, false).proven)
}

/// Whether what was made for a delegated prefix may go: metadata has long lacked it.
pub(crate) fn prefix_is_gone(facts: &Facts<'_>, eni: &Eni<'_>, prefix: &IpNet) -> bool {
    prefix_leaving(facts, eni, prefix).is_some_and(|leaving| leaving.proven)
}

/// How far the proof is that a delegated prefix is gone; none while metadata shows it.
pub(crate) fn prefix_leaving(facts: &Facts<'_>, eni: &Eni<'_>, prefix: &IpNet) -> Option<Leaving> {
    let absence = eni.facts?.prefixes.absence(prefix);
    absence.span.is_some().then(|| progress(facts, eni, absence, false))
}

/// The own addresses of an ENI's link that metadata does not show there and that may go some day.
pub(crate) fn lacking(
    facts: &Facts<'_>,
    eni: &Eni<'_>,
    own: &[Address],
    prefixes: &[IpNet],
) -> Vec<Address> {
    own.iter()
        .filter(|address| {
            let ip = address.address;
            !eni.wants(ip)
                && !is_link_local(ip)
                && eni.primary_address() != Some(ip)
                // Made as the ENI's primary address, which never changes: a list without it is stale.
                && address.prefix_length == Family::of(ip).host_length()
                && !facts.config.ignores(ip)
                && !prefixes.iter().any(|prefix| prefix.contains(&ip))
        })
        .copied()
        .collect()
}

/// Whether an address holds on its link only.
pub(crate) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
