//! A snapshot shows what `ip` shows, and says so where our nouns cannot.

use enid_core::object::{Family, LinkGroup, LinkIndex, Mac, Protocol, RouteKind, Sysctl, TableId};
use enid_core::observed::{Link, SeenRoute, Snapshot};
use enid_kernel::Kernel;

use crate::world::{World, index, ip, ip_batch, meanwhile, tests};

tests! {
    links_are_shown_as_ip_shows_them,
    the_sysctls_of_a_link_come_without_reading_files,
    ipv6_is_off_where_it_is_disabled_or_the_mtu_is_too_small,
    routers_are_the_neighbours_that_said_so_and_can_be_reached,
    addresses_are_known_by_their_own_side,
    a_route_with_several_next_hops_is_visible_and_incomplete,
    a_route_that_says_more_than_ours_is_visible_and_incomplete,
    a_rule_that_says_more_than_ours_is_visible_and_incomplete,
    routes_wiped_by_link_down_are_seen_in_the_next_snapshot,
    a_rule_outlives_its_link,
    foreign_notifications_never_end_a_dump,
    a_snapshot_amid_address_changes_is_complete_or_an_error,
    links_that_come_and_go_do_not_break_a_snapshot,
    two_snapshots_at_once_are_both_complete,
    a_snapshot_given_up_does_not_spoil_the_next,
}

fn link(snapshot: &Snapshot, name: &str) -> Link {
    snapshot.links.iter().find(|link| link.name == name).unwrap().clone()
}

fn in_table(snapshot: &Snapshot, table: u32) -> Vec<SeenRoute> {
    let in_it = |seen: &&SeenRoute| seen.route.table == TableId(table);
    snapshot.routes.iter().filter(in_it).cloned().collect()
}

fn links_are_shown_as_ip_shows_them(world: &mut World) {
    ip("link add br0 type bridge");
    ip("link set peer5 master br0");
    ip("link set ens5 mtu 1400 group 20000 address 02:00:00:00:00:05");
    ip("link property add dev ens5 altname eni-0123456789abcdef0 altname device-number-0.0");
    ip("link set peer6 down");
    let snapshot = world.snapshot();
    assert_eq!(snapshot.links.len(), ip("-o link show").lines().count());
    let ens5 = link(&snapshot, "ens5");
    assert_eq!(ens5.index, world.ens5);
    assert_eq!(ens5.alternative_names, ["eni-0123456789abcdef0", "device-number-0.0"]);
    assert_eq!(ens5.kind.as_deref(), Some("veth"));
    assert_eq!(ens5.mac, Some(Mac([2, 0, 0, 0, 0, 5])));
    assert_eq!((ens5.mtu, ens5.group), (1400, LinkGroup(20000)));
    assert!(ens5.up && ens5.carrier);
    assert_eq!(link(&snapshot, "peer5").master, Some(index("br0")));
    let ens6 = link(&snapshot, "ens6");
    assert!(ens6.up && !ens6.carrier, "its peer is down");
    assert!(!link(&snapshot, "peer6").up);
    assert_eq!(link(&snapshot, "br0").kind.as_deref(), Some("bridge"));
    let lo = link(&snapshot, "lo");
    assert_eq!((lo.kind, lo.mac), (None, None), "zeros are no address");
}

fn the_sysctls_of_a_link_come_without_reading_files(world: &mut World) {
    let set = |sysctl: Sysctl, value: i32| {
        let family = if sysctl.family() == Family::V4 { "ipv4" } else { "ipv6" };
        // This thread writes the files of this thread's namespace.
        let path = format!("/proc/sys/net/{family}/conf/ens5/{}", sysctl.name());
        std::fs::write(path, value.to_string()).unwrap();
    };
    for sysctl in Sysctl::ALL {
        set(sysctl, 0);
    }
    for sysctl in Sysctl::ALL {
        let before = link(&world.snapshot(), "ens5").sysctls;
        assert_eq!(before.into_values().collect::<Vec<_>>(), [0; Sysctl::ALL.len()]);
        set(sysctl, 1);
        let after = link(&world.snapshot(), "ens5").sysctls;
        for (other, value) in after {
            assert_eq!(value, i32::from(other == sysctl), "{other:?} after {sysctl:?} was set");
        }
        set(sysctl, 0);
    }
}

