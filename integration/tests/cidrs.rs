//! Promise: CIDRs of the VPC, and a subnet's IPv6, may come while enid runs, and CIDRs may go: who lies
//! there is reached through the VPC's router from every ENI, whatever main says of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::vpc::{Bound, Config, Echo, EniId, EniSpec, Instance, IpNet, Vpc, whoami};
use integration::{Daemon, eventually, holds, trial};
use libtest_mimic::Trial;

use crate::pair::{comes_to_rest, picture, same};
use crate::users::{PATIENCE, WHOAMI, answers, drops, is_settled, leaves_by, reaches};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("cidrs::one_that_appears_is_reached_from_every_eni", || appears(2)),
        trial("cidrs::one_that_appears_passes_a_strict_filter", || appears(1)),
        trial("cidrs::one_that_is_gone_loses_its_routes_on_proof_only", goes),
        trial(
            "cidrs::one_that_is_gone_goes_although_an_eni_came_later_that_never_showed_it",
            latecomer,
        ),
        trial("cidrs::ipv6_that_a_subnet_gets_while_enid_runs_works", subnet_gets_ipv6),
    ]
}

/// The secondary CIDRs, and a subnet of each.
const V4: (&str, &str) = ("100.64.0.0/16", "100.64.7.0/24");
const V6: (&str, &str) = ("2600:1f16:99:a00::/56", "2600:1f16:99:a07::/64");
const FAR: [&str; 2] = ["100.64.7.9", "2600:1f16:99:a07::9"];

fn both(subnet: u8, host: u8) -> [IpAddr; 2] {
    let six = 0xf200 + u16::from(subnet);
    let v6 = Ipv6Addr::new(0x2600, 0x1f16, 0x67f, six, 0, 0, 0, u16::from(host));
    [Ipv4Addr::new(10, 0, subnet, host).into(), v6.into()]
}

struct Stage {
    vpc: Vpc,
    instance: Instance,
    second: EniId,
    _service: Echo,
}

impl Stage {
    fn build(rp_filter: u8) -> anyhow::Result<Stage> {
        let config = Config::default()
            .dual_subnet("10.0.1.0/24", "2600:1f16:67f:f201::/64")
            .dual_subnet("10.0.2.0/24", "2600:1f16:67f:f202::/64")
            .rp_filter(rp_filter);
        let vpc = Vpc::new(config)?;
        let instance = vpc.instance("main", EniSpec::new(both(1, 4)))?;
        let second = vpc.create_eni(EniSpec::new(both(2, 4)))?;
        vpc.attach(&second, &instance, "ens6")?;
        let _service = Echo::start(&instance, WHOAMI)?;
        Ok(Stage { vpc, instance, second, _service })
    }

