//! What the metadata service says: what to ask for, the raw answers, and what they mean.

mod entries;
pub mod facts;
pub mod history;
mod subnet;

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use crate::object::{Family, Mac};
use crate::time::Instant;

/// A key of one ENI under `network/interfaces/macs/<mac>/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EniKey {
    /// `device-number`: decimal, unique within one network card.
    DeviceNumber,
    /// `network-card`: decimal; absent on types with a single card.
    NetworkCard,
    /// `interface-id`: `eni-…`.
    InterfaceId,
    /// `mac`.
    Mac,
    /// `subnet-ipv4-cidr-block`: a CIDR; absent in an IPv6-only subnet.
    SubnetIpv4,
    /// `subnet-ipv6-cidr-blocks`: CIDRs.
    SubnetIpv6,
    /// `subnet-id`.
    SubnetId,
    /// `vpc-id`.
    VpcId,
    /// `vpc-ipv4-cidr-blocks`: CIDRs.
    VpcIpv4,
    /// `vpc-ipv6-cidr-blocks`: CIDRs.
    VpcIpv6,
    /// `local-ipv4s`: addresses, the primary one first.
    LocalIpv4s,
    /// `ipv6s`: addresses.
    Ipv6s,
    /// `ipv4-prefix`: delegated /28 CIDRs.
    Ipv4Prefixes,
    /// `ipv6-prefix`: delegated /80 CIDRs.
    Ipv6Prefixes,
}

impl EniKey {
    /// The keys that change while an ENI is attached: read at every poll.
    pub const LISTS: [Self; 4] =
        [Self::LocalIpv4s, Self::Ipv6s, Self::Ipv4Prefixes, Self::Ipv6Prefixes];

    /// The keys that hardly ever change: read on attach, every ten minutes and before a removal.
    pub const CONSTANTS: [Self; 10] = [
        Self::DeviceNumber,
        Self::NetworkCard,
        Self::InterfaceId,
        Self::Mac,
        Self::SubnetIpv4,
        Self::SubnetIpv6,
        Self::SubnetId,
        Self::VpcId,
        Self::VpcIpv4,
        Self::VpcIpv6,
    ];

    /// Those that say that an ENI is the one it seems to be.
    pub const IDENTITY: [Self; 3] = [Self::DeviceNumber, Self::InterfaceId, Self::Mac];

    /// The key that lists a family's addresses.
    #[must_use]
    pub const fn addresses(family: Family) -> Self {
        match family {
            Family::V4 => Self::LocalIpv4s,
            Family::V6 => Self::Ipv6s,
        }
    }

    /// The key's name in the listing of an ENI.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DeviceNumber => "device-number",
            Self::NetworkCard => "network-card",
            Self::InterfaceId => "interface-id",
            Self::Mac => "mac",
            Self::SubnetIpv4 => "subnet-ipv4-cidr-block",
            Self::SubnetIpv6 => "subnet-ipv6-cidr-blocks",
            Self::SubnetId => "subnet-id",
            Self::VpcId => "vpc-id",
            Self::VpcIpv4 => "vpc-ipv4-cidr-blocks",
            Self::VpcIpv6 => "vpc-ipv6-cidr-blocks",
            Self::LocalIpv4s => "local-ipv4s",
            Self::Ipv6s => "ipv6s",
            Self::Ipv4Prefixes => "ipv4-prefix",
            Self::Ipv6Prefixes => "ipv6-prefix",
        }
    }
}

/// Why a key could not be read; its value is unknown then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// No answer in time.
    Timeout,
    /// No connection, or it broke: the cause in words.
    Unreachable(String),
    /// 401 even with a fresh token.
    Unauthorized,
    /// 403: metadata is switched off, or refused to this process.
    Forbidden,
    /// Another status than 200, 401, 403 and 404.
    Status(u16),
    /// Longer than the cap on answers.
    TooLong,
    /// Not text.
    Malformed(String),
    /// No session token, with this status: a service of version 1 at most.
    NoToken(u16),
    /// These top-level keys are not there: a service that resembles EC2's.
    Lacks(Vec<&'static str>),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("no answer in time"),
            Self::Unreachable(cause) => write!(f, "not reachable: {cause}"),
            Self::Unauthorized => f.write_str("401: the session token was refused"),
            Self::Forbidden => f.write_str("403: metadata is off, or refused to this process"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::TooLong => f.write_str("the answer is too long"),
            Self::Malformed(cause) => write!(f, "the answer makes no sense: {cause}"),
            Self::NoToken(status) => write!(
                f,
                "status {status} for a session token: this service has version 1 (IMDSv1) at most; \
                 allow_v1 = true in [metadata] of the configuration reads that"
            ),
            Self::Lacks(keys) => write!(
                f,
                "this service has no {}: it does not tell which network interfaces there are, so \
                 nothing can be configured",
                keys.join(" and no ")
            ),
        }
    }
}

/// What one request brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// 200 and the body.
    Text(String),
    /// 404.
    NotFound,
    /// Anything else.
    Failed(Failure),
}

/// How much of an ENI to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// Its listing and those of [`EniKey::LISTS`] that the listing shows.
    Lists,
    /// Also those of [`EniKey::CONSTANTS`] that the listing shows.
    Full,
}

/// What to read in one poll.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ask {
    /// Read the top-level `mac` and the list `network/interfaces/macs/`.
    pub top: bool,
    /// Read these ENIs, each this deep.
    pub enis: BTreeMap<Mac, Depth>,
}

/// One ENI as one poll read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniAnswers {
    /// How deep it was read.
    pub depth: Depth,
    /// `network/interfaces/macs/<mac>/`, entries separated by white space, directories with a
    /// trailing `/`.
    pub listing: Answer,
    /// Each key that the listing shows and that the depth includes.
    pub keys: BTreeMap<EniKey, Answer>,
    /// What [`ASSOCIATIONS`] holds.
    pub associations: Associations,
}

/// The directory of an ENI that says which public IPv4 addresses lead to it. Nothing is decided by
/// it, so it is never waited for.
pub const ASSOCIATIONS: &str = "ipv4-associations";

/// What a reading brought of [`ASSOCIATIONS`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Associations {
    /// It was not asked for, or could not be read.
    #[default]
    Unknown,
    /// Each public address that it shows, with the answer that names the private one; empty where
    /// the ENI has no such directory.
    Read(BTreeMap<Ipv4Addr, Answer>),
}

/// The answers to an [`Ask`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Poll {
    /// When its first request went out.
    pub at: Instant,
    /// The top-level `mac`, where asked for.
    pub mac: Option<Answer>,
    /// `network/interfaces/macs/`, where asked for.
    pub macs: Option<Answer>,
    /// The ENIs asked for.
    pub enis: BTreeMap<Mac, EniAnswers>,
}
