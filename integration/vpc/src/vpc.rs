//! The VPC: what can be made, attached and detached; each operation changes the fabric and the
//! model that the metadata service tells.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::ops::Deref;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use imds::{EniId, InstanceId, Model, Server};

use crate::dhcp::Dhcp;
use crate::dhcp_v6::DhcpV6;
use crate::lease::Terms;
use crate::networks::Networks;
use crate::ports::{End, Link, Plug, Ports};
use crate::router::Router;
use crate::{Config, EniSpec, MetadataWay, Netns, doorbell, fabric, lock};

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
    pub(crate) number: u32,
    pub(crate) config: Config,
    // Before the namespaces, so that they are dropped before them.
    metadata: Server,
    pub(crate) dhcp: Dhcp,
    pub(crate) dhcp_v6: DhcpV6,
    pub(crate) router: Router,
    pub(crate) model: Model,
    pub(crate) fabric: Netns,
    internet: Netns,
    peer: Option<Netns>,
    pub(crate) ports: Mutex<Ports>,
    pub(crate) networks: Mutex<Networks>,
}

static VPCS: AtomicU32 = AtomicU32::new(1);

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
        let peer = if config.peer.is_some() || config.peer_v6.is_some() {
            Some(Netns::create(&format!("v{number}-peer"), &[])?)
        } else {
            None
        };
        fabric.ip_batch(&fabric::base_lines(
            &config,
            internet.name(),
            peer.as_ref().map(Netns::name),
        ))?;
        fabric.nft(&fabric::base_ruleset())?;
        internet.ip_batch(&fabric::internet_lines())?;
        if let Some(peer) = &peer {
            peer.ip_batch(&fabric::peer_lines(&config))?;
        }
        internet.wait_up(&["eth0"])?;
        fabric.wait_up(if peer.is_some() { &["inet0", "peer0"] } else { &["inet0"] })?;
        if let Some(peer) = &peer {
            peer.wait_up(&["eth0"])?;
        }
        let listeners = fabric
            .within(|| {
                [config.metadata.into(), SocketAddr::from((fabric::METADATA_V6, 80))]
                    .into_iter()
                    .map(TcpListener::bind)
                    .collect::<Result<Vec<_>, _>>()
            })?
            .context("cannot listen on metadata's addresses")?;
        let model = Model::default();
        let metadata = Server::start(model.clone(), listeners, None)?;
        let terms = Terms { mtu: u16::try_from(config.mtu)?, lease: config.lease };
        let dhcp = Dhcp::start(&fabric, model.clone(), terms)?;
        let dhcp_v6 = DhcpV6::start(&fabric, model.clone(), config.lease_v6)?;
        let router = Router::start(&fabric, model.clone(), config.advertised)?;
        let (ports, networks) = (Mutex::default(), Mutex::new(config.networks.clone()));
        Ok(Vpc {
            number,
            config,
            metadata,
            dhcp,
            dhcp_v6,
            router,
            model,
            fabric,
            internet,
            peer,
            ports,
            networks,
        })
    }

    /// The metadata service, to make it fail and to see who asked.
    #[must_use]
    pub fn metadata(&self) -> &Server {
        &self.metadata
    }

    /// Whether metadata is served at [`crate::METADATA_V6`], too. Off at first, as on EC2: nothing
    /// is answered from there.
    ///
    /// # Errors
    /// When nft cannot be asked.
    pub fn set_metadata_v6(&self, served: bool) -> anyhow::Result<()> {
        self.fabric.nft(&fabric::metadata_v6(served))
    }

    /// What becomes of packets to metadata, of both families.
    ///
    /// # Errors
    /// When nft cannot be asked.
    pub fn set_metadata_way(&self, way: MetadataWay) -> anyhow::Result<()> {
        self.fabric.nft(&fabric::metadata_way(way))
    }

    /// The DHCP server, to see who asked and to make it fall silent.
    #[must_use]
    pub fn dhcp(&self) -> &Dhcp {
        &self.dhcp
    }

    /// The DHCPv6 server, to see who asked and to make it fall silent.
    #[must_use]
    pub fn dhcp_v6(&self) -> &DhcpV6 {
        &self.dhcp_v6
    }

    /// The IPv6 router, to make it advertise itself or fall silent.
    #[must_use]
    pub fn router(&self) -> &Router {
        &self.router
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

    /// The host in the peered network, and its IPv6 address.
    #[must_use]
    pub fn peer_v6(&self) -> Option<(&Netns, Ipv6Addr)> {
        self.peer.as_ref().zip(self.config.peer_v6.map(fabric::peer_host_v6))
    }

    /// Makes an instance whose primary ENI, `ens5`, is configured as DHCP does at boot.
    ///
    /// # Errors
    /// When the specification does not fit the VPC or the system refuses something.
    pub fn instance(&self, name: &str, primary: EniSpec) -> anyhow::Result<Instance> {
        let netns = Netns::create(&format!("v{}-{name}", self.number), &[])?;
        let mode = self.config.rp_filter.to_string();
        netns.sysctls(&[
            ("net.ipv4.conf.all.rp_filter", mode.as_str()),
            ("net.ipv4.conf.default.rp_filter", mode.as_str()),
        ])?;
        let (id, primary) = self.launch(primary)?;
        let instance = Instance { id, netns, primary };
        self.attach(&instance.primary, &instance, "ens5")?;
        self.boot(&instance)?;
        Ok(instance)
    }

    /// Enters an instance into the model, and its primary ENI, which is not attached yet.
    pub(crate) fn launch(&self, primary: EniSpec) -> anyhow::Result<(InstanceId, EniId)> {
        let number = {
            let mut ports = lock(&self.ports);
            ports.instances += 1;
            ports.instances
        };
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
        Ok((id, primary))
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
        let plug = |name: &str| {
            let link = Link { netns: to.netns.clone(), name: name.to_owned() };
            Plug { instance: to.id.clone(), end: End::Link(link) }
        };
        self.plug_in(&mut ports, enis.iter().map(|(id, name)| (*id, plug(name))).collect())?;
        let mut moves = Vec::new();
        for (id, name) in enis {
            let number = ports.get(id)?.number;
            moves.push(format!("link set e{number} netns {} name {name}", to.name()));
        }
        let announced = doorbell::next(&to.netns)?;
        let before = Instant::now();
        self.fabric.ip_batch(&moves)?;
        let after = Instant::now();
        let event = announced.recv().context("the kernel did not announce the link")?;
        Ok(Plugged { before, event, after })
    }

    /// Attaches an ENI of which the instance's kernel sees no link: an EFA-only one, or one whose
    /// driver does not work. Metadata knows it.
    ///
    /// # Errors
    /// When it is attached already.
    pub fn attach_without_link(&self, eni: &EniId, to: &Instance) -> anyhow::Result<()> {
        let plug = Plug { instance: to.id.clone(), end: End::Nothing };
        self.plug_in(&mut lock(&self.ports), vec![(eni, plug)])
    }

    /// Makes the ports of some ENIs; metadata knows the ENIs then.
    pub(crate) fn plug_in(
        &self,
        ports: &mut Ports,
        plugs: Vec<(&EniId, Plug)>,
    ) -> anyhow::Result<()> {
        let mut lines = Vec::new();
        let mut delays = Vec::new();
        for (id, plug) in &plugs {
            let eni = self.eni(id)?;
            let port = ports.get(id)?;
            ensure!(port.plugged.is_none(), "{id} is attached already");
            lines.extend(match plug.end {
                End::Nothing => continue,
                End::Link(_) | End::Tap if port.efa_only => bail!("{id} cannot have a link"),
                End::Link(_) => fabric::veth_lines(port.number, eni.mac, self.config.mtu),
                End::Tap => fabric::tap_lines(port.number, self.config.mtu),
            });
            lines.extend(fabric::port_lines(port.number, &eni));
            delays.push(fabric::port_sysctl(port.number));
        }
        self.fabric.ip_batch(&lines)?;
        let delays: Vec<_> = delays.iter().map(|name: &String| (name.as_str(), "0")).collect();
        self.fabric.sysctls(&delays)?;
        for (id, plug) in plugs {
            let port = ports.get_mut(id)?;
            self.model.update(|state| enter(state, id, &plug.instance, port.device))?;
            port.plugged = Some(plug);
        }
        Ok(())
    }

    /// Detaches an ENI: its link vanishes from the instance, or its tap from the fabric; then
    /// metadata forgets it.
    ///
    /// # Errors
    /// When it is not attached.
    pub fn detach(&self, eni: &EniId) -> anyhow::Result<()> {
        let mut ports = lock(&self.ports);
        let port = ports.get_mut(eni)?;
        let plug = port.plugged.take().with_context(|| format!("{eni} is not attached"))?;
        match plug.end {
            End::Link(_) | End::Tap => {
                self.fabric.ip_batch(&[format!("link del {}", port.name())])?;
            }
            End::Nothing => {}
        }
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
    /// When it is not attached, or to a guest, whose emulator holds the cable.
    pub fn set_carrier(&self, id: &EniId, carrier: bool) -> anyhow::Result<()> {
        let link = self.link(id)?;
        let ports = lock(&self.ports);
        let number = ports.get(id)?.number;
        if carrier {
            // Neighbours, routes and addresses went with it.
            let lines = fabric::port_lines(number, &self.eni(id)?);
            let lines: Vec<String> =
                lines.iter().map(|line| line.replace(" add ", " replace ")).collect();
            self.fabric.ip_batch(&lines)?;
        } else {
            self.fabric.ip_batch(&[format!("link set p{number} down")])?;
        }
        link.netns.wait_operstate(&[&link.name], if carrier { "UP" } else { "DOWN" })
    }

    /// The name under which an ENI was attached.
    ///
    /// # Errors
    /// When it is not attached to an instance with a namespace.
    pub fn name_of(&self, eni: &EniId) -> anyhow::Result<String> {
        Ok(self.link(eni)?.name)
    }

    /// The link in the fabric's namespace that an ENI is behind.
    ///
    /// # Errors
    /// When there is no such ENI.
    pub fn port_of(&self, eni: &EniId) -> anyhow::Result<String> {
        Ok(lock(&self.ports).get(eni)?.name())
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

    pub(crate) fn link(&self, eni: &EniId) -> anyhow::Result<Link> {
        let ports = lock(&self.ports);
        match ports.get(eni)?.plugged.as_ref().map(|plug| &plug.end) {
            Some(End::Link(link)) => Ok(link.clone()),
            Some(End::Tap) => bail!("{eni} is attached to a guest"),
            Some(End::Nothing) => bail!("{eni} is attached without a link"),
            None => bail!("{eni} is not attached"),
        }
    }
}

/// Enters an ENI into its instance.
fn enter(
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
