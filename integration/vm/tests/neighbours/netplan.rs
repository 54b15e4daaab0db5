//! Promises about netplan as a neighbour.

use crate::Promise;

pub(crate) fn promises() -> Vec<Promise> {
    Vec::new()
}
