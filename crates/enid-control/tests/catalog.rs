//! The journal's catalog explains every kind of event, and nothing else.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::collections::{BTreeMap, BTreeSet};

use enid_control::EventKind;

const CATALOG: &str = include_str!("../../../packaging/journal/enid.catalog");

/// The fields of an event's line in the journal that an entry may quote. All but `REASON` are there
/// wherever the kind of event is about such a thing.
const FIELDS: [&str; 5] = ["ENI", "INTERFACE", "ADDRESS", "TABLE", "REASON"];

/// An entry: its headers and its text.
struct Entry {
    headers: BTreeMap<&'static str, &'static str>,
    text: &'static str,
}

/// The entries by their ids, read by the rules of systemd's catalog files.
fn entries() -> BTreeMap<&'static str, Entry> {
    let mut parts = CATALOG.split("\n-- ");
    let comment = parts.next().unwrap();
    assert!(comment.lines().all(|line| line.is_empty() || line.starts_with('#')), "{comment}");
    let mut entries = BTreeMap::new();
    for part in parts {
        let (id, rest) = part.split_once('\n').unwrap();
        let (headers, text) = rest.split_once("\n\n").unwrap();
        let headers = headers.lines().map(|line| line.split_once(": ").unwrap()).collect();
        let before = entries.insert(id, Entry { headers, text: text.trim_end() });
        assert!(before.is_none(), "{id} is there twice");
    }
    entries
}

#[test]
fn every_kind_of_event_is_explained() {
    let ids: BTreeSet<&str> = EventKind::ALL.iter().map(|kind| kind.message_id()).collect();
    assert_eq!(ids.len(), EventKind::ALL.len(), "two kinds share an id");
    assert_eq!(entries().into_keys().collect::<BTreeSet<_>>(), ids);
    let digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    for id in ids {
        assert!(id.len() == 32 && id.chars().all(digit), "{id} is no id of the journal");
    }
}

#[test]
fn an_entry_says_what_it_means_and_quotes_only_what_is_there() {
    for (id, Entry { headers, text }) in entries() {
        for header in ["Subject", "Defined-By", "Support", "Documentation"] {
            assert!(headers.get(header).is_some_and(|value| !value.is_empty()), "{id}: {header}");
        }
        assert_eq!(headers["Defined-By"], "enid", "{id}");
        assert!(headers["Documentation"].split(' ').all(|page| page.starts_with("man:")), "{id}");
        assert!(text.lines().count() >= 2 || text.ends_with('.'), "{id} says nothing");
        let quoted = format!("{} {text}", headers["Subject"]);
        for field in quoted.split('@').skip(1).step_by(2) {
            assert!(FIELDS.contains(&field), "{id}: no line has @{field}@");
        }
        for line in text.lines() {
            assert!(line.chars().count() <= 130 && line == line.trim_end(), "{id}: {line:?}");
        }
    }
}

#[test]
fn the_kinds_are_those_that_are_described() {
    let place = |kind: EventKind| EventKind::ALL.iter().position(|known| *known == kind);
    for (n, kind) in EventKind::ALL.into_iter().enumerate() {
        assert_eq!(place(kind), Some(n), "{kind:?} is there twice");
    }
    let described = enid_control::varlink::DESCRIPTION.split_once("type EventKind (").unwrap().1;
    let described = described.split_once(')').unwrap().0;
    let described: Vec<&str> = described.split(',').map(str::trim).collect();
    let all = EventKind::ALL.map(|kind| serde_json::to_value(kind).unwrap());
    assert_eq!(described, all.iter().map(|kind| kind.as_str().unwrap()).collect::<Vec<_>>());
}
