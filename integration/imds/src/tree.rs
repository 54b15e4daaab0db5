//! The metadata tree of one instance, as text: what the model looks like to who asks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use ipnet::Ipv6Net;

use crate::model::{Eni, Instance, State};

/// Keys under `meta-data/`, without slashes at either end, and their values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree(BTreeMap<String, String>);

impl Tree {
    /// Everything the cloud tells an instance when nothing is wrong; IPv6 networks with or without
    /// `::`.
    #[must_use]
    pub fn of(state: &State, instance: &Instance, compressed: bool) -> Tree {
        let mut tree = Tree::default();
        tree.put("instance-id", &instance.id);
        tree.put("instance-type", &instance.kind);
        tree.put("ami-id", "ami-0abcdef1234567890");
        tree.put("system", "nitro");
        tree.put("placement/region", "eu-central-1");
        tree.put("placement/availability-zone", "eu-central-1a");
        if let Some(eni) = instance.primary.as_ref().and_then(|id| state.enis.get(id)) {
            tree.put("mac", eni.mac);
            if let Some(first) = eni.ipv4.first() {
                tree.put("local-ipv4", first);
                if let Some(public) = eni.public.get(first) {
                    tree.put("public-ipv4", public);
                }
            }
            if let Some(first) = eni.ipv6.first() {
                tree.put("ipv6", first);
            }
            let name = local_hostname(eni);
            tree.put("hostname", &name);
            tree.put("local-hostname", &name);
        }
        for eni in state.attached(instance) {
            tree.put_eni(eni, compressed);
        }
        tree
    }

    /// The value of a key, or the listing of a directory; `None` where there is neither.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<String> {
        let path = path.trim_matches('/');
        if let Some(value) = self.0.get(path) {
            return Some(value.clone());
        }
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let children: BTreeSet<String> = self
            .0
            .range(prefix.clone()..)
            .map_while(|(key, _)| key.strip_prefix(&prefix))
            .map(|rest| match rest.split_once('/') {
                Some((directory, _)) => format!("{directory}/"),
                None => rest.to_owned(),
            })
            .collect();
        (!children.is_empty()).then(|| children.into_iter().collect::<Vec<_>>().join("\n"))
    }

    /// Keeps only the keys for which `keep` says yes.
    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        self.0.retain(|key, _| keep(key));
    }

    /// Replaces the value of a key that is there.
    pub fn replace(&mut self, key: &str, value: &str) {
        if let Some(slot) = self.0.get_mut(key) {
            value.clone_into(slot);
        }
    }

    pub(crate) fn put_missing(&mut self, key: &str, value: String) {
        self.0.entry(key.to_owned()).or_insert(value);
    }

    fn put(&mut self, key: &str, value: impl ToString) {
        self.0.insert(key.to_owned(), value.to_string());
    }

    fn put_eni(&mut self, eni: &Eni, compressed: bool) {
        let directory = directory(eni);
        let spelled = |net: &Ipv6Net| if compressed { net.to_string() } else { long_form(net) };
        let mut put = |key: &str, value: String| {
            self.0.insert(format!("{directory}/{key}"), value);
        };
        put("device-number", eni.device.to_string());
        if let Some(card) = eni.card {
            put("network-card", card.to_string());
        }
        put("interface-id", eni.id.to_string());
        put("mac", eni.mac.to_string());
        put("owner-id", eni.owner.clone());
        if !eni.subnet.is_empty() {
            put("local-hostname", local_hostname(eni));
            put("subnet-id", eni.subnet.clone());
        }
        put("vpc-id", eni.vpc.clone());
        put("security-groups", "default".to_owned());
        put("security-group-ids", "sg-0123456789abcdef0".to_owned());
        let mut put_list = |key: &str, lines: Vec<String>| {
            // The real service has no empty lists: a key without values is absent.
            if !lines.is_empty() {
                put(key, lines.join("\n"));
            }
        };
        put_list("local-ipv4s", eni.ipv4.iter().map(ToString::to_string).collect());
        put_list("ipv6s", eni.ipv6.iter().map(ToString::to_string).collect());
        put_list("subnet-ipv4-cidr-block", eni.subnet_v4.iter().map(ToString::to_string).collect());
        put_list("subnet-ipv6-cidr-blocks", eni.subnet_v6.iter().map(spelled).collect());
        put_list(
            "vpc-ipv4-cidr-block",
            eni.vpc_v4.first().iter().map(ToString::to_string).collect(),
        );
        put_list("vpc-ipv4-cidr-blocks", eni.vpc_v4.iter().map(ToString::to_string).collect());
        put_list("vpc-ipv6-cidr-blocks", eni.vpc_v6.iter().map(spelled).collect());
        put_list("ipv4-prefix", eni.prefixes_v4.iter().map(ToString::to_string).collect());
        put_list("ipv6-prefix", eni.prefixes_v6.iter().map(spelled).collect());
        let public = || eni.ipv4.iter().filter_map(|private| eni.public.get(private));
        put_list("public-ipv4s", public().map(ToString::to_string).collect());
        for (private, public) in &eni.public {
            put_list(&format!("ipv4-associations/{public}"), vec![private.to_string()]);
        }
    }
}

/// The directory of an ENI under `meta-data/`.
#[must_use]
pub fn directory(eni: &Eni) -> String {
    format!("network/interfaces/macs/{}", eni.mac)
}

fn local_hostname(eni: &Eni) -> String {
    match eni.ipv4.first() {
        Some(first) => {
            let [a, b, c, d] = first.octets();
            format!("ip-{a}-{b}-{c}-{d}.eu-central-1.compute.internal")
        }
        None => format!("{}.eu-central-1.compute.internal", eni.id),
    }
}

/// The real service often writes IPv6 CIDRs without compressing zeros.
fn long_form(net: &Ipv6Net) -> String {
    let groups: Vec<String> =
        Ipv6Addr::segments(&net.addr()).iter().map(|group| format!("{group:x}")).collect();
    format!("{}/{}", groups.join(":"), net.prefix_len())
}
