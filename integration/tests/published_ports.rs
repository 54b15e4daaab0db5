//! Promise: with `published_ports = true`, containers whose ports are published on a secondary ENI
//! are reached from everywhere; without it nothing of the packet filter is touched.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::vpc::{
    Bound, Config, Conversation, Echo, EniId, EniSpec, Instance, Ipv4Net, Netns, UdpEcho, Vpc,
    whoami, whoami_udp,
};
use integration::{Daemon, eventually, holds, trial};
use libtest_mimic::Trial;

use crate::pair::{comes_to_rest, picture, same};
use crate::users::{PATIENCE, WHOAMI, drops, is_settled, public};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("published_ports::on_they_are_reached_with_a_strict_filter", || on_and_off(1)),
        trial("published_ports::on_they_are_reached_with_a_loose_filter", || on_and_off(2)),
        trial("published_ports::containers_with_a_delegated_prefix_are_reached", delegated),
        trial("published_ports::what_others_break_is_repaired", repaired),
        trial("published_ports::a_restart_changes_nothing", restart),
        trial("published_ports::release_removes_all_of_it", release),
        trial("published_ports::what_an_earlier_run_left_is_removed", left_over),
    ]
}

/// Three ENIs, the last two in one subnet: what is bound to it, and its link.
const ENIS: [(Ipv4Addr, u8, &str); 3] = [
    (Ipv4Addr::new(10, 0, 1, 4), 1, "ens5"),
    (Ipv4Addr::new(10, 0, 2, 4), 2, "ens6"),
    (Ipv4Addr::new(10, 0, 2, 100), 3, "ens7"),
];
/// Where containers' ports are published.
const PORT: u16 = 8080;
const CONTAINER: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 2);
const CONTAINER_V6: &str = "fd17::2";
/// Of the primary ENI.
const PREFIX: &str = "10.0.1.32/28";
const IN_PREFIX: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 33);

const ON: &str = "[[eni]]\nmatch = { device-number = 1 }\npublished_ports = true\n\
                  [[eni]]\nmatch = { device-number = 2 }\npublished_ports = true\n";
const SETTING: &str = "net.ipv4.conf.ens6.src_valid_mark";

fn v6(subnet: u16, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2600, 0x1f16, 0x67f, 0xf200 + subnet, 0, 0, 0, host)
}

/// What an ENI is reached at.
#[derive(Clone, Copy)]
struct Place {
    private: Ipv4Addr,
    public: Ipv4Addr,
    six: Ipv6Addr,
}

fn place(eni: usize) -> Place {
    let (private, number, _) = ENIS[eni];
    let subnet = u16::from(private.octets()[2]);
    Place { private, public: public(number), six: v6(subnet, 3 + u16::from(number)) }
}

struct Stage {
    vpc: Vpc,
    instance: Instance,
    others: [EniId; 2],
    container: Netns,
    /// In the primary ENI's subnet, in that of the others, and in one of its own.
    hosts: Vec<Instance>,
    _services: Vec<Echo>,
    _datagrams: UdpEcho,
}

impl Stage {
    /// The container's port is published on all ENIs, as container engines do it.
    fn build(rp_filter: u8) -> anyhow::Result<Stage> {
        let subnet = |config: Config, n: u16| {
            config.dual_subnet(&format!("10.0.{n}.0/24"), &format!("{}/64", v6(n, 0)))
        };
        let vpc =
            Vpc::new([1, 2, 3].into_iter().fold(Config::default(), subnet).rp_filter(rp_filter))?;
        let spec = |eni: usize| {
            let Place { private, public, six } = place(eni);
            EniSpec::new([IpAddr::from(private), six.into()]).public(private, public)
        };
        let instance = vpc.instance("main", spec(0).prefix(PREFIX.parse::<Ipv4Net>()?))?;
        let others = [vpc.create_eni(spec(1))?, vpc.create_eni(spec(2))?];
        let network: Ipv4Net = "172.17.0.1/16".parse()?;
        instance.bridge("docker0", network)?;
        let container = instance.container("veth0", "docker0", network, CONTAINER)?;
        // A host that forwards listens to its router only where it is told to.
        instance.sysctl("net.ipv6.conf.ens5.accept_ra", "2")?;
        instance.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        vpc.router().advertise(&instance.primary)?;
        instance.ip_batch(&["addr add fd17::1/64 dev docker0 nodad".to_owned()])?;
        container.ip_batch(&[
            format!("addr add {CONTAINER_V6}/64 dev eth0 nodad"),
            "route add default via fd17::1".to_owned(),
        ])?;
        // What was asked while it could not be answered shall not be answered for long.
        container.sysctl("net.ipv4.tcp_synack_retries", "1")?;
        let host = |n: u8| {
            let addresses = [IpAddr::from([10, 0, n, 9]), v6(n.into(), 9).into()];
            vpc.instance(&format!("host{n}"), EniSpec::new(addresses))
        };
        let hosts = [1, 2, 3].into_iter().map(host).collect::<anyhow::Result<Vec<_>>>()?;
        let mut netns = vec![vpc.internet(), &instance, &container];
        netns.extend(hosts.iter().map(|host| &host.netns));
        let services = netns.iter().map(|netns| Echo::start(netns, WHOAMI));
        let _services = services.collect::<anyhow::Result<_>>()?;
        let _datagrams = UdpEcho::start(&container, WHOAMI)?;
        let stage = Stage { vpc, instance, others, container, hosts, _services, _datagrams };
        stage.publish()?;
        Ok(stage)
    }

