//! The same random requests to a real etcd and to the embedded store: the answers are the same.
//!
//! Compared: keys, values, revisions, versions, counts, `more`, error codes and texts, the revision of every header, and
//! the events of every watch in their order. Not compared: cluster and member ids, raft terms, the seconds a lease has
//! left, and the order of equal elements of a sorted range, which etcd leaves open.
//!
//! `MESHD_DIFFERENTIAL_SEEDS=from..to` runs other seeds than the first twenty, `MESHD_DIFFERENTIAL_OPS` another length.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use etcd_client::proto::{
    PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbEvent, PbLeaseGrantResponse, PbLeaseLeasesRequest,
    PbLeaseLeasesResponse, PbLeaseRevokeResponse, PbLeaseTimeToLiveResponse, PbPutRequest, PbPutResponse,
    PbRangeRequest, PbRangeResponse, PbTxnOpRequest, PbTxnOpResponse, PbTxnRequest, PbTxnResponse, PbWatchRequest,
    PbWatchRequestUnion,
};
use meshd_store::{Store, StoreOptions};
use tokio::sync::mpsc;
use tonic::Status;

use super::embedded::Embedded;
use super::etcd::Etcd;
use super::generator::{Generator, Operation, Watch};
use super::raw::{Raw, normalise};

/// Seeds of an ordinary run.
const SEEDS: std::ops::Range<u64> = 0..20;
/// Requests for each seed.
const OPERATIONS: usize = 300;
/// How long events may take.
const EVENTS_DEADLINE: Duration = Duration::from_secs(20);

/// What a watch was told, by watch id.
type Told = Arc<Mutex<BTreeMap<i64, Vec<String>>>>;

/// One of the two servers.
struct Side {
    raw: Raw,
    watches: mpsc::Sender<PbWatchRequest>,
    told: Told,
    /// Watch ids in order of their creation, with the number the other side knows them by.
    created: i64,
}

impl Side {
    fn new(raw: Raw) -> Self {
        let (watches, responses) = raw.watch();
        let told = Told::default();
        let collected = Arc::clone(&told);
        tokio::spawn(async move {
            let mut responses = responses.await;
            while let Ok(Some(response)) = responses.message().await {
                let mut told = collected.lock().unwrap();
                let lines = told.entry(response.watch_id).or_default();
                if response.created {
                    lines.push(format!("created cancelled={} {}", response.canceled, response.cancel_reason));
                } else if response.canceled {
                    lines.push(format!("cancelled compacted={}", response.compact_revision));
                }
                lines.extend(response.events.iter().map(describe));
            }
        });
        Self { raw, watches, told, created: 0 }
    }

