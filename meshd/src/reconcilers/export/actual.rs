//! What the store holds of our cluster: listed at one revision, then watched.

use std::{collections::BTreeSet, time::Duration};

use etcd_client::{
    Client, GetOptions, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream,
    proto::{PbKeyValue, PbRangeResponse},
};
use futures_util::FutureExt as _;
use meshd_core::{
    clustermesh::{
        Key, KeyKind, Keyspace,
        export::{Actual, Desired, Held, Scope},
        keys,
    },
    observed::Kind,
};
use tokio::time::timeout;

use super::SessionEnd;
use crate::store::{RpcFailure, cancel_reason};

/// Records asked for in one page.
const PAGE_LIMIT: i64 = 2_000;
/// Largest message read from the store.
const MESSAGE_MAX: usize = 16 * 1024 * 1024;
/// Messages taken in before the next look at what has to be done.
const MESSAGES_MAX: usize = 256;
/// `Event.type` of a deletion.
const EVENT_DELETE: i32 = 1;
/// How long one call may take.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A range we follow; its place in the list is its watch id less one.
#[derive(Debug, Clone)]
struct Range {
    from: Vec<u8>,
    end: Vec<u8>,
    /// The session goes on without it when the store refuses it.
    optional: bool,
}

/// Follows the ranges of our cluster.
pub(super) struct Follower {
    client: Client,
    ranges: Vec<Range>,
    sender: WatchRequestSender,
    stream: WatchResponseStream,
    store_id: u64,
    election: Option<String>,
    /// Holder of the election key, when it was readable: name and lease.
    pub(super) elected: Option<(String, i64)>,
    /// Why the election key cannot be read or written.
    pub(super) election_refused: Option<String>,
    /// The election key is watched.
    election_followed: bool,
}

/// Answer of a whole list.
struct Listed {
    records: Vec<PbKeyValue>,
    revision: i64,
    store_id: u64,
}

impl Follower {
    /// Lists and watches everything. The answer is the first actual state.
    pub(super) async fn start(
        client: Client,
        scope: &Scope,
        desired: &Desired,
        election: Option<String>,
    ) -> Result<(Self, Actual), SessionEnd> {
        let ranges = ranges(scope, election.as_deref());
        let mut actual = Actual::default();
        let mut elected = None;
        let mut election_refused = None;
        let mut store_id = None;
        let mut watches = Vec::new();
        for (nth, range) in ranges.iter().enumerate() {
            let listed = match list(&client, range).await {
                Ok(listed) => listed,
                Err(RpcFailure::Refused(reason)) if range.optional => {
                    election_refused = Some(reason);
                    continue;
                }
                Err(failure) => return Err(SessionEnd::from(failure)),
            };
            check_store_id(*store_id.get_or_insert(listed.store_id), listed.store_id)?;
            for kv in listed.records {
                take_in(&mut actual, scope, desired, election.as_deref(), &mut elected, kv, false);
            }
            let id = i64::try_from(nth).unwrap_or(i64::MAX - 1) + 1;
            let options =
                WatchOptions::new().with_watch_id(id).with_start_revision(listed.revision + 1).with_fragment();
            let options = if range.end.is_empty() { options } else { options.with_range(range.end.clone()) };
            watches.push((range.from.clone(), options));
        }
        let (sender, stream) = open_watches(&client, watches).await?;
        let store_id = store_id.unwrap_or_default();
        let election_followed = election_refused.is_none();
        let follower =
            Self { client, ranges, sender, stream, store_id, election, elected, election_refused, election_followed };
        Ok((follower, actual))
    }

    /// Id of the store's data.
    pub(super) fn store_id(&self) -> u64 {
        self.store_id
    }

