//! What the cloud and the operator expect of an instance: for each packet, where it must go.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::combination::{Combination, Delegation, Main};
use crate::lookup::{Lookup, Packet, Way};
use crate::scene::{CONTAINERS, ELSEWHERE, Eni, INSIDE, LATER, OUTSIDE, STRANGER, Scene, TUNNEL};
use crate::state::Family;

/// Where a packet must go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Must {
    /// Out by a link, to this next hop, and from this source where it had none.
    Leave {
        /// The link's name.
        link: String,
        /// The next hop; none where the destination is on the link.
        gateway: Option<IpAddr>,
        /// The source that it must get.
        source: Option<IpAddr>,
    },
    /// To this machine itself.
    Arrive,
    /// Where it would go without enid, and from the source that it would get.
    AsWithout,
    /// Not out by another ENI than this one.
    NotLeak {
        /// The ENI's link.
        link: String,
        /// The links of all ENIs.
        enis: Vec<String>,
    },
}

/// What must hold of one packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promise {
    /// The packet.
    pub packet: Packet,
    /// Where it must go.
    pub must: Must,
}

impl Promise {
    /// Whether it holds; where not, what happens instead.
    ///
    /// # Errors
    /// The packet, its way and what decided it.
    pub fn holds(&self, with: &Lookup<'_>, without: &Lookup<'_>) -> Result<(), String> {
        let answer = with.answer(&self.packet);
        let fail = |must: &str| Err(format!("{}\n  must go {must}\n  goes {answer}", self.packet));
        match &self.must {
            Must::Leave { link, gateway, source } => {
                let must = Way::Out { link, gateway: *gateway };
                if answer.way != must {
                    return fail(&must.to_string());
                }
                match source {
                    Some(source) if answer.source != Some(*source) => {
                        fail(&format!("{must} with source {source}"))
                    }
                    Some(_) | None => Ok(()),
                }
            }
            Must::Arrive if answer.way == Way::Here => Ok(()),
            Must::Arrive => fail(&Way::Here.to_string()),
            Must::AsWithout => {
                let other = without.answer(&self.packet);
                if (answer.way, answer.source) != (other.way, other.source) {
                    return fail(&format!("as without enid: {other}"));
                }
                // A socket that connects asks again with the source that it got.
                let Some(source) = answer.source.filter(|_| self.packet.iif.is_none()) else {
                    return Ok(());
                };
                let again = Packet { from: Some(source), ..self.packet.clone() };
                let connected = with.answer(&again);
                if connected.way == other.way {
                    return Ok(());
                }
                Err(format!(
                    "{again}\n  must go as before it had a source: {other}\n  goes {connected}"
                ))
            }
            Must::NotLeak { link, enis } => match answer.way {
                Way::Out { link: by, .. } if by != link && enis.iter().any(|eni| eni == by) => {
                    fail(&format!("nowhere, for {link} is down"))
                }
                Way::Out { .. } | Way::Here | Way::Nowhere => Ok(()),
            },
        }
    }
}

/// Of two networks, the one of a family.
fn of(nets: [IpNet; 2], family: Family) -> IpNet {
    let [v4, v6] = nets;
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

fn internet(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(8, 8, 8, 8).into(),
        Family::V6 => Ipv6Addr::new(0x2a00, 0x1450, 0, 0, 0, 0, 0, 8).into(),
    }
}

fn metadata(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(169, 254, 169, 254).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254).into(),
    }
}

impl Scene {
    /// What must hold once enid has converged, and of what held before, at every moment.
    #[must_use]
    pub fn promises(&self) -> Vec<Promise> {
        let mut promises = Vec::new();
        for family in self.families() {
            for eni in &self.enis {
                self.own(eni, family, &mut promises);
                self.delegated(eni, family, &mut promises);
            }
            self.of_others(family, &mut promises);
        }
        promises
    }

    /// What must hold while the link of an ENI other than the primary one is down: of the ENI
    /// itself, nothing leaks; of all others, everything.
    #[must_use]
    pub fn promises_without(&self, eni: &Eni) -> Vec<Promise> {
        let mut promises = Vec::new();
        for family in self.families() {
            for other in self.enis.iter().filter(|other| other.number != eni.number) {
                self.own(other, family, &mut promises);
                self.delegated(other, family, &mut promises);
            }
        }
        promises.extend(self.closed(eni));
        promises
    }

    /// While an ENI's link is down, nothing with its addresses leaves by another ENI.
    #[must_use]
    pub fn closed(&self, eni: &Eni) -> Vec<Promise> {
        let mut promises = Vec::new();
        let enis: Vec<String> = self.enis.iter().map(|eni| eni.link.clone()).collect();
        for family in self.families() {
            for from in eni.of(family) {
                for (to, _, _) in self.ways(eni, family) {
                    let must = Must::NotLeak { link: eni.link.clone(), enis: enis.clone() };
                    promises.push(Promise { packet: Packet::from(from, to), must });
                }
            }
        }
        promises
    }

    /// Destinations of every kind, with the link and the next hop for what comes from an ENI.
    fn ways(&self, eni: &Eni, family: Family) -> Vec<(IpAddr, String, Option<IpAddr>)> {
        let router = self.gateway(eni, family);
        let primary = eni.number == 0;
        let hops = |net: [IpNet; 2]| {
            let destination = of(net, family);
            let mut routes = self.routes.iter().filter(|_| primary);
            routes
                .find(|route| route.destination == destination)
                .map_or(router, |route| route.gateway)
        };
        let link = || eni.link.clone();
        let mut ways = vec![
            (internet(family), link(), router),
            (Self::in_network(of(OUTSIDE, family), 0x101), link(), hops(OUTSIDE)),
            (Self::in_network(of(ELSEWHERE, family), 9), link(), hops(INSIDE)),
            (Self::in_network(of(LATER, family), 9), link(), router),
        ];
        let on_link = self.combination.main == Main::LinkLocal;
        let hop = router.filter(|_| !(primary && on_link));
        ways.push((metadata(family), link(), hop));
        for other in &self.enis {
            let Some(host) = other.host(family, STRANGER) else { continue };
            let near = other.subnet(family) == eni.subnet(family);
            let way = (host, link(), router.filter(|_| !near));
            if !ways.contains(&way) {
                ways.push(way);
            }
        }
        ways.extend(self.to_others(family));
        ways
    }

