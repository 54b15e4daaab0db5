//! What the operator chose for one ENI: entries that match it, put together or found to contradict
//! each other.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::{Config, Mtu};
use crate::metadata::EniKey;
use crate::object::{EniId, Mac};

/// How far enid cares for an ENI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Care {
    /// Addresses, table and rules.
    #[default]
    Full,
    /// Addresses, but neither table nor rules.
    Addresses,
    /// Not at all.
    Ignore,
}

/// What delegated prefixes are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefixes {
    /// Containers have their addresses: what they send is routed as the ENI's own.
    #[default]
    Rules,
    /// Every address of them is one of the host.
    Local,
    /// Nothing.
    Ignore,
}

/// How an ENI answers ARP for addresses of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arp {
    /// As the link does.
    #[default]
    Keep,
    /// Not at all: for segments that several ENIs share.
    Strict,
}

/// A route that the operator wants in an ENI's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExtraRoute {
    /// Packets to here.
    pub destination: IpNet,
    /// The next hop; none where the destination is on the link.
    pub gateway: Option<IpAddr>,
}

/// A subnet by one of its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubnetName {
    /// IMDS: `subnet-id`.
    Id(String),
    /// One of its CIDRs.
    Cidr(IpNet),
}

/// What an entry matches ENIs by. All that it names must agree; nothing named matches nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Match {
    /// IMDS: `interface-id`.
    pub id: Option<EniId>,
    /// The MAC address.
    pub mac: Option<Mac>,
    /// IMDS: `device-number`.
    pub device: Option<u32>,
    /// IMDS: `network-card`.
    pub card: Option<u32>,
    /// The link's driver: `ena`, `efa`, `virtio_net`, …
    pub driver: Option<String>,
    /// The subnet.
    pub subnet: Option<SubnetName>,
}

/// What is known of an ENI that entries may match.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// IMDS: `interface-id`.
    pub id: Option<&'a EniId>,
    /// The MAC address.
    pub mac: Mac,
    /// IMDS: `network-card` and `device-number`.
    pub place: Option<(u32, u32)>,
    /// The link's driver.
    pub driver: Option<&'a str>,
    /// IMDS: `subnet-id`.
    pub subnet: Option<&'a str>,
    /// The subnet's CIDRs of both families.
    pub cidrs: &'a [IpNet],
}

impl Match {
    fn matches(&self, eni: &Identity<'_>) -> bool {
        let subnet = |name: &SubnetName| match name {
            SubnetName::Id(id) => eni.subnet == Some(id.as_str()),
            SubnetName::Cidr(cidr) => eni.cidrs.contains(cidr),
        };
        let agree = [
            self.id.as_ref().map(|id| eni.id == Some(id)),
            self.mac.map(|mac| eni.mac == mac),
            self.device.map(|device| eni.place.is_some_and(|(_, own)| own == device)),
            self.card.map(|card| eni.place.is_some_and(|(own, _)| own == card)),
            self.driver.as_ref().map(|driver| eni.driver == Some(driver.as_str())),
            self.subnet.as_ref().map(subnet),
        ];
        agree.iter().any(Option::is_some) && agree.into_iter().flatten().all(|agrees| agrees)
    }

    /// The keys of metadata that tell whether an ENI matches.
    fn keys(&self) -> impl Iterator<Item = EniKey> {
        let subnet = self.subnet.as_ref().map(|name| match name {
            SubnetName::Id(_) => EniKey::SubnetId,
            SubnetName::Cidr(IpNet::V4(_)) => EniKey::SubnetIpv4,
            SubnetName::Cidr(IpNet::V6(_)) => EniKey::SubnetIpv6,
        });
        let keys = [
            self.id.is_some().then_some(EniKey::InterfaceId),
            self.device.is_some().then_some(EniKey::DeviceNumber),
            self.card.is_some().then_some(EniKey::NetworkCard),
            subnet,
        ];
        keys.into_iter().flatten()
    }
}

/// What an entry asks for; what it leaves out is left as it is for every ENI.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wishes {
    /// How far to care.
    pub care: Option<Care>,
    /// The MTU; not on the primary ENI.
    pub mtu: Option<Mtu>,
    /// What delegated prefixes are for.
    pub prefixes: Option<Prefixes>,
    /// Whether main gets a route to the subnet.
    pub connected_route: Option<bool>,
    /// How to answer ARP.
    pub arp: Option<Arp>,
    /// Routes for the ENI's table.
    pub routes: Vec<ExtraRoute>,
    /// Whether answers of published container ports leave by the ENI.
    pub published_ports: Option<bool>,
}

