//! `/v1/bgp`: asks the speaker.

use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bgp::PeerId;
use jiff::Timestamp;
use serde::Deserialize;

use super::{
    bgp_answers, bgp_paths_answers,
    bgp_paths_view::{BgpAdvertisedPageView, BgpMessageView, BgpPathsView, BgpResetView},
    bgp_view::{BgpDumpView, BgpNeighborView, BgpSummaryView},
    server::Api,
    view::ErrorView,
};
use crate::speaker::{
    Ended, SpeakerHandle,
    answers::UnknownPeer,
    pages::{DumpError, NoPosition, Piece, Position, Wanted},
};

/// Rows of one answer from which on there is a next one.
const PAGE_ROWS: usize = 2_000;
/// Questions to the speaker for one answer: what is not found by then is for the next one.
const PIECES_MAX: usize = 64;
/// Longest words for a peer's operator, in octets (RFC 9003 section 2).
const COMMUNICATION_MAX: usize = 255;

/// A question that gets no answer.
#[derive(Debug)]
pub(super) enum Refusal {
    /// There is no speaker.
    NoSpeaker,
    /// The daemon is stopping.
    Ended(Ended),
    /// There is no such peer.
    Peer(UnknownPeer),
    /// No MRT table was written.
    Dump(DumpError),
    /// The question is wrong.
    Question {
        /// What is wrong.
        error: String,
        /// What to do.
        hint: &'static str,
    },
}

impl From<NoPosition> for Refusal {
    fn from(error: NoPosition) -> Self {
        Self::Question { error: error.to_string(), hint: "begin without `from`" }
    }
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
            Self::Dump(error) => {
                let (status, hint) = match &error {
                    DumpError::NoFolder => (StatusCode::NOT_FOUND, Some("set bgp.mrt.folder")),
                    DumpError::Busy => (StatusCode::CONFLICT, Some("wait until it is finished")),
                    DumpError::Mrt(_) | DumpError::Ended => (StatusCode::INTERNAL_SERVER_ERROR, None),
                };
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                (status, format!("{error}{cause}"), hint.map(str::to_owned))
            }
            Self::Question { error, hint } => (StatusCode::BAD_REQUEST, error, Some(hint.to_owned())),
        };
        (status, Json(ErrorView { error, hint })).into_response()
    }
}

#[derive(Debug, Default, Deserialize)]
struct PeerName {
    name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Page {
    name: Option<String>,
    from: Option<String>,
}

impl Page {
    fn position(&self) -> Result<Position, NoPosition> {
        self.from.as_ref().map_or_else(|| Ok(Position::default()), |from| from.parse())
    }

    async fn peer(&self, speaker: &SpeakerHandle) -> Result<Option<PeerId>, Refusal> {
        Ok(match &self.name {
            Some(name) => Some(speaker.find(name).await??),
            None => None,
        })
    }
}

#[derive(Debug, Deserialize)]
struct Reset {
    name: String,
    #[serde(default)]
    soft: bool,
    #[serde(default)]
    message: String,
}

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/bgp/summary", get(summary))
        .route("/v1/bgp/neighbors", get(neighbors))
        .route("/v1/bgp/rib", get(rib))
        .route("/v1/bgp/received", get(received))
        .route("/v1/bgp/advertised", get(advertised))
        .route("/v1/bgp/messages", get(messages))
        .route("/v1/bgp/reset", post(reset))
        .route("/v1/bgp/dump", post(dump))
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

async fn rib(State(api): State<Api>, Query(page): Query<Page>) -> Result<Json<BgpPathsView>, Refusal> {
    let speaker = speaker(&api)?;
    if let Some(name) = &page.name {
        let found = speaker.explain(wanted(name)?).await?;
        return Ok(Json(BgpPathsView {
            entries: found.into_iter().map(bgp_paths_answers::path).collect(),
            next: None,
        }));
    }
    let (rows, next) = gather(page.position()?, |from| speaker.paths(from)).await?;
    Ok(Json(BgpPathsView { entries: rows.into_iter().map(bgp_paths_answers::path).collect(), next }))
}

async fn received(State(api): State<Api>, Query(page): Query<Page>) -> Result<Json<BgpPathsView>, Refusal> {
    let speaker = speaker(&api)?;
    let peer = page.peer(speaker).await?;
    let (rows, next) = gather(page.position()?, |from| speaker.received(peer, from)).await?;
    Ok(Json(BgpPathsView { entries: rows.into_iter().map(bgp_paths_answers::received).collect(), next }))
}

async fn advertised(State(api): State<Api>, Query(page): Query<Page>) -> Result<Json<BgpAdvertisedPageView>, Refusal> {
    let speaker = speaker(&api)?;
    let peer = page.peer(speaker).await?;
    let (rows, next) = gather(page.position()?, |from| speaker.advertised(peer, from)).await?;
    Ok(Json(BgpAdvertisedPageView { entries: rows.into_iter().map(bgp_paths_answers::advertised).collect(), next }))
}

async fn messages(
    State(api): State<Api>,
    Query(wanted): Query<PeerName>,
) -> Result<Json<Vec<BgpMessageView>>, Refusal> {
    let speaker = speaker(&api)?;
    let Some(name) = wanted.name else {
        return Err(Refusal::Question { error: "no peer is named".to_owned(), hint: "add `?name=` and its address" });
    };
    let peer = speaker.find(&name).await??;
    let history = speaker.history(peer).await?;
    Ok(Json(history.iter().map(|(at, entry)| bgp_paths_answers::message(*at, entry)).collect()))
}

async fn reset(State(api): State<Api>, Query(wanted): Query<Reset>) -> Result<Json<BgpResetView>, Refusal> {
    let speaker = speaker(&api)?;
    if wanted.message.len() > COMMUNICATION_MAX {
        let error = format!("the message has {} octets, and {COMMUNICATION_MAX} is most", wanted.message.len());
        return Err(Refusal::Question { error, hint: "say it shorter" });
    }
    let peer = speaker.find(&wanted.name).await??;
    let report = if wanted.soft { speaker.refresh(peer).await? } else { speaker.reset(peer, wanted.message).await? };
    Ok(Json(bgp_paths_answers::reset(report, wanted.soft)))
}

async fn dump(State(api): State<Api>) -> Result<Json<BgpDumpView>, Refusal> {
    let file = speaker(&api)?.dump().await?.map_err(Refusal::Dump)?;
    Ok(Json(BgpDumpView { file: file.display().to_string() }))
}

/// Asks for one piece after the other until there are enough rows.
async fn gather<T, F: Future<Output = Result<Piece<T>, Ended>>>(
    from: Position,
    ask: impl Fn(Position) -> F,
) -> Result<(Vec<T>, Option<String>), Ended> {
    let mut rows = Vec::new();
    let mut next = Some(from);
    for _ in 0..PIECES_MAX {
        let Some(from) = next else { break };
        if rows.len() >= PAGE_ROWS {
            break;
        }
        let piece = ask(from).await?;
        rows.extend(piece.rows);
        next = piece.next;
    }
    Ok((rows, next.map(|next| next.to_string())))
}

/// A prefix, or an address for the longest match.
fn wanted(text: &str) -> Result<Wanted, Refusal> {
    if let Ok(address) = text.parse() {
        return Ok(Wanted::Longest(address));
    }
    text.parse().map(|prefix: ipnet::IpNet| Wanted::Prefix(prefix.trunc())).map_err(|_| Refusal::Question {
        error: format!("{text:?} is neither a prefix nor an address"),
        hint: "for instance 198.51.100.0/24, 2001:db8::/32 or 198.51.100.7",
    })
}
