//! What clients get from the VPC's DHCP: one that everybody uses, and one that says what it likes.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use dhcproto::v4::{DhcpOption, Message};
use dhcproto::{Decodable as _, Encodable as _};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
use nix::unistd::Pid;
use vpc::MessageType::{Ack, Discover, Nak, Offer, Request};
use vpc::{Bound, EniId, EniSpec, Instance, MessageType, Netns, Vpc, ping_once};

use crate::guests::until;
use crate::{A, B, Promise, config};

pub(crate) const PROMISES: &[(&str, Promise)] = &[
    ("dhcp::a_client_gets_the_primary_address_and_renews_it", a_client),
    ("dhcp::an_old_lease_is_confirmed_or_refused", an_old_lease),
    ("dhcp::who_has_an_address_asks_everybody_in_the_end", everybody),
    ("dhcp::it_falls_silent_for_one_eni_or_for_all", silence),
    ("dhcp::an_eni_without_ipv4_gets_no_answer", without_ipv4),
];

const ALL: Ipv4Addr = Ipv4Addr::BROADCAST;
const ROUTER_B: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);

/// An instance with a secondary ENI, `ens6`, that is up and has no address.
struct Stage {
    vpc: Vpc,
    instance: Instance,
    second: EniId,
}

impl Stage {
    fn build() -> anyhow::Result<Stage> {
        Stage::with(EniSpec::new([B, Ipv4Addr::new(10, 0, 2, 5)]))
    }

    fn with(second: EniSpec) -> anyhow::Result<Stage> {
        // Without an address there is no route to check a source against.
        let vpc = Vpc::new(config().lease(600).rp_filter(0))?;
        let instance = vpc.instance("a", EniSpec::new([A]))?;
        // The kernel would take its address for a source.
        instance.run(&["ip", "addr", "flush", "dev", "ens5"])?;
        let second = vpc.create_eni(second)?;
        vpc.attach(&second, &instance, "ens6")?;
        instance.run(&["ip", "link", "set", "ens6", "up"])?;
        // The first thing that is said would be lost before both ends carry packets.
        for (netns, link) in [(&instance.netns, "ens6"), (vpc.fabric(), "p2")] {
            let state = || Ok(netns.ip_json(&["link", "show", link])?[0]["operstate"] == "UP");
            until("the link carries packets", state)?;
        }
        Ok(Stage { vpc, instance, second })
    }

    fn client(&self) -> anyhow::Result<Client> {
        Client::open(&self.instance, "ens6", self.vpc.eni(&self.second)?.mac)
    }
}

/// A client that says what it is told to.
struct Client {
    socket: UdpSocket,
    mac: vpc::Mac,
}

