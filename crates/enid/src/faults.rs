//! The daemon that fails where a test tells it to; see `enid_kernel::faults`.

use std::process::ExitCode;

#[path = "main.rs"]
mod program;

fn main() -> ExitCode {
    program::main()
}
