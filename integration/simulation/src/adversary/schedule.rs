//! A schedule in the words of a scenario file.

use std::fmt::Write as _;
use std::time::Duration;

use enid_core::time::Instant;

use crate::cloud::Cloud;
use crate::kernel::Kernel;
use crate::play::Play;
use crate::text;
use crate::world::Start;

/// A schedule in the words of a scenario file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Schedule {
    /// What differs from the default configuration.
    pub config: Vec<String>,
    /// What metadata says at first.
    pub cloud: Vec<String>,
    /// What the kernel has at first.
    pub kernel: Vec<String>,
    /// What happens when.
    pub script: Vec<(Duration, String)>,
}

impl Schedule {
    /// Ready to be played.
    #[must_use]
    pub fn play(&self) -> Play {
        let mut start = Start::default();
        self.config.iter().for_each(|line| text::configure(&mut start.config, line));
        let mut cloud = Cloud::default();
        text::cloud(&mut cloud, &self.cloud);
        start.cloud = cloud;
        start.kernel = Kernel { state: text::snapshot(&self.kernel), wiped: Vec::new() };
        let script = self.script.iter().map(|(at, event)| (Instant(*at), event.clone()));
        Play { start, script: script.collect() }
    }

    /// As a scenario file that says that every promise is kept.
    #[must_use]
    pub fn scenario(&self, about: &str) -> String {
        let mut text = String::new();
        for line in about.lines() {
            let _ = writeln!(text, "# {line}");
        }
        for (section, lines) in
            [("config", &self.config), ("cloud", &self.cloud), ("kernel", &self.kernel)]
        {
            if !lines.is_empty() {
                let _ = writeln!(text, "{section}");
            }
            for line in lines {
                let indent = if section == "cloud" && !line.starts_with("eni ") { 4 } else { 2 };
                let _ = writeln!(text, "{:indent$}{line}", "");
            }
        }
        let _ = writeln!(text, "script");
        for (at, event) in &self.script {
            let millis = at.as_millis();
            let when = if millis.is_multiple_of(1000) {
                format!("{}s", millis / 1000)
            } else {
                format!("{millis}ms")
            };
            let _ = writeln!(text, "  at {when} {event}");
        }
        text.push_str(KEPT_SECTION);
        text
    }
}

/// What a scenario file expects of a schedule.
pub const KEPT_SECTION: &str = "\npromises\n  all are kept\n";
