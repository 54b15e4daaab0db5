//! The VPC: what can be made, attached, assigned and moved; each operation changes the fabric and
//! the model that the metadata service tells.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::ops::Deref;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use imds::{Eni, EniId, InstanceId, Mac, Model, Server};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, setsockopt,
    socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::fabric;
use crate::{Netns, lock};

/// What a VPC looks like before anything is in it.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) cidrs_v4: Vec<Ipv4Net>,
    pub(crate) cidrs_v6: Vec<Ipv6Net>,
    pub(crate) subnets: Vec<Subnet>,
    pub(crate) peer: Option<Ipv4Net>,
    rp_filter: u8,
    mtu: u32,
}

/// A subnet of one family or both.
#[derive(Clone, Debug)]
pub(crate) struct Subnet {
    pub(crate) v4: Option<Ipv4Net>,
    v6: Option<Ipv6Net>,
}

impl Default for Config {
    /// `10.0.0.0/16` and `2600:1f16:67f:f200::/56`, no subnets, loose reverse path filter.
    fn default() -> Config {
        Config {
            cidrs_v4: vec![Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 16)],
            cidrs_v6: vec![Ipv6Net::new_assert(
                Ipv6Addr::new(0x2600, 0x1f16, 0x67f, 0xf200, 0, 0, 0, 0),
                56,
            )],
            subnets: Vec::new(),
            peer: None,
            rp_filter: 2,
            mtu: 9001,
        }
    }
}

impl Config {
    /// Adds an IPv4-only subnet. The text is a CIDR.
    ///
    /// # Panics
    /// When it is not.
    #[must_use]
    pub fn subnet(mut self, v4: &str) -> Config {
        self.subnets.push(Subnet { v4: Some(cidr(v4)), v6: None });
        self
    }

    /// Adds a subnet with both families.
    ///
    /// # Panics
    /// When a text is not a CIDR.
    #[must_use]
    pub fn dual_subnet(mut self, v4: &str, v6: &str) -> Config {
        self.subnets.push(Subnet { v4: Some(cidr(v4)), v6: Some(cidr(v6)) });
        self
    }

    /// Adds an IPv6-only subnet.
    ///
    /// # Panics
    /// When the text is not a CIDR.
    #[must_use]
    pub fn subnet_v6(mut self, v6: &str) -> Config {
        self.subnets.push(Subnet { v4: None, v6: Some(cidr(v6)) });
        self
    }

    /// Adds a secondary CIDR.
    ///
    /// # Panics
    /// When the text is not a CIDR.
    #[must_use]
    pub fn cidr(mut self, v4: &str) -> Config {
        self.cidrs_v4.push(cidr(v4));
        self
    }

    /// Peers a network outside of the VPC; one host lives in it, at base + 10.
    ///
    /// # Panics
    /// When the text is not a CIDR.
    #[must_use]
    pub fn peer(mut self, v4: &str) -> Config {
        self.peer = Some(cidr(v4));
        self
    }

    /// Sets `rp_filter` in every instance: 0 off, 1 strict, 2 loose (as at first).
    #[must_use]
    pub fn rp_filter(mut self, mode: u8) -> Config {
        self.rp_filter = mode;
        self
    }

    /// Sets the MTU of links as DHCP hands it out; a link that was just attached has 1500.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Config {
        self.mtu = mtu;
        self
    }

    fn subnet_of(&self, address: IpAddr) -> anyhow::Result<&Subnet> {
        let holds = |subnet: &&Subnet| match address {
            IpAddr::V4(address) => subnet.v4.is_some_and(|net| net.contains(&address)),
            IpAddr::V6(address) => subnet.v6.is_some_and(|net| net.contains(&address)),
        };
        self.subnets.iter().find(holds).with_context(|| format!("no subnet holds {address}"))
    }
}

#[expect(clippy::panic, reason = "a scenario with a typing error cannot go on")]
fn cidr<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("not a CIDR of the wanted family: {text}"))
}

/// An ENI to be made; its subnet is the one that holds its first address.
#[derive(Clone, Debug, Default)]
pub struct EniSpec {
    ipv4: Vec<Ipv4Addr>,
    ipv6: Vec<Ipv6Addr>,
    prefixes: Vec<IpNet>,
    public: BTreeMap<Ipv4Addr, Ipv4Addr>,
    id: Option<EniId>,
    mac: Option<Mac>,
    device: Option<u32>,
    card: Option<u32>,
}

