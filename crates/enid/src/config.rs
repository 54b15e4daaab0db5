//! The configuration file and its drop-ins: read, put together, or refused with file, line and remedy.

mod eni;
mod file;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use enid_core::choice::{Contradiction, Entry};
use enid_core::config::Config as Choices;
use serde::Deserialize;

use self::file::File;

/// Read when nothing else is said; it need not exist.
pub const DEFAULT_FILE: &str = "/etc/enid/enid.toml";
/// Where the control socket is when nothing else is said, below the runtime directory.
const SOCKET_NAME: &str = "control.sock";

/// The configuration in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file it was read from, whether or not that exists.
    pub file: PathBuf,
    /// Where enid keeps what must outlive a restart.
    pub runtime_directory: PathBuf,
    /// Where operators reach the daemon.
    pub control_socket: PathBuf,
    /// The group whose members may change something, beside root and the daemon's own user.
    pub control_group: Option<String>,
    /// What it decides by.
    pub choices: Choices,
    /// How it asks metadata.
    pub metadata: enid_imds::Options,
    /// How it logs.
    pub log: Log,
    /// Where node-exporter's textfile collector finds the metrics.
    pub textfile: Option<PathBuf>,
}

/// How to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// What to log, in the words of `tracing-subscriber`'s `Targets`: `info`, `enid=debug`, …
    pub level: String,
    /// Where to.
    pub format: LogFormat,
}

/// Where log lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// The journal where systemd connected it, else text.
    Auto,
    /// The journal, with fields.
    Journal,
    /// Lines on standard error.
    Text,
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("reading {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file says something that cannot be used.
    #[error("{}:{line}: {message}{}", file.display(), Hint(hint.as_deref()))]
    Content {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
        /// What was probably meant.
        hint: Option<String>,
    },
    /// Two `[[eni]]` entries for the same ENIs do not agree.
    #[error(
        "{}: `{}` says something else than {} does for the same ENIs: change or remove one of the two",
        .0.places[1], .0.key, .0.places[0]
    )]
    Contradiction(Contradiction),
}

/// One file as it was read.
#[derive(Debug)]
struct Part {
    keys: File,
    enis: Vec<Entry>,
}

struct Hint<'a>(Option<&'a str>);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |hint| write!(f, " (did you mean `{hint}`?)"))
    }
}

/// A text that may quote a file, fit for a line of the journal: what controls a terminal or turns the
/// direction of writing is spelled out.
pub(crate) fn printable(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\'' | '\\' => line.push(c),
            c => line.extend(c.escape_debug()),
        }
    }
    line
}

/// An error and all that caused it, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// The directory of drop-ins of a configuration file: `enid.toml` has `enid.d`.
#[must_use]
pub fn drop_in_directory(file: &Path) -> PathBuf {
    file.with_extension("d")
}

