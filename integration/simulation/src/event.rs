//! The events of a script, in the words of scenario files, and what they do to the world.
//!
//! ```text
//! cloud MAC KEY VALUE    metadata says this from now on; also `cloud all !500`, `cloud MAC gone`
//! kernel LINE            somebody adds what the line says; `kernel - LINE` takes it away
//! link NAME WHAT         somebody sets a link up, down, or its name, mtu or group
//! take N                 somebody deletes the Nth thing that enid made
//! remark N               somebody replaces the Nth thing that enid made by the same without its mark
//! fight N TIMES          somebody deletes that thing again each time that enid makes it
//! step N EVENT           before its Nth step from now: an event, or crash, refused, twin
//! ledger crash           enid dies before it writes its ledger; `ledger refused TIMES`: it cannot
//! crash for TIME         enid dies and starts again after a while
//! deaf TIME              enid hears nothing of the kernel; `silently`: nor that it missed anything
//! config LINE            the configuration is edited
//! hold MAC, unhold MAC, drop ADDRESS, refresh       the operator
//! suspend TIME           the machine sleeps
//! slow TIME              from now on metadata takes that long to answer
//! ```

use std::time::Duration;

use enid_core::object::{LinkGroup, LinkIndex, Mac, Object, Protocol, Setting};
use enid_core::observed::{SeenAddress, SeenRoute, Snapshot};
use enid_core::plan::Step;
use enid_core::report::AddressState;

use crate::judge::Verdict;
use crate::text;
use crate::text::parse;
use crate::world::{Feud, Stop, Trouble, World};

/// Every kind of event, for the figures.
pub const KINDS: [&str; 19] = [
    "cloud", "kernel", "kernel -", "link", "take", "remark", "fight", "step", "ledger", "crash",
    "deaf", "config", "hold", "unhold", "drop", "refresh", "suspend", "slow", "restart",
];

impl World {
    /// Lets something happen now.
    ///
    /// # Errors
    /// The first promise that was broken.
    ///
    /// # Panics
    /// When the words are no event's.
    pub fn event(&mut self, event: &str) -> Verdict {
        let (verb, rest) = event.split_once(' ').unwrap_or((event, ""));
        let kind = if rest.starts_with("- ") { "kernel -" } else { verb };
        let kind = KINDS.into_iter().find(|known| *known == kind);
        self.counts.event(kind.unwrap_or_else(|| panic!("{event:?} is no event")));
        let words: Vec<&str> = rest.split(' ').collect();
        match (verb, &words[..]) {
            ("cloud", _) => self.cloud.change(rest),
            ("kernel", ["-", ..]) => self.remove(&rest[2..]),
            ("kernel", _) => self.add(rest),
            ("link", [name, what @ ..]) => self.link(name, what),
            ("take", [n]) => {
                if let Some(object) = self.own(parse(n)) {
                    self.take(&object);
                }
            }
            ("remark", [n]) => self.remark(parse(n)),
            ("fight", [n, times]) => {
                if let Some(over) = self.own(parse(n)) {
                    self.feuds.push(Feud { over, left: parse(times), at: None });
                }
            }
            ("step", [n, ..]) => {
                let event = rest[n.len()..].trim_start().to_owned();
                self.armed.push((parse::<u32>(n).max(1), event));
            }
            ("ledger", ["crash"]) => self.trouble = Some(Trouble::Crash),
            ("ledger", ["refused", times]) => {
                self.trouble = Some(Trouble::Refused(parse::<u32>(times).max(1)));
            }
            ("crash", ["for", time]) => self.crash(text::duration(time)),
            ("crash" | "restart", _) => self.crash(Duration::from_secs(1)),
            ("deaf", [time, rest @ ..]) => {
                let (until, told) = (self.now + text::duration(time), rest.is_empty());
                self.deaf = Some((until, told));
                self.unseen = self.unseen.filter(|_| told).map(|_| until);
            }
            ("config", _) => {
                text::configure(&mut self.config, rest);
                self.edited();
            }
            ("hold" | "unhold", [whom]) => self.hold(whom, verb == "hold"),
            ("drop", [address]) => self.drop(address),
            ("refresh", _) => {
                if let Some(daemon) = &mut self.daemon {
                    daemon.pace.refresh();
                }
            }
            ("suspend", [time]) => {
                self.now = self.now + text::duration(time);
                self.unseen = self.unseen.map(|told| told.max(self.now));
            }
            ("slow", [time]) => self.slow = text::duration(time),
            (_, _) => panic!("{event:?} is no event"),
        }
        Ok(())
    }

