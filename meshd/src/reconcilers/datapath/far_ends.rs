//! The far ends of the tunnel in the maps, and what the programs are told of the tunnel.
//!
//! A route through the tunnel's link names its far end, and a packet that takes it is put into a frame at that link. So nothing here
//! decides which packets go where: a node that is reached natively again is one route (a nexthop object) less, and its far end goes
//! after that. While an element is missing the link's own device does the work.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use meshd_abi::{Settings, Tunnel, settings_flags};
use meshd_core::{
    derive::{PathPolicy, TunnelSettings},
    desired::{RouteMode, Target},
    id::{IfIndex, TUNNEL_LINK},
    plan::datapath::{Hop, TunnelPlanner, Write},
    table::RowDiff,
};
use meshd_datapath::Program;
use tokio::sync::watch;

use super::{State, next_hop};
use crate::pipeline::Snapshot;

/// The tunnel's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TunnelLink {
    index: IfIndex,
    mac: [u8; 6],
}

/// What the programs are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Told {
    link: TunnelLink,
    tunnel: TunnelSettings,
    /// Frames of strangers are refused: everybody has been heard.
    filter: bool,
}

/// What is known of the tunnel.
#[derive(Debug)]
pub(super) struct FarEnds {
    planner: TunnelPlanner,
    policies: watch::Receiver<Arc<PathPolicy>>,
    link: Option<TunnelLink>,
    told: Option<Told>,
    /// What an earlier process told them, until this one knows better: packets go on meanwhile.
    inherited: Option<Settings>,
    /// Nobody of an earlier process is missing any more.
    is_complete: bool,
}

impl FarEnds {
    /// Takes over what an earlier process left.
    pub(super) fn new(
        room: u32,
        existing: &[(u32, Tunnel)],
        inherited: Option<Settings>,
        policies: watch::Receiver<Arc<PathPolicy>>,
    ) -> Self {
        let planner = TunnelPlanner::new(room, existing);
        Self { planner, policies, link: None, told: None, inherited, is_complete: false }
    }

    /// Puts into the settings what the programs are told.
    pub(super) fn write(&self, settings: &mut Settings) {
        if let Some(inherited) = &self.inherited {
            settings.tunnel_link = inherited.tunnel_link;
            settings.tunnel_mac = inherited.tunnel_mac;
            settings.tunnel_port = inherited.tunnel_port;
            settings.tunnel_vni = inherited.tunnel_vni;
            settings.flags |= inherited.flags & (settings_flags::TUNNEL_GENEVE | settings_flags::TUNNEL_FILTER);
            return;
        }
        // The device writes it, too, into packets that are only told where to go.
        settings.tunnel_vni = self.policies.borrow().tunnel.map_or(0, |tunnel| tunnel.vni);
        let Some(told) = self.told else { return };
        settings.tunnel_link = told.link.index.0;
        settings.tunnel_mac = told.link.mac;
        settings.tunnel_port = told.tunnel.port;
        settings.flags |= if told.tunnel.geneve { settings_flags::TUNNEL_GENEVE } else { 0 };
        settings.flags |= if told.filter { settings_flags::TUNNEL_FILTER } else { 0 };
    }

    /// Addresses whose way is wanted.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.planner.addresses()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.planner.len()
    }

    /// What the programs write, where they do.
    pub(super) fn protocol(&self) -> Option<&'static str> {
        self.told.map(|told| if told.tunnel.geneve { "geneve" } else { "vxlan" })
    }

    /// Takes over which targets are reached at which far ends; returns those that are to be planned.
    fn claims(&mut self, last: &Snapshot, new: &Snapshot) -> BTreeSet<IpAddr> {
        let mut changed = BTreeSet::new();
        for diff in new.desired.targets.diff(&last.desired.targets) {
            let (key, target) = match diff {
                RowDiff::Added(key, target) | RowDiff::Changed(key, _, target) => (key, Some(target)),
                RowDiff::Removed(key, _) => (key, None),
            };
            self.planner.claim(key, target.and_then(|target| far_end(target)), &mut changed);
        }
        changed
    }
}

/// Where a target is reached through the tunnel, and what fits.
fn far_end(target: &Target) -> Option<(IpAddr, u32)> {
    match (&*target.hops, target.mode) {
        ([hop], RouteMode::Tunnel) => Some((hop.via, target.mtu)),
        _ => None,
    }
}

/// The tunnel's link, when it is up.
fn tunnel_link(snapshot: &Snapshot) -> Option<TunnelLink> {
    let (index, row) = snapshot.observed.links.iter().find(|(_, row)| &*row.name == TUNNEL_LINK && row.up)?;
    Some(TunnelLink { index: *index, mac: row.mac? })
}

