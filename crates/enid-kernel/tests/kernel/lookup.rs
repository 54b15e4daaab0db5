//! The way of a packet is the one that `ip route get` tells.

use std::net::IpAddr;
use std::process::Command;

use enid_core::object::{LinkIndex, Protocol, RouteKind, TableId};
use enid_kernel::Kernel;
use enid_kernel::lookup::{Lookup, Matched, Question, Refusal, Way};

use tokio::runtime::Builder;

use crate::world::{World, index, ip, tests};

tests! {
    a_way_is_what_ip_tells,
    the_table_and_the_route_are_the_true_ones,
    what_goes_nowhere_says_why,
    the_reverse_path_filter_counts_for_what_comes_in,
    a_question_needs_no_privilege,
}

/// Has this program ask and do nothing else.
pub(crate) const ASK: &str = "--ask";

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Two links whose addresses have tables of their own, in both families.
fn two_tables() {
    for line in [
        "address add 10.0.1.4/24 dev ens5",
        "address add 10.0.2.4/24 dev ens6 noprefixroute",
        "address add 10.0.2.5/32 dev ens6",
        "route add default via 10.0.1.1 dev ens5 metric 100 proto dhcp",
        "route add 10.0.2.0/24 dev ens6 table 20001 proto 233",
        "route add default via 10.0.2.1 dev ens6 table 20001 proto 233 metric 7",
        "rule add from 10.0.2.0/24 lookup 20001 priority 20020",
        "rule add fwmark 0x10 lookup 20001 priority 20021",
        "rule add uidrange 4711-4711 lookup 20001 priority 20022",
        "address add 2001:db8:1::4/64 dev ens5 nodad",
        "address add 2001:db8:2::4/128 dev ens6 nodad",
        "-6 route add default via fe80::1 dev ens5 metric 100 proto ra",
        "-6 route add default via fe80::1 dev ens6 table 20001 proto 233",
        "-6 rule add from 2001:db8:2::/64 lookup 20001 priority 20020",
        "-6 rule add fwmark 0x10 lookup 20001 priority 20021",
        "-6 rule add uidrange 4711-4711 lookup 20001 priority 20022",
    ] {
        ip(line);
    }
}

fn ask(world: &World, question: &Question) -> Result<Way, Refusal> {
    world.runtime.block_on(async { Lookup::open().unwrap().ask(question).await.unwrap() })
}

/// The same question in ip's words.
fn words(question: &Question, ens: &dyn Fn(LinkIndex) -> &'static str) -> String {
    let mut words = format!("-j route get {}", question.to);
    for (word, value) in [
        ("from", question.from.map(|from| from.to_string())),
        ("iif", question.iif.map(|link| ens(link).to_owned())),
        ("oif", question.oif.map(|link| ens(link).to_owned())),
        ("mark", Some(question.mark).filter(|mark| *mark != 0).map(|mark| mark.to_string())),
        ("uid", question.uid.map(|uid| uid.to_string())),
    ] {
        words.extend(value.map(|value| format!(" {word} {value}")));
    }
    words
}

/// What stands behind a name in ip's JSON.
fn told<'a>(json: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = json.split_once(&format!("\"{name}\":"))?;
    rest.split([',', '}']).next().map(|value| value.trim_matches('"'))
}

fn a_way_is_what_ip_tells(world: &mut World) {
    two_tables();
    let (ens5, ens6) = (world.ens5, world.ens6);
    let name = |link| if link == ens5 { "ens5" } else { "ens6" };
    let mut compared = 0;
    for (outside, near, first, second, other) in [
        ("203.0.113.9", "10.0.2.77", "10.0.1.4", "10.0.2.4", "10.0.2.5"),
        ("2600::9", "2001:db8:2::77", "2001:db8:1::4", "2001:db8:2::4", "2001:db8:2::4"),
    ] {
        let [outside, near, first, second, other] =
            [outside, near, first, second, other].map(address);
        let plain = Question::to(outside);
        for question in [
            plain,
            Question::out(first, outside),
            Question::out(second, outside),
            Question::out(second, near),
            Question::out(other, near),
            Question::out(first, second),
            Question { oif: Some(ens6), ..Question::out(second, outside) },
            Question { mark: 0x10, ..plain },
            Question { uid: Some(4711), ..plain },
            Question::in_by(ens5, outside, first),
            Question::in_by(ens6, outside, second),
        ] {
            let words = words(&question, &name);
            let way = ask(world, &question).unwrap_or_else(|why| panic!("{words}: {why}"));
            let json = ip(&words);
            let kind = told(&json, "type").unwrap_or("unicast");
            let expected = if kind == "local" { RouteKind::Local } else { RouteKind::Unicast };
            assert_eq!(way.kind, expected, "{json}");
            let dev = told(&json, "dev").map(index);
            assert_eq!(way.link, dev, "{json}");
            assert_eq!(way.gateway.map(|ip| ip.to_string()).as_deref(), told(&json, "gateway"));
            if question.from.is_none() {
                let source = way.source.map(|ip| ip.to_string());
                assert_eq!(source.as_deref(), told(&json, "prefsrc"), "{json}");
            }
            compared += 1;
        }
    }
    assert_eq!(compared, 22);
}

