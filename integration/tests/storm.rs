//! Promise: whatever else happens to kernel and clock, enid looks again and is right in the end: events
//! that got lost, dumps that changes interrupt, clocks of another origin, and a machine that slept.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::vpc::Netns;
use integration::{Daemon, Launch, eventually, holds, trial};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cut::{IMPATIENT, Stage, Watchers, said_once, v4, v6};
use crate::pair::Pair;
use crate::users::{PATIENCE, answers, is_silent, status, status_of};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("storm::what_happened_among_lost_events_is_seen", lost_events),
        trial("storm::that_events_were_lost_is_reason_enough_to_look", lost_by_itself),
        trial("storm::a_storm_of_changes_holds_up_nothing", storm),
        trial("clocks::their_origin_does_not_matter", other_origin),
        trial("clocks::a_machine_that_slept_removes_nothing_without_proof", slept),
    ]
}

fn all(stage: &Stage) -> BTreeSet<IpAddr> {
    stage.granted().into_iter().map(|(_, address)| address).collect()
}

fn send(daemon: &Daemon, signal: Signal) -> anyhow::Result<()> {
    Ok(kill(Pid::from_raw(i32::try_from(daemon.pid()?)?), signal)?)
}

/// What happens while the daemon stands still.
fn frozen<T>(daemon: &Daemon, what: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    send(daemon, Signal::SIGSTOP)?;
    let outcome = what();
    send(daemon, Signal::SIGCONT)?;
    outcome
}

/// Routes that concern nobody, in a table of somebody else.
fn routes(action: &str, count: u32) -> Vec<String> {
    let route = |n: u32| {
        let [_, a, b, c] = n.to_be_bytes();
        format!("route {action} 100.{}.{b}.{c}/32 dev storm table 999", 64 + a)
    };
    (0..count).map(route).collect()
}

fn with_storm_link(netns: &Netns) -> anyhow::Result<()> {
    // Its routes would go with its last address.
    netns.ip_batch(&[
        "link add storm type bridge".to_owned(),
        "link set storm up".to_owned(),
        "addr add 198.18.255.1/32 dev storm".to_owned(),
    ])
}

/// A column of what the kernel tells of the netlink sockets in a namespace.
fn sockets(netns: &Netns, column: usize) -> anyhow::Result<Vec<String>> {
    let text = netns.within(|| std::fs::read_to_string("/proc/thread-self/net/netlink"))??;
    let lines = text.lines().skip(1);
    Ok(lines.filter_map(|line| Some(line.split_whitespace().nth(column)?.to_owned())).collect())
}

/// Messages that the kernel could not deliver to anybody in a namespace.
fn dropped(netns: &Netns) -> anyhow::Result<u64> {
    let drops = sockets(netns, 8)?;
    drops.iter().map(|drops| drops.parse::<u64>().context("no number")).sum()
}

/// Where it had much to look at, the daemon does not listen for a while, and cannot lose anything.
fn listens(netns: &Netns, daemon: &Daemon) -> anyhow::Result<()> {
    eventually(PATIENCE, "the daemon listens again", daemon, || {
        holds(Duration::from_millis(200), "it listens", daemon, || {
            let groups = sockets(netns, 3)?;
            ensure!(groups.iter().any(|groups| groups != "00000000"), "{groups:?}");
            Ok(())
        })
    })
}

