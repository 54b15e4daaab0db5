//! What is looked at: the daemon's word where there is one, the kernel's links and their addresses.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use enid_control::Status;
use enid_control::check::{Finding, FindingId, Severity};
use enid_control::status::{AddressState, Eni, EniState};
use enid_core::config::Config;
use enid_core::object::{Family, LinkIndex, Protocol, RouteKind, RuleAction, TableId};
use enid_core::observed::{Link, Snapshot};
use ipnet::IpNet;

/// A machine as it is now.
pub(super) struct Scene {
    /// What the daemon says; none without one.
    pub(super) status: Option<Status>,
    /// What the kernel says.
    pub(super) snapshot: Snapshot,
    /// The ENIs that have a link.
    pub(super) subjects: Vec<Subject>,
}

/// An ENI with its link.
pub(super) struct Subject {
    /// Its id, else its MAC address; without the daemon its link's name.
    pub(super) name: String,
    pub(super) link: Link,
    /// None without the daemon, which alone knows.
    pub(super) primary: Option<bool>,
    /// Whether enid looks after it, as far as is known.
    pub(super) managed: bool,
    pub(super) table: Option<TableId>,
    pub(super) subnets: Vec<IpNet>,
    /// What its link has, link-local addresses and those of other networks apart.
    pub(super) addresses: Vec<IpNet>,
    /// What must be there and enid does not add.
    pub(super) missing: Vec<IpAddr>,
    /// Whether metadata grants it IPv6; without the daemon whether its link has any.
    pub(super) ipv6: bool,
}

impl Scene {
    pub(super) fn new(status: Option<Status>, snapshot: Snapshot) -> Self {
        let subjects = match &status {
            Some(status) => {
                let known = status.enis.iter();
                known.filter_map(|eni| Subject::told(eni, &snapshot)).collect()
            }
            None => {
                let links = snapshot.links.iter().filter(|link| seems_an_eni(link));
                links.map(|link| Subject::seen(link, &snapshot)).collect()
            }
        };
        Self { status, snapshot, subjects }
    }

    /// The ENI behind a link.
    pub(super) fn subject(&self, link: Option<LinkIndex>) -> Option<&Subject> {
        self.subjects.iter().find(|subject| Some(subject.link.index) == link)
    }

    /// A link's name.
    pub(super) fn name_of(&self, index: LinkIndex) -> String {
        let link = self.snapshot.links.iter().find(|link| link.index == index);
        link.map_or_else(|| format!("link {}", index.0), |link| link.name.clone())
    }

    /// An address of the network that is not this machine's, such as its router's.
    pub(super) fn somebody_in(&self, net: &IpNet) -> Option<IpAddr> {
        let own: BTreeSet<IpAddr> =
            self.snapshot.addresses.iter().map(|seen| seen.address.address).collect();
        net.hosts().find(|host| *host != net.network() && !own.contains(host))
    }

    /// The next hop of the default route by this link, of its own table first.
    pub(super) fn gateway(&self, subject: &Subject, family: Family) -> Option<IpAddr> {
        let by = |table: TableId| {
            self.snapshot.routes.iter().find_map(|seen| {
                let route = &seen.route;
                let fits = route.table == table
                    && route.is_default()
                    && route.link == Some(subject.link.index)
                    && Family::of(route.destination.addr()) == family;
                route.gateway.filter(|_| fits)
            })
        };
        subject.table.and_then(by).or_else(|| by(TableId::MAIN))
    }
}

/// Without the daemon: a link with a device behind it, or one that enid has taken care of.
fn seems_an_eni(link: &Link) -> bool {
    let named = link.alternative_names.iter().any(|name| name.starts_with("eni-"));
    link.may_be_eni() && (link.driver.is_some() || link.group == Config::LINK_GROUP || named)
}

impl Subject {
    /// As the daemon tells it.
    fn told(eni: &Eni, snapshot: &Snapshot) -> Option<Self> {
        let link = snapshot.links.iter().find(|link| Some(&link.name) == eni.link.as_ref())?;
        let granted: BTreeSet<IpAddr> = eni.addresses.iter().map(|known| known.address).collect();
        let its = |net: &IpNet| {
            granted.contains(&net.addr())
                || eni.subnets.iter().any(|subnet| subnet.contains(&net.addr()))
        };
        let missing = eni.addresses.iter().filter(|known| known.state == AddressState::Missing);
        Some(Self {
            name: eni.id.clone().unwrap_or_else(|| eni.mac.clone()),
            primary: Some(eni.primary),
            managed: matches!(eni.state, EniState::Managed | EniState::Pending),
            // Of one that is left alone the daemon tells none, but its rules are there.
            table: eni.table.map(TableId).or_else(|| table_of(link, snapshot)),
            subnets: eni.subnets.clone(),
            addresses: addresses(link, snapshot).filter(its).collect(),
            missing: missing.map(|known| known.address).collect(),
            ipv6: granted.iter().any(IpAddr::is_ipv6)
                || eni.subnets.iter().any(|subnet| subnet.addr().is_ipv6()),
            link: link.clone(),
        })
    }

