//! What the kernel of the instance says, as `ip` tells it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::Context as _;
use serde_json::Value;
use vpc::Netns;

/// enid's own mark.
const OURS: &str = "233";
/// The mark of all that somebody else makes during a soak.
pub(super) const THEIRS: &str = "99";

/// A link and its addresses.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) index: u64,
    pub(super) name: String,
    pub(super) mac: String,
    pub(super) up: bool,
    pub(super) group: String,
    pub(super) other_names: Vec<String>,
    /// Those that are not link-local, and the length of their prefix.
    pub(super) addresses: BTreeMap<IpAddr, u64>,
}

/// All of it at one moment.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) links: Vec<Link>,
    rules: Vec<Value>,
    routes: Vec<Value>,
}

fn items(netns: &Netns, words: &[&str]) -> anyhow::Result<Vec<Value>> {
    Ok(netns.ip_json(words)?.as_array().cloned().unwrap_or_default())
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn link(item: &Value) -> anyhow::Result<Link> {
    let strings = |name: &str| item[name].as_array().into_iter().flatten().map(text).collect();
    let flags: Vec<String> = strings("flags");
    let mut addresses = BTreeMap::new();
    for info in item["addr_info"].as_array().into_iter().flatten() {
        let local: IpAddr = text(&info["local"]).parse().context("`ip` says no address")?;
        if info["scope"] != "link" && info["scope"] != "host" {
            addresses.insert(local, info["prefixlen"].as_u64().unwrap_or_default());
        }
    }
    Ok(Link {
        index: item["ifindex"].as_u64().context("`ip` says no index")?,
        name: text(&item["ifname"]),
        mac: text(&item["address"]),
        up: flags.iter().any(|flag| flag == "UP"),
        group: text(&item["group"]),
        other_names: strings("altnames"),
        addresses,
    })
}

/// The links and their addresses alone.
pub(super) fn links(netns: &Netns) -> anyhow::Result<Vec<Link>> {
    items(netns, &["-d", "addr"])?.iter().map(link).collect()
}

impl Kernel {
    pub(super) fn read(netns: &Netns) -> anyhow::Result<Kernel> {
        let links = links(netns)?;
        let mut rules = items(netns, &["-4", "-N", "rule"])?;
        rules.extend(items(netns, &["-6", "-N", "rule"])?);
        let mut routes = items(netns, &["-4", "-N", "-d", "route", "show", "table", "all"])?;
        routes.extend(items(netns, &["-6", "-N", "-d", "route", "show", "table", "all"])?);
        Ok(Kernel { links, rules, routes })
    }

    pub(super) fn link_of(&self, mac: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.mac == mac)
    }

    /// enid's rules.
    pub(super) fn rules(&self) -> impl Iterator<Item = &Value> {
        self.rules.iter().filter(|rule| rule["protocol"] == OURS)
    }

    /// enid's routes; the table's number comes with each.
    pub(super) fn routes(&self) -> impl Iterator<Item = (u32, &Value)> {
        let ours = self.routes.iter().filter(|route| route["protocol"] == OURS);
        ours.map(|route| (table(route), route))
    }

    /// What somebody else made during the soak, in words that do not change by themselves.
    pub(super) fn foreign(&self) -> BTreeSet<String> {
        let theirs = |item: &&Value| item["protocol"] == THEIRS;
        let rules = self.rules.iter().filter(theirs).map(|rule| format!("rule {rule}"));
        let routes = self.routes.iter().filter(theirs).map(|route| format!("route {route}"));
        let addresses = self.links.iter().flat_map(|link| {
            let own = link.addresses.iter().filter(|(address, _)| is_foreign(**address));
            own.map(|(address, length)| format!("address {address}/{length} on {}", link.index))
        });
        rules.chain(routes).chain(addresses).collect()
    }
}

/// Which table a route lies in.
fn table(route: &Value) -> u32 {
    let table = &route["table"];
    let number = table.as_u64().and_then(|table| u32::try_from(table).ok());
    // Not shown where it is the main one.
    number.or_else(|| table.as_str()?.parse().ok()).unwrap_or(254)
}

/// Whether an address is one that nobody but a vandal would make: a network for documentation.
pub(super) fn is_foreign(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[..3] == [192, 0, 2],
        IpAddr::V6(address) => address.segments()[..2] == [0x2001, 0xdb8],
    }
}

/// Links, addresses, rules, routes, neighbours and counters for whom has to find out what was wrong.
pub(super) fn describe(netns: &Netns) -> String {
    let lines = [
        "ip -br addr",
        "ip neigh",
        "nstat -as",
        "ip rule",
        "ip -6 rule",
        "ip route show table all",
        "ip -6 route show table all",
    ];
    let said = lines.iter().map(|line| {
        let output = netns.output(&line.split(' ').collect::<Vec<_>>());
        let said = output.map_or_else(|error| format!("{error:#}\n"), |output| output.stdout);
        let said = said.lines().filter(|line| !line.contains("table local"));
        format!("--- {line}\n{}\n", said.collect::<Vec<_>>().join("\n"))
    });
    said.collect()
}
