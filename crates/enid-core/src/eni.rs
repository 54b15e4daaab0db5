//! Which ENIs there are and how it stands with each, before anything is wished for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::choice::{Care, Choice, Identity};
use crate::config::{Cni, Config};
use crate::ledger::Ledger;
use crate::memory::Memory;
use crate::metadata::EniKey;
use crate::metadata::facts::{EniFacts, Metadata, State};
use crate::object::{Family, LinkIndex, Mac, TableId};
use crate::observed::{Link, Observed};
use crate::prefix;
use crate::report::{EniState, Hold, Notice, RefusalReason, Waiting};
use crate::stack::{Stack, refused};
use crate::time::Instant;

/// How long udev may take to initialise a link.
const UDEV_PATIENCE: Duration = Duration::from_secs(5);

/// How long metadata may take to list a new link's ENI.
pub(crate) const EXPECTED: Duration = Duration::from_secs(180);

/// Everything that a decision is made from.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The time of the decision.
    pub now: Instant,
    /// What the operator wants.
    pub config: &'a Config,
    /// What the cloud says.
    pub metadata: &'a Metadata,
    /// What the kernel has.
    pub observed: Observed<'a>,
    /// Links that udev has not initialised yet; empty where udev does not run.
    pub udev: &'a BTreeSet<LinkIndex>,
}

impl Facts<'_> {
    /// New links that metadata will probably list soon, and until when to expect that.
    fn expected(&self, memory: &Memory) -> impl Iterator<Item = (Mac, Instant)> {
        let read = self.metadata.top_read.is_some();
        let links = self
            .observed
            .snapshot
            .links
            .iter()
            .filter(move |link| read && link.may_be_eni() && self.config.expects(link));
        links.filter_map(|link| {
            let until = *memory.links.get(&link.index)? + EXPECTED;
            let mac = link.mac.filter(|mac| !self.metadata.listed.contains(mac))?;
            (self.now < until).then_some((mac, until))
        })
    }
}

/// One ENI of this instance.
#[derive(Debug, Clone)]
pub(crate) struct Eni<'a> {
    pub(crate) mac: Mac,
    pub(crate) facts: Option<&'a EniFacts>,
    pub(crate) link: Option<&'a Link>,
    pub(crate) primary: bool,
    pub(crate) place: Option<(u32, u32)>,
    pub(crate) table: Option<TableId>,
    /// IPv4, then IPv6.
    pub(crate) stacks: [Stack; 2],
    pub(crate) choice: Choice,
    pub(crate) state: EniState,
    pub(crate) waiting: Vec<Waiting>,
    pub(crate) notices: Vec<Notice>,
}

impl<'a> Eni<'a> {
    pub(crate) fn managed(&self) -> bool {
        self.state == EniState::Managed
    }

    pub(crate) fn released(&self) -> bool {
        self.state == EniState::Held(Hold::Released)
    }

    /// Whether it has, or is to have, a table and rules.
    pub(crate) fn routed(&self) -> bool {
        self.choice.care == Care::Full
    }

    pub(crate) fn stack(&self, family: Family) -> &Stack {
        let [v4, v6] = &self.stacks;
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }

    /// The families that can be configured.
    pub(crate) fn usable(&self) -> impl Iterator<Item = &Stack> {
        self.stacks.iter().filter(|stack| match stack.family {
            // Who is first tells which address is the primary one.
            Family::V4 => stack.usable() && self.primary_address().is_some(),
            Family::V6 => stack.usable() && self.link.is_none_or(|link| link.ipv6),
        })
    }

    /// The primary address of IPv4, where metadata's is usable; IPv6 has none.
    pub(crate) fn primary_address(&self) -> Option<IpAddr> {
        let first = IpAddr::V4(*self.facts?.keys.ipv4s.first()?);
        let [v4, _] = &self.stacks;
        v4.addresses.first().filter(|address| **address == first).copied()
    }

    /// Usable addresses of metadata, IPv4's primary one first.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.stacks.iter().flat_map(|stack| stack.addresses.iter().copied())
    }

    /// Addresses of a family whose subnet is not known.
    pub(crate) fn unread(&self) -> impl Iterator<Item = IpAddr> {
        let told = self.facts.into_iter().flat_map(|known| known.keys.addresses());
        told.filter(|address| self.stack(Family::of(*address)).subnets.is_empty())
    }

    pub(crate) fn wants(&self, address: IpAddr) -> bool {
        self.stack(Family::of(address)).addresses.contains(&address)
    }

    /// Delegated prefixes, also those whose removal is not proven yet.
    pub(crate) fn prefixes(&self) -> impl Iterator<Item = IpNet> {
        self.stacks.iter().flat_map(|stack| stack.prefixes.iter().copied())
    }

    /// The subnet's CIDRs of both families.
    pub(crate) fn subnets(&self) -> impl Iterator<Item = IpNet> {
        self.stacks.iter().flat_map(|stack| stack.subnets.iter().copied())
    }
}

