//! Promise: what enid made and somebody deleted is back a moment later; what somebody else made is
//! never touched; who fights over an object neither starves the rest nor goes unmentioned.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::{Daemon, eventually, holds, trial};
use libtest_mimic::Trial;

use crate::pair::{PATIENCE, Pair, SECOND, answers, comes_to_rest, foreign, picture, same};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("drift::an_owned_object_deleted_by_hand_is_back", one_by_one),
        trial("drift::everything_deleted_at_once_is_back", wholesale),
        trial("drift::foreign_objects_are_never_touched", never_touched),
        trial("drift::a_twin_of_an_owned_object_is_never_touched", twins),
        trial("drift::a_replaced_address_is_reported_and_not_removed", taken_over),
        trial("drift::a_fight_is_backed_off_from_and_told", fight),
    ]
}

pub(crate) const SECONDARY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 5);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 6);
/// Everything that enid adds to the second ENI's link in these trials.
const OURS: [Ipv4Addr; 3] = [SECOND, SECONDARY, OTHER];

const IMPATIENT: &str = "poll_interval = \"100ms\"\n\
    [removal]\nconfirmations = 1\ngrace = \"0s\"\nmass_grace = \"0s\"\n";

/// Somebody else's objects, where they are least expected.
const FOREIGN: [&str; 6] = [
    "addr add 192.0.2.77/32 dev ens6",
    "addr add 10.0.2.77/32 dev ens6",
    "rule add pref 20015 from 192.0.2.77 lookup 99 proto 99",
    "rule add pref 20020 from 192.0.2.78 lookup 20001 proto 99",
    "route add 192.0.2.0/25 dev ens5 table 99 proto 99",
    "route add unreachable 192.0.2.128/25 table 20001 proto 99",
];

pub(crate) fn lines(list: &[&str]) -> Vec<String> {
    list.iter().map(|line| (*line).to_owned()).collect()
}

/// Both ENIs are managed, the second one with a secondary address.
pub(crate) fn stage(extra: &str) -> anyhow::Result<(Pair, Daemon)> {
    let (pair, daemon) = Pair::managed(extra)?;
    pair.vpc.assign(&pair.second, SECONDARY, None)?;
    daemon.enictl().run(&["refresh", "--wait"])?.success()?;
    eventually(PATIENCE, "the secondary address works", &daemon, || {
        answers(&pair.host, SECONDARY)
    })?;
    comes_to_rest(&daemon)?;
    Ok((pair, daemon))
}

/// Does the damage and waits until all looks as before and works.
fn repaired(pair: &Pair, daemon: &Daemon, damages: &[&[&str]]) -> anyhow::Result<()> {
    let before = picture(&pair.instance)?;
    for damage in damages {
        pair.instance.ip_batch(&lines(damage)).with_context(|| format!("{damage:?}"))?;
        eventually(PATIENCE, &format!("{damage:?} is repaired"), daemon, || {
            same(&before, &picture(&pair.instance)?)
        })?;
        eventually(PATIENCE, "all addresses work", daemon, || {
            pair.works("ens6")?;
            answers(&pair.host, SECONDARY)
        })?;
    }
    comes_to_rest(daemon)
}

pub(crate) fn one_by_one() -> anyhow::Result<()> {
    let (pair, mut daemon) = stage("")?;
    pair.instance.ip_batch(&lines(&FOREIGN))?;
    repaired(
        &pair,
        &daemon,
        &[
            &["addr del 10.0.2.5/32 dev ens6"],
            &["addr del 10.0.2.4/24 dev ens6"],
            &["route del default table 20001"],
            &["route del default table 20000"],
            &["route del 10.0.0.0/16 table 20001"],
            &["route del 10.0.2.0/24 table 20001"],
            &["route del unreachable default table 20001"],
            &["rule del pref 20000 oif ens6"],
            &["rule del pref 20010 from 10.0.2.0/24"],
            &["rule del pref 20020 from 10.0.2.0/24"],
            &["rule del pref 20020 from 10.0.1.0/24"],
            &["link set ens6 group 0"],
        ],
    )?;
    daemon.terminate()
}

