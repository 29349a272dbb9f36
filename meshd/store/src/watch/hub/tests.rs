use etcd_client::proto::{PbCompactionRequest, PbDeleteRequest, PbPutRequest};

use super::*;
use crate::engine::Limits;

fn spec(span: KeySpan) -> WatchSpec {
    WatchSpec { span, start: None, prev_kv: false, progress: false, fragment: false, no_put: false, no_delete: false }
}

fn put(hub: &mut Hub, engine: &mut Engine, key: &str, value: &str) -> BTreeSet<StreamId> {
    let request = PbPutRequest { key: key.into(), value: value.into(), ..PbPutRequest::default() };
    engine.put(&request).unwrap();
    engine.publish(engine.revision());
    hub.publish(engine)
}

fn delete(hub: &mut Hub, engine: &mut Engine, key: &str) {
    let request = PbDeleteRequest { key: key.into(), ..PbDeleteRequest::default() };
    engine.delete_range(&request).unwrap();
    engine.publish(engine.revision());
    hub.publish(engine);
}

/// Takes everything a watch has, as (key, revision).
fn drain(hub: &mut Hub, engine: &Engine, stream: StreamId, id: i64) -> Vec<(String, i64)> {
    let mut seen = Vec::new();
    while hub.dirty(stream).contains(&id) {
        match hub.take(stream, id, engine) {
            Some(Batch::Events { events, .. }) => {
                for (record, _) in events {
                    let key = String::from_utf8(record.key.to_vec()).unwrap();
                    seen.push((key, record.position.main.0));
                }
            }
            Some(Batch::Compacted { compacted, .. }) => panic!("compacted at {compacted}"),
            None => {}
        }
    }
    seen
}

fn start() -> (Hub, Engine, StreamId) {
    let engine = Engine::new(Limits::default());
    let mut hub = Hub::new(engine.published(), WatchLimits { per_stream: 3, per_user: 5, streams_per_user: 2 });
    let stream = hub.open(&"remote".into()).unwrap();
    (hub, engine, stream)
}

#[test]
fn only_concerned_streams_are_woken() {
    let (mut hub, mut engine, first) = start();
    let second = hub.open(&"remote".into()).unwrap();
    let a = hub.create(first, 0, spec(KeySpan::prefix(b"a/"))).unwrap();
    hub.create(second, 0, spec(KeySpan::prefix(b"b/"))).unwrap();
    assert_eq!(put(&mut hub, &mut engine, "a/1", ""), BTreeSet::from([first]));
    assert_eq!(put(&mut hub, &mut engine, "b/1", ""), BTreeSet::from([second]));
    assert!(put(&mut hub, &mut engine, "c", "").is_empty());
    assert_eq!(drain(&mut hub, &engine, first, a.id), [("a/1".to_owned(), 2)]);
    hub.close(first);
    assert!(put(&mut hub, &mut engine, "a/2", "").is_empty());
    assert_eq!(hub.len(), 1);
}

#[test]
fn history_comes_first_and_nothing_twice() {
    let (mut hub, mut engine, stream) = start();
    for number in 0..5 {
        put(&mut hub, &mut engine, "k", &number.to_string());
    }
    let past = WatchSpec { start: Some(Revision(4)), ..spec(KeySpan::single(b"k")) };
    let created = hub.create(stream, 0, past).unwrap();
    assert_eq!(created.revision, Revision(6));
    put(&mut hub, &mut engine, "k", "new");
    let revisions: Vec<i64> = drain(&mut hub, &engine, stream, created.id).iter().map(|(_, rev)| *rev).collect();
    assert_eq!(revisions, [4, 5, 6, 7]);
    put(&mut hub, &mut engine, "k", "newer");
    assert_eq!(drain(&mut hub, &engine, stream, created.id).len(), 1);
}

#[test]
fn a_start_in_the_future_waits_for_it() {
    let (mut hub, mut engine, stream) = start();
    let future = WatchSpec { start: Some(Revision(4)), ..spec(KeySpan::all()) };
    let created = hub.create(stream, 0, future).unwrap();
    for key in ["a", "b", "c", "d"] {
        put(&mut hub, &mut engine, key, "");
    }
    assert_eq!(drain(&mut hub, &engine, stream, created.id), [("c".to_owned(), 4), ("d".to_owned(), 5)]);
}

#[test]
fn a_watch_that_falls_behind_reads_history_and_misses_nothing() {
    let (mut hub, mut engine, stream) = start();
    let created = hub.create(stream, 0, spec(KeySpan::prefix(b"k"))).unwrap();
    for number in 0..5_000 {
        put(&mut hub, &mut engine, if number % 2 == 0 { "k" } else { "other" }, "");
    }
    let state = &hub.streams[&stream].watches[&created.id];
    assert!(state.scan && state.pending.is_empty(), "beyond the bound nothing is remembered but where to start");
    let seen = drain(&mut hub, &engine, stream, created.id);
    assert_eq!(seen.len(), 2_500);
    assert!(seen.is_sorted_by_key(|(_, revision)| *revision));
}