impl EniSpec {
    /// An ENI with these addresses; the first of a family is its primary one.
    #[must_use]
    pub fn new(addresses: impl IntoIterator<Item = impl Into<IpAddr>>) -> EniSpec {
        let mut spec = EniSpec::default();
        for address in addresses {
            match address.into() {
                IpAddr::V4(address) => spec.ipv4.push(address),
                IpAddr::V6(address) => spec.ipv6.push(address),
            }
        }
        spec
    }

    /// Maps a public address to one of the private ones.
    #[must_use]
    pub fn public(mut self, private: Ipv4Addr, public: Ipv4Addr) -> EniSpec {
        self.public.insert(private, public);
        self
    }

    /// Delegates a prefix from the start.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<IpNet>) -> EniSpec {
        self.prefixes.push(prefix.into());
        self
    }

    /// Sets the id; else one is made up.
    #[must_use]
    pub fn id(mut self, id: &str) -> EniSpec {
        self.id = Some(EniId(id.to_owned()));
        self
    }

    /// Sets the MAC; else one is made up, lower for each new ENI, so that the primary ENI is not
    /// the first that metadata lists.
    #[must_use]
    pub fn mac(mut self, mac: Mac) -> EniSpec {
        self.mac = Some(mac);
        self
    }

    /// Sets the device number; else attaching takes the lowest that is free on the card.
    #[must_use]
    pub fn device(mut self, device: u32) -> EniSpec {
        self.device = Some(device);
        self
    }

    /// Sets the network card; else metadata has no such key.
    #[must_use]
    pub fn card(mut self, card: u32) -> EniSpec {
        self.card = Some(card);
        self
    }
}

/// An instance, or a plain host in a subnet: a namespace whose primary ENI is configured.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Its id in the model.
    pub id: InstanceId,
    /// Where it lives; the instance dereferences to it.
    pub netns: Netns,
    /// The ENI with device number 0, named `ens5` in the namespace.
    pub primary: EniId,
}

impl Deref for Instance {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.netns
    }
}

/// When links were moved into an instance.
#[derive(Clone, Copy, Debug)]
pub struct Plugged {
    /// Before the kernel was asked.
    pub before: Instant,
    /// When the kernel announced the first link inside the instance; a daemon there heard of it at
    /// the same time. The move itself goes on for some milliseconds.
    pub event: Instant,
    /// After it was done.
    pub after: Instant,
}

/// A VPC. Dropping it removes everything.
pub struct Vpc {
    number: u32,
    config: Config,
    // Before the namespaces, so that it is dropped before them.
    metadata: Server,
    model: Model,
    fabric: Netns,
    internet: Netns,
    peer: Option<Netns>,
    ports: Mutex<Ports>,
}

#[derive(Default)]
struct Ports {
    by_eni: BTreeMap<EniId, Port>,
    instances: u32,
}

/// An ENI's place in the fabric; the number never changes.
struct Port {
    number: u32,
    device: Option<u32>,
    plugged: Option<Plug>,
}

#[derive(Clone)]
struct Plug {
    instance: InstanceId,
    netns: Netns,
    name: String,
}

static VPCS: AtomicU32 = AtomicU32::new(1);

/// The owner of everything in the model.
const OWNER: &str = "123456789012";

impl Vpc {
    /// Builds the fabric, the host on the internet and the metadata service.
    ///
    /// # Errors
    /// When the system refuses something; [`crate::enter`] comes first.
    pub fn new(config: Config) -> anyhow::Result<Vpc> {
        let number = VPCS.fetch_add(1, Ordering::Relaxed);
        let fabric = Netns::create(&format!("v{number}"), &[])?;
        fabric.sysctls(fabric::SYSCTLS)?;
        let internet = Netns::create(&format!("v{number}-internet"), &[])?;
        let peer = match config.peer {
            Some(_) => Some(Netns::create(&format!("v{number}-peer"), &[])?),
            None => None,
        };
        fabric.ip_batch(&fabric::base_lines(
            &config,
            internet.name(),
            peer.as_ref().map(Netns::name),
        ))?;
        fabric.nft(&fabric::base_ruleset())?;
        internet.ip_batch(&fabric::internet_lines())?;
        if let (Some(peer), Some(net)) = (&peer, config.peer) {
            peer.ip_batch(&fabric::peer_lines(net))?;
        }
        internet.wait_up(&["eth0"])?;
        fabric.wait_up(if peer.is_some() { &["inet0", "peer0"] } else { &["inet0"] })?;
        if let Some(peer) = &peer {
            peer.wait_up(&["eth0"])?;
        }
        let listeners = fabric
            .within(|| {
                [IpAddr::V4(fabric::METADATA_V4), IpAddr::V6(fabric::METADATA_V6)]
                    .into_iter()
                    .map(|address| TcpListener::bind(SocketAddr::new(address, 80)))
                    .collect::<Result<Vec<_>, _>>()
            })?
            .context("cannot listen on metadata's addresses")?;
        let model = Model::default();
        let metadata = Server::start(model.clone(), listeners, None)?;
        let ports = Mutex::default();
        Ok(Vpc { number, config, metadata, model, fabric, internet, peer, ports })
    }

