//! Promises about ec2_net_utils as a neighbour.

use crate::Promise;

pub(crate) fn promises() -> Vec<Promise> {
    Vec::new()
}
