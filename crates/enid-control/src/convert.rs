//! From core's report to the wire: link numbers become names, points in time become spans.

use std::time::Duration;

use enid_core::choice::Prefixes;
use enid_core::ledger::Pause;
use enid_core::object::{LinkIndex, Mac, Object};
use enid_core::plan::{Planned, Step};
use enid_core::report::{self, EniReport, Hold, Notice, Report, Waiting};
use enid_core::time::Instant;
use enid_core::why::why;

use crate::SCHEMA;
use crate::plan::{PlannedStep, StepKind};
use crate::refused::Refused;
use crate::status::{
    Address, AddressState, Cidr, Departure, Eni, EniState, HoldKind, Kept, KeptAddress, LastError,
    Leaving, Metadata, Origin, Pass, Prefix, PrefixMode, Role, Status, Stop, StopKind, Verdict,
};

/// What the daemon knows of itself beside the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Daemon {
    /// Its version.
    pub version: String,
    /// Since when the verdict has been what it is.
    pub since: Instant,
    /// How it stands with the metadata service.
    pub metadata: Metadata,
    /// The last pass.
    pub last_pass: Option<Pass>,
    /// The last error.
    pub last_error: Option<LastError>,
}

impl Status {
    /// The status at `now`; `name_of` gives a link's current name.
    #[must_use]
    pub fn new(
        report: &Report,
        daemon: Daemon,
        now: Instant,
        name_of: &dyn Fn(LinkIndex) -> String,
    ) -> Self {
        Self {
            schema: SCHEMA,
            version: daemon.version,
            verdict: report.verdict.into(),
            since_seconds: (now - daemon.since).as_secs(),
            metadata: daemon.metadata,
            last_pass: daemon.last_pass,
            last_error: daemon.last_error,
            enis: report.enis.iter().map(|eni| Eni::new(eni, now, name_of)).collect(),
        }
    }
}

impl Eni {
    /// One ENI of the report at `now`; `name_of` gives a link's current name.
    #[must_use]
    pub fn new(eni: &EniReport, now: Instant, name_of: &dyn Fn(LinkIndex) -> String) -> Self {
        let (state, reason) = state(&eni.state);
        Self {
            mac: eni.mac.to_string(),
            id: eni.id.as_ref().map(ToString::to_string),
            link: eni.link.as_ref().map(|(_, name)| name.clone()),
            primary: eni.primary,
            card: eni.place.map(|(card, _)| card),
            device: eni.place.map(|(_, device)| device),
            table: eni.table.map(|table| table.0),
            subnets: eni.subnets.clone(),
            state,
            reason: reason.map(|hold| held(hold, now)),
            hold: reason.map(|hold| ending(hold, now)),
            addresses: eni
                .addresses
                .iter()
                .map(|address| self::address(address, name_of))
                .collect(),
            kept: eni.kept.iter().map(kept).collect(),
            prefixes: eni.prefixes.iter().map(prefix).collect(),
            cidrs: eni
                .cidrs
                .iter()
                .map(|cidr| Cidr { cidr: cidr.cidr, leaving: (&cidr.leaving).into() })
                .collect(),
            sources: eni.sources.clone(),
            gateways: eni.gateways.clone(),
            read_seconds: eni.read.map(|read| (now - read).as_secs()),
            waiting: eni
                .waiting
                .iter()
                .map(|waiting| self::waiting(waiting, now, name_of))
                .collect(),
            notices: eni.notices.iter().map(|notice| self::notice(notice, name_of)).collect(),
        }
    }
}

impl From<report::Verdict> for Verdict {
    fn from(verdict: report::Verdict) -> Self {
        match verdict {
            report::Verdict::Converged => Self::Converged,
            report::Verdict::Waiting => Self::Waiting,
            report::Verdict::NotYet => Self::NotYet,
        }
    }
}

