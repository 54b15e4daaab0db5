//! Promise: a script that has just told the cloud something learns by `enictl wait` when it has come
//! about on the instance, or that it has not come about in time and why.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::ensure;
use integration::imds::{Action, Fault};
use integration::vpc::Output;
use integration::{Daemon, eventually, holds, trial};
use libtest_mimic::Trial;
use serde_json::json;

use crate::pair::{PATIENCE, Pair, SECOND, answers, comes_to_rest};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("waiting::for_an_address_ends_when_it_answers", address),
        trial("waiting::for_an_address_to_go_ends_when_nobody_has_it", absent),
        trial("waiting::for_an_eni_ends_when_it_works", eni),
        trial("waiting::for_all_of_them_ends_when_all_work", online),
        trial("waiting::what_does_not_come_in_time_ends_with_3_and_says_why", too_late),
    ]
}

const LATER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 5);
/// Metadata is not read by itself while a trial runs.
const PATIENT: &str = "poll_interval = \"1h\"\n";

fn wait(daemon: &Daemon, words: &[&str]) -> anyhow::Result<Output> {
    daemon.enictl().run(&[&["wait", "--timeout", "20s"], words].concat())
}

/// It ends with 0, and has nothing to say.
fn comes_about(daemon: &Daemon, words: &[&str]) -> anyhow::Result<()> {
    let said = wait(daemon, words)?;
    ensure!(said.code == Some(0) && said.stdout.is_empty() && said.stderr.is_empty(), "{said:?}");
    Ok(())
}

fn address() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed(PATIENT)?;
    // It is there already.
    comes_about(&daemon, &["--address", &SECOND.to_string()])?;
    let daemon_here = &daemon;
    let waited = std::thread::scope(|scope| {
        // Begun before the cloud is told: a reading that lacks it is not the end.
        let waited = scope.spawn(|| comes_about(daemon_here, &["--address", "10.0.2.5"]));
        std::thread::sleep(Duration::from_millis(500));
        let early = waited.is_finished();
        pair.vpc.assign(&pair.second, LATER, None)?;
        let waited = waited.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        ensure!(!early, "it did not wait");
        waited
    });
    waited?;
    answers(&pair.host, LATER)?;
    let said = wait(&daemon, &["--address", "10.0.2.5", "--json"])?;
    ensure!(said.code == Some(0), "{said:?}");
    ensure!(said.json()? == json!({ "met": true, "waiting": [] }), "{said:?}");
    daemon.terminate()
}

fn absent() -> anyhow::Result<()> {
    let quick = "[removal]\nconfirmations = 2\ngrace = \"1s\"\nmass_grace = \"1s\"\n";
    let (pair, mut daemon) = Pair::managed(&format!("{PATIENT}{quick}"))?;
    pair.vpc.assign(&pair.second, LATER, None)?;
    comes_about(&daemon, &["--address", "10.0.2.5"])?;
    pair.vpc.unassign(&pair.second, LATER)?;
    comes_about(&daemon, &["--absent", "10.0.2.5"])?;
    let addresses = pair.instance.run(&["ip", "addr"])?;
    ensure!(!addresses.contains("10.0.2.5/"), "it is still there: {addresses}");
    // What nobody ever had is absent; what metadata grants or a link has is not.
    comes_about(&daemon, &["--absent", "10.0.2.99"])?;
    pair.instance.run(&["ip", "addr", "add", "10.0.2.77/32", "dev", "ens6"])?;
    for (address, why) in [("10.0.2.77", "ens6 still has"), ("10.0.2.4", "still grants")] {
        let said = daemon.enictl().run(&["wait", "--absent", address, "--timeout", "2s"])?;
        ensure!(said.code == Some(3) && said.stdout.contains(why), "{said:?}");
    }
    daemon.terminate()
}

fn eni() -> anyhow::Result<()> {
    let pair = Pair::build()?;
    let mut daemon = Daemon::ready(&pair.instance, PATIENT)?;
    comes_to_rest(&daemon)?;
    let said = daemon.enictl().run(&["wait", "--eni", &pair.second.0, "--timeout", "1s"])?;
    ensure!(said.code == Some(3) && said.stdout.contains("no ENI here"), "{said:?}");
    pair.vpc.attach(&pair.second, &pair.instance, "ens6")?;
    comes_about(&daemon, &["--eni", &pair.second.0])?;
    pair.works("ens6")?;
    let mac = pair.vpc.eni(&pair.second)?.mac.to_string();
    for name in ["ens6", &*mac] {
        comes_about(&daemon, &["--eni", name])?;
    }
    daemon.terminate()
}

fn online() -> anyhow::Result<()> {
    let pair = Pair::attached()?;
    let mut daemon = Daemon::start(&pair.instance, PATIENT)?;
    comes_about(&daemon, &["--online"])?;
    pair.works("ens6")?;
    // Who is held is not waited for.
    daemon.enictl().run(&["release", "ens6"])?.success()?;
    comes_about(&daemon, &["--online"])?;
    let said = daemon.enictl().run(&["wait", "--eni", "ens6", "--timeout", "1s"])?;
    ensure!(said.code == Some(3) && said.stdout.contains("released"), "{said:?}");
    daemon.terminate()
}

fn too_late() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed(PATIENT)?;
    let said = daemon.enictl().run(&["wait", "--address", "10.0.2.5", "--timeout", "2s"])?;
    ensure!(said.code == Some(3), "{said:?}");
    ensure!(said.stdout == "not yet: metadata does not show 10.0.2.5 on an ENI here\n", "{said:?}");
    // An address that is there is no answer while metadata cannot be asked.
    pair.vpc.metadata().fault(Fault::on("*", Action::Status(503)));
    let said =
        daemon.enictl().run(&["wait", "--address", "10.0.2.4", "--timeout", "2s", "--json"])?;
    ensure!(said.code == Some(3) && said.json()?["met"] == false, "{said:?}");
    // Nor is one that is not.
    let said = daemon.enictl().run(&["wait", "--absent", "10.0.2.5", "--timeout", "9s"])?;
    ensure!(said.code == Some(3), "{said:?}");
    pair.vpc.metadata().clear_all();
    for (code, words) in [
        (2, &["wait"][..]),
        (2, &["wait", "--online", "--eni", "ens6"]),
        (2, &["wait", "--address", "ens6"]),
        (2, &["wait", "--online", "--timeout", "25h"]),
    ] {
        let said = daemon.enictl().run(words)?;
        ensure!(said.code == Some(code), "{said:?}");
    }
    // Waiting is over with it: nobody asks for ever.
    let asked = || -> anyhow::Result<u64> {
        let status = crate::pair::status(&daemon)?;
        Ok(status["metadata"]["requests"].as_u64().unwrap_or_default())
    };
    daemon.enictl().run(&["refresh", "--wait"])?.success()?;
    let before = eventually(PATIENCE, "metadata is left in peace", &daemon, || {
        let before = asked()?;
        std::thread::sleep(Duration::from_millis(500));
        ensure!(asked()? == before, "it is still asked");
        Ok(before)
    })?;
    holds(Duration::from_secs(2), "nobody waits any more", &daemon, || {
        ensure!(asked()? == before, "it is asked again");
        Ok(())
    })?;
    daemon.terminate()?;
    let said = daemon.enictl().run(&["wait", "--online"])?;
    ensure!(said.code == Some(4), "{said:?}");
    Ok(())
}
