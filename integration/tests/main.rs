//! What enid promises to its users, each promise tried with the real binaries on a real kernel.

mod containers;
mod device_bound;
mod drift;
mod fail_closed;
mod hot_attach;
mod pair;
mod same_subnet;
mod secondary_addresses;
mod users;

use std::process::ExitCode;

fn main() -> ExitCode {
    integration::run(|| {
        [
            hot_attach::trials(),
            same_subnet::trials(),
            secondary_addresses::trials(),
            containers::trials(),
            fail_closed::trials(),
            device_bound::trials(),
            drift::trials(),
        ]
        .into_iter()
        .flatten()
        .collect()
    })
}
