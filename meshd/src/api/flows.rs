//! `GET /v1/flows`: flows as lines of JSON, those that were and, with `follow=true`, those that come.
//!
//! Besides `last` and `follow` the query takes the fields of [`Filter`]. The answer ends with the last flow, or when the client goes away.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{StreamExt as _, stream};
use serde::Deserialize;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    flow_view::{FlowLine, FlowView},
    server::Api,
    view::ErrorView,
};
use crate::flows::filter::Filter;

/// The query.
#[derive(Debug, Deserialize)]
struct Asked {
    #[serde(default)]
    last: usize,
    #[serde(default)]
    follow: bool,
    #[serde(flatten)]
    filter: Filter,
}

/// The paths about flows.
pub(super) fn routes() -> Router<Api> {
    Router::new().route("/v1/flows", get(flows))
}

async fn flows(State(api): State<Api>, asked: Result<Query<Asked>, QueryRejection>) -> Response {
    let asked = match asked {
        Ok(Query(asked)) => asked,
        Err(rejection) => return refusal(StatusCode::BAD_REQUEST, rejection.body_text(), None),
    };
    let Some(handle) = &api.flows else {
        let hint = "set services.enabled: true; `meshd status` says when its programs cannot be loaded";
        let error = "the datapath does not run on this node, and only it tells flows".to_owned();
        return refusal(StatusCode::SERVICE_UNAVAILABLE, error, Some(hint));
    };
    let past = |last: Vec<Arc<FlowView>>| stream::iter(last).map(|flow| line(&*flow));
    let body = if asked.follow {
        match handle.follow(asked.filter, asked.last) {
            Ok((last, lines)) => {
                Body::from_stream(past(last).chain(ReceiverStream::new(lines).map(|next| line::<FlowLine>(&next))))
            }
            Err(error) => return refusal(StatusCode::TOO_MANY_REQUESTS, error.to_string(), None),
        }
    } else {
        Body::from_stream(past(handle.last(&asked.filter, asked.last)))
    };
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

/// A value as a line; one that cannot be written is left out.
fn line<T: serde::Serialize>(value: &T) -> Result<Bytes, Infallible> {
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    Ok(line.into())
}

fn refusal(status: StatusCode, error: String, hint: Option<&str>) -> Response {
    (status, Json(ErrorView { error, hint: hint.map(str::to_owned) })).into_response()
}
