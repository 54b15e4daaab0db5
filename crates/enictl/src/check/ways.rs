//! Every address asked of the kernel in both directions: which way packets would go.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use enid_control::check::{Finding, FindingId, ReversePath, Severity};
use enid_core::object::{
    Family, LinkIndex, Object, Protocol, RouteKind, Rule, RuleAction, TableId,
};
use enid_core::observed::SeenRule;
use enid_core::plan::Step;
use enid_kernel::lookup::{Lookup, Question, Refusal, Way};

use super::scene::{Scene, Settings, Subject, about, add};

/// Addresses for documentation: nobody has a route of its own to them. Asking sends nothing there.
const OUTSIDE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1)),
];
const METADATA: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));
/// Subnets of other ENIs that each address is asked about. With 24 ENIs of 64 addresses each all of
/// them would be 35,000 questions.
const OTHERS: usize = 3;

/// Asks, and collects what is found.
pub(super) struct Ways<'a> {
    pub(super) scene: &'a Scene,
    pub(super) lookup: Lookup,
    /// How often the kernel was asked.
    pub(super) asked: u64,
    pub(super) findings: Vec<Finding>,
}

/// Where a packet goes to or comes from, and what that is called.
struct Place {
    address: IpAddr,
    name: String,
    /// In the ENI's own subnet.
    near: bool,
}

/// Several ways that are wrong in one way.
struct Cause {
    /// Of the first address; it says [`PLACES`] for where they go to or come from.
    finding: Finding,
    /// The other ends of that address's ways.
    places: Vec<String>,
    /// Whose way was added last.
    last: IpAddr,
}

/// Stands for the places until all of them are known; no link is called so.
const PLACES: &str = "/places/";
/// So many of them are named.
const NAMED: usize = 3;

/// How reverse paths are filtered.
const STRICT: i64 = 1;

