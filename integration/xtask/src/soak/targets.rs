//! Addresses that are pinged all the time, and when silence is explained.
//!
//! An address is expected to answer from the moment it first did so steadily. Who is about to
//! disturb it says so before; from then on silence is explained until it answers steadily again.
//! Every request that was sent while an answer was expected and got none is a loss that nothing
//! explains, unless two hosts that know nothing of enid lost one to each other at that time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use vpc::{Bound, EniId, Instance, Pinger};

/// Between two requests to the same address.
const INTERVAL: Duration = Duration::from_millis(100);
/// A request that was sent this long ago without an answer looks lost.
const SUSPICIOUS: Duration = Duration::from_millis(700);
/// And is lost after this: on a busy machine the answer is noticed late.
const LOST: Duration = Duration::from_secs(4);
/// What is sent this shortly before a disturbance may already be hit by it.
const BEFORE: Duration = Duration::from_millis(500);
/// So long an address must answer until it is expected to.
const STEADY: Duration = Duration::from_millis(1200);
/// What else is lost this close to a loss says that the machine stalled.
const AROUND: Duration = Duration::from_secs(1);

/// Requests, and what became of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pings {
    pub(super) sent: usize,
    /// Of them, to addresses whose silence nothing explains.
    pub(super) strict: usize,
    /// Not answered while that was explained.
    pub(super) explained: usize,
    /// Not answered while the machine lost others, too.
    pub(super) stalled: usize,
    /// Not answered, and nothing explains it.
    pub(super) lost: usize,
}

/// An address that did not answer although nothing explains it.
pub(super) struct Silence {
    pub(super) address: IpAddr,
    pub(super) eni: EniId,
    /// When the first and the last of the requests was sent.
    pub(super) first: Instant,
    pub(super) last: Instant,
    pub(super) lost: usize,
    /// What the kernel looked like when it was first suspected.
    pub(super) scene: Option<String>,
}

/// A stretch of time whose requests are judged when their answers cannot come any more.
struct Window {
    from: Instant,
    to: Instant,
    expected: bool,
}

pub(super) struct Target {
    pub(super) address: IpAddr,
    pub(super) eni: EniId,
    pinger: Pinger,
    windows: Vec<Window>,
    /// Everything before this lies in a window.
    cursor: Instant,
    /// Why silence is explained; none while an answer is expected.
    excuse: Option<(Instant, &'static str)>,
    /// What must end before it can be expected to answer.
    ongoing: BTreeSet<&'static str>,
    scene: Option<String>,
    /// Nothing excuses it.
    strict: bool,
}

impl Target {
    fn start(host: &Instance, address: IpAddr, eni: EniId) -> anyhow::Result<Target> {
        let pinger = Pinger::start(host, address, &Bound::No, INTERVAL)?;
        let now = Instant::now();
        let excuse = Some((now, "new"));
        Ok(Target {
            address,
            eni,
            pinger,
            windows: Vec::new(),
            cursor: now,
            excuse,
            ongoing: BTreeSet::new(),
            scene: None,
            strict: false,
        })
    }

    /// Closes the window that is open now.
    fn cut(&mut self, now: Instant) {
        let expected = self.excuse.is_none();
        if now > self.cursor {
            self.windows.push(Window { from: self.cursor, to: now, expected });
            self.cursor = now;
        }
    }

    fn disturb(&mut self, now: Instant, why: &'static str) {
        if self.excuse.is_none() {
            let before = now.checked_sub(BEFORE).unwrap_or(now).max(self.cursor);
            self.cut(before);
        }
        self.excuse = Some((now, why));
    }

    /// Whether it has answered everything for a while, since it was disturbed.
    fn steady(&self, now: Instant) -> bool {
        let Some((since, _)) = self.excuse else { return true };
        let to = now.checked_sub(SUSPICIOUS).unwrap_or(now);
        let from = to.checked_sub(STEADY).unwrap_or(to);
        let report = self.pinger.between(from, to);
        from > since && report.answered >= 5 && report.answered == report.sent
    }

    /// Whether something that was sent a moment ago, and is expected to be answered, is not.
    fn suspicious(&self, now: Instant) -> bool {
        let to = now.checked_sub(SUSPICIOUS).unwrap_or(now);
        let from = to.checked_sub(STEADY).unwrap_or(to);
        let begun = self.windows.iter().rev().take_while(|window| window.expected).last();
        let begun = begun.map_or(self.cursor, |window| window.from);
        self.excuse.is_none() && from > begun && self.pinger.between(from, to).lost > 0
    }
}

/// All of them, and a host that knows nothing of enid, over both families.
pub(super) struct Targets {
    host: Instance,
    controls: Vec<Pinger>,
    pub(super) all: Vec<Target>,
    /// Not asked for any more, but not all of their requests are judged.
    leaving: Vec<Target>,
    pub(super) pings: Pings,
    /// What explained silence: how often, and the longest until the address answered steadily.
    pub(super) excuses: BTreeMap<&'static str, (u64, Duration)>,
}

impl Targets {
    /// `host` pings; `other` is who else it pings.
    pub(super) fn start(host: &Instance, other: [IpAddr; 2]) -> anyhow::Result<Targets> {
        let start = |address| Pinger::start(host, address, &Bound::No, INTERVAL);
        let controls = other.map(start).into_iter().collect::<anyhow::Result<_>>()?;
        let host = host.clone();
        let (pings, excuses) = (Pings::default(), BTreeMap::new());
        Ok(Targets { host, controls, all: Vec::new(), leaving: Vec::new(), pings, excuses })
    }

