//! What goes, and how far its proof is; what stays although metadata does not show it, and why.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::metadata::Failure;
use crate::object::Mac;

/// Why something of ours goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Departure {
    /// Metadata no longer shows it on this instance.
    #[default]
    Unassigned,
    /// Metadata shows it on another ENI of this instance: it need not be proven.
    Moved(Mac),
    /// The operator dropped it: one fresh complete reading that lacks it is enough.
    Dropped,
}

/// A mass removal: most of what an ENI had when nothing was leaving would go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mass {
    /// How many secondary addresses and delegated prefixes would go.
    pub going: usize,
    /// How many there were.
    pub of: usize,
}

/// What keeps a proof from going on, whatever its count and its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// Metadata could not be read.
    Failed(Failure),
    /// Metadata does not list the ENI.
    Unlisted,
    /// These keys, which say that the ENI is what it seems, are too old or make no sense.
    Identity(Vec<&'static str>),
    /// These keys could not be read, or not all of what they hold was understood.
    Unread(Vec<&'static str>),
    /// The last reading did not go to full depth: one that confirms it comes with the next poll.
    Unconfirmed,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(failure) => write!(f, "metadata failed ({failure})"),
            Self::Unlisted => f.write_str("metadata does not list its ENI"),
            Self::Identity(keys) => {
                write!(f, "{} older than 10 minutes, or makes no sense", keys.join(", "))
            }
            Self::Unread(keys) => write!(f, "{} could not be read completely", keys.join(", ")),
            Self::Unconfirmed => f.write_str("the reading that confirms it is due"),
        }
    }
}

/// How far the proof for a removal has come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leaving {
    /// Why it goes.
    pub cause: Departure,
    /// Complete readings in a row that lacked it.
    pub confirmations: u32,
    /// How many there must be.
    pub needed: u32,
    /// How long they have lacked it.
    pub lacking: Duration,
    /// How long they must.
    pub grace: Duration,
    /// Whether the longer grace applies, because most of what the ENI has would go.
    pub mass: Option<Mass>,
    /// What else must come about first.
    pub stops: Vec<Stop>,
    /// Whether the removal is proven and is about to happen.
    pub proven: bool,
}

/// Why an address that metadata does not show stays for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kept {
    /// enid did not make it.
    Foreign,
    /// It has a lifetime: whoever gave it that, a DHCP client, say, looks after it.
    Dynamic,
    /// It holds on its link only.
    LinkLocal,
    /// enid made it as the ENI's primary address, which never changes.
    Primary,
    /// `ignore_addresses` has it.
    Ignored,
    /// A delegated prefix holds it.
    InPrefix(IpNet),
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign => f.write_str("not made by enid"),
            Self::Dynamic => f.write_str("it has a lifetime, which somebody else renews"),
            Self::LinkLocal => f.write_str("link-local"),
            Self::Primary => f.write_str("made as the primary address, which never changes"),
            Self::Ignored => f.write_str("left alone by configuration"),
            Self::InPrefix(prefix) => write!(f, "in the delegated prefix {prefix}"),
        }
    }
}

/// An address on an ENI's link that metadata does not show and that is never removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptAddress {
    /// The address.
    pub address: IpAddr,
    /// Why it stays.
    pub why: Kept,
}

/// A CIDR of the VPC that metadata no longer shows and that is still routed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CidrReport {
    /// The CIDR.
    pub cidr: IpNet,
    /// How far the proof is that it is gone.
    pub leaving: Leaving,
}
