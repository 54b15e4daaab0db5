//! The wire between enid and its operator: the versioned, serialised types of status and plan, the
//! Varlink messages that carry them, and a client for the control socket.
//!
//! `docs/control-protocol.md` describes the protocol for those who write their own client.

pub mod check;
pub mod client;
pub mod convert;
pub mod events;
pub mod explain;
pub mod metrics;
pub mod objects;
pub mod plan;
pub mod refused;
pub mod request;
#[cfg(feature = "schema")]
pub mod schema;
pub mod status;
pub mod varlink;

pub use check::Check;
pub use client::{Client, ClientError};
pub use events::{Event, EventKind, Events};
pub use explain::{Explained, Explanation, Path};
pub use metrics::Metrics;
pub use objects::{EniObjects, Object, ObjectKind, ObjectState, Objects};
pub use plan::{Plan, PlannedStep, StepKind};
pub use refused::Refused;
pub use request::{Affected, Awaited, Refreshed, Reloaded, Reply, Request, Target, Waited};
pub use status::Status;

/// The number of the schema that status and plan carry. It grows when a field goes, changes its
/// meaning or its type, or when an enumeration gets a value; a new field does not change it.
pub const SCHEMA: u32 = 1;

/// Where the daemon listens unless the configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/enid/control.sock";
