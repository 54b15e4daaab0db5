//! The configuration file and its drop-ins: every key, and errors that name file, line and remedy.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use enid_core::config::{Cni, Config as Choices, Mtu, PrimaryRules, Udev};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de};

/// Read when nothing else is said; it need not exist.
pub const DEFAULT_FILE: &str = "/etc/enid/enid.toml";
/// Where the control socket is when nothing else is said, below the runtime directory.
const SOCKET_NAME: &str = "control.sock";
/// Tables below this are the kernel's; 100·99 + 99 is the highest that an ENI adds to the base.
const TABLES: std::ops::RangeInclusive<u32> = 256..=u32::MAX - 10_000;
/// 100 priorities must fit between the base and main's rule.
const PRIORITIES: std::ops::RangeInclusive<u32> = 1..=32_600;

/// The configuration in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file it was read from, whether or not that exists.
    pub file: PathBuf,
    /// Where enid keeps what must outlive a restart.
    pub runtime_directory: PathBuf,
    /// Where operators reach the daemon.
    pub control_socket: PathBuf,
    /// What it decides by.
    pub choices: Choices,
    /// How it asks metadata.
    pub metadata: enid_imds::Options,
    /// How it logs.
    pub log: Log,
}

/// How to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// What to log, in the words of `tracing-subscriber`'s `EnvFilter`: `info`, `enid=debug`, …
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
}

struct Hint<'a>(Option<&'a str>);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |hint| write!(f, " (did you mean `{hint}`?)"))
    }
}

/// One file; what it leaves out is left as it is.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    runtime_directory: Option<PathBuf>,
    control_socket: Option<PathBuf>,
    #[serde(default, deserialize_with = "table_base")]
    table_base: Option<u32>,
    #[serde(default, deserialize_with = "priority_base")]
    priority_base: Option<u32>,
    #[serde(default, deserialize_with = "interval")]
    poll_interval: Option<Duration>,
    primary_rules: Option<PrimaryRulesKey>,
    #[serde(default, deserialize_with = "networks")]
    ignore_addresses: Option<Vec<IpNet>>,
    #[serde(default)]
    metadata: MetadataTable,
    #[serde(default)]
    removal: RemovalTable,
    #[serde(default)]
    links: LinksTable,
    #[serde(default)]
    neighbours: NeighboursTable,
    #[serde(default)]
    log: LogTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct MetadataTable {
    #[serde(default, deserialize_with = "endpoints")]
    endpoints: Option<Vec<String>>,
    allow_v1: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RemovalTable {
    #[serde(default, deserialize_with = "confirmations")]
    confirmations: Option<u32>,
    #[serde(default, deserialize_with = "duration")]
    grace: Option<Duration>,
    #[serde(default, deserialize_with = "duration")]
    mass_grace: Option<Duration>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LinksTable {
    udev: Option<UdevKey>,
    #[serde(default, deserialize_with = "mtu")]
    mtu: Option<Mtu>,
    #[serde(rename = "virtual")]
    virtual_links: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NeighboursTable {
    cni: Option<CniKey>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogTable {
    #[serde(default, deserialize_with = "level")]
    level: Option<String>,
    format: Option<LogFormat>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PrimaryRulesKey {
    Auto,
    Never,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum UdevKey {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum CniKey {
    Hold,
    Ignore,
}

fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(from)?;
    humantime::parse_duration(&text)
        .map(Some)
        .map_err(|cause| de::Error::custom(format!("{cause}: write a time as \"5s\" or \"2m\"")))
}

fn interval<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let interval = duration(from)?;
    match interval {
        Some(short) if short < Duration::from_millis(100) => {
            Err(de::Error::custom("poll_interval must be at least \"100ms\""))
        }
        _ => Ok(interval),
    }
}

fn number<'de, D: Deserializer<'de>>(
    from: D,
    allowed: std::ops::RangeInclusive<u32>,
) -> Result<Option<u32>, D::Error> {
    let number = i64::deserialize(from)?;
    u32::try_from(number).ok().filter(|number| allowed.contains(number)).map(Some).ok_or_else(
        || {
            let (low, high) = (allowed.start(), allowed.end());
            de::Error::custom(format!("{number} is not between {low} and {high}"))
        },
    )
}

fn table_base<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    number(from, TABLES)
}

fn priority_base<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    number(from, PRIORITIES)
}

fn confirmations<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    number(from, 1..=1000)
}

fn networks<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<IpNet>>, D::Error> {
    let words = Vec::<String>::deserialize(from)?;
    let parse = |word: &String| {
        let address = || word.parse().map(|address: std::net::IpAddr| IpNet::from(address));
        word.parse::<IpNet>().or_else(|_| address()).map_err(|_| {
            de::Error::custom(format!("\"{word}\" is neither an address nor a network"))
        })
    };
    words.iter().map(parse).collect::<Result<_, _>>().map(Some)
}

fn endpoints<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    let endpoints = Vec::<String>::deserialize(from)?;
    let options = enid_imds::Options { endpoints, ..enid_imds::Options::default() };
    // The client knows best what an endpoint may be.
    enid_imds::Client::new(options.clone()).map_err(|cause| de::Error::custom(chain(&cause)))?;
    Ok(Some(options.endpoints))
}

fn mtu<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Mtu>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Key {
        Bytes(i64),
        Word(String),
    }
    let wrong = || de::Error::custom("mtu is \"primary\", \"keep\" or a number from 1280 to 65535");
    match Key::deserialize(from)? {
        Key::Word(word) if word == "primary" => Ok(Some(Mtu::Primary)),
        Key::Word(word) if word == "keep" => Ok(Some(Mtu::Keep)),
        Key::Word(_) => Err(wrong()),
        Key::Bytes(bytes) => {
            let bytes = u32::try_from(bytes).ok().filter(|bytes| (1280..=65_535).contains(bytes));
            bytes.map(|bytes| Some(Mtu::Bytes(bytes))).ok_or_else(wrong)
        }
    }
}

