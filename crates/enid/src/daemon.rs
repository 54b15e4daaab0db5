//! The loop: triggers in, passes out.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use enid_control::{EventKind, Reloaded};
use enid_core::config::Config as Choices;
use enid_core::memory::Memory;
use enid_core::metadata::facts::Metadata;
use enid_core::metadata::{Ask, Poll};
use enid_core::object::{LinkIndex, Mac};
use enid_core::pace::{Debounce, Due, Pace, Retry, Scene};
use enid_core::report::{EniState, Verdict, Waiting};
use enid_core::time::Instant;
use enid_imds::{Backoff, Client};
use enid_kernel::{Change, Kernel};
use tokio::task::JoinHandle;

use crate::asking::{Asking, vias};
use crate::chronicle::{Chronicle, Weight};
use crate::clock::{now, sleep_until, thread_cpu};
use crate::config::{self, Config, chain};
use crate::control::{self, Server};
use crate::journal::{self, Level, Said};
use crate::metrics::{Measuring, View};
use crate::operator::Waiters;
use crate::pass::{Engine, Looked};
use crate::service::{Service, summary};
use crate::store::Store;
use crate::triggers::{ConfigWatch, Signal, SignalStream};
use crate::udev;

/// READY after this long even when nothing has converged: the boot must go on.
const READY_LATEST: Duration = Duration::from_secs(10);
/// A pass for the case that the kernel told nothing.
const RESYNC: Duration = Duration::from_secs(300);
/// How often to look whether udev has finished with a link.
const UDEV_POLL: Duration = Duration::from_millis(50);
/// Editors write a file in several steps.
const EDIT: Duration = Duration::from_millis(100);

/// Why a pass runs; it looks at everything all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    Start,
    Kernel,
    LostEvents,
    Metadata,
    Config,
    Timer,
    Operator,
}

impl Cause {
    fn text(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Kernel => "kernel event",
            Self::LostEvents => "lost kernel events",
            Self::Metadata => "metadata",
            Self::Config => "configuration",
            Self::Timer => "timer",
            Self::Operator => "operator",
        }
    }
}

/// The last pass, for the status.
#[derive(Debug, Clone)]
pub(crate) struct LastPass {
    pub(crate) cause: &'static str,
    pub(crate) steps: u64,
    pub(crate) took: Duration,
    pub(crate) at: Instant,
}

/// How it stands, after at least one pass.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) looked: Looked,
    pub(crate) candidates: BTreeSet<Mac>,
    pub(crate) expected: BTreeSet<Mac>,
    pub(crate) incomplete: BTreeSet<Mac>,
}

/// Everything the loop has.
pub(crate) struct Daemon {
    pub(crate) config: Config,
    pub(crate) engine: Engine,
    pub(crate) client: Arc<Client>,
    pub(crate) pace: Pace,
    pub(crate) standing: Option<Standing>,
    pub(crate) since: Instant,
    pub(crate) last_pass: Option<LastPass>,
    pub(crate) last_error: Option<(Instant, String)>,
    pub(crate) answered: Option<(bool, Instant)>,
    pub(crate) waiters: Waiters,
    pub(crate) chronicle: Chronicle,
    measuring: Measuring,
    said: Said,
    debounce: Debounce,
    retry: Retry,
    backoff: Backoff,
    causes: BTreeSet<Cause>,
    asking: Asking,
    polling: Option<JoinHandle<(Ask, Poll)>>,
    resync: Instant,
    edited: Option<Instant>,
    started: Instant,
    service: Service,
    watchdog: Option<(Duration, Instant)>,
    level: Level,
    asked_file: Option<PathBuf>,
}

/// What the loop was woken by.
enum Woken {
    Signal(Signal),
    Kernel(Change),
    Polled(Result<(Ask, Poll), tokio::task::JoinError>),
    Call(Box<control::Call>),
    Edited,
    Time,
}

