//! What clients get from the VPC's DHCPv6: one that everybody uses, and one that says what it
//! likes.

use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use dhcproto::v6::{DhcpOption, DhcpOptions, IANA, Message, OptionCode};
use dhcproto::{Decodable as _, Encodable as _};
use nix::net::if_::if_nametoindex;
use vpc::MessageTypeV6::{Advertise, Release, Renew, Reply, Request, Solicit};
use vpc::{Bound, EniId, EniSpec, Instance, MessageTypeV6, Vpc, ping_once};

use crate::guests::until;
use crate::{A, Promise, config};

pub(crate) const PROMISES: &[(&str, Promise)] = &[
    ("dhcp_v6::a_client_gets_the_first_address_and_renews_it", a_client),
    ("dhcp_v6::a_lease_is_asked_for_and_given_back", by_hand),
    ("dhcp_v6::it_falls_silent_for_one_eni_or_for_all", silence),
    ("dhcp_v6::an_eni_without_ipv6_gets_no_answer", without_ipv6),
    ("dhcp_v6::the_helper_leaves_what_a_client_leaves", helper),
];

const FIRST: Ipv6Addr = Ipv6Addr::new(0x2600, 0x1f16, 0x67f, 0xf202, 0, 0, 0, 9);
const SECOND: Ipv6Addr = Ipv6Addr::new(0x2600, 0x1f16, 0x67f, 0xf202, 0, 0, 0, 4);

/// An instance with a secondary ENI, `ens6`, that is up and has no address.
struct Stage {
    vpc: Vpc,
    instance: Instance,
    second: EniId,
}

impl Stage {
    fn build(addresses: &[Ipv6Addr]) -> anyhow::Result<Stage> {
        Stage::with(addresses, (4, 9))
    }

    fn with(addresses: &[Ipv6Addr], (preferred, valid): (u32, u32)) -> anyhow::Result<Stage> {
        let vpc = Vpc::new(config().lease_v6(preferred, valid))?;
        let instance = vpc.instance("a", EniSpec::new([A]))?;
        let four = std::net::IpAddr::from([10, 0, 2, 4]);
        let six = addresses.iter().map(|address| (*address).into());
        let second = vpc.create_eni(EniSpec::new([four].into_iter().chain(six)))?;
        vpc.attach(&second, &instance, "ens6")?;
        instance.sysctl("net.ipv6.conf.ens6.accept_dad", "0")?;
        instance.run(&["ip", "link", "set", "ens6", "up"])?;
        until("the link has its own address", || {
            let link = ["ip", "-6", "-o", "addr", "show", "dev", "ens6", "scope", "link"];
            let text = instance.run(&link)?;
            Ok(text.contains("fe80::") && !text.contains("tentative"))
        })?;
        Ok(Stage { vpc, instance, second })
    }

    fn exchanges(&self) -> Vec<(MessageTypeV6, Option<MessageTypeV6>)> {
        let all = self.vpc.dhcp_v6().exchanges(&self.second);
        all.into_iter().map(|one| (one.asked, one.answer)).collect()
    }

    fn client(&self) -> anyhow::Result<Client> {
        let opened = self.instance.within(|| -> anyhow::Result<Client> {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 546))?;
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            Ok(Client { socket, link: if_nametoindex("ens6")? })
        })?;
        opened.context("cannot be a DHCPv6 client")
    }

    fn addresses(&self) -> anyhow::Result<String> {
        self.instance.run(&["ip", "-6", "-o", "addr", "show", "dev", "ens6", "scope", "global"])
    }
}

/// A client that says what it is told to.
struct Client {
    socket: UdpSocket,
    link: u32,
}

