//! What enid promises to its users, each promise tried with the real binaries on a real kernel.

mod fail_closed;
mod hot_attach;
mod pair;

use std::process::ExitCode;

fn main() -> ExitCode {
    integration::run(|| {
        [fail_closed::trials(), hot_attach::trials()].into_iter().flatten().collect()
    })
}
