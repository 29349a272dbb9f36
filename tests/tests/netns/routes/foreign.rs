//! Only what carries our mark is touched, and only what concerns us is heard.

use super::*;

#[test]
fn foreign_routes_survive_whatever_we_do_beside_them() {
    in_namespace(|| {
        shell(
            "ip route add 10.1.0.0/24 via 192.0.2.1 onlink dev one metric 10 proto static
             ip -6 route add fd00:1::/64 via 2001:db8:1::7 metric 10 proto static
             ip route add 10.2.0.0/24 via 192.0.2.7 metric 77 proto static
             ip -6 route add fd00:2::/64 via 2001:db8:1::7 metric 77 proto static
             ip route add 10.3.0.0/24 via 192.0.2.7 metric 77 table 1000 proto static
             ip nexthop add id 7 via 192.0.2.7 dev one proto static",
        );
        let show = "ip route show table all proto static; ip -6 route show proto static; ip nexthop show";
        let before = shell(show);
        let mut kernel = Kernel::start(LinuxOptions::default());
        assert_eq!(kernel.actual, Actual { dumps: 1, ..Actual::default() });

        // The same prefix with another metric stands beside ours; the same key is refused.
        kernel.apply(vec![
            plain("10.1.0.0/24", &[hop("192.0.2.9", ONE)], false),
            plain("fd00:1::/64", &[hop("2001:db8:1::9", ONE)], false),
        ]);
        kernel.apply(vec![
            plain("10.1.0.0/24", &[hop("198.51.100.9", TWO)], true),
            plain("fd00:1::/64", &[hop("2001:db8:2::9", TWO)], true),
        ]);
        let refused = kernel.try_apply(vec![
            plain("10.2.0.0/24", &[hop("192.0.2.9", ONE)], false),
            plain("fd00:2::/64", &[hop("2001:db8:1::9", ONE)], false),
            delete("10.2.0.0/24"),
            delete("fd00:2::/64"),
            delete("10.3.0.0/24"),
        ]);
        assert_eq!(refused.len(), 5, "{refused:?}");
        assert!(refused[..2].iter().all(Failure::is_taken), "{refused:?}");
        assert!(refused[2..].iter().all(Failure::is_already_gone), "{refused:?}");
        kernel.until_routes(&["10.1.0.0/24", "fd00:1::/64"]);
        kernel.apply(vec![delete("10.1.0.0/24"), delete("fd00:1::/64")]);
        // Deleting again must not reach the foreign route of the same prefix.
        let again = kernel.try_apply(vec![delete("10.1.0.0/24"), delete("fd00:1::/64")]);
        assert!(again.iter().all(Failure::is_already_gone) && again.len() == 2, "{again:?}");
        kernel.until_routes(&[]);
        assert_eq!(shell(&format!("{show} | grep -v 'proto 77'")), before);
    });
}

#[test]
fn a_thousand_foreign_routes_stay_and_their_churn_is_not_heard() {
    in_namespace(|| {
        let lines = |verb: &str, family: u32| {
            let line = |n: u32| match family {
                4 => {
                    format!("route {verb} 172.{}.{}.0/24 via 192.0.2.7 proto static metric 77\n", 16 + n / 250, n % 250)
                }
                _ => format!("route {verb} fd77:{n:x}::/48 via 2001:db8:1::7 proto static metric 77\n"),
            };
            (0..500).map(line).collect::<String>()
        };
        let batch = |verb: &str| {
            for family in [4, 6] {
                let file = tempfile::NamedTempFile::new().expect("a file");
                std::fs::write(file.path(), lines(verb, family)).expect("write the batch");
                shell(&format!("ip -{family} -batch {}", file.path().display()));
            }
        };
        batch("add");
        let show = "ip route show proto static; ip -6 route show proto static";
        let before = shell(show);
        assert_eq!(before.lines().count(), 1000);

        // A receive buffer that a few dozen messages fill: an unfiltered socket would overflow and dump again.
        let mut kernel = Kernel::start(LinuxOptions { event_buffer: 4096, ..LinuxOptions::default() });
        let mut actions = vec![nexthop(1, "192.0.2.9", ONE, false)];
        actions.extend((0..20).map(|n| through(&format!("10.1.{n}.0/24"), 1, false)));
        kernel.apply(actions);
        kernel.until("our routes", |actual| actual.routes.len() == 20);
        let dumps = kernel.actual.dumps;
        batch("del");
        batch("add");
        shell("ip route del 10.1.0.0/24 metric 77 proto 77");
        kernel.until("the removal by hand", |actual| actual.routes.len() == 19);
        assert_eq!(kernel.actual.dumps, dumps, "the churn of foreign routes was heard");
        kernel.apply((1..20).map(|n| delete(&format!("10.1.{n}.0/24"))).collect());
        assert_eq!(shell(show), before);
    });
}

#[test]
fn a_route_of_ours_that_somebody_else_takes_over_is_gone() {
    in_namespace(|| {
        let mut kernel = Kernel::start(LinuxOptions::default());
        kernel.apply(vec![
            plain("10.1.0.0/24", &[hop("192.0.2.9", ONE)], false),
            plain("fd00:1::/64", &[hop("2001:db8:1::9", ONE)], false),
            nexthop(1, "192.0.2.9", ONE, false),
        ]);
        kernel.until("all", |actual| actual.routes.len() == 2 && actual.nexthops.len() == 1);
        shell(
            "ip route replace 10.1.0.0/24 via 192.0.2.7 metric 77 proto static
             ip -6 route replace fd00:1::/64 via 2001:db8:1::7 metric 77 proto static
             ip nexthop replace id 77000001 via 192.0.2.7 dev one proto static",
        );
        let foreign = BTreeMap::from([(id(1), ActualNexthop::Foreign)]);
        kernel.until("nothing of ours", |actual| actual.routes.is_empty() && actual.nexthops == foreign);
    });
}

#[test]
fn a_foreign_nexthop_object_with_an_id_of_our_range_is_known_and_left() {
    in_namespace(|| {
        shell("ip nexthop add id 77000001 via 192.0.2.7 dev one proto static");
        let before = shell("ip nexthop show");
        let mut kernel = Kernel::start(LinuxOptions::default());
        assert_eq!(kernel.actual.nexthops, BTreeMap::from([(id(1), ActualNexthop::Foreign)]), "the dump tells it");
        let refused = kernel.try_apply(vec![nexthop(1, "192.0.2.9", ONE, false)]);
        assert!(refused.len() == 1 && refused[0].is_taken(), "{refused:?}");
        assert_eq!(shell("ip nexthop show"), before);
        shell("ip nexthop add id 77000002 via 192.0.2.7 dev one proto static; ip nexthop del id 77000001");
        let foreign = BTreeMap::from([(id(2), ActualNexthop::Foreign)]);
        kernel.until("the notifications tell the others", |actual| actual.nexthops == foreign);
    });
}
