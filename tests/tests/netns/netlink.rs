//! The source of local kernel rows against the real kernel.

use std::time::{Duration, Instant};

use meshd::{kernel::linux::Netns, lifecycle::Problems, sources::netlink::NetlinkSource};
use meshd_core::observed::{Change, KernelKind, Observed, RouteKind};
use tokio::{runtime, sync::mpsc, time::timeout};

use super::routes::{in_namespace, shell};

/// Whatever is waited for comes well before this.
const DEADLINE: Duration = Duration::from_secs(10);

/// The observed tables of one namespace.
struct Source {
    runtime: runtime::Runtime,
    changes: mpsc::Receiver<Change>,
    observed: Observed,
    source: NetlinkSource,
}

impl Source {
    fn start() -> Self {
        let runtime = runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let (out, changes) = mpsc::channel(4);
        let source = NetlinkSource::start(Netns::current(), out, Problems::default()).expect("a source");
        let mut source = Self { runtime, changes, observed: Observed::default(), source };
        source.until("all kinds", |observed| KernelKind::ALL.iter().all(|kind| observed.is_kernel_initialized(*kind)));
        source
    }

    fn until(&mut self, what: &str, done: impl Fn(&Observed) -> bool) {
        let started = Instant::now();
        while !done(&self.observed) {
            let left = DEADLINE.saturating_sub(started.elapsed());
            let change = self.runtime.block_on(async { timeout(left, self.changes.recv()).await });
            let Ok(Some(change)) = change else { panic!("{what} did not come: {:#?}", self.observed) };
            self.observed.apply(change, jiff::Timestamp::UNIX_EPOCH);
        }
    }

    /// Waits until the routes of the main table, without IPv6's link-local ones, are these.
    fn until_routes(&mut self, wanted: &[&str]) {
        self.until(&format!("{wanted:?}"), |observed| routes(observed) == wanted);
    }
}

fn routes(observed: &Observed) -> Vec<String> {
    let shown = observed.routes.iter().filter(|(key, row)| {
        key.table.0 == 254 && row.kind == RouteKind::Unicast && !key.prefix.to_string().starts_with("fe80")
    });
    let text = |hop: Option<std::net::IpAddr>| hop.map_or("-".to_owned(), |via| via.to_string());
    shown
        .map(|(key, row)| format!("{} {}", key.prefix, row.hops.first().map_or("nhid".into(), |hop| text(hop.via))))
        .collect()
}

#[test]
fn the_tables_follow_the_kernel() {
    in_namespace(|| {
        shell("ip route add 10.7.0.0/16 via 192.0.2.9 proto 77 metric 77");
        let mut source = Source::start();
        let connected = ["192.0.2.0/24 -", "198.51.100.0/24 -", "2001:db8:1::/64 -", "2001:db8:2::/64 -"];
        source.until_routes(&connected);
        let link = &source.observed.links.iter().find(|(_, row)| &*row.name == "one").expect("link one").1.clone();
        assert_eq!(
            (link.up, link.running, link.loopback, link.mtu, link.kind.as_deref()),
            (true, true, false, 1500, Some("veth"))
        );
        assert_eq!(source.observed.rules.iter().filter(|(key, _)| key.ipv4).count(), 3);

        // Added, replaced (the old hop is not named by the kernel), deleted.
        shell("ip route add 203.0.113.0/24 via 192.0.2.9");
        source.until("the new route", |observed| routes(observed).contains(&"203.0.113.0/24 192.0.2.9".to_owned()));
        shell("ip route replace 203.0.113.0/24 via 198.51.100.9");
        source.until("the replacement alone", |observed| {
            routes(observed).iter().filter(|route| route.starts_with("203")).eq(["203.0.113.0/24 198.51.100.9"])
        });
        shell("ip route del 203.0.113.0/24");
        source.until_routes(&connected);

        // The hops of an IPv6 route come and go one by one.
        shell(
            "ip -6 route add 2001:db8:f::/48 via 2001:db8:1::9; ip -6 route append 2001:db8:f::/48 via 2001:db8:2::9",
        );
        let hops = |observed: &Observed| {
            let rows: Vec<_> = observed.routes.iter().filter(|(key, _)| key.prefix.prefix_len() == 48).collect();
            rows.iter().map(|(_, row)| row.hops.len()).collect::<Vec<_>>()
        };
        source.until("one route with two hops", |observed| hops(observed) == [2]);
        shell("ip -6 route del 2001:db8:f::/48 via 2001:db8:1::9");
        source.until("one hop left", |observed| hops(observed) == [1]);
        shell("ip -6 route del 2001:db8:f::/48");
        source.until_routes(&connected);

        // IPv4 routes vanish with their link without a word.
        shell("ip route add 203.0.113.0/24 via 192.0.2.9; ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev one");
        source.until("the neighbor", |observed| {
            observed.neighbors.iter().any(|(key, row)| key.address.to_string() == "192.0.2.9" && row.mac.is_some())
        });
        shell("ip link set one down");
        source.until("the end of everything over the link", |observed| {
            !routes(observed).iter().any(|route| route.starts_with("203") || route.starts_with("192.0.2"))
                && observed.links.iter().any(|(_, row)| &*row.name == "one" && !row.up)
        });
        shell("ip rule add from 10.0.0.0/8 table 1000 priority 500; ip addr del 198.51.100.1/24 dev two");
        source.until("the rule, and no address", |observed| {
            observed.rules.iter().any(|(key, _)| key.priority == 500 && key.table.0 == 1000)
                && !observed.addresses.iter().any(|(key, _)| key.address.to_string() == "198.51.100.1/24")
        });
        drop(source.source);
    });
}
