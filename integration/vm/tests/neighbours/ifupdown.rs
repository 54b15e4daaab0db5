//! Promise: ifupdown may configure ENIs; whoever takes one down and up again finds everything of
//! enid's in its place afterwards.

use anyhow::ensure;
use vm::{Files, Image, Recipe, Release};

use crate::Promise;
use crate::stage::{Stage, package};

pub(crate) fn promises() -> Vec<Promise> {
    let recipe = |client| Recipe::new(Release::Trixie).with(&["ifupdown", client]);
    let promise = |name, client, keep| Promise { name, recipe: recipe(client), keep };
    let (dhclient, dhcpcd) = ("isc-dhcp-client", "dhcpcd-base");
    vec![
        promise("ifupdown::the_first_eni_is_taken_down_and_up_again", dhclient, first),
        promise("ifupdown::the_first_eni_is_taken_down_and_up_again_by_dhcpcd", dhcpcd, first),
        promise("ifupdown::a_hot_plugged_eni_is_taken_down_and_up_again", dhclient, second),
    ]
}

const FIRST_ONLY: &str = "auto lo\niface lo inet loopback\nauto ens5\niface ens5 inet dhcp\n";

fn boot(image: &Image, interfaces: &str) -> anyhow::Result<Stage> {
    let files = Files::new()?
        .text("/etc/network/interfaces", interfaces)?
        .enable("networking.service")?
        .copy(&package()?, "/root/enid.deb")?;
    let stage = Stage::boot(image, &files)?;
    stage.grows_unnoticed()?;
    Ok(stage)
}

/// That the first ENI does not answer meanwhile is what was asked for.
fn first(image: &Image) -> anyhow::Result<()> {
    let stage = boot(image, FIRST_ONLY)?;
    let before = stage.objects()?;
    for command in ["ifdown ens5 && ifup ens5", "systemctl restart networking"] {
        let missed = stage.missed_during(command)?;
        let of_second = missed.second.lost + missed.secondaries[1].lost;
        ensure!(of_second == 0, "the second ENI was not meant: {missed:?}");
        let after = stage.objects()?;
        ensure!(after == before, "after `{command}`:\n{after}\nbefore:\n{before}");
    }
    stage.comes_to_work()
}

/// Taking it down does not last: enid gives it its addresses and raises it again.
fn second(image: &Image) -> anyhow::Result<()> {
    let hotplug = format!("{FIRST_ONLY}allow-hotplug ens6\niface ens6 inet dhcp\n");
    let stage = boot(image, &hotplug)?;
    for command in ["ifup ens6", "ifdown ens6 && ifup ens6", "ifdown ens6", "ifup ens6"] {
        let missed = stage.missed_during(command)?;
        let of_first = missed.first.lost + missed.secondaries[0].lost;
        ensure!(of_first == 0, "the first ENI was not meant: {missed:?}");
    }
    stage.comes_to_work()
}
