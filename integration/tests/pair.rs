//! An instance with two ENIs in two subnets, who talks to it, and how its kernel looks.

use std::collections::BTreeSet;
use std::iter;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::vpc::{
    Bound, Config, Echo, EniId, EniSpec, Instance, Netns, Pinger, Vpc, ping_once, whoami,
};
use integration::{Daemon, eventually};
use serde_json::Value;

use crate::cut::v6;

/// Long enough for a machine that does much else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
pub(crate) const SECOND: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 4);
pub(crate) const FIRST_PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub(crate) const SECOND_PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// A host in a third subnet.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 254, 4);
const WHOAMI: u16 = 7;

/// `ens5` is there and configured; the second ENI is `ens6` once it is attached.
pub(crate) struct Pair {
    pub(crate) vpc: Vpc,
    pub(crate) instance: Instance,
    pub(crate) second: EniId,
    pub(crate) host: Instance,
    /// Tells on the internet whom it sees.
    _whoami: Echo,
}

impl Pair {
    /// The second ENI is attached nowhere yet.
    pub(crate) fn build() -> anyhow::Result<Pair> {
        Pair::build_in(Config::default())
    }

    /// The same in a VPC of this kind.
    pub(crate) fn build_in(config: Config) -> anyhow::Result<Pair> {
        Pair::build_with(
            ["10.0.1.0/24", "10.0.2.0/24", "10.0.254.0/24"]
                .into_iter()
                .fold(config, Config::subnet),
            [],
        )
    }

    /// The second ENI is attached, and both have IPv6, too.
    pub(crate) fn dual() -> anyhow::Result<Pair> {
        let config = [1, 2, 0xfe].into_iter().fold(Config::default(), |config, subnet: u8| {
            let six = format!("2600:1f16:67f:f2{subnet:02x}::/64");
            config.dual_subnet(&format!("10.0.{subnet}.0/24"), &six)
        });
        // Nobody renews it.
        let pair = Pair::build_with(config.lease_v6(86_400, 86_400), [v6(1, 4), v6(2, 4)])?;
        pair.vpc.attach(&pair.second, &pair.instance, "ens6")?;
        Ok(pair)
    }

    /// The ENIs also have these addresses, one each.
    fn build_with<const N: usize>(config: Config, six: [IpAddr; N]) -> anyhow::Result<Pair> {
        let vpc = Vpc::new(config)?;
        let mut six = six.into_iter();
        let mut spec = |own: Ipv4Addr, public| {
            EniSpec::new(iter::once(own.into()).chain(six.next())).public(own, public)
        };
        let instance = vpc.instance("main", spec(FIRST, FIRST_PUBLIC))?;
        let second = vpc.create_eni(spec(SECOND, SECOND_PUBLIC))?;
        let host = vpc.instance("host", EniSpec::new([HOST]))?;
        let whoami = Echo::start(vpc.internet(), WHOAMI)?;
        Ok(Pair { vpc, instance, second, host, _whoami: whoami })
    }

    /// The second ENI is attached and nobody has configured it.
    pub(crate) fn attached() -> anyhow::Result<Pair> {
        let pair = Pair::build()?;
        pair.vpc.attach(&pair.second, &pair.instance, "ens6")?;
        Ok(pair)
    }

    /// The second ENI works and enid has come to rest.
    pub(crate) fn managed(extra: &str) -> anyhow::Result<(Pair, Daemon)> {
        let pair = Pair::attached()?;
        let daemon = Daemon::ready(&pair.instance, extra)?;
        pair.comes_to_work("ens6", &daemon)?;
        comes_to_rest(&daemon)?;
        Ok((pair, daemon))
    }

    /// Both ENIs work, in both directions, each by itself.
    pub(crate) fn works(&self, device: &str) -> anyhow::Result<()> {
        let enis = [(FIRST, FIRST_PUBLIC, "ens5"), (SECOND, SECOND_PUBLIC, device)];
        for (private, public, device) in enis {
            answers(self.vpc.internet(), public)?;
            answers(&self.host, private)?;
            for bound in [Bound::from(private), Bound::Device(device.to_owned())] {
                let internet = self.vpc.internet_v4();
                let seen = whoami(&self.instance, (internet, WHOAMI).into(), &bound)?;
                ensure!(seen == public, "bound to {bound:?}, the internet sees {seen}");
            }
        }
        Ok(())
    }

    pub(crate) fn comes_to_work(&self, device: &str, daemon: &Daemon) -> anyhow::Result<()> {
        eventually(PATIENCE, "both ENIs work", daemon, || self.works(device))
    }

    /// Packets with a foreign source that the fabric dropped at either ENI so far.
    pub(crate) fn drops(&self) -> anyhow::Result<u64> {
        Ok(self.vpc.drops(&self.instance.primary)? + self.vpc.drops(&self.second)?)
    }

    /// A steady stream of requests from the host to an address of the instance.
    pub(crate) fn ping_from_host(&self, to: Ipv4Addr) -> anyhow::Result<Pinger> {
        Pinger::start(&self.host, to.into(), &Bound::No, Duration::from_millis(100))
    }

    /// What `enictl status --json` says of the second ENI.
    pub(crate) fn second_status(&self, daemon: &Daemon) -> anyhow::Result<Value> {
        let status = status(daemon)?;
        let enis = status["enis"].as_array().context("the status has no ENIs")?;
        let mac = self.vpc.eni(&self.second)?.mac.to_string();
        let found = enis.iter().find(|eni| eni["mac"] == *mac);
        Ok(found.with_context(|| format!("the status lacks {mac}: {status}"))?.clone())
    }

