//! When to look and what to ask metadata, and when.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::config::Config;
use crate::eni::EXPECTED;
use crate::metadata::facts::{EniFacts, Metadata};
use crate::metadata::{Ask, Depth};
use crate::object::Mac;
use crate::time::Instant;

/// Kernel events settle this long before a pass …
const QUIET: Duration = Duration::from_millis(5);
/// … but never hold one up longer than this.
const CEILING: Duration = Duration::from_millis(50);
/// After a pass, events wait for this many times what it was on a CPU: others get a turn first.
const REST: u32 = 3;
/// So many bursts in a row that do not settle are a storm.
const STORM: u32 = 2;
/// When the next pass is further away than this, hearing of more events serves nobody.
const DEAF: Duration = Duration::from_millis(10);
/// In the long run, passes that events ask for take one part in so many of a CPU's time …
const SHARE: u32 = 40;
/// … after this much at once.
const SPREE: Duration = Duration::from_millis(250);
/// The first and the longest pause between readings of an ENI that is not complete.
const CHASE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How long a link that is not expected to be an ENI is asked for: its first readings are enough.
const UNEXPECTED: Duration = Duration::from_millis(200);
/// How long a link that metadata does not list is asked for by its MAC address.
const DIRECT_LIMIT: Duration = Duration::from_secs(10);
/// How many such links at once: a host may have thousands of container links.
const DIRECT: usize = 8;
/// How often what hardly ever changes is read.
const CONSTANTS: Duration = Duration::from_secs(600);
/// How often it is read while some of it could not be: nothing is removed meanwhile.
const UNREAD: Duration = Duration::from_secs(30);
/// `network-card` may appear this long after an attach.
const CARD: Duration = Duration::from_secs(30);
/// Polling stays under this many requests a second.
const RATE: u32 = 10;
/// The first and the longest pause before a pass that failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// Lets a burst of events settle without letting it starve anybody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Debounce {
    burst: Option<(Instant, Instant)>,
    rested: Instant,
    /// When the last pass ended.
    passed: Instant,
    /// How many bursts in a row did not settle.
    endless: u32,
    /// Time on a CPU that passes took, less their share of the time since, at that time.
    spent: (Duration, Instant),
}

impl Debounce {
    /// Notes an event.
    pub fn event(&mut self, now: Instant) {
        if self.burst.is_none() && now - self.passed > CEILING {
            self.endless = 0;
        }
        self.burst = Some((self.burst.map_or(now, |(first, _)| first), now));
    }

    /// Notes that a pass has ended and for how long it was on a CPU. Where it took much longer, on a
    /// busy machine, others have had their turn.
    pub fn rest(&mut self, now: Instant, cpu: Duration) {
        self.passed = now;
        let (spent, at) = self.spent;
        let spent = spent.saturating_sub((now - at) / SHARE) + cpu;
        self.spent = (spent, now);
        // Whoever keeps changing the kernel must not keep us busy with it.
        let over = spent.saturating_sub(SPREE);
        self.rested = now + (cpu * REST).max(over * SHARE);
    }

    /// Whether no pass comes soon that events ask for: once there is one, hearing of more of them
    /// serves nobody.
    #[must_use]
    pub fn rests(&self, now: Instant) -> bool {
        self.storms() || self.rested - now > DEAF
    }

    /// Whether somebody changes things all the time. Waiting for that to settle costs more than the
    /// passes.
    fn storms(&self) -> bool {
        self.endless >= STORM
    }

    /// When the burst has settled, or has lasted too long, and the last pass is rested; none without
    /// a burst.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let (first, last) = self.burst?;
        let settled =
            if self.storms() { first + CEILING * 2 } else { (last + QUIET).min(first + CEILING) };
        Some(settled.max(self.rested))
    }

    /// Forgets the burst, because a pass is about to look.
    pub fn clear(&mut self) {
        if let Some((first, last)) = self.burst.take() {
            let settled = last + QUIET < first + CEILING;
            // In a storm only its first event is heard.
            if !self.storms() {
                self.endless = if settled { 0 } else { self.endless + 1 };
            }
        }
    }
}

/// Spaces out attempts at what keeps failing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Retry {
    failures: u32,
    due: Option<Instant>,
}

impl Retry {
    /// Notes how a pass ended.
    pub fn passed(&mut self, now: Instant, well: bool) {
        if well {
            *self = Self::default();
            return;
        }
        let pause = RETRY.0 * 2_u32.saturating_pow(self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.due = Some(now + pause.min(RETRY.1));
    }

    /// When to try again; none when all is well.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.due
    }
}

/// What the cadence depends on, apart from what metadata said.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// MAC addresses of links that may be ENIs.
    pub links: &'a BTreeSet<Mac>,
    /// Those of them that are expected to be ENIs.
    pub expected: &'a BTreeSet<Mac>,
    /// ENIs that metadata has not described well enough to configure them.
    pub incomplete: &'a BTreeSet<Mac>,
    /// ENIs whose removals wait for proof.
    pub unproven: &'a BTreeSet<Mac>,
}

