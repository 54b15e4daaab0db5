//! The marking of connections: what stands in nftables, what others do to it, and what it costs.

use std::time::{Duration, Instant};

use enid_core::object::{Marking, TableId};
use enid_core::observed::SeenMarking;
use enid_kernel::{Change, Outcome};

use crate::scale::report;
use crate::world::{World, create, delete, ip, meanwhile, nft, rule, tests};

tests! {
    it_is_what_nft_would_have_made,
    making_it_again_replaces_what_others_made_of_it,
    whatever_others_change_makes_it_incomplete,
    tables_of_others_are_no_markings,
    deleting_what_is_gone_is_no_failure,
    it_is_looked_for_only_where_it_matters,
    its_change_is_heard_and_that_of_others_is_not,
    its_end_in_a_flood_of_others_is_heard,
    it_is_complete_while_others_write,
    those_of_the_largest_instance_are_made_and_seen,
}

const SOON: Duration = Duration::from_secs(1);

fn marking() -> Marking {
    Marking { table: TableId(20_001), link: "ens6".to_owned(), mark: 0x0020_0000 }
}

/// The same table as a person would write it.
const BY_HAND: &str = "
    table inet enid-20001 {
        chain prerouting {
            type filter hook prerouting priority dstnat + 10; policy accept;
            iifname \"ens6\" ct direction original ct status dnat ct mark set ct mark & 0x000fffff | 0x00200000
            ct status dnat ct mark & 0xfff00000 == 0x00200000 meta mark set meta mark & 0x000fffff | 0x00200000
        }
    }
";

fn listed() -> String {
    // Without the handles, which count what was ever made.
    nft("list table inet enid-20001")
}

fn seen(world: &mut World) -> Vec<SeenMarking> {
    world.snapshot_with_markings().markings
}

fn complete(world: &mut World) -> bool {
    seen(world) == [SeenMarking { marking: marking(), complete: true }]
}

fn it_is_what_nft_would_have_made(world: &mut World) {
    assert_eq!(world.take(create(marking())).unwrap(), Outcome::Changed);
    let ours = listed();
    assert!(ours.contains("ct status dnat"), "{ours}");
    assert!(complete(world));
    nft("delete table inet enid-20001");
    assert_eq!(seen(world), []);
    nft(BY_HAND);
    assert_eq!(listed(), ours);
    assert!(complete(world), "read as one of ours, whoever made it");
}

fn making_it_again_replaces_what_others_made_of_it(world: &mut World) {
    world.take(create(marking())).unwrap();
    let before = listed();
    nft("add rule inet enid-20001 prerouting drop; add chain inet enid-20001 more");
    assert_ne!(listed(), before);
    assert_eq!(world.take(create(marking())).unwrap(), Outcome::Changed);
    assert_eq!(listed(), before);
    let moved = Marking { link: "ens5".to_owned(), mark: 0x0030_0000, ..marking() };
    world.take(create(moved.clone())).unwrap();
    assert_eq!(seen(world), [SeenMarking { marking: moved, complete: true }]);
}

fn whatever_others_change_makes_it_incomplete(world: &mut World) {
    let changes = [
        "add rule inet enid-20001 prerouting counter",
        "insert rule inet enid-20001 prerouting accept",
        "flush chain inet enid-20001 prerouting",
        "flush table inet enid-20001",
        "add chain inet enid-20001 other",
        "add set inet enid-20001 s { type ipv4_addr; }",
        "add table inet enid-20001 { flags dormant; }",
        "add chain inet enid-20001 prerouting { policy drop; }",
        "delete table inet enid-20001; add table inet enid-20001",
    ];
    for change in changes {
        world.take(create(marking())).unwrap();
        assert!(complete(world), "before {change}");
        nft(change);
        let seen = seen(world);
        let [seen] = &seen[..] else { panic!("{change}: {seen:?}") };
        assert!(!seen.complete && seen.marking.table == TableId(20_001), "{change}: {seen:?}");
    }
    let other_ways = [
        ("priority dstnat + 10", "priority dstnat - 10"),
        ("prerouting priority dstnat + 10", "input priority -90"),
        ("chain prerouting", "chain elsewhere"),
        ("original", "reply"),
        ("ct status dnat", "ct status snat"),
        ("ct mark set ct mark & 0x000fffff", "ct mark set ct mark & 0x00000fff"),
        ("== 0x00200000", "!= 0x00200000"),
        ("meta mark set meta mark", "ct mark set meta mark"),
    ];
    for (from, to) in other_ways {
        nft("delete table inet enid-20001");
        let script = BY_HAND.replacen(from, to, 1);
        assert_ne!(script, BY_HAND);
        nft(&script);
        let seen = seen(world);
        assert!(matches!(&seen[..], [seen] if !seen.complete), "{to}: {seen:?}");
    }
}

fn tables_of_others_are_no_markings(world: &mut World) {
    let before = seen(world);
    nft("add table ip enid-20001; add table inet enid; add table inet enid-nat; add table ip nat");
    assert_eq!(seen(world), before);
    world.take(create(marking())).unwrap();
    nft("add chain inet enid prerouting; add rule inet enid prerouting drop");
    assert!(complete(world));
    world.take(delete(marking())).unwrap();
    let left = nft("list tables");
    assert_eq!(left.lines().count(), 4, "{left}");
}

