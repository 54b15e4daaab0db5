//! What an ENI's link must be like: its MTU, names, group and kernel settings; and what it was like
//! before, for a release.

use std::collections::BTreeMap;

use crate::choice::Arp;
use crate::config::{Config, Mtu};
use crate::desired::{Change, Desired, Present, linked};
use crate::eni::{Eni, Facts};
use crate::object::{LinkGroup, Setting, Sysctl};
use crate::observed::Link;
use crate::report::Notice;

fn change(eni: &Eni<'_>, link: &Link, from: Option<Setting>, to: Option<Setting>) -> Change {
    Change { mac: eni.mac, link: link.index, from, to }
}

fn set_group(eni: &Eni<'_>, link: &Link, group: LinkGroup) -> Change {
    change(eni, link, Some(Setting::Group(link.group)), Some(Setting::Group(group)))
}

/// A link whose ENI has no rules needs no protection of its connected routes.
pub(crate) fn ungroup(eni: &Eni<'_>, link: &Link, desired: &mut Desired) {
    if link.group == Config::LINK_GROUP {
        desired.changes.push(set_group(eni, link, LinkGroup::default()));
    }
}

/// Puts the link of an ENI with rules into the group that keeps main's routes by it from being
/// taken.
pub(crate) fn group(eni: &Eni<'_>, link: &Link, desired: &mut Desired) {
    if link.group == LinkGroup::default() {
        desired.changes.push(set_group(eni, link, Config::LINK_GROUP));
    } else if link.group != Config::LINK_GROUP {
        desired.notices.push((eni.mac, Notice::ForeignGroup(link.group.0)));
    }
}

/// Wishes for the link of a managed ENI, apart from its group.
pub(crate) fn settings(
    facts: &Facts<'_>,
    eni: &Eni<'_>,
    link: &Link,
    enis: &[Eni<'_>],
    present: &Present,
    desired: &mut Desired,
) {
    sysctls(facts, eni, link, desired);
    if eni.primary {
        return;
    }
    let mtu = match eni.choice.mtu {
        Mtu::Keep => link.mtu,
        Mtu::Bytes(mtu) => mtu,
        Mtu::Primary => primary_mtu(enis, present).unwrap_or(link.mtu),
    };
    if mtu != link.mtu {
        let (from, to) = (Setting::Mtu(link.mtu), Setting::Mtu(mtu));
        desired.changes.push(change(eni, link, Some(from), Some(to)));
    }
    for name in alternative_names(eni) {
        let mut links = facts.observed.snapshot.links.iter();
        let taken =
            links.any(|other| other.name == name || other.alternative_names.contains(&name));
        if !taken {
            let to = Some(Setting::AlternativeName(name));
            desired.changes.push(change(eni, link, None, to));
        }
    }
    if !link.up {
        desired.changes.push(change(eni, link, None, Some(Setting::Up)));
    }
}

/// Kernel settings that the ENI needs, and those that it no longer needs as they were before.
fn sysctls(facts: &Facts<'_>, eni: &Eni<'_>, link: &Link, desired: &mut Desired) {
    let mut wishes = originals(facts, eni);
    wishes.extend(needed(eni));
    for (key, value) in wishes {
        if let Some(now) = link.sysctls.get(&key).filter(|now| **now != value) {
            let (from, to) = (Setting::Sysctl(key, *now), Setting::Sysctl(key, value));
            desired.changes.push(change(eni, link, Some(from), Some(to)));
        }
    }
}

/// What an ENI needs, by what was chosen for it.
pub(crate) fn needed(eni: &Eni<'_>) -> BTreeMap<Sysctl, i32> {
    let mut needed = BTreeMap::new();
    if eni.routed() && !eni.primary {
        // Its router's announcements would put another default route into main.
        needed.extend([(Sysctl::AcceptRaDefaultRoute, 0), (Sysctl::AcceptRaPrefix, 0)]);
    }
    if eni.choice.arp == Arp::Strict {
        // Answer for addresses of this link only, and ask with one of the target's subnet.
        needed.extend([(Sysctl::ArpIgnore, 1), (Sysctl::ArpAnnounce, 2)]);
    }
    if eni.routed() && eni.choice.published_ports {
        needed.insert(Sysctl::SourceValidMark, 1);
    }
    needed
}

/// What the link of a managed ENI has of what the ENI needs, apart from its MTU.
pub(crate) fn as_wished(eni: &Eni<'_>, link: &Link) -> Vec<Setting> {
    let mut has = Vec::new();
    if !eni.primary {
        has.extend(link.up.then_some(Setting::Up));
        let names = alternative_names(eni).into_iter();
        let here = |name: &String| link.name == *name || link.alternative_names.contains(name);
        has.extend(names.filter(here).map(Setting::AlternativeName));
    }
    has.extend((link.group == Config::LINK_GROUP).then_some(Setting::Group(link.group)));
    let needed =
        needed(eni).into_iter().filter(|(key, value)| link.sysctls.get(key) == Some(value));
    has.extend(needed.map(|(key, value)| Setting::Sysctl(key, value)));
    has
}

fn originals(facts: &Facts<'_>, eni: &Eni<'_>) -> BTreeMap<Sysctl, i32> {
    let originals = facts.observed.ledger.originals.get(&eni.mac).into_iter().flatten();
    let sysctl = |original: &Setting| match original {
        Setting::Sysctl(key, value) => Some((*key, *value)),
        Setting::Up | Setting::Mtu(_) | Setting::Group(_) | Setting::AlternativeName(_) => None,
    };
    originals.filter_map(sysctl).collect()
}

/// The MTU that others take from the primary ENI. Without its first address a DHCP client is at work
/// on it, which tells the link its MTU with the address.
fn primary_mtu(enis: &[Eni<'_>], present: &Present) -> Option<u32> {
    let (primary, link) = linked(enis).find(|(eni, _)| eni.primary)?;
    let first = primary.primary_address();
    let settled = first.is_none_or(|first| present.has(link.index, first));
    settled.then_some(link.mtu)
}

fn alternative_names(eni: &Eni<'_>) -> Vec<String> {
    let id = eni.facts.and_then(|known| known.keys.id.as_ref()).map(|id| id.0.clone());
    let place = eni.place.map(|(card, device)| format!("device-number-{device}.{card}"));
    id.into_iter().chain(place).collect()
}

/// What enid changed of a released ENI's link goes back.
pub(crate) fn restore(facts: &Facts<'_>, eni: &Eni<'_>, link: &Link, desired: &mut Desired) {
    ungroup(eni, link, desired);
    for original in facts.observed.ledger.originals.get(&eni.mac).into_iter().flatten() {
        let back = match original {
            Setting::Mtu(mtu) if *mtu != link.mtu => {
                Some((Some(Setting::Mtu(link.mtu)), Some(original.clone())))
            }
            Setting::Sysctl(key, value) => link
                .sysctls
                .get(key)
                .filter(|now| *now != value)
                .map(|now| (Some(Setting::Sysctl(*key, *now)), Some(original.clone()))),
            Setting::AlternativeName(name) if link.alternative_names.contains(name) => {
                Some((Some(original.clone()), None))
            }
            Setting::Mtu(_) | Setting::AlternativeName(_) | Setting::Up | Setting::Group(_) => None,
        };
        if let Some((from, to)) = back {
            desired.changes.push(change(eni, link, from, to));
        }
    }
}
