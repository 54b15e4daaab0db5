//! Promise: the operator sees what enid does and why, takes control of an ENI and gives it back,
//! and enid tells systemd and the journal what they want to know.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::imds::{Action, Fault};
use integration::vpc::{EniSpec, Output};
use integration::{Daemon, Enictl, Listener, binary, eventually, holds, trial};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::pair::{FIRST, PATIENCE, Pair, SECOND, answers, comes_to_rest, picture, same, status};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("operator::status_fits_its_columns_and_tells_all", status_tells_all),
        trial("operator::plan_says_the_same_with_and_without_the_daemon", plans),
        trial("operator::plan_without_the_daemon_marks_removals", removals_are_not_counted),
        trial("operator::refresh_wait_returns_when_it_works", refresh),
        trial("operator::release_puts_everything_back_until_unhold", release),
        trial("operator::release_all_holds_what_is_attached_later", release_all),
        trial("operator::drop_removes_only_what_metadata_no_longer_grants", drops),
        trial("operator::exit_codes_are_as_documented", exit_codes),
        trial("operator::stopping_changes_nothing", stopping),
        trial("operator::systemd_is_told", systemd),
        trial("operator::the_journal_gets_fields", journal),
    ]
}

const SECONDARY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 5);

fn enictl(daemon: &Daemon, words: &[&str]) -> anyhow::Result<Output> {
    daemon.enictl().run(words)
}

fn ends_with(code: i32, said: &Output) -> anyhow::Result<()> {
    ensure!(said.code == Some(code), "not {code}: {said:?}");
    Ok(())
}

fn has(pair: &Pair, address: Ipv4Addr) -> anyhow::Result<bool> {
    Ok(pair.instance.run(&["ip", "addr"])?.contains(&format!("inet {address}/")))
}

fn status_tells_all() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    let many: Vec<_> = (20..40).map(|last| Ipv4Addr::new(10, 0, 2, last).into()).collect();
    pair.vpc.assign_all(&pair.second, &many)?;
    ends_with(0, &enictl(&daemon, &["refresh", "--wait"])?)?;
    pair.vpc.unassign(&pair.second, many[0])?;
    pair.vpc.metadata().fault(Fault::on("*/ipv6s", Action::Status(503)));
    ends_with(0, &enictl(&daemon, &["refresh"])?)?;
    let said = eventually(PATIENCE, "the address leaves", &daemon, || {
        let said = enictl(&daemon, &["status"])?;
        ensure!(said.stdout.contains("leaving"), "{}", said.stdout);
        Ok(said)
    })?;
    ends_with(3, &said)?;
    let mac = pair.vpc.eni(&pair.second)?.mac.to_string();
    for part in [
        "ENI ",
        " LINK ",
        " TABLE ",
        " STATE",
        "ens5",
        "ens6",
        "20000",
        "20001",
        "managed, primary",
        "10.0.1.4",
        "10.0.2.4",
        "http://169.254.169.254",
        "metadata    ok",
        "10.0.2.0/24",
        "(--all lists them)",
        "waits: one removal waits for proof",
        &pair.second.0,
        &mac,
    ] {
        ensure!(said.stdout.contains(part), "{part} is not in:\n{}", said.stdout);
    }
    let all = enictl(&daemon, &["status", "--all"])?.stdout;
    ensure!(many.iter().all(|address| all.contains(&address.to_string())), "{all}");
    for line in said.stdout.lines().chain(all.lines()) {
        ensure!(line.chars().count() <= 100, "{} columns: {line}", line.chars().count());
        ensure!(!line.contains('\x1b') && !line.ends_with(' '), "{line:?}");
    }
    let json = status(&daemon)?;
    ensure!(json["schema"] == 1 && json["verdict"] == "waiting", "{json}");
    ensure!(json["metadata"]["health"] == "ok", "{json}");
    ensure!(json["metadata"]["requests"].as_u64() > Some(0), "{json}");
    for field in ["version", "since_seconds", "last_pass", "last_error", "enis"] {
        ensure!(json.get(field).is_some(), "{field} is not in {json}");
    }
    for field in ["cause", "steps", "duration_us", "ago_seconds"] {
        ensure!(!json["last_pass"][field].is_null(), "{field} is not in {json}");
    }
    let primary = &json["enis"][0];
    ensure!(primary["primary"] == true && primary["link"] == "ens5", "{primary}");
    ensure!(primary["addresses"][0]["state"] == "theirs", "{primary}");
    let second = pair.second_status(&daemon)?;
    for (field, value) in [
        ("mac", Value::from(mac)),
        ("id", pair.second.0.as_str().into()),
        ("link", "ens6".into()),
        ("primary", false.into()),
        ("card", 0.into()),
        ("device", 1.into()),
        ("table", 20001.into()),
        ("subnets", serde_json::json!(["10.0.2.0/24"])),
        ("state", "managed".into()),
        ("reason", Value::Null),
        ("sources", vec!["10.0.2.0/24"].into()),
        ("waiting", vec!["one removal waits for proof"].into()),
        ("notices", Value::Array(Vec::new())),
    ] {
        ensure!(second[field] == value, "{field} is not {value} in {second}");
    }
    let addresses = second["addresses"].as_array().context("no addresses")?;
    ensure!(addresses.len() == many.len() + 1, "{second}");
    ensure!(addresses[0]["role"] == "primary" && addresses[0]["state"] == "ours", "{second}");
    let leaving = addresses.iter().find(|address| address["state"] == "leaving");
    let leaving = &leaving.context("nothing leaves")?["leaving"];
    ensure!(leaving["needed"] == 3 && leaving["grace_seconds"] == 60, "{leaving}");
    daemon.terminate()
}

