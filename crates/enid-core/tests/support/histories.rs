//! What an instance, its cloud and everybody else may be like from one moment to the next, and what
//! metadata says then.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use enid_core::object::{Family, Mac, Protocol};
use ipnet::{IpNet, Ipv4Net};
use proptest::prelude::*;

use simulation::cloud::Cloud;

pub(crate) const METADATA_V6: IpAddr =
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254));
pub(crate) const METADATA: [u8; 4] = [169, 254, 169, 254];
pub(crate) const FAR: [u8; 4] = [8, 8, 8, 8];
pub(crate) const CONTAINER: [u8; 4] = [10, 0, 200, 2];
pub(crate) const ENIS: usize = 4;
/// Secondary addresses of each subnet that may be on any of its ENIs.
pub(crate) const POOL: [u8; 5] = [20, 21, 70, 131, 200];
pub(crate) const SUBNETS: usize = 3;
/// Where each ENI's delegated prefix begins.
pub(crate) const PREFIXES: [u8; ENIS] = [32, 80, 176, 208];
pub(crate) const STATIC: Protocol = Protocol(4);

/// What a link may be between two states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plug {
    Out,
    Down,
    Up,
}

/// One ENI in one state; the first is the primary one and always there.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) plug: Plug,
    pub(crate) listed: bool,
    pub(crate) released: bool,
    pub(crate) prefix: bool,
}

/// What holds from one moment on.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) slots: Vec<Slot>,
    /// Who has each address of the pool, by subnet and place; nobody where that ENI is elsewhere.
    pub(crate) owners: Vec<Option<usize>>,
    /// Two links have exchanged their names.
    pub(crate) swapped: bool,
    pub(crate) no_primary_rules: bool,
    pub(crate) keep_mtu: bool,
    pub(crate) ignore: bool,
    /// Where tables and rules begin, beside the usual place; the second one is a table further on.
    pub(crate) base: Option<(u32, u32)>,
    pub(crate) vpn: bool,
    pub(crate) containers: bool,
    pub(crate) static_route: bool,
    /// The first poll fails, for one ENI or, past the last one, as a whole.
    pub(crate) flaky: Option<usize>,
    /// enid starts anew.
    pub(crate) restart: bool,
    /// Somebody deletes every nth of our objects.
    pub(crate) vandal: Option<usize>,
}

/// What never changes in one case.
#[derive(Debug, Clone)]
pub(crate) struct Ground {
    /// The only family; all numbers are written as IPv4's.
    pub(crate) family: Family,
    pub(crate) subnets: Vec<usize>,
    pub(crate) address_protocols: bool,
    pub(crate) foreign_rule: bool,
    pub(crate) foreign_route: bool,
    pub(crate) foreign_address: bool,
}

pub(crate) fn slot(primary: bool) -> BoxedStrategy<Slot> {
    let plug = prop_oneof![6 => Just(Plug::Up), 2 => Just(Plug::Down), 2 => Just(Plug::Out)];
    let rare = || prop::bool::weighted(0.1);
    (plug, prop::bool::weighted(0.9), rare(), prop::bool::weighted(0.2))
        .prop_map(move |(plug, listed, released, prefix)| match primary {
            true => Slot { plug: Plug::Up, listed: true, released, prefix },
            false => Slot { plug, listed: listed && plug != Plug::Out, released, prefix },
        })
        .boxed()
}

pub(crate) fn state() -> impl Strategy<Value = State> {
    let slots: Vec<_> = (0..ENIS).map(|n| slot(n == 0)).collect();
    let owners = prop::collection::vec(prop::option::of(0..ENIS), SUBNETS * POOL.len());
    let rare = || prop::bool::weighted(0.15);
    let base =
        prop::option::weighted(0.3, prop_oneof![Just((30_000, 21_000)), Just((20_001, 20_000))]);
    let config = (rare(), rare(), rare(), base);
    let others = (rare(), rare(), rare(), rare());
    let moments =
        (prop::option::weighted(0.2, 0..=ENIS), rare(), prop::option::weighted(0.3, 0..4_usize));
    (slots, owners, config, others, moments).prop_map(
        |(slots, owners, config, others, (flaky, restart, vandal))| State {
            slots,
            owners,
            swapped: others.0,
            no_primary_rules: config.0,
            keep_mtu: config.1,
            ignore: config.2,
            base: config.3,
            vpn: others.1,
            containers: others.2,
            static_route: others.3,
            flaky,
            restart,
            vandal,
        },
    )
}

