//! The steps of the demo, in the order in which they are told.

use std::fmt::Write as _;
use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use vpc::Process;
use vpc::imds::{Action, Fault};

use super::pings::Promise::{self, Answers, Begins, Ends, Heals, Nobody, Silent};
use super::stage::{EXTRA, EXTRA_PUBLIC, PATIENCE, Stage, time_of_day};

/// A step: what is expected, and what makes it happen.
pub(super) struct Step {
    /// At most 38 columns.
    pub(super) title: &'static str,
    pub(super) expected: &'static str,
    pub(super) act: fn(&mut Stage) -> anyhow::Result<Did>,
}

/// What came of a step.
pub(super) struct Did {
    pub(super) happened: String,
    pub(super) took: Option<(Duration, &'static str)>,
    /// When it began, where that is not when the step did.
    pub(super) moment: Option<Instant>,
    /// Commands and what they said.
    pub(super) blocks: Vec<(String, String)>,
    /// What the pings must show, one for each target.
    pub(super) promises: [Promise; 3],
    /// Expectations that did not come true, beside those of the pings.
    pub(super) misses: Vec<String>,
}

impl Did {
    fn new(happened: impl Into<String>, promises: [Promise; 3]) -> Did {
        Did {
            happened: happened.into(),
            took: None,
            moment: None,
            blocks: Vec::new(),
            promises,
            misses: Vec::new(),
        }
    }

    fn took(mut self, time: Duration, what: &'static str) -> Did {
        self.took = Some((time, what));
        self
    }

    fn since(mut self, moment: Instant) -> Did {
        self.moment = Some(moment);
        self
    }

    fn block(mut self, command: &str, text: &str) -> Did {
        self.blocks.push((command.to_owned(), text.to_owned()));
        self
    }

