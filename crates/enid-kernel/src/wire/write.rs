//! From our nouns to requests: what we make carries our mark, what we delete is named in full.

use std::net::IpAddr;

use enid_core::object::{
    Address, Family, LinkIndex, Marking, Object, Protocol, Route, RouteKind, Rule, RuleAction,
    Setting, Sysctl, TableId,
};
use enid_core::plan::Step;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkMessage,
};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeader, AddressHeaderFlags, AddressMessage,
    AddressProtocol, CacheInfo,
};
use rtnetlink::packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage, Prop};
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{self, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::Message;
use crate::lookup::{Part, Question};

/// How a step is taken.
#[derive(Debug)]
pub(crate) enum Way<'a> {
    /// By a request to netlink.
    Request(NetlinkMessage<Message>),
    /// By writing a link's setting.
    Sysctl(LinkIndex, Sysctl, i32),
    /// By making this marking.
    Mark(&'a Marking),
    /// By deleting this marking.
    Unmark(&'a Marking),
    /// Not at all.
    Not(&'static str),
}

/// The tables that we look at, in the order in which we look: links first, so that whatever comes
/// later can name only a link that we have seen or one that is new.
pub(crate) fn dumps() -> [(&'static str, NetlinkMessage<Message>); 5] {
    let mut links = LinkMessage::default();
    links.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    // The kernel cannot be asked for routers alone, but for one family.
    let mut neighbours = NeighbourMessage::default();
    neighbours.header.family = AddressFamily::Inet6;
    [
        ("listing links", RouteNetlinkMessage::GetLink(links)),
        ("listing addresses", RouteNetlinkMessage::GetAddress(AddressMessage::default())),
        ("listing routes", RouteNetlinkMessage::GetRoute(RouteMessage::default())),
        ("listing rules", RouteNetlinkMessage::GetRule(RuleMessage::default())),
        ("listing neighbours", RouteNetlinkMessage::GetNeighbour(neighbours)),
    ]
    .map(|(tried, message)| (tried, request(message, NLM_F_DUMP)))
}

/// The addresses of one link only.
pub(crate) fn addresses_of(link: LinkIndex) -> NetlinkMessage<Message> {
    let mut addresses = AddressMessage::default();
    addresses.header.index = link.0;
    request(RouteNetlinkMessage::GetAddress(addresses), NLM_F_DUMP)
}

/// Asks which way a packet would go.
pub(crate) fn question(ask: &Question, part: Part) -> NetlinkMessage<Message> {
    let length = Family::of(ask.to).host_length();
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(Family::of(ask.to));
    header.destination_prefix_length = length;
    header.source_prefix_length = ask.from.map_or(0, |_| length);
    // IPv4 names the table that was asked only then, and IPv6 always.
    header.flags.set(RouteFlags::LookupTable, ask.to.is_ipv4());
    header.flags.set(RouteFlags::FibMatch, part == Part::Route);
    message.attributes = [
        Some(RouteAttribute::Destination(ask.to.into())),
        ask.from.map(|from| RouteAttribute::Source(from.into())),
        ask.iif.map(|link| RouteAttribute::Iif(link.0)),
        ask.oif.map(|link| RouteAttribute::Oif(link.0)),
        (ask.mark != 0).then_some(RouteAttribute::Mark(ask.mark)),
        ask.uid.map(RouteAttribute::Uid),
    ]
    .into_iter()
    .flatten()
    .collect();
    request(RouteNetlinkMessage::GetRoute(message), NLM_F_ACK)
}

/// How to take this step.
pub(crate) fn way(step: &Step) -> Way<'_> {
    const CREATE: u16 = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    match step {
        Step::Set { link, from, to } => set(*link, from.as_ref(), to.as_ref()),
        Step::Create(Object::Marking(marking)) => Way::Mark(marking),
        Step::Delete(Object::Marking(marking)) => Way::Unmark(marking),
        Step::Create(object) => way_of(new(object), CREATE),
        Step::Delete(object) => way_of(delete(object), NLM_F_ACK),
        Step::Replace { old: Object::Route(old), new: Object::Route(route) } => {
            let place = |route: &Route| (route.table, route.destination, route.metric);
            if place(old) != place(route) {
                Way::Not("a route is replaced only in its own place")
            } else {
                let message = RouteNetlinkMessage::NewRoute(route_message(route, Purpose::Make));
                Way::Request(request(message, NLM_F_ACK | NLM_F_REPLACE))
            }
        }
        Step::Replace { .. } => Way::Not("only routes can be replaced without a gap"),
    }
}

fn request(message: RouteNetlinkMessage, flags: u16) -> NetlinkMessage<Message> {
    let mut message = NetlinkMessage::from(Message::Ask(Box::new(message)));
    message.header.flags = NLM_F_REQUEST | flags;
    message
}

fn way_of(message: Result<RouteNetlinkMessage, &'static str>, flags: u16) -> Way<'static> {
    message.map_or_else(Way::Not, |message| Way::Request(request(message, flags)))
}

/// Why an object must not be sent, else: a wildcard of the kernel's could reach what is not ours.
fn sayable(object: &Object) -> Result<(), &'static str> {
    match object {
        Object::Address(address) if address.link.0 == 0 => Err("an address without a link"),
        Object::Route(Route { kind: RouteKind::Unreachable, link: Some(_), .. }) => {
            Err("an unreachable route has no link")
        }
        Object::Route(Route {
            kind: RouteKind::Unicast | RouteKind::Local, link: None, ..
        }) => Err("a route without a link"),
        Object::Address(_) | Object::Route(_) | Object::Rule(_) | Object::Marking(_) => Ok(()),
    }
}

const NOT_ROUTING: &str = "the routing side of the kernel knows no marking";

fn new(object: &Object) -> Result<RouteNetlinkMessage, &'static str> {
    sayable(object)?;
    Ok(match object {
        Object::Address(address) => RouteNetlinkMessage::NewAddress(new_address(address)),
        Object::Route(route) => RouteNetlinkMessage::NewRoute(route_message(route, Purpose::Make)),
        Object::Rule(rule) => RouteNetlinkMessage::NewRule(rule_message(rule)),
        Object::Marking(_) => return Err(NOT_ROUTING),
    })
}

fn delete(object: &Object) -> Result<RouteNetlinkMessage, &'static str> {
    sayable(object)?;
    Ok(match object {
        Object::Address(address) => RouteNetlinkMessage::DelAddress(address_message(address)),
        Object::Route(route) => RouteNetlinkMessage::DelRoute(route_message(route, Purpose::Find)),
        Object::Rule(rule) => RouteNetlinkMessage::DelRule(rule_message(rule)),
        Object::Marking(_) => return Err(NOT_ROUTING),
    })
}

/// The part that names an address: all that a delete can say.
fn address_message(address: &Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header = AddressHeader {
        family: family(Family::of(address.address)),
        prefix_len: address.prefix_length,
        flags: AddressHeaderFlags::empty(),
        index: address.link.0,
        ..AddressHeader::default()
    };
    message.attributes =
        vec![AddressAttribute::Local(address.address), AddressAttribute::Address(address.address)];
    message
}

fn new_address(address: &Address) -> AddressMessage {
    const FOREVER: u32 = u32::MAX;
    let mut message = address_message(address);
    let mut flags = AddressFlags::empty();
    flags.set(AddressFlags::Noprefixroute, !address.prefix_route);
    // The cloud hands out each address once; waiting for a duplicate costs a second.
    flags.set(AddressFlags::Nodad, address.address.is_ipv6());
    message.attributes.push(AddressAttribute::Flags(flags));
    #[cfg(feature = "faults")]
    let keeps = !crate::faults::forgets_protocols();
    #[cfg(not(feature = "faults"))]
    let keeps = true;
    let mark = AddressAttribute::Protocol(AddressProtocol::from(Protocol::ENID.0));
    message.attributes.extend(keeps.then_some(mark));
    if !address.preferred {
        let mut lifetime = CacheInfo::default();
        lifetime.ifa_preferred = 0;
        lifetime.ifa_valid = FOREVER;
        message.attributes.push(AddressAttribute::CacheInfo(lifetime));
    }
    message
}

/// What a route message is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Make,
    Find,
}

