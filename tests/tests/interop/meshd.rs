//! Ours between the others: what one of them says, another one hears through us, and the kernel of our node has it.

use std::time::Duration;

use nix::sys::signal::Signal;
use tests::routers::Blueprint;
use tests::routers::Network;

use super::configurations::{
    Bird, NODE, PODS, assert_content, assert_marked, configuration, frr_and_bird, installed, ours, wait_installed,
};

/// What the kernel of our node must have, and nothing else of ours.
const WANTED: [&str; 4] =
    ["10.1.0.0/24 via 192.0.2.1", "10.2.0.0/24 via 192.0.2.2", "fd10:1::/64 via fd00::1", "fd10:2::/64 via fd00::2"];

#[test]
fn paths_go_through_us_with_all_their_attributes() {
    let network = frr_and_bird();
    let (bird, frr) = (network.router("bird").unwrap(), network.router("frr").unwrap());
    let path = frr.wait_path("10.1.0.0/24").unwrap();
    assert_marked(&path, "4200000000 4200000001");
    assert_eq!(path.med, None, "MED does not go from one AS through the next (RFC 4271 section 5.1.4)");
    assert_marked(&bird.wait_path("10.2.0.0/24").unwrap(), "4200000000 65002");
    frr.wait_path("fd10:1::/64").unwrap();
    bird.wait_path("fd10:2::/64").unwrap();
    frr.wait_path("10.0.1.0/24").unwrap();
    wait_installed(&network.router("ours").unwrap(), "77", &WANTED);
    assert_content(&network, &["bird", "frr", "ours"]);
    network.down().unwrap();
}

/// kill -9 and a restart: the kernel hears nothing of it, and the peers keep our paths.
#[test]
fn a_killed_speaker_comes_back_without_a_change_of_routes() {
    let network = frr_and_bird();
    let (frr, ours) = (network.router("frr").unwrap(), network.router("ours").unwrap());
    frr.wait_path("10.1.0.0/24").unwrap();
    wait_installed(&network.router("ours").unwrap(), "77", &WANTED);
    let monitor = ours.node().spawn(&["ip", "monitor", "route", "nexthop"]).unwrap();
    ours.kill9().unwrap();
    frr.wait_down("192.0.2.10").unwrap();
    ours.start().unwrap();
    frr.wait_established("192.0.2.10").unwrap();
    frr.wait_path("10.1.0.0/24").unwrap();
    let heard = monitor.stop(Signal::SIGINT, Duration::from_secs(5)).unwrap();
    let changes: Vec<&str> = heard.stdout.lines().filter(|line| line.contains("proto 77")).collect();
    assert_eq!(changes, Vec::<&str>::new());
    assert_eq!(installed(&ours, "77").unwrap(), WANTED);
    network.down().unwrap();
}

/// Lines of the section `bgp` of ours.
const BLACKHOLES: &str = r#"  import: {accept: ["0.0.0.0/0 le 32", "::/0 le 128"], blackhole: BLACKHOLE, metric: 90}
  peers: [{address: 192.0.2.1, remote_as: 65001, families: {ipv4: {}, ipv6: {}}}]"#;

const BLACKHOLING_BIRD: &str = "
router id 192.0.2.1;
protocol static { ipv4; route 10.1.0.0/24 blackhole; route 10.1.0.7/32 blackhole { bgp_community.add((65535,666)); }; }
protocol static { ipv6; route fd10:1::7/128 blackhole { bgp_community.add((65535,666)); }; }
protocol bgp { local 192.0.2.1 as 65001; neighbor 192.0.2.10 as 65010; connect delay time 1; connect retry time 1;
  ipv4 { import all; export all; }; ipv6 { import all; export all; }; }
";

