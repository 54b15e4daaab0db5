//! Promise: what happens is counted, `enictl metrics` and node-exporter's file tell it, and neither a
//! reader nor a directory that cannot be written disturbs the daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use integration::imds::{Action, Fault};
use integration::{Daemon, eventually, holds, trial};
use libtest_mimic::Trial;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::Value;

use crate::pair::{PATIENCE, Pair, comes_to_rest, status};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("metrics::an_attach_and_a_repair_are_counted_and_timed", attach_and_repair),
        trial("metrics::what_metadata_answers_is_counted_and_its_age_grows", metadata),
        trial("metrics::a_reading_that_changes_nothing_is_young_in_status_and_metrics", young),
        trial("metrics::a_plan_that_the_guard_refuses_is_counted_and_harms_nothing", refused),
        trial("metrics::held_enis_and_leaving_addresses_are_told", held_and_leaving),
        trial("metrics::the_textfile_is_never_half_there_and_follows_the_configuration", textfile),
        trial("metrics::a_directory_that_cannot_be_written_is_said_once", unwritable),
        trial("metrics::rules_and_dashboard_use_what_there_is", used_elsewhere),
    ]
}

/// Samples by name and labels, as they stand in the text: `enid_passes_total{verdict="waiting"}`.
type Samples = BTreeMap<String, f64>;

/// Reads either text format strictly: each sample belongs to the family that is described before it.
fn parse(text: &str) -> anyhow::Result<Samples> {
    let (mut samples, mut family, mut families) = (Samples::new(), None, BTreeSet::new());
    ensure!(text.ends_with('\n'), "the last line has no end: {text}");
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "HELP" | "UNIT", _, _] | ["#", "EOF"] => {}
            ["#", "TYPE", name, kind] => {
                ensure!(families.insert(name.to_owned()), "{name} is described twice");
                family = Some((name.to_owned(), kind.to_owned()));
            }
            _ => {
                let (sample, value) = line.rsplit_once(' ').context(line.to_owned())?;
                let value: f64 = value.parse().with_context(|| line.to_owned())?;
                let name = sample.split('{').next().unwrap_or_default();
                let (family, kind) = family.as_ref().with_context(|| line.to_owned())?;
                let suffix = name.strip_prefix(family.as_str()).with_context(|| line.to_owned())?;
                let known: &[&str] = match kind.as_str() {
                    "counter" => &["", "_total"],
                    "histogram" => &["_bucket", "_sum", "_count"],
                    "info" => &["_info"],
                    "gauge" => &[""],
                    _ => bail!("{kind} in {line}"),
                };
                ensure!(known.contains(&suffix), "{line} is no {kind} of {family}");
                ensure!(name.starts_with("enid_"), "{line}");
                let new = samples.insert(sample.to_owned(), value).is_none();
                ensure!(new, "{sample} is there twice");
            }
        }
    }
    Ok(samples)
}

fn metrics(daemon: &Daemon) -> anyhow::Result<Samples> {
    let text = daemon.enictl().run(&["metrics"])?.success()?;
    ensure!(text.ends_with("\n# EOF\n"), "no OpenMetrics: {text}");
    parse(&text)
}

fn value(samples: &Samples, sample: &str) -> anyhow::Result<f64> {
    samples.get(sample).copied().with_context(|| format!("no {sample} in {samples:#?}"))
}

/// What all samples of a name with this in their labels add up to.
fn sum(samples: &Samples, name: &str, label: &str) -> f64 {
    let of = |sample: &&String| sample.starts_with(name) && sample.contains(label);
    samples.keys().filter(of).filter_map(|sample| samples.get(sample)).sum()
}

