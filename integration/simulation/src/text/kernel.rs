//! A kernel snapshot and a ledger from lines that read like `ip`'s output.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::IpAddr;
use std::str::FromStr;

use enid_core::ledger::Ledger;
use enid_core::object::{
    Address, Family, LinkGroup, LinkIndex, Mac, Marking, Priority, Protocol, Route, RouteKind,
    Rule, RuleAction, Setting, Sysctl, TableId,
};
use enid_core::observed::{Link, SeenAddress, SeenMarking, SeenRoute, SeenRule, Snapshot};
use ipnet::IpNet;

use super::parse;

/// The words of a line, taken from the front.
struct Words<'a> {
    line: &'a str,
    words: std::str::SplitWhitespace<'a>,
}

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<&'a str> {
        self.words.next()
    }

    fn take(&mut self) -> &'a str {
        self.next().unwrap_or_else(|| panic!("a word is missing at the end of {:?}", self.line))
    }

    fn value<T: FromStr<Err: Debug>>(&mut self) -> T {
        parse(self.take())
    }

    fn unknown(&self, word: &str) -> ! {
        panic!("{word:?} is not understood in {:?}", self.line)
    }
}

/// Reads lines that start with `link`, `addr`, `route`, `rule`, `router` or `marking`; `no address
/// protocols` stands for a kernel without `IFA_PROTO`.
#[must_use]
pub fn snapshot(lines: &[String]) -> Snapshot {
    let mut snapshot = Snapshot { address_protocols: true, ..Snapshot::default() };
    let (links, others): (Vec<_>, Vec<_>) =
        lines.iter().partition(|line| line.starts_with("link "));
    links.into_iter().chain(others).for_each(|line| add(&mut snapshot, line));
    snapshot
}

/// Reads one such line; what it names is there already.
pub fn add(snapshot: &mut Snapshot, line: &str) {
    let mut words = Words { line, words: line.split_whitespace() };
    match words.take() {
        "link" => snapshot.links.push(link(&mut words)),
        "addr" => snapshot.addresses.push(address(&mut words, &snapshot.links)),
        "route" => snapshot.routes.push(route(&mut words, &snapshot.links)),
        "rule" => snapshot.rules.push(rule(&mut words)),
        "marking" => {
            let mut marking = Marking { table: table(words.take()), link: String::new(), mark: 0 };
            marking.link = words.take().to_owned();
            marking.mark = hexadecimal(words.take());
            let complete = words.next().is_none();
            snapshot.markings.push(SeenMarking { marking, complete });
        }
        "router" => {
            let router = words.value();
            assert_eq!(words.take(), "dev", "{line:?}");
            let link = index(&mut words, &snapshot.links);
            snapshot.routers.entry(link).or_default().insert(router);
        }
        "no" => snapshot.address_protocols = false,
        other => words.unknown(other),
    }
}

fn link(words: &mut Words<'_>) -> Link {
    let mut link = Link {
        index: LinkIndex(parse(words.take().trim_end_matches(':'))),
        name: words.take().to_owned(),
        alternative_names: Vec::new(),
        kind: None,
        driver: None,
        mac: None,
        up: false,
        carrier: true,
        mtu: 1500,
        group: LinkGroup::default(),
        master: None,
        ipv6: true,
        sysctls: BTreeMap::new(),
    };
    while let Some(word) = words.next() {
        match word {
            "up" => link.up = true,
            "down" => link.up = false,
            "no-carrier" => link.carrier = false,
            "mac" => link.mac = Some(words.value()),
            "mtu" => link.mtu = words.value(),
            "group" => link.group = LinkGroup(words.value()),
            "altname" => link.alternative_names.push(words.take().to_owned()),
            "kind" => link.kind = Some(words.take().to_owned()),
            "driver" => link.driver = Some(words.take().to_owned()),
            "no-ipv6" => link.ipv6 = false,
            key => {
                let Some(key) = Sysctl::ALL.into_iter().find(|known| known.name() == key) else {
                    words.unknown(key)
                };
                link.sysctls.insert(key, words.value());
            }
        }
    }
    link
}

fn index(words: &mut Words<'_>, links: &[Link]) -> LinkIndex {
    let name = words.take();
    let found = links.iter().find(|link| link.name == name);
    found.unwrap_or_else(|| panic!("there is no link {name:?} for {:?}", words.line)).index
}

fn address(words: &mut Words<'_>, links: &[Link]) -> SeenAddress {
    let net: IpNet = words.value();
    let mut seen = SeenAddress {
        address: Address {
            link: LinkIndex(0),
            address: net.addr(),
            prefix_length: net.prefix_len(),
            prefix_route: true,
            preferred: true,
        },
        protocol: None,
        permanent: true,
    };
    while let Some(word) = words.next() {
        match word {
            "dev" => seen.address.link = index(words, links),
            "proto" => seen.protocol = Some(protocol(words.take())),
            "noprefixroute" => seen.address.prefix_route = false,
            "dynamic" => seen.permanent = false,
            "deprecated" => seen.address.preferred = false,
            other => words.unknown(other),
        }
    }
    if seen.protocol == Some(Protocol::ENID) {
        seen.address.prefix_route = false;
    }
    seen
}

fn protocol(word: &str) -> Protocol {
    match word {
        "enid" => Protocol::ENID,
        "kernel" => Protocol::KERNEL,
        "boot" => Protocol(3),
        "static" => Protocol(4),
        "ra" => Protocol(9),
        "dhcp" => Protocol(16),
        number => Protocol(parse(number)),
    }
}

fn table(word: &str) -> TableId {
    match word {
        "main" => TableId::MAIN,
        "local" => TableId::LOCAL,
        "default" => TableId(253),
        number => TableId(parse(number)),
    }
}

