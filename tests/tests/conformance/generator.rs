//! Random requests from a seed: few keys, so that they meet; all options; some of them wrong on purpose.

use etcd_client::proto::{
    PbCompactionRequest, PbCompare, PbDeleteRequest, PbLeaseGrantRequest, PbLeaseRevokeRequest,
    PbLeaseTimeToLiveRequest, PbPutRequest, PbRangeRequest, PbTargetUnion, PbTxnOpRequest, PbTxnRequest,
    PbTxnRequestOp,
};

/// Different keys.
const KEYS: u64 = 24;
/// Lease numbers in use.
const LEASES: u64 = 6;
const FIRST_LEASE: i64 = 1_000;

/// One request.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    Range(PbRangeRequest),
    Put(PbPutRequest),
    Delete(PbDeleteRequest),
    Txn(PbTxnRequest),
    Compact(PbCompactionRequest),
    Grant(PbLeaseGrantRequest),
    Revoke(PbLeaseRevokeRequest),
    TimeToLive(PbLeaseTimeToLiveRequest),
    Leases,
    Watch(Watch),
}

/// A new watch.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    pub(super) key: Vec<u8>,
    pub(super) range_end: Vec<u8>,
    /// How many revisions back; none for "from now on".
    pub(super) back: Option<i64>,
    pub(super) prev_kv: bool,
    pub(super) filters: Vec<i32>,
}

/// The source of a sequence.
pub(super) struct Generator {
    state: u64,
}

