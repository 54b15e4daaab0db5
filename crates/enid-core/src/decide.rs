//! One decision: from facts to a plan, a report, and what to remember.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::desired::{Desired, build, looked_up};
use crate::diff::Diff;
use crate::eni::{Eni, Facts};
use crate::guard::{self, Refused};
use crate::ledger::Ledger;
use crate::link;
use crate::memory::Memory;
use crate::object::{LinkIndex, Mac, Object, Setting};
use crate::observed::{Owner, SeenAddress};
use crate::plan::{Plan, Planned, Step};
use crate::proof;
use crate::report::{
    AddressReport, AddressState, EniReport, EniState, Hold, Notice, Origin, PrefixReport, Report,
    Role, Verdict, Waiting,
};
use crate::rest;
use crate::time::Instant;

/// What to do, and what to say.
#[derive(Debug, Clone)]
pub struct Decision {
    /// The steps; empty when the guard refused them.
    pub plan: Plan,
    /// Why the guard refused the plan, if it did.
    pub refused: Option<Refused>,
    /// How it stands.
    pub report: Report,
    /// The ledger to write before the plan is carried out.
    pub ledger: Ledger,
    /// ENIs whose removals wait for proof, and those that have to confirm it: read them in full, and
    /// `macs/`, at every poll.
    pub unproven: BTreeSet<Mac>,
    /// ENIs whose link is gone since the last pass: forget what metadata said of them.
    pub gone: BTreeSet<Mac>,
    /// When to decide again even if nothing happens.
    pub wake: Option<Instant>,
}

/// Decides.
pub fn decide(facts: &Facts<'_>, memory: &mut Memory) -> Decision {
    remember_links(facts, memory);
    let (desired, enis) = build(facts, memory);
    let attached: BTreeSet<Mac> =
        enis.iter().filter(|eni| eni.link.is_some()).map(|eni| eni.mac).collect();
    let mut gone: BTreeSet<Mac> = memory.attached.difference(&attached).copied().collect();
    let went = !gone.is_empty();
    // A poll that was under way may have brought it back.
    let known = facts.metadata.enis.keys().filter(|mac| !attached.contains(mac));
    gone.extend(known.filter(|mac| !facts.metadata.listed.contains(mac)));
    memory.quiet.retain(|mac, _| attached.contains(mac));
    memory.mass.retain(|mac, _| attached.contains(mac));
    if went {
        forget_fights(facts, memory, &gone);
    }
    memory.attached = attached;

    let diff = Diff::between(&desired, &facts.observed);
    let mut plan = Plan::order(&diff);
    if went {
        forget_undone(memory, &plan);
    }
    let fights = truces(facts, memory, &mut plan);
    let refused = guard::check(&plan, facts).err();
    if refused.is_some() {
        plan = Plan::default();
    }
    let ledger = ledger(facts, &enis, &desired, &plan);
    let remain = !plan.is_empty() || refused.is_some();
    let decided = Decided {
        facts,
        memory,
        desired: &desired,
        diff: &diff,
        fights: &fights,
        seen: seen(facts),
    };
    let report = report(&decided, &enis, remain);
    let pauses = ledger.holds.values().filter_map(|pause| pause.until);
    let wake = report.waiting().filter_map(|(_, waiting)| waiting.until()).chain(pauses).min();
    let unproven = desired.unproven.keys().chain(&desired.witnesses).copied().collect();
    Decision { plan, refused, report, ledger, unproven, gone, wake }
}

fn remember_links(facts: &Facts<'_>, memory: &mut Memory) {
    let links = &facts.observed.snapshot.links;
    memory.links.retain(|index, _| links.iter().any(|link| link.index == *index));
    for link in links {
        memory.links.entry(link.index).or_insert(facts.now);
    }
}

/// What went with a link nobody fought over.
fn forget_fights(facts: &Facts<'_>, memory: &mut Memory, gone: &BTreeSet<Mac>) {
    let tables = &facts.observed.ledger.tables;
    let tables: BTreeSet<_> = gone.iter().filter_map(|mac| tables.get(mac)).collect();
    let here = |link: LinkIndex| facts.observed.link(link).is_some();
    memory.fights.retain(|step| match step {
        Step::Set { link, .. } => here(*link),
        Step::Create(object) | Step::Replace { new: object, .. } | Step::Delete(object) => {
            match object {
                Object::Address(address) => here(address.link),
                Object::Route(route) => {
                    !tables.contains(&route.table) && route.link.is_none_or(here)
                }
                // Whose a rule is that looks into main cannot be told; that costs a few more tries.
                Object::Rule(rule) => looked_up(rule).is_some_and(|table| !tables.contains(&table)),
                Object::Marking(marking) => !tables.contains(&marking.table),
            }
        }
    });
}

