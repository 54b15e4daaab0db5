//! What the core takes for granted of the kernel, and what it must not.

use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use enid_core::object::{
    Address, LinkGroup, LinkIndex, Object, Protocol, Route, RouteKind, Rule, RuleAction, TableId,
};
use enid_core::observed::SeenRoute;
use enid_core::plan::Step;
use enid_kernel::{Change, Outcome};

use crate::world::{Far, World, address, answers, create, delete, ip, mac, route, rule, tests};

tests! {
    an_ipv6_address_can_be_bound_and_sent_from_at_once_and_stays,
    any_address_of_a_local_prefix_answers,
    an_ipv6_address_of_a_local_prefix_is_bound_only_where_foreign_ones_may_be,
    the_kernels_own_local_route_and_a_foreign_one_stay,
    an_ipv6_route_loses_its_source_with_the_address,
    a_hop_that_somebody_appended_outlives_ours,
    what_main_routes_by_no_eni_goes_there_and_the_rest_by_the_table,
    an_address_whose_lease_lapses_is_heard_to_go,
}

const NODAD: &str = "nodad";

fn an_ipv6_address_can_be_bound_and_sent_from_at_once_and_stays(world: &mut World) {
    let far = Far::of_ens5(world);
    far.has("2001:db8::1", "/64");
    let peer = far.run(|| mac("peer5"));
    ip(&format!("neigh add 2001:db8::1 dev ens5 lladdr {peer} nud permanent"));
    ip("-6 route add 2001:db8::/64 dev ens5");
    let there = far.run(|| UdpSocket::bind("[2001:db8::1]:7777").unwrap());
    there.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    for (host, preferred) in [(4, true), (5, false)] {
        let text = format!("2001:db8::{host}");
        let made = Address { preferred, ..address(world.ens5, &format!("{text}/128")) };
        world.take(create(made)).unwrap();
        let here = UdpSocket::bind((text.as_str(), 0)).unwrap();
        here.send_to(b"at once", "[2001:db8::1]:7777").unwrap();
        let (_, from) = there.recv_from(&mut [0; 16]).unwrap();
        assert_eq!(from.ip().to_string(), text);
    }
    // Duplicate address detection would have ended by then, if there were any.
    std::thread::sleep(Duration::from_millis(1500));
    let shown = ip("-6 address show dev ens5 scope global");
    assert_eq!(shown.matches("valid_lft forever").count(), 2, "{shown}");
    assert_eq!(shown.matches("preferred_lft 0sec").count(), 1, "{shown}");
    assert!(!shown.contains("tentative") && !shown.contains("dadfailed"), "{shown}");
}

/// The prefix as a route to this host.
fn local(link: LinkIndex, prefix: &str, metric: u32) -> Route {
    Route { kind: RouteKind::Local, table: TableId::LOCAL, metric, ..route(link, prefix, None) }
}

fn seen(world: &mut World, wanted: &Route) -> Option<SeenRoute> {
    let routes = world.snapshot().routes;
    routes.into_iter().find(|seen| seen.route == *wanted)
}

fn any_address_of_a_local_prefix_answers(world: &mut World) {
    let link = world.ens5;
    let far = Far::of_ens5(world);
    let prefixes = [
        ("10.1.0.16/28", 0, "10.1.0.", "/24", ["10.1.0.16", "10.1.0.31"], "10.1.0.32"),
        (
            "2001:db8:0:0:5::/80",
            512,
            "2001:db8::",
            "/64",
            ["2001:db8::5:0:0:0", "2001:db8::5:ffff:ffff:ffff"],
            "2001:db8::6:0:0:0",
        ),
    ];
    let here = mac("ens5");
    for (prefix, metric, network, length, within, beyond) in prefixes {
        let nodad = if network.contains(':') { NODAD } else { "" };
        ip(&format!("address add {network}4{length} dev ens5 {nodad}"));
        let neighbour = |host: &str| {
            far.run(|| ip(&format!("neigh replace {host} dev peer5 lladdr {here} nud permanent")));
        };
        far.has(&format!("{network}1"), length);
        within.iter().chain([&beyond]).for_each(|host| neighbour(host));
        let ours = local(link, prefix, metric);
        assert_eq!(world.take(create(ours)).unwrap(), Outcome::Changed);
        let there = seen(world, &ours).unwrap();
        assert!(there.complete && there.protocol == Protocol::ENID);
        for host in within {
            assert!(far.run(|| answers(host)), "{host}");
        }
        assert!(!far.run(|| answers(beyond)));
        assert_eq!(world.take(delete(ours)).unwrap(), Outcome::Changed);
        assert!(!far.run(|| answers(within[0])));
    }
}

