//! What one file may say: its tables, their keys, and which values each key takes.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr as _;
use std::time::Duration;

use enid_core::choice::Prefixes;
use enid_core::config::{Cni, Mtu, PrimaryRules, Udev};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de};
use toml::Spanned;
use tracing_subscriber::filter::Targets;

use super::eni::EniTable;
use super::{LogFormat, chain};

/// Tables below this are the kernel's; 100·99 + 99 is the highest that an ENI adds to the base.
const TABLES: RangeInclusive<u32> = 256..=u32::MAX - 10_000;
/// 100 priorities must fit between the base and main's rule.
const PRIORITIES: RangeInclusive<u32> = 1..=32_600;

/// One file; what it leaves out is left as it is.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) runtime_directory: Option<PathBuf>,
    pub(super) control_socket: Option<PathBuf>,
    #[serde(default, deserialize_with = "group")]
    pub(super) control_group: Option<String>,
    #[serde(default, deserialize_with = "table_base")]
    pub(super) table_base: Option<u32>,
    #[serde(default, deserialize_with = "priority_base")]
    pub(super) priority_base: Option<u32>,
    #[serde(default, deserialize_with = "interval")]
    pub(super) poll_interval: Option<Duration>,
    pub(super) primary_rules: Option<PrimaryRulesKey>,
    #[serde(default, deserialize_with = "networks")]
    pub(super) ignore_addresses: Option<Vec<IpNet>>,
    pub(super) prefixes: Option<PrefixesKey>,
    #[serde(default)]
    pub(super) metadata: MetadataTable,
    #[serde(default)]
    pub(super) removal: RemovalTable,
    #[serde(default)]
    pub(super) links: LinksTable,
    #[serde(default)]
    pub(super) neighbours: NeighboursTable,
    #[serde(default)]
    pub(super) metrics: MetricsTable,
    #[serde(default)]
    pub(super) log: LogTable,
    #[serde(default)]
    pub(super) eni: Vec<Spanned<EniTable>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MetadataTable {
    #[serde(default, deserialize_with = "endpoints")]
    pub(super) endpoints: Option<Vec<String>>,
    pub(super) allow_v1: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RemovalTable {
    #[serde(default, deserialize_with = "confirmations")]
    pub(super) confirmations: Option<u32>,
    #[serde(default, deserialize_with = "duration")]
    pub(super) grace: Option<Duration>,
    #[serde(default, deserialize_with = "duration")]
    pub(super) mass_grace: Option<Duration>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LinksTable {
    pub(super) udev: Option<UdevKey>,
    pub(super) mtu: Option<MtuKey>,
    #[serde(rename = "virtual")]
    pub(super) virtual_links: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NeighboursTable {
    pub(super) cni: Option<CniKey>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MetricsTable {
    #[serde(default, deserialize_with = "textfile")]
    pub(super) textfile: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogTable {
    #[serde(default, deserialize_with = "level")]
    pub(super) level: Option<String>,
    pub(super) format: Option<LogFormat>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum PrimaryRulesKey {
    Auto,
    Never,
}

impl From<PrimaryRulesKey> for PrimaryRules {
    fn from(key: PrimaryRulesKey) -> Self {
        match key {
            PrimaryRulesKey::Auto => Self::Auto,
            PrimaryRulesKey::Never => Self::Never,
        }
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum UdevKey {
    Auto,
    Always,
    Never,
}

impl From<UdevKey> for Udev {
    fn from(key: UdevKey) -> Self {
        match key {
            UdevKey::Auto => Self::Auto,
            UdevKey::Always => Self::Always,
            UdevKey::Never => Self::Never,
        }
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum CniKey {
    Hold,
    Ignore,
}

impl From<CniKey> for Cni {
    fn from(key: CniKey) -> Self {
        match key {
            CniKey::Hold => Self::Hold,
            CniKey::Ignore => Self::Ignore,
        }
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum PrefixesKey {
    Rules,
    Local,
    Ignore,
}

impl From<PrefixesKey> for Prefixes {
    fn from(key: PrefixesKey) -> Self {
        match key {
            PrefixesKey::Rules => Self::Rules,
            PrefixesKey::Local => Self::Local,
            PrefixesKey::Ignore => Self::Ignore,
        }
    }
}

/// `"primary"`, `"keep"` or a number of bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct MtuKey(pub(super) Mtu);

impl<'de> Deserialize<'de> for MtuKey {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Key {
            Bytes(i64),
            Word(String),
            Other(de::IgnoredAny),
        }
        let mtu = match Key::deserialize(from)? {
            Key::Word(word) if word == "primary" => Some(Mtu::Primary),
            Key::Word(word) if word == "keep" => Some(Mtu::Keep),
            Key::Bytes(bytes) => u32::try_from(bytes)
                .ok()
                .filter(|bytes| (1280..=65_535).contains(bytes))
                .map(Mtu::Bytes),
            Key::Word(_) | Key::Other(_) => None,
        };
        mtu.map(Self).ok_or_else(|| {
            de::Error::custom("write \"primary\", \"keep\" or a number from 1280 to 65535")
        })
    }
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
            Err(de::Error::custom("the shortest is \"100ms\""))
        }
        _ => Ok(interval),
    }
}

fn number<'de, D: Deserializer<'de>>(
    from: D,
    allowed: RangeInclusive<u32>,
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
    words
        .iter()
        .map(|word| network(word).map_err(de::Error::custom))
        .collect::<Result<_, _>>()
        .map(Some)
}

/// An address stands for the network that holds nothing else.
pub(super) fn network(word: &str) -> Result<IpNet, String> {
    let address = || word.parse().map(|address: IpAddr| IpNet::from(address));
    word.parse::<IpNet>().or_else(|_| address()).map_err(|_| {
        format!(
            "\"{word}\" is neither an address nor a network: write \"10.0.1.7\" or \"10.0.1.0/24\""
        )
    })
}

fn endpoints<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    let endpoints = Vec::<String>::deserialize(from)?;
    let options = enid_imds::Options { endpoints, ..enid_imds::Options::default() };
    // The client knows best what an endpoint may be.
    enid_imds::Client::new(options.clone()).map_err(|cause| de::Error::custom(chain(&cause)))?;
    Ok(Some(options.endpoints))
}

fn group<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let group = String::deserialize(from)?;
    if group.chars().any(|c| c == ':' || c.is_whitespace() || c.is_control()) {
        return Err(de::Error::custom("write the name of a group: \"adm\""));
    }
    Ok(Some(group))
}

fn textfile<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
    let file = PathBuf::deserialize(from)?;
    let none = file.as_os_str().is_empty();
    let prom = file.extension().is_some_and(|extension| extension == "prom");
    let usable = prom && file.is_absolute();
    if !none && !usable {
        return Err(de::Error::custom(
            "node-exporter reads files that end in .prom:              \"/var/lib/prometheus/node-exporter/enid.prom\"",
        ));
    }
    Ok(Some(file))
}

fn level<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let level = String::deserialize(from)?;
    Targets::from_str(&level)
        .map_err(|cause| de::Error::custom(format!("not a log level: {cause}")))?;
    Ok(Some(level))
}
