//! What must be and what is, side by side, as it goes over the wire.

use std::net::IpAddr;

use enid_core::object::{self, LinkIndex, Object as Made, RuleAction};
use enid_core::objects::{self, Delay, Listed, Presence, Thing};
use enid_core::plan::{setting_words, words};
use enid_core::report::Report;
use enid_core::time::Instant;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::SCHEMA;
use crate::convert::waiting;
use crate::status::Leaving;

/// All objects of all ENIs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Objects {
    /// [`crate::SCHEMA`].
    pub schema: u32,
    /// The ENIs whose link is here, the primary one first.
    pub enis: Vec<EniObjects>,
    /// What enid made for ENIs that are not here any more.
    pub left: Vec<Object>,
}

/// The objects of one ENI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EniObjects {
    /// The ENI: its id, else its MAC address.
    pub eni: String,
    /// Its MAC address.
    pub mac: String,
    /// Its link's name.
    pub link: String,
    /// Its routing table, where it has one.
    pub table: Option<u32>,
    /// Its addresses, routes, rules, markings and its link's settings.
    pub objects: Vec<Object>,
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Object {
    /// What kind of thing it is.
    pub kind: ObjectKind,
    /// The whole of it, in the words of `ip`, `nft` or `sysctl` without their verbs.
    pub text: String,
    /// How it stands with it.
    pub state: ObjectState,
    /// What it is for, or why it is there although nobody wishes for it.
    pub reason: String,
    /// What keeps it from being made, or from going; none where the next pass does that, or where
    /// there is nothing to do.
    pub waits: Option<String>,
    /// How far the proof is that it may go, where it waits for that.
    pub leaving: Option<Leaving>,
    /// An address: the address.
    pub address: Option<IpAddr>,
    /// A route: the table that holds it. A rule: the one that it looks into. A marking: the table
    /// whose packets it marks.
    pub table: Option<u32>,
    /// A rule: its priority.
    pub priority: Option<u32>,
    /// A rule: the source of its packets, where that counts.
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    pub source: Option<IpNet>,
    /// A route: where it leads to; `0.0.0.0/0` or `::/0` for the default route.
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    pub destination: Option<IpNet>,
    /// A route: its next hop, where it has one.
    pub gateway: Option<IpAddr>,
}

/// What kind of thing an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ObjectKind {
    /// An address on the ENI's link.
    Address,
    /// A route.
    Route,
    /// A policy rule.
    Rule,
    /// An nftables table that marks connections.
    Marking,
    /// A property of the ENI's link.
    Setting,
}

/// How it stands with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ObjectState {
    /// It must be there, and is.
    There,
    /// It must be there, and is not.
    Missing,
    /// enid made it, and it must go.
    Extra,
    /// Somebody else made it; it stays.
    Foreign,
    /// It must be there, and somebody else's object stands in its place.
    Conflict,
}

impl From<Presence> for ObjectState {
    fn from(presence: Presence) -> Self {
        match presence {
            Presence::There => Self::There,
            Presence::Missing => Self::Missing,
            Presence::Extra => Self::Extra,
            Presence::Foreign => Self::Foreign,
            Presence::Conflict => Self::Conflict,
        }
    }
}

impl Objects {
    /// The objects at `now`, with the report of the same decision; `name_of` gives a link's name.
    #[must_use]
    pub fn new(
        objects: &objects::Objects,
        report: &Report,
        now: Instant,
        name_of: &dyn Fn(LinkIndex) -> String,
    ) -> Self {
        let of = |listed: &Vec<Listed>| -> Vec<Object> {
            listed.iter().map(|listed| Object::new(listed, now, name_of)).collect()
        };
        let enis = report.enis.iter().filter_map(|eni| {
            let objects = of(objects.enis.get(&eni.mac)?);
            let name = eni.id.as_ref().map_or_else(|| eni.mac.to_string(), ToString::to_string);
            Some(EniObjects {
                eni: name,
                mac: eni.mac.to_string(),
                link: eni.link.as_ref().map(|(_, name)| name.clone())?,
                table: eni.table.map(|table| table.0).or_else(|| own_table(&objects)),
                objects,
            })
        });
        Self { schema: SCHEMA, enis: enis.collect(), left: of(&objects.left) }
    }
}

/// The table of an ENI that is left alone, by the routes that it has or would have.
fn own_table(objects: &[Object]) -> Option<u32> {
    let mut rules = objects
        .iter()
        .filter(|object| object.kind == ObjectKind::Rule && object.state != ObjectState::Foreign);
    rules.find_map(|rule| rule.table.filter(|table| *table != object::TableId::MAIN.0))
}

impl Object {
    /// One object at `now`; `name_of` gives a link's name.
    #[must_use]
    pub fn new(listed: &Listed, now: Instant, name_of: &dyn Fn(LinkIndex) -> String) -> Self {
        let Listed { thing, presence, reason, delay } = listed;
        let (waits, leaving) = match delay {
            None => (None, None),
            Some(Delay::Hold(hold)) => (Some(hold.to_string()), None),
            Some(Delay::Waiting(it)) => (Some(waiting(it, now, name_of)), None),
            Some(Delay::NotOurs(why)) => (Some((*why).to_owned()), None),
            Some(Delay::Proof(leaving)) => {
                let lacks = "proof that metadata no longer grants it".to_owned();
                (Some(lacks), Some(leaving.into()))
            }
        };
        let mut object = Self {
            kind: ObjectKind::Setting,
            text: String::new(),
            state: (*presence).into(),
            reason: reason.clone(),
            waits,
            leaving,
            address: None,
            table: None,
            priority: None,
            source: None,
            destination: None,
            gateway: None,
        };
        match thing {
            Thing::Setting(link, setting) => object.text = setting_words(&name_of(*link), setting),
            Thing::Object(made) => {
                object.text = words(made, *presence == Presence::Missing, name_of);
                object.describe(made);
            }
        }
        object
    }

    fn describe(&mut self, made: &Made) {
        match made {
            Made::Address(address) => {
                self.kind = ObjectKind::Address;
                self.address = Some(address.address);
            }
            Made::Route(route) => {
                self.kind = ObjectKind::Route;
                self.table = Some(route.table.0);
                self.destination = Some(route.destination);
                self.gateway = route.gateway;
            }
            Made::Rule(rule) => {
                self.kind = ObjectKind::Rule;
                self.priority = Some(rule.priority.0);
                self.source = rule.source;
                self.table = match rule.action {
                    RuleAction::Lookup(table) => Some(table.0),
                    RuleAction::Other(_) => None,
                };
            }
            Made::Marking(marking) => {
                self.kind = ObjectKind::Marking;
                self.table = Some(marking.table.0);
            }
        }
    }
}
