//! Promise: what has an address of a delegated prefix, of either family and on any ENI, leaves by that
//! ENI and is reached through it: containers behind a bridge, or the host itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, ensure};
use integration::vpc::{Bound, Config, Echo, EniId, EniSpec, Instance, IpNet, Netns, Vpc, whoami};
use integration::{Daemon, eventually, trial};
use libtest_mimic::Trial;

use crate::pair::{foreign, picture, same};
use crate::users::{PATIENCE, WHOAMI, answers, drops, is_settled, reaches};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("prefixes::containers_use_the_second_enis", || containers(&SECOND)),
        trial("prefixes::containers_use_the_primary_enis", || containers(&PRIMARY)),
        trial("prefixes::containers_use_those_of_both_enis", || containers(&BOTH)),
        trial("prefixes::containers_use_those_of_two_enis_in_one_subnet", || containers(&SIBLINGS)),
        trial("prefixes::the_host_uses_every_address_of_local_ones", || local(&BOTH)),
        trial("prefixes::the_host_uses_local_ones_of_siblings", || local(&SIBLINGS)),
        trial("prefixes::one_eni_has_local_ones_and_another_has_containers", mixed),
        trial("prefixes::nothing_is_made_for_ignored_ones", ignored),
    ]
}

/// Where the two ENIs lie, and which prefixes they have.
pub(crate) struct Layout {
    subnets: [u8; 2],
    prefixes: [&'static [&'static str]; 2],
}

const FIRST_PREFIXES: &[&str] = &["10.0.1.16/28", "2600:1f16:67f:f201:a::/80"];
pub(crate) const SECOND_PREFIXES: &[&str] = &["10.0.2.32/28", "2600:1f16:67f:f202:b::/80"];

const SECOND: Layout = Layout { subnets: [1, 2], prefixes: [&[], SECOND_PREFIXES] };
const PRIMARY: Layout = Layout { subnets: [1, 2], prefixes: [FIRST_PREFIXES, &[]] };
const BOTH: Layout = Layout { subnets: [1, 2], prefixes: [FIRST_PREFIXES, SECOND_PREFIXES] };
pub(crate) const SIBLINGS: Layout = Layout {
    subnets: [1, 1],
    prefixes: [FIRST_PREFIXES, &["10.0.1.32/28", "2600:1f16:67f:f201:b::/80"]],
};
/// The prefixes of the second ENI come later.
pub(crate) const NONE: Layout = Layout { subnets: [1, 2], prefixes: [&[], &[]] };

fn v4(subnet: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, subnet, host)
}

fn v6(subnet: u8, host: u8) -> Ipv6Addr {
    let subnet = 0xf200 + u16::from(subnet);
    Ipv6Addr::new(0x2600, 0x1f16, 0x67f, subnet, 0, 0, 0, u16::from(host))
}

fn of_both(subnet: u8, host: u8) -> [IpAddr; 2] {
    [v4(subnet, host).into(), v6(subnet, host).into()]
}

fn of_family(addresses: [IpAddr; 2], other: IpAddr) -> IpAddr {
    let [v4, v6] = addresses;
    if other.is_ipv4() { v4 } else { v6 }
}

/// The nth address of a prefix.
pub(crate) fn nth(prefix: IpNet, n: u8) -> IpAddr {
    match prefix.network() {
        IpAddr::V4(base) => Ipv4Addr::from(u32::from(base) + u32::from(n)).into(),
        IpAddr::V6(base) => Ipv6Addr::from(u128::from(base) + u128::from(n)).into(),
    }
}

pub(crate) fn parse(prefixes: &[&str]) -> anyhow::Result<Vec<IpNet>> {
    prefixes.iter().map(|text| text.parse().with_context(|| text.to_string())).collect()
}

/// A container behind a bridge of its own that has delegated prefixes.
pub(crate) struct Container {
    netns: Netns,
    addresses: Vec<IpAddr>,
    _service: Echo,
}

