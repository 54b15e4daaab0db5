//! What makes the daemon look at its configuration again: files and signals.

use std::path::{Path, PathBuf};

use futures::StreamExt as _;
use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_tokio::Signals;
use tokio::sync::mpsc;
use tracing::warn;

use crate::config::drop_in_directory;

/// A signal that means something to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    Stop,
    Reload,
}

/// TERM and INT stop, HUP reloads.
pub(crate) struct SignalStream(Signals);

impl SignalStream {
    pub(crate) fn new() -> std::io::Result<Self> {
        Signals::new([SIGTERM, SIGINT, SIGHUP]).map(Self)
    }

    pub(crate) async fn next(&mut self) -> Signal {
        match self.0.next().await {
            Some(SIGHUP) => Signal::Reload,
            Some(_) => Signal::Stop,
            None => std::future::pending().await,
        }
    }
}

/// Watches the configuration file and its drop-ins, also while they do not exist.
#[derive(Debug)]
pub(crate) struct ConfigWatch {
    file: PathBuf,
    watcher: RecommendedWatcher,
    watched: Vec<PathBuf>,
    events: mpsc::Receiver<()>,
}

impl ConfigWatch {
    pub(crate) fn new(file: &Path) -> notify::Result<Self> {
        // One waiting event says as much as many.
        let (sender, events) = mpsc::channel(1);
        let (file_of, drop_ins) = (file.to_owned(), drop_in_directory(file));
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.map_or(true, |event| concerns(&event, &file_of, &drop_ins)) {
                // A full channel already says it.
                let _ = sender.try_send(());
            }
        })?;
        let mut watch = Self { file: file.to_owned(), watcher, watched: Vec::new(), events };
        watch.aim();
        Ok(watch)
    }

    /// Waits for a change of a file; what to watch may have changed with it.
    pub(crate) async fn changed(&mut self) {
        match self.events.recv().await {
            Some(()) => self.aim(),
            None => std::future::pending().await,
        }
    }

    /// Watches the directories, or what exists of the way to them.
    fn aim(&mut self) {
        let drop_ins = drop_in_directory(&self.file);
        let wanted = [self.file.parent(), Some(drop_ins.as_path())];
        let existing =
            |path: &Path| path.ancestors().find(|path| path.is_dir()).map(Path::to_owned);
        let mut wanted: Vec<PathBuf> = wanted.into_iter().flatten().filter_map(existing).collect();
        wanted.dedup();
        for old in &self.watched {
            // It may be gone, which ends the watch as well.
            let _ = self.watcher.unwatch(old);
        }
        for path in &wanted {
            if let Err(error) = self.watcher.watch(path, RecursiveMode::NonRecursive) {
                warn!("changes of {} go unnoticed until SIGHUP: {error}", path.display());
            }
        }
        self.watched = wanted;
    }
}

/// Reading a file is no change; neither is what happens to other files beside it.
fn concerns(event: &Event, file: &Path, drop_ins: &Path) -> bool {
    let change = match event.kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    };
    let ours = |path: &PathBuf| {
        path == file
            || path.starts_with(drop_ins)
            || file.starts_with(path)
            || drop_ins.starts_with(path)
    };
    change && (event.paths.is_empty() || event.paths.iter().any(ours))
}
