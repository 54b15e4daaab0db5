//! Judges what enid does by its own books: what metadata served, what enid made, what it may remove.
//! It uses nothing of what the decisions are made with.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use enid_core::config::{Config, Removal};
use enid_core::ledger::Ledger;
use enid_core::metadata::{Answer, Depth, EniAnswers, EniKey, Poll};
use enid_core::object::{
    Address, Family, LinkGroup, LinkIndex, Mac, Object, Protocol, Route, Rule, RuleAction, Setting,
    TableId,
};
use enid_core::observed::Snapshot;
use enid_core::plan::Step;
use enid_core::time::Instant;
use ipnet::IpNet;

use crate::counts::Counts;
use crate::kernel::{Kernel, Way};

/// What was promised and not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// Nothing foreign is changed.
    Foreign,
    /// No owned address goes that metadata granted within the grace.
    Removed,
    /// The primary ENI keeps its first address and its way to metadata.
    Primary,
    /// What works before and after a plan works during it.
    Working,
    /// No address is on two ENIs at the end of a plan.
    Twice,
    /// A kernel that nobody disturbs refuses no step.
    Kernel,
    /// The guard has nothing to refuse.
    Guard,
    /// After a plan there is nothing left to do.
    Once,
    /// Fights end in truces.
    Truce,
    /// Time goes on.
    Spinning,
    /// When nothing happens any more, all is as metadata says.
    Converged,
    /// Nothing grows without bound.
    Bounded,
    /// Nothing panics.
    Sane,
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Which.
    pub promise: Promise,
    /// How, in words.
    pub how: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let promise = match self.promise {
            Promise::Foreign => "nothing foreign is changed",
            Promise::Removed => "no owned address goes that metadata granted within the grace",
            Promise::Primary => "the primary ENI keeps its address and its way to metadata",
            Promise::Working => "what works before and after a plan works during it",
            Promise::Twice => "no address is on two ENIs at the end of a plan",
            Promise::Kernel => "a kernel that nobody disturbs refuses no step",
            Promise::Guard => "the guard has nothing to refuse",
            Promise::Once => "after a plan there is nothing left to do",
            Promise::Truce => "fights end in truces",
            Promise::Spinning => "time goes on",
            Promise::Converged => "when nothing happens any more, all is as metadata says",
            Promise::Bounded => "nothing grows without bound",
            Promise::Sane => "nothing panics",
        };
        write!(f, "{promise}: {}", self.how)
    }
}

/// Kept, or broken.
pub type Verdict = Result<(), Broken>;

/// Fails with a promise and how it was broken.
pub fn broken<T>(promise: Promise, how: impl Into<String>) -> Result<T, Broken> {
    Err(Broken { promise, how: how.into() })
}

/// What can be somebody's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Address(LinkIndex, IpAddr),
    Route(Route),
    Rule(Rule),
    Name(LinkIndex, String),
}

/// Readings of one ENI, as they were served.
#[derive(Debug, Clone, Default)]
struct Readings {
    /// When each identifying key was last read.
    identity: BTreeMap<EniKey, Instant>,
    /// When each family was last read completely, newest last.
    complete: BTreeMap<Family, VecDeque<Instant>>,
    /// When each address was last shown.
    granted: BTreeMap<IpAddr, Instant>,
    /// The first of `local-ipv4s` in each reading.
    firsts: BTreeSet<IpAddr>,
    /// It once was in an IPv4 subnet.
    subnet: bool,
    /// The last full reading lacked something that hardly ever changes.
    unwell: bool,
    latest: Latest,
}

/// The last reading.
#[derive(Debug, Clone, Default)]
struct Latest {
    shown: BTreeSet<IpAddr>,
    prefixes: Vec<IpNet>,
    complete: BTreeSet<Family>,
    full: bool,
    top: bool,
}

/// Why an address may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    Released,
    Moved,
    Dropped,
    Proven(Duration),
}

/// How long an operator waits for an address to be dropped.
const DROP: Duration = Duration::from_secs(9);
/// A fight is over sooner than that many rounds in [`ROUND`].
const ROUNDS: usize = 14;
const ROUND: Duration = Duration::from_secs(60);
/// How old the identifying keys of a complete reading may be.
const IDENTITY: Duration = Duration::from_secs(600);
const FAR_V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(8, 8, 8, 8));
const FAR_V6: IpAddr =
    IpAddr::V6(std::net::Ipv6Addr::new(0x2600, 0x1f16, 0xffff, 0, 0, 0, 0, 0x99));
