//! An instance with ENIs of both families on which the daemon's work is cut off, and who watches that
//! nothing else suffers.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::vpc::{
    Bound, Config, EniId, EniSpec, GATEWAY_V6, Instance, IpNet, Netns, Pinger, ROUTER_V6, Vpc,
};
use integration::{Daemon, eventually};
use serde_json::Value;

use crate::pair::{FIRST, picture, same};
use crate::users::{PATIENCE, answers, is_settled, public, status};

/// Proof takes one reading.
pub(crate) const IMPATIENT: &str = "poll_interval = \"100ms\"\n\
    [removal]\nconfirmations = 1\ngrace = \"0s\"\nmass_grace = \"0s\"\n";

pub(crate) fn v4(subnet: u8, host: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, subnet, host).into()
}

pub(crate) fn v6(subnet: u8, host: u8) -> IpAddr {
    let subnet = 0xf200 + u16::from(subnet);
    Ipv6Addr::new(0x2600, 0x1f16, 0x67f, subnet, 0, 0, 0, u16::from(host)).into()
}

fn both(subnet: u8, host: u8) -> [IpAddr; 2] {
    [v4(subnet, host), v6(subnet, host)]
}

/// So many instances share the points of a plan among them.
pub(crate) const PARTS: usize = 3;

/// The prefixes that are delegated to the second ENI.
pub(crate) const PREFIXES: [&str; 2] = ["10.0.2.32/28", "2600:1f16:67f:f202:b::/80"];

/// Between two requests of one watcher.
const INTERVAL: Duration = Duration::from_millis(50);

/// `ens5` is as at boot; the others are attached, and nobody has configured them.
pub(crate) struct Stage {
    pub(crate) vpc: Vpc,
    pub(crate) instance: Instance,
    /// In a subnet of its own; it has secondaries and prefixes.
    pub(crate) second: EniId,
    /// In the second's subnet.
    pub(crate) third: EniId,
    pub(crate) host: Instance,
}

impl Stage {
    /// With `ens6`.
    pub(crate) fn build() -> anyhow::Result<Stage> {
        let config = [1, 2, 0xfe].into_iter().fold(Config::default(), |config, subnet: u8| {
            let six = format!("2600:1f16:67f:f2{subnet:02x}::/64");
            config.dual_subnet(&format!("10.0.{subnet}.0/24"), &six)
        });
        // No client renews the primary's lease, and some trials last for minutes.
        let vpc = Vpc::new(config.rp_filter(1).lease_v6(3600, 7200))?;
        let spec = |addresses: &[IpAddr]| EniSpec::new(addresses.iter().copied()).card(0);
        let primary = spec(&[v4(1, 4), v4(1, 5), v6(1, 4)]).public(FIRST, public(1));
        let instance = vpc.instance("main", primary)?;
        let second = [v4(2, 4), v4(2, 5), v4(2, 6), v6(2, 4), v6(2, 5)];
        let second = PREFIXES.iter().try_fold(spec(&second), |spec, prefix| {
            anyhow::Ok(spec.prefix(prefix.parse::<IpNet>()?))
        })?;
        let second = vpc.create_eni(second)?;
        let third = vpc.create_eni(spec(&both(2, 132)))?;
        let host = vpc.instance("host", EniSpec::new(both(0xfe, 4)))?;
        vpc.attach(&second, &instance, "ens6")?;
        once_up(&instance, "ens6")?;
        Ok(Stage { vpc, instance, second, third, host })
    }

    /// With `ens7` beside `ens6`.
    pub(crate) fn of_siblings() -> anyhow::Result<Stage> {
        let stage = Stage::build()?;
        stage.vpc.attach(&stage.third, &stage.instance, "ens7")?;
        once_up(&stage.instance, "ens7")?;
        Ok(stage)
    }

