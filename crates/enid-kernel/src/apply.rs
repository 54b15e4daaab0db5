//! Takes steps, many to a datagram, and tells what became of each.

use enid_core::object::{LinkIndex, Object, RouteKind, Rule, RuleAction, Setting, TableId};
use enid_core::plan::Step;
use nix::errno::Errno;
use rtnetlink::packet_core::NetlinkMessage;

use crate::connection::{Answer, Refusal, Requests};
use crate::error::Error;
use crate::wire::Message;
use crate::wire::write::{Way, way};
use crate::{snapshot, sysctl};

/// Steps per datagram. More are not faster, and the answers must fit into the receive buffer.
const BATCH: usize = 128;

/// What became of a step that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel has done it.
    Changed,
    /// There was nothing to do.
    AlreadySo,
}

/// Takes all steps in their order.
pub(crate) async fn all(requests: &mut Requests, steps: &[Step]) -> Vec<Result<Outcome, Error>> {
    let mut outcomes = Vec::with_capacity(steps.len());
    let mut batch = Batch::default();
    for step in steps {
        let way = way(step);
        let turn = batch.steps.last().is_some_and(|last| turns(last, step));
        if batch.asks.len() == BATCH || turn || !matches!(way, Way::Request(_)) {
            batch.send(requests, &mut outcomes).await;
        }
        if outcomes.iter().any(Result::is_err) && rests_on_a_failure(step, steps, &outcomes) {
            batch.send(requests, &mut outcomes).await;
            outcomes.push(Err(Error::NotPossible {
                why: "what it rests on could not be made; what is there stays",
            }));
            continue;
        }
        match way {
            Way::Request(ask) => {
                batch.steps.push(step);
                batch.asks.push(ask);
            }
            Way::Sysctl(link, sysctl, value) => outcomes.push(sysctl::set(link, sysctl, value)),
            Way::Not(why) => outcomes.push(Err(Error::NotPossible { why })),
        }
    }
    batch.send(requests, &mut outcomes).await;
    outcomes
}

/// Whether what became of the steps so far must be known before this one: nothing is broken, and
/// nothing is sent into a new table, before what it rests on is made.
fn turns(last: &Step, step: &Step) -> bool {
    let rule = |step: &Step| matches!(step, Step::Create(Object::Rule(_)));
    let delete = |step: &Step| matches!(step, Step::Delete(_));
    (delete(step) && !delete(last)) || (rule(step) && !rule(last))
}

/// Whether something must not be taken away, because what was to take its place failed, or must not
/// be sent into a table that lacks its way out.
fn rests_on_a_failure(step: &Step, steps: &[Step], outcomes: &[Result<Outcome, Error>]) -> bool {
    let failed = || {
        let outcomes = steps.iter().zip(outcomes);
        // An address that is there was made, by whomever.
        let real = |step: &Step, error: &Error| {
            !matches!(step, Step::Create(Object::Address(_)))
                || !matches!(error, Error::Exists { .. })
        };
        outcomes.filter_map(move |(step, outcome)| {
            outcome.as_ref().err().filter(|error| real(step, error)).map(|_| step)
        })
    };
    let no_way_out = |table: TableId| {
        failed().any(|step| match step {
            Step::Create(Object::Route(route))
            | Step::Replace { new: Object::Route(route), .. } => {
                let default = route.is_default() && route.kind == RouteKind::Unicast;
                default && route.table == table
            }
            Step::Set { .. } | Step::Create(_) | Step::Replace { .. } | Step::Delete(_) => false,
        })
    };
    let looks_into = |rule: &Rule| match rule.action {
        RuleAction::Lookup(table) => Some(table),
        RuleAction::Other(_) => None,
    };
    match step {
        Step::Create(Object::Rule(rule)) => looks_into(rule).is_some_and(no_way_out),
        Step::Delete(Object::Address(old)) => failed().any(|step| {
            matches!(step, Step::Create(Object::Address(new)) if new.address == old.address)
        }),
        Step::Delete(Object::Rule(old)) => steps.iter().any(|step| {
            matches!(step, Step::Create(Object::Rule(new)) if stands_in(new, old)
                && (failed().any(|failed| failed == step) || looks_into(new).is_some_and(no_way_out)))
        }),
        Step::Delete(Object::Route(old)) => failed().any(|step| {
            matches!(step, Step::Delete(Object::Rule(rule)) if looks_into(rule) == Some(old.table))
        }),
        Step::Set { .. } | Step::Create(_) | Step::Replace { .. } => false,
    }
}

