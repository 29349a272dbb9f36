//! A kernel that forwards: routes, nexthop objects, links and what it tells about them.
//!
//! It follows the real one where a mistake would hurt: adding what exists is refused whoever owns it, a nexthop that goes
//! takes its routes along in silence, a link that goes down takes nexthops and routes along in silence, notifications
//! overflow, and replacing does not ask whose route it replaces. It also is a witness: what our actions destroy is
//! returned to the caller, and a touch of something foreign is written down.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ipnet::IpNet;
use meshd_core::{
    desired::Hop,
    id::{IfIndex, MAIN_TABLE, Metric, NexthopId, ROUTE_PROTOCOL, TableId},
    observed::{KernelChange, KernelKind, LinkRow, NextHopSpec, RouteKey, RouteKind, RouteRow},
    plan::{Action, ActualChange, ActualKey, ActualNexthop, ActualRoute, GroupMember, RouteVia},
};

/// Notifications the kernel holds for a slow listener; one more is an overflow.
pub(crate) const NOTES_MAX: usize = 400;
/// Protocol of routes somebody added by hand.
pub(crate) const FOREIGN: u8 = 4;
/// Protocol of connected networks.
const KERNEL: u8 = 2;

#[derive(Debug, Clone)]
pub(crate) enum Note {
    Actual(ActualChange),
    Kernel(KernelChange),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) protocol: u8,
    pub(crate) via: RouteVia,
    pub(crate) regular: bool,
}

/// Why an action did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Exists,
    Gone,
    Down,
    NoNexthop,
    NoMemory,
}

/// A connected network of a link.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connected {
    pub(crate) link: IfIndex,
    pub(crate) prefix: IpNet,
}

#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) links: BTreeMap<IfIndex, bool>,
    connected: Vec<Connected>,
    pub(crate) routes: BTreeMap<ActualKey, Entry>,
    pub(crate) nexthops: BTreeMap<NexthopId, ActualNexthop>,
    pub(crate) refusing: bool,
    notes: VecDeque<Note>,
    pub(crate) overflow: bool,
    /// Keys a foreign program took whose notification was not read yet: replacing them is the one race nobody can win.
    unheard: BTreeSet<ActualKey>,
    /// Foreign things our actions touched (I5).
    pub(crate) touched_foreign: Vec<String>,
}

pub(crate) fn key(prefix: IpNet, metric: u32) -> ActualKey {
    ActualKey { prefix, table: TableId(MAIN_TABLE), metric: Metric(metric) }
}

impl Kernel {
    pub(crate) fn new(connected: Vec<Connected>) -> Self {
        let mut kernel = Self {
            links: connected.iter().map(|c| (c.link, false)).collect(),
            connected,
            routes: BTreeMap::new(),
            nexthops: BTreeMap::new(),
            refusing: false,
            notes: VecDeque::new(),
            overflow: false,
            unheard: BTreeSet::new(),
            touched_foreign: Vec::new(),
        };
        for link in kernel.links.keys().copied().collect::<Vec<_>>() {
            kernel.set_link(link, true);
        }
        kernel
    }

    /// Links a packet for `prefix` leaves through, with the gateways; empty when it goes nowhere.
    pub(crate) fn forwards(&self, key: &ActualKey) -> Vec<Hop> {
        match self.routes.get(key).map(|entry| &entry.via) {
            Some(RouteVia::Hops(hops)) => hops.to_vec(),
            Some(RouteVia::Object(id)) => match self.nexthops.get(id) {
                Some(ActualNexthop::Hop(hop)) => vec![*hop],
                Some(ActualNexthop::Group(members)) => {
                    let hop = |member: &GroupMember| match self.nexthops.get(&member.id) {
                        Some(ActualNexthop::Hop(hop)) => Some(*hop),
                        _ => None,
                    };
                    members.iter().filter_map(hop).collect()
                }
                _ => Vec::new(),
            },
            Some(RouteVia::Narrow(..) | RouteVia::Blackhole) | None => Vec::new(),
        }
    }

