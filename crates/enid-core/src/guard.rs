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
                    .is_some_and(|mac| self.facts.observed.ledger.held(mac));
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
        let granted =
            mac.and_then(|mac| self.facts.metadata.enis.get(&mac)).is_some_and(|known| match ip {
                IpAddr::V4(v4) => known.keys.ipv4s.contains(&v4),
                IpAddr::V6(v6) => known.keys.ipv6s.contains(&v6),
            });
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
        others.any(|(_, other)| match ip {
            IpAddr::V4(v4) => other.keys.ipv4s.contains(v4),
            IpAddr::V6(v6) => other.keys.ipv6s.contains(v6),
        })
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
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::ledger::Ledger;
    use crate::metadata::facts::{EniFacts, Metadata};
    use crate::object::{LinkGroup, LinkIndex, Priority, Sysctl};
    use crate::observed::{Observed, SeenRoute, SeenRule, Snapshot};
    use crate::time::Instant;

    const ETH0: LinkIndex = LinkIndex(2);
    const ETH1: LinkIndex = LinkIndex(3);
    const TABLE: TableId = TableId(20_000);

    fn mac(link: LinkIndex) -> Mac {
        Mac([2, 0, 0, 0, 0, link.0.to_le_bytes()[0]])
    }

    fn link(index: LinkIndex, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            alternative_names: Vec::new(),
            kind: None,
            driver: None,
            mac: Some(mac(index)),
            up: true,
            carrier: true,
            mtu: 9001,
            group: LinkGroup::default(),
            master: None,
            ipv6: true,
            sysctls: std::collections::BTreeMap::new(),
        }
    }

    fn address(link: LinkIndex, address: &str) -> Address {
        let address = address.parse().unwrap();
        Address { link, address, prefix_length: 32, prefix_route: false, preferred: true }
    }

    fn route(destination: &str, table: TableId, link: LinkIndex) -> Route {
        Route {
            table,
            destination: destination.parse().unwrap(),
            kind: RouteKind::Unicast,
            gateway: None,
            link: Some(link),
            on_link: false,
            source: None,
            metric: 0,
        }
    }

    fn rule(source: Option<&str>, oif: Option<&str>, table: TableId) -> Rule {
        Rule {
            source: source.map(|source| source.parse().unwrap()),
            oif: oif.map(str::to_owned),
            ..Rule::lookup(Family::V4, 20_020, table)
        }
    }

    /// Two ENIs: 10.0.1.4 on the primary one; 10.0.2.4 (ours), 10.0.2.5 (ours, with a lifetime)
    /// and 10.0.2.6 (somebody else's) on the other; the primary's table and rule are made.
    fn kernel() -> Snapshot {
        let seen = |link, text, protocol, permanent| SeenAddress {
            address: address(link, text),
            protocol,
            permanent,
        };
        let ours = Some(Protocol::ENID);
        let by = |route, protocol| SeenRoute { route, protocol, complete: true };
        let known = |rule, protocol| SeenRule { rule, protocol, complete: true };
        Snapshot {
            links: vec![link(ETH0, "eth0"), link(ETH1, "eth1")],
            addresses: vec![
                seen(ETH0, "10.0.1.4", None, false),
                seen(ETH1, "10.0.2.4", ours, true),
                seen(ETH1, "10.0.2.5", ours, false),
                seen(ETH1, "10.0.2.6", None, true),
            ],
            routes: vec![
                by(route("0.0.0.0/0", TABLE, ETH0), Protocol::ENID),
                by(route("10.9.0.0/16", TABLE, ETH0), Protocol(4)),
                by(route("0.0.0.0/0", TableId::MAIN, ETH0), Protocol::ENID),
            ],
            routers: std::collections::BTreeMap::new(),
            markings: Vec::new(),
            rules: vec![
                known(rule(Some("10.0.1.0/24"), None, TABLE), Protocol::ENID),
                known(rule(Some("10.0.9.0/24"), None, TABLE), Protocol(4)),
            ],
            address_protocols: true,
        }
    }

    fn judge(snapshot: &Snapshot, metadata: &Metadata, steps: Vec<Step>) -> Option<&'static str> {
        let (config, ledger, udev) = (Config::default(), Ledger::default(), BTreeSet::new());
        let observed = Observed { snapshot, ledger: &ledger };
        let now = Instant::default();
        let facts = Facts { now, config: &config, metadata, observed, udev: &udev };
        check(&Plan::of(steps), &facts).err().map(|refused| refused.why)
    }

    fn metadata() -> Metadata {
        let eni = |ips: &[&str]| {
            let mut facts = EniFacts::default();
            facts.keys.ipv4s = ips.iter().map(|ip| ip.parse().unwrap()).collect();
            facts
        };
        Metadata {
            primary: Some(mac(ETH0)),
            enis: [(mac(ETH0), eni(&["10.0.1.4"])), (mac(ETH1), eni(&["10.0.2.4", "127.0.0.9"]))]
                .into(),
            ..Metadata::default()
        }
    }

    fn refused(step: Step, why: &str) {
        assert_eq!(judge(&kernel(), &metadata(), vec![step.clone()]), Some(why), "{step:?}");
    }

    fn allowed(steps: Vec<Step>) {
        assert_eq!(judge(&kernel(), &metadata(), steps), None);
    }

    #[test]
    fn the_primarys_first_address_is_neither_removed_nor_added() {
        let first = || Object::Address(address(ETH0, "10.0.1.4"));
        refused(Step::Delete(first()), "it removes the primary ENI's first address");
        refused(
            Step::Create(first()),
            "it adds the primary ENI's first address, which is its boot's business",
        );
        let mut marked = kernel();
        marked.addresses[0].protocol = Some(Protocol::ENID);
        marked.addresses[0].permanent = true;
        assert_eq!(
            judge(&marked, &metadata(), vec![Step::Delete(first())]),
            Some("it removes the primary ENI's first address"),
            "whoever made it"
        );
    }

    #[test]
    fn only_own_permanent_addresses_are_removed_and_only_when_the_primary_is_known() {
        let delete = |text| Step::Delete(Object::Address(address(ETH1, text)));
        allowed(vec![delete("10.0.2.4")]);
        let foreign = "it removes an address that enid did not make";
        refused(delete("10.0.2.5"), foreign);
        refused(delete("10.0.2.6"), foreign);
        refused(delete("10.0.2.7"), foreign);
        let unknown = Metadata { primary: None, ..metadata() };
        assert_eq!(
            judge(&kernel(), &unknown, vec![delete("10.0.2.4")]),
            Some("which ENI is the primary one is not known")
        );
    }

    #[test]
    fn an_address_is_added_only_where_metadata_grants_it() {
        let create = |link, text| Step::Create(Object::Address(address(link, text)));
        allowed(vec![create(ETH1, "10.0.2.4")]);
        let granted = "it adds an address that metadata does not grant to this ENI";
        refused(create(ETH0, "10.0.2.4"), granted);
        refused(create(ETH1, "10.0.2.99"), granted);
        refused(create(ETH1, "127.0.0.9"), "it adds an address that no host can have");
    }

    #[test]
    fn routes_and_rules_of_others_are_not_touched() {
        let foreign = || Object::Route(route("10.9.0.0/16", TABLE, ETH0));
        let why = "it changes a route that enid did not make";
        refused(Step::Delete(foreign()), why);
        let new = Object::Route(route("10.9.0.0/16", TABLE, ETH1));
        refused(Step::Replace { old: foreign(), new }, why);
        refused(
            Step::Delete(Object::Rule(rule(Some("10.0.9.0/24"), None, TABLE))),
            "it removes a rule that enid did not make",
        );
    }

    #[test]
    fn tables_that_everybody_shares_are_not_touched_whoever_made_the_route() {
        let why = "it changes a routing table that everybody shares";
        for table in [TableId(0), TableId(253), TableId::MAIN, TableId::LOCAL] {
            refused(Step::Create(Object::Route(route("10.7.0.0/16", table, ETH0))), why);
        }
        let own = Object::Route(route("0.0.0.0/0", TableId::MAIN, ETH0));
        refused(Step::Delete(own), why);
    }

    #[test]
    fn a_rule_that_catches_everybodys_packets_is_not_made() {
        let create = |rule| Step::Create(Object::Rule(rule));
        let catches = "it adds a rule that catches everybody's packets";
        refused(create(rule(None, None, TABLE)), catches);
        refused(create(rule(Some("0.0.0.0/0"), None, TABLE)), catches);
        refused(
            create(rule(Some("10.0.2.0/24"), None, TableId::MAIN)),
            "it adds a rule that sends everything to main",
        );
        refused(
            create(Rule { priority: Priority(100), ..rule(Some("10.0.2.0/24"), None, TABLE) }),
            "it adds a rule outside enid's priorities",
        );
        let blackhole = RuleAction::Other(6);
        refused(
            create(Rule { action: blackhole, ..rule(Some("10.0.2.0/24"), None, TABLE) }),
            "it adds a rule that looks nothing up",
        );
    }

    #[test]
    fn the_path_to_metadata_is_not_cut() {
        let why = "it cuts the primary ENI off from metadata";
        let default = || Object::Route(route("0.0.0.0/0", TABLE, ETH0));
        refused(Step::Delete(default()), why);
        let elsewhere = Object::Route(route("0.0.0.0/0", TABLE, ETH1));
        refused(Step::Replace { old: default(), new: elsewhere }, why);
        let half = Object::Route(route("128.0.0.0/1", TABLE, ETH1));
        refused(Step::Create(half), why);
        let empty = TableId(20_001);
        refused(Step::Create(Object::Rule(rule(Some("10.0.1.4/32"), None, empty))), why);
        refused(Step::Create(Object::Rule(rule(None, Some("eth0"), empty))), why);
        allowed(vec![Step::Create(Object::Rule(rule(Some("10.0.2.0/24"), None, empty)))]);
        allowed(vec![
            Step::Delete(Object::Rule(rule(Some("10.0.1.0/24"), None, TABLE))),
            Step::Delete(default()),
        ]);
    }

    #[test]
    fn a_path_that_others_cut_stops_nothing() {
        let mut cut = kernel();
        cut.routes.retain(|seen| seen.protocol != Protocol::ENID);
        let step = Step::Create(Object::Address(address(ETH1, "10.0.2.4")));
        assert_eq!(judge(&cut, &metadata(), vec![step]), None);
    }

    #[test]
    fn links_are_not_taken_down_and_the_primarys_is_left_as_it_is() {
        let set = |link, from, to| Step::Set { link, from, to };
        refused(set(ETH1, Some(Setting::Up), None), "it takes a link down");
        refused(set(ETH1, None, None), "it changes nothing");
        let group = Setting::Group(LinkGroup(7));
        refused(set(ETH1, None, Some(group)), "it puts a link into a group that is not enid's");
        let primary = "it changes the primary ENI's link";
        refused(set(ETH0, None, Some(Setting::Mtu(1500))), primary);
        refused(set(ETH0, None, Some(Setting::Sysctl(Sysctl::AcceptRaPrefix, 0))), primary);
        allowed(vec![set(ETH1, None, Some(Setting::Mtu(1500)))]);
    }
}
