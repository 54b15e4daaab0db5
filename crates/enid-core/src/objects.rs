//! What must be and what is, side by side: the addresses, routes, rules, markings and settings of
//! each ENI, and of each how it stands with it.
//!
//! An ENI that the operator holds is compared with what it would have without the hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::Mtu;
use crate::desired::{Desired, build, looked_up};
use crate::diff::Diff;
use crate::eni::{Eni, Facts};
use crate::ledger::Ledger;
use crate::link;
use crate::memory::Memory;
use crate::object::{
    Address, LinkIndex, Mac, Marking, Object, Protocol, Route, Rule, Setting, TableId,
};
use crate::observed::{Link, Observed, Owner, SeenAddress};
use crate::plan::Step;
use crate::proof;
use crate::report::{AddressState, EniReport, EniState, Hold, Kept, Leaving, Report, Waiting};
use crate::why;

/// All objects, by the ENI that they are of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Objects {
    /// Those of each ENI with a link.
    pub enis: BTreeMap<Mac, Vec<Listed>>,
    /// What enid made for an ENI that is not here any more.
    pub left: Vec<Listed>,
}

/// An object or a setting.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thing {
    /// An address, a route, a rule or a marking.
    Object(Object),
    /// A property of a link.
    Setting(LinkIndex, Setting),
}

/// How it stands with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Presence {
    /// It must be there, and is.
    There,
    /// It must be there, and is not.
    Missing,
    /// enid made it, and it must go.
    Extra,
    /// Somebody else made it; it stays.
    Foreign,
    /// It must be there, and somebody else's object stands in its place.
    Conflict,
}

/// What keeps something that is missing from being made, or something that must go from going.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delay {
    /// The ENI is left alone.
    Hold(Hold),
    /// The ENI waits for something, or somebody undoes what enid does.
    Waiting(Waiting),
    /// It is not proven that it may go.
    Proof(Leaving),
    /// Somebody else must do something about it, in words.
    NotOurs(&'static str),
}

/// One object, and how it stands with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// What it is.
    pub thing: Thing,
    /// How it stands with it.
    pub presence: Presence,
    /// What it is for, or why it is there although nobody wishes for it.
    pub reason: String,
    /// What keeps that from being changed; none where the next pass does it or nothing is to do.
    pub delay: Option<Delay>,
}

/// Compares; `memory` and `report` are those of a decision from the same facts.
#[must_use]
pub fn objects(facts: &Facts<'_>, memory: &Memory, report: &Report) -> Objects {
    let ledger = Ledger { holds: BTreeMap::new(), ..facts.observed.ledger.clone() };
    let observed = Observed { ledger: &ledger, ..facts.observed };
    let facts = Facts { observed, ..*facts };
    let (desired, enis) = build(&facts, &mut memory.clone());
    let diff = Diff::between(&desired, &facts.observed);
    let linked = enis.iter().filter(|eni| eni.link.is_some());
    let objects = Objects { enis: linked.map(|eni| (eni.mac, Vec::new())).collect(), left: vec![] };
    let mut sides = Sides { facts, enis: &enis, desired: &desired, diff: &diff, report, objects };
    sides.settings();
    for eni in &enis {
        if let Some(link) = eni.link {
            sides.addresses(eni, link);
        }
    }
    sides.routes();
    sides.rules();
    sides.markings();
    sides.objects
}

/// Both sides, and what has been listed of them.
struct Sides<'a> {
    facts: Facts<'a>,
    enis: &'a [Eni<'a>],
    desired: &'a Desired,
    diff: &'a Diff,
    report: &'a Report,
    objects: Objects,
}

