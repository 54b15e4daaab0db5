//! Promise: links that are no ENI's are never touched; an ENI's link has the MTU and the names that were
//! chosen, and may be renamed, moved away or deleted at any moment.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use fastrand::Rng;
use integration::vpc::{EniId, EniSpec, Netns};
use integration::{Daemon, eventually, holds, trial};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::pair::{FIRST, PATIENCE, Pair, answers, comes_to_rest, picture, same};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("links::what_is_no_eni_is_never_touched", strangers),
        trial("links::each_eni_has_the_mtu_that_was_chosen", mtu),
        trial("links::alternative_names_lead_to_the_eni", names),
        trial("links::an_eni_may_vanish_at_any_moment", any_moment),
    ]
}

/// Their names begin like nothing else.
const STRANGERS: [&str; 8] = [
    "link add xbr type bridge",
    "link add xveth type veth peer name xpeer",
    "link set xveth master xbr up",
    "link add xvx type vxlan id 9 dstport 4789 local 10.0.1.4",
    "link add link ens5 name xmac type macvlan mode bridge",
    "tuntap add dev xtun mode tun",
    "tuntap add dev xtap mode tap",
    "link add xifb type ifb",
];

/// What concerns them, kernel settings included.
fn of_strangers(netns: &Netns) -> anyhow::Result<BTreeSet<String>> {
    let mut lines: BTreeSet<String> =
        picture(netns)?.into_iter().filter(|line| line.contains("\"x")).collect();
    let links = netns.ip_json(&["link"])?;
    for link in links.as_array().into_iter().flatten() {
        let name = link["ifname"].as_str().unwrap_or_default();
        for key in [
            "ipv6.conf.X.accept_ra_defrtr",
            "ipv6.conf.X.accept_ra_pinfo",
            "ipv4.conf.X.arp_ignore",
        ] {
            let key = format!("net.{}", key.replace('X', name));
            if name.starts_with('x') {
                lines.insert(format!("{key} = {}", netns.read_sysctl(&key)?));
            }
        }
    }
    Ok(lines)
}

fn strangers() -> anyhow::Result<()> {
    let pair = Pair::build()?;
    let netns = &pair.instance.netns;
    netns.ip_batch(&STRANGERS.map(ToOwned::to_owned))?;
    // A branch interface, with the address of an ENI of which there is no link yet.
    let mac = pair.vpc.eni(&pair.second)?.mac;
    netns.ip_batch(&[
        format!("link add link xpeer name xbranch address {mac} type macvlan mode bridge"),
        "link set xpeer up".to_owned(),
        "link set xbr up".to_owned(),
        "addr add 192.0.2.1/24 dev xbr".to_owned(),
        "addr add 10.0.2.200/32 dev xmac".to_owned(),
        "route add 198.18.0.0/15 dev xbr".to_owned(),
    ])?;
    // Until the kernel is done with them.
    std::thread::sleep(Duration::from_secs(2));
    let before = of_strangers(netns)?;
    ensure!(before.len() > 40, "too little is seen of them: {before:#?}");
    let untouched = |what: &str, daemon: &Daemon| {
        holds(Duration::from_millis(300), what, daemon, || same(&before, &of_strangers(netns)?))
    };
    let mut daemon = Daemon::ready(&pair.instance, "poll_interval = \"200ms\"")?;
    comes_to_rest(&daemon)?;
    untouched("nothing is touched at the start", &daemon)?;
    for name in ["ens6", "ens7"] {
        pair.vpc.attach(&pair.second, &pair.instance, name)?;
        pair.comes_to_work(name, &daemon)?;
        comes_to_rest(&daemon)?;
        untouched("nothing is touched by an ENI that comes", &daemon)?;
        pair.vpc.detach(&pair.second)?;
        untouched("nothing is touched by an ENI that goes", &daemon)?;
    }
    daemon.enictl().run(&["release", "--all"])?.success()?;
    untouched("nothing is touched by a release", &daemon)?;
    daemon.terminate()
}

fn link(pair: &Pair, name: &str) -> anyhow::Result<Value> {
    let links = pair.instance.ip_json(&["link", "show", "dev", name])?;
    links.get(0).cloned().with_context(|| format!("there is no {name}"))
}

fn more(pair: &Pair) -> anyhow::Result<[EniId; 2]> {
    let spec = |last: u8| EniSpec::new([std::net::Ipv4Addr::new(10, 0, 2, last)]);
    Ok([pair.vpc.create_eni(spec(20))?, pair.vpc.create_eni(spec(30))?])
}

fn mtu() -> anyhow::Result<()> {
    let pair = Pair::attached()?;
    for (eni, name) in more(&pair)?.iter().zip(["ens7", "ens8"]) {
        pair.vpc.attach(eni, &pair.instance, name)?;
    }
    let chosen = "[[eni]]\nmatch = { device-number = 2 }\nmtu = 1400\n\
                  [[eni]]\nmatch = { device-number = 3 }\nmtu = \"keep\"\n";
    let daemon = Daemon::ready(&pair.instance, chosen)?;
    let have = |wanted: [u64; 3]| {
        eventually(PATIENCE, "every ENI has its MTU", &daemon, || {
            for (name, mtu) in ["ens6", "ens7", "ens8"].into_iter().zip(wanted) {
                let link = link(&pair, name)?;
                ensure!(link["mtu"] == mtu, "{name} has {} instead of {mtu}", link["mtu"]);
            }
            Ok(())
        })
    };
    let fresh = 9001;
    let kept = link(&pair, "ens8")?["mtu"].as_u64().context("no MTU")?;
    have([fresh, 1400, kept])?;
    // What somebody else sets by hand is kept only where that was chosen.
    for name in ["ens6", "ens7", "ens8"] {
        pair.instance.run(&["ip", "link", "set", name, "mtu", "1450"])?;
    }
    have([fresh, 1400, 1450])?;
    pair.instance.run(&["ip", "link", "set", "ens5", "mtu", "1600"])?;
    have([1600, 1400, 1450])?;
    pair.comes_to_work("ens6", &daemon)?;
    daemon.enictl().run(&["release", "--all"])?.success()?;
    have([1500, 1500, 1450])
}