impl From<&report::Leaving> for Leaving {
    fn from(leaving: &report::Leaving) -> Self {
        let (cause, moved_to) = match leaving.cause {
            report::Departure::Unassigned => (Departure::Unassigned, None),
            report::Departure::Moved(to) => (Departure::Moved, Some(to.to_string())),
            report::Departure::Dropped => (Departure::Dropped, None),
        };
        let number = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let stops: Vec<Stop> = leaving.stops.iter().map(Into::into).collect();
        Self {
            cause,
            moved_to,
            confirmations: leaving.confirmations,
            needed: leaving.needed,
            lacking_seconds: leaving.lacking.as_secs(),
            grace_seconds: leaving.grace.as_secs(),
            mass: leaving.mass.is_some(),
            mass_going: leaving.mass.map(|mass| number(mass.going)),
            mass_of: leaving.mass.map(|mass| number(mass.of)),
            paused: stops.iter().any(|stop| stop.kind != StopKind::Unconfirmed),
            stops,
            proven: leaving.proven,
        }
    }
}

impl From<&report::Stop> for Stop {
    fn from(stop: &report::Stop) -> Self {
        let (kind, keys) = match stop {
            report::Stop::Failed(_) => (StopKind::Failed, &[][..]),
            report::Stop::Unlisted => (StopKind::Unlisted, &[][..]),
            report::Stop::Identity(keys) => (StopKind::Identity, &keys[..]),
            report::Stop::Unread(keys) => (StopKind::Unread, &keys[..]),
            report::Stop::Unconfirmed => (StopKind::Unconfirmed, &[][..]),
        };
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        Self { kind, keys, text: stop.to_string() }
    }
}

impl PlannedStep {
    /// A step of a plan that goes with this report; `name_of` gives a link's current name.
    #[must_use]
    pub fn of(planned: &Planned, report: &Report, name_of: &dyn Fn(LinkIndex) -> String) -> Self {
        let eni = planned.mac.map(|mac| {
            let known = report.enis.iter().find(|eni| eni.mac == mac);
            match known.and_then(|eni| eni.id.as_ref()) {
                Some(id) => id.to_string(),
                None => mac.to_string(),
            }
        });
        let reason = why(&planned.step, report);
        Self::new(StepKind::from(&planned.step), planned.step.command(name_of), eni, reason)
    }
}

/// The ENI that the operator means by its id, its MAC address or its link's current name. A MAC
/// address in `also` (those on hold, say) is found even where the report does not have it.
pub fn find(report: &Report, also: &[Mac], name: &str) -> Result<Mac, Refused> {
    let mac = name.parse::<Mac>().ok();
    let named = report.enis.iter().find(|eni| {
        mac == Some(eni.mac)
            || eni.id.as_ref().is_some_and(|id| id.0 == name)
            || eni.link.as_ref().is_some_and(|(_, link)| link == name)
    });
    match (named, mac) {
        (Some(eni), _) => Ok(eni.mac),
        (None, Some(mac)) if also.contains(&mac) => Ok(mac),
        (None, _) => Err(Refused::NoSuchEni {
            eni: name.to_owned(),
            known: report.enis.iter().map(label).collect(),
        }),
    }
}

/// An ENI's id, else its MAC address, with its link's name in brackets.
#[must_use]
pub fn label(eni: &EniReport) -> String {
    let name = match &eni.id {
        Some(id) => id.to_string(),
        None => eni.mac.to_string(),
    };
    match &eni.link {
        Some((_, link)) => format!("{name} ({link})"),
        None => name,
    }
}

fn state(state: &report::EniState) -> (EniState, Option<&Hold>) {
    match state {
        report::EniState::Managed => (EniState::Managed, None),
        report::EniState::Pending => (EniState::Pending, None),
        report::EniState::Held(hold) => (EniState::Held, Some(hold)),
        report::EniState::NoLink => (EniState::NoLink, None),
    }
}

/// Core's words, with the time that is left.
fn held(hold: &Hold, now: Instant) -> String {
    match hold {
        Hold::Operator(Pause { until: Some(until), .. }) => {
            let left = Duration::from_secs(seconds_left(*until - now));
            format!("{hold}, or {} from now", humantime::format_duration(left))
        }
        Hold::Operator(Pause { until: None, .. })
        | Hold::Released
        | Hold::Neighbour(_)
        | Hold::TableTaken { .. }
        | Hold::SeveralLinks
        | Hold::NotListed
        | Hold::Configuration
        | Hold::Contradiction(_) => hold.to_string(),
    }
}

