//! Services as written: `workloads.services` and the section `services`.

use std::collections::BTreeMap;

use super::{Address, FilePath, Name, PrefixText};
use crate::config::described::{choice, section, text};

text! {
    /// A range of ports.
    PortRangeText = "a range of ports such as 30000-32767";
    /// The name of a link, or how names of links begin.
    LinkText = "a link name; `*` at the end stands for any end";
}

choice! {
    /// How a service is reached.
    ServiceType {
        /// By addresses inside the mesh.
        ClusterIp = "cluster_ip",
        /// By a port of every node as well.
        NodePort = "node_port",
        /// By addresses of a load balancer as well.
        LoadBalancer = "load_balancer",
        /// By its backends' own addresses only.
        Headless = "headless",
    }
}

choice! {
    /// Protocol of a port.
    PortProtocol {
        /// TCP
        Tcp = "tcp",
        /// UDP
        Udp = "udp",
        /// SCTP
        Sctp = "sctp",
    }
}

choice! {
    /// Which clusters' backends are preferred.
    ServiceAffinity {
        /// All the same.
        None = "none",
        /// Those of this cluster.
        Local = "local",
        /// Those of other clusters.
        Remote = "remote",
    }
}

choice! {
    /// Whether zones count when a backend is chosen.
    ServiceTopology {
        /// They do not.
        None = "none",
        /// Backends of the node's zone come first.
        Zone = "zone",
    }
}

choice! {
    /// What a backend is chosen by when a connection begins.
    ServiceHash {
        /// Both ends of the connection: those of a client are spread over all backends.
        Connection = "connection",
        /// The client's address.
        Source = "source",
    }
}

choice! {
    /// Which backends traffic reaches.
    ServiceTrafficPolicy {
        /// Those of every node.
        Cluster = "cluster",
        /// Those of the node it meets first.
        Local = "local",
    }
}

choice! {
    /// How packets reach a backend on another node.
    ServiceMode {
        /// With the node's own source address.
        Snat = "snat",
        /// With the client's source address; the answer does not come back through the node. Inside of this cluster only:
        /// backends of other clusters, and those that are no workload of the mesh, are reached as with `snat`.
        Dsr = "dsr",
    }
}

choice! {
    /// What becomes of connections to a backend that went.
    BackendRemoval {
        /// They go on as long as they can.
        Keep = "keep",
        /// They end at once.
        Kill = "kill",
    }
}

choice! {
    /// Where packets from outside are taken over.
    XdpUse {
        /// In the driver where the uplink is a device of its own and its driver can, otherwise in the stack.
        Auto = "auto",
        /// Before the stack on every uplink, in the driver where it can. Frames of other programs on the same machine (veth, tap) may
        /// carry checksums that nobody has computed yet, which cannot be seen there: who sends them has to compute them
        /// (`ethtool -K LINK tx off`).
        On = "on",
        /// In the stack.
        Off = "off",
    }
}

choice! {
    /// State of a backend that is no workload.
    StaticBackendState {
        /// It answers.
        Active = "active",
        /// It is shutting down.
        Terminating = "terminating",
    }
}

