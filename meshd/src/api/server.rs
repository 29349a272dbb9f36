//! The unix-socket HTTP API.
//!
//! Read paths answer from the last published snapshot and never block the pipeline. The socket is readable and writable
//! for root only; `api.metrics` opens a TCP listener for `/metrics` alone (`scrape.rs`).

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use meshd_core::{
    derive::LocalNode,
    id::{ClusterId, ClusterName},
};
use serde::{Deserialize, Serialize};
use tokio::{net::UnixListener, sync::watch};

use super::{
    answers, bgp_answers,
    bgp_view::{BgpNeighborRow, BgpSummaryView},
    metrics, service_answers,
    view::{
        BgpCountsView, ClusterView, DrainView, ErrorView, Health, OwnNodeView, ProblemView, RouteCountsView, StatusView,
    },
};
use crate::{
    flows::FlowsHandle,
    lifecycle::Problems,
    pipeline::Snapshot,
    reconcilers::{
        datapath::DatapathStatus,
        masquerade::MasqueradeHandle,
        routes::{Ended, RoutesHandle},
    },
    sources::probes::PathReports,
    speaker::SpeakerHandle,
    store::own::OwnStore,
};

/// Takes this node out of the mesh; given by whoever wires the daemon.
pub type Drain = Arc<dyn Fn() -> BoxFuture<'static, DrainView> + Send + Sync>;

/// What the API answers from.
#[derive(Clone)]
pub struct Api {
    /// This node.
    pub local: Arc<LocalNode>,
    /// Id of its cluster.
    pub cluster_id: ClusterId,
    /// The tables.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Where each configured remote cluster comes from.
    pub peer_sources: watch::Receiver<BTreeMap<ClusterName, String>>,
    /// The route reconciler.
    pub routes: RoutesHandle,
    /// The masquerade reconciler.
    pub masquerade: MasqueradeHandle,
    /// The datapath, where it runs.
    pub datapath: Option<watch::Receiver<DatapathStatus>>,
    /// Flows, where they are read.
    pub flows: Option<FlowsHandle>,
    /// What probes found out.
    pub paths: PathReports,
    /// What is wrong.
    pub problems: Problems,
    /// Becomes true when the node first did all its work.
    pub ready: watch::Receiver<bool>,
    /// Where the own cluster publishes itself.
    pub own_store: Arc<OwnStore>,
    /// The BGP speaker, where one runs.
    pub speaker: Option<SpeakerHandle>,
    /// `POST /v1/drain`
    pub drain: Drain,
    /// When the daemon started.
    pub started: Timestamp,
}

/// A request that failed.
#[derive(Debug)]
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(ErrorView { error: self.1, hint: None })).into_response()
    }
}

impl From<Ended> for Refusal {
    fn from(ended: Ended) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, ended.to_string())
    }
}

#[derive(Debug, Default, Deserialize)]
struct Filter {
    name: Option<String>,
}

impl Filter {
    fn keep<T: Serialize>(self, mut rows: Vec<T>, name: impl Fn(&T) -> String) -> Json<Vec<T>> {
        if let Some(wanted) = self.name {
            rows.retain(|row| name(row) == wanted);
        }
        Json(rows)
    }
}

/// Binds the socket, replacing one a dead daemon left behind.
///
/// # Errors
/// When a living daemon listens there, or the directory cannot be written.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another meshd listens on the socket")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
        Err(_) => {}
    }
    // Bound under a private name first, so that the socket never exists with the wrong mode.
    let private = PathBuf::from(format!("{}.{}", path.display(), std::process::id()));
    let listener = UnixListener::bind(&private)?;
    fs::set_permissions(&private, fs::Permissions::from_mode(0o600))?;
    fs::rename(&private, path)?;
    Ok(listener)
}

/// Serves until the task is cancelled.
pub async fn serve(listener: UnixListener, api: Api) {
    if let Err(error) = axum::serve(listener, router(api)).await {
        tracing::error!(%error, "the API ended");
    }
}

