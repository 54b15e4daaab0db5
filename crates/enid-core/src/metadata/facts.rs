//! Metadata as values: what each ENI's keys last said, and whether the last reading was complete.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::entries::{ENTRIES, Entries, eni_id, name, network, number};
use super::history::{Histories, History};
use super::{Answer, Associations, Depth, EniAnswers, EniKey, Failure, Poll};
use crate::object::{EniId, Family, Mac};
use crate::report::Refusal;
use crate::time::Instant;

/// How old `device-number`, `interface-id` and `mac` may be in a complete reading.
pub(super) const CONSTANTS_AGE: Duration = Duration::from_secs(600);

/// What one reading says of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It has a value.
    Value,
    /// It does not exist: the ENI's listing was read and lacks it.
    Absent,
    /// The ENI's listing shows it, and it has had no value so far. Some clouds say so of what there is
    /// none of; it proves nothing and keeps nothing else waiting.
    Empty,
    /// Anything else; what was known before may still hold.
    Unknown,
}

/// The last known values of an ENI's keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Keys {
    /// `interface-id`
    pub id: Option<EniId>,
    /// `device-number`
    pub device: Option<u32>,
    /// `network-card`
    pub card: Option<u32>,
    /// `mac`
    pub mac: Option<Mac>,
    /// `subnet-id`
    pub subnet: Option<String>,
    /// `vpc-id`
    pub vpc: Option<String>,
    /// `subnet-ipv4-cidr-block`
    pub subnet_v4: Option<Ipv4Net>,
    /// `subnet-ipv6-cidr-blocks`
    pub subnets_v6: Vec<Ipv6Net>,
    /// `vpc-ipv4-cidr-blocks`
    pub vpc_v4: Vec<Ipv4Net>,
    /// `vpc-ipv6-cidr-blocks`
    pub vpc_v6: Vec<Ipv6Net>,
    /// `local-ipv4s`, the primary one first
    pub ipv4s: Vec<Ipv4Addr>,
    /// `ipv6s`
    pub ipv6s: Vec<Ipv6Addr>,
    /// `ipv4-prefix`
    pub prefixes_v4: Vec<Ipv4Net>,
    /// `ipv6-prefix`
    pub prefixes_v6: Vec<Ipv6Net>,
}

impl Keys {
    /// The addresses of both lists, IPv4 first, usable or not.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.ipv4s.iter().copied().map(IpAddr::V4);
        v4.chain(self.ipv6s.iter().copied().map(IpAddr::V6))
    }

    /// Whether a list has this address, usable or not.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.ipv4s.contains(&v4),
            IpAddr::V6(v6) => self.ipv6s.contains(&v6),
        }
    }

    /// What the empty text of a key says that the listing shows; nothing where a text was lost.
    fn without_text(&self, key: EniKey) -> Option<State> {
        let empty = match key {
            // No table moves: a card that any ENI here ever showed is waited for.
            EniKey::NetworkCard => return self.card.is_none().then_some(State::Absent),
            EniKey::Ipv6s => self.ipv6s.is_empty(),
            EniKey::Ipv4Prefixes => self.prefixes_v4.is_empty(),
            EniKey::Ipv6Prefixes => self.prefixes_v6.is_empty(),
            EniKey::SubnetIpv6 => self.subnets_v6.is_empty(),
            EniKey::VpcIpv6 => self.vpc_v6.is_empty(),
            EniKey::SubnetIpv4 => self.subnet_v4.is_none(),
            // An IPv4 subnet without an IPv4 address is a reading that came too early.
            EniKey::LocalIpv4s => self.ipv4s.is_empty() && self.subnet_v4.is_none(),
            // Every ENI has these.
            EniKey::DeviceNumber
            | EniKey::InterfaceId
            | EniKey::Mac
            | EniKey::SubnetId
            | EniKey::VpcId
            | EniKey::VpcIpv4 => false,
        };
        empty.then_some(State::Empty)
    }
}

