//! One pass: look, decide, write the ledger, act, look again.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use enid_core::config::Config as Choices;
use enid_core::decide::{Decision, decide};
use enid_core::eni::Facts;
use enid_core::ledger::Ledger;
use enid_core::memory::{Contender, Memory};
use enid_core::metadata::facts::Metadata;
use enid_core::object::{Address, LinkIndex, Mac, Object, Route, Setting};
use enid_core::objects::{Objects, objects};
use enid_core::observed::{Observed, Snapshot};
use enid_core::plan::{Planned, Step};
use enid_kernel::{Change, Kernel, Outcome};
use futures::FutureExt as _;
use tracing::debug;

use crate::clock::{now, thread_cpu};
use crate::config::chain;
use crate::journal::Said;
use crate::manager;
use crate::metrics::{Counters, Taken};
use crate::store::{self, Store};
use crate::udev;

mod round;

use round::{Failure, Round};

/// Rounds of acting and looking again within one pass, before others get a turn.
const ROUNDS: usize = 3;

/// What a pass works with.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) kernel: Kernel,
    pub(crate) metadata: Metadata,
    pub(crate) memory: Memory,
    pub(crate) store: Store,
    pub(crate) counters: Counters,
}

/// What the kernel has and what follows from it.
#[derive(Debug, Clone)]
pub(crate) struct Looked {
    pub(crate) snapshot: Snapshot,
    pub(crate) decision: Decision,
}

impl Looked {
    /// A link's name in this snapshot.
    pub(crate) fn name_of(&self, index: LinkIndex) -> String {
        let link = self.snapshot.links.iter().find(|link| link.index == index);
        link.map_or_else(|| format!("if{}", index.0), |link| link.name.clone())
    }

    /// The MAC addresses of links that may be ENIs.
    pub(crate) fn candidates(&self) -> BTreeSet<Mac> {
        let links = self.snapshot.links.iter().filter(|link| link.may_be_eni());
        links.filter_map(|link| link.mac).collect()
    }

    /// Those of them that are expected to be ENIs.
    pub(crate) fn expected(&self, choices: &Choices) -> BTreeSet<Mac> {
        let links = self.snapshot.links.iter();
        let links = links.filter(|link| link.may_be_eni() && choices.expects(link));
        links.filter_map(|link| link.mac).collect()
    }
}

/// How a pass ended.
#[derive(Debug)]
pub(crate) struct Passed {
    /// The last look.
    pub(crate) looked: Looked,
    /// Steps that changed something.
    pub(crate) changed: u64,
    /// What went wrong, in words.
    pub(crate) failures: Vec<String>,
    /// How long it took.
    pub(crate) took: Duration,
}