const METADATA: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 169, 254));

/// The books.
#[derive(Debug, Clone, Default)]
pub struct Judge {
    made: BTreeSet<Thing>,
    readings: BTreeMap<Mac, Readings>,
    primary: Option<(Mac, LinkIndex, IpAddr)>,
    told_primary: Option<Mac>,
    drops: BTreeMap<IpAddr, Instant>,
    rounds: BTreeMap<Step, VecDeque<Instant>>,
    plan: Plan,
}

/// What was so when the plan began.
#[derive(Debug, Clone, Default)]
struct Plan {
    reached: bool,
    working: BTreeSet<(IpAddr, LinkIndex)>,
    cut: BTreeMap<(IpAddr, LinkIndex), String>,
    secondaries: BTreeMap<LinkIndex, usize>,
    proven: BTreeMap<LinkIndex, Vec<Duration>>,
}

/// What the judge may look at during a plan.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// The configuration in force.
    pub config: &'a Config,
    /// The ledger on disk.
    pub ledger: &'a Ledger,
    /// The time.
    pub now: Instant,
    /// Somebody did something since enid looked.
    pub disturbed: bool,
}

impl Scene<'_> {
    fn mac(&self, link: LinkIndex) -> Option<Mac> {
        self.kernel.link(link).ok().and_then(|link| link.mac)
    }
}

/// Routes of IPv6 lose their source with its address.
fn normal(route: &Route) -> Thing {
    let v6 = route.destination.addr().is_ipv6();
    Thing::Route(Route { source: route.source.filter(|_| !v6), ..*route })
}

fn thing(object: &Object) -> Option<Thing> {
    match object {
        Object::Address(address) => Some(Thing::Address(address.link, address.address)),
        Object::Route(route) => Some(normal(route)),
        Object::Rule(rule) => Some(Thing::Rule(rule.clone())),
        Object::Marking(_) => None,
    }
}

impl Judge {
    /// Opens the books: what carries enid's mark, or is in the ledger, was made in a former life.
    #[must_use]
    pub fn new(state: &Snapshot, ledger: &Ledger) -> Self {
        let mut judge = Self::default();
        let first = state.addresses.iter().find(|seen| {
            seen.protocol != Some(Protocol::ENID)
                && seen.address.address.is_ipv4()
                && state.links.iter().any(|link| {
                    link.index == seen.address.link && link.mac.is_some() && link.may_be_eni()
                })
        });
        judge.primary = first.and_then(|seen| {
            let link = state.links.iter().find(|link| link.index == seen.address.link)?;
            Some((link.mac?, link.index, seen.address.address))
        });
        for seen in &state.addresses {
            let mac = state.links.iter().find(|link| link.index == seen.address.link);
            let noted = mac
                .and_then(|link| link.mac)
                .is_some_and(|mac| ledger.addresses.contains(&(mac, seen.address.address)));
            if seen.protocol == Some(Protocol::ENID) || (!state.address_protocols && noted) {
                judge.made.insert(Thing::Address(seen.address.link, seen.address.address));
            }
        }
        let ours = state.routes.iter().filter(|seen| seen.protocol == Protocol::ENID);
        judge.made.extend(ours.map(|seen| normal(&seen.route)));
        let ours = state.rules.iter().filter(|seen| seen.protocol == Protocol::ENID);
        judge.made.extend(ours.map(|seen| Thing::Rule(seen.rule.clone())));
        for (mac, originals) in &ledger.originals {
            for link in state.links.iter().filter(|link| link.mac == Some(*mac)) {
                judge.made.extend(originals.iter().filter_map(|original| match original {
                    Setting::AlternativeName(name) => Some(Thing::Name(link.index, name.clone())),
                    Setting::Up | Setting::Mtu(_) | Setting::Group(_) | Setting::Sysctl(..) => None,
                }));
            }
        }
        judge
    }

    /// Whether enid made it.
    #[must_use]
    pub fn made(&self, object: &Object) -> bool {
        thing(object).is_some_and(|thing| self.made.contains(&thing))
    }

