//! A second, independent look at a plan: it trusts neither the desired state nor the diff.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::eni::Facts;
use crate::object::{
    Address, Mac, Object, Protocol, Route, RouteKind, Rule, RuleAction, Setting, TableId,
};
use crate::plan::{Plan, Step};

/// Where the metadata service answers.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Priorities above the base that are enid's.
const PRIORITIES: u32 = 100;

/// A plan that must not be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Refused {
    /// The step that must not be taken; none where it is the plan as a whole.
    pub step: Option<Box<Step>>,
    /// Why.
    pub why: &'static str,
}

/// Looks at every step, and at the state that all of them lead to.
///
/// # Errors
/// The first reason not to carry the plan out.
pub(crate) fn check(plan: &Plan, facts: &Facts<'_>) -> Result<(), Refused> {
    let guard = Guard::new(facts);
    for planned in plan.steps() {
        guard
            .step(&planned.step)
            .map_err(|why| Refused { step: Some(Box::new(planned.step.clone())), why })?;
    }
    guard.outcome(plan).map_err(|why| Refused { step: None, why })
}

struct Guard<'a> {
    facts: &'a Facts<'a>,
    primary: Option<Mac>,
    first: Option<IpAddr>,
    own: BTreeSet<Address>,
}

type Check = Result<(), &'static str>;

fn refuse_if(wrong: bool, why: &'static str) -> Check {
    if wrong { Err(why) } else { Ok(()) }
}

impl<'a> Guard<'a> {
    fn new(facts: &'a Facts<'a>) -> Self {
        let primary = facts.metadata.primary;
        let known = primary.and_then(|mac| facts.metadata.enis.get(&mac));
        let first = known.and_then(|known| known.keys.ipv4s.first()).copied().map(IpAddr::V4);
        let snapshot = facts.observed.snapshot;
        let ledger = facts.observed.ledger;
        let own = snapshot.addresses.iter().filter(|seen| {
            let mac = snapshot.links.iter().find(|link| link.index == seen.address.link);
            let noted = mac
                .and_then(|link| link.mac)
                .is_some_and(|mac| ledger.addresses.contains(&(mac, seen.address.address)));
            seen.permanent
                && (seen.protocol == Some(Protocol::ENID) || (!snapshot.address_protocols && noted))
        });
        let own = own.map(|seen| seen.address).collect();
        Self { facts, primary, first, own }
    }

    fn mac_of(&self, link: crate::object::LinkIndex) -> Option<Mac> {
        self.facts.observed.link(link).and_then(|link| link.mac)
    }

    fn step(&self, step: &Step) -> Check {
        match step {
            Step::Set { link, from, to } => {
                let primary = self.primary.is_some() && self.mac_of(*link) == self.primary;
                match to.as_ref().or(from.as_ref()) {
                    Some(Setting::Group(group)) => refuse_if(
                        group.0 != 0 && *group != crate::config::Config::LINK_GROUP,
                        "it puts a link into a group that is not enid's",
                    ),
                    Some(Setting::Up) => refuse_if(to.is_none(), "it takes a link down"),
                    Some(Setting::Mtu(_) | Setting::AlternativeName(_) | Setting::Sysctl(..)) => {
                        refuse_if(primary, "it changes the primary ENI's link")
                    }
                    None => Err("it changes nothing"),
                }
            }
            Step::Create(Object::Address(address)) => self.new_address(address),
            Step::Create(Object::Route(route)) => Self::table(route.table),
            Step::Create(Object::Rule(rule)) => self.new_rule(rule),
            Step::Replace { old: Object::Route(old), new: Object::Route(new) } => {
                Self::table(new.table)?;
                self.own_route(old)
            }
            Step::Replace { .. } => Err("only routes can be replaced"),
            Step::Delete(Object::Address(address)) => {
                refuse_if(self.primary.is_none(), "which ENI is the primary one is not known")?;
                refuse_if(
                    self.first == Some(address.address)
                        && self.mac_of(address.link) == self.primary,
                    "it removes the primary ENI's first address",
                )?;
                refuse_if(
                    !self.own.contains(address),
                    "it removes an address that enid did not make",
                )
            }
            Step::Delete(Object::Route(route)) => self.own_route(route),
            Step::Delete(Object::Rule(rule)) => {
                let ours = self
                    .facts
                    .observed
                    .snapshot
                    .rules
                    .iter()
                    .any(|seen| seen.protocol == Protocol::ENID && seen.rule == *rule);
                refuse_if(!ours, "it removes a rule that enid did not make")
            }
        }
    }

