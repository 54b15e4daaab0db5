//! What each object and setting is for, in words that an operator reads beside it.

use crate::object::{
    Address, Object, Route, RouteKind, Rule, RuleAction, Setting, Sysctl, TableId,
};
use crate::plan::Step;
use crate::report::{AddressState, Departure, Leaving, Report};

/// Why a step is taken, by the report that stands beside its plan.
#[must_use]
pub fn why(step: &Step, report: &Report) -> String {
    match step {
        Step::Create(Object::Address(address)) => granted(address),
        Step::Delete(Object::Address(address)) => leaves(address, report),
        Step::Create(object) => purpose(object).to_owned(),
        Step::Replace { new, .. } => format!("{}; it was another one", purpose(new)),
        Step::Delete(object @ (Object::Route(_) | Object::Rule(_) | Object::Marking(_))) => {
            needless(object).to_owned()
        }
        Step::Set { from, to, .. } => setting(from.as_ref(), to.as_ref()).to_owned(),
    }
}

/// Why an object is not wished for; of addresses [`departed`] knows more.
pub(crate) const fn needless(object: &Object) -> &'static str {
    match object {
        Object::Address(_) => "its ENI was released",
        Object::Route(_) => "nothing leads to it any more",
        Object::Rule(_) => "nothing has this source any more",
        Object::Marking(_) => "no ports are published by this ENI",
    }
}

/// What an object is for.
#[must_use]
pub fn purpose(object: &Object) -> &'static str {
    match object {
        Object::Address(_) => "metadata grants it",
        Object::Route(route) => route_purpose(route),
        Object::Rule(rule) => rule_purpose(rule),
        Object::Marking(_) => {
            "answers of containers behind published ports leave by the link that was asked"
        }
    }
}

pub(crate) fn granted(address: &Address) -> String {
    if address.preferred {
        "metadata grants it".to_owned()
    } else {
        "metadata grants it; sockets without a source do not take it".to_owned()
    }
}

fn leaves(address: &Address, report: &Report) -> String {
    let on =
        |link: &Option<(_, String)>| link.as_ref().is_some_and(|(index, _)| *index == address.link);
    let eni = report.enis.iter().find(|eni| on(&eni.link));
    let mut known = eni.into_iter().flat_map(|eni| &eni.addresses);
    let known = known.find(|known| known.address == address.address);
    match known.map(|known| &known.state) {
        Some(AddressState::Leaving(leaving)) => departed(leaving),
        Some(_) | None => needless(&Object::Address(*address)).to_owned(),
    }
}

pub(crate) fn departed(leaving: &Leaving) -> String {
    match leaving.cause {
        Departure::Unassigned if leaving.proven => {
            "it is proven that metadata no longer grants it".to_owned()
        }
        Departure::Unassigned => "metadata no longer grants it".to_owned(),
        Departure::Moved(to) => format!("metadata grants it to {to} now"),
        Departure::Dropped => "the operator dropped it, and metadata lacks it".to_owned(),
    }
}

fn route_purpose(route: &Route) -> &'static str {
    match (route.kind, route.gateway) {
        (RouteKind::Unreachable, _) => {
            "what the table has no way for must not leave by another ENI"
        }
        (RouteKind::Local, _) => "every address of this delegated prefix is the host's",
        (RouteKind::Unicast, Some(_)) if route.destination.prefix_len() == 0 => {
            "everything else leaves by the ENI's own gateway"
        }
        (RouteKind::Unicast, Some(_)) => {
            "a network of the VPC, or one that main reaches by this ENI"
        }
        (RouteKind::Unicast, None) => "a network on the ENI's link",
        (RouteKind::Other(_), _) => "as in main",
    }
}

const fn rule_purpose(rule: &Rule) -> &'static str {
    let main = matches!(rule.action, RuleAction::Lookup(TableId::MAIN));
    if rule.oif.is_some() {
        "what is bound to the device leaves by it"
    } else if rule.mark.is_some() {
        "answers of published ports leave by the link that was asked"
    } else if main {
        "what main sends to links that are no ENIs (containers, VPNs) goes there"
    } else if rule.iif.is_none() {
        "what containers with addresses of the delegated prefix send leaves by this ENI"
    } else {
        "what is sent from these addresses leaves by this ENI"
    }
}

pub(crate) const fn setting(from: Option<&Setting>, to: Option<&Setting>) -> &'static str {
    match (from, to) {
        (_, Some(Setting::Up)) => "metadata lists the ENI",
        (_, Some(Setting::Mtu(_))) => "as the configuration says, by default as the primary ENI",
        (_, Some(Setting::Group(_))) => "rules tell ENIs from other links by their group",
        (_, Some(Setting::AlternativeName(_))) => "so that the ENI is found by its id and number",
        (_, Some(Setting::Sysctl(sysctl, _))) => match sysctl {
            Sysctl::AcceptRaDefaultRoute | Sysctl::AcceptRaPrefix => {
                "a router's word must not put routes of this ENI into main"
            }
            Sysctl::ArpIgnore | Sysctl::ArpAnnounce => {
                "the configuration asks that each ENI answers for its own addresses only"
            }
            Sysctl::SourceValidMark => "the reverse path is judged with the mark of the connection",
        },
        (Some(_), None) | (None, None) => "it is no name of this ENI any more",
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::object::{EniId, LinkIndex, Mac};
    use crate::report::{AddressReport, EniReport, EniState, Role, Verdict};

    fn address(ip: IpAddr) -> Address {
        let (prefix_length, link) = (32, LinkIndex(3));
        Address { link, address: ip, prefix_length, prefix_route: false, preferred: true }
    }

    #[test]
    fn a_removal_without_a_departure_is_a_release() {
        let ip: IpAddr = "10.0.1.9".parse().unwrap();
        let known = AddressReport {
            address: ip,
            role: Role::Secondary,
            state: AddressState::Ours,
            origin: None,
            public: None,
        };
        let eni = EniReport {
            mac: Mac([2, 0, 0, 0, 0, 7]),
            id: Some(EniId("eni-1".to_owned())),
            link: Some((LinkIndex(3), "ens6".to_owned())),
            place: None,
            table: None,
            subnets: Vec::new(),
            primary: false,
            state: EniState::Managed,
            addresses: vec![known],
            kept: Vec::new(),
            prefixes: Vec::new(),
            cidrs: Vec::new(),
            sources: Vec::new(),
            gateways: Vec::new(),
            read: None,
            waiting: Vec::new(),
            notices: Vec::new(),
        };
        let report = Report { verdict: Verdict::NotYet, enis: vec![eni] };
        let step = Step::Delete(Object::Address(address(ip)));
        assert_eq!(why(&step, &report), "its ENI was released");
        let step = Step::Create(Object::Address(address(ip)));
        assert_eq!(why(&step, &report), "metadata grants it");
    }
}
