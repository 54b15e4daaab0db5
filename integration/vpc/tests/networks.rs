//! CIDRs and subnets that come and go, and metadata at another address.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use anyhow::ensure;
use ipnet::{IpNet, Ipv4Net};
use vpc::{EniSpec, Instance, Vpc};

use crate::{A, Promise, config, get, get_from, ping};

pub(crate) const PROMISES: &[(&str, Promise)] = &[
    ("networks::a_secondary_cidr_comes_and_goes", secondary_v4),
    ("networks::a_secondary_ipv6_cidr_comes_and_goes", secondary_v6),
    ("networks::a_cidr_in_use_stays", in_use),
    ("networks::metadata_is_served_elsewhere", metadata_elsewhere),
];

/// What metadata says at an ENI.
fn told(vpc: &Vpc, instance: &Instance, key: &str) -> anyhow::Result<Vec<String>> {
    let mac = vpc.eni(&instance.primary)?.mac;
    let path = format!("/latest/meta-data/network/interfaces/macs/{mac}/{key}");
    let text = get(instance, &path)?;
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok(body.lines().map(str::to_owned).collect())
}

fn secondary_v4() -> anyhow::Result<()> {
    let vpc = Vpc::new(config())?;
    vpc.metadata().set_v1(true);
    let cidr: Ipv4Net = "172.31.0.0/16".parse()?;
    let a = vpc.instance("a", EniSpec::new([A]))?;
    ensure!(told(&vpc, &a, "vpc-ipv4-cidr-blocks")? == ["10.0.0.0/16"], "at first");
    vpc.add_cidr(cidr)?;
    vpc.add_subnet(Some("172.31.5.0/24".parse()?), None)?;
    let far = Ipv4Addr::new(172, 31, 5, 4);
    let host = vpc.instance("far", EniSpec::new([far]))?;
    for instance in [&a, &host] {
        let all = told(&vpc, instance, "vpc-ipv4-cidr-blocks")?;
        ensure!(all == ["10.0.0.0/16", "172.31.0.0/16"], "{all:?}");
        ensure!(told(&vpc, instance, "vpc-ipv4-cidr-block")? == ["10.0.0.0/16"], "the primary one");
    }
    ensure!(ping(&a, far)? && ping(&host, A)?, "the CIDR is not routed");
    ensure!(ping(&host, Ipv4Addr::new(172, 31, 5, 1))?, "its router does not answer");
    vpc.detach(&host.primary)?;
    vpc.remove_cidr(cidr)?;
    ensure!(told(&vpc, &a, "vpc-ipv4-cidr-blocks")? == ["10.0.0.0/16"], "it is still told");
    let way = vpc.fabric().run(&["ip", "route", "get", "172.31.5.4"])?;
    ensure!(way.contains("inet0"), "it is still routed: {way}");
    vpc.add_cidr(cidr)?;
    vpc.attach(&host.primary, &host, "ens5")?;
    vpc.configure_as_dhcp(&host.primary)?;
    ensure!(ping(&a, far)?, "it does not come back");
    Ok(())
}

fn secondary_v6() -> anyhow::Result<()> {
    let vpc = Vpc::new(config())?;
    vpc.metadata().set_v1(true);
    let cidr: IpNet = "2600:1f16:aaa:1100::/56".parse()?;
    let spec = |v4: &str, v6: &str| -> anyhow::Result<EniSpec> {
        Ok(EniSpec::new([v4.parse::<IpAddr>()?, v6.parse::<IpAddr>()?]))
    };
    let a = vpc.instance("a", spec("10.0.1.4", "2600:1f16:67f:f201::4")?)?;
    vpc.add_cidr(cidr)?;
    let (v4, v6) = ("10.0.9.0/24".parse()?, "2600:1f16:aaa:1101::/64".parse()?);
    vpc.add_subnet(Some(v4), Some(v6))?;
    let host = vpc.instance("far", spec("10.0.9.4", "2600:1f16:aaa:1101::4")?)?;
    let all = told(&vpc, &a, "vpc-ipv6-cidr-blocks")?;
    let both = ["2600:1f16:67f:f200:0:0:0:0/56", "2600:1f16:aaa:1100:0:0:0:0/56"];
    ensure!(all == both, "{all:?}");
    ensure!(ping(&a, "2600:1f16:aaa:1101::4".parse::<IpAddr>()?)?, "the CIDR is not routed");
    ensure!(ping(&host, "2600:1f16:67f:f201::4".parse::<IpAddr>()?)?, "nor back");
    vpc.detach(&host.primary)?;
    vpc.remove_cidr(cidr)?;
    ensure!(told(&vpc, &a, "vpc-ipv6-cidr-blocks")? == both[..1], "it is still told");
    Ok(())
}

fn in_use() -> anyhow::Result<()> {
    let vpc = Vpc::new(config().cidr("172.31.0.0/16").subnet("172.31.5.0/24"))?;
    let cidr: Ipv4Net = "172.31.0.0/16".parse()?;
    let far = Ipv4Addr::new(172, 31, 5, 4);
    let a = vpc.instance("a", EniSpec::new([A]))?;
    let _host = vpc.instance("far", EniSpec::new([far]))?;
    let refused = vpc.remove_cidr(cidr);
    ensure!(refused.is_err(), "it was removed under an ENI");
    ensure!(ping(&a, far)?, "it is not routed any more");
    ensure!(vpc.add_cidr(cidr).is_err(), "it was added twice");
    ensure!(vpc.remove_cidr("172.30.0.0/16".parse::<Ipv4Net>()?).is_err(), "what is not there");
    Ok(())
}

fn metadata_elsewhere() -> anyhow::Result<()> {
    for at in [SocketAddrV4::new(vpc::METADATA_V4, 8773), "100.100.100.200:80".parse()?] {
        let vpc = Vpc::new(config().metadata_at(at))?;
        vpc.metadata().set_flavour(vpc::imds::Flavour::OnlyV1(404));
        let a = vpc.instance("a", EniSpec::new([A]))?;
        let path = "/latest/meta-data/instance-id";
        ensure!(get(&a, path).is_err(), "it answers at the usual place");
        let text = get_from(at, &a, path)?;
        ensure!(text.ends_with(&a.id.0), "{at}: {text}");
        ensure!(vpc.drops(&a.primary)? == 0, "a request was dropped");
    }
    Ok(())
}