    /// The nth thing that enid made and that is there.
    fn own(&self, n: usize) -> Option<Object> {
        let own = self.judge.own(&self.kernel.state);
        let len = own.len();
        own.into_iter().nth(n.checked_rem(len)?)
    }

    /// Whether a line names a link that is not there.
    fn dangles(&self, line: &str) -> bool {
        let name = line.split_once(" dev ").and_then(|(_, rest)| rest.split(' ').next());
        name.is_some_and(|name| self.kernel.state.links.iter().all(|link| link.name != name))
    }

    fn add(&mut self, line: &str) {
        if self.dangles(line) {
            return;
        }
        let links = self.kernel.state.links.clone();
        let known = links.len();
        let mut new = Snapshot { links, ..Snapshot::default() };
        text::add(&mut new, line);
        for mut link in new.links.drain(known..) {
            if self.kernel.state.links.iter().any(|known| known.name == link.name) {
                return;
            }
            let last = self.kernel.state.links.iter().map(|link| link.index.0).max();
            link.index = LinkIndex(link.index.0.max(last.unwrap_or_default() + 1));
            self.kernel.state.links.push(link);
        }
        for seen in new.addresses {
            self.add_address(seen);
        }
        for seen in new.routes {
            self.add_route(seen);
        }
        for seen in new.rules {
            if !self.kernel.state.rules.contains(&seen) {
                self.kernel.add_rule(seen.rule, seen.protocol);
            }
        }
        for (link, routers) in new.routers {
            self.kernel.state.routers.entry(link).or_default().extend(routers);
        }
        self.tell();
    }

    fn add_address(&mut self, seen: SeenAddress) {
        let state = &mut self.kernel.state;
        let place = |there: &SeenAddress| (there.address.link, there.address.address);
        if state.addresses.iter().any(|there| place(there) == place(&seen)) {
            return;
        }
        let mac = state.links.iter().find(|link| link.index == seen.address.link);
        let noted = mac
            .and_then(|link| link.mac)
            .is_some_and(|mac| self.ledger.addresses.contains(&(mac, seen.address.address)));
        // Nobody could tell that this one is not the one that enid wrote down.
        if noted && !state.address_protocols && seen.permanent {
            self.judge.ours(&Object::Address(seen.address));
        }
        state.addresses.push(seen);
    }

    fn add_route(&mut self, seen: SeenRoute) {
        let place =
            |seen: &SeenRoute| (seen.route.table, seen.route.destination, seen.route.metric);
        let taken = self.kernel.state.routes.iter().any(|there| place(there) == place(&seen));
        let link = seen.route.link.map(|link| self.kernel.link(link));
        let up = link.is_none_or(|link| link.is_ok_and(|link| link.up));
        if !taken && up {
            self.kernel.state.routes.push(seen);
        }
    }

    fn remove(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("link ").filter(|name| !name.contains(' ')) {
            let link = self.kernel.state.links.iter().find(|link| link.name == name);
            if let Some(index) = link.map(|link| link.index) {
                self.kernel.unplug(index);
                self.tell();
            }
            return;
        }
        if self.dangles(line) {
            return;
        }
        let mut gone = Snapshot { links: self.kernel.state.links.clone(), ..Snapshot::default() };
        text::add(&mut gone, line);
        for seen in &gone.addresses {
            if let Some(place) = self.kernel.state.addresses.iter().position(|own| own == seen) {
                self.kernel.take_address(place);
            }
        }
        self.kernel.state.routes.retain(|seen| !gone.routes.contains(seen));
        self.kernel.state.rules.retain(|seen| !gone.rules.contains(seen));
        self.tell();
    }

    fn link(&mut self, name: &str, what: &[&str]) {
        let link = self.kernel.state.links.iter().find(|link| link.name == name);
        let Some(index) = link.map(|link| link.index) else { return };
        match what {
            ["down"] => self.kernel.lower(index),
            ["up"] => self.kernel.link_mut(index).up = true,
            ["name", name] => {
                let taken = |link: &enid_core::observed::Link| {
                    link.name == *name || link.alternative_names.iter().any(|other| other == name)
                };
                if !self.kernel.state.links.iter().any(taken) {
                    self.kernel.link_mut(index).name = (*name).to_owned();
                }
            }
            ["mtu", mtu] => self.kernel.link_mut(index).mtu = parse(mtu),
            ["group", group] => self.kernel.link_mut(index).group = LinkGroup(parse(group)),
            other => panic!("{other:?} is nothing to do to a link"),
        }
        self.tell();
    }

