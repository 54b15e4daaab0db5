//! Decisions from text: what metadata, configuration and kernel say, and the plan and report that
//! must follow. `ENID_BLESS=1` writes what follows now into the files; read it before you keep it.
//!
//! A file has these sections, all but the last two optional:
//!
//! ```text
//! base NAME      start from the sections of base/NAME.txt
//! config         what differs from the default
//! cloud          "eni MAC" and its keys' raw texts; "-" for absent, "!500" for a failure
//! kernel         links, addresses, routes and rules as `ip` writes them; "- LINE" takes one away
//! ledger         what was written down before
//! script         "at 5s EVENT", or "at 5s..60s every 5s EVENT"; without it, one poll at 0s
//! plan           expected: the steps of the last decision
//! report         expected: what it says; and "ledger changes", where the script wants them
//! ```
//!
//! A file that ends in `promises` instead is played by the simulation: its daemon polls and carries
//! its plans out by itself, more can happen (`simulation::event` has the words), and what is promised
//! is judged after every event, and when nothing happens any more. `cargo xtask simulate` writes such
//! files.

#![expect(
    clippy::disallowed_methods,
    reason = "the scenarios are files, and blessing them is asked for by a variable"
)]
#![expect(clippy::unwrap_used, reason = "a scenario that cannot be read fails the test")]

#[path = "support/sides.rs"]
mod sides;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use enid_core::choice::Prefixes;
use enid_core::config::Config;
use enid_core::decide::{Decision, decide};
use enid_core::eni::Facts;
use enid_core::ledger::Ledger;
use enid_core::memory::Memory;
use enid_core::metadata::facts::Metadata;
use enid_core::metadata::{Ask, Depth};
use enid_core::object::{LinkIndex, Mac, Object};
use enid_core::observed::{Observed, Snapshot};
use enid_core::plan::Step;
use enid_core::report::{
    AddressState, Departure, EniReport, EniState, Leaving, Mass, Notice, Report, Role, Waiting,
};
use enid_core::time::Instant;
use simulation::adversary::KEPT_SECTION;
use simulation::cloud::Cloud;
use simulation::kernel::Kernel;
use simulation::play::Play;
use simulation::text::{self, parse, schedule};
use simulation::world::{Product, Start};

#[test]
fn every_scenario_decides_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<PathBuf> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    assert!(files.len() >= 45, "only {} scenarios were found", files.len());
    let bless = std::env::var_os("ENID_BLESS").is_some();
    let failures: Vec<String> = files.iter().filter_map(|path| check(path, bless)).collect();
    let (failed, all) = (failures.len(), files.len());
    assert!(failures.is_empty(), "{failed} of {all} failed\n\n{}", failures.join("\n"));
}

/// Plays one file; the difference, if there is one.
fn check(path: &Path, bless: bool) -> Option<String> {
    let text = fs::read_to_string(path).unwrap();
    let promises = text.ends_with(KEPT_SECTION);
    let cut = if promises { text.rfind(KEPT_SECTION) } else { text.find("\nplan\n") };
    let (given, expected) = text.split_at(cut.map_or(text.len(), |at| at + 1));
    let mut scene = Scene::default();
    scene.read(path, given);
    let found = if promises { scene.keep() } else { scene.play() };
    if bless && !promises {
        fs::write(path, format!("{}\n\n{found}", given.trim_end())).unwrap();
        return None;
    }
    let name = path.file_stem().unwrap().to_string_lossy().replace('-', " ");
    (found != expected).then(|| format!("{name}\n{}", difference(expected, &found)))
}

/// Lines of both texts, the ones that only one has marked by `-` (expected) and `+` (found).
fn difference(expected: &str, found: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    // The longest common subsequence, from the end.
    let mut common = vec![vec![0_usize; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i][j] = if a[i] == b[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut text) = (0, 0, String::new());
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            let _ = writeln!(text, "    {}", a[i]);
            (i, j) = (i + 1, j + 1);
        } else if j == b.len() || (i < a.len() && common[i + 1][j] >= common[i][j + 1]) {
            let _ = writeln!(text, "  - {}", a[i]);
            i += 1;
        } else {
            let _ = writeln!(text, "  + {}", b[j]);
            j += 1;
        }
    }
    text
}