    fn publish(&self) -> anyhow::Result<()> {
        self.instance.nft(&format!(
            "table inet engine {{
                chain prerouting {{
                    type nat hook prerouting priority dstnat;
                    fib daddr type != local accept
                    meta nfproto ipv4 meta l4proto {{ tcp, udp }} th dport {PORT} dnat ip to {CONTAINER}:{WHOAMI}
                    meta nfproto ipv6 meta l4proto {{ tcp, udp }} th dport {PORT} dnat ip6 to [{CONTAINER_V6}]:{WHOAMI}
                }}
                chain postrouting {{
                    type nat hook postrouting priority srcnat;
                    ip saddr 172.17.0.0/16 oifname != \"docker0\" masquerade
                }}
            }}"
        ))
    }

    /// A daemon, and all ENIs attached and at work.
    fn managed(rp_filter: u8, extra: &str) -> anyhow::Result<(Stage, Daemon)> {
        let stage = Stage::build(rp_filter)?;
        let daemon = Daemon::ready(&stage.instance, extra)?;
        for (eni, (.., link)) in stage.others.iter().zip(&ENIS[1..]) {
            stage.vpc.attach(eni, &stage.instance, link)?;
        }
        eventually(PATIENCE, "the host itself is reached", &daemon, || stage.host_is_reached())?;
        comes_to_rest(&daemon)?;
        Ok((stage, daemon))
    }

    /// Everybody outside: where, its addresses, and which address of an ENI it asks.
    fn clients(&self, of: Place) -> Vec<(&Netns, IpAddr, IpAddr)> {
        let mut clients = Vec::new();
        for (n, host) in (1..).zip(&self.hosts) {
            clients.push((&host.netns, IpAddr::from([10, 0, n, 9]), of.private.into()));
            clients.push((&host.netns, v6(n.into(), 9).into(), of.six.into()));
        }
        let internet = self.vpc.internet();
        clients.push((internet, self.vpc.internet_v4().into(), of.public.into()));
        clients.push((internet, self.vpc.internet_v6().into(), of.six.into()));
        clients
    }

    /// How many of the clients the container answers on an ENI, over TCP and over UDP.
    fn reached(&self, eni: usize) -> anyhow::Result<usize> {
        let clients = self.clients(place(eni));
        // All at once: one that is not answered waits for seconds.
        let seen: Vec<_> = std::thread::scope(|scope| {
            let ask = |(client, address, to)| {
                let to = (to, PORT).into();
                let tcp = scope.spawn(move || whoami(client, to, &Bound::No));
                let udp = scope.spawn(move || whoami_udp(client, to, &Bound::No));
                [(address, tcp), (address, udp)]
            };
            let asked: Vec<_> = clients.into_iter().flat_map(ask).collect();
            asked.into_iter().map(|(address, thread)| (address, thread.join())).collect()
        });
        let mut count = 0;
        for (address, seen) in seen {
            if let Ok(Ok(seen)) = seen {
                ensure!(seen == address, "the container sees {address} as {seen}");
                count += 1;
            }
        }
        Ok(count)
    }

    fn all_are_reached(&self) -> anyhow::Result<()> {
        for (eni, (.., link)) in ENIS.iter().enumerate() {
            let (reached, all) = (self.reached(eni)?, 2 * self.clients(place(eni)).len());
            ensure!(reached == all, "on {link}, {reached} of {all} are answered");
        }
        Ok(())
    }

    /// The host's own service answers on every ENI, and its sockets leave by the ENI of their
    /// address.
    fn host_is_reached(&self) -> anyhow::Result<()> {
        for (eni, (private, _, link)) in ENIS.iter().enumerate() {
            for (client, address, to) in self.clients(place(eni)) {
                let seen = whoami(client, (to, WHOAMI).into(), &Bound::No)?;
                ensure!(seen == address, "on {link}, the host sees {address} as {seen}");
            }
            let internet = (self.vpc.internet_v4(), WHOAMI).into();
            let seen = whoami(&self.instance, internet, &Bound::from(*private))?;
            ensure!(seen == place(eni).public, "from {private}, the internet sees {seen}");
        }
        Ok(())
    }

    /// What containers ask for themselves leaves by the primary ENI, as ever.
    fn container_reaches_out(&self) -> anyhow::Result<()> {
        for (to, expected) in [
            (self.vpc.internet_v4(), place(0).public),
            (Ipv4Addr::new(10, 0, 2, 9), place(0).private),
            (Ipv4Addr::new(10, 0, 3, 9), place(0).private),
        ] {
            let seen = whoami(&self.container, (to, WHOAMI).into(), &Bound::No)?;
            ensure!(seen == expected, "{to} sees the container as {seen}");
        }
        Ok(())
    }

    fn enis(&self) -> impl Iterator<Item = &EniId> {
        [&self.instance.primary].into_iter().chain(&self.others)
    }

    /// All of it works, and nothing that is sent has a foreign source.
    fn works(&self, daemon: &Daemon) -> anyhow::Result<()> {
        eventually(PATIENCE, "all published ports are reached", daemon, || {
            let before = drops(&self.vpc, self.enis())?;
            self.all_are_reached()?;
            self.host_is_reached()?;
            self.container_reaches_out()?;
            ensure!(drops(&self.vpc, self.enis())? == before, "the fabric dropped foreign sources");
            Ok(())
        })
    }

    /// enid's tables, as nft lists them, with the numbers that tell a new one from the old.
    fn tables(&self) -> anyhow::Result<BTreeSet<String>> {
        let list = self.instance.run(&["nft", "list", "tables"])?;
        let names = list.lines().filter_map(|line| line.strip_prefix("table inet enid-"));
        let names = names.map(|table| format!("enid-{table}"));
        names
            .map(|name| self.instance.run(&["nft", "-a", "list", "table", "inet", &name]))
            .collect()
    }

    /// The rest of the network, without the bridge's timers.
    fn picture(&self) -> anyhow::Result<BTreeSet<String>> {
        let mut lines = picture(&self.instance)?;
        let bridge = |line: &String| line.contains("bridge");
        lines.retain(|line| !line.starts_with("link ") || !bridge(line));
        Ok(lines)
    }

    /// Nothing is there that published ports need.
    fn nothing_is_left(&self) -> anyhow::Result<()> {
        let tables = self.tables()?;
        ensure!(tables.is_empty(), "{tables:?}");
        for family in ["-4", "-6"] {
            let rules = self.instance.run(&["ip", family, "rule"])?;
            ensure!(!rules.contains("fwmark"), "{rules}");
        }
        let value = self.instance.read_sysctl(SETTING)?;
        ensure!(value == "0", "{SETTING} is {value}");
        Ok(())
    }
}

