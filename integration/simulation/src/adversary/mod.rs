//! Writes schedules from seeds: what the cloud really does, what metadata makes of it, and what
//! everybody else does meanwhile.

use std::time::Duration;

mod eni;
mod others;
mod schedule;

use eni::{Eni, boot};
pub use schedule::{KEPT_SECTION, Schedule};

/// Writes one schedule.
struct Author {
    random: fastrand::Rng,
    now: Duration,
    dual: bool,
    enis: Vec<Eni>,
    script: Vec<(Duration, String)>,
}

const HOSTS: [u8; 8] = [20, 21, 22, 33, 70, 131, 132, 200];
const PREFIXES: [u8; 3] = [32, 80, 176];
const CIDRS: [&str; 2] = ["10.0.0.0/16", "10.1.0.0/16"];

/// The schedule of a seed.
#[must_use]
pub fn schedule(seed: u64) -> Schedule {
    let mut random = fastrand::Rng::with_seed(seed);
    let dual = random.u8(..10) < 3;
    let old = random.u8(..10) < 2;
    let mut config = Vec::new();
    // The fewer quiet polls, the more schedules; the default is among them.
    let paces =
        [("5s", "3 60s 300s"), ("20s", "3 60s 120s"), ("30s", "3 30s 90s"), ("12s", "2 40s 150s")];
    let pace = random.choice(paces);
    if let Some((poll, removal)) = pace.filter(|(poll, _)| *poll != "5s") {
        config = vec![format!("poll_interval {poll}"), format!("removal {removal}")];
    }
    if dual && random.u8(..4) == 0 {
        config.push("prefixes local".to_owned());
    }
    let count = random.usize(2..=3);
    let one = random.bool();
    let enis = (0..count).map(|n| Eni::new(n, if one { 0 } else { random.usize(..2) }, dual));
    let mut author =
        Author { enis: enis.collect(), random, now: Duration::ZERO, dual, script: Vec::new() };
    author.enis[0].attached = true;
    let cloud = author.enis[0].words();
    let kernel = boot(&author.enis[0], old, dual);
    for n in 1..author.enis.len() {
        if author.random.u8(..4) < 3 {
            author.attach(n);
        }
    }
    author.pass(5);
    for _ in 0..author.random.usize(2..=9) {
        author.act();
        author.wait();
    }
    author.heal();
    let mut script = author.script;
    script.sort_by_key(|(at, _)| *at);
    Schedule { config, cloud, kernel, script }
}

