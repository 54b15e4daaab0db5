//! How Linux finds a packet's way: rule by rule, in each table the longest prefix.
//!
//! Written from the kernel's behaviour (`fib_rules.c`, `fib_trie.c`, `route.c` of both families).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::state::{Address, Family, Kind, Link, Route, Rule, State};

/// A packet that looks for its way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Packet {
    /// Its source; none for a socket that has not got one yet.
    pub from: Option<IpAddr>,
    /// Its destination.
    pub to: IpAddr,
    /// The link that it came in by; none when it is made here.
    pub iif: Option<String>,
    /// The link that its socket is bound to.
    pub oif: Option<String>,
}

impl Packet {
    /// Made here by a socket that is bound to nothing.
    #[must_use]
    pub fn unbound(to: IpAddr) -> Self {
        Self { from: None, to, iif: None, oif: None }
    }

    /// Made here by a socket with an address.
    #[must_use]
    pub fn from(from: IpAddr, to: IpAddr) -> Self {
        Self { from: Some(from), ..Self::unbound(to) }
    }

    /// Made here by a socket that is bound to a link, with an address or without.
    #[must_use]
    pub fn bound(oif: &str, from: Option<IpAddr>, to: IpAddr) -> Self {
        Self { from, oif: Some(oif.to_owned()), ..Self::unbound(to) }
    }

    /// Made elsewhere.
    #[must_use]
    pub fn forwarded(iif: &str, from: IpAddr, to: IpAddr) -> Self {
        Self { iif: Some(iif.to_owned()), ..Self::from(from, to) }
    }
}

impl fmt::Display for Packet {
    /// As a question to `ip`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ip route get {}", self.to)?;
        if let Some(from) = self.from {
            write!(f, " from {from}")?;
        }
        for (word, name) in [("iif", &self.iif), ("oif", &self.oif)] {
            if let Some(name) = name {
                write!(f, " {word} {name}")?;
            }
        }
        Ok(())
    }
}

/// Where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way<'a> {
    /// To this machine itself.
    Here,
    /// Out.
    Out {
        /// By this link.
        link: &'a str,
        /// To this next hop; none where the destination is on the link.
        gateway: Option<IpAddr>,
    },
    /// Nowhere: the sender gets an error.
    Nowhere,
}

impl fmt::Display for Way<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here => f.write_str("to this machine itself"),
            Self::Nowhere => f.write_str("nowhere"),
            Self::Out { link, gateway: None } => write!(f, "out by {link}, on link"),
            Self::Out { link, gateway: Some(gateway) } => write!(f, "out by {link} via {gateway}"),
        }
    }
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The way.
    pub way: Way<'a>,
    /// The source that a packet without one gets.
    pub source: Option<IpAddr>,
    /// The rule that decided.
    pub rule: Option<&'a Rule>,
    /// The route that decided.
    pub route: Option<&'a Route>,
}

impl fmt::Display for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.way)?;
        if let Some(source) = self.source {
            write!(f, " with source {source}")?;
        }
        match (self.rule, self.route) {
            (Some(rule), Some(route)) => write!(f, "\n    by \"{rule}\"\n    and \"{route}\""),
            (_, None) => f.write_str("\n    by no route"),
            (None, Some(route)) => write!(f, "\n    by \"{route}\""),
        }
    }
}

/// Which objects count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// All.
    All,
    /// Those that enid did not make.
    WithoutOurs,
}

/// A prefix, ready for comparing.
#[derive(Debug, Clone, Copy)]
struct Bits {
    base: u128,
    mask: u128,
}

impl Bits {
    fn new(net: IpNet) -> Self {
        let length = u32::from(net.prefix_len());
        let (value, width) = bits(net.addr());
        let mask = if length == 0 { 0 } else { u128::MAX << (128 - length) };
        Self { base: (value << (128 - width)) & mask, mask }
    }

    fn holds(self, address: u128) -> bool {
        address & self.mask == self.base
    }
}

fn bits(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)), 32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    }
}

fn aligned(address: IpAddr) -> u128 {
    let (value, width) = bits(address);
    value << (128 - width)
}

struct Candidate<'a> {
    bits: Bits,
    route: &'a Route,
}

struct Asked<'a> {
    source: Option<Bits>,
    destination: Option<Bits>,
    rule: &'a Rule,
}

