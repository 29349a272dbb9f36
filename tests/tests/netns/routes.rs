//! Our routes and nexthop objects at the real kernel.
//!
//! Each test runs in a thread with a network namespace of its own and two veth pairs whose far ends stay inside it; the
//! kernel hands routes to them whether or not anybody answers.

mod foreign;
mod planned;
mod recovery;
mod twin;

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use meshd::kernel::{
    ActualEvents, Failure, KernelRoutes,
    linux::{LinuxOptions, LinuxRoutes},
};
use meshd_core::{
    desired::Hop,
    id::{IfIndex, Metric, NexthopId, TableId},
    plan::{Action, ActualChange, ActualKey, ActualNexthop, ActualRoute, RouteVia},
};
use nix::sched::{CloneFlags, unshare};
use tokio::{runtime, time::timeout};

/// Whatever is waited for comes well before this.
const DEADLINE: Duration = Duration::from_secs(10);
/// Links of the namespace.
const ONE: IfIndex = IfIndex(101);
const TWO: IfIndex = IfIndex(102);

/// The kernel of one namespace: our hands, and the actual table as the events tell it.
struct Kernel {
    runtime: runtime::Runtime,
    routes: LinuxRoutes,
    events: ActualEvents,
    actual: Actual,
}

/// The actual table, fed by nothing but events.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Actual {
    routes: BTreeMap<ActualKey, ActualRoute>,
    nexthops: BTreeMap<NexthopId, ActualNexthop>,
    dump: Option<Box<Actual>>,
    dumps: usize,
}

impl Actual {
    /// What changes apply to now: the dump under way, if any.
    fn current(&mut self) -> &mut Self {
        match &mut self.dump {
            Some(_) => self.dump.as_deref_mut().expect("just seen"),
            None => self,
        }
    }

    fn observe(&mut self, change: ActualChange) {
        match change {
            ActualChange::DumpBegin => self.dump = Some(Box::default()),
            ActualChange::DumpAbort => self.dump = None,
            ActualChange::DumpEnd => {
                let dump = self.dump.take().expect("a dump ends that began");
                *self = Self { dumps: self.dumps + 1, ..*dump };
            }
            ActualChange::Nexthop(id, content) => {
                let nexthops = &mut self.current().nexthops;
                match content {
                    Some(content) => nexthops.insert(id, content),
                    None => nexthops.remove(&id),
                };
            }
            ActualChange::Route(key, content) => {
                let routes = &mut self.current().routes;
                match content {
                    Some(content) => routes.insert(key, content),
                    None => routes.remove(&key),
                };
            }
        }
    }
}

impl Kernel {
    fn start(options: LinuxOptions) -> Self {
        let runtime = runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let (routes, events) = LinuxRoutes::start(options).expect("open netlink sockets");
        let mut kernel = Self { runtime, routes, events, actual: Actual::default() };
        kernel.until("the first dump", |actual| actual.dumps == 1);
        kernel
    }

    /// Carries out actions that must all succeed.
    fn apply(&self, actions: Vec<Action>) {
        assert_eq!(self.try_apply(actions), [], "no failures");
    }

    fn try_apply(&self, actions: Vec<Action>) -> Vec<Failure> {
        self.runtime.block_on(self.routes.apply(actions)).expect("a running writer")
    }

    /// Follows the events until the actual table is as wanted; returns how long that took.
    fn until(&mut self, what: &str, done: impl Fn(&Actual) -> bool) -> Duration {
        let started = Instant::now();
        while !done(&self.actual) {
            let left = DEADLINE.saturating_sub(started.elapsed());
            let batch = self.runtime.block_on(async { timeout(left, self.events.recv()).await });
            let Ok(Some(batch)) = batch else {
                panic!("{what} did not come; {} routes, {:?}", self.actual.routes.len(), self.actual.nexthops)
            };
            batch.into_iter().for_each(|change| self.actual.observe(change));
        }
        started.elapsed()
    }

    /// Waits until the events have told exactly these routes.
    fn until_routes(&mut self, wanted: &[&str]) -> Duration {
        let prefixes = |actual: &Actual| actual.routes.keys().map(|key| key.prefix.to_string()).collect::<Vec<_>>();
        self.until(&format!("{wanted:?}"), |actual| prefixes(actual) == wanted)
    }
}

