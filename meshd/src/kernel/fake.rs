//! A kernel in memory, for the simulation and for tests without root.
//!
//! [`FakeKernel`] holds routes, nexthop objects and links and answers as the real one does: what is taken is refused, a
//! deletion names its owner, a nexthop object takes its routes with it, a link that goes down takes both without a word.
//! A test in `tests/netns/routes.rs` gives random actions to both and compares answers and tables.
//!
//! It has two faces. [`FakeKernel::write`] and [`FakeKernel::take_events`] are plain calls, for a simulation with its own
//! clock; [`FakeRoutes`] puts the [`KernelRoutes`] trait and the event stream on top. The rest are the hands of the
//! world: somebody deletes a route, a link goes down, notifications are lost, the kernel refuses.
//!
//! Not imitated: flushing is immediate where the listener of the real kernel waits some milliseconds before it dumps, and
//! IPv6 routes of equal prefix and metric are never merged into one.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::future::BoxFuture;
use ipnet::IpNet;
use meshd_core::{
    desired::Hop,
    id::{IfIndex, NexthopId},
    plan::{Action, ActualChange, ActualKey, ActualNexthop, ActualRoute, RouteVia},
};
use nix::errno::Errno;
use tokio::sync::{Notify, mpsc};

use super::{ActualEvents, EVENT_BATCH_LEN, EVENT_BATCHES_MAX, Failure, KernelError, KernelRoutes, Receipt, Refusal};

/// Most changes that wait to be taken; beyond that they are lost and a dump follows, as when a socket overflows.
pub const EVENTS_MAX: usize = 65_536;

/// Decides whether an action fails, and how.
pub type Refuse = Box<dyn FnMut(&Action) -> Option<Refusal> + Send>;

/// A kernel in memory.
#[derive(Debug, Default)]
pub struct FakeKernel {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    links: BTreeMap<IfIndex, Link>,
    routes: BTreeMap<ActualKey, Held<ActualRoute>>,
    nexthops: BTreeMap<NexthopId, Held<ActualNexthop>>,
    events: VecDeque<ActualChange>,
    dump_wanted: bool,
    refuse: Option<Refuse>,
    writes: usize,
}

/// An object and whether it carries our protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held<T> {
    owned: bool,
    content: T,
}

#[derive(Debug, Clone)]
struct Link {
    up: bool,
    connected: Vec<IpNet>,
}

