//! Promise: an ENI may be detached, moved away, renamed or lowered between any two steps of its
//! configuration, and hundreds may come and go as fast as they can: nothing of them is left, nothing
//! else suffers, and an ENI that stayed works.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::{Daemon, Launch, at_once, eventually, trial};
use libtest_mimic::Trial;

use crate::cards::resident;
use crate::cut::{PARTS, Stage, Watchers, said_once};
use crate::pair::same;
use crate::users::{PATIENCE, status};

pub(crate) fn trials() -> Vec<Trial> {
    let at_each = |name: &str, accident: Accident| {
        trial(name, move || at_once(PARTS, |part| at_each_step(accident, part)))
    };
    vec![
        at_each("vanish::an_eni_is_detached_at_each_step", Accident::Detached),
        at_each("vanish::an_eni_is_moved_away_at_each_step", Accident::Moved),
        at_each("vanish::an_eni_is_renamed_at_each_step", Accident::Renamed),
        at_each("vanish::an_eni_is_lowered_at_each_step", Accident::Lowered),
        trial("vanish::three_hundred_come_and_go", three_hundred),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accident {
    Detached,
    Moved,
    Renamed,
    Lowered,
}

impl Accident {
    fn happens(self, stage: &Stage, other: &str) -> anyhow::Result<()> {
        let ip = |words: &str| -> anyhow::Result<()> {
            stage.instance.run(&["ip"].into_iter().chain(words.split(' ')).collect::<Vec<_>>())?;
            Ok(())
        };
        match self {
            Accident::Detached => stage.vpc.detach(&stage.third),
            Accident::Moved => ip(&format!("link set ens6 netns {other}")),
            Accident::Renamed => {
                ip("link set ens6 down")?;
                ip("link set ens6 name ens9")
            }
            Accident::Lowered => ip("link set ens6 down"),
        }
    }

    /// The instance has the ENI all the same.
    fn stays(self) -> bool {
        match self {
            Accident::Detached | Accident::Moved => false,
            Accident::Renamed | Accident::Lowered => true,
        }
    }
}

/// The primary ENI alone is there, and enid is content.
fn alone(stage: &Stage, how: Launch) -> anyhow::Result<(Daemon, BTreeSet<String>)> {
    stage.vpc.detach(&stage.second)?;
    let mut daemon = Daemon::prepare(&stage.instance, &how, "")?;
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    stage.gets_well(&daemon)?;
    let picture = of_primary(stage)?;
    Ok((daemon, picture))
}

/// All but the settings of links that are not there now.
fn of_primary(stage: &Stage) -> anyhow::Result<BTreeSet<String>> {
    crate::pair::picture(&stage.instance)
}

fn is_alone(stage: &Stage, daemon: &Daemon, before: &BTreeSet<String>) -> anyhow::Result<()> {
    eventually(PATIENCE, "nothing of it is left", daemon, || {
        same(before, &of_primary(stage)?)?;
        let ledger = std::fs::read_to_string(daemon.runtime_directory().join("ledger.json"))?;
        ensure!(!ledger.contains("10.0.2.") && !ledger.contains("f202:"), "{ledger}");
        let said = status(daemon)?;
        ensure!(said["verdict"] == "converged", "{said}");
        Ok(())
    })
}

fn at_each_step(accident: Accident, part: usize) -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let (mut daemon, before) = alone(&stage, Launch::faulty())?;
    let watchers = Watchers::of_the_primary(&stage)?;
    let other = format!("{}-other", stage.instance.name());
    stage.instance.run(&["ip", "netns", "add", &other])?;
    let mut steps = 0;
    for point in (part..200).step_by(PARTS) {
        let log = daemon.log().len();
        daemon.faults().script(&format!("pause {point}"))?;
        stage.vpc.attach(&stage.third, &stage.instance, "ens6")?;
        if !stage.pauses(&daemon)? {
            ensure!(steps >= 20 / PARTS, "only {steps} steps");
            stage.instance.run(&["ip", "netns", "del", &other])?;
            stage.gets_well(&daemon)?;
            watchers.saw_nothing()?;
            return daemon.terminate();
        }
        let paused = daemon.faults().paused().unwrap_or_default();
        steps += usize::from(paused.starts_with("before "));
        accident.happens(&stage, &other).with_context(|| paused.clone())?;
        daemon.faults().go_on()?;
        if accident.stays() {
            eventually(PATIENCE, "the ENI works", &daemon, || stage.works())
                .with_context(|| paused.clone())?;
        }
        if accident != Accident::Detached {
            stage.vpc.detach(&stage.third)?;
        }
        is_alone(&stage, &daemon, &before).with_context(|| paused.clone())?;
        let said = &daemon.log()[log..];
        said_once(said)?;
        // Nobody cares for steps of what has gone.
        let quiet = accident.stays() || !said.contains(" ERROR ");
        ensure!(quiet, "{paused}: {said}");
    }
    anyhow::bail!("there is no end of points")
}

/// The ledger, the number of open files, and the memory in KiB.
fn taken(daemon: &Daemon) -> anyhow::Result<(String, usize, u64)> {
    let pid = daemon.pid()?;
    let ledger = std::fs::read_to_string(daemon.runtime_directory().join("ledger.json"))?;
    let files = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    Ok((ledger, files, resident(pid)?))
}

fn three_hundred() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let (mut daemon, before) = alone(&stage, Launch::default())?;
    let watchers = Watchers::of_the_primary(&stage)?;
    let mut at_first = (String::new(), 0, 0);
    for cycle in 0..300_u64 {
        // Now the one, now the other, under names that change, too.
        let eni = if cycle % 3 == 0 { &stage.third } else { &stage.second };
        let name = ["ens6", "ens7"][usize::from(cycle % 4 == 0)];
        stage.vpc.attach(eni, &stage.instance, name)?;
        std::thread::sleep(Duration::from_millis(cycle * 7 % 41));
        if cycle % 60 == 59 {
            stage.gets_well(&daemon).with_context(|| format!("cycle {cycle}"))?;
        }
        stage.vpc.detach(eni)?;
        if cycle == 60 {
            is_alone(&stage, &daemon, &before)?;
            at_first = taken(&daemon)?;
        }
    }
    is_alone(&stage, &daemon, &before)?;
    let at_last = taken(&daemon)?;
    ensure!(at_last.0 == at_first.0, "the ledger was {}, it is {}", at_first.0, at_last.0);
    ensure!(at_last.1 <= at_first.1 + 2, "open files: {} became {}", at_first.1, at_last.1);
    ensure!(at_last.2 <= at_first.2 + 2048, "KiB: {} became {}", at_first.2, at_last.2);
    stage.vpc.attach(&stage.second, &stage.instance, "ens6")?;
    stage.gets_well(&daemon)?;
    said_once(&daemon.log())?;
    watchers.saw_nothing()?;
    daemon.terminate()
}
