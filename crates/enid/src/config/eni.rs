//! `[[eni]]`: what is chosen for some ENIs only, and how these are named.

use std::collections::BTreeMap;
use std::net::IpAddr;

use enid_core::choice::{Arp, Care, Entry, ExtraRoute, Match, SubnetName, Wishes};
use enid_core::object::{EniId, Mac};
use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;

use super::file::{MtuKey, PrefixesKey, network};

/// The highest card and device number that metadata is believed.
const HIGHEST_NUMBER: i64 = 99;

/// One `[[eni]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EniTable {
    #[serde(rename = "match")]
    matches: MatchKey,
    manage: Option<Spanned<CareKey>>,
    mtu: Option<Spanned<MtuKey>>,
    prefixes: Option<Spanned<PrefixesKey>>,
    connected_route: Option<Spanned<bool>>,
    arp: Option<Spanned<ArpKey>>,
    #[serde(default)]
    routes: Vec<Spanned<RouteKey>>,
    published_ports: Option<Spanned<bool>>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum CareKey {
    Full,
    Addresses,
    Ignore,
}

impl From<CareKey> for Care {
    fn from(key: CareKey) -> Self {
        match key {
            CareKey::Full => Self::Full,
            CareKey::Addresses => Self::Addresses,
            CareKey::Ignore => Self::Ignore,
        }
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ArpKey {
    Keep,
    Strict,
}

impl From<ArpKey> for Arp {
    fn from(key: ArpKey) -> Self {
        match key {
            ArpKey::Keep => Self::Keep,
            ArpKey::Strict => Self::Strict,
        }
    }
}

/// `match`: at least one of the ways to name ENIs.
#[derive(Debug, Deserialize)]
#[serde(try_from = "MatchTable")]
struct MatchKey(Match);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct MatchTable {
    id: Option<IdKey>,
    mac: Option<MacKey>,
    device_number: Option<NumberKey>,
    network_card: Option<NumberKey>,
    driver: Option<DriverKey>,
    subnet: Option<SubnetKey>,
}

impl TryFrom<MatchTable> for MatchKey {
    type Error = String;

    fn try_from(table: MatchTable) -> Result<Self, String> {
        let matches = Match {
            id: table.id.map(|key| key.0),
            mac: table.mac.map(|key| key.0),
            device: table.device_number.map(|key| key.0),
            card: table.network_card.map(|key| key.0),
            driver: table.driver.map(|key| key.0),
            subnet: table.subnet.map(|key| key.0),
        };
        if matches == Match::default() {
            return Err("it matches nothing: name at least one of `id`, `mac`, `device-number`, \
                        `network-card`, `driver` and `subnet`"
                .to_owned());
        }
        Ok(Self(matches))
    }
}

/// What to say of a match by a link's name.
pub(super) fn not_by_name(wrong: &str, known: &[&str]) -> Option<&'static str> {
    let name = ["name", "interface", "link", "ifname", "device", "dev", "altname", "ifindex"];
    (known.contains(&"device-number") && name.contains(&wrong))
        .then_some("a link's name or number is another one after a reboot; match by one of these")
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct IdKey(EniId);

impl TryFrom<String> for IdKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if sane(&text, "eni-") {
            Ok(Self(EniId(text)))
        } else {
            Err(format!("\"{text}\" is no ENI's id: write \"eni-0123456789abcdef0\""))
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct MacKey(Mac);

impl TryFrom<String> for MacKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map(Self).map_err(|cause| format!("{cause}: write \"02:00:00:00:00:01\""))
    }
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "i64")]
struct NumberKey(u32);

impl TryFrom<i64> for NumberKey {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        u32::try_from(number)
            .ok()
            .filter(|_| number <= HIGHEST_NUMBER)
            .map(Self)
            .ok_or_else(|| format!("{number} is not between 0 and {HIGHEST_NUMBER}"))
    }
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct DriverKey(String);

