//! One connection to one member of a store.

use std::{future, net::SocketAddr, sync::Mutex, time::Duration};

use etcd_client::{Channel as EtcdChannel, Client, ConnectOptions};
use hyper_util::rt::TokioIo;
use rand::seq::SliceRandom as _;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint as TonicEndpoint, Uri};

use super::{ConnectError, RemoteStore, StoreAddress, chain, error::MemberError, tls};
use crate::config::model::Endpoint;

/// How long resolving, connecting and the TLS handshake with one member may take, each.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The shortest pause between two pings that etcd allows unless it is told otherwise (`--grpc-keepalive-min-time`). It ends a connection on
/// which several came sooner with `too_many_pings`, and any on which they come while no call is open.
const PING_INTERVAL_OF_ETCD: Duration = Duration::from_secs(5);
/// Pause between two HTTP/2 pings while a call is open, which a watch always is. What etcd measures is when they arrive, so the pause is longer
/// than what it allows by more than packets are delayed.
const PING_INTERVAL: Duration = Duration::from_secs(6);
/// A ping unanswered for this long ends the connection, so that a store whose packets vanish is given up at most eleven seconds later.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
const _: () = assert!(PING_INTERVAL.as_secs() > PING_INTERVAL_OF_ETCD.as_secs(), "etcd would end idle connections");
/// Bytes one call may have in flight to us before we read them.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Bytes all calls together may have in flight to us before we read them.
const CONNECTION_WINDOW: u32 = 512 * 1024;

/// What a connection is carried by.
trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

impl StoreAddress {
    /// Connects to the first member that answers, in random order.
    ///
    /// # Errors
    /// [`ConnectError`] with the reason of every member.
    pub async fn connect(&self) -> Result<Client, ConnectError> {
        let channel = match self {
            Self::Remote(remote) => remote.channel().await?,
            Self::Local(channel) => channel.clone(),
        };
        let options = ConnectOptions::new().with_require_leader(true);
        Client::from_channel(EtcdChannel::Tonic(channel), Some(options))
            .await
            .map_err(|error| ConnectError::Unreachable(chain(&error)))
    }
}

impl RemoteStore {
    async fn channel(&self) -> Result<Channel, ConnectError> {
        let mut endpoints: Vec<&Endpoint> = self.endpoints.iter().collect();
        endpoints.shuffle(&mut rand::rng());
        let connector = match (&self.tls, endpoints.iter().find(|endpoint| endpoint.is_tls())) {
            (Some(files), Some(_)) => Some(TlsConnector::from(tls::client_config(files)?)),
            (None, Some(endpoint)) => return Err(ConnectError::NoTlsFiles(endpoint.to_string())),
            (_, None) => None,
        };
        let mut reasons = Vec::new();
        for endpoint in endpoints {
            match self.dial(endpoint, connector.as_ref()).await {
                Ok(transport) => return http2(endpoint, transport).await,
                Err(error) => reasons.push(format!("{endpoint}: {error}")),
            }
        }
        if reasons.is_empty() {
            return Err(ConnectError::NoEndpoints);
        }
        Err(ConnectError::Unreachable(reasons.join("; ")))
    }

    /// Builds TCP and, for https, TLS.
    async fn dial(&self, endpoint: &Endpoint, tls: Option<&TlsConnector>) -> Result<Box<dyn Transport>, MemberError> {
        let addresses = limited("resolving the name", self.resolve(endpoint)).await??;
        let mut last = None;
        for address in addresses {
            match limited("connecting", TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    let nodelay = stream.set_nodelay(true);
                    nodelay.map_err(|source| MemberError::Tcp { address, source })?;
                    return match tls.filter(|_| endpoint.is_tls()) {
                        Some(tls) => handshake(endpoint, tls, stream).await,
                        None => Ok(Box::new(stream)),
                    };
                }
                Ok(Err(source)) => last = Some(MemberError::Tcp { address, source }),
                Err(late) => last = Some(late),
            }
        }
        Err(last.unwrap_or_else(|| MemberError::NoAddress(endpoint.host().to_owned())))
    }

    async fn resolve(&self, endpoint: &Endpoint) -> Result<Vec<SocketAddr>, MemberError> {
        let (host, port) = (endpoint.host(), endpoint.port());
        if let Some(known) = self.host_aliases.get(host) {
            return Ok(known.iter().map(|ip| SocketAddr::new(*ip, port)).collect());
        }
        match lookup_host((host, port)).await {
            Ok(found) => Ok(found.collect()),
            Err(source) => Err(MemberError::Resolve { name: host.to_owned(), source }),
        }
    }
}

async fn handshake(
    endpoint: &Endpoint,
    tls: &TlsConnector,
    stream: TcpStream,
) -> Result<Box<dyn Transport>, MemberError> {
    let host = endpoint.host();
    let name = ServerName::try_from(host.to_owned()).map_err(|_| MemberError::ServerName(host.to_owned()))?;
    let stream = limited("the TLS handshake", tls.connect(name, stream)).await?;
    Ok(Box::new(stream.map_err(|source| MemberError::Handshake { source })?))
}

async fn limited<T>(step: &'static str, work: impl Future<Output = T>) -> Result<T, MemberError> {
    timeout(CONNECT_TIMEOUT, work).await.map_err(|_| MemberError::Timeout { step, after: CONNECT_TIMEOUT })
}

/// Speaks HTTP/2 over `transport`, and over nothing else: a second connection is never made, so that its loss is seen.
async fn http2(endpoint: &Endpoint, transport: Box<dyn Transport>) -> Result<Channel, ConnectError> {
    let failed =
        |error: tonic::transport::Error| ConnectError::Http2 { endpoint: endpoint.to_string(), reason: chain(&error) };
    let uri = |text: String| {
        text.parse::<Uri>()
            .map_err(|error| ConnectError::Http2 { endpoint: endpoint.to_string(), reason: error.to_string() })
    };
    // The connector brings its own TLS, so tonic is told of plain HTTP; the requests still name the real origin.
    let plain = endpoint.to_string().replacen("https://", "http://", 1);
    let once = Mutex::new(Some(transport));
    let connector = tower::service_fn(move |_: Uri| {
        let transport = once.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        future::ready(match transport {
            Some(transport) => Ok(TokioIo::new(transport)),
            None => Err(std::io::Error::new(std::io::ErrorKind::ConnectionReset, "the connection to the store ended")),
        })
    });
    TonicEndpoint::from(uri(plain)?)
        .origin(uri(endpoint.to_string())?)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(false)
        .connect_with_connector(connector)
        .await
        .map_err(failed)
}