fn an_ipv6_address_of_a_local_prefix_is_bound_only_where_foreign_ones_may_be(world: &mut World) {
    let link = world.ens5;
    for (prefix, metric) in [("10.1.0.16/28", 0), ("2001:db8:0:0:5::/80", 512)] {
        ip(&format!(
            "address add {} dev ens5",
            if metric == 0 { "10.1.0.4/24" } else { "fe80::4/64" }
        ));
        world.take(create(local(link, prefix, metric))).unwrap();
    }
    let bind = |host: &str| UdpSocket::bind((host, 0)).is_ok();
    assert!(bind("10.1.0.17") && !bind("10.1.0.32"));
    assert!(!bind("2001:db8::5:0:0:1"));
    std::fs::write("/proc/sys/net/ipv6/ip_nonlocal_bind", "1").unwrap();
    assert!(bind("2001:db8::5:0:0:1"));
}

fn the_kernels_own_local_route_and_a_foreign_one_stay(world: &mut World) {
    let link = world.ens5;
    for (host, prefix, metric) in
        [("10.1.0.4/32", "10.1.0.16/28", 0), ("2001:db8::4/128", "2001:db8:0:0:5::/80", 512)]
    {
        world.take(create(address(world.ens5, host))).unwrap();
        // The kernel's route for an IPv6 address comes a moment after the address.
        world.quiet();
        let kernels = local(link, host, 0);
        let source = (metric == 0).then(|| host.split('/').next().unwrap().parse().unwrap());
        let there = seen(world, &Route { source, ..kernels }).unwrap();
        assert_eq!(there.protocol, Protocol::KERNEL);
        let metric = if metric == 0 { String::new() } else { format!("metric {metric}") };
        ip(&format!("route add local {prefix} dev ens5 table local proto static {metric}"));
        let before = world.snapshot();
        for route in [kernels, local(link, prefix, 0)] {
            assert_eq!(world.take(delete(route)).unwrap(), Outcome::AlreadySo, "{route:?}");
        }
        assert_eq!(world.snapshot(), before);
    }
}

fn an_ipv6_route_loses_its_source_with_the_address(world: &mut World) {
    let [first, other] =
        ["2001:db8::4/128", "2001:db8::5/128"].map(|text| address(world.ens5, text));
    let link = world.ens5;
    let by = |source: Option<IpAddr>| {
        let default = route(link, "::/0", Some("fe80::1"));
        Route { source, ..default }
    };
    let refused = world.take(create(by(Some(first.address)))).unwrap_err().to_string();
    assert!(refused.contains("Invalid source address"), "it must be there first: {refused}");
    for outcome in world.apply(&[create(first), create(other), create(by(Some(first.address)))]) {
        assert_eq!(outcome.unwrap(), Outcome::Changed);
    }
    world.quiet();
    ip("address del 2001:db8::4/128 dev ens5");
    assert_eq!(world.changed(Duration::from_secs(1)), Some(Change::Event));
    let left = seen(world, &by(None)).unwrap();
    assert!(left.complete && left.protocol == Protocol::ENID);
    let replace =
        Step::Replace { old: Object::Route(by(None)), new: Object::Route(by(Some(other.address))) };
    assert_eq!(world.take(replace).unwrap(), Outcome::Changed);
    assert!(seen(world, &by(Some(other.address))).is_some() && seen(world, &by(None)).is_none());
}

fn a_hop_that_somebody_appended_outlives_ours(world: &mut World) {
    let ours = route(world.ens5, "::/0", Some("fe80::1"));
    let append = "-6 route append default via fe80::2 dev ens6 table 20001 metric 512 proto static";
    world.take(create(ours)).unwrap();
    ip(append);
    assert!(!seen(world, &ours).unwrap().complete, "it shows as one route with two hops");
    assert_eq!(world.take(delete(ours)).unwrap(), Outcome::Changed);
    let left = ip("-6 route show table 20001");
    assert!(
        left.contains("via fe80::2 dev ens6 proto static") && !left.contains("fe80::1"),
        "{left}"
    );
}

