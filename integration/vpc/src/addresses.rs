//! What changes at ENIs that are there: addresses, delegated prefixes and public addresses are
//! given, taken and moved, first in the fabric, then in the model.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{bail, ensure};
use imds::{Eni, EniId};
use ipnet::IpNet;

use crate::{Vpc, fabric, lock};

impl Vpc {
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
        if port.is_wired() {
            let route = |address: &IpAddr| fabric::route("add", *address, port.number);
            self.fabric.ip_batch(&addresses.iter().map(route).collect::<Vec<_>>())?;
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
        if port.is_wired() {
            self.fabric.ip_batch(&[fabric::route("del", address, port.number)])?;
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
        if new.is_wired() {
            self.fabric.ip_batch(&[fabric::route("replace", address, new.number)])?;
        } else if old.is_wired() {
            self.fabric.ip_batch(&[fabric::route("del", address, old.number)])?;
        }
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
        if port.is_wired() {
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

    fn change(&self, id: &EniId, change: impl FnOnce(&mut Eni)) {
        self.model.update(|state| state.enis.get_mut(id).map(change));
    }
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

pub(crate) fn push_prefix(eni: &mut Eni, prefix: IpNet) {
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
