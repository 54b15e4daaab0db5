//! What happened, as it goes over the wire: what the journal says, with the same words and fields.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::SCHEMA;

/// The last things that happened, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Events {
    /// [`crate::SCHEMA`].
    pub schema: u32,
    /// The events, in the order in which they happened.
    pub events: Vec<Event>,
    /// How many that were asked for are no longer remembered; the journal has them.
    pub forgotten: u64,
}

impl Events {
    /// Events of which so many earlier ones are forgotten.
    #[must_use]
    pub const fn new(events: Vec<Event>, forgotten: u64) -> Self {
        Self { schema: SCHEMA, events, forgotten }
    }
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Event {
    /// Its number, from 1 since the daemon started.
    pub number: u64,
    /// When, by RFC 3339 in UTC with milliseconds.
    pub at: String,
    /// What kind of thing it is.
    pub kind: EventKind,
    /// The whole of it, in words.
    pub text: String,
    /// The ENI that it is about: its id, else its MAC address.
    pub eni: Option<String>,
    /// The link that it is about, by its name at that time.
    pub link: Option<String>,
    /// The address that it is about.
    pub address: Option<IpAddr>,
    /// The routing table that it is about.
    pub table: Option<u32>,
    /// Why, in words.
    pub reason: Option<String>,
    /// The pass in which it happened, counted from 1 since the daemon started.
    pub pass: Option<u64>,
    /// What made that pass run, in words.
    pub cause: Option<String>,
    /// From what made the pass run until it had happened, in microseconds.
    pub duration_us: Option<u64>,
}

/// What kind of thing happened. Each has a message id of the journal, under which the catalog
/// explains it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// The daemon started, or stopped.
    Daemon,
    /// An address was added.
    AddressAdded,
    /// An address was removed.
    AddressRemoved,
    /// Routes or rules were made, replaced or removed.
    Routing,
    /// A property of a link was set: its group, MTU, names, kernel settings.
    Setting,
    /// An ENI is managed from now on, or nothing is waited for any more.
    Managed,
    /// An ENI waits for something, or there is something to know of it.
    Waiting,
    /// An ENI is left alone.
    Held,
    /// Somebody keeps undoing a step.
    Fight,
    /// Metadata cannot be read.
    MetadataFailed,
    /// Metadata answers again.
    MetadataAnswers,
    /// A step or a pass failed, or a plan was refused.
    Failed,
    /// The configuration was read again.
    Configuration,
    /// A configuration was refused; the old one stays in force.
    ConfigurationRefused,
}

impl EventKind {
    /// All kinds.
    pub const ALL: [Self; 14] = [
        Self::Daemon,
        Self::AddressAdded,
        Self::AddressRemoved,
        Self::Routing,
        Self::Setting,
        Self::Managed,
        Self::Waiting,
        Self::Held,
        Self::Fight,
        Self::MetadataFailed,
        Self::MetadataAnswers,
        Self::Failed,
        Self::Configuration,
        Self::ConfigurationRefused,
    ];

    /// `MESSAGE_ID` of its lines in the journal.
    #[must_use]
    pub const fn message_id(self) -> &'static str {
        match self {
            Self::Daemon => "461381b04a39407ab0124d9d99e6aa8f",
            Self::AddressAdded => "a63ad8ab45544558b50618e901285fa9",
            Self::AddressRemoved => "a844dc02a3c74ed9ad775b2c9ceac130",
            Self::Routing => "9f2f72ec753b491aafd78cf2ab8be552",
            Self::Setting => "9bd94332613e444399b6a1a065ad2dcc",
            Self::Managed => "cecff269623d422788617613b28a1feb",
            Self::Waiting => "87c60cde43c54e77ae7ab471dbbad155",
            Self::Held => "dbed8248475c4e13930af52a6b3765e4",
            Self::Fight => "baa338523eba437794baa68f65cf5491",
            Self::MetadataFailed => "f26c20c58f77434cb79124b1a5870396",
            Self::MetadataAnswers => "13dde476370e456faeede1ffa0bda9f8",
            Self::Failed => "e9162953c2dc41c686b3475a92506926",
            Self::Configuration => "b8c88f2d946d4d9284686cb8d319393d",
            Self::ConfigurationRefused => "01b4e335320e4e49810706f2df72d10f",
        }
    }
}
