//! One pass: look, decide, write the ledger, act, look again; and the executor, which sends steps in
//! batches and takes none whose ground has failed.

use std::collections::BTreeSet;

use enid_core::decide::Decision;
use enid_core::object::{LinkIndex, Mac, Object, Setting};
use enid_core::plan::{Planned, Step};
use enid_core::rest;

use crate::daemon::Daemon;
use crate::judge::{Broken, Promise, broken};
use crate::kernel::No;
use crate::world::{Stop, World};

/// Rounds of acting and looking again within one pass.
const ROUNDS: usize = 3;
/// Steps that are sent together.
const BATCH: usize = 128;

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Changed,
    AlreadySo,
    /// Something stands in its place.
    Exists,
    Failed,
    /// What it rests on failed.
    NotTried,
}

/// A step that failed.
struct Failure {
    mac: Option<Mac>,
    tried: bool,
}

impl Outcome {
    fn failed(self) -> bool {
        matches!(self, Self::Exists | Self::Failed | Self::NotTried)
    }
}

impl World {
    /// Runs a pass; whether the daemon outlived it.
    pub(crate) fn pass(&mut self, daemon: &mut Daemon) -> Result<bool, Broken> {
        self.counts.passes += 1;
        self.disturbed = false;
        daemon.begin(self.now);
        match self.rounds(daemon) {
            Ok((decision, failed)) => {
                daemon.passed(self.now, Some((&decision, &self.kernel.state)), failed);
                Ok(true)
            }
            Err(Stop::Ledger) => {
                daemon.passed(self.now, None, true);
                Ok(true)
            }
            Err(Stop::Crash) => {
                self.judge.tidy(&self.kernel.state);
                Ok(false)
            }
            Err(Stop::Broken(broken)) => Err(broken),
        }
    }

    fn rounds(&mut self, daemon: &mut Daemon) -> Result<(Decision, bool), Stop> {
        let mut decision = self.look(daemon);
        let mut failed = false;
        let mut again = false;
        for _ in 0..ROUNDS {
            self.write(&decision.ledger)?;
            if decision.plan.is_empty() {
                break;
            }
            let up = self.up();
            let mut failures = self.act(daemon, &decision)?;
            let raised = raised(&decision);
            let before = std::mem::replace(&mut decision, self.look(daemon));
            let snapshot = &self.kernel.state;
            failures.retain(|failure| {
                !failure.mac.is_some_and(|mac| Daemon::vanished(mac, &before, snapshot))
            });
            // What only rests on what went is nobody's concern.
            failed = failures.iter().any(|failure| failure.tried);
            let was_up = |link: LinkIndex| up.contains(&link) || raised.contains(&link);
            let changed = |failure: &Failure| {
                failure.mac.is_some_and(|mac| Daemon::changed(mac, &before, snapshot, &was_up))
            };
            if failed && !again && failures.iter().any(changed) {
                (again, failed) = (true, false);
                self.counts.situation("a link changed under a plan, which was made again");
                continue;
            }
            if failed {
                break;
            }
            if !self.disturbed && !only_names_given_up(&decision, &before) {
                let steps = self.words(decision.plan.steps());
                let how = format!("after\n{}there is\n{steps}", self.words(before.plan.steps()));
                return Err(Stop::from(Broken { promise: Promise::Once, how }));
            }
        }
        self.write(&decision.ledger)?;
        if let Some(refused) = &decision.refused {
            let step = refused.step.as_ref().map(|step| self.name(step)).unwrap_or_default();
            return Err(Stop::from(Broken {
                promise: Promise::Guard,
                how: format!("{refused}: {step}"),
            }));
        }
        Ok((decision, failed))
    }

    fn up(&self) -> BTreeSet<LinkIndex> {
        let links = self.kernel.state.links.iter().filter(|link| link.up);
        links.map(|link| link.index).collect()
    }

