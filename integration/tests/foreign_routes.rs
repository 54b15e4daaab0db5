//! Promise: whatever routes others put into main, every address answers from everywhere through its
//! own ENI, metadata stays reachable, and routes that an operator added are honoured.

use std::net::Ipv4Addr;

use anyhow::{Context as _, ensure};
use integration::vpc::{Config, Echo, EniId, EniSpec, Instance, Ipv4Net, Netns, Vpc};
use integration::{Daemon, eventually, trial};
use libtest_mimic::Trial;

use crate::users::{
    PATIENCE, WHOAMI, answers, drops, everything, is_settled, leaves_by, metadata_answers, public,
    reaches, works_with_the_internet,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("foreign_routes::the_half_defaults_of_a_vpn_capture_no_answers", || {
            beside(&[HALF_DEFAULTS], main_in_between, 2)
        }),
        trial("foreign_routes::a_peered_network_by_the_primary_eni_captures_no_answers", || {
            beside(&[PEERED], main_in_between, 2)
        }),
        trial("foreign_routes::a_link_local_network_on_the_primary_eni_hides_no_metadata", || {
            beside(&[LINK_LOCAL], main_in_between, 2)
        }),
        trial("foreign_routes::what_a_dhcp_client_adds_for_the_second_eni_is_harmless", || {
            beside(&[DHCP], second_only, 2)
        }),
        trial("foreign_routes::static_routes_are_honoured_by_their_eni", || {
            beside(&[STATIC], main_in_between, 2)
        }),
        trial("foreign_routes::all_of_them_together_pass_a_loose_filter", || {
            beside(ALL, main_in_between, 2)
        }),
        trial("foreign_routes::all_of_them_together_pass_a_strict_filter", || {
            beside(ALL, main_in_between, 1)
        }),
    ]
}

/// Routes that somebody puts into main.
#[derive(Clone, Copy)]
struct Foreign {
    add: fn(&Stage) -> anyhow::Result<()>,
    /// What they must bring about, beyond doing no harm.
    honoured: fn(&Stage) -> anyhow::Result<()>,
}

const HALF_DEFAULTS: Foreign = Foreign { add: half_defaults, honoured: unbound_uses_the_vpn };
const PEERED: Foreign = Foreign { add: peered, honoured: nothing_more };
const LINK_LOCAL: Foreign = Foreign { add: link_local, honoured: nothing_more };
const DHCP: Foreign = Foreign { add: dhcp, honoured: nothing_more };
const STATIC: Foreign = Foreign { add: static_routes, honoured: static_routes_are_used };
const ALL: &[Foreign] = &[HALF_DEFAULTS, PEERED, LINK_LOCAL, DHCP, STATIC];

const FIRST: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 1, 4), Ipv4Addr::new(10, 0, 1, 5)];
const SECOND: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 2, 4), Ipv4Addr::new(10, 0, 2, 5)];
const ENIS: [([Ipv4Addr; 2], &str); 2] = [(FIRST, "ens5"), (SECOND, "ens6")];
/// Assigned when all the foreign routes are there.
const LATE: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 6);
/// In the subnets of the first and of the second ENI, and in a third.
const HOSTS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(10, 0, 1, 77), Ipv4Addr::new(10, 0, 2, 77), Ipv4Addr::new(10, 0, 254, 4)];
/// Networks behind the first two hosts, with an address in each.
const BEHIND: [(&str, Ipv4Addr); 2] =
    [("10.98.0.0/16", Ipv4Addr::new(10, 98, 0, 5)), ("10.99.0.0/16", Ipv4Addr::new(10, 99, 0, 5))];
const VPN: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 1);

fn public_of(private: Ipv4Addr) -> Ipv4Addr {
    let [_, _, subnet, last] = private.octets();
    public(10 * subnet + last)
}

struct Stage {
    vpc: Vpc,
    instance: Instance,
    second: EniId,
    hosts: Vec<Instance>,
    /// The far end of the VPN.
    _vpn: Netns,
    _services: [Echo; 2],
}

