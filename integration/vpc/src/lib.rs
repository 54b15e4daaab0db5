//! A VPC in network namespaces: a routed fabric that delivers by address, answers every ARP
//! request and neighbour solicitation itself, drops foreign sources, and maps public addresses one to one.
//!
//! A process that uses it calls [`enter`] first; nothing of the host is touched after that.

mod addresses;
mod audience;
mod boot;
mod config;
mod container;
mod dhcp;
mod dhcp_v6;
mod doorbell;
mod enis;
mod fabric;
mod guest;
mod lease;
mod lease_v6;
mod ndp;
mod netns;
mod networks;
mod ping;
mod ports;
mod router;
mod serving;
mod tcp;
mod udp;
mod vpc;
mod world;

pub use config::{Config, EniSpec};
pub use dhcp::{Dhcp, Exchange, MessageType};
pub use dhcp_v6::{DhcpV6, ExchangeV6, MessageTypeV6};
pub use fabric::{GATEWAY_V6, METADATA_V4, METADATA_V6, MetadataWay, ROUTER_V6};
pub use guest::{Guest, Tap};
pub use imds;
pub use imds::{EniId, InstanceId, Mac};
pub use ipnet::{IpNet, Ipv4Net};
pub use netns::{Netns, Output, Process};
pub use ping::{Pinger, Report, ping_once};
pub use router::Router;
pub use tcp::{Bound, Conversation, Echo, connect, whoami};
pub use udp::{UdpEcho, whoami_udp};
pub use vpc::{Instance, Plugged, Vpc};
pub use world::enter;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks even after a panic elsewhere: one failed test must not hide the others.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