impl Sides<'_> {
    fn list(&mut self, mac: Option<Mac>, listed: Listed) {
        match mac.and_then(|mac| self.objects.enis.get_mut(&mac)) {
            Some(of_eni) => of_eni.push(listed),
            None => self.objects.left.push(listed),
        }
    }

    /// Lists an object of which nothing is to be changed.
    fn stays(&mut self, mac: Option<Mac>, object: Object, presence: Presence, reason: String) {
        let thing = Thing::Object(object);
        self.list(mac, Listed { thing, presence, reason, delay: None });
    }

    fn there(&mut self, mac: Mac, object: Object, reason: String) {
        self.stays(Some(mac), object, Presence::There, reason);
    }

    fn missing(&mut self, mac: Mac, object: Object, reason: String) {
        let step = Step::Create(object.clone());
        let delay = self.delay(Some(mac), Some(&step));
        let presence = Presence::Missing;
        self.list(Some(mac), Listed { thing: Thing::Object(object), presence, reason, delay });
    }

    fn not_ours(&mut self, mac: Mac, address: Address, why: &'static str) {
        let thing = Thing::Object(Object::Address(address));
        let (reason, delay) = (why::granted(&address), Some(Delay::NotOurs(why)));
        self.list(Some(mac), Listed { thing, presence: Presence::Missing, reason, delay });
    }

    fn extra(&mut self, mac: Option<Mac>, object: Object, reason: String, proof: Option<Leaving>) {
        let proof = proof.filter(|leaving| !leaving.proven).map(Delay::Proof);
        let delay = self.delay(mac, None).or(proof);
        let presence = Presence::Extra;
        self.list(mac, Listed { thing: Thing::Object(object), presence, reason, delay });
    }

    /// Something of enid's that is neither wished for nor about to go.
    fn left_as_it_is(&mut self, mac: Option<Mac>, object: Object) {
        let delay = self.delay(mac, None);
        let reason = "enid made it, and leaves it as it is until it knows whose it is".to_owned();
        let presence = Presence::There;
        self.list(mac, Listed { thing: Thing::Object(object), presence, reason, delay });
    }

    fn reported(&self, mac: Mac) -> Option<&EniReport> {
        self.report.enis.iter().find(|eni| eni.mac == mac)
    }

    /// What keeps a step for an ENI, or any step for it, from being taken.
    fn delay(&self, mac: Option<Mac>, step: Option<&Step>) -> Option<Delay> {
        let eni = self.reported(mac?)?;
        match &eni.state {
            // What was released goes, and does not come back.
            EniState::Held(Hold::Released) if !matches!(step, Some(Step::Create(_))) => {
                return None;
            }
            EniState::Held(hold) => return Some(Delay::Hold(hold.clone())),
            EniState::Pending => return eni.waiting.first().cloned().map(Delay::Waiting),
            EniState::Managed | EniState::NoLink => {}
        }
        let effect = step?.effect();
        let fought = |waiting: &&Waiting| match waiting {
            Waiting::Fight { step, .. } => step.effect() == effect,
            Waiting::FirstReading
            | Waiting::Keys(_)
            | Waiting::DeviceNumber
            | Waiting::PrimaryAddress(_)
            | Waiting::Reading(_)
            | Waiting::Incomplete(_)
            | Waiting::Unlisted
            | Waiting::NotListed { .. }
            | Waiting::Udev { .. }
            | Waiting::Removals(_) => false,
        };
        eni.waiting.iter().find(fought).cloned().map(Delay::Waiting)
    }

    fn owner_of_table(&self, table: TableId) -> Option<Mac> {
        let has = |eni: &&Eni<'_>| eni.managed() && eni.table == Some(table);
        let noted = || {
            let mut tables = self.facts.observed.ledger.tables.iter();
            tables.find(|(_, noted)| **noted == table).map(|(mac, _)| *mac)
        };
        self.enis.iter().find(has).map(|eni| eni.mac).or_else(noted)
    }

    fn owner_of_link(&self, link: LinkIndex) -> Option<Mac> {
        let has = |eni: &&Eni<'_>| eni.link.is_some_and(|own| own.index == link);
        self.enis.iter().find(has).map(|eni| eni.mac)
    }
}