fn wholesale() -> anyhow::Result<()> {
    let (pair, mut daemon) = stage("")?;
    // None of them by the link that goes down, nor in the tables that are flushed.
    pair.instance.ip_batch(&lines(&[FOREIGN[2], FOREIGN[3], FOREIGN[4]]))?;
    repaired(
        &pair,
        &daemon,
        &[
            &["route flush table 20001"],
            &["rule flush proto 233"],
            &["route flush table 20001", "route flush table 20000", "rule flush proto 233"],
            &["link set ens6 down", "link set ens6 up"],
            &["addr flush dev ens6"],
            &["link set ens6 down"],
            &[
                "addr flush dev ens6",
                "rule flush proto 233",
                "route flush table 20001",
                "link set ens6 group 0",
                "link set ens6 down",
            ],
        ],
    )?;
    daemon.terminate()
}

pub(crate) fn never_touched() -> anyhow::Result<()> {
    let (pair, mut daemon) = stage(IMPATIENT)?;
    let bare = foreign(&picture(&pair.instance)?, &OURS);
    pair.instance.ip_batch(&lines(&FOREIGN))?;
    let before = foreign(&picture(&pair.instance)?, &OURS);
    ensure!(before.len() >= bare.len() + FOREIGN.len(), "`ip` does not show them");
    let untouched = |daemon: &Daemon, what: &str| {
        eventually(PATIENCE, what, daemon, || {
            same(&before, &foreign(&picture(&pair.instance)?, &OURS))
        })?;
        holds(Duration::from_millis(300), what, daemon, || {
            same(&before, &foreign(&picture(&pair.instance)?, &OURS))
        })
    };
    untouched(&daemon, "nothing foreign is touched")?;
    pair.vpc.assign(&pair.second, OTHER, None)?;
    eventually(PATIENCE, "an address comes", &daemon, || answers(&pair.host, OTHER))?;
    untouched(&daemon, "nothing foreign is touched by an address that comes")?;
    pair.vpc.unassign(&pair.second, OTHER)?;
    gone(&pair, &daemon, OTHER)?;
    untouched(&daemon, "nothing foreign is touched by an address that goes")?;
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    comes_to_rest(&daemon)?;
    untouched(&daemon, "nothing foreign is touched by a restart")?;
    let notices = pair.second_status(&daemon)?["notices"].to_string();
    ensure!(notices.contains("a route that enid did not make"), "{notices}");
    daemon.terminate()
}

fn has(pair: &Pair, address: Ipv4Addr) -> anyhow::Result<bool> {
    let links = pair.instance.ip_json(&["addr", "show", "dev", "ens6"])?;
    let mut list = links[0]["addr_info"].as_array().into_iter().flatten();
    Ok(list.any(|item| item["local"] == address.to_string()))
}

fn gone(pair: &Pair, daemon: &Daemon, address: Ipv4Addr) -> anyhow::Result<()> {
    eventually(PATIENCE, "an unassigned address goes", daemon, || {
        ensure!(!has(pair, address)?, "{address} is still there");
        Ok(())
    })
}

/// Somebody else's object that differs from ours in nothing but who made it.
fn twins() -> anyhow::Result<()> {
    let (pair, mut daemon) = stage("")?;
    let route = "default via 10.0.2.1 dev ens6 src 10.0.2.4 table 20001 proto 99";
    pair.instance.ip_batch(&[format!("route append {route}")])?;
    daemon.terminate()?;
    // The kernel takes only one rule of a kind, whoever made it: theirs was first.
    pair.instance.ip_batch(&lines(&[
        "rule del pref 20020 from 10.0.2.0/24",
        "rule add pref 20020 from 10.0.2.0/24 iif lo lookup 20001 proto 99",
    ]))?;
    let rule = || -> anyhow::Result<()> {
        let rules = pair.instance.run(&["ip", "-N", "rule", "show", "pref", "20020"])?;
        ensure!(rules.contains("from 10.0.2.0/24 iif lo lookup 20001 proto 99"), "{rules}");
        Ok(())
    };
    let route = || -> anyhow::Result<()> {
        let routes = pair.instance.run(&["ip", "-N", "route", "show", "table", "20001"])?;
        ensure!(routes.contains("default via 10.0.2.1 dev ens6 proto 99 src 10.0.2.4"), "{routes}");
        Ok(())
    };
    let twins = |what: &str, daemon: &Daemon| {
        holds(Duration::from_secs(1), what, daemon, || rule().and_then(|()| route()))
    };
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    pair.comes_to_work("ens6", &daemon)?;
    twins("the twins are there", &daemon)?;
    comes_to_rest(&daemon)?;
    // Ours beside theirs is deleted and made again.
    pair.instance.ip_batch(&lines(&["route del default table 20001 proto 233"]))?;
    pair.comes_to_work("ens6", &daemon)?;
    twins("the twins outlive a repair", &daemon)?;
    daemon.enictl().run(&["release", "--all"])?.success()?;
    // The kernel took their route, whose source went; nobody but them may take their rule.
    holds(Duration::from_secs(1), "their rule outlives a release", &daemon, rule)?;
    let rest = pair.instance.run(&["ip", "-N", "rule"])?;
    ensure!(!rest.contains("proto 233"), "{rest}");
    daemon.terminate()
}

