//! Promise: of every address, ENI and rule the operator learns where it comes from, whose it is, what
//! it waits for, and which way its packets go.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use anyhow::{Context as _, ensure};
use integration::{Daemon, eventually, trial};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::cut::v6;
use crate::pair::{Container, PATIENCE, Pair, comes_to_rest};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("explain::an_address_says_whence_whose_and_which_way", granted),
        trial("explain::an_address_that_goes_says_how_far_its_proof_is", leaving),
        trial("explain::what_others_made_is_theirs", foreign),
        trial("explain::an_eni_has_each_of_its_names_and_all_its_objects", eni),
        trial("explain::a_rule_that_a_held_eni_lacks_is_missing", rule),
        trial("explain::the_way_is_the_kernels", ways),
        trial("explain::the_way_of_ipv6_is_the_kernels", ways_v6),
        trial("explain::what_nobody_knows_is_told_so", unknown),
    ]
}

const SECONDARY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 5);

fn explain(daemon: &Daemon, what: &[&str]) -> anyhow::Result<Value> {
    let said = daemon.enictl().run(&[&["explain", "--json"], what].concat())?;
    ensure!(said.code == Some(0), "{said:?}");
    said.json()
}

fn list<'a>(value: &'a Value, field: &str) -> anyhow::Result<&'a Vec<Value>> {
    value[field].as_array().with_context(|| format!("no {field} in {value}"))
}

/// The objects of a kind whose text has these words.
fn objects<'a>(told: &'a Value, kind: &str, words: &str) -> anyhow::Result<Vec<&'a Value>> {
    let has = |object: &&Value| {
        object["kind"] == kind && object["text"].as_str().is_some_and(|text| text.contains(words))
    };
    Ok(list(told, "objects")?.iter().filter(has).collect())
}

fn one<'a>(told: &'a Value, kind: &str, words: &str) -> anyhow::Result<&'a Value> {
    match objects(told, kind, words)?.as_slice() {
        [one] => Ok(one),
        other => anyhow::bail!("not one {kind} {words}: {other:?} in {told:#}"),
    }
}

fn granted() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    pair.vpc.assign(&pair.second, SECONDARY, None)?;
    let said = daemon.enictl().run(&["refresh", "--wait"])?;
    ensure!(said.code == Some(0), "{said:?}");
    let mac = pair.vpc.eni(&pair.second)?.mac;
    let key = format!("meta-data/network/interfaces/macs/{mac}/local-ipv4s");
    let told = explain(&daemon, &["10.0.2.5"])?;
    ensure!(told["schema"] == 1 && told["subject"]["kind"] == "address", "{told}");
    ensure!(told["owner"].as_str().is_some_and(|owner| owner.starts_with("enid")), "{told}");
    ensure!(list(&told, "waits")?.is_empty(), "{told}");
    let fact = list(&told, "facts")?.iter().find(|fact| fact["key"] == *key);
    let fact = fact.with_context(|| format!("no {key} in {told}"))?;
    ensure!(fact["value"] == "10.0.2.5", "{fact}");
    let (first, last) = (fact["first_seconds"].as_u64(), fact["last_seconds"].as_u64());
    ensure!(first >= last && last.is_some(), "{fact}");
    ensure!(one(&told, "address", "10.0.2.5/32 dev ens6")?["state"] == "there", "{told}");
    ensure!(one(&told, "rule", "pref 20020 from 10.0.2.0/24")?["state"] == "there", "{told}");

    let text = daemon.enictl().run(&["explain", "10.0.2.5"])?.stdout;
    for words in [
        "address 10.0.2.5",
        &*key,
        "first shown",
        "as its secondary address",
        "made by enid",
        "there     address  10.0.2.5/32 dev ens6",
        "path of a packet from 10.0.2.5 to 198.51.100.1",
        "rule     pref 20020 from 10.0.2.0/24 iif lo lookup 20001",
        "leaves   by ens6, via 10.0.2.1",
    ] {
        ensure!(text.contains(words), "{words} is not in:\n{text}");
    }
    ensure!(!text.contains('\x1b'), "{text:?}");

    // The first reading that showed the primary address is older than the last.
    let told = eventually(PATIENCE, "it is read again", &daemon, || {
        daemon.enictl().run(&["refresh"])?;
        let told = explain(&daemon, &["10.0.2.4"])?;
        let fact = &list(&told, "facts")?[0];
        ensure!(fact["first_seconds"].as_u64() > fact["last_seconds"].as_u64(), "{fact}");
        Ok(told)
    })?;
    ensure!(told["text"][0].as_str().is_some_and(|it| it.contains("primary")), "{told}");
    // And the routes that give it as the source, all of them; a secondary has the default alone.
    let routes = pair.instance.ip_json(&["-N", "-d", "route", "show", "table", "20001"])?;
    let routes = routes.as_array().context("no routes")?;
    let all: BTreeSet<&str> = routes
        .iter()
        .filter(|route| route["prefsrc"] == "10.0.2.4" || route["dst"] == "default")
        .filter_map(|route| route["dst"].as_str())
        .collect();
    ensure!(all.len() > 2 && listed_routes(&told)? == all, "{told:#} is not {routes:?}");
    let told = explain(&daemon, &["10.0.2.5"])?;
    ensure!(listed_routes(&told)? == BTreeSet::from(["default"]), "{told:#}");
    daemon.terminate()
}

