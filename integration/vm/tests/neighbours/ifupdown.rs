//! Promise: ifupdown may configure ENIs; whoever takes one down and up again finds everything of
//! enid's in its place afterwards.

use anyhow::ensure;
use vm::{Files, Image, Recipe, Release};

use super::watch::{OF_FIRST, OF_SECOND, grows_unnoticed, missed_during};
use crate::Promise;
use crate::stage::{Stage, package};

pub(crate) fn promises() -> Vec<Promise> {
    let recipe = |client| Recipe::new(Release::Trixie).with(&["ifupdown", client]);
    let promise = |name, client, keep| Promise { name, recipe: recipe(client), keep };
    let (dhclient, dhcpcd) = ("isc-dhcp-client", "dhcpcd-base");
    vec![
        promise("neighbours::ifupdown::the_first_eni_is_taken_down_and_up_again", dhclient, first),
        promise(
            "neighbours::ifupdown::the_first_eni_is_taken_down_and_up_again_by_dhcpcd",
            dhcpcd,
            first,
        ),
        promise(
            "neighbours::ifupdown::a_hot_plugged_eni_is_taken_down_and_up_again",
            dhclient,
            second,
        ),
    ]
}

const FIRST_ONLY: &str = "auto lo\niface lo inet loopback\nauto ens5\niface ens5 inet dhcp\n";

fn boot(image: &Image, interfaces: &str) -> anyhow::Result<Stage> {
    let files = Files::new()?
        .text("/etc/network/interfaces", interfaces)?
        .enable("networking.service")?
        .copy(&package()?, "/root/enid.deb")?;
    let stage = Stage::boot(image, &files)?;
    grows_unnoticed(&stage)?;
    Ok(stage)
}

/// That the first ENI does not answer meanwhile is what was asked for.
fn first(image: &Image) -> anyhow::Result<()> {
    let stage = boot(image, FIRST_ONLY)?;
    let before = stage.objects()?;
    for command in ["ifdown ens5 && ifup ens5", "systemctl restart networking"] {
        missed_during(&stage, command)?.nothing_at(&stage, &OF_SECOND)?;
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
        missed_during(&stage, command)?.nothing_at(&stage, &OF_FIRST)?;
    }
    stage.comes_to_work()
}