impl Author {
    fn choose<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.random.usize(..of.len())]
    }

    fn then(&mut self, after: Duration, event: impl Into<String>) {
        self.script.push((self.now + after, event.into()));
    }

    fn happen(&mut self, event: impl Into<String>) {
        self.then(Duration::ZERO, event);
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn wait(&mut self) {
        let millis = self.choose(&[0, 0, 3, 40, 700, 2_000, 6_000, 21_000, 65_000, 100_000]);
        self.now += Duration::from_millis(millis);
    }

    /// How long metadata takes to show a change.
    fn delay(&mut self) -> Duration {
        Duration::from_millis(self.choose(&[0, 0, 0, 30, 400, 3_000, 18_000]))
    }

    /// How long something lasts.
    fn spell(&mut self) -> Duration {
        Duration::from_millis(self.choose(&[300, 4_000, 12_000, 30_000, 80_000]))
    }

    /// Metadata shows a key of an ENI as it is now, after a while.
    fn say(&mut self, n: usize, key: &str) {
        let delay = self.delay();
        let (mac, value) = (self.enis[n].mac.clone(), self.enis[n].key(key));
        self.then(delay, format!("cloud {mac} {key} {value}"));
        // A server that lags behind answers now and then.
        if self.random.u8(..12) == 0 {
            self.script.pop();
            let lag = delay + Duration::from_secs(1);
            self.then(lag, format!("cloud {mac} {key} {value}"));
        }
    }

    fn attached(&self) -> Vec<usize> {
        (0..self.enis.len()).filter(|n| self.enis[*n].attached).collect()
    }

    fn any(&mut self) -> usize {
        let attached = self.attached();
        self.choose(&attached)
    }

    fn attach(&mut self, n: usize) {
        let eni = &mut self.enis[n];
        if eni.attached {
            return;
        }
        (eni.attached, eni.up) = (true, true);
        let eni = eni.clone();
        let state = self.choose(&["down", "down", "down", "up"]);
        self.happen(format!(
            "kernel link {}: {} mac {} {state} mtu 1500 accept_ra_defrtr 1 accept_ra_pinfo 1",
            3 + n,
            eni.name,
            eni.mac
        ));
        if self.dual {
            self.happen(format!("kernel addr fe80::{}/64 dev {}", n + 1, eni.name));
        }
        let delay = self.delay();
        let late = self.random.u8(..4) == 0;
        let late = late.then(|| self.random.usize(..eni.keys().len()));
        for (m, (key, value)) in eni.keys().into_iter().enumerate() {
            let wrong = match key {
                // It settles late: a sibling's leads to a table that is taken.
                "device-number" => self.choose(&["0", "!404", "1"]),
                _ => self.choose(&["-", "!404", "!500", ""]),
            };
            if late == Some(m) {
                self.then(delay, format!("cloud {} {key} {wrong}", eni.mac));
                let more = delay + self.spell();
                self.then(more, format!("cloud {} {key} {value}", eni.mac));
            } else {
                self.then(delay, format!("cloud {} {key} {value}", eni.mac));
            }
        }
    }

    fn detach(&mut self, n: usize) {
        if n == 0 || !self.enis[n].attached {
            return;
        }
        self.enis[n].attached = false;
        let (name, mac) = (self.enis[n].name.clone(), self.enis[n].mac.clone());
        self.happen(format!("kernel - link {name}"));
        self.enis[n].name = format!("eth{n}");
        let delay = self.delay();
        self.then(delay, format!("cloud {mac} gone"));
    }

    /// An address that nobody has in the ENI's subnet.
    fn free(&mut self, n: usize) -> Option<String> {
        let host = self.choose(&HOSTS);
        let address = format!("10.0.{}.{host}", self.enis[n].subnet + 1);
        let taken = self.enis.iter().any(|eni| eni.v4.contains(&address));
        (!taken).then_some(address)
    }

    fn act(&mut self) {
        match self.random.u8(..100) {
            0..8 => self.cloud_grows(),
            8..22 => self.addresses(),
            22..29 => self.moves(),
            29..33 => self.prefixes(),
            33..36 => self.cidrs(),
            36..50 => self.trouble(),
            50..68 => self.others(),
            68..82 => self.within_a_plan(),
            82..89 => self.dies(),
            89..93 => self.configure(),
            _ => self.operator(),
        }
    }

    fn cloud_grows(&mut self) {
        let n = self.random.usize(1..self.enis.len());
        if self.enis[n].attached { self.detach(n) } else { self.attach(n) }
    }

    fn addresses(&mut self) {
        let n = self.any();
        if self.dual && self.random.u8(..3) == 0 {
            let eni = &mut self.enis[n];
            if eni.v6.len() > 1 {
                eni.v6.pop();
            } else {
                let host = self.random.u8(16..99);
                let eni = &mut self.enis[n];
                eni.v6.push(format!("2600:1f16:67f:f20{}::{n}:{host}", eni.subnet));
            }
            self.say(n, "ipv6s");
            return;
        }
        match self.random.u8(..5) {
            0 | 1 => {
                for _ in 0..self.random.usize(1..=4) {
                    if let Some(address) = self.free(n) {
                        self.enis[n].v4.push(address);
                    }
                }
            }
            2 | 3 if self.enis[n].v4.len() > 1 => {
                let which = self.random.usize(1..self.enis[n].v4.len());
                self.enis[n].v4.remove(which);
            }
            _ => {
                // Most of them go after they have been there for a while.
                while self.enis[n].v4.len() < 5 {
                    let free = self.free(n);
                    self.enis[n].v4.extend(free);
                    if self.random.u8(..8) == 0 {
                        break;
                    }
                }
                self.say(n, "local-ipv4s");
                self.pass(35);
                self.enis[n].v4.truncate(1);
            }
        }
        self.say(n, "local-ipv4s");
    }

    fn moves(&mut self) {
        let from = self.any();
        let to = self.any();
        if from == to || self.enis[from].subnet != self.enis[to].subnet {
            return self.addresses();
        }
        let moved: Vec<String> = self.enis[from].v4.drain(1..).collect();
        let keep = if moved.len() > 1 && self.random.bool() { 1 } else { 0 };
        self.enis[from].v4.extend_from_slice(&moved[..keep]);
        self.enis[to].v4.extend_from_slice(&moved[keep..]);
        self.say(from, "local-ipv4s");
        self.say(to, "local-ipv4s");
    }

    fn prefixes(&mut self) {
        let n = self.any();
        let (subnet, base) = (self.enis[n].subnet, self.choose(&PREFIXES));
        let v6 = self.dual && self.random.bool();
        let prefix = if v6 {
            format!("2600:1f16:67f:f20{subnet}:{base}::/80")
        } else {
            format!("10.0.{}.{base}/28", subnet + 1)
        };
        let holder = self.enis.iter().position(|eni| eni.prefixes.contains(&prefix));
        for eni in &mut self.enis {
            eni.prefixes.retain(|known| *known != prefix);
        }
        if holder != Some(n) {
            self.enis[n].prefixes.push(prefix);
        }
        let key = if v6 { "ipv6-prefix" } else { "ipv4-prefix" };
        for n in holder.into_iter().chain((holder != Some(n)).then_some(n)) {
            if self.enis[n].attached {
                self.say(n, key);
            }
        }
    }

    fn cidrs(&mut self) {
        let grows = self.enis[0].cidrs.len() == 1;
        for n in 0..self.enis.len() {
            self.enis[n].cidrs.truncate(1);
            if grows {
                self.enis[n].cidrs.push(CIDRS[1].to_owned());
            }
            if self.enis[n].attached {
                self.say(n, "vpc-ipv4-cidr-blocks");
            }
        }
    }

    /// In the end metadata says what is, and the links are up.
    fn heal(&mut self) {
        let last = self.script.iter().map(|(at, _)| *at).max().unwrap_or_default();
        self.now = self.now.max(last) + Duration::from_secs(1);
        for n in 0..self.enis.len() {
            let eni = self.enis[n].clone();
            if !eni.attached {
                if self.script.iter().any(|(_, event)| event.contains(&eni.mac)) {
                    self.happen(format!("cloud {} gone", eni.mac));
                }
                continue;
            }
            for (key, value) in eni.keys() {
                // Only what was said otherwise meanwhile.
                let prefix = format!("cloud {} {key} ", eni.mac);
                let mut said: Vec<&(Duration, String)> =
                    self.script.iter().filter(|(_, event)| event.starts_with(&prefix)).collect();
                said.sort_by_key(|(at, _)| *at);
                let last = said.last().map(|(_, event)| event[prefix.len()..].to_owned());
                if last.is_some_and(|last| last != value) {
                    self.happen(format!("{prefix}{value}"));
                }
            }
            if !eni.up {
                self.happen(format!("link {} up", eni.name));
            }
        }
    }
}