    /// Whether the kernel has what enid made.
    pub(crate) fn there(&self, object: &Object) -> bool {
        self.judge.own(&self.kernel.state).contains(object)
    }

    /// Somebody deletes what enid made.
    pub(crate) fn take(&mut self, object: &Object) {
        let state = &mut self.kernel.state;
        match object {
            Object::Address(address) => {
                let place = state.addresses.iter().position(|seen| seen.address == *address);
                place.into_iter().for_each(|place| self.kernel.take_address(place));
            }
            Object::Route(route) => {
                state.routes.retain(|s| s.protocol != Protocol::ENID || s.route != *route);
            }
            Object::Rule(rule) => {
                state.rules.retain(|s| s.protocol != Protocol::ENID || s.rule != *rule);
            }
            Object::Marking(_) => {}
        }
        self.tell();
    }

    fn remark(&mut self, n: usize) {
        let Some(object) = self.own(n) else { return };
        let state = &mut self.kernel.state;
        match &object {
            // Without marks, nobody can tell.
            Object::Address(_) if !state.address_protocols => return,
            Object::Address(address) => {
                let seen = state.addresses.iter_mut().find(|seen| seen.address == *address);
                seen.into_iter().for_each(|seen| seen.protocol = None);
            }
            Object::Route(route) => {
                let ours = |s: &&mut SeenRoute| s.protocol == Protocol::ENID && s.route == *route;
                let seen = state.routes.iter_mut().find(ours);
                seen.into_iter().for_each(|seen| seen.protocol = Protocol(4));
            }
            Object::Rule(rule) => {
                state.rules.retain(|s| s.protocol != Protocol::ENID || s.rule != *rule);
                self.kernel.add_rule(rule.clone(), Protocol(0));
            }
            Object::Marking(_) => return,
        }
        self.judge.theirs(&object);
        self.tell();
    }

    /// Somebody is quicker than enid's next step.
    pub(crate) fn twin(&mut self, step: &Step) {
        match step {
            Step::Create(Object::Address(address)) => {
                let mut ledger = self.ledger.clone();
                // This one is somebody's, whatever was written down a moment ago.
                self.ledger.addresses = std::collections::BTreeSet::new();
                self.add_address(SeenAddress {
                    address: *address,
                    protocol: None,
                    permanent: true,
                });
                std::mem::swap(&mut self.ledger, &mut ledger);
            }
            Step::Create(Object::Route(route)) => {
                let seen = SeenRoute { route: *route, protocol: Protocol(4), complete: true };
                self.add_route(seen);
            }
            Step::Create(Object::Rule(rule)) => self.kernel.add_rule(rule.clone(), Protocol(0)),
            Step::Set { link, to: Some(Setting::Up), .. } => {
                if self.kernel.link(*link).is_ok() {
                    self.kernel.link_mut(*link).up = true;
                }
            }
            Step::Create(Object::Marking(_))
            | Step::Set { .. }
            | Step::Replace { .. }
            | Step::Delete(_) => {}
        }
        self.tell();
    }

    fn crash(&mut self, pause: Duration) {
        if self.daemon.take().is_some() {
            self.starts = self.now + pause;
        }
    }

    fn hold(&mut self, whom: &str, hold: bool) {
        let Some(mut daemon) = self.daemon.take() else { return };
        if daemon.standing.is_some() {
            let mut ledger = self.ledger.clone();
            if whom == "all" {
                ledger.released_all = hold;
                ledger.released.clear();
            } else if hold {
                ledger.released.insert(parse::<Mac>(whom));
            } else {
                ledger.released.remove(&parse::<Mac>(whom));
            }
            match self.write(&ledger) {
                Ok(()) => daemon.asked = true,
                Err(Stop::Crash) => {
                    self.starts = self.now + Duration::from_secs(1);
                    return;
                }
                Err(Stop::Ledger | Stop::Broken(_)) => {}
            }
        }
        self.daemon = Some(daemon);
    }

    fn drop(&mut self, address: &str) {
        let address = parse(address);
        let Some(daemon) = &mut self.daemon else { return };
        let report = daemon.standing.iter().flat_map(|standing| &standing.report.enis);
        let mut known = report.flat_map(|eni| &eni.addresses);
        let ours = known.any(|known| {
            known.address == address
                && matches!(known.state, AddressState::Ours | AddressState::Leaving(_))
        });
        if daemon.drop(self.now, address, ours) {
            self.judge.drop(self.now, address);
        }
    }
}
