//! Promise: secondary addresses follow what the cloud says, on the only ENI, between instances and
//! between ENIs; nothing goes without proof.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration::vpc::{
    Bound, Config, Conversation, Echo, EniId, EniSpec, Instance, Pinger, Vpc, whoami,
};
use integration::{Daemon, Scene, eventually, holds, trial};
use libtest_mimic::Trial;

use crate::users::{
    PATIENCE, WHOAMI, addresses, answers, everything, is_settled, is_silent, public, reaches,
    status_of, works_with_the_internet,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("secondary_addresses::each_answers_and_leaves_with_its_own_public_address", assigned),
        trial("secondary_addresses::an_unassigned_one_goes_after_the_grace", unassigned),
        trial("secondary_addresses::one_that_an_operator_drops_goes_at_once", dropped),
        trial("secondary_addresses::two_instances_exchange_one", exchanged),
        trial("secondary_addresses::an_ignored_one_is_left_to_its_manager", ignored),
        trial("secondary_addresses::a_restart_changes_nothing", restarted),
        trial("secondary_addresses::most_of_them_go_only_after_the_long_grace", most),
        trial("secondary_addresses::one_moves_to_another_eni_at_once", moved),
    ]
}

const PRIMARY: Ipv4Addr = address(4);
/// Secondary addresses that stay in most trials.
const STAY: [Ipv4Addr; 2] = [address(20), address(21)];
/// A secondary address that goes in most trials.
const GOES: Ipv4Addr = address(22);

const fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, last)
}

fn public_of(private: Ipv4Addr) -> Ipv4Addr {
    public(private.octets()[3])
}

/// Impatient, so that a trial sees what happens after a grace.
fn impatient(grace: &str, mass_grace: &str) -> String {
    format!(
        "poll_interval = \"200ms\"\n[removal]\ngrace = \"{grace}\"\nmass_grace = \"{mass_grace}\"\n"
    )
}

/// An instance with one ENI and a neighbour in its subnet.
struct Stage {
    vpc: Vpc,
    instance: Instance,
    near: Instance,
    _services: [Echo; 2],
}

impl Stage {
    fn build() -> anyhow::Result<Stage> {
        let vpc = Vpc::new(Config::default().subnet("10.0.1.0/24"))?;
        let spec = EniSpec::new([PRIMARY]).public(PRIMARY, public_of(PRIMARY));
        let instance = vpc.instance("main", spec)?;
        let near = vpc.instance("near", EniSpec::new([address(9)]))?;
        let _services = [Echo::start(vpc.internet(), WHOAMI)?, Echo::start(&instance, WHOAMI)?];
        Ok(Stage { vpc, instance, near, _services })
    }

    fn assign(&self, addresses: &[Ipv4Addr]) -> anyhow::Result<()> {
        for address in addresses {
            self.vpc.assign(&self.instance.primary, *address, Some(public_of(*address)))?;
        }
        Ok(())
    }

    fn unassign(&self, address: Ipv4Addr) -> anyhow::Result<()> {
        self.vpc.unassign(&self.instance.primary, address)
    }

    fn works(&self, address: Ipv4Addr) -> anyhow::Result<()> {
        works_with_the_internet(&self.vpc, &self.instance, address, public_of(address))?;
        answers(&self.near, address)
    }

    fn come_to_work(&self, daemon: &Daemon, addresses: &[Ipv4Addr]) -> anyhow::Result<()> {
        eventually(PATIENCE, "the addresses work", daemon, || {
            addresses.iter().try_for_each(|address| self.works(*address))
        })
    }

    fn has(&self, address: Ipv4Addr) -> anyhow::Result<bool> {
        Ok(addresses(&self.instance, "ens5")?.contains(&address))
    }

    /// Waits until an address is gone from the link, and tells how long that was.
    fn goes(&self, daemon: &Daemon, address: Ipv4Addr, since: Instant) -> anyhow::Result<Duration> {
        eventually(PATIENCE, "an address is gone", daemon, || {
            ensure!(!self.has(address)?, "{address} is still there");
            Ok(since.elapsed())
        })
    }

    fn ping(&self, addresses: &[Ipv4Addr]) -> anyhow::Result<Pings> {
        let interval = Duration::from_millis(20);
        let start =
            |address: &Ipv4Addr| Pinger::start(&self.near, (*address).into(), &Bound::No, interval);
        Ok(Pings(addresses.iter().map(start).collect::<Result<_, _>>()?))
    }
}

/// Steady pings to addresses that must never miss one.
struct Pings(Vec<Pinger>);

