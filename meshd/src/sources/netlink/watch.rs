//! The thread that follows the kernel.

use std::{
    collections::BTreeMap,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use meshd_core::{
    id::ROUTE_PROTOCOL,
    observed::{Change, KernelChange, KernelKind, NextHopSpec, RouteKey},
};
use netlink_packet_core::ParseableParametrized;
use netlink_packet_route::RouteNetlinkMessage;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use tokio::sync::mpsc;

use super::convert;
use crate::{
    kernel::{
        KernelError,
        linux::{
            Netns,
            encode::dump_request,
            filter::Filter,
            links::LinkStates,
            socket::{DumpError, Frame, RECEIVE_LEN, RouteSocket, dump, frames},
            start,
            wire::*,
        },
    },
    lifecycle::Problems,
};

/// Most foreign routes with a gateway that are kept; beyond that only connected ones are.
pub const FOREIGN_ROUTES_MAX: usize = 200_000;
/// Most changes in one message to the pipeline.
const BATCH_LEN: usize = 4096;
/// Receive buffer of the event socket.
const EVENT_BUFFER: usize = 8 * 1024 * 1024;
/// All kinds are dumped at least this often.
const DUMP_PERIOD: Duration = Duration::from_secs(300);
/// How long events are collected before the dump of routes they call for.
const DEBOUNCE: Duration = Duration::from_millis(10);
/// After a dump that took `t`, the next one waits at least `t` times this.
const DUMP_REST: u32 = 4;
/// Dumps that were overtaken by changes are repeated this often before one is taken as it is.
const INTERRUPTED_MAX: u32 = 5;
/// Pause after a dump failed.
const RETRY: Duration = Duration::from_millis(500);
/// The component of the problem list.
const COMPONENT: &str = "netlink";

/// The source; dropping it ends its thread.
#[derive(Debug)]
pub struct NetlinkSource(Arc<Shared>);

impl NetlinkSource {
    /// Subscribes in `netns` and starts to tell `out` everything, beginning with a dump of each kind.
    ///
    /// # Errors
    /// [`KernelError::Socket`] when the namespace cannot be entered or the socket not be opened.
    pub fn start(netns: Netns, out: mpsc::Sender<Change>, problems: Problems) -> Result<Self, KernelError> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_flags(flags).map_err(KernelError::errno("create an event descriptor"))?;
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), wake });
        start("netlink", shared.clone(), move || {
            netns.enter()?;
            let watch = Watch::open(out, problems)?;
            Ok(((), move |shared: &Shared| watch.run(shared)))
        })?;
        Ok(Self(shared))
    }
}

impl Drop for NetlinkSource {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Release);
        // Fails only when the counter is full, and then the thread is awake anyway.
        let _ = self.0.wake.write(1);
    }
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    wake: EventFd,
}

/// Why the thread stops doing what it does.
#[derive(Debug)]
enum Broken {
    /// Nobody listens any more.
    Closed,
    Interrupted,
    Failed(Errno),
}

impl From<DumpError> for Broken {
    fn from(error: DumpError) -> Self {
        match error {
            DumpError::Interrupted => Self::Interrupted,
            DumpError::Failed(errno) => Self::Failed(errno),
        }
    }
}

struct Watch {
    socket: RouteSocket,
    out: mpsc::Sender<Change>,
    problems: Problems,
    batch: Vec<KernelChange>,
    seq: u32,
    links: LinkStates,
    routes: Routes,
    /// When to dump everything, and when only routes.
    dump_at: Instant,
    routes_at: Option<Instant>,
    rest_until: Instant,
}

