//! Asking a running daemon through its unix socket.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::failure::Failure;
use crate::api::view::ErrorView;
use crate::config::SOCKET;

/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 1 << 30;
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the daemon is.
#[derive(Clone, Debug, Args)]
pub(super) struct SocketOptions {
    /// Socket of the daemon
    #[arg(long, value_name = "PATH", env = "MESHD_SOCKET", default_value = SOCKET)]
    pub(super) socket: PathBuf,
}

/// Runs a future on this thread.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::message(format!("failed to start the runtime: {error}")))?;
    let result = runtime.block_on(future);
    // A name server that does not answer must not hold the exit of the program.
    runtime.shutdown_background();
    Ok(result)
}

impl SocketOptions {
    /// `GET path` and its answer.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.request(Method::GET, path).await
    }

    /// `POST path` and its answer.
    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.request(Method::POST, path).await
    }

    /// `GET path`, line by line as they come; ends when the daemon ends, or with the first line that `take` refuses.
    pub(super) async fn lines(
        &self,
        path: &str,
        mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let begin = timeout(REQUEST_TIMEOUT, self.send(Method::GET, path));
        let (response, _driver) = begin.await.unwrap_or_else(|_| Err(self.too_late()))?;
        let status = response.status();
        if !status.is_success() {
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| self.asking(&error))?.to_bytes();
            return Err(refusal(status, path, &body));
        }
        let mut body = response.into_body();
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.asking(&error))?;
            let Some(data) = frame.data_ref() else { continue };
            rest.extend_from_slice(data);
            let Some(end) = rest.iter().rposition(|octet| *octet == b'\n') else { continue };
            for line in rest[..end].split(|octet| *octet == b'\n').filter(|line| !line.is_empty()) {
                take(line)?;
            }
            rest.drain(..=end);
        }
        Ok(())
    }

    async fn request<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, Failure> {
        match timeout(REQUEST_TIMEOUT, self.exchange(method, path)).await {
            Ok(result) => result,
            Err(_) => Err(self.too_late()),
        }
    }

    fn too_late(&self) -> Failure {
        let (socket, limit) = (self.socket.display(), REQUEST_TIMEOUT.as_secs());
        Failure::message(format!("the daemon at {socket} did not answer within {limit} s"))
            .hint("look at its log (journalctl -u meshd)")
    }

    fn asking(&self, error: &dyn std::fmt::Display) -> Failure {
        Failure::message(format!("failed to ask the daemon at {}: {error}", self.socket.display()))
            .hint("look at its log (journalctl -u meshd)")
    }

    async fn exchange<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, Failure> {
        let (response, _driver) = self.send(method, path).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| self.asking(&error))?.to_bytes();
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| {
                Failure::message(format!("the answer of {path} cannot be read: {error}"))
                    .hint("daemon and command line may be of different versions (meshd version, meshd status)")
            });
        }
        Err(refusal(status, path, &body))
    }

    /// Sends a request; the connection lives as long as its driver.
    async fn send(&self, method: Method, path: &str) -> Result<(Response<Incoming>, Driver), Failure> {
        let asking = |error: &dyn std::fmt::Display| self.asking(error);
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.not_connected(&error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| asking(&error))?;
        let driver = Driver(tokio::spawn(connection));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "meshd")
            .body(Empty::<bytes::Bytes>::new())
            .map_err(|error| asking(&error))?;
        let response = sender.send_request(request).await.map_err(|error| asking(&error))?;
        Ok((response, driver))
    }

    fn not_connected(&self, error: &io::Error) -> Failure {
        let failure =
            Failure::message(format!("failed to connect to the daemon at {}: {error}", self.socket.display()));
        failure.hint(match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                "is it running (systemctl status meshd)? another socket is given with --socket or MESHD_SOCKET"
            }
            io::ErrorKind::PermissionDenied => "run this as root, or as a member of the socket's group",
            _ => "another socket is given with --socket or MESHD_SOCKET",
        })
    }
}

/// The task that reads and writes a connection; it ends with this handle.
struct Driver(JoinHandle<hyper::Result<()>>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn refusal(status: StatusCode, path: &str, body: &[u8]) -> Failure {
    match serde_json::from_slice::<ErrorView>(body) {
        Ok(view) => {
            let failure = Failure::message(view.error);
            match view.hint {
                Some(hint) => failure.hint(hint),
                None => failure,
            }
        }
        Err(_) => Failure::message(format!("the daemon answered {status} to {path}"))
            .hint("daemon and command line may be of different versions (meshd version, meshd status)"),
    }
}

/// Encodes a text for a query.
pub(super) fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn queries_are_encoded() {
        assert_eq!(super::encode("10.1.0.0/24"), "10.1.0.0%2F24");
        assert_eq!(super::encode("a&b=c d"), "a%26b%3Dc%20d");
    }
}
