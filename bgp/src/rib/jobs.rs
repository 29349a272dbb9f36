//! Walks through a whole table, in slices.
//!
//! One walk at a time, in the order in which they were asked for: they mean what they say only against what was there
//! when they began. A peer that comes up again before the walks of its last session are through waits for them
//! ([`FamilyTable::finish_jobs_of`]); everything else goes on in between.

use super::{
    Core, FamilyTable,
    attributes::has,
    chunked::NONE,
    import::mark_long_lived,
    next_hops::Stamp,
    table::{is, mark},
};
use crate::{family::Prefix, id::PeerId};

/// A walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Job {
    kind: JobKind,
    /// The destination to go on with.
    next: u32,
}

/// What is done to each path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JobKind {
    /// Remove the paths of a peer.
    Remove(PeerId),
    /// Keep the paths of a peer as stale; remove those that were stale already (RFC 4724 section 4.2), except long-lived
    /// ones, which have a time of their own (RFC 9494 section 4.2).
    MarkStale(PeerId),
    /// Keep the stale paths of a peer as the least preferred ones (RFC 9494 section 4.2).
    MarkLongLived(PeerId),
    /// Remove the stale paths of a peer.
    SweepStale(PeerId),
    /// The peer is about to send everything again (RFC 7313).
    BeginRefresh(PeerId),
    /// What it has not sent again is gone.
    EndRefresh(PeerId),
    /// Ask the import policy of a peer again.
    Reimport(PeerId),
    /// Decide again what leads to next hops about which something was found out then or later.
    NextHops(Stamp),
    /// Decide everything again.
    Redecide,
    /// Look again what is told of everything.
    Reexport,
    /// Say again how everything is forwarded.
    Reforward,
}

impl JobKind {
    const fn peer(self) -> Option<PeerId> {
        match self {
            Self::Remove(peer)
            | Self::MarkStale(peer)
            | Self::MarkLongLived(peer)
            | Self::SweepStale(peer)
            | Self::BeginRefresh(peer)
            | Self::EndRefresh(peer)
            | Self::Reimport(peer) => Some(peer),
            Self::NextHops(_) | Self::Redecide | Self::Reexport | Self::Reforward => None,
        }
    }
}

impl Job {
    pub(super) const fn new(kind: JobKind) -> Self {
        Self { kind, next: 0 }
    }
}

/// What to do with one path.
enum Step {
    Keep,
    Remove,
    SetStale,
    SetLongLived,
    SetAwaitsRefresh,
    Reimport,
    Decide,
}

impl<P: Prefix> FamilyTable<P> {
    /// A walk that is waiting for the same thing to be done is not asked for twice, unless something else is to be done to
    /// the paths of the same peer in between.
    pub(super) fn add_job(&mut self, job: Job) {
        let begun = usize::from(self.jobs.front().is_some_and(|first| first.next > 0));
        let mut waiting = self.jobs.iter().skip(begun).rev().map(|waiting| waiting.kind);
        let is_waiting = match job.kind.peer() {
            Some(peer) => waiting.find(|kind| kind.peer() == Some(peer)) == Some(job.kind),
            None => waiting.any(|kind| kind == job.kind),
        };
        if !is_waiting {
            self.jobs.push_back(job);
        }
    }

    /// Has what leads to a next hop decided again. One walk is enough for all news until it begins.
    pub(super) fn follow_next_hops(&mut self, stamp: Stamp) {
        let covers = |job: &Job| job.next == 0 && matches!(job.kind, JobKind::NextHops(_));
        if !self.jobs.iter().any(covers) {
            self.jobs.push_back(Job::new(JobKind::NextHops(stamp)));
        }
    }

    /// Goes on with the first walk; false when there is none.
    pub(super) fn run_job(&mut self, core: &mut Core, left: &mut usize) -> bool {
        let Some(mut job) = self.jobs.pop_front() else {
            return false;
        };
        while *left > 0 && job.next < self.table.end() && !self.is_vain(core, job.kind) {
            *left -= 1;
            self.visit(core, job.next, job.kind);
            job.next += 1;
        }
        if job.next < self.table.end() && !self.is_vain(core, job.kind) {
            self.jobs.push_front(job);
        }
        true
    }

    /// Completes the walks up to the last one that concerns a peer, however long that takes.
    pub(super) fn finish_jobs_of(&mut self, core: &mut Core, peer: PeerId) {
        while self.jobs.iter().any(|job| job.kind.peer() == Some(peer)) {
            self.run_job(core, &mut usize::MAX.clone());
        }
    }

