//! The section `bgp` as written: the speaker as a whole, what it advertises and what it takes.

use std::collections::BTreeMap;

use super::bgp_peer::{RawBgpPeer, RawBgpPeerGroup};
use super::bgp_policy::{AsPathText, CommunityText, PrefixLineText, RawBgpRule};
use super::{Address, FilePath, Name, PrefixText, SocketText};
use crate::config::described::{choice, section, text};

text! {
    /// What identifies a speaker.
    IdentifierText = "four numbers such as 172.18.0.5";
}

section! {
    /// The BGP speaker of this node.
    RawBgp {
        /// `false` keeps the section without running the speaker.
        enabled: Option<bool> = "true where the section is",
        /// The AS of this node; inside a confederation the one of the member.
        asn: Option<u32> = "required",
        /// The BGP identifier of this node, written like an IPv4 address. Unique among the speakers of an AS.
        router_id: Option<IdentifierText> = "the first IPv4 address of the node",
        /// Where peers may connect to.
        listen: RawBgpListen = "",
        /// Hold time offered to peers, in seconds: 0 for none, or 3 and more. Peers may say otherwise.
        hold_time_s: Option<u16> = "90",
        /// Keeping routes while a speaker is away (RFC 4724, 8538, 9494).
        graceful_restart: RawBgpRestart = "",
        /// Using several paths at once.
        multipath: RawBgpMultipath = "",
        /// How the best path is chosen.
        decision: RawBgpDecision = "",
        /// The cluster this node reflects routes for, written like an IPv4 address (RFC 4456). Reflectors for the same clients
        /// may share one.
        cluster_id: Option<IdentifierText> = "router_id",
        /// The confederation the AS is a member of (RFC 5065).
        confederation: Option<RawBgpConfederation> = "none",
        /// What several peers have in common, by name. A peer that names a group has everything of it that it does not say
        /// itself: tables key by key, lists as a whole.
        peer_groups: BTreeMap<String, RawBgpPeerGroup> = "none",
        /// Peers: by address, by interface, or by the prefix they connect from. Files of the `include` folder add to the list.
        peers: Vec<RawBgpPeer> = "none",
        /// What this node advertises of its own, and to whom. The first entry that fits a prefix and a peer counts. Peers
        /// with `export` policies ask those as well.
        advertise: Vec<RawBgpAdvertise> = "nothing",
        /// What is taken from peers, and what becomes of it.
        import: RawBgpImport = "",
        /// Lists of rules by name, for `import` and `export` of peers. Rules are tried in their order, and the first that
        /// matches and does not say `next` decides. What no rule decides about is rejected.
        policies: BTreeMap<String, Vec<RawBgpRule>> = "none",
        /// Lists of prefixes by name: `PREFIX [ge LENGTH] [le LENGTH]` as in FRR, or `PREFIX{from,to}` and `PREFIX+` as in BIRD;
        /// with `deny` in front for what is not to be on the list. The first line that fits a prefix counts.
        prefix_lists: BTreeMap<String, Vec<PrefixLineText>> = "none",
        /// Lists of communities by name: `65000:1`, `65000:1:2`, `rt:65000:1`, `soo:65000:1`, names of well-known ones,
        /// and with `*` or ranges such as `100-199` in place of numbers.
        community_lists: BTreeMap<String, Vec<CommunityText>> = "none",
        /// Lists of AS path patterns by name: regular expressions as in FRR, in which `_` stands for begin, end and what is
        /// between two numbers; with `deny` in front for what is not to be on the list. The first that fits counts.
        as_path_lists: BTreeMap<String, Vec<AsPathText>> = "none",
        /// Who may originate what.
        rpki: RawBgpRpki = "",
        /// The mesh over BGP.
        mesh: RawBgpMesh = "",
        /// Telling a monitoring station what peers say (RFC 7854).
        bmp: RawBgpBmp = "",
        /// Writing tables and messages into files (RFC 6396).
        mrt: RawBgpMrt = "",
    }
}

section! {
    /// Where peers may connect to.
    RawBgpListen {
        /// `false`: this node only connects itself, and another speaker may have the port.
        enabled: Option<bool> = "true",
        /// Addresses to listen on.
        addresses: Vec<Address> = "all",
        /// The port, also of peers that name none.
        port: Option<u16> = "179",
    }
}

section! {
    /// Keeping routes while a speaker is away (RFC 4724, 8538, 9494).
    RawBgpRestart {
        /// Keep the routes of a peer that restarts, and ask peers to keep ours.
        enabled: Option<bool> = "true",
        /// How long peers may wait for this node to come back, in seconds, up to 4095.
        restart_time_s: Option<u16> = "120",
        /// How long routes of a peer that is back wait until it has sent all it has, in seconds.
        stale_time_s: Option<u32> = "360",
        /// How long routes may be kept after that as the last choice (RFC 9494), in seconds, up to 16777215; 0 for not at all.
        long_lived_s: Option<u32> = "0",
    }
}

section! {
    /// Using several paths at once.
    RawBgpMultipath {
        /// Paths from external peers at once, up to 128.
        ebgp: Option<u16> = "1",
        /// Paths from internal peers at once, up to 128.
        ibgp: Option<u16> = "1",
        /// Also paths with different AS paths of the same length.
        relax: Option<bool> = "false",
        /// In proportion to the link bandwidth that paths carry.
        weighted: Option<bool> = "true",
    }
}

section! {
    /// How the best path is chosen.
    RawBgpDecision {
        /// Compare MED between paths from different AS as well.
        always_compare_med: Option<bool> = "false",
        /// Take a path without MED for the worst instead of the best.
        missing_med_is_worst: Option<bool> = "false",
        /// Keep the external path that was there first when only router identifiers differ (RFC 5004).
        prefer_oldest: Option<bool> = "false",
    }
}