/// Whether a rule catches packets that another one catches, too.
fn stands_in(new: &Rule, old: &Rule) -> bool {
    new.family == old.family
        && match (new.source, old.source) {
            (Some(new), Some(old)) => new.contains(&old) || old.contains(&new),
            (None, None) => new.oif == old.oif || new.action == old.action,
            (Some(_), None) | (None, Some(_)) => false,
        }
}

/// Requests that wait to be sent together, and the steps that they are for.
#[derive(Default)]
struct Batch<'a> {
    steps: Vec<&'a Step>,
    asks: Vec<NetlinkMessage<Message>>,
}

impl Batch<'_> {
    async fn send(&mut self, requests: &mut Requests, outcomes: &mut Vec<Result<Outcome, Error>>) {
        if self.asks.is_empty() {
            return;
        }
        let answers = requests.batch(std::mem::take(&mut self.asks)).await;
        for (step, answer) in self.steps.drain(..).zip(answers) {
            let mut outcome = judge(step, answer);
            if let Step::Set { link, to: Some(Setting::AlternativeName(name)), .. } = step
                && matches!(&outcome, Err(Error::Refused { errno, .. }) if *errno == Errno::EEXIST as i32)
                && has_name(requests, *link, name).await
            {
                outcome = Ok(Outcome::AlreadySo);
            }
            outcomes.push(outcome);
        }
    }
}

/// Whether the name that exists is this link's; only a look can tell.
async fn has_name(requests: &mut Requests, link: LinkIndex, name: &String) -> bool {
    let links = snapshot::links(requests).await.unwrap_or_default();
    links.iter().any(|seen| seen.index == link && seen.alternative_names.contains(name))
}

/// What the kernel's answer to this step comes to.
fn judge(step: &Step, answer: Answer) -> Result<Outcome, Error> {
    let refusal = match answer {
        Ok(()) => return Ok(Outcome::Changed),
        Err(refusal) => refusal,
    };
    let errno = match &refusal {
        Refusal::Refused { errno, .. } => Errno::from_raw(*errno),
        Refusal::Lost(_) => return Err(refusal.during(tried(step))),
    };
    if already_so(step, errno) {
        return Ok(Outcome::AlreadySo);
    }
    match (step, refusal) {
        // For addresses and routes the protocol is no part of what makes two of them the same, so
        // what is there may be somebody else's.
        (
            Step::Create(object @ (Object::Address(_) | Object::Route(_))),
            Refusal::Refused { message, .. },
        ) if errno == Errno::EEXIST => {
            Err(Error::Exists { object: Box::new(object.clone()), message })
        }
        (_, refusal) => Err(refusal.during(tried(step))),
    }
}

/// Whether the kernel refused because it is already as the step wants it.
fn already_so(step: &Step, errno: Errno) -> bool {
    let gone = matches!(
        errno,
        Errno::ESRCH | Errno::ENOENT | Errno::EADDRNOTAVAIL | Errno::ENODEV | Errno::ENXIO
    );
    match step {
        Step::Delete(_) | Step::Set { to: None, .. } => gone,
        // For rules it is: only one that is equal, its protocol included, is in the way.
        Step::Create(Object::Rule(_)) => errno == Errno::EEXIST,
        Step::Create(Object::Address(_) | Object::Route(_))
        | Step::Replace { .. }
        | Step::Set { to: Some(_), .. } => false,
    }
}

