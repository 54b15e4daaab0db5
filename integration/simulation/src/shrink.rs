//! Makes a schedule that breaks a promise as short as it can be.

use std::time::Duration;

use crate::adversary::Schedule;
use crate::judge::Promise;
use crate::world::Product;

/// Attempts that are made at most.
const ATTEMPTS: usize = 4000;

/// The shortest schedule found that breaks the same promise.
#[must_use]
pub fn shrink(schedule: &Schedule, promise: Promise, product: Product) -> Schedule {
    let mut search = Search { best: schedule.clone(), promise, product, attempts: 0 };
    loop {
        let before = search.best.clone();
        search.drop_events();
        search.drop_words();
        search.drop_config();
        search.simplify_times();
        if search.best == before || search.attempts >= ATTEMPTS {
            return search.best;
        }
    }
}

struct Search {
    best: Schedule,
    promise: Promise,
    product: Product,
    attempts: usize,
}

impl Search {
    /// Keeps a candidate that still breaks the promise.
    fn offer(&mut self, candidate: Schedule) -> bool {
        if self.attempts >= ATTEMPTS || candidate == self.best {
            return false;
        }
        self.attempts += 1;
        let (verdict, _) = candidate.play().run(self.product);
        let breaks = verdict.is_err_and(|(_, broken)| broken.promise == self.promise);
        if breaks {
            self.best = candidate;
        }
        breaks
    }

    /// Ever smaller runs of events.
    fn drop_events(&mut self) {
        let mut size = self.best.script.len().div_ceil(2);
        while size > 0 {
            let mut from = 0;
            while from < self.best.script.len() {
                let mut candidate = self.best.clone();
                let to = (from + size).min(candidate.script.len());
                candidate.script.drain(from..to);
                if !self.offer(candidate) {
                    from += size;
                }
            }
            size /= 2;
        }
    }

    /// Addresses that metadata need not say.
    fn drop_words(&mut self) {
        for n in 0..self.best.script.len() {
            let words = self.best.script[n].1.split(' ').count();
            for word in (4..words).rev() {
                let mut candidate = self.best.clone();
                let event = &mut candidate.script[n].1;
                if !event.contains("local-ipv4s") && !event.contains("ipv6s") {
                    break;
                }
                let left: Vec<&str> = event.split(' ').collect();
                let left = left.iter().enumerate().filter(|(n, _)| *n != word);
                *event = left.map(|(_, word)| *word).collect::<Vec<_>>().join(" ");
                self.offer(candidate);
            }
        }
    }

    fn drop_config(&mut self) {
        for n in (0..self.best.config.len()).rev() {
            let mut candidate = self.best.clone();
            candidate.config.remove(n);
            self.offer(candidate);
        }
        for n in (0..self.best.kernel.len()).rev() {
            if self.best.kernel[n].starts_with("no ") {
                let mut candidate = self.best.clone();
                candidate.kernel.remove(n);
                self.offer(candidate);
            }
        }
    }

    /// Round times, and shorter pauses.
    fn simplify_times(&mut self) {
        let whole = |at: Duration| Duration::from_secs(at.as_secs());
        let mut candidate = self.best.clone();
        candidate.script.iter_mut().for_each(|(at, _)| *at = whole(*at));
        if !self.offer(candidate) {
            for n in 0..self.best.script.len() {
                let mut candidate = self.best.clone();
                candidate.script[n].0 = whole(candidate.script[n].0);
                if candidate.script.is_sorted_by_key(|(at, _)| *at) {
                    self.offer(candidate);
                }
            }
        }
        for n in 0..self.best.script.len() {
            let before = n.checked_sub(1).map_or(Duration::ZERO, |n| self.best.script[n].0);
            let gap = self.best.script[n].0.saturating_sub(before);
            for less in [gap, gap / 2, Duration::from_secs(gap.as_secs() % 5)] {
                let mut candidate = self.best.clone();
                candidate.script[n..].iter_mut().for_each(|(at, _)| *at -= less);
                if !less.is_zero() && self.offer(candidate) {
                    break;
                }
            }
        }
    }
}
