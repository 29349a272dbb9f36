//! What the tables hold, a piece at a time, and what else is asked of single peers.
//!
//! A table of a million prefixes is never copied in one go: a question gets at most [`ROWS_AT_ONCE`] rows and the
//! [`Position`] of the next ones, and sessions have their turn between two questions.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr};

use bgp::{
    Family, Prefix as _,
    family::{V4, V6},
    id::PeerId,
    rib::{AdvertisedView, Cursor, ExportsView, NotAdvertised, Page, PathView},
    session::{Entry, Event},
};
use ipnet::IpNet;
use jiff::Timestamp;
use tokio::{sync::oneshot, task::spawn_local};

use super::{
    Ended, SpeakerHandle,
    answers::{Clock, UnknownPeer, find},
    core::Core,
    monitor,
};

pub use super::monitor::DumpError;

/// Rows of one question.
pub const ROWS_AT_ONCE: usize = 256;

/// A path and who sent it.
#[derive(Clone, Debug)]
pub struct PathReport {
    /// The peer; `None` for a path of our own.
    pub peer: Option<String>,
    /// When it came.
    pub since: Timestamp,
    /// The path.
    pub view: PathView,
    /// Who is told; only where one prefix was asked for.
    pub exports: Option<ExportsReport>,
}

/// Who is told a path, and who is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportsReport {
    /// Peers that are told.
    pub told: Vec<String>,
    /// Peers that are not, why, and by which rule of their export policy.
    pub withheld: Vec<(String, NotAdvertised, Option<String>)>,
}

/// A path that a peer is told.
#[derive(Clone, Debug)]
pub struct AdvertisedReport {
    /// The peer.
    pub peer: String,
    /// Who sent it to us; `None` for a path of our own.
    pub source: Option<String>,
    /// The path.
    pub view: AdvertisedView,
}

/// Where the next piece begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    family: Family,
    peer: PeerId,
    at: Cursor,
}

impl Default for Position {
    fn default() -> Self {
        Self::start(PeerId(0))
    }
}

impl Position {
    const fn start(peer: PeerId) -> Self {
        Self { family: Family::Ipv4Unicast, peer, at: Cursor::from_number(0) }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.peer.0, self.family.afi(), self.at.to_number())
    }
}

/// A text that is no position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`from` is not what an answer gave as `next`")]
pub struct NoPosition;

impl FromStr for Position {
    type Err = NoPosition;

    fn from_str(text: &str) -> Result<Self, NoPosition> {
        let mut parts = text.split('.');
        let mut part = || parts.next().and_then(|part| part.parse::<u32>().ok()).ok_or(NoPosition);
        let (peer, afi, at) = (part()?, part()?, part()?);
        let peer = u16::try_from(peer).map_err(|_| NoPosition)?;
        let afi = u16::try_from(afi).map_err(|_| NoPosition)?;
        let family = Family::from_numbers(afi, 1).ok_or(NoPosition)?;
        if parts.next().is_some() {
            return Err(NoPosition);
        }
        Ok(Self { family, peer: PeerId(peer), at: Cursor::from_number(at) })
    }
}

/// A piece of a long answer; it may be empty and still have a next one.
#[derive(Clone, Debug)]
pub struct Piece<T> {
    /// Its rows.
    pub rows: Vec<T>,
    /// Where the next piece begins; `None` at the end.
    pub next: Option<Position>,
}

/// What is asked for by `rib PREFIX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// This prefix and no other.
    Prefix(IpNet),
    /// The longest prefix with a best path that has the address in it.
    Longest(IpAddr),
}

/// What came of a reset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResetReport {
    /// The peer as it is known.
    pub peer: String,
    /// Families that the peer was asked to send again.
    pub requested: Vec<Family>,
    /// Families that the peer is sent again.
    pub resent: Vec<Family>,
    /// The session was established.
    pub was_established: bool,
}

impl SpeakerHandle {
    /// The number of a peer.
    ///
    /// # Errors
    /// [`Ended`] when the daemon is stopping; [`UnknownPeer`] inside.
    pub async fn find(&self, name: &str) -> Result<Result<PeerId, UnknownPeer>, Ended> {
        let name = name.to_owned();
        self.ask(move |core| find(&core.borrow(), &name)).await
    }

    /// All paths.
    ///
    /// # Errors
    /// [`Ended`] when the daemon is stopping.
    pub async fn paths(&self, from: Position) -> Result<Piece<PathReport>, Ended> {
        self.ask(move |core| paths(&core.borrow(), from)).await
    }

