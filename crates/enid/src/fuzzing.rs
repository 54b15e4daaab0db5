//! Ways in for fuzzing: texts of files, read as if they had been there.

use enid_core::ledger::Ledger;

use crate::config::{Config, Error};

/// Reads a configuration file and its drop-ins.
///
/// # Errors
/// The first that cannot be used.
pub fn config(files: &[&str]) -> Result<Config, Error> {
    crate::config::of_texts(files)
}

/// Reads a ledger; what it says, and how it is written again.
///
/// # Errors
/// When it makes no sense.
pub fn ledger(file: &[u8]) -> Result<(Ledger, Vec<u8>), String> {
    let ledger = crate::store::decode(file)?;
    let bytes = crate::store::encode(&ledger);
    Ok((ledger, bytes))
}

/// Whether an entry of udev's database is its last word.
#[must_use]
pub fn udev(entry: &str) -> bool {
    crate::udev::finished(entry)
}
