//! The Watch service: one task per client stream, which pulls events out of the history as fast as the client reads.

use std::sync::Arc;

use etcd_client::proto::{PbEvent, PbWatchRequest, PbWatchRequestUnion, PbWatchResponse, PbWatchService};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::user::Peer;
use crate::engine::{EngineError, KeySpan, Record, Revision};
use crate::store::Shared;
use crate::watch::{Batch, Cancelled, StreamId, WatchSpec};

/// Responses that wait for the connection of a stream. Events stay in the history until there is room.
const RESPONSES_MAX: usize = 2;
/// A response of a watch that allows fragments is split when it grows beyond this.
const FRAGMENT_BYTES: usize = 1 << 20;
/// Watch id of answers that belong to no watch.
const NO_WATCH: i64 = -1;
/// Wire values of filters.
const FILTER_NO_PUT: i32 = 0;
const FILTER_NO_DELETE: i32 = 1;
/// Wire values of event types.
const EVENT_PUT: i32 = 0;
const EVENT_DELETE: i32 = 1;

/// Serves watches.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    shared: Arc<Shared>,
}

impl Watch {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

#[tonic::async_trait]
impl PbWatchService for Watch {
    type WatchStream = BoxStream<PbWatchResponse>;

    async fn watch(&self, request: Request<Streaming<PbWatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let peer = Peer::of(&request)?;
        if let Peer::User(_) = &peer {
            peer.access(&self.shared.auth_table())?;
        }
        let (responses, stream) = mpsc::channel(RESPONSES_MAX);
        let opened = self.shared.watches().open(&peer.name());
        let (id, waker) = opened.map_err(|reason| Status::resource_exhausted(reason.to_string()))?;
        let task = StreamTask { shared: Arc::clone(&self.shared), peer, id, waker, responses, progress_asked: false };
        tokio::spawn(task.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// The client is gone or the store stops; either way the stream is over.
struct StreamOver;

struct StreamTask {
    shared: Arc<Shared>,
    peer: Peer,
    id: StreamId,
    waker: Arc<Notify>,
    responses: mpsc::Sender<Result<PbWatchResponse, Status>>,
    /// The client asked how far the store is and has not been told yet.
    progress_asked: bool,
}

impl Drop for StreamTask {
    fn drop(&mut self) {
        self.shared.watches().close(self.id);
    }
}

impl StreamTask {
    async fn run(mut self, mut requests: Streaming<PbWatchRequest>) {
        let mut progress = tokio::time::interval(self.shared.options.watch_progress_interval);
        progress.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The first tick is now.
        progress.tick().await;
        let mut auth = self.shared.auth.subscribe();
        let stop = self.shared.stop.clone();
        let waker = Arc::clone(&self.waker);
        loop {
            let outcome = tokio::select! {
                () = stop.cancelled() => Err(StreamOver),
                () = self.responses.closed() => Err(StreamOver),
                message = requests.message() => match message {
                    Ok(Some(request)) => self.request(request).await,
                    Ok(None) | Err(_) => Err(StreamOver),
                },
                () = waker.notified() => self.pump().await,
                changed = auth.changed() => match changed {
                    Ok(()) => self.cancel_forbidden().await,
                    Err(_) => Err(StreamOver),
                },
                _ = progress.tick() => self.report_progress().await,
            };
            if outcome.is_err() {
                if stop.is_cancelled() {
                    // Without room the client learns it from the end of the connection.
                    let _ = self.responses.try_send(Err(EngineError::Stopped.into()));
                }
                return;
            }
        }
    }

    async fn request(&mut self, request: PbWatchRequest) -> Result<(), StreamOver> {
        match request.request_union {
            Some(PbWatchRequestUnion::CreateRequest(create)) => {
                let key = if create.key.is_empty() { vec![0] } else { create.key };
                let spec = WatchSpec {
                    span: KeySpan::from_wire(&key, &create.range_end),
                    start: (create.start_revision != 0).then_some(Revision(create.start_revision)),
                    prev_kv: create.prev_kv,
                    progress: create.progress_notify,
                    fragment: create.fragment,
                    no_put: create.filters.contains(&FILTER_NO_PUT),
                    no_delete: create.filters.contains(&FILTER_NO_DELETE),
                };
                self.create(create.watch_id, spec).await
            }
            Some(PbWatchRequestUnion::CancelRequest(cancel)) => {
                let cancelled = self.shared.watches().hub.cancel(self.id, cancel.watch_id);
                if cancelled { self.send_cancelled(cancel.watch_id, String::new()).await } else { Ok(()) }
            }
            Some(PbWatchRequestUnion::ProgressRequest(_)) => {
                self.progress_asked = true;
                self.pump().await
            }
            None => Ok(()),
        }
    }

    async fn create(&mut self, id: i64, spec: WatchSpec) -> Result<(), StreamOver> {
        let permitted = self.may_read(&spec.span);
        if !permitted {
            let reason = format!("rpc error: code = PermissionDenied desc = {}", EngineError::PermissionDenied);
            return self.send_refused(reason).await;
        }
        let created = self.shared.watches().hub.create(self.id, id, spec);
        match created {
            Ok(created) => {
                self.send(PbWatchResponse {
                    header: self.shared.header(created.revision),
                    watch_id: created.id,
                    created: true,
                    ..PbWatchResponse::default()
                })
                .await?;
                self.pump().await
            }
            Err(reason @ (Cancelled::EmptySpan | Cancelled::DuplicateId | Cancelled::TooMany)) => {
                self.send_refused(reason.to_string()).await
            }
        }
    }

    /// Sends one batch of every watch that has something to tell, and comes back for the rest after the client's
    /// requests had their turn.
    async fn pump(&mut self) -> Result<(), StreamOver> {
        let dirty = self.shared.watches().hub.dirty(self.id);
        for watch in dirty {
            let batch = {
                let mut watches = self.shared.watches();
                let engine = self.shared.engine();
                watches.hub.take(self.id, watch, &engine)
            };
            match batch {
                Some(Batch::Events { watch, revision, events, fragment }) => {
                    self.send_events(watch, revision, &events, fragment).await?
                }
                Some(Batch::Compacted { watch, revision, compacted }) => {
                    self.send(PbWatchResponse {
                        header: self.shared.header(revision),
                        watch_id: watch,
                        canceled: true,
                        compact_revision: compacted.0,
                        ..PbWatchResponse::default()
                    })
                    .await?;
                }
                None => {}
            }
        }
        let caught_up = {
            let watches = self.shared.watches();
            watches.hub.dirty(self.id).is_empty().then(|| watches.hub.published())
        };
        match caught_up {
            Some(revision) if self.progress_asked => {
                self.progress_asked = false;
                self.send_progress(NO_WATCH, revision).await
            }
            Some(_) => Ok(()),
            None => {
                self.waker.notify_one();
                Ok(())
            }
        }
    }

    async fn report_progress(&mut self) -> Result<(), StreamOver> {
        let (revision, silent) = self.shared.watches().hub.silent(self.id);
        for watch in silent {
            self.send_progress(watch, revision).await?;
        }
        Ok(())
    }

    async fn cancel_forbidden(&mut self) -> Result<(), StreamOver> {
        let spans = self.shared.watches().hub.spans(self.id);
        for (watch, span) in spans {
            if !self.may_read(&span) && self.shared.watches().hub.cancel(self.id, watch) {
                self.send_cancelled(watch, EngineError::PermissionDenied.to_string()).await?;
            }
        }
        Ok(())
    }

    fn may_read(&self, span: &KeySpan) -> bool {
        let access = self.peer.access(&self.shared.auth_table());
        // Nothing can happen in an empty span; that it is empty is the better answer.
        access.is_ok_and(|access| span.is_empty() || access.reads(span))
    }

    async fn send_events(
        &self,
        watch: i64,
        revision: Revision,
        events: &[(Arc<Record>, Option<Arc<Record>>)],
        fragment: bool,
    ) -> Result<(), StreamOver> {
        let mut rest = events;
        while !rest.is_empty() {
            let take = if fragment { fragment_len(rest) } else { rest.len() };
            let (now, later) = rest.split_at(take);
            self.send(PbWatchResponse {
                header: self.shared.header(revision),
                watch_id: watch,
                fragment: !later.is_empty(),
                events: now.iter().map(|(record, before)| event(record, before.as_deref())).collect(),
                ..PbWatchResponse::default()
            })
            .await?;
            rest = later;
        }
        Ok(())
    }

    async fn send_progress(&self, watch: i64, revision: Revision) -> Result<(), StreamOver> {
        self.send(PbWatchResponse {
            header: self.shared.header(revision),
            watch_id: watch,
            ..PbWatchResponse::default()
        })
        .await
    }

    async fn send_cancelled(&self, watch: i64, reason: String) -> Result<(), StreamOver> {
        let revision = self.shared.watches().hub.published();
        self.send(PbWatchResponse {
            header: self.shared.header(revision),
            watch_id: watch,
            canceled: true,
            cancel_reason: reason,
            ..PbWatchResponse::default()
        })
        .await
    }

    async fn send_refused(&self, reason: String) -> Result<(), StreamOver> {
        let revision = self.shared.watches().hub.published();
        self.send(PbWatchResponse {
            header: self.shared.header(revision),
            watch_id: NO_WATCH,
            created: true,
            canceled: true,
            cancel_reason: reason,
            ..PbWatchResponse::default()
        })
        .await
    }

    async fn send(&self, response: PbWatchResponse) -> Result<(), StreamOver> {
        tokio::select! {
            () = self.shared.stop.cancelled() => Err(StreamOver),
            sent = self.responses.send(Ok(response)) => sent.map_err(|_| StreamOver),
        }
    }
}

/// How many of the events fit into one fragment; at least one.
fn fragment_len(events: &[(Arc<Record>, Option<Arc<Record>>)]) -> usize {
    let mut bytes = 0;
    let fitting = events.iter().take_while(|(record, before)| {
        bytes += record.cost_bytes() + before.as_ref().map_or(0, |before| before.cost_bytes());
        bytes <= FRAGMENT_BYTES
    });
    fitting.count().max(1)
}

fn event(record: &Record, before: Option<&Record>) -> PbEvent {
    PbEvent {
        r#type: if record.is_tombstone() { EVENT_DELETE } else { EVENT_PUT },
        kv: Some(record.to_wire(false)),
        prev_kv: before.map(|before| before.to_wire(false)),
    }
}
