//! What a pass found and what it waits for, in values that the journal and `enictl` print.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::choice::{Contradiction, Prefixes};
use crate::ledger::Pause;
use crate::memory::Contender;
use crate::metadata::Failure;
use crate::object::{EniId, LinkIndex, Mac, Object, Protocol, Setting, TableId};
use crate::plan::Step;
use crate::time::Instant;

mod departure;

pub use departure::{CidrReport, Departure, Kept, KeptAddress, Leaving, Mass, Stop};

/// How far the kernel is from what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Nothing to do, nothing to wait for.
    Converged,
    /// Nothing to do now; something is waited for.
    Waiting,
    /// Steps remain.
    NotYet,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Converged => "converged",
            Self::Waiting => "waiting",
            Self::NotYet => "not yet",
        })
    }
}

/// Why an ENI is left alone: its addresses, routes and rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    /// `enictl release`.
    Released,
    /// `enictl hold`.
    Operator(Pause),
    /// Another program owns the secondary addresses of this host.
    Neighbour(&'static str),
    /// Another ENI already has the table that this one's numbers lead to.
    TableTaken {
        /// The ENI that has it.
        by: Mac,
        /// The table.
        table: TableId,
    },
    /// Several links have its MAC address.
    SeveralLinks,
    /// Metadata does not list it, though its link is here, and nothing is known of it.
    NotListed,
    /// The configuration says to leave it alone.
    Configuration,
    /// Entries of the configuration that match it contradict each other.
    Contradiction(Contradiction),
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Released => f.write_str("released by the operator; `enictl unhold` ends that"),
            Self::Operator(Pause { reason, .. }) => {
                f.write_str("held by the operator")?;
                if !reason.is_empty() {
                    write!(f, " ({reason})")?;
                }
                f.write_str("; `enictl unhold` ends that")
            }
            Self::Neighbour(who) => write!(
                f,
                "{who} owns the secondary addresses of this host; neighbours.cni = \"ignore\" overrides"
            ),
            Self::TableTaken { by, table } => {
                write!(
                    f,
                    "table {table} already belongs to {by}: device-number or network-card is not settled"
                )
            }
            Self::SeveralLinks => f.write_str("several links have this MAC address"),
            Self::NotListed => f.write_str("metadata does not list it"),
            Self::Configuration => f.write_str("the configuration says to leave it alone"),
            Self::Contradiction(contradiction) => contradiction.fmt(f),
        }
    }
}

/// What an ENI waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waiting {
    /// Metadata has not been read yet.
    FirstReading,
    /// These keys are unknown or absent and needed before anything can be configured.
    Keys(Vec<&'static str>),
    /// `device-number` is 0, which only the primary ENI's can be.
    DeviceNumber,
    /// The first of `local-ipv4s` was refused.
    PrimaryAddress(Refusal),
    /// The last reading failed: what was known stays in force, nothing is removed.
    Reading(Failure),
    /// The last reading was not complete: nothing is removed.
    Incomplete(Vec<&'static str>),
    /// Metadata no longer lists it: what was known stays in force, nothing is removed.
    Unlisted,
    /// Metadata does not list it yet.
    NotListed {
        /// It is taken for no ENI after this.
        until: Instant,
    },
    /// udev has not initialised the link yet.
    Udev {
        /// It is not waited for longer than this.
        until: Instant,
    },
    /// Removals that lack proof.
    Removals(usize),
    /// What somebody else keeps undoing.
    Fight {
        /// The step that is taken again and again.
        step: Box<Step>,
        /// Not made again before this.
        until: Instant,
        /// Who undoes it, where that can be told.
        contender: Option<Contender>,
    },
}

impl Waiting {
    /// When it is over at the latest, if it ends by the clock.
    #[must_use]
    pub const fn until(&self) -> Option<Instant> {
        match self {
            Self::Udev { until } | Self::NotListed { until } | Self::Fight { until, .. } => {
                Some(*until)
            }
            Self::FirstReading
            | Self::Keys(_)
            | Self::DeviceNumber
            | Self::PrimaryAddress(_)
            | Self::Reading(_)
            | Self::Incomplete(_)
            | Self::Unlisted
            | Self::Removals(_) => None,
        }
    }

    /// Whether it passes by itself where nothing is wrong.
    #[must_use]
    pub const fn passes(&self) -> bool {
        match self {
            Self::FirstReading
            | Self::Keys(_)
            | Self::DeviceNumber
            | Self::NotListed { .. }
            | Self::Udev { .. }
            | Self::Removals(_) => true,
            Self::PrimaryAddress(_)
            | Self::Reading(_)
            | Self::Incomplete(_)
            | Self::Unlisted
            | Self::Fight { .. } => false,
        }
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirstReading => f.write_str("its metadata has not been read yet"),
            Self::Keys(keys) => write!(f, "metadata still lacks {}", keys.join(", ")),
            Self::DeviceNumber => {
                f.write_str("device-number still reads 0, which is the primary ENI's")
            }
            Self::PrimaryAddress(refusal) => {
                write!(f, "its primary address was refused: {refusal}")
            }
            Self::Reading(failure) => {
                write!(f, "metadata failed ({failure}); nothing is removed meanwhile")
            }
            Self::Incomplete(keys) => write!(
                f,
                "metadata could not be read completely ({}); nothing is removed meanwhile",
                keys.join(", ")
            ),
            Self::Unlisted => f.write_str(
                "metadata no longer lists it; nothing is removed while its link is here",
            ),
            Self::NotListed { .. } => f.write_str("metadata does not list it yet"),
            Self::Udev { .. } => f.write_str("udev has not initialised the link yet"),
            Self::Removals(1) => f.write_str("one removal waits for proof"),
            Self::Removals(n) => write!(f, "{n} removals wait for proof"),
            Self::Fight { step, contender, .. } => {
                let number = |link: LinkIndex| format!("link {}", link.0);
                f.write_str(&fought_over(step, contender.as_ref(), &number))
            }
        }
    }
}