/// What is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// Ask this now.
    Now(Ask),
    /// Nothing before this time.
    At(Instant),
}

/// The cadence of metadata requests.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    /// When each link's MAC address was first seen.
    first: BTreeMap<Mac, Instant>,
    chase_at: Instant,
    chase_pause: Duration,
    lists_at: Instant,
    top_at: Instant,
    asked_top: bool,
    full: BTreeMap<Mac, Instant>,
    refresh: bool,
    not_before: Instant,
}

impl Pace {
    /// Poll now, whatever the cadence says.
    pub fn refresh(&mut self) {
        self.refresh = true;
    }

    /// Metadata failed as a whole: leave it alone for a while.
    pub fn back_off(&mut self, until: Instant) {
        self.not_before = until;
    }

    /// Takes in the links of a snapshot; a new one is asked for at once.
    pub fn look(&mut self, now: Instant, links: &BTreeSet<Mac>) {
        self.first.retain(|mac, _| links.contains(mac));
        self.full.retain(|mac, _| links.contains(mac));
        for mac in links {
            self.first.entry(*mac).or_insert_with(|| {
                self.chase_at = now;
                self.chase_pause = CHASE.0;
                now
            });
        }
    }

    /// The time between two readings of the same ENI's lists.
    #[must_use]
    pub fn interval(config: &Config, metadata: &Metadata, links: &BTreeSet<Mac>) -> Duration {
        let polled = metadata.enis.iter().filter(|(mac, _)| links.contains(mac));
        let requests: usize = polled.map(|(_, eni)| eni.requests()).sum();
        let stretched = Duration::from_secs(1) * u32::try_from(requests).unwrap_or(u32::MAX) / RATE;
        config.poll_interval.max(stretched)
    }

    /// What to ask now, or when to come back.
    #[must_use]
    pub fn due(&self, now: Instant, metadata: &Metadata, scene: &Scene<'_>) -> Due {
        let known: BTreeSet<Mac> =
            metadata.enis.keys().filter(|mac| scene.links.contains(mac)).copied().collect();
        let mut ask = Ask::default();
        if self.refresh {
            ask.top = true;
            ask.enis.extend(known.iter().map(|mac| (*mac, Depth::Full)));
            ask.enis.extend(self.direct(now, metadata, scene).map(|mac| (mac, Depth::Full)));
            return Due::Now(ask);
        }
        if now < self.not_before {
            return Due::At(self.not_before);
        }
        let chased = self.chased(now, metadata, scene);
        if !chased.is_empty() && self.chase_at <= now {
            ask.top = true;
            let known = chased.iter().filter(|mac| known.contains(mac)).copied();
            ask.enis.extend(known.map(|mac| (mac, Depth::Full)));
            ask.enis.extend(self.direct(now, metadata, scene).map(|mac| (mac, Depth::Full)));
        }
        if self.lists_at <= now {
            for mac in &known {
                let full = self.wants_full(now, *mac, metadata, scene);
                let depth = if full { Depth::Full } else { Depth::Lists };
                let entry = ask.enis.entry(*mac).or_insert(depth);
                *entry = depth.max(*entry);
            }
            // It came into the list when its link was no longer new.
            let unread = metadata.listed.intersection(scene.links);
            let unread = unread.filter(|mac| !known.contains(mac));
            ask.enis.extend(unread.map(|mac| (*mac, Depth::Full)));
            ask.top |= !self.asked_top
                || now - self.top_at >= CONSTANTS
                || metadata.top_read.is_none()
                || scene.unproven.iter().chain(scene.incomplete).any(|mac| known.contains(mac));
        }
        if ask.top || !ask.enis.is_empty() {
            return Due::Now(ask);
        }
        let chase = (!chased.is_empty()).then_some(self.chase_at);
        let lists = if self.lists_at <= now { now + CHASE.1 } else { self.lists_at };
        Due::At(chase.map_or(lists, |chase| chase.min(lists)))
    }

    /// Takes in that an ask was carried out.
    pub fn polled(&mut self, now: Instant, ask: &Ask, interval: Duration) {
        self.refresh = false;
        if self.chase_at <= now {
            self.chase_at = now + self.chase_pause;
            self.chase_pause = (self.chase_pause * 2).min(CHASE.1);
        }
        if self.lists_at <= now {
            self.lists_at = now + interval;
        }
        if ask.top {
            self.top_at = now;
            self.asked_top = true;
        }
        let full = ask.enis.iter().filter(|(_, depth)| **depth == Depth::Full);
        self.full.extend(full.map(|(mac, _)| (*mac, now)));
    }

    fn wants_full(&self, now: Instant, mac: Mac, metadata: &Metadata, scene: &Scene<'_>) -> bool {
        let unread = metadata.enis.get(&mac).is_some_and(EniFacts::lacks_constants);
        let limit = if unread { UNREAD } else { CONSTANTS };
        let old = self.full.get(&mac).is_none_or(|read| now - *read >= limit);
        let card = metadata.enis.get(&mac).is_some_and(|eni| {
            eni.keys.card.is_none() && now - eni.first_read < CARD && metadata.cards
        });
        old || card || scene.unproven.contains(&mac) || scene.incomplete.contains(&mac)
    }

