//! The file that node-exporter's textfile collector reads: written off the loop, whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use enid_control::EventKind;
use enid_core::time::Instant;
use tokio::sync::watch;

use crate::chronicle::{Chronicle, Line, Weight};
use crate::clock::now;

/// It is never older than this while the daemon runs.
const REGULARLY: Duration = Duration::from_secs(15);
/// And is not written more often than this, however much changes.
const AT_MOST: Duration = Duration::from_secs(1);
/// An unchanged error is said again after this long.
const REPEAT: Duration = Duration::from_secs(3600);

/// What the file holds and where it is.
#[derive(Debug, Clone)]
struct Page {
    path: PathBuf,
    text: String,
}

/// When to write the file, and who does.
#[derive(Debug)]
pub(crate) struct Textfile {
    path: Option<PathBuf>,
    /// The last one; none where there shall be no file.
    pages: watch::Sender<Option<Page>>,
    written: Option<Instant>,
    stale: bool,
}

impl Textfile {
    /// Starts who writes, in a task of this runtime.
    pub(crate) fn start(chronicle: Chronicle) -> Self {
        let (pages, latest) = watch::channel(None);
        tokio::spawn(write_on(latest, chronicle));
        Self { path: None, pages, written: None, stale: true }
    }

    /// From now on it is here, or nowhere; the one that was written elsewhere goes.
    pub(crate) fn put(&mut self, path: Option<&Path>) {
        if self.path.as_deref() == path {
            return;
        }
        self.path = path.map(Path::to_owned);
        (self.written, self.stale) = (None, true);
        if self.path.is_none() {
            self.pages.send_replace(None);
        }
    }

    /// Something has changed that it tells.
    pub(crate) fn outdated(&mut self) {
        self.stale = true;
    }

    /// When it is to be written.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.path.as_ref()?;
        let pause = if self.stale { AT_MOST } else { REGULARLY };
        Some(self.written.map_or(Instant::default(), |written| written + pause))
    }

    /// Has it written; whoever writes takes the last one where several wait.
    pub(crate) fn write(&mut self, now: Instant, text: String) {
        if let Some(path) = self.path.clone() {
            (self.written, self.stale) = (Some(now), false);
            self.pages.send_replace(Some(Page { path, text }));
        }
    }
}

async fn write_on(mut latest: watch::Receiver<Option<Page>>, chronicle: Chronicle) {
    let mut said = Said { chronicle, last: None };
    let mut before: Option<PathBuf> = None;
    while latest.changed().await.is_ok() {
        let page = latest.borrow_and_update().clone();
        let path = page.as_ref().map(|page| page.path.clone());
        let gone = before.take().filter(|before| path.as_ref() != Some(before));
        before.clone_from(&path);
        // A file system that hangs holds up this file and nothing else.
        let written = tokio::task::spawn_blocking(move || {
            // If it cannot be removed, its age says that nobody writes it any more.
            let _ = gone.map(fs::remove_file);
            page.map_or(Ok(()), |page| page.write())
        });
        if let (Ok(written), Some(path)) = (written.await, path) {
            said.written(&path, written);
        }
    }
}

/// Says once what is wrong.
struct Said {
    chronicle: Chronicle,
    last: Option<(String, Instant)>,
}

impl Said {
    fn written(&mut self, path: &Path, result: io::Result<()>) {
        let Err(error) = result else {
            if self.last.take().is_some() {
                let text = format!("metrics are written to {} again", path.display());
                tell(&self.chronicle, Weight::Info, EventKind::Daemon, None, text);
            }
            return;
        };
        let text = format!("writing metrics to {}: {error}", path.display());
        let known = |(last, at): &(String, Instant)| *last == text && now() - *at < REPEAT;
        if !self.last.as_ref().is_some_and(known) {
            let line = format!("{text}; {}", remedy(path));
            tell(&self.chronicle, Weight::Error, EventKind::Failed, Some(text.clone()), line);
            self.last = Some((text, now()));
        }
    }
}

fn tell(
    chronicle: &Chronicle,
    weight: Weight,
    kind: EventKind,
    reason: Option<String>,
    text: String,
) {
    chronicle.tell(now(), weight, kind, Line { reason, text, ..Line::default() });
}

fn remedy(path: &Path) -> String {
    let directory = path.parent().unwrap_or(path).display();
    format!(
        "everything else goes on. The directory must be writable for enid's user \
         (sudo install -d -g enid -m 0775 {directory}) and named in ReadWritePaths= of enid.service"
    )
}

impl Page {
    fn write(&self) -> io::Result<()> {
        // node-exporter reads no such name.
        let new = self.path.with_extension("prom.new");
        // Who else may write here could have put a link in its place, which is not to be followed.
        let _ = fs::remove_file(&new);
        let mut file = File::options().write(true).create_new(true).mode(0o644).open(&new)?;
        let written = file.write_all(self.text.as_bytes());
        written.and_then(|()| fs::rename(&new, &self.path)).inspect_err(|_| {
            // It takes room that may be what is lacking.
            let _ = fs::remove_file(&new);
        })
    }
}
