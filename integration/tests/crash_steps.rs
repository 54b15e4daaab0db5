//! Promise: enid may be killed before and after every single step of a plan, and at every point of
//! writing its ledger: what worked goes on, and the next start comes to the same state as if nothing
//! had happened.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration::vpc::{IpNet, ROUTER_V6};
use integration::{Daemon, Launch, at_once, trial};
use libtest_mimic::Trial;

use crate::cut::{IMPATIENT, PARTS, PREFIXES, Stage, Watchers, all_answer, v4, v6};
use crate::users::PATIENCE;

pub(crate) fn trials() -> Vec<Trial> {
    let toggled = |name: &str, plan: Toggle| {
        trial(name, move || at_once(PARTS, |part| killed_in(&plan, part)))
    };
    vec![
        trial("crash_steps::in_an_attach_and_in_a_release", || at_once(PARTS, attach_and_release)),
        toggled("crash_steps::while_addresses_move_between_siblings", MOVE),
        toggled("crash_steps::while_an_address_splits_a_siblings_sources", SPLIT),
        toggled("crash_steps::while_addresses_and_prefixes_are_removed", REMOVE),
        toggled("crash_steps::while_an_eni_gets_another_table", CARD),
    ]
}

/// A plan has no more points than this.
const ENDLESS: usize = 400;

/// Kills the daemon at one point of what it does next. What it did instead are the points that it
/// passed, when it did not come that far.
struct Cut<'a> {
    daemon: &'a mut Daemon,
    point: usize,
}

impl Cut<'_> {
    /// The daemon starts into what the cloud has changed.
    fn at_start(&mut self) -> anyhow::Result<Option<Vec<String>>> {
        self.daemon.faults().script(&format!("kill {}", self.point))?;
        self.daemon.restart()?;
        let start = Instant::now();
        while !self.daemon.has_ended()? {
            if self.daemon.notices().iter().any(|line| line == "READY=1") {
                return self.survived();
            }
            ensure!(start.elapsed() < PATIENCE, "neither dead nor ready\n{}", self.daemon.log());
            std::thread::sleep(Duration::from_millis(2));
        }
        self.daemon.wait_ended(PATIENCE)?;
        Ok(None)
    }

    /// The daemon does what the operator says.
    fn in_command(&mut self, words: &[&str]) -> anyhow::Result<Option<Vec<String>>> {
        self.daemon.faults().script(&format!("kill {}", self.point))?;
        let said = self.daemon.enictl().run(words)?;
        if said.code == Some(0) {
            return self.survived();
        }
        let ended = self.daemon.wait_ended(PATIENCE)?;
        ended.with_context(|| format!("{said:?}\n{}", self.daemon.log()))?;
        Ok(None)
    }

    /// What was to be done is done. The daemon goes on all the time, a router that speaks up is
    /// enough, and may come to the point only now.
    fn survived(&mut self) -> anyhow::Result<Option<Vec<String>>> {
        let points = self.daemon.faults().points();
        self.daemon.faults().script("")?;
        // It may have read the script just before.
        std::thread::sleep(Duration::from_millis(20));
        if self.daemon.has_ended()? {
            self.daemon.wait_ended(PATIENCE)?;
            return Ok(None);
        }
        Ok(Some(points))
    }

    /// The next start finishes it, in one pass.
    fn recover(&mut self) -> anyhow::Result<()> {
        self.daemon.faults().script("")?;
        self.daemon.restart()?;
        self.daemon.wait_ready(PATIENCE)?;
        Ok(())
    }

    /// Acting once is enough. What an IPv6 router that speaks up meanwhile changes does not count.
    fn one_pass(&self) -> anyhow::Result<()> {
        let points = self.daemon.faults().points();
        let of_router = |step: &String| {
            step.contains(" route replace ") && step.contains(&format!(" via {ROUTER_V6} "))
        };
        let acted = |round: &&[String]| {
            let mut steps = round.iter().filter(|point| point.starts_with("before "));
            steps.any(|step| !of_router(step))
        };
        let rounds = points.split(|point| point == "after the last step").filter(acted).count();
        ensure!(rounds <= 1, "{rounds} rounds: {points:#?}");
        Ok(())
    }
}

/// How many steps a plan had of which no point was left out.
fn complete(points: &[String]) -> anyhow::Result<usize> {
    for point in ["the ledger is written and not yet in place", "after the last step"] {
        ensure!(points.iter().any(|passed| passed == point), "not passed: {point}: {points:#?}");
    }
    Ok(points.iter().filter(|point| point.starts_with("before ")).count())
}

fn attach_and_release(part: usize) -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let before = stage.picture()?;
    let watchers = Watchers::of_the_primary(&stage)?;
    let mut daemon = Daemon::ready(&stage.instance, IMPATIENT)?;
    stage.gets_well(&daemon)?;
    let well = stage.look(&daemon)?;
    stage.release(&daemon, &before)?;
    daemon.kill()?;
    daemon.set_launch(&Launch::faulty());
    let mut steps = 0;
    let primary: BTreeSet<IpAddr> = [v4(1, 4), v6(1, 4)].into();
    for point in (part..ENDLESS).step_by(PARTS) {
        std::fs::remove_file(daemon.runtime_directory().join("ledger.json"))?;
        let mut cut = Cut { daemon: &mut daemon, point };
        let passed = cut.at_start()?;
        all_answer(&stage, &primary, cut.daemon)?;
        if let Some(points) = &passed {
            steps = steps.max(complete(points)?);
        } else {
            cut.recover()?;
            cut.one_pass()?;
        }
        well.comes(&stage, &daemon).with_context(|| format!("attach, point {point}"))?;

        let mut cut = Cut { daemon: &mut daemon, point };
        let released = cut.in_command(&["release", "--all"])?;
        all_answer(&stage, &primary, cut.daemon)?;
        if let Some(points) = &released {
            steps = steps.max(complete(points)?);
            stage.is_as(&before, &daemon)?;
        } else {
            cut.recover()?;
            cut.one_pass()?;
            stage.release(&daemon, &before).with_context(|| format!("release, point {point}"))?;
        }
        daemon.kill()?;
        if passed.is_some() && released.is_some() {
            ensure!(steps >= 30, "only {steps} steps");
            return watchers.saw_nothing();
        }
    }
    anyhow::bail!("{ENDLESS} points were not enough")
}

