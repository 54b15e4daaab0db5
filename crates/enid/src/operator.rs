//! What operators ask over the control socket.

use std::net::IpAddr;
use std::time::Duration;

use enid_control::convert::{self, Daemon as About, find, label};
use enid_control::status::{Health, LastError, Metadata as MetadataStatus, Pass};
use enid_control::{
    Affected, Awaited, Metrics, Plan, Refreshed, Refused, Reply, Request, Status, Target, Waited,
};
use enid_core::config::Config as Choices;
use enid_core::ledger::{Ledger, Pause};
use enid_core::object::Mac;
use enid_core::pace::Pace;
use enid_core::report::{AddressState, Report, Verdict};
use enid_core::time::Instant;
use tokio::sync::oneshot;

use crate::clock::now;
use crate::config::{chain, printable};
use crate::control::Call;
use crate::daemon::{Daemon, Standing};
use crate::pass::{Engine, Looked};

mod awaited;
mod told;

/// How long `drop` waits for a reading that proves anything.
const DROP_PATIENCE: Duration = Duration::from_secs(8);
/// How often metadata is read while somebody waits for what they have told the cloud.
const HASTEN: Duration = Duration::from_secs(1);

type Answer = oneshot::Sender<Result<Reply, Refused>>;

/// How far the reading that somebody waits for has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reading {
    Wanted,
    Asked,
    Done,
}

#[derive(Debug)]
enum For {
    Reading,
    Convergence,
    Drop(IpAddr),
    /// `hasten` is the next time to read metadata for it; none for somebody who may change nothing.
    Awaited {
        what: Awaited,
        hasten: Option<Instant>,
    },
}

#[derive(Debug)]
struct Waiter {
    answer: Answer,
    what: For,
    reading: Reading,
    deadline: Instant,
}

/// Clients that wait for a reading and what follows from it.
#[derive(Debug, Default)]
pub(crate) struct Waiters(Vec<Waiter>);

impl Waiters {
    pub(crate) fn any(&self) -> bool {
        !self.0.is_empty()
    }

    /// When somebody's patience ends or metadata is to be read for them.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.0.iter().flat_map(|waiter| [Some(waiter.deadline), waiter.hastens()]).flatten().min()
    }

    /// Whether metadata is to be read now because somebody waits for what the cloud was just told.
    pub(crate) fn hasten(&mut self, now: Instant) -> bool {
        let mut hasten = false;
        for waiter in &mut self.0 {
            if let For::Awaited { hasten: Some(due), .. } = &mut waiter.what
                && *due <= now
            {
                *due = now + HASTEN;
                hasten = true;
            }
        }
        hasten
    }

    /// A poll has started: it counts for whoever waited before it.
    pub(crate) fn asked(&mut self) {
        self.advance(Reading::Wanted, Reading::Asked);
    }

    /// A poll has ended.
    pub(crate) fn polled(&mut self) {
        self.advance(Reading::Asked, Reading::Done);
    }

    fn advance(&mut self, from: Reading, to: Reading) {
        for waiter in self.0.iter_mut().filter(|waiter| waiter.reading == from) {
            waiter.reading = to;
        }
    }

    /// Answers those whose time has come; a pass has taken in the last reading.
    pub(crate) fn settle(&mut self, now: Instant, standing: Option<&Standing>) {
        let mut rest = Vec::new();
        for waiter in self.0.drain(..) {
            let late = waiter.deadline <= now;
            let outcome = standing.and_then(|standing| outcome(&waiter, now, standing, late));
            match outcome {
                // Whoever has gone needs no answer.
                Some(outcome) => _ = waiter.answer.send(outcome),
                None if late => {
                    let message = "no pass has ended yet; see `journalctl -u enid`".to_owned();
                    let _ = waiter.answer.send(Err(Refused::Busy { message }));
                }
                None if waiter.answer.is_closed() => {}
                None => rest.push(waiter),
            }
        }
        self.0 = rest;
    }

    /// Whether somebody still waits for this address to be dropped; a refused word must not come
    /// true later.
    pub(crate) fn dropping(&self, address: IpAddr) -> bool {
        self.0.iter().any(|waiter| matches!(waiter.what, For::Drop(wanted) if wanted == address))
    }
}

