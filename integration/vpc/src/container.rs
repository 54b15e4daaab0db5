//! Containers on an instance: namespaces behind a bridge, as container engines make them.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::{Instance, Netns};

impl Instance {
    /// Makes a bridge with an address (`172.17.0.1/16`) and lets the instance forward.
    ///
    /// # Errors
    /// When the system refuses it.
    pub fn bridge(&self, name: &str, address: Ipv4Net) -> anyhow::Result<()> {
        self.netns.sysctl("net.ipv4.ip_forward", "1")?;
        self.netns.ip_batch(&[
            format!("link add {name} type bridge"),
            format!("addr add {address} dev {name}"),
            format!("link set {name} up"),
        ])
    }

    /// Makes a container on a bridge: its `eth0` has an address of the bridge's network, its
    /// default route leads to the bridge, and `NAME` is its link in the instance.
    ///
    /// # Errors
    /// When the system refuses it.
    pub fn container(
        &self,
        name: &str,
        bridge: &str,
        network: Ipv4Net,
        address: Ipv4Addr,
    ) -> anyhow::Result<Netns> {
        let container = self.pod(name)?;
        self.netns.ip_batch(&[format!("link set {name} master {bridge} up")])?;
        container.ip_batch(&[
            format!("addr add {address}/{} dev eth0", network.prefix_len()),
            "link set eth0 up".to_owned(),
            format!("route add default via {}", network.addr()),
        ])?;
        container.wait_up(&["eth0"])?;
        self.netns.wait_up(&[name, bridge])?;
        Ok(container)
    }

    /// Makes a namespace whose `eth0` is connected with a link `NAME` of the instance; both are
    /// down and without addresses.
    ///
    /// # Errors
    /// When the system refuses it.
    pub fn pod(&self, name: &str) -> anyhow::Result<Netns> {
        let pod = Netns::create(&format!("{}-{name}", self.netns.name()), &[])?;
        self.netns.ip_batch(&[format!(
            "link add {name} type veth peer name eth0 netns {}",
            pod.name()
        )])?;
        Ok(pod)
    }
}
