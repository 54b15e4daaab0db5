//! Waiting for something to become or to stay true, and telling what was there instead.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use vpc::{Instance, Netns};

/// Something whose state a failure message shows.
pub trait Scene {
    /// The state now, for a human.
    fn describe(&self) -> String;
}

impl Scene for Netns {
    fn describe(&self) -> String {
        let mut text = format!("in {}:\n", self.name());
        for line in [
            "ip -d link",
            "ip addr",
            "ip rule",
            "ip -6 rule",
            "ip route show table all",
            "ip -6 route show table all",
            "ip neigh",
        ] {
            let said = match self.output(&line.split(' ').collect::<Vec<_>>()) {
                Ok(output) => format!("{}{}", output.stdout, output.stderr),
                Err(error) => format!("{error:#}"),
            };
            // Writing to a String cannot fail.
            let _ = write!(text, "--- {line}\n{said}");
        }
        text
    }
}

impl Scene for Instance {
    fn describe(&self) -> String {
        self.netns.describe()
    }
}

/// Tries until it works, every 10 ms, and gives what it gave.
///
/// # Errors
/// When it does not work within `timeout`: the last reason, and the state of the scene.
pub fn eventually<T>(
    timeout: Duration,
    what: &str,
    scene: &dyn Scene,
    mut attempt: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= timeout => {
                bail!("not within {timeout:?}: {what}: {error:#}\n{}", scene.describe())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Looks every 10 ms for that long whether it still works.
///
/// # Errors
/// When it does not once: the reason, and the state of the scene.
pub fn holds(
    duration: Duration,
    what: &str,
    scene: &dyn Scene,
    mut attempt: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let start = Instant::now();
    while start.elapsed() < duration {
        attempt().with_context(|| {
            format!("true only for {:?}: {what}\n{}", start.elapsed(), scene.describe())
        })?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