fn level<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let level = String::deserialize(from)?;
    tracing_subscriber::EnvFilter::try_new(&level)
        .map_err(|cause| de::Error::custom(format!("not a log level: {cause}")))?;
    Ok(Some(level))
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
    let mut files = Vec::new();
    match read(file) {
        Ok(read) => files.push(read),
        Err(Error::Read { source, .. })
            if path.is_none() && source.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    for drop_in in drop_ins(&drop_in_directory(file))? {
        files.push(read(&drop_in)?);
    }
    Ok(merge(file.to_owned(), files))
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

fn read(file: &Path) -> Result<File, Error> {
    let text =
        fs::read_to_string(file).map_err(|source| Error::Read { file: file.to_owned(), source })?;
    parse(file, &text)
}

fn parse(file: &Path, text: &str) -> Result<File, Error> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let before = text.get(..start).unwrap_or(text);
        let (message, hint) = explain(error.message());
        Error::Content {
            file: file.to_owned(),
            line: before.matches('\n').count() + 1,
            message,
            hint,
        }
    })
}

/// Says what is wrong, and which of the known words was probably meant.
fn explain(message: &str) -> (String, Option<String>) {
    let words: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let unknown = ["unknown field", "unknown variant"].iter().any(|s| message.starts_with(s));
    let Some((wrong, known)) = words.split_first().filter(|_| unknown) else {
        return (message.replace('\n', " "), None);
    };
    let closest = known
        .iter()
        .map(|word| (strsim::jaro_winkler(wrong, word), *word))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    (message.replace('\n', " "), closest.map(|(_, word)| word.to_owned()))
}

