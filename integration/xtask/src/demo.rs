//! `cargo xtask demo`: what enid does, seen in a minute, with nothing of the host touched.
//!
//! The real daemon runs in an instance of a VPC made of network namespaces. Every step says what
//! is expected, then looks at what happened; a step that misses makes the demo fail.

pub(crate) mod build;
mod pings;
mod screen;
mod stage;
mod story;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;

use crate::{leave_nothing_behind, needs, say};
use pings::{Tally, Told};
use screen::{Screen, Tone, ms};
use stage::Stage;
pub(crate) use stage::time_of_day;
use story::{STORY, Step};

/// Shows in a minute what enid does, in namespaces; nothing of the host is touched.
///
/// Builds enid, makes a VPC in network namespaces and runs enid in an instance of it. Needs ip and
/// nft: as root it installs what is missing, otherwise it says how.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Take enid and enictl from this directory instead of building them.
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
}

/// How a step went, for the summary.
struct Outcome {
    title: &'static str,
    good: bool,
    took: Option<Duration>,
    tallies: Vec<Option<Tally>>,
}

/// Builds what is needed, then tells the story in a world of its own.
///
/// # Errors
/// When there is no stage to tell it on; steps that miss are in the exit code.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    needs::ensure(&needs::NAMESPACES)?;
    let binaries = build::given_or_release(arguments.binaries.as_deref())?;
    if !build::runs_with(&binaries) {
        return Err(build::run_with(&binaries, &["demo"]));
    }
    vpc::enter()?;
    leave_nothing_behind()?;
    let start = Instant::now();
    let screen = Screen::detect();
    introduce()?;
    let mut stage = Stage::build()?;
    let mut outcomes = Vec::new();
    for (number, step) in (1..).zip(STORY) {
        let (outcome, over) = show(&screen, &mut stage, number, step)?;
        outcomes.push(outcome);
        if over {
            break;
        }
    }
    summarise(&screen, &stage, &outcomes, start.elapsed())
}

fn introduce() -> anyhow::Result<()> {
    let every = pings::INTERVAL.as_millis();
    say(&format!(
        "
enid keeps the network of an instance equal to what the cloud says that it has. Here the cloud is
made of network namespaces; like the real one it drops what leaves an ENI with a foreign source.

    internet ---- cloud ---- ens5  10.0.1.4  public 203.0.113.1  the primary ENI
                       \\---- ens6  10.0.2.4  public 203.0.113.2  an ENI to attach

A host on the internet pings every public address every {every} ms."
    ))
}

/// Plays a step and shows it; also says whether the story cannot go on.
fn show(
    screen: &Screen,
    stage: &mut Stage,
    number: usize,
    step: &Step,
) -> anyhow::Result<(Outcome, bool)> {
    screen.headline(number, step.title)?;
    screen.labelled("expected", step.expected)?;
    let mut outcome = Outcome { title: step.title, good: false, took: None, tallies: Vec::new() };
    let begin = Instant::now();
    let did = match (step.act)(stage) {
        Ok(did) => did,
        Err(error) => {
            // Some errors bring the whole scene along.
            let error = format!("{error:#}");
            screen.labelled("happened", error.lines().next().unwrap_or_default())?;
            labelled(screen, "enid said", &stage.news(clock(begin)))?;
            detail(&error)?;
            say(&format!("    {}", verdict(screen, false)))?;
            return Ok((outcome, true));
        }
    };
    let told = pings::tell(&mut stage.targets, &did.promises);
    screen.labelled("happened", &did.happened)?;
    labelled(screen, "enid said", &stage.news(clock(did.moment.unwrap_or(begin))))?;
    for (command, text) in &did.blocks {
        screen.block(command, text)?;
    }
    if let Some((took, what)) = did.took {
        screen.labelled("took", &format!("{} {what}", ms(took)))?;
    }
    labelled(screen, "pings", &told.iter().flatten().map(line_of).collect::<Vec<_>>())?;
    labelled(screen, "missed", &did.misses)?;
    outcome.took = did.took.map(|(took, _)| took);
    outcome.good = did.misses.is_empty() && told.iter().flatten().all(|told| told.kept);
    outcome.tallies = told.iter().map(|told| told.as_ref().map(|told| told.tally)).collect();
    say(&format!("    {}", verdict(screen, outcome.good)))?;
    Ok((outcome, false))
}

/// Lines beneath each other, the first beside the label.
fn labelled(screen: &Screen, label: &str, lines: &[String]) -> anyhow::Result<()> {
    let labels = std::iter::once(label).chain(std::iter::repeat(""));
    labels.zip(lines).try_for_each(|(label, line)| screen.labelled(label, line))
}

/// What helps to look into a miss; its lines are as long as they are.
fn detail(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stderr(), "{text}").context("cannot write")
}

/// A moment on the wall clock.
fn clock(moment: Instant) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(moment.elapsed()).unwrap_or(now)
}

fn line_of(told: &Told) -> String {
    let Tally { answered, lost } = told.tally;
    let text = format!("{}  {answered:5} answered  {lost:5} lost {}", told.public, told.note);
    let wrong = if told.kept { "" } else { "  <- not as promised" };
    format!("{}{wrong}", text.trim_end())
}

fn verdict(screen: &Screen, good: bool) -> String {
    if good { screen.paint(Tone::Good, "ok") } else { screen.paint(Tone::Bad, "MISS") }
}

/// The table at the end, and the exit code.
fn summarise(
    screen: &Screen,
    stage: &Stage,
    outcomes: &[Outcome],
    total: Duration,
) -> anyhow::Result<ExitCode> {
    let mut head = format!("\n{:42}{:>6}{:>11}", "    pings answered/lost", "", "");
    for target in &stage.targets {
        head.push_str(&format!("{:>13}", target.public));
    }
    say(&screen.paint(Tone::Bold, &head))?;
    for (number, outcome) in (1..).zip(outcomes) {
        let took = outcome.took.map_or_else(|| "-".to_owned(), ms);
        // Colour has no width, so it comes after the padding.
        let mark = if outcome.good { "    " } else { "  " };
        let mark = format!("{mark}{}", verdict(screen, outcome.good));
        let mut line = format!("{number:2}  {:38}{mark}{took:>11}", outcome.title);
        for tally in &outcome.tallies {
            let text =
                tally.map_or_else(|| "-".to_owned(), |t| format!("{}/{}", t.answered, t.lost));
            line.push_str(&format!("{text:>13}"));
        }
        say(&line)?;
    }
    let good = outcomes.iter().filter(|outcome| outcome.good).count();
    let all = STORY.len();
    let seconds = total.as_secs_f64();
    if good == all {
        say(&format!(
            "\nall {all} steps as expected, in {seconds:.1} s; nothing of this host was touched"
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    say(&format!("\n{} of {all} steps missed or were not reached, in {seconds:.1} s", all - good))?;
    detail(&stage.describe())?;
    Ok(ExitCode::FAILURE)
}