fn route_message(route: &Route, purpose: Purpose) -> RouteMessage {
    let family_is = |ip: IpAddr| family(Family::of(ip));
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family_is(route.destination.addr());
    header.destination_prefix_length = route.destination.prefix_len();
    header.protocol = Protocol::ENID.0.into();
    header.kind = RouteType::from(kind(route.kind));
    header.scope = match (purpose, route.kind, route.gateway) {
        (Purpose::Find, ..) => RouteScope::NoWhere,
        (Purpose::Make, RouteKind::Unicast, None) => RouteScope::Link,
        (Purpose::Make, RouteKind::Local, _) => RouteScope::Host,
        (Purpose::Make, ..) => RouteScope::Universe,
    };
    header.flags.set(RouteFlags::Onlink, route.on_link);
    header.table = small(route.table);
    let link = route.link.or_else(|| loopback(route));
    message.attributes = [
        (route.destination.prefix_len() != 0)
            .then(|| RouteAttribute::Destination(route.destination.trunc().addr().into())),
        Some(RouteAttribute::Table(route.table.0)),
        (route.metric != 0).then_some(RouteAttribute::Priority(route.metric)),
        route.gateway.map(|gateway| RouteAttribute::Gateway(RouteAddress::from(gateway))),
        link.map(|link| RouteAttribute::Oif(link.0)),
        route.source.map(|source| RouteAttribute::PrefSource(RouteAddress::from(source))),
    ]
    .into_iter()
    .flatten()
    .collect();
    message
}

