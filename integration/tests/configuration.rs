//! Promise: no configuration is needed; a wrong one is refused with file, line, reason and remedy
//! while the old one stays in force; a right one takes effect without a restart.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::vpc::Process;
use integration::{Daemon, binary, eventually, holds, trial};
use libtest_mimic::Trial;

use crate::pair::{PATIENCE, Pair, answers, comes_to_rest, picture, same, status};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("configuration::a_broken_edit_is_refused_and_a_fixed_one_takes_effect", || {
            edited(in_place)
        }),
        trial("configuration::a_file_that_an_editor_replaces_is_noticed", || edited(replaced)),
        trial("configuration::sighup_reads_it_again", || edited(hung_up)),
        trial("configuration::what_is_logged_follows_the_file", log_level),
        trial("configuration::a_drop_in_directory_made_later_is_noticed", drop_ins),
        trial("configuration::a_start_with_a_bad_file_fails_with_2_and_says_why", bad_start),
        trial("configuration::nothing_needs_to_be_configured", no_file),
        trial("configuration::an_eni_may_be_left_alone_and_taken_up_again", left_alone),
        trial("configuration::an_eni_with_two_contradicting_entries_is_left_alone", contradicting),
    ]
}

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 5);

/// Entries for the same ENIs, whichever these are.
const CONTRADICTION: &str = "\
[[eni]]
match.device-number = 9
mtu = 1400
[[eni]]
match = { device-number = 9 }
mtu = 1500
";

/// How an operator changes the file.
type Edit = fn(&Daemon, &str) -> anyhow::Result<()>;

fn in_place(daemon: &Daemon, extra: &str) -> anyhow::Result<()> {
    daemon.configure(extra)
}

/// Many editors write a new file and rename it.
fn replaced(daemon: &Daemon, extra: &str) -> anyhow::Result<()> {
    let (file, old) = (daemon.config(), daemon.config().with_extension("old"));
    fs::copy(&file, &old)?;
    daemon.configure(extra)?;
    let new = file.with_extension("toml.swp");
    fs::rename(&file, &new)?;
    fs::rename(&old, &file)?;
    fs::rename(&new, &file).context("cannot replace the file")
}

/// Nobody watches the file that a link leads to.
fn hung_up(daemon: &Daemon, extra: &str) -> anyhow::Result<()> {
    let file = daemon.config();
    if !file.is_symlink() {
        let directory = daemon.runtime_directory().join("elsewhere");
        fs::create_dir(&directory)?;
        fs::rename(&file, directory.join("real.toml"))?;
        std::os::unix::fs::symlink(directory.join("real.toml"), &file)?;
    }
    daemon.configure(extra)?;
    daemon.hangup()
}

/// The line of the last thing in a file.
fn last_line(file: &Path, what: &str) -> anyhow::Result<usize> {
    let text = fs::read_to_string(file)?;
    let line = text.lines().position(|line| line.contains(what)).context("not in the file")?;
    Ok(line + 1)
}

fn has(pair: &Pair, address: Ipv4Addr) -> anyhow::Result<bool> {
    Ok(pair.instance.run(&["ip", "addr"])?.contains(&format!("inet {address}/")))
}

fn interval(daemon: &Daemon) -> anyhow::Result<u64> {
    let status = status(daemon)?;
    status["metadata"]["poll_interval_ms"].as_u64().with_context(|| status.to_string())
}

