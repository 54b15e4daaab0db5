//! A kernel that is stricter than the real one: what exists cannot be made, what does not exist
//! cannot be deleted, and a route needs its link up, its source local and its gateway reachable.

use std::net::IpAddr;

use enid_core::object::{
    Address, Family, LinkGroup, LinkIndex, Object, Protocol, Route, RouteKind, Rule, RuleAction,
    Setting, TableId,
};
use enid_core::observed::{Link, SeenAddress, SeenMarking, SeenRoute, SeenRule, Snapshot};
use enid_core::plan::Step;
use ipnet::IpNet;

/// The kernel's state, and what it took away by itself since the plan began.
#[derive(Debug, Clone, Default)]
pub struct Kernel {
    /// What a look at it shows.
    pub state: Snapshot,
    /// The routes that it took away.
    pub wiped: Vec<SeenRoute>,
}

/// Why a step was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum No {
    /// Something stands in its place.
    Exists(&'static str),
    /// What it is about is not there.
    Gone(&'static str),
    /// Anything else.
    Wrong(&'static str),
}

/// Where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To this machine itself.
    Here,
    /// Out by this link.
    Out(LinkIndex),
    /// Nowhere.
    Refused,
}

type Done = Result<(), No>;

fn fail_if(wrong: bool, why: No) -> Done {
    if wrong { Err(why) } else { Ok(()) }
}

impl Kernel {
    /// A link.
    ///
    /// # Errors
    /// When there is none of this number.
    pub fn link(&self, index: LinkIndex) -> Result<&Link, No> {
        let link = self.state.links.iter().find(|link| link.index == index);
        link.ok_or(No::Gone("no such device"))
    }

    /// A link that is there, to change it.
    #[must_use]
    pub fn link_mut(&mut self, index: LinkIndex) -> &mut Link {
        let link = self.state.links.iter_mut().find(|link| link.index == index);
        link.expect("who asks has just seen it")
    }

    /// Carries out a step of enid's.
    ///
    /// # Errors
    /// When the state does not allow it.
    pub fn apply(&mut self, step: &Step) -> Done {
        match step {
            Step::Set { link, from, to } => self.set(*link, from.as_ref(), to.as_ref()),
            Step::Create(Object::Address(address)) => self.add_address(*address),
            Step::Create(Object::Route(route)) => {
                let place = |seen: &SeenRoute| same_place(&seen.route, route);
                fail_if(
                    self.state.routes.iter().any(place),
                    No::Exists("a route is in that place"),
                )?;
                self.check_route(route)?;
                let protocol = Protocol::ENID;
                self.state.routes.push(SeenRoute { route: *route, protocol, complete: true });
                Ok(())
            }
            Step::Create(Object::Rule(rule)) => {
                let twin = |seen: &SeenRule| seen.rule == *rule && seen.protocol == Protocol::ENID;
                fail_if(self.state.rules.iter().any(twin), No::Exists("the rule exists"))?;
                self.add_rule(rule.clone(), Protocol::ENID);
                Ok(())
            }
            Step::Replace { old: Object::Route(old), new: Object::Route(new) } => {
                self.check_route(new)?;
                fail_if(!same_place(old, new), No::Wrong("a replacement in another place"))?;
                let mut places =
                    self.state.routes.iter_mut().filter(|seen| same_place(&seen.route, new));
                let seen = places.next().ok_or(No::Gone("no route to replace"))?;
                fail_if(seen.route != *old, No::Wrong("another route is replaced"))?;
                fail_if(seen.protocol != Protocol::ENID, No::Wrong("a foreign route is replaced"))?;
                fail_if(places.next().is_some(), No::Wrong("several routes in one place"))?;
                seen.route = *new;
                Ok(())
            }
            Step::Replace { .. } => Err(No::Wrong("only routes can be replaced")),
            Step::Create(Object::Marking(marking)) => {
                self.state.markings.retain(|seen| seen.marking.table != marking.table);
                self.state.markings.push(SeenMarking { marking: marking.clone(), complete: true });
                Ok(())
            }
            Step::Delete(Object::Marking(marking)) => {
                let found = |seen: &SeenMarking| seen.marking.table == marking.table;
                let found = self.state.markings.iter().position(found);
                self.state.markings.remove(found.ok_or(No::Gone("no such marking"))?);
                Ok(())
            }
            Step::Delete(Object::Address(address)) => self.delete_address(address),
            Step::Delete(Object::Route(route)) => self.delete_route(route),
            Step::Delete(Object::Rule(rule)) => {
                let found = self
                    .state
                    .rules
                    .iter()
                    .position(|seen| seen.rule == *rule && seen.protocol == Protocol::ENID);
                self.state.rules.remove(found.ok_or(No::Gone("no such rule of enid's"))?);
                Ok(())
            }
        }
    }

    fn set(&mut self, index: LinkIndex, from: Option<&Setting>, to: Option<&Setting>) -> Done {
        self.link(index)?;
        let other = self.state.links.iter().any(|link| {
            let name = |name: &String| Some(&Setting::AlternativeName(name.clone())) == to;
            name(&link.name) || link.alternative_names.iter().any(name)
        });
        let link = self.link_mut(index);
        match (from, to) {
            (None, Some(Setting::Up)) => {
                fail_if(link.up, No::Exists("the link is up"))?;
                link.up = true;
            }
            (Some(Setting::Mtu(from)), Some(Setting::Mtu(to))) => {
                fail_if(link.mtu != *from, No::Wrong("another MTU"))?;
                link.mtu = *to;
            }
            (Some(Setting::Group(from)), Some(Setting::Group(to))) => {
                fail_if(link.group != *from, No::Wrong("another group"))?;
                link.group = *to;
            }
            (None, Some(Setting::AlternativeName(name))) => {
                fail_if(other, No::Exists("the name is taken"))?;
                link.alternative_names.push(name.clone());
            }
            (Some(Setting::AlternativeName(name)), None) => {
                fail_if(!link.alternative_names.contains(name), No::Gone("no such name"))?;
                link.alternative_names.retain(|known| known != name);
            }
            (Some(Setting::Sysctl(key, from)), Some(Setting::Sysctl(same, to))) => {
                fail_if(
                    key != same || link.sysctls.get(key) != Some(from),
                    No::Wrong("another value"),
                )?;
                link.sysctls.insert(*key, *to);
            }
            _ => return Err(No::Wrong("no such change")),
        }
        Ok(())
    }

    fn add_address(&mut self, address: Address) -> Done {
        self.link(address.link)?;
        let same = |seen: &SeenAddress| {
            seen.address.link == address.link && seen.address.address == address.address
        };
        fail_if(self.state.addresses.iter().any(same), No::Exists("the address exists"))?;
        let protocol = self.state.address_protocols.then_some(Protocol::ENID);
        self.state.addresses.push(SeenAddress { address, protocol, permanent: true });
        Ok(())
    }

    fn delete_address(&mut self, address: &Address) -> Done {
        let found = self.state.addresses.iter().position(|seen| seen.address == *address);
        let found = found.ok_or(No::Gone("no such address"))?;
        let marked = self.state.addresses[found].protocol == Some(Protocol::ENID);
        let wrong = self.state.address_protocols && !marked;
        fail_if(wrong, No::Wrong("a foreign address is deleted"))?;
        self.take_address(found);
        Ok(())
    }

    /// Takes an address away, and what the kernel takes away with it.
    pub fn take_address(&mut self, place: usize) {
        let address = self.state.addresses.remove(place).address;
        let gone = address.address;
        let others = |seen: &SeenAddress| {
            seen.address.link == address.link && Family::of(seen.address.address) == Family::V4
        };
        if gone.is_ipv4() && !self.state.addresses.iter().any(others) {
            self.wipe(address.link, &[Family::V4]);
        }
        // IPv6 routes lose the source that is gone, without a message.
        for seen in self.state.routes.iter_mut().filter(|_| gone.is_ipv6()) {
            seen.route.source = seen.route.source.filter(|source| *source != gone);
        }
    }

    /// Takes a link down: its routes go, and its addresses of IPv6.
    pub fn lower(&mut self, index: LinkIndex) {
        self.link_mut(index).up = false;
        self.wipe(index, &[Family::V4, Family::V6]);
        let goes =
            |seen: &SeenAddress| seen.address.link == index && seen.address.address.is_ipv6();
        while let Some(place) = self.state.addresses.iter().position(goes) {
            self.take_address(place);
        }
    }

    /// Takes a link away with all that is on it.
    pub fn unplug(&mut self, index: LinkIndex) {
        let state = &mut self.state;
        state.links.retain(|link| link.index != index);
        state.routers.remove(&index);
        state.routes.retain(|seen| seen.route.link != Some(index));
        let gone: Vec<IpAddr> = state
            .addresses
            .iter()
            .filter(|seen| seen.address.link == index)
            .map(|seen| seen.address.address)
            .collect();
        state.addresses.retain(|seen| seen.address.link != index);
        for seen in &mut state.routes {
            let left = |ip: &IpAddr| ip.is_ipv4() || !gone.contains(ip);
            seen.route.source = seen.route.source.filter(left);
        }
    }

    fn delete_route(&mut self, route: &Route) -> Done {
        let ours = |seen: &SeenRoute| {
            // IPv6 finds a route by everything but its source.
            let source =
                if route.destination.addr().is_ipv6() { seen.route.source } else { route.source };
            seen.route == Route { source, ..*route } && seen.protocol == Protocol::ENID
        };
        if let Some(found) = self.state.routes.iter().position(ours) {
            self.state.routes.remove(found);
            return Ok(());
        }
        // What the kernel took along with a link's last address is already so.
        fail_if(!self.wiped.iter().any(ours), No::Gone("no such route of enid's"))
    }

    fn check_route(&self, route: &Route) -> Done {
        let v6 = route.destination.addr().is_ipv6();
        fail_if(v6 && route.metric == 0, No::Wrong("IPv6 turns metric 0 into 1024"))?;
        let local = |ip: IpAddr| self.state.addresses.iter().any(|s| s.address.address == ip);
        fail_if(
            route.source.is_some_and(|ip| !local(ip)),
            No::Wrong("the preferred source is not local"),
        )?;
        let Some(index) = route.link else {
            return fail_if(route.kind == RouteKind::Unicast, No::Wrong("a route without a link"));
        };
        fail_if(!self.link(index)?.up, No::Wrong("the device is down"))?;
        // A link-local gateway is on the link that the route names.
        let near = |ip: &IpAddr| matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let Some(gateway) = route.gateway.filter(|ip| !route.on_link && !near(ip)) else {
            return Ok(());
        };
        // Of IPv6, the neighbours on a link need no route.
        if matches!(gateway, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            return Ok(());
        }
        let best = [route.table, TableId::MAIN]
            .into_iter()
            .find_map(|table| self.best(table, gateway, Some(index)))
            .filter(|best| best.kind == RouteKind::Unicast && best.gateway.is_none());
        fail_if(best.is_none(), No::Wrong("the gateway is not reachable"))
    }

    /// Adds a rule behind those of the same priority.
    pub fn add_rule(&mut self, rule: Rule, protocol: Protocol) {
        let rules = &mut self.state.rules;
        let place = rules.partition_point(|seen| seen.rule.priority <= rule.priority);
        rules.insert(place, SeenRule { rule, protocol, complete: true });
    }

    /// Takes a link's routes away, without a word, as the kernel does.
    pub fn wipe(&mut self, link: LinkIndex, families: &[Family]) {
        let family = |seen: &SeenRoute| Family::of(seen.route.destination.addr());
        let (gone, left) = std::mem::take(&mut self.state.routes)
            .into_iter()
            .partition(|seen| seen.route.link == Some(link) && families.contains(&family(seen)));
        self.state.routes = left;
        self.wiped.extend::<Vec<_>>(gone);
    }

    /// The route that a table has for an address, by one link only or by any.
    fn best(&self, table: TableId, to: IpAddr, link: Option<LinkIndex>) -> Option<&Route> {
        let routes = self.state.routes.iter().map(|seen| &seen.route);
        routes
            .filter(|route| route.table == table && route.destination.contains(&to))
            .filter(|route| link.is_none() || route.link.is_none() || route.link == link)
            .min_by_key(|route| (u8::MAX - route.destination.prefix_len(), route.metric))
    }

    /// Where a packet goes that is made here, by a socket that may be bound to a link.
    pub fn lookup(&self, from: IpAddr, to: IpAddr, oif: Option<&str>) -> Way {
        self.walk(from, to, oif, |_| true)
    }

    /// The same, without the rules that enid made.
    pub fn lookup_without(&self, from: IpAddr, to: IpAddr, oif: Option<&str>) -> Way {
        self.walk(from, to, oif, |seen| seen.protocol != Protocol::ENID)
    }

    fn walk(
        &self,
        from: IpAddr,
        to: IpAddr,
        oif: Option<&str>,
        counts: impl Fn(&SeenRule) -> bool,
    ) -> Way {
        if self.state.addresses.iter().any(|seen| seen.address.address == to) {
            return Way::Here;
        }
        let bound = oif.and_then(|oif| self.state.links.iter().find(|link| link.name == oif));
        let bound = bound.map(|link| link.index);
        let family = Family::of(from);
        for seen in self.state.rules.iter().filter(|seen| counts(seen)) {
            let rule = &seen.rule;
            if rule.family != family {
                continue;
            }
            let matches = |net: Option<IpNet>, ip| net.is_none_or(|net| net.contains(&ip));
            let caught = matches(rule.source, from)
                && matches(rule.destination, to)
                && rule.iif.as_deref().is_none_or(|iif| iif == "lo")
                && rule.oif.as_deref().is_none_or(|name| oif == Some(name))
                && rule.mark.is_none();
            let RuleAction::Lookup(table) = rule.action else { continue };
            let Some(best) = self.best(table, to, bound).filter(|_| caught) else { continue };
            let Some(link) = best.link else { return Way::Refused };
            let short = |length| u32::from(best.destination.prefix_len()) <= length;
            let group = |group: LinkGroup| self.link(link).is_ok_and(|link| link.group == group);
            if rule.suppress_prefix_length.is_some_and(short)
                || rule.suppress_group.is_some_and(group)
            {
                continue;
            }
            return Way::Out(link);
        }
        Way::Refused
    }
}

fn same_place(a: &Route, b: &Route) -> bool {
    (a.table, a.destination, a.metric) == (b.table, b.destination, b.metric)
}
