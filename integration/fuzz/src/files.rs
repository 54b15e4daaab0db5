//! Files: what the operator wrote, what enid wrote, and what udev wrote.

use enid::config::{self, Error};
use enid::fuzzing;

use crate::text::assert_printable;

/// A configuration file and its drop-ins, a zero byte between each two.
pub fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let files: Vec<&str> = text.split('\0').collect();
    match fuzzing::config(&files) {
        Ok(config) => {
            // Whatever is accepted can be decided by: tables and priorities do not overflow.
            let highest = config.choices.table_base.checked_add(100 * 99 + 99);
            assert!(highest.is_some(), "{}", config.choices.table_base);
            assert!(config.choices.priority_base.checked_add(100).is_some());
        }
        Err(error) => {
            if let Error::Content { line, .. } = &error {
                let longest = files.iter().map(|file| file.matches('\n').count() + 1).max();
                assert!((1..=longest.unwrap_or(1)).contains(line), "{error}");
            }
            assert_printable(&config::chain(&error));
        }
    }
}

/// A ledger: what is understood is written so that it is understood again.
pub fn ledger(bytes: &[u8]) {
    match fuzzing::ledger(bytes) {
        Ok((ledger, written)) => {
            let again = fuzzing::ledger(&written).map(|(again, _)| again);
            assert_eq!(again, Ok(ledger), "{}", String::from_utf8_lossy(&written));
        }
        Err(why) => assert_printable(&why),
    }
}

/// An entry of udev's database.
pub fn udev(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let lines = format!("\n{text}\n");
    let works = lines.contains("\nE:ID_PROCESSING=1\n") || lines.contains("\nE:ID_RENAMING=1\n");
    assert!(!(works && fuzzing::udev(text)), "{text:?}");
}