fn edited(edit: Edit) -> anyhow::Result<()> {
    let ignoring = "poll_interval = \"700ms\"\nignore_addresses = [\"10.0.2.5\"]\n";
    let (pair, mut daemon) = Pair::managed(ignoring)?;
    pair.vpc.assign(&pair.second, ADDRESS, None)?;
    daemon.enictl().run(&["refresh", "--wait"])?.success()?;
    ensure!(!has(&pair, ADDRESS)?, "it is not ignored");
    for (wrong, at, reason, hint) in [
        ("pol_interval = \"900ms\"\n", "pol_interval", "unknown field", "`poll_interval`"),
        ("[removal]\ngrace = \"1 parsec\"\n", "parsec", "parsec", "\"5s\""),
        ("poll_interval = \n", "poll_interval", "", ""),
        ("[links]\nudev = \"nevr\"\n", "nevr", "unknown variant", "`never`"),
        (CONTRADICTION, "1500", "`mtu`", "change or remove one of the two"),
    ] {
        let before = daemon.log().len();
        edit(&daemon, wrong)?;
        let place = format!("{}:{}: ", daemon.config().display(), last_line(&daemon.config(), at)?);
        eventually(PATIENCE, "it is refused in the log", &daemon, || {
            let log = daemon.log();
            let news = log.get(before..).unwrap_or_default();
            let line = news.lines().find(|line| line.contains(&place));
            let line = line.with_context(|| format!("{place} is not in: {news}"))?;
            for part in ["ERROR", reason, hint, "the old configuration stays in force"] {
                ensure!(line.contains(part), "{part} is not in: {line}");
            }
            Ok(())
        })?;
        let said = status(&daemon)?["last_error"].to_string();
        ensure!(said.contains(reason), "the status does not tell: {said}");
        ensure!(interval(&daemon)? == 700, "the old configuration is not in force");
        let socket = daemon.control_socket();
        let socket = socket.to_string_lossy();
        daemon.enictl().run(&["--socket", &socket, "refresh", "--wait"])?.success()?;
        ensure!(!has(&pair, ADDRESS)?, "the old configuration is not in force");
    }
    edit(&daemon, "poll_interval = \"900ms\"\n")?;
    eventually(PATIENCE, "the fixed file takes effect", &daemon, || {
        ensure!(interval(&daemon)? == 900, "{} ms", interval(&daemon)?);
        answers(&pair.host, ADDRESS)
    })?;
    // The one is given up at once, the other one needs a restart.
    edit(&daemon, "poll_interval = \"1s\"\ntable_base = 30000\n")?;
    eventually(PATIENCE, "the tables move", &daemon, || {
        let rules = pair.instance.run(&["ip", "rule"])?;
        ensure!(rules.contains("lookup 30001") && !rules.contains("lookup 20001"), "{rules}");
        pair.works("ens6")
    })?;
    ensure!(pair.table()?.is_empty(), "the old table is still there");
    comes_to_rest(&daemon)?;
    daemon.terminate()
}

fn log_level() -> anyhow::Result<()> {
    let level = |level: &str| format!("[log]\nlevel = \"{level}\"\n");
    let (pair, mut daemon) = Pair::managed(&level("error"))?;
    ensure!(daemon.log().is_empty(), "nothing went wrong: {}", daemon.log());
    for (host, now, changes, details) in [
        (5, "info", true, false),
        (6, "warn,enid::pass=debug", false, true),
        (7, "debug", true, true),
        (8, "warn", false, false),
    ] {
        daemon.configure(&level(now))?;
        daemon.enictl().run(&["reload"])?.success()?;
        let before = daemon.log().len();
        pair.vpc.assign(&pair.second, Ipv4Addr::new(10, 0, 2, host), None)?;
        daemon.enictl().run(&["refresh", "--wait"])?.success()?;
        let log = daemon.log();
        let news = log.get(before..).unwrap_or_default();
        let says = |what: &str| news.lines().any(|line| line.contains(what));
        ensure!(says(" INFO ") == changes, "changes at {now}: {news}");
        ensure!(says("DEBUG looked ") == details, "details at {now}: {news}");
    }
    daemon.terminate()
}

