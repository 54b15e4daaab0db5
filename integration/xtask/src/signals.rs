//! Commands that start others and are interrupted.

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// On a signal the daemon and every other child goes first; namespaces and files go with the
/// process.
pub(crate) fn leave_nothing_behind() -> anyhow::Result<()> {
    let mut signals =
        Signals::new([SIGHUP, SIGINT, SIGTERM]).context("cannot listen to signals")?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            for child in children() {
                // It may have ended by itself.
                let _ = kill(child, Signal::SIGKILL);
            }
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

fn children() -> Vec<Pid> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let list: Vec<String> = lists.collect();
    list.iter()
        .flat_map(|list| list.split_whitespace())
        .filter_map(|number| number.parse().ok().map(Pid::from_raw))
        .collect()
}