/// All ENIs, the primary one first, then in the order of card and device.
pub(crate) fn survey<'a>(facts: &Facts<'a>, memory: &Memory) -> Vec<Eni<'a>> {
    let ledger = facts.observed.ledger;
    let here = |mac: &Mac| facts.observed.links_of(*mac).next().is_some();
    // What metadata said of an ENI goes together with its link, or once it lists it no more.
    let listed = &facts.metadata.listed;
    let elsewhere = |mac: &Mac| listed.contains(mac) && !memory.attached.contains(mac);
    let known = facts.metadata.enis.keys().filter(|mac| here(mac) || elsewhere(mac));
    let operator = ledger.released.iter().chain(ledger.holds.keys());
    let remembered = ledger.tables.keys().chain(operator).chain(listed);
    let mut macs: BTreeSet<Mac> =
        known.chain(remembered.filter(|mac| here(mac))).copied().collect();
    macs.extend(facts.expected(memory).map(|(mac, _)| mac));

    let mut enis: Vec<Eni<'a>> = macs.into_iter().map(|mac| identify(facts, mac)).collect();
    refuse_duplicates(facts, &mut enis);
    prefix::settle(facts, memory, &mut enis);
    let neighbour = facts.observed.neighbour().filter(|_| facts.config.cni == Cni::Hold);
    for eni in &mut enis {
        judge(facts, memory, neighbour, eni);
    }
    settle_tables(ledger, &mut enis);
    enis.sort_by_key(|eni| (!eni.primary, eni.place.is_none(), eni.place, eni.mac));
    enis
}

/// What metadata's values say by themselves.
fn identify<'a>(facts: &Facts<'a>, mac: Mac) -> Eni<'a> {
    let known = facts.metadata.enis.get(&mac);
    let primary = facts.metadata.primary == Some(mac);
    let mut links = facts.observed.links_of(mac);
    let link = links.next();
    let state = match (link, links.next()) {
        (_, Some(_)) => EniState::Held(Hold::SeveralLinks),
        (None, None) => EniState::NoLink,
        (Some(_), None) => EniState::Pending,
    };
    let keys = known.map(|eni| &eni.keys);
    // A card that is listed and could not be read is not card 0.
    let absent = known.is_some_and(|eni| eni.state(EniKey::NetworkCard) == State::Absent);
    let zero = (absent && !facts.metadata.cards) || primary;
    let card = keys.and_then(|keys| keys.card).or(zero.then_some(0));
    let place = card.zip(keys.and_then(|keys| keys.device));
    let refusals = known.into_iter().flat_map(|eni| eni.refusals.values().flatten());
    let mut notices: Vec<Notice> = refusals.cloned().map(Notice::Refused).collect();
    let stacks = [Family::V4, Family::V6].map(|family| Stack::read(family, known, &mut notices));
    let cidrs: Vec<IpNet> = stacks.iter().flat_map(|stack| stack.subnets.clone()).collect();
    let choice = facts.config.choice(&Identity {
        id: keys.and_then(|keys| keys.id.as_ref()),
        mac,
        place,
        driver: link.and_then(|link| link.driver.as_deref()),
        subnet: keys.and_then(|keys| keys.subnet.as_deref()),
        cidrs: &cidrs,
    });
    let (choice, state) = match choice {
        Err(contradiction) if state == EniState::Pending => {
            (Choice::default(), EniState::Held(Hold::Contradiction(contradiction)))
        }
        Ok(choice) if choice.care == Care::Ignore && state == EniState::Pending => {
            (choice, EniState::Held(Hold::Configuration))
        }
        choice => (choice.unwrap_or_default(), state),
    };
    Eni {
        mac,
        facts: known,
        link,
        primary,
        place,
        table: place.map(|(card, device)| TableId(facts.config.table_base + 100 * card + device)),
        stacks,
        choice,
        state,
        waiting: Vec::new(),
        notices,
    }
}

