//! Connections: from a TCP socket to a request with a user, and the services that answer.
//!
//! One port carries HTTP/2 for gRPC and HTTP/1.1 for `GET /version` and `GET /health`; the first bytes of the
//! connection decide, whatever ALPN said, so the same code serves loopback without TLS. The user is worked out once
//! per connection and travels with each request as an extension. Permissions are looked up per request, so that a
//! reload counts at once.

mod auth;
mod carry;
mod cluster;
mod http;
mod kv;
mod lease;
mod maintenance;
pub(crate) mod tls;
mod user;
mod watch;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ::http::header::CONTENT_TYPE;
use etcd_client::proto::{
    PbClusterServer, PbKvServer, PbLeaseServer, PbMaintenanceServer, PbResponseHeader, PbWatchServer,
};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};
use tower::{Service as _, service_fn};

use crate::engine::{EngineError, Revision};
use crate::store::{Shared, StoreError};
use tls::{ServerTls, common_name};
use user::Peer;

/// How long a client may take for its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to send the head of an HTTP/1.1 request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which a connection is probed, and how long the answer may take.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests one connection may have in flight.
const STREAMS_PER_CONNECTION_MAX: u32 = 1_024;
/// What a stream may send before the server has to read it.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
/// The same for a whole connection.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// What is buffered for one stream towards the client.
const STREAM_SEND_BYTES: usize = 256 << 10;
/// Room for the frame around a request of the largest size, as in etcd.
const REQUEST_OVERHEAD_BYTES: usize = 512 << 10;
/// How long running requests may take once the listener closes.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after the system refused a connection, for instance for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Buffer of a connection inside the process.
const LOCAL_BUFFER_BYTES: usize = 64 << 10;
/// What a stream of such a connection may hold unread, and all streams together. The second is much larger, so that a
/// watch that is not read does not hold up the answers to requests.
const LOCAL_STREAM_WINDOW_BYTES: u32 = 256 << 10;
const LOCAL_CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

impl Shared {
    /// The header of an answer.
    fn header(&self, revision: Revision) -> Option<PbResponseHeader> {
        Some(PbResponseHeader {
            cluster_id: self.identity.cluster_id,
            member_id: self.identity.member_id,
            revision: revision.0,
            raft_term: self.identity.term,
        })
    }

    /// Completes the header of an answer the engine made.
    fn stamp(&self, header: &mut Option<PbResponseHeader>) {
        let revision = header.as_ref().map_or(0, |header| header.revision);
        *header = self.header(Revision(revision));
    }
}

/// Accepts connections until `shutdown`.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    listener: TcpListener,
    tls: Option<ServerTls>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), StoreError> {
    let address = listener.local_addr().map_err(StoreError::Listener)?;
    let encrypted = tls.is_some();
    match tls {
        Some(tls) => {
            let config = tls.to_config()?;
            *shared.tls.write().unwrap_or_else(PoisonError::into_inner) = Some(config);
        }
        None if !address.ip().is_loopback() => return Err(StoreError::PlaintextNotLoopback { address }),
        None => {}
    }
    let permits = Arc::new(Semaphore::new(shared.options.connections_max));
    let drain = CancellationToken::new();
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            () = shared.stop.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = accept(&listener, &permits) => accepted,
        };
        let (stream, client, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%address, %error, "store cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let shared = Arc::clone(&shared);
        let drain = drain.clone();
        connections.spawn(async move {
            shared.connections.fetch_add(1, Ordering::Relaxed);
            let outcome = connection(&shared, stream, encrypted, drain).await;
            shared.connections.fetch_sub(1, Ordering::Relaxed);
            drop(permit);
            if let Err(error) = outcome {
                tracing::debug!(%client, %error, "store connection ended");
            }
        });
    }
    drop(listener);
    drain.cancel();
    let drained = tokio::time::timeout(DRAIN_TIMEOUT, async { while connections.join_next().await.is_some() {} });
    if drained.await.is_err() {
        let count = connections.len();
        connections.shutdown().await;
        shared.connections.fetch_sub(count, Ordering::Relaxed);
    }
    Ok(())
}