    /// Paths that a peer sent, or all peers.
    ///
    /// # Errors
    /// [`Ended`] when the daemon is stopping.
    pub async fn received(&self, peer: Option<PeerId>, from: Position) -> Result<Piece<PathReport>, Ended> {
        self.ask(move |core| match peer {
            Some(peer) => received(&core.borrow(), peer, from),
            None => {
                let mut piece = paths(&core.borrow(), from);
                piece.rows.retain(|row| row.view.peer != PeerId::LOCAL);
                piece
            }
        })
        .await
    }

    /// Paths that a peer is told, or all peers.
    ///
    /// # Errors
    /// [`Ended`] when the daemon is stopping.
    pub async fn advertised(&self, peer: Option<PeerId>, from: Position) -> Result<Piece<AdvertisedReport>, Ended> {
        self.ask(move |core| advertised(&core.borrow(), peer, from)).await
    }

    /// Every path to a prefix, the best first.
    ///
    /// # Errors
    /// [`Ended`] when the daemon is stopping.
    pub async fn explain(&self, wanted: Wanted) -> Result<Vec<PathReport>, Ended> {
        self.ask(move |core| explain(&mut core.borrow_mut(), wanted)).await
    }

    /// Writes an MRT table into the configured folder; returns the file.
    ///
    /// # Errors
    /// [`Ended`] when the daemon is stopping; [`DumpError`] inside.
    pub async fn dump(&self) -> Result<Result<PathBuf, DumpError>, Ended> {
        let (answer, written) = oneshot::channel();
        self.ask(move |core| {
            let core = core.clone();
            // Whoever asked may have gone.
            spawn_local(async move { drop(answer.send(monitor::dump(&core).await)) });
        })
        .await?;
        written.await.map_err(|_| Ended)
    }

    /// The last messages and changes of a peer, oldest first.
    ///
    /// # Errors
    /// [`Ended`] when the daemon is stopping.
    pub async fn history(&self, peer: PeerId) -> Result<Vec<(Timestamp, Entry)>, Ended> {
        self.ask(move |core| {
            let core = core.borrow();
            let clock = Clock::new(&core);
            let entries = core.speaker.session(peer).map(|session| session.history().entries()).unwrap_or_default();
            entries.into_iter().map(|entry| (clock.time(entry.at), entry)).collect()
        })
        .await
    }

    /// Ends the session of a peer, which then begins again.
    ///
    /// # Errors
    /// [`Ended`] when the daemon is stopping.
    pub async fn reset(&self, peer: PeerId, communication: String) -> Result<ResetReport, Ended> {
        self.ask(move |core| {
            let report = {
                let core = core.borrow();
                let was_established = core.speaker.session(peer).is_some_and(|it| it.negotiated().is_some());
                ResetReport { peer: core.name(peer), was_established, ..ResetReport::default() }
            };
            Core::event(core, peer, Event::Reset { communication });
            report
        })
        .await
    }

    /// Asks a peer for everything again and sends it everything again; the session goes on.
    ///
    /// # Errors
    /// [`Ended`] when the daemon is stopping.
    pub async fn refresh(&self, peer: PeerId) -> Result<ResetReport, Ended> {
        self.ask(move |core| {
            let mut report = ResetReport::default();
            {
                let mut core = core.borrow_mut();
                report.peer = core.name(peer);
                let agreed = core.speaker.session(peer).and_then(|session| session.negotiated());
                let Some(agreed) = agreed else { return report };
                report.was_established = true;
                let shared = agreed.families.iter().filter(|(_, agreed)| agreed.is_some()).map(|(family, _)| family);
                report.resent = shared.collect();
                if agreed.route_refresh {
                    report.requested = report.resent.clone();
                }
                for family in &report.resent {
                    core.speaker.resend(peer, *family);
                }
            }
            for family in &report.requested {
                Core::event(core, peer, Event::RequestRefresh(*family));
            }
            report
        })
        .await
    }
}

fn paths(core: &Core, from: Position) -> Piece<PathReport> {
    let rib = core.speaker.rib();
    let page = match from.family {
        Family::Ipv4Unicast => rib.paths::<V4>(from.at, ROWS_AT_ONCE),
        Family::Ipv6Unicast => rib.paths::<V6>(from.at, ROWS_AT_ONCE),
    };
    path_piece(core, from, page)
}

fn received(core: &Core, peer: PeerId, from: Position) -> Piece<PathReport> {
    let rib = core.speaker.rib();
    let page = match from.family {
        Family::Ipv4Unicast => rib.received::<V4>(peer, from.at, ROWS_AT_ONCE),
        Family::Ipv6Unicast => rib.received::<V6>(peer, from.at, ROWS_AT_ONCE),
    };
    path_piece(core, from, page)
}

fn path_piece(core: &Core, from: Position, page: Page<PathView>) -> Piece<PathReport> {
    Piece { next: next_of_family(from, page.next), rows: reports(core, page.entries) }
}

