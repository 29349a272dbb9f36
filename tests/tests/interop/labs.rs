//! The foreign halves of the topologies: their routers start and understand their configurations.

use anyhow::ensure;
use lab::{Lab, Options};
use tests::routers::{DEADLINE, until};

/// A topology whose foreign daemons run; ours do not.
fn up(topology: &str) -> Lab {
    tests::need_root();
    let name = Some(format!("{topology}-foreign-{}", std::process::id()));
    let lab = Lab::up(topology, &Options { name, daemons: false, ..Options::default() }).unwrap();
    for node in lab.nodes() {
        let foreign: Vec<_> = node.daemons().into_iter().filter(|daemon| daemon.name() != "meshd").collect();
        for daemon in &foreign {
            daemon.start().unwrap();
        }
        if !foreign.is_empty() {
            node.wait_healthy(DEADLINE).unwrap();
        }
    }
    lab
}

/// What the configuration of an FRR became must contain these lines; a line that it does not understand would be missing.
fn assert_understood(lab: &Lab, topology: &str, node: &str) {
    let written =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../lab/topologies/{topology}/{node}/frr.conf"));
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
        let running = frr.exec(&["vtysh", "-c", "show running-config"])?.ok()?;
        for line in written.lines().filter(wanted) {
            ensure!(running.contains(line.trim()), "{node} does not have {line:?}:\n{running}");
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn every_topology_has_foreign_routers_that_understand_their_configuration() {
    let routers: [(&str, &[&str]); 6] = [
        ("bgp-tor", &["tor-1", "tor-2"]),
        ("bgp-unnumbered", &["leaf-1", "leaf-2"]),
        ("bgp-rr", &["frr"]),
        ("bgp-import", &[]),
        ("bgp-gr", &["frr"]),
        ("bgp-drain", &["router"]),
    ];
    for (topology, frrs) in routers {
        let lab = up(topology);
        for frr in frrs {
            assert_understood(&lab, topology, frr);
        }
        lab.down().unwrap();
    }
}