    /// The metadata service, to make it fail and to see who asked.
    #[must_use]
    pub fn metadata(&self) -> &Server {
        &self.metadata
    }

    /// What the cloud knows. Changes made here reach metadata, not the fabric.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The fabric's own namespace.
    #[must_use]
    pub fn fabric(&self) -> &Netns {
        &self.fabric
    }

    /// The host on the internet.
    #[must_use]
    pub fn internet(&self) -> &Netns {
        &self.internet
    }

    /// The address of the host on the internet.
    #[must_use]
    pub fn internet_v4(&self) -> Ipv4Addr {
        fabric::INTERNET_V4
    }

    /// The IPv6 address of the host on the internet.
    #[must_use]
    pub fn internet_v6(&self) -> Ipv6Addr {
        fabric::INTERNET_V6
    }

    /// The host in the peered network, and its address.
    #[must_use]
    pub fn peer(&self) -> Option<(&Netns, Ipv4Addr)> {
        self.peer.as_ref().zip(self.config.peer.map(fabric::peer_host))
    }

    /// Makes an instance whose primary ENI, `ens5`, is configured as DHCP does at boot.
    ///
    /// # Errors
    /// When the specification does not fit the VPC or the system refuses something.
    pub fn instance(&self, name: &str, primary: EniSpec) -> anyhow::Result<Instance> {
        let number = {
            let mut ports = lock(&self.ports);
            ports.instances += 1;
            ports.instances
        };
        let netns = Netns::create(&format!("v{}-{name}", self.number), &[])?;
        let mode = self.config.rp_filter.to_string();
        netns.sysctls(&[
            ("net.ipv4.conf.all.rp_filter", mode.as_str()),
            ("net.ipv4.conf.default.rp_filter", mode.as_str()),
        ])?;
        let id = InstanceId(format!("i-{:08x}{number:09x}", self.number));
        let primary = self.create_eni(primary.device(0))?;
        self.model.update(|state| {
            let instance = imds::Instance {
                id: id.clone(),
                kind: "m7i.large".to_owned(),
                primary: Some(primary.clone()),
                enis: Vec::new(),
            };
            state.instances.insert(id.clone(), instance);
        });
        let instance = Instance { id, netns, primary };
        self.attach(&instance.primary, &instance, "ens5")?;
        self.configure_as_dhcp(&instance.primary)?;
        Ok(instance)
    }

    /// Makes an ENI that is attached nowhere yet.
    ///
    /// # Errors
    /// When the specification does not fit the VPC.
    pub fn create_eni(&self, spec: EniSpec) -> anyhow::Result<EniId> {
        let mut ids = self.create_enis(vec![spec])?;
        ids.pop().context("one ENI was asked for")
    }

    /// Makes many ENIs at once.
    ///
    /// # Errors
    /// When a specification does not fit the VPC.
    pub fn create_enis(&self, specs: Vec<EniSpec>) -> anyhow::Result<Vec<EniId>> {
        let mut ports = lock(&self.ports);
        let mut ruleset = String::new();
        let mut made = Vec::new();
        let first = u32::try_from(ports.by_eni.len())? + 1;
        for (number, spec) in (first..).zip(specs) {
            let device = spec.device;
            let eni = self.eni_of(spec, number)?;
            fabric::eni_ruleset(number, &eni, &mut ruleset);
            made.push((eni, Port { number, device, plugged: None }));
        }
        self.fabric.nft(&ruleset)?;
        let ids = made.iter().map(|(eni, _)| eni.id.clone()).collect();
        self.model.update(|state| {
            for (eni, port) in made {
                ports.by_eni.insert(eni.id.clone(), port);
                state.enis.insert(eni.id.clone(), eni);
            }
        });
        Ok(ids)
    }

