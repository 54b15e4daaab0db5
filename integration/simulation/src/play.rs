//! Plays a script to its end and beyond: when nothing happens any more, all must be as metadata says.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use enid_core::config::{Config, PrimaryRules};
use enid_core::object::{
    Family, LinkGroup, LinkIndex, Mac, Object, Protocol, RouteKind, RuleAction, TableId,
};
use enid_core::report;
use enid_core::time::Instant;
use ipnet::IpNet;

use crate::counts::Counts;
use crate::judge::{Broken, Promise, Verdict, broken, far};
use crate::kernel::Way;
use crate::text;
use crate::world::{Product, Start, World};

/// An instance and what happens to it.
#[derive(Debug, Clone, Default)]
pub struct Play {
    /// What is there at first.
    pub start: Start,
    /// What happens when.
    pub script: Vec<(Instant, String)>,
}

/// How long everything may take to settle: a resync, a mass removal, a truce, a pause after 403.
const SETTLED: Duration = Duration::from_secs(1800);
/// How long a look at it is put off.
const GLANCE: Duration = Duration::from_secs(20);
/// Fights are forgotten after this.
const FORGOTTEN: Duration = Duration::from_secs(185);

impl Play {
    /// Takes in the lines of a script, in the order of their times.
    #[must_use]
    pub fn new(start: Start, script: &[String]) -> Self {
        let mut events: Vec<(Instant, String)> = Vec::new();
        for line in script {
            let (times, event) = text::schedule(line);
            events.extend(times.into_iter().map(|at| (at, event.to_owned())));
        }
        events.sort_by_key(|(at, _)| *at);
        Self { start, script: events }
    }

    /// Plays it; when and how a promise was broken, if one was.
    ///
    /// # Errors
    /// None of its own: the verdict is a part of the answer.
    pub fn run(&self, product: Product) -> (Result<(), (Instant, Broken)>, Counts) {
        let mut world = World::new(self.start.clone(), product);
        let played = catch_unwind(AssertUnwindSafe(|| {
            for (at, event) in &self.script {
                world.advance(*at)?;
                world.event(event)?;
            }
            world.finish()
        }));
        let verdict = played.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            broken(Promise::Sane, text.unwrap_or_default())
        });
        world.counts.schedules = 1;
        (verdict.map_err(|broken| (world.now, broken)), world.counts)
    }
}

/// What metadata says of one ENI.
struct Granted {
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
    prefixes: Vec<IpNet>,
    /// Its table, less the base.
    table: u32,
}

impl Granted {
    fn all(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.iter().chain(&self.v6).copied()
    }
}

impl World {
    /// Nothing happens any more.
    fn finish(&mut self) -> Verdict {
        let Some(granted) = self.granted() else {
            // Metadata is not well: enid must wait without end, and without doing anything.
            self.advance(self.now + GLANCE)?;
            return self.bounded();
        };
        // What metadata says is read at the next poll.
        self.advance(self.now + self.config.poll_interval + self.slow)?;
        self.settles(&granted)?;
        self.counts.situation("settled");
        self.rests(&granted)?;
        self.bounded()?;
        self.forgets(&granted)
    }

    /// Waits until nothing was done for so long that nothing need be remembered of it.
    fn rests(&mut self, granted: &BTreeMap<Mac, Granted>) -> Verdict {
        let latest = self.now + SETTLED;
        while self.now - self.stepped <= FORGOTTEN {
            self.advance(self.now + GLANCE)?;
            // What hardly ever changes may be read only now.
            if self.now - self.stepped > FORGOTTEN {
                self.settles(granted)?;
            }
            if self.now > latest {
                return broken(Promise::Converged, "there is no end of steps");
            }
        }
        Ok(())
    }

    /// Waits until all is as metadata says.
    fn settles(&mut self, granted: &BTreeMap<Mac, Granted>) -> Verdict {
        let latest = self.now + SETTLED;
        loop {
            self.advance(self.now + GLANCE)?;
            match self.settled(granted) {
                Err(why) if self.now > latest => return Err(why),
                Err(_) => {}
                Ok(()) => return Ok(()),
            }
        }
    }