    /// Everything that enid made and that is there, in a fixed order.
    #[must_use]
    pub fn own(&self, state: &Snapshot) -> Vec<Object> {
        let addresses = state.addresses.iter().map(|seen| Object::Address(seen.address));
        let routes = state.routes.iter().filter(|seen| seen.protocol == Protocol::ENID);
        let routes = routes.map(|seen| Object::Route(seen.route));
        let rules = state.rules.iter().filter(|seen| seen.protocol == Protocol::ENID);
        let rules = rules.map(|seen| Object::Rule(seen.rule.clone()));
        addresses.chain(routes).chain(rules).filter(|object| self.made(object)).collect()
    }

    /// Somebody else has, or has taken, what enid made.
    pub fn theirs(&mut self, object: &Object) {
        if let Some(thing) = thing(object) {
            self.made.remove(&thing);
        }
    }

    /// What a kernel without marks and the ledger together cannot tell from enid's own.
    pub fn ours(&mut self, object: &Object) {
        self.made.extend(thing(object));
    }

    /// Somebody changed the kernel: what is gone is nobody's.
    pub fn tidy(&mut self, state: &Snapshot) {
        let links: BTreeSet<LinkIndex> = state.links.iter().map(|link| link.index).collect();
        let mut there: BTreeSet<Thing> = self.own(state).iter().filter_map(thing).collect();
        let names = self.made.iter().filter(|thing| match thing {
            Thing::Name(link, _) => links.contains(link),
            Thing::Address(..) | Thing::Route(_) | Thing::Rule(_) => false,
        });
        there.extend(names.cloned());
        self.made = there;
    }

    /// The operator wants an address dropped.
    pub fn drop(&mut self, now: Instant, address: IpAddr) {
        self.drops.insert(address, now);
    }

    /// Metadata was asked and this came.
    pub fn polled(&mut self, poll: &Poll) {
        let mac = match &poll.mac {
            Some(Answer::Text(text)) => text.trim().parse().ok(),
            Some(Answer::NotFound | Answer::Failed(_)) | None => None,
        };
        let listed: Option<BTreeSet<Mac>> = match &poll.macs {
            Some(Answer::Text(text)) => {
                let entries = text.split_whitespace();
                Some(entries.filter_map(|mac| mac.trim_end_matches('/').parse().ok()).collect())
            }
            Some(Answer::NotFound | Answer::Failed(_)) | None => None,
        };
        let primary = mac.or(self.told_primary);
        let lacks = |listed: &BTreeSet<Mac>| primary.is_some_and(|mac| !listed.contains(&mac));
        if listed.as_ref().is_some_and(lacks) {
            return;
        }
        let top = mac.is_some() && listed.is_some();
        if top {
            self.told_primary = mac;
        }
        for (mac, answers) in &poll.enis {
            let latest = self.readings.entry(*mac).or_default().read(poll.at, *mac, answers);
            let listed = listed.as_ref().is_some_and(|listed| listed.contains(mac));
            self.readings.entry(*mac).or_default().latest = Latest { top: top && listed, ..latest };
        }
        // The top level may confirm what was read below it before.
        for mac in listed.iter().flatten().filter(|mac| top && !poll.enis.contains_key(mac)) {
            self.readings.entry(*mac).or_default().latest.top = true;
        }
    }

    /// A plan is about to be carried out.
    pub fn begin(&mut self, scene: &Scene<'_>) {
        let mut secondaries: BTreeMap<LinkIndex, BTreeSet<IpAddr>> = BTreeMap::new();
        for thing in &self.made {
            if let Thing::Address(link, ip) = thing {
                secondaries.entry(*link).or_default().insert(*ip);
            }
        }
        for (link, own) in &mut secondaries {
            if let Some(readings) = scene.mac(*link).and_then(|mac| self.readings.get(&mac)) {
                own.extend(&readings.latest.shown);
                own.retain(|ip| !readings.firsts.contains(ip));
            }
        }
        self.plan = Plan {
            reached: self.reaches_metadata(scene.kernel),
            working: working(scene.kernel),
            cut: BTreeMap::new(),
            secondaries: secondaries.iter().map(|(link, own)| (*link, own.len())).collect(),
            proven: BTreeMap::new(),
        };
    }

