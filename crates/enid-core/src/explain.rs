//! Of one address, ENI or rule: where it comes from, whose it is, and what it is there for.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::eni::Facts;
use crate::metadata::EniKey;
use crate::metadata::facts::{EniFacts, State};
use crate::object::{Family, LinkIndex, Mac, Object, Protocol, Rule};
use crate::objects::{Listed, Objects, Presence, Thing};
use crate::observed::{Owner, SeenAddress, SeenRule};
use crate::plan::words;
use crate::report::{EniReport, EniState, Report, Role};
use crate::time::Instant;

/// More entries of a list than this are counted.
const NAMED: usize = 12;

/// What is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// An address, be it an ENI's or not.
    Address(IpAddr),
    /// An ENI.
    Eni(Mac),
    /// Rules, by their priority or by some of `ip`'s words for them.
    Rules(String),
}

/// What metadata said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// The key, from `meta-data/` on.
    pub key: String,
    /// What of its value counts here.
    pub value: String,
    /// The first reading that showed it, where that is remembered.
    pub first: Option<Instant>,
    /// The last one.
    pub last: Option<Instant>,
}

/// What is known of a subject.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Explanation {
    /// The ENI that it is of.
    pub eni: Option<Mac>,
    /// The link that it is on, where that is one.
    pub link: Option<LinkIndex>,
    /// What it is, in sentences.
    pub text: Vec<String>,
    /// What metadata said of it.
    pub facts: Vec<Fact>,
    /// Who made it.
    pub owner: Option<String>,
    /// It, and what there is because of it.
    pub objects: Vec<Listed>,
}

/// Explains a subject; none where nothing is known of it. `report` and `objects` are those of a
/// decision from the same facts.
#[must_use]
pub fn explain(
    facts: &Facts<'_>,
    report: &Report,
    objects: &Objects,
    subject: &Subject,
    name_of: &dyn Fn(LinkIndex) -> String,
) -> Option<Explanation> {
    let known = Known { facts, report, objects, name_of };
    match subject {
        Subject::Address(address) => known.address(*address),
        Subject::Eni(mac) => known.eni(*mac),
        Subject::Rules(text) => known.rules(text),
    }
}

struct Known<'a> {
    facts: &'a Facts<'a>,
    report: &'a Report,
    objects: &'a Objects,
    name_of: &'a dyn Fn(LinkIndex) -> String,
}