    /// What metadata says at the end, if it says it well of every ENI that is here.
    fn granted(&self) -> Option<BTreeMap<Mac, Granted>> {
        let cloud = &self.cloud;
        if cloud.down.is_some() || cloud.mac.is_some() || cloud.macs.is_some() {
            return None;
        }
        let primary = self.judge.primary()?;
        // The first one is told to be the primary.
        if *cloud.enis.keys().next()? != primary {
            return None;
        }
        let here: BTreeSet<Mac> = self.links().map(|(mac, _)| mac).collect();
        let mut granted = BTreeMap::new();
        let mut taken = BTreeSet::new();
        for (mac, keys) in &cloud.enis {
            if keys.contains_key("listing") || keys.values().any(|value| value.starts_with('!')) {
                return None;
            }
            let text = |key: &str| keys.get(key).filter(|text| *text != "-").map(String::as_str);
            let ips = |key: &str| -> Option<Vec<IpAddr>> {
                text(key).unwrap_or_default().split_whitespace().map(|ip| ip.parse().ok()).collect()
            };
            let nets = |key: &str| -> Option<Vec<IpNet>> {
                text(key)
                    .unwrap_or_default()
                    .split_whitespace()
                    .map(|net| net.parse().ok())
                    .collect()
            };
            let (v4, v6) = (ips("local-ipv4s")?, ips("ipv6s")?);
            let mut prefixes = nets("ipv4-prefix")?;
            prefixes.extend(nets("ipv6-prefix")?);
            let mut subnets = nets("subnet-ipv4-cidr-block")?;
            let lacks = subnets.is_empty() || v4.is_empty();
            subnets.extend(nets("subnet-ipv6-cidr-blocks")?);
            let number = text("device-number")?;
            let inside = |ip: &IpAddr| subnets.iter().any(|net| net.contains(ip));
            let card: u32 = text("network-card").map_or(Some(0), |card| card.parse().ok())?;
            let table = 100 * card + number.parse::<u32>().ok()?;
            let own = |ip: &IpAddr| taken.insert(ip.to_string());
            let known = text("interface-id").is_some() && text("vpc-id").is_some();
            if lacks || !known || !v4.iter().chain(&v6).all(inside) {
                return None;
            }
            if here.contains(mac) {
                let mut own = own;
                if !v4.iter().chain(&v6).all(&mut own) || !taken.insert(format!("#{number}")) {
                    return None;
                }
            }
            granted.insert(*mac, Granted { v4, v6, prefixes, table });
        }
        // What lies in somebody's delegated prefix cannot be assigned to another.
        let clash = |(mac, of): (&Mac, &Granted)| {
            let others = granted.iter().filter(|(other, _)| *other != mac);
            let mut prefixes = others.flat_map(|(_, other)| &other.prefixes);
            prefixes.any(|prefix| of.all().any(|ip| prefix.contains(&ip)))
        };
        if granted.iter().any(clash) {
            return None;
        }
        here.iter().all(|mac| granted.contains_key(mac)).then_some(granted)
    }

    /// The links of ENIs.
    fn links(&self) -> impl Iterator<Item = (Mac, LinkIndex)> {
        let links = self.kernel.state.links.iter().filter(|link| link.may_be_eni());
        links.filter_map(|link| Some((link.mac?, link.index)))
    }

    fn settled(&mut self, granted: &BTreeMap<Mac, Granted>) -> Verdict {
        let no = |how: String| broken(Promise::Converged, how);
        let standing = self.daemon.as_ref().and_then(|daemon| daemon.standing.as_ref());
        let Some(standing) = standing else { return no("enid does not run".to_owned()) };
        if standing.report.verdict != report::Verdict::Converged {
            let waiting = standing.report.waiting();
            let waiting: Vec<String> =
                waiting.map(|(eni, waiting)| format!("{}: {waiting}", eni.mac)).collect();
            return no(format!("{} {}", standing.report.verdict, waiting.join("; ")));
        }
        if self.feuds.iter().any(|feud| feud.at.is_some()) {
            return no("somebody goes on undoing what enid makes".to_owned());
        }
        self.idle()?;
        self.nothing_left(granted)?;
        for (mac, index) in self.links() {
            if self.ledger.is_released(mac) {
                self.released(index)?;
            } else if let Some(granted) = granted.get(&mac) {
                self.configured(mac, index, granted)?;
            }
        }
        Ok(())
    }

