//! What systemd is told: ready, status, reloading, stopping, and that we are alive.

use std::time::Duration;

use enid_core::report::{Report, Verdict};
use sd_notify::NotifyState;
use tracing::debug;

use crate::journal::name;

/// The service manager; silent where there is none.
#[derive(Debug, Default)]
pub(crate) struct Service {
    ready: bool,
    status: String,
}

impl Service {
    /// How often the watchdog must hear of us, halved to be on time.
    pub(crate) fn watchdog() -> Option<Duration> {
        sd_notify::watchdog_enabled().map(|limit| limit / 2)
    }

    pub(crate) fn alive() {
        tell(&[NotifyState::Watchdog]);
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready
    }

    pub(crate) fn ready(&mut self) {
        self.ready = true;
        tell(&[NotifyState::Ready]);
    }

    pub(crate) fn reloading() {
        match NotifyState::monotonic_usec_now() {
            Ok(at) => tell(&[NotifyState::Reloading, at]),
            Err(error) => debug!("no time for systemd: {error}"),
        }
    }

    pub(crate) fn stopping() {
        tell(&[NotifyState::Stopping]);
    }

    pub(crate) fn status(&mut self, status: String) {
        if status != self.status {
            tell(&[NotifyState::Status(&status)]);
            self.status = status;
        }
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!("systemd was not told: {error}");
    }
}

/// One line on how it stands; `ago` is how long the last pass is past.
pub(crate) fn summary(report: &Report, ago: Duration, trouble: Option<&str>) -> String {
    let many = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let enis = many(report.managed(), "ENI");
    let addresses = report.present();
    let addresses = format!("{addresses} address{}", if addresses == 1 { "" } else { "es" });
    let state = match (trouble, report.verdict) {
        (Some(trouble), _) => trouble.to_owned(),
        (None, Verdict::Converged) => format!("converged {} s ago", ago.as_secs()),
        (None, Verdict::Waiting | Verdict::NotYet) => report.waiting().next().map_or_else(
            || report.verdict.to_string(),
            |(eni, waiting)| format!("{}: {waiting}", name(eni)),
        ),
    };
    format!("{enis}, {addresses}, {state}")
}
