//! `cargo xtask soak`: the real daemon in the simulated VPC with random trouble, for as long as one
//! likes, watched all the time; figures and a verdict at the end.

mod cloud;
mod dice;
mod faults;
mod kernel;
mod life;
mod operator;
mod readings;
mod report;
mod rest;
mod stage;
mod targets;
mod vandals;
mod witness;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

use crate::demo::build;
use crate::{leave_nothing_behind, needs, say};
use stage::Soak;

/// How the daemon is configured: patient enough for the order of things to show, and short enough
/// for many rests.
const CONFIG: &str = "poll_interval = \"1s\"\n\
    [removal]\nconfirmations = 3\ngrace = \"4s\"\nmass_grace = \"8s\"\n\
    [links]\nudev = \"never\"\nvirtual = true\n\
    [log]\nlevel = \"info,enid::pass=debug\"\n";

/// Between two quiet points.
const BUSY: (usize, usize) = (12_000, 30_000);

/// Runs the real daemon in the simulated VPC with random trouble and watches it.
///
/// The seed chooses what happens; when exactly it does depends on the machine, too. Exit code 1
/// where something happened that must not.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// For how long.
    #[arg(long, value_name = "N", default_value_t = 5)]
    minutes: u64,
    /// What to choose by; from the clock without it.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Take enid and enictl from this directory instead of building them for release.
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
}

/// Something that may happen: how often beside the others, what it counts as, and how it is done.
/// It says whether it could be done.
type Event = (usize, &'static str, fn(&mut Soak) -> anyhow::Result<bool>);

const EVENTS: [Event; 34] = [
    (6, "ENIs attached", cloud::attach),
    (5, "ENIs detached", cloud::detach),
    (10, "addresses assigned", cloud::assign),
    (7, "addresses unassigned", cloud::unassign),
    (6, "addresses moved", cloud::move_address),
    (3, "delegated prefixes", cloud::delegate),
    (3, "CIDRs of the VPC", cloud::cidr),
    (1, "router silent", cloud::silent_router),
    (1, "cables pulled", cloud::cable),
    (4, "metadata failing", faults::service),
    (5, "metadata failing at one key", faults::one_key),
    (2, "metadata without an ENI", faults::listing),
    (2, "metadata not settled", faults::unsettled),
    (3, "metadata stale", faults::stale),
    (6, "metadata lacking an address", faults::forged),
    (1, "tokens expired", faults::expired),
    (1, "metadata away till rest", faults::outage),
    (4, "addresses deleted", vandals::address),
    (4, "routes deleted", vandals::route),
    (2, "tables flushed", vandals::flush_table),
    (4, "rules deleted", vandals::rule),
    (1, "all rules deleted", vandals::flush_rules),
    (2, "links set down", vandals::down),
    (2, "links renamed", vandals::rename),
    (2, "all addresses of a link deleted", vandals::flush_addresses),
    (2, "groups and MTUs changed", vandals::property),
    (2, "addresses replaced", vandals::replace_address),
    (3, "objects of others added", vandals::foreign),
    (1, "storms", vandals::storm),
    (5, "looked by enictl", operator::look),
    (3, "refreshed by enictl", operator::refresh),
    (2, "dropped by enictl", operator::drop),
    (2, "released or unheld by enictl", release),
    (2, "stuck clients", operator::stuck),
];

/// What happens to the daemon itself; in the last part one process lives on, to see whether it grows.
const DAEMON: [Event; 3] = [
    (3, "restarts", life::restart),
    (2, "stopped for a moment", life::stop),
    (3, "configurations edited", life::edit),
];

fn release(soak: &mut Soak) -> anyhow::Result<bool> {
    if operator::unhold(soak)? { Ok(true) } else { operator::release(soak) }
}

/// Builds what is needed, then soaks in a world of its own.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    needs::ensure(&needs::NAMESPACES)?;
    let seed = match arguments.seed {
        Some(seed) => seed,
        None => u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?,
    };
    let binaries = build::given_or_release(arguments.binaries.as_deref())?;
    if !build::runs_with(&binaries) {
        let minutes = arguments.minutes.to_string();
        let seed = seed.to_string();
        return Err(build::run_with(&binaries, &["soak", "--minutes", &minutes, "--seed", &seed]));
    }
    vpc::enter()?;
    leave_nothing_behind()?;
    let time = Duration::from_secs(60 * arguments.minutes);
    say(&format!("soaking for {} min with seed {seed}", arguments.minutes))?;
    let mut soak = Soak::build(seed)?;
    let good = soak.run(time).and_then(|()| soak.verdict());
    good.map(|good| if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Soak {
    fn run(&mut self, time: Duration) -> anyhow::Result<()> {
        let end = self.started + time;
        self.lasting = self.started + time / 3;
        while Instant::now() < end {
            let quiet = Instant::now() + self.dice.millis(BUSY.0, BUSY.1);
            while Instant::now() < quiet.min(end) {
                self.something()?;
                let pause = Instant::now() + self.dice.millis(10, 500);
                while Instant::now() < pause {
                    self.tick()?;
                    std::thread::sleep(Duration::from_millis(40));
                }
            }
            self.come_to_rest()?;
            self.progress()?;
        }
        self.leave()
    }

    /// One event; some come right after the one before.
    fn something(&mut self) -> anyhow::Result<()> {
        let lasting = Instant::now() >= self.lasting;
        let more = if lasting { &DAEMON[1..] } else { &DAEMON[..] };
        let all: Vec<&Event> = EVENTS.iter().chain(more).collect();
        let mut chance = self.dice.below(all.iter().map(|(weight, ..)| weight).sum());
        for (weight, what, act) in all {
            if chance < *weight {
                if act(self).with_context(|| format!("{what}, seed {}", self.seed))? {
                    self.count(what);
                }
                return Ok(());
            }
            chance -= weight;
        }
        Ok(())
    }
}

/// The moment that a line of the journal begins with.
fn journal_time(text: &str) -> Option<SystemTime> {
    let of_day = crate::demo::time_of_day(text)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let day = Duration::from_secs(86_400);
    let today = Duration::from_secs(now.as_secs() / day.as_secs() * day.as_secs());
    let then = today + of_day;
    // Midnight may lie between the two.
    let then = if then > now + day / 2 { then.checked_sub(day)? } else { then };
    Some(UNIX_EPOCH + then)
}
