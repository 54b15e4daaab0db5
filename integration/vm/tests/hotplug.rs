//! Promise: an ENI that is plugged into a running machine works a moment later under the name that
//! udev gives it, its addresses come and go, and nothing of it is left when it is pulled out.

mod ipv6;

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration::eventually;
use serde_json::Value;
use vm::{Image, Recipe, Release};

use crate::Promise;
use crate::stage::{
    FIRST, FIRST_PUBLIC, PATIENCE, SECOND, SECOND_PUBLIC, SECONDARY, SOON, Stage, figure, networkd,
};

pub(crate) fn promises() -> Vec<Promise> {
    let mut promises = vec![
        Promise {
            name: "hotplug::an_eni_works_as_soon_as_udev_has_named_it",
            recipe: Recipe::new(Release::Trixie),
            keep: works_when_named,
        },
        Promise {
            name: "hotplug::addresses_come_and_go_and_so_does_the_eni",
            recipe: Recipe::new(Release::Trixie),
            keep: come_and_go,
        },
    ];
    promises.extend(ipv6::promises());
    promises
}

/// How often an ENI is plugged in to see how long it takes.
const TIMES: usize = 5;

fn works_when_named(image: &Image) -> anyhow::Result<()> {
    let stage = Stage::boot(image, &networkd("Name=ens5")?)?;
    let without = stage.ping(SECOND_PUBLIC)?;
    stage.machine.plug(&stage.vpc, &stage.second)?;
    std::thread::sleep(Duration::from_secs(5));
    ensure!(without.stop().answered == 0, "it works without enid");
    stage.machine.unplug(&stage.vpc, &stage.second)?;

    stage.install()?;
    let primary = stage.ping(FIRST_PUBLIC)?;
    let mut took = Vec::new();
    for _ in 0..TIMES {
        took.push(stage.plug_second()?);
        stage.comes_to_work()?;
        // The journal may be late.
        eventually(PATIENCE, "the name came first", &stage.machine, || {
            raised_after_its_name(&stage)
        })?;
        stage.machine.unplug(&stage.vpc, &stage.second)?;
        stage.comes_to_rest()?;
    }
    took.sort_unstable();
    figure("from device_add to the first answer", &took);
    stage.missed_nothing(primary, "the first ENI")
}

/// An interface that is up may not be renamed: the name came first, and it is the right one.
fn raised_after_its_name(stage: &Stage) -> anyhow::Result<()> {
    let name = stage.machine.link_name(&stage.second)?;
    let links = stage.machine.json("ip -j link")?;
    let links = links.as_array().context("no links")?;
    ensure!(links.iter().any(|link| link["ifname"] == *name), "no {name}: {links:?}");
    let entries = stage.machine.journal("_TRANSPORT=kernel + _SYSTEMD_UNIT=enid.service")?;
    let at = |words: &str| -> anyhow::Result<u64> {
        let said = |entry: &&Value| entry["MESSAGE"].as_str().is_some_and(|m| m.contains(words));
        let entry = entries.iter().rev().find(said);
        let entry = entry.with_context(|| format!("the journal has no \"{words}\""))?;
        Ok(entry["_SOURCE_MONOTONIC_TIMESTAMP"]
            .as_str()
            .or(entry["__MONOTONIC_TIMESTAMP"].as_str())
            .context("an entry without time")?
            .parse()?)
    };
    let renamed = at(&format!("{name}: renamed from"))?;
    let raised = at(&format!("ip link set dev {name} up"))?;
    ensure!(renamed < raised, "raised at {raised}, renamed at {renamed} µs");
    Ok(())
}

fn come_and_go(image: &Image) -> anyhow::Result<()> {
    let files = networkd("Name=ens5")?.text("/etc/enid/enid.d/test.toml", SOON)?;
    let stage = Stage::boot(image, &files)?;
    stage.install()?;
    let primary = stage.ping(FIRST_PUBLIC)?;
    stage.plug_second()?;
    stage.comes_to_work()?;

    let appears = |what: &str, refresh: bool| -> anyhow::Result<()> {
        let pinger = stage.ping(SECONDARY)?;
        stage.vpc.assign(&stage.second, SECONDARY, None)?;
        let assigned = Instant::now();
        if refresh {
            stage.machine.run("enictl refresh --wait")?;
        }
        figure(what, stage.until_first_answer(&pinger, assigned)?);
        Ok(())
    };
    let goes = || -> anyhow::Result<()> {
        stage.vpc.unassign(&stage.second, SECONDARY)?;
        stage.secondary_goes()
    };
    appears("from the assignment to the first answer, by polling", false)?;
    // Somebody else's address beside it, which metadata never had.
    stage.machine.run("ip addr add 10.0.2.99/32 dev ens6")?;
    goes()?;
    appears("from the assignment to the first answer, by enictl refresh", true)?;
    goes()?;
    let addresses = stage.machine.run("ip -br addr show dev ens6")?;
    ensure!(addresses.contains("10.0.2.99/32"), "a foreign address went: {addresses}");
    ensure!(addresses.contains(&format!("{SECOND}/24")), "the primary address went: {addresses}");

    stage.machine.unplug(&stage.vpc, &stage.second)?;
    eventually(PATIENCE, "nothing of the second ENI is left", &stage.machine, || {
        let left = stage.machine.run("ip -N rule; ip -6 -N rule; ip -N route show table all")?;
        let left = left.lines().find(|line| line.contains("20001") || line.contains("10.0.2."));
        ensure!(left.is_none(), "{left:?}");
        Ok(())
    })?;
    stage.answers(FIRST)?;
    stage.plug_second()?;
    stage.comes_to_work()?;
    stage.answers(SECOND)?;
    stage.missed_nothing(primary, "the first ENI")
}