/// Two states of the cloud between which it goes to and fro.
struct Toggle {
    build: fn() -> anyhow::Result<Stage>,
    there: fn(&Stage) -> anyhow::Result<()>,
    back: fn(&Stage) -> anyhow::Result<()>,
    /// Steps of the longer of the two ways.
    least: usize,
}

const MOVE: Toggle = Toggle {
    build: Stage::of_siblings,
    there: |stage| {
        let (from, to) = (&stage.second, &stage.third);
        [v4(2, 5), v6(2, 5)].into_iter().try_for_each(|it| stage.vpc.move_address(it, from, to))
    },
    back: |stage| {
        let (from, to) = (&stage.third, &stage.second);
        [v4(2, 5), v6(2, 5)].into_iter().try_for_each(|it| stage.vpc.move_address(it, from, to))
    },
    least: 4,
};

const SPLIT: Toggle = Toggle {
    build: Stage::of_siblings,
    there: |stage| stage.vpc.assign_all(&stage.third, &[v4(2, 7), v6(2, 7)]),
    back: |stage| {
        [v4(2, 7), v6(2, 7)].into_iter().try_for_each(|it| stage.vpc.unassign(&stage.third, it))
    },
    least: 4,
};

const REMOVE: Toggle = Toggle {
    build: Stage::build,
    there: |stage| {
        let all = [v4(2, 5), v4(2, 6), v6(2, 5)];
        all.into_iter().try_for_each(|it| stage.vpc.unassign(&stage.second, it))?;
        stage.vpc.unassign(&stage.instance.primary, v4(1, 5))?;
        let mut prefixes = PREFIXES.into_iter();
        prefixes.try_for_each(|it| stage.vpc.undelegate(&stage.second, it.parse::<IpNet>()?))
    },
    back: |stage| {
        stage.vpc.assign_all(&stage.second, &[v4(2, 5), v4(2, 6), v6(2, 5)])?;
        stage.vpc.assign(&stage.instance.primary, v4(1, 5), None)?;
        let mut prefixes = PREFIXES.into_iter();
        prefixes.try_for_each(|it| stage.vpc.delegate(&stage.second, it.parse::<IpNet>()?))
    },
    least: 8,
};

/// A number of a card that was told late, or wrong at first.
const CARD: Toggle = Toggle {
    build: Stage::build,
    there: |stage| on_card(stage, 1),
    back: |stage| on_card(stage, 0),
    least: 20,
};

#[expect(clippy::unnecessary_wraps, reason = "as the others")]
fn on_card(stage: &Stage, card: u32) -> anyhow::Result<()> {
    stage.vpc.model().update(|state| {
        if let Some(eni) = state.enis.get_mut(&stage.second) {
            eni.card = Some(card);
        }
    });
    Ok(())
}

fn killed_in(plan: &Toggle, part: usize) -> anyhow::Result<()> {
    let stage = (plan.build)()?;
    let before = stage.picture()?;
    let mut daemon = Daemon::ready(&stage.instance, IMPATIENT)?;
    stage.gets_well(&daemon)?;
    let mut granted = stage.granted();
    let mut goals = Vec::new();
    for change in [plan.there, plan.back] {
        change(&stage)?;
        stage.gets_well(&daemon)?;
        goals.push((change, stage.look(&daemon)?));
        granted = granted.intersection(&stage.granted()).cloned().collect();
    }
    // What the same ENI has all the time answers all the time.
    let constant: BTreeSet<IpAddr> = granted.into_iter().map(|(_, address)| address).collect();
    let watchers = Watchers::start(&stage, constant.iter().copied())?;
    daemon.kill()?;
    daemon.set_launch(&Launch::faulty());
    let mut steps = 0;
    for point in (part..ENDLESS).step_by(PARTS) {
        let mut died = false;
        for (change, goal) in &goals {
            change(&stage)?;
            let mut cut = Cut { daemon: &mut daemon, point };
            if let Some(points) = cut.at_start()? {
                steps = steps.max(complete(&points)?);
            } else {
                died = true;
                all_answer(&stage, &constant, cut.daemon)?;
                cut.recover()?;
                cut.one_pass()?;
            }
            goal.comes(&stage, &daemon).with_context(|| format!("point {point}"))?;
            daemon.kill()?;
        }
        if !died {
            ensure!(steps >= plan.least, "only {steps} steps");
            watchers.saw_nothing()?;
            Cut { daemon: &mut daemon, point }.recover()?;
            return stage.release(&daemon, &before);
        }
    }
    anyhow::bail!("{ENDLESS} points were not enough")
}
