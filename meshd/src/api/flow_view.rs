//! What `GET /v1/flows` answers: one JSON object a line, flows and losses as they come.
//!
//! The rules of [`super::view`] hold. The fields carry what a flow of Hubble carries, so that its API can be served from them:
//!
//! | Hubble `flow.Flow` | here |
//! |---|---|
//! | `time` | `time` |
//! | `verdict` (`FORWARDED`, `DROPPED`) | `verdict` |
//! | `drop_reason_desc` | `reason`, when the verdict is `dropped` |
//! | `IP.source`, `IP.destination`, `IP.ipVersion` | `source.address`, `destination.address`, `family` |
//! | `IP.source_xlated` | `translated.source.address` |
//! | `l4.TCP`, `UDP`, `SCTP`: ports | `source.port`, `destination.port`, by `protocol` |
//! | `l4.TCP.flags` | `tcp_flags` |
//! | `l4.ICMPv4`, `ICMPv6` | `protocol`; type 8 or 128, or 0 or 129 with `is_reply` (only echoes are connections) |
//! | `source`, `destination`: `identity`, `cluster_name`, `namespace`, `pod_name`, `labels` | `source`, `destination`, or `translated.destination` behind a service: `identity`, `cluster`, `namespace`, `workload`; labels by identity (`GET /v1/get/identities`) |
//! | `destination_service` | `service` |
//! | `is_reply` | `is_reply` |
//! | `traffic_direction` | `direction` |
//! | `trace_observation_point` (`FROM_NETWORK`, `TO_NETWORK`, `FROM_ENDPOINT`, `TO_ENDPOINT`) | `place` |
//! | `event_type` (`DROP`, `TRACE` with the state `NEW` or `ESTABLISHED`) | `type` |
//! | `interface.name`, `interface.index` | `link`, `link_index` |
//! | `node_name` | `node` |
//! | `LostEvent.source`, `num_events_lost` | `source`, `events` of a line of type `lost` |
//!
//! Not told, because no program of meshd knows it: `ethernet`, `l7`, `policy_*`, `auth_type`, `socket_cookie`, `trace_context`.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FlowLine {
    /// What became of a connection or a packet.
    Flow(Arc<FlowView>),
    /// Flows that cannot be told.
    Lost(LostView),
}

/// What became of a connection or a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowView {
    /// What is told.
    #[serde(rename = "type")]
    pub kind: FlowKind,
    /// When the packet was seen.
    pub time: Timestamp,
    /// What was decided.
    pub verdict: Verdict,
    /// Why, in the words of the counters (`datapath.packets` of `GET /v1/status`).
    pub reason: String,
    /// From the node's workloads (`egress`) or to them (`ingress`).
    pub direction: Direction,
    /// Where it was seen: `from_network`, `to_network`, `from_workload` or `to_workload`.
    pub place: String,
    /// Does the packet answer?
    pub is_reply: bool,
    /// 4 or 6.
    pub family: u8,
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6`, or the number.
    pub protocol: String,
    /// TCP flags of the packet, `null` for other protocols.
    pub tcp_flags: Option<Vec<String>>,
    /// Length of the packet in bytes, link-layer header included.
    pub length: u32,
    /// Source as it arrived.
    pub source: FlowEndView,
    /// Destination as it arrived: of a service, its frontend.
    pub destination: FlowEndView,
    /// Both ends as they left; `null` when nothing was translated.
    pub translated: Option<TranslatedView>,
    /// The service behind the connection.
    pub service: Option<FlowServiceView>,
    /// Link it was seen at; `null` when it is gone.
    pub link: Option<String>,
    /// The link's index.
    pub link_index: u32,
    /// The node that tells.
    pub node: String,
}

/// One end of a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowEndView {
    /// Address; `None` only in what an unknown daemon says.
    pub address: Option<IpAddr>,
    /// Port; of an ICMP echo its identifier.
    pub port: u16,
    /// Numeric identity; `null` when the address has none.
    pub identity: Option<u32>,
    /// Name of its cluster.
    pub cluster: Option<String>,
    /// Namespace of the workload.
    pub namespace: Option<String>,
    /// The workload.
    pub workload: Option<String>,
    /// The node whose own address it is.
    pub node: Option<String>,
}

/// Both ends after translation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TranslatedView {
    /// Source.
    pub source: FlowEndView,
    /// Destination: of a service, its backend.
    pub destination: FlowEndView,
}

/// A service by number and name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowServiceView {
    /// Number in the maps of this node.
    pub number: u32,
    /// Namespace; `null` when the service is gone.
    pub namespace: Option<String>,
    /// Name; `null` when the service is gone.
    pub name: Option<String>,
}

/// Flows that this reader cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostView {
    /// Always `lost`.
    #[serde(rename = "type")]
    pub kind: LostKind,
    /// When it was noticed.
    pub time: Timestamp,
    /// Where they were lost.
    pub source: LostSource,
    /// How many. Those lost in the datapath may be of any filter.
    pub events: u64,
}

/// The type of a line about losses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LostKind {
    /// The only one.
    Lost,
}

/// Where flows are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LostSource {
    /// The reader of this answer is too slow.
    Follower,
    /// The ring between kernel and daemon was full.
    Ring,
    /// More in a second than the programs may tell.
    Limit,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// Every one.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word that JSON, filters and people use.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.word())
            }
        }
    };
}

words! {
    /// What a flow tells.
    FlowKind {
        /// A connection began
        New = "new",
        /// A connection goes on with another backend
        Change = "change",
        /// An end closed a connection
        Close = "close",
        /// A packet was dropped
        Drop = "drop",
    }
}

words! {
    /// What was decided.
    Verdict {
        /// It went on
        Forwarded = "forwarded",
        /// It ended here
        Dropped = "dropped",
    }
}

words! {
    /// As workloads of the node see it.
    Direction {
        /// To them
        Ingress = "ingress",
        /// From them
        Egress = "egress",
    }
}

/// What is known of flows since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCountsView {
    /// Flows read, by type.
    pub told: std::collections::BTreeMap<String, u64>,
    /// Who reads now.
    pub followers: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_json_and_of_people_are_the_same() {
        for kind in FlowKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.word());
        }
        for verdict in Verdict::ALL {
            assert_eq!(serde_json::to_value(verdict).unwrap(), verdict.word());
        }
        for direction in Direction::ALL {
            assert_eq!(serde_json::to_value(direction).unwrap(), direction.word());
        }
    }

    #[test]
    fn lines_are_told_apart() {
        let lost = r#"{"type":"lost","time":"2026-01-01T00:00:00Z","source":"follower","events":3}"#;
        let line: FlowLine = serde_json::from_str(lost).unwrap();
        assert!(matches!(line, FlowLine::Lost(LostView { events: 3, source: LostSource::Follower, .. })));
        assert_eq!(serde_json::to_string(&line).unwrap(), lost);
    }
}
