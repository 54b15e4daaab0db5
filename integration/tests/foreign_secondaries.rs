//! Promise: secondary addresses that belong to somebody else on this host are left to them.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::ensure;
use integration::vpc::{Bound, Config, Echo, EniSpec, Instance, Netns, Pinger, Vpc, whoami};
use integration::{Daemon, eventually, holds, trial};
use libtest_mimic::Trial;

use crate::users::{
    PATIENCE, WHOAMI, addresses, answers, everything, is_settled, is_silent, status, status_of,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("foreign_secondaries::a_pods_address_is_not_taken", pods_address),
        trial("foreign_secondaries::where_the_vpc_cni_is_at_work_nothing_is_touched", || {
            held(vpc_cni, "VPC CNI")
        }),
        trial("foreign_secondaries::where_cilium_is_at_work_nothing_is_touched", || {
            held(cilium, "Cilium")
        }),
        trial("foreign_secondaries::an_owner_that_comes_later_finds_all_as_it_was", comes_later),
    ]
}

const FIRST: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 1, 4), Ipv4Addr::new(10, 0, 1, 50)];
const SECOND: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 2, 4), Ipv4Addr::new(10, 0, 2, 50)];
const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 51);
const POD: Ipv4Addr = FIRST[1];
/// Impatient, so that what is going to change does so while a trial looks.
const IMPATIENT: &str =
    "poll_interval = \"200ms\"\n[removal]\ngrace = \"500ms\"\nmass_grace = \"500ms\"\n";

/// An instance with addresses for pods, and a neighbour.
struct Stage {
    vpc: Vpc,
    instance: Instance,
    near: Instance,
}

impl Stage {
    fn build() -> anyhow::Result<Stage> {
        let vpc = Vpc::new(Config::default().subnet("10.0.1.0/24").subnet("10.0.2.0/24"))?;
        let instance = vpc.instance("main", EniSpec::new(FIRST))?;
        let near = vpc.instance("near", EniSpec::new([Ipv4Addr::new(10, 0, 1, 9)]))?;
        Ok(Stage { vpc, instance, near })
    }

    /// A pod as CNIs make it: the host routes one address to it.
    fn pod(&self, name: &str, address: Ipv4Addr) -> anyhow::Result<Netns> {
        let host = &self.instance;
        let pod = host.pod(name)?;
        host.sysctl("net.ipv4.ip_forward", "1")?;
        host.ip_batch(&[
            format!("addr add 169.254.1.1/32 dev {name}"),
            format!("link set {name} up"),
            format!("route add {address}/32 dev {name}"),
        ])?;
        pod.ip_batch(&[
            format!("addr add {address}/32 dev eth0"),
            "link set eth0 up".to_owned(),
            "route add 169.254.1.1 dev eth0".to_owned(),
            "route add default via 169.254.1.1".to_owned(),
        ])?;
        Ok(pod)
    }

    fn has(&self, address: Ipv4Addr) -> anyhow::Result<bool> {
        Ok(addresses(&self.instance, "ens5")?.contains(&address))
    }
}

pub(crate) fn pods_address() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let pod = stage.pod("pod0", POD)?;
    let _service = Echo::start(&pod, WHOAMI)?;
    let serves = || -> anyhow::Result<()> {
        let seen = whoami(&stage.near, (POD, WHOAMI).into(), &Bound::No)?;
        ensure!(addresses(&stage.near, "ens5")?.contains(&as_v4(seen)?), "the pod sees {seen}");
        Ok(())
    };
    eventually(PATIENCE, "the pod serves", &stage.instance, serves)?;

    // An address manager that knows nothing of pods cuts it off.
    let taken = format!("{POD}/32");
    stage.instance.run(&["ip", "addr", "add", &taken, "dev", "ens5"])?;
    ensure!(serves().is_err(), "the pod serves though the host has its address");
    stage.instance.run(&["ip", "addr", "del", &taken, "dev", "ens5"])?;
    serves()?;

    let interval = Duration::from_millis(20);
    let pinger = Pinger::start(&stage.near, POD.into(), &Bound::No, interval)?;
    let mut daemon = Daemon::ready(&stage.instance, IMPATIENT)?;
    // Others are added, also later.
    stage.vpc.assign(&stage.instance.primary, OWN, None)?;
    eventually(PATIENCE, "an address of the host works", &daemon, || answers(&stage.near, OWN))?;
    is_settled(&daemon)?;
    ensure!(!stage.has(POD)?, "the pod's address was taken");
    let status = status_of(&daemon, POD)?;
    ensure!(status["state"] == "elsewhere", "status says {status}");
    ensure!(status["elsewhere"] == "pod0", "status says {status}");
    let text = daemon.enictl().run(&["status", "--all"])?.stdout;
    ensure!(text.contains("pod0"), "status does not name the pod's link: {text}");
    serves()?;
    eventually(PATIENCE, "no ping was missed", &daemon, || {
        let report = pinger.report();
        ensure!(report.lost == 0 && report.answered > 0, "{report:?}");
        Ok(())
    })?;
    daemon.terminate()
}

