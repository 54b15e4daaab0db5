//! Promise: enid tells what it did, will do and why: the last events with cause, pass and duration, a
//! plan in which every step has its reason, and what came of reading the configuration again.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::vpc::Process;
use integration::{Daemon, binary, eventually, trial, valid};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::metadata_trouble::IMPATIENT;
use crate::pair::{PATIENCE, Pair, comes_to_rest};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("telling::events_say_what_happened_when_why_and_how_fast", events),
        trial("telling::events_are_followed_while_they_happen", followed),
        trial("telling::every_step_of_a_plan_has_its_reason", reasons),
        trial("telling::reload_says_what_came_of_it", reload),
    ]
}

fn enictl(daemon: &Daemon, words: &[&str]) -> anyhow::Result<String> {
    daemon.enictl().run(words)?.success()
}

fn list(events: &Value) -> anyhow::Result<&Vec<Value>> {
    events["events"].as_array().with_context(|| events.to_string())
}

/// The event that says this of the second ENI, in a list of them.
fn about<'a>(pair: &Pair, events: &'a Value, text: &str) -> anyhow::Result<&'a Value> {
    let is =
        |event: &&Value| event["eni"] == *pair.second.0 && event["text"].as_str() == Some(text);
    list(events)?.iter().find(is).with_context(|| format!("no \"{text}\" in {events}"))
}

fn events() -> anyhow::Result<()> {
    let pair = Pair::build()?;
    let mut daemon = Daemon::ready(&pair.instance, "")?;
    comes_to_rest(&daemon)?;
    let all: Value = serde_json::from_str(&enictl(&daemon, &["events", "--json"])?)?;
    ensure!(all["schema"] == 1 && all["forgotten"] == 0, "{all}");
    let before = list(&all)?.len();
    ensure!(before > 0 && all["events"][0]["kind"] == "daemon", "{all}");
    ensure!(about(&pair, &all, "added 10.0.2.4 to ens6").is_err(), "it is told before it is so");

    pair.vpc.attach(&pair.second, &pair.instance, "ens6")?;
    pair.comes_to_work("ens6", &daemon)?;
    let all: Value = serde_json::from_str(&enictl(&daemon, &["events", "--json"])?)?;
    let added = about(&pair, &all, "added 10.0.2.4 to ens6")?;
    for (field, value) in [
        ("kind", "address_added"),
        ("link", "ens6"),
        ("address", "10.0.2.4"),
        ("reason", "metadata grants it"),
    ] {
        ensure!(added[field] == value, "{field} is not {value} in {added}");
    }
    let cause = added["cause"].as_str().with_context(|| added.to_string())?.to_owned();
    ensure!(!cause.is_empty() && added["pass"].as_u64() > Some(0), "{added}");
    ensure!(added["duration_us"].as_u64() > Some(0), "{added}");
    for (n, event) in list(&all)?.iter().enumerate() {
        ensure!(event["number"] == n + 1, "{event} is number {}", n + 1);
    }

    // The same for people, one line each: when, what, and in brackets why and how fast.
    let text = enictl(&daemon, &["events"])?;
    let line = text.lines().find(|line| line.contains("added 10.0.2.4 to ens6"));
    let line = line.with_context(|| text.clone())?;
    ensure!(line.starts_with(added["at"].as_str().context("no time")?), "{line}");
    let pass = added["pass"].as_u64().context("no pass")?;
    ensure!(line.contains(&format!("  [{cause}, pass {pass}, ")), "{line}");
    ensure!(line.ends_with(" ms]"), "{line}");
    ensure!(text.lines().count() == list(&all)?.len(), "{text}");
    ensure!(!text.contains('\x1b'), "colour without a terminal: {text:?}");

    // The same words in the log, which the journal has.
    let log = daemon.log();
    for event in list(&all)? {
        let said = event["text"].as_str().context("no text")?;
        ensure!(log.contains(said), "the log does not say: {said}");
    }
    std::thread::sleep(Duration::from_millis(1200));
    let nothing = enictl(&daemon, &["events", "--since", "1s"])?;
    ensure!(nothing == "nothing happened; before that: journalctl -u enid\n", "{nothing}");
    ensure!(enictl(&daemon, &["events", "--since", "1h"])? == text, "an hour is not all");
    daemon.terminate()
}

