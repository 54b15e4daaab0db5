//! What IPv6 and delegated prefixes get from the fabric: who delivers, who answers for whom, and
//! what the router says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use vpc::{Bound, Config, EniSpec, Instance, IpNet, Netns, Vpc, ping_once};

use crate::guests::until;
use crate::{A, Promise, add_address, config, ping};

pub(crate) const PROMISES: &[(&str, Promise)] = &[
    ("v6::every_address_of_a_prefix_is_delivered_unasked", delivered_unasked),
    ("v6::a_prefix_is_a_source_as_long_as_it_is_delegated", prefix_as_source),
    ("v6::a_foreign_source_of_a_prefix_is_dropped_and_counted", foreign_in_prefix),
    ("v6::neighbours_are_reached_through_the_router", neighbours),
    ("v6::the_router_advertises_itself_and_no_addresses", advertises),
    ("v6::the_router_can_be_silent_at_one_eni_or_all", silent),
    ("v6::the_router_says_what_it_is_told_to", as_configured),
];

const SIX_A: Ipv6Addr = Ipv6Addr::new(0x2600, 0x1f16, 0x67f, 0xf201, 0, 0, 0, 4);
const SIX_SIBLING: Ipv6Addr = Ipv6Addr::new(0x2600, 0x1f16, 0x67f, 0xf201, 0, 0, 0, 5);
const SIX_OTHER: Ipv6Addr = Ipv6Addr::new(0x2600, 0x1f16, 0x67f, 0xf202, 0, 0, 0, 4);
const SIBLING: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 5);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 4);

/// An instance with two delegated prefixes, one of each family, and who talks to it.
struct Stage {
    vpc: Vpc,
    instance: Instance,
    sibling: Instance,
    other: Instance,
}

fn prefixes() -> anyhow::Result<[IpNet; 2]> {
    Ok(["10.0.1.16/28".parse()?, "2600:1f16:67f:f201:a::/80".parse()?])
}

/// Addresses of each prefix, the last one among them. The kernel takes the very first one of a
/// local IPv6 prefix for its routers' anycast address, so it does not answer from it.
fn inside() -> anyhow::Result<Vec<IpAddr>> {
    let texts = ["10.0.1.16", "10.0.1.22", "10.0.1.31"];
    let long = ["2600:1f16:67f:f201:a::1", "2600:1f16:67f:f201:a:1234:5:6"];
    let last = "2600:1f16:67f:f201:a:ffff:ffff:ffff";
    texts.into_iter().chain(long).chain([last]).map(|text| Ok(text.parse()?)).collect()
}

impl Stage {
    fn build() -> anyhow::Result<Stage> {
        let vpc = Vpc::new(config().peer("10.99.0.0/16").peer_v6("2001:db8:99::/64"))?;
        let mut spec = EniSpec::new([IpAddr::V4(A), SIX_A.into()]);
        for prefix in prefixes()? {
            spec = spec.prefix(prefix);
        }
        let instance = vpc.instance("a", spec)?;
        let spec = |v4: Ipv4Addr, v6: Ipv6Addr| EniSpec::new([IpAddr::V4(v4), v6.into()]);
        let sibling = vpc.instance("sibling", spec(SIBLING, SIX_SIBLING))?;
        let other = vpc.instance("other", spec(OTHER, SIX_OTHER))?;
        // Every address of the prefixes is the instance's own.
        for prefix in prefixes()? {
            instance.run(&["ip", "route", "add", "local", &prefix.to_string(), "dev", "lo"])?;
        }
        instance.sysctl("net.ipv6.ip_nonlocal_bind", "1")?;
        Ok(Stage { vpc, instance, sibling, other })
    }

    /// Who asks, and whether public addresses would be needed for IPv4.
    fn everybody(&self) -> anyhow::Result<[(&Netns, bool); 4]> {
        let (peer, _) = self.vpc.peer().context("there is no peer")?;
        Ok([(&self.sibling, true), (&self.other, true), (peer, true), (self.vpc.internet(), false)])
    }

    fn drops(&self) -> anyhow::Result<u64> {
        self.vpc.drops(&self.instance.primary)
    }
}

/// Counts who asks the instance where an address is, link-local ones apart.
const QUESTIONS: &str = "table netdev count {
    chain in {
        type filter hook ingress device ens5 priority 0;
        ether type arp arp operation request counter
        icmpv6 type nd-neighbor-solicit @th,64,10 != 0x3fa counter
    }
}";