/// Who keeps undoing a step, and what to do about it.
#[must_use]
pub fn fought_over(
    step: &Step,
    contender: Option<&Contender>,
    name_of: &dyn Fn(LinkIndex) -> String,
) -> String {
    let who = contender.map_or_else(|| "somebody".to_owned(), ToString::to_string);
    let remedy = match step {
        Step::Create(Object::Address(_)) => {
            "make it leave the address alone, or list that in ignore_addresses"
        }
        Step::Create(Object::Route(_) | Object::Rule(_) | Object::Marking(_))
        | Step::Replace { .. }
        | Step::Delete(_) => "make it leave what has protocol 233 (enid) alone",
        Step::Set { to: Some(Setting::Mtu(_)), .. } => {
            "make both agree, by mtu in the configuration for one"
        }
        Step::Set { .. } => "make it leave the link alone",
    };
    format!("{who} keeps undoing `{}`: {remedy}", step.command(name_of))
}

/// Why an entry of metadata was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The key that has it.
    pub key: &'static str,
    /// The entry, cut to a printable length.
    pub entry: String,
    /// Why.
    pub reason: RefusalReason,
}

/// Why an entry of metadata was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalReason {
    /// Not what the key holds.
    Malformed,
    /// Not an address of the ENI's subnet.
    OutsideSubnet,
    /// Loopback, multicast, unspecified, broadcast or link-local.
    NotUsable,
    /// The subnet's router.
    Router,
    /// A delegated prefix of one address only.
    OneAddress,
    /// A delegated prefix around the ENI's primary address.
    HoldsPrimary,
    /// Another ENI of this instance has it, too, or a part of it.
    Duplicate(Mac),
    /// Past the number of entries that a list may have.
    TooMany,
    /// The ENI's subnet was this one before, which it does not leave while it is attached.
    AnotherSubnet(IpNet),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" in {}: ", self.entry, self.key)?;
        match self.reason {
            RefusalReason::Malformed => f.write_str("not what this key holds"),
            RefusalReason::OutsideSubnet => f.write_str("not in the ENI's subnet"),
            RefusalReason::NotUsable => f.write_str("not an address that a host can have"),
            RefusalReason::Router => f.write_str("the subnet's router has it"),
            RefusalReason::OneAddress => f.write_str("a delegated prefix is more than one address"),
            RefusalReason::HoldsPrimary => f.write_str("the ENI's primary address is in it"),
            RefusalReason::Duplicate(mac) => write!(f, "{mac} has it, too"),
            RefusalReason::TooMany => f.write_str("the list is too long"),
            RefusalReason::AnotherSubnet(before) => write!(
                f,
                "the ENI's subnet was {before}, and subnets do not change; believed when ten minutes of readings say so"
            ),
        }
    }
}