    /// What the cloud grants to which ENI of the instance at the moment, but what prefixes have.
    pub(crate) fn granted(&self) -> BTreeSet<(EniId, IpAddr)> {
        self.vpc.model().read(|state| {
            let instance = state.instances.get(&self.instance.id);
            let enis = instance.into_iter().flat_map(|instance| state.attached(instance));
            let all = enis.flat_map(|eni| {
                let v4 = eni.ipv4.iter().copied().map(IpAddr::V4);
                let all = v4.chain(eni.ipv6.iter().copied().map(IpAddr::V6));
                all.map(|address| (eni.id.clone(), address))
            });
            all.collect()
        })
    }

    /// All is done, the next plan is empty, and everything granted answers.
    pub(crate) fn is_well(&self, daemon: &Daemon) -> anyhow::Result<()> {
        is_settled(daemon)?;
        self.works()
    }

    /// Everything granted answers.
    pub(crate) fn works(&self) -> anyhow::Result<()> {
        self.granted().into_iter().try_for_each(|(_, address)| answers(&self.host, address))
    }

    /// The same by what metadata has said so far: a start has read all of it.
    pub(crate) fn is_well_since_start(&self, daemon: &Daemon) -> anyhow::Result<()> {
        let said = status(daemon)?;
        ensure!(said["verdict"] == "converged", "{said}");
        let plan = daemon.enictl().run(&["plan", "--json"])?;
        let steps = plan.json()?["steps"].as_array().map(Vec::len);
        ensure!(steps == Some(0), "steps remain: {}{}", plan.stdout, plan.stderr);
        self.works()
    }

    /// Whether the daemon stands still where it was told to; if it does not, all works, and it will
    /// not stand still later either.
    pub(crate) fn pauses(&self, daemon: &Daemon) -> anyhow::Result<bool> {
        let faults = daemon.faults();
        eventually(PATIENCE, "all works, or the daemon stands still", daemon, || {
            if faults.paused().is_some() { Ok(()) } else { self.works() }
        })?;
        // Some steps come after the last address.
        if faults.wait_paused(Duration::from_secs(3)) {
            return Ok(true);
        }
        // What a router that speaks up changes later is not of the plan.
        faults.script("")?;
        Ok(faults.paused().is_some())
    }

    pub(crate) fn gets_well(&self, daemon: &Daemon) -> anyhow::Result<()> {
        eventually(PATIENCE, "all is well", daemon, || self.is_well(daemon))
    }

    /// All that the kernel has, settings included.
    pub(crate) fn picture(&self) -> anyhow::Result<BTreeSet<String>> {
        // Which of IPv6's two gateways is in use depends on who was heard first.
        let same = |line: String| line.replace(&ROUTER_V6.to_string(), &GATEWAY_V6.to_string());
        let same = |line: String| names_sorted(same(line));
        let mut lines: BTreeSet<String> = picture(&self.instance)?.into_iter().map(same).collect();
        for link in ["ens5", "ens6"] {
            for name in ["accept_ra_defrtr", "accept_ra_pinfo"] {
                let name = format!("net.ipv6.conf.{link}.{name}");
                lines.insert(format!("{name} = {}", self.instance.read_sysctl(&name)?));
            }
        }
        Ok(lines)
    }

    /// The state of kernel and ledger.
    pub(crate) fn look(&self, daemon: &Daemon) -> anyhow::Result<State> {
        let ledger = std::fs::read_to_string(daemon.runtime_directory().join("ledger.json"))?;
        Ok(State { kernel: self.picture()?, ledger })
    }

    /// Puts everything back as it was before enid came; nothing of it may be left.
    pub(crate) fn release(&self, daemon: &Daemon, before: &BTreeSet<String>) -> anyhow::Result<()> {
        daemon.enictl().run(&["release", "--all"])?.success()?;
        self.is_as(before, daemon)
    }

    /// The kernel is as in this picture; links that were raised are lowered first.
    pub(crate) fn is_as(&self, before: &BTreeSet<String>, daemon: &Daemon) -> anyhow::Result<()> {
        for link in ["ens6", "ens7"] {
            // It may not be there.
            self.instance.output(&["ip", "link", "set", link, "down"])?;
        }
        eventually(PATIENCE, "it is as before enid", daemon, || same(before, &self.picture()?))
    }
}