/// One ENI as metadata has shown it so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EniFacts {
    /// The last known values.
    pub keys: Keys,
    /// What the last reading of each key said, and when that was.
    pub states: BTreeMap<EniKey, (State, Instant)>,
    /// When metadata first knew it.
    pub first_read: Instant,
    /// The last poll that asked for it.
    pub last_read: Instant,
    /// The last reading that was complete and went to full depth.
    pub confirmed: Option<Instant>,
    /// The last reading that was complete, of whatever depth.
    pub completed: Option<Instant>,
    /// Public addresses by the private one that they lead to, as last read; for the operator alone.
    pub public: BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// Why the listing could not be read in the last poll.
    pub failure: Option<Failure>,
    /// The last poll found no such ENI.
    pub unlisted: bool,
    /// Keys that made the last reading incomplete.
    pub incomplete: Vec<&'static str>,
    /// Entries that were not understood, by key.
    pub refusals: BTreeMap<EniKey, Vec<Refusal>>,
    /// Addresses of both families that readings showed.
    pub addresses: Histories<IpAddr>,
    /// Delegated prefixes that readings showed.
    pub prefixes: Histories<IpNet>,
    /// CIDRs of the VPC that full readings showed.
    pub cidrs: History<IpNet>,
    /// CIDRs of the subnet that full readings showed, be they believed or not.
    pub subnets: Histories<IpNet>,
}

impl EniFacts {
    /// What the last reading of a key said.
    #[must_use]
    pub fn state(&self, key: EniKey) -> State {
        self.states.get(&key).map_or(State::Unknown, |(state, _)| *state)
    }

