//! Whole polls of arbitrary answers, each recorded, decided on and carried out: nothing that the
//! guard refuses is ever planned, nothing foreign is touched, and nothing grows without bound.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use enid_control::status::Eni;
use enid_core::choice::Prefixes;
use enid_core::config::{Config, PrimaryRules};
use enid_core::decide::{Decision, decide};
use enid_core::eni::Facts;
use enid_core::ledger::Ledger;
use enid_core::memory::Memory;
use enid_core::metadata::facts::Metadata;
use enid_core::metadata::{Answer, Associations, Depth, EniAnswers, EniKey, Failure, Poll};
use enid_core::object::{Address, LinkIndex, Mac, Object, Route, RouteKind, TableId};
use enid_core::observed::{Observed, Snapshot};
use enid_core::plan::Step;
use enid_core::time::Instant;
use ipnet::IpNet;

use crate::metadata::assert_bounded;
use crate::taker::Taker;
use crate::text::assert_printable;
use crate::world::{self, MACS};

/// No more passes than this of one input.
const PASSES: usize = 6;

/// The bytes are choices: a configuration, then what the cloud says and when it is asked.
pub fn poll(bytes: &[u8]) {
    let mut taker = Taker::new(bytes);
    let mut instance = Instance::new(&mut taker);
    let mut passes = 0;
    while passes < PASSES && !taker.is_empty() {
        match taker.byte() % 8 {
            0..=3 => instance.cloud.change(&mut taker),
            4 => instance.plug(&mut taker),
            5 if taker.flag() => instance.restart(),
            _ => {
                passes += 1;
                instance.pass(taker.byte());
            }
        }
    }
    instance.pass(5);
    instance.pass(5);
}

/// What each ENI's keys answer.
struct Cloud {
    mac: Answer,
    macs: Answer,
    enis: BTreeMap<Mac, BTreeMap<EniKey, Answer>>,
}

struct Instance {
    cloud: Cloud,
    kernel: Snapshot,
    config: Config,
    metadata: Metadata,
    memory: Memory,
    ledger: Ledger,
    now: Instant,
}

fn text(text: impl ToString) -> Answer {
    Answer::Text(text.to_string())
}

impl Cloud {
    /// Two ENIs in two subnets, and nothing wrong.
    fn sane() -> Self {
        let eni = |n: usize| {
            let keys = [
                (EniKey::DeviceNumber, n.to_string()),
                (EniKey::InterfaceId, format!("eni-{n}")),
                (EniKey::Mac, MACS[n].to_string()),
                (EniKey::SubnetIpv4, format!("10.0.{}.0/24", n + 1)),
                (EniKey::SubnetIpv6, format!("2001:db8:0:{}::/64", n + 1)),
                (EniKey::SubnetId, format!("subnet-{n}")),
                (EniKey::VpcId, "vpc-1".to_owned()),
                (EniKey::VpcIpv4, "10.0.0.0/16".to_owned()),
                (EniKey::LocalIpv4s, format!("10.0.{}.4", n + 1)),
            ];
            (MACS[n], keys.map(|(key, value)| (key, text(value))).into())
        };
        let macs = format!("{}/\n{}/\n{}/", MACS[0], MACS[1], MACS[2]);
        Self { mac: text(MACS[0]), macs: text(macs), enis: [eni(0), eni(1)].into() }
    }

    fn change(&mut self, taker: &mut Taker<'_>) {
        let keys: Vec<EniKey> = EniKey::LISTS.into_iter().chain(EniKey::CONSTANTS).collect();
        match taker.byte() % 16 {
            0 => self.mac = answer(taker),
            1 => self.macs = answer(taker),
            2 => {
                let (from, to) = (taker.one(&MACS), taker.one(&MACS));
                if let Some(keys) = self.enis.get(&from).cloned() {
                    self.enis.insert(to, keys);
                }
            }
            3 => _ = self.enis.remove(&taker.one(&MACS)),
            4 => {
                let (mac, key) = (taker.one(&MACS), taker.one(&keys));
                self.enis.entry(mac).or_default().remove(&key);
            }
            _ => {
                let (mac, key) = (taker.one(&MACS), taker.one(&keys));
                let value = answer(taker);
                self.enis.entry(mac).or_default().insert(key, value);
            }
        }
    }

    fn poll(&self, at: Instant, depth: Depth, of: impl Iterator<Item = Mac>) -> Poll {
        let eni = |mac: Mac| {
            let keys = self.enis.get(&mac).cloned().unwrap_or_default();
            let listing = match keys.is_empty() {
                true => Answer::NotFound,
                false => {
                    text(keys.keys().fold(String::new(), |list, key| list + key.name() + "\n"))
                }
            };
            (mac, EniAnswers { depth, listing, keys, associations: Associations::Unknown })
        };
        Poll {
            at,
            mac: Some(self.mac.clone()),
            macs: Some(self.macs.clone()),
            enis: of.map(eni).collect(),
        }
    }
}

