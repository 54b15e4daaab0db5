//! What must go on to hold while things change, step by step.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::lookup::{Lookup, Packet, View};
use crate::promise::Promise;
use crate::scene::{Eni, Scene};
use crate::state::{Family, State};

/// Whether all promises hold.
///
/// # Errors
/// The first that does not: the packet, what decided its way, and the state.
pub fn all_hold(promises: &[Promise], state: &State) -> Result<(), String> {
    let (with, without) = lookups(state);
    promises.iter().try_for_each(|promise| told(promise, promise.holds(&with, &without), state))
}

fn lookups(state: &State) -> (Lookup<'_>, Lookup<'_>) {
    (Lookup::new(state, View::All), Lookup::new(state, View::WithoutOurs))
}

fn told(promise: &Promise, held: Result<(), String>, state: &State) -> Result<(), String> {
    let family = Family::of(promise.packet.to);
    held.map_err(|error| format!("{error}\n{}", state.words(family)))
}

/// What must go on to hold, and what must hold from a first moment on.
pub struct Kept<'a> {
    /// As it was promised before and as it is promised now.
    held: Vec<(Option<&'a Promise>, &'a Promise)>,
    /// Of secondary addresses that are not there yet.
    new: Vec<(IpAddr, &'a Promise)>,
    /// As it was when it was last looked at.
    last: State,
}

impl<'a> Kept<'a> {
    /// What holds at first, as it was promised before or is promised now.
    #[must_use]
    pub fn of(before: &'a [Promise], now: &'a [Promise], scene: &Scene, state: State) -> Self {
        let (with, without) = lookups(&state);
        let old: BTreeMap<&Packet, &Promise> =
            before.iter().map(|promise| (&promise.packet, promise)).collect();
        let pairs = now.iter().map(|promise| (old.get(&promise.packet).copied(), promise));
        let held = |promise: &Promise| promise.holds(&with, &without).is_ok();
        // The kernel wants an ENI's first address before its table.
        let there: BTreeSet<IpAddr> = state.addresses.iter().map(|seen| seen.address).collect();
        let secondary = |from: &IpAddr| {
            let first = |eni: &Eni| eni.of(Family::of(*from)).next() == Some(*from);
            !there.contains(from) && !scene.enis.iter().any(first)
        };
        let from = |promise: &'a Promise| Some((promise.packet.from.filter(secondary)?, promise));
        let held = pairs.filter(|(old, new)| old.is_some_and(held) || held(new)).collect();
        let new = now.iter().filter_map(from).collect();
        Self { held, new, last: state }
    }

    /// Whether all of it holds after a step: as it was promised before, or as it is promised now.
    /// What the step did not touch is not looked at again.
    ///
    /// # Errors
    /// The first that does not: the packet, what decided its way, and the state.
    pub fn hold(&mut self, state: State) -> Result<(), String> {
        let last = std::mem::replace(&mut self.last, state);
        let state = &self.last;
        let touched: Vec<Family> =
            Family::ALL.into_iter().filter(|family| touches(&last, state, *family)).collect();
        let asked = |promise: &Promise| touched.contains(&Family::of(promise.packet.to));
        let (with, without) = lookups(state);
        for (old, new) in self.held.iter().filter(|(_, new)| asked(new)) {
            let holds = |promise: &Promise| promise.holds(&with, &without);
            if !old.is_some_and(|old| holds(old).is_ok()) {
                told(new, holds(new), state)?;
            }
        }
        let there: BTreeSet<IpAddr> = state.addresses.iter().map(|seen| seen.address).collect();
        let mut new = self.new.iter().filter(|(from, new)| asked(new) && there.contains(from));
        new.try_for_each(|(_, new)| told(new, new.holds(&with, &without), state))
    }
}

/// Whether packets of a family may go elsewhere than before.
fn touches(before: &State, now: &State, family: Family) -> bool {
    let addresses = |state: &State| {
        let all = state.addresses.iter().filter(|seen| Family::of(seen.address) == family);
        all.cloned().collect::<Vec<_>>()
    };
    let routes = |state: &State| {
        let all = state.routes.iter().filter(|seen| Family::of(seen.destination.addr()) == family);
        all.cloned().collect::<Vec<_>>()
    };
    let rules = |state: &State| {
        let all = state.rules.iter().filter(|rule| rule.family == family);
        all.cloned().collect::<Vec<_>>()
    };
    before.links != now.links
        || addresses(before) != addresses(now)
        || routes(before) != routes(now)
        || rules(before) != rules(now)
}
