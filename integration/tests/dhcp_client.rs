//! Promise: a DHCP client may run on an ENI, before enid or beside it; what it makes stays, its
//! lease is renewed, and the routing is right all the same.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::vpc::{
    Bound, Config, Echo, EniId, EniSpec, Exchange, Instance, MessageType, Pinger, Process, Vpc,
};
use integration::{Daemon, eventually, trial};
use libtest_mimic::Trial;
use tempfile::TempDir;

use crate::pair::{PATIENCE, comes_to_rest, foreign, picture, same};
use crate::users::{WHOAMI, answers, drops, public, works_with_the_internet};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("dhcp_client::an_eni_that_a_client_configured_before_enid_came", || {
            before_enid(&TWO_SUBNETS)
        }),
        trial("dhcp_client::a_sibling_that_a_client_configured_before_enid_came", || {
            before_enid(&ONE_SUBNET)
        }),
        trial("dhcp_client::an_eni_works_on_when_its_lease_runs_out", lease_runs_out),
    ]
}

/// Where the two ENIs are, and how a client there renews its lease.
struct Layout {
    subnets: &'static [&'static str],
    addresses: [Ipv4Addr; 2],
    /// Seconds.
    lease: u32,
    /// Whom the client asks for more time.
    renewed_by: Ipv4Addr,
}

const TWO_SUBNETS: Layout = Layout {
    subnets: &["10.0.1.0/24", "10.0.2.0/24"],
    addresses: [Ipv4Addr::new(10, 0, 1, 4), Ipv4Addr::new(10, 0, 2, 4)],
    lease: 6,
    renewed_by: Ipv4Addr::new(10, 0, 2, 1),
};

/// What a client says to the server alone leaves by the first ENI, where the server does not know
/// the client. When most of the lease is over, it asks everybody, by its own ENI.
const ONE_SUBNET: Layout = Layout {
    subnets: &["10.0.1.0/24"],
    addresses: [Ipv4Addr::new(10, 0, 1, 4), Ipv4Addr::new(10, 0, 1, 5)],
    lease: 16,
    renewed_by: Ipv4Addr::BROADCAST,
};

/// An instance whose second ENI, `ens6`, is attached and not configured.
struct Stage {
    vpc: Vpc,
    instance: Instance,
    second: EniId,
    addresses: [Ipv4Addr; 2],
    _services: [Echo; 2],
}

impl Stage {
    fn build(layout: &Layout) -> anyhow::Result<Stage> {
        let config = Config::default().lease(layout.lease);
        let vpc = Vpc::new(layout.subnets.iter().copied().fold(config, Config::subnet))?;
        let addresses = layout.addresses;
        let spec = |address, n| EniSpec::new([address]).public(address, public(n));
        let instance = vpc.instance("main", spec(addresses[0], 1))?;
        let second = vpc.create_eni(spec(addresses[1], 2))?;
        vpc.attach(&second, &instance, "ens6")?;
        let _services = [Echo::start(vpc.internet(), WHOAMI)?, Echo::start(&instance, WHOAMI)?];
        Ok(Stage { vpc, instance, second, addresses, _services })
    }

    /// Both ENIs work, in both directions, each by itself.
    fn works(&self) -> anyhow::Result<()> {
        for (address, n) in self.addresses.into_iter().zip(1..) {
            works_with_the_internet(&self.vpc, &self.instance, address, public(n))?;
        }
        Ok(())
    }

    fn drops(&self) -> anyhow::Result<u64> {
        drops(&self.vpc, [&self.instance.primary, &self.second])
    }

    /// What the client asked and got so far.
    fn renewals(&self) -> Vec<Exchange> {
        let mut all = self.vpc.dhcp().exchanges(&self.second);
        all.retain(|one| one.asked == MessageType::Request && one.answer.is_some());
        all
    }
}

/// A DHCP client that runs on `ens6`.
struct Client {
    _directory: TempDir,
    _process: Process,
}

/// It does what a distribution's script does, without a word about the resolver.
const SCRIPT: &str = r#"#!/bin/sh
case "$reason" in
    PREINIT)
        ip link set "$interface" up
        ;;
    BOUND | RENEW | REBIND | REBOOT)
        ip link set "$interface" mtu "$new_interface_mtu"
        ip addr replace "$new_ip_address/$new_subnet_mask" broadcast "$new_broadcast_address" \
            dev "$interface" valid_lft "$new_dhcp_lease_time" preferred_lft "$new_dhcp_lease_time"
        ip route replace default via "$new_routers" dev "$interface"
        ;;
    EXPIRE | FAIL | RELEASE | STOP)
        ip addr del "$old_ip_address/$old_subnet_mask" dev "$interface"
        ;;
esac
exit 0
"#;

