//! What the kernel has against what it must have; it cannot hold an object of somebody else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::desired::{Change, Desired, looked_up};
use crate::object::{Address, LinkIndex, Mac, Object, Protocol, Route, Rule, TableId};
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
                _ => self.conflicts.push((*mac, Object::Route(*wish))),
            }
        }
        let wished: BTreeSet<Place> = desired.routes.keys().map(place).collect();
        self.stale_routes = observed
            .own_routes()
            .filter(|own| desired.cleared.contains(&own.table) && !wished.contains(&place(own)))
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
        let mut tables: BTreeMap<IpNet, Vec<TableId>> = BTreeMap::new();
        for (source, table) in own.iter().filter_map(|rule| rule.source.zip(looked_up(rule))) {
            tables.entry(source).or_default().push(table);
        }
        let wished: BTreeSet<IpNet> = desired.rules.keys().filter_map(|rule| rule.source).collect();
        let cleared = |table: &TableId| desired.cleared.contains(table);
        let may_go = |rule: &Rule| match (looked_up(rule), rule.source) {
            (Some(table), _) => cleared(&table),
            // A rule that looks into main belongs to the tables of its source's other rules.
            (None, Some(source)) => match tables.get(&source) {
                Some(tables) => tables.iter().all(cleared),
                None => !desired.unclear || wished.contains(&source),
            },
            (None, None) => !desired.unclear,
        };
        self.stale_rules = observed
            .own_rules()
            .filter(|rule| !desired.rules.contains_key(*rule) && may_go(rule))
            .cloned()
            .collect();
    }
}
