//! Promise: on an instance of any kind, every packet leaves by the ENI of its source, as the oracle
//! says and as the kernel itself says when it is asked.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::vpc::{Config, EniId, EniSpec, Instance, Vpc};
use integration::{Daemon, Scene as _, eventually, trial};
use ipnet::IpNet;
use libtest_mimic::Trial;
use oracle::{
    Cards, Combination, Delegation, Eni, Family, Lookup, Main, Must, Packet, Restart, Scene,
    Siblings, Subnets, View,
};

use crate::pair::comes_to_rest;
use crate::routes::{Said, ask, state};
use crate::users::PATIENCE;

/// How many of the combinations are replayed on the kernel.
const REPLAYED: usize = 36;
const ROUTERS: [IpAddr; 2] = [IpAddr::V6(Scene::ROUTER), IpAddr::V6(Scene::UNHEARD)];
const READY: Duration = Duration::from_secs(15);

pub(crate) fn trials() -> Vec<Trial> {
    let chosen = Combination::spread(REPLAYED, ready);
    chosen.into_iter().map(|kind| trial(&format!("matrix::{kind}"), move || replay(kind))).collect()
}

/// Two ENIs with the same device number get default routes of the same metric here, which the kernel
/// refuses.
fn ready(kind: &Combination) -> bool {
    kind.main != Main::Dhcp || kind.cards == Cards::Single || kind.enis() < 3
}

/// An instance of a kind, in a VPC.
struct Stage {
    scene: Scene,
    vpc: Vpc,
    instance: Instance,
    /// By number; the primary one first.
    enis: Vec<EniId>,
}

impl Stage {
    /// Without enid, as the instance was at first.
    fn build(kind: Combination) -> anyhow::Result<Stage> {
        let (present, scene) = (Scene::present(kind), Scene::former(kind));
        let vpc = Vpc::new(config(&present))?;
        // An ENI that comes later exists already, with the addresses that it has by then.
        let mut all = scene.enis.clone();
        all.extend(present.enis.iter().skip(all.len()).cloned());
        let mut specs = all.iter().map(spec);
        let instance = vpc.instance("main", specs.next().context("an instance without ENIs")?)?;
        let mut enis = vec![instance.primary.clone()];
        enis.extend(vpc.create_enis(specs.collect())?);
        let mut stage = Stage { scene, vpc, instance, enis };
        stage.forward()?;
        stage.others()?;
        for number in 1..stage.scene.enis.len() {
            stage.plug(number)?;
        }
        Ok(stage)
    }

    /// The kernel says nothing of forwarded packets where it does not forward; then it would listen
    /// to routers no longer.
    fn forward(&mut self) -> anyhow::Result<()> {
        for link in ["all", "default", &self.scene.enis[0].link] {
            self.instance.sysctl(&format!("net.ipv6.conf.{link}.accept_ra"), "2")?;
        }
        self.instance.sysctl("net.ipv4.ip_forward", "1")?;
        self.instance.sysctl("net.ipv6.conf.all.forwarding", "1")
    }

