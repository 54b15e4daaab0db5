//! Promise: without its files enid changes nothing by halves and removes nothing: a full or read-only
//! runtime directory, a ledger that is broken or not ours to read, a control socket in use.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::{Daemon, Launch, eventually, trial};
use libtest_mimic::Trial;

use crate::cut::{IMPATIENT, Stage, Watchers, errors, said_once, v4, v6};
use crate::pair::same;
use crate::users::{PATIENCE, answers, is_silent, status};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("runtime_dir::it_may_be_full", || not_writable(&FULL)),
        trial("runtime_dir::it_may_be_read_only", || not_writable(&READ_ONLY)),
        trial("runtime_dir::a_broken_ledger_is_kept_aside_and_costs_nothing", broken),
        trial("runtime_dir::a_ledger_that_cannot_be_read_keeps_enid_from_starting", unreadable),
        trial("runtime_dir::an_occupied_control_socket_keeps_enid_from_starting", occupied),
    ]
}

/// How a directory on a file system of its own gets useless, and useful again.
struct Trouble {
    begin: fn(&Stage, &Path) -> anyhow::Result<()>,
    end: fn(&Stage, &Path) -> anyhow::Result<()>,
    /// How the system calls it.
    name: &'static str,
}

const FULL: Trouble = Trouble {
    begin: |_, directory| {
        // As much as there is room for.
        let written = std::fs::write(directory.join("others"), vec![7; 1 << 20]);
        ensure!(written.is_err(), "it is too large to be filled");
        Ok(())
    },
    end: |_, directory| Ok(std::fs::remove_file(directory.join("others"))?),
    name: "No space left on device",
};

const READ_ONLY: Trouble = Trouble {
    begin: |stage, directory| remount(stage, directory, "ro"),
    end: |stage, directory| remount(stage, directory, "rw"),
    name: "Read-only file system",
};

fn remount(stage: &Stage, directory: &Path, how: &str) -> anyhow::Result<()> {
    let (directory, how) = (directory.display().to_string(), format!("remount,{how}"));
    stage.instance.run(&["mount", "-o", &how, &directory])?;
    Ok(())
}

fn not_writable(trouble: &Trouble) -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let before = stage.picture()?;
    let mut daemon = Daemon::prepare(&stage.instance, &Launch::default(), IMPATIENT)?;
    let directory = daemon.runtime_directory();
    std::fs::create_dir(&directory)?;
    let at = directory.display().to_string();
    stage.instance.run(&["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", &at])?;
    let outcome = in_trouble(&stage, &mut daemon, trouble, &before);
    daemon.kill()?;
    stage.instance.run(&["umount", &at])?;
    outcome
}

fn in_trouble(
    stage: &Stage,
    daemon: &mut Daemon,
    trouble: &Trouble,
    before: &BTreeSet<String>,
) -> anyhow::Result<()> {
    let directory = daemon.runtime_directory();
    let watchers = Watchers::of_the_primary(stage)?;
    (trouble.begin)(stage, &directory)?;
    daemon.restart()?;
    let is_said = |log: &str| {
        let all = errors(log);
        let says = |line: &&&str| line.contains("ledger.json") && line.contains(trouble.name);
        ensure!(all.len() == 1 && all.iter().any(|line| says(&line)), "{all:#?}");
        Ok(())
    };
    eventually(PATIENCE, "it is said", daemon, || is_said(&daemon.log()))?;
    std::thread::sleep(Duration::from_secs(1));
    is_said(&daemon.log())?;
    same(before, &stage.picture()?)?;
    let said = status(daemon)?["last_error"].to_string();
    ensure!(said.contains(trouble.name), "{said}");
    (trouble.end)(stage, &directory)?;
    eventually(PATIENCE, "all is well", daemon, || stage.is_well_since_start(daemon))?;

    // What was there is looked after all the same; nothing new is begun.
    (trouble.begin)(stage, &directory)?;
    let granted: BTreeSet<IpAddr> = stage.granted().into_iter().map(|(_, it)| it).collect();
    let all = Watchers::start(stage, granted)?;
    let log = daemon.log().len();
    stage.instance.run(&["ip", "rule", "del", "pref", "20000", "oif", "ens6"])?;
    eventually(PATIENCE, "it is back", daemon, || {
        let rules = stage.instance.run(&["ip", "rule"])?;
        ensure!(rules.contains("oif ens6"), "{rules}");
        Ok(())
    })?;
    let settled = stage.picture()?;
    stage.vpc.assign(&stage.second, v4(2, 9), None)?;
    daemon.enictl().run(&["refresh"])?;
    eventually(PATIENCE, "it is said again", daemon, || is_said(&daemon.log()[log..]))?;
    let released = daemon.enictl().run(&["release", "ens6"])?;
    ensure!(released.code != Some(0) && released.stderr.contains(trouble.name), "{released:?}");
    same(&settled, &stage.picture()?)?;
    is_silent(&stage.host, v4(2, 9))?;
    (trouble.end)(stage, &directory)?;
    eventually(PATIENCE, "all is well", daemon, || stage.is_well_since_start(daemon))?;
    all.saw_nothing()?;
    stage.release(daemon, before)?;
    watchers.saw_nothing()
}

