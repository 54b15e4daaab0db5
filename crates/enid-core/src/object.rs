//! The nouns: what the kernel holds and enid may create, in values that compare.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

/// A hardware address; the identity that metadata and kernel share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The text is not six colon-separated pairs of hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a MAC address")]
pub struct NotAMac(String);

impl FromStr for Mac {
    type Err = NotAMac;

    fn from_str(text: &str) -> Result<Self, NotAMac> {
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            *byte = pairs
                .next()
                .filter(|pair| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit()))
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                .ok_or_else(|| NotAMac(text.to_owned()))?;
        }
        match pairs.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(NotAMac(text.to_owned())),
        }
    }
}

/// The cloud's name of a network interface, `eni-0123456789abcdef0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EniId(pub String);

impl fmt::Display for EniId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The kernel's number of a link; unique as long as the link lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkIndex(pub u32);

/// A routing table's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableId(pub u32);

impl TableId {
    /// The table that everybody shares.
    pub const MAIN: Self = Self(254);
    /// The kernel's table of local and broadcast addresses.
    pub const LOCAL: Self = Self(255);
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            253 => f.write_str("default"),
            254 => f.write_str("main"),
            255 => f.write_str("local"),
            id => write!(f, "{id}"),
        }
    }
}

/// A policy rule's preference; lower numbers are asked first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority(pub u32);

/// A link's group (`ip link set group`); 0 is where every link starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct LinkGroup(pub u32);

/// Who made an object: `rtm_protocol`, `FRA_PROTOCOL` or `IFA_PROTO`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Protocol(pub u8);

impl Protocol {
    /// The mark on everything that enid makes.
    pub const ENID: Self = Self(233);
    /// `RTPROT_KERNEL`: made by the kernel itself.
    pub const KERNEL: Self = Self(2);
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            2 => f.write_str("kernel"),
            3 => f.write_str("boot"),
            4 => f.write_str("static"),
            9 => f.write_str("ra"),
            16 => f.write_str("dhcp"),
            233 => f.write_str("enid"),
            number => write!(f, "{number}"),
        }
    }
}

/// The two address families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The length of a prefix that holds one address: 32 or 128 bits.
    #[must_use]
    pub const fn host_length(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// An address on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The link that has it.
    pub link: LinkIndex,
    /// The address itself.
    pub address: IpAddr,
    /// Bits of the network part.
    pub prefix_length: u8,
    /// Whether the kernel adds the connected route for the prefix by itself (not `noprefixroute`).
    pub prefix_route: bool,
    /// Whether unbound sockets may choose it as source (IPv6: `preferred_lft` is not 0).
    pub preferred: bool,
}

/// What a route does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Send it on.
    Unicast,
    /// Refuse it with "host unreachable".
    Unreachable,
    /// Deliver it here.
    Local,
    /// Anything else, by its `RTN_` number.
    Other(u8),
}

/// A route with one next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The table that holds it.
    pub table: TableId,
    /// Packets to here; `0.0.0.0/0` or `::/0` is the default route.
    pub destination: IpNet,
    /// What it does.
    pub kind: RouteKind,
    /// The next hop, or none when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The link it leaves by; none for `unreachable`.
    pub link: Option<LinkIndex>,
    /// The gateway counts as on the link, whatever other routes say.
    pub on_link: bool,
    /// The preferred source for sockets that have none yet.
    pub source: Option<IpAddr>,
    /// `RTA_PRIORITY`; among equal destinations the lowest wins. IPv6 never has 0.
    pub metric: u32,
}

impl Route {
    /// Whether it takes every packet that no longer prefix takes.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.destination.prefix_len() == 0
    }

    /// Whether this is the route of its table by which the gateway of another one is on the link.
    pub(crate) fn leads_to_gateway_of(&self, other: &Self) -> bool {
        self.gateway.is_none()
            && (self.table, self.link) == (other.table, other.link)
            && !other.on_link
            && other.gateway.is_some_and(|gateway| self.destination.contains(&gateway))
    }
}

