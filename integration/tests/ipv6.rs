//! Promise: IPv6 works as IPv4 does: every address of every ENI answers and leaves by its own ENI, in
//! subnets of both families and of IPv6 alone, and what the host had before stays.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::ensure;
use integration::vpc::{Bound, Config, Echo, EniId, EniSpec, Instance, Pinger, Vpc, whoami};
use integration::{Daemon, eventually, trial};
use ipnet::IpNet;
use libtest_mimic::Trial;
use serde_json::Value;

use crate::pair::{picture, same};
use crate::users::{
    PATIENCE, WHOAMI, answers, drops, is_settled, leaves_by, metadata_answers, reaches, status,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("ipv6::enis_of_both_families_answer_in_both", || hot_attach(&BOTH)),
        trial("ipv6::enis_in_subnets_without_ipv4_answer", || hot_attach(&ALONE)),
        trial("ipv6::an_eni_without_ipv4_joins_one_that_has_it", || hot_attach(&MIXED)),
        trial("ipv6::two_enis_in_one_subnet_leave_each_by_its_own", || hot_attach(&SIBLINGS)),
        trial("ipv6::metadata_over_ipv6_alone_is_enough", metadata_v6),
        trial("ipv6::metadata_may_spell_it_as_it_likes", spelling),
        trial("ipv6::addresses_come_and_go", come_and_go),
        trial("ipv6::what_dhcp_and_the_router_left_does_no_harm", after_dhcp),
        trial("ipv6::a_lease_that_lapses_is_taken_over_at_once", lapse),
        trial("ipv6::sockets_without_an_address_keep_their_source", unbound),
        trial("ipv6::release_puts_router_advertisements_back", release),
        trial("ipv6::the_router_is_the_one_that_says_so", router),
    ]
}

fn v6(subnet: u16, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2600, 0x1f16, 0x67f, 0xf200 + subnet, 0, 0, 0, host)
}

/// Where the two ENIs lie, and which addresses they have.
struct Layout {
    config: fn() -> Config,
    first: fn() -> Vec<IpAddr>,
    second: fn() -> Vec<IpAddr>,
}

fn both() -> Config {
    Config::default()
        .dual_subnet("10.0.1.0/24", "2600:1f16:67f:f201::/64")
        .dual_subnet("10.0.2.0/24", "2600:1f16:67f:f202::/64")
        .dual_subnet("10.0.254.0/24", "2600:1f16:67f:f2fe::/64")
        .rp_filter(1)
}

const BOTH: Layout = Layout {
    config: both,
    first: || vec![Ipv4Addr::new(10, 0, 1, 4).into(), v6(1, 4).into(), v6(1, 5).into()],
    second: || vec![Ipv4Addr::new(10, 0, 2, 4).into(), v6(2, 4).into(), v6(2, 5).into()],
};

const ALONE: Layout = Layout {
    config: || {
        Config::default()
            .subnet_v6("2600:1f16:67f:f201::/64")
            .subnet_v6("2600:1f16:67f:f202::/64")
            .dual_subnet("10.0.254.0/24", "2600:1f16:67f:f2fe::/64")
            .rp_filter(1)
    },
    first: || vec![v6(1, 4).into(), v6(1, 5).into()],
    second: || vec![v6(2, 4).into(), v6(2, 5).into()],
};

const MIXED: Layout = Layout {
    config: || {
        Config::default()
            .dual_subnet("10.0.1.0/24", "2600:1f16:67f:f201::/64")
            .subnet_v6("2600:1f16:67f:f202::/64")
            .dual_subnet("10.0.254.0/24", "2600:1f16:67f:f2fe::/64")
            .rp_filter(1)
    },
    first: || vec![Ipv4Addr::new(10, 0, 1, 4).into(), v6(1, 4).into()],
    second: || vec![v6(2, 4).into(), v6(2, 5).into()],
};