const fn tried(step: &Step) -> &'static str {
    match step {
        Step::Create(Object::Address(_)) => "adding an address",
        Step::Create(Object::Route(_)) => "adding a route",
        Step::Create(Object::Rule(_)) => "adding a rule",
        Step::Replace { .. } => "replacing a route",
        Step::Delete(Object::Address(_)) => "deleting an address",
        Step::Delete(Object::Route(_)) => "deleting a route",
        Step::Delete(Object::Rule(_)) => "deleting a rule",
        Step::Set { to: Some(Setting::Up), .. } => "setting a link up",
        Step::Set { to: Some(Setting::Mtu(_)), .. } => "setting a link's MTU",
        Step::Set { to: Some(Setting::Group(_)), .. } => "setting a link's group",
        Step::Set { to: Some(Setting::AlternativeName(_)), .. } => "naming a link",
        Step::Set { to: Some(Setting::Sysctl(..)), .. } => "setting a link's sysctl",
        Step::Set { to: None, .. } => "taking a name from a link",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enid_core::object::{Address, Family, Priority, Route};

    fn address(link: u32) -> Object {
        Object::Address(Address {
            link: LinkIndex(link),
            address: "10.0.0.9".parse().unwrap(),
            prefix_length: 32,
            prefix_route: false,
            preferred: true,
        })
    }

    fn rule(source: &str, table: u32) -> Object {
        Object::Rule(Rule {
            family: Family::V4,
            priority: Priority(20_020),
            source: Some(source.parse().unwrap()),
            destination: None,
            iif: None,
            oif: None,
            mark: None,
            action: RuleAction::Lookup(TableId(table)),
            suppress_prefix_length: None,
            suppress_group: None,
        })
    }

    fn default(table: u32) -> Object {
        Object::Route(Route {
            table: TableId(table),
            destination: "0.0.0.0/0".parse().unwrap(),
            kind: RouteKind::Unicast,
            gateway: Some("10.0.0.1".parse().unwrap()),
            link: Some(LinkIndex(2)),
            on_link: false,
            source: None,
            metric: 0,
        })
    }

    fn refused() -> Result<Outcome, Error> {
        Err(Error::Refused { tried: "trying", errno: 22, message: None })
    }

    /// Which of the steps are not taken when the first one fails.
    fn waiting(steps: &[Step]) -> Vec<bool> {
        let mut outcomes = vec![refused()];
        for step in &steps[1..] {
            let rests = rests_on_a_failure(step, steps, &outcomes);
            outcomes.push(if rests { refused() } else { Ok(Outcome::Changed) });
        }
        outcomes[1..].iter().map(Result::is_err).collect()
    }

    #[test]
    fn an_address_that_could_not_move_stays() {
        let (old, new) = (Step::Delete(address(2)), Step::Create(address(3)));
        assert_eq!(waiting(&[new.clone(), old.clone()]), [true]);
        let there = || Err(Error::Exists { object: Box::new(address(3)), message: None });
        assert!(!rests_on_a_failure(&old, &[new, old.clone()], &[there()]));
    }

    #[test]
    fn a_rule_stays_with_its_table_until_the_new_one_is_there_and_others_go() {
        let steps = [
            Step::Create(rule("10.0.0.0/25", 20_001)),
            Step::Delete(rule("10.0.0.0/24", 20_000)),
            Step::Delete(rule("10.9.0.0/24", 20_009)),
            Step::Delete(default(20_000)),
            Step::Delete(default(20_009)),
        ];
        assert_eq!(waiting(&steps), [true, false, true, false]);
    }

    #[test]
    fn nothing_is_sent_into_a_table_without_a_way_out() {
        let steps = [
            Step::Create(default(20_000)),
            Step::Create(rule("10.0.0.0/24", 20_000)),
            Step::Create(rule("10.0.1.0/24", 20_001)),
            Step::Delete(rule("10.0.0.0/24", 30_000)),
        ];
        assert_eq!(waiting(&steps), [true, false, true]);
    }
}
