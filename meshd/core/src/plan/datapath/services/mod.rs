//! Services, their members and Maglev tables, their backends.
//!
//! Everything is by *group*: the backends that one port of a service has for one family under one traffic policy. All frontends
//! of the port share it. A group has a number (for affinity, counters, events), a range of members, perhaps a Maglev table, and an element for
//! each backend that keeps its index as long as the backend exists, because known connections refer to it.

mod inherited;

pub use inherited::{Existing, digest_of};

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

use meshd_abi::{Backend, BackendState, MAGLEV_CHUNK, NO_TABLE, Scope, Service as Entry, ServiceKey, service_flags};

use self::inherited::Place;
use super::{
    Write,
    direct::DirectPlanner,
    ranges::{Limits, Ranges},
    space::Space,
    v4, v6,
};
use crate::{
    desired::{self, FrontendKind, Service, ServicePort},
    id::ClusterName,
    maglev::{Maglev, Slots},
    observed::{ForwardingMode, OnRemoval, Protocol, ServiceName, TrafficPolicy},
};

/// Ticks of the programs' clock in a second: 10^9 nanoseconds of 2^30 each.
const TICKS: f64 = 1e9 / (1u64 << 30) as f64;

/// What holds for all services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceSettings {
    /// Size of Maglev tables; none: a hash picks the member.
    pub slots: Option<Slots>,
    /// Seed of the tables, the same on all nodes.
    pub seed: u32,
    /// How packets reach backends on other nodes, unless a service says otherwise.
    pub mode: ForwardingMode,
    /// Room for backends, per family.
    pub backends: u32,
    /// Room for members.
    pub members: u32,
    /// Room for chunks of Maglev tables.
    pub chunks: u32,
    /// Room for source ranges, per family.
    pub ranges: u32,
}

/// Changes to the maps, and what could not be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// What to write, in this order.
    pub writes: Vec<Write>,
    /// Why a service is not in the maps as it should be.
    pub problems: Vec<String>,
}

/// Frontends are the same for both families but for the address.
pub(super) type FrontendKey = (IpAddr, u16, u8, u8);

/// A port of a service under one policy, for one family.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct GroupKey {
    service: ServiceName,
    protocol: Protocol,
    port: u16,
    ipv4: bool,
    /// Backends of this node only.
    local_only: bool,
}

#[derive(Debug, Default)]
struct Group {
    id: u32,
    members: (u32, u32),
    chunks: (u32, u32),
    backends: BTreeMap<(IpAddr, u16), u32>,
    frontends: BTreeSet<FrontendKey>,
    /// What the table was made of: each member with its weight.
    shares: Vec<(SocketAddr, u16)>,
    /// Backends that an earlier process wrote and this one has not seen yet. They stay until every list is complete (I4).
    held: BTreeSet<(IpAddr, u16)>,
    /// The table is that of an earlier process: known by its content only.
    is_adopted: bool,
}

/// What a backend's element says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Element {
    address: IpAddr,
    port: u16,
    state: BackendState,
    local: bool,
    next_hop: u32,
    owner: u32,
}

/// Plans the maps of services.
#[derive(Debug)]
pub struct ServicePlanner {
    settings: ServiceSettings,
    groups: BTreeMap<GroupKey, Group>,
    /// Frontends in the maps and the entry each has.
    frontends: HashMap<FrontendKey, Entry>,
    /// Of those, frontends that this process has not planned yet.
    inherited: BTreeSet<FrontendKey>,
    /// Of those, the groups they belong to and that no group of this process has taken over.
    left_behind: BTreeMap<Place, Entry>,
    /// What the chunks of an earlier process hold.
    chunks: BTreeMap<u32, u64>,
    members: Vec<u32>,
    elements: [BTreeMap<u32, Element>; 2],
    /// Backends by address, for those whose next hop changes.
    by_address: BTreeMap<IpAddr, BTreeSet<u32>>,
    /// Numbers are not given twice: what remembers a service that is gone must not meet another one.
    last_id: u32,
    member_space: Space,
    chunk_space: Space,
    backend_space: [Space; 2],
    /// Ranges that entries of a service may still name, until its writes were done.
    leaving: BTreeMap<ServiceName, Vec<Retired>>,
    direct: DirectPlanner,
    /// The own cluster: only its nodes are known to have this configuration.
    cluster: Option<ClusterName>,
    ranges: Ranges,
    /// Ranges that a program may still be reading: given back by [`Self::begin_round`].
    retired: Vec<Retired>,
    /// Every list was complete once.
    finished: bool,
}

