//! An instance whose ENIs have everything that metadata can grant, every address of which is pinged
//! throughout, and the faults that its metadata can have.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::imds::{Action, Fault};
use integration::vpc::{Bound, Config, EniId, EniSpec, Instance, MetadataWay, Netns, Pinger, Vpc};
use integration::{Daemon, eventually, holds};
use ipnet::IpNet;
use serde_json::Value;

use crate::metadata_trouble::none_missed;
use crate::pair::{picture, same};
use crate::users::{PATIENCE, answers, status};

/// Removals need no patience: only completeness protects.
pub(crate) const IMPATIENT: &str = "prefixes = \"local\"\npoll_interval = \"100ms\"\n\
    [removal]\nconfirmations = 1\ngrace = \"0s\"\nmass_grace = \"0s\"\n";

/// The second ENI's delegated prefixes.
const PREFIXES: [&str; 2] = ["10.0.2.32/28", "2600:1f16:67f:f202:b::/80"];

pub(crate) fn v4(subnet: u8, host: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, subnet, host).into()
}

pub(crate) fn v6(subnet: u8, host: u8) -> IpAddr {
    let subnet = 0xf200 + u16::from(subnet);
    Ipv6Addr::new(0x2600, 0x1f16, 0x67f, subnet, 0, 0, 0, host.into()).into()
}

/// Everything of the instance's that shall answer throughout: the primary ENI's first.
fn granted() -> Vec<IpAddr> {
    let mut all = vec![v4(1, 4), v4(1, 15), v6(1, 4), v6(1, 0x15)];
    all.extend([v4(2, 4), v4(2, 15), v6(2, 4), v6(2, 0x15), v6(3, 4), v6(3, 0x15)]);
    all.extend([v4(2, 41), "2600:1f16:67f:f202:b::29".parse().unwrap_or(v6(2, 4))]);
    all
}

/// One of the instance's three ENIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// `ens5`, of both families.
    Primary,
    /// `ens6`, of both families, with delegated prefixes.
    Second,
    /// `ens7`, in a subnet of IPv6 alone.
    Third,
}

impl At {
    pub(crate) const ALL: [At; 3] = [At::Primary, At::Second, At::Third];

    /// The nth address that comes and goes at this ENI.
    fn guest(self, n: u8) -> IpAddr {
        match self {
            At::Primary => v4(1, n),
            At::Second => v4(2, n),
            At::Third => v6(3, n),
        }
    }
}

/// The instance, its ENIs, who pings them, and how its kernel looked when all was well.
pub(crate) struct Stage {
    pub(crate) vpc: Vpc,
    pub(crate) instance: Instance,
    pub(crate) host: Instance,
    second: EniId,
    third: EniId,
    pingers: Vec<(IpAddr, Pinger)>,
    /// Without the addresses that come and go.
    before: BTreeSet<String>,
    guests: Vec<IpAddr>,
    next: u8,
}

impl Stage {
    /// Everything is configured, and every address answers from now on.
    pub(crate) fn set(extra: &str) -> anyhow::Result<(Stage, Daemon)> {
        let config = Config::default()
            .dual_subnet("10.0.1.0/24", "2600:1f16:67f:f201::/64")
            .dual_subnet("10.0.2.0/24", "2600:1f16:67f:f202::/64")
            .subnet_v6("2600:1f16:67f:f203::/64")
            .dual_subnet("10.0.254.0/24", "2600:1f16:67f:f2fe::/64")
            .lease_v6(3600, 7200);
        let vpc = Vpc::new(config)?;
        let first = EniSpec::new([v4(1, 4), v4(1, 15), v6(1, 4), v6(1, 0x15)]);
        let instance = vpc.instance("main", first)?;
        let mut second = EniSpec::new([v4(2, 4), v4(2, 15), v6(2, 4), v6(2, 0x15)]);
        for prefix in PREFIXES {
            second = second.prefix(prefix.parse::<IpNet>()?);
        }
        let second = vpc.create_eni(second)?;
        let third = vpc.create_eni(EniSpec::new([v6(3, 4), v6(3, 0x15)]))?;
        let host = vpc.instance("host", EniSpec::new([v4(254, 4), v6(254, 4)]))?;
        vpc.attach_all(&[(&second, "ens6"), (&third, "ens7")], &instance)?;
        // Binding an address of a local IPv6 prefix is not asked for; answering is.
        let daemon = Daemon::ready(&instance, extra)?;
        let mut stage = Stage {
            vpc,
            instance,
            host,
            second,
            third,
            pingers: Vec::new(),
            before: BTreeSet::new(),
            guests: Vec::new(),
            next: 100,
        };
        eventually(PATIENCE, "every address answers", &daemon, || {
            granted().into_iter().try_for_each(|address| answers(&stage.host, address))
        })?;
        stage.comes_to_rest(&daemon)?;
        stage.before = picture(&stage.instance)?;
        for address in granted() {
            stage.ping(address)?;
        }
        Ok((stage, daemon))
    }

    pub(crate) fn eni(&self, at: At) -> &EniId {
        match at {
            At::Primary => &self.instance.primary,
            At::Second => &self.second,
            At::Third => &self.third,
        }
    }

