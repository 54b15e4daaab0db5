//! The policy rules of an ENI: which packets are its own, by as few rules as can be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::choice::Prefixes;
use crate::config::Config;
use crate::desired::{Desired, Present, looked_up};
use crate::eni::{Eni, Facts};
use crate::object::{Address, Family, LinkIndex, Mac, Marking, Protocol, Rule, TableId};
use crate::observed::Link;
use crate::report::Notice;
use crate::source::compact;
use crate::stack::Stack;

/// Above the base: packets of connections to published ports, of which a container may have an
/// address of another ENI's delegated prefix; a link in main that is no ENI's, then the ENI's table.
const MARKED_MAIN: u32 = 2;
const MARKED_OWN: u32 = 4;
/// What containers with an address of a delegated prefix send …
const PREFIX_MAIN: u32 = 5;
/// … and what sockets send finds a link in main that is no ENI's.
const MAIN: u32 = 10;
/// The same packets in the ENI's table, if main had no such link.
const PREFIX_OWN: u32 = 15;
const OWN: u32 = 20;

/// Prefixes up to this length in main count as default routes: VPNs use two halves, and `2000::/3`.
const fn half_default(family: Family) -> u32 {
    match family {
        Family::V4 => 1,
        Family::V6 => 3,
    }
}

/// Addresses and delegated prefixes of each ENI: those that metadata grants or last granted, be it that
/// they cannot be used while their subnet is not known, and those that its link has and keeps although
/// metadata grants them to nobody; by network address, so that those of one subnet stand together.
pub(crate) fn claims(
    enis: &[Eni<'_>],
    present: &Present,
    removals: &BTreeSet<Address>,
) -> Vec<(IpNet, Mac)> {
    let granted: BTreeSet<IpAddr> = enis.iter().flat_map(Eni::addresses).collect();
    let goes: BTreeSet<(LinkIndex, IpAddr)> =
        removals.iter().map(|address| (address.link, address.address)).collect();
    let mut claims = Vec::new();
    for eni in enis {
        let stray = eni.link.into_iter().flat_map(|link| {
            let there = present.on(link.index);
            there.filter(|ip| !granted.contains(ip) && !goes.contains(&(link.index, *ip)))
        });
        let unread = eni.unread().filter(|ip| !granted.contains(ip));
        let nets = eni.addresses().chain(stray).chain(unread).map(IpNet::from);
        let nets = nets.chain(eni.prefixes());
        claims.extend(nets.map(|net| (net, eni.mac)));
    }
    claims.sort_unstable_by_key(|(net, _)| net.network());
    claims
}

/// The prefixes that an ENI's rules of one family match.
pub(crate) fn sources(eni: &Eni<'_>, stack: &Stack, claims: &[(IpNet, Mac)]) -> Vec<IpNet> {
    let within = |subnet: &IpNet| {
        let from = claims.partition_point(|(net, _)| net.network() < subnet.network());
        let until = claims.partition_point(|(net, _)| net.network() <= subnet.broadcast());
        let inside = claims.get(from..until).unwrap_or_default().iter();
        let inside = inside.filter(|(net, _)| subnet.contains(net));
        let (mine, others): (Vec<_>, Vec<_>) = inside.partition(|(_, mac)| *mac == eni.mac);
        let nets =
            |claims: Vec<&(IpNet, Mac)>| claims.iter().map(|(net, _)| *net).collect::<Vec<_>>();
        compact(*subnet, &nets(mine), &nets(others))
    };
    stack.subnets.iter().flat_map(within).collect()
}

/// Wishes for the rules of one family of an ENI.
pub(crate) fn rules(
    facts: &Facts<'_>,
    eni: &Eni<'_>,
    link: &Link,
    stack: &Stack,
    sources: &[IpNet],
    desired: &mut Desired,
) {
    let Some(table) = eni.table else { return };
    let blank = Blank { base: facts.config.priority_base, family: stack.family };
    let mut rules = vec![Rule { oif: Some(link.name.clone()), ..blank.rule(0, table) }];
    for source in sources {
        let here = |rule: Rule| Rule { source: Some(*source), iif: Some("lo".to_owned()), ..rule };
        rules.extend([here(blank.main_first(MAIN)), here(blank.rule(OWN, table))]);
    }
    if eni.choice.prefixes == Prefixes::Rules {
        for prefix in IpNet::aggregate(&stack.prefixes) {
            let from = |rule: Rule| Rule { source: Some(prefix), ..rule };
            rules
                .extend([from(blank.main_first(PREFIX_MAIN)), from(blank.rule(PREFIX_OWN, table))]);
        }
    }
    if eni.choice.published_ports {
        rules.extend(marked(facts, eni, link, &blank, table, desired));
    }
    desired.rules.extend(rules.into_iter().map(|rule| (rule, eni.mac)));
}

/// Says where somebody else's rules are among an ENI's own: one of enid's that was made anew by
/// somebody, say.
pub(crate) fn notices(facts: &Facts<'_>, desired: &mut Desired) {
    let own = desired.rules.iter();
    let tables: BTreeMap<TableId, Mac> =
        own.filter_map(|(rule, mac)| Some((looked_up(rule)?, *mac))).collect();
    let mut found: BTreeMap<Mac, usize> = BTreeMap::new();
    let rules = facts.observed.snapshot.rules.iter();
    for seen in rules.filter(|seen| seen.protocol != Protocol::ENID) {
        let among = looked_up(&seen.rule).and_then(|table| tables.get(&table));
        let equal = || desired.rules.get(&seen.rule).filter(|_| seen.complete);
        if let Some(mac) = among.or_else(equal) {
            *found.entry(*mac).or_default() += 1;
        }
    }
    desired.notices.extend(found.into_iter().map(|(mac, n)| (mac, Notice::ForeignRules(n))));
}

/// Marks connections that come in by an ENI with published container ports, and routes them by it.
fn marked(
    facts: &Facts<'_>,
    eni: &Eni<'_>,
    link: &Link,
    blank: &Blank,
    table: TableId,
    desired: &mut Desired,
) -> Vec<Rule> {
    let number = table.0 - facts.config.table_base + 1;
    let Some(mark) = number.checked_mul(1 << Marking::MASK.trailing_zeros()) else {
        desired.notices.push((eni.mac, Notice::NoMark));
        return Vec::new();
    };
    let marking = Marking { table, link: link.name.clone(), mark };
    desired.markings.insert(marking, eni.mac);
    let marked = |rule: Rule| Rule { mark: Some((mark, Marking::MASK)), ..rule };
    let rules = [blank.main_first(MARKED_MAIN), blank.rule(MARKED_OWN, table)];
    rules.map(marked).into()
}

/// What all rules of one family share.
struct Blank {
    base: u32,
    family: Family,
}

impl Blank {
    fn rule(&self, above: u32, table: TableId) -> Rule {
        Rule::lookup(self.family, self.base + above, table)
    }

    /// What main sends to a link that is no ENI's.
    fn main_first(&self, above: u32) -> Rule {
        Rule {
            suppress_prefix_length: Some(half_default(self.family)),
            suppress_group: Some(Config::LINK_GROUP),
            ..self.rule(above, TableId::MAIN)
        }
    }
}
