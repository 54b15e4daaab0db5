//! What a scenario asks for: the VPC's networks, and ENIs that are to be made.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};

use imds::{EniId, Mac};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::fabric::METADATA_V4;
use crate::ndp::Advertised;
use crate::networks::{Networks, Subnet};

/// What a VPC looks like before anything is in it.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) networks: Networks,
    pub(crate) peer: Option<Ipv4Net>,
    pub(crate) rp_filter: u8,
    pub(crate) mtu: u32,
    pub(crate) lease: u32,
    pub(crate) metadata: SocketAddrV4,
    pub(crate) lease_v6: Lifetimes,
    pub(crate) advertised: Advertised,
    pub(crate) peer_v6: Option<Ipv6Net>,
}

/// For how long an IPv6 address is leased, in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lifetimes {
    pub(crate) preferred: u32,
    pub(crate) valid: u32,
}

impl Default for Config {
    /// `10.0.0.0/16` and `2600:1f16:67f:f200::/56`, no subnets, loose reverse path filter.
    fn default() -> Config {
        Config {
            networks: Networks::default(),
            peer: None,
            rp_filter: 2,
            mtu: 9001,
            lease: 3600,
            metadata: SocketAddrV4::new(METADATA_V4, 80),
            lease_v6: Lifetimes { preferred: 140, valid: 450 },
            advertised: Advertised { lifetime: 1800, on_link: true },
            peer_v6: None,
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
        self.networks.subnets.push(Subnet { v4: Some(cidr(v4)), v6: None });
        self
    }

    /// Adds a subnet with both families.
    ///
    /// # Panics
    /// When a text is not a CIDR.
    #[must_use]
    pub fn dual_subnet(mut self, v4: &str, v6: &str) -> Config {
        self.networks.subnets.push(Subnet { v4: Some(cidr(v4)), v6: Some(cidr(v6)) });
        self
    }

    /// Adds an IPv6-only subnet.
    ///
    /// # Panics
    /// When the text is not a CIDR.
    #[must_use]
    pub fn subnet_v6(mut self, v6: &str) -> Config {
        self.networks.subnets.push(Subnet { v4: None, v6: Some(cidr(v6)) });
        self
    }

    /// Adds a secondary CIDR.
    ///
    /// # Panics
    /// When the text is not a CIDR.
    #[must_use]
    pub fn cidr(mut self, v4: &str) -> Config {
        self.networks.cidrs_v4.push(cidr(v4));
        self
    }

    /// Adds a secondary IPv6 CIDR.
    ///
    /// # Panics
    /// When the text is not a CIDR.
    #[must_use]
    pub fn cidr_v6(mut self, v6: &str) -> Config {
        self.networks.cidrs_v6.push(cidr(v6));
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

    /// Peers an IPv6 network outside of the VPC; the same host lives in it, at base + 10.
    ///
    /// # Panics
    /// When the text is not a CIDR.
    #[must_use]
    pub fn peer_v6(mut self, v6: &str) -> Config {
        self.peer_v6 = Some(cidr(v6));
        self
    }

    /// Sets for how many seconds the IPv6 router advertises itself as a default router; half an
    /// hour at first.
    #[must_use]
    pub fn router_lifetime(mut self, seconds: u16) -> Config {
        self.advertised.lifetime = seconds;
        self
    }

    /// Sets whether the IPv6 router says that the subnet's prefix is on link, as it does at first.
    /// It never lets hosts make addresses of their own.
    #[must_use]
    pub fn on_link(mut self, on_link: bool) -> Config {
        self.advertised.on_link = on_link;
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

    /// Sets for how long DHCP leases addresses, in seconds; an hour at first.
    #[must_use]
    pub fn lease(mut self, seconds: u32) -> Config {
        self.lease = seconds;
        self
    }

    /// Sets for how long DHCPv6 leases addresses, in seconds: until they are deprecated, and until
    /// they go; 140 and 450 at first.
    #[must_use]
    pub fn lease_v6(mut self, preferred: u32, valid: u32) -> Config {
        self.lease_v6 = Lifetimes { preferred, valid };
        self
    }

    /// Sets where metadata is served over IPv4, as in other clouds: another port, or an address
    /// that is reached like those of the internet. [`crate::METADATA_V4`], port 80, at first.
    #[must_use]
    pub fn metadata_at(mut self, at: SocketAddrV4) -> Config {
        self.metadata = at;
        self
    }
}

#[expect(clippy::panic, reason = "a scenario with a typing error cannot go on")]
fn cidr<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("not a CIDR of the wanted family: {text}"))
}

/// An ENI to be made; its subnet is the one that holds its first address.
#[derive(Clone, Debug, Default)]
pub struct EniSpec {
    pub(crate) ipv4: Vec<Ipv4Addr>,
    pub(crate) ipv6: Vec<Ipv6Addr>,
    pub(crate) prefixes: Vec<IpNet>,
    pub(crate) public: BTreeMap<Ipv4Addr, Ipv4Addr>,
    pub(crate) id: Option<EniId>,
    pub(crate) mac: Option<Mac>,
    pub(crate) device: Option<u32>,
    pub(crate) card: Option<u32>,
    pub(crate) efa_only: bool,
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

    /// An EFA-only ENI: it has no address, and nothing of its subnet is told. There is no link, so
    /// it is attached with [`crate::Vpc::attach_without_link`].
    #[must_use]
    pub fn efa_only() -> EniSpec {
        EniSpec { efa_only: true, ..EniSpec::default() }
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