    async fn watch(&mut self, watch: &Watch, revision: i64) {
        let mut union = PbWatchRequestUnion::CreateRequest(Default::default());
        if let PbWatchRequestUnion::CreateRequest(create) = &mut union {
            create.key.clone_from(&watch.key);
            create.range_end.clone_from(&watch.range_end);
            create.start_revision = watch.back.map_or(0, |back| (revision - back).max(1));
            create.prev_kv = watch.prev_kv;
            create.filters.clone_from(&watch.filters);
        }
        let created = |told: &Told| -> usize {
            let told = told.lock().unwrap();
            told.values().flatten().filter(|line| line.starts_with("created")).count()
        };
        let before = created(&self.told);
        self.watches.send(PbWatchRequest { request_union: Some(union) }).await.unwrap();
        let started = Instant::now();
        while created(&self.told) == before {
            assert!(started.elapsed() < EVENTS_DEADLINE, "watch {} was not created", self.created);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.created += 1;
    }

    fn told(&self) -> BTreeMap<i64, Vec<String>> {
        self.told.lock().unwrap().clone()
    }
}

fn describe(event: &PbEvent) -> String {
    let kind = if event.r#type == 0 { "put" } else { "delete" };
    format!("{kind} {:?} before {:?}", event.kv, event.prev_kv)
}

/// Answers and errors in a form that can be compared.
fn outcome<T: Debug>(answer: Result<T, Status>) -> String {
    match answer {
        Ok(answer) => format!("{answer:?}"),
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

/// The order of elements that are equal for the sort is open: bring them into key order; and when a limit cut among
/// them, which of them are inside is open too, so only what was sorted by remains.
fn settle_order(request: &PbRangeRequest, response: &mut PbRangeResponse) {
    if request.sort_target == 0 {
        return;
    }
    let target = request.sort_target;
    let rank = move |kv: &etcd_client::proto::PbKeyValue| match target {
        1 => (kv.version, Vec::new()),
        2 => (kv.create_revision, Vec::new()),
        3 => (kv.mod_revision, Vec::new()),
        _ => (0, kv.value.clone()),
    };
    let cut = request.limit > 0 && response.more;
    // Without values there is nothing left to compare the order by.
    let blind = request.keys_only && target == 4;
    if cut && (blind || request.sort_order == 0 || response.kvs.len() > 1 || request.limit == 1) {
        for kv in &mut response.kvs {
            let (number, value) = rank(kv);
            *kv = etcd_client::proto::PbKeyValue { version: number, value, ..Default::default() };
        }
        return;
    }
    if blind {
        response.kvs.sort_by(|a, b| a.key.cmp(&b.key));
        return;
    }
    let descending = request.sort_order == 2;
    assert!(response.kvs.is_sorted_by(|a, b| if descending { rank(b) <= rank(a) } else { rank(a) <= rank(b) }));
    response.kvs.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.key.cmp(&b.key)));
}

fn settle_txn(request: &PbTxnRequest, response: &mut PbTxnResponse) {
    normalise(&mut response.header);
    let ops = if response.succeeded { &request.success } else { &request.failure };
    for (op, answer) in ops.iter().zip(&mut response.responses) {
        match (&op.request, &mut answer.response) {
            (Some(PbTxnOpRequest::RequestRange(range)), Some(PbTxnOpResponse::ResponseRange(answer))) => {
                normalise(&mut answer.header);
                settle_order(range, answer);
            }
            (Some(PbTxnOpRequest::RequestTxn(nested)), Some(PbTxnOpResponse::ResponseTxn(answer))) => {
                settle_txn(nested, answer);
            }
            (_, Some(PbTxnOpResponse::ResponsePut(answer))) => normalise(&mut answer.header),
            (_, Some(PbTxnOpResponse::ResponseDeleteRange(answer))) => normalise(&mut answer.header),
            _ => {}
        }
    }
}

async fn apply(raw: &mut Raw, operation: &Operation) -> String {
    match operation {
        Operation::Range(request) => {
            let mut answer: Result<PbRangeResponse, Status> = raw.call("KV/Range", request.clone()).await;
            if let Ok(answer) = &mut answer {
                normalise(&mut answer.header);
                settle_order(request, answer);
            }
            outcome(answer)
        }
        Operation::Put(request) => {
            let mut answer: Result<PbPutResponse, Status> = raw.call("KV/Put", request.clone()).await;
            answer.iter_mut().for_each(|answer| normalise(&mut answer.header));
            outcome(answer)
        }
        Operation::Delete(request) => {
            let mut answer: Result<PbDeleteResponse, Status> = raw.call("KV/DeleteRange", request.clone()).await;
            answer.iter_mut().for_each(|answer| normalise(&mut answer.header));
            outcome(answer)
        }
        Operation::Txn(request) => {
            let mut answer: Result<PbTxnResponse, Status> = raw.call("KV/Txn", request.clone()).await;
            answer.iter_mut().for_each(|answer| settle_txn(request, answer));
            outcome(answer)
        }
        Operation::Compact(request) => {
            let mut answer: Result<PbCompactionResponse, Status> = raw.call("KV/Compact", *request).await;
            answer.iter_mut().for_each(|answer| normalise(&mut answer.header));
            outcome(answer)
        }
        Operation::Grant(request) => {
            let mut answer: Result<PbLeaseGrantResponse, Status> = raw.call("Lease/LeaseGrant", *request).await;
            answer.iter_mut().for_each(|answer| normalise(&mut answer.header));
            outcome(answer)
        }
        Operation::Revoke(request) => {
            let mut answer: Result<PbLeaseRevokeResponse, Status> = raw.call("Lease/LeaseRevoke", *request).await;
            answer.iter_mut().for_each(|answer| normalise(&mut answer.header));
            outcome(answer)
        }
        Operation::TimeToLive(request) => {
            let method = "Lease/LeaseTimeToLive";
            let mut answer: Result<PbLeaseTimeToLiveResponse, Status> = raw.call(method, *request).await;
            if let Ok(answer) = &mut answer {
                normalise(&mut answer.header);
                answer.ttl = answer.ttl.signum();
                answer.keys.sort();
            }
            outcome(answer)
        }
        Operation::Leases => {
            let request = PbLeaseLeasesRequest {};
            let mut answer: Result<PbLeaseLeasesResponse, Status> = raw.call("Lease/LeaseLeases", request).await;
            if let Ok(answer) = &mut answer {
                normalise(&mut answer.header);
                answer.leases.sort_by_key(|lease| lease.id);
            }
            outcome(answer)
        }
        Operation::Watch(_) => String::new(),
    }
}

/// The answers of both servers, etcd's first.
async fn ask(sides: &mut [Side; 2], operation: &Operation) -> (String, String) {
    let [reference, ours] = sides;
    tokio::join!(apply(&mut reference.raw, operation), apply(&mut ours.raw, operation))
}

/// Waits until both sides told their watches the same.
async fn meet(sides: &[Side; 2], context: &str) {
    let started = Instant::now();
    loop {
        let (reference, ours) = (sides[0].told(), sides[1].told());
        if reference == ours {
            return;
        }
        if started.elapsed() > EVENTS_DEADLINE {
            for (id, lines) in &reference {
                assert_eq!(lines, ours.get(id).unwrap_or(&Vec::new()), "{context}: watch {id} (left is etcd)");
            }
            panic!("{context}: watches differ");
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn run(seed: u64, operations: usize, sides: &mut [Side; 2], etcd: &Etcd, store: &Store) {
    let mut generator = Generator::new(seed);
    for number in 0..operations {
        let newest = store.status().revision.0;
        let operation = generator.operation(newest);
        let context = format!("seed {seed} operation {number} {operation:?}");
        match &operation {
            Operation::Watch(watch) => {
                // Whether a deletion exactly at the compacted revision is still told depends on the release of etcd.
                for side in sides.iter_mut() {
                    side.watch(watch, newest).await;
                }
                meet(sides, &context).await;
            }
            // A watch of ours reads the history when it is served, etcd's has its events queued: let both catch up first.
            Operation::Compact(_) => {
                etcd.watches_are_synced().await;
                meet(sides, &context).await;
            }
            _ => {}
        }
        let (reference, ours) = ask(sides, &operation).await;
        assert_eq!(reference, ours, "{context} (left is etcd)");
    }
    finish(seed, sides).await;
}

/// Lets all watches catch up, then removes everything, so that the next seed starts with no keys and no leases.
async fn finish(seed: u64, sides: &mut [Side; 2]) {
    let last = PbPutRequest { key: b"k/last".to_vec(), ..PbPutRequest::default() };
    let all = PbDeleteRequest { key: vec![0], range_end: vec![0], prev_kv: true };
    let mut ending = vec![Operation::Put(last), Operation::Delete(all)];
    ending.extend((1_000..1_006).map(|id| Operation::Revoke(etcd_client::proto::PbLeaseRevokeRequest { id })));
    for operation in ending {
        let (reference, ours) = ask(sides, &operation).await;
        assert_eq!(reference, ours, "end of seed {seed} {operation:?} (left is etcd)");
    }
    meet(sides, &format!("end of seed {seed}")).await;
}

fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("MESHD_DIFFERENTIAL_SEEDS") else {
        return SEEDS;
    };
    let (from, to) = text.split_once("..").expect("MESHD_DIFFERENTIAL_SEEDS is FROM..TO");
    from.parse().unwrap()..to.parse().unwrap()
}

fn operations() -> usize {
    let text = std::env::var("MESHD_DIFFERENTIAL_OPS");
    text.map_or(OPERATIONS, |text| text.parse().expect("MESHD_DIFFERENTIAL_OPS is a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_operations_have_the_answers_of_etcd() {
    let etcd = Etcd::start().await;
    let embedded = Embedded::start(StoreOptions::default(), None).await;
    let reference = Raw::connect(etcd.address).await;
    let ours = Raw::connect(embedded.address).await;
    let mut told = 0;
    for seed in seeds() {
        // New streams for each seed, so that watch ids start anew.
        let mut sides = [Side::new(reference.clone()), Side::new(ours.clone())];
        run(seed, operations(), &mut sides, &etcd, &embedded.store).await;
        told += sides[1].told().values().map(Vec::len).sum::<usize>();
    }
    assert!(told > 0 || seeds().is_empty(), "no watch was told anything");
    embedded.stop().await;
}
