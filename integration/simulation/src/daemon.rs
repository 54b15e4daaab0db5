//! The daemon around the decisions, as `crates/enid` has it: what wakes it, when it asks metadata,
//! how a pass goes, and what it loses when it dies.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use enid_core::config::Config;
use enid_core::decide::Decision;
use enid_core::memory::Memory;
use enid_core::metadata::facts::Metadata;
use enid_core::metadata::{Ask, Failure, Poll};
use enid_core::object::{LinkIndex, Mac};
use enid_core::observed::Snapshot;
use enid_core::pace::{Debounce, Due, Pace, Retry, Scene};
use enid_core::report::{EniState, Hold, Report, Verdict, Waiting};
use enid_core::time::Instant;

/// A pass for the case that the kernel told nothing.
pub(crate) const RESYNC: Duration = Duration::from_secs(300);
/// Editors write a file in several steps.
pub(crate) const EDIT: Duration = Duration::from_millis(100);
/// How long `drop` waits for a reading that proves anything.
const DROP_PATIENCE: Duration = Duration::from_secs(8);
/// What a pass is on a CPU.
const COST: Duration = Duration::from_millis(1);

/// Everything that a restart loses.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) config: Config,
    pub(crate) metadata: Metadata,
    pub(crate) memory: Memory,
    pub(crate) pace: Pace,
    pub(crate) standing: Option<Standing>,
    pub(crate) debounce: Debounce,
    pub(crate) retry: Retry,
    pub(crate) polling: Option<Polling>,
    pub(crate) resync: Instant,
    pub(crate) edited: Option<Instant>,
    /// Something besides kernel events wants a pass.
    pub(crate) asked: bool,
    backoff: Backoff,
    drops: Vec<Drop>,
}

/// How it stands, after at least one pass.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) report: Report,
    pub(crate) unproven: BTreeSet<Mac>,
    pub(crate) wake: Option<Instant>,
    candidates: BTreeSet<Mac>,
    expected: BTreeSet<Mac>,
    incomplete: BTreeSet<Mac>,
}

/// A poll that is under way.
#[derive(Debug)]
pub(crate) struct Polling {
    pub(crate) ask: Ask,
    /// Its first answers.
    pub(crate) poll: Poll,
    pub(crate) ends: Instant,
}

/// An operator who waits for an address to be dropped.
#[derive(Debug)]
struct Drop {
    address: IpAddr,
    deadline: Instant,
    asked: bool,
    read: bool,
}

/// The pause between failing polls, with a quarter taken off.
#[derive(Debug, Default)]
struct Backoff {
    refused: bool,
    failures: u32,
}

impl Backoff {
    fn after(&mut self, failure: Option<&Failure>) -> Option<Duration> {
        let Some(failure) = failure else {
            self.failures = 0;
            return None;
        };
        let refused = *failure == Failure::Forbidden;
        if refused != self.refused {
            (self.refused, self.failures) = (refused, 0);
        }
        let (first, last) = if refused { (120, 600) } else { (1, 30) };
        let seconds = (first << self.failures.min(16)).min(last);
        self.failures = self.failures.saturating_add(1);
        Some(Duration::from_millis(seconds * 750))
    }
}

impl Daemon {
    pub(crate) fn start(now: Instant, config: Config) -> Self {
        Self {
            config,
            metadata: Metadata::default(),
            memory: Memory::default(),
            pace: Pace::default(),
            standing: None,
            debounce: Debounce::default(),
            retry: Retry::default(),
            polling: None,
            resync: now + RESYNC,
            edited: None,
            asked: true,
            backoff: Backoff::default(),
            drops: Vec::new(),
        }
    }

    /// The kernel tells of a change.
    pub(crate) fn hear(&mut self, now: Instant) {
        self.debounce.event(now);
    }

    pub(crate) fn pass_due(&mut self, now: Instant) -> bool {
        let wake = self.standing.as_ref().and_then(|standing| standing.wake);
        let timers = [self.retry.due(), Some(self.resync), wake];
        self.asked |= timers.into_iter().flatten().any(|due| due <= now);
        // A burst of kernel events settles first; everything else has waited for its own reasons.
        self.asked || self.debounce.due().is_some_and(|due| due <= now)
    }

    /// When there is something to do even if nothing happens.
    pub(crate) fn wake(&self, now: Instant) -> Instant {
        let poll = match (&self.polling, &self.standing) {
            (Some(polling), _) => Some(polling.ends),
            (None, Some(standing)) => {
                Some(match self.pace.due(now, &self.metadata, &standing.scene()) {
                    Due::Now(_) => now,
                    Due::At(then) => then,
                })
            }
            (None, None) => None,
        };
        let wake = self.standing.as_ref().and_then(|standing| standing.wake);
        let asked = self.asked.then_some(now);
        let drops = self.drops.iter().map(|drop| drop.deadline).min();
        [asked, self.debounce.due(), self.retry.due(), self.edited, wake, poll, drops]
            .into_iter()
            .flatten()
            .fold(self.resync, Instant::min)
    }