fn on_and_off(rp_filter: u8) -> anyhow::Result<()> {
    let (stage, mut daemon) = Stage::managed(rp_filter, "")?;
    stage.nothing_is_left().context("nobody asked for it yet")?;
    let all = 2 * stage.clients(place(0)).len();
    eventually(PATIENCE, "on the primary ENI they always work", &daemon, || {
        let reached = stage.reached(0)?;
        ensure!(reached == all, "{reached} of {all} are answered");
        Ok(())
    })?;
    for eni in [1, 2] {
        let reached = stage.reached(eni)?;
        ensure!(reached == 0, "on {}, {reached} are answered by luck", ENIS[eni].2);
    }
    let before = stage.picture()?;
    daemon.configure(ON)?;
    stage.works(&daemon)?;
    ensure!(stage.tables()?.len() == 2, "{:?}", stage.tables()?);
    is_settled(&daemon)?;
    daemon.configure("")?;
    eventually(PATIENCE, "all of it is gone", &daemon, || {
        stage.nothing_is_left()?;
        same(&before, &stage.picture()?)
    })?;
    ensure!(stage.reached(1)? == 0, "answered by luck");
    stage.host_is_reached()?;
    daemon.terminate()
}

/// A container that holds an address of the primary ENI's prefix, published on another ENI.
fn delegated() -> anyhow::Result<()> {
    let (stage, mut daemon) = Stage::managed(1, ON)?;
    stage.container.ip_batch(&[format!("addr add {IN_PREFIX}/32 dev eth0")])?;
    stage.instance.ip_batch(&[format!("route add {PREFIX} dev docker0")])?;
    stage.instance.nft(&format!(
        "insert rule inet engine prerouting ip daddr {} tcp dport 8081 dnat ip to {IN_PREFIX}:{WHOAMI}",
        ENIS[1].0
    ))?;
    eventually(PATIENCE, "it is reached by either ENI", &daemon, || {
        for (client, address, to) in stage.clients(place(1)) {
            if to.is_ipv4() {
                let seen = whoami(client, (to, 8081).into(), &Bound::No)?;
                ensure!(seen == address, "it sees {address} as {seen}");
                // By its own address it is behind the primary ENI; that is not public.
                if address.is_ipv4() && client.name() != stage.vpc.internet().name() {
                    let seen = whoami(client, (IN_PREFIX, WHOAMI).into(), &Bound::No)?;
                    ensure!(seen == address, "at its own address, it sees {address} as {seen}");
                }
            }
        }
        Ok(())
    })?;
    daemon.terminate()
}