fn ipv6_is_off_where_it_is_disabled_or_the_mtu_is_too_small(world: &mut World) {
    let mut ipv6 = |name| link(&world.snapshot(), name).ipv6;
    assert!(ipv6("ens5") && ipv6("lo"));
    let disable = |name, value| {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), value).unwrap();
    };
    disable("ens5", "1");
    assert!(!ipv6("ens5") && ipv6("ens6"));
    disable("ens5", "0");
    assert!(ipv6("ens5"));
    ip("link set ens5 mtu 1279");
    assert!(!ipv6("ens5"));
    ip("link set ens5 mtu 1280");
    assert!(ipv6("ens5"));
    disable("all", "1");
    assert!(!ipv6("ens5") && !ipv6("ens6"));
}

fn routers_are_the_neighbours_that_said_so_and_can_be_reached(world: &mut World) {
    assert!(world.snapshot().routers.is_empty());
    let neighbours = [
        "fe80::1 dev ens5 router nud stale",
        "fe80::2 dev ens5 router nud reachable",
        "fe80::3 dev ens5 nud stale",
        "fe80::4 dev ens5 router nud failed",
        "fe80::5 dev ens5 router nud noarp",
        "10.1.0.1 dev ens5 router nud permanent",
        "fe80::1 dev ens6 router nud permanent",
    ];
    for neighbour in neighbours {
        ip(&format!("neigh add {neighbour} lladdr 02:00:00:00:00:01"));
    }
    let there = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let expected =
        [(world.ens5, there(&["fe80::1", "fe80::2"])), (world.ens6, there(&["fe80::1"]))];
    assert_eq!(world.snapshot().routers, expected.into());
    ip("neigh change fe80::1 dev ens5 router nud failed");
    assert_eq!(world.snapshot().routers[&world.ens5], there(&["fe80::2"]));
}

fn addresses_are_known_by_their_own_side(world: &mut World) {
    ip("address add 10.1.0.4 peer 10.9.0.1/32 dev ens5");
    ip("address add 2001:db8::4 peer 2001:db8::9/128 dev ens5 nodad");
    ip("address add 10.1.0.7/24 dev ens5 valid_lft 100 preferred_lft 50");
    ip("address add 10.1.0.8/24 dev ens5 noprefixroute");
    ip("address add 2001:db8::8/64 dev ens5 nodad preferred_lft 0");
    let snapshot = world.snapshot();
    let seen = |text: &str| {
        let text: std::net::IpAddr = text.parse().unwrap();
        snapshot.addresses.iter().find(|seen| seen.address.address == text).unwrap().clone()
    };
    assert_eq!(seen("10.1.0.4").protocol, None);
    assert!(seen("2001:db8::4").permanent);
    let leased = seen("10.1.0.7");
    assert!(!leased.permanent && leased.address.preferred && leased.address.prefix_route);
    assert!(!seen("10.1.0.8").address.prefix_route);
    assert!(!seen("2001:db8::8").address.preferred);
    assert!(snapshot.address_protocols, "the loopback addresses of this kernel have one");
}

fn a_route_with_several_next_hops_is_visible_and_incomplete(world: &mut World) {
    ip("address add 10.1.0.4/24 dev ens5");
    ip("address add 10.2.0.4/24 dev ens6");
    ip("route add 10.9.0.0/16 table 77 nexthop via 10.1.0.1 nexthop via 10.2.0.1 weight 3");
    ip(
        "-6 route add 2001:db8:9::/48 table 77 nexthop via fe80::1 dev ens5 nexthop via fe80::2 dev ens6",
    );
    let routes = in_table(&world.snapshot(), 77);
    assert_eq!(routes.len(), 2, "{routes:#?}");
    for (seen, gateway) in routes.iter().zip(["10.1.0.1", "fe80::1"]) {
        assert!(!seen.complete);
        assert_eq!(seen.route.link, Some(world.ens5));
        assert_eq!(seen.route.gateway, Some(gateway.parse().unwrap()));
    }
}

