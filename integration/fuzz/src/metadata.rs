//! Bodies of single keys: whatever they say, what is kept of them is bounded and printable.

use std::collections::BTreeMap;
use std::time::Duration;

use enid_core::metadata::facts::Metadata;
use enid_core::metadata::{Answer, Associations, Depth, EniAnswers, EniKey, Poll};
use enid_core::object::Mac;
use enid_core::time::Instant;

use crate::text::assert_printable;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
/// Entries that a list may have.
const LONGEST: usize = 1024;

/// The first byte says which key it is, the rest is its body.
pub fn metadata(bytes: &[u8]) {
    let Some((which, body)) = bytes.split_first() else { return };
    let Ok(body) = std::str::from_utf8(body) else { return };
    let keys: Vec<EniKey> = EniKey::CONSTANTS.into_iter().chain(EniKey::LISTS).collect();
    let which = usize::from(*which) % (keys.len() + 3);
    let text = |text: &str| Answer::Text(text.to_owned());
    let mut poll = Poll {
        at: Instant(Duration::from_secs(100)),
        mac: Some(text(&MAC.to_string())),
        macs: Some(text(&format!("{MAC}/"))),
        enis: BTreeMap::new(),
    };
    let mut listing = keys.iter().map(|key| key.name()).collect::<Vec<_>>().join("\n");
    let mut answers = BTreeMap::new();
    match keys.get(which) {
        Some(key) => _ = answers.insert(*key, text(body)),
        None => match which - keys.len() {
            0 => body.clone_into(&mut listing),
            1 => poll.mac = Some(text(body)),
            _ => poll.macs = Some(text(body)),
        },
    }
    let listing = Answer::Text(listing);
    let associations = Associations::Unknown;
    let answers = EniAnswers { depth: Depth::Full, listing, keys: answers, associations };
    poll.enis.insert(MAC, answers);
    let mut metadata = Metadata::default();
    metadata.record(&poll);
    assert_bounded(&metadata);
    // The same reading again changes nothing.
    let known: Vec<_> = metadata.enis.values().map(|eni| eni.keys.clone()).collect();
    metadata.record(&poll);
    assert_eq!(known, metadata.enis.values().map(|eni| eni.keys.clone()).collect::<Vec<_>>());
}

/// What is remembered is bounded and can be printed.
pub(crate) fn assert_bounded(metadata: &Metadata) {
    assert!(metadata.listed.len() <= LONGEST);
    for eni in metadata.enis.values() {
        let keys = &eni.keys;
        let lengths = [
            keys.ipv4s.len(),
            keys.ipv6s.len(),
            keys.prefixes_v4.len(),
            keys.prefixes_v6.len(),
            keys.subnets_v6.len(),
            keys.vpc_v4.len(),
            keys.vpc_v6.len(),
        ];
        assert!(lengths.iter().all(|length| *length <= LONGEST), "{lengths:?}");
        let names = [keys.id.as_ref().map(|id| &id.0), keys.subnet.as_ref(), keys.vpc.as_ref()];
        for name in names.into_iter().flatten() {
            assert!(name.len() <= 64, "{name:?}");
            assert_printable(name);
        }
        for refusals in eni.refusals.values() {
            assert!(refusals.len() <= LONGEST + 1, "{} refusals", refusals.len());
            // Each is made in the same way, and there may be very many.
            let some = refusals.iter().take(2).chain(refusals.last());
            some.for_each(|refusal| assert_printable(&refusal.to_string()));
        }
    }
}
