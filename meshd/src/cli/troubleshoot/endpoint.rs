//! Name, TCP, TLS and version of every endpoint.

use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::Target;
use super::files::OwnCertificate;
use super::handshake;
use super::report::{Diagnosis, Report};
use crate::config::error::chain;
use crate::config::model::Endpoint;

/// Longest answer to `GET /version`.
const VERSION_BYTES_MAX: usize = 64 << 10;

/// An endpoint that answered.
pub(super) struct Reached {
    /// The endpoint.
    pub(super) endpoint: Endpoint,
    /// The address behind it.
    pub(super) address: SocketAddr,
}

/// Checks every endpoint; the first one that answers is used for the rest.
pub(super) async fn check(
    report: &mut Report,
    target: &Target,
    own: Option<&OwnCertificate>,
    step: Duration,
) -> Option<Reached> {
    let mut reached = None;
    for endpoint in &target.endpoints {
        let Some(addresses) = resolve(report, target, endpoint, step).await else { continue };
        for address in addresses {
            if let Some(stream) = connect(report, endpoint, address, step).await
                && talk(report, target, endpoint, own, stream, step).await
                && reached.is_none()
            {
                reached = Some(Reached { endpoint: endpoint.clone(), address });
            }
        }
    }
    reached
}

async fn resolve(report: &mut Report, target: &Target, endpoint: &Endpoint, step: Duration) -> Option<Vec<SocketAddr>> {
    let (host, port) = (endpoint.host(), endpoint.port());
    if let Ok(address) = host.parse::<IpAddr>() {
        return Some(vec![SocketAddr::new(address, port)]);
    }
    if let Some(addresses) = target.host_aliases.get(host).filter(|addresses| !addresses.is_empty()) {
        report.ok("dns", host, format!("{} (host alias)", joined(addresses)));
        return Some(addresses.iter().map(|address| SocketAddr::new(*address, port)).collect());
    }
    let found = match timeout(step, lookup_host((host, port))).await {
        Ok(Ok(found)) => Ok(found.collect::<Vec<_>>()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", step.as_secs_f32())),
    };
    match found {
        Ok(addresses) if !addresses.is_empty() => {
            let ips: Vec<IpAddr> = addresses.iter().map(SocketAddr::ip).collect();
            report.ok("dns", host, joined(&ips));
            Some(addresses)
        }
        other => {
            let why = other.err().unwrap_or_else(|| "it has no address".to_owned());
            report.fail(
                "dns",
                host,
                Diagnosis::new(
                    format!("the name {host} cannot be resolved: {why}"),
                    "unresolvable name: misspelt, in no DNS this node asks, or the DNS server is down",
                    "correct the endpoint, or give its address with host_aliases, /etc/hosts or DNS",
                ),
            );
            None
        }
    }
}

async fn connect(report: &mut Report, endpoint: &Endpoint, address: SocketAddr, step: Duration) -> Option<TcpStream> {
    let target = format!("{endpoint} ({address})");
    let diagnosis = match timeout(step, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            report.ok("tcp", target, "connected");
            return Some(stream);
        }
        Ok(Err(error)) => match error.kind() {
            io::ErrorKind::ConnectionRefused => Diagnosis::new(
                format!("{address} refused the connection"),
                "refused port: nothing listens there; the store is down or uses another port",
                "check the port (NodePort is usually 32379), and on the other side: ss -ltn, systemctl status meshd",
            ),
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Diagnosis::new(
                format!("{address} cannot be reached: {error}"),
                "this node has no route to it, or a router on the way has none",
                format!("look at: ip route get {}", address.ip()),
            ),
            _ => Diagnosis::new(
                format!("the connection to {address} failed: {error}"),
                "the network between the two nodes",
                format!("look at: ip route get {}", address.ip()),
            ),
        },
        Err(_) => Diagnosis::new(
            format!("{address} did not answer within {} s", step.as_secs_f32()),
            "a firewall drops the packets, or the node is down",
            format!("look at: ip route get {}; allow TCP port {}", address.ip(), address.port()),
        ),
    };
    report.fail("tcp", target, diagnosis);
    None
}

