//! Promises: published ports of containers, VPNs, and namespaces that borrow an adapter go on as if
//! there were no enid.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration::{Scene as _, eventually};
use vm::{Files, Image, Machine, Recipe, Release};
use vpc::{Bound, Conversation, EniSpec, Instance, Netns};

use super::watch::{SECONDARIES, Watch, all_work, assign};
use crate::Promise;
use crate::stage::{
    FIRST, FIRST_PUBLIC, HOST, PATIENCE, SECOND, SECOND_PUBLIC, Stage, WHOAMI, figure, networkd,
};

pub(crate) fn promises() -> Vec<Promise> {
    vec![
        Promise {
            name: "neighbours::forwarding::a_published_port_works_while_enis_come_and_go",
            recipe: Recipe::new(Release::Trixie),
            keep: published_port,
        },
        Promise {
            name: "neighbours::forwarding::a_port_published_on_the_second_eni_works_when_asked_for",
            recipe: Recipe::new(Release::Trixie),
            keep: published_on_the_second,
        },
        Promise {
            name: "neighbours::forwarding::a_vpn_gets_its_traffic_and_no_replies",
            recipe: Recipe::new(Release::Trixie),
            keep: vpn,
        },
        Promise {
            name: "neighbours::forwarding::an_adapter_comes_back_from_a_container_and_works",
            recipe: Recipe::new(Release::Trixie),
            keep: borrowed_adapter,
        },
    ]
}

/// The port that the container's service is published on.
const PUBLISHED: u16 = 8080;

/// A bridge with one container, as a container engine makes it.
const CONTAINER: &str = r#"
set -e
sysctl -qw net.ipv4.ip_forward=1
ip link add docker0 type bridge
ip addr add 172.17.0.1/16 dev docker0
ip link set docker0 up
ip netns add box
ip link add veth0 type veth peer name eth0 netns box
ip link set veth0 master docker0 up
ip -n box link set lo up
ip -n box addr add 172.17.0.2/16 dev eth0
ip -n box link set eth0 up
ip -n box route add default via 172.17.0.1
nft -f - <<'END'
table ip nat {
    chain prerouting {
        type nat hook prerouting priority dstnat;
        fib daddr type local tcp dport 8080 dnat to 172.17.0.2:7
    }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        ip saddr 172.17.0.0/16 oifname != "docker0" masquerade
    }
}
END
systemctl start whoami.socket
"#;

/// A service in the container's namespace that tells whom it sees, and then echoes.
fn whoami_files() -> anyhow::Result<Files> {
    networkd("Name=ens5")?
        .text(
            "/etc/systemd/system/whoami.socket",
            "[Socket]\nListenStream=0.0.0.0:7\nAccept=yes\nNetworkNamespacePath=/run/netns/box\n",
        )?
        .text(
            "/etc/systemd/system/whoami@.service",
            "[Service]\nStandardInput=socket\n\
             ExecStart=/bin/sh -c 'echo $REMOTE_ADDR:$REMOTE_PORT; exec cat'\n",
        )
}

/// Who uses the published port, and by which address.
struct Client<'a> {
    from: &'a Netns,
    to: Ipv4Addr,
    kept: Conversation,
}

impl Client<'_> {
    fn connect<'a>(stage: &Stage, from: &'a Netns, to: Ipv4Addr) -> anyhow::Result<Client<'a>> {
        let kept = eventually(PATIENCE, "the published port answers", &stage.machine, || {
            Conversation::open(from, (to, PUBLISHED).into(), &Bound::No)
        })?;
        Ok(Client { from, to, kept })
    }

    /// The old connection lives and a new one can be made. A process is started for each, which an
    /// emulated machine that does much else takes seconds for.
    fn check(&mut self, machine: &Machine) -> anyhow::Result<()> {
        let Client { from, to, kept } = self;
        kept.check(Duration::from_secs(20)).with_context(|| format!("to {to}"))?;
        let seen = eventually(PATIENCE, "a new connection is answered", machine, || {
            Ok(Conversation::open(from, (*to, PUBLISHED).into(), &Bound::No)?.seen)
        })?;
        ensure!(seen == kept.seen, "the container sees {seen} instead of {}", kept.seen);
        Ok(())
    }
}

