//! Promise: whatever the metadata service sends, what makes no sense is refused entry by entry and
//! told with its reason, the memory is bounded, logs and tables stay intact, and everything else goes
//! on to work.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::imds::{Action, Fault};
use integration::vpc::{EniId, Pinger};
use integration::{Daemon, eventually, holds, trial};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::metadata_trouble::{IMPATIENT, none_missed, refresh};
use crate::pair::{FIRST, PATIENCE, Pair, SECOND, answers, comes_to_rest, picture, same, status};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("hostile::what_no_host_can_have_is_refused_entry_by_entry", nobodys),
        trial("hostile::a_prefix_that_makes_no_sense_stops_nothing_else", prefixes),
        trial("hostile::a_subnet_that_no_cloud_gives_away_changes_nothing", subnets),
        trial("hostile::an_eni_that_claims_another_ones_network_cuts_nobody_off", claims),
        trial("hostile::answers_without_end_are_cut_off_and_cost_no_memory", endless),
        trial("hostile::preliminary_answers_as_fast_as_can_be_hold_up_no_repair", preliminary),
        trial("hostile::an_answer_that_drips_holds_up_no_other_eni", dripping),
        trial("hostile::what_steers_terminals_leaves_logs_and_tables_intact", terminals),
        trial("hostile::addresses_of_hardware_are_read_and_never_made_a_path", paths),
    ]
}

const SECONDARY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 5);
const LATER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 6);
/// What the daemon's memory may grow by, in KiB, whatever it is sent.
const GROWTH: u64 = 16 << 10;

/// A pair with a secondary address, and requests to all three addresses from now to the end.
struct Scene {
    pair: Pair,
    daemon: Daemon,
    pingers: Vec<Pinger>,
}

impl Scene {
    fn build(extra: &str) -> anyhow::Result<Scene> {
        let (pair, daemon) = Pair::managed(&format!("{extra}{IMPATIENT}"))?;
        pair.vpc.assign(&pair.second, SECONDARY, None)?;
        eventually(PATIENCE, "the secondary address comes", &daemon, || {
            answers(&pair.host, SECONDARY)
        })?;
        comes_to_rest(&daemon)?;
        let pingers = [FIRST, SECOND, SECONDARY].map(|address| pair.ping_from_host(address));
        let pingers = pingers.into_iter().collect::<anyhow::Result<_>>()?;
        Ok(Scene { pair, daemon, pingers })
    }

    /// Answers a key of an ENI like this from now on.
    fn tell(&self, eni: &EniId, key: &str, action: Action) -> anyhow::Result<()> {
        let mac = self.pair.vpc.eni(eni)?.mac;
        self.fault(&format!("*/macs/{mac}/{key}"), action);
        Ok(())
    }

    fn fault(&self, pattern: &str, action: Action) {
        let fault = Fault::on(pattern, action).instance(&self.pair.instance.id);
        self.pair.vpc.metadata().fault(fault);
    }

    fn second_says(&self, key: &str, lines: &[&str]) -> anyhow::Result<()> {
        self.tell(&self.pair.second, key, Action::Body(lines.join("\n")))
    }

    /// The second ENI's status says all of this.
    fn status_says(&self, what: &[&str]) -> anyhow::Result<()> {
        eventually(PATIENCE, "the status tells", &self.daemon, || {
            refresh(&self.daemon)?;
            let said = self.pair.second_status(&self.daemon)?;
            let lines: Vec<&str> = ["notices", "waiting"]
                .iter()
                .flat_map(|list| said[*list].as_array().into_iter().flatten())
                .filter_map(Value::as_str)
                .collect();
            for what in what {
                ensure!(
                    lines.iter().any(|line| line.contains(what)),
                    "{what} is not in {lines:#?}"
                );
            }
            Ok(())
        })
    }