    fn must(mut self, holds: bool, miss: &str) -> Did {
        if !holds {
            self.misses.push(miss.to_owned());
        }
        self
    }
}

/// The daemon's configuration; [`GRACE`] and [`SILENCE`] go with it.
const CONFIG: &str = "poll_interval = \"1s\"\n\n[removal]\ngrace = \"3s\"\n";
const GRACE: Duration = Duration::from_secs(3);
/// Long enough for an absence that was proven to have its effect.
const SILENCE: Duration = Duration::from_secs(7);
/// How long a step is watched that needs no more time.
const WATCH: Duration = Duration::from_millis(500);
/// Slower than this is a miss; an idle machine is a hundred times faster.
const SOON: Duration = Duration::from_secs(1);

pub(super) const STORY: &[Step] = &[
    Step {
        title: "One ENI, as every instance boots",
        expected: "203.0.113.1 answers: DHCP configured ens5.",
        act: one_eni,
    },
    Step {
        title: "A second ENI without enid",
        expected: "The naive failure: ens6 is up and has what DHCP gives, yet 203.0.113.2 stays \
                   silent. Its replies leave by ens5, and the fabric drops foreign sources.",
        act: naive,
    },
    Step {
        title: "enid starts",
        expected: "It is ready, and 203.0.113.1 misses nothing.",
        act: start,
    },
    Step {
        title: "The ENI is attached again",
        expected: "203.0.113.2 answers within a second, with nobody's help; 203.0.113.1 misses nothing.",
        act: attach,
    },
    Step {
        title: "An address is assigned",
        expected: "10.0.2.9 with public 203.0.113.3 answers within a second of `enictl refresh --wait`.",
        act: assign,
    },
    Step {
        title: "The address is unassigned",
        expected: "10.0.2.9 goes after 3 readings that lack it over 3 s (by default 60 s), not \
                   before; nothing else misses a ping.",
        act: unassign,
    },
    Step {
        title: "A rule is deleted by hand",
        expected: "The rule is back within a second; 203.0.113.1 does not notice.",
        act: break_rule,
    },
    Step {
        title: "Metadata falls silent",
        expected: "Silence for more than twice the grace proves nothing: nothing is removed.",
        act: silence,
    },
    Step {
        title: "kill -9, then a restart",
        expected: "No packet needs enid: nothing changes while it is dead, and nothing is to do \
                   when it is back.",
        act: crash,
    },
    Step {
        title: "The ENI is detached",
        expected: "No rule, route or address is left over: the kernel says what it said at first.",
        act: detach,
    },
];

fn one_eni(stage: &mut Stage) -> anyhow::Result<Did> {
    let start = Instant::now();
    let took = stage.answer(0, start)?;
    std::thread::sleep(WATCH);
    Ok(Did::new("The internet hears from it.", [Answers, Nobody, Nobody])
        .took(took, "until an answer"))
}

fn naive(stage: &mut Stage) -> anyhow::Result<Did> {
    let start = Instant::now();
    stage.vpc.attach(&stage.second, &stage.instance, "ens6")?;
    stage.vpc.configure_as_dhcp(&stage.second)?;
    let before = stage.vpc.drops(&stage.instance.primary)?;
    std::thread::sleep(2 * WATCH);
    let dropped = stage.vpc.drops(&stage.instance.primary)? - before;
    let route = stage.instance.run(&["ip", "route", "get", "198.51.100.10", "from", "10.0.2.4"])?;
    let took = start.elapsed();
    stage.vpc.detach(&stage.second)?;
    let happened = format!(
        "10.0.2.4 answered the pings by ens5; the fabric dropped {dropped} of its replies there. \
         The ENI is detached again."
    );
    let route = route.lines().next().unwrap_or_default();
    Ok(Did::new(happened, [Answers, Silent, Nobody])
        .block("ip route get 198.51.100.10 from 10.0.2.4", route)
        .took(took, "and no answer")
        .must(dropped > 0, "the fabric dropped nothing"))
}

fn start(stage: &mut Stage) -> anyhow::Result<Did> {
    let start = Instant::now();
    stage.start(CONFIG)?;
    let took = start.elapsed();
    std::thread::sleep(WATCH);
    stage.at_first = stage.kernel()?;
    let happened = "It runs as shipped, but for the demo with poll_interval = 1 s and \
                    removal.grace = 3 s instead of 5 s and 60 s.";
    Ok(Did::new(happened, [Answers, Nobody, Nobody]).took(took, "from its start to READY=1"))
}

fn attach(stage: &mut Stage) -> anyhow::Result<Did> {
    let plugged = stage.vpc.attach(&stage.second, &stage.instance, "ens6")?;
    let took = stage.answer(1, plugged.event)?;
    std::thread::sleep(WATCH);
    let rules = stage.instance.run(&["ip", "rule"])?;
    let rules: Vec<String> = rules
        .lines()
        .filter(|line| {
            line.contains("proto 233") && line.contains("20001") || line.contains("10.0.2.")
        })
        .map(|line| line.replace('\t', " ").replace(" proto 233", "").trim_end().to_owned())
        .collect();
    let routes = stage.instance.run(&["ip", "route", "show", "table", "20001"])?;
    let routes: Vec<String> =
        routes.lines().map(|line| line.replace(" proto 233", "").trim_end().to_owned()).collect();
    Ok(Did::new(
        "ens6 has a table of its own, and rules lead there what leaves from its subnet.",
        [Answers, Begins(plugged.event), Nobody],
    )
    .since(plugged.event)
    .block("ip rule", &rules.join("\n"))
    .block("ip route show table 20001", &routes.join("\n"))
    .took(took, "from the link's event to the first answer")
    .must(took < SOON, "it took longer than a second"))
}

fn assign(stage: &mut Stage) -> anyhow::Result<Did> {
    stage.vpc.assign(&stage.second, EXTRA, Some(EXTRA_PUBLIC))?;
    let start = Instant::now();
    let said = stage.enictl(&["refresh", "--wait"])?;
    let command = start.elapsed();
    let took = stage.answer(2, start)?;
    std::thread::sleep(WATCH);
    let status = stage.enictl(&["status"])?;
    let mut happened = String::new();
    write!(
        happened,
        "`enictl refresh --wait` said \"{}\" after {}. What the operator sees then:",
        said.trim(),
        super::ms(command)
    )?;
    Ok(Did::new(happened, [Answers, Answers, Begins(start)])
        .since(start)
        .block("enictl status", &status)
        .took(took, "from the command's start to the first answer")
        .must(took < SOON, "it took longer than a second"))
}

fn unassign(stage: &mut Stage) -> anyhow::Result<Did> {
    let start = Instant::now();
    stage.vpc.unassign(&stage.second, EXTRA)?;
    let address = format!(" {EXTRA}/");
    let gone = stage.wait(start, |stage| {
        std::thread::sleep(Duration::from_millis(10));
        Ok(!stage.instance.run(&["ip", "-br", "addr", "show", "dev", "ens6"])?.contains(&address))
    })?;
    std::thread::sleep(WATCH);
    let happened = if gone.is_some() {
        "The cloud delivers nothing to it any more; enid let it stay for the grace, then removed it."
    } else {
        "10.0.2.9 stays."
    };
    let did = Did::new(happened, [Answers, Answers, Ends])
        .must(gone.is_some(), &format!("10.0.2.9 is still there after {PATIENCE:?}"))
        .must(gone.is_none_or(|time| time >= GRACE), "it went before the grace was over");
    Ok(match gone {
        Some(time) => did.took(time, "from unassigning to its removal"),
        None => did,
    })
}

fn break_rule(stage: &mut Stage) -> anyhow::Result<Did> {
    let rule = ["from", "10.0.2.0/24", "iif", "lo", "lookup", "20001"];
    let monitor = Monitor::start(stage)?;
    let start = Instant::now();
    stage.instance.run(&[&["ip", "rule", "del"], &rule[..]].concat())?;
    let mut took = None;
    let seen = stage.wait(start, |_| {
        took = monitor.absence(&rule.join(" "))?;
        Ok(took.is_some())
    })?;
    std::thread::sleep(WATCH);
    let happened = format!("`ip rule del {}`, as a tired admin would.", rule.join(" "));
    let did = Did::new(happened, [Answers, Heals(start, seen.unwrap_or_default()), Nobody])
        .since(start)
        .must(took.is_some_and(|took| took < SOON), "the rule was not back within a second");
    Ok(match took {
        Some(took) => did.took(took, "without it, by the clock of `ip -ts monitor rule`"),
        None => did,
    })
}

fn silence(stage: &mut Stage) -> anyhow::Result<Did> {
    let before = stage.kernel()?;
    let start = Instant::now();
    let fault = stage.vpc.metadata().fault(Fault::on("*", Action::Silence));
    std::thread::sleep(SILENCE);
    let status = stage.daemon()?.enictl().run(&["status", "--json"])?.json()?;
    let after = stage.kernel()?;
    let took = start.elapsed();
    stage.vpc.metadata().clear(fault);
    let health = status["metadata"]["health"].as_str().unwrap_or("unknown").to_owned();
    let happened = format!(
        "`enictl status` says that metadata is {health}; {} rules and routes of enid before, {} after.",
        owned(&before),
        owned(&after)
    );
    Ok(Did::new(happened, [Answers, Answers, Nobody])
        .took(took, "without an answer of metadata")
        .must(health == "failing", "the silence was not noticed")
        .must(before == after, "the kernel's state changed"))
}

fn crash(stage: &mut Stage) -> anyhow::Result<Did> {
    let before = stage.kernel()?;
    stage.daemon()?.kill()?;
    std::thread::sleep(WATCH);
    let dead = stage.kernel()?;
    let alone = stage.daemon()?.enictl().run(&["plan"])?;
    let start = Instant::now();
    let daemon = stage.daemon()?;
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    let took = start.elapsed();
    std::thread::sleep(WATCH);
    let plan = stage.daemon()?.enictl().run(&["plan"])?;
    let after = stage.kernel()?;
    Ok(Did::new(
        "It was dead for half a second, and `enictl plan` worked without it:",
        [Answers, Answers, Nobody],
    )
    .block("enictl plan    # while enid was dead", &alone.stdout)
    .block("enictl plan    # after the restart", &plan.stdout)
    .took(took, "from the new start to READY=1")
    .must(before == dead, "the kernel's state changed with its death")
    .must(before == after, "the kernel's state changed with its restart")
    .must(alone.code == Some(0) && plan.code == Some(0), "there is something to do"))
}

fn detach(stage: &mut Stage) -> anyhow::Result<Did> {
    let start = Instant::now();
    stage.vpc.detach(&stage.second)?;
    let took = stage.wait(start, |stage| Ok(stage.kernel()? == stage.at_first))?;
    std::thread::sleep(WATCH);
    let now = stage.kernel()?;
    let did = Did::new("The link vanished, and its rules with it.", [Answers, Ends, Nobody])
        .must(now == stage.at_first, "the kernel's state is not what it was before the ENI came");
    Ok(match took {
        Some(took) => did.took(took, "from detaching until nothing is left over"),
        None => did.block("diff", &difference(&stage.at_first, &now)),
    })
}

/// How many lines of the kernel's state are enid's own.
fn owned(kernel: &str) -> usize {
    kernel.lines().filter(|line| line.contains("proto 233")).count()
}

/// The lines that only one of two states has.
fn difference(before: &str, after: &str) -> String {
    let lacks = |text: &str, line: &str| !text.lines().any(|other| other == line);
    let gone = before.lines().filter(|line| lacks(after, line)).map(|line| format!("- {line}"));
    let new = after.lines().filter(|line| lacks(before, line)).map(|line| format!("+ {line}"));
    gone.chain(new).collect::<Vec<_>>().join("\n")
}

/// `ip monitor`, which writes down when rules come and go.
struct Monitor {
    _process: Process,
}

impl Monitor {
    /// This `/run` is the demo's own.
    const FILE: &str = "/run/rules";