fn steps(plan: &Value) -> anyhow::Result<Vec<(String, String)>> {
    let steps = plan["steps"].as_array().with_context(|| plan.to_string())?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(steps.iter().map(|step| (text(&step["kind"]), text(&step["command"]))).collect())
}

/// Without its ledger enid changes nothing, so that its plan can be looked at.
fn plans() -> anyhow::Result<()> {
    let pair = Pair::build()?;
    let mut daemon = Daemon::ready(&pair.instance, "")?;
    ends_with(0, &enictl(&daemon, &["plan"])?)?;
    ensure!(enictl(&daemon, &["plan"])?.stdout == "nothing to do\n", "there is something to do");
    let (run, away) = (daemon.runtime_directory(), daemon.config().with_extension("away"));
    std::fs::rename(&run, &away)?;
    pair.vpc.attach(&pair.second, &pair.instance, "ens6")?;
    let before = picture(&pair.instance)?;
    let with = eventually(PATIENCE, "there is a plan", &daemon, || {
        let said = enictl(&daemon, &["plan", "--json"])?;
        ends_with(3, &said)?;
        said.json()
    })?;
    ensure!(with["daemon"] == true, "{with}");
    eventually(PATIENCE, "the reason is told", &daemon, || {
        let error = status(&daemon)?["last_error"].to_string();
        ensure!(error.contains("ledger"), "{error}");
        Ok(())
    })?;
    same(&before, &picture(&pair.instance)?)?;
    std::fs::rename(&away, &run)?;
    daemon.kill()?;
    let said = enictl(&daemon, &["plan", "--json"])?;
    ends_with(3, &said)?;
    let without = said.json()?;
    ensure!(without["daemon"] == false, "{without}");
    let (a, b) = (steps(&with)?, steps(&without)?);
    ensure!(a == b, "with the daemon: {a:#?}\nwithout: {b:#?}");
    ensure!(b.iter().any(|(kind, _)| kind == "set"), "{b:?}");
    let script = enictl(&daemon, &["plan"])?.stdout;
    ensure!(script.starts_with("# no enid is running"), "{script}");
    ensure!(script.contains("ip -4 address add 10.0.2.4/24"), "{script}");
    same(&before, &picture(&pair.instance)?).context("looking changed something")?;
    // It is what happens.
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    pair.comes_to_work("ens6", &daemon)?;
    comes_to_rest(&daemon)?;
    ends_with(0, &enictl(&daemon, &["plan"])?)?;
    daemon.terminate()?;
    let said = enictl(&daemon, &["plan"])?;
    ends_with(0, &said)?;
    ensure!(said.stdout.contains("nothing to do"), "{}", said.stdout);
    Ok(())
}

