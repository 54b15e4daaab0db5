//! What the kernel of the instance announced a moment ago, for whom has to find out what went wrong.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::Context as _;
use vpc::Netns;

/// Announcements that are remembered.
const MOST: usize = 4000;
/// Those of storms have nothing to do with enid.
const STORM: &str = "198.18.";

type Heard = VecDeque<(Instant, String)>;

/// Listens to all that changes.
pub(super) struct Witness {
    child: Child,
    heard: Arc<Mutex<Heard>>,
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Witness {
    pub(super) fn start(netns: &Netns) -> anyhow::Result<Witness> {
        let words =
            ["-o", "-rc", "8388608", "monitor", "link", "address", "route", "rule", "neigh"];
        let mut command = Command::new("ip");
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = netns.within(|| command.spawn())?.context("cannot start `ip monitor`")?;
        let said = child.stdout.take().context("`ip monitor` has no output")?;
        let heard = Arc::default();
        let own = Arc::clone(&heard);
        std::thread::spawn(move || {
            let lines = BufReader::new(said).lines().map_while(Result::ok);
            for line in lines.filter(|line| !line.contains(STORM)) {
                let mut heard = lock(&own);
                heard.push_back((Instant::now(), line));
                if heard.len() > MOST {
                    heard.pop_front();
                }
            }
        });
        Ok(Witness { child, heard })
    }

    /// What was announced between two moments, and how long ago.
    pub(super) fn said(&self, from: Instant, to: Instant) -> String {
        let now = Instant::now();
        let heard = lock(&self.heard);
        let lines = heard.iter().filter(|(at, _)| (from..to).contains(at)).map(|(at, line)| {
            let ago = now.duration_since(*at).as_secs_f64();
            format!("{ago:7.3} s ago  {}\n", line.trim_end().replace('\\', " "))
        });
        format!("--- ip monitor\n{}", lines.collect::<String>())
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
