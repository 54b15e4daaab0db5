//! Promise: `enictl check` finds what keeps packets from being delivered, and what it prints as the remedy
//! ends it.

use std::net::Ipv4Addr;

use anyhow::ensure;
use integration::vpc::EniSpec;
use integration::{eventually, trial};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::check::{SECONDARY, Stage};
use crate::cut::v6;
use crate::pair::{PATIENCE, answers, status};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("check::what_is_not_delivered_is_found_and_its_remedy_ends_it", not_delivered),
        trial("check::what_has_one_cause_is_one_finding", one_cause),
        trial("check::an_unlooked_at_mark_is_found_and_its_remedy_ends_it", mark_not_valid),
    ]
}

/// The address answers before and after, and not meanwhile.
fn not_delivered() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let pair = &stage.pair;
    let six = v6(2, 4).to_string();
    let works = || answers(&pair.host, SECONDARY);
    let breaks = |line: &str, about: &str| -> anyhow::Result<Value> {
        stage.ip(line)?;
        if about == SECONDARY.to_string() {
            ensure!(works().is_err(), "{line} breaks nothing");
        }
        stage.cured("not-delivered", about, "broken")
    };
    works()?;
    // For a second the kernel asks whether somebody else has an address that has just come.
    pair.instance.sysctl("net.ipv6.conf.ens6.router_solicitation_delay", "0")?;
    let new = v6(2, 77);
    stage.ip(&format!("addr add {new}/64 dev ens6"))?;
    stage.none("not-delivered")?;
    stage.ip(&format!("addr del {new}/64 dev ens6"))?;
    // Where somebody has moved the kernel's first rule, which is nobody's trouble, another one comes
    // before it.
    for flag in ["-4", "-6"] {
        stage.ip(&format!("{flag} rule add pref 200 lookup local"))?;
        stage.ip(&format!("{flag} rule del pref 0"))?;
    }
    stage.none("not-delivered")?;
    let finding = breaks("rule add pref 100 to 10.0.2.5 iif ens6 prohibit", "10.0.2.5")?;
    ensure!(finding["link"] == "ens6" && finding["more_addresses"] == 0, "{finding}");
    ensure!(finding["remedy"][0] == "ip -4 rule del pref 100", "{finding}");
    ensure!(finding["what"].as_str().is_some_and(|what| what.contains("rule 100 ")), "{finding}");
    works()?;
    // To a table that sends it on, which a machine that is no router does not do.
    stage.ip("link add tun0 type bridge")?;
    stage.ip("link set tun0 up")?;
    stage.ip("route add default dev tun0 table 77")?;
    let finding = breaks("rule add pref 101 to 10.0.2.5 iif ens6 lookup 77", "10.0.2.5")?;
    ensure!(finding["remedy"].to_string().contains("rule del pref 101"), "{finding}");
    works()?;
    breaks(&format!("-6 rule add pref 102 to {six} iif ens6 unreachable"), &six)?;
    for flag in ["-4", "-6"] {
        stage.ip(&format!("{flag} rule add pref 0 lookup local"))?;
        stage.ip(&format!("{flag} rule del pref 200"))?;
    }
    // The route by which the kernel delivers what is for the address.
    let local = |flag: &str| {
        let words = [flag, "-d", "route", "show", "table", "local"];
        anyhow::Ok(pair.instance.ip_json(&words)?.to_string())
    };
    for (flag, address) in [("-4", "10.0.2.5"), ("-6", &six)] {
        let before = local(flag)?;
        let gone = format!("{flag} route del local {address} dev ens6 table local");
        let finding = breaks(&gone, address)?;
        let what = finding["what"].as_str().unwrap_or_default();
        ensure!(what.contains("table local") && finding["address"] == address, "{finding}");
        eventually(PATIENCE, "the table is as it was", &stage.daemon, || {
            let after = local(flag)?;
            ensure!(before == after, "it was\n{before}\nand is\n{after}");
            Ok(())
        })?;
    }
    works()?;
    let said = stage.check(&[])?;
    ensure!(said.stdout.starts_with("nothing broken\n"), "{}", said.stdout);
    Ok(())
}

