//! Faults on demand, for tests: the feature `faults` is in no program that is shipped.
//!
//! `ENID_FAULTS` names a directory. Its file `script` says what shall happen, one line each, and is
//! read at every point that the daemon passes; its file `points` lists the points passed so far.
//! Points and steps are counted from 0 since the script was last changed, or since the start.
//!
//! - `kill POINT`: the daemon dies there, as by SIGKILL.
//! - `pause POINT`: it stands still there until the file `paused`, which it makes, is removed.
//! - `refuse ERRNO TIMES step STEP`: that step is refused so many times, or `always`.
//! - `refuse ERRNO TIMES like TEXT`: all steps are, whose command has the text in it.
//! - `look ERRNO TIMES`: looking at the kernel fails so many times, or `always`.
//! - `interrupt COUNT like TEXT`: dumps of more than so many are interrupted, when what is tried has
//!   the text in it.
//! - `lose TIMES`: the socket for requests breaks under so many looks or steps.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use enid_core::plan::Step;
use nix::sys::signal::{Signal, kill};
use nix::unistd::getpid;

use crate::error::Error;

/// The variable that names the directory.
const VARIABLE: &str = "ENID_FAULTS";

/// Whether to treat the kernel as one before 5.18, which does not keep who made an address
/// (`ENID_FAULTS_OLD_KERNEL`).
pub(crate) fn forgets_protocols() -> bool {
    static OLD: OnceLock<bool> = OnceLock::new();
    *OLD.get_or_init(|| std::env::var_os("ENID_FAULTS_OLD_KERNEL").is_some())
}

/// What has been counted since the script was last changed.
#[derive(Default)]
struct Counted {
    script: String,
    points: usize,
    steps: usize,
    /// How often each line came true.
    done: BTreeMap<usize, usize>,
}

static COUNTED: Mutex<Counted> =
    Mutex::new(Counted { script: String::new(), points: 0, steps: 0, done: BTreeMap::new() });

fn directory() -> Option<&'static Path> {
    static DIRECTORY: OnceLock<Option<PathBuf>> = OnceLock::new();
    DIRECTORY.get_or_init(|| std::env::var_os(VARIABLE).map(PathBuf::from)).as_deref()
}

/// Whether faults are asked for at all; steps go one by one then.
pub(crate) fn wanted() -> bool {
    directory().is_some()
}

impl Counted {
    fn read(&mut self, directory: &Path) {
        let script = fs::read_to_string(directory.join("script")).unwrap_or_default();
        if script != self.script {
            *self = Self { script, ..Self::default() };
        }
    }

    /// The lines that begin with this word: their numbers and the words after it.
    fn lines(&self, word: &str) -> Vec<(usize, Vec<String>)> {
        let lines = self.script.lines().enumerate();
        let lines = lines.map(|(n, line)| (n, line.split(' ').map(str::to_owned).collect()));
        lines
            .filter(|(_, words): &(usize, Vec<String>)| words.first().is_some_and(|w| w == word))
            .map(|(n, words)| (n, words[1..].to_vec()))
            .collect()
    }

    /// Whether a line is to come true once more.
    fn once_more(&mut self, line: usize, times: &str) -> bool {
        let done = self.done.entry(line).or_default();
        let more = times == "always" || times.parse().is_ok_and(|times: usize| *done < times);
        *done += usize::from(more);
        more
    }
}

/// A point at which the daemon may die or stand still.
pub fn point(label: &str) {
    let Some(directory) = directory() else { return };
    let mut counted = COUNTED.lock().unwrap_or_else(PoisonError::into_inner);
    counted.read(directory);
    let here = counted.points.to_string();
    counted.points += 1;
    let file = OpenOptions::new().create(true).append(true).open(directory.join("points"));
    // A test that misses the line fails.
    let _ = file.and_then(|mut file| writeln!(file, "{label}"));
    let is_here = |word: &str| counted.lines(word).iter().any(|(_, words)| *words == [&*here]);
    if is_here("kill") {
        let _ = kill(getpid(), Signal::SIGKILL);
    }
    if is_here("pause") {
        let paused = directory.join("paused");
        let _ = fs::write(&paused, label);
        while paused.exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The point before a step, and the error number with which the step shall be refused.
pub(crate) fn before(step: &Step) -> Option<i32> {
    let directory = directory()?;
    let command = step.command(&|index| format!("if{}", index.0));
    point(&format!("before {command}"));
    let mut counted = COUNTED.lock().unwrap_or_else(PoisonError::into_inner);
    counted.read(directory);
    let here = counted.steps.to_string();
    counted.steps += 1;
    refusal(&mut counted, "refuse", |words| match words.split_first() {
        Some((how, text)) if how == "step" => *text == [&*here],
        Some((how, text)) if how == "like" => command.contains(&text.join(" ")),
        Some(_) | None => false,
    })
}

/// Whether a look at the kernel shall fail.
pub(crate) fn look(tried: &'static str) -> Result<(), Error> {
    let Some(directory) = directory() else { return Ok(()) };
    let mut counted = COUNTED.lock().unwrap_or_else(PoisonError::into_inner);
    counted.read(directory);
    let errno = refusal(&mut counted, "look", <[String]>::is_empty);
    errno.map_or(Ok(()), |errno| Err(Error::Refused { tried, errno, message: None }))
}

/// Whether a dump of so many shall count as interrupted.
pub(crate) fn interrupts(tried: &str, found: usize) -> bool {
    let Some(directory) = directory() else { return false };
    let mut counted = COUNTED.lock().unwrap_or_else(PoisonError::into_inner);
    counted.read(directory);
    counted.lines("interrupt").iter().any(|(_, words)| match words.as_slice() {
        [count, like, text @ ..] if like == "like" => {
            tried.contains(&text.join(" ")) && count.parse().is_ok_and(|most: usize| found > most)
        }
        _ => false,
    })
}

/// Whether the socket for requests shall break now.
pub(crate) fn lose() -> bool {
    let Some(directory) = directory() else { return false };
    let mut counted = COUNTED.lock().unwrap_or_else(PoisonError::into_inner);
    counted.read(directory);
    let lines = counted.lines("lose");
    lines.iter().any(|(line, words)| words.first().is_some_and(|n| counted.once_more(*line, n)))
}

/// The error number of a line with this word that is meant and is to come true once more.
fn refusal(counted: &mut Counted, word: &str, meant: impl Fn(&[String]) -> bool) -> Option<i32> {
    for (line, words) in counted.lines(word) {
        let [errno, times, rest @ ..] = words.as_slice() else { continue };
        if meant(rest) && counted.once_more(line, times) {
            return errno.parse().ok();
        }
    }
    None
}