fn deleting_what_is_gone_is_no_failure(world: &mut World) {
    assert_eq!(world.take(delete(marking())).unwrap(), Outcome::AlreadySo);
    world.take(create(marking())).unwrap();
    assert_eq!(world.take(delete(marking())).unwrap(), Outcome::Changed);
    assert_eq!(world.take(delete(marking())).unwrap(), Outcome::AlreadySo);
    // A step that fails stops none of its neighbours.
    let no_link = Marking { link: String::new(), ..marking() };
    let steps = [create(marking()), create(no_link), create(rule(20_020, "10.1.0.4/32"))];
    let outcomes = world.apply(&steps);
    let good: Vec<_> = outcomes.iter().map(Result::is_ok).collect();
    assert_eq!(good, [true, false, true], "{outcomes:?}");
}

/// How many netlink sockets for the packet filter the thread's namespace has.
fn sockets() -> usize {
    const NETLINK_NETFILTER: &str = "12";
    let all = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
    let users = all.lines().filter(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next() == Some(NETLINK_NETFILTER) && words.next() != Some("0")
    });
    users.count()
}

fn it_is_looked_for_only_where_it_matters(world: &mut World) {
    nft(BY_HAND);
    assert_eq!(world.snapshot().markings, []);
    assert_eq!(sockets(), 0, "nothing was opened");
    let marked =
        enid_core::object::Rule { mark: Some((1 << 20, Marking::MASK)), ..rule(1, "0.0.0.0/0") };
    world.take(create(marked.clone())).unwrap();
    assert_eq!(world.snapshot().markings.len(), 1, "an earlier run's rule is a trace");
    assert_eq!(sockets(), 2);
    world.take(delete(marked)).unwrap();
    assert_eq!(world.snapshot().markings, []);
    world.quiet();
    assert_eq!(sockets(), 0, "all of it was closed");
    ip("rule add fwmark 0x100000/0xfff00000 lookup 77");
    assert_eq!(world.snapshot().markings, [], "somebody else's rule is none");
}

fn its_change_is_heard_and_that_of_others_is_not(world: &mut World) {
    world.take(create(marking())).unwrap();
    assert!(complete(world));
    let changes = [
        "add rule inet enid-20001 prerouting counter",
        "add chain inet enid-20001 prerouting { policy drop; }",
        "add set inet enid-20001 s { type ipv4_addr; }",
        "delete table inet enid-20001",
        "add table inet enid-20001",
        "flush ruleset",
    ];
    for change in changes {
        world.quiet();
        nft(change);
        assert_eq!(world.changed(SOON), Some(Change::Event), "{change}");
    }
    world.quiet();
    nft(
        "add table inet other; add chain inet other enid-20001; add rule inet other enid-20001 drop",
    );
    nft("add table ip enid-20001; flush ruleset");
    assert_eq!(world.changed(Duration::from_millis(300)), None);
    world.take(create(marking())).unwrap();
    assert_eq!(world.changed(SOON), Some(Change::Event), "our own, too");
    assert_eq!(world.quiet(), 0);
}

/// In portions that an ordinary user may send.
fn many_chains_of_others(count: usize) {
    const PORTION: usize = 200;
    nft("add table inet other");
    for portion in 0..count / PORTION {
        let chain = |n| format!("add chain inet other c{n}\nadd rule inet other c{n} drop\n");
        let chains = (portion * PORTION..(portion + 1) * PORTION).map(chain);
        nft(&chains.collect::<String>());
    }
}

fn its_end_in_a_flood_of_others_is_heard(world: &mut World) {
    world.take(create(marking())).unwrap();
    assert!(complete(world));
    world.quiet();
    many_chains_of_others(10_000);
    nft("delete table inet enid-20001");
    assert_eq!(world.changed(SOON), Some(Change::Lost), "more than the socket can hold");
    assert_eq!(seen(world), []);
    world.quiet();
    nft(BY_HAND);
    assert_eq!(world.changed(SOON), Some(Change::Event), "it goes on listening");
}

fn it_is_complete_while_others_write(world: &mut World) {
    world.take(create(marking())).unwrap();
    let change = || {
        nft(
            "add table inet busy { chain c { type filter hook input priority 0; }; }; delete table inet busy",
        );
        Vec::new()
    };
    meanwhile(change, || {
        for _ in 0..50 {
            assert!(complete(world));
        }
    });
}

fn those_of_the_largest_instance_are_made_and_seen(world: &mut World) {
    let marking = |n: u32| Marking { table: TableId(20_000 + n), mark: (n + 1) << 20, ..marking() };
    let steps: Vec<_> = (0..80).map(|n| create(marking(n))).collect();
    for what in ["80 markings made", "80 markings made again"] {
        let start = Instant::now();
        let outcomes = world.apply(&steps);
        report(what, start.elapsed());
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    }
    many_chains_of_others(2_000);
    let start = Instant::now();
    world.snapshot();
    report("snapshot without markings", start.elapsed());
    let start = Instant::now();
    let seen = seen(world);
    report("snapshot with 80 markings, beside 2,000 chains", start.elapsed());
    let ours = (0..80).map(|n| SeenMarking { marking: marking(n), complete: true });
    assert_eq!(seen, ours.collect::<Vec<_>>());
}
