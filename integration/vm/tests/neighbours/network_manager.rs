//! Promise: NetworkManager may manage the first ENI; it lets a hot-plugged one be, and what it drops
//! when it is told to configure a device anew is put back.

use anyhow::ensure;
use integration::eventually;
use vm::{Files, Image, Recipe, Release};
use vpc::Config;

use super::watch::{grows_unnoticed, missed_during};
use crate::Promise;
use crate::stage::{FIRST_PUBLIC, Families, PATIENCE, SECOND_PUBLIC, Stage, package};

pub(crate) fn promises() -> Vec<Promise> {
    let recipe = Recipe::new(Release::Trixie).with(&["network-manager"]);
    let promise = |name, keep| Promise { name, recipe: recipe.clone(), keep };
    vec![
        promise("neighbours::network_manager::a_restart_and_a_reload_go_unnoticed", restarts),
        promise("neighbours::network_manager::what_it_drops_is_put_back", drops),
    ]
}

/// With its defaults: a "Wired connection" with DHCP for every adapter that nobody has configured.
fn boot(families: Families, image: &Image) -> anyhow::Result<Stage> {
    let files =
        Files::new()?.enable("NetworkManager.service")?.copy(&package()?, "/root/enid.deb")?;
    let stage = Stage::boot_in(families, Config::default(), image, &files)?;
    grows_unnoticed(&stage)?;
    Ok(stage)
}

fn restarts(image: &Image) -> anyhow::Result<()> {
    let stage = boot(Families::Four, image)?;
    let before = stage.objects()?;
    for command in ["nmcli general reload", "systemctl restart NetworkManager"] {
        missed_during(&stage, command)?.nothing(&stage)?;
        let after = stage.objects()?;
        ensure!(after == before, "after `{command}`:\n{after}\nbefore:\n{before}");
    }
    stage.comes_to_work()
}

/// The second ENI has a lease and default routes of its own then, and enid says so.
fn is_configured(stage: &Stage) -> anyhow::Result<()> {
    for (family, by, gateway) in [("-4", "dhcp", "10.0.2.1 "), ("-6", "ra", "fe80::")] {
        let command = format!("ip {family} route show default dev ens6 table main proto {by}");
        let routes = stage.machine.run(&command)?;
        ensure!(routes.contains(&format!(" via {gateway}")), "`{command}`: {routes}");
        let notices = stage.notices(&stage.second)?;
        let notice = format!("main has a default route by this link (proto {by})");
        ensure!(notices.contains(&notice), "no {notice:?}: {notices}");
    }
    Ok(())
}

fn drops(image: &Image) -> anyhow::Result<()> {
    let stage = boot(Families::Both, image)?;
    // It takes the first ENI's own address away, too, and asks for a lease anew.
    let missed = missed_during(&stage, "nmcli connection up 'Wired connection 1'")?;
    missed.nothing_at(&stage, &[SECOND_PUBLIC])?;
    let drops = |command: &str| -> anyhow::Result<()> {
        missed_during(&stage, command)?.nothing_at(&stage, &[FIRST_PUBLIC])
    };
    drops("nmcli device reapply ens5")?;
    for command in ["nmcli connection up 'Wired connection 2'", "nmcli device reapply ens6"] {
        drops(command)?;
        eventually(PATIENCE, "what NetworkManager made is there", &stage.machine, || {
            is_configured(&stage)
        })?;
        stage.comes_to_work()?;
    }
    drops("nmcli device disconnect ens6")?;
    stage.comes_to_work()
}