section! {
    /// A service of this cluster. Its backends are the workloads of its namespace that have the labels of `selector`, and
    /// those of `backends`. Every node of the cluster that is to serve it needs it in its configuration; the one that writes
    /// for the cluster (the host of the embedded store, or the elected node) shares it with the mesh.
    RawService {
        /// Its namespace.
        namespace: Option<Name> = "default",
        /// Its name, unique in the namespace. Services of other clusters with the same namespace and name are merged with it
        /// when both are `global`.
        name: Option<Name> = "required",
        /// `cluster_ip` is reached at `cluster_ips` and `external_ips`, `node_port` also at a port of every node,
        /// `load_balancer` also at `load_balancer_ips`, `headless` at no address of its own.
        r#type: Option<ServiceType> = "cluster_ip",
        /// Its addresses inside the mesh. Backends of the same family answer there.
        cluster_ips: Vec<Address> = "none",
        /// Further addresses it is reached at, which routers send here.
        external_ips: Vec<Address> = "none",
        /// Addresses of a load balancer.
        load_balancer_ips: Vec<Address> = "none",
        /// Its ports.
        ports: Vec<RawServicePort> = "required",
        /// Labels that workloads of its namespace have which are its backends. Labels that are no part of an identity (see
        /// `workloads.static`) cannot be selected.
        selector: BTreeMap<String, String> = "selects nothing",
        /// Backends that are no workload of the mesh. Other clusters refuse a shared service with a backend outside their
        /// `accept` list of this cluster.
        backends: Vec<RawServiceBackend> = "none",
        /// Use the backends of other clusters' services of the same namespace and name, too.
        global: Option<bool> = "false",
        /// Let other clusters use our backends. Counts only with `global`.
        shared: Option<bool> = "true",
        /// `local` uses other clusters only while this one has too few active backends (`local_minimum`), `remote` uses this
        /// one only while no other has any. Only with `global`.
        affinity: Option<ServiceAffinity> = "none",
        /// With affinity `local`: with fewer active backends than this in our cluster, those of other clusters join in.
        local_minimum: Option<u16> = "1",
        /// Weight of each backend of a cluster, from 0 to 1000. 0 gives a cluster no new connections, and leaves it those it
        /// has. Only with `global`.
        cluster_weights: BTreeMap<String, u16> = "100 for each",
        /// `source` sends all connections of a client's address to the same backend, on every node alike and as long as the backends stay the
        /// same; nothing is remembered for it. With `services.cgroup` a client is a network namespace, of which each node thinks for itself.
        hash: Option<ServiceHash> = "connection",
        /// For so many seconds, 86400 at most, a client address keeps its backend, whatever becomes of the others. Each node remembers it of the
        /// connections that come by way of it.
        session_affinity_s: Option<u32> = "no session affinity",
        /// Which backends traffic from outside the mesh reaches: of every node, or `local` ones of the node it meets.
        external_traffic_policy: Option<ServiceTrafficPolicy> = "cluster",
        /// The same for traffic of workloads and nodes.
        internal_traffic_policy: Option<ServiceTrafficPolicy> = "cluster",
        /// Who may use `load_balancer_ips` from outside; a family without a range has no clients then. Node ports and
        /// `external_ips` are not restricted, connections that are open neither.
        source_ranges: Vec<PrefixText> = "everybody",
        /// How packets reach backends on other nodes.
        mode: Option<ServiceMode> = "services.mode",
        /// `zone` prefers backends that are meant for the zone of this node (`topology.kubernetes.io/zone` of `node.labels`): those whose
        /// cluster says so, otherwise those in that zone. While there is none, all serve.
        topology: Option<ServiceTopology> = "none",
        /// Whether connections to a backend that is no longer there are kept or killed.
        on_backend_removal: Option<BackendRemoval> = "keep",
    }
}

section! {
    /// A port of a service.
    RawServicePort {
        /// Its name: other clusters' backends are found by it. May be left out when the service has one port only.
        name: Option<Name> = "none",
        /// Its protocol.
        protocol: Option<PortProtocol> = "tcp",
        /// Where clients connect.
        port: Option<u16> = "required",
        /// Where the backends of this cluster listen.
        target_port: Option<u16> = "port",
        /// The port of every node, inside `services.node_port_range`. Only with type `node_port` or `load_balancer`.
        node_port: Option<u16> = "none",
    }
}

section! {
    /// A backend that is no workload of the mesh.
    RawServiceBackend {
        /// Its address.
        address: Option<Address> = "required",
        /// Where it listens. Only when the service has one port.
        port: Option<u16> = "target_port",
        /// Its share, from 0 to 1000, in hundredths of what a workload of this cluster gets.
        weight: Option<u16> = "100",
        /// The zone it is in.
        zone: Option<Name> = "none",
        /// `terminating` gives it no new connections while others are active.
        state: Option<StaticBackendState> = "active",
    }
}

choice! {
    /// How packets carry the service address to the backend's node with `mode: dsr`. The network between nodes must let it pass, and
    /// all nodes of the cluster must have the same.
    DsrKind {
        /// In an option of the IPv4 (type 0x9a) or an extension of the IPv6 header (8 or 24 octets), in the packet that opens a TCP
        /// connection and in all others. Networks that filter options or sources of strangers need one of the others.
        Option = "option",
        /// Inside another IP packet from node to node (28 or 64 octets more), together with that option.
        Ipip = "ipip",
        /// Inside a Geneve packet from node to node, UDP port 6081 (62 or 94 octets more).
        Geneve = "geneve",
    }
}

