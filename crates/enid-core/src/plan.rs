//! The steps from what is to what must be, in an order that never cuts off working traffic.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use ipnet::IpNet;

use crate::desired::{Change, looked_up};
use crate::diff::Diff;
use crate::object::{
    Address, Family, LinkIndex, Mac, Marking, Object, Route, RouteKind, Rule, RuleAction, Setting,
    TableId,
};

/// So many addresses move at a time: each is on both of its links only as long as that takes.
const MOVING: usize = 64;

/// One thing to do; nothing is left to decide.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Bring a property of a link from one value to another.
    Set {
        /// The link.
        link: LinkIndex,
        /// What it is now; none where the link lacks it (an alternative name to add).
        from: Option<Setting>,
        /// What it must be; none to take it away (an alternative name to remove).
        to: Option<Setting>,
    },
    /// Make an object that is not there; it carries enid's mark.
    Create(Object),
    /// Exchange an own route for another one in the same place, without a gap.
    Replace {
        /// What is there.
        old: Object,
        /// What must be there.
        new: Object,
    },
    /// Remove an own object.
    Delete(Object),
}

/// A step and the ENI that it is for, where one is left to name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// The ENI; none for what a vanished one left behind.
    pub mac: Option<Mac>,
    /// The step.
    pub step: Step,
}

/// Steps in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    steps: Vec<Planned>,
}

impl Plan {
    /// Orders the differences: make before break.
    ///
    /// Links first, then the addresses that routes name as their source, because the kernel refuses
    /// one that it does not have; then tables; then rules, of siblings the narrowed ones before
    /// their broad ones go; tables that one ENI leaves to another, in turn; other addresses, those
    /// that move with the place they leave; and last, in the opposite order, what goes.
    pub(crate) fn order(diff: &Diff) -> Self {
        let mut plan = Self::default();
        let (raise, lower): (Vec<_>, Vec<_>) =
            diff.changes.iter().partition(|change| !lowers(change));
        plan.settings(&raise);

        let made = diff.routes.iter().map(|(_, route)| route);
        let sources: BTreeSet<_> = made
            .chain(diff.replaced_routes.iter().map(|(_, _, new)| new))
            .filter_map(|route| route.source)
            .collect();
        let (first, then): (Vec<_>, Vec<_>) = diff.addresses.iter().partition(|(_, address)| {
            address.prefix_length < Family::of(address.address).host_length()
                || sources.contains(&address.address)
        });
        let create = |(mac, address): &&(Mac, Address)| (*mac, Object::Address(*address));
        plan.create(first.iter().map(create));

        let turns = Turns::of(diff);
        for turn in 0..=turns.last() {
            plan.routes(diff, |route| turns.of_table(route.table) == turn);
            plan.rules(diff, |rule| turns.of_rule(rule) == turn);
            plan.stale_rules(diff, |rule| turns.after(rule, diff) == Some(turn));
        }
        plan.create(
            diff.markings.iter().map(|(mac, marking)| (*mac, Object::Marking(marking.clone()))),
        );
        let leaves = |ip| diff.stale_addresses.iter().find(move |old| old.address == ip);
        let (moving, new): (Vec<_>, Vec<_>) =
            then.into_iter().partition(|(_, address)| leaves(address.address).is_some());
        plan.create(new.iter().map(create));

        let delete = |object| Planned { mac: None, step: Step::Delete(object) };
        for moving in moving.chunks(MOVING) {
            plan.create(moving.iter().map(create));
            let old = moving.iter().filter_map(|(_, address)| leaves(address.address));
            plan.steps.extend(old.map(|old| delete(Object::Address(*old))));
        }
        let moves = |old: &&Address| moving.iter().any(|(_, new)| new.address == old.address);
        let stale = diff.stale_addresses.iter().filter(|old| !moves(old));
        plan.steps.extend(stale.map(|old| delete(Object::Address(*old))));
        // Before its rules, which are what tells that there is one to look for.
        let stale = diff.stale_markings.iter();
        plan.steps.extend(stale.map(|marking| delete(Object::Marking(marking.clone()))));
        plan.stale_rules(diff, |rule| turns.after(rule, diff).is_none());
        let mut stale: Vec<_> = diff.stale_routes.iter().collect();
        // What fails closed goes last.
        stale.sort_by_key(|route| (route.kind, route.gateway.is_none(), **route));
        plan.steps.extend(stale.into_iter().map(|route| delete(Object::Route(*route))));
        plan.settings(&lower);
        plan
    }