    fn table(table: TableId) -> Check {
        let shared = matches!(table, TableId(0 | 253) | TableId::MAIN | TableId::LOCAL);
        refuse_if(shared, "it changes a routing table that everybody shares")
    }

    fn own_route(&self, route: &Route) -> Check {
        Self::table(route.table)?;
        let ours = self
            .facts
            .observed
            .snapshot
            .routes
            .iter()
            .any(|seen| seen.protocol == Protocol::ENID && seen.route == *route);
        refuse_if(!ours, "it changes a route that enid did not make")
    }

    fn new_address(&self, address: &Address) -> Check {
        let ip = address.address;
        let mac = self.mac_of(address.link);
        let granted =
            mac.and_then(|mac| self.facts.metadata.enis.get(&mac)).is_some_and(|known| match ip {
                IpAddr::V4(v4) => known.keys.ipv4s.contains(&v4),
                IpAddr::V6(v6) => known.keys.ipv6s.contains(&v6),
            });
        refuse_if(!granted, "it adds an address that metadata does not grant to this ENI")?;
        refuse_if(
            ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || ip == METADATA,
            "it adds an address that no host can have",
        )?;
        refuse_if(
            mac == self.primary && self.first == Some(ip),
            "it adds the primary ENI's first address, which is its boot's business",
        )
    }

    fn new_rule(&self, rule: &Rule) -> Check {
        let base = self.facts.config.priority_base;
        refuse_if(
            !(base..base + PRIORITIES).contains(&rule.priority.0),
            "it adds a rule outside enid's priorities",
        )?;
        let narrow = rule.source.is_some_and(|source| source.prefix_len() > 0);
        refuse_if(
            !narrow && rule.oif.is_none(),
            "it adds a rule that catches everybody's packets",
        )?;
        match rule.action {
            RuleAction::Lookup(TableId::MAIN) => refuse_if(
                rule.suppress_prefix_length.is_none(),
                "it adds a rule that sends everything to main",
            ),
            RuleAction::Lookup(_) => Ok(()),
            RuleAction::Other(_) => Err("it adds a rule that looks nothing up"),
        }
    }

    /// After all steps, the primary ENI's first address must still reach metadata by its own link.
    fn outcome(&self, plan: &Plan) -> Check {
        let Some(first) = self.first else {
            return Ok(());
        };
        let links: Vec<_> =
            self.primary.into_iter().flat_map(|mac| self.facts.observed.links_of(mac)).collect();
        let snapshot = self.facts.observed.snapshot;
        let mut rules: BTreeSet<&Rule> = self.facts.observed.own_rules().collect();
        let mut routes: BTreeSet<&Route> = snapshot.routes.iter().map(|seen| &seen.route).collect();
        for planned in plan.steps() {
            match &planned.step {
                Step::Create(Object::Rule(rule)) => _ = rules.insert(rule),
                Step::Delete(Object::Rule(rule)) => _ = rules.remove(rule),
                Step::Create(Object::Route(route)) => _ = routes.insert(route),
                Step::Delete(Object::Route(route)) => _ = routes.remove(route),
                Step::Replace { old: Object::Route(old), new: Object::Route(new) } => {
                    routes.remove(old);
                    routes.insert(new);
                }
                Step::Set { .. }
                | Step::Create(Object::Address(_))
                | Step::Delete(Object::Address(_))
                | Step::Replace { .. } => {}
            }
        }
        let catches = |rule: &&&Rule| {
            rule.source.is_some_and(|source| source.contains(&first))
                || rule.oif.as_ref().is_some_and(|oif| links.iter().any(|link| link.name == *oif))
        };
        for rule in rules.iter().filter(catches) {
            let RuleAction::Lookup(table) = rule.action else {
                continue;
            };
            if table == TableId::MAIN {
                continue;
            }
            let best = routes
                .iter()
                .filter(|route| {
                    route.table == table
                        && route.destination.contains(&IpNet::from(IpAddr::V4(METADATA)))
                })
                .min_by_key(|route| (u8::MAX - route.destination.prefix_len(), route.metric));
            // A link that is down has no routes; it cuts nothing off that worked.
            let reaches = best.is_some_and(|route| {
                route.kind == RouteKind::Unicast
                    && links.iter().any(|link| Some(link.index) == route.link)
            });
            let up = links.iter().any(|link| link.up);
            refuse_if(up && !reaches, "it cuts the primary ENI off from metadata")?;
        }
        Ok(())
    }
}
