//! Promise: NetworkManager may manage the first ENI; it lets a hot-plugged one be, and what it drops
//! when it is told to configure a device anew is put back.

use anyhow::ensure;
use vm::{Files, Image, Recipe, Release};

use super::watch::{grows_unnoticed, missed_during};
use crate::Promise;
use crate::stage::{FIRST_PUBLIC, SECOND_PUBLIC, Stage, package};

pub(crate) fn promises() -> Vec<Promise> {
    let recipe = Recipe::new(Release::Trixie).with(&["network-manager"]);
    let promise = |name, keep| Promise { name, recipe: recipe.clone(), keep };
    vec![
        promise("neighbours::network_manager::a_restart_and_a_reload_go_unnoticed", restarts),
        promise("neighbours::network_manager::what_it_drops_is_put_back", drops),
    ]
}

/// With its defaults: a "Wired connection" with DHCP for every adapter that nobody has configured.
fn boot(image: &Image) -> anyhow::Result<Stage> {
    let files =
        Files::new()?.enable("NetworkManager.service")?.copy(&package()?, "/root/enid.deb")?;
    let stage = Stage::boot(image, &files)?;
    grows_unnoticed(&stage)?;
    Ok(stage)
}

fn restarts(image: &Image) -> anyhow::Result<()> {
    let stage = boot(image)?;
    let before = stage.objects()?;
    for command in ["nmcli general reload", "systemctl restart NetworkManager"] {
        missed_during(&stage, command)?.nothing(&stage)?;
        let after = stage.objects()?;
        ensure!(after == before, "after `{command}`:\n{after}\nbefore:\n{before}");
    }
    stage.comes_to_work()
}

fn drops(image: &Image) -> anyhow::Result<()> {
    let stage = boot(image)?;
    // It takes the first ENI's own address away, too, and asks for a lease anew.
    let missed = missed_during(&stage, "nmcli connection up 'Wired connection 1'")?;
    missed.nothing_at(&stage, &[SECOND_PUBLIC])?;
    for command in [
        "nmcli device reapply ens5",
        "nmcli connection up 'Wired connection 2'",
        "nmcli device reapply ens6",
        "nmcli device disconnect ens6",
    ] {
        missed_during(&stage, command)?.nothing_at(&stage, &[FIRST_PUBLIC])?;
    }
    stage.comes_to_work()
}