impl Known<'_> {
    fn address(&self, address: IpAddr) -> Option<Explanation> {
        let mut told = Explanation::default();
        for (mac, known) in &self.facts.metadata.enis {
            told.facts.extend(granting(*mac, known, address));
        }
        let enis = || self.report.enis.iter();
        let granted = enis().find_map(|eni| {
            let found = eni.addresses.iter().find(|it| it.address == address)?;
            Some((eni, found))
        });
        let addresses = &self.facts.observed.snapshot.addresses;
        let here: Vec<&SeenAddress> =
            addresses.iter().filter(|seen| seen.address.address == address).collect();
        let seen = here.first().copied();
        let of_link = |link: LinkIndex| {
            enis().find(|eni| eni.link.as_ref().is_some_and(|(index, _)| *index == link))
        };
        let eni = granted.map(|(eni, _)| eni).or_else(|| of_link(seen?.address.link));
        if told.facts.is_empty() && eni.is_none() && seen.is_none() {
            return None;
        }
        told.eni = eni.map(|eni| eni.mac);
        told.link = seen.map(|seen| seen.address.link);
        told.text.push(match granted {
            Some((eni, found)) if self.grants(eni.mac, address) => {
                let role = match found.role {
                    Role::Primary => "primary",
                    Role::Secondary => "secondary",
                };
                format!("metadata grants it to {} as its {role} address", label(eni))
            }
            Some((eni, _)) => format!("metadata no longer grants it to {}", label(eni)),
            None => "metadata grants it to no ENI here".to_owned(),
        });
        for seen in &here {
            let link = (self.name_of)(seen.address.link);
            let strange =
                if of_link(seen.address.link).is_none() { ", which is no ENI," } else { "" };
            told.text.push(format!("{link}{strange} has it"));
        }
        if here.is_empty() {
            told.text.push("no link here has it".to_owned());
        }
        told.owner = seen.map(|seen| self.maker(seen));
        told.objects = eni.map(|eni| self.because_of(eni.mac, address)).unwrap_or_default();
        Some(told)
    }

    fn grants(&self, mac: Mac, address: IpAddr) -> bool {
        self.facts.metadata.enis.get(&mac).is_some_and(|known| known.keys.has(address))
    }

    /// Who made an address.
    fn maker(&self, seen: &SeenAddress) -> String {
        let owner = self.facts.observed.owner(seen);
        let by_mark = seen.protocol == Some(Protocol::ENID);
        match owner {
            Owner::Ours if by_mark => "enid, by its mark (proto 233)".to_owned(),
            Owner::Ours => "enid, by its ledger (this kernel keeps no marks)".to_owned(),
            Owner::TakenOver => {
                "somebody who replaced what enid had made; enid leaves it alone".to_owned()
            }
            Owner::Foreign => {
                let by = match seen.protocol {
                    Some(protocol) => format!("somebody else (proto {protocol})"),
                    None => "somebody else".to_owned(),
                };
                let lives = if seen.permanent {
                    ""
                } else {
                    ", with a lifetime, as a DHCP client or a router's advertisement does"
                };
                format!("{by}{lives}")
            }
        }
    }

    /// The address itself, the rules that its packets match, and the routes that give it as source.
    fn because_of(&self, mac: Mac, address: IpAddr) -> Vec<Listed> {
        let counts = |listed: &&Listed| match &listed.thing {
            Thing::Object(Object::Address(it)) => it.address == address,
            Thing::Object(Object::Rule(rule)) => {
                rule.source.is_some_and(|source| source.contains(&address))
            }
            Thing::Object(Object::Route(route)) => {
                let default = route.is_default();
                route.source == Some(address)
                    || (default && Family::of(route.destination.addr()) == Family::of(address))
            }
            Thing::Object(Object::Marking(_)) | Thing::Setting(..) => false,
        };
        self.objects.enis.get(&mac).into_iter().flatten().filter(counts).cloned().collect()
    }

    fn eni(&self, mac: Mac) -> Option<Explanation> {
        let eni = self.report.enis.iter().find(|eni| eni.mac == mac)?;
        let known = self.facts.metadata.enis.get(&mac);
        let mut text = Vec::new();
        let primary = if eni.primary { "the primary ENI" } else { "an ENI" };
        text.push(match eni.place {
            Some((card, device)) => {
                format!("{primary}, device {device} on network card {card}")
            }
            None => primary.to_owned(),
        });
        text.push(match &eni.state {
            EniState::Managed => "enid keeps it equal to what metadata says".to_owned(),
            EniState::Pending => "enid does not configure it yet".to_owned(),
            EniState::Held(hold) => format!("enid leaves it alone: {hold}"),
            EniState::NoLink => {
                "metadata lists it, but no link here has its MAC address".to_owned()
            }
        });
        if let Some(table) = eni.table {
            text.push(format!("what is sent from its addresses leaves by table {table}"));
        }
        Some(Explanation {
            eni: Some(mac),
            link: eni.link.as_ref().map(|(index, _)| *index),
            text,
            facts: known.map(|known| everything(mac, known)).unwrap_or_default(),
            owner: None,
            objects: self.objects.enis.get(&mac).cloned().unwrap_or_default(),
        })
    }

    fn rules(&self, text: &str) -> Option<Explanation> {
        let wanted = Wanted::read(text);
        let mut told = Explanation::default();
        let all = self.objects.enis.iter().map(|(mac, objects)| (Some(*mac), objects));
        for (mac, objects) in all.chain([(None, &self.objects.left)]) {
            for listed in objects {
                let Thing::Object(Object::Rule(rule)) = &listed.thing else { continue };
                if wanted.matches(rule) {
                    told.eni = told.eni.or(mac);
                    told.facts.extend(mac.map(|mac| self.sources(mac, rule)).unwrap_or_default());
                    told.objects.push(listed.clone());
                }
            }
        }
        // Rules that have nothing to do with any ENI.
        let rules = &self.facts.observed.snapshot.rules;
        for seen in rules.iter().filter(|seen| wanted.matches(&seen.rule)) {
            let thing = Thing::Object(Object::Rule(seen.rule.clone()));
            if told.objects.iter().all(|listed| listed.thing != thing) {
                let reason = "it has nothing to do with any ENI".to_owned();
                let presence = Presence::Foreign;
                told.objects.push(Listed { thing, presence, reason, delay: None });
            }
        }
        told.facts.sort_by(|a, b| (&a.key, &a.value).cmp(&(&b.key, &b.value)));
        told.facts.dedup();
        told.owner = owners(rules.iter().filter(|seen| wanted.matches(&seen.rule)));
        let found = told.objects.len();
        told.text.push(match found {
            0 => return None,
            1 => told.objects.iter().map(|it| it.reason.clone()).collect(),
            n => format!("{n} rules are meant"),
        });
        Some(told)
    }

    /// The addresses of metadata that a rule is for.
    fn sources(&self, mac: Mac, rule: &Rule) -> Vec<Fact> {
        let Some(known) = self.facts.metadata.enis.get(&mac) else { return Vec::new() };
        let Some(source) = rule.source else { return Vec::new() };
        let inside: Vec<IpAddr> =
            known.keys.addresses().filter(|address| source.contains(address)).collect();
        let Some(one) = inside.first() else { return Vec::new() };
        let key = key(mac, EniKey::addresses(Family::of(*one)));
        let times = inside.iter().filter_map(|address| known.addresses.shown(address));
        let (first, last) = times.unzip::<_, _, Vec<_>, Vec<_>>();
        let (first, last) = (first.into_iter().min(), last.into_iter().max());
        vec![Fact { key, value: few(&inside), first, last }]
    }
}

