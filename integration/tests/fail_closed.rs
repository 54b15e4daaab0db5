//! Promise: while an ENI's link is down, nothing with its source leaves by another ENI, containers
//! are still reached, and when it is up again it works by itself.

use std::time::Duration;

use anyhow::ensure;
use integration::vpc::{Bound, ping_once};
use integration::{Daemon, eventually, holds, trial};
use libtest_mimic::Trial;

use crate::pair::{Container, PATIENCE, Pair, SECOND, comes_to_rest};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("fail_closed::a_link_without_carrier_leaks_nothing", without_carrier),
        trial("fail_closed::a_link_taken_down_while_enid_is_stopped_leaks_nothing", while_stopped),
        trial("fail_closed::a_link_taken_down_by_hand_is_up_again", taken_down),
    ]
}

/// What everybody does by hand: one rule, one table, one default route.
fn without_enid(pair: &Pair) -> anyhow::Result<()> {
    let lines = |verb: &str| {
        vec![
            format!("rule {verb} from {SECOND} lookup 77 pref 100"),
            format!("route {verb} default via 10.0.2.1 dev ens6 table 77"),
        ]
    };
    pair.vpc.configure_as_dhcp(&pair.second)?;
    pair.instance.ip_batch(&lines("add"))?;
    ensure!(ping(pair)?, "the usual recipe does not work");
    let before = pair.drops()?;
    pair.vpc.set_carrier(&pair.second, false)?;
    ensure!(!ping(pair)?, "there is an answer without carrier");
    ensure!(pair.drops()? > before, "the usual recipe leaks nothing: the promise is cheap");
    pair.vpc.set_carrier(&pair.second, true)?;
    pair.instance.ip_batch(&lines("del"))
}

/// From the second ENI's address to the internet.
fn ping(pair: &Pair) -> anyhow::Result<bool> {
    ping_once(&pair.instance, pair.vpc.internet_v4().into(), &Bound::from(SECOND))
}

/// Nothing leaks, it is said plainly, and a container is still reached.
fn fails_closed(pair: &Pair, scene: &Daemon) -> anyhow::Result<()> {
    let internet = pair.vpc.internet_v4().to_string();
    eventually(PATIENCE, "there is no route", scene, || {
        let said = pair.instance.output(&["ip", "route", "get", &internet, "from", "10.0.2.4"])?;
        ensure!(said.code != Some(0) && said.stderr.contains("No route to host"), "{said:?}");
        Ok(())
    })?;
    let before = pair.drops()?;
    holds(Duration::from_millis(500), "nothing leaks", scene, || {
        let bound = Bound::from(SECOND);
        for to in [pair.vpc.internet_v4(), crate::pair::HOST, "10.0.1.1".parse()?] {
            ensure!(!ping_once(&pair.instance, to.into(), &bound)?, "{to} answers");
        }
        let answered = ping_once(&pair.instance, Container::ADDRESS.into(), &bound)?;
        ensure!(answered, "the container does not answer");
        let own = ping_once(&pair.instance, internet.parse()?, &Bound::from(crate::pair::FIRST))?;
        ensure!(own, "the primary ENI does not work");
        Ok(())
    })?;
    ensure!(pair.drops()? == before, "packets left by the wrong ENI");
    Ok(())
}

/// As with a cable pulled, where the kernel is told to heed it.
fn without_carrier() -> anyhow::Result<()> {
    let pair = Pair::attached()?;
    for name in ["all", "default", "ens6"] {
        let name = format!("net.ipv4.conf.{name}.ignore_routes_with_linkdown");
        pair.instance.sysctl(&name, "1")?;
    }
    without_enid(&pair)?;
    let _container = Container::start(&pair.instance)?;
    let mut daemon = Daemon::ready(&pair.instance, "")?;
    pair.comes_to_work("ens6", &daemon)?;
    pair.vpc.set_carrier(&pair.second, false)?;
    fails_closed(&pair, &daemon)?;
    pair.vpc.set_carrier(&pair.second, true)?;
    pair.comes_to_work("ens6", &daemon)?;
    comes_to_rest(&daemon)?;
    daemon.terminate()
}

/// Nobody is there to help: what enid left in the kernel is enough.
fn while_stopped() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    let _container = Container::start(&pair.instance)?;
    daemon.terminate()?;
    pair.instance.run(&["ip", "link", "set", "ens6", "down"])?;
    fails_closed(&pair, &daemon)?;
    pair.instance.run(&["ip", "link", "set", "ens6", "up"])?;
    // The kernel has forgotten the routes: still nothing leaks.
    fails_closed(&pair, &daemon)?;
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    pair.comes_to_work("ens6", &daemon)?;
    daemon.terminate()
}

/// A managed ENI's link is up.
fn taken_down() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    let before = pair.drops()?;
    for _ in 0..3 {
        pair.instance.run(&["ip", "link", "set", "ens6", "down"])?;
        pair.comes_to_work("ens6", &daemon)?;
    }
    ensure!(pair.drops()? == before, "packets left by the wrong ENI");
    daemon.terminate()
}
