//! Steps: one answer for each, and nobody else's objects touched.

use std::time::{Duration, Instant};

use enid_core::object::{
    LinkGroup, LinkIndex, Object, Route, RouteKind, Rule, Setting, Sysctl, TableId,
};
use enid_core::plan::Step;
use enid_kernel::{Error, Outcome};

use crate::world::{World, address, create, delete, index, ip, ip_batch, route, rule, tests};

tests! {
    a_thousand_steps_all_get_an_answer,
    one_failed_step_does_not_hide_the_others,
    deleting_our_rule_leaves_the_foreign_twin,
    deleting_our_route_leaves_the_foreign_twin,
    deleting_our_unreachable_route_leaves_the_foreign_default,
    an_existing_foreign_route_is_not_overwritten,
    an_existing_foreign_address_is_not_adopted,
    our_rule_made_twice_is_there_once,
    deleting_what_is_gone_is_already_so,
    the_kernels_own_message_is_in_the_error,
    a_route_by_a_link_that_is_down_says_so,
    a_route_is_replaced_without_a_gap,
    replacing_a_route_that_is_gone_makes_none,
    what_cannot_be_said_is_not_said,
    links_are_set_up_sized_and_grouped,
    alternative_names_come_and_go,
    a_name_that_another_link_has_is_an_error,
    sysctls_are_written_in_this_namespace,
    steps_around_a_sysctl_keep_their_order,
    a_secondary_deleted_with_its_primary_is_already_gone,
    a_route_outlives_its_preferred_source,
}

fn set(link: LinkIndex, to: Setting) -> Step {
    Step::Set { link, from: None, to: Some(to) }
}

fn a_thousand_steps_all_get_an_answer(world: &mut World) {
    let link = world.ens5;
    let steps: Vec<_> = (0..1000_u32)
        .map(|n| {
            let text = format!("10.1.{}.{}/32", n / 250, n % 250);
            // Every tenth is on a link that is not there.
            create(address(if n % 10 == 3 { LinkIndex(9999) } else { link }, &text))
        })
        .collect();
    for (n, outcome) in world.apply(&steps).into_iter().enumerate() {
        match outcome {
            Ok(outcome) => assert!(n % 10 != 3 && outcome == Outcome::Changed, "step {n}"),
            Err(Error::Refused { errno: 19, .. }) => assert_eq!(n % 10, 3, "step {n}"),
            Err(error) => panic!("step {n}: {error}"),
        }
    }
    assert_eq!(ip("-4 -o address show dev ens5").lines().count(), 900);
}

fn one_failed_step_does_not_hide_the_others(world: &mut World) {
    let (link, gone) = (world.ens5, LinkIndex(9999));
    let outcomes = world.apply(&[
        create(address(link, "10.1.0.4/24")),
        create(route(gone, "10.2.0.0/16", None)),
        set(gone, Setting::Sysctl(Sysctl::AcceptRaPrefix, 0)),
        create(rule(20020, "10.1.0.4/32")),
    ]);
    let good: Vec<_> = outcomes.iter().map(Result::is_ok).collect();
    assert_eq!(good, [true, false, false, true]);
}

fn deleting_our_rule_leaves_the_foreign_twin(world: &mut World) {
    ip("rule add priority 20020 from 10.1.0.4 lookup 20001 protocol static");
    let ours = rule(20020, "10.1.0.4/32");
    assert_eq!(world.take(create(ours.clone())).unwrap(), Outcome::Changed);
    assert_eq!(ip("rule show priority 20020").lines().count(), 2);
    assert_eq!(world.take(delete(ours.clone())).unwrap(), Outcome::Changed);
    let left = ip("rule show priority 20020");
    assert!(left.lines().count() == 1 && left.contains("proto static"), "{left}");
    assert_eq!(world.take(delete(ours)).unwrap(), Outcome::AlreadySo);
    assert_eq!(ip("rule show priority 20020"), left);
}

fn deleting_our_route_leaves_the_foreign_twin(world: &mut World) {
    for (destination, family) in [("10.2.0.0/16", "-4"), ("2001:db8:2::/48", "-6")] {
        let ours = route(world.ens5, destination, None);
        let twin = format!("{destination} dev ens5 table 20001 metric 512 proto static");
        ip(&format!("{family} route add {twin}"));
        assert_eq!(world.take(delete(ours)).unwrap(), Outcome::AlreadySo);
        let shown = ip(&format!("{family} route show table 20001"));
        assert!(shown.contains("proto static"), "{shown}");
        let other_metric = Route { metric: 600, ..ours };
        assert_eq!(world.take(create(other_metric)).unwrap(), Outcome::Changed);
        assert_eq!(world.take(delete(other_metric)).unwrap(), Outcome::Changed);
        assert_eq!(ip(&format!("{family} route show table 20001")), shown);
    }
}