impl TryFrom<String> for DriverKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let named = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if !text.is_empty() && text.bytes().all(named) {
            Ok(Self(text))
        } else {
            Err(format!(
                "\"{text}\" is no driver's name: write where /sys/class/net/LINK/device/driver \
                 leads to, such as \"ena\""
            ))
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct SubnetKey(SubnetName);

impl TryFrom<String> for SubnetKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if sane(&text, "subnet-") {
            return Ok(Self(SubnetName::Id(text)));
        }
        let cidr = text.parse::<IpNet>().map_err(|_| {
            format!(
                "\"{text}\" is neither a subnet's id nor its CIDR: \
                 write \"subnet-0123456789abcdef0\" or \"10.0.1.0/24\""
            )
        })?;
        without_host_bits(cidr).map(|cidr| Self(SubnetName::Cidr(cidr)))
    }
}

fn sane(id: &str, prefix: &str) -> bool {
    id.strip_prefix(prefix).is_some_and(|rest| {
        !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    })
}

fn without_host_bits(cidr: IpNet) -> Result<IpNet, String> {
    if cidr.trunc() == cidr {
        Ok(cidr)
    } else {
        Err(format!("{cidr} is an address within {0}: write \"{0}\"", cidr.trunc()))
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteTable {
    to: String,
    via: Option<IpAddr>,
}

/// One of `routes`.
#[derive(Debug, Deserialize)]
#[serde(try_from = "RouteTable")]
struct RouteKey(ExtraRoute);

impl TryFrom<RouteTable> for RouteKey {
    type Error = String;

    fn try_from(RouteTable { to, via: gateway }: RouteTable) -> Result<Self, String> {
        let destination = network(&to)?;
        if destination.prefix_len() == 0 {
            return Err(format!(
                "{destination} is the default route, which the ENI's table has already: \
                 name the networks that go another way"
            ));
        }
        let destination = without_host_bits(destination)?;
        match gateway {
            Some(gateway) if gateway.is_ipv4() != destination.addr().is_ipv4() => Err(format!(
                "{gateway} and {destination} are of two families: name a gateway of the same"
            )),
            Some(gateway)
                if gateway.is_unspecified() || gateway.is_loopback() || gateway.is_multicast() =>
            {
                Err(format!("{gateway} is no gateway: name a host of the ENI's subnet"))
            }
            Some(_) | None => Ok(Self(ExtraRoute { destination, gateway })),
        }
    }
}

/// An entry for each key, so that each can be named by its own line.
///
/// # Errors
/// Where in the file is what cannot be used, and why.
pub(super) fn entries(
    table: Spanned<EniTable>,
    place: impl Fn(usize) -> String,
) -> Result<Vec<Entry>, (usize, String)> {
    let start = table.span().start;
    let table = table.into_inner();
    let none = Wishes::default;
    let keys = [
        wish(table.manage, |key| Wishes { care: Some(key.into()), ..none() }),
        wish(table.mtu, |key| Wishes { mtu: Some(key.0), ..none() }),
        wish(table.prefixes, |key| Wishes { prefixes: Some(key.into()), ..none() }),
        wish(table.connected_route, |key| Wishes { connected_route: Some(key), ..none() }),
        wish(table.arp, |key| Wishes { arp: Some(key.into()), ..none() }),
        wish(table.published_ports, |key| Wishes { published_ports: Some(key), ..none() }),
    ];
    let mut wishes: Vec<(usize, Wishes)> = keys.into_iter().flatten().collect();
    let mut named = BTreeMap::new();
    for (at, RouteKey(route)) in table.routes.into_iter().map(unspanned) {
        if let Some(first) = named.insert(route.destination, at) {
            let (destination, first) = (route.destination, place(first));
            let text = format!(
                "`eni.routes`: {destination} is named at {first} already: remove one of the two"
            );
            return Err((at, text));
        }
        wishes.push((at, Wishes { routes: vec![route], ..none() }));
    }
    if wishes.is_empty() {
        let text = "this `[[eni]]` sets nothing: add `manage` or another key, or remove it";
        return Err((start, text.to_owned()));
    }
    let matches = table.matches.0;
    let entry = |(at, wishes)| Entry { place: place(at), matches: matches.clone(), wishes };
    Ok(wishes.into_iter().map(entry).collect())
}

fn wish<T>(key: Option<Spanned<T>>, wishes: impl Fn(T) -> Wishes) -> Option<(usize, Wishes)> {
    key.map(unspanned).map(|(at, key)| (at, wishes(key)))
}

fn unspanned<T>(key: Spanned<T>) -> (usize, T) {
    (key.span().start, key.into_inner())
}