    /// The steps in order.
    #[must_use]
    pub fn steps(&self) -> &[Planned] {
        &self.steps
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// A plan of any steps, for tests of what judges plans.
    #[cfg(test)]
    pub(crate) fn of(steps: Vec<Step>) -> Self {
        Self { steps: steps.into_iter().map(|step| Planned { mac: None, step }).collect() }
    }

    /// Takes out steps that must not be taken now.
    pub(crate) fn retain(&mut self, keep: impl Fn(&Planned) -> bool) {
        self.steps.retain(keep);
    }

    fn settings(&mut self, changes: &[&Change]) {
        let mut changes = changes.to_vec();
        changes.sort_by_key(|change| rank(change));
        self.steps.extend(changes.into_iter().map(|change| Planned {
            mac: Some(change.mac),
            step: Step::Set { link: change.link, from: change.from.clone(), to: change.to.clone() },
        }));
    }

    fn create(&mut self, objects: impl Iterator<Item = (Mac, Object)>) {
        self.steps.extend(
            objects.map(|(mac, object)| Planned { mac: Some(mac), step: Step::Create(object) }),
        );
    }

    /// What is on the link first: a gateway must be reachable before a route names it.
    fn routes(&mut self, diff: &Diff, now: impl Fn(&Route) -> bool) {
        let made = diff
            .routes
            .iter()
            .map(|(mac, route)| (*mac, route, Step::Create(Object::Route(*route))));
        let replaced = diff.replaced_routes.iter().map(|(mac, old, new)| {
            let step = Step::Replace { old: Object::Route(*old), new: Object::Route(*new) };
            (*mac, new, step)
        });
        let mut routes: Vec<_> = replaced.chain(made).filter(|(_, route, _)| now(route)).collect();
        routes.sort_by_key(|(_, route, _)| (route.kind, route.gateway.is_some(), *route));
        let steps = routes.into_iter().map(|(mac, _, step)| Planned { mac: Some(mac), step });
        self.steps.extend(steps);
    }

    /// All new rules before the old ones go that would catch what the new ones are for. A new rule
    /// holds no address of another ENI, so it may stand beside a sibling's broad one for a moment;
    /// the other way round, there would be a moment without any.
    fn rules(&mut self, diff: &Diff, now: impl Fn(&Rule) -> bool) {
        let rules = diff.rules.iter().filter(|(_, rule)| now(rule));
        self.create(rules.map(|(mac, rule)| (*mac, Object::Rule(rule.clone()))));
    }

    /// The last ones that the kernel asks first: what a packet met before it meets until its own
    /// rule goes, and then nothing stale is left behind it.
    fn stale_rules(&mut self, diff: &Diff, goes: impl Fn(&Rule) -> bool) {
        for rule in diff.stale_rules.iter().rev().filter(|rule| goes(rule)) {
            let step = Step::Delete(Object::Rule(rule.clone()));
            self.steps.push(Planned { mac: None, step });
        }
    }
}

/// Whether a change takes protection away and therefore comes last.
fn lowers(change: &Change) -> bool {
    match &change.to {
        Some(Setting::Group(group)) => group.0 == 0,
        Some(Setting::Up | Setting::Mtu(_) | Setting::AlternativeName(_) | Setting::Sysctl(..)) => {
            false
        }
        None => true,
    }
}

/// Settings that must hold when the link comes up stand before it.
fn rank(change: &Change) -> (LinkIndex, u8) {
    let rank = match change.to.as_ref().or(change.from.as_ref()) {
        Some(Setting::Sysctl(..)) => 0,
        Some(Setting::Mtu(_)) => 1,
        Some(Setting::AlternativeName(_)) => 2,
        Some(Setting::Group(_)) => 3,
        Some(Setting::Up) | None => 4,
    };
    (change.link, rank)
}

/// The tables that one ENI leaves to another, and when each is filled: not while a rule of the ENI
/// that leaves it still sends packets there, and that goes once what it has instead is there.
struct Turns(BTreeMap<TableId, usize>);

impl Turns {
    fn of(diff: &Diff) -> Self {
        let replaced = || diff.replaced_routes.iter().map(|(_, old, new)| (old, new));
        let leaves = replaced().filter(|(old, new)| old.link != new.link);
        let mut left: BTreeMap<TableId, BTreeSet<_>> = BTreeMap::new();
        for (old, new) in leaves {
            left.entry(new.table).or_default().insert(old.link);
        }
        let made = || replaced().map(|(_, new)| new).chain(diff.routes.iter().map(|(_, new)| new));
        let mut turns = BTreeMap::new();
        for turn in 1.. {
            let waits = |table: TableId, who: &BTreeSet<_>| {
                let mut instead = made().filter(|route| who.contains(&route.link));
                instead.any(|route| route.table != table && left.contains_key(&route.table))
            };
            let ready = left.iter().filter(|(table, who)| !waits(**table, who));
            let ready: Vec<TableId> = ready.map(|(table, _)| *table).collect();
            // Those that exchange their tables cannot both wait.
            if ready.is_empty() {
                break;
            }
            left.retain(|table, _| !ready.contains(table));
            turns.extend(ready.into_iter().map(|table| (table, turn)));
        }
        Self(turns)
    }

