//! Identity records: the labels behind a number (wire contract section 1.5). The value is label text, not JSON.

use std::ops::RangeInclusive;

use super::{
    context::PeerContext,
    labels,
    record::check_size,
    rejection::{Excerpt, Rejection},
};
use crate::{
    id::{ClusterId, MaxClusters, NumericIdentity},
    observed::{IdentityRow, Labels},
};

/// Most labels of one identity.
pub const IDENTITY_LABELS_MAX: usize = 256;
/// Key of the label that says which cluster an identity is of.
pub const CLUSTER_LABEL: &str = "io.cilium.k8s.policy.cluster";
/// Source the cluster label must have.
pub const CLUSTER_LABEL_SOURCE: &str = "k8s";

/// Local numbers below this are never allocated: with the cluster's bits masked off they would read as reserved.
const LOCAL_MIN: u32 = 256;

/// The numbers a cluster gives to its own identities. Readers accept its whole range, from the lowest number on.
#[must_use]
pub fn allocatable(id: ClusterId, max_clusters: MaxClusters) -> RangeInclusive<u32> {
    let range = id.identity_range(max_clusters);
    range.start() + LOCAL_MIN..=*range.end()
}

/// Reads and checks an identity record.
///
/// # Errors
/// The first check it fails.
pub(super) fn accept(ctx: &PeerContext, id: NumericIdentity, value: &[u8]) -> Result<IdentityRow, Rejection> {
    ctx.check_identity_range(id.0)?;
    check_size(value)?;
    let text = std::str::from_utf8(value).map_err(|error| Rejection::NotText { at: error.valid_up_to() })?;
    let labels = labels::parse(text, IDENTITY_LABELS_MAX)?;
    let cluster = labels.iter().find(|(_, key, _)| *key == CLUSTER_LABEL);
    let Some((source, _, found)) = cluster else { return Err(Rejection::NoClusterLabel) };
    if source != CLUSTER_LABEL_SOURCE {
        return Err(Rejection::ClusterLabelSource { found: Excerpt::new(source) });
    }
    if found != ctx.cluster.as_str() {
        let expected = ctx.cluster.to_string();
        return Err(Rejection::ForeignClusterLabel { found: Excerpt::new(found), expected });
    }
    Ok(IdentityRow { labels })
}

/// Writes an identity record.
#[must_use]
pub fn encode(labels: &Labels) -> Vec<u8> {
    labels.0.as_bytes().to_vec()
}