fn deleting_our_unreachable_route_leaves_the_foreign_default(world: &mut World) {
    let link = world.ens5;
    for everything in ["0.0.0.0/0", "::/0"] {
        let default = route(link, everything, None);
        let unreachable = Route { kind: RouteKind::Unreachable, link: None, ..default };
        world.take(create(default)).unwrap();
        assert_eq!(world.take(delete(unreachable)).unwrap(), Outcome::AlreadySo, "{everything}");
        assert_eq!(world.take(delete(default)).unwrap(), Outcome::Changed);
    }
}

fn an_existing_foreign_route_is_not_overwritten(world: &mut World) {
    for (destination, family) in [("10.2.0.0/16", "-4"), ("2001:db8:2::/48", "-6")] {
        let ours = route(world.ens5, destination, None);
        ip(&format!("{family} route add {destination} dev ens6 table 20001 metric 512"));
        let before = ip(&format!("{family} route show table 20001"));
        let outcome = world.take(create(ours));
        let expected = Object::Route(ours);
        assert!(
            matches!(&outcome, Err(Error::Exists { object, .. }) if **object == expected),
            "{outcome:?}"
        );
        assert_eq!(ip(&format!("{family} route show table 20001")), before);
    }
}

fn an_existing_foreign_address_is_not_adopted(world: &mut World) {
    for text in ["10.1.0.4/24", "2001:db8::4/64"] {
        ip(&format!("address add {text} dev ens5"));
        let outcome = world.take(create(address(world.ens5, text)));
        assert!(matches!(outcome, Err(Error::Exists { .. })), "{outcome:?}");
        let wanted = address(world.ens5, text).address;
        let snapshot = world.snapshot();
        let seen = snapshot.addresses.iter().find(|seen| seen.address.address == wanted).unwrap();
        assert_eq!(seen.protocol, None);
    }
}

fn our_rule_made_twice_is_there_once(world: &mut World) {
    let ours = rule(20020, "10.1.0.4/32");
    assert_eq!(world.take(create(ours.clone())).unwrap(), Outcome::Changed);
    assert_eq!(world.take(create(ours)).unwrap(), Outcome::AlreadySo);
    assert_eq!(ip("rule show priority 20020").lines().count(), 1);
}

fn deleting_what_is_gone_is_already_so(world: &mut World) {
    let (link, gone) = (world.ens5, LinkIndex(9999));
    let steps = [
        delete(address(link, "10.1.0.4/24")),
        delete(address(link, "2001:db8::4/64")),
        delete(address(gone, "10.1.0.4/24")),
        delete(address(gone, "2001:db8::4/64")),
        delete(route(link, "10.2.0.0/16", None)),
        delete(route(link, "2001:db8:2::/48", Some("fe80::1"))),
        delete(route(gone, "10.2.0.0/16", None)),
        delete(rule(20020, "10.1.0.4/32")),
        delete(rule(20020, "2001:db8::/64")),
        Step::Set { link, from: Some(Setting::AlternativeName("eni-0".to_owned())), to: None },
    ];
    for (outcome, step) in world.apply(&steps).into_iter().zip(&steps) {
        assert_eq!(outcome.unwrap(), Outcome::AlreadySo, "{step:?}");
    }
}

fn the_kernels_own_message_is_in_the_error(world: &mut World) {
    ip("address add 10.1.0.4/24 dev ens5");
    let outcome = world.take(create(route(world.ens5, "10.2.0.0/16", Some("10.77.0.1"))));
    let Err(error) = outcome else { panic!("{outcome:?}") };
    assert_eq!(
        error.to_string(),
        "adding a route: the gateway is not reachable by the link \
         (errno 101: Nexthop has invalid gateway)"
    );
    let exists = world.take(create(address(world.ens5, "10.1.0.4/24"))).unwrap_err().to_string();
    assert!(exists.ends_with("ipv4: Address already assigned"), "{exists}");
}

fn a_route_by_a_link_that_is_down_says_so(world: &mut World) {
    ip("link set ens5 down");
    let error = world.take(create(route(world.ens5, "10.2.0.0/16", None))).unwrap_err();
    assert!(error.to_string().contains("the link is not up"), "{error}");
}

