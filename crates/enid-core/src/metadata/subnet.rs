//! Which subnet an ENI is in: what was read first, until readings have shown another one for long.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::EniKey;
use super::entries::ENTRIES;
use super::facts::{CONSTANTS_AGE, EniFacts, Keys, State};
use crate::object::Family;
use crate::report::{Refusal, RefusalReason};
use crate::time::Instant;

/// So many complete readings in a row must lack what is to be forgotten.
const READINGS: u32 = 3;

impl Keys {
    /// The subnet's CIDRs of both families.
    pub(crate) fn subnets(&self) -> Vec<IpNet> {
        let v6 = self.subnets_v6.iter().copied().map(IpNet::V6);
        self.subnet_v4.map(IpNet::V4).into_iter().chain(v6).collect()
    }

    fn set_subnets(&mut self, subnets: &[IpNet]) {
        self.subnet_v4 = None;
        self.subnets_v6.clear();
        for subnet in subnets {
            match subnet {
                IpNet::V4(v4) => self.subnet_v4 = Some(*v4),
                IpNet::V6(v6) => self.subnets_v6.push(*v6),
            }
        }
    }
}

impl EniFacts {
    /// Believes what a full reading shows of the subnet only as far as it leaves in force what was
    /// known before: all rules and routes hang on it, and none of them would wait for a proof. What
    /// may come at once is another CIDR of IPv6 beside the known ones.
    pub(super) fn settle_subnets(&mut self, at: Instant, before: &[IpNet]) {
        let shown = self.keys.subnets();
        let complete = self.unsettled(at).is_empty();
        self.subnets.record(at, shown.iter().copied().collect::<BTreeSet<_>>(), |family| {
            complete && !self.refusals.contains_key(&key(family))
        });
        let stays = |net: &IpNet| shown.contains(net) || !self.has_left(net);
        let stay: Vec<IpNet> = before.iter().copied().filter(stays).collect();
        let mut room = ENTRIES.saturating_sub(stay.len());
        let mut believed: Vec<IpNet> = Vec::new();
        let mut refused: Vec<(IpNet, RefusalReason)> = Vec::new();
        for net in shown {
            if stay.contains(&net) {
                believed.push(net);
            } else if let Some(known) = stay.iter().find(|known| !may_join(**known, net)) {
                refused.push((net, RefusalReason::AnotherSubnet(*known)));
            } else if room == 0 && Family::of(net.addr()) == Family::V6 {
                refused.push((net, RefusalReason::TooMany));
            } else {
                room = room.saturating_sub(1);
                believed.push(net);
            }
        }
        let lacking: Vec<IpNet> = stay.into_iter().filter(|net| !believed.contains(net)).collect();
        believed.extend(lacking);
        self.keys.set_subnets(&believed);
        for (net, reason) in refused {
            let key = key(Family::of(net.addr()));
            // Such a reading proves nothing else either.
            self.states.insert(key, (State::Unknown, at));
            let refusal = Refusal { key: key.name(), entry: net.to_string(), reason };
            self.refusals.entry(key).or_default().push(refusal);
        }
    }

    /// Whether readings have lacked a CIDR of the subnet for long enough.
    fn has_left(&self, net: &IpNet) -> bool {
        let absence = self.subnets.absence(net);
        let lacked = absence.span.is_some_and(|(first, last)| last - first >= CONSTANTS_AGE);
        lacked && absence.readings >= READINGS
    }
}

fn key(family: Family) -> EniKey {
    match family {
        Family::V4 => EniKey::SubnetIpv4,
        Family::V6 => EniKey::SubnetIpv6,
    }
}

/// Whether a subnet may have both CIDRs.
fn may_join(known: IpNet, other: IpNet) -> bool {
    match (known, other) {
        (IpNet::V4(_), IpNet::V4(_)) => false,
        (IpNet::V6(known), IpNet::V6(other)) => !known.contains(&other) && !other.contains(&known),
        (IpNet::V4(_), IpNet::V6(_)) | (IpNet::V6(_), IpNet::V4(_)) => true,
    }
}
