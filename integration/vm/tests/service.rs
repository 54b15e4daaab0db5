//! Promise: as a service enid has no more rights than it needs, comes back when it dies or hangs,
//! and tells systemd and the journal what somebody on call wants to know.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::eventually;
use serde_json::Value;
use vm::{Image, Recipe, Release};

use crate::Promise;
use crate::stage::{FIRST_PUBLIC, PATIENCE, SECOND_PUBLIC, SECONDARY, Stage, figure, networkd};

pub(crate) fn promises() -> Vec<Promise> {
    vec![Promise {
        name: "service::it_has_few_rights_comes_back_and_says_what_it_does",
        recipe: Recipe::new(Release::Trixie),
        keep,
    }]
}

fn keep(image: &Image) -> anyhow::Result<()> {
    let watchdog = "[Service]\nWatchdogSec=5\n";
    let files = networkd("Name=ens5")?
        .text("/etc/systemd/system/enid.service.d/watchdog.conf", watchdog)?;
    let stage = Stage::boot(image, &files)?;
    stage.install()?;
    stage.vpc.assign(&stage.second, SECONDARY, None)?;
    stage.plug_second()?;
    stage.comes_to_work()?;
    stage.comes_to_rest()?;

    has_few_rights(&stage)?;
    says_what_it_does(&stage)?;
    explains_what_it_says(&stage)?;
    describes_its_socket(&stage)?;
    let pingers = [FIRST_PUBLIC, SECOND_PUBLIC, SECONDARY].map(|to| (to, stage.ping(to)));
    comes_back(&stage)?;
    for (to, pinger) in pingers {
        stage.missed_nothing(pinger?, &to.to_string())?;
    }
    Ok(())
}

/// `CAP_NET_ADMIN` alone, as `/proc/PID/status` shows a set of capabilities.
const NET_ADMIN: &str = "0000000000001000";

fn has_few_rights(stage: &Stage) -> anyhow::Result<()> {
    let pid = stage.machine.unit("enid.service")?.pid;
    let status = stage.machine.run(&format!("cat /proc/{pid}/status"))?;
    let field = |name: &str| -> anyhow::Result<&str> {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        value.with_context(|| format!("no {name} in {status}"))
    };
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        ensure!(field(set)? == NET_ADMIN, "{set} is {}", field(set)?);
    }
    ensure!(field("NoNewPrivs")? == "1", "it may gain rights");
    ensure!(field("Seccomp")? == "2", "no system call is filtered");
    ensure!(!field("Uid")?.starts_with("0\t"), "it is root");
    let said = stage.machine.run("systemd-analyze security --no-pager enid.service | tail -1")?;
    figure("systemd-analyze security", said.trim());
    stage.machine.run("systemd-analyze security --no-pager --threshold=20 enid.service")?;
    Ok(())
}

fn says_what_it_does(stage: &Stage) -> anyhow::Result<()> {
    let eni = &stage.second.0;
    let lines = stage.machine.journal(&format!("-u enid ENI={eni}"))?;
    let has = |name: &str, value: &str| lines.iter().any(|line| line[name] == value);
    let address = SECONDARY.to_string();
    for (name, value) in [("INTERFACE", "ens6"), ("ADDRESS", &address)] {
        ensure!(has(name, value), "no line of {eni} has {name}={value}: {lines:?}");
    }
    ensure!(
        lines.iter().all(|line| line["PRIORITY"] == "6"),
        "nothing went wrong, but a line is more than information: {lines:?}"
    );
    let status = stage.machine.run("systemctl --no-pager status enid")?;
    ensure!(status.contains("Status: \"2 ENIs, 3 addresses, converged "), "{status}");

    let count = || anyhow::Ok(stage.machine.journal("-u enid")?.len());
    let before = count()?;
    std::thread::sleep(Duration::from_secs(12));
    ensure!(count()? == before, "it talks while nothing happens");
    Ok(())
}

