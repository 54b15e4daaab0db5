//! The largest instance: 24 ENIs with 64 IPv4 addresses each, every ENI in its own subnet.

use std::net::{IpAddr, Ipv4Addr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use enid_core::plan::Step;
use integration::{Daemon, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vpc::{Config, EniSpec, Instance, Vpc};

use super::figure::Figure;
use super::small::{all_answer, ip, pingers};
use super::{bare, process};

const ENIS: u8 = 24;
const ADDRESSES: u8 = 64;
/// The host number of the first address in each subnet.
const FIRST: u8 = 10;
const RUNS: usize = 5;
/// Passes with nothing to do.
const IDLE_PASSES: usize = 21;
const PATIENCE: Duration = Duration::from_secs(30);
/// Requests that the daemon may send at once, and then each second.
const BUDGET: f64 = 50.0;
/// No poll disturbs, and the daemon tells of its passes.
const QUIET: &str = "poll_interval = \"10m\"\n[log]\nlevel = \"info,enid::pass=debug\"\n";

/// The names of figures that are compared with each other.
pub(super) const PASS: &str = "24 × 64 from nothing in one pass, wall";
pub(super) const BATCH: &str = "  the same steps as a bare batch, wall";
pub(super) const IP: &str = "  the same objects by ip -batch, wall";

/// The instance, and a host in another subnet.
pub(super) struct Large {
    daemon: Option<Daemon>,
    instance: Instance,
    host: Instance,
    vpc: Vpc,
}

fn address(eni: u8, number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, eni, FIRST + number)
}

fn link(eni: u8) -> String {
    format!("ens{}", 5 + eni)
}

/// A pass as the daemon's log tells it.
#[derive(Clone, Copy, Debug, Default)]
struct Pass {
    steps: u64,
    wall: Duration,
    cpu: Duration,
    /// Of the first look: reading the kernel, deciding.
    snapshot: Duration,
    decide: Duration,
}

impl Large {
    pub(super) fn build() -> anyhow::Result<Large> {
        let mut config = Config::default().subnet("10.0.254.0/24");
        for subnet in 0..ENIS {
            config = config.subnet(&format!("10.0.{subnet}.0/24"));
        }
        let vpc = Vpc::new(config)?;
        let host = vpc.instance("host", EniSpec::new([Ipv4Addr::new(10, 0, 254, 4)]))?;
        let spec = |eni| EniSpec::new((0..ADDRESSES).map(|number| address(eni, number)));
        let instance = vpc.instance("large", spec(0))?;
        let enis = vpc.create_enis((1..ENIS).map(spec).collect())?;
        let names: Vec<String> = (1..ENIS).map(link).collect();
        let plugs: Vec<_> = enis.iter().zip(names.iter().map(String::as_str)).collect();
        vpc.attach_all(&plugs, &instance)?;
        Ok(Large { daemon: None, instance, host, vpc })
    }

    /// IPv4 addresses that the instance has, loopback's apart.
    fn present(&self) -> anyhow::Result<usize> {
        let text = ip(&self.instance, "-4 -o addr show")?;
        Ok(text.lines().filter(|line| !line.contains(" lo ")).count())
    }

    fn all_present(&self, daemon: &Daemon) -> anyhow::Result<()> {
        let all = usize::from(ENIS) * usize::from(ADDRESSES);
        eventually(PATIENCE, "all addresses are there", daemon, || {
            let present = self.present()?;
            ensure!(present == all, "{present} of {all}");
            Ok(())
        })
    }

    /// Undoes all that enid does.
    fn wipe(&self) -> anyhow::Result<()> {
        let links = self.instance.ip_json(&["link"])?;
        let names = |link: &serde_json::Value| -> Vec<String> {
            let list = link["altnames"].as_array().into_iter().flatten();
            list.filter_map(|name| name.as_str().map(str::to_owned)).collect()
        };
        let mut lines = vec!["rule flush protocol 233".to_owned()];
        for found in links.as_array().into_iter().flatten() {
            let name = found["ifname"].as_str().unwrap_or_default();
            if name != "lo" && name != link(0) {
                lines.push(format!("addr flush dev {name} scope global"));
                let old = names(found).into_iter();
                lines.extend(old.map(|old| format!("link property del dev {name} altname {old}")));
                lines.push(format!("link set {name} down mtu 1500 group 0"));
            }
        }
        // The first address of the primary ENI is its boot's.
        let text = ip(&self.instance, &format!("-4 -o addr show dev {}", link(0)))?;
        let own = (1..ADDRESSES).map(|number| format!("{}/32", address(0, number)));
        let own = own.filter(|own| text.contains(&format!(" {own} ")));
        lines.extend(own.map(|own| format!("addr del {own} dev {}", link(0))));
        lines.push(format!("link set {} group 0", link(0)));
        lines.push("route flush table all proto 233".to_owned());
        self.instance.ip_batch(&lines)?;
        for eni in 1..ENIS {
            for key in ["accept_ra_defrtr", "accept_ra_pinfo"] {
                self.instance.sysctl(&format!("net.ipv6.conf.{}.{key}", link(eni)), "1")?;
            }
        }
        ensure!(self.present()? == 1, "addresses are left");
        Ok(())
    }

    pub(super) fn cold(&mut self) -> anyhow::Result<Vec<Figure>> {
        self.daemon = None;
        let (mut times, mut requests) = (Vec::new(), Vec::new());
        let last: Vec<IpAddr> = (0..ENIS).map(|eni| address(eni, ADDRESSES - 1).into()).collect();
        for _ in 0..RUNS {
            self.wipe()?;
            let pingers = pingers(&self.host, &last, Duration::from_millis(20))?;
            let start = Instant::now();
            let mut daemon = Daemon::start(&self.instance, "")?;
            let end = all_answer(&pingers, &daemon)?;
            drop(pingers);
            let asked = self.vpc.metadata().requests_of(&self.instance.id, "*");
            let asked = asked.iter().filter(|request| (start..=end).contains(&request.at)).count();
            times.push(end - start);
            requests.push(f64::from(u32::try_from(asked)?));
            self.all_present(&daemon)?;
            daemon.terminate()?;
        }
        let budget = requests.iter().map(|asked| (asked - BUDGET).max(0.0) / BUDGET * 1000.0);
        Ok(vec![
            Figure::times("24 × 64, daemon starts → all answer", &times),
            Figure::new("  metadata requests until then", "", requests.clone()),
            Figure::new("  the request budget alone needs", "ms", budget.collect()),
        ])
    }

    /// Starts a daemon that does not poll, and waits until it has nothing to do; or takes the one
    /// that runs.
    fn settle(&mut self) -> anyhow::Result<Daemon> {
        if let Some(daemon) = self.daemon.take() {
            return Ok(daemon);
        }
        let daemon = Daemon::start(&self.instance, QUIET)?;
        self.all_present(&daemon)?;
        quiet(&daemon)?;
        Ok(daemon)
    }

    pub(super) fn one_pass(&mut self) -> anyhow::Result<Vec<Figure>> {
        // A fresh one has no fights to remember.
        self.daemon = None;
        self.wipe()?;
        let daemon = self.settle()?;
        let pid = Pid::from_raw(i32::try_from(daemon.pid()?)?);
        let mut found = Vec::new();
        for _ in 0..RUNS {
            kill(pid, Signal::SIGSTOP)?;
            let wiped = self.wipe();
            let known = passes(&daemon).len();
            kill(pid, Signal::SIGCONT)?;
            wiped?;
            // A pass that was under way when the daemon was stopped may come before it.
            let new = || passes(&daemon).into_iter().skip(known).filter(|pass| pass.steps > 0);
            eventually(PATIENCE, "a pass that does something", &daemon, || {
                new().next().context("none has ended")
            })?;
            self.all_present(&daemon)?;
            quiet(&daemon)?;
            let new: Vec<Pass> = new().collect();
            let [only] = new.as_slice() else {
                bail!("one pass was not enough: {new:?}");
            };
            found.push(*only);
        }
        self.daemon = Some(daemon);
        let times = |of: fn(&Pass) -> Duration| found.iter().map(of).collect::<Vec<_>>();
        let steps = found.iter().map(|pass| u32::try_from(pass.steps).map(f64::from));
        Ok(vec![
            Figure::times(PASS, &times(|pass| pass.wall)).reach(150.0),
            Figure::times("  CPU", &times(|pass| pass.cpu)),
            Figure::times("  of it deciding", &times(|pass| pass.decide)),
            Figure::new("  steps", "", steps.collect::<Result<_, _>>()?),
        ])
    }

    pub(super) fn nothing_to_do(&mut self) -> anyhow::Result<Vec<Figure>> {
        let daemon = self.settle()?;
        let known = passes(&daemon).len();
        for run in 0..IDLE_PASSES {
            let verb = if run % 2 == 0 { "add" } else { "del" };
            ip(&self.instance, &format!("rule {verb} pref 30000 from 192.0.2.1 lookup main"))?;
            eventually(PATIENCE, "a pass", &daemon, || {
                ensure!(passes(&daemon).len() > known + run, "none has ended");
                Ok(())
            })?;
            sleep(Duration::from_millis(30));
        }
        ip(&self.instance, "rule del pref 30000")?;
        let found: Vec<Pass> = passes(&daemon).into_iter().skip(known).take(IDLE_PASSES).collect();
        ensure!(found.iter().all(|pass| pass.steps == 0), "there was something to do");
        let times = |of: fn(&Pass) -> Duration| found.iter().map(of).collect::<Vec<_>>();
        let pid = daemon.pid()?;
        let mut figures = vec![
            Figure::times("24 × 64, a pass with nothing to do, CPU", &times(|pass| pass.cpu))
                .reach(15.0),
            Figure::times("  wall", &times(|pass| pass.wall)),
            Figure::times("  of it reading the kernel", &times(|pass| pass.snapshot)),
            Figure::times("  of it deciding", &times(|pass| pass.decide)).reach(5.0),
        ];
        for (family, command) in [("IPv4", "-4 rule show"), ("IPv6", "-6 rule show")] {
            let text = ip(&self.instance, command)?;
            let rules = text.lines().filter(|line| line.contains("proto 233")).count();
            let each = f64::from(u32::try_from(rules)?) / f64::from(ENIS);
            figures
                .push(Figure::new(&format!("  {family} rules an ENI"), "", vec![each]).reach(3.0));
        }
        for (name, field) in [("  RSS", "VmRSS"), ("  RSS, anonymous", "RssAnon")] {
            figures.push(Figure::new(name, "MiB", vec![process::memory(pid, field)?]));
        }
        self.daemon = Some(daemon);
        Ok(figures)
    }

    pub(super) fn asked(&mut self) -> anyhow::Result<Vec<Figure>> {
        let daemon = self.settle()?;
        let mut figures = Vec::new();
        for words in [&["status"][..], &["status", "--all"], &["status", "--json"], &["plan"]] {
            let mut times = Vec::new();
            for _ in 0..RUNS {
                let started = Instant::now();
                let said = daemon.enictl().run(words)?;
                times.push(started.elapsed());
                ensure!(said.code == Some(0), "{said:?}");
            }
            let figure = Figure::times(&format!("24 × 64, enictl {}", words.join(" ")), &times);
            figures.push(figure.reach(20.0));
        }
        self.daemon = Some(daemon);
        Ok(figures)
    }

    pub(super) fn bare(&mut self) -> anyhow::Result<Vec<Figure>> {
        let mut daemon = self.settle()?;
        daemon.terminate()?;
        let whole = bare::snapshot(&self.instance)?;
        self.wipe()?;
        let raw = bare::snapshot(&self.instance)?;
        let steps = bare::steps(&raw, &whole)?;
        let lines = bare::lines(&steps, &whole);
        let (mut walls, mut cpus, mut ips) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..RUNS {
            let (wall, cpu) = bare::apply(&self.instance, &steps)?;
            walls.push(wall);
            cpus.push(cpu);
            self.whole_again(&steps)?;
            self.wipe()?;
            let start = Instant::now();
            self.instance.ip_batch(&lines)?;
            ips.push(start.elapsed());
            self.whole_again(&steps)?;
            self.wipe()?;
        }
        let count = f64::from(u32::try_from(steps.len())?);
        Ok(vec![
            Figure::times(BATCH, &walls),
            Figure::times("  CPU", &cpus),
            Figure::new("  steps", "", vec![count]),
            Figure::times(IP, &ips),
        ])
    }

    fn whole_again(&self, steps: &[Step]) -> anyhow::Result<()> {
        let wanted = usize::from(ENIS) * usize::from(ADDRESSES);
        let present = self.present()?;
        ensure!(present == wanted, "{present} addresses after {} steps", steps.len());
        Ok(())
    }
}

/// The passes so far.
fn passes(daemon: &Daemon) -> Vec<Pass> {
    let mut passes = Vec::new();
    let (mut pass, mut begun) = (Pass::default(), false);
    for line in daemon.log().lines() {
        let field = |name: &str| -> u64 {
            let found = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            found.and_then(|number| number.parse().ok()).unwrap_or_default()
        };
        let time = |name: &str| Duration::from_micros(field(name));
        if line.contains(" looked ") && !begun {
            begun = true;
            (pass.snapshot, pass.decide) = (time("snapshot_us"), time("decide_us"));
        } else if line.contains(" passed ") {
            (pass.steps, pass.wall, pass.cpu) = (field("steps"), time("took_us"), time("cpu_us"));
            passes.push(std::mem::take(&mut pass));
            begun = false;
        }
    }
    passes
}

/// Waits until there has been no pass for longer than the kernel takes to find out that a link's
/// own IPv6 address is unique.
fn quiet(daemon: &Daemon) -> anyhow::Result<()> {
    let start = Instant::now();
    let (mut count, mut since) = (passes(daemon).len(), Instant::now());
    while since.elapsed() < Duration::from_millis(2500) {
        ensure!(start.elapsed() < PATIENCE, "the daemon finds no rest");
        sleep(Duration::from_millis(50));
        let now = passes(daemon).len();
        if now != count {
            (count, since) = (now, Instant::now());
        }
    }
    Ok(())
}