fn published_port(image: &Image) -> anyhow::Result<()> {
    let stage = Stage::boot(image, &whoami_files()?)?;
    let neighbours: [Instance; 2] = [
        stage.vpc.instance("near", EniSpec::new([Ipv4Addr::new(10, 0, 1, 9)]))?,
        stage.vpc.instance("far", EniSpec::new([Ipv4Addr::new(10, 0, 2, 9)]))?,
    ];
    stage.machine.run(CONTAINER)?;
    let connect = |from, to| Client::connect(&stage, from, to);
    let mut clients = vec![
        connect(stage.vpc.internet(), FIRST_PUBLIC)?,
        connect(&neighbours[0], FIRST)?,
        connect(&neighbours[1], FIRST)?,
        connect(&stage.host, FIRST)?,
    ];
    let mut all = |when: &str| -> anyhow::Result<()> {
        for client in &mut clients {
            let outcome = client.check(&stage.machine);
            outcome.with_context(|| format!("{when}\n{}", stage.machine.describe()))?;
        }
        let to = format!("{} {WHOAMI}", stage.vpc.internet_v4());
        let seen = stage.machine.run(&format!("ip netns exec box nc -N -w 10 {to} < /dev/null"))?;
        let seen: SocketAddr = seen.trim().parse().context(seen)?;
        ensure!(seen.ip() == FIRST_PUBLIC, "{when}: the internet sees the container as {seen}");
        Ok(())
    };
    all("before")?;
    stage.install()?;
    assign(&stage)?;
    eventually(PATIENCE, "the secondary address works", &stage.machine, || {
        stage.answers(SECONDARIES[0])
    })?;
    let watch = Watch::first(&stage)?;
    all("with enid")?;
    stage.machine.plug(&stage.vpc, &stage.second)?;
    for _ in 0..3 {
        all("while the second ENI is plugged in")?;
    }
    stage.comes_to_rest()?;
    all_work(&stage)?;
    all("with the second ENI")?;
    let both = Watch::all(&stage)?;
    all("with the second ENI")?;
    both.end(&stage, "a container's port is used")?.nothing(&stage)?;
    // What a DHCP client or an address with a prefix route would add.
    stage.machine.run("ip route add 10.0.2.0/24 dev ens6")?;
    ensure!(
        Conversation::open(&neighbours[1], (FIRST, PUBLISHED).into(), &Bound::No).is_err(),
        "a reply that leaves by the wrong ENI arrives"
    );
    stage.machine.run("ip route del 10.0.2.0/24 dev ens6")?;
    stage.machine.unplug(&stage.vpc, &stage.second)?;
    for _ in 0..2 {
        all("while the second ENI is pulled out")?;
    }
    stage.comes_to_rest()?;
    all("without the second ENI")?;
    watch.end(&stage, "an ENI comes and goes beside a container")?.nothing(&stage)
}

/// Turns published ports on for the second ENI.
const PUBLISH: &str = "mkdir -p /etc/enid/enid.d
    printf '[[eni]]\\nmatch = { device-number = 1 }\\npublished_ports = true\\n' \\
        > /etc/enid/enid.d/publish.toml
    systemctl reload enid";

/// Turns them off again.
const CONCEAL: &str = "rm /etc/enid/enid.d/publish.toml && systemctl reload enid";

/// Whether the kernel has nftables; it loads it when somebody asks for it.
fn nftables_is_loaded(stage: &Stage) -> anyhow::Result<bool> {
    Ok(stage.machine.run("lsmod")?.contains("nf_tables"))
}

/// Whether connections that come in by the second ENI are marked.
fn is_marked(stage: &Stage) -> anyhow::Result<bool> {
    Ok(stage.machine.run("nft list tables")?.contains("inet enid-20001"))
}