    pub(crate) fn set_link(&mut self, link: IfIndex, up: bool) {
        if self.links.insert(link, up) == Some(up) {
            return;
        }
        self.note(Note::Kernel(KernelChange::Link(link, Some(link_row(link, up)))));
        let connected: Vec<IpNet> = self.connected.iter().filter(|c| c.link == link).map(|c| c.prefix).collect();
        for prefix in connected {
            let entry = Entry { protocol: KERNEL, via: RouteVia::Hops(Box::default()), regular: true };
            let key = key(prefix, 0);
            if up {
                self.routes.insert(key, entry);
            } else {
                self.routes.remove(&key);
            }
            let row = up.then(|| RouteRow { kind: RouteKind::Unicast, hops: [hop_to(link)].into(), nexthop: None });
            self.note(Note::Kernel(KernelChange::Route(connected_key(prefix, link), row)));
        }
        if !up {
            let over = |hop: &Hop| hop.dev == link;
            let gone = self.nexthops.iter().filter(|(_, n)| matches!(n, ActualNexthop::Hop(hop) if over(hop)));
            for id in gone.map(|(id, _)| *id).collect::<Vec<_>>() {
                self.remove_nexthop(id);
            }
            let dead = |entry: &Entry| matches!(&entry.via, RouteVia::Hops(hops) if hops.iter().any(over));
            self.routes.retain(|_, entry| !dead(entry));
        }
    }

    /// Carries out one action. What stopped being forwarded because of it is returned.
    pub(crate) fn apply(&mut self, action: &Action) -> Result<Vec<IpNet>, Refusal> {
        if self.refusing {
            return Err(Refusal::NoMemory);
        }
        match action {
            Action::PutNexthop { id, hop, replace } => {
                self.own_id(*id, action);
                if !self.links.get(&hop.dev).copied().unwrap_or(false) {
                    return Err(Refusal::Down);
                }
                self.put_nexthop(*id, ActualNexthop::Hop(*hop), *replace)
            }
            Action::PutGroup { id, members, replace } => {
                self.own_id(*id, action);
                if !members.iter().all(|m| matches!(self.nexthops.get(&m.id), Some(ActualNexthop::Hop(_)))) {
                    return Err(Refusal::NoNexthop);
                }
                self.put_nexthop(*id, ActualNexthop::Group(members.clone()), *replace)
            }
            Action::PutRoute { key, via, replace } => self.put_route(key, via, *replace, action),
            Action::DeleteRoute { key } => {
                match self.routes.get(key) {
                    Some(entry) if entry.protocol == ROUTE_PROTOCOL => {}
                    // The request names our protocol: the kernel does not find a foreign route with it.
                    Some(_) | None => return Err(Refusal::Gone),
                }
                self.routes.remove(key);
                self.note(Note::Actual(ActualChange::Route(*key, None)));
                Ok(vec![key.prefix])
            }
            Action::DeleteNexthop { id, .. } => {
                self.own_id(*id, action);
                if !self.nexthops.contains_key(id) {
                    return Err(Refusal::Gone);
                }
                self.note(Note::Actual(ActualChange::Nexthop(*id, None)));
                Ok(self.remove_nexthop(*id))
            }
        }
    }

    /// `ip route del` by a person.
    pub(crate) fn remove_by_hand(&mut self, key: &ActualKey) {
        if self.routes.remove(key).is_some_and(|entry| entry.protocol == ROUTE_PROTOCOL) {
            self.note(Note::Actual(ActualChange::Route(*key, None)));
        }
    }

    /// `ip route change` by a person: still our protocol, no longer our route.
    pub(crate) fn change_by_hand(&mut self, key: &ActualKey, hop: Hop) {
        if let Some(entry) = self.routes.get_mut(key) {
            entry.via = RouteVia::Hops([hop].into());
            let route = ActualRoute { via: entry.via.clone(), regular: true };
            self.note(Note::Actual(ActualChange::Route(*key, Some(route))));
        }
    }

    /// `ip nexthop del` by a person; its routes go in silence.
    pub(crate) fn remove_nexthop_by_hand(&mut self, id: NexthopId) {
        self.remove_nexthop(id);
        self.note(Note::Actual(ActualChange::Nexthop(id, None)));
    }