/// What a policy rule does with a packet that it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleAction {
    /// Look into a table.
    Lookup(TableId),
    /// Anything else, by its `FR_ACT_` number.
    Other(u8),
}

/// A policy rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Its family.
    pub family: Family,
    /// Its place among the rules.
    pub priority: Priority,
    /// Packets from here; none means all.
    pub source: Option<IpNet>,
    /// Packets to here; none means all.
    pub destination: Option<IpNet>,
    /// Packets that came in by the link of this name; `lo` means made here.
    pub iif: Option<String>,
    /// Packets of sockets bound to the link of this name.
    pub oif: Option<String>,
    /// Packets with this mark under this mask.
    pub mark: Option<(u32, u32)>,
    /// What to do.
    pub action: RuleAction,
    /// Refuse a found route whose prefix is at most this long.
    pub suppress_prefix_length: Option<u32>,
    /// Refuse a found route that leaves by a link of this group.
    pub suppress_group: Option<LinkGroup>,
}

impl Rule {
    /// All packets of a family look into a table.
    #[must_use]
    pub const fn lookup(family: Family, priority: u32, table: TableId) -> Self {
        Self {
            family,
            priority: Priority(priority),
            source: None,
            destination: None,
            iif: None,
            oif: None,
            mark: None,
            action: RuleAction::Lookup(table),
            suppress_prefix_length: None,
            suppress_group: None,
        }
    }
}

/// Marks the connections that come in by a link and whose destination is translated, so that the
/// answers of containers behind a published port leave by it again; an nftables table of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Marking {
    /// The ENI's routing table; the nftables table is called `enid-` and this.
    pub table: TableId,
    /// The link's name.
    pub link: String,
    /// The mark, within [`Marking::MASK`].
    pub mark: u32,
}

impl Marking {
    /// The bits of a packet's and of a connection's mark that are enid's.
    pub const MASK: u32 = 0xfff0_0000;
}

/// Anything that enid creates and deletes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// An address on a link.
    Address(Address),
    /// A route.
    Route(Route),
    /// A policy rule.
    Rule(Rule),
    /// The marking of connections; making one replaces what stands in its place.
    Marking(Marking),
}

/// A per-link kernel setting that enid changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sysctl {
    /// `net.ipv6.conf.LINK.accept_ra_defrtr`
    AcceptRaDefaultRoute,
    /// `net.ipv6.conf.LINK.accept_ra_pinfo`
    AcceptRaPrefix,
    /// `net.ipv4.conf.LINK.arp_ignore`
    ArpIgnore,
    /// `net.ipv4.conf.LINK.arp_announce`
    ArpAnnounce,
    /// `net.ipv4.conf.LINK.src_valid_mark`
    SourceValidMark,
}

impl Sysctl {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::AcceptRaDefaultRoute,
        Self::AcceptRaPrefix,
        Self::ArpIgnore,
        Self::ArpAnnounce,
        Self::SourceValidMark,
    ];

    /// The family whose `net.….conf.LINK` has it.
    #[must_use]
    pub const fn family(self) -> Family {
        match self {
            Self::AcceptRaDefaultRoute | Self::AcceptRaPrefix => Family::V6,
            Self::ArpIgnore | Self::ArpAnnounce | Self::SourceValidMark => Family::V4,
        }
    }

    /// The last part of its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AcceptRaDefaultRoute => "accept_ra_defrtr",
            Self::AcceptRaPrefix => "accept_ra_pinfo",
            Self::ArpIgnore => "arp_ignore",
            Self::ArpAnnounce => "arp_announce",
            Self::SourceValidMark => "src_valid_mark",
        }
    }
}

/// One property of a link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setting {
    /// Administratively up.
    Up,
    /// The largest packet, in bytes.
    Mtu(u32),
    /// The link's group.
    Group(LinkGroup),
    /// One more name (`altname`).
    AlternativeName(String),
    /// A kernel setting of the link and its value.
    Sysctl(Sysctl, i32),
}
