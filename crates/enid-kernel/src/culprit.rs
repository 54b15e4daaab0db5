//! Who undid what: the kernel tells by which socket an object was deleted, and a socket's number is
//! usually its process's.

use std::collections::VecDeque;
use std::fs;
use std::time::Duration;

use enid_core::object::Object;
use enid_core::plan::Step;
use tokio::time::Instant;

use crate::wire::Told;
use crate::wire::numbers::{RTM_DELADDR, RTM_DELROUTE, RTM_DELRULE};
use crate::wire::read::{Seen, seen};

/// How many deletions are kept.
const KEPT: usize = 64;
/// A process is asked for its name this often at most; a script's are gone before that anyway.
const PAUSE: Duration = Duration::from_millis(10);
/// The highest number of a process (`PID_MAX_LIMIT`).
const PROCESSES: u32 = 1 << 22;

/// Deletions by others, the newest last.
#[derive(Debug, Default)]
pub(crate) struct Culprits {
    heard: VecDeque<Heard>,
    asked: Option<(Instant, u32, Option<String>)>,
}

#[derive(Debug)]
struct Heard {
    told: Told,
    process: u32,
    name: Option<String>,
}

impl Culprits {
    /// Takes in a notification.
    pub(crate) fn hear(&mut self, message: &[u8]) {
        const HEADER: usize = 16;
        let number = |at: usize| {
            let bytes = message.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u32::from_ne_bytes)
        };
        let kind =
            message.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
        let Some(kind @ (RTM_DELADDR | RTM_DELROUTE | RTM_DELRULE)) = kind else { return };
        let Some(process) = number(12).and_then(process) else { return };
        let Some(body) = message.get(HEADER..) else { return };
        let name = self.name(process);
        if self.heard.len() == KEPT {
            self.heard.pop_front();
        }
        // What was deleted is told in the words of what is made.
        let told = Told { kind: kind - 1, body: body.to_vec() };
        self.heard.push_back(Heard { told, process, name });
    }

    /// Who last deleted what a step makes, where the kernel said so.
    pub(crate) fn of(&self, step: &Step) -> Option<(u32, Option<String>)> {
        let object = step.makes()?;
        let found = self
            .heard
            .iter()
            .rev()
            .find(|heard| seen(&heard.told).is_ok_and(|deleted| is(&deleted, object)));
        found.map(|heard| (heard.process, heard.name.clone()))
    }

    fn name(&mut self, process: u32) -> Option<String> {
        let now = Instant::now();
        if let Some((at, asked, name)) = &self.asked
            && now - *at < PAUSE
        {
            return name.clone().filter(|_| *asked == process);
        }
        let name = fs::read_to_string(format!("/proc/{process}/comm")).ok();
        // Every process may call itself what it likes, and the name goes to logs.
        let name = name.map(|name| name.trim_end().escape_debug().to_string());
        self.asked = Some((now, process, name.clone()));
        name
    }
}

/// The process that a socket's number stands for: its own, or what libnl makes of it. Of a process's
/// further sockets the kernel chooses the number.
fn process(port: u32) -> Option<u32> {
    let chosen = port > i32::MAX.unsigned_abs();
    let process = port % PROCESSES;
    (!chosen && process != 0 && process != std::process::id()).then_some(process)
}

/// Whether what was deleted is this object, or stood in its place.
fn is(deleted: &Seen, object: &Object) -> bool {
    match (deleted, object) {
        (Seen::Address { seen, .. }, Object::Address(ours)) => {
            (seen.address.link, seen.address.address) == (ours.link, ours.address)
        }
        (Seen::Route(seen), Object::Route(ours)) => {
            let place =
                |route: &enid_core::object::Route| (route.table, route.destination, route.metric);
            place(&seen.route) == place(ours)
        }
        (Seen::Rule(seen), Object::Rule(ours)) => seen.rule == *ours,
        (
            Seen::Link { .. }
            | Seen::Address { .. }
            | Seen::Route(_)
            | Seen::Rule(_)
            | Seen::Router(..)
            | Seen::Foreign,
            _,
        ) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sockets_number_is_its_processs_unless_the_kernel_chose_it() {
        let own = std::process::id();
        for (port, expected) in [
            (0, None),
            (own, None),
            (4_000_000, Some(4_000_000)),
            ((7 << 22) + 4711, Some(4711)),
            (u32::MAX - 4096, None),
        ] {
            assert_eq!(process(port), expected, "{port}");
        }
    }
    #[test]
    fn a_name_that_steers_terminals_is_spelled_out() {
        let own = "/proc/self/comm";
        let before = fs::read(own).unwrap();
        fs::write(own, "\u{1b}[31mred\n\u{202e}").unwrap();
        let name = Culprits::default().name(std::process::id());
        fs::write(own, before).unwrap();
        assert_eq!(name.as_deref(), Some("\\u{1b}[31mred\\n\\u{202e}"));
    }
}