/// The line of an address has all that scripts ask for, and the package's catalog explains it.
fn explains_what_it_says(stage: &Stage) -> anyhow::Result<()> {
    let (eni, address) = (&stage.second.0, SECONDARY.to_string());
    let lines = stage.machine.journal(&format!("-u enid ENI={eni} ADDRESS={address}"))?;
    let line = lines.first().context("the journal has no line of the address")?;
    for (name, value) in [
        ("ENI", eni.as_str()),
        ("INTERFACE", "ens6"),
        ("ADDRESS", &address),
        ("MESSAGE_ID", "a63ad8ab45544558b50618e901285fa9"),
    ] {
        ensure!(line[name] == value, "{name} is not {value}: {line}");
    }
    ensure!(line["CAUSE"].as_str().is_some_and(|cause| !cause.is_empty()), "no CAUSE: {line}");
    for name in ["PASS", "DURATION_US"] {
        let number = line[name].as_str().and_then(|text| text.parse::<u64>().ok());
        ensure!(number > Some(0), "{name} is no number: {line}");
    }
    let routing = "MESSAGE_ID=9f2f72ec753b491aafd78cf2ab8be552";
    let lines = stage.machine.journal(&format!("-u enid ENI={eni} {routing}"))?;
    ensure!(lines.iter().any(|line| line["TABLE"] == "20001"), "no TABLE: {lines:?}");

    let explained = format!("journalctl --no-pager -x -u enid ENI={eni} ADDRESS={address}");
    let explained = stage.machine.run(&explained)?;
    let subject = format!("Subject: Address {address} was added to ens6");
    for part in [&subject, "Defined-By: enid", "man:enid(8)", &format!("{address} to {eni}")] {
        ensure!(explained.contains(part), "{part} is not in:\n{explained}");
    }
    Ok(())
}

/// With systemd's own client, which reads the description by its own rules.
fn describes_its_socket(stage: &Stage) -> anyhow::Result<()> {
    let socket = "/run/enid/control.sock";
    let said = stage.machine.run(&format!("varlinkctl introspect {socket} io.enid.Control"))?;
    for part in ["interface io.enid.Control", "method Status(", "type InstanceStatus", "error Busy"]
    {
        ensure!(said.contains(part), "{part} is not in:\n{said}");
    }
    let call = format!("varlinkctl call --json=short {socket} io.enid.Control.Status '{{}}'");
    let said: Value = stage.machine.json(&call)?;
    ensure!(said["status"]["verdict"] == "converged", "{said}");
    let events = format!("varlinkctl call --json=short {socket} io.enid.Control.Events '{{}}'");
    let said: Value = stage.machine.json(&events)?;
    ensure!(said["events"].as_array().is_some_and(|events| !events.is_empty()), "{said}");
    // Everybody may look, and only look.
    let nobody = "setpriv --reuid=65534 --clear-groups --";
    stage.machine.run(&format!("{nobody} {call}"))?;
    let refresh = format!("varlinkctl call {socket} io.enid.Control.Refresh '{{}}'");
    stage.machine.run(&refresh)?;
    let refused = stage.machine.output(&format!("{nobody} {refresh}"))?;
    ensure!(refused.code != Some(0), "nobody may refresh: {refused:?}");
    ensure!(refused.stderr.contains("PermissionDenied"), "{refused:?}");
    Ok(())
}

fn comes_back(stage: &Stage) -> anyhow::Result<()> {
    let comes_back = |what: &str| -> anyhow::Result<()> {
        let before = stage.machine.unit("enid.service")?;
        stage.machine.run(what)?;
        eventually(PATIENCE, "the daemon is back", &stage.machine, || {
            let now = stage.machine.unit("enid.service")?;
            ensure!(now.active == "active" && now.pid != before.pid, "{now:?}");
            Ok(())
        })?;
        stage.comes_to_rest()?;
        stage.works()
    };
    comes_back("systemctl kill --signal=KILL enid")?;
    comes_back("systemctl kill --signal=STOP enid")?;
    comes_back("systemctl restart enid")?;

    let pid = stage.machine.unit("enid.service")?.pid;
    stage.machine.run("mkdir -p /etc/enid/enid.d && echo 'poll_interval = \"7s\"' > /etc/enid/enid.d/x.toml && systemctl reload enid")?;
    let now = stage.machine.unit("enid.service")?;
    ensure!(now.active == "active" && now.pid == pid, "a reload is no restart: {now:?}");
    eventually(PATIENCE, "the reload counts", &stage.machine, || {
        let interval = poll_interval(stage)?;
        ensure!(interval == 7000, "the poll interval is {interval} ms");
        Ok(())
    })?;
    let refused = stage
        .machine
        .output("echo 'poll = 1' > /etc/enid/enid.d/x.toml && systemctl reload enid")?;
    ensure!(refused.code != Some(0), "a reload of a broken configuration succeeds");
    let now = stage.machine.unit("enid.service")?;
    ensure!(now.active == "active" && now.pid == pid, "a refused reload is no end: {now:?}");
    ensure!(poll_interval(stage)? == 7000, "a refused configuration is in force");
    Ok(())
}

fn poll_interval(stage: &Stage) -> anyhow::Result<u64> {
    let status: Value = stage.machine.json("enictl status --json")?;
    let interval = status["metadata"]["poll_interval_ms"].as_u64();
    interval.with_context(|| format!("no interval: {status}"))
}
