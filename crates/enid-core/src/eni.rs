//! Which ENIs there are and how it stands with each, before anything is wished for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use crate::config::{Cni, Config};
use crate::ledger::Ledger;
use crate::memory::Memory;
use crate::metadata::EniKey;
use crate::metadata::facts::{EniFacts, Metadata, State};
use crate::object::{LinkIndex, Mac, TableId};
use crate::observed::{Link, Observed};
use crate::report::{EniState, Hold, Notice, Refusal, RefusalReason, Waiting};
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
    pub(crate) subnet: Option<Ipv4Net>,
    /// Usable IPv4 addresses of metadata, the primary one first, ignored ones included.
    pub(crate) ipv4s: Vec<Ipv4Addr>,
    pub(crate) state: EniState,
    pub(crate) waiting: Vec<Waiting>,
    pub(crate) notices: Vec<Notice>,
}

impl<'a> Eni<'a> {
    pub(crate) fn managed(&self) -> bool {
        self.state == EniState::Managed
    }

    pub(crate) fn released(&self) -> bool {
        self.state == EniState::Held(Hold::Operator)
    }

    /// The primary address, where metadata's is usable.
    pub(crate) fn primary_address(&self) -> Option<Ipv4Addr> {
        let first = self.facts?.keys.ipv4s.first()?;
        self.ipv4s.first().filter(|address| *address == first).copied()
    }

    pub(crate) fn wants(&self, address: IpAddr) -> bool {
        matches!(address, IpAddr::V4(v4) if self.ipv4s.contains(&v4))
    }

    /// The subnet's router: its first address after the network's own.
    pub(crate) fn gateway(&self) -> Option<Ipv4Addr> {
        self.subnet.map(router)
    }
}

fn router(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()).saturating_add(1))
}

/// All ENIs, the primary one first, then in the order of card and device.
pub(crate) fn survey<'a>(facts: &Facts<'a>, memory: &Memory) -> Vec<Eni<'a>> {
    let ledger = facts.observed.ledger;
    let here = |mac: &Mac| facts.observed.links_of(*mac).next().is_some();
    // What metadata said of an ENI goes together with its link.
    let known = facts.metadata.enis.keys();
    let known = known.filter(|mac| here(mac) || !memory.attached.contains(mac));
    let remembered = ledger.tables.keys().chain(&ledger.holds).chain(&facts.metadata.listed);
    let mut macs: BTreeSet<Mac> =
        known.chain(remembered.filter(|mac| here(mac))).copied().collect();
    macs.extend(facts.expected(memory).map(|(mac, _)| mac));

    let mut enis: Vec<Eni<'a>> = macs.into_iter().map(|mac| identify(facts, mac)).collect();
    refuse_duplicates(facts, &mut enis);
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
    let mut eni = Eni {
        mac,
        facts: known,
        link,
        primary,
        place,
        table: place.map(|(card, device)| TableId(facts.config.table_base + 100 * card + device)),
        subnet: keys.and_then(|keys| keys.subnet_v4),
        ipv4s: Vec::new(),
        state,
        waiting: Vec::new(),
        notices: refusals.cloned().map(Notice::Refused).collect(),
    };
    if let (Some(keys), Some(subnet)) = (keys, eni.subnet) {
        for address in &keys.ipv4s {
            match unusable(*address, subnet) {
                None => eni.ipv4s.push(*address),
                Some(reason) => eni.notices.push(refused(*address, reason)),
            }
        }
    }
    eni
}

fn unusable(address: Ipv4Addr, subnet: Ipv4Net) -> Option<RefusalReason> {
    if address.is_loopback()
        || address.is_multicast()
        || address.is_unspecified()
        || address.is_broadcast()
        || address.is_link_local()
    {
        Some(RefusalReason::NotUsable)
    } else if !subnet.contains(&address) {
        Some(RefusalReason::OutsideSubnet)
    } else if address == subnet.network() || address == subnet.broadcast() {
        Some(RefusalReason::NotUsable)
    } else if address == router(subnet) {
        Some(RefusalReason::Router)
    } else {
        None
    }
}