/// Runs until a signal stops it; nothing in the kernel is changed on the way out.
///
/// # Errors
/// What keeps the daemon from starting.
pub async fn run(asked_file: Option<PathBuf>, config: Config, level: Level) -> anyhow::Result<()> {
    std::fs::create_dir_all(&config.runtime_directory).with_context(|| {
        format!("making the runtime directory {}", config.runtime_directory.display())
    })?;
    let mut signals = SignalStream::new().context("catching signals")?;
    let mut files = ConfigWatch::new(&config.file).context("watching the configuration")?;
    let chronicle = Chronicle::default();
    let mut server =
        control::serve(&config.control_socket, config.control_group.clone(), chronicle.clone())
            .await
            .with_context(|| format!("opening {}", config.control_socket.display()))?;
    let mut daemon = Daemon::new(asked_file, config, level, chronicle)?;
    let text = format!("watching: {}", daemon.config.file.display());
    daemon.said.note(now(), Weight::Info, EventKind::Daemon, text);
    daemon.causes.insert(Cause::Start);
    loop {
        daemon.work().await;
        server.permit(daemon.config.control_group.as_deref());
        match daemon.wait(&mut signals, &mut files, &mut server).await {
            Woken::Signal(Signal::Stop) => break,
            Woken::Signal(Signal::Reload) => {
                Service::reloading();
                daemon.follow_files();
                daemon.service.ready();
            }
            Woken::Kernel(change) => {
                daemon.debounce.event(now());
                daemon.engine.heard(change);
                daemon.causes.insert(match change {
                    Change::Event => Cause::Kernel,
                    Change::Lost => Cause::LostEvents,
                });
                if daemon.debounce.rests(now()) {
                    daemon.engine.kernel.listen_no_more();
                }
            }
            Woken::Polled(result) => daemon.polled(result),
            Woken::Call(call) => daemon.call(*call).await,
            Woken::Edited => daemon.edited = daemon.edited.or(Some(now() + EDIT)),
            Woken::Time => {}
        }
    }
    Service::stopping();
    let text = "stopped; everything stays in place".to_owned();
    daemon.said.note(now(), Weight::Info, EventKind::Daemon, text);
    Ok(())
}

impl Daemon {
    fn new(
        asked_file: Option<PathBuf>,
        config: Config,
        level: Level,
        chronicle: Chronicle,
    ) -> anyhow::Result<Self> {
        let client = Client::new(config.metadata.clone())?;
        let kernel = Kernel::open().context("opening netlink sockets")?;
        let (store, trouble) = Store::open(&config.runtime_directory)?;
        let mut said = Said::new(chronicle.clone());
        if let Some(trouble) = trouble {
            said.error(now(), &chain(&trouble), "the kernel's own marks are used instead");
        }
        let (version, bytes) = (env!("CARGO_PKG_VERSION"), kernel.receive_buffer());
        let text = format!("enid {version}: {bytes} bytes of kernel events are kept");
        said.note(now(), Weight::Info, EventKind::Daemon, text);
        let asking = Asking::start().context("starting the thread that asks metadata")?;
        let metadata = Metadata::default();
        let measuring = Measuring::start(chronicle.clone());
        let counters = measuring.counters();
        let engine = Engine { kernel, metadata, memory: Memory::default(), store, counters };
        let started = now();
        let seed = u64::from(std::process::id()) ^ u64::from(started.0.subsec_nanos());
        Ok(Self {
            config,
            engine,
            client: Arc::new(client),
            pace: Pace::default(),
            standing: None,
            since: started,
            last_pass: None,
            last_error: None,
            answered: None,
            waiters: Waiters::default(),
            chronicle,
            measuring,
            said,
            debounce: Debounce::default(),
            retry: Retry::default(),
            backoff: Backoff::new(seed),
            causes: BTreeSet::new(),
            asking,
            polling: None,
            resync: started + RESYNC,
            edited: None,
            started,
            service: Service::default(),
            watchdog: Service::watchdog().map(|every| (every, started)),
            level,
            asked_file,
        })
    }

    /// Does all that is due.
    async fn work(&mut self) {
        if let Some(cause) = self.causes.iter().find(|cause| **cause != Cause::Timer) {
            self.measuring.noticed(now(), cause.text());
        }
        if self.edited.is_some_and(|due| due <= now()) {
            self.follow_files();
        }
        if self.waiters.hasten(now()) {
            self.pace.refresh();
        }
        if self.pass_due() {
            self.pass().await;
        }
        self.poll();
        self.waiters.settle(now(), self.standing.as_ref());
        self.engine.memory.drops.retain(|address, _| self.waiters.dropping(*address));
        self.tell_systemd();
        if self.measuring.follow(now(), self.config.textfile.as_deref()) {
            let metrics = self.metrics();
            self.measuring.write(now(), &metrics);
        }
    }

