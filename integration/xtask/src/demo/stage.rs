//! Where the story happens: an instance in a VPC, the daemon in it, and who pings it.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail};
use integration::{Daemon, Scene as _};
use vpc::{Config, EniId, EniSpec, Instance, Vpc};

use super::pings::Target;
use super::screen::ms;

pub(super) const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
pub(super) const SECOND: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 4);
pub(super) const EXTRA: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 9);
pub(super) const EXTRA_PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 3);

const FIRST_PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const SECOND_PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

/// No step waits longer for anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(8);

pub(super) struct Stage {
    daemon: Option<Daemon>,
    /// How much of the daemon's log was shown.
    shown: usize,
    pub(super) targets: [Target; 3],
    pub(super) second: EniId,
    pub(super) instance: Instance,
    /// What the kernel said after the daemon's start.
    pub(super) at_first: String,
    // Last, so that the instance is gone before it.
    pub(super) vpc: Vpc,
}

impl Stage {
    pub(super) fn build() -> anyhow::Result<Stage> {
        let vpc = Vpc::new(Config::default().subnet("10.0.1.0/24").subnet("10.0.2.0/24"))?;
        let instance = vpc.instance("main", EniSpec::new([FIRST]).public(FIRST, FIRST_PUBLIC))?;
        let second = vpc.create_eni(EniSpec::new([SECOND]).public(SECOND, SECOND_PUBLIC))?;
        let target = |public| Target::start(vpc.internet(), public);
        let targets = [target(FIRST_PUBLIC)?, target(SECOND_PUBLIC)?, target(EXTRA_PUBLIC)?];
        let at_first = String::new();
        Ok(Stage { daemon: None, shown: 0, targets, second, instance, at_first, vpc })
    }

    /// Starts the daemon and waits until it is ready.
    pub(super) fn start(&mut self, config: &str) -> anyhow::Result<()> {
        self.daemon = Some(Daemon::ready(&self.instance, config)?);
        Ok(())
    }

    pub(super) fn daemon(&mut self) -> anyhow::Result<&mut Daemon> {
        self.daemon.as_mut().context("enid does not run yet")
    }

    /// Runs the operator's command and gives what it said.
    pub(super) fn enictl(&mut self, arguments: &[&str]) -> anyhow::Result<String> {
        self.daemon()?.enictl().run(arguments)?.success()
    }

    /// What the daemon said since the last time, and how long after a moment of the wall clock.
    pub(super) fn news(&mut self, moment: SystemTime) -> Vec<String> {
        let Some(daemon) = &self.daemon else { return Vec::new() };
        let log = daemon.log();
        let lines = log.get(self.shown..).unwrap_or_default().lines();
        let news = lines.map(|line| told(line, moment)).collect();
        self.shown = log.len();
        news
    }

    /// Everything that the kernel says about the instance's network, without what counts.
    pub(super) fn kernel(&self) -> anyhow::Result<String> {
        let mut all = String::new();
        for line in [
            "ip -o link",
            "ip -br addr",
            "ip -4 rule",
            "ip -6 rule",
            "ip -4 route show table all",
            "ip -6 route show table all",
        ] {
            all.push_str(&self.instance.run(&line.split(' ').collect::<Vec<_>>())?);
        }
        Ok(all)
    }

    /// Waits until something is so, and gives the time from `start`; `None` when it takes too long.
    pub(super) fn wait(
        &self,
        start: Instant,
        mut is_so: impl FnMut(&Stage) -> anyhow::Result<bool>,
    ) -> anyhow::Result<Option<Duration>> {
        while start.elapsed() < PATIENCE {
            if is_so(self)? {
                return Ok(Some(start.elapsed()));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(None)
    }

    /// Waits for the first answer to a ping sent since `start`, and gives the time it took.
    pub(super) fn answer(&self, target: usize, start: Instant) -> anyhow::Result<Duration> {
        let target = &self.targets[target];
        self.wait(start, |_| Ok(target.answer_since(start).is_some()))?;
        match target.answer_since(start) {
            Some(at) => Ok(at.duration_since(start)),
            None => bail!("{} does not answer within {PATIENCE:?}", target.public),
        }
    }

    /// Everything there is to know, for whom a step missed.
    pub(super) fn describe(&self) -> String {
        match &self.daemon {
            Some(daemon) => daemon.describe(),
            None => self.instance.describe(),
        }
    }
}

/// A line of the log with the time since a moment, and without its fields, which say the same
/// once more: `+12.3 ms  ip link set dev ens6 up`.
fn told(line: &str, moment: SystemTime) -> String {
    let Some((time, rest)) = line.split_once(' ') else { return line.to_owned() };
    let rest = rest.trim_start();
    let text = rest.strip_prefix("INFO ").unwrap_or(rest);
    let end = [" eni=\"", " interface=\"", " address=\"", " reason=\""]
        .iter()
        .filter_map(|field| text.find(field))
        .min()
        .unwrap_or(text.len());
    let text = text.get(..end).unwrap_or(text);
    match time_of_day(time) {
        Some(time) => {
            let since = time.as_secs_f64() - of_day(moment);
            // Midnight may lie between the two.
            let since = (since + 1.5 * DAY) % DAY - 0.5 * DAY;
            let sign = if since < 0.0 { '-' } else { '+' };
            format!("{:>8}  {text}", format!("{sign}{}", ms(Duration::from_secs_f64(since.abs()))))
        }
        None => text.to_owned(),
    }
}

/// The seconds of the day, in UTC as the log has it.
fn of_day(moment: SystemTime) -> f64 {
    moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64() % DAY
}

/// Seconds.
const DAY: f64 = 24.0 * 3600.0;

/// The time of the day in `2026-01-31T12:34:56.789012`, with or without a `Z`.
pub(crate) fn time_of_day(text: &str) -> Option<Duration> {
    let (_, time) = text.trim_end_matches('Z').split_once('T')?;
    let mut parts = time.split([':', '.']).map(|part| part.parse::<u64>().ok());
    let mut next = || parts.next().flatten();
    let seconds = next()? * 3600 + next()? * 60 + next()?;
    Some(Duration::from_secs(seconds) + Duration::from_micros(next()?))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::{time_of_day, told};

    #[test]
    fn a_line_of_the_log_is_told_with_the_time_since_the_moment() {
        let moment = SystemTime::UNIX_EPOCH + Duration::from_millis(86_400_000 + 999);
        let line = "1970-01-02T00:00:01.011300Z  INFO ip link set dev ens6 up eni=\"eni-1\"";
        assert_eq!(told(line, moment), "+12.3 ms  ip link set dev ens6 up");
        let line = "1970-01-01T23:59:59.999000Z  INFO metadata answers";
        assert_eq!(told(line, moment), "-1000 ms  metadata answers");
        let line = "1970-01-02T00:00:01.999000Z  WARN no answer reason=\"no answer\"";
        assert_eq!(told(line, moment), "+1000 ms  WARN no answer");
    }

    #[test]
    fn times_of_the_day_have_microseconds() {
        let time = Some(Duration::new(45 * 60 + 51, 815_418_000));
        assert_eq!(time_of_day("2026-11-21T00:45:51.815418"), time);
        assert_eq!(time_of_day("2026-11-21T00:45:51.815418Z"), time);
        assert_eq!(time_of_day("Deleted"), None);
    }
}
