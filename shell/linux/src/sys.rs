//! Numbers of the kernel's interfaces that the libc crate has not, or has with the wrong width.
//! From `linux/if_link.h`, `linux/neighbour.h`, `linux/rtnetlink.h`, `linux/netfilter/nf_tables.h`,
//! `linux/netfilter/nfnetlink.h`, `linux/netfilter/nfnetlink_log.h`, `linux/netfilter/nfnetlink_conntrack.h`,
//! `linux/fib_rules.h`,
//! `linux/pkt_sched.h`, `linux/pkt_cls.h`, `linux/bpf.h` and
//! `linux/if_tun.h`.

use model::IfName;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `NDA_PROTOCOL` of the neighbour rows that we make, `RTA_PROTOCOL` of routes, `FRA_PROTOCOL` of
/// rules. In `/etc/iproute2/rt_protos` it is free.
pub const PROTOCOL: u8 = 118;

macro_rules! numbers {
    ($kind:ty: $($name:ident = $value:literal,)*) => { $(pub(crate) const $name: $kind = $value;)* };
}

numbers! { u16:
    IFLA_ADDRESS = 1, IFLA_IFNAME = 3, IFLA_MTU = 4, IFLA_LINK = 5, IFLA_MASTER = 10,
    IFLA_LINKINFO = 18, IFLA_STATS64 = 23, IFLA_IFALIAS = 20, IFLA_AF_SPEC = 26, IFLA_GROUP = 27,
    IFLA_NET_NS_FD = 28, IFLA_EXT_MASK = 29,
    IFLA_LINK_NETNSID = 37, IFLA_TARGET_NETNSID = 46,
    IFLA_INFO_KIND = 1, IFLA_INFO_DATA = 2, IFLA_INFO_SLAVE_KIND = 4, IFLA_INFO_SLAVE_DATA = 5,
    IFLA_INET6_CONF = 2, IFLA_INET6_ADDR_GEN_MODE = 8,
    IFLA_BR_FORWARD_DELAY = 1, IFLA_BR_VLAN_FILTERING = 7, IFLA_BR_MCAST_SNOOPING = 23, IFLA_BR_VLAN_DEFAULT_PVID = 39,
    IFLA_BRPORT_LEARNING = 8, IFLA_BRPORT_UNICAST_FLOOD = 9, IFLA_BRPORT_NEIGH_SUPPRESS = 32,
    IFLA_BRPORT_ISOLATED = 33, IFLA_BRIDGE_VLAN_INFO = 2,
    IFLA_VXLAN_ID = 1, IFLA_VXLAN_LOCAL = 4, IFLA_VXLAN_TTL = 5, IFLA_VXLAN_LEARNING = 7,
    IFLA_VXLAN_PORT = 15, IFLA_VXLAN_LOCAL6 = 17,
    IFLA_VXLAN_UDP_ZERO_CSUM6_RX = 20,
    IFLA_VXLAN_COLLECT_METADATA = 25, IFLA_VXLAN_DF = 29,
    IFLA_VLAN_ID = 1, IFLA_VLAN_FLAGS = 2, VETH_INFO_PEER = 1,
    IFLA_TUN_TYPE = 3, IFLA_TUN_VNET_HDR = 5, IFLA_TUN_MULTI_QUEUE = 7,
    NDA_DST = 1, NDA_LLADDR = 2, NDA_VLAN = 5, NDA_MASTER = 9, NDA_PROTOCOL = 12,
    NETNSA_NSID = 1, NETNSA_FD = 3,
    IFA_ADDRESS = 1, IFA_LOCAL = 2, IFA_FLAGS = 8, IFA_TARGET_NETNSID = 10,
    NFTA_TABLE_NAME = 1, NFTA_TABLE_FLAGS = 2,
    NFTA_RULE_TABLE = 1, NFTA_RULE_CHAIN = 2, NFTA_RULE_EXPRESSIONS = 4,
    NFTA_CHAIN_TABLE = 1, NFTA_CHAIN_NAME = 3, NFTA_CHAIN_HOOK = 4, NFTA_CHAIN_POLICY = 5,
    NFTA_CHAIN_TYPE = 7, NFTA_HOOK_HOOKNUM = 1,
    NFTA_SET_TABLE = 1, NFTA_SET_NAME = 2, NFTA_SET_KEY_TYPE = 4,
    NFTA_SET_KEY_LEN = 5, NFTA_SET_ID = 10,
    NFTA_SET_ELEM_LIST_TABLE = 1, NFTA_SET_ELEM_LIST_SET = 2, NFTA_SET_ELEM_LIST_ELEMENTS = 3,
    NFTA_SET_ELEM_KEY = 1, NFTA_SET_ELEM_DATA = 2, NFTA_SET_ELEM_TIMEOUT = 4, NFTA_SET_ELEM_OBJREF = 9,
    NFTA_SET_ELEM_KEY_END = 10, NFTA_GEN_ID = 1, NFNL_BATCH_GENID = 1, NFTA_OBJ_TYPE = 3, NFTA_DATA_VALUE = 1, NFTA_LIST_ELEM = 1,
    NFTA_OBJ_TABLE = 1, NFTA_OBJ_NAME = 2, NFTA_OBJ_DATA = 4, NFTA_COUNTER_BYTES = 1, NFTA_COUNTER_PACKETS = 2,
    NFULA_IFINDEX_INDEV = 4, NFULA_IFINDEX_PHYSINDEV = 6, NFULA_PAYLOAD = 9, NFULA_HWHEADER = 16,
    NFULA_CFG_CMD = 1, NFULA_CFG_MODE = 2, NFULA_CFG_QTHRESH = 5,
    TCA_KIND = 1, TCA_OPTIONS = 2, TCA_BPF_FD = 6, TCA_BPF_NAME = 7, TCA_BPF_FLAGS = 8,
    BRIDGE_VLAN_INFO_PVID = 2, BRIDGE_VLAN_INFO_UNTAGGED = 4, BRIDGE_VLAN_INFO_RANGE_BEGIN = 8,
    BRIDGE_VLAN_INFO_RANGE_END = 16,
    RTM_GETNSID = 90,
    CTA_TUPLE_ORIG = 1, CTA_TUPLE_REPLY = 2, CTA_ID = 12, CTA_ZONE = 18, CTA_TUPLE_IP = 1,
    CTA_TUPLE_PROTO = 2, CTA_IP_V4_SRC = 1, CTA_IP_V4_DST = 2, CTA_IP_V6_SRC = 3, CTA_IP_V6_DST = 4,
    CTA_STATUS = 3, CTA_PROTOINFO = 4, CTA_NAT_SRC = 6, CTA_TIMEOUT = 7, CTA_NAT_DST = 13,
    CTA_NAT_V4_MINIP = 1, CTA_NAT_V4_MAXIP = 2, CTA_NAT_PROTO = 3, CTA_NAT_V6_MINIP = 4,
    CTA_NAT_V6_MAXIP = 5, CTA_PROTONAT_PORT_MIN = 1, CTA_PROTONAT_PORT_MAX = 2,
    CTA_PROTOINFO_TCP = 1, CTA_PROTOINFO_TCP_STATE = 1, CTA_PROTOINFO_TCP_FLAGS_ORIGINAL = 4,
    CTA_PROTOINFO_TCP_FLAGS_REPLY = 5,
    CTA_PROTO_NUM = 1, CTA_PROTO_SRC_PORT = 2, CTA_PROTO_DST_PORT = 3,
    RTA_DST = 1, RTA_OIF = 4, RTA_GATEWAY = 5, RTA_PRIORITY = 6, RTA_PREFSRC = 7, RTA_MULTIPATH = 9, RTA_VIA = 18,
    RTA_TABLE = 15, FRA_IIFNAME = 3, FRA_PRIORITY = 6, FRA_TABLE = 15, FRA_PROTOCOL = 21,
}
numbers! { u8:
    NTF_SELF = 0x02, NTF_MASTER = 0x04, NTF_EXT_LEARNED = 0x10, NTF_ROUTER = 0x80,
    NFPROTO_INET = 1, NFPROTO_IPV4 = 2, NFPROTO_ARP = 3, NFPROTO_BRIDGE = 7, NFPROTO_IPV6 = 10,
    NFT_MSG_NEWTABLE = 0, NFT_MSG_GETTABLE = 1, NFT_MSG_NEWCHAIN = 3, NFT_MSG_GETCHAIN = 4,
    NFT_MSG_DELCHAIN = 5,
    NFT_MSG_GETRULE = 7, NFT_MSG_NEWSET = 9, NFT_MSG_NEWSETELEM = 12, NFT_MSG_GETSETELEM = 13,
    NFT_MSG_DELSETELEM = 14, NFT_MSG_NEWGEN = 15, NFT_MSG_GETGEN = 16, NFT_MSG_NEWOBJ = 18,
    NFT_MSG_GETOBJ = 19, NFT_MSG_DELOBJ = 20,
    NFULNL_MSG_PACKET = 0, NFULNL_MSG_CONFIG = 1, NFULNL_CFG_CMD_BIND = 1, NFULNL_COPY_PACKET = 2,
    IPCTNL_MSG_CT_NEW = 0, IPCTNL_MSG_CT_GET = 1, IPCTNL_MSG_CT_DELETE = 2,
    FR_ACT_TO_TBL = 1, RTNH_F_ONLINK = 4,
    IN6_ADDR_GEN_MODE_EUI64 = 0, IN6_ADDR_GEN_MODE_NONE = 1,
}
numbers! { u32:
    NFT_OBJECT_COUNTER = 1, RTEXT_FILTER_BRVLAN_COMPRESSED = 4, RTEXT_FILTER_SKIP_STATS = 8,
    IFA_F_NODAD = 0x02, VLAN_FLAG_LOOSE_BINDING = 0x04,
    RTNLGRP_LINK = 1, RTNLGRP_NEIGH = 3, RTNLGRP_TC = 4, RTNLGRP_IPV6_IFADDR = 9, RTNLGRP_BRVLAN = 33, NFNLGRP_NFTABLES = 7,
    NFNLGRP_CONNTRACK_NEW = 1, NFNLGRP_CONNTRACK_UPDATE = 2, NFNLGRP_CONNTRACK_DESTROY = 3,
    TC_H_CLSACT = 0xffff_fff1, TC_H_MIN_INGRESS = 0xfff2, TCA_BPF_FLAG_ACT_DIRECT = 1,
    IFF_TAP = 0x0002, IFF_MULTI_QUEUE = 0x0100, IFF_NO_PI = 0x1000, IFF_VNET_HDR = 0x4000,
}
numbers! { usize: DEVCONF_DISABLE_IPV6 = 26, }