impl Client {
    fn open(netns: &Netns, device: &str, mac: vpc::Mac) -> anyhow::Result<Client> {
        let socket = netns
            .within(|| -> anyhow::Result<UdpSocket> {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 68))?;
                socket.set_broadcast(true)?;
                socket.set_read_timeout(Some(Duration::from_millis(500)))?;
                setsockopt(&socket, BindToDevice, &device.into())?;
                Ok(socket)
            })?
            .context("cannot be a DHCP client")?;
        Ok(Client { socket, mac })
    }

    /// What is answered, if anything.
    fn ask(
        &self,
        to: Ipv4Addr,
        kind: MessageType,
        own: Ipv4Addr,
        wanted: Option<Ipv4Addr>,
    ) -> anyhow::Result<Option<Message>> {
        let nobody = Ipv4Addr::UNSPECIFIED;
        let mut asked = Message::new(own, nobody, nobody, nobody, &self.mac.0);
        asked.opts_mut().insert(DhcpOption::MessageType(kind));
        if let Some(wanted) = wanted {
            asked.opts_mut().insert(DhcpOption::RequestedIpAddress(wanted));
        }
        self.socket.send_to(&asked.to_vec()?, (to, 67))?;
        let mut bytes = [0; 1500];
        match self.socket.recv(&mut bytes) {
            Ok(length) => {
                let answer = Message::from_bytes(&bytes[..length])?;
                ensure!(answer.xid() == asked.xid(), "an answer to something else: {answer}");
                Ok(Some(answer))
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The kind of the answer and the address in it.
    fn told(
        &self,
        to: Ipv4Addr,
        kind: MessageType,
        own: Ipv4Addr,
        wanted: Option<Ipv4Addr>,
    ) -> anyhow::Result<Option<(MessageType, Ipv4Addr)>> {
        let answer = self.ask(to, kind, own, wanted)?;
        Ok(answer.and_then(|answer| Some((answer.opts().msg_type()?, answer.yiaddr()))))
    }
}

/// What udhcpc runs: it does what it was told and writes it down.
const SCRIPT: &str = r#"#!/bin/sh
case "$1" in
    bound | renew)
        ip link set "$interface" mtu "$mtu"
        ip addr replace "$ip/$mask" broadcast "$broadcast" dev "$interface"
        ip route replace default via "$router" dev "$interface" metric 1024
        ;;
esac
echo "$1 $ip/$mask $router $serverid $dns $mtu $broadcast $domain $lease" >> "$LOG"
"#;

fn a_client() -> anyhow::Result<()> {
    let Stage { vpc, instance, second } = Stage::build()?;
    let folder = PathBuf::from("/run").join(instance.name());
    std::fs::create_dir(&folder)?;
    let (script, log) = (folder.join("script"), folder.join("log"));
    std::fs::write(&script, SCRIPT)?;
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755))?;
    let mut udhcpc = Command::new("udhcpc");
    udhcpc.args(["-f", "-i", "ens6", "-O", "mtu", "-s"]).arg(&script).env("LOG", &log);
    udhcpc.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stderr(Stdio::null());
    let client = instance.spawn(udhcpc)?;
    let granted = "10.0.2.4/24 10.0.2.1 10.0.2.1 10.0.0.2 9001 10.0.2.255 ec2.internal 600";
    until("it got a lease", || Ok(read(&log).contains(&format!("bound {granted}"))))?;
    let address = instance.ip_json(&["addr", "show", "ens6"])?;
    ensure!(address[0]["mtu"] == 9001, "{address}");
    ensure!(ping_once(&instance, ROUTER_B.into(), &Bound::from(B))?, "it does not work");
    ensure!(vpc.dhcp().leases(&second) == 1, "{:?}", vpc.dhcp().exchanges(&second));

    // Sooner than it would by itself.
    kill(Pid::from_raw(i32::try_from(client.id())?), Signal::SIGUSR1)?;
    until("it renewed the lease", || Ok(read(&log).contains(&format!("renew {granted}"))))?;
    let mut exchanges: Vec<_> = vpc
        .dhcp()
        .exchanges(&second)
        .into_iter()
        .map(|one| (one.asked, one.to, one.answer))
        .collect();
    // On a busy machine it misses an answer and asks again.
    exchanges.dedup();
    let expected =
        [(Discover, ALL, Some(Offer)), (Request, ALL, Some(Ack)), (Request, ROUTER_B, Some(Ack))];
    ensure!(exchanges == expected, "{exchanges:?}");
    ensure!(vpc.dhcp().leases(&instance.primary) == 0, "the primary ENI has no client");
    ensure!(vpc.drops(&second)? == 0, "its packets were dropped");
    Ok(())
}

fn read(log: &Path) -> String {
    std::fs::read_to_string(log).unwrap_or_default()
}

fn an_old_lease() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let client = stage.client()?;
    let none = Ipv4Addr::UNSPECIFIED;
    let told = client.told(ALL, Request, none, Some(B))?;
    ensure!(told == Some((Ack, B)), "for the right address: {told:?}");
    // A secondary address is not leased, nor is one of another subnet.
    for wrong in [Ipv4Addr::new(10, 0, 2, 5), A] {
        let told = client.told(ALL, Request, none, Some(wrong))?;
        ensure!(told == Some((Nak, none)), "for {wrong}: {told:?}");
    }
    ensure!(stage.vpc.drops(&stage.second)? == 0, "its packets were dropped");
    Ok(())
}

fn everybody() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let client = stage.client()?;
    stage.instance.run(&["ip", "addr", "add", &format!("{B}/24"), "dev", "ens6"])?;
    let told = client.told(ALL, Request, B, None)?;
    ensure!(told == Some((Ack, B)), "{told:?}");
    let told = client.told(ROUTER_B, MessageType::Inform, B, None)?;
    ensure!(told == Some((Ack, Ipv4Addr::UNSPECIFIED)), "{told:?}");
    ensure!(client.told(ROUTER_B, MessageType::Release, B, None)?.is_none(), "release");
    Ok(())
}

fn silence() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let client = stage.client()?;
    let dhcp = stage.vpc.dhcp();
    let discover = || client.told(ALL, Discover, Ipv4Addr::UNSPECIFIED, None);
    dhcp.silence_at(&stage.instance.primary);
    ensure!(discover()? == Some((Offer, B)), "another ENI is silent");
    dhcp.silence_at(&stage.second);
    ensure!(discover()?.is_none(), "it speaks");
    dhcp.speak();
    ensure!(discover()? == Some((Offer, B)), "it does not speak again");
    dhcp.silence();
    ensure!(discover()?.is_none(), "it speaks to somebody");
    let answers: Vec<_> = dhcp.exchanges(&stage.second).iter().map(|one| one.answer).collect();
    ensure!(answers == [Some(Offer), None, Some(Offer), None], "{answers:?}");
    Ok(())
}

fn without_ipv4() -> anyhow::Result<()> {
    let six: std::net::Ipv6Addr = "2600:1f16:67f:f202::4".parse()?;
    let stage = Stage::with(EniSpec::new([six]))?;
    let told = stage.client()?.told(ALL, Discover, Ipv4Addr::UNSPECIFIED, None)?;
    ensure!(told.is_none(), "{told:?}");
    Ok(())
}