/// `enictl events -f …` that runs until this is dropped, and the file that has what it says.
fn follow(pair: &Pair, daemon: &Daemon, words: &[&str]) -> anyhow::Result<(Process, Heard)> {
    let name = format!("followed{}", words.len());
    let path = daemon.config().with_file_name(name);
    let mut command = Command::new(binary("enictl")?);
    command.arg("--config").arg(daemon.config()).args(["events", "-f"]).args(words);
    command.stdin(Stdio::null()).stdout(std::fs::File::create(&path)?).stderr(Stdio::null());
    Ok((pair.instance.spawn(command)?, Heard(path)))
}

struct Heard(std::path::PathBuf);

impl Heard {
    /// What it said so far, in whole lines.
    fn text(&self) -> anyhow::Result<String> {
        let text = std::fs::read_to_string(&self.0)?;
        Ok(text.rfind('\n').map(|end| text[..=end].to_owned()).unwrap_or_default())
    }
}

fn followed() -> anyhow::Result<()> {
    let pair = Pair::build()?;
    let mut daemon = Daemon::ready(&pair.instance, IMPATIENT)?;
    comes_to_rest(&daemon)?;
    let (mut process, plain) = follow(&pair, &daemon, &["--since", "1h"])?;
    let (_json_process, json) = follow(&pair, &daemon, &["--json"])?;
    eventually(PATIENCE, "what happened before is told", &daemon, || {
        ensure!(plain.text()?.contains("metadata answers"), "{}", plain.text()?);
        ensure!(json.text()?.contains("metadata answers"), "{}", json.text()?);
        Ok(())
    })?;
    pair.vpc.attach(&pair.second, &pair.instance, "ens6")?;
    eventually(PATIENCE, "the attach is told", &daemon, || {
        let said = plain.text()?;
        let line = said.lines().find(|line| line.contains("added 10.0.2.4 to ens6"));
        let line = line.with_context(|| said.clone())?;
        ensure!(line.contains(", pass ") && line.ends_with(" ms]"), "{line}");
        Ok(())
    })?;
    let events = eventually(PATIENCE, "each line is an event", &daemon, || {
        let said = json.text()?;
        let events: Vec<Value> =
            said.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let is = |event: &&Value| event["text"] == "added 10.0.2.4 to ens6";
        let added = events.iter().find(is).with_context(|| said.clone())?;
        ensure!(added["eni"] == *pair.second.0 && added["duration_us"].is_u64(), "{added}");
        Ok(events)
    })?;
    for (n, event) in events.iter().enumerate() {
        ensure!(event["number"] == n + 1, "told twice or not at all: {event}");
        valid("event", event)?;
    }
    // Who follows keeps nobody else waiting, and learns that the daemon has gone.
    enictl(&daemon, &["status"])?;
    daemon.terminate()?;
    eventually(PATIENCE, "it ends with the daemon", &daemon, || {
        let ended = process.try_wait()?.context("it goes on")?;
        ensure!(ended.code() == Some(1), "{ended}");
        Ok(())
    })
}

