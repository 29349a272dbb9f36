use std::time::Duration;

use etcd_client::proto::{
    PbCompactionRequest, PbDeleteRequest, PbLeaseGrantRequest, PbPutRequest, PbRangeRequest, PbTxnOpRequest,
    PbTxnRequest, PbTxnRequestOp,
};

use super::*;

const NOW: Duration = Duration::from_secs(100);

fn put(engine: &mut Engine, key: &str, value: &str) -> i64 {
    let response =
        engine.put(&PbPutRequest { key: key.into(), value: value.into(), ..PbPutRequest::default() }).unwrap();
    engine.publish(engine.revision());
    response.header.unwrap().revision
}

fn delete(engine: &mut Engine, key: &str) {
    engine.delete_range(&PbDeleteRequest { key: key.into(), ..PbDeleteRequest::default() }).unwrap();
    engine.publish(engine.revision());
}

fn prefix(from: &str, limit: i64, revision: i64) -> PbRangeRequest {
    let (key, range_end) = KeySpan::prefix(from.as_bytes()).to_wire();
    PbRangeRequest { key, range_end, limit, revision, ..PbRangeRequest::default() }
}

fn put_op(key: &str, value: &str) -> PbTxnRequestOp {
    PbTxnRequestOp {
        request: Some(PbTxnOpRequest::RequestPut(PbPutRequest {
            key: key.into(),
            value: value.into(),
            ..PbPutRequest::default()
        })),
    }
}

fn delete_op(key: &str, range_end: &str) -> PbTxnRequestOp {
    PbTxnRequestOp {
        request: Some(PbTxnOpRequest::RequestDeleteRange(PbDeleteRequest {
            key: key.into(),
            range_end: range_end.into(),
            prev_kv: false,
        })),
    }
}

fn txn_op(success: Vec<PbTxnRequestOp>, failure: Vec<PbTxnRequestOp>) -> PbTxnRequestOp {
    PbTxnRequestOp { request: Some(PbTxnOpRequest::RequestTxn(PbTxnRequest { compare: Vec::new(), success, failure })) }
}

#[test]
fn revisions_versions_and_creation_count_as_in_etcd() {
    let mut engine = Engine::new(Limits::default());
    assert_eq!(put(&mut engine, "a", "1"), 2);
    assert_eq!(put(&mut engine, "a", "2"), 3);
    delete(&mut engine, "a");
    delete(&mut engine, "a");
    assert_eq!(engine.revision(), Revision(4), "deleting nothing is no revision");
    put(&mut engine, "a", "3");
    let kv = engine.range(&prefix("a", 0, 0)).unwrap().to_wire().kvs.remove(0);
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (5, 5, 1));
    let old = engine.range(&prefix("a", 0, 3)).unwrap().to_wire().kvs.remove(0);
    assert_eq!((old.create_revision, old.mod_revision, old.version), (2, 3, 2));
}

#[test]
fn pages_at_a_pinned_revision_are_stable_and_counted() {
    let mut engine = Engine::new(Limits::default());
    for number in 0..1000 {
        put(&mut engine, &format!("k/{number:04}"), "x");
    }
    let pinned = engine.published().0;
    for number in (0..1000).step_by(3) {
        delete(&mut engine, &format!("k/{number:04}"));
    }
    put(&mut engine, "k/new", "x");
    let mut request = prefix("k/", 256, pinned);
    request.sort_order = 1;
    let mut keys = Vec::new();
    loop {
        let page = engine.range(&request).unwrap().to_wire();
        assert_eq!(page.count, 1000 - i64::try_from(keys.len()).unwrap());
        keys.extend(page.kvs.into_iter().map(|kv| kv.key));
        if !page.more {
            break;
        }
        request.key.clone_from(keys.last().unwrap());
        request.key.push(0);
    }
    assert_eq!(keys.len(), 1000);
    assert!(keys.is_sorted());
}

#[test]
fn nothing_unpublished_is_read() {
    let mut engine = Engine::new(Limits::default());
    put(&mut engine, "a", "1");
    engine.put(&PbPutRequest { key: "a".into(), value: "2".into(), ..PbPutRequest::default() }).unwrap();
    let response = engine.range(&prefix("a", 0, 0)).unwrap().to_wire();
    assert_eq!((response.kvs[0].value.as_slice(), response.header.unwrap().revision), (b"1".as_slice(), 2));
    assert_eq!(engine.range(&prefix("a", 0, 3)).unwrap_err(), EngineError::FutureRevision);
    engine.publish(Revision(3));
    assert_eq!(engine.range(&prefix("a", 0, 3)).unwrap().to_wire().kvs[0].value, b"2");
}

