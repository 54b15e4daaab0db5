//! An instance, its cloud, everybody else on it, and enid: one event after the other.

use std::collections::VecDeque;
use std::time::Duration;

use enid_core::config::Config;
use enid_core::decide::{Decision, decide};
use enid_core::eni::Facts;
use enid_core::ledger::Ledger;
use enid_core::metadata::{Ask, Poll};
use enid_core::object::Object;
use enid_core::observed::Observed;
use enid_core::report::{AddressState, EniState, Hold};
use enid_core::time::Instant;

use crate::cloud::Cloud;
use crate::counts::Counts;
use crate::daemon::{Daemon, EDIT, Polling};
use crate::judge::{Broken, Judge, Promise, Scene, Verdict, broken};
use crate::kernel::Kernel;

/// How long a request of metadata takes.
const ANSWER: Duration = Duration::from_millis(2);
/// How many turns the daemon may take without time going on.
const TURNS: usize = 40;
/// How soon enid looks at what it was told of.
const SOON: Duration = Duration::from_secs(1);
/// How long after a remedy somebody undoes it again.
const REVENGE: Duration = Duration::from_millis(300);

/// What was there before the first event.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// The operator's choices.
    pub config: Config,
    /// What metadata answers.
    pub cloud: Cloud,
    /// What the kernel has.
    pub kernel: Kernel,
    /// What was written down in a former life.
    pub ledger: Ledger,
}

/// The product that is played with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Product {
    /// The real one.
    #[default]
    Real,
    /// One that removes on the first reading that lacks an address, to see that this is noticed.
    Impatient,
}

/// Why a pass ended early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The daemon died.
    Crash,
    /// The ledger could not be written.
    Ledger,
    /// A promise was broken.
    Broken(Broken),
}

impl From<Broken> for Stop {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

/// Somebody who undoes what enid makes.
#[derive(Debug)]
pub(crate) struct Feud {
    pub(crate) over: Object,
    pub(crate) left: u32,
    pub(crate) at: Option<Instant>,
}

/// What is to happen at the ledger's next writing.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trouble {
    /// The daemon dies before it is written.
    Crash,
    /// It cannot be written so many times.
    Refused(u32),
}

/// All of it.
#[derive(Debug)]
pub struct World {
    pub(crate) kernel: Kernel,
    pub(crate) cloud: Cloud,
    pub(crate) config: Config,
    pub(crate) ledger: Ledger,
    pub(crate) now: Instant,
    pub(crate) daemon: Option<Daemon>,
    pub(crate) starts: Instant,
    /// Steps from now, and what happens before that step.
    pub(crate) armed: Vec<(u32, String)>,
    pub(crate) feuds: Vec<Feud>,
    /// The kernel changed since enid last looked.
    pub(crate) changed: bool,
    /// Until when enid hears nothing of the kernel, and whether it is told of what it missed.
    pub(crate) deaf: Option<(Instant, bool)>,
    /// Since when enid could know of something that it has not looked at.
    pub(crate) unseen: Option<Instant>,
    pub(crate) slow: Duration,
    pub(crate) trouble: Option<Trouble>,
    pub(crate) judge: Judge,
    pub(crate) disturbed: bool,
    /// When enid last took a step.
    pub(crate) stepped: Instant,
    /// What happened.
    pub counts: Counts,
    product: Product,
    turns: (Instant, usize),
    pub(crate) crashes: VecDeque<Duration>,
}

impl World {
    /// The daemon starts with the first event.
    #[must_use]
    pub fn new(mut start: Start, product: Product) -> Self {
        // As the kernel keeps them.
        start.kernel.state.rules.sort_by_key(|seen| seen.rule.priority);
        let judge = Judge::new(&start.kernel.state, &start.ledger);
        Self {
            kernel: start.kernel,
            cloud: start.cloud,
            config: start.config,
            ledger: start.ledger,
            now: Instant::default(),
            daemon: None,
            starts: Instant::default(),
            armed: Vec::new(),
            feuds: Vec::new(),
            changed: false,
            deaf: None,
            unseen: None,
            slow: ANSWER,
            trouble: None,
            judge,
            disturbed: false,
            stepped: Instant::default(),
            counts: Counts::default(),
            product,
            turns: (Instant::default(), 0),
            crashes: VecDeque::new(),
        }
    }

