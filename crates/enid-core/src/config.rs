//! What the operator wants, apart from paths and endpoints: values only, the file format is `enid`'s.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::choice::{Entry, Prefixes};
use crate::object::LinkGroup;
use crate::observed::Link;

/// When the primary ENI gets a table and rules of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrimaryRules {
    /// As soon as another ENI is managed.
    Auto,
    /// Never.
    Never,
}

/// Whether to wait for udev before raising a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Udev {
    /// Where udev runs for this network namespace.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The MTU of ENIs other than the primary one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mtu {
    /// As on the primary ENI's link.
    #[default]
    Primary,
    /// Whatever the link has.
    Keep,
    /// This many bytes.
    Bytes(u32),
}

/// What to do where another owner of the secondary addresses is found on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cni {
    /// Hold the whole instance.
    Hold,
    /// Go on.
    Ignore,
}

/// How sure to be before something is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removal {
    /// Complete readings in a row that must lack it.
    pub confirmations: u32,
    /// How long they must span.
    pub grace: Duration,
    /// How long they must span when most of an ENI's secondary addresses would go.
    pub mass_grace: Duration,
}

/// The operator's choices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// An ENI's table is this + 100·card + device.
    pub table_base: u32,
    /// The first of the rules' priorities.
    pub priority_base: u32,
    /// How often to read the lists of each ENI.
    pub poll_interval: Duration,
    /// When the primary ENI gets rules.
    pub primary_rules: PrimaryRules,
    /// Neither added nor removed.
    pub ignore_addresses: Vec<IpNet>,
    /// How sure to be before something is removed.
    pub removal: Removal,
    /// Whether to wait for udev.
    pub udev: Udev,
    /// The MTU of other ENIs.
    pub mtu: Mtu,
    /// What delegated prefixes are for.
    pub prefixes: Prefixes,
    /// What is chosen for some ENIs only.
    pub enis: Vec<Entry>,
    /// Whether a virtual link (`veth`) is expected to be an ENI as hardware is: in simulations.
    pub virtual_links: bool,
    /// What to do about another owner.
    pub cni: Cni,
    /// Where the metadata service is asked, beside where EC2's answers.
    pub metadata: Vec<IpAddr>,
}

impl Config {
    /// The group that every managed ENI's link is put into.
    pub const LINK_GROUP: LinkGroup = LinkGroup(20_000);

    /// Whether a link that metadata does not list is expected to be listed soon. Containers' links
    /// are not: they come and go by the thousand.
    #[must_use]
    pub fn expects(&self, link: &Link) -> bool {
        self.virtual_links || link.kind.is_none()
    }

    /// Whether container ports are published on any ENI: connections have to be marked then.
    #[must_use]
    pub fn publishes_ports(&self) -> bool {
        self.enis.iter().any(|entry| entry.wishes.published_ports == Some(true))
    }

    /// Whether an address is left to somebody else.
    #[must_use]
    pub fn ignores(&self, address: IpAddr) -> bool {
        self.ignore_addresses.iter().any(|net| net.contains(&address))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            table_base: 20_000,
            priority_base: 20_000,
            poll_interval: Duration::from_secs(5),
            primary_rules: PrimaryRules::Auto,
            ignore_addresses: Vec::new(),
            removal: Removal {
                confirmations: 3,
                grace: Duration::from_secs(60),
                mass_grace: Duration::from_secs(300),
            },
            udev: Udev::Auto,
            mtu: Mtu::Primary,
            prefixes: Prefixes::default(),
            enis: Vec::new(),
            virtual_links: false,
            cni: Cni::Hold,
            metadata: Vec::new(),
        }
    }
}