/// A scenario as it is played.
#[derive(Default)]
struct Scene {
    config: Config,
    cloud: Cloud,
    kernel: Vec<String>,
    ledger: Ledger,
    script: Vec<String>,
    metadata: Metadata,
    memory: Memory,
    udev: Vec<String>,
}

impl Scene {
    fn read(&mut self, path: &Path, text: &str) {
        let mut sections: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let mut current = "";
        for line in text.lines() {
            let content = line.split(" # ").next().unwrap_or_default().trim();
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            if let Some(base) = line.strip_prefix("base ") {
                let base = path.parent().unwrap().join(format!("base/{base}.txt"));
                let text = fs::read_to_string(&base).unwrap();
                self.read(path, &text);
            } else if line.starts_with(' ') {
                sections.entry(current).or_default().push(content.to_owned());
            } else {
                let known = ["config", "cloud", "kernel", "ledger", "script"];
                current = known
                    .into_iter()
                    .find(|name| *name == line)
                    .unwrap_or_else(|| panic!("{}: there is no section {line:?}", path.display()));
            }
        }
        let mut take = |name| sections.remove(name).unwrap_or_default();
        take("config").iter().for_each(|line| text::configure(&mut self.config, line));
        text::cloud(&mut self.cloud, &take("cloud"));
        take("kernel").iter().for_each(|line| self.kernel(line));
        let mut lines = text::ledger_lines(&self.ledger);
        lines.extend(take("ledger"));
        self.ledger = text::ledger(&lines);
        self.script.extend(take("script"));
    }

    fn kernel(&mut self, line: &str) {
        if let Some(gone) = line.strip_prefix("- ") {
            let before = self.kernel.len();
            // A vanishing link takes its addresses and routes along.
            let name = gone.strip_prefix("link ").filter(|name| !name.contains(' '));
            self.kernel.retain(|line| match name {
                Some(name) => {
                    let mut words = line.split_whitespace();
                    let link = line.starts_with("link ") && words.nth(2) == Some(name);
                    !link && !format!("{line} ").contains(&format!(" dev {name} "))
                }
                None => line != gone,
            });
            assert!(self.kernel.len() < before, "the kernel has no {gone:?} to take away");
        } else {
            self.kernel.push(line.to_owned());
        }
    }

    /// Lets the simulation play the script; whether every promise was kept.
    fn keep(self) -> String {
        let kernel = Kernel { state: self.snapshot(), ..Kernel::default() };
        let Self { config, cloud, ledger, script, .. } = self;
        let (verdict, _) =
            Play::new(Start { config, cloud, kernel, ledger }, &script).run(Product::Real);
        match verdict {
            Ok(()) => KEPT_SECTION.trim_start().to_owned(),
            Err((at, broken)) => format!("promises\n  after {:?}: {broken}\n", at.0),
        }
    }

    /// Plays the script; the last decision in words.
    fn play(&mut self) -> String {
        let mut script = std::mem::take(&mut self.script);
        if script.is_empty() {
            script.push("at 0s poll".to_owned());
        }
        let mut show_ledger = false;
        let mut last = None;
        for line in &script {
            if line == "show the ledger" {
                show_ledger = true;
                continue;
            }
            let (times, event) = schedule(line);
            for now in times {
                if let Some(decision) = self.event(now, event) {
                    last = Some((self.ledger.clone(), decision, self.snapshot()));
                    self.ledger = last.as_ref().map(|(_, d, _)| d.ledger.clone()).unwrap();
                }
            }
        }
        let (before, decision, snapshot) = last.expect("the script decides nothing");
        let mut text = words(&decision, &snapshot);
        if show_ledger {
            let lines = |ledger| text::ledger_lines(ledger).into_iter();
            let (old, new): (BTreeSet<_>, BTreeSet<_>) =
                (lines(&before).collect(), lines(&decision.ledger).collect());
            text.push_str("\nledger changes\n");
            old.difference(&new).for_each(|line| _ = writeln!(text, "  - {line}"));
            new.difference(&old).for_each(|line| _ = writeln!(text, "  + {line}"));
        }
        text
    }