fn what_main_routes_by_no_eni_goes_there_and_the_rest_by_the_table(world: &mut World) {
    ip("link set ens5 group 20000");
    ip("address add 10.1.0.4/24 dev ens5 noprefixroute");
    ip(&format!("address add 2001:db8::4/64 dev ens5 noprefixroute {NODAD}"));
    let families = [
        ("10.1.0.4", 1, ["0.0.0.0/1", "10.8.0.0/16", "10.9.0.0/16"], "0.0.0.0/0", None),
        (
            "2001:db8::4",
            3,
            ["2000::/3", "2001:db8:8::/48", "2001:db8:9::/48"],
            "::/0",
            Some("fe80::1"),
        ),
    ];
    for (own, longest, [half, container, by_eni], everything, gateway) in families {
        let length = if own.contains(':') { 128 } else { 32 };
        let source = format!("{own}/{length}");
        let main = Rule {
            iif: Some("lo".to_owned()),
            action: RuleAction::Lookup(TableId::MAIN),
            suppress_prefix_length: Some(longest),
            suppress_group: Some(LinkGroup(20000)),
            ..rule(20010, &source)
        };
        let table = Rule { iif: Some("lo".to_owned()), ..rule(20020, &source) };
        let marked = Rule {
            mark: Some((0x0010_0000, 0xfff0_0000)),
            source: None,
            action: RuleAction::Lookup(TableId(20002)),
            ..rule(20005, &source)
        };
        let default = route(world.ens5, everything, gateway);
        let unreachable = Route {
            table: TableId(20002),
            kind: RouteKind::Unreachable,
            link: None,
            gateway: None,
            metric: u32::MAX,
            ..default
        };
        let steps =
            [create(main), create(table), create(marked), create(default), create(unreachable)];
        for outcome in world.apply(&steps) {
            assert_eq!(outcome.unwrap(), Outcome::Changed);
        }
        for (to, by) in [(half, "ens6"), (container, "ens6"), (by_eni, "ens5")] {
            ip(&format!("route add {to} dev {by} metric 600"));
        }
        let host = |prefix: &str| {
            let (network, _) = prefix.split_once('/').unwrap();
            network
                .strip_suffix(".0")
                .map_or(format!("{network}7"), |network| format!("{network}.7"))
        };
        let leaves = |to: &str| ip(&format!("route get {to} from {own}"));
        let beyond = if length == 32 { "100.1.0.7" } else { "2600::7" };
        assert!(leaves(&host(container)).contains("dev ens6"));
        assert!(
            leaves(&host(by_eni)).contains("dev ens5 table 20001"),
            "{}",
            leaves(&host(by_eni))
        );
        assert!(leaves(beyond).contains("dev ens5 table 20001"), "{}", leaves(beyond));
        assert!(leaves(&format!("{beyond} mark 0x0020abcd")).contains("dev ens5 table 20001"));
        let marked = format!("route get {beyond} from {own} mark 0x0010abcd");
        let refused = Command::new("ip").args(marked.split(' ')).output().unwrap();
        assert!(!refused.status.success(), "it is unreachable");
    }
}

fn an_address_whose_lease_lapses_is_heard_to_go(world: &mut World) {
    ip(&format!("address add 2001:db8::4/128 dev ens5 {NODAD} valid_lft 2 preferred_lft 1"));
    world.quiet();
    let wanted: IpAddr = "2001:db8::4".parse().unwrap();
    let there = |world: &mut World| {
        let addresses = world.snapshot().addresses;
        addresses.into_iter().find(|seen| seen.address.address == wanted)
    };
    assert!(there(world).is_some_and(|seen| !seen.permanent && seen.address.preferred));
    // It is told when it is not preferred any longer, and when it is gone.
    let mut heard = Vec::new();
    while there(world).is_some() && world.changed(Duration::from_secs(5)).is_some() {
        heard.push(there(world).map(|seen| seen.address.preferred));
    }
    assert_eq!(heard, [Some(false), None]);
}