fn removals_are_not_counted() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    daemon.terminate()?;
    pair.vpc.detach(&pair.second)?;
    let before = picture(&pair.instance)?;
    let ledger = || std::fs::read(daemon.runtime_directory().join("ledger.json"));
    let noted = ledger()?;
    let plan = enictl(&daemon, &["plan", "--json"])?.json()?;
    let steps = plan["steps"].as_array().context("no steps")?;
    ensure!(steps.iter().any(|step| step["kind"] == "delete"), "{plan}");
    for step in steps {
        ensure!((step["kind"] == "delete") == (step["not_counted"] == true), "{step}");
    }
    let script = enictl(&daemon, &["plan"])?.stdout;
    for line in script.lines().filter(|line| line.contains(" del ")) {
        ensure!(line.contains("# not counted"), "{script}");
    }
    same(&before, &picture(&pair.instance)?)?;
    ensure!(noted == ledger()?, "the ledger was changed");
    Ok(())
}

fn refresh() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("poll_interval = \"1h\"\n")?;
    pair.vpc.assign(&pair.second, SECONDARY, None)?;
    holds(Duration::from_millis(500), "nobody knows yet", &daemon, || {
        ensure!(!has(&pair, SECONDARY)?, "it was polled");
        Ok(())
    })?;
    let said = enictl(&daemon, &["refresh", "--wait"])?;
    ends_with(0, &said)?;
    ensure!(said.stdout == "converged\n", "{said:?}");
    ensure!(has(&pair, SECONDARY)?, "refresh --wait came back too early");
    answers(&pair.host, SECONDARY)?;
    let fault = Fault::on("*/local-ipv4s", Action::Status(503));
    pair.vpc.metadata().fault(fault);
    let said = enictl(&daemon, &["refresh", "--wait", "--timeout", "2s"])?;
    ends_with(3, &said)?;
    ensure!(said.stdout.contains("waits: ") && said.stdout.contains("local-ipv4s"), "{said:?}");
    pair.vpc.metadata().clear_all();
    let said = enictl(&daemon, &["refresh", "--wait", "--json"])?;
    ends_with(0, &said)?;
    ensure!(said.json()?["verdict"] == "converged", "{said:?}");
    daemon.terminate()
}

const SETTINGS: [(&str, &str); 2] =
    [("net.ipv6.conf.ens6.accept_ra_defrtr", "1"), ("net.ipv6.conf.ens6.accept_ra_pinfo", "1")];

/// The second ENI's link is up, with settings of its own, before enid comes.
fn with_settings(pair: &Pair) -> anyhow::Result<BTreeSet<String>> {
    pair.instance.ip_batch(&[
        "link set ens6 mtu 1400 up".to_owned(),
        "addr add 192.0.2.77/32 dev ens6".to_owned(),
    ])?;
    for (name, value) in SETTINGS {
        pair.instance.sysctl(name, value)?;
    }
    eventually(PATIENCE, "the link is up", &pair.instance, || {
        let link = pair.instance.ip_json(&["link", "show", "ens6"])?;
        ensure!(link[0]["operstate"] == "UP", "{link}");
        Ok(())
    })?;
    picture(&pair.instance)
}

fn as_before(pair: &Pair, before: &BTreeSet<String>) -> anyhow::Result<()> {
    same(before, &picture(&pair.instance)?)?;
    for (name, value) in SETTINGS {
        let now = pair.instance.read_sysctl(name)?;
        ensure!(now == value, "{name} is {now}");
    }
    Ok(())
}