/// TLS, where there is any, and the version.
async fn talk(
    report: &mut Report,
    target: &Target,
    endpoint: &Endpoint,
    own: Option<&OwnCertificate>,
    stream: TcpStream,
    step: Duration,
) -> bool {
    let name = endpoint.to_string();
    if !endpoint.is_tls() {
        report.warn(
            "tls",
            &name,
            Diagnosis::new(
                "the connection is not encrypted",
                "the endpoint is http://",
                "use https:// and certificates",
            ),
        );
        return version(report, endpoint, own, &[], stream, step).await;
    }
    let Some(files) = &target.tls else {
        report.fail(
            "tls",
            &name,
            Diagnosis::new("no certificates are configured", "https needs them", "give tls.ca, tls.cert and tls.key"),
        );
        return false;
    };
    let (config, recorder) = match handshake::client(files) {
        Ok(client) => client,
        Err(message) => {
            report.fail(
                "tls",
                &name,
                Diagnosis::new(message, "the certificate files are unusable", "see `meshd check`"),
            );
            return false;
        }
    };
    let Ok(server_name) = ServerName::try_from(endpoint.host().to_owned()) else {
        report.fail(
            "tls",
            &name,
            Diagnosis::new("the host cannot be a server name", "a misspelt endpoint", "correct the endpoint"),
        );
        return false;
    };
    let connector = TlsConnector::from(Arc::new(config));
    match timeout(step, connector.connect(server_name, stream)).await {
        Ok(Ok(stream)) => {
            let shown = recorder.shown();
            let version_of_tls = stream.get_ref().1.protocol_version().and_then(|version| version.as_str());
            let until = shown
                .first()
                .map(|leaf| format!(", server certificate {} valid until {}", leaf.subject, leaf.not_after));
            report.ok("tls", &name, format!("{}{}", version_of_tls.unwrap_or("TLS"), until.unwrap_or_default()));
            version(report, endpoint, own, &shown, stream, step).await
        }
        Ok(Err(error)) => {
            report.fail("tls", &name, handshake::diagnose(&error, &recorder.shown(), own, endpoint.host()));
            false
        }
        Err(_) => {
            report.fail(
                "tls",
                &name,
                Diagnosis::new(
                    format!("no TLS handshake within {} s", step.as_secs_f32()),
                    "the other side accepts connections but does not answer, or a path MTU is too small for its certificate",
                    "look at the log of the store; try: ping -M do -s 1400",
                ),
            );
            false
        }
    }
}

/// `GET /version`. In TLS 1.3 it is also the first moment at which a refusal of our certificate can be seen.
async fn version<S>(
    report: &mut Report,
    endpoint: &Endpoint,
    own: Option<&OwnCertificate>,
    shown: &[crate::cli::certificate::Certificate],
    stream: S,
    step: Duration,
) -> bool
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let name = endpoint.to_string();
    let answer = match timeout(step, get_version(endpoint, stream)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} s", step.as_secs_f32()).into()),
    };
    match answer {
        Ok(version) => {
            report.ok("version", &name, format!("etcd {version}"));
            true
        }
        Err(error) if handshake::tls_error(error.as_ref()).is_some() => {
            report.fail("tls", &name, handshake::diagnose(error.as_ref(), shown, own, endpoint.host()));
            false
        }
        Err(error) => {
            report.fail(
                "version",
                &name,
                Diagnosis::new(
                    format!("GET /version failed: {}", chain(error.as_ref())),
                    "the port is not that of an etcd store, or something in between answers",
                    "check the port; it is usually 2379",
                ),
            );
            false
        }
    }
}

async fn get_version<S>(endpoint: &Endpoint, stream: S) -> Result<String, Box<dyn Error + Send + Sync>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::get("/version")
        .header(http::header::HOST, format!("{}:{}", endpoint.host(), endpoint.port()))
        .body(Empty::<bytes::Bytes>::new())?;
    let response = match sender.send_request(request).await {
        Ok(response) => response,
        Err(error) => {
            // The connection knows more than the request, which only sees that it is gone.
            return match timeout(Duration::from_millis(100), driver).await {
                Ok(Ok(Err(cause))) => Err(cause.into()),
                Ok(Ok(Ok(())) | Err(_)) | Err(_) => Err(error.into()),
            };
        }
    };
    let status = response.status();
    let body = Limited::new(response.into_body(), VERSION_BYTES_MAX).collect().await?.to_bytes();
    driver.abort();
    if !status.is_success() {
        return Err(format!("the answer is {status}").into());
    }
    let answer: serde_json::Value =
        serde_json::from_slice(&body).map_err(|error| format!("the answer is no JSON: {error}"))?;
    match answer.get("etcdserver").and_then(serde_json::Value::as_str) {
        Some(version) => Ok(version.to_owned()),
        None => Err("the answer does not name a version of etcd".into()),
    }
}

fn joined(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
