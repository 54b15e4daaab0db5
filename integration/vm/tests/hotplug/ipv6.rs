//! Promise: an ENI with both families that is plugged in answers in both, beside a DHCPv6 client on
//! the first one, whose lease is the client's for as long as it lasts.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration::eventually;
use serde_json::Value;
use vm::{Image, Recipe, Release};
use vpc::{Config, GATEWAY_V6, MessageTypeV6, ROUTER_V6};

use crate::Promise;
use crate::stage::{
    FIRST_PUBLIC, FIRST_SIX, Families, PATIENCE, SECOND_PUBLIC, SECOND_SIX, Stage, figure,
    networkd_with,
};

pub(super) fn promises() -> Vec<Promise> {
    vec![
        Promise {
            name: "hotplug::ipv6::both_families_answer_and_a_lease_that_lapses_is_taken_over",
            recipe: Recipe::new(Release::Trixie),
            keep: both,
        },
        Promise {
            name: "hotplug::ipv6::an_instance_without_ipv4_is_managed_over_a_link_local_address",
            recipe: Recipe::new(Release::Trixie),
            keep: alone,
        },
    ]
}

/// Seconds until a leased address is deprecated, and until it goes.
const LEASE: (u32, u32) = (15, 30);

fn both(image: &Image) -> anyhow::Result<()> {
    let config = Config::default().lease_v6(LEASE.0, LEASE.1);
    let files = networkd_with("yes", "Name=ens5")?;
    let stage = Stage::boot_in(Families::Both, config, image, &files)?;
    router_is_heard_without_enid(&stage)?;
    stage.install()?;
    let primary = [stage.ping(FIRST_PUBLIC)?, stage.ping(FIRST_SIX)?];
    plugged_in(&stage)?;
    routers_default_stays_out_of_main(&stage)?;
    lease_is_renewed(&stage)?;
    for (pinger, what) in primary.into_iter().zip(["IPv4", "IPv6"]) {
        stage.missed_nothing(pinger, &format!("the first ENI's {what}"))?;
    }
    lease_lapses(&stage)
}

/// Default routes of the second ENI in main.
fn in_main(stage: &Stage) -> anyhow::Result<String> {
    stage.machine.run("ip -6 route show default dev ens6 table main")
}

/// A control: what the router says makes a default route of every link that was just raised.
fn router_is_heard_without_enid(stage: &Stage) -> anyhow::Result<()> {
    stage.machine.plug(&stage.vpc, &stage.second)?;
    eventually(PATIENCE, "the kernel makes the router its default", &stage.machine, || {
        stage.machine.run("ip link set ens6 up")?;
        stage.vpc.router().advertise(&stage.second)?;
        ensure!(in_main(stage)?.contains("proto ra"), "no default route");
        Ok(())
    })?;
    stage.machine.unplug(&stage.vpc, &stage.second)
}

/// Writes down what happens to routes of IPv6 from here on.
const MONITOR: &str = "systemd-run --quiet sh -c 'exec ip -6 -o monitor route > /run/routes'";

fn plugged_in(stage: &Stage) -> anyhow::Result<()> {
    stage.machine.run(MONITOR)?;
    let (four, six) = (stage.ping(SECOND_PUBLIC)?, stage.ping(SECOND_SIX)?);
    let plugged = stage.machine.plug(&stage.vpc, &stage.second)?;
    let took = stage.until_first_answer(&six, plugged)?;
    figure("from device_add to the first answer over IPv6", took);
    let took = stage.until_first_answer(&four, plugged)?;
    figure("from device_add to the first answer over IPv4", took);
    stage.comes_to_work()?;
    stage.comes_to_rest()
}

/// Its settings were written before the link was raised, and the router is known by its neighbour
/// entry all the same, as soon as nobody says any more that the address is a router's that every
/// router has.
fn routers_default_stays_out_of_main(stage: &Stage) -> anyhow::Result<()> {
    stage.vpc.router().advertise(&stage.second)?;
    eventually(PATIENCE, "the router is learned", &stage.machine, || {
        stage.machine.output(&format!("ip neigh del {GATEWAY_V6} dev ens6"))?;
        let default = stage.machine.run("ip -6 route show default table 20001 proto 233")?;
        ensure!(default.contains(&format!("via {ROUTER_V6} ")), "{default}");
        Ok(())
    })?;
    for key in ["accept_ra_defrtr", "accept_ra_pinfo"] {
        let value = stage.machine.run(&format!("sysctl -n net.ipv6.conf.ens6.{key}"))?;
        ensure!(value.trim() == "0", "{key} is {value}");
    }
    let routes = stage.machine.run("cat /run/routes")?;
    // It may have been written down under the name that the link had before udev came.
    let seconds = |line: &&str| {
        let others = ["unreachable", " dev ens5 "];
        line.contains("default ") && !others.iter().any(|other| line.contains(other))
    };
    let defaults: Vec<&str> = routes.lines().filter(seconds).collect();
    ensure!(defaults.iter().any(|line| line.contains("table ")), "none was written: {routes}");
    let in_main = defaults.iter().find(|line| !line.contains("table "));
    ensure!(in_main.is_none(), "main had {in_main:?} for a while");
    Ok(())
}