fn published_on_the_second(image: &Image) -> anyhow::Result<()> {
    let stage = Stage::boot(image, &whoami_files()?)?;
    let neighbours: [Instance; 2] = [
        stage.vpc.instance("near", EniSpec::new([Ipv4Addr::new(10, 0, 1, 9)]))?,
        stage.vpc.instance("far", EniSpec::new([Ipv4Addr::new(10, 0, 2, 9)]))?,
    ];
    stage.install()?;
    stage.plug_second()?;
    stage.comes_to_rest()?;
    ensure!(!nftables_is_loaded(&stage)?, "enid loads nftables although nobody asked for it");
    stage.machine.run(PUBLISH)?;
    stage.comes_to_rest()?;
    // The daemon may not load modules; the kernel does it for whoever speaks to nftables.
    ensure!(nftables_is_loaded(&stage)?, "no nftables: {}", stage.machine.describe());
    ensure!(is_marked(&stage)?, "nothing marks connections");

    stage.machine.run(CONTAINER)?;
    let connect = |from, to| Client::connect(&stage, from, to);
    let mut clients = vec![
        connect(stage.vpc.internet(), SECOND_PUBLIC)?,
        connect(&neighbours[0], SECOND)?,
        connect(&neighbours[1], SECOND)?,
        connect(&stage.host, SECOND)?,
        connect(stage.vpc.internet(), FIRST_PUBLIC)?,
    ];
    let mut all = |when: &str| -> anyhow::Result<()> {
        for client in &mut clients {
            let outcome = client.check(&stage.machine);
            outcome.with_context(|| format!("{when}\n{}", stage.machine.describe()))?;
        }
        stage.works()
    };
    all("at first")?;
    stage.machine.run("nft delete table inet enid-20001")?;
    eventually(PATIENCE, "the marking is put back", &stage.machine, || {
        ensure!(is_marked(&stage)?, "it is not");
        Ok(())
    })?;
    all("after somebody deleted the table")?;
    stage.machine.run("systemctl restart enid")?;
    stage.comes_to_rest()?;
    all("after a restart")?;

    let is_cut_off = |when: &str| -> anyhow::Result<()> {
        eventually(PATIENCE, when, &stage.machine, || {
            ensure!(!is_marked(&stage)?, "the marking is left");
            Ok(())
        })?;
        let opened = Conversation::open(&stage.host, (SECOND, PUBLISHED).into(), &Bound::No);
        ensure!(opened.is_err(), "{when}: a port is reached that nobody marks");
        Ok(())
    };
    stage.machine.run(CONCEAL)?;
    is_cut_off("published ports are turned off")?;
    stage.works()?;
    stage.machine.run(PUBLISH)?;
    stage.comes_to_rest()?;
    all("after they were turned on again")?;
    stage.machine.run("enictl release ens6")?;
    is_cut_off("the ENI is released")?;
    stage.answers(FIRST_PUBLIC)
}

/// What the VPN's server gives access to.
const PRIVATE: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);

/// A tunnel to the host that takes every route, as VPN clients do that leave the default alone.
fn vpn_client() -> String {
    format!(
        "set -e
        ip link add vpn0 type vxlan id 7 local {FIRST} remote {HOST} dstport 4789
        ip addr add 10.99.0.2/24 dev vpn0
        ip link set vpn0 up
        ip route replace {HOST} via 10.0.1.1 dev ens5
        ip route add 0.0.0.0/1 via 10.99.0.1
        ip route add 128.0.0.0/1 via 10.99.0.1
        ip route add 192.168.77.0/24 via 10.99.0.1"
    )
}

fn vpn_server(host: &Netns) -> anyhow::Result<()> {
    host.ip_batch(&[
        format!("link add vpn0 type vxlan id 7 local {HOST} remote {FIRST} dstport 4789"),
        "addr add 10.99.0.1/24 dev vpn0".to_owned(),
        "link set vpn0 up".to_owned(),
        format!("addr add {PRIVATE}/32 dev lo"),
    ])
}

