//! The TCP listener that Prometheus scrapes: plain HTTP/1.1, `GET /metrics` and nothing else.
//!
//! Whoever reaches the address may ask, so little is given: one request per connection, a few connections at a time, small
//! heads, and one deadline for everything. Those who wait for a place wait in the kernel's queue. An address that cannot be
//! bound does not stop the daemon: routes matter more than figures. It is a problem of the node and tried again.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::{debug, info};

use crate::lifecycle::Problems;

/// Component name in `status`.
const COMPONENT: &str = "api/metrics";
/// Connections served at a time.
const CONNECTIONS_MAX: usize = 16;
/// How long a connection may last, from its first octet to its last.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(10);
/// How long a client may take for the head of its request.
const HEAD_DEADLINE: Duration = Duration::from_secs(3);
/// Most octets of a request's head; the least that hyper allows.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// Pause before the address is tried again, and after the system refused a connection.
const PAUSE: Duration = Duration::from_secs(5);

/// Serves `router` on `address` until the task is cancelled.
pub async fn serve(address: SocketAddr, router: Router, problems: Problems) {
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => problems.set(COMPONENT, format!("failed to listen on {address}: {error}; trying again")),
        }
        sleep(PAUSE).await;
    };
    problems.clear(COMPONENT);
    info!(%address, "metrics are served");
    accept(listener, router, Deadlines { head: HEAD_DEADLINE, connection: CONNECTION_DEADLINE }, &problems).await;
}

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
struct Deadlines {
    head: Duration,
    connection: Duration,
}

async fn accept(listener: TcpListener, router: Router, deadlines: Deadlines, problems: &Problems) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = tokio::task::JoinSet::new();
    // Never closed while we hold it.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, from)) => {
                problems.clear(COMPONENT);
                let router = router.clone();
                connections.spawn(async move {
                    if let Err(error) = connection(stream, router, deadlines).await {
                        debug!(%from, %error, "a request for metrics failed");
                    }
                    drop(place);
                });
            }
            // What the client did before we looked is not our problem.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                problems.set(COMPONENT, format!("failed to accept a connection: {error}"));
                sleep(PAUSE).await;
            }
        }
    }
}

/// Why a connection ended before its answer was sent.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("the client took longer than {0:?}")]
    Slow(Duration),
    #[error(transparent)]
    Http(#[from] hyper::Error),
}

async fn connection(stream: TcpStream, router: Router, deadlines: Deadlines) -> Result<(), ConnectionError> {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(deadlines.head)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    Ok(timeout(deadlines.connection, served).await.map_err(|_| ConnectionError::Slow(deadlines.connection))??)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::Instant,
    };

    use super::*;

    const LIMITS: Deadlines = Deadlines { head: Duration::from_millis(200), connection: Duration::from_millis(600) };
    /// Anything that is waited for comes well before this.
    const LATE: Duration = Duration::from_secs(10);

    async fn start() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let router = Router::new().route("/metrics", get(|| async { "figures" }));
        tokio::spawn(async move { accept(listener, router, LIMITS, &Problems::default()).await });
        address
    }

    /// Sends a request and reads until the server closes.
    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        // A server that closes with unread octets resets the connection; what it said before has arrived.
        let _reset = timeout(LATE, stream.read_to_string(&mut answer)).await.expect("closed in time");
        answer
    }

    #[tokio::test]
    async fn one_path_one_method_one_request() {
        let address = start().await;
        let good =
            ask(address, "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\nGET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(good.starts_with("HTTP/1.1 200 ") && good.ends_with("figures"), "{good}");
        assert_eq!(good.matches("figures").count(), 1, "{good}");
        assert!(good.to_lowercase().contains("connection: close"), "{good}");
        for (request, code) in [
            ("GET /v1/status HTTP/1.1\r\nHost: a\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "405"),
            ("nonsense\r\n\r\n", "400"),
        ] {
            let answer = ask(address, request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{request}: {answer}");
        }
        let long = format!("GET /metrics HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(2 * HEAD_BYTES_MAX));
        let answer = ask(address, &long).await;
        assert!(!answer.contains("figures"), "{answer}");
    }

    #[tokio::test]
    async fn slow_clients_are_dropped_and_do_not_keep_others_out_for_long() {
        let address = start().await;
        let started = Instant::now();
        let mut slow = Vec::new();
        for _ in 0..2 * CONNECTIONS_MAX {
            let mut stream = TcpStream::connect(address).await.expect("connected");
            stream.write_all(b"GET /met").await.expect("sent");
            slow.push(stream);
        }
        let answer = ask(address, "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(answer.ends_with("figures"), "{answer}");
        assert!(started.elapsed() >= LIMITS.head, "somebody was served beyond the bound");
        for mut stream in slow {
            let mut rest = Vec::new();
            let _reset = timeout(LATE, stream.read_to_end(&mut rest)).await.expect("dropped in time");
        }
    }

    #[tokio::test]
    async fn an_address_in_use_is_a_problem_until_it_is_free() {
        let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = taken.local_addr().expect("an address");
        let problems = Problems::default();
        let task = tokio::spawn(serve(address, Router::new(), problems.clone()));
        let until = async |holds: fn(&Problems) -> bool| {
            let begun = Instant::now();
            while !holds(&problems) {
                assert!(begun.elapsed() < LATE, "{:?}", problems.list());
                sleep(Duration::from_millis(10)).await;
            }
        };
        until(|problems| problems.list().iter().any(|row| row.component == COMPONENT)).await;
        drop(taken);
        until(|problems| problems.list().is_empty()).await;
        task.abort();
    }
}