    fn start(stage: &Stage) -> anyhow::Result<Monitor> {
        let file = File::create(Monitor::FILE).context("cannot make a file in /run")?;
        let mut command = Command::new("ip");
        command.args(["-ts", "monitor", "rule"]).stdin(Stdio::null()).stdout(file);
        let process = stage.instance.spawn(command)?;
        // It does not say when it listens.
        std::thread::sleep(Duration::from_millis(200));
        Ok(Monitor { _process: process })
    }

    /// For how long a rule was away; `None` while it did not go or has not come back.
    fn absence(&self, rule: &str) -> anyhow::Result<Option<Duration>> {
        let text = std::fs::read_to_string(Monitor::FILE)?;
        let mut gone = None;
        for line in text.lines().filter(|line| line.contains(rule)) {
            let at = bracketed(line).with_context(|| format!("no time in {line}"))?;
            match gone {
                None if line.contains("Deleted ") => gone = Some(at),
                Some(gone) if !line.contains("Deleted ") => {
                    ensure!(at >= gone, "the clock went backwards");
                    return Ok(Some(at - gone));
                }
                None | Some(_) => {}
            }
        }
        Ok(None)
    }
}

/// The time of the day in `[2026-01-31T12:34:56.789012] …`.
fn bracketed(line: &str) -> Option<Duration> {
    time_of_day(line.strip_prefix('[')?.split_once(']')?.0)
}

#[cfg(test)]
mod tests {
    use super::STORY;

    #[test]
    fn titles_fit_the_summary() {
        for step in STORY {
            assert!(step.title.len() <= 36, "{}", step.title);
        }
    }
}