    fn eni_of(&self, spec: EniSpec, number: u32) -> anyhow::Result<Eni> {
        let first = spec.ipv4.first().map(|a| IpAddr::V4(*a));
        let first = first.or_else(|| spec.ipv6.first().map(|a| IpAddr::V6(*a)));
        let subnet = self.config.subnet_of(first.context("an ENI needs an address")?)?;
        let [high, low] = u16::try_from(0xffff - number)?.to_be_bytes();
        let vpc = u8::try_from(self.number & 0xff)?;
        let index = self.config.subnets.iter().position(|other| std::ptr::eq(other, subnet));
        let index = index.unwrap_or_default();
        let mut eni = Eni {
            id: spec.id.unwrap_or_else(|| EniId(format!("eni-{:08x}{number:09x}", self.number))),
            mac: spec.mac.unwrap_or(Mac([0x0e, 0xee, vpc, 0, high, low])),
            device: spec.device.unwrap_or_default(),
            card: spec.card,
            owner: OWNER.to_owned(),
            subnet: format!("subnet-{:08x}{index:09x}", self.number),
            vpc: format!("vpc-{:017x}", self.number),
            subnet_v4: subnet.v4,
            subnet_v6: subnet.v6.into_iter().collect(),
            vpc_v4: self.config.cidrs_v4.clone(),
            vpc_v6: if subnet.v6.is_some() { self.config.cidrs_v6.clone() } else { Vec::new() },
            ipv4: spec.ipv4,
            ipv6: spec.ipv6,
            prefixes_v4: Vec::new(),
            prefixes_v6: Vec::new(),
            public: spec.public,
        };
        for prefix in spec.prefixes {
            push_prefix(&mut eni, prefix);
        }
        Ok(eni)
    }

    /// An ENI as the cloud knows it now.
    ///
    /// # Errors
    /// When there is none with this id.
    pub fn eni(&self, id: &EniId) -> anyhow::Result<Eni> {
        self.model
            .read(|state| state.enis.get(id).cloned())
            .with_context(|| format!("there is no {id}"))
    }

    /// Hot-attaches an ENI under a name; the link is left down, as the hypervisor does. Metadata
    /// knows before the link appears, unless it was told to be late ([`Server::hide`]).
    ///
    /// # Errors
    /// When it is attached already or the name is taken.
    pub fn attach(&self, eni: &EniId, to: &Instance, name: &str) -> anyhow::Result<Plugged> {
        self.attach_all(&[(eni, name)], to)
    }

    /// Hot-attaches many ENIs at once.
    ///
    /// # Errors
    /// When one is attached already or a name is taken.
    pub fn attach_all(&self, enis: &[(&EniId, &str)], to: &Instance) -> anyhow::Result<Plugged> {
        let mut ports = lock(&self.ports);
        let mut ready = Vec::new();
        let mut moves = Vec::new();
        let mut delays = Vec::new();
        for (id, name) in enis {
            let eni = self.eni(id)?;
            let port = ports.get(id)?;
            ensure!(port.plugged.is_none(), "{id} is attached already");
            ready.extend(fabric::port_lines(port.number, &eni, self.config.mtu));
            delays.extend(fabric::port_sysctls(port.number));
            moves.push(format!("link set e{} netns {} name {name}", port.number, to.name()));
        }
        self.fabric.ip_batch(&ready)?;
        let delays: Vec<_> = delays.iter().map(|name: &String| (name.as_str(), "0")).collect();
        self.fabric.sysctls(&delays)?;
        for (id, name) in enis {
            let port = ports.get_mut(id)?;
            let plug =
                Plug { instance: to.id.clone(), netns: to.netns.clone(), name: (*name).to_owned() };
            port.plugged = Some(plug);
            self.model.update(|state| plug_in(state, id, &to.id, port.device))?;
        }
        self.fabric.ip_batch(&self.proxies("add", &ports, enis.iter().map(|(id, _)| *id)))?;
        let announced = doorbell(&to.netns)?;
        let before = Instant::now();
        self.fabric.ip_batch(&moves)?;
        let after = Instant::now();
        let event = announced.recv().context("the kernel did not announce the link")?;
        Ok(Plugged { before, event, after })
    }

