//! The cluster-config: id and capabilities of a cluster (wire contract section 1.2).
//!
//! It decides whether a reader connects at all. What is wrong with it is a problem of the peer as a whole, so it has an
//! error type of its own instead of a [`Rejection`](super::Rejection).

use serde::Serialize;
use thiserror::Error;

use super::{
    go_json::{self, Text, go_record},
    keys::{KeyKind, Keyspace},
    record::check_size,
    rejection::{Excerpt, Rejection},
};
use crate::{
    id::{ClusterId, ClusterName, MaxClusters},
    observed::Kind,
};

/// Which form of backends a cluster publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExportMode {
    /// JSON services only.
    #[default]
    Services,
    /// JSON services and endpoint slices.
    ServicesAndEndpointSlices,
    /// Endpoint slices only.
    EndpointSlices,
}

impl ExportMode {
    /// The word on the wire; JSON services only is the absence of the field.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Services => "",
            Self::ServicesAndEndpointSlices => "services-and-endpointslices",
            Self::EndpointSlices => "endpointslices-only",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [Self::Services, Self::ServicesAndEndpointSlices, Self::EndpointSlices]
            .into_iter()
            .find(|mode| mode.word() == word)
    }
}

/// What the reader of a cluster-config knows before it reads.
#[derive(Debug, Clone)]
pub struct ConfigExpectations {
    /// The cluster whose config it is, by its name in our configuration.
    pub cluster: ClusterName,
    /// Our own cluster.
    pub own_cluster: ClusterName,
    /// Our own id.
    pub own_id: ClusterId,
    /// Size of our mesh.
    pub max_clusters: MaxClusters,
    /// Ids of the other remote clusters we are connected to.
    pub taken: Vec<(ClusterName, ClusterId)>,
}

/// A cluster-config that passed every check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptedConfig {
    /// Id of the cluster.
    pub id: ClusterId,
    /// Where its records are.
    pub keyspace: Keyspace,
    /// Each kind must be waited for: its canary says when its first list is complete.
    pub canaries: bool,
    /// Size of the mesh the cluster believes in, when it says so.
    pub max_clusters: Option<u32>,
    /// Whether it exports MCS services; `None` when it does not know them.
    pub service_exports: Option<bool>,
    /// Which form of backends it publishes.
    pub export_mode: ExportMode,
}

impl AcceptedConfig {
    /// The records from which the rows of a kind are read. Services are read as JSON as long as there are such records.
    #[must_use]
    pub fn key_kind(&self, kind: Kind) -> KeyKind {
        match (kind, self.export_mode) {
            (Kind::Services, ExportMode::EndpointSlices) => KeyKind::EndpointSlices,
            (_, ExportMode::Services | ExportMode::ServicesAndEndpointSlices | ExportMode::EndpointSlices) => {
                kind.into()
            }
        }
    }
}

/// Why a cluster-config was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigRefusal {
    /// The value itself is damaged.
    #[error("cluster-config of cluster {cluster:?} is unreadable: {reason}")]
    Unreadable {
        /// The cluster.
        cluster: String,
        /// What is wrong.
        reason: Rejection,
    },
    /// No id, or 0.
    #[error("cluster {cluster:?} has no cluster id (0 is reserved); give it one between 1 and {max}")]
    NoId {
        /// The cluster.
        cluster: String,
        /// Largest id in this mesh.
        max: u16,
    },
    /// An id the mesh does not have.
    #[error(
        "cluster {cluster:?} has cluster id {found}, but cluster {own:?} is in a mesh of ids 1 to {max} (is max_clusters the same in both?)"
    )]
    IdOutOfRange {
        /// The cluster.
        cluster: String,
        /// Its id.
        found: u32,
        /// Our own cluster.
        own: String,
        /// Largest id in this mesh.
        max: u16,
    },
    /// Our own id.
    #[error(
        "cluster {cluster:?} has cluster id {id}, which is the id of our own cluster {own:?}; one of them must change it"
    )]
    OwnId {
        /// The cluster.
        cluster: String,
        /// The id of both.
        id: u16,
        /// Our own cluster.
        own: String,
    },
    /// The id of another remote cluster.
    #[error("cluster {cluster:?} has cluster id {id}, which cluster {other:?} has already; one of them must change it")]
    DuplicateId {
        /// The cluster.
        cluster: String,
        /// The id of both.
        id: u16,
        /// The cluster that had it first.
        other: String,
    },
    /// Our own store says we have another id.
    #[error(
        "the store of our own cluster {own:?} says its id is {found}, but cluster.id is {expected}; was the store written by another cluster?"
    )]
    NotOurId {
        /// Our own cluster.
        own: String,
        /// Id in the store.
        found: u16,
        /// Id in our configuration.
        expected: u16,
    },
    /// One side counts to 511 and the other one does not.
    #[error(
        "cluster {cluster:?} is in a mesh of {found} clusters, but cluster {own:?} has max_clusters 511; both must have the same"
    )]
    MaxClusters {
        /// The cluster.
        cluster: String,
        /// Its size of the mesh; 0 when it does not say.
        found: u32,
        /// Our own cluster.
        own: String,
    },
    /// An export mode of a release after ours.
    #[error("cluster {cluster:?} exports services in mode {found}, which cluster {own:?} does not know")]
    ExportMode {
        /// The cluster.
        cluster: String,
        /// The mode.
        found: Excerpt,
        /// Our own cluster.
        own: String,
    },
}