/// A state, ready for questions.
pub struct Lookup<'a> {
    state: &'a State,
    view: View,
    rules: BTreeMap<Family, Vec<Asked<'a>>>,
    /// By family and table: the longest prefixes first, then the lowest metrics.
    tables: BTreeMap<(Family, u32), Vec<Candidate<'a>>>,
    links: BTreeMap<&'a str, &'a Link>,
    local: Vec<(u128, &'a str, Family)>,
}

impl<'a> Lookup<'a> {
    /// Sorts a state; what is made by enid counts or does not.
    #[must_use]
    pub fn new(state: &'a State, view: View) -> Self {
        let counts = |ours: bool| view == View::All || !ours;
        let links: BTreeMap<&str, &Link> =
            state.links.iter().map(|link| (link.name.as_str(), link)).collect();
        let mut rules: BTreeMap<Family, Vec<Asked<'a>>> = BTreeMap::new();
        for rule in state.rules.iter().filter(|rule| counts(rule.ours)) {
            let (source, destination) =
                (rule.source.map(Bits::new), rule.destination.map(Bits::new));
            rules.entry(rule.family).or_default().push(Asked { source, destination, rule });
        }
        rules.values_mut().for_each(|rules| rules.sort_by_key(|asked| asked.rule.priority));
        let mut tables: BTreeMap<(Family, u32), Vec<Candidate<'a>>> = BTreeMap::new();
        // By a link that is down there are no routes.
        let usable = |route: &&Route| match &route.link {
            Some(name) => name == "lo" || links.get(name.as_str()).is_some_and(|link| link.up),
            None => true,
        };
        for route in state.routes.iter().filter(|route| counts(route.ours)).filter(usable) {
            let key = (Family::of(route.destination.addr()), route.table);
            let bits = Bits::new(route.destination);
            tables.entry(key).or_default().push(Candidate { bits, route });
        }
        for table in tables.values_mut() {
            let order = |candidate: &Candidate<'_>| {
                let route = candidate.route;
                (u8::MAX - route.destination.prefix_len(), route.metric)
            };
            table.sort_by_key(order);
        }
        let local = state.addresses.iter().filter(|seen| counts(seen.ours));
        let local = local
            .map(|seen| (aligned(seen.address), seen.link.as_str(), Family::of(seen.address)))
            .collect();
        Self { state, view, rules, tables, links, local }
    }

    /// The way of a packet.
    #[must_use]
    pub fn answer(&self, packet: &Packet) -> Answer<'a> {
        self.ask(packet, true)
    }

    /// What `ip route get` says: with a source, IPv6 prefers the link that was asked for and does
    /// not insist on it, because there is no socket that is bound to it.
    #[must_use]
    pub fn route_get(&self, packet: &Packet) -> Answer<'a> {
        let insists = Family::of(packet.to) == Family::V4 || packet.from.is_none();
        self.ask(packet, insists)
    }

    fn ask(&self, packet: &Packet, insists: bool) -> Answer<'a> {
        let nowhere = Answer { way: Way::Nowhere, source: None, rule: None, route: None };
        let family = Family::of(packet.to);
        let here = packet.iif.is_none();
        if let Some(oif) = &packet.oif
            && !self.links.get(oif.as_str()).is_some_and(|link| link.up)
        {
            return nowhere;
        }
        if here
            && family == Family::V4
            && packet.from.is_some_and(|from| !self.is_local(family, from))
        {
            return nowhere;
        }
        let walked = self.walk(packet, family, insists);
        let found = walked.unwrap_or(nowhere);
        if found.way == Way::Nowhere
            && family == Family::V4
            && let Some(oif) = packet.oif.as_deref()
        {
            // Whoever insists on a link without a route by it finds all the world on that link.
            let name = self.links.get_key_value(oif).map_or("", |(name, _)| *name);
            let source = self.first_v4(name).filter(|_| packet.from.is_none());
            return Answer { way: Way::Out { link: name, gateway: None }, source, ..found };
        }
        let Some(route) = found.route.filter(|_| here && packet.from.is_none()) else {
            return found;
        };
        Answer { source: self.source(route, packet.to), ..found }
    }

    fn walk(&self, packet: &Packet, family: Family, insists: bool) -> Option<Answer<'a>> {
        let to = aligned(packet.to);
        let from = packet.from.map(aligned);
        let iif = packet.iif.as_deref().unwrap_or("lo");
        // Of equal routes, IPv6 takes the one by the link that a packet came in by.
        let (by, insists) = match (family, &packet.iif) {
            (Family::V6, Some(iif)) => (Some(iif.as_str()), false),
            (Family::V4 | Family::V6, _) => (packet.oif.as_deref(), insists),
        };
        for asked in self.rules.get(&family).into_iter().flatten() {
            let rule = asked.rule;
            let catches = asked.source.is_none_or(|net| from.is_some_and(|from| net.holds(from)))
                && asked.destination.is_none_or(|net| net.holds(to))
                && rule.iif.as_deref().is_none_or(|name| name == iif)
                && rule.oif.as_deref().is_none_or(|name| packet.oif.as_deref() == Some(name))
                && rule.mark.is_none_or(|(mark, mask)| mark & mask == 0);
            if !catches {
                continue;
            }
            if rule.table == State::LOCAL && self.has(family, to, packet.oif.as_deref()) {
                return Some(Answer {
                    way: Way::Here,
                    source: None,
                    rule: Some(rule),
                    route: None,
                });
            }
            let Some(route) = self.best(family, rule.table, to, by, insists) else {
                continue;
            };
            let answer = |way| Answer { way, source: None, rule: Some(rule), route: Some(route) };
            let way = match (route.kind, route.link.as_deref()) {
                (Kind::Throw, _) => continue,
                (Kind::Refuse, _) | (Kind::Unicast, None) => return Some(answer(Way::Nowhere)),
                (Kind::Local, _) => Way::Here,
                (Kind::Unicast, Some(link)) => Way::Out { link, gateway: route.gateway },
            };
            if !self.suppressed(rule, route) {
                return Some(answer(way));
            }
        }
        None
    }

    fn suppressed(&self, rule: &Rule, route: &Route) -> bool {
        let length = u32::from(route.destination.prefix_len());
        let group = route.link.as_deref().and_then(|name| self.links.get(name));
        rule.suppress_length.is_some_and(|limit| length <= limit)
            || rule.suppress_group.is_some_and(|no| group.is_some_and(|link| link.group == no))
    }

    /// The best route of a table; where a link is asked for, only by it, or at least rather by it.
    fn best(
        &self,
        family: Family,
        table: u32,
        to: u128,
        oif: Option<&str>,
        insists: bool,
    ) -> Option<&'a Route> {
        let mut best: Option<&Route> = None;
        for candidate in self.tables.get(&(family, table))? {
            let route = candidate.route;
            if !candidate.bits.holds(to) {
                continue;
            }
            // A route without a link refuses whoever asks, but in IPv6 not who insists on a link.
            let by = |route: &Route| match &route.link {
                _ if oif.is_none() => true,
                None => family == Family::V4,
                Some(link) => oif == Some(link),
            };
            match best {
                None if by(route) => return Some(route),
                None if !insists => best = Some(route),
                None => {}
                Some(first) => {
                    let equal =
                        first.destination == route.destination && first.metric == route.metric;
                    if !equal {
                        break;
                    }
                    if by(route) {
                        return Some(route);
                    }
                }
            }
        }
        best
    }

    fn has(&self, family: Family, address: u128, link: Option<&str>) -> bool {
        let same = |(own, by, of): &(u128, &str, Family)| {
            *own == address && *of == family && (link.is_none() || link == Some(by))
        };
        self.local.iter().any(same)
    }

    /// Whether a socket may have this source.
    fn is_local(&self, family: Family, address: IpAddr) -> bool {
        let address = aligned(address);
        let local = || self.best(family, State::LOCAL, address, None, true);
        self.has(family, address, None) || local().is_some_and(|route| route.kind == Kind::Local)
    }

    /// The source that the kernel chooses.
    fn source(&self, route: &Route, to: IpAddr) -> Option<IpAddr> {
        if route.source.is_some() {
            return route.source;
        }
        let link = route.link.as_deref()?;
        match to {
            IpAddr::V4(_) => self.source_v4(link, route.gateway.unwrap_or(to)),
            IpAddr::V6(_) => self.source_v6(link, to),
        }
    }

    /// The link's first address in the network of the next hop, else its first one.
    fn source_v4(&self, link: &str, hop: IpAddr) -> Option<IpAddr> {
        let holds = |seen: &&Address| {
            IpNet::new(seen.address, seen.length).is_ok_and(|net| net.contains(&hop))
        };
        self.addresses_v4(link).find(holds).map(|seen| seen.address).or(self.first_v4(link))
    }

    fn first_v4(&self, link: &str) -> Option<IpAddr> {
        self.addresses_v4(link).next().map(|seen| seen.address)
    }

    fn addresses_v4<'b>(&'b self, link: &'b str) -> impl Iterator<Item = &'b Address> {
        self.state.addresses.iter().filter(move |seen| {
            seen.link == link
                && Family::of(seen.address) == Family::V4
                && (self.view == View::All || !seen.ours)
        })
    }

    /// RFC 6724 as far as an instance needs it: not deprecated, then on the link, then of the same
    /// sort (unique local or not), then with the longest common prefix, then the newest. A neighbour's
    /// link-local address is asked for from the link's own.
    fn source_v6(&self, link: &str, to: IpAddr) -> Option<IpAddr> {
        let near = link_local(to);
        let addresses = self.state.addresses.iter().enumerate();
        let candidates = addresses.filter(|(_, seen)| {
            let up = self.links.get(seen.link.as_str()).is_some_and(|link| link.up);
            let reaches = if near { seen.link == link } else { !link_local(seen.address) };
            let family = Family::of(seen.address) == Family::V6;
            family && reaches && up && (self.view == View::All || !seen.ours)
        });
        let unique_local =
            |address: IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unique_local());
        let rank = |(n, seen): &(usize, &Address)| {
            let common = (aligned(seen.address) ^ aligned(to)).leading_zeros();
            let common = common.min(u32::from(seen.length));
            let same = unique_local(seen.address) == unique_local(to);
            let own = near && link_local(seen.address);
            (own, seen.preferred, seen.link == link, same, common, *n)
        };
        candidates.max_by_key(rank).map(|(_, seen)| seen.address)
    }
}

