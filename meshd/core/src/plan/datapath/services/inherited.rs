//! What an earlier process left in the maps: taken over by content, held until every list is complete, and removed when
//! nobody named it by then.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
};

use meshd_abi::{
    Address, Backend, BackendState, Direct, MAGLEV_CHUNK, NO_TABLE, RangeKey, ReceiverKey, Service as Entry,
    ServiceKey, V4, V6,
};

use super::{
    Element, FrontendKey, Group, GroupKey, Retired, ServicePlan, ServicePlanner, chunks_of, is_live, write_service,
};
use crate::{maglev::Table, observed::ServiceName, plan::datapath::ip};

/// Weight of a backend that an earlier process wrote and of which nobody has said anything yet: what a backend has by default.
const HELD_WEIGHT: u16 = 100;

/// What the maps held when the process started.
#[derive(Debug, Clone, Default)]
pub struct Existing {
    /// Frontends of IPv4.
    pub services4: Vec<(ServiceKey<V4>, Entry)>,
    /// Frontends of IPv6.
    pub services6: Vec<(ServiceKey<V6>, Entry)>,
    /// Members, all of them.
    pub members: Vec<u32>,
    /// Backends of IPv4 that are in use, with their index.
    pub backends4: Vec<(u32, Backend<V4>)>,
    /// Backends of IPv6 that are in use, with their index.
    pub backends6: Vec<(u32, Backend<V6>)>,
    /// Nodes of backends of IPv4 that have one.
    pub direct4: Vec<(u32, Direct<V4>)>,
    /// Nodes of backends of IPv6 that have one.
    pub direct6: Vec<(u32, Direct<V6>)>,
    /// Backends of IPv4 that other nodes may send to.
    pub receivers4: Vec<(ReceiverKey<V4>, u32)>,
    /// Backends of IPv6 that other nodes may send to.
    pub receivers6: Vec<(ReceiverKey<V6>, u32)>,
    /// What the chunks of Maglev tables hold, by [`digest_of`].
    pub chunks: BTreeMap<u32, u64>,
    /// The highest number that a service had, also one that is gone and that clients with affinity are still remembered of.
    pub last_id: u32,
    /// Source ranges of IPv4.
    pub ranges4: Vec<RangeKey<V4>>,
    /// Source ranges of IPv6.
    pub ranges6: Vec<RangeKey<V6>>,
}

impl Existing {
    /// Next hops of backends and of their nodes, as far as they have one.
    #[must_use]
    pub fn next_hops(&self) -> BTreeMap<IpAddr, u32> {
        let backends4 = self.backends4.iter().map(|(_, backend)| (ip(backend.address), backend.next_hop));
        let backends6 = self.backends6.iter().map(|(_, backend)| (ip(backend.address), backend.next_hop));
        let nodes4 = self.direct4.iter().map(|(_, direct)| (ip(direct.node), direct.next_hop));
        let nodes6 = self.direct6.iter().map(|(_, direct)| (ip(direct.node), direct.next_hop));
        let all = backends4.chain(backends6).chain(nodes4).chain(nodes6);
        all.filter(|(_, next_hop)| *next_hop != 0).collect()
    }
}

/// Tells chunks with different content apart.
#[must_use]
pub fn digest_of(chunk: &[u16; MAGLEV_CHUNK]) -> u64 {
    let mut hasher = DefaultHasher::new();
    chunk.hash(&mut hasher);
    hasher.finish()
}

/// Where an earlier process put a group: its number, and where its members begin.
pub(super) type Place = (u32, u32);

/// What an earlier process left for a group.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Members that are claimed.
    count: u32,
    /// Tables that are claimed, and how many chunks each has.
    tables: BTreeMap<u32, u32>,
}

impl ServicePlanner {
    pub(super) fn inherit_backend<A: Address>(&mut self, index: u32, backend: &Backend<A>) {
        let family = usize::from(!A::IS_V4);
        let state = match backend.state {
            1 => BackendState::Active,
            2 => BackendState::Terminating,
            3 => BackendState::Removed,
            4 => BackendState::Killed,
            _ => return,
        };
        if !self.backend_space[family].claim(index, 1) {
            return;
        }
        let element = Element {
            address: ip(backend.address),
            port: u16::from_be(backend.port),
            state,
            local: backend.local != 0,
            next_hop: backend.next_hop,
            owner: backend.owner,
        };
        // Also that of a group whose entries were not written any more.
        self.last_id = self.last_id.max(element.owner);
        self.by_address.entry(element.address).or_default().insert(index);
        self.elements[family].insert(index, element);
        self.owned.entry((A::IS_V4, element.owner)).or_default().push(index);
    }

    pub(super) fn inherit_frontend<A: Address>(&mut self, key: &ServiceKey<A>, entry: Entry) {
        let key = (ip(key.address), u16::from_be(key.port), key.protocol, key.scope);
        self.last_id = self.last_id.max(entry.id);
        self.frontends.insert(key, entry);
        self.inherited.insert(key);
        // Several frontends share a group. A process that ended between two of them left them with another count or table each.
        let left = self.left_behind.entry((entry.id, entry.members)).or_default();
        let count = u32::from(entry.count);
        if count > left.count && self.member_space.claim(entry.members + left.count, count - left.count) {
            left.count = count;
        }
        let chunks = chunks_of(entry.slots);
        if entry.table != NO_TABLE
            && !left.tables.contains_key(&entry.table)
            && self.chunk_space.claim(entry.table, chunks)
        {
            left.tables.insert(entry.table, chunks);
        }
    }

