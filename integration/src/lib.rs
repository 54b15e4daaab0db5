//! The harness of the scenarios: the real binaries inside an instance of a VPC, and patience.
//!
//! A scenario builds a [`vpc::Vpc`], starts a [`Daemon`] in one of its instances, changes what the
//! cloud says and looks with [`eventually`] at what the network does.

mod adversary;
mod daemon;
mod faults;
mod listener;
mod patience;
mod schema;
mod trial;

pub use adversary::{Adversary, cpu_time};
pub use daemon::{Daemon, Enictl, Launch, binary};
pub use faults::Faults;
pub use imds;
pub use listener::Listener;
pub use patience::{Scene, eventually, holds};
pub use schema::valid;
pub use trial::{at_once, run, trial, trial_on_an_old_kernel};
pub use vpc;