    /// Lets time pass, and enid do what is due meanwhile.
    ///
    /// # Errors
    /// The first promise that was broken.
    pub fn advance(&mut self, to: Instant) -> Verdict {
        loop {
            self.turn()?;
            let next = self.next();
            if next > to {
                self.now = self.now.max(to);
                return Ok(());
            }
            self.now = self.now.max(next);
            if self.turns.0 != self.now {
                self.turns = (self.now, 0);
            }
            self.turns.1 += 1;
            if self.turns.1 > TURNS {
                return broken(Promise::Spinning, format!("not after {:?}", self.now.0));
            }
        }
    }

    /// When something is due next.
    fn next(&self) -> Instant {
        let never = Instant(Duration::from_secs(u64::MAX / 4));
        let mut next = match &self.daemon {
            Some(daemon) => daemon.wake(self.now),
            None => self.starts,
        };
        if self.daemon.is_some() && self.changed {
            next = next.min(match self.deaf {
                None => self.now,
                Some((until, true)) => until,
                Some((_, false)) => never,
            });
        }
        let revenge = self.feuds.iter().filter(|feud| feud.left > 0).filter_map(|feud| feud.at);
        revenge.fold(next, Instant::min)
    }

    /// Does all that is due now.
    fn turn(&mut self) -> Verdict {
        self.looks()?;
        self.avenge();
        if let Some((until, told)) = self.deaf
            && until <= self.now
        {
            self.deaf = None;
            self.changed &= told;
        }
        if self.daemon.is_none() {
            if self.starts > self.now {
                return Ok(());
            }
            self.daemon = Some(Daemon::start(self.now, self.config.clone()));
            self.judge.restarted();
        }
        let Some(mut daemon) = self.daemon.take() else { return Ok(()) };
        let alive = self.work(&mut daemon)?;
        let mut feuds = std::mem::take(&mut self.feuds);
        for feud in feuds.iter_mut().filter(|feud| feud.left > 0 && feud.at.is_none()) {
            feud.at = self.there(&feud.over).then_some(self.now + REVENGE);
        }
        self.feuds = feuds;
        if alive {
            self.daemon = Some(daemon);
        } else {
            let pause = self.crashes.pop_front().unwrap_or(Duration::from_secs(1));
            self.starts = self.now + pause;
        }
        Ok(())
    }

    /// The kernel has changed.
    pub(crate) fn tell(&mut self) {
        self.changed = true;
        self.judge.tidy(&self.kernel.state);
        match self.deaf {
            None => _ = self.unseen.get_or_insert(self.now),
            Some((until, true)) => _ = self.unseen.get_or_insert(until.max(self.now)),
            Some((_, false)) => {}
        }
    }

