//! What enid promises to its users, each promise tried with the real binaries on a real kernel.

mod access;
mod cards;
mod check;
mod check_ways;
mod choices;
mod cidrs;
mod clouds;
mod configuration;
mod containers;
mod crash_steps;
mod cut;
mod device_bound;
mod dhcp_client;
mod drift;
mod explain;
mod fail_closed;
mod fights;
mod foreign_routes;
mod foreign_secondaries;
mod graph;
mod hold;
mod hostile;
mod hot_attach;
mod ipv6;
mod kernel_faults;
mod kill;
mod links;
mod matrix;
mod metadata_faults;
mod metadata_keys;
mod metadata_stage;
mod metadata_trouble;
mod metadata_views;
mod metrics;
mod networkd;
mod old_kernel;
mod operator;
mod ownership;
mod pair;
mod prefix_changes;
mod prefixes;
mod published_ports;
mod reattach;
mod removal;
mod routes;
mod runtime_dir;
mod same_subnet;
mod secondary_addresses;
mod siblings;
mod status;
mod storm;
mod telling;
mod users;
mod vanish;
mod waiting;

use std::process::ExitCode;

fn main() -> ExitCode {
    integration::run(|| {
        [
            hot_attach::trials(),
            ipv6::trials(),
            same_subnet::trials(),
            siblings::trials(),
            cidrs::trials(),
            cards::trials(),
            links::trials(),
            secondary_addresses::trials(),
            containers::trials(),
            prefix_changes::trials(),
            prefixes::trials(),
            published_ports::trials(),
            foreign_secondaries::trials(),
            foreign_routes::trials(),
            fail_closed::trials(),
            device_bound::trials(),
            dhcp_client::trials(),
            drift::trials(),
            metadata_faults::trials(),
            metadata_keys::trials(),
            fights::trials(),
            ownership::trials(),
            removal::trials(),
            old_kernel::trials(),
            metadata_trouble::trials(),
            metadata_views::trials(),
            hostile::trials(),
            explain::trials(),
            graph::trials(),
            clouds::trials(),
            reattach::trials(),
            kill::trials(),
            crash_steps::trials(),
            kernel_faults::trials(),
            vanish::trials(),
            networkd::trials(),
            runtime_dir::trials(),
            storm::trials(),
            configuration::trials(),
            choices::trials(),
            operator::trials(),
            check::trials(),
            check_ways::trials(),
            status::trials(),
            hold::trials(),
            waiting::trials(),
            telling::trials(),
            access::trials(),
            metrics::trials(),
            matrix::trials(),
        ]
        .into_iter()
        .flatten()
        .collect()
    })
}
