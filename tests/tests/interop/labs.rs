//! The topologies `bgp-…` of `lab/topologies`, as they are: everything in them comes up, every foreign router understands all of its
//! configuration, and each shows what `lab/README.md` says of it.

use std::path::Path;

use anyhow::{Context as _, ensure};
use lab::{Lab, Node, Options, Running};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::routers::{DEADLINE, Kind, Router, until};

/// A topology that is up, with every session that is configured: a node of ours is healthy only then.
fn up(topology: &str) -> Lab {
    tests::need_root();
    let name = Some(format!("{topology}-{}", std::process::id()));
    Lab::up(topology, &Options { name, ready_within: Some(DEADLINE), ..Options::default() }).unwrap()
}

/// A router of a topology, by its name there.
fn router(lab: &Lab, kind: Kind, name: &str) -> Router {
    Router::of(kind, lab.node(name).unwrap())
}

fn run(node: &Node, command: &[&str]) -> anyhow::Result<String> {
    Ok(node.exec(command)?.ok()?)
}

fn json(node: &Node, command: &[&str]) -> anyhow::Result<Value> {
    let text = run(node, command)?;
    serde_json::from_str(&text).with_context(|| format!("{command:?} says {text}"))
}

/// What the configuration of an FRR became must contain these lines; a line that it does not understand would be missing.
fn assert_understood(lab: &Lab, topology: &str, node: &str) {
    let written = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../lab/topologies/{topology}/{node}/frr.conf"));
    let written = std::fs::read_to_string(written).unwrap();
    let frr = lab.node(node).unwrap();
    let wanted = |line: &&str| {
        let line = line.trim();
        let matters = ["neighbor ", "network ", "bgp ", "match ", "set ", "ip prefix-list", "ip route", "maximum"];
        // Defaults and the order of words are the program's own matter.
        matters.iter().any(|word| line.starts_with(word))
            && !line.contains("community-list")
            && !line.contains("peer-group")
    };
    until(&format!("the configuration of {node}"), DEADLINE, || {
        let running = run(&frr, &["vtysh", "-c", "show running-config"])?;
        for line in written.lines().filter(wanted) {
            ensure!(running.contains(line.trim()), "{node} does not have {line:?}:\n{running}");
        }
        Ok(())
    })
    .unwrap();
}

/// Waits until the kernel of a node has this route, by all the words of it.
fn wait_route(lab: &Lab, node: &str, prefix: &str, words: &[&str]) {
    let (node, family) = (lab.node(node).unwrap(), if prefix.contains(':') { "-6" } else { "-4" });
    until(&format!("the route to {prefix} in {}", node.name()), DEADLINE, || {
        let route = run(&node, &["ip", family, "route", "show", prefix])?;
        ensure!(words.iter().all(|word| route.contains(word)), "{words:?} not in {route:?}");
        Ok(())
    })
    .unwrap();
}

/// Waits for an answer to a ping.
fn wait_answer(lab: &Lab, from: &str, to: &str) {
    let node = lab.node(from).unwrap();
    until(&format!("an answer from {to} to {from}"), DEADLINE, || run(&node, &["ping", "-n", "-c1", "-W1", to]))
        .unwrap();
}

/// Asks a hundred times a second, until [`assert_no_loss`].
fn ask_all_the_time(lab: &Lab, from: &str, to: &str) -> Running {
    wait_answer(lab, from, to);
    let ping = lab.node(from).unwrap().spawn(&["ping", "-n", "-i", "0.01", to]).unwrap();
    until("the first answers", DEADLINE, || {
        ensure!(ping.so_far()?.contains("icmp_seq=10 "), "{}", ping.so_far()?);
        Ok(())
    })
    .unwrap();
    ping
}

