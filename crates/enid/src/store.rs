//! The ledger on disk: written before the kernel is asked, whole or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use enid_core::ledger::{Ledger, Pause};
use enid_core::object::{Mac, Setting, Sysctl, TableId};
use enid_core::time::Instant;
use serde::{Deserialize, Serialize};

use crate::config::printable;

const NAME: &str = "ledger.json";
const VERSION: u32 = 1;

/// The ledger could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It makes no sense.
    #[error("{} makes no sense ({why}); it was moved to {}", path.display(), aside.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Where it is now.
        aside: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It could not be written.
    #[error("writing {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Where the ledger is kept, and what was last written there.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    ledger: Ledger,
}

impl Store {
    /// Reads the ledger of a runtime directory; an absent one is empty.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(directory: &Path) -> Result<(Self, Option<Error>), Error> {
        let path = directory.join(NAME);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok((Self { path, ledger: Ledger::default() }, None));
            }
            Err(source) => return Err(Error::Read { path, source }),
        };
        match decode(&bytes) {
            Ok(ledger) => Ok((Self { path, ledger }, None)),
            Err(why) => {
                // The kernel's marks still say what is ours where it keeps them.
                let aside = path.with_extension("json.unreadable");
                let moved = fs::rename(&path, &aside);
                moved.map_err(|source| Error::Write { path: aside.clone(), source })?;
                let error = Error::Content { path: path.clone(), aside, why };
                Ok((Self { path, ledger: Ledger::default() }, Some(error)))
            }
        }
    }

    /// The ledger of a runtime directory, for looking only: nothing is moved aside.
    ///
    /// # Errors
    /// When it is there and cannot be read or makes no sense.
    pub fn reading(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(NAME);
        let ledger = match fs::read(&path) {
            Ok(bytes) => decode(&bytes).map_err(|why| Error::Read {
                path: path.clone(),
                source: io::Error::new(io::ErrorKind::InvalidData, why),
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ledger::default(),
            Err(source) => return Err(Error::Read { path, source }),
        };
        Ok(Self { path, ledger })
    }

    /// The ledger as it is on disk.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Writes it, unless it is there already.
    ///
    /// # Errors
    /// When it cannot be written; the old one is still there then.
    pub fn write(&mut self, ledger: Ledger) -> Result<(), Error> {
        if ledger == self.ledger {
            return Ok(());
        }
        self.replace(&encode(&ledger))
            .map_err(|source| Error::Write { path: self.path.clone(), source })?;
        self.ledger = ledger;
        Ok(())
    }

    fn replace(&self, text: &[u8]) -> io::Result<()> {
        let new = self.path.with_extension("json.new");
        point("the ledger is to be written");
        let mut file = File::create(&new)?;
        point("the ledger is begun");
        file.write_all(text)?;
        file.sync_all()?;
        point("the ledger is written and not yet in place");
        fs::rename(&new, &self.path)?;
        point("the ledger is in place");
        // The rename itself must survive, too.
        self.path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    }
}

/// Where a test may have the daemon die.
#[cfg(feature = "faults")]
use enid_kernel::faults::point;
#[cfg(not(feature = "faults"))]
fn point(_label: &str) {}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Disk {
    version: u32,
    addresses: BTreeMap<String, BTreeSet<IpAddr>>,
    tables: BTreeMap<String, u32>,
    originals: BTreeMap<String, BTreeSet<Original>>,
    released: BTreeSet<String>,
    released_all: bool,
    holds: BTreeMap<String, Hold>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hold {
    /// Since boot, as long as the runtime directory lasts.
    until_ms: Option<u64>,
    reason: String,
}

#[derive(Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
enum Original {
    Mtu(u32),
    AlternativeName(String),
    AcceptRaDefrtr(i32),
    AcceptRaPinfo(i32),
    ArpIgnore(i32),
    ArpAnnounce(i32),
    SrcValidMark(i32),
}

fn original(setting: &Setting) -> Option<Original> {
    match setting {
        Setting::Mtu(mtu) => Some(Original::Mtu(*mtu)),
        Setting::AlternativeName(name) => Some(Original::AlternativeName(name.clone())),
        Setting::Sysctl(key, value) => Some(match key {
            Sysctl::AcceptRaDefaultRoute => Original::AcceptRaDefrtr(*value),
            Sysctl::AcceptRaPrefix => Original::AcceptRaPinfo(*value),
            Sysctl::ArpIgnore => Original::ArpIgnore(*value),
            Sysctl::ArpAnnounce => Original::ArpAnnounce(*value),
            Sysctl::SourceValidMark => Original::SrcValidMark(*value),
        }),
        Setting::Up | Setting::Group(_) => None,
    }
}

fn setting(original: Original) -> Setting {
    match original {
        Original::Mtu(mtu) => Setting::Mtu(mtu),
        Original::AlternativeName(name) => Setting::AlternativeName(name),
        Original::AcceptRaDefrtr(value) => Setting::Sysctl(Sysctl::AcceptRaDefaultRoute, value),
        Original::AcceptRaPinfo(value) => Setting::Sysctl(Sysctl::AcceptRaPrefix, value),
        Original::ArpIgnore(value) => Setting::Sysctl(Sysctl::ArpIgnore, value),
        Original::ArpAnnounce(value) => Setting::Sysctl(Sysctl::ArpAnnounce, value),
        Original::SrcValidMark(value) => Setting::Sysctl(Sysctl::SourceValidMark, value),
    }
}

fn hold(pause: &Pause) -> Hold {
    let ms = |until: Instant| u64::try_from(until.0.as_millis()).unwrap_or(u64::MAX);
    Hold { until_ms: pause.until.map(ms), reason: pause.reason.clone() }
}

pub(crate) fn encode(ledger: &Ledger) -> Vec<u8> {
    let mut addresses: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    for (mac, address) in &ledger.addresses {
        addresses.entry(mac.to_string()).or_default().insert(*address);
    }
    let originals = ledger
        .originals
        .iter()
        .map(|(mac, settings)| (mac.to_string(), settings.iter().filter_map(original).collect()));
    let disk = Disk {
        version: VERSION,
        addresses,
        tables: ledger.tables.iter().map(|(mac, table)| (mac.to_string(), table.0)).collect(),
        originals: originals.collect(),
        released: ledger.released.iter().map(Mac::to_string).collect(),
        released_all: ledger.released_all,
        holds: ledger.holds.iter().map(|(mac, pause)| (mac.to_string(), hold(pause))).collect(),
    };
    // Strings, numbers and maps with string keys always serialise.
    serde_json::to_vec_pretty(&disk).unwrap_or_default()
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Ledger, String> {
    let disk: Disk =
        serde_json::from_slice(bytes).map_err(|error| printable(&error.to_string()))?;
    if disk.version != VERSION {
        return Err(format!("version {} is not {VERSION}", disk.version));
    }
    let mac = |text: &String| text.parse::<Mac>().map_err(|error| printable(&error.to_string()));
    let mut ledger = Ledger { released_all: disk.released_all, ..Ledger::default() };
    for (key, addresses) in &disk.addresses {
        let mac = mac(key)?;
        ledger.addresses.extend(addresses.iter().map(|address| (mac, *address)));
    }
    for (key, table) in &disk.tables {
        ledger.tables.insert(mac(key)?, TableId(*table));
    }
    for (key, originals) in disk.originals {
        ledger.originals.insert(mac(&key)?, originals.into_iter().map(setting).collect());
    }
    for key in &disk.released {
        ledger.released.insert(mac(key)?);
    }
    for (key, hold) in disk.holds {
        let until = hold.until_ms.map(|ms| Instant(Duration::from_millis(ms)));
        ledger.holds.insert(mac(&key)?, Pause { until, reason: hold.reason });
    }
    Ok(ledger)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Ledger {
        let mac = Mac([2, 0, 0, 0, 0, 7]);
        let mut ledger = Ledger::default();
        ledger.addresses.insert((mac, "10.0.0.5".parse().unwrap()));
        ledger.addresses.insert((mac, "2001:db8::5".parse().unwrap()));
        ledger.tables.insert(mac, TableId(20_001));
        let settings = [
            Setting::Mtu(1500),
            Setting::AlternativeName("eni-1".to_owned()),
            Setting::Sysctl(Sysctl::AcceptRaDefaultRoute, 1),
            Setting::Sysctl(Sysctl::AcceptRaPrefix, 1),
        ];
        ledger.originals.insert(mac, settings.into_iter().collect());
        ledger.released.insert(mac);
        let until = Some(Instant(Duration::from_millis(7_200_500)));
        let pause = Pause { until, reason: "\"migration\" of the database".to_owned() };
        ledger.holds.insert(Mac([2, 0, 0, 0, 0, 8]), pause);
        ledger
    }

    #[test]
    fn what_was_written_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let (mut store, trouble) = Store::open(directory.path()).unwrap();
        assert!(trouble.is_none());
        store.write(full()).unwrap();
        let (again, trouble) = Store::open(directory.path()).unwrap();
        assert!(trouble.is_none());
        assert_eq!(*again.ledger(), full());
    }

    #[test]
    fn a_ledger_that_makes_no_sense_is_kept_aside_and_named() {
        let directory = tempfile::tempdir().unwrap();
        for nonsense in [&b"{\"version\": 1, \"addr"[..], b"", b"\0\0\0", b"\xff\xfe"] {
            fs::write(directory.path().join(NAME), nonsense).unwrap();
            let (store, trouble) = Store::open(directory.path()).unwrap();
            assert_eq!(*store.ledger(), Ledger::default());
            let text = trouble.unwrap().to_string();
            assert!(text.contains("ledger.json.unreadable"), "{text}");
            let aside = fs::read(directory.path().join("ledger.json.unreadable")).unwrap();
            assert_eq!(aside, nonsense);
        }
    }

    #[test]
    fn a_ledger_that_cannot_be_written_leaves_the_old_one_in_force() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gone");
        fs::create_dir(&path).unwrap();
        let (mut store, _) = Store::open(&path).unwrap();
        fs::remove_dir(&path).unwrap();
        assert!(store.write(full()).is_err());
        assert_eq!(*store.ledger(), Ledger::default());
    }
}