fn questions(instance: &Instance) -> anyhow::Result<u64> {
    let rules: serde_json::Value =
        serde_json::from_str(&instance.run(&["nft", "-j", "list", "table", "netdev", "count"])?)?;
    let rules = rules["nftables"].as_array().context("no rules")?;
    let parts = rules.iter().filter_map(|rule| rule["rule"]["expr"].as_array()).flatten();
    Ok(parts.filter_map(|part| part["counter"]["packets"].as_u64()).sum())
}

fn delivered_unasked() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    stage.instance.nft(QUESTIONS)?;
    for (from, private) in stage.everybody()? {
        for address in inside()?.into_iter().filter(|address| private || address.is_ipv6()) {
            ensure!(ping(from, address)?, "{address} does not answer {}", from.name());
        }
        ensure!(ping(from, SIX_A)?, "{SIX_A} does not answer {}", from.name());
    }
    ensure!(questions(&stage.instance)? == 0, "the fabric asked the instance");
    ensure!(stage.drops()? == 0, "dropped packets");
    // It would have been counted: the instance is at the first port.
    let mut asks = Command::new("ping");
    asks.args(["-c1", "-W1", "-I", "p1", "10.0.1.99"]).stdout(Stdio::null()).stderr(Stdio::null());
    let _asks = stage.vpc.fabric().spawn(asks)?;
    until("a question is counted", || Ok(questions(&stage.instance)? > 0))
}

fn prefix_as_source() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let destination = |of: IpAddr| if of.is_ipv4() { IpAddr::V4(OTHER) } else { SIX_OTHER.into() };
    for address in inside()? {
        let passes = ping_once(&stage.instance, destination(address), &Bound::Address(address))?;
        ensure!(passes, "{address} may not be a source");
    }
    ensure!(stage.drops()? == 0, "dropped packets");
    for prefix in prefixes()? {
        stage.vpc.undelegate(&stage.instance.primary, prefix)?;
    }
    for (count, address) in (1..).zip(inside()?) {
        let passes = ping_once(&stage.instance, destination(address), &Bound::Address(address))?;
        ensure!(!passes, "{address} may still be a source");
        ensure!(!ping(&stage.other, address)?, "{address} still answers");
        ensure!(stage.drops()? == count, "{address} was not counted");
    }
    for prefix in prefixes()? {
        stage.vpc.delegate(&stage.instance.primary, prefix)?;
    }
    for address in inside()? {
        ensure!(ping(&stage.sibling, address)?, "{address} does not answer when it is back");
    }
    Ok(())
}

fn foreign_in_prefix() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    for address in inside()? {
        if address.is_ipv4() {
            stage.sibling.run(&["ip", "addr", "add", &format!("{address}/32"), "dev", "lo"])?;
        } else {
            add_address(&stage.sibling, &format!("{address}/128"))?;
        }
        let before = stage.vpc.drops(&stage.sibling.primary)?;
        let to: IpAddr = if address.is_ipv4() { OTHER.into() } else { SIX_OTHER.into() };
        let passes = ping_once(&stage.sibling, to, &Bound::Address(address))?;
        ensure!(!passes, "{address} got through from another ENI");
        // Who asks for its gateway from there is dropped, too.
        ensure!(stage.vpc.drops(&stage.sibling.primary)? > before, "{address} was not counted");
    }
    ensure!(stage.drops()? == 0, "drops were counted at the wrong ENI");
    Ok(())
}

/// The MAC and the router flag of a neighbour.
fn neighbour(of: &Netns, address: Ipv6Addr) -> anyhow::Result<(String, bool)> {
    let all = of.ip_json(&["-6", "neigh", "show", &address.to_string()])?;
    let mac = all[0]["lladdr"].as_str().unwrap_or("none").to_owned();
    // The flag has no value.
    Ok((mac, all[0].get("router").is_some()))
}

fn neighbours() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let in_prefix: Ipv6Addr = "2600:1f16:67f:f201:a::77".parse()?;
    let nobody: Ipv6Addr = "2600:1f16:67f:f201::99".parse()?;
    let router = "0e:00:00:00:00:01".to_owned();
    for address in [SIX_A, in_prefix, nobody] {
        let answers = ping(&stage.sibling, address)?;
        ensure!(answers == (address != nobody), "{address}: {answers}");
        let found = neighbour(&stage.sibling, address)?;
        ensure!(found == (router.clone(), false), "{address} is {found:?}");
    }
    for gateway in [vpc::GATEWAY_V6, vpc::ROUTER_V6] {
        let (to, via) = (SIX_OTHER.to_string(), gateway.to_string());
        stage.sibling.run(&["ip", "route", "replace", &to, "via", &via, "dev", "ens5"])?;
        ensure!(ping(&stage.sibling, SIX_OTHER)?, "no answer through {gateway}");
        let found = neighbour(&stage.sibling, gateway)?;
        ensure!(found == (router.clone(), true), "the gateway {gateway} is {found:?}");
    }
    // Its own address is nobody else's.
    stage.sibling.run(&["ip", "addr", "del", &format!("{SIX_SIBLING}/128"), "dev", "ens5"])?;
    let net = format!("{SIX_SIBLING}/128");
    stage.sibling.run(&["ip", "-6", "route", "add", &net, "dev", "ens5"])?;
    ensure!(!ping(&stage.sibling, SIX_SIBLING)?, "the fabric answers for its own address");
    let found = neighbour(&stage.sibling, SIX_SIBLING)?;
    ensure!(found.0 == "none", "its own address is {found:?}");
    Ok(())
}