impl Client {
    /// Starts it and waits until it has configured the ENI.
    fn start(stage: &Stage) -> anyhow::Result<Client> {
        let directory = tempfile::Builder::new().prefix("dhcp-").tempdir()?;
        let path = |name: &str| directory.path().join(name);
        fs::write(path("script"), SCRIPT)?;
        fs::set_permissions(path("script"), PermissionsExt::from_mode(0o755))?;
        fs::write(path("leases"), "")?;
        let wanted = "subnet-mask, broadcast-address, routers, interface-mtu, domain-name-servers";
        fs::write(
            path("conf"),
            format!("request {wanted};\ninitial-interval 1;\nbackoff-cutoff 1;\n"),
        )?;
        let mut client = Command::new("dhclient");
        client.arg("-d").arg("-cf").arg(path("conf")).arg("-lf").arg(path("leases"));
        client.arg("-pf").arg(path("pid")).arg("-sf").arg(path("script")).arg("ens6");
        client.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
        client.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = stage.instance.spawn(client)?;
        let client = Client { _directory: directory, _process: process };
        eventually(PATIENCE, "the client has configured it", &stage.instance, || {
            let default = stage.instance.run(&["ip", "route", "show", "default"])?;
            ensure!(default.contains("dev ens6"), "{default}");
            Ok(())
        })?;
        Ok(client)
    }
}

/// Addresses, routes and rules that enid did not make; links have a group from it.
fn configured(instance: &Instance) -> anyhow::Result<BTreeSet<String>> {
    let mut lines = foreign(&picture(instance)?, &[]);
    lines.retain(|line| !line.starts_with("link "));
    Ok(lines)
}

/// What enid did so far, by its journal.
fn done(daemon: &Daemon) -> Vec<String> {
    let did = |line: &&str| [" add ", " del ", " replace "].iter().any(|word| line.contains(word));
    daemon.log().lines().filter(did).map(str::to_owned).collect()
}

fn before_enid(layout: &Layout) -> anyhow::Result<()> {
    let stage = Stage::build(layout)?;
    answers(stage.vpc.internet(), public(1))?;
    let _client = Client::start(&stage)?;
    // Its default route takes the answers of the first ENI along.
    let before = stage.drops()?;
    ensure!(stage.works().is_err(), "a DHCP client is enough");
    ensure!(stage.drops()? > before, "no answer left by the wrong ENI");
    let made = configured(&stage.instance)?;

    let mut daemon = Daemon::ready(&stage.instance, "")?;
    eventually(PATIENCE, "both ENIs work", &daemon, || stage.works())?;
    comes_to_rest(&daemon)?;
    let (before, did, renewed) = (stage.drops()?, done(&daemon), stage.renewals().len());
    ensure!(!did.is_empty(), "the journal tells nothing\n{}", daemon.log());
    let pingers = stage.addresses.into_iter().zip(1..).map(|(_, n)| {
        let interval = Duration::from_millis(100);
        Pinger::start(stage.vpc.internet(), public(n).into(), &Bound::No, interval)
    });
    let pingers = pingers.collect::<anyhow::Result<Vec<_>>>()?;
    eventually(PATIENCE, "the client has renewed its lease", &daemon, || {
        let renewals = stage.renewals();
        let last = renewals.get(renewed..).and_then(|new| new.last());
        ensure!(last.context("not yet")?.to == layout.renewed_by, "{renewals:?}");
        Ok(())
    })?;
    for report in pingers.into_iter().map(Pinger::stop) {
        ensure!(report.lost == 0 && report.answered > 0, "{report:?}");
    }
    same(&made, &configured(&stage.instance)?)?;
    ensure!(done(&daemon) == did, "enid did something: {}", daemon.log());
    ensure!(stage.drops()? == before, "packets left by the wrong ENI");
    stage.works().context("after the renewals")?;
    daemon.terminate()
}

/// Whoever made the address, it is the ENI's as long as metadata says so.
fn lease_runs_out() -> anyhow::Result<()> {
    let stage = Stage::build(&TWO_SUBNETS)?;
    let _client = Client::start(&stage)?;
    let mut daemon = Daemon::ready(&stage.instance, "")?;
    eventually(PATIENCE, "both ENIs work", &daemon, || stage.works())?;
    comes_to_rest(&daemon)?;
    stage.vpc.dhcp().silence();
    eventually(PATIENCE, "the lease has run out", &daemon, || {
        let default = stage.instance.run(&["ip", "route", "show", "default"])?;
        ensure!(!default.contains("dev ens6"), "{default}");
        Ok(())
    })?;
    eventually(PATIENCE, "both ENIs work", &daemon, || stage.works())?;
    comes_to_rest(&daemon)?;
    daemon.terminate()
}
