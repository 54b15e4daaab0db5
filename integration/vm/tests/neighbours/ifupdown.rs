//! Promise: ifupdown may configure ENIs; whoever takes one down and up again finds everything of
//! enid's in its place afterwards.

use anyhow::ensure;
use vm::{Files, Image, Recipe, Release};
use vpc::Config;

use super::watch::{OF_FIRST, OF_SECOND, grows_unnoticed, missed_during};
use crate::Promise;
use crate::stage::{Families, Stage, package};

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

fn boot(families: Families, image: &Image, interfaces: &str) -> anyhow::Result<Stage> {
    let files = Files::new()?
        .text("/etc/network/interfaces", interfaces)?
        .enable("networking.service")?
        .copy(&package()?, "/root/enid.deb")?;
    let stage = Stage::boot_in(families, Config::default(), image, &files)?;
    grows_unnoticed(&stage)?;
    Ok(stage)
}

/// That the first ENI does not answer meanwhile is what was asked for.
fn first(image: &Image) -> anyhow::Result<()> {
    let stage = boot(Families::Four, image, FIRST_ONLY)?;
    let before = stage.objects()?;
    for command in ["ifdown ens5 && ifup ens5", "systemctl restart networking"] {
        missed_during(&stage, command)?.nothing_at(&stage, &OF_SECOND)?;
        let after = stage.objects()?;
        ensure!(after == before, "after `{command}`:\n{after}\nbefore:\n{before}");
    }
    stage.comes_to_work()
}

/// Both ENIs in both families.
const EVERY: &str = "iface ens5 inet6 dhcp
allow-hotplug ens6
iface ens6 inet dhcp
    metric 100
iface ens6 inet6 dhcp
";

/// It has configured the second ENI, and enid says so. Routers' default routes are the kernel's
/// business here, and enid has told it to make none.
fn is_configured(stage: &Stage) -> anyhow::Result<()> {
    let routes = stage.machine.run("ip -4 route show dev ens6 table main")?;
    ensure!(routes.contains("default via 10.0.2.1 metric 100"), "no default route: {routes}");
    let leased = stage.machine.run("ip -6 -o address show dev ens6 dynamic")?;
    ensure!(leased.contains("inet6 2600:1f16:67f:f202::4/"), "no lease: {leased}");
    let notices = stage.notices(&stage.second)?;
    let notice = "main has a default route by this link (proto boot)";
    ensure!(notices.contains(notice), "no {notice:?}: {notices}");
    Ok(())
}

/// Taking it down does not last: enid gives it its addresses and raises it again.
fn second(image: &Image) -> anyhow::Result<()> {
    let stage = boot(Families::Both, image, &format!("{FIRST_ONLY}{EVERY}"))?;
    for command in ["ifup ens6", "ifdown ens6 && ifup ens6", "ifdown ens6", "ifup ens6"] {
        missed_during(&stage, command)?.nothing_at(&stage, &OF_FIRST)?;
        if command.ends_with("ifup ens6") {
            is_configured(&stage)?;
        }
    }
    stage.comes_to_work()
}