/// Which keys of an ENI show an address, or showed it.
fn granting(mac: Mac, known: &EniFacts, address: IpAddr) -> Vec<Fact> {
    let mut facts = Vec::new();
    let list = EniKey::addresses(Family::of(address));
    let shown = known.addresses.shown(&address);
    if shown.is_some() || known.keys.has(address) {
        let (first, last) = shown.unzip();
        facts.push(Fact { key: key(mac, list), value: address.to_string(), first, last });
    }
    let (prefixes, subnets) = match Family::of(address) {
        Family::V4 => (EniKey::Ipv4Prefixes, EniKey::SubnetIpv4),
        Family::V6 => (EniKey::Ipv6Prefixes, EniKey::SubnetIpv6),
    };
    let around = |prefix: &&IpNet| prefix.contains(&address);
    for prefix in known.prefixes.items().into_iter().filter(|prefix| around(prefix)) {
        let (first, last) = known.prefixes.shown(prefix).unzip();
        facts.push(Fact { key: key(mac, prefixes), value: prefix.to_string(), first, last });
    }
    if !facts.is_empty()
        && let Some(subnet) = known.keys.subnets().into_iter().find(|it| it.contains(&address))
    {
        let last = known.states.get(&subnets).map(|(_, read)| *read);
        facts.push(Fact { key: key(mac, subnets), value: subnet.to_string(), first: None, last });
    }
    facts
}

/// Every key of an ENI that has a value.
fn everything(mac: Mac, known: &EniFacts) -> Vec<Fact> {
    let listed = Fact {
        key: format!("meta-data/network/interfaces/macs/{mac}/"),
        value: "listed".to_owned(),
        first: Some(known.first_read),
        last: Some(known.last_read).filter(|_| !known.unlisted),
    };
    let valued = EniKey::CONSTANTS.into_iter().chain(EniKey::LISTS);
    let valued = valued.filter(|key| known.state(*key) == State::Value);
    let facts = valued.map(|name| {
        let last = known.states.get(&name).map(|(_, read)| *read);
        Fact { key: key(mac, name), value: value(known, name), first: None, last }
    });
    std::iter::once(listed).chain(facts).collect()
}

fn value(known: &EniFacts, key: EniKey) -> String {
    let keys = &known.keys;
    let one = |value: Option<String>| value.unwrap_or_default();
    match key {
        EniKey::DeviceNumber => one(keys.device.map(|number| number.to_string())),
        EniKey::NetworkCard => one(keys.card.map(|number| number.to_string())),
        EniKey::InterfaceId => one(keys.id.as_ref().map(ToString::to_string)),
        EniKey::Mac => one(keys.mac.map(|mac| mac.to_string())),
        EniKey::SubnetIpv4 => one(keys.subnet_v4.map(|net| net.to_string())),
        EniKey::SubnetIpv6 => few(&keys.subnets_v6),
        EniKey::SubnetId => one(keys.subnet.clone()),
        EniKey::VpcId => one(keys.vpc.clone()),
        EniKey::VpcIpv4 => few(&keys.vpc_v4),
        EniKey::VpcIpv6 => few(&keys.vpc_v6),
        EniKey::LocalIpv4s => few(&keys.ipv4s),
        EniKey::Ipv6s => few(&keys.ipv6s),
        EniKey::Ipv4Prefixes => few(&keys.prefixes_v4),
        EniKey::Ipv6Prefixes => few(&keys.prefixes_v6),
    }
}