/// `ip addr replace` strips the mark: since then it is not ours to remove.
fn taken_over() -> anyhow::Result<()> {
    let (pair, mut daemon) = stage(IMPATIENT)?;
    pair.vpc.assign(&pair.second, OTHER, None)?;
    eventually(PATIENCE, "an address comes", &daemon, || answers(&pair.host, OTHER))?;
    pair.instance.ip_batch(&[format!("addr replace {SECONDARY}/32 dev ens6")])?;
    eventually(PATIENCE, "it is reported", &daemon, || {
        let eni = pair.second_status(&daemon)?;
        let mut addresses = eni["addresses"].as_array().into_iter().flatten();
        let found = addresses.find(|address| address["address"] == SECONDARY.to_string());
        ensure!(found.is_some_and(|found| found["state"] == "taken_over"), "{eni}");
        Ok(())
    })?;
    let said = daemon.enictl().run(&["status"])?.stdout;
    ensure!(said.contains("replaced by somebody else"), "{said}");
    pair.vpc.unassign(&pair.second, SECONDARY)?;
    pair.vpc.unassign(&pair.second, OTHER)?;
    gone(&pair, &daemon, OTHER)?;
    holds(Duration::from_secs(1), "it stays", &daemon, || {
        ensure!(has(&pair, SECONDARY)?, "it was removed");
        Ok(())
    })?;
    daemon.enictl().run(&["release", "--all"])?.success()?;
    ensure!(has(&pair, SECONDARY)?, "the release removed it");
    ensure!(!has(&pair, SECOND)?, "the release left an owned address");
    daemon.terminate()
}

const FOUGHT: &str = "from 10.0.2.0/24 iif lo lookup 20001";

fn fight() -> anyhow::Result<()> {
    let (pair, mut daemon) = stage("poll_interval = \"200ms\"\n")?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| -> anyhow::Result<()> {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // It is not there while enid backs off.
                let _ = pair.instance.output(&[
                    "ip",
                    "rule",
                    "del",
                    "pref",
                    "20020",
                    "from",
                    "10.0.2.0/24",
                    "lookup",
                    "20001",
                ]);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let outcome = fought(&pair, &daemon);
        stop.store(true, Ordering::Relaxed);
        outcome
    })?;
    eventually(Duration::from_secs(90), "all is well after the fight", &daemon, || {
        let rules = pair.instance.run(&["ip", "rule"])?;
        ensure!(rules.contains(FOUGHT), "{rules}");
        Ok(())
    })?;
    pair.comes_to_work("ens6", &daemon)?;
    comes_to_rest(&daemon)?;
    daemon.terminate()
}

fn fought(pair: &Pair, daemon: &Daemon) -> anyhow::Result<()> {
    eventually(PATIENCE, "it is said", daemon, || {
        let waiting = pair.second_status(daemon)?["waiting"].to_string();
        ensure!(waiting.contains("keeps undoing"), "{waiting}");
        ensure!(waiting.contains(FOUGHT), "{waiting}");
        Ok(())
    })?;
    ensure!(daemon.log().contains("keeps undoing"), "the journal does not tell");
    // The rest converges meanwhile.
    let address = Ipv4Addr::new(10, 0, 1, 5);
    pair.vpc.assign(&pair.instance.primary, address, None)?;
    eventually(PATIENCE, "another address comes", daemon, || answers(&pair.host, address))?;
    pair.instance.ip_batch(&lines(&["route del 10.0.0.0/16 table 20001"]))?;
    eventually(PATIENCE, "another object is back", daemon, || {
        let routes = pair.table()?;
        ensure!(routes.contains("10.0.0.0/16"), "{routes}");
        Ok(())
    })?;
    let made = || daemon.log().matches(&format!("rule add pref 20020 {FOUGHT}")).count();
    let before = made();
    std::thread::sleep(Duration::from_secs(3));
    let (during, log) = (made() - before, daemon.log());
    ensure!(during <= 4, "made {during} times in three seconds of truce\n{log}");
    Ok(())
}