fn release() -> anyhow::Result<()> {
    let pair = Pair::attached()?;
    let before = with_settings(&pair)?;
    let mut daemon = Daemon::ready(&pair.instance, "")?;
    pair.comes_to_work("ens6", &daemon)?;
    let (id, mac) = (pair.second.0.clone(), pair.vpc.eni(&pair.second)?.mac.to_string());
    for name in [&*id, &*mac, "ens6"] {
        comes_to_rest(&daemon)?;
        for (name, value) in SETTINGS {
            ensure!(pair.instance.read_sysctl(name)? != value, "{name} was not changed");
        }
        let said = enictl(&daemon, &["release", name])?;
        ends_with(0, &said)?;
        ensure!(said.stdout.contains(&id), "{said:?}");
        as_before(&pair, &before).context("right after the release")?;
        let ledger = std::fs::read_to_string(daemon.runtime_directory().join("ledger.json"))?;
        ensure!(!ledger.contains("10.0.2."), "{ledger}");
        // Neither time, nor an event, nor a restart ends it.
        pair.instance.run(&["ip", "link", "set", "ens5", "group", "0"])?;
        enictl(&daemon, &["refresh", "--wait"])?;
        daemon.restart()?;
        daemon.wait_ready(PATIENCE)?;
        comes_to_rest(&daemon)?;
        as_before(&pair, &before).context("after a restart")?;
        let said = enictl(&daemon, &["status"])?;
        ends_with(0, &said)?;
        ensure!(said.stdout.contains("held: released by the operator"), "{}", said.stdout);
        ensure!(pair.second_status(&daemon)?["state"] == "held", "{}", said.stdout);
        ends_with(0, &enictl(&daemon, &["unhold", name])?)?;
        pair.comes_to_work("ens6", &daemon)?;
    }
    daemon.terminate()
}

fn release_all() -> anyhow::Result<()> {
    let pair = Pair::attached()?;
    let before = with_settings(&pair)?;
    let mut daemon = Daemon::ready(&pair.instance, "")?;
    pair.vpc.assign(&pair.instance.primary, Ipv4Addr::new(10, 0, 1, 5), None)?;
    ends_with(0, &enictl(&daemon, &["refresh", "--wait"])?)?;
    pair.comes_to_work("ens6", &daemon)?;
    answers(&pair.host, Ipv4Addr::new(10, 0, 1, 5))?;
    ends_with(0, &enictl(&daemon, &["release", "--all"])?)?;
    as_before(&pair, &before)?;
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    let third = pair.vpc.create_eni(EniSpec::new([Ipv4Addr::new(10, 0, 2, 40)]))?;
    pair.vpc.attach(&third, &pair.instance, "ens7")?;
    enictl(&daemon, &["refresh", "--wait"])?;
    holds(Duration::from_secs(1), "what comes later is held, too", &daemon, || {
        ensure!(!has(&pair, Ipv4Addr::new(10, 0, 2, 40))?, "it was configured");
        ensure!(!has(&pair, SECOND)?, "it was configured");
        Ok(())
    })?;
    let said = enictl(&daemon, &["unhold", "ens6"])?;
    ends_with(5, &said)?;
    ensure!(said.stderr.contains("unhold --all"), "{said:?}");
    ends_with(0, &enictl(&daemon, &["unhold", "--all"])?)?;
    pair.comes_to_work("ens6", &daemon)?;
    eventually(PATIENCE, "all ENIs work", &daemon, || {
        answers(&pair.host, Ipv4Addr::new(10, 0, 2, 40))?;
        answers(&pair.host, Ipv4Addr::new(10, 0, 1, 5))
    })?;
    comes_to_rest(&daemon)?;
    daemon.terminate()
}

