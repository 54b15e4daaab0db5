//! The numbers of nftables' ABI that we use (`linux/netfilter/nfnetlink.h`, `nf_tables.h`,
//! `nf_conntrack_common.h`); they never change.

macro_rules! numbers {
    ($($type:ty { $($name:ident = $value:expr,)+ })+) => {
        $($(pub(super) const $name: $type = $value;)+)+
    };
}

numbers! {
    u8 {
        NFPROTO_INET = 1,
        IP_CT_DIR_ORIGINAL = 0,
    }
    u16 {
        NFNL_SUBSYS_NFTABLES = 10,
        NFNL_MSG_BATCH_BEGIN = 16,
        NFNL_MSG_BATCH_END = 17,

        NFT_MSG_NEWTABLE = 0,
        NFT_MSG_GETTABLE = 1,
        NFT_MSG_DELTABLE = 2,
        NFT_MSG_NEWCHAIN = 3,
        NFT_MSG_GETCHAIN = 4,
        NFT_MSG_NEWRULE = 6,
        NFT_MSG_GETRULE = 7,

        NFTA_TABLE_NAME = 1,
        NFTA_TABLE_FLAGS = 2,
        NFTA_TABLE_USE = 3,

        NFTA_CHAIN_TABLE = 1,
        NFTA_CHAIN_NAME = 3,
        NFTA_CHAIN_HOOK = 4,
        NFTA_CHAIN_POLICY = 5,
        NFTA_CHAIN_TYPE = 7,
        NFTA_HOOK_HOOKNUM = 1,
        NFTA_HOOK_PRIORITY = 2,

        NFTA_RULE_TABLE = 1,
        NFTA_RULE_CHAIN = 2,
        NFTA_RULE_EXPRESSIONS = 4,
        NFTA_LIST_ELEM = 1,
        NFTA_EXPR_NAME = 1,
        NFTA_EXPR_DATA = 2,
        NFTA_DATA_VALUE = 1,

        NFTA_META_DREG = 1,
        NFTA_META_KEY = 2,
        NFTA_META_SREG = 3,
        NFTA_CT_DREG = 1,
        NFTA_CT_KEY = 2,
        NFTA_CT_SREG = 4,
        NFTA_CMP_SREG = 1,
        NFTA_CMP_OP = 2,
        NFTA_CMP_DATA = 3,
        NFTA_BITWISE_SREG = 1,
        NFTA_BITWISE_DREG = 2,
        NFTA_BITWISE_LEN = 3,
        NFTA_BITWISE_MASK = 4,
        NFTA_BITWISE_XOR = 5,
        NFTA_BITWISE_OP = 6,
    }
    u32 {
        NFNLGRP_NFTABLES = 7,
        NF_INET_PRE_ROUTING = 0,
        NF_ACCEPT = 1,
        NFT_REG_1 = 1,
        NFT_META_MARK = 3,
        NFT_META_IIFNAME = 6,
        NFT_CT_DIRECTION = 1,
        NFT_CT_STATUS = 2,
        NFT_CT_MARK = 3,
        NFT_CMP_EQ = 0,
        NFT_CMP_NEQ = 1,
        NFT_BITWISE_MASK_XOR = 0,
        IPS_DST_NAT = 1 << 5,
    }
    i32 {
        NF_IP_PRI_NAT_DST = -100,
    }
}