    /// Whether the last reading was complete: it may count as evidence for a removal.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.failure.is_none() && !self.unlisted && self.incomplete.is_empty()
    }

    /// Whether some of what hardly ever changes could not be read when it was asked for last.
    pub(crate) fn lacks_constants(&self) -> bool {
        EniKey::CONSTANTS.iter().any(|key| self.incomplete.contains(&key.name()))
    }

    /// Whether some reading asked for a key.
    fn asked(&self, key: EniKey) -> bool {
        self.states.contains_key(&key) || EniKey::LISTS.contains(&key)
    }

    /// How many requests a poll of the lists takes.
    #[must_use]
    pub fn requests(&self) -> usize {
        1 + EniKey::LISTS.iter().filter(|key| self.state(**key) != State::Absent).count()
    }

    fn record(&mut self, mac: Mac, at: Instant, answers: &EniAnswers) {
        if self.states.is_empty() && self.last_read == Instant::default() {
            self.first_read = at;
        }
        self.last_read = at;
        let listing = match &answers.listing {
            // Every ENI has keys: a list without any is an answer that was lost on the way.
            Answer::Text(text) if text.trim().is_empty() => {
                self.failure = Some(Failure::Malformed("its listing is empty".to_owned()));
                return;
            }
            Answer::Text(text) => text,
            Answer::NotFound => {
                self.unlisted = true;
                self.failure = None;
                return;
            }
            Answer::Failed(failure) => {
                self.failure = Some(failure.clone());
                return;
            }
        };
        (self.failure, self.unlisted) = (None, false);
        let listed: BTreeSet<&str> =
            listing.split_whitespace().map(|entry| entry.trim_end_matches('/')).collect();
        // Every ENI has these: what lacks one is something else, or not all of it.
        let sound = EniKey::IDENTITY.iter().all(|key| listed.contains(key.name()));
        let full = answers.depth == Depth::Full;
        let before = self.keys.subnets();
        let constants = EniKey::CONSTANTS.iter().filter(|_| full);
        // The subnet is read before the lists that are judged by it.
        for key in constants.chain(&EniKey::LISTS) {
            let mut state = if listed.contains(key.name()) {
                self.read(mac, *key, answers.keys.get(key))
            } else {
                self.absent(*key, sound)
            };
            // A card number that appears but cannot be read yet moves no table.
            if *key == EniKey::NetworkCard && state == State::Unknown {
                state = self.state(*key);
            }
            self.states.insert(*key, (state, at));
        }
        if full {
            self.settle_subnets(at, &before);
        }
        self.associate(&answers.associations);
        self.judge(at, full);
    }

    /// Notes which public addresses lead here; what could not be read stays as it was.
    fn associate(&mut self, associations: &Associations) {
        let Associations::Read(read) = associations else { return };
        let before = std::mem::take(&mut self.public);
        let known = |public: &Ipv4Addr| {
            before.iter().find(|(_, known)| *known == public).map(|(private, _)| *private)
        };
        for (public, answer) in read.iter().take(ENTRIES) {
            let private = match answer {
                Answer::Text(text) => text.trim().parse().ok(),
                Answer::NotFound | Answer::Failed(_) => known(public),
            };
            self.public.extend(private.map(|private| (private, *public)));
        }
    }

    fn absent(&mut self, key: EniKey, sound: bool) -> State {
        self.refusals.remove(&key);
        match key {
            EniKey::Ipv6s | EniKey::Ipv4Prefixes | EniKey::Ipv6Prefixes if !sound => {
                return State::Unknown;
            }
            EniKey::Ipv6s => self.keys.ipv6s.clear(),
            EniKey::Ipv4Prefixes => self.keys.prefixes_v4.clear(),
            EniKey::Ipv6Prefixes => self.keys.prefixes_v6.clear(),
            // An IPv4 subnet without an IPv4 address is a reading that came too early.
            EniKey::LocalIpv4s if self.keys.subnet_v4.is_some() => return State::Unknown,
            // What an ENI once had of these it does not lose: a listing that lacks them is stale.
            EniKey::LocalIpv4s
            | EniKey::DeviceNumber
            | EniKey::NetworkCard
            | EniKey::InterfaceId
            | EniKey::Mac
            | EniKey::SubnetIpv4
            | EniKey::SubnetIpv6
            | EniKey::SubnetId
            | EniKey::VpcId
            | EniKey::VpcIpv4
            | EniKey::VpcIpv6 => {}
        }
        State::Absent
    }

    fn read(&mut self, mac: Mac, key: EniKey, answer: Option<&Answer>) -> State {
        let Some(Answer::Text(text)) = answer else {
            // 404 on a leaf that the listing shows contradicts itself: not settled yet.
            return State::Unknown;
        };
        self.refusals.remove(&key);
        let keys = &mut self.keys;
        if text.trim().is_empty()
            && let Some(state) = keys.without_text(key)
        {
            return state;
        }
        let mut entries = Entries { key, text, refusals: Vec::new() };
        let understood = match key {
            EniKey::DeviceNumber => entries.one(&mut keys.device, number),
            EniKey::NetworkCard => entries.one(&mut keys.card, number),
            EniKey::InterfaceId => entries.one(&mut keys.id, eni_id),
            EniKey::Mac => {
                entries.one(&mut keys.mac, |text| text.parse().ok().filter(|read| *read == mac))
            }
            EniKey::SubnetId => entries.one(&mut keys.subnet, name),
            EniKey::VpcId => entries.one(&mut keys.vpc, name),
            EniKey::SubnetIpv4 => entries.one(&mut keys.subnet_v4, network),
            EniKey::SubnetIpv6 => entries.many(&mut keys.subnets_v6, network),
            EniKey::VpcIpv4 => entries.many(&mut keys.vpc_v4, network),
            EniKey::VpcIpv6 => entries.many(&mut keys.vpc_v6, network),
            EniKey::LocalIpv4s => entries.many(&mut keys.ipv4s, |text| text.parse().ok()),
            EniKey::Ipv6s => entries.many(&mut keys.ipv6s, |text| text.parse().ok()),
            EniKey::Ipv4Prefixes => entries.many(&mut keys.prefixes_v4, network),
            EniKey::Ipv6Prefixes => entries.many(&mut keys.prefixes_v6, network),
        };
        if !entries.refusals.is_empty() {
            self.refusals.insert(key, entries.refusals);
        }
        if understood { State::Value } else { State::Unknown }
    }

    /// Keys that keep the readings up to now from being complete.
    pub(super) fn unsettled(&self, at: Instant) -> Vec<&'static str> {
        let fresh = |key: &EniKey| {
            self.states
                .get(key)
                .is_some_and(|(state, read)| *state == State::Value && at - *read <= CONSTANTS_AGE)
        };
        let identity = EniKey::IDENTITY;
        let all = EniKey::CONSTANTS.iter().chain(&EniKey::LISTS);
        let unknown = all.filter(|key| self.state(**key) == State::Unknown && self.asked(**key));
        // A list that was understood in part may hide an address of ours behind a garbled entry.
        let garbled = EniKey::LISTS.iter().filter(|key| self.refusals.contains_key(key));
        let keys: BTreeSet<&'static str> = identity
            .iter()
            .filter(|key| !fresh(key))
            .chain(unknown)
            .chain(garbled)
            .map(|key| key.name())
            .collect();
        keys.into_iter().collect()
    }

    /// Decides whether this reading was complete, and notes what it showed.
    fn judge(&mut self, at: Instant, full: bool) {
        self.incomplete = self.unsettled(at);
        let complete = self.complete();
        if complete {
            self.completed = Some(at);
        }
        if complete && full {
            self.confirmed = Some(at);
        }

        let states = self.states.clone();
        let showed = |key| states.get(&key).is_some_and(|(state, _)| *state == State::Value);
        let mut addresses = BTreeSet::new();
        let mut prefixes = BTreeSet::new();
        if showed(EniKey::LocalIpv4s) {
            addresses.extend(self.keys.ipv4s.iter().copied().map(IpAddr::V4));
        }
        if showed(EniKey::Ipv6s) {
            addresses.extend(self.keys.ipv6s.iter().copied().map(IpAddr::V6));
        }
        if showed(EniKey::Ipv4Prefixes) {
            prefixes.extend(self.keys.prefixes_v4.iter().copied().map(IpNet::V4));
        }
        if showed(EniKey::Ipv6Prefixes) {
            prefixes.extend(self.keys.prefixes_v6.iter().copied().map(IpNet::V6));
        }
        let told = |key| states.get(&key).is_none_or(|(state, _)| *state != State::Empty);
        self.addresses.record(at, addresses, |family| {
            complete
                && match family {
                    Family::V4 => told(EniKey::LocalIpv4s),
                    Family::V6 => told(EniKey::Ipv6s),
                }
        });
        self.prefixes.record(at, prefixes, |family| {
            complete
                && match family {
                    Family::V4 => told(EniKey::Ipv4Prefixes),
                    Family::V6 => told(EniKey::Ipv6Prefixes),
                }
        });
        if full {
            // A garbled entry may hide a CIDR here as well.
            let understood = !self.refusals.contains_key(&EniKey::VpcIpv4);
            let settled = complete && understood && showed(EniKey::VpcIpv4);
            let cidrs = self.keys.vpc_v4.iter().copied().map(IpNet::V4);
            let cidrs = cidrs.chain(self.keys.vpc_v6.iter().copied().map(IpNet::V6));
            self.cidrs.record(at, cidrs.collect(), settled);
        }
    }
}

