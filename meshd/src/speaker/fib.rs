//! Best paths on their way to the kernel, and what the kernel says about next hops on its way back.
//!
//! Routes are pulled from the tables a batch at a time and only when the pipeline has room: what waits, waits in the tables,
//! once for each prefix. So neither a slow kernel nor a flood of changes costs memory, and nothing of it delays what is
//! advertised.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use bgp::{
    NextHop,
    rib::{FibChange, FibTarget, Resolution as Known, Scope},
};
use jiff::Timestamp;
use meshd_core::{
    clustermesh::over_bgp::OverBgp,
    desired::Resolution,
    id::IfIndex,
    observed::{BgpChange, BgpHop, BgpNextHop, BgpTarget, Change},
    table::Table,
};
use tokio::sync::mpsc;

use super::core::Shared;

/// Routes in one message to the pipeline.
pub(super) const BATCH_MAX: usize = 4_096;

/// What of the speaker the pipeline knows.
#[derive(Default)]
pub(super) struct Fib {
    /// Next hops that are watched, with those of the tables that they stand for.
    watched: BTreeMap<BgpNextHop, Vec<(NextHop, Scope)>>,
    version: Option<u64>,
    seen: Table<BgpNextHop, Resolution>,
    complete_told: bool,
}

/// Hands routes to the pipeline for as long as it lives.
pub(super) async fn carry(core: Shared, changes: mpsc::Sender<Change>) {
    let news = core.borrow().fib_news.clone();
    loop {
        news.notified().await;
        loop {
            // The room first, then the routes: a change of mind while we wait replaces what was to be told.
            let Ok(room) = changes.reserve().await else { return };
            let (batch, more) = core.borrow_mut().next_batch();
            if let Some(batch) = batch {
                room.send(batch);
            }
            if !more {
                break;
            }
        }
    }
}

impl Fib {
    /// Which next hops are to be watched now, as changes. The tables are told what is known of them already: one that went
    /// and came back since the last call, or stands for the same address as another, causes no news.
    pub(super) fn watch(&mut self, rib: &mut bgp::rib::Rib) -> Vec<BgpChange> {
        if self.version == Some(rib.next_hops_version()) {
            return Vec::new();
        }
        self.version = Some(rib.next_hops_version());
        let mut wanted: BTreeMap<BgpNextHop, Vec<(NextHop, Scope)>> = BTreeMap::new();
        for tracked in rib.next_hops_to_track() {
            wanted
                .entry(next_hop(tracked.next_hop, tracked.scope))
                .or_default()
                .push((tracked.next_hop, tracked.scope));
        }
        let old = std::mem::replace(&mut self.watched, wanted);
        let new = self.watched.keys().filter(|next_hop| !old.contains_key(next_hop)).map(|it| BgpChange::Watch(*it));
        let gone = old.keys().filter(|next_hop| !self.watched.contains_key(next_hop)).map(|it| BgpChange::Unwatch(*it));
        let changes = new.chain(gone).collect();
        for key in self.watched.keys() {
            self.tell(rib, key);
        }
        changes
    }

    /// Tells the tables how next hops are reached; true when something changed.
    pub(super) fn resolve(&mut self, rib: &mut bgp::rib::Rib, next_hops: &Table<BgpNextHop, Resolution>) -> bool {
        let old = std::mem::replace(&mut self.seen, next_hops.clone());
        let mut changed = false;
        for diff in self.seen.diff(&old) {
            changed |= self.tell(rib, diff.key());
        }
        changed
    }

    /// Tells the tables what is known of one.
    fn tell(&self, rib: &mut bgp::rib::Rib, key: &BgpNextHop) -> bool {
        let known = match self.seen.get(key) {
            Some(Resolution::Reachable { metric, .. }) => Known::Reachable { metric: *metric },
            Some(Resolution::Unreachable(_)) => Known::Unreachable,
            Some(Resolution::Unknown) | None => Known::Unknown,
        };
        let behind = self.watched.get(key).map_or(&[][..], Vec::as_slice);
        for (next_hop, scope) in behind {
            rib.set_next_hop(*next_hop, *scope, known);
        }
        !behind.is_empty()
    }

    /// Other next hops are in use than those that are watched.
    pub(super) fn is_behind(&self, rib: &bgp::rib::Rib) -> bool {
        self.version != Some(rib.next_hops_version())
    }

    /// Everything has been told once.
    pub(super) fn is_complete(&self) -> bool {
        self.complete_told
    }

    /// Says once that everything has been told.
    pub(super) fn complete(&mut self) -> Option<BgpChange> {
        (!std::mem::replace(&mut self.complete_told, true)).then_some(BgpChange::Complete)
    }
}

/// The next hop as the pipeline knows it. What is on a link is named with the link; of a pair, the link-local address is
/// what packets are sent to, when the peer is on a link.
pub(super) fn next_hop(next_hop: NextHop, scope: Scope) -> BgpNextHop {
    let link = (scope.0 != 0).then_some(IfIndex(scope.0));
    match next_hop {
        NextHop::V4(address) => BgpNextHop { address: address.into(), link: None },
        NextHop::V6(address) if address.is_unicast_link_local() => BgpNextHop { address: address.into(), link },
        NextHop::V6(address) => BgpNextHop { address: address.into(), link: None },
        NextHop::V6Pair { link_local, .. } if link.is_some() => BgpNextHop { address: link_local.into(), link },
        NextHop::V6Pair { global, .. } => BgpNextHop { address: global.into(), link: None },
    }
}

