//! What the kernel must have: one ENI after the other, from metadata and configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::{Config, Mtu, PrimaryRules};
use crate::eni::{Eni, Facts, prefixes, survey};
use crate::memory::Memory;
use crate::object::{
    Address, Family, LinkGroup, LinkIndex, Mac, Priority, Protocol, Route, RouteKind, Rule,
    RuleAction, Setting, Sysctl, TableId,
};
use crate::observed::{Link, Owner};
use crate::proof::{self, Fate};
use crate::report::{AddressState, Leaving, Notice};
use crate::source::compact;
use crate::table::table;

/// Prefixes up to this length in main count as default routes: VPNs use two halves.
const HALF_DEFAULT: u32 = 1;

/// A change of a link's property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// The ENI.
    pub(crate) mac: Mac,
    /// Its link.
    pub(crate) link: LinkIndex,
    /// What the link has; none for an alternative name to add.
    pub(crate) from: Option<Setting>,
    /// What it must have; none for an alternative name to remove.
    pub(crate) to: Option<Setting>,
}

/// What must be, and what may go.
#[derive(Debug, Clone, Default)]
pub(crate) struct Desired {
    pub(crate) addresses: Vec<(Mac, Address)>,
    pub(crate) routes: BTreeMap<Route, Mac>,
    pub(crate) rules: BTreeMap<Rule, Mac>,
    pub(crate) changes: Vec<Change>,
    /// Own addresses that may go: proven, moved or released.
    pub(crate) removals: BTreeSet<Address>,
    /// Tables whose own routes and rules are all known: what is not wished for may go.
    pub(crate) cleared: BTreeSet<TableId>,
    /// ENIs whose own A rules cannot be told from a held ENI's: nothing without a table goes.
    pub(crate) unclear: bool,
    /// What to say of each address, beyond "there" and "not there".
    pub(crate) states: BTreeMap<(Mac, IpAddr), AddressState>,
    /// The sources of each managed ENI.
    pub(crate) sources: BTreeMap<Mac, Vec<IpNet>>,
    /// Removals and routes that wait for proof, by ENI.
    pub(crate) unproven: BTreeMap<Mac, usize>,
    pub(crate) notices: Vec<(Mac, Notice)>,
}

/// What to wish for, with the ENIs it is for.
pub(crate) fn build<'a>(facts: &Facts<'a>, memory: &mut Memory) -> (Desired, Vec<Eni<'a>>) {
    let enis = survey(facts, memory);
    let mut desired = Desired::default();
    let present = Present::new(facts);
    let elsewhere = elsewhere(facts, &enis);
    for (eni, link) in linked(&enis) {
        if eni.released() {
            release(facts, eni, link, &present, &mut desired);
        } else if eni.managed() {
            addresses(facts, eni, link, &elsewhere, &present, &mut desired);
            leaving(facts, memory, eni, link, &enis, &present, &mut desired);
        }
    }

    let claims = claims(facts, &enis, &present, &desired.removals);
    let others = enis.iter().any(|eni| has_rules(facts, eni) && !eni.primary)
        || own_routes_elsewhere(facts, &enis);
    for (eni, link) in linked(&enis).filter(|(eni, _)| eni.managed()) {
        if eni.primary && !others {
            ungroup(eni, link, &mut desired);
        } else {
            settings(facts, eni, link, &enis, &present, &mut desired);
            routing(facts, eni, link, &enis, &present, &claims, &mut desired);
        }
    }
    clear_tables(facts, &enis, &mut desired);
    (desired, enis)
}

fn linked<'e, 'a>(enis: &'e [Eni<'a>]) -> impl Iterator<Item = (&'e Eni<'a>, &'a Link)> {
    enis.iter().filter_map(|eni| eni.link.map(|link| (eni, link)))
}

/// Whether an ENI has, or after a restart may still have, rules: its metadata may be late.
fn has_rules(facts: &Facts<'_>, eni: &Eni<'_>) -> bool {
    let before = facts.observed.ledger.tables.contains_key(&eni.mac);
    eni.managed() || (before && eni.link.is_some() && !eni.released())
}

