//! The numbers of the kernel's ABI that we read (`linux/rtnetlink.h`, `if_link.h`, `if_addr.h`,
//! `fib_rules.h`, `neighbour.h`); they never change.

macro_rules! numbers {
    ($($type:ty { $($name:ident = $value:expr,)+ })+) => {
        $($(pub(crate) const $name: $type = $value;)+)+
    };
}

numbers! {
    u8 {
        AF_UNSPEC = 0,
        AF_INET = 2,
        AF_INET6 = 10,
        FR_ACT_TO_TBL = 1,
        NTF_ROUTER = 0x80,
        RTNH_F_ONLINK = 4,
        RTN_UNICAST = 1,
        RTN_LOCAL = 2,
        RTN_BLACKHOLE = 6,
        RTN_UNREACHABLE = 7,
        RTN_PROHIBIT = 8,
    }
    u16 {
        RTM_NEWLINK = 16,
        RTM_NEWADDR = 20,
        RTM_DELADDR = 21,
        RTM_NEWROUTE = 24,
        RTM_DELROUTE = 25,
        RTM_NEWNEIGH = 28,
        RTM_DELNEIGH = 29,
        RTM_NEWRULE = 32,
        RTM_DELRULE = 33,

        IFLA_ADDRESS = 1,
        IFLA_IFNAME = 3,
        IFLA_MTU = 4,
        IFLA_MASTER = 10,
        IFLA_LINKINFO = 18,
        IFLA_AF_SPEC = 26,
        IFLA_GROUP = 27,
        IFLA_PROP_LIST = 52,
        IFLA_ALT_IFNAME = 53,
        IFLA_PERM_ADDRESS = 54,
        IFLA_PARENT_DEV_NAME = 56,
        IFLA_PARENT_DEV_BUS_NAME = 57,
        IFLA_INFO_KIND = 1,
        IFLA_INET_CONF = 1,
        IFLA_INET6_CONF = 2,

        IFA_ADDRESS = 1,
        IFA_LOCAL = 2,
        IFA_CACHEINFO = 6,
        IFA_FLAGS = 8,
        IFA_PROTO = 11,

        RTA_DST = 1,
        RTA_OIF = 4,
        RTA_GATEWAY = 5,
        RTA_PRIORITY = 6,
        RTA_PREFSRC = 7,
        RTA_MULTIPATH = 9,
        RTA_CACHEINFO = 12,
        RTA_TABLE = 15,
        RTA_VIA = 18,
        RTA_PREF = 20,

        FRA_DST = 1,
        FRA_SRC = 2,
        FRA_IIFNAME = 3,
        FRA_PRIORITY = 6,
        FRA_FWMARK = 10,
        FRA_SUPPRESS_IFGROUP = 13,
        FRA_SUPPRESS_PREFIXLEN = 14,
        FRA_TABLE = 15,
        FRA_FWMASK = 16,
        FRA_OIFNAME = 17,
        FRA_PAD = 18,
        FRA_PROTOCOL = 21,

        NDA_DST = 1,
        NUD_REACHABLE = 0x02,
        NUD_STALE = 0x04,
        NUD_DELAY = 0x08,
        NUD_PROBE = 0x10,
        NUD_PERMANENT = 0x80,
    }
    u32 {
        IFF_UP = 0x1,
        IFF_LOWER_UP = 0x10000,
        IFA_F_DEPRECATED = 0x20,
        IFA_F_PERMANENT = 0x80,
        IFA_F_NOPREFIXROUTE = 0x200,
        RTM_F_CLONED = 0x200,
        FIB_RULE_INVERT = 0x2,
    }
}