/// What an operator should know although it stops nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// An entry of metadata was refused.
    Refused(Refusal),
    /// More entries of a key were refused than anybody wants to read.
    MoreRefused {
        /// The key.
        key: &'static str,
        /// How many, beside those that are named.
        count: usize,
    },
    /// Somebody put the link into another group.
    ForeignGroup(u32),
    /// Somebody else's object stands where ours belongs.
    Conflict {
        /// What enid would make.
        wanted: Object,
    },
    /// An address of the ENI is on its link, and a route to it leaves by a link that is no ENI.
    AlsoElsewhere {
        /// The address.
        address: IpAddr,
        /// The other link.
        link: LinkIndex,
    },
    /// A routing table of the ENI has somebody else's routes; they are left there.
    ForeignRoutes(usize),
    /// Somebody else's rules lead into the ENI's table or equal enid's own; they are left there.
    ForeignRules(usize),
    /// Somebody else, a DHCP client as a rule, put routes of a family by this link into main; they
    /// are left there.
    MainRoutes {
        /// One of them is a default route.
        default: bool,
        /// Who says to have made it.
        by: Protocol,
    },
    /// Metadata grants IPv6, which is switched off on the link.
    NoIpv6,
    /// `connected_route` is asked for, and another ENI lies in the same subnet.
    SharedSubnet,
    /// `published_ports` is asked for, and the network card's number is too high for a mark.
    NoMark,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => write!(f, "refused {refusal}"),
            Self::MoreRefused { key, count: 1 } => write!(f, "refused one more entry in {key}"),
            Self::MoreRefused { key, count } => write!(f, "refused {count} more entries in {key}"),
            Self::ForeignGroup(group) => write!(
                f,
                "link group {group} was set by somebody else and is kept: connected routes of this link in main are not suppressed, so replies to its subnet may leave by the wrong ENI"
            ),
            Self::Conflict { wanted } => {
                write!(f, "somebody else's object stands in the place of {wanted:?}")
            }
            Self::AlsoElsewhere { address, link } => write!(
                f,
                "{address} is here, but link {} has it or a route to it, too: take it from one of the two",
                link.0
            ),
            Self::ForeignRoutes(1) => f.write_str("its table has a route that enid did not make"),
            Self::ForeignRoutes(n) => write!(f, "its table has {n} routes that enid did not make"),
            Self::ForeignRules(1) => f.write_str(
                "a rule that enid did not make leads into its table or equals one of enid's",
            ),
            Self::ForeignRules(n) => write!(
                f,
                "{n} rules that enid did not make lead into its table or equal some of enid's"
            ),
            Self::MainRoutes { default: false, by } => write!(
                f,
                "main has a connected route by this link (proto {by}): it stays, and enid's rules come before it"
            ),
            Self::MainRoutes { default: true, by } => write!(
                f,
                "main has a default route by this link (proto {by}): it stays, and enid's rules come before it; sockets without an address of their own may leave by it"
            ),
            Self::NoIpv6 => f.write_str(
                "metadata grants it IPv6, but IPv6 is off on its link (disable_ipv6, or an MTU below 1280)",
            ),
            Self::NoMark => f.write_str(
                "published_ports is not done: its network card's number is too high for a mark",
            ),
            Self::SharedSubnet => f.write_str(
                "connected_route is not made: another ENI lies in the same subnet",
            ),
        }
    }
}

impl Notice {
    /// So many refused entries of a key are named; the rest is counted.
    const NAMED: usize = 8;

    /// The same notices, with no more refused entries of a key than can be read.
    pub(crate) fn few(mut notices: Vec<Self>) -> Vec<Self> {
        let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
        notices.retain(|notice| {
            let Self::Refused(refusal) = notice else { return true };
            let count = counts.entry(refusal.key).or_default();
            *count += 1;
            *count <= Self::NAMED
        });
        let more = counts.into_iter().map(|(key, count)| (key, count.saturating_sub(Self::NAMED)));
        let more = more.filter(|(_, count)| *count > 0);
        notices.extend(more.map(|(key, count)| Self::MoreRefused { key, count }));
        notices
    }
}

/// What an address is to its ENI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The first of `local-ipv4s`.
    Primary,
    /// Any other.
    Secondary,
}

