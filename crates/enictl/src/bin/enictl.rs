//! The program `enictl`.

use std::process::ExitCode;

fn main() -> ExitCode {
    enictl::main()
}
