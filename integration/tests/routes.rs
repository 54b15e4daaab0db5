//! A kernel's state in the oracle's words, and the kernel's own answers, as `ip` tells both.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::IpAddr;

use anyhow::{Context as _, bail, ensure};
use integration::vpc::Netns;
use ipnet::IpNet;
use oracle::{Address, Family, Kind, Link, Packet, Route, Rule, State, Way};
use serde_json::{Deserializer, Value};

/// `rtm_protocol` and `FRA_PROTOCOL` of what enid makes.
const OURS: &str = "233";

/// Reads links, addresses, routes and rules.
pub(crate) fn state(netns: &Netns) -> anyhow::Result<State> {
    let mut state = State::default();
    for item in items(netns, &["-N", "-d", "link"])? {
        state.links.push(link(&item)?);
    }
    for item in items(netns, &["-4", "addr"])? {
        state.addresses.extend(addresses(&item)?);
    }
    // The kernel lists the newest IPv6 address first.
    for item in items(netns, &["-6", "addr"])? {
        state.addresses.extend(addresses(&item)?.into_iter().rev());
    }
    for (family, word) in [(Family::V4, "-4"), (Family::V6, "-6")] {
        for item in items(netns, &[word, "-N", "-d", "route", "show", "table", "all"])? {
            state.routes.extend(route(&item, family)?);
        }
        for item in items(netns, &[word, "-N", "rule"])? {
            state.rules.push(rule(&item, family)?);
        }
    }
    Ok(state)
}

fn items(netns: &Netns, words: &[&str]) -> anyhow::Result<Vec<Value>> {
    Ok(netns.ip_json(words)?.as_array().cloned().unwrap_or_default())
}

fn text<'a>(item: &'a Value, key: &str) -> Option<&'a str> {
    item[key].as_str()
}

fn number(item: &Value, key: &str) -> anyhow::Result<Option<u32>> {
    let value = &item[key];
    let text = value.as_str().and_then(|text| text.parse().ok());
    let value = text.or(value.as_u64().and_then(|number| u32::try_from(number).ok()));
    ensure!(value.is_some() || item[key].is_null(), "{key} of {item}");
    Ok(value)
}

fn link(item: &Value) -> anyhow::Result<Link> {
    let flags = item["flags"].as_array().context("a link without flags")?;
    Ok(Link {
        name: text(item, "ifname").context("a link without a name")?.to_owned(),
        up: flags.iter().any(|flag| flag == "UP"),
        group: number(item, "group")?.unwrap_or_default(),
    })
}

fn addresses(item: &Value) -> anyhow::Result<Vec<Address>> {
    let name = text(item, "ifname").context("a link without a name")?;
    // What the link may still lose to another host is not used yet.
    let list = item["addr_info"].as_array().into_iter().flatten();
    let list = list.filter(|info| info["tentative"] != true);
    let address = |info: &Value| {
        Ok(Address {
            link: name.to_owned(),
            address: text(info, "local").context("an address without an address")?.parse()?,
            length: u8::try_from(number(info, "prefixlen")?.context("no length")?)?,
            preferred: info["deprecated"] != true,
            permanent: info["dynamic"] != true,
            // `ip` does not yet tell who made an address.
            ours: false,
        })
    };
    list.map(address).collect()
}

/// A destination as `ip` writes it: a host has no length.
fn network(text: &str, family: Family) -> anyhow::Result<IpNet> {
    let text = match (text, family) {
        ("default", Family::V4) => "0.0.0.0/0",
        ("default", Family::V6) => "::/0",
        (other, _) => other,
    };
    match text.parse::<IpNet>() {
        Ok(net) => Ok(net),
        Err(_) => Ok(IpNet::from(text.parse::<IpAddr>()?)),
    }
}

fn ip(item: &Value, key: &str) -> anyhow::Result<Option<IpAddr>> {
    let Some(text) = text(item, key) else { return Ok(None) };
    Ok(Some(text.parse().with_context(|| format!("{key} of {item}"))?))
}

/// A route; nothing for broadcast, multicast and anycast, which no packet here goes to.
fn route(item: &Value, family: Family) -> anyhow::Result<Option<Route>> {
    let kind = match text(item, "type").unwrap_or("1") {
        "1" => Kind::Unicast,
        "2" => Kind::Local,
        "6" | "7" | "8" => Kind::Refuse,
        "9" => Kind::Throw,
        "3" | "4" | "5" => return Ok(None),
        other => bail!("a route of type {other}: {item}"),
    };
    ensure!(item["nexthops"].is_null(), "several next hops: {item}");
    Ok(Some(Route {
        table: number(item, "table")?.unwrap_or(State::MAIN),
        destination: network(text(item, "dst").context("no destination")?, family)?,
        kind,
        gateway: ip(item, "gateway")?,
        link: text(item, "dev").filter(|_| kind != Kind::Refuse).map(str::to_owned),
        source: ip(item, "prefsrc")?,
        metric: number(item, "metric")?.unwrap_or_default(),
        ours: text(item, "protocol") == Some(OURS),
    }))
}