go_record! {
    /// What a cluster can do.
    WireCapabilities {
        canaries: bool = "syncedCanaries",
        cached: bool = "cached",
        max_clusters: Option<u32> = "maxConnectedClusters",
        service_exports: Option<bool> = "serviceExportsEnabled",
        export_mode: Text<'de> = "endpointSlicesExportMode",
    }
}

go_record! {
    /// A cluster-config.
    WireConfig {
        id: u32 = "id",
        capabilities: WireCapabilities<'de> = "capabilities",
    }
}

/// Reads and checks a cluster-config.
///
/// # Errors
/// [`ConfigRefusal`] names both clusters and what must change.
pub fn accept(expected: &ConfigExpectations, value: &[u8]) -> Result<AcceptedConfig, ConfigRefusal> {
    let cluster = || expected.cluster.to_string();
    let own = || expected.own_cluster.to_string();
    let wire: WireConfig<'_> = check_size(value)
        .and_then(|()| go_json::read(value))
        .map_err(|reason| ConfigRefusal::Unreadable { cluster: cluster(), reason })?;
    let capabilities = &wire.capabilities;
    let id = check_id(expected, wire.id)?;
    // A reader of 255 does not compare: such clusters may still run a release that says nothing.
    let said = capabilities.max_clusters.unwrap_or(0);
    if expected.max_clusters == MaxClusters::C511 && said != u32::from(MaxClusters::C511.get()) {
        return Err(ConfigRefusal::MaxClusters { cluster: cluster(), found: said, own: own() });
    }
    let Some(export_mode) = ExportMode::from_word(&capabilities.export_mode) else {
        let found = Excerpt::new(&capabilities.export_mode);
        return Err(ConfigRefusal::ExportMode { cluster: cluster(), found, own: own() });
    };
    Ok(AcceptedConfig {
        id,
        keyspace: if capabilities.cached { Keyspace::Cache } else { Keyspace::State },
        canaries: capabilities.canaries,
        max_clusters: capabilities.max_clusters,
        service_exports: capabilities.service_exports,
        export_mode,
    })
}

fn check_id(expected: &ConfigExpectations, found: u32) -> Result<ClusterId, ConfigRefusal> {
    let cluster = expected.cluster.to_string();
    let own = expected.own_cluster.to_string();
    let max = expected.max_clusters.get();
    if found == 0 {
        return Err(ConfigRefusal::NoId { cluster, max });
    }
    let Ok(id) = ClusterId::new(found, expected.max_clusters) else {
        return Err(ConfigRefusal::IdOutOfRange { cluster, found, own, max });
    };
    if expected.cluster == expected.own_cluster {
        if id != expected.own_id {
            return Err(ConfigRefusal::NotOurId { own, found: id.get(), expected: expected.own_id.get() });
        }
        return Ok(id);
    }
    if id == expected.own_id {
        return Err(ConfigRefusal::OwnId { cluster, id: id.get(), own });
    }
    let other = expected.taken.iter().find(|(name, taken)| *taken == id && *name != expected.cluster);
    match other {
        Some((other, _)) => Err(ConfigRefusal::DuplicateId { cluster, id: id.get(), other: other.to_string() }),
        None => Ok(id),
    }
}

/// What our own cluster-config says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnConfig {
    /// Our id.
    pub id: ClusterId,
    /// Size of the mesh.
    pub max_clusters: MaxClusters,
    /// Records are in cache form.
    pub cached: bool,
    /// Canaries are written.
    pub canaries: bool,
    /// Whether MCS services are exported; `None` leaves the field out.
    pub service_exports: Option<bool>,
    /// Which form of backends is published; JSON services only leaves the field out.
    pub export_mode: ExportMode,
}

#[derive(Serialize)]
struct OutConfig {
    id: u16,
    capabilities: OutCapabilities,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutCapabilities {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    synced_canaries: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cached: bool,
    max_connected_clusters: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_exports_enabled: Option<bool>,
    #[serde(skip_serializing_if = "str::is_empty")]
    endpoint_slices_export_mode: &'static str,
}

/// Writes a cluster-config.
#[must_use]
pub fn encode(config: &OwnConfig) -> Vec<u8> {
    go_json::write(&OutConfig {
        id: config.id.get(),
        capabilities: OutCapabilities {
            synced_canaries: config.canaries,
            cached: config.cached,
            max_connected_clusters: config.max_clusters.get(),
            service_exports_enabled: config.service_exports,
            endpoint_slices_export_mode: config.export_mode.word(),
        },
    })
}

#[cfg(test)]
mod tests;
