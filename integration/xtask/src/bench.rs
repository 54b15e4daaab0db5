//! `cargo xtask bench`: the figures of the design's section 7, measured with the real daemon in the
//! simulated VPC. A slow figure fails nothing; what cannot be measured does.

mod bare;
mod built;
mod figure;
mod idle;
mod large;
pub(crate) mod process;
mod small;

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::{needs, say};
use figure::Figure;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Measure only what has this in its name; may be given several times.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Tell how each measurement is made, and measure nothing.
    #[arg(long)]
    explain: bool,
    /// Also write the figures with all samples into this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Watch the idle daemon for 10 minutes instead of one.
    #[arg(long)]
    long: bool,
    /// Also time a release build from nothing, in a folder of its own.
    #[arg(long)]
    build: bool,
    /// Measure with this very program and the binaries beside it; build nothing.
    #[arg(long, hide = true)]
    built: bool,
}

/// Something that is measured.
struct Measurement {
    name: &'static str,
    method: &'static str,
    measure: fn(&mut Stages) -> anyhow::Result<Vec<Figure>>,
}

/// What measurements share.
#[derive(Default)]
struct Stages {
    large: Option<large::Large>,
    watch: Duration,
}

impl Stages {
    /// The stage of the largest instance, built when first asked for.
    fn large(&mut self) -> anyhow::Result<&mut large::Large> {
        let large = match self.large.take() {
            Some(large) => large,
            None => large::Large::build()?,
        };
        Ok(self.large.insert(large))
    }
}

const MEASUREMENTS: [Measurement; 10] = [
    Measurement {
        name: "link event",
        method: "From the kernel's announcement of a hot-attached link inside the instance to the \
                 first answer to a host of another subnet that pings every millisecond; metadata \
                 is complete before, another ENI is managed already, each run has a new ENI in a \
                 subnet of its own.",
        measure: |_| small::link_event(),
    },
    Measurement {
        name: "secondary address after refresh",
        method: "From the start of `enictl refresh`, right after the cloud has assigned the \
                 address, to the first answer to a host of another subnet that pings every \
                 millisecond; the daemon does not poll meanwhile.",
        measure: |_| small::refreshed(),
    },
    Measurement {
        name: "secondary address by polling",
        method: "The same without `enictl`, at different times between two polls, against the \
                 poll interval of `enictl status`; and from the metadata request whose answer \
                 shows the address.",
        measure: |_| small::polled(),
    },
    Measurement {
        name: "deleted by hand",
        method: "An own secondary address, route or rule is deleted with `ip`; the time between \
                 its two lines in one `ip -ts monitor`, \"Deleted\" and back.",
        measure: |_| small::deleted(),
    },
    Measurement {
        name: "24 ENIs from a cold start",
        method: "24 ENIs with 64 addresses each are attached and raw; from the start of the \
                 daemon until the last address of every ENI answers a host that pings every \
                 20 ms; beside it what the budget of 50 requests at once and 50 a second needs \
                 for as many requests.",
        measure: |stages| stages.large()?.cold(),
    },
    Measurement {
        name: "24 ENIs in one pass",
        method: "The daemon knows all metadata and is stopped (SIGSTOP) while everything that it \
                 made is undone by hand: addresses, routes, rules, links down, names, groups, MTU, \
                 sysctls; SIGCONT makes it restore all in one pass, whose wall time and thread \
                 CPU time its debug log tells.",
        measure: |stages| stages.large()?.one_pass(),
    },
    Measurement {
        name: "24 ENIs, nothing to do",
        method: "The same daemon; a foreign rule comes or goes, and its debug log tells wall time \
                 and thread CPU time of the pass that follows; rules are counted with `ip`, \
                 memory is the process's.",
        measure: |stages| stages.large()?.nothing_to_do(),
    },
    Measurement {
        name: "24 ENIs, asked",
        method: "The same daemon; from the start of `enictl` in the instance's namespace to its \
                 end, its output read to the last byte.",
        measure: |stages| stages.large()?.asked(),
    },
    Measurement {
        name: "24 ENIs, bare",
        method: "The same steps from the same raw state without a daemon: handed to the kernel in \
                 one call of enid-kernel's `apply`, and as lines of one `ip -batch` (without the \
                 sysctls, which it cannot set).",
        measure: |stages| stages.large()?.bare(),
    },
    Measurement {
        name: "idle",
        method: "Five daemons with 2 ENIs each are watched together after 20 s, as many again \
                 with both families: CPU time of all threads from schedstat, scaled to 10 min; \
                 requests in the metadata service's log, scaled to an hour; VmRSS and RssAnon.",
        measure: |stages| idle::idle(stages.watch),
    },
];

