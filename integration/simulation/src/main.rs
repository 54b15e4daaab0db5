//! Runs schedules from a seed on; the first one that breaks a promise is shrunk and printed as a
//! scenario file.

#![expect(clippy::print_stdout, reason = "what it says is for who runs it")]

use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;
use simulation::run::{self, Arguments};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Runs schedules from a seed on.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    arguments: Arguments,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Cli::parse().arguments;
    let (text, well) = run::run(&arguments)?;
    println!("{text}");
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