fn names() -> anyhow::Result<()> {
    let pair = Pair::attached()?;
    let [third, fourth] = more(&pair)?;
    // Somebody has given one of the names to another link.
    pair.instance.ip_batch(&[
        "link add xbr type bridge".to_owned(),
        "link property add dev xbr altname device-number-2.0".to_owned(),
    ])?;
    pair.vpc.attach(&third, &pair.instance, "ens7")?;
    let mut daemon = Daemon::ready(&pair.instance, "")?;
    pair.comes_to_work("ens6", &daemon)?;
    comes_to_rest(&daemon)?;
    let leads_to = |name: &str, to: &str| -> anyhow::Result<()> {
        let found = link(&pair, name)?;
        ensure!(found["ifname"] == to, "{name} leads to {}", found["ifname"]);
        Ok(())
    };
    leads_to(&pair.second.0, "ens6")?;
    leads_to("device-number-1.0", "ens6")?;
    leads_to(&third.0, "ens7")?;
    leads_to("device-number-2.0", "xbr")?;
    // They go with the ENI, and its successor in the same place gets the one of the place.
    pair.vpc.detach(&pair.second)?;
    pair.vpc.attach(&fourth, &pair.instance, "ens9")?;
    eventually(PATIENCE, "the names are the successor's", &daemon, || {
        leads_to("device-number-1.0", "ens9")?;
        leads_to(&fourth.0, "ens9")
    })?;
    ensure!(link(&pair, &pair.second.0).is_err(), "a name outlives its ENI");
    daemon.enictl().run(&["release", "--all"])?.success()?;
    eventually(PATIENCE, "release takes them back", &daemon, || {
        let links = pair.instance.run(&["ip", "link"])?;
        let left = links.matches("altname").count();
        ensure!(left == 1 && links.contains("device-number-2.0"), "{links}");
        Ok(())
    })?;
    daemon.terminate()
}

/// Up to 40 ms: the configuration of an ENI takes about that long.
fn wait(dice: &mut Rng) {
    std::thread::sleep(Duration::from_micros(dice.u64(..40_000)));
}

fn any_moment() -> anyhow::Result<()> {
    let pair = Pair::build()?;
    let mut daemon = Daemon::ready(&pair.instance, "")?;
    comes_to_rest(&daemon)?;
    let before = picture(&pair.instance)?;
    let other = format!("{}-other", pair.instance.name());
    pair.instance.run(&["ip", "netns", "add", &other])?;
    let outcome = restless(&pair, &daemon, &other);
    pair.instance.run(&["ip", "netns", "del", &other])?;
    outcome?;
    eventually(PATIENCE, "nothing is left behind", &daemon, || {
        same(&before, &picture(&pair.instance)?)?;
        let ledger = std::fs::read_to_string(daemon.runtime_directory().join("ledger.json"))?;
        ensure!(!ledger.contains("10.0.2."), "{ledger}");
        Ok(())
    })?;
    comes_to_rest(&daemon)?;
    answers(&pair.host, FIRST)?;
    let said = daemon.log();
    // Metadata that is read while the ENI goes lacks some of it; that may be said.
    let partial = |line: &&str| line.contains("metadata could not be read completely");
    let worries: Vec<_> = said
        .lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"))
        .filter(|line| !partial(line))
        .collect();
    ensure!(worries.is_empty(), "{worries:#?}");
    pair.vpc.attach(&pair.second, &pair.instance, "ens6")?;
    pair.comes_to_work("ens6", &daemon)?;
    daemon.terminate()
}

fn restless(pair: &Pair, daemon: &Daemon, other: &str) -> anyhow::Result<()> {
    // The same waits in each run.
    let mut dice = Rng::with_seed(4);
    let name = pair.instance.name();
    let here = |words: &str| -> anyhow::Result<bool> {
        let words: Vec<&str> = ["ip"].into_iter().chain(words.split(' ')).collect();
        Ok(pair.instance.output(&words)?.code == Some(0))
    };
    for round in 0..24 {
        pair.vpc.attach(&pair.second, &pair.instance, "ens6")?;
        wait(&mut dice);
        match round % 4 {
            // Detached as it is.
            0 => {}
            // The kernel refuses to rename what enid has raised in between.
            1 => {
                here("link set ens6 down")?;
                here("link set ens6 name ens7")?;
            }
            2 => ensure!(here(&format!("link set ens6 netns {other}"))?, "it cannot be moved"),
            _ => {
                ensure!(here(&format!("link set ens6 netns {other}"))?, "it cannot be moved");
                wait(&mut dice);
                let back = format!("-n {other} link set ens6 netns {name}");
                ensure!(here(&back)?, "it cannot be moved back");
            }
        }
        wait(&mut dice);
        if round % 6 == 5 {
            let device = if here("link show ens7")? { "ens7" } else { "ens6" };
            if here(&format!("link show {device}"))? {
                pair.comes_to_work(device, daemon)?;
            }
        }
        pair.vpc.detach(&pair.second)?;
        wait(&mut dice);
    }
    Ok(())
}