/// An instance in a VPC whose router was not silent; nothing of IPv6 is configured by hand.
fn listener(config: Config) -> anyhow::Result<(Vpc, Instance)> {
    let vpc = Vpc::new(config)?;
    let instance = vpc.instance("a", EniSpec::new([A]))?;
    Ok((vpc, instance))
}

/// Where to, and which gateway: what the router said, which does not stay for ever.
fn routes(of: &Netns) -> anyhow::Result<Vec<(String, String)>> {
    let all = of.ip_json(&["-6", "route", "show", "dev", "ens5"])?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or("none").to_owned();
    let mut all = all.as_array().cloned().unwrap_or_default();
    all.retain(|route| !route["expires"].is_null());
    Ok(all.iter().map(|route| (text(&route["dst"]), text(&route["gateway"]))).collect())
}

fn advertises() -> anyhow::Result<()> {
    let (_vpc, instance) = listener(config())?;
    let expected = [
        ("2600:1f16:67f:f201::/64".to_owned(), "none".to_owned()),
        ("default".to_owned(), vpc::ROUTER_V6.to_string()),
    ];
    // It asks by itself.
    until("it has heard of the router", || Ok(routes(&instance)? == expected))?;
    let found = neighbour(&instance, vpc::ROUTER_V6)?;
    ensure!(found == ("0e:00:00:00:00:01".to_owned(), true), "the router is {found:?}");
    let addresses = instance.run(&["ip", "-6", "-o", "addr", "show", "dev", "ens5"])?;
    ensure!(!addresses.contains("2600:"), "it made an address of its own: {addresses}");
    let default = instance.ip_json(&["-6", "route", "show", "default"])?;
    let expires = default[0]["expires"].as_u64().unwrap_or_default();
    ensure!((1790..=1800).contains(&expires), "{default}");
    let other = listener(Config::default().subnet("10.0.1.0/24"))?;
    other.0.router().advertise(&other.1.primary)?;
    ensure!(routes(&other.1)?.is_empty(), "a subnet without IPv6 has a router");
    Ok(())
}

fn silent() -> anyhow::Result<()> {
    let vpc = Vpc::new(config())?;
    let router = vpc.router();
    router.silence();
    let a = vpc.instance("a", EniSpec::new([A]))?;
    let other = vpc.instance("other", EniSpec::new([OTHER]))?;
    let tell = || router.advertise(&a.primary).and_then(|()| router.advertise(&other.primary));
    let heard = || anyhow::Ok((!routes(&a)?.is_empty(), !routes(&other)?.is_empty()));
    tell()?;
    ensure!(heard()? == (false, false), "it is not silent");
    router.speak();
    router.silence_at(&a.primary);
    until("the other one hears it", || {
        tell()?;
        Ok(heard()?.1)
    })?;
    ensure!(heard()? == (false, true), "it is not silent at the one");
    ensure!(!router.speaks_at(&a.primary) && router.speaks_at(&other.primary), "it says otherwise");
    router.speak();
    until("both hear it", || {
        tell()?;
        Ok(heard()? == (true, true))
    })
}

fn as_configured() -> anyhow::Result<()> {
    let (vpc, instance) = listener(config().on_link(false).router_lifetime(3))?;
    let expected = [("default".to_owned(), vpc::ROUTER_V6.to_string())];
    until("it has heard of the router", || Ok(routes(&instance)? == expected))?;
    vpc.router().silence();
    // It may be listed for longer than it is used.
    let to = vpc.internet_v6().to_string();
    let finds = || anyhow::Ok(instance.output(&["ip", "route", "get", &to])?.code == Some(0));
    ensure!(finds()?, "it does not use the router");
    until("the router is forgotten", || Ok(!finds()?))
}
