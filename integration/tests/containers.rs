//! Promise: containers behind a bridge go on reaching every address of the instance, and are
//! reached from each, wherever their network lies.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::ensure;
use integration::vpc::{Bound, Config, Echo, EniId, EniSpec, Instance, Netns, Pinger, Vpc, whoami};
use integration::{Daemon, eventually, trial};
use libtest_mimic::Trial;

use crate::users::{PATIENCE, WHOAMI, drops, is_silent, public, reaches, works_with_the_internet};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("containers::outside_the_vpc_they_reach_every_address", || reach(&OUTSIDE, 2)),
        trial("containers::outside_the_vpc_they_pass_a_strict_filter", || reach(&OUTSIDE, 1)),
        trial("containers::inside_the_vpc_they_reach_every_address", || reach(&INSIDE, 2)),
        trial("containers::inside_the_vpc_they_pass_a_strict_filter", || reach(&INSIDE, 1)),
        trial("containers::masqueraded_they_leave_by_the_primary_eni", masquerade),
    ]
}

/// A bridge's network and another one behind the container.
struct Network {
    bridge: &'static str,
    container: Ipv4Addr,
    behind: &'static str,
    far: Ipv4Addr,
}

const OUTSIDE: Network = Network {
    bridge: "172.17.0.1/16",
    container: Ipv4Addr::new(172, 17, 0, 2),
    behind: "172.18.0.0/16",
    far: Ipv4Addr::new(172, 18, 0, 2),
};
const INSIDE: Network = Network {
    bridge: "172.31.200.1/24",
    container: Ipv4Addr::new(172, 31, 200, 2),
    behind: "172.31.201.0/24",
    far: Ipv4Addr::new(172, 31, 201, 2),
};

const ENIS: [(Ipv4Addr, &str, u8); 2] =
    [(Ipv4Addr::new(172, 31, 1, 4), "ens5", 1), (Ipv4Addr::new(172, 31, 2, 4), "ens6", 2)];

struct Stage {
    vpc: Vpc,
    instance: Instance,
    second: EniId,
    container: Netns,
    _services: [Echo; 3],
}

impl Stage {
    fn build(network: &Network, rp_filter: u8) -> anyhow::Result<Stage> {
        let config = Config::default().cidr("172.31.0.0/16");
        let config = config.subnet("172.31.1.0/24").subnet("172.31.2.0/24").rp_filter(rp_filter);
        let vpc = Vpc::new(config)?;
        let spec = |n: usize| EniSpec::new([ENIS[n].0]).public(ENIS[n].0, public(ENIS[n].2));
        let instance = vpc.instance("main", spec(0))?;
        let second = vpc.create_eni(spec(1))?;
        let bridge = network.bridge.parse()?;
        instance.bridge("docker0", bridge)?;
        let container = instance.container("veth0", "docker0", bridge, network.container)?;
        container.run(&["ip", "addr", "add", &format!("{}/32", network.far), "dev", "lo"])?;
        let _services = [
            Echo::start(vpc.internet(), WHOAMI)?,
            Echo::start(&instance, WHOAMI)?,
            Echo::start(&container, WHOAMI)?,
        ];
        Ok(Stage { vpc, instance, second, container, _services })
    }

    /// Lets main know the network behind the container.
    fn add_static_route(&self, network: &Network) -> anyhow::Result<()> {
        let via = network.container.to_string();
        self.instance.run(&["ip", "route", "add", network.behind, "via", &via])?;
        Ok(())
    }

    fn reach_each_other(&self, containers: &[Ipv4Addr]) -> anyhow::Result<()> {
        for (address, ..) in ENIS {
            for container in containers {
                reaches(&self.container, *container, address)?;
                reaches(&self.instance, address, *container)?;
                let seen = |from: &Netns, source: Ipv4Addr, to: Ipv4Addr| {
                    whoami(from, (to, WHOAMI).into(), &Bound::from(source))
                };
                let by_container = seen(&self.instance, address, *container)?;
                ensure!(by_container == address, "{container} sees {by_container}");
                let by_instance = seen(&self.container, *container, address)?;
                ensure!(by_instance == *container, "{address} sees {by_instance}");
            }
        }
        Ok(())
    }