fn merge(file: PathBuf, files: Vec<File>) -> Config {
    let mut runtime_directory = None;
    let mut control_socket = None;
    let mut choices = Choices::default();
    let mut metadata = enid_imds::Options::default();
    let mut log = Log { level: "info".to_owned(), format: LogFormat::Auto };
    for file in files {
        set(&mut runtime_directory, file.runtime_directory.map(Some));
        set(&mut control_socket, file.control_socket.map(Some));
        set(&mut choices.table_base, file.table_base);
        set(&mut choices.priority_base, file.priority_base);
        set(&mut choices.poll_interval, file.poll_interval);
        set(&mut choices.ignore_addresses, file.ignore_addresses);
        let rules = file.primary_rules.map(|key| match key {
            PrimaryRulesKey::Auto => PrimaryRules::Auto,
            PrimaryRulesKey::Never => PrimaryRules::Never,
        });
        set(&mut choices.primary_rules, rules);
        set(&mut metadata.endpoints, file.metadata.endpoints);
        set(&mut metadata.allow_v1, file.metadata.allow_v1);
        set(&mut choices.removal.confirmations, file.removal.confirmations);
        set(&mut choices.removal.grace, file.removal.grace);
        set(&mut choices.removal.mass_grace, file.removal.mass_grace);
        let udev = file.links.udev.map(|key| match key {
            UdevKey::Auto => Udev::Auto,
            UdevKey::Always => Udev::Always,
            UdevKey::Never => Udev::Never,
        });
        set(&mut choices.udev, udev);
        set(&mut choices.mtu, file.links.mtu);
        set(&mut choices.virtual_links, file.links.virtual_links);
        let cni = file.neighbours.cni.map(|key| match key {
            CniKey::Hold => Cni::Hold,
            CniKey::Ignore => Cni::Ignore,
        });
        set(&mut choices.cni, cni);
        set(&mut log.level, file.log.level);
        set(&mut log.format, file.log.format);
    }
    let runtime_directory = runtime_directory.unwrap_or_else(default_runtime_directory);
    let control_socket = control_socket.unwrap_or_else(|| runtime_directory.join(SOCKET_NAME));
    Config { file, runtime_directory, control_socket, choices, metadata, log }
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
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(Path::new("/etc/enid/enid.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_key_is_refused_with_file_line_and_a_suggestion() {
        let text = error("poll_interval = \"5s\"\n\n[removal]\ngrase = \"1m\"\n");
        assert!(text.starts_with("/etc/enid/enid.toml:4: unknown field `grase`"), "{text}");
        assert!(text.ends_with("(did you mean `grace`?)"), "{text}");
    }

    #[test]
    fn wrong_values_say_what_would_be_right() {
        for (text, part) in [
            ("poll_interval = 5", "line"),
            ("poll_interval = \"5 parsecs\"", "\"5s\""),
            ("poll_interval = \"1ms\"", "at least"),
            ("table_base = 3", "256"),
            ("primary_rules = \"allways\"", "`auto`"),
            ("ignore_addresses = [\"10.0.0\"]", "10.0.0"),
            ("[links]\nmtu = 100", "1280"),
            ("[metadata]\nendpoints = [\"https://example.org\"]", "endpoint"),
            ("[removal]\nconfirmations = 0", "between 1"),
            ("[log]\nlevel = \"a=b=c\"", "log level"),
        ] {
            let text = format!("line {}", error(text));
            assert!(text.contains(part), "{text}");
            assert!(text.contains("enid.toml:"), "{text}");
        }
    }

    #[test]
    fn later_drop_ins_win_and_leave_the_rest_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("enid.toml");
        fs::write(&file, "table_base = 30000\n[removal]\ngrace = \"1s\"\n").unwrap();
        fs::create_dir(directory.path().join("enid.d")).unwrap();
        fs::write(directory.path().join("enid.d/20.toml"), "[removal]\ngrace = \"3s\"\n").unwrap();
        fs::write(directory.path().join("enid.d/10.toml"), "[removal]\ngrace = \"2s\"\n").unwrap();
        fs::write(directory.path().join("enid.d/30.toml~"), "nonsense").unwrap();
        let config = load(Some(&file)).unwrap();
        assert_eq!(config.choices.table_base, 30_000);
        assert_eq!(config.choices.removal.grace, Duration::from_secs(3));
        assert_eq!(config.choices.removal.confirmations, 3);
    }

    #[test]
    fn a_file_that_was_asked_for_must_exist() {
        let text = chain(&load(Some(Path::new("/nonexistent/enid.toml"))).unwrap_err());
        assert!(text.contains("/nonexistent/enid.toml"), "{text}");
    }

    #[test]
    fn every_key_is_documented() {
        let documentation = include_str!("../../../docs/configuration.md");
        for table in TABLES {
            let section = documentation.split("\n## ").find(|section| match table.trim() {
                "" => section.starts_with("Top level"),
                name => section.starts_with(&format!("`{name}`")),
            });
            let section = section.unwrap_or_else(|| panic!("{table} is not documented"));
            assert!(!keys(table).is_empty(), "{table} has no keys");
            for key in keys(table) {
                assert!(
                    section.contains(&format!("| `{key}` |")),
                    "{table}{key} is not documented"
                );
            }
        }
    }

    /// The names of the tables, each as a heading; nothing for the keys outside.
    const TABLES: [&str; 6] =
        ["", "[metadata]\n", "[removal]\n", "[links]\n", "[neighbours]\n", "[log]\n"];

    /// The keys that a table may have: the refusal of an unknown one lists them.
    fn keys(table: &str) -> Vec<String> {
        let message = error(&format!("{table}no_such_key = 1\n"));
        let keys = message.split('`').skip(3).step_by(2);
        keys.filter(|key| !table.is_empty() || !is_table(key)).map(str::to_owned).collect()
    }

    #[test]
    fn the_packaged_file_shows_every_key_with_its_default() {
        let file = Path::new("/etc/enid/enid.toml");
        let packaged = include_str!("../../../packaging/enid.toml");
        let defaults = merge(file.to_owned(), Vec::new());
        let read = |text: &str| merge(file.to_owned(), vec![parse(file, text).unwrap()]);
        assert_eq!(read(packaged), defaults, "something is set");

        // A setting follows its # at once, words come after a space.
        let mut shown = String::new();
        for line in packaged.lines() {
            let setting = line.strip_prefix('#').filter(|rest| !rest.starts_with(' '));
            shown.push_str(setting.unwrap_or(line));
            shown.push('\n');
        }
        assert_eq!(read(&shown), defaults, "a default is not what is shown");
        for table in TABLES {
            let section = shown.split("\n[").find(|section| {
                let heading = table.trim().trim_start_matches('[');
                section.starts_with(heading)
            });
            for key in keys(table) {
                let shows = |line: &str| line.starts_with(&format!("{key} = "));
                assert!(section.unwrap().lines().any(shows), "{table}{key} is not shown");
            }
        }
    }

    fn is_table(key: &str) -> bool {
        ["metadata", "removal", "links", "neighbours", "log"].contains(&key)
    }
}