    fn snapshot(&self) -> Snapshot {
        text::snapshot(&self.kernel)
    }

    fn event(&mut self, now: Instant, event: &str) -> Option<Decision> {
        let (verb, rest) = event.split_once(' ').unwrap_or((event, ""));
        match verb {
            "poll" => {
                let full = rest.is_empty();
                let depth = if full { Depth::Full } else { Depth::Lists };
                let links = self.snapshot().links;
                let macs = links.iter().filter(|link| link.may_be_eni()).filter_map(|l| l.mac);
                let ask = Ask { top: full, enis: macs.map(|mac| (mac, depth)).collect() };
                self.metadata.record(&self.cloud.poll(now, &ask));
                return Some(self.decide(now));
            }
            "look" => return Some(self.decide(now)),
            "cloud" => self.cloud.change(rest),
            "kernel" => self.kernel(rest),
            "restart" => (self.metadata, self.memory) = Default::default(),
            "forget" => self.ledger = Ledger::default(),
            "drop" => _ = self.memory.drops.insert(parse(rest), now),
            "hold" => _ = self.ledger.released.insert(parse(rest)),
            "unhold" => _ = self.ledger.released.remove(&parse::<Mac>(rest)),
            "udev" => self.udev = rest.split_whitespace().map(str::to_owned).collect(),
            // Somebody takes away what enid keeps making.
            "made" => {
                let decision = self.decide(now);
                for planned in decision.plan.steps() {
                    self.memory.fights.done(now, &planned.step);
                }
            }
            other => panic!("{other:?} is no event"),
        }
        None
    }

    fn decide(&mut self, now: Instant) -> Decision {
        let snapshot = self.snapshot();
        let waits = |name: &String| self.udev.contains(name);
        let udev: BTreeSet<LinkIndex> =
            snapshot.links.iter().filter(|link| waits(&link.name)).map(|link| link.index).collect();
        let facts = Facts {
            now,
            config: &self.config,
            metadata: &self.metadata,
            observed: Observed { snapshot: &snapshot, ledger: &self.ledger },
            udev: &udev,
        };
        let decision = decide(&facts, &mut self.memory);
        sides::agree(&facts, &self.memory, &decision);
        decision.gone.iter().for_each(|mac| self.metadata.forget(*mac));
        decision
    }
}

fn words(decision: &Decision, snapshot: &Snapshot) -> String {
    let name_of = |index: LinkIndex| {
        let link = snapshot.links.iter().find(|link| link.index == index);
        link.map_or_else(|| format!("link-{}", index.0), |link| link.name.clone())
    };
    let mut text = "plan\n".to_owned();
    for planned in decision.plan.steps() {
        let _ = writeln!(text, "  {}", planned.step.command(&name_of));
    }
    if let Some(refused) = &decision.refused {
        let step = refused.step.as_ref().map(|step| step.command(&name_of));
        let _ = writeln!(text, "  refused: {refused}: {}", step.unwrap_or_default());
    }
    text.push_str("\nreport\n");
    report_words(&mut text, &decision.report, &name_of);
    for (what, macs) in [("unproven", &decision.unproven), ("gone", &decision.gone)] {
        macs.iter().for_each(|mac| _ = writeln!(text, "  {what} {mac}"));
    }
    if let Some(wake) = decision.wake {
        let _ = writeln!(text, "  wake at {:?}", wake.0);
    }
    text
}