    /// Detaches an ENI: its link vanishes from the instance, then metadata forgets it.
    ///
    /// # Errors
    /// When it is not attached.
    pub fn detach(&self, eni: &EniId) -> anyhow::Result<()> {
        let mut ports = lock(&self.ports);
        let proxies = self.proxies("del", &ports, [eni].into_iter());
        let port = ports.get_mut(eni)?;
        let plug = port.plugged.take().with_context(|| format!("{eni} is not attached"))?;
        let mut lines = proxies;
        lines.push(format!("link del p{}", port.number));
        self.fabric.ip_batch(&lines)?;
        self.model.update(|state| {
            if let Some(instance) = state.instances.get_mut(&plug.instance) {
                instance.enis.retain(|id| id != eni);
            }
        });
        Ok(())
    }

    /// Pulls the cable of an attached ENI, or plugs it in again: its link has no carrier meanwhile.
    /// Returns when the instance's kernel has noticed.
    ///
    /// # Errors
    /// When it is not attached.
    pub fn set_carrier(&self, id: &EniId, carrier: bool) -> anyhow::Result<()> {
        let plug = self.plug(id)?;
        let ports = lock(&self.ports);
        let number = ports.get(id)?.number;
        if carrier {
            // Neighbours, routes and addresses went with it.
            let lines = fabric::port_lines(number, &self.eni(id)?, self.config.mtu);
            let mut lines: Vec<String> =
                lines.iter().skip(1).map(|line| line.replace(" add ", " replace ")).collect();
            lines.extend(self.proxies("replace", &ports, [id].into_iter()));
            self.fabric.ip_batch(&lines)?;
        } else {
            self.fabric.ip_batch(&[format!("link set p{number} down")])?;
        }
        plug.netns.wait_operstate(&[&plug.name], if carrier { "UP" } else { "DOWN" })
    }

    /// Configures an attached ENI the way a DHCP client does, inside the instance: link up, MTU,
    /// primary address with the subnet's length and a lifetime, default route via base + 1.
    /// Returns when packets can flow.
    ///
    /// # Errors
    /// When it is not attached or has no IPv4 address.
    pub fn configure_as_dhcp(&self, id: &EniId) -> anyhow::Result<()> {
        let eni = self.eni(id)?;
        let plug = self.plug(id)?;
        let (address, net) = eni
            .ipv4
            .first()
            .zip(eni.subnet_v4)
            .with_context(|| format!("{id} has no IPv4 address"))?;
        let (name, length) = (plug.name, net.prefix_len());
        let port = format!("p{}", lock(&self.ports).get(id)?.number);
        plug.netns.ip_batch(&[
            format!("link set {name} mtu {} up", self.config.mtu),
            format!(
                "addr add {address}/{length} broadcast {} dev {name} valid_lft 3600 preferred_lft 3600",
                net.broadcast()
            ),
            format!(
                "route add default via {} dev {name} proto dhcp src {address} metric {}",
                fabric::router(net),
                512 + eni.device
            ),
        ])?;
        plug.netns.wait_up(&[&name])?;
        self.fabric.wait_up(&[&port])
    }

    /// The name under which an ENI was attached, and where.
    ///
    /// # Errors
    /// When it is not attached.
    pub fn name_of(&self, eni: &EniId) -> anyhow::Result<String> {
        Ok(self.plug(eni)?.name)
    }

    /// Assigns a secondary address, with a public one or without.
    ///
    /// # Errors
    /// When the address is not in the ENI's subnet or owned by an ENI already.
    pub fn assign(
        &self,
        eni: &EniId,
        address: impl Into<IpAddr>,
        public: Option<Ipv4Addr>,
    ) -> anyhow::Result<()> {
        self.assign_all(eni, &[address.into()])?;
        match (public, self.eni(eni)?.ipv4.last()) {
            (Some(public), Some(private)) => self.associate(eni, *private, public),
            _ => Ok(()),
        }
    }

    /// Assigns many secondary addresses at once.
    ///
    /// # Errors
    /// When an address is not in the ENI's subnet or owned by an ENI already.
    pub fn assign_all(&self, id: &EniId, addresses: &[IpAddr]) -> anyhow::Result<()> {
        let ports = lock(&self.ports);
        let eni = self.eni(id)?;
        for address in addresses {
            ensure!(in_subnet(&eni, *address), "{address} is not in the subnet of {id}");
            let owner = self.model.read(|state| {
                state.enis.values().find(|eni| eni.owns(*address)).map(|eni| eni.id.clone())
            });
            ensure!(owner.is_none(), "{address} belongs to {owner:?}");
        }
        let port = ports.get(id)?;
        let mut ruleset = String::new();
        fabric::elements("add", port.number, addresses, &mut ruleset);
        self.fabric.nft(&ruleset)?;
        if port.plugged.is_some() {
            let mut lines: Vec<String> = addresses
                .iter()
                .map(|address| fabric::route("add", *address, port.number))
                .collect();
            lines.extend(self.proxies_of("add", &ports, id, addresses));
            self.fabric.ip_batch(&lines)?;
        }
        self.change(id, |eni| addresses.iter().for_each(|address| push_address(eni, *address)));
        Ok(())
    }

