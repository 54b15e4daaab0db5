//! Writes schedules from seeds: what the cloud really does, what metadata makes of it, and what
//! everybody else does meanwhile.

use std::fmt::Write as _;
use std::time::Duration;

use enid_core::time::Instant;

use crate::cloud::Cloud;
use crate::kernel::Kernel;
use crate::play::Play;
use crate::text;
use crate::world::Start;

/// A schedule in the words of a scenario file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Schedule {
    /// What differs from the default configuration.
    pub config: Vec<String>,
    /// What metadata says at first.
    pub cloud: Vec<String>,
    /// What the kernel has at first.
    pub kernel: Vec<String>,
    /// What happens when.
    pub script: Vec<(Duration, String)>,
}

impl Schedule {
    /// Ready to be played.
    #[must_use]
    pub fn play(&self) -> Play {
        let mut start = Start::default();
        self.config.iter().for_each(|line| text::configure(&mut start.config, line));
        let mut cloud = Cloud::default();
        text::cloud(&mut cloud, &self.cloud);
        start.cloud = cloud;
        start.kernel = Kernel { state: text::snapshot(&self.kernel), wiped: Vec::new() };
        let script = self.script.iter().map(|(at, event)| (Instant(*at), event.clone()));
        Play { start, script: script.collect() }
    }

    /// As a scenario file that says that every promise is kept.
    #[must_use]
    pub fn scenario(&self, about: &str) -> String {
        let mut text = String::new();
        for line in about.lines() {
            let _ = writeln!(text, "# {line}");
        }
        for (section, lines) in
            [("config", &self.config), ("cloud", &self.cloud), ("kernel", &self.kernel)]
        {
            if !lines.is_empty() {
                let _ = writeln!(text, "{section}");
            }
            for line in lines {
                let indent = if section == "cloud" && !line.starts_with("eni ") { 4 } else { 2 };
                let _ = writeln!(text, "{:indent$}{line}", "");
            }
        }
        let _ = writeln!(text, "script");
        for (at, event) in &self.script {
            let millis = at.as_millis();
            let when = if millis.is_multiple_of(1000) {
                format!("{}s", millis / 1000)
            } else {
                format!("{millis}ms")
            };
            let _ = writeln!(text, "  at {when} {event}");
        }
        text.push_str(KEPT_SECTION);
        text
    }
}

/// What a scenario file expects of a schedule.
pub const KEPT_SECTION: &str = "\npromises\n  all are kept\n";

/// One ENI as it really is.
#[derive(Debug, Clone)]
struct Eni {
    mac: String,
    name: String,
    attached: bool,
    up: bool,
    subnet: usize,
    v4: Vec<String>,
    v6: Vec<String>,
    prefixes: Vec<String>,
    cidrs: Vec<String>,
}

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
    let pace = random.choice([("5s", "3 60s 300s"), ("20s", "3 60s 120s"), ("30s", "2 30s 90s")]);
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

fn boot(primary: &Eni, old: bool, dual: bool) -> Vec<String> {
    let (net, own) = (primary.subnet + 1, &primary.v4[0]);
    let mut lines = vec![
        "link 1: lo up mtu 65536".to_owned(),
        format!("link 2: eth0 mac {} up mtu 9001", primary.mac),
        format!("addr {own}/24 dev eth0 dynamic"),
        format!("route default via 10.0.{net}.1 dev eth0 proto dhcp src {own} metric 100"),
        format!("route 10.0.{net}.0/24 dev eth0 proto kernel src {own} metric 100"),
        "rule pref 0 from all lookup local proto kernel".to_owned(),
        "rule pref 32766 from all lookup main proto kernel".to_owned(),
    ];
    if dual {
        lines.extend([
            "addr fe80::1/64 dev eth0".to_owned(),
            "route default via fe80::aa dev eth0 proto ra metric 1024".to_owned(),
            "route fe80::/64 dev eth0 proto kernel metric 256".to_owned(),
            "rule inet6 pref 0 from all lookup local proto kernel".to_owned(),
            "rule inet6 pref 32766 from all lookup main proto kernel".to_owned(),
        ]);
    }
    if old {
        lines.push("no address protocols".to_owned());
    }
    lines
}

impl Eni {
    fn new(n: usize, subnet: usize, dual: bool) -> Self {
        Self {
            mac: format!("02:00:00:00:00:{:02x}", n + 1),
            name: format!("eth{n}"),
            attached: false,
            up: true,
            subnet,
            v4: vec![format!("10.0.{}.{}", subnet + 1, 4 + n)],
            v6: if dual {
                vec![format!("2600:1f16:67f:f20{subnet}::{}", 4 + n)]
            } else {
                Vec::new()
            },
            prefixes: Vec::new(),
            cidrs: vec![CIDRS[0].to_owned()],
        }
    }

    /// All keys and what they say.
    fn keys(&self) -> Vec<(&'static str, String)> {
        let number = self.mac.trim_start_matches("02:00:00:00:00:0").parse::<u32>();
        let number = number.unwrap_or(1) - 1;
        let list = |list: Vec<&String>| match &list[..] {
            [] => "-".to_owned(),
            list => list.iter().map(|word| word.as_str()).collect::<Vec<_>>().join(" "),
        };
        let (v6, v4) = self.prefixes.iter().partition(|prefix| prefix.contains(':'));
        let mut keys = vec![
            ("interface-id", format!("eni-{number}")),
            ("device-number", number.to_string()),
            ("subnet-ipv4-cidr-block", format!("10.0.{}.0/24", self.subnet + 1)),
            ("vpc-ipv4-cidr-blocks", list(self.cidrs.iter().collect())),
            ("local-ipv4s", list(self.v4.iter().collect())),
        ];
        let first = !self.v6.is_empty() || !self.prefixes.is_empty();
        keys.push(("ipv4-prefix", list(v4)));
        if first {
            let subnet = format!("2600:1f16:67f:f20{}::/64", self.subnet);
            keys.push(("subnet-ipv6-cidr-blocks", subnet));
            keys.push(("vpc-ipv6-cidr-blocks", "2600:1f16:67f:f200::/56".to_owned()));
        }
        keys.push(("ipv6s", list(self.v6.iter().collect())));
        keys.push(("ipv6-prefix", list(v6)));
        keys
    }

    fn words(&self) -> Vec<String> {
        let mut lines = vec![format!("eni {}", self.mac)];
        let keys = self.keys().into_iter().filter(|(_, value)| value != "-");
        lines.extend(keys.map(|(key, value)| format!("{key} {value}")));
        lines
    }

    fn key(&self, key: &str) -> String {
        let keys = self.keys();
        let found = keys.into_iter().find(|(known, _)| *known == key);
        found.map_or_else(|| "-".to_owned(), |(_, value)| value)
    }
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
                "device-number" => self.choose(&["0", "!404"]),
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

    /// Metadata is unwell for a while.
    fn trouble(&mut self) {
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
    fn others(&mut self) {
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
    fn within_a_plan(&mut self) {
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

    fn dies(&mut self) {
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

    fn configure(&mut self) {
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

    fn operator(&mut self) {
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