fn attach_and_repair() -> anyhow::Result<()> {
    let pair = Pair::build()?;
    let mut daemon = Daemon::ready(&pair.instance, "")?;
    comes_to_rest(&daemon)?;
    let before = metrics(&daemon)?;
    ensure!(sum(&before, "enid_repairs_total", "") == 0.0, "{before:#?}");
    ensure!(value(&before, "enid_enis{state=\"managed\"}")? == 1.0, "{before:#?}");
    ensure!(value(&before, "enid_verdict{verdict=\"converged\"}")? == 1.0, "{before:#?}");
    pair.vpc.attach(&pair.second, &pair.instance, "ens6")?;
    pair.comes_to_work("ens6", &daemon)?;
    comes_to_rest(&daemon)?;
    let attached = metrics(&daemon)?;
    ensure!(value(&attached, "enid_enis{state=\"managed\"}")? == 2.0, "{attached:#?}");
    ensure!(value(&attached, "enid_addresses{state=\"ours\"}")? == 1.0, "{attached:#?}");
    for (kind, action) in [("address", "create"), ("route", "create"), ("rule", "create")] {
        let labels = format!("kind=\"{kind}\",action=\"{action}\",outcome=\"changed\"");
        let sample = format!("enid_steps_total{{{labels}}}");
        ensure!(value(&attached, &sample)? > value(&before, &sample)?, "{sample}: {attached:#?}");
    }
    let passes = "enid_passes_total{verdict=\"converged\"}";
    ensure!(value(&attached, passes)? > value(&before, passes)?, "{attached:#?}");
    let timed = |samples: &Samples| sum(samples, "enid_convergence_seconds_count", "");
    ensure!(timed(&attached) > timed(&before), "{attached:#?}");
    ensure!(sum(&attached, "enid_repairs_total", "") == 0.0, "an attach is none: {attached:#?}");

    let rules = pair.instance.run(&["ip", "rule"])?;
    let rule = rules.lines().find(|line| line.contains("lookup 20001") && line.contains("iif lo"));
    ensure!(rule.is_some(), "{rules}");
    pair.instance.run(&["ip", "rule", "del", "pref", "20020", "table", "20001"])?;
    let repaired = eventually(PATIENCE, "the rule's repair is counted", &daemon, || {
        let now = metrics(&daemon)?;
        ensure!(value(&now, "enid_repairs_total{kind=\"rule\"}")? == 1.0, "{now:#?}");
        Ok(now)
    })?;
    ensure!(sum(&repaired, "enid_repairs_total", "") == 1.0, "{repaired:#?}");
    ensure!(timed(&repaired) > timed(&attached), "{repaired:#?}");
    pair.instance.run(&["ip", "link", "set", "ens6", "mtu", "1400"])?;
    eventually(PATIENCE, "the link's repair is counted", &daemon, || {
        let now = metrics(&daemon)?;
        ensure!(value(&now, "enid_repairs_total{kind=\"link\"}")? == 1.0, "{now:#?}");
        Ok(())
    })?;
    let json = daemon.enictl().run(&["metrics", "--json"])?.json()?;
    ensure!(json["schema"] == 1, "{json}");
    parse(json["text"].as_str().context("no text")?)?;
    daemon.terminate()
}

fn metadata() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("poll_interval = \"200ms\"\n")?;
    let requests = |samples: &Samples, status: &str| {
        value(samples, &format!("enid_metadata_requests_total{{status=\"{status}\"}}"))
    };
    let well = metrics(&daemon)?;
    ensure!(value(&well, "enid_metadata_up")? == 1.0, "{well:#?}");
    ensure!(requests(&well, "200")? > 0.0 && requests(&well, "5xx")? == 0.0, "{well:#?}");
    for (action, status) in [(Action::Status(503), "5xx"), (Action::Status(403), "403")] {
        let before = requests(&metrics(&daemon)?, status)?;
        let fault = pair.vpc.metadata().fault(Fault::on("*", action));
        eventually(PATIENCE, &format!("{status} is counted"), &daemon, || {
            daemon.enictl().run(&["refresh"])?;
            let now = metrics(&daemon)?;
            ensure!(requests(&now, status)? > before, "{now:#?}");
            ensure!(value(&now, "enid_metadata_up")? == 0.0, "{now:#?}");
            Ok(())
        })?;
        let aged = eventually(PATIENCE, "the age grows", &daemon, || {
            let age = value(&metrics(&daemon)?, "enid_metadata_age_seconds")?;
            ensure!(age > 1.5, "{age}");
            Ok(age)
        })?;
        pair.vpc.metadata().clear(fault);
        eventually(PATIENCE, "metadata is read again", &daemon, || {
            daemon.enictl().run(&["refresh"])?;
            let now = metrics(&daemon)?;
            ensure!(value(&now, "enid_metadata_up")? == 1.0, "{now:#?}");
            ensure!(value(&now, "enid_metadata_age_seconds")? < aged, "{now:#?}");
            Ok(())
        })?;
    }
    // A key of one ENI: metadata answers, but what was read is not complete.
    let fault = pair.vpc.metadata().fault(Fault::on("*/local-ipv4s", Action::Status(500)));
    eventually(PATIENCE, "the age grows", &daemon, || {
        let now = metrics(&daemon)?;
        ensure!(value(&now, "enid_metadata_age_seconds")? > 1.5, "{now:#?}");
        Ok(())
    })?;
    pair.vpc.metadata().clear(fault);
    // Another client asks elsewhere, and counts on.
    let before = requests(&metrics(&daemon)?, "200")?;
    daemon.configure("[metadata]\nendpoints = [\"http://127.0.0.1:9\"]\n")?;
    eventually(PATIENCE, "nobody listens there", &daemon, || {
        daemon.enictl().run(&["refresh"])?;
        let now = metrics(&daemon)?;
        ensure!(requests(&now, "refused")? > 0.0, "{now:#?}");
        ensure!(requests(&now, "200")? >= before, "{now:#?}");
        Ok(())
    })?;
    daemon.terminate()
}