const SIBLINGS: Layout = Layout {
    config: || {
        Config::default()
            .dual_subnet("10.0.1.0/24", "2600:1f16:67f:f201::/64")
            .dual_subnet("10.0.254.0/24", "2600:1f16:67f:f2fe::/64")
            .rp_filter(1)
    },
    first: || vec![Ipv4Addr::new(10, 0, 1, 4).into(), v6(1, 4).into(), v6(1, 7).into()],
    second: || vec![Ipv4Addr::new(10, 0, 1, 5).into(), v6(1, 5).into(), v6(1, 6).into()],
};

struct Stage {
    vpc: Vpc,
    instance: Instance,
    second: EniId,
    /// In the first ENI's subnet, in the second's, and in a third.
    hosts: Vec<Instance>,
    _services: [Echo; 2],
}

impl Stage {
    fn build(layout: &Layout) -> anyhow::Result<Stage> {
        let vpc = Vpc::new((layout.config)())?;
        let instance = vpc.instance("main", EniSpec::new((layout.first)()))?;
        let second = vpc.create_eni(EniSpec::new((layout.second)()))?;
        let last = |addresses: Vec<IpAddr>| match addresses.last() {
            Some(IpAddr::V6(v6)) => v6.segments()[3] - 0xf200,
            Some(IpAddr::V4(_)) | None => 0,
        };
        let mut subnets = vec![last((layout.first)()), last((layout.second)()), 0xfe];
        subnets.dedup();
        let host =
            |subnet: &u16| vpc.instance(&format!("host{subnet}"), EniSpec::new([v6(*subnet, 99)]));
        let hosts = subnets.iter().map(host).collect::<anyhow::Result<_>>()?;
        let _services = [Echo::start(vpc.internet(), WHOAMI)?, Echo::start(&instance, WHOAMI)?];
        Ok(Stage { vpc, instance, second, hosts, _services })
    }

    /// Every address answers from everywhere, is what others see, and leaves by its own ENI.
    fn works(&self) -> anyhow::Result<()> {
        for (eni, link) in [(&self.instance.primary, "ens5"), (&self.second, "ens6")] {
            for address in self.vpc.eni(eni)?.ipv6 {
                self.address_works(address, link)?;
            }
            let internet = (self.vpc.internet_v6(), WHOAMI).into();
            let seen = whoami(&self.instance, internet, &Bound::Device(link.to_owned()))?;
            let IpAddr::V6(seen) = seen else { anyhow::bail!("{seen}") };
            ensure!(self.vpc.eni(eni)?.ipv6.contains(&seen), "bound to {link}, it sees {seen}");
        }
        Ok(())
    }

    fn address_works(&self, address: Ipv6Addr, link: &str) -> anyhow::Result<()> {
        let internet = self.vpc.internet_v6();
        answers(self.vpc.internet(), address)?;
        let seen = whoami(&self.instance, (internet, WHOAMI).into(), &Bound::from(address))?;
        ensure!(seen == address, "from {address}, the internet sees {seen}");
        let seen = whoami(self.vpc.internet(), (address, WHOAMI).into(), &Bound::No)?;
        ensure!(seen == internet, "the service behind {address} sees {seen}");
        for host in &self.hosts {
            answers(host, address)?;
            let theirs = self.vpc.eni(&host.primary)?.ipv6[0];
            reaches(&self.instance, address, theirs)?;
            let by = leaves_by(&self.instance, address, theirs)?;
            ensure!(by == link, "from {address} to {theirs} by {by}");
        }
        Ok(())
    }

    fn comes_to_work(&self, daemon: &Daemon) -> anyhow::Result<()> {
        eventually(PATIENCE, "every address of IPv6 works", daemon, || self.works())?;
        let enis = [&self.instance.primary, &self.second];
        let before = drops(&self.vpc, enis)?;
        self.works()?;
        ensure!(drops(&self.vpc, enis)? == before, "the fabric dropped foreign sources");
        Ok(())
    }

    fn main_routes(&self) -> anyhow::Result<Vec<Value>> {
        let routes = self.instance.ip_json(&["-6", "route", "show", "table", "main"])?;
        Ok(routes.as_array().cloned().unwrap_or_default())
    }

