//! Restarts, losses, bounds and slow clients.

use std::path::Path;
use std::time::{Duration, Instant};

use etcd_client::proto::{
    PbPutRequest, PbPutResponse, PbRangeRequest, PbRangeResponse, PbWatchRequest, PbWatchRequestUnion,
};
use etcd_client::{Client, GetOptions, LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions, WatchOptions};
use meshd_store::{AuthConfig, HistoryLoss, Limits, Store, StoreError, StoreOptions};

use super::certificates::{Authority, Pair};
use super::embedded::Embedded;
use super::raw::Raw;

/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(30);

fn on_disk(path: &Path) -> StoreOptions {
    StoreOptions { data_file: Some(path.to_owned()), ..StoreOptions::default() }
}

async fn local(store: &Store) -> Client {
    Client::from_channel(etcd_client::Channel::Tonic(store.local_channel()), None).await.unwrap()
}

fn watch_request(key: &str, range_end: &str, start_revision: i64) -> PbWatchRequest {
    let mut union = PbWatchRequestUnion::CreateRequest(Default::default());
    if let PbWatchRequestUnion::CreateRequest(create) = &mut union {
        create.key = key.into();
        create.range_end = range_end.into();
        create.start_revision = start_revision;
    }
    PbWatchRequest { request_union: Some(union) }
}

/// The client returns a watch before the store has it; what is written in between would be missed.
async fn created(watch: &mut etcd_client::WatchStream) {
    let response = tokio::time::timeout(DEADLINE, watch.message()).await.unwrap().unwrap().unwrap();
    assert!(response.created(), "{response:?}");
}

#[tokio::test]
async fn a_restart_is_not_a_loss() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let (store, first) = Store::open(on_disk(&path)).unwrap();
    assert_eq!(first.history_lost, Some(HistoryLoss::NoFile));
    let mut client = local(&store).await;
    let lease = client.lease_grant(60, Some(LeaseGrantOptions::new().with_id(77))).await.unwrap();
    assert_eq!(lease.header().unwrap().cluster_id(), first.cluster_id);
    for number in 0..50 {
        let options = PutOptions::new().with_lease(if number == 7 { 77 } else { 0 });
        client.put(format!("k/{}", number % 10), number.to_string(), Some(options)).await.unwrap();
    }
    client.delete("k/3", None).await.unwrap();
    client.compact(20, None).await.unwrap();
    let all = GetOptions::new().with_prefix();
    let before = client.get("k/", Some(all.clone())).await.unwrap();
    let in_use = Store::open(on_disk(&path)).unwrap_err();
    assert!(matches!(in_use, StoreError::DataFileInUse { .. }), "{in_use}");
    store.close().await;
    client.put("late", "", None).await.expect_err("a closed store takes no writes");

    let (store, again) = Store::open(on_disk(&path)).unwrap();
    assert_eq!(again.history_lost, None);
    assert_eq!(again.cluster_id, first.cluster_id);
    assert_eq!(again.revision.0, before.header().unwrap().revision());
    let mut client = local(&store).await;
    let after = client.get("k/", Some(all.clone())).await.unwrap();
    assert_eq!(format!("{:?}", after.kvs()), format!("{:?}", before.kvs()));
    let past = client.get("k/", Some(all.clone().with_revision(25))).await.unwrap();
    assert_eq!(past.count(), 10, "the history above the compacted revision is still there");
    assert!(client.get("k/", Some(all.with_revision(19))).await.is_err());
    let lease = client.lease_time_to_live(77, Some(LeaseTimeToLiveOptions::new().with_keys())).await.unwrap();
    assert_eq!((lease.granted_ttl(), lease.ttl() >= 58), (60, true));
    let mut watch = client.watch("k/3", Some(WatchOptions::new().with_start_revision(25))).await.unwrap();
    let mut events = 0;
    while events < 4 {
        let response = tokio::time::timeout(DEADLINE, watch.message()).await.unwrap().unwrap().unwrap();
        events += response.events().len();
    }
    store.close().await;
}

#[tokio::test]
async fn a_lost_history_has_another_cluster_id() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let mut seen = Vec::new();
    for damage in [None, Some(false), Some(true)] {
        match damage {
            Some(true) => std::fs::write(&path, "this was a database once").unwrap(),
            Some(false) => std::fs::remove_file(&path).unwrap(),
            None => {}
        }
        let (store, report) = Store::open(on_disk(&path)).unwrap();
        match (damage, &report.history_lost) {
            (Some(true), Some(HistoryLoss::Unreadable { set_aside, .. })) => assert!(set_aside.exists()),
            (None | Some(false), Some(HistoryLoss::NoFile)) => {}
            (_, loss) => panic!("{damage:?}: {loss:?}"),
        }
        assert!(report.cluster_id != 0 && !seen.contains(&report.cluster_id));
        seen.push(report.cluster_id);
        local(&store).await.put("a", "1", None).await.unwrap();
        store.close().await;
    }
}

