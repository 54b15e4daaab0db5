//! Removing only on proof: whether an own address or route may go.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::eni::{Eni, Facts};
use crate::memory::Memory;
use crate::metadata::EniKey;
use crate::metadata::facts::EniFacts;
use crate::metadata::history::Absence;
use crate::object::{Address, Family, Mac};
use crate::observed::{Owner, SeenAddress};
use crate::prefix;
use crate::report::{Departure, Kept, KeptAddress, Leaving, Mass, Stop};

/// More than this must be leaving before it can be a mass removal.
const MASS: usize = 2;

/// Judges the own addresses of one ENI that metadata no longer shows there.
pub(crate) fn leaving(
    facts: &Facts<'_>,
    memory: &mut Memory,
    eni: &Eni<'_>,
    enis: &[Eni<'_>],
    lacking: &[Address],
    present: &BTreeSet<IpAddr>,
) -> Vec<(Address, Leaving)> {
    let (moving, going): (Vec<_>, Vec<_>) = lacking
        .iter()
        .map(|address| (*address, moved(facts, eni, enis, address.address)))
        .partition(|(_, to)| to.is_some());
    let quiet = memory.quiet.entry(eni.mac).or_default();
    if going.is_empty() && eni.prefixes().all(|prefix| prefix::shown(eni, &prefix)) {
        quiet.clear();
        memory.mass.remove(&eni.mac);
    }
    if quiet.is_empty() {
        quiet.extend(present.iter().copied().map(IpNet::from));
        quiet.extend(eni.prefixes());
    }
    // What moved is not lost.
    quiet.retain(|net| host(net).is_none_or(|ip| moved(facts, eni, enis, ip).is_none()));
    // What came since is no less in use.
    let mut came: BTreeSet<IpNet> = present.iter().copied().map(IpNet::from).collect();
    came.retain(|net| host(net).is_none_or(|ip| moved(facts, eni, enis, ip).is_none()));
    let mass = mass(memory, eni, &came);
    memory.mass.extend(mass.map(|mass| (eni.mac, mass)));
    let moves = moving.into_iter().map(|(address, to)| {
        let cause = to.map_or(Departure::Unassigned, Departure::Moved);
        (address, Leaving { cause, proven: true, ..Leaving::default() })
    });
    let goes = going.into_iter().map(|(address, _)| {
        let ip = address.address;
        let absence = eni.facts.map(|known| known.addresses.absence(&ip)).unwrap_or_default();
        let leaving = match memory.drops.get(&ip) {
            Some(asked) => {
                let fresh = absence.span.is_some_and(|(_, last)| last > *asked);
                dropped(facts, eni, absence, fresh)
            }
            None => progress(facts, eni, absence, mass),
        };
        (address, leaving)
    });
    moves.chain(goes).collect()
}

/// The other ENI of this instance that metadata shows an address on.
fn moved(facts: &Facts<'_>, eni: &Eni<'_>, enis: &[Eni<'_>], address: IpAddr) -> Option<Mac> {
    let shown = eni.facts.is_some_and(|known| known.keys.has(address));
    // Nearly always it is: what follows looks at every address of every ENI.
    if shown || !tells(facts, eni, EniKey::addresses(Family::of(address))) {
        return None;
    }
    let has = |other: &&Eni<'_>| {
        let complete = other.facts.is_some_and(EniFacts::complete);
        other.mac != eni.mac
            && other.managed()
            && other.wants(address)
            && complete
            && facts.metadata.listed.contains(&other.mac)
    };
    enis.iter().find(has).map(|other| other.mac)
}

/// Whether the last reading of an ENI told all of a list, whatever else of it could not be read: two
/// ENIs that both say where an address is leave nothing to wait for.
fn tells(facts: &Facts<'_>, eni: &Eni<'_>, list: EniKey) -> bool {
    let needed = EniKey::IDENTITY.map(EniKey::name).into_iter().chain([list.name()]);
    let known = eni.facts.filter(|known| known.failure.is_none() && !known.unlisted);
    known.is_some_and(|known| needed.into_iter().all(|key| !known.incomplete.contains(&key)))
        && facts.metadata.listed.contains(&eni.mac)
}

/// The address that a network of one address is for.
fn host(net: &IpNet) -> Option<IpAddr> {
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

/// Whether most of what an ENI had when nothing was leaving would go, however slowly, or most of that
/// and of what came since.
fn mass(memory: &Memory, eni: &Eni<'_>, came: &BTreeSet<IpNet>) -> Option<Mass> {
    let quiet = memory.quiet.get(&eni.mac)?;
    let stays = |net: &IpNet| match host(net) {
        Some(ip) => eni.wants(ip),
        None => eni.prefixes().any(|prefix| prefix == *net) && prefix::shown(eni, net),
    };
    let most = |nets: &BTreeSet<IpNet>| {
        let going = nets.iter().filter(|net| !stays(net)).count();
        (going > MASS && going * 2 > nets.len()).then_some(Mass { going, of: nets.len() })
    };
    // Prefixes that stay do not make up for addresses that go.
    let addresses = |nets: &BTreeSet<IpNet>| {
        let addresses = nets.iter().filter(|net| host(net).is_some());
        most(&addresses.copied().collect())
    };
    let all = quiet.union(came).copied().collect();
    let now =
        most(quiet).or_else(|| addresses(quiet)).or_else(|| most(&all)).or_else(|| addresses(&all));
    // The first ones that go do not make the rest any fewer.
    now.or_else(|| memory.mass.get(&eni.mac).copied())
}

/// What keeps the last reading from proving anything.
fn stops(facts: &Facts<'_>, eni: &Eni<'_>) -> Vec<Stop> {
    let metadata = facts.metadata;
    let Some(known) = eni.facts else { return vec![Stop::Unconfirmed] };
    let failure = known.failure.as_ref().or(metadata.failure.as_ref());
    let identity = EniKey::IDENTITY.map(EniKey::name);
    let (identity, unread): (Vec<_>, Vec<_>) =
        known.incomplete.iter().copied().partition(|key| identity.contains(key));
    let confirmed = known.confirmed == Some(known.last_read)
        && metadata.top_read.is_some_and(|read| read >= known.last_read);
    let mut stops: Vec<Stop> = failure.cloned().map(Stop::Failed).into_iter().collect();
    if known.unlisted || !metadata.listed.contains(&eni.mac) {
        stops.push(Stop::Unlisted);
    }
    // Those of a reading before the one that failed.
    if stops.is_empty() && !identity.is_empty() {
        stops.push(Stop::Identity(identity));
    }
    if stops.is_empty() && !unread.is_empty() {
        stops.push(Stop::Unread(unread));
    }
    if stops.is_empty() && !confirmed {
        stops.push(Stop::Unconfirmed);
    }
    stops
}

/// A dropped address goes as soon as a complete reading after the operator's word lacks it.
fn dropped(facts: &Facts<'_>, eni: &Eni<'_>, absence: Absence, fresh: bool) -> Leaving {
    let mut stops = stops(facts, eni);
    if stops.is_empty() && !fresh {
        stops.push(Stop::Unconfirmed);
    }
    let proven = stops.is_empty();
    let confirmations = absence.readings;
    Leaving {
        cause: Departure::Dropped,
        confirmations,
        needed: 1,
        stops,
        proven,
        ..Leaving::default()
    }
}

/// How far the proof of an absence has come.
fn progress(facts: &Facts<'_>, eni: &Eni<'_>, absence: Absence, mass: Option<Mass>) -> Leaving {
    let removal = &facts.config.removal;
    let grace = if mass.is_some() { removal.mass_grace } else { removal.grace };
    let lacking = absence.span.map_or(Duration::ZERO, |(first, last)| last - first);
    let needed = removal.confirmations.max(1);
    let stops = stops(facts, eni);
    let enough = absence.readings >= needed && lacking >= grace;
    Leaving {
        cause: Departure::Unassigned,
        confirmations: absence.readings,
        needed,
        lacking,
        grace,
        mass,
        proven: enough && stops.is_empty(),
        stops,
    }
}

/// How far the proof is that the route to a VPC's CIDR may go, as told by that ENI of those that may
/// have been the one to show it which is the furthest from it.
pub(crate) fn cidr_leaving(
    facts: &Facts<'_>,
    eni: &Eni<'_>,
    enis: &[Eni<'_>],
    cidr: &IpNet,
) -> Option<Leaving> {
    let told = |eni: &Eni<'_>| {
        let known = eni.facts?;
        let mut leaving = progress(facts, eni, known.cidrs.absence(cidr), None);
        // A garbled entry may be this one; such readings were not counted.
        if leaving.stops.is_empty() && known.refusals.contains_key(&EniKey::VpcIpv4) {
            leaving.stops.push(Stop::Unread(vec![EniKey::VpcIpv4.name()]));
            leaving.proven = false;
        }
        Some(leaving)
    };
    let others = witnesses(eni, enis).filter_map(told);
    eni.facts?;
    told(eni).into_iter().chain(others).min_by_key(|leaving| {
        let stopped = !leaving.stops.is_empty();
        (leaving.proven, leaving.confirmations, leaving.lacking, !stopped)
    })
}

/// The ENIs of an ENI's VPC, any of which may be the one to show what the VPC has.
pub(crate) fn witnesses<'a, 'b>(
    eni: &Eni<'_>,
    enis: &'a [Eni<'b>],
) -> impl Iterator<Item = &'a Eni<'b>> {
    let vpc = |eni: &Eni<'_>| eni.facts.and_then(|known| known.keys.vpc.clone());
    let own = vpc(eni);
    enis.iter().filter(move |other| {
        other.link.is_some() && other.facts.is_some() && own.is_some() && vpc(other) == own
    })
}

/// Whether metadata has long lacked an address, whoever made it.
pub(crate) fn address_is_gone(facts: &Facts<'_>, eni: &Eni<'_>, address: IpAddr) -> bool {
    let absence = eni.facts.map(|known| known.addresses.absence(&address));
    absence.is_some_and(|absence| progress(facts, eni, absence, None).proven)
}

/// Whether what was made for a delegated prefix may go: metadata has long lacked it.
pub(crate) fn prefix_is_gone(
    facts: &Facts<'_>,
    memory: &Memory,
    eni: &Eni<'_>,
    prefix: &IpNet,
) -> bool {
    prefix_leaving(facts, memory, eni, prefix).is_some_and(|leaving| leaving.proven)
}

/// How far the proof is that a delegated prefix is gone; none while metadata shows it.
pub(crate) fn prefix_leaving(
    facts: &Facts<'_>,
    memory: &Memory,
    eni: &Eni<'_>,
    prefix: &IpNet,
) -> Option<Leaving> {
    let absence = eni.facts?.prefixes.absence(prefix);
    absence
        .span
        .is_some()
        .then(|| progress(facts, eni, absence, mass(memory, eni, &BTreeSet::new())))
}

/// The own addresses of an ENI's link that metadata does not show there and that may go some day.
pub(crate) fn lacking(facts: &Facts<'_>, eni: &Eni<'_>, own: &[Address]) -> Vec<Address> {
    own.iter()
        .filter(|address| !eni.wants(address.address) && protection(facts, eni, address).is_none())
        .copied()
        .collect()
}

/// Why an own address that metadata does not show stays for good.
fn protection(facts: &Facts<'_>, eni: &Eni<'_>, address: &Address) -> Option<Kept> {
    let ip = address.address;
    if is_link_local(ip) {
        Some(Kept::LinkLocal)
    } else if eni.primary_address() == Some(ip)
        // A list without it is stale.
        || address.prefix_length != Family::of(ip).host_length()
    {
        Some(Kept::Primary)
    } else if facts.config.ignores(ip) {
        Some(Kept::Ignored)
    } else {
        eni.prefixes().find(|prefix| prefix.contains(&ip)).map(Kept::InPrefix)
    }
}

/// The addresses on an ENI's link that metadata does not show and that stay for good.
pub(crate) fn kept(facts: &Facts<'_>, eni: &Eni<'_>) -> Vec<KeptAddress> {
    let Some(link) = eni.link.filter(|_| eni.managed()) else { return Vec::new() };
    let why = |seen: &SeenAddress| match facts.observed.owner(seen) {
        Owner::Ours => protection(facts, eni, &seen.address),
        // Said among the addresses.
        Owner::TakenOver => None,
        // The kernel's own.
        Owner::Foreign if is_link_local(seen.address.address) => None,
        Owner::Foreign if !seen.permanent => Some(Kept::Dynamic),
        Owner::Foreign => Some(Kept::Foreign),
    };
    let here = facts
        .observed
        .snapshot
        .addresses
        .iter()
        .filter(|seen| seen.address.link == link.index && !eni.wants(seen.address.address));
    let kept = here
        .filter_map(|seen| Some(KeptAddress { address: seen.address.address, why: why(seen)? }));
    kept.collect()
}

/// Whether an address holds on its link only.
pub(crate) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
