//! One round of acting: what it changed, and which of its failures are anybody's concern.

use std::collections::BTreeSet;

use enid_core::object::{LinkIndex, Mac};
use enid_kernel::Error;

use super::Looked;
use crate::clock::now;
use crate::journal::{Said, name};

/// What one round brought.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// Steps that changed something.
    pub(super) changed: u64,
    /// Steps that failed.
    pub(super) failures: Vec<Failure>,
    /// Links that were set up.
    pub(super) raised: BTreeSet<LinkIndex>,
}

/// A step that failed.
#[derive(Debug)]
pub(super) struct Failure {
    /// The ENI that it was for.
    mac: Option<Mac>,
    /// What it says of others.
    kind: Kind,
    /// What went wrong, in words.
    pub(super) text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Its link was not there.
    NoLink,
    /// It was not tried, because another one failed.
    Dependent,
    /// Nothing.
    Own,
}

/// The failures that count after the next look.
#[derive(Debug)]
pub(super) struct Concerns {
    pub(super) failures: Vec<Failure>,
    /// A link changed under the plan: another try may well do it.
    pub(super) passing: bool,
}

impl Round {
    /// Says what failed where nothing else will be heard of this round.
    pub(super) fn say_failures(&self, said: &mut Said, looked: &Looked) {
        self.failures.iter().for_each(|failure| failure.say(said, looked));
    }

    /// The failures that count now that the next look has been taken.
    ///
    /// What was to be done for an ENI that went meanwhile is nobody's concern any more, and what
    /// only rests on that is not, either.
    pub(super) fn concerns(self, before: &Looked, now: &Looked) -> Concerns {
        let there = |index: LinkIndex| now.snapshot.links.iter().find(|link| link.index == index);
        let link = |mac: Mac| {
            let mut enis = before.decision.report.enis.iter();
            enis.find(|eni| eni.mac == mac).and_then(|eni| eni.link.as_ref())
        };
        let here = |failure: &Failure| {
            failure.mac.and_then(link).is_none_or(|(index, _)| there(*index).is_some())
        };
        let mut failures = self.failures;
        failures.retain(here);
        if failures.iter().all(|failure| failure.kind == Kind::Dependent) {
            failures.clear();
        }
        let was_up = |index: LinkIndex| {
            let up = before.snapshot.links.iter().any(|link| link.index == index && link.up);
            up || self.raised.contains(&index)
        };
        let changed = |(index, name): &(LinkIndex, String)| {
            there(*index).is_some_and(|link| link.name != *name || (was_up(*index) && !link.up))
        };
        let passing = failures.iter().any(|failure| {
            failure.kind == Kind::NoLink || failure.mac.and_then(link).is_some_and(changed)
        });
        Concerns { failures, passing }
    }
}

impl Failure {
    pub(super) fn new(mac: Option<Mac>, error: &Error, text: String) -> Self {
        let kind = if error.is_no_link() {
            Kind::NoLink
        } else if matches!(error, Error::Dependent) {
            Kind::Dependent
        } else {
            Kind::Own
        };
        Self { mac, kind, text }
    }

    pub(super) fn say(&self, said: &mut Said, looked: &Looked) {
        let mut enis = looked.decision.report.enis.iter();
        let eni = enis.find(|eni| Some(eni.mac) == self.mac).map(name);
        said.failed(now(), eni, &self.text, "");
    }
}