fn young() -> anyhow::Result<()> {
    let (_pair, mut daemon) = Pair::managed("poll_interval = \"200ms\"\n")?;
    let passed = || anyhow::Ok(status(&daemon)?["last_pass"]["ago_seconds"].as_u64());
    eventually(PATIENCE, "there was no pass for 4 s", &daemon, || {
        ensure!(passed()? >= Some(4), "{:?}", passed()?);
        Ok(())
    })?;
    eventually(PATIENCE, "what is read all the time is young", &daemon, || {
        let said = status(&daemon)?;
        ensure!(said["last_pass"]["ago_seconds"].as_u64() >= Some(4), "not without a pass");
        let of = |what: &Value| what["read_seconds"].as_u64().context("no read_seconds");
        let ages = [of(&said["metadata"])?, of(&said["enis"][0])?, of(&said["enis"][1])?];
        ensure!(ages.iter().all(|age| *age <= 2), "{ages:?}");
        let age = value(&metrics(&daemon)?, "enid_metadata_age_seconds")?;
        ensure!(age < 3.0, "{age}");
        Ok(())
    })?;
    daemon.terminate()
}

/// Somebody keeps metadata from whoever uses the table that the primary ENI is about to use.
fn refused() -> anyhow::Result<()> {
    const REFUSALS: &str = "enid_guard_refusals_total";
    let pair = Pair::build()?;
    let mut daemon = Daemon::ready(&pair.instance, "")?;
    comes_to_rest(&daemon)?;
    ensure!(value(&metrics(&daemon)?, REFUSALS)? == 0.0, "refused before anything happened");
    let route = "blackhole 169.254.169.254 table 20000";
    pair.instance.ip_batch(&[format!("route add {route}")])?;
    pair.vpc.attach(&pair.second, &pair.instance, "ens6")?;
    eventually(PATIENCE, "a refusal is counted", &daemon, || {
        let now = metrics(&daemon)?;
        ensure!(value(&now, REFUSALS)? >= 1.0, "{now:#?}");
        ensure!(value(&now, "enid_verdict{verdict=\"not_yet\"}")? == 1.0, "{now:#?}");
        Ok(())
    })?;
    let line =
        "the guard refused the plan: it cuts the primary ENI off from metadata; nothing was done";
    ensure!(daemon.log().contains(line), "{line} is not in:\n{}", daemon.log());
    let events = daemon.enictl().run(&["events"])?.stdout;
    ensure!(events.contains(line), "{line} is not in:\n{events}");
    // Nothing of the plan, and metadata is read as before.
    let rules = pair.instance.run(&["ip", "-N", "rule"])?;
    let addresses = pair.instance.run(&["ip", "addr", "show", "ens6"])?;
    ensure!(!rules.contains("proto 233") && !addresses.contains("10.0.2.4"), "{rules}{addresses}");
    ensure!(daemon.enictl().run(&["refresh"])?.code == Some(0), "metadata is not read");
    // What the runbook says.
    pair.instance.ip_batch(&[format!("route del {route}")])?;
    pair.comes_to_work("ens6", &daemon)?;
    comes_to_rest(&daemon)?;
    ensure!(pair.instance.run(&["ip", "-N", "rule"])?.contains("proto 233"), "no rules");
    let counted = value(&metrics(&daemon)?, REFUSALS)?;
    ensure!(daemon.enictl().run(&["refresh", "--wait"])?.code == Some(0), "not at rest");
    let now = value(&metrics(&daemon)?, REFUSALS)?;
    ensure!(counted >= 1.0 && now == counted, "{counted} refusals, then {now}");
    daemon.terminate()
}