pub(crate) fn ground() -> impl Strategy<Value = Ground> {
    let often = || prop::bool::weighted(0.3);
    let family = prop_oneof![Just(Family::V4), Just(Family::V6)];
    let place = (family, prop::collection::vec(0..SUBNETS, ENIS));
    (place, prop::bool::weighted(0.8), often(), often(), often()).prop_map(
        |((family, subnets), address_protocols, foreign_rule, foreign_route, foreign_address)| {
            Ground {
                family,
                subnets,
                address_protocols,
                foreign_rule,
                foreign_route,
                foreign_address,
            }
        },
    )
}

pub(crate) fn mac(n: usize) -> Mac {
    Mac([2, 0, 0, 0, 0, u8::try_from(n + 1).unwrap()])
}

impl Ground {
    /// An address: of IPv6, `2600:1f16:67f::` and the number of IPv4.
    pub(crate) fn ip(&self, v4: [u8; 4]) -> IpAddr {
        let [a, b, c, d] = v4;
        let low = |high, low| u16::from_be_bytes([high, low]);
        match self.family {
            Family::V4 => IpAddr::from(v4),
            Family::V6 => {
                Ipv6Addr::new(0x2600, 0x1f16, 0x67f, 0, 0, 0, low(a, b), low(c, d)).into()
            }
        }
    }

    /// A network; the default route and its halves are those of the family.
    pub(crate) fn net(&self, v4: &str) -> IpNet {
        let net: Ipv4Net = v4.parse().unwrap();
        match (self.family, net.prefix_len()) {
            (Family::V4, _) => net.into(),
            (Family::V6, 0) => "::/0".parse().unwrap(),
            (Family::V6, 1) if net.addr() == Ipv4Addr::UNSPECIFIED => "::/1".parse().unwrap(),
            (Family::V6, 1) => "8000::/1".parse().unwrap(),
            (Family::V6, length) => IpNet::new(self.ip(net.addr().octets()), 96 + length).unwrap(),
        }
    }

    pub(crate) fn host(&self, subnet: usize, host: u8) -> IpAddr {
        self.ip([10, 0, u8::try_from(subnet).unwrap() + 1, host])
    }

    pub(crate) fn subnet(&self, subnet: usize) -> IpNet {
        self.net(&format!("10.0.{}.0/24", subnet + 1))
    }

    pub(crate) fn metadata(&self) -> IpAddr {
        match self.family {
            Family::V4 => self.ip(METADATA),
            Family::V6 => METADATA_V6,
        }
    }
}

pub(crate) fn first_address(ground: &Ground, n: usize) -> IpAddr {
    ground.host(ground.subnets[n], u8::try_from(10 + 50 * n).unwrap())
}

/// The addresses that metadata grants to an ENI, the primary one first.
pub(crate) fn addresses_of(ground: &Ground, state: &State, n: usize) -> Vec<IpAddr> {
    let mut addresses = vec![first_address(ground, n)];
    for (place, owner) in state.owners.iter().enumerate() {
        let (subnet, last) = (place / POOL.len(), POOL[place % POOL.len()]);
        if *owner == Some(n) && subnet == ground.subnets[n] {
            addresses.push(ground.host(subnet, last));
        }
    }
    addresses
}

pub(crate) fn cloud_of(ground: &Ground, state: &State) -> Cloud {
    let mut cloud = Cloud::default();
    for (n, slot) in state.slots.iter().enumerate().filter(|(_, slot)| slot.listed) {
        let addresses = addresses_of(ground, state, n);
        let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
        cloud.set(mac(n), "interface-id", &format!("eni-{n}"));
        cloud.set(mac(n), "device-number", &n.to_string());
        let subnet = ground.subnet(ground.subnets[n]).to_string();
        let prefix = format!("10.0.{}.{}/28", ground.subnets[n] + 1, PREFIXES[n]);
        let prefix = ground.net(&prefix).to_string();
        let (cidr, vpc, delegated) = match ground.family {
            Family::V4 => ("subnet-ipv4-cidr-block", "vpc-ipv4-cidr-blocks", "ipv4-prefix"),
            Family::V6 => ("subnet-ipv6-cidr-blocks", "vpc-ipv6-cidr-blocks", "ipv6-prefix"),
        };
        cloud.set(mac(n), cidr, &subnet);
        cloud.set(mac(n), vpc, &ground.net("10.0.0.0/16").to_string());
        cloud.set(mac(n), list(ground.family), &addresses.join("\n"));
        if slot.prefix {
            cloud.set(mac(n), delegated, &prefix);
        }
    }
    cloud
}

/// The key that lists the addresses.
pub(crate) fn list(family: Family) -> &'static str {
    match family {
        Family::V4 => "local-ipv4s",
        Family::V6 => "ipv6s",
    }
}
