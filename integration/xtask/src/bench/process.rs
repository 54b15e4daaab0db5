//! What a process uses, as the kernel counts it.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;

/// Time on a CPU of all threads that a process has now, to the nanosecond.
pub(crate) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let mut total = Duration::ZERO;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).context("the process has gone")? {
        total += scheduled(&thread?.path().join("schedstat").to_string_lossy())?;
    }
    Ok(total)
}

/// Time on a CPU of the calling thread.
pub(crate) fn own_cpu() -> anyhow::Result<Duration> {
    scheduled("/proc/thread-self/schedstat")
}

fn scheduled(path: &str) -> anyhow::Result<Duration> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let first = text.split_whitespace().next().context("an empty schedstat")?;
    Ok(Duration::from_nanos(first.parse()?))
}

/// A field of `/proc/PID/status` that is given in kB, in MiB: `VmRSS`, `RssAnon`.
pub(crate) fn memory(pid: u32, field: &str) -> anyhow::Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).context("the process has gone")?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kilobytes =
        line.and_then(|line| line.split_whitespace().next()).context("no such field")?;
    Ok(kilobytes.parse::<f64>()? / 1024.0)
}