    /// As the kernel shows it.
    fn seen(link: &Link, snapshot: &Snapshot) -> Self {
        let addresses: Vec<IpNet> = addresses(link, snapshot).collect();
        let table = table_of(link, snapshot);
        let mut subnets: Vec<IpNet> = addresses.iter().map(IpNet::trunc).collect();
        subnets.extend(snapshot.routes.iter().map(|seen| seen.route).filter_map(|route| {
            let on_link = Some(route.table) == table
                && route.link == Some(link.index)
                && route.kind == RouteKind::Unicast
                && route.gateway.is_none();
            on_link.then_some(route.destination)
        }));
        subnets.retain(|net| net.prefix_len() < net.max_prefix_len() && !is_link_local(net.addr()));
        subnets.sort_unstable();
        subnets.dedup();
        Self {
            name: link.name.clone(),
            primary: None,
            managed: true,
            table,
            subnets,
            ipv6: addresses.iter().any(|net| net.addr().is_ipv6()),
            addresses,
            missing: Vec::new(),
            link: link.clone(),
        }
    }

    /// That nothing goes by its link, where that is so, and what ends it.
    pub(super) fn down(&self) -> Option<(&'static str, String)> {
        let name = &self.link.name;
        if !self.link.up {
            Some(("the link is down", format!("ip link set dev {name} up")))
        } else if !self.link.carrier {
            let remedy = format!("ip link set dev {name} down && ip link set dev {name} up");
            Some(("the link has no carrier", remedy))
        } else {
            None
        }
    }

    /// What does not work is broken where enid looks after it; elsewhere it may be meant so.
    pub(super) const fn severity(&self) -> Severity {
        if self.managed { Severity::Broken } else { Severity::Risk }
    }

    /// The same of the ways of packets, to which enid sees only where the ENI has a table.
    pub(super) const fn severity_of_ways(&self) -> Severity {
        match self.table {
            Some(_) => self.severity(),
            None => Severity::Risk,
        }
    }

    /// A finding about its link.
    pub(super) fn finding(&self, id: FindingId, severity: Severity, what: String) -> Finding {
        Finding { link: Some(self.link.name.clone()), ..about(id, severity, what) }
    }
}

/// A finding about nothing in particular.
pub(super) fn about(id: FindingId, severity: Severity, what: String) -> Finding {
    Finding {
        id,
        severity,
        what,
        address: None,
        more_addresses: 0,
        link: None,
        file: None,
        remedy: Vec::new(),
    }
}

/// The table that enid's rule for sockets bound to the link leads to.
fn table_of(link: &Link, snapshot: &Snapshot) -> Option<TableId> {
    let own = snapshot.rules.iter().filter(|seen| seen.protocol == Protocol::ENID);
    own.filter(|seen| seen.rule.oif.as_ref() == Some(&link.name)).find_map(|seen| {
        match seen.rule.action {
            RuleAction::Lookup(table) => Some(table),
            RuleAction::Other(_) => None,
        }
    })
}

fn addresses(link: &Link, snapshot: &Snapshot) -> impl Iterator<Item = IpNet> {
    let on = snapshot.addresses.iter().map(|seen| seen.address);
    on.filter(|address| address.link == link.index && !is_link_local(address.address))
        .filter_map(|address| IpNet::new(address.address, address.prefix_length).ok())
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Adds what was found of one more address to the finding that says the same of others.
pub(super) fn add(findings: &mut Vec<Finding>, finding: Finding) {
    let same = findings.iter_mut().find(|other| {
        let alike =
            |finding: &Finding| Finding { address: None, more_addresses: 0, ..finding.clone() };
        finding.address.is_some() && other.address.is_some() && alike(other) == alike(&finding)
    });
    match same {
        Some(same) if same.address != finding.address => same.more_addresses += 1,
        Some(_) => {}
        None => findings.push(finding),
    }
}

/// Kernel settings, of the network namespace of the calling thread.
#[derive(Default)]
pub(super) struct Settings {
    /// How many were read.
    pub(super) read: u64,
}

impl Settings {
    /// `net.FAMILY.conf.LINK.NAME`; none where the kernel has no such setting.
    pub(super) fn get(&mut self, family: Family, link: &str, name: &str) -> Option<i64> {
        let family = match family {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        };
        let path: std::path::PathBuf = [
            Path::new("/proc/sys/net"),
            Path::new(family),
            "conf".as_ref(),
            link.as_ref(),
            name.as_ref(),
        ]
        .iter()
        .collect();
        let value = fs::read_to_string(path).ok()?.trim().parse().ok()?;
        self.read += 1;
        Some(value)
    }

    /// The larger of `conf.all`'s and the link's, which is what counts of some settings of IPv4.
    pub(super) fn larger(&mut self, link: &str, name: &str) -> Option<i64> {
        let all = self.get(Family::V4, "all", name)?;
        Some(all.max(self.get(Family::V4, link, name)?))
    }
}
