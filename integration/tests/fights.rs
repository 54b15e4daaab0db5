//! Promise: whoever undoes what enid does, as fast as he can, costs little, is told and named where
//! that can be, and keeps nothing else from converging.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use integration::vpc::EniSpec;
use integration::{Adversary, Daemon, cpu_time, eventually, trial};
use libtest_mimic::Trial;

use crate::drift::{SECONDARY, stage};
use crate::pair::{PATIENCE, Pair, answers, comes_to_rest, picture, same};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials: Vec<Trial> = FIGHTS
        .iter()
        .chain(&SETTINGS)
        .map(|fight| trial(&format!("fights::{}", fight.name), || fought(fight)))
        .collect();
    trials.extend([
        trial("fights::an_address_that_is_made_anew_by_somebody_is_his", twin_address),
        trial("fights::a_route_that_is_replaced_by_somebody_is_his", twin_route),
        trial("fights::everything_at_once_costs_a_twentieth_of_a_cpu_at_most", everything),
        trial("fights::a_storm_of_foreign_changes_costs_a_twentieth_of_a_cpu_at_most", storm),
    ]);
    trials
}

/// Of a CPU, in per cent.
const DEAR: f64 = 5.0;

/// What enid may spend before it begins to save, whenever that is.
const AT_ONCE: Duration = Duration::from_millis(250);

/// Something of enid's that somebody undoes.
struct Fight {
    name: &'static str,
    /// A line of `ip`; of a setting, a shell's.
    undo: &'static str,
    /// What enid does against it.
    told: &'static str,
    /// Whether the kernel says who did it.
    named: bool,
}

const FIGHTS: [Fight; 8] = [
    Fight {
        name: "a_secondary_address",
        undo: "addr del 10.0.2.5/32 dev ens6",
        told: "address add 10.0.2.5/32 dev ens6",
        named: true,
    },
    Fight {
        name: "the_primary_address_of_an_eni",
        undo: "addr del 10.0.2.4/24 dev ens6",
        told: "address add 10.0.2.4/24 dev ens6",
        named: true,
    },
    Fight {
        name: "a_route",
        undo: "route del 10.0.0.0/16 table 20001",
        told: "route add 10.0.0.0/16 via 10.0.2.1 dev ens6 table 20001",
        named: true,
    },
    Fight {
        name: "a_default_route",
        undo: "route del default via 10.0.2.1 table 20001",
        told: "route add default via 10.0.2.1 dev ens6 table 20001",
        named: true,
    },
    Fight {
        name: "a_rule",
        undo: "rule del pref 20020 from 10.0.2.0/24",
        told: "rule add pref 20020 from 10.0.2.0/24 iif lo lookup 20001",
        named: true,
    },
    Fight {
        name: "a_links_group",
        undo: "link set ens6 group 0",
        told: "link set dev ens6 group 20000",
        named: false,
    },
    Fight {
        name: "a_links_mtu",
        undo: "link set ens6 mtu 1400",
        told: "link set dev ens6 mtu",
        named: false,
    },
    Fight {
        name: "a_link_that_is_put_down",
        undo: "link set ens6 down",
        told: "link set dev ens6 up",
        named: false,
    },
];

/// The kernel tells nobody of these: it takes something else that happens for enid to look.
const SETTINGS: [Fight; 2] = [
    Fight {
        name: "a_setting_of_a_link",
        undo: "echo 1 > /proc/sys/net/ipv6/conf/ens6/accept_ra_defrtr; ip link set lo alias x",
        told: "sysctl -w net.ipv6.conf.ens6.accept_ra_defrtr=0",
        named: false,
    },
    Fight {
        name: "another_setting_of_a_link",
        undo: "echo 1 > /proc/sys/net/ipv6/conf/ens6/accept_ra_pinfo; ip link set lo alias x",
        told: "sysctl -w net.ipv6.conf.ens6.accept_ra_pinfo=0",
        named: false,
    },
];

/// The settings that enid makes on the second ENI's link, and all else but time.
fn state(pair: &Pair) -> anyhow::Result<BTreeSet<String>> {
    let mut lines = picture(&pair.instance)?;
    for name in ["accept_ra_defrtr", "accept_ra_pinfo"] {
        let name = format!("net.ipv6.conf.ens6.{name}");
        lines.insert(format!("{name} = {}", pair.instance.read_sysctl(&name)?));
    }
    Ok(lines)
}