/// Measures and prints a table.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if arguments.explain {
        explain()?;
        return Ok(ExitCode::SUCCESS);
    }
    needs::ensure(&needs::NAMESPACES)?;
    if !arguments.built {
        return Err(build_and_become_fast()?);
    }
    let wanted = |name: &str| {
        arguments.only.is_empty() || arguments.only.iter().any(|only| name.contains(only.as_str()))
    };
    let mut figures = Vec::new();
    if wanted(built::NAME) {
        figures.extend(built::sizes()?);
        if arguments.build {
            note("a release build from nothing")?;
            figures.extend(built::time()?);
        }
    }
    vpc::enter()?;
    // Where the runtime directory of a real system is: in memory.
    tempfile::env::override_temp_dir(Path::new("/run"))
        .map_err(|path| anyhow::anyhow!("temporary files are in {} already", path.display()))?;
    let watch = Duration::from_secs(if arguments.long { 600 } else { 60 });
    let mut stages = Stages { watch, ..Stages::default() };
    let mut failed = false;
    for measurement in MEASUREMENTS.iter().filter(|measurement| wanted(measurement.name)) {
        note(measurement.name)?;
        match (measurement.measure)(&mut stages) {
            Ok(more) => figures.extend(more),
            Err(error) => {
                failed = true;
                note(&format!("{} could not be measured: {error:#}", measurement.name))?;
            }
        }
    }
    ensure!(failed || !figures.is_empty(), "nothing is named like {:?}", arguments.only);
    compare(&mut figures);
    say(&figure::table(&figures))?;
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&figure::json(&figures))?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// How many times as long as the bare ways the whole pass takes.
fn compare(figures: &mut Vec<Figure>) {
    let median =
        |name: &str| figures.iter().find(|figure| figure.name == name).and_then(Figure::median);
    let ratios: Vec<Figure> = [
        ("  one pass : the bare batch", large::PASS, large::BATCH),
        ("  one pass : ip -batch", large::PASS, large::IP),
    ]
    .into_iter()
    .filter_map(|(name, what, to)| Some((name, median(what)? / median(to)?)))
    .map(|(name, ratio)| Figure::new(name, "×", vec![ratio]))
    .collect();
    let after = figures.iter().position(|figure| figure.name == large::IP);
    let at = after.map_or(figures.len(), |at| at + 1);
    figures.splice(at..at, ratios);
}

fn explain() -> anyhow::Result<()> {
    let all = MEASUREMENTS.iter().map(|measurement| (measurement.name, measurement.method));
    for (name, method) in all.chain([(built::NAME, built::METHOD)]) {
        say(name)?;
        for line in wrap(method, 96) {
            say(&format!("    {line}"))?;
        }
    }
    Ok(())
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Builds the daemon and this program with optimisation and becomes the latter. Returns only when
/// that fails.
fn build_and_become_fast() -> anyhow::Result<anyhow::Error> {
    // Two builds: together, the features of this program would get into the daemon.
    for packages in [&["-p", "enid", "-p", "enictl"][..], &["-p", "xtask"]] {
        let mut cargo = built::cargo();
        let status = cargo.args(["build", "--release", "--locked"]).args(packages).status();
        let status = status.context("cannot start cargo")?;
        ensure!(status.success(), "the release build of {} failed", packages.join(" "));
    }
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let target = own.ancestors().nth(2).context("this program is in no target folder")?;
    let fast = target.join("release/xtask");
    let error = Command::new(&fast).args(std::env::args_os().skip(1)).arg("--built").exec();
    Ok(anyhow::Error::new(error).context(format!("cannot become {}", fast.display())))
}

/// Tells what is going on, apart from the figures.
fn note(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stderr(), "… {text}").context("cannot write to standard error")
}