fn ending(hold: &Hold, now: Instant) -> crate::status::Hold {
    let (kind, seconds_left) = match hold {
        Hold::Operator(pause) => {
            (HoldKind::Operator, pause.until.map(|until| seconds_left(until - now)))
        }
        Hold::Released => (HoldKind::Released, None),
        Hold::Neighbour(_)
        | Hold::TableTaken { .. }
        | Hold::SeveralLinks
        | Hold::NotListed
        | Hold::Configuration
        | Hold::Contradiction(_) => (HoldKind::Cause, None),
    };
    crate::status::Hold { kind, seconds_left }
}

fn prefix(prefix: &report::PrefixReport) -> Prefix {
    Prefix {
        prefix: prefix.prefix,
        mode: match prefix.mode {
            Prefixes::Rules => PrefixMode::Rules,
            Prefixes::Local => PrefixMode::Local,
            Prefixes::Ignore => PrefixMode::Ignore,
        },
        leaving: prefix.leaving.as_ref().map(Into::into),
    }
}

fn kept(kept: &report::KeptAddress) -> KeptAddress {
    let (why, prefix) = match kept.why {
        report::Kept::Foreign => (Kept::Foreign, None),
        report::Kept::Dynamic => (Kept::Dynamic, None),
        report::Kept::LinkLocal => (Kept::LinkLocal, None),
        report::Kept::Primary => (Kept::Primary, None),
        report::Kept::Ignored => (Kept::Ignored, None),
        report::Kept::InPrefix(prefix) => (Kept::InPrefix, Some(prefix)),
    };
    KeptAddress { address: kept.address, why, prefix }
}

fn address(address: &report::AddressReport, name_of: &dyn Fn(LinkIndex) -> String) -> Address {
    let (state, leaving, elsewhere) = match &address.state {
        report::AddressState::Ours => (AddressState::Ours, None, None),
        report::AddressState::Theirs => (AddressState::Theirs, None, None),
        report::AddressState::TakenOver => (AddressState::TakenOver, None, None),
        report::AddressState::Adding => (AddressState::Adding, None, None),
        report::AddressState::Missing => (AddressState::Missing, None, None),
        report::AddressState::Leaving(how_far) => {
            (AddressState::Leaving, Some(how_far.into()), None)
        }
        report::AddressState::Ignored => (AddressState::Ignored, None, None),
        report::AddressState::Elsewhere { link } => {
            (AddressState::Elsewhere, None, Some(name_of(*link)))
        }
    };
    Address {
        address: address.address,
        role: match address.role {
            report::Role::Primary => Role::Primary,
            report::Role::Secondary => Role::Secondary,
        },
        state,
        leaving,
        elsewhere,
        origin: address.origin.map(|origin| match origin {
            report::Origin::Enid => Origin::Enid,
            report::Origin::Dynamic => Origin::Dynamic,
            report::Origin::Foreign => Origin::Foreign,
        }),
        public: address.public,
    }
}

/// Core's words, except where they lack a link's name or a span of time.
#[must_use]
pub fn waiting(waiting: &Waiting, now: Instant, name_of: &dyn Fn(LinkIndex) -> String) -> String {
    if let Waiting::Fight { step, until, contender } = waiting {
        format!(
            "{}; done again in {} s",
            report::fought_over(step, contender.as_ref(), name_of),
            seconds_left(*until - now)
        )
    } else if let Waiting::Udev { until } = waiting {
        format!("{waiting} (waited for {} s more at most)", seconds_left(*until - now))
    } else {
        waiting.to_string()
    }
}

/// Core's words, except where they lack a link's name.
#[must_use]
pub fn notice(notice: &Notice, name_of: &dyn Fn(LinkIndex) -> String) -> String {
    if let Notice::Conflict { wanted } = notice {
        format!(
            "somebody else's object stands in the place of what `{}` makes",
            made_by(wanted, name_of)
        )
    } else if let Notice::AlsoElsewhere { address, link } = notice {
        format!(
            "{address} is here, but {} has it or a route to it, too: take it from one of the two",
            name_of(*link)
        )
    } else {
        notice.to_string()
    }
}