impl Container {
    /// As an engine does that was given the prefixes as the bridge's networks.
    pub(crate) fn start(
        instance: &Instance,
        bridge: &str,
        prefixes: &[IpNet],
    ) -> anyhow::Result<Container> {
        let veth = format!("{bridge}-1");
        let address = |n: u8, dev: &str| -> Vec<String> {
            let lines = prefixes.iter().map(|prefix| {
                let nodad = if prefix.addr().is_ipv4() { "" } else { " nodad" };
                format!("addr add {}/{} dev {dev}{nodad}", nth(*prefix, n), prefix.prefix_len())
            });
            lines.collect()
        };
        instance.ip_batch(&[format!("link add {bridge} type bridge")])?;
        instance.ip_batch(&address(1, bridge))?;
        let netns = instance.pod(&veth)?;
        instance.ip_batch(&[
            format!("link set {veth} master {bridge} up"),
            format!("link set {bridge} up"),
        ])?;
        netns.ip_batch(&address(2, "eth0"))?;
        netns.ip_batch(&["link set eth0 up".to_owned()])?;
        let routers = prefixes.iter().map(|prefix| nth(*prefix, 1));
        netns.ip_batch(
            &routers.map(|via| format!("route add default via {via}")).collect::<Vec<_>>(),
        )?;
        let addresses = prefixes.iter().map(|prefix| nth(*prefix, 2)).collect();
        let _service = Echo::start(&netns, WHOAMI)?;
        Ok(Container { netns, addresses, _service })
    }
}

/// Both ends see the other's own address, whoever begins.
fn know_each_other(a: &Netns, a_is: IpAddr, b: &Netns, b_is: IpAddr) -> anyhow::Result<()> {
    for (from, source, to) in [(a, a_is, b_is), (b, b_is, a_is)] {
        reaches(from, source, to)?;
        let seen = whoami(from, (to, WHOAMI).into(), &Bound::Address(source))?;
        ensure!(seen == source, "{to} sees {seen}, not {source}");
    }
    Ok(())
}

pub(crate) struct Stage {
    pub(crate) vpc: Vpc,
    pub(crate) instance: Instance,
    pub(crate) second: EniId,
    /// The ENIs' own addresses.
    own: [[IpAddr; 2]; 2],
    pub(crate) prefixes: [Vec<IpNet>; 2],
    /// In the first ENI's subnet, in the second's, and in a third.
    hosts: Vec<(Instance, [IpAddr; 2])>,
    _services: Vec<Echo>,
}

impl Stage {
    pub(crate) fn build(layout: &Layout) -> anyhow::Result<Stage> {
        let mut config = Config::default().peer("192.168.0.0/16").peer_v6("fd00:1::/64");
        let mut subnets = layout.subnets.to_vec();
        subnets.push(0xfe);
        subnets.dedup();
        for subnet in &subnets {
            let six = format!("2600:1f16:67f:f2{subnet:02x}::/64");
            config = config.dual_subnet(&format!("10.0.{subnet}.0/24"), &six);
        }
        let vpc = Vpc::new(config.rp_filter(1))?;
        let prefixes = [parse(layout.prefixes[0])?, parse(layout.prefixes[1])?];
        let own = [of_both(layout.subnets[0], 4), of_both(layout.subnets[1], 5)];
        let spec = |n: usize| {
            prefixes[n].iter().fold(EniSpec::new(own[n]), |spec, prefix| spec.prefix(*prefix))
        };
        let instance = vpc.instance("main", spec(0))?;
        // As hosts of containers do: who forwards IPv6 no longer listens to routers.
        instance.sysctl("net.ipv6.conf.ens5.accept_ra", "2")?;
        instance.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        instance.sysctl("net.ipv4.ip_forward", "1")?;
        let second = vpc.create_eni(spec(1))?;
        vpc.attach(&second, &instance, "ens6")?;
        let host = |subnet: &u8| -> anyhow::Result<_> {
            let addresses = of_both(*subnet, 99);
            Ok((vpc.instance(&format!("host{subnet}"), EniSpec::new(addresses))?, addresses))
        };
        let hosts: Vec<_> = subnets.iter().map(host).collect::<anyhow::Result<_>>()?;
        let mut services =
            vec![Echo::start(&instance, WHOAMI)?, Echo::start(vpc.internet(), WHOAMI)?];
        let (peer, _) = vpc.peer().context("there is no peer")?;
        for netns in hosts.iter().map(|(host, _)| &host.netns).chain([peer]) {
            services.push(Echo::start(netns, WHOAMI)?);
        }
        Ok(Stage { vpc, instance, second, own, prefixes, hosts, _services: services })
    }

    /// A container for each ENI that has prefixes.
    fn containers(&self) -> anyhow::Result<Vec<Container>> {
        let mut containers = Vec::new();
        for (bridge, prefixes) in ["br0", "br1"].into_iter().zip(&self.prefixes) {
            if !prefixes.is_empty() {
                containers.push(Container::start(&self.instance, bridge, prefixes)?);
            }
        }
        Ok(containers)
    }

