//! Somebody who changes the kernel again and again, as fast as he can, and what that costs enid.

use std::fs;
use std::io::{Write as _, pipe};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use vpc::{Netns, Process};

/// Lines of `ip` at a time: a pause follows where the adversary is not as fast as he can be.
const GULP: usize = 20;

/// Somebody who does the same over and over, whatever becomes of it, until this is dropped.
pub struct Adversary {
    process: Option<Process>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Adversary {
    /// What a shell does, as fast as it can.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn shell(netns: &Netns, script: &str) -> anyhow::Result<Adversary> {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("while :; do {script}; done")]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Some(netns.spawn(command)?);
        Ok(Adversary { process, stop: Arc::default(), thread: None })
    }

    /// One `ip`, as fast as it can.
    ///
    /// # Errors
    /// When `ip` cannot be started.
    pub fn start(netns: &Netns, lines: &[&str]) -> anyhow::Result<Adversary> {
        Adversary::paced(netns, lines, Duration::ZERO)
    }

    /// One `ip`, with a pause after every 20 lines.
    ///
    /// # Errors
    /// When `ip` cannot be started.
    pub fn paced(netns: &Netns, lines: &[&str], pause: Duration) -> anyhow::Result<Adversary> {
        let (reader, mut writer) = pipe().context("cannot make a pipe")?;
        let mut command = Command::new("ip");
        command.args(["-force", "-batch", "-"]);
        command.stdin(reader).stdout(Stdio::null()).stderr(Stdio::null());
        let process = netns.spawn(command)?;
        let round: Vec<&str> = lines.iter().copied().cycle().take(GULP.max(lines.len())).collect();
        let text = format!("{}\n", round.join("\n"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) && writer.write_all(text.as_bytes()).is_ok() {
                std::thread::sleep(pause);
            }
        });
        Ok(Adversary { process: Some(process), stop, thread: Some(thread) })
    }

    /// The number of the process that does it.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.as_ref().map_or(0, |process| process.id())
    }
}

impl Drop for Adversary {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Without a reader, writing ends.
        self.process = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was already printed.
            let _ = thread.join();
        }
    }
}

/// The time that a process has been on a CPU so far.
///
/// # Errors
/// When there is no such process.
pub fn cpu_time(process: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name before it may hold anything, a parenthesis too.
    let (_, rest) = stat.rsplit_once(") ").context("no state")?;
    let ticks: Vec<u64> =
        rest.split(' ').skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    ensure!(ticks.len() == 2, "no times: {stat}");
    // A tick is 10 ms, whatever the kernel's own are.
    Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 10))
}