impl Waiter {
    fn hastens(&self) -> Option<Instant> {
        match self.what {
            For::Awaited { hasten, .. } => hasten,
            For::Reading | For::Convergence | For::Drop(_) => None,
        }
    }
}

fn outcome(
    waiter: &Waiter,
    now: Instant,
    standing: &Standing,
    late: bool,
) -> Option<Result<Reply, Refused>> {
    let read = waiter.reading == Reading::Done;
    let report = &standing.looked.decision.report;
    match &waiter.what {
        For::Reading if read || late => Some(Ok(refreshed(report, &standing.looked, !read))),
        For::Convergence if (read && report.verdict == Verdict::Converged) || late => {
            Some(Ok(refreshed(report, &standing.looked, late)))
        }
        For::Drop(address) if read || late => dropped(*address, standing, late),
        For::Awaited { what, .. } => {
            // What metadata said before somebody asked the cloud for something else proves nothing.
            let waiting = awaited::missing(what, now, &standing.looked);
            let met = waiting.is_empty() && read;
            (met || late).then_some(Ok(Reply::Waited(Waited { met, waiting })))
        }
        For::Reading | For::Convergence | For::Drop(_) => None,
    }
}

/// The age of the oldest last complete reading of an ENI that is here, in seconds.
fn read(standing: &Standing, now: Instant) -> Option<u64> {
    let enis = standing.looked.decision.report.enis.iter().filter(|eni| eni.link.is_some());
    let read: Option<Vec<Instant>> = enis.map(|eni| eni.read).collect();
    read?.into_iter().min().map(|read| (now - read).as_secs())
}

fn refreshed(report: &Report, looked: &Looked, timed_out: bool) -> Reply {
    let name_of = |index| looked.name_of(index);
    let waiting = report.waiting().map(|(eni, waiting)| {
        format!("{}: {}", label(eni), convert::waiting(waiting, now(), &name_of))
    });
    Reply::Refreshed(Refreshed {
        verdict: report.verdict.into(),
        timed_out,
        waiting: waiting.collect(),
    })
}

fn dropped(address: IpAddr, standing: &Standing, late: bool) -> Option<Result<Reply, Refused>> {
    let report = &standing.looked.decision.report;
    let there = report.enis.iter().find_map(|eni| {
        let found = eni.addresses.iter().find(|known| known.address == address)?;
        Some((eni, found))
    });
    let refuse = |message: String| Some(Err(Refused::InvalidState { message }));
    match there {
        None => Some(Ok(Reply::Affected(Affected { enis: Vec::new() }))),
        Some((eni, known)) => match &known.state {
            AddressState::Leaving(_) if late => refuse(format!(
                "{address} stays on {}: metadata could not be read completely; try again",
                label(eni)
            )),
            AddressState::Leaving(_) => None,
            AddressState::Ours
            | AddressState::Theirs
            | AddressState::TakenOver
            | AddressState::Adding
            | AddressState::Missing
            | AddressState::Ignored
            | AddressState::Elsewhere { .. } => refuse(format!(
                "{address} stays: metadata still grants it to {}; unassign it there first",
                label(eni)
            )),
        },
    }
}

