//! What is said to the journal: one line a change, nothing in steady state, errors once.

use std::collections::BTreeMap;
use std::time::Duration;

use enid_control::{EventKind, convert};
use enid_core::metadata::Failure;
use enid_core::object::{LinkIndex, Mac, Object};
use enid_core::plan::{Planned, Step};
use enid_core::report::{EniReport, EniState, Report, Waiting, fought_over};
use enid_core::time::Instant;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, reload};

use crate::allowance::{Allowance, Leave};
use crate::chronicle::{Chronicle, FOR_MACHINES, Line, Weight};
use crate::config::{Log, LogFormat};

/// An unchanged error is said again after this long.
const REPEAT: Duration = Duration::from_secs(3600);
/// More routes or rules than this of one ENI in one pass share a line.
const ALONE: usize = 3;

/// Changes the log level while running.
pub type Level = reload::Handle<Targets, Registry>;

/// Starts logging.
///
/// # Errors
/// When the journal was asked for and cannot be reached.
pub fn start(log: &Log) -> anyhow::Result<Level> {
    let (filter, level) = reload::Layer::new(filter(log)?);
    let journal = match log.format {
        LogFormat::Journal => true,
        LogFormat::Text => false,
        LogFormat::Auto => connected_to_journal(),
    };
    let registry = tracing_subscriber::registry().with(filter);
    if journal {
        let layer = tracing_journald::layer()?.with_field_prefix(None).with_priority_mappings(
            PriorityMappings { info: Priority::Informational, ..PriorityMappings::new() },
        );
        registry.with(layer).init();
    } else {
        let text = tracing_subscriber::fmt::layer()
            .with_target(false)
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .fmt_fields(debug_fn(|writer, field, value| match field.name() {
                "message" => write!(writer, "{value:?}"),
                name if FOR_MACHINES.contains(&name) => Ok(()),
                name => write!(writer, " {name}={value:?}"),
            }))
            .with_writer(std::io::stderr);
        registry.with(text).init();
    }
    Ok(level)
}

/// The filter for a level; a library's own warnings are about what we report ourselves.
///
/// # Errors
/// When the level is none.
pub fn filter(log: &Log) -> anyhow::Result<Targets> {
    Ok(format!("{},netlink_proto=error", log.level).parse()?)
}

/// Whether systemd connected standard error to the journal: it names the stream's device and inode.
fn connected_to_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    nix::sys::stat::fstat(std::io::stderr())
        .is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// What has been said, so that it is not said again and again.
#[derive(Debug, Default)]
pub struct Said {
    chronicle: Chronicle,
    errors: BTreeMap<String, Instant>,
    states: BTreeMap<Mac, String>,
    fights: BTreeMap<(Mac, String), Instant>,
    allowances: BTreeMap<Mac, Allowance>,
    metadata: Option<bool>,
    /// Nothing at all can be read of metadata, which is said once and not for each ENI.
    unread: bool,
    metadata_allowance: Allowance,
}

impl Said {
    /// Says it to the journal and to this chronicle.
    #[must_use]
    pub fn new(chronicle: Chronicle) -> Self {
        Self { chronicle, ..Self::default() }
    }

    /// A pass begins.
    pub(crate) fn pass(&self, cause: &'static str, started: Instant) {
        self.chronicle.pass(cause, started);
    }

    /// A pass has ended.
    pub(crate) fn passed(&self) {
        self.chronicle.passed();
    }

    /// Says something of the daemon itself.
    pub(crate) fn note(&self, now: Instant, weight: Weight, kind: EventKind, text: String) {
        let reason = (weight != Weight::Info).then(|| text.clone());
        self.chronicle.tell(now, weight, kind, Line { reason, text, ..Line::default() });
    }

    /// Says an error unless it was said within the hour.
    pub fn error(&mut self, now: Instant, text: &str, remedy: &str) {
        self.failed(now, None, text, remedy);
    }

    /// The same of an ENI.
    pub(crate) fn failed(&mut self, now: Instant, eni: Option<String>, text: &str, remedy: &str) {
        self.errors.retain(|_, said| now - *said < REPEAT);
        if self.errors.contains_key(text) {
            return;
        }
        self.errors.insert(text.to_owned(), now);
        let reason = Some(text.to_owned());
        let text = format!("{text}{}{remedy}", if remedy.is_empty() { "" } else { "; " });
        let line = Line { eni, reason, text, ..Line::default() };
        self.chronicle.tell(now, Weight::Error, EventKind::Failed, line);
    }

    /// Forgets errors, because all is well again.
    pub fn well(&mut self) {
        self.errors.clear();
    }

