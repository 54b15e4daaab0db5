//! What is known of one address, ENI or rule, as it goes over the wire.

use std::net::IpAddr;

use enid_core::explain;
use enid_core::object::LinkIndex;
use enid_core::report::{EniReport, EniState};
use enid_core::time::Instant;
use serde::{Deserialize, Serialize};

use crate::SCHEMA;
use crate::convert::{label, waiting};
use crate::objects::Object;

/// What is known of a subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Explanation {
    /// [`crate::SCHEMA`].
    pub schema: u32,
    /// What was asked about.
    pub subject: Subject,
    /// The ENI that it is of: its id, else its MAC address, with its link's name in brackets.
    pub eni: Option<String>,
    /// What it is, in sentences.
    pub text: Vec<String>,
    /// What metadata said of it.
    pub facts: Vec<Fact>,
    /// Who made it, in words; none where nobody can have.
    pub owner: Option<String>,
    /// What it waits for, in sentences.
    pub waits: Vec<String>,
    /// It, and what there is because of it.
    pub objects: Vec<Object>,
}

/// What was asked about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Subject {
    /// What it was taken for.
    pub kind: SubjectKind,
    /// What it was called.
    pub name: String,
}

/// What a subject is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum SubjectKind {
    /// An address.
    Address,
    /// An ENI.
    Eni,
    /// One rule or more.
    Rule,
}

/// What one key of metadata said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Fact {
    /// The key, from `meta-data/` on.
    pub key: String,
    /// What of its value counts here.
    pub value: String,
    /// How long ago the first reading was that showed it, where that is remembered.
    pub first_seconds: Option<u64>,
    /// How long ago the last one was.
    pub last_seconds: Option<u64>,
}

/// What `enictl explain --json` prints: what the daemon knows, and the way of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Explained {
    /// What the daemon knows.
    #[serde(flatten)]
    pub explanation: Explanation,
    /// The way of a packet, where an address was asked about.
    pub path: Option<Path>,
}

/// The way of a packet that a socket with this source would send, as the kernel tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Path {
    /// Its source.
    pub from: IpAddr,
    /// Its destination.
    pub to: IpAddr,
    /// Why the kernel would not send it; none where it would.
    pub refused: Option<String>,
    /// The table whose route decides, by the kernel's answer.
    pub table: Option<u32>,
    /// The route that decides, in the words of `ip`.
    pub route: Option<String>,
    /// The rule that leads to that table, in the words of `ip`. The kernel does not name it: it is the
    /// first one that matches, and none is told where that one leads elsewhere than the kernel says.
    pub rule: Option<String>,
    /// The name of the link that it leaves by.
    pub link: Option<String>,
    /// The next hop; none where the destination is on the link.
    pub gateway: Option<IpAddr>,
}

impl Explanation {
    /// What is known at `now`, with the report of the same decision; `name_of` gives a link's name.
    #[must_use]
    pub fn new(
        subject: Subject,
        told: &explain::Explanation,
        eni: Option<&EniReport>,
        now: Instant,
        name_of: &dyn Fn(LinkIndex) -> String,
    ) -> Self {
        let ago = |at: Instant| (now - at).as_secs();
        let fact = |fact: &explain::Fact| Fact {
            key: fact.key.clone(),
            value: fact.value.clone(),
            first_seconds: fact.first.map(ago),
            last_seconds: fact.last.map(ago),
        };
        let objects: Vec<Object> =
            told.objects.iter().map(|listed| Object::new(listed, now, name_of)).collect();
        let mut waits: Vec<String> = objects.iter().filter_map(|it| it.waits.clone()).collect();
        let of_eni = eni.filter(|eni| {
            subject.kind == SubjectKind::Eni || matches!(eni.state, EniState::Pending)
        });
        let of_eni = of_eni.into_iter().flat_map(|eni| &eni.waiting);
        waits.extend(of_eni.map(|it| waiting(it, now, name_of)));
        let mut said = std::collections::BTreeSet::new();
        waits.retain(|wait| said.insert(wait.clone()));
        Self {
            schema: SCHEMA,
            subject,
            eni: eni.map(label),
            text: told.text.clone(),
            facts: told.facts.iter().map(fact).collect(),
            owner: told.owner.clone(),
            waits,
            objects,
        }
    }
}
