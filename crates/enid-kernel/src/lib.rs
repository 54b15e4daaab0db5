//! Looks at the kernel's network and acts on it: the only crate that knows netlink, sysctls and sysfs.
//!
//! Everything that leaves here is in the nouns of `enid-core`; everything netlink stays inside.
//! All of it works in the network namespace of the thread that calls, so one [`Kernel`] must stay
//! on one thread: a tokio current-thread runtime with I/O and time.

use enid_core::observed::Snapshot;
use enid_core::plan::Step;
use rtnetlink::sys::protocols::NETLINK_ROUTE;

mod apply;
mod connection;
mod culprit;
mod driver;
mod error;
#[cfg(feature = "faults")]
pub mod faults;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod lookup;
mod marking;
mod snapshot;
mod sysctl;
mod watch;
mod wire;

pub use apply::Outcome;
pub use error::{Error, meaning};
pub use watch::Change;

/// The kernel of the calling thread's network namespace.
#[derive(Debug)]
pub struct Kernel {
    requests: connection::Requests,
    drivers: driver::Drivers,
    watch: watch::Watch,
    markings: marking::Markings,
}

impl Kernel {
    /// Opens the connection for requests and, apart from it, the one that watches: a notification
    /// carries the sequence number of whoever caused it and could pass for an answer.
    ///
    /// Must be called within the runtime that will poll the other methods.
    ///
    /// # Errors
    ///
    /// [`Error::Open`] when a socket cannot be had.
    pub fn open() -> Result<Self, Error> {
        // Watching begins before anybody looks, so that no change falls in between.
        let watch = watch::Watch::open()?;
        let requests = connection::Requests::open(NETLINK_ROUTE)?;
        let (drivers, markings) = (driver::Drivers::default(), marking::Markings::default());
        Ok(Self { requests, drivers, watch, markings })
    }

    /// Everything that the kernel has, complete.
    ///
    /// What another process changes meanwhile may be half in it; [`Kernel::changed`] tells.
    ///
    /// Markings are looked for where they are `marking`, wanted by somebody, or where rules of an
    /// earlier run look at marks. Elsewhere nftables is not touched: the first to ask makes the
    /// kernel load it.
    ///
    /// # Errors
    ///
    /// Any [`Error`] about requests; there is no partial snapshot.
    pub async fn snapshot(&mut self, marking: bool) -> Result<Snapshot, Error> {
        #[cfg(feature = "faults")]
        faults::look("listing links")?;
        let mut snapshot = snapshot::take(&mut self.requests, &mut self.drivers).await?;
        self.watch.knows(&snapshot.routers);
        if marking || marking::left_traces(&snapshot) {
            snapshot.markings = self.markings.look().await?;
        } else {
            self.markings.close();
        }
        Ok(snapshot)
    }

    /// Takes the steps in their order; exactly one result for each, and a failed one stops none.
    ///
    /// Deletes name all that the kernel can match on. What it cannot: it ignores `IFA_PROTO` when
    /// it deletes an address, and what a rule suppresses when it deletes a rule. The steps must
    /// come from a snapshot just taken.
    pub async fn apply(&mut self, steps: &[Step]) -> Vec<Result<Outcome, Error>> {
        apply::all(&mut self.requests, &mut self.markings, steps).await
    }

    /// Waits until something has changed since the last call (or since [`Kernel::open`]).
    ///
    /// Cancel-safe. One answer stands for everything that has happened until it is given.
    pub async fn changed(&mut self) -> Change {
        tokio::select! {
            change = self.watch.changed() => change,
            change = self.markings.changed() => change,
        }
    }

    /// Hears no changes until [`Kernel::listen`]: for who has heard of one and is not going to look
    /// for a while. Each further one would wake us.
    pub fn listen_no_more(&mut self) {
        self.watch.listen_no_more();
    }

    /// Whether [`Kernel::changed`] is to answer to the first of many changes and leave the rest where
    /// they are: for who stops to listen then.
    pub fn be_brief(&mut self, brief: bool) {
        self.watch.be_brief(brief);
    }

    /// Hears changes again; to be called before a look, which sees what happened meanwhile.
    pub fn listen(&mut self) {
        self.watch.listen();
    }

    /// Who last deleted what a step makes: the number of the process and, where it still ran when
    /// that was heard of, its name. A process in a container may have another number there.
    #[must_use]
    pub fn culprit(&self, step: &Step) -> Option<(u32, Option<String>)> {
        self.watch.culprit(step)
    }

    /// How many bytes of notifications the kernel keeps for us before it drops some.
    #[must_use]
    pub fn receive_buffer(&self) -> usize {
        self.watch.receive_buffer()
    }
}
