//! Promise: what somebody else made is never changed, wherever it is, whenever it was made and
//! however much it resembles what enid makes; and what was enid's is his who makes it anew.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::{Daemon, eventually, holds, trial, trial_on_an_old_kernel};
use libtest_mimic::Trial;

use crate::drift::lines;
use crate::pair::{PATIENCE, Pair, SECOND, answers, comes_to_rest, picture, same};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for class in &CLASSES {
        for when in [When::Before, When::After] {
            if when == When::After && class.anywhere.is_empty() {
                continue;
            }
            let name = format!("ownership::{}_made_{}_enids", class.name, when.name());
            trials.push(trial(&name, move || untouched(class, when)));
            // Without marks, an address that was deleted and made anew cannot be told from ours.
            if class.name == "addresses" && when == When::Before {
                let name = format!("{name}_on_an_old_kernel");
                trials.push(trial_on_an_old_kernel(&name, move || untouched(class, when)));
            }
        }
    }
    trials.push(trial("ownership::what_was_enids_and_carries_anothers_mark_now", re_marked));
    trials
}

/// A secondary address of the second ENI; some of the others make it themselves.
const SECONDARY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 5);

const IMPATIENT: &str = "poll_interval = \"100ms\"\n\
    [removal]\nconfirmations = 1\ngrace = \"0s\"\nmass_grace = \"0s\"\n";

#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Before,
    After,
}

impl When {
    fn name(self) -> &'static str {
        match self {
            When::Before => "before",
            When::After => "after",
        }
    }
}

/// Objects of one class in every place: on our links, in our tables, among our priorities; lines of
/// `ip`, or `sysctl NAME VALUE`.
struct Class {
    name: &'static str,
    /// How they begin in a picture.
    lines: &'static [&'static str],
    anywhere: &'static [&'static str],
    /// Equal to ours in all but the mark, where ours is not there yet.
    twins_before: &'static [&'static str],
    /// The same beside ours, or in its place.
    twins_after: &'static [&'static str],
    /// What tells them in a picture.
    marks: &'static [&'static str],
}

const CLASSES: [Class; 7] = [
    Class {
        name: "addresses",
        lines: &["address on "],
        anywhere: &[
            "addr add 10.0.2.77/32 dev ens6",
            "addr add 192.0.2.77/24 dev ens6 noprefixroute",
            "addr add 10.0.1.77/32 dev ens5",
            "addr add 10.0.2.78/32 dev lo",
            "addr add 2600:1f16:67f:f202::77/128 dev ens6 nodad",
            "addr add 2001:db8::77/64 dev ens6 nodad noprefixroute",
            "addr add 2600:1f16:67f:f201::77/128 dev ens5 nodad",
        ],
        twins_before: &["addr add 10.0.2.5/32 dev ens6"],
        twins_after: &["addr del 10.0.2.5/32 dev ens6", "addr add 10.0.2.5/32 dev ens6"],
        marks: &[
            "\"local\":\"10.0.2.77\"",
            "\"local\":\"192.0.2.77\"",
            "\"local\":\"10.0.1.77\"",
            "\"local\":\"10.0.2.78\"",
            "\"local\":\"2600:1f16:67f:f202::77\"",
            "\"local\":\"2001:db8::77\"",
            "\"local\":\"2600:1f16:67f:f201::77\"",
            "\"local\":\"10.0.2.5\"",
        ],
    },
    Class {
        name: "routes",
        lines: &["route ", "route6 "],
        anywhere: &[
            "route add unreachable 192.0.2.128/25 table 20001 proto 99",
            "route add 100.64.7.0/24 via 10.0.1.1 dev ens5 table 20001 proto 99",
            "route add unreachable 192.0.2.128/25 table 20000 proto 99",
            "route add 192.0.2.0/25 dev ens5 table 99 proto 99",
            "route add 203.0.113.128/25 dev ens5 proto 99",
            "route add default dev ens5 metric 4000 table 20001 proto 99",
            "route add unreachable 2001:db8:1::/48 table 20001 proto 99",
            "route add 2001:db8:2::/48 via fe80:ec2::1 dev ens5 table 20001 proto 99",
            "route add 2001:db8:3::/48 dev ens5 table 99 proto 99",
            "route add 2001:db8:4::/48 dev ens5 proto 99",
        ],
        twins_before: &["route add unreachable default metric 4294967295 table 20001 proto 99"],
        twins_after: &["route append unreachable default metric 4294967295 table 20001 proto 99"],
        marks: &["\"protocol\":\"99\""],
    },
    Class {
        name: "rules",
        lines: &["rule ", "rule6 "],
        anywhere: &[
            "rule add pref 20000 oif lo lookup 99 proto 99",
            "rule add pref 20010 from 192.0.2.77 lookup 99 proto 99",
            "rule add pref 20015 from 192.0.2.77 lookup 99 proto 99",
            "rule add pref 20020 from 192.0.2.78 lookup 20001 proto 99",
            "rule add pref 20021 from 10.0.2.0/24 lookup 20001 proto 99",
            "rule add pref 20010 fwmark 0x7 lookup 99 proto 99",
            "-6 rule add pref 20010 from 2001:db8::77 lookup 99 proto 99",
            "-6 rule add pref 20020 from 2001:db8::78 lookup 20001 proto 99",
            "-6 rule add pref 20021 from 2600:1f16:67f:f202::/64 lookup 20001 proto 99",
        ],
        twins_before: &TWIN_RULES,
        twins_after: &TWIN_RULES,
        marks: &["\"protocol\":\"99\""],
    },
    Class {
        name: "link_groups",
        lines: &["link "],
        anywhere: &["link set ens6 group 7"],
        twins_before: &[],
        twins_after: &[],
        marks: &["\"group\":\"7\""],
    },
    Class {
        name: "names",
        lines: &["link "],
        anywhere: &[
            "link property add dev ens6 altname theirs0",
            "link property add dev ens5 altname theirs1",
            "link set ens6 alias theirs2",
        ],
        twins_before: &[],
        twins_after: &[],
        marks: &["theirs0", "theirs1", "theirs2"],
    },
    Class {
        name: "settings",
        lines: &["net."],
        anywhere: &[
            "sysctl net.ipv4.conf.ens6.rp_filter 2",
            "sysctl net.ipv4.conf.ens6.arp_ignore 8",
            "sysctl net.ipv4.conf.ens5.arp_announce 1",
            "sysctl net.ipv6.conf.ens5.accept_ra_pinfo 0",
        ],
        twins_before: &[],
        twins_after: &[],
        marks: &["net."],
    },
    // Later it is what enid gives and sets, and takes back when it goes.
    Class {
        name: "what_a_link_has_already",
        lines: &["link ", "net."],
        anywhere: &[],
        twins_before: &[
            "link property add dev ens6 altname device-number-1.0",
            "sysctl net.ipv6.conf.ens6.accept_ra_pinfo 0",
        ],
        twins_after: &[],
        marks: &["device-number-1.0", "net."],
    },
];

