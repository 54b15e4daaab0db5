//! What the daemon says of itself and of each ENI, as it goes over the wire.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// How it stands with the instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Status {
    /// [`crate::SCHEMA`].
    pub schema: u32,
    /// The daemon's version.
    pub version: String,
    /// How far the kernel is from what it must be.
    pub verdict: Verdict,
    /// For how long the verdict has been this one, in seconds.
    pub since_seconds: u64,
    /// How it stands with the metadata service.
    pub metadata: Metadata,
    /// The last pass; none before the first one.
    pub last_pass: Option<Pass>,
    /// The last thing that went wrong; none if nothing did since the daemon started.
    pub last_error: Option<LastError>,
    /// The ENIs, the primary one first, then by card and device number.
    pub enis: Vec<Eni>,
}

/// How far the kernel is from what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing to do, nothing to wait for.
    Converged,
    /// Nothing to do now; something is waited for.
    Waiting,
    /// Steps remain.
    NotYet,
}

/// How it stands with the metadata service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Metadata {
    /// Whether it answers.
    pub health: Health,
    /// For how long, in seconds.
    pub since_seconds: u64,
    /// Why it fails, in words; none while it answers.
    pub reason: Option<String>,
    /// The endpoint in use, `http://169.254.169.254`; none before the first answer.
    pub endpoint: Option<String>,
    /// Requests since the daemon started.
    pub requests: u64,
    /// How often the lists of each ENI are read, in milliseconds: the configured interval, stretched
    /// where there are many ENIs.
    pub poll_interval_ms: u64,
    /// When it is read again at the latest, in milliseconds from now; none before the first pass.
    pub next_poll_ms: Option<u64>,
    /// How old the oldest last complete reading of an ENI with a link is, in seconds; none where one
    /// was never read completely.
    pub read_seconds: Option<u64>,
}

/// Whether metadata can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Nothing has been asked and answered yet.
    NotRead,
    /// The last poll was answered.
    Ok,
    /// The last poll was not.
    Failing,
}

/// One pass: look, decide, act, look again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Pass {
    /// What made it run, in words.
    pub cause: String,
    /// How many steps it took.
    pub steps: u64,
    /// How long it took, in microseconds.
    pub duration_us: u64,
    /// How long ago it ended, in seconds.
    pub ago_seconds: u64,
}

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LastError {
    /// What, with its causes.
    pub message: String,
    /// How long ago, in seconds.
    pub ago_seconds: u64,
}

/// One ENI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Eni {
    /// Its MAC address, in lower case with colons.
    pub mac: String,
    /// Its id, `eni-…`, where known.
    pub id: Option<String>,
    /// The name of its link, where there is one.
    pub link: Option<String>,
    /// Whether it is the primary ENI.
    pub primary: bool,
    /// Its network card, where known.
    pub card: Option<u32>,
    /// Its device number, where known.
    pub device: Option<u32>,
    /// Its routing table, where it has one.
    pub table: Option<u32>,
    /// Its subnet's CIDRs, IPv4 first, where known.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub subnets: Vec<IpNet>,
    /// How it stands with it.
    pub state: EniState,
    /// Why it is held; none otherwise.
    pub reason: Option<String>,
    /// How the hold ends; none where it is not held.
    pub hold: Option<Hold>,
    /// Its addresses, the primary one first.
    pub addresses: Vec<Address>,
    /// Addresses on its link that metadata does not show and that are never removed.
    pub kept: Vec<KeptAddress>,
    /// Its delegated prefixes.
    pub prefixes: Vec<Prefix>,
    /// CIDRs of the VPC that metadata no longer shows and that are still routed.
    pub cidrs: Vec<Cidr>,
    /// The prefixes that its rules match.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub sources: Vec<IpNet>,
    /// The gateways of the default routes that its table has.
    pub gateways: Vec<IpAddr>,
    /// How old the last complete reading of its metadata is, in seconds; none before the first.
    pub read_seconds: Option<u64>,
    /// What it waits for, in words.
    pub waiting: Vec<String>,
    /// What an operator should know although it stops nothing, in words.
    pub notices: Vec<String>,
}

/// How it stands with an ENI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum EniState {
    /// Kept equal to metadata.
    Managed,
    /// Not configured yet.
    Pending,
    /// Left alone; [`Eni::reason`] says why.
    Held,
    /// Metadata lists it; there is no link with its MAC address.
    NoLink,
}

/// How a hold ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Hold {
    /// By what it ends.
    pub kind: HoldKind,
    /// When it ends by itself, in seconds from now, where the operator said so.
    pub seconds_left: Option<u64>,
}

/// By what a hold ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum HoldKind {
    /// `enictl release` began it; `enictl unhold` ends it.
    Released,
    /// `enictl hold` began it; `enictl unhold` ends it, or its time.
    Operator,
    /// What [`Eni::reason`] names: once that is no longer so.
    Cause,
}

