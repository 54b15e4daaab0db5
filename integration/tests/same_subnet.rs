//! Promise: two ENIs in one subnet, with several addresses each, do not get in each other's way.

use std::net::Ipv4Addr;

use anyhow::ensure;
use integration::vpc::{Config, Echo, EniId, EniSpec, Instance, Vpc};
use integration::{Daemon, eventually, trial};
use libtest_mimic::Trial;

use crate::users::{
    PATIENCE, WHOAMI, addresses, answers, drops, is_silent, leaves_by, public, reaches,
    works_with_the_internet,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("same_subnet::four_addresses_answer_and_leave_each_by_its_own_eni", || four(2)),
        trial("same_subnet::four_addresses_pass_a_strict_reverse_path_filter", || four(1)),
        trial("same_subnet::what_dhcp_left_in_main_does_no_harm", || after_dhcp(1)),
    ]
}

const FIRST: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 128), Ipv4Addr::new(10, 0, 0, 129)];
const SECOND: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 130), Ipv4Addr::new(10, 0, 0, 131)];

struct Stage {
    vpc: Vpc,
    instance: Instance,
    second: EniId,
    /// One in the same subnet and one in another.
    hosts: [Instance; 2],
    _services: [Echo; 2],
}

impl Stage {
    fn build(rp_filter: u8) -> anyhow::Result<Stage> {
        let config = Config::default().subnet("10.0.0.0/24").subnet("10.0.254.0/24");
        let vpc = Vpc::new(config.rp_filter(rp_filter))?;
        let spec = |addresses: [Ipv4Addr; 2]| {
            let map = |spec: EniSpec, address: Ipv4Addr| {
                let [.., last] = address.octets();
                spec.public(address, public(last))
            };
            addresses.into_iter().fold(EniSpec::new(addresses), map)
        };
        let instance = vpc.instance("main", spec(FIRST))?;
        let second = vpc.create_eni(spec(SECOND))?;
        let hosts = [
            vpc.instance("near", EniSpec::new([Ipv4Addr::new(10, 0, 0, 9)]))?,
            vpc.instance("far", EniSpec::new([Ipv4Addr::new(10, 0, 254, 9)]))?,
        ];
        let _services = [Echo::start(vpc.internet(), WHOAMI)?, Echo::start(&instance, WHOAMI)?];
        Ok(Stage { vpc, instance, second, hosts, _services })
    }

    /// Without enid: all addresses are on their links, as DHCP and an operator would add them, and
    /// those of the second ENI do not work.
    fn show_the_failure(&self) -> anyhow::Result<()> {
        self.vpc.attach(&self.second, &self.instance, "ens6")?;
        self.vpc.configure_as_dhcp(&self.second)?;
        for (address, link) in [(FIRST[1], "ens5"), (SECOND[1], "ens6")] {
            let address = format!("{address}/24");
            self.instance.run(&["ip", "addr", "add", &address, "dev", link])?;
        }
        let before = drops(&self.vpc, [&self.instance.primary])?;
        for address in SECOND {
            is_silent(self.vpc.internet(), public(address.octets()[3]))?;
        }
        // A strict filter drops the request; a loose one lets the answer leave by the wrong ENI.
        if self.instance.read_sysctl("net.ipv4.conf.all.rp_filter")? == "2" {
            let after = drops(&self.vpc, [&self.instance.primary])?;
            ensure!(after > before, "the answers did not leave by the wrong ENI");
        }
        Ok(())
    }

    fn works(&self) -> anyhow::Result<()> {
        for (own, link) in [(FIRST, "ens5"), (SECOND, "ens6")] {
            for address in own {
                let [.., last] = address.octets();
                works_with_the_internet(&self.vpc, &self.instance, address, public(last))?;
                for host in &self.hosts {
                    answers(host, address)?;
                    let theirs = addresses(host, "ens5")?;
                    for to in theirs.iter().copied().chain([self.vpc.internet_v4()]) {
                        reaches(&self.instance, address, to)?;
                        let by = leaves_by(&self.instance, address, to)?;
                        ensure!(by == link, "from {address} to {to} by {by}");
                    }
                }
            }
            ensure!(addresses(&self.instance, link)? == own.into(), "wrong addresses on {link}");
        }
        Ok(())
    }

    fn comes_to_work(&self, daemon: &Daemon) -> anyhow::Result<()> {
        eventually(PATIENCE, "all four addresses work", daemon, || self.works())?;
        let enis = [&self.instance.primary, &self.second];
        let before = drops(&self.vpc, enis)?;
        self.works()?;
        ensure!(drops(&self.vpc, enis)? == before, "the fabric dropped foreign sources");
        Ok(())
    }
}

/// The second ENI is attached while enid runs.
fn four(rp_filter: u8) -> anyhow::Result<()> {
    let stage = Stage::build(rp_filter)?;
    stage.show_the_failure()?;
    stage.vpc.detach(&stage.second)?;
    stage.instance.run(&["ip", "addr", "del", &format!("{}/24", FIRST[1]), "dev", "ens5"])?;
    let mut daemon = Daemon::ready(&stage.instance, "")?;
    stage.vpc.attach(&stage.second, &stage.instance, "ens6")?;
    stage.comes_to_work(&daemon)?;
    let routes = ["route", "show", "table", "main", "dev", "ens6"];
    let routes = stage.instance.ip_json(&routes)?;
    let none = routes.as_array().is_none_or(Vec::is_empty);
    ensure!(none, "main has routes by the second ENI: {routes}");
    daemon.terminate()
}

/// The second ENI's connected and default routes stay in main: they are the DHCP client's.
fn after_dhcp(rp_filter: u8) -> anyhow::Result<()> {
    let stage = Stage::build(rp_filter)?;
    stage.show_the_failure()?;
    let routes = ["route", "show", "table", "main", "dev", "ens6"];
    let before = stage.instance.ip_json(&routes)?;
    let mut daemon = Daemon::ready(&stage.instance, "")?;
    stage.comes_to_work(&daemon)?;
    ensure!(stage.instance.ip_json(&routes)? == before, "enid changed the client's routes");
    daemon.terminate()
}