/// A link that was never up has no queue yet.
fn once_up(instance: &Instance, link: &str) -> anyhow::Result<()> {
    instance.ip_batch(&[format!("link set {link} up"), format!("link set {link} down")])
}

/// The order of alternative names means nothing.
fn names_sorted(line: String) -> String {
    let parsed = line.strip_prefix("link ").and_then(|link| serde_json::from_str(link).ok());
    let Some(mut link): Option<Value> = parsed else { return line };
    if let Some(names) = link["altnames"].as_array_mut() {
        names.sort_by_key(ToString::to_string);
    }
    format!("link {link}")
}

/// What must be the same whichever way led to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    kernel: BTreeSet<String>,
    ledger: String,
}

impl State {
    pub(crate) fn same(&self, now: &State) -> anyhow::Result<()> {
        same(&self.kernel, &now.kernel)?;
        ensure!(self.ledger == now.ledger, "the ledger was {}, it is {}", self.ledger, now.ledger);
        Ok(())
    }

    /// All is well, and the state comes to be this one.
    pub(crate) fn comes(&self, stage: &Stage, daemon: &Daemon) -> anyhow::Result<()> {
        eventually(PATIENCE, "it is as without the accident", daemon, || {
            stage.is_well_since_start(daemon)?;
            self.same(&stage.look(daemon)?)
        })
    }
}

/// Streams of requests to addresses that must answer throughout, and one to the internet by the
/// default route.
pub(crate) struct Watchers {
    pingers: Vec<(IpAddr, Pinger)>,
}

impl Watchers {
    pub(crate) fn start(
        stage: &Stage,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> anyhow::Result<Watchers> {
        let ping = |from: &Netns, to: IpAddr| -> anyhow::Result<_> {
            Ok((to, Pinger::start(from, to, &Bound::No, INTERVAL)?))
        };
        let addresses = addresses.into_iter();
        let mut pingers: Vec<_> =
            addresses.map(|address| ping(&stage.host, address)).collect::<anyhow::Result<_>>()?;
        for internet in [stage.vpc.internet_v4().into(), stage.vpc.internet_v6().into()] {
            pingers.push(ping(&stage.instance, internet)?);
        }
        Ok(Watchers { pingers })
    }

    /// What was there at boot: the primary ENI's own addresses.
    pub(crate) fn of_the_primary(stage: &Stage) -> anyhow::Result<Watchers> {
        Watchers::start(stage, [v4(1, 4), v6(1, 4)])
    }

    /// Every request so far was answered.
    pub(crate) fn saw_nothing(&self) -> anyhow::Result<()> {
        for (address, pinger) in &self.pingers {
            let report = pinger.until_now();
            let well = report.sent > 0 && report.lost == 0 && report.refused == 0;
            ensure!(well, "{address} was cut off: {report:?}");
        }
        Ok(())
    }
}

/// All of these answer, now.
pub(crate) fn all_answer(
    stage: &Stage,
    addresses: &BTreeSet<IpAddr>,
    daemon: &Daemon,
) -> anyhow::Result<()> {
    for address in addresses {
        answers(&stage.host, *address)
            .with_context(|| format!("it worked before\n{}", daemon.log()))?;
    }
    Ok(())
}

/// The lines of the journal that are errors.
pub(crate) fn errors(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains(" ERROR ")).collect()
}

/// Each is said once.
pub(crate) fn said_once(log: &str) -> anyhow::Result<()> {
    let text = |line: &str| line.split_once(" ERROR ").map(|(_, text)| text.to_owned());
    let said: Vec<String> = errors(log).into_iter().filter_map(text).collect();
    let different: BTreeSet<&String> = said.iter().collect();
    ensure!(different.len() == said.len(), "said more than once: {said:#?}");
    Ok(())
}
