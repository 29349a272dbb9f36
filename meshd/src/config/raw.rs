//! The configuration as written: optional everywhere, texts unparsed.
//!
//! The doc comments of this file are the reference page (`docs/reference/config.md`); write them for the
//! person who edits the file.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::described::{Described, Kind, choice, section, text};

pub mod bgp;
pub mod bgp_peer;
pub mod bgp_policy;
pub mod routing;
pub mod services;

use self::bgp::RawBgp;
pub use self::routing::RoutingMode;
use self::routing::{RawPeerRouting, RawRouting, RawTunnel};
use self::services::{RawService, RawServices};

text! {
    /// A name.
    Name = "a name";
    /// A path; relative ones start at the folder of the configuration file.
    FilePath = "a path";
    /// An IPv4 or IPv6 address.
    Address = "an IPv4 or IPv6 address";
    /// An address with a prefix length.
    PrefixText = "a prefix such as 10.0.1.0/24";
    /// An address with a port.
    SocketText = "an address with a port such as 0.0.0.0:2379";
    /// A URL of a store.
    EndpointText = "a URL such as https://192.0.2.1:2379";
    /// A filter of log lines.
    LogFilter = "a level (error, warn, info, debug, trace) or a filter such as meshd=debug,warn";
}

/// A value of a later version, kept as it is.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub struct Unsupported(pub serde_json::Value);

impl Described for Unsupported {
    const KIND: Kind = Kind::Unsupported;
}

section! {
    /// Everything in one file. Tables may be written in YAML, TOML or JSON; the extension decides.
    RawConfig {
        /// The cluster this node belongs to.
        cluster: RawCluster = "",
        /// This node.
        node: RawNode = "",
        /// Where the own cluster publishes itself.
        store: RawStore = "",
        /// Remote clusters to read.
        peers: Vec<RawPeer> = "none",
        /// A folder of remote clusters in Cilium's layout: every file that contains `endpoints:` is one, and
        /// its name is the cluster's name. It is watched. A cluster that is also in `peers` is taken from there. A
        /// cluster stays until its file is removed: a file that turns wrong or empty, or a folder that cannot be read,
        /// is reported and changes nothing.
        peers_dir: Option<FilePath> = "none",
        /// What holds for remote clusters that do not say it themselves, and for all of `peers_dir`.
        peers_defaults: RawPeerDefaults = "",
        /// A folder whose `.yaml`, `.yml`, `.toml` and `.json` files are merged over this file in the order of
        /// their names: tables key by key, the lists `peers`, `bgp.peers`, `workloads.static`, `workloads.services` and `store.users` by appending, everything
        /// else by replacing. The folder must exist, and every such file in it that is not hidden must be readable: what
        /// cannot be read is an error, so that a reload keeps what holds. `meshd connect` and `meshd disconnect` write
        /// here; `connect` makes the folder.
        include: Option<FilePath> = "none",
        /// How packets reach other nodes.
        routing: RawRouting = "",
        /// Workloads on nodes without Kubernetes.
        workloads: RawWorkloads = "",
        /// The BGP speaker.
        bgp: Option<RawBgp> = "no speaker",
        /// How the daemon is asked.
        api: RawApi = "",
        /// What must survive a restart: rows learned from remote clusters, identities, the embedded store.
        state_dir: Option<FilePath> = "/var/lib/meshd",
        /// What is logged.
        log: RawLog = "",
        /// Encapsulation where the native path does not work. Without this section there is no tunnel, and `routing.mode: auto` means
        /// `native`.
        tunnel: Option<RawTunnel> = "no tunnel",
        /// Service load balancing.
        services: RawServices = "",
        /// Network policy.
        policy: Option<Unsupported> = "",
        /// Source NAT for traffic that leaves the mesh.
        masquerade: RawMasquerade = "",
        /// Nodes, workloads and services from a Kubernetes API server.
        kubernetes: Option<Unsupported> = "",
    }
}

section! {
    /// The cluster this node belongs to.
    RawCluster {
        /// Its name: 1 to 32 characters of `a-z`, `0-9` and `-`, the first and last not `-`, and not `default`.
        /// Unique in the mesh.
        name: Option<Name> = "required",
        /// Its number, from 1 to `max_clusters`. Unique in the mesh. Numbers above 127 are reported, because some
        /// cloud network modes of Cilium cannot carry them.
        id: Option<u32> = "required",
        /// How many clusters the mesh can have: 255, or 511 with half as many identities in each. The same in
        /// every cluster, and not to be changed while the mesh is in use.
        max_clusters: Option<u32> = "255",
    }
}