fn assert_no_loss(ping: Running) {
    let said = ping.stop(Signal::SIGINT, DEADLINE).unwrap().stdout;
    let summary: Vec<&str> = said.lines().filter(|line| line.contains("packet loss")).collect();
    assert!(said.contains(" 0% packet loss"), "{summary:?}\n{:?}", missing(&said));
    println!("{summary:?}");
}

/// Numbers that are not there, for whoever has to find out.
fn missing(said: &str) -> Vec<u32> {
    let seen = said.lines().filter_map(|line| line.split_once("icmp_seq=")?.1.split(' ').next()?.parse().ok());
    let seen: std::collections::BTreeSet<u32> = seen.collect();
    let last = seen.last().copied().unwrap_or_default();
    (1..last).filter(|number| !seen.contains(number)).collect()
}

/// The neighbors of a node of ours.
fn neighbors(lab: &Lab, node: &str) -> Vec<Value> {
    let found = json(&lab.node(node).unwrap(), &["meshd", "bgp", "neighbors", "-o", "json"]).unwrap();
    found.as_array().unwrap().clone()
}

/// What of ours is not as FRR and BIRD like it.
fn assert_no_complaints(lab: &Lab, routers: &[(Kind, &str)]) {
    for (kind, name) in routers {
        assert_eq!(router(lab, *kind, name).complaints().unwrap(), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn bgp_tor_has_two_ways_to_everywhere_watched_by_bfd() {
    let lab = up("bgp-tor");
    for tor in ["tor-1", "tor-2"] {
        assert_understood(&lab, "bgp-tor", tor);
        let node = lab.node(tor).unwrap();
        until(&format!("BFD with every node in {tor}"), DEADLINE, || {
            let peers = json(&node, &["vtysh", "-c", "show bfd peers json"])?;
            let up = peers.as_array().context("no peers")?.iter().filter(|peer| peer["status"] == "up");
            // Both sides have 50 ms times 3, so a dead cable is noticed in 150 ms.
            let quick = up.filter(|peer| peer["receive-interval"] == 50 && peer["remote-transmit-interval"] == 50);
            ensure!(quick.count() == 4, "{peers}");
            Ok(())
        })
        .unwrap();
    }
    for number in 1..=4_u32 {
        let node = format!("node-{number}");
        for neighbor in neighbors(&lab, &node) {
            assert_eq!(neighbor["bfd"], "up", "{neighbor}");
        }
        let both = [format!("via 10.201.0.{} dev eth0", 2 * number), format!("via 10.202.0.{} dev eth1", 2 * number)];
        let words = ["nhid", &both[0], &both[1]];
        for other in (1..=4).filter(|other| *other != number) {
            wait_route(&lab, &node, &format!("10.0.{other}.0/24"), &words);
        }
        wait_route(&lab, &node, "192.0.2.0/24", &words);
        // One group is enough for all of them.
        let groups = json(&lab.node(&node).unwrap(), &["ip", "-j", "nexthop"]).unwrap();
        let groups = groups.as_array().unwrap().iter().filter(|object| !object["group"].is_null()).count();
        assert_eq!(groups, 1);
    }
    wait_answer(&lab, "node-1-client", "10.0.4.10");
    wait_answer(&lab, "node-3-client", "192.0.2.10");
    wait_answer(&lab, "server", "10.0.2.10");
    assert_no_complaints(&lab, &[(Kind::Frr, "tor-1"), (Kind::Frr, "tor-2")]);
    lab.down().unwrap();
}

#[test]
fn bgp_unnumbered_needs_no_address_on_any_cable() {
    let lab = up("bgp-unnumbered");
    for leaf in ["leaf-1", "leaf-2"] {
        assert_understood(&lab, "bgp-unnumbered", leaf);
    }
    for number in 1..=3_u32 {
        let node = lab.node(&format!("node-{number}")).unwrap();
        for link in ["eth0", "eth1"] {
            let addresses = run(&node, &["ip", "-o", "address", "show", "dev", link]).unwrap();
            assert!(addresses.lines().all(|line| line.contains("inet6 fe80:")), "{addresses}");
        }
        let sessions: Vec<(Value, Value)> = neighbors(&lab, node.name())
            .into_iter()
            .map(|neighbor| (neighbor["interface"].clone(), neighbor["families"][0]["extended_next_hop"].clone()))
            .collect();
        assert_eq!(sessions, [("eth0".into(), true.into()), ("eth1".into(), true.into())]);
        for other in (1..=3).filter(|other| *other != number) {
            let ipv4 = ["nhid", "via inet6 fe80:", "dev eth0", "dev eth1"];
            wait_route(&lab, node.name(), &format!("10.0.{other}.0/24"), &ipv4);
            wait_route(&lab, node.name(), &format!("10.255.1.{other}"), &ipv4);
            let ipv6 = ["nhid", "via fe80:", "dev eth0", "dev eth1"];
            wait_route(&lab, node.name(), &format!("fd00:0:{other}::/64"), &ipv6);
            wait_answer(&lab, &format!("node-{number}-client"), &format!("10.0.{other}.10"));
            wait_answer(&lab, &format!("node-{number}-client"), &format!("fd00:0:{other}::10"));
        }
    }
    assert_no_complaints(&lab, &[(Kind::Frr, "leaf-1"), (Kind::Frr, "leaf-2")]);
    lab.down().unwrap();
}

#[test]
fn bgp_rr_reflects_to_everybody_and_survives_a_reflector() {
    let lab = up("bgp-rr");
    assert_understood(&lab, "bgp-rr", "frr");
    let (frr, bird) = (router(&lab, Kind::Frr, "frr"), router(&lab, Kind::Bird, "bird"));
    for reflector in ["172.20.0.1", "172.20.0.2"] {
        frr.wait_established(reflector).unwrap();
        bird.wait_established(reflector).unwrap();
    }
    // A client hears of another one's prefix from both reflectors, each of which says whose it is and that it was there.
    for reflector in ["172.20.0.1", "172.20.0.2"] {
        frr.wait(&format!("10.0.3.0/24 as {reflector} reflects it"), || {
            let detail = json(frr.node(), &["vtysh", "-c", "show bgp ipv4 unicast 10.0.3.0/24 json"])?;
            let reflected = |path: &Value| {
                path["originatorId"] == "172.20.0.3"
                    && path["clusterList"]["list"] == serde_json::json!([reflector])
                    && path["peer"]["peerId"] == reflector
                    && path["nexthops"][0]["ip"] == "172.20.0.3"
                    && path["aspath"]["string"] == "Local"
            };
            let paths = detail["paths"].as_array().context("no paths")?;
            ensure!(paths.iter().any(reflected), "{detail}");
            Ok(())
        })
        .unwrap();
    }
    // Two clients have this prefix. With several paths for one (RFC 7911) the others hear of both and use both.
    for node in ["node-3", "node-4", "rr-1", "rr-2"] {
        wait_route(&lab, node, "10.0.99.0/24", &["via 172.20.0.5", "via 172.20.0.6"]);
    }
    let own = run(bird.node(), &["birdc", "show", "route", "all", "10.0.4.0/24"]).unwrap();
    assert!(own.contains("BGP.originator_id: 172.20.0.4") && own.contains("BGP.cluster_list: 172.20.0.1"), "{own}");
    wait_answer(&lab, "node-3-client", "10.0.4.10");
    wait_answer(&lab, "node-3-client", "10.0.2.10");
    let ping = ask_all_the_time(&lab, "node-3-client", "10.0.4.10");
    lab.node("rr-1").unwrap().daemon("meshd").unwrap().stop().unwrap();
    until("the end of the session with the first reflector", DEADLINE, || {
        let gone =
            neighbors(&lab, "node-3").iter().any(|it| it["peer"] == "172.20.0.1" && it["state"] != "established");
        ensure!(gone, "it is established");
        Ok(())
    })
    .unwrap();
    frr.wait_established("172.20.0.2").unwrap();
    assert_no_loss(ping);
    assert_no_complaints(&lab, &[(Kind::Bird, "bird"), (Kind::Frr, "frr")]);
    lab.down().unwrap();
}

#[test]
fn bgp_import_takes_what_it_should_and_refuses_what_it_must() {
    let lab = up("bgp-import");
    let injector = lab.node("injector").unwrap();
    for announced in [
        "203.0.113.0/24 community 65020:200",
        "203.0.113.128/25",
        "203.0.113.64/26 community 65020:666",
        "192.0.2.0/24",
        "10.0.1.128/25 community 65020:200",
    ] {
        let words = ["gobgp", "global", "rib", "add"].into_iter().chain(announced.split(' ')).collect::<Vec<_>>();
        run(&injector, &words).unwrap();
    }
    let (edge, injected) = ("via 172.21.0.2", "via 172.21.0.3");
    // Both have it, and the community makes the injector the better one.
    wait_route(&lab, "node-1", "203.0.113.0/24", &[injected]);
    wait_route(&lab, "node-1", "203.0.113.128/25", &[injected]);
    wait_route(&lab, "node-1", "198.51.100.0/24", &[edge]);
    wait_route(&lab, "node-1", "default", &[edge]);
    let node = lab.node("node-1").unwrap();
    let refused = |prefix: &str, from: &str, rule: &str| {
        until(&format!("{prefix} of {from} to be refused"), DEADLINE, || {
            let paths = json(&node, &["meshd", "bgp", "received", from, "-o", "json"])?;
            let path = paths.as_array().context("no paths")?.iter().find(|path| path["prefix"] == prefix);
            let path = path.with_context(|| format!("{paths}"))?.to_string();
            ensure!(path.contains(rule), "{rule:?} not in {path}");
            Ok(())
        })
        .unwrap();
    };
    for own in ["10.0.1.0/25", "10.0.1.10/32", "172.21.0.1/32"] {
        refused(own, "172.21.0.2", "own prefix");
    }
    refused("10.0.1.128/25", "172.21.0.3", "own prefix");
    refused("203.0.113.64/26", "172.21.0.3", "not wanted");
    refused("192.0.2.0/24", "172.21.0.3", "import policy");
    let ours = run(&node, &["ip", "-4", "-o", "route", "show", "proto", "77"]).unwrap();
    assert_eq!(ours.lines().count(), 4, "{ours}");
    // The way out works, with the pod's own address: BIRD knows the way back from us.
    wait_answer(&lab, "node-1-client", "198.51.100.1");
    // What is taken back falls back to the other one, or goes.
    run(&injector, &["gobgp", "global", "rib", "del", "203.0.113.0/24"]).unwrap();
    wait_route(&lab, "node-1", "203.0.113.0/24", &[edge]);
    assert_no_complaints(&lab, &[(Kind::Bird, "edge"), (Kind::GoBgp, "injector")]);
    lab.down().unwrap();
}

#[test]
fn bgp_gr_loses_nothing_whoever_is_killed() {
    let lab = up("bgp-gr");
    assert_understood(&lab, "bgp-gr", "frr");
    let ways = [("frr-client", "10.0.3.10"), ("bird-client", "10.0.1.10"), ("node-1-client", "10.0.2.10")];
    let node = lab.node("node-1").unwrap();
    let (frr, bird) = (router(&lab, Kind::Frr, "frr"), router(&lab, Kind::Bird, "bird"));
    let sessions = |with: &str, count: u64| {
        until(&format!("session {count} with {with}"), DEADLINE, || {
            let all = json(&node, &["meshd", "bgp", "neighbors", with, "-o", "json"])?;
            let of = &all[0];
            let stale = of["families"][0]["stale"].as_u64();
            ensure!(of["state"] == "established" && of["established_count"] == count && stale == Some(0), "{of}");
            Ok(())
        })
        .unwrap();
    };
    let pings: Vec<Running> = ways.iter().map(|(from, to)| ask_all_the_time(&lab, from, to)).collect();
    // BIRD first. It forgets its sessions; we keep its routes, and it those that its kernel has.
    let daemon = bird.node().daemon("sh").unwrap();
    daemon.kill9().unwrap();
    bird.wait("its end", || {
        ensure!(!neighbors(&lab, "node-1").iter().all(|of| of["state"] == "established"), "all is established");
        Ok(())
    })
    .unwrap();
    daemon.start().unwrap();
    sessions("172.22.2.2", 2);
    // FRR's bgpd; its watchfrr starts it again.
    let pid = run(frr.node(), &["cat", "/run/frr/bgpd.pid"]).unwrap();
    run(frr.node(), &["kill", "-9", pid.trim()]).unwrap();
    sessions("172.22.1.2", 2);
    // Ours.
    let daemon = node.daemon("meshd").unwrap();
    daemon.kill9().unwrap();
    daemon.start().unwrap();
    sessions("172.22.1.2", 1);
    sessions("172.22.2.2", 1);
    frr.wait_path("10.0.3.0/24").unwrap();
    bird.wait_path("10.0.2.0/24").unwrap();
    for ping in pings {
        assert_no_loss(ping);
    }
    lab.down().unwrap();
}

#[test]
fn bgp_drain_moves_the_service_before_the_session_ends() {
    let lab = up("bgp-drain");
    assert_understood(&lab, "bgp-drain", "router");
    let frr = router(&lab, Kind::Frr, "router");
    wait_route(&lab, "router", "10.9.9.9", &["via 172.23.0.1", "via 172.23.0.2"]);
    let ping = ask_all_the_time(&lab, "client", "10.9.9.9");
    let served = |node: &str| -> u64 {
        let links = json(&lab.node(node).unwrap(), &["ip", "-j", "-s", "link", "show", "pod-service"]).unwrap();
        links[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
    };
    // The router chose one of both for this client: that one is drained.
    let (leaves, stays, address) = if served("node-1") > served("node-2") {
        ("node-1", "node-2", "172.23.0.1")
    } else {
        ("node-2", "node-1", "172.23.0.2")
    };
    let (asked, before) = (lab.node(leaves).unwrap(), served(stays));
    let drain = asked.spawn(&["meshd", "drain"]).unwrap();
    // First the words of RFC 8326, while the path is there: nobody is without one.
    frr.wait("a path that is about to leave", || {
        let detail = json(frr.node(), &["vtysh", "-c", "show bgp ipv4 unicast 10.9.9.9/32 json"])?;
        let paths = detail["paths"].as_array().context("no paths")?;
        let from =
            |who: &str| paths.iter().find(|path| path["peer"]["peerId"] == who).with_context(|| detail.to_string());
        let path = from(address)?;
        ensure!(path["community"]["string"] == "graceful-shutdown" && path["locPrf"] == 0, "{detail}");
        Ok(())
    })
    .unwrap();
    until("the traffic at the other node", DEADLINE, || {
        ensure!(served(stays) > before + 10, "{}", served(stays));
        Ok(())
    })
    .unwrap();
    // Then the session ends, for good (RFC 8538): nothing of this node is kept.
    let said = drain.finish(DEADLINE).unwrap().ok().unwrap();
    assert!(said.contains("1 BGP sessions closed"), "{said}");
    frr.wait_down(address).unwrap();
    let neighbor = run(frr.node(), &["vtysh", "-c", &format!("show bgp neighbors {address}")]).unwrap();
    assert!(neighbor.contains("Cease/Administrative Shutdown/Hard Reset"), "{neighbor}");
    wait_answer(&lab, "client", "10.9.9.9");
    assert_no_loss(ping);
    lab.down().unwrap();
}
