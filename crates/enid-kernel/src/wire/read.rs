//! From the kernel's messages to our nouns: what a noun cannot say makes it incomplete.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use enid_core::object::{
    Address, Family, LinkGroup, LinkIndex, Mac, Priority, Protocol, Route, RouteKind, Rule,
    RuleAction, Sysctl, TableId,
};
use enid_core::observed::{Link, SeenAddress, SeenRoute, SeenRule};
use ipnet::IpNet;

use super::numbers::*;
use super::{Told, attributes, nested};
use crate::driver::Device;
use crate::error::Error;

/// One thing out of a dump.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Link {
        link: Link,
        /// What it is the link of; none for a virtual one, and before 5.14.
        device: Option<Device>,
    },
    Address {
        seen: SeenAddress,
        has_protocol: bool,
    },
    Route(SeenRoute),
    Rule(SeenRule),
    Router(LinkIndex, Ipv6Addr),
    /// Of another family, a cached copy of a route, or a neighbour that is no router: none of our
    /// business.
    Foreign,
}

/// Reads any message that answers one of our dumps.
pub(crate) fn seen(told: &Told) -> Result<Seen, Error> {
    match told.kind {
        RTM_NEWLINK => link(&told.body),
        RTM_NEWADDR => address(&told.body),
        RTM_NEWROUTE => route(&told.body),
        RTM_NEWRULE => rule(&told.body),
        RTM_NEWNEIGH => Ok(match router(&told.body)? {
            Some(Router { link, address, usable: true }) => Seen::Router(link, address),
            Some(Router { usable: false, .. }) | None => Seen::Foreign,
        }),
        kind => Err(Error::Unreadable {
            what: "the answer to a dump",
            detail: format!("message type {kind}"),
        }),
    }
}

/// A string attribute, with or without its closing zero.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

fn link(body: &[u8]) -> Result<Seen, Error> {
    let message = Reader("a link");
    let (header, rest) = message.split::<16>(body)?;
    let [family, _, _, _, index @ .., _, _, _, _, _, _, _, _] = *header;
    let flags = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
    if family != AF_UNSPEC {
        return Ok(Seen::Foreign);
    }
    let (mut current, mut permanent) = (None, None);
    let mut device = Device::default();
    let mut link = Link {
        index: LinkIndex(u32::from_ne_bytes(index)),
        name: String::new(),
        alternative_names: Vec::new(),
        kind: None,
        driver: None,
        mac: None,
        up: flags & IFF_UP != 0,
        carrier: flags & IFF_LOWER_UP != 0,
        mtu: 0,
        group: LinkGroup::default(),
        master: None,
        ipv6: false,
        sysctls: BTreeMap::new(),
    };
    for attribute in attributes(rest) {
        let (kind, value) = message.attribute(attribute)?;
        match kind {
            IFLA_ADDRESS => current = mac(value),
            IFLA_PERM_ADDRESS => permanent = mac(value),
            IFLA_PARENT_DEV_BUS_NAME => device.bus = text(value),
            IFLA_PARENT_DEV_NAME => device.name = text(value),
            IFLA_IFNAME => link.name = text(value),
            IFLA_MTU => link.mtu = message.number(value)?,
            IFLA_MASTER => link.master = Some(LinkIndex(message.number(value)?)),
            IFLA_GROUP => link.group = LinkGroup(message.number(value)?),
            IFLA_LINKINFO => {
                link.kind = nested(value, IFLA_INFO_KIND).map(text);
            }
            IFLA_PROP_LIST => {
                link.alternative_names = attributes(value)
                    .map_while(Result::ok)
                    .filter(|&(kind, _)| kind == IFLA_ALT_IFNAME)
                    .map(|(_, name)| text(name))
                    .collect();
            }
            IFLA_AF_SPEC => (link.ipv6, link.sysctls) = families(value),
            _ => {}
        }
    }
    link.mac = permanent.or(current);
    let device = (device != Device::default()).then_some(device);
    Ok(Seen::Link { link, device })
}

