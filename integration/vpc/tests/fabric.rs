//! What the fabric promises, each promise tried with plain configuration and no daemon.

mod cards;
mod dhcp;
mod dhcp_v6;
mod guests;
mod networks;
mod only_v6;
mod publish;
mod v6;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use vpc::{
    Bound, Config, Conversation, Echo, EniSpec, Instance, Netns, Pinger, Vpc, ping_once, whoami,
};

type Promise = fn() -> anyhow::Result<()>;

const PROMISES: &[(&str, Promise)] = &[
    ("gateways_answer", gateways_answer),
    ("a_foreign_source_is_dropped_and_counted", a_foreign_source_is_dropped_and_counted),
    ("a_foreign_ipv6_source_is_dropped_and_counted", a_foreign_ipv6_source_is_dropped_and_counted),
    ("a_public_address_works_in_both_directions", a_public_address_works_in_both_directions),
    ("public_addresses_reach_each_other", public_addresses_reach_each_other),
    ("nobody_passes_to_the_internet_without_one", nobody_passes_to_the_internet_without_one),
    ("an_unowned_address_does_not_answer", an_unowned_address_does_not_answer),
    ("arp_is_answered_by_the_fabric", arp_is_answered_by_the_fabric),
    ("arp_for_another_subnet_is_not_answered", arp_for_another_subnet_is_not_answered),
    ("an_address_moves_between_instances", an_address_moves_between_instances),
    ("a_public_address_moves", a_public_address_moves),
    ("a_delegated_prefix_is_delivered_to_its_eni", a_delegated_prefix_is_delivered_to_its_eni),
    ("siblings_reach_each_other_over_ipv6", siblings_reach_each_other_over_ipv6),
    ("an_eni_comes_down_and_goes_away", an_eni_comes_down_and_goes_away),
    ("metadata_knows_who_asks", metadata_knows_who_asks),
    ("a_peered_network_is_reachable", a_peered_network_is_reachable),
    ("a_stream_of_pings_shows_a_gap", a_stream_of_pings_shows_a_gap),
    ("a_full_instance_can_be_attached", a_full_instance_can_be_attached),
    ("a_missing_tool_names_its_package", a_missing_tool_names_its_package),
    ("two_vpcs_do_not_know_each_other", two_vpcs_do_not_know_each_other),
];

fn main() -> ExitCode {
    if let Err(error) = vpc::enter() {
        // The harness is not running yet, so there is nobody else to say it.
        #[expect(clippy::print_stderr, reason = "the only way to say why no test can run")]
        {
            eprintln!("{error:?}");
        }
        return ExitCode::FAILURE;
    }
    let trials = [
        PROMISES,
        cards::PROMISES,
        dhcp::PROMISES,
        dhcp_v6::PROMISES,
        guests::PROMISES,
        networks::PROMISES,
        only_v6::PROMISES,
        publish::PROMISES,
        v6::PROMISES,
    ]
    .into_iter()
    .flatten()
    .map(|(name, promise)| {
        Trial::test(*name, move || promise().map_err(|e| Failed::from(format!("{e:#}"))))
    })
    .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

const A: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const B: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 4);
const PUBLIC_A: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const PUBLIC_B: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

fn config() -> Config {
    Config::default()
        .dual_subnet("10.0.1.0/24", "2600:1f16:67f:f201::/64")
        .dual_subnet("10.0.2.0/24", "2600:1f16:67f:f202::/64")
}

/// Two instances in two subnets, each with a public address.
fn pair() -> anyhow::Result<(Vpc, Instance, Instance)> {
    let vpc = Vpc::new(config())?;
    let a = vpc.instance("a", EniSpec::new([A]).public(A, PUBLIC_A))?;
    let b = vpc.instance("b", EniSpec::new([B]).public(B, PUBLIC_B))?;
    Ok((vpc, a, b))
}

fn ping(from: &Netns, to: impl Into<IpAddr>) -> anyhow::Result<bool> {
    ping_once(from, to.into(), &Bound::No)
}