    /// Hosts behind links that are no ENI's.
    fn to_others(&self, family: Family) -> Vec<(IpAddr, String, Option<IpAddr>)> {
        let nets = self.others.iter().flat_map(|other| {
            let net = other.addresses.iter().find(|net| Family::of(net.addr()) == family);
            net.map(|net| (Self::in_network(*net, 5), other.link.clone(), None))
        });
        nets.collect()
    }

    /// Without another ENI, the primary one has no rules.
    fn alone(&self) -> bool {
        self.enis.len() == 1
    }

    /// Packets made here, from an ENI's addresses or bound to its link.
    fn own(&self, eni: &Eni, family: Family, promises: &mut Vec<Promise>) {
        if eni.subnet(family).is_none() {
            return;
        }
        let alone = self.alone();
        let primary = eni.of(family).next();
        let ways = self.ways(eni, family);
        for from in eni.of(family) {
            for (to, link, gateway) in ways.iter().cloned() {
                let must = Must::Leave { link, gateway, source: None };
                let must = if alone { Must::AsWithout } else { must };
                // Without enid there is only the primary address to compare with.
                if !alone || Some(from) == primary {
                    promises.push(Promise { packet: Packet::from(from, to), must });
                }
            }
        }
        if family == Family::V6 {
            // Neighbours are asked for by their link-local addresses.
            let to = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, STRANGER).into();
            let must = Must::Leave { link: eni.link.clone(), gateway: None, source: None };
            promises.push(Promise { packet: Packet::bound(&eni.link, None, to), must });
        }
        let enis = ways.iter().filter(|(_, link, _)| *link == eni.link);
        for (to, link, gateway) in enis.cloned() {
            for from in [None, primary] {
                let source = primary.filter(|_| from.is_none());
                let must = Must::Leave { link: link.clone(), gateway, source };
                let must = if alone { Must::AsWithout } else { must };
                promises.push(Promise { packet: Packet::bound(&link, from, to), must });
            }
        }
    }

    /// Packets of an ENI's delegated prefixes.
    fn delegated(&self, eni: &Eni, family: Family, promises: &mut Vec<Promise>) {
        let Combination { delegation, main, .. } = self.combination;
        let prefixes = eni.prefixes.iter().filter(|net| Family::of(net.addr()) == family);
        for prefix in prefixes {
            let host = Self::in_network(*prefix, 3);
            let half = Self::bridged(*prefix);
            let bridge = self
                .others
                .iter()
                .find(|other| other.addresses.iter().any(|net| net.trunc() == half));
            let iif = bridge.map_or("cni0", |bridge| bridge.link.as_str());
            for (to, link, gateway) in self.ways(eni, family) {
                if link == iif {
                    continue;
                }
                let leave = Must::Leave { link, gateway, source: None };
                let (packet, must) = match delegation {
                    Delegation::None => continue,
                    Delegation::Rules if !self.alone() => (Packet::forwarded(iif, host, to), leave),
                    Delegation::Rules | Delegation::Ignore => {
                        (Packet::forwarded(iif, host, to), Must::AsWithout)
                    }
                    // A VPN's halves take what an ENI without rules sends.
                    Delegation::Local if self.alone() && main == Main::Vpn => continue,
                    Delegation::Local => (Packet::from(host, to), leave),
                };
                promises.push(Promise { packet, must });
            }
            if delegation == Delegation::Local {
                let packet = Packet::forwarded(&eni.link, internet(family), host);
                promises.push(Promise { packet, must: Must::Arrive });
            }
        }
    }

    /// Packets that are no ENI's business: of sockets without a source, and of others.
    fn of_others(&self, family: Family, promises: &mut Vec<Promise>) {
        let enis = self.enis.iter().filter(|eni| eni.subnet(family).is_some());
        let ways: Vec<_> = enis.flat_map(|eni| self.ways(eni, family)).collect();
        let mut targets: Vec<IpAddr> = ways.into_iter().map(|(to, _, _)| to).collect();
        targets.sort_unstable();
        targets.dedup();
        let mut as_without = |packet| promises.push(Promise { packet, must: Must::AsWithout });
        for to in targets {
            as_without(Packet::unbound(to));
            for eni in &self.enis {
                if let Some(host) = eni.host(family, STRANGER).filter(|host| *host != to) {
                    as_without(Packet::forwarded(&eni.link, host, to));
                }
                as_without(Packet::forwarded(
                    &eni.link,
                    Self::in_network(of(OUTSIDE, family), 7),
                    to,
                ));
            }
            for (nets, link) in [(CONTAINERS, "docker0"), (TUNNEL, "tun0")] {
                let there = self.others.iter().any(|other| other.link == link);
                let from = Self::in_network(of(nets, family), 6);
                if there && from != to {
                    as_without(Packet::forwarded(link, from, to));
                    as_without(Packet::bound(link, None, to));
                }
            }
            let strange = Self::in_network(of(ELSEWHERE, family), 77);
            as_without(Packet::forwarded("cni0", strange, to));
        }
    }
}