fn router(api: Api) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/get/nodes", get(nodes))
        .route("/v1/get/prefixes", get(prefixes))
        .route("/v1/get/routes", get(routes))
        .route("/v1/get/services", get(services))
        .route("/v1/get/backends", get(backends))
        .route("/v1/get/identities", get(identities))
        .route("/v1/get/endpoints", get(endpoints))
        .route("/v1/get/peers", get(peers))
        .route("/v1/get/rejected", get(rejected))
        .route("/v1/get/exclusions", get(exclusions))
        .merge(super::bgp::routes())
        .merge(super::flows::routes())
        .route("/v1/plan", get(plan))
        .route("/v1/drain", post(drain))
        .route("/metrics", get(metrics_text))
        .fallback(|| async { Refusal(StatusCode::NOT_FOUND, "no such path".to_owned()) })
        .with_state(api)
}

/// What is served over TCP.
pub fn metrics_router(api: Api) -> Router {
    Router::new()
        .route("/metrics", get(metrics_text))
        .fallback(|| async { (StatusCode::NOT_FOUND, "only /metrics is served here\n") })
        .with_state(api)
}

/// Whether the kernel tells about routes when the nexthop object changes that they use.
const NEXTHOP_COMPAT: &str = "/proc/sys/net/ipv4/nexthop_compat_mode";
/// Below so many routes nobody notices.
const NEXTHOP_COMPAT_ROUTES: usize = 10_000;