    /// No table but those of the ENIs that are here and not released has anything of enid's.
    fn nothing_left(&self, granted: &BTreeMap<Mac, Granted>) -> Verdict {
        let here =
            self.links().filter(|(mac, _)| !self.ledger.is_released(*mac)).map(|(mac, _)| mac);
        let tables = here.filter_map(|mac| granted.get(&mac)).map(|granted| self.table(granted));
        let tables: BTreeSet<TableId> = tables.collect();
        let stray = |object: &Object| {
            let table = match object {
                Object::Route(route) => route.table,
                Object::Rule(rule) => match rule.action {
                    RuleAction::Lookup(table) => table,
                    RuleAction::Other(_) => return true,
                },
                Object::Address(_) | Object::Marking(_) => return false,
            };
            ![TableId::MAIN, TableId::LOCAL].contains(&table) && !tables.contains(&table)
        };
        match self.judge.own(&self.kernel.state).into_iter().find(stray) {
            Some(object) => broken(Promise::Converged, format!("{object:?} is left")),
            None => Ok(()),
        }
    }

    fn table(&self, granted: &Granted) -> TableId {
        TableId(self.config.table_base + granted.table)
    }

    fn released(&self, index: LinkIndex) -> Verdict {
        let link = self.kernel.link(index).map(|link| link.group);
        let left = self.judge.own(&self.kernel.state).into_iter().find(|object| match object {
            Object::Address(address) => address.link == index,
            Object::Route(route) => route.link == Some(index),
            Object::Rule(_) | Object::Marking(_) => false,
        });
        if link == Ok(Config::LINK_GROUP) || left.is_some() {
            return broken(Promise::Converged, format!("{left:?} is left of a released ENI"));
        }
        Ok(())
    }

    fn configured(&self, mac: Mac, index: LinkIndex, granted: &Granted) -> Verdict {
        let no = |how: String| broken(Promise::Converged, how);
        let state = &self.kernel.state;
        let primary = self.judge.primary() == Some(mac);
        let enis: BTreeSet<LinkIndex> = self.links().map(|(_, index)| index).collect();
        let pod = |ip: IpAddr| {
            let address = state.addresses.iter();
            let mut links = address.filter(|seen| seen.address.address == ip);
            let mut routes = state.routes.iter().filter(|seen| {
                seen.route.kind == RouteKind::Unicast && seen.route.destination == IpNet::from(ip)
            });
            links.any(|seen| !enis.contains(&seen.address.link))
                || routes.any(|seen| seen.route.link.is_some_and(|link| !enis.contains(&link)))
        };
        let there = |ip: IpAddr| {
            let place = (index, ip);
            state.addresses.iter().any(|s| (s.address.link, s.address.address) == place)
        };
        let ignored = |ip: IpAddr| self.config.ignore_addresses.iter().any(|net| net.contains(&ip));
        for ip in granted.all() {
            let first = primary && granted.v4.first() == Some(&ip);
            if !there(ip) && !first && !ignored(ip) && !pod(ip) {
                return no(format!("{ip} is not there"));
            }
        }
        for seen in state.addresses.iter().filter(|seen| seen.address.link == index) {
            let ip = seen.address.address;
            let stays = seen.address.prefix_length < Family::of(ip).host_length()
                || granted.prefixes.iter().any(|prefix| prefix.contains(&ip))
                || granted.all().any(|granted| granted == ip)
                || ignored(ip);
            if self.judge.has(index, ip) && !stays {
                return no(format!("{ip} is still there"));
            }
        }
        let others = self.links().any(|(other, _)| other != mac && !self.ledger.is_released(other));
        let group = self.kernel.link(index).map(|link| link.group).unwrap_or_default();
        let routed = !primary || (others && self.config.primary_rules == PrimaryRules::Auto);
        if !routed || (group != Config::LINK_GROUP && group != LinkGroup::default()) {
            return Ok(());
        }
        // Somebody else's rule may come first.
        let caught = |ip: IpAddr| {
            let mut rules = state.rules.iter().filter(|seen| seen.protocol != Protocol::ENID);
            rules.any(|seen| seen.rule.source.is_some_and(|source| source.contains(&ip)))
        };
        let free = |ip: &IpAddr| there(*ip) && !ignored(*ip) && !pod(*ip) && !caught(*ip);
        for ip in granted.all().filter(free) {
            let way = self.kernel.lookup(ip, far(ip), None);
            if way != Way::Out(index) && !self.blocked(granted, index, Family::of(ip)) {
                return no(format!("{ip} leaves {way:?}, not by link {}", index.0));
            }
        }
        Ok(())
    }