    /// The MAC address of an ENI, as metadata writes it.
    pub(crate) fn mac(&self, at: At) -> anyhow::Result<String> {
        Ok(self.vpc.eni(self.eni(at))?.mac.to_string())
    }

    fn ping(&mut self, address: IpAddr) -> anyhow::Result<()> {
        self.pingers.push((address, self.pinger(address)?));
        Ok(())
    }

    /// A steady stream of requests from another host to an address of the instance.
    pub(crate) fn pinger(&self, address: IpAddr) -> anyhow::Result<Pinger> {
        Pinger::start(&self.host, address, &Bound::No, Duration::from_millis(200))
    }

    /// Every request so far was or will be answered, however busy the machine.
    pub(crate) fn none_missed(&self) -> anyhow::Result<()> {
        let mut pingers = self.pingers.iter();
        pingers.try_for_each(|(to, pinger)| none_missed(pinger).with_context(|| to.to_string()))
    }

    /// Metadata is read completely, nothing is left to do and nothing is waited for.
    pub(crate) fn comes_to_rest(&self, daemon: &Daemon) -> anyhow::Result<()> {
        eventually(PATIENCE, "enid has converged", daemon, || {
            refresh(daemon)?;
            let status = status(daemon)?;
            ensure!(status["verdict"] == "converged", "{status}");
            Ok(())
        })
    }

    /// Sets a fault on what this instance asks.
    pub(crate) fn fault(&self, pattern: &str, action: Action) {
        self.vpc.metadata().fault(Fault::on(pattern, action).instance(&self.instance.id));
    }

    /// Metadata is well again.
    pub(crate) fn mend(&self) -> anyhow::Result<()> {
        let metadata = self.vpc.metadata();
        metadata.clear_all();
        metadata.thaw(&self.instance.id);
        At::ALL.iter().for_each(|at| metadata.reveal(self.eni(*at)));
        self.vpc.set_metadata_way(MetadataWay::Open)
    }

    /// Assigns an address that was never there.
    pub(crate) fn comes(&mut self, at: At) -> anyhow::Result<IpAddr> {
        self.next += 1;
        ensure!(self.next < 250, "no address is left");
        let guest = at.guest(self.next);
        self.guests.push(guest);
        self.vpc.assign(self.eni(at), guest, None)?;
        Ok(guest)
    }

    /// Takes an address away.
    pub(crate) fn goes(&self, at: At, guest: IpAddr) -> anyhow::Result<()> {
        self.vpc.unassign(self.eni(at), guest)
    }

    /// Nothing but addresses that come and go differs from when all was well.
    pub(crate) fn untouched(&self) -> anyhow::Result<()> {
        let mut now = picture(&self.instance)?;
        now.retain(|line| !self.guests.iter().any(|guest| shows(line, *guest)));
        same(&self.before, &now)
    }

    /// Whether the kernel has an address.
    pub(crate) fn has(&self, address: IpAddr) -> anyhow::Result<bool> {
        has(&self.instance, address)
    }

    pub(crate) fn keeps(&self, address: IpAddr) -> anyhow::Result<()> {
        ensure!(self.has(address)?, "{address} has gone");
        Ok(())
    }

    /// Nothing changes for that long; the addresses that are leaving are there as well.
    pub(crate) fn stays(
        &self,
        duration: Duration,
        what: &str,
        daemon: &Daemon,
        leaving: &[IpAddr],
    ) -> anyhow::Result<()> {
        holds(duration, &format!("{what}: nothing is changed"), daemon, || {
            self.untouched()?;
            leaving.iter().try_for_each(|address| self.keeps(*address))
        })
    }

    /// Everything is as before, the one is there and answers, and the other has gone.
    pub(crate) fn recovers(
        &self,
        what: &str,
        daemon: &Daemon,
        came: &[IpAddr],
        gone: &[IpAddr],
    ) -> anyhow::Result<()> {
        eventually(PATIENCE, &format!("{what}: all is well again"), daemon, || {
            refresh(daemon)?;
            for address in came {
                answers(&self.host, *address)?;
            }
            for address in gone {
                ensure!(!self.has(*address)?, "{address} is still there");
            }
            let status = status(daemon)?;
            ensure!(status["verdict"] == "converged", "{status}");
            self.untouched()
        })?;
        self.none_missed().with_context(|| what.to_owned())
    }
}

/// Metadata is read now, in full; whether that leads to anything is looked at elsewhere.
pub(crate) fn refresh(daemon: &Daemon) -> anyhow::Result<Value> {
    daemon.enictl().run(&["refresh", "--json"])?.json()
}

fn has(netns: &Netns, address: IpAddr) -> anyhow::Result<bool> {
    let links = netns.ip_json(&["addr"])?;
    let infos = links.as_array().into_iter().flatten();
    let mut infos = infos.filter_map(|link| link["addr_info"].as_array()).flatten();
    Ok(infos.any(|info| info["local"] == address.to_string()))
}

/// Whether a line of a picture is about an address, or is the kernel's own of it.
fn shows(line: &str, address: IpAddr) -> bool {
    line.contains(&format!("\"local\":\"{address}\""))
        || line.contains(&format!("\"dst\":\"{address}\""))
}