/// What a key answers: mostly a list of more or less sensible entries.
fn answer(taker: &mut Taker<'_>) -> Answer {
    match taker.byte() % 16 {
        0 => Answer::NotFound,
        1 => Answer::Failed(
            [Failure::Timeout, Failure::Forbidden][usize::from(taker.flag())].clone(),
        ),
        2 => Answer::Text(taker.text()),
        3 => {
            // Many that differ in their last bytes.
            let (template, count) = (taker.byte(), u16::from(taker.byte()));
            // Seldom more than a list may have.
            let count = if count == 255 { 1100 } else { count / 8 };
            Answer::Text(
                (0..count).fold(String::new(), |list, n| list + &numbered(template, n) + "\n"),
            )
        }
        n => {
            let count = n % 4 + 1;
            Answer::Text((0..count).fold(String::new(), |list, _| list + &entry(taker) + "\n"))
        }
    }
}

fn numbered(template: u8, n: u16) -> String {
    let [high, low] = n.to_be_bytes();
    match template % 6 {
        0 => format!("10.0.{}.{low}", high % 4),
        1 => format!("10.{high}.{low}.0/28"),
        2 => format!("10.0.2.{low}/{}", 20 + high % 13),
        3 => format!("2001:db8:0:2::{n:x}"),
        4 => format!("2001:db8:0:2:{n:x}::/80"),
        _ => format!("\u{202e}{n}\u{1b}[31m"),
    }
}

/// An entry: of a list that tells what is dangerous, or made of bytes.
fn entry(taker: &mut Taker<'_>) -> String {
    const DANGEROUS: [&str; 28] = [
        "0.0.0.0/0",
        "::/0",
        "0.0.0.0/1",
        "128.0.0.0/1",
        "::/1",
        "8000::/1",
        "10.0.0.0/8",
        "10.0.1.4",
        "10.0.1.4/32",
        "10.0.1.0/24",
        "10.0.1.1",
        "10.0.2.1/32",
        "10.0.2.4",
        "10.0.2.4/32",
        "10.0.2.4/31",
        "10.0.2.0/24",
        "169.254.169.254",
        "169.254.0.0/16",
        "fd00:ec2::254",
        "fd00:ec2::/32",
        "127.0.0.1",
        "127.0.0.0/8",
        "224.0.0.0/4",
        "255.255.255.255",
        "fe80::1",
        "fe80::/64",
        "::1",
        "ff02::1",
    ];
    let mut entry = String::new();
    // Writing to a String cannot fail.
    let _ = match taker.byte() % 8 {
        0 | 1 => write!(entry, "{}", taker.one(&DANGEROUS)),
        2 => {
            let [subnet, host] = taker.array();
            write!(entry, "10.0.{}.{host}", subnet % 4)
        }
        3 => {
            let [subnet, host, length] = taker.array();
            write!(entry, "10.0.{}.{host}/{}", subnet % 4, length % 34)
        }
        4 => {
            let [subnet, host] = taker.array();
            write!(entry, "2001:db8:0:{}::{host:x}", subnet % 4)
        }
        5 => {
            let [subnet, host, length] = taker.array();
            write!(entry, "2001:db8:0:{}:{host:x}::/{}", subnet % 4, length % 130)
        }
        6 => write!(entry, "{}/{}", Ipv4Addr::from(taker.array::<4>()), taker.byte() % 33),
        _ => write!(entry, "{}", taker.one(&MACS)),
    };
    entry
}

impl Instance {
    fn new(taker: &mut Taker<'_>) -> Self {
        let config = Config {
            prefixes: taker.one(&[Prefixes::Local, Prefixes::Rules, Prefixes::Ignore]),
            primary_rules: taker.one(&[PrimaryRules::Auto, PrimaryRules::Never]),
            ..Config::default()
        };
        Self {
            cloud: Cloud::sane(),
            kernel: world::booted(!taker.flag()),
            config,
            metadata: Metadata::default(),
            memory: Memory::default(),
            ledger: Ledger::default(),
            now: Instant(Duration::from_secs(100)),
        }
    }

    /// Unplugs a link other than the primary ENI's, or plugs it in.
    fn plug(&mut self, taker: &mut Taker<'_>) {
        let n = 1 + usize::from(taker.byte() % 2);
        let index = LinkIndex(u32::try_from(n + 2).unwrap_or_default());
        if self.kernel.links.iter().any(|link| link.index == index) {
            self.kernel.links.retain(|link| link.index != index);
            self.kernel.addresses.retain(|seen| seen.address.link != index);
            self.kernel.routes.retain(|seen| seen.route.link != Some(index));
        } else {
            self.kernel.links.push(world::link(n, MACS[n]));
        }
    }

