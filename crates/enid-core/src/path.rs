//! Which rule sends a packet where, by the rules and routes of a snapshot: the kernel's answer names
//! the table and the route, but not the rule.

use std::net::IpAddr;

use crate::object::{Family, Route, RouteKind, Rule, RuleAction, TableId};
use crate::observed::{SeenRoute, SeenRule, Snapshot};

/// A rule and the route that it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found<'a> {
    /// The first rule that leads to a route.
    pub rule: &'a SeenRule,
    /// The route.
    pub route: &'a SeenRoute,
}

/// What decides of a packet that a socket with this source sends; none where no rule leads to a
/// route, or where one has to be passed that is not understood.
#[must_use]
pub fn decides(snapshot: &Snapshot, from: IpAddr, to: IpAddr) -> Option<Found<'_>> {
    let family = Family::of(to);
    let mut rules: Vec<&SeenRule> =
        snapshot.rules.iter().filter(|seen| seen.rule.family == family).collect();
    rules.sort_by_key(|seen| seen.rule.priority);
    for seen in rules {
        match matches(seen, from, to) {
            Some(false) => continue,
            Some(true) => {}
            // Whether it matches depends on what this packet does not tell.
            None => return None,
        }
        let RuleAction::Lookup(table) = seen.rule.action else { return None };
        let Some(route) = best(snapshot, table, to) else { continue };
        if !suppressed(snapshot, &seen.rule, &route.route) {
            return Some(Found { rule: seen, route });
        }
    }
    None
}

/// Whether a rule matches a packet without a mark that is made here by a socket that no device holds.
fn matches(seen: &SeenRule, from: IpAddr, to: IpAddr) -> Option<bool> {
    let rule = &seen.rule;
    let outside = rule.source.is_some_and(|net| !net.contains(&from))
        || rule.destination.is_some_and(|net| !net.contains(&to))
        || rule.oif.is_some()
        || rule.iif.as_deref().is_some_and(|iif| iif != "lo")
        || rule.mark.is_some_and(|(mark, _)| mark != 0);
    match (outside, seen.complete) {
        (true, true) => Some(false),
        (false, true) => Some(true),
        // It may ask for less than what was understood (`not`), or for more.
        (_, false) => None,
    }
}

/// The route of a table that takes a packet: the longest prefix, then the lowest metric.
fn best(snapshot: &Snapshot, table: TableId, to: IpAddr) -> Option<&SeenRoute> {
    let routes = snapshot.routes.iter().filter(|seen| seen.route.table == table);
    let takes = routes.filter(|seen| seen.route.destination.contains(&to));
    takes.max_by_key(|seen| {
        let Route { destination, metric, .. } = seen.route;
        (destination.prefix_len(), std::cmp::Reverse(metric))
    })
}

fn suppressed(snapshot: &Snapshot, rule: &Rule, route: &Route) -> bool {
    let length = u32::from(route.destination.prefix_len());
    let short = rule.suppress_prefix_length.is_some_and(|longest| length <= longest);
    let mut links = snapshot.links.iter();
    let link = links.find(|link| Some(link.index) == route.link);
    let group = rule.suppress_group.is_some_and(|group| link.is_some_and(|it| it.group == group));
    let sends = matches!(route.kind, RouteKind::Unicast | RouteKind::Local);
    (short || group) && sends
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{LinkGroup, LinkIndex, Protocol};

    fn rule(priority: u32, table: u32, change: impl Fn(&mut Rule)) -> SeenRule {
        let mut rule = Rule::lookup(Family::V4, priority, TableId(table));
        change(&mut rule);
        SeenRule { rule, protocol: Protocol::ENID, complete: true }
    }

    fn route(table: u32, destination: &str, link: u32) -> SeenRoute {
        let route = Route {
            table: TableId(table),
            destination: destination.parse().unwrap(),
            kind: RouteKind::Unicast,
            gateway: None,
            link: Some(LinkIndex(link)),
            on_link: false,
            source: None,
            metric: 0,
        };
        SeenRoute { route, protocol: Protocol::ENID, complete: true }
    }

    #[test]
    fn a_rule_that_suppresses_what_it_finds_does_not_decide() {
        let own = |rule: &mut Rule| rule.source = Some("10.0.2.0/24".parse().unwrap());
        let main_first = |rule: &mut Rule| {
            own(rule);
            rule.suppress_prefix_length = Some(1);
            rule.suppress_group = Some(LinkGroup(20_000));
        };
        let mut snapshot = Snapshot {
            rules: vec![
                rule(32_766, 254, |_| {}),
                rule(20_020, 20_001, own),
                rule(20_010, 254, main_first),
                rule(20_000, 20_001, |rule| rule.oif = Some("ens6".to_owned())),
            ],
            routes: vec![
                route(254, "0.0.0.0/0", 2),
                route(254, "172.17.0.0/16", 9),
                route(20_001, "0.0.0.0/0", 3),
            ],
            ..Snapshot::default()
        };
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let by = |snapshot: &Snapshot, from: &str, to: &str| {
            decides(snapshot, ip(from), ip(to)).map(|found| found.rule.rule.priority.0)
        };
        assert_eq!(by(&snapshot, "10.0.2.4", "198.51.100.1"), Some(20_020));
        assert_eq!(by(&snapshot, "10.0.2.4", "172.17.0.2"), Some(20_010));
        assert_eq!(by(&snapshot, "10.0.1.4", "198.51.100.1"), Some(32_766));
        // What the rule does not tell might match, too.
        snapshot.rules.push(SeenRule { complete: false, ..rule(100, 7, |_| {}) });
        assert_eq!(by(&snapshot, "10.0.2.4", "198.51.100.1"), None);
    }
}