    /// The truth is told again, and all is as it was; every request was answered meanwhile.
    fn is_as_before(&self, before: &std::collections::BTreeSet<String>) -> anyhow::Result<()> {
        self.pair.vpc.metadata().clear_all();
        eventually(PATIENCE, "all is well again", &self.daemon, || {
            refresh(&self.daemon)?;
            let status = status(&self.daemon)?;
            ensure!(status["verdict"] == "converged", "{status}");
            same(before, &picture(&self.pair.instance)?)
        })?;
        self.all_answered()
    }

    fn all_answered(&self) -> anyhow::Result<()> {
        self.pingers.iter().try_for_each(none_missed)
    }

    /// A field of `/proc/PID/status` in KiB: memory in use (`VmRSS`), the most that ever was (`VmHWM`).
    fn memory(&self, field: &str) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.daemon.pid()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.with_context(|| format!("no {field} in {status}"))?.parse()?)
    }
}

/// How many lines of the log hold a text.
fn told(daemon: &Daemon, text: &str) -> usize {
    daemon.log().lines().filter(|line| line.contains(text)).count()
}

fn nobodys() -> anyhow::Result<()> {
    const WRONG: [(&str, &str); 8] = [
        ("127.0.0.1", "not an address that a host can have"),
        ("224.0.0.1", "not an address that a host can have"),
        ("0.0.0.0", "not an address that a host can have"),
        ("169.254.169.254", "not an address that a host can have"),
        ("10.0.2.255", "not an address that a host can have"),
        ("10.0.2.1", "the subnet's router has it"),
        ("8.8.8.8", "not in the ENI's subnet"),
        ("10.0.1.4", "not in the ENI's subnet"),
    ];
    let mut scene = Scene::build("")?;
    let before = picture(&scene.pair.instance)?;
    let mut lines = vec!["10.0.2.4", "10.0.2.5"];
    lines.extend(WRONG.map(|(entry, _)| entry));
    // What is right among what is wrong is done.
    scene.pair.vpc.assign(&scene.pair.second, LATER, None)?;
    lines.extend(["10.0.2.6", "10.0.2.6"]);
    scene.second_says("local-ipv4s", &lines)?;
    eventually(PATIENCE, "the right one works", &scene.daemon, || {
        refresh(&scene.daemon)?;
        answers(&scene.pair.host, LATER)
    })?;
    let reasons = WRONG.map(|(entry, reason)| format!("\"{entry}\" in local-ipv4s: {reason}"));
    scene.status_says(&reasons.each_ref().map(String::as_str))?;
    for _ in 0..5 {
        refresh(&scene.daemon)?;
    }
    for reason in &reasons {
        let times = told(&scene.daemon, reason);
        ensure!(times == 1, "{reason} was told {times} times\n{}", scene.daemon.log());
    }
    let there = scene.pair.instance.run(&["ip", "addr"])?;
    for (entry, _) in WRONG.iter().filter(|(entry, _)| !["127.0.0.1", "10.0.1.4"].contains(entry)) {
        ensure!(!there.contains(&format!("inet {entry}/")), "{there}");
    }
    scene.pair.vpc.unassign(&scene.pair.second, LATER)?;
    scene.is_as_before(&before)?;
    scene.daemon.terminate()
}