fn report_words(text: &mut String, report: &Report, name_of: &dyn Fn(LinkIndex) -> String) {
    let _ = writeln!(text, "  {}", report.verdict);
    for eni in &report.enis {
        let _ = writeln!(text, "  {}", eni_words(eni));
        for address in &eni.addresses {
            let role = match address.role {
                Role::Primary => "primary",
                Role::Secondary => "secondary",
            };
            let state = state_words(&address.state, name_of);
            let _ = writeln!(text, "    {} {role}: {state}", address.address);
        }
        for kept in &eni.kept {
            let _ = writeln!(text, "    {} stays: {}", kept.address, kept.why);
        }
        for prefix in &eni.prefixes {
            let mode = match prefix.mode {
                Prefixes::Rules => "rules",
                Prefixes::Local => "local",
                Prefixes::Ignore => "ignore",
            };
            let leaving =
                prefix.leaving.as_ref().map(|leaving| format!(", {}", leaving_words(leaving)));
            let _ = writeln!(
                text,
                "    prefix {} {mode}{}",
                prefix.prefix,
                leaving.unwrap_or_default()
            );
        }
        for cidr in &eni.cidrs {
            let _ = writeln!(text, "    cidr {} {}", cidr.cidr, leaving_words(&cidr.leaving));
        }
        for source in &eni.sources {
            let _ = writeln!(text, "    source {source}");
        }
        for waiting in &eni.waiting {
            let words = if let Waiting::Fight { step, until, .. } = waiting {
                let step = step.command(name_of);
                format!("a fight until {:?}: {step}", until.0)
            } else if let Waiting::Udev { until } = waiting {
                format!("{waiting} until {:?}", until.0)
            } else {
                waiting.to_string()
            };
            let _ = writeln!(text, "    waits: {words}");
        }
        for notice in &eni.notices {
            let words = if let Notice::Conflict { wanted } = notice {
                let step = Step::Create(Object::clone(wanted)).command(name_of);
                format!("somebody else's object stands in the place of: {step}")
            } else {
                notice.to_string()
            };
            let _ = writeln!(text, "    notice: {words}");
        }
    }
}

fn eni_words(eni: &EniReport) -> String {
    let mut line = eni.link.as_ref().map_or_else(|| "(no link)".to_owned(), |link| link.1.clone());
    let _ = write!(line, " {}", eni.mac);
    if let Some(id) = &eni.id {
        let _ = write!(line, " {id}");
    }
    if let Some((card, device)) = eni.place {
        let _ = write!(line, " card {card} device {device}");
    }
    if let Some(table) = eni.table {
        let _ = write!(line, " table {table}");
    }
    if eni.primary {
        line.push_str(" primary");
    }
    line.push_str(": ");
    line.push_str(&match &eni.state {
        EniState::Managed => "managed".to_owned(),
        EniState::Pending => "pending".to_owned(),
        EniState::Held(hold) => format!("held: {hold}"),
        EniState::NoLink => "no link".to_owned(),
    });
    line
}

fn state_words(state: &AddressState, name_of: &dyn Fn(LinkIndex) -> String) -> String {
    match state {
        AddressState::Ours => "ours".to_owned(),
        AddressState::Theirs => "theirs".to_owned(),
        AddressState::TakenOver => "taken over".to_owned(),
        AddressState::Adding => "adding".to_owned(),
        AddressState::Missing => "missing".to_owned(),
        AddressState::Ignored => "ignored".to_owned(),
        AddressState::Elsewhere { link } => format!("elsewhere, by {}", name_of(*link)),
        AddressState::Leaving(leaving) => leaving_words(leaving),
    }
}

fn leaving_words(leaving: &Leaving) -> String {
    let mut text = match leaving.cause {
        Departure::Moved(to) => return format!("moves to {to}"),
        Departure::Dropped => "dropped".to_owned(),
        Departure::Unassigned => "leaving".to_owned(),
    };
    let Leaving { confirmations, needed, lacking, grace, .. } = leaving;
    let _ = write!(text, ", {confirmations} of {needed} readings, {lacking:?} of {grace:?}");
    if let Some(Mass { going, of }) = leaving.mass {
        let _ = write!(text, ", mass {going} of {of}");
    }
    for stop in &leaving.stops {
        let _ = write!(text, ", stopped: {stop}");
    }
    if leaving.proven {
        text.push_str(", proven");
    }
    text
}
