//! An ENI's own routing table: how everything that comes from its addresses leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::choice::Prefixes;
use crate::desired::Desired;
use crate::eni::{Eni, Facts};
use crate::object::{Family, LinkIndex, Protocol, Route, RouteKind, TableId};
use crate::observed::Link;
use crate::proof;
use crate::report::{CidrReport, Leaving, Notice};
use crate::stack::{Stack, router};

/// The metric of routes that no other key tells apart; IPv6 has no 0.
const fn usual(family: Family) -> u32 {
    match family {
        Family::V4 => 0,
        Family::V6 => 1024,
    }
}

/// How much higher the metric is of routes that are copied from main …
const MIRROR: u32 = 1;
/// … and of those that the operator wants; it tells them from the ENI's own ones.
const EXTRA: u32 = 2;
/// The metric that every other route beats.
const LAST: u32 = u32::MAX;
/// Every router of a VPC answers to this address, too.
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0xec2, 0, 0, 0, 0, 0, 1);
const LINK_LOCAL: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 64);

/// Wishes for the routes of one family of an ENI; `source` is the preferred source, where the kernel
/// has or will have it.
pub(crate) fn table(
    facts: &Facts<'_>,
    eni: &Eni<'_>,
    link: &Link,
    stack: &Stack,
    enis: &[Eni<'_>],
    source: Option<IpAddr>,
    desired: &mut Desired,
) {
    let Some(table) = eni.table else { return };
    let exit = Exit { table, stack, link: link.index, source };
    // The primary's packets find main behind an empty table: when its address is lost for a moment,
    // the kernel empties the table, and with enid stopped or without metadata nobody fills it again.
    let mut routes: Vec<Route> = (!eni.primary).then(|| exit.closed()).into_iter().collect();
    // By a link that is down the kernel takes no routes, and nobody but its boot raises the primary.
    if link.up || !eni.primary {
        let gateway = gateway(facts, link, &exit);
        let default = eni.primary.then(|| main_default(facts, link, stack.family)).flatten();
        let next = default.map_or(gateway, |main| main.gateway);
        let router = match stack.family {
            Family::V4 => gateway,
            // What main knows is better than what no neighbour has said.
            Family::V6 => next.or(gateway),
        };
        let mut open = destinations(facts, eni, link, enis, &exit, router);
        let unproven = unproven(facts, eni, enis, &exit, &open);
        if !unproven.is_empty() {
            *desired.unproven.entry(eni.mac).or_default() += unproven.len();
            desired.witnesses.extend(proof::witnesses(eni, enis).map(|other| other.mac));
            desired.cidrs.extend(unproven.iter().filter_map(|(route, leaving)| {
                let (cidr, leaving) = (route.destination, leaving.clone()?);
                Some((eni.mac, CidrReport { cidr, leaving }))
            }));
        }
        open.extend(unproven.into_iter().map(|(route, _)| route));
        let mut route = exit.via(everything(stack.family), next, 0);
        route.on_link |= default.is_some_and(|main| main.on_link);
        open.push(route);
        routes.extend(open);
    }
    desired.routes.extend(routes.into_iter().map(|route| (route, eni.mac)));
}

/// Wishes for routes of one family of an ENI in tables that everybody shares.
pub(crate) fn shared(
    eni: &Eni<'_>,
    link: &Link,
    stack: &Stack,
    enis: &[Eni<'_>],
    source: Option<IpAddr>,
    desired: &mut Desired,
) {
    let Some(table) = eni.table.filter(|_| link.up || !eni.primary) else { return };
    let exit = Exit { table, stack, link: link.index, source };
    let mut routes: Vec<Route> = local(eni, &exit).collect();
    if !eni.primary && eni.choice.connected_route {
        routes.extend(connected(eni, enis, &exit, desired));
    }
    desired.routes.extend(routes.into_iter().map(|route| (route, eni.mac)));
}

/// Says whose routes are where an ENI's own ones are, or compete with them.
pub(crate) fn notices(facts: &Facts<'_>, eni: &Eni<'_>, link: &Link, desired: &mut Desired) {
    let routes = &facts.observed.snapshot.routes;
    let foreign = || routes.iter().filter(|seen| seen.protocol != Protocol::ENID);
    let beside = foreign().filter(|seen| Some(seen.route.table) == eni.table).count();
    if beside > 0 {
        desired.notices.push((eni.mac, Notice::ForeignRoutes(beside)));
    }
    let subnets: Vec<IpNet> = eni.subnets().collect();
    let in_main = || {
        foreign().filter(|seen| {
            let route = seen.route;
            route.table == TableId::MAIN
                && route.link == Some(link.index)
                && route.kind == RouteKind::Unicast
                && (route.is_default() || subnets.contains(&route.destination))
        })
    };
    // A DHCP client has made those of IPv4, and the router's advertisements those of IPv6.
    for family in [Family::V4, Family::V6] {
        let loudest = in_main()
            .filter(|seen| Family::of(seen.route.destination.addr()) == family)
            .max_by_key(|seen| seen.route.is_default());
        let Some(seen) = loudest.filter(|_| !eni.primary) else { continue };
        let notice = Notice::MainRoutes { default: seen.route.is_default(), by: seen.protocol };
        let notice = (eni.mac, notice);
        if !desired.notices.contains(&notice) {
            desired.notices.push(notice);
        }
    }
}

fn everything(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(Ipv4Net::default()),
        Family::V6 => IpNet::V6(Ipv6Net::default()),
    }
}

/// What the routes of one table share.
struct Exit<'a> {
    table: TableId,
    stack: &'a Stack,
    link: LinkIndex,
    source: Option<IpAddr>,
}

