//! What tables hold, as UPDATE messages, a page at a time.

use bgp::{
    Family, NextHop, Prefix,
    bmp::Table,
    family::{V4, V6},
    id::{PathId, PeerId},
    rib::{Cursor, Rib, Stored},
    wire::{
        attributes::Attributes,
        encode::{self, Target},
        header::HEADER_LEN,
        nlri::Nlri,
        update,
    },
};
use tracing::debug;

use super::Described;

/// Paths of a page.
const PAGE: usize = 256;

/// What is walked over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// What a peer sent.
    Received,
    /// What of it was accepted.
    Accepted,
    /// The same, after it was judged anew: what is not accepted any more is withdrawn.
    AcceptedAgain,
    /// What a peer is told.
    Advertised,
}

impl View {
    pub(super) const fn table(self) -> Table {
        match self {
            Self::Received => Table::AdjRibIn { post_policy: false },
            Self::Accepted | Self::AcceptedAgain => Table::AdjRibIn { post_policy: true },
            Self::Advertised => Table::AdjRibOut { post_policy: true },
        }
    }
}

/// A walk over one family of a peer's tables.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    pub(super) peer: PeerId,
    pub(super) family: Family,
    pub(super) view: View,
    at: Cursor,
}

/// A path to be written: identifier, prefix, and (`None` when withdrawn) attributes and next hop.
type Item<P> = (PathId, P, Option<(Vec<u8>, NextHop)>);

impl Walk {
    pub(super) fn new(peer: PeerId, family: Family, view: View) -> Self {
        Self { peer, family, view, at: Cursor::default() }
    }

    /// Appends the next page; true when that was the last one.
    pub(super) fn step(&mut self, rib: &Rib, described: &Described, out: &mut Vec<u8>) -> bool {
        match self.family {
            Family::Ipv4Unicast => self.step_of::<V4>(rib, described, out),
            Family::Ipv6Unicast => self.step_of::<V6>(rib, described, out),
        }
    }

    fn step_of<P: Stored>(&mut self, rib: &Rib, described: &Described, out: &mut Vec<u8>) -> bool {
        let target = if self.view == View::Advertised { &described.sent } else { &described.received };
        let (items, next): (Vec<Item<P>>, _) = if self.view == View::Advertised {
            let page = rib.advertised::<P>(self.peer, self.at, PAGE);
            let item = |view: bgp::rib::AdvertisedView| {
                Some((view.path_id, P::from_net(&view.prefix)?, Some((view.attributes, view.next_hop))))
            };
            (page.entries.into_iter().filter_map(item).collect(), page.next)
        } else {
            let page = rib.received::<P>(self.peer, self.at, PAGE);
            let item = |view: bgp::rib::PathView| {
                let next_hop = view.next_hop.or(view.received_next_hop);
                let path = match self.view {
                    View::Received => view.received_next_hop.map(|next_hop| (view.received, next_hop)),
                    View::Accepted | View::AcceptedAgain | View::Advertised => view.accepted.zip(next_hop),
                };
                (path.is_some() || self.view == View::AcceptedAgain).then_some(())?;
                Some((view.path_id, P::from_net(&view.prefix)?, path))
            };
            (page.entries.into_iter().filter_map(item).collect(), page.next)
        };
        write(out, target, items);
        match next {
            Some(next) => {
                self.at = next;
                false
            }
            None => true,
        }
    }
}

/// What became of the prefixes of an UPDATE after import policy, as UPDATEs.
pub(super) fn judged(rib: &Rib, peer: PeerId, described: &Described, message: &[u8]) -> Vec<u8> {
    let (mut out, mut scratch) = (Vec::new(), Vec::new());
    let Some(body) = message.get(HEADER_LEN..) else { return out };
    // A malformed one was answered with the end of the session.
    let Ok(update) = update::decode(body, &described.context, &mut scratch) else { return out };
    let announced: Vec<Nlri<'_>> = update.announcements().map(|announced| announced.nlri).collect();
    for nlri in update.withdrawals().chain(announced) {
        match nlri.family() {
            Family::Ipv4Unicast => judged_of::<V4>(rib, peer, described, nlri, &mut out),
            Family::Ipv6Unicast => judged_of::<V6>(rib, peer, described, nlri, &mut out),
        }
    }
    if let Some(family) = update.end_of_rib {
        encode::end_of_rib(&mut out, family);
    }
    out
}

fn judged_of<P: Stored>(rib: &Rib, peer: PeerId, described: &Described, nlri: Nlri<'_>, out: &mut Vec<u8>) {
    let item = |(path_id, prefix): (PathId, P)| {
        let path = rib.accepted_path(peer, path_id, prefix);
        (path_id, prefix, path.map(|(attributes, next_hop)| (attributes.to_vec(), next_hop)))
    };
    write(out, &described.received, nlri.iter::<P>().map(item).collect());
}

/// Appends UPDATEs, one for each run of equal attributes.
fn write<P: Prefix>(out: &mut Vec<u8>, target: &Target, items: Vec<Item<P>>) {
    for run in items.chunk_by(|(_, _, a), (_, _, b)| a == b) {
        let mut prefixes = run.iter().map(|(path_id, prefix, _)| (*path_id, *prefix)).peekable();
        while prefixes.peek().is_some() {
            let written = match run.first().and_then(|(_, _, path)| path.as_ref()) {
                Some((attributes, next_hop)) => {
                    encode::announce(out, target, Attributes(attributes), *next_hop, &mut prefixes).map(drop)
                }
                None => encode::withdraw(out, target, &mut prefixes).map(drop),
            };
            if let Err(error) = written {
                debug!(%error, "a path cannot be told to those who watch");
                break;
            }
        }
    }
}