impl Watch {
    fn open(out: mpsc::Sender<Change>, problems: Problems) -> Result<Self, KernelError> {
        let groups = [
            RTNLGRP_LINK,
            RTNLGRP_NEIGH,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV6_IFADDR,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV6_ROUTE,
            RTNLGRP_IPV4_RULE,
            RTNLGRP_IPV6_RULE,
        ];
        let socket = RouteSocket::open_for_events(&groups, &Filter::foreign(), EVENT_BUFFER)?;
        let now = Instant::now();
        Ok(Self {
            socket,
            out,
            problems,
            batch: Vec::new(),
            seq: 0,
            links: LinkStates::default(),
            routes: Routes::default(),
            dump_at: now,
            routes_at: None,
            rest_until: now,
        })
    }

    fn run(mut self, shared: &Shared) {
        let mut buffer = vec![0; RECEIVE_LEN];
        while !shared.stop.load(Ordering::Acquire) && !self.out.is_closed() {
            let step = if Instant::now() >= self.dump_at {
                self.dump_all(&KernelKind::ALL)
            } else if self.routes_at.is_some_and(|at| Instant::now() >= at) {
                self.dump_all(&[KernelKind::Routes])
            } else {
                self.wait(shared).and_then(|()| self.follow(&mut buffer))
            };
            match step {
                Ok(()) => {}
                Err(Broken::Closed) => return,
                Err(Broken::Interrupted) => self.dump_at = Instant::now() + RETRY,
                Err(Broken::Failed(Errno::ENOBUFS)) => {
                    tracing::debug!("kernel events overflowed, dumping again");
                    self.dump_at = Instant::now().max(self.rest_until);
                }
                Err(Broken::Failed(errno)) => {
                    self.problems.set(COMPONENT, format!("reading from the kernel fails, trying again: {errno}"));
                    self.dump_at = Instant::now() + RETRY;
                }
            }
        }
    }

    /// Sleeps until there is an event or a dump to make.
    fn wait(&self, shared: &Shared) -> Result<(), Broken> {
        let next = self.routes_at.map_or(self.dump_at, |at| at.min(self.dump_at));
        let timeout = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        let events = PollFlags::POLLIN;
        match poll(&mut [PollFd::new(self.socket.as_fd(), events), PollFd::new(shared.wake.as_fd(), events)], timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(Broken::Failed(errno)),
        }
    }

