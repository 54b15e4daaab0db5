//! What must outlive a restart: which addresses enid made, its tables, what it changed and holds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::object::{Mac, Setting, TableId};

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
    pub holds: BTreeSet<Mac>,
    /// The operator released everything, also what is attached later.
    pub hold_all: bool,
}

impl Ledger {
    /// Whether the operator holds this ENI.
    #[must_use]
    pub fn held(&self, mac: Mac) -> bool {
        self.hold_all || self.holds.contains(&mac)
    }
}
