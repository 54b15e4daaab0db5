//! How often each kind of event and each situation worth meeting occurred.

use std::collections::BTreeMap;
use std::fmt;

/// Figures of one or many schedules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Schedules played.
    pub schedules: u64,
    /// Events of the scripts.
    pub events: u64,
    /// Passes.
    pub passes: u64,
    /// Steps taken.
    pub steps: u64,
    /// Polls of metadata.
    pub polls: u64,
    kinds: BTreeMap<&'static str, u64>,
    situations: BTreeMap<&'static str, u64>,
}

impl Counts {
    /// Counts an event of a kind.
    pub fn event(&mut self, kind: &'static str) {
        self.events += 1;
        *self.kinds.entry(kind).or_default() += 1;
    }

    /// Counts a situation.
    pub fn situation(&mut self, what: &'static str) {
        *self.situations.entry(what).or_default() += 1;
    }

    /// Counts a situation if it is one.
    pub fn situation_if(&mut self, occurs: bool, what: &'static str) {
        if occurs {
            self.situation(what);
        }
    }

    /// How often a kind of event or a situation occurred.
    #[must_use]
    pub fn of(&self, what: &str) -> u64 {
        let of = |counts: &BTreeMap<&'static str, u64>| counts.get(what).copied();
        of(&self.situations).or_else(|| of(&self.kinds)).unwrap_or_default()
    }

    /// Adds what was counted elsewhere.
    pub fn add(&mut self, other: &Self) {
        self.schedules += other.schedules;
        self.events += other.events;
        self.passes += other.passes;
        self.steps += other.steps;
        self.polls += other.polls;
        for (kind, count) in &other.kinds {
            *self.kinds.entry(kind).or_default() += count;
        }
        for (what, count) in &other.situations {
            *self.situations.entry(what).or_default() += count;
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { schedules, events, passes, steps, polls, .. } = self;
        writeln!(
            f,
            "{schedules} schedules, {events} events, {polls} polls, {passes} passes, {steps} steps"
        )?;
        for (title, counts) in [("events", &self.kinds), ("situations", &self.situations)] {
            writeln!(f, "{title}")?;
            for (what, count) in counts {
                writeln!(f, "  {count:>10}  {what}")?;
            }
        }
        Ok(())
    }
}