#[test]
fn compaction_ends_a_watch_that_is_too_late() {
    let (mut hub, mut engine, stream) = start();
    let created = hub.create(stream, 0, spec(KeySpan::single(b"k"))).unwrap();
    put(&mut hub, &mut engine, "k", "1");
    put(&mut hub, &mut engine, "k", "2");
    put(&mut hub, &mut engine, "k", "3");
    engine.compact(&PbCompactionRequest { revision: 3, physical: false }).unwrap();
    let Some(Batch::Compacted { watch, compacted, .. }) = hub.take(stream, created.id, &engine) else {
        panic!("the watch is too late");
    };
    assert_eq!((watch, compacted), (created.id, Revision(3)));
    assert_eq!(hub.len(), 0);
    let at_border = WatchSpec { start: Some(Revision(3)), ..spec(KeySpan::single(b"k")) };
    let created = hub.create(stream, 0, at_border).unwrap();
    assert_eq!(drain(&mut hub, &engine, stream, created.id).len(), 2);
}

#[test]
fn filters_and_previous_values() {
    let (mut hub, mut engine, stream) = start();
    put(&mut hub, &mut engine, "k", "1");
    let no_put = WatchSpec { no_put: true, prev_kv: true, ..spec(KeySpan::single(b"k")) };
    let no_delete = WatchSpec { no_delete: true, ..spec(KeySpan::single(b"k")) };
    let deletes = hub.create(stream, 0, no_put).unwrap();
    let puts = hub.create(stream, 0, no_delete).unwrap();
    put(&mut hub, &mut engine, "k", "2");
    delete(&mut hub, &mut engine, "k");
    assert_eq!(drain(&mut hub, &engine, stream, puts.id), [("k".to_owned(), 3)]);
    let Some(Batch::Events { events, .. }) = hub.take(stream, deletes.id, &engine) else {
        panic!("a deletion is reported");
    };
    let (record, before) = &events[0];
    assert!(record.is_tombstone());
    assert_eq!(&*before.as_ref().unwrap().value, b"2");
}

#[test]
fn numbers_are_given_and_checked() {
    let (mut hub, _, stream) = start();
    assert_eq!(hub.create(stream, 0, spec(KeySpan::all())).unwrap().id, 0);
    assert_eq!(hub.create(stream, 1, spec(KeySpan::all())).unwrap().id, 1);
    assert_eq!(hub.create(stream, 1, spec(KeySpan::all())).unwrap_err(), Cancelled::DuplicateId);
    assert_eq!(hub.create(stream, 0, spec(KeySpan::all())).unwrap().id, 2);
    assert_eq!(hub.create(stream, 0, spec(KeySpan::all())).unwrap_err(), Cancelled::TooMany);
    let backwards = spec(KeySpan::from_wire(b"b", b"a"));
    assert_eq!(hub.create(stream, 9, backwards).unwrap_err(), Cancelled::EmptySpan);
    assert!(hub.cancel(stream, 1));
    assert!(!hub.cancel(stream, 1));
}

#[test]
fn only_silent_watches_that_asked_get_progress() {
    let (mut hub, mut engine, stream) = start();
    let wants = WatchSpec { progress: true, ..spec(KeySpan::single(b"k")) };
    let created = hub.create(stream, 0, wants).unwrap();
    hub.create(stream, 0, spec(KeySpan::single(b"k"))).unwrap();
    assert_eq!(hub.silent(stream).1, [0_i64; 0], "the first round only starts the clock");
    put(&mut hub, &mut engine, "other", "");
    assert_eq!(hub.silent(stream), (Revision(2), vec![created.id]));
    put(&mut hub, &mut engine, "k", "");
    assert_eq!(hub.silent(stream).1, [0_i64; 0], "there is something to tell first");
}

#[test]
fn a_user_holds_so_many_streams_and_watches_and_others_hold_their_own() {
    let (mut hub, _, first) = start();
    let (remote, other): (Arc<str>, Arc<str>) = ("remote".into(), "node".into());
    let second = hub.open(&remote).unwrap();
    assert_eq!(hub.open(&remote).unwrap_err(), Cancelled::TooMany);
    let all = || spec(KeySpan::all());
    for stream in [first, first, first, second, second] {
        hub.create(stream, 0, all()).unwrap();
    }
    assert_eq!(hub.create(second, 0, all()).unwrap_err(), Cancelled::TooMany);
    let third = hub.open(&other).unwrap();
    hub.create(third, 0, all()).unwrap();
    // What is given back can be had again, by a cancelled watch as by a closed stream.
    assert!(hub.cancel(first, 0));
    hub.create(second, 0, all()).unwrap();
    hub.close(first);
    assert_eq!(hub.len(), 4);
    let fourth = hub.open(&remote).unwrap();
    hub.create(fourth, 0, all()).unwrap();
    [second, third, fourth].into_iter().for_each(|stream| hub.close(stream));
    assert_eq!((hub.len(), hub.users.len()), (0, 0));
}
