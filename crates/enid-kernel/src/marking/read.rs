//! From the kernel's tables to markings: whatever differs from what we would write makes one
//! incomplete.

use enid_core::object::{Marking, TableId};
use enid_core::observed::SeenMarking;
use nix::errno::Errno;

use super::numbers::*;
use super::rules::{CHAIN, Expression, FAMILY, HOOK, PRIORITY, TYPE, Value, rules, table_of};
use super::write;
use crate::connection::Requests;
use crate::error::Error;
use crate::wire::read::text;
use crate::wire::{Told, attributes, nested};

/// All tables whose name says that they are ours.
pub(super) async fn all(requests: &mut Requests) -> Result<Vec<SeenMarking>, Error> {
    let told = requests.dump("listing nftables' tables", write::tables).await?;
    let tables: Vec<_> = bodies(&told, NFT_MSG_NEWTABLE).filter_map(table).collect();
    let mut seen = Vec::with_capacity(tables.len());
    for (table, plain) in tables {
        let ask = || write::rules_of(table);
        let rules = requests.dump("listing nftables' rules", ask).await?;
        let rules: Vec<_> = bodies(&rules, NFT_MSG_NEWRULE).collect();
        let marking = guess(table, &rules);
        let complete =
            plain && are_our_rules(&marking, &rules) && has_our_chain(requests, table).await?;
        seen.push(SeenMarking { marking, complete });
    }
    Ok(seen)
}

/// Reads messages as if they were the answers to all of [`all`]'s questions.
#[cfg(feature = "fuzzing")]
pub(crate) fn whatever(told: &[Told]) -> Vec<SeenMarking> {
    let rules: Vec<_> = bodies(told, NFT_MSG_NEWRULE).collect();
    let chain = bodies(told, NFT_MSG_NEWCHAIN).any(is_our_chain);
    let tables = bodies(told, NFT_MSG_NEWTABLE).filter_map(table);
    let seen = tables.map(|(table, plain)| {
        let marking = guess(table, &rules);
        let complete = plain && chain && are_our_rules(&marking, &rules);
        SeenMarking { marking, complete }
    });
    seen.collect()
}

/// Whether the one chain of a table is as we would write it.
async fn has_our_chain(requests: &mut Requests, table: TableId) -> Result<bool, Error> {
    let ask = || write::chain_of(table);
    match requests.dump("looking at a chain of nftables", ask).await {
        Ok(told) => Ok(bodies(&told, NFT_MSG_NEWCHAIN).any(is_our_chain)),
        Err(Error::Refused { errno, .. }) if errno == Errno::ENOENT as i32 => Ok(false),
        Err(error) => Err(error),
    }
}

/// The attributes of the messages of one kind and of our family.
fn bodies(told: &[Told], kind: u16) -> impl Iterator<Item = &[u8]> {
    const HEADER: usize = 4;
    let kind = NFNL_SUBSYS_NFTABLES << 8 | kind;
    let ours = move |told: &&Told| told.kind == kind && told.body.first() == Some(&FAMILY);
    told.iter().filter(ours).filter_map(|told| told.body.get(HEADER..))
}

/// The table, where it is one of ours, and whether it holds one thing, the chain, and has no flags:
/// one of them puts it to sleep.
fn table(body: &[u8]) -> Option<(TableId, bool)> {
    let table = table_of(&text(nested(body, NFTA_TABLE_NAME)?))?;
    let is = |kind, expected| number(body, kind) == Some(expected);
    Some((table, is(NFTA_TABLE_FLAGS, 0) && is(NFTA_TABLE_USE, 1)))
}

fn is_our_chain(body: &[u8]) -> bool {
    let is = |kind, expected: &str| nested(body, kind).map(text).as_deref() == Some(expected);
    let hook = nested(body, NFTA_CHAIN_HOOK).unwrap_or_default();
    is(NFTA_CHAIN_NAME, CHAIN)
        && is(NFTA_CHAIN_TYPE, TYPE)
        && number(body, NFTA_CHAIN_POLICY) == Some(NF_ACCEPT)
        && number(hook, NFTA_HOOK_HOOKNUM) == Some(HOOK)
        && number(hook, NFTA_HOOK_PRIORITY) == Some(u32::from_be_bytes(PRIORITY.to_be_bytes()))
}

/// What the rules are meant to do, as far as the first one tells.
fn guess(table: TableId, rules: &[&[u8]]) -> Marking {
    let first = rules.first().map(|body| expressions(body)).unwrap_or_default();
    let data = |(name, data): &(String, &[u8]), kind, attribute| {
        let data = (name == kind).then(|| nested(data, attribute)).flatten()?;
        nested(data, NFTA_DATA_VALUE).map(<[u8]>::to_vec)
    };
    let link = first.iter().find_map(|part| data(part, "cmp", NFTA_CMP_DATA));
    let bits = first.iter().rev().find_map(|part| data(part, "bitwise", NFTA_BITWISE_XOR));
    let mark = bits.and_then(|bits| bits.try_into().ok()).map(u32::from_ne_bytes);
    let link = link.map(|link| text(&link)).unwrap_or_default();
    Marking { table, link, mark: mark.unwrap_or_default() }
}

fn are_our_rules(marking: &Marking, told: &[&[u8]]) -> bool {
    let Some(ours) = rules(marking) else {
        return false;
    };
    let same = |(told, ours): (&&[u8], &Vec<Expression>)| {
        let told = expressions(told);
        told.len() == ours.len() && told.iter().zip(ours).all(is_ours)
    };
    told.len() == ours.len() && told.iter().zip(&ours).all(same)
}

/// Whether an expression has all that we would write. What newer kernels add says how they do it,
/// not what.
fn is_ours(((name, told), ours): (&(String, &[u8]), &Expression)) -> bool {
    let same = |(kind, value): &(u16, Value)| match value {
        Value::Number(expected) => number(told, *kind) == Some(*expected),
        Value::Data(expected) => {
            let data = nested(told, *kind).and_then(|data| nested(data, NFTA_DATA_VALUE));
            data == Some(expected)
        }
    };
    name == ours.kind && ours.attributes.iter().all(same)
}

/// A rule's expressions: the kind of each and its attributes.
fn expressions(rule: &[u8]) -> Vec<(String, &[u8])> {
    let list = nested(rule, NFTA_RULE_EXPRESSIONS).unwrap_or_default();
    let parts = attributes(list).map_while(Result::ok).map(|(_, part)| {
        let name = nested(part, NFTA_EXPR_NAME).map(text).unwrap_or_default();
        (name, nested(part, NFTA_EXPR_DATA).unwrap_or_default())
    });
    parts.collect()
}

/// A number in the network's order.
fn number(bytes: &[u8], kind: u16) -> Option<u32> {
    nested(bytes, kind).and_then(|value| value.try_into().ok()).map(u32::from_be_bytes)
}
