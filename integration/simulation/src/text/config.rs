//! A configuration from lines that read like its file's.

use enid_core::choice::{Arp, Care, Entry, ExtraRoute, Match, Prefixes, SubnetName, Wishes};
use enid_core::config::{Cni, Config, Mtu, PrimaryRules};
use enid_core::object::EniId;

use super::{duration, parse};

/// Takes in one line: `KEY VALUE`, or `default`.
pub fn configure(config: &mut Config, line: &str) {
    let (key, value) = line.split_once(' ').unwrap_or((line, ""));
    match (key, value) {
        ("default", "") => *config = Config::default(),
        ("primary_rules", "auto") => config.primary_rules = PrimaryRules::Auto,
        ("primary_rules", "never") => config.primary_rules = PrimaryRules::Never,
        ("cni", "ignore") => config.cni = Cni::Ignore,
        ("mtu", "primary") => config.mtu = Mtu::Primary,
        ("mtu", "keep") => config.mtu = Mtu::Keep,
        ("mtu", bytes) => config.mtu = Mtu::Bytes(parse(bytes)),
        ("ignore_addresses", nets) => {
            config.ignore_addresses = nets.split_whitespace().map(parse).collect();
        }
        ("metadata", at) => config.metadata = at.split_whitespace().map(parse).collect(),
        ("table_base", base) => config.table_base = parse(base),
        ("priority_base", base) => config.priority_base = parse(base),
        ("prefixes", mode) => config.prefixes = prefixes(mode),
        ("eni", entry) => {
            let place = format!("enid.toml:{}", config.enis.len() + 1);
            config.enis.push(self::entry(place, entry));
        }
        ("poll_interval", every) => config.poll_interval = duration(every),
        ("removal", words) => {
            let words: Vec<&str> = words.split(' ').collect();
            let [confirmations, grace, mass] = words[..] else { panic!("{line:?}") };
            config.removal.confirmations = parse(confirmations);
            config.removal.grace = duration(grace);
            config.removal.mass_grace = duration(mass);
        }
        _ => panic!("{line:?} configures nothing"),
    }
}

fn prefixes(mode: &str) -> Prefixes {
    match mode {
        "rules" => Prefixes::Rules,
        "local" => Prefixes::Local,
        "ignore" => Prefixes::Ignore,
        other => panic!("{other:?} is no prefix mode"),
    }
}

/// Reads `MATCH VALUE KEY VALUE ...`.
fn entry(place: String, text: &str) -> Entry {
    let mut entry = Entry { place, matches: Match::default(), wishes: Wishes::default() };
    let (matches, wishes) = (&mut entry.matches, &mut entry.wishes);
    let mut words = text.split_whitespace();
    while let Some(key) = words.next() {
        let value = words.next().unwrap_or_else(|| panic!("{key:?} of {text:?} has no value"));
        match key {
            "id" => matches.id = Some(EniId(value.to_owned())),
            "mac" => matches.mac = Some(parse(value)),
            "device" => matches.device = Some(parse(value)),
            "driver" => matches.driver = Some(value.to_owned()),
            "subnet" if value.contains('/') => {
                matches.subnet = Some(SubnetName::Cidr(parse(value)));
            }
            "subnet" => matches.subnet = Some(SubnetName::Id(value.to_owned())),
            "manage" => {
                wishes.care = Some(match value {
                    "addresses" => Care::Addresses,
                    "ignore" => Care::Ignore,
                    _ => Care::Full,
                });
            }
            "mtu" => wishes.mtu = Some(Mtu::Bytes(parse(value))),
            "prefixes" => wishes.prefixes = Some(prefixes(value)),
            "connected_route" => wishes.connected_route = Some(parse(value)),
            "arp" => wishes.arp = Some(if value == "strict" { Arp::Strict } else { Arp::Keep }),
            "published_ports" => wishes.published_ports = Some(parse(value)),
            "route" => {
                let (to, via) = value.split_once(',').expect("to,via");
                let route = ExtraRoute { destination: parse(to), gateway: Some(parse(via)) };
                wishes.routes.push(route);
            }
            other => panic!("{other:?} of {text:?} is not understood"),
        }
    }
    entry
}
