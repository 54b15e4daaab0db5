//! Between the oracle's words and ours, in both directions.

use std::collections::BTreeMap;

use enid_core::object::{
    self, LinkGroup, LinkIndex, Mac, Protocol, RouteKind, RuleAction, Sysctl, TableId,
};
use enid_core::observed::{self, SeenAddress, SeenRoute, SeenRule, Snapshot};
use oracle::{Family, Kind, State};

const STATIC: Protocol = Protocol(4);

/// A snapshot as the oracle sees it.
pub(crate) fn state(snapshot: &Snapshot) -> State {
    let names: BTreeMap<LinkIndex, &String> =
        snapshot.links.iter().map(|link| (link.index, &link.name)).collect();
    let name = |index: LinkIndex| names[&index].clone();
    let link = |link: &observed::Link| oracle::Link {
        name: link.name.clone(),
        up: link.up,
        group: link.group.0,
    };
    let address = |seen: &SeenAddress| oracle::Address {
        link: name(seen.address.link),
        address: seen.address.address,
        length: seen.address.prefix_length,
        preferred: seen.address.preferred,
        permanent: seen.permanent,
        ours: seen.protocol == Some(Protocol::ENID),
    };
    let route = |seen: &SeenRoute| oracle::Route {
        table: seen.route.table.0,
        destination: seen.route.destination,
        kind: match seen.route.kind {
            RouteKind::Unicast => Kind::Unicast,
            RouteKind::Unreachable => Kind::Refuse,
            RouteKind::Local => Kind::Local,
            RouteKind::Other(number) => panic!("a route of type {number}"),
        },
        gateway: seen.route.gateway,
        link: seen.route.link.map(name),
        source: seen.route.source,
        metric: seen.route.metric,
        ours: seen.protocol == Protocol::ENID,
    };
    State {
        links: snapshot.links.iter().map(link).collect(),
        addresses: snapshot.addresses.iter().map(address).collect(),
        routes: snapshot.routes.iter().map(route).collect(),
        rules: snapshot.rules.iter().map(rule).collect(),
    }
}

fn rule(seen: &SeenRule) -> oracle::Rule {
    let rule = &seen.rule;
    let RuleAction::Lookup(table) = rule.action else { panic!("{rule:?} looks nothing up") };
    oracle::Rule {
        family: match rule.family {
            object::Family::V4 => Family::V4,
            object::Family::V6 => Family::V6,
        },
        priority: rule.priority.0,
        source: rule.source,
        destination: rule.destination,
        iif: rule.iif.clone(),
        oif: rule.oif.clone(),
        mark: rule.mark,
        table: table.0,
        suppress_length: rule.suppress_prefix_length,
        suppress_group: rule.suppress_group.map(|group| group.0),
        ours: seen.protocol == Protocol::ENID,
    }
}

/// Adds to a snapshot what others have; an ENI's link has a MAC address.
pub(crate) fn add(snapshot: &mut Snapshot, state: &State, mac: Option<Mac>) {
    for link in &state.links {
        let last = snapshot.links.iter().map(|link| link.index.0).max();
        snapshot.links.push(observed::Link {
            index: LinkIndex(last.unwrap_or_default() + 1),
            name: link.name.clone(),
            alternative_names: Vec::new(),
            kind: mac.is_none().then(|| "bridge".to_owned()),
            driver: mac.map(|_| "ena".to_owned()),
            mac,
            up: link.up,
            carrier: true,
            mtu: 9001,
            group: LinkGroup(link.group),
            master: None,
            ipv6: true,
            sysctls: Sysctl::ALL.map(|key| (key, 1)).into(),
        });
    }
    let links = snapshot.links.clone();
    let index = |name: &String| {
        links.iter().find(|link| link.name == *name).map(|link| link.index).unwrap()
    };
    snapshot.addresses.extend(state.addresses.iter().map(|address| SeenAddress {
        address: object::Address {
            link: index(&address.link),
            address: address.address,
            prefix_length: address.length,
            prefix_route: true,
            preferred: address.preferred,
        },
        protocol: None,
        permanent: address.permanent,
    }));
    snapshot.routes.extend(state.routes.iter().map(|route| SeenRoute {
        route: object::Route {
            table: TableId(route.table),
            destination: route.destination,
            kind: RouteKind::Unicast,
            gateway: route.gateway,
            link: route.link.as_ref().map(index),
            on_link: false,
            source: route.source,
            metric: route.metric,
        },
        protocol: STATIC,
        complete: true,
    }));
    snapshot.rules.extend(state.rules.iter().map(|rule| SeenRule {
        rule: {
            let family = match rule.family {
                Family::V4 => object::Family::V4,
                Family::V6 => object::Family::V6,
            };
            object::Rule::lookup(family, rule.priority, TableId(rule.table))
        },
        protocol: Protocol::KERNEL,
        complete: true,
    }));
}
