//! The networks of a VPC: CIDRs and subnets, which come and go while everything runs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, ensure};
use imds::{Eni, EniId};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{Vpc, fabric, lock};

/// What a VPC has now.
#[derive(Clone, Debug)]
pub(crate) struct Networks {
    pub(crate) cidrs_v4: Vec<Ipv4Net>,
    pub(crate) cidrs_v6: Vec<Ipv6Net>,
    pub(crate) subnets: Vec<Subnet>,
}

/// A subnet of one family or both.
#[derive(Clone, Debug)]
pub(crate) struct Subnet {
    pub(crate) v4: Option<Ipv4Net>,
    pub(crate) v6: Option<Ipv6Net>,
}

impl Default for Networks {
    fn default() -> Networks {
        let v6 = Ipv6Addr::new(0x2600, 0x1f16, 0x67f, 0xf200, 0, 0, 0, 0);
        Networks {
            cidrs_v4: vec![Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 16)],
            cidrs_v6: vec![Ipv6Net::new_assert(v6, 56)],
            subnets: Vec::new(),
        }
    }
}

impl Networks {
    /// The subnet that holds an address, and its number, which never changes.
    pub(crate) fn subnet_of(&self, address: IpAddr) -> anyhow::Result<(usize, &Subnet)> {
        let holds = |(_, subnet): &(usize, &Subnet)| match address {
            IpAddr::V4(address) => subnet.v4.is_some_and(|net| net.contains(&address)),
            IpAddr::V6(address) => subnet.v6.is_some_and(|net| net.contains(&address)),
        };
        let mut all = self.subnets.iter().enumerate();
        all.find(holds).with_context(|| format!("no subnet holds {address}"))
    }

    fn has(&self, cidr: IpNet) -> bool {
        match cidr {
            IpNet::V4(cidr) => self.cidrs_v4.contains(&cidr),
            IpNet::V6(cidr) => self.cidrs_v6.contains(&cidr),
        }
    }
}

impl Vpc {
    /// Adds a secondary CIDR: it is routed, and metadata tells of it at every ENI.
    ///
    /// # Errors
    /// When the VPC has it already.
    pub fn add_cidr(&self, cidr: impl Into<IpNet>) -> anyhow::Result<()> {
        let cidr = cidr.into();
        let mut networks = lock(&self.networks);
        ensure!(!networks.has(cidr), "{cidr} is there already");
        self.fabric.ip_batch(&[fabric::cidr_route("add", cidr)])?;
        match cidr {
            IpNet::V4(cidr) => networks.cidrs_v4.push(cidr),
            IpNet::V6(cidr) => networks.cidrs_v6.push(cidr),
        }
        self.tell_networks(&networks);
        Ok(())
    }

    /// Takes a secondary CIDR away; its subnets stay, for the case that it comes back.
    ///
    /// # Errors
    /// When the VPC does not have it, or an ENI in one of its subnets is attached.
    pub fn remove_cidr(&self, cidr: impl Into<IpNet>) -> anyhow::Result<()> {
        let cidr = cidr.into();
        let ports = lock(&self.ports);
        let mut networks = lock(&self.networks);
        ensure!(networks.has(cidr), "there is no {cidr}");
        for (id, _) in ports.by_eni.iter().filter(|(_, port)| port.plugged.is_some()) {
            ensure!(!lies_in(&self.eni(id)?, cidr), "{id} lies in {cidr} and is attached");
        }
        self.fabric.ip_batch(&[fabric::cidr_route("del", cidr)])?;
        networks.cidrs_v4.retain(|other| IpNet::V4(*other) != cidr);
        networks.cidrs_v6.retain(|other| IpNet::V6(*other) != cidr);
        self.tell_networks(&networks);
        Ok(())
    }

    /// Adds a subnet of one family or both.
    ///
    /// # Errors
    /// When the fabric refuses its router's address.
    pub fn add_subnet(&self, v4: Option<Ipv4Net>, v6: Option<Ipv6Net>) -> anyhow::Result<()> {
        let mut networks = lock(&self.networks);
        let subnet = Subnet { v4, v6 };
        self.fabric.ip_batch(&fabric::subnet_lines(&subnet))?;
        networks.subnets.push(subnet);
        Ok(())
    }

    /// Gives IPv6 to the subnet of an ENI that has none so far: metadata tells of it at every ENI
    /// there. Addresses are assigned as usual.
    ///
    /// # Errors
    /// When the subnet has IPv6 already.
    pub fn give_ipv6(&self, id: &EniId, v6: Ipv6Net) -> anyhow::Result<()> {
        let given = self.eni(id)?;
        let mut networks = lock(&self.networks);
        let all = &mut networks.subnets;
        let subnet = all.iter_mut().find(|subnet| subnet.v4 == given.subnet_v4);
        let subnet = subnet.with_context(|| format!("{id} lies in no subnet"))?;
        ensure!(subnet.v6.is_none(), "the subnet of {id} has IPv6 already");
        subnet.v6 = Some(v6);
        self.model.update(|state| {
            for eni in state.enis.values_mut().filter(|eni| eni.subnet == given.subnet) {
                eni.subnet_v6 = vec![v6];
                eni.vpc_v6.clone_from(&networks.cidrs_v6);
            }
        });
        Ok(())
    }

    fn tell_networks(&self, networks: &Networks) {
        self.model.update(|state| {
            for eni in state.enis.values_mut() {
                eni.vpc_v4.clone_from(&networks.cidrs_v4);
                if !eni.subnet_v6.is_empty() {
                    eni.vpc_v6.clone_from(&networks.cidrs_v6);
                }
            }
        });
    }
}

fn lies_in(eni: &Eni, cidr: IpNet) -> bool {
    let v6 = eni.subnet_v6.iter().map(|net| IpNet::V6(*net));
    let mut all = eni.subnet_v4.into_iter().map(IpNet::V4).chain(v6);
    all.any(|net| cidr.contains(&net))
}
