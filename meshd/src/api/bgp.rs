//! `/v1/bgp`: asks the speaker.

use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use jiff::Timestamp;
use serde::Deserialize;

use super::{
    bgp_answers,
    bgp_view::{BgpNeighborView, BgpSummaryView},
    server::Api,
    view::ErrorView,
};
use crate::speaker::{Ended, SpeakerHandle, answers::UnknownPeer};

/// A question that gets no answer.
#[derive(Debug)]
pub(super) enum Refusal {
    /// There is no speaker.
    NoSpeaker,
    /// The daemon is stopping.
    Ended(Ended),
    /// There is no such peer.
    Peer(UnknownPeer),
}

impl From<Ended> for Refusal {
    fn from(ended: Ended) -> Self {
        Self::Ended(ended)
    }
}

impl From<UnknownPeer> for Refusal {
    fn from(unknown: UnknownPeer) -> Self {
        Self::Peer(unknown)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let list = "`meshd bgp summary` lists the peers";
        let (status, error, hint) = match self {
            Self::NoSpeaker => (
                StatusCode::NOT_FOUND,
                "this node does not speak BGP".to_owned(),
                Some("give its configuration a section `bgp:` with `asn` and `peers`, and start it again".to_owned()),
            ),
            Self::Ended(ended) => (StatusCode::SERVICE_UNAVAILABLE, ended.to_string(), None),
            Self::Peer(unknown) => {
                let hint = match &unknown {
                    UnknownPeer::None { nearest: Some(nearest), .. } => format!("do you mean {nearest}? {list}"),
                    UnknownPeer::None { nearest: None, .. } => list.to_owned(),
                    UnknownPeer::Several { .. } => "give the address with its link, such as fe80::1%eth0".to_owned(),
                };
                (StatusCode::NOT_FOUND, unknown.to_string(), Some(hint))
            }
        };
        (status, Json(ErrorView { error, hint })).into_response()
    }
}

#[derive(Debug, Default, Deserialize)]
struct PeerName {
    name: Option<String>,
}

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/v1/bgp/summary", get(summary)).route("/v1/bgp/neighbors", get(neighbors))
}

/// The speaker and its peers.
pub(super) async fn summarize(speaker: &SpeakerHandle) -> Result<BgpSummaryView, Ended> {
    let (report, peers) = (speaker.report().await?, speaker.peers().await?);
    Ok(bgp_answers::summary(&report, &peers, Timestamp::now()))
}

fn speaker(api: &Api) -> Result<&SpeakerHandle, Refusal> {
    api.speaker.as_ref().ok_or(Refusal::NoSpeaker)
}

async fn summary(State(api): State<Api>) -> Result<Json<BgpSummaryView>, Refusal> {
    Ok(Json(summarize(speaker(&api)?).await?))
}

async fn neighbors(
    State(api): State<Api>,
    Query(wanted): Query<PeerName>,
) -> Result<Json<Vec<BgpNeighborView>>, Refusal> {
    let speaker = speaker(&api)?;
    let peers = match wanted.name {
        Some(name) => vec![speaker.peer(&name).await??],
        None => speaker.peers().await?,
    };
    let now = Timestamp::now();
    Ok(Json(peers.iter().map(|peer| bgp_answers::neighbor(peer, now)).collect()))
}
