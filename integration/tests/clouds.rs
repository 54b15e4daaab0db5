//! Promise: in a cloud whose metadata only resembles EC2's, enid works where that tells enough;
//! where it does not, enid touches nothing and says plainly what is missing and what may help.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::imds::Flavour;
use integration::vpc::Config;
use integration::{Daemon, eventually, holds, trial};
use libtest_mimic::Trial;

use crate::pair::{FIRST, PATIENCE, Pair, answers, comes_to_rest, picture, same, status};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("clouds::without_tokens_the_remedy_is_named_and_works_at_once", without_tokens),
        trial("clouds::without_a_tree_of_network_interfaces_nothing_is_touched", without_tree),
        trial("clouds::where_devices_and_subnets_are_not_told_nothing_is_touched", reduced),
        trial("clouds::where_keys_have_no_text_all_works", without_texts),
        trial("clouds::another_port_or_address_is_used_once_it_is_configured", elsewhere),
    ]
}

const SECONDARY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 5);
const OFTEN: &str = "poll_interval = \"200ms\"\n";
const V1: &str = "poll_interval = \"200ms\"\n[metadata]\nallow_v1 = true\n";

fn in_cloud(flavour: Flavour) -> anyhow::Result<Pair> {
    let pair = Pair::attached()?;
    pair.vpc.metadata().set_flavour(flavour);
    Ok(pair)
}

/// Starts enid, which stays idle, tells why in journal, status and to systemd, and leaves everything
/// as it is.
fn stays_idle(pair: &Pair, extra: &str, parts: &[&str]) -> anyhow::Result<Daemon> {
    let before = picture(&pair.instance)?;
    let daemon = Daemon::start(&pair.instance, extra)?;
    eventually(PATIENCE, "the status tells why", &daemon, || {
        let text = read_by_user(&daemon)?;
        for part in parts {
            ensure!(text.contains(part), "{part} is not in: {text}");
        }
        Ok(())
    })?;
    daemon.enictl().run(&["refresh"])?.success()?;
    holds(Duration::from_millis(1500), "nothing is touched", &daemon, || {
        same(&before, &picture(&pair.instance)?)?;
        answers(&pair.host, FIRST)
    })?;
    let log = daemon.log();
    for part in parts {
        let lines = log.lines().filter(|line| line.contains(part)).count();
        ensure!(lines > 0, "{part} is not in the journal: {log}");
        ensure!(lines <= 2, "{part} is said {lines} times: {log}");
    }
    ensure!(!daemon.notices().iter().any(|line| line.contains("converged")), "it seems well");
    Ok(daemon)
}

/// What a user reads: `enictl status`, in one line, since it wraps.
fn read_by_user(daemon: &Daemon) -> anyhow::Result<String> {
    let said = daemon.enictl().run(&["status"])?;
    ensure!(said.code == Some(3), "nothing seems to be waited for: {said:?}");
    Ok(said.stdout.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn without_tokens() -> anyhow::Result<()> {
    for status in [404, 405, 501] {
        let pair = in_cloud(Flavour::OnlyV1(status))?;
        let number = format!("status {status} for a session token");
        let mut daemon = stays_idle(&pair, OFTEN, &[&number, "allow_v1 = true in [metadata]"])?;
        daemon.configure(V1)?;
        pair.comes_to_work("ens6", &daemon)?;
        comes_to_rest(&daemon)?;
        daemon.terminate()?;
    }
    Ok(())
}

fn without_tree() -> anyhow::Result<()> {
    let pair = in_cloud(Flavour::OpenStack(404))?;
    let why = "no mac and no network/interfaces/macs/";
    let mut daemon = stays_idle(&pair, V1, &[why])?;
    let plan = daemon.enictl().run(&["--socket", "/nonexistent", "plan"])?;
    ensure!(plan.code == Some(1) && plan.stderr.contains(why), "{plan:?}");
    daemon.terminate()
}

fn reduced() -> anyhow::Result<()> {
    let pair = in_cloud(Flavour::Snowball)?;
    let lacking = "interface-id, device-number, subnet-ipv4-cidr-block";
    let mut daemon = stays_idle(&pair, OFTEN, &[lacking])?;
    daemon.terminate()
}

/// Addresses come and go as in EC2.
fn without_texts() -> anyhow::Result<()> {
    let pair = in_cloud(Flavour::Outscale)?;
    let extra = format!("{V1}[removal]\ngrace = \"500ms\"\n");
    let mut daemon = Daemon::ready(&pair.instance, &extra)?;
    for restart in [false, true] {
        if restart {
            daemon.restart()?;
        }
        pair.comes_to_work("ens6", &daemon)?;
        pair.vpc.assign(&pair.second, SECONDARY, None)?;
        eventually(PATIENCE, "the new address answers", &daemon, || {
            answers(&pair.host, SECONDARY)
        })?;
        comes_to_rest(&daemon)?;
        pair.vpc.unassign(&pair.second, SECONDARY)?;
        eventually(PATIENCE, "the address goes", &daemon, || {
            let there = pair.instance.run(&["ip", "addr"])?.contains(&SECONDARY.to_string());
            ensure!(!there, "it is there");
            Ok(())
        })?;
        comes_to_rest(&daemon)?;
    }
    let log = daemon.log();
    ensure!(!log.contains("WARN") && !log.contains("refused"), "{log}");
    daemon.terminate()
}

fn elsewhere() -> anyhow::Result<()> {
    for (address, port) in
        [(Ipv4Addr::new(169, 254, 169, 254), 8773), (Ipv4Addr::new(198, 51, 100, 9), 80)]
    {
        let at = SocketAddrV4::new(address, port);
        let pair = Pair::build_in(Config::default().metadata_at(at))?;
        pair.vpc.attach(&pair.second, &pair.instance, "ens6")?;
        let mut daemon = stays_idle(&pair, OFTEN, &["http://169.254.169.254: "])?;
        daemon.configure(&format!("[metadata]\nendpoints = [\"http://{at}\"]\n"))?;
        pair.comes_to_work("ens6", &daemon)?;
        comes_to_rest(&daemon)?;
        let shown = status(&daemon)?["metadata"]["endpoint"].clone();
        let shown = shown.as_str().context("no endpoint is shown")?.to_owned();
        ensure!(format!("{shown}:80").contains(&at.to_string()), "{shown} is shown");
        daemon.terminate()?;
    }
    Ok(())
}