impl Stage {
    fn build(rp_filter: u8) -> anyhow::Result<Stage> {
        let config = Config::default().peer("192.168.50.0/24").rp_filter(rp_filter);
        let config = config.subnet("10.0.1.0/24").subnet("10.0.2.0/24").subnet("10.0.254.0/24");
        let vpc = Vpc::new(config)?;
        let spec = |addresses: [Ipv4Addr; 2]| {
            let map = |spec: EniSpec, address| spec.public(address, public_of(address));
            addresses.into_iter().fold(EniSpec::new(addresses), map)
        };
        let instance = vpc.instance("main", spec(FIRST))?;
        let second = vpc.create_eni(spec(SECOND))?;
        let mut hosts = Vec::new();
        for (n, address) in HOSTS.iter().enumerate() {
            let host = vpc.instance(&format!("host{n}"), EniSpec::new([*address]))?;
            if let Some((network, behind)) = BEHIND.get(n) {
                vpc.delegate(&host.primary, network.parse::<Ipv4Net>()?)?;
                host.run(&["ip", "addr", "add", &format!("{behind}/32"), "dev", "lo"])?;
            }
            hosts.push(host);
        }
        let _vpn = instance.pod("vpn0")?;
        _vpn.ip_batch(&[format!("addr add {VPN}/24 dev eth0"), "link set eth0 up".to_owned()])?;
        instance.ip_batch(&["addr add 10.8.0.2/24 dev vpn0".to_owned()])?;
        instance.ip_batch(&["link set vpn0 up".to_owned()])?;
        let _services = [Echo::start(vpc.internet(), WHOAMI)?, Echo::start(&instance, WHOAMI)?];
        Ok(Stage { vpc, instance, second, hosts, _vpn, _services })
    }

    /// From everywhere and to everywhere, through the address's own ENI.
    fn works(&self) -> anyhow::Result<()> {
        let (peer, peer_address) = self.vpc.peer().context("there is no peered network")?;
        for (address, link) in ENIS.iter().flat_map(|(own, link)| own.map(|a| (a, *link))) {
            works_with_the_internet(&self.vpc, &self.instance, address, public_of(address))?;
            for host in &self.hosts {
                answers(host, address)?;
            }
            answers(peer, address)?;
            for to in HOSTS.into_iter().chain([peer_address, self.vpc.internet_v4()]) {
                reaches(&self.instance, address, to)?;
                let by = leaves_by(&self.instance, address, to)?;
                ensure!(by == link, "from {address} to {to} by {by}");
            }
            metadata_answers(&self.instance, address)?;
        }
        Ok(())
    }

    /// Both ENIs' addresses and rules by hand.
    fn configure_by_hand(&self, scheme: Scheme) -> anyhow::Result<()> {
        self.vpc.attach(&self.second, &self.instance, "ens6")?;
        self.instance.ip_batch(&[
            format!("addr add {}/32 dev ens5", FIRST[1]),
            "link set ens6 up".to_owned(),
            format!("addr add {}/24 dev ens6 noprefixroute", SECOND[0]),
            format!("addr add {}/32 dev ens6", SECOND[1]),
        ])?;
        self.instance.ip_batch(&scheme("add"))
    }
}

/// Routing by hand, made or unmade; it works where nobody else adds routes.
type Scheme = fn(verb: &str) -> Vec<String>;

/// Own networks first, then main without its default, then the own default.
fn main_in_between(verb: &str) -> Vec<String> {
    let mut lines = tables(verb);
    lines.push(format!("rule {verb} pref 30001 lookup main suppress_prefixlength 0"));
    for (n, (own, _)) in (1..).zip(ENIS) {
        for address in own {
            let table = 100 + n;
            let from = format!("from {address} lookup {table}");
            lines.push(format!("rule {verb} pref 30000 {from} suppress_prefixlength 0"));
            lines.push(format!("rule {verb} pref 30002 {from}"));
        }
    }
    lines
}

/// Rules for the second ENI; the primary one has main to itself.
fn second_only(verb: &str) -> Vec<String> {
    let mut lines = tables(verb);
    lines.extend(SECOND.map(|a| format!("rule {verb} pref 30000 from {a} lookup 102")));
    lines
}

fn tables(verb: &str) -> Vec<String> {
    let table = |(n, (_, link)): (u32, ([Ipv4Addr; 2], &str))| {
        [
            format!("10.0.{n}.0/24"),
            format!("10.0.0.0/16 via 10.0.{n}.1"),
            format!("default via 10.0.{n}.1"),
        ]
        .map(|route| format!("route {verb} {route} dev {link} table {}", 100 + n))
    };
    (1..).zip(ENIS).flat_map(table).collect()
}

fn nothing_more(_: &Stage) -> anyhow::Result<()> {
    Ok(())
}

fn half_defaults(stage: &Stage) -> anyhow::Result<()> {
    let half = |net: &str| format!("route add {net} via {VPN} dev vpn0");
    stage.instance.ip_batch(&[half("0.0.0.0/1"), half("128.0.0.0/1")])
}

