//! Many schedules on all cores.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::adversary::{Schedule, schedule};
use crate::counts::Counts;
use crate::judge::Broken;
use crate::shrink::shrink;
use crate::world::Product;

/// What to run.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// How many schedules.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub schedules: u64,
    /// The seed of the first one; the others follow.
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub seed: u64,
    /// Threads; all cores unless said otherwise.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Go on after a failure, and print this many at most.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub failures: usize,
}

/// A schedule that broke a promise.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Where it came from.
    pub seed: u64,
    /// What was broken when.
    pub when: Duration,
    /// What was broken.
    pub broken: Broken,
    /// The schedule.
    pub schedule: Schedule,
}

impl Failure {
    /// The scenario file that shows it, as short as can be.
    #[must_use]
    pub fn scenario(&self, product: Product) -> String {
        let short = shrink(&self.schedule, self.broken.promise, product);
        let (verdict, _) = short.play().run(product);
        let how = verdict.err().map(|(at, broken)| format!("after {:?}: {broken}", at.0));
        short.scenario(&format!("Of seed {}. {}", self.seed, how.unwrap_or_default()))
    }
}

/// Runs schedules; the figures, and those that broke a promise.
///
/// # Errors
/// When a thread dies.
pub fn all(arguments: &Arguments, product: Product) -> anyhow::Result<(Counts, Vec<Failure>)> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = arguments.threads.unwrap_or(cores).max(1);
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let work = || {
        let mut counts = Counts::default();
        let mut failures = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= arguments.schedules {
                break;
            }
            let seed = arguments.seed.wrapping_add(n);
            let schedule = schedule(seed);
            let (verdict, counted) = schedule.play().run(product);
            counts.add(&counted);
            if let Err((at, broken)) = verdict {
                failures.push(Failure { seed, when: at.0, broken, schedule });
                stop.fetch_or(failures.len() >= arguments.failures, Ordering::Relaxed);
            }
        }
        (counts, failures)
    };
    let mut all = (Counts::default(), Vec::new());
    let ended = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(thread::ScopedJoinHandle::join).collect::<Vec<_>>()
    });
    for result in ended {
        let (counts, failures) = result.ok().context("a thread of the simulation died")?;
        all.0.add(&counts);
        all.1.extend(failures);
    }
    all.1.sort_by_key(|failure| failure.seed);
    Ok(all)
}

/// What must occur, at least once in so many schedules: a simulation that never meets it shows
/// nothing.
const OFTEN: [(&str, u64); 42] = [
    ("cloud", 1),
    ("kernel", 1),
    ("kernel -", 4),
    ("link", 10),
    ("take", 2),
    ("remark", 30),
    ("fight", 40),
    ("step", 4),
    ("ledger", 20),
    ("crash", 10),
    ("deaf", 40),
    ("config", 10),
    ("hold", 10),
    ("unhold", 20),
    ("drop", 100),
    ("refresh", 40),
    ("suspend", 40),
    ("slow", 20),
    ("settled", 2),
    ("removed: proven", 20),
    ("removed: proven (IPv6)", 200),
    ("removed: most of an ENI's addresses", 500),
    ("removed: moved", 200),
    ("removed: dropped", 5_000),
    ("removed: released", 20),
    ("a removal is paused", 200),
    ("a mass removal waits", 10),
    ("a crash within a plan", 10),
    ("a crash before the ledger was written", 100),
    ("the ledger could not be written", 20),
    ("a step failed", 10),
    ("a step was not taken because what it rests on failed", 20),
    ("a truce", 40),
    ("a conflict", 40),
    ("a table is taken", 20_000),
    ("an ENI is held", 10),
    ("an ENI is pending", 2),
    ("an address is a pod's", 50),
    ("an address was taken over", 50),
    ("on two ENIs: one was not read completely", 20_000),
    ("a poll failed as a whole", 20),
    ("an owned address on a kernel without marks is removed", 100),
];

/// What occurred too rarely.
#[must_use]
pub fn rare(counts: &Counts) -> Vec<String> {
    let rare = OFTEN.iter().filter(|(what, once)| counts.of(what) < counts.schedules / once);
    let words = |(what, once): &(&str, u64)| {
        format!("\"{what}\" occurred {} times, not once in {once} schedules", counts.of(what))
    };
    rare.map(words).collect()
}

/// Runs schedules; what there is to say of them, and whether all is well.
///
/// # Errors
/// When a thread dies.
pub fn run(arguments: &Arguments) -> anyhow::Result<(String, bool)> {
    let started = Instant::now();
    let hook = std::panic::take_hook();
    // A panic breaks a promise and is told as such.
    std::panic::set_hook(Box::new(|_| {}));
    let result = all(arguments, Product::Real);
    let (counts, failures) = result?;
    let took = started.elapsed();
    let mut text = counts.to_string();
    let rate = u128::from(counts.schedules) * 1000 / took.as_millis().max(1);
    let (seconds, seed) = (took.as_secs_f64(), arguments.seed);
    let _ = writeln!(text, "{seconds:.1} s, {rate} schedules/s, from seed {seed}");
    for failure in failures.iter().take(arguments.failures) {
        let Failure { seed, when, broken, .. } = failure;
        let _ = writeln!(text, "\nseed {seed} after {when:?}: {broken}\n");
        text.push_str(&failure.scenario(Product::Real));
    }
    std::panic::set_hook(hook);
    let rare = rare(&counts);
    if failures.is_empty() {
        rare.iter().for_each(|rare| _ = writeln!(text, "{rare}"));
    }
    Ok((text, failures.is_empty() && rare.is_empty()))
}