    /// A step is about to be taken.
    ///
    /// # Errors
    /// When it may not be.
    pub fn before(&mut self, scene: &Scene<'_>, step: &Step, counts: &mut Counts) -> Verdict {
        match step {
            Step::Delete(object) | Step::Replace { old: object, .. } => {
                if !self.made(object) && foreign(scene, object) {
                    return broken(Promise::Foreign, format!("{object:?} is not enid's"));
                }
                if let (Step::Delete(_), Object::Address(address)) = (step, object) {
                    self.removal(scene, address, counts)?;
                }
            }
            Step::Set { link, from, to } => match (from, to) {
                (Some(Setting::Group(group)), _)
                    if *group != LinkGroup::default() && *group != Config::LINK_GROUP =>
                {
                    return broken(
                        Promise::Foreign,
                        format!("the group of link {} is changed", link.0),
                    );
                }
                (Some(Setting::AlternativeName(name)), None)
                    if !self.made.contains(&Thing::Name(*link, name.clone())) =>
                {
                    return broken(Promise::Foreign, format!("{name} is taken from a link"));
                }
                (_, _) => {}
            },
            Step::Create(_) => {}
        }
        Ok(())
    }

    fn removal(&mut self, scene: &Scene<'_>, address: &Address, counts: &mut Counts) -> Verdict {
        let ip = address.address;
        let no = |why: &str| broken(Promise::Removed, format!("{ip} goes although {why}"));
        let Some(mac) = scene.mac(address.link) else { return no("its link is no ENI's") };
        if self.primary.is_some_and(|(_, link, first)| (link, first) == (address.link, ip)) {
            return broken(Promise::Primary, format!("{ip} goes"));
        }
        let unmarked = !scene.kernel.state.address_protocols;
        let reason = self.reason(scene, mac, ip);
        counts.situation_if(
            unmarked && reason.is_ok(),
            "an owned address on a kernel without marks is removed",
        );
        match reason {
            Err(why) => no(&why),
            Ok(Reason::Released) => {
                counts.situation("removed: released");
                Ok(())
            }
            Ok(Reason::Moved) => {
                counts.situation("removed: moved");
                Ok(())
            }
            Ok(Reason::Dropped) => {
                counts.situation("removed: dropped");
                Ok(())
            }
            Ok(Reason::Proven(lacking)) => {
                if address.prefix_length < Family::of(ip).host_length() {
                    return no("it was made as the ENI's primary address");
                }
                let prefixes = &self.readings[&mac].latest.prefixes;
                if prefixes.iter().any(|prefix| prefix.contains(&ip)) {
                    return no("it lies in a delegated prefix");
                }
                if scene.config.ignore_addresses.iter().any(|net| net.contains(&ip)) {
                    return no("the configuration says to leave it alone");
                }
                counts.situation(match ip {
                    IpAddr::V4(_) => "removed: proven",
                    IpAddr::V6(_) => "removed: proven (IPv6)",
                });
                self.plan.proven.entry(address.link).or_default().push(lacking);
                Ok(())
            }
        }
    }

    fn reason(&self, scene: &Scene<'_>, mac: Mac, ip: IpAddr) -> Result<Reason, String> {
        if scene.ledger.hold_all || scene.ledger.holds.contains(&mac) {
            return Ok(Reason::Released);
        }
        let Some(readings) = self.readings.get(&mac) else {
            return Err("its ENI was never read".to_owned());
        };
        let family = Family::of(ip);
        let latest = &readings.latest;
        if latest.shown.contains(&ip) {
            return Err("metadata shows it".to_owned());
        }
        let link = |mac: Mac| scene.kernel.state.links.iter().any(|link| link.mac == Some(mac));
        let moved = self.readings.iter().any(|(other, theirs)| {
            *other != mac
                && link(*other)
                && !scene.ledger.holds.contains(other)
                && theirs.latest.shown.contains(&ip)
                && theirs.latest.complete.contains(&family)
        });
        if moved && latest.complete.contains(&family) {
            return Ok(Reason::Moved);
        }
        let complete = readings.complete.get(&family);
        let granted = readings.granted.get(&ip).copied().unwrap_or_default();
        let after = |from: Instant| complete.into_iter().flatten().filter(move |at| **at > from);
        // A word that was refused must not come true later.
        if let Some(asked) = self.drops.get(&ip).copied()
            && scene.now - asked <= DROP
            && after(asked.max(granted)).next().is_some()
        {
            return Ok(Reason::Dropped);
        }
        readings.proven(ip, &scene.config.removal).map(Reason::Proven)
    }