fn key(mac: Mac, key: EniKey) -> String {
    format!("meta-data/network/interfaces/macs/{mac}/{}", key.name())
}

fn few(entries: &[impl ToString]) -> String {
    let named = entries.iter().take(NAMED).map(ToString::to_string).collect::<Vec<_>>().join(" ");
    match entries.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// An ENI's id, else its MAC address, with its link's name.
fn label(eni: &EniReport) -> String {
    let name = eni.id.as_ref().map_or_else(|| eni.mac.to_string(), ToString::to_string);
    match &eni.link {
        Some((_, link)) => format!("{name} ({link})"),
        None => name,
    }
}

/// Who made these rules, each maker once.
fn owners<'a>(rules: impl Iterator<Item = &'a SeenRule>) -> Option<String> {
    let mut makers: Vec<String> = rules
        .map(|seen| match seen.protocol {
            Protocol::ENID => "enid, by its mark (proto 233)".to_owned(),
            Protocol::KERNEL => "the kernel".to_owned(),
            other => format!("somebody else (proto {other})"),
        })
        .collect();
    makers.sort();
    makers.dedup();
    (!makers.is_empty()).then(|| makers.join("; "))
}

/// The rules that somebody means: by their priority, or by words that stand in them together.
struct Wanted {
    priority: Option<u32>,
    words: String,
}

impl Wanted {
    /// Reads a priority, or a rule as `ip rule` shows it or `enictl plan` makes it, or a part of one.
    fn read(text: &str) -> Self {
        let mut words: Vec<&str> = text.split_whitespace().collect();
        let verbs = ["ip", "-4", "-6", "rule", "add", "del"];
        while words.first().is_some_and(|word| verbs.contains(word)) {
            words.remove(0);
        }
        // Who made it is told, but no part of the rule.
        if let Some(at) = words.iter().position(|word| ["proto", "protocol"].contains(word)) {
            words.drain(at..words.len().min(at + 2));
        }
        let named = matches!(words.first(), Some(&("pref" | "priority")));
        let number = words.get(usize::from(named)).map(|word| word.trim_end_matches(':'));
        let priority = number.and_then(|word| word.parse().ok());
        if priority.is_some() {
            words.drain(..=usize::from(named));
        }
        // A network alone is the source.
        if let [one] = words.as_slice()
            && one.parse::<IpNet>().is_ok()
        {
            words.insert(0, "from");
        }
        // As `ip` writes a network of one address.
        let bare = |word: &&str| match word.parse::<IpNet>() {
            Ok(net) if net.prefix_len() == net.max_prefix_len() => net.addr().to_string(),
            Ok(_) | Err(_) => (*word).to_owned(),
        };
        let words: Vec<String> = words.iter().map(bare).collect();
        Self { priority, words: words.join(" ") }
    }

    fn matches(&self, rule: &Rule) -> bool {
        if self.priority.is_none() && self.words.is_empty() {
            return false;
        }
        let text = words(&Object::Rule(rule.clone()), false, &|_| String::new());
        // Whole words: "from 10.0.2.4" is not "from 10.0.2.40".
        let whole = format!(" {text} ").contains(&format!(" {} ", self.words));
        self.priority.is_none_or(|priority| rule.priority.0 == priority)
            && (self.words.is_empty() || whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::TableId;

    #[test]
    fn rules_are_found_by_priority_and_by_words_of_ip() {
        let rule = Rule {
            source: Some("10.0.2.4/32".parse().unwrap()),
            iif: Some("lo".to_owned()),
            ..Rule::lookup(Family::V4, 20_020, TableId(20_001))
        };
        for text in [
            "20020",
            "pref 20020",
            "from 10.0.2.4",
            "10.0.2.4/32",
            "20020:\tfrom 10.0.2.4 iif lo lookup 20001 proto 233",
            "ip -4 rule add pref 20020 from 10.0.2.4 iif lo lookup 20001",
            "lookup 20001",
        ] {
            assert!(Wanted::read(text).matches(&rule), "{text}");
        }
        for text in [
            "",
            "20021",
            "from 10.0.2",
            "from 10.0.2.40",
            "proto 233",
            "ip rule",
            "20010: from 10.0.2.4",
        ] {
            assert!(!Wanted::read(text).matches(&rule), "{text}");
        }
    }
}