fn a_route_is_replaced_without_a_gap(world: &mut World) {
    let both = [("0.0.0.0/0", "10.1.0."), ("::/0", "fe80::"), ("2001:db8:2::/48", "2001:db8::")];
    for address in ["10.1.0.4/24", "10.1.0.5/32", "2001:db8::4/64 nodad", "2001:db8::5/128 nodad"] {
        ip(&format!("address add {address} dev ens5"));
    }
    for (destination, network) in both {
        let on_link = route(world.ens5, destination, None);
        let by = |host| {
            let gateway = format!("{network}{host}").parse().unwrap();
            Route { gateway: Some(gateway), ..on_link }
        };
        let from = |host, route| {
            let network = if network == "fe80::" { "2001:db8::" } else { network };
            Route { source: Some(format!("{network}{host}").parse().unwrap()), ..route }
        };
        let states =
            [by(1), by(2), from(4, by(2)), from(5, by(2)), by(2), on_link, from(4, on_link), by(1)];
        world.take(create(by(1))).unwrap();
        for pair in states.windows(2) {
            let [old, new] = [pair[0], pair[1]];
            let replace = Step::Replace { old: Object::Route(old), new: Object::Route(new) };
            assert_eq!(world.take(replace).unwrap(), Outcome::Changed, "{old:?} {new:?}");
            let snapshot = world.snapshot();
            let there: Vec<_> = snapshot
                .routes
                .iter()
                .filter(|seen| seen.route.destination == new.destination)
                .filter(|seen| seen.route.table == new.table)
                .map(|seen| (seen.route, seen.complete))
                .collect();
            assert_eq!(there, [(new, true)], "instead of {old:?}");
        }
    }
}

fn replacing_a_route_that_is_gone_makes_none(world: &mut World) {
    for destination in ["10.2.0.0/16", "2001:db8:2::/48"] {
        let ours = Object::Route(route(world.ens5, destination, None));
        let outcome = world.take(Step::Replace { old: ours.clone(), new: ours });
        assert!(matches!(outcome, Err(Error::Refused { .. })), "{outcome:?}");
    }
    let there = world.snapshot().routes;
    assert!(there.iter().all(|seen| seen.route.table != TableId(20001)));
}

fn what_cannot_be_said_is_not_said(world: &mut World) {
    let link = world.ens5;
    let ours = route(link, "10.2.0.0/16", None);
    let steps = [
        delete(Route { link: None, ..ours }),
        create(address(LinkIndex(0), "10.1.0.4/24")),
        set(LinkIndex(0), Setting::Group(LinkGroup(5))),
        Step::Set { link, from: Some(Setting::Up), to: None },
        Step::Replace {
            old: Object::Route(ours),
            new: Object::Route(Route { metric: 513, ..ours }),
        },
    ];
    for (outcome, step) in world.apply(&steps).into_iter().zip(&steps) {
        assert!(matches!(outcome, Err(Error::NotPossible { .. })), "{step:?}: {outcome:?}");
    }
}

fn links_are_set_up_sized_and_grouped(world: &mut World) {
    ip("link set ens5 down");
    let link = world.ens5;
    let steps = [
        set(link, Setting::Mtu(1400)),
        set(link, Setting::Group(LinkGroup(20000))),
        set(link, Setting::Up),
    ];
    for outcome in world.apply(&steps) {
        assert_eq!(outcome.unwrap(), Outcome::Changed);
    }
    let shown = ip("link show dev ens5");
    assert!(shown.contains("mtu 1400") && shown.contains("group 20000"), "{shown}");
    assert!(shown.contains(",UP"), "{shown}");
    assert!(!ip("link show dev ens6").contains("group 20000"));
}

fn alternative_names_come_and_go(world: &mut World) {
    let link = world.ens5;
    let name = Setting::AlternativeName("eni-0123456789abcdef0".to_owned());
    assert_eq!(world.take(set(link, name.clone())).unwrap(), Outcome::Changed);
    assert_eq!(index("eni-0123456789abcdef0"), link);
    assert_eq!(world.take(set(link, name.clone())).unwrap(), Outcome::AlreadySo);
    let away = Step::Set { link, from: Some(name), to: None };
    assert_eq!(world.take(away.clone()).unwrap(), Outcome::Changed);
    assert!(!ip("link show dev ens5").contains("altname"));
    assert_eq!(world.take(away).unwrap(), Outcome::AlreadySo);
}