    /// Says whether metadata can be read at all, where that changed.
    pub fn metadata(&mut self, now: Instant, failure: Option<&Failure>) {
        self.unread = failure.is_some();
        let well = failure.is_none();
        if self.metadata == Some(well) {
            return;
        }
        let leave = self.metadata_allowance.ask(now);
        if leave == Leave::Refused {
            return;
        }
        self.metadata = Some(well);
        let remark = leave.remark();
        match failure {
            Some(failure) => {
                let reason = format!("metadata cannot be read: {failure}");
                let text = format!("{reason}; nothing is removed meanwhile{remark}");
                let line = Line { reason: Some(reason), text, ..Line::default() };
                self.chronicle.tell(now, Weight::Warning, EventKind::MetadataFailed, line);
            }
            None => {
                let text = format!("metadata answers{remark}");
                self.note(now, Weight::Info, EventKind::MetadataAnswers, text);
            }
        }
    }

    /// Says what changed about the ENIs: states, what is waited for, notices.
    pub fn report(&mut self, now: Instant, report: &Report, name_of: &dyn Fn(LinkIndex) -> String) {
        self.fights(now, report, name_of);
        let here = |mac: &Mac| report.enis.iter().any(|eni| eni.mac == *mac);
        self.states.retain(|mac, _| here(mac));
        self.allowances.retain(|mac, _| here(mac));
        for eni in &report.enis {
            let said = standing(eni, self.unread, name_of);
            let unread = self.unread && eni.waiting.iter().any(is_reading);
            let before = self.states.get(&eni.mac);
            if before == Some(&said) || (unread && said.is_empty()) {
                continue;
            }
            let leave = self.allowances.entry(eni.mac).or_default().ask(now);
            if leave == Leave::Refused {
                continue;
            }
            let before = self.states.insert(eni.mac, said.clone());
            let (name, remark) = (name(eni), leave.remark());
            let held = matches!(eni.state, EniState::Held(_));
            let kind = if held { EventKind::Held } else { EventKind::Waiting };
            let (weight, kind, text) = match (&eni.state, said.is_empty()) {
                (_, false) if settles(eni) => (Weight::Info, kind, said.clone()),
                (_, false) => (Weight::Warning, kind, said.clone()),
                (EniState::Managed, true) if before.is_some() => {
                    let text = "nothing is waited for any more".to_owned();
                    (Weight::Info, EventKind::Managed, text)
                }
                (EniState::Managed, true) => {
                    let text = format!("managed, link {}", link(eni).unwrap_or_default());
                    (Weight::Info, EventKind::Managed, text)
                }
                (EniState::Pending | EniState::Held(_) | EniState::NoLink, true) => continue,
            };
            let reason = (!said.is_empty()).then_some(said);
            let line = Line { reason, text: format!("{name}: {text}{remark}"), ..about(eni) };
            self.chronicle.tell(now, weight, kind, line);
        }
    }

    /// Says who undoes what, each within the hour once.
    fn fights(&mut self, now: Instant, report: &Report, name_of: &dyn Fn(LinkIndex) -> String) {
        self.fights.retain(|_, said| now - *said < REPEAT);
        for (eni, waiting) in report.waiting() {
            let Waiting::Fight { step, contender, .. } = waiting else { continue };
            let key = (eni.mac, step.command(name_of));
            if self.fights.contains_key(&key) {
                continue;
            }
            self.fights.insert(key, now);
            let said = fought_over(step, contender.as_ref(), name_of);
            let text = format!("{}: {said}; it is done ever more rarely", name(eni));
            let line = Line { reason: Some(said), text, ..about(eni) };
            self.chronicle.tell(now, Weight::Warning, EventKind::Fight, line);
        }
    }

