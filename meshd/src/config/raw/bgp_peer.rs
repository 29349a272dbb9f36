//! Peers and groups of peers as written.

use std::collections::BTreeMap;

use super::{Address, FilePath, Name, PrefixText};
use crate::config::described::{choice, section, text};

text! {
    /// Which AS a peer may be.
    RemoteAsText = "an AS number, external or internal";
    /// How many paths are sent.
    PathsText = "a number, or all";
    /// Words for people.
    Words = "a text";
}

choice! {
    /// What this node is to a peer (RFC 9234).
    RawRole {
        /// Sells transit.
        Provider = "provider",
        /// Serves routes.
        RouteServer = "rs",
        /// Is served routes.
        RouteServerClient = "rs-client",
        /// Buys transit.
        Customer = "customer",
        /// Exchanges own routes.
        Peer = "peer",
    }
}

choice! {
    /// Algorithms of TCP-AO (RFC 5926).
    RawAoAlgorithm {
        /// HMAC-SHA-1-96.
        HmacSha1 = "hmac-sha-1-96",
        /// AES-128-CMAC-96.
        AesCmac = "aes-128-cmac-96",
        /// HMAC-SHA-256, which Linux has as well.
        HmacSha256 = "hmac-sha-256",
    }
}

choice! {
    /// What happens to a peer that sends too many prefixes.
    RawLimitAction {
        /// The session ends and begins again later.
        Restart = "restart",
        /// The session ends until somebody resets it.
        Teardown = "teardown",
        /// It is told to people.
        Warn = "warn",
    }
}

choice! {
    /// The next hop a peer is told.
    RawNextHop {
        /// Ours towards external peers, as received towards internal ones.
        Auto = "auto",
        /// Ours.
        Own = "self",
        /// As received.
        Unchanged = "unchanged",
    }
}

