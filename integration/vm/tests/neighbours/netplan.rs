//! Promises: on a machine that cloud-init and netplan configure, as cloud images are, a new ENI works
//! at once, and `netplan apply` does not disturb it.

use std::net::Ipv4Addr;
use std::time::Duration;

use vm::{Files, Image, Recipe, Release};

use super::watch::{SECONDARIES, Watch, all_work, assign};
use crate::Promise;
use crate::stage::{FIRST_PUBLIC, SECOND_PUBLIC, Stage, figure, package};

pub(crate) fn promises() -> Vec<Promise> {
    let recipe = Recipe::new(Release::Trixie).with(&["cloud-init", "dhcpcd-base", "netplan.io"]);
    vec![Promise {
        name: "neighbours::netplan::what_cloud_init_configured_stays_and_the_rest_is_enids",
        recipe,
        keep: |image| beside(image, &cloud_init()?, &[SECOND_PUBLIC, SECONDARIES[1]]),
    }]
}

/// Only what concerns the network; the rest takes minutes under emulation.
const CLOUD: &str = "datasource_list: [Ec2]
cloud_init_modules: []
cloud_config_modules: []
cloud_final_modules: []
";

/// The metadata service is asked as on an instance.
fn cloud_init() -> anyhow::Result<Files> {
    Files::new()?
        .enable("systemd-networkd.service")?
        .copy(&package()?, "/root/enid.deb")?
        .text("/etc/cloud/cloud.cfg.d/95-network.cfg", CLOUD)?
        .mask("cloud-config.service")?
        .mask("cloud-final.service")
}

/// An ENI comes and goes, and `netplan apply` is run; these addresses miss nothing meanwhile.
fn beside(image: &Image, files: &Files, undisturbed: &[Ipv4Addr]) -> anyhow::Result<()> {
    let stage = Stage::boot(image, files)?;
    let watch = Watch::of(&stage, &[FIRST_PUBLIC])?;
    stage.machine.run("netplan apply")?;
    std::thread::sleep(Duration::from_secs(5));
    watch.tell("netplan apply without enid");

    assign(&stage)?;
    stage.install()?;
    // It reads the package's drop-in when it starts, as at the next boot.
    stage.machine.run("systemctl restart systemd-networkd")?;
    stage.comes_to_rest()?;
    std::thread::sleep(Duration::from_secs(5));
    let watch = Watch::of(&stage, &[FIRST_PUBLIC])?;
    let took = stage.plug_second()?;
    figure("from device_add to the first answer", took);
    all_work(&stage)?;
    // Others that configure the ENI are slower.
    std::thread::sleep(Duration::from_secs(20));
    stage.comes_to_rest()?;
    all_work(&stage)?;
    watch.tell("a new ENI").nothing(&stage)?;

    for _ in 0..2 {
        let watch = Watch::all(&stage)?;
        stage.machine.run("netplan apply")?;
        std::thread::sleep(Duration::from_secs(5));
        stage.comes_to_rest()?;
        all_work(&stage)?;
        // networkd itself takes the addresses away that it gets by DHCP, and asks for them anew.
        watch.tell("netplan apply").nothing_at(&stage, undisturbed)?;
    }
    let watch = Watch::of(&stage, &[FIRST_PUBLIC])?;
    stage.machine.unplug(&stage.vpc, &stage.second)?;
    stage.comes_to_rest()?;
    std::thread::sleep(Duration::from_secs(5));
    watch.tell("the ENI is pulled out").nothing(&stage)
}
