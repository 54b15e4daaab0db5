//! One address family of an ENI: its subnet, and the addresses and delegated prefixes that can be
//! used there.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use crate::metadata::EniKey;
use crate::metadata::facts::EniFacts;
use crate::object::Family;
use crate::report::{Notice, Refusal, RefusalReason};

/// What metadata says of one family of an ENI.
#[derive(Debug, Clone)]
pub(crate) struct Stack {
    pub(crate) family: Family,
    /// The subnet's CIDRs: one of IPv4, as a rule one of IPv6.
    pub(crate) subnets: Vec<IpNet>,
    /// Usable addresses in metadata's order, ignored ones included.
    pub(crate) addresses: Vec<IpAddr>,
    /// Delegated prefixes that can be used, also those that metadata has not lacked for long enough.
    pub(crate) prefixes: Vec<IpNet>,
}

impl Stack {
    /// Reads one family; what cannot be used goes into the notices.
    pub(crate) fn read(
        family: Family,
        known: Option<&EniFacts>,
        notices: &mut Vec<Notice>,
    ) -> Self {
        let mut stack =
            Self { family, subnets: Vec::new(), addresses: Vec::new(), prefixes: Vec::new() };
        let Some(known) = known else { return stack };
        let keys = &known.keys;
        let of_family = |address: &IpAddr| Family::of(*address) == family;
        let granted: Vec<IpAddr> = keys.addresses().filter(of_family).collect();
        stack.subnets = match family {
            Family::V4 => keys.subnet_v4.into_iter().map(IpNet::V4).collect(),
            Family::V6 => keys.subnets_v6.iter().copied().map(IpNet::V6).collect(),
        };
        if stack.subnets.is_empty() {
            return stack;
        }
        let list = EniKey::addresses(family);
        let delegated = match family {
            Family::V4 => EniKey::Ipv4Prefixes,
            Family::V6 => EniKey::Ipv6Prefixes,
        };
        for address in granted.iter().copied() {
            match stack.unusable(address) {
                None => stack.addresses.push(address),
                Some(reason) => notices.push(refused(list, address, reason)),
            }
        }
        let shown = known.prefixes.items().into_iter().copied();
        for prefix in shown.filter(|prefix| Family::of(prefix.addr()) == family) {
            match stack.unfit(prefix, granted.first().copied()) {
                None => stack.prefixes.push(prefix),
                Some(reason) if known.prefixes.absence(&prefix).span.is_none() => {
                    notices.push(refused(delegated, prefix, reason));
                }
                Some(_) => {}
            }
        }
        stack
    }

    /// Whether a delegated prefix can be used: it lies within the subnet, leaves something of it to
    /// others, is more than one address, and takes nobody's place.
    pub(crate) fn holds(&self, prefix: IpNet) -> bool {
        self.unfit(prefix, None).is_none()
    }

    fn unfit(&self, prefix: IpNet, first: Option<IpAddr>) -> Option<RefusalReason> {
        let around =
            |subnet: &&IpNet| subnet.contains(&prefix) && subnet.prefix_len() < prefix.prefix_len();
        let Some(subnet) = self.subnets.iter().find(around) else {
            return Some(RefusalReason::OutsideSubnet);
        };
        if prefix.prefix_len() == prefix.max_prefix_len() {
            return Some(RefusalReason::OneAddress);
        }
        match subnet {
            // IPv6 routers have link-local addresses, and none of its addresses comes first.
            IpNet::V6(_) => None,
            IpNet::V4(subnet) if prefix.contains(&IpAddr::V4(router(*subnet))) => {
                Some(RefusalReason::Router)
            }
            IpNet::V4(_) => {
                first.filter(|first| prefix.contains(first)).map(|_| RefusalReason::HoldsPrimary)
            }
        }
    }

    /// The subnet that an address lies in.
    pub(crate) fn subnet_of(&self, address: IpAddr) -> Option<IpNet> {
        self.subnets.iter().find(|subnet| subnet.contains(&address)).copied()
    }

    /// Whether anything can be configured.
    pub(crate) fn usable(&self) -> bool {
        let nothing = self.addresses.is_empty() && self.prefixes.is_empty();
        !nothing && !self.subnets.is_empty()
    }

    fn unusable(&self, address: IpAddr) -> Option<RefusalReason> {
        let nobodys = address.is_loopback() || address.is_multicast() || address.is_unspecified();
        let link_local = match address {
            IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        let Some(subnet) = self.subnet_of(address) else {
            let reason = RefusalReason::OutsideSubnet;
            return Some(if nobodys || link_local { RefusalReason::NotUsable } else { reason });
        };
        let broadcast = address.is_ipv4() && address == subnet.broadcast();
        if nobodys || link_local || broadcast || address == subnet.network() {
            return Some(RefusalReason::NotUsable);
        }
        match (address, subnet) {
            (IpAddr::V4(v4), IpNet::V4(subnet)) if v4 == router(subnet) => {
                Some(RefusalReason::Router)
            }
            _ => None,
        }
    }
}

/// An IPv4 subnet's router: its first address after the network's own.
pub(crate) fn router(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()).saturating_add(1))
}

pub(crate) fn refused(key: EniKey, entry: impl ToString, reason: RefusalReason) -> Notice {
    Notice::Refused(Refusal { key: key.name(), entry: entry.to_string(), reason })
}
