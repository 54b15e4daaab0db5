//! What the next pass would do, as it goes over the wire.

use enid_core::plan::Step;
use serde::{Deserialize, Serialize};

use crate::SCHEMA;

/// The steps of the next pass, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Plan {
    /// [`crate::SCHEMA`].
    pub schema: u32,
    /// Whether the daemon made it, whose memory says how often metadata lacked an address.
    pub daemon: bool,
    /// The steps; empty when there is nothing to do.
    pub steps: Vec<PlannedStep>,
}

impl Plan {
    /// A plan of the daemon: removals in it are proven.
    #[must_use]
    pub const fn new(steps: Vec<PlannedStep>) -> Self {
        Self { schema: SCHEMA, daemon: true, steps }
    }

    /// A plan made without the daemon. Patience is the daemon's memory, so every removal is marked
    /// as not counted.
    #[must_use]
    pub fn without_daemon(mut steps: Vec<PlannedStep>) -> Self {
        for step in &mut steps {
            step.not_counted = step.kind == StepKind::Delete;
        }
        Self { schema: SCHEMA, daemon: false, steps }
    }
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PlannedStep {
    /// What it does, written as the `ip` or `sysctl` command that would do the same.
    pub command: String,
    /// The ENI that it is for: its id, else its MAC address; none where it is for no single one.
    pub eni: Option<String>,
    /// What kind of step it is.
    pub kind: StepKind,
    /// Why it is taken, in words.
    pub reason: String,
    /// Whether it is a removal for which nobody has counted how often metadata lacked the object:
    /// the daemon does it later, or not at all.
    pub not_counted: bool,
}

impl PlannedStep {
    /// A step that is as good as its plan says.
    #[must_use]
    pub const fn new(kind: StepKind, command: String, eni: Option<String>, reason: String) -> Self {
        Self { command, eni, kind, reason, not_counted: false }
    }
}

/// What kind of step it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// A property of a link changes.
    Set,
    /// An object is made.
    Create,
    /// A route takes the place of another one.
    Replace,
    /// An object is removed.
    Delete,
}

impl From<&Step> for StepKind {
    fn from(step: &Step) -> Self {
        match step {
            Step::Set { .. } => Self::Set,
            Step::Create(_) => Self::Create,
            Step::Replace { .. } => Self::Replace,
            Step::Delete(_) => Self::Delete,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_daemon_only_removals_are_not_counted() {
        let step = |kind| PlannedStep::new(kind, "ip …".to_owned(), None, String::new());
        let plan = Plan::without_daemon(vec![step(StepKind::Create), step(StepKind::Delete)]);
        assert_eq!(plan.steps.iter().map(|s| s.not_counted).collect::<Vec<_>>(), [false, true]);
        assert!(!plan.daemon);
    }
}