fn drop_ins() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("poll_interval = \"700ms\"\n")?;
    let directory = daemon.config().with_extension("d");
    let becomes = |wanted: u64| {
        eventually(PATIENCE, &format!("{wanted} ms are in force"), &daemon, || {
            let interval = interval(&daemon)?;
            ensure!(interval == wanted, "{interval} ms");
            Ok(())
        })
    };
    fs::create_dir(&directory)?;
    fs::write(directory.join("10-slow.toml"), "poll_interval = \"800ms\"\n")?;
    becomes(800)?;
    fs::write(directory.join("20-slower.toml"), "poll_interval = \"900ms\"\n")?;
    becomes(900)?;
    fs::write(directory.join("20-slower.toml"), "poll_intervall = \"1s\"\n")?;
    eventually(PATIENCE, "the drop-in is named", &daemon, || {
        let log = daemon.log();
        ensure!(log.contains("20-slower.toml:1: unknown field `poll_intervall`"), "{log}");
        Ok(())
    })?;
    holds(Duration::from_millis(300), "the old one is in force", &daemon, || {
        ensure!(interval(&daemon)? == 900, "it is not");
        Ok(())
    })?;
    fs::remove_file(directory.join("20-slower.toml"))?;
    becomes(800)?;
    fs::remove_dir_all(&directory)?;
    becomes(700)?;
    fs::create_dir(&directory)?;
    std::thread::sleep(Duration::from_millis(300));
    fs::write(directory.join("10.toml"), "poll_interval = \"600ms\"\n")?;
    becomes(600)?;
    pair.works("ens6")?;
    daemon.terminate()
}

fn bad_start() -> anyhow::Result<()> {
    let pair = Pair::build()?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("enid.toml");
    let program = binary("enid")?;
    let (program, path) = (program.to_string_lossy(), file.to_string_lossy());
    for (text, parts) in [
        ("\n[removal]\nconfirmation = 3\n", &[":3: ", "`confirmations`"][..]),
        ("table_base = 254\n", &[":1: ", "254 is not between 256 and"]),
        ("this is no toml\n", &[":1: "]),
        (CONTRADICTION, &[":6: `mtu`", ":3 ", "change or remove one of the two"]),
        ("[[eni]]\nmatch.name = \"eth1\"\nmtu = 1400\n", &[":2: ", "`name`", "`mac`"]),
    ] {
        fs::write(&file, text)?;
        for words in
            [&[&*program, "--config", &*path][..], &[&*program, "--config", &*path, "--check"]]
        {
            // A daemon that is content with it would run on.
            let said = pair.instance.output(&[&["timeout", "10"], words].concat())?;
            ensure!(said.code == Some(2), "{said:?}");
            ensure!(said.stderr.starts_with(&format!("enid: {path}:")), "{said:?}");
            ensure!(said.stderr.lines().count() == 1, "{said:?}");
            for part in parts {
                ensure!(said.stderr.contains(part), "{part} is not in {said:?}");
            }
        }
    }
    fs::write(&file, "poll_interval = \"5s\"\n")?;
    let said = pair.instance.output(&[&*program, "--config", &*path, "--check"])?;
    ensure!(said.code == Some(0), "{said:?}");
    fs::remove_file(&file)?;
    let said = pair.instance.output(&[&*program, "--config", &*path])?;
    ensure!(said.code == Some(2) && said.stderr.contains(&*path), "{said:?}");
    Ok(())
}

/// The one daemon of all trials that uses `/run/enid`.
fn no_file() -> anyhow::Result<()> {
    let pair = Pair::attached()?;
    ensure!(!Path::new("/etc/enid").exists(), "this machine has a configuration of enid");
    let log = tempfile::NamedTempFile::new()?;
    let mut command = Command::new(binary("enid")?);
    for variable in ["ENID_CONFIG", "RUNTIME_DIRECTORY", "NOTIFY_SOCKET", "JOURNAL_STREAM"] {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.reopen()?);
    let daemon: Process = pair.instance.spawn(command)?;
    let program = binary("enictl")?;
    let program = program.to_string_lossy();
    let outcome = eventually(PATIENCE, "both ENIs work", &pair.instance, || {
        pair.works("ens6")?;
        let said = pair.instance.output(&["env", "-u", "ENID_CONFIG", &program, "status"])?;
        ensure!(said.code == Some(0), "{said:?}");
        ensure!(said.stdout.contains("http://169.254.169.254"), "{}", said.stdout);
        ensure!(Path::new("/run/enid/ledger.json").exists(), "there is no ledger");
        Ok(())
    });
    drop(daemon);
    outcome.with_context(|| fs::read_to_string(log.path()).unwrap_or_default())
}

