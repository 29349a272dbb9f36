//! Whatever happens to our routes is told, also where the kernel says nothing.

use super::*;

/// A notification takes about a tenth of a millisecond; this leaves room for a busy machine.
const NOTICE: Duration = Duration::from_millis(5);

/// Routes of both families, inside the route and through an object.
fn install(kernel: &mut Kernel) {
    kernel.apply(vec![
        nexthop(1, "192.0.2.9", ONE, false),
        nexthop(2, "2001:db8:1::9", ONE, false),
        nexthop(3, "198.51.100.9", TWO, false),
        through("10.1.0.0/24", 1, false),
        through("fd00:1::/64", 2, false),
        through("10.3.0.0/24", 3, false),
        plain("10.2.0.0/24", &[hop("192.0.2.9", ONE)], false),
        plain("fd00:2::/64", &[hop("2001:db8:1::9", ONE)], false),
    ]);
    kernel.until_routes(&["10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24", "fd00:1::/64", "fd00:2::/64"]);
}

#[test]
fn changes_by_hand_are_told_in_milliseconds() {
    in_namespace(|| {
        let mut kernel = Kernel::start(LinuxOptions::default());
        install(&mut kernel);
        // The best of several: the machine may be busy, the way of a notification is not longer for that.
        let mut best = Duration::MAX;
        for _ in 0..10 {
            shell("ip route del 10.2.0.0/24 metric 77 proto 77");
            best = best.min(kernel.until("the removal", |actual| !actual.routes.contains_key(&key("10.2.0.0/24"))));
            kernel.apply(vec![plain("10.2.0.0/24", &[hop("192.0.2.9", ONE)], false)]);
            kernel.until("the route", |actual| actual.routes.contains_key(&key("10.2.0.0/24")));
        }
        eprintln!("a removal by hand was told after {best:?} at best");
        assert!(best < NOTICE, "told only after {best:?}");

        shell("ip route change 10.2.0.0/24 via 192.0.2.8 metric 77 proto 77 advmss 1300");
        kernel.until("an irregular route", |actual| !actual.routes[&key("10.2.0.0/24")].regular);
        shell("ip -6 route change fd00:2::/64 via 2001:db8:1::8 metric 77 proto 77");
        let other = RouteVia::Hops([hop("2001:db8:1::8", ONE)].into());
        kernel.until("another gateway", |actual| actual.routes[&key("fd00:2::/64")].via == other);
        shell("ip nexthop replace id 77000001 via 192.0.2.8 dev one proto 77");
        let other = ActualNexthop::Hop(hop("192.0.2.8", ONE));
        kernel.until("another object", |actual| actual.nexthops[&id(1)] == other);
        // The kernel removes the IPv4 routes of an object without a word.
        shell("ip nexthop del id 77000001");
        kernel.until_routes(&["10.2.0.0/24", "10.3.0.0/24", "fd00:1::/64", "fd00:2::/64"]);
    });
}

#[test]
fn what_goes_with_a_link_or_an_address_is_told() {
    in_namespace(|| {
        for (event, undo) in [
            ("ip link set one down", "ip link set one up; ip -6 addr add 2001:db8:1::1/64 dev one nodad"),
            // The far end: the link stays up and loses its carrier, which is enough for nexthop objects to go.
            ("ip link set one-peer down", "ip link set one-peer up"),
        ] {
            let mut kernel = Kernel::start(LinuxOptions::default());
            install(&mut kernel);
            shell(event);
            let told = kernel.until(event, |actual| {
                !actual.nexthops.contains_key(&id(1)) && !actual.routes.contains_key(&key("10.1.0.0/24"))
            });
            eprintln!("{event}: told after {told:?}");
            assert!(told < Duration::from_secs(1), "{event}: {told:?}");
            let kept: Vec<String> = kernel.actual.routes.keys().map(|key| key.prefix.to_string()).collect();
            let shown: Vec<String> = ip_routes().into_iter().map(|(prefix, _)| prefix).collect();
            assert_eq!(kept, shown, "{event}");
            shell(&format!(
                "{undo}; ip nexthop flush proto 77 2>/dev/null; ip route flush proto 77; ip -6 route flush proto 77"
            ));
            shell(
                "for n in $(seq 100); do ip -6 addr show dev one | grep -q 2001:db8:1::1 && exit 0; sleep 0.01; done; exit 1",
            );
        }
        let mut kernel = Kernel::start(LinuxOptions::default());
        kernel.apply(vec![plain("10.2.0.0/24", &[hop("192.0.2.9", ONE)], false)]);
        kernel.until_routes(&["10.2.0.0/24"]);
        // The last IPv4 address takes all IPv4 routes over the link with it.
        shell("ip addr del 192.0.2.1/24 dev one");
        kernel.until_routes(&[]);
    });
}

#[test]
fn an_overflow_is_made_up_for_by_a_dump() {
    in_namespace(|| {
        let mut kernel = Kernel::start(LinuxOptions { event_buffer: 4096, ..LinuxOptions::default() });
        kernel.apply(vec![nexthop(1, "192.0.2.9", ONE, false)]);
        let route = |n: usize, verb: &str| {
            format!("route {verb} 10.{}.{}.0/24 nhid 77000001 proto 77 metric 77\n", 1 + n / 250, n % 250)
        };
        let batch = tempfile::NamedTempFile::new().expect("a file");
        let text: String = (0..5000).map(|n| route(n, "add")).chain((0..2500).map(|n| route(n, "del"))).collect();
        std::fs::write(batch.path(), text).expect("write the batch");
        let dumps = kernel.actual.dumps;
        shell(&format!("ip -batch {}", batch.path().display()));
        kernel.until("half of them", |actual| actual.routes.len() == 2500 && actual.dump.is_none());
        assert!(kernel.actual.dumps > dumps, "4 KiB took 7,500 notifications");
        assert!(kernel.actual.routes.contains_key(&key("10.11.0.0/24")), "the second half");
    });
}

#[test]
fn a_bulk_write_ends_with_a_dump_and_then_single_events() {
    in_namespace(|| {
        let mut kernel = Kernel::start(LinuxOptions::default());
        kernel.apply(vec![nexthop(1, "192.0.2.9", ONE, false)]);
        let routes: Vec<Action> =
            (0..40_000).map(|n| through(&format!("10.{}.{}.0/24", n / 250, n % 250), 1, false)).collect();
        for chunk in routes.chunks(8192) {
            kernel.apply(chunk.to_vec());
        }
        let took = kernel.until("all routes", |actual| actual.routes.len() == 40_000 && actual.dump.is_none());
        eprintln!("known {took:?} after the last acknowledgement");
        let dumps = kernel.actual.dumps;
        shell("ip route del 10.7.0.0/24 metric 77 proto 77");
        kernel.until("the removal", |actual| actual.routes.len() == 39_999);
        assert_eq!(kernel.actual.dumps, dumps, "told by a notification");
    });
}