#[test]
fn compaction_refuses_the_past_and_frees_it() {
    let mut engine = Engine::new(Limits::default());
    for number in 0..10 {
        put(&mut engine, "a", &number.to_string());
    }
    put(&mut engine, "gone", "x");
    delete(&mut engine, "gone");
    put(&mut engine, "b", "x");
    let compact = |engine: &mut Engine, revision| engine.compact(&PbCompactionRequest { revision, physical: false });
    assert_eq!(compact(&mut engine, 99).unwrap_err(), EngineError::FutureRevision);
    compact(&mut engine, 14).unwrap();
    assert_eq!(compact(&mut engine, 14).unwrap_err(), EngineError::Compacted);
    assert_eq!(engine.range(&prefix("a", 0, 13)).unwrap_err(), EngineError::Compacted);
    assert_eq!(engine.range(&prefix("a", 0, 14)).unwrap().to_wire().kvs[0].value, b"9");
    assert_eq!(engine.status().history_bytes, 0);
    assert_eq!(engine.status().history_entries, 1);
    let journal = engine.take_journal();
    assert_eq!(journal.removed.len(), 9 + 2);
    assert_eq!(journal.compacted, Some(Revision(14)));
}

#[test]
fn history_stays_inside_its_bounds() {
    let limits = Limits { history_bytes_max: 64 << 10, history_entries_max: 500, ..Limits::default() };
    let mut engine = Engine::new(limits);
    for number in 0..20_000 {
        put(&mut engine, &format!("k{}", number % 7), &"v".repeat(number % 300));
        let status = engine.status();
        assert!(status.history_bytes <= limits.history_bytes_max + 1024, "{status:?}");
        assert!(status.history_entries <= limits.history_entries_max + 1, "{status:?}");
    }
    assert!(engine.compacted() > Revision(19_000));
    assert!(engine.range(&prefix("k", 0, engine.compacted().0)).is_ok());
}

#[test]
fn what_is_not_published_is_not_compacted() {
    let limits = Limits { history_entries_max: 16, ..Limits::default() };
    let mut engine = Engine::new(limits);
    put(&mut engine, "a", "1");
    for _ in 0..100 {
        engine.put(&PbPutRequest { key: "a".into(), ..PbPutRequest::default() }).unwrap();
    }
    assert!(engine.compacted() <= Revision(3));
    assert!(engine.range(&prefix("a", 0, 0)).is_ok());
}

