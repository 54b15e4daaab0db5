//! Clouds that speak nearly the same metadata as EC2, and what is different there.

use crate::model::{Eni, Instance, State};
use crate::tree::{Tree, directory};

/// Whose metadata service this is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flavour {
    /// EC2's own.
    #[default]
    Ec2,
    /// EC2's tree without tokens: who asks for one gets this status (404, 405 and 501 are common).
    OnlyV1(u16),
    /// OpenStack's: no tokens, as above; no `mac` and nothing under `network/`.
    OpenStack(u16),
    /// Snowball Edge's: HTTP/1.0, with tokens or without, and of an ENI only its name, its MAC and
    /// its IPv4 addresses.
    Snowball,
    /// Outscale's: no tokens (404), and where EC2 has no key there is one without a value.
    Outscale,
}

/// All that Snowball Edge tells of an ENI.
const SNOWBALL: [&str; 4] = ["local-hostname", "local-ipv4s", "mac", "public-ipv4s"];

/// What is there on Outscale, if only with nothing in it.
const OUTSCALE: [&str; 9] = [
    "ipv4-prefix",
    "ipv6-prefix",
    "ipv6s",
    "local-ipv4s",
    "network-card",
    "public-hostname",
    "public-ipv4s",
    "subnet-ipv6-cidr-blocks",
    "vpc-ipv6-cidr-blocks",
];

/// Top-level keys that OpenStack does not have.
const NOT_OPENSTACK: [&str; 4] = ["ipv6", "mac", "placement/region", "system"];

impl Flavour {
    /// The status for who asks for a token, where there are none.
    pub(crate) fn refusal(self) -> Option<u16> {
        match self {
            Flavour::Ec2 | Flavour::Snowball => None,
            Flavour::OnlyV1(status) | Flavour::OpenStack(status) => Some(status),
            Flavour::Outscale => Some(404),
        }
    }

    /// Whether requests without a token are answered whatever was said ([`crate::Server::set_v1`]).
    pub(crate) fn is_open(self) -> bool {
        self != Flavour::Ec2
    }

    pub(crate) fn protocol(self) -> &'static str {
        if self == Flavour::Snowball { "HTTP/1.0" } else { "HTTP/1.1" }
    }

    /// The versions of the tree.
    pub(crate) fn versions(self) -> &'static str {
        match self {
            Flavour::OpenStack(_) => "1.0\n2009-04-04\nlatest",
            Flavour::Ec2 | Flavour::OnlyV1(_) | Flavour::Snowball | Flavour::Outscale => {
                "1.0\n2021-03-23\n2022-09-24\nlatest"
            }
        }
    }

    /// Whether there is anything beside `meta-data/`.
    pub(crate) fn has_identity(self) -> bool {
        !matches!(self, Flavour::OpenStack(_))
    }

    /// Makes EC2's tree of an instance this cloud's.
    pub(crate) fn shape(self, tree: &mut Tree, state: &State, instance: &Instance) {
        match self {
            Flavour::Ec2 | Flavour::OnlyV1(_) => {}
            Flavour::OpenStack(_) => {
                tree.retain(|path| !path.starts_with("network/") && !NOT_OPENSTACK.contains(&path))
            }
            Flavour::Snowball => tree.retain(|path| {
                let eni = path.strip_prefix("network/interfaces/macs/");
                let key = eni.and_then(|path| path.split_once('/')).map(|(_, key)| key);
                key.is_none_or(|key| SNOWBALL.contains(&key))
            }),
            Flavour::Outscale => {
                for eni in state.attached(instance) {
                    fill(tree, eni);
                }
            }
        }
    }
}

fn fill(tree: &mut Tree, eni: &Eni) {
    let directory = directory(eni);
    for key in OUTSCALE {
        tree.put_missing(&format!("{directory}/{key}"), String::new());
    }
    let gateway = eni.subnet_v4.and_then(|net| net.hosts().next());
    let gateway = gateway.map(|gateway| gateway.to_string()).unwrap_or_default();
    tree.put_missing(&format!("{directory}/gateway-ipv4"), gateway);
}
