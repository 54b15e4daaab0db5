//! Which kinds of instances there are: a cross product, named, without the impossible ones.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A dimension: its values, each with a name.
macro_rules! dimension {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $value:ident = $word:literal,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$doc])* $value,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$value,)*];
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$value => $word,)*
                })
            }
        }
    };
}

dimension! {
    /// The families of the instance's addresses.
    Families {
        /// IPv4 only.
        V4 = "v4",
        /// IPv6 only.
        V6 = "v6",
        /// Both.
        Both = "dual",
        /// Both on the primary ENI, IPv6 only on the others.
        Mixed = "mixed",
    }
}

dimension! {
    /// Which subnets the ENIs are in.
    Subnets {
        /// Each in its own.
        Own = "own",
        /// All in one.
        Shared = "shared",
        /// All but the primary one in a CIDR that the VPC got later.
        SecondaryCidr = "secondary-cidr",
        /// Each in its own; main has static routes by way of a host in the primary's subnet.
        StaticRoutes = "static-routes",
    }
}

dimension! {
    /// What delegated prefixes are for.
    Delegation {
        /// There are none.
        None = "no-prefix",
        /// Containers.
        Rules = "rules",
        /// The host itself.
        Local = "local",
        /// Nothing.
        Ignore = "ignore",
    }
}

dimension! {
    /// Which ENIs have a delegated prefix.
    On {
        /// The second one.
        Second = "second",
        /// The primary one.
        Primary = "primary",
        /// Both of them.
        Both = "both",
    }
}

dimension! {
    /// How many ENIs there are and how their addresses lie.
    Siblings {
        /// The primary one only.
        One = "one",
        /// Two, far apart.
        Two = "two",
        /// Three, whose addresses differ in the last bits only.
        Close = "three-close",
        /// Four, whose addresses take turns.
        Interleaved = "four-interleaved",
    }
}

dimension! {
    /// Where the ENIs sit.
    Cards {
        /// All on one network card; metadata does not number it.
        Single = "one-card",
        /// On several, with device numbers that repeat.
        Several = "several-cards",
    }
}

dimension! {
    /// What others have done to the routing.
    Main {
        /// The primary ENI's boot only.
        Plain = "plain",
        /// DHCP clients and router advertisements at work on all ENIs.
        Dhcp = "dhcp",
        /// A VPN that takes all in two halves.
        Vpn = "vpn",
        /// Containers inside the VPC's CIDR.
        Containers = "containers",
        /// Bridges that hold a part of the delegated prefixes.
        PrefixBridge = "prefix-bridge",
        /// Metadata's network is on the primary's link.
        LinkLocal = "link-local",
    }
}

dimension! {
    /// What enid finds when it starts.
    Restart {
        /// A machine that it never ran on.
        Fresh = "fresh",
        /// What it made before.
        Former = "former-run",
        /// What it made when there was another set of siblings.
        OtherSiblings = "other-siblings",
        /// Half of what it was about to make.
        HalfDone = "half-done",
        /// What it made before the last two links exchanged their names.
        Renamed = "renamed",
    }
}

/// One kind of instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Combination {
    /// The families.
    pub families: Families,
    /// The subnets.
    pub subnets: Subnets,
    /// What delegated prefixes are for.
    pub delegation: Delegation,
    /// Who has them.
    pub on: On,
    /// The ENIs.
    pub siblings: Siblings,
    /// Their cards.
    pub cards: Cards,
    /// What others did.
    pub main: Main,
    /// What was there before.
    pub restart: Restart,
}

impl fmt::Display for Combination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.families, self.subnets, self.delegation)?;
        if self.delegation != Delegation::None {
            write!(f, "-on-{}", self.on)?;
        }
        write!(f, "/{}/{}/{}/{}", self.siblings, self.cards, self.main, self.restart)
    }
}

/// A value, by the number of its dimension and its own.
type Value = (u8, u8);

/// How often each pair of values of two dimensions was chosen.
#[derive(Default)]
struct Pairs(BTreeMap<(Value, Value), usize>);

impl Pairs {
    fn of(combination: &Combination) -> Vec<(Value, Value)> {
        let values = combination.values();
        let pairs = values.iter().enumerate();
        pairs.flat_map(|(n, a)| values.iter().skip(n + 1).map(|b| (*a, *b))).collect()
    }

    fn add(&mut self, combination: &Combination) {
        for pair in Self::of(combination) {
            *self.0.entry(pair).or_default() += 1;
        }
    }

    /// How many pairs are new, and how worn the others are.
    fn gain(&self, combination: &Combination) -> (usize, std::cmp::Reverse<usize>) {
        let pairs = Self::of(combination);
        let counts = pairs.iter().map(|pair| self.0.get(pair).copied().unwrap_or_default());
        let new = counts.clone().filter(|count| *count == 0).count();
        (new, std::cmp::Reverse(counts.sum()))
    }
}