    /// Takes an address away, and its public one with it.
    ///
    /// # Errors
    /// When the ENI does not have it.
    pub fn unassign(&self, id: &EniId, address: impl Into<IpAddr>) -> anyhow::Result<()> {
        let address = address.into();
        let ports = lock(&self.ports);
        let eni = self.eni(id)?;
        ensure!(has_address(&eni, address), "{id} does not have {address}");
        let port = ports.get(id)?;
        let mut ruleset = String::new();
        fabric::elements("delete", port.number, &[address], &mut ruleset);
        fabric::public_elements("delete", &public_of(&eni, address), &mut ruleset);
        // Metadata may lag behind the fabric, never the other way round.
        self.fabric.nft(&ruleset)?;
        if port.plugged.is_some() {
            let mut lines = vec![fabric::route("del", address, port.number)];
            lines.extend(self.proxies_of("del", &ports, id, &[address]));
            self.fabric.ip_batch(&lines)?;
        }
        self.change(id, |eni| remove_address(eni, address));
        Ok(())
    }

    /// Moves an address to another ENI of the subnet, of any instance; a public one goes along.
    ///
    /// # Errors
    /// When the one does not have it or the other cannot.
    pub fn move_address(
        &self,
        address: impl Into<IpAddr>,
        from: &EniId,
        to: &EniId,
    ) -> anyhow::Result<()> {
        let address = address.into();
        let ports = lock(&self.ports);
        ensure!(has_address(&self.eni(from)?, address), "{from} does not have {address}");
        ensure!(in_subnet(&self.eni(to)?, address), "{address} is not in the subnet of {to}");
        let (old, new) = (ports.get(from)?, ports.get(to)?);
        let mut ruleset = String::new();
        fabric::elements("delete", old.number, &[address], &mut ruleset);
        fabric::elements("add", new.number, &[address], &mut ruleset);
        self.fabric.nft(&ruleset)?;
        let mut lines = Vec::new();
        if old.plugged.is_some() {
            lines.extend(self.proxies_of("del", &ports, from, &[address]));
        }
        match (&old.plugged, &new.plugged) {
            (_, Some(_)) => lines.push(fabric::route("replace", address, new.number)),
            (Some(_), None) => lines.push(fabric::route("del", address, old.number)),
            (None, None) => {}
        }
        if new.plugged.is_some() {
            lines.extend(self.proxies_of("add", &ports, to, &[address]));
        }
        self.fabric.ip_batch(&lines)?;
        self.model.update(|state| {
            let public = state.enis.get_mut(from).map(|eni| {
                let public = public_of(eni, address);
                remove_address(eni, address);
                public
            });
            if let Some(eni) = state.enis.get_mut(to) {
                push_address(eni, address);
                eni.public.extend(public.unwrap_or_default());
            }
        });
        Ok(())
    }

    /// Delegates a prefix (/28 or /80) to an ENI.
    ///
    /// # Errors
    /// When the fabric refuses it.
    pub fn delegate(&self, id: &EniId, prefix: impl Into<IpNet>) -> anyhow::Result<()> {
        let prefix = prefix.into();
        self.prefix("add", "add", id, prefix)?;
        self.change(id, |eni| push_prefix(eni, prefix));
        Ok(())
    }

    /// Takes a delegated prefix back.
    ///
    /// # Errors
    /// When the ENI does not have it.
    pub fn undelegate(&self, id: &EniId, prefix: impl Into<IpNet>) -> anyhow::Result<()> {
        let prefix = prefix.into();
        self.prefix("delete", "del", id, prefix)?;
        self.change(id, |eni| {
            eni.prefixes_v4.retain(|other| IpNet::V4(*other) != prefix);
            eni.prefixes_v6.retain(|other| IpNet::V6(*other) != prefix);
        });
        Ok(())
    }

