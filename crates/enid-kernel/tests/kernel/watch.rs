//! What changes is heard, cheaply, and what was not heard is admitted.

use std::net::SocketAddrV6;
use std::time::{Duration, Instant};

use enid_kernel::Change;
use socket2::{Domain, Protocol, Socket, Type};

use crate::world::{Far, World, create, index, ip, ip_batch, meanwhile, rule, tests};

tests! {
    every_kind_of_change_is_heard,
    a_router_is_heard_when_it_comes_and_when_it_goes,
    neighbours_that_are_no_routers_are_not_even_queued,
    nothing_is_heard_when_nothing_changes,
    our_own_changes_are_heard_too,
    a_change_before_the_wait_is_heard,
    giving_up_the_wait_loses_nothing,
    an_overrun_is_reported_as_lost,
    a_long_queue_is_one_change,
    a_flood_that_goes_on_is_heard_now_and_then_and_to_its_end,
}

const SOON: Duration = Duration::from_secs(1);

fn every_kind_of_change_is_heard(world: &mut World) {
    assert!(world.kernel.receive_buffer() >= 200_000);
    let changes = [
        "link add br0 type bridge",
        "link set ens5 group 5",
        "link property add dev ens5 altname eni-5",
        "link set ens5 mtu 1400",
        "address add 10.1.0.4/24 dev ens5",
        "address add 2001:db8::4/64 dev ens5 nodad",
        "route add 10.2.0.0/16 via 10.1.0.1",
        "-6 route add 2001:db8:2::/48 via fe80::1 dev ens5",
        "rule add priority 100 lookup 77",
        "-6 rule add priority 100 lookup 77",
        "rule del priority 100",
        "address del 10.1.0.4/24 dev ens5",
        "link set ens5 down",
        "link del br0",
    ];
    for change in changes {
        world.quiet();
        ip(change);
        assert_eq!(world.changed(SOON), Some(Change::Event), "ip {change}");
    }
}

/// Sends a router advertisement from `peer5`, without anything in it but who sends it.
fn advertise() {
    const ROUTER_LIFETIME: u8 = 30;
    const SOURCE_LINK_LAYER_ADDRESS: [u8; 2] = [1, 1];
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
    let link = index("peer5").0;
    socket.set_multicast_if_v6(link).unwrap();
    socket.set_multicast_hops_v6(255).unwrap();
    let header = [134, 0, 0, 0, 64, 0, 0, ROUTER_LIFETIME, 0, 0, 0, 0, 0, 0, 0, 0];
    let sender = [2, 0, 0, 0, 0, 1];
    let message = [&header[..], &SOURCE_LINK_LAYER_ADDRESS, &sender].concat();
    let everybody = SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, link);
    socket.send_to(&message, &everybody.into()).unwrap();
}

fn a_router_is_heard_when_it_comes_and_when_it_goes(world: &mut World) {
    for sysctl in ["accept_ra_defrtr", "accept_ra_pinfo"] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/ens5/{sysctl}"), "0").unwrap();
    }
    let far = Far::of_ens5(world);
    world.snapshot();
    far.run(advertise);
    assert_eq!(world.changed(SOON), Some(Change::Event));
    let expected = [(world.ens5, ["fe80::1".parse().unwrap()].into())];
    assert_eq!(world.snapshot().routers, expected.into());
    far.run(advertise);
    for state in ["reachable", "stale", "permanent"] {
        ip(&format!("neigh change fe80::1 dev ens5 router nud {state}"));
    }
    assert_eq!(world.quiet(), 0, "how it stands with a router that is known is no change");
    ip("neigh change fe80::1 dev ens5 router nud failed");
    assert_eq!(world.changed(SOON), Some(Change::Event));
    assert!(world.snapshot().routers.is_empty());
    ip("neigh del fe80::1 dev ens5");
    assert_eq!(world.quiet(), 0, "it had gone before");
}

