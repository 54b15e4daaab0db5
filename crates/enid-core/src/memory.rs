//! What passes remember of each other; it starts empty after a restart, which only makes enid more
//! patient.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::object::{LinkIndex, Mac};
use crate::plan::Step;
use crate::report::Mass;
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
    /// The mass removals that began since, by ENI.
    pub mass: BTreeMap<Mac, Mass>,
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
    contender: Option<Contender>,
}

/// Who undoes what enid does, as far as that can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contender {
    /// The process whose socket the kernel named.
    Process {
        /// Its number.
        id: u32,
        /// Its name; none where it had ended before it could be asked for.
        name: Option<String>,
    },
    /// A program that says that it manages the link.
    Manager(&'static str),
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { id, name: Some(name) } => write!(f, "{name} (process {id})"),
            Self::Process { id, name: None } => write!(f, "process {id}, which has ended,"),
            Self::Manager(name) => write!(f, "{name}, which manages this link,"),
        }
    }
}

impl Fights {
    /// Notes that a step was taken now; whether it is fought over.
    pub fn done(&mut self, now: Instant, step: &Step) -> bool {
        // Not for each of the thousands of steps that one pass may take.
        if now - self.swept >= SWEEP {
            self.swept = now;
            self.done.retain(|_, fight| {
                fight.times.back().is_some_and(|last| now - *last <= FIGHT_WINDOW * 3)
            });
        }
        let Some(effect) = step.effect() else { return false };
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
        fight.until.is_some_and(|until| until > now)
    }

    /// Notes who undoes a step that is fought over. A name is not forgotten for a number alone.
    pub fn blame(&mut self, step: &Step, contender: Contender) {
        let fight = step.effect().and_then(|effect| self.done.get_mut(&effect));
        let Some(fight) = fight else { return };
        let named = |contender: &Contender| match contender {
            Contender::Process { name, .. } => name.is_some(),
            Contender::Manager(_) => true,
        };
        if named(&contender) || !fight.contender.as_ref().is_some_and(named) {
            fight.contender = Some(contender);
        }
    }

    /// Who undoes a step, where that is known.
    #[must_use]
    pub fn contender(&self, step: &Step) -> Option<&Contender> {
        self.done.get(&step.effect()?)?.contender.as_ref()
    }

    /// Forgets the fights over all other steps.
    pub(crate) fn retain(&mut self, keep: impl Fn(&Step) -> bool) {
        self.done.retain(|step, _| keep(step));
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
    use crate::object::{Address, Object, Setting};

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

    #[test]
    fn a_contenders_name_outlives_processes_that_had_ended_before_they_were_asked_for() {
        let step = Step::Set { link: LinkIndex(2), from: None, to: Some(Setting::Mtu(1500)) };
        let process =
            |id, name: Option<&str>| Contender::Process { id, name: name.map(str::to_owned) };
        let mut fights = Fights::default();
        fights.done(Instant::default(), &step);
        for (told, kept) in [(None, None), (Some("ip"), Some("ip")), (None, Some("ip"))] {
            fights.blame(&step, process(7, told));
            assert_eq!(fights.contender(&step), Some(&process(7, kept)));
        }
    }
}
