//! Instances of every kind, what must hold on them, and a small model of how Linux routes.
//!
//! It shares no code with enid, not even the nouns: what enid produced is translated into a
//! [`State`], and a [`Lookup`] says by which link, to which next hop and from which source a packet
//! leaves. [`Combination`]s are generated; a [`Scene`] is one of them with all its addresses, and
//! its [`Promise`]s are what the cloud and the operator expect there.

mod combination;
mod kept;
mod lookup;
mod promise;
mod scene;
mod state;

pub use combination::{
    Cards, Combination, Delegation, Families, Main, On, Restart, Siblings, Subnets,
};
pub use kept::{Kept, all_hold};
pub use lookup::{Answer, Lookup, Packet, View, Way};
pub use promise::{Must, Promise};
pub use scene::{Eni, Other, Scene, StaticRoute};
pub use state::{Address, Family, Kind, Link, Route, Rule, State};