    /// The second ENI works, and the router was heard there.
    fn managed(layout: &Layout) -> anyhow::Result<(Stage, Daemon)> {
        let stage = Stage::build(layout)?;
        let daemon = Daemon::ready(&stage.instance, "")?;
        stage.vpc.attach(&stage.second, &stage.instance, "ens6")?;
        stage.comes_to_work(&daemon)?;
        stage.vpc.router().advertise(&stage.second)?;
        Ok((stage, daemon))
    }
}

fn hot_attach(layout: &Layout) -> anyhow::Result<()> {
    let (stage, mut daemon) = Stage::managed(layout)?;
    let defaults: Vec<Value> =
        stage.main_routes()?.into_iter().filter(|route| route["dst"] == "default").collect();
    ensure!(defaults.iter().all(|route| route["dev"] == "ens5"), "{defaults:?}");
    ensure!(!defaults.is_empty(), "the primary ENI's default route is gone");
    for address in (layout.first)() {
        if let IpAddr::V4(address) = address {
            metadata_answers(&stage.instance, address)?;
        }
    }
    is_settled(&daemon)?;
    daemon.terminate()?;
    // What is there works without enid, and a restart finds nothing to do.
    stage.works()?;
    let daemon = Daemon::ready(&stage.instance, "")?;
    is_settled(&daemon)?;
    stage.comes_to_work(&daemon)
}

/// Nothing of IPv4 is left on the host, not even the link-local address by DHCP.
fn metadata_v6() -> anyhow::Result<()> {
    let stage = Stage::build(&ALONE)?;
    stage.vpc.set_metadata_v6(true)?;
    stage.instance.run(&["ip", "-4", "addr", "flush", "dev", "ens5"])?;
    let daemon = Daemon::ready(&stage.instance, "")?;
    stage.vpc.attach(&stage.second, &stage.instance, "ens6")?;
    stage.comes_to_work(&daemon)?;
    let endpoint = status(&daemon)?["metadata"]["endpoint"].to_string();
    ensure!(endpoint.contains("fd00:ec2::254"), "{endpoint}");
    // Also once the primary ENI has rules: what asks is one of its addresses.
    is_settled(&daemon)
}

/// `2600:1f16:67f:f201:0:0:0:0/64` is what the kernel calls `2600:1f16:67f:f201::/64`.
fn spelling() -> anyhow::Result<()> {
    let stage = Stage::build(&BOTH)?;
    stage.vpc.delegate(&stage.second, "2600:1f16:67f:f202:7::/80".parse::<IpNet>()?)?;
    stage.vpc.metadata().set_uncompressed(true);
    let daemon = Daemon::ready(&stage.instance, "poll_interval = \"200ms\"")?;
    stage.vpc.attach(&stage.second, &stage.instance, "ens6")?;
    stage.comes_to_work(&daemon)?;
    is_settled(&daemon)?;
    let before = picture(&stage.instance)?;
    std::thread::sleep(Duration::from_secs(1));
    same(&before, &picture(&stage.instance)?)?;
    stage.vpc.metadata().set_uncompressed(false);
    is_settled(&daemon)?;
    same(&before, &picture(&stage.instance)?)
}

fn come_and_go() -> anyhow::Result<()> {
    let quick = "poll_interval = \"200ms\"\n[removal]\nconfirmations = 2\ngrace = \"1s\"";
    let stage = Stage::build(&BOTH)?;
    let daemon = Daemon::ready(&stage.instance, quick)?;
    stage.vpc.attach(&stage.second, &stage.instance, "ens6")?;
    stage.comes_to_work(&daemon)?;
    for (eni, subnet) in [(&stage.instance.primary, 1), (&stage.second, 2)] {
        stage.vpc.assign(eni, v6(subnet, 0x77), None)?;
        stage.comes_to_work(&daemon)?;
    }
    // The preferred source of the second ENI's routes leaves: what is left goes on working.
    let first = v6(2, 4);
    let other =
        Pinger::start(&stage.hosts[2], v6(2, 5).into(), &Bound::No, Duration::from_millis(20))?;
    stage.vpc.unassign(&stage.second, first)?;
    eventually(PATIENCE, "the address is gone", &daemon, || {
        let there = stage.instance.ip_json(&["-6", "addr", "show", "dev", "ens6"])?;
        ensure!(!there.to_string().contains(&format!("\"{first}\"")), "{there}");
        Ok(())
    })?;
    stage.comes_to_work(&daemon)?;
    let report = other.stop();
    ensure!(report.lost == 0, "another address of the ENI lost {} requests", report.lost);
    Ok(())
}

