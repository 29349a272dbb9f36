//! What the fuzz targets run, as ordinary functions.
//!
//! A target in `fuzz/` only calls one of these, and the test below feeds the committed corpus to the same functions on the
//! stable toolchain. Each returns normally for every input or panics on a broken promise.

use etcd_client::proto::PbTxnRequest;
use prost::Message as _;

use crate::auth::{Access, PermissionKind};
use crate::disk::codec;
use crate::engine::{Engine, KeySpan, LeaseId, Limits, Loaded, Position, Revision, spans_of_txn};

/// Reads a record of the data file. The first two octets are the revision it is found at.
///
/// # Panics
///
/// When what was read is not written as the same octets.
pub fn record(data: &[u8]) {
    let Some((revision, bytes)) = data.split_first_chunk::<2>() else {
        return;
    };
    let position = Position { main: Revision(i64::from(u16::from_le_bytes(*revision))), sub: 0 };
    if let Ok(record) = codec::decode(position, bytes) {
        assert_eq!(codec::encode(&record), bytes);
    }
}

/// Most grants [`access`] compares.
const SPANS_MAX: usize = 48;

/// Cuts `data` into keys, makes spans of them, grants all but the last and asks for that one.
///
/// # Panics
///
/// When the answer differs from looking at the borders of all spans one by one.
pub fn access(data: &[u8]) {
    let mut keys: Vec<&[u8]> = data.split(|octet| *octet == b' ').collect();
    if keys.len() % 2 == 1 {
        keys.pop();
    }
    let mut spans: Vec<KeySpan> = keys.chunks_exact(2).map(|pair| KeySpan::from_wire(pair[0], pair[1])).collect();
    let Some(asked) = spans.pop() else {
        return;
    };
    // The comparison below takes the square of it.
    spans.truncate(SPANS_MAX);
    let access = Access::from_permissions(spans.iter().map(|span| (span, PermissionKind::Read)));
    assert!(!access.writes(&asked));
    // A span is covered if its start is, and if no grant ends inside it at a key that no other grant has.
    let granted = |key: &[u8]| spans.iter().any(|span| span.contains(key));
    let ends = || spans.iter().filter_map(|span| span.end.as_deref());
    let gap = ends().any(|end| asked.contains(end) && !granted(end));
    let open = asked.end.is_some() || spans.iter().any(|span| !span.is_empty() && span.end.is_none());
    assert_eq!(access.reads(&asked), !asked.is_empty() && granted(&asked.start) && !gap && open, "{spans:?} {asked:?}");
}

/// Runs a transaction as it comes from the wire on a store with a few keys.
///
/// # Panics
///
/// When what the transaction left to be written to disk does not rebuild the store.
pub fn transaction(data: &[u8]) {
    let Ok(request) = PbTxnRequest::decode(data) else {
        return;
    };
    let now = std::time::Duration::ZERO;
    let mut engine = Engine::new(Limits::default());
    let lease = etcd_client::proto::PbLeaseGrantRequest { ttl: 60, id: 7 };
    engine.lease_grant(&lease, LeaseId(7), now).expect("the first lease");
    for key in ["a", "b", "k/1", "k/2"] {
        let put = etcd_client::proto::PbPutRequest { key: key.into(), lease: 7, ..Default::default() };
        engine.put(&put).expect("a plain put");
    }
    engine.publish(engine.revision());
    let _ = spans_of_txn(&request);
    let before = engine.revision();
    let measured = engine.measure_txn(&request);
    let outcome = if Engine::is_read_only(&request) {
        engine.read_txn(&request).map(|answer| {
            assert_eq!(measured, Ok(answer.bytes()), "nothing was written since");
            answer.to_wire()
        })
    } else {
        engine.txn(&request)
    };
    if outcome.is_err() {
        assert_eq!(engine.revision(), before, "a refused transaction changes nothing");
    }
    engine.publish(engine.revision());
    let journal = engine.take_journal();
    let loaded = Loaded {
        revision: journal.revision,
        compacted: Revision(-1),
        records: journal.records.iter().map(|record| (**record).clone()).collect(),
        leases: vec![(LeaseId(7), 60)],
    };
    let again = Engine::load(Limits::default(), loaded, now).expect("what was written is a history");
    assert_eq!(again.status(), engine.status());
    assert_eq!(again.lease_view(LeaseId(7), now), engine.lease_view(LeaseId(7), now));
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// Feeds every file of a target's corpus to its function.
    fn replay(target: &str, run: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut inputs = 0;
        for entry in fs::read_dir(&folder).expect("the corpus is committed") {
            let path = entry.expect("a folder entry").path();
            run(&fs::read(&path).expect("a readable input"));
            inputs += 1;
        }
        assert!(inputs > 0, "{} is empty", folder.display());
    }

    #[test]
    fn corpus_of_record() {
        replay("record", super::record);
    }

    #[test]
    fn corpus_of_access() {
        replay("access", super::access);
    }

    #[test]
    fn corpus_of_transaction() {
        replay("transaction", super::transaction);
    }
}