/// An address that metadata shows twice stays where the kernel has it, else with the first ENI that
/// has a link: a detached one may be shown for a while. A released ENI has no use for it.
fn refuse_duplicates(facts: &Facts<'_>, enis: &mut [Eni<'_>]) {
    let claim = |(n, eni): (usize, &Eni<'_>)| {
        eni.addresses().map(|address| (address, n)).collect::<Vec<_>>()
    };
    let mut claims: Vec<(IpAddr, usize)> = enis.iter().enumerate().flat_map(claim).collect();
    claims.sort_unstable();
    let addresses = &facts.observed.snapshot.addresses;
    for claims in claims.chunk_by(|a, b| a.0 == b.0).filter(|claims| claims.len() > 1) {
        let Some((address, _)) = claims.first().copied() else { continue };
        let claimants = claims.iter().map(|(_, n)| *n);
        let rank = |n: &usize| {
            let has = |link: &Link| {
                addresses
                    .iter()
                    .any(|seen| seen.address.link == link.index && seen.address.address == address)
            };
            let eni = &enis[*n];
            let released = facts.observed.ledger.is_released(eni.mac);
            (released, !eni.link.is_some_and(has), eni.link.is_none(), *n)
        };
        let Some(keeper) = claimants.clone().min_by_key(rank) else { continue };
        let by = enis[keeper].mac;
        let list = EniKey::addresses(Family::of(address));
        for n in claimants.filter(|n| *n != keeper) {
            for stack in &mut enis[n].stacks {
                stack.addresses.retain(|other| *other != address);
            }
            enis[n].notices.push(refused(list, address, RefusalReason::Duplicate(by)));
        }
    }
}

/// Decides whether the ENI can be configured, and what it waits for.
fn judge(facts: &Facts<'_>, memory: &Memory, neighbour: Option<&'static str>, eni: &mut Eni<'_>) {
    let ledger = facts.observed.ledger;
    if ledger.is_released(eni.mac) && eni.link.is_some() {
        eni.state = EniState::Held(Hold::Released);
        return;
    }
    if let Some(pause) = ledger.hold(eni.mac, facts.now)
        && eni.state == EniState::Pending
    {
        eni.state = EniState::Held(Hold::Operator(pause.clone()));
        return;
    }
    let [_, v6] = &eni.stacks;
    if v6.usable() && eni.link.is_some_and(|link| !link.ipv6) {
        eni.notices.push(Notice::NoIpv6);
    }
    let Some(link) = eni.link.filter(|_| eni.state == EniState::Pending) else {
        return;
    };
    if let Some(who) = neighbour {
        eni.state = EniState::Held(Hold::Neighbour(who));
        return;
    }
    let Some(known) = eni.facts else {
        match &facts.metadata.failure {
            Some(failure) => eni.waiting.push(Waiting::Reading(failure.clone())),
            None if facts.metadata.top_read.is_some()
                && !facts.metadata.listed.contains(&eni.mac) =>
            {
                match facts.expected(memory).find(|(mac, _)| *mac == eni.mac) {
                    Some((_, until)) => eni.waiting.push(Waiting::NotListed { until }),
                    None => eni.state = EniState::Held(Hold::NotListed),
                }
            }
            None => eni.waiting.push(Waiting::FirstReading),
        }
        return;
    };
    let unlisted = known.unlisted
        || (facts.metadata.top_read.is_some() && !facts.metadata.listed.contains(&eni.mac));
    if unlisted {
        eni.waiting.push(Waiting::Unlisted);
    } else if let Some(failure) = known.failure.as_ref().or(facts.metadata.failure.as_ref()) {
        eni.waiting.push(Waiting::Reading(failure.clone()));
    }
    let ready = match blocker(facts, eni, known) {
        Some(waiting) => {
            eni.waiting.push(waiting);
            false
        }
        None => true,
    };
    if ready && eni.primary_address().is_none() {
        eni.waiting.extend(first_refused(eni));
    }
    if ready && known.keys.subnets_v6.is_empty() && !known.keys.ipv6s.is_empty() {
        eni.waiting.push(Waiting::Keys(vec![EniKey::SubnetIpv6.name()]));
    }
    if ready && !unlisted && known.failure.is_none() && !known.incomplete.is_empty() {
        eni.waiting.push(Waiting::Incomplete(known.incomplete.clone()));
    }
    if ready && !link.up && !eni.primary && facts.udev.contains(&link.index) {
        let first = memory.links.get(&link.index).copied().unwrap_or(facts.now);
        let until = first + UDEV_PATIENCE;
        if facts.now < until {
            eni.waiting.push(Waiting::Udev { until });
            return;
        }
    }
    if ready {
        eni.state = EniState::Managed;
    }
}