impl Ways<'_> {
    /// Judges every address of every ENI.
    pub(super) async fn judge(
        &mut self,
        settings: &mut Settings,
    ) -> anyhow::Result<Vec<ReversePath>> {
        let scene = self.scene;
        let (mut reverse_paths, mut causes) = (Vec::new(), Vec::new());
        for subject in &scene.subjects {
            let filter = settings.larger(&subject.link.name, "rp_filter").unwrap_or_default();
            reverse_paths.push(ReversePath {
                link: subject.link.name.clone(),
                rp_filter: u8::try_from(filter).unwrap_or(u8::MAX),
            });
            let filtered = arp_filters(subject, settings);
            for own in &subject.addresses {
                for place in self.places(subject, Family::of(own.addr())) {
                    let out =
                        self.judge_one(subject, own.addr(), &place, filter, &mut causes).await?;
                    if place.near && own.addr().is_ipv4() && !filtered.is_empty() {
                        self.arp_filtered(subject, own.addr(), &out, &filtered);
                    }
                }
            }
            self.findings.extend(causes.drain(..).map(Cause::told));
            self.multicast(subject, filter).await?;
        }
        self.local_rules();
        self.metadata().await?;
        Ok(reverse_paths)
    }

    /// Whom an ENI's addresses talk to: everybody, its own subnet, and those of others.
    fn places(&self, subject: &Subject, family: Family) -> Vec<Place> {
        let outside = OUTSIDE.into_iter().filter(|address| Family::of(*address) == family);
        let mut places: Vec<Place> = outside
            .map(|address| Place { address, name: "the outside".to_owned(), near: false })
            .collect();
        let here = subject.subnets.iter();
        let there = self.scene.subjects.iter().flat_map(|other| &other.subnets);
        let there = there.filter(|net| !subject.subnets.contains(net));
        let fits = |net: &&ipnet::IpNet| Family::of(net.addr()) == family;
        let nets = here.filter(fits).chain(there.filter(fits).take(OTHERS));
        places.extend(nets.filter_map(|net| {
            let near = subject.subnets.contains(net);
            Some(Place { address: self.scene.somebody_in(net)?, name: net.to_string(), near })
        }));
        places
    }

    async fn ask(&mut self, question: Question) -> anyhow::Result<Result<Way, Refusal>> {
        self.asked += 1;
        Ok(self.lookup.way(&question).await?)
    }

    async fn judge_one(
        &mut self,
        subject: &Subject,
        own: IpAddr,
        place: &Place,
        filter: i64,
        causes: &mut Vec<Cause>,
    ) -> anyhow::Result<Result<Way, Refusal>> {
        let link = subject.link.index;
        let question = Question::out(own, place.address);
        let mut out = self.ask(question).await?;
        if out.as_ref().is_ok_and(|way| way.link != Some(link)) {
            // By which route, too, which matters only where it is a wrong one.
            out = self.lookup.ask(&question).await?;
        }
        if let Some(finding) = self.outgoing(subject, own, place, &out) {
            Cause::add(causes, finding, own, place);
        }
        let answer = self.ask(Question::in_by(link, place.address, own)).await?;
        if let Some(finding) = self.incoming(subject, own, place, &out, &answer, filter) {
            Cause::add(causes, finding, own, place);
        }
        Ok(out)
    }

    /// With `arp_filter` who asks for a hardware address is answered only where the way back is by
    /// the same link.
    fn arp_filtered(
        &mut self,
        subject: &Subject,
        own: IpAddr,
        out: &Result<Way, Refusal>,
        filtered: &[String],
    ) {
        let Ok(way) = out else { return };
        let Some(by) = way.link.filter(|link| *link != subject.link.index) else { return };
        let what = format!(
            "nobody finds it on its network: arp_filter is 1, and the way there is by {}",
            self.scene.name_of(by)
        );
        let finding = subject.finding(FindingId::ArpSilent, subject.severity_of_ways(), what);
        let finding = Finding { address: Some(own), remedy: filtered.to_vec(), ..finding };
        add(&mut self.findings, finding);
    }

    fn outgoing(
        &self,
        subject: &Subject,
        own: IpAddr,
        place: &Place,
        out: &Result<Way, Refusal>,
    ) -> Option<Finding> {
        let culprit = self.culprit(own, place.address, out.as_ref().ok().and_then(|way| way.table));
        let by_rule = culprit
            .as_ref()
            .map_or_else(String::new, |rule| format!(" (rule {} says so)", rule.rule.priority.0));
        let foreign = culprit.filter(|rule| rule.protocol != Protocol::ENID);
        if out.is_err()
            && foreign.is_none()
            && let Some((down, remedy)) = subject.down()
        {
            let what = format!("{down}, so that what the address sends to {PLACES} goes nowhere");
            let finding = subject.finding(FindingId::LinkDown, subject.severity(), what);
            return Some(Finding { address: Some(own), remedy: vec![remedy], ..finding });
        }
        let (id, severity, what) = match out {
            Err(refusal) => {
                let what = format!("what it sends to {PLACES} goes nowhere: {refusal}{by_rule}");
                (FindingId::NoWayOut, subject.severity_of_ways(), what)
            }
            Ok(way) if way.link == Some(subject.link.index) => return None,
            Ok(way) => {
                let by = way.link.map_or_else(String::new, |link| self.scene.name_of(link));
                let table =
                    way.table.map_or_else(String::new, |table| format!(", by table {table}"));
                if self.scene.subject(way.link).is_some() {
                    let what = format!(
                        "what it sends to {PLACES} leaves by {by}{table}{by_rule}: that is another \
                         ENI, and the cloud drops what has a source that is not that ENI's"
                    );
                    (FindingId::WrongEni, subject.severity_of_ways(), what)
                } else if way.table == Some(TableId::MAIN) && self.is_deliberate(way) {
                    return None;
                } else {
                    let what = format!(
                        "what it sends to {PLACES} leaves by {by}{table}{by_rule}, which is no ENI"
                    );
                    (FindingId::Diverted, Severity::Risk, what)
                }
            }
        };
        let remedy = match foreign {
            Some(rule) => vec![self.without(rule)],
            None => self.restore(subject),
        };
        let finding = subject.finding(id, severity, what);
        Some(Finding { address: Some(own), remedy, ..finding })
    }

    /// What main routes to a container or a VPN goes there on purpose, unless it is everything.
    fn is_deliberate(&self, way: &Way) -> bool {
        way.route.as_ref().is_some_and(|route| route.destination.prefix_len() > 1)
    }

    fn incoming(
        &self,
        subject: &Subject,
        own: IpAddr,
        place: &Place,
        out: &Result<Way, Refusal>,
        answer: &Result<Way, Refusal>,
        filter: i64,
    ) -> Option<Finding> {
        let link = &subject.link.name;
        let why = match answer {
            Ok(way) if way.kind == RouteKind::Local => return None,
            Ok(way) => {
                let by = way.link.map_or_else(String::new, |link| self.scene.name_of(link));
                format!("it would be sent on by {by}")
            }
            Err(refusal) => refusal.to_string(),
        };
        // What has no way out is not let in by a filter, either: that is found, and its cause.
        if out.is_err() && (subject.down().is_some() || (own.is_ipv4() && filter != 0)) {
            return None;
        }
        let back = out.as_ref().ok().and_then(|way| way.link);
        let finding = if own.is_ipv4() && filter == STRICT && back != Some(subject.link.index) {
            let back = back.map_or_else(|| "no link".to_owned(), |link| self.scene.name_of(link));
            let what = format!(
                "what comes in by {link} from {PLACES} is dropped: rp_filter is 1 there, and the \
                 answer would leave by {back}"
            );
            let remedy = vec![format!("sysctl -w net.ipv4.conf.{link}.rp_filter=2")];
            let finding =
                subject.finding(FindingId::StrictReversePath, subject.severity_of_ways(), what);
            Finding { remedy, ..finding }
        } else {
            let (why, remedy) = self.undelivered(subject, own, place.address, why)?;
            let what = format!("what comes in by {link} from {PLACES} is not delivered: {why}");
            let finding =
                subject.finding(FindingId::NotDelivered, subject.severity_of_ways(), what);
            Finding { remedy, ..finding }
        };
        Some(Finding { address: Some(own), ..finding })
    }

    /// With a strict filter the source of multicast must be one that main reaches by that link.
    async fn multicast(&mut self, subject: &Subject, filter: i64) -> anyhow::Result<()> {
        let scene = self.scene;
        let nets = subject.subnets.iter().filter(|net| net.addr().is_ipv4());
        let Some(net) = nets.into_iter().next().filter(|_| filter == STRICT) else { return Ok(()) };
        let Some(neighbour) = scene.somebody_in(net) else { return Ok(()) };
        let way = self.ask(Question::to(neighbour)).await?;
        if way.is_ok_and(|way| way.link == Some(subject.link.index)) || subject.addresses.is_empty()
        {
            return Ok(());
        }
        let link = &subject.link.name;
        let what = format!(
            "multicast and broadcast from {net} are dropped on {link}: rp_filter is 1 there, and \
             main has no route to {net} by it"
        );
        let remedy = vec![format!("sysctl -w net.ipv4.conf.{link}.rp_filter=2")];
        let finding = subject.finding(FindingId::StrictMulticast, Severity::Note, what);
        self.findings.push(Finding { remedy, ..finding });
        Ok(())
    }

    /// Why what comes in is not delivered, and what ends that; none where the rule to the kernel's own
    /// addresses is missing, which is found by itself.
    fn undelivered(
        &self,
        subject: &Subject,
        own: IpAddr,
        from: IpAddr,
        why: String,
    ) -> Option<(String, Vec<String>)> {
        let link = &subject.link.name;
        let family = Family::of(own);
        let rules = || self.scene.snapshot.rules.iter();
        let local = rules().find(|seen| is_local(&seen.rule, family))?;
        let before =
            |rule: &Rule| takes(rule, from, own, link) && rule.priority < local.rule.priority;
        let first = rules().filter(|seen| before(&seen.rule)).min_by_key(|it| it.rule.priority);
        if let Some(rule) = first {
            let why = format!("{why} (rule {} is before its own table)", rule.rule.priority.0);
            return Some((why, vec![self.without(rule)]));
        }
        let delivers = self.scene.snapshot.routes.iter().any(|seen| {
            seen.route.table == TableId::LOCAL
                && seen.route.kind == RouteKind::Local
                && seen.route.destination.contains(&own)
        });
        if delivers {
            return Some((why, self.restore(subject)));
        }
        let why = "somebody took the kernel's own route to it out of table local".to_owned();
        let remedy = match family {
            Family::V4 => vec![format!(
                "ip route add local {own} dev {link} table local proto kernel scope host src {own}"
            )],
            // Only the kernel makes the one of IPv6, for an address that comes.
            Family::V6 => {
                let runs = self.scene.status.is_some() && subject.managed;
                let back = vec!["enictl refresh --wait".to_owned()];
                let back = if runs { back } else { self.restore(subject) };
                [vec![format!("ip -6 address del {own} dev {link}")], back].concat()
            }
        };
        Some((why, remedy))
    }

    /// The first rule that leads what is sent from here to there into this table, or that refuses it.
    fn culprit(&self, from: IpAddr, to: IpAddr, table: Option<TableId>) -> Option<&SeenRule> {
        let leads = |rule: &Rule| match rule.action {
            RuleAction::Lookup(its) => Some(its) == table,
            // `FR_ACT_BLACKHOLE` and what follows it; the others only jump.
            RuleAction::Other(action) => table.is_none() && action >= 6,
        };
        let rules = self.scene.snapshot.rules.iter();
        let first = rules
            .filter(|seen| takes(&seen.rule, from, to, "lo") && leads(&seen.rule))
            .min_by_key(|seen| seen.rule.priority);
        // The rules of the kernel itself are nobody's fault.
        first.filter(|seen| seen.protocol != Protocol::KERNEL)
    }

    /// The command that deletes a rule.
    fn without(&self, seen: &SeenRule) -> String {
        let name_of = |index: LinkIndex| self.scene.name_of(index);
        match (seen.complete, seen.rule.action) {
            (true, RuleAction::Lookup(_)) => {
                Step::Delete(Object::Rule(seen.rule.clone())).command(&name_of)
            }
            (false, RuleAction::Lookup(_)) | (_, RuleAction::Other(_)) => {
                let family = if seen.rule.family == Family::V4 { "-4" } else { "-6" };
                format!("ip {family} rule del pref {}", seen.rule.priority.0)
            }
        }
    }

    /// What brings enid's own objects back, or has it make them.
    fn restore(&self, subject: &Subject) -> Vec<String> {
        let word = match (&self.scene.status, subject.managed, subject.table) {
            (None, ..) => "systemctl start enid".to_owned(),
            (Some(_), true, Some(_)) => "enictl refresh --wait".to_owned(),
            (Some(_), true, None) if subject.primary == Some(true) => {
                "set primary_rules = \"auto\" in /etc/enid/enid.toml".to_owned()
            }
            (Some(_), true, None) => format!(
                "take manage = \"addresses\" for {} out of /etc/enid, or bind its sockets to {}",
                subject.name, subject.link.name
            ),
            (Some(_), false, _) => format!("enictl unhold {}", subject.name),
        };
        vec![word]
    }

    /// Somebody once removed even the rule that leads to the kernel's own addresses.
    fn local_rules(&mut self) {
        for (family, flag) in [(Family::V4, "-4"), (Family::V6, "-6")] {
            let mut rules =
                self.scene.snapshot.rules.iter().filter(|seen| seen.rule.family == family);
            let there = rules.clone().any(|seen| is_local(&seen.rule, family));
            if there || rules.next().is_none() {
                continue;
            }
            let what = "no rule leads to the kernel's own addresses (`from all lookup local`)";
            let finding = about(FindingId::LocalRuleMissing, Severity::Broken, what.to_owned());
            let remedy = vec![format!("ip {flag} rule add pref 0 lookup local")];
            self.findings.push(Finding { remedy, ..finding });
        }
    }

    /// enid asks metadata by the primary ENI, whatever main says; other programs do not.
    async fn metadata(&mut self) -> anyhow::Result<()> {
        let scene = self.scene;
        let primary = scene.subjects.iter().find(|subject| subject.primary != Some(false));
        let Some(primary) =
            primary.filter(|subject| subject.addresses.iter().any(|net| net.addr().is_ipv4()))
        else {
            return Ok(());
        };
        let way = self.ask(Question::to(METADATA)).await?;
        let what = match way {
            Ok(way) if scene.subject(way.link).is_some() => return Ok(()),
            Ok(way) => {
                let by = way.link.map_or_else(String::new, |link| scene.name_of(link));
                format!("requests for metadata leave by {by}, which is no ENI")
            }
            Err(refusal) => format!("requests for metadata go nowhere: {refusal}"),
        };
        let link = &primary.link.name;
        let via = scene.gateway(primary, Family::V4);
        let via = via.map_or_else(String::new, |via| format!(" via {via}"));
        let remedy = vec![format!("ip route replace {METADATA}/32{via} dev {link}")];
        let what = format!("{what}; enid itself asks by the link of the primary ENI");
        let finding = primary.finding(FindingId::MetadataWay, Severity::Risk, what);
        self.findings.push(Finding { address: Some(METADATA), remedy, ..finding });
        Ok(())
    }
}