fn link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, group: u32) -> Link {
        Link { name: name.to_owned(), up: true, group }
    }

    fn route(table: u32, destination: &str, link: &str) -> Route {
        Route {
            table,
            destination: destination.parse().unwrap(),
            kind: Kind::Unicast,
            gateway: None,
            link: Some(link.to_owned()),
            source: None,
            metric: 0,
            ours: false,
        }
    }

    fn rule(priority: u32, source: Option<&str>, table: u32) -> Rule {
        Rule {
            family: Family::V4,
            priority,
            source: source.map(|net| net.parse().unwrap()),
            destination: None,
            iif: None,
            oif: None,
            mark: None,
            table,
            suppress_length: None,
            suppress_group: None,
            ours: false,
        }
    }

    fn state() -> State {
        State {
            links: vec![link("eth0", 7), link("eth1", 7), link("docker0", 0)],
            addresses: vec![Address {
                link: "eth1".to_owned(),
                address: IpAddr::from([10, 0, 2, 4]),
                length: 24,
                preferred: true,
                permanent: true,
                ours: false,
            }],
            routes: vec![
                route(State::MAIN, "0.0.0.0/0", "eth0"),
                route(State::MAIN, "10.0.9.0/24", "docker0"),
                route(State::MAIN, "10.0.8.0/24", "eth0"),
                route(1, "0.0.0.0/0", "eth1"),
            ],
            rules: vec![rule(0, None, State::LOCAL), rule(32766, None, State::MAIN)],
        }
    }

    fn by(state: &State, packet: &Packet) -> String {
        Lookup::new(state, View::All).answer(packet).way.to_string()
    }

    fn own(to: [u8; 4]) -> Packet {
        Packet::from(IpAddr::from([10, 0, 2, 4]), IpAddr::from(to))
    }

    #[test]
    fn a_suppressed_route_lets_the_lookup_go_on_with_the_next_rule() {
        let mut state = state();
        let first = rule(10, Some("10.0.2.0/24"), State::MAIN);
        state.rules.push(Rule { suppress_length: Some(1), suppress_group: Some(7), ..first });
        state.rules.push(rule(20, Some("10.0.2.0/24"), 1));
        assert_eq!(by(&state, &own([8, 8, 8, 8])), "out by eth1, on link", "its prefix is short");
        assert_eq!(by(&state, &own([10, 0, 8, 1])), "out by eth1, on link", "its link's group");
        assert_eq!(by(&state, &own([10, 0, 9, 1])), "out by docker0, on link");
        assert_eq!(by(&state, &own([10, 0, 2, 4])), "to this machine itself");
        let unbound = Packet::unbound(IpAddr::from([8, 8, 8, 8]));
        assert_eq!(by(&state, &unbound), "out by eth0, on link", "no source, no rule");
    }

    #[test]
    fn an_unreachable_route_ends_the_lookup_unless_a_link_is_insisted_on() {
        let mut state = state();
        state.rules.push(rule(20, Some("10.0.2.0/24"), 2));
        let closed = Route { kind: Kind::Refuse, link: None, ..route(2, "0.0.0.0/0", "") };
        state.routes.push(closed);
        assert_eq!(by(&state, &own([8, 8, 8, 8])), "nowhere");
        let bound = Packet::bound("eth1", own([0; 4]).from, IpAddr::from([8, 8, 8, 8]));
        assert_eq!(by(&state, &bound), "out by eth1, on link");
    }

    #[test]
    fn iif_lo_catches_what_is_made_here_and_nothing_that_is_forwarded() {
        let mut state = state();
        state.rules.push(Rule { iif: Some("lo".to_owned()), ..rule(20, Some("10.0.2.0/24"), 1) });
        assert_eq!(by(&state, &own([8, 8, 8, 8])), "out by eth1, on link");
        let forwarded =
            Packet::forwarded("docker0", IpAddr::from([10, 0, 2, 9]), IpAddr::from([8, 8, 8, 8]));
        assert_eq!(by(&state, &forwarded), "out by eth0, on link");
    }

    #[test]
    fn a_link_that_is_down_has_no_routes() {
        let mut state = state();
        state.rules.push(rule(20, Some("10.0.2.0/24"), 1));
        state.links[1].up = false;
        assert_eq!(by(&state, &own([8, 8, 8, 8])), "out by eth0, on link", "it leaks");
    }

    #[test]
    fn in_ipv6_an_unreachable_route_does_not_stop_who_insists_on_a_link() {
        let mut state = State { links: vec![link("eth0", 0)], ..State::default() };
        let v6 = |priority, table| Rule { family: Family::V6, ..rule(priority, None, table) };
        state.rules = vec![v6(10, 1), v6(20, State::MAIN)];
        let closed = Route { kind: Kind::Refuse, link: None, ..route(1, "::/0", "") };
        state.routes = vec![closed, route(State::MAIN, "2600::/64", "eth0")];
        let to = "2600::9".parse().unwrap();
        assert_eq!(by(&state, &Packet::unbound(to)), "nowhere");
        let bound = Packet::bound("eth0", Some("2600::1".parse().unwrap()), to);
        assert_eq!(by(&state, &bound), "out by eth0, on link");
        let answer = Lookup::new(&state, View::All).route_get(&bound);
        assert_eq!(answer.way, Way::Nowhere, "`ip route get` insists on nothing");
    }

    #[test]
    fn in_ipv6_a_packet_from_elsewhere_leaves_by_its_link_rather_than_by_an_equal_route() {
        let mut state = State { links: vec![link("eth0", 0), link("eth1", 0)], ..State::default() };
        state.rules = vec![Rule { family: Family::V6, ..rule(20, None, State::MAIN) }];
        let to_both = ["eth0", "eth1"].map(|link| route(State::MAIN, "2600::/64", link));
        state.routes.extend(to_both);
        let packet =
            |iif| Packet::forwarded(iif, "2700::1".parse().unwrap(), "2600::9".parse().unwrap());
        assert_eq!(by(&state, &packet("eth1")), "out by eth1, on link");
        assert_eq!(by(&state, &packet("eth2")), "out by eth0, on link");
        state.routes[1].metric = 1;
        assert_eq!(by(&state, &packet("eth1")), "out by eth0, on link", "it is worse");
    }

    #[test]
    fn a_deprecated_address_is_no_source_although_it_is_on_the_link() {
        let mut state = State { links: vec![link("eth0", 0), link("eth1", 0)], ..State::default() };
        state.rules = vec![Rule { family: Family::V6, ..rule(32766, None, State::MAIN) }];
        state.routes = vec![route(State::MAIN, "::/0", "eth0")];
        for (link, address, preferred) in
            [("eth0", "2600::1", false), ("eth1", "2601::1", true), ("eth1", "2601::2", true)]
        {
            let address = address.parse().unwrap();
            let (link, permanent) = (link.to_owned(), true);
            state.addresses.push(Address {
                link,
                address,
                length: 128,
                preferred,
                permanent,
                ours: false,
            });
        }
        let source = |state: &State| {
            let to = Packet::unbound("2a00::1".parse().unwrap());
            Lookup::new(state, View::All).answer(&to).source.unwrap().to_string()
        };
        assert_eq!(source(&state), "2601::2");
        state.addresses[0].preferred = true;
        assert_eq!(source(&state), "2600::1");
    }
}