    /// Another program takes a key, ours included (`ip route replace` with its protocol).
    pub(crate) fn take_by_foreign(&mut self, key: ActualKey, hop: Hop) {
        let entry = Entry { protocol: FOREIGN, via: RouteVia::Hops([hop].into()), regular: true };
        if self.routes.insert(key, entry).is_some_and(|old| old.protocol == ROUTE_PROTOCOL) {
            self.unheard.insert(key);
            self.note(Note::Actual(ActualChange::Route(key, None)));
        }
        let spec = NextHopSpec { via: Some(hop.via), dev: hop.dev };
        let row = RouteRow { kind: RouteKind::Unicast, hops: [spec].into(), nexthop: None };
        self.note(Note::Kernel(KernelChange::Route(foreign_key(&key, spec), Some(row))));
    }

    /// The other program gives it back.
    pub(crate) fn give_back(&mut self, key: &ActualKey) {
        let Some(entry) = self.routes.get(key).filter(|entry| entry.protocol == FOREIGN) else { return };
        let RouteVia::Hops(hops) = &entry.via else { return };
        let spec = NextHopSpec { via: Some(hops[0].via), dev: hops[0].dev };
        self.routes.remove(key);
        self.note(Note::Kernel(KernelChange::Route(foreign_key(key, spec), None)));
    }

    pub(crate) fn foreign(&self) -> impl Iterator<Item = &ActualKey> {
        self.routes.iter().filter(|(_, entry)| entry.protocol == FOREIGN).map(|(key, _)| key)
    }

    pub(crate) fn owned(&self) -> impl Iterator<Item = &ActualKey> {
        self.routes.iter().filter(|(_, entry)| entry.protocol == ROUTE_PROTOCOL).map(|(key, _)| key)
    }

    /// Reads what was told; `None` after an overflow, which loses everything.
    pub(crate) fn read(&mut self) -> Option<Vec<Note>> {
        self.unheard.clear();
        if std::mem::take(&mut self.overflow) {
            self.notes.clear();
            return None;
        }
        Some(self.notes.drain(..).collect())
    }

    pub(crate) fn has_notes(&self) -> bool {
        self.overflow || !self.notes.is_empty()
    }

    /// First half of a dump: links, foreign routes and nexthop objects.
    pub(crate) fn dump_first(&self) -> Vec<Note> {
        let mut notes = Vec::new();
        let mut list = |kind, rows: Vec<KernelChange>| {
            notes.push(KernelChange::ListBegin(kind));
            notes.extend(rows);
            notes.push(KernelChange::ListEnd(kind));
        };
        let links = self.links.iter().map(|(link, up)| KernelChange::Link(*link, Some(link_row(*link, *up))));
        list(KernelKind::Links, links.collect());
        list(KernelKind::Addresses, Vec::new());
        let routes = self.routes.iter().filter_map(|(key, entry)| {
            let link = self.connected.iter().find(|c| c.prefix == key.prefix).map(|c| c.link);
            let (key, spec) = match (entry.protocol, &entry.via) {
                (KERNEL, _) => (connected_key(key.prefix, link?), hop_to(link?)),
                (FOREIGN, RouteVia::Hops(hops)) => {
                    let spec = NextHopSpec { via: Some(hops[0].via), dev: hops[0].dev };
                    (foreign_key(key, spec), spec)
                }
                _ => return None,
            };
            let row = RouteRow { kind: RouteKind::Unicast, hops: [spec].into(), nexthop: None };
            Some(KernelChange::Route(key, Some(row)))
        });
        list(KernelKind::Routes, routes.collect());
        let nexthops = self.nexthops.iter().map(|(id, n)| Note::Actual(ActualChange::Nexthop(*id, Some(n.clone()))));
        let nexthops: Vec<Note> = nexthops.collect();
        let begin = Note::Actual(ActualChange::DumpBegin);
        notes.into_iter().map(Note::Kernel).chain([begin]).chain(nexthops).collect()
    }

    /// Second half: our routes.
    pub(crate) fn dump_second(&self) -> Vec<Note> {
        let owned = self.routes.iter().filter(|(_, entry)| entry.protocol == ROUTE_PROTOCOL);
        let route = |(key, entry): (&ActualKey, &Entry)| {
            let route = ActualRoute { via: entry.via.clone(), regular: entry.regular };
            Note::Actual(ActualChange::Route(*key, Some(route)))
        };
        owned.map(route).chain([Note::Actual(ActualChange::DumpEnd)]).collect()
    }