#[derive(Debug, Clone, Copy)]
enum Retired {
    Members(u32, u32),
    Chunks(u32, u32),
}

impl ServicePlanner {
    /// Takes over what the maps hold.
    #[must_use]
    pub fn new(settings: ServiceSettings, existing: Existing) -> Self {
        let mut planner = Self {
            settings,
            groups: BTreeMap::new(),
            frontends: HashMap::new(),
            inherited: BTreeSet::new(),
            left_behind: BTreeMap::new(),
            chunks: existing.chunks,
            members: existing.members,
            elements: [BTreeMap::new(), BTreeMap::new()],
            by_address: BTreeMap::new(),
            last_id: existing.last_id,
            member_space: Space::new(0, settings.members),
            chunk_space: Space::new(0, settings.chunks),
            backend_space: [Space::new(1, settings.backends), Space::new(1, settings.backends)],
            leaving: BTreeMap::new(),
            direct: DirectPlanner::default(),
            cluster: None,
            ranges: Ranges::new(settings.ranges, &existing.ranges4, &existing.ranges6),
            retired: Vec::new(),
            finished: false,
        };
        for (index, direct) in &existing.direct4 {
            planner.direct.inherit(*index, direct);
        }
        for (index, direct) in &existing.direct6 {
            planner.direct.inherit(*index, direct);
        }
        for (key, index) in &existing.receivers4 {
            planner.direct.inherit_receiver(key, *index);
        }
        for (key, index) in &existing.receivers6 {
            planner.direct.inherit_receiver(key, *index);
        }
        for (index, backend) in existing.backends4 {
            planner.inherit_backend(index, &backend);
        }
        for (index, backend) in existing.backends6 {
            planner.inherit_backend(index, &backend);
        }
        for (key, entry) in existing.services4 {
            planner.inherit_frontend(&key, entry);
        }
        for (key, entry) in existing.services6 {
            planner.inherit_frontend(&key, entry);
        }
        planner
    }

    /// Lets nodes of this cluster get packets by direct server return.
    #[must_use]
    pub fn of_cluster(mut self, cluster: ClusterName) -> Self {
        self.cluster = Some(cluster);
        self
    }

    /// True when there is a frontend that uses direct server return.
    #[must_use]
    pub fn has_direct(&self) -> bool {
        self.frontends.values().any(|entry| entry.flags & service_flags::DSR != 0)
    }

    /// Gives ranges back that earlier plans replaced. To be called when the programs that were running then have ended, which
    /// a few milliseconds make sure of.
    pub fn begin_round(&mut self) {
        for retired in std::mem::take(&mut self.retired) {
            match retired {
                Retired::Members(begin, length) => self.member_space.give(begin, length),
                Retired::Chunks(begin, length) => self.chunk_space.give(begin, length),
            }
        }
    }

