//! The only clock: time since boot, suspends included.

use std::time::Duration;

use enid_core::time::Instant;
use nix::time::{ClockId, clock_gettime};

/// Now.
#[must_use]
pub fn now() -> Instant {
    // The clock exists since Linux 2.6.39; without it every deadline is due, which only costs passes.
    Instant(clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from))
}

/// How long this thread has been on a CPU.
pub(crate) fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Sleeps until then; for ever without a time.
pub(crate) async fn sleep_until(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep(then - now()).await,
        None => std::future::pending().await,
    }
}