/// All that metadata has shown so far, in memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    /// The primary ENI's MAC address: the top-level `mac`.
    pub primary: Option<Mac>,
    /// When `mac` and `macs/` were last read with success.
    pub top_read: Option<Instant>,
    /// The MAC addresses that `macs/` last listed.
    pub listed: BTreeSet<Mac>,
    /// The ENIs.
    pub enis: BTreeMap<Mac, EniFacts>,
    /// Whether any ENI here ever showed `network-card`.
    pub cards: bool,
    /// Why the last poll failed as a whole, if it did.
    pub failure: Option<Failure>,
}

impl Metadata {
    /// Takes in a poll's answers; whether anything known changed.
    pub fn record(&mut self, poll: &Poll) -> bool {
        let before: Vec<_> = self.enis.iter().map(|(mac, eni)| (*mac, eni.keys.clone())).collect();
        let primary = self.primary;
        self.failure = failure_of(poll);
        if !self.record_top(poll) {
            return false;
        }
        if self.top_read.is_none() {
            self.failure = self.failure.take().or_else(|| missing(poll));
        }
        for (mac, answers) in &poll.enis {
            let known = self.listed.contains(mac) || self.enis.contains_key(mac);
            // A container's link is asked about like any other; that metadata lacks it means nothing.
            if known || matches!(answers.listing, Answer::Text(_)) {
                self.enis.entry(*mac).or_default().record(*mac, poll.at, answers);
            }
        }
        self.cards |= self.enis.values().any(|eni| eni.keys.card.is_some());
        primary != self.primary
            || before.len() != self.enis.len()
            || before
                .iter()
                .zip(&self.enis)
                .any(|((mac, keys), (now_mac, eni))| mac != now_mac || *keys != eni.keys)
    }

