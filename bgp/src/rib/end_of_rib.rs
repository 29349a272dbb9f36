//! When a peer has been told its first table.
//!
//! End-of-RIB (RFC 4724 section 2) tells a peer to drop what it kept of our last session and was not told again. So it comes
//! behind everything that was in the table when the session came up, however much that is; and it comes even when the table
//! never stops changing, because what is waited for is fixed once and never grows.

use super::{
    Core, FamilyTable, Rib,
    group::Group,
    member::{Member, Progress},
};
use crate::{family::Prefix, id::PeerId, wire::encode};

/// How far a member is on the way to the end of its first table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndOfRib {
    /// Nobody has looked yet what there is.
    Due,
    /// What waited for a decision then is decided when this many decisions were made.
    Deciding(u64),
    /// What was pending then is packed with this batch.
    Packing(u64),
    /// All of it lies before this record of the log.
    Reading(u64),
    /// It was told.
    Told,
}

/// How many decisions were made, and how many destinations wait for one. `None` while selection is deferred.
pub(super) type Decisions = Option<(u64, usize)>;

impl Rib {
    /// Has the peer yet to be told the end of its first table of some family?
    #[must_use]
    pub fn owes_end_of_rib(&self, peer: PeerId) -> bool {
        self.tables.ipv4.owed(&self.core, peer).is_some() || self.tables.ipv6.owed(&self.core, peer).is_some()
    }

    /// Would the peer be told so if it took what there is for it? Nothing may have come of the last decisions, so that no
    /// flush says that there is something to take.
    #[must_use]
    pub fn has_end_of_rib(&self, peer: PeerId) -> bool {
        self.tables.ipv4.has_end_of_rib(&self.core, peer) || self.tables.ipv6.has_end_of_rib(&self.core, peer)
    }
}

impl<P: Prefix> FamilyTable<P> {
    pub(super) fn decisions(&self) -> Decisions {
        (!self.deferred).then_some((self.decided, self.dirty.len()))
    }

    fn owed(&self, core: &Core, peer: PeerId) -> Option<(&Group<P>, EndOfRib)> {
        let group = self.group_of(core, peer)?;
        let member = group.member(peer).filter(|member| member.owes_end_of_rib())?;
        Some((group, member.end_of_rib))
    }

    fn has_end_of_rib(&self, core: &Core, peer: PeerId) -> bool {
        let is_near =
            |(group, at): (&Group<P>, _)| matches!(group.approach(at, self.decisions()), EndOfRib::Reading(_));
        self.owed(core, peer).is_some_and(is_near)
    }
}

impl<P> Group<P> {
    /// Goes on as far as can be gone now.
    fn approach(&self, from: EndOfRib, decisions: Decisions) -> EndOfRib {
        let Some((decided, waiting)) = decisions else {
            return from;
        };
        let mut at = from;
        if at == EndOfRib::Due {
            at = EndOfRib::Deciding(decided + waiting as u64);
        }
        // Destinations are decided in the order in which they came to wait.
        if matches!(at, EndOfRib::Deciding(last) if decided >= last) {
            at = EndOfRib::Packing(self.batches + u64::from(!self.pending.is_empty()));
        }
        if let EndOfRib::Packing(last) = at
            && (self.batches > last || self.batches == last && self.batch.is_empty())
        {
            at = EndOfRib::Reading(self.log.head());
        }
        at
    }
}

impl<P: Prefix> Group<P> {
    /// Tells a member that this was all, once it was.
    pub(super) fn end_of_rib(&mut self, peer: PeerId, out: &mut Vec<u8>, decisions: Decisions) {
        let Some(before) = self.member(peer).map(|member| member.end_of_rib).filter(|it| *it != EndOfRib::Told) else {
            return;
        };
        let mut at = self.approach(before, decisions);
        let Some(member) = self.member_mut(peer) else {
            return;
        };
        if let (EndOfRib::Reading(last), Progress::Reading(cursor)) = (at, member.progress)
            && cursor >= last
        {
            at = EndOfRib::Told;
            encode::end_of_rib(out, P::FAMILY);
        }
        member.end_of_rib = at;
    }
}

impl Member {
    pub(super) fn owes_end_of_rib(&self) -> bool {
        self.end_of_rib != EndOfRib::Told
    }
}