    /// What to ask metadata now, if anything is due and nothing is being asked.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Ask> {
        let standing = self.standing.as_ref().filter(|_| self.polling.is_none())?;
        let Due::Now(ask) = self.pace.due(now, &self.metadata, &standing.scene()) else {
            return None;
        };
        let interval = Pace::interval(&self.config, &self.metadata, &standing.candidates);
        self.pace.polled(now, &ask, interval);
        self.drops.iter_mut().for_each(|drop| drop.asked = true);
        Some(ask)
    }

    /// Takes in what metadata answered; gives what counts of it.
    pub(crate) fn polled(&mut self, now: Instant, mut poll: Poll) -> Poll {
        // What was said of a link that has vanished meanwhile must not outlive it.
        if let Some(standing) = &self.standing {
            poll.enis.retain(|mac, _| standing.candidates.contains(mac));
        }
        let before = told(&self.metadata);
        let changed = self.metadata.record(&poll);
        let pause = self.backoff.after(self.metadata.failure.as_ref()).unwrap_or_default();
        self.pace.back_off(now + pause);
        let news = before != told(&self.metadata);
        let unproven = self.standing.as_ref().is_some_and(|standing| !standing.unproven.is_empty());
        self.asked |= changed || news || unproven || !self.drops.is_empty();
        self.drops.iter_mut().for_each(|drop| drop.read = drop.asked);
        poll
    }

    /// A pass begins.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.asked = false;
        self.debounce.clear();
        self.resync = now + RESYNC;
    }

    /// A pass has ended: how it stands now, unless it did not get that far, and whether it must be
    /// tried again.
    pub(crate) fn passed(
        &mut self,
        now: Instant,
        looked: Option<(&Decision, &Snapshot)>,
        failed: bool,
    ) {
        let mut well = !failed;
        self.debounce.rest(now, COST);
        if let Some((decision, snapshot)) = looked {
            well &= decision.report.verdict != Verdict::NotYet;
            self.stand(now, decision, snapshot);
        }
        self.retry.passed(now, well);
    }

    fn stand(&mut self, now: Instant, decision: &Decision, snapshot: &Snapshot) {
        let links = || snapshot.links.iter().filter(|link| link.may_be_eni());
        let candidates: BTreeSet<Mac> = links().filter_map(|link| link.mac).collect();
        let expected = links().filter(|link| self.config.expects(link));
        let expected = expected.filter_map(|link| link.mac).collect();
        self.pace.look(now, &candidates);
        let pending = decision.report.enis.iter().filter(|eni| {
            let unsettled = match &eni.state {
                EniState::Pending => true,
                EniState::Held(hold) => matches!(hold, Hold::TableTaken { .. }),
                EniState::Managed => {
                    eni.waiting.iter().any(|waiting| matches!(waiting, Waiting::Keys(_)))
                }
                EniState::NoLink => false,
            };
            unsettled && eni.link.is_some()
        });
        let incomplete = pending.map(|eni| eni.mac).collect();
        self.standing = Some(Standing {
            report: decision.report.clone(),
            unproven: decision.unproven.clone(),
            wake: decision.wake,
            candidates,
            expected,
            incomplete,
        });
    }

    /// The operator asks for an address to be dropped; whether that is possible.
    pub(crate) fn drop(&mut self, now: Instant, address: IpAddr, ours: bool) -> bool {
        if self.standing.is_none() || !ours {
            return false;
        }
        self.memory.drops.insert(address, now);
        let deadline = now + DROP_PATIENCE;
        self.drops.push(Drop { address, deadline, asked: false, read: false });
        self.pace.refresh();
        true
    }

    /// Answers whoever has waited long enough.
    pub(crate) fn settle(&mut self, now: Instant) {
        let report = self.standing.as_ref().map(|standing| &standing.report);
        self.drops.retain(|drop| {
            let known = report.into_iter().flat_map(|report| &report.enis);
            let mut known = known.flat_map(|eni| &eni.addresses);
            let leaving = known.any(|known| {
                known.address == drop.address
                    && matches!(known.state, enid_core::report::AddressState::Leaving(_))
            });
            drop.deadline > now && (!drop.read || leaving)
        });
        let waits = &self.drops;
        let dropping = |address: &IpAddr| waits.iter().any(|drop| drop.address == *address);
        self.memory.drops.retain(|address, _| dropping(address));
    }

    /// Whether a link got another name between two looks, or was set down; `was_up` tells which were
    /// up, or were set up in between.
    pub(crate) fn changed(
        mac: Mac,
        before: &Decision,
        snapshot: &Snapshot,
        was_up: &dyn Fn(LinkIndex) -> bool,
    ) -> bool {
        let eni = before.report.enis.iter().find(|eni| eni.mac == mac);
        let Some((index, name)) = eni.and_then(|eni| eni.link.as_ref()) else { return false };
        let link = snapshot.links.iter().find(|link| link.index == *index);
        link.is_some_and(|link| link.name != *name || (was_up(*index) && !link.up))
    }

    /// Whether a link went between two looks.
    pub(crate) fn vanished(mac: Mac, before: &Decision, snapshot: &Snapshot) -> bool {
        let eni = before.report.enis.iter().find(|eni| eni.mac == mac);
        let link: Option<LinkIndex> = eni.and_then(|eni| eni.link.as_ref()).map(|link| link.0);
        link.is_some_and(|index| snapshot.links.iter().all(|link| link.index != index))
    }
}

impl Standing {
    fn scene(&self) -> Scene<'_> {
        Scene {
            links: &self.candidates,
            expected: &self.expected,
            incomplete: &self.incomplete,
            unproven: &self.unproven,
        }
    }
}

/// What the report tells of metadata apart from its values.
fn told(metadata: &Metadata) -> impl PartialEq + use<> {
    let enis = metadata.enis.iter().map(|(mac, eni)| {
        let (failure, incomplete) = (eni.failure.clone(), eni.incomplete.clone());
        (*mac, failure, eni.unlisted, incomplete, eni.refusals.clone())
    });
    (enis.collect::<Vec<_>>(), metadata.failure.clone(), metadata.listed.clone())
}
