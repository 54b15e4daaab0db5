//! What of a kernel's state decides where packets go.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

/// One of the two address families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Administratively up.
    pub up: bool,
    /// Its group.
    pub group: u32,
}

/// An address on a link; later ones in a list were added later.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The link's name.
    pub link: String,
    /// The address.
    pub address: IpAddr,
    /// Bits of the network part.
    pub length: u8,
    /// Not deprecated.
    pub preferred: bool,
    /// Without a lifetime.
    pub permanent: bool,
    /// Made by enid.
    pub ours: bool,
}

/// What a route does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Sends on.
    Unicast,
    /// Delivers here.
    Local,
    /// Ends the lookup with an error.
    Refuse,
    /// Ends the lookup in this table only.
    Throw,
}

/// A route with one next hop.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The table that holds it.
    pub table: u32,
    /// Packets to here.
    pub destination: IpNet,
    /// What it does.
    pub kind: Kind,
    /// The next hop; none where the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The link's name.
    pub link: Option<String>,
    /// The preferred source.
    pub source: Option<IpAddr>,
    /// The metric.
    pub metric: u32,
    /// Made by enid.
    pub ours: bool,
}

/// A policy rule that looks into a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Its family.
    pub family: Family,
    /// Lower ones are asked first.
    pub priority: u32,
    /// Packets from here; none means all.
    pub source: Option<IpNet>,
    /// Packets to here; none means all.
    pub destination: Option<IpNet>,
    /// Packets that came in by this link; `lo` means made here.
    pub iif: Option<String>,
    /// Packets of sockets bound to this link.
    pub oif: Option<String>,
    /// Packets with this mark under this mask.
    pub mark: Option<(u32, u32)>,
    /// The table.
    pub table: u32,
    /// A found route with a prefix at most this long does not count.
    pub suppress_length: Option<u32>,
    /// A found route by a link of this group does not count.
    pub suppress_group: Option<u32>,
    /// Made by enid.
    pub ours: bool,
}

/// A kernel's state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The links.
    pub links: Vec<Link>,
    /// The addresses.
    pub addresses: Vec<Address>,
    /// The routes of all tables; the table `local` needs none for the addresses above.
    pub routes: Vec<Route>,
    /// The rules; equal priorities in the order in which they were added.
    pub rules: Vec<Rule>,
}

impl State {
    /// The table that everybody shares.
    pub const MAIN: u32 = 254;
    /// The kernel's own table.
    pub const LOCAL: u32 = 255;

    /// The link of this name.
    #[must_use]
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The state of one family in the words of `ip`, short enough to read.
    #[must_use]
    pub fn words(&self, family: Family) -> String {
        let mut lines: Vec<String> = self.links.iter().map(ToString::to_string).collect();
        let addresses = self.addresses.iter().filter(|seen| Family::of(seen.address) == family);
        lines.extend(addresses.map(ToString::to_string));
        let rules = self.rules.iter().filter(|rule| rule.family == family);
        lines.extend(rules.map(ToString::to_string));
        let routes =
            self.routes.iter().filter(|seen| Family::of(seen.destination.addr()) == family);
        lines.extend(routes.map(ToString::to_string));
        lines.iter().map(|line| format!("  {line}\n")).collect()
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.up { "up" } else { "down" };
        write!(f, "ip link set {} {state} group {}", self.name, self.group)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ip addr add {}/{} dev {}", self.address, self.length, self.link)?;
        if !self.preferred {
            f.write_str(" preferred_lft 0")?;
        }
        ours(f, self.ours)
    }
}

fn ours(f: &mut fmt::Formatter<'_>, ours: bool) -> fmt::Result {
    f.write_str(if ours { " proto 233" } else { "" })
}

fn table(f: &mut fmt::Formatter<'_>, table: u32) -> fmt::Result {
    match table {
        State::MAIN => f.write_str("main"),
        State::LOCAL => f.write_str("local"),
        number => write!(f, "{number}"),
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Unicast => "",
            Kind::Local => "local ",
            Kind::Refuse => "unreachable ",
            Kind::Throw => "throw ",
        };
        write!(f, "ip route add {kind}{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(link) = &self.link {
            write!(f, " dev {link}")?;
        }
        f.write_str(" table ")?;
        table(f, self.table)?;
        if let Some(source) = self.source {
            write!(f, " src {source}")?;
        }
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        ours(f, self.ours)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ip rule add pref {}", self.priority)?;
        match self.source {
            Some(source) => write!(f, " from {source}")?,
            None => f.write_str(" from all")?,
        }
        if let Some(destination) = self.destination {
            write!(f, " to {destination}")?;
        }
        for (word, name) in [("iif", &self.iif), ("oif", &self.oif)] {
            if let Some(name) = name {
                write!(f, " {word} {name}")?;
            }
        }
        if let Some((mark, mask)) = self.mark {
            write!(f, " fwmark {mark:#x}/{mask:#x}")?;
        }
        f.write_str(" lookup ")?;
        table(f, self.table)?;
        if let Some(length) = self.suppress_length {
            write!(f, " suppress_prefixlength {length}")?;
        }
        if let Some(group) = self.suppress_group {
            write!(f, " suppress_ifgroup {group}")?;
        }
        ours(f, self.ours)
    }
}
