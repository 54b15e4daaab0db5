//! From a marking to the requests that make it, and to those that ask what is there.

use enid_core::object::{Marking, TableId};
use rtnetlink::packet_core::{
    DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP,
    NLM_F_REQUEST, NetlinkMessage,
};

use super::numbers::*;
use super::rules::{CHAIN, Expression, FAMILY, HOOK, PRIORITY, TYPE, Value, name, rules};
use crate::wire::Message;

type Ask = NetlinkMessage<Message>;

/// Makes the table. Deleting what is not there would fail, so it is made first, and made again: all
/// of it becomes visible at once.
pub(super) fn make(marking: &Marking) -> Result<Vec<Ask>, &'static str> {
    const NEW: u16 = NLM_F_ACK | NLM_F_CREATE;
    let rules = rules(marking).ok_or("a marking without a link's name")?;
    let table = name(marking.table);
    let new_table = || change(NFT_MSG_NEWTABLE, NEW, &[text(NFTA_TABLE_NAME, &table)]);
    let hook = [
        number(NFTA_HOOK_HOOKNUM, HOOK),
        DefaultNla::new(NFTA_HOOK_PRIORITY, PRIORITY.to_be_bytes().into()),
    ];
    let chain = [
        text(NFTA_CHAIN_TABLE, &table),
        text(NFTA_CHAIN_NAME, CHAIN),
        nest(NFTA_CHAIN_HOOK, &hook),
        number(NFTA_CHAIN_POLICY, NF_ACCEPT),
        text(NFTA_CHAIN_TYPE, TYPE),
    ];
    let rule = |expressions: &Vec<Expression>| {
        let expressions: Vec<_> = expressions.iter().map(expression).collect();
        let rule = [
            text(NFTA_RULE_TABLE, &table),
            text(NFTA_RULE_CHAIN, CHAIN),
            nest(NFTA_RULE_EXPRESSIONS, &expressions),
        ];
        change(NFT_MSG_NEWRULE, NEW | NLM_F_APPEND, &rule)
    };
    let mut asks = vec![begin(), new_table()];
    asks.push(change(NFT_MSG_DELTABLE, NLM_F_ACK, &[text(NFTA_TABLE_NAME, &table)]));
    asks.extend([new_table(), change(NFT_MSG_NEWCHAIN, NEW, &chain)]);
    asks.extend(rules.iter().map(rule));
    asks.push(end());
    Ok(asks)
}

/// Deletes the table and all that is in it.
pub(super) fn delete(marking: &Marking) -> Vec<Ask> {
    let table = [text(NFTA_TABLE_NAME, &name(marking.table))];
    vec![begin(), change(NFT_MSG_DELTABLE, NLM_F_ACK, &table), end()]
}

/// Asks for all tables of our family.
pub(super) fn tables() -> Ask {
    change(NFT_MSG_GETTABLE, NLM_F_DUMP, &[])
}

/// Asks for our chain of a table. A busy packet filter has thousands of others, and the kernel
/// lists them all or one.
pub(super) fn chain_of(table: TableId) -> Ask {
    let chain = [text(NFTA_CHAIN_TABLE, &name(table)), text(NFTA_CHAIN_NAME, CHAIN)];
    change(NFT_MSG_GETCHAIN, NLM_F_ACK, &chain)
}

/// Asks for a table's rules.
pub(super) fn rules_of(table: TableId) -> Ask {
    change(NFT_MSG_GETRULE, NLM_F_DUMP, &[text(NFTA_RULE_TABLE, &name(table))])
}

fn expression(expression: &Expression) -> DefaultNla {
    let attribute = |(kind, value): &(u16, Value)| match value {
        Value::Number(value) => number(*kind, *value),
        Value::Data(data) => nest(*kind, &[DefaultNla::new(NFTA_DATA_VALUE, data.clone())]),
    };
    let attributes: Vec<_> = expression.attributes.iter().map(attribute).collect();
    let parts = [text(NFTA_EXPR_NAME, expression.kind), nest(NFTA_EXPR_DATA, &attributes)];
    nest(NFTA_LIST_ELEM, &parts)
}

fn text(kind: u16, text: &str) -> DefaultNla {
    DefaultNla::new(kind, [text.as_bytes(), b"\0"].concat())
}

fn number(kind: u16, number: u32) -> DefaultNla {
    DefaultNla::new(kind, number.to_be_bytes().into())
}

fn nest(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    DefaultNla::new(kind | NLA_F_NESTED, bytes(attributes))
}

fn bytes(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

fn change(kind: u16, flags: u16, attributes: &[DefaultNla]) -> Ask {
    message(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, FAMILY, 0, &bytes(attributes))
}

fn begin() -> Ask {
    message(NFNL_MSG_BATCH_BEGIN, 0, 0, NFNL_SUBSYS_NFTABLES, &[])
}

fn end() -> Ask {
    message(NFNL_MSG_BATCH_END, 0, 0, NFNL_SUBSYS_NFTABLES, &[])
}

fn message(kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) -> Ask {
    const VERSION: u8 = 0;
    let [high, low] = resource.to_be_bytes();
    let body = [&[family, VERSION, high, low], attributes].concat();
    let mut ask = NetlinkMessage::from(Message::Bytes { kind, body });
    ask.header.flags = NLM_F_REQUEST | flags;
    ask
}
