//! A combination with all its addresses: what the cloud grants, and what the machine has without
//! enid.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::combination::{Cards, Combination, Families, Main, Restart, Siblings, Subnets};
use crate::state::{Address, Family, Kind, Link, Route, Rule, State};

/// The host part of an address that no ENI here has.
pub(crate) const STRANGER: u16 = 99;
/// Where the next hops of main's static routes are in the primary's subnet.
const STATIC_HOPS: [u16; 2] = [77, 78];

/// An ENI as the cloud knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eni {
    /// Its place in the list; 0 is the primary one.
    pub number: usize,
    /// `eni-…`
    pub id: String,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// The network card, where the type of instance has several.
    pub card: Option<u32>,
    /// The device number.
    pub device: u32,
    /// The name of its link.
    pub link: String,
    /// Its subnet's CIDRs, one of each family of the instance.
    pub subnets: Vec<IpNet>,
    /// Its addresses, of each family the primary one first.
    pub addresses: Vec<IpAddr>,
    /// Its delegated prefixes.
    pub prefixes: Vec<IpNet>,
    /// Whether the IPv6 router on its link has spoken.
    pub heard: bool,
}

impl Eni {
    /// The addresses of one family, the primary one first.
    pub fn of(&self, family: Family) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().copied().filter(move |address| Family::of(*address) == family)
    }

    /// The subnet's CIDR of a family.
    #[must_use]
    pub fn subnet(&self, family: Family) -> Option<IpNet> {
        self.subnets.iter().copied().find(|net| Family::of(net.addr()) == family)
    }

    /// An address of the subnet.
    #[must_use]
    pub(crate) fn host(&self, family: Family, host: u16) -> Option<IpAddr> {
        self.subnet(family).map(|net| nth(net, host))
    }
}

/// The address so many after the network's own.
fn nth(net: IpNet, host: u16) -> IpAddr {
    match net {
        IpNet::V4(net) => Ipv4Addr::from(u32::from(net.network()) + u32::from(host)).into(),
        IpNet::V6(net) => Ipv6Addr::from(u128::from(net.network()) + u128::from(host)).into(),
    }
}

/// A route that somebody put into main.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticRoute {
    /// Packets to here.
    pub destination: IpNet,
    /// The next hop.
    pub gateway: Option<IpAddr>,
    /// The name of the link.
    pub link: String,
}

/// A link that is no ENI's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    /// Its name.
    pub link: String,
    /// Its addresses, with the kernel's connected routes in main.
    pub addresses: Vec<IpNet>,
}

/// An instance with all its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scene {
    /// What it is an example of.
    pub combination: Combination,
    /// Its ENIs, the primary one first.
    pub enis: Vec<Eni>,
    /// The VPC's CIDRs.
    pub vpc: Vec<IpNet>,
    /// Links of others.
    pub others: Vec<Other>,
    /// Routes of others in main.
    pub routes: Vec<StaticRoute>,
}