    /// Reads what has arrived.
    fn follow(&mut self, buffer: &mut [u8]) -> Result<(), Broken> {
        loop {
            let length = match self.socket.try_receive(buffer) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => return self.emit(),
                Err(errno) => return Err(Broken::Failed(errno)),
            };
            for frame in frames(&buffer[..length]) {
                self.take_event(&frame);
            }
            if self.batch.len() >= BATCH_LEN {
                self.emit()?;
            }
        }
    }

    fn take_event(&mut self, frame: &Frame<'_>) {
        match frame.kind {
            RTM_NEWLINK | RTM_DELLINK if self.links.observe(frame) => self.dump_routes_soon(),
            RTM_DELADDR => self.dump_routes_soon(),
            _ => {}
        }
        let Some(change) = parse(frame) else { return };
        if let KernelChange::Route(key, row) = &change {
            let hops = row.as_ref().map_or(0, |row| row.hops.len());
            let replaces = row.is_some() && frame.flags & NLM_F_REPLACE != 0;
            if self.routes.is_ambiguous(key, hops, replaces) {
                self.dump_routes_soon();
            }
        }
        self.take(change);
    }

    /// Queues a change, unless it is about a route that there is no room for.
    fn take(&mut self, change: KernelChange) {
        let keep = match &change {
            KernelChange::Route(key, Some(row)) => self.routes.put(*key, row.hops.len()),
            KernelChange::Route(key, None) => self.routes.remove(key),
            _ => true,
        };
        if keep {
            self.batch.push(change);
        }
    }

    fn dump_routes_soon(&mut self) {
        let at = (Instant::now() + DEBOUNCE).max(self.rest_until);
        self.routes_at = Some(self.routes_at.map_or(at, |known| known.min(at)));
    }

    fn dump_all(&mut self, kinds: &[KernelKind]) -> Result<(), Broken> {
        let started = Instant::now();
        self.routes_at = None;
        for kind in kinds {
            self.dump_until_clean(*kind)?;
        }
        self.emit()?;
        let now = Instant::now();
        self.rest_until = now + (now - started) * DUMP_REST;
        if kinds.len() == KernelKind::ALL.len() {
            self.dump_at = now + DUMP_PERIOD;
        }
        let left_out = (self.routes.left_out > 0).then(|| {
            format!(
                "the kernel holds more than {FOREIGN_ROUTES_MAX} foreign routes; {} with a gateway are not looked at, so \
                 a node address behind one of them may be taken for on-link",
                self.routes.left_out
            )
        });
        self.problems.report(COMPONENT, left_out);
        Ok(())
    }

    fn dump_until_clean(&mut self, kind: KernelKind) -> Result<(), Broken> {
        for attempt in 1.. {
            self.batch.push(KernelChange::ListBegin(kind));
            if kind == KernelKind::Routes {
                self.routes = Routes::default();
            }
            match self.dump_kind(kind, attempt < INTERRUPTED_MAX) {
                Ok(()) => break,
                Err(broken) => {
                    self.batch.push(KernelChange::ListAbort(kind));
                    self.emit()?;
                    if !matches!(broken, Broken::Interrupted) {
                        return Err(broken);
                    }
                }
            }
        }
        self.batch.push(KernelChange::ListEnd(kind));
        Ok(())
    }

    fn dump_kind(&mut self, kind: KernelKind, strict: bool) -> Result<(), Broken> {
        // A fresh socket each time: after a broken dump the old one would answer EBUSY.
        let socket = RouteSocket::open_for_dumps().map_err(|error| {
            tracing::warn!(%error, "no socket for a dump");
            Broken::Failed(Errno::EIO)
        })?;
        // Header of the request, without filters.
        let requests: &[(u16, &[u8])] = match kind {
            KernelKind::Links => &[(RTM_GETLINK, &[0; 16])],
            KernelKind::Addresses => &[(RTM_GETADDR, &[0; 8])],
            KernelKind::Routes => &[
                (RTM_GETROUTE, &[AF_INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
                (RTM_GETROUTE, &[AF_INET6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            ],
            KernelKind::Rules => &[(RTM_GETRULE, &[0; 12])],
            KernelKind::Neighbors => &[(RTM_GETNEIGH, &[0; 12])],
        };
        for (request, header) in requests {
            self.seq = self.seq.wrapping_add(1);
            let seq = self.seq;
            dump(&socket, &dump_request(seq, *request, header), seq, strict, |frame| {
                if frame.kind == RTM_NEWLINK {
                    self.links.observe(frame);
                }
                if let Some(change) = parse(frame) {
                    self.take(change);
                }
                if self.batch.len() >= BATCH_LEN { self.emit() } else { Ok::<(), Broken>(()) }
            })?;
        }
        Ok(())
    }

    /// Hands the batch on and waits for room.
    fn emit(&mut self) -> Result<(), Broken> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.out.blocking_send(Change::Kernel(std::mem::take(&mut self.batch))).map_err(|_| Broken::Closed)
    }
}

/// The foreign routes told so far, with the number of their hops: enough to see when a message leaves open what became of
/// another route, and to keep within the limit.
#[derive(Debug, Default)]
struct Routes {
    known: BTreeMap<RouteKey, usize>,
    gateways: usize,
    left_out: usize,
}

impl Routes {
    /// True when there is room for it.
    fn put(&mut self, key: RouteKey, hops: usize) -> bool {
        let routed = is_routed(&key);
        if routed && self.gateways >= FOREIGN_ROUTES_MAX && !self.known.contains_key(&key) {
            self.left_out += 1;
            return false;
        }
        if self.known.insert(key, hops).is_none() && routed {
            self.gateways += 1;
        }
        true
    }

    /// True when it was known.
    fn remove(&mut self, key: &RouteKey) -> bool {
        let known = self.known.remove(key).is_some();
        if known && is_routed(key) {
            self.gateways -= 1;
        } else if !known && self.left_out > 0 {
            self.left_out -= 1;
        }
        known
    }

    /// True when a message about `key` says too little: it replaced a route that is not named, or it concerns one of
    /// several hops of an IPv6 route, which the kernel reports one by one.
    fn is_ambiguous(&self, key: &RouteKey, hops: usize, replaces: bool) -> bool {
        let first = RouteKey { protocol: 0, hop: None, ..*key };
        let same_place = |other: &RouteKey| {
            (other.table, other.prefix, other.metric, other.tos) == (key.table, key.prefix, key.metric, key.tos)
        };
        let mut others = self.known.range(first..).take_while(|(other, _)| same_place(other));
        others.any(|(other, known_hops)| {
            let changed = other != key || *known_hops != hops;
            (replaces && other != key) || (!key.prefix.addr().is_ipv4() && changed && (*known_hops > 1 || hops > 1))
        })
    }
}

fn is_routed(key: &RouteKey) -> bool {
    matches!(key.hop, Some(NextHopSpec { via: Some(_), .. }))
}

/// Reads one message. Our own routes are skipped unread: there may be a million of them in a dump.
pub(crate) fn parse(frame: &Frame<'_>) -> Option<KernelChange> {
    const RTM_PROTOCOL: usize = 5;
    if matches!(frame.kind, RTM_NEWROUTE | RTM_DELROUTE) && frame.payload.get(RTM_PROTOCOL) == Some(&ROUTE_PROTOCOL) {
        return None;
    }
    match RouteNetlinkMessage::parse_with_param(frame.payload, frame.kind) {
        Ok(message) => convert::change(&message),
        Err(error) => {
            tracing::warn!(kind = frame.kind, %error, "a kernel message was not understood");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(prefix: &str, via: &str) -> RouteKey {
        RouteKey {
            table: meshd_core::id::TableId(254),
            prefix: prefix.parse().unwrap(),
            metric: meshd_core::id::Metric(0),
            tos: 0,
            protocol: 3,
            hop: Some(NextHopSpec { via: via.parse().ok(), dev: meshd_core::id::IfIndex(1) }),
        }
    }

    #[test]
    fn a_replacement_that_names_no_victim_calls_for_a_dump() {
        let mut routes = Routes::default();
        assert!(routes.put(key("10.0.0.0/8", "192.0.2.1"), 1));
        assert!(!routes.is_ambiguous(&key("10.0.0.0/8", "192.0.2.1"), 1, true));
        assert!(routes.is_ambiguous(&key("10.0.0.0/8", "192.0.2.2"), 1, true));
        assert!(!routes.is_ambiguous(&key("10.0.0.0/8", "192.0.2.2"), 1, false));
        assert!(!routes.is_ambiguous(&key("10.0.0.0/9", "192.0.2.2"), 1, true));
    }

    #[test]
    fn single_hops_of_an_ipv6_route_call_for_a_dump() {
        let mut routes = Routes::default();
        routes.put(key("2001:db8::/32", "fe80::1"), 2);
        assert!(routes.is_ambiguous(&key("2001:db8::/32", "fe80::2"), 0, false));
        assert!(routes.is_ambiguous(&key("2001:db8::/32", "fe80::1"), 3, false));
        assert!(!routes.is_ambiguous(&key("2001:db8::/32", "fe80::1"), 2, false));
    }

    #[test]
    fn routes_beyond_the_limit_are_counted_and_connected_ones_kept() {
        let mut routes = Routes { gateways: FOREIGN_ROUTES_MAX, ..Routes::default() };
        assert!(!routes.put(key("10.0.0.0/8", "192.0.2.1"), 1));
        assert_eq!(routes.left_out, 1);
        assert!(routes.put(key("10.0.0.0/8", "-"), 1), "connected");
        assert!(!routes.remove(&key("10.0.0.0/8", "192.0.2.1")));
        assert_eq!(routes.left_out, 0);
    }
}