impl Pings {
    fn missed_none(&self, scene: &dyn Scene) -> anyhow::Result<()> {
        // An answer may be late on a busy machine; a lost one never comes.
        eventually(Duration::from_secs(5), "no ping was missed", scene, || {
            for pinger in &self.0 {
                let report = pinger.report();
                ensure!(report.lost == 0 && report.answered > 0, "{report:?}");
            }
            Ok(())
        })
    }
}

fn assigned() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let three = [STAY[0], STAY[1], GOES];
    stage.assign(&three)?;
    for address in three {
        is_silent(stage.vpc.internet(), public_of(address))?;
        stage.unassign(address)?;
    }
    let mut daemon = Daemon::ready(&stage.instance, &impatient("1s", "2s"))?;
    ensure!(addresses(&stage.instance, "ens5")? == [PRIMARY].into(), "not asked for");
    stage.assign(&three)?;
    stage.come_to_work(&daemon, &[PRIMARY, STAY[0], STAY[1], GOES])?;
    let rules = stage.instance.ip_json(&["-4", "rule"])?;
    let own = rules.as_array().into_iter().flatten();
    let own =
        own.filter(|rule| !["local", "main", "default"].map(Into::into).contains(&rule["table"]));
    ensure!(own.count() == 0, "an instance with one ENI needs no rules: {rules}");
    daemon.terminate()
}

pub(crate) fn unassigned() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let grace = Duration::from_secs(1);
    stage.assign(&[STAY[0], STAY[1], GOES])?;
    let mut daemon = Daemon::ready(&stage.instance, &impatient("1s", "60s"))?;
    stage.come_to_work(&daemon, &[PRIMARY, STAY[0], STAY[1], GOES])?;

    // Without enid it stays, and the neighbour never hears what is sent from it.
    daemon.terminate()?;
    stage.unassign(GOES)?;
    holds(2 * grace, "nobody removes it", &stage.instance, || {
        ensure!(stage.has(GOES)?, "{GOES} is gone");
        Ok(())
    })?;
    ensure!(reaches(&stage.instance, GOES, address(9)).is_err(), "it still belongs to us");
    stage.assign(&[GOES])?;
    daemon.restart()?;
    stage.come_to_work(&daemon, &[GOES])?;
    is_settled(&daemon)?;

    let pings = stage.ping(&[PRIMARY, STAY[0], STAY[1]])?;
    let since = Instant::now();
    stage.unassign(GOES)?;
    let took = stage.goes(&daemon, GOES, since)?;
    ensure!(took >= grace, "it was gone after {took:?}");
    is_settled(&daemon)?;
    stage.come_to_work(&daemon, &[PRIMARY, STAY[0], STAY[1]])?;
    pings.missed_none(&daemon)?;
    daemon.terminate()
}

pub(crate) fn dropped() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    stage.assign(&[STAY[0], STAY[1], GOES])?;
    let mut daemon = Daemon::ready(&stage.instance, "")?;
    stage.come_to_work(&daemon, &[PRIMARY, STAY[0], STAY[1], GOES])?;
    let pings = stage.ping(&[PRIMARY, STAY[0], STAY[1]])?;

    let refused = daemon.enictl().run(&["drop", &GOES.to_string()])?;
    ensure!(refused.code == Some(5), "what metadata grants can be dropped: {refused:?}");
    ensure!(stage.has(GOES)?, "what metadata grants was dropped");

    // The grace is a minute: a reading alone changes nothing, the operator's word ends it.
    stage.unassign(GOES)?;
    let read = daemon.enictl().run(&["refresh"])?;
    ensure!(stage.has(GOES)?, "one reading was enough: {read:?}");
    daemon.enictl().run(&["drop", &GOES.to_string()])?.success()?;
    stage.goes(&daemon, GOES, Instant::now())?;
    stage.come_to_work(&daemon, &[PRIMARY, STAY[0], STAY[1]])?;
    pings.missed_none(&daemon)?;
    daemon.terminate()
}