fn refused(address: Ipv4Addr, reason: RefusalReason) -> Notice {
    Notice::Refused(Refusal { key: EniKey::LocalIpv4s.name(), entry: address.to_string(), reason })
}

/// An address that metadata shows twice stays where the kernel has it, else with the first ENI that
/// has a link: a detached one may be shown for a while. A released ENI has no use for it.
fn refuse_duplicates(facts: &Facts<'_>, enis: &mut [Eni<'_>]) {
    let claim = |(n, eni): (usize, &Eni<'_>)| {
        eni.ipv4s.iter().map(|address| (*address, n)).collect::<Vec<_>>()
    };
    let mut claims: Vec<(Ipv4Addr, usize)> = enis.iter().enumerate().flat_map(claim).collect();
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
            let released = facts.observed.ledger.held(eni.mac);
            (released, !eni.link.is_some_and(has), eni.link.is_none(), *n)
        };
        let Some(keeper) = claimants.clone().min_by_key(rank) else { continue };
        let by = enis[keeper].mac;
        for n in claimants.filter(|n| *n != keeper) {
            enis[n].ipv4s.retain(|other| *other != address);
            enis[n].notices.push(refused(address, RefusalReason::Duplicate(by)));
        }
    }
}

/// Decides whether the ENI can be configured, and what it waits for.
fn judge(facts: &Facts<'_>, memory: &Memory, neighbour: Option<&'static str>, eni: &mut Eni<'_>) {
    if facts.observed.ledger.held(eni.mac) && eni.link.is_some() {
        eni.state = EniState::Held(Hold::Operator);
        return;
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
    let lacking: Vec<&'static str> = [
        (facts.metadata.primary.is_none(), EniKey::Mac),
        (keys.id.is_none(), EniKey::InterfaceId),
        (keys.device.is_none(), EniKey::DeviceNumber),
        (keys.device.is_some() && eni.place.is_none(), EniKey::NetworkCard),
        (keys.subnet_v4.is_none(), EniKey::SubnetIpv4),
        (keys.ipv4s.is_empty(), EniKey::LocalIpv4s),
    ]
    .into_iter()
    .filter(|(lacks, _)| *lacks)
    .map(|(_, key)| key.name())
    .collect();
    if !lacking.is_empty() {
        return Some(Waiting::Keys(lacking));
    }
    if eni.place == Some((0, 0)) && !eni.primary {
        return Some(Waiting::DeviceNumber);
    }
    if eni.primary_address().is_some() {
        return None;
    }
    let first = keys.ipv4s.first().map(ToString::to_string);
    eni.notices.iter().find_map(|notice| match notice {
        Notice::Refused(refusal) if Some(&refusal.entry) == first.as_ref() => {
            Some(Waiting::PrimaryAddress(refusal.clone()))
        }
        Notice::Refused(_)
        | Notice::AlsoElsewhere { .. }
        | Notice::ForeignGroup(_)
        | Notice::Conflict { .. }
        | Notice::ForeignRoutes(_) => None,
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

/// The delegated prefixes of an ENI: those that metadata shows, and those that it has not lacked for
/// as long as an address must be lacking.
pub(crate) fn prefixes(facts: &Facts<'_>, eni: &Eni<'_>) -> Vec<IpNet> {
    let Some(known) = eni.facts else { return Vec::new() };
    let removal = &facts.config.removal;
    let kept = known.prefixes.items().into_iter().filter(|prefix| {
        let absence = known.prefixes.absence(prefix);
        let lacking = absence.span.map_or(Duration::ZERO, |(first, last)| last - first);
        absence.readings < removal.confirmations.max(1) || lacking < removal.grace
    });
    kept.filter(|prefix| matches!(prefix, IpNet::V4(_))).copied().collect()
}