    fn prefix(&self, nft: &str, ip: &str, id: &EniId, prefix: IpNet) -> anyhow::Result<()> {
        let ports = lock(&self.ports);
        let port = ports.get(id)?;
        let mut ruleset = String::new();
        fabric::prefix_element(nft, port.number, prefix, &mut ruleset);
        self.fabric.nft(&ruleset)?;
        if port.plugged.is_some() {
            self.fabric.ip_batch(&[fabric::prefix_route(ip, prefix, port.number)])?;
        }
        Ok(())
    }

    /// Maps a public address to a private one of an ENI; where it was mapped before, it moves.
    ///
    /// # Errors
    /// When the ENI does not have the private address, or that one has a public address already.
    pub fn associate(&self, id: &EniId, private: Ipv4Addr, public: Ipv4Addr) -> anyhow::Result<()> {
        let _guard = lock(&self.ports);
        let eni = self.eni(id)?;
        ensure!(eni.ipv4.contains(&private), "{id} does not have {private}");
        if let Some(other) = eni.public.get(&private) {
            bail!("{private} has the public address {other} already");
        }
        let mut ruleset = String::new();
        let old = self.model.read(|state| {
            let mut all = state.enis.values().flat_map(|eni| &eni.public);
            all.find(|(_, other)| **other == public).map(|(old, _)| *old)
        });
        if let Some(old) = old {
            fabric::public_elements("delete", &[(old, public)].into(), &mut ruleset);
        }
        fabric::public_elements("add", &[(private, public)].into(), &mut ruleset);
        self.fabric.nft(&ruleset)?;
        self.model.update(|state| {
            for eni in state.enis.values_mut() {
                eni.public.retain(|_, other| *other != public);
            }
            if let Some(eni) = state.enis.get_mut(id) {
                eni.public.insert(private, public);
            }
        });
        Ok(())
    }

    /// Takes the public address of a private one away.
    ///
    /// # Errors
    /// When it has none.
    pub fn disassociate(&self, id: &EniId, private: Ipv4Addr) -> anyhow::Result<()> {
        let _guard = lock(&self.ports);
        let public = public_of(&self.eni(id)?, private.into());
        ensure!(!public.is_empty(), "{private} has no public address");
        let mut ruleset = String::new();
        fabric::public_elements("delete", &public, &mut ruleset);
        self.fabric.nft(&ruleset)?;
        self.change(id, |eni| eni.public.retain(|other, _| *other != private));
        Ok(())
    }

    /// How many packets with a foreign source the fabric dropped at this ENI, ever.
    ///
    /// # Errors
    /// When nft cannot be asked.
    pub fn drops(&self, eni: &EniId) -> anyhow::Result<u64> {
        let number = lock(&self.ports).get(eni)?.number;
        let counter = format!("drops_{number}");
        let text =
            self.fabric.run(&["nft", "-j", "list", "counter", "inet", "fabric", &counter])?;
        let answer: serde_json::Value = serde_json::from_str(&text)?;
        answer["nftables"]
            .as_array()
            .and_then(|list| list.iter().find_map(|item| item["counter"]["packets"].as_u64()))
            .with_context(|| format!("nft does not tell {counter}: {text}"))
    }

    fn plug(&self, eni: &EniId) -> anyhow::Result<Plug> {
        let ports = lock(&self.ports);
        ports.get(eni)?.plugged.clone().with_context(|| format!("{eni} is not attached"))
    }

    fn change(&self, id: &EniId, change: impl FnOnce(&mut Eni)) {
        self.model.update(|state| state.enis.get_mut(id).map(change));
    }