fn drops() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    pair.vpc.assign(&pair.second, SECONDARY, None)?;
    ends_with(0, &enictl(&daemon, &["refresh", "--wait"])?)?;
    ensure!(has(&pair, SECONDARY)?, "it is not there");
    pair.instance.run(&["ip", "addr", "add", "10.0.2.77/32", "dev", "ens6"])?;
    for (address, reason) in [
        ("10.0.2.5", "metadata still grants it"),
        ("10.0.2.4", "metadata still grants it"),
        // Its DHCP client's, somebody else's, nobody's.
        ("10.0.1.4", ""),
        ("10.0.2.77", ""),
        ("10.9.9.9", ""),
    ] {
        let said = enictl(&daemon, &["drop", address])?;
        ends_with(5, &said)?;
        ensure!(said.stderr.contains(reason) && said.stderr.contains(address), "{said:?}");
    }
    for address in [SECONDARY, SECOND, FIRST, Ipv4Addr::new(10, 0, 2, 77)] {
        ensure!(has(&pair, address)?, "{address} is gone");
    }
    let fault = pair.vpc.metadata().fault(Fault::on("*/local-ipv4s", Action::Status(503)));
    pair.vpc.unassign(&pair.second, SECONDARY)?;
    let said = enictl(&daemon, &["drop", "10.0.2.5"])?;
    ends_with(5, &said)?;
    ensure!(has(&pair, SECONDARY)?, "it was removed without proof");
    pair.vpc.metadata().clear(fault);
    // Long before the grace.
    let said = enictl(&daemon, &["drop", "10.0.2.5"])?;
    ends_with(0, &said)?;
    eventually(Duration::from_secs(10), "it is gone", &daemon, || {
        ensure!(!has(&pair, SECONDARY)?, "it is still there");
        Ok(())
    })?;
    comes_to_rest(&daemon)?;
    pair.works("ens6")?;
    daemon.terminate()
}

fn exit_codes() -> anyhow::Result<()> {
    let pair = Pair::attached()?;
    let directory = tempfile::tempdir()?;
    let config = directory.path().join("enid.toml");
    let path = directory.path().display();
    std::fs::write(
        &config,
        format!("runtime_directory = \"{path}/run\"\ncontrol_socket = \"{path}/control\"\n"),
    )?;
    let nobody = Enictl::new(&pair.instance, &config);
    for words in [
        &["status"][..],
        &["refresh"],
        &["refresh", "--wait"],
        &["release", "ens6"],
        &["release", "--all"],
        &["unhold", "ens6"],
        &["drop", "10.0.2.5"],
    ] {
        let said = nobody.run(words)?;
        ends_with(4, &said)?;
        ensure!(said.stderr.contains("control"), "{said:?}");
    }
    ends_with(3, &nobody.run(&["plan"])?)?;
    let mut daemon = Daemon::ready(&pair.instance, "")?;
    comes_to_rest(&daemon)?;
    for (code, words) in [
        (0, &["status"][..]),
        (0, &["status", "--json"]),
        (0, &["plan"]),
        (0, &["refresh"]),
        (0, &["refresh", "--wait"]),
        (5, &["release", "ens9"]),
        (5, &["release", "eni-00000000000000000"]),
        (5, &["unhold", "02:00:00:00:00:99"]),
        (5, &["drop", "10.0.2.99"]),
        (2, &["release"]),
        (2, &["status", "--nonsense"]),
        (2, &["drop", "ens6"]),
        (2, &["refresh", "--timeout", "5s"]),
        (0, &["--help"]),
        (0, &["--version"]),
    ] {
        ends_with(code, &enictl(&daemon, words)?)?;
    }
    let said = enictl(&daemon, &["release", "ens9"])?;
    ensure!(said.stderr.contains(&pair.second.0), "it does not tell which there are: {said:?}");
    let help = enictl(&daemon, &["status", "--help"])?.stdout;
    for code in ["0  ", "1  ", "2  ", "3  ", "4  ", "5  "] {
        ensure!(help.contains(code), "{help}");
    }
    pair.vpc.metadata().fault(Fault::on("*", Action::Status(503)));
    eventually(PATIENCE, "it is not converged", &daemon, || {
        enictl(&daemon, &["refresh"])?;
        ends_with(3, &enictl(&daemon, &["status"])?)
    })?;
    ends_with(3, &enictl(&daemon, &["refresh", "--wait", "--timeout", "1s"])?)?;
    daemon.kill()?;
    ends_with(4, &enictl(&daemon, &["status"])?)?;
    ends_with(1, &enictl(&daemon, &["plan"])?)
}