fn fought(fight: &Fight) -> anyhow::Result<()> {
    let (pair, mut daemon) = stage("")?;
    pair.instance.ip_batch(&["link set lo alias x".to_owned()])?;
    let before = state(&pair)?;
    let of_a_setting = SETTINGS.iter().any(|setting| setting.name == fight.name);
    let adversary = if of_a_setting {
        Adversary::shell(&pair.instance, fight.undo)?
    } else {
        Adversary::start(&pair.instance, &[fight.undo])?
    };
    let who =
        if fight.named { format!("ip (process {})", adversary.id()) } else { "somebody".into() };
    eventually(PATIENCE, "it is told", &daemon, || {
        let waiting = pair.second_status(&daemon)?["waiting"].to_string();
        ensure!(waiting.contains(fight.told), "{waiting}");
        ensure!(waiting.contains(&format!("{who} keeps undoing `")), "{waiting}");
        Ok(())
    })?;
    let log = daemon.log();
    let told = log.lines().find(|line| line.contains("keeps undoing") && line.contains(fight.told));
    let told = told.map(str::to_owned).unwrap_or_default();
    ensure!(told.contains(&pair.second.0) && told.contains(": make "), "the journal says {told:?}");

    let address = Ipv4Addr::new(10, 0, 1, 5);
    others_converge(&pair, &daemon, address)?;
    let before_that = daemon.log();
    cheap(&daemon, 6)?;
    // Truces of 1, 2, 4 s and so on.
    let log = daemon.log();
    let tried = log[before_that.len()..].matches(fight.told).count();
    ensure!(tried <= 6, "tried {tried} times in six seconds");
    let told = |line: &&str| line.contains("keeps undoing") && line.contains(fight.told);
    let told = log.lines().filter(told).count();
    ensure!(told == 1, "it was told {told} times");
    drop(adversary);

    pair.vpc.unassign(&pair.instance.primary, address)?;
    daemon.enictl().run(&["drop", &address.to_string()])?.success()?;
    // It bears no grudge after a restart; that truces end by themselves, `everything` shows.
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    eventually(PATIENCE, "all is as it was", &daemon, || same(&before, &state(&pair)?))?;
    pair.comes_to_work("ens6", &daemon)?;
    eventually(PATIENCE, "the address works", &daemon, || answers(&pair.host, SECONDARY))?;
    comes_to_rest(&daemon)?;
    daemon.terminate()
}

/// Meanwhile an address is assigned, a route of another ENI is deleted by hand, and a third ENI comes
/// and goes.
fn others_converge(pair: &Pair, daemon: &Daemon, address: Ipv4Addr) -> anyhow::Result<()> {
    pair.vpc.assign(&pair.instance.primary, address, None)?;
    daemon.enictl().run(&["refresh"])?;
    eventually(PATIENCE, "another address comes", daemon, || answers(&pair.host, address))?;
    pair.instance.run(&["ip", "route", "del", "10.0.0.0/16", "table", "20000"])?;
    eventually(PATIENCE, "another route comes back", daemon, || {
        let routes = pair.instance.run(&["ip", "route", "show", "table", "20000"])?;
        ensure!(routes.contains("10.0.0.0/16"), "{routes}");
        Ok(())
    })?;
    let third = Ipv4Addr::new(10, 0, 254, 9);
    let eni = pair.vpc.create_eni(EniSpec::new([third]))?;
    pair.vpc.attach(&eni, &pair.instance, "ens7")?;
    eventually(PATIENCE, "another ENI works", daemon, || answers(&pair.host, third))?;
    pair.vpc.detach(&eni)?;
    eventually(PATIENCE, "its rules are gone", daemon, || {
        let rules = pair.instance.run(&["ip", "rule"])?;
        ensure!(!rules.contains("20002"), "{rules}");
        Ok(())
    })
}

/// That enid takes little of a CPU in the long run. What else the machine does slows it down and lets
/// it seem to work more: one quiet stretch of three is enough.
fn cheap(daemon: &Daemon, seconds: u64) -> anyhow::Result<()> {
    let mut shares = Vec::new();
    while shares.len() < 3 {
        let share = spent(daemon, seconds)?;
        if share < DEAR {
            return Ok(());
        }
        shares.push(format!("{share:.1} %"));
    }
    bail!("enid was on a CPU {} of the time", shares.join(", "))
}

/// How much of a CPU the daemon takes in the long run, in per cent, while nobody asks it anything.
fn spent(daemon: &Daemon, seconds: u64) -> anyhow::Result<f64> {
    let before = cpu_time(daemon.pid()?)?;
    let start = std::time::Instant::now();
    std::thread::sleep(Duration::from_secs(seconds));
    let spent = (cpu_time(daemon.pid()?)? - before).saturating_sub(AT_ONCE);
    Ok(100.0 * spent.as_secs_f64() / start.elapsed().as_secs_f64())
}