section! {
    /// This node.
    RawNode {
        /// Its name, unique in the cluster.
        name: Option<Name> = "the host name",
        /// Addresses other nodes reach this one by, at most one route per family is made from each. Several of one family
        /// are used together.
        addresses: Vec<Address> = "the source address of the default route, per family",
        /// Prefixes of the workloads on this node.
        pod_cidrs: Vec<PrefixText> = "none",
        /// What kind of node it is, for instance `rack: r1`: BGP peers and groups choose nodes by it.
        /// `topology.kubernetes.io/zone` is the zone that services with `topology: zone` go by; it is the only one that other nodes are told.
        /// Another zone takes effect at the next restart, and `meshd status` says so until then.
        labels: BTreeMap<String, String> = "none",
    }
}

choice! {
    /// Where the own cluster publishes itself.
    StoreMode {
        /// This process serves the store.
        Embedded = "embedded",
        /// A real etcd, or the embedded store of another node of this cluster.
        Etcd = "etcd",
    }
}

section! {
    /// Where the own cluster publishes itself. One node of a cluster serves an `embedded` store and the others
    /// point at it with `mode: etcd`; with a real etcd all nodes do.
    RawStore {
        /// `embedded` serves the store from this process, `etcd` uses `endpoints`.
        mode: Option<StoreMode> = "required",
        /// Embedded: where to listen.
        listen: Option<SocketText> = "0.0.0.0:2379",
        /// Etcd: where it is. Several are members of one etcd cluster.
        endpoints: Vec<EndpointText> = "required with mode etcd",
        /// Certificates. Embedded: the server's, and the authority that signs its clients. Etcd: the client's, and
        /// the authority that signed the server. An embedded store without them may listen on loopback only.
        tls: Option<RawTls> = "none",
        /// Embedded: further certificate names (CN) that may use the store. The names `remote`, `remote-CLUSTER` for each
        /// configured peer, `local-OWN`, `node-OWN` and `admin-OWN` are always known.
        users: Vec<RawUser> = "none",
    }
}

choice! {
    /// What a user of the embedded store may do.
    UserRole {
        /// Everything.
        Root = "root",
        /// Write the records of nodes and workloads.
        Node = "node",
        /// Read the copies of other clusters.
        Local = "local",
        /// Read this cluster's records.
        Remote = "remote",
    }
}

section! {
    /// A certificate name that may use the embedded store.
    RawUser {
        /// The CN of the client certificate.
        name: Option<Name> = "required",
        /// What it may do: `remote` reads this cluster, `local` reads copies of other clusters, `node` writes node and
        /// workload records, `root` everything.
        role: Option<UserRole> = "required",
    }
}

section! {
    /// Three files in PEM; all or none.
    RawTls {
        /// The certificate authority of the other side.
        ca: Option<FilePath> = "required",
        /// The own certificate, followed by intermediate ones.
        cert: Option<FilePath> = "required",
        /// Its private key; must not be readable by everybody.
        key: Option<FilePath> = "required",
    }
}

section! {
    /// A remote cluster.
    RawPeer {
        /// Its name, as it calls itself.
        cluster: Option<Name> = "required",
        /// Where its store is. None with `id`.
        endpoints: Vec<EndpointText> = "required without `id`",
        /// Its number, when it has no store that we reach: its prefixes are told over BGP (`bgp.mesh`).
        id: Option<u32> = "what its store says",
        /// Certificates to reach it.
        tls: Option<RawTls> = "none",
        /// What it may say.
        accept: Option<RawAccept> = "peers_defaults.accept",
        /// How its nodes are reached.
        routing: RawPeerRouting = "",
        /// Names in `endpoints` and their addresses, for names that are in no DNS.
        host_aliases: Vec<RawHostAlias> = "none",
    }
}

section! {
    /// A name and its addresses.
    RawHostAlias {
        /// The name.
        hostname: Option<Name> = "required",
        /// Its addresses.
        ips: Vec<Address> = "required",
    }
}

section! {
    /// What a remote cluster may say. Nothing is accepted unless it is inside one of these prefixes; the own
    /// prefixes are refused in any case.
    RawAccept {
        /// Prefixes its workloads may have. A prefix inside a network this node is connected to is accepted only from an
        /// entry that lies inside that network as well. One that would take the traffic to a gateway or a node is refused.
        pod_cidrs: Vec<PrefixText> = "nothing",
        /// Prefixes its nodes' addresses may be in.
        node_cidrs: Vec<PrefixText> = "nothing",
    }
}