/// IPv6 keeps an unreachable route on the loopback link, and naming it keeps a delete from
/// matching a route that leaves by another link.
fn loopback(route: &Route) -> Option<LinkIndex> {
    const LOOPBACK: LinkIndex = LinkIndex(1);
    let ipv6 = route.destination.addr().is_ipv6();
    (ipv6 && route.kind == RouteKind::Unreachable).then_some(LOOPBACK)
}

const fn kind(kind: RouteKind) -> u8 {
    match kind {
        RouteKind::Unicast => super::numbers::RTN_UNICAST,
        RouteKind::Local => super::numbers::RTN_LOCAL,
        RouteKind::Unreachable => super::numbers::RTN_UNREACHABLE,
        RouteKind::Other(number) => number,
    }
}

/// The header's byte for a table: 0 stands for "see the attribute".
fn small(table: TableId) -> u8 {
    u8::try_from(table.0).unwrap_or(0)
}

/// A rule with all that it has; the protocol keeps a delete from the twin of somebody else.
fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.family);
    let mut attributes = vec![
        RuleAttribute::Priority(rule.priority.0),
        RuleAttribute::Protocol(Protocol::ENID.0.into()),
    ];
    match rule.action {
        RuleAction::Lookup(table) => {
            message.header.action = rule::RuleAction::ToTable;
            message.header.table = small(table);
            attributes.push(RuleAttribute::Table(table.0));
        }
        RuleAction::Other(number) => message.header.action = number.into(),
    }
    if let Some(source) = rule.source {
        message.header.src_len = source.prefix_len();
        attributes.push(RuleAttribute::Source(source.addr()));
    }
    if let Some(destination) = rule.destination {
        message.header.dst_len = destination.prefix_len();
        attributes.push(RuleAttribute::Destination(destination.addr()));
    }
    attributes.extend(rule.iif.clone().map(RuleAttribute::Iifname));
    attributes.extend(rule.oif.clone().map(RuleAttribute::Oifname));
    if let Some((mark, mask)) = rule.mark {
        attributes.extend([RuleAttribute::FwMark(mark), RuleAttribute::FwMask(mask)]);
    }
    attributes.extend(rule.suppress_prefix_length.map(RuleAttribute::SuppressPrefixLen));
    attributes.extend(rule.suppress_group.map(|group| RuleAttribute::SuppressIfGroup(group.0)));
    message.attributes = attributes;
    message
}

fn set(link: LinkIndex, from: Option<&Setting>, to: Option<&Setting>) -> Way<'static> {
    const ADD: u16 = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL | NLM_F_APPEND;
    if link.0 == 0 {
        return Way::Not("a setting without a link");
    }
    let mut message = LinkMessage::default();
    message.header.index = link.0;
    let property = |name: &String| LinkAttribute::PropList(vec![Prop::AltIfName(name.clone())]);
    match (from, to) {
        (_, Some(Setting::Sysctl(sysctl, value))) => return Way::Sysctl(link, *sysctl, *value),
        (_, Some(Setting::AlternativeName(name))) => {
            message.attributes.push(property(name));
            return Way::Request(request(RouteNetlinkMessage::NewLinkProp(message), ADD));
        }
        (Some(Setting::AlternativeName(name)), None) => {
            message.attributes.push(property(name));
            return Way::Request(request(RouteNetlinkMessage::DelLinkProp(message), NLM_F_ACK));
        }
        (_, Some(Setting::Up)) => {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
        (_, Some(Setting::Mtu(mtu))) => message.attributes.push(LinkAttribute::Mtu(*mtu)),
        (_, Some(Setting::Group(group))) => {
            message.attributes.push(LinkAttribute::Group(group.0));
        }
        (
            None | Some(Setting::Up | Setting::Mtu(_) | Setting::Group(_) | Setting::Sysctl(..)),
            None,
        ) => return Way::Not("only an alternative name can be taken away"),
    }
    Way::Request(request(RouteNetlinkMessage::SetLink(message), NLM_F_ACK))
}

const fn family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}