fn exchanged() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let (instance, other) = (&stage.instance, &stage.near);
    let _service = Echo::start(other, WHOAMI)?;
    let theirs = GOES;
    stage.assign(&[STAY[0]])?;
    stage.vpc.assign(&other.primary, theirs, Some(public_of(theirs)))?;
    let exchange = |mine: Ipv4Addr, theirs: Ipv4Addr| {
        stage.vpc.move_address(mine, &instance.primary, &other.primary)?;
        stage.vpc.move_address(theirs, &other.primary, &instance.primary)
    };
    let works = |here: Ipv4Addr, there: Ipv4Addr| {
        works_with_the_internet(&stage.vpc, instance, here, public_of(here))?;
        works_with_the_internet(&stage.vpc, other, there, public_of(there))?;
        reaches(instance, here, there)
    };

    // By hand: an exchange cuts both off.
    instance.run(&["ip", "addr", "add", &format!("{}/32", STAY[0]), "dev", "ens5"])?;
    other.run(&["ip", "addr", "add", &format!("{theirs}/32"), "dev", "ens5"])?;
    works(STAY[0], theirs)?;
    exchange(STAY[0], theirs)?;
    is_silent(stage.vpc.internet(), public_of(STAY[0]))?;
    is_silent(stage.vpc.internet(), public_of(theirs))?;
    exchange(theirs, STAY[0])?;
    for (host, address) in [(instance, STAY[0]), (other, theirs)] {
        host.run(&["ip", "addr", "del", &format!("{address}/32"), "dev", "ens5"])?;
    }

    let mut daemons = [
        Daemon::ready(instance, &impatient("1s", "60s"))?,
        Daemon::ready(other, &impatient("1s", "60s"))?,
    ];
    eventually(PATIENCE, "both addresses work", &daemons[0], || works(STAY[0], theirs))?;
    exchange(STAY[0], theirs)?;
    eventually(PATIENCE, "the addresses have followed", &daemons[0], || {
        works(theirs, STAY[0])?;
        ensure!(addresses(instance, "ens5")? == [PRIMARY, theirs].into(), "left over here");
        ensure!(addresses(other, "ens5")? == [address(9), STAY[0]].into(), "left over there");
        Ok(())
    })?;
    daemons.iter_mut().try_for_each(Daemon::terminate)
}

fn ignored() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let (one, of_network) = (address(40), address(50));
    let ignore = format!(
        "ignore_addresses = [\"{one}\", \"{of_network}/28\"]\n{}",
        impatient("500ms", "500ms")
    );

    // With other words in the configuration they are addresses like others.
    let mut daemon = Daemon::ready(&stage.instance, &impatient("500ms", "500ms"))?;
    stage.assign(&[one, of_network, STAY[0]])?;
    stage.come_to_work(&daemon, &[one, of_network, STAY[0]])?;
    for address in [one, of_network, STAY[0]] {
        stage.unassign(address)?;
    }
    stage.goes(&daemon, one, Instant::now())?;
    stage.goes(&daemon, of_network, Instant::now())?;
    daemon.terminate()?;

    daemon.configure(&ignore)?;
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    stage.assign(&[one, of_network, STAY[0]])?;
    stage.come_to_work(&daemon, &[STAY[0]])?;
    is_settled(&daemon)?;
    for address in [one, of_network] {
        ensure!(!stage.has(address)?, "{address} was added");
        let status = status_of(&daemon, address)?;
        ensure!(status["state"] == "ignored", "status says {status}");
    }

    // Its manager has it here now, and keeps it after the cloud has moved it on.
    stage.instance.run(&["ip", "addr", "add", &format!("{one}/32"), "dev", "ens5"])?;
    stage.works(one)?;
    stage.unassign(one)?;
    stage.unassign(STAY[0])?;
    stage.goes(&daemon, STAY[0], Instant::now())?;
    is_settled(&daemon)?;
    ensure!(stage.has(one)?, "{one} was removed");
    daemon.terminate()
}

pub(crate) fn restarted() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    stage.assign(&[STAY[0], STAY[1], GOES])?;
    let spec = EniSpec::new([address(30), address(31)]).public(address(30), public_of(address(30)));
    let second = stage.vpc.create_eni(spec)?;
    let mut daemon = Daemon::ready(&stage.instance, &impatient("500ms", "500ms"))?;
    stage.vpc.attach(&second, &stage.instance, "ens6")?;
    let all = [PRIMARY, STAY[0], STAY[1], GOES, address(30)];
    stage.come_to_work(&daemon, &all)?;
    is_settled(&daemon)?;
    let before = everything(&stage.instance)?;

    let pings = stage.ping(&all)?;
    for _ in 0..2 {
        daemon.restart()?;
        daemon.wait_ready(PATIENCE)?;
        let plan = daemon.enictl().run(&["plan", "--json"])?;
        let none = plan.json()?["steps"].as_array().is_some_and(Vec::is_empty);
        ensure!(none, "the first plan after a restart: {}", plan.stdout);
        is_settled(&daemon)?;
        let after = everything(&stage.instance)?;
        ensure!(after == before, "before: {before:#?}, after: {after:#?}");
    }
    pings.missed_none(&daemon)?;
    daemon.terminate()
}