impl Daemon {
    /// Carries out a call, or lets it wait for a reading.
    pub(crate) async fn call(&mut self, call: Call) {
        let Call { request, privileged, reply } = call;
        let result = match request {
            Request::Status => Ok(Reply::Status(Box::new(self.status()))),
            Request::Plan => self.plan().await.map(Reply::Plan),
            Request::Explain { what } => {
                self.explain(&what).await.map(Box::new).map(Reply::Explained)
            }
            Request::Objects => self.objects().await.map(Box::new).map(Reply::Objects),
            Request::Refresh { wait, timeout } => {
                let what = if wait { For::Convergence } else { For::Reading };
                let timeout = if wait { timeout } else { DROP_PATIENCE };
                self.read_for(reply, what, timeout);
                return;
            }
            Request::Wait { what, timeout } => {
                let hasten = privileged.then(|| now() + HASTEN);
                self.read_for(reply, For::Awaited { what, hasten }, timeout);
                return;
            }
            Request::Release { target } => self.release(&target).await.map(Reply::Affected),
            Request::Hold { eni, time, reason } => {
                self.hold(&eni, time, reason).await.map(Reply::Affected)
            }
            Request::Unhold { target } => self.unhold(&target).await.map(Reply::Affected),
            // Told without the main loop.
            Request::Events { after } => Ok(Reply::Events(self.chronicle.after(after))),
            Request::Metrics => Ok(Reply::Metrics(Metrics::new(self.metrics()))),
            Request::Reload => match self.reload() {
                Ok(reloaded) => Ok(Reply::Reloaded(reloaded)),
                Err(message) => Err(Refused::Failed { message }),
            },
            Request::Drop { address } => match self.may_drop(address) {
                Ok(()) => {
                    self.engine.memory.drops.insert(address, now());
                    self.read_for(reply, For::Drop(address), DROP_PATIENCE);
                    return;
                }
                Err(refused) => Err(refused),
            },
        };
        // Whoever has gone needs no answer.
        let _ = reply.send(result);
    }

    fn read_for(&mut self, answer: Answer, what: For, patience: Duration) {
        let deadline = now() + patience;
        self.waiters.0.push(Waiter { answer, what, reading: Reading::Wanted, deadline });
        self.pace.refresh();
    }

    fn standing(&self) -> Result<&Standing, Refused> {
        self.standing.as_ref().ok_or_else(|| Refused::Busy {
            message: match &self.last_error {
                Some((_, error)) => format!("no pass has ended yet: {error}"),
                None => "the first pass has not ended yet; try again".to_owned(),
            },
        })
    }

    fn status(&self) -> Status {
        let now = now();
        let health = self.client.health();
        let (state, since) = match self.answered {
            None => (Health::NotRead, self.since),
            Some((true, since)) => (Health::Ok, since),
            Some((false, since)) => (Health::Failing, since),
        };
        let candidates = self.standing.as_ref().map(|standing| standing.candidates.clone());
        let candidates = candidates.unwrap_or_default();
        let interval = Pace::interval(&self.config.choices, &self.engine.metadata, &candidates);
        let metadata = MetadataStatus {
            health: state,
            since_seconds: (now - since).as_secs(),
            reason: self.engine.metadata.failure.as_ref().map(ToString::to_string),
            endpoint: health.endpoint,
            requests: self.client.requests(),
            poll_interval_ms: u64::try_from(interval.as_millis()).unwrap_or(u64::MAX),
            next_poll_ms: self
                .poll_due()
                .map(|due| u64::try_from((due - now).as_millis()).unwrap_or(u64::MAX)),
            read_seconds: self.standing.as_ref().and_then(|standing| read(standing, now)),
        };
        let about = About {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since: self.since,
            metadata,
            last_pass: self.last_pass.as_ref().map(|pass| Pass {
                cause: pass.cause.to_owned(),
                steps: pass.steps,
                duration_us: u64::try_from(pass.took.as_micros()).unwrap_or(u64::MAX),
                ago_seconds: (now - pass.at).as_secs(),
            }),
            last_error: self.last_error.as_ref().map(|(at, message)| LastError {
                message: message.clone(),
                ago_seconds: (now - *at).as_secs(),
            }),
        };
        // Before the first pass there is nothing to report but how metadata fares: say that.
        let nothing = Report { verdict: Verdict::NotYet, enis: Vec::new() };
        let looked = self.standing.as_ref().map(|standing| &standing.looked);
        let report = looked.map_or(&nothing, |looked| &looked.decision.report);
        let name_of = |index| looked.map_or_else(String::new, |looked| looked.name_of(index));
        Status::new(report, about, now, &name_of)
    }

    async fn plan(&mut self) -> Result<Plan, Refused> {
        self.aside(|_, _, looked| Plan::new(crate::planned(&looked))).await
    }