fn gateways_answer() -> anyhow::Result<()> {
    let (_vpc, a, b) = pair()?;
    for gateway in [Ipv4Addr::new(10, 0, 1, 1), Ipv4Addr::new(10, 0, 2, 1)] {
        ensure!(ping(&a, gateway)? && ping(&b, gateway)?, "{gateway} does not answer");
    }
    ensure!(ping(&a, B)? && ping(&b, A)?, "the subnets do not reach each other");
    Ok(())
}

fn a_foreign_source_is_dropped_and_counted() -> anyhow::Result<()> {
    let (vpc, a, b) = pair()?;
    let foreign = Ipv4Addr::new(10, 0, 1, 77);
    a.run(&["ip", "addr", "add", "10.0.1.77/32", "dev", "ens5"])?;
    let before = vpc.drops(&a.primary)?;
    ensure!(!ping_once(&a, B.into(), &foreign.into())?, "a foreign source got through");
    ensure!(vpc.drops(&a.primary)? == before + 1, "the drop was not counted");
    ensure!(vpc.drops(&b.primary)? == 0, "a drop was counted at the wrong ENI");
    vpc.assign(&a.primary, foreign, None)?;
    ensure!(ping_once(&a, B.into(), &foreign.into())?, "an assigned source does not get through");
    vpc.unassign(&a.primary, foreign)?;
    ensure!(!ping_once(&a, B.into(), &foreign.into())?, "an unassigned source got through");
    Ok(())
}

fn a_foreign_ipv6_source_is_dropped_and_counted() -> anyhow::Result<()> {
    let vpc = Vpc::new(config())?;
    let own: IpAddr = "2600:1f16:67f:f201::4".parse()?;
    let foreign: IpAddr = "2600:1f16:67f:f201::77".parse()?;
    let a = vpc.instance("a", EniSpec::new([IpAddr::V4(A), own]))?;
    add_address(&a, &format!("{foreign}/128"))?;
    let internet = vpc.internet_v6().into();
    ensure!(ping_once(&a, internet, &Bound::Address(own))?, "IPv6 does not pass");
    let before = vpc.drops(&a.primary)?;
    ensure!(!ping_once(&a, internet, &Bound::Address(foreign))?, "a foreign source got through");
    ensure!(vpc.drops(&a.primary)? == before + 1, "the drop was not counted");
    ensure!(ping(vpc.internet(), own)?, "the internet does not reach the instance");
    Ok(())
}

/// Without a search for duplicates, too, the kernel makes an IPv6 address local a little later.
fn add_address(instance: &Instance, address: &str) -> anyhow::Result<()> {
    instance.run(&["ip", "addr", "add", address, "dev", "ens5", "nodad"])?;
    let own = address.split('/').next().unwrap_or(address);
    let local = ["ip", "-6", "route", "show", "table", "local", own];
    guests::until("the address is local", || Ok(!instance.run(&local)?.is_empty()))
}

fn a_public_address_works_in_both_directions() -> anyhow::Result<()> {
    let (vpc, a, b) = pair()?;
    let _internet = Echo::start(vpc.internet(), 7)?;
    let _a = Echo::start(&a, 7)?;
    let internet = SocketAddr::from((vpc.internet_v4(), 7));
    ensure!(whoami(&a, internet, &Bound::No)? == PUBLIC_A, "a is seen under a wrong address");
    ensure!(whoami(&b, internet, &Bound::No)? == PUBLIC_B, "b is seen under a wrong address");
    ensure!(ping(vpc.internet(), PUBLIC_A)? && ping(vpc.internet(), PUBLIC_B)?, "no answer");
    let seen = whoami(vpc.internet(), (PUBLIC_A, 7).into(), &Bound::No)?;
    ensure!(seen == vpc.internet_v4(), "the instance sees {seen}");
    ensure!(!ping(vpc.internet(), A)?, "a private address answers the internet");
    Ok(())
}

fn public_addresses_reach_each_other() -> anyhow::Result<()> {
    let (_vpc, a, b) = pair()?;
    let _b = Echo::start(&b, 7)?;
    let seen = whoami(&a, (PUBLIC_B, 7).into(), &Bound::No)?;
    ensure!(seen == PUBLIC_A, "b sees {seen}");
    Ok(())
}