/// Whether own routes leave by a link that metadata has not told apart from an ENI's yet: without a
/// ledger they are all that says that there was another ENI.
fn own_routes_elsewhere(facts: &Facts<'_>, enis: &[Eni<'_>]) -> bool {
    let settled = |link: LinkIndex| {
        let mut here = enis.iter().filter(|eni| eni.link.is_some_and(|own| own.index == link));
        here.any(|eni| eni.primary || eni.managed() || eni.released())
    };
    facts.observed.own_routes().filter_map(|own| own.link).any(|link| !settled(link))
}

/// Which addresses are on which link, looked up many times.
#[derive(Default)]
struct Present {
    by_link: BTreeMap<LinkIndex, BTreeSet<IpAddr>>,
    own: BTreeMap<LinkIndex, Vec<Address>>,
    taken_over: Vec<Address>,
}

impl Present {
    fn new(facts: &Facts<'_>) -> Self {
        let mut present = Self::default();
        for seen in &facts.observed.snapshot.addresses {
            let address = seen.address;
            present.by_link.entry(address.link).or_default().insert(address.address);
            match facts.observed.owner(seen) {
                Owner::Ours => present.own.entry(address.link).or_default().push(address),
                Owner::TakenOver => present.taken_over.push(address),
                Owner::Foreign => {}
            }
        }
        present
    }

    fn has(&self, link: LinkIndex, address: IpAddr) -> bool {
        self.by_link.get(&link).is_some_and(|there| there.contains(&address))
    }

    fn own(&self, link: LinkIndex) -> Vec<Address> {
        self.own.get(&link).cloned().unwrap_or_default()
    }

    /// The own secondary addresses on a link, and those that metadata grants.
    fn secondaries(&self, eni: &Eni<'_>, link: LinkIndex) -> BTreeSet<IpAddr> {
        let own = self.own.get(&link).into_iter().flatten().map(|address| address.address);
        let granted = eni.ipv4s.iter().copied().map(IpAddr::V4);
        let primary = eni.primary_address().map(IpAddr::V4);
        own.chain(granted).filter(|address| Some(*address) != primary).collect()
    }
}

/// Addresses that live behind, or on, a link that is no ENI: a pod's, say.
fn elsewhere(facts: &Facts<'_>, enis: &[Eni<'_>]) -> BTreeMap<IpAddr, LinkIndex> {
    let links: BTreeSet<LinkIndex> =
        enis.iter().filter_map(|eni| eni.link).map(|link| link.index).collect();
    let snapshot = facts.observed.snapshot;
    let routes = snapshot.routes.iter().filter_map(|seen| {
        let route = &seen.route;
        let one = route.destination.prefix_len() == route.destination.max_prefix_len();
        let foreign = seen.protocol != Protocol::ENID && route.kind == RouteKind::Unicast;
        route.link.filter(|_| one && foreign).map(|link| (route.destination.addr(), link))
    });
    let addresses = snapshot.addresses.iter().map(|seen| (seen.address.address, seen.address.link));
    routes.chain(addresses).filter(|(_, link)| !links.contains(link)).collect()
}

fn addresses(
    facts: &Facts<'_>,
    eni: &Eni<'_>,
    link: &Link,
    elsewhere: &BTreeMap<IpAddr, LinkIndex>,
    present: &Present,
    desired: &mut Desired,
) {
    let primary = eni.primary_address();
    for v4 in &eni.ipv4s {
        let address = IpAddr::V4(*v4);
        let first = primary == Some(*v4);
        if first && eni.primary {
            continue;
        }
        if facts.config.ignores(address) {
            desired.states.insert((eni.mac, address), AddressState::Ignored);
            continue;
        }
        if let Some(other) = elsewhere.get(&address).copied() {
            if present.has(link.index, address) {
                let notice = Notice::AlsoElsewhere { address, link: other };
                desired.notices.push((eni.mac, notice));
            } else {
                let state = AddressState::Elsewhere { link: other };
                desired.states.insert((eni.mac, address), state);
            }
            continue;
        }
        let length = eni.subnet.filter(|_| first).map_or(32, |subnet| subnet.prefix_len());
        let address = Address {
            link: link.index,
            address,
            prefix_length: length,
            prefix_route: false,
            preferred: true,
        };
        desired.addresses.push((eni.mac, address));
    }
}