fn reasons() -> anyhow::Result<()> {
    let pair = Pair::attached()?;
    pair.vpc.assign(&pair.second, std::net::Ipv4Addr::new(10, 0, 2, 5), None)?;
    let mut daemon = Daemon::prepare(&pair.instance, &integration::Launch::default(), "")?;
    let nobody = integration::Enictl::new(&pair.instance, &daemon.config());
    let reason_of = |plan: &Value, command: &str| -> anyhow::Result<String> {
        let mut steps = plan["steps"].as_array().with_context(|| plan.to_string())?.iter();
        let is = |step: &&Value| step["command"].as_str().is_some_and(|c| c.contains(command));
        let step = steps.find(is).with_context(|| format!("no {command} in {plan}"))?;
        Ok(step["reason"].as_str().with_context(|| step.to_string())?.to_owned())
    };
    let said = nobody.run(&["plan", "--json"])?;
    ensure!(said.code == Some(3), "{said:?}");
    let plan = said.json()?;
    for (command, words) in [
        ("address add 10.0.2.4/24", "metadata grants it"),
        ("address add 10.0.2.5/32", "metadata grants it"),
        ("link set dev ens6 up", "metadata lists the ENI"),
        ("link set dev ens6 group", "rules tell ENIs from other links"),
        ("altname", "found by its id"),
        ("unreachable", "must not leave by another ENI"),
        ("oif ens6", "bound to the device"),
        ("accept_ra_defrtr", "a router's word"),
    ] {
        let reason = reason_of(&plan, command)?;
        ensure!(reason.contains(words), "{command}: {reason}");
    }
    for step in plan["steps"].as_array().into_iter().flatten() {
        ensure!(step["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{step}");
    }
    // It reads like a script, with the reasons as its comments.
    for line in nobody.run(&["plan"])?.stdout.lines().filter(|line| !line.starts_with('#')) {
        let (command, reason) = line.split_once("  # ").with_context(|| line.to_owned())?;
        ensure!(!command.is_empty() && !reason.is_empty(), "{line}");
    }
    daemon.restart()?;
    pair.comes_to_work("ens6", &daemon)?;
    comes_to_rest(&daemon)?;
    daemon.terminate()?;
    pair.vpc.detach(&pair.second)?;
    let plan = nobody.run(&["plan", "--json"])?.json()?;
    let reason = reason_of(&plan, "rule del")?;
    ensure!(reason == "nothing has this source any more", "{reason}");
    Ok(())
}

fn reload() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    ensure!(enictl(&daemon, &["reload"])? == "nothing in it has changed\n", "it has changed");
    let interval = || -> anyhow::Result<Value> {
        Ok(crate::pair::status(&daemon)?["metadata"]["poll_interval_ms"].clone())
    };
    // Read before the watch notices, or after: the answer is about what is in force then.
    let socket = daemon.control_socket();
    let reload = |words: &[&str]| {
        let socket = socket.to_string_lossy();
        daemon.enictl().run(&[&["--socket", &*socket, "reload"], words].concat())
    };
    daemon.configure("poll_interval = \"7s\"\n")?;
    let said = reload(&["--json"])?;
    ensure!(said.code == Some(0), "{said:?}");
    ensure!(said.json()?["changed"].is_boolean(), "{said:?}");
    ensure!(interval()? == 7000, "it is not in force");
    ensure!(daemon.log().contains("the configuration was read again"), "{}", daemon.log());

    daemon.configure("poll_interval = \"7s\"\n[removal]\ngrase = \"1s\"\n")?;
    let text = std::fs::read_to_string(daemon.config())?;
    let line = text.lines().position(|line| line.contains("grase")).context("no line")? + 1;
    let said = reload(&[])?;
    ensure!(said.code == Some(1) && said.stdout.is_empty(), "{said:?}");
    let place = format!("{}:{line}: ", daemon.config().display());
    ensure!(said.stderr.contains(&place), "{place} is not in {said:?}");
    ensure!(said.stderr.contains("did you mean `grace`?"), "{said:?}");
    ensure!(interval()? == 7000, "a refused one is in force");
    daemon.configure("")?;
    ensure!(reload(&[])?.code == Some(0), "a right one is refused");
    ensure!(interval()? == 5000, "it is not in force");
    pair.works("ens6")?;
    daemon.terminate()
}
