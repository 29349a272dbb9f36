//! Answers for people: who is told a path, and who is not and why.

use super::{
    AdvertisedView, Core, FamilyTable, NotAdvertised, Rib, Stored,
    chunked::NONE,
    decision,
    export::export,
    group::GroupKey,
    pack::Reading,
    run::contender,
    table::{Path, is},
};
use crate::{
    family::Prefix,
    id::{PathId, PeerId},
};

/// Who is told a path, and who is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportsView {
    /// Peers that are told, as soon as they have read everything.
    pub told: Vec<PeerId>,
    /// Peers that are not.
    pub withheld: Vec<Withheld>,
}

/// A peer that is not told a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withheld {
    /// The peer.
    pub peer: PeerId,
    /// Why not.
    pub why: NotAdvertised,
    /// The rule of its export policy that refused the path.
    pub rule: Option<String>,
}

impl Rib {
    /// Why the best path to a prefix is not told to a peer; `Ok` when it is.
    ///
    /// # Errors
    /// The reason.
    pub fn explain_export<P: Stored>(&mut self, peer: PeerId, prefix: P) -> Result<AdvertisedView, NotAdvertised> {
        P::of_mut(&mut self.tables).explain_export(&mut self.core, peer, prefix)
    }

    /// What peers are told of each path to a prefix, in the order of [`Self::explain`]. Of a path that is not best, only
    /// peers that take several paths are named.
    #[must_use]
    pub fn explain_exports<P: Stored>(&mut self, prefix: P) -> Vec<ExportsView> {
        P::of_mut(&mut self.tables).explain_exports(&mut self.core, prefix)
    }
}

impl<P: Prefix> FamilyTable<P> {
    fn explain_export(&mut self, core: &mut Core, peer: PeerId, prefix: P) -> Result<AdvertisedView, NotAdvertised> {
        let Self { table, locals, .. } = self;
        let reading = Reading { table, locals };
        let (key, own) = group_key::<P>(core, peer)?;
        let at = reading.table.find(prefix).filter(|at| reading.table.destination(*at).head != NONE);
        let (_, path) = at.and_then(|at| reading.table.best(at)).ok_or(NotAdvertised::NoBestPath)?;
        let out = told(core, reading, &key, peer, prefix, path)?;
        let via = core.next_hops.get(core.sets.next_hop(out));
        let view = AdvertisedView {
            prefix: prefix.to_net(),
            path_id: PathId(0),
            attributes: core.sets.octets(out).to_vec(),
            next_hop: via.map_or(own, |(next_hop, _)| next_hop),
            source: path.peer,
        };
        core.release(out);
        Ok(view)
    }

    fn explain_exports(&mut self, core: &mut Core, prefix: P) -> Vec<ExportsView> {
        let Self { table, locals, .. } = self;
        let reading = Reading { table, locals };
        let Some(at) = table.find(prefix) else { return Vec::new() };
        let mut contenders: Vec<_> =
            table.paths_of(at).filter_map(|(number, path)| contender(core, number, path)).collect();
        decision::rank(&mut contenders, &core.config.decision);
        let is_router = |id: &PeerId| core.peers.get(*id).is_some_and(|peer| !peer.settings.watches);
        let peers: Vec<PeerId> = core.peers.ids().filter(is_router).collect();
        let of_path = |(number, path): (u32, &Path)| {
            let mut view = ExportsView::default();
            let Some(rank) = contenders.iter().position(|contender| contender.at == number) else { return view };
            for peer in &peers {
                let outcome = match group_key::<P>(core, *peer) {
                    Ok((key, _)) if !key.add_path && !path.is(is::BEST) => continue,
                    Ok((key, _)) if key.add_path && key.add_path_max != 0 && rank >= usize::from(key.add_path_max) => {
                        Err(NotAdvertised::BeyondMaximum)
                    }
                    Ok((key, _)) => told(core, reading, &key, *peer, prefix, path),
                    Err(_) if !path.is(is::BEST) => continue,
                    Err(why) => Err(why),
                };
                match outcome {
                    Ok(out) => {
                        core.release(out);
                        view.told.push(*peer);
                    }
                    Err(why) => {
                        let rule = rule_name::<P>(core, *peer, why);
                        view.withheld.push(Withheld { peer: *peer, why, rule });
                    }
                }
            }
            view
        };
        table.paths_of(at).map(of_path).collect()
    }
}

/// The group of a peer, and its own next hop.
fn group_key<P: Prefix>(core: &Core, peer: PeerId) -> Result<(GroupKey, crate::NextHop), NotAdvertised> {
    let state = core.peers.get(peer).ok_or(NotAdvertised::NoSession)?;
    state.session_family(P::FAMILY).ok_or(NotAdvertised::NoSession)?;
    GroupKey::of(state, P::FAMILY).ok_or(NotAdvertised::NoNextHop)
}

/// What a peer of a group is told of a path. The caller holds the result.
fn told<P: Prefix>(
    core: &mut Core,
    reading: Reading<'_, P>,
    key: &GroupKey,
    peer: PeerId,
    prefix: P,
    path: &Path,
) -> Result<super::attributes::AttrId, NotAdvertised> {
    if path.peer == peer {
        return Err(NotAdvertised::SplitHorizon);
    }
    if reading.locals.is_summarized(prefix) {
        return Err(NotAdvertised::Summarized);
    }
    let set = path.imported.attributes().ok_or(NotAdvertised::NoBestPath)?;
    export(core, key, prefix, set, reading.from(path))
}

fn rule_name<P: Prefix>(core: &Core, peer: PeerId, why: NotAdvertised) -> Option<String> {
    let NotAdvertised::Policy(rule) = why else { return None };
    Some(core.peers.get(peer)?.export.get(P::FAMILY).rule_name(rule).to_owned())
}