fn stopping() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    let before = picture(&pair.instance)?;
    let ledger = || std::fs::read(daemon.runtime_directory().join("ledger.json"));
    let noted = ledger()?;
    let path = daemon.runtime_directory().join("ledger.json");
    daemon.terminate()?;
    same(&before, &picture(&pair.instance)?)?;
    ensure!(noted == std::fs::read(&path)?, "the ledger was changed");
    pair.works("ens6")?;
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    comes_to_rest(&daemon)?;
    same(&before, &picture(&pair.instance)?)?;
    kill(Pid::from_raw(i32::try_from(daemon.pid()?)?), Signal::SIGINT)?;
    eventually(PATIENCE, "it stops", &daemon, || {
        ensure!(daemon.log().matches("stopped; everything stays in place").count() == 2, "no");
        Ok(())
    })?;
    same(&before, &picture(&pair.instance)?)?;
    pair.works("ens6")
}

fn told(daemon: &Daemon, what: &str) -> anyhow::Result<()> {
    eventually(PATIENCE, &format!("systemd is told {what}"), daemon, || {
        let lines = daemon.notices();
        ensure!(lines.iter().any(|line| line.starts_with(what)), "{lines:?}");
        Ok(())
    })
}

fn systemd() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    told(&daemon, "READY=1")?;
    told(&daemon, "STATUS=2 ENIs, 2 addresses, converged")?;
    ensure!(daemon.notices().iter().all(|line| !line.starts_with("WATCHDOG")), "nobody asked");
    let readies =
        |daemon: &Daemon| daemon.notices().iter().filter(|line| *line == "READY=1").count();
    ensure!(readies(&daemon) == 1, "{:?}", daemon.notices());
    daemon.hangup()?;
    told(&daemon, "RELOADING=1")?;
    told(&daemon, "MONOTONIC_USEC=")?;
    eventually(PATIENCE, "the reload is over", &daemon, || {
        ensure!(readies(&daemon) == 2, "{:?}", daemon.notices());
        Ok(())
    })?;
    pair.vpc.metadata().fault(Fault::on("*", Action::Status(503)));
    enictl(&daemon, &["refresh"])?;
    told(&daemon, "STATUS=2 ENIs, 2 addresses, metadata cannot be read")?;
    pair.vpc.metadata().clear_all();
    daemon.terminate()?;
    told(&daemon, "STOPPING=1")?;

    // With a watchdog.
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut command = Command::new(binary("enid")?);
    command.arg("--config").arg(daemon.config()).env("NOTIFY_SOCKET", &path);
    command.env("WATCHDOG_USEC", "400000").env_remove("WATCHDOG_PID");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _process = pair.instance.spawn(command)?;
    let mut alive = 0;
    let mut bytes = [0; 4096];
    while alive < 5 {
        let length = socket.recv(&mut bytes).context("the watchdog hears nothing")?;
        alive += usize::from(bytes[..length].starts_with(b"WATCHDOG=1"));
    }
    Ok(())
}