/// `setsockopt(SOL_NETLINK, ..)`.
pub(crate) fn set_netlink_option(
    socket: BorrowedFd<'_>,
    option: i32,
    value: i32,
) -> std::io::Result<()> {
    // SAFETY: the descriptor is open for the borrow, and the pointer and length are of a live i32.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// The number of the calling thread's network namespace that no other has had since the machine
/// started (`SO_NETNS_COOKIE`, Linux 5.14).
pub(crate) fn netns_cookie() -> std::io::Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the pointers are of a live u64 and its length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// A request about an interface, with flags.
pub(crate) fn ifreq(name: &IfName, flags: libc::c_short) -> libc::ifreq {
    // SAFETY: `ifreq` is a name and a union of plain numbers and pointers; all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags;
    request
}

nix::ioctl_readwrite_bad!(get_index, libc::SIOCGIFINDEX, libc::ifreq);

/// The number of an interface in the namespace of `socket`.
pub(crate) fn index_of(socket: BorrowedFd<'_>, name: &IfName) -> Result<u32, nix::Error> {
    let mut request = ifreq(name, 0);
    // SAFETY: the descriptor is open and the pointer is to a live `ifreq` that the kernel fills.
    unsafe { get_index(socket.as_raw_fd(), &raw mut request) }?;
    // SAFETY: SIOCGIFINDEX succeeded, so the kernel wrote the index into the union.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex } as u32)
}

/// `struct tcp_md5sig` (`linux/tcp.h`):
/// `| address 128 | flags 1 | prefix 1 | key length 2 | ifindex 4 | key 80 |`.
const TCP_MD5SIG_BYTES: usize = 216;

/// Tries to set a TCP-MD5 key (RFC 2385) on a socket that is closed again.
pub(crate) fn try_tcp_md5() -> std::io::Result<()> {
    let socket = std::net::TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut key = [0_u8; TCP_MD5SIG_BYTES];
    key[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    key[4..8].copy_from_slice(&std::net::Ipv4Addr::LOCALHOST.octets());
    key[130..132].copy_from_slice(&1_u16.to_ne_bytes());
    key[136] = b'k';
    // SAFETY: the descriptor is open, and the pointer and length are of a live array.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_MD5SIG,
            key.as_ptr().cast(),
            TCP_MD5SIG_BYTES as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Loads a `BPF_PROG_TYPE_SCHED_CLS` program.
pub(crate) fn load_classifier(instructions: &[u8]) -> std::io::Result<OwnedFd> {
    /// The head of `union bpf_attr` for `BPF_PROG_LOAD`; what is left out is zero to the kernel.
    #[repr(C)]
    struct ProgramLoad {
        kind: u32,
        instructions: u32,
        first: u64,
        license: u64,
        log_level: u32,
        log_bytes: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
    }
    const BPF_PROG_LOAD: libc::c_long = 5;
    const SCHED_CLS: u32 = 3;
    let request = ProgramLoad {
        kind: SCHED_CLS,
        instructions: (instructions.len() / 8) as u32,
        first: instructions.as_ptr() as u64,
        license: c"MIT".as_ptr() as u64,
        log_level: 0,
        log_bytes: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the request and what it points to live until the call returns, and its length is given.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const request,
            size_of::<ProgramLoad>(),
        )
    };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so this is a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
