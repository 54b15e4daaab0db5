//! What the cloud knows about instances and their ENIs: the one truth that the fabric changes and
//! the metadata service tells.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::lock;

/// An ENI's id: `eni-…`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EniId(pub String);

/// An instance's id: `i-…`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(pub String);

/// A link address, shown in lower case with colons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for EniId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = text
            .split(':')
            .map(|part| u8::from_str_radix(part, 16))
            .collect::<Result<Vec<u8>, _>>()?;
        let bytes =
            bytes.try_into().map_err(|_| anyhow::anyhow!("a MAC address has six parts: {text}"))?;
        Ok(Mac(bytes))
    }
}

/// An ENI, attached or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eni {
    /// IMDS: `interface-id`.
    pub id: EniId,
    /// IMDS: `mac`, and the name of the ENI's directory.
    pub mac: Mac,
    /// IMDS: `device-number`.
    pub device: u32,
    /// IMDS: `network-card`; `None` where the instance type has a single card: no such key.
    pub card: Option<u32>,
    /// IMDS: `owner-id`.
    pub owner: String,
    /// IMDS: `subnet-id`; empty for an EFA-only ENI, which has no such key.
    pub subnet: String,
    /// IMDS: `vpc-id`.
    pub vpc: String,
    /// IMDS: `subnet-ipv4-cidr-block`.
    pub subnet_v4: Option<Ipv4Net>,
    /// IMDS: `subnet-ipv6-cidr-blocks`.
    pub subnet_v6: Vec<Ipv6Net>,
    /// IMDS: `vpc-ipv4-cidr-blocks`; the first is also `vpc-ipv4-cidr-block`.
    pub vpc_v4: Vec<Ipv4Net>,
    /// IMDS: `vpc-ipv6-cidr-blocks`.
    pub vpc_v6: Vec<Ipv6Net>,
    /// IMDS: `local-ipv4s`; the first is the primary address.
    pub ipv4: Vec<Ipv4Addr>,
    /// What DHCPv4 leases where the subnet has no IPv4: an address that is good for link-local
    /// services such as metadata only. IMDS does not tell it.
    pub link_local: Option<Ipv4Addr>,
    /// IMDS: `ipv6s`.
    pub ipv6: Vec<Ipv6Addr>,
    /// IMDS: `ipv4-prefix`.
    pub prefixes_v4: Vec<Ipv4Net>,
    /// IMDS: `ipv6-prefix`.
    pub prefixes_v6: Vec<Ipv6Net>,
    /// Private to public address. IMDS: `public-ipv4s` and `ipv4-associations/`.
    pub public: BTreeMap<Ipv4Addr, Ipv4Addr>,
}

impl Eni {
    /// Whether a packet with this source may leave through the ENI.
    #[must_use]
    pub fn owns(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => {
                self.ipv4.contains(&v4)
                    || self.link_local == Some(v4)
                    || self.prefixes_v4.iter().any(|net| net.contains(&v4))
            }
            IpAddr::V6(v6) => {
                self.ipv6.contains(&v6) || self.prefixes_v6.iter().any(|net| net.contains(&v6))
            }
        }
    }
}

/// An instance and the ENIs that are attached to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// IMDS: `instance-id`.
    pub id: InstanceId,
    /// IMDS: `instance-type`.
    pub kind: String,
    /// The ENI whose MAC is the top-level `mac` key.
    pub primary: Option<EniId>,
    /// All attached ENIs, the primary included.
    pub enis: Vec<EniId>,
}

/// Everything the cloud knows at one moment.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// All ENIs, also those that are attached nowhere.
    pub enis: BTreeMap<EniId, Eni>,
    /// All instances.
    pub instances: BTreeMap<InstanceId, Instance>,
}

impl State {
    /// The ENIs attached to an instance.
    pub fn attached<'a>(&'a self, instance: &'a Instance) -> impl Iterator<Item = &'a Eni> {
        instance.enis.iter().filter_map(|id| self.enis.get(id))
    }

    /// The instance that has an ENI which owns this address.
    #[must_use]
    pub fn instance_at(&self, address: IpAddr) -> Option<&Instance> {
        self.instances
            .values()
            .find(|instance| self.attached(instance).any(|eni| eni.owns(address)))
    }
}

/// The shared model. Clones are the same model.
#[derive(Clone, Debug, Default)]
pub struct Model(Arc<Mutex<(u64, State)>>);

impl Model {
    /// Reads the state.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&lock(&self.0).1)
    }

    /// Changes the state; the next answer of the metadata service shows it.
    pub fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut guard = lock(&self.0);
        guard.0 += 1;
        change(&mut guard.1)
    }

    /// Counts the changes so far; equal numbers mean equal states.
    #[must_use]
    pub fn generation(&self) -> u64 {
        lock(&self.0).0
    }
}
