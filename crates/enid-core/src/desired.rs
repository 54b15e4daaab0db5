//! What the kernel must have: one ENI after the other, from metadata and configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::clear::{self, may_still_have_rules, own_routes_elsewhere};
use crate::config::PrimaryRules;
use crate::eni::{Eni, Facts, survey};
use crate::memory::Memory;
use crate::object::{
    Address, Family, LinkIndex, Mac, Marking, Protocol, Route, RouteKind, Rule, RuleAction,
    Setting, TableId,
};
use crate::observed::{Link, Owner, SeenAddress};
use crate::proof;
use crate::report::{AddressState, CidrReport, Notice};
use crate::rule::{self, claims, rules, sources};
use crate::stack::Stack;
use crate::table::{self, table};
use crate::{link, prefix};

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
    pub(crate) markings: BTreeMap<Marking, Mac>,
    pub(crate) changes: Vec<Change>,
    /// Own addresses that may go: proven, moved or released.
    pub(crate) removals: BTreeSet<Address>,
    /// Tables whose own routes and rules of a family are all known: what is not wished for may go.
    pub(crate) cleared: BTreeSet<(TableId, Family)>,
    /// Links all of whose own routes of a family in tables that everybody shares are known.
    pub(crate) settled: BTreeSet<(LinkIndex, Family)>,
    /// ENIs whose own A rules cannot be told from a held ENI's: nothing without a table goes.
    pub(crate) unclear: bool,
    /// What to say of each address, beyond "there" and "not there".
    pub(crate) states: BTreeMap<(Mac, IpAddr), AddressState>,
    /// The sources of each managed ENI.
    pub(crate) sources: BTreeMap<Mac, Vec<ipnet::IpNet>>,
    /// CIDRs of the VPC that metadata no longer shows and that are still routed.
    pub(crate) cidrs: Vec<(Mac, CidrReport)>,
    /// Removals and routes that wait for proof, by ENI.
    pub(crate) unproven: BTreeMap<Mac, usize>,
    /// ENIs whose readings are a part of the proof that another one waits for.
    pub(crate) witnesses: BTreeSet<Mac>,
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
            desired.removals.extend(present.own(link.index));
            link::restore(facts, eni, link, &mut desired);
        } else if eni.managed() {
            addresses(facts, eni, link, &elsewhere, &present, &mut desired);
            leaving(facts, memory, eni, link, &enis, &present, &mut desired);
        }
    }

    let claims = claims(&enis, &present, &desired.removals);
    let never = facts.config.primary_rules == PrimaryRules::Never;
    let others = enis.iter().any(|eni| !eni.primary && may_still_have_rules(facts, eni))
        || own_routes_elsewhere(facts, &enis);
    for (eni, link) in linked(&enis).filter(|(eni, _)| eni.managed()) {
        link::settings(facts, eni, link, &enis, &present, &mut desired);
        let routed = eni.routed() && (!eni.primary || others);
        for stack in eni.usable() {
            let source = source(facts, eni, link, stack, &present, &desired);
            table::shared(eni, link, stack, &enis, source, &mut desired);
            // Without an address of the primary ENI there is nothing to route for.
            if !routed || (eni.primary && (never || source.is_none())) {
                continue;
            }
            table(facts, eni, link, stack, &enis, source, &mut desired);
            let sources = sources(eni, stack, &claims);
            rules(facts, eni, link, stack, &sources, &mut desired);
            desired.sources.entry(eni.mac).or_default().extend(sources);
        }
        if routed {
            link::group(eni, link, &mut desired);
            table::notices(facts, eni, link, &mut desired);
        } else {
            link::ungroup(eni, link, &mut desired);
        }
    }
    rule::notices(facts, &mut desired);
    clear::tables(facts, &enis, &mut desired);
    (desired, enis)
}

pub(crate) fn linked<'e, 'a>(enis: &'e [Eni<'a>]) -> impl Iterator<Item = (&'e Eni<'a>, &'a Link)> {
    enis.iter().filter_map(|eni| eni.link.map(|link| (eni, link)))
}

/// Which addresses are on which link, looked up many times.
#[derive(Default)]
pub(crate) struct Present {
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

    pub(crate) fn has(&self, link: LinkIndex, address: IpAddr) -> bool {
        self.by_link.get(&link).is_some_and(|there| there.contains(&address))
    }