    /// A step was taken; it changed something or was already so.
    ///
    /// # Errors
    /// When it took something from the primary ENI, or is taken again and again.
    pub fn after(&mut self, scene: &Scene<'_>, step: &Step, changed: bool) -> Verdict {
        match step {
            Step::Create(object) if changed => self.made.extend(thing(object)),
            Step::Create(_) => {}
            Step::Delete(object) => self.theirs(object),
            Step::Replace { old, new } => {
                self.theirs(old);
                self.made.extend(thing(new));
            }
            Step::Set { link, from, to } => match (from, to) {
                (None, Some(Setting::AlternativeName(name))) => {
                    self.made.insert(Thing::Name(*link, name.clone()));
                }
                (Some(Setting::AlternativeName(name)), None) => {
                    self.made.remove(&Thing::Name(*link, name.clone()));
                }
                (_, _) => {}
            },
        }
        if changed {
            self.round(scene, step)?;
        }
        // What somebody else cut may take some steps to mend.
        let reached = self.reaches_metadata(scene.kernel);
        if self.plan.reached && !reached {
            return broken(Promise::Primary, format!("{} cuts metadata off", words(scene, step)));
        }
        self.plan.reached = reached;
        let moves = !matches!(step, Step::Set { .. } | Step::Create(Object::Address(_)));
        if moves {
            let works = working(scene.kernel);
            for address in self.plan.working.difference(&works) {
                self.plan.cut.entry(*address).or_insert_with(|| words(scene, step));
            }
        }
        Ok(())
    }

    /// Counts how often the same is brought about; the primary's way out is never given up.
    fn round(&mut self, scene: &Scene<'_>, step: &Step) -> Verdict {
        let Some(effect) = step.effect() else { return Ok(()) };
        let route = match &effect {
            Step::Create(Object::Route(route)) => route.link,
            Step::Create(_) | Step::Set { .. } | Step::Replace { .. } | Step::Delete(_) => None,
        };
        if self.primary.is_some_and(|(_, link, _)| route == Some(link)) {
            return Ok(());
        }
        let rounds = self.rounds.entry(effect).or_default();
        rounds.push_back(scene.now);
        while rounds.front().is_some_and(|first| scene.now - *first > ROUND) {
            rounds.pop_front();
        }
        if rounds.len() > ROUNDS {
            let how = format!("{} was done {ROUNDS} times in a minute", words(scene, step));
            return broken(Promise::Truce, how);
        }
        Ok(())
    }

    /// A plan was carried out without a disturbance from outside.
    ///
    /// # Errors
    /// When what it leaves is not what may be.
    pub fn end(&mut self, scene: &Scene<'_>, counts: &mut Counts) -> Verdict {
        let works = working(scene.kernel);
        let mut cut = std::mem::take(&mut self.plan.cut);
        cut.retain(|address, _| works.contains(address) && !misled(scene.kernel, address.0));
        if let Some(((ip, _), step)) = cut.first_key_value() {
            return broken(Promise::Working, format!("{ip} did not work after {step}"));
        }
        for (link, lacking) in &self.plan.proven {
            let all = self.plan.secondaries.get(link).copied().unwrap_or_default();
            let mass = lacking.len() > 2 && lacking.len() * 2 > all;
            counts.situation_if(mass, "removed: most of an ENI's addresses");
            let grace = scene.config.removal.mass_grace;
            if let Some(lacking) = lacking.iter().find(|lacking| mass && **lacking < grace) {
                let how = format!("most of link {}'s addresses go after {lacking:?}", link.0);
                return broken(Promise::Removed, how);
            }
        }
        self.tidy(&scene.kernel.state);
        self.twice(scene, counts)
    }

