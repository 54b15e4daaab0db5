//! Promise: systemd-networkd may manage the first ENI, or every ENI by DHCP; what it drops is put
//! back, and two settings keep it from dropping anything.

use std::time::{Duration, Instant};

use anyhow::ensure;
use vm::{Image, Recipe, Release};

use crate::Promise;
use crate::stage::{FIRST_PUBLIC, SECOND_PUBLIC, Stage, figure, networkd};

pub(crate) fn promises() -> Vec<Promise> {
    let promise = |name, keep| Promise { name, recipe: Recipe::new(Release::Trixie), keep };
    vec![
        promise("networkd::dhcp_alone_does_not_make_a_second_eni_work", dhcp_alone),
        promise("networkd::that_manages_the_first_eni_only_is_restarted", first_only),
        promise("networkd::that_runs_dhcp_on_every_eni_is_restarted", every_eni),
        promise("networkd::that_keeps_static_addresses_is_restarted_unnoticed", keeps),
        promise("networkd::what_it_drops_by_default_is_put_back", defaults),
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
    stage.grows_unnoticed()?;
    let [_, of_second] = stage.missed_during(RESTART)?.on_secondaries_only()?;
    ensure!(of_second.lost == 0, "networkd does not manage the second ENI: {of_second:?}");
    stage.comes_to_work()
}

/// The package's settings are in force from the first restart on.
fn every_eni(image: &Image) -> anyhow::Result<()> {
    let stage = Stage::boot(image, &networkd(EVERY)?)?;
    stage.grows_unnoticed()?;
    let lease = "ip -4 -o address show dev ens6 dynamic; ip -4 route show dev ens6 proto dhcp";
    let before = stage.machine.run(lease)?;
    ensure!(before.contains("default via 10.0.2.1"), "networkd has not configured it: {before}");
    stage.missed_during(RESTART)?.on_secondaries_only()?;
    stage.missed_during(RESTART)?.on_secondaries_only()?;
    let after = stage.machine.run(lease)?;
    ensure!(after.contains("default via 10.0.2.1"), "what networkd made is gone: {after}");
    stage.comes_to_work()
}

fn keeps(image: &Image) -> anyhow::Result<()> {
    let files = networkd(EVERY)?.text(
        "/etc/systemd/network/50-dhcp.network.d/50-enid.conf",
        "[Network]\nKeepConfiguration=static\n",
    )?;
    let stage = Stage::boot(image, &files)?;
    stage.grows_unnoticed()?;
    for command in [RESTART, RESTART, "networkctl reload"] {
        stage.missed_during(command)?.nothing()?;
    }
    stage.comes_to_work()
}

fn defaults(image: &Image) -> anyhow::Result<()> {
    let files = networkd(EVERY)?.link("/dev/null", SETTINGS)?;
    let stage = Stage::boot(image, &files)?;
    stage.grows_unnoticed()?;
    let before = stage.objects()?;
    for command in [RESTART, RESTART, "networkctl reconfigure ens5", "networkctl reconfigure ens6"]
    {
        stage.missed_during(command)?;
        let after = stage.objects()?;
        ensure!(after == before, "after `{command}`:\n{after}\nbefore:\n{before}");
    }
    stage.comes_to_work()
}
