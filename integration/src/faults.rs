//! Making the daemon die, stand still or fail at one point of its work.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

/// What a daemon that was built with faults does; `enid_kernel::faults` has the words.
#[derive(Clone, Debug)]
pub struct Faults {
    directory: PathBuf,
}

impl Faults {
    pub(crate) fn new(directory: PathBuf) -> anyhow::Result<Faults> {
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Faults { directory })
    }

    /// Sets what shall happen from now on, one line each; counting begins anew, also of the points.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn script(&self, lines: &str) -> anyhow::Result<()> {
        let points = self.directory.join("points");
        std::fs::write(&points, "")
            .with_context(|| format!("cannot write {}", points.display()))?;
        // In one piece: the daemon may read at any time.
        let new = self.directory.join("script.new");
        std::fs::write(&new, lines).with_context(|| format!("cannot write {}", new.display()))?;
        std::fs::rename(&new, self.directory.join("script")).context("cannot set the script")
    }

    /// The points that the daemon passed since the script was set, in their order.
    #[must_use]
    pub fn points(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.directory.join("points")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Where the daemon stands still, if it does.
    #[must_use]
    pub fn paused(&self) -> Option<String> {
        std::fs::read_to_string(self.directory.join("paused")).ok()
    }

    /// Waits until the daemon stands still; `false` when it does not within this time.
    #[must_use]
    pub fn wait_paused(&self, timeout: Duration) -> bool {
        let start = Instant::now();
        while self.paused().is_none() {
            if start.elapsed() > timeout {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Lets the daemon go on.
    ///
    /// # Errors
    /// When it did not stand still.
    pub fn go_on(&self) -> anyhow::Result<()> {
        ensure!(self.paused().is_some(), "the daemon does not stand still");
        std::fs::remove_file(self.directory.join("paused")).context("cannot let the daemon go on")
    }
}