fn broken() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let mut daemon = Daemon::ready(&stage.instance, IMPATIENT)?;
    stage.gets_well(&daemon)?;
    let well = stage.picture()?;
    let ledger = daemon.runtime_directory().join("ledger.json");
    let good = std::fs::read(&ledger)?;
    let granted: BTreeSet<IpAddr> = stage.granted().into_iter().map(|(_, it)| it).collect();
    let watchers = Watchers::start(&stage, granted)?;
    let text = String::from_utf8(good.clone())?;
    let forms: [(&str, Vec<u8>); 6] = [
        ("truncated", good[..good.len() / 2].to_vec()),
        ("empty", Vec::new()),
        ("zeroes", vec![0; good.len()]),
        ("garbage", (0..=255).collect()),
        ("of a later version", text.replace("\"version\": 1", "\"version\": 2").into_bytes()),
        ("with what is unknown", text.replace("\"tables\"", "\"chairs\"").into_bytes()),
    ];
    for (what, form) in forms {
        daemon.kill()?;
        std::fs::write(&ledger, &form)?;
        let log = daemon.log().len();
        daemon.restart()?;
        daemon.wait_ready(PATIENCE).context(what)?;
        eventually(PATIENCE, "all is well", &daemon, || stage.is_well_since_start(&daemon))
            .context(what)?;
        same(&well, &stage.picture()?).context(what)?;
        let said = &daemon.log()[log..];
        let named = errors(said).iter().any(|line| line.contains("ledger.json.unreadable"));
        ensure!(named, "{what}: {said}");
        said_once(said)?;
        let aside = std::fs::read(daemon.runtime_directory().join("ledger.json.unreadable"))?;
        ensure!(aside == form, "{what}: what was moved aside is not what was there");
    }
    watchers.saw_nothing()?;
    // The kernel's marks still say what is ours.
    stage.vpc.unassign(&stage.second, v4(2, 6))?;
    stage.gets_well(&daemon)?;
    daemon.terminate()
}

/// The daemon ends with these words, and nothing has changed.
fn refuses_to_start(stage: &Stage, daemon: &mut Daemon, words: &[&str]) -> anyhow::Result<()> {
    let (before, log) = (stage.picture()?, daemon.log().len());
    daemon.restart()?;
    let ended = daemon.wait_ended(PATIENCE)?.context("it goes on")?;
    ensure!(!ended.success(), "it ended with {ended}");
    let said = daemon.log()[log..].to_owned();
    for word in words {
        ensure!(said.contains(word), "not said: {word}: {said}");
    }
    same(&before, &stage.picture()?)
}

fn unreadable() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let mut daemon = Daemon::ready(&stage.instance, IMPATIENT)?;
    stage.gets_well(&daemon)?;
    let granted: BTreeSet<IpAddr> = stage.granted().into_iter().map(|(_, it)| it).collect();
    let watchers = Watchers::start(&stage, granted)?;
    daemon.kill()?;
    let ledger = daemon.runtime_directory().join("ledger.json");
    let good = std::fs::read(&ledger)?;
    // The cloud takes something while nobody looks.
    stage.vpc.model().update(|state| {
        if let Some(eni) = state.enis.get_mut(&stage.second) {
            eni.ipv4.retain(|address| IpAddr::V4(*address) != v4(2, 6));
        }
    });
    // A file that another user wrote for himself, to a daemon that may not read everything.
    let ordinary = "-dac_override,-dac_read_search";
    let ordinary = ["setpriv", "--bounding-set", ordinary, "--inh-caps", ordinary];
    daemon.set_launch(&Launch::default().under(&ordinary));
    let file = ledger.display().to_string();
    stage.instance.run(&["chmod", "0", &file])?;
    refuses_to_start(&stage, &mut daemon, &["reading", "ledger.json", "Permission denied"])?;
    std::fs::remove_file(&ledger)?;
    std::fs::create_dir(&ledger)?;
    refuses_to_start(&stage, &mut daemon, &["reading", "ledger.json", "Is a directory"])?;
    std::fs::remove_dir(&ledger)?;
    watchers.saw_nothing()?;
    std::fs::write(&ledger, good)?;
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    eventually(PATIENCE, "what was taken goes", &daemon, || is_silent(&stage.host, v4(2, 6)))?;
    stage.gets_well(&daemon)?;
    daemon.terminate()
}

fn occupied() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let mut first = Daemon::ready(&stage.instance, IMPATIENT)?;
    stage.gets_well(&first)?;
    let watchers = Watchers::start(&stage, [v4(1, 4), v6(1, 4), v4(2, 4), v6(2, 4)])?;
    let mut second = Daemon::prepare(&stage.instance, &Launch::default(), IMPATIENT)?;
    let own = std::fs::read_to_string(second.config())?;
    let theirs = first.control_socket().display().to_string();
    let shared = own.replace(&second.control_socket().display().to_string(), &theirs);
    std::fs::write(second.config(), shared)?;
    refuses_to_start(&stage, &mut second, &["another enid already serves", &theirs])?;
    ensure!(status(&first)?["verdict"] == "converged", "the first one suffers");
    std::fs::write(second.config(), own)?;
    let socket = second.control_socket();
    std::fs::write(&socket, "theirs")?;
    refuses_to_start(&stage, &mut second, &["is no socket: move it away"])?;
    ensure!(std::fs::read_to_string(&socket)? == "theirs", "it was overwritten");
    std::fs::remove_file(&socket)?;
    // What a crash leaves is no obstacle, whoever stands in for the dead.
    first.kill()?;
    ensure!(first.control_socket().exists(), "a crash leaves no socket");
    first.restart()?;
    first.wait_ready(PATIENCE)?;
    stage.gets_well(&first)?;
    answers(&stage.host, v4(2, 5))?;
    watchers.saw_nothing()?;
    first.terminate()
}
