//! Promise: what stops a removal is told; and an address that moves between ENIs is never on none of
//! them, never stays on both, and takes nothing of others along.

use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::imds::{Action, Fault};
use integration::vpc::{Config, EniSpec, Vpc};
use integration::{Daemon, eventually, trial};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::pair::{PATIENCE, Pair, answers, comes_to_rest};
use crate::users::{addresses, is_settled, status, status_of};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("removal::every_condition_is_told_until_it_goes", told),
        trial("removal::most_of_them_are_counted_and_told", mass),
        trial("removal::what_stays_for_good_is_told_with_the_reason", kept),
        trial("removal::addresses_that_move_are_never_on_no_eni_and_never_stay_on_both", moved),
    ]
}

const fn secondary(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 2, last)
}

fn impatient(grace: &str) -> String {
    format!("poll_interval = \"200ms\"\n[removal]\ngrace = \"{grace}\"\nmass_grace = \"40s\"\n")
}

/// Both ENIs are managed, the second one with these secondary addresses.
fn stage(extra: &str, list: &[Ipv4Addr]) -> anyhow::Result<(Pair, Daemon)> {
    let (pair, daemon) = Pair::managed(extra)?;
    let list: Vec<IpAddr> = list.iter().copied().map(Into::into).collect();
    pair.vpc.assign_all(&pair.second, &list)?;
    daemon.enictl().run(&["refresh", "--wait"])?.success()?;
    comes_to_rest(&daemon)?;
    Ok((pair, daemon))
}

fn text(daemon: &Daemon) -> anyhow::Result<String> {
    Ok(daemon.enictl().run(&["status", "--all"])?.stdout)
}

fn leaving(daemon: &Daemon, address: Ipv4Addr) -> anyhow::Result<Value> {
    Ok(status_of(daemon, address)?["leaving"].clone())
}

fn told() -> anyhow::Result<()> {
    let goes = secondary(5);
    let (pair, mut daemon) = stage(&impatient("6s"), &[goes, secondary(6), secondary(7)])?;
    pair.vpc.unassign(&pair.second, goes)?;
    eventually(PATIENCE, "the count is told", &daemon, || {
        let leaving = leaving(&daemon, goes)?;
        ensure!(leaving["cause"] == "unassigned" && leaving["needed"] == 3, "{leaving}");
        ensure!(leaving["grace_seconds"] == 6 && leaving["mass"] == false, "{leaving}");
        ensure!(leaving["stops"].as_array().is_some_and(Vec::is_empty), "{leaving}");
        let text = text(&daemon)?;
        ensure!(text.contains("leaving: lacking in "), "{text}");
        ensure!(
            text.contains(" of 3 readings, ") && text.contains(" of 6 s; then it goes"),
            "{text}"
        );
        Ok(())
    })?;

    // A key that cannot be read stops it, and the status says which.
    let mac = pair.vpc.eni(&pair.second)?.mac;
    let key = format!("*/{mac}/ipv4-prefix");
    let prefix: ipnet::IpNet = "10.0.2.32/28".parse()?;
    pair.vpc.delegate(&pair.second, prefix)?;
    for (fault, kind, words) in [
        (
            Fault::on(&key, Action::Status(500)),
            "unread",
            "stands still: ipv4-prefix could not be read",
        ),
        (Fault::on("*", Action::Status(500)), "failed", "stands still: metadata failed"),
    ] {
        pair.vpc.metadata().fault(fault);
        eventually(PATIENCE, words, &daemon, || {
            let leaving = leaving(&daemon, goes)?;
            let stops = leaving["stops"].as_array().context("no stops")?;
            ensure!(stops.iter().any(|stop| stop["kind"] == kind), "{leaving}");
            let text = text(&daemon)?;
            ensure!(text.contains(words), "{text}");
            Ok(())
        })?;
        std::thread::sleep(Duration::from_secs(7));
        ensure!(addresses(&pair.instance, "ens6")?.contains(&goes), "it went");
        pair.vpc.metadata().clear_all();
    }
    eventually(PATIENCE, "it goes", &daemon, || {
        ensure!(!addresses(&pair.instance, "ens6")?.contains(&goes), "it is still there");
        Ok(())
    })?;
    daemon.terminate()
}

fn mass() -> anyhow::Result<()> {
    let all: Vec<Ipv4Addr> = (5..=10).map(secondary).collect();
    let (pair, mut daemon) = stage(&impatient("1s"), &all)?;
    for address in &all[..4] {
        pair.vpc.unassign(&pair.second, *address)?;
    }
    eventually(PATIENCE, "the mass is told", &daemon, || {
        let leaving = leaving(&daemon, all[0])?;
        ensure!(leaving["mass_going"] == 4 && leaving["mass_of"] == 6, "{leaving}");
        ensure!(leaving["grace_seconds"] == 40, "{leaving}");
        let text = text(&daemon)?;
        let words = "mass removal: 4 of its 6 secondaries and prefixes would go at once";
        ensure!(text.contains(words), "{text}");
        Ok(())
    })?;
    std::thread::sleep(Duration::from_secs(3));
    let here = addresses(&pair.instance, "ens6")?;
    ensure!(all.iter().all(|address| here.contains(address)), "there are {here:?}");
    daemon.terminate()
}

