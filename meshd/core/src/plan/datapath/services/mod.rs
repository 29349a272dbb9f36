//! Services, their members and Maglev tables, their backends.
//!
//! Everything is by *group*: the backends that one port of a service has for one family under one traffic policy. All frontends
//! of the port share it. A group has a number (for affinity, counters, events), a range of members, perhaps a Maglev table, and an element for
//! each backend that keeps its index as long as the backend exists, because known connections refer to it.

mod inherited;
mod members;

pub use inherited::{Existing, digest_of};

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use meshd_abi::{Backend, BackendState, MAGLEV_CHUNK, NO_TABLE, Scope, Service as Entry, ServiceKey, service_flags};

use self::{
    inherited::{Left, Place},
    members::{At, Members},
};
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
    maglev::Slots,
    observed::{ForwardingMode, OnRemoval, Protocol, ServiceName, TrafficPolicy},
};

/// A range of so many members is kept however few are left.
const RANGE_KEPT: u32 = 256;
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

impl GroupKey {
    fn is_of(&self, port: &ServicePort) -> bool {
        (port.protocol, port.port) == (self.protocol, self.port)
    }
}

#[derive(Debug)]
struct Group {
    id: u32,
    /// Where its members begin, and how many find room there.
    range: (u32, u32),
    chunks: (u32, u32),
    backends: BTreeMap<At, u32>,
    frontends: BTreeSet<FrontendKey>,
    members: Members,
    /// Backends that an earlier process wrote and this one has not seen yet. They stay until every list is complete (I4).
    held: BTreeSet<At>,
    /// The table is that of an earlier process: known by its content only.
    is_adopted: bool,
    /// Something of its service was refused or had no room, so nothing that it had is given back. Its next table takes the place of this one:
    /// with another place for every attempt there would be none left after many.
    is_kept: bool,
    /// What was planned, when all of it is in the maps: then only what differs needs to be looked at.
    planned: Option<Planned>,
}

/// See [`Group::planned`].
#[derive(Debug)]
struct Planned {
    /// Sorted by address and port.
    backends: Arc<[desired::Backend]>,
    is_direct: bool,
}

impl Group {
    fn new(settings: &ServiceSettings) -> Self {
        Self {
            id: 0,
            range: (0, 0),
            chunks: (0, 0),
            backends: BTreeMap::new(),
            frontends: BTreeSet::new(),
            members: Members::new(settings.slots, settings.seed),
            held: BTreeSet::new(),
            is_adopted: false,
            is_kept: false,
            planned: None,
        }
    }
}

/// What became of the writes of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Carried {
    /// All were carried out.
    All,
    /// An entry was refused; what entries name is there.
    NoEntries,
    /// Members or a table were refused, and so were the entries that would have named them.
    NoTables,
}

/// What is to be removed of a group that was planned, when all of them are.
struct Before {
    key: GroupKey,
    /// Frontends that it had and that are not its own any more.
    frontends: Vec<FrontendKey>,
    /// Source ranges that it keeps.
    prefixes: BTreeSet<IpNet>,
}

