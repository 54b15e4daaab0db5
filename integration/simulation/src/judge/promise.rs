//! What was promised, and how it was not kept.

use std::fmt;

/// What was promised and not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// Nothing foreign is changed.
    Foreign,
    /// No owned address goes that metadata granted within the grace.
    Removed,
    /// The primary ENI keeps its first address and its way to metadata.
    Primary,
    /// What works before and after a plan works during it.
    Working,
    /// No address is on two ENIs at the end of a plan.
    Twice,
    /// A kernel that nobody disturbs refuses no step.
    Kernel,
    /// The guard has nothing to refuse.
    Guard,
    /// After a plan there is nothing left to do.
    Once,
    /// Fights end in truces.
    Truce,
    /// What enid is told of, it looks at.
    Looked,
    /// Time goes on.
    Spinning,
    /// When nothing happens any more, all is as metadata says.
    Converged,
    /// Nothing grows without bound.
    Bounded,
    /// Nothing panics.
    Sane,
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Which.
    pub promise: Promise,
    /// How, in words.
    pub how: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let promise = match self.promise {
            Promise::Foreign => "nothing foreign is changed",
            Promise::Removed => "no owned address goes that metadata granted within the grace",
            Promise::Primary => "the primary ENI keeps its address and its way to metadata",
            Promise::Working => "what works before and after a plan works during it",
            Promise::Twice => "no address is on two ENIs at the end of a plan",
            Promise::Kernel => "a kernel that nobody disturbs refuses no step",
            Promise::Guard => "the guard has nothing to refuse",
            Promise::Once => "after a plan there is nothing left to do",
            Promise::Truce => "fights end in truces",
            Promise::Looked => "what enid is told of, it looks at",
            Promise::Spinning => "time goes on",
            Promise::Converged => "when nothing happens any more, all is as metadata says",
            Promise::Bounded => "nothing grows without bound",
            Promise::Sane => "nothing panics",
        };
        write!(f, "{promise}: {}", self.how)
    }
}

/// Kept, or broken.
pub type Verdict = Result<(), Broken>;

/// Fails with a promise and how it was broken.
pub fn broken<T>(promise: Promise, how: impl Into<String>) -> Result<T, Broken> {
    Err(Broken { promise, how: how.into() })
}
