//! What an instance has in a subnet without IPv4: link-local services over IPv4, and metadata over
//! IPv6 where it is switched on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use dhcproto::v4::{DhcpOption, Message, MessageType, OptionCode};
use dhcproto::{Decodable as _, Encodable as _};
use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
use vpc::{Bound, EniSpec, Instance, Vpc, ping_once};

use crate::{B, Promise, config, get, get_from, ping};

pub(crate) const PROMISES: &[(&str, Promise)] = &[
    ("only_v6::metadata_is_reached_over_a_link_local_address", link_local),
    ("only_v6::a_link_local_address_reaches_nothing_else", nothing_else),
    ("only_v6::dhcp_leases_the_link_local_address", leased),
    ("only_v6::metadata_over_ipv6_is_a_switch", metadata_v6),
    ("only_v6::every_kind_of_subnet_reaches_every_other_in_what_they_share", kinds),
];

const MACS: &str = "/latest/meta-data/network/interfaces/macs";

fn own(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2600, 0x1f16, 0x67f, 0xf203, 0, 0, 0, host)
}

/// An instance in a subnet that has IPv6 only.
fn instance() -> anyhow::Result<(Vpc, Instance)> {
    let vpc = Vpc::new(config().subnet_v6("2600:1f16:67f:f203::/64"))?;
    let instance = vpc.instance("six", EniSpec::new([own(4)]))?;
    vpc.metadata().set_v1(true);
    Ok((vpc, instance))
}

fn link_local_of(vpc: &Vpc, instance: &Instance) -> anyhow::Result<Ipv4Addr> {
    vpc.eni(&instance.primary)?.link_local.context("it has no link-local address")
}

fn link_local() -> anyhow::Result<()> {
    let (vpc, instance) = instance()?;
    let address = link_local_of(&vpc, &instance)?;
    let link = instance.run(&["ip", "-4", "-o", "addr", "show", "dev", "ens5"])?;
    ensure!(link.contains(&format!("inet {address}/32 ")), "{link}");
    ensure!(get(&instance, "/latest/meta-data/instance-id")?.ends_with(&instance.id.0), "who");
    let eni = vpc.eni(&instance.primary)?;
    let keys = get(&instance, &format!("{MACS}/{}/", eni.mac))?;
    for absent in ["local-ipv4s", "subnet-ipv4-cidr-block", "public-ipv4s"] {
        ensure!(!keys.contains(absent), "{absent} in {keys}");
    }
    for present in ["ipv6s", "subnet-ipv6-cidr-blocks", "vpc-ipv4-cidr-block"] {
        ensure!(keys.contains(present), "{present} is not in {keys}");
    }
    let told = get(&instance, "/latest/meta-data/local-ipv4")?;
    ensure!(told.starts_with("HTTP/1.1 404"), "{told}");
    Ok(())
}

fn nothing_else() -> anyhow::Result<()> {
    let (vpc, instance) = instance()?;
    let other = vpc.instance("other", EniSpec::new([B]))?;
    let second = vpc.instance("second", EniSpec::new([own(5)]))?;
    let address = link_local_of(&vpc, &instance)?;
    instance.run(&["ip", "route", "add", "default", "via", "169.254.0.1", "dev", "ens5"])?;
    ensure!(!ping_once(&instance, B.into(), &address.into())?, "it reaches another subnet");
    ensure!(!ping(&instance, link_local_of(&vpc, &second)?)?, "it reaches another's");
    ensure!(!ping(&other, address)?, "another subnet reaches it");
    instance.run(&["ip", "addr", "add", "169.254.99.99/32", "dev", "lo"])?;
    let foreign = Bound::Address(Ipv4Addr::new(169, 254, 99, 99).into());
    ensure!(!ping_once(&instance, vpc::METADATA_V4.into(), &foreign)?, "a foreign one passes");
    ensure!(vpc.drops(&instance.primary)? == 1, "the foreign one was not counted");
    Ok(())
}

fn leased() -> anyhow::Result<()> {
    let (vpc, instance) = instance()?;
    let eni = vpc.eni(&instance.primary)?;
    // A route to check sources against is not there before.
    for conf in ["all", "ens5"] {
        instance.sysctl(&format!("net.ipv4.conf.{conf}.rp_filter"), "0")?;
    }
    instance.run(&["ip", "-4", "addr", "flush", "dev", "ens5"])?;
    let socket = instance.within(|| -> anyhow::Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 68))?;
        socket.set_broadcast(true)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        setsockopt(&socket, BindToDevice, &"ens5".into())?;
        Ok(socket)
    })??;
    let nobody = Ipv4Addr::UNSPECIFIED;
    let mut asked = Message::new(nobody, nobody, nobody, nobody, &eni.mac.0);
    asked.opts_mut().insert(DhcpOption::MessageType(MessageType::Discover));
    socket.send_to(&asked.to_vec()?, (Ipv4Addr::BROADCAST, 67))?;
    let mut bytes = [0; 1500];
    let length = socket.recv(&mut bytes)?;
    let offer = Message::from_bytes(&bytes[..length])?;
    ensure!(Some(offer.yiaddr()) == eni.link_local, "{offer}");
    ensure!(offer.opts().get(OptionCode::Router).is_none(), "{offer}");
    Ok(())
}

fn metadata_v6() -> anyhow::Result<()> {
    let (vpc, instance) = instance()?;
    let path = "/latest/meta-data/instance-id";
    let ask = || get_from((vpc::METADATA_V6, 80), &instance, path);
    ensure!(ask().is_err(), "it answers at first");
    vpc.set_metadata_v6(true)?;
    let keys = format!("{MACS}/{}/", vpc.eni(&instance.primary)?.mac);
    let over_v6 = get_from((vpc::METADATA_V6, 80), &instance, &keys)?;
    ensure!(ask()?.ends_with(&instance.id.0), "{}", ask()?);
    ensure!(over_v6 == get(&instance, &keys)?, "another tree");
    let seen = vpc.metadata().requests_of(&instance.id, path);
    ensure!(seen.iter().all(|request| request.peer.ip() == IpAddr::V6(own(4))), "{seen:?}");
    vpc.set_metadata_v6(false)?;
    ensure!(ask().is_err(), "it still answers");
    Ok(())
}

fn kinds() -> anyhow::Result<()> {
    let vpc =
        Vpc::new(config().subnet("10.0.3.0/24").subnet_v6("2600:1f16:67f:f203::/64").rp_filter(1))?;
    let dual: [IpAddr; 2] = ["10.0.1.4".parse()?, "2600:1f16:67f:f201::4".parse()?];
    let four: IpAddr = "10.0.3.4".parse()?;
    let six: IpAddr = own(4).into();
    let hosts = [
        (vpc.instance("dual", EniSpec::new(dual))?, dual.to_vec()),
        (vpc.instance("four", EniSpec::new([four]))?, vec![four]),
        (vpc.instance("six", EniSpec::new([six]))?, vec![six]),
    ];
    for (from, own) in &hosts {
        for (to, addresses) in &hosts {
            for address in addresses {
                let shared = own.iter().any(|own| own.is_ipv4() == address.is_ipv4());
                let reached = ping(from, *address)?;
                ensure!(reached == shared, "{} to {} at {address}", from.name(), to.name());
            }
        }
        ensure!(vpc.drops(&from.primary)? == 0, "dropped packets of {}", from.name());
    }
    Ok(())
}