/// What enid takes away itself because an ENI went, as the rules of a primary ENI that is alone again,
/// was not undone by somebody else.
fn forget_undone(memory: &mut Memory, plan: &Plan) {
    let undone: BTreeSet<Step> =
        plan.steps().iter().flat_map(|planned| planned.step.undoes()).collect();
    memory.fights.retain(|step| !undone.contains(step));
}

/// Takes out what is fought over, and says so.
fn truces(facts: &Facts<'_>, memory: &Memory, plan: &mut Plan) -> Vec<(Mac, Waiting)> {
    let until = |planned: &Planned| {
        // A plan that lacks the primary ENI's way out would be refused whole.
        let primary = planned.mac == facts.metadata.primary
            && matches!(planned.step.makes(), Some(Object::Route(_)));
        memory.fights.truce(facts.now, &planned.step).filter(|_| !primary)
    };
    let fought = plan.steps().iter().filter_map(|planned| {
        let until = until(planned)?;
        let contender = memory.fights.contender(&planned.step).cloned();
        let step = Box::new(planned.step.clone());
        Some((planned.mac?, Waiting::Fight { step, until, contender }))
    });
    let fights: Vec<(Mac, Waiting)> = fought.collect();
    if !fights.is_empty() {
        withhold(plan, |planned| until(planned).is_some());
    }
    fights
}

/// Takes steps out of a plan, and those that rest on them.
fn withhold(plan: &mut Plan, fought: impl Fn(&Planned) -> bool) {
    let steps: Vec<Step> = plan.steps().iter().map(|planned| planned.step.clone()).collect();
    let mut withheld: Vec<&Step> = Vec::new();
    for (planned, step) in plan.steps().iter().zip(&steps) {
        if fought(planned) || rest::on_failure(step, &steps, &withheld) {
            withheld.push(step);
        }
    }
    plan.retain(|planned| !withheld.contains(&&planned.step));
}

/// What must be on disk before the plan is carried out.
fn ledger(facts: &Facts<'_>, enis: &[Eni<'_>], desired: &Desired, plan: &Plan) -> Ledger {
    let observed = &facts.observed;
    let mut ledger = observed.ledger.clone();
    let has_link = |mac: &Mac| observed.links_of(*mac).next().is_some();
    let links = observed.snapshot.links.iter().filter(|link| link.may_be_eni());
    let macs: BTreeMap<LinkIndex, Mac> =
        links.filter_map(|link| Some((link.index, link.mac?))).collect();
    let there: BTreeSet<(Mac, IpAddr)> = observed
        .snapshot
        .addresses
        .iter()
        .filter_map(|seen| Some((*macs.get(&seen.address.link)?, seen.address.address)))
        .collect();
    ledger.addresses.retain(|entry| there.contains(entry));
    ledger.originals.retain(|mac, _| has_link(mac));
    ledger.holds.retain(|_, pause| pause.in_force(facts.now));
    ledger.tables.retain(|mac, table| {
        has_link(mac)
            || observed.own_routes().any(|own| own.table == *table)
            || observed.own_rules().any(|own| looked_up(own) == Some(*table))
    });
    for eni in enis.iter().filter(|eni| desired.sources.contains_key(&eni.mac)) {
        if let Some(table) = eni.table {
            ledger.tables.insert(eni.mac, table);
        }
    }
    for planned in plan.steps() {
        let Some(mac) = planned.mac else { continue };
        match &planned.step {
            Step::Create(Object::Address(address)) => {
                ledger.addresses.insert((mac, address.address));
            }
            Step::Set { from, to, .. } => remember(&mut ledger, mac, from.as_ref(), to.as_ref()),
            Step::Create(_) | Step::Replace { .. } | Step::Delete(_) => {}
        }
    }
    for eni in enis.iter().filter(|eni| eni.managed()) {
        forget_restored(&mut ledger, eni);
    }
    for eni in enis.iter().filter(|eni| eni.released()) {
        let done = !desired.changes.iter().any(|change| change.mac == eni.mac);
        if done {
            ledger.originals.remove(&eni.mac);
        }
    }
    ledger
}