/// One entry of the configuration, or one key of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands: `/etc/enid/enid.toml:12`.
    pub place: String,
    /// Which ENIs it is for.
    pub matches: Match,
    /// What it asks for.
    pub wishes: Wishes,
}

/// What holds for one ENI.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Choice {
    /// How far to care.
    pub care: Care,
    /// The MTU; not on the primary ENI.
    pub mtu: Mtu,
    /// What delegated prefixes are for.
    pub prefixes: Prefixes,
    /// Whether main gets a route to the subnet.
    pub connected_route: bool,
    /// How to answer ARP.
    pub arp: Arp,
    /// Routes for the ENI's table.
    pub routes: Vec<ExtraRoute>,
    /// Whether answers of published container ports leave by the ENI.
    pub published_ports: bool,
}

/// Two entries match the same ENI and want different things of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contradiction {
    /// The key that they set.
    pub key: &'static str,
    /// Where the two stand.
    pub places: [String; 2],
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second] = &self.places;
        write!(
            f,
            "the configuration says two things of it: `{}` at {first} and at {second}; change one of the two, or what it matches",
            self.key
        )
    }
}

impl Config {
    /// What holds for an ENI.
    ///
    /// # Errors
    /// The first key that two matching entries set differently.
    pub fn choice(&self, eni: &Identity<'_>) -> Result<Choice, Contradiction> {
        let entries = self.enis.iter().filter(|entry| entry.matches.matches(eni));
        self.together(&entries.collect::<Vec<_>>())
    }

