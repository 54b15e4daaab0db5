//! What the kernel has: a snapshot in our nouns, and whose each object is.

use std::collections::BTreeMap;

use crate::object::{Address, LinkGroup, LinkIndex, Mac, Protocol, Route, Rule, Sysctl};

/// A link as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: LinkIndex,
    /// Its name, which may change at any time.
    pub name: String,
    /// Its other names.
    pub alternative_names: Vec<String>,
    /// `IFLA_INFO_KIND` (`veth`, `bridge`, …); none for hardware.
    pub kind: Option<String>,
    /// The permanent hardware address, or the current one where the driver tells no permanent one.
    pub mac: Option<Mac>,
    /// `IFF_UP`.
    pub up: bool,
    /// `IFF_LOWER_UP`: there is somebody at the other end.
    pub carrier: bool,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// Its group.
    pub group: LinkGroup,
    /// The bridge or bond that it is a port of.
    pub master: Option<LinkIndex>,
    /// The settings that enid cares for, where the kernel shows them.
    pub sysctls: BTreeMap<Sysctl, i32>,
}

/// An address as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenAddress {
    /// The address.
    pub address: Address,
    /// `IFA_PROTO`, where the kernel has it and it is not 0.
    pub protocol: Option<Protocol>,
    /// Without a lifetime; a DHCP client's addresses have one.
    pub permanent: bool,
}

/// A route as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenRoute {
    /// The route.
    pub route: Route,
    /// `rtm_protocol`.
    pub protocol: Protocol,
    /// Whether [`Route`] says all of it: false for several next hops, a TOS, an encapsulation, a
    /// next-hop object, own metrics such as an MTU.
    pub complete: bool,
}

/// A policy rule as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenRule {
    /// The rule.
    pub rule: Rule,
    /// `FRA_PROTOCOL`.
    pub protocol: Protocol,
    /// Whether [`Rule`] says all of it: false for `not`, a TOS, ports, a user range and the like.
    pub complete: bool,
}

/// All of the kernel's network state that matters, read at one time; complete, or it would be an
/// error.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Every link of the namespace.
    pub links: Vec<Link>,
    /// Every address, both families.
    pub addresses: Vec<SeenAddress>,
    /// Every route of every table, both families, without the kernel's route cache.
    pub routes: Vec<SeenRoute>,
    /// Every policy rule, both families.
    pub rules: Vec<SeenRule>,
    /// Whether this kernel keeps `IFA_PROTO` (since 5.18): some address of the dump shows one.
    pub address_protocols: bool,
}