    fn restart(&mut self) {
        (self.metadata, self.memory) = (Metadata::default(), Memory::default());
    }

    /// Reads, decides, checks and does.
    fn pass(&mut self, how: u8) {
        self.now = self.now + Duration::from_secs(u64::from(how) + 1);
        let depth = if how & 1 == 1 { Depth::Full } else { Depth::Lists };
        let here: Vec<Mac> = self.kernel.links.iter().filter_map(|link| link.mac).collect();
        self.metadata.record(&self.cloud.poll(self.now, depth, here.into_iter()));
        assert_bounded(&self.metadata);
        let observed = Observed { snapshot: &self.kernel, ledger: &self.ledger };
        let facts = Facts {
            now: self.now,
            config: &self.config,
            metadata: &self.metadata,
            observed,
            udev: &BTreeSet::new(),
        };
        let decision = decide(&facts, &mut self.memory);
        self.check(&decision);
        let before = world::foreign(&self.kernel);
        for planned in decision.plan.steps() {
            self.check_step(&planned.step);
            world::apply(&mut self.kernel, &planned.step);
        }
        assert_eq!(before, world::foreign(&self.kernel), "something foreign was changed");
        self.ledger = decision.ledger;
        for mac in decision.gone {
            self.metadata.forget(mac);
        }
    }

    fn check(&self, decision: &Decision) {
        let keys = || self.metadata.enis.iter().map(|(mac, eni)| (mac, &eni.keys));
        let known = || keys().collect::<Vec<_>>();
        assert_eq!(decision.refused, None, "the guard refuses what follows from {:#?}", known());
        let name_of = |index: LinkIndex| format!("link {}", index.0);
        for eni in &decision.report.enis {
            // A few of each of the fourteen keys, and what is not about entries.
            assert!(eni.notices.len() <= 14 * 9 + 20, "{} notices", eni.notices.len());
            let eni = Eni::new(eni, self.now, &name_of);
            for line in eni.waiting.iter().chain(&eni.notices) {
                assert_printable(line);
            }
        }
        let links = self.kernel.links.len();
        assert!(decision.ledger.addresses.len() <= self.kernel.addresses.len() + 2048 * links);
        assert!(decision.ledger.tables.len() <= MACS.len() && decision.report.enis.len() <= 1024);
    }

    /// What the guard is told by metadata, this is not.
    fn check_step(&self, step: &Step) {
        match step {
            Step::Create(Object::Address(address)) => assert_usable(address),
            Step::Create(Object::Route(route))
            | Step::Replace { new: Object::Route(route), .. } => {
                self.assert_harmless(route);
            }
            Step::Create(Object::Rule(rule)) => {
                let everybody = rule.source.is_some_and(|source| source.prefix_len() == 0);
                assert!(!everybody, "{rule:?}");
            }
            Step::Delete(Object::Address(address)) => {
                assert_ne!(address.address, IpAddr::from([10, 0, 1, 4]), "the host is cut off");
            }
            Step::Create(Object::Marking(_))
            | Step::Delete(_)
            | Step::Replace { .. }
            | Step::Set { .. } => {}
        }
    }

    /// A route for the host itself takes nobody else's packets.
    fn assert_harmless(&self, route: &Route) {
        let destination = route.destination;
        let metadata = [
            IpAddr::from([169, 254, 169, 254]),
            Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254).into(),
        ];
        if route.table == TableId::LOCAL {
            assert_eq!(route.kind, RouteKind::Local, "{route:?}");
            assert!(destination.prefix_len() < destination.max_prefix_len(), "{route:?}");
            assert!(!metadata.iter().any(|ip| destination.contains(ip)), "{route:?}");
            for (mac, eni) in &self.metadata.enis {
                let keys = &eni.keys;
                let gateway = keys.subnet_v4.and_then(|net| net.hosts().next());
                let first = keys.ipv4s.first().copied();
                for ip in gateway.into_iter().chain(first).map(IpAddr::V4) {
                    let theirs = keys.subnet_v4.is_some_and(|net| net.prefix_len() < 31);
                    assert!(
                        !(theirs && destination.contains(&ip)),
                        "{route:?} takes {ip} of {mac}"
                    );
                }
            }
        } else if !route.is_default() && route.kind == RouteKind::Unicast {
            let inside = |ip: &IpAddr| destination.contains(ip) && route.gateway.is_some();
            assert!(!metadata.iter().any(inside), "{route:?} takes metadata");
        }
    }
}

fn assert_usable(address: &Address) {
    let ip = address.address;
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    assert!(!ip.is_loopback() && !ip.is_multicast() && !ip.is_unspecified(), "{ip}");
    assert!(!link_local, "{ip}");
    assert_ne!(IpNet::from(ip).prefix_len(), 0);
}
