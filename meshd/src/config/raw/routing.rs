//! The sections `routing`, `peers[].routing` and `tunnel` as written.

use super::super::described::{choice, section};
use super::{Name, PrefixText};

choice! {
    /// How packets reach other nodes.
    RoutingMode {
        /// Natively, and through the tunnel where that does not work.
        Auto = "auto",
        /// Natively.
        Native = "native",
        /// Encapsulated.
        Tunnel = "tunnel",
    }
}

section! {
    /// How packets reach other nodes.
    RawRouting {
        /// `native` installs routes by way of the node's address where that address is on a link of this node. `tunnel` encapsulates (needs
        /// the section `tunnel`). `auto` is native; with the section `tunnel`, a node that is not on-link, or to which packets of
        /// workloads do not arrive natively (`probe`), is reached through the tunnel for as long as that is so.
        mode: Option<RoutingMode> = "auto",
        /// Prefixes that `mode: tunnel` reaches natively, and that masquerade leaves alone.
        native_cidrs: Vec<PrefixText> = "none",
        /// Single nodes that are reached in another way. A node's entry counts before its cluster's (`peers[].routing`).
        nodes: Vec<RawNodeRouting> = "none",
        /// Let routes refer to one kernel nexthop object per remote node, so that all routes of a node move at once.
        /// `false` makes plain routes.
        nexthop_objects: Option<bool> = "true",
        /// Metric of the routes.
        metric: Option<u32> = "77",
        /// Lower the largest segment that TCP connections agree on to what the route takes, for all that this node forwards: for paths on
        /// which senders do not hear that a packet is too long. Needs the program `nft`.
        mss_clamp: Option<bool> = "false",
        /// Let packets between workloads of different nodes go past the routing and the packet filter of this node: from the workload's link
        /// to the one that leads to the other node, natively or through the tunnel, and back. Rules of netfilter do not see them then. Needs
        /// `services.enabled`; a change takes a restart.
        fast_path: Option<bool> = "false",
        /// Path probes. They are sent to nodes with mode `auto`, when there is a tunnel.
        probe: RawProbe = "",
    }
}

section! {
    /// How one node is reached.
    RawNodeRouting {
        /// Its cluster; the own one for a node of this cluster.
        cluster: Option<Name> = "required",
        /// Its name.
        node: Option<Name> = "required",
        /// How.
        mode: Option<RoutingMode> = "required",
    }
}

section! {
    /// How the nodes of a remote cluster are reached.
    RawPeerRouting {
        /// How.
        mode: Option<RoutingMode> = "routing.mode",
    }
}

section! {
    /// Path probes: small UDP packets as a workload would send them, natively and through the tunnel. A node that answers neither is
    /// left where it is: it may not be one of meshd.
    RawProbe {
        /// A probe is sent so often, in milliseconds, 50 to 10000. With many nodes less often: at most 2,000 a second are sent.
        interval_ms: Option<u32> = "200",
        /// A probe is lost when it is not answered within so many milliseconds, 20 to 10000.
        timeout_ms: Option<u32> = "500",
        /// So many probes lost in a row, 2 to 100, make the native path broken, if the tunnel works.
        failures: Option<u32> = "3",
        /// So many probes answered in a row, 2 to 1000, make it whole.
        successes: Option<u32> = "10",
        /// After a change the way stays for so many seconds at least, 1 to 300; twice as long after each one that follows soon, up to
        /// 300. A tunnel that fails is left at once.
        hold_s: Option<u32> = "3",
        /// UDP port, the same on every node.
        port: Option<u16> = "7747",
    }
}

choice! {
    /// How packets are encapsulated.
    TunnelProtocol {
        /// RFC 7348.
        Vxlan = "vxlan",
        /// RFC 8926.
        Geneve = "geneve",
    }
}

choice! {
    /// Whose frames are taken.
    TunnelSources {
        /// Those of nodes of the mesh, once every cluster has been heard.
        Nodes = "nodes",
        /// Everybody's.
        Any = "any",
    }
}

section! {
    /// Encapsulation, by the link `meshd_vxlan`. Needs the program `nft`.
    RawTunnel {
        /// `vxlan` or `geneve`, the same on every node. Geneve is written and read by the kernel's programs, so it needs
        /// `services.enabled`.
        protocol: Option<TunnelProtocol> = "vxlan",
        /// UDP port of both ends. 6081 with `geneve`.
        port: Option<u16> = "8472",
        /// The number in the header (VNI), 1 to 16777215, of packets whose source has no identity. To Cilium it is the identity of the
        /// sender: 2 stands for "anybody", so that its policies let in no more than what they allow to everybody. The kernel's
        /// programs (`services.enabled`) write the identity of a workload of this node in its place.
        vni: Option<u32> = "2",
        /// Whose frames are taken. `nodes` needs the kernel's programs (`services.enabled`); without them a firewall has to do it.
        sources: Option<TunnelSources> = "nodes",
    }
}