impl Scene {
    /// The IPv6 router of every link, as it calls itself.
    pub const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x0c00, 0x00ff, 0xfe00, 1);
    /// The IPv6 router's other name, the same on every link of every VPC.
    pub const UNHEARD: Ipv6Addr = Ipv6Addr::new(0xfe80, 0xec2, 0, 0, 0, 0, 0, 1);

    /// The instance as it is.
    #[must_use]
    pub fn present(combination: Combination) -> Self {
        let (hosts, count) = (hosts(combination.siblings), combination.enis());
        let mut scene = Self {
            combination,
            enis: (0..count).map(|number| eni(&combination, number, &hosts)).collect(),
            vpc: vpc(&combination),
            others: Vec::new(),
            routes: Vec::new(),
        };
        scene.neighbours();
        scene
    }

    /// The instance as it was when enid ran before: the same, unless it was renamed since or had
    /// other siblings. Then the last ENI was not there yet, its neighbour had an address that now is
    /// the primary's, and there were no delegated prefixes; one that is alone now had a sibling.
    #[must_use]
    pub fn former(combination: Combination) -> Self {
        let mut scene = Self::present(combination);
        match combination.restart {
            Restart::Fresh | Restart::Former | Restart::HalfDone => {}
            Restart::Renamed => {
                for eni in &mut scene.enis {
                    eni.link = link(eni.number);
                }
            }
            Restart::OtherSiblings => scene.without_newcomers(),
        }
        scene
    }

    fn without_newcomers(&mut self) {
        let combination = self.combination;
        self.enis.iter_mut().for_each(|eni| eni.prefixes.clear());
        if combination.siblings == Siblings::One {
            let hosts = hosts(Siblings::Two);
            self.enis.push(eni(&combination, 1, &hosts));
            return;
        }
        self.enis.pop();
        if combination.subnets == Subnets::Shared
            && let [primary, second, ..] = self.enis.as_mut_slice()
        {
            let families: Vec<Family> =
                second.subnets.iter().map(|net| Family::of(net.addr())).collect();
            for family in families {
                let last = primary.of(family).last();
                primary.addresses.retain(|address| Some(*address) != last);
                second.addresses.extend(last);
            }
        }
    }

    /// The families of the instance.
    pub fn families(&self) -> impl Iterator<Item = Family> + use<> {
        let families = self.combination.families;
        Family::ALL.into_iter().filter(move |family| has(families, *family))
    }

    /// The next hop of an ENI's subnet to everywhere else.
    #[must_use]
    pub fn gateway(&self, eni: &Eni, family: Family) -> Option<IpAddr> {
        let subnet = eni.subnet(family)?;
        Some(match family {
            Family::V4 => nth(subnet, 1),
            Family::V6 if eni.heard => Self::ROUTER.into(),
            Family::V6 => Self::UNHEARD.into(),
        })
    }

    /// What the machine has without enid and without its ENIs.
    #[must_use]
    pub fn base(&self) -> State {
        let mut state = State { links: vec![up("lo", true)], ..State::default() };
        for family in self.families() {
            for (priority, table) in [(0, State::LOCAL), (32766, State::MAIN)] {
                state.rules.push(rule(family, priority, table));
            }
        }
        for other in &self.others {
            state.links.push(up(&other.link, true));
            for net in &other.addresses {
                state.addresses.push(address(&other.link, net.addr(), net.prefix_len(), true));
                state.routes.push(route(net.trunc(), None, &other.link));
            }
        }
        state
    }

    /// What an ENI's link brings along without enid.
    #[must_use]
    pub fn plugged(&self, eni: &Eni) -> State {
        let boots = eni.number == 0 || self.combination.main == Main::Dhcp;
        let mut state = State { links: vec![up(&eni.link, boots)], ..State::default() };
        if !boots {
            return state;
        }
        for family in self.families() {
            let (Some(subnet), Some(primary)) = (eni.subnet(family), eni.of(family).next()) else {
                continue;
            };
            let (length, metric, everything) = match family {
                Family::V4 => (subnet.prefix_len(), 512, IpNet::V4(Ipv4Net::default())),
                Family::V6 => (128, 1024, IpNet::V6(Ipv6Net::default())),
            };
            let number = u32::try_from(eni.number).unwrap_or_default();
            state.addresses.push(address(&eni.link, primary, length, false));
            let default = route(everything, self.gateway(eni, family), &eni.link);
            let source = Some(primary).filter(|_| family == Family::V4);
            let metric = metric + number;
            state.routes.push(Route { metric, source, ..default });
            let metric = if family == Family::V4 { number } else { 256 + number };
            state.routes.push(Route { metric, source, ..route(subnet, None, &eni.link) });
            if family == Family::V6 {
                let link_local = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from(0xfe80 << 112), 64));
                state.routes.push(Route { metric: 256, ..route(link_local, None, &eni.link) });
            }
        }
        let mut routes = self.routes.iter().filter(|route| route.link == eni.link);
        state
            .routes
            .extend(routes.by_ref().map(|seen| route(seen.destination, seen.gateway, &seen.link)));
        state
    }

    /// The static routes by links of others.
    #[must_use]
    pub fn by_others(&self) -> Vec<Route> {
        let enis = |route: &&StaticRoute| self.enis.iter().any(|eni| eni.link == route.link);
        let routes = self.routes.iter().filter(|route| !enis(route));
        routes.map(|seen| route(seen.destination, seen.gateway, &seen.link)).collect()
    }

    /// The first half of a delegated prefix, which a bridge may hold.
    #[must_use]
    pub fn bridged(prefix: IpNet) -> IpNet {
        let half = prefix.subnets(prefix.prefix_len() + 1);
        half.ok().and_then(|mut halves| halves.next()).unwrap_or(prefix)
    }

    /// A host in a network that is no ENI's subnet.
    pub(crate) fn in_network(net: IpNet, host: u16) -> IpAddr {
        nth(net, host)
    }

    fn neighbours(&mut self) {
        let families: Vec<Family> = self.families().collect();
        let of = |nets: [IpNet; 2]| {
            let there = |net: &IpNet| families.contains(&Family::of(net.addr()));
            nets.into_iter().filter(there).collect::<Vec<_>>()
        };
        let combination = self.combination;
        let first = &self.enis[0];
        let by = |destination, gateway, link: &str| StaticRoute {
            destination,
            gateway,
            link: link.to_owned(),
        };
        let mut routes = Vec::new();
        if combination.subnets == Subnets::StaticRoutes {
            for (nets, hop) in [OUTSIDE, INSIDE].into_iter().zip(STATIC_HOPS) {
                for net in of(nets) {
                    let gateway = first.host(Family::of(net.addr()), hop);
                    routes.push(by(net, gateway, &first.link));
                }
            }
        }
        let mut others = Vec::new();
        match combination.main {
            Main::Plain | Main::Dhcp => {}
            Main::Vpn => {
                others.push(Other { link: "tun0".to_owned(), addresses: of(TUNNEL) });
                for halves in [HALVES_LOW, HALVES_HIGH] {
                    routes.extend(of(halves).into_iter().map(|net| by(net, None, "tun0")));
                }
            }
            Main::Containers => {
                others.push(Other { link: "docker0".to_owned(), addresses: of(CONTAINERS) });
            }
            Main::PrefixBridge => {
                for eni in &self.enis {
                    let half = |prefix: &IpNet| {
                        let half = Self::bridged(*prefix);
                        IpNet::new(nth(half, 1), half.prefix_len()).unwrap_or(half)
                    };
                    let addresses: Vec<IpNet> = eni.prefixes.iter().map(half).collect();
                    if !addresses.is_empty() {
                        others.push(Other { link: format!("br{}", eni.number), addresses });
                    }
                }
            }
            Main::LinkLocal => {
                let nets = of(METADATA_NETS).into_iter();
                routes.extend(nets.map(|net| by(net, None, &first.link)));
            }
        }
        // The host's end of a container's link, without a route to it.
        others.push(Other { link: "cni0".to_owned(), addresses: Vec::new() });
        self.others = others;
        self.routes = routes;
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6(high: [u16; 4], low: u16, length: u8) -> IpNet {
    let [a, b, c, d] = high;
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, 0, 0, 0, low), length))
}