#[test]
fn a_full_store_refuses_writes_and_still_deletes() {
    let limits = Limits { live_bytes_max: 10_000, request_bytes_max: 1_000, ..Limits::default() };
    let mut engine = Engine::new(limits);
    let mut written = 0;
    let refused = loop {
        let request =
            PbPutRequest { key: format!("k{written}").into(), value: vec![0; 300], ..PbPutRequest::default() };
        match engine.put(&request) {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, EngineError::NoSpace);
    assert!(engine.status().full);
    let txn = PbTxnRequest { success: vec![put_op("x", &"y".repeat(400))], ..PbTxnRequest::default() };
    assert_eq!(engine.txn(&txn).unwrap_err(), EngineError::NoSpace);
    for number in 0..written {
        delete(&mut engine, &format!("k{number}"));
    }
    assert_eq!(engine.status().live_bytes, 0);
    assert!(engine.txn(&txn).is_ok());
}

#[test]
fn a_key_is_written_once_per_transaction() {
    let mut engine = Engine::new(Limits::default());
    let mut run =
        |success: Vec<PbTxnRequestOp>| engine.txn(&PbTxnRequest { success, ..PbTxnRequest::default() }).map(|_| ());
    assert_eq!(run(vec![put_op("a", "1"), put_op("a", "2")]), Err(EngineError::DuplicateKey));
    assert_eq!(run(vec![put_op("b", "1"), delete_op("a", "c")]), Err(EngineError::DuplicateKey));
    assert_eq!(run(vec![put_op("b", "1"), delete_op("c", "d")]), Ok(()));
    assert_eq!(run(vec![delete_op("a", ""), delete_op("a", "c")]), Ok(()));
    assert_eq!(run(vec![txn_op(vec![put_op("a", "1")], vec![put_op("a", "2")])]), Ok(()));
    let twice = vec![txn_op(vec![put_op("a", "1")], Vec::new()), put_op("a", "2")];
    assert_eq!(run(twice), Err(EngineError::DuplicateKey));
}

#[test]
fn a_transaction_is_one_revision_and_sees_itself() {
    let mut engine = Engine::new(Limits::default());
    put(&mut engine, "a", "0");
    let range = PbTxnRequestOp { request: Some(PbTxnOpRequest::RequestRange(prefix("", 0, 0))) };
    let mut all = prefix("", 0, 0);
    all.key = vec![0];
    let range_all = PbTxnRequestOp { request: Some(PbTxnOpRequest::RequestRange(all)) };
    let refused = engine.txn(&PbTxnRequest { success: vec![range], ..PbTxnRequest::default() });
    assert_eq!(refused.unwrap_err(), EngineError::EmptyKey);
    let response = engine
        .txn(&PbTxnRequest {
            success: vec![put_op("b", "1"), delete_op("a", ""), range_all],
            ..PbTxnRequest::default()
        })
        .unwrap();
    assert_eq!(response.header.unwrap().revision, 3);
    let Some(etcd_client::proto::PbTxnOpResponse::ResponseRange(seen)) = &response.responses[2].response else {
        panic!("third answer is a range");
    };
    assert_eq!(seen.kvs.iter().map(|kv| kv.key.as_slice()).collect::<Vec<_>>(), [b"b"]);
    engine.publish(engine.revision());
    let positions: Vec<u32> = engine.changes_from(Revision(3)).map(|record| record.position.sub).collect();
    assert_eq!(positions, [0, 1]);
}

#[test]
fn a_lease_takes_its_keys_along() {
    let mut engine = Engine::new(Limits::default());
    let lease = PbLeaseGrantRequest { ttl: 10, id: 7 };
    engine.lease_grant(&lease, LeaseId(1), NOW).unwrap();
    assert_eq!(engine.lease_grant(&lease, LeaseId(1), NOW).unwrap_err(), EngineError::LeaseExists);
    for (key, lease) in [("a", 7), ("b", 7), ("c", 7), ("d", 0)] {
        engine.put(&PbPutRequest { key: key.into(), lease, ..PbPutRequest::default() }).unwrap();
    }
    let unknown = PbPutRequest { key: "x".into(), lease: 8, ..PbPutRequest::default() };
    assert_eq!(engine.put(&unknown).unwrap_err(), EngineError::LeaseNotFound);
    put(&mut engine, "b", "without lease");
    assert_eq!(engine.lease_view(LeaseId(7), NOW).unwrap().keys.len(), 2);
    assert_eq!(engine.expire_one(NOW + Duration::from_secs(9)), None);
    assert_eq!(engine.expire_one(NOW + Duration::from_secs(10)), Some(LeaseId(7)));
    engine.publish(engine.revision());
    let left = engine.range(&prefix("", 0, 0));
    assert_eq!(left.unwrap_err(), EngineError::EmptyKey);
    let mut all = prefix("a", 0, 0);
    all.range_end = vec![0];
    let left = engine.range(&all).unwrap().to_wire();
    assert_eq!(left.kvs.iter().map(|kv| kv.key.as_slice()).collect::<Vec<_>>(), [b"b", b"d"]);
    assert_eq!(left.header.unwrap().revision, 7, "one revision for all keys of the lease");
}

#[test]
fn journals_rebuild_the_engine() {
    let mut engine = Engine::new(Limits { history_entries_max: 64, ..Limits::default() });
    let mut records = std::collections::BTreeMap::new();
    let mut leases = Vec::new();
    let mut compacted = Revision(-1);
    engine.lease_grant(&PbLeaseGrantRequest { ttl: 60, id: 5 }, LeaseId(1), NOW).unwrap();
    for number in 0..500_u32 {
        let key = format!("k{}", number % 13);
        if number % 5 == 0 {
            delete(&mut engine, &key);
        } else {
            let lease = if number % 3 == 0 { 5 } else { 0 };
            engine.put(&PbPutRequest { key: key.into(), lease, ..PbPutRequest::default() }).unwrap();
        }
        engine.publish(engine.revision());
        let journal = engine.take_journal();
        for record in journal.records {
            records.insert(record.position, (*record).clone());
        }
        for position in journal.removed {
            assert!(records.remove(&position).is_some());
        }
        for change in journal.leases {
            match change {
                LeaseChange::Granted(id, ttl_s) => leases.push((id, ttl_s)),
                LeaseChange::Gone(id) => leases.retain(|(other, _)| *other != id),
            }
        }
        compacted = journal.compacted.unwrap_or(compacted);
    }
    let loaded = Loaded { revision: engine.revision(), compacted, records: records.into_values().collect(), leases };
    let again = Engine::load(*engine.limits(), loaded.clone(), NOW).unwrap();
    assert_eq!(again.status(), engine.status());
    for revision in compacted.0..=engine.revision().0 {
        let answers = [&engine, &again].map(|engine| engine.range(&prefix("k", 0, revision)).unwrap().to_wire());
        assert_eq!(answers[0], answers[1]);
    }
    assert_eq!(again.lease_view(LeaseId(5), NOW), engine.lease_view(LeaseId(5), NOW));
    let changes = |engine: &Engine| engine.changes_from(compacted).cloned().collect::<Vec<_>>();
    assert_eq!(changes(&again), changes(&engine));

    let mut misplaced = loaded;
    misplaced.records.reverse();
    assert!(Engine::load(Limits::default(), misplaced, NOW).is_err());
}
