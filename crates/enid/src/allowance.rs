//! How often one and the same thing may be told: what changes its mind all the time fills no journal.

use std::time::Duration;

use enid_core::time::Instant;

/// Lines at once after a quiet time.
const BURST: u32 = 10;
/// The time in which one more may be said.
const EVERY: Duration = Duration::from_mins(1);

/// Lines that may still be said about one thing, kept as the time at which all may be said again.
#[derive(Debug, Default)]
pub(crate) struct Allowance {
    full_at: Instant,
}

/// Whether a line may be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// It may.
    Granted,
    /// It may, and is the last one for a while.
    Last,
    /// It has to wait; what is so when its time comes is said then.
    Refused,
}

impl Allowance {
    /// Asks for one line.
    pub(crate) fn ask(&mut self, now: Instant) -> Leave {
        let full_at = self.full_at.max(now) + EVERY;
        let spent = full_at - now;
        if spent > EVERY * BURST {
            return Leave::Refused;
        }
        self.full_at = full_at;
        if spent + EVERY > EVERY * BURST { Leave::Last } else { Leave::Granted }
    }
}

impl Leave {
    /// What to add to the line, so that a silence is not taken for peace.
    pub(crate) fn remark(self) -> &'static str {
        match self {
            Self::Granted | Self::Refused => "",
            Self::Last => "; this changes often and is said once a minute at most",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant(Duration::from_secs(seconds))
    }

    #[test]
    fn what_changes_all_the_time_is_said_ten_times_and_then_once_a_minute() {
        let mut allowance = Allowance::default();
        let said: Vec<u64> =
            (1000..1200).filter(|n| allowance.ask(at(*n)) != Leave::Refused).collect();
        assert_eq!(
            said,
            [1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009, 1060, 1120, 1180]
        );
    }

    #[test]
    fn the_last_line_for_a_while_says_so() {
        let mut allowance = Allowance::default();
        let leaves: Vec<Leave> = (0..11).map(|_| allowance.ask(at(1000))).collect();
        assert_eq!(leaves[..9], [Leave::Granted; 9]);
        assert_eq!(leaves[9..], [Leave::Last, Leave::Refused]);
        assert!(Leave::Last.remark().contains("once a minute"));
    }
}
