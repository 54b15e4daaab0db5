//! What `enictl check` found, as it prints it in JSON; it never goes over the socket.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::SCHEMA;

/// How it stands with the network of this machine, by what its kernel and its files say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Check {
    /// [`crate::SCHEMA`].
    pub schema: u32,
    /// Whether a daemon was asked; without one only what the links have is known.
    pub daemon: bool,
    /// The worst of the findings and probes; none when there is nothing to say.
    pub worst: Option<Severity>,
    /// How much was looked at.
    pub checked: Checked,
    /// What could not be looked at, and who can tell, in words.
    pub unchecked: Vec<String>,
    /// What was found, the worst first.
    pub findings: Vec<Finding>,
    /// What `--probe` brought, by target and then by source.
    pub probes: Vec<Probe>,
}

impl Check {
    /// Sorts the findings and says what the worst is.
    #[must_use]
    pub fn new(
        daemon: bool,
        checked: Checked,
        unchecked: Vec<String>,
        mut findings: Vec<Finding>,
        probes: Vec<Probe>,
    ) -> Self {
        findings.sort_by(|a, b| {
            let key = |f: &Finding| (f.severity, f.id, f.link.clone(), f.address);
            key(a).cmp(&key(b))
        });
        let failed = probes.iter().any(|probe| probe.error.is_some());
        let probes_say = failed.then_some(Severity::Broken);
        let worst = findings.iter().map(|finding| finding.severity).chain(probes_say).min();
        Self { schema: SCHEMA, daemon, worst, checked, unchecked, findings, probes }
    }
}

/// How bad a finding is; the worst comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Something does not work now.
    Broken,
    /// Something works now and may not go on to.
    Risk,
    /// Good to know; nothing has to be done.
    Note,
}

/// How much was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Checked {
    /// ENIs with a link.
    pub enis: u64,
    /// Addresses on their links.
    pub addresses: u64,
    /// Ways that the kernel was asked for, in both directions.
    pub ways: u64,
    /// Kernel settings that were read.
    pub settings: u64,
    /// Other programs that were looked for.
    pub neighbours: u64,
    /// How reverse paths are filtered on each link.
    pub reverse_paths: Vec<ReversePath>,
}

/// How reverse paths are filtered on a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ReversePath {
    /// The link.
    pub link: String,
    /// The value that counts: the larger of `conf.all.rp_filter` and the link's own.
    pub rp_filter: u8,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Finding {
    /// What kind of thing it is.
    pub id: FindingId,
    /// How bad it is.
    pub severity: Severity,
    /// What it is, in words.
    pub what: String,
    /// The address that it is about; the first of several.
    pub address: Option<IpAddr>,
    /// How many addresses it is about beside that one.
    pub more_addresses: u64,
    /// The link that it is about.
    pub link: Option<String>,
    /// The file that it is about.
    pub file: Option<String>,
    /// What ends it: commands, or lines for a file.
    pub remedy: Vec<String>,
}

/// What kinds of things are found; `docs/operating.md` has a section for each, which is called so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum FindingId {
    /// A link is down, or has no carrier.
    LinkDown,
    /// An address that must be there is not.
    AddressMissing,
    /// No rule leads to the kernel's own addresses.
    LocalRuleMissing,
    /// What is sent from an address goes nowhere.
    NoWayOut,
    /// What is sent from an address leaves by another ENI, where the cloud drops it.
    WrongEni,
    /// What is sent from an address leaves by a link that is no ENI.
    Diverted,
    /// What comes in for an address is not delivered.
    NotDelivered,
    /// The strict reverse path filter drops what comes in for an address.
    StrictReversePath,
    /// The strict reverse path filter drops multicast from the ENI's own subnet.
    StrictMulticast,
    /// Connections to published ports are dropped by the strict reverse path filter.
    MarkNotValid,
    /// Requests for a hardware address are not answered.
    ArpSilent,
    /// IPv6 is off on a link whose ENI has it.
    Ipv6Off,
    /// The kernel forwards IPv6 and therefore hears no router.
    RouterNotHeard,
    /// Metadata does not answer the daemon.
    MetadataUnread,
    /// Other programs do not reach metadata.
    MetadataWay,
    /// The daemon has something left to do.
    Unfinished,
    /// systemd-networkd removes what enid made.
    Networkd,
    /// systemd-networkd has not read the setting that keeps it from that.
    NetworkdNotRestarted,
    /// NetworkManager manages an ENI.
    NetworkManager,
    /// nm-cloud-setup manages addresses and rules, too.
    NmCloudSetup,
    /// The VPC CNI manages the secondary addresses.
    VpcCni,
    /// Cilium manages the secondary addresses.
    Cilium,
    /// cloud-netconfig manages addresses and rules, too.
    CloudNetconfig,
    /// amazon-ec2-net-utils manages addresses and rules, too.
    Ec2NetUtils,
    /// A container's port is published on an ENI by which its answers do not leave.
    PublishedPorts,
}

