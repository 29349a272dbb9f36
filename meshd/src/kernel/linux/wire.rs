//! Numbers of the routing netlink protocol (`linux/netlink.h`, `linux/rtnetlink.h`, `linux/nexthop.h`).

pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;

pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
/// A dump whose table changed while it was read.
pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;

pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
pub(crate) const RTM_GETLINK: u16 = 18;
pub(crate) const RTM_NEWADDR: u16 = 20;
pub(crate) const RTM_DELADDR: u16 = 21;
pub(crate) const RTM_GETADDR: u16 = 22;
pub(crate) const RTM_NEWROUTE: u16 = 24;
pub(crate) const RTM_DELROUTE: u16 = 25;
pub(crate) const RTM_GETROUTE: u16 = 26;
pub(crate) const RTM_NEWNEIGH: u16 = 28;
pub(crate) const RTM_DELNEIGH: u16 = 29;
pub(crate) const RTM_GETNEIGH: u16 = 30;
pub(crate) const RTM_GETRULE: u16 = 34;
pub(crate) const RTM_NEWNEXTHOP: u16 = 104;
pub(crate) const RTM_DELNEXTHOP: u16 = 105;
pub(crate) const RTM_GETNEXTHOP: u16 = 106;

pub(crate) const RTNLGRP_LINK: u32 = 1;
pub(crate) const RTNLGRP_NEIGH: u32 = 3;
pub(crate) const RTNLGRP_IPV4_RULE: u32 = 8;
pub(crate) const RTNLGRP_IPV6_RULE: u32 = 19;
pub(crate) const RTNLGRP_IPV4_IFADDR: u32 = 5;
pub(crate) const RTNLGRP_IPV4_ROUTE: u32 = 7;
pub(crate) const RTNLGRP_IPV6_IFADDR: u32 = 9;
pub(crate) const RTNLGRP_IPV6_ROUTE: u32 = 11;
pub(crate) const RTNLGRP_NEXTHOP: u32 = 32;

pub(crate) const AF_UNSPEC: u8 = 0;
pub(crate) const AF_INET: u8 = 2;
pub(crate) const AF_INET6: u8 = 10;

pub(crate) const RTA_DST: u16 = 1;
pub(crate) const RTA_OIF: u16 = 4;
pub(crate) const RTA_GATEWAY: u16 = 5;
pub(crate) const RTA_PRIORITY: u16 = 6;
pub(crate) const RTA_PREFSRC: u16 = 7;
pub(crate) const RTA_METRICS: u16 = 8;
pub(crate) const RTAX_MTU: u16 = 2;
pub(crate) const RTA_MULTIPATH: u16 = 9;
pub(crate) const RTA_FLOW: u16 = 11;
pub(crate) const RTA_TABLE: u16 = 15;
pub(crate) const RTA_VIA: u16 = 18;
pub(crate) const RTA_NEWDST: u16 = 19;
pub(crate) const RTA_ENCAP_TYPE: u16 = 21;
pub(crate) const RTA_ENCAP: u16 = 22;
pub(crate) const RTA_NH_ID: u16 = 30;

pub(crate) const NHA_ID: u16 = 1;
pub(crate) const NHA_GROUP: u16 = 2;
pub(crate) const NHA_BLACKHOLE: u16 = 4;
pub(crate) const NHA_OIF: u16 = 5;
pub(crate) const NHA_GATEWAY: u16 = 6;
pub(crate) const NHA_ENCAP_TYPE: u16 = 7;
pub(crate) const NHA_ENCAP: u16 = 8;
pub(crate) const NHA_FDB: u16 = 11;

// `linux/lwtunnel.h`
pub(crate) const LWTUNNEL_ENCAP_IP: u16 = 2;
pub(crate) const LWTUNNEL_ENCAP_IP6: u16 = 4;
pub(crate) const LWTUNNEL_IP_ID: u16 = 1;
pub(crate) const LWTUNNEL_IP_DST: u16 = 2;
pub(crate) const LWTUNNEL_IP_SRC: u16 = 3;
pub(crate) const LWTUNNEL_IP_TTL: u16 = 4;
pub(crate) const LWTUNNEL_IP_TOS: u16 = 5;
pub(crate) const LWTUNNEL_IP_FLAGS: u16 = 6;
/// The outer UDP header has a checksum.
pub(crate) const TUNNEL_CSUM: u16 = 1;
/// The attribute holds attributes.
pub(crate) const NLA_F_NESTED: u16 = 0x8000;

pub(crate) const RTN_UNSPEC: u8 = 0;
pub(crate) const RTN_UNICAST: u8 = 1;
pub(crate) const RTN_BLACKHOLE: u8 = 6;
pub(crate) const RT_SCOPE_UNIVERSE: u8 = 0;
pub(crate) const RT_SCOPE_LINK: u8 = 253;
/// In a deletion: any scope.
pub(crate) const RT_SCOPE_NOWHERE: u8 = 255;
/// The gateway is taken as on-link whatever the addresses say.
pub(crate) const RTNH_F_ONLINK: u8 = 4;

pub(crate) const IFLA_IFNAME: u16 = 3;
pub(crate) const IFLA_MTU: u16 = 4;
pub(crate) const IFLA_MASTER: u16 = 10;
pub(crate) const IFLA_LINKINFO: u16 = 18;
pub(crate) const IFLA_INFO_KIND: u16 = 1;
pub(crate) const IFLA_INFO_DATA: u16 = 2;
pub(crate) const IFA_LOCAL: u16 = 2;
pub(crate) const IFA_LABEL: u16 = 3;
pub(crate) const IFF_UP: u32 = 0x1;
/// The link resolves no addresses.
pub(crate) const IFF_NOARP: u32 = 0x80;

// `enum` of VXLAN links in `linux/if_link.h`
pub(crate) const IFLA_VXLAN_LEARNING: u16 = 7;
pub(crate) const IFLA_VXLAN_PORT: u16 = 15;
pub(crate) const IFLA_VXLAN_UDP_ZERO_CSUM6_TX: u16 = 19;
pub(crate) const IFLA_VXLAN_UDP_ZERO_CSUM6_RX: u16 = 20;
pub(crate) const IFLA_VXLAN_COLLECT_METADATA: u16 = 25;
