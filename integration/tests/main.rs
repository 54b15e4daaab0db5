//! What enid promises to its users, each promise tried with the real binaries on a real kernel.

mod hot_attach;

use std::process::ExitCode;

fn main() -> ExitCode {
    integration::run(|| [hot_attach::trials()].into_iter().flatten().collect())
}