/// Where its routes of table 20001 lead to.
fn listed_routes(told: &Value) -> anyhow::Result<BTreeSet<&str>> {
    let routes = objects(told, "route", "table 20001")?;
    let mut destinations = BTreeSet::new();
    for route in routes {
        ensure!(route["state"] == "there", "{route}");
        let mut words = route["text"].as_str().context("no text")?.split(' ');
        let destination = words.find(|word| *word != "unreachable");
        destinations.insert(destination.context("no destination")?);
    }
    Ok(destinations)
}

fn leaving() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    pair.vpc.assign(&pair.second, SECONDARY, None)?;
    ensure!(daemon.enictl().run(&["refresh", "--wait"])?.code == Some(0), "not assigned");
    pair.vpc.unassign(&pair.second, SECONDARY)?;
    ensure!(daemon.enictl().run(&["refresh"])?.code == Some(0), "not read");
    let told = explain(&daemon, &["10.0.2.5"])?;
    let object = one(&told, "address", "10.0.2.5/32")?;
    ensure!(object["state"] == "extra", "{object}");
    ensure!(object["reason"] == "metadata no longer grants it", "{object}");
    ensure!(object["leaving"]["needed"] == 3, "{object}");
    ensure!(list(&told, "waits")?.len() == 1, "{told}");
    let fact = &list(&told, "facts")?[0];
    ensure!(fact["value"] == "10.0.2.5" && fact["last_seconds"].is_u64(), "{fact}");
    let text = daemon.enictl().run(&["explain", "10.0.2.5"])?.stdout;
    for words in
        ["metadata no longer grants it to", "waits: proof", "of 3 readings", "extra     address"]
    {
        ensure!(text.contains(words), "{words} is not in:\n{text}");
    }
    daemon.terminate()
}

fn foreign() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    let _container = Container::start(&pair.instance)?;
    pair.instance.run(&["ip", "addr", "add", "192.0.2.77/32", "dev", "ens6"])?;
    pair.instance.run(&[
        "ip",
        "rule",
        "add",
        "pref",
        "5000",
        "from",
        "192.0.2.77",
        "lookup",
        "7",
    ])?;
    let told = explain(&daemon, &["192.0.2.77"])?;
    ensure!(one(&told, "address", "192.0.2.77/32 dev ens6")?["state"] == "foreign", "{told}");
    let owner = told["owner"].as_str().unwrap_or_default();
    ensure!(owner.starts_with("somebody else"), "{told}");
    ensure!(list(&told, "facts")?.is_empty(), "{told}");
    ensure!(told["text"][0] == "metadata grants it to no ENI here", "{told}");

    let told = explain(&daemon, &["172.17.0.1"])?;
    ensure!(told["text"][1] == "br0, which is no ENI, has it", "{told}");
    ensure!(told["eni"].is_null() && list(&told, "objects")?.is_empty(), "{told}");

    let told = explain(&daemon, &["5000"])?;
    ensure!(one(&told, "rule", "pref 5000")?["state"] == "foreign", "{told}");
    let owner = told["owner"].as_str().unwrap_or_default();
    ensure!(owner.starts_with("somebody else"), "{told}");
    let told = explain(&daemon, &["32766"])?;
    ensure!(told["owner"] == "the kernel", "{told}");
    daemon.terminate()
}

