//! An instance with few ENIs: how soon what changes in the cloud or in the kernel is in force.

use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration::{Daemon, eventually};
use vpc::{Bound, Config, EniId, EniSpec, Instance, Pinger, Process, Vpc};

use super::figure::Figure;

/// Runs of each measurement.
const RUNS: u8 = 11;
const PATIENCE: Duration = Duration::from_secs(15);
/// The budget of requests is full again after this.
const REST: Duration = Duration::from_millis(1200);
/// Own secondary addresses of the second ENI, in its subnet.
const FIRST_SECONDARY: u8 = 101;

/// An instance with two ENIs, a host in another subnet, and the daemon.
struct Small {
    daemon: Daemon,
    instance: Instance,
    second: EniId,
    host: Instance,
    vpc: Vpc,
}

fn in_second(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 2, host)
}

impl Small {
    fn build(extra: &str) -> anyhow::Result<Small> {
        let mut config = Config::default().subnet("10.0.254.0/24");
        for subnet in 1..=u32::from(10 + RUNS) {
            config = config.subnet(&format!("10.0.{subnet}.0/24"));
        }
        let vpc = Vpc::new(config)?;
        let host = vpc.instance("host", EniSpec::new([Ipv4Addr::new(10, 0, 254, 4)]))?;
        let instance = vpc.instance("small", EniSpec::new([Ipv4Addr::new(10, 0, 1, 4)]))?;
        let hosts = (0..RUNS).map(|run| FIRST_SECONDARY + run);
        let addresses = [4].into_iter().chain(hosts).map(in_second);
        let second = vpc.create_eni(EniSpec::new(addresses))?;
        vpc.attach(&second, &instance, "ens6")?;
        let daemon = Daemon::ready(&instance, extra)?;
        let small = Small { daemon, instance, second, host, vpc };
        let last = small.pinger(in_second(FIRST_SECONDARY + RUNS - 1))?;
        answered(&last, &small)?;
        sleep(REST);
        Ok(small)
    }

    /// Pings from another subnet every millisecond.
    fn pinger(&self, to: Ipv4Addr) -> anyhow::Result<Pinger> {
        Pinger::start(&self.host, to.into(), &Bound::No, Duration::from_millis(1))
    }
}

/// Waits for the first answer and tells when it came.
fn answered(pinger: &Pinger, small: &Small) -> anyhow::Result<Instant> {
    eventually(PATIENCE, "it answers", &small.daemon, || {
        pinger.report().first_answer.context("no answer")
    })
}

fn since(then: Instant, now: Instant) -> anyhow::Result<Duration> {
    now.checked_duration_since(then).context("it answered before its time")
}

pub(super) fn link_event() -> anyhow::Result<Vec<Figure>> {
    let small = Small::build("")?;
    let mut times = Vec::new();
    for run in 0..RUNS {
        let address = Ipv4Addr::new(10, 0, 11 + run, 4);
        let eni = small.vpc.create_eni(EniSpec::new([address]))?;
        let pinger = small.pinger(address)?;
        sleep(Duration::from_millis(20));
        let plugged = small.vpc.attach(&eni, &small.instance, &format!("ens{}", 11 + run))?;
        times.push(since(plugged.event, answered(&pinger, &small)?)?);
        small.vpc.detach(&eni)?;
        sleep(REST);
    }
    Ok(vec![Figure::times("link event → the ENI answers", &times).reach(30.0)])
}

pub(super) fn refreshed() -> anyhow::Result<Vec<Figure>> {
    let small = Small::build("poll_interval = \"10m\"")?;
    let enictl = small.daemon.enictl();
    let mut times = Vec::new();
    for run in 0..RUNS {
        let address = in_second(11 + run);
        let pinger = small.pinger(address)?;
        small.vpc.assign(&small.second, address, None)?;
        let start = Instant::now();
        enictl.run(&["refresh"])?.success()?;
        times.push(since(start, answered(&pinger, &small)?)?);
        sleep(REST);
    }
    Ok(vec![Figure::times("secondary assigned → answers, enictl refresh", &times).reach(50.0)])
}

pub(super) fn polled() -> anyhow::Result<Vec<Figure>> {
    let small = Small::build("")?;
    let status = small.daemon.enictl().run(&["status", "--json"])?.json()?;
    let interval = status["metadata"]["poll_interval_ms"].as_f64().context("no poll interval")?;
    let lists = format!("*/{}/local-ipv4s", small.vpc.eni(&small.second)?.mac);
    let (mut times, mut lags) = (Vec::new(), Vec::new());
    for run in 0..5 {
        // The last run ended with a poll.
        sleep(Duration::from_millis(200 + 900 * u64::from(run)));
        let address = in_second(11 + run);
        let pinger = small.pinger(address)?;
        small.vpc.assign(&small.second, address, None)?;
        let start = Instant::now();
        let answer = answered(&pinger, &small)?;
        let requests = small.vpc.metadata().requests_of(&small.instance.id, &lists);
        let shown = requests.iter().find(|request| request.at >= start);
        times.push(since(start, answer)?);
        lags.push(since(shown.context("metadata was not asked")?.at, answer)?);
    }
    Ok(vec![
        Figure::times("secondary assigned → answers, polling", &times).reach(interval + 100.0),
        Figure::times("  of it after the request that shows it", &lags).reach(100.0),
    ])
}