/// The second ENI was configured by a DHCPv6 client and by the router before enid came.
fn after_dhcp() -> anyhow::Result<()> {
    let stage = Stage::build(&BOTH)?;
    stage.vpc.attach(&stage.second, &stage.instance, "ens6")?;
    stage.vpc.configure_as_dhcp_v6(&stage.second)?;
    stage.vpc.router().advertise(&stage.second)?;
    let by_ens6 = |routes: Vec<Value>| -> Vec<Value> {
        let mut routes: Vec<Value> =
            routes.into_iter().filter(|route| route["dev"] == "ens6").collect();
        for route in &mut routes {
            route.as_object_mut().and_then(|route| route.remove("expires"));
        }
        routes
    };
    let before = by_ens6(stage.main_routes()?);
    ensure!(!before.is_empty(), "the router left nothing in main");
    let address = |link: &str| stage.instance.ip_json(&["-6", "addr", "show", "dev", link]);
    let daemon = Daemon::ready(&stage.instance, "")?;
    stage.comes_to_work(&daemon)?;
    ensure!(by_ens6(stage.main_routes()?) == before, "enid changed what others made");
    let theirs = address("ens6")?;
    let infos = theirs[0]["addr_info"].as_array().cloned().unwrap_or_default();
    let leased = infos.iter().find(|info| info["local"] == v6(2, 4).to_string());
    let lifetime = leased.and_then(|info| info["valid_life_time"].as_u64());
    ensure!(lifetime.is_some_and(|left| left <= 450), "the lease's lifetime was changed: {theirs}");
    Ok(())
}

/// Nobody prolongs the leases any more.
fn lapse() -> anyhow::Result<()> {
    let layout = Layout { config: || both().lease_v6(2, 4), ..BOTH };
    let stage = Stage::build(&layout)?;
    for host in &stage.hosts {
        let own = format!("{}/128", stage.vpc.eni(&host.primary)?.ipv6[0]);
        host.run(&["ip", "addr", "replace", &own, "dev", "ens5", "valid_lft", "forever"])?;
    }
    stage.vpc.attach(&stage.second, &stage.instance, "ens6")?;
    stage.vpc.configure_as_dhcp_v6(&stage.second)?;
    stage.vpc.configure_as_dhcp_v6(&stage.instance.primary)?;
    let daemon = Daemon::ready(&stage.instance, "")?;
    stage.comes_to_work(&daemon)?;
    stage.vpc.configure_as_dhcp_v6(&stage.second)?;
    stage.vpc.configure_as_dhcp_v6(&stage.instance.primary)?;
    let step = Duration::from_millis(20);
    let watched = [v6(1, 4), v6(2, 4)]
        .map(|address| Pinger::start(&stage.hosts[2], address.into(), &Bound::No, step));
    eventually(PATIENCE, "both leases have lapsed", &daemon, || {
        for link in ["ens5", "ens6"] {
            let there = stage.instance.ip_json(&["-6", "addr", "show", "dev", link])?;
            ensure!(!there.to_string().contains("\"dynamic\":true"), "{there}");
        }
        Ok(())
    })?;
    stage.comes_to_work(&daemon)?;
    for pinger in watched {
        let report = pinger?.stop();
        // The kernel drops the address first; enid hears of that and need not be told by metadata.
        ensure!(report.longest_gap < Duration::from_secs(3), "{report:?}");
    }
    Ok(())
}

