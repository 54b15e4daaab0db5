//! Runs enid: wiring, passes, triggers, control socket, journal; and [`look`], which decides
//! without acting, for the daemon and for `enictl plan` alike.

mod allowance;
mod asking;
pub mod chronicle;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod daemon;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod journal;
mod manager;
mod metrics;
mod operator;
mod pass;
pub mod path;
mod service;
pub mod store;
mod triggers;
mod udev;

use anyhow::Context as _;
use enid_control::plan::{Plan, PlannedStep};
use enid_core::decide::Decision;
use enid_core::memory::Memory;
use enid_core::metadata::facts::Metadata;
use enid_core::metadata::{Ask, Depth};
use enid_imds::Client;
use enid_kernel::Kernel;

use crate::clock::now;
use crate::config::Config;
use crate::metrics::Counters;
use crate::pass::{Engine, Looked};
use crate::store::Store;

/// What one look at kernel and metadata says, without a daemon's patience.
#[derive(Debug)]
pub struct Look {
    /// The steps that a first pass would take; removals are marked as not counted.
    pub plan: Plan,
    /// How it stands.
    pub report: enid_core::report::Report,
}

/// Looks at metadata and kernel and decides; applies nothing and writes nothing.
///
/// # Errors
/// When the kernel cannot be read, metadata cannot be asked, or the ledger is not readable.
pub async fn look(config: &Config) -> anyhow::Result<Look> {
    let client = Client::new(config.metadata.clone())?;
    let kernel = Kernel::open().context("opening netlink sockets")?;
    let store = Store::reading(&config.runtime_directory)?;
    let metadata = Metadata::default();
    let mut engine = Engine {
        kernel,
        metadata,
        memory: Memory::default(),
        store,
        counters: Counters::default(),
    };
    let looked = engine.look(&config.choices).await?;
    let vias = asking::vias(&engine.metadata, &looked);
    let top = client.poll(&Ask { top: true, ..Ask::default() }, now(), &vias).await;
    engine.metadata.record(&top);
    let here = looked.candidates();
    let enis = engine.metadata.listed.iter().filter(|mac| here.contains(mac));
    let ask = Ask { top: true, enis: enis.map(|mac| (*mac, Depth::Full)).collect() };
    let poll = client.poll(&ask, now(), &vias).await;
    engine.metadata.record(&poll);
    if let Some(failure) = &engine.metadata.failure {
        anyhow::bail!("metadata cannot be read: {failure}");
    }
    let looked = engine.look(&config.choices).await?;
    let plan = Plan::without_daemon(planned(&looked));
    Ok(Look { plan, report: looked.decision.report })
}

/// A plan in the words of the wire.
fn planned(looked: &Looked) -> Vec<PlannedStep> {
    let Decision { plan, report, .. } = &looked.decision;
    let step = |planned| PlannedStep::of(planned, report, &|index| looked.name_of(index));
    plan.steps().iter().map(step).collect()
}