/// A message of the journal's native protocol.
fn fields(mut bytes: &[u8]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut fields = BTreeMap::new();
    while !bytes.is_empty() {
        let end = bytes.iter().position(|byte| *byte == b'\n').context("a line without end")?;
        let (line, rest) = (std::str::from_utf8(&bytes[..end])?, &bytes[end + 1..]);
        if let Some((name, value)) = line.split_once('=') {
            fields.insert(name.to_owned(), value.to_owned());
            bytes = rest;
            continue;
        }
        let (length, rest) = rest.split_at_checked(8).context("a value without length")?;
        let length = usize::try_from(u64::from_le_bytes(length.try_into()?))?;
        let (value, rest) = rest.split_at_checked(length + 1).context("a value cut short")?;
        fields.insert(line.to_owned(), String::from_utf8(value[..length].to_vec())?);
        bytes = rest;
    }
    Ok(fields)
}

/// The fields of the last message with these words.
fn hears(
    journal: &Listener,
    words: &str,
    scene: &Daemon,
) -> anyhow::Result<BTreeMap<String, String>> {
    eventually(PATIENCE, &format!("the journal hears \"{words}\""), scene, || {
        let heard = journal.messages();
        let said = heard.iter().map(|bytes| fields(bytes)).collect::<Result<Vec<_>, _>>()?;
        let found = said
            .iter()
            .rev()
            .find(|fields| fields.get("MESSAGE").is_some_and(|message| message.contains(words)));
        found.cloned().with_context(|| format!("{said:#?}"))
    })
}

/// The one daemon of all trials that logs to the journal, whose socket is in this world's `/run`.
fn journal() -> anyhow::Result<()> {
    let path = Path::new("/run/systemd/journal/socket");
    std::fs::create_dir_all(path.parent().context("no parent")?)?;
    let journal = Listener::start(path)?;
    let pair = Pair::attached()?;
    let extra = "poll_interval = \"200ms\"\n[log]\nformat = \"journal\"\n\
        [removal]\nconfirmations = 1\ngrace = \"0s\"\nmass_grace = \"0s\"\n";
    let mut daemon = Daemon::ready(&pair.instance, extra)?;
    pair.comes_to_work("ens6", &daemon)?;
    pair.vpc.assign(&pair.second, SECONDARY, None)?;
    let check = |heard: &BTreeMap<String, String>, wanted: &[(&str, &str)]| {
        for (name, value) in wanted {
            let there = heard.get(*name).with_context(|| format!("no {name} in {heard:?}"))?;
            ensure!(there.contains(value), "{name} is not {value} in {heard:?}");
        }
        anyhow::Ok(())
    };
    let about = [("ENI", &*pair.second.0), ("INTERFACE", "ens6"), ("SYSLOG_IDENTIFIER", "enid")];
    let heard = hears(&journal, "added 10.0.2.5", &daemon)?;
    check(&heard, &about)?;
    check(&heard, &[("ADDRESS", "10.0.2.5"), ("REASON", "metadata grants it")])?;
    pair.vpc.unassign(&pair.second, SECONDARY)?;
    let heard = hears(&journal, "removed 10.0.2.5", &daemon)?;
    check(&heard, &about)?;
    check(&heard, &[("ADDRESS", "10.0.2.5"), ("REASON", "no longer grants it")])?;
    let info = heard.get("PRIORITY").cloned();
    pair.vpc.metadata().hide(&pair.second);
    enictl(&daemon, &["refresh"])?;
    let heard = hears(&journal, "no longer lists it", &daemon)?;
    check(&heard, &about[..2])?;
    check(&heard, &[("REASON", "no longer lists it")])?;
    ensure!(heard.get("PRIORITY") < info.as_ref(), "a warning is not above {info:?}: {heard:?}");
    pair.vpc.metadata().reveal(&pair.second);
    daemon.configure("[removal]\ngrase = \"1s\"\n")?;
    let heard = hears(&journal, "unknown field `grase`", &daemon)?;
    check(&heard, &[("REASON", "did you mean `grace`?"), ("PRIORITY", "3")])?;
    ensure!(daemon.log().is_empty(), "it is said twice: {}", daemon.log());
    daemon.terminate()?;
    std::fs::remove_file(path)?;
    Ok(())
}
