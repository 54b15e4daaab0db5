//! Compact sources: the few prefixes that tell one ENI's addresses from its siblings'.

use std::net::IpAddr;

use ipnet::IpNet;

/// The maximal prefixes within `subnet` that hold at least one of `mine` and none of `others`.
///
/// Both lists hold addresses (as /32 or /128) and delegated prefixes. What both claim belongs to
/// neither. Nothing of `mine` gives nothing; nothing of `others` gives the subnet itself.
#[must_use]
pub fn compact(subnet: IpNet, mine: &[IpNet], others: &[IpNet]) -> Vec<IpNet> {
    let mine: Vec<IpNet> = mine.iter().filter(|net| subnet.contains(*net)).copied().collect();
    let others: Vec<IpNet> = others.iter().filter(|net| overlap(subnet, **net)).copied().collect();
    let mut found = Vec::new();
    split(subnet, &mine, &others, &mut found);
    found
}

fn split(part: IpNet, mine: &[IpNet], others: &[IpNet], found: &mut Vec<IpNet>) {
    let mine: Vec<IpNet> = mine.iter().filter(|net| overlap(part, **net)).copied().collect();
    if mine.is_empty() {
        return;
    }
    let others: Vec<IpNet> = others.iter().filter(|net| overlap(part, **net)).copied().collect();
    if others.is_empty() {
        found.push(part);
        return;
    }
    // A subnet of IPv6 is halved 64 times; most halves hold nothing of anybody's.
    let part = around(part, mine.iter().chain(&others));
    // Without an end to be seen where both claim a prefix of IPv6.
    if others.iter().any(|net| net.contains(&part)) {
        return;
    }
    if let Ok(halves) = part.subnets(part.prefix_len() + 1) {
        for half in halves {
            split(half, &mine, &others, found);
        }
    }
}

/// The smallest part of a net that holds all of these, which overlap it.
fn around<'a>(part: IpNet, nets: impl Iterator<Item = &'a IpNet> + Clone) -> IpNet {
    let first = nets.clone().map(IpNet::network).min();
    let last = nets.map(IpNet::broadcast).max();
    let common = match (first, last) {
        (Some(IpAddr::V4(first)), Some(IpAddr::V4(last))) => {
            (u32::from(first) ^ u32::from(last)).leading_zeros()
        }
        (Some(IpAddr::V6(first)), Some(IpAddr::V6(last))) => {
            (u128::from(first) ^ u128::from(last)).leading_zeros()
        }
        (_, _) => return part,
    };
    // What one of them lies in cannot be smaller.
    let length = u8::try_from(common).ok().filter(|length| *length > part.prefix_len());
    let net = first.zip(length).and_then(|(first, length)| IpNet::new(first, length).ok());
    net.map_or(part, |net| net.trunc())
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nets(text: &str) -> Vec<IpNet> {
        text.split_whitespace()
            .map(|word| {
                let word = if word.contains('/') { word.to_owned() } else { format!("{word}/32") };
                word.parse().unwrap()
            })
            .collect()
    }

    fn check(subnet: &str, mine: &str, others: &str, expected: &str) {
        assert_eq!(compact(subnet.parse().unwrap(), &nets(mine), &nets(others)), nets(expected));
    }

    #[test]
    fn an_eni_alone_in_its_subnet_has_the_subnet() {
        check("10.0.1.0/24", "10.0.1.4 10.0.1.9", "10.0.2.4", "10.0.1.0/24");
    }

    #[test]
    fn siblings_are_separated_by_few_prefixes() {
        check("10.0.0.0/24", "10.0.0.128 10.0.0.129", "10.0.0.130 10.0.0.131", "10.0.0.128/31");
        check("10.0.0.0/24", "10.0.0.4 10.0.0.200", "10.0.0.130", "10.0.0.0/25 10.0.0.192/26");
    }

    #[test]
    fn a_delegated_prefix_counts_whole() {
        check("10.0.0.0/24", "10.0.0.16/28", "10.0.0.4", "10.0.0.16/28");
    }

    #[test]
    fn what_both_claim_belongs_to_neither() {
        check("10.0.0.0/24", "10.0.0.4", "10.0.0.4", "");
        check("2001:db8::/64", "2001:db8:0:0:a::/80", "2001:db8:0:0:a::/80", "");
    }

    proptest! {
        #[test]
        fn sources_separate_and_cannot_be_fewer(
            mine in prop::collection::btree_set(0u8..64, 0..12),
            others in prop::collection::btree_set(0u8..64, 0..12),
        ) {
            let mine: Vec<u8> = mine.difference(&others).copied().collect();
            let host = |n: &u8| format!("10.0.0.{n}/32").parse::<IpNet>().unwrap();
            let ours: Vec<IpNet> = mine.iter().map(host).collect();
            let theirs: Vec<IpNet> = others.iter().map(host).collect();
            let found = compact("10.0.0.0/26".parse().unwrap(), &ours, &theirs);
            for net in &ours {
                prop_assert_eq!(found.iter().filter(|s| s.contains(net)).count(), 1);
            }
            for net in &theirs {
                prop_assert!(!found.iter().any(|s| s.contains(net)));
            }
            // Brute force: a run of ours without one of theirs between, cut at the binary tree,
            // is covered by the largest block around each address that holds none of theirs.
            let mut blocks = std::collections::BTreeSet::new();
            for n in &mine {
                let mut length = 32;
                while length > 26 {
                    let wider: IpNet = format!("10.0.0.{n}/{}", length - 1).parse::<IpNet>().unwrap().trunc();
                    if theirs.iter().any(|t| wider.contains(t)) { break; }
                    length -= 1;
                }
                blocks.insert(format!("10.0.0.{n}/{length}").parse::<IpNet>().unwrap().trunc());
            }
            prop_assert_eq!(found.into_iter().collect::<std::collections::BTreeSet<_>>(), blocks);
        }
    }
}
