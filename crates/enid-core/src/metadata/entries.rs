//! What stands in one answer of metadata, entry by entry: what cannot be understood is refused with a
//! reason.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::EniKey;
use crate::object::EniId;
use crate::report::{Refusal, RefusalReason};

/// Entries that a list may have.
pub(super) const ENTRIES: usize = 1024;
/// The highest card and device number that leave tables apart.
const HIGHEST_NUMBER: u32 = 99;

/// The entries of one answer.
pub(super) struct Entries<'a> {
    pub(super) key: EniKey,
    pub(super) text: &'a str,
    pub(super) refusals: Vec<Refusal>,
}

impl Entries<'_> {
    /// Reads a single value; false leaves the known one in force.
    pub(super) fn one<T>(
        &mut self,
        known: &mut Option<T>,
        parse: impl Fn(&str) -> Option<T>,
    ) -> bool {
        let mut words = self.text.split_whitespace();
        let value = words.next().filter(|_| words.next().is_none()).and_then(parse);
        match value {
            Some(value) => {
                *known = Some(value);
                true
            }
            None => {
                self.refuse(self.text, RefusalReason::Malformed);
                false
            }
        }
    }

    /// Reads a list; an empty answer is no list, absence is said by 404.
    pub(super) fn many<T: PartialEq>(
        &mut self,
        known: &mut Vec<T>,
        parse: impl Fn(&str) -> Option<T>,
    ) -> bool {
        let mut values = Vec::new();
        for (n, word) in self.text.split_whitespace().enumerate() {
            if n == ENTRIES {
                self.refuse(word, RefusalReason::TooMany);
                break;
            }
            match parse(word) {
                Some(value) if values.contains(&value) => {}
                Some(value) => values.push(value),
                None => {
                    // Who is first tells which address is the primary one.
                    if n == 0 && self.key == EniKey::LocalIpv4s {
                        self.refuse(word, RefusalReason::Malformed);
                        return false;
                    }
                    self.refuse(word, RefusalReason::Malformed);
                }
            }
        }
        if values.is_empty() {
            return false;
        }
        *known = values;
        true
    }

    fn refuse(&mut self, entry: &str, reason: RefusalReason) {
        let entry = entry.chars().take(64).collect::<String>().escape_debug().to_string();
        self.refusals.push(Refusal { key: self.key.name(), entry, reason });
    }
}

pub(super) fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number| *number <= HIGHEST_NUMBER)
}

/// What the cloud calls something: `vpc-0123456789abcdef0`.
pub(super) fn name(text: &str) -> Option<String> {
    let sane = text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    sane.then(|| text.to_owned())
}

pub(super) fn eni_id(text: &str) -> Option<EniId> {
    name(text).filter(|name| name.starts_with("eni-")).map(EniId)
}

/// A network with its host bits cleared: metadata's spelling is not canonical. None that holds all
/// addresses there are, a route to which would be a second default, or what no cloud can give away.
pub(super) fn network<N: FromStr + Into<IpNet> + Network>(text: &str) -> Option<N> {
    let net = text.parse::<N>().ok()?.trunc();
    let whole: IpNet = net.into();
    let nobodys = |other: &IpNet| other.contains(&whole) || whole.contains(other);
    (whole.prefix_len() > 0 && !NOBODYS.iter().any(nobodys)).then_some(net)
}

/// This host, loopback, link-local with metadata in it, and multicast, of both families.
const NOBODYS: [IpNet; 8] = [
    v4([0, 0, 0, 0], 8),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v4([224, 0, 0, 0], 4),
    v6([0, 0], 16),
    v6([0xfe80, 0], 10),
    v6([0xff00, 0], 8),
    v6([0xfd00, 0xec2], 32),
];

const fn v4([a, b, c, d]: [u8; 4], length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6([a, b]: [u16; 2], length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), length))
}

pub(super) trait Network: Copy {
    fn trunc(&self) -> Self;
}

impl Network for Ipv4Net {
    fn trunc(&self) -> Self {
        Self::trunc(self)
    }
}

impl Network for Ipv6Net {
    fn trunc(&self) -> Self {
        Self::trunc(self)
    }
}