    /// Says what a pass did, by the steps that changed something.
    pub fn steps(
        &self,
        now: Instant,
        report: &Report,
        done: &[&Planned],
        name_of: &dyn Fn(LinkIndex) -> String,
    ) {
        let mut groups: BTreeMap<Option<Mac>, Vec<&Step>> = BTreeMap::new();
        for planned in done {
            let of = |mac| report.enis.iter().find(|eni| Some(eni.mac) == mac);
            let eni = of(planned.mac);
            let command = || planned.step.command(name_of);
            let about = |eni: Option<&EniReport>, link| Line {
                link: Some(link),
                ..eni.map(self::about).unwrap_or_default()
            };
            let (kind, line) = match &planned.step {
                Step::Create(Object::Marking(marking)) | Step::Delete(Object::Marking(marking)) => {
                    let text = command();
                    let table = Some(marking.table.0);
                    let line = Line { table, text, ..about(eni, marking.link.clone()) };
                    (EventKind::Routing, line)
                }
                Step::Create(Object::Route(_) | Object::Rule(_))
                | Step::Delete(Object::Route(_) | Object::Rule(_))
                | Step::Replace { .. } => {
                    groups.entry(planned.mac).or_default().push(&planned.step);
                    continue;
                }
                Step::Create(Object::Address(address)) => {
                    let link = name_of(address.link);
                    let (address, reason) = (address.address, "metadata grants it".to_owned());
                    let text = format!("added {address} to {link}");
                    let (address, reason) = (Some(address), Some(reason));
                    let line = Line { address, reason, text, ..about(eni, link) };
                    (EventKind::AddressAdded, line)
                }
                Step::Delete(Object::Address(address)) => {
                    let link = name_of(address.link);
                    let on = |eni: &&EniReport| {
                        eni.link.as_ref().is_some_and(|(index, _)| *index == address.link)
                    };
                    let eni = report.enis.iter().find(on);
                    let address = address.address;
                    let reason = "metadata no longer grants it, or its ENI was released";
                    let text = format!("removed {address} from {link}");
                    let (address, reason) = (Some(address), Some(reason.to_owned()));
                    let line = Line { address, reason, text, ..about(eni, link) };
                    (EventKind::AddressRemoved, line)
                }
                Step::Set { link, .. } => {
                    let line = Line { text: command(), ..about(eni, name_of(*link)) };
                    (EventKind::Setting, line)
                }
            };
            self.chronicle.tell(now, Weight::Info, kind, line);
        }
        for (mac, steps) in groups {
            let eni = report.enis.iter().find(|eni| Some(eni.mac) == mac);
            let about = || eni.map(about).unwrap_or_default();
            let tell = |line| self.chronicle.tell(now, Weight::Info, EventKind::Routing, line);
            if steps.len() <= ALONE {
                for step in steps {
                    tell(Line { text: step.command(name_of), ..about() });
                }
                continue;
            }
            let subject = eni.map_or_else(|| "leftovers".to_owned(), name);
            tell(Line { text: format!("{subject}: {}", counts(&steps)), ..about() });
        }
    }
}

/// Routes and rules, counted by what was done with them.
fn counts(steps: &[&Step]) -> String {
    let count = |wanted: &dyn Fn(&Step) -> bool| steps.iter().filter(|s| wanted(s)).count();
    let routes = count(&|step| matches!(step, Step::Create(Object::Route(_))));
    let rules = count(&|step| matches!(step, Step::Create(Object::Rule(_))));
    let replaced = count(&|step| matches!(step, Step::Replace { .. }));
    let removed = count(&|step| matches!(step, Step::Delete(_)));
    let counts = [
        (routes, "routes made"),
        (rules, "rules made"),
        (replaced, "routes replaced"),
        (removed, "routes and rules removed"),
    ];
    let counts = counts.iter().filter(|(count, _)| *count > 0);
    counts.map(|(n, what)| format!("{n} {what}")).collect::<Vec<_>>().join(", ")
}

/// What a line about an ENI names.
fn about(eni: &EniReport) -> Line {
    let table = eni.table.map(|table| table.0);
    Line { eni: Some(name(eni)), link: link(eni), table, ..Line::default() }
}

/// How an ENI is called: by its id where that is known.
#[must_use]
pub fn name(eni: &EniReport) -> String {
    eni.id.as_ref().map_or_else(|| eni.mac.to_string(), ToString::to_string)
}

fn link(eni: &EniReport) -> Option<String> {
    eni.link.as_ref().map(|(_, name)| name.clone())
}

/// Whether all that is special about an ENI passes by itself where nothing is wrong.
fn settles(eni: &EniReport) -> bool {
    let held = matches!(eni.state, EniState::Held(_));
    !held && eni.notices.is_empty() && eni.waiting.iter().all(Waiting::passes)
}

/// Whether what is waited for is that metadata can be read.
fn is_reading(waiting: &Waiting) -> bool {
    matches!(waiting, Waiting::Reading(_))
}

/// What is special about an ENI, in words; nothing when it is simply managed. That metadata cannot be
/// read at all is left out where it is said anyway.
fn standing(eni: &EniReport, unread: bool, name_of: &dyn Fn(LinkIndex) -> String) -> String {
    let mut words = Vec::new();
    if let EniState::Held(hold) = &eni.state {
        words.push(format!("left alone: {hold}"));
    }
    // A fight comes and goes with every truce: it is said by itself.
    let apart = |waiting: &&Waiting| {
        matches!(waiting, Waiting::Fight { .. }) || (unread && is_reading(waiting))
    };
    let waiting = eni.waiting.iter().filter(|waiting| !apart(waiting));
    words.extend(waiting.map(|waiting| {
        // What counts or runs down would be said anew with every reading.
        if matches!(waiting, Waiting::Removals(_)) {
            "removals wait for proof".to_owned()
        } else {
            waiting.to_string()
        }
    }));
    words.extend(eni.notices.iter().map(|notice| convert::notice(notice, name_of)));
    words.join("; ")
}
