//! Which own routes and rules may go because nobody wishes for them: those of ENIs that are known well
//! enough to say so.

use std::collections::BTreeSet;

use crate::desired::{Desired, linked, looked_up};
use crate::eni::{Eni, Facts};
use crate::metadata::EniKey;
use crate::metadata::facts::State;
use crate::object::{Family, LinkIndex, Mac, TableId};
use crate::observed::SeenAddress;
use crate::proof::{self, is_link_local};

/// Whether an ENI has, or after a restart may still have, rules: its metadata may be late.
pub(crate) fn may_still_have_rules(facts: &Facts<'_>, eni: &Eni<'_>) -> bool {
    let before = facts.observed.ledger.tables.contains_key(&eni.mac);
    let routed = eni.managed() && eni.routed();
    routed || (before && eni.link.is_some() && !eni.released() && !eni.managed())
}

/// Whether own routes leave by a link that metadata has not told apart from an ENI's yet: without a
/// ledger they are all that says that there was another ENI.
pub(crate) fn own_routes_elsewhere(facts: &Facts<'_>, enis: &[Eni<'_>]) -> bool {
    let settled = |link: LinkIndex| {
        let mut here = enis.iter().filter(|eni| eni.link.is_some_and(|own| own.index == link));
        here.any(|eni| eni.primary || eni.managed() || eni.released())
    };
    facts.observed.own_routes().filter_map(|own| own.link).any(|link| !settled(link))
}

/// Finds the tables, and the links in shared tables, for which what is not wished for may go.
pub(crate) fn tables(facts: &Facts<'_>, enis: &[Eni<'_>], desired: &mut Desired) {
    let settled = |eni: &Eni<'_>| eni.managed() || eni.released();
    let listed = &facts.metadata.listed;
    let all_listed_known = facts.metadata.top_read.is_some()
        && listed.iter().all(|mac| {
            facts.observed.links_of(*mac).next().is_none()
                || enis.iter().any(|eni| eni.mac == *mac && settled(eni))
        });
    // What is released as a whole is nobody's, whatever metadata may say of it.
    let everything_known = (facts.observed.ledger.released_all || all_listed_known)
        && enis.iter().all(|eni| settled(eni) || eni.link.is_none());
    desired.unclear = !everything_known;

    let mut tables: BTreeSet<TableId> =
        facts.observed.own_routes().map(|route| route.table).collect();
    tables.extend(facts.observed.own_rules().filter_map(looked_up));
    tables.extend(facts.observed.snapshot.markings.iter().map(|seen| seen.marking.table));
    for table in tables.into_iter().filter(|table| !shared(*table)) {
        let owner = |eni: &&Eni<'_>| eni.managed() && eni.table == Some(table);
        let may_go = if enis.iter().any(|eni| owner(&eni)) {
            true
        } else {
            abandoned(facts, enis, table).unwrap_or(everything_known)
        };
        if may_go {
            let owner = enis.iter().find(owner).filter(|eni| has_rules(eni, desired));
            let families = [Family::V4, Family::V6].into_iter();
            let go = families
                .filter(|family| !owner.is_some_and(|eni| kept(facts, eni, *family, desired)));
            desired.cleared.extend(go.map(|family| (table, family)).collect::<Vec<_>>());
        }
    }
    for (eni, link) in linked(enis).filter(|(eni, _)| settled(eni)) {
        for family in [Family::V4, Family::V6] {
            if eni.released() || !kept(facts, eni, family, desired) {
                desired.settled.insert((link.index, family));
            }
        }
    }
}

/// Whether rules are wished for, of whichever family.
fn has_rules(eni: &Eni<'_>, desired: &Desired) -> bool {
    desired.rules.values().any(|mac| *mac == eni.mac)
}

/// Whether nothing can be wished for in a family now, and its end is not proven: metadata could not
/// be read, or addresses are left that wait for their proof.
fn kept(facts: &Facts<'_>, eni: &Eni<'_>, family: Family, desired: &Desired) -> bool {
    let Some((known, link)) = eni.facts.zip(eni.link) else { return false };
    let off = family == Family::V6 && !link.ipv6;
    if off || eni.usable().any(|stack| stack.family == family) {
        return false;
    }
    let keys = match family {
        Family::V4 => [EniKey::SubnetIpv4, EniKey::LocalIpv4s, EniKey::Ipv4Prefixes],
        Family::V6 => [EniKey::SubnetIpv6, EniKey::Ipv6s, EniKey::Ipv6Prefixes],
    };
    let unknown = keys.iter().any(|key| known.state(*key) == State::Unknown);
    let waits = |seen: &SeenAddress| {
        let address = seen.address;
        address.link == link.index
            && Family::of(address.address) == family
            && !is_link_local(address.address)
            && !desired.removals.contains(&address)
            && !proof::address_is_gone(facts, eni, address.address)
    };
    unknown || facts.observed.snapshot.addresses.iter().any(waits)
}

/// Whether a table is not enid's alone.
pub(crate) const fn shared(table: TableId) -> bool {
    matches!(table, TableId::MAIN | TableId::LOCAL)
}

/// Whether a table that no managed ENI has may be emptied; none where that cannot be told.
fn abandoned(facts: &Facts<'_>, enis: &[Eni<'_>], table: TableId) -> Option<bool> {
    let settled = |eni: Option<&Eni<'_>>| eni.is_some_and(|eni| eni.managed() || eni.released());
    let mut links =
        facts.observed.own_routes().filter(|own| own.table == table).filter_map(|own| own.link);
    if let Some(link) = links.next() {
        let eni = enis.iter().find(|eni| eni.link.is_some_and(|other| other.index == link));
        return Some(settled(eni));
    }
    let owners = facts.observed.ledger.tables.iter();
    let owners: Vec<Mac> =
        owners.filter(|(_, owned)| **owned == table).map(|(mac, _)| *mac).collect();
    if owners.is_empty() {
        return None;
    }
    Some(owners.iter().all(|mac| {
        facts.observed.links_of(*mac).next().is_none()
            || settled(enis.iter().find(|eni| eni.mac == *mac))
    }))
}
