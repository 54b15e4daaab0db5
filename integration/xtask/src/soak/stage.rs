//! Where it happens: an instance with a pool of ENIs, who pings it, and all that is kept about it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use integration::Daemon;
use vpc::imds::Eni;
use vpc::{Config, EniId, EniSpec, Instance, IpNet, Vpc};

use super::dice::Dice;
use super::kernel::{self, Kernel};
use super::life::Life;
use super::operator::Operator;
use super::readings::Readings;
use super::targets::{Silence, Targets};
use super::witness::Witness;
use super::{CONFIG, say};

/// What is told of the past beside a violation.
const REMEMBERED: Duration = Duration::from_secs(30);
/// What the kernel announced is told from so long before a loss, or before a violation of another
/// kind.
const BEFORE: Duration = Duration::from_secs(3);
/// Between two looks at what is watched; a longer time is worth a note.
const HELD_UP: Duration = Duration::from_secs(1);
/// Violations that are shown in full; the others are one line each.
const IN_FULL: usize = 8;

type End = Box<dyn FnOnce(&mut Soak) -> anyhow::Result<()>>;

/// What was set for a time, and what ends it.
pub(super) struct Later {
    pub(super) due: Instant,
    pub(super) what: &'static str,
    pub(super) end: End,
}

/// Everything.
pub(super) struct Soak {
    pub(super) seed: u64,
    pub(super) dice: Dice,
    pub(super) started: Instant,
    /// From here on the process is not started again, to see whether it grows.
    pub(super) lasting: Instant,
    pub(super) targets: Targets,
    pub(super) readings: Readings,
    pub(super) later: Vec<Later>,
    pub(super) operator: Operator,
    pub(super) life: Life,
    /// What somebody else made and enid must leave alone.
    pub(super) foreign: BTreeSet<String>,
    /// Addresses that somebody replaced: they are not enid's any more.
    pub(super) taken: BTreeSet<(EniId, IpAddr)>,
    pub(super) released: BTreeSet<EniId>,
    pub(super) cidrs: BTreeSet<IpNet>,
    /// Since the last rest, something happened that enid finds out by itself after minutes only.
    pub(super) slow: bool,
    /// What enid is told to do with delegated prefixes.
    pub(super) local_prefixes: bool,
    pub(super) counts: BTreeMap<&'static str, u64>,
    pub(super) violations: usize,
    pub(super) rests: Vec<Duration>,
    /// How the instance was before enid.
    pub(super) before: BTreeSet<String>,
    past: VecDeque<(Instant, String)>,
    looked: Instant,
    pub(super) pool: Vec<EniId>,
    pub(super) names: usize,
    witness: Witness,
    pub(super) daemon: Daemon,
    pub(super) instance: Instance,
    // Last, so that what lives in it goes before it.
    pub(super) vpc: Vpc,
}

pub(super) fn v4(subnet: u8, host: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, subnet, host).into()
}

pub(super) fn v6(subnet: u8, host: u8) -> IpAddr {
    let subnet = 0xf200 + u16::from(subnet);
    Ipv6Addr::new(0x2600, 0x1f16, 0x67f, subnet, 0, 0, 0, u16::from(host)).into()
}

/// Each ENI by its subnet and the last part of its first addresses.
const POOL: [(u8, u8); 8] = [(2, 4), (2, 5), (1, 5), (3, 4), (4, 4), (4, 5), (5, 4), (3, 5)];

/// The families of a subnet.
pub(super) fn families(subnet: u8) -> (bool, bool) {
    match subnet {
        3 => (true, false),
        4 => (false, true),
        _ => (true, true),
    }
}

fn spec(subnet: u8, host: u8) -> EniSpec {
    let (four, six) = families(subnet);
    let v4 = four.then(|| v4(subnet, host));
    EniSpec::new(v4.into_iter().chain(six.then(|| v6(subnet, host))))
}