const TWIN_RULES: [&str; 2] = [
    "rule add pref 20020 from 10.0.2.0/24 iif lo lookup 20001 proto 99",
    "-6 rule add pref 20020 from 2600:1f16:67f:f202::/64 iif lo lookup 20001 proto 99",
];

/// What of a picture is theirs, with their settings; what the kernel adds to an address is not looked
/// at, and of a link only what they gave it.
fn theirs(pair: &Pair, class: &Class) -> anyhow::Result<BTreeSet<String>> {
    let mut all = picture(&pair.instance)?;
    let made = class.anywhere.iter().chain(class.twins_before);
    for name in made.filter_map(|line| line.strip_prefix("sysctl ")?.split(' ').next()) {
        // It goes with its link.
        if let Ok(value) = pair.instance.read_sysctl(name) {
            all.insert(format!("{name} = {value}"));
        }
    }
    let mut theirs = BTreeSet::new();
    for line in all.iter().filter(|line| class.lines.iter().any(|kind| line.starts_with(kind))) {
        for mark in class.marks.iter().filter(|mark| line.contains(*mark)) {
            let name = ["ens5", "ens6"].into_iter().find(|name| line.contains(name));
            let of_link = || format!("{mark} of {}", name.unwrap_or("another link"));
            theirs.insert(if line.starts_with("link ") { of_link() } else { line.clone() });
        }
    }
    Ok(theirs)
}

/// Makes what lines of a class say.
fn make(pair: &Pair, lines: &[&str]) -> anyhow::Result<()> {
    for line in lines {
        if let Some((name, value)) = line.strip_prefix("sysctl ").and_then(|it| it.split_once(' '))
        {
            pair.instance.sysctl(name, value)?;
        } else {
            let words: Vec<&str> = line.split(' ').collect();
            pair.instance.run(&[&["ip"], &words[..]].concat())?;
        }
    }
    Ok(())
}

