//! When a request may go out: budget, parallelism, retries, and the pause between failing polls.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use backon::ExponentialBuilder;
use enid_core::metadata::Failure;
use enid_core::time::Instant;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Tells the time within one poll: the caller's at its start, and what has passed since.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
    started: tokio::time::Instant,
}

impl Clock {
    pub(crate) fn starting_at(start: Instant) -> Self {
        Self { start, started: tokio::time::Instant::now() }
    }

    pub(crate) fn now(&self) -> Instant {
        self.start + self.started.elapsed()
    }
}

/// A token bucket, kept as the time at which it will be full again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bucket {
    interval: Duration,
    capacity: Duration,
    full_at: Instant,
}

impl Bucket {
    /// Full at first; holds `burst` and gains `rate` a second.
    pub(crate) fn new(burst: u32, rate: u32) -> Self {
        let interval = Duration::from_secs(1) / rate.max(1);
        Self { interval, capacity: interval * burst.max(1), full_at: Instant::default() }
    }

    /// Takes one and says how long to wait before using it.
    pub(crate) fn take(&mut self, now: Instant) -> Duration {
        self.full_at = self.full_at.max(now) + self.interval;
        (self.full_at - now).saturating_sub(self.capacity)
    }
}

/// Lets requests out: so many at once, so many a second.
#[derive(Debug)]
pub(crate) struct Gate {
    lanes: Semaphore,
    bucket: Mutex<Bucket>,
}

impl Gate {
    pub(crate) fn new(parallel: usize, burst: u32, rate: u32) -> Self {
        Self {
            lanes: Semaphore::new(parallel.max(1)),
            bucket: Mutex::new(Bucket::new(burst, rate)),
        }
    }

    /// One of the lanes, first come first served, so that no ENI can keep the others out.
    pub(crate) async fn lane(&self) -> Option<SemaphorePermit<'_>> {
        self.lanes.acquire().await.ok()
    }

    /// Waits until the budget has room for one more request.
    pub(crate) async fn budget(&self, clock: &Clock) {
        let wait = self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(clock.now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

/// The retries within one poll: two, after 50 to 100 ms and after 100 to 200 ms.
pub(crate) fn retries() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_factor(2.0)
        .with_max_times(2)
        .with_jitter()
}

/// Whether the same request may fare better a moment later.
pub(crate) const fn passing(failure: &Failure) -> bool {
    match failure {
        Failure::Timeout | Failure::Unreachable(_) => true,
        Failure::Status(status) => *status >= 500 || *status == 429,
        Failure::Unauthorized
        | Failure::Forbidden
        | Failure::TooLong
        | Failure::Malformed(_)
        | Failure::NoToken(_)
        | Failure::Lacks(_) => false,
    }
}

/// How long to leave the service alone after failing polls: exponential, with jitter.
#[derive(Debug, Clone)]
pub struct Backoff {
    random: fastrand::Rng,
    refused: bool,
    failures: u32,
}

impl Backoff {
    /// Where ordinary failures start and end.
    const FAILED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
    /// Somebody must act before a 403 goes away, so there is no hurry.
    const REFUSED: (Duration, Duration) = (Duration::from_mins(2), Duration::from_mins(10));

    /// Nothing has failed yet; the seed decides the jitter.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), refused: false, failures: 0 }
    }

    /// How long to wait after a poll that failed, or none after one that did not.
    ///
    /// Doubles from 1 s to 30 s, after a 403 from 2 min to 10 min; jitter takes up to half off.
    pub fn after(&mut self, failed: Option<&Failure>) -> Option<Duration> {
        let Some(failure) = failed else {
            self.failures = 0;
            return None;
        };
        let refused = *failure == Failure::Forbidden;
        if refused != self.refused {
            self.refused = refused;
            self.failures = 0;
        }
        let (first, last) = if refused { Self::REFUSED } else { Self::FAILED };
        let full = first.saturating_mul(1 << self.failures.min(16)).min(last);
        self.failures = self.failures.saturating_add(1);
        Some(full.mul_f64(1.0 - self.random.f64() / 2.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant(Duration::from_millis(millis))
    }

    #[test]
    fn the_bucket_lets_a_burst_out_and_then_holds_the_rate() {
        let mut bucket = Bucket::new(50, 50);
        let waits: Vec<_> = (0..100).map(|_| bucket.take(at(10_000))).collect();
        assert!(waits[..50].iter().all(Duration::is_zero));
        assert_eq!(waits[50], Duration::from_millis(20));
        assert_eq!(waits[99], Duration::from_secs(1));
    }

    #[test]
    fn the_bucket_fills_up_again_but_never_beyond_its_burst() {
        let mut bucket = Bucket::new(50, 50);
        for _ in 0..50 {
            bucket.take(at(10_000));
        }
        assert_eq!(bucket.take(at(10_020)), Duration::ZERO);
        assert_eq!(bucket.take(at(10_020)), Duration::from_millis(20));
        let waits: Vec<_> = (0..51).map(|_| bucket.take(at(900_000))).collect();
        assert!(waits[..50].iter().all(Duration::is_zero));
        assert_eq!(waits[50], Duration::from_millis(20));
    }

    #[test]
    fn the_pause_doubles_up_to_its_cap_and_ends_with_a_success() {
        let mut backoff = Backoff::new(7);
        for full in [1, 2, 4, 8, 16, 30, 30, 30] {
            let pause = backoff.after(Some(&Failure::Timeout)).unwrap();
            let full = Duration::from_secs(full);
            assert!(pause <= full && pause >= full / 2, "{pause:?} of {full:?}");
        }
        assert_eq!(backoff.after(None), None);
        assert!(backoff.after(Some(&Failure::Status(503))).unwrap() <= Duration::from_secs(1));
    }

    #[test]
    fn a_refusal_is_left_alone_for_minutes() {
        let mut backoff = Backoff::new(7);
        for _ in 0..9 {
            backoff.after(Some(&Failure::Timeout));
        }
        let pause = backoff.after(Some(&Failure::Forbidden)).unwrap();
        assert!(pause >= Duration::from_mins(1) && pause <= Duration::from_mins(2));
        for _ in 0..99 {
            let pause = backoff.after(Some(&Failure::Forbidden)).unwrap();
            assert!(pause <= Duration::from_mins(10));
        }
        assert!(backoff.after(Some(&Failure::Timeout)).unwrap() <= Duration::from_secs(1));
    }
}
