//! What happened: said to the journal and remembered for `enictl events`, in one place, so that the
//! two never differ.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use enid_control::events::{Event, EventKind, Events};
use enid_core::time::Instant;
use tokio::sync::watch;

/// So many events are remembered; the journal has the older ones.
const REMEMBERED: usize = 1000;

/// How much somebody who only reads along should mind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weight {
    Info,
    Warning,
    Error,
}

/// A line on its way: what it is about, as far as it is about anything.
#[derive(Debug, Default)]
pub(crate) struct Line {
    pub(crate) eni: Option<String>,
    pub(crate) link: Option<String>,
    pub(crate) address: Option<IpAddr>,
    pub(crate) table: Option<u32>,
    pub(crate) reason: Option<String>,
    pub(crate) text: String,
}

/// The pass in which things happen.
#[derive(Debug, Clone)]
struct Pass {
    number: u64,
    cause: &'static str,
    started: Instant,
}

/// What is remembered of what happened, shared with those who follow it.
#[derive(Debug, Clone)]
pub struct Chronicle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    remembered: Mutex<Remembered>,
    /// The number of the last event.
    last: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Remembered {
    events: VecDeque<Event>,
    passes: u64,
    pass: Option<Pass>,
}

impl Default for Chronicle {
    fn default() -> Self {
        let remembered = Mutex::new(Remembered::default());
        Self { shared: Arc::new(Shared { remembered, last: watch::Sender::new(0) }) }
    }
}

impl Chronicle {
    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.shared.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pass begins: what happens until [`Chronicle::passed`] happens in it.
    pub(crate) fn pass(&self, cause: &'static str, started: Instant) {
        let mut remembered = self.remembered();
        remembered.passes += 1;
        remembered.pass = Some(Pass { number: remembered.passes, cause, started });
    }

    /// The pass has ended.
    pub(crate) fn passed(&self) {
        self.remembered().pass = None;
    }

    /// Says to the journal that something happened at `now`, and remembers it.
    pub(crate) fn tell(&self, now: Instant, weight: Weight, kind: EventKind, line: Line) {
        let mut remembered = self.remembered();
        let Line { eni, link, address, table, reason, text } = line;
        let number = self.shared.last.borrow().saturating_add(1);
        let pass = remembered.pass.clone();
        let took = pass.as_ref().map(|pass| (now - pass.started).as_micros());
        let event = Event {
            number,
            at: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            kind,
            text,
            eni,
            link,
            address,
            table,
            reason,
            pass: pass.as_ref().map(|pass| pass.number),
            cause: pass.map(|pass| pass.cause.to_owned()),
            duration_us: took.map(|took| u64::try_from(took).unwrap_or(u64::MAX)),
        };
        log(weight, &event);
        if remembered.events.len() == REMEMBERED {
            remembered.events.pop_front();
        }
        remembered.events.push_back(event);
        drop(remembered);
        self.shared.last.send_replace(number);
    }

    /// What is remembered of the events after this number.
    pub(crate) fn after(&self, number: u64) -> Events {
        let remembered = self.remembered();
        let events: Vec<Event> =
            remembered.events.iter().filter(|event| event.number > number).cloned().collect();
        let oldest = remembered.events.front().map_or(1, |event| event.number);
        Events::new(events, oldest.saturating_sub(number.saturating_add(1)))
    }

    /// Follows the numbers of the last event.
    pub(crate) fn follow(&self) -> watch::Receiver<u64> {
        self.shared.last.subscribe()
    }
}

/// A line of the journal with the event's fields; those that it lacks are left out.
macro_rules! line {
    ($level:ident, $event:expr) => {{
        let event = $event;
        tracing::$level!(
            message_id = event.kind.message_id(),
            eni = event.eni,
            interface = event.link,
            address = event.address.map(tracing::field::display),
            table = event.table,
            reason = event.reason,
            pass = event.pass,
            cause = event.cause,
            duration_us = event.duration_us,
            "{}",
            event.text
        )
    }};
}

fn log(weight: Weight, event: &Event) {
    match weight {
        Weight::Info => line!(info, event),
        Weight::Warning => line!(warn, event),
        Weight::Error => line!(error, event),
    }
}

/// The fields that only the journal shows.
pub(crate) const FOR_MACHINES: [&str; 5] = ["message_id", "table", "pass", "cause", "duration_us"];

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn tell(chronicle: &Chronicle, text: &str) {
        let line = Line { text: text.to_owned(), ..Line::default() };
        chronicle.tell(Instant(Duration::from_secs(7)), Weight::Info, EventKind::Daemon, line);
    }

    #[test]
    fn the_oldest_are_forgotten_and_counted() {
        let chronicle = Chronicle::default();
        for n in 1..=1500 {
            tell(&chronicle, &n.to_string());
        }
        let all = chronicle.after(0);
        assert_eq!((all.events.len(), all.forgotten), (1000, 500));
        let some = chronicle.after(1498);
        let texts: Vec<&str> = some.events.iter().map(|event| &*event.text).collect();
        assert_eq!((texts, some.forgotten), (vec!["1499", "1500"], 0));
        assert_eq!(chronicle.after(1500).events, []);
    }

    #[test]
    fn what_happens_in_a_pass_says_so() {
        let chronicle = Chronicle::default();
        tell(&chronicle, "before");
        chronicle.pass("metadata", Instant(Duration::from_secs(5)));
        tell(&chronicle, "within");
        chronicle.passed();
        tell(&chronicle, "after");
        let events = chronicle.after(0).events;
        let passes: Vec<_> = events.iter().map(|event| event.pass).collect();
        assert_eq!(passes, [None, Some(1), None]);
        assert_eq!(events[1].cause.as_deref(), Some("metadata"));
        assert_eq!(events[1].duration_us, Some(2_000_000));
    }
}