/// Forgets kernel settings that are as they were and that the ENI no longer needs otherwise.
fn forget_restored(ledger: &mut Ledger, eni: &Eni<'_>) {
    let Some((originals, link)) = ledger.originals.get_mut(&eni.mac).zip(eni.link) else { return };
    let needed = link::needed(eni);
    originals.retain(|original| match original {
        Setting::Sysctl(key, value) => {
            needed.contains_key(key) || link.sysctls.get(key) != Some(value)
        }
        Setting::Up | Setting::Mtu(_) | Setting::Group(_) | Setting::AlternativeName(_) => true,
    });
}

/// Notes a setting's first value, to put it back on release.
fn remember(ledger: &mut Ledger, mac: Mac, from: Option<&Setting>, to: Option<&Setting>) {
    let known = |wanted: &Setting| {
        let originals = ledger.originals.get(&mac);
        originals.into_iter().flatten().any(|original| match (original, wanted) {
            (Setting::Mtu(_), Setting::Mtu(_)) => true,
            (Setting::Sysctl(a, _), Setting::Sysctl(b, _)) => a == b,
            (Setting::AlternativeName(a), Setting::AlternativeName(b)) => a == b,
            _ => false,
        })
    };
    let original = match (from, to) {
        (Some(from @ (Setting::Mtu(_) | Setting::Sysctl(..))), Some(_)) => Some(from),
        (None, Some(added @ Setting::AlternativeName(_))) => Some(added),
        _ => None,
    };
    if let Some(original) = original.filter(|original| !known(original)) {
        ledger.originals.entry(mac).or_default().insert(original.clone());
    }
}

/// The first address of the snapshot with each link and address, looked up many times.
type Seen<'a> = BTreeMap<(LinkIndex, IpAddr), &'a SeenAddress>;

/// What was decided, to be told.
struct Decided<'a> {
    facts: &'a Facts<'a>,
    memory: &'a Memory,
    desired: &'a Desired,
    diff: &'a Diff,
    fights: &'a [(Mac, Waiting)],
    seen: Seen<'a>,
}

fn report(decided: &Decided<'_>, enis: &[Eni<'_>], steps_remain: bool) -> Report {
    let facts = decided.facts;
    let enis: Vec<EniReport> = enis.iter().map(|eni| eni_report(decided, eni)).collect();
    let waits = |eni: &EniReport| {
        let unsettled = match &eni.state {
            EniState::Pending => true,
            EniState::Held(hold) => match hold {
                Hold::Released | Hold::Operator(_) | Hold::Neighbour(_) | Hold::Configuration => {
                    false
                }
                Hold::TableTaken { .. }
                | Hold::SeveralLinks
                | Hold::NotListed
                | Hold::Contradiction(_) => true,
            },
            EniState::Managed | EniState::NoLink => false,
        };
        unsettled || !eni.waiting.is_empty()
    };
    let verdict = if steps_remain {
        Verdict::NotYet
    } else if facts.metadata.primary.is_none() || enis.iter().any(waits) {
        Verdict::Waiting
    } else {
        Verdict::Converged
    };
    Report { verdict, enis }
}

fn seen<'a>(facts: &Facts<'a>) -> Seen<'a> {
    let mut seen = Seen::new();
    for address in &facts.observed.snapshot.addresses {
        seen.entry((address.address.link, address.address.address)).or_insert(address);
    }
    seen
}