    /// From now on this address is pinged.
    pub(super) fn add(&mut self, address: IpAddr, eni: &EniId) -> anyhow::Result<()> {
        self.all.push(Target::start(&self.host, address, eni.clone())?);
        Ok(())
    }

    /// The same, and nothing ever explains its silence.
    pub(super) fn add_strict(&mut self, address: IpAddr, eni: &EniId) -> anyhow::Result<()> {
        self.add(address, eni)?;
        self.all.iter_mut().rev().take(1).for_each(|target| target.strict = true);
        Ok(())
    }

    /// Silence of these is explained until they answer steadily again; said before the act.
    pub(super) fn disturb(&mut self, why: &'static str, which: impl Fn(&Target) -> bool) {
        let now = Instant::now();
        let all = self.all.iter_mut().filter(|target| !target.strict && which(target));
        all.for_each(|target| target.disturb(now, why));
    }

    /// The same, and nothing is expected before [`Targets::over`].
    pub(super) fn begin(&mut self, why: &'static str, which: impl Fn(&Target) -> bool) {
        self.disturb(why, &which);
        let all = self.all.iter_mut().filter(|target| !target.strict && which(target));
        all.for_each(|target| {
            target.ongoing.insert(why);
        });
    }

    /// The same, for those of which it is not known yet.
    pub(super) fn begin_new(&mut self, why: &'static str, which: impl Fn(&Target) -> bool) {
        self.begin(why, |target| !target.ongoing.contains(why) && which(target));
    }

    /// What was said to last no longer does.
    pub(super) fn over(&mut self, why: &'static str, which: impl Fn(&Target) -> bool) {
        self.all.iter_mut().filter(|target| which(target)).for_each(|target| {
            target.ongoing.remove(why);
        });
    }

    /// These are not asked for any more; said before they go. What was sent before is still judged.
    pub(super) fn remove(&mut self, which: impl Fn(&Target) -> bool) {
        let now = Instant::now();
        let (gone, stay): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.all).into_iter().partition(|target| which(target));
        self.all = stay;
        for mut target in gone {
            target.disturb(now, "gone");
            self.leaving.push(target);
        }
    }

    /// It belongs to another ENI from now on.
    pub(super) fn moved(&mut self, address: IpAddr, to: &EniId) {
        for target in self.all.iter_mut().filter(|target| target.address == address) {
            target.disturb(Instant::now(), "moved");
            target.ongoing.clear();
            target.eni = to.clone();
        }
    }

    /// Goes on to now; `scene` tells what the kernel looks like.
    pub(super) fn tick(&mut self, scene: impl Fn() -> String) -> Vec<Silence> {
        let now = Instant::now();
        let mut silences = Vec::new();
        let mut seen = None;
        for target in &mut self.all {
            target.cut(now);
            if let Some((since, why)) = target.excuse
                && target.ongoing.is_empty()
                && target.steady(now)
            {
                let (times, longest) = self.excuses.entry(why).or_default();
                *times += 1;
                *longest = now.duration_since(since).max(*longest);
                target.excuse = None;
            }
            if target.scene.is_none() && target.suspicious(now) {
                target.scene = Some(seen.get_or_insert_with(&scene).clone());
            }
            let told = judge_ripe(&mut self.pings, &self.controls, target, now);
            if !told.is_empty() {
                // Told once, not for every request from now on.
                target.disturb(now, "a violation");
                target.windows.iter_mut().for_each(|window| window.expected = false);
            } else if !target.suspicious(now) {
                target.scene = None;
            }
            silences.extend(told);
        }
        for target in &mut self.leaving {
            silences.extend(judge_ripe(&mut self.pings, &self.controls, target, now));
        }
        self.leaving.retain(|target| !target.windows.is_empty());
        silences
    }

    /// The addresses that are not expected to answer yet, and since when, and why.
    pub(super) fn silent(&self) -> Vec<String> {
        let silent = self.all.iter().filter_map(|target| {
            let (since, why) = target.excuse?;
            let seconds = since.elapsed().as_secs_f64();
            Some(format!("{} is silent or new since {seconds:.1} s: {why}", target.address))
        });
        silent.collect()
    }
}

/// What became of the requests of all windows that are old enough.
fn judge_ripe(
    pings: &mut Pings,
    controls: &[Pinger],
    target: &mut Target,
    now: Instant,
) -> Vec<Silence> {
    let ripe = |window: &&Window| now.duration_since(window.to) >= LOST;
    let count = target.windows.iter().take_while(ripe).count();
    let windows: Vec<Window> = target.windows.drain(..count).collect();
    windows.iter().filter_map(|window| judge(pings, controls, target, window)).collect()
}

/// What became of the requests of a window.
fn judge(
    pings: &mut Pings,
    controls: &[Pinger],
    target: &mut Target,
    window: &Window,
) -> Option<Silence> {
    let report = target.pinger.between(window.from, window.to);
    pings.sent += report.sent;
    pings.strict += if target.strict { report.sent } else { 0 };
    let lost = report.sent - report.answered;
    if !window.expected {
        pings.explained += lost;
        return None;
    }
    if lost == 0 {
        return None;
    }
    let from = window.from.checked_sub(AROUND).unwrap_or(window.from);
    let stalled = |control: &Pinger| control.between(from, window.to + AROUND).lost > 0;
    if controls.iter().any(stalled) {
        pings.stalled += lost;
        return None;
    }
    pings.lost += lost;
    let unanswered = target.pinger.unanswered(window.from, window.to);
    Some(Silence {
        address: target.address,
        eni: target.eni.clone(),
        first: unanswered.first().copied().unwrap_or(window.from),
        last: unanswered.last().copied().unwrap_or(window.to),
        lost,
        scene: target.scene.take(),
    })
}
