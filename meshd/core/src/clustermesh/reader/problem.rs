//! What an operator is told about a peer: one sentence and what to look at.

use std::{sync::Arc, time::Duration};

use super::{
    LIST_RECORDS_MAX, Settings, Target,
    session::{ConfigStage, Session},
};
use crate::{
    id::{ClusterId, ClusterName},
    observed::Kind,
};

/// The most important thing that is wrong with a connection that answers.
pub(super) fn of_session(settings: &Settings, session: &Session, canaries: &[Kind], now: Duration) -> Option<Arc<str>> {
    config(settings, &session.config)
        .or_else(|| refused(settings, session))
        .or_else(|| canary(settings, session, canaries, now))
        .or_else(|| (session.watchdog.failing > 0).then(|| silent(settings)))
}

/// The cluster-config never came.
pub(super) fn config_timeout(settings: &Settings, session: &Session) -> Arc<str> {
    config(settings, &session.config).or_else(|| refused(settings, session)).unwrap_or_else(|| {
        let cluster = &settings.cluster;
        format!("cluster-config of {cluster} was not answered: the store is overloaded or has lost its quorum").into()
    })
}

/// The heartbeat stopped.
pub(super) fn silent(settings: &Settings) -> Arc<str> {
    let (cluster, after) = (&settings.cluster, settings.timers.silence.as_secs());
    format!(
        "heartbeat of {cluster} has been silent for more than {after} s: its control plane no longer writes to the store"
    )
    .into()
}

/// The store has other data than before.
pub(super) fn store_changed(settings: &Settings, old: u64, new: u64) -> Arc<str> {
    let cluster = &settings.cluster;
    format!(
        "etcd cluster id of {cluster} changed from {old:x} to {new:x}: the store lost its history, reading it again"
    )
    .into()
}

/// An answer without an id.
pub(super) fn no_store_id(settings: &Settings) -> Arc<str> {
    format!("the store of {} answers without a cluster id: it is not etcd v3", settings.cluster).into()
}

/// An answer that breaks the protocol.
pub(super) fn disordered(settings: &Settings, target: Target) -> Arc<str> {
    format!("the store of {} lists {} out of order or out of range: it is not etcd v3", settings.cluster, word(target))
        .into()
}

/// A watch that is never confirmed.
pub(super) fn watch_timeout(settings: &Settings, target: Target) -> Arc<str> {
    let (cluster, after) = (&settings.cluster, settings.timers.watch_timeout.as_secs());
    format!("watch of {} of {cluster} was not confirmed within {after} s: the store is overloaded", word(target)).into()
}

/// One record fills more than a message.
pub(super) fn too_large(settings: &Settings, target: Target) -> Arc<str> {
    format!("a single record in {} of {} is larger than a message we read", word(target), settings.cluster).into()
}

/// A list that does not end.
pub(super) fn too_many(settings: &Settings, target: Target) -> Arc<str> {
    let cluster = &settings.cluster;
    format!(
        "the list has more than {LIST_RECORDS_MAX} records: does something other than Cilium or meshd write {} of \
         {cluster}?",
        word(target)
    )
    .into()
}

/// The configuration in force was replaced by another one.
pub(super) fn config_changed(settings: &Settings) -> Arc<str> {
    format!("cluster-config of {} changed: reading the cluster again", settings.cluster).into()
}

/// The key of the configuration in force was removed.
pub(super) fn config_gone(settings: &Settings) -> Arc<str> {
    format!("cluster-config of {} was removed from its store: was the cluster taken out of the mesh?", settings.cluster)
        .into()
}

/// Two clusters want the same id.
pub(super) fn id_taken(settings: &Settings, id: ClusterId, owner: &ClusterName) -> Arc<str> {
    let cluster = &settings.cluster;
    format!("cluster id {id} of {cluster} is already used by {owner}: every cluster of a mesh needs an id of its own")
        .into()
}

fn config(settings: &Settings, stage: &ConfigStage) -> Option<Arc<str>> {
    match stage {
        ConfigStage::Asked | ConfigStage::Claiming(_) => None,
        ConfigStage::Missing => {
            let cluster = &settings.cluster;
            Some(
                format!(
                    "cluster-config of {cluster} absent in its store: is the name right, and has the cluster begun to \
                     publish itself there?"
                )
                .into(),
            )
        }
        ConfigStage::Refused(reason) => Some(reason.clone()),
        ConfigStage::Accepted { problem, .. } => problem.clone(),
    }
}

fn refused(settings: &Settings, session: &Session) -> Option<Arc<str>> {
    let (target, reason) =
        session.follows.iter().find_map(|(target, follow)| Some((*target, follow.refused.as_ref()?)))?;
    let what = match target {
        Target::Records(kind) => records(session, kind),
        Target::Heartbeat | Target::Config | Target::Canaries => word(target),
    };
    Some(format!("failed to read {what} of {}: {reason}", settings.cluster).into())
}

fn canary(settings: &Settings, session: &Session, canaries: &[Kind], now: Duration) -> Option<Arc<str>> {
    let listed = session.canaries_listed?;
    if now.saturating_sub(listed) < settings.timers.canary_grace {
        return None;
    }
    let missing: Vec<String> = Kind::ALL
        .into_iter()
        .filter(|kind| !canaries.contains(kind))
        .map(|kind| format!("{}/v1", records(session, kind)))
        .collect();
    let cluster = &settings.cluster;
    match missing.as_slice() {
        [] => None,
        [one] => Some(
            format!("canary {one} of {cluster} is missing: its control plane has not finished writing these records")
                .into(),
        ),
        several => Some(
            format!(
                "canaries {} of {cluster} are missing: its control plane has not finished writing these records",
                several.join(", ")
            )
            .into(),
        ),
    }
}

/// The word of keys for the records that a kind is read from.
fn records(session: &Session, kind: Kind) -> &'static str {
    session.accepted().map_or(kind.key_word(), |config| config.key_kind(kind).word())
}

fn word(target: Target) -> &'static str {
    match target {
        Target::Heartbeat => "heartbeat",
        Target::Config => "cluster-config",
        Target::Canaries => "canaries",
        Target::Records(kind) => kind.key_word(),
    }
}
