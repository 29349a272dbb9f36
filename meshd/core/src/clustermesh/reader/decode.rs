//! Records to rows, and the bookkeeping of what was refused.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;

use super::{REJECTED_KEYS_MAX, Record};
use crate::{
    clustermesh::{
        Interner, Keyspace, PeerContext, Record as Accepted, RecordKey, accept_upsert, key_text, parse_delete,
    },
    id::NodeName,
    observed::{ClusterChange, Kind, RejectedRow},
};

/// Turns records into changes. Lives as long as the reader, because refusals outlive a connection.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// Refused keys the tables know of.
    rejected: BTreeMap<Arc<str>, Kind>,
    interner: Interner,
}

impl Decoder {
    /// A list of `kind` begins: the tables forget its refusals, and so do we.
    pub(super) fn begin(&mut self, kind: Kind) {
        self.rejected.retain(|_, of| *of != kind);
        self.interner.shrink();
    }

    /// Everything of the cluster was dropped.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Reads one record of the range of `kind`. `skip` is our own node: we know it better than the store does.
    pub(super) fn read(
        &mut self,
        source: (&PeerContext, Keyspace, Kind),
        skip: Option<&NodeName>,
        record: &Record,
        wall: Timestamp,
        changes: &mut Vec<ClusterChange>,
    ) {
        let (context, keyspace, kind) = source;
        if is_own_node(context, keyspace, kind, skip, &record.key) {
            return;
        }
        let Some(value) = &record.value else {
            self.heal(&record.key, changes);
            if let Some(key) = parse_delete(context, keyspace, &record.key) {
                changes.push(withdraw(key));
            }
            return;
        };
        match accept_upsert(context, &mut self.interner, keyspace, &record.key, value) {
            Ok(accepted) => {
                self.heal(&record.key, changes);
                match accepted {
                    Accepted::Node(name, row) => changes.push(ClusterChange::Node(name, Some(Arc::new(row)))),
                    Accepted::Identity(id, row) => changes.push(ClusterChange::Identity(id, Some(row))),
                    Accepted::Endpoint(prefix, row) => changes.push(ClusterChange::Endpoint(prefix, Some(row))),
                    Accepted::Service(name, row) => changes.push(ClusterChange::Service(name, Some(Arc::new(row)))),
                    Accepted::Withdrawn(key) => changes.push(withdraw(key)),
                    Accepted::Ignored => {}
                }
            }
            Err(refused) => {
                let kind = refused.kind.unwrap_or(kind);
                let key = key_text(&record.key);
                if self.rejected.len() < REJECTED_KEYS_MAX || self.rejected.contains_key(&key) {
                    self.rejected.insert(key.clone(), kind);
                }
                let row = RejectedRow { kind: Some(kind), reason: refused.reason, since: wall };
                changes.push(ClusterChange::Rejected(key, Some(row)));
                // Fail static: a record that cannot be believed does not take back what was believed before.
                changes.extend(refused.key.map(ClusterChange::Kept));
            }
        }
    }

    /// The key is fine or gone: takes its refusal back, if it had one.
    fn heal(&mut self, key: &[u8], changes: &mut Vec<ClusterChange>) {
        if self.rejected.is_empty() {
            return;
        }
        let key = key_text(key);
        if self.rejected.remove(&key).is_some() {
            changes.push(ClusterChange::Rejected(key, None));
        }
    }
}

/// Our own record is not judged at all: its PodCIDRs are ours, which no other record may have.
fn is_own_node(context: &PeerContext, keyspace: Keyspace, kind: Kind, own: Option<&NodeName>, key: &[u8]) -> bool {
    let Some(own) = own.filter(|_| kind == Kind::Nodes) else { return false };
    parse_delete(context, keyspace, key).is_some_and(|key| matches!(key, RecordKey::Node(name) if name == *own))
}

fn withdraw(key: RecordKey) -> ClusterChange {
    match key {
        RecordKey::Node(name) => ClusterChange::Node(name, None),
        RecordKey::Identity(id) => ClusterChange::Identity(id, None),
        RecordKey::Endpoint(prefix) => ClusterChange::Endpoint(prefix, None),
        RecordKey::Service(name) => ClusterChange::Service(name, None),
    }
}
