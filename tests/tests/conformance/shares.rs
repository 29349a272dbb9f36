//! What one user may hold of the embedded store, over the wire: answers that are not read, watches and streams.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use etcd_client::proto::{
    PbPutRequest, PbPutResponse, PbRangeRequest, PbRangeResponse, PbTxnOpRequest, PbTxnRequest, PbTxnRequestOp,
    PbTxnResponse, PbWatchRequest, PbWatchRequestUnion, PbWatchResponse,
};
use meshd_store::{AuthConfig, Store, StoreOptions};
use tokio::task::JoinSet;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status, Streaming};

use super::certificates::Authority;
use super::embedded::Embedded;
use super::raw::Raw;

/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(60);
/// As many as one connection may have in flight.
const REQUESTS: usize = 1_024;
const PREFIX: &str = "cilium/state/ip/v1/default/";
const KEYS: usize = 1_000;
const VALUE_BYTES: usize = 4_000;

/// A store with users, and an authority for their certificates.
async fn start(options: StoreOptions) -> (Embedded, Authority) {
    let authority = Authority::new();
    let auth = AuthConfig::standard("west", ["east"]);
    let embedded = Embedded::start(StoreOptions { auth, ..options }, Some(authority.server())).await;
    (embedded, authority)
}

/// A connection whose streams stop after 64 KiB that nobody reads, one by one: the window of the connection is larger
/// than all of them together.
async fn connect(embedded: &Embedded, authority: &Authority, user: &str) -> Raw {
    let (cert, key) = authority.issue(user);
    let tls = ClientTlsConfig::new()
        .domain_name("localhost")
        .ca_certificate(Certificate::from_pem(&authority.ca_pem))
        .identity(Identity::from_pem(cert, key));
    let endpoint = Endpoint::from_shared(format!("https://{}", embedded.address)).unwrap().tls_config(tls).unwrap();
    let endpoint = endpoint.initial_stream_window_size(65_535).initial_connection_window_size(1 << 30);
    Raw::over(endpoint.connect_timeout(DEADLINE).connect().await.unwrap())
}

async fn fill(store: &Store) {
    let mut root = Raw::over(store.local_channel());
    for number in 0..KEYS {
        let key = format!("{PREFIX}{number:06}").into();
        let request = PbPutRequest { key, value: vec![7; VALUE_BYTES], ..Default::default() };
        let _: PbPutResponse = root.call("KV/Put", request).await.unwrap();
    }
}

fn everything() -> PbRangeRequest {
    PbRangeRequest { key: PREFIX.into(), range_end: b"cilium/state/ip/v1/default0".to_vec(), ..Default::default() }
}

fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < DEADLINE, "{what} takes too long");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Asks as often as one connection can, and waits until every request has an answer that begins, or an error.
async fn ask_and_do_not_read(raw: &Raw, store: &Store) -> (Vec<Streaming<PbRangeResponse>>, BTreeSet<String>, usize) {
    let mut requests = JoinSet::new();
    for _ in 0..REQUESTS {
        let mut raw = raw.clone();
        requests.spawn(async move { raw.begin::<_, PbRangeResponse>("KV/Range", everything()).await });
    }
    let (mut begun, mut refusals, mut peak) = (Vec::new(), BTreeSet::new(), 0);
    while let Some(ended) = tokio::time::timeout(DEADLINE, requests.join_next()).await.unwrap() {
        peak = peak.max(store.status().answer_bytes);
        match ended.unwrap() {
            Ok(answer) => begun.push(answer),
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                refusals.insert(status.message().to_owned());
            }
        }
    }
    (begun, refusals, peak)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_not_read_are_bounded_and_others_are_served() {
    const ROOM_BYTES: usize = 32 << 20;
    let answer_wait_max = Duration::from_secs(2);
    let options = StoreOptions { answer_bytes_max: ROOM_BYTES, answer_wait_max, ..StoreOptions::default() };
    let (embedded, authority) = start(options).await;
    fill(&embedded.store).await;
    let before = resident_bytes();

    let remote = connect(&embedded, &authority, "remote-east").await;
    let (begun, refusals, peak) = ask_and_do_not_read(&remote, &embedded.store).await;
    let status = embedded.store.status();
    let grown = resident_bytes().saturating_sub(before);
    // Each takes 4.2 MB; together they would have taken 4.3 GB.
    assert_eq!(begun.len(), 3, "{status:?}");
    assert!(peak <= ROOM_BYTES / 2 && status.answer_bytes > 3 * KEYS * VALUE_BYTES, "{peak} {status:?}");
    assert!(grown < 4 * ROOM_BYTES, "{grown} bytes more are resident");
    assert_eq!((status.answers_waiting, status.answers_refused), (0, (REQUESTS - begun.len()) as u64));
    assert!(refusals.iter().all(|text| text.contains("answers to user remote-east that have not been read hold")));

    // Another user is not concerned, and neither are small answers of this one.
    let mut node = connect(&embedded, &authority, "node-west").await;
    let all: PbRangeResponse =
        tokio::time::timeout(answer_wait_max, node.call("KV/Range", everything())).await.unwrap().unwrap();
    assert_eq!((all.kvs.len(), all.count), (KEYS, KEYS as i64));
    let count = PbRangeRequest { count_only: true, ..everything() };
    let mut again = connect(&embedded, &authority, "remote-east").await;
    let counted: PbRangeResponse =
        tokio::time::timeout(answer_wait_max, again.call("KV/Range", count)).await.unwrap().unwrap();
    assert_eq!(counted.count, KEYS as i64);
    // A transaction that reads counts as much.
    let read = PbTxnRequestOp { request: Some(PbTxnOpRequest::RequestRange(everything())) };
    let txn = PbTxnRequest { success: vec![read.clone(); 2], ..Default::default() };
    let refused: Result<PbTxnResponse, Status> = again.call("KV/Txn", txn.clone()).await;
    let refused = refused.map(|answer| answer.responses.len()).unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");

    // Who reads gets the whole answer; who goes away gives its room back, and the next one in line gets it.
    let mut begun = begun.into_iter();
    let mut first = begun.next().unwrap();
    let whole = tokio::time::timeout(DEADLINE, first.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(whole.kvs.len(), KEYS);
    drop((first, begun));
    let answer: PbTxnResponse = again.call("KV/Txn", txn).await.unwrap();
    assert_eq!(answer.responses.len(), 2);
    until("giving room back", || embedded.store.status().answer_bytes == 0).await;

    // The end of a connection gives it back as well.
    let (begun, ..) = ask_and_do_not_read(&remote, &embedded.store).await;
    assert!(!begun.is_empty() && embedded.store.status().answer_bytes > 0);
    drop((begun, remote));
    until("giving room back", || embedded.store.status().answer_bytes == 0).await;
    drop((node, again));
    embedded.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_answer_larger_than_the_room_is_possible() {
    let options = StoreOptions {
        answer_bytes_max: 1 << 20,
        answer_wait_max: Duration::from_millis(500),
        ..StoreOptions::default()
    };
    let (embedded, authority) = start(options).await;
    fill(&embedded.store).await;
    let mut remote = connect(&embedded, &authority, "remote-east").await;
    let begun = remote.begin::<_, PbRangeResponse>("KV/Range", everything()).await.unwrap();
    let mut node = connect(&embedded, &authority, "node-west").await;
    let refused: Result<PbRangeResponse, Status> = node.call("KV/Range", everything()).await;
    let refused = refused.map(|answer| answer.kvs.len()).unwrap_err();
    assert!(refused.message().contains("while another one of that size is under way"), "{refused:?}");
    let page: PbRangeResponse = node.call("KV/Range", PbRangeRequest { limit: 50, ..everything() }).await.unwrap();
    assert!(page.more && page.kvs.len() == 50);
    drop(begun);
    let all: PbRangeResponse = node.call("KV/Range", everything()).await.unwrap();
    assert_eq!(all.kvs.len(), KEYS);
    drop((remote, node));
    embedded.stop().await;
}

fn watch_all() -> PbWatchRequest {
    let mut union = PbWatchRequestUnion::CreateRequest(Default::default());
    if let PbWatchRequestUnion::CreateRequest(create) = &mut union {
        create.key = PREFIX.into();
    }
    PbWatchRequest { request_union: Some(union) }
}

async fn next(stream: &mut Streaming<PbWatchResponse>) -> PbWatchResponse {
    tokio::time::timeout(DEADLINE, stream.message()).await.unwrap().unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_and_streams_beyond_the_share_of_a_user_are_refused() {
    let options = StoreOptions { watches_per_user_max: 3, streams_per_user_max: 2, ..StoreOptions::default() };
    let (embedded, authority) = start(options).await;
    let remote = connect(&embedded, &authority, "remote-east").await;
    // Both connections count for the same user.
    let again = connect(&embedded, &authority, "remote-east").await;
    let (first_requests, first) = remote.watch();
    for _ in 0..3 {
        first_requests.send(watch_all()).await.unwrap();
    }
    let mut first = first.await;
    for _ in 0..3 {
        let created = next(&mut first).await;
        assert!(created.created && !created.canceled, "{created:?}");
    }
    let (second_requests, second) = again.watch();
    second_requests.send(watch_all()).await.unwrap();
    let mut second = second.await;
    let refused = next(&mut second).await;
    assert!(refused.created && refused.canceled, "{refused:?}");
    assert_eq!((refused.watch_id, refused.cancel_reason.as_str()), (-1, "etcdserver: too many requests"));
    let (_third_requests, third) = again.try_watch();
    let refused = third.await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, "etcdserver: too many requests"));
    assert_eq!(embedded.store.status().watchers, 3);

    let node = connect(&embedded, &authority, "node-west").await;
    let (node_requests, node_watch) = node.watch();
    node_requests.send(watch_all()).await.unwrap();
    let created = next(&mut node_watch.await).await;
    assert!(created.created && !created.canceled, "{created:?}");

    // The stream that was refused a watch lives on, and gets one when there is room.
    drop((first_requests, first));
    until("forgetting a stream", || embedded.store.status().watchers <= 1).await;
    second_requests.send(watch_all()).await.unwrap();
    let created = next(&mut second).await;
    assert!(created.created && !created.canceled, "{created:?}");
    drop((second_requests, second, remote, again, node));
    embedded.stop().await;
}