/// A channel to the store in this process; each connection it makes is a pipe with a task at the other end.
pub(crate) fn local_channel(shared: &Arc<Shared>) -> Channel {
    let store = Arc::downgrade(shared);
    let connector = service_fn(move |_: ::http::Uri| {
        let store = store.clone();
        async move {
            let Some(shared) = store.upgrade() else {
                return Err(std::io::Error::new(std::io::ErrorKind::NotConnected, EngineError::Stopped.to_string()));
            };
            let (client, server) = tokio::io::duplex(LOCAL_BUFFER_BYTES);
            let drain = shared.stop.clone();
            tokio::spawn(async move {
                if let Err(error) = requests(&shared, server, Peer::Root, drain).await {
                    tracing::debug!(%error, "local store connection ended");
                }
            });
            Ok(TokioIo::new(client))
        }
    });
    Endpoint::from_static("http://store.local")
        .initial_stream_window_size(LOCAL_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(LOCAL_CONNECTION_WINDOW_BYTES)
        .connect_with_connector_lazy(connector)
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    // Beyond the bound clients wait in the backlog of the listener.
    let permit = Arc::clone(permits).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, client) = listener.accept().await?;
    Ok((stream, client, permit))
}

/// Why a connection ended early.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("TLS handshake took too long")]
    HandshakeTimeout,
    #[error("TLS handshake failed: {0}")]
    Handshake(std::io::Error),
    #[error("server has no certificates")]
    NoCertificates,
    #[error("{0}")]
    Http(Box<dyn std::error::Error + Send + Sync>),
}

async fn connection(
    shared: &Arc<Shared>,
    stream: TcpStream,
    encrypted: bool,
    drain: CancellationToken,
) -> Result<(), ConnectionError> {
    // Without it small answers wait for the acknowledgement of the one before.
    stream.set_nodelay(true).map_err(ConnectionError::Handshake)?;
    if !encrypted {
        return requests(shared, stream, Peer::Root, drain).await;
    }
    let config = shared.tls.read().unwrap_or_else(PoisonError::into_inner).clone();
    let acceptor = TlsAcceptor::from(config.ok_or(ConnectionError::NoCertificates)?);
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
        .await
        .map_err(|_| ConnectionError::HandshakeTimeout)?
        .map_err(ConnectionError::Handshake)?;
    let certificates = stream.get_ref().1.peer_certificates();
    let name = certificates.and_then(<[_]>::first).map(common_name).unwrap_or_default();
    requests(shared, stream, Peer::User(name.into()), drain).await
}

async fn requests(
    shared: &Arc<Shared>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    drain: CancellationToken,
) -> Result<(), ConnectionError> {
    let routes = routes(shared);
    let plain = Arc::clone(shared);
    let service = hyper::service::service_fn(move |mut request: ::http::Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let mut routes = routes.clone();
        let plain = Arc::clone(&plain);
        async move {
            if is_grpc(&request) {
                routes.call(request.map(Body::new)).await.map(carry::carry)
            } else {
                Ok(http::answer(&plain, request.method(), request.uri().path()))
            }
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(STREAM_SEND_BYTES);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        outcome = connection.as_mut() => return outcome.map_err(ConnectionError::Http),
        () = drain.cancelled() => {}
        () = shared.stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    // Watches and keep-alive streams never end by themselves.
    match tokio::time::timeout(DRAIN_TIMEOUT, connection).await {
        Ok(outcome) => outcome.map_err(ConnectionError::Http),
        Err(_) => Ok(()),
    }
}

fn is_grpc(request: &::http::Request<Incoming>) -> bool {
    let kind = request.headers().get(CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

fn routes(shared: &Arc<Shared>) -> Routes {
    let request_max = shared.options.limits.request_bytes_max + REQUEST_OVERHEAD_BYTES;
    let kv = PbKvServer::new(kv::Kv::new(Arc::clone(shared))).max_decoding_message_size(request_max);
    Routes::new(kv)
        .add_service(PbWatchServer::new(watch::Watch::new(Arc::clone(shared))))
        .add_service(PbLeaseServer::new(lease::Lease::new(Arc::clone(shared))))
        .add_service(PbClusterServer::new(cluster::Cluster::new(Arc::clone(shared))))
        .add_service(PbMaintenanceServer::new(maintenance::Maintenance::new(Arc::clone(shared))))
        .add_service(auth::Auth::new(Arc::clone(shared)))
        .prepare()
}
