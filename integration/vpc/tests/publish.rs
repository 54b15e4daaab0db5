//! Published container ports: who asks from outside, and what it takes on a second ENI when it is
//! set up by hand.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::ensure;
use vpc::{
    Bound, Echo, EniId, EniSpec, Instance, Ipv4Net, Netns, UdpEcho, Vpc, whoami, whoami_udp,
};

use crate::{A, B, PUBLIC_A, PUBLIC_B, Promise, config};

pub(crate) const PROMISES: &[(&str, Promise)] = &[
    ("publish::ports_on_the_primary_eni_are_reached_from_everywhere", primary),
    ("publish::ports_on_a_second_eni_are_lost_with_rules_for_sources_alone", lost),
    ("publish::marks_bring_them_back_with_a_loose_filter", || marks(2)),
    ("publish::marks_bring_them_back_with_a_strict_filter", || marks(1)),
    ("publish::udp_answers_count_from_the_right_address_only", right_address),
];

const PORT: u16 = 8080;
const CONTAINER: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 2);

/// An instance with two ENIs and a container whose port both publish, and clients.
struct Stage {
    vpc: Vpc,
    instance: Instance,
    second: EniId,
    clients: [Instance; 2],
    _services: (Echo, UdpEcho),
}

impl Stage {
    fn build(rp_filter: u8) -> anyhow::Result<Stage> {
        let vpc = Vpc::new(config().rp_filter(rp_filter))?;
        let instance = vpc.instance("main", EniSpec::new([A]).public(A, PUBLIC_A))?;
        let network: Ipv4Net = "172.17.0.1/16".parse()?;
        instance.bridge("docker0", network)?;
        let container = instance.container("veth0", "docker0", network, CONTAINER)?;
        instance.nft(&format!(
            "table ip nat {{
                chain prerouting {{
                    type nat hook prerouting priority dstnat;
                    ip daddr {{ {A}, {B} }} meta l4proto {{ tcp, udp }} th dport {PORT} dnat to {CONTAINER}:7
                }}
                chain postrouting {{
                    type nat hook postrouting priority srcnat;
                    ip saddr 172.17.0.0/16 oifname != \"docker0\" masquerade
                }}
            }}"
        ))?;
        let clients = [
            vpc.instance("one", EniSpec::new([Ipv4Addr::new(10, 0, 1, 9)]))?,
            vpc.instance("two", EniSpec::new([Ipv4Addr::new(10, 0, 2, 9)]))?,
        ];
        let second = vpc.create_eni(EniSpec::new([B]).public(B, PUBLIC_B))?;
        vpc.attach(&second, &instance, "ens6")?;
        vpc.configure_as_dhcp(&second)?;
        let _services = (Echo::start(&container, 7)?, UdpEcho::start(&container, 7)?);
        Ok(Stage { vpc, instance, second, clients, _services })
    }

    /// Every client, its address, and where it asks for a private address that is public, too.
    fn everybody(&self, private: Ipv4Addr, public: Ipv4Addr) -> [(&Netns, Ipv4Addr, Ipv4Addr); 3] {
        let [one, two] = &self.clients;
        [
            (one, Ipv4Addr::new(10, 0, 1, 9), private),
            (two, Ipv4Addr::new(10, 0, 2, 9), private),
            (self.vpc.internet(), self.vpc.internet_v4(), public),
        ]
    }

    /// How many of the clients the container answers, over TCP and over UDP.
    fn reached(&self, private: Ipv4Addr, public: Ipv4Addr) -> anyhow::Result<(usize, usize)> {
        let (mut tcp, mut udp) = (0, 0);
        for (client, address, to) in self.everybody(private, public) {
            let to = (to, PORT).into();
            for (count, seen) in [
                (&mut tcp, whoami(client, to, &Bound::No)),
                (&mut udp, whoami_udp(client, to, &Bound::No)),
            ] {
                let Ok(seen) = seen else { continue };
                ensure!(seen == IpAddr::V4(address), "{} is seen as {seen}", client.name());
                *count += 1;
            }
        }
        Ok((tcp, udp))
    }

    /// What the second ENI sends comes from it; what main routes elsewhere goes there.
    fn route_by_source(&self) -> anyhow::Result<()> {
        self.instance.ip_batch(&[
            "link set ens5 group 20000".to_owned(),
            "link set ens6 group 20000".to_owned(),
            "route add default via 10.0.2.1 dev ens6 table 2".to_owned(),
            format!("rule add priority 10 from {B} lookup main suppress_prefixlength 1 suppress_ifgroup 20000"),
            format!("rule add priority 20 from {B} lookup 2"),
        ])
    }
}

fn primary() -> anyhow::Result<()> {
    for rp_filter in [1, 2] {
        let stage = Stage::build(rp_filter)?;
        stage.vpc.detach(&stage.second)?;
        let reached = stage.reached(A, PUBLIC_A)?;
        ensure!(reached == (3, 3), "rp_filter {rp_filter}: {reached:?}");
        ensure!(stage.vpc.drops(&stage.instance.primary)? == 0, "dropped packets");
    }
    Ok(())
}

fn lost() -> anyhow::Result<()> {
    let stage = Stage::build(2)?;
    stage.route_by_source()?;
    let reached = stage.reached(B, PUBLIC_B)?;
    // Its own subnet is reached by the connected route.
    ensure!(reached == (1, 1), "{reached:?}");
    ensure!(stage.vpc.drops(&stage.instance.primary)? > 0, "nothing was dropped");
    Ok(())
}

fn marks(rp_filter: u8) -> anyhow::Result<()> {
    let stage = Stage::build(rp_filter)?;
    stage.route_by_source()?;
    stage.instance.sysctl("net.ipv4.conf.all.src_valid_mark", "1")?;
    stage.instance.ip_batch(&[
        "rule add priority 11 fwmark 2 lookup main suppress_prefixlength 1 suppress_ifgroup 20000"
            .to_owned(),
        "rule add priority 21 fwmark 2 lookup 2".to_owned(),
    ])?;
    stage.instance.nft(
        "table ip marks {
            chain prerouting {
                type filter hook prerouting priority mangle;
                iifname \"ens6\" ct state new ct mark set 2
                ct mark 2 meta mark set ct mark
            }
        }",
    )?;
    let reached = stage.reached(B, PUBLIC_B)?;
    ensure!(reached == (3, 3), "{reached:?}");
    ensure!(stage.vpc.drops(&stage.instance.primary)? == 0, "dropped packets");
    ensure!(stage.vpc.drops(&stage.second)? == 0, "dropped packets");
    Ok(())
}

fn right_address() -> anyhow::Result<()> {
    let vpc = Vpc::new(config())?;
    let secondary = Ipv4Addr::new(10, 0, 1, 5);
    let a = vpc.instance("a", EniSpec::new([A, secondary]))?;
    let b = vpc.instance("b", EniSpec::new([B]))?;
    a.run(&["ip", "addr", "add", &format!("{secondary}/32"), "dev", "ens5"])?;
    let _service = UdpEcho::start(&a, 7)?;
    ensure!(whoami_udp(&b, (A, 7).into(), &Bound::No)? == B, "whom it sees");
    // The kernel answers from the primary address.
    let told = whoami_udp(&b, (secondary, 7).into(), &Bound::No);
    ensure!(told.is_err(), "an answer from elsewhere counts: {told:?}");
    Ok(())
}