/// Links and their addresses.
impl Sides<'_> {
    fn settings(&mut self) {
        for change in &self.desired.changes {
            let (presence, setting) = match (&change.from, &change.to) {
                (_, Some(to)) => (Presence::Missing, to.clone()),
                (Some(from), None) => (Presence::Extra, from.clone()),
                (None, None) => continue,
            };
            let (link, to) = (change.link, change.to.clone());
            let delay = self.delay(Some(change.mac), Some(&Step::Set { link, from: None, to }));
            let reason = why::setting(change.from.as_ref(), change.to.as_ref()).to_owned();
            let thing = Thing::Setting(link, setting);
            self.list(Some(change.mac), Listed { thing, presence, reason, delay });
        }
        for eni in self.enis.iter().filter(|eni| eni.managed()) {
            let Some(link) = eni.link else { continue };
            let changes = |same: fn(&Setting) -> bool| {
                let mut changes = self.desired.changes.iter();
                changes.any(|it| it.mac == eni.mac && it.to.as_ref().is_some_and(same))
            };
            let mut has = link::as_wished(eni, link);
            if changes(|setting| matches!(setting, Setting::Group(_))) {
                has.retain(|setting| !matches!(setting, Setting::Group(_)));
            }
            let resized = changes(|setting| matches!(setting, Setting::Mtu(_)));
            if !eni.primary && eni.choice.mtu != Mtu::Keep && !resized {
                has.push(Setting::Mtu(link.mtu));
            }
            for setting in has {
                let reason = why::setting(None, Some(&setting)).to_owned();
                let thing = Thing::Setting(link.index, setting);
                let presence = Presence::There;
                self.list(Some(eni.mac), Listed { thing, presence, reason, delay: None });
            }
        }
    }

    fn addresses(&mut self, eni: &Eni<'_>, link: &Link) {
        let seen: BTreeMap<IpAddr, &SeenAddress> = self
            .facts
            .observed
            .snapshot
            .addresses
            .iter()
            .filter(|seen| seen.address.link == link.index)
            .map(|seen| (seen.address.address, seen))
            .collect();
        let wishes: BTreeMap<IpAddr, Address> = self
            .desired
            .addresses
            .iter()
            .filter(|(mac, _)| *mac == eni.mac)
            .map(|(_, wish)| (wish.address, *wish))
            .collect();
        for granted in eni.addresses() {
            self.granted(eni, link, granted, wishes.get(&granted), seen.get(&granted).copied());
        }
        let kept: BTreeMap<IpAddr, Kept> = proof::kept(&self.facts, eni)
            .into_iter()
            .map(|kept| (kept.address, kept.why))
            .collect();
        for (address, seen) in seen.iter().filter(|(address, _)| !eni.wants(**address)) {
            self.ungranted(eni, seen, kept.get(address).copied());
        }
    }

    /// An address that metadata grants.
    fn granted(
        &mut self,
        eni: &Eni<'_>,
        link: &Link,
        address: IpAddr,
        wish: Option<&Address>,
        seen: Option<&SeenAddress>,
    ) {
        let state = self.desired.states.get(&(eni.mac, address));
        let ignored = matches!(state, Some(AddressState::Ignored));
        let unmade = Address {
            link: link.index,
            address,
            prefix_length: if address.is_ipv4() { 32 } else { 128 },
            prefix_route: false,
            preferred: true,
        };
        let wish = *wish.unwrap_or(&unmade);
        if let Some(seen) = seen.filter(|seen| self.desired.removals.contains(&seen.address)) {
            let object = Object::Address(seen.address);
            self.extra(Some(eni.mac), object.clone(), why::needless(&object).to_owned(), None);
        } else if let Some(seen) = seen {
            let maker = match self.facts.observed.owner(seen) {
                Owner::Ours => "",
                Owner::TakenOver => "; enid made it, and somebody replaced it since",
                Owner::Foreign if seen.permanent => "; somebody else made it",
                Owner::Foreign => "; somebody else made it, with a lifetime (a DHCP client, say)",
            };
            let ignored = if ignored { ", the configuration says to leave it alone" } else { "" };
            let reason = format!("{}{ignored}{maker}", why::granted(&wish));
            self.there(eni.mac, Object::Address(seen.address), reason);
        } else if let Some(AddressState::Elsewhere { .. }) = state {
            let reason = "another link that is no ENI has it or a route to it".to_owned();
            self.stays(Some(eni.mac), Object::Address(wish), Presence::Conflict, reason);
        } else if address.is_ipv6() && !link.ipv6 {
            self.not_ours(eni.mac, wish, "IPv6 is off on its link");
        } else if eni.primary && eni.primary_address() == Some(address) {
            self.not_ours(eni.mac, wish, "whoever configured it at boot must bring it back");
        } else if !ignored {
            self.missing(eni.mac, Object::Address(wish), why::granted(&wish));
        }
    }

    /// An address on an ENI's link that metadata does not grant.
    fn ungranted(&mut self, eni: &Eni<'_>, seen: &SeenAddress, kept: Option<Kept>) {
        let (mac, object) = (eni.mac, Object::Address(seen.address));
        let ours = self.facts.observed.owner(seen) == Owner::Ours;
        match self.desired.states.get(&(mac, seen.address.address)) {
            Some(AddressState::Leaving(leaving)) => {
                let reason = why::departed(leaving);
                self.extra(Some(mac), object, reason, Some(leaving.clone()));
                return;
            }
            Some(AddressState::TakenOver) => {
                let reason = "enid made it, and somebody replaced it since".to_owned();
                self.stays(Some(mac), object, Presence::Foreign, reason);
                return;
            }
            Some(
                AddressState::Ours
                | AddressState::Theirs
                | AddressState::Adding
                | AddressState::Missing
                | AddressState::Ignored
                | AddressState::Elsewhere { .. },
            )
            | None => {}
        }
        if self.desired.removals.contains(&seen.address) {
            self.extra(Some(mac), object.clone(), why::needless(&object).to_owned(), None);
        } else if let Some(kept) = kept {
            let presence = if ours { Presence::There } else { Presence::Foreign };
            self.stays(Some(mac), object, presence, kept.to_string());
        } else if ours {
            self.left_as_it_is(Some(mac), object);
        } else if !proof::is_link_local(seen.address.address) {
            self.stays(Some(mac), object, Presence::Foreign, Kept::Foreign.to_string());
        }
    }
}