    /// Neighbour discovery for the IPv6 addresses of some ENIs on the ports of their siblings, and
    /// the other way round.
    fn proxies<'a>(
        &self,
        verb: &str,
        ports: &Ports,
        enis: impl Iterator<Item = &'a EniId> + Clone,
    ) -> Vec<String> {
        let mut lines = Vec::new();
        let all = self.model.read(|state| state.enis.clone());
        let new: Vec<&EniId> = enis.collect();
        let plugged = || ports.by_eni.iter().filter(|(_, port)| port.plugged.is_some());
        for (id, _) in plugged() {
            let Some(eni) = all.get(id) else { continue };
            for (other, other_port) in plugged() {
                // One of the two is new, and each pair of ports appears in both orders.
                let concerned = new.contains(&id) || new.contains(&other);
                if other == id || !concerned {
                    continue;
                }
                if all.get(other).is_some_and(|other| other.subnet == eni.subnet) {
                    let number = other_port.number;
                    lines.extend(eni.ipv6.iter().map(|a| fabric::proxy(verb, *a, number)));
                }
            }
        }
        lines
    }

    /// The same for single addresses of one ENI.
    fn proxies_of(
        &self,
        verb: &str,
        ports: &Ports,
        id: &EniId,
        addresses: &[IpAddr],
    ) -> Vec<String> {
        let subnet = |id: &EniId| self.eni(id).map(|eni| eni.subnet).ok();
        let own = subnet(id);
        let mut lines = Vec::new();
        for (other, port) in &ports.by_eni {
            if other == id || port.plugged.is_none() || subnet(other) != own {
                continue;
            }
            for address in addresses {
                if let IpAddr::V6(address) = address {
                    lines.push(fabric::proxy(verb, *address, port.number));
                }
            }
        }
        lines
    }
}

/// Tells when the next link event happens in a namespace. The event is not read: looking at the
/// kernel is the work of `ip`.
fn doorbell(netns: &Netns) -> anyhow::Result<mpsc::Receiver<Instant>> {
    const LINK_EVENTS: u32 = 1;
    let socket = netns
        .within(|| {
            let socket = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkRoute,
            )?;
            nix::sys::socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, LINK_EVENTS))?;
            setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(5))?;
            nix::Result::Ok(socket)
        })?
        .context("cannot listen for link events")?;
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        if recv(socket.as_raw_fd(), &mut [0; 8], MsgFlags::empty()).is_ok() {
            // Nobody waits any more where the move has failed.
            let _ = tell.send(Instant::now());
        }
    });
    Ok(told)
}

impl Ports {
    fn get(&self, eni: &EniId) -> anyhow::Result<&Port> {
        self.by_eni.get(eni).with_context(|| format!("there is no {eni}"))
    }

    fn get_mut(&mut self, eni: &EniId) -> anyhow::Result<&mut Port> {
        self.by_eni.get_mut(eni).with_context(|| format!("there is no {eni}"))
    }
}

fn plug_in(
    state: &mut imds::State,
    id: &EniId,
    instance: &InstanceId,
    device: Option<u32>,
) -> anyhow::Result<()> {
    let card = state.enis.get(id).and_then(|eni| eni.card);
    let found = state.instances.get(instance).with_context(|| format!("there is no {instance}"))?;
    let taken: Vec<u32> = state
        .attached(found)
        .filter(|other| other.card.unwrap_or_default() == card.unwrap_or_default())
        .map(|other| other.device)
        .collect();
    let free = (0..).find(|number| !taken.contains(number)).unwrap_or_default();
    if let Some(eni) = state.enis.get_mut(id) {
        eni.device = device.unwrap_or(free);
    }
    if let Some(instance) = state.instances.get_mut(instance) {
        instance.enis.push(id.clone());
    }
    Ok(())
}

fn in_subnet(eni: &Eni, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => eni.subnet_v4.is_some_and(|net| net.contains(&address)),
        IpAddr::V6(address) => eni.subnet_v6.iter().any(|net| net.contains(&address)),
    }
}

fn has_address(eni: &Eni, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => eni.ipv4.contains(&address),
        IpAddr::V6(address) => eni.ipv6.contains(&address),
    }
}

fn push_address(eni: &mut Eni, address: IpAddr) {
    match address {
        IpAddr::V4(address) => eni.ipv4.push(address),
        IpAddr::V6(address) => eni.ipv6.push(address),
    }
}

fn remove_address(eni: &mut Eni, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            eni.ipv4.retain(|other| *other != address);
            eni.public.remove(&address);
        }
        IpAddr::V6(address) => eni.ipv6.retain(|other| *other != address),
    }
}

fn push_prefix(eni: &mut Eni, prefix: IpNet) {
    match prefix {
        IpNet::V4(prefix) => eni.prefixes_v4.push(prefix),
        IpNet::V6(prefix) => eni.prefixes_v6.push(prefix),
    }
}

/// The public mapping of one address, if it has one.
fn public_of(eni: &Eni, address: IpAddr) -> BTreeMap<Ipv4Addr, Ipv4Addr> {
    match address {
        IpAddr::V4(address) => {
            eni.public.get(&address).map(|public| (address, *public)).into_iter().collect()
        }
        IpAddr::V6(_) => BTreeMap::new(),
    }
}
