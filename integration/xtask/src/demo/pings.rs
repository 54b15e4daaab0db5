//! Pings from the internet to every public address, told step by step.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use vpc::{Bound, Netns, Pinger, Report};

/// Between two requests to the same address.
pub(super) const INTERVAL: Duration = Duration::from_millis(2);

/// A request without an answer after this long is lost.
const SETTLED: Duration = Duration::from_millis(110);

/// One address that is pinged all the time.
pub(super) struct Target {
    pub(super) public: Ipv4Addr,
    pinger: Pinger,
    /// Up to here requests were told.
    told: Instant,
}

/// What a step promises about an address.
#[derive(Clone, Copy)]
pub(super) enum Promise {
    /// Every request is answered.
    Answers,
    /// No request is answered.
    Silent,
    /// Nothing reaches it: it is nobody's, and is not told.
    Nobody,
    /// Answers begin, and none is missing after the first; requests count from that moment.
    Begins(Instant),
    /// Answers end.
    Ends,
    /// It answers in the end; requests are lost only within the time from that moment.
    Heals(Instant, Duration),
}

/// What became of a step's requests to one address.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) answered: usize,
    pub(super) lost: usize,
}

/// A tally, and whether it is what was promised.
pub(super) struct Told {
    pub(super) public: Ipv4Addr,
    pub(super) tally: Tally,
    pub(super) note: &'static str,
    pub(super) kept: bool,
}

impl Target {
    pub(super) fn start(from: &Netns, public: Ipv4Addr) -> anyhow::Result<Target> {
        let pinger = Pinger::start(from, public.into(), &Bound::No, INTERVAL)?;
        Ok(Target { public, pinger, told: Instant::now() })
    }

    /// When the first answer to a request sent since `start` arrived, if one did.
    pub(super) fn answer_since(&self, start: Instant) -> Option<Instant> {
        self.since(start).first_answer
    }

    fn since(&self, start: Instant) -> Report {
        self.pinger.between(start, Instant::now())
    }

    /// Tells of the requests from the last time on and before `end`, which is long enough ago.
    fn tell(&mut self, promise: Promise, end: Instant) -> Option<Told> {
        let start = std::mem::replace(&mut self.told, end);
        let between = |start| self.pinger.between(start, end);
        let all = between(start);
        let (report, note, kept) = match promise {
            Promise::Nobody => return None,
            Promise::Answers => (all, "", all.answered > 0 && all.lost == 0),
            Promise::Silent => (all, "", all.answered == 0 && all.lost > 0),
            Promise::Ends => (all, "after it went", true),
            Promise::Begins(moment) => {
                let report = between(moment);
                let later = report.first_answer.map(between);
                let kept = later.is_some_and(|later| later.answered > 0 && later.lost == 0);
                (report, "before its first answer", kept)
            }
            Promise::Heals(moment, within) => {
                let (before, later) =
                    (self.pinger.between(start, moment), between(moment + within));
                let kept = before.lost == 0 && later.answered > 0 && later.lost == 0;
                (all, "until it was back", kept)
            }
        };
        let tally = Tally { answered: report.answered, lost: report.lost };
        let note = if tally.lost > 0 { note } else { "" };
        Some(Told { public: self.public, tally, note, kept })
    }
}

/// Waits for answers that are under way, and tells of all targets what became of the step.
pub(super) fn tell(targets: &mut [Target], promises: &[Promise]) -> Vec<Option<Told>> {
    let end = Instant::now();
    std::thread::sleep(SETTLED);
    targets.iter_mut().zip(promises).map(|(target, promise)| target.tell(*promise, end)).collect()
}