    /// Links that are not described yet and are new enough to be asked about at a quick pace.
    fn chased(&self, now: Instant, metadata: &Metadata, scene: &Scene<'_>) -> BTreeSet<Mac> {
        self.first
            .iter()
            .filter(|(mac, first)| {
                let known = metadata.enis.contains_key(mac);
                let described = known && !scene.incomplete.contains(mac);
                let listed = known || metadata.listed.contains(mac);
                let expected = listed || scene.expected.contains(mac);
                let limit = if expected { EXPECTED } else { UNEXPECTED };
                !described && now - **first < limit
            })
            .map(|(mac, _)| *mac)
            .collect()
    }

    /// Links that metadata has not listed yet; asking for them by name saves a round trip.
    fn direct<'a>(
        &'a self,
        now: Instant,
        metadata: &'a Metadata,
        scene: &'a Scene<'_>,
    ) -> impl Iterator<Item = Mac> + 'a {
        let new = move |mac: &Mac| {
            let first = self.first.get(mac).copied().unwrap_or(now);
            !metadata.enis.contains_key(mac) && now - first < DIRECT_LIMIT
        };
        let listed = metadata.listed.iter().filter(|mac| scene.links.contains(mac));
        let unlisted = scene.links.iter().filter(move |mac| new(mac)).take(DIRECT);
        listed.filter(|mac| !metadata.enis.contains_key(mac)).chain(unlisted).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant(Duration::from_millis(millis))
    }

    #[test]
    fn an_endless_burst_cannot_starve_a_pass() {
        let mut debounce = Debounce::default();
        for n in 0..100 {
            debounce.event(at(1000 + n));
        }
        assert_eq!(debounce.due(), Some(at(1050)));
        debounce.clear();
        debounce.event(at(2000));
        assert_eq!(debounce.due(), Some(at(2005)));
    }

    #[test]
    fn a_pass_that_cost_much_leaves_others_a_turn_before_the_next_one() {
        let mut debounce = Debounce::default();
        debounce.rest(at(1000), Duration::from_millis(20));
        assert_eq!(debounce.due(), None);
        debounce.event(at(1010));
        assert_eq!(debounce.due(), Some(at(1060)));
        debounce.clear();
        debounce.event(at(1100));
        assert_eq!(debounce.due(), Some(at(1105)));
    }

    #[test]
    fn an_endless_storm_of_events_costs_a_small_share_of_a_cpu() {
        for pass in [1, 10, 100].map(Duration::from_millis) {
            let (mut debounce, mut now, mut cost) = (Debounce::default(), at(0), Duration::ZERO);
            let mut heard = 0;
            while now < at(60_000) {
                while debounce.due().is_none_or(|due| due > now) {
                    if debounce.burst.is_none() || !debounce.rests(now) {
                        debounce.event(now);
                        heard += 1;
                    }
                    now = now + Duration::from_millis(1);
                }
                debounce.clear();
                debounce.rest(now + pass, pass);
                (now, cost) = (now + pass, cost + pass);
            }
            assert!(cost < Duration::from_millis(2600), "{cost:?}");
            assert!(heard < 800, "{heard}");
        }
        let mut debounce = Debounce { endless: STORM, ..Debounce::default() };
        // After a while without, the first event is answered at once.
        debounce.event(at(120_000));
        assert_eq!(debounce.due(), Some(at(120_005)));
        assert!(!debounce.rests(at(120_000)));
    }

    #[test]
    fn failures_are_retried_ever_more_rarely_and_success_forgets_them() {
        let mut retry = Retry::default();
        retry.passed(at(0), false);
        assert_eq!(retry.due(), Some(at(100)));
        for _ in 0..20 {
            retry.passed(at(0), false);
        }
        assert_eq!(retry.due(), Some(at(30_000)));
        retry.passed(at(0), true);
        assert_eq!(retry.due(), None);
    }

    fn mac(last: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, last])
    }

    #[test]
    fn a_new_link_is_asked_for_at_once_and_then_ever_more_rarely_for_three_minutes() {
        let mut pace = Pace::default();
        let metadata = Metadata::default();
        let links = BTreeSet::from([mac(1)]);
        let none = BTreeSet::new();
        let scene = Scene { links: &links, expected: &links, incomplete: &none, unproven: &none };
        pace.look(at(0), &links);
        let mut now = at(0);
        let mut asked = Vec::new();
        while now < at(400_000) {
            match pace.due(now, &metadata, &scene) {
                Due::Now(ask) => {
                    assert!(ask.top);
                    asked.push(now);
                    pace.polled(now, &ask, Duration::from_secs(600));
                }
                Due::At(then) => {
                    assert!(then > now, "the cadence must not spin");
                    now = then;
                }
            }
        }
        assert_eq!(asked[..5], [at(0), at(50), at(150), at(350), at(750)]);
        assert!(asked.windows(2).all(|pair| pair[1] - pair[0] <= Duration::from_secs(600)));
        assert!(asked.len() < 110, "{}", asked.len());
    }
}