fn a_route_that_says_more_than_ours_is_visible_and_incomplete(world: &mut World) {
    ip("address add 10.1.0.4/24 dev ens5");
    ip("nexthop add id 5 via 10.1.0.1 dev ens5");
    let foreign = [
        "10.20.0.0/16 nhid 5",
        "10.21.0.0/16 via 10.1.0.1 mtu 1300",
        "10.22.0.0/16 via 10.1.0.1 tos 0x10",
        "10.23.0.0/16 via inet6 fe80::1 dev ens5",
        "10.24.0.0/16 via 10.1.0.1 realm 3",
        "2001:db8:9::/48 via fe80::1 dev ens5 pref high",
        "2001:db8:a::/48 from 2001:db8:b::/48 via fe80::1 dev ens5",
        "2001:db8:c::/48 encap seg6 mode encap segs 2001:db8:d::1 via fe80::1 dev ens5",
    ];
    for (place, text) in foreign.into_iter().enumerate() {
        // Not every kernel can do all of them; those that are there must show.
        let table = 100 + u32::try_from(place).unwrap();
        let family = if text.starts_with("2001") { "-6" } else { "-4" };
        let arguments = format!("{family} route add {text} table {table}");
        let added = std::process::Command::new("ip").args(arguments.split(' ')).output().unwrap();
        if place < 5 {
            assert!(added.status.success(), "{text}");
        }
        let routes = in_table(&world.snapshot(), table);
        assert_eq!(routes.len(), usize::from(added.status.success()), "{text}");
        assert!(routes.iter().all(|seen| !seen.complete), "{text}: {routes:#?}");
    }
    ip("route add 10.30.0.0/16 via 10.1.0.1 table 200 proto static");
    ip("route add blackhole 10.31.0.0/16 table 200");
    let plain = in_table(&world.snapshot(), 200);
    assert!(plain.iter().all(|seen| seen.complete), "{plain:#?}");
    assert_eq!(plain[0].protocol, Protocol(4));
    assert_eq!(plain[1].route.kind, RouteKind::Other(6));
}

fn a_rule_that_says_more_than_ours_is_visible_and_incomplete(world: &mut World) {
    let foreign = [
        "not from 10.1.0.0/16 lookup 77",
        "from 10.1.0.0/16 tos 0x10 lookup 77",
        "from 10.1.0.0/16 ipproto tcp dport 22 lookup 77",
        "from 10.1.0.0/16 uidrange 0-0 lookup 77",
        "from 10.1.0.0/16 goto 32766",
        "from all l3mdev lookup unspec",
    ];
    let usual = world.snapshot().rules;
    assert!(usual.iter().all(|seen| seen.complete), "{usual:#?}");
    assert_eq!(usual.len(), 5, "three for IPv4, two for IPv6");
    for (place, text) in foreign.into_iter().take(5).enumerate() {
        let priority = u32::try_from(1000 + place).unwrap();
        ip(&format!("rule add priority {priority} {text}"));
        let rules = world.snapshot().rules;
        let seen = rules.iter().find(|seen| seen.rule.priority.0 == priority).unwrap();
        assert!(!seen.complete, "{text}: {seen:#?}");
    }
}

fn routes_wiped_by_link_down_are_seen_in_the_next_snapshot(world: &mut World) {
    ip("address add 10.1.0.4/24 dev ens5");
    ip("route add default via 10.1.0.1 dev ens5 table 20001");
    assert_eq!(in_table(&world.snapshot(), 20001).len(), 1);
    world.quiet();
    ip("link set ens5 down");
    assert!(world.quiet() > 0, "the kernel says nothing about the routes, but the link is told");
    assert_eq!(in_table(&world.snapshot(), 20001), []);
}

fn a_rule_outlives_its_link(world: &mut World) {
    ip("rule add priority 500 oif ens5 lookup 77");
    ip("link delete ens5");
    let rules = world.snapshot().rules;
    let seen = rules.iter().find(|seen| seen.rule.priority.0 == 500).unwrap();
    assert_eq!(seen.rule.oif.as_deref(), Some("ens5"));
    assert!(ip("rule show priority 500").contains("detached"));
}