    /// The addresses on a link, whoever made them.
    pub(crate) fn on(&self, link: LinkIndex) -> impl Iterator<Item = IpAddr> {
        self.by_link.get(&link).into_iter().flatten().copied()
    }

    fn own(&self, link: LinkIndex) -> Vec<Address> {
        self.own.get(&link).cloned().unwrap_or_default()
    }

    /// The own secondary addresses on a link, and those that metadata grants.
    fn secondaries(&self, eni: &Eni<'_>, link: LinkIndex) -> BTreeSet<IpAddr> {
        let own = self.own.get(&link).into_iter().flatten().map(|address| address.address);
        let primary = eni.primary_address();
        own.chain(eni.addresses()).filter(|address| Some(*address) != primary).collect()
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
    for (stack, address) in
        eni.usable().flat_map(|stack| stack.addresses.iter().map(move |address| (stack, *address)))
    {
        let first = primary == Some(address);
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
        let subnet = stack.subnet_of(address).filter(|_| first);
        let address = Address {
            link: link.index,
            address,
            prefix_length: subnet.map_or(stack.family.host_length(), |net| net.prefix_len()),
            prefix_route: false,
            preferred: preferred(facts, eni, link, address),
        };
        desired.addresses.push((eni.mac, address));
    }
}

/// Whether sockets without an address of their own may take this one: of IPv6 only the first one of
/// the primary ENI, where there is no other, so that what they had before stays.
fn preferred(facts: &Facts<'_>, eni: &Eni<'_>, link: &Link, address: IpAddr) -> bool {
    let [_, v6] = &eni.stacks;
    let other = |seen: &SeenAddress| {
        seen.address.link == link.index
            && matches!(seen.address.address, IpAddr::V6(v6) if !v6.is_unicast_link_local())
            && facts.observed.owner(seen) != Owner::Ours
    };
    address.is_ipv4()
        || (eni.primary
            && v6.addresses.first() == Some(&address)
            && !facts.observed.snapshot.addresses.iter().any(other))
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
    let lacking = proof::lacking(facts, eni, &present.own(link.index));
    let waiting = eni.prefixes().filter(|prefix| !prefix::shown(eni, prefix)).count();
    if waiting > 0 {
        *desired.unproven.entry(eni.mac).or_default() += waiting;
    }
    let secondaries = present.secondaries(eni, link.index);
    for (address, leaving) in proof::leaving(facts, memory, eni, enis, &lacking, &secondaries) {
        if leaving.proven {
            desired.removals.insert(address);
        } else {
            *desired.unproven.entry(eni.mac).or_default() += 1;
        }
        desired.states.insert((eni.mac, address.address), AddressState::Leaving(leaving));
    }
}

/// The preferred source of what leaves by an ENI: an address that its link has or will have.
fn source(
    facts: &Facts<'_>,
    eni: &Eni<'_>,
    link: &Link,
    stack: &Stack,
    present: &Present,
    desired: &Desired,
) -> Option<IpAddr> {
    let there = |address: &IpAddr| present.has(link.index, *address);
    // One that its table is for, and that is still there.
    let mut own = facts.observed.own_routes().filter(|own| {
        eni.table == Some(own.table) && Family::of(own.destination.addr()) == stack.family
    });
    let kept = own.find_map(|own| own.source.filter(there));
    let comes = |address: &IpAddr| {
        let mut wishes = desired.addresses.iter().map(|(_, wish)| (wish.link, wish.address));
        there(address) || wishes.any(|wish| wish == (link.index, *address))
    };
    match stack.family {
        // That says more than a list without it.
        Family::V4 => eni.primary_address().filter(comes).or(kept.filter(|_| eni.primary)),
        // Their order means nothing: what is in use stays.
        Family::V6 => {
            let granted = kept.filter(|kept| stack.addresses.contains(kept));
            let stays = |kept: &IpAddr| {
                desired.removals.iter().all(|gone| gone.link != link.index || gone.address != *kept)
            };
            // Whatever a list lacks now: what has not been proven gone may be shown again.
            granted
                .or_else(|| stack.addresses.iter().copied().find(comes))
                .or_else(|| kept.filter(stays))
        }
    }
}

/// The table of an own rule, unless it is main.
pub(crate) fn looked_up(rule: &Rule) -> Option<TableId> {
    match rule.action {
        RuleAction::Lookup(TableId::MAIN) | RuleAction::Other(_) => None,
        RuleAction::Lookup(table) => Some(table),
    }
}