    fn put_nexthop(&mut self, id: NexthopId, new: ActualNexthop, replace: bool) -> Result<Vec<IpNet>, Refusal> {
        if !replace && self.nexthops.contains_key(&id) {
            return Err(Refusal::Exists);
        }
        self.nexthops.insert(id, new.clone());
        self.note(Note::Actual(ActualChange::Nexthop(id, Some(new))));
        Ok(Vec::new())
    }

    fn put_route(
        &mut self,
        key: &ActualKey,
        via: &RouteVia,
        replace: bool,
        action: &Action,
    ) -> Result<Vec<IpNet>, Refusal> {
        match self.routes.get(key) {
            Some(_) if !replace => return Err(Refusal::Exists),
            Some(entry) if entry.protocol != ROUTE_PROTOCOL && !self.unheard.contains(key) => {
                self.touched_foreign.push(format!("{action} replaces a route of protocol {}", entry.protocol));
            }
            Some(_) | None => {}
        }
        match via {
            RouteVia::Object(id) if !self.nexthops.contains_key(id) => return Err(Refusal::NoNexthop),
            RouteVia::Hops(hops) if hops.iter().any(|hop| self.links.get(&hop.dev) != Some(&true)) => {
                return Err(Refusal::Down);
            }
            RouteVia::Object(_) | RouteVia::Hops(_) | RouteVia::Blackhole | RouteVia::Narrow(..) => {}
        }
        self.routes.insert(*key, Entry { protocol: ROUTE_PROTOCOL, via: via.clone(), regular: true });
        let told = ActualRoute { via: via.clone(), regular: true };
        self.note(Note::Actual(ActualChange::Route(*key, Some(told))));
        Ok(Vec::new())
    }

    /// Removes an object, the groups it was the last member of, and their routes; returns the prefixes of these.
    fn remove_nexthop(&mut self, id: NexthopId) -> Vec<IpNet> {
        self.nexthops.remove(&id);
        let mut dead = vec![id];
        for (group, nexthop) in &mut self.nexthops {
            if let ActualNexthop::Group(members) = nexthop
                && members.iter().any(|member| member.id == id)
            {
                *members = members.iter().filter(|member| member.id != id).copied().collect();
                if members.is_empty() {
                    dead.push(*group);
                }
            }
        }
        for group in &dead[1..] {
            self.nexthops.remove(group);
        }
        let leads = |entry: &Entry| matches!(entry.via, RouteVia::Object(id) if dead.contains(&id));
        let gone: Vec<ActualKey> = self.routes.iter().filter(|(_, entry)| leads(entry)).map(|(key, _)| *key).collect();
        for key in &gone {
            self.routes.remove(key);
        }
        gone.iter().map(|key| key.prefix).collect()
    }

    fn own_id(&mut self, id: NexthopId, action: &Action) {
        if !id.is_owned() {
            self.touched_foreign.push(format!("{action} names an id outside our range"));
        }
    }

    fn note(&mut self, note: Note) {
        if self.notes.len() >= NOTES_MAX {
            self.overflow = true;
        } else {
            self.notes.push_back(note);
        }
    }
}

fn link_row(link: IfIndex, up: bool) -> LinkRow {
    LinkRow { name: format!("eth{link}").into(), up, running: up, loopback: false, mtu: 1500, kind: None, mac: None }
}

fn hop_to(link: IfIndex) -> NextHopSpec {
    NextHopSpec { via: None, dev: link }
}

fn connected_key(prefix: IpNet, link: IfIndex) -> RouteKey {
    let (table, hop) = (TableId(MAIN_TABLE), Some(hop_to(link)));
    RouteKey { table, prefix, metric: Metric(0), tos: 0, protocol: KERNEL, hop }
}

fn foreign_key(key: &ActualKey, hop: NextHopSpec) -> RouteKey {
    RouteKey { table: key.table, prefix: key.prefix, metric: key.metric, tos: 0, protocol: FOREIGN, hop: Some(hop) }
}