fn eni() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    let mac = pair.vpc.eni(&pair.second)?.mac.to_string();
    let told = explain(&daemon, &["ens6"])?;
    for name in [&*mac, &pair.second.0] {
        let other = explain(&daemon, &[name])?;
        ensure!(other["objects"] == told["objects"], "{name}: {other}");
        ensure!(other["subject"]["kind"] == "eni", "{other}");
    }
    for (key, value) in [
        ("subnet-ipv4-cidr-block", "10.0.2.0/24"),
        ("local-ipv4s", "10.0.2.4"),
        ("device-number", "1"),
        ("interface-id", &*pair.second.0),
    ] {
        let key = format!("meta-data/network/interfaces/macs/{mac}/{key}");
        let found = list(&told, "facts")?.iter().find(|fact| fact["key"] == *key);
        let found = found.with_context(|| format!("no {key} in {told}"))?;
        ensure!(found["value"] == value && found["last_seconds"].is_u64(), "{found}");
    }
    let all = list(&told, "objects")?;
    ensure!(all.iter().all(|object| object["state"] == "there"), "{told:#}");
    // All that `ip` shows of it, and no more.
    let told: BTreeSet<u64> = all.iter().filter_map(|object| object["priority"].as_u64()).collect();
    let rules = pair.instance.ip_json(&["-4", "-N", "rule", "show"])?;
    let rules = rules.as_array().context("no rules")?;
    let own = |rule: &&Value| {
        let of_second = rule["src"] == "10.0.2.0" || rule["oif"] == "ens6";
        rule["protocol"] == "233" && of_second
    };
    let seen: BTreeSet<u64> =
        rules.iter().filter(own).filter_map(|rule| rule["priority"].as_u64()).collect();
    ensure!(seen.len() == 3 && told == seen, "{told:?} is not {seen:?}");
    let routes = all.iter().filter(|object| object["kind"] == "route" && object["table"] == 20001);
    ensure!(routes.count() == pair.table()?.lines().count(), "{}", pair.table()?);
    let settings: Vec<_> = all.iter().filter(|object| object["kind"] == "setting").collect();
    let has = |words: &str| settings.iter().any(|it| it["text"] == *words);
    ensure!(has("dev ens6 up") && has("dev ens6 group 20000"), "{settings:?}");
    daemon.terminate()
}

