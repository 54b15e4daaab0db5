//! Which delegated prefixes each ENI has: those that metadata shows it, and those whose removal is not
//! proven, be it that only the kernel remembers them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::choice::Prefixes;
use crate::config::PrimaryRules;
use crate::desired::looked_up;
use crate::eni::{Eni, Facts};
use crate::memory::Memory;
use crate::metadata::EniKey;
use crate::metadata::facts::EniFacts;
use crate::object::{Family, Mac, Route, Rule, TableId};
use crate::proof;
use crate::report::RefusalReason;
use crate::source::compact;
use crate::stack::refused;

/// Takes from each ENI what another one has, and what is proven to be gone.
pub(crate) fn settle(facts: &Facts<'_>, memory: &Memory, enis: &mut [Eni<'_>]) {
    refuse_duplicates(facts, enis);
    remember(facts, enis);
    let kept: Vec<Vec<IpNet>> = enis
        .iter()
        .map(|eni| {
            // Of what is no longer shown, only what was made and is wanted must be proven to be gone.
            let stays = |prefix: &IpNet| {
                shown(eni, prefix)
                    || (wanted(facts, eni)
                        && left(facts, eni, enis, prefix)
                        && !goes(facts, memory, eni, enis, prefix))
            };
            eni.prefixes().filter(stays).collect()
        })
        .collect();
    for (eni, kept) in enis.iter_mut().zip(kept) {
        for stack in &mut eni.stacks {
            stack.prefixes.retain(|prefix| kept.contains(prefix));
        }
    }
}

/// Adds the prefixes that enid made something for before a restart and that no reading since has shown.
fn remember(facts: &Facts<'_>, enis: &mut [Eni<'_>]) {
    let known: Vec<IpNet> = enis.iter().flat_map(Eni::prefixes).collect();
    for eni in enis.iter_mut().filter(|eni| eni.facts.is_some()) {
        let made = made(facts, eni);
        for stack in &mut eni.stacks {
            // One rule may be for several prefixes.
            let here = made.iter().filter(|net| stack.holds(**net));
            let unknown: Vec<_> = here.flat_map(|net| compact(*net, &[*net], &known)).collect();
            stack.prefixes.extend(unknown);
        }
    }
}

/// What the kernel has of ours for delegated prefixes of an ENI, as they are meant now.
fn made(facts: &Facts<'_>, eni: &Eni<'_>) -> BTreeSet<IpNet> {
    if !wanted(facts, eni) {
        return BTreeSet::new();
    }
    let link = eni.link.map(|link| link.index);
    match eni.choice.prefixes {
        Prefixes::Rules => {
            let rules = facts.observed.own_rules().filter(|rule| {
                rule.iif.is_none() && eni.table.is_some() && looked_up(rule) == eni.table
            });
            rules.filter_map(|rule| rule.source).collect()
        }
        Prefixes::Local => {
            let routes = facts.observed.own_routes();
            let local = |route: &&Route| route.table == TableId::LOCAL && route.link == link;
            routes.filter(local).map(|route| route.destination).collect()
        }
        Prefixes::Ignore => BTreeSet::new(),
    }
}

/// Whether anything at all is to be made for the delegated prefixes of an ENI.
fn wanted(facts: &Facts<'_>, eni: &Eni<'_>) -> bool {
    let without = eni.primary && facts.config.primary_rules == PrimaryRules::Never;
    !facts.observed.ledger.is_released(eni.mac)
        && match eni.choice.prefixes {
            Prefixes::Rules => eni.routed() && !without,
            Prefixes::Local => true,
            Prefixes::Ignore => false,
        }
}

