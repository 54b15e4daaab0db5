//! The fabric's configuration as `ip` and `nft` lines: pure text, no state.
//!
//! Every ENI has a port `pN` in the fabric's namespace: a veth whose peer is moved into the
//! instance, or a tap that a virtual machine opens.
//! Routes decide where an address lives, and a permanent neighbour entry per port holds the MAC,
//! so that the fabric never asks and never learns.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::ensure;
use imds::{Eni, Mac};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::Config;
use crate::networks::Subnet;

/// Where metadata is served over IPv4.
pub const METADATA_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Where metadata is served over IPv6.
pub const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// The DHCP server in subnets without IPv4, and the network of link-local services.
pub(crate) const LINK_LOCAL_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 1);
pub(crate) const LINK_LOCAL_NET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16);
/// The router's link-local address on every link.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0xec2, 0, 0, 0, 0, 0, 1);

/// The fabric's end of the link to the internet; the host there is [`INTERNET_V4`].
const UPLINK_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(crate) const INTERNET_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const UPLINK_V6: &str = "2001:db8:ffff::1";
pub(crate) const INTERNET_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0x10);

/// Next hops that stand for "the ENI behind this port", with its MAC.
const BEHIND_V4: &str = "169.254.255.1";
const BEHIND_V6: &str = "fe80::ec2:1";

/// The router's MAC, at every port.
pub(crate) const ROUTER_MAC: Mac = Mac([0x0e, 0, 0, 0, 0, 1]);
/// The router's other link-local address, which the kernel makes from its MAC: it advertises
/// itself from there.
pub const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x0c00, 0x00ff, 0xfe00, 1);

/// The group that every port has joined, because it forwards.
const ALL_ROUTERS: &str = "ff02::2";
const ALL_DHCP_AGENTS: &str = "ff02::1:2";
/// The first ten bits of link-local addresses.
const LINK_LOCAL_BITS: &str = "0x3fa";

/// What is said to all comes back to who said it, as if it had come in by the port.
pub(crate) const MARK_DHCP: u32 = 2;

/// Set before any device is made: devices copy the `default` values.
pub(crate) const SYSCTLS: &[(&str, &str)] = &[
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    ("net.ipv4.conf.all.send_redirects", "0"),
    ("net.ipv4.conf.default.send_redirects", "0"),
    ("net.ipv4.conf.all.arp_ignore", "0"),
    ("net.ipv4.conf.all.proxy_arp", "1"),
    ("net.ipv4.conf.default.proxy_arp", "1"),
    ("net.ipv6.conf.default.accept_ra", "0"),
    ("net.ipv6.conf.default.accept_dad", "0"),
    ("net.ipv6.conf.all.forwarding", "1"),
    ("net.ipv6.conf.default.forwarding", "1"),
];

/// The fabric before any ENI.
pub(crate) fn base_lines(config: &Config, internet: &str, peer: Option<&str>) -> Vec<String> {
    let mut lines = vec![
        format!("addr add {METADATA_V4}/32 dev lo"),
        format!("addr add {LINK_LOCAL_V4}/32 dev lo"),
        format!("addr add {METADATA_V6}/128 dev lo nodad"),
        // Addresses that nobody owns are routed to a device on which everything is dropped, not
        // blackholed: ARP for them is answered as for any other.
        "link add void type veth peer name voidp".to_owned(),
        "link set void up".to_owned(),
        "link set voidp up".to_owned(),
        format!("link add inet0 type veth peer name eth0 netns {internet}"),
        format!("addr add {UPLINK_V4}/24 dev inet0"),
        format!("addr add {UPLINK_V6}/64 dev inet0 nodad"),
        "link set inet0 up".to_owned(),
        format!("route add default via {INTERNET_V4} dev inet0"),
        format!("route add default via {INTERNET_V6} dev inet0"),
    ];
    if *config.metadata.ip() != METADATA_V4 {
        lines.push(format!("addr add {}/32 dev lo", config.metadata.ip()));
    }
    lines.extend(config.networks.subnets.iter().flat_map(subnet_lines));
    let v4 = config.networks.cidrs_v4.iter().map(|cidr| IpNet::V4(*cidr));
    let v6 = config.networks.cidrs_v6.iter().map(|cidr| IpNet::V6(*cidr));
    lines.extend(v4.chain(v6).map(|cidr| cidr_route("add", cidr)));
    if let Some(peer) = peer {
        lines.push(format!("link add peer0 type veth peer name eth0 netns {peer}"));
        if let Some(net) = config.peer {
            lines.push(format!("addr add {}/{} dev peer0", router(net), net.prefix_len()));
        }
        if let Some(net) = config.peer_v6 {
            lines.push(format!("addr add {}/{} dev peer0 nodad", nth(net, 1), net.prefix_len()));
        }
        lines.push("link set peer0 up".to_owned());
    }
    lines
}

