//! What the kernel has: a snapshot in our nouns, and whose each object is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use crate::ledger::Ledger;
use crate::object::{Address, LinkGroup, LinkIndex, Mac, Marking, Protocol, Route, Rule, Sysctl};

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
    /// The driver of its device (`ena`, `virtio_net`, …); none where it has no device.
    pub driver: Option<String>,
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
    /// Whether IPv6 works on it: it is not disabled, and the MTU is large enough.
    pub ipv6: bool,
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

/// An nftables table with a name of enid's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenMarking {
    /// What it does, as far as that was understood.
    pub marking: Marking,
    /// Whether it does exactly that.
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
    /// The IPv6 neighbours of each link that said they are routers and can be reached.
    pub routers: BTreeMap<LinkIndex, BTreeSet<Ipv6Addr>>,
    /// Every nftables table with a name of enid's.
    pub markings: Vec<SeenMarking>,
    /// Whether this kernel keeps `IFA_PROTO` (since 5.18): some address of the dump shows one.
    pub address_protocols: bool,
}

/// Whose an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// enid made it.
    Ours,
    /// enid made it, and somebody replaced it since: it no longer has the mark.
    TakenOver,
    /// Somebody else's.
    Foreign,
}

/// Kinds of links that are never an ENI although they may carry its MAC address.
const STACKED: [&str; 12] = [
    "vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "bridge", "bond", "team", "vrf", "dummy",
    "ifb", "macsec",
];

impl Link {
    /// Whether an ENI may be behind this link.
    #[must_use]
    pub fn may_be_eni(&self) -> bool {
        self.mac.is_some() && !self.kind.as_deref().is_some_and(|kind| STACKED.contains(&kind))
    }
}

/// A snapshot together with what says whose each object is.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// The kernel.
    pub snapshot: &'a Snapshot,
    /// enid's memory.
    pub ledger: &'a Ledger,
}

impl<'a> Observed<'a> {
    /// The link of this number.
    #[must_use]
    pub fn link(&self, index: LinkIndex) -> Option<&'a Link> {
        self.snapshot.links.iter().find(|link| link.index == index)
    }

    /// The links that may be the ENI with this MAC address.
    pub fn links_of(&self, mac: Mac) -> impl Iterator<Item = &'a Link> + use<'a> {
        self.snapshot.links.iter().filter(move |link| link.mac == Some(mac) && link.may_be_eni())
    }

    /// Whose an address is.
    #[must_use]
    pub fn owner(&self, seen: &SeenAddress) -> Owner {
        let noted = || {
            self.link(seen.address.link)
                .and_then(|link| link.mac)
                .is_some_and(|mac| self.ledger.addresses.contains(&(mac, seen.address.address)))
        };
        match seen.protocol {
            Some(Protocol::ENID) if seen.permanent => Owner::Ours,
            // Whoever gave it a lifetime goes on looking after it.
            Some(Protocol::ENID) => Owner::TakenOver,
            Some(_) if noted() => Owner::TakenOver,
            None if noted() && self.snapshot.address_protocols => Owner::TakenOver,
            None if noted() && seen.permanent => Owner::Ours,
            Some(_) | None => Owner::Foreign,
        }
    }

    /// The routes that enid made.
    pub fn own_routes(&self) -> impl Iterator<Item = &'a Route> + use<'a> {
        let ours = |seen: &&SeenRoute| seen.protocol == Protocol::ENID;
        self.snapshot.routes.iter().filter(ours).map(|seen| &seen.route)
    }

    /// The rules that enid made.
    pub fn own_rules(&self) -> impl Iterator<Item = &'a Rule> + use<'a> {
        let ours = |seen: &&SeenRule| seen.protocol == Protocol::ENID;
        self.snapshot.rules.iter().filter(ours).map(|seen| &seen.rule)
    }

    /// Another owner of this host's secondary addresses, by the traces it leaves.
    #[must_use]
    pub fn neighbour(&self) -> Option<&'static str> {
        // The VPC CNI's rule that keeps marked connections on the primary ENI.
        let vpc_cni =
            self.snapshot.rules.iter().any(|seen| {
                seen.protocol != Protocol::ENID && seen.rule.mark == Some((0x80, 0x80))
            });
        let cilium = self.snapshot.links.iter().any(|link| link.name == "cilium_host");
        match (vpc_cni, cilium) {
            (true, _) => Some("VPC CNI"),
            (false, true) => Some("Cilium"),
            (false, false) => None,
        }
    }
}