    fn twice(&self, scene: &Scene<'_>, counts: &mut Counts) -> Verdict {
        let mut seen: BTreeMap<IpAddr, LinkIndex> = BTreeMap::new();
        for thing in &self.made {
            let Thing::Address(link, ip) = thing else { continue };
            let Some(other) = seen.insert(*ip, *link) else { continue };
            // Who has not been read completely keeps what it has, and who is granted it has it.
            let unread = [*link, other].into_iter().any(|link| {
                let readings = scene.mac(link).and_then(|mac| self.readings.get(&mac));
                readings.is_none_or(|readings| {
                    readings.unwell || !readings.latest.complete.contains(&Family::of(*ip))
                })
            });
            counts.situation_if(unread, "on two ENIs: one was not read completely");
            if !unread {
                return broken(
                    Promise::Twice,
                    format!("{ip} is on links {} and {}", link.0, other.0),
                );
            }
        }
        Ok(())
    }

    fn reaches_metadata(&self, kernel: &Kernel) -> bool {
        let Some((_, link, first)) = self.primary else { return false };
        let there = kernel
            .state
            .addresses
            .iter()
            .any(|seen| (seen.address.link, seen.address.address) == (link, first));
        let Ok(name) = kernel.link(link).map(|link| link.name.clone()) else { return false };
        there
            && [None, Some(name.as_str())].into_iter().all(|oif| {
                let way = kernel.lookup(first, METADATA, oif);
                // Without rules of the primary's, a VPN in main may take what is not bound.
                way == Way::Out(link) || way == kernel.lookup_without(first, METADATA, oif)
            })
    }

    /// The primary ENI's MAC address.
    #[must_use]
    pub fn primary(&self) -> Option<Mac> {
        self.primary.map(|(mac, _, _)| mac)
    }

    /// Whether an address was made by enid and is there.
    #[must_use]
    pub fn has(&self, link: LinkIndex, ip: IpAddr) -> bool {
        self.made.contains(&Thing::Address(link, ip))
    }
}

impl Readings {
    fn read(&mut self, at: Instant, mac: Mac, answers: &EniAnswers) -> Latest {
        let Answer::Text(listing) = &answers.listing else { return Latest::default() };
        if listing.trim().is_empty() {
            return Latest::default();
        }
        let listed = |key: EniKey| {
            listing.split_whitespace().any(|word| word.trim_end_matches('/') == key.name())
        };
        let text = |key: EniKey| match answers.keys.get(&key) {
            Some(Answer::Text(text)) if listed(key) => Some(text.trim()),
            Some(Answer::Text(_) | Answer::NotFound | Answer::Failed(_)) | None => None,
        };
        for key in [EniKey::DeviceNumber, EniKey::InterfaceId, EniKey::Mac] {
            let sane = text(key).is_some_and(|text| {
                if key == EniKey::Mac {
                    text.parse() == Ok(mac)
                } else if key == EniKey::DeviceNumber {
                    text.parse::<u32>().is_ok()
                } else {
                    text.starts_with("eni-") && !text.contains(char::is_whitespace)
                }
            });
            if sane {
                self.identity.insert(key, at);
            } else if answers.depth == Depth::Full {
                self.identity.remove(&key);
            }
        }
        self.subnet |= text(EniKey::SubnetIpv4).is_some();
        if answers.depth == Depth::Full {
            self.unwell = EniKey::CONSTANTS.into_iter().any(|key| match (key, text(key)) {
                (EniKey::NetworkCard, None) => false,
                (EniKey::SubnetIpv6 | EniKey::VpcIpv6, None) => listed(key),
                (EniKey::SubnetIpv4 | EniKey::SubnetIpv6, Some(text))
                | (EniKey::VpcIpv4 | EniKey::VpcIpv6, Some(text)) => {
                    let mut nets = text.split_whitespace();
                    text.is_empty() || nets.any(|net| net.parse::<IpNet>().is_err())
                }
                (_, text) => text.is_none_or(str::is_empty),
            });
        }
        let mut latest = Latest { full: answers.depth == Depth::Full, ..Latest::default() };
        let mut told = BTreeSet::from([Family::V4, Family::V6]);
        let mut whole =
            self.identity.len() == 3 && self.identity.values().all(|read| at - *read <= IDENTITY);
        for key in EniKey::LISTS {
            let v4 = [EniKey::LocalIpv4s, EniKey::Ipv4Prefixes].contains(&key);
            let family = if v4 { Family::V4 } else { Family::V6 };
            let address = matches!(key, EniKey::LocalIpv4s | EniKey::Ipv6s);
            let Some(text) = text(key) else {
                let lost = key == EniKey::LocalIpv4s && self.subnet;
                whole &= !listed(key) && !lost;
                continue;
            };
            if text.is_empty() {
                // It may be how a cloud says that there is none, or an answer that was lost.
                if address {
                    told.remove(&family);
                }
                continue;
            }
            for word in text.split_whitespace() {
                match (word.parse::<IpAddr>(), word.parse::<IpNet>()) {
                    (Ok(ip), _) if address => _ = latest.shown.insert(ip),
                    (_, Ok(net)) if !address => latest.prefixes.push(net),
                    (_, _) => whole = false,
                }
            }
            if key == EniKey::LocalIpv4s {
                let first = text.split_whitespace().next();
                let first: Option<IpAddr> = first.and_then(|word| word.parse().ok());
                self.firsts.extend(first);
            }
        }
        self.granted.extend(latest.shown.iter().map(|ip| (*ip, at)));
        if whole {
            for family in told {
                latest.complete.insert(family);
                let complete = self.complete.entry(family).or_default();
                complete.push_back(at);
                while complete.len() > 1024 {
                    complete.pop_front();
                }
            }
        }
        latest
    }

