//! What goes wrong: with metadata, on the machine, with enid itself, and what its operator does.

use std::time::Duration;

use crate::adversary::{Author, HOSTS};

impl Author {
    /// Metadata is unwell for a while.
    pub(super) fn trouble(&mut self) {
        let n = self.any();
        let (spell, mac) = (self.spell(), self.enis[n].mac.clone());
        let failure = self.choose(&["!500", "!timeout", "!404", "!403", "!too-long"]);
        match self.random.u8(..12) {
            0 => {
                let failure = if failure == "!404" { "!503" } else { failure };
                self.happen(format!("cloud all {failure}"));
                self.then(spell, "cloud all answers");
            }
            1 => {
                let key = self.choose(&["mac", "macs"]);
                self.happen(format!("cloud {key} {failure}"));
                self.then(spell, format!("cloud {key} as usual"));
            }
            2 => {
                // The list lacks somebody, the primary ENI perhaps.
                let left = self.attached().into_iter().filter(|other| *other != n);
                let left: Vec<String> = left.map(|n| format!("{}/", self.enis[n].mac)).collect();
                self.happen(format!("cloud macs {}", left.join(" ")));
                self.then(spell, "cloud macs as usual");
            }
            3 => {
                let listing = if self.random.bool() { "" } else { failure };
                self.happen(format!("cloud {mac} listing {listing}"));
                self.then(spell, format!("cloud {mac} listing as usual"));
            }
            4 => {
                let slow = self.choose(&["90ms", "900ms", "4s"]);
                self.happen(format!("slow {slow}"));
                self.then(spell, "slow 2ms");
            }
            5 | 6 => {
                // Older words are heard again.
                let old = self.enis[n].v4[..1].join(" ");
                let now = self.enis[n].key("local-ipv4s");
                for _ in 0..self.random.usize(1..=3) {
                    self.happen(format!("cloud {mac} local-ipv4s {old}"));
                    self.now += spell / 4;
                    self.happen(format!("cloud {mac} local-ipv4s {now}"));
                    self.now += spell / 8;
                }
            }
            7 => {
                let now = self.enis[n].key("local-ipv4s");
                self.happen(format!("cloud {mac} local-ipv4s {now} 10.0.1.999"));
                self.then(spell, format!("cloud {mac} local-ipv4s {now}"));
            }
            _ => {
                let keys = self.enis[n].keys();
                let (key, now) = keys[self.random.usize(..keys.len())].clone();
                let wrong = self.choose(&["-", failure, "", "garbage"]);
                self.happen(format!("cloud {mac} {key} {wrong}"));
                self.then(spell, format!("cloud {mac} {key} {now}"));
            }
        }
    }

    /// Others on the machine.
    pub(super) fn others(&mut self) {
        let n = self.any();
        let (name, spell) = (self.enis[n].name.clone(), self.spell());
        let thing = self.random.usize(..40);
        let subnet = self.enis[n].subnet + 1;
        let host = self.choose(&HOSTS);
        match self.random.u8(..14) {
            0..4 => self.happen(format!("take {thing}")),
            4 => self.happen(format!("remark {thing}")),
            5 => {
                let times = self.random.usize(1..=9);
                self.happen(format!("fight {thing} {times}"));
            }
            6 => self.happen(format!("kernel addr 10.0.{subnet}.{host}/32 dev {name}")),
            7 => {
                self.happen("kernel link 50: docker0 up mtu 1500 kind bridge");
                self.happen(format!("kernel route 10.0.{subnet}.{host} dev docker0 proto static"));
            }
            8 => {
                let table = 20_000 + n;
                self.happen(format!(
                    "kernel route default via 10.0.{subnet}.1 dev {name} table {table} proto static"
                ));
            }
            9 => {
                let priority = self.choose(&[20_000, 20_010, 20_020, 100]);
                let own = format!("10.0.{subnet}.0/24");
                let (source, table) =
                    if self.random.bool() { (own.as_str(), 77) } else { ("10.9.0.0/24", 20_001) };
                self.happen(format!(
                    "kernel rule pref {priority} from {source} iif lo lookup {table} proto static"
                ));
                let line = format!(
                    "kernel - rule pref {priority} from {source} iif lo lookup {table} proto static"
                );
                self.then(spell, line);
            }
            10 => {
                self.happen(format!(
                    "kernel route 10.99.0.0/16 via 10.0.{subnet}.77 dev {name} proto static"
                ));
                self.then(
                    spell,
                    format!(
                        "kernel - route 10.99.0.0/16 via 10.0.{subnet}.77 dev {name} proto static"
                    ),
                );
            }
            11 if n > 0 => {
                self.enis[n].up = false;
                self.happen(format!("link {name} down"));
                if self.random.bool() {
                    self.then(spell, format!("link {name} up"));
                }
            }
            12 => {
                let new = format!("ens{}", self.random.u8(..9));
                if self.enis.iter().all(|eni| eni.name != new) {
                    self.happen(format!("link {name} name {new}"));
                    self.enis[n].name = new;
                }
            }
            _ if n > 0 => {
                let what = self.choose(&["mtu 1400", "group 5", "group 0"]);
                self.happen(format!("link {name} {what}"));
            }
            _ => self.happen(format!("take {thing}")),
        }
    }

