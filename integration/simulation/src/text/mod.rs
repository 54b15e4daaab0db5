//! The words of scenario files: kernels, ledgers, configurations and times.

mod config;
mod kernel;

use std::fmt::Debug;
use std::str::FromStr;
use std::time::Duration;

use enid_core::time::Instant;

use crate::cloud::Cloud;

pub use config::configure;
pub use kernel::{add, ledger, ledger_lines, snapshot};

/// Parses a word, or says which one was wrong.
#[must_use]
pub fn parse<T: FromStr<Err: Debug>>(word: &str) -> T {
    word.parse().unwrap_or_else(|error| panic!("{word:?}: {error:?}"))
}

/// Reads the lines of a `cloud` section: `eni MAC` and its keys, before that `mac` and `macs`.
pub fn cloud(cloud: &mut Cloud, lines: &[String]) {
    let mut eni = "";
    for line in lines {
        match line.split_once(' ') {
            Some(("eni", mac)) => eni = mac,
            Some(("mac" | "macs", _)) if eni.is_empty() => cloud.change(line),
            other => {
                let (key, value) = other.unwrap_or((line, ""));
                cloud.set(parse(eni), key, value.trim());
            }
        }
    }
}

/// The times of a script's line, and what happens then.
#[must_use]
pub fn schedule(line: &str) -> (Vec<Instant>, &str) {
    let rest = line.strip_prefix("at ").unwrap_or_else(|| panic!("when is {line:?}?"));
    let (when, event) = rest.split_once(' ').unwrap_or_else(|| panic!("what happens in {line:?}?"));
    let Some((from, to)) = when.split_once("..") else {
        return (vec![Instant(duration(when))], event);
    };
    let event = event.strip_prefix("every ").expect("every");
    let (step, event) =
        event.split_once(' ').unwrap_or_else(|| panic!("what happens in {line:?}?"));
    let (mut now, to, step) = (duration(from), duration(to), duration(step));
    let mut times = Vec::new();
    while now <= to {
        times.push(Instant(now));
        now += step;
    }
    (times, event)
}

/// Reads `5s` or `50ms`.
#[must_use]
pub fn duration(text: &str) -> Duration {
    if let Some(millis) = text.strip_suffix("ms") {
        return Duration::from_millis(parse(millis));
    }
    Duration::from_secs(parse(
        text.strip_suffix('s').unwrap_or_else(|| panic!("{text:?} is no time")),
    ))
}