    /// The writes of a service's last plan were carried out, or the kernel refused one of them. After a refusal the next plan writes
    /// everything again, and nothing that the old entries name is used for something else before that.
    pub fn done(&mut self, name: &ServiceName, is_ok: bool) {
        if is_ok {
            self.retired.extend(self.leaving.remove(name).unwrap_or_default());
            return;
        }
        let keys: Vec<GroupKey> = self.groups_of(name).cloned().collect();
        let leaving = self.leaving.entry(name.clone()).or_default();
        for key in keys {
            let Some(group) = self.groups.get_mut(&key) else { continue };
            leaving.push(Retired::Members(group.members.0, group.members.1));
            leaving.push(Retired::Chunks(group.chunks.0, group.chunks.1));
            (group.members, group.chunks) = ((0, 0), (0, 0));
            group.shares.clear();
            for frontend in &group.frontends {
                if let Some(entry) = self.frontends.get_mut(frontend).filter(|entry| entry.id == group.id) {
                    // No entry looks like this.
                    (entry.members, entry.table, entry.count) = (u32::MAX, 0, u16::MAX);
                }
            }
        }
    }

    /// Groups of a service.
    fn groups_of(&self, name: &ServiceName) -> impl Iterator<Item = &GroupKey> {
        // Protocol `Tcp` is the first of its kind.
        let start =
            GroupKey { service: name.clone(), protocol: Protocol::Tcp, port: 0, ipv4: false, local_only: false };
        self.groups.range(start.clone()..).map(|(key, _)| key).take_while(move |key| key.service == start.service)
    }

    /// Plans one service; `None` removes it. `hop` tells the next hop of an address. The caller reports with [`Self::done`] how the
    /// writes went, before anything else is planned.
    pub fn plan(&mut self, name: &ServiceName, wanted: Option<&Service>, hop: impl Fn(IpAddr) -> u32) -> ServicePlan {
        let mut plan = ServicePlan::default();
        let mut left: BTreeSet<GroupKey> = self.groups_of(name).cloned().collect();
        if let Some(service) = wanted {
            for port in &service.ports {
                for ipv4 in [true, false] {
                    for key in self.put_port(name, service, port, ipv4, &hop, &mut plan) {
                        left.remove(&key);
                    }
                }
            }
        }
        for key in left {
            self.remove_group(&key, wanted.map_or(OnRemoval::Keep, |service| service.on_removal), &mut plan);
        }
        plan
    }

    /// Numbers of a service: one for each of its ports, families and scopes that differ.
    pub fn numbers(&self, name: &ServiceName) -> impl Iterator<Item = u32> {
        let start =
            GroupKey { service: name.clone(), protocol: Protocol::Tcp, port: 0, ipv4: false, local_only: false };
        self.groups.range(start..).take_while(|(key, _)| key.service == *name).map(|(_, group)| group.id)
    }

    /// Frees removed backends to which no connection refers any more; `used` names those it still does, by family and index.
    pub fn release(&mut self, used: impl Fn(bool, u32) -> bool) -> ServicePlan {
        let mut plan = ServicePlan::default();
        for ipv4 in [true, false] {
            let family = usize::from(!ipv4);
            let free: Vec<u32> = self.elements[family]
                .iter()
                .filter(|(index, element)| !is_live(element.state) && !used(ipv4, **index))
                .map(|(index, _)| *index)
                .collect();
            for index in free {
                self.set_state(ipv4, index, BackendState::Free, &mut plan);
                self.direct.put(ipv4, index, None, &mut plan.writes);
                if let Some(element) = self.elements[family].remove(&index) {
                    self.forget_address(element.address, index);
                }
                self.backend_space[family].give(index, 1);
            }
        }
        plan
    }

    /// The next hop of these addresses changed.
    pub fn rehop(&mut self, addresses: &BTreeSet<IpAddr>, hop: impl Fn(IpAddr) -> u32) -> ServicePlan {
        let mut plan = ServicePlan::default();
        for address in addresses {
            let next_hop = hop(*address);
            let family = usize::from(!address.is_ipv4());
            for index in self.by_address.get(address).into_iter().flatten() {
                if let Some(element) = self.elements[family].get_mut(index)
                    && element.next_hop != next_hop
                {
                    element.next_hop = next_hop;
                    plan.writes.push(write_backend(*index, element));
                }
            }
        }
        self.direct.rehop(addresses, hop, &mut plan.writes);
        plan
    }

