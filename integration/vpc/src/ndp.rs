//! What the VPC's router says in neighbour discovery (RFC 4861), as bytes.

use std::net::Ipv6Addr;

use ipnet::Ipv6Net;

use crate::fabric::ROUTER_MAC;

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;
const PREFIX_INFORMATION: u8 = 3;

/// Addresses and everything else come from DHCPv6.
const MANAGED_AND_OTHER: u8 = 0xc0;
/// The prefix is on link. The bit after it, which lets hosts make addresses of their own, is never
/// set.
const ON_LINK: u8 = 0x80;
/// The target is at this link address; it is not a router and not a better answer than others.
const SOLICITED: u8 = 0x40;

/// How the router advertises itself and the subnet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Advertised {
    /// Seconds for which hosts use it as their default router.
    pub(crate) lifetime: u16,
    /// Whether the subnet's prefix is said to be on link.
    pub(crate) on_link: bool,
}

/// What a host wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// Which routers there are.
    Routers,
    /// Where an address is.
    Neighbour(Ipv6Addr),
}

/// A question, if the ICMPv6 message is one.
pub(crate) fn question(message: &[u8]) -> Option<Question> {
    match *message.first()? {
        ROUTER_SOLICITATION => Some(Question::Routers),
        NEIGHBOUR_SOLICITATION => {
            let target: [u8; 16] = message.get(8..24)?.try_into().ok()?;
            Some(Question::Neighbour(target.into()))
        }
        _ => None,
    }
}

/// A router advertisement; the kernel fills in the checksum.
pub(crate) fn router(advertised: Advertised, subnets: &[Ipv6Net]) -> Vec<u8> {
    let [high, low] = advertised.lifetime.to_be_bytes();
    let mut message = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, 64, MANAGED_AND_OTHER, high, low];
    // Reachable and retransmission times are up to the host.
    message.extend([0; 8]);
    message.extend([SOURCE_LINK_ADDRESS, 1]);
    message.extend(ROUTER_MAC.0);
    for subnet in subnets.iter().filter(|_| advertised.on_link) {
        message.extend([PREFIX_INFORMATION, 4, subnet.prefix_len(), ON_LINK]);
        // Valid and preferred for as long as the router is, and four bytes for nothing.
        let lifetime = u32::from(advertised.lifetime).to_be_bytes();
        message.extend([lifetime, lifetime, [0; 4]].concat());
        message.extend(subnet.network().octets());
    }
    message
}

/// The advertisement of a neighbour that is reached through the router.
pub(crate) fn neighbour(target: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, SOLICITED, 0, 0, 0];
    message.extend(target.octets());
    message.extend([TARGET_LINK_ADDRESS, 1]);
    message.extend(ROUTER_MAC.0);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_says_what_it_is_told_to() {
        let subnet: Ipv6Net = "2600:1f16:67f:f201::/64".parse().expect("a CIDR");
        let all = router(Advertised { lifetime: 1800, on_link: true }, &[subnet]);
        assert_eq!(&all[..8], [134, 0, 0, 0, 64, 0xc0, 7, 8]);
        assert_eq!(&all[16..24], [1, 1, 0x0e, 0, 0, 0, 0, 1]);
        assert_eq!(&all[24..28], [3, 4, 64, 0x80]);
        assert_eq!(&all[40..], subnet.addr().octets());
        let bare = router(Advertised { lifetime: 0, on_link: false }, &[subnet]);
        assert_eq!((&bare[6..8], bare.len()), (&[0, 0][..], 24));
    }

    #[test]
    fn only_questions_are_questions() {
        let target: Ipv6Addr = "2600:1f16:67f:f201::4".parse().expect("an address");
        let mut asked = vec![135, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(question(&asked), None);
        asked.extend(target.octets());
        assert_eq!(question(&asked), Some(Question::Neighbour(target)));
        assert_eq!(question(&[133, 0, 0, 0]), Some(Question::Routers));
        assert_eq!(question(&neighbour(target)), None);
        assert_eq!(question(&[]), None);
    }
}