/// However many addresses and places it concerns, and however reverse paths are filtered.
fn one_cause() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let pair = &stage.pair;
    let found = |id: &str, filter: &str| -> anyhow::Result<Value> {
        pair.instance.sysctl("net.ipv4.conf.all.rp_filter", filter)?;
        let mut found = stage.found()?;
        // Strictly filtered, multicast is dropped as well, whatever else is wrong.
        found.retain(|finding| finding["id"] != "strict-multicast");
        match found.as_slice() {
            [one] if one["id"] == id => Ok(one.clone()),
            found => anyhow::bail!("with rp_filter {filter} not one {id}: {found:#?}"),
        }
    };
    let only = |id: &str, filter: &str| {
        eventually(PATIENCE, "nothing else is found", &stage.daemon, || found(id, filter))
    };
    let says = |finding: &Value, words: &str| {
        let what = finding["what"].as_str().unwrap_or_default();
        ensure!(what.contains(words), "{words} is not in {finding}");
        Ok(())
    };
    pair.instance.sysctl("net.ipv4.conf.ens6.rp_filter", "0")?;
    for filter in ["0", "1", "2"] {
        stage.ip("-4 rule add pref 100 from 10.0.2.0/24 prohibit")?;
        let finding = only("no-way-out", filter)?;
        ensure!(finding["address"] == "10.0.2.4" && finding["more_addresses"] == 1, "{finding}");
        says(&finding, "what it sends to the outside, 10.0.2.0/24 and 10.0.1.0/24 goes nowhere: ")?;
        stage.ip("-4 rule del pref 100")?;
    }
    // To one address only.
    stage.ip("-4 rule add pref 100 from 10.0.2.5 to 10.0.1.0/24 prohibit")?;
    let finding = only("no-way-out", "0")?;
    ensure!(finding["address"] == "10.0.2.5" && finding["more_addresses"] == 0, "{finding}");
    says(&finding, "what it sends to 10.0.1.0/24 goes nowhere: ")?;
    stage.ip("-4 rule del pref 100")?;
    stage.ip("-4 rule del pref 0")?;
    only("local-rule-missing", "0")?;
    stage.ip("-4 rule add pref 0 lookup local")?;

    let third = pair.vpc.create_eni(EniSpec::new([Ipv4Addr::new(10, 0, 254, 9)]))?;
    pair.vpc.attach(&third, &pair.instance, "ens7")?;
    eventually(PATIENCE, "the third is looked after", &stage.daemon, || {
        let enis = status(&stage.daemon)?;
        ensure!(enis["enis"].as_array().map(Vec::len) == Some(3), "{enis}");
        ensure!(enis["verdict"] == "converged", "{enis}");
        Ok(())
    })?;
    ensure!(stage.daemon.enictl().run(&["hold", "ens6"])?.code == Some(0));
    stage.ip("link set ens6 down")?;
    for filter in ["0", "1", "2"] {
        let finding = only("link-down", filter)?;
        ensure!(finding["severity"] == "risk" && finding["link"] == "ens6", "{finding}");
        ensure!(finding["address"] == "10.0.2.4" && finding["more_addresses"] == 1, "{finding}");
        says(
            &finding,
            "the link is down, so that what the address sends to the outside, 10.0.2.0/24, 10.0.1.0/24 and 1 more goes nowhere",
        )?;
        let text = stage.check(&[])?.stdout;
        ensure!(text.contains("\nrisk  link-down  ens6  10.0.2.4 and 1 more\n"), "{text}");
        ensure!(text.starts_with("nothing broken, 1 risk"), "{text}");
    }
    // With the link the kernel took what enid had made, and enid leaves it so until it is told.
    stage.cured("link-down", "ens6", "risk")?;
    let six = v6(2, 4).to_string();
    let finding = stage.cured("address-missing", &six, "risk")?;
    says(&finding, "enid leaves the ENI alone")?;
    stage.none("no-way-out")
}

fn mark_not_valid() -> anyhow::Result<()> {
    let published = "[[eni]]\nmatch = { device-number = 1 }\npublished_ports = true\n";
    let mut stage = Stage::build_with(published)?;
    let instance = stage.pair.instance.clone();
    let filter = |value: &str| instance.sysctl("net.ipv4.conf.ens6.rp_filter", value);
    let valid = |link: &str, value: &str| {
        instance.sysctl(&format!("net.ipv4.conf.{link}.src_valid_mark"), value)
    };
    instance.sysctl("net.ipv4.conf.all.rp_filter", "0")?;
    filter("1")?;
    stage.none("mark-not-valid")?;
    // Held, because enid sets it again when it next looks.
    ensure!(stage.daemon.enictl().run(&["hold", "ens6"])?.code == Some(0));
    valid("ens6", "0")?;
    let finding = stage.cured("mark-not-valid", "ens6", "risk")?;
    ensure!(finding["link"] == "ens6" && finding["address"].is_null(), "{finding}");
    let remedy = "sysctl -w net.ipv4.conf.ens6.src_valid_mark=1";
    ensure!(finding["remedy"][0] == remedy, "{finding}");
    // Either of the two settings is enough, and a filter that is not strict does no harm.
    valid("ens6", "0")?;
    valid("all", "1")?;
    stage.none("mark-not-valid")?;
    valid("all", "0")?;
    stage.one("mark-not-valid", "ens6")?;
    filter("2")?;
    stage.none("mark-not-valid")?;
    filter("1")?;
    // Nobody keeps it from being broken where nobody runs who would set it.
    stage.daemon.terminate()?;
    stage.cured("mark-not-valid", "ens6", "broken").map(drop)
}