    /// Lists everything again; what was missed or lost shows as a difference.
    pub(super) async fn relist(&mut self, scope: &Scope, desired: &Desired) -> Result<Actual, SessionEnd> {
        let mut actual = Actual::default();
        let mut elected = None;
        for range in &self.ranges {
            match list(&self.client, range).await {
                Ok(listed) => {
                    check_store_id(self.store_id, listed.store_id)?;
                    if range.optional && !self.election_followed {
                        return Err(SessionEnd::lost("the election key may be read now, connecting anew to follow it"));
                    }
                    if range.optional {
                        // Whether it may be written is found out by trying again.
                        self.election_refused = None;
                    }
                    for kv in listed.records {
                        take_in(&mut actual, scope, desired, self.election.as_deref(), &mut elected, kv, false);
                    }
                }
                Err(RpcFailure::Refused(reason)) if range.optional => self.election_refused = Some(reason),
                Err(failure) => return Err(SessionEnd::from(failure)),
            }
        }
        self.elected = elected;
        Ok(actual)
    }

    /// Waits for news, takes in what has arrived; true when something that matters changed.
    pub(super) async fn news(
        &mut self,
        actual: &mut Actual,
        scope: &Scope,
        desired: &Desired,
    ) -> Result<bool, SessionEnd> {
        let mut changed = false;
        let mut message = self.stream.message().await;
        for _ in 0..MESSAGES_MAX {
            match message {
                Ok(Some(news)) => changed |= self.take_in_message(actual, scope, desired, news)?,
                Ok(None) => return Err(SessionEnd::lost("the store ended the watch stream")),
                Err(error) => return Err(SessionEnd::from(RpcFailure::of(&error))),
            }
            match self.stream.message().now_or_never() {
                Some(next) => message = next,
                None => break,
            }
        }
        Ok(changed)
    }

    fn take_in_message(
        &mut self,
        actual: &mut Actual,
        scope: &Scope,
        desired: &Desired,
        message: WatchResponse,
    ) -> Result<bool, SessionEnd> {
        let message = message.0;
        check_store_id(self.store_id, message.header.map_or(0, |header| header.cluster_id))?;
        let range = usize::try_from(message.watch_id - 1).ok().and_then(|nth| self.ranges.get(nth));
        if message.compact_revision > 0 {
            return Err(SessionEnd::lost("the watch fell behind a compaction"));
        }
        if message.canceled {
            let reason = cancel_reason(&message.cancel_reason);
            if range.is_some_and(|range| range.optional) {
                self.election_refused = Some(reason);
                self.election_followed = false;
                return Ok(true);
            }
            return Err(SessionEnd::Refused(reason));
        }
        let mut changed = false;
        for event in message.events {
            if let Some(kv) = event.kv {
                let deleted = event.r#type == EVENT_DELETE;
                changed |= take_in(actual, scope, desired, self.election.as_deref(), &mut self.elected, kv, deleted);
            }
        }
        Ok(changed)
    }

    /// Keeps the stream's request side open as long as the session lives.
    pub(super) fn is_open(&self) -> bool {
        !self.sender.0.is_closed()
    }
}

/// Identities that any address record of the cluster refers to.
pub(super) async fn used_identities(client: &Client) -> Result<BTreeSet<u32>, RpcFailure> {
    /// The one field that matters here.
    #[derive(serde::Deserialize)]
    struct Reference {
        #[serde(rename = "ID")]
        id: u32,
    }
    let prefix = endpoints_prefix();
    let range = Range { end: keys::range_end(&prefix), from: prefix, optional: false };
    let listed = list(client, &range).await?;
    Ok(listed
        .records
        .iter()
        .filter_map(|kv| serde_json::from_slice::<Reference>(&kv.value).ok())
        .map(|reference| reference.id)
        .collect())
}

fn ranges(scope: &Scope, election: Option<&str>) -> Vec<Range> {
    let cluster = &scope.context.cluster;
    let prefix =
        |text: String| Range { end: keys::range_end(text.as_bytes()), from: text.into_bytes(), optional: false };
    let single = |text: String| Range { from: text.into_bytes(), end: Vec::new(), optional: false };
    let mut ranges = vec![
        prefix(keys::prefix(Keyspace::State, cluster, Kind::Identities)),
        prefix(keys::prefix(Keyspace::State, cluster, Kind::Nodes)),
        prefix(keys::prefix(Keyspace::State, cluster, Kind::Endpoints)),
        prefix(keys::prefix(Keyspace::State, cluster, Kind::Services)),
        prefix(keys::prefix(Keyspace::State, cluster, KeyKind::EndpointSlices)),
        single(Key::cluster_config(cluster).to_string()),
        single(Key::Heartbeat.to_string()),
        prefix(keys::canary_prefix(cluster)),
    ];
    if let Some(key) = election {
        ranges.push(Range { optional: true, ..single(key.to_owned()) });
    }
    ranges
}