impl FindingId {
    /// All of them.
    pub const ALL: [Self; 25] = [
        Self::LinkDown,
        Self::AddressMissing,
        Self::LocalRuleMissing,
        Self::NoWayOut,
        Self::WrongEni,
        Self::Diverted,
        Self::NotDelivered,
        Self::StrictReversePath,
        Self::StrictMulticast,
        Self::MarkNotValid,
        Self::ArpSilent,
        Self::Ipv6Off,
        Self::RouterNotHeard,
        Self::MetadataUnread,
        Self::MetadataWay,
        Self::Unfinished,
        Self::Networkd,
        Self::NetworkdNotRestarted,
        Self::NetworkManager,
        Self::NmCloudSetup,
        Self::VpcCni,
        Self::Cilium,
        Self::CloudNetconfig,
        Self::Ec2NetUtils,
        Self::PublishedPorts,
    ];

    /// Its name in JSON, and the anchor of its section in `docs/operating.md`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LinkDown => "link-down",
            Self::AddressMissing => "address-missing",
            Self::LocalRuleMissing => "local-rule-missing",
            Self::NoWayOut => "no-way-out",
            Self::WrongEni => "wrong-eni",
            Self::Diverted => "diverted",
            Self::NotDelivered => "not-delivered",
            Self::StrictReversePath => "strict-reverse-path",
            Self::StrictMulticast => "strict-multicast",
            Self::MarkNotValid => "mark-not-valid",
            Self::ArpSilent => "arp-silent",
            Self::Ipv6Off => "ipv6-off",
            Self::RouterNotHeard => "router-not-heard",
            Self::MetadataUnread => "metadata-unread",
            Self::MetadataWay => "metadata-way",
            Self::Unfinished => "unfinished",
            Self::Networkd => "networkd",
            Self::NetworkdNotRestarted => "networkd-not-restarted",
            Self::NetworkManager => "network-manager",
            Self::NmCloudSetup => "nm-cloud-setup",
            Self::VpcCni => "vpc-cni",
            Self::Cilium => "cilium",
            Self::CloudNetconfig => "cloud-netconfig",
            Self::Ec2NetUtils => "ec2-net-utils",
            Self::PublishedPorts => "published-ports",
        }
    }
}

/// One connection that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Probe {
    /// What was asked for, `HOST:PORT`.
    pub to: String,
    /// Its address.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub target: SocketAddr,
    /// The address that it was bound to.
    pub source: IpAddr,
    /// The link that has the source.
    pub link: String,
    /// How long it took until it was open or had failed, in microseconds.
    pub duration_us: u64,
    /// Why it did not open; none where it did.
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_called_the_same_in_json_and_in_the_documentation() {
        let docs = include_str!("../../../docs/operating.md");
        for id in FindingId::ALL {
            assert_eq!(serde_json::to_value(id).unwrap(), id.name());
            let heading = format!("\n### {}\n", id.name());
            assert_eq!(docs.matches(&heading).count(), 1, "{heading}");
        }
    }

    #[test]
    fn the_worst_comes_first_and_a_failed_probe_is_as_bad_as_can_be() {
        let finding = |id, severity| Finding {
            id,
            severity,
            what: String::new(),
            address: None,
            more_addresses: 0,
            link: None,
            file: None,
            remedy: Vec::new(),
        };
        let findings = || {
            vec![
                finding(FindingId::LinkDown, Severity::Note),
                finding(FindingId::Cilium, Severity::Risk),
            ]
        };
        let check = |probes| Check::new(true, Checked::default(), Vec::new(), findings(), probes);
        let found = check(Vec::new());
        assert_eq!(found.worst, Some(Severity::Risk));
        assert_eq!(found.findings[0].id, FindingId::Cilium);
        let probe = |error: Option<&str>| Probe {
            to: "a:1".to_owned(),
            target: "192.0.2.1:1".parse().unwrap(),
            source: "192.0.2.2".parse().unwrap(),
            link: "ens5".to_owned(),
            duration_us: 1,
            error: error.map(str::to_owned),
        };
        assert_eq!(check(vec![probe(None)]).worst, Some(Severity::Risk));
        assert_eq!(check(vec![probe(None), probe(Some("no"))]).worst, Some(Severity::Broken));
    }
}