/// Beyond a host of the primary's subnet, outside of the VPC.
pub(crate) const OUTSIDE: [IpNet; 2] = [v4(10, 99, 0, 0, 16), v6([0x2600, 0x1f99, 0, 0], 0, 32)];
/// Beyond a host of the primary's subnet, inside the VPC.
pub(crate) const INSIDE: [IpNet; 2] =
    [v4(10, 0, 240, 0, 20), v6([0x2600, 0x1f16, 0x67f, 0xf2f0], 0, 60)];
/// Another subnet of the VPC, within [`INSIDE`].
pub(crate) const ELSEWHERE: [IpNet; 2] =
    [v4(10, 0, 250, 0, 24), v6([0x2600, 0x1f16, 0x67f, 0xf2fa], 0, 64)];
/// A subnet of the secondary CIDR, of no ENI here.
pub(crate) const LATER: [IpNet; 2] =
    [v4(100, 64, 250, 0, 24), v6([0x2600, 0x1f16, 0x680, 0x01fa], 0, 64)];
pub(crate) const TUNNEL: [IpNet; 2] = [v4(10, 8, 0, 2, 24), v6([0xfd08, 0, 0, 0], 2, 64)];
/// OpenVPN takes all of IPv6 that is in use, and others halves.
const HALVES_LOW: [IpNet; 2] = [v4(0, 0, 0, 0, 1), v6([0x2000, 0, 0, 0], 0, 3)];
const HALVES_HIGH: [IpNet; 2] = [v4(128, 0, 0, 0, 1), v6([0x8000, 0, 0, 0], 0, 1)];
/// Containers' bridge, inside the VPC's CIDR.
pub(crate) const CONTAINERS: [IpNet; 2] =
    [v4(10, 0, 200, 1, 24), v6([0x2600, 0x1f16, 0x67f, 0xf2c8], 1, 64)];
const METADATA_NETS: [IpNet; 2] = [v4(169, 254, 0, 0, 16), v6([0xfd00, 0xec2, 0, 0], 0, 32)];

/// Whether the instance, by its primary ENI, has addresses of a family.
const fn has(families: Families, family: Family) -> bool {
    matches!(
        (families, family),
        (Families::Both | Families::Mixed, _)
            | (Families::V4, Family::V4)
            | (Families::V6, Family::V6)
    )
}

fn vpc(combination: &Combination) -> Vec<IpNet> {
    let mut cidrs = vec![v4(10, 0, 0, 0, 16), v6([0x2600, 0x1f16, 0x67f, 0xf200], 0, 56)];
    if combination.subnets == Subnets::SecondaryCidr {
        cidrs.extend([v4(100, 64, 0, 0, 16), v6([0x2600, 0x1f16, 0x680, 0x0100], 0, 56)]);
    }
    cidrs.retain(|net| has(combination.families, Family::of(net.addr())));
    cidrs
}

