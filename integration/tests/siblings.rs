//! Promise: what tells two ENIs in one subnet apart may change while both talk: not a packet leaves by
//! the wrong one, and none is lost.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::vpc::{
    Bound, Config, Conversation, Echo, EniId, EniSpec, Instance, Netns, Pinger, Vpc,
};
use integration::{Daemon, eventually, trial};
use libtest_mimic::Trial;

use crate::pair::comes_to_rest;
use crate::users::{PATIENCE, WHOAMI, answers, drops, leaves_by, reaches};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("siblings::an_address_that_splits_sources_disturbs_nobody", || splits(2)),
        trial("siblings::a_split_disturbs_nobody_with_a_strict_filter", || splits(1)),
        trial("siblings::a_sibling_that_comes_and_goes_disturbs_nobody", sibling),
    ]
}

/// The same host number in both families.
fn both(host: u8) -> [IpAddr; 2] {
    let v6 = Ipv6Addr::new(0x2600, 0x1f16, 0x67f, 0xf201, 0, 0, 0, u16::from(host));
    [Ipv4Addr::new(10, 0, 1, host).into(), v6.into()]
}

/// Each half of the subnet is one ENI's at first.
const FIRST: [u8; 2] = [4, 100];
const SECOND: [u8; 2] = [132, 250];
/// Who gets which address, so that each splits what was the other's.
const ARRIVALS: [(bool, u8); 6] =
    [(true, 5), (false, 133), (true, 101), (false, 251), (true, 6), (false, 200)];

struct Stage {
    vpc: Vpc,
    instance: Instance,
    second: EniId,
    /// One in the same subnet and one in another.
    hosts: [Instance; 2],
    _services: Vec<Echo>,
}

impl Stage {
    fn build(rp_filter: u8) -> anyhow::Result<Stage> {
        let config = Config::default()
            .dual_subnet("10.0.1.0/24", "2600:1f16:67f:f201::/64")
            .dual_subnet("10.0.254.0/24", "2600:1f16:67f:f2fe::/64")
            .rp_filter(rp_filter);
        let vpc = Vpc::new(config)?;
        let spec = |hosts: [u8; 2]| EniSpec::new(hosts.into_iter().flat_map(both));
        let instance = vpc.instance("main", spec(FIRST))?;
        let second = vpc.create_eni(spec(SECOND))?;
        let far: [IpAddr; 2] = ["10.0.254.9".parse()?, "2600:1f16:67f:f2fe::9".parse()?];
        let hosts =
            [vpc.instance("near", EniSpec::new(both(9)))?, vpc.instance("far", EniSpec::new(far))?];
        let all = [&instance.netns, &hosts[0].netns, &hosts[1].netns];
        let services = all.map(|netns| Echo::start(netns, WHOAMI));
        let services = services.into_iter().collect::<anyhow::Result<_>>()?;
        Ok(Stage { vpc, instance, second, hosts, _services: services })
    }

    fn enis(&self) -> [&EniId; 2] {
        [&self.instance.primary, &self.second]
    }

    fn addresses(&self, eni: &EniId) -> anyhow::Result<Vec<IpAddr>> {
        let eni = self.vpc.eni(eni)?;
        let v6 = eni.ipv6.into_iter().map(IpAddr::V6);
        Ok(eni.ipv4.into_iter().map(IpAddr::V4).chain(v6).collect())
    }

    /// A host and its address of the family that another one has.
    fn hosts(&self, other: IpAddr) -> anyhow::Result<[(&Netns, IpAddr); 2]> {
        let address = |host: &Instance| -> anyhow::Result<IpAddr> {
            let mut all = self.addresses(&host.primary)?.into_iter();
            all.find(|own| own.is_ipv4() == other.is_ipv4()).context("it has no such address")
        };
        let [near, far] = &self.hosts;
        Ok([(&near.netns, address(near)?), (&far.netns, address(far)?)])
    }

    fn works(&self, enis: &[(&EniId, &str)]) -> anyhow::Result<()> {
        for (eni, link) in enis {
            for address in self.addresses(eni)? {
                for (host, theirs) in self.hosts(address)? {
                    answers(host, address)?;
                    reaches(&self.instance, address, theirs)?;
                    let by = leaves_by(&self.instance, address, theirs)?;
                    ensure!(by == *link, "from {address} to {theirs} by {by}");
                }
            }
        }
        Ok(())
    }

    fn all_works(&self) -> anyhow::Result<()> {
        self.works(&[(&self.instance.primary, "ens5"), (&self.second, "ens6")])
    }

    /// Pings and conversations of some addresses with both hosts, from both sides.
    fn talk(&self, own: &[IpAddr]) -> anyhow::Result<(Vec<Pinger>, Vec<Conversation>)> {
        let (mut pings, mut conversations) = (Vec::new(), Vec::new());
        // Every raw socket gets what all the others are answered: more would be lost on the way there.
        let step = Duration::from_millis(20);
        for address in own {
            let bound = Bound::Address(*address);
            for (host, theirs) in self.hosts(*address)? {
                pings.push(Pinger::start(host, *address, &Bound::No, step)?);
                pings.push(Pinger::start(&self.instance, theirs, &bound, step)?);
                let (there, here) = ((*address, WHOAMI).into(), (theirs, WHOAMI).into());
                conversations.push(Conversation::open(host, there, &Bound::No)?);
                conversations.push(Conversation::open(&self.instance, here, &bound)?);
            }
        }
        Ok((pings, conversations))
    }