    /// Forgets an ENI whose link is gone.
    pub fn forget(&mut self, mac: Mac) {
        self.enis.remove(&mac);
    }

    /// Whether an ENI other than this one is the primary one for sure: it was named so, and its
    /// device number says so, too. That never changes while it is here.
    fn has_another_primary(&self, named: Mac) -> bool {
        let known = self.primary.filter(|mac| *mac != named);
        let keys = known.and_then(|mac| self.enis.get(&mac)).map(|eni| &eni.keys);
        keys.is_some_and(|keys| keys.device == Some(0) && keys.card.is_none_or(|card| card == 0))
    }

    /// False when the poll contradicts itself and must be discarded whole.
    fn record_top(&mut self, poll: &Poll) -> bool {
        let primary = match &poll.mac {
            Some(Answer::Text(text)) => text.trim().parse::<Mac>().ok(),
            Some(Answer::NotFound | Answer::Failed(_)) | None => None,
        };
        let listed = match &poll.macs {
            Some(Answer::Text(text)) => Some(
                text.split_whitespace()
                    .take(ENTRIES)
                    .filter_map(|entry| entry.trim_end_matches('/').parse::<Mac>().ok())
                    .collect::<BTreeSet<_>>(),
            ),
            Some(Answer::NotFound | Answer::Failed(_)) | None => None,
        };
        if primary.is_some_and(|named| self.has_another_primary(named)) {
            self.failure = Some(Failure::Malformed(
                "it names another ENI as the primary one than before".to_owned(),
            ));
            return false;
        }
        if let Some(listed) = &listed
            && primary.or(self.primary).is_some_and(|mac| !listed.contains(&mac))
        {
            self.failure = Some(Failure::Malformed(
                "the list of MAC addresses lacks the primary ENI's".to_owned(),
            ));
            return false;
        }
        if let (Some(primary), Some(listed)) = (primary, listed) {
            self.primary = Some(primary);
            self.listed = listed;
            self.top_read = Some(poll.at);
        }
        true
    }
}

/// What of the tree is not there at all in a service that was never seen to have it.
fn missing(poll: &Poll) -> Option<Failure> {
    let lacks = |answer: &Option<Answer>| *answer == Some(Answer::NotFound);
    let keys = [
        lacks(&poll.mac).then_some("mac"),
        lacks(&poll.macs).then_some("network/interfaces/macs/"),
    ];
    let keys: Vec<_> = keys.into_iter().flatten().collect();
    (!keys.is_empty()).then_some(Failure::Lacks(keys))
}

/// The failure of a poll in which nothing at all could be read.
fn failure_of(poll: &Poll) -> Option<Failure> {
    let listings = poll.enis.values().map(|eni| &eni.listing);
    let mut failure = None;
    for answer in poll.mac.iter().chain(&poll.macs).chain(listings) {
        match answer {
            Answer::Failed(cause) => failure = failure.or(Some(cause.clone())),
            Answer::Text(_) | Answer::NotFound => return None,
        }
    }
    failure
}