/// An Ethernet address; zeros are what loopback and tunnels have instead of one.
fn mac(value: &[u8]) -> Option<Mac> {
    value.try_into().ok().filter(|bytes| *bytes != [0; 6]).map(Mac)
}

/// What a link carries along of both families, so that no file need be read: whether IPv6 works on
/// it, and the settings that we care for.
fn families(told: &[u8]) -> (bool, BTreeMap<Sysctl, i32>) {
    const DISABLE_IPV6: usize = 26;
    let inet = settings(told, AF_INET, IFLA_INET_CONF);
    // The kernel leaves it out where the MTU is too small, and where it knows no IPv6 at all.
    let inet6 = settings(told, AF_INET6, IFLA_INET6_CONF);
    let ipv6 = inet6.get(DISABLE_IPV6).is_some_and(|disabled| *disabled == [0; 4]);
    let value = |sysctl: Sysctl| match sysctl.family() {
        Family::V4 => inet.get(place(sysctl)),
        Family::V6 => inet6.get(place(sysctl)),
    };
    let sysctls = Sysctl::ALL.into_iter();
    let sysctls =
        sysctls.filter_map(|sysctl| Some((sysctl, i32::from_ne_bytes(*value(sysctl)?)))).collect();
    (ipv6, sysctls)
}

/// All settings of one family, each in its place.
fn settings(told: &[u8], family: u8, kind: u16) -> &[[u8; 4]] {
    let values = nested(told, u16::from(family)).and_then(|family| nested(family, kind));
    values.unwrap_or_default().as_chunks().0
}

/// A setting's place in `IFLA_INET_CONF` (`IPV4_DEVCONF_…`, which count from 1) and
/// `IFLA_INET6_CONF` (`DEVCONF_…`), which are part of the kernel's ABI.
const fn place(sysctl: Sysctl) -> usize {
    match sysctl {
        Sysctl::AcceptRaDefaultRoute => 17,
        Sysctl::AcceptRaPrefix => 18,
        Sysctl::ArpAnnounce => 17,
        Sysctl::ArpIgnore => 18,
        Sysctl::SourceValidMark => 23,
    }
}

fn address(body: &[u8]) -> Result<Seen, Error> {
    let message = Reader("an address");
    let ([family, prefix_length, flags, _scope, index @ ..], rest) = message.split::<8>(body)?;
    let Some(family) = family_of(*family) else {
        return Ok(Seen::Foreign);
    };
    let mut flags = u32::from(*flags);
    let (mut peer, mut own, mut protocol, mut preferred) = (None, None, None, true);
    for attribute in attributes(rest) {
        let (kind, value) = message.attribute(attribute)?;
        match kind {
            IFA_ADDRESS => peer = Some(message.ip(family, value)?),
            IFA_LOCAL => own = Some(message.ip(family, value)?),
            IFA_FLAGS => flags = message.number(value)?,
            // The first number is the time for which it is preferred.
            IFA_CACHEINFO => {
                preferred = message.number(value.get(..4).unwrap_or_default())? != 0;
            }
            IFA_PROTO => protocol = value.first().copied(),
            _ => {}
        }
    }
    // IPv6 leaves IFA_LOCAL out unless there is a peer.
    let address = own.or(peer).ok_or_else(|| message.unreadable("it has no address"))?;
    let seen = SeenAddress {
        address: Address {
            link: LinkIndex(u32::from_ne_bytes(*index)),
            address,
            prefix_length: *prefix_length,
            prefix_route: flags & IFA_F_NOPREFIXROUTE == 0,
            preferred: preferred && flags & IFA_F_DEPRECATED == 0,
        },
        protocol: protocol.filter(|&protocol| protocol != 0).map(Protocol),
        permanent: flags & IFA_F_PERMANENT != 0,
    };
    Ok(Seen::Address { seen, has_protocol: protocol.is_some() })
}