fn nobody_passes_to_the_internet_without_one() -> anyhow::Result<()> {
    let (vpc, a, _b) = pair()?;
    vpc.disassociate(&a.primary, A)?;
    ensure!(!ping(&a, vpc.internet_v4())?, "a private address reaches the internet");
    ensure!(!ping(vpc.internet(), PUBLIC_A)?, "a public address without owner answers");
    ensure!(vpc.drops(&a.primary)? == 0, "its source was not foreign");
    Ok(())
}

fn an_unowned_address_does_not_answer() -> anyhow::Result<()> {
    let (_vpc, a, _b) = pair()?;
    ensure!(!ping(&a, Ipv4Addr::new(10, 0, 1, 99))?, "an address nobody owns answers");
    ensure!(!ping(&a, Ipv4Addr::new(10, 0, 77, 1))?, "a subnet that is not there answers");
    Ok(())
}

fn neighbour(of: &Instance, address: &str) -> anyhow::Result<String> {
    let neighbours = of.ip_json(&["neigh", "show", address])?;
    Ok(neighbours[0]["lladdr"].as_str().unwrap_or("none").to_owned())
}

fn arp_is_answered_by_the_fabric() -> anyhow::Result<()> {
    let (vpc, a, _b) = pair()?;
    let sibling = vpc.instance("sibling", EniSpec::new([Ipv4Addr::new(10, 0, 1, 5)]))?;
    ensure!(ping(&a, Ipv4Addr::new(10, 0, 1, 5))?, "a sibling does not answer");
    ping(&a, Ipv4Addr::new(10, 0, 1, 1))?;
    ping(&a, Ipv4Addr::new(10, 0, 1, 99))?;
    let router = neighbour(&a, "10.0.1.1")?;
    for address in ["10.0.1.5", "10.0.1.99"] {
        let found = neighbour(&a, address)?;
        ensure!(found == router, "{address} is at {found}, the router at {router}");
    }
    ensure!(router != vpc.eni(&sibling.primary)?.mac.to_string(), "ARP came from the sibling");
    Ok(())
}

fn arp_for_another_subnet_is_not_answered() -> anyhow::Result<()> {
    let (_vpc, a, _b) = pair()?;
    a.run(&["ip", "route", "add", "10.0.2.0/24", "dev", "ens5"])?;
    ensure!(!ping(&a, B)?, "another subnet answers as if it were on link");
    Ok(())
}

fn an_address_moves_between_instances() -> anyhow::Result<()> {
    let (vpc, a, b) = pair()?;
    let third = vpc.instance("third", EniSpec::new([Ipv4Addr::new(10, 0, 1, 5)]))?;
    let moving = Ipv4Addr::new(10, 0, 1, 50);
    vpc.assign(&a.primary, moving, Some(Ipv4Addr::new(203, 0, 113, 50)))?;
    a.run(&["ip", "addr", "add", "10.0.1.50/32", "dev", "ens5"])?;
    ensure!(ping(&b, moving)?, "the address does not answer at first");
    a.run(&["ip", "addr", "del", "10.0.1.50/32", "dev", "ens5"])?;
    third.run(&["ip", "addr", "add", "10.0.1.50/32", "dev", "ens5"])?;
    ensure!(!ping(&b, moving)?, "the address answers where the fabric does not know it");
    vpc.move_address(moving, &a.primary, &third.primary)?;
    ensure!(ping(&b, moving)?, "the address does not answer after the move");
    ensure!(ping(vpc.internet(), Ipv4Addr::new(203, 0, 113, 50))?, "nor does its public one");
    ensure!(vpc.eni(&a.primary)?.ipv4 == [A], "the old ENI still has it");
    ensure!(vpc.eni(&third.primary)?.public[&moving] == Ipv4Addr::new(203, 0, 113, 50), "public");
    Ok(())
}

fn a_public_address_moves() -> anyhow::Result<()> {
    let (vpc, a, b) = pair()?;
    let _internet = Echo::start(vpc.internet(), 7)?;
    vpc.disassociate(&b.primary, B)?;
    vpc.associate(&b.primary, B, PUBLIC_A)?;
    let seen = whoami(&b, (vpc.internet_v4(), 7).into(), &Bound::No)?;
    ensure!(seen == PUBLIC_A, "b is seen as {seen}");
    ensure!(vpc.eni(&a.primary)?.public.is_empty(), "a still has it");
    Ok(())
}

