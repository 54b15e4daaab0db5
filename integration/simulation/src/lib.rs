//! Random schedules of cloud, kernel, operator and adversary, and what must hold in them.
//!
//! What decides is `enid-core` itself, with its pace, its memory and its ledger; the daemon around it,
//! the kernel, the metadata service and everybody else on the machine are models. What is promised is
//! judged after every event by books of its own: what metadata served, and what enid made. Scenario
//! files are played by the same means, so whatever a schedule finds becomes one.

pub mod adversary;
pub mod cloud;
pub mod counts;
mod daemon;
pub mod event;
pub mod judge;
pub mod kernel;
mod pass;
pub mod play;
pub mod run;
pub mod shrink;
pub mod text;
pub mod world;