fn lost_events() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let mut daemon = Daemon::ready(&stage.instance, "")?;
    stage.gets_well(&daemon)?;
    let well = stage.look(&daemon)?;
    with_storm_link(&stage.instance)?;
    let watchers = Watchers::of_the_primary(&stage)?;
    listens(&stage.instance, &daemon)?;
    let before = dropped(&stage.instance)?;
    // Nobody reads while they come.
    let lost = frozen(&daemon, || -> anyhow::Result<u64> {
        stage.instance.ip_batch(&routes("add", 40_000))?;
        for lost in [
            "rule del pref 20020 from 10.0.2.0/24",
            "route del default table 20001",
            "addr del 10.0.2.6/32 dev ens6",
        ] {
            stage.instance.ip_batch(&[lost.to_owned()])?;
        }
        // Once it notices, it takes another socket.
        Ok(dropped(&stage.instance)? - before)
    })?;
    ensure!(lost > 0, "no event got lost");
    eventually(PATIENCE, "what was lost is back", &daemon, || {
        let rules = stage.instance.run(&["ip", "rule"])?;
        ensure!(rules.contains("from 10.0.2.0/24 iif lo lookup 20001"), "{rules}");
        let table = stage.instance.run(&["ip", "route", "show", "table", "20001"])?;
        ensure!(table.contains("default via"), "{table}");
        answers(&stage.host, v4(2, 6))
    })?;
    stage.instance.ip_batch(&["link del storm".to_owned()])?;
    well.comes(&stage, &daemon)?;
    said_once(&daemon.log())?;
    watchers.saw_nothing()?;
    daemon.terminate()
}

/// What is heard concerns nobody, and what concerns enid is lost: a pass by the clock comes after five
/// minutes only, and where there is no IPv6 the kernel has nothing more to say.
fn lost_by_itself() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    with_storm_link(&pair.instance)?;
    // That a router is known by another hardware address does not matter to enid.
    let router = |n: u32| {
        let address = format!("02:00:00:00:00:{:02x}", n % 2);
        format!("neigh replace fe80::99 lladdr {address} nud permanent router dev storm")
    };
    pair.instance.ip_batch(&[router(1)])?;
    rests(&daemon)?;
    listens(&pair.instance, &daemon)?;
    let (flood, deletion) = frozen(&daemon, || -> anyhow::Result<(u64, u64)> {
        let before = dropped(&pair.instance)?;
        let flood: Vec<String> = (0..40_000).map(router).collect();
        pair.instance.ip_batch(&flood)?;
        let full = dropped(&pair.instance)?;
        // Nothing more is queued before all of it was read.
        pair.instance.ip_batch(&["rule del pref 20020 from 10.0.2.0/24".to_owned()])?;
        Ok((full - before, dropped(&pair.instance)? - full))
    })?;
    ensure!(flood > 0 && deletion > 0, "the flood lost {flood}, the deletion {deletion}");
    eventually(PATIENCE, "the rule is back", &daemon, || {
        let rules = pair.instance.run(&["ip", "rule"])?;
        ensure!(rules.contains("from 10.0.2.0/24 iif lo lookup 20001"), "{rules}");
        Ok(())
    })?;
    pair.works("ens6")?;
    daemon.terminate()
}

/// Nothing has happened for a while that enid looked for.
fn rests(daemon: &Daemon) -> anyhow::Result<()> {
    eventually(PATIENCE, "nothing happens any more", daemon, || {
        let pass = status(daemon)?["last_pass"].clone();
        ensure!(pass["ago_seconds"].as_u64() >= Some(2), "{pass}");
        Ok(())
    })
}

fn storm() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    with_storm_link(&stage.instance)?;
    let mut daemon = Daemon::ready(&stage.instance, IMPATIENT)?;
    stage.gets_well(&daemon)?;
    let watchers = Watchers::start(&stage, all(&stage))?;
    let stop = AtomicBool::new(false);
    let addresses = |action: &str| -> Vec<String> {
        let address =
            |n: u32| format!("addr {action} 198.18.{}.{}/32 dev storm", n / 200, n % 200 + 1);
        (0..1000).map(address).collect()
    };
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let blowing = scope.spawn(|| -> anyhow::Result<u32> {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                stage.instance.ip_batch(&addresses("add"))?;
                stage.instance.ip_batch(&routes("add", 3000))?;
                stage.instance.ip_batch(&addresses("del"))?;
                stage.instance.ip_batch(&routes("del", 3000))?;
                rounds += 1;
            }
            Ok(rounds)
        });
        let outcome = in_storm(&stage, &daemon);
        stop.store(true, Ordering::Relaxed);
        let rounds = blowing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        outcome?;
        ensure!(rounds >= 2, "{rounds} rounds are no storm");
        Ok(())
    })?;
    stage.gets_well(&daemon)?;
    said_once(&daemon.log())?;
    watchers.saw_nothing()?;
    daemon.terminate()
}