/// What is bound to no address follows the VPN, as its owner wants.
fn unbound_uses_the_vpn(stage: &Stage) -> anyhow::Result<()> {
    let to = stage.vpc.internet_v4().to_string();
    let route = stage.instance.ip_json(&["route", "get", &to])?;
    ensure!(route[0]["dev"] == "vpn0", "unbound to the internet: {route}");
    Ok(())
}

fn peered(stage: &Stage) -> anyhow::Result<()> {
    stage.instance.ip_batch(&["route add 192.168.50.0/24 via 10.0.1.1 dev ens5".to_owned()])
}

fn link_local(stage: &Stage) -> anyhow::Result<()> {
    let route = "route add 169.254.0.0/16 dev ens5 scope link metric 1002";
    stage.instance.ip_batch(&[route.to_owned()])
}

fn dhcp(stage: &Stage) -> anyhow::Result<()> {
    // The client's address is there already; its routes come as if it were not.
    stage.instance.ip_batch(&[
        format!("route add 10.0.2.0/24 dev ens6 proto kernel scope link src {}", SECOND[0]),
        format!("route add default via 10.0.2.1 dev ens6 proto dhcp src {} metric 513", SECOND[0]),
    ])
}

fn static_routes(stage: &Stage) -> anyhow::Result<()> {
    let via = |n: usize, link: &str| {
        format!("route add {} via {} dev {link} onlink", BEHIND[n].0, HOSTS[n])
    };
    stage.instance.ip_batch(&[via(0, "ens5"), via(1, "ens6")])
}

/// Each through its ENI; the other ENI's addresses still leave by their own.
fn static_routes_are_used(stage: &Stage) -> anyhow::Result<()> {
    for (own, link) in ENIS {
        for address in own {
            for (n, (_, behind)) in BEHIND.into_iter().enumerate() {
                let (to, from) = (behind.to_string(), address.to_string());
                let route = stage.instance.ip_json(&["route", "get", &to, "from", &from])?;
                ensure!(route[0]["dev"] == link, "from {from} to {to}: {route}");
                if ENIS[n].1 == link {
                    let gateway = HOSTS[n].to_string();
                    ensure!(route[0]["gateway"] == gateway, "from {from} to {to}: {route}");
                }
                reaches(&stage.instance, address, behind)?;
            }
        }
    }
    Ok(())
}

fn beside(foreign: &[Foreign], scheme: Scheme, rp_filter: u8) -> anyhow::Result<()> {
    // Where rules were written by hand, these routes break what worked.
    let stage = Stage::build(rp_filter)?;
    stage.configure_by_hand(scheme)?;
    eventually(PATIENCE, "the scheme works by itself", &stage.instance, || stage.works())?;
    let all_is_well = || -> anyhow::Result<()> {
        stage.works()?;
        foreign.iter().try_for_each(|foreign| (foreign.honoured)(&stage))
    };
    foreign.iter().try_for_each(|foreign| (foreign.add)(&stage))?;
    ensure!(all_is_well().is_err(), "the foreign routes harm nobody");
    drop(stage);

    let stage = Stage::build(rp_filter)?;
    let all_is_well = || -> anyhow::Result<()> {
        stage.works()?;
        foreign.iter().try_for_each(|foreign| (foreign.honoured)(&stage))
    };
    let mut daemon = Daemon::ready(&stage.instance, "poll_interval = \"200ms\"")?;
    stage.vpc.attach(&stage.second, &stage.instance, "ens6")?;
    eventually(PATIENCE, "enid works by itself", &daemon, || stage.works())?;
    foreign.iter().try_for_each(|foreign| (foreign.add)(&stage))?;
    let main = || stage.instance.run(&["ip", "route", "show", "table", "main"]);
    let before = main()?;
    eventually(PATIENCE, "all works beside the foreign routes", &daemon, all_is_well)?;

    let enis = [&stage.instance.primary, &stage.second];
    let dropped = drops(&stage.vpc, enis)?;
    all_is_well()?;
    ensure!(drops(&stage.vpc, enis)? == dropped, "the fabric dropped foreign sources");

    // The daemon goes on hearing from metadata, also after a restart beside these routes.
    stage.vpc.assign(&stage.second, LATE, Some(public_of(LATE)))?;
    eventually(PATIENCE, "an address that came later works", &daemon, || {
        works_with_the_internet(&stage.vpc, &stage.instance, LATE, public_of(LATE))
    })?;
    is_settled(&daemon)?;
    let everything_before = everything(&stage.instance)?;
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    is_settled(&daemon)?;
    let after = everything(&stage.instance)?;
    ensure!(after == everything_before, "before: {everything_before:#?}, after: {after:#?}");
    all_is_well()?;
    ensure!(main()? == before, "main is somebody else's: before {before}, after {}", main()?);
    daemon.terminate()
}