fn a_delegated_prefix_is_delivered_to_its_eni() -> anyhow::Result<()> {
    let (vpc, a, b) = pair()?;
    let prefix: ipnet::Ipv4Net = "10.0.1.16/28".parse()?;
    let inside = Ipv4Addr::new(10, 0, 1, 20);
    a.run(&["ip", "addr", "add", "10.0.1.20/32", "dev", "lo"])?;
    ensure!(!ping(&b, inside)?, "a prefix answers before it is delegated");
    vpc.delegate(&a.primary, prefix)?;
    ensure!(ping(&b, inside)?, "a delegated prefix does not answer");
    ensure!(ping_once(&a, B.into(), &inside.into())?, "nor may it be a source");
    vpc.undelegate(&a.primary, prefix)?;
    ensure!(!ping(&b, inside)?, "a prefix that was taken back answers");
    Ok(())
}

fn siblings_reach_each_other_over_ipv6() -> anyhow::Result<()> {
    let vpc = Vpc::new(config())?;
    let first: IpAddr = "2600:1f16:67f:f201::4".parse()?;
    let second: IpAddr = "2600:1f16:67f:f201::5".parse()?;
    let third: IpAddr = "2600:1f16:67f:f201::6".parse()?;
    let a = vpc.instance("a", EniSpec::new([IpAddr::V4(A), first]))?;
    let b = vpc.instance("b", EniSpec::new([IpAddr::V4([10, 0, 1, 5].into()), second]))?;
    ensure!(ping_once(&a, second, &Bound::Address(first))?, "a sibling does not answer");
    vpc.assign(&b.primary, third, None)?;
    add_address(&b, &format!("{third}/128"))?;
    ensure!(ping_once(&a, third, &Bound::Address(first))?, "its new address does not answer");
    vpc.unassign(&b.primary, third)?;
    ensure!(!ping_once(&a, third, &Bound::Address(first))?, "an unassigned address answers");
    ensure!(vpc.drops(&a.primary)? == 0, "a dropped packet");
    Ok(())
}

fn an_eni_comes_down_and_goes_away() -> anyhow::Result<()> {
    let (vpc, a, b) = pair()?;
    let second = Ipv4Addr::new(10, 0, 2, 5);
    let eni = vpc.create_eni(EniSpec::new([second]))?;
    let plugged = vpc.attach(&eni, &a, "ens6")?;
    ensure!(plugged.before <= plugged.event && plugged.event <= plugged.after, "{plugged:?}");
    let link = a.ip_json(&["link", "show", "ens6"])?;
    let mac = vpc.eni(&eni)?.mac.to_string();
    ensure!(link[0]["address"] == mac.as_str(), "its MAC is {}", link[0]["address"]);
    ensure!(link[0]["operstate"] == "DOWN", "it is {}", link[0]["operstate"]);
    ensure!(vpc.eni(&eni)?.device == 1, "its device number");
    vpc.detach(&eni)?;
    ensure!(a.output(&["ip", "link", "show", "ens6"])?.code != Some(0), "the link is still there");
    // Attached somewhere else, where a plain configuration is right.
    vpc.attach(&eni, &b, "ens6")?;
    vpc.configure_as_dhcp(&eni)?;
    ensure!(ping(&b, Ipv4Addr::new(10, 0, 2, 1))?, "no answer on the other instance");
    Ok(())
}

fn metadata_knows_who_asks() -> anyhow::Result<()> {
    let (vpc, a, b) = pair()?;
    vpc.metadata().set_v1(true);
    for instance in [&a, &b] {
        let text = get(instance, "/latest/meta-data/instance-id")?;
        ensure!(text.ends_with(&instance.id.0), "{} was told {text}", instance.id);
        let mac = vpc.eni(&instance.primary)?.mac.to_string();
        ensure!(get(instance, "/latest/meta-data/mac")?.ends_with(&mac), "a wrong MAC");
    }
    ensure!(vpc.metadata().requests_of(&a.id, "*").len() == 2, "the log");
    Ok(())
}

