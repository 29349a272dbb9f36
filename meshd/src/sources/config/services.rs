//! Services of our own cluster, as the configuration names them.
//!
//! Every configuration that was read tells all of its services; the table drops those that are not among them. Validation
//! is over by then ([`crate::config`]), so nothing can be refused here.

use std::collections::BTreeMap;
use std::sync::Arc;

use meshd_core::observed::{Change, OwnServiceRow, ServiceName};
use tokio::sync::{mpsc, watch};

/// Every service of our own cluster.
pub type OwnServices = BTreeMap<ServiceName, Arc<OwnServiceRow>>;

/// Tells the services at the start and whenever they were read again.
pub async fn run(mut services: watch::Receiver<OwnServices>, changes: mpsc::Sender<Change>) {
    loop {
        let rows = services.borrow_and_update().clone();
        if changes.send(Change::OwnServices(rows)).await.is_err() {
            return;
        }
        if services.changed().await.is_err() {
            // Nobody can change them any more; the daemon is stopping, and the end of this task is no news.
            return std::future::pending().await;
        }
    }
}
