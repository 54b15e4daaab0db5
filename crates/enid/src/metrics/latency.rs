//! How long it takes from an event until what follows from it is done.

use std::time::Duration;

use enid_core::report::{Report, Verdict, Waiting};
use enid_core::time::Instant;

/// What takes longer than this is told when it has, done or not: the next event must be measured, too.
const LONGEST: Duration = Duration::from_secs(60);

/// Measures from the first event that is not done with to the pass that is done with it.
#[derive(Debug, Default)]
pub(crate) struct Latency {
    since: Option<(Instant, &'static str)>,
    changed: bool,
}

impl Latency {
    /// There is a reason to look.
    pub(crate) fn noticed(&mut self, now: Instant, cause: &'static str) {
        self.since.get_or_insert((now, cause));
    }

    /// A pass has ended that took this many steps: what it measured, if that is over. Where nothing
    /// had to be done, nothing is told: most of what the kernel tells is of no concern.
    pub(crate) fn passed(
        &mut self,
        now: Instant,
        steps: u64,
        report: &Report,
    ) -> Option<(&'static str, Duration)> {
        self.changed |= steps > 0;
        let (since, cause) = self.since?;
        let took = now - since;
        if !settled(report) && took <= LONGEST {
            return None;
        }
        self.since = None;
        std::mem::take(&mut self.changed).then_some((cause, took))
    }
}

/// Whether nothing is left to do that is enid's to do soon: that a removal takes time is the wish, and
/// what only others can end would hold up the measure for ever.
fn settled(report: &Report) -> bool {
    let settled = |waiting: &Waiting| match waiting {
        Waiting::Removals(_)
        | Waiting::Reading(_)
        | Waiting::Incomplete(_)
        | Waiting::Unlisted
        | Waiting::PrimaryAddress(_)
        | Waiting::Fight { .. } => true,
        Waiting::FirstReading
        | Waiting::Keys(_)
        | Waiting::DeviceNumber
        | Waiting::NotListed { .. }
        | Waiting::Udev { .. } => false,
    };
    report.verdict != Verdict::NotYet && report.waiting().all(|(_, waiting)| settled(waiting))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant(Duration::from_millis(ms))
    }

    fn report(verdict: Verdict) -> Report {
        Report { verdict, enis: Vec::new() }
    }

    #[test]
    fn it_lasts_from_the_first_event_to_the_pass_that_ends_it() {
        let mut latency = Latency::default();
        latency.noticed(at(100), "kernel");
        latency.noticed(at(105), "metadata");
        assert_eq!(latency.passed(at(110), 2, &report(Verdict::NotYet)), None);
        let told = latency.passed(at(130), 0, &report(Verdict::Converged));
        assert_eq!(told, Some(("kernel", Duration::from_millis(30))));
        assert_eq!(latency.passed(at(150), 1, &report(Verdict::Converged)), None);
    }

    #[test]
    fn an_event_of_no_concern_is_not_told_and_one_that_never_ends_is() {
        let mut latency = Latency::default();
        latency.noticed(at(0), "kernel");
        assert_eq!(latency.passed(at(5), 0, &report(Verdict::Converged)), None);
        latency.noticed(at(1000), "kernel");
        assert_eq!(latency.passed(at(2000), 3, &report(Verdict::NotYet)), None);
        let told = latency.passed(at(62_000), 0, &report(Verdict::NotYet));
        assert_eq!(told, Some(("kernel", Duration::from_secs(61))));
    }
}
