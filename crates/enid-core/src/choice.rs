//! What the operator chose for one ENI: entries that match it, put together or found to contradict
//! each other.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::{Config, Mtu};
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

/// One entry of the configuration.
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
        let entries: Vec<&Entry> =
            self.enis.iter().filter(|entry| entry.matches.matches(eni)).collect();
        Ok(Choice {
            care: one(&entries, "care", |wishes| wishes.care)?.unwrap_or_default(),
            mtu: one(&entries, "mtu", |wishes| wishes.mtu)?.unwrap_or(self.mtu),
            prefixes: one(&entries, "prefixes", |wishes| wishes.prefixes)?.unwrap_or(self.prefixes),
            connected_route: one(&entries, "connected_route", |wishes| wishes.connected_route)?
                .unwrap_or_default(),
            arp: one(&entries, "arp", |wishes| wishes.arp)?.unwrap_or_default(),
            routes: routes(&entries)?,
            published_ports: one(&entries, "published_ports", |wishes| wishes.published_ports)?
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