    /// Carries a plan out as `enid-kernel` does; the steps that failed.
    fn act(&mut self, daemon: &mut Daemon, decision: &Decision) -> Result<Vec<Failure>, Stop> {
        self.kernel.wiped.clear();
        let config = daemon.config.clone();
        let mut judge = std::mem::take(&mut self.judge);
        judge.begin(&self.scene(&config));
        self.judge = judge;
        let planned = decision.plan.steps();
        let steps: Vec<Step> = planned.iter().map(|planned| planned.step.clone()).collect();
        let outcomes = self.all(daemon, &steps).inspect_err(|stop| self.blur(stop, &steps))?;
        let mut failures = Vec::new();
        let mut strangers = Vec::new();
        for (planned, outcome) in planned.iter().zip(&outcomes) {
            match outcome {
                Outcome::Changed => {
                    daemon.memory.fights.done(self.now, &planned.step);
                }
                Outcome::AlreadySo => {}
                Outcome::Exists | Outcome::Failed | Outcome::NotTried => {
                    let tried = *outcome != Outcome::NotTried;
                    failures.push(Failure { mac: planned.mac, tried });
                    if let (Step::Create(Object::Address(address)), Some(mac)) =
                        (&planned.step, planned.mac)
                    {
                        strangers.push((mac, address.address));
                    }
                }
            }
        }
        if !strangers.is_empty() {
            let mut ledger = self.ledger.clone();
            ledger.addresses.retain(|entry| !strangers.contains(entry));
            self.write(&ledger).inspect_err(|stop| self.blur(stop, &steps))?;
        }
        if self.disturbed {
            self.judge.tidy(&self.kernel.state);
        } else {
            let mut judge = std::mem::take(&mut self.judge);
            let mut counts = std::mem::take(&mut self.counts);
            let verdict = judge.end(&self.scene(&config), &mut counts);
            (self.judge, self.counts) = (judge, counts);
            verdict?;
        }
        Ok(failures)
    }

    /// Who dies while the ledger names an address as one to be made, and somebody else has made it, cannot
    /// tell it from its own on a kernel without marks.
    fn blur(&mut self, stop: &Stop, steps: &[Step]) {
        let state = &self.kernel.state;
        if !matches!(stop, Stop::Crash) || state.address_protocols {
            return;
        }
        for step in steps {
            let Step::Create(Object::Address(new)) = step else { continue };
            let place = (new.link, new.address);
            if state.addresses.iter().any(|s| (s.address.link, s.address.address) == place) {
                self.judge.ours(&Object::Address(*new));
            }
        }
    }

    fn all(&mut self, daemon: &Daemon, steps: &[Step]) -> Result<Vec<Outcome>, Stop> {
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(steps.len());
        let mut batch: Vec<&Step> = Vec::new();
        for step in steps {
            let request = !matches!(
                step,
                Step::Set { to: Some(Setting::Sysctl(..)), .. }
                    | Step::Create(Object::Marking(_))
                    | Step::Delete(Object::Marking(_))
            );
            let turn = batch.last().is_some_and(|last| rest::turns(last, step));
            if batch.len() == BATCH || turn || !request {
                self.send(daemon, &mut batch, &mut outcomes)?;
            }
            if outcomes.iter().any(|outcome| outcome.failed())
                && rest::on_failure(step, steps, &failed(steps, &outcomes))
            {
                self.send(daemon, &mut batch, &mut outcomes)?;
                self.counts.situation("a step was not taken because what it rests on failed");
                outcomes.push(Outcome::NotTried);
                continue;
            }
            batch.push(step);
            if !request {
                self.send(daemon, &mut batch, &mut outcomes)?;
            }
        }
        self.send(daemon, &mut batch, &mut outcomes)?;
        Ok(outcomes)
    }

    fn send(
        &mut self,
        daemon: &Daemon,
        batch: &mut Vec<&Step>,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), Stop> {
        for step in batch.drain(..) {
            outcomes.push(self.step(daemon, step)?);
        }
        Ok(())
    }

    fn step(&mut self, daemon: &Daemon, step: &Step) -> Result<Outcome, Stop> {
        let mut refused = false;
        for event in self.fire() {
            self.disturbed = true;
            match event.as_str() {
                "crash" => {
                    self.counts.situation("a crash within a plan");
                    return Err(Stop::Crash);
                }
                "refused" => refused = true,
                "twin" => self.twin(step),
                event => self.event(event)?,
            }
        }
        let config = &daemon.config;
        let mut judge = std::mem::take(&mut self.judge);
        let mut counts = std::mem::take(&mut self.counts);
        let verdict = judge.before(&self.scene(config), step, &mut counts);
        (self.judge, self.counts) = (judge, counts);
        verdict?;
        let done = if refused { Err(No::Wrong("not permitted")) } else { self.kernel.apply(step) };
        self.counts.steps += 1;
        self.stepped = self.now;
        let outcome = match done {
            Ok(()) => Outcome::Changed,
            Err(no) if !self.disturbed => {
                let how = format!("{no:?} at {}", self.name(step));
                return Err(Stop::Broken(Broken { promise: Promise::Kernel, how }));
            }
            Err(no) => judged(step, no),
        };
        self.counts.situation_if(outcome.failed(), "a step failed");
        if !outcome.failed() {
            let mut judge = std::mem::take(&mut self.judge);
            let changed = outcome == Outcome::Changed;
            let verdict = judge.after(&self.scene(config), step, changed);
            self.judge = judge;
            verdict?;
        }
        Ok(outcome)
    }