impl Api {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    /// The whole node in one answer.
    async fn status(&self) -> Result<(StatusView, Option<BgpSummaryView>), Ended> {
        let snapshot = self.snapshot();
        let counts = self.routes.counts().await?;
        let peers = answers::peers(&snapshot, &self.local, &self.peer_sources.borrow());
        let mut problems = self.problems.list();
        problems.extend(self.table_problems(&snapshot, &peers, counts.errors));
        let bgp = self.bgp_summary().await;
        problems.extend(bgp.iter().flat_map(|bgp| self.bgp_problems(bgp)));
        let compat = fs::read_to_string(NEXTHOP_COMPAT).unwrap_or_default();
        let message = compat_problem(counts.learned_installed, &compat);
        problems.extend(message.map(|message| ProblemView {
            component: "bgp/kernel".to_owned(),
            message,
            since: self.started,
        }));
        problems.sort_by(|a, b| (a.since, &a.component).cmp(&(b.since, &b.component)));
        let health = if !*self.ready.borrow() {
            Health::Failed
        } else if problems.is_empty() {
            Health::Ok
        } else {
            Health::Degraded
        };
        let status = StatusView {
            cluster: ClusterView { name: self.local.cluster.to_string(), id: self.cluster_id.get().into() },
            node: OwnNodeView {
                name: self.local.name.to_string(),
                addresses: self.local.addresses.clone(),
                pod_cidrs: self.local.pod_cidrs.clone(),
            },
            health,
            problems,
            peers,
            routes: RouteCountsView {
                desired: counts.desired as u64,
                installed: counts.installed as u64,
                errors: counts.errors as u64,
            },
            bgp: bgp.as_ref().map_or_else(BgpCountsView::default, |bgp| {
                let sum = |of: fn(&BgpNeighborRow) -> u64| bgp.neighbors.iter().map(of).sum();
                BgpCountsView {
                    peers: bgp.peers,
                    established: bgp.established,
                    received: sum(|peer| peer.received),
                    accepted: sum(|peer| peer.accepted),
                    installed: counts.learned_installed as u64,
                }
            }),
            datapath: self.datapath.as_ref().map_or_else(Default::default, |status| {
                let flows = self.flows.as_ref().map(FlowsHandle::counts);
                answers::datapath(&status.borrow(), flows)
            }),
            masquerade: answers::masquerade(&snapshot, &self.masquerade.state()),
            store: self.own_store.figures(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: Some(self.started),
        };
        Ok((status, bgp))
    }

    /// The speaker and its peers; a speaker that has ended says nothing.
    async fn bgp_summary(&self) -> Option<BgpSummaryView> {
        super::bgp::summarize(self.speaker.as_ref()?).await.ok()
    }

    /// Peers that are wanted and have no session.
    fn bgp_problems(&self, bgp: &BgpSummaryView) -> Vec<ProblemView> {
        let problem = |peer: &BgpNeighborRow| {
            let (message, since) = bgp_answers::problem(peer)?;
            Some(ProblemView { component: format!("bgp/{}", peer.peer), message, since: since.unwrap_or(self.started) })
        };
        bgp.neighbors.iter().filter_map(problem).collect()
    }

    /// Problems that can be read off the tables.
    fn table_problems(&self, snapshot: &Snapshot, peers: &[super::view::PeerView], errors: usize) -> Vec<ProblemView> {
        let mut problems = Vec::new();
        let mut problem = |component: String, message: String, since: Option<Timestamp>| {
            problems.push(ProblemView { component, message, since: since.unwrap_or(self.started) });
        };
        for peer in peers {
            let Some(message) = peer_problem(peer) else { continue };
            let row = snapshot.observed.clusters.iter().find(|(name, _)| name.as_str() == peer.cluster);
            let at = row.and_then(|(_, tables)| Some(tables.peer.as_deref()?.problem.as_ref()?.at));
            problem(format!("peer/{}", peer.cluster), message, at.or(peer.stale_since));
        }
        let own = snapshot.observed.clusters.get(&self.local.cluster);
        match own.and_then(|tables| tables.peer.as_deref()) {
            Some(row) if row.is_ready() && row.problem.is_none() => {}
            row => {
                let failure = row.and_then(|row| row.problem.as_ref());
                let message = failure.map_or("the own store was not read yet".to_owned(), |f| f.message.to_string());
                problem("store".to_owned(), message, failure.map(|f| f.at));
            }
        }
        if errors > 0 {
            problem("routes".to_owned(), format!("{errors} routes are in error; see `meshd get routes`"), None);
        }
        if snapshot.observed.bgp_refused > 0 {
            let message = format!(
                "{} routes learned by BGP were refused, because there are {} already; filter them, or raise bgp.import.max_routes",
                snapshot.observed.bgp_refused,
                snapshot.observed.bgp.len()
            );
            problem("bgp/routes".to_owned(), message, None);
        }
        for (key, conflict) in snapshot.desired.conflicts.iter() {
            let component = format!("prefix/{}/{}", key.1.cluster, key.0);
            problem(component, conflict.to_string(), Some(conflict.since));
        }
        for (cluster, tables) in &snapshot.observed.clusters {
            let count = tables.rejected.len() as u64 + tables.rejected_dropped;
            if count > 0 {
                let since = tables.rejected.iter().map(|(_, row)| row.since).min();
                let message = format!("{count} records are refused; see `meshd get rejected`");
                problem(format!("records/{cluster}"), message, since);
            }
        }
        problems
    }
}

/// What `status` says when the kernel writes out every route of a nexthop object with each change of it. With 100,000 routes that
/// takes a processor more than 100 ms, in which nothing else runs on it: neither the traffic is moved, nor does BFD send.
fn compat_problem(routes: usize, compat: &str) -> Option<String> {
    let is_on = compat.trim() == "1";
    (is_on && routes >= NEXTHOP_COMPAT_ROUTES).then(|| {
        format!(
            "each change of a next hop makes the kernel write out its routes, of which there are {routes}, and holds up a processor meanwhile; \
             set net.ipv4.nexthop_compat_mode=0 (configs/sysctl.d/meshd.conf)"
        )
    })
}

/// What `status` says about a peer. One that is read completely can have a problem too: a cluster-config that has become
/// impossible, for instance, while what was read under the old one is kept.
fn peer_problem(peer: &super::view::PeerView) -> Option<String> {
    match &peer.problem {
        Some(problem) => Some(problem.clone()),
        None if peer.ready => None,
        None => Some("not ready yet".to_owned()),
    }
}

async fn status(State(api): State<Api>) -> Result<Json<StatusView>, Refusal> {
    Ok(Json(api.status().await?.0))
}

async fn nodes(State(api): State<Api>, Query(filter): Query<Filter>) -> impl IntoResponse {
    filter.keep(answers::nodes(&api.snapshot(), &api.local, &api.paths.get()), |row| row.name.clone())
}

async fn prefixes(State(api): State<Api>, Query(filter): Query<Filter>) -> impl IntoResponse {
    filter.keep(answers::prefixes(&api.snapshot(), &api.local), |row| row.prefix.to_string())
}

async fn routes(State(api): State<Api>, Query(filter): Query<Filter>) -> Result<impl IntoResponse, Refusal> {
    let states = api.routes.states().await?;
    Ok(filter.keep(answers::routes(&api.snapshot(), &states), |row| row.prefix.to_string()))
}

async fn services(State(api): State<Api>, Query(filter): Query<Filter>) -> impl IntoResponse {
    Json(service_answers::services(&api.snapshot(), filter.name.as_deref()))
}

async fn backends(State(api): State<Api>, Query(filter): Query<Filter>) -> impl IntoResponse {
    Json(service_answers::backends(&api.snapshot(), filter.name.as_deref()))
}

async fn identities(State(api): State<Api>, Query(filter): Query<Filter>) -> impl IntoResponse {
    filter.keep(answers::identities(&api.snapshot()), |row| row.id.map_or_else(String::new, |id| id.to_string()))
}

async fn endpoints(State(api): State<Api>, Query(filter): Query<Filter>) -> impl IntoResponse {
    let name = |row: &super::view::EndpointView| row.name.clone().unwrap_or_else(|| row.address.addr().to_string());
    filter.keep(answers::endpoints(&api.snapshot()), name)
}

async fn peers(State(api): State<Api>, Query(filter): Query<Filter>) -> impl IntoResponse {
    let sources = api.peer_sources.borrow().clone();
    filter.keep(answers::peers(&api.snapshot(), &api.local, &sources), |row| row.cluster.clone())
}

async fn rejected(State(api): State<Api>, Query(filter): Query<Filter>) -> impl IntoResponse {
    filter.keep(answers::rejected(&api.snapshot()), |row| row.cluster.clone())
}

async fn exclusions(State(api): State<Api>, Query(filter): Query<Filter>) -> impl IntoResponse {
    filter.keep(answers::exclusions(&api.snapshot(), &api.masquerade.state()), |row| row.prefix.to_string())
}

async fn plan(State(api): State<Api>) -> Result<impl IntoResponse, Refusal> {
    let step = api.masquerade.plan().await;
    Ok(Json(answers::plan(&api.routes.plan().await?, step.as_ref())))
}

async fn drain(State(api): State<Api>) -> impl IntoResponse {
    Json((api.drain)().await)
}

async fn metrics_text(State(api): State<Api>) -> Result<impl IntoResponse, Refusal> {
    let (status, bgp) = api.status().await?;
    let text = metrics::render(&status, bgp.as_ref(), &api.paths.get())
        .map_err(|error| Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_routes_that_the_kernel_writes_out_are_a_problem() {
        for (routes, compat, is_problem) in [
            (100_000, "1\n", true),
            (10_000, "1\n", true),
            (9_999, "1\n", false),
            (100_000, "0\n", false),
            (100_000, "", false),
        ] {
            assert_eq!(compat_problem(routes, compat).is_some(), is_problem, "{routes} {compat:?}");
        }
    }

    #[test]
    fn a_ready_peer_can_have_a_problem() {
        let row = |ready, problem: Option<&str>| {
            let value = serde_json::json!({
                "cluster": "east", "id": 2, "connected": true, "ready": ready, "nodes": 2, "endpoints": 2, "identities": 1,
                "services": 0, "reconnections": 0, "last_failure": null, "problem": problem,
            });
            serde_json::from_value(value).expect("a peer")
        };
        assert_eq!(peer_problem(&row(true, None)), None);
        assert_eq!(peer_problem(&row(true, Some("own id"))).as_deref(), Some("own id"));
        assert_eq!(peer_problem(&row(false, Some("no canary"))).as_deref(), Some("no canary"));
        assert_eq!(peer_problem(&row(false, None)).as_deref(), Some("not ready yet"));
    }
}
