//! What the speaker is told to be, free of how configuration files say it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use bgp::{
    policy::{GuardSettings, Vrps},
    rib::{Aggregate, LocalRoute, RibConfig},
    session::PeerKey,
    speaker::PeerConfig,
};
use ipnet::IpNet;
use meshd_core::{clustermesh::PeerContext, id::ClusterName};

use super::{bfd, transport::Transport};
use crate::config::model::bgp::{BmpStation, MrtConfig};

/// The whole speaker. A new version is compared with the old one, and only what differs is touched.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The tables.
    pub rib: RibConfig,
    /// Where to wait for connections; nowhere when empty.
    pub listen: Vec<SocketAddr>,
    /// Hand best paths on to be installed?
    pub install: bool,
    /// So many routes are installed at most.
    pub routes_max: usize,
    /// Who may originate what, when it is known.
    pub vrps: Option<Arc<Vrps>>,
    /// Peers by what identifies them.
    pub peers: BTreeMap<PeerKey, PeerSettings>,
    /// Peers that may come from anywhere in a prefix.
    pub ranges: Vec<RangeSettings>,
    /// What this node advertises itself.
    pub originate: Vec<(IpNet, LocalRoute)>,
    /// Prefixes that stand for more specific ones.
    pub aggregates: Vec<(IpNet, Aggregate)>,
    /// The name of this node, for those who watch.
    pub name: String,
    /// Its cluster.
    pub cluster: ClusterName,
    /// Advertise addresses of services.
    pub service_vips: bool,
    /// Prefixes that are ours and refused from peers.
    pub reserved: Vec<IpNet>,
    /// What else is refused.
    pub guard: GuardSettings,
    /// Clusters whose prefixes peers tell, when there are any.
    pub mesh: MeshSettings,
    /// Monitoring stations.
    pub stations: Vec<BmpStation>,
    /// Files of messages and tables.
    pub mrt: Option<MrtConfig>,
}

/// The mesh over BGP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeshSettings {
    /// The number in the middle of the large communities that say whose a prefix is; nobody is asked when there is none.
    pub function: Option<u32>,
    /// Clusters that BGP tells.
    pub clusters: Vec<PeerContext>,
    /// Clusters that a store tells.
    pub by_store: BTreeSet<ClusterName>,
}

/// One peer.
#[derive(Clone, Debug)]
pub struct PeerSettings {
    /// Session and tables.
    pub config: PeerConfig,
    /// Its connections.
    pub transport: Transport,
    /// Its port.
    pub port: u16,
    /// For people.
    pub description: String,
    /// Watch the path with BFD.
    pub bfd: Option<bfd::Settings>,
    /// Not wanted now; the words are for the peer's operator.
    pub shutdown: Option<String>,
    /// Next hop to give for IPv4 and IPv6 instead of the address of the connection.
    pub next_hop: [Option<IpAddr>; 2],
}

/// Peers that connect from a prefix.
#[derive(Clone, Debug)]
pub struct RangeSettings {
    /// The prefix.
    pub prefix: IpNet,
    /// How many there may be at a time.
    pub limit: usize,
    /// What each of them gets.
    pub template: PeerSettings,
}

impl RangeSettings {
    /// What the peer at this address gets.
    pub(super) fn peer(&self, address: IpAddr) -> PeerSettings {
        let mut settings = self.template.clone();
        settings.config.tables.address = address;
        settings
    }
}