/// What peers and groups have in common is declared once, and both sections are made of it.
macro_rules! peers_and_groups {
    ($($(#[doc = $doc:literal])* $field:ident : $ty:ty = $default:literal),* $(,)?) => {
        section! {
            /// A BGP peer: with `address`, `interface` or `range`.
            RawBgpPeer {
                /// Its address; a link-local one needs `device`.
                address: Option<Address> = "none",
                /// A link on which the one router at the other end is the peer, found by its router advertisements (unnumbered).
                interface: Option<Name> = "none",
                /// Whoever connects from this prefix is a peer; this node does not connect. A reload gives the peers that are
                /// there what the range says then, and a range that is taken out ends their sessions.
                range: Option<PrefixText> = "none",
                /// Peers from `range` at most.
                limit: Option<u32> = "100",
                /// The group it has everything of that is not said here.
                group: Option<Name> = "none",
                $($(#[doc = $doc])* $field: $ty = $default,)*
            }
        }

        section! {
            /// What several peers have in common.
            RawBgpPeerGroup {
                $($(#[doc = $doc])* $field: $ty = $default,)*
            }
        }

        impl From<RawBgpPeerGroup> for RawBgpPeer {
            fn from(group: RawBgpPeerGroup) -> Self {
                let RawBgpPeerGroup { $($field),* } = group;
                Self { address: None, interface: None, range: None, limit: None, group: None, $($field),* }
            }
        }
    };
}

peers_and_groups! {
    /// Which AS it may be: a number, `external` for any but ours, `internal` for ours.
    remote_as: Option<RemoteAsText> = "required",
    /// The AS this node claims to be towards it.
    local_as: Option<u32> = "bgp.asn",
    /// Words for people.
    description: Option<Words> = "none",
    /// Keeps the session down; the text is told to the peer's operator (RFC 9003).
    shutdown: Option<Words> = "none",
    /// Applies on nodes with all of these `node.labels` only.
    node_selector: BTreeMap<String, String> = "every node",
    /// Its port.
    port: Option<u16> = "bgp.listen.port",
    /// Wait for its connection instead of connecting.
    passive: Option<bool> = "false",
    /// The address to connect from.
    source: Option<Address> = "as routes say",
    /// The link or VRF to connect through.
    device: Option<Name> = "as routes say",
    /// A file with the TCP-MD5 password in its first line; must not be readable by everybody. The password itself never
    /// stands in the configuration.
    password_file: Option<FilePath> = "none",
    /// TCP-AO (RFC 5925) in place of TCP-MD5. The kernel must have it (Linux 6.7 with CONFIG_TCP_AO); where not, the session stays
    /// down.
    tcp_ao: Option<RawTcpAo> = "none",
    /// The peer is at most so many hops away and proves it by its hop limit (RFC 5082): 1 for a direct neighbor.
    ttl_security: Option<u16> = "off",
    /// An external peer may be so many hops away.
    multihop: Option<u16> = "1",
    /// Timers of the session.
    timers: RawBgpTimers = "",
    /// Finding out quickly that the way to the peer is dead (RFC 5880).
    bfd: Option<RawBfd> = "off",
    /// What is exchanged for each address family.
    families: RawFamilies = "",
    /// What this node is to the peer (RFC 9234): paths that would leak are not sent and not taken.
    role: Option<RawRole> = "none",
    /// Refuse a peer that says no role.
    role_strict: Option<bool> = "false",
    /// Policies for what it sends, in their order: names of `bgp.policies`.
    import: Option<Vec<Name>> = "bgp.import.accept",
    /// Policies for what it is sent, in their order: names of `bgp.policies`.
    export: Option<Vec<Name>> = "internal: everything; external: what bgp.advertise says",
    /// Reflect routes for it (RFC 4456).
    route_reflector_client: Option<bool> = "false",
    /// Serve routes to it: AS path, next hop and MED stay as they are (RFC 7947).
    route_server_client: Option<bool> = "false",
    /// How often our AS may be in the AS path of what it sends.
    allow_own_as: Option<u16> = "0",
    /// Refuse paths of an external peer that do not begin with its AS.
    enforce_first_as: Option<bool> = "true",
    /// Take private AS numbers out of what it is sent.
    remove_private_as: Option<bool> = "false",
    /// Take part in its graceful restart and ask it to take part in ours.
    graceful_restart: Option<bool> = "bgp.graceful_restart.enabled",
    /// Offer messages of 65,535 octets (RFC 8654).
    extended_messages: Option<bool> = "true",
}

section! {
    /// TCP-AO (RFC 5925).
    RawTcpAo {
        /// A file with the key in its first line; must not be readable by everybody.
        key_file: Option<FilePath> = "required",
        /// Number of the key in what this node sends.
        send_id: Option<u16> = "1",
        /// Number of the key in what the peer sends.
        receive_id: Option<u16> = "1",
        /// How packets are signed.
        algorithm: Option<RawAoAlgorithm> = "hmac-sha-1-96",
    }
}

section! {
    /// Timers of a session.
    RawBgpTimers {
        /// Hold time offered: 0 for none, or 3 and more.
        hold_time_s: Option<u16> = "bgp.hold_time_s",
        /// Longest time between two KEEPALIVE messages.
        keepalive_s: Option<u16> = "a third of the hold time",
        /// Time between two attempts to connect.
        connect_retry_s: Option<u16> = "5",
        /// Wait so long for the peer's OPEN before sending ours.
        delay_open_s: Option<u16> = "0",
    }
}

section! {
    /// BFD towards a peer (RFC 5880). The session is over several hops where the peer may be.
    /// After a restart of this daemon, BGP with a peer that had a session begins when the peer's BFD has answered, or after 1.5 s.
    RawBfd {
        /// `false` takes it away where the group has it.
        enabled: Option<bool> = "true",
        /// How often this node would like to send, in milliseconds.
        transmit_ms: Option<u32> = "300",
        /// How often this node can receive, in milliseconds.
        receive_ms: Option<u32> = "300",
        /// After how many intervals without a packet the way is dead.
        multiplier: Option<u16> = "3",
        /// Let the peer send echo packets so often, in milliseconds, which the kernel of this node sends back if it forwards; 0 for
        /// none. Not over several hops.
        echo_ms: Option<u32> = "0",
        /// Send echo packets so often, in milliseconds, where the peer permits that; 0 for none. The peer's kernel or hardware sends them back
        /// if it forwards, and when `multiplier` of them are missing the way is dead. Once they come back control packets are
        /// asked for only once a second. Not over several hops, and not to link-local addresses. Needs an address of this node
        /// outside the subnets of the link, best on `lo`.
        echo_transmit_ms: Option<u32> = "0",
        /// Wait for the other side to begin.
        passive: Option<bool> = "false",
        /// Bring the BGP session up only when BFD is up (draft-ietf-idr-bgp-bfd-strict-mode), also where the
        /// peer does not know that mode.
        strict: Option<bool> = "false",
    }
}

section! {
    /// What is exchanged for each address family.
    RawFamilies {
        /// IPv4 unicast.
        ipv4: Option<RawFamily> = "on for peers with an IPv4 address or an interface",
        /// IPv6 unicast.
        ipv6: Option<RawFamily> = "on for peers with an IPv6 address or an interface",
    }
}

section! {
    /// One address family.
    RawFamily {
        /// `false` takes it away where the group has it.
        enabled: Option<bool> = "true",
        /// Several paths for one prefix (RFC 7911).
        add_path: RawAddPath = "",
        /// How many prefixes the peer may send.
        max_prefixes: Option<RawMaxPrefixes> = "no limit",
        /// The next hop of what the peer is sent: `auto` is ours towards external peers and as received towards internal ones.
        next_hop: Option<RawNextHop> = "auto",
        /// The address to tell as ours.
        next_hop_address: Option<Address> = "the own address of the session",
        /// Exchange IPv4 prefixes with IPv6 next hops (RFC 8950).
        extended_next_hop: Option<bool> = "true for peers with an IPv6 address or an interface",
    }
}

section! {
    /// Several paths for one prefix (RFC 7911).
    RawAddPath {
        /// Send the best so many, or `all`.
        send: Option<PathsText> = "the best only",
        /// Take several.
        receive: Option<bool> = "false",
    }
}

section! {
    /// How many prefixes a peer may send.
    RawMaxPrefixes {
        /// So many at most.
        limit: Option<u32> = "required",
        /// Tell people at this part of it, in percent.
        warn_percent: Option<u16> = "75",
        /// What happens beyond it.
        action: Option<RawLimitAction> = "restart",
        /// With `restart`: so many seconds later.
        restart_after_s: Option<u32> = "300",
    }
}