    /// Removes what an earlier process left and nobody planned since: to be called when every list is complete and every service was
    /// planned once. The second answer names services that must be planned again, because backends were held for them.
    pub fn finish(&mut self) -> (ServicePlan, BTreeSet<ServiceName>) {
        let mut plan = ServicePlan::default();
        self.finished = true;
        let mut again = BTreeSet::new();
        for (key, group) in &mut self.groups {
            if !std::mem::take(&mut group.held).is_empty() {
                again.insert(key.service.clone());
            }
        }
        // Those of groups that kept what they had, for want of room, are theirs.
        let kept: BTreeSet<FrontendKey> =
            self.groups.values().flat_map(|group| group.frontends.iter().copied()).collect();
        for key in std::mem::take(&mut self.inherited).difference(&kept).copied().collect::<Vec<_>>() {
            if self.frontends.remove(&key).is_some() {
                plan.writes.push(write_service(&key, None));
            }
        }
        let groups: BTreeSet<u32> = self.groups.values().map(|group| group.id).collect();
        self.ranges.finish(|group| groups.contains(&group), &mut plan.writes);
        for ((_, members), left) in std::mem::take(&mut self.left_behind) {
            self.retired.push(Retired::Members(members, left.count));
            self.retired.extend(left.tables.into_iter().map(|(table, chunks)| Retired::Chunks(table, chunks)));
        }
        self.chunks.clear();
        self.owned.clear();
        self.adopted.clear();
        let claimed: BTreeSet<(bool, u32)> = self
            .groups
            .iter()
            .flat_map(|(key, group)| group.backends.values().map(|index| (key.ipv4, *index)))
            .collect();
        for ipv4 in [true, false] {
            let lost: Vec<u32> = self.elements[usize::from(!ipv4)]
                .iter()
                .filter(|(index, element)| !claimed.contains(&(ipv4, **index)) && is_live(element.state))
                .map(|(index, _)| *index)
                .collect();
            for index in lost {
                self.set_state(ipv4, index, BackendState::Removed, &mut plan);
            }
        }
        self.direct.finish(&mut plan.writes);
        (plan, again)
    }

    /// What an earlier process wrote for these frontends. One group takes it over, also if the frontends of it belong to several now.
    pub(super) fn adopt(&mut self, key: &GroupKey, frontends: &BTreeSet<FrontendKey>) -> Group {
        let found = frontends
            .iter()
            .filter(|frontend| self.inherited.contains(*frontend))
            .filter_map(|frontend| self.frontends.get(frontend))
            .find_map(|entry| Some((*entry, self.left_behind.remove(&(entry.id, entry.members))?)));
        let mut group = Group::new(&self.settings);
        let Some((entry, mut left)) = found else { return group };
        if !self.adopted.insert(entry.id) {
            // That process ended while it took a group apart: the number is the other part's, and this is read until our entries are written.
            let leaving = self.leaving.entry(key.service.clone()).or_default();
            leaving.push(Retired::Members(entry.members, left.count));
            leaving.extend(left.tables.into_iter().map(|(table, chunks)| Retired::Chunks(table, chunks)));
            return group;
        }
        group.id = entry.id;
        group.range = (entry.members, left.count);
        group.chunks = left.tables.remove_entry(&entry.table).unwrap_or((0, 0));
        group.is_adopted = true;
        // Other frontends name these, until all of them are written.
        let others = left.tables.into_iter().map(|(table, chunks)| Retired::Chunks(table, chunks));
        self.leaving.entry(key.service.clone()).or_default().extend(others);
        let family = usize::from(!key.ipv4);
        let begin = entry.members as usize;
        let held = self.members.get(begin..).unwrap_or_default();
        let held = held.get(..group.range.1 as usize).unwrap_or(held);
        // Also those that get no new connections: known ones name them. What was removed stays so, and is free when nobody names it.
        let owned = self.owned.remove(&(key.ipv4, entry.id)).unwrap_or_default();
        let members: BTreeSet<u32> = held.iter().copied().collect();
        let others = owned.iter().filter(|index| !members.contains(index));
        for (index, is_member) in held.iter().map(|index| (index, true)).chain(others.map(|index| (index, false))) {
            let is_ours = |element: &&Element| element.owner == entry.id && is_live(element.state);
            let Some(element) = self.elements[family].get(index).filter(is_ours) else { continue };
            let at = (element.address, element.port);
            if !group.held.insert(at) {
                continue;
            }
            group.backends.insert(at, *index);
            if is_member && element.state == BackendState::Active {
                group.members.put(at, *index, HELD_WEIGHT);
            }
        }
        group.members.inherit(held);
        group
    }

    /// True when chunks of an earlier process hold this very table.
    pub(super) fn is_there(&self, (begin, length): (u32, u32), table: &Table) -> bool {
        length > 0
            && table.chunks().count() == length as usize
            && (begin..).zip(table.chunks()).all(|(at, chunk)| self.chunks.get(&at) == Some(&digest_of(chunk)))
    }
}