    /// What a fresh look shows; it does not count as a pass.
    async fn aside<T>(
        &mut self,
        shows: impl FnOnce(&Engine, &Choices, Looked) -> T,
    ) -> Result<T, Refused> {
        let choices = self.config.choices.clone();
        let memory = self.engine.memory.clone();
        let looked = self.engine.look(&choices).await;
        let shown = looked.map(|looked| shows(&self.engine, &choices, looked));
        self.engine.memory = memory;
        self.due_to_operator();
        shown.map_err(|error| Refused::Failed { message: chain(&error) })
    }

    /// Takes everything away that enid made for ENIs, and leaves them alone from then on.
    async fn release(&mut self, target: &Target) -> Result<Affected, Refused> {
        let report = self.standing()?.looked.decision.report.clone();
        let mut ledger = self.engine.store.ledger().clone();
        let macs = match target {
            Target::All => {
                ledger.released_all = true;
                ledger.released.clear();
                ledger.holds.clear();
                report.enis.iter().map(|eni| eni.mac).collect()
            }
            Target::Eni(name) => {
                let mac = find(&report, &[], name)?;
                ledger.released.insert(mac);
                ledger.holds.remove(&mac);
                vec![mac]
            }
        };
        self.obey(ledger, &report, &macs).await
    }

    /// Leaves an ENI as it is.
    async fn hold(
        &mut self,
        name: &str,
        time: Option<Duration>,
        reason: String,
    ) -> Result<Affected, Refused> {
        let report = self.standing()?.looked.decision.report.clone();
        let mac = find(&report, &[], name)?;
        let mut ledger = self.engine.store.ledger().clone();
        if ledger.is_released(mac) {
            let message = format!("{name} is released, so nothing is done to it anyway");
            return Err(Refused::InvalidState { message });
        }
        let reason = printable(&reason);
        let pause = Pause { until: time.map(|time| now() + time), reason };
        ledger.holds.insert(mac, pause);
        self.obey(ledger, &report, &[mac]).await
    }

    /// Ends what `release` or `hold` began.
    async fn unhold(&mut self, target: &Target) -> Result<Affected, Refused> {
        let report = self.standing()?.looked.decision.report.clone();
        let mut ledger = self.engine.store.ledger().clone();
        let held: Vec<Mac> = ledger.released.iter().chain(ledger.holds.keys()).copied().collect();
        let macs = match target {
            Target::All => {
                ledger.released_all = false;
                ledger.released.clear();
                ledger.holds.clear();
                report.enis.iter().map(|eni| eni.mac).collect()
            }
            Target::Eni(name) => {
                let mac = find(&report, &held, name)?;
                if ledger.released_all {
                    let message =
                        "everything is released; `enictl unhold --all` ends that".to_owned();
                    return Err(Refused::InvalidState { message });
                }
                ledger.released.remove(&mac);
                ledger.holds.remove(&mac);
                vec![mac]
            }
        };
        self.obey(ledger, &report, &macs).await
    }

    /// Writes the operator's word down and acts on it.
    async fn obey(
        &mut self,
        ledger: Ledger,
        report: &Report,
        macs: &[Mac],
    ) -> Result<Affected, Refused> {
        let failed = |message| Refused::Failed { message };
        self.engine.store.write(ledger).map_err(|error| failed(chain(&error)))?;
        self.due_to_operator();
        let passed = self.pass().await;
        let called = |mac: &Mac| {
            let eni = report.enis.iter().find(|eni| eni.mac == *mac);
            eni.map_or_else(|| mac.to_string(), label)
        };
        let enis = macs.iter().map(called).collect();
        match self.verdict() {
            // What stood before a pass that failed says nothing of it.
            Some(Verdict::Converged | Verdict::Waiting) if passed => Ok(Affected { enis }),
            Some(_) | None => {
                let error = self.last_error.as_ref().map(|(_, text)| text.clone());
                Err(failed(error.unwrap_or_else(|| "steps remain; see `enictl plan`".to_owned())))
            }
        }
    }

    fn may_drop(&self, address: IpAddr) -> Result<(), Refused> {
        let ours = self.standing()?.looked.decision.report.enis.iter().any(|eni| {
            eni.addresses.iter().any(|known| {
                known.address == address
                    && matches!(known.state, AddressState::Ours | AddressState::Leaving(_))
            })
        });
        if ours { Ok(()) } else { Err(Refused::NoSuchAddress { address }) }
    }
}