/// Routes, rules and markings.
impl Sides<'_> {
    fn routes(&mut self) {
        let routes = &self.facts.observed.snapshot.routes;
        let whole = routes.iter().filter(|seen| seen.complete);
        let there: BTreeMap<Route, Protocol> =
            whole.map(|seen| (seen.route, seen.protocol)).collect();
        let conflicts: BTreeSet<&Object> =
            self.diff.conflicts.iter().map(|(_, object)| object).collect();
        let replaced: BTreeMap<&Route, &Route> =
            self.diff.replaced_routes.iter().map(|(_, old, new)| (new, old)).collect();
        let made: BTreeSet<&Route> = self.diff.routes.iter().map(|(_, route)| route).collect();
        for (wish, mac) in &self.desired.routes {
            let object = Object::Route(*wish);
            let purpose = why::purpose(&object);
            if let Some(by) = there.get(wish) {
                self.present_route(*mac, wish, *by);
            } else if conflicts.contains(&object) {
                let reason = format!("{purpose}; somebody else's route stands in its place");
                self.stays(Some(*mac), object, Presence::Conflict, reason);
            } else if let Some(old) = replaced.get(wish) {
                self.missing(*mac, object, format!("{purpose}; another one is in its place"));
                let reason = "another one belongs in its place".to_owned();
                self.extra(Some(*mac), Object::Route(**old), reason, None);
            } else if made.contains(wish) {
                self.missing(*mac, object, purpose.to_owned());
            } else {
                let reason =
                    format!("{purpose}; somebody else's route keeps its gateway out of reach");
                self.stays(Some(*mac), object, Presence::Conflict, reason);
            }
        }
        let stale: BTreeSet<&Route> = self.diff.stale_routes.iter().collect();
        let replaced: BTreeSet<&Route> = replaced.into_values().collect();
        for seen in routes.iter().filter(|seen| !self.desired.routes.contains_key(&seen.route)) {
            let object = Object::Route(seen.route);
            let link = seen.route.link.and_then(|link| self.owner_of_link(link));
            let owner = self.owner_of_table(seen.route.table);
            if seen.protocol != Protocol::ENID {
                // Shared tables are everybody's.
                if owner.is_some() {
                    let reason = format!("enid did not make it (proto {})", seen.protocol);
                    self.stays(owner, object, Presence::Foreign, reason);
                }
            } else if stale.contains(&seen.route) {
                let reason = why::needless(&object).to_owned();
                self.extra(owner.or(link), object, reason, None);
            } else if !replaced.contains(&seen.route) {
                self.left_as_it_is(owner.or(link), object);
            }
        }
    }

    /// A route that is there as it must be, or one to a CIDR that waits for its proof.
    fn present_route(&mut self, mac: Mac, wish: &Route, by: Protocol) {
        let object = Object::Route(*wish);
        let leaves = |(of, cidr): &&(Mac, crate::report::CidrReport)| {
            *of == mac && cidr.cidr == wish.destination && wish.gateway.is_some()
        };
        let leaving = self.desired.cidrs.iter().find(leaves);
        if let Some((_, cidr)) = leaving {
            let (reason, leaving) = (why::departed(&cidr.leaving), cidr.leaving.clone());
            self.extra(Some(mac), object, reason, Some(leaving));
            return;
        }
        let maker =
            if by == Protocol::ENID { String::new() } else { format!("; made by proto {by}") };
        let reason = format!("{}{maker}", why::purpose(&object));
        self.there(mac, object, reason);
    }

    fn rules(&mut self) {
        let own: BTreeSet<&Rule> = self.facts.observed.own_rules().collect();
        for (wish, mac) in &self.desired.rules {
            let object = Object::Rule(wish.clone());
            let reason = why::purpose(&object).to_owned();
            if own.contains(wish) {
                self.there(*mac, object, reason);
            } else {
                self.missing(*mac, object, reason);
            }
        }
        type Packets = (Option<IpNet>, Option<(u32, u32)>);
        let packets = |rule: &Rule| -> Packets { (rule.source, rule.mark) };
        let tables: BTreeMap<Packets, TableId> = own
            .iter()
            .copied()
            .chain(self.desired.rules.keys())
            .filter_map(|rule| Some((packets(rule), looked_up(rule)?)))
            .collect();
        let stale: BTreeSet<&Rule> = self.diff.stale_rules.iter().collect();
        for seen in &self.facts.observed.snapshot.rules {
            let (rule, object) = (&seen.rule, Object::Rule(seen.rule.clone()));
            let ours = seen.protocol == Protocol::ENID;
            let equal = self.desired.rules.get(rule).filter(|_| seen.complete);
            if ours && equal.is_some() {
                continue;
            }
            let table = looked_up(rule);
            let beside = || tables.get(&packets(rule)).copied().filter(|_| ours);
            let owner = table.or_else(beside).and_then(|table| self.owner_of_table(table));
            if !ours {
                if let Some(owner) = owner.or(equal.copied()) {
                    let reason = format!("enid did not make it (proto {})", seen.protocol);
                    self.stays(Some(owner), object, Presence::Foreign, reason);
                }
            } else if stale.contains(rule) {
                self.extra(owner, object.clone(), why::needless(&object).to_owned(), None);
            } else {
                self.left_as_it_is(owner, object);
            }
        }
    }

    fn markings(&mut self) {
        let missing: BTreeSet<&Marking> =
            self.diff.markings.iter().map(|(_, marking)| marking).collect();
        for (wish, mac) in &self.desired.markings {
            let object = Object::Marking(wish.clone());
            let reason = why::purpose(&object).to_owned();
            if missing.contains(wish) {
                self.missing(*mac, object, reason);
            } else {
                self.there(*mac, object, reason);
            }
        }
        let stale: BTreeSet<&Marking> = self.diff.stale_markings.iter().collect();
        for seen in &self.facts.observed.snapshot.markings {
            let (marking, object) = (&seen.marking, Object::Marking(seen.marking.clone()));
            let owner = self.owner_of_table(marking.table);
            let wished = self.desired.markings.keys().any(|wish| wish.table == marking.table);
            if stale.contains(marking) {
                self.extra(owner, object.clone(), why::needless(&object).to_owned(), None);
            } else if !wished {
                self.left_as_it_is(owner, object);
            }
        }
    }
}
