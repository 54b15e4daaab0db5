//! A metadata service made of text: what each ENI's keys answer.

use std::collections::BTreeMap;

use enid_core::metadata::{Answer, Ask, Associations, Depth, EniAnswers, EniKey, Failure, Poll};
use enid_core::object::Mac;
use enid_core::time::Instant;

use crate::text::parse;

/// What metadata answers.
#[derive(Debug, Clone, Default)]
pub struct Cloud {
    /// The top-level `mac`; the first ENI's unless said otherwise.
    pub mac: Option<String>,
    /// `macs/`; all ENIs unless said otherwise.
    pub macs: Option<String>,
    /// The ENIs' keys. `-` is not there at all, `!404`, `!500` or `!timeout` is listed and fails.
    pub enis: BTreeMap<Mac, BTreeMap<String, String>>,
    /// Everything fails like this.
    pub down: Option<String>,
}

impl Cloud {
    /// Sets a key of an ENI; a new ENI is in the VPC of all others.
    pub fn set(&mut self, mac: Mac, key: &str, value: &str) {
        let eni = self.enis.entry(mac).or_insert_with(|| {
            let default = [
                ("mac", mac.to_string()),
                ("vpc-id", "vpc-1".to_owned()),
                ("vpc-ipv4-cidr-blocks", "10.0.0.0/16".to_owned()),
                // Something that a newer metadata service may show.
                ("public-hostname", String::new()),
            ];
            default.map(|(key, value)| (key.to_owned(), value)).into()
        });
        eni.insert(key.to_owned(), value.to_owned());
    }

    /// Takes in a change: `all FAILURE`, `all answers`, `mac TEXT`, `macs TEXT`, `MAC KEY TEXT` or
    /// `MAC gone`.
    ///
    /// # Panics
    /// When the words are none of these.
    pub fn change(&mut self, words: &str) {
        let (first, rest) = words.split_once(' ').unwrap_or((words, ""));
        match (first, rest) {
            ("all", "answers") => self.down = None,
            ("all", failure) => self.down = Some(failure.to_owned()),
            ("mac", "as usual") => self.mac = None,
            ("mac", text) => self.mac = Some(text.to_owned()),
            ("macs", "as usual") => self.macs = None,
            ("macs", text) => self.macs = Some(text.to_owned()),
            (mac, "listing as usual") => {
                self.enis.get_mut(&parse(mac)).map(|eni| eni.remove("listing"));
            }
            (mac, "gone") => _ = self.enis.remove(&parse(mac)),
            (mac, key) => {
                let (key, value) = key.split_once(' ').unwrap_or((key, ""));
                self.set(parse(mac), key, value);
            }
        }
    }

    /// Answers a poll.
    pub fn poll(&self, at: Instant, ask: &Ask) -> Poll {
        let first = || self.enis.keys().next().map(Mac::to_string).unwrap_or_default();
        let all = || self.enis.keys().map(|mac| format!("{mac}/\n")).collect();
        let top = |text: String| self.down.as_deref().map_or_else(|| answer(&text), answer);
        Poll {
            at,
            mac: ask.top.then(|| top(self.mac.clone().unwrap_or_else(first))),
            macs: ask.top.then(|| top(self.macs.clone().unwrap_or_else(all))),
            enis: ask.enis.iter().map(|(mac, depth)| (*mac, self.eni(*mac, *depth))).collect(),
        }
    }

    fn eni(&self, mac: Mac, depth: Depth) -> EniAnswers {
        let answers = |listing, keys| {
            let associations = Associations::Unknown;
            EniAnswers { depth, listing, keys, associations }
        };
        let nothing = |listing| answers(listing, BTreeMap::new());
        if let Some(down) = &self.down {
            return nothing(answer(down));
        }
        let Some(eni) = self.enis.get(&mac) else {
            return nothing(Answer::NotFound);
        };
        if let Some(listing) = eni.get("listing") {
            return nothing(answer(listing));
        }
        let mut listing = String::new();
        for (key, _) in eni.iter().filter(|(_, value)| *value != "-") {
            listing.push_str(key);
            listing.push('\n');
        }
        let constants = EniKey::CONSTANTS.iter().filter(|_| depth == Depth::Full);
        let keys = constants.chain(&EniKey::LISTS).filter_map(|key| {
            let value = eni.get(key.name()).filter(|value| *value != "-")?;
            Some((*key, answer(value)))
        });
        answers(Answer::Text(listing), keys.collect())
    }
}

fn answer(text: &str) -> Answer {
    match text.strip_prefix('!') {
        None => Answer::Text(text.to_owned()),
        Some("404") => Answer::NotFound,
        Some("timeout") => Answer::Failed(Failure::Timeout),
        Some("403") => Answer::Failed(Failure::Forbidden),
        Some("too-long") => Answer::Failed(Failure::TooLong),
        Some(status) => Answer::Failed(Failure::Status(status.parse().unwrap_or(500))),
    }
}