    /// An address works in both directions with everybody outside.
    fn works_outside(&self, netns: &Netns, address: IpAddr) -> anyhow::Result<()> {
        let (peer, peer_v4) = self.vpc.peer().context("there is no peer")?;
        let (_, peer_v6) = self.vpc.peer_v6().context("there is no peer")?;
        let mut others = vec![(peer, of_family([peer_v4.into(), peer_v6.into()], address))];
        let hosts = self.hosts.iter();
        others.extend(hosts.map(|(host, theirs)| (&host.netns, of_family(*theirs, address))));
        if address.is_ipv6() {
            others.push((self.vpc.internet(), self.vpc.internet_v6().into()));
        }
        others
            .into_iter()
            .try_for_each(|(other, theirs)| know_each_other(netns, address, other, theirs))
    }

    /// The container is reached and reaches everybody, the host's and others' addresses included.
    pub(crate) fn works_with(
        &self,
        container: &Container,
        others: &[&Container],
    ) -> anyhow::Result<()> {
        for address in &container.addresses {
            self.works_outside(&container.netns, *address)?;
            for own in self.own {
                let own = of_family(own, *address);
                know_each_other(&container.netns, *address, &self.instance, own)?;
            }
            for other in others {
                let same =
                    other.addresses.iter().filter(|other| other.is_ipv4() == address.is_ipv4());
                for theirs in same {
                    know_each_other(&container.netns, *address, &other.netns, *theirs)?;
                }
            }
        }
        Ok(())
    }

    /// The ENIs' own addresses work.
    fn enis_work(&self) -> anyhow::Result<()> {
        let mut own = self.own.into_iter().flatten();
        own.try_for_each(|address| self.works_outside(&self.instance, address))
    }

    /// Others reach addresses of local prefixes, wherever they come from.
    fn local_answers(&self, prefixes: &[IpNet]) -> anyhow::Result<()> {
        for address in prefixes.iter().flat_map(|prefix| [0, 7, 15].map(|n| nth(*prefix, n))) {
            for (host, theirs) in &self.hosts {
                answers(host, address)?;
                let seen = whoami(host, (address, WHOAMI).into(), &Bound::No)?;
                let theirs = of_family(*theirs, address);
                ensure!(seen == theirs, "{address} sees {seen}, not {theirs}");
            }
        }
        Ok(())
    }

    /// Addresses of the host's, of local prefixes, work.
    pub(crate) fn local_works(&self, prefixes: &[IpNet]) -> anyhow::Result<()> {
        for prefix in prefixes {
            for n in [0, 7, 15] {
                self.works_outside(&self.instance, nth(*prefix, n))?;
            }
        }
        Ok(())
    }

    /// Of IPv6, Linux lets only addresses that are on a link be bound, unless it is told otherwise.
    pub(crate) fn may_bind(&self) -> anyhow::Result<()> {
        self.instance.sysctl("net.ipv6.ip_nonlocal_bind", "1")
    }

    /// It comes to work, and from then on nothing leaves by a wrong ENI.
    pub(crate) fn comes_to_work(
        &self,
        daemon: &Daemon,
        works: impl Fn() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        eventually(PATIENCE, "everything works", daemon, &works)?;
        let enis = [&self.instance.primary, &self.second];
        let before = drops(&self.vpc, enis)?;
        works()?;
        self.enis_work()?;
        ensure!(drops(&self.vpc, enis)? == before, "the fabric dropped foreign sources");
        Ok(())
    }

    /// How the kernel looks without what enid made.
    pub(crate) fn foreign(&self) -> anyhow::Result<std::collections::BTreeSet<String>> {
        Ok(foreign(&picture(&self.instance)?, &[]))
    }
}

/// A restart finds nothing to do.
pub(crate) fn restart_changes_nothing(stage: &Stage, daemon: &mut Daemon) -> anyhow::Result<()> {
    is_settled(daemon)?;
    let before = picture(&stage.instance)?;
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    is_settled(daemon)?;
    same(&before, &picture(&stage.instance)?)
}