/// The way of a packet.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) seen: SeenRoute,
    /// None where no table's route decided.
    pub(crate) table: Option<TableId>,
    /// Of either family: IPv4 may go by a neighbour of IPv6.
    pub(crate) gateway: Option<IpAddr>,
}

/// Reads the answer to a question for a way of this family.
pub(crate) fn found(told: &Told, family: Family) -> Result<Found, Error> {
    const WHAT: Reader = Reader("the way of a packet");
    let rest = told.body.get(12..).unwrap_or_default();
    if told.kind != RTM_NEWROUTE {
        return Err(WHAT.unreadable(format_args!("message type {}", told.kind)));
    }
    // Some kernels say of the answer that it is a copy, as it is of what they keep in a cache.
    let seen = route_of(&told.body)?
        .filter(|seen| Family::of(seen.route.destination.addr()) == family)
        .ok_or_else(|| WHAT.unreadable("it is of another family"))?;
    let via = nested(rest, RTA_VIA).and_then(|value| match value.split_first_chunk() {
        Some((family, value)) if u16::from_ne_bytes(*family) == u16::from(AF_INET6) => {
            WHAT.ip(Family::V6, value).ok()
        }
        Some(_) | None => None,
    });
    let table = Some(seen.route.table).filter(|table| table.0 != 0);
    Ok(Found { table, gateway: seen.route.gateway.or(via), seen })
}

fn route(body: &[u8]) -> Result<Seen, Error> {
    const FLAGS: std::ops::Range<usize> = 8..12;
    let flags = body.get(FLAGS).and_then(|flags| flags.try_into().ok()).map(u32::from_ne_bytes);
    if flags.is_some_and(|flags| flags & RTM_F_CLONED != 0) {
        return Ok(Seen::Foreign);
    }
    Ok(route_of(body)?.map_or(Seen::Foreign, Seen::Route))
}

/// A route, or a copy of one; none of another family.
fn route_of(body: &[u8]) -> Result<Option<SeenRoute>, Error> {
    let message = Reader("a route");
    let ([family, length, source_length, tos, table, protocol, _scope, kind, flags @ ..], rest) =
        message.split::<12>(body)?;
    let flags = u32::from_ne_bytes(*flags);
    let Some(family) = family_of(*family) else {
        return Ok(None);
    };
    let mut route = Route {
        table: TableId(u32::from(*table)),
        destination: net(message, unspecified(family), *length)?,
        kind: route_kind(*kind),
        gateway: None,
        link: None,
        on_link: flags & u32::from(RTNH_F_ONLINK) != 0,
        source: None,
        metric: 0,
    };
    let mut complete = *tos == 0 && *source_length == 0;
    for attribute in attributes(rest) {
        let attribute = message.attribute(attribute)?;
        complete &= route_attribute(message, family, &mut route, attribute)?;
    }
    if route.kind == RouteKind::Unreachable {
        // IPv6 shows the loopback link, which nobody asked for.
        route.link = None;
    }
    let protocol = Protocol(*protocol);
    Ok(Some(SeenRoute { route, protocol, complete }))
}

