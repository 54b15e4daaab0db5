//! What passes remember of each other; it starts empty after a restart, which only makes enid more
//! patient.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::object::{LinkIndex, Mac};
use crate::plan::Step;
use crate::time::Instant;

/// Taking the same step more often than this within [`FIGHT_WINDOW`] is a fight.
const FIGHT_LIMIT: usize = 5;
const FIGHT_WINDOW: Duration = Duration::from_secs(60);
const LONGEST_TRUCE: Duration = Duration::from_secs(60);
/// How often old fights are forgotten.
const SWEEP: Duration = Duration::from_secs(1);

/// Between passes.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// The ENIs that had a link in the last pass.
    pub attached: BTreeSet<Mac>,
    /// When each link was first seen.
    pub links: BTreeMap<LinkIndex, Instant>,
    /// The secondary addresses and delegated prefixes that each ENI had when nothing was leaving.
    pub quiet: BTreeMap<Mac, BTreeSet<IpNet>>,
    /// Addresses that the operator wants dropped, and since when; whoever notes them forgets them.
    pub drops: BTreeMap<IpAddr, Instant>,
    /// What was done again and again.
    pub fights: Fights,
}

/// Notices what somebody else keeps undoing.
#[derive(Debug, Clone, Default)]
pub struct Fights {
    done: BTreeMap<Step, Fight>,
    /// When old fights were last forgotten.
    swept: Instant,
}

#[derive(Debug, Clone, Default)]
struct Fight {
    times: VecDeque<Instant>,
    truces: u32,
    until: Option<Instant>,
}

impl Fights {
    /// Notes that a step was taken now.
    pub fn done(&mut self, now: Instant, step: &Step) {
        let Some(effect) = step.effect() else { return };
        let fight = self.done.entry(effect).or_default();
        fight.times.push_back(now);
        while fight.times.front().is_some_and(|first| now - *first > FIGHT_WINDOW) {
            fight.times.pop_front();
        }
        if fight.times.len() > FIGHT_LIMIT {
            let truce = Duration::from_secs(1 << fight.truces.min(6)).min(LONGEST_TRUCE);
            fight.truces = fight.truces.saturating_add(1);
            fight.until = Some(now + truce);
        }
        // Not for each of the thousands of steps that one pass may take.
        if now - self.swept >= SWEEP {
            self.swept = now;
            self.done.retain(|_, fight| {
                fight.times.back().is_some_and(|last| now - *last <= FIGHT_WINDOW * 3)
            });
        }
    }

    /// Until when a step must not be taken again, if it is fought over.
    #[must_use]
    pub fn truce(&self, now: Instant, step: &Step) -> Option<Instant> {
        self.done.get(&step.effect()?).and_then(|fight| fight.until).filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Address, Object};

    #[test]
    fn an_object_made_six_times_in_a_minute_is_fought_over_and_others_are_not() {
        let object = |last| {
            Step::Create(Object::Address(Address {
                link: LinkIndex(2),
                address: IpAddr::from([10, 0, 0, last]),
                prefix_length: 32,
                prefix_route: false,
                preferred: true,
            }))
        };
        let mut fights = Fights::default();
        let at = |seconds| Instant(Duration::from_secs(seconds));
        for n in 0..5 {
            fights.done(at(n), &object(1));
            assert_eq!(fights.truce(at(n), &object(1)), None);
        }
        fights.done(at(5), &object(1));
        assert_eq!(fights.truce(at(5), &object(1)), Some(at(6)));
        assert_eq!(fights.truce(at(5), &object(2)), None);
        fights.done(at(7), &object(1));
        assert_eq!(fights.truce(at(7), &object(1)), Some(at(9)), "the truce grows");
        fights.done(at(200), &object(1));
        assert_eq!(fights.truce(at(200), &object(1)), None, "a quiet while ends the fight");
    }
}