impl State {
    /// Brings far ends into the maps; adds addresses whose next hop may be another one now. Returns what is to be written last.
    pub(super) fn follow_far_ends(
        &mut self,
        last: &Snapshot,
        new: &Snapshot,
        moved: &mut BTreeSet<IpAddr>,
        writes: &mut Vec<Write>,
    ) -> Vec<Write> {
        self.far_ends.planner.begin_round();
        let mut changed = self.far_ends.claims(last, new);
        if new.observed.links.revision() != last.observed.links.revision() {
            let link = tunnel_link(new);
            if link != self.far_ends.link {
                let before = std::mem::replace(&mut self.far_ends.link, link);
                let all: Vec<IpAddr> = self.far_ends.addresses().collect();
                if let Some(gone) = before.filter(|before| link.is_none_or(|link| link.index != before.index)) {
                    for address in &all {
                        writes.extend(self.hops.put(gone.index, *address, None));
                    }
                }
                changed.extend(all);
            }
        }
        changed.extend(moved.iter().copied().filter(|address| self.far_ends.planner.contains(address)));
        self.plan_far_ends(&changed, new, moved, writes)
    }

    /// Plans these far ends again. Returns the removal of those that nobody is sent to any more, which is to come last.
    pub(super) fn plan_far_ends(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
        snapshot: &Snapshot,
        moved: &mut BTreeSet<IpAddr>,
        writes: &mut Vec<Write>,
    ) -> Vec<Write> {
        let mut last = Vec::new();
        for address in addresses {
            let hop = next_hop(*address, &mut self.ways, &self.hops, snapshot, &self.held_hops);
            let plan = self.far_ends.planner.plan(*address, hop);
            let (removed, added): (Vec<Write>, Vec<Write>) = plan.writes.into_iter().partition(|_| plan.hop.is_none());
            writes.extend(added);
            if let Some(link) = self.far_ends.link {
                let hop = plan.hop.map(|(index, mtu)| Hop {
                    destination: Tunnel::link_address(index.into()),
                    source: link.mac,
                    mtu,
                    has_peer: false,
                    is_tunnel: true,
                });
                let planned = self.hops.put(link.index, *address, hop);
                if !planned.is_empty() {
                    moved.extend(self.ways.behind((link.index, *address)));
                    writes.extend(planned);
                }
            }
            last.extend(removed);
        }
        last
    }

    /// Far ends that an earlier process left and nobody is reached at.
    pub(super) fn finish_far_ends(&mut self, snapshot: &Snapshot, writes: &mut Vec<Write>) {
        let unclaimed: BTreeSet<IpAddr> = self.far_ends.planner.unclaimed().collect();
        let last = self.plan_far_ends(&unclaimed, snapshot, &mut BTreeSet::new(), writes);
        writes.extend(last);
        self.far_ends.is_complete = true;
    }

    /// Tells the programs of the tunnel once both of its own are on the link; what is taken out of frames has to come by them.
    pub(super) fn tell_tunnel(&mut self) -> Option<String> {
        if !self.last.local_known {
            return None;
        }
        let policy = self.far_ends.policies.borrow().tunnel;
        let is_on = [Program::TunnelIngress, Program::TunnelEgress]
            .iter()
            .all(|program| self.far_ends.link.is_some_and(|link| self.links.is_at(*program, link.index)));
        let told = self.far_ends.link.zip(policy).filter(|_| is_on).map(|(link, tunnel)| Told {
            link,
            tunnel,
            filter: self.far_ends.is_complete && !tunnel.any_source,
        });
        let is_first = self.far_ends.inherited.take().is_some();
        if is_first || told != self.far_ends.told {
            let before = std::mem::replace(&mut self.far_ends.told, told);
            if let Err(error) = self.write_settings() {
                self.far_ends.told = before;
                return Some(format!("the programs are not told about the tunnel: {}", super::error_chain(&error)));
            }
        }
        let needs_programs = policy.is_some_and(|tunnel| tunnel.geneve);
        (needs_programs && self.far_ends.link.is_some() && told.is_none())
            .then(|| "the tunnel's packets are not written as geneve: its programs are not on the link".to_owned())
    }
}

/// Elements of the map that are in use.
pub(super) fn existing(tunnels: Vec<(u32, Tunnel)>) -> Vec<(u32, Tunnel)> {
    let used: BTreeMap<u32, Tunnel> = tunnels.into_iter().filter(|(_, tunnel)| *tunnel != Tunnel::default()).collect();
    used.into_iter().collect()
}