choice! {
    /// How a backend is chosen for a new connection.
    BackendAlgorithm {
        /// By a table that changes little when backends do, and is the same on every node.
        Maglev = "maglev",
        /// By lot.
        Random = "random",
    }
}

section! {
    /// Service load balancing.
    RawServices {
        /// Load services into the kernel. Without it they are merged, shared and shown all the same.
        enabled: Option<bool> = "false",
        /// How packets reach backends on other nodes. With `dsr` those of this cluster see the client's own address and their node
        /// answers it; others, and backends that are no workload, are reached as with `snat`, and so is every backend by clients that are
        /// workloads or nodes of this cluster.
        mode: Option<ServiceMode> = "snat",
        /// How packets carry the service address with `dsr`, the same on all nodes of the cluster. They get 8 octets longer with
        /// `option` (24 for IPv6), 28 (64) with `ipip`, 62 (94) with `geneve`, which uses UDP port 6081.
        dsr: Option<DsrKind> = "option",
        /// How a backend is chosen for a new connection.
        algorithm: Option<BackendAlgorithm> = "maglev",
        /// Entries of a Maglev table: 16381, or 65521 where a service has more than a hundred backends.
        table_size: Option<u32> = "16381",
        /// Links traffic from outside comes in by.
        uplinks: Vec<LinkText> = "the links that carry node.addresses",
        /// Processes in this control group (version 2) and below it get a backend when they connect to a service, so that their
        /// packets need no translation. `/sys/fs/cgroup` means all of the node, workloads included. Only so can the node's own
        /// processes use services.
        cgroup: Option<FilePath> = "none",
        /// Links of workloads, whose packets to service addresses are translated.
        workload_links: Vec<LinkText> = "the links that routes to this node's workloads name",
        /// Take packets from outside over before the stack sees them (XDP). With `auto` virtual links are left to the stack,
        /// where it costs more than it saves.
        xdp: Option<XdpUse> = "auto",
        /// Where `node_port` of services may be.
        node_port_range: Option<PortRangeText> = "30000-32767",
        /// Source ports of translated packets. The kernel must not give them to sockets: outside of `net.ipv4.ip_local_port_range`, or in `net.ipv4.ip_local_reserved_ports`.
        snat_ports: Option<PortRangeText> = "61000-65535",
        /// After so many seconds, 5 at least, without its store, the backends of a cluster get no new connections.
        remote_timeout_s: Option<u32> = "120",
        /// How much the kernel can hold.
        maps: RawServiceMaps = "",
    }
}

section! {
    /// How many entries maps have: from 1024 to 16777216. A change takes effect when the maps are made anew.
    RawServiceMaps {
        /// Frontends of services.
        services: Option<u32> = "65536",
        /// Backends of services.
        backends: Option<u32> = "65536",
        /// Entries of connections that find room, two for each connection; IPv6 gets a quarter as many. Up to twice as many are taken as long as
        /// they find a place. 112 octets each, 208 of IPv6: the default takes 56 and 26 MiB. Those that were active within the last second are also kept
        /// where a packet finds them faster: 131072 of IPv4, and half as many as this of all, 1048576 at most.
        connections: Option<u32> = "524288",
        /// Clients that keep their backend.
        affinity: Option<u32> = "65536",
        /// Addresses and the identity behind them. Of IPv4 each takes 16 octets at once, 8 MiB at the default, and all take memory as they come.
        identities: Option<u32> = "524288",
        /// Sockets that asked for a service when they connected, and backend each got. The ones used least recently give way: a
        /// socket that loses its entry sees the backend as its peer.
        sockets: Option<u32> = "65536",
        /// Members of all services together: a backend of three services is three.
        members: Option<u32> = "262144",
        /// Pieces of Maglev tables, of 32 KiB each: a service takes one, or four with the large table, and another as many while its backends change.
        maglev: Option<u32> = "4096",
        /// Datagrams that come in fragments at a time.
        fragments: Option<u32> = "8192",
        /// Prefixes that masquerade knows, and as many of which an identity is known.
        prefixes: Option<u32> = "65536",
        /// Source ranges of all services together.
        source_ranges: Option<u32> = "65536",
        /// Neighbors that programs send to without asking the routing table, and as many other ends of tunnels.
        next_hops: Option<u32> = "4096",
        /// Entries of policies, which no program asks yet.
        policy: Option<u32> = "65536",
    }
}
