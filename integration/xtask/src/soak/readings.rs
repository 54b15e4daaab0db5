//! What metadata has served of each ENI's addresses, and when a reading last showed one: the
//! measure of whether a removal was allowed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use vpc::imds::{Eni, Request};
use vpc::{EniId, Instance, Vpc};

/// The patience that the daemon is configured with, for addresses.
pub(super) const GRACE: Duration = Duration::from_secs(4);

/// The addresses of each attached ENI.
type View = BTreeMap<EniId, BTreeSet<IpAddr>>;

/// A list key that metadata tells wrongly: `local-ipv4s` or `ipv6s`.
type Key = (EniId, &'static str);

#[derive(Default)]
pub(super) struct Readings {
    /// What is served now.
    view: View,
    /// What was served before the last change, and when that change was.
    before: Option<(View, Instant, Instant)>,
    frozen: Option<View>,
    forged: BTreeMap<Key, BTreeSet<IpAddr>>,
    macs: BTreeMap<String, EniId>,
    /// So many faults make answers no good just now: who asked has perhaps not read them.
    pub(super) garbled: usize,
    shown: BTreeMap<(EniId, IpAddr), Instant>,
    /// All that was ever served.
    ever: BTreeSet<(EniId, IpAddr)>,
    lacking: BTreeMap<(EniId, IpAddr), Instant>,
    /// Requests of the daemon so far.
    pub(super) requests: u64,
}

/// The key that tells of an address.
pub(super) fn key(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "local-ipv4s" } else { "ipv6s" }
}

fn addresses(eni: &Eni) -> BTreeSet<IpAddr> {
    let v4 = eni.ipv4.iter().map(|address| IpAddr::V4(*address));
    v4.chain(eni.ipv6.iter().map(|address| IpAddr::V6(*address))).collect()
}

impl Readings {
    /// Takes in what was asked since the last time; said before the view changes, too.
    pub(super) fn absorb(&mut self, vpc: &Vpc, instance: &Instance) {
        for request in vpc.metadata().take_requests() {
            if request.instance.as_ref() == Some(&instance.id) {
                self.requests += 1;
                self.read(&request);
            }
        }
    }

    fn read(&mut self, request: &Request) {
        if request.status != Some(200) || self.garbled > 0 {
            return;
        }
        let path = request.path.trim_end_matches('/');
        let Some((rest, name)) = path.rsplit_once('/') else { return };
        let Some(eni) = rest.rsplit_once('/').and_then(|(_, mac)| self.macs.get(mac)) else {
            return;
        };
        for address in self.view.get(eni).into_iter().flatten() {
            // While the view changed, either may have been told.
            let told = self.before.as_ref().is_none_or(|(before, from, to)| {
                request.at > *to
                    || before.get(eni).is_some_and(|list| list.contains(address))
                        && request.at >= *from
            });
            if told && key(*address) == name {
                self.shown.insert((eni.clone(), *address), request.at);
                self.lacking.remove(&(eni.clone(), *address));
            }
        }
    }

    /// What is served changed between `from` and now.
    pub(super) fn changed(&mut self, vpc: &Vpc, instance: &Instance, from: Instant) {
        let truth: View = vpc.model().read(|state| {
            let found = state.instances.get(&instance.id);
            let attached = found.into_iter().flat_map(|found| state.attached(found));
            attached.map(|eni| (eni.id.clone(), addresses(eni))).collect()
        });
        self.macs = vpc.model().read(|state| {
            state.enis.values().map(|eni| (eni.mac.to_string(), eni.id.clone())).collect()
        });
        let mut view = self.frozen.clone().unwrap_or(truth);
        for ((eni, name), list) in &self.forged {
            if let Some(addresses) = view.get_mut(eni) {
                addresses.retain(|address| key(*address) != *name);
                addresses.extend(list);
            }
        }
        for (eni, list) in &self.view {
            let now = view.get(eni);
            for address in list.iter().filter(|a| now.is_some_and(|now| !now.contains(a))) {
                self.lacking.entry((eni.clone(), *address)).or_insert(from);
            }
        }
        for (eni, list) in &view {
            self.ever.extend(list.iter().map(|address| (eni.clone(), *address)));
        }
        let margin = Duration::from_millis(50);
        let from = from.checked_sub(margin).unwrap_or(from);
        self.before = Some((std::mem::replace(&mut self.view, view), from, Instant::now()));
    }

    /// What is served now stays so; [`Readings::changed`] comes after it.
    pub(super) fn freeze(&mut self) {
        self.frozen = Some(self.view.clone());
    }

    pub(super) fn thaw(&mut self) {
        self.frozen = None;
    }

    /// A list says this whatever is true; [`Readings::changed`] comes after it.
    pub(super) fn forge(&mut self, eni: &EniId, name: &'static str, list: BTreeSet<IpAddr>) {
        self.forged.insert((eni.clone(), name), list);
    }

    pub(super) fn unforge(&mut self, eni: &EniId, name: &'static str) {
        self.forged.remove(&(eni.clone(), name));
    }

    /// What is served of an ENI now.
    pub(super) fn of(&self, eni: &EniId) -> BTreeSet<IpAddr> {
        self.view.get(eni).cloned().unwrap_or_default()
    }

    /// Whether metadata has lacked an address for so long that it may be gone soon.
    pub(super) fn may_go(&self, eni: &EniId, address: IpAddr, now: Instant) -> bool {
        let key = (eni.clone(), address);
        let Some(since) = self.lacking.get(&key) else { return false };
        let since = self.shown.get(&key).map_or(*since, |shown| *shown.max(since));
        now.duration_since(since) + Duration::from_secs(1) >= GRACE
    }

    /// Why an address must not have been removed at a moment; none when that was allowed.
    pub(super) fn forbids(&self, eni: &EniId, address: IpAddr, at: Instant) -> Option<String> {
        let elsewhere =
            |(other, list): (&EniId, &BTreeSet<IpAddr>)| other != eni && list.contains(&address);
        if !self.view.contains_key(eni) || self.view.iter().any(elsewhere) {
            return None;
        }
        let key = (eni.clone(), address);
        if !self.ever.contains(&key) {
            return Some("metadata never granted it there".to_owned());
        }
        // Readings among garbled ones are not noted.
        let shown = self.shown.get(&key)?;
        let since = at.saturating_duration_since(*shown);
        (since < GRACE).then(|| {
            format!(
                "a reading showed it {:.3} s before, the grace is {GRACE:?}",
                since.as_secs_f64()
            )
        })
    }
}