/// A held ENI is not repaired, so that the difference stays.
fn rule() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    let said = daemon.enictl().run(&["hold", "ens6", "--reason", "a trial"])?;
    ensure!(said.code == Some(0), "{said:?}");
    pair.instance.run(&["ip", "rule", "del", "pref", "20020", "from", "10.0.2.0/24"])?;
    for what in [
        &["from", "10.0.2.0/24"][..],
        &["10.0.2.0/24"],
        &["20020:", "from", "10.0.2.0/24", "iif", "lo", "lookup", "20001", "proto", "233"],
    ] {
        let told = explain(&daemon, what)?;
        let gone = one(&told, "rule", "pref 20020 from 10.0.2.0/24 iif lo lookup 20001")?;
        ensure!(gone["state"] == "missing", "{told:#}");
        let waits = gone["waits"].as_str().unwrap_or_default();
        ensure!(waits.contains("held by the operator (a trial)"), "{gone}");
        ensure!(told["subject"]["kind"] == "rule", "{told}");
    }
    let told = explain(&daemon, &["from", "10.0.2.0/24"])?;
    ensure!(one(&told, "rule", "pref 20010")?["state"] == "there", "{told:#}");
    let local = |fact: &Value| fact["value"] == "10.0.2.4";
    ensure!(list(&told, "facts")?.iter().any(local), "{told:#}");
    let text = daemon.enictl().run(&["explain", "from", "10.0.2.0/24"])?.stdout;
    ensure!(text.contains("missing   rule     pref 20020"), "{text}");
    // An address without its rule leaves by main, which the kernel says and nobody guesses.
    let told = explain(&daemon, &["10.0.2.4"])?;
    ensure!(told["path"]["table"] == 254, "{told:#}");
    ensure!(told["path"]["rule"] == "pref 32766 from all lookup main", "{told:#}");
    ensure!(daemon.enictl().run(&["unhold", "ens6"])?.code == Some(0), "still held");
    comes_to_rest(&daemon)?;
    let told = explain(&daemon, &["pref", "20020", "from", "10.0.2.0/24"])?;
    ensure!(one(&told, "rule", "pref 20020")?["state"] == "there", "{told:#}");
    daemon.terminate()
}

/// A packet's source and destination, and the rule that leads it on its way.
type Packet<'a> = (&'a str, &'a str, &'a str);

/// The way that is told is the kernel's: by link, next hop and table as it sends, by the route that it
/// finds, and by this rule, which leads there.
fn is_the_kernels(pair: &Pair, daemon: &Daemon, packet: Packet<'_>) -> anyhow::Result<()> {
    let (from, to, rule) = packet;
    let told = explain(daemon, &[from, "--to", to])?;
    let path = &told["path"];
    let get = |words: &[&str]| {
        pair.instance.ip_json(&[&["-N", "route", "get"], words, &[to, "from", from]].concat())
    };
    let (sent, found) = (get(&[])?[0].clone(), get(&["fibmatch"])?[0].clone());
    ensure!(path["refused"].is_null() && path["to"] == to && path["from"] == from, "{path}");
    ensure!(path["link"] == sent["dev"], "{path} is not {sent}");
    ensure!(path["gateway"] == sent["gateway"], "{path} is not {sent}");
    let table = match sent["table"].as_str() {
        None => 254,
        Some(number) => number.parse::<u64>()?,
    };
    ensure!(path["table"] == table, "{path} is not {sent}");
    let words: Vec<&str> = path["route"].as_str().unwrap_or_default().split(' ').collect();
    let destination = found["dst"].as_str().context("no destination")?;
    ensure!(words.contains(&destination), "{path} is not {found}");
    for (name, word) in [("via", "gateway"), ("dev", "dev")] {
        let value = words.iter().position(|it| *it == name).and_then(|at| words.get(at + 1));
        ensure!(value.copied() == found[word].as_str(), "{path} is not {found}");
    }
    let lookup = match table {
        254 => "lookup main".to_owned(),
        255 => "lookup local".to_owned(),
        number => format!("lookup {number}"),
    };
    let led = path["rule"].as_str().unwrap_or_default();
    ensure!(led.starts_with(rule) && led.contains(&lookup), "{path} is not {rule} {lookup}");
    Ok(())
}

fn ways() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    let _container = Container::start(&pair.instance)?;
    let (first, second) = ("pref 20020 from 10.0.1.0/24", "pref 20020 from 10.0.2.0/24");
    for packet in [
        ("10.0.2.4", "198.51.100.1", second),
        ("10.0.2.4", "10.0.2.77", second),
        ("10.0.2.4", "10.0.1.9", second),
        ("10.0.2.4", "172.17.0.2", "pref 20010 from 10.0.2.0/24"),
        ("10.0.1.4", "198.51.100.1", first),
        ("10.0.1.4", "10.0.2.77", first),
        ("10.0.2.4", "10.0.1.4", "pref 0 from all"),
    ] {
        is_the_kernels(&pair, &daemon, packet)?;
    }
    // The kernel's word counts where no packet can be sent.
    pair.instance.run(&[
        "ip",
        "route",
        "add",
        "unreachable",
        "203.0.113.0/24",
        "table",
        "20001",
    ])?;
    let told = explain(&daemon, &["10.0.2.4", "--to", "203.0.113.9"])?;
    ensure!(told["path"]["refused"].is_string(), "{told:#}");
    daemon.terminate()
}

