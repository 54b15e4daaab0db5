//! A small instance whose kernel does what it is asked, as far as it makes sense: three links that
//! may be ENIs, one of a container, and what a DHCP client left.

use std::collections::BTreeMap;

use enid_core::object::{
    Address, Family, LinkGroup, LinkIndex, Mac, Object, Protocol, Route, RouteKind, Rule, Setting,
    Sysctl, TableId,
};
use enid_core::observed::{Link, SeenAddress, SeenMarking, SeenRoute, SeenRule, Snapshot};
use enid_core::plan::Step;

pub(crate) const MACS: [Mac; 3] =
    [Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]), Mac([2, 0, 0, 0, 0, 3])];

const PRIMARY: LinkIndex = LinkIndex(2);
const CONTAINER: LinkIndex = LinkIndex(9);

/// The instance after boot; `protocols` says whether its kernel marks addresses.
pub(crate) fn booted(protocols: bool) -> Snapshot {
    let mut kernel = Snapshot { address_protocols: protocols, ..Snapshot::default() };
    for (n, mac) in MACS.into_iter().enumerate() {
        kernel.links.push(link(n, mac));
    }
    let container = Link { kind: Some("veth".to_owned()), ..link(7, Mac([2, 9, 9, 9, 9, 9])) };
    kernel.links.push(Link { index: CONTAINER, name: "box0".to_owned(), ..container });
    let leased = |address: &str, prefix_length, permanent| SeenAddress {
        address: Address {
            link: PRIMARY,
            address: address.parse().unwrap_or(std::net::Ipv4Addr::LOCALHOST.into()),
            prefix_length,
            prefix_route: true,
            preferred: true,
        },
        protocol: None,
        permanent,
    };
    kernel.addresses = vec![leased("10.0.1.4", 24, false), leased("2001:db8:0:1::4", 128, false)];
    let route = |destination: &str, gateway: Option<&str>, link, protocol| SeenRoute {
        route: Route {
            table: TableId::MAIN,
            destination: destination.parse().unwrap_or_default(),
            kind: RouteKind::Unicast,
            gateway: gateway.and_then(|gateway| gateway.parse().ok()),
            link: Some(link),
            on_link: false,
            source: None,
            metric: if destination.contains(':') { 1024 } else { 0 },
        },
        protocol: Protocol(protocol),
        complete: true,
    };
    kernel.routes = vec![
        route("0.0.0.0/0", Some("10.0.1.1"), PRIMARY, 16),
        route("10.0.1.0/24", None, PRIMARY, 2),
        route("::/0", Some("fe80::1"), PRIMARY, 9),
        route("10.0.2.77/32", None, CONTAINER, 3),
    ];
    for family in [Family::V4, Family::V6] {
        for (priority, table) in [(0, TableId::LOCAL), (32_766, TableId::MAIN)] {
            let rule = Rule::lookup(family, priority, table);
            kernel.rules.push(SeenRule { rule, protocol: Protocol::KERNEL, complete: true });
        }
    }
    kernel
}

/// The nth link that may be an ENI, as it is plugged in.
pub(crate) fn link(n: usize, mac: Mac) -> Link {
    Link {
        index: LinkIndex(u32::try_from(n + 2).unwrap_or(2)),
        name: format!("eth{n}"),
        alternative_names: Vec::new(),
        kind: None,
        driver: None,
        mac: Some(mac),
        up: n == 0,
        carrier: true,
        mtu: 9001,
        group: LinkGroup::default(),
        master: None,
        ipv6: true,
        sysctls: BTreeMap::from(Sysctl::ALL.map(|key| (key, 1))),
    }
}

/// Does a step of enid's; what is there or gone already stays so.
pub(crate) fn apply(kernel: &mut Snapshot, step: &Step) {
    match step {
        Step::Create(object) => create(kernel, object),
        Step::Delete(object) => delete(kernel, object),
        Step::Replace { old, new } => {
            delete(kernel, old);
            create(kernel, new);
        }
        Step::Set { link, from, to } => {
            if let Some(link) = kernel.links.iter_mut().find(|known| known.index == *link) {
                set(link, from.as_ref(), to.as_ref());
            }
        }
    }
}

fn create(kernel: &mut Snapshot, object: &Object) {
    let own = Protocol::ENID;
    match object {
        Object::Address(address) => {
            let place = |seen: &SeenAddress| {
                (seen.address.link, seen.address.address) == (address.link, address.address)
            };
            if !kernel.addresses.iter().any(place) {
                let protocol = kernel.address_protocols.then_some(own);
                kernel.addresses.push(SeenAddress { address: *address, protocol, permanent: true });
            }
        }
        Object::Route(route) => {
            let place = |route: &Route| (route.table, route.destination, route.metric);
            if !kernel.routes.iter().any(|seen| place(&seen.route) == place(route)) {
                kernel.routes.push(SeenRoute { route: *route, protocol: own, complete: true });
            }
        }
        Object::Rule(rule) => {
            kernel.rules.push(SeenRule { rule: rule.clone(), protocol: own, complete: true });
        }
        Object::Marking(marking) => {
            kernel.markings.retain(|seen| seen.marking.table != marking.table);
            kernel.markings.push(SeenMarking { marking: marking.clone(), complete: true });
        }
    }
}

fn delete(kernel: &mut Snapshot, object: &Object) {
    match object {
        Object::Address(address) => kernel.addresses.retain(|seen| seen.address != *address),
        Object::Route(route) => kernel.routes.retain(|seen| seen.route != *route),
        Object::Rule(rule) => {
            kernel.rules.retain(|seen| seen.rule != *rule || seen.protocol != Protocol::ENID);
        }
        Object::Marking(marking) => {
            kernel.markings.retain(|seen| seen.marking.table != marking.table);
        }
    }
}

fn set(link: &mut Link, from: Option<&Setting>, to: Option<&Setting>) {
    match (from, to) {
        (_, Some(Setting::Up)) => link.up = true,
        (_, Some(Setting::Mtu(mtu))) => link.mtu = *mtu,
        (_, Some(Setting::Group(group))) => link.group = *group,
        (_, Some(Setting::AlternativeName(name))) => link.alternative_names.push(name.clone()),
        (Some(Setting::AlternativeName(name)), None) => {
            link.alternative_names.retain(|known| known != name);
        }
        (_, Some(Setting::Sysctl(key, value))) => _ = link.sysctls.insert(*key, *value),
        (
            Some(Setting::Up | Setting::Mtu(_) | Setting::Group(_) | Setting::Sysctl(..)) | None,
            None,
        ) => {}
    }
}

/// What enid did not make.
pub(crate) fn foreign(kernel: &Snapshot) -> (Vec<SeenAddress>, Vec<SeenRoute>, Vec<SeenRule>) {
    // Where the kernel does not mark addresses, those of the lease are the only foreign ones.
    let lease = |seen: &&SeenAddress| !seen.permanent;
    (
        kernel.addresses.iter().filter(lease).cloned().collect(),
        kernel.routes.iter().filter(|seen| seen.protocol != Protocol::ENID).cloned().collect(),
        kernel.rules.iter().filter(|seen| seen.protocol != Protocol::ENID).cloned().collect(),
    )
}
