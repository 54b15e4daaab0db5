//! Who a server of the fabric listens to: ENIs by their ports, and where it keeps silent.

use std::collections::{BTreeMap, BTreeSet};

use imds::EniId;
use nix::net::if_::if_indextoname;

/// The ports that a server hears, and the ENIs that it does not answer.
#[derive(Default)]
pub(crate) struct Audience {
    ports: BTreeMap<String, EniId>,
    silent: bool,
    silent_at: BTreeSet<EniId>,
}

impl Audience {
    /// From now on, who asks at this port asks for this ENI.
    pub(crate) fn add(&mut self, port: String, eni: EniId) {
        self.ports.insert(port, eni);
    }

    /// Which ENI is behind a port, by the port's index; asked inside the fabric.
    pub(crate) fn at(&self, index: u32) -> Option<EniId> {
        let name = if_indextoname(index).ok()?.into_string().ok()?;
        self.ports.get(&name).cloned()
    }

    /// All ports and their ENIs.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &EniId)> {
        self.ports.iter().map(|(port, eni)| (port.as_str(), eni))
    }

    pub(crate) fn is_answered(&self, eni: &EniId) -> bool {
        !self.silent && !self.silent_at.contains(eni)
    }

    pub(crate) fn silence(&mut self) {
        self.silent = true;
    }

    pub(crate) fn silence_at(&mut self, eni: &EniId) {
        self.silent_at.insert(eni.clone());
    }

    pub(crate) fn speak(&mut self) {
        self.silent = false;
        self.silent_at.clear();
    }
}