fn as_v4(address: std::net::IpAddr) -> anyhow::Result<Ipv4Addr> {
    match address {
        std::net::IpAddr::V4(v4) => Ok(v4),
        std::net::IpAddr::V6(v6) => anyhow::bail!("{v6} is no IPv4 address"),
    }
}

/// The rules of the VPC CNI: marked connections, a pod, and another one on the second ENI.
fn vpc_cni(stage: &Stage) -> anyhow::Result<()> {
    stage.instance.ip_batch(&[
        "rule add pref 512 to 10.0.1.50 lookup main".to_owned(),
        "rule add pref 1024 fwmark 0x80/0x80 lookup main".to_owned(),
        "rule add pref 1536 from 10.0.2.50 lookup 2".to_owned(),
        "route add default via 10.0.2.1 dev ens6 table 2".to_owned(),
    ])
}

/// The host's end of Cilium.
fn cilium(stage: &Stage) -> anyhow::Result<()> {
    stage.instance.ip_batch(&[
        "link add cilium_host type veth peer name cilium_net".to_owned(),
        "link set cilium_net up".to_owned(),
        "link set cilium_host up".to_owned(),
        "addr add 10.0.1.60/32 dev cilium_host".to_owned(),
    ])
}

/// With an owner's traces on the host nothing changes, whatever comes; the operator may differ.
fn held(set_up: fn(&Stage) -> anyhow::Result<()>, who: &str) -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let (vpc, instance) = (&stage.vpc, &stage.instance);
    let second = vpc.create_eni(EniSpec::new(SECOND))?;
    vpc.attach(&second, instance, "ens6")?;
    vpc.configure_as_dhcp(&second)?;
    set_up(&stage)?;
    let before = everything(instance)?;
    let unchanged = || -> anyhow::Result<()> {
        let after = everything(instance)?;
        ensure!(after == before, "before: {before:#?}, after: {after:#?}");
        Ok(())
    };

    let mut daemon = Daemon::ready(instance, IMPATIENT)?;
    is_settled(&daemon)?;
    unchanged()?;
    vpc.assign(&instance.primary, OWN, None)?;
    vpc.unassign(&second, SECOND[1])?;
    is_settled(&daemon)?;
    holds(Duration::from_secs(1), "nothing is touched", &daemon, unchanged)?;
    let said = status(&daemon)?;
    let enis = said["enis"].as_array().map_or(&[][..], Vec::as_slice);
    ensure!(enis.len() == 2, "status knows {} ENIs", enis.len());
    for eni in enis {
        let reason = eni["reason"].as_str().unwrap_or_default();
        ensure!(eni["state"] == "held" && reason.contains(who), "status says {eni}");
    }
    let text = daemon.enictl().run(&["status"])?.stdout;
    ensure!(text.contains(who) && text.contains("neighbours.cni"), "status says {text}");

    // The operator knows better: the same host, and enid does its work.
    daemon.configure(&format!("{IMPATIENT}[neighbours]\ncni = \"ignore\"\n"))?;
    daemon.hangup()?;
    eventually(PATIENCE, "the override is obeyed", &daemon, || {
        answers(&stage.near, OWN)?;
        answers(&stage.near, SECOND[0])
    })?;
    daemon.terminate()
}

/// What enid made stays as it is while the other one is there, and follows the cloud afterwards.
fn comes_later() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let (vpc, instance) = (&stage.vpc, &stage.instance);
    let mut daemon = Daemon::ready(instance, IMPATIENT)?;
    eventually(PATIENCE, "the address works", &daemon, || answers(&stage.near, FIRST[1]))?;
    is_settled(&daemon)?;

    let rule = ["pref", "1024", "fwmark", "0x80/0x80", "lookup", "main"];
    instance.run(&[&["ip", "rule", "add"], &rule[..]].concat())?;
    eventually(PATIENCE, "it is held", &daemon, || {
        let status = status(&daemon)?;
        ensure!(status["enis"][0]["state"] == "held", "status says {status}");
        Ok(())
    })?;
    let before = everything(instance)?;
    vpc.unassign(&instance.primary, FIRST[1])?;
    vpc.assign(&instance.primary, OWN, None)?;
    is_settled(&daemon)?;
    holds(Duration::from_secs(2), "nothing is touched", &daemon, || {
        ensure!(everything(instance)? == before, "something changed");
        Ok(())
    })?;
    is_silent(&stage.near, OWN)?;

    instance.run(&[&["ip", "rule", "del"], &rule[..]].concat())?;
    eventually(PATIENCE, "the cloud is followed again", &daemon, || {
        answers(&stage.near, OWN)?;
        ensure!(!stage.has(FIRST[1])?, "{} is still there", FIRST[1]);
        Ok(())
    })?;
    daemon.terminate()
}
