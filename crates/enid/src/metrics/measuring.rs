//! The daemon's part in its metrics: what it tells of passes, and when the file is written.

use std::path::Path;

use enid_core::report::Report;
use enid_core::time::Instant;

use super::latency::Latency;
use super::text::prometheus;
use super::textfile::Textfile;
use super::{Counters, Metrics, View};
use crate::chronicle::Chronicle;

/// All that measures, for the loop.
#[derive(Debug)]
pub(crate) struct Measuring {
    metrics: Metrics,
    latency: Latency,
    textfile: Textfile,
}

impl Measuring {
    /// Begins; the task that writes files belongs to this runtime.
    pub(crate) fn start(chronicle: Chronicle) -> Self {
        Self {
            metrics: Metrics::new(),
            latency: Latency::default(),
            textfile: Textfile::start(chronicle),
        }
    }

    /// For those who count.
    pub(crate) fn counters(&self) -> Counters {
        self.metrics.counters.clone()
    }

    /// There is a reason to look.
    pub(crate) fn noticed(&mut self, now: Instant, cause: &'static str) {
        self.latency.noticed(now, cause);
    }

    /// A pass has got to its end.
    pub(crate) fn passed(&mut self, now: Instant, report: &Report, changed: u64) {
        self.metrics.counters.passed(Some(report.verdict));
        self.textfile.outdated();
        if let Some((cause, took)) = self.latency.passed(now, changed, report) {
            self.metrics.converged(cause, took);
        }
    }

    /// A pass has not got to its end.
    pub(crate) fn failed(&mut self) {
        self.textfile.outdated();
        self.metrics.counters.passed(None);
    }

    /// Metadata answers again, or no more.
    pub(crate) fn metadata_changed(&mut self) {
        self.textfile.outdated();
    }

    /// The metrics as they are now, as OpenMetrics.
    pub(crate) fn text(&self, view: &View<'_>) -> String {
        self.metrics.text(view)
    }

    /// When the file is to be written, where one is asked for.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.textfile.due()
    }

    /// Where the configuration wants the file; whether it is to be written now.
    pub(crate) fn follow(&mut self, now: Instant, file: Option<&Path>) -> bool {
        self.textfile.put(file);
        self.textfile.due().is_some_and(|due| due <= now)
    }

    /// Has the file written with these metrics.
    pub(crate) fn write(&mut self, now: Instant, openmetrics: &str) {
        self.textfile.write(now, prometheus(openmetrics));
    }
}
