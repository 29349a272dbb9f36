//! The fast path between workloads of two nodes: which addresses have a way past this node's routing and packet filter.
//!
//! The way is a next hop in the record of the address. Netfilter must see both directions of a flow or neither, so a workload of this node
//! has one only while programs see all that it sends and gets, and a workload of another node only by links whose programs do.

use std::{collections::BTreeSet, net::IpAddr};

use meshd_core::{id::IfIndex, plan::datapath::Write};
use meshd_datapath::Program;

use super::{State, way_of};
use crate::pipeline::Snapshot;

/// Pairs of programs of which a link must have one whole.
const PAIRS: [(Program, Program); 3] = [
    (Program::WorkloadIngress, Program::WorkloadEgress),
    (Program::UplinkIngress, Program::UplinkEgress),
    (Program::TunnelIngress, Program::TunnelEgress),
];

/// What is known of the fast path.
#[derive(Debug, Default)]
pub(super) struct Fast {
    /// Links by which it may go.
    links: BTreeSet<IfIndex>,
    /// Everything has been heard: what only an earlier process knew counts no longer.
    is_complete: bool,
}

impl State {
    /// The element of a workload's next hop, when the fast path may take it; 0: through the stack. The element is among the writes, if it is
    /// new: they have to come before what names it.
    pub(super) fn fast_way(&mut self, address: IpAddr, snapshot: &Snapshot, writes: &mut Vec<Write>) -> u32 {
        if !self.options.fast_path {
            return 0;
        }
        let way = way_of(address, &mut self.ways, snapshot).filter(|way| self.fast.links.contains(&way.link));
        let way = way.map_or(0, |way| self.hops.fitting(way.link, way.via, way.mtu, writes));
        // What an earlier process found counts until everything has been heard: flows do not change their way for a restart.
        if way == 0 && !self.fast.is_complete { self.identities.way(address) } else { way }
    }

    /// Writes the ways of these addresses, as far as they are workloads.
    pub(super) fn move_fast(
        &mut self,
        addresses: impl IntoIterator<Item = IpAddr>,
        snapshot: &Snapshot,
        writes: &mut Vec<Write>,
    ) {
        if !self.options.fast_path {
            return;
        }
        for address in addresses {
            let way = self.fast_way(address, snapshot, writes);
            writes.extend(self.identities.set_way(address, way));
        }
    }

    /// Follows programs that came onto links or went.
    pub(super) fn follow_fast(&mut self, snapshot: &Snapshot) {
        if !self.options.fast_path {
            return;
        }
        let links: BTreeSet<IfIndex> = self.links.attached.keys().map(|(_, link)| *link).collect();
        let is_covered = |link: &IfIndex| {
            PAIRS.iter().any(|(one, other)| self.links.is_at(*one, *link) && self.links.is_at(*other, *link))
        };
        let covered = links.into_iter().filter(is_covered).collect();
        let before = std::mem::replace(&mut self.fast.links, covered);
        let changed: Vec<IpAddr> = if self.finished && !self.fast.is_complete {
            self.fast.is_complete = true;
            self.identities.workloads().collect()
        } else {
            before.symmetric_difference(&self.fast.links).flat_map(|link| self.ways.through(*link)).collect()
        };
        let mut writes = Vec::new();
        self.move_fast(changed, snapshot, &mut writes);
        self.refused.run(&self.programs.maps, writes);
    }
}