impl Combination {
    /// Families, subnets, delegation, siblings and restart with each other; for each, the rest is
    /// chosen so that every pair of values of any two dimensions comes up, as evenly as can be.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut pairs = Pairs::default();
        let mut chosen = Vec::new();
        for variants in Self::crossed() {
            let best = variants.into_iter().rev().max_by_key(|variant| pairs.gain(variant));
            if let Some(best) = best {
                pairs.add(&best);
                chosen.push(best);
            }
        }
        chosen
    }

    /// So many of them, each time one that shows the most pairs of values that were not shown yet.
    #[must_use]
    pub fn spread(number: usize, fits: impl Fn(&Self) -> bool) -> Vec<Self> {
        let mut left: Vec<Self> = Self::all().into_iter().filter(fits).collect();
        let mut pairs = Pairs::default();
        let mut chosen = Vec::new();
        while chosen.len() < number {
            let ranked = left.iter().enumerate().rev();
            let best = ranked.max_by_key(|(_, combination)| pairs.gain(combination));
            let Some(best) = best.map(|(n, _)| n) else { break };
            let best = left.swap_remove(best);
            pairs.add(&best);
            chosen.push(best);
        }
        chosen
    }

    /// All pairs of values of two dimensions that are possible at all and that `chosen` lacks.
    #[must_use]
    pub fn lacking(chosen: &[Self]) -> Vec<String> {
        let mut examples: BTreeMap<(Value, Value), Self> = BTreeMap::new();
        for possible in Self::crossed().into_iter().flatten() {
            for pair in Pairs::of(&possible) {
                examples.entry(pair).or_insert(possible);
            }
        }
        let there: BTreeSet<_> = chosen.iter().flat_map(Pairs::of).collect();
        let lacking = examples.into_iter().filter(|(pair, _)| !there.contains(pair));
        lacking
            .map(|(((a, _), (b, _)), example)| format!("dimensions {a} and {b} of {example}"))
            .collect()
    }

    /// How many ENIs there are.
    #[must_use]
    pub const fn enis(&self) -> usize {
        match self.siblings {
            Siblings::One => 1,
            Siblings::Two => 2,
            Siblings::Close => 3,
            Siblings::Interleaved => 4,
        }
    }

    /// Whether the ENI of this number has a delegated prefix.
    #[must_use]
    pub fn delegates_to(&self, number: usize) -> bool {
        let chosen = match self.on {
            On::Second => number == 1,
            On::Primary => number == 0,
            On::Both => number < 2,
        };
        chosen && self.delegation != Delegation::None
    }

    /// What the five main dimensions give, each with all that the others can make of it.
    fn crossed() -> Vec<Vec<Self>> {
        let mut crossed = Vec::new();
        for families in Families::ALL.iter().copied() {
            for subnets in Subnets::ALL.iter().copied() {
                for delegation in Delegation::ALL.iter().copied() {
                    for siblings in Siblings::ALL.iter().copied() {
                        for restart in Restart::ALL.iter().copied() {
                            let (on, cards, main) = (On::Primary, Cards::Single, Main::Plain);
                            crossed.push(Self {
                                families,
                                subnets,
                                delegation,
                                on,
                                siblings,
                                cards,
                                main,
                                restart,
                            });
                        }
                    }
                }
            }
        }
        let variants = crossed.iter().map(|core| core.variants());
        variants.filter(|variants| !variants.is_empty()).collect()
    }

    fn variants(self) -> Vec<Self> {
        let mut variants = Vec::new();
        for on in On::ALL.iter().copied() {
            for cards in Cards::ALL.iter().copied() {
                for main in Main::ALL.iter().copied() {
                    variants.push(Self { on, cards, main, ..self });
                }
            }
        }
        variants.retain(Self::possible);
        variants
    }

    fn possible(&self) -> bool {
        let alone = self.siblings == Siblings::One;
        let others =
            !alone || (self.families != Families::Mixed && self.restart != Restart::Renamed);
        let prefixes = self.delegation != Delegation::None;
        // Every ENI of a subnet with IPv4 has IPv4.
        let others =
            others && (self.families != Families::Mixed || self.subnets != Subnets::Shared);
        // One ENI shares its subnet with nobody, and its DHCP client is in every instance.
        let subnets = !alone || matches!(self.subnets, Subnets::Own | Subnets::StaticRoutes);
        let dhcp = !alone || self.main != Main::Dhcp;
        let on = self.on == On::Primary || (prefixes && !alone);
        // What is an address of the host cannot be one behind a bridge.
        let bridge = matches!(self.delegation, Delegation::Rules | Delegation::Ignore);
        others && subnets && dhcp && on && (bridge || self.main != Main::PrefixBridge)
    }

    fn values(&self) -> Vec<Value> {
        let mut values = vec![
            (0, self.families as u8),
            (1, self.subnets as u8),
            (2, self.delegation as u8),
            (4, self.siblings as u8),
            (5, self.cards as u8),
            (6, self.main as u8),
            (7, self.restart as u8),
        ];
        if self.delegation != Delegation::None {
            values.push((3, self.on as u8));
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_values_comes_up_and_every_name_is_one_combinations_only() {
        let all = Combination::all();
        assert_eq!(Combination::lacking(&all), Vec::<String>::new());
        let names: BTreeSet<String> = all.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), all.len());
    }

    #[test]
    fn few_of_them_show_nearly_every_pair() {
        let few = Combination::spread(40, |_| true);
        let lacking = Combination::lacking(&few);
        assert!(lacking.len() <= 4, "{lacking:#?}");
        assert_eq!(Combination::spread(40, |_| true), few, "the choice is always the same");
    }
}
