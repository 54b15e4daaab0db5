//! `cargo xtask test`: everything that must pass before a change lands, one step after the other.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::tools::{self, succeed, top};
use crate::{alerts, needs, package, simulate, vm};

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Run only the steps whose name contains this.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

struct Step {
    name: &'static str,
    run: fn(&Path) -> anyhow::Result<()>,
}

const STEPS: [Step; 13] = [
    Step { name: "format", run: |top| cargo(top, &["fmt", "--all", "--check"], &[]) },
    Step {
        name: "lints",
        run: |top| {
            let all =
                ["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
            cargo(top, &all, &[])?;
            let faulty = [
                "clippy",
                "--locked",
                "-p",
                "enid",
                "-p",
                "enid-kernel",
                "--features",
                "enid/faults",
            ];
            cargo(top, &[&faulty[..], &["--", "-D", "warnings"]].concat(), &[])
        },
    },
    Step {
        name: "documentation",
        run: |top| {
            let all = ["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"];
            cargo(top, &all, &[("RUSTDOCFLAGS", "-D warnings")])
        },
    },
    Step {
        name: "daemon",
        run: |top| {
            cargo(top, &["build", "--locked", "-p", "enid", "-p", "enictl"], &[])?;
            // Beside it, by another name: the one that tests make fail.
            let faulty =
                ["build", "--locked", "-p", "enid", "--features", "faults", "--bin", "enid-faults"];
            cargo(top, &faulty, &[])
        },
    },
    Step {
        name: "decisions and parts",
        run: |top| {
            let all =
                ["test", "--locked", "--workspace", "--exclude", "integration", "--exclude", "vm"];
            cargo(top, &all, &[])
        },
    },
    Step { name: "schedules", run: |top| simulate::schedules(top, &simulate::EVERY_CHANGE) },
    Step {
        name: "promises",
        run: |top| cargo(top, &["test", "--locked", "-p", "integration"], &[]),
    },
    // Short, so that the command cannot rot; longer ones are for whom wants to know.
    Step { name: "soak", run: soak },
    Step { name: "machine", run: |top| vm::promises(top, &package::deb()?, &vm::NOW_AND_THEN) },
    Step { name: "packaging", run: |_| package::check::run() },
    Step { name: "alerts", run: alerts::run },
    Step { name: "dependencies", run: dependencies },
    Step { name: "unused dependencies", run: unused },
];

/// Runs the steps and prints how long each took; the first that fails ends the run.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let top = top();
    needs::ensure(&[&needs::NAMESPACES[..], &needs::INSIDE].concat())?;
    let only = arguments.only.as_deref().unwrap_or_default();
    let mut times: Vec<(&str, Duration)> = Vec::new();
    for step in STEPS.iter().filter(|step| step.name.contains(only)) {
        println!("\n== {}", step.name);
        let started = Instant::now();
        (step.run)(&top).with_context(|| format!("the step \"{}\" failed", step.name))?;
        times.push((step.name, started.elapsed()));
    }
    ensure!(!times.is_empty(), "no step has \"{only}\" in its name");
    println!();
    for (name, time) in &times {
        println!("{name:<22} {:>6.1} s", time.as_secs_f64());
    }
    println!("all {} steps passed", times.len());
    Ok(())
}

fn cargo(top: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<()> {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(top).args(arguments).envs(environment.iter().copied());
    succeed(&mut command)
}

fn soak(_top: &Path) -> anyhow::Result<()> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let beside = own.parent().context("this program is in no folder")?.to_owned();
    let mut soak = Command::new(tools::OWN);
    soak.args(["soak", "--minutes", "1", "--seed", "1", "--binaries"]).arg(beside);
    succeed(&mut soak)
}

fn dependencies(top: &Path) -> anyhow::Result<()> {
    let mut deny = Command::new(tools::cargo("cargo-deny")?);
    deny.current_dir(top).args(["--locked", "check", "bans", "licenses", "sources"]);
    succeed(&mut deny)
}

fn unused(top: &Path) -> anyhow::Result<()> {
    let mut machete = Command::new(tools::cargo("cargo-machete")?);
    machete.current_dir(top).args(["crates", "integration"]);
    succeed(&mut machete)
}
