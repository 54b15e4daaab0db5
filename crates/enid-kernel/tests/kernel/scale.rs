//! The largest instance: 24 ENIs with 64 addresses each, to be timed with `--nocapture` in release.

use std::collections::BTreeSet;
use std::time::Instant;

use enid_core::object::{Object, Route, Rule, TableId};
use enid_core::plan::Step;
use enid_kernel::Outcome;

use crate::world::{World, address, index, ip_batch, meanwhile, route, rule, tests};

tests! {
    the_largest_instance_is_made_and_unmade,
    endless_changes_keep_nobody_from_seeing_the_largest_instance,
}

const ENIS: u32 = 24;

fn links(world: &mut World) {
    let both = |n| {
        let add = format!("link add eni{n} type veth peer name far{n}");
        let up = |link| format!("link set {link}{n} addrgenmode none up");
        [add, up("eni"), up("far")]
    };
    ip_batch((0..ENIS).flat_map(both));
    world.quiet();
}

fn the_largest_instance_is_made_and_unmade(world: &mut World) {
    links(world);
    let before = world.snapshot();
    let mut objects = Vec::new();
    for n in 0..ENIS {
        let link = index(&format!("eni{n}"));
        let host = |host| Object::Address(address(link, &format!("10.{n}.0.{host}/32")));
        objects.extend((0..64).map(host));
        let table = TableId(20000 + n);
        let routes = (0..6).map(|m| route(link, &format!("10.{n}.{m}.0/24"), None));
        objects.extend(routes.map(|route| Object::Route(Route { table, ..route })));
        for priority in [20000, 20010, 20020] {
            let oif = (priority == 20000).then(|| format!("eni{n}"));
            let rule = rule(priority, &format!("10.{n}.0.0/24"));
            objects.push(Object::Rule(Rule { oif, ..rule }));
        }
    }
    let take = |world: &mut World, what: &str, steps: &[Step]| {
        let start = Instant::now();
        let outcomes = world.apply(steps);
        report(&format!("{} {what}", steps.len()), start.elapsed());
        for outcome in outcomes {
            assert_eq!(outcome.unwrap(), Outcome::Changed);
        }
    };
    take(world, "made", &objects.iter().cloned().map(Step::Create).collect::<Vec<_>>());
    let start = Instant::now();
    let there = world.snapshot();
    report("snapshot", start.elapsed());
    assert_eq!(there.addresses.len(), before.addresses.len() + 24 * 64);
    take(world, "unmade", &objects.into_iter().rev().map(Step::Delete).collect::<Vec<_>>());
    assert_eq!(world.snapshot(), before);
}

/// A dump of so many addresses takes several datagrams, and is interrupted by each change meanwhile.
fn endless_changes_keep_nobody_from_seeing_the_largest_instance(world: &mut World) {
    links(world);
    let add = |n, m| format!("address add 10.{n}.{}.{}/32 dev eni{n}", m / 64, m % 64);
    ip_batch((0..ENIS).flat_map(|n| (0..64).map(move |m| add(n, m))));
    let ens5 = world.ens5;
    let look = |world: &mut World, when: &str| -> BTreeSet<_> {
        let start = Instant::now();
        let there = world.snapshot().addresses;
        report(&format!("snapshot, {when}"), start.elapsed());
        let others = there.iter().map(|seen| seen.address).filter(|seen| seen.link != ens5);
        others.map(|seen| (seen.link, seen.address)).collect()
    };
    let before = look(world, "quiet");
    let storm = || {
        let both = ["add", "del"].map(|verb| format!("address {verb} 192.0.2.1/32 dev ens5"));
        both.into_iter().cycle().take(100_000).collect()
    };
    meanwhile(storm, || {
        for _ in 0..10 {
            let there = look(world, "stormy");
            assert!(there == before, "{} addresses of {}", there.len(), before.len());
        }
    });
}

#[expect(clippy::print_stderr, reason = "a figure for whoever asks; a test does not judge time")]
pub(crate) fn report(what: &str, took: std::time::Duration) {
    eprintln!("{what}: {took:?}");
}