/// What keeps an ENI from being configured at all.
fn blocker(facts: &Facts<'_>, eni: &Eni<'_>, known: &EniFacts) -> Option<Waiting> {
    let keys = &known.keys;
    // An IPv6-only ENI has none of IPv4's keys.
    let [v4, v6] = &eni.stacks;
    let only_v6 = !v6.subnets.is_empty() && v4.subnets.is_empty() && keys.ipv4s.is_empty();
    let any = eni.usable().next().is_some();
    let mut lacking: Vec<EniKey> = [
        (facts.metadata.primary.is_none(), EniKey::Mac),
        (keys.id.is_none(), EniKey::InterfaceId),
        (keys.device.is_none(), EniKey::DeviceNumber),
        (keys.device.is_some() && eni.place.is_none(), EniKey::NetworkCard),
        (!any && !only_v6 && keys.subnet_v4.is_none(), EniKey::SubnetIpv4),
        (!any && !only_v6 && keys.ipv4s.is_empty(), EniKey::LocalIpv4s),
        (!any && only_v6 && keys.ipv6s.is_empty(), EniKey::Ipv6s),
    ]
    .into_iter()
    .filter(|(lacks, _)| *lacks)
    .map(|(_, key)| key)
    .collect();
    let more = unmatched(facts.config, known).filter(|key| !lacking.contains(key));
    lacking.extend(more.collect::<Vec<_>>());
    if !lacking.is_empty() {
        return Some(Waiting::Keys(lacking.into_iter().map(EniKey::name).collect()));
    }
    if eni.place == Some((0, 0)) && !eni.primary {
        return Some(Waiting::DeviceNumber);
    }
    (!any).then(|| first_refused(eni)).flatten()
}

/// Keys that entries of the configuration match by and that have not been read: one of them may say
/// to leave this ENI alone.
fn unmatched(config: &Config, known: &EniFacts) -> impl Iterator<Item = EniKey> {
    let unread = |key: &EniKey| {
        let keys = &known.keys;
        let nothing = match key {
            EniKey::SubnetId => keys.subnet.is_none(),
            EniKey::SubnetIpv4 => keys.subnet_v4.is_none(),
            EniKey::SubnetIpv6 => keys.subnets_v6.is_empty(),
            // Without these no ENI is configured anyway, or nobody matches by them.
            EniKey::InterfaceId
            | EniKey::DeviceNumber
            | EniKey::NetworkCard
            | EniKey::Mac
            | EniKey::VpcId
            | EniKey::VpcIpv4
            | EniKey::VpcIpv6
            | EniKey::LocalIpv4s
            | EniKey::Ipv6s
            | EniKey::Ipv4Prefixes
            | EniKey::Ipv6Prefixes => false,
        };
        nothing && known.state(*key) == State::Unknown
    };
    config.matched_keys().into_iter().filter(unread).collect::<Vec<_>>().into_iter()
}

/// The refusal of the first entry of `local-ipv4s`, without which IPv4 cannot be configured.
fn first_refused(eni: &Eni<'_>) -> Option<Waiting> {
    let first = eni.facts?.keys.ipv4s.first()?.to_string();
    eni.notices.iter().find_map(|notice| match notice {
        Notice::Refused(refusal) if refusal.entry == first => {
            Some(Waiting::PrimaryAddress(refusal.clone()))
        }
        Notice::Refused(_)
        | Notice::MoreRefused { .. }
        | Notice::AlsoElsewhere { .. }
        | Notice::ForeignGroup(_)
        | Notice::Conflict { .. }
        | Notice::ForeignRoutes(_)
        | Notice::ForeignRules(_)
        | Notice::MainRoutes { .. }
        | Notice::NoIpv6
        | Notice::SharedSubnet
        | Notice::NoMark => None,
    })
}

/// Two ENIs cannot share a table: the primary one keeps it, then the one that had it before a
/// restart, then the one known longer.
fn settle_tables(ledger: &Ledger, enis: &mut [Eni<'_>]) {
    let mut order: Vec<usize> = (0..enis.len()).filter(|n| enis[*n].managed()).collect();
    order.sort_by_key(|n| {
        let eni = &enis[*n];
        let newcomer = ledger.tables.get(&eni.mac).copied() != eni.table;
        (!eni.primary, newcomer, eni.facts.map(|known| known.first_read), eni.mac)
    });
    // The table of an ENI that is left alone, because its metadata cannot be read, say, is not free.
    let left_alone =
        enis.iter().filter(|eni| eni.link.is_some() && !eni.managed() && !eni.released());
    let mut owners: BTreeMap<TableId, Mac> = left_alone
        .filter_map(|eni| ledger.tables.get(&eni.mac).map(|table| (*table, eni.mac)))
        .collect();
    for n in order {
        let Some(table) = enis[n].table else { continue };
        match owners.get(&table) {
            Some(by) => {
                enis[n].state = EniState::Held(Hold::TableTaken { by: *by, table });
                // What it had before is not free for another one either.
                let mac = enis[n].mac;
                if let Some(before) = ledger.tables.get(&mac) {
                    owners.entry(*before).or_insert(mac);
                }
            }
            None => {
                owners.insert(table, enis[n].mac);
            }
        }
    }
}
