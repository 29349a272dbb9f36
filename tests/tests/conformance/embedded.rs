//! An embedded store for the duration of a test.

use std::net::{Ipv4Addr, SocketAddr};

use meshd_store::{ServerTls, Store, StoreError, StoreOptions};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A store that serves one listener.
pub(super) struct Embedded {
    pub(super) store: Store,
    pub(super) address: SocketAddr,
    stop: oneshot::Sender<()>,
    server: JoinHandle<Result<(), StoreError>>,
}

impl Embedded {
    pub(super) async fn start(options: StoreOptions, tls: Option<ServerTls>) -> Self {
        let (store, _) = Store::open(options).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let serving = store.clone();
        let server = tokio::spawn(async move {
            let shutdown = async move {
                // A dropped sender ends the server as well.
                let _ = stopped.await;
            };
            serving.serve(listener, tls, shutdown).await
        });
        Self { store, address, stop, server }
    }

    /// Stops serving, then closes the store.
    pub(super) async fn stop(self) {
        self.store.close().await;
        drop(self.stop);
        self.server.await.unwrap().unwrap();
    }
}
