//! Promise: large instances work as small ones do: several network cards whose device numbers repeat, a
//! card number that metadata tells late or never, ENIs without a link and links without an ENI, and
//! eighty ENIs.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration::vpc::{
    Bound, Config, Echo, EniId, EniSpec, Instance, Pinger, Vpc, connect, whoami,
};
use integration::{Daemon, eventually, holds, trial};
use libtest_mimic::Trial;

use crate::pair::comes_to_rest;
use crate::users::{PATIENCE, WHOAMI, answers, drops, is_settled, leaves_by, status};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("cards::device_numbers_repeat_on_every_card", repeated),
        trial("cards::a_card_that_is_told_late_is_waited_for_or_moved_to", late),
        trial("cards::an_eni_without_a_link_and_a_link_without_an_eni_are_normal", strangers),
        trial("cards::eighty_enis_on_sixteen_cards_work", eighty),
    ]
}

const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 254, 4);

/// An ENI's only address; cards have subnets of their own.
fn address(card: u32, device: u32) -> anyhow::Result<Ipv4Addr> {
    Ok(Ipv4Addr::new(10, 0, u8::try_from(card + 1)?, u8::try_from(device + 10)?))
}

struct Stage {
    vpc: Vpc,
    instance: Instance,
    /// The ENIs but the primary one: card, device number, link.
    others: Vec<(EniId, u32, u32, String)>,
    host: Instance,
    _service: Echo,
}

impl Stage {
    /// The ENIs are not attached yet.
    fn build(places: &[(u32, u32)]) -> anyhow::Result<Stage> {
        let mut config = Config::default().subnet("10.0.254.0/24").rp_filter(1);
        for card in 0..16 {
            config = config.subnet(&format!("10.0.{}.0/24", card + 1));
        }
        let vpc = Vpc::new(config)?;
        let spec = |card: u32, device: u32| -> anyhow::Result<EniSpec> {
            Ok(EniSpec::new([address(card, device)?]).card(card).device(device))
        };
        let instance = vpc.instance("main", spec(0, 0)?)?;
        let specs = places.iter().map(|(card, device)| spec(*card, *device));
        let ids = vpc.create_enis(specs.collect::<anyhow::Result<_>>()?)?;
        let others = ids.into_iter().zip(places);
        let link = |card: &u32, device: &u32| format!("c{card}d{device}");
        let others = others.map(|(id, (card, device))| (id, *card, *device, link(card, device)));
        let others = others.collect();
        let host = vpc.instance("host", EniSpec::new([HOST]))?;
        let _service = Echo::start(&host, WHOAMI)?;
        Ok(Stage { vpc, instance, others, host, _service })
    }

    fn attach(&self) -> anyhow::Result<()> {
        let all: Vec<_> = self.others.iter().map(|(id, _, _, link)| (id, link.as_str())).collect();
        self.vpc.attach_all(&all, &self.instance)?;
        Ok(())
    }

    /// Every ENI answers, leaves by its own link, and has the table of its place.
    fn works(&self) -> anyhow::Result<()> {
        self.answers()?;
        let rules = self.instance.run(&["ip", "rule", "show", "pref", "20000"])?;
        for (_, card, device, link) in &self.others {
            let own = address(*card, *device)?;
            let seen = whoami(&self.instance, (HOST, WHOAMI).into(), &Bound::from(own))?;
            ensure!(seen == own, "from {own}, {HOST} sees {seen}");
            let by = leaves_by(&self.instance, own, HOST)?;
            ensure!(by == *link, "from {own} by {by}");
            let table = 20000 + 100 * card + device;
            ensure!(rules.contains(&format!("oif {link} lookup {table} ")), "{link}: {rules}");
        }
        Ok(())
    }

    fn answers(&self) -> anyhow::Result<()> {
        answers(&self.host, address(0, 0)?)?;
        let mut others = self.others.iter();
        others.try_for_each(|(_, card, device, _)| answers(&self.host, address(*card, *device)?))
    }

    fn comes_to_work(&self, daemon: &Daemon) -> anyhow::Result<()> {
        eventually(PATIENCE, "every ENI works", daemon, || self.works())?;
        let enis = || self.others.iter().map(|(id, ..)| id).chain([&self.instance.primary]);
        let before = drops(&self.vpc, enis())?;
        self.works()?;
        ensure!(drops(&self.vpc, enis())? == before, "the fabric dropped foreign sources");
        Ok(())
    }
}

fn repeated() -> anyhow::Result<()> {
    let stage = Stage::build(&[(0, 1), (1, 0), (1, 1), (2, 0), (2, 1)])?;
    let mut daemon = Daemon::ready(&stage.instance, "")?;
    stage.attach()?;
    stage.comes_to_work(&daemon)?;
    is_settled(&daemon)?;
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    is_settled(&daemon)?;
    stage.comes_to_work(&daemon)?;
    daemon.terminate()
}

