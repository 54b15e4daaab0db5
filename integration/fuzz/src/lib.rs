//! What reads bytes from outside, as functions that panic where something does not hold: for the
//! fuzzer, and for a test that replays what the fuzzer has kept.

mod answer;
mod control;
mod files;
mod metadata;
mod netlink;
mod poll;
mod taker;
mod text;
mod world;

pub use answer::answer;
pub use control::{call, reply};
pub use files::{configuration, ledger, udev};
pub use metadata::metadata;
pub use netlink::{datagram, message};
pub use poll::poll;

/// A parser, or several that work together.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, which is also its corpus' and its binary's.
    pub name: &'static str,
    /// Feeds it.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 10] = [
    Target { name: "metadata", run: metadata },
    Target { name: "poll", run: poll },
    Target { name: "answer", run: answer },
    Target { name: "datagram", run: datagram },
    Target { name: "message", run: message },
    Target { name: "configuration", run: configuration },
    Target { name: "call", run: call },
    Target { name: "reply", run: reply },
    Target { name: "ledger", run: ledger },
    Target { name: "udev", run: udev },
];