    /// Changes something while the addresses talk, and looks at what became of that.
    fn undisturbed(
        &self,
        own: &[IpAddr],
        change: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let before = drops(&self.vpc, self.enis())?;
        let (pings, mut conversations) = self.talk(own)?;
        let stop = AtomicBool::new(false);
        let (changed, talked) = std::thread::scope(|scope| {
            let talker = scope.spawn(|| -> anyhow::Result<()> {
                while !stop.load(Ordering::Relaxed) {
                    for conversation in &mut conversations {
                        conversation.check(Duration::from_secs(5))?;
                    }
                }
                Ok(())
            });
            let changed = change();
            stop.store(true, Ordering::Relaxed);
            (changed, talker.join())
        });
        changed?;
        talked.map_err(|_| anyhow::anyhow!("who talked panicked"))?.context("a conversation")?;
        let dropped = drops(&self.vpc, self.enis())? - before;
        ensure!(dropped == 0, "{dropped} packets left by the wrong ENI");
        for ping in pings {
            let report = ping.stop();
            ensure!(report.lost == 0 && report.refused == 0, "{report:?}");
            ensure!(report.answered > 5, "hardly anybody talked: {report:?}");
        }
        Ok(())
    }
}

/// The sources of an ENI, as the rules of its table have them.
fn sources(stage: &Stage, table: &str) -> anyhow::Result<usize> {
    let mut count = 0;
    for family in ["-4", "-6"] {
        let rules = stage.instance.run(&["ip", family, "rule"])?;
        let own = rules.lines().filter(|line| line.contains(&format!("iif lo lookup {table}")));
        count += own.count();
    }
    Ok(count)
}

const QUICK: &str = "poll_interval = \"200ms\"\n[removal]\nconfirmations = 1\ngrace = \"0s\"\n";

fn splits(rp_filter: u8) -> anyhow::Result<()> {
    let stage = Stage::build(rp_filter)?;
    let mut daemon = Daemon::ready(&stage.instance, QUICK)?;
    stage.vpc.attach(&stage.second, &stage.instance, "ens6")?;
    eventually(PATIENCE, "both ENIs work", &daemon, || stage.all_works())?;
    comes_to_rest(&daemon)?;
    let few = sources(&stage, "20000")? + sources(&stage, "20001")?;
    let own: Vec<IpAddr> = [FIRST[0], SECOND[0]].into_iter().flat_map(both).collect();
    let [first, second] = stage.enis();
    let owner = |is_second: bool| if is_second { second } else { first };
    stage.undisturbed(&own, || {
        for (is_second, host) in ARRIVALS {
            stage.vpc.assign_all(owner(is_second), &both(host))?;
            daemon.enictl().run(&["refresh"])?.success()?;
            eventually(PATIENCE, "the new address works", &daemon, || stage.all_works())?;
        }
        let many = sources(&stage, "20000")? + sources(&stage, "20001")?;
        ensure!(many > few + 6, "{few} sources became {many}: nothing was split");
        // They go again, one by one, and what was split grows together.
        for (is_second, host) in ARRIVALS {
            for address in both(host) {
                stage.vpc.unassign(owner(is_second), address)?;
            }
            daemon.enictl().run(&["refresh"])?.success()?;
        }
        eventually(PATIENCE, "the sources are as before", &daemon, || {
            let now = sources(&stage, "20000")? + sources(&stage, "20001")?;
            ensure!(now == few, "{few} before, {now} now");
            Ok(())
        })
    })?;
    comes_to_rest(&daemon)?;
    daemon.terminate()
}

/// The primary ENI talks on while a sibling is attached and detached.
fn sibling() -> anyhow::Result<()> {
    let stage = Stage::build(1)?;
    let mut daemon = Daemon::ready(&stage.instance, "")?;
    let own = both(FIRST[0]);
    comes_to_rest(&daemon)?;
    eventually(PATIENCE, "the primary ENI works", &daemon, || {
        stage.works(&[(&stage.instance.primary, "ens5")])
    })?;
    stage.undisturbed(&own, || {
        for _ in 0..3 {
            stage.vpc.attach(&stage.second, &stage.instance, "ens6")?;
            eventually(PATIENCE, "both ENIs work", &daemon, || stage.all_works())?;
            stage.vpc.detach(&stage.second)?;
            eventually(PATIENCE, "its rules are gone", &daemon, || {
                let left = sources(&stage, "20001")?;
                ensure!(left == 0, "{left} are left");
                Ok(())
            })?;
        }
        Ok(())
    })?;
    comes_to_rest(&daemon)?;
    daemon.terminate()
}