    /// Whether somebody else has a route by another link in an ENI's table: it is left there, and what it
    /// matches, or a gateway behind it, is lost.
    fn blocked(&self, granted: &Granted, index: LinkIndex, family: Family) -> bool {
        let table = self.table(granted);
        self.kernel.state.routes.iter().any(|seen| {
            let route = &seen.route;
            route.table == table
                && Family::of(route.destination.addr()) == family
                && seen.protocol != Protocol::ENID
                && route.link.is_some_and(|link| link != index)
        })
    }

    /// Nothing is remembered of what is not there.
    fn bounded(&self) -> Verdict {
        let no = |how: String| broken(Promise::Bounded, how);
        let Some(daemon) = &self.daemon else { return Ok(()) };
        let links: BTreeSet<LinkIndex> =
            self.kernel.state.links.iter().map(|link| link.index).collect();
        let macs: BTreeSet<Mac> = self.links().map(|(mac, _)| mac).collect();
        let memory = &daemon.memory;
        if !memory.links.keys().all(|index| links.contains(index)) {
            return no(format!("links {:?}", memory.links));
        }
        if !memory.attached.is_subset(&macs) || !memory.quiet.keys().all(|mac| macs.contains(mac)) {
            return no(format!("ENIs {:?} {:?}", memory.attached, memory.quiet.keys()));
        }
        if memory.drops.len() > 8 {
            return no(format!("drops {:?}", memory.drops));
        }
        let known = |mac: &Mac| macs.contains(mac) || daemon.metadata.listed.contains(mac);
        if !daemon.metadata.enis.keys().all(known) {
            return no(format!("metadata of {:?}", daemon.metadata.enis.keys()));
        }
        let pace = format!("{:?}", daemon.pace).matches("Mac(").count();
        if pace > 2 * macs.len() {
            return no(format!("{pace} entries in pace"));
        }
        // Each of three histories of two families keeps 64 readings, each of all addresses.
        let mut read = Length(0);
        _ = write!(read, "{:?}", daemon.metadata);
        let Length(read) = read;
        if read > (macs.len() + daemon.metadata.listed.len() + 1) * 300_000 {
            return no(format!("{read} bytes of metadata"));
        }
        let ledger = &self.ledger;
        let there = |(mac, ip): &(Mac, IpAddr)| {
            let links: Vec<LinkIndex> =
                self.links().filter(|(known, _)| known == mac).map(|(_, index)| index).collect();
            let mut addresses = self.kernel.state.addresses.iter();
            addresses.any(|s| s.address.address == *ip && links.contains(&s.address.link))
        };
        let quiet = self.armed.is_empty() && self.trouble.is_none() && !self.changed;
        if quiet
            && (!ledger.addresses.iter().all(there)
                || !ledger.originals.keys().all(|mac| macs.contains(mac)))
        {
            return no(format!("the ledger {ledger:?}"));
        }
        Ok(())
    }

    /// A new step sweeps out what old ones left.
    fn forgets(&mut self, granted: &BTreeMap<Mac, Granted>) -> Verdict {
        self.armed.clear();
        self.trouble = None;
        self.deaf = None;
        self.feuds.clear();
        let steps = self.counts.steps;
        self.event("take 0")?;
        self.advance(self.now + GLANCE)?;
        let Some(daemon) = &self.daemon else {
            return broken(Promise::Converged, "enid does not run");
        };
        let fights = format!("{:?}", daemon.memory.fights).matches("Fight {").count();
        let made = usize::try_from(self.counts.steps - steps).unwrap_or(usize::MAX);
        if made > 0 && fights > made {
            return broken(
                Promise::Bounded,
                format!("{fights} fights are remembered after {made} steps"),
            );
        }
        // What hardly ever changes may have been read just now.
        self.settled(granted).or_else(|_| self.settles(granted))
    }
}

/// How long a text would be.
struct Length(usize);

impl fmt::Write for Length {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len();
        Ok(())
    }
}
