//! Asks metadata on a thread of its own: reading what a service sends without end holds up nothing
//! else.

use std::future::pending;
use std::io;

use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;

/// The thread; it ends with the process.
#[derive(Debug)]
pub(crate) struct Asking(Handle);

impl Asking {
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        std::thread::Builder::new()
            .name("metadata".to_owned())
            .spawn(move || runtime.block_on(pending::<()>()))?;
        Ok(Self(handle))
    }

    /// Runs there; what is given back can be waited for anywhere.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.0.spawn(work)
    }
}