/// Puts one attribute into the route; false when the route cannot say it.
fn route_attribute(
    message: Reader,
    family: Family,
    route: &mut Route,
    (kind, value): (u16, &[u8]),
) -> Result<bool, Error> {
    match kind {
        RTA_DST => {
            let address = message.ip(family, value)?;
            route.destination = net(message, address, route.destination.prefix_len())?;
        }
        RTA_OIF => route.link = Some(LinkIndex(message.number(value)?)),
        RTA_GATEWAY => route.gateway = Some(message.ip(family, value)?),
        RTA_PREFSRC => route.source = Some(message.ip(family, value)?),
        RTA_PRIORITY => route.metric = message.number(value)?,
        RTA_TABLE => route.table = TableId(message.number(value)?),
        // Counters and the time left, which are not part of what a route does.
        RTA_CACHEINFO => {}
        // IPv6 routes always tell a preference, and 0 is the usual one.
        RTA_PREF => return Ok(value == [0]),
        RTA_MULTIPATH => {
            first_hop(message, family, route, value)?;
            return Ok(false);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Shows the first of several next hops: enough to say where such a route leads.
fn first_hop(message: Reader, family: Family, route: &mut Route, hops: &[u8]) -> Result<(), Error> {
    let ([len @ .., _, _, _, _, _, _], _) = message.split::<8>(hops)?;
    let hop = hops
        .get(..usize::from(u16::from_ne_bytes(*len)))
        .ok_or_else(|| message.unreadable("a next hop is cut off"))?;
    let ([_, _, flags, _, index @ ..], rest) = message.split::<8>(hop)?;
    route.link = Some(LinkIndex(u32::from_ne_bytes(*index)));
    route.on_link = flags & RTNH_F_ONLINK != 0;
    if let Some(gateway) = nested(rest, RTA_GATEWAY) {
        route.gateway = Some(message.ip(family, gateway)?);
    }
    Ok(())
}

const fn route_kind(kind: u8) -> RouteKind {
    match kind {
        RTN_UNICAST => RouteKind::Unicast,
        RTN_LOCAL => RouteKind::Local,
        RTN_UNREACHABLE => RouteKind::Unreachable,
        other => RouteKind::Other(other),
    }
}

fn rule(body: &[u8]) -> Result<Seen, Error> {
    let message = Reader("a rule");
    let ([family, to_length, from_length, tos, table, _, _, action, flags @ ..], rest) =
        message.split::<12>(body)?;
    let Some(family) = family_of(*family) else {
        return Ok(Seen::Foreign);
    };
    let mut rule = Rule {
        source: prefix(message, family, *from_length)?,
        destination: prefix(message, family, *to_length)?,
        action: RuleAction::Other(*action),
        ..Rule::lookup(family, 0, TableId(0))
    };
    let mut more = RuleRest { table: u32::from(*table), protocol: 0 };
    let mut complete = *tos == 0 && u32::from_ne_bytes(*flags) & FIB_RULE_INVERT == 0;
    for attribute in attributes(rest) {
        let attribute = message.attribute(attribute)?;
        complete &= rule_attribute(message, &mut rule, &mut more, attribute)?;
    }
    if *action == FR_ACT_TO_TBL {
        rule.action = RuleAction::Lookup(TableId(more.table));
    }
    Ok(Seen::Rule(SeenRule { rule, protocol: Protocol(more.protocol), complete }))
}

/// What a rule message tells that is not a field of the rule.
struct RuleRest {
    table: u32,
    protocol: u8,
}

/// Puts one attribute into the rule; false when the rule cannot say it.
fn rule_attribute(
    message: Reader,
    rule: &mut Rule,
    more: &mut RuleRest,
    (kind, value): (u16, &[u8]),
) -> Result<bool, Error> {
    let place = |net: Option<IpNet>| -> Result<Option<IpNet>, Error> {
        net.map(|net| {
            IpNet::new(message.ip(rule.family, value)?, net.prefix_len())
                .map_err(|error| message.unreadable(error))
        })
        .transpose()
    };
    match kind {
        FRA_SRC => rule.source = place(rule.source)?,
        FRA_DST => rule.destination = place(rule.destination)?,
        FRA_IIFNAME => rule.iif = Some(text(value)),
        FRA_OIFNAME => rule.oif = Some(text(value)),
        FRA_PRIORITY => rule.priority = Priority(message.number(value)?),
        FRA_FWMARK => {
            let mask = rule.mark.map_or(u32::MAX, |(_, mask)| mask);
            rule.mark = Some((message.number(value)?, mask));
        }
        FRA_FWMASK => {
            let mark = rule.mark.map_or(0, |(mark, _)| mark);
            rule.mark = Some((mark, message.number(value)?));
        }
        FRA_SUPPRESS_IFGROUP => rule.suppress_group = set(message, value)?.map(LinkGroup),
        FRA_SUPPRESS_PREFIXLEN => rule.suppress_prefix_length = set(message, value)?,
        FRA_TABLE => more.table = message.number(value)?,
        FRA_PROTOCOL => more.protocol = value.first().copied().unwrap_or(0),
        FRA_PAD => {}
        _ => return Ok(false),
    }
    Ok(true)
}

/// A number for which the kernel says "none" with -1.
fn set(message: Reader, value: &[u8]) -> Result<Option<u32>, Error> {
    Ok(Some(message.number(value)?).filter(|&number| number != u32::MAX))
}

/// A neighbour that said it is a router.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Router {
    pub(crate) link: LinkIndex,
    pub(crate) address: Ipv6Addr,
    /// Its hardware address is known, and it has not failed to answer.
    pub(crate) usable: bool,
}

/// Reads a neighbour; none when it is not a router of IPv6.
pub(crate) fn router(body: &[u8]) -> Result<Option<Router>, Error> {
    const USABLE: u16 = NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_PERMANENT;
    let message = Reader("a neighbour");
    let ([family, _, _, _, index @ .., state_low, state_high, flags, _], rest) =
        message.split::<12>(body)?;
    if *family != AF_INET6 || flags & NTF_ROUTER == 0 {
        return Ok(None);
    }
    let address = nested(rest, NDA_DST).and_then(|value| <[u8; 16]>::try_from(value).ok());
    let address = address.ok_or_else(|| message.unreadable("it has no address"))?;
    Ok(Some(Router {
        link: LinkIndex(u32::from_ne_bytes(*index)),
        address: address.into(),
        usable: u16::from_ne_bytes([*state_low, *state_high]) & USABLE != 0,
    }))
}

/// The prefix of this length at the unspecified address; none when it holds everything.
fn prefix(message: Reader, family: Family, length: u8) -> Result<Option<IpNet>, Error> {
    (length != 0).then(|| net(message, unspecified(family), length)).transpose()
}

fn net(message: Reader, address: IpAddr, length: u8) -> Result<IpNet, Error> {
    IpNet::new(address, length).map_err(|error| message.unreadable(error))
}

const fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    }
}