    /// Every address that is a backend, or the node of one.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.by_address.keys().copied().chain(self.direct.nodes())
    }

    /// Backends in use, per family.
    #[must_use]
    pub fn backends(&self) -> [usize; 2] {
        [self.elements[0].len(), self.elements[1].len()]
    }

    /// Room that is left for members and for chunks of Maglev tables.
    #[must_use]
    pub fn room(&self) -> [u64; 2] {
        [self.member_space.left(), self.chunk_space.left()]
    }

    /// Frontends in the maps.
    #[must_use]
    pub fn frontends(&self) -> usize {
        self.frontends.len()
    }

    fn put_port(
        &mut self,
        name: &ServiceName,
        service: &Service,
        port: &ServicePort,
        ipv4: bool,
        hop: &impl Fn(IpAddr) -> u32,
        plan: &mut ServicePlan,
    ) -> Vec<GroupKey> {
        let Some(protocol) = number(port.protocol) else { return Vec::new() };
        let mut wanted: BTreeMap<bool, BTreeSet<FrontendKey>> = BTreeMap::new();
        for frontend in port.frontends.iter().filter(|frontend| frontend.address.is_ipv4() == ipv4) {
            let mut add = |scope: Scope, policy: TrafficPolicy| {
                let local_only = policy == TrafficPolicy::Local;
                let key = (frontend.address, frontend.port, protocol, scope as u8);
                wanted.entry(local_only).or_default().insert(key);
            };
            add(Scope::Internal, service.internal_policy);
            // An address inside the mesh is none that is asked from outside.
            if frontend.kind != FrontendKind::ClusterIp {
                add(Scope::External, service.external_policy);
            }
        }
        let mut planned = Vec::new();
        for (local_only, frontends) in wanted {
            let key = GroupKey { service: name.clone(), protocol: port.protocol, port: port.port, ipv4, local_only };
            self.put_group(&key, frontends, service, port, hop, plan);
            planned.push(key);
        }
        planned
    }

    fn put_group(
        &mut self,
        key: &GroupKey,
        frontends: BTreeSet<FrontendKey>,
        service: &Service,
        port: &ServicePort,
        hop: &impl Fn(IpAddr) -> u32,
        plan: &mut ServicePlan,
    ) {
        let mut group = match self.groups.remove(key) {
            Some(group) => group,
            None => self.adopt(key, &frontends),
        };
        if group.id == 0 {
            // A new service each millisecond needs seven weeks to come round.
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            group.id = self.last_id;
        }
        let backends: Vec<&desired::Backend> = port
            .backends
            .iter()
            .filter(|backend| backend.address.is_ipv4() == key.ipv4 && (!key.local_only || backend.local))
            .collect();
        let ranges = Limits::of(service, port, &frontends);
        let refused = self.ranges.add(group.id, &ranges.prefixes, &mut plan.writes);
        if refused > 0 {
            plan.problems.push(format!(
                "service {}: no room for {refused} of its source_ranges, whose clients are refused",
                key.service
            ));
        }
        let mut kept = self.put_backends(&mut group, key, &backends, hop, plan);
        self.hold(&mut group, key, &backends, &mut kept);
        self.put_direct(&group, key, service, &backends, hop, plan);
        let old = (group.members, group.chunks);
        if let Some(entry) = self.put_members(&mut group, key, &kept, service, plan) {
            for frontend in &frontends {
                let limited = if ranges.limits(frontend) { service_flags::SOURCE_RANGES } else { 0 };
                let flags = flags_of(service, self.settings.mode, frontend) | limited;
                let entry = Entry { flags, ..entry };
                self.inherited.remove(frontend);
                if self.frontends.insert(*frontend, entry) != Some(entry) {
                    plan.writes.push(write_service(frontend, Some(entry)));
                }
            }
        }
        for frontend in group.frontends.difference(&frontends) {
            // Another group may have taken it over.
            if self.frontends.get(frontend).is_some_and(|entry| entry.id == group.id) {
                self.frontends.remove(frontend);
                plan.writes.push(write_service(frontend, None));
            }
        }
        self.ranges.trim(group.id, &ranges.prefixes, &mut plan.writes);
        group.frontends = frontends;
        let leaving = self.leaving.entry(key.service.clone()).or_default();
        if old.0 != group.members {
            leaving.push(Retired::Members(old.0.0, old.0.1));
        }
        if old.1 != group.chunks {
            leaving.push(Retired::Chunks(old.1.0, old.1.1));
        }
        // Backends that left go after the tables that named them.
        let gone: Vec<(IpAddr, u16)> = group
            .backends
            .keys()
            .filter(|at| !group.held.contains(*at))
            .filter(|at| !backends.iter().any(|backend| (backend.address, backend.port) == **at))
            .copied()
            .collect();
        for at in gone {
            if let Some(index) = group.backends.remove(&at) {
                self.set_state(key.ipv4, index, removed_state(service.on_removal), plan);
            }
        }
        self.groups.insert(key.clone(), group);
    }

    /// Writes elements; returns those that take new connections, with their weight.
    fn put_backends(
        &mut self,
        group: &mut Group,
        key: &GroupKey,
        backends: &[&desired::Backend],
        hop: &impl Fn(IpAddr) -> u32,
        plan: &mut ServicePlan,
    ) -> Vec<(u32, (SocketAddr, u16))> {
        let family = usize::from(!key.ipv4);
        let mut kept = Vec::new();
        let mut refused = 0usize;
        for backend in backends {
            if key.protocol == Protocol::Sctp && backend.port != key.port {
                refused += 1;
                continue;
            }
            let at = (backend.address, backend.port);
            let index = match group.backends.get(&at) {
                Some(index) => *index,
                None => {
                    let Some(index) = self.backend_space[family].take(1) else {
                        plan.problems.push(format!(
                            "service {}: no room for backend {} (services.maps.backends is {})",
                            key.service, backend.address, self.settings.backends
                        ));
                        continue;
                    };
                    group.backends.insert(at, index);
                    self.by_address.entry(backend.address).or_default().insert(index);
                    index
                }
            };
            let element = Element {
                address: backend.address,
                port: backend.port,
                state: if backend.used { BackendState::Active } else { BackendState::Terminating },
                local: backend.local,
                next_hop: hop(backend.address),
                owner: group.id,
            };
            if self.elements[family].insert(index, element) != Some(element) {
                plan.writes.push(write_backend(index, &element));
            }
            if backend.used {
                kept.push((index, (SocketAddr::new(backend.address, backend.port), backend.weight)));
            }
        }
        if refused > 0 {
            plan.problems.push(format!(
                "service {}: SCTP cannot be moved to another port than {}, so {refused} backends are not used",
                key.service, key.port
            ));
        }
        kept
    }

    /// Writes how backends of other nodes are reached, and which of this node others may send to. Where only backends of this node
    /// are asked, nobody sends to another one.
    fn put_direct(
        &mut self,
        group: &Group,
        key: &GroupKey,
        service: &Service,
        backends: &[&desired::Backend],
        hop: &impl Fn(IpAddr) -> u32,
        plan: &mut ServicePlan,
    ) {
        let is_direct = service.mode.unwrap_or(self.settings.mode) == ForwardingMode::Dsr && !key.local_only;
        let mut receivers = BTreeMap::new();
        for backend in backends {
            let at = (backend.address, backend.port);
            let Some(index) = group.backends.get(&at) else { continue };
            let is_ours = is_direct && self.cluster.as_ref() == Some(&backend.cluster);
            let node = backend.node.filter(|node| is_ours && !backend.local && node.is_ipv4() == key.ipv4);
            self.direct.put(key.ipv4, *index, node.map(|node| (node, hop(node))), &mut plan.writes);
            if is_ours && backend.local {
                receivers.insert(at, *index);
            }
        }
        match number(key.protocol) {
            Some(protocol) => self.direct.receive(group.id, protocol, &receivers, &mut plan.writes),
            None => self.direct.forget(group.id, &mut plan.writes),
        }
    }

    /// Writes members and table to ranges that nobody reads; returns the entry that names them. `None`: there is no room, and the
    /// old entry stays.
    fn put_members(
        &mut self,
        group: &mut Group,
        key: &GroupKey,
        kept: &[(u32, (SocketAddr, u16))],
        service: &Service,
        plan: &mut ServicePlan,
    ) -> Option<Entry> {
        let indexes: Vec<u32> = kept.iter().map(|(index, _)| *index).collect();
        let count = u16::try_from(indexes.len()).unwrap_or(u16::MAX - 1);
        let indexes = &indexes[..usize::from(count)];
        let affinity = service.session_affinity.map_or(0, |seconds| (f64::from(seconds) * TICKS).ceil() as u32);
        let same_members = group.members.1 == u32::from(count)
            && self.members.get(group.members.0 as usize..).is_some_and(|rest| rest.starts_with(indexes));
        let shares: Vec<(SocketAddr, u16)> = kept.iter().take(usize::from(count)).map(|(_, share)| *share).collect();
        let slots = self.settings.slots.filter(|_| count > 0);
        if same_members && group.chunks.1 > 0 && slots.is_some() && group.shares == shares {
            return Some(entry_of(group, count, slots, affinity));
        }
        let table = slots.and_then(|slots| {
            let mut maglev = Maglev::new(slots, self.settings.seed);
            for (member, (backend, weight)) in (0..).zip(&shares) {
                maglev.put(*backend, member, *weight);
            }
            maglev.table()
        });
        let chunks = table.as_ref().map_or(0, |table| table.chunks().count() as u32);
        if same_members && group.is_adopted && table.as_ref().is_some_and(|table| self.is_there(group.chunks, table)) {
            group.shares = shares;
            return Some(entry_of(group, count, slots, affinity));
        }
        let new_members = if same_members && chunks == 0 {
            group.members
        } else {
            let Some(begin) = self.member_space.take(u32::from(count)) else {
                plan.problems.push(format!("service {}: no room for its {count} members", key.service));
                return None;
            };
            (begin, u32::from(count))
        };
        let new_chunks = if chunks == 0 {
            (0, 0)
        } else if let Some(begin) = self.chunk_space.take(chunks) {
            (begin, chunks)
        } else {
            plan.problems.push(format!(
                "service {}: no room for a Maglev table, its backends are chosen by plain hash until there is",
                key.service
            ));
            (0, 0)
        };
        if new_members != group.members && count > 0 {
            let end = new_members.0 as usize + indexes.len();
            if self.members.len() < end {
                self.members.resize(end, 0);
            }
            self.members[new_members.0 as usize..end].copy_from_slice(indexes);
            plan.writes.push(Write::Members(new_members.0, indexes.to_vec()));
        }
        if let Some(table) = table.filter(|_| new_chunks.1 > 0) {
            for (at, chunk) in (new_chunks.0..).zip(table.chunks()) {
                plan.writes.push(Write::Chunk(at, Box::new(*chunk)));
            }
        }
        group.members = new_members;
        group.chunks = new_chunks;
        group.shares = shares;
        group.is_adopted = false;
        Some(entry_of(group, count, slots, affinity))
    }

    fn remove_group(&mut self, key: &GroupKey, on_removal: OnRemoval, plan: &mut ServicePlan) {
        let Some(group) = self.groups.remove(key) else { return };
        for frontend in &group.frontends {
            // Another service may have taken it over.
            if self.frontends.get(frontend).is_some_and(|entry| entry.id == group.id) {
                self.frontends.remove(frontend);
                plan.writes.push(write_service(frontend, None));
            }
        }
        self.ranges.trim(group.id, &BTreeSet::new(), &mut plan.writes);
        for index in group.backends.values() {
            self.set_state(key.ipv4, *index, removed_state(on_removal), plan);
        }
        self.direct.forget(group.id, &mut plan.writes);
        let leaving = self.leaving.entry(key.service.clone()).or_default();
        leaving.push(Retired::Members(group.members.0, group.members.1));
        leaving.push(Retired::Chunks(group.chunks.0, group.chunks.1));
    }

    fn set_state(&mut self, ipv4: bool, index: u32, state: BackendState, plan: &mut ServicePlan) {
        if let Some(element) = self.elements[usize::from(!ipv4)].get_mut(&index) {
            element.state = state;
            plan.writes.push(write_backend(index, element));
        }
    }

    fn forget_address(&mut self, address: IpAddr, index: u32) {
        if let Some(indexes) = self.by_address.get_mut(&address) {
            indexes.remove(&index);
            if indexes.is_empty() {
                self.by_address.remove(&address);
            }
        }
    }
}

