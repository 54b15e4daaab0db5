//! What metadata served of each ENI, and what that proves.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use enid_core::config::Removal;
use enid_core::metadata::{Answer, Depth, EniAnswers, EniKey};
use enid_core::object::{Family, Mac};
use enid_core::time::Instant;
use ipnet::IpNet;

/// How old the identifying keys of a complete reading may be.
const IDENTITY: Duration = Duration::from_secs(600);

/// Readings of one ENI, as they were served.
#[derive(Debug, Clone, Default)]
pub(super) struct Readings {
    /// When each identifying key was last read.
    identity: BTreeMap<EniKey, Instant>,
    /// When each family was last read completely, newest last.
    pub(super) complete: BTreeMap<Family, VecDeque<Instant>>,
    /// When each address was last shown.
    pub(super) granted: BTreeMap<IpAddr, Instant>,
    /// The first of `local-ipv4s` in each reading.
    pub(super) firsts: BTreeSet<IpAddr>,
    /// It once was in an IPv4 subnet.
    subnet: bool,
    /// The last full reading lacked something that hardly ever changes.
    pub(super) unwell: bool,
    pub(super) latest: Latest,
}

/// The last reading.
#[derive(Debug, Clone, Default)]
pub(super) struct Latest {
    pub(super) shown: BTreeSet<IpAddr>,
    pub(super) prefixes: Vec<IpNet>,
    pub(super) complete: BTreeSet<Family>,
    /// Families all of whose addresses it told, whatever else it lacked.
    pub(super) told: BTreeSet<Family>,
    pub(super) full: bool,
    pub(super) top: bool,
}

impl Readings {
    /// What was read counts no more; what was granted stays so.
    pub(super) fn restarted(&mut self) {
        self.identity.clear();
        self.complete.clear();
        self.latest = Latest::default();
    }

    /// Takes in the answers of one poll.
    pub(super) fn read(&mut self, at: Instant, mac: Mac, answers: &EniAnswers) -> Latest {
        let Some(told) = Told::new(answers) else { return Latest::default() };
        let full = answers.depth == Depth::Full;
        for key in EniKey::IDENTITY {
            if told.sane(key, mac) {
                self.identity.insert(key, at);
            } else if full {
                self.identity.remove(&key);
            }
        }
        self.subnet |= told.text(EniKey::SubnetIpv4).is_some();
        if full {
            self.unwell = told.unwell();
        }
        let known = self.identity.len() == 3;
        let mut whole = known && self.identity.values().all(|read| at - *read <= IDENTITY);
        let mut latest = Latest { full, ..Latest::default() };
        let mut families = BTreeSet::from([Family::V4, Family::V6]);
        if whole {
            latest.told = families.clone();
        }
        for key in EniKey::LISTS {
            let Some(text) = told.text(key) else {
                let lost = key == EniKey::LocalIpv4s && self.subnet;
                let unread = told.listed(key) || lost;
                whole &= !unread;
                if unread {
                    latest.told.retain(|family| EniKey::addresses(*family) != key);
                }
                continue;
            };
            if text.is_empty() {
                // It may be how a cloud says that there is none, or an answer that was lost.
                families.retain(|family| EniKey::addresses(*family) != key);
            }
            let understood = latest.list(key, text);
            whole &= understood;
            if !understood {
                latest.told.retain(|family| EniKey::addresses(*family) != key);
            }
            if key == EniKey::LocalIpv4s {
                let first = text.split_whitespace().next();
                let first: Option<IpAddr> = first.and_then(|word| word.parse().ok());
                self.firsts.extend(first);
            }
        }
        self.granted.extend(latest.shown.iter().map(|ip| (*ip, at)));
        if whole {
            for family in families {
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
    pub(super) fn proven(&self, ip: IpAddr, removal: &Removal) -> Result<Duration, String> {
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

impl Latest {
    /// Takes in a list; whether all of it makes sense.
    fn list(&mut self, key: EniKey, text: &str) -> bool {
        let address = matches!(key, EniKey::LocalIpv4s | EniKey::Ipv6s);
        let mut sane = true;
        for word in text.split_whitespace() {
            match (word.parse::<IpAddr>(), word.parse::<IpNet>()) {
                (Ok(ip), _) if address => _ = self.shown.insert(ip),
                (_, Ok(net)) if !address => self.prefixes.push(net),
                (_, _) => sane = false,
            }
        }
        sane
    }
}

/// What one poll told of an ENI.
struct Told<'a> {
    entries: Vec<&'a str>,
    answers: &'a EniAnswers,
}

impl<'a> Told<'a> {
    /// Nothing where the listing could not be read.
    fn new(answers: &'a EniAnswers) -> Option<Self> {
        let Answer::Text(listing) = &answers.listing else { return None };
        let entries = listing.split_whitespace().map(|word| word.trim_end_matches('/'));
        let entries: Vec<&str> = entries.collect();
        (!entries.is_empty()).then_some(Self { entries, answers })
    }

    fn listed(&self, key: EniKey) -> bool {
        self.entries.contains(&key.name())
    }

    fn text(&self, key: EniKey) -> Option<&'a str> {
        match self.answers.keys.get(&key) {
            Some(Answer::Text(text)) if self.listed(key) => Some(text.trim()),
            Some(Answer::Text(_) | Answer::NotFound | Answer::Failed(_)) | None => None,
        }
    }

    /// Whether an identifying key is what it can be.
    fn sane(&self, key: EniKey, mac: Mac) -> bool {
        self.text(key).is_some_and(|text| {
            if key == EniKey::Mac {
                text.parse() == Ok(mac)
            } else if key == EniKey::DeviceNumber {
                text.parse::<u32>().is_ok()
            } else {
                text.starts_with("eni-") && !text.contains(char::is_whitespace)
            }
        })
    }

    /// Whether it lacks something that hardly ever changes.
    fn unwell(&self) -> bool {
        EniKey::CONSTANTS.into_iter().any(|key| match (key, self.text(key)) {
            (EniKey::NetworkCard, None) => false,
            (EniKey::SubnetIpv6 | EniKey::VpcIpv6, None) => self.listed(key),
            (EniKey::SubnetIpv4 | EniKey::SubnetIpv6, Some(text))
            | (EniKey::VpcIpv4 | EniKey::VpcIpv6, Some(text)) => {
                let mut nets = text.split_whitespace();
                text.is_empty() || nets.any(|net| net.parse::<IpNet>().is_err())
            }
            (_, text) => text.is_none_or(str::is_empty),
        })
    }
}
