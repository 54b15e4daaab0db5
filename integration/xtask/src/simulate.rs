//! `cargo xtask simulate`: random schedules of cloud, kernel, operator and adversary.

use std::path::Path;
use std::process::Command;

use crate::tools::{succeed, top};

/// What `cargo xtask test` runs; fixed seeds, so that a change that fails is the change that did it.
pub(crate) const EVERY_CHANGE: Arguments =
    Arguments { schedules: 100_000, seed: 0, failures: 1, threads: None };

/// What to run.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// How many schedules.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    schedules: u64,
    /// The seed of the first one; the others follow.
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// How many failures to look for; each is printed as a scenario file.
    #[arg(long, value_name = "N", default_value_t = 1)]
    failures: usize,
    /// Threads; all cores unless said otherwise.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

/// Builds the simulation and runs it.
///
/// # Errors
/// When a promise is broken, or when what must occur did not.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    schedules(&top(), arguments)
}

/// Runs schedules in the workspace.
///
/// # Errors
/// When a promise is broken, or when what must occur did not.
pub(crate) fn schedules(top: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { schedules, seed, failures, threads } = arguments;
    let mut run = Command::new(env!("CARGO"));
    run.current_dir(top)
        .args(["run", "--locked", "--quiet", "--profile", "simulation", "-p", "simulation", "--"])
        .args(["--schedules", &schedules.to_string()])
        .args(["--seed", &seed.to_string()])
        .args(["--failures", &failures.to_string()]);
    if let Some(threads) = threads {
        run.args(["--threads", &threads.to_string()]);
    }
    succeed(&mut run)
}