    /// What enid was told of, it looks at soon.
    fn looks(&mut self) -> Verdict {
        if self.daemon.is_none() {
            self.unseen = None;
        }
        match self.unseen {
            Some(told) if told + SOON < self.now => {
                broken(Promise::Looked, format!("it was told {:?} ago", self.now - told))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn work(&mut self, daemon: &mut Daemon) -> Result<bool, Broken> {
        if daemon.polling.as_ref().is_some_and(|polling| polling.ends <= self.now)
            && let Some(polling) = daemon.polling.take()
        {
            self.answered(daemon, polling);
        }
        if self.changed && self.deaf.is_none() {
            self.changed = false;
            daemon.hear(self.now);
        }
        if daemon.edited.is_some_and(|due| due <= self.now) {
            daemon.edited = None;
            if daemon.config != self.config {
                daemon.config = self.config.clone();
                daemon.pace.refresh();
                daemon.asked = true;
            }
        }
        if daemon.pass_due(self.now) && !self.pass(daemon)? {
            return Ok(false);
        }
        if let Some(ask) = daemon.poll(self.now) {
            let top = Ask { top: ask.top, ..Ask::default() };
            let poll = self.cloud.poll(self.now, &top);
            let ends = self.now + self.slow;
            daemon.polling = Some(Polling { ask, poll, ends });
            self.counts.polls += 1;
        }
        daemon.settle(self.now);
        Ok(true)
    }

    /// The rest of a poll's answers come when it ends: what it says of ENIs may be newer than which
    /// ENIs it lists.
    fn answered(&mut self, daemon: &mut Daemon, polling: Polling) {
        let Polling { ask, poll, .. } = polling;
        let enis = self.cloud.poll(poll.at, &Ask { top: false, ..ask }).enis;
        let poll = daemon.polled(self.now, Poll { enis, ..poll });
        self.judge.polled(&poll);
        let failed = daemon.metadata.failure.is_some();
        self.counts.situation_if(failed, "a poll failed as a whole");
    }

    pub(crate) fn look(&mut self, daemon: &mut Daemon) -> Decision {
        (self.changed, self.unseen) = (false, None);
        let mut config = daemon.config.clone();
        match self.product {
            Product::Real => {}
            Product::Impatient => {
                config.removal.confirmations = 1;
                (config.removal.grace, config.removal.mass_grace) = Default::default();
            }
        }
        let facts = Facts {
            now: self.now,
            config: &config,
            metadata: &daemon.metadata,
            observed: Observed { snapshot: &self.kernel.state, ledger: &self.ledger },
            udev: &std::collections::BTreeSet::new(),
        };
        let decision = decide(&facts, &mut daemon.memory);
        decision.gone.iter().for_each(|mac| daemon.metadata.forget(*mac));
        self.notice(&decision);
        decision
    }

    /// Counts what the report shows.
    fn notice(&mut self, decision: &Decision) {
        for eni in &decision.report.enis {
            let counts = &mut self.counts;
            for address in &eni.addresses {
                match &address.state {
                    AddressState::Leaving(leaving) => {
                        counts.situation_if(!leaving.stops.is_empty(), "a removal is paused");
                        counts.situation_if(leaving.mass.is_some(), "a mass removal waits");
                    }
                    AddressState::TakenOver => counts.situation("an address was taken over"),
                    AddressState::Elsewhere { .. } => counts.situation("an address is a pod's"),
                    AddressState::Ours
                    | AddressState::Theirs
                    | AddressState::Adding
                    | AddressState::Missing
                    | AddressState::Ignored => {}
                }
            }
            match &eni.state {
                EniState::Held(Hold::Released) => counts.situation("an ENI is held"),
                EniState::Held(Hold::TableTaken { .. }) => counts.situation("a table is taken"),
                EniState::Held(_) => counts.situation("an ENI is held otherwise"),
                EniState::Pending => counts.situation("an ENI is pending"),
                EniState::Managed | EniState::NoLink => {}
            }
            for waiting in &eni.waiting {
                let fight = matches!(waiting, enid_core::report::Waiting::Fight { .. });
                counts.situation_if(fight, "a truce");
            }
            for notice in &eni.notices {
                let conflict = matches!(notice, enid_core::report::Notice::Conflict { .. });
                counts.situation_if(conflict, "a conflict");
            }
        }
    }

    /// What the judge may look at.
    pub(crate) fn scene<'a>(&'a self, config: &'a Config) -> Scene<'a> {
        let (now, disturbed) = (self.now, self.disturbed);
        Scene { kernel: &self.kernel, config, ledger: &self.ledger, now, disturbed }
    }

    /// Writes the ledger, as the daemon does.
    pub(crate) fn write(&mut self, ledger: &Ledger) -> Result<(), Stop> {
        if *ledger == self.ledger {
            return Ok(());
        }
        match self.trouble {
            None => {}
            Some(Trouble::Crash) => {
                self.trouble = None;
                self.counts.situation("a crash before the ledger was written");
                return Err(Stop::Crash);
            }
            Some(Trouble::Refused(times)) => {
                self.trouble = (times > 1).then_some(Trouble::Refused(times - 1));
                self.counts.situation("the ledger could not be written");
                return Err(Stop::Ledger);
            }
        }
        self.ledger = ledger.clone();
        Ok(())
    }

    /// Somebody undoes again what enid has made meanwhile.
    fn avenge(&mut self) {
        let mut feuds = std::mem::take(&mut self.feuds);
        let now = self.now;
        for feud in feuds.iter_mut().filter(|feud| feud.at.is_some_and(|at| at <= now)) {
            feud.at = None;
            feud.left -= 1;
            self.take(&feud.over);
        }
        self.feuds = feuds;
    }

    /// The configuration's file was edited.
    pub(crate) fn edited(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            daemon.edited = daemon.edited.or(Some(self.now + EDIT));
        }
    }
}
