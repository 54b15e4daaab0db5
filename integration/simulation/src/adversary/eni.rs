//! An ENI as it really is, and a machine that has booted with one.

use crate::adversary::CIDRS;

/// One ENI as it really is.
#[derive(Debug, Clone)]
pub(super) struct Eni {
    pub(super) mac: String,
    pub(super) name: String,
    pub(super) attached: bool,
    pub(super) up: bool,
    pub(super) subnet: usize,
    pub(super) v4: Vec<String>,
    pub(super) v6: Vec<String>,
    pub(super) prefixes: Vec<String>,
    pub(super) cidrs: Vec<String>,
}

impl Eni {
    pub(super) fn new(n: usize, subnet: usize, dual: bool) -> Self {
        Self {
            mac: format!("02:00:00:00:00:{:02x}", n + 1),
            name: format!("eth{n}"),
            attached: false,
            up: true,
            subnet,
            v4: vec![format!("10.0.{}.{}", subnet + 1, 4 + n)],
            v6: if dual {
                vec![format!("2600:1f16:67f:f20{subnet}::{}", 4 + n)]
            } else {
                Vec::new()
            },
            prefixes: Vec::new(),
            cidrs: vec![CIDRS[0].to_owned()],
        }
    }

    /// All keys and what they say.
    pub(super) fn keys(&self) -> Vec<(&'static str, String)> {
        let number = self.mac.trim_start_matches("02:00:00:00:00:0").parse::<u32>();
        let number = number.unwrap_or(1) - 1;
        let list = |list: Vec<&String>| match &list[..] {
            [] => "-".to_owned(),
            list => list.iter().map(|word| word.as_str()).collect::<Vec<_>>().join(" "),
        };
        let (v6, v4) = self.prefixes.iter().partition(|prefix| prefix.contains(':'));
        let mut keys = vec![
            ("interface-id", format!("eni-{number}")),
            ("device-number", number.to_string()),
            ("subnet-ipv4-cidr-block", format!("10.0.{}.0/24", self.subnet + 1)),
            ("vpc-ipv4-cidr-blocks", list(self.cidrs.iter().collect())),
            ("local-ipv4s", list(self.v4.iter().collect())),
        ];
        let first = !self.v6.is_empty() || !self.prefixes.is_empty();
        keys.push(("ipv4-prefix", list(v4)));
        if first {
            let subnet = format!("2600:1f16:67f:f20{}::/64", self.subnet);
            keys.push(("subnet-ipv6-cidr-blocks", subnet));
            keys.push(("vpc-ipv6-cidr-blocks", "2600:1f16:67f:f200::/56".to_owned()));
        }
        keys.push(("ipv6s", list(self.v6.iter().collect())));
        keys.push(("ipv6-prefix", list(v6)));
        keys
    }

    pub(super) fn words(&self) -> Vec<String> {
        let mut lines = vec![format!("eni {}", self.mac)];
        let keys = self.keys().into_iter().filter(|(_, value)| value != "-");
        lines.extend(keys.map(|(key, value)| format!("{key} {value}")));
        lines
    }

    pub(super) fn key(&self, key: &str) -> String {
        let keys = self.keys();
        let found = keys.into_iter().find(|(known, _)| *known == key);
        found.map_or_else(|| "-".to_owned(), |(_, value)| value)
    }
}

/// What the kernel has when nobody has done anything yet but boot.
pub(super) fn boot(primary: &Eni, old: bool, dual: bool) -> Vec<String> {
    let (net, own) = (primary.subnet + 1, &primary.v4[0]);
    let mut lines = vec![
        "link 1: lo up mtu 65536".to_owned(),
        format!("link 2: eth0 mac {} up mtu 9001", primary.mac),
        format!("addr {own}/24 dev eth0 dynamic"),
        format!("route default via 10.0.{net}.1 dev eth0 proto dhcp src {own} metric 100"),
        format!("route 10.0.{net}.0/24 dev eth0 proto kernel src {own} metric 100"),
        "rule pref 0 from all lookup local proto kernel".to_owned(),
        "rule pref 32766 from all lookup main proto kernel".to_owned(),
    ];
    if dual {
        lines.extend([
            "addr fe80::1/64 dev eth0".to_owned(),
            "route default via fe80::aa dev eth0 proto ra metric 1024".to_owned(),
            "route fe80::/64 dev eth0 proto kernel metric 256".to_owned(),
            "rule inet6 pref 0 from all lookup local proto kernel".to_owned(),
            "rule inet6 pref 32766 from all lookup main proto kernel".to_owned(),
        ]);
    }
    if old {
        lines.push("no address protocols".to_owned());
    }
    lines
}