fn kept() -> anyhow::Result<()> {
    let ignored = secondary(200);
    let extra = format!("ignore_addresses = [\"{ignored}/32\"]\n{}", impatient("1s"));
    let (pair, mut daemon) = stage(&extra, &[])?;
    pair.instance.ip_batch(&[
        "addr add 10.0.2.77/32 dev ens6".to_owned(),
        "addr add 10.0.2.78/32 dev ens6 valid_lft 600 preferred_lft 600".to_owned(),
        format!("addr add {ignored}/32 dev ens6"),
    ])?;
    eventually(PATIENCE, "they are told", &daemon, || {
        let kept = |address: &str| -> anyhow::Result<Value> {
            let status = status(&daemon)?;
            let enis = status["enis"].as_array().context("no ENIs")?;
            let mut kept = enis.iter().filter_map(|eni| eni["kept"].as_array()).flatten();
            let found = kept.find(|kept| kept["address"] == address);
            Ok(found.with_context(|| format!("no {address}: {status}"))?["why"].clone())
        };
        ensure!(kept("10.0.2.77")? == "foreign", "a foreign one");
        ensure!(kept("10.0.2.78")? == "dynamic", "a dynamic one");
        let text = text(&daemon)?;
        ensure!(text.contains("10.0.2.77  not in metadata, stays: not enid's"), "{text}");
        ensure!(text.contains("10.0.2.78  not in metadata, stays: dynamic"), "{text}");
        Ok(())
    })?;
    daemon.terminate()
}

/// More than go into one datagram, so that its end falls among them.
const MANY: u8 = 140;

fn moved() -> anyhow::Result<()> {
    let vpc = Vpc::new(Config::default().subnet("10.0.1.0/24"))?;
    let instance = vpc.instance("main", EniSpec::new([Ipv4Addr::new(10, 0, 1, 4)]))?;
    let near = vpc.instance("near", EniSpec::new([Ipv4Addr::new(10, 0, 1, 9)]))?;
    let second = vpc.create_eni(EniSpec::new([Ipv4Addr::new(10, 0, 1, 5)]))?;
    vpc.attach(&second, &instance, "ens6")?;
    let many: Vec<Ipv4Addr> = (100..100 + MANY).map(|n| Ipv4Addr::new(10, 0, 1, n)).collect();
    let list: Vec<IpAddr> = many.iter().copied().map(Into::into).collect();
    vpc.assign_all(&instance.primary, &list)?;
    let mut daemon = Daemon::ready(&instance, "")?;
    eventually(PATIENCE, "they work", &daemon, || answers(&near, many[0]))?;
    is_settled(&daemon)?;
    // Somebody else's route, whose source goes for a moment if the address does; the kernel would
    // drop it then.
    let route = "route add 198.51.100.0/24 via 10.0.1.1 dev ens5 src 10.0.1.100";
    instance.ip_batch(&[route.to_owned()])?;

    let (reader, writer) = std::io::pipe()?;
    let mut command = Command::new("ip");
    command.args(["-o", "monitor", "address"]).stdin(Stdio::null()).stdout(writer);
    let monitor = instance.spawn(command)?;
    // An event of its own tells that it listens.
    eventually(PATIENCE, "the monitor listens", &daemon, || {
        let bound = instance.run(&["cat", "/proc/net/netlink"])?;
        let id = monitor.id().to_string();
        ensure!(bound.lines().any(|line| line.split_whitespace().nth(2) == Some(&id)), "{bound}");
        Ok(())
    })?;
    for address in &many {
        vpc.move_address(*address, &instance.primary, &second)?;
    }
    daemon.enictl().run(&["refresh"])?.success()?;
    eventually(PATIENCE, "they have moved", &daemon, || {
        let (old, new) = (addresses(&instance, "ens5")?, addresses(&instance, "ens6")?);
        ensure!(many.iter().all(|address| new.contains(address)), "not all came: {new:?}");
        ensure!(!many.iter().any(|address| old.contains(address)), "not all went: {old:?}");
        many.iter().step_by(20).try_for_each(|address| answers(&near, *address))
    })?;
    is_settled(&daemon)?;
    drop(monitor);
    let heard = std::io::read_to_string(reader)?;
    let routes = instance.run(&["ip", "route"])?;
    ensure!(routes.contains("198.51.100.0/24 via 10.0.1.1 dev ens5 src 10.0.1.100"), "{routes}");
    for address in many {
        let here = format!(" {address}/32 ");
        let mut both = 0;
        let mut events = Vec::new();
        for line in heard.lines() {
            both += usize::from(events.len() == 1);
            if line.contains(&here) {
                events.push((line.starts_with("Deleted"), line.contains(" ens6 ")));
            }
        }
        ensure!(events == [(false, true), (true, false)], "{address}: {events:?}");
        // Only others that move with it come and go meanwhile.
        ensure!(both <= 128, "{address} is on both while {both} others change\n{heard}");
    }
    daemon.terminate()
}
