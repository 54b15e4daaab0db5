//! What readings have shown, run by run: the evidence for removals.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::object::Family;
use crate::time::Instant;

/// Runs kept; forgetting older ones only makes proofs take longer.
const RUNS: usize = 64;

/// Consecutive readings that showed the same.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Run<T> {
    shown: BTreeSet<T>,
    complete: bool,
    first: Instant,
    last: Instant,
    readings: u32,
}

/// The readings of one ENI, newest last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History<T> {
    runs: VecDeque<Run<T>>,
    /// When a run that is forgotten first showed what one that is not shows, too.
    before: BTreeMap<T, Instant>,
}

impl<T> Default for History<T> {
    fn default() -> Self {
        Self { runs: VecDeque::new(), before: BTreeMap::new() }
    }
}

/// Since when, and by how many complete readings, something has been lacking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Absence {
    /// Complete readings in a row that lacked it.
    pub readings: u32,
    /// The first and the last of them.
    pub span: Option<(Instant, Instant)>,
}

impl<T: Ord> History<T> {
    /// Notes a reading. One that is not complete proves no absence, but what it shows is there.
    pub fn record(&mut self, at: Instant, shown: BTreeSet<T>, complete: bool) {
        if let Some(run) = self.runs.back_mut()
            && run.complete == complete
            && run.shown == shown
        {
            run.last = at;
            run.readings = run.readings.saturating_add(1);
            return;
        }
        let oldest = (self.runs.len() == RUNS).then(|| self.runs.pop_front()).flatten();
        self.runs.push_back(Run { shown, complete, first: at, last: at, readings: 1 });
        if let Some(oldest) = oldest {
            for item in oldest.shown {
                self.before.entry(item).or_insert(oldest.first);
            }
            let runs = &self.runs;
            self.before.retain(|item, _| runs.iter().rev().any(|run| run.shown.contains(item)));
        }
    }

    /// The first and the last reading that showed an item, as far as they are remembered.
    #[must_use]
    pub fn shown(&self, item: &T) -> Option<(Instant, Instant)> {
        let mut runs = self.runs.iter().filter(|run| run.shown.contains(item));
        let oldest = runs.next()?;
        let first = self.before.get(item).copied().unwrap_or(oldest.first);
        Some((first, runs.next_back().unwrap_or(oldest).last))
    }

    /// How long an item has been lacking; nothing when the last reading that could tell shows it.
    #[must_use]
    pub fn absence(&self, item: &T) -> Absence {
        let mut absence = Absence::default();
        for run in self.runs.iter().rev() {
            if run.shown.contains(item) {
                break;
            }
            if run.complete {
                absence.readings = absence.readings.saturating_add(run.readings);
                let last = absence.span.map_or(run.last, |(_, last)| last);
                absence.span = Some((run.first, last));
            }
        }
        absence
    }

    /// Everything that a reading that is still remembered showed.
    #[must_use]
    pub fn items(&self) -> BTreeSet<&T> {
        self.runs.iter().flat_map(|run| &run.shown).collect()
    }
}

/// What is of one address family.
pub trait OfFamily {
    /// Which one.
    fn family(&self) -> Family;
}

impl OfFamily for IpAddr {
    fn family(&self) -> Family {
        Family::of(*self)
    }
}

impl OfFamily for IpNet {
    fn family(&self) -> Family {
        Family::of(self.addr())
    }
}

/// The readings of one ENI, each family by itself: what is told of one proves nothing of the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histories<T> {
    v4: History<T>,
    v6: History<T>,
}

impl<T> Default for Histories<T> {
    fn default() -> Self {
        Self { v4: History::default(), v6: History::default() }
    }
}

impl<T: Ord + OfFamily> Histories<T> {
    /// Notes a reading, which was complete or not for each family.
    pub fn record(&mut self, at: Instant, shown: BTreeSet<T>, complete: impl Fn(Family) -> bool) {
        let (v4, v6) = shown.into_iter().partition(|item| item.family() == Family::V4);
        self.v4.record(at, v4, complete(Family::V4));
        self.v6.record(at, v6, complete(Family::V6));
    }

    /// How long an item has been lacking; nothing when the last reading that could tell shows it.
    #[must_use]
    pub fn absence(&self, item: &T) -> Absence {
        match item.family() {
            Family::V4 => self.v4.absence(item),
            Family::V6 => self.v6.absence(item),
        }
    }

    /// The first and the last reading that showed an item, as far as they are remembered.
    #[must_use]
    pub fn shown(&self, item: &T) -> Option<(Instant, Instant)> {
        match item.family() {
            Family::V4 => self.v4.shown(item),
            Family::V6 => self.v6.shown(item),
        }
    }

    /// Everything that a reading that is still remembered showed.
    #[must_use]
    pub fn items(&self) -> BTreeSet<&T> {
        let mut items = self.v4.items();
        items.extend(self.v6.items());
        items
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> Instant {
        Instant(Duration::from_secs(seconds))
    }

    #[test]
    fn a_reading_that_shows_it_again_starts_the_count_anew() {
        let mut history = History::default();
        history.record(at(0), BTreeSet::from([1, 2]), true);
        history.record(at(5), BTreeSet::from([1]), true);
        history.record(at(10), BTreeSet::from([1]), true);
        assert_eq!(history.absence(&2), Absence { readings: 2, span: Some((at(5), at(10))) });
        history.record(at(15), BTreeSet::from([1, 2]), true);
        assert_eq!(history.absence(&2), Absence::default());
        history.record(at(20), BTreeSet::from([1]), true);
        assert_eq!(history.absence(&2).readings, 1);
    }

    #[test]
    fn an_incomplete_reading_proves_no_absence_but_shows_a_presence() {
        let mut history = History::default();
        history.record(at(0), BTreeSet::from([1]), true);
        history.record(at(5), BTreeSet::new(), true);
        history.record(at(10), BTreeSet::new(), false);
        assert_eq!(history.absence(&1).readings, 1);
        history.record(at(15), BTreeSet::from([1]), false);
        assert_eq!(history.absence(&1).readings, 0);
    }

    #[test]
    fn forgetting_old_runs_never_lengthens_an_absence() {
        let mut history = History::default();
        for n in 0..200 {
            history.record(at(n), BTreeSet::from([n]), true);
        }
        assert!(history.absence(&1_000).readings <= 64);
    }

    #[test]
    fn the_first_reading_that_showed_something_outlives_its_run() {
        let mut history = History::default();
        for n in 0..200 {
            history.record(at(n), BTreeSet::from([7, 1_000 + n]), true);
        }
        history.record(at(200), BTreeSet::new(), true);
        assert_eq!(history.shown(&7), Some((at(0), at(199))));
        assert_eq!(history.shown(&1_190), Some((at(190), at(190))));
        assert_eq!(history.shown(&1_000), None);
        assert!(history.before.len() <= 1, "it grows");
    }

    #[test]
    fn a_reading_that_tells_nothing_of_a_family_proves_no_absence_in_it() {
        let (v4, v6): (IpAddr, IpAddr) =
            ("10.0.0.5".parse().unwrap(), "2001:db8::5".parse().unwrap());
        let mut histories = Histories::default();
        for n in 0..4 {
            histories.record(at(n), BTreeSet::new(), |family| family == Family::V4);
        }
        assert_eq!(histories.absence(&v4).readings, 4);
        assert_eq!(histories.absence(&v6), Absence::default());
        histories.record(at(5), BTreeSet::from([v4, v6]), |_| true);
        assert_eq!(histories.items(), BTreeSet::from([&v4, &v6]));
        assert_eq!(histories.absence(&v4), Absence::default());
    }
}
