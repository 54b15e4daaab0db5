//! Promise: systemd-networkd with its defaults, which takes addresses, routes and rules that are not its
//! own from the links that it configures, may be started and restarted next to enid: all is back
//! within one pass, and the primary ENI notices nothing.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::vpc::{Bound, Pinger, Process};
use integration::{Daemon, Launch, eventually, trial};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cut::{Stage, Watchers, said_once, v4};
use crate::users::{PATIENCE, answers};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("networkd::all_is_back_within_one_pass_after_its_restart", restarted)]
}

/// Where networkd is one up from, as a program is found by `PATH`.
const PROGRAM: &str = "/usr/lib/systemd/systemd-networkd";

/// Its own `/run` and `/sys`; a udev that has finished with the links; and it stays who it is, because
/// the namespace may have no other users.
const START: &str = "set -e
    mount -t tmpfs tmpfs /run
    mount -t sysfs sysfs /sys
    mkdir -p /run/systemd/network /run/udev/data
    for link in ens5 ens6; do : > /run/udev/data/n$(cat /sys/class/net/$link/ifindex); done
    printf 'root:x:0:0::/:/bin/sh\\nsystemd-network:x:0:0::/:/bin/sh\\n' > /run/passwd
    printf 'root:x:0:\\nsystemd-network:x:0:\\n' > /run/group
    mount --bind /run/passwd /etc/passwd
    mount --bind /run/group /etc/group
    printf '[Match]\\nName=ens6\\n[Network]\\nIPv6AcceptRA=no\\n' > /run/systemd/network/1.network
    exec \"$0\"";

/// Starts the real one, which configures `ens6`.
fn start(stage: &Stage) -> anyhow::Result<Process> {
    ensure!(std::path::Path::new(PROGRAM).is_file(), "install the Debian package systemd");
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", START, PROGRAM])
        .env("SYSTEMD_LOG_TARGET", "console")
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    stage.instance.spawn(command)
}

/// Nothing of enid's is left on `ens6`.
fn has_taken_all(stage: &Stage) -> anyhow::Result<()> {
    let rules = stage.instance.run(&["ip", "rule"])?;
    ensure!(!rules.contains("lookup 20001"), "{rules}");
    let routes = stage.instance.output(&["ip", "route", "show", "table", "20001"])?.stdout;
    ensure!(!routes.contains("ens6"), "{routes}");
    let addresses = stage.instance.run(&["ip", "addr", "show", "dev", "ens6"])?;
    ensure!(!addresses.contains("10.0.2.") && !addresses.contains("f202:"), "{addresses}");
    Ok(())
}

/// Something of enid's was taken, and it put it back. What is gone for less than the interval between
/// two requests nobody misses, so lost requests would not tell.
fn enid_acted(daemon: &Daemon) -> anyhow::Result<()> {
    let points = daemon.faults().points();
    ensure!(points.iter().any(|point| point.starts_with("before ")), "enid had nothing to do");
    Ok(())
}

fn restarted() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let before = stage.picture()?;
    let mut daemon = Daemon::prepare(&stage.instance, &Launch::faulty(), "")?;
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    stage.gets_well(&daemon)?;
    let watchers = Watchers::of_the_primary(&stage)?;
    let interval = Duration::from_millis(20);
    let second = Pinger::start(&stage.host, v4(2, 4), &Bound::No, interval)?;
    daemon.faults().script("")?;
    let mut networkd = start(&stage)?;
    eventually(PATIENCE, "networkd takes something", &daemon, || {
        ensure!(networkd.try_wait()?.is_none(), "networkd has ended");
        enid_acted(&daemon)
    })?;
    stage.gets_well(&daemon)?;
    let well = stage.look(&daemon)?;

    // While enid works: what the second ENI loses is one gap.
    for _ in 0..3 {
        drop(networkd);
        let start_of_gap = Instant::now();
        daemon.faults().script("")?;
        networkd = start(&stage)?;
        eventually(PATIENCE, "it takes something", &daemon, || enid_acted(&daemon))?;
        well.comes(&stage, &daemon)?;
        let back = Instant::now();
        std::thread::sleep(Duration::from_millis(500));
        let after = second.between(back, Instant::now());
        ensure!(after.lost == 0, "after {:?}: {after:?}", back - start_of_gap);
    }

    // And without a race: enid sees what networkd left when it had finished.
    drop(networkd);
    let pid = Pid::from_raw(i32::try_from(daemon.pid()?)?);
    kill(pid, Signal::SIGSTOP)?;
    networkd = start(&stage)?;
    let taken = eventually(PATIENCE, "networkd takes all", &daemon, || has_taken_all(&stage));
    daemon.faults().script("")?;
    kill(pid, Signal::SIGCONT)?;
    taken?;
    well.comes(&stage, &daemon)?;
    let points = daemon.faults().points();
    let rounds = points.iter().filter(|point| *point == "after the last step").count();
    ensure!(rounds == 1, "{rounds} rounds: {points:#?}");
    answers(&stage.host, v4(2, 5))?;
    drop(networkd);
    said_once(&daemon.log())?;
    watchers.saw_nothing()?;
    stage.release(&daemon, &before)?;
    daemon.terminate()
}
