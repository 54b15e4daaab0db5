//! Promise: the same on the kernels and systemds of older releases, one of which does not keep who
//! made an address.

use anyhow::ensure;
use integration::eventually;
use vm::{Image, Recipe, Release};

use crate::Promise;
use crate::stage::{FIRST_PUBLIC, PATIENCE, SECONDARY, SOON, Stage, figure, networkd};

pub(crate) fn promises() -> Vec<Promise> {
    vec![
        Promise {
            name: "kernels::debian_11_without_address_protocols",
            recipe: Recipe::new(Release::Bullseye),
            keep: |image| keep(image, "5.10."),
        },
        Promise {
            name: "kernels::debian_12",
            recipe: Recipe::new(Release::Bookworm),
            keep: |image| keep(image, "6.1."),
        },
        Promise {
            name: "kernels::debian_13",
            recipe: Recipe::new(Release::Trixie),
            keep: |image| keep(image, "6.12."),
        },
    ]
}

fn keep(image: &Image, version: &str) -> anyhow::Result<()> {
    let files = networkd("Name=ens5")?.text("/etc/enid/enid.d/test.toml", SOON)?;
    let stage = Stage::boot(image, &files)?;
    let kernel = stage.machine.run("uname -r")?;
    ensure!(kernel.starts_with(version), "the kernel is {kernel}");
    stage.install()?;
    let primary = stage.ping(FIRST_PUBLIC)?;
    stage.vpc.assign(&stage.second, SECONDARY, None)?;
    figure("from device_add to the first answer", stage.plug_second()?);
    stage.comes_to_work()?;
    stage.comes_to_rest()?;
    eventually(PATIENCE, "the secondary answers", &stage.machine, || stage.answers(SECONDARY))?;

    // What it made is known again by a daemon that was killed; a foreign twin of it is not its own.
    stage.machine.run("ip addr add 10.0.2.99/32 dev ens6; systemctl kill --signal=KILL enid")?;
    stage.machine.run("ip rule del prio 20020; ip route flush table 20001")?;
    eventually(PATIENCE, "what was deleted is back", &stage.machine, || stage.works())?;
    stage.comes_to_rest()?;
    stage.vpc.unassign(&stage.second, SECONDARY)?;
    stage.secondary_goes()?;
    let addresses = stage.machine.run("ip -br addr show dev ens6")?;
    ensure!(addresses.contains("10.0.2.99/32"), "a foreign address went: {addresses}");
    let rss =
        stage.machine.run("grep VmRSS /proc/$(systemctl show -p MainPID --value enid)/status")?;
    figure("resident memory", rss.trim());
    stage.machine.run("enictl release --all")?;
    eventually(PATIENCE, "nothing of enid's is left", &stage.machine, || {
        let left = stage.machine.run("ip -N rule; ip -N route show table all")?;
        ensure!(!left.contains("proto 233") && !left.contains("20000:"), "{left}");
        Ok(())
    })?;
    stage.missed_nothing(primary, "the first ENI")
}
