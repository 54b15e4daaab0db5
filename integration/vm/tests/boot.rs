//! Promise: after a reboot everything answers without anybody's help, and metadata that is silent
//! at boot delays the machine by seconds, not for ever.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration::eventually;
use integration::imds::{Action, Fault};
use vm::{Image, Recipe, Release};
use vpc::EniSpec;

use crate::Promise;
use crate::stage::{
    FIRST, FIRST_PUBLIC, PATIENCE, SECOND, SECOND_PUBLIC, SECONDARY, Stage, figure, networkd,
};

pub(crate) fn promises() -> Vec<Promise> {
    vec![Promise {
        name: "boot::three_enis_answer_after_a_reboot_also_when_metadata_is_late",
        recipe: Recipe::new(Release::Trixie),
        keep: reboots,
    }]
}

const THIRD: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 5);
const PRIMARYS: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 77);
const THIRDS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 78);
const ALL: [Ipv4Addr; 6] = [FIRST, PRIMARYS, SECOND, SECONDARY, THIRD, THIRDS];

/// Somebody who waits for the network, as most services do.
const WAITER: &str = "[Unit]\nWants=network-online.target\nAfter=network-online.target\n\
     [Service]\nType=oneshot\nExecStart=/bin/true\nRemainAfterExit=yes\n";

/// `network-online.target` does not wait for metadata: ten seconds at most, and much room for an
/// emulated machine.
const DELAY: Duration = Duration::from_secs(60);

fn reboots(image: &Image) -> anyhow::Result<()> {
    let files = networkd("Name=ens5")?
        .text("/usr/lib/systemd/system/waiter.service", WAITER)?
        .enable("waiter.service")?;
    let stage = Stage::boot(image, &files)?;
    stage.install()?;
    // In the subnet of the second: siblings.
    let third = stage.vpc.create_eni(EniSpec::new([THIRD]).device(2))?;
    stage.vpc.assign(&stage.machine.guest.primary, PRIMARYS, None)?;
    for eni in [&stage.second, &third] {
        stage.machine.plug(&stage.vpc, eni)?;
    }
    stage.vpc.assign(&stage.second, SECONDARY, None)?;
    stage.vpc.assign(&third, THIRDS, None)?;
    all_answer(&stage)?;

    let started = Instant::now();
    stage.machine.reboot()?;
    all_answer(&stage)?;
    figure("from the order to reboot until all answer", started.elapsed());
    figure("network-online.target after enid's start", online_after_start(&stage)?);
    for public in [FIRST_PUBLIC, SECOND_PUBLIC] {
        stage.answers(public)?;
    }

    let fault = stage.vpc.metadata().fault(Fault::on("*", Action::Silence));
    stage.machine.reboot()?;
    eventually(PATIENCE, "the machine is online", &stage.machine, || {
        let waiter = stage.machine.unit("waiter.service")?;
        ensure!(waiter.active == "active", "{waiter:?}");
        Ok(())
    })?;
    let delay = online_after_start(&stage)?;
    figure("the same while metadata is silent", delay);
    ensure!(delay < DELAY, "the machine was online {delay:?} after enid's start");
    stage.answers(FIRST)?;
    ensure!(stage.answers(SECOND).is_err(), "nobody can know the second ENI's address");
    let said = stage.machine.unit("enid.service")?;
    ensure!(said.status.contains("metadata"), "the status does not say why: {said:?}");

    stage.vpc.metadata().clear(fault);
    let started = Instant::now();
    all_answer(&stage)?;
    figure("from metadata's return until all answer", started.elapsed());
    stage.comes_to_rest()
}

fn all_answer(stage: &Stage) -> anyhow::Result<()> {
    eventually(PATIENCE, "all addresses answer", &stage.machine, || {
        ALL.into_iter().try_for_each(|address| stage.answers(address))
    })
}

/// How long after enid was started the machine was online.
fn online_after_start(stage: &Stage) -> anyhow::Result<Duration> {
    let at = |unit: &str, what: &str| -> anyhow::Result<u64> {
        let said = stage.machine.run(&format!("systemctl show --value -p {what} {unit}"))?;
        said.trim().parse().with_context(|| format!("{what} of {unit} is {said:?}"))
    };
    let started = at("enid.service", "ExecMainStartTimestampMonotonic")?;
    let online = at("network-online.target", "ActiveEnterTimestampMonotonic")?;
    ensure!(online > started, "the machine was online before enid was started");
    Ok(Duration::from_micros(online - started))
}