fn held_and_leaving() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    let second = pair.second.0.clone();
    daemon.enictl().run(&["hold", "ens6", "--reason", "a trial"])?.success()?;
    let held = metrics(&daemon)?;
    let sample = format!("enid_eni_held{{eni=\"{second}\",kind=\"operator\"}}");
    ensure!(value(&held, &sample)? == 1.0, "{held:#?}");
    ensure!(value(&held, "enid_enis{state=\"held\"}")? == 1.0, "{held:#?}");
    daemon.enictl().run(&["unhold", "ens6"])?.success()?;
    let after = metrics(&daemon)?;
    ensure!(!after.contains_key(&sample), "{after:#?}");
    ensure!(value(&after, "enid_enis{state=\"held\"}")? == 0.0, "{after:#?}");

    let secondary = crate::drift::SECONDARY;
    pair.vpc.assign(&pair.second, secondary, None)?;
    daemon.enictl().run(&["refresh", "--wait"])?.success()?;
    ensure!(value(&metrics(&daemon)?, "enid_addresses{state=\"leaving\"}")? == 0.0, "none leaves");
    pair.vpc.unassign(&pair.second, secondary)?;
    eventually(PATIENCE, "the address leaves", &daemon, || {
        daemon.enictl().run(&["refresh"])?;
        let now = metrics(&daemon)?;
        ensure!(value(&now, "enid_addresses{state=\"leaving\"}")? == 1.0, "{now:#?}");
        ensure!(value(&now, "enid_verdict{verdict=\"waiting\"}")? == 1.0, "{now:#?}");
        Ok(())
    })?;
    daemon.enictl().run(&["drop", &secondary.to_string()])?.success()?;
    let now = metrics(&daemon)?;
    ensure!(value(&now, "enid_addresses{state=\"leaving\"}")? == 0.0, "{now:#?}");
    daemon.terminate()
}

const FILE: &str = "enid.prom";

fn with_textfile(path: &Path) -> String {
    format!("[metrics]\ntextfile = \"{}\"\n", path.display())
}

fn textfile() -> anyhow::Result<()> {
    let (folder, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let path = folder.path().join(FILE);
    let (pair, mut daemon) = Pair::managed(&with_textfile(&path))?;
    eventually(PATIENCE, "the file is there", &daemon, || {
        parse(&fs::read_to_string(&path)?).map(drop)
    })?;
    ensure!(fs::metadata(&path)?.permissions().mode() & 0o777 == 0o644, "not for everybody");
    let text = fs::read_to_string(&path)?;
    ensure!(!text.contains("# EOF") && !text.contains("# UNIT"), "{text}");
    ensure!(text.contains("\n# TYPE enid_passes_total counter\n"), "{text}");
    ensure!(text.contains("\n# TYPE enid_build_info gauge\n"), "{text}");

    // Each time there is another file in its place: never an empty one, a half one or none.
    let changes = Inotify::init(InitFlags::IN_NONBLOCK).context("inotify")?;
    let all = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_MOVED_TO;
    changes.add_watch(folder.path(), all).context("inotify")?;
    // It is replaced while it is read, and says soon what has changed.
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                let text = fs::read_to_string(&path)?;
                let samples = parse(&text)?;
                // What comes last in it.
                value(&samples, "enid_metadata_requests_total{status=\"unusable\"}")?;
                seen.insert(text);
            }
            anyhow::Ok(seen.len())
        });
        let repairs = || -> anyhow::Result<f64> {
            let samples = parse(&fs::read_to_string(&path)?)?;
            value(&samples, "enid_repairs_total{kind=\"rule\"}")
        };
        let repaired = || -> anyhow::Result<()> {
            for count in 1_u8..=4 {
                pair.instance.run(&["ip", "rule", "del", "pref", "20020", "table", "20001"])?;
                eventually(PATIENCE, "the file tells the repair", &daemon, || {
                    ensure!(repairs()? >= f64::from(count), "not yet");
                    Ok(())
                })?;
            }
            Ok(())
        };
        let repaired = repaired();
        done.store(true, Ordering::Relaxed);
        let Ok(seen) = reader.join() else { bail!("the reader panicked") };
        repaired?;
        ensure!(seen? >= 4, "the file did not change");
        Ok(())
    })?;
    let mut replaced = 0;
    for change in changes.read_events().context("inotify")? {
        if change.name.is_some_and(|name| name == FILE) {
            ensure!(
                change.mask == AddWatchFlags::IN_MOVED_TO,
                "it is changed by {:?}",
                change.mask
            );
            replaced += 1;
        }
    }
    ensure!(replaced >= 4, "it was replaced {replaced} times");
    let left = fs::read_dir(folder.path())?.count();
    ensure!(left <= 2, "{left} files are in the folder");

    let moved = other.path().join(FILE);
    daemon.configure(&with_textfile(&moved))?;
    eventually(PATIENCE, "the file is elsewhere", &daemon, || {
        parse(&fs::read_to_string(&moved)?)?;
        ensure!(!path.exists(), "the old one is still there");
        Ok(())
    })?;
    daemon.configure("")?;
    eventually(PATIENCE, "there is no file", &daemon, || {
        ensure!(!moved.exists(), "it is still there");
        Ok(())
    })?;
    daemon.terminate()
}

