//! The store of our own cluster: served by this process, or a real etcd, or a sibling's.

use std::{
    collections::BTreeSet,
    fs, io,
    net::SocketAddr,
    path::Path,
    sync::{Mutex, PoisonError},
};

use anyhow::Context as _;
use meshd_core::id::ClusterName;
use meshd_store::{AuthConfig, OpenReport, ServerTls, Store, StoreError, StoreOptions, User};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{RemoteStore, StoreAddress};
use crate::{
    api::view::StoreView,
    config::{
        Config,
        model::{StoreConfig, StoreUser, TlsFiles, UserRole},
    },
    lifecycle::{Problems, Tasks, once_free},
};

/// Component name in `status`.
const COMPONENT: &str = "store/embedded";
/// Name of the data file in the state directory.
const DATA_FILE: &str = "store.redb";

/// Where our own cluster publishes itself.
#[derive(Debug)]
pub enum OwnStore {
    /// This process serves it.
    Embedded(Embedded),
    /// Somebody else does.
    Remote(StoreAddress),
}

/// The embedded store with what decides who may use it.
#[derive(Debug)]
pub struct Embedded {
    store: Store,
    report: OpenReport,
    cluster: ClusterName,
    users: Mutex<(Vec<StoreUser>, BTreeSet<ClusterName>)>,
}

impl OwnStore {
    /// Opens the embedded store and starts to serve it, or notes where the real one is.
    ///
    /// # Errors
    /// When the data file cannot be opened, the certificates do not work or the address is taken.
    pub async fn open(
        config: &Config,
        member: &str,
        problems: &Problems,
        tasks: &mut Tasks,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let (listen, tls, users) = match &config.store {
            StoreConfig::Etcd { endpoints, tls } => {
                let remote =
                    RemoteStore { endpoints: endpoints.clone(), tls: tls.clone(), host_aliases: Default::default() };
                return Ok(Self::Remote(StoreAddress::Remote(remote.into())));
            }
            StoreConfig::Embedded { listen, tls, users } => (*listen, tls, users),
        };
        let remotes: BTreeSet<ClusterName> = config.peers.iter().map(|peer| peer.cluster.clone()).collect();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let options = StoreOptions {
            data_file: Some(config.state_dir.join(DATA_FILE)),
            member_name: member.to_owned(),
            client_urls: vec![format!("{scheme}://{listen}")],
            auth: auth(&config.cluster.name, users, &remotes),
            ..StoreOptions::default()
        };
        let in_use = |error: &StoreError| matches!(error, StoreError::DataFileInUse { .. });
        let opened = once_free(|| Store::open(options.clone()), in_use).await;
        let (store, report) = opened.context("failed to open the embedded store")?;
        match &report.history_lost {
            Some(loss) => warn!(?loss, cluster_id = report.cluster_id, "the embedded store starts without history"),
            None => info!(keys = report.keys, revision = ?report.revision, "the embedded store is open"),
        }
        let server_tls = tls.as_ref().map(read_tls).transpose()?;
        let listener = once_free(|| listen_on(listen), |error| error.kind() == io::ErrorKind::AddrInUse)
            .await
            .with_context(|| format!("failed to listen on {listen} for the store"))?;
        let (serving, stop, problems) = (store.clone(), stop.clone(), problems.clone());
        tasks.spawn("store", async move {
            let ended = serving.serve(listener, server_tls, stop.clone().cancelled_owned()).await;
            if let Err(error) = ended {
                problems.set(COMPONENT, format!("the embedded store stopped serving: {error}"));
            }
            // The task list treats an ended task as a failure; after a stop there is nothing to report.
            std::future::pending::<()>().await;
        });
        let users = Mutex::new((users.clone(), remotes));
        Ok(Self::Embedded(Embedded { store, report, cluster: config.cluster.name.clone(), users }))
    }

    /// Where it is read and written.
    #[must_use]
    pub fn address(&self) -> StoreAddress {
        match self {
            Self::Embedded(embedded) => StoreAddress::Local(embedded.store.local_channel()),
            Self::Remote(address) => address.clone(),
        }
    }

    /// True when this node serves the store and so writes what belongs to the cluster as a whole.
    #[must_use]
    pub fn is_embedded(&self) -> bool {
        matches!(self, Self::Embedded(_))
    }

    /// What clients hold of the embedded store.
    #[must_use]
    pub fn figures(&self) -> Option<StoreView> {
        let Self::Embedded(embedded) = self else { return None };
        let status = embedded.store.status();
        Some(StoreView {
            keys: status.keys as u64,
            connections: status.connections as u64,
            watches: status.watchers as u64,
            answer_bytes: status.answer_bytes as u64,
            answers_waiting: status.answers_waiting as u64,
            answers_refused: status.answers_refused,
        })
    }

    /// True when the embedded store came up without its history.
    #[must_use]
    pub fn history_lost(&self) -> bool {
        matches!(self, Self::Embedded(embedded) if embedded.report.history_lost.is_some())
    }

    /// The remote clusters whose readers get in.
    pub fn set_remotes(&self, remotes: BTreeSet<ClusterName>) {
        if let Self::Embedded(embedded) = self {
            embedded.update(|_, known| *known = remotes);
        }
    }

    /// Takes over certificates and users of a reloaded configuration.
    pub fn reload(&self, config: &Config, problems: &Problems) {
        let (Self::Embedded(embedded), StoreConfig::Embedded { tls, users, .. }) = (self, &config.store) else {
            return;
        };
        embedded.update(|known, _| known.clone_from(users));
        let reloaded = match tls {
            Some(files) => read_tls(files)
                .and_then(|tls| embedded.store.reload_tls(&tls).context("failed to use the certificates")),
            None => Ok(()),
        };
        problems.report(COMPONENT, reloaded.err().map(|error| format!("{error:#}; the old certificates stay in use")));
    }

    /// Writes what waits for the disk and closes the data file.
    pub async fn close(&self) {
        if let Self::Embedded(embedded) = self {
            embedded.store.close().await;
        }
    }
}

impl Embedded {
    fn update(&self, change: impl FnOnce(&mut Vec<StoreUser>, &mut BTreeSet<ClusterName>)) {
        let mut current = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let before = current.clone();
        let (users, remotes) = &mut *current;
        change(users, remotes);
        if *current != before {
            self.store.reload_auth(auth(&self.cluster, &current.0, &current.1));
        }
    }
}

fn auth(cluster: &ClusterName, users: &[StoreUser], remotes: &BTreeSet<ClusterName>) -> AuthConfig {
    let mut config = AuthConfig::standard(cluster.as_str(), remotes.iter().map(ClusterName::as_str));
    for user in users {
        let role = match user.role {
            UserRole::Root => "root",
            UserRole::Node => "node",
            UserRole::Local => "local",
            UserRole::Remote => "remote",
        };
        config.add_user(User::new(user.name.clone(), role));
    }
    config
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

fn read_tls(files: &TlsFiles) -> anyhow::Result<ServerTls> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("failed to read {}", path.display()));
    Ok(ServerTls { cert_pem: read(&files.cert)?, key_pem: read(&files.key)?, client_ca_pem: read(&files.ca)? })
}