fn eni_report(decided: &Decided<'_>, eni: &Eni<'_>) -> EniReport {
    let Decided { facts, memory, desired, diff, fights, seen } = decided;
    let mut waiting = eni.waiting.clone();
    if let Some(count) = desired.unproven.get(&eni.mac) {
        waiting.push(Waiting::Removals(*count));
    }
    let mine = |mac: &Mac| *mac == eni.mac;
    waiting.extend(fights.iter().filter(|(mac, _)| mine(mac)).map(|(_, fight)| fight.clone()));
    let mut notices = eni.notices.clone();
    notices.extend(desired.notices.iter().filter(|(mac, _)| mine(mac)).map(|(_, n)| n.clone()));
    notices.extend(
        diff.conflicts
            .iter()
            .filter(|(mac, _)| mine(mac))
            .map(|(_, wanted)| Notice::Conflict { wanted: wanted.clone() }),
    );
    EniReport {
        mac: eni.mac,
        id: eni.facts.and_then(|known| known.keys.id.clone()),
        link: eni.link.map(|link| (link.index, link.name.clone())),
        place: eni.place,
        table: eni.table.filter(|_| desired.sources.contains_key(&eni.mac)),
        subnets: eni.subnets().collect(),
        primary: eni.primary,
        state: eni.state.clone(),
        addresses: address_reports(facts, eni, desired, seen),
        kept: proof::kept(facts, eni),
        prefixes: eni
            .prefixes()
            .map(|prefix| PrefixReport {
                prefix,
                mode: eni.choice.prefixes,
                leaving: proof::prefix_leaving(facts, memory, eni, &prefix),
            })
            .collect(),
        cidrs: desired
            .cidrs
            .iter()
            .filter(|(mac, _)| mine(mac))
            .map(|(_, cidr)| cidr.clone())
            .collect(),
        sources: desired.sources.get(&eni.mac).cloned().unwrap_or_default(),
        gateways: gateways(facts, eni),
        read: eni.facts.and_then(|known| known.completed),
        waiting,
        notices: Notice::few(notices),
    }
}

/// Where the default routes of its table lead that the kernel has.
fn gateways(facts: &Facts<'_>, eni: &Eni<'_>) -> Vec<IpAddr> {
    let routes = facts.observed.snapshot.routes.iter().map(|seen| &seen.route);
    let mine = routes.filter(|route| Some(route.table) == eni.table);
    let defaults = mine.filter(|route| route.is_default());
    let mut gateways: Vec<IpAddr> = defaults.filter_map(|route| route.gateway).collect();
    gateways.sort_unstable();
    gateways.dedup();
    gateways
}

/// Whose an address is, if it is there.
fn origin(facts: &Facts<'_>, seen: Option<&SeenAddress>) -> Option<Origin> {
    let seen = seen?;
    Some(match facts.observed.owner(seen) {
        Owner::Ours => Origin::Enid,
        Owner::Foreign | Owner::TakenOver if seen.permanent => Origin::Foreign,
        Owner::Foreign | Owner::TakenOver => Origin::Dynamic,
    })
}

fn address_reports(
    facts: &Facts<'_>,
    eni: &Eni<'_>,
    desired: &Desired,
    seen: &Seen<'_>,
) -> Vec<AddressReport> {
    let primary = eni.primary_address();
    let granted: Vec<IpAddr> = eni.addresses().collect();
    let leaving = desired
        .states
        .iter()
        .filter(|((mac, ip), _)| *mac == eni.mac && !granted.contains(ip))
        .map(|((_, ip), _)| *ip);
    granted
        .iter()
        .copied()
        .chain(leaving)
        .map(|address| {
            let role = if primary == Some(address) { Role::Primary } else { Role::Secondary };
            let state = desired
                .states
                .get(&(eni.mac, address))
                .cloned()
                .unwrap_or_else(|| presence(facts, eni, address, role, seen));
            let here = eni.link.and_then(|link| seen.get(&(link.index, address)).copied());
            let public = match address {
                IpAddr::V4(v4) => eni.facts.and_then(|known| known.public.get(&v4).copied()),
                IpAddr::V6(_) => None,
            };
            AddressReport { address, role, state, origin: origin(facts, here), public }
        })
        .collect()
}

fn presence(
    facts: &Facts<'_>,
    eni: &Eni<'_>,
    address: IpAddr,
    role: Role,
    seen: &Seen<'_>,
) -> AddressState {
    let seen = eni.link.and_then(|link| seen.get(&(link.index, address)));
    match seen.map(|seen| facts.observed.owner(seen)) {
        Some(Owner::Ours) => AddressState::Ours,
        Some(Owner::TakenOver) => AddressState::TakenOver,
        Some(Owner::Foreign) => AddressState::Theirs,
        None if eni.primary && role == Role::Primary => AddressState::Missing,
        None if address.is_ipv6() && eni.link.is_some_and(|link| !link.ipv6) => {
            AddressState::Missing
        }
        None => match eni.state {
            EniState::Managed | EniState::Pending => AddressState::Adding,
            EniState::Held(_) | EniState::NoLink => AddressState::Missing,
        },
    }
}
