//! Promise: an ENI that is detached leaves nothing behind; attached again under another name,
//! renamed, or moved away and back, it works by itself.

use std::time::Duration;

use anyhow::ensure;
use integration::{Daemon, eventually, holds, trial};
use libtest_mimic::Trial;

use crate::metadata_trouble::none_missed;
use crate::pair::{FIRST, PATIENCE, Pair, SECOND, answers, comes_to_rest, picture, same, status};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("reattach::a_detached_eni_leaves_nothing_behind", nothing_behind),
        trial("reattach::it_works_again_under_another_name", another_name),
        trial("reattach::two_enis_that_swap_their_names_work", swapped_names),
        trial("reattach::a_link_renamed_while_enid_runs_works", renamed),
        trial("reattach::a_link_moved_to_another_namespace_and_back_works", moved_away),
        trial("reattach::an_eni_detached_while_enid_is_stopped_is_cleaned_up", while_stopped),
    ]
}

/// What there was before the second ENI came.
struct Before {
    picture: std::collections::BTreeSet<String>,
}

fn before(pair: &Pair, daemon: &Daemon) -> anyhow::Result<Before> {
    comes_to_rest(daemon)?;
    Ok(Before { picture: picture(&pair.instance)? })
}

/// No rule, route, setting nor line in the ledger is left of the second ENI.
fn nothing_left(pair: &Pair, daemon: &Daemon, before: &Before) -> anyhow::Result<()> {
    let mac = pair.vpc.eni(&pair.second)?.mac.to_string();
    eventually(PATIENCE, "nothing is left of it", daemon, || {
        same(&before.picture, &picture(&pair.instance)?)?;
        let ledger = std::fs::read_to_string(daemon.runtime_directory().join("ledger.json"))?;
        ensure!(!ledger.contains(&mac), "the ledger has it: {ledger}");
        ensure!(!ledger.contains("10.0.2."), "the ledger has its addresses: {ledger}");
        let said = status(daemon)?.to_string();
        ensure!(!said.contains(&mac), "the status has it: {said}");
        Ok(())
    })?;
    comes_to_rest(daemon)?;
    answers(&pair.host, FIRST)
}

fn nothing_behind() -> anyhow::Result<()> {
    let pair = Pair::build()?;
    let mut daemon = Daemon::ready(&pair.instance, "")?;
    let before = before(&pair, &daemon)?;
    pair.vpc.attach(&pair.second, &pair.instance, "ens6")?;
    pair.comes_to_work("ens6", &daemon)?;
    pair.vpc.detach(&pair.second)?;
    nothing_left(&pair, &daemon, &before)?;
    daemon.terminate()
}

fn another_name() -> anyhow::Result<()> {
    let pair = Pair::build()?;
    let mut daemon = Daemon::ready(&pair.instance, "")?;
    let before = before(&pair, &daemon)?;
    let pinger = pair.ping_from_host(FIRST)?;
    for name in ["ens6", "ens7", "eth1", "ens6"] {
        pair.vpc.attach(&pair.second, &pair.instance, name)?;
        pair.comes_to_work(name, &daemon)?;
        comes_to_rest(&daemon)?;
        ensure!(pair.second_status(&daemon)?["link"] == name, "the status has the old name");
        let rules = pair.instance.run(&["ip", "rule", "show", "pref", "20000"])?;
        ensure!(rules.contains(&format!("oif {name} lookup 20001")), "{rules}");
        ensure!(rules.lines().count() == 2, "a rule for an old name is left: {rules}");
        pair.vpc.detach(&pair.second)?;
        nothing_left(&pair, &daemon, &before)?;
    }
    // Detached and attached again before enid has come to look.
    pair.vpc.attach(&pair.second, &pair.instance, "ens6")?;
    for name in ["ens7", "ens6", "ens8"] {
        pair.vpc.detach(&pair.second)?;
        pair.vpc.attach(&pair.second, &pair.instance, name)?;
    }
    pair.comes_to_work("ens8", &daemon)?;
    comes_to_rest(&daemon)?;
    none_missed(&pinger)?;
    daemon.terminate()
}

fn rename(pair: &Pair, names: &[(&str, &str)]) -> anyhow::Result<()> {
    let down = names.iter().map(|(old, _)| format!("link set {old} down"));
    let renames = names.iter().map(|(old, new)| format!("link set {old} name {new}"));
    pair.instance.ip_batch(&down.chain(renames).collect::<Vec<_>>())
}