/// Runs a line of shell in the namespace of the calling thread and fails the test when it fails.
pub(super) fn shell(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().expect("run sh");
    assert!(output.status.success(), "{line}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Runs a test in a namespace of its own.
pub(super) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    tests::need_root();
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
        shell(
            "ip link set lo up
             ip link add one index 101 type veth peer name one-peer index 201
             ip link add two index 102 type veth peer name two-peer index 202
             for l in one one-peer two two-peer; do ip link set $l up; done
             ip addr add 192.0.2.1/24 dev one; ip -6 addr add 2001:db8:1::1/64 dev one nodad
             ip addr add 198.51.100.1/24 dev two; ip -6 addr add 2001:db8:2::1/64 dev two nodad",
        );
        test();
    };
    thread::spawn(body).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn key(prefix: &str) -> ActualKey {
    ActualKey { prefix: prefix.parse().expect("a prefix"), table: TableId(254), metric: Metric(77) }
}

fn hop(via: &str, dev: IfIndex) -> Hop {
    Hop { via: via.parse().expect("an address"), dev, tunnel: None }
}

fn id(n: u32) -> NexthopId {
    NexthopId(77_000_000 + n)
}

fn nexthop(n: u32, via: &str, dev: IfIndex, replace: bool) -> Action {
    Action::PutNexthop { id: id(n), hop: hop(via, dev), replace }
}

fn through(prefix: &str, n: u32, replace: bool) -> Action {
    Action::PutRoute { key: key(prefix), via: RouteVia::Object(id(n)), replace }
}

fn plain(prefix: &str, hops: &[Hop], replace: bool) -> Action {
    Action::PutRoute { key: key(prefix), via: RouteVia::Hops(hops.into()), replace }
}

fn delete(prefix: &str) -> Action {
    Action::DeleteRoute { key: key(prefix) }
}

/// `ip -j route show proto 77` of both families as sorted (prefix, gateways).
fn ip_routes() -> Vec<(String, String)> {
    let mut routes = Vec::new();
    for family in ["-4", "-6"] {
        let text = shell(&format!("ip -j {family} route show proto 77"));
        let list: Vec<serde_json::Value> = serde_json::from_str(&text).expect("JSON from ip");
        for route in list {
            let one = |hop: &serde_json::Value| {
                let via = hop["gateway"].as_str().or_else(|| hop["via"]["host"].as_str()).unwrap_or("-");
                format!("{via} {}", hop["dev"].as_str().unwrap_or("-"))
            };
            let hops = match route["nexthops"].as_array() {
                Some(hops) => hops.iter().map(one).collect::<Vec<_>>().join(", "),
                None => one(&route),
            };
            routes.push((route["dst"].as_str().expect("a destination").to_owned(), hops));
        }
    }
    routes.sort();
    routes
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

#[test]
fn routes_of_both_families_come_change_and_go() {
    in_namespace(|| {
        let mut kernel = Kernel::start(LinuxOptions::default());
        kernel.apply(vec![
            nexthop(1, "192.0.2.9", ONE, false),
            nexthop(2, "2001:db8:1::9", ONE, false),
            through("10.1.0.0/24", 1, false),
            through("fd00:1::/64", 2, false),
            plain("10.2.0.0/24", &[hop("198.51.100.9", TWO)], false),
            plain("fd00:2::/64", &[hop("2001:db8:2::9", TWO)], false),
            // An IPv4 destination behind an IPv6 hop, as an object and inside the route.
            through("10.3.0.0/24", 2, false),
            plain("10.4.0.0/24", &[hop("2001:db8:1::9", ONE)], false),
        ]);
        let all = ["10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24", "10.4.0.0/24", "fd00:1::/64", "fd00:2::/64"];
        kernel.until_routes(&all);
        assert!(kernel.actual.routes.values().all(|route| route.regular), "{:?}", kernel.actual);
        assert_eq!(
            ip_routes(),
            pairs(&[
                ("10.1.0.0/24", "192.0.2.9 one"),
                ("10.2.0.0/24", "198.51.100.9 two"),
                ("10.3.0.0/24", "2001:db8:1::9 one"),
                ("10.4.0.0/24", "2001:db8:1::9 one"),
                ("fd00:1::/64", "2001:db8:1::9 one"),
                ("fd00:2::/64", "2001:db8:2::9 two"),
            ])
        );
        // What the notifications told is what a dump tells.
        let told = kernel.actual.clone();
        kernel.routes.request_dump();
        kernel.until("a dump on demand", |actual| actual.dumps == 2);
        assert_eq!(kernel.actual, Actual { dumps: 2, ..told });

        kernel.apply(vec![
            nexthop(1, "198.51.100.8", TWO, true),
            plain("10.2.0.0/24", &[hop("192.0.2.8", ONE)], true),
            plain("fd00:2::/64", &[hop("2001:db8:1::8", ONE)], true),
            delete("10.4.0.0/24"),
        ]);
        kernel.until_routes(&["10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24", "fd00:1::/64", "fd00:2::/64"]);
        assert_eq!(
            ip_routes(),
            pairs(&[
                ("10.1.0.0/24", "198.51.100.8 two"),
                ("10.2.0.0/24", "192.0.2.8 one"),
                ("10.3.0.0/24", "2001:db8:1::9 one"),
                ("fd00:1::/64", "2001:db8:1::9 one"),
                ("fd00:2::/64", "2001:db8:1::8 one"),
            ])
        );

        let gone = ["10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24", "fd00:1::/64", "fd00:2::/64"];
        let mut actions: Vec<Action> = gone.into_iter().map(delete).collect();
        actions.extend([1, 2].map(|n| Action::DeleteNexthop { id: id(n), routes: 0 }));
        kernel.apply(actions);
        kernel.until("nothing", |actual| actual.routes.is_empty() && actual.nexthops.is_empty());
        assert_eq!(ip_routes(), []);
        assert_eq!(shell("ip nexthop show"), "");
    });
}

#[test]
fn several_hops_make_a_group_or_a_multipath_route() {
    in_namespace(|| {
        let mut kernel = Kernel::start(LinuxOptions::default());
        let hops = [hop("192.0.2.9", ONE), hop("198.51.100.9", TWO)];
        let hops6 = [hop("2001:db8:1::9", ONE), hop("2001:db8:2::9", TWO)];
        kernel.apply(vec![
            nexthop(1, "192.0.2.9", ONE, false),
            nexthop(2, "198.51.100.9", TWO, false),
            Action::PutGroup { id: id(3), members: [id(1).into(), id(2).into()].into(), replace: false },
            through("10.1.0.0/24", 3, false),
            plain("10.2.0.0/24", &hops, false),
            plain("fd00:2::/64", &hops6, false),
        ]);
        kernel.until_routes(&["10.1.0.0/24", "10.2.0.0/24", "fd00:2::/64"]);
        assert_eq!(kernel.actual.nexthops[&id(3)], ActualNexthop::Group([id(1).into(), id(2).into()].into()));
        let regular = |via| ActualRoute { via, regular: true };
        assert_eq!(kernel.actual.routes[&key("10.2.0.0/24")], regular(RouteVia::Hops(hops.into())));
        assert_eq!(kernel.actual.routes[&key("fd00:2::/64")], regular(RouteVia::Hops(hops6.into())));
        assert_eq!(
            ip_routes(),
            pairs(&[
                ("10.1.0.0/24", "192.0.2.9 one, 198.51.100.9 two"),
                ("10.2.0.0/24", "192.0.2.9 one, 198.51.100.9 two"),
                ("fd00:2::/64", "2001:db8:1::9 one, 2001:db8:2::9 two"),
            ])
        );
        // A route that becomes plain and a group that loses a member.
        kernel.apply(vec![
            plain("10.2.0.0/24", &hops[..1], true),
            plain("fd00:2::/64", &hops6[1..], true),
            Action::PutGroup { id: id(3), members: [id(2).into()].into(), replace: true },
        ]);
        kernel.until("the smaller ones", |actual| {
            actual.nexthops[&id(3)] == ActualNexthop::Group([id(2).into()].into())
                && actual.routes[&key("10.2.0.0/24")] == regular(RouteVia::Hops(hops[..1].into()))
                && actual.routes[&key("fd00:2::/64")] == regular(RouteVia::Hops(hops6[1..].into()))
        });
    });
}

#[test]
fn one_replaced_object_moves_all_routes_without_a_gap() {
    in_namespace(|| {
        shell(
            "ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev one nud permanent
             ip neigh add 198.51.100.9 lladdr 02:00:00:00:00:09 dev two nud permanent",
        );
        let mut kernel = Kernel::start(LinuxOptions::default());
        let mut actions = vec![nexthop(1, "192.0.2.9", ONE, false)];
        actions.extend((0..1000).map(|n| through(&format!("10.{}.{}.0/24", 1 + n / 250, n % 250), 1, false)));
        kernel.apply(actions);
        kernel.until("all routes", |actual| actual.routes.len() == 1000);

        // A packet that finds no route is an error for its sender.
        let stop = Arc::new(AtomicBool::new(false));
        let sender = {
            let stop = stop.clone();
            thread::spawn(move || {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
                let (mut sent, mut failed) = (0_u64, 0_u64);
                while !stop.load(Ordering::Relaxed) {
                    let n = sent % 1000;
                    let to = SocketAddr::from(([10, (1 + n / 250) as u8, (n % 250) as u8, 1], 9));
                    failed += u64::from(socket.send_to(b"gap?", to).is_err());
                    sent += 1;
                }
                (sent, failed)
            })
        };
        for n in 0..50 {
            let (via, dev) = if n % 2 == 0 { ("198.51.100.9", TWO) } else { ("192.0.2.9", ONE) };
            kernel.apply(vec![nexthop(1, via, dev, true)]);
        }
        stop.store(true, Ordering::Relaxed);
        let (sent, failed) = sender.join().expect("the sender");
        assert!(sent > 1000, "{sent} packets are no proof");
        assert_eq!(failed, 0, "of {sent} packets");
        kernel.apply(vec![nexthop(1, "198.51.100.9", TWO, true)]);
        let shown = ip_routes();
        assert_eq!(shown.len(), 1000);
        assert!(shown.iter().all(|(_, hops)| hops == "198.51.100.9 two"), "{:?}", shown[0]);
    });
}

#[test]
fn failures_are_listed_in_order_with_the_kernels_words() {
    in_namespace(|| {
        let mut kernel = Kernel::start(LinuxOptions::default());
        let mut actions = vec![nexthop(1, "192.0.2.9", ONE, false)];
        // Every third action fails, over several sends.
        for n in 0..1500 {
            let object = if n % 3 == 2 { 500 } else { 1 };
            actions.push(through(&format!("10.{}.{}.0/24", 1 + n / 250, n % 250), object, false));
        }
        let failures = kernel.try_apply(actions.clone());
        let wanted: Vec<usize> = (0..1500).filter(|n| n % 3 == 2).map(|n| n + 1).collect();
        assert_eq!(failures.iter().map(|failure| failure.index).collect::<Vec<_>>(), wanted);
        for failure in &failures {
            assert_eq!(failure.action, actions[failure.index]);
        }
        let text = failures[0].to_string();
        assert!(text.starts_with("failed to add route 10.1.2.0/24 nhid 77000500 metric 77: EINVAL"), "{text}");
        assert!(text.contains("(Nexthop id does not exist)"), "{text}");
        kernel.until("the rest", |actual| actual.routes.len() == 1000);

        let again = kernel.try_apply(vec![
            through("10.1.0.0/24", 1, false),
            delete("10.1.2.0/24"),
            Action::DeleteNexthop { id: id(500), routes: 0 },
            Action::DeleteNexthop { id: NexthopId(1), routes: 0 },
        ]);
        assert!(again[0].is_taken(), "{}", again[0]);
        assert!(again[1].is_already_gone() && again[2].is_already_gone(), "{} {}", again[1], again[2]);
        assert_eq!(again[3].to_string(), "failed to delete nexthop 1: nexthop id 1 is outside our range");
    });
}

#[test]
fn tables_beyond_255_and_batches_without_waiting_work() {
    in_namespace(|| {
        let mut kernel = Kernel::start(LinuxOptions::default());
        let far = ActualKey { table: TableId(1000), ..key("10.1.0.0/24") };
        let hops: Box<[Hop]> = [hop("192.0.2.9", ONE)].into();
        let batches: Vec<Vec<Action>> = vec![
            vec![Action::PutRoute { key: far, via: RouteVia::Hops(hops.clone()), replace: false }],
            vec![Action::DeleteRoute { key: far }],
            vec![Action::PutRoute { key: far, via: RouteVia::Hops(hops), replace: false }],
        ];
        kernel.runtime.block_on(async {
            let mut receipts = Vec::new();
            for batch in batches {
                receipts.push(kernel.routes.submit(batch).await.expect("a running writer"));
            }
            for receipt in receipts {
                assert_eq!(receipt.await.expect("an answer"), []);
            }
        });
        kernel.until("the route", |actual| actual.routes.contains_key(&far));
        assert!(shell("ip route show table 1000").contains("10.1.0.0/24 via 192.0.2.9"));
    });
}
