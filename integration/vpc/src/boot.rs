//! What happens inside an instance at boot: links are configured as DHCP clients do it, once.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use imds::EniId;

use crate::ports::Link;
use crate::{Instance, Vpc, fabric, lock};

impl Vpc {
    /// Configures the primary ENI for the families that it has.
    pub(crate) fn boot(&self, instance: &Instance) -> anyhow::Result<()> {
        let eni = self.eni(&instance.primary)?;
        // As images made for EC2 do; links that come later search for duplicates.
        instance.sysctl("net.ipv6.conf.ens5.accept_dad", "0")?;
        if !eni.ipv4.is_empty() || eni.link_local.is_some() {
            self.configure_as_dhcp(&eni.id)?;
        }
        if !eni.ipv6.is_empty() {
            self.configure_as_dhcp_v6(&eni.id)?;
            self.wait_for_router(instance)?;
        }
        Ok(())
    }

    /// The host would ask for routers, but not at once.
    fn wait_for_router(&self, instance: &Instance) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(2);
        let knows = || -> anyhow::Result<bool> {
            let default = instance.ip_json(&["-6", "route", "show", "default", "dev", "ens5"])?;
            Ok(default.as_array().is_some_and(|routes| !routes.is_empty()))
        };
        while self.router().speaks_at(&instance.primary) && !knows()? {
            anyhow::ensure!(Instant::now() < deadline, "{} hears no router", instance.name());
            self.router().advertise(&instance.primary)?;
        }
        Ok(())
    }

    /// Configures an attached ENI the way a DHCP client does, inside the instance: link up, MTU,
    /// primary address with the subnet's length and a lifetime, default route via base + 1; in a
    /// subnet without IPv4, a link-local address and a route to link-local services. Returns when packets can flow.
    ///
    /// # Errors
    /// When it is not attached to an instance with a namespace or has no IPv4 address.
    pub fn configure_as_dhcp(&self, id: &EniId) -> anyhow::Result<()> {
        let eni = self.eni(id)?;
        let Link { netns, name } = self.link(id)?;
        let port = lock(&self.ports).get(id)?.name();
        let metric = 512 + eni.device;
        let mut lines = vec![format!("link set {name} mtu {} up", self.config.mtu)];
        if let Some(address) = eni.link_local {
            lines.extend([
                format!("addr add {address}/32 dev {name} valid_lft 3600 preferred_lft 3600"),
                format!(
                    "route add {} dev {name} proto dhcp src {address} metric {metric}",
                    fabric::LINK_LOCAL_NET
                ),
            ]);
        } else {
            let (address, net) = eni
                .ipv4
                .first()
                .zip(eni.subnet_v4)
                .with_context(|| format!("{id} has no IPv4 address"))?;
            let length = net.prefix_len();
            lines.extend([
                format!(
                    "addr add {address}/{length} broadcast {} dev {name} valid_lft 3600 preferred_lft 3600",
                    net.broadcast()
                ),
                format!(
                    "route add default via {} dev {name} proto dhcp src {address} metric {metric}",
                    fabric::router(net)
                ),
            ]);
        }
        netns.ip_batch(&lines)?;
        netns.wait_up(&[&name])?;
        self.fabric.wait_up(&[&port])
    }

    /// Configures an attached ENI the way a DHCPv6 client does, inside the instance: link up, MTU,
    /// and the first IPv6 address as a /128 with its lifetimes. Nobody prolongs them; called again,
    /// it does. There is no search for duplicates. The default route is the router's business
    /// ([`crate::Router::advertise`]). Returns when packets can flow.
    ///
    /// # Errors
    /// When it is not attached to an instance with a namespace or has no IPv6 address.
    pub fn configure_as_dhcp_v6(&self, id: &EniId) -> anyhow::Result<()> {
        let eni = self.eni(id)?;
        let Link { netns, name } = self.link(id)?;
        let address = eni.ipv6.first().with_context(|| format!("{id} has no IPv6 address"))?;
        let port = lock(&self.ports).get(id)?.name();
        let lease = self.config.lease_v6;
        netns.ip_batch(&[format!("link set {name} mtu {} up", self.config.mtu)])?;
        netns.wait_up(&[&name])?;
        self.fabric.wait_up(&[&port])?;
        netns.ip_batch(&[format!(
            "addr replace {address}/128 dev {name} nodad valid_lft {} preferred_lft {}",
            lease.valid, lease.preferred
        )])?;
        netns.wait_local(*address)
    }
}