impl Generator {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bf0_3635 }
    }

    /// The next request; `revision` is the newest one.
    pub(super) fn operation(&mut self, revision: i64) -> Operation {
        match self.below(100) {
            0..30 => Operation::Range(self.range(revision)),
            30..56 => Operation::Put(self.put()),
            56..66 => Operation::Delete(self.delete()),
            66..86 => Operation::Txn(self.txn(revision, 2)),
            86..88 => {
                Operation::Compact(PbCompactionRequest { revision: self.near(revision), physical: self.chance(50) })
            }
            88..91 => Operation::Grant(PbLeaseGrantRequest {
                id: self.lease(),
                ttl: if self.chance(10) { 9_000_000_001 } else { 600 + self.small(9) },
            }),
            91..93 => Operation::Revoke(PbLeaseRevokeRequest { id: self.lease() }),
            93..96 => Operation::TimeToLive(PbLeaseTimeToLiveRequest { id: self.lease(), keys: self.chance(70) }),
            96 => Operation::Leases,
            _ => Operation::Watch(self.watch()),
        }
    }

    fn range(&mut self, revision: i64) -> PbRangeRequest {
        let (key, range_end) = self.span();
        let filter = |generator: &mut Self| if generator.chance(8) { generator.near(revision) } else { 0 };
        let sorted = self.chance(50);
        PbRangeRequest {
            key,
            range_end,
            limit: if self.chance(50) { self.small(6) } else { 0 },
            revision: if self.chance(40) { self.near(revision) } else { 0 },
            sort_order: if sorted { i32::try_from(self.below(3)).unwrap() } else { 0 },
            sort_target: if sorted { i32::try_from(self.below(5)).unwrap() } else { 0 },
            serializable: self.chance(20),
            keys_only: self.chance(20),
            count_only: self.chance(10),
            min_mod_revision: filter(self),
            max_mod_revision: filter(self),
            min_create_revision: filter(self),
            max_create_revision: filter(self),
        }
    }

    fn put(&mut self) -> PbPutRequest {
        let ignore_value = self.chance(8);
        let ignore_lease = self.chance(8);
        PbPutRequest {
            key: if self.chance(2) { Vec::new() } else { self.key() },
            value: if ignore_value && self.chance(80) { Vec::new() } else { self.value() },
            lease: if self.chance(25) && (!ignore_lease || self.chance(20)) { self.lease() } else { 0 },
            prev_kv: self.chance(50),
            ignore_value,
            ignore_lease,
        }
    }

    fn delete(&mut self) -> PbDeleteRequest {
        let (key, range_end) = if self.chance(60) { (self.key(), Vec::new()) } else { self.span() };
        PbDeleteRequest { key, range_end, prev_kv: self.chance(50) }
    }

    fn txn(&mut self, revision: i64, depth: u32) -> PbTxnRequest {
        let compare = (0..self.below(3)).map(|_| self.compare(revision)).collect();
        let ops = |generator: &mut Self| {
            let count = generator.below(4);
            (0..count).map(|_| generator.txn_op(revision, depth)).collect()
        };
        let success = ops(self);
        let failure = ops(self);
        PbTxnRequest { compare, success, failure }
    }

    fn txn_op(&mut self, revision: i64, depth: u32) -> PbTxnRequestOp {
        let request = match self.below(100) {
            0..30 => Some(PbTxnOpRequest::RequestRange(self.range(revision))),
            30..70 => Some(PbTxnOpRequest::RequestPut(self.put())),
            70..85 => Some(PbTxnOpRequest::RequestDeleteRange(self.delete())),
            85..98 if depth > 0 => Some(PbTxnOpRequest::RequestTxn(self.txn(revision, depth - 1))),
            98 => None,
            _ => Some(PbTxnOpRequest::RequestPut(self.put())),
        };
        PbTxnRequestOp { request }
    }

    fn compare(&mut self, revision: i64) -> PbCompare {
        let target = i32::try_from(self.below(5)).unwrap();
        let (key, range_end) = if self.chance(70) { (self.key(), Vec::new()) } else { self.span() };
        let union = match target {
            0 => PbTargetUnion::Version(self.small(4)),
            1 => PbTargetUnion::CreateRevision(if self.chance(40) { 0 } else { self.near(revision) }),
            2 => PbTargetUnion::ModRevision(if self.chance(40) { 0 } else { self.near(revision) }),
            3 => PbTargetUnion::Value(self.value()),
            _ => PbTargetUnion::Lease(if self.chance(50) { 0 } else { self.lease() }),
        };
        PbCompare {
            result: i32::try_from(self.below(4)).unwrap(),
            target,
            key,
            range_end,
            target_union: (!self.chance(3)).then_some(union),
        }
    }

    /// A watch on some keys.
    pub(super) fn watch(&mut self) -> Watch {
        let (key, range_end) = self.span();
        Watch {
            key,
            range_end,
            back: self.chance(50).then(|| self.small(30)),
            prev_kv: self.chance(50),
            filters: if self.chance(30) { vec![i32::try_from(self.below(2)).unwrap()] } else { Vec::new() },
        }
    }

    fn span(&mut self) -> (Vec<u8>, Vec<u8>) {
        let key = if self.chance(3) { Vec::new() } else { self.key() };
        let end = match self.below(10) {
            0..3 => Vec::new(),
            3..5 => vec![0],
            5..8 => {
                // All keys below "k/<digit>".
                return (key[..key.len().min(3)].to_vec(), b"k0".to_vec());
            }
            _ => self.key(),
        };
        (key, end)
    }

    fn key(&mut self) -> Vec<u8> {
        match self.below(40) {
            0 => vec![0],
            1 => vec![0xff, 0xff],
            2 => b"k".to_vec(),
            _ => format!("k/{}", self.below(KEYS)).into_bytes(),
        }
    }

    fn value(&mut self) -> Vec<u8> {
        let length = usize::try_from(self.below(4)).unwrap();
        (0..length).map(|_| b'a' + u8::try_from(self.below(3)).unwrap()).collect()
    }

    fn lease(&mut self) -> i64 {
        FIRST_LEASE + i64::try_from(self.below(LEASES)).unwrap()
    }

    /// A revision around the newest one.
    fn near(&mut self, revision: i64) -> i64 {
        revision + 2 - self.small(40)
    }

    fn small(&mut self, bound: u64) -> i64 {
        i64::try_from(self.below(bound)).unwrap()
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn below(&mut self, bound: u64) -> u64 {
        // splitmix64
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}
