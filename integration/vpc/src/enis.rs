//! How an ENI comes to be: as the model knows it, and its place in the fabric.

use std::net::IpAddr;

use anyhow::{Context as _, bail, ensure};
use imds::{Eni, EniId, Mac};

use crate::addresses::push_prefix;
use crate::networks::Subnet;
use crate::ports::Port;
use crate::{EniSpec, Vpc, fabric, lock};

/// The owner of everything in the model.
const OWNER: &str = "123456789012";

impl Vpc {
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
            let (device, efa_only) = (spec.device, spec.efa_only);
            let eni = self.eni_of(spec, number)?;
            fabric::eni_ruleset(number, &eni, &mut ruleset);
            made.push((eni, Port { number, device, efa_only, plugged: None }));
        }
        self.fabric.nft(&ruleset)?;
        for (eni, port) in &made {
            self.dhcp.listen_at(port.name(), eni.id.clone());
            self.dhcp_v6.listen_at(port.name(), eni.id.clone());
            self.router.listen_at(port.name(), eni.id.clone());
        }
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
        let networks = lock(&self.networks);
        let (name, subnet) = match first {
            Some(first) => {
                ensure!(!spec.efa_only, "an EFA-only ENI has no address");
                let (index, subnet) = networks.subnet_of(first)?;
                (format!("subnet-{:08x}{index:09x}", self.number), Some(subnet))
            }
            None if spec.efa_only => (String::new(), None),
            None => bail!("an ENI needs an address"),
        };
        let (v4, v6) = subnet.map_or((None, None), |subnet| (subnet.v4, subnet.v6));
        let link_local = match subnet {
            Some(Subnet { v4: None, .. }) => Some(fabric::link_local(number)?),
            Some(_) | None => None,
        };
        let [high, low] = u16::try_from(0xffff - number)?.to_be_bytes();
        let vpc = u8::try_from(self.number & 0xff)?;
        let mut eni = Eni {
            id: spec.id.unwrap_or_else(|| EniId(format!("eni-{:08x}{number:09x}", self.number))),
            mac: spec.mac.unwrap_or(Mac([0x0e, 0xee, vpc, 0, high, low])),
            device: spec.device.unwrap_or_default(),
            card: spec.card,
            owner: OWNER.to_owned(),
            subnet: name,
            vpc: format!("vpc-{:017x}", self.number),
            subnet_v4: v4,
            subnet_v6: v6.into_iter().collect(),
            vpc_v4: networks.cidrs_v4.clone(),
            vpc_v6: if v6.is_some() { networks.cidrs_v6.clone() } else { Vec::new() },
            link_local,
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
}