impl Client {
    fn ask(
        &self,
        kind: MessageTypeV6,
        server: Option<&DhcpOption>,
    ) -> anyhow::Result<Option<Message>> {
        let mut asked = Message::new(kind);
        let options = asked.opts_mut();
        options.insert(DhcpOption::ClientId(vec![0, 3, 0, 1, 2, 0, 0, 0, 0, 7]));
        options.insert(DhcpOption::IANA(IANA { id: 1, t1: 0, t2: 0, opts: DhcpOptions::new() }));
        if let Some(server) = server {
            options.insert(server.clone());
        }
        let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
        self.socket.send_to(&asked.to_vec()?, SocketAddrV6::new(all, 547, 0, self.link))?;
        let mut bytes = [0; 1500];
        match self.socket.recv(&mut bytes) {
            Ok(length) => {
                let answer = Message::from_bytes(&bytes[..length])?;
                ensure!(answer.xid() == asked.xid(), "an answer to something else");
                Ok(Some(answer))
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn told(&self, kind: MessageTypeV6) -> anyhow::Result<Option<MessageTypeV6>> {
        Ok(self.ask(kind, None)?.map(|answer| answer.msg_type()))
    }
}

/// What dhclient runs: it does what it was told.
const SCRIPT: &str = r#"#!/bin/sh
case "$reason" in
    BOUND6 | RENEW6 | REBIND6)
        ip addr replace "$new_ip6_address/$new_ip6_prefixlen" dev "$interface" nodad \
            valid_lft "$new_max_life" preferred_lft "$new_preferred_life"
        ;;
esac
"#;

fn a_client() -> anyhow::Result<()> {
    let stage = Stage::build(&[FIRST, SECOND])?;
    let folder = PathBuf::from("/run").join(stage.instance.name());
    std::fs::create_dir(&folder)?;
    let script = folder.join("script");
    std::fs::write(&script, SCRIPT)?;
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755))?;
    let mut dhclient = Command::new("dhclient");
    dhclient.args(["-6", "-d", "-cf", "/dev/null", "-sf"]).arg(&script);
    dhclient.arg("-lf").arg(folder.join("leases")).arg("-pf").arg(folder.join("pid"));
    dhclient.arg("ens6").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    dhclient.stdout(Stdio::null()).stderr(Stdio::null());
    let _client = stage.instance.spawn(dhclient)?;
    let leases = || stage.vpc.dhcp_v6().leases(&stage.second);
    until("it got a lease", || Ok(stage.addresses()?.contains(&format!("{FIRST}/"))))?;
    ensure!(!stage.addresses()?.contains(&SECOND.to_string()), "{}", stage.addresses()?);
    until("it renews the lease", || Ok(leases() > 1))?;
    // On a busy machine it misses an answer and asks again.
    let mut exchanges = stage.exchanges();
    exchanges.dedup();
    let expected = [(Solicit, Some(Advertise)), (Request, Some(Reply)), (Renew, Some(Reply))];
    ensure!(exchanges.starts_with(&expected), "{exchanges:?}");
    stage.vpc.dhcp_v6().silence();
    ensure!(stage.vpc.drops(&stage.second)? == 0, "its packets were dropped");
    Ok(())
}

fn by_hand() -> anyhow::Result<()> {
    let stage = Stage::build(&[FIRST, SECOND])?;
    let client = stage.client()?;
    let offer = client.ask(Solicit, None)?.context("no offer")?;
    let server = offer.opts().get(OptionCode::ServerId).context("a server without a name")?;
    for kind in [Request, Renew, Release] {
        let answer = client.ask(kind, Some(server))?.context("no answer")?;
        let leased = answer.opts().get(OptionCode::IANA).is_some();
        ensure!(answer.msg_type() == Reply && leased == (kind != Release), "{answer:?}");
    }
    ensure!(client.told(MessageTypeV6::Rebind)? == Some(Reply), "it does not rebind");
    ensure!(client.told(Request)?.is_none(), "a request to nobody is answered");
    ensure!(stage.vpc.dhcp_v6().leases(&stage.second) == 3, "{:?}", stage.exchanges());
    Ok(())
}

fn silence() -> anyhow::Result<()> {
    let stage = Stage::build(&[FIRST])?;
    let client = stage.client()?;
    let dhcp = stage.vpc.dhcp_v6();
    dhcp.silence_at(&stage.instance.primary);
    ensure!(client.told(Solicit)? == Some(Advertise), "another ENI is silent");
    dhcp.silence_at(&stage.second);
    ensure!(client.told(Solicit)?.is_none(), "it speaks");
    dhcp.speak();
    ensure!(client.told(Solicit)? == Some(Advertise), "it does not speak again");
    dhcp.silence();
    ensure!(client.told(Solicit)?.is_none(), "it speaks to somebody");
    let offer = Some(Advertise);
    let expected = [(Solicit, offer), (Solicit, None), (Solicit, offer), (Solicit, None)];
    ensure!(stage.exchanges() == expected, "{:?}", stage.exchanges());
    Ok(())
}

fn without_ipv6() -> anyhow::Result<()> {
    let stage = Stage::build(&[])?;
    let told = stage.client()?.told(Solicit)?;
    ensure!(told.is_none(), "{told:?}");
    Ok(())
}

fn helper() -> anyhow::Result<()> {
    let stage = Stage::with(&[FIRST, SECOND], (2, 4))?;
    stage.vpc.configure_as_dhcp_v6(&stage.second)?;
    let link = stage.instance.ip_json(&["addr", "show", "dev", "ens6"])?;
    let addresses = link[0]["addr_info"].as_array().cloned().unwrap_or_default();
    let found = addresses.iter().find(|one| one["local"] == FIRST.to_string().as_str());
    let found = found.with_context(|| format!("not there: {link}"))?;
    let lifetime = |key: &str| found[key].as_u64().unwrap_or_default();
    ensure!(found["prefixlen"] == 128 && found["dynamic"] == true, "{found}");
    ensure!((1..=2).contains(&lifetime("preferred_life_time")), "{found}");
    ensure!((3..=4).contains(&lifetime("valid_life_time")), "{found}");
    ensure!(found["protocol"].is_null(), "{found}");
    let other = stage.vpc.create_eni(EniSpec::new(["10.0.2.7".parse::<std::net::Ipv4Addr>()?]))?;
    ensure!(stage.vpc.configure_as_dhcp_v6(&other).is_err(), "nothing is attached");
    let from = Bound::Device("ens6".to_owned());
    let reached = || ping_once(&stage.instance, stage.vpc.internet_v6().into(), &from);
    until("it works with the internet", || {
        stage.vpc.router().advertise(&stage.second)?;
        reached()
    })?;
    until("the address goes", || Ok(!stage.addresses()?.contains(&FIRST.to_string())))
}
