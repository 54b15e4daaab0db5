//! What the kernel has against what it must have; it cannot hold an object of somebody else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::clear::shared;
use crate::desired::{Change, Desired, looked_up};
use crate::object::{
    Address, Family, LinkIndex, Mac, Marking, Object, Protocol, Route, Rule, TableId,
};
use crate::observed::{Observed, SeenRoute};

/// The differences. Only [`Diff::between`] makes one, and it deletes and replaces only what enid
/// made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Diff {
    pub(crate) addresses: Vec<(Mac, Address)>,
    pub(crate) stale_addresses: Vec<Address>,
    pub(crate) routes: Vec<(Mac, Route)>,
    pub(crate) replaced_routes: Vec<(Mac, Route, Route)>,
    pub(crate) stale_routes: Vec<Route>,
    pub(crate) rules: Vec<(Mac, Rule)>,
    /// In the order in which the kernel asks them.
    pub(crate) stale_rules: Vec<Rule>,
    pub(crate) markings: Vec<(Mac, Marking)>,
    pub(crate) stale_markings: Vec<Marking>,
    pub(crate) changes: Vec<Change>,
    pub(crate) conflicts: Vec<(Mac, Object)>,
}

impl Diff {
    /// Compares.
    pub(crate) fn between(desired: &Desired, observed: &Observed<'_>) -> Self {
        let mut diff = Self { changes: desired.changes.clone(), ..Self::default() };
        diff.compare_addresses(desired, observed);
        diff.compare_routes(desired, observed);
        diff.compare_rules(desired, observed);
        diff.compare_markings(desired, observed);
        diff
    }

    fn compare_addresses(&mut self, desired: &Desired, observed: &Observed<'_>) {
        // An address that is there with another length or lifetime satisfies the wish.
        let there: BTreeSet<(LinkIndex, IpAddr)> = observed
            .snapshot
            .addresses
            .iter()
            .map(|seen| (seen.address.link, seen.address.address))
            .collect();
        let missing = |wish: &&(Mac, Address)| !there.contains(&(wish.1.link, wish.1.address));
        self.addresses = desired.addresses.iter().filter(missing).copied().collect();
        self.stale_addresses = desired.removals.iter().copied().collect();
    }

    fn compare_routes(&mut self, desired: &Desired, observed: &Observed<'_>) {
        type Place = (TableId, IpNet, u32);
        let place = |route: &Route| -> Place { (route.table, route.destination, route.metric) };
        // The kernel's own table has a route for each address.
        let tables: BTreeSet<TableId> = desired.routes.keys().map(|wish| wish.table).collect();
        let routes = observed.snapshot.routes.iter();
        let mut there: BTreeMap<Place, Vec<&SeenRoute>> = BTreeMap::new();
        for seen in routes.filter(|seen| tables.contains(&seen.route.table)) {
            there.entry(place(&seen.route)).or_default().push(seen);
        }
        let mut blocked: Vec<Route> = Vec::new();
        for (wish, mac) in &desired.routes {
            let seen = there.get(&place(wish)).map_or(&[][..], Vec::as_slice);
            let equal = |seen: &&&SeenRoute| seen.route == *wish && seen.complete;
            if seen.iter().any(|seen| equal(&seen)) {
                continue;
            }
            match seen {
                [] => self.routes.push((*mac, *wish)),
                [ours] if ours.protocol == Protocol::ENID => {
                    self.replaced_routes.push((*mac, ours.route, *wish));
                }
                // Among several, the kernel replaces the first, whoever made it.
                _ => {
                    self.conflicts.push((*mac, Object::Route(*wish)));
                    if seen.iter().all(|seen| seen.route.link != wish.link) {
                        blocked.push(*wish);
                    }
                }
            }
        }
        // A gateway is out of reach where the way to it leads elsewhere, and the kernel refuses it.
        let reachable = |route: &Route| !blocked.iter().any(|way| way.leads_to_gateway_of(route));
        self.routes.retain(|(_, route)| reachable(route));
        let (replaced, useless): (Vec<_>, Vec<_>) = std::mem::take(&mut self.replaced_routes)
            .into_iter()
            .partition(|(_, _, new)| reachable(new));
        self.replaced_routes = replaced;
        let mut wished: BTreeSet<Place> = desired.routes.keys().map(place).collect();
        for (_, old, _) in &useless {
            wished.remove(&place(old));
        }
        let may_go = |own: &&Route| {
            let family = Family::of(own.destination.addr());
            let settled = own.link.is_some_and(|link| desired.settled.contains(&(link, family)));
            desired.cleared.contains(&(own.table, family)) || (shared(own.table) && settled)
        };
        self.stale_routes = observed
            .own_routes()
            .filter(may_go)
            .filter(|own| !wished.contains(&place(own)))
            .copied()
            .collect();
    }

    fn compare_rules(&mut self, desired: &Desired, observed: &Observed<'_>) {
        let own: BTreeSet<&Rule> = observed.own_rules().collect();
        self.rules = desired
            .rules
            .iter()
            .filter(|(wish, _)| !own.contains(wish))
            .map(|(wish, mac)| (*mac, wish.clone()))
            .collect();
        // A rule that looks into main belongs to the tables of what else its packets are asked by.
        type Packets = (Option<IpNet>, Option<(u32, u32)>);
        let packets = |rule: &Rule| -> Option<Packets> {
            (rule.source.is_some() || rule.mark.is_some()).then_some((rule.source, rule.mark))
        };
        let mut tables: BTreeMap<(Family, Packets), Vec<TableId>> = BTreeMap::new();
        for rule in &own {
            if let Some((packets, table)) = packets(rule).zip(looked_up(rule)) {
                tables.entry((rule.family, packets)).or_default().push(table);
            }
        }
        let wished: BTreeSet<Packets> = desired.rules.keys().filter_map(packets).collect();
        let cleared =
            |table: &TableId, rule: &Rule| desired.cleared.contains(&(*table, rule.family));
        let may_go = |rule: &Rule| match (looked_up(rule), packets(rule)) {
            (Some(table), _) => cleared(&table, rule),
            (None, Some(packets)) => match tables.get(&(rule.family, packets)) {
                Some(tables) => tables.iter().all(|table| cleared(table, rule)),
                None => !desired.unclear || wished.contains(&packets),
            },
            (None, None) => !desired.unclear,
        };
        self.stale_rules = observed
            .own_rules()
            .filter(|rule| !desired.rules.contains_key(*rule) && may_go(rule))
            .cloned()
            .collect();
    }
    fn compare_markings(&mut self, desired: &Desired, observed: &Observed<'_>) {
        let seen = &observed.snapshot.markings;
        let there = |wish: &Marking| seen.iter().any(|seen| seen.marking == *wish && seen.complete);
        let missing = desired.markings.iter().filter(|(wish, _)| !there(wish));
        self.markings = missing.map(|(wish, mac)| (*mac, wish.clone())).collect();
        let wished: BTreeSet<TableId> = desired.markings.keys().map(|wish| wish.table).collect();
        let cleared = |table: TableId| {
            [Family::V4, Family::V6]
                .iter()
                .all(|family| desired.cleared.contains(&(table, *family)))
        };
        let stale = seen
            .iter()
            .map(|seen| &seen.marking)
            .filter(|own| cleared(own.table) && !wished.contains(&own.table));
        self.stale_markings = stale.cloned().collect();
    }
}
