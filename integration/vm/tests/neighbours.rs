//! Promises about other programs that manage the network of the same machine, one file each.

mod ec2_net_utils;
mod forwarding;
mod ifupdown;
mod netplan;
mod network_manager;
mod networkd;
mod watch;

use crate::Promise;

pub(crate) fn promises() -> Vec<Promise> {
    [
        networkd::promises(),
        network_manager::promises(),
        ifupdown::promises(),
        netplan::promises(),
        ec2_net_utils::promises(),
        forwarding::promises(),
    ]
    .concat()
}
