//! Takes steps, many to a datagram, and tells what became of each.

use enid_core::object::{LinkIndex, Object, Setting};
use enid_core::plan::Step;
use enid_core::rest;
use nix::errno::Errno;
use rtnetlink::packet_core::NetlinkMessage;

use crate::connection::{Answer, Refusal, Requests};
use crate::error::Error;
use crate::marking::Markings;
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
pub(crate) async fn all(
    requests: &mut Requests,
    markings: &mut Markings,
    steps: &[Step],
) -> Vec<Result<Outcome, Error>> {
    let mut outcomes = Vec::with_capacity(steps.len());
    let mut batch = Batch::default();
    for step in steps {
        let way = way(step);
        #[cfg(feature = "faults")]
        if crate::faults::wanted() {
            batch.send(requests, &mut outcomes).await;
        }
        let turn = batch.steps.last().is_some_and(|last| rest::turns(last, step));
        if batch.asks.len() == BATCH || turn || !matches!(way, Way::Request(_)) {
            batch.send(requests, &mut outcomes).await;
        }
        if outcomes.iter().any(Result::is_err)
            && rest::on_failure(step, steps, &failed(steps, &outcomes))
        {
            batch.send(requests, &mut outcomes).await;
            outcomes.push(Err(Error::Dependent));
            continue;
        }
        #[cfg(feature = "faults")]
        if let Some(errno) = crate::faults::before(step) {
            outcomes.push(judge(step, Err(Refusal::Refused { errno, message: None })));
            continue;
        }
        match way {
            Way::Request(ask) => {
                batch.steps.push(step);
                batch.asks.push(ask);
            }
            Way::Sysctl(link, sysctl, value) => outcomes.push(sysctl::set(link, sysctl, value)),
            Way::Mark(marking) => outcomes.push(markings.make(marking).await),
            Way::Unmark(marking) => outcomes.push(markings.delete(marking).await),
            Way::Not(why) => outcomes.push(Err(Error::NotPossible { why })),
        }
    }
    batch.send(requests, &mut outcomes).await;
    #[cfg(feature = "faults")]
    crate::faults::point("after the last step");
    outcomes
}

/// The steps that failed so far. An address that is there was made, by whomever.
fn failed<'a>(steps: &'a [Step], outcomes: &[Result<Outcome, Error>]) -> Vec<&'a Step> {
    let there = |step: &Step, error: &Error| {
        matches!((step, error), (Step::Create(Object::Address(_)), Error::Exists { .. }))
    };
    let outcomes = steps.iter().zip(outcomes);
    let failed =
        outcomes.filter(|(step, outcome)| outcome.as_ref().is_err_and(|error| !there(step, error)));
    failed.map(|(step, _)| step).collect()
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
        Step::Create(Object::Address(_) | Object::Route(_) | Object::Marking(_))
        | Step::Replace { .. }
        | Step::Set { to: Some(_), .. } => false,
    }
}

const fn tried(step: &Step) -> &'static str {
    match step {
        Step::Create(Object::Address(_)) => "adding an address",
        Step::Create(Object::Route(_)) => "adding a route",
        Step::Create(Object::Rule(_)) => "adding a rule",
        Step::Create(Object::Marking(_)) => "marking connections",
        Step::Replace { .. } => "replacing a route",
        Step::Delete(Object::Address(_)) => "deleting an address",
        Step::Delete(Object::Route(_)) => "deleting a route",
        Step::Delete(Object::Rule(_)) => "deleting a rule",
        Step::Delete(Object::Marking(_)) => "ending the marking of connections",
        Step::Set { to: Some(Setting::Up), .. } => "setting a link up",
        Step::Set { to: Some(Setting::Mtu(_)), .. } => "setting a link's MTU",
        Step::Set { to: Some(Setting::Group(_)), .. } => "setting a link's group",
        Step::Set { to: Some(Setting::AlternativeName(_)), .. } => "naming a link",
        Step::Set { to: Some(Setting::Sysctl(..)), .. } => "setting a link's sysctl",
        Step::Set { to: None, .. } => "taking a name from a link",
    }
}
