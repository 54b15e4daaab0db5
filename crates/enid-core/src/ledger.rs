//! What must outlive a restart: which addresses enid made, its tables, what it changed, and what the
//! operator said.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::object::{Mac, Setting, TableId};
use crate::time::Instant;

/// enid's memory on disk. The kernel's marks say whose routes and rules are; the ledger says the
/// same of addresses where the kernel keeps no mark, and shows where a mark was lost.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ledger {
    /// Addresses that enid made, or was about to make.
    pub addresses: BTreeSet<(Mac, IpAddr)>,
    /// The table that each ENI's routes were put into.
    pub tables: BTreeMap<Mac, TableId>,
    /// Settings of links before enid changed them: an MTU, kernel settings, and the alternative
    /// names that enid added.
    pub originals: BTreeMap<Mac, BTreeSet<Setting>>,
    /// ENIs that the operator released.
    pub released: BTreeSet<Mac>,
    /// The operator released everything, also what is attached later.
    pub released_all: bool,
    /// ENIs that the operator wants left as they are.
    pub holds: BTreeMap<Mac, Pause>,
}

/// The operator's word to leave an ENI as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// When it ends by itself; none before the next boot.
    pub until: Option<Instant>,
    /// Why, in the operator's words; empty where none were given.
    pub reason: String,
}

impl Ledger {
    /// Whether the operator released this ENI.
    #[must_use]
    pub fn is_released(&self, mac: Mac) -> bool {
        self.released_all || self.released.contains(&mac)
    }

    /// The operator's word to leave this ENI as it is, while it is in force.
    #[must_use]
    pub fn hold(&self, mac: Mac, now: Instant) -> Option<&Pause> {
        self.holds.get(&mac).filter(|pause| pause.in_force(now))
    }
}

impl Pause {
    /// Whether it has not ended by itself.
    #[must_use]
    pub fn in_force(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}