/// The last parts of each ENI's addresses, the primary one first.
fn hosts(siblings: Siblings) -> Vec<Vec<u16>> {
    match siblings {
        Siblings::One => vec![vec![4, 130, 200]],
        Siblings::Two => vec![vec![4, 130], vec![70, 201]],
        Siblings::Close => vec![vec![128, 129], vec![130, 131], vec![132, 133]],
        Siblings::Interleaved => (10..14).map(|n| vec![n, n + 4, n + 8]).collect(),
    }
}

fn eni(combination: &Combination, number: usize, hosts: &[Vec<u16>]) -> Eni {
    let n = u8::try_from(number).unwrap_or_default();
    let subnets: Vec<IpNet> = subnets(combination, n)
        .into_iter()
        .filter(|net| {
            let family = Family::of(net.addr());
            let only_v6 = combination.families == Families::Mixed && number > 0;
            has(combination.families, family) && (family == Family::V6 || !only_v6)
        })
        .collect();
    let own = hosts.get(number).map(Vec::as_slice).unwrap_or_default();
    let addresses = subnets.iter().flat_map(|net| own.iter().map(|host| nth(*net, *host)));
    let prefixes = subnets.iter().filter(|_| combination.delegates_to(number));
    // Device numbers repeat: the third ENI has the second one's on another card.
    let place = [(0, 0), (1, 1), (0, 1), (2, 1)][number % 4];
    let (card, device) = match combination.cards {
        Cards::Single => (None, u32::from(n)),
        Cards::Several => (Some(place.0), place.1),
    };
    Eni {
        number,
        heard: number == 0 || combination.main == Main::Dhcp,
        id: format!("eni-{number:017x}"),
        mac: [2, 0, 0, 0, 0, n + 1],
        card,
        device,
        link: match combination.restart {
            Restart::Renamed => link(renamed(number, combination.enis())),
            Restart::Fresh | Restart::Former | Restart::OtherSiblings | Restart::HalfDone => {
                link(number)
            }
        },
        addresses: addresses.collect(),
        prefixes: prefixes.map(|net| prefix(*net, n)).collect(),
        subnets,
    }
}

fn link(number: usize) -> String {
    format!("ens{}", number + 5)
}

/// Whose name an ENI's link has got: of the last two, the other's; of a single other one, a new one.
fn renamed(number: usize, count: usize) -> usize {
    match count - number {
        _ if number == 0 => 0,
        1 if count == 2 => count,
        1 => number - 1,
        2 if count > 2 => number + 1,
        _ => number,
    }
}

fn subnets(combination: &Combination, n: u8) -> [IpNet; 2] {
    let own = |n: u8| {
        let last = 0xf200 + u16::from(n) + 1;
        [v4(10, 0, n + 1, 0, 24), v6([0x2600, 0x1f16, 0x67f, last], 0, 64)]
    };
    match combination.subnets {
        Subnets::Own | Subnets::StaticRoutes => own(n),
        Subnets::Shared => own(0),
        Subnets::SecondaryCidr if n == 0 => own(0),
        Subnets::SecondaryCidr => {
            let last = 0x0100 + u16::from(n);
            [v4(100, 64, n, 0, 24), v6([0x2600, 0x1f16, 0x680, last], 0, 64)]
        }
    }
}

/// The delegated prefix of an ENI: a /28 or a /80 of its subnet that holds none of the addresses.
fn prefix(subnet: IpNet, n: u8) -> IpNet {
    match subnet {
        IpNet::V4(net) => {
            let first = u32::from(net.network()) + 32 + 16 * u32::from(n);
            IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from(first), 28))
        }
        IpNet::V6(net) => {
            let first = u128::from(net.network()) + ((0x100 + u128::from(n)) << 48);
            IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from(first), 80))
        }
    }
}

fn up(name: &str, up: bool) -> Link {
    Link { name: name.to_owned(), up, group: 0 }
}

fn address(link: &str, address: IpAddr, length: u8, permanent: bool) -> Address {
    let link = link.to_owned();
    Address { link, address, length, preferred: true, permanent, ours: false }
}

fn route(destination: IpNet, gateway: Option<IpAddr>, link: &str) -> Route {
    let kind = Kind::Unicast;
    let metric = if matches!(destination, IpNet::V6(_)) { 1024 } else { 0 };
    let (table, link, source) = (State::MAIN, Some(link.to_owned()), None);
    Route { table, destination, kind, gateway, link, source, metric, ours: false }
}

fn rule(family: Family, priority: u32, table: u32) -> Rule {
    Rule {
        family,
        priority,
        source: None,
        destination: None,
        iif: None,
        oif: None,
        mark: None,
        table,
        suppress_length: None,
        suppress_group: None,
        ours: false,
    }
}