fn reports(core: &Core, views: Vec<PathView>) -> Vec<PathReport> {
    let clock = Clock::new(core);
    let report = |view: PathView| PathReport {
        peer: sender(core, view.peer),
        since: clock.time(view.since),
        view,
        exports: None,
    };
    views.into_iter().map(report).collect()
}

fn advertised(core: &Core, peer: Option<PeerId>, from: Position) -> Piece<AdvertisedReport> {
    // A peer may have gone since the last piece: the next one is as good.
    let first = core.known.range(from.peer..).next().map(|(id, _)| *id);
    let Some(told) = peer.or(first) else { return Piece { rows: Vec::new(), next: None } };
    let from = if peer.is_none() && told != from.peer { Position::start(told) } else { from };
    let rib = core.speaker.rib();
    let page = match from.family {
        Family::Ipv4Unicast => rib.advertised::<V4>(told, from.at, ROWS_AT_ONCE),
        Family::Ipv6Unicast => rib.advertised::<V6>(told, from.at, ROWS_AT_ONCE),
    };
    let name = core.name(told);
    let report =
        |view: AdvertisedView| AdvertisedReport { peer: name.clone(), source: sender(core, view.source), view };
    let next_peer = || {
        let after = PeerId(told.0.checked_add(1)?);
        core.known.range(after..).next().filter(|_| peer.is_none()).map(|(id, _)| Position::start(*id))
    };
    let next = next_of_family(from, page.next).or_else(next_peer);
    Piece { rows: page.entries.into_iter().map(report).collect(), next }
}

/// The next piece of this family, or the first one of the next family.
fn next_of_family(from: Position, next: Option<Cursor>) -> Option<Position> {
    match (next, from.family) {
        (Some(at), _) => Some(Position { at, ..from }),
        (None, Family::Ipv4Unicast) => {
            Some(Position { family: Family::Ipv6Unicast, at: Cursor::default(), peer: from.peer })
        }
        (None, Family::Ipv6Unicast) => None,
    }
}

fn explain(core: &mut Core, wanted: Wanted) -> Vec<PathReport> {
    let rib = core.speaker.rib();
    let prefix = match wanted {
        Wanted::Prefix(prefix) => Some(prefix),
        Wanted::Longest(address) => {
            let host = IpNet::from(address);
            match host {
                IpNet::V4(_) => V4::from_net(&host).and_then(|host| rib.longest_match(host)).map(|it| it.to_net()),
                IpNet::V6(_) => V6::from_net(&host).and_then(|host| rib.longest_match(host)).map(|it| it.to_net()),
            }
        }
    };
    let Some(prefix) = prefix else { return Vec::new() };
    let rib = core.speaker.rib_mut();
    let explained = match prefix {
        IpNet::V4(_) => V4::from_net(&prefix).map(|prefix| (rib.explain(prefix), rib.explain_exports(prefix))),
        IpNet::V6(_) => V6::from_net(&prefix).map(|prefix| (rib.explain(prefix), rib.explain_exports(prefix))),
    };
    let (views, exports) = explained.unwrap_or_default();
    let mut reports = reports(core, views);
    for (report, exports) in reports.iter_mut().zip(exports) {
        report.exports = Some(name_exports(core, exports));
    }
    reports
}

fn name_exports(core: &Core, exports: ExportsView) -> ExportsReport {
    let ExportsView { told, withheld } = exports;
    let mut told: Vec<String> = told.into_iter().map(|peer| core.name(peer)).collect();
    told.sort_unstable();
    let mut withheld: Vec<_> = withheld.into_iter().map(|it| (core.name(it.peer), it.why, it.rule)).collect();
    withheld.sort_unstable();
    ExportsReport { told, withheld }
}

fn sender(core: &Core, peer: PeerId) -> Option<String> {
    (peer != PeerId::LOCAL).then(|| core.name(peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_as_they_are_written() {
        let position = Position { family: Family::Ipv6Unicast, peer: PeerId(7), at: Cursor::from_number(1_000_000) };
        assert_eq!(position.to_string().parse(), Ok(position));
        for text in ["", "1", "1.1", "1.1.x", "1.1.1.1", "70000.1.1", "1.3.1", "1.1.5000000000"] {
            assert_eq!(text.parse::<Position>(), Err(NoPosition), "{text:?}");
        }
    }

    #[test]
    fn both_families_are_walked() {
        let start = Position::default();
        let second = next_of_family(start, None).expect("the other family");
        assert_eq!(second.family, Family::Ipv6Unicast);
        assert_eq!(next_of_family(second, None), None);
        let on = next_of_family(start, Some(Cursor::from_number(9))).expect("more");
        assert_eq!((on.family, on.at), (Family::Ipv4Unicast, Cursor::from_number(9)));
    }
}
