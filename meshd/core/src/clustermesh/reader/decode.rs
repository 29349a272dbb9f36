//! Records to rows, and the bookkeeping of what was refused.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;

use super::{
    REJECTED_KEYS_MAX, Record,
    slices::{NoRoom, Slices, Told},
};
use crate::{
    clustermesh::{
        Interner, Keyspace, PeerContext, Record as Accepted, RecordKey, Rejection, accept_upsert, endpointslice,
        key_text, parse_delete, record::locate_slice, service::BACKENDS_MAX,
    },
    id::{ClusterId, NodeName},
    observed::{ClusterChange, Kind, RejectedRow},
};

/// Turns records into changes. Lives as long as the reader, because refusals outlive a connection.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// Refused keys the tables know of.
    rejected: BTreeMap<Arc<str>, Kind>,
    interner: Interner,
    /// What services are put together from, where they are read as slices.
    slices: Option<Slices>,
}

impl Decoder {
    /// A list of `kind` begins: the tables forget its refusals, and so do we.
    pub(super) fn begin(&mut self, kind: Kind) {
        self.rejected.retain(|_, of| *of != kind);
        self.interner.shrink();
        if let (Kind::Services, Some(slices)) = (kind, &mut self.slices) {
            slices.begin();
        }
    }

    /// Whether services are read as slices from now on.
    pub(super) fn read_slices(&mut self, are_slices: bool) {
        if are_slices {
            self.slices.get_or_insert_default();
        } else {
            self.slices = None;
        }
    }

    /// The list of services is over: slices that it did not tell are gone.
    pub(super) fn end_services(&mut self) {
        if let Some(slices) = &mut self.slices {
            slices.end();
        }
    }

    /// Tells the services of which slices have come or gone since the last time.
    pub(super) fn tell_services(&mut self, id: ClusterId, wall: Timestamp, changes: &mut Vec<ClusterChange>) {
        for (name, told) in self.slices.as_mut().map(|slices| slices.take(id)).unwrap_or_default() {
            // It is no record that has too many backends, so it gets the name that a row has.
            let key = format!("{}/{name}", Kind::Services.key_word());
            if told == Told::TooMany {
                let (field, limit) = ("backends", BACKENDS_MAX);
                let reason = Rejection::TooManyEntries { field, found: limit + 1, limit };
                self.reject(Kind::Services, key.into(), reason, wall, changes);
            } else {
                self.heal(key.as_bytes(), changes);
            }
            changes.push(match told {
                Told::Whole(row) => ClusterChange::Service(name, Some(Arc::new(row))),
                Told::Part | Told::TooMany => ClusterChange::Kept(RecordKey::Service(name)),
                Told::Gone => ClusterChange::Service(name, None),
            });
        }
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
        if kind == Kind::Services && self.slices.is_some() {
            self.read_slice(context, keyspace, record, wall, changes);
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
                self.reject(kind, key_text(&record.key), refused.reason, wall, changes);
                // Fail static: a record that cannot be believed does not take back what was believed before.
                changes.extend(refused.key.map(ClusterChange::Kept));
            }
        }
    }

    /// Reads a slice. Its service is told with [`Self::tell_services`].
    fn read_slice(
        &mut self,
        context: &PeerContext,
        keyspace: Keyspace,
        record: &Record,
        wall: Timestamp,
        changes: &mut Vec<ClusterChange>,
    ) {
        let Some(slices) = &mut self.slices else { return };
        let (namespace, name) = match locate_slice(context, keyspace, &record.key) {
            Ok(Some(found)) => found,
            Ok(None) => return,
            Err(reason) if record.value.is_some() => {
                return self.reject(Kind::Services, key_text(&record.key), reason, wall, changes);
            }
            Err(_) => return self.heal(&record.key, changes),
        };
        let slice_name = (namespace.into(), name.into());
        let Some(value) = &record.value else {
            slices.remove(&slice_name);
            return self.heal(&record.key, changes);
        };
        let accepted =
            endpointslice::accept(context, namespace, name, value).and_then(|slice| Ok((slice.service()?, slice)));
        let reason = match accepted {
            Ok((Some(service), slice)) => match slices.put(&slice_name, service, slice) {
                Ok(()) => return self.heal(&record.key, changes),
                Err(NoRoom(limit)) => Rejection::TooMany { limit },
            },
            Ok((None, _)) => {
                slices.remove(&slice_name);
                return self.heal(&record.key, changes);
            }
            Err(reason) => {
                slices.refuse(&slice_name, endpointslice::service_of_refused(namespace, value));
                reason
            }
        };
        self.reject(Kind::Services, key_text(&record.key), reason, wall, changes);
    }

    fn reject(
        &mut self,
        kind: Kind,
        key: Arc<str>,
        reason: Rejection,
        wall: Timestamp,
        changes: &mut Vec<ClusterChange>,
    ) {
        if self.rejected.len() < REJECTED_KEYS_MAX || self.rejected.contains_key(&key) {
            self.rejected.insert(key.clone(), kind);
        }
        let row = RejectedRow { kind: Some(kind), reason, since: wall };
        changes.push(ClusterChange::Rejected(key, Some(row)));
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
