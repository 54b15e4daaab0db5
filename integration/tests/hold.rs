//! Promise: an ENI that the operator holds is left exactly as it is, whoever looks sees by whom, why
//! and until when, and the hold ends when it was told to and not before.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::vpc::Output;
use integration::{Daemon, eventually, holds, trial};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::pair::{PATIENCE, Pair, answers, comes_to_rest, picture, same};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("hold::a_held_eni_is_left_as_it_is_until_unhold", until_unhold),
        trial("hold::a_hold_ends_when_its_time_is_over", until_its_time),
        trial("hold::a_hold_that_makes_no_sense_is_refused", refused),
    ]
}

const LATER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 5);

fn enictl(daemon: &Daemon, words: &[&str]) -> anyhow::Result<Output> {
    daemon.enictl().run(words)
}

/// The rule for sockets that are bound to the second ENI's link.
fn rule(pair: &Pair) -> anyhow::Result<bool> {
    let rules = pair.instance.ip_json(&["-4", "-N", "rule"])?;
    let is = |rule: &Value| rule["oif"] == "ens6" && rule["table"] == "20001";
    Ok(rules.as_array().context("no rules")?.iter().any(is))
}

fn break_it(pair: &Pair) -> anyhow::Result<()> {
    pair.instance.run(&["ip", "rule", "del", "oif", "ens6", "lookup", "20001"])?;
    Ok(())
}

/// What was broken stays broken, and what metadata grants meanwhile is not added.
fn is_left_alone(pair: &Pair) -> anyhow::Result<()> {
    ensure!(!rule(pair)?, "the rule is back");
    let addresses = pair.instance.run(&["ip", "addr"])?;
    ensure!(!addresses.contains(&format!("inet {LATER}/")), "an address was added");
    Ok(())
}

fn until_unhold() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("poll_interval = \"300ms\"\n")?;
    let before = picture(&pair.instance)?;
    let why = "moving the \x1b[31mdatabase";
    let said = enictl(&daemon, &["hold", "ens6", "--for", "2h", "--reason", why])?.success()?;
    ensure!(said.contains(&pair.second.0) && said.contains("2 h"), "{said}");
    break_it(&pair)?;
    pair.vpc.assign(&pair.second, LATER, None)?;
    enictl(&daemon, &["refresh"])?.success()?;
    holds(Duration::from_secs(1), "it is left alone", &daemon, || is_left_alone(&pair))?;
    // The other ENI is not held.
    pair.instance.run(&["ip", "rule", "del", "oif", "ens5", "lookup", "20000"])?;
    eventually(PATIENCE, "the other ENI is repaired", &daemon, || {
        let rules = pair.instance.run(&["ip", "rule"])?;
        ensure!(rules.contains("oif ens5 lookup"), "{rules}");
        Ok(())
    })?;
    is_told(&pair, &daemon)?;

    daemon.kill()?;
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    enictl(&daemon, &["refresh"])?.success()?;
    holds(Duration::from_secs(1), "a restart ends no hold", &daemon, || is_left_alone(&pair))?;
    is_told(&pair, &daemon)?;
    ensure!(enictl(&daemon, &["plan"])?.stdout == "nothing to do\n", "something is planned");

    enictl(&daemon, &["unhold", &pair.second.0])?.success()?;
    eventually(PATIENCE, "what came meanwhile is done", &daemon, || {
        answers(&pair.host, LATER)?;
        ensure!(rule(&pair)?, "the rule is not back");
        Ok(())
    })?;
    pair.vpc.unassign(&pair.second, LATER)?;
    eventually(PATIENCE, "the address may be dropped", &daemon, || {
        enictl(&daemon, &["drop", &LATER.to_string()])?.success()?;
        Ok(())
    })?;
    comes_to_rest(&daemon)?;
    same(&before, &picture(&pair.instance)?)?;
    daemon.terminate()
}

/// The status tells by whom and why it is held, and how that ends.
fn is_told(pair: &Pair, daemon: &Daemon) -> anyhow::Result<()> {
    let text = enictl(daemon, &["status"])?.stdout;
    for part in ["held by the operator", "moving the", "database", "enictl unhold"] {
        ensure!(text.contains(part), "{part} is not in:\n{text}");
    }
    ensure!(!text.contains('\x1b'), "the reason steers the terminal: {text:?}");
    let second = pair.second_status(daemon)?;
    ensure!(second["state"] == "held" && second["hold"]["kind"] == "operator", "{second}");
    let left = second["hold"]["seconds_left"].as_u64();
    ensure!(left > Some(3600) && left <= Some(7200), "it does not end in two hours: {second}");
    ensure!(text.contains(" from now"), "{text}");
    Ok(())
}

fn until_its_time() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    let before = picture(&pair.instance)?;
    enictl(&daemon, &["hold", &pair.second.0, "--for", "8s"])?.success()?;
    break_it(&pair)?;
    holds(Duration::from_secs(2), "it is held", &daemon, || {
        ensure!(!rule(&pair)?, "the rule is back");
        Ok(())
    })?;
    // The time goes on while nobody is there to count it.
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    eventually(PATIENCE, "the time is over and the rule is back", &daemon, || {
        same(&before, &picture(&pair.instance)?)
    })?;
    let second = pair.second_status(&daemon)?;
    ensure!(second["state"] == "managed", "{second}");
    comes_to_rest(&daemon)?;
    daemon.terminate()
}

fn refused() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    for (code, words, part) in [
        (5, &["hold", "ens9"][..], "ens6"),
        (5, &["hold", "02:00:00:00:00:99", "--for", "1h"], "no ENI here"),
        (2, &["hold", "ens6", "--for", "soon"], "1h"),
        (2, &["hold", "ens6", "--for", "366d"], "a year at most"),
        (2, &["hold"], "<ENI>"),
    ] {
        let said = enictl(&daemon, words)?;
        ensure!(said.code == Some(code) && said.stderr.contains(part), "{said:?}");
    }
    enictl(&daemon, &["release", "ens6"])?.success()?;
    let said = enictl(&daemon, &["hold", "ens6"])?;
    ensure!(said.code == Some(5) && said.stderr.contains("is released"), "{said:?}");
    enictl(&daemon, &["unhold", "ens6"])?.success()?;
    pair.comes_to_work("ens6", &daemon)?;
    daemon.terminate()
}