    fn enis(&self) -> [(&EniId, &'static str, [IpAddr; 2]); 2] {
        [(&self.instance.primary, "ens5", both(1, 4)), (&self.second, "ens6", both(2, 4))]
    }

    /// The VPC gets both CIDRs and a host in them.
    fn add(&self) -> anyhow::Result<(Instance, Echo)> {
        self.vpc.add_cidr(V4.0.parse::<IpNet>()?)?;
        self.vpc.add_cidr(V6.0.parse::<IpNet>()?)?;
        self.vpc.add_subnet(Some(V4.1.parse()?), Some(V6.1.parse()?))?;
        let addresses = [FAR[0].parse()?, FAR[1].parse::<IpAddr>()?];
        let host = self.vpc.instance("far", EniSpec::new(addresses))?;
        let service = Echo::start(&host, WHOAMI)?;
        Ok((host, service))
    }

    /// What is not the VPC's goes by a firewall in the primary ENI's subnet, which lets nothing through;
    /// without it, nobody would notice whether there are routes to the VPC's CIDRs.
    fn default_by_an_appliance(&self) -> anyhow::Result<()> {
        let lines = [
            "neigh replace 10.0.1.77 lladdr 02:00:00:00:00:77 dev ens5 nud permanent",
            "route add 169.254.169.254 dev ens5",
            "route del default dev ens5",
            "route add default via 10.0.1.77 dev ens5 proto dhcp src 10.0.1.4 metric 512",
        ];
        self.instance.ip_batch(&lines.map(ToOwned::to_owned))
    }

    /// How the host and every ENI reach each other.
    fn works(&self, host: &Instance) -> anyhow::Result<()> {
        for (_, link, own) in self.enis() {
            for (own, far) in own.into_iter().zip(FAR) {
                let far: IpAddr = far.parse()?;
                answers(host, own)?;
                reaches(&self.instance, own, far)?;
                let by = leaves_by(&self.instance, own, far)?;
                ensure!(by == link, "from {own} to {far} by {by}");
                for bound in [Bound::Address(own), Bound::Device(link.to_owned())] {
                    let seen = whoami(&self.instance, (far, WHOAMI).into(), &bound)?;
                    ensure!(seen == own, "bound to {bound:?}, {far} sees {seen}");
                }
                let seen = whoami(host, (own, WHOAMI).into(), &Bound::No)?;
                ensure!(seen == far, "{own} sees {seen}");
            }
        }
        Ok(())
    }

    fn comes_to_work(&self, daemon: &Daemon, host: &Instance) -> anyhow::Result<()> {
        eventually(PATIENCE, "the new CIDRs are reached", daemon, || self.works(host))?;
        let enis = || self.enis().map(|(eni, ..)| eni);
        let before = drops(&self.vpc, enis())?;
        self.works(host)?;
        ensure!(drops(&self.vpc, enis())? == before, "the fabric dropped foreign sources");
        Ok(())
    }

    /// In how many of the ENIs' tables there is a route to a CIDR, by the router of the subnet.
    fn routes(&self, cidr: &str) -> anyhow::Result<usize> {
        let mut count = 0;
        for table in ["20000", "20001"] {
            let family = if cidr.contains(':') { "-6" } else { "-4" };
            let said = self.instance.output(&["ip", family, "route", "show", "table", table])?;
            let mut lines = said.stdout.lines().filter(|line| line.starts_with(cidr));
            count += usize::from(lines.any(|line| line.contains(" via ")));
        }
        Ok(count)
    }
}

fn appears(rp_filter: u8) -> anyhow::Result<()> {
    let stage = Stage::build(rp_filter)?;
    stage.default_by_an_appliance()?;
    let mut daemon = Daemon::ready(&stage.instance, "")?;
    comes_to_rest(&daemon)?;
    let (host, _service) = stage.add()?;
    ensure!(stage.works(&host).is_err(), "the appliance lets them through");
    daemon.enictl().run(&["refresh", "--wait"])?.success()?;
    for cidr in [V4.0, V6.0] {
        ensure!(stage.routes(cidr)? == 2, "{} routes to {cidr}", stage.routes(cidr)?);
    }
    stage.comes_to_work(&daemon, &host)?;
    is_settled(&daemon)?;
    let before = picture(&stage.instance)?;
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    is_settled(&daemon)?;
    same(&before, &picture(&stage.instance)?)?;
    stage.comes_to_work(&daemon, &host)?;
    daemon.terminate()
}

fn goes() -> anyhow::Result<()> {
    let stage = Stage::build(1)?;
    let quick = "poll_interval = \"100ms\"\n[removal]\nconfirmations = 3\ngrace = \"6s\"\n";
    let mut daemon = Daemon::ready(&stage.instance, quick)?;
    let (host, service) = stage.add()?;
    daemon.enictl().run(&["refresh", "--wait"])?.success()?;
    stage.comes_to_work(&daemon, &host)?;
    let there = |cidrs: &[&str]| -> anyhow::Result<()> {
        for cidr in cidrs {
            ensure!(stage.routes(cidr)? == 2, "{} routes to {cidr}", stage.routes(cidr)?);
        }
        Ok(())
    };
    let theirs = "route add 100.64.0.0/12 via 10.0.2.77 dev ens6 table 20001 proto 99";
    stage.instance.ip_batch(&[theirs.to_owned()])?;
    drop(service);
    stage.vpc.detach(&host.primary)?;
    for cidr in [V4.0, V6.0] {
        stage.vpc.remove_cidr(cidr.parse::<IpNet>()?)?;
    }
    let refresh = || -> anyhow::Result<()> {
        daemon.enictl().run(&["refresh"])?.success()?;
        Ok(())
    };
    refresh()?;
    holds(Duration::from_millis(1500), "one reading proves nothing", &daemon, || {
        there(&[V4.0, V6.0])
    })?;
    // It was a mistake of metadata's: one of them is back, and its count begins anew.
    stage.vpc.add_cidr(V6.0.parse::<IpNet>()?)?;
    let gone = |cidr: &str| -> anyhow::Result<()> {
        ensure!(stage.routes(cidr)? == 0, "{} routes to {cidr}", stage.routes(cidr)?);
        Ok(())
    };
    eventually(PATIENCE, "the routes to the one go", &daemon, || {
        refresh()?;
        gone(V4.0)
    })?;
    there(&[V6.0])?;
    stage.vpc.remove_cidr(V6.0.parse::<IpNet>()?)?;
    refresh()?;
    there(&[V6.0])?;
    eventually(PATIENCE, "the routes to the other go", &daemon, || {
        refresh()?;
        gone(V6.0)
    })?;
    let table = stage.instance.run(&["ip", "route", "show", "table", "20001"])?;
    ensure!(table.contains("100.64.0.0/12 via 10.0.2.77"), "somebody else's route went: {table}");
    for (_, _, own) in stage.enis() {
        own.into_iter().try_for_each(|own| reaches(&stage.instance, own, stage.internet(own)))?;
    }
    daemon.terminate()
}

/// Once it has heard of it, enid asks by itself for the rest of the proof, every ENI that has a say.
fn latecomer() -> anyhow::Result<()> {
    let stage = Stage::build(1)?;
    let quick = "poll_interval = \"200ms\"\n[removal]\nconfirmations = 10\ngrace = \"1s\"\n";
    stage.vpc.add_cidr(V4.0.parse::<IpNet>()?)?;
    let mut daemon = Daemon::ready(&stage.instance, quick)?;
    eventually(PATIENCE, "both tables have a route", &daemon, || {
        ensure!(stage.routes(V4.0)? == 2, "{} routes", stage.routes(V4.0)?);
        Ok(())
    })?;
    comes_to_rest(&daemon)?;
    stage.vpc.remove_cidr(V4.0.parse::<IpNet>()?)?;
    // Now those that had it know, and the one that comes knows nothing else.
    daemon.enictl().run(&["refresh"])?.success()?;
    let third = stage.vpc.create_eni(EniSpec::new(both(2, 5)))?;
    stage.vpc.attach(&third, &stage.instance, "ens7")?;
    eventually(PATIENCE, "the third ENI has its table", &daemon, || {
        let table = stage.instance.output(&["ip", "route", "show", "table", "20002"])?.stdout;
        ensure!(table.contains("default via 10.0.2.1"), "{table}");
        Ok(())
    })?;
    eventually(PATIENCE, "the routes go", &daemon, || {
        ensure!(stage.routes(V4.0)? == 0, "{} routes", stage.routes(V4.0)?);
        Ok(())
    })?;
    comes_to_rest(&daemon)?;
    daemon.terminate()
}

impl Stage {
    /// Who answers whatever the VPC's CIDRs are.
    fn internet(&self, own: IpAddr) -> IpAddr {
        match own {
            // Without a public address the internet does not answer.
            IpAddr::V4(_) => Ipv4Addr::new(10, 0, 1, 1).into(),
            IpAddr::V6(_) => self.vpc.internet_v6().into(),
        }
    }
}

fn subnet_gets_ipv6() -> anyhow::Result<()> {
    let config = Config::default().subnet("10.0.1.0/24").subnet("10.0.2.0/24");
    let config = config.dual_subnet("10.0.254.0/24", "2600:1f16:67f:f2fe::/64").rp_filter(1);
    let vpc = Vpc::new(config)?;
    let instance = vpc.instance("main", EniSpec::new([both(1, 4)[0]]))?;
    let second = vpc.create_eni(EniSpec::new([both(2, 4)[0]]))?;
    vpc.attach(&second, &instance, "ens6")?;
    let host = vpc.instance("far", EniSpec::new(both(254, 9)))?;
    let _services = [Echo::start(&instance, WHOAMI)?, Echo::start(&host, WHOAMI)?];
    let mut daemon = Daemon::ready(&instance, "")?;
    eventually(PATIENCE, "IPv4 works", &daemon, || answers(&host, both(2, 4)[0]))?;
    comes_to_rest(&daemon)?;
    // The subnets are given IPv6 first, then the ENIs addresses.
    for (eni, subnet) in [(&instance.primary, 1), (&second, 2)] {
        let net = format!("2600:1f16:67f:f2{subnet:02x}::/64");
        vpc.give_ipv6(eni, net.parse()?)?;
    }
    daemon.enictl().run(&["refresh", "--wait"])?.success()?;
    comes_to_rest(&daemon)?;
    for (eni, subnet) in [(&instance.primary, 1), (&second, 2)] {
        vpc.assign(eni, both(subnet, 4)[1], None)?;
    }
    // A router speaks there now, too.
    vpc.router().advertise(&instance.primary)?;
    vpc.router().advertise(&second)?;
    daemon.enictl().run(&["refresh", "--wait"])?.success()?;
    let far = both(254, 9)[1];
    let works = || -> anyhow::Result<()> {
        for (subnet, link) in [(1, "ens5"), (2, "ens6")] {
            let [v4, own] = both(subnet, 4);
            answers(&host, v4)?;
            answers(&host, own)?;
            answers(vpc.internet(), own)?;
            reaches(&instance, own, far)?;
            let by = leaves_by(&instance, own, far)?;
            ensure!(by == link, "from {own} by {by}");
            let seen = whoami(&instance, (far, WHOAMI).into(), &Bound::Device(link.to_owned()))?;
            ensure!(seen == own, "bound to {link}, {far} sees {seen}");
            let seen = whoami(&host, (own, WHOAMI).into(), &Bound::No)?;
            ensure!(seen == far, "{own} sees {seen}");
        }
        Ok(())
    };
    eventually(PATIENCE, "IPv6 works", &daemon, works)?;
    let enis = [&instance.primary, &second];
    let before = drops(&vpc, enis)?;
    works()?;
    ensure!(drops(&vpc, enis)? == before, "the fabric dropped foreign sources");
    is_settled(&daemon)?;
    daemon.terminate().context("it does not end")
}