fn the_table_and_the_route_are_the_true_ones(world: &mut World) {
    two_tables();
    let matched = |destination: &str, metric, protocol| {
        let destination = destination.parse().unwrap();
        Some(Matched { destination, metric, protocol: Protocol(protocol) })
    };
    for (from, to, table, gateway, route) in [
        ("10.0.1.4", "203.0.113.9", 254, Some("10.0.1.1"), matched("0.0.0.0/0", 100, 16)),
        ("10.0.2.4", "203.0.113.9", 20001, Some("10.0.2.1"), matched("0.0.0.0/0", 7, 233)),
        ("10.0.2.4", "10.0.2.77", 20001, None, matched("10.0.2.0/24", 0, 233)),
        ("10.0.2.4", "10.0.1.4", 255, None, matched("10.0.1.4/32", 0, 2)),
        ("2001:db8:1::4", "2600::9", 254, Some("fe80::1"), matched("::/0", 100, 9)),
        ("2001:db8:2::4", "2600::9", 20001, Some("fe80::1"), matched("::/0", 1024, 233)),
    ] {
        let way = ask(world, &Question::out(address(from), address(to))).unwrap();
        assert_eq!(way.table, Some(TableId(table)), "{from} to {to}: {way:?}");
        assert_eq!(way.gateway, gateway.map(address), "{from} to {to}");
        assert_eq!(way.source, Some(address(from)));
        assert_eq!(way.route, route, "{from} to {to}");
    }
    // A socket that is bound to a link reaches everything on it, whatever the tables say.
    ip("rule add oif ens6 unreachable priority 10");
    let bound = Question { oif: Some(world.ens6), ..Question::to(address("203.0.113.9")) };
    let way = ask(world, &bound).unwrap();
    assert_eq!((way.table, way.link, way.route), (None, Some(world.ens6), None));
    // IPv4 by a neighbour of IPv6.
    ip("route add 198.51.100.0/24 via inet6 fe80::7 dev ens6");
    let way = ask(world, &Question::to(address("198.51.100.1"))).unwrap();
    assert_eq!(way.gateway, Some(address("fe80::7")));
}

fn what_goes_nowhere_says_why(world: &mut World) {
    for family in ["-4", "-6"] {
        for (kind, net) in [
            ("unreachable", ["192.0.2.0/28", "2001:db8:f::/64"]),
            ("prohibit", ["192.0.2.16/28", "2001:db8:e::/64"]),
            ("blackhole", ["192.0.2.32/28", "2001:db8:d::/64"]),
        ] {
            let net = net[usize::from(family == "-6")];
            ip(&format!("{family} route add {kind} {net} table 20009"));
        }
        ip(&format!("{family} rule add lookup 20009 priority 5"));
    }
    let ask = |to: &str| ask(world, &Question::to(address(to)));
    assert_eq!(ask("192.0.2.1"), Err(Refusal::Unreachable));
    assert_eq!(ask("192.0.2.17"), Err(Refusal::Prohibited));
    assert_eq!(ask("192.0.2.33"), Err(Refusal::Invalid), "a blackhole");
    assert_eq!(ask("198.51.100.1"), Err(Refusal::NoRoute));
    assert_eq!(ask("2600::1"), Err(Refusal::NoRoute));
    assert_eq!(ask("2001:db8:f::1"), Err(Refusal::Unreachable));
    assert_eq!(ask("2001:db8:e::1"), Err(Refusal::Prohibited));
    assert_eq!(ask("2001:db8:d::1"), Err(Refusal::Invalid), "a blackhole");
    let foreign = Question::out(address("203.0.113.1"), address("192.0.2.200"));
    let refused = self::ask(world, &foreign).unwrap_err();
    assert!(matches!(refused, Refusal::Invalid | Refusal::NoRoute), "no address here: {refused}");
    let gone = Question { iif: Some(LinkIndex(4711)), ..foreign };
    assert_eq!(self::ask(world, &gone), Err(Refusal::NoLink));
}

fn the_reverse_path_filter_counts_for_what_comes_in(world: &mut World) {
    two_tables();
    ip("rule del priority 20020");
    let outside = address("203.0.113.9");
    let question = Question::in_by(world.ens6, outside, address("10.0.2.4"));
    let filter = |value: &str| std::fs::write("/proc/sys/net/ipv4/conf/ens6/rp_filter", value);
    std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "0").unwrap();
    filter("0").unwrap();
    assert_eq!(ask(world, &question).map(|way| way.kind), Ok(RouteKind::Local));
    filter("1").unwrap();
    let refused = ask(world, &question).unwrap_err();
    assert!(matches!(refused, Refusal::ReversePath | Refusal::Invalid), "{refused}");
    filter("2").unwrap();
    assert_eq!(ask(world, &question).map(|way| way.kind), Ok(RouteKind::Local));
    ip("route del default");
    assert!(ask(world, &question).is_err(), "no way leads back at all");
}

/// What the program does when it is started to ask: the way of a packet from here to there.
pub(crate) fn ask_only(from: &str, to: &str) -> String {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let question = Question::out(address(from), address(to));
        let way = Lookup::open().unwrap().ask(&question).await.unwrap();
        // Nor does a look, with which a question is put.
        let links = Kernel::open().unwrap().snapshot(false).await.unwrap().links;
        format!("{way:?} among {} links", links.len())
    })
}

fn a_question_needs_no_privilege(world: &mut World) {
    two_tables();
    let (from, to) = ("10.0.2.4", "203.0.113.9");
    let way = ask(world, &Question::out(address(from), address(to)));
    let as_nobody = |words: &[&str]| {
        let output = Command::new("unshare").arg("--user").args(words).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (may, _) = as_nobody(&["ip", "link", "set", "ens6", "mtu", "1400"]);
    assert!(!may, "nothing may be changed");
    let this = std::env::current_exe().unwrap();
    let (answered, said) = as_nobody(&[&*this.to_string_lossy(), ASK, from, to]);
    assert!(answered && said.trim_end() == format!("{way:?} among 5 links"), "{said}");
}