fn containers(layout: &Layout) -> anyhow::Result<()> {
    let stage = Stage::build(layout)?;
    let containers = stage.containers()?;
    let works = || -> anyhow::Result<()> {
        for (n, container) in containers.iter().enumerate() {
            let others = containers.iter().enumerate().filter(|(m, _)| *m != n);
            stage.works_with(container, &others.map(|(_, other)| other).collect::<Vec<_>>())?;
        }
        Ok(())
    };
    ensure!(works().and_then(|()| stage.enis_work()).is_err(), "it works without enid");
    let mut daemon = Daemon::ready(&stage.instance, "")?;
    stage.comes_to_work(&daemon, works)?;
    // The larger of the two holds for a link.
    stage.instance.sysctl("net.ipv4.conf.all.rp_filter", "2")?;
    stage.comes_to_work(&daemon, works)?;
    restart_changes_nothing(&stage, &mut daemon)?;
    daemon.terminate()?;
    works()
}

fn local(layout: &Layout) -> anyhow::Result<()> {
    let stage = Stage::build(layout)?;
    let all = stage.prefixes.concat();
    let works = || stage.local_works(&all);
    ensure!(works().is_err(), "it works without enid");
    let mut daemon = Daemon::ready(&stage.instance, "prefixes = \"local\"")?;
    stage.comes_to_work(&daemon, || stage.local_answers(&all))?;
    stage.may_bind()?;
    stage.comes_to_work(&daemon, works)?;
    stage.instance.sysctl("net.ipv4.conf.all.rp_filter", "2")?;
    stage.comes_to_work(&daemon, works)?;
    restart_changes_nothing(&stage, &mut daemon)?;
    // The kernel forgets the routes of IPv4 without a word.
    let down_and_up = |link: &str| {
        let lines = [format!("link set {link} down"), format!("link set {link} up")];
        stage.instance.ip_batch(&lines)
    };
    down_and_up("ens6")?;
    stage.comes_to_work(&daemon, works)?;
    // With the primary ENI goes what its DHCP client made, which begins anew.
    stage.instance.run(&["ip", "addr", "flush", "dev", "ens5"])?;
    down_and_up("ens5")?;
    stage.vpc.configure_as_dhcp(&stage.instance.primary)?;
    stage.vpc.configure_as_dhcp_v6(&stage.instance.primary)?;
    stage.vpc.router().advertise(&stage.instance.primary)?;
    stage.comes_to_work(&daemon, works)?;
    daemon.terminate()?;
    works()
}

fn mixed() -> anyhow::Result<()> {
    let stage = Stage::build(&BOTH)?;
    let [first, second] = &stage.prefixes;
    let container = Container::start(&stage.instance, "br0", first)?;
    let works = || -> anyhow::Result<()> {
        stage.works_with(&container, &[])?;
        stage.local_works(second)?;
        for (address, local) in container.addresses.iter().zip(second) {
            know_each_other(&container.netns, *address, &stage.instance, nth(*local, 9))?;
        }
        Ok(())
    };
    stage.may_bind()?;
    let choice = "[[eni]]\nmatch = { device-number = 1 }\nprefixes = \"local\"\n";
    let mut daemon = Daemon::ready(&stage.instance, choice)?;
    stage.comes_to_work(&daemon, works)?;
    restart_changes_nothing(&stage, &mut daemon)?;
    stage.comes_to_work(&daemon, works)
}

fn ignored() -> anyhow::Result<()> {
    let stage = Stage::build(&BOTH)?;
    let containers = stage.containers()?;
    let before = stage.foreign()?;
    let daemon = Daemon::ready(&stage.instance, "prefixes = \"ignore\"")?;
    stage.comes_to_work(&daemon, || stage.enis_work())?;
    is_settled(&daemon)?;
    let now = picture(&stage.instance)?;
    for prefix in stage.prefixes.iter().flatten() {
        let base = format!("\"{}", prefix.network());
        let made = |line: &&String| line.contains(&base) && line.contains("\"protocol\":\"233\"");
        let made: Vec<_> = now.iter().filter(made).collect();
        ensure!(made.is_empty(), "{made:#?}");
    }
    let lost: Vec<_> = before.iter().filter(|line| !line.starts_with("link ")).collect();
    let lost: Vec<_> = lost.into_iter().filter(|line| !now.contains(*line)).collect();
    ensure!(lost.is_empty(), "{lost:#?}");
    // On the host they go on working among themselves.
    for container in &containers {
        container.addresses.iter().try_for_each(|address| answers(&stage.instance, *address))?;
    }
    Ok(())
}
