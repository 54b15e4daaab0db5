//! Promise: `enictl status` says of each address whose it is and how it is reached, how old what is
//! known of metadata is, and in its first line why not all is well.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use integration::imds::{Action, Fault};
use integration::{Daemon, binary, eventually, trial};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::pair::{FIRST, FIRST_PUBLIC, PATIENCE, Pair, SECOND, SECOND_PUBLIC, status};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("status::each_address_says_whose_it_is_and_how_it_is_reached", addresses),
        trial("status::old_readings_show_their_age", readings),
        trial("status::the_first_line_says_why_not_all_is_well", first_line),
        trial("status::watching_draws_what_changes", watching),
    ]
}

const THIRD: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 5);
const THIRD_PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

fn text(daemon: &Daemon) -> anyhow::Result<String> {
    Ok(daemon.enictl().run(&["status"])?.stdout)
}

/// What the status says of an address.
fn address(status: &Value, address: Ipv4Addr) -> anyhow::Result<Value> {
    let enis = status["enis"].as_array().into_iter().flatten();
    let mut all = enis.flat_map(|eni| eni["addresses"].as_array().into_iter().flatten());
    let found = all.find(|known| known["address"] == json!(address)).cloned();
    found.with_context(|| format!("{address} is not in {status}"))
}

fn addresses() -> anyhow::Result<()> {
    let pair = Pair::attached()?;
    let lease = format!("{FIRST}/24");
    let lease =
        ["addr", "change", &lease, "dev", "ens5", "valid_lft", "600", "preferred_lft", "600"];
    pair.instance.run(&[&["ip"], &lease[..]].concat())?;
    let mut daemon = Daemon::ready(&pair.instance, "")?;
    pair.comes_to_work("ens6", &daemon)?;
    pair.vpc.assign(&pair.second, THIRD, Some(THIRD_PUBLIC))?;
    ensure!(daemon.enictl().run(&["refresh", "--wait"])?.code == Some(0), "it does not converge");
    let said = status(&daemon)?;
    for (own, origin, public) in [
        (FIRST, "dynamic", FIRST_PUBLIC),
        (SECOND, "enid", SECOND_PUBLIC),
        (THIRD, "enid", THIRD_PUBLIC),
    ] {
        let known = address(&said, own)?;
        ensure!(known["origin"] == origin && known["public"] == json!(public), "{known}");
    }
    let second = &said["enis"][1];
    ensure!(second["gateways"] == json!(["10.0.2.1"]), "{second}");
    let text = text(&daemon)?;
    for line in [
        format!("{FIRST}  primary    there, from DHCP or a router, public {FIRST_PUBLIC}"),
        format!("{THIRD}  secondary  there, public {THIRD_PUBLIC}"),
        "gateway 10.0.2.1".to_owned(),
    ] {
        ensure!(text.contains(&line), "{line} is not in\n{text}");
    }
    ensure!(text.starts_with("converged for ") && text.contains(": 2 ENIs, 3 addresses"), "{text}");
    daemon.terminate()
}

fn readings() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    let age = || -> anyhow::Result<(u64, u64)> {
        let said = status(&daemon)?;
        let second = said["enis"][1]["read_seconds"].as_u64();
        let all = said["metadata"]["read_seconds"].as_u64();
        all.zip(second).with_context(|| format!("no ages in {said}"))
    };
    let (all, second) = age()?;
    ensure!(all < 20 && second < 20, "{all} s, {second} s");
    let mac = pair.vpc.eni(&pair.second)?.mac.to_string();
    let fault = Fault::on(&format!("*/{mac}/local-ipv4s"), Action::Status(503));
    pair.vpc.metadata().fault(fault);
    let before = second;
    eventually(PATIENCE, "the reading of one ENI grows old", &daemon, || {
        let (all, second) = age()?;
        let said = status(&daemon)?;
        let first = said["enis"][0]["read_seconds"].as_u64().context("the first was read")?;
        ensure!(second > before + 7 && all >= second && first < second, "{all} {first} {second}");
        Ok(())
    })?;
    let said = text(&daemon)?;
    ensure!(said.contains("reading     complete "), "{said}");
    daemon.terminate()
}

fn first_line() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    pair.vpc.assign(&pair.second, THIRD, None)?;
    ensure!(daemon.enictl().run(&["refresh", "--wait"])?.code == Some(0), "it does not converge");
    pair.vpc.unassign(&pair.second, THIRD)?;
    daemon.enictl().run(&["refresh"])?;
    let second = &pair.second.0;
    eventually(PATIENCE, "the first line says why", &daemon, || {
        let said = text(&daemon)?;
        let first = said.lines().next().unwrap_or_default();
        let why = format!(": {second}: one removal waits for proof (enid ");
        ensure!(first.starts_with("waiting for ") && first.contains(&why), "{said}");
        Ok(())
    })?;
    let hold = [
        "hold",
        "ens6",
        "--for",
        "1h",
        "--reason",
        "moving\u{1b}[2J the database, and more words than fit",
    ];
    ensure!(daemon.enictl().run(&hold)?.code == Some(0), "it is not held");
    let said = text(&daemon)?;
    let longest = said.lines().map(|line| line.chars().count()).max();
    ensure!(longest.is_some_and(|longest| longest <= 100), "{longest:?} columns\n{said}");
    ensure!(said.contains("moving") && !said.contains('\u{1b}'), "{said:?}");
    let held = &status(&daemon)?["enis"][1]["hold"];
    let left = held["seconds_left"].as_u64().unwrap_or_default();
    ensure!(held["kind"] == "operator" && (3000..=3600).contains(&left), "{held}");
    daemon.terminate()
}

fn watching() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    let refused = daemon.enictl().run(&["status", "--watch"])?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("terminal"), "{refused:?}");
    let drawn = tempfile::NamedTempFile::new()?;
    let command = format!(
        "{} --config {} status --watch",
        binary("enictl")?.display(),
        daemon.config().display()
    );
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--flush", "--command", &command]).arg(drawn.path());
    terminal.stdin(Stdio::null()).stdout(Stdio::null());
    let watching = pair.instance.spawn(terminal)?;
    let shows = |part: &str| {
        let all = read(drawn.path())?;
        let last = all.rsplit("\u{1b}[H").next().unwrap_or_default().to_owned();
        ensure!(all.matches("\u{1b}[H").count() > 1 && last.contains(part), "{part}: {last}");
        Ok(())
    };
    eventually(PATIENCE, "it is drawn", &daemon, || shows("2 ENIs, 2 addresses"))?;
    pair.vpc.assign(&pair.second, THIRD, None)?;
    eventually(PATIENCE, "the new one is drawn", &daemon, || shows(&THIRD.to_string()))?;
    drop(watching);
    daemon.terminate()
}

fn read(path: &Path) -> anyhow::Result<String> {
    Ok(String::from_utf8_lossy(&std::fs::read(path)?).into_owned())
}
