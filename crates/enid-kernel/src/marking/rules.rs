//! What the table of a marking holds: one chain with two rules, as nftables keeps them.
//!
//! As `nft` would list it, for `ens6`, table 20001 and a mark of 0x00200000:
//!
//! ```text
//! table inet enid-20001 {
//!     chain prerouting {
//!         type filter hook prerouting priority dstnat + 10; policy accept;
//!         iifname "ens6" ct direction original ct status dnat ct mark set ct mark & 0x000fffff | 0x00200000
//!         ct status dnat ct mark & 0xfff00000 == 0x00200000 meta mark set meta mark & 0x000fffff | 0x00200000
//!     }
//! }
//! ```
//!
//! Only what had its destination translated is marked, so that neither the host's own connections
//! nor plain forwarding change. Each packet that comes in marks its connection again, not only the
//! first: a connection that began while the table was gone would never get through. Bits outside of
//! the mask stay as they are in both marks.

use enid_core::object::{Marking, TableId};

use super::numbers::*;

/// The table's family, `inet`: one table for IPv4 and IPv6.
pub(super) const FAMILY: u8 = NFPROTO_INET;
/// The only chain.
pub(super) const CHAIN: &str = "prerouting";
/// The chain's kind.
pub(super) const TYPE: &str = "filter";
/// Where the chain is called: before the packet is routed.
pub(super) const HOOK: u32 = NF_INET_PRE_ROUTING;
/// When it is called there: after the translation of the destination.
pub(super) const PRIORITY: i32 = NF_IP_PRI_NAT_DST + 10;

const PREFIX: &str = "enid-";

/// The table's name.
pub(super) fn name(table: TableId) -> String {
    format!("{PREFIX}{}", table.0)
}

/// Whose table it is, by its name; none where it is not one of enid's.
pub(super) fn table_of(name: &str) -> Option<TableId> {
    let table = name.strip_prefix(PREFIX)?.parse().ok().map(TableId)?;
    (self::name(table) == name).then_some(table)
}

/// A part of a rule: its kind, and its attributes in no particular order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Expression {
    pub(super) kind: &'static str,
    pub(super) attributes: Vec<(u16, Value)>,
}

/// An attribute's value.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// A number in the network's order.
    Number(u32),
    /// What a register is compared or combined with, as it lies in the register.
    Data(Vec<u8>),
}

/// The rules in their order; none where the link's name is none.
pub(super) fn rules(marking: &Marking) -> Option<[Vec<Expression>; 2]> {
    let set_bits = || bitwise(!Marking::MASK, marking.mark);
    let mut came_in = vec![meta(NFT_META_IIFNAME), is(&link_name(&marking.link)?)];
    came_in.extend([ct(NFT_CT_DIRECTION), is(&[IP_CT_DIR_ORIGINAL])]);
    came_in.extend(translated());
    came_in.extend([ct(NFT_CT_MARK), set_bits(), set_ct(NFT_CT_MARK)]);
    let mut is_marked = translated();
    is_marked.extend([ct(NFT_CT_MARK), bitwise(Marking::MASK, 0)]);
    is_marked.push(is(&marking.mark.to_ne_bytes()));
    is_marked.extend([meta(NFT_META_MARK), set_bits(), set_meta(NFT_META_MARK)]);
    Some([came_in, is_marked])
}

/// The name as the kernel compares it: with zeros up to its full length.
fn link_name(name: &str) -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    let fits = !name.is_empty() && name.len() < bytes.len() && !name.contains('\0');
    bytes.get_mut(..name.len()).filter(|_| fits)?.copy_from_slice(name.as_bytes());
    Some(bytes)
}

/// `ct status dnat`
fn translated() -> Vec<Expression> {
    vec![ct(NFT_CT_STATUS), bitwise(IPS_DST_NAT, 0), compare(NFT_CMP_NEQ, &[0; 4])]
}

fn is(value: &[u8]) -> Expression {
    compare(NFT_CMP_EQ, value)
}

fn meta(key: u32) -> Expression {
    expression("meta", [(NFTA_META_KEY, key), (NFTA_META_DREG, NFT_REG_1)], [])
}

fn set_meta(key: u32) -> Expression {
    expression("meta", [(NFTA_META_KEY, key), (NFTA_META_SREG, NFT_REG_1)], [])
}

fn ct(key: u32) -> Expression {
    expression("ct", [(NFTA_CT_KEY, key), (NFTA_CT_DREG, NFT_REG_1)], [])
}

fn set_ct(key: u32) -> Expression {
    expression("ct", [(NFTA_CT_KEY, key), (NFTA_CT_SREG, NFT_REG_1)], [])
}

fn compare(operation: u32, value: &[u8]) -> Expression {
    let numbers = [(NFTA_CMP_SREG, NFT_REG_1), (NFTA_CMP_OP, operation)];
    expression("cmp", numbers, [(NFTA_CMP_DATA, value)])
}

/// The register's bits that are in the mask, and then the others.
fn bitwise(mask: u32, others: u32) -> Expression {
    let numbers = [
        (NFTA_BITWISE_SREG, NFT_REG_1),
        (NFTA_BITWISE_DREG, NFT_REG_1),
        (NFTA_BITWISE_LEN, 4),
        (NFTA_BITWISE_OP, NFT_BITWISE_MASK_XOR),
    ];
    let (mask, others) = (mask.to_ne_bytes(), others.to_ne_bytes());
    expression("bitwise", numbers, [(NFTA_BITWISE_MASK, &mask), (NFTA_BITWISE_XOR, &others)])
}

fn expression<const N: usize, const D: usize>(
    kind: &'static str,
    numbers: [(u16, u32); N],
    data: [(u16, &[u8]); D],
) -> Expression {
    let numbers = numbers.into_iter().map(|(kind, number)| (kind, Value::Number(number)));
    let data = data.into_iter().map(|(kind, bytes)| (kind, Value::Data(bytes.to_vec())));
    Expression { kind, attributes: numbers.chain(data).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_that_we_would_give_is_one_of_ours() {
        assert_eq!(table_of("enid-20001"), Some(TableId(20_001)));
        for name in ["enid-", "enid-020001", "enid-+1", "enid-nat", "enid-4294967296", "nat"] {
            assert_eq!(table_of(name), None, "{name}");
        }
    }

    #[test]
    fn a_link_without_a_sane_name_cannot_be_marked() {
        let marking =
            |link: &str| Marking { table: TableId(1), link: link.to_owned(), mark: 1 << 20 };
        assert!(rules(&marking("fifteen-letters")).is_some());
        for name in ["", "sixteen--letters", "a\0b"] {
            assert_eq!(rules(&marking(name)), None, "{name:?}");
        }
    }
}