/// Where addresses of the VPC are that nobody owns.
pub(crate) fn cidr_route(verb: &str, cidr: IpNet) -> String {
    format!("route {verb} {cidr} dev void")
}

/// The router of a subnet; over IPv6 it is the same at every port.
pub(crate) fn subnet_lines(subnet: &Subnet) -> Vec<String> {
    let address = |net: Ipv4Net| format!("addr add {}/32 dev lo", router(net));
    subnet.v4.map(address).into_iter().collect()
}

/// The host on the internet.
pub(crate) fn internet_lines() -> Vec<String> {
    vec![
        format!("addr add {INTERNET_V4}/24 dev eth0"),
        format!("addr add {INTERNET_V6}/64 dev eth0 nodad"),
        "link set eth0 up".to_owned(),
        format!("route add default via {UPLINK_V4}"),
        format!("route add default via {UPLINK_V6}"),
    ]
}

/// The host in the peered network.
pub(crate) fn peer_lines(config: &Config) -> Vec<String> {
    let mut lines = vec!["link set eth0 up".to_owned()];
    if let Some(net) = config.peer {
        lines.push(format!("addr add {}/{} dev eth0", peer_host(net), net.prefix_len()));
        lines.push(format!("route add default via {}", router(net)));
    }
    if let Some(net) = config.peer_v6 {
        lines.push(format!("addr add {}/{} dev eth0 nodad", peer_host_v6(net), net.prefix_len()));
        lines.push(format!("route add default via {}", nth(net, 1)));
    }
    lines
}

/// The router of a subnet: its base address + 1.
pub(crate) fn router(net: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(net.network()) + 1)
}

/// What DHCP leases to an ENI in a subnet without IPv4, by the number of its port; the network's
/// other parts have services and next hops in them.
pub(crate) fn link_local(port: u32) -> anyhow::Result<Ipv4Addr> {
    let [_, _, high, low] = port.to_be_bytes();
    ensure!(port < 0x8000, "no link-local address is left for port {port}");
    Ok(Ipv4Addr::new(169, 254, 16 + high, low))
}

pub(crate) fn peer_host(net: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(net.network()) + 10)
}

pub(crate) fn peer_host_v6(net: Ipv6Net) -> Ipv6Addr {
    nth(net, 10)
}

fn nth(net: Ipv6Net, n: u128) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(net.network()) + n)
}