/// What a plan has to look at: backends that come or are others than before, and those that go.
struct Changes<'a> {
    put: Vec<&'a desired::Backend>,
    gone: Vec<At>,
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
    left_behind: BTreeMap<Place, Left>,
    /// Numbers of groups that this process has taken over.
    adopted: BTreeSet<u32>,
    /// Backends of an earlier process by family and by the number of their group.
    owned: BTreeMap<(bool, u32), Vec<u32>>,
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
    /// Services of which a group kept its entries for want of room: also what was left stays then.
    stuck: BTreeSet<ServiceName>,
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
            adopted: BTreeSet::new(),
            owned: BTreeMap::new(),
            chunks: existing.chunks,
            members: existing.members,
            elements: [BTreeMap::new(), BTreeMap::new()],
            by_address: BTreeMap::new(),
            last_id: existing.last_id,
            member_space: Space::new(0, settings.members),
            chunk_space: Space::new(0, settings.chunks),
            backend_space: [Space::new(1, settings.backends), Space::new(1, settings.backends)],
            leaving: BTreeMap::new(),
            stuck: BTreeSet::new(),
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

    /// How the writes of a service's last plan went. After a refusal the next plan writes again what is not there, and nothing that an
    /// old entry names is used for something else before that.
    pub fn done(&mut self, name: &ServiceName, carried: Carried) {
        if carried == Carried::All && !self.stuck.remove(name) {
            self.retired.extend(self.leaving.remove(name).unwrap_or_default());
            return;
        }
        let keys: Vec<GroupKey> = self.groups_of(name).cloned().collect();
        for key in keys {
            let Some(group) = self.groups.get_mut(&key) else { continue };
            group.is_kept = true;
            if carried == Carried::All {
                continue;
            }
            group.planned = None;
            if carried == Carried::NoTables {
                group.is_adopted = false;
                group.members.lose();
            }
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
        self.stuck.remove(name);
        let mut left: BTreeSet<GroupKey> = self.groups_of(name).cloned().collect();
        let mut before = Vec::new();
        if let Some(service) = wanted {
            for port in &service.ports {
                for ipv4 in [true, false] {
                    for group in self.put_port(name, service, port, ipv4, &hop, &mut plan) {
                        left.remove(&group.key);
                        before.push(group);
                    }
                }
            }
        }
        // Until here a frontend that moves from one group to another was where it had been.
        let planned = before.iter().filter_map(|group| self.groups.get(&group.key));
        let frontends: BTreeSet<FrontendKey> = planned.flat_map(|group| &group.frontends).copied().collect();
        for group in before {
            self.remove_frontends(group, &frontends, &mut plan);
        }
        for key in left {
            let kept = self.serves_for_another(&key, &frontends);
            let port = wanted.and_then(|service| Some((service, service.ports.iter().find(|port| key.is_of(port))?)));
            if let Some((service, port)) = port.filter(|_| !kept.is_empty()) {
                let before = self.put_group(key, kept, service, port, &hop, &mut plan);
                self.remove_frontends(before, &frontends, &mut plan);
                continue;
            }
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

    /// Source ranges in the maps, those of IPv4 first.
    #[must_use]
    pub const fn ranges(&self) -> [usize; 2] {
        self.ranges.used()
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
    ) -> Vec<Before> {
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
            planned.push(self.put_group(key, frontends, service, port, hop, plan));
        }
        planned
    }

    /// Removes what only an earlier plan wanted of a group.
    fn remove_frontends(&mut self, before: Before, wanted: &BTreeSet<FrontendKey>, plan: &mut ServicePlan) {
        let Some(group) = self.groups.get_mut(&before.key) else { return };
        let mut serves_for_another = false;
        for frontend in before.frontends {
            // Another group may have taken it over.
            if self.frontends.get(&frontend).is_none_or(|entry| entry.id != group.id) {
                continue;
            }
            if wanted.contains(&frontend) {
                // The other group has no room for its members.
                serves_for_another = true;
                group.frontends.insert(frontend);
            } else {
                self.frontends.remove(&frontend);
                plan.writes.push(write_service(&frontend, None));
            }
        }
        if !serves_for_another {
            self.ranges.trim(group.id, &before.prefixes, &mut plan.writes);
        }
    }

    /// Frontends that have the entry of a group although another group wants them, which has no room for its members.
    fn serves_for_another(&self, key: &GroupKey, wanted: &BTreeSet<FrontendKey>) -> BTreeSet<FrontendKey> {
        let Some(group) = self.groups.get(key) else { return BTreeSet::new() };
        let has = |frontend: &&FrontendKey| self.frontends.get(*frontend).is_some_and(|entry| entry.id == group.id);
        group.frontends.intersection(wanted).filter(has).copied().collect()
    }

    fn put_group(
        &mut self,
        key: GroupKey,
        frontends: BTreeSet<FrontendKey>,
        service: &Service,
        port: &ServicePort,
        hop: &impl Fn(IpAddr) -> u32,
        plan: &mut ServicePlan,
    ) -> Before {
        let mut group = match self.groups.remove(&key) {
            Some(group) => group,
            None => self.adopt(&key, &frontends),
        };
        if group.id == 0 {
            // A new service each millisecond needs seven weeks to come round.
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            group.id = self.last_id;
        }
        let ranges = Limits::of(service, port, &frontends);
        let refused = self.ranges.add(group.id, &ranges.prefixes, &mut plan.writes);
        if refused > 0 {
            plan.problems.push(format!(
                "service {}: no room for {refused} of its source_ranges, whose clients are refused",
                key.service
            ));
        }
        let is_direct = service.mode.unwrap_or(self.settings.mode) == ForwardingMode::Dsr && !key.local_only;
        let problems = plan.problems.len();
        let changes = self.changes(&mut group, &key, &port.backends, is_direct);
        for at in &changes.gone {
            group.members.remove(at);
        }
        let drained = self.put_backends(&mut group, &key, &changes.put, hop, plan);
        self.put_direct(&group, &key, is_direct, (&port.backends, &changes.put), hop, plan);
        let old = (group.range, group.chunks);
        if let Some(entry) = self.put_members(&mut group, &key, service, plan) {
            for frontend in &frontends {
                let limited = if ranges.limits(frontend) { service_flags::SOURCE_RANGES } else { 0 };
                let flags = flags_of(service, self.settings.mode, frontend) | limited;
                let entry = Entry { flags, ..entry };
                self.inherited.remove(frontend);
                if self.frontends.insert(*frontend, entry) != Some(entry) {
                    plan.writes.push(write_service(frontend, Some(entry)));
                }
            }
        } else {
            self.stuck.insert(key.service.clone());
        }
        plan.writes.extend(drained);
        let before = group.frontends.difference(&frontends).copied().collect();
        group.frontends = frontends;
        let leaving = self.leaving.entry(key.service.clone()).or_default();
        if old.0 != group.range {
            leaving.push(Retired::Members(old.0.0, old.0.1));
        }
        if old.1 != group.chunks {
            leaving.push(Retired::Chunks(old.1.0, old.1.1));
        }
        // Backends that left go after the tables that named them.
        for at in changes.gone {
            if let Some(index) = group.backends.remove(&at) {
                self.set_state(key.ipv4, index, removed_state(service.on_removal), plan);
            }
        }
        if plan.problems.len() == problems && group.held.is_empty() && is_sorted(&port.backends) {
            group.planned = Some(Planned { backends: port.backends.clone(), is_direct });
        }
        self.groups.insert(key.clone(), group);
        Before { key, frontends: before, prefixes: ranges.prefixes }
    }

    /// What differs from what is in the maps; everything when that is not known for sure.
    fn changes<'a>(
        &self,
        group: &mut Group,
        key: &GroupKey,
        wanted: &'a [desired::Backend],
        is_direct: bool,
    ) -> Changes<'a> {
        let belongs =
            |backend: &&desired::Backend| backend.address.is_ipv4() == key.ipv4 && (!key.local_only || backend.local);
        let planned = group.planned.take().filter(|planned| planned.is_direct == is_direct && is_sorted(wanted));
        if let Some(planned) = planned {
            return difference(planned.backends.iter().filter(belongs), wanted.iter().filter(belongs));
        }
        let put: Vec<&desired::Backend> = wanted.iter().filter(belongs).collect();
        let named: HashSet<At> = put.iter().map(|backend| place_in_list(backend)).collect();
        if !self.finished {
            // Of the others of an earlier process no source has said anything yet.
            group.held.retain(|at| !named.contains(at));
        }
        let is_gone = |at: &&At| !named.contains(*at) && !group.held.contains(*at);
        let gone = group.backends.keys().filter(is_gone).copied().collect();
        Changes { put, gone }
    }

    /// Writes elements, and gives those a place that take new connections. Returns the writes of those that do no longer, which are to follow
    /// the entries that named them.
    fn put_backends(
        &mut self,
        group: &mut Group,
        key: &GroupKey,
        backends: &[&desired::Backend],
        hop: &impl Fn(IpAddr) -> u32,
        plan: &mut ServicePlan,
    ) -> Vec<Write> {
        let family = usize::from(!key.ipv4);
        let (mut refused, mut without_place) = (0usize, 0usize);
        let mut drained = Vec::new();
        for backend in backends {
            let at = place_in_list(backend);
            if key.protocol == Protocol::Sctp && backend.port != key.port {
                refused += 1;
                continue;
            }
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
                let writes = if backend.used { &mut plan.writes } else { &mut drained };
                writes.push(write_backend(index, &element));
            }
            if !backend.used {
                group.members.remove(&at);
            } else if !group.members.put(at, index, backend.weight) {
                without_place += 1;
            }
        }
        if refused > 0 {
            plan.problems.push(format!(
                "service {}: SCTP cannot be moved to another port than {}, so {refused} backends are not used",
                key.service, key.port
            ));
        }
        if without_place > 0 {
            plan.problems.push(format!(
                "service {}: {without_place} backends get no connections, because a service has no more than {} that do",
                key.service,
                group.members.count()
            ));
        }
        drained
    }

    /// Writes how backends of other nodes are reached, and which of this node others may send to. Where only backends of this node
    /// are asked, nobody sends to another one.
    fn put_direct(
        &mut self,
        group: &Group,
        key: &GroupKey,
        is_direct: bool,
        (all, changed): (&[desired::Backend], &[&desired::Backend]),
        hop: &impl Fn(IpAddr) -> u32,
        plan: &mut ServicePlan,
    ) {
        let is_ours = |backend: &desired::Backend| is_direct && self.cluster.as_ref() == Some(&backend.cluster);
        for backend in changed {
            let Some(index) = group.backends.get(&place_in_list(backend)) else { continue };
            let can = !backend.local && is_ours(backend);
            let node = backend.node.filter(|node| can && node.is_ipv4() == key.ipv4);
            self.direct.put(key.ipv4, *index, node.map(|node| (node, hop(node))), &mut plan.writes);
        }
        let near = all.iter().filter(|backend| backend.local && backend.address.is_ipv4() == key.ipv4);
        let receivers: BTreeMap<At, u32> = near
            .filter(|backend| is_ours(backend))
            .map(place_in_list)
            .filter_map(|at| Some((at, *group.backends.get(&at)?)))
            .collect();
        match number(key.protocol) {
            Some(protocol) => self.direct.receive(group.id, protocol, &receivers, &mut plan.writes),
            None => self.direct.forget(group.id, &mut plan.writes),
        }
    }

    /// Writes members, and a new table to a range that nobody reads; returns the entry that names them. `None`: there is no room, and the
    /// old entry stays.
    fn put_members(
        &mut self,
        group: &mut Group,
        key: &GroupKey,
        service: &Service,
        plan: &mut ServicePlan,
    ) -> Option<Entry> {
        let count = group.members.count();
        let affinity = service.session_affinity.map_or(0, |seconds| (f64::from(seconds) * TICKS).ceil() as u32);
        let fits = u32::from(count) <= group.range.1;
        // A large range of which hardly any is used: others may need it.
        let is_wasted = group.range.1 > RANGE_KEPT && u32::from(count) < group.range.1 / 4;
        // With some room for more, so that the next ones need no other range.
        let roomy = u32::from(count) + u32::from(count) / 8;
        let mut take = |room| Some((self.member_space.take(room)?, room));
        let other = if fits && !is_wasted { None } else { take(roomy).or_else(|| take(count.into())) };
        match other {
            Some(range) => {
                group.range = range;
                plan.writes.push(Write::Members(range.0, group.members.all()));
            }
            None if fits => {
                let begin = group.range.0;
                let unwritten = group.members.take_unwritten().into_iter();
                plan.writes
                    .extend(unwritten.map(|(place, elements)| Write::Members(begin + u32::from(place), elements)));
            }
            None => {
                plan.problems.push(format!("service {}: no room for its {count} members", key.service));
                return None;
            }
        }
        let is_kept = std::mem::take(&mut group.is_kept);
        let slots = self.settings.slots.filter(|_| count > 0);
        if !group.members.is_stale() && (group.chunks.1 > 0 || slots.is_none()) {
            return Some(entry_of(group, count, slots, affinity));
        }
        let table = slots.and_then(|_| group.members.table());
        let is_adopted = std::mem::take(&mut group.is_adopted);
        if is_adopted && table.as_ref().is_some_and(|table| self.is_there(group.chunks, table)) {
            group.members.set_written();
            return Some(entry_of(group, count, slots, affinity));
        }
        let old = std::mem::take(&mut group.chunks);
        match table {
            None => group.members.set_written(),
            Some(table) => {
                let chunks = table.chunks().count() as u32;
                let same = Some(old.0).filter(|_| is_kept && old.1 == chunks);
                if let Some(begin) = same.or_else(|| self.chunk_space.take(chunks)) {
                    group.chunks = (begin, chunks);
                    for (at, chunk) in (begin..).zip(table.chunks()) {
                        plan.writes.push(Write::Chunk(at, Box::new(*chunk)));
                    }
                    group.members.set_written();
                } else {
                    plan.problems.push(format!(
                        "service {}: no room for a Maglev table, its backends are chosen by plain hash until there is",
                        key.service
                    ));
                }
            }
        }
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
        leaving.push(Retired::Members(group.range.0, group.range.1));
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

/// By which lists of backends are sorted.
const fn place_in_list(backend: &desired::Backend) -> At {
    (backend.address, backend.port)
}

fn is_sorted(backends: &[desired::Backend]) -> bool {
    backends.is_sorted_by(|a, b| place_in_list(a) < place_in_list(b))
}

/// What differs between two sorted lists.
fn difference<'a, 'b>(
    old: impl Iterator<Item = &'b desired::Backend>,
    new: impl Iterator<Item = &'a desired::Backend>,
) -> Changes<'a> {
    let mut changes = Changes { put: Vec::new(), gone: Vec::new() };
    let (mut old, mut new) = (old.peekable(), new.peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return changes,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => place_in_list(old).cmp(&place_in_list(new)),
        };
        let before = if order.is_le() { old.next() } else { None };
        let after = if order.is_ge() { new.next() } else { None };
        match (before, after) {
            (Some(before), None) => changes.gone.push(place_in_list(before)),
            (before, Some(after)) if before != Some(after) => changes.put.push(after),
            _ => {}
        }
    }
}

fn entry_of(group: &Group, count: u16, slots: Option<Slots>, affinity: u32) -> Entry {
    let has_table = group.chunks.1 > 0;
    Entry {
        id: group.id,
        table: if has_table { group.chunks.0 } else { NO_TABLE },
        slots: slots.filter(|_| has_table).map_or(u32::from(count), Slots::count),
        members: group.range.0,
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
    if service.by_source {
        flags |= service_flags::BY_SOURCE;
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
