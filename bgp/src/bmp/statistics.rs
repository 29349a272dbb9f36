//! Numbers about a peer (RFC 7854 section 4.8, RFC 8671 section 6.2).

use super::{Peer, kind, message};
use crate::family::Family;

/// One number. Counters are since the session came up and have four octets, sizes of tables have eight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistic {
    /// Prefixes that import policy rejected.
    Rejected(u32),
    /// Prefixes that were announced again with nothing new.
    DuplicateAnnouncements(u32),
    /// Prefixes that were withdrawn and not there.
    DuplicateWithdrawals(u32),
    /// UPDATEs dropped for our cluster in CLUSTER_LIST.
    ClusterLoops(u32),
    /// UPDATEs dropped for our AS in AS_PATH.
    AsPathLoops(u32),
    /// UPDATEs dropped for our identifier in ORIGINATOR_ID.
    OriginatorLoops(u32),
    /// UPDATEs dropped for our member AS in a confederation segment.
    ConfederationLoops(u32),
    /// UPDATEs treated as withdrawals (RFC 7606).
    UpdatesTreatedAsWithdraw(u32),
    /// Prefixes treated as withdrawn (RFC 7606).
    PrefixesTreatedAsWithdraw(u32),
    /// UPDATEs that were there already.
    DuplicateUpdates(u32),
    /// Paths in Adj-RIB-In.
    AdjRibIn(u64),
    /// Paths in Loc-RIB.
    LocRib(u64),
    /// Paths in Adj-RIB-In of a family.
    AdjRibInOf(Family, u64),
    /// Paths in Loc-RIB of a family.
    LocRibOf(Family, u64),
    /// Paths in Adj-RIB-Out before export policy.
    AdjRibOutPrePolicy(u64),
    /// Paths in Adj-RIB-Out after export policy.
    AdjRibOutPostPolicy(u64),
    /// Paths in Adj-RIB-Out of a family before export policy.
    AdjRibOutPrePolicyOf(Family, u64),
    /// Paths in Adj-RIB-Out of a family after export policy.
    AdjRibOutPostPolicyOf(Family, u64),
}

/// A number as it goes onto the wire.
enum Value {
    Counter(u32),
    Gauge(u64),
    FamilyGauge(Family, u64),
}

impl Statistic {
    const fn parts(self) -> (u16, Value) {
        match self {
            Self::Rejected(count) => (0, Value::Counter(count)),
            Self::DuplicateAnnouncements(count) => (1, Value::Counter(count)),
            Self::DuplicateWithdrawals(count) => (2, Value::Counter(count)),
            Self::ClusterLoops(count) => (3, Value::Counter(count)),
            Self::AsPathLoops(count) => (4, Value::Counter(count)),
            Self::OriginatorLoops(count) => (5, Value::Counter(count)),
            Self::ConfederationLoops(count) => (6, Value::Counter(count)),
            Self::AdjRibIn(count) => (7, Value::Gauge(count)),
            Self::LocRib(count) => (8, Value::Gauge(count)),
            Self::AdjRibInOf(family, count) => (9, Value::FamilyGauge(family, count)),
            Self::LocRibOf(family, count) => (10, Value::FamilyGauge(family, count)),
            Self::UpdatesTreatedAsWithdraw(count) => (11, Value::Counter(count)),
            Self::PrefixesTreatedAsWithdraw(count) => (12, Value::Counter(count)),
            Self::DuplicateUpdates(count) => (13, Value::Counter(count)),
            Self::AdjRibOutPrePolicy(count) => (14, Value::Gauge(count)),
            Self::AdjRibOutPostPolicy(count) => (15, Value::Gauge(count)),
            Self::AdjRibOutPrePolicyOf(family, count) => (16, Value::FamilyGauge(family, count)),
            Self::AdjRibOutPostPolicyOf(family, count) => (17, Value::FamilyGauge(family, count)),
        }
    }
}

/// A Statistics Report.
pub fn statistics(out: &mut Vec<u8>, peer: &Peer, numbers: &[Statistic]) {
    message(out, kind::STATISTICS, |out| {
        peer.write(out);
        let count = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&count.to_be_bytes());
        for number in numbers {
            let (kind, value) = number.parts();
            out.extend_from_slice(&kind.to_be_bytes());
            match value {
                Value::Counter(count) => {
                    out.extend_from_slice(&4u16.to_be_bytes());
                    out.extend_from_slice(&count.to_be_bytes());
                }
                Value::Gauge(count) => {
                    out.extend_from_slice(&8u16.to_be_bytes());
                    out.extend_from_slice(&count.to_be_bytes());
                }
                Value::FamilyGauge(family, count) => {
                    out.extend_from_slice(&11u16.to_be_bytes());
                    out.extend_from_slice(&family.afi().to_be_bytes());
                    out.push(family.safi());
                    out.extend_from_slice(&count.to_be_bytes());
                }
            }
        }
    });
}