/// How it stands with an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressState {
    /// There, made by enid.
    Ours,
    /// There, made by somebody else (a DHCP client, say).
    Theirs,
    /// There; enid made it, somebody replaced it since: not touched any more.
    TakenOver,
    /// Not there yet; this or a later pass adds it.
    Adding,
    /// Not there, and not enid's to bring back: the primary ENI's first address, or any address of
    /// an ENI that is left alone or has no link.
    Missing,
    /// Metadata no longer shows it; it goes when that is proven.
    Leaving(Leaving),
    /// Left alone by configuration.
    Ignored,
    /// Not added: a route to it leaves by a link that is no ENI (a pod's address).
    Elsewhere {
        /// The link.
        link: LinkIndex,
    },
}

/// One address in the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressReport {
    /// The address.
    pub address: IpAddr,
    /// What it is to the ENI.
    pub role: Role,
    /// How it stands with it.
    pub state: AddressState,
    /// Whose it is; none where it is not there.
    pub origin: Option<Origin>,
    /// The public address that leads to it, where metadata tells one.
    pub public: Option<Ipv4Addr>,
}

/// Whose an address is that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// enid made it.
    Enid,
    /// It has a lifetime, as those of DHCP and of router advertisements have.
    Dynamic,
    /// Somebody else made it, for good.
    Foreign,
}

/// A delegated prefix in the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefixReport {
    /// The prefix.
    pub prefix: IpNet,
    /// What it is for.
    pub mode: Prefixes,
    /// How far the proof is that it is gone, where metadata no longer shows it.
    pub leaving: Option<Leaving>,
}

/// How it stands with an ENI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EniState {
    /// Kept equal to metadata.
    Managed,
    /// Not configured yet.
    Pending,
    /// Left alone.
    Held(Hold),
    /// Metadata lists it; there is no link with its MAC address.
    NoLink,
}

/// One ENI in the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniReport {
    /// Its MAC address.
    pub mac: Mac,
    /// Its id, where known.
    pub id: Option<EniId>,
    /// Its link's number and name, where there is one.
    pub link: Option<(LinkIndex, String)>,
    /// Network card and device number, where known.
    pub place: Option<(u32, u32)>,
    /// Its table, where it has one.
    pub table: Option<TableId>,
    /// Its subnet's CIDRs, IPv4 first, where known.
    pub subnets: Vec<IpNet>,
    /// Whether it is the primary ENI.
    pub primary: bool,
    /// How it stands with it.
    pub state: EniState,
    /// Its addresses, the primary one first.
    pub addresses: Vec<AddressReport>,
    /// Addresses on its link that metadata does not show and that stay for good.
    pub kept: Vec<KeptAddress>,
    /// Its delegated prefixes.
    pub prefixes: Vec<PrefixReport>,
    /// CIDRs of the VPC that metadata no longer shows.
    pub cidrs: Vec<CidrReport>,
    /// The prefixes that its rules match.
    pub sources: Vec<IpNet>,
    /// The gateways of the default routes in its table.
    pub gateways: Vec<IpAddr>,
    /// The last complete reading of its metadata.
    pub read: Option<Instant>,
    /// What it waits for.
    pub waiting: Vec<Waiting>,
    /// What an operator should know.
    pub notices: Vec<Notice>,
}

/// The outcome of looking and deciding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How far it is.
    pub verdict: Verdict,
    /// The ENIs, the primary one first, then by card and device number.
    pub enis: Vec<EniReport>,
}

impl Report {
    /// How many ENIs are managed.
    #[must_use]
    pub fn managed(&self) -> usize {
        self.enis.iter().filter(|eni| eni.state == EniState::Managed).count()
    }

    /// How many addresses of metadata are there.
    #[must_use]
    pub fn present(&self) -> usize {
        self.enis
            .iter()
            .flat_map(|eni| &eni.addresses)
            .filter(|a| {
                matches!(
                    a.state,
                    AddressState::Ours | AddressState::Theirs | AddressState::TakenOver
                )
            })
            .count()
    }

    /// Everything that is waited for, with the ENI that waits.
    pub fn waiting(&self) -> impl Iterator<Item = (&EniReport, &Waiting)> {
        self.enis.iter().flat_map(|eni| eni.waiting.iter().map(move |waiting| (eni, waiting)))
    }
}