/// RFC 7999, where it is switched on; and the metric is the one for BGP.
#[test]
fn a_blackhole_community_drops_packets_where_that_is_wanted() {
    tests::need_root();
    for wanted in [true, false] {
        let bgp = BLACKHOLES.replace("BLACKHOLE", &wanted.to_string());
        let network = Network::up(&[
            Blueprint::bird("bird", BLACKHOLING_BIRD).address("192.0.2.1/24").address("fd00::1/64"),
            Blueprint::meshd("ours", &configuration(&format!("{NODE}{PODS}"), 65_010, &bgp))
                .address("192.0.2.10/24")
                .address("fd00::10/64"),
        ])
        .unwrap();
        let ours = network.router("ours").unwrap();
        let routes = || -> anyhow::Result<Vec<String>> {
            let mut routes = Vec::new();
            for family in ["-4", "-6"] {
                let output = ours.node().exec(&["ip", family, "-j", "route", "show", "proto", "77"])?;
                for route in output.json()?.as_array().into_iter().flatten() {
                    let text = |key: &str| route[key].as_str().unwrap_or("unicast").to_owned();
                    routes.push(format!("{} {} {}", text("type"), text("dst"), route["metric"]));
                }
            }
            Ok(routes)
        };
        let kind = if wanted { "blackhole" } else { "unicast" };
        let expected =
            ["unicast 10.1.0.0/24 90".to_owned(), format!("{kind} 10.1.0.7 90"), format!("{kind} fd10:1::7 90")];
        let has = |wanted: &[String]| {
            let routes = routes()?;
            anyhow::ensure!(routes == wanted, "the kernel has {routes:?}");
            Ok(())
        };
        ours.wait("the routes", || has(&expected)).unwrap();
        // As the kernel tells it, and not as we remember it.
        ours.kill9().unwrap();
        ours.start().unwrap();
        ours.wait_established("192.0.2.1").unwrap();
        ours.wait("the routes", || has(&expected)).unwrap();
        // Before everybody has told everything again, what is there stays whatever happens.
        let is_wanted_again = || {
            let routes = ours.run(&["meshd", "get", "routes", "-o", "json"])?;
            anyhow::ensure!(routes.matches("\"done\"").count() == 3, "{routes}");
            Ok(())
        };
        ours.wait("the routes are wanted again", is_wanted_again).unwrap();
        network.router("bird").unwrap().run(&["birdc", "disable", "bgp1"]).unwrap();
        ours.wait("no routes", || has(&[])).unwrap();
        network.down().unwrap();
    }
}

/// A file that is read slowly, here for ever: neither answers nor sessions nor the end of the daemon wait for its reader,
/// whether it is read because it is another one or because the configuration is read again.
#[test]
fn a_file_of_vrps_that_blocks_holds_up_nobody_else() {
    tests::need_root();
    const VRPS: &str = "/run/vrps.json";
    let bird = Bird::USUAL.blueprint("bird");
    let ours = ours(&["group: open, address: 192.0.2.1, remote_as: 4200000001"], "rpki: {vrps: /run/vrps.json}")
        .file("/etc/meshd/vrps.json", r#"{"roas": []}"#)
        .run(&format!("cp /etc/meshd/vrps.json {VRPS}"));
    let network = Network::up(&[bird, ours]).unwrap();
    let ours = network.router("ours").unwrap();
    ours.wait_established("192.0.2.1").unwrap();
    let pid = ours.pids()[0];
    let wait_readers = |wanted: usize| {
        let ask = || {
            let mut readers = 0;
            for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
                readers += usize::from(std::fs::read_link(entry?.path()).is_ok_and(|file| file.ends_with("vrps.json")));
            }
            anyhow::ensure!(readers == wanted, "{readers} of {wanted}");
            Ok(())
        };
        ours.wait("the readers of the file", ask).unwrap();
    };
    // Somebody holds it open to write, and writes nothing.
    ours.run(&["mkfifo", "/run/fifo"]).unwrap();
    let hold = format!("exec 3<>/run/fifo; mv /run/fifo {VRPS}; exec sleep 600");
    let holder = ours.node().spawn(&["sh", "-c", &hold]).unwrap();
    wait_readers(1);
    ours.node().daemon("meshd").unwrap().reload().unwrap();
    wait_readers(2);
    assert_eq!(ours.json("bgp summary").unwrap()["established"], 1);
    wait_installed(&ours, "77", &["10.1.0.0/24 via 192.0.2.1", "fd10:1::/64 via fd00::1"]);
    ours.stop().unwrap();
    holder.stop(Signal::SIGKILL, Duration::from_secs(5)).unwrap();
    network.down().unwrap();
}