/// The packet filter before any ENI.
///
/// The sources come first. Who asks where a neighbour is, or for DHCPv6, asks all routers instead,
/// so that ports need not join a group for each. Public addresses are mapped statelessly, by
/// rewriting, so that no connection tracking can hide a wrong path.
pub(crate) fn base_ruleset() -> String {
    format!(
        "table inet fabric {{
    map ports {{ type ifname : verdict; }}
    map inward {{ type ipv4_addr : ipv4_addr; }}
    map outward {{ type ipv4_addr : ipv4_addr; }}
    set served {{ type ipv6_addr; }}
    chain prerouting {{
        type filter hook prerouting priority -400;
        meta mark {MARK_DHCP} ip daddr 255.255.255.255 drop
        iifname vmap @ports
        icmpv6 type nd-neighbor-solicit @th,64,10 != {LINK_LOCAL_BITS} ip6 daddr set {ALL_ROUTERS}
        ip6 daddr {ALL_DHCP_AGENTS} ip6 daddr set {ALL_ROUTERS}
        ip6 daddr {METADATA_V6} ip6 daddr != @served drop
        iifname \"inet0\" ip daddr set ip daddr map @inward accept
        iifname \"inet0\" ip daddr {UPLINK_V4} accept
        iifname \"inet0\" meta nfproto ipv4 drop
        ip daddr set ip daddr map @inward meta mark set 1
    }}
    chain forward {{
        type filter hook forward priority 0;
        oifname \"void\" drop
        ip saddr {LINK_LOCAL_NET} drop
        ip daddr {LINK_LOCAL_NET} drop
    }}
    chain postrouting {{
        type filter hook postrouting priority 400;
        meta mark 1 ip saddr set ip saddr map @outward accept
        meta mark 1 drop
        oifname \"inet0\" ip saddr {UPLINK_V4} accept
        oifname \"inet0\" ip saddr set ip saddr map @outward accept
        oifname \"inet0\" meta nfproto ipv4 drop
    }}
}}
table arp fabric {{
    map ports {{ type ifname : verdict; }}
    chain input {{
        type filter hook input priority 0;
        iifname vmap @ports
    }}
}}
"
    )
}