fn network(word: &str) -> IpNet {
    if word == "default" {
        return parse("0.0.0.0/0");
    }
    if word.contains('/') { parse(word) } else { IpNet::from(parse::<IpAddr>(word)) }
}

fn route(words: &mut Words<'_>, links: &[Link]) -> SeenRoute {
    let (kind, destination) = match words.take() {
        "unreachable" => (RouteKind::Unreachable, words.take()),
        "local" => (RouteKind::Local, words.take()),
        "blackhole" => (RouteKind::Other(6), words.take()),
        destination => (RouteKind::Unicast, destination),
    };
    let mut seen = SeenRoute {
        route: Route {
            table: TableId::MAIN,
            destination: network(destination),
            kind,
            gateway: None,
            link: None,
            on_link: false,
            source: None,
            metric: 0,
        },
        protocol: Protocol(3),
        complete: true,
    };
    while let Some(word) = words.next() {
        match word {
            "via" => {
                let gateway: IpAddr = words.value();
                if gateway.is_ipv6() && destination == "default" {
                    seen.route.destination = parse("::/0");
                }
                seen.route.gateway = Some(gateway);
            }
            "dev" => seen.route.link = Some(index(words, links)),
            "table" => seen.route.table = table(words.take()),
            "src" => seen.route.source = Some(words.value()),
            "metric" => seen.route.metric = words.value(),
            "onlink" => seen.route.on_link = true,
            "proto" => seen.protocol = protocol(words.take()),
            // A property that the core's nouns do not say.
            "mtu" => {
                words.take();
                seen.complete = false;
            }
            other => words.unknown(other),
        }
    }
    seen
}

fn rule(words: &mut Words<'_>) -> SeenRule {
    let mut seen = SeenRule {
        rule: Rule { action: RuleAction::Other(0), ..Rule::lookup(Family::V4, 0, TableId(0)) },
        protocol: Protocol(0),
        complete: true,
    };
    let rule = &mut seen.rule;
    while let Some(word) = words.next() {
        match word {
            "inet6" => rule.family = Family::V6,
            "pref" => rule.priority = Priority(words.value()),
            "from" => {
                let source = words.take();
                rule.source = (source != "all").then(|| network(source));
                if matches!(rule.source, Some(IpNet::V6(_))) {
                    rule.family = Family::V6;
                }
            }
            "to" => rule.destination = Some(network(words.take())),
            "iif" => rule.iif = Some(words.take().to_owned()),
            "oif" => rule.oif = Some(words.take().to_owned()),
            "fwmark" => {
                let (mark, mask) = words.take().split_once('/').expect("a mark has a mask");
                rule.mark = Some((hexadecimal(mark), hexadecimal(mask)));
            }
            "lookup" => rule.action = RuleAction::Lookup(table(words.take())),
            "suppress_prefixlength" => rule.suppress_prefix_length = Some(words.value()),
            "suppress_ifgroup" => rule.suppress_group = Some(LinkGroup(words.value())),
            "proto" => seen.protocol = protocol(words.take()),
            other => words.unknown(other),
        }
    }
    seen
}

fn hexadecimal(word: &str) -> u32 {
    u32::from_str_radix(word.trim_start_matches("0x"), 16)
        .unwrap_or_else(|error| panic!("{word:?}: {error}"))
}

/// Reads `address MAC IP`, `table MAC ID`, `original MAC SETTING VALUE`, `hold MAC` and `hold all`.
#[must_use]
pub fn ledger(lines: &[String]) -> Ledger {
    let mut ledger = Ledger::default();
    for line in lines {
        let mut words = Words { line, words: line.split_whitespace() };
        match (words.take(), words.take()) {
            ("hold", "all") => ledger.released_all = true,
            ("hold", mac) => _ = ledger.released.insert(parse(mac)),
            ("address", mac) => _ = ledger.addresses.insert((parse(mac), words.value())),
            ("table", mac) => {
                _ = ledger.tables.insert(parse::<Mac>(mac), TableId(words.value()));
            }
            ("original", mac) => {
                let setting = match words.take() {
                    "mtu" => Setting::Mtu(words.value()),
                    "altname" => Setting::AlternativeName(words.take().to_owned()),
                    key => {
                        let key = Sysctl::ALL.into_iter().find(|known| known.name() == key);
                        Setting::Sysctl(key.expect("a setting that enid keeps"), words.value())
                    }
                };
                ledger.originals.entry(parse(mac)).or_default().insert(setting);
            }
            (other, _) => words.unknown(other),
        }
    }
    ledger
}

/// The lines that [`ledger`] reads.
#[must_use]
pub fn ledger_lines(ledger: &Ledger) -> Vec<String> {
    let mut lines: Vec<String> =
        ledger.addresses.iter().map(|(mac, ip)| format!("address {mac} {ip}")).collect();
    lines.extend(ledger.tables.iter().map(|(mac, table)| format!("table {mac} {table}")));
    for (mac, settings) in &ledger.originals {
        lines.extend(settings.iter().map(|setting| match setting {
            Setting::Mtu(mtu) => format!("original {mac} mtu {mtu}"),
            Setting::AlternativeName(name) => format!("original {mac} altname {name}"),
            Setting::Sysctl(key, value) => format!("original {mac} {} {value}", key.name()),
            Setting::Up | Setting::Group(_) => panic!("{setting:?} is never put back"),
        }));
    }
    lines.extend(ledger.released.iter().map(|mac| format!("hold {mac}")));
    lines.extend(ledger.released_all.then(|| "hold all".to_owned()));
    lines
}
