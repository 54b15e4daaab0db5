//! How many requests ended how.

use std::sync::atomic::{AtomicU64, Ordering};

use enid_core::metadata::Failure;

/// What came back of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// 200 and a body that could be read.
    Ok,
    /// 401: the token was refused.
    Unauthorized,
    /// 403: metadata is off, or refused to this process.
    Forbidden,
    /// 404: there is no such key.
    NotFound,
    /// 500 to 599.
    ServerError,
    /// Any other status.
    Other,
    /// No connection, or no whole answer, in time.
    Timeout,
    /// Nobody listens there.
    Refused,
    /// No connection for another reason, or it broke.
    Unreachable,
    /// 200 and a body that is too long or no text.
    Unusable,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Ok,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::ServerError,
        Self::Other,
        Self::Timeout,
        Self::Refused,
        Self::Unreachable,
        Self::Unusable,
    ];

    /// The status' number where it has one of its own, else a word.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Ok => "200",
            Self::Unauthorized => "401",
            Self::Forbidden => "403",
            Self::NotFound => "404",
            Self::ServerError => "5xx",
            Self::Other => "other",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Unusable => "unusable",
        }
    }

    pub(crate) const fn of_reply(status: u16) -> Self {
        match status {
            200 => Self::Ok,
            401 => Self::Unauthorized,
            403 => Self::Forbidden,
            404 => Self::NotFound,
            500..=599 => Self::ServerError,
            _ => Self::Other,
        }
    }

    pub(crate) const fn of_failure(failure: &Failure) -> Self {
        match failure {
            Failure::Timeout => Self::Timeout,
            Failure::Unreachable(_) => Self::Unreachable,
            Failure::Unauthorized => Self::Unauthorized,
            Failure::Forbidden => Self::Forbidden,
            Failure::Status(status) | Failure::NoToken(status) => Self::of_reply(*status),
            Failure::TooLong | Failure::Malformed(_) | Failure::Lacks(_) => Self::Unusable,
        }
    }
}

/// Counts them.
#[derive(Debug, Default)]
pub(crate) struct Tally([AtomicU64; Status::ALL.len()]);

impl Tally {
    pub(crate) fn note(&self, status: Status) {
        if let Some(count) = self.0.get(status as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn counts(&self) -> impl Iterator<Item = (Status, u64)> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        Status::ALL.into_iter().zip(counts)
    }
}