fn in_storm(stage: &Stage, daemon: &Daemon) -> anyhow::Result<()> {
    for _ in 0..3 {
        stage.vpc.attach(&stage.third, &stage.instance, "ens7")?;
        eventually(PATIENCE, "an ENI is configured", daemon, || {
            [v4(2, 132), v6(2, 132)].into_iter().try_for_each(|it| answers(&stage.host, it))
        })?;
        stage.instance.ip_batch(&["rule del pref 20000 oif ens7".to_owned()])?;
        eventually(PATIENCE, "a rule is back", daemon, || {
            let rules = stage.instance.run(&["ip", "rule"])?;
            ensure!(rules.contains("oif ens7"), "{rules}");
            Ok(())
        })?;
        stage.vpc.detach(&stage.third)?;
        eventually(PATIENCE, "an ENI is forgotten", daemon, || {
            let rules = stage.instance.run(&["ip", "rule"])?;
            ensure!(!rules.contains("oif ens7"), "{rules}");
            Ok(())
        })?;
    }
    Ok(())
}

fn other_origin() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let before = stage.picture()?;
    let watchers = Watchers::of_the_primary(&stage)?;
    let late = ["unshare", "--time", "--monotonic", "300000000", "--boottime", "400000000"];
    let mut daemon = Daemon::prepare(&stage.instance, &Launch::default().under(&late), IMPATIENT)?;
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    stage.gets_well(&daemon)?;
    let ticks = std::fs::read_to_string(format!("/proc/{}/timens_offsets", daemon.pid()?))?;
    ensure!(ticks.contains("400000000"), "its clock is not another: {ticks}");
    let well = stage.look(&daemon)?;
    // Back to the usual one, with files of the future and of the past.
    daemon.set_launch(&Launch::default());
    for date in ["2099-01-01", "1971-01-01"] {
        for file in [daemon.runtime_directory().join("ledger.json"), daemon.config()] {
            stage.instance.run(&["touch", "-d", date, &file.display().to_string()])?;
        }
        daemon.restart()?;
        daemon.wait_ready(PATIENCE)?;
        well.comes(&stage, &daemon)?;
        stage.vpc.unassign(&stage.second, v4(2, 6))?;
        eventually(PATIENCE, "it goes", &daemon, || is_silent(&stage.instance, v4(2, 6)))?;
        stage.vpc.assign(&stage.second, v4(2, 6), None)?;
        stage.gets_well(&daemon)?;
    }
    stage.release(&daemon, &before)?;
    watchers.saw_nothing()?;
    daemon.terminate()
}

/// Two readings and five seconds: enough only if both readings lack it.
const SOBER: &str = "poll_interval = \"300ms\"\n\
    [removal]\nconfirmations = 2\ngrace = \"5s\"\nmass_grace = \"5s\"\n";

fn slept() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let mut daemon = Daemon::ready(&stage.instance, SOBER)?;
    stage.gets_well(&daemon)?;
    let watchers = Watchers::start(&stage, all(&stage))?;
    let tells = |granted: bool| {
        stage.vpc.model().update(|state| {
            let Some(eni) = state.enis.get_mut(&stage.second) else { return };
            eni.ipv4.retain(|address| IpAddr::V4(*address) != v4(2, 6));
            if let (true, IpAddr::V4(address)) = (granted, v4(2, 6)) {
                eni.ipv4.push(address);
            }
        });
    };
    for _ in 0..2 {
        tells(false);
        eventually(PATIENCE, "it is missed", &daemon, || {
            let said = status_of(&daemon, v4(2, 6))?;
            ensure!(said["state"] == "leaving", "{said}");
            Ok(())
        })?;
        // All of the time that a removal takes passes, and no reading.
        frozen(&daemon, || {
            std::thread::sleep(Duration::from_secs(6));
            tells(true);
            Ok(())
        })?;
        stage.gets_well(&daemon)?;
    }
    watchers.saw_nothing()?;
    daemon.terminate()
}