    /// Has the walk nothing left to find?
    fn is_vain(&self, core: &Core, kind: JobKind) -> bool {
        let counts = |peer: PeerId| core.peers.get(peer).map(|peer| *peer.counts.get(P::FAMILY)).unwrap_or_default();
        match kind {
            JobKind::Remove(peer)
            | JobKind::Reimport(peer)
            | JobKind::MarkStale(peer)
            | JobKind::BeginRefresh(peer) => counts(peer).received == 0,
            JobKind::SweepStale(peer) | JobKind::MarkLongLived(peer) | JobKind::EndRefresh(peer) => {
                counts(peer).stale == 0
            }
            JobKind::NextHops(_) | JobKind::Redecide | JobKind::Reexport | JobKind::Reforward => false,
        }
    }

    fn visit(&mut self, core: &mut Core, at: u32, kind: JobKind) {
        if self.table.get_destination(at).is_none() {
            return;
        }
        match kind {
            JobKind::Reexport => return self.touch(at, mark::BEST_TOUCHED),
            JobKind::Reforward => return self.touch(at, mark::FORWARDING_TOUCHED),
            _ => {}
        }
        let mut next = self.table.destination(at).head;
        while next != NONE {
            let number = next;
            next = self.table.path(number).next;
            match self.step(core, number, kind) {
                Step::Keep => {}
                Step::Remove => self.remove_path(core, at, number),
                Step::SetStale => self.set_stale(core, number, is::STALE),
                Step::SetAwaitsRefresh => self.set_stale(core, number, is::AWAITS_REFRESH),
                Step::SetLongLived => self.set_long_lived(core, at, number),
                Step::Reimport => self.reimport(core, at, number),
                Step::Decide => self.touch(at, 0),
            }
        }
    }

    fn step(&self, core: &Core, number: u32, kind: JobKind) -> Step {
        let path = self.table.path(number);
        if kind.peer().is_some_and(|peer| peer != path.peer) {
            return Step::Keep;
        }
        match kind {
            JobKind::Remove(_) => Step::Remove,
            JobKind::MarkStale(_) if path.is(is::LONG_LIVED_STALE) => Step::Keep,
            JobKind::MarkStale(_) if path.is(is::STALE) => Step::Remove,
            JobKind::MarkStale(_) => Step::SetStale,
            JobKind::SweepStale(_) if path.is(is::STALE) => Step::Remove,
            JobKind::MarkLongLived(_) if path.is(is::STALE) => {
                // As sent, or because the policy says so.
                let sets = [Some(path.received), path.imported.attributes()];
                if sets.into_iter().flatten().any(|set| core.sets.view(set).has(has::NO_LLGR)) {
                    Step::Remove
                } else {
                    Step::SetLongLived
                }
            }
            JobKind::EndRefresh(_) if path.is(is::AWAITS_REFRESH) => Step::Remove,
            JobKind::BeginRefresh(_) => Step::SetAwaitsRefresh,
            JobKind::Reimport(_) => Step::Reimport,
            JobKind::NextHops(stamp) => {
                let is_news = |set| core.next_hops.is_resolved_since(core.sets.next_hop(set), stamp);
                if path.imported.attributes().is_some_and(is_news) { Step::Decide } else { Step::Keep }
            }
            JobKind::Redecide | JobKind::Reexport | JobKind::Reforward => Step::Decide,
            JobKind::SweepStale(_) | JobKind::MarkLongLived(_) | JobKind::EndRefresh(_) => Step::Keep,
        }
    }

    fn set_stale(&mut self, core: &mut Core, number: u32, flag: u8) {
        let path = self.table.path_mut(number);
        let was = path.is(is::STALE | is::AWAITS_REFRESH);
        path.flags |= flag;
        let peer = path.peer;
        if !was {
            self.count(core, peer, |counts| counts.stale += 1);
        }
    }

    fn set_long_lived(&mut self, core: &mut Core, at: u32, number: u32) {
        let path = *self.table.path(number);
        if path.is(is::LONG_LIVED_STALE) {
            return;
        }
        let imported = mark_long_lived(core, path.imported);
        let entry = self.table.path_mut(number);
        entry.flags |= is::LONG_LIVED_STALE;
        entry.imported = imported;
        let marks = if path.is(is::BEST) { mark::BEST_TOUCHED } else { 0 };
        self.touch(at, marks);
    }
}
