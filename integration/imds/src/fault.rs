//! What can go wrong with an answer, where, for whom and how often.

use std::sync::Arc;
use std::time::Duration;

use crate::model::InstanceId;
use crate::tree::Tree;

/// What happens instead of, or to, the right answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Answer later; faults that were set after this one still apply.
    Delay(Duration),
    /// Accept the connection and never answer.
    Silence,
    /// Close the connection without an answer.
    Close,
    /// Answer with this status and no useful body.
    Status(u16),
    /// Announce the whole body, send this many bytes of it, close.
    Truncate(usize),
    /// Announce the whole body, send this many bytes of it, reset the connection.
    Reset(usize),
    /// Announce no length, send this many bytes of the body, close.
    Unmeasured(usize),
    /// Send whoever asks elsewhere.
    Redirect(String),
    /// Answer as this view does: an older one, another instance's.
    View(Arc<Tree>),
    /// Answer 200 with this body.
    Body(String),
    /// Send these bytes, whatever they are, and close.
    Raw(Vec<u8>),
    /// Send the head, then the piece again and again, until the client goes.
    Endless {
        /// What comes first.
        head: Vec<u8>,
        /// What has no end.
        piece: Vec<u8>,
        /// Between two pieces.
        pause: Duration,
    },
}

/// Names a fault that was set, to take it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FaultId(pub(crate) u64);

/// A fault on some paths.
#[derive(Clone, Debug)]
pub struct Fault {
    pattern: String,
    method: Option<String>,
    instance: Option<InstanceId>,
    times: Option<u32>,
    every: u32,
    seen: u32,
    pub(crate) action: Action,
}

impl Fault {
    /// A fault on the requests whose path matches: `*` stands for any text, slashes included, so
    /// `*/local-ipv4s` is that key of every ENI and `*` is everything. A slash at the end of the
    /// path is not compared.
    #[must_use]
    pub fn on(pattern: &str, action: Action) -> Fault {
        let pattern = pattern.to_owned();
        Fault { pattern, method: None, instance: None, times: None, every: 1, seen: 0, action }
    }

    /// Only for requests with this method.
    #[must_use]
    pub fn method(mut self, method: &str) -> Fault {
        self.method = Some(method.to_owned());
        self
    }

    /// Only for requests of this instance.
    #[must_use]
    pub fn instance(mut self, instance: &InstanceId) -> Fault {
        self.instance = Some(instance.clone());
        self
    }

    /// Only for the first `times` requests that match.
    #[must_use]
    pub fn times(mut self, times: u32) -> Fault {
        self.times = Some(times);
        self
    }

    /// Only for the second, fourth … request that matches, where `every` is 2.
    #[must_use]
    pub fn every(mut self, every: u32) -> Fault {
        self.every = every.max(1);
        self
    }

    /// Whether the fault strikes this request; counts it if so.
    pub(crate) fn strikes(
        &mut self,
        method: &str,
        path: &str,
        instance: Option<&InstanceId>,
    ) -> bool {
        let meant = self.times != Some(0)
            && self.method.as_deref().is_none_or(|wanted| wanted == method)
            && self.instance.as_ref().is_none_or(|wanted| Some(wanted) == instance)
            && matches(self.pattern.trim_end_matches('/'), path.trim_end_matches('/'));
        self.seen += u32::from(meant);
        let hit = meant && self.seen.is_multiple_of(self.every);
        if hit && let Some(left) = &mut self.times {
            *left -= 1;
        }
        hit
    }
}

/// Whether a text matches a pattern in which `*` stands for any text.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, rest)) => text.strip_prefix(head).is_some_and(|text| {
            (0..=text.len())
                .filter(|at| text.is_char_boundary(*at))
                .any(|at| matches(rest, &text[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::{Action, Fault, matches};

    #[test]
    fn a_fault_may_strike_every_second_request_and_only_so_often() {
        let mut fault = Fault::on("*/x", Action::Close).every(2).times(2);
        let struck: Vec<bool> = ["/x", "/y", "/x", "/x", "/x", "/x", "/x"]
            .into_iter()
            .map(|path| fault.strikes("GET", path, None))
            .collect();
        assert_eq!(struck, [false, false, true, false, true, false, false]);
    }

    #[test]
    fn a_star_stands_for_any_text() {
        assert!(matches("*", "/latest/api/token"));
        assert!(matches("*/local-ipv4s", "/latest/meta-data/a/local-ipv4s"));
        assert!(matches("/latest/*/macs/*", "/latest/meta-data/macs/x"));
        assert!(!matches("*/local-ipv4s", "/latest/local-ipv4s/x"));
        assert!(!matches("/latest", "/latest/x"));
    }
}
