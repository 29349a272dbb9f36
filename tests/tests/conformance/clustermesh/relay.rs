//! A TCP relay that can be cut.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// Relays connections while it is up.
pub(super) struct Relay {
    pub(super) address: SocketAddr,
    up: watch::Sender<bool>,
    /// One more reference per open connection.
    open: Arc<()>,
    task: JoinHandle<()>,
}

impl Relay {
    pub(super) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (up, is_up) = watch::channel(true);
        let open = Arc::new(());
        let opened = Arc::downgrade(&open);
        let task = tokio::spawn(async move {
            loop {
                let Ok((mut inside, _)) = listener.accept().await else { return };
                let mut is_up = is_up.clone();
                let Some(guard) = opened.upgrade().filter(|_| *is_up.borrow()) else { continue };
                tokio::spawn(async move {
                    let _guard = guard;
                    let Ok(mut outside) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut inside, &mut outside) => {}
                        _ = is_up.wait_for(|up| !up) => {}
                    }
                });
            }
        });
        Self { address, up, open, task }
    }

    /// Ends all connections and lets none through.
    pub(super) async fn cut(&self) {
        self.up.send_replace(false);
        while Arc::strong_count(&self.open) > 1 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    pub(super) fn restore(&self) {
        self.up.send_replace(true);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
        self.up.send_replace(false);
    }
}