/// The kernel renames only links that are down; enid raises them again at once.
fn renamed() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    let mut old = "ens6";
    for new in ["wan0", "eth7", "ens6"] {
        eventually(PATIENCE, "it can be renamed", &daemon, || rename(&pair, &[(old, new)]))?;
        pair.comes_to_work(new, &daemon)?;
        comes_to_rest(&daemon)?;
        let rules = pair.instance.run(&["ip", "rule"])?;
        ensure!(!rules.contains(&format!("oif {old} ")), "{rules}");
        ensure!(pair.second_status(&daemon)?["link"] == new, "the status has the old name");
        old = new;
    }
    daemon.terminate()
}

/// Rules name a device: the old one of the one is the new one of the other.
fn swapped_names() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    let third = std::net::Ipv4Addr::new(10, 0, 2, 40);
    let eni = pair.vpc.create_eni(integration::vpc::EniSpec::new([third]))?;
    pair.vpc.attach(&eni, &pair.instance, "ens7")?;
    eventually(PATIENCE, "the third ENI works", &daemon, || answers(&pair.host, third))?;
    comes_to_rest(&daemon)?;
    daemon.terminate()?;
    rename(&pair, &[("ens6", "tmp0"), ("ens7", "ens6")])?;
    rename(&pair, &[("tmp0", "ens7")])?;
    pair.instance.run(&["ip", "link", "set", "ens6", "up"])?;
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    pair.comes_to_work("ens7", &daemon)?;
    eventually(PATIENCE, "the third ENI works", &daemon, || answers(&pair.host, third))?;
    comes_to_rest(&daemon)?;
    let rules = pair.instance.run(&["ip", "rule", "show", "pref", "20000"])?;
    ensure!(rules.contains("oif ens7 lookup 20001"), "{rules}");
    ensure!(rules.contains("oif ens6 lookup 20002"), "{rules}");
    ensure!(rules.lines().count() == 3, "{rules}");
    daemon.terminate()
}

/// As a container runtime does with an ENI that a container gets for itself.
fn moved_away() -> anyhow::Result<()> {
    let pair = Pair::build()?;
    let mut daemon = Daemon::ready(&pair.instance, "")?;
    let before = before(&pair, &daemon)?;
    pair.vpc.attach(&pair.second, &pair.instance, "ens6")?;
    pair.comes_to_work("ens6", &daemon)?;
    let other = format!("{}-other", pair.instance.name());
    pair.instance.run(&["ip", "netns", "add", &other])?;
    let outcome = there_and_back(&pair, &daemon, &before, &other);
    pair.instance.run(&["ip", "netns", "del", &other])?;
    outcome?;
    daemon.terminate()
}

fn there_and_back(
    pair: &Pair,
    daemon: &Daemon,
    before: &Before,
    other: &str,
) -> anyhow::Result<()> {
    for _ in 0..2 {
        pair.instance.run(&["ip", "link", "set", "ens6", "netns", other])?;
        // Metadata goes on listing it.
        eventually(PATIENCE, "nothing is left of it", daemon, || {
            same(&before.picture, &picture(&pair.instance)?)
        })?;
        holds(Duration::from_millis(500), "the other namespace is its own", daemon, || {
            let links = pair.instance.run(&["ip", "-n", other, "addr", "show", "ens6"])?;
            ensure!(!links.contains(&SECOND.to_string()), "{links}");
            Ok(())
        })?;
        let name = pair.instance.name();
        pair.instance.run(&["ip", "-n", other, "link", "set", "ens6", "netns", name])?;
        pair.comes_to_work("ens6", daemon)?;
        comes_to_rest(daemon)?;
    }
    Ok(())
}

fn while_stopped() -> anyhow::Result<()> {
    let pair = Pair::build()?;
    let mut daemon = Daemon::ready(&pair.instance, "")?;
    let before = before(&pair, &daemon)?;
    pair.vpc.attach(&pair.second, &pair.instance, "ens6")?;
    pair.comes_to_work("ens6", &daemon)?;
    for kill in [false, true] {
        if kill {
            daemon.kill()?
        } else {
            daemon.terminate()?
        }
        pair.vpc.detach(&pair.second)?;
        daemon.restart()?;
        daemon.wait_ready(PATIENCE)?;
        nothing_left(&pair, &daemon, &before)?;
        pair.vpc.attach(&pair.second, &pair.instance, "ens9")?;
        pair.comes_to_work("ens9", &daemon)?;
        comes_to_rest(&daemon)?;
    }
    daemon.terminate()
}