section! {
    /// What holds for remote clusters that do not say it themselves.
    RawPeerDefaults {
        /// What they may say.
        accept: Option<RawAccept> = "nothing is accepted",
    }
}

section! {
    /// Workloads on nodes without Kubernetes.
    RawWorkloads {
        /// Workloads on this node.
        r#static: Vec<RawWorkload> = "none",
        /// Services of this cluster.
        services: Vec<RawService> = "none",
    }
}

section! {
    /// A workload on this node.
    RawWorkload {
        /// Its namespace.
        namespace: Option<Name> = "default",
        /// Its name, unique in the namespace.
        name: Option<Name> = "required",
        /// Its addresses, inside `node.pod_cidrs`.
        addresses: Vec<Address> = "required",
        /// Its labels; together with namespace and cluster they make its identity. Labels that differ between workloads
        /// of one kind are left out as Cilium does by default: those that begin with `pod-template-hash`,
        /// `pod-template-generation`, `controller-revision-hash`, `controller-uid`, `statefulset.kubernetes.io/pod-name`,
        /// `apps.kubernetes.io/pod-index`, `batch.kubernetes.io/controller-uid`,
        /// `batch.kubernetes.io/job-completion-index`, `kubernetes.io`, `k8s.io`, `io.kubernetes`, `annotation` or
        /// `etcd_node`, and those with `beta.kubernetes.io` in their name.
        labels: BTreeMap<String, String> = "none",
        /// Its service account.
        service_account: Option<Name> = "default",
    }
}

choice! {
    /// Who gives the node's address to what leaves the mesh.
    MasqueradeByWord {
        /// The datapath's programs where they can, otherwise nftables.
        Auto = "auto",
        /// Always nftables.
        Nftables = "nftables",
    }
}

section! {
    /// Source NAT for traffic that leaves the mesh, by a table of nftables (`inet meshd`); needs the program `nft`. What goes
    /// to PodCIDRs and node addresses of any cluster, or to `routing.native_cidrs`, keeps its source, also where
    /// somebody else has a masquerade rule.
    RawMasquerade {
        /// Masquerade what workloads of this node send out of the mesh.
        enabled: Option<bool> = "false",
        /// Further destinations to which workloads keep their address. At most 16,384 prefixes are excluded in all.
        exclude: Vec<PrefixText> = "none",
        /// Masquerade what goes to link-local addresses (169.254.0.0/16, fe80::/10), too.
        link_local: Option<bool> = "false",
        /// A file of the ip-masq-agent in YAML or JSON with `nonMasqueradeCIDRs`, `masqLinkLocal` and `masqLinkLocalIPv6`. It is
        /// watched. A missing or empty one means the agent's defaults (private and reserved prefixes); one that is wrong is
        /// reported and changes nothing.
        agent_file: Option<FilePath> = "none",
        /// Links that lead out of the node.
        uplinks: Vec<Name> = "those that carry an address of the node",
        /// Source addresses to use, at most one per family.
        address: Vec<Address> = "what the kernel chooses for the link",
        /// Who gives the node's address to what leaves: `auto`, the datapath's programs while they are on all of these links
        /// (`services.enabled`, and no `address` but the node's own), otherwise nftables; or always `nftables`. What stays inside
        /// of the mesh keeps its source by nftables in both cases.
        by: Option<MasqueradeByWord> = "auto",
    }
}

section! {
    /// How the daemon is asked.
    RawApi {
        /// The socket of the command line. Its folder is made if it is missing.
        socket: Option<FilePath> = "/run/meshd/meshd.sock",
        /// Where metrics for Prometheus are served over TCP as well, without encryption, at `/metrics`. Everybody who
        /// reaches the address may read them, so write `127.0.0.1:9962` where the collector runs on the node. The socket
        /// serves them in any case.
        metrics: Option<SocketText> = "nowhere",
        /// The web page.
        web: Option<Unsupported> = "",
    }
}

choice! {
    /// How log lines look.
    LogFormat {
        /// For people.
        Text = "text",
        /// For machines.
        Json = "json",
    }
}

section! {
    /// What is logged, to standard error.
    RawLog {
        /// The level, or a filter per part of the program.
        level: Option<LogFilter> = "info",
        /// `text` for people, `json` for machines.
        format: Option<LogFormat> = "text",
    }
}