fn prefixes() -> anyhow::Result<()> {
    let mut scene = Scene::build("prefixes = \"local\"\n")?;
    let before = picture(&scene.pair.instance)?;
    scene.second_says(
        "ipv4-prefix",
        &[
            "10.0.2.32/32",
            "10.0.2.0/28",
            "10.0.2.4/31",
            "10.0.1.0/24",
            "0.0.0.0/0",
            "10.0.2.0/24",
            "10.0.2.64/28",
        ],
    )?;
    // The simulation lists only keys that have values.
    let mac = scene.pair.vpc.eni(&scene.pair.second)?.mac;
    let listing = "device-number\ninterface-id\nipv4-prefix\nlocal-ipv4s\nmac\nsubnet-id\n\
                   subnet-ipv4-cidr-block\nvpc-id\nvpc-ipv4-cidr-blocks";
    scene.fault(&format!("*/macs/{mac}"), Action::Body(listing.to_owned()));
    scene.status_says(&[
        "\"10.0.2.32/32\" in ipv4-prefix: a delegated prefix is more than one address",
        "\"10.0.2.0/28\" in ipv4-prefix: the subnet's router has it",
        "\"10.0.2.4/31\" in ipv4-prefix: the ENI's primary address is in it",
        "\"10.0.1.0/24\" in ipv4-prefix: not in the ENI's subnet",
        "\"0.0.0.0/0\" in ipv4-prefix: not what this key holds",
        "\"10.0.2.0/24\" in ipv4-prefix: not in the ENI's subnet",
    ])?;
    let local = |wanted: &[&str]| -> anyhow::Result<()> {
        let routes =
            scene.pair.instance.run(&["ip", "route", "show", "table", "local", "proto", "233"])?;
        let found: Vec<&str> = routes.lines().filter_map(|line| line.split(' ').nth(1)).collect();
        ensure!(found == wanted, "{routes}");
        Ok(())
    };
    eventually(PATIENCE, "the sound prefix is the host's", &scene.daemon, || {
        local(&["10.0.2.64/28"])
    })?;
    // Nothing of it keeps the next change waiting.
    scene.pair.vpc.assign(&scene.pair.second, LATER, None)?;
    eventually(PATIENCE, "an address comes", &scene.daemon, || answers(&scene.pair.host, LATER))?;
    scene.pair.vpc.unassign(&scene.pair.second, LATER)?;
    ensure!(told(&scene.daemon, "refused") > 0, "{}", scene.daemon.log());
    let whole = status(&scene.daemon)?;
    ensure!(!whole["last_error"].to_string().contains("refus"), "a plan was refused: {whole}");
    scene.is_as_before(&before)?;
    scene.daemon.terminate()
}

const SUBNETS: [&str; 8] = [
    "0.0.0.0/0",
    "0.0.0.0/1",
    "128.0.0.0/1",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "127.0.0.0/8",
    "::/0",
    "10.0.2.0/33",
];

fn subnets() -> anyhow::Result<()> {
    let mut scene = Scene::build("")?;
    let before = picture(&scene.pair.instance)?;
    for subnet in SUBNETS {
        scene.second_says("subnet-ipv4-cidr-block", &[subnet])?;
        scene.second_says("vpc-ipv4-cidr-blocks", &["10.0.0.0/16", subnet])?;
        scene.status_says(&[
            &format!("\"{subnet}\" in subnet-ipv4-cidr-block: not what this key holds"),
            "in vpc-ipv4-cidr-blocks: not what this key holds",
        ])?;
        holds(Duration::from_millis(500), subnet, &scene.daemon, || {
            same(&before, &picture(&scene.pair.instance)?)
        })?;
        scene.is_as_before(&before)?;
    }
    scene.daemon.terminate()
}

/// From the moment it is attached, an ENI says that it has the primary ENI's network.
fn claims() -> anyhow::Result<()> {
    let pair = Pair::build()?;
    let daemon = Daemon::ready(&pair.instance, IMPATIENT)?;
    let pingers = vec![pair.ping_from_host(FIRST)?];
    let mut scene = Scene { pair, daemon, pingers };
    scene.second_says("subnet-ipv4-cidr-block", &["10.0.1.0/24"])?;
    scene.second_says("local-ipv4s", &["10.0.1.9", "10.0.1.4", "10.0.1.1", "10.0.1.99"])?;
    scene.second_says("ipv4-prefix", &["10.0.1.0/28", "10.0.1.0/29"])?;
    scene.pair.vpc.attach(&scene.pair.second, &scene.pair.instance, "ens6")?;
    let first = scene.pair.vpc.eni(&scene.pair.instance.primary)?.mac;
    scene.status_says(&[
        &format!("\"10.0.1.4\" in local-ipv4s: {first} has it, too"),
        "\"10.0.1.1\" in local-ipv4s: the subnet's router has it",
    ])?;
    holds(Duration::from_secs(1), "the first ENI works", &scene.daemon, || {
        let there = scene.pair.instance.run(&["ip", "addr", "show", "dev", "ens6"])?;
        ensure!(!there.contains("10.0.1.4/"), "{there}");
        answers(&scene.pair.host, FIRST)
    })?;
    scene.pair.vpc.metadata().clear_all();
    let subnet = "\"10.0.2.0/24\" in subnet-ipv4-cidr-block: the ENI's subnet was 10.0.1.0/24";
    scene.status_says(&[subnet])?;
    // The first reading of a subnet counts, and a start's is the first.
    scene.daemon.restart()?;
    eventually(PATIENCE, "both work", &scene.daemon, || {
        refresh(&scene.daemon)?;
        scene.pair.works("ens6")
    })?;
    scene.all_answered()?;
    scene.daemon.terminate()
}