fn neighbours_that_are_no_routers_are_not_even_queued(world: &mut World) {
    world.quiet();
    let change = |n: usize| {
        let neighbour = if n.is_multiple_of(2) { "10.1.0.1" } else { "fe80::1" };
        let byte = n / 2 % 256;
        format!("neigh replace {neighbour} dev ens5 lladdr 02:00:00:00:00:{byte:02x} nud permanent")
    };
    ip_batch((0..world.kernel.receive_buffer() / 500).map(change));
    assert_eq!(world.changed(Duration::from_millis(300)), None);
}

fn nothing_is_heard_when_nothing_changes(world: &mut World) {
    world.quiet();
    world.snapshot();
    ip("route show table all");
    assert_eq!(world.changed(Duration::from_millis(300)), None);
}

fn our_own_changes_are_heard_too(world: &mut World) {
    world.quiet();
    world.take(create(rule(20020, "10.1.0.4/32"))).unwrap();
    assert_eq!(world.changed(SOON), Some(Change::Event));
    assert_eq!(world.quiet(), 0);
}

fn a_change_before_the_wait_is_heard(world: &mut World) {
    world.quiet();
    ip("rule add priority 100 lookup 77");
    std::thread::sleep(Duration::from_millis(50));
    world.snapshot();
    assert_eq!(world.changed(SOON), Some(Change::Event));
}

fn giving_up_the_wait_loses_nothing(world: &mut World) {
    world.quiet();
    for round in 0..50_u64 {
        let verb = if round % 2 == 0 { "add" } else { "del" };
        let mut heard = world.changed(Duration::ZERO);
        ip(&format!("rule {verb} priority 100 lookup 77"));
        for _ in 0..20 {
            heard = heard.or_else(|| world.changed(Duration::from_micros(100 * round)));
        }
        let heard = heard.or_else(|| world.changed(SOON));
        assert_eq!(heard, Some(Change::Event), "round {round}");
    }
}

fn flood(count: usize) {
    let network = |n: usize| format!("{}.{}.{}.0/24", 20 + n / 65536, n / 256 % 256, n % 256);
    ip_batch((0..count).map(|n| format!("route add {} dev ens6 table 79", network(n))));
}

fn an_overrun_is_reported_as_lost(world: &mut World) {
    world.quiet();
    // A notification takes at least half a kilobyte of the buffer.
    flood(world.kernel.receive_buffer() / 500);
    assert_eq!(world.changed(SOON), Some(Change::Lost));
    assert_eq!(world.quiet(), 0, "all of it is covered by the one answer");
    ip("rule add priority 100 lookup 77");
    assert_eq!(world.changed(SOON), Some(Change::Event), "it goes on listening");
}

fn a_long_queue_is_one_change(world: &mut World) {
    world.quiet();
    flood(5000);
    assert_eq!(world.changed(SOON), Some(Change::Event));
    assert_eq!(world.quiet(), 0, "all of it is covered by the one answer");
    ip("rule add priority 100 lookup 77");
    assert_eq!(world.changed(SOON), Some(Change::Event), "it goes on listening");
}

fn a_flood_that_goes_on_is_heard_now_and_then_and_to_its_end(world: &mut World) {
    world.quiet();
    let mut changes = 0;
    meanwhile(
        || (0..500).flat_map(toggle).collect(),
        || {
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(500) {
                assert_eq!(world.changed(SOON), Some(Change::Event));
                changes += 1;
            }
        },
    );
    assert!((2..=100).contains(&changes), "{changes} changes in half a second");
    world.quiet();
    ip("rule add priority 100 lookup 77");
    assert_eq!(world.changed(SOON), Some(Change::Event), "it goes on listening");
}

fn toggle(n: usize) -> [String; 2] {
    ["add", "del"].map(|verb| format!("route {verb} 20.0.{}.0/24 dev ens6 table 79", n % 256))
}
