//! Promise: installing, upgrading and removing the package cuts nothing off.

use anyhow::ensure;
use integration::eventually;
use vm::{Image, Recipe, Release};

use crate::Promise;
use crate::stage::{FIRST_PUBLIC, PATIENCE, SECOND_PUBLIC, SECONDARY, Stage, networkd};

pub(crate) fn promises() -> Vec<Promise> {
    vec![Promise {
        name: "package::its_life_cuts_nothing_off",
        recipe: Recipe::new(Release::Bookworm),
        keep,
    }]
}

/// The same package with a later version.
const NEXT: &str = "dpkg-deb -R /root/enid.deb /root/next
    sed -i 's/^Version: .*/&+next/' /root/next/DEBIAN/control
    dpkg-deb -Zgzip -z1 -b /root/next /root/next.deb";

fn keep(image: &Image) -> anyhow::Result<()> {
    let stage = Stage::boot(image, &networkd("Name=ens5")?)?;
    let primary = stage.ping(FIRST_PUBLIC)?;
    stage.install()?;
    stage.vpc.assign(&stage.second, SECONDARY, None)?;
    stage.plug_second()?;
    stage.comes_to_work()?;
    stage.comes_to_rest()?;
    stage.machine.run(NEXT)?;

    let second = stage.ping(SECOND_PUBLIC)?;
    let secondary = stage.ping(SECONDARY)?;
    let before = stage.machine.unit("enid.service")?;
    stage.machine.run("dpkg -i /root/next.deb")?;
    let now = stage.machine.unit("enid.service")?;
    ensure!(now.active == "active" && now.pid != before.pid, "not restarted: {now:?}");
    stage.comes_to_rest()?;

    let said = stage.machine.run("dpkg --remove enid 2>&1")?;
    ensure!(said.contains("enictl release --all"), "nothing said how to release: {said}");
    stage.works()?;
    stage.machine.run("dpkg --purge enid && ! test -e /etc/enid")?;
    stage.works()?;

    stage.install()?;
    stage.works()?;
    stage.missed_nothing(second, "the second ENI")?;
    stage.missed_nothing(secondary, "its secondary address")?;

    stage.machine.run("enictl release --all && dpkg --purge enid")?;
    eventually(PATIENCE, "nothing of enid's is left", &stage.machine, || {
        let left = stage.machine.run("ip -N rule; ip -N route show table all; ip -br addr")?;
        for trace in ["proto 233", "20000:", &SECONDARY.to_string()] {
            ensure!(!left.contains(trace), "{trace} is left: {left}");
        }
        Ok(())
    })?;
    stage.missed_nothing(primary, "the first ENI")
}