    /// What the second ENI's table holds, as `ip` tells it.
    pub(crate) fn table(&self) -> anyhow::Result<String> {
        let said = self.instance.output(&["ip", "route", "show", "table", "20001"])?;
        // A table without routes does not exist.
        Ok(said.stdout)
    }
}

pub(crate) fn answers(from: &Netns, to: impl Into<IpAddr>) -> anyhow::Result<()> {
    let to = to.into();
    ensure!(ping_once(from, to, &Bound::No)?, "{to} does not answer {}", from.name());
    Ok(())
}

/// By the socket: the configuration may be broken just now.
pub(crate) fn status(daemon: &Daemon) -> anyhow::Result<Value> {
    let socket = daemon.control_socket();
    daemon.enictl().run(&["--socket", &socket.to_string_lossy(), "status", "--json"])?.json()
}

/// Nothing is left to do and nothing is waited for.
pub(crate) fn comes_to_rest(daemon: &Daemon) -> anyhow::Result<()> {
    eventually(PATIENCE, "enid has converged", daemon, || {
        let status = status(daemon)?;
        ensure!(status["verdict"] == "converged", "{status}");
        Ok(())
    })
}

/// All addresses, routes, rules and links as `ip -j` tells them, one line each, without what
/// passes with time.
pub(crate) fn picture(netns: &Netns) -> anyhow::Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    for (what, words) in [
        ("link", &["-d", "link"][..]),
        ("rule", &["-4", "-N", "rule"]),
        ("rule6", &["-6", "-N", "rule"]),
        ("route", &["-4", "-N", "-d", "route", "show", "table", "all"]),
        ("route6", &["-6", "-N", "-d", "route", "show", "table", "all"]),
    ] {
        for item in items(netns, words)? {
            lines.insert(format!("{what} {}", without_time(item)));
        }
    }
    for link in items(netns, &["-d", "addr"])? {
        for address in link["addr_info"].as_array().into_iter().flatten() {
            let address = without_time(address.clone());
            lines.insert(format!("address on {}: {address}", link["ifname"]));
        }
    }
    // The kernel's own, which settle a while after a link is up.
    let settling = |line: &String| {
        line.contains("\"local\":\"fe80:")
            || (line.starts_with("route6 ") && line.contains("\"protocol\":\"2\""))
    };
    lines.retain(|line| !settling(line));
    Ok(lines)
}

fn items(netns: &Netns, words: &[&str]) -> anyhow::Result<Vec<Value>> {
    Ok(netns.ip_json(words)?.as_array().cloned().unwrap_or_default())
}

fn without_time(mut item: Value) -> Value {
    if let Some(fields) = item.as_object_mut() {
        for field in ["valid_life_time", "preferred_life_time", "expires", "cache", "used", "age"] {
            fields.remove(field);
        }
        // A bridge and its ports have theirs.
        let info = fields.get_mut("linkinfo").and_then(Value::as_object_mut).into_iter();
        for data in info.flat_map(|info| info.values_mut()).filter_map(Value::as_object_mut) {
            data.retain(|key, _| !key.ends_with("_timer"));
        }
    }
    item
}

/// What of a picture enid did not make: addresses are left out where enid made them.
pub(crate) fn foreign(picture: &BTreeSet<String>, ours: &[Ipv4Addr]) -> BTreeSet<String> {
    let of_ours = |line: &&String| {
        // `ip` does not yet tell who made an address.
        let address = |ip: &Ipv4Addr| {
            line.starts_with("address ") && line.contains(&format!("\"local\":\"{ip}\""))
        };
        // The kernel's own entries come and go with the address.
        let local = |ip: &Ipv4Addr| {
            line.starts_with("route ") && line.contains(&format!("\"dst\":\"{ip}\""))
        };
        line.contains("\"protocol\":\"233\"") || ours.iter().any(|ip| address(ip) || local(ip))
    };
    picture.iter().filter(|line| !of_ours(line)).cloned().collect()
}

/// Tells two pictures apart in few words.
pub(crate) fn same(before: &BTreeSet<String>, now: &BTreeSet<String>) -> anyhow::Result<()> {
    let lost: Vec<_> = before.difference(now).collect();
    let new: Vec<_> = now.difference(before).collect();
    ensure!(lost.is_empty() && new.is_empty(), "lost: {lost:#?}\nnew: {new:#?}");
    Ok(())
}

/// A container behind a bridge of the host; it goes when this is dropped.
pub(crate) struct Container {
    instance: Instance,
    name: String,
}

impl Container {
    pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 2);

    pub(crate) fn start(instance: &Instance) -> anyhow::Result<Container> {
        let name = format!("{}-box", instance.name());
        instance.run(&["ip", "netns", "add", &name])?;
        let container = Container { instance: instance.clone(), name };
        let name = &container.name;
        instance.ip_batch(&[
            "link add br0 type bridge".to_owned(),
            "addr add 172.17.0.1/16 dev br0".to_owned(),
            format!("link add veth0 type veth peer name eth0 netns {name}"),
            "link set veth0 master br0 up".to_owned(),
            "link set br0 up".to_owned(),
        ])?;
        for line in [
            format!("addr add {}/16 dev eth0", Container::ADDRESS),
            "link set eth0 up".to_owned(),
            "route add default via 172.17.0.1".to_owned(),
        ] {
            let words: Vec<&str> = line.split(' ').collect();
            instance.run(&[&["ip", "-n", name], words.as_slice()].concat())?;
        }
        Ok(container)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // What is left of it goes with the process's mounts.
        let _ = self.instance.run(&["ip", "netns", "del", &self.name]);
    }
}