/// Rounded up, so that what is still waited for never reads "0 s".
fn seconds_left(left: Duration) -> u64 {
    left.as_secs() + u64::from(left.subsec_nanos() > 0)
}

/// The command that makes an object.
fn made_by(object: &Object, name_of: &dyn Fn(LinkIndex) -> String) -> String {
    Step::Create(object.clone()).command(name_of)
}

#[cfg(test)]
mod tests {
    use enid_core::memory::Contender;
    use enid_core::object::{self, EniId, Family, Rule, TableId};
    use enid_core::report::AddressReport;

    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);

    fn name_of(link: LinkIndex) -> String {
        format!("veth{}", link.0)
    }

    fn eni() -> EniReport {
        EniReport {
            mac: MAC,
            id: Some(EniId("eni-1".to_owned())),
            link: Some((LinkIndex(3), "ens6".to_owned())),
            place: Some((0, 1)),
            table: Some(TableId(20_001)),
            subnets: vec!["10.0.1.0/24".parse().unwrap()],
            primary: false,
            state: report::EniState::Held(Hold::SeveralLinks),
            addresses: vec![AddressReport {
                address: "10.0.1.9".parse().unwrap(),
                role: report::Role::Secondary,
                state: report::AddressState::Elsewhere { link: LinkIndex(9) },
                origin: None,
                public: None,
            }],
            kept: Vec::new(),
            prefixes: Vec::new(),
            cidrs: Vec::new(),
            sources: Vec::new(),
            gateways: Vec::new(),
            read: None,
            waiting: vec![Waiting::Fight {
                step: Box::new(Step::Create(Object::Rule(Rule {
                    source: Some("10.0.1.0/24".parse().unwrap()),
                    iif: Some("lo".to_owned()),
                    ..Rule::lookup(Family::V4, 20_020, TableId(20_001))
                }))),
                until: Instant(Duration::from_millis(12_500)),
                contender: Some(Contender::Process { id: 7, name: Some("networkd".to_owned()) }),
            }],
            notices: vec![Notice::Conflict {
                wanted: Object::Address(object::Address {
                    link: LinkIndex(3),
                    address: "10.0.1.9".parse().unwrap(),
                    prefix_length: 32,
                    prefix_route: false,
                    preferred: true,
                }),
            }],
        }
    }

    #[test]
    fn numbers_of_links_and_points_in_time_do_not_reach_the_operator() {
        let wire = Eni::new(&eni(), Instant(Duration::from_secs(10)), &name_of);
        assert_eq!(wire.addresses[0].elsewhere.as_deref(), Some("veth9"));
        assert_eq!(
            wire.waiting,
            [
                "networkd (process 7) keeps undoing `ip -4 rule add pref 20020 from 10.0.1.0/24 iif lo lookup 20001`: make it leave what has protocol 233 (enid) alone; done again in 3 s"
            ]
        );
        assert_eq!(
            wire.notices,
            [
                "somebody else's object stands in the place of what `ip -4 address add 10.0.1.9/32 dev veth3` makes"
            ]
        );
        assert_eq!(wire.reason.as_deref(), Some("several links have this MAC address"));
    }

    #[test]
    fn an_eni_is_found_by_each_of_its_names() {
        let report = Report { verdict: report::Verdict::Waiting, enis: vec![eni()] };
        for name in ["eni-1", "ens6", "02:00:00:00:00:07"] {
            assert_eq!(find(&report, &[], name), Ok(MAC), "{name}");
        }
        let gone = Mac([2, 0, 0, 0, 0, 8]);
        assert_eq!(find(&report, &[gone], "02:00:00:00:00:08"), Ok(gone));
        let refused = find(&report, &[gone], "ens9").unwrap_err();
        assert_eq!(
            refused.to_string(),
            "no ENI here has the id, MAC address or link name \"ens9\"; there are: eni-1 (ens6)"
        );
    }
}
