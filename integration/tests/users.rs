//! What users of an instance notice, whatever it is made of: answers, the source that others see,
//! and packets that the fabric drops.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::Daemon;
use integration::vpc::{
    Bound, EniId, Instance, METADATA_V4, Netns, Vpc, connect, ping_once, whoami,
};
use serde_json::Value;

/// Long enough on a busy machine; nothing waits that long where all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The port of all services that tell whom they see.
pub(crate) const WHOAMI: u16 = 7;

/// The nth public address of the tests.
pub(crate) fn public(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, n)
}

/// An address answers.
pub(crate) fn answers(from: &Netns, to: impl Into<IpAddr>) -> anyhow::Result<()> {
    let to = to.into();
    ensure!(ping_once(from, to, &Bound::No)?, "{to} does not answer {}", from.name());
    Ok(())
}

/// An address does not answer.
pub(crate) fn is_silent(from: &Netns, to: impl Into<IpAddr>) -> anyhow::Result<()> {
    let to = to.into();
    ensure!(!ping_once(from, to, &Bound::No)?, "{to} answers {}", from.name());
    Ok(())
}

/// An address is reached from a source.
pub(crate) fn reaches(
    from: &Netns,
    source: impl Into<IpAddr>,
    to: impl Into<IpAddr>,
) -> anyhow::Result<()> {
    let (source, to) = (source.into(), to.into());
    let answered = ping_once(from, to, &Bound::Address(source))?;
    ensure!(answered, "from {source} in {}, {to} does not answer", from.name());
    Ok(())
}

/// The internet reaches a public address and sees it where a connection starts from the private
/// one. The internet and the instance run a service that tells whom it sees.
pub(crate) fn works_with_the_internet(
    vpc: &Vpc,
    instance: &Netns,
    private: Ipv4Addr,
    public: Ipv4Addr,
) -> anyhow::Result<()> {
    answers(vpc.internet(), public)?;
    let seen = whoami(vpc.internet(), (public, WHOAMI).into(), &Bound::No)?;
    ensure!(seen == vpc.internet_v4(), "the service behind {public} sees {seen}");
    let to = (vpc.internet_v4(), WHOAMI).into();
    let seen = whoami(instance, to, &Bound::from(private))?;
    ensure!(seen == public, "from {private}, the internet sees {seen}");
    reaches(instance, private, vpc.internet_v4())
}

/// The device by which the kernel sends what comes from a local source.
pub(crate) fn leaves_by(
    from: &Netns,
    source: impl Into<IpAddr>,
    to: impl Into<IpAddr>,
) -> anyhow::Result<String> {
    let (source, to) = (source.into(), to.into());
    let route = from.ip_json(&["route", "get", &to.to_string(), "from", &source.to_string()])?;
    let device = route[0]["dev"].as_str();
    device.map(ToOwned::to_owned).with_context(|| format!("from {source} to {to}: {route}"))
}

/// How many packets with a foreign source the fabric dropped at some ENIs.
pub(crate) fn drops<'a>(
    vpc: &Vpc,
    enis: impl IntoIterator<Item = &'a EniId>,
) -> anyhow::Result<u64> {
    enis.into_iter().map(|eni| vpc.drops(eni)).sum()
}

/// The IPv4 addresses of a link.
pub(crate) fn addresses(netns: &Netns, link: &str) -> anyhow::Result<BTreeSet<Ipv4Addr>> {
    let links = netns.ip_json(&["-4", "addr", "show", "dev", link])?;
    let infos = links.as_array().into_iter().flatten();
    let infos = infos.filter_map(|link| link["addr_info"].as_array()).flatten();
    let locals = infos.filter_map(|info| info["local"].as_str());
    Ok(locals.map(str::parse).collect::<Result<_, _>>()?)
}

/// Everything of IPv4 that somebody could have changed: addresses, routes and rules, without the
/// lifetimes that count down by themselves.
pub(crate) fn everything(netns: &Netns) -> anyhow::Result<[Value; 3]> {
    let mut links = netns.ip_json(&["-4", "addr"])?;
    for link in links.as_array_mut().into_iter().flatten() {
        for info in link["addr_info"].as_array_mut().into_iter().flatten() {
            for lifetime in ["valid_life_time", "preferred_life_time"] {
                info.as_object_mut().context("no address")?.remove(lifetime);
            }
        }
    }
    let routes = netns.ip_json(&["-4", "route", "show", "table", "all"])?;
    Ok([links, routes, netns.ip_json(&["-4", "rule"])?])
}

/// What `enictl status` says.
pub(crate) fn status(daemon: &Daemon) -> anyhow::Result<Value> {
    daemon.enictl().run(&["status", "--json"])?.json()
}

/// What `enictl status` says of an address, whichever ENI it is on.
pub(crate) fn status_of(daemon: &Daemon, address: impl Into<IpAddr>) -> anyhow::Result<Value> {
    let (address, status) = (address.into(), status(daemon)?);
    let enis = status["enis"].as_array().into_iter().flatten();
    let mut all = enis.filter_map(|eni| eni["addresses"].as_array()).flatten();
    let found = all.find(|known| known["address"] == address.to_string());
    found.cloned().with_context(|| format!("status does not know {address}: {status}"))
}

/// Nothing is left to do and nothing to wait for.
pub(crate) fn is_settled(daemon: &Daemon) -> anyhow::Result<()> {
    daemon.wait_ready(PATIENCE)?;
    let output = daemon.enictl().run(&["refresh", "--wait", "--timeout", "20s"])?;
    output.success()?;
    let plan = daemon.enictl().run(&["plan", "--json"])?;
    let steps = plan.json()?["steps"].as_array().map(Vec::len);
    ensure!(steps == Some(0), "steps remain: {}{}", plan.stdout, plan.stderr);
    Ok(())
}

/// Asks metadata for the instance's id from an address, as any program of the instance may.
pub(crate) fn metadata_answers(instance: &Instance, source: Ipv4Addr) -> anyhow::Result<()> {
    let ask = |request: &str| -> anyhow::Result<String> {
        let to = SocketAddr::from((METADATA_V4, 80));
        let mut stream = connect(instance, to, &Bound::from(source), Duration::from_secs(2))?;
        stream.write_all(format!("{request}Host: metadata\r\n\r\n").as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        body.with_context(|| format!("metadata said {text:?}"))
    };
    let lifetime = "X-aws-ec2-metadata-token-ttl-seconds: 60\r\n";
    let token = ask(&format!("PUT /latest/api/token HTTP/1.1\r\n{lifetime}"))?;
    let id = ask(&format!(
        "GET /latest/meta-data/instance-id HTTP/1.1\r\nX-aws-ec2-metadata-token: {token}\r\n"
    ))?;
    ensure!(id == instance.id.0, "from {source}, metadata says {id:?}");
    Ok(())
}
