//! `cargo xtask fuzz`: feeds everything that reads bytes from outside, one target after the other.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, ensure};

use crate::tools::{self, files, succeed, top};

/// The crate that libFuzzer is linked with.
const FOLDER: &str = "integration/fuzz/libfuzzer";
/// Memory that one target may need, in MiB; the sanitizer takes most of it.
const MEMORY: u32 = 1024;
/// Seconds that one input may take.
const LONGEST: u32 = 20;

/// What to feed, and for how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only this target; all of them without it.
    target: Option<String>,
    /// How long each of them is fed.
    #[arg(long, value_name = "N", default_value_t = 5)]
    minutes: u32,
    /// Afterwards, put what reaches new code into the committed corpus, and only that.
    #[arg(long)]
    keep: bool,
}

/// Where the inputs of one target are, and what is built of it.
struct Target {
    name: String,
    binary: PathBuf,
    /// What was found on this machine.
    found: PathBuf,
    corpus: PathBuf,
    regressions: PathBuf,
    /// What broke it.
    broken: PathBuf,
}

/// Builds the targets, feeds them, and prints how it went.
///
/// # Errors
/// When there is no nightly compiler, or the targets cannot be built or run.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let top = top();
    let targets = targets(&top, arguments.target.as_deref())?;
    build(&top)?;
    let mut lines = Vec::new();
    for target in &targets {
        let seconds = arguments.minutes * 60;
        crate::say(&format!("\n== {} for {} min", target.name, arguments.minutes))?;
        lines.push(feed(target, seconds)?);
        if arguments.keep {
            keep(target)?;
        }
    }
    crate::say("")?;
    lines.iter().try_for_each(|line| crate::say(line))?;
    let mut broken = Vec::new();
    for target in &targets {
        broken.append(&mut files(&target.broken)?);
    }
    if broken.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    crate::say(
        "\nthese inputs break something; mend it and keep them in integration/fuzz/regressions:",
    )?;
    broken.iter().try_for_each(|path| crate::say(&format!("  {}", path.display())))?;
    Ok(ExitCode::FAILURE)
}

/// The targets that are asked for, each with its folders.
fn targets(top: &Path, only: Option<&str>) -> anyhow::Result<Vec<Target>> {
    let (committed, work) = (top.join("integration/fuzz"), top.join("target/fuzz"));
    let mut targets = Vec::new();
    for source in files(&top.join(FOLDER).join("fuzz_targets"))? {
        let name = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if only.is_some_and(|only| only != name) {
            continue;
        }
        let target = Target {
            binary: work.join("build").join(platform()).join("release").join(&name),
            found: work.join("corpus").join(&name),
            corpus: committed.join("corpus").join(&name),
            regressions: committed.join("regressions").join(&name),
            broken: work.join("broken").join(&name),
            name,
        };
        for folder in [&target.found, &target.corpus, &target.broken] {
            fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        }
        targets.push(target);
    }
    let wanted = only.unwrap_or_default();
    ensure!(!targets.is_empty(), "there is no target {wanted}: {FOLDER}/fuzz_targets has them");
    Ok(targets)
}

/// What the targets are built for.
fn platform() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// Builds all of them, instrumented, which only a nightly compiler can.
fn build(top: &Path) -> anyhow::Result<()> {
    let nightly = Command::new("rustup")
        .args(["run", "nightly", "rustc", "--version"])
        .stdout(Stdio::null())
        .status()
        .context("asking rustup for a nightly compiler")?;
    ensure!(
        nightly.success(),
        "there is no nightly compiler: `rustup toolchain install nightly --profile minimal` brings it"
    );
    let mut build = Command::new(tools::cargo("cargo-fuzz")?);
    build
        .current_dir(top.join(FOLDER))
        .args(["build", "--fuzz-dir", ".", "--target", &platform(), "--target-dir"])
        .arg(top.join("target/fuzz/build"))
        .env("RUSTUP_TOOLCHAIN", "nightly")
        // The pinned compiler's, which runs this.
        .env_remove("CARGO")
        .env_remove("RUSTC");
    succeed(&mut build)
}

/// Feeds one for a while; a line of figures.
fn feed(target: &Target, seconds: u32) -> anyhow::Result<String> {
    let mut command = Command::new(&target.binary);
    command
        .arg(format!("-artifact_prefix={}/", target.broken.display()))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-rss_limit_mb={MEMORY}"))
        .arg(format!("-timeout={LONGEST}"))
        .args(["-print_final_stats=1", "-detect_leaks=0"])
        .args([&target.found, &target.corpus]);
    if target.regressions.is_dir() {
        command.arg(&target.regressions);
    }
    let output = command.stdout(Stdio::null()).output();
    let output = output.with_context(|| format!("running {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let last = |word: &str| -> Option<String> {
        let mut lines = said.lines().rev().filter_map(|line| line.split_once(word));
        Some(lines.next()?.1.split_whitespace().next()?.to_owned())
    };
    let figure = |word| last(word).unwrap_or_else(|| "?".to_owned());
    if !output.status.success() {
        crate::say(&said)?;
    }
    Ok(format!(
        "{:<14} {:>10} executions, {:>6} edges, {:>6} features, {} broken",
        target.name,
        figure("stat::number_of_executed_units:"),
        figure(" cov: "),
        figure(" ft: "),
        files(&target.broken)?.len(),
    ))
}

/// The smallest inputs that reach all that is reached, in place of the committed ones.
fn keep(target: &Target) -> anyhow::Result<()> {
    let new = target.corpus.with_extension("new");
    fs::create_dir_all(&new).with_context(|| format!("making {}", new.display()))?;
    let mut merge = Command::new(&target.binary);
    // How often something was reached makes no difference for who only replays.
    merge
        .args(["-merge=1", "-use_counters=0", "-detect_leaks=0"])
        .args([&new, &target.corpus, &target.found])
        .stderr(Stdio::null());
    succeed(&mut merge)?;
    fs::remove_dir_all(&target.corpus).context("removing the old corpus")?;
    fs::rename(&new, &target.corpus).context("putting the new corpus in its place")
}