    /// For how long complete readings have lacked an address, if that is long enough.
    fn proven(&self, ip: IpAddr, removal: &Removal) -> Result<Duration, String> {
        let granted = self.granted.get(&ip).copied();
        let family = Family::of(ip);
        let complete = self.complete.get(&family).into_iter().flatten();
        let lacking: Vec<Instant> =
            complete.copied().filter(|at| granted.is_none_or(|granted| *at > granted)).collect();
        let span = lacking.first().zip(lacking.last()).map(|(first, last)| *last - *first);
        let span = span.unwrap_or_default();
        if lacking.len() < removal.confirmations as usize || span < removal.grace {
            return Err(format!("{} readings lacked it over {span:?}", lacking.len()));
        }
        let latest = &self.latest;
        if !(latest.complete.contains(&family) && latest.full && latest.top) {
            return Err("the last reading was not complete".to_owned());
        }
        Ok(span)
    }
}

/// Whether somebody has it. Of routes and rules, a delete names whose; so what came between a look and
/// the plan is safe.
fn foreign(scene: &Scene<'_>, object: &Object) -> bool {
    let state = &scene.kernel.state;
    match object {
        Object::Address(address) => state.addresses.iter().any(|seen| {
            (seen.address.link, seen.address.address) == (address.link, address.address)
        }),
        Object::Route(route) => {
            !scene.disturbed && state.routes.iter().any(|seen| seen.route == *route)
        }
        Object::Rule(rule) => !scene.disturbed && state.rules.iter().any(|seen| seen.rule == *rule),
        Object::Marking(_) => false,
    }
}

/// The addresses that leave by the link that has them.
fn working(kernel: &Kernel) -> BTreeSet<(IpAddr, LinkIndex)> {
    let addresses = kernel.state.addresses.iter().map(|seen| seen.address);
    let addresses = addresses.filter(|there| !there.address.is_loopback());
    addresses
        .filter(|there| {
            let far = if there.address.is_ipv4() { FAR_V4 } else { FAR_V6 };
            kernel.lookup(there.address, far, None) == Way::Out(there.link)
        })
        .map(|there| (there.address, there.link))
        .collect()
}

/// Whether somebody else's rule sends an address to a table of its own choice: where that leads is
/// nobody's promise.
fn misled(kernel: &Kernel, ip: IpAddr) -> bool {
    kernel.state.rules.iter().any(|seen| {
        let shared = matches!(
            seen.rule.action,
            RuleAction::Lookup(TableId::MAIN | TableId::LOCAL | TableId(0 | 253))
        );
        seen.protocol != Protocol::ENID
            && !shared
            && seen.rule.source.is_some_and(|source| source.contains(&ip))
    })
}

/// Where an address must be able to go.
#[must_use]
pub fn far(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { FAR_V4 } else { FAR_V6 }
}

fn words(scene: &Scene<'_>, step: &Step) -> String {
    step.command(&|index| {
        scene.kernel.link(index).map_or_else(|_| format!("if{}", index.0), |link| link.name.clone())
    })
}

/// Whether a table is one of those that enid fills.
#[must_use]
pub fn own_table(table: TableId) -> bool {
    table.0 >= 20_000
}