    fn works(&self, containers: &[Ipv4Addr]) -> anyhow::Result<()> {
        self.reach_each_other(containers)?;
        ENIS.iter().try_for_each(|(address, _, n)| {
            works_with_the_internet(&self.vpc, &self.instance, *address, public(*n))
        })
    }

    /// What most people write by hand: it makes both ENIs work and cuts the containers off.
    fn show_the_failure(&self, network: &Network) -> anyhow::Result<()> {
        self.vpc.attach(&self.second, &self.instance, "ens6")?;
        self.vpc.configure_as_dhcp(&self.second)?;
        let mut undo = Vec::new();
        for (address, link, n) in ENIS {
            let [a, b, c, _] = address.octets();
            let router = Ipv4Addr::new(a, b, c, 1);
            let rule = format!("from {address} lookup {n}");
            self.instance.ip_batch(&[
                format!("route add default via {router} dev {link} table {n}"),
                format!("rule add {rule}"),
            ])?;
            undo.push(format!("rule del {rule}"));
            undo.push(format!("route flush table {n}"));
        }
        for (address, _, n) in ENIS {
            works_with_the_internet(&self.vpc, &self.instance, address, public(n))?;
            let reached = reaches(&self.instance, address, network.container);
            ensure!(reached.is_err(), "a container is reached from {address} by luck");
            let reached = reaches(&self.container, network.container, address);
            ensure!(reached.is_err(), "a container reaches {address} by luck");
        }
        self.instance.ip_batch(&undo)?;
        self.vpc.detach(&self.second)
    }
}

fn reach(network: &Network, rp_filter: u8) -> anyhow::Result<()> {
    let stage = Stage::build(network, rp_filter)?;
    stage.show_the_failure(network)?;
    let mut daemon = Daemon::ready(&stage.instance, "")?;
    stage.vpc.attach(&stage.second, &stage.instance, "ens6")?;
    let without = [network.container];
    eventually(PATIENCE, "containers and ENIs work", &daemon, || stage.works(&without))?;
    ensure!(
        reaches(&stage.instance, ENIS[1].0, network.far).is_err(),
        "what lies behind the container is reached without a route"
    );
    stage.add_static_route(network)?;
    let with = [network.container, network.far];
    eventually(PATIENCE, "a static route is honoured", &daemon, || stage.works(&with))?;
    let enis = [&stage.instance.primary, &stage.second];
    let before = drops(&stage.vpc, enis)?;
    stage.works(&with)?;
    ensure!(drops(&stage.vpc, enis)? == before, "the fabric dropped foreign sources");
    daemon.terminate()
}

fn masquerade() -> anyhow::Result<()> {
    let network = &OUTSIDE;
    let stage = Stage::build(network, 1)?;
    is_silent(&stage.container, stage.vpc.internet_v4())?;
    stage.instance.nft(
        "table ip nat {
            chain postrouting {
                type nat hook postrouting priority srcnat;
                ip saddr 172.17.0.0/16 oifname != \"docker0\" masquerade
            }
        }",
    )?;
    let to: IpAddr = stage.vpc.internet_v4().into();
    let pinger = Pinger::start(&stage.container, to, &Bound::No, Duration::from_millis(20))?;
    let works = || -> anyhow::Result<()> {
        stage.works(&[network.container])?;
        let seen = whoami(&stage.container, (to, WHOAMI).into(), &Bound::No)?;
        ensure!(seen == public(1), "the internet sees the container as {seen}");
        Ok(())
    };
    let mut daemon = Daemon::ready(&stage.instance, "")?;
    stage.vpc.attach(&stage.second, &stage.instance, "ens6")?;
    eventually(PATIENCE, "the container reaches the internet", &daemon, works)?;
    // An ENI comes, is configured and goes: the container's packets never notice.
    stage.vpc.detach(&stage.second)?;
    eventually(PATIENCE, "no ping was missed", &daemon, || {
        let report = pinger.report();
        ensure!(report.lost == 0 && report.answered > 0, "{report:?}");
        Ok(())
    })?;
    let seen = whoami(&stage.container, (to, WHOAMI).into(), &Bound::No)?;
    ensure!(seen == public(1), "the internet sees the container as {seen}");
    daemon.terminate()
}