impl Soak {
    pub(super) fn build(seed: u64) -> anyhow::Result<Soak> {
        let vpc = Vpc::new(
            Config::default()
                .dual_subnet("10.0.1.0/24", "2600:1f16:67f:f201::/64")
                .dual_subnet("10.0.2.0/24", "2600:1f16:67f:f202::/64")
                .subnet("10.0.3.0/24")
                .subnet_v6("2600:1f16:67f:f204::/64")
                .dual_subnet("10.0.5.0/24", "2600:1f16:67f:f205::/64")
                .dual_subnet("10.0.254.0/24", "2600:1f16:67f:f2fe::/64")
                .lease_v6(86_400, 86_400),
        )?;
        let host = vpc.instance("host", spec(254, 4))?;
        let other = vpc.instance("other", spec(5, 200))?;
        let instance = vpc.instance("main", spec(1, 4))?;
        instance.ip_batch(&[
            // Nobody renews a lease here.
            "addr change 10.0.1.4/24 dev ens5 valid_lft forever preferred_lft forever".to_owned(),
            "link add lab0 type bridge".to_owned(),
            "link set lab0 up".to_owned(),
            "addr add 192.0.2.1/25 dev lab0".to_owned(),
        ])?;
        let pool =
            vpc.create_enis(POOL.iter().map(|(subnet, host)| spec(*subnet, *host)).collect())?;
        let targets = Targets::start(&host, [v4(5, 200), v6(5, 200)])?;
        let before = picture(&Kernel::read(&instance)?, &instance)?;
        let witness = Witness::start(&instance)?;
        let daemon = Daemon::ready(&instance, CONFIG)?;
        drop(other);
        let now = Instant::now();
        let mut soak = Soak {
            seed,
            dice: Dice::new(seed),
            started: now,
            lasting: now,
            targets,
            readings: Readings::default(),
            later: Vec::new(),
            operator: Operator::default(),
            life: Life::start(&daemon)?,
            foreign: BTreeSet::new(),
            taken: BTreeSet::new(),
            released: BTreeSet::new(),
            cidrs: BTreeSet::new(),
            slow: false,
            local_prefixes: false,
            counts: BTreeMap::new(),
            violations: 0,
            rests: Vec::new(),
            before,
            past: VecDeque::new(),
            looked: now,
            pool,
            names: 6,
            witness,
            daemon,
            instance,
            vpc,
        };
        soak.readings.changed(&soak.vpc, &soak.instance, now);
        let primary = soak.instance.primary.clone();
        for address in [v4(1, 4), v6(1, 4)] {
            soak.targets.add_strict(address, &primary)?;
        }
        Ok(soak)
    }

    /// The ENIs that the cloud has attached to the instance, the primary one among them.
    pub(super) fn attached(&self) -> Vec<Eni> {
        self.vpc.model().read(|state| {
            let found = state.instances.get(&self.instance.id);
            found.into_iter().flat_map(|found| state.attached(found)).cloned().collect()
        })
    }

    /// Those beside the primary one.
    pub(super) fn others(&self) -> Vec<Eni> {
        let mut all = self.attached();
        all.retain(|eni| eni.id != self.instance.primary);
        all
    }

