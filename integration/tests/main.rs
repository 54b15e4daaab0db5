//! What enid promises to its users, each promise tried with the real binaries on a real kernel.

mod containers;
mod hot_attach;
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
        ]
        .into_iter()
        .flatten()
        .collect()
    })
}