pub(crate) fn most() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let three = [address(22), address(23), address(24)];
    let (grace, mass_grace) = (Duration::from_secs(2), Duration::from_secs(8));
    stage.assign(&[STAY[0]])?;
    stage.assign(&three)?;
    let mut daemon = Daemon::ready(&stage.instance, &impatient("2s", "8s"))?;
    stage.come_to_work(&daemon, &[STAY[0], three[0], three[1], three[2]])?;
    is_settled(&daemon)?;
    let says = |what: &str| -> anyhow::Result<()> {
        let status = status_of(&daemon, three[0])?;
        let mass = status["leaving"]["mass"].as_bool();
        ensure!((what == "mass") == (mass == Some(true)), "status says {status}");
        Ok(())
    };

    // Metadata forgets most of them by mistake: all of them go on working.
    let pings = stage.ping(&[PRIMARY, STAY[0], three[0], three[1], three[2]])?;
    let id = stage.instance.primary.clone();
    let full = stage.vpc.eni(&id)?.ipv4;
    set_addresses(&stage.vpc, &id, &[PRIMARY, STAY[0]])?;
    eventually(PATIENCE, "status says why they stay", &daemon, || says("mass"))?;
    std::thread::sleep(2 * grace);
    set_addresses(&stage.vpc, &id, &full)?;
    eventually(PATIENCE, "status says that they are back", &daemon, || says("back"))?;
    is_settled(&daemon)?;
    pings.missed_none(&daemon)?;
    drop(pings);

    // They are really unassigned: they go, but late.
    let pings = stage.ping(&[PRIMARY, STAY[0]])?;
    let since = Instant::now();
    for address in three {
        stage.unassign(address)?;
    }
    let took = stage.goes(&daemon, three[0], since)?;
    ensure!(took >= mass_grace, "gone after {took:?}");
    for address in &three[1..] {
        stage.goes(&daemon, *address, since)?;
    }
    is_settled(&daemon)?;
    pings.missed_none(&daemon)?;
    daemon.terminate()
}

/// Changes what metadata says, and nothing else.
fn set_addresses(vpc: &Vpc, id: &EniId, addresses: &[Ipv4Addr]) -> anyhow::Result<()> {
    vpc.model().update(|state| {
        let eni = state.enis.get_mut(id).context("no such ENI")?;
        eni.ipv4 = addresses.to_vec();
        Ok(())
    })
}

pub(crate) fn moved() -> anyhow::Result<()> {
    let second = |stage: &Stage| {
        let second = stage.vpc.create_eni(EniSpec::new([address(30)]))?;
        stage.vpc.attach(&second, &stage.instance, "ens6")?;
        anyhow::Ok(second)
    };

    // By hand: the address answers no more.
    let stage = Stage::build()?;
    let eni = second(&stage)?;
    stage.vpc.configure_as_dhcp(&eni)?;
    stage.assign(&[GOES])?;
    stage.instance.run(&["ip", "addr", "add", &format!("{GOES}/32"), "dev", "ens5"])?;
    stage.works(GOES)?;
    stage.vpc.move_address(GOES, &stage.instance.primary, &eni)?;
    is_silent(stage.vpc.internet(), public_of(GOES))?;

    let stage = Stage::build()?;
    let eni = second(&stage)?;
    stage.assign(&[STAY[0], GOES])?;
    // Patient with removals; often asking, so that it notices.
    let mut daemon = Daemon::ready(&stage.instance, "poll_interval = \"200ms\"")?;
    stage.come_to_work(&daemon, &[PRIMARY, STAY[0], GOES])?;
    is_settled(&daemon)?;
    let pings = stage.ping(&[PRIMARY, STAY[0], address(30)])?;
    let to: IpAddr = public_of(GOES).into();
    let mut inward = Conversation::open(stage.vpc.internet(), (to, WHOAMI).into(), &Bound::No)?;
    let to = (stage.vpc.internet_v4(), WHOAMI).into();
    let mut outward = Conversation::open(&stage.instance, to, &Bound::from(GOES))?;
    for (from, to) in [(&stage.instance.primary, &eni), (&eni, &stage.instance.primary)] {
        stage.vpc.move_address(GOES, from, to)?;
        inward.check(PATIENCE).context("the connection to it")?;
        outward.check(PATIENCE).context("the connection from it")?;
        let (with, without) = (stage.vpc.name_of(to)?, stage.vpc.name_of(from)?);
        eventually(PATIENCE, "it has moved", &daemon, || {
            stage.works(GOES)?;
            ensure!(addresses(&stage.instance, &with)?.contains(&GOES), "not on {with}");
            ensure!(!addresses(&stage.instance, &without)?.contains(&GOES), "still on {without}");
            Ok(())
        })?;
    }
    let seen = whoami(&stage.instance, to, &Bound::from(GOES))?;
    ensure!(seen == public_of(GOES), "the internet sees {seen}");
    is_settled(&daemon)?;
    pings.missed_none(&daemon)?;
    daemon.terminate()
}