/// A first line and headers that end, so that a body follows.
fn head(headers: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\n{headers}").into_bytes()
}

fn without_end(headers: &str, piece: &str) -> Action {
    let piece = piece.repeat(16 << 10).into_bytes();
    Action::Endless { head: head(headers), piece, pause: Duration::ZERO }
}

fn endless() -> anyhow::Result<()> {
    let many: String =
        (0..100_000_u32).map(|n| format!("{}\n", Ipv4Addr::from(0x0a00_0200 + n))).collect();
    let header = format!("X-Long: {}\r\n", "y".repeat(4 << 20));
    let cases = [
        ("10 MiB", Action::Body("10.0.2.4\n".repeat(10 << 17))),
        ("100,000 entries", Action::Body(many)),
        (
            "2,400 entries, most of them twice",
            Action::Body("10.0.2.4\n10.0.2.5\n".repeat(700) + &"x\n".repeat(1000)),
        ),
        ("a body without end", without_end("Content-Length: 99999999999\r\n\r\n", "10.0.2.4\n")),
        ("chunks without end", without_end("Transfer-Encoding: chunked\r\n\r\n", "4\r\n1.1\n\r\n")),
        (
            "a chunk of all there is",
            without_end("Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", "x"),
        ),
        ("headers without end", without_end("", "X-More: y\r\n")),
        (
            "4 MiB of headers",
            Action::Raw([head(&header), b"Content-Length: 0\r\n\r\n".to_vec()].concat()),
        ),
        (
            "preliminary answers without end",
            Action::Endless {
                head: Vec::new(),
                piece: b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(100),
                // As fast as can be, a build without optimisation does nothing else.
                pause: Duration::from_millis(5),
            },
        ),
        (
            "a first line without end",
            Action::Endless {
                head: b"HTTP/1.1 200 ".to_vec(),
                piece: vec![b'O'; 16 << 10],
                pause: Duration::ZERO,
            },
        ),
        (
            "no text",
            Action::Raw([head("Content-Length: 4\r\n\r\n"), vec![0xff, 0xfe, 0, 1]].concat()),
        ),
        ("no HTTP", Action::Raw(vec![0, 1, 2, 3, 0x1b, 0xff])),
        ("elsewhere", Action::Redirect("http://10.0.254.4/".to_owned())),
    ];
    let mut scene = Scene::build("")?;
    let before = picture(&scene.pair.instance)?;
    let start = scene.memory("VmRSS")?;
    for (name, action) in cases {
        scene.tell(&scene.pair.second, "local-ipv4s", action.clone())?;
        scene.status_says(&["local-ipv4s"]).context(name)?;
        // The same of everything that is read.
        scene.fault("*meta-data*", action);
        for _ in 0..2 {
            refresh(&scene.daemon)?;
        }
        same(&before, &picture(&scene.pair.instance)?).context(name)?;
        scene.is_as_before(&before).context(name)?;
        let (now, most) = (scene.memory("VmRSS")?, scene.memory("VmHWM")?);
        ensure!(most <= start + GROWTH, "{name}: from {start} KiB to {most} KiB, {now} KiB now");
    }
    scene.daemon.terminate()
}

