//! What the daemon counts and measures, as it goes over the wire.

use serde::{Deserialize, Serialize};

use crate::SCHEMA;

/// The answer to [`crate::Request::Metrics`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Metrics {
    /// [`SCHEMA`].
    pub schema: u32,
    /// OpenMetrics: text that ends with `# EOF`.
    pub text: String,
}

impl Metrics {
    /// As the daemon encodes them.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self { schema: SCHEMA, text }
    }
}