fn rule(item: &Value, family: Family) -> anyhow::Result<Rule> {
    let net = |address: &str, length: &str| -> anyhow::Result<Option<IpNet>> {
        let Some(text) = text(item, address).filter(|text| *text != "all") else {
            return Ok(None);
        };
        let net = network(text, family)?;
        Ok(Some(match number(item, length)? {
            Some(length) => IpNet::new(net.addr(), u8::try_from(length)?)?,
            None => net,
        }))
    };
    let hexadecimal = |key: &str| {
        text(item, key).and_then(|text| u32::from_str_radix(text.trim_start_matches("0x"), 16).ok())
    };
    ensure!(item["action"].is_null() && item["not"].is_null(), "not understood: {item}");
    Ok(Rule {
        family,
        priority: number(item, "priority")?.unwrap_or_default(),
        source: net("src", "srclen")?,
        destination: net("dst", "dstlen")?,
        iif: text(item, "iif").map(str::to_owned),
        oif: text(item, "oif").map(str::to_owned),
        mark: hexadecimal("fwmark").map(|mark| (mark, hexadecimal("fwmask").unwrap_or(u32::MAX))),
        table: number(item, "table")?.with_context(|| format!("no table: {item}"))?,
        suppress_length: number(item, "suppress_prefixlen")?,
        suppress_group: number(item, "suppress_ifgroup")?,
        ours: text(item, "protocol") == Some(OURS),
    })
}

/// What the kernel says of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// It is delivered here.
    Here,
    /// It leaves by this link to this next hop, and gets this source where it had none.
    Out { link: String, gateway: Option<IpAddr>, source: Option<IpAddr> },
    /// It is refused.
    Nowhere,
}

impl Said {
    /// The oracle's answer in the same words.
    pub(crate) fn of(answer: &oracle::Answer<'_>) -> Said {
        match answer.way {
            Way::Here => Said::Here,
            Way::Nowhere => Said::Nowhere,
            Way::Out { link, gateway } => {
                Said::Out { link: link.to_owned(), gateway, source: answer.source }
            }
        }
    }
}

/// Asks the kernel about many packets at once: `ip route get TO from FROM iif LINK oif LINK`.
pub(crate) fn ask(netns: &Netns, packets: &[&Packet]) -> anyhow::Result<Vec<Said>> {
    let mut file = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    for packet in packets {
        let question = packet.to_string();
        let question = question.strip_prefix("ip ").context("not a question to ip")?;
        writeln!(file, "{question}")?;
    }
    let path = file.path().to_string_lossy().into_owned();
    let said = netns.output(&["ip", "-j", "-force", "-batch", &path])?;
    let failed = format!("Command failed {path}:");
    let lines = said.stderr.lines();
    let failed: BTreeSet<usize> =
        lines.filter_map(|line| line.strip_prefix(&failed)?.parse().ok()).collect();
    let mut answers = Deserializer::from_str(&said.stdout).into_iter::<Value>();
    let mut all = Vec::new();
    for (n, packet) in packets.iter().enumerate() {
        if failed.contains(&(n + 1)) {
            all.push(Said::Nowhere);
            continue;
        }
        let answer = answers.next().with_context(|| format!("no answer to {packet}"))??;
        all.push(said_of(&answer[0], packet).with_context(|| format!("{packet}: {answer}"))?);
    }
    ensure!(answers.next().is_none(), "more answers than questions");
    Ok(all)
}

fn said_of(answer: &Value, packet: &Packet) -> anyhow::Result<Said> {
    match text(answer, "type") {
        Some("local") => return Ok(Said::Here),
        Some("unreachable" | "prohibit" | "blackhole") => return Ok(Said::Nowhere),
        Some("unicast") | None => {}
        Some(other) => bail!("a route of type {other}"),
    }
    let source = if packet.from.is_none() { ip(answer, "prefsrc")? } else { None };
    let link = text(answer, "dev").context("no link")?.to_owned();
    Ok(Said::Out { link, gateway: ip(answer, "gateway")?, source })
}