    fn plug(&mut self, number: usize) -> anyhow::Result<()> {
        let (id, link) = (&self.enis[number], &self.scene.enis[number].link);
        self.vpc.attach(id, &self.instance, link)?;
        // Of default routes of the same metric, the kernel takes each in turn.
        let metric = 1024 + number;
        self.instance
            .sysctl(&format!("net.ipv6.conf.{link}.ra_defrtr_metric"), &metric.to_string())?;
        if self.scene.combination.main != Main::Dhcp {
            return Ok(());
        }
        let eni = &self.scene.enis[number];
        for family in Family::ALL.into_iter().filter(|family| eni.subnet(*family).is_some()) {
            match family {
                Family::V4 => self.vpc.configure_as_dhcp(id)?,
                Family::V6 => {
                    self.vpc.configure_as_dhcp_v6(id)?;
                    self.vpc.router().advertise(id)?;
                    eventually(PATIENCE, "a default route", &self.instance, || {
                        let words = ["-6", "route", "show", "default", "dev", link];
                        let routes = self.instance.ip_json(&words)?;
                        ensure!(routes.as_array().is_some_and(|routes| !routes.is_empty()), "none");
                        Ok(())
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Links and routes of others.
    fn others(&self) -> anyhow::Result<()> {
        let mut lines = Vec::new();
        for (n, other) in self.scene.others.iter().enumerate() {
            let link = &other.link;
            // As on a real machine, the primary ENI's link is older.
            let (first, second) = (1000 + n, 1100 + n);
            lines.extend([
                format!(
                    "link add name {link} index {first} type veth peer name {link}-end index {second}"
                ),
                format!("link set {link}-end addrgenmode none up"),
                format!("link set {link} up"),
            ]);
            let add = |net: &IpNet| {
                let nodad = if matches!(net, IpNet::V6(_)) { " nodad" } else { "" };
                format!("addr add {net} dev {link}{nodad}")
            };
            lines.extend(other.addresses.iter().map(add));
        }
        for route in &self.scene.routes {
            let via = route.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
            lines.push(format!("route add {}{via} dev {}", route.destination, route.link));
        }
        self.instance.ip_batch(&lines)
    }

    /// Links get the names that they have now; they are down meanwhile, as the kernel wants it.
    fn rename(&self, former: &[Eni]) -> anyhow::Result<()> {
        let pairs = former.iter().zip(&self.scene.enis);
        let changed: Vec<_> = pairs.filter(|(was, is)| was.link != is.link).collect();
        let mut lines = Vec::new();
        for (was, is) in &changed {
            lines.push(format!("link set {} down name new-{}", was.link, is.link));
        }
        for (_, is) in &changed {
            lines.push(format!("link set new-{} name {}", is.link, is.link));
            lines.push(format!("link set {} up", is.link));
        }
        self.instance.ip_batch(&lines)
    }

    /// The instance becomes what it is now.
    fn become_present(&mut self) -> anyhow::Result<()> {
        let kind = self.scene.combination;
        let present = Scene::present(kind);
        let former = std::mem::replace(&mut self.scene, present);
        for eni in &self.scene.enis {
            for address in &eni.addresses {
                let had = |eni: &&Eni| eni.addresses.contains(address);
                let from = former.enis.iter().find(had).map(|eni| eni.number);
                if let Some(from) = from.filter(|from| *from != eni.number) {
                    self.vpc.move_address(*address, &self.enis[from], &self.enis[eni.number])?;
                }
            }
        }
        for (was, is) in former.enis.iter().zip(&self.scene.enis) {
            for prefix in is.prefixes.iter().filter(|prefix| !was.prefixes.contains(prefix)) {
                self.vpc.delegate(&self.enis[is.number], *prefix)?;
            }
        }
        self.rename(&former.enis)?;
        for number in self.scene.enis.len()..former.enis.len() {
            self.vpc.detach(&self.enis[number])?;
        }
        for number in former.enis.len()..self.scene.enis.len() {
            self.plug(number)?;
        }
        Ok(())
    }
}

fn config(scene: &Scene) -> Config {
    let mut config = Config::default().rp_filter(0);
    let later = scene.vpc.iter().filter(|_| scene.combination.subnets == Subnets::SecondaryCidr);
    let later = later.filter_map(|net| match net {
        IpNet::V4(net) => Some(net.to_string()),
        IpNet::V6(_) => None,
    });
    for cidr in later.skip(1) {
        config = config.cidr(&cidr);
    }
    let mut subnets: Vec<Vec<IpNet>> = scene.enis.iter().map(|eni| eni.subnets.clone()).collect();
    // One that was here in a former run had a subnet, too.
    subnets.extend(Scene::former(scene.combination).enis.iter().map(|eni| eni.subnets.clone()));
    subnets.sort_unstable();
    subnets.dedup();
    for subnet in subnets {
        let texts: Vec<String> = subnet.iter().map(ToString::to_string).collect();
        config = match (subnet.as_slice(), texts.as_slice()) {
            ([IpNet::V4(_), _], [v4, v6]) => config.dual_subnet(v4, v6),
            ([IpNet::V4(_)], [v4]) => config.subnet(v4),
            (_, [v6, ..]) => config.subnet_v6(v6),
            (_, []) => config,
        };
    }
    config
}

fn spec(eni: &Eni) -> EniSpec {
    let spec = EniSpec::new(eni.addresses.iter().copied()).device(eni.device);
    let spec = match eni.card {
        Some(card) => spec.card(card),
        None => spec,
    };
    eni.prefixes.iter().fold(spec, |spec, prefix| spec.prefix(*prefix))
}

/// One kind of instance, from boot to the end.
fn replay(kind: Combination) -> anyhow::Result<()> {
    let mut stage = Stage::build(kind)?;
    let before = unconcerned(&stage)?;
    let prefixes = match kind.delegation {
        Delegation::None | Delegation::Rules => "",
        Delegation::Local => "prefixes = \"local\"",
        Delegation::Ignore => "prefixes = \"ignore\"",
    };
    let mut daemon = Daemon::start(&stage.instance, prefixes)?;
    match kind.restart {
        Restart::Fresh => {}
        Restart::Former | Restart::OtherSiblings | Restart::Renamed => {
            daemon.wait_ready(READY)?;
            comes_to_work(&stage, &daemon)?;
            daemon.terminate()?;
            stage.become_present()?;
            daemon.restart()?;
        }
        Restart::HalfDone => {
            let begun = || {
                let begun = state(&stage.instance)?.routes.iter().any(|route| route.ours);
                ensure!(begun || kind.siblings == Siblings::One, "enid has not begun");
                Ok(())
            };
            eventually(PATIENCE, "enid has begun", &daemon, begun)?;
            daemon.kill()?;
            daemon.restart()?;
        }
    }
    daemon.wait_ready(READY)?;
    comes_to_work(&stage, &daemon)?;
    // Routes of main that came or went since with an ENI are no work of enid's.
    let same = match kind.restart {
        Restart::Fresh | Restart::Former | Restart::HalfDone => true,
        Restart::OtherSiblings => kind.main != Main::Dhcp,
        Restart::Renamed => false,
    };
    if same {
        for (was, is) in before.iter().zip(unconcerned(&stage)?) {
            ensure!(*was == is, "before enid {was:?}, now {is:?}\n{}", stage.instance.describe());
        }
    }
    daemon.terminate()
}

fn comes_to_work(stage: &Stage, daemon: &Daemon) -> anyhow::Result<()> {
    comes_to_rest(daemon)?;
    eventually(PATIENCE, "the promises hold", daemon, || judge(stage))
}

/// What the kernel says of packets that are no business of enid's. Links of ENIs that come up later
/// are left out.
fn unconcerned(stage: &Stage) -> anyhow::Result<Vec<(Packet, Said)>> {
    let scene = Scene::present(stage.scene.combination);
    let late = |link: &Option<String>| {
        scene.enis.iter().skip(1).any(|eni| link.as_deref() == Some(&eni.link))
    };
    let promises = scene.promises();
    let same = promises.iter().filter(|promise| promise.must == Must::AsWithout);
    let packets = same.map(|promise| &promise.packet);
    let packets: Vec<&Packet> =
        packets.filter(|packet| !late(&packet.iif) && !late(&packet.oif)).collect();
    let said = ask(&stage.instance, &packets)?;
    Ok(packets.into_iter().cloned().zip(said).collect())
}

/// For every packet that something is promised of, what the kernel says is what the oracle says and
/// what was promised.
fn judge(stage: &Stage) -> anyhow::Result<()> {
    let state = state(&stage.instance)?;
    let lookup = Lookup::new(&state, View::All);
    let promises = stage.scene.promises();
    ensure!(promises.len() > 20, "only {} promises", promises.len());
    let packets: Vec<&Packet> = promises.iter().map(|promise| &promise.packet).collect();
    let said = ask(&stage.instance, &packets)?;
    let mut wrong = String::new();
    let mut families = Vec::new();
    for (promise, said) in promises.iter().zip(said) {
        let answer = lookup.route_get(&promise.packet);
        let agrees = said == Said::of(&answer);
        if !agrees || !kept(&promise.must, &said) {
            // Writing to a String cannot fail.
            let _ = writeln!(
                wrong,
                "{}\n  must {:?}\n  the kernel says {said:?}\n  the oracle says {answer}",
                promise.packet, promise.must
            );
            families.push(Family::of(promise.packet.to));
        }
    }
    let Some(family) = families.first() else { return Ok(()) };
    let first: String = wrong.lines().take(24).map(|line| format!("{line}\n")).collect();
    anyhow::bail!("{} wrong:\n{first}{}", families.len(), state.words(*family))
}

/// Whether the kernel does what was promised; what is promised as it would be without enid is
/// compared with the time before enid.
fn kept(must: &Must, said: &Said) -> bool {
    match must {
        Must::Leave { link, gateway, source } => match said {
            Said::Out { link: by, gateway: hop, source: from } => {
                // The router has two names, and either leads to it.
                let router = |hop: &Option<IpAddr>| hop.is_some_and(|hop| ROUTERS.contains(&hop));
                let same = gateway == hop || (router(gateway) && router(hop));
                link == by && same && (source.is_none() || source == from)
            }
            Said::Here | Said::Nowhere => false,
        },
        Must::Arrive => *said == Said::Here,
        Must::AsWithout | Must::NotLeak { .. } => true,
    }
}