    /// What is to happen before the step that comes now.
    fn fire(&mut self) -> Vec<String> {
        let mut now = Vec::new();
        self.armed.retain_mut(|(steps, event)| {
            *steps -= 1;
            if *steps == 0 {
                now.push(std::mem::take(event));
            }
            *steps > 0
        });
        now
    }

    /// A step in words.
    pub(crate) fn name(&self, step: &Step) -> String {
        step.command(&|index| {
            self.kernel.link(index).map_or_else(|_| format!("if{}", index.0), |l| l.name.clone())
        })
    }

    fn words(&self, steps: &[Planned]) -> String {
        steps.iter().map(|planned| format!("  {}\n", self.name(&planned.step))).collect()
    }

    /// Fails unless the kernel has what enid wants and nothing is left to do.
    pub(crate) fn idle(&mut self) -> Result<(), Broken> {
        let Some(mut daemon) = self.daemon.take() else {
            return broken(Promise::Converged, "enid is not running");
        };
        // Enid itself has not looked.
        let (memory, news) = (daemon.memory.clone(), (self.changed, self.unseen));
        let decision = self.look(&mut daemon);
        (daemon.memory, (self.changed, self.unseen)) = (memory, news);
        self.daemon = Some(daemon);
        if decision.plan.is_empty() {
            return Ok(());
        }
        broken(Promise::Converged, format!("there is\n{}", self.words(decision.plan.steps())))
    }
}

/// The links that a decision's plan sets up.
fn raised(decision: &Decision) -> BTreeSet<LinkIndex> {
    let steps = decision.plan.steps().iter().map(|planned| &planned.step);
    let raised = steps.filter_map(|step| match step {
        Step::Set { link, to: Some(Setting::Up), .. } => Some(*link),
        Step::Set { .. } | Step::Create(_) | Step::Replace { .. } | Step::Delete(_) => None,
    });
    raised.collect()
}

/// Whether nothing is left to do but to give a link the names that another one lost in this round: two
/// links cannot have one name, and what goes, goes last.
fn only_names_given_up(left: &Decision, done: &Decision) -> bool {
    let name = |setting: &Option<Setting>| match setting {
        Some(Setting::AlternativeName(name)) => Some(name.clone()),
        Some(Setting::Up | Setting::Mtu(_) | Setting::Group(_) | Setting::Sysctl(..)) | None => {
            None
        }
    };
    let lost: BTreeSet<String> = done
        .plan
        .steps()
        .iter()
        .filter_map(|planned| match &planned.step {
            Step::Set { from, to: None, .. } => name(from),
            Step::Set { .. } | Step::Create(_) | Step::Replace { .. } | Step::Delete(_) => None,
        })
        .collect();
    left.plan.steps().iter().all(|planned| match &planned.step {
        Step::Set { from: None, to, .. } => name(to).is_some_and(|name| lost.contains(&name)),
        Step::Set { .. } | Step::Create(_) | Step::Replace { .. } | Step::Delete(_) => false,
    })
}

/// The steps that failed so far. An address that is there was made, by whomever.
fn failed<'a>(steps: &'a [Step], outcomes: &[Outcome]) -> Vec<&'a Step> {
    let there = |step: &Step, outcome: Outcome| {
        matches!(step, Step::Create(Object::Address(_))) && outcome == Outcome::Exists
    };
    let outcomes = steps.iter().zip(outcomes.iter().copied());
    let failed = outcomes.filter(|(step, outcome)| outcome.failed() && !there(step, *outcome));
    failed.map(|(step, _)| step).collect()
}

/// What the kernel's refusal comes to.
fn judged(step: &Step, no: No) -> Outcome {
    match (step, no) {
        (Step::Delete(_) | Step::Set { to: None, .. }, No::Gone(_)) => Outcome::AlreadySo,
        (
            Step::Create(Object::Rule(_)) | Step::Set { to: Some(Setting::Up), .. },
            No::Exists(_),
        ) => Outcome::AlreadySo,
        (Step::Create(Object::Address(_) | Object::Route(_)), No::Exists(_)) => Outcome::Exists,
        (_, _) => Outcome::Failed,
    }
}
