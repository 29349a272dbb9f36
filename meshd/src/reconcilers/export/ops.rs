//! Writing: leases, puts, removals and the creation of identities.

use std::{collections::BTreeMap, sync::Arc};

use etcd_client::{Client, Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse, proto::PbKeyValue};
use futures_util::{StreamExt as _, stream};
use meshd_core::clustermesh::export::{DATA_LEASE_TTL, Held, LEASE_KEYS_MAX};
use tokio::time::timeout;

use super::actual::CALL_TIMEOUT;
use crate::store::RpcFailure;

/// Writes in flight at once.
const WRITES_MAX: usize = 32;

/// The leases our records hang on.
#[derive(Debug, Default)]
pub(super) struct Leases {
    alive: BTreeMap<i64, usize>,
}

impl Leases {
    /// Ids of the leases that live.
    pub(super) fn alive(&self) -> impl Iterator<Item = i64> {
        self.alive.keys().copied()
    }

    /// Takes over a lease that records of ours hang on, if it still lives: that of our previous run.
    pub(super) async fn adopt(&mut self, client: &Client, id: i64) -> Result<(), RpcFailure> {
        if id != 0 && !self.alive.contains_key(&id) && keep_alive(client, id).await? {
            self.alive.insert(id, 0);
        }
        Ok(())
    }

    /// Tells the store that we live; leases it no longer knows are forgotten.
    pub(super) async fn keep(&mut self, client: &Client) -> Result<(), RpcFailure> {
        let ids: Vec<i64> = self.alive.keys().copied().collect();
        for id in ids {
            if !keep_alive(client, id).await? {
                tracing::warn!(
                    lease = format_args!("{id:x}"),
                    "a lease of ours is gone, its records are written again"
                );
                self.alive.remove(&id);
            }
        }
        Ok(())
    }

    /// Gives each of `count` records a lease with room; `held` says how many records each lease has.
    pub(super) async fn assign(
        &mut self,
        client: &Client,
        held: &BTreeMap<i64, usize>,
        count: usize,
    ) -> Result<Vec<i64>, RpcFailure> {
        for (id, keys) in &mut self.alive {
            *keys = held.get(id).copied().unwrap_or(0);
        }
        let mut assigned = Vec::with_capacity(count);
        while assigned.len() < count {
            let room = self.alive.iter_mut().find(|(_, keys)| **keys < LEASE_KEYS_MAX);
            match room {
                Some((id, keys)) => {
                    *keys += 1;
                    assigned.push(*id);
                }
                None => {
                    let id = grant(client, DATA_LEASE_TTL.as_secs()).await?;
                    self.alive.insert(id, 0);
                }
            }
        }
        Ok(assigned)
    }
}

/// Grants a lease.
pub(super) async fn grant(client: &Client, ttl_s: u64) -> Result<i64, RpcFailure> {
    let ttl = i64::try_from(ttl_s).unwrap_or(i64::MAX);
    let mut leases = client.lease_client();
    Ok(call("lease grant", leases.grant(ttl, None)).await?.id())
}

/// Keeps a lease alive; false when the store does not know it.
pub(super) async fn keep_alive(client: &Client, id: i64) -> Result<bool, RpcFailure> {
    let mut leases = client.lease_client();
    match timeout(CALL_TIMEOUT, leases.keep_alive(id)).await {
        Ok(Ok(_stream)) => Ok(true),
        Ok(Err(etcd_client::Error::LeaseKeepAliveError(_))) => Ok(false),
        Ok(Err(error)) => Err(RpcFailure::of(&error)),
        Err(_) => Err(late("lease keepalive")),
    }
}

/// A write to carry out.
#[derive(Debug, Clone)]
pub(super) enum Write {
    Put { key: Arc<str>, value: Vec<u8>, lease: i64 },
    Delete { key: Arc<str>, revision: i64 },
}

impl Write {
    fn key(&self) -> &Arc<str> {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => key,
        }
    }
}

/// What became of a write: what the store holds now (an error is the revision of the removal), or why it failed.
pub(super) type Written = (Arc<str>, Result<Result<Held, i64>, RpcFailure>);

/// Carries out writes, several at once, in no order.
pub(super) async fn write_all(client: &Client, writes: Vec<Write>) -> Vec<Written> {
    stream::iter(writes)
        .map(|write| async move {
            let key = write.key().clone();
            (key, write_one(client, write).await)
        })
        .buffer_unordered(WRITES_MAX)
        .collect()
        .await
}

async fn write_one(client: &Client, write: Write) -> Result<Result<Held, i64>, RpcFailure> {
    let mut kv = client.kv_client();
    match write {
        Write::Put { key, value, lease } => {
            let held: Arc<[u8]> = value.as_slice().into();
            let options = PutOptions::new().with_lease(lease);
            let answer = call("put", kv.put(key.as_bytes(), value, Some(options))).await?;
            let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
            Ok(Ok(Held { value: held, lease, revision }))
        }
        Write::Delete { key, revision } => {
            let unchanged = Compare::mod_revision(key.as_bytes(), CompareOp::Equal, revision);
            let txn = Txn::new()
                .when([unchanged])
                .and_then([TxnOp::delete(key.as_bytes(), None)])
                .or_else([TxnOp::get(key.as_bytes(), None)]);
            let answer = call("delete", kv.txn(txn)).await?;
            let at = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
            Ok(if answer.succeeded() { Err(at) } else { found(answer.op_responses()).ok_or(at) })
        }
    }
}

/// Creates a key without a lease unless it exists; returns what it holds then.
pub(super) async fn create(client: &Client, key: &str, value: &[u8], lease: i64) -> Result<Option<Held>, RpcFailure> {
    let mut kv = client.kv_client();
    let absent = Compare::create_revision(key, CompareOp::Equal, 0);
    let options = (lease != 0).then(|| PutOptions::new().with_lease(lease));
    let txn = Txn::new().when([absent]).and_then([TxnOp::put(key, value, options)]).or_else([TxnOp::get(key, None)]);
    let answer = call("create", kv.txn(txn)).await?;
    if answer.succeeded() {
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        return Ok(Some(Held { value: value.into(), lease, revision }));
    }
    Ok(found(answer.op_responses()))
}

fn found(answers: Vec<TxnOpResponse>) -> Option<Held> {
    answers.into_iter().find_map(|answer| match answer {
        TxnOpResponse::Get(mut get) => get.take_kvs().into_iter().next().map(|kv| {
            let PbKeyValue { value, lease, mod_revision, .. } = kv.0;
            Held { value: value.into(), lease, revision: mod_revision }
        }),
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
    })
}

async fn call<T>(
    what: &'static str,
    work: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, RpcFailure> {
    match timeout(CALL_TIMEOUT, work).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(RpcFailure::of(&error)),
        Err(_) => Err(late(what)),
    }
}

fn late(what: &str) -> RpcFailure {
    RpcFailure::Lost(format!("a {what} was not answered within {} s", CALL_TIMEOUT.as_secs()))
}