fn vpn(image: &Image) -> anyhow::Result<()> {
    let stage = Stage::boot(image, &networkd("Name=ens5")?)?;
    vpn_server(&stage.host)?;
    stage.machine.run(&vpn_client())?;
    ensure!(stage.answers(FIRST_PUBLIC).is_err(), "replies find their way without enid");
    stage.machine.run("ip link del vpn0")?;
    assign(&stage)?;
    stage.install()?;
    stage.machine.plug(&stage.vpc, &stage.second)?;
    stage.comes_to_rest()?;
    all_work(&stage)?;

    let watch = Watch::all(&stage)?;
    stage.machine.run(&vpn_client())?;
    let leaves_by = |to: &str, device: &str| -> anyhow::Result<()> {
        let route = stage.machine.run(&format!("ip route get {to}"))?;
        ensure!(route.contains(&format!("dev {device} ")), "not by {device}: {route}");
        Ok(())
    };
    for to in [format!("{PRIVATE}"), "198.51.100.1".to_owned(), "1.1.1.1".to_owned()] {
        leaves_by(&to, "vpn0")?;
    }
    for (source, link) in
        [(FIRST, "ens5"), (SECONDARIES[0], "ens5"), (SECOND, "ens6"), (SECONDARIES[1], "ens6")]
    {
        leaves_by(&format!("{PRIVATE} from {source}"), "vpn0")?;
        leaves_by(&format!("198.51.100.1 from {source}"), link)?;
    }
    stage.machine.run(&format!("ping -c 3 -i 0.2 -W 5 {PRIVATE}"))?;
    all_work(&stage)?;
    // Metadata is heard of while the VPN has every route.
    let late = Ipv4Addr::new(10, 0, 2, 78);
    stage.vpc.assign(&stage.second, late, None)?;
    eventually(PATIENCE, "a new address works", &stage.machine, || stage.answers(late))?;
    stage.comes_to_rest()?;
    stage.machine.run("ip link del vpn0")?;
    all_work(&stage)?;
    watch.end(&stage, "a VPN comes and goes")?.nothing(&stage)
}

fn borrowed_adapter(image: &Image) -> anyhow::Result<()> {
    let stage = Stage::boot(image, &networkd("Name=ens5")?)?;
    assign(&stage)?;
    stage.install()?;
    stage.machine.plug(&stage.vpc, &stage.second)?;
    stage.comes_to_rest()?;
    all_work(&stage)?;

    ensure!(nothing_left(&stage)().is_err(), "nothing speaks of an ENI that works");
    let watch = Watch::first(&stage)?;
    for back in ["ip -n box link set ens6 netns 1", "ip netns del box"] {
        let asked = Instant::now();
        stage.machine.run("ip netns add box && ip link set ens6 netns box")?;
        eventually(
            PATIENCE,
            "its rules and routes are gone",
            &stage.machine,
            nothing_left(&stage),
        )?;
        figure("from the command to nothing left of a borrowed ENI", asked.elapsed());
        stage.machine.run(
            "ip -n box addr add 10.0.2.4/24 dev ens6
            ip -n box link set ens6 up
            ip -n box route add default via 10.0.2.1",
        )?;
        eventually(PATIENCE, "the container uses the ENI", &stage.machine, || {
            stage.answers(SECOND_PUBLIC)?;
            stage.answers(FIRST_PUBLIC)
        })?;
        stage.machine.run("ip -n box link set ens6 down")?;
        eventually(PATIENCE, "the container has stopped", &stage.machine, || {
            ensure!(stage.answers(SECOND_PUBLIC).is_err(), "it answers");
            Ok(())
        })?;
        let pinger = stage.ping(SECOND_PUBLIC)?;
        let asked = Instant::now();
        stage.machine.run(back)?;
        let what = format!("from `{back}` to the first answer");
        figure(&what, stage.until_first_answer(&pinger, asked)?);
        stage.comes_to_rest()?;
        all_work(&stage)?;
        stage.machine.run("ip link show ens6")?;
        stage.machine.output("ip netns del box")?;
    }
    watch.end(&stage, "a container borrows an ENI twice")?.nothing(&stage)
}

/// No rule and no route speaks of the second ENI.
fn nothing_left(stage: &Stage) -> impl FnMut() -> anyhow::Result<()> {
    || {
        let left = stage.machine.run("ip rule; ip route show table all")?;
        ensure!(!left.contains("ens6") && !left.contains("10.0.2."), "left: {left}");
        Ok(())
    }
}