impl Exit<'_> {
    fn via(&self, destination: IpNet, gateway: Option<IpAddr>, above: u32) -> Route {
        let reachable = |gateway: IpAddr| {
            let link_local = matches!(gateway, IpAddr::V6(v6) if v6.is_unicast_link_local());
            link_local || self.stack.subnet_of(gateway).is_some()
        };
        Route {
            table: self.table,
            destination,
            kind: RouteKind::Unicast,
            gateway,
            link: Some(self.link),
            on_link: gateway.is_some_and(|gateway| !reachable(gateway)),
            source: self.source,
            metric: usual(self.stack.family) + above,
        }
    }

    /// Without a way out, nothing leaks through another ENI.
    fn closed(&self) -> Route {
        let route = self.via(everything(self.stack.family), None, 0);
        Route { kind: RouteKind::Unreachable, link: None, source: None, metric: LAST, ..route }
    }
}

/// Everything but the default: the subnet, what the operator wants, main's own routes by this link,
/// and the VPC; each destination once, whoever names it first.
fn destinations(
    facts: &Facts<'_>,
    eni: &Eni<'_>,
    link: &Link,
    enis: &[Eni<'_>],
    exit: &Exit<'_>,
    gateway: Option<IpAddr>,
) -> Vec<Route> {
    let stack = exit.stack;
    let mut routes: Vec<Route> =
        stack.subnets.iter().map(|subnet| exit.via(*subnet, None, 0)).collect();
    if stack.family == Family::V6 {
        // Who asks for a neighbour's link-local address must not get a global source.
        routes.push(Route { source: None, ..exit.via(IpNet::V6(LINK_LOCAL), None, 0) });
    }
    let wanted = eni.choice.routes.iter();
    let wanted = wanted.filter(|extra| Family::of(extra.destination.addr()) == stack.family);
    let wanted = wanted.map(|extra| exit.via(extra.destination, extra.gateway, EXTRA));
    let mirrors = mirrors(facts, link, stack).into_values().map(|mirror| {
        let route = exit.via(mirror.destination, mirror.gateway, MIRROR);
        Route { on_link: route.on_link || mirror.on_link, ..route }
    });
    let vpc = cidrs(eni, enis, stack.family).into_iter().map(|cidr| exit.via(cidr, gateway, 0));
    for route in wanted.chain(mirrors).chain(vpc) {
        if routes.iter().all(|known| known.destination != route.destination) {
            routes.push(route);
        }
    }
    routes
}

/// The next hop to everywhere: of IPv4 the subnet's first address; of IPv6 a neighbour that said it is
/// a router, the one in use as long as none contradicts.
fn gateway(facts: &Facts<'_>, link: &Link, exit: &Exit<'_>) -> Option<IpAddr> {
    let Family::V6 = exit.stack.family else {
        let subnet = exit.stack.subnets.first()?;
        let IpNet::V4(subnet) = subnet else { return None };
        return Some(IpAddr::V4(router(*subnet)));
    };
    let said = facts.observed.snapshot.routers.get(&link.index).into_iter().flatten().copied();
    let announced = facts.observed.snapshot.routes.iter().filter_map(|seen| {
        let route = seen.route;
        let here = route.table == TableId::MAIN && route.link == Some(link.index);
        match route.gateway {
            Some(IpAddr::V6(router)) if here && route.is_default() => Some(router),
            Some(_) | None => None,
        }
    });
    let known: BTreeSet<Ipv6Addr> =
        said.chain(announced).filter(Ipv6Addr::is_unicast_link_local).collect();
    let used = facts.observed.own_routes().find(|own| {
        own.table == exit.table
            && own.link == Some(exit.link)
            && own.is_default()
            && own.destination == everything(Family::V6)
    });
    let used = used.and_then(|own| own.gateway);
    match used {
        Some(IpAddr::V6(used)) if known.is_empty() || known.contains(&used) => Some(used.into()),
        Some(_) | None => Some(known.first().copied().unwrap_or(ROUTER).into()),
    }
}

/// Own routes to CIDRs that metadata no longer shows, as long as that is not proven.
fn unproven(
    facts: &Facts<'_>,
    eni: &Eni<'_>,
    enis: &[Eni<'_>],
    exit: &Exit<'_>,
    routes: &[Route],
) -> Vec<(Route, Option<Leaving>)> {
    let own = facts.observed.own_routes().filter(|own| {
        own.table == exit.table
            && own.link == Some(exit.link)
            && Family::of(own.destination.addr()) == exit.stack.family
            && own.metric == usual(exit.stack.family)
            && !own.is_default()
            && routes.iter().all(|route| route.destination != own.destination)
    });
    own.map(|own| (*own, proof::cidr_leaving(facts, eni, enis, &own.destination)))
        .filter(|(_, leaving)| !leaving.as_ref().is_some_and(|leaving| leaving.proven))
        .collect()
}

/// The VPC's CIDRs, which every ENI of the same VPC may be the first to show.
fn cidrs(eni: &Eni<'_>, enis: &[Eni<'_>], family: Family) -> BTreeSet<IpNet> {
    let vpc = eni.facts.and_then(|known| known.keys.vpc.as_ref());
    let same = enis
        .iter()
        .filter_map(|other| other.facts)
        .filter(|known| vpc.is_some() && known.keys.vpc.as_ref() == vpc);
    let all = same.chain(eni.facts);
    match family {
        Family::V4 => all.flat_map(|known| &known.keys.vpc_v4).copied().map(IpNet::V4).collect(),
        Family::V6 => all.flat_map(|known| &known.keys.vpc_v6).copied().map(IpNet::V6).collect(),
    }
}

/// Main's other unicast routes that leave by this link, the best one for each destination.
fn mirrors(facts: &Facts<'_>, link: &Link, stack: &Stack) -> BTreeMap<IpNet, Route> {
    let mut best: BTreeMap<IpNet, Route> = BTreeMap::new();
    for seen in &facts.observed.snapshot.routes {
        let route = seen.route;
        // The kernel makes a route to each address of IPv6 itself.
        let itself = || {
            route.destination.prefix_len() == stack.family.host_length()
                && stack.addresses.contains(&route.destination.addr())
        };
        let other = route.table == TableId::MAIN
            && route.kind == RouteKind::Unicast
            && route.link == Some(link.index)
            && Family::of(route.destination.addr()) == stack.family
            && !route.is_default()
            && seen.protocol != Protocol::ENID
            && seen.complete
            && !itself();
        if other && best.get(&route.destination).is_none_or(|known| route.metric < known.metric) {
            best.insert(route.destination, route);
        }
    }
    best
}

/// Main's default route that leaves by this link.
fn main_default(facts: &Facts<'_>, link: &Link, family: Family) -> Option<Route> {
    let routes = facts.observed.snapshot.routes.iter().filter(|seen| {
        seen.route.table == TableId::MAIN
            && seen.route.kind == RouteKind::Unicast
            && seen.route.link == Some(link.index)
            && seen.route.destination == everything(family)
            && seen.complete
    });
    routes.map(|seen| seen.route).min_by_key(|route| route.metric)
}

/// Makes every address of the delegated prefixes one of the host.
fn local<'a>(eni: &Eni<'_>, exit: &'a Exit<'_>) -> impl Iterator<Item = Route> + use<'a> {
    let prefixes: &[IpNet] = match eni.choice.prefixes {
        Prefixes::Local => &exit.stack.prefixes,
        Prefixes::Rules | Prefixes::Ignore => &[],
    };
    prefixes.iter().map(|prefix| Route {
        table: TableId::LOCAL,
        kind: RouteKind::Local,
        source: None,
        ..exit.via(*prefix, None, 0)
    })
}

/// The subnet in main, behind every other route: for broadcast, multicast and services that answer
/// without an address of their own.
fn connected(
    eni: &Eni<'_>,
    enis: &[Eni<'_>],
    exit: &Exit<'_>,
    desired: &mut Desired,
) -> Vec<Route> {
    let shared = |subnet: &IpNet| {
        let overlap = |other: IpNet| other.contains(subnet) || subnet.contains(&other);
        let others = enis.iter().filter(|other| other.mac != eni.mac && other.link.is_some());
        others.flat_map(Eni::subnets).any(overlap)
    };
    if exit.stack.subnets.iter().any(shared) {
        desired.notices.push((eni.mac, Notice::SharedSubnet));
        return Vec::new();
    }
    let subnets = exit.stack.subnets.iter();
    subnets
        .map(|subnet| {
            let route = exit.via(*subnet, None, 0);
            Route { table: TableId::MAIN, metric: exit.table.0, ..route }
        })
        .collect()
}
