//! The largest instance: 24 ENIs with 64 addresses each, to be timed with `--nocapture` in release.

use std::time::Instant;

use enid_core::object::{Object, Route, Rule, TableId};
use enid_core::plan::Step;
use enid_kernel::Outcome;

use crate::world::{World, address, index, ip_batch, route, rule, tests};

tests! {
    the_largest_instance_is_made_and_unmade,
}

const ENIS: u32 = 24;

fn the_largest_instance_is_made_and_unmade(world: &mut World) {
    let both = |n| {
        let add = format!("link add eni{n} type veth peer name far{n}");
        let up = |link| format!("link set {link}{n} addrgenmode none up");
        [add, up("eni"), up("far")]
    };
    ip_batch((0..ENIS).flat_map(both));
    world.quiet();
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

#[expect(clippy::print_stderr, reason = "a figure for whoever asks; a test does not judge time")]
pub(crate) fn report(what: &str, took: std::time::Duration) {
    eprintln!("{what}: {took:?}");
}