fn many_routes(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|n| format!("route add 10.{}.{}.0/24 dev ens5 table 78", 64 + n / 256, n % 256))
}

fn foreign_notifications_never_end_a_dump(world: &mut World) {
    ip_batch(many_routes(3000));
    let changes = || {
        let each = |n| {
            let add = format!("route add 172.16.{n}.0/24 dev ens6 table 79");
            [add, format!("route del 172.16.{n}.0/24 dev ens6 table 79")]
        };
        (0..200).flat_map(each).collect()
    };
    meanwhile(changes, || {
        for _ in 0..30 {
            assert_eq!(in_table(&world.snapshot(), 78).len(), 3000);
        }
    });
}

fn a_snapshot_amid_address_changes_is_complete_or_an_error(world: &mut World) {
    ip_batch((0..2000).map(|n| format!("address add 10.{}.{}.1/32 dev ens5", n / 256, n % 256)));
    let changes = || {
        (0..50)
            .map(|n| format!("address add 172.16.0.{n}/32 dev ens6"))
            .chain((0..50).map(|n| format!("address del 172.16.0.{n}/32 dev ens6")))
            .collect()
    };
    let mut complete = 0;
    meanwhile(changes, || {
        for _ in 0..20 {
            let snapshot = match world.runtime.block_on(world.kernel.snapshot(false)) {
                Ok(snapshot) => snapshot,
                Err(enid_kernel::Error::Interrupted { .. }) => continue,
                Err(error) => panic!("{error:?}"),
            };
            let on_ens5 = |seen: &&_| -> bool { link_of(seen) == world.ens5 };
            assert_eq!(snapshot.addresses.iter().filter(on_ens5).count(), 2000);
            complete += 1;
        }
    });
    let after = world.snapshot();
    let on_ens5 = |seen: &&_| -> bool { link_of(seen) == world.ens5 };
    assert_eq!(after.addresses.iter().filter(on_ens5).count(), 2000, "{complete} amid changes");
}

fn link_of(seen: &enid_core::observed::SeenAddress) -> LinkIndex {
    seen.address.link
}

fn links_that_come_and_go_do_not_break_a_snapshot(world: &mut World) {
    let changes = || {
        [
            "link add x0 type veth peer name y0",
            "link set x0 up",
            "address add 10.7.0.1/24 dev x0",
            "link del x0",
        ]
        .map(str::to_owned)
        .to_vec()
    };
    meanwhile(changes, || {
        for _ in 0..50 {
            let snapshot = match world.runtime.block_on(world.kernel.snapshot(false)) {
                Ok(snapshot) => snapshot,
                Err(enid_kernel::Error::Interrupted { .. }) => continue,
                Err(error) => panic!("{error:?}"),
            };
            assert_eq!(link(&snapshot, "ens5").index, world.ens5);
        }
    });
}

fn two_snapshots_at_once_are_both_complete(world: &mut World) {
    ip_batch(many_routes(3000));
    let (one, other) = world.runtime.block_on(async {
        let mut second = Kernel::open().unwrap();
        tokio::join!(world.kernel.snapshot(false), second.snapshot(false))
    });
    assert_eq!(in_table(&one.unwrap(), 78).len(), 3000);
    assert_eq!(in_table(&other.unwrap(), 78).len(), 3000);
}

fn a_snapshot_given_up_does_not_spoil_the_next(world: &mut World) {
    ip_batch(many_routes(3000));
    for polls in 0..12 {
        world.runtime.block_on(async {
            let mut snapshot = std::pin::pin!(world.kernel.snapshot(false));
            for _ in 0..polls {
                let _ = futures_poll(snapshot.as_mut()).await;
                tokio::task::yield_now().await;
            }
        });
        assert_eq!(in_table(&world.snapshot(), 78).len(), 3000, "given up after {polls} polls");
    }
}

/// Polls once.
async fn futures_poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> bool {
    std::future::poll_fn(|context| std::task::Poll::Ready(future.as_mut().poll(context).is_ready()))
        .await
}