fn unwritable() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    // Neither root nor anybody else can write below a file.
    let blocked = folder.path().join("blocked");
    fs::write(&blocked, "")?;
    let path = blocked.join(FILE);
    let (pair, mut daemon) = Pair::managed(&with_textfile(&path))?;
    let said = |daemon: &Daemon| {
        daemon.log().lines().filter(|line| line.contains("writing metrics to")).count()
    };
    eventually(PATIENCE, "it is said", &daemon, || {
        ensure!(said(&daemon) == 1, "{}", daemon.log());
        Ok(())
    })?;
    for part in ["ReadWritePaths=", "sudo install -d", &path.display().to_string()] {
        ensure!(daemon.log().contains(part), "{part} is not in {}", daemon.log());
    }
    let delete = || pair.instance.run(&["ip", "rule", "del", "pref", "20020", "table", "20001"]);
    for _ in 0..3 {
        delete()?;
        pair.comes_to_work("ens6", &daemon)?;
        comes_to_rest(&daemon)?;
    }
    holds(Duration::from_secs(3), "it is said once", &daemon, || {
        ensure!(said(&daemon) == 1, "{}", daemon.log());
        Ok(())
    })?;
    fs::remove_file(&blocked)?;
    fs::create_dir(&blocked)?;
    delete()?;
    eventually(PATIENCE, "the file is written", &daemon, || {
        parse(&fs::read_to_string(&path)?)?;
        ensure!(daemon.log().contains("are written to"), "{}", daemon.log());
        Ok(())
    })?;
    daemon.terminate()
}

/// Everything in a file that looks like one of enid's metrics.
fn named(file: &str) -> anyhow::Result<BTreeSet<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
    let names = words.filter(|word| word.starts_with("enid_")).map(str::to_owned);
    Ok(names.collect())
}

fn used_elsewhere() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join(FILE);
    let (pair, mut daemon) = Pair::managed(&with_textfile(&path))?;
    // What is only there at times.
    pair.instance.run(&["ip", "rule", "del", "pref", "20020", "table", "20001"])?;
    pair.comes_to_work("ens6", &daemon)?;
    comes_to_rest(&daemon)?;
    daemon.enictl().run(&["hold", "ens6"])?.success()?;
    let known = |samples: Samples| -> BTreeSet<String> {
        samples.keys().map(|it| it.split('{').next().unwrap_or_default().to_owned()).collect()
    };
    let there = known(metrics(&daemon)?);
    eventually(PATIENCE, "the file has the same metrics", &daemon, || {
        let file = known(parse(&fs::read_to_string(&path)?)?);
        ensure!(file == there, "{file:?} is not {there:?}");
        Ok(())
    })?;
    let family = |name: &String| {
        let parts = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
        parts.unwrap_or(name).to_owned()
    };
    let families: BTreeSet<String> = there.iter().map(family).collect();
    let documented = named("docs/operating.md")?;
    ensure!(families == documented, "{families:?} are there, {documented:?} are documented");
    for file in ["prometheus/enid.rules.yml", "grafana/enid.json", "prometheus/enid.rules.test.yml"]
    {
        let named = named(&format!("packaging/{file}"))?;
        ensure!(named.len() > 5, "{file} names {named:?}");
        let unknown: Vec<_> = named.difference(&there).collect();
        ensure!(unknown.is_empty(), "{file} names {unknown:?}, and there are {there:?}");
    }
    daemon.terminate()
}