pub(super) fn deleted() -> anyhow::Result<Vec<Figure>> {
    let small = Small::build("")?;
    let monitor = Monitor::start(&small.instance)?;
    let mark = "proto 233";
    let lines = |command: &str| -> anyhow::Result<Vec<String>> {
        let text = ip(&small.instance, command)?;
        Ok(text.lines().filter(|line| line.contains(mark)).map(str::to_owned).collect())
    };
    let hosts = (0..RUNS).map(|run| in_second(FIRST_SECONDARY + run));
    let addresses =
        hosts.map(|host| (format!("addr del {host}/32 dev ens6"), format!(" {host}/32 ")));
    let addresses: Vec<_> = addresses.collect();
    let routes = lines("route show table all")?.into_iter();
    let routes: Vec<_> =
        routes.map(|line| (format!("route del {line}"), line.trim().to_owned())).collect();
    let rule = |line: String| {
        let (priority, rest) = line.split_once(":\t")?;
        Some((format!("rule del pref {priority} {rest}"), line.trim().to_owned()))
    };
    let rules: Vec<_> = lines("rule show")?.into_iter().filter_map(rule).collect();
    let mut figures = Vec::new();
    for (what, objects) in [("address", addresses), ("route", routes), ("rule", rules)] {
        ensure!(!objects.is_empty(), "the daemon made no {what}");
        let mut times = Vec::new();
        // The same object twice at most: what is made often in a minute is fought over.
        for (delete, sign) in objects.iter().cycle().take(usize::from(RUNS).min(2 * objects.len()))
        {
            monitor.forget();
            ip(&small.instance, delete)?;
            times.push(monitor.gap(sign).with_context(|| format!("`ip {delete}`"))?);
            sleep(Duration::from_millis(200));
        }
        let name = format!("own {what} deleted by hand → back");
        figures.push(Figure::times(&name, &times).reach(20.0));
    }
    Ok(figures)
}

/// Runs `ip` inside.
pub(super) fn ip(instance: &Instance, line: &str) -> anyhow::Result<String> {
    let words: Vec<&str> = ["ip"].into_iter().chain(line.split_whitespace()).collect();
    instance.run(&words)
}

/// `ip -ts monitor`: what the kernel tells everybody, with times.
struct Monitor {
    lines: Receiver<String>,
    _process: Process,
}

impl Monitor {
    fn start(instance: &Instance) -> anyhow::Result<Monitor> {
        let mut command = Command::new("ip");
        command.args(["-ts", "monitor", "address", "route", "rule"]).stdout(Stdio::piped());
        let mut process = instance.spawn(command)?;
        let output = process.stdout.take().context("no output of ip monitor")?;
        let (sender, lines) = channel();
        // It ends with the process.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        // It tells nothing when it has begun to listen: tell it something.
        let probe = "rule add pref 30000 from 192.0.2.1 lookup main";
        for _ in 0..100 {
            ip(instance, probe)?;
            ip(instance, &probe.replace("add", "del"))?;
            if lines.recv_timeout(Duration::from_millis(50)).is_ok() {
                sleep(Duration::from_millis(200));
                return Ok(Monitor { lines, _process: process });
            }
        }
        anyhow::bail!("`ip monitor` says nothing")
    }

    fn forget(&self) {
        while self.lines.try_recv().is_ok() {}
    }

    /// The time between the disappearance of an object and its return.
    fn gap(&self, sign: &str) -> anyhow::Result<Duration> {
        let mut gone = None;
        loop {
            let line = self.lines.recv_timeout(PATIENCE).context("it did not come back")?;
            let Some((time, what)) = stamped(&line).filter(|(_, what)| what.contains(sign)) else {
                continue;
            };
            match gone {
                None if what.starts_with("Deleted ") => gone = Some(time),
                None => {}
                Some(_) if what.starts_with("Deleted ") => {}
                // It may be midnight in between.
                Some(gone) if time < gone => return Ok(time + Duration::from_secs(86_400) - gone),
                Some(gone) => return Ok(time - gone),
            }
        }
    }
}

/// The time of day of `[2026-11-21T01:06:03.623485] …`, and what is told.
fn stamped(line: &str) -> Option<(Duration, &str)> {
    let (stamp, what) = line.strip_prefix('[')?.split_once("] ")?;
    let (_, clock) = stamp.split_once('T')?;
    let mut parts = clock.split(':');
    let hours: u64 = parts.next()?.parse().ok()?;
    let minutes: u64 = parts.next()?.parse().ok()?;
    let seconds: f64 = parts.next()?.parse().ok()?;
    Some((
        Duration::from_secs(hours * 3600 + minutes * 60) + Duration::from_secs_f64(seconds),
        what,
    ))
}

/// Waits until every address answers; the last of the first answers.
pub(super) fn all_answer(pingers: &[Pinger], daemon: &Daemon) -> anyhow::Result<Instant> {
    eventually(Duration::from_secs(60), "all answer", daemon, || {
        let firsts = pingers.iter().map(|pinger| pinger.report().first_answer);
        let firsts: Option<Vec<Instant>> = firsts.collect();
        firsts.and_then(|firsts| firsts.into_iter().max()).context("one does not answer")
    })
}

/// Pings each address from a host, at this pace.
pub(super) fn pingers(
    host: &Instance,
    addresses: &[IpAddr],
    pace: Duration,
) -> anyhow::Result<Vec<Pinger>> {
    addresses.iter().map(|address| Pinger::start(host, *address, &Bound::No, pace)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_a_time_of_day() {
        let line = "[2026-11-21T01:06:03.250000] Deleted 10.9.0.0/16 dev ens6 ";
        let (time, what) = stamped(line).unwrap();
        assert_eq!(time, Duration::from_millis(3_963_250));
        assert_eq!(what, "Deleted 10.9.0.0/16 dev ens6 ");
        assert_eq!(stamped("       valid_lft forever"), None);
    }
}
