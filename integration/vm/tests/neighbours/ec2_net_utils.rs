//! Promises: amazon-ec2-net-utils may configure the same ENIs, and enid takes over from it.
//!
//! The package is Debian's. Its rule for udev and its file for systemd-networkd name the drivers of
//! real instances; here they name the emulator's, and nothing else is different.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::eventually;
use vm::{Files, Image, Recipe, Release};

use super::watch::{SECONDARIES, Watch, all_work, assign};
use crate::Promise;
use crate::stage::{FIRST_PUBLIC, PATIENCE, Stage, figure, package};

pub(crate) fn promises() -> Vec<Promise> {
    let recipe = Recipe::new(Release::Trixie).with(&["amazon-ec2-net-utils"]);
    vec![
        Promise {
            name: "neighbours::ec2_net_utils::beside_it_nothing_is_missed",
            recipe: recipe.clone(),
            keep: beside,
        },
        Promise {
            name: "neighbours::ec2_net_utils::it_hands_over_and_the_primary_misses_nothing",
            recipe,
            keep: hand_over,
        },
    ]
}

/// Its timer fires once a minute at least.
const ROUND: Duration = Duration::from_secs(70);

/// As the package has it, for the emulator's adapters.
const UDEV: &str = r#"SUBSYSTEM=="net", ACTION=="remove", ENV{ID_NET_DRIVER}=="virtio_net", RUN+="/usr/bin/systemctl stop --no-block policy-routes@$name.service"
SUBSYSTEM=="net", ACTION=="remove", ENV{ID_NET_DRIVER}=="virtio_net", RUN+="/usr/bin/systemctl disable --now refresh-policy-routes@$name.timer refresh-policy-routes@$name.service policy-routes@$name.service"
SUBSYSTEM=="net", ACTION=="add", ENV{ID_NET_DRIVER}=="virtio_net", RUN+="/usr/bin/systemctl enable --now --no-block policy-routes@$name.service refresh-policy-routes@$name.timer"
"#;

/// As the package has it, for the emulator's adapters and without the large MTU, which they lack.
const NETWORK: &str = "[Match]
Driver=virtio_net
[Network]
DHCP=yes
IPv6DuplicateAddressDetection=0
LLMNR=no
DNSDefaultRoute=yes
[DHCPv4]
UseHostname=no
UseDNS=yes
UseNTP=yes
UseDomains=yes
[DHCPv6]
UseHostname=no
UseDNS=yes
UseNTP=yes
WithoutRA=solicit
";

fn files() -> anyhow::Result<Files> {
    Files::new()?
        .text("/etc/udev/rules.d/99-vpc-policy-routes.rules", UDEV)?
        .text("/usr/lib/systemd/network/80-ec2.network", NETWORK)?
        .enable("systemd-networkd.service")?
        .copy(&package()?, "/root/enid.deb")
}

/// Boots with amazon-ec2-net-utils alone, until it has configured both ENIs and their secondaries.
fn configured_by_it(image: &Image) -> anyhow::Result<Stage> {
    let stage = Stage::boot(image, &files()?)?;
    assign(&stage)?;
    let took = stage.plug_second()?;
    figure("amazon-ec2-net-utils alone: from device_add to the first answer", took);
    eventually(PATIENCE, "its secondary addresses work", &stage.machine, || {
        SECONDARIES.iter().try_for_each(|address| stage.answers(*address))
    })?;
    Ok(stage)
}

fn beside(image: &Image) -> anyhow::Result<()> {
    let stage = Stage::boot(image, &files()?)?;
    assign(&stage)?;
    let watch = Watch::of(&stage, &[FIRST_PUBLIC])?;
    stage.install()?;
    let took = stage.plug_second()?;
    figure("enid beside amazon-ec2-net-utils: from device_add to the first answer", took);
    all_work(&stage)?;
    // The other one is slower; nothing changes when it is done, and when it refreshes.
    eventually(PATIENCE, "it has configured the second ENI, too", &stage.machine, || {
        let rules = stage.machine.run("ip rule")?;
        ensure!(rules.contains("10001:"), "no rule of its own: {rules}");
        Ok(())
    })?;
    watch.end(&stage, "amazon-ec2-net-utils configures the second ENI")?;
    stage.comes_to_rest()?;
    all_work(&stage)?;

    let late = Ipv4Addr::new(10, 0, 2, 78);
    stage.vpc.assign(&stage.second, late, None)?;
    let assigned = Instant::now();
    eventually(PATIENCE, "a new address works", &stage.machine, || stage.answers(late))?;
    figure("from the assignment to the answer", assigned.elapsed());
    let watch = Watch::all(&stage)?;
    std::thread::sleep(ROUND);
    watch.end(&stage, "amazon-ec2-net-utils takes up a new address")?;
    all_work(&stage)?;
    stage.answers(late)?;
    let watch = Watch::first(&stage)?;
    stage.machine.unplug(&stage.vpc, &stage.second)?;
    stage.comes_to_rest()?;
    std::thread::sleep(Duration::from_secs(10));
    watch.end(&stage, "the second ENI is pulled out")?.nothing(&stage)
}

/// What neighbours.md says about handing over.
const HAND_OVER: [(&str, &str); 4] = [
    (
        "it is stopped",
        "systemctl mask policy-routes@.service \
            refresh-policy-routes@.service refresh-policy-routes@.timer
        systemctl stop 'refresh-policy-routes@*'",
    ),
    (
        "the primary gets a file of its own",
        "cat > /etc/systemd/network/50-primary.network <<END
[Match]
MACAddress=$(cat /sys/class/net/ens5/address)
[Network]
DHCP=ipv4
END
        rm -r /run/systemd/network/70-ens5.network*
        networkctl reload",
    ),
    (
        "networkd lets go of the others",
        "cp /usr/share/doc/enid/examples/10-enid-secondary.network /etc/systemd/network/
        rm -r /run/systemd/network/70-*
        networkctl reload",
    ),
    ("it is removed", "apt-get --yes purge amazon-ec2-net-utils"),
];

fn hand_over(image: &Image) -> anyhow::Result<()> {
    let stage = configured_by_it(image)?;
    let watch = Watch::all(&stage)?;
    stage.install()?;
    all_work(&stage)?;
    watch.end(&stage, "enid is installed")?.nothing(&stage)?;
    for (what, script) in HAND_OVER {
        let watch = Watch::all(&stage)?;
        stage.machine.run(script)?;
        std::thread::sleep(Duration::from_secs(5));
        stage.comes_to_rest()?;
        all_work(&stage)?;
        // An address that networkd gives up is away until enid has put it back.
        watch.end(&stage, what)?;
    }
    // Without it, and without its leftovers, everything comes and goes as it should.
    let rules = stage.machine.run("ip rule")?;
    ensure!(!rules.contains("10001"), "a rule of its own is left: {rules}");
    let watch = Watch::first(&stage)?;
    stage.machine.unplug(&stage.vpc, &stage.second)?;
    stage.comes_to_rest()?;
    let took = stage.plug_second()?;
    figure("enid alone: from device_add to the first answer", took);
    stage.comes_to_rest()?;
    all_work(&stage)?;
    watch.end(&stage, "the second ENI goes and comes")?.nothing(&stage)?;
    stage.machine.reboot()?;
    all_work(&stage)?;
    stage.comes_to_rest()
}
