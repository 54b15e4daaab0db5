//! Promise: enid may be killed at any instruction; the next start converges and nothing that it
//! made is forgotten.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use fastrand::Rng;
use integration::{Daemon, eventually, trial};
use libtest_mimic::Trial;

use crate::metadata_trouble::none_missed;
use crate::pair::{FIRST, PATIENCE, Pair, answers, comes_to_rest, picture, same};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("kill::killed_at_any_time_it_forgets_nothing", at_any_time)]
}

const KILLS: usize = 25;

const IMPATIENT: &str = "poll_interval = \"100ms\"\n\
    [removal]\nconfirmations = 1\ngrace = \"0s\"\nmass_grace = \"0s\"\n";

/// A seed from `SEED`, to repeat what failed, else from the clock.
fn seed() -> anyhow::Result<u64> {
    match std::env::var("SEED") {
        Ok(seed) => seed.parse().context("SEED is no number"),
        Err(_) => Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?),
    }
}

/// What the cloud grants at the moment.
#[derive(Default)]
struct Granted {
    attached: bool,
    first: BTreeSet<Ipv4Addr>,
    second: BTreeSet<Ipv4Addr>,
}

/// Attaches, detaches, assigns or unassigns something.
fn churn(pair: &Pair, dice: &mut Rng, granted: &mut Granted) -> anyhow::Result<()> {
    if dice.u64(..4) == 0 {
        if granted.attached {
            pair.vpc.detach(&pair.second)?;
        } else {
            pair.vpc.attach(&pair.second, &pair.instance, "ens6")?;
        }
        granted.attached = !granted.attached;
        return Ok(());
    }
    let last = 10 + u8::try_from(dice.u64(..8))?;
    let (eni, set, address) = match dice.u64(..2) {
        0 => (&pair.instance.primary, &mut granted.first, Ipv4Addr::new(10, 0, 1, last)),
        _ => (&pair.second, &mut granted.second, Ipv4Addr::new(10, 0, 2, last)),
    };
    if set.remove(&address) {
        pair.vpc.unassign(eni, address)
    } else {
        set.insert(address);
        pair.vpc.assign(eni, address, None)
    }
}

/// Everything granted works and nothing else is there.
fn converged(pair: &Pair, daemon: &Daemon, granted: &Granted) -> anyhow::Result<()> {
    eventually(PATIENCE, "exactly what is granted is there", daemon, || {
        let mut wanted: BTreeSet<Ipv4Addr> = granted.first.clone();
        wanted.insert(FIRST);
        if granted.attached {
            wanted.extend(&granted.second);
            wanted.insert(crate::pair::SECOND);
        }
        let there = addresses(pair)?;
        ensure!(there == wanted, "there: {there:?}\nwanted: {wanted:?}");
        Ok(())
    })?;
    comes_to_rest(daemon)?;
    let mut all: Vec<Ipv4Addr> = granted.first.iter().copied().collect();
    if granted.attached {
        all.extend(&granted.second);
        pair.comes_to_work("ens6", daemon)?;
    }
    for address in all {
        eventually(PATIENCE, "it answers", daemon, || answers(&pair.host, address))?;
    }
    Ok(())
}

fn addresses(pair: &Pair) -> anyhow::Result<BTreeSet<Ipv4Addr>> {
    let links = pair.instance.ip_json(&["-4", "addr"])?;
    let lists = links.as_array().into_iter().flatten().filter(|link| link["ifname"] != "lo");
    let items = lists.flat_map(|link| link["addr_info"].as_array().into_iter().flatten());
    items.map(|item| Ok(item["local"].as_str().context("no address")?.parse()?)).collect()
}

fn nothing_of_enid(pair: &Pair) -> anyhow::Result<()> {
    for words in [
        &["ip", "-N", "rule"][..],
        &["ip", "-N", "-6", "rule"],
        &["ip", "-N", "route", "show", "table", "all"],
        &["ip", "-N", "-6", "route", "show", "table", "all"],
    ] {
        let said = pair.instance.run(words)?;
        ensure!(!said.contains("proto 233"), "{words:?}: {said}");
    }
    Ok(())
}

pub(crate) fn at_any_time() -> anyhow::Result<()> {
    let seed = seed()?;
    killed(&mut Rng::with_seed(seed)).with_context(|| format!("repeat with SEED={seed}"))
}

fn killed(dice: &mut Rng) -> anyhow::Result<()> {
    let pair = Pair::build()?;
    let before = picture(&pair.instance)?;
    let default = |name: &'static str| -> anyhow::Result<_> {
        Ok((name, pair.instance.read_sysctl(&format!("net.ipv6.conf.default.{name}"))?))
    };
    let defaults = [default("accept_ra_defrtr")?, default("accept_ra_pinfo")?];
    let pinger = pair.ping_from_host(FIRST)?;
    let mut granted = Granted::default();
    let mut daemon = Daemon::start(&pair.instance, IMPATIENT)?;
    for round in 0..KILLS {
        for _ in 0..=dice.u64(..3) {
            churn(&pair, dice, &mut granted)?;
        }
        // Most kills within the first pass or the one that the churn causes.
        std::thread::sleep(Duration::from_micros(dice.u64(..200_000)));
        daemon.kill()?;
        if dice.u64(..3) == 0 {
            churn(&pair, dice, &mut granted)?;
        }
        daemon.restart()?;
        if round % 5 == 4 {
            converged(&pair, &daemon, &granted).with_context(|| format!("round {round}"))?;
        }
    }
    converged(&pair, &daemon, &granted)?;

    // Nothing owned is forgotten: all of it goes when the cloud takes it away.
    for address in std::mem::take(&mut granted.first) {
        pair.vpc.unassign(&pair.instance.primary, address)?;
    }
    for address in std::mem::take(&mut granted.second) {
        pair.vpc.unassign(&pair.second, address)?;
    }
    converged(&pair, &daemon, &granted)?;
    if !granted.attached {
        pair.vpc.attach(&pair.second, &pair.instance, "ens6")?;
        granted.attached = true;
        converged(&pair, &daemon, &granted)?;
    }

    // And all of it goes when the operator says so, killed in between or not.
    let mut release = std::thread::scope(|scope| -> anyhow::Result<_> {
        let enictl = daemon.enictl();
        let release = scope.spawn(move || enictl.run(&["release", "--all"]));
        std::thread::sleep(Duration::from_micros(dice.u64(..20_000)));
        daemon.kill()?;
        release.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    if release.code != Some(0) {
        release = daemon.enictl().run(&["release", "--all"])?;
    }
    release.success()?;
    eventually(PATIENCE, "nothing of enid is left", &daemon, || {
        nothing_of_enid(&pair)?;
        let there = addresses(&pair)?;
        ensure!(there == [FIRST].into(), "{there:?}");
        Ok(())
    })?;
    // What the first of all starts found, although the last one released it.
    let link = pair.instance.ip_json(&["-d", "link", "show", "ens6"])?;
    let names = &link[0]["altnames"];
    ensure!(link[0]["mtu"] == 1500 && names.is_null(), "ens6 was not put back: {link}");
    for (name, value) in &defaults {
        let name = format!("net.ipv6.conf.ens6.{name}");
        let now = pair.instance.read_sysctl(&name)?;
        ensure!(now == *value, "{name} is {now}, it was {value}");
    }
    pair.vpc.detach(&pair.second)?;
    eventually(PATIENCE, "all is as before enid", &daemon, || {
        same(&before, &picture(&pair.instance)?)
    })?;
    none_missed(&pinger)?;
    daemon.terminate()
}