fn get(netns: &Netns, path: &str) -> anyhow::Result<String> {
    get_from(SocketAddr::from((vpc::METADATA_V4, 80)), netns, path)
}

fn get_from(at: impl Into<SocketAddr>, netns: &Netns, path: &str) -> anyhow::Result<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = vpc::connect(netns, at.into(), &Bound::No, Duration::from_secs(1))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn a_peered_network_is_reachable() -> anyhow::Result<()> {
    let vpc = Vpc::new(config().peer("10.99.0.0/16"))?;
    let a = vpc.instance("a", EniSpec::new([A]))?;
    let (peer, address) = vpc.peer().context("there is no peer")?;
    ensure!(ping(&a, address)? && ping(peer, A)?, "the peered network is not reachable");
    Ok(())
}

fn a_stream_of_pings_shows_a_gap() -> anyhow::Result<()> {
    let (vpc, a, _b) = pair()?;
    let _internet = Echo::start(vpc.internet(), 7)?;
    let internet = SocketAddr::from((vpc.internet_v4(), 7));
    let mut conversation = Conversation::open(&a, internet, &Bound::No)?;
    conversation.check(Duration::from_secs(1))?;
    let pinger =
        Pinger::start(vpc.internet(), PUBLIC_A.into(), &Bound::No, Duration::from_millis(10))?;
    std::thread::sleep(Duration::from_millis(100));
    ensure!(pinger.report().lost == 0 && pinger.report().answered > 2, "{:?}", pinger.report());
    a.run(&["ip", "link", "set", "ens5", "arp", "off"])?;
    a.run(&["ip", "addr", "flush", "dev", "ens5"])?;
    std::thread::sleep(Duration::from_millis(150));
    ensure!(conversation.check(Duration::from_millis(100)).is_err(), "the connection survived");
    a.run(&["ip", "link", "set", "ens5", "arp", "on"])?;
    vpc.configure_as_dhcp(&a.primary)?;
    std::thread::sleep(Duration::from_millis(100));
    let report = pinger.stop();
    ensure!(report.longest_gap >= Duration::from_millis(150), "{report:?}");
    ensure!(report.lost >= 10 && report.answered >= 10 && report.refused == 0, "{report:?}");
    conversation.check(Duration::from_secs(5))?;
    Ok(())
}

fn a_full_instance_can_be_attached() -> anyhow::Result<()> {
    let mut config = config();
    for number in 100..123 {
        config = config.subnet(&format!("10.0.{number}.0/24"));
    }
    let vpc = Vpc::new(config)?;
    let a = vpc.instance("a", EniSpec::new([A]))?;
    let specs = (100..123)
        .map(|number| EniSpec::new((4..68).map(|host| Ipv4Addr::new(10, 0, number, host))))
        .collect();
    let enis = vpc.create_enis(specs)?;
    let names: Vec<String> = (0..enis.len()).map(|number| format!("ens{}", number + 6)).collect();
    let all: Vec<_> = enis.iter().zip(names.iter().map(String::as_str)).collect();
    vpc.attach_all(&all, &a)?;
    let links = a.ip_json(&["link"])?;
    ensure!(links.as_array().map(Vec::len) == Some(25), "links: {links}");
    let last = vpc.eni(&enis[22])?;
    ensure!(last.device == 23 && last.ipv4.len() == 64, "the last ENI is {last:?}");
    Ok(())
}

fn a_missing_tool_names_its_package() -> anyhow::Result<()> {
    let vpc = Vpc::new(config())?;
    let error = vpc.internet().run(&["no-such-tool"]).err().context("it ran")?;
    ensure!(error.to_string().contains("cannot start no-such-tool"), "{error}");
    Ok(())
}

fn two_vpcs_do_not_know_each_other() -> anyhow::Result<()> {
    let (_first, a, _) = pair()?;
    let second = Vpc::new(config())?;
    let only = vpc_host(&second)?;
    ensure!(!ping(&a, only)?, "an address of another VPC answers");
    Ok(())
}

fn vpc_host(vpc: &Vpc) -> anyhow::Result<Ipv4Addr> {
    let address = Ipv4Addr::new(10, 0, 2, 200);
    vpc.instance("only", EniSpec::new([address]))?;
    Ok(address)
}