    fn last(&self) -> usize {
        self.0.values().copied().max().unwrap_or_default()
    }

    fn of_table(&self, table: TableId) -> usize {
        self.0.get(&table).copied().unwrap_or_default()
    }

    fn of_rule(&self, rule: &Rule) -> usize {
        looked_up(rule).map_or(0, |table| self.of_table(table))
    }

    /// The turn after which a rule to delete goes: before its table is another ENI's, or else when
    /// all is made that it would catch; none where it is in nobody's way.
    fn after(&self, stale: &Rule, diff: &Diff) -> Option<usize> {
        // What it hides would catch packets when it goes, and goes with it.
        let hidden = |other: &&Rule| {
            other.source.zip(stale.source).is_some_and(|(other, stale)| overlap(other, stale))
        };
        let hidden = diff.stale_rules.iter().filter(hidden);
        let caught = std::iter::once(stale).chain(hidden).flat_map(|old| instead(old, diff));
        match self.of_rule(stale) {
            0 => caught.map(|new| self.of_rule(new)).max(),
            turn => Some(turn - 1),
        }
    }
}

/// The rules to make whose packets a rule to delete would catch.
fn instead<'a>(old: &'a Rule, diff: &'a Diff) -> impl Iterator<Item = &'a Rule> {
    let new = diff.rules.iter().map(|(_, rule)| rule).filter(|new| new.family == old.family);
    new.filter(|new| match (old.source, new.source) {
        (Some(old), Some(new)) => overlap(old, new),
        (None, None) => old.oif == new.oif || looked_up(old) == looked_up(new),
        (Some(_), None) | (None, Some(_)) => false,
    })
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

impl Step {
    /// The step in the words of `ip` and `sysctl`; `name_of` tells a link's name.
    #[must_use]
    pub fn command(&self, name_of: &dyn Fn(LinkIndex) -> String) -> String {
        match self {
            Self::Set { link, from, to } => {
                set_command(&name_of(*link), from.as_ref(), to.as_ref())
            }
            Self::Create(object) => object_command("add", object, name_of),
            Self::Replace { new, .. } => object_command("replace", new, name_of),
            Self::Delete(object) => object_command("del", object, name_of),
        }
    }

    /// What the step brings about, whatever was there before; none for a removal.
    #[must_use]
    pub fn effect(&self) -> Option<Self> {
        match self {
            Self::Create(object) | Self::Replace { new: object, .. } => {
                Some(Self::Create(object.clone()))
            }
            Self::Set { link, to: Some(to), .. } => {
                Some(Self::Set { link: *link, from: None, to: Some(to.clone()) })
            }
            Self::Set { to: None, .. } | Self::Delete(_) => None,
        }
    }

    /// The effects that come and go where this one does: of a removal what it takes away, and of
    /// protection that is given up also that it is.
    pub(crate) fn undoes(&self) -> Vec<Self> {
        match self {
            Self::Delete(object) => vec![Self::Create(object.clone())],
            Self::Set { link, from, to: Some(Setting::Group(group)) } if group.0 == 0 => {
                let before = Self::Set { link: *link, from: None, to: from.clone() };
                before.effect().into_iter().chain(self.effect()).collect()
            }
            Self::Set { .. } | Self::Create(_) | Self::Replace { .. } => Vec::new(),
        }
    }

    /// The object that the step makes.
    #[must_use]
    pub fn makes(&self) -> Option<&Object> {
        match self {
            Self::Create(object) | Self::Replace { new: object, .. } => Some(object),
            Self::Set { .. } | Self::Delete(_) => None,
        }
    }
}

fn set_command(name: &str, from: Option<&Setting>, to: Option<&Setting>) -> String {
    match to.or(from) {
        Some(setting @ (Setting::Up | Setting::Mtu(_) | Setting::Group(_))) => {
            format!("ip link set {}", setting_words(name, setting))
        }
        Some(setting @ Setting::AlternativeName(_)) => {
            let verb = if to.is_some() { "add" } else { "del" };
            format!("ip link property {verb} {}", setting_words(name, setting))
        }
        Some(setting @ Setting::Sysctl(..)) => {
            format!("sysctl -w {}", setting_words(name, setting))
        }
        None => format!("ip link set dev {name}"),
    }
}

/// A property of the link of this name, in the words of `ip` and `sysctl` without their verbs.
#[must_use]
pub fn setting_words(name: &str, setting: &Setting) -> String {
    match setting {
        Setting::Up => format!("dev {name} up"),
        Setting::Mtu(mtu) => format!("dev {name} mtu {mtu}"),
        Setting::Group(group) => format!("dev {name} group {}", group.0),
        Setting::AlternativeName(other) => format!("dev {name} altname {other}"),
        Setting::Sysctl(key, value) => {
            let family = match key.family() {
                Family::V4 => "ipv4",
                Family::V6 => "ipv6",
            };
            format!("net.{family}.conf.{name}.{}={value}", key.name())
        }
    }
}

/// An object in the words of `ip` and `nft`, without their verbs; `name_of` tells a link's name.
/// `making` adds what is said of an address only when it is made.
#[must_use]
pub fn words(object: &Object, making: bool, name_of: &dyn Fn(LinkIndex) -> String) -> String {
    match object {
        Object::Address(address) => address_words(address, making, name_of),
        Object::Route(route) => route_words(route, name_of),
        Object::Rule(rule) => rule_words(rule),
        Object::Marking(marking) => marking_words(marking),
    }
}

fn object_command(verb: &str, object: &Object, name_of: &dyn Fn(LinkIndex) -> String) -> String {
    match object {
        Object::Address(address) => {
            let words = address_words(address, verb == "add", name_of);
            format!("ip {} address {verb} {words}", flag(Family::of(address.address)))
        }
        Object::Route(route) => {
            let family = flag(Family::of(route.destination.addr()));
            format!("ip {family} route {verb} {}", route_words(route, name_of))
        }
        Object::Rule(rule) => {
            format!("ip {} rule {verb} {}", flag(rule.family), rule_words(rule))
        }
        Object::Marking(marking) if verb == "add" => {
            format!("nft add {}", marking_words(marking))
        }
        Object::Marking(marking) => format!("nft delete table inet enid-{}", marking.table.0),
    }
}

/// One line for a table of several: enough to see what it is for.
fn marking_words(marking: &Marking) -> String {
    let (table, mask) = (marking.table.0, Marking::MASK);
    let Marking { link, mark, .. } = marking;
    format!("table inet enid-{table} # ports published on {link} get mark {mark:#x}/{mask:#x}")
}

fn flag(family: Family) -> &'static str {
    match family {
        Family::V4 => "-4",
        Family::V6 => "-6",
    }
}

fn address_words(address: &Address, making: bool, name_of: &dyn Fn(LinkIndex) -> String) -> String {
    let family = Family::of(address.address);
    let mut text =
        format!("{}/{} dev {}", address.address, address.prefix_length, name_of(address.link));
    if making {
        if !address.prefix_route && address.prefix_length < family.host_length() {
            text.push_str(" noprefixroute");
        }
        if family == Family::V6 {
            text.push_str(" nodad");
        }
        if !address.preferred {
            text.push_str(" preferred_lft 0");
        }
    }
    text
}

fn network(net: IpNet) -> String {
    if net.prefix_len() == 0 {
        "default".to_owned()
    } else if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}

fn route_words(route: &Route, name_of: &dyn Fn(LinkIndex) -> String) -> String {
    let kind = match route.kind {
        RouteKind::Unicast => String::new(),
        RouteKind::Unreachable => "unreachable ".to_owned(),
        RouteKind::Local => "local ".to_owned(),
        RouteKind::Other(number) => format!("type{number} "),
    };
    let mut text = format!("{kind}{}", network(route.destination));
    // Writing to a String cannot fail.
    if let Some(gateway) = route.gateway {
        let _ = write!(text, " via {gateway}");
    }
    if let Some(link) = route.link {
        let _ = write!(text, " dev {}", name_of(link));
    }
    let _ = write!(text, " table {}", route.table);
    if let Some(source) = route.source {
        let _ = write!(text, " src {source}");
    }
    if route.metric != 0 {
        let _ = write!(text, " metric {}", route.metric);
    }
    if route.on_link {
        text.push_str(" onlink");
    }
    text
}

fn rule_words(rule: &Rule) -> String {
    let source = rule.source.map_or_else(|| "all".to_owned(), network);
    let mut text = format!("pref {} from {source}", rule.priority.0);
    if let Some(destination) = rule.destination {
        let _ = write!(text, " to {}", network(destination));
    }
    if let Some((mark, mask)) = rule.mark {
        let _ = write!(text, " fwmark {mark:#x}/{mask:#x}");
    }
    for (word, name) in [("iif", &rule.iif), ("oif", &rule.oif)] {
        if let Some(name) = name {
            let _ = write!(text, " {word} {name}");
        }
    }
    match rule.action {
        RuleAction::Lookup(TableId::MAIN) => text.push_str(" lookup main"),
        RuleAction::Lookup(table) => {
            let _ = write!(text, " lookup {table}");
        }
        RuleAction::Other(number) => {
            let _ = write!(text, " action {number}");
        }
    }
    if let Some(length) = rule.suppress_prefix_length {
        let _ = write!(text, " suppress_prefixlength {length}");
    }
    if let Some(group) = rule.suppress_group {
        let _ = write!(text, " suppress_ifgroup {}", group.0);
    }
    text
}