section! {
    /// The confederation the AS is a member of (RFC 5065).
    RawBgpConfederation {
        /// The AS that the world outside sees.
        id: Option<u32> = "required",
        /// AS of the other members.
        members: Vec<u32> = "required",
    }
}

section! {
    /// What this node advertises of its own.
    RawBgpAdvertise {
        /// The prefixes of the workloads on this node.
        pod_cidrs: Option<bool> = "false",
        /// Addresses of services that this cluster shares with the mesh, while they have a backend or use those of other clusters.
        service_vips: Option<bool> = "false",
        /// Addresses of this node.
        node_addresses: Option<bool> = "false",
        /// These prefixes.
        prefixes: Vec<PrefixText> = "none",
        /// Prefixes that are advertised while there is a more specific one.
        aggregates: Vec<RawBgpAggregate> = "none",
        /// Communities to add.
        communities: Vec<CommunityText> = "none",
        /// MED.
        med: Option<u32> = "none",
        /// LOCAL_PREF, for internal peers.
        local_pref: Option<u32> = "100",
        /// Peers to advertise to, by address or interface.
        peers: Option<Vec<Name>> = "all",
        /// Groups of peers to advertise to.
        groups: Option<Vec<Name>> = "all",
    }
}

section! {
    /// A prefix that stands for more specific ones.
    RawBgpAggregate {
        /// The prefix.
        prefix: Option<PrefixText> = "required",
        /// Do not advertise the more specific ones.
        summary_only: Option<bool> = "false",
    }
}

choice! {
    /// Prefixes that are never taken.
    RawMartians {
        /// None.
        Accept = "accept",
        /// Those that no router forwards to.
        Unroutable = "unroutable",
        /// Those that are not to be seen on the Internet as well.
        NotOnInternet = "not-on-internet",
    }
}

section! {
    /// What is taken from peers, and what becomes of it. What equals or lies inside a prefix of this node's workloads, services
    /// or addresses is refused in any case.
    RawBgpImport {
        /// What peers without `import` policies may say, as in `prefix_lists`. Without it internal peers may say everything and
        /// external ones nothing (RFC 8212).
        accept: Option<Vec<PrefixLineText>> = "by kind of peer",
        /// Accept the default route where policies do.
        default_route: Option<bool> = "false",
        /// Accept prefixes that cover one of this node's, where policies do.
        covering_own: Option<bool> = "false",
        /// Refuse prefixes that are never routed: `unroutable` are this network, loopback, link-local, multicast and reserved;
        /// `not-on-internet` also private, shared, documentation and benchmarking ones.
        martians: Option<RawMartians> = "unroutable",
        /// Refuse paths with an AS_SET (RFC 9774).
        refuse_as_sets: Option<bool> = "true",
        /// Let the graceful shutdown community lower LOCAL_PREF to 0 (RFC 8326).
        graceful_shutdown: Option<bool> = "true",
        /// Let the blackhole community make a route that drops packets (RFC 7999). What counts is the best path: with it, all
        /// packets are dropped; a path with it that is not best is not used beside others (`bgp.multipath`).
        blackhole: Option<bool> = "false",
        /// Install accepted paths as routes of this node.
        install: Option<bool> = "true",
        /// Metric of these routes; that of routes of the mesh is `routing.metric`. A change takes effect at the next start.
        metric: Option<u32> = "77",
        /// Routes to install at most.
        max_routes: Option<u32> = "1000000",
    }
}

section! {
    /// Who may originate what (RFC 6811). It comes from a file; RTR (RFC 8210) is not spoken.
    RawBgpRpki {
        /// A file as RPKI validators export it in JSON. It is read again when it changes; one that is wrong changes nothing.
        vrps: Option<FilePath> = "none: no path is valid or invalid",
    }
}

section! {
    /// The mesh over BGP: prefixes of remote clusters are learned from their speakers, which say by a large community
    /// `ASN:FUNCTION:CLUSTER_ID` whose they are. What a cluster may say is its `accept` in `peers`, as with a store.
    /// `import.install` and `import.max_routes` are for ordinary routes and not for these.
    RawBgpMesh {
        /// Take part.
        enabled: Option<bool> = "false",
        /// The number in the middle of the community; the same in all clusters.
        function: Option<u32> = "77",
    }
}

section! {
    /// Telling a monitoring station what peers say (RFC 7854).
    RawBgpBmp {
        /// Stations.
        stations: Vec<RawBgpStation> = "none",
    }
}

section! {
    /// A monitoring station.
    RawBgpStation {
        /// Where it is.
        address: Option<SocketText> = "required",
        /// What peers sent.
        adj_rib_in_pre_policy: Option<bool> = "true",
        /// What was accepted of it.
        adj_rib_in_post_policy: Option<bool> = "false",
        /// What was chosen (RFC 9069).
        loc_rib: Option<bool> = "false",
        /// What peers are sent (RFC 8671).
        adj_rib_out: Option<bool> = "false",
        /// Seconds between two reports of counts; 0 for none.
        statistics_s: Option<u32> = "60",
    }
}

section! {
    /// Writing tables and messages into files (RFC 6396).
    RawBgpMrt {
        /// The folder; it is made if it is missing, with mode 0750. Files have mode 0640: they say what the network looks
        /// like.
        folder: Option<FilePath> = "none: nothing is written",
        /// Write the whole table every so many seconds; 0 for never. `meshd bgp dump` writes it at once.
        table_interval_s: Option<u32> = "7200",
        /// Write every message.
        updates: Option<bool> = "false",
        /// Begin a new file of messages every so many seconds.
        rotate_s: Option<u32> = "300",
        /// Files to keep of each kind; older ones are removed.
        keep: Option<u32> = "24",
    }
}
