//! Instances with several network cards: how ENIs are numbered, and those that have no link.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use anyhow::ensure;
use vpc::{Config, EniId, EniSpec, Instance, Vpc};

use crate::{A, Promise, config, get, ping};

pub(crate) const PROMISES: &[(&str, Promise)] = &[
    ("cards::device_numbers_are_counted_on_each_card", numbers),
    ("cards::an_efa_only_eni_is_in_metadata_and_nowhere_else", efa_only),
    ("cards::eighty_enis_on_sixteen_cards_are_attached", eighty),
];

const MACS: &str = "/latest/meta-data/network/interfaces/macs";

fn body(instance: &Instance, path: &str) -> anyhow::Result<String> {
    let text = get(instance, path)?;
    Ok(text.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned())
}

fn key(vpc: &Vpc, instance: &Instance, eni: &EniId, key: &str) -> anyhow::Result<String> {
    body(instance, &format!("{MACS}/{}/{key}", vpc.eni(eni)?.mac))
}

fn links(instance: &Instance) -> anyhow::Result<usize> {
    Ok(instance.ip_json(&["link"])?.as_array().map_or(0, Vec::len))
}

fn numbers() -> anyhow::Result<()> {
    let vpc = Vpc::new(config())?;
    vpc.metadata().set_v1(true);
    let a = vpc.instance("a", EniSpec::new([A]).card(0))?;
    let spec = |host| EniSpec::new([Ipv4Addr::new(10, 0, 2, host)]);
    let specs = vec![spec(4).card(0), spec(5).card(1), spec(6).card(1), spec(7).card(2).device(1)];
    let enis = vpc.create_enis(specs)?;
    for (number, eni) in enis.iter().enumerate() {
        vpc.attach(eni, &a, &format!("ens{}", 6 + number))?;
    }
    let mut seen = Vec::new();
    for eni in [&a.primary].into_iter().chain(&enis) {
        let card = key(&vpc, &a, eni, "network-card")?;
        seen.push((card, key(&vpc, &a, eni, "device-number")?));
    }
    let expected = [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1"), ("2", "1")];
    let expected = expected.map(|(card, device)| (card.to_owned(), device.to_owned()));
    ensure!(seen == expected, "{seen:?}");
    Ok(())
}

fn efa_only() -> anyhow::Result<()> {
    let vpc = Vpc::new(config())?;
    vpc.metadata().set_v1(true);
    let a = vpc.instance("a", EniSpec::new([A]).card(0))?;
    let eni = vpc.create_eni(EniSpec::efa_only().card(1).device(1))?;
    let before = links(&a)?;
    ensure!(vpc.attach(&eni, &a, "ens6").is_err(), "it got a link");
    vpc.attach_without_link(&eni, &a)?;
    ensure!(links(&a)? == before, "a link appeared");
    let keys = key(&vpc, &a, &eni, "")?;
    for absent in ["ipv4", "ipv6", "subnet", "local-hostname"] {
        let own = |line: &&str| line.contains(absent) && !line.starts_with("vpc-");
        ensure!(!keys.lines().any(|line| own(&line)), "{absent} in {keys}");
    }
    for (name, value) in [("device-number", "1"), ("network-card", "1"), ("interface-id", &eni.0)] {
        ensure!(key(&vpc, &a, &eni, name)? == value, "{name} in {keys}");
    }
    vpc.detach(&eni)?;
    let mac = vpc.eni(&eni)?.mac.to_string();
    ensure!(!body(&a, MACS)?.contains(&mac), "it is still told");
    // An ordinary ENI, too, can be without a link for a while.
    let other = vpc.create_eni(EniSpec::new([Ipv4Addr::new(10, 0, 2, 4)]))?;
    vpc.attach_without_link(&other, &a)?;
    vpc.assign(&other, Ipv4Addr::new(10, 0, 2, 5), None)?;
    ensure!(key(&vpc, &a, &other, "local-ipv4s")? == "10.0.2.4\n10.0.2.5", "its addresses");
    vpc.unassign(&other, Ipv4Addr::new(10, 0, 2, 5))?;
    vpc.detach(&other)?;
    vpc.attach(&other, &a, "ens6")?;
    ensure!(links(&a)? == before + 1, "its link");
    Ok(())
}

fn eighty() -> anyhow::Result<()> {
    let mut wide = Config::default();
    for card in 0..16 {
        wide = wide.subnet(&format!("10.0.{card}.0/24"));
    }
    let vpc = Vpc::new(wide)?;
    vpc.metadata().set_v1(true);
    let address = |card, device| Ipv4Addr::new(10, 0, card, 4 + device);
    let a = vpc.instance("a", EniSpec::new([address(0, 0)]).card(0))?;
    let all = (0..16u8).flat_map(|card| (0..5u8).map(move |device| (card, device)));
    let specs = all.skip(1).map(|(card, device)| {
        EniSpec::new([address(card, device)]).card(card.into()).device(device.into())
    });
    let enis = vpc.create_enis(specs.collect())?;
    let names: Vec<String> = (0..enis.len()).map(|number| format!("ens{}", number + 6)).collect();
    let pairs: Vec<_> = enis.iter().zip(names.iter().map(String::as_str)).collect();
    vpc.attach_all(&pairs, &a)?;
    ensure!(links(&a)? == 81, "{} links", links(&a)?);
    let macs: BTreeSet<String> = body(&a, MACS)?.lines().map(str::to_owned).collect();
    ensure!(macs.len() == 80, "{} MACs", macs.len());
    let mut numbers = BTreeSet::new();
    for mac in &macs {
        let key = |key: &str| body(&a, &format!("{MACS}/{mac}{key}"));
        numbers.insert((key("network-card")?, key("device-number")?));
    }
    ensure!(numbers.len() == 80, "{numbers:?}");
    // The last one works where its configuration is all there is.
    vpc.detach(&enis[78])?;
    let host = vpc.instance("host", EniSpec::new([Ipv4Addr::new(10, 0, 3, 99)]))?;
    vpc.attach(&enis[78], &host, "ens6")?;
    host.run(&["ip", "addr", "flush", "dev", "ens5"])?;
    vpc.configure_as_dhcp(&enis[78])?;
    ensure!(ping(&host, Ipv4Addr::new(10, 0, 15, 1))?, "the last one does not work");
    Ok(())
}