/// What is left of a route when what is a cluster's that is told over BGP is taken out of it.
pub(super) fn divert(over_bgp: &mut OverBgp, change: BgpChange, mark: Option<u32>, now: Timestamp) -> BgpChange {
    let BgpChange::Route(prefix, target) = &change else { return change };
    if over_bgp.is_off() {
        return change;
    }
    let next_hops: Vec<IpAddr> =
        target.iter().flat_map(|target| target.hops()).map(|hop| hop.next_hop.address).collect();
    let path = mark.map(|mark| (mark, next_hops.as_slice()));
    if over_bgp.path(*prefix, path, now) { BgpChange::Route(*prefix, None) } else { change }
}

/// A route of the tables as the pipeline knows it; equal sets of next hops share their memory through `shared`.
pub(super) fn route(change: FibChange, shared: &mut BTreeMap<Vec<BgpHop>, Arc<[BgpHop]>>) -> BgpChange {
    let FibChange { prefix, route } = change;
    let Some(route) = route else { return BgpChange::Route(prefix, None) };
    let next_hops = match &route.to {
        FibTarget::Drop => return BgpChange::Route(prefix, Some(BgpTarget::Drop)),
        FibTarget::Via(next_hops) => next_hops,
    };
    let mut hops: Vec<BgpHop> = next_hops
        .iter()
        .map(|hop| BgpHop { next_hop: next_hop(hop.next_hop, hop.scope), weight: hop.weight.max(1) })
        .collect();
    hops.sort_unstable();
    hops.dedup_by_key(|hop| hop.next_hop);
    let hops = match shared.get(&hops) {
        Some(known) => known.clone(),
        None => {
            let new: Arc<[BgpHop]> = hops.clone().into();
            shared.insert(hops, new.clone());
            new
        }
    };
    BgpChange::Route(prefix, Some(BgpTarget::Via { hops, ipv4: prefix.addr().is_ipv4() }))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use bgp::{
        PerFamily,
        family::{Prefix as _, V6},
        id::{Asn, Moment, PathId, PeerId, RouterId},
        policy::Policy,
        rib::{PeerSettings, Rib, RibConfig},
        session::{LocalRestart, RemoteAs, SessionConfig, negotiate, our_open},
        wire::attributes::{Builder, Origin, code},
    };
    use ipnet::IpNet;

    use super::*;

    const PEER: PeerId = PeerId(0);

    fn session(router_id: u32) -> SessionConfig {
        SessionConfig::new(Asn(65_001), RemoteAs::Number(Asn(65_001)), RouterId(router_id))
    }

    /// Tables with one internal peer.
    fn tables() -> Rib {
        let mut rib = Rib::new(RibConfig::new(Asn(65_001), RouterId(1), 7));
        let all = Policy::accept_all();
        rib.add_peer(PEER, PeerSettings::new("192.0.2.2".parse().expect("an address"), all.clone(), all));
        let open = our_open(&session(2), &LocalRestart::default());
        let negotiated = negotiate(&session(1), &open).expect("an internal peer");
        rib.peer_up(PEER, &negotiated, PerFamily::default());
        rib
    }

    fn prefix(last: u16) -> V6 {
        let address = Ipv6Addr::from([0x2001, 0xdb8, last, 0, 0, 0, 0, 0]);
        V6::from_net(&IpNet::from(std::net::IpAddr::V6(address))).expect("IPv6")
    }

    fn announce(rib: &mut Rib, last: u16, next_hop: NextHop) {
        let attributes =
            Builder::new().origin(Origin::Igp).set(code::AS_PATH, Vec::new()).number(code::LOCAL_PREF, 100).build();
        rib.announce(PEER, &attributes, next_hop, [(PathId(0), prefix(last))], Moment(0)).expect("taken");
        while rib.run(100) {}
    }

    fn is_forwarded(rib: &mut Rib, last: u16) -> bool {
        while rib.run(100) {}
        let changes = rib.take_fib_changes(usize::MAX);
        changes.iter().any(|it| it.prefix == prefix(last).to_net() && it.route.is_some())
    }

    /// The pipeline hears nothing of a next hop that goes and comes back between two looks, and says nothing of it either.
    #[test]
    fn a_next_hop_that_went_and_came_back_unseen_is_told_what_is_known_of_it() {
        let (mut rib, mut fib) = (tables(), Fib::default());
        let global: Ipv6Addr = "2001:db8:ffff::1".parse().expect("an address");
        let via = BgpNextHop { address: global.into(), link: None };
        announce(&mut rib, 1, NextHop::V6(global));
        assert!(matches!(*fib.watch(&mut rib), [BgpChange::Watch(watched)] if watched == via));
        assert!(!is_forwarded(&mut rib, 1), "nothing is known of it");
        let mut known = Table::default();
        let hop = meshd_core::desired::Hop { via: global.into(), dev: IfIndex(2), tunnel: None };
        known.upsert(via, Resolution::Reachable { hop, mtu: 1500, metric: 5 });
        assert!(fib.resolve(&mut rib, &known));
        assert!(is_forwarded(&mut rib, 1));

        rib.withdraw(PEER, [(PathId(0), prefix(1))]);
        while rib.run(100) {}
        assert_eq!(rib.next_hops_to_track().count(), 0, "it went");
        announce(&mut rib, 2, NextHop::V6(global));
        assert!(fib.is_behind(&rib));
        assert!(fib.watch(&mut rib).is_empty(), "it is watched already");
        assert!(!fib.resolve(&mut rib, &known), "and there is no news of it");
        assert!(is_forwarded(&mut rib, 2));

        // The pair is reached at its global address when the peer is on no link.
        let link_local = "fe80::1".parse().expect("an address");
        announce(&mut rib, 3, NextHop::V6Pair { global, link_local });
        assert!(fib.watch(&mut rib).is_empty(), "it is the same for the kernel");
        assert!(is_forwarded(&mut rib, 3));
    }
}