impl FakeKernel {
    /// A kernel without links. Its event stream begins with a dump.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let kernel = Self::default();
        kernel.state().dump_wanted = true;
        Arc::new(kernel)
    }

    /// Carries out actions in order and returns the failures.
    pub fn write(&self, actions: &[Action]) -> Vec<Failure> {
        let mut state = self.state();
        state.writes += actions.len();
        let failures = actions.iter().enumerate().filter_map(|(index, action)| {
            let refused = state.refuse.as_mut().and_then(|refuse| refuse(action));
            let reason = match refused {
                Some(reason) => reason,
                None => state.carry_out(action).err()?,
            };
            Some(Failure { index, action: action.clone(), reason })
        });
        let failures = failures.collect();
        self.changed.notify_one();
        failures
    }

    /// Takes what happened since the last call, a dump included when one is due.
    pub fn take_events(&self) -> Vec<ActualChange> {
        let mut state = self.state();
        let mut events: Vec<ActualChange> = state.events.drain(..).collect();
        if std::mem::take(&mut state.dump_wanted) {
            events.push(ActualChange::DumpBegin);
            let owned = |held: &bool| *held;
            for (id, held) in state.nexthops.iter().filter(|(id, held)| id.is_owned() && owned(&held.owned)) {
                events.push(ActualChange::Nexthop(*id, Some(held.content.clone())));
            }
            for (key, held) in state.routes.iter().filter(|(_, held)| held.owned) {
                events.push(ActualChange::Route(*key, Some(held.content.clone())));
            }
            events.push(ActualChange::DumpEnd);
        }
        events
    }

    /// The next events contain a dump.
    pub fn request_dump(&self) {
        self.state().dump_wanted = true;
        self.changed.notify_one();
    }

    /// Adds a link that is up, with its connected prefixes, or gives it new ones.
    pub fn add_link(&self, link: IfIndex, connected: Vec<IpNet>) {
        self.state().links.insert(link, Link { up: true, connected });
    }

    /// Takes a link up or down; everything over a link that goes down vanishes without a notification, and the listener
    /// dumps.
    pub fn set_link(&self, link: IfIndex, up: bool) {
        let mut state = self.state();
        let Some(known) = state.links.get_mut(&link) else { return };
        known.up = up;
        if !up {
            let over = |nexthop: &ActualNexthop| matches!(nexthop, ActualNexthop::Hop(hop) if hop.dev == link);
            let gone: Vec<NexthopId> =
                state.nexthops.iter().filter(|(_, held)| over(&held.content)).map(|(id, _)| *id).collect();
            for id in gone {
                state.drop_nexthop(id, false);
            }
            state.routes.retain(|_, held| !held.content.via.hops().iter().any(|hop| hop.dev == link));
        }
        state.dump_wanted = true;
        drop(state);
        self.changed.notify_one();
    }

    /// Somebody deletes a route, whoever holds it.
    pub fn delete_route(&self, key: &ActualKey) {
        let mut state = self.state();
        if state.routes.remove(key).is_some_and(|held| held.owned) {
            state.tell(ActualChange::Route(*key, None));
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Somebody else puts a route in place, over ours if there is one (`owned` says whose protocol it carries).
    pub fn put_route(&self, key: ActualKey, route: ActualRoute, owned: bool) {
        let mut state = self.state();
        let before = state.routes.insert(key, Held { owned, content: route.clone() });
        if owned || before.is_some_and(|held| held.owned) {
            state.tell(ActualChange::Route(key, owned.then_some(route)));
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Somebody deletes a nexthop object, and with it its routes; the listener dumps.
    pub fn delete_nexthop(&self, id: NexthopId) {
        let mut state = self.state();
        state.drop_nexthop(id, true);
        state.dump_wanted = true;
        drop(state);
        self.changed.notify_one();
    }

    /// Notifications that wait are lost, as on an overflow; a dump follows.
    pub fn lose_events(&self) {
        let mut state = self.state();
        state.events.clear();
        state.dump_wanted = true;
        drop(state);
        self.changed.notify_one();
    }

    /// From now on `refuse` is asked before each action; `None` ends that.
    pub fn set_refuse(&self, refuse: Option<Refuse>) {
        self.state().refuse = refuse;
    }

    /// Our routes.
    #[must_use]
    pub fn routes(&self) -> BTreeMap<ActualKey, ActualRoute> {
        let state = self.state();
        state.routes.iter().filter(|(_, held)| held.owned).map(|(key, held)| (*key, held.content.clone())).collect()
    }

    /// Foreign routes.
    #[must_use]
    pub fn foreign_routes(&self) -> BTreeMap<ActualKey, ActualRoute> {
        let state = self.state();
        state.routes.iter().filter(|(_, held)| !held.owned).map(|(key, held)| (*key, held.content.clone())).collect()
    }

    /// All nexthop objects.
    #[must_use]
    pub fn nexthops(&self) -> BTreeMap<NexthopId, ActualNexthop> {
        self.state().nexthops.iter().map(|(id, held)| (*id, held.content.clone())).collect()
    }

    /// How many actions were written, failures included.
    #[must_use]
    pub fn writes(&self) -> usize {
        self.state().writes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn carry_out(&mut self, action: &Action) -> Result<(), Refusal> {
        match action {
            Action::PutNexthop { id, hop, replace } => {
                check_owned(*id)?;
                self.check_hop(hop)?;
                self.put_nexthop(*id, ActualNexthop::Hop(*hop), *replace)
            }
            Action::PutGroup { id, members, replace } => {
                check_owned(*id)?;
                let is_hop = |id: &NexthopId| {
                    self.nexthops.get(id).is_some_and(|held| !matches!(held.content, ActualNexthop::Group(_)))
                };
                if members.is_empty() || !members.iter().all(|member| is_hop(&member.id)) {
                    return Err(refusal(Errno::EINVAL));
                }
                self.put_nexthop(*id, ActualNexthop::Group(members.clone()), *replace)
            }
            Action::PutRoute { key, via, replace } => self.put_route(*key, via, *replace),
            Action::DeleteRoute { key } => {
                if !self.routes.get(key).is_some_and(|held| held.owned) {
                    return Err(refusal(Errno::ESRCH));
                }
                self.routes.remove(key);
                self.tell(ActualChange::Route(*key, None));
                Ok(())
            }
            Action::DeleteNexthop { id, .. } => {
                check_owned(*id)?;
                if !self.nexthops.contains_key(id) {
                    return Err(refusal(Errno::ENOENT));
                }
                self.drop_nexthop(*id, true);
                Ok(())
            }
        }
    }

    fn put_nexthop(&mut self, id: NexthopId, content: ActualNexthop, replace: bool) -> Result<(), Refusal> {
        if let Some(held) = self.nexthops.get(&id) {
            if !replace {
                return Err(refusal(Errno::EEXIST));
            }
            let is_group = |nexthop: &ActualNexthop| matches!(nexthop, ActualNexthop::Group(_));
            if is_group(&held.content) != is_group(&content) {
                return Err(refusal(Errno::EINVAL));
            }
        }
        self.nexthops.insert(id, Held { owned: true, content: content.clone() });
        self.tell(ActualChange::Nexthop(id, Some(content)));
        Ok(())
    }

    fn put_route(&mut self, key: ActualKey, via: &RouteVia, replace: bool) -> Result<(), Refusal> {
        let ipv4 = key.prefix.addr().is_ipv4();
        match if let RouteVia::Narrow(via, _) = via { via } else { via } {
            RouteVia::Object(id) => {
                let hops = self.hops(*id).ok_or_else(|| refusal(Errno::EINVAL))?;
                if !ipv4 && hops.iter().any(Hop::is_ipv4) {
                    return Err(refusal(Errno::EINVAL));
                }
            }
            RouteVia::Hops(hops) => {
                if !ipv4 && hops.iter().any(Hop::is_ipv4) {
                    return Err(Refusal::HopFamily);
                }
                hops.iter().try_for_each(|hop| self.check_hop(hop))?;
            }
            RouteVia::Narrow(..) | RouteVia::Blackhole => {}
        }
        if self.routes.contains_key(&key) && !replace {
            return Err(refusal(Errno::EEXIST));
        }
        let content = ActualRoute { via: via.clone(), regular: true };
        self.routes.insert(key, Held { owned: true, content: content.clone() });
        self.tell(ActualChange::Route(key, Some(content)));
        Ok(())
    }

    /// The hops behind an object; `None` when it does not exist.
    fn hops(&self, id: NexthopId) -> Option<Vec<Hop>> {
        match &self.nexthops.get(&id)?.content {
            ActualNexthop::Hop(hop) => Some(vec![*hop]),
            ActualNexthop::Group(members) => {
                Some(members.iter().filter_map(|member| self.hops(member.id)).flatten().collect())
            }
            ActualNexthop::Irregular | ActualNexthop::Foreign => Some(Vec::new()),
        }
    }

    fn check_hop(&self, hop: &Hop) -> Result<(), Refusal> {
        match self.links.get(&hop.dev) {
            None => Err(refusal(Errno::ENODEV)),
            Some(link) if !link.up => Err(refusal(Errno::ENETDOWN)),
            Some(_) if hop.tunnel.is_some() => Ok(()),
            Some(link) if link.connected.iter().any(|prefix| prefix.contains(&hop.via)) => Ok(()),
            Some(_) if hop.via.is_ipv4() => Err(refusal(Errno::ENETUNREACH)),
            Some(_) => Err(refusal(Errno::EHOSTUNREACH)),
        }
    }

    /// Removes an object, its memberships, and the routes that refer to it or to a group that is empty without it. IPv4
    /// routes go without a notification.
    fn drop_nexthop(&mut self, id: NexthopId, tell: bool) {
        let Some(held) = self.nexthops.remove(&id) else { return };
        if tell && held.owned {
            self.tell(ActualChange::Nexthop(id, None));
        }
        let mut empty = Vec::new();
        let mut smaller = Vec::new();
        for (group, held) in &mut self.nexthops {
            let ActualNexthop::Group(members) = &mut held.content else { continue };
            if members.iter().any(|member| member.id == id) {
                *members = members.iter().filter(|member| member.id != id).copied().collect();
                if members.is_empty() {
                    empty.push(*group);
                } else {
                    smaller.push((*group, held.content.clone()));
                }
            }
        }
        for (group, content) in smaller {
            if tell {
                self.tell(ActualChange::Nexthop(group, Some(content)));
            }
        }
        for group in empty {
            self.drop_nexthop(group, tell);
        }
        let gone: Vec<ActualKey> =
            self.routes.iter().filter(|(_, held)| held.content.via.object() == Some(id)).map(|(key, _)| *key).collect();
        for key in gone {
            let owned = self.routes.remove(&key).is_some_and(|held| held.owned);
            if tell && owned && !key.prefix.addr().is_ipv4() {
                self.tell(ActualChange::Route(key, None));
            }
        }
    }

    fn tell(&mut self, change: ActualChange) {
        if self.dump_wanted && self.events.is_empty() {
            return; // The dump that is due tells it.
        }
        if self.events.len() >= EVENTS_MAX {
            self.events.clear();
            self.dump_wanted = true;
            return;
        }
        self.events.push_back(change);
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("links", &self.links)
            .field("routes", &self.routes)
            .field("nexthops", &self.nexthops)
            .finish_non_exhaustive()
    }
}

/// The fake behind the trait. A task carries the events; it ends with the handle or the receiver.
#[derive(Debug)]
pub struct FakeRoutes {
    kernel: Arc<FakeKernel>,
    task: tokio::task::JoinHandle<()>,
}

impl FakeRoutes {
    /// Starts the event stream of `kernel` on the current runtime.
    #[must_use]
    pub fn start(kernel: Arc<FakeKernel>) -> (Self, ActualEvents) {
        let (out, events) = mpsc::channel(EVENT_BATCHES_MAX);
        let source = kernel.clone();
        let task = tokio::spawn(async move {
            loop {
                let events = source.take_events();
                for batch in events.chunks(EVENT_BATCH_LEN) {
                    if out.send(batch.to_vec()).await.is_err() {
                        return;
                    }
                }
                if events.is_empty() {
                    source.changed.notified().await;
                }
            }
        });
        (Self { kernel, task }, events)
    }
}

impl KernelRoutes for FakeRoutes {
    fn submit(&self, actions: Vec<Action>) -> BoxFuture<'_, Result<Receipt, KernelError>> {
        Box::pin(async move {
            let (done, receipt) = Receipt::new();
            // Nobody waiting is no failure of the write.
            let _ = done.send(self.kernel.write(&actions));
            Ok(receipt)
        })
    }

    fn request_dump(&self) {
        self.kernel.request_dump();
    }
}

impl Drop for FakeRoutes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn refusal(errno: Errno) -> Refusal {
    Refusal::Kernel { errno, message: None }
}

fn check_owned(id: NexthopId) -> Result<(), Refusal> {
    if id.is_owned() { Ok(()) } else { Err(Refusal::NotOwned(id.0)) }
}

#[cfg(test)]
mod tests {
    use meshd_core::id::{Metric, TableId};

    use super::*;

    const LINK: IfIndex = IfIndex(2);
    const ONE: NexthopId = NexthopId(77_000_001);
    const GROUP: NexthopId = NexthopId(77_000_002);

    fn key(prefix: &str) -> ActualKey {
        ActualKey { prefix: prefix.parse().unwrap(), table: TableId(254), metric: Metric(77) }
    }

    fn kernel() -> Arc<FakeKernel> {
        let kernel = FakeKernel::new();
        kernel.add_link(LINK, vec!["192.0.2.0/24".parse().unwrap()]);
        assert_eq!(kernel.take_events(), [ActualChange::DumpBegin, ActualChange::DumpEnd]);
        let hop = Hop { via: "192.0.2.9".parse().unwrap(), dev: LINK, tunnel: None };
        let actions = [
            Action::PutNexthop { id: ONE, hop, replace: false },
            Action::PutGroup { id: GROUP, members: [ONE.into()].into(), replace: false },
            Action::PutRoute { key: key("10.1.0.0/24"), via: RouteVia::Object(GROUP), replace: false },
            Action::PutRoute { key: key("10.2.0.0/24"), via: RouteVia::Hops([hop].into()), replace: false },
        ];
        assert_eq!(kernel.write(&actions), []);
        assert_eq!(kernel.take_events().len(), 4);
        kernel
    }

    #[test]
    fn a_foreign_route_is_neither_replaced_by_an_addition_nor_deleted() {
        let kernel = kernel();
        let foreign = ActualRoute { via: RouteVia::Hops([].into()), regular: true };
        kernel.put_route(key("10.3.0.0/24"), foreign, false);
        let failures = kernel.write(&[
            Action::PutRoute { key: key("10.3.0.0/24"), via: RouteVia::Object(ONE), replace: false },
            Action::DeleteRoute { key: key("10.3.0.0/24") },
        ]);
        assert!(failures[0].is_taken() && failures[1].is_already_gone(), "{failures:?}");
        assert_eq!(kernel.foreign_routes().len(), 1);
        assert_eq!(kernel.take_events(), []);
    }

    #[test]
    fn a_link_that_goes_down_takes_everything_in_silence_and_a_dump_follows() {
        let kernel = kernel();
        kernel.set_link(LINK, false);
        assert!(kernel.routes().is_empty() && kernel.nexthops().is_empty());
        assert_eq!(kernel.take_events(), [ActualChange::DumpBegin, ActualChange::DumpEnd]);
    }

    #[test]
    fn the_last_member_takes_its_group_and_routes_with_it() {
        let kernel = kernel();
        assert_eq!(kernel.write(&[Action::DeleteNexthop { id: ONE, routes: 0 }]), []);
        assert_eq!(kernel.routes().into_keys().collect::<Vec<_>>(), [key("10.2.0.0/24")]);
        let gone = [ActualChange::Nexthop(ONE, None), ActualChange::Nexthop(GROUP, None)];
        assert_eq!(kernel.take_events(), gone, "the IPv4 route went in silence");
    }

    #[test]
    fn refusals_can_be_ordered() {
        let kernel = kernel();
        kernel.set_refuse(Some(Box::new(|action| action.is_delete().then_some(Refusal::AnswerLost))));
        let failures = kernel.write(&[Action::DeleteRoute { key: key("10.1.0.0/24") }]);
        assert_eq!(failures[0].reason, Refusal::AnswerLost);
        kernel.set_refuse(None);
        assert_eq!(kernel.write(&[Action::DeleteRoute { key: key("10.1.0.0/24") }]), []);
    }

    #[tokio::test]
    async fn the_stream_tells_a_dump_and_then_changes() {
        let kernel = kernel();
        kernel.request_dump();
        let (routes, mut events) = FakeRoutes::start(kernel);
        let dump = events.recv().await.unwrap();
        assert_eq!(dump.len(), 6, "{dump:?}");
        let delete = vec![Action::DeleteRoute { key: key("10.1.0.0/24") }];
        assert_eq!(routes.apply(delete).await.unwrap(), []);
        assert_eq!(events.recv().await.unwrap(), [ActualChange::Route(key("10.1.0.0/24"), None)]);
    }
}