/// One address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// What it is to its ENI.
    pub role: Role,
    /// How it stands with it.
    pub state: AddressState,
    /// How far the proof for its removal has come, where `state` is `leaving`.
    pub leaving: Option<Leaving>,
    /// The link by which a route to it leaves, where `state` is `elsewhere`.
    pub elsewhere: Option<String>,
    /// Whose it is; none where it is not there.
    pub origin: Option<Origin>,
    /// The public address that leads to it, where metadata tells one.
    pub public: Option<Ipv4Addr>,
}

/// Whose an address is that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// enid made it.
    Enid,
    /// It has a lifetime, as those of DHCP and of router advertisements have.
    Dynamic,
    /// Somebody else made it, for good.
    Foreign,
}

/// A delegated prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Prefix {
    /// The prefix.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub prefix: IpNet,
    /// What it is for.
    pub mode: PrefixMode,
    /// How far the proof for its removal has come, where metadata no longer shows it.
    pub leaving: Option<Leaving>,
}

/// What delegated prefixes are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum PrefixMode {
    /// Containers have their addresses: what they send is routed as the ENI's own.
    Rules,
    /// Every address of them is one of the host.
    Local,
    /// Left alone by configuration.
    Ignore,
}

/// What an address is to its ENI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The first of `local-ipv4s`.
    Primary,
    /// Any other.
    Secondary,
}

/// How it stands with an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum AddressState {
    /// There, made by enid.
    Ours,
    /// There, made by somebody else (a DHCP client, say).
    Theirs,
    /// There; enid made it, somebody replaced it since: not touched any more.
    TakenOver,
    /// Not there yet; this or a later pass adds it.
    Adding,
    /// Not there, and not enid's to bring back: the primary ENI's first address.
    Missing,
    /// Metadata no longer shows it; it goes when that is proven.
    Leaving,
    /// Left alone by configuration.
    Ignored,
    /// Not added: a route to it leaves by a link that is no ENI.
    Elsewhere,
}

/// An address on an ENI's link that metadata does not show and that is never removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct KeptAddress {
    /// The address.
    pub address: IpAddr,
    /// Why it stays.
    pub why: Kept,
    /// The delegated prefix that holds it, where `why` is `in_prefix`.
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    pub prefix: Option<IpNet>,
}

/// Why an address that metadata does not show stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// enid did not make it.
    Foreign,
    /// It has a lifetime: whoever gave it that looks after it.
    Dynamic,
    /// It holds on its link only.
    LinkLocal,
    /// enid made it as the ENI's primary address, which never changes.
    Primary,
    /// Left alone by configuration.
    Ignored,
    /// A delegated prefix holds it.
    InPrefix,
}

/// A CIDR of the VPC that metadata no longer shows and that is still routed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Cidr {
    /// The CIDR.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub cidr: IpNet,
    /// How far the proof for the removal of its route has come.
    pub leaving: Leaving,
}

/// How far the proof for a removal has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Leaving {
    /// Why it goes.
    pub cause: Departure,
    /// The MAC address of the ENI that it moves to, where `cause` is `moved`.
    pub moved_to: Option<String>,
    /// Complete readings in a row that lacked it.
    pub confirmations: u32,
    /// How many there must be.
    pub needed: u32,
    /// How long they have lacked it, in seconds.
    pub lacking_seconds: u64,
    /// How long they must, in seconds.
    pub grace_seconds: u64,
    /// Whether the longer grace applies, because most of what the ENI has would go.
    pub mass: bool,
    /// How many of its secondary addresses and delegated prefixes would go, where `mass` is true.
    pub mass_going: Option<u64>,
    /// How many it had when nothing was leaving, where `mass` is true.
    pub mass_of: Option<u64>,
    /// Whether the proof stands still because the last reading was not complete.
    pub paused: bool,
    /// What else must come about first, whatever the count and the time.
    pub stops: Vec<Stop>,
    /// Whether the removal is proven and is about to happen.
    pub proven: bool,
}

/// Why something of enid's goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Departure {
    /// Metadata no longer shows it on this instance.
    Unassigned,
    /// Metadata shows it on another ENI of this instance: it need not be proven.
    Moved,
    /// The operator dropped it: one fresh complete reading that lacks it is enough.
    Dropped,
}

/// What keeps a proof from going on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Stop {
    /// What kind of thing it is.
    pub kind: StopKind,
    /// The keys of metadata that it is about.
    pub keys: Vec<String>,
    /// The whole of it, in words.
    pub text: String,
}

/// What kind of thing keeps a proof from going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StopKind {
    /// Metadata could not be read.
    Failed,
    /// Metadata does not list the ENI.
    Unlisted,
    /// Keys that say that the ENI is what it seems are too old or make no sense.
    Identity,
    /// Keys could not be read, or not all of what they hold was understood.
    Unread,
    /// The reading that confirms it is due: it comes with the next poll.
    Unconfirmed,
}
