//! `cargo xtask`: the project's own commands, one file each.

mod alerts;
mod bench;
mod captures;
mod demo;
mod docs;
mod fuzz;
mod needs;
mod package;
mod signals;
mod simulate;
mod soak;
#[expect(clippy::print_stdout, reason = "what it says is for who runs it")]
mod test;
mod tools;
mod vm;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use signals::leave_nothing_behind;

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Arguments),
    Captures(captures::Arguments),
    /// Make what of the documentation is made from the code: schemas, manual and completions.
    Docs,
    /// Runs everything that must pass before a change lands.
    Test(test::Arguments),
    /// Measure how fast and how light the daemon is, beside what is to be reached.
    Bench(bench::Arguments),
    Soak(soak::Arguments),
    /// Feed everything that reads bytes from outside with what nobody would send.
    Fuzz(fuzz::Arguments),
    /// Build the packages that users install; the last lines are their paths.
    Package(package::Arguments),
    /// Run random schedules of cloud, kernel, operator and adversary; a failing one is printed as a
    /// scenario file.
    Simulate(simulate::Arguments),
    /// Run the promises that need a real machine, under QEMU, with the package installed.
    Vm(vm::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Captures(arguments) => captures::run(&arguments),
        Command::Docs => docs::run().map(|()| ExitCode::SUCCESS),
        Command::Test(arguments) => test::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Soak(arguments) => soak::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Package(arguments) => package::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Simulate(arguments) => simulate::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Vm(arguments) => vm::run(&arguments).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        // Nobody is left to tell when standard error is closed.
        let _ = writeln!(std::io::stderr(), "xtask: {error:#}");
        ExitCode::FAILURE
    })
}

/// Writes a line to standard output.
fn say(line: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).context("cannot write")
}