    /// Whether no two entries contradict each other that match the same ENIs, whatever there is.
    ///
    /// # Errors
    /// The first key that two entries with equal matches set differently.
    pub fn consistent(&self) -> Result<(), Contradiction> {
        for entry in &self.enis {
            let same = self.enis.iter().filter(|other| other.matches == entry.matches);
            self.together(&same.collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// The keys of metadata that tell which entries match an ENI. As long as one of them is unknown
    /// it may yet turn out to be one that the operator wants to be left alone.
    #[must_use]
    pub fn matched_keys(&self) -> BTreeSet<EniKey> {
        self.enis.iter().flat_map(|entry| entry.matches.keys()).collect()
    }

    /// What entries ask for together, and what holds for every ENI where they ask for nothing.
    fn together(&self, entries: &[&Entry]) -> Result<Choice, Contradiction> {
        Ok(Choice {
            care: one(entries, "manage", |wishes| wishes.care)?.unwrap_or_default(),
            mtu: one(entries, "mtu", |wishes| wishes.mtu)?.unwrap_or(self.mtu),
            prefixes: one(entries, "prefixes", |wishes| wishes.prefixes)?.unwrap_or(self.prefixes),
            connected_route: one(entries, "connected_route", |wishes| wishes.connected_route)?
                .unwrap_or_default(),
            arp: one(entries, "arp", |wishes| wishes.arp)?.unwrap_or_default(),
            routes: routes(entries)?,
            published_ports: one(entries, "published_ports", |wishes| wishes.published_ports)?
                .unwrap_or_default(),
        })
    }
}

/// The value that all entries agree on that have one.
fn one<T: PartialEq>(
    entries: &[&Entry],
    key: &'static str,
    value: impl Fn(&Wishes) -> Option<T>,
) -> Result<Option<T>, Contradiction> {
    let mut found: Option<(T, &Entry)> = None;
    for entry in entries {
        match (value(&entry.wishes), &found) {
            (Some(value), Some((known, first))) if value != *known => {
                return Err(Contradiction {
                    key,
                    places: [first.place.clone(), entry.place.clone()],
                });
            }
            (Some(value), None) => found = Some((value, entry)),
            (Some(_) | None, _) => {}
        }
    }
    Ok(found.map(|(value, _)| value))
}

/// The routes of all entries, each destination once.
fn routes(entries: &[&Entry]) -> Result<Vec<ExtraRoute>, Contradiction> {
    let all = || entries.iter().flat_map(|entry| entry.wishes.routes.iter().map(|r| r.destination));
    let mut destinations: Vec<IpNet> = all().collect();
    destinations.sort_unstable();
    destinations.dedup();
    let route = |destination: IpNet| {
        let gateway = one(entries, "routes", |wishes| {
            let route = wishes.routes.iter().find(|route| route.destination == destination);
            route.map(|route| route.gateway)
        });
        gateway.map(|gateway| ExtraRoute { destination, gateway: gateway.flatten() })
    };
    destinations.into_iter().map(route).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::{select, subsequence};

    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn entry(place: &str, matches: Match, wishes: Wishes) -> Entry {
        Entry { place: place.to_owned(), matches, wishes }
    }

    fn mac() -> Match {
        Match { mac: Some(MAC), ..Match::default() }
    }

    fn driver(name: &str) -> Match {
        Match { driver: Some(name.to_owned()), ..Match::default() }
    }

    fn mtu(bytes: u32) -> Wishes {
        Wishes { mtu: Some(Mtu::Bytes(bytes)), ..Wishes::default() }
    }

    fn route(gateway: &str) -> ExtraRoute {
        let destination = "10.99.0.0/16".parse().unwrap();
        ExtraRoute { destination, gateway: Some(gateway.parse().unwrap()) }
    }

    fn config(enis: Vec<Entry>) -> Config {
        Config { enis, ..Config::default() }
    }

    /// The ENI of device 1 on card 0, in a subnet of both families.
    fn choice(config: &Config) -> Result<Choice, Contradiction> {
        config.choice(&Identity {
            id: Some(&EniId("eni-1".to_owned())),
            mac: MAC,
            place: Some((0, 1)),
            driver: Some("ena"),
            subnet: Some("subnet-1"),
            cidrs: &["10.0.1.0/24".parse().unwrap(), "2001:db8:1::/64".parse().unwrap()],
        })
    }

    #[test]
    fn each_way_to_name_an_eni_matches_that_one_and_no_other() {
        let subnet = |text: &str| match text.parse() {
            Ok(cidr) => Some(SubnetName::Cidr(cidr)),
            Err(_) => Some(SubnetName::Id(text.to_owned())),
        };
        for (right, wrong) in [
            (
                Match { id: Some(EniId("eni-1".to_owned())), ..Match::default() },
                Match { id: Some(EniId("eni-2".to_owned())), ..Match::default() },
            ),
            (mac(), Match { mac: Some(Mac([2, 0, 0, 0, 0, 2])), ..Match::default() }),
            (
                Match { device: Some(1), ..Match::default() },
                Match { device: Some(0), ..Match::default() },
            ),
            (
                Match { card: Some(0), ..Match::default() },
                Match { card: Some(1), ..Match::default() },
            ),
            (driver("ena"), driver("virtio_net")),
            (
                Match { subnet: subnet("subnet-1"), ..Match::default() },
                Match { subnet: subnet("subnet-2"), ..Match::default() },
            ),
            (
                Match { subnet: subnet("10.0.1.0/24"), ..Match::default() },
                Match { subnet: subnet("10.0.0.0/16"), ..Match::default() },
            ),
            (
                Match { subnet: subnet("2001:db8:1::/64"), ..Match::default() },
                Match { subnet: subnet("2001:db8:2::/64"), ..Match::default() },
            ),
        ] {
            let of = |matches: &Match| {
                choice(&config(vec![entry("a:1", matches.clone(), mtu(1400))])).unwrap().mtu
            };
            assert_eq!(of(&right), Mtu::Bytes(1400), "{right:?}");
            assert_eq!(of(&wrong), Mtu::Primary, "{wrong:?}");
        }
    }

    #[test]
    fn all_that_an_entry_names_must_agree_and_nothing_named_matches_nothing() {
        let half = Match { device: Some(2), ..mac() };
        for matches in [half, Match::default()] {
            let config = config(vec![entry("a:1", matches, mtu(1400))]);
            assert_eq!(choice(&config).unwrap().mtu, Mtu::Primary);
        }
    }

    #[test]
    fn what_no_entry_sets_is_as_for_every_eni() {
        let every = Config { mtu: Mtu::Keep, prefixes: Prefixes::Local, ..Config::default() };
        let found = choice(&every).unwrap();
        assert_eq!((found.mtu, found.prefixes), (Mtu::Keep, Prefixes::Local));
        assert_eq!((found.care, found.arp), (Care::Full, Arp::Keep));
        assert!(!found.connected_route && !found.published_ports && found.routes.is_empty());
    }

    #[test]
    fn two_entries_that_differ_on_a_key_are_named_with_it() {
        let entries = vec![
            entry("a:1", mac(), mtu(1400)),
            entry("a:4", driver("ena"), Wishes { arp: Some(Arp::Strict), ..Wishes::default() }),
            entry("b:9", driver("ena"), mtu(1500)),
        ];
        let config = config(entries);
        assert_eq!(config.consistent(), Ok(()), "another ENI may match only one of the two");
        let text = choice(&config).unwrap_err().to_string();
        assert!(text.contains("`mtu` at a:1 and at b:9"), "{text}");
    }

    #[test]
    fn equal_matches_contradict_each_other_before_there_is_any_eni() {
        let entries = |bytes| {
            vec![
                entry("a:1", driver("other"), mtu(1400)),
                entry("b:1", driver("other"), mtu(bytes)),
            ]
        };
        assert_eq!(config(entries(1400)).consistent(), Ok(()));
        let found = config(entries(1500)).consistent().unwrap_err();
        assert_eq!((found.key, found.places.concat()), ("mtu", "a:1b:1".to_owned()));
    }

    #[test]
    fn routes_add_up_and_one_destination_has_one_gateway() {
        let wish = |gateway: &str| Wishes { routes: vec![route(gateway)], ..Wishes::default() };
        let other = ExtraRoute { destination: "10.98.0.0/16".parse().unwrap(), gateway: None };
        let second = Wishes { routes: vec![route("10.0.1.77"), other], ..Wishes::default() };
        let agreed = config(vec![
            entry("a:1", mac(), wish("10.0.1.77")),
            entry("a:4", driver("ena"), second),
        ]);
        assert_eq!(choice(&agreed).unwrap().routes, [other, route("10.0.1.77")]);
        let not = config(vec![
            entry("a:1", mac(), wish("10.0.1.77")),
            entry("a:4", driver("ena"), wish("10.0.1.78")),
        ]);
        assert_eq!(choice(&not).unwrap_err().key, "routes");
    }

    #[test]
    fn what_must_be_known_before_entries_can_match_follows_from_what_they_name() {
        let subnet = |name| Match { subnet: Some(name), ..mac() };
        let keys = |matches| config(vec![entry("a:1", matches, mtu(1400))]).matched_keys();
        assert!(keys(mac()).is_empty() && keys(driver("ena")).is_empty());
        for (matches, key) in [
            (Match { id: Some(EniId("eni-1".to_owned())), ..mac() }, EniKey::InterfaceId),
            (Match { device: Some(1), ..mac() }, EniKey::DeviceNumber),
            (Match { card: Some(1), ..mac() }, EniKey::NetworkCard),
            (subnet(SubnetName::Id("subnet-1".to_owned())), EniKey::SubnetId),
            (subnet(SubnetName::Cidr("10.0.1.0/24".parse().unwrap())), EniKey::SubnetIpv4),
            (subnet(SubnetName::Cidr("2001:db8::/64".parse().unwrap())), EniKey::SubnetIpv6),
        ] {
            assert_eq!(keys(matches), BTreeSet::from([key]));
        }
    }

    /// A few values of each key, so that entries often agree and often do not.
    fn wishes() -> impl Strategy<Value = Wishes> {
        let some = |odds| prop::option::weighted(odds, prop::bool::weighted(0.8));
        let routes = vec![route("10.0.1.77"), route("10.0.1.78")];
        let keys = (some(0.3), some(0.3), some(0.3), some(0.3), some(0.3), some(0.3));
        (keys, subsequence(routes, 0..=1)).prop_map(|((a, b, c, d, e, f), routes)| Wishes {
            care: a.map(|usual| if usual { Care::Addresses } else { Care::Ignore }),
            mtu: b.map(|usual| if usual { Mtu::Keep } else { Mtu::Bytes(1400) }),
            prefixes: c.map(|usual| if usual { Prefixes::Local } else { Prefixes::Ignore }),
            connected_route: d,
            arp: e.map(|usual| if usual { Arp::Strict } else { Arp::Keep }),
            routes,
            published_ports: f,
        })
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let matches = select(vec![mac(), driver("ena"), driver("other"), Match::default()]);
        prop::collection::vec((matches, wishes()), 0..5).prop_map(|entries| {
            let entries = entries.into_iter().enumerate();
            entries
                .map(|(n, (matches, wishes))| entry(&format!("a:{n}"), matches, wishes))
                .collect()
        })
    }

    /// The entry's keys that are set, each by its name and in words.
    fn set(wishes: &Wishes) -> Vec<(&'static str, String)> {
        let mut set = vec![
            ("manage", wishes.care.map(|value| format!("{value:?}"))),
            ("mtu", wishes.mtu.map(|value| format!("{value:?}"))),
            ("prefixes", wishes.prefixes.map(|value| format!("{value:?}"))),
            ("connected_route", wishes.connected_route.map(|value| format!("{value:?}"))),
            ("arp", wishes.arp.map(|value| format!("{value:?}"))),
            ("published_ports", wishes.published_ports.map(|value| format!("{value:?}"))),
        ];
        set.extend(wishes.routes.iter().map(|route| ("routes", Some(format!("{route:?}")))));
        set.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }

    proptest! {
        #[test]
        fn the_order_of_entries_does_not_matter(
            (entries, shuffled) in entries().prop_flat_map(|entries| {
                (Just(entries.clone()), Just(entries).prop_shuffle())
            }),
        ) {
            let key = |found: Contradiction| found.key;
            let (one, other) = (config(entries), config(shuffled));
            prop_assert_eq!(choice(&one).map_err(key), choice(&other).map_err(key));
            prop_assert_eq!(one.consistent().is_err(), other.consistent().is_err());
        }

        #[test]
        fn a_contradiction_is_found_exactly_where_two_matching_entries_differ(entries in entries()) {
            let matching: Vec<&Entry> = entries
                .iter()
                .filter(|entry| entry.matches == mac() || entry.matches == driver("ena"))
                .collect();
            let mut differing = BTreeSet::new();
            for one in &matching {
                for other in &matching {
                    for (key, value) in set(&one.wishes) {
                        let differs = |(name, other): &(&str, String)| *name == key && *other != value;
                        if set(&other.wishes).iter().any(differs) {
                            differing.insert((key, [one.place.clone(), other.place.clone()]));
                        }
                    }
                }
            }
            match choice(&config(entries.clone())) {
                Ok(found) => {
                    prop_assert!(differing.is_empty(), "{:?}", differing);
                    // Everything asked for is there.
                    let found = Wishes {
                        care: Some(found.care),
                        mtu: Some(found.mtu),
                        prefixes: Some(found.prefixes),
                        connected_route: Some(found.connected_route),
                        arp: Some(found.arp),
                        routes: found.routes,
                        published_ports: Some(found.published_ports),
                    };
                    let found = set(&found);
                    for wish in matching.iter().flat_map(|entry| set(&entry.wishes)) {
                        prop_assert!(found.contains(&wish), "{:?}", wish);
                    }
                }
                Err(found) => {
                    // Both orders of the two places are in there: who comes first is no reason.
                    let [first, second] = found.places;
                    prop_assert!(differing.contains(&(found.key, [first.clone(), second.clone()])));
                    prop_assert!(differing.contains(&(found.key, [second, first])));
                }
            }
        }

        #[test]
        fn entries_of_several_keys_say_the_same_as_one_entry_for_each_key(entries in entries()) {
            let split = |entry: &Entry| {
                let Wishes { care, mtu, prefixes, connected_route, arp, routes, published_ports } =
                    entry.wishes.clone();
                let none = Wishes::default;
                let each = [
                    Wishes { care, ..none() },
                    Wishes { mtu, ..none() },
                    Wishes { prefixes, ..none() },
                    Wishes { connected_route, ..none() },
                    Wishes { arp, ..none() },
                    Wishes { routes, ..none() },
                    Wishes { published_ports, ..none() },
                ];
                each.map(|wishes| Entry { wishes, ..entry.clone() })
            };
            let apart = config(entries.iter().flat_map(split).collect());
            prop_assert_eq!(choice(&config(entries)), choice(&apart));
        }
    }
}