fn late() -> anyhow::Result<()> {
    let stage = Stage::build(&[(0, 1), (1, 1), (1, 0)])?;
    let metadata = stage.vpc.metadata();
    for (id, ..) in &stage.others {
        metadata.omit(id, &["network-card"]);
    }
    metadata.omit(&stage.instance.primary, &["network-card"]);
    let mut daemon = Daemon::ready(&stage.instance, "poll_interval = \"200ms\"")?;
    // Nobody tells a card: the first is taken for one of card 0, as on most types.
    let (alone, _, _, link) = &stage.others[1];
    stage.vpc.attach(alone, &stage.instance, link)?;
    eventually(PATIENCE, "it answers", &daemon, || answers(&stage.host, address(1, 1)?))?;
    let pinger =
        Pinger::start(&stage.host, address(1, 1)?.into(), &Bound::No, Duration::from_millis(10))?;
    // Now all others come, and some of them look like the first.
    for (id, _, _, link) in [&stage.others[0], &stage.others[2]] {
        stage.vpc.attach(id, &stage.instance, link)?;
    }
    eventually(PATIENCE, "those who collide are left alone", &daemon, || {
        let said = status(&daemon)?;
        ensure!(said["verdict"] != "converged", "{said}");
        ensure!(answers(&stage.host, address(1, 0)?).is_err(), "device 0 of card 0 is another's");
        Ok(())
    })?;
    answers(&stage.host, address(1, 1)?)?;
    metadata.reveal(&stage.instance.primary);
    for (id, ..) in &stage.others {
        metadata.reveal(id);
    }
    daemon.enictl().run(&["refresh"])?.success()?;
    stage.comes_to_work(&daemon)?;
    is_settled(&daemon)?;
    let report = pinger.stop();
    ensure!(report.lost == 0, "the move to another table lost {} requests", report.lost);
    daemon.terminate()
}

fn strangers() -> anyhow::Result<()> {
    let stage = Stage::build(&[(0, 1), (1, 0)])?;
    stage.attach()?;
    let efa = stage.vpc.create_eni(EniSpec::efa_only().card(1).device(1))?;
    stage.vpc.attach_without_link(&efa, &stage.instance)?;
    let driverless = EniSpec::new([Ipv4Addr::new(10, 0, 3, 10)]).card(2).device(0);
    let driverless = stage.vpc.create_eni(driverless)?;
    stage.vpc.attach_without_link(&driverless, &stage.instance)?;
    stage.instance.ip_batch(&[
        "link add stranger type veth peer name other".to_owned(),
        "link set stranger up".to_owned(),
    ])?;
    let mut daemon = Daemon::ready(&stage.instance, "poll_interval = \"200ms\"")?;
    stage.comes_to_work(&daemon)?;
    comes_to_rest(&daemon)?;
    is_settled(&daemon)?;
    let said = daemon.log();
    holds(Duration::from_secs(3), "it is converged and silent", &daemon, || {
        let now = daemon.log();
        ensure!(now == said, "the journal: {}", now.trim_start_matches(&said));
        ensure!(status(&daemon)?["verdict"] == "converged", "{}", status(&daemon)?);
        Ok(())
    })?;
    let worries: Vec<_> =
        said.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
    ensure!(worries.is_empty(), "{worries:#?}");
    daemon.terminate()
}

/// The memory of a process, in KiB.
pub(crate) fn resident(pid: u32) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?;
    Ok(number.parse()?)
}

fn eighty() -> anyhow::Result<()> {
    let all = (0..16).flat_map(|card| (0..5).map(move |device| (card, device)));
    let places: Vec<(u32, u32)> = all.filter(|place| *place != (0, 0)).collect();
    let stage = Stage::build(&places)?;
    stage.attach()?;
    let start = Instant::now();
    let mut daemon = Daemon::start(&stage.instance, "")?;
    eventually(Duration::from_secs(60), "every ENI answers", &daemon, || stage.answers())?;
    let took = start.elapsed();
    stage.comes_to_work(&daemon)?;
    is_settled(&daemon)?;
    let said = status(&daemon)?;
    let interval = said["metadata"]["poll_interval_ms"].as_u64().unwrap_or_default();
    // At least two requests an ENI, and fewer than ten a second.
    ensure!((16_000..60_000).contains(&interval), "{}", said["metadata"]);
    ensure!(said["enis"].as_array().is_some_and(|enis| enis.len() == 80), "not 80 ENIs");
    let resident = resident(daemon.pid()?)?;
    ensure!(resident < 40 * 1024, "{resident} KiB resident, all answered after {took:?}");
    let from = address(15, 4)?;
    let to = (HOST, WHOAMI).into();
    drop(connect(&stage.instance, to, &Bound::from(from), Duration::from_secs(2))?);
    daemon.terminate()
}