/// Reads the file and its drop-ins, in the order of their names; later ones win.
///
/// Without a path it is [`DEFAULT_FILE`], which need not exist. A path that was asked for must.
///
/// # Errors
/// The first file that cannot be read or used.
pub fn load(path: Option<&Path>) -> Result<Config, Error> {
    let file = path.unwrap_or(Path::new(DEFAULT_FILE));
    let mut parts = Vec::new();
    match read(file) {
        Ok(part) => parts.push(part),
        Err(Error::Read { source, .. })
            if path.is_none() && source.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    for drop_in in drop_ins(&drop_in_directory(file))? {
        parts.push(read(&drop_in)?);
    }
    whole(file, parts)
}

/// The same from texts.
#[cfg(feature = "fuzzing")]
pub(crate) fn of_texts(files: &[&str]) -> Result<Config, Error> {
    let file = Path::new(DEFAULT_FILE);
    let parts = files.iter().map(|text| parse(file, text)).collect::<Result<_, _>>()?;
    whole(file, parts)
}

fn whole(file: &Path, parts: Vec<Part>) -> Result<Config, Error> {
    let config = merge(file.to_owned(), parts);
    config.choices.consistent().map_err(Error::Contradiction)?;
    Ok(config)
}

fn drop_ins(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let wrong = |source| Error::Read { file: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(wrong(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(wrong)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
        if path.extension().is_some_and(|extension| extension == "toml") && !hidden {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(file: &Path) -> Result<Part, Error> {
    let text =
        fs::read_to_string(file).map_err(|source| Error::Read { file: file.to_owned(), source })?;
    parse(file, &text)
}

fn parse(file: &Path, text: &str) -> Result<Part, Error> {
    let line = |offset: usize| text.get(..offset).unwrap_or(text).matches('\n').count() + 1;
    let refused = |offset, (message, hint): (String, _)| Error::Content {
        file: file.to_owned(),
        line: line(offset),
        message: printable(&message),
        hint,
    };
    let mut keys: File = toml::from_str(text).map_err(|mut error| {
        // Without the text it names the key instead of showing the line.
        error.set_input(None);
        refused(error.span().map_or(0, |span| span.start), explain(&error.to_string()))
    })?;
    let mut enis = Vec::new();
    for table in std::mem::take(&mut keys.eni) {
        let place = |offset| format!("{}:{}", file.display(), line(offset));
        let entries = eni::entries(table, place);
        enis.extend(entries.map_err(|(offset, message)| refused(offset, (message, None)))?);
    }
    Ok(Part { keys, enis })
}

/// Says what is wrong with which key, and which of the known words was probably meant.
fn explain(message: &str) -> (String, Option<String>) {
    let (message, key) = match message.trim_end().rsplit_once("\nin `") {
        Some((message, key)) => (message, Some(key.trim_end_matches('`'))),
        None => (message.trim_end(), None),
    };
    let words: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let field = message.starts_with("unknown field");
    let text = match key.filter(|_| !field) {
        Some(key) => format!("`{key}`: {message}"),
        None => message.to_owned(),
    };
    // What the parser says of a number or a list where one of several words belongs.
    let text = text.replace("wanted string or table", "write one of its words in quotes");
    let text = text.replace('\n', " ");
    let unknown = field || message.starts_with("unknown variant");
    let Some((wrong, known)) = words.split_first().filter(|_| unknown) else {
        return (text, None);
    };
    if let Some(why) = eni::not_by_name(wrong, known) {
        return (format!("{text}: {why}"), None);
    }
    let closest = known
        .iter()
        .map(|word| (strsim::jaro_winkler(wrong, word), *word))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    (text, closest.map(|(_, word)| word.to_owned()))
}

fn merge(file: PathBuf, parts: Vec<Part>) -> Config {
    let mut runtime_directory = None;
    let mut control_socket = None;
    let mut control_group = None;
    let mut choices = Choices::default();
    let mut metadata = enid_imds::Options::default();
    let mut textfile = None;
    let mut log = Log { level: "info".to_owned(), format: LogFormat::Auto };
    for Part { keys, enis } in parts {
        set(&mut runtime_directory, keys.runtime_directory.map(Some));
        set(&mut control_socket, keys.control_socket.map(Some));
        let group = keys.control_group;
        set(&mut control_group, group.map(|group| (!group.is_empty()).then_some(group)));
        set(&mut choices.table_base, keys.table_base);
        set(&mut choices.priority_base, keys.priority_base);
        set(&mut choices.poll_interval, keys.poll_interval);
        set(&mut choices.ignore_addresses, keys.ignore_addresses);
        set(&mut choices.primary_rules, keys.primary_rules.map(Into::into));
        set(&mut choices.prefixes, keys.prefixes.map(Into::into));
        set(&mut metadata.endpoints, keys.metadata.endpoints);
        set(&mut metadata.allow_v1, keys.metadata.allow_v1);
        set(&mut choices.removal.confirmations, keys.removal.confirmations);
        set(&mut choices.removal.grace, keys.removal.grace);
        set(&mut choices.removal.mass_grace, keys.removal.mass_grace);
        set(&mut choices.udev, keys.links.udev.map(Into::into));
        set(&mut choices.mtu, keys.links.mtu.map(|mtu| mtu.0));
        set(&mut choices.virtual_links, keys.links.virtual_links);
        set(&mut choices.cni, keys.neighbours.cni.map(Into::into));
        let file = keys.metrics.textfile;
        set(&mut textfile, file.map(|file| (!file.as_os_str().is_empty()).then_some(file)));
        set(&mut log.level, keys.log.level);
        set(&mut log.format, keys.log.format);
        choices.enis.extend(enis);
    }
    choices.metadata = metadata.addresses();
    let runtime_directory = runtime_directory.unwrap_or_else(default_runtime_directory);
    let control_socket = control_socket.unwrap_or_else(|| runtime_directory.join(SOCKET_NAME));
    Config {
        file,
        runtime_directory,
        control_socket,
        control_group,
        choices,
        metadata,
        log,
        textfile,
    }
}

fn set<T>(value: &mut T, said: Option<T>) {
    if let Some(said) = said {
        *value = said;
    }
}

/// Where systemd says, else `/run/enid`.
fn default_runtime_directory() -> PathBuf {
    std::env::var("RUNTIME_DIRECTORY")
        .ok()
        .and_then(|list| list.split(':').next().map(PathBuf::from))
        .filter(|path| path.is_absolute())
        .unwrap_or_else(|| PathBuf::from("/run/enid"))
}

#[cfg(test)]
mod tests;