/// Reading them gives way to nobody for many seconds.
fn preliminary() -> anyhow::Result<()> {
    let mut scene = Scene::build("")?;
    let instance = scene.pair.instance.clone();
    let asked = || scene.pair.vpc.metadata().requests_of(&instance.id, "*/local-ipv4s").len();
    let action = Action::Endless {
        head: Vec::new(),
        piece: b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(4000),
        pause: Duration::ZERO,
    };
    let before = asked();
    scene.fault("*/local-ipv4s", action);
    eventually(PATIENCE, "it asks", &scene.daemon, || {
        ensure!(asked() > before, "nobody asks");
        Ok(())
    })?;
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(500));
        instance.run(&["ip", "rule", "del", "pref", "20000", "oif", "ens6"])?;
        eventually(PATIENCE, "the rule is back", &scene.daemon, || {
            let rules = instance.run(&["ip", "rule"])?;
            ensure!(rules.contains("oif ens6 lookup 20001"), "{rules}");
            Ok(())
        })?;
        status(&scene.daemon)?;
    }
    scene.all_answered()?;
    scene.daemon.terminate()
}

/// One byte a second: it ends with its deadline, and the primary ENI is looked after meanwhile.
fn dripping() -> anyhow::Result<()> {
    let mut scene = Scene::build("")?;
    let before = picture(&scene.pair.instance)?;
    let drip = Action::Endless {
        head: head("Content-Length: 1000\r\n\r\n"),
        piece: b"1".to_vec(),
        pause: Duration::from_secs(1),
    };
    scene.tell(&scene.pair.second, "local-ipv4s", drip)?;
    let address = Ipv4Addr::new(10, 0, 1, 44);
    scene.pair.vpc.assign(&scene.pair.instance.primary, address, None)?;
    eventually(PATIENCE, "the primary ENI gets its address", &scene.daemon, || {
        answers(&scene.pair.host, address)
    })?;
    scene.status_says(&["local-ipv4s"])?;
    scene.pair.vpc.unassign(&scene.pair.instance.primary, address)?;
    scene.is_as_before(&before)?;
    scene.daemon.terminate()
}

