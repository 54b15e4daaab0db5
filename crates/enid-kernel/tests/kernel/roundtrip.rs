//! What is made is read back equal, carries the mark, and goes without a trace.

use enid_core::object::{
    Address, Family, LinkGroup, Marking, Object, Protocol, Route, RouteKind, Rule, RuleAction,
    TableId,
};
use enid_core::plan::Step;
use enid_kernel::Outcome;

use crate::world::{World, address, create, delete, ip, route, rule, tests};

tests! {
    addresses_are_read_back_equal,
    routes_are_read_back_equal,
    rules_are_read_back_equal,
    markings_are_read_back_equal,
}

/// Makes the objects, finds each in a snapshot with the mark, and deletes them again.
fn round_trip(world: &mut World, objects: Vec<Object>) {
    let before = world.snapshot_with_markings();
    let steps: Vec<_> = objects.iter().cloned().map(Step::Create).collect();
    for (outcome, object) in world.apply(&steps).into_iter().zip(&objects) {
        assert_eq!(outcome.unwrap(), Outcome::Changed, "{object:?}");
    }
    let there = world.snapshot_with_markings();
    for object in &objects {
        let found = match object {
            Object::Address(wanted) => there.addresses.iter().any(|seen| {
                seen.address == *wanted && seen.protocol == Some(Protocol::ENID) && seen.permanent
            }),
            Object::Route(wanted) => there.routes.iter().any(|seen| {
                seen.route == *wanted && seen.protocol == Protocol::ENID && seen.complete
            }),
            Object::Rule(wanted) => there.rules.iter().any(|seen| {
                seen.rule == *wanted && seen.protocol == Protocol::ENID && seen.complete
            }),
            Object::Marking(wanted) => {
                there.markings.iter().any(|seen| seen.marking == *wanted && seen.complete)
            }
        };
        assert!(found, "{object:?} is not in {there:#?}");
    }
    let steps: Vec<_> = objects.iter().rev().cloned().map(Step::Delete).collect();
    for (outcome, step) in world.apply(&steps).into_iter().zip(&steps) {
        assert_eq!(outcome.unwrap(), Outcome::Changed, "{step:?}");
    }
    assert_eq!(world.snapshot_with_markings(), before);
}

fn addresses_are_read_back_equal(world: &mut World) {
    let link = world.ens5;
    let base = [
        address(link, "10.1.0.4/24"),
        address(link, "10.1.0.5/32"),
        address(link, "169.254.9.1/30"),
        address(link, "2001:db8::4/64"),
        address(link, "2001:db8::5/128"),
        address(link, "fe80::77/64"),
    ];
    let mut objects = Vec::new();
    for (place, address) in base.into_iter().enumerate() {
        objects.push(Object::Address(address));
        round_trip(world, vec![Object::Address(Address { prefix_route: true, ..address })]);
        round_trip(world, vec![Object::Address(Address { preferred: false, ..address })]);
        assert_eq!(objects.len(), place + 1);
    }
    round_trip(world, objects);
}

fn routes_are_read_back_equal(world: &mut World) {
    let (ens5, ens6) = (world.ens5, world.ens6);
    ip("address add 10.1.0.4/24 dev ens5");
    ip("address add 2001:db8::4/64 dev ens5 nodad");
    // The kernel's own routes for it come a moment later.
    world.quiet();
    let unreachable = |destination: &str| Route {
        kind: RouteKind::Unreachable,
        link: None,
        metric: u32::MAX,
        ..route(ens5, destination, None)
    };
    let v4 = route(ens5, "10.2.0.0/16", Some("10.1.0.1"));
    let v6 = route(ens5, "2001:db8:2::/48", Some("2001:db8::1"));
    let routes = [
        v4,
        Route { metric: 0, ..v4 },
        Route { table: TableId::MAIN, ..v4 },
        Route { table: TableId(200), source: Some("10.1.0.4".parse().unwrap()), ..v4 },
        Route { on_link: true, ..route(ens6, "0.0.0.0/0", Some("192.168.7.1")) },
        route(ens5, "10.3.0.0/24", None),
        Route { kind: RouteKind::Local, ..route(ens5, "10.4.0.0/28", None) },
        unreachable("0.0.0.0/0"),
        v6,
        Route { table: TableId::MAIN, ..v6 },
        Route { source: Some("2001:db8::4".parse().unwrap()), metric: 7, ..v6 },
        Route { on_link: true, ..route(ens6, "::/0", Some("fe80:ec2::1")) },
        Route { on_link: true, ..route(ens6, "::/0", Some("2001:db8:99::1")) },
        route(ens5, "fe80::/64", None),
        Route { kind: RouteKind::Local, ..route(ens5, "2001:db8:4::/80", None) },
        unreachable("::/0"),
    ];
    for route in routes {
        round_trip(world, vec![Object::Route(route)]);
    }
    let both_defaults = vec![Object::Route(routes[11]), Object::Route(routes[15])];
    round_trip(world, both_defaults);
}

fn rules_are_read_back_equal(world: &mut World) {
    for source in ["10.1.0.4/32", "2001:db8::/80"] {
        let base = rule(20020, source);
        let everything = Rule { source: None, ..base.clone() };
        let rules = [
            base.clone(),
            everything.clone(),
            Rule { iif: Some("lo".to_owned()), ..base.clone() },
            Rule { oif: Some("ens5".to_owned()), ..everything.clone() },
            Rule { destination: base.source, source: None, ..base.clone() },
            Rule { mark: Some((0x80, 0xff)), ..everything.clone() },
            Rule { action: RuleAction::Lookup(TableId::MAIN), ..everything },
            Rule { action: RuleAction::Other(7), ..base.clone() },
            Rule {
                iif: Some("lo".to_owned()),
                suppress_prefix_length: Some(1),
                suppress_group: Some(LinkGroup(20000)),
                action: RuleAction::Lookup(TableId::MAIN),
                ..base.clone()
            },
        ];
        for rule in rules {
            round_trip(world, vec![Object::Rule(rule)]);
        }
        assert_eq!(world.take(create(base.clone())).unwrap(), Outcome::Changed);
        let family = if base.family == Family::V4 { "-4" } else { "-6" };
        assert!(ip(&format!("{family} rule show priority 20020")).contains("proto 233"));
        assert_eq!(world.take(delete(base)).unwrap(), Outcome::Changed);
    }
    let suppressing = Rule {
        action: RuleAction::Lookup(TableId::MAIN),
        suppress_prefix_length: Some(1),
        suppress_group: Some(LinkGroup(20000)),
        ..rule(20010, "10.1.0.0/24")
    };
    world.take(create(suppressing)).unwrap();
    let shown = ip("rule show priority 20010");
    assert!(
        shown.contains("lookup main suppress_prefixlength 1 suppress_ifgroup 20000"),
        "{shown}"
    );
}

fn markings_are_read_back_equal(world: &mut World) {
    let marking = |table: u32, link: &str, mark: u32| {
        Object::Marking(Marking { table: TableId(table), link: link.to_owned(), mark })
    };
    let all = vec![
        marking(20_001, "ens6", 0x0010_0000),
        marking(20_002, "fifteen-letters", Marking::MASK),
        marking(u32::MAX, "not-there", 0x8000_0000),
    ];
    for marking in &all {
        round_trip(world, vec![marking.clone()]);
    }
    round_trip(world, all);
}
