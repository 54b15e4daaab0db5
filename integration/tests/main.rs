//! What enid promises to its users, each promise tried with the real binaries on a real kernel.

mod configuration;
mod containers;
mod foreign_routes;
mod foreign_secondaries;
mod hot_attach;
mod kill;
mod metadata_trouble;
mod pair;
mod reattach;
mod same_subnet;
mod secondary_addresses;
mod users;

use std::process::ExitCode;

fn main() -> ExitCode {
    integration::run(|| {
        [
            configuration::trials(),
            containers::trials(),
            device_bound::trials(),
            drift::trials(),
            fail_closed::trials(),
            hot_attach::trials(),
            kill::trials(),
            metadata_trouble::trials(),
            reattach::trials(),
            same_subnet::trials(),
            secondary_addresses::trials(),
            containers::trials(),
            foreign_secondaries::trials(),
            foreign_routes::trials(),
        ]
        .into_iter()
        .flatten()
        .collect()
    })
}
