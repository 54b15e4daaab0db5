//! Promise: systemd-networkd may manage the first ENI, or every ENI by DHCP; what it drops is put
//! back, and two settings keep it from dropping anything.

use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::eventually;
use vm::{Image, Recipe, Release};
use vpc::Config;

use super::watch::{SECONDARIES, grows_unnoticed, missed_during};
use crate::Promise;
use crate::stage::{
    FIRST_PUBLIC, Families, PATIENCE, SECOND_PUBLIC, Stage, figure, networkd, networkd_with,
};

pub(crate) fn promises() -> Vec<Promise> {
    let promise = |name, keep| Promise { name, recipe: Recipe::new(Release::Trixie), keep };
    vec![
        promise("neighbours::networkd::dhcp_alone_does_not_make_a_second_eni_work", dhcp_alone),
        promise("neighbours::networkd::that_manages_the_first_eni_only_is_restarted", first_only),
        promise("neighbours::networkd::that_runs_dhcp_on_every_eni_is_restarted", every_eni),
        promise("neighbours::networkd::that_keeps_static_addresses_is_restarted_unnoticed", keeps),
        promise("neighbours::networkd::what_it_drops_by_default_is_put_back", defaults),
    ]
}

const RESTART: &str = "systemctl restart systemd-networkd";
const FIRST_ONLY: &str = "Name=ens5";
/// What Debian's images for clouds say.
const EVERY: &str = "Name=en*";
/// Where the package's settings for networkd can be overridden.
const SETTINGS: &str = "/etc/systemd/networkd.conf.d/50-enid.conf";

/// A control: the same machine without enid.
fn dhcp_alone(image: &Image) -> anyhow::Result<()> {
    let stage = Stage::boot(image, &networkd(EVERY)?)?;
    let (first, second) = (stage.ping(FIRST_PUBLIC)?, stage.ping(SECOND_PUBLIC)?);
    let plugged = stage.machine.plug(&stage.vpc, &stage.second)?;
    std::thread::sleep(Duration::from_secs(20));
    let told = stage.vpc.dhcp().leases(&stage.second);
    ensure!(told > 0, "the second ENI was told no address");
    let second = second.between(plugged, Instant::now());
    figure("DHCP alone, the first ENI", first.stop());
    figure("DHCP alone, the second ENI from device_add on", second);
    ensure!(second.answered < second.sent / 2, "the second ENI answers: {second:?}");
    Ok(())
}

fn first_only(image: &Image) -> anyhow::Result<()> {
    let stage = Stage::boot(image, &networkd(FIRST_ONLY)?)?;
    grows_unnoticed(&stage)?;
    // networkd does not manage the second ENI, and gives up foreign addresses only.
    let unharmed = [FIRST_PUBLIC, SECOND_PUBLIC, SECONDARIES[1]];
    missed_during(&stage, RESTART)?.nothing_at(&stage, &unharmed)?;
    stage.comes_to_work()
}

/// What networkd makes of an ENI of both families.
const LEASES: [(&str, &str); 4] = [
    ("ip -4 -o address show dev ens6 dynamic", "inet 10.0.2.4/24 "),
    ("ip -4 route show dev ens6 table main proto dhcp", "default via 10.0.2.1 "),
    ("ip -6 -o address show dev ens6 dynamic", "inet6 2600:1f16:67f:f202::4/128 "),
    // Through a next hop object.
    ("ip -6 route show default dev ens6 table main proto ra", " via fe80::"),
];

/// It has configured the second ENI, and enid says so.
fn is_configured(stage: &Stage) -> anyhow::Result<()> {
    for (command, made) in LEASES {
        let there = stage.machine.run(command)?;
        ensure!(there.contains(made), "no {made:?}: {there}");
    }
    let notices = stage.notices(&stage.second)?;
    for by in ["dhcp", "ra"] {
        let notice = format!("main has a default route by this link (proto {by})");
        ensure!(notices.contains(&notice), "no {notice:?}: {notices}");
    }
    Ok(())
}

/// The package's settings are in force from the first restart on.
fn every_eni(image: &Image) -> anyhow::Result<()> {
    let files = networkd_with("yes", EVERY)?;
    let stage = Stage::boot_in(Families::Both, Config::default(), image, &files)?;
    grows_unnoticed(&stage)?;
    eventually(PATIENCE, "networkd has configured the ENI, too", &stage.machine, || {
        is_configured(&stage)
    })?;
    stage.comes_to_work()?;
    for _ in 0..2 {
        missed_during(&stage, RESTART)?.nothing_at(&stage, &[FIRST_PUBLIC, SECOND_PUBLIC])?;
        eventually(PATIENCE, "what networkd made is there", &stage.machine, || {
            is_configured(&stage)
        })?;
    }
    stage.comes_to_work()
}

fn keeps(image: &Image) -> anyhow::Result<()> {
    let files = networkd(EVERY)?.text(
        "/etc/systemd/network/50-dhcp.network.d/50-enid.conf",
        "[Network]\nKeepConfiguration=static\n",
    )?;
    let stage = Stage::boot(image, &files)?;
    grows_unnoticed(&stage)?;
    for command in [RESTART, RESTART, "networkctl reload"] {
        missed_during(&stage, command)?.nothing(&stage)?;
    }
    stage.comes_to_work()
}

fn defaults(image: &Image) -> anyhow::Result<()> {
    let files = networkd(EVERY)?.link("/dev/null", SETTINGS)?;
    let stage = Stage::boot(image, &files)?;
    grows_unnoticed(&stage)?;
    let before = stage.objects()?;
    for command in [RESTART, RESTART, "networkctl reconfigure ens5", "networkctl reconfigure ens6"]
    {
        missed_during(&stage, command)?;
        let after = stage.objects()?;
        ensure!(after == before, "after `{command}`:\n{after}\nbefore:\n{before}");
    }
    stage.comes_to_work()
}