/// The first ENI's leased address as `ip` shows it.
fn leased(stage: &Stage) -> anyhow::Result<Value> {
    let links = stage.machine.json("ip -j -6 address show dev ens5 scope global")?;
    // Links that do not match are empty objects.
    let links = links.as_array().context("no links")?;
    let mut addresses = links.iter().filter_map(|link| link["addr_info"].as_array()).flatten();
    let address = addresses.find(|address| address["local"] == FIRST_SIX.to_string());
    address.cloned().with_context(|| format!("no {FIRST_SIX}: {links:?}"))
}

/// The lease is the client's: enid neither marks it nor prolongs it.
fn is_the_clients(stage: &Stage) -> anyhow::Result<()> {
    let address = leased(stage)?;
    let left = address["valid_life_time"].as_u64().context("no lifetime")?;
    ensure!(address["dynamic"] == true && left <= LEASE.1.into(), "not by lease: {address}");
    ensure!(address["protocol"] != "0xe9", "enid took it for its own: {address}");
    Ok(())
}

fn lease_is_renewed(stage: &Stage) -> anyhow::Result<()> {
    let since = Instant::now();
    eventually(PATIENCE, "the client renews its lease", &stage.machine, || {
        is_the_clients(stage)?;
        let asked = stage.vpc.dhcp_v6().exchanges(&stage.machine.guest.primary);
        let renewed = asked.iter().any(|one| {
            one.at > since
                && one.asked == MessageTypeV6::Renew
                && one.answer == Some(MessageTypeV6::Reply)
        });
        ensure!(renewed, "{asked:?}");
        Ok(())
    })?;
    is_the_clients(stage)
}

/// The client is stopped; it says goodbye to nobody, and nobody prolongs the lease.
fn lease_lapses(stage: &Stage) -> anyhow::Result<()> {
    let pingers = [stage.ping(FIRST_SIX)?, stage.ping(FIRST_PUBLIC)?, stage.ping(SECOND_SIX)?];
    stage.machine.run("systemctl kill --signal=STOP systemd-networkd")?;
    eventually(PATIENCE, "enid takes the address over", &stage.machine, || {
        let address = leased(stage)?;
        let ours = address["protocol"] == "0xe9" && address["dynamic"] != true;
        ensure!(ours, "{address}");
        Ok(())
    })?;
    stage.comes_to_work()?;
    std::thread::sleep(Duration::from_secs(2));
    for (pinger, whose) in pingers.into_iter().zip(["the leased address", "IPv4", "the second"]) {
        let report = pinger.stop();
        figure(
            &format!("at the lapse {whose} missed {} of {}", report.lost, report.sent),
            report.longest_gap,
        );
        // The kernel drops the address first; what falls into the moment until enid hears is lost.
        let most = if whose == "the leased address" { 5 } else { 0 };
        ensure!(report.lost <= most, "{whose}: {report:?}");
    }
    Ok(())
}

/// Metadata is reached over IPv4 all the same: DHCP leases an address that reaches nothing else.
fn alone(image: &Image) -> anyhow::Result<()> {
    let files = networkd_with("yes", "Name=ens5")?;
    let stage = Stage::boot_in(Families::Six, Config::default(), image, &files)?;
    stage.install()?;
    let primary = stage.ping(FIRST_SIX)?;
    figure("without IPv4: from device_add to the first answer", stage.plug_second()?);
    stage.comes_to_work()?;
    stage.comes_to_rest()?;
    let leased = stage.machine.run("ip -4 -o address show dev ens5")?;
    ensure!(leased.contains("inet 169.254."), "no lease: {leased}");
    let second = stage.machine.run("ip -4 -o address show dev ens6")?;
    ensure!(second.is_empty(), "the second ENI has an address of IPv4: {second}");
    let status = stage.machine.json("enictl status --json")?;
    ensure!(status["metadata"]["endpoint"] == "http://169.254.169.254", "{status}");
    stage.machine.unplug(&stage.vpc, &stage.second)?;
    stage.comes_to_rest()?;
    stage.plug_second()?;
    stage.comes_to_work()?;
    stage.missed_nothing(primary, "the first ENI")
}