    fn pass_due(&mut self) -> bool {
        let now = now();
        let timer = [
            self.retry.due(),
            Some(self.resync),
            self.standing.as_ref().and_then(|standing| standing.looked.decision.wake),
        ];
        if timer.into_iter().flatten().any(|due| due <= now) {
            self.causes.insert(Cause::Timer);
        }
        if self.awaits_udev().any(udev::initialised) {
            self.causes.insert(Cause::Timer);
        }
        // A burst of kernel events settles first; everything else has waited for its own reasons.
        let settling = self.debounce.due().is_some_and(|due| due > now);
        let only_kernel =
            self.causes.iter().all(|cause| matches!(cause, Cause::Kernel | Cause::LostEvents));
        !self.causes.is_empty() && (!only_kernel || !settling)
    }

    /// When there is something to do even if nothing happens.
    fn wake(&self) -> Option<Instant> {
        let standing = self.standing.as_ref();
        let udev = self.awaits_udev().next();
        [
            self.debounce.due(),
            self.retry.due(),
            self.edited,
            Some(self.resync),
            standing.and_then(|standing| standing.looked.decision.wake),
            udev.map(|_| now() + UDEV_POLL),
            self.poll_due(),
            self.waiters.due(),
            self.measuring.due(),
            self.watchdog.map(|(_, due)| due),
            (!self.service.is_ready()).then_some(self.started + READY_LATEST),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The links that were not raised in the last pass because udev had not finished with them.
    fn awaits_udev(&self) -> impl Iterator<Item = LinkIndex> {
        let reports = self.standing.iter().map(|standing| &standing.looked.decision.report);
        let waiting = reports.flat_map(|report| report.waiting());
        let udev = waiting.filter(|(_, waiting)| matches!(waiting, Waiting::Udev { .. }));
        udev.filter_map(|(eni, _)| eni.link.as_ref().map(|(index, _)| *index))
    }

    async fn wait(
        &mut self,
        signals: &mut SignalStream,
        files: &mut ConfigWatch,
        server: &mut Server,
    ) -> Woken {
        let wake = self.wake();
        self.engine.kernel.be_brief(self.debounce.rests(now()));
        let polling = &mut self.polling;
        let polled = async {
            match polling {
                Some(task) => task.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            signal = signals.next() => Woken::Signal(signal),
            change = self.engine.kernel.changed() => Woken::Kernel(change),
            result = polled => Woken::Polled(result),
            call = server.next() => Woken::Call(Box::new(call)),
            () = files.changed() => Woken::Edited,
            () = sleep_until(wake) => Woken::Time,
        }
    }

    /// Runs a pass and takes in how it ended; whether it got to its end.
    pub(crate) async fn pass(&mut self) -> bool {
        let causes = std::mem::take(&mut self.causes);
        let cause = causes.iter().next_back().map_or("", |cause| cause.text());
        self.debounce.clear();
        self.resync = now() + RESYNC;
        let choices: Choices = self.config.choices.clone();
        let cpu = thread_cpu();
        self.said.pass(cause, now());
        let before = self.standing.as_ref().map(|standing| &standing.looked.snapshot);
        let result = self.engine.pass(&choices, before, &mut self.said).await;
        let at = now();
        self.debounce.rest(at, thread_cpu().saturating_sub(cpu));
        let ended = result.is_ok();
        let failure = match result {
            Ok(passed) => {
                let verdict = passed.looked.decision.report.verdict;
                let before = self.verdict();
                if before != Some(verdict) {
                    self.since = at;
                }
                let report = &passed.looked.decision.report;
                self.measuring.passed(at, report, passed.changed);
                self.last_pass =
                    Some(LastPass { cause, steps: passed.changed, took: passed.took, at });
                self.stand(passed.looked);
                if passed.failures.is_empty() && verdict == Verdict::NotYet {
                    Some(String::new())
                } else {
                    passed.failures.first().cloned()
                }
            }
            Err(error) => {
                self.measuring.failed();
                Some(chain(&error))
            }
        };
        self.retry.passed(at, failure.is_none());
        match failure {
            None => self.said.well(),
            Some(text) if text.is_empty() => {}
            Some(text) => {
                self.said.error(at, &text, "it is tried again");
                self.last_error = Some((at, text));
            }
        }
        self.said.passed();
        ended
    }

    pub(crate) fn verdict(&self) -> Option<Verdict> {
        self.standing.as_ref().map(|standing| standing.looked.decision.report.verdict)
    }

    /// What is measured at the moment somebody reads it.
    pub(crate) fn metrics(&self) -> String {
        let enis = self.engine.metadata.enis.values();
        let read = enis.map(|eni| eni.completed.unwrap_or(eni.first_read)).min();
        self.measuring.text(&View {
            report: self.standing.as_ref().map(|standing| &standing.looked.decision.report),
            answers: self.answered.map(|(well, _)| well),
            age: now() - read.unwrap_or(self.started),
            requests: self.client.tally().collect(),
        })
    }

    fn stand(&mut self, looked: Looked) {
        let candidates = looked.candidates();
        let expected = looked.expected(&self.config.choices);
        self.pace.look(now(), &candidates);
        let pending = looked.decision.report.enis.iter().filter(|eni| {
            let unsettled = match &eni.state {
                EniState::Pending => true,
                EniState::Held(hold) => {
                    matches!(hold, enid_core::report::Hold::TableTaken { .. })
                }
                // IPv6 may be assigned to a subnet, and come into metadata, after IPv4.
                EniState::Managed => {
                    eni.waiting.iter().any(|waiting| matches!(waiting, Waiting::Keys(_)))
                }
                EniState::NoLink => false,
            };
            unsettled && eni.link.is_some()
        });
        let incomplete = pending.map(|eni| eni.mac).collect();
        self.standing = Some(Standing { looked, candidates, expected, incomplete });
    }

    fn scene(standing: &Standing) -> Scene<'_> {
        Scene {
            links: &standing.candidates,
            expected: &standing.expected,
            incomplete: &standing.incomplete,
            unproven: &standing.looked.decision.unproven,
        }
    }

    pub(crate) fn poll_due(&self) -> Option<Instant> {
        let standing = self.standing.as_ref().filter(|_| self.polling.is_none())?;
        match self.pace.due(now(), &self.engine.metadata, &Self::scene(standing)) {
            Due::Now(_) => Some(now()),
            Due::At(then) => Some(then),
        }
    }

    /// Starts asking metadata, if that is due and nothing is being asked.
    fn poll(&mut self) {
        let Some(standing) = self.standing.as_ref().filter(|_| self.polling.is_none()) else {
            return;
        };
        let at = now();
        let Due::Now(ask) = self.pace.due(at, &self.engine.metadata, &Self::scene(standing)) else {
            return;
        };
        let interval =
            Pace::interval(&self.config.choices, &self.engine.metadata, &standing.candidates);
        self.pace.polled(at, &ask, interval);
        self.waiters.asked();
        let via = vias(&self.engine.metadata, &standing.looked);
        let client = Arc::clone(&self.client);
        self.polling = Some(self.asking.spawn(async move {
            let poll = client.poll(&ask, at, &via).await;
            (ask, poll)
        }));
    }

    /// Takes in what metadata answered.
    fn polled(&mut self, result: Result<(Ask, Poll), tokio::task::JoinError>) {
        self.polling = None;
        let at = now();
        let mut poll = match result {
            Ok((_, poll)) => poll,
            Err(error) => {
                self.said.error(at, &format!("asking metadata: {error}"), "it is asked again");
                self.pace.back_off(at + READY_LATEST);
                return;
            }
        };
        // What was said of a link that has vanished meanwhile must not outlive it.
        if let Some(standing) = &self.standing {
            poll.enis.retain(|mac, _| standing.candidates.contains(mac));
        }
        let before = told(&self.engine.metadata);
        let changed = self.engine.metadata.record(&poll);
        // A reading that changes nothing brings no pass, and is a reading all the same.
        for eni in self.standing.iter_mut().flat_map(|it| &mut it.looked.decision.report.enis) {
            eni.read = self.engine.metadata.enis.get(&eni.mac).and_then(|known| known.completed);
        }
        let failure = self.engine.metadata.failure.clone();
        // An answer that an operator asked for ends a pause that has not passed yet.
        let pause = self.backoff.after(failure.as_ref()).unwrap_or_default();
        self.pace.back_off(at + pause);
        let well = failure.is_none();
        self.said.metadata(at, failure.as_ref());
        if self.answered.is_none_or(|(before, _)| before != well) {
            if let Some(failure) = &failure {
                self.last_error = Some((at, format!("metadata cannot be read: {failure}")));
            }
            self.answered = Some((well, at));
            self.measuring.metadata_changed();
        }
        let news = before != told(&self.engine.metadata);
        let unproven = self
            .standing
            .as_ref()
            .is_some_and(|standing| !standing.looked.decision.unproven.is_empty());
        if changed || news || unproven || self.waiters.any() {
            self.causes.insert(Cause::Metadata);
        }
        self.waiters.polled();
    }

    /// Reads the configuration again and says what came of it.
    fn follow_files(&mut self) {
        match self.reload() {
            Ok(reloaded) => {
                for notice in reloaded.notices {
                    self.said.note(now(), Weight::Warning, EventKind::Configuration, notice);
                }
            }
            Err(text) => {
                let said = format!("{text}; the old configuration stays in force");
                self.said.note(now(), Weight::Error, EventKind::ConfigurationRefused, said);
                self.last_error = Some((now(), text));
            }
        }
    }

    /// Reads the configuration again; a wrong one leaves the old one in force, and the error says why.
    pub(crate) fn reload(&mut self) -> Result<Reloaded, String> {
        self.edited = None;
        let mut new = config::load(self.asked_file.as_deref()).map_err(|error| chain(&error))?;
        let mut notices = Vec::new();
        for (name, old, new) in [
            ("runtime_directory", &self.config.runtime_directory, &mut new.runtime_directory),
            ("control_socket", &self.config.control_socket, &mut new.control_socket),
        ] {
            if old != new {
                let old_one = old.display();
                notices
                    .push(format!("{name} changes only with a restart; {old_one} stays in force"));
                new.clone_from(old);
            }
        }
        if new == self.config {
            return Ok(Reloaded { changed: false, notices });
        }
        if new.metadata != self.config.metadata {
            let client = Client::new(new.metadata.clone()).map_err(|error| chain(&error))?;
            self.client = Arc::new(client.instead_of(&self.client));
            // The old endpoints have nothing more to say.
            if let Some(polling) = self.polling.take() {
                polling.abort();
            }
        }
        if new.log.level != self.config.log.level
            && let Ok(filter) = journal::filter(&new.log)
            && let Err(error) = self.level.reload(filter)
        {
            notices.push(format!("the log level stays as it is: {error}"));
        }
        self.config = new;
        self.pace.refresh();
        self.causes.insert(Cause::Config);
        let text = "the configuration was read again".to_owned();
        self.said.note(now(), Weight::Info, EventKind::Configuration, text);
        Ok(Reloaded { changed: true, notices })
    }

    pub(crate) fn due_to_operator(&mut self) {
        self.causes.insert(Cause::Operator);
    }

    fn tell_systemd(&mut self) {
        let at = now();
        let converged = self.verdict() == Some(Verdict::Converged);
        if !self.service.is_ready() && (converged || at >= self.started + READY_LATEST) {
            self.service.ready();
        }
        let tick = self.watchdog.is_some_and(|(_, due)| due <= at);
        if let Some((every, due)) = self.watchdog.as_mut().filter(|_| tick) {
            Service::alive();
            *due = at + *every;
        }
        if let (Some(standing), Some(pass)) = (&self.standing, &self.last_pass) {
            let trouble = match self.answered {
                Some((false, _)) => Some("metadata cannot be read"),
                Some((true, _)) | None => None,
            };
            let report = &standing.looked.decision.report;
            self.service.status(summary(report, at - pass.at, trouble));
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