/// Why a pass did not get to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("looking at the kernel")]
    Look(#[source] enid_kernel::Error),
    #[error("keeping the ledger, without which nothing may be changed")]
    Ledger(#[source] store::Error),
}

impl Engine {
    /// Looks and decides.
    pub(crate) async fn look(&mut self, choices: &Choices) -> Result<Looked, Error> {
        let started = now();
        self.kernel.be_brief(false);
        self.kernel.listen();
        // What happened up to here is in the snapshot.
        while let Some(change) = self.kernel.changed().now_or_never() {
            self.heard(change);
        }
        let snapshot =
            self.kernel.snapshot(choices.publishes_ports()).await.map_err(Error::Look)?;
        let udev = udev::uninitialised(choices.udev, &snapshot);
        let facts = Facts {
            now: now(),
            config: choices,
            metadata: &self.metadata,
            observed: Observed { snapshot: &snapshot, ledger: self.store.ledger() },
            udev: &udev,
        };
        let (looked, cpu) = (now(), thread_cpu());
        let decision = decide(&facts, &mut self.memory);
        // Deciding waits for nothing: time on a CPU is what it takes.
        let decide = thread_cpu().saturating_sub(cpu);
        debug!(snapshot_us = us(looked - started), decide_us = us(decide), "looked");
        for mac in &decision.gone {
            self.metadata.forget(*mac);
        }
        Ok(Looked { snapshot, decision })
    }

    /// What a decision from this look is made from.
    pub(crate) fn facts<'a>(
        &'a self,
        config: &'a Choices,
        looked: &'a Looked,
        udev: &'a BTreeSet<LinkIndex>,
    ) -> Facts<'a> {
        let observed = Observed { snapshot: &looked.snapshot, ledger: self.store.ledger() };
        Facts { now: now(), config, metadata: &self.metadata, observed, udev }
    }

    /// What must be and what is, as a look has shown it.
    pub(crate) fn objects(&self, choices: &Choices, looked: &Looked) -> Objects {
        let udev = udev::uninitialised(choices.udev, &looked.snapshot);
        let facts = self.facts(choices, looked, &udev);
        objects(&facts, &self.memory, &looked.decision.report)
    }

    /// Counts what the kernel could not tell.
    pub(crate) fn heard(&self, change: Change) {
        match change {
            Change::Event => {}
            Change::Lost => self.counters.overrun(),
        }
    }

    /// Brings the kernel to what it must be, as far as that can be done now. `before` is what it had
    /// when the pass before ended.
    pub(crate) async fn pass(
        &mut self,
        choices: &Choices,
        before: Option<&Snapshot>,
        said: &mut Said,
    ) -> Result<Passed, Error> {
        let (started, cpu) = (now(), thread_cpu());
        let mut looked = self.look(choices).await?;
        let (mut changed, mut failures) = (0, Vec::new());
        let (mut again, mut stood) = (false, before);
        for _ in 0..ROUNDS {
            self.store.write(looked.decision.ledger.clone()).map_err(Error::Ledger)?;
            if looked.decision.plan.is_empty() {
                break;
            }
            let round = self.act(&looked, stood.take(), said).await?;
            changed += round.changed;
            let next = match self.look(choices).await {
                Ok(next) => next,
                Err(error) => {
                    // Whose link has gone meanwhile cannot be told.
                    round.say_failures(said, &looked);
                    return Err(error);
                }
            };
            let before = std::mem::replace(&mut looked, next);
            let concerns = round.concerns(&before, &looked);
            if concerns.failures.is_empty() {
                continue;
            }
            if concerns.passing && !again {
                again = true;
                continue;
            }
            concerns.failures.iter().for_each(|failure| failure.say(said, &before));
            failures.extend(concerns.failures.into_iter().map(|failure| failure.text));
            break;
        }
        self.store.write(looked.decision.ledger.clone()).map_err(Error::Ledger)?;
        if let Some(refused) = &looked.decision.refused {
            self.counters.refused();
            let step = refused.step.as_ref().map_or_else(String::new, |step| {
                format!(" at `{}`", step.command(&|index| looked.name_of(index)))
            });
            failures.push(format!("the guard refused the plan{step}: {refused}; nothing was done"));
        }
        said.report(now(), &looked.decision.report, &|index| looked.name_of(index));
        let took = now() - started;
        let cpu = thread_cpu().saturating_sub(cpu);
        debug!(steps = changed, took_us = us(took), cpu_us = us(cpu), "passed");
        Ok(Passed { looked, changed, failures, took })
    }

    async fn act(
        &mut self,
        looked: &Looked,
        before: Option<&Snapshot>,
        said: &mut Said,
    ) -> Result<Round, Error> {
        let planned = looked.decision.plan.steps();
        let steps: Vec<Step> = planned.iter().map(|planned| planned.step.clone()).collect();
        let started = now();
        let outcomes = self.kernel.apply(&steps).await;
        debug!(steps = steps.len(), apply_us = us(now() - started), "acted");
        let mut round = Round::default();
        let mut never_ours = BTreeSet::new();
        let mut done = Vec::new();
        for (planned, outcome) in planned.iter().zip(outcomes) {
            match outcome {
                Ok(Outcome::Changed) => {
                    self.counters.step(&planned.step, Taken::Changed);
                    self.counters.changed(&planned.step, before);
                    round.changed += 1;
                    if self.memory.fights.done(now(), &planned.step) {
                        self.blame(&planned.step);
                    }
                    if let Step::Set { link, to: Some(Setting::Up), .. } = &planned.step {
                        round.raised.insert(*link);
                    }
                    done.push(planned);
                }
                Ok(Outcome::AlreadySo) => self.counters.step(&planned.step, Taken::AlreadySo),
                Err(error) => {
                    self.counters.step(&planned.step, Taken::Failed);
                    never_ours.extend(stranger(planned, &error));
                    let command = planned.step.command(&|index| looked.name_of(index));
                    let text = format!("`{command}` failed: {}", chain(&error));
                    round.failures.push(Failure::new(planned.mac, &error, text));
                }
            }
        }
        said.steps(now(), &looked.decision.report, &done, &|index| looked.name_of(index));
        if !never_ours.is_empty() {
            let mut ledger: Ledger = self.store.ledger().clone();
            ledger.addresses.retain(|entry| !never_ours.contains(entry));
            if let Err(error) = self.store.write(ledger) {
                round.say_failures(said, looked);
                return Err(Error::Ledger(error));
            }
        }
        Ok(round)
    }
}

impl Engine {
    /// Notes who undoes a step that is fought over, as far as it can be told.
    fn blame(&mut self, step: &Step) {
        let process = self.kernel.culprit(step);
        let process = process.map(|(id, name)| Contender::Process { id, name });
        let manager = || match step {
            Step::Set { link, .. } | Step::Create(Object::Address(Address { link, .. })) => {
                manager::of(*link)
            }
            Step::Create(Object::Route(Route { link, .. }))
            | Step::Replace { new: Object::Route(Route { link, .. }), .. } => {
                link.and_then(manager::of)
            }
            Step::Create(_) | Step::Replace { .. } | Step::Delete(_) => None,
        };
        if let Some(contender) = process.or_else(|| manager().map(Contender::Manager)) {
            self.memory.fights.blame(step, contender);
        }
    }
}

/// For log lines.
fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// An address that enid did not make after all: the ledger must not call ours what stands there then,
/// or soon. Without an answer it may have been made.
fn stranger(planned: &Planned, error: &enid_kernel::Error) -> Option<(Mac, IpAddr)> {
    use enid_kernel::Error;
    let made = match error {
        Error::NoAnswer { .. } => true,
        Error::Open { .. }
        | Error::Refused { .. }
        | Error::Exists { .. }
        | Error::Interrupted { .. }
        | Error::Unreadable { .. }
        | Error::NoTables { .. }
        | Error::Sysctl { .. }
        | Error::NotPossible { .. }
        | Error::Dependent => false,
    };
    match (&planned.step, planned.mac) {
        (Step::Create(Object::Address(address)), Some(mac)) if !made => {
            Some((mac, address.address))
        }
        _ => None,
    }
}