fn unbound() -> anyhow::Result<()> {
    let stage = Stage::build(&BOTH)?;
    let internet = (stage.vpc.internet_v6(), WHOAMI).into();
    let before = whoami(&stage.instance, internet, &Bound::No)?;
    let daemon = Daemon::ready(&stage.instance, "")?;
    stage.vpc.attach(&stage.second, &stage.instance, "ens6")?;
    stage.comes_to_work(&daemon)?;
    let after = whoami(&stage.instance, internet, &Bound::No)?;
    ensure!(before == v6(1, 4) && after == before, "{before} before, {after} after");
    for subnet in [1, 2, 0xfe] {
        let route = stage.instance.ip_json(&["route", "get", &v6(subnet, 99).to_string()])?;
        let source = route[0]["prefsrc"].as_str().unwrap_or_default().to_owned();
        ensure!(source == v6(1, 4).to_string(), "to subnet {subnet}: {route}");
    }
    Ok(())
}

fn release() -> anyhow::Result<()> {
    let keys = ["accept_ra_defrtr", "accept_ra_pinfo"];
    let (stage, daemon) = Stage::managed(&BOTH)?;
    let read = |key: &str| stage.instance.read_sysctl(&format!("net.ipv6.conf.ens6.{key}"));
    for key in keys {
        ensure!(read(key)? == "0", "{key} is {}", read(key)?);
    }
    // Somebody else's change is taken back at the next look.
    stage.instance.sysctl("net.ipv6.conf.ens6.accept_ra_defrtr", "1")?;
    daemon.enictl().run(&["refresh"])?.success()?;
    eventually(PATIENCE, "the setting is back", &daemon, || {
        ensure!(read("accept_ra_defrtr")? == "0", "it is {}", read("accept_ra_defrtr")?);
        Ok(())
    })?;
    daemon.enictl().run(&["release", "ens6"])?.success()?;
    eventually(PATIENCE, "the settings are as they were", &daemon, || {
        for key in keys {
            ensure!(read(key)? == "1", "{key} is {}", read(key)?);
        }
        let rules = stage.instance.ip_json(&["-6", "rule"])?;
        ensure!(!rules.to_string().contains("20001"), "{rules}");
        let there = stage.instance.ip_json(&["-6", "addr", "show", "dev", "ens6"])?;
        ensure!(!there.to_string().contains(&format!("\"{}\"", v6(2, 4))), "{there}");
        Ok(())
    })
}

/// The router is learned from what it says; the address that every router has serves where it says
/// nothing, and what is in use stays as long as it is a router.
fn router() -> anyhow::Result<()> {
    let stage = Stage::build(&BOTH)?;
    stage.vpc.router().silence();
    let daemon = Daemon::ready(&stage.instance, "")?;
    stage.vpc.attach(&stage.second, &stage.instance, "ens6")?;
    stage.comes_to_work(&daemon)?;
    let gateway = || -> anyhow::Result<String> {
        let words = ["-6", "route", "show", "default", "table", "20001", "proto", "233"];
        let routes = stage.instance.ip_json(&words)?;
        let routes = routes.as_array().cloned().unwrap_or_default();
        let gateways: Vec<_> =
            routes.iter().filter_map(|route| route["gateway"].as_str()).collect();
        Ok(gateways.join(" "))
    };
    ensure!(gateway()? == "fe80:ec2::1", "{}", gateway()?);
    // Nobody knows that address as a router's any more, and another one says it is one.
    let gone = |address: &str| stage.instance.run(&["ip", "neigh", "del", address, "dev", "ens6"]);
    stage.vpc.router().speak();
    stage.vpc.router().advertise(&stage.second)?;
    gone("fe80:ec2::1")?;
    eventually(PATIENCE, "the router that spoke is the gateway", &daemon, || {
        let gateway = gateway()?;
        ensure!(gateway.starts_with("fe80::"), "{gateway} in {}", status(&daemon)?);
        Ok(())
    })?;
    stage.comes_to_work(&daemon)?;
    let learned = gateway()?;
    gone(&learned)?;
    daemon.enictl().run(&["refresh", "--wait"])?.success()?;
    ensure!(gateway()? == learned, "it was forgotten with its neighbour entry");
    is_settled(&daemon)
}
