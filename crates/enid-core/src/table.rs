//! An ENI's own routing table: how everything that comes from its addresses leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use crate::desired::Desired;
use crate::eni::{Eni, Facts};
use crate::object::{LinkIndex, Protocol, Route, RouteKind, TableId};
use crate::observed::Link;
use crate::proof;
use crate::report::Notice;

/// The metric of routes that are copied from main; it tells them from the ENI's own ones.
const MIRROR: u32 = 1;
/// The metric that every other route beats.
const LAST: u32 = u32::MAX;

/// Wishes for the routes of one ENI's table; `source` is the preferred source, where the kernel has
/// or will have it.
pub(crate) fn table(
    facts: &Facts<'_>,
    eni: &Eni<'_>,
    link: &Link,
    enis: &[Eni<'_>],
    source: Option<IpAddr>,
    desired: &mut Desired,
) {
    let (Some(table), Some(subnet), Some(router)) = (eni.table, eni.subnet, eni.gateway()) else {
        return;
    };
    let router = IpAddr::V4(router);
    let exit = Exit { table, subnet: IpNet::V4(subnet), link: link.index, source };
    // The primary's packets find main behind an empty table: when its address is lost for a moment,
    // the kernel empties the table, and with enid stopped or without metadata nobody fills it again.
    let mut routes: Vec<Route> = (!eni.primary).then(|| exit.closed()).into_iter().collect();
    // By a link that is down the kernel takes no routes, and nobody but its boot raises the primary.
    if link.up || !eni.primary {
        routes.push(exit.via(exit.subnet, None, 0));
        let mirrors = mirrors(facts, link, exit.subnet);
        for mirror in mirrors.values() {
            let mut route = exit.via(mirror.destination, mirror.gateway, MIRROR);
            route.on_link |= mirror.on_link;
            routes.push(route);
        }
        for cidr in cidrs(eni, enis) {
            if cidr != exit.subnet && !mirrors.contains_key(&cidr) {
                routes.push(exit.via(cidr, Some(router), 0));
            }
        }
        let unproven = unproven(facts, eni, enis, &exit, &routes);
        if !unproven.is_empty() {
            *desired.unproven.entry(eni.mac).or_default() += unproven.len();
        }
        routes.extend(unproven);
        let default = eni.primary.then(|| main_default(facts, link)).flatten();
        let gateway = default.map_or(Some(router), |main| main.gateway);
        let mut route = exit.via(everything(), gateway, 0);
        route.on_link |= default.is_some_and(|main| main.on_link);
        routes.push(route);
    }
    let foreign = facts.observed.snapshot.routes.iter();
    let foreign =
        foreign.filter(|seen| seen.route.table == table && seen.protocol != Protocol::ENID).count();
    if foreign > 0 {
        desired.notices.push((eni.mac, Notice::ForeignRoutes(foreign)));
    }
    desired.routes.extend(routes.into_iter().map(|route| (route, eni.mac)));
}

fn everything() -> IpNet {
    IpNet::V4(Ipv4Net::default())
}

/// What the routes of one table share.
struct Exit {
    table: TableId,
    subnet: IpNet,
    link: LinkIndex,
    source: Option<IpAddr>,
}

impl Exit {
    fn via(&self, destination: IpNet, gateway: Option<IpAddr>, metric: u32) -> Route {
        Route {
            table: self.table,
            destination,
            kind: RouteKind::Unicast,
            gateway,
            link: Some(self.link),
            on_link: gateway.is_some_and(|gateway| !self.subnet.contains(&gateway)),
            source: self.source,
            metric,
        }
    }

    /// Without a way out, nothing leaks through another ENI.
    fn closed(&self) -> Route {
        let route = self.via(everything(), None, LAST);
        Route { kind: RouteKind::Unreachable, link: None, source: None, ..route }
    }
}

/// Own routes to CIDRs that metadata no longer shows, as long as that is not proven.
fn unproven(
    facts: &Facts<'_>,
    eni: &Eni<'_>,
    enis: &[Eni<'_>],
    exit: &Exit,
    routes: &[Route],
) -> Vec<Route> {
    let own = facts.observed.own_routes().filter(|own| {
        own.table == exit.table
            && own.link == Some(exit.link)
            && own.metric == 0
            && !own.is_default()
            && routes.iter().all(|route| route.destination != own.destination)
    });
    own.filter(|own| !proof::cidr_is_gone(facts, eni, enis, &own.destination)).copied().collect()
}

/// The VPC's IPv4 CIDRs, which every ENI of the same VPC may be the first to show.
fn cidrs(eni: &Eni<'_>, enis: &[Eni<'_>]) -> BTreeSet<IpNet> {
    let vpc = eni.facts.and_then(|known| known.keys.vpc.as_ref());
    let same = enis
        .iter()
        .filter_map(|other| other.facts)
        .filter(|known| vpc.is_some() && known.keys.vpc.as_ref() == vpc);
    let own = eni.facts.into_iter();
    same.chain(own).flat_map(|known| known.keys.vpc_v4.iter().copied().map(IpNet::V4)).collect()
}

/// Main's other unicast routes that leave by this link, the best one for each destination.
fn mirrors(facts: &Facts<'_>, link: &Link, subnet: IpNet) -> BTreeMap<IpNet, Route> {
    let mut best: BTreeMap<IpNet, Route> = BTreeMap::new();
    for seen in &facts.observed.snapshot.routes {
        let route = seen.route;
        let other = route.table == TableId::MAIN
            && route.kind == RouteKind::Unicast
            && route.link == Some(link.index)
            && matches!(route.destination, IpNet::V4(_))
            && !route.is_default()
            && route.destination != subnet
            && seen.protocol != Protocol::ENID
            && seen.complete;
        if other && best.get(&route.destination).is_none_or(|known| route.metric < known.metric) {
            best.insert(route.destination, route);
        }
    }
    best
}

/// Main's default route that leaves by this link.
fn main_default(facts: &Facts<'_>, link: &Link) -> Option<Route> {
    let routes = facts.observed.snapshot.routes.iter().filter(|seen| {
        seen.route.table == TableId::MAIN
            && seen.route.kind == RouteKind::Unicast
            && seen.route.link == Some(link.index)
            && matches!(seen.route.destination, IpNet::V4(_))
            && seen.route.is_default()
            && seen.complete
    });
    routes.map(|seen| seen.route).min_by_key(|route| route.metric)
}