/// Half of a write must never be visible: a store that is killed comes back with everything it had acknowledged.
#[tokio::test]
async fn dropping_the_store_keeps_what_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let (store, _) = Store::open(on_disk(&path)).unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let mut client = local(&store).await;
        writers.spawn(async move {
            for number in 0..50 {
                client.put(format!("w/{writer}/{number}"), "x", None).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    let revision = store.status().revision;
    drop(store);
    let started = Instant::now();
    let report = loop {
        match Store::open(on_disk(&path)) {
            Ok((_store, report)) => break report,
            Err(StoreError::DataFileInUse { .. }) if started.elapsed() < DEADLINE => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!((report.revision, report.keys, report.history_lost), (revision, 400, None));
}

#[tokio::test]
async fn history_is_compacted_before_it_grows_beyond_its_bound() {
    let limits = Limits { history_bytes_max: 1 << 20, ..Limits::default() };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let options = StoreOptions { limits, ..on_disk(&path) };
    let (store, _) = Store::open(options.clone()).unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..16 {
        let mut client = local(&store).await;
        writers.spawn(async move {
            for _ in 0..100 {
                client.put(format!("k/{writer}"), vec![0; 4_000], None).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    let status = store.status();
    assert!(status.history_bytes <= limits.history_bytes_max + 16 * 8_000, "{status:?}");
    assert!(status.compact_revision.0 > 1_000, "{status:?}");
    store.close().await;
    let (store, _) = Store::open(options).unwrap();
    let again = store.status();
    assert_eq!((again.history_bytes, again.history_entries), (status.history_bytes, status.history_entries));
    store.close().await;
}

#[tokio::test]
async fn a_full_store_says_so() {
    let limits = Limits { live_bytes_max: 100_000, request_bytes_max: 20_000, ..Limits::default() };
    let (store, _) = Store::open(StoreOptions { limits, ..StoreOptions::default() }).unwrap();
    let mut client = local(&store).await;
    let error = loop {
        let key = format!("k/{}", store.status().keys);
        if let Err(error) = client.put(key, vec![0; 10_000], None).await {
            break error;
        }
    };
    assert!(error.to_string().contains("etcdserver: mvcc: database space exceeded"), "{error}");
    let alarms = client.alarm(etcd_client::AlarmAction::Get, etcd_client::AlarmType::None, None).await.unwrap();
    assert_eq!(alarms.alarms().len(), 1);
    client.delete("k/", Some(etcd_client::DeleteOptions::new().with_prefix())).await.unwrap();
    client.put("k/", vec![0; 10_000], None).await.unwrap();
    let large = client.put("k/", vec![0; 30_000], None).await.unwrap_err();
    assert!(large.to_string().contains("etcdserver: request is too large"), "{large}");
    store.close().await;
}

#[tokio::test]
async fn a_lease_that_runs_out_takes_its_keys_along() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(on_disk(&folder.path().join("store.redb"))).unwrap();
    let mut client = local(&store).await;
    let mut watch = client.watch("leased", None).await.unwrap();
    created(&mut watch).await;
    client.lease_grant(2, Some(LeaseGrantOptions::new().with_id(5))).await.unwrap();
    client.lease_grant(30, Some(LeaseGrantOptions::new().with_id(6))).await.unwrap();
    client.put("leased", "x", Some(PutOptions::new().with_lease(5))).await.unwrap();
    let (mut keeper, mut answers) = client.lease_keep_alive(6).await.unwrap();
    let started = Instant::now();
    let mut kinds = Vec::new();
    while kinds.len() < 2 {
        tokio::select! {
            response = watch.message() => {
                kinds.extend(response.unwrap().unwrap().events().iter().map(etcd_client::Event::event_type));
            }
            () = tokio::time::sleep(Duration::from_millis(300)) => {
                keeper.keep_alive().await.unwrap();
                assert_eq!(answers.message().await.unwrap().unwrap().ttl(), 30);
            }
        }
        assert!(started.elapsed() < DEADLINE);
    }
    assert_eq!(kinds, [etcd_client::EventType::Put, etcd_client::EventType::Delete]);
    assert!(started.elapsed() >= Duration::from_millis(1_900), "not before its time");
    let left: Vec<i64> = client.leases().await.unwrap().leases().iter().map(|lease| lease.id()).collect();
    assert_eq!(left, [6], "the other one is still there");
    store.close().await;
}

/// A client that does not read holds neither memory nor the others; when it reads again it has missed nothing, or is
/// told that it has.
#[tokio::test]
async fn a_slow_watcher_disturbs_nobody() {
    let limits = Limits { history_bytes_max: 4 << 20, ..Limits::default() };
    let embedded = Embedded::start(StoreOptions { limits, ..StoreOptions::default() }, None).await;
    let mut raw = Raw::connect(embedded.address).await;
    let slow_client = Raw::connect(embedded.address).await;
    let (slow_requests, slow) = slow_client.watch();
    slow_requests.send(watch_request("k/", "k0", 0)).await.unwrap();
    let mut slow = slow.await;
    let created = tokio::time::timeout(DEADLINE, slow.message()).await.unwrap().unwrap().unwrap();
    assert!(created.created);
    let fast_client = Raw::connect(embedded.address).await;
    let (fast_requests, fast) = fast_client.watch();
    fast_requests.send(watch_request("k/", "k0", 0)).await.unwrap();
    let mut fast = fast.await;

    let fast_reader = tokio::spawn(async move {
        let mut last = 0;
        while last < 4_001 {
            let response = tokio::time::timeout(DEADLINE, fast.message()).await.unwrap().unwrap().unwrap();
            assert!(!response.canceled || response.created, "a client that reads is not cut off: {response:?}");
            if let Some(event) = response.events.last() {
                last = event.kv.as_ref().unwrap().mod_revision;
            }
        }
    });
    for number in 0..4_000 {
        let request =
            PbPutRequest { key: format!("k/{}", number % 10).into(), value: vec![7; 4_000], ..Default::default() };
        let _: PbPutResponse = raw.call("KV/Put", request).await.unwrap();
        let status = embedded.store.status();
        assert!(status.history_bytes < 5 << 20, "{status:?}");
    }
    tokio::time::timeout(DEADLINE, fast_reader).await.unwrap().unwrap();
    let mut next = 2;
    loop {
        let response = tokio::time::timeout(DEADLINE, slow.message()).await.unwrap().unwrap().unwrap();
        if response.canceled {
            assert!(response.compact_revision > next, "{response:?}");
            break;
        }
        for event in &response.events {
            assert_eq!(event.kv.as_ref().unwrap().mod_revision, next, "without a gap");
            next += 1;
        }
    }
    assert!(next < 4_000, "it was cut off");
    embedded.stop().await;
}

#[tokio::test]
async fn watches_report_progress_and_errors() {
    let options = StoreOptions { watch_progress_interval: Duration::from_millis(200), ..StoreOptions::default() };
    let (store, _) = Store::open(options).unwrap();
    let mut client = local(&store).await;
    client.put("other", "1", None).await.unwrap();
    let options = WatchOptions::new().with_progress_notify();
    let mut watch = client.watch("k", Some(options)).await.unwrap();
    client.put("other", "2", None).await.unwrap();
    let started = Instant::now();
    loop {
        let response = tokio::time::timeout(DEADLINE, watch.message()).await.unwrap().unwrap().unwrap();
        assert!(response.events().is_empty());
        if response.header().unwrap().revision() == 3 {
            break;
        }
        assert!(started.elapsed() < DEADLINE);
    }
    watch.request_progress().await.unwrap();
    loop {
        let response = tokio::time::timeout(DEADLINE, watch.message()).await.unwrap().unwrap().unwrap();
        if response.watch_id() == -1 {
            assert_eq!(response.header().unwrap().revision(), 3);
            break;
        }
    }
    client.compact(3, None).await.unwrap();
    let mut late = client.watch("k", Some(WatchOptions::new().with_start_revision(1))).await.unwrap();
    let cancelled = loop {
        let response = tokio::time::timeout(DEADLINE, late.message()).await.unwrap().unwrap().unwrap();
        if response.canceled() {
            break response;
        }
    };
    assert_eq!(cancelled.compact_revision(), 3);
    store.close().await;
}

/// Large answers to watches that allow it come in pieces.
#[tokio::test]
async fn a_large_write_is_told_in_fragments() {
    let embedded = Embedded::start(StoreOptions::default(), None).await;
    let mut client = Client::connect([embedded.address.to_string()], None).await.unwrap();
    for number in 0..40 {
        client.put(format!("k/{number:02}"), vec![0; 100_000], None).await.unwrap();
    }
    let options = WatchOptions::new().with_prefix().with_fragment().with_prev_key();
    let mut watch = client.watch("k/", Some(options)).await.unwrap();
    created(&mut watch).await;
    // On a connection of its own: unread events may fill the window of the first one.
    let mut other = Client::connect([embedded.address.to_string()], None).await.unwrap();
    other.delete("k/", Some(etcd_client::DeleteOptions::new().with_prefix())).await.unwrap();
    let (mut events, mut responses) = (0, 0);
    while events < 40 {
        let response = tokio::time::timeout(DEADLINE, watch.message()).await.unwrap().unwrap().unwrap();
        events += response.events().len();
        responses += 1;
    }
    assert!(responses > 3, "{responses}");
    embedded.stop().await;
}

#[tokio::test]
async fn certificates_and_users_are_reloaded() {
    let (old, new) = (Authority::new(), Authority::new());
    let auth = AuthConfig::standard("west", ["east"]);
    let embedded = Embedded::start(StoreOptions { auth, ..StoreOptions::default() }, Some(old.server())).await;
    let (old_user, new_user) = (old.issue_files("remote-east"), new.issue_files("remote-east"));
    let mut client = tls_client(&embedded, &old, &old_user).await.unwrap();
    client.get("cilium/.heartbeat", None).await.unwrap();
    let mut watch = client.watch("cilium/state/", Some(WatchOptions::new().with_prefix())).await.unwrap();

    embedded.store.reload_tls(&new.server()).unwrap();
    client.get("cilium/.heartbeat", None).await.expect("running connections stay");
    assert!(tls_client(&embedded, &old, &old_user).await.is_err(), "the old authority is no longer believed");
    let mut renewed = tls_client(&embedded, &new, &new_user).await.unwrap();
    renewed.get("cilium/.heartbeat", None).await.unwrap();

    embedded.store.reload_auth(AuthConfig::standard("west", ["north"]));
    let denied = renewed.get("cilium/.heartbeat", None).await.unwrap_err();
    assert!(denied.to_string().contains("permission denied"), "{denied}");
    let cancelled = loop {
        let response = tokio::time::timeout(DEADLINE, watch.message()).await.unwrap().unwrap().unwrap();
        if response.canceled() {
            break response;
        }
    };
    assert!(cancelled.cancel_reason().contains("permission denied"), "{cancelled:?}");
    embedded.stop().await;
}

async fn tls_client(embedded: &Embedded, authority: &Authority, user: &Pair) -> Result<Client, etcd_client::Error> {
    let identity =
        etcd_client::Identity::from_pem(std::fs::read(&user.cert).unwrap(), std::fs::read(&user.key).unwrap());
    let tls = etcd_client::TlsOptions::new()
        .domain_name("localhost")
        .ca_certificate(etcd_client::Certificate::from_pem(&authority.ca_pem))
        .identity(identity);
    let options = etcd_client::ConnectOptions::new().with_tls(tls).with_connect_timeout(Duration::from_secs(5));
    let mut client = Client::connect([format!("https://{}", embedded.address)], Some(options)).await?;
    // The connection is made lazily; a status needs no permission.
    client.status().await?;
    Ok(client)
}

/// A large mesh: every page at a pinned revision carries the right total while others write. That a page costs the page
/// and not the whole is counted in a test of the index.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_keys_are_paged() {
    const KEYS: usize = 100_000;
    const PER_TXN: usize = 100;
    let (store, _) = Store::open(StoreOptions::default()).unwrap();
    let mut raw = Raw::over(store.local_channel());
    for first in (0..KEYS).step_by(PER_TXN) {
        let success = (first..first + PER_TXN)
            .map(|number| {
                let put = PbPutRequest {
                    key: format!(
                        "cilium/state/ip/v1/default/10.{}.{}.{}",
                        number >> 16,
                        number >> 8 & 255,
                        number & 255
                    )
                    .into(),
                    value: vec![b'x'; 400],
                    ..PbPutRequest::default()
                };
                etcd_client::proto::PbTxnRequestOp {
                    request: Some(etcd_client::proto::PbTxnOpRequest::RequestPut(put)),
                }
            })
            .collect();
        let txn = etcd_client::proto::PbTxnRequest { success, ..Default::default() };
        let _: etcd_client::proto::PbTxnResponse = raw.call("KV/Txn", txn).await.unwrap();
    }
    let mut request = PbRangeRequest {
        key: b"cilium/".to_vec(),
        range_end: b"cilium0".to_vec(),
        limit: 256,
        sort_order: 1,
        ..PbRangeRequest::default()
    };
    let mut seen = 0;
    loop {
        let page: PbRangeResponse = raw.call("KV/Range", request.clone()).await.unwrap();
        assert_eq!(usize::try_from(page.count).unwrap(), KEYS - seen);
        seen += page.kvs.len();
        request.revision = page.header.unwrap().revision;
        if !page.more {
            break;
        }
        // Writes go on meanwhile.
        if seen % 10_240 == 0 {
            let put = PbPutRequest { key: format!("cilium/new/{seen}").into(), ..PbPutRequest::default() };
            let _: PbPutResponse = raw.call("KV/Put", put).await.unwrap();
        }
        request.key.clone_from(&page.kvs.last().unwrap().key);
        request.key.push(0);
    }
    assert_eq!(seen, KEYS);
    store.close().await;
}
