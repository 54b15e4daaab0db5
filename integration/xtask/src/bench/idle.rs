//! Daemons with two ENIs each and nothing to do.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use integration::{Daemon, eventually};
use vpc::{Config, EniSpec, Instance, Vpc};

use super::figure::Figure;
use super::process;
use super::small::ip;

/// Daemons of each kind.
const MANY: u8 = 5;
/// What an attach brings with it has ended after this.
const SETTLED: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(15);

struct Idle {
    daemon: Daemon,
    instance: Instance,
    cpu: Duration,
}

fn v4(subnet: u8, number: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, subnet, 10 + number).into()
}

fn v6(subnet: u16, number: u8) -> IpAddr {
    Ipv6Addr::new(0x2600, 0x1f16, 0x67f, 0xf200 + subnet, 0, 0, 0, 10 + u16::from(number)).into()
}

pub(super) fn idle(watch: Duration) -> anyhow::Result<Vec<Figure>> {
    let only_v4 = Config::default().subnet("10.0.1.0/24").subnet("10.0.2.0/24");
    let dual = Config::default()
        .dual_subnet("10.0.1.0/24", "2600:1f16:67f:f201::/64")
        .dual_subnet("10.0.2.0/24", "2600:1f16:67f:f202::/64");
    let (vpc_v4, vpc_dual) = (Vpc::new(only_v4)?, Vpc::new(dual)?);
    let (mut all_v4, mut all_dual) = (start(&vpc_v4, false)?, start(&vpc_dual, true)?);
    sleep(SETTLED);
    for idle in all_v4.iter_mut().chain(&mut all_dual) {
        idle.cpu = process::cpu(idle.daemon.pid()?)?;
    }
    let begin = Instant::now();
    sleep(watch);
    let mut figures = Vec::new();
    for (family, vpc, all, most) in
        [("IPv4", &vpc_v4, &all_v4, 3600.0), ("dual stack", &vpc_dual, &all_dual, 5000.0)]
    {
        figures.extend(figures_of(family, vpc, all, begin, most)?);
    }
    Ok(figures)
}

/// Instances with two ENIs each, one in each subnet, and their daemons.
fn start(vpc: &Vpc, dual: bool) -> anyhow::Result<Vec<Idle>> {
    let spec = |subnet: u8, number: u8| {
        let v6 = dual.then(|| v6(u16::from(subnet), number));
        EniSpec::new([v4(subnet, number)].into_iter().chain(v6))
    };
    let mut all: Vec<Idle> = Vec::new();
    for number in 0..MANY {
        let instance = vpc.instance(&format!("idle{number}"), spec(1, number))?;
        let second = vpc.create_eni(spec(2, number))?;
        vpc.attach(&second, &instance, "ens6")?;
        let daemon = Daemon::ready(&instance, "")?;
        eventually(PATIENCE, "the second ENI has its address", &daemon, || {
            let text = ip(&instance, "-4 addr show dev ens6")?;
            anyhow::ensure!(text.contains(&format!(" {}/", v4(2, number))), "{text}");
            Ok(())
        })?;
        all.push(Idle { daemon, instance, cpu: Duration::ZERO });
    }
    Ok(all)
}

fn figures_of(
    family: &str,
    vpc: &Vpc,
    all: &[Idle],
    begin: Instant,
    most: f64,
) -> anyhow::Result<Vec<Figure>> {
    const TEN_MINUTES: f64 = 600.0;
    const HOUR: f64 = 3600.0;
    let (mut cpu, mut requests, mut rss, mut anon) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for idle in all {
        let pid = idle.daemon.pid()?;
        let spent = process::cpu(pid)?.saturating_sub(idle.cpu).as_secs_f64();
        let (end, seconds) = (Instant::now(), begin.elapsed().as_secs_f64());
        cpu.push(spent / seconds * TEN_MINUTES);
        let asked = vpc.metadata().requests_of(&idle.instance.id, "*");
        let asked = asked.iter().filter(|request| (begin..end).contains(&request.at)).count();
        requests.push(f64::from(u32::try_from(asked)?) / seconds * HOUR);
        rss.push(process::memory(pid, "VmRSS")?);
        anon.push(process::memory(pid, "RssAnon")?);
    }
    Ok(vec![
        Figure::new(&format!("2 ENIs idle, {family}: CPU in 10 min"), "s", cpu).reach(0.3),
        Figure::new("  requests an hour", "", requests).reach(most),
        Figure::new("  RSS", "MiB", rss).reach(8.0),
        Figure::new("  RSS, anonymous", "MiB", anon),
    ])
}