fn repaired() -> anyhow::Result<()> {
    let (stage, mut daemon) = Stage::managed(1, ON)?;
    stage.works(&daemon)?;
    let without_handles = || -> anyhow::Result<String> {
        ["enid-20001", "enid-20002"]
            .iter()
            .map(|name| stage.instance.run(&["nft", "list", "table", "inet", name]))
            .collect()
    };
    let (before, objects) = (without_handles()?, stage.picture()?);
    let to = (place(1).private, PORT).into();
    let mut conversation = Conversation::open(&stage.hosts[2], to, &Bound::No)?;
    for damage in [
        "delete table inet enid-20001",
        "delete table inet enid-20001; delete table inet enid-20002",
        "flush chain inet enid-20001 prerouting",
        "add table inet enid-20001 { flags dormant; }",
        "insert rule inet enid-20002 prerouting accept",
        "flush ruleset",
    ] {
        stage.instance.nft(damage)?;
        if damage == "flush ruleset" {
            stage.publish()?;
        }
        eventually(PATIENCE, &format!("{damage} is repaired"), &daemon, || {
            ensure!(without_handles()? == before, "{:?}", stage.tables()?);
            Ok(())
        })?;
        conversation.check(PATIENCE).with_context(|| format!("{damage} cost a connection"))?;
    }
    for damage in [
        format!("sysctl -qw {SETTING}=0"),
        "ip rule del priority 20004".to_owned(),
        "ip -6 rule del priority 20002".to_owned(),
    ] {
        stage.instance.run(&damage.split(' ').collect::<Vec<_>>())?;
    }
    eventually(PATIENCE, "the rest is repaired", &daemon, || {
        let value = stage.instance.read_sysctl(SETTING)?;
        ensure!(value == "1", "{SETTING} is {value}");
        same(&objects, &stage.picture()?)
    })?;
    stage.works(&daemon)?;
    daemon.terminate()
}

fn restart() -> anyhow::Result<()> {
    let (stage, mut daemon) = Stage::managed(1, ON)?;
    stage.works(&daemon)?;
    is_settled(&daemon)?;
    let before = (stage.tables()?, stage.picture()?);
    daemon.terminate()?;
    ensure!(stage.tables()? == before.0, "a stop removes nothing");
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    is_settled(&daemon)?;
    holds(Duration::from_millis(300), "nothing changes", &daemon, || {
        ensure!(stage.tables()? == before.0, "{:?}", stage.tables()?);
        same(&before.1, &stage.picture()?)
    })?;
    stage.works(&daemon)?;
    daemon.terminate()
}

fn release() -> anyhow::Result<()> {
    let (stage, mut daemon) = Stage::managed(1, ON)?;
    stage.works(&daemon)?;
    let enictl = |words: &[&str]| daemon.enictl().run(words)?.success();
    enictl(&["release", "ens6"])?;
    let tables = stage.tables()?;
    ensure!(tables.len() == 1 && tables.iter().all(|table| table.contains("ens7")), "{tables:?}");
    ensure!(stage.instance.read_sysctl(SETTING)? == "0", "{SETTING} is not put back");
    let reached = stage.reached(2)?;
    ensure!(reached == 2 * stage.clients(place(2)).len(), "on the other, {reached} are answered");
    enictl(&["release", "--all"])?;
    stage.nothing_is_left()?;
    enictl(&["unhold", "--all"])?;
    stage.works(&daemon)?;
    daemon.terminate()
}

/// It is switched off while no daemon runs.
fn left_over() -> anyhow::Result<()> {
    let (stage, mut daemon) = Stage::managed(2, ON)?;
    stage.works(&daemon)?;
    daemon.terminate()?;
    daemon.configure("")?;
    daemon.restart()?;
    eventually(PATIENCE, "all of it is gone", &daemon, || stage.nothing_is_left())?;
    stage.host_is_reached()?;
    daemon.terminate()
}
