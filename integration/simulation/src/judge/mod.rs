//! Judges what enid does by its own books: what metadata served, what enid made, what it may remove.
//! It uses nothing of what the decisions are made with.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use enid_core::config::Config;
use enid_core::ledger::Ledger;
use enid_core::metadata::{Answer, Poll};
use enid_core::object::{
    Family, LinkGroup, LinkIndex, Mac, Object, Protocol, Route, Rule, RuleAction, Setting, TableId,
};
use enid_core::observed::Snapshot;
use enid_core::plan::Step;
use enid_core::time::Instant;

use crate::counts::Counts;
use crate::kernel::{Kernel, Way};

mod promise;
mod readings;
mod removal;

pub use promise::{Broken, Promise, Verdict, broken};
use readings::{Latest, Readings};

/// What can be somebody's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Address(LinkIndex, IpAddr),
    Route(Route),
    Rule(Rule),
    Name(LinkIndex, String),
}

/// A fight is over sooner than that many rounds in [`ROUND`].
const ROUNDS: usize = 14;
const ROUND: Duration = Duration::from_secs(60);
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

    /// Somebody took a link away since enid looked, and with it all that it had.
    fn vanished(&self, link: LinkIndex) -> bool {
        self.disturbed && self.kernel.link(link).is_err()
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

    /// Enid has started anew: what it read in a former life proves nothing any more.
    pub fn restarted(&mut self) {
        self.readings.values_mut().for_each(Readings::restarted);
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
                    if !self.made.contains(&Thing::Name(*link, name.clone()))
                        && !scene.vanished(*link) =>
                {
                    return broken(Promise::Foreign, format!("{name} is taken from a link"));
                }
                (_, _) => {}
            },
            Step::Create(_) => {}
        }
        Ok(())
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
            for address in self.plan.working.iter().filter(|of| !works(scene.kernel, **of)) {
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
        let mut cut = std::mem::take(&mut self.plan.cut);
        cut.retain(|of, _| works(scene.kernel, *of) && !misled(scene.kernel, of.0));
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
    let addresses = kernel.state.addresses.iter();
    let addresses = addresses.map(|seen| (seen.address.address, seen.address.link));
    addresses.filter(|of| !of.0.is_loopback() && leaves(kernel, *of)).collect()
}

/// Whether an address is on its link and leaves by it.
fn works(kernel: &Kernel, (ip, link): (IpAddr, LinkIndex)) -> bool {
    let mut addresses = kernel.state.addresses.iter();
    addresses.any(|seen| (seen.address.address, seen.address.link) == (ip, link))
        && leaves(kernel, (ip, link))
}

fn leaves(kernel: &Kernel, (ip, link): (IpAddr, LinkIndex)) -> bool {
    kernel.lookup(ip, far(ip), None) == Way::Out(link)
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
