//! The task of one cluster: carries out what its reader commands.

use std::{collections::BTreeMap, future, mem, sync::Arc, time::Duration};

use etcd_client::{Client, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream};
use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use meshd_core::{
    clustermesh::reader::{Command, Input, Output, Reader, Settings, Target},
    observed::Change,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{debug, info, warn};

use super::{Shared, convert};
use crate::store::{RpcFailure, StoreAddress, chain};

/// Largest message read from a store. A page of records is far smaller; a single record may have 1.5 MiB.
const MESSAGE_MAX: usize = 16 * 1024 * 1024;
/// How long an answer to a list may take.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long opening the watch stream may take.
const WATCH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a list may hold its place among the lists under way: a store that answers slowly must not hold up others.
const PERMIT_TIME: Duration = Duration::from_secs(2);

/// Answer of a call under way.
enum Reply {
    Input(Input),
    /// The watch stream is open.
    Watch(Result<(WatchRequestSender, WatchResponseStream), RpcFailure>),
}

/// What exists only while there is a connection. Dropping it drops all answers under way.
#[derive(Default)]
struct Connection {
    client: Option<Client>,
    replies: FuturesUnordered<BoxFuture<'static, Reply>>,
    watch: WatchStream,
    watch_ids: BTreeMap<i64, Target>,
    next_watch_id: i64,
}

/// The one watch stream of a connection; etcd opens it with the first watch.
#[derive(Default)]
enum WatchStream {
    #[default]
    None,
    /// Being opened with one watch; these follow.
    Opening(Vec<(Vec<u8>, WatchOptions)>),
    Open(WatchRequestSender, Box<WatchResponseStream>),
}

/// Reads one cluster until the pipeline is gone.
pub(super) struct ClusterTask {
    settings: Settings,
    address: StoreAddress,
    shared: Arc<Shared>,
    changes: mpsc::Sender<Change>,
    reader: Reader,
    connection: Connection,
}

impl ClusterTask {
    pub(super) fn new(
        settings: Settings,
        address: StoreAddress,
        shared: Arc<Shared>,
        changes: mpsc::Sender<Change>,
    ) -> Self {
        let listed_from = shared.listed_from(&settings.cluster);
        let reader = Reader::new(Settings { listed_from, ..settings.clone() });
        Self { settings, address, shared, changes, reader, connection: Connection::default() }
    }

    /// Runs until nobody takes changes any more. `after` spreads the first connections of many clusters out.
    pub(super) async fn run(mut self, after: Duration) {
        let mut out = Output::default();
        self.reader.start(after, &mut out);
        loop {
            if self.tell(&mut out).await.is_err() {
                return;
            }
            let mut commands = mem::take(&mut out.commands).into_iter();
            let mut answered = false;
            for command in commands.by_ref() {
                if let Some(input) = self.carry_out(command).await {
                    self.reader.handle(input, self.shared.now(), &mut out);
                    answered = true;
                    break;
                }
            }
            // An answer at once may have changed everything: what was left is carried out before what it asked for.
            let rest: Vec<Command> = commands.collect();
            if answered {
                out.commands.splice(0..0, rest);
                continue;
            }
            let input = self.connection.next(self.reader.deadline().map(|due| self.shared.instant(due))).await;
            if let Some(input) = input {
                self.reader.handle(input, self.shared.now(), &mut out);
            }
        }
    }

    /// Sends rows to the pipeline. Waiting here is what slows the store down: nothing more is read meanwhile.
    async fn tell(&mut self, out: &mut Output) -> Result<(), mpsc::error::SendError<Change>> {
        if out.changes.is_empty() {
            return Ok(());
        }
        self.shared.set_listed_from(&self.settings.cluster, self.reader.listed_from());
        let change = Change::Cluster(self.settings.cluster.clone(), mem::take(&mut out.changes));
        self.changes.send(change).await
    }

    /// Starts what is asked for; some things are answered at once.
    async fn carry_out(&mut self, command: Command) -> Option<Input> {
        match command {
            Command::Connect { after } => Some(self.connect(after).await),
            Command::Claim(id) => Some(Input::Claimed(self.shared.claim(id, &self.settings.cluster))),
            Command::List { target, from, end, revision, limit } => {
                let kv = self.connection.client.as_ref()?.kv_client().max_decoding_message_size(MESSAGE_MAX);
                let options = convert::get_options(end, revision, limit);
                let lists = self.shared.lists.clone();
                self.connection.replies.push(Box::pin(async move {
                    Reply::Input(convert::page(target, list(kv, from, options, lists).await))
                }));
                None
            }
            Command::Watch { target, from, end, revision } => self.connection.watch(target, from, end, revision).await,
        }
    }

    async fn connect(&mut self, after: Duration) -> Input {
        // Answers of the old connection go with it.
        self.connection = Connection::default();
        sleep(after).await;
        let permit = timed_permit(&self.shared.connects).await;
        let connected = self.address.connect().await;
        drop(permit);
        let cluster = &self.settings.cluster;
        match connected {
            Ok(client) => {
                info!(%cluster, "connected to the store");
                self.connection.client = Some(client);
                Input::Connected
            }
            Err(error) => {
                let reason = format!("failed to connect to the store of {cluster}: {}", chain(&error));
                // Told once: a store that stays away is a problem in `status`, not a line every 30 seconds.
                if self.reader.row().problem.as_ref().is_none_or(|problem| *problem.message != *reason) {
                    warn!(%cluster, reason, "no connection to the store");
                } else {
                    debug!(%cluster, reason, "still no connection to the store");
                }
                Input::Lost(reason.into())
            }
        }
    }
}

impl Connection {
    /// The next thing that happens. `None` when it concerns only the connection itself.
    async fn next(&mut self, deadline: Option<Instant>) -> Option<Input> {
        let due = async {
            match deadline {
                Some(due) => sleep_until(due).await,
                None => future::pending().await,
            }
        };
        let Self { replies, watch, watch_ids, .. } = self;
        tokio::select! {
            Some(reply) = replies.next(), if !replies.is_empty() => match reply {
                Reply::Input(input) => Some(input),
                Reply::Watch(Ok(opened)) => self.watch_opened(opened).await,
                Reply::Watch(Err(failure)) => {
                    Some(Input::Lost(format!("failed to open the watch stream: {}", failure.text()).into()))
                }
            },
            message = watch.message() => match message {
                Ok(Some(message)) => {
                    let target = *watch_ids.get(&message.watch_id())?;
                    if message.canceled() {
                        watch_ids.remove(&message.watch_id());
                    }
                    Some(convert::watch_message(target, message))
                }
                Ok(None) => Some(Input::Lost("the store ended the watch stream".into())),
                Err(error) => Some(Input::Lost(format!("the watch stream broke: {}", RpcFailure::of(&error).text()).into())),
            },
            () = due => Some(Input::Tick),
        }
    }

    async fn watch(&mut self, target: Target, from: Vec<u8>, end: Vec<u8>, revision: i64) -> Option<Input> {
        let client = self.client.as_ref()?;
        self.next_watch_id += 1;
        let id = self.next_watch_id;
        // A watch that replaces another one of the same range makes the late events of the old one nobody's.
        self.watch_ids.retain(|_, of| *of != target);
        self.watch_ids.insert(id, target);
        let options = convert::watch_options(id, end, revision);
        match &mut self.watch {
            WatchStream::None => {
                let mut watch = client.watch_client().max_decoding_message_size(MESSAGE_MAX);
                self.watch = WatchStream::Opening(Vec::new());
                self.replies.push(Box::pin(async move {
                    Reply::Watch(match timeout(WATCH_TIMEOUT, watch.watch(from, Some(options))).await {
                        Ok(Ok(stream)) => Ok(stream.split()),
                        Ok(Err(error)) => Err(RpcFailure::of(&error)),
                        Err(_) => Err(RpcFailure::Lost(format!("no answer within {} s", WATCH_TIMEOUT.as_secs()))),
                    })
                }));
                None
            }
            // Bounded: a reader opens one watch per range.
            WatchStream::Opening(waiting) => {
                waiting.push((from, options));
                None
            }
            WatchStream::Open(sender, _) => send_watch(sender, from, options).await,
        }
    }

    async fn watch_opened(&mut self, (mut sender, stream): (WatchRequestSender, WatchResponseStream)) -> Option<Input> {
        let waiting = match mem::take(&mut self.watch) {
            WatchStream::Opening(waiting) => waiting,
            WatchStream::None | WatchStream::Open(..) => Vec::new(),
        };
        for (from, options) in waiting {
            if let Some(lost) = send_watch(&mut sender, from, options).await {
                return Some(lost);
            }
        }
        self.watch = WatchStream::Open(sender, Box::new(stream));
        None
    }
}

impl WatchStream {
    async fn message(&mut self) -> Result<Option<WatchResponse>, etcd_client::Error> {
        match self {
            Self::Open(_, stream) => stream.message().await,
            Self::None | Self::Opening(_) => future::pending().await,
        }
    }
}

async fn send_watch(sender: &mut WatchRequestSender, from: Vec<u8>, options: WatchOptions) -> Option<Input> {
    let error = sender.watch(from, Some(options)).await.err()?;
    Some(Input::Lost(format!("failed to ask for a watch: {}", chain(&error)).into()))
}

/// One page. The permit bounds how many pages of all clusters are in memory at once.
async fn list(
    mut kv: etcd_client::KvClient,
    from: Vec<u8>,
    options: etcd_client::GetOptions,
    lists: Arc<Semaphore>,
) -> Result<etcd_client::proto::PbRangeResponse, RpcFailure> {
    let permit = timed_permit(&lists).await;
    let answer = async {
        match timeout(LIST_TIMEOUT, kv.get(from, Some(options))).await {
            Ok(Ok(answer)) => Ok(answer.0),
            Ok(Err(error)) => Err(RpcFailure::of(&error)),
            Err(_) => Err(RpcFailure::Lost(format!("a list was not answered within {} s", LIST_TIMEOUT.as_secs()))),
        }
    };
    tokio::pin!(answer);
    match timeout(PERMIT_TIME, &mut answer).await {
        Ok(answer) => answer,
        Err(_) => {
            drop(permit);
            answer.await
        }
    }
}

/// A place among the ones that work; nobody waits for it longer than others may hold it.
async fn timed_permit(semaphore: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    semaphore.clone().acquire_owned().await.ok()
}