/// Neither what controls a terminal nor what turns the direction of writing.
fn is_clean(what: &str, text: &str) -> anyhow::Result<()> {
    let bad = |c: &char| {
        (c.is_control() && *c != '\n')
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    match text.chars().find(bad) {
        None => Ok(()),
        Some(c) => anyhow::bail!("{what} has {c:?}: {text:?}"),
    }
}

fn terminals() -> anyhow::Result<()> {
    const EVIL: &str = "\u{1b}[31mred\u{1b}[0m\u{202e}gpj\u{7}\u{8}\0\u{9b}2J";
    const KEYS: [&str; 6] = [
        "interface-id",
        "subnet-id",
        "vpc-id",
        "device-number",
        "subnet-ipv4-cidr-block",
        "local-ipv4s",
    ];
    let mut scene = Scene::build("")?;
    let before = picture(&scene.pair.instance)?;
    for key in KEYS {
        let forged = format!("eni-1{EVIL}\n2026-01-01T00:00:00Z ERROR forged\r\nVERDICT converged");
        scene.tell(&scene.pair.second, key, Action::Body(forged))?;
    }
    scene.status_says(&["interface-id: not what this key holds", "local-ipv4s"])?;
    let daemon = &scene.daemon;
    for arguments in [&["status"][..], &["status", "--all"], &["plan"], &["status", "--json"]] {
        let said = daemon.enictl().run(arguments)?;
        is_clean(&arguments.join(" "), &format!("{}{}", said.stdout, said.stderr))?;
        ensure!(!said.stdout.lines().any(|line| line.starts_with("VERDICT")), "{}", said.stdout);
    }
    // Serde refuses to read what is no JSON.
    ensure!(status(daemon)?["enis"].as_array().is_some_and(|enis| enis.len() == 2));
    let log = daemon.log();
    is_clean("the log", &log)?;
    for line in log.lines() {
        let own = line.starts_with("20") && !line.starts_with("2026-01-01T00:00:00Z");
        ensure!(own, "{line:?} is forged");
    }
    // Headers and bodies of the whole service.
    scene.fault(
        "*",
        Action::Raw(format!("HTTP/1.1 200 {EVIL}\r\n{EVIL}: {EVIL}\r\n\r\n{EVIL}").into_bytes()),
    );
    eventually(PATIENCE, "the status tells", &scene.daemon, || {
        refresh(&scene.daemon)?;
        let status = status(&scene.daemon)?;
        ensure!(status["verdict"] == "waiting", "{status}");
        Ok(())
    })?;
    let said = scene.daemon.enictl().run(&["status"])?;
    is_clean("the status", &said.stdout)?;
    is_clean("the log", &scene.daemon.log())?;
    for notice in scene.daemon.notices() {
        is_clean("what systemd is told", &notice)?;
    }
    same(&before, &picture(&scene.pair.instance)?)?;
    scene.is_as_before(&before)?;
    scene.daemon.terminate()
}

fn paths() -> anyhow::Result<()> {
    let mut scene = Scene::build("")?;
    let before = picture(&scene.pair.instance)?;
    let macs = [&scene.pair.instance.primary, &scene.pair.second]
        .map(|eni| scene.pair.vpc.eni(eni).map(|eni| eni.mac.to_string()));
    let [first, second] = macs;
    let (first, second) = (first?, second?);
    let tricks = "../../../../dynamic/instance-identity/document\n../\n%2e%2e/\n//evil/\n?x=y\n02:00:00:00:00:zz/\n";
    let ours = format!("{first}/\n{second}/\n{}/\n{second}/\n{first}\n", second.to_uppercase());
    let strangers = |count: u32| -> String {
        (0..count).map(|n| format!("06:00:00:{:02x}:{:02x}:01/\n", n >> 8 & 255, n & 255)).collect()
    };
    let well = [
        ("tricks", format!("{tricks}{ours}{tricks}")),
        ("upper case", format!("{}/\n{}/", first.to_uppercase(), second.to_uppercase())),
        ("1,000 strangers", format!("{ours}{}", strangers(1000))),
    ];
    scene.pair.vpc.metadata().forget_requests();
    for (name, listing) in well {
        scene.fault("*/interfaces/macs", Action::Body(listing));
        for _ in 0..3 {
            refresh(&scene.daemon)?;
        }
        eventually(PATIENCE, name, &scene.daemon, || {
            let status = status(&scene.daemon)?;
            ensure!(status["verdict"] == "converged", "{status}");
            same(&before, &picture(&scene.pair.instance)?)
        })?;
        scene.pair.vpc.metadata().clear_all();
    }
    ensure!(told(&scene.daemon, "lacks the primary") == 0, "{}", scene.daemon.log());
    scene.fault("*/interfaces/macs", Action::Body(format!("{ours}{}", strangers(10_000))));
    holds(Duration::from_secs(1), "10,000 strangers change nothing", &scene.daemon, || {
        same(&before, &picture(&scene.pair.instance)?)
    })?;
    let known = [format!("/macs/{first}/"), format!("/macs/{second}/")];
    for request in scene.pair.vpc.metadata().requests_of(&scene.pair.instance.id, "*") {
        let path = &request.path;
        let within = known.iter().any(|known| path.contains(known));
        let top = [
            "/latest/api/token",
            "/latest/meta-data/mac",
            "/latest/meta-data/network/interfaces/macs/",
        ];
        ensure!(within || top.contains(&path.as_str()), "{path} was asked for");
        ensure!(!path.contains("..") && !path.contains('%'), "{path} was asked for");
    }
    scene.is_as_before(&before)?;
    scene.daemon.terminate()
}