fn family_of(number: u8) -> Option<Family> {
    match number {
        AF_INET => Some(Family::V4),
        AF_INET6 => Some(Family::V6),
        _ => None,
    }
}

/// Reads the parts of one message; it holds what the message is, for the error.
#[derive(Clone, Copy)]
struct Reader(&'static str);

impl Reader {
    fn unreadable(self, detail: impl ToString) -> Error {
        Error::Unreadable { what: self.0, detail: detail.to_string() }
    }

    fn split<const N: usize>(self, body: &[u8]) -> Result<(&[u8; N], &[u8]), Error> {
        body.split_first_chunk().ok_or_else(|| self.unreadable("it is too short"))
    }

    fn attribute<T, E: ToString>(self, attribute: Result<T, E>) -> Result<T, Error> {
        attribute.map_err(|error| self.unreadable(error.to_string()))
    }

    fn number(self, value: &[u8]) -> Result<u32, Error> {
        value
            .try_into()
            .map(u32::from_ne_bytes)
            .map_err(|_| self.unreadable(format_args!("a number of {} bytes", value.len())))
    }

    fn ip(self, family: Family, value: &[u8]) -> Result<IpAddr, Error> {
        let address = match family {
            Family::V4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
            Family::V6 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        };
        address.ok_or_else(|| self.unreadable(format_args!("an address of {} bytes", value.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn told(kind: u16, header: &[u8], attributes: &[Vec<u8>]) -> Told {
        Told { kind, body: [header, &attributes.concat()].concat() }
    }

    const ROUTE: [u8; 12] = [AF_INET, 16, 0, 0, 254, 233, 253, RTN_UNICAST, 0, 0, 0, 0];

    #[test]
    fn an_undecodable_message_is_an_error_and_says_what_it_is() {
        let cut_off = [8, 0, 1];
        let broken = [
            told(RTM_NEWLINK, &[0; 15], &[]),
            told(RTM_NEWADDR, &[AF_INET, 24, 0, 0, 1, 0, 0, 0], &[]),
            told(RTM_NEWROUTE, &ROUTE, &[attribute(RTA_DST, &[10, 2, 0])]),
            told(RTM_NEWROUTE, &ROUTE, &[cut_off.to_vec()]),
            told(RTM_NEWROUTE, &[AF_INET, 33, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]),
            told(RTM_NEWRULE, &[AF_INET6; 3], &[]),
            told(99, &[], &[]),
        ];
        for told in broken {
            let error = seen(&told).unwrap_err();
            assert!(matches!(error, Error::Unreadable { .. }), "{error}");
        }
    }

    #[test]
    fn an_attribute_that_nobody_knows_makes_an_object_incomplete_and_no_more() {
        let unknown = attribute(4000, &[1, 2, 3]);
        let route =
            told(RTM_NEWROUTE, &ROUTE, &[attribute(RTA_DST, &[10, 2, 0, 0]), unknown.clone()]);
        let Seen::Route(route) = seen(&route).unwrap() else { panic!() };
        assert!(!route.complete);
        assert_eq!(route.route.destination.to_string(), "10.2.0.0/16");
        let header = [AF_INET, 0, 0, 0, 254, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
        let Seen::Rule(rule) =
            seen(&told(RTM_NEWRULE, &header, std::slice::from_ref(&unknown))).unwrap()
        else {
            panic!()
        };
        assert!(!rule.complete);
        assert_eq!(rule.rule.action, RuleAction::Lookup(TableId::MAIN));
        let name = attribute(IFLA_IFNAME, b"ens5\0");
        let Seen::Link { link, .. } = seen(&told(RTM_NEWLINK, &[0; 16], &[unknown, name])).unwrap()
        else {
            panic!()
        };
        assert_eq!(link.name, "ens5");
    }

    #[test]
    fn other_families_and_the_route_cache_are_foreign() {
        const AF_MPLS: u8 = 28;
        const AF_BRIDGE: u8 = 7;
        let mut cached = ROUTE;
        cached[8..].copy_from_slice(&RTM_F_CLONED.to_ne_bytes());
        let mut bridge = [0; 16];
        bridge[0] = AF_BRIDGE;
        let foreign = [
            told(RTM_NEWROUTE, &cached, &[]),
            told(RTM_NEWROUTE, &[AF_MPLS; 12], &[]),
            told(RTM_NEWRULE, &[AF_MPLS; 12], &[]),
            told(RTM_NEWADDR, &[AF_MPLS; 8], &[]),
            told(RTM_NEWLINK, &bridge, &[]),
        ];
        for told in foreign {
            assert_eq!(seen(&told).unwrap(), Seen::Foreign);
        }
    }

    #[test]
    fn the_permanent_hardware_address_wins() {
        let link = |attributes: &[Vec<u8>]| {
            let Seen::Link { link, .. } = seen(&told(RTM_NEWLINK, &[0; 16], attributes)).unwrap()
            else {
                panic!()
            };
            link.mac
        };
        let current = attribute(IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1]);
        let permanent = attribute(IFLA_PERM_ADDRESS, &[2, 0, 0, 0, 0, 2]);
        assert_eq!(link(&[permanent, current.clone()]), Some(Mac([2, 0, 0, 0, 0, 2])));
        assert_eq!(link(std::slice::from_ref(&current)), Some(Mac([2, 0, 0, 0, 0, 1])));
        let zeros = attribute(IFLA_PERM_ADDRESS, &[0; 6]);
        assert_eq!(link(&[current, zeros]), Some(Mac([2, 0, 0, 0, 0, 1])));
        assert_eq!(link(&[attribute(IFLA_ADDRESS, &[0; 4])]), None, "a tunnel's is an IP address");
    }
}