/// Whether the kernel still has anything of ours for a delegated prefix of an ENI, however it was
/// meant, and in whichever table that no other ENI has.
fn left(facts: &Facts<'_>, eni: &Eni<'_>, enis: &[Eni<'_>], prefix: &IpNet) -> bool {
    // Rules that look into main are the same for all ENIs.
    let others = |table: TableId| {
        let mut others = enis.iter().filter(|other| other.mac != eni.mac);
        table == TableId::MAIN || others.any(|other| other.table == Some(table))
    };
    let theirs = |rule: &&Rule| looked_up(rule).is_none_or(others);
    let mut rules = facts.observed.own_rules().filter(|rule| rule.iif.is_none() && !theirs(rule));
    let link = eni.link.map(|link| link.index);
    let mut routes = facts
        .observed
        .own_routes()
        .filter(|route| route.table == TableId::LOCAL && route.link == link);
    rules.any(|rule| rule.source.is_some_and(|source| source.contains(prefix)))
        || routes.any(|route| route.destination.contains(prefix))
}

/// Whether the last reading that could tell shows it.
pub(crate) fn shown(eni: &Eni<'_>, prefix: &IpNet) -> bool {
    eni.facts.is_some_and(|known| known.prefixes.absence(prefix).span.is_none())
}

/// Whether it moved to another ENI, or is proven to be gone.
fn goes(
    facts: &Facts<'_>,
    memory: &Memory,
    eni: &Eni<'_>,
    enis: &[Eni<'_>],
    prefix: &IpNet,
) -> bool {
    let complete = |eni: &Eni<'_>| eni.facts.is_some_and(EniFacts::complete);
    let has = |other: &Eni<'_>| {
        other.mac != eni.mac
            && other.link.is_some()
            && complete(other)
            && other.prefixes().any(|theirs| theirs == *prefix)
            && shown(other, prefix)
    };
    (complete(eni) && enis.iter().any(has)) || proof::prefix_is_gone(facts, memory, eni, prefix)
}

/// A prefix that metadata shows on two ENIs, be it as a part of a wider one, stays with the one for
/// which the kernel has it, else with the first one that has a link. One that is new and holds an
/// address of another ENI would take what that one sends.
fn refuse_duplicates(facts: &Facts<'_>, enis: &mut [Eni<'_>]) {
    let all = enis.iter().enumerate();
    let claim = |(n, eni): (usize, &Eni<'_>)| {
        let shown = eni.prefixes().filter(|prefix| shown(eni, prefix));
        shown.map(|prefix| (prefix, n)).collect::<Vec<_>>()
    };
    let mut claims: Vec<(IpNet, usize)> = all.clone().flat_map(claim).collect();
    claims.sort_unstable();
    let addresses = all.flat_map(|(n, eni)| eni.addresses().map(move |address| (address, n)));
    let mut addresses: Vec<(IpAddr, usize)> = addresses.collect();
    addresses.sort_unstable();
    let mut refusals: Vec<(usize, IpNet, usize)> = Vec::new();
    // Wider ones come first, so that what a prefix lies in is among those that are still open.
    let mut open: Vec<(IpNet, usize)> = Vec::new();
    for (prefix, n) in claims {
        open.retain(|(wider, _)| wider.contains(&prefix));
        let rank = |prefix: &IpNet, n: usize| {
            let eni = &enis[n];
            let released = facts.observed.ledger.is_released(eni.mac);
            (released, !configured(facts, eni, prefix), eni.link.is_none(), n)
        };
        let other = open.iter().find(|(_, other)| *other != n).copied();
        match other {
            Some((wider, other)) if rank(&prefix, n) < rank(&wider, other) => {
                refusals.push((other, wider, n));
                open.retain(|claim| *claim != (wider, other));
                open.push((prefix, n));
            }
            Some((_, other)) => refusals.push((n, prefix, other)),
            None => {
                let other = held(&addresses, prefix).find(|other| *other != n);
                match other.filter(|_| !configured(facts, &enis[n], &prefix)) {
                    Some(other) => refusals.push((n, prefix, other)),
                    None => open.push((prefix, n)),
                }
            }
        }
    }
    for (n, prefix, by) in refusals {
        let by = enis[by].mac;
        refuse(&mut enis[n], prefix, by);
    }
}

/// Whose addresses a prefix holds.
fn held(addresses: &[(IpAddr, usize)], prefix: IpNet) -> impl Iterator<Item = usize> {
    let from = addresses.partition_point(|(address, _)| *address < prefix.network());
    let inside = addresses.get(from..).unwrap_or_default().iter();
    inside.take_while(move |(address, _)| prefix.contains(address)).map(|(_, n)| *n)
}

fn refuse(eni: &mut Eni<'_>, prefix: IpNet, by: Mac) {
    for stack in &mut eni.stacks {
        stack.prefixes.retain(|other| *other != prefix);
    }
    let key = match Family::of(prefix.addr()) {
        Family::V4 => EniKey::Ipv4Prefixes,
        Family::V6 => EniKey::Ipv6Prefixes,
    };
    eni.notices.push(refused(key, prefix, RefusalReason::Duplicate(by)));
}

/// Whether the kernel already sends what comes from the prefix, or to it, by this ENI, and is to do so.
fn configured(facts: &Facts<'_>, eni: &Eni<'_>, prefix: &IpNet) -> bool {
    if !wanted(facts, eni) {
        return false;
    }
    let by_rule = facts.observed.own_rules().any(|rule| {
        let exact = rule.iif.is_none() && rule.source.is_some_and(|source| source.contains(prefix));
        exact && eni.table.is_some() && looked_up(rule) == eni.table
    });
    let by_route = facts
        .observed
        .own_routes()
        .any(|route| route.destination == *prefix && eni.link.map(|link| link.index) == route.link);
    by_rule || by_route
}