/// What `enictl status` says of the second ENI, once it says all that.
fn says(pair: &Pair, daemon: &Daemon, state: &str, parts: &[&str]) -> anyhow::Result<()> {
    eventually(PATIENCE, &format!("the second ENI is {state}"), daemon, || {
        let said = pair.second_status(daemon)?;
        ensure!(said["state"] == state, "{said}");
        let reason = said["reason"].to_string();
        for part in parts {
            ensure!(reason.contains(part), "{part} is not in {reason}");
        }
        Ok(())
    })
}

fn left_alone() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("poll_interval = \"200ms\"\n")?;
    let before = picture(&pair.instance)?;
    let second = pair.vpc.eni(&pair.second)?;
    for entry in [
        format!("match.id = \"{}\"", second.id),
        format!("match.mac = \"{}\"", second.mac),
        "match.device-number = 1\nmatch.network-card = 0".to_owned(),
        "match.subnet = \"10.0.2.0/24\"".to_owned(),
        format!("match.subnet = \"{}\"", second.subnet),
    ] {
        daemon.configure(&format!(
            "poll_interval = \"200ms\"\n[[eni]]\n{entry}\nmanage = \"ignore\"\n"
        ))?;
        says(&pair, &daemon, "held", &["configuration"])?;
        pair.vpc.assign(&pair.second, ADDRESS, None)?;
        daemon.enictl().run(&["refresh", "--wait"])?.success()?;
        holds(Duration::from_millis(300), "it is as it was", &daemon, || {
            same(&before, &picture(&pair.instance)?)
        })?;
        pair.works("ens6")?;
        daemon.configure("poll_interval = \"200ms\"\n")?;
        eventually(PATIENCE, "it is taken up again", &daemon, || answers(&pair.host, ADDRESS))?;
        pair.vpc.unassign(&pair.second, ADDRESS)?;
        daemon.enictl().run(&["drop", &ADDRESS.to_string()])?.success()?;
        eventually(PATIENCE, "it is as before", &daemon, || {
            same(&before, &picture(&pair.instance)?)
        })?;
        comes_to_rest(&daemon)?;
    }
    daemon.terminate()
}

fn contradicting() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    let before = picture(&pair.instance)?;
    daemon.configure(
        "[[eni]]\nmatch.device-number = 1\nmtu = 1400\n\
         [[eni]]\nmatch.subnet = \"10.0.2.0/24\"\nmtu = 1500\n",
    )?;
    let file = daemon.config();
    let place = |at: &str| last_line(&file, at).map(|line| format!("{}:{line}", file.display()));
    let (first, second) = (place("1400")?, place("1500")?);
    says(&pair, &daemon, "held", &["`mtu`", &first, &second])?;
    let log = daemon.log();
    ensure!(log.contains(&first) && log.contains(&second), "the journal does not tell: {log}");
    holds(Duration::from_millis(300), "it is as it was", &daemon, || {
        same(&before, &picture(&pair.instance)?)
    })?;
    daemon.configure("[[eni]]\nmatch.subnet = \"10.0.2.0/24\"\nmtu = 1500\n")?;
    says(&pair, &daemon, "managed", &[])?;
    eventually(PATIENCE, "the one that is left is heeded", &daemon, || {
        let link = pair.instance.run(&["ip", "link", "show", "ens6"])?;
        ensure!(link.contains("mtu 1500"), "{link}");
        Ok(())
    })?;
    pair.comes_to_work("ens6", &daemon)?;
    daemon.terminate()
}