impl Cause {
    /// Adds a way to those with the same cause, else it is a cause of its own.
    fn add(causes: &mut Vec<Self>, finding: Finding, own: IpAddr, Place { name, .. }: &Place) {
        let same = causes.iter_mut().find(|other| {
            let address = finding.address;
            finding == Finding { address, more_addresses: 0, ..other.finding.clone() }
        });
        let Some(same) = same else {
            causes.push(Self { finding, places: vec![name.clone()], last: own });
            return;
        };
        if same.finding.address == Some(own) {
            same.places.push(name.clone());
        } else if same.last != own {
            same.finding.more_addresses += 1;
        }
        same.last = own;
    }

    fn told(self) -> Finding {
        let mut named = self.places;
        let last = match named.len().saturating_sub(NAMED) {
            0 => named.pop().unwrap_or_default(),
            more => {
                named.truncate(NAMED);
                format!("{more} more")
            }
        };
        let and = if named.is_empty() { "" } else { " and " };
        let places = format!("{}{and}{last}", named.join(", "));
        let what = self.finding.what.replacen(PLACES, &places, 1);
        Finding { what, ..self.finding }
    }
}

/// Whether a rule is for what goes from here to there and comes in by this link, `lo` for what is sent.
fn takes(rule: &Rule, from: IpAddr, to: IpAddr, iif: &str) -> bool {
    rule.family == Family::of(from)
        && rule.source.is_none_or(|net| net.contains(&from))
        && rule.destination.is_none_or(|net| net.contains(&to))
        && rule.iif.as_deref().is_none_or(|its| its == iif)
        && rule.oif.is_none()
        && rule.mark.is_none()
}

/// Whether a rule leads everything to the kernel's own addresses, wherever it stands.
fn is_local(rule: &Rule, family: Family) -> bool {
    let all = Rule::lookup(family, 0, TableId::LOCAL);
    Rule { priority: all.priority, ..rule.clone() } == all
}

/// What switches `arp_filter` off on this link, where it is on.
fn arp_filters(subject: &Subject, settings: &mut Settings) -> Vec<String> {
    let on = ["all", &subject.link.name].into_iter().filter(|conf| {
        settings.get(Family::V4, conf, "arp_filter").is_some_and(|value| value != 0)
    });
    on.map(|conf| format!("sysctl -w net.ipv4.conf.{conf}.arp_filter=0")).collect()
}