fn endpoints_prefix() -> Vec<u8> {
    // In state form the prefix does not depend on the cluster.
    b"cilium/state/ip/v1/default/".to_vec()
}

fn take_in(
    actual: &mut Actual,
    scope: &Scope,
    desired: &Desired,
    election: Option<&str>,
    elected: &mut Option<(String, i64)>,
    kv: PbKeyValue,
    deleted: bool,
) -> bool {
    // A key that is not text is none of ours.
    let Ok(key) = std::str::from_utf8(&kv.key) else { return false };
    if election == Some(key) {
        *elected = (!deleted).then(|| (String::from_utf8_lossy(&kv.value).into_owned(), kv.lease));
        return true;
    }
    let held = if deleted {
        Err(kv.mod_revision)
    } else {
        Ok(Held { value: kv.value.into(), lease: kv.lease, revision: kv.mod_revision })
    };
    actual.observe(scope, desired, key, held)
}

async fn list(client: &Client, range: &Range) -> Result<Listed, RpcFailure> {
    let mut kv = client.kv_client().max_decoding_message_size(MESSAGE_MAX);
    let mut from = range.from.clone();
    let mut all: Option<Listed> = None;
    loop {
        let revision = all.as_ref().map_or(0, |listed| listed.revision);
        let options = GetOptions::new().with_limit(PAGE_LIMIT).with_revision(revision);
        let options = if range.end.is_empty() { options } else { options.with_range(range.end.clone()) };
        let answer = timeout(CALL_TIMEOUT, kv.get(from.clone(), Some(options)))
            .await
            .map_err(|_| RpcFailure::Lost(format!("a list was not answered within {} s", CALL_TIMEOUT.as_secs())))?
            .map_err(|error| RpcFailure::of(&error))?;
        let PbRangeResponse { header, kvs, more, .. } = answer.0;
        let header = header.ok_or_else(|| RpcFailure::Lost("the store answers without a header".to_owned()))?;
        let next = kvs.last().map(|kv| [kv.key.as_slice(), b"\0"].concat());
        let listed =
            all.get_or_insert(Listed { records: Vec::new(), revision: header.revision, store_id: header.cluster_id });
        if listed.store_id != header.cluster_id {
            return Err(RpcFailure::Lost("the store lost its history during a list".to_owned()));
        }
        listed.records.extend(kvs);
        match next.filter(|_| more) {
            Some(next) if next > from => from = next,
            Some(_) | None => break,
        }
    }
    all.ok_or_else(|| RpcFailure::Lost("the store did not answer a list".to_owned()))
}

async fn open_watches(
    client: &Client,
    watches: Vec<(Vec<u8>, WatchOptions)>,
) -> Result<(WatchRequestSender, WatchResponseStream), SessionEnd> {
    let mut watches = watches.into_iter();
    let Some((from, options)) = watches.next() else { return Err(SessionEnd::lost("nothing to watch")) };
    let mut watch = client.watch_client().max_decoding_message_size(MESSAGE_MAX);
    let opened = timeout(CALL_TIMEOUT, watch.watch(from, Some(options)))
        .await
        .map_err(|_| SessionEnd::lost("opening the watch stream took too long"))?
        .map_err(|error| SessionEnd::from(RpcFailure::of(&error)))?;
    let (mut sender, stream) = opened.split();
    for (from, options) in watches {
        sender.watch(from, Some(options)).await.map_err(|error| SessionEnd::from(RpcFailure::of(&error)))?;
    }
    Ok((sender, stream))
}

fn check_store_id(expected: u64, found: u64) -> Result<(), SessionEnd> {
    if found == 0 {
        return Err(SessionEnd::lost("the store answers without a cluster id"));
    }
    if expected != found {
        return Err(SessionEnd::lost("the store lost its history"));
    }
    Ok(())
}