fn everything() -> anyhow::Result<()> {
    let (pair, mut daemon) = stage("")?;
    let before = picture(&pair.instance)?;
    let lines: Vec<&str> = FIGHTS.iter().map(|fight| fight.undo).collect();
    let adversary = Adversary::start(&pair.instance, &lines)?;
    eventually(PATIENCE, "it is told", &daemon, || {
        let waiting = pair.second_status(&daemon)?["waiting"].to_string();
        ensure!(waiting.contains("keeps undoing"), "{waiting}");
        Ok(())
    })?;
    let address = Ipv4Addr::new(10, 0, 1, 5);
    others_converge(&pair, &daemon, address)?;
    cheap(&daemon, 20)?;
    drop(adversary);
    pair.vpc.unassign(&pair.instance.primary, address)?;
    daemon.enictl().run(&["drop", &address.to_string()])?.success()?;
    eventually(Duration::from_secs(90), "all is as it was", &daemon, || {
        same(&before, &picture(&pair.instance)?)
    })?;
    comes_to_rest(&daemon)?;
    daemon.terminate()
}

/// Nothing of it is enid's business, but it has to look to know.
fn storm() -> anyhow::Result<()> {
    let (pair, mut daemon) = stage("")?;
    let changes = [
        "addr add 192.0.2.77/32 dev lo",
        "route add 192.0.2.128/25 dev lo table 99",
        "rule add pref 99 from 192.0.2.77 lookup 99",
        "rule del pref 99 from 192.0.2.77 lookup 99",
        "route del 192.0.2.128/25 dev lo table 99",
        "addr del 192.0.2.77/32 dev lo",
    ];
    for pause in [Duration::from_millis(2), Duration::ZERO] {
        let adversary = Adversary::paced(&pair.instance, &changes, pause)?;
        // What may be spent at once is gone then.
        std::thread::sleep(Duration::from_secs(5));
        others_converge(
            &pair,
            &daemon,
            Ipv4Addr::new(10, 0, 1, if pause.is_zero() { 5 } else { 6 }),
        )?;
        cheap(&daemon, 20).with_context(|| format!("with pauses of {pause:?}"))?;
        drop(adversary);
    }
    comes_to_rest(&daemon)?;
    daemon.terminate()
}

/// He deletes ours and makes one without our mark: since then it is not fought over.
fn twin_address() -> anyhow::Result<()> {
    let (pair, mut daemon) = stage("")?;
    let lines = ["addr del 10.0.2.5/32 dev ens6", "addr add 10.0.2.5/32 dev ens6"];
    let adversary = Adversary::start(&pair.instance, &lines)?;
    std::thread::sleep(Duration::from_secs(3));
    cheap(&daemon, 6)?;
    drop(adversary);
    // Whoever was the last to make it.
    let addresses = pair.instance.run(&["ip", "-4", "addr", "show", "dev", "ens6"])?;
    if !addresses.contains("10.0.2.5/32") {
        pair.instance.run(&["ip", "addr", "add", "10.0.2.5/32", "dev", "ens6"])?;
    }
    eventually(Duration::from_secs(90), "it works and is told", &daemon, || {
        answers(&pair.host, SECONDARY)?;
        comes_to_rest(&daemon)
    })?;
    daemon.terminate()
}

fn twin_route() -> anyhow::Result<()> {
    let (pair, mut daemon) = stage("")?;
    let theirs = "10.0.0.0/16 via 10.0.2.1 dev ens6 table 20001";
    let lines = [format!("route replace {theirs} proto static")];
    let adversary = Adversary::start(&pair.instance, &[&lines[0]])?;
    eventually(PATIENCE, "it is told", &daemon, || {
        let notices = pair.second_status(&daemon)?["notices"].to_string();
        ensure!(notices.contains("stands in the place of"), "{notices}");
        Ok(())
    })?;
    std::thread::sleep(Duration::from_secs(3));
    cheap(&daemon, 6)?;
    drop(adversary);
    let table = pair.table()?;
    ensure!(table.contains("10.0.0.0/16 via 10.0.2.1 dev ens6 proto static"), "{table}");
    let made = daemon.log().matches("INFO ip -4 route add 10.0.0.0/16 via 10.0.2.1").count();
    ensure!(made == 0, "it was fought over");
    daemon.terminate()
}
