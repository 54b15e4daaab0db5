//! A socket of the system's that a test plays: systemd's, the journal's.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;

/// Keeps what is said on a datagram socket. It is read at once: a full socket would make the
/// daemon wait.
pub struct Listener {
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Makes the socket and listens until this is dropped.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn start(path: &Path) -> anyhow::Result<Listener> {
        let socket = UnixDatagram::bind(path)
            .with_context(|| format!("cannot make the socket {}", path.display()))?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (own_heard, own_stop) = (Arc::clone(&heard), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut bytes = [0; 65536];
            while !own_stop.load(Ordering::Relaxed) {
                if let Ok(length) = socket.recv(&mut bytes) {
                    lock(&own_heard).push(bytes[..length].to_vec());
                }
            }
        });
        Ok(Listener { heard, stop, thread: Some(thread) })
    }

    /// Every message so far, in the order in which they came.
    #[must_use]
    pub fn messages(&self) -> Vec<Vec<u8>> {
        lock(&self.heard).clone()
    }

    /// Begins anew.
    pub(crate) fn forget(&self) {
        lock(&self.heard).clear();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there was already printed.
            let _ = thread.join();
        }
    }
}

fn lock(heard: &Mutex<Vec<Vec<u8>>>) -> MutexGuard<'_, Vec<Vec<u8>>> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}