fn ways_v6() -> anyhow::Result<()> {
    let pair = Pair::dual()?;
    let mut daemon = Daemon::ready(&pair.instance, "")?;
    comes_to_rest(&daemon)?;
    pair.instance.ip_batch(&[
        "link add br0 type bridge".to_owned(),
        "link set br0 up".to_owned(),
        "addr add fd00:172:17::1/64 dev br0 nodad".to_owned(),
    ])?;
    let [first, second, near, far] =
        [v6(1, 4), v6(2, 4), v6(2, 77), v6(1, 9)].map(|ip| ip.to_string());
    let subnet = |subnet: u8| format!("pref 20020 from 2600:1f16:67f:f2{subnet:02x}::/64");
    let (of_first, of_second) = (subnet(1), subnet(2));
    let to_container = "pref 20010 from 2600:1f16:67f:f202::/64";
    for packet in [
        (&*second, "2001:db8:ffff::1", &*of_second),
        (&second, &near, &of_second),
        (&second, &far, &of_second),
        (&second, "fd00:172:17::2", to_container),
        (&first, "2001:db8:ffff::1", &of_first),
        (&first, &near, &of_first),
        (&second, &first, "pref 0 from all"),
    ] {
        // A router that is heard in between changes the next hop, once.
        eventually(PATIENCE, "the way is the kernel's", &daemon, || {
            is_the_kernels(&pair, &daemon, packet)
        })?;
    }

    // The same as text, and with a destination of its own that is outside of all of this.
    eventually(PATIENCE, "it is told in words", &daemon, || {
        let text = daemon.enictl().run(&["explain", &second])?.stdout;
        let sent = pair.instance.ip_json(&["-6", "route", "get", "3fff::1", "from", &second])?;
        let gateway = sent[0]["gateway"].as_str().context("no gateway")?;
        for words in [
            &*format!("path of a packet from {second} to 3fff::1"),
            &format!("\n  rule     {of_second} iif lo lookup 20001\n"),
            "\n  table    20001\n",
            &format!("\n  route    default via {gateway} dev ens6 table 20001"),
            &format!("\n  leaves   by ens6, via {gateway}\n"),
        ] {
            ensure!(text.contains(words), "{words} is not in:\n{text}");
        }
        Ok(())
    })?;
    let reject = "route add unreachable 2001:db8:dead::/48 table 20001";
    pair.instance.ip_batch(&[reject.to_owned()])?;
    let told = explain(&daemon, &[&second, "--to", "2001:db8:dead::9"])?;
    ensure!(told["path"]["refused"].is_string() && told["path"]["link"].is_null(), "{told:#}");
    daemon.terminate()
}

fn unknown() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    for what in [&["10.9.9.9"][..], &["ens9"], &["31999"], &["from", "10.9.9.9"], &["rule"]] {
        let said = daemon.enictl().run(&[&["explain"], what].concat())?;
        ensure!(said.code == Some(5) && said.stdout.is_empty(), "{what:?}: {said:?}");
        ensure!(said.stderr.contains("nothing is known of"), "{what:?}: {said:?}");
        ensure!(said.stderr.contains(&pair.second.0), "{what:?}: {said:?}");
    }
    for wrong in [&["explain"][..], &["explain", "ens6", "--to", "10.9.9.9"]] {
        let said = daemon.enictl().run(wrong)?;
        ensure!(said.code == Some(2), "{wrong:?}: {said:?}");
    }
    let enictl = daemon.enictl();
    daemon.terminate()?;
    let said = enictl.run(&["explain", "10.0.2.4"])?;
    ensure!(said.code == Some(4), "{said:?}");
    Ok(())
}