    /// Something happens between two steps.
    pub(super) fn within_a_plan(&mut self) {
        let step = self.random.usize(1..=12);
        let n = self.any();
        let name = self.enis[n].name.clone();
        let event = match self.random.u8(..10) {
            0..4 => "crash".to_owned(),
            4 | 5 => "refused".to_owned(),
            6 | 7 => "twin".to_owned(),
            8 if n > 0 => {
                self.happen(format!("step {step} kernel - link {name}"));
                // It went with its own words; the cloud says so later.
                self.enis[n].attached = false;
                let mac = self.enis[n].mac.clone();
                self.enis[n].name = format!("eth{n}");
                let delay = self.delay() + Duration::from_secs(5);
                self.happen(format!("take {step}"));
                self.then(delay, format!("kernel - link {name}"));
                self.then(delay, format!("cloud {mac} gone"));
                self.pass(25);
                return;
            }
            _ => format!("take {}", self.random.usize(..40)),
        };
        self.happen(format!("step {step} {event}"));
        // Something must make a plan.
        match self.random.u8(..4) {
            0 => self.addresses(),
            1 => self.cloud_grows(),
            2 => self.moves(),
            _ => {
                let thing = self.random.usize(..40);
                self.happen(format!("take {thing}"));
            }
        }
    }

    pub(super) fn dies(&mut self) {
        match self.random.u8(..7) {
            0..3 => {
                let pause = self.choose(&["100ms", "1s", "30s", "90s"]);
                self.happen(format!("crash for {pause}"));
            }
            3 => {
                self.happen("ledger crash");
                self.addresses();
            }
            4 => {
                let times = self.random.usize(1..=6);
                self.happen(format!("ledger refused {times}"));
                self.addresses();
            }
            5 => {
                let (spell, thing) = (self.spell(), self.random.usize(..40));
                let silently = self.choose(&["", " silently"]);
                self.happen(format!("deaf {}ms{silently}", spell.as_millis()));
                self.happen(format!("take {thing}"));
            }
            _ => {
                let time = self.choose(&["61s", "400s", "7200s"]);
                self.happen(format!("suspend {time}"));
            }
        }
    }

    pub(super) fn configure(&mut self) {
        let spell = self.spell();
        let (line, back) = match self.random.u8(..5) {
            0 => ("primary_rules never".to_owned(), "primary_rules auto".to_owned()),
            1 => ("mtu keep".to_owned(), "mtu primary".to_owned()),
            2 => {
                let host = self.choose(&HOSTS);
                (format!("ignore_addresses 10.0.1.{host}/32"), "ignore_addresses ".to_owned())
            }
            3 => ("table_base 30000".to_owned(), "table_base 20000".to_owned()),
            _ => ("prefixes local".to_owned(), "prefixes rules".to_owned()),
        };
        self.happen(format!("config {line}"));
        if self.random.bool() {
            self.then(spell, format!("config {back}"));
        }
    }

    pub(super) fn operator(&mut self) {
        let n = self.any();
        let (spell, mac) = (self.spell(), self.enis[n].mac.clone());
        match self.random.u8(..6) {
            0 | 1 => {
                self.happen(format!("hold {mac}"));
                if self.random.u8(..3) > 0 {
                    self.then(spell, format!("unhold {mac}"));
                }
            }
            2 => {
                self.happen("hold all");
                self.then(spell, "unhold all");
            }
            3 => self.happen("refresh"),
            _ => {
                if self.enis[n].v4.len() > 1 {
                    let address = self.enis[n].v4.remove(1);
                    self.say(n, "local-ipv4s");
                    let delay = self.delay() + self.delay();
                    self.then(delay, format!("drop {address}"));
                } else {
                    self.addresses();
                }
            }
        }
    }
}