fn a_name_that_another_link_has_is_an_error(world: &mut World) {
    ip("link property add dev ens6 altname eni-6");
    let name = Setting::AlternativeName("eni-6".to_owned());
    let outcome = world.take(set(world.ens5, name));
    assert!(matches!(outcome, Err(Error::Refused { errno: 17, .. })), "{outcome:?}");
}

fn sysctls_are_written_in_this_namespace(world: &mut World) {
    let off = set(world.ens5, Setting::Sysctl(Sysctl::AcceptRaDefaultRoute, 0));
    // A dot in a name must not be taken for a part of the setting's name.
    ip("link set ens5 down");
    ip("link set ens5 name ens5.7");
    assert_eq!(world.take(off.clone()).unwrap(), Outcome::Changed);
    let read = |link| {
        std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{link}/accept_ra_defrtr")).unwrap()
    };
    assert_eq!((read("ens5.7").trim(), read("ens6").trim()), ("0", "1"));
    assert_eq!(world.take(off).unwrap(), Outcome::AlreadySo);
    let gone = world.take(set(LinkIndex(9999), Setting::Sysctl(Sysctl::AcceptRaPrefix, 0)));
    let gone = gone.unwrap_err().to_string();
    assert!(gone.contains("there is no such link"), "{gone}");
    ip_batch(["link set ens5.7 mtu 1200".to_owned()]);
    let error = world.take(set(world.ens5, Setting::Sysctl(Sysctl::AcceptRaPrefix, 0)));
    let Err(Error::Sysctl { path, .. }) = error else { panic!("IPv6 is off: {error:?}") };
    assert_eq!(path.to_str(), Some("/proc/sys/net/ipv6/conf/ens5.7/accept_ra_pinfo"));
}

fn steps_around_a_sysctl_keep_their_order(world: &mut World) {
    ip("link set ens5 down");
    let link = world.ens5;
    // Too small a link has no IPv6 settings at all, so only this order can succeed.
    let steps = [
        set(link, Setting::Mtu(1400)),
        set(link, Setting::Sysctl(Sysctl::AcceptRaPrefix, 0)),
        set(link, Setting::Mtu(1200)),
    ];
    ip("link set ens5 mtu 1200");
    for (outcome, step) in world.apply(&steps).into_iter().zip(&steps) {
        assert_eq!(outcome.unwrap(), Outcome::Changed, "{step:?}");
    }
    assert!(ip("link show dev ens5").contains("mtu 1200"));
}

fn a_secondary_deleted_with_its_primary_is_already_gone(world: &mut World) {
    let link = world.ens5;
    std::fs::write("/proc/sys/net/ipv4/conf/ens5/promote_secondaries", "0").unwrap();
    let [primary, secondary] = ["10.1.0.4/24", "10.1.0.5/24"].map(|text| address(link, text));
    for outcome in world.apply(&[create(primary), create(secondary)]) {
        assert_eq!(outcome.unwrap(), Outcome::Changed);
    }
    let outcomes = world.apply(&[delete(primary), delete(secondary)]);
    let outcomes: Vec<_> = outcomes.into_iter().map(Result::unwrap).collect();
    assert_eq!(outcomes, [Outcome::Changed, Outcome::AlreadySo]);
}

fn a_route_outlives_its_preferred_source(world: &mut World) {
    let link = world.ens5;
    let [primary, other] = ["10.1.0.4/24", "10.8.0.4/24"].map(|text| address(link, text));
    let sourced = Route { source: Some(other.address), ..route(link, "10.2.0.0/16", None) };
    for outcome in world.apply(&[create(primary), create(other), create(sourced), delete(other)]) {
        assert_eq!(outcome.unwrap(), Outcome::Changed);
    }
    let still = world.snapshot().routes.iter().any(|seen| seen.route == sourced);
    assert_eq!(still, ip("route show table 20001").contains("src 10.8.0.4"));
    let outcome = world.take(delete(sourced)).unwrap();
    assert_eq!(outcome, if still { Outcome::Changed } else { Outcome::AlreadySo });
    let started = Instant::now();
    let twice: Vec<Rule> = vec![rule(20020, "10.1.0.4/32"); 2];
    world.apply(&twice.into_iter().map(create).collect::<Vec<_>>());
    assert!(started.elapsed() < Duration::from_secs(2), "no answer was waited for in vain");
}