/// Own addresses that metadata no longer shows, and what was once ours.
fn leaving(
    facts: &Facts<'_>,
    memory: &mut Memory,
    eni: &Eni<'_>,
    link: &Link,
    enis: &[Eni<'_>],
    present: &Present,
    desired: &mut Desired,
) {
    let taken_over = present.taken_over.iter().filter(|address| address.link == link.index);
    for address in taken_over.filter(|address| !eni.wants(address.address)) {
        desired.states.insert((eni.mac, address.address), AddressState::TakenOver);
    }
    let prefixes: Vec<IpNet> = enis.iter().flat_map(|eni| prefixes(facts, eni)).collect();
    let lacking = proof::lacking(facts, eni, &present.own(link.index), &prefixes);
    let secondaries = present.secondaries(eni, link.index);
    for (address, fate) in proof::fates(facts, memory, eni, enis, &lacking, &secondaries) {
        if fate.goes() {
            desired.removals.insert(address);
        } else {
            *desired.unproven.entry(eni.mac).or_default() += 1;
        }
        let leaving = match fate {
            Fate::Leaving(leaving) => leaving,
            Fate::GoNow => Leaving { proven: true, ..Leaving::default() },
        };
        desired.states.insert((eni.mac, address.address), AddressState::Leaving(leaving));
    }
}

/// The table and the rules of an ENI.
fn routing(
    facts: &Facts<'_>,
    eni: &Eni<'_>,
    link: &Link,
    enis: &[Eni<'_>],
    present: &Present,
    claims: &[(IpNet, Mac)],
    desired: &mut Desired,
) {
    let first = eni.primary_address().map(IpAddr::V4);
    let there = first.is_some_and(|first| present.has(link.index, first));
    // One that its table is for, and that is still there, says more than a list without it.
    let kept = facts.observed.own_routes().filter(|own| eni.table == Some(own.table));
    let mut kept = kept.filter_map(|own| own.source);
    let kept = kept.find(|source| eni.primary && present.has(link.index, *source));
    // The primary ENI's first address is its boot's business; without it there is nothing to route
    // for.
    let never = facts.config.primary_rules == PrimaryRules::Never;
    if eni.primary && (never || (!there && kept.is_none())) {
        return;
    }
    // The kernel refuses a preferred source that it does not have.
    let comes = |first: &IpAddr| {
        let mut wishes = desired.addresses.iter().map(|(_, wish)| (wish.link, wish.address));
        there || wishes.any(|wish| wish == (link.index, *first))
    };
    let source = first.filter(comes).or(kept);
    table(facts, eni, link, enis, source, desired);
    let sources = sources(eni, claims);
    rules(facts, eni, link, &sources, desired);
    desired.sources.insert(eni.mac, sources);
}

fn change(eni: &Eni<'_>, link: &Link, from: Option<Setting>, to: Option<Setting>) -> Change {
    Change { mac: eni.mac, link: link.index, from, to }
}

fn set_group(eni: &Eni<'_>, link: &Link, group: LinkGroup) -> Change {
    change(eni, link, Some(Setting::Group(link.group)), Some(Setting::Group(group)))
}

/// Without another ENI, the primary one needs no protection of its connected routes.
fn ungroup(eni: &Eni<'_>, link: &Link, desired: &mut Desired) {
    if link.group == Config::LINK_GROUP {
        desired.changes.push(set_group(eni, link, LinkGroup::default()));
    }
}

fn settings(
    facts: &Facts<'_>,
    eni: &Eni<'_>,
    link: &Link,
    enis: &[Eni<'_>],
    present: &Present,
    desired: &mut Desired,
) {
    if !eni.primary {
        let ours = [Sysctl::AcceptRaDefaultRoute, Sysctl::AcceptRaPrefix];
        let wrong = |(key, value): &(&Sysctl, &i32)| ours.contains(key) && **value != 0;
        for (key, value) in link.sysctls.iter().filter(wrong) {
            let (from, to) = (Setting::Sysctl(*key, *value), Setting::Sysctl(*key, 0));
            desired.changes.push(change(eni, link, Some(from), Some(to)));
        }
        let mtu = match facts.config.mtu {
            Mtu::Keep => link.mtu,
            Mtu::Bytes(mtu) => mtu,
            Mtu::Primary => primary_mtu(enis, present).unwrap_or(link.mtu),
        };
        if mtu != link.mtu {
            let (from, to) = (Setting::Mtu(link.mtu), Setting::Mtu(mtu));
            desired.changes.push(change(eni, link, Some(from), Some(to)));
        }
        for name in alternative_names(eni) {
            let taken = facts
                .observed
                .snapshot
                .links
                .iter()
                .any(|other| other.name == name || other.alternative_names.contains(&name));
            if !taken {
                let to = Some(Setting::AlternativeName(name));
                desired.changes.push(change(eni, link, None, to));
            }
        }
    }
    if link.group == LinkGroup::default() {
        desired.changes.push(set_group(eni, link, Config::LINK_GROUP));
    } else if link.group != Config::LINK_GROUP {
        desired.notices.push((eni.mac, Notice::ForeignGroup(link.group.0)));
    }
    if !eni.primary && !link.up {
        desired.changes.push(change(eni, link, None, Some(Setting::Up)));
    }
}

/// The MTU that others take from the primary ENI. Without its first address a DHCP client is at work
/// on it, which tells the link its MTU with the address.
fn primary_mtu(enis: &[Eni<'_>], present: &Present) -> Option<u32> {
    let (primary, link) = linked(enis).find(|(eni, _)| eni.primary)?;
    let first = primary.primary_address().map(IpAddr::V4);
    let settled = first.is_none_or(|first| present.has(link.index, first));
    settled.then_some(link.mtu)
}

fn alternative_names(eni: &Eni<'_>) -> Vec<String> {
    let id = eni.facts.and_then(|known| known.keys.id.as_ref()).map(|id| id.0.clone());
    let place = eni.place.map(|(card, device)| format!("device-number-{device}.{card}"));
    id.into_iter().chain(place).collect()
}

/// Addresses and delegated prefixes of each ENI: those that metadata grants or last granted, and
/// those that its link has and keeps although metadata grants them to nobody; by network address,
/// so that those of one subnet stand together.
fn claims(
    facts: &Facts<'_>,
    enis: &[Eni<'_>],
    present: &Present,
    removals: &BTreeSet<Address>,
) -> Vec<(IpNet, Mac)> {
    let granted: BTreeSet<IpAddr> =
        enis.iter().flat_map(|eni| eni.ipv4s.iter().copied().map(IpAddr::V4)).collect();
    let goes: BTreeSet<(LinkIndex, IpAddr)> =
        removals.iter().map(|address| (address.link, address.address)).collect();
    let mut claims = Vec::new();
    for eni in enis {
        let stray = eni.link.into_iter().flat_map(|link| {
            let there = present.by_link.get(&link.index).into_iter().flatten().copied();
            there.filter(|ip| !granted.contains(ip) && !goes.contains(&(link.index, *ip)))
        });
        let own = eni.ipv4s.iter().copied().map(IpAddr::V4);
        let nets = own.chain(stray).map(IpNet::from).chain(prefixes(facts, eni));
        claims.extend(nets.map(|net| (net, eni.mac)));
    }
    claims.sort_unstable_by_key(|(net, _)| net.network());
    claims
}

/// The prefixes that this ENI's rules match.
fn sources(eni: &Eni<'_>, claims: &[(IpNet, Mac)]) -> Vec<IpNet> {
    let Some(subnet) = eni.subnet.map(IpNet::V4) else {
        return Vec::new();
    };
    let from = claims.partition_point(|(net, _)| net.network() < subnet.network());
    let until = claims.partition_point(|(net, _)| net.network() <= subnet.broadcast());
    let inside = claims.get(from..until).unwrap_or_default().iter();
    let inside = inside.filter(|(net, _)| subnet.contains(net));
    let (mine, others): (Vec<_>, Vec<_>) = inside.partition(|(_, mac)| *mac == eni.mac);
    let nets = |claims: Vec<&(IpNet, Mac)>| claims.iter().map(|(net, _)| *net).collect::<Vec<_>>();
    compact(subnet, &nets(mine), &nets(others))
}

fn rules(facts: &Facts<'_>, eni: &Eni<'_>, link: &Link, sources: &[IpNet], desired: &mut Desired) {
    let Some(table) = eni.table else { return };
    let rule = |above: u32, action: TableId| Rule {
        family: Family::V4,
        priority: Priority(facts.config.priority_base + above),
        source: None,
        destination: None,
        iif: None,
        oif: None,
        mark: None,
        action: RuleAction::Lookup(action),
        suppress_prefix_length: None,
        suppress_group: None,
    };
    let bound = Rule { oif: Some(link.name.clone()), ..rule(0, table) };
    desired.rules.insert(bound, eni.mac);
    for source in sources {
        let here = Some("lo".to_owned());
        let main_first = Rule {
            source: Some(*source),
            iif: here.clone(),
            suppress_prefix_length: Some(HALF_DEFAULT),
            suppress_group: Some(Config::LINK_GROUP),
            ..rule(10, TableId::MAIN)
        };
        let own = Rule { source: Some(*source), iif: here, ..rule(20, table) };
        desired.rules.extend([(main_first, eni.mac), (own, eni.mac)]);
    }
}

/// Everything that enid made for a released ENI goes.
fn release(
    facts: &Facts<'_>,
    eni: &Eni<'_>,
    link: &Link,
    present: &Present,
    desired: &mut Desired,
) {
    desired.removals.extend(present.own(link.index));
    ungroup(eni, link, desired);
    for original in facts.observed.ledger.originals.get(&eni.mac).into_iter().flatten() {
        let back = match original {
            Setting::Mtu(mtu) if *mtu != link.mtu => {
                Some((Some(Setting::Mtu(link.mtu)), Some(original.clone())))
            }
            Setting::Sysctl(key, value) => link
                .sysctls
                .get(key)
                .filter(|now| *now != value)
                .map(|now| (Some(Setting::Sysctl(*key, *now)), Some(original.clone()))),
            Setting::AlternativeName(name) if link.alternative_names.contains(name) => {
                Some((Some(original.clone()), None))
            }
            Setting::Mtu(_) | Setting::AlternativeName(_) | Setting::Up | Setting::Group(_) => None,
        };
        if let Some((from, to)) = back {
            desired.changes.push(change(eni, link, from, to));
        }
    }
}

/// Finds the tables in which what is not wished for may go.
fn clear_tables(facts: &Facts<'_>, enis: &[Eni<'_>], desired: &mut Desired) {
    let settled = |eni: &Eni<'_>| eni.managed() || eni.released();
    let listed = &facts.metadata.listed;
    let everything_known = facts.metadata.top_read.is_some()
        && listed.iter().all(|mac| {
            facts.observed.links_of(*mac).next().is_none()
                || enis.iter().any(|eni| eni.mac == *mac && settled(eni))
        })
        && enis.iter().all(|eni| settled(eni) || eni.link.is_none());
    desired.unclear = !everything_known;

    let mut tables: BTreeSet<TableId> =
        facts.observed.own_routes().map(|route| route.table).collect();
    tables.extend(facts.observed.own_rules().filter_map(looked_up));
    for table in tables {
        let owner = |eni: &&Eni<'_>| eni.managed() && eni.table == Some(table);
        let may_go = if enis.iter().any(|eni| owner(&eni)) {
            true
        } else {
            abandoned(facts, enis, table).unwrap_or(everything_known)
        };
        if may_go {
            desired.cleared.insert(table);
        }
    }
}

/// Whether a table that no managed ENI has may be emptied; none where that cannot be told.
fn abandoned(facts: &Facts<'_>, enis: &[Eni<'_>], table: TableId) -> Option<bool> {
    let settled = |eni: Option<&Eni<'_>>| eni.is_some_and(|eni| eni.managed() || eni.released());
    let mut links =
        facts.observed.own_routes().filter(|own| own.table == table).filter_map(|own| own.link);
    if let Some(link) = links.next() {
        let eni = enis.iter().find(|eni| eni.link.is_some_and(|other| other.index == link));
        return Some(settled(eni));
    }
    let owners = facts.observed.ledger.tables.iter();
    let owners: Vec<Mac> =
        owners.filter(|(_, owned)| **owned == table).map(|(mac, _)| *mac).collect();
    if owners.is_empty() {
        return None;
    }
    Some(owners.iter().all(|mac| {
        facts.observed.links_of(*mac).next().is_none()
            || settled(enis.iter().find(|eni| eni.mac == *mac))
    }))
}

/// The table of an own rule, unless it is main.
pub(crate) fn looked_up(rule: &Rule) -> Option<TableId> {
    match rule.action {
        RuleAction::Lookup(TableId::MAIN) | RuleAction::Other(_) => None,
        RuleAction::Lookup(table) => Some(table),
    }
}
