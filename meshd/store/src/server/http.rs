//! The two plain HTTP answers beside gRPC.

use http::{Method, StatusCode, header};
use tonic::body::Body;

use super::maintenance::ETCD_VERSION;
use crate::store::Shared;

/// The cluster version that goes with [`ETCD_VERSION`].
const ETCD_CLUSTER_VERSION: &str = "3.5.0";

/// Answers everything that is not gRPC.
pub(super) fn answer(shared: &Shared, method: &Method, path: &str) -> http::Response<Body> {
    let (status, body) = match path {
        "/version" | "/health" if *method != Method::GET && *method != Method::HEAD => {
            (StatusCode::METHOD_NOT_ALLOWED, "{\"error\":\"only GET is allowed\"}".to_owned())
        }
        "/version" => (
            StatusCode::OK,
            serde_json::json!({
                "etcdserver": ETCD_VERSION,
                "etcdcluster": ETCD_CLUSTER_VERSION,
                "meshd": env!("CARGO_PKG_VERSION"),
            })
            .to_string(),
        ),
        "/health" => health(shared),
        _ => (StatusCode::NOT_FOUND, "{\"error\":\"not found\"}".to_owned()),
    };
    let mut response = http::Response::new(Body::new(http_body_util::Full::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// Unhealthy while the disk fails or the store is full; text values as in etcd.
fn health(shared: &Shared) -> (StatusCode, String) {
    let reason = match shared.disk_failure() {
        Some(failure) => format!("failed to write the data file: {failure}"),
        None if shared.engine().status().full => "ALARM NOSPACE".to_owned(),
        None => String::new(),
    };
    let healthy = reason.is_empty();
    let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::json!({"health": healthy.to_string(), "reason": reason});
    (status, body.to_string())
}