fn entry_of(group: &Group, count: u16, slots: Option<Slots>, affinity: u32) -> Entry {
    let has_table = group.chunks.1 > 0;
    Entry {
        id: group.id,
        table: if has_table { group.chunks.0 } else { NO_TABLE },
        slots: slots.filter(|_| has_table).map_or(u32::from(count), Slots::count),
        members: group.members.0,
        affinity,
        count,
        flags: 0,
    }
}

const fn is_live(state: BackendState) -> bool {
    matches!(state, BackendState::Active | BackendState::Terminating)
}

const fn removed_state(on_removal: OnRemoval) -> BackendState {
    match on_removal {
        OnRemoval::Keep => BackendState::Removed,
        OnRemoval::Kill => BackendState::Killed,
    }
}

const fn chunks_of(slots: u32) -> u32 {
    slots.div_ceil(MAGLEV_CHUNK as u32)
}

/// IP protocol number of a port's protocol.
const fn number(protocol: Protocol) -> Option<u8> {
    match protocol {
        Protocol::Tcp => Some(6),
        Protocol::Udp => Some(17),
        Protocol::Sctp => Some(132),
        Protocol::Any | Protocol::None => None,
    }
}

fn flags_of(service: &Service, mode: ForwardingMode, frontend: &FrontendKey) -> u16 {
    let mut flags = 0;
    let is_external = frontend.3 == Scope::External as u8;
    if service.mode.unwrap_or(mode) == ForwardingMode::Dsr && is_external {
        flags |= service_flags::DSR;
    }
    if service.on_removal == OnRemoval::Kill {
        flags |= service_flags::KILL_REMOVED;
    }
    flags
}

fn write_backend(index: u32, element: &Element) -> Write {
    macro_rules! backend {
        ($address:expr) => {
            Backend {
                address: $address,
                next_hop: element.next_hop,
                port: element.port.to_be(),
                state: element.state as u8,
                local: u8::from(element.local),
                owner: element.owner,
            }
        };
    }
    match (v4(element.address), v6(element.address)) {
        (Some(address), _) => Write::Backend4(index, backend!(address)),
        (None, address) => Write::Backend6(index, backend!(address.unwrap_or_default())),
    }
}

fn write_service(key: &FrontendKey, entry: Option<Entry>) -> Write {
    let (address, port, protocol, scope) = *key;
    macro_rules! key {
        ($address:expr) => {
            ServiceKey { address: $address, port: port.to_be(), protocol, scope }
        };
    }
    match (v4(address), v6(address)) {
        (Some(address), _) => Write::Service4(key!(address), entry),
        (None, address) => Write::Service6(key!(address.unwrap_or_default()), entry),
    }
}