    /// Notes what happens, for whom has to find out why something went wrong.
    pub(super) fn note(&mut self, text: impl Into<String>) {
        let now = Instant::now();
        self.past.push_back((now, text.into()));
        while self.past.front().is_some_and(|(at, _)| now.duration_since(*at) > REMEMBERED) {
            self.past.pop_front();
        }
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Something that must not be so; `scene` is what the kernel said, else it is asked now.
    pub(super) fn violation(&mut self, what: &str, scene: Option<String>) -> anyhow::Result<()> {
        self.violations += 1;
        let at = self.started.elapsed().as_secs_f64();
        say(&format!("VIOLATION at {at:.1} s, seed {}: {what}", self.seed))?;
        if self.violations > IN_FULL {
            return Ok(());
        }
        say("  what happened before:")?;
        let now = Instant::now();
        for (then, text) in &self.past {
            let ago = now.duration_since(*then).as_secs_f64();
            say(&format!("    {ago:5.1} s ago  {text}"))?;
        }
        say("  what enid said last:")?;
        for line in self.life.journal.last() {
            say(&format!("    {line}"))?;
        }
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        say(&format!("  how busy the machine is: {}", load.trim_end()))?;
        say("  what the kernel said:")?;
        let scene = scene.unwrap_or_else(|| {
            let said = self.witness.said(now.checked_sub(BEFORE).unwrap_or(now), now);
            said + &kernel::describe(&self.instance)
        });
        for line in scene.lines() {
            say(&format!("    {line}"))?;
        }
        Ok(())
    }

    /// Changes what metadata tells, and keeps account of when it did.
    pub(super) fn change(
        &mut self,
        act: impl FnOnce(&mut Soak) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.readings.absorb(&self.vpc, &self.instance);
        let from = Instant::now();
        act(self)?;
        self.readings.changed(&self.vpc, &self.instance, from);
        Ok(())
    }

    /// Ends something after a while, or as soon as quiet is asked for.
    pub(super) fn after(
        &mut self,
        time: Duration,
        what: &'static str,
        end: impl FnOnce(&mut Soak) -> anyhow::Result<()> + 'static,
    ) {
        self.later.push(Later { due: Instant::now() + time, what, end: Box::new(end) });
    }

    /// Ends what is due, or all of it.
    pub(super) fn end_due(&mut self, all: bool) -> anyhow::Result<()> {
        let now = Instant::now();
        let is_due = |later: &Later| all || later.due <= now;
        let (due, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.later).into_iter().partition(is_due);
        self.later = rest;
        for later in due {
            self.note(format!("over: {}", later.what));
            (later.end)(self)?;
        }
        Ok(())
    }

    /// Whether something of that name still goes on.
    pub(super) fn goes_on(&self, what: &str) -> bool {
        self.later.iter().any(|later| later.what == what)
    }

    /// Looks at everything that is watched all the time.
    pub(super) fn tick(&mut self) -> anyhow::Result<()> {
        self.end_due(false)?;
        self.readings.absorb(&self.vpc, &self.instance);
        let now = Instant::now();
        let pause = now.duration_since(std::mem::replace(&mut self.looked, now));
        if pause > HELD_UP {
            self.note(format!("nothing was looked at for {pause:.1?}"));
        }
        let readings = &self.readings;
        let fleeting: BTreeSet<IpAddr> = self
            .targets
            .all
            .iter()
            .filter(|target| readings.may_go(&target.eni, target.address, now))
            .map(|target| target.address)
            .collect();
        let why = "metadata lacks it for long";
        self.targets.begin_new(why, |target| fleeting.contains(&target.address));
        self.targets.over(why, |target| !fleeting.contains(&target.address));
        let instance = self.instance.clone();
        for silence in self.targets.tick(|| kernel::describe(&instance)) {
            self.lost(silence)?;
        }
        self.follow_journal()?;
        self.follow_process()?;
        self.follow_operator()
    }
}

impl Soak {
    fn lost(&mut self, silence: Silence) -> anyhow::Result<()> {
        let ago = |at: Instant| at.elapsed().as_secs_f64();
        let what = format!(
            "{} of {} lost {} requests, sent {:.2} to {:.2} s ago",
            silence.address,
            silence.eni,
            silence.lost,
            ago(silence.first),
            ago(silence.last),
        );
        let from = silence.first.checked_sub(BEFORE).unwrap_or(silence.first);
        let said = self.witness.said(from, silence.last + HELD_UP);
        let scene = silence.scene.unwrap_or_else(|| kernel::describe(&self.instance));
        self.violation(&what, Some(said + &scene))
    }
}

/// All that `ip` shows of an instance, without what passes with time.
pub(super) fn picture(kernel: &Kernel, instance: &Instance) -> anyhow::Result<BTreeSet<String>> {
    let mut all = kernel.foreign();
    for link in &kernel.links {
        all.insert(format!(
            "link {} {} up {} group {} {:?}",
            link.index, link.name, link.up, link.group, link.other_names
        ));
        for (address, length) in &link.addresses {
            all.insert(format!("address {address}/{length} on {}", link.index));
        }
    }
    for words in [
        ["ip", "-4", "-N", "rule"].as_slice(),
        &["ip", "-6", "-N", "rule"],
        &["ip", "-4", "-N", "route", "show", "table", "all"],
        &["ip", "-6", "-N", "route", "show", "table", "all"],
    ] {
        let said = instance.run(words)?;
        // The kernel's own routes settle a while after a link is up, and some run out.
        let own = |line: &&str| line.contains(" proto 2 ");
        let timeless =
            |line: &str| line.split(" expires ").next().unwrap_or_default().trim().to_owned();
        all.extend(said.lines().filter(|line| !own(line)).map(timeless));
    }
    Ok(all)
}
