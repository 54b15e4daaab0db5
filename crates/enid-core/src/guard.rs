//! A second, independent look at a plan: it trusts neither the desired state nor the diff.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::desired::looked_up;
use crate::eni::Facts;
use crate::object::{
    Address, Family, Mac, Marking, Object, Protocol, Route, RouteKind, Rule, RuleAction, Setting,
    TableId,
};
use crate::observed::{Link, SeenAddress};
use crate::plan::{Plan, Step};

/// Where EC2's metadata service answers.
const METADATA: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];
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
    /// The primary ENI's first IPv4 address.
    first: Option<IpAddr>,
    /// The primary ENI's addresses that metadata may be asked from: that one, and all of IPv6.
    asking: Vec<IpAddr>,
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
            let noted = || {
                let link = snapshot.links.iter().find(|link| link.index == seen.address.link);
                link.and_then(|link| link.mac)
                    .is_some_and(|mac| ledger.addresses.contains(&(mac, seen.address.address)))
            };
            seen.permanent
                && (seen.protocol == Some(Protocol::ENID)
                    || (!snapshot.address_protocols && noted()))
        });
        let own = own.map(|seen| seen.address).collect();
        let asking = asking(facts, first, &own);
        Self { facts, primary, first, asking, own }
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
                    // What the operator may ask for on any ENI, and takes nothing away.
                    Some(Setting::Sysctl(key, _)) if key.family() == Family::V4 => Ok(()),
                    Some(Setting::Mtu(_) | Setting::AlternativeName(_) | Setting::Sysctl(..)) => {
                        refuse_if(primary, "it changes the primary ENI's link")
                    }
                    None => Err("it changes nothing"),
                }
            }
            Step::Create(Object::Address(address)) => self.new_address(address),
            Step::Create(Object::Route(route)) => self.new_route(route),
            Step::Create(Object::Rule(rule)) => self.new_rule(rule),
            Step::Create(Object::Marking(marking)) => refuse_if(
                marking.mark == 0 || marking.mark & !Marking::MASK != 0,
                "it sets bits of a mark that are not enid's",
            ),
            // A table of this name is enid's.
            Step::Delete(Object::Marking(_)) => Ok(()),
            Step::Replace { old: Object::Route(old), new: Object::Route(new) } => {
                self.new_route(new)?;
                self.own_route(old)
            }
            Step::Replace { .. } => Err("only routes can be replaced"),
            Step::Delete(Object::Address(address)) => {
                // A release is the operator's word; it needs no metadata.
                let released = self
                    .mac_of(address.link)
                    .is_some_and(|mac| self.facts.observed.ledger.is_released(mac));
                refuse_if(
                    self.primary.is_none() && !released,
                    "which ENI is the primary one is not known",
                )?;
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

    /// In tables that everybody shares only what metadata grants to the ENI: its delegated prefixes
    /// for the host itself, and its subnet behind whatever else leads there.
    fn new_route(&self, route: &Route) -> Check {
        let shared = matches!(route.table, TableId(0 | 253) | TableId::MAIN | TableId::LOCAL);
        let mac = route.link.and_then(|link| self.mac_of(link));
        let known = mac.and_then(|mac| self.facts.metadata.enis.get(&mac));
        let granted = known.is_some_and(|known| match (route.table, route.destination) {
            (TableId::LOCAL, prefix) => {
                route.kind == RouteKind::Local
                    && prefix.prefix_len() < prefix.max_prefix_len()
                    && known.prefixes.items().contains(&prefix)
            }
            (TableId::MAIN, IpNet::V4(net)) => known.keys.subnet_v4 == Some(net),
            (TableId::MAIN, IpNet::V6(net)) => known.keys.subnets_v6.contains(&net),
            _ => false,
        });
        let last = route.table != TableId::MAIN
            || (route.gateway.is_none() && route.metric >= self.facts.config.table_base);
        refuse_if(shared && !(granted && last), "it changes a routing table that everybody shares")
    }

    /// Whether a route is one that enid may have made, if it is in a table that everybody shares.
    fn own_route(&self, route: &Route) -> Check {
        let behind_others = route.gateway.is_none()
            && !route.is_default()
            && route.metric >= self.facts.config.table_base;
        let ours = match route.table {
            TableId::MAIN => behind_others,
            // The kernel's own are those of addresses that are there.
            TableId::LOCAL => {
                let there =
                    |seen: &SeenAddress| IpNet::from(seen.address.address) == route.destination;
                route.kind == RouteKind::Local
                    && !self.facts.observed.snapshot.addresses.iter().any(there)
            }
            TableId(0 | 253) => false,
            TableId(_) => true,
        };
        refuse_if(!ours, "it changes a routing table that everybody shares")?;
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
        let known = mac.and_then(|mac| self.facts.metadata.enis.get(&mac));
        let granted = known.is_some_and(|known| known.keys.has(ip));
        refuse_if(!granted, "it adds an address that metadata does not grant to this ENI")?;
        refuse_if(
            ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || METADATA.contains(&ip),
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
        let marked = rule.mark.is_some_and(|(mark, mask)| {
            mark != 0 && mask == Marking::MASK && mark & !Marking::MASK == 0
        });
        refuse_if(
            !narrow && rule.oif.is_none() && !marked,
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

    /// If the primary ENI's addresses reach metadata by its own link, as far as enid's rules go,
    /// then they must do so after all steps.
    fn outcome(&self, plan: &Plan) -> Check {
        let snapshot = self.facts.observed.snapshot;
        let mut rules: BTreeSet<&Rule> = self.facts.observed.own_rules().collect();
        let mut routes: BTreeSet<&Route> = snapshot.routes.iter().map(|seen| &seen.route).collect();
        let before = self.cut_off(&rules, &routes);
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
                | Step::Create(Object::Address(_) | Object::Marking(_))
                | Step::Delete(Object::Address(_) | Object::Marking(_))
                | Step::Replace { .. } => {}
            }
        }
        refuse_if(
            self.cut_off(&rules, &routes) && !before,
            "it cuts the primary ENI off from metadata",
        )
    }

    /// Whether a rule catches the primary ENI's packets and its table does not take them to
    /// metadata by the ENI's own link.
    fn cut_off(&self, rules: &BTreeSet<&Rule>, routes: &BTreeSet<&Route>) -> bool {
        let links: Vec<_> =
            self.primary.into_iter().flat_map(|mac| self.facts.observed.links_of(mac)).collect();
        // A link that is down has no routes; nothing cuts off what it does not reach anyway.
        links.iter().any(|link| link.up)
            && self.asking.iter().any(|from| {
                let family = Family::of(*from);
                let catches = |rule: &&&Rule| {
                    let bound = rule.oif.as_ref();
                    rule.family == family
                        && (rule.source.is_some_and(|source| source.contains(from))
                            || bound.is_some_and(|oif| links.iter().any(|link| link.name == *oif)))
                };
                let tables = rules.iter().filter(catches).filter_map(|rule| looked_up(rule));
                let reaches = |table| self.reaches_metadata(table, family, routes, &links);
                tables.into_iter().any(|table| !reaches(table))
            })
    }

    /// Whether a table sends what is for metadata out by one of these links.
    fn reaches_metadata(
        &self,
        table: TableId,
        family: Family,
        routes: &BTreeSet<&Route>,
        links: &[&Link],
    ) -> bool {
        let targets = METADATA.iter().chain(&self.facts.config.metadata);
        let targets = targets.filter(|target| Family::of(**target) == family);
        targets.map(|target| IpNet::from(*target)).all(|metadata| {
            let routes = routes.iter().filter(|route| route.table == table);
            let best = routes
                .filter(|route| route.destination.contains(&metadata))
                .min_by_key(|route| (u8::MAX - route.destination.prefix_len(), route.metric));
            best.is_some_and(|route| {
                route.kind == RouteKind::Unicast
                    && links.iter().any(|link| Some(link.index) == route.link)
            })
        })
    }
}

/// The primary ENI's addresses that metadata may be asked from. The kernel's word counts: where its
/// link has addresses of a family and none of them is one that metadata shows, metadata is wrong, and
/// what others put there is what the host lives by.
fn asking(facts: &Facts<'_>, first: Option<IpAddr>, own: &BTreeSet<Address>) -> Vec<IpAddr> {
    let enis = &facts.metadata.enis;
    let Some((mac, known)) = facts.metadata.primary.and_then(|mac| enis.get_key_value(&mac)) else {
        return Vec::new();
    };
    let v6: Vec<IpAddr> = known.keys.ipv6s.iter().copied().map(IpAddr::V6).collect();
    let links: BTreeSet<_> = facts.observed.links_of(*mac).map(|link| link.index).collect();
    let link_local = |ip: IpAddr| matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let there: Vec<Address> = facts
        .observed
        .snapshot
        .addresses
        .iter()
        .map(|seen| seen.address)
        .filter(|seen| links.contains(&seen.link) && !link_local(seen.address))
        .collect();
    let elsewhere = |ip: &IpAddr| {
        let mut others = enis.iter().filter(|(other, _)| *other != mac);
        others.any(|(_, other)| other.keys.has(*ip))
    };
    let mut asking = Vec::new();
    for (family, shown) in [(Family::V4, Vec::from_iter(first)), (Family::V6, v6)] {
        let here = || there.iter().filter(|seen| Family::of(seen.address) == family);
        let both: Vec<IpAddr> =
            here().map(|seen| seen.address).filter(|ip| shown.contains(ip)).collect();
        let foreign = here().filter(|seen| !own.contains(*seen)).map(|seen| seen.address);
        if !both.is_empty() {
            asking.extend(both);
        } else if here().next().is_some() {
            asking.extend(foreign);
        } else {
            // Nobody has configured it yet.
            asking.extend(shown.into_iter().filter(|ip| !elsewhere(ip)));
        }
    }
    asking
}

#[cfg(test)]
mod tests;