/// The filter of a new ENI's port: what may come in, and a counter of what may not.
pub(crate) fn eni_ruleset(port: u32, eni: &Eni, out: &mut String) {
    let mut on_link = METADATA_V4.to_string();
    if eni.link_local.is_some() {
        let _ = write!(on_link, ", {LINK_LOCAL_V4}");
    }
    if let Some(net) = eni.subnet_v4 {
        let _ = write!(on_link, ", {net}");
    }
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "table inet fabric {{
    counter drops_{port} {{ }}
    set four_{port} {{ type ipv4_addr; }}
    set nets_four_{port} {{ type ipv4_addr; flags interval; }}
    set six_{port} {{ type ipv6_addr; }}
    set nets_six_{port} {{ type ipv6_addr; flags interval; }}
    chain port_{port} {{
        ip saddr @four_{port} return
        ip saddr @nets_four_{port} return
        ip6 saddr @six_{port} return
        ip6 saddr @nets_six_{port} return
        ip6 saddr fe80::/10 return
        ip6 saddr :: return
        ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 return
        ip saddr 0.0.0.0 drop
        counter name drops_{port} drop
    }}
}}
table arp fabric {{
    chain port_{port} {{
        arp operation request arp daddr ip != {{ {on_link} }} drop
    }}
}}
add element inet fabric ports {{ \"p{port}\" : jump port_{port} }}
add element arp fabric ports {{ \"p{port}\" : jump port_{port} }}
"
    );
    elements("add", port, &addresses(eni).collect::<Vec<_>>(), out);
    for net in prefixes(eni) {
        prefix_element("add", port, net, out);
    }
    public_elements("add", &eni.public, out);
}

/// Whether metadata is served over IPv6.
pub(crate) fn metadata_v6(served: bool) -> String {
    let add = format!("add element inet fabric served {{ {METADATA_V6} }}\n");
    format!("flush set inet fabric served\n{}", if served { &add } else { "" })
}

/// What becomes of packets to metadata, over either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataWay {
    /// They arrive.
    Open,
    /// They are lost.
    Lost,
    /// Connections are refused.
    Refused,
}

/// The filter in front of the metadata service.
pub(crate) fn metadata_way(way: MetadataWay) -> String {
    let verdict = match way {
        MetadataWay::Open => return "add table inet way\ndelete table inet way\n".to_owned(),
        MetadataWay::Lost => "drop",
        MetadataWay::Refused => "reject with tcp reset",
    };
    format!(
        "add table inet way
delete table inet way
table inet way {{
    chain input {{
        type filter hook input priority 0;
        ip daddr {METADATA_V4} meta l4proto tcp {verdict}
        ip6 daddr {METADATA_V6} meta l4proto tcp {verdict}
    }}
}}
"
    )
}

/// Adds or deletes addresses that a port may send from.
pub(crate) fn elements(verb: &str, port: u32, addresses: &[IpAddr], out: &mut String) {
    for (set, is_ipv4) in [("four", true), ("six", false)] {
        let list: Vec<String> = addresses
            .iter()
            .filter(|address| address.is_ipv4() == is_ipv4)
            .map(ToString::to_string)
            .collect();
        if !list.is_empty() {
            let list = list.join(", ");
            let _ = writeln!(out, "{verb} element inet fabric {set}_{port} {{ {list} }}");
        }
    }
}

/// Adds or deletes a delegated prefix that a port may send from.
pub(crate) fn prefix_element(verb: &str, port: u32, net: IpNet, out: &mut String) {
    let set = if net.addr().is_ipv4() { "nets_four" } else { "nets_six" };
    let _ = writeln!(out, "{verb} element inet fabric {set}_{port} {{ {net} }}");
}

/// Adds or deletes mappings between private and public addresses.
pub(crate) fn public_elements(verb: &str, public: &BTreeMap<Ipv4Addr, Ipv4Addr>, out: &mut String) {
    if public.is_empty() {
        return;
    }
    let outward: Vec<String> = public.iter().map(|(a, b)| format!("{a} : {b}")).collect();
    let inward: Vec<String> = public.iter().map(|(a, b)| format!("{b} : {a}")).collect();
    let _ = writeln!(out, "{verb} element inet fabric outward {{ {} }}", outward.join(", "));
    let _ = writeln!(out, "{verb} element inet fabric inward {{ {} }}", inward.join(", "));
}

/// A port whose other end `eN` is to be moved to an instance.
pub(crate) fn veth_lines(port: u32, mac: Mac, mtu: u32) -> Vec<String> {
    vec![format!(
        "link add p{port} mtu {mtu} address {ROUTER_MAC} type veth peer name e{port} address {mac}"
    )]
}

/// A port that is a persistent tap: it stays when nobody has it open.
pub(crate) fn tap_lines(port: u32, mtu: u32) -> Vec<String> {
    vec![
        format!("tuntap add dev p{port} mode tap"),
        format!("link set p{port} mtu {mtu} address {ROUTER_MAC}"),
    ]
}

/// What a port needs to deliver to its ENI, whatever the port is.
pub(crate) fn port_lines(port: u32, eni: &Eni) -> Vec<String> {
    let mut lines = vec![
        format!("link set p{port} up"),
        behind(BEHIND_V4, eni.mac, port),
        behind(BEHIND_V6, eni.mac, port),
        format!("addr add {GATEWAY_V6}/64 dev p{port} nodad"),
    ];
    lines.extend(addresses(eni).map(|address| route("add", address, port)));
    lines.extend(prefixes(eni).map(|net| prefix_route("add", net, port)));
    lines
}

/// Set for each port: neighbour defaults belong to the whole machine. Without it, answers on
/// behalf of others come up to 0.8 s late.
pub(crate) fn port_sysctl(port: u32) -> String {
    format!("net.ipv4.neigh.p{port}.proxy_delay")
}

fn behind(next_hop: &str, mac: Mac, port: u32) -> String {
    format!("neigh add {next_hop} lladdr {mac} dev p{port} nud permanent")
}

/// Where an address lives.
pub(crate) fn route(verb: &str, address: IpAddr, port: u32) -> String {
    prefix_route(verb, IpNet::from(address), port)
}

/// Where a delegated prefix lives.
pub(crate) fn prefix_route(verb: &str, net: IpNet, port: u32) -> String {
    match net {
        IpNet::V4(net) => format!("route {verb} {net} via {BEHIND_V4} dev p{port} onlink"),
        IpNet::V6(net) => format!("route {verb} {net} via {BEHIND_V6} dev p{port}"),
    }
}

fn addresses(eni: &Eni) -> impl Iterator<Item = IpAddr> {
    let four = eni.ipv4.iter().chain(&eni.link_local).map(|address| IpAddr::V4(*address));
    four.chain(eni.ipv6.iter().map(|address| IpAddr::V6(*address)))
}

pub(crate) fn prefixes(eni: &Eni) -> impl Iterator<Item = IpNet> {
    let four = eni.prefixes_v4.iter().map(|net| IpNet::V4(*net));
    four.chain(eni.prefixes_v6.iter().map(|net| IpNet::V6(*net)))
}