fn untouched(class: &Class, when: When) -> anyhow::Result<()> {
    let pair = Pair::dual()?;
    let twins = match when {
        When::Before => class.twins_before,
        When::After => class.twins_after,
    };
    let make = || -> anyhow::Result<BTreeSet<String>> {
        make(&pair, class.anywhere)?;
        // enid may be quicker to make its own anew.
        eventually(PATIENCE, "their twins are made", &pair.instance, || make(&pair, twins))?;
        theirs(&pair, class)
    };
    let mut before = BTreeSet::new();
    if when == When::Before {
        pair.instance.ip_batch(&lines(&["link set ens6 up"]))?;
        before = make()?;
    }
    pair.vpc.assign(&pair.second, SECONDARY, None)?;
    let mut daemon = Daemon::ready(&pair.instance, IMPATIENT)?;
    pair.comes_to_work("ens6", &daemon)?;
    eventually(PATIENCE, "its secondary works", &daemon, || answers(&pair.host, SECONDARY))?;
    if when == When::After {
        before = make()?;
    }
    let made = class.anywhere.iter().chain(twins).filter(|line| !line.contains(" del ")).count();
    ensure!(before.len() >= made, "only {before:#?} is there");
    let stays = |what: &str, daemon: &Daemon| {
        let theirs = || same(&before, &theirs(&pair, class)?);
        eventually(PATIENCE, what, daemon, theirs)?;
        holds(Duration::from_millis(300), what, daemon, theirs)
    };
    stays("it outlives what enid makes", &daemon)?;
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    pair.comes_to_work("ens6", &daemon)?;
    stays("it outlives a restart", &daemon)?;
    daemon.kill()?;
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    stays("it outlives a crash", &daemon)?;
    pair.vpc.unassign(&pair.second, SECONDARY)?;
    daemon.enictl().run(&["refresh"])?.success()?;
    stays("it outlives an address that goes", &daemon)?;
    daemon.enictl().run(&["release", "--all"])?.success()?;
    stays("it outlives a release", &daemon)?;
    ensure!(!own(&pair)?.contains(&SECOND.to_string()), "the release left something");
    daemon.enictl().run(&["unhold", "--all"])?.success()?;
    pair.comes_to_work("ens6", &daemon)?;
    stays("it outlives that enid makes its own anew", &daemon)?;
    pair.vpc.detach(&pair.second)?;
    // What was on the link went with it, by the kernel.
    before.retain(|line| !line.contains("ens6"));
    let theirs = || same(&before, &theirs(&pair, class)?);
    eventually(PATIENCE, "it outlives a detached ENI", &daemon, || {
        ensure!(!own(&pair)?.contains("20001"), "enid's are still there");
        theirs()
    })?;
    holds(Duration::from_millis(300), "it outlives a detached ENI", &daemon, theirs)?;
    daemon.terminate()
}

/// Everything of enid's in the tables and rules, and the addresses of the second ENI.
fn own(pair: &Pair) -> anyhow::Result<String> {
    let lines = picture(&pair.instance)?.into_iter();
    let own = lines.filter(|line| {
        line.contains("\"protocol\":\"233\"") || line.contains(&format!("\"local\":\"{SECOND}\""))
    });
    Ok(own.collect::<Vec<_>>().join("\n"))
}

/// Each is told, works on, and is neither taken back nor removed.
fn re_marked() -> anyhow::Result<()> {
    let pair = Pair::attached()?;
    pair.vpc.assign(&pair.second, SECONDARY, None)?;
    let mut daemon = Daemon::ready(&pair.instance, IMPATIENT)?;
    pair.comes_to_work("ens6", &daemon)?;
    comes_to_rest(&daemon)?;
    pair.instance.ip_batch(&lines(&[
        "addr replace 10.0.2.5/32 dev ens6",
        "route replace 10.0.0.0/16 via 10.0.2.1 dev ens6 src 10.0.2.4 table 20001 proto static",
        "rule del pref 20020 from 10.0.2.0/24",
        "rule add pref 20020 from 10.0.2.0/24 iif lo lookup 20001 proto 99",
    ]))?;
    let stands = || -> anyhow::Result<()> {
        let picture = picture(&pair.instance)?;
        let has = |what: &str, marks: &[&str]| {
            let found = picture.iter().any(|line| marks.iter().all(|mark| line.contains(mark)));
            ensure!(found, "{what} is not theirs: {picture:#?}");
            Ok(())
        };
        has("the address", &["address on", "\"local\":\"10.0.2.5\""])?;
        has("the route", &["\"dst\":\"10.0.0.0/16\"", "\"20001\"", "\"protocol\":\"4\""])?;
        has("the rule", &["\"src\":\"10.0.2.0\"", "\"20001\"", "\"protocol\":\"99\""])
    };
    eventually(PATIENCE, "it is told", &daemon, || {
        let eni = pair.second_status(&daemon)?;
        let addresses = eni["addresses"].as_array().context("no addresses")?;
        let state = |address: &serde_json::Value| {
            address["address"] == SECONDARY.to_string() && address["state"] == "taken_over"
        };
        ensure!(addresses.iter().any(state), "{eni}");
        let notices = eni["notices"].to_string();
        ensure!(notices.contains("its table has a route that enid did not make"), "{eni}");
        ensure!(notices.contains("a rule that enid did not make leads into its table"), "{eni}");
        Ok(())
    })?;
    holds(Duration::from_secs(1), "all of it stands", &daemon, stands)?;
    pair.comes_to_work("ens6", &daemon)?;
    ensure!(!daemon.log().contains("keeps undoing"), "it was fought over");
    pair.vpc.unassign(&pair.second, SECONDARY)?;
    daemon.enictl().run(&["refresh"])?.success()?;
    holds(Duration::from_secs(1), "all of it stays", &daemon, stands)?;
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    holds(Duration::from_secs(1), "all of it outlives a restart", &daemon, stands)?;
    daemon.terminate()
}
