//! Whose address is seen at the other end, with real packets.
//!
//! The lab is west and east with both families on all nodes, and a node that is no part of the mesh but has routes to all
//! pods: whatever source a packet has, it is answered, and the answer says which it was.

mod lasting;
mod witness;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use lab::{Node, Running};
use socket2::{Domain, Protocol, Socket, Type};

use super::meshes::{Admin, Mesh, WEST_EAST, eventually};
use witness::{Kind, Witness, ask};

/// How long a capture may take to end.
const CAPTURED: Duration = Duration::from_secs(5);
/// The node under test and its addresses.
const NODE: &str = "west-worker";
const NODE_ADDRESSES: [&str; 2] = ["172.18.0.5", "fd18::5"];
/// Its pod that asks, and the pod's addresses.
const POD: &str = "west-worker-client";
const POD_ADDRESSES: [&str; 2] = ["10.0.1.20", "fd10:1::20"];
/// A pod of the other cluster.
const FAR_POD: [&str; 2] = ["10.1.1.10", "fd10:101::10"];
/// Its node.
const FAR_NODE: [&str; 2] = ["172.18.0.2", "fd18::2"];
/// The other pod of the node.
const NEAR_POD: [&str; 2] = ["10.0.1.10", "fd10:1::10"];
/// Outside of the mesh.
const OUTSIDE: [&str; 2] = ["203.0.113.9", "2001:db8:9::9"];

/// A service with a backend there, which is a neighbor of the nodes.
const SERVICE: &str = "10.2.0.54";

/// Brings the lab up with this section on [`NODE`].
fn up(masquerade: &str) -> (Mesh, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let topologies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lab/topologies");
    let mut topology = fs::read_to_string(topologies.join("west-east.clab.yml")).expect("the topology");
    for (node, number, cluster, index) in [
        ("west-control-plane", 4, 0, 0),
        ("west-worker", 5, 0, 1),
        ("east-control-plane", 3, 1, 0),
        ("east-worker", 2, 1, 1),
    ] {
        let config = Path::new("west-east").join(node).join("meshd.yaml");
        let text = fs::read_to_string(topologies.join(&config)).expect("a configuration");
        let pods = format!("10.{cluster}.{index}");
        let pods6 = format!("fd10:{cluster}0{index}:").replace("fd10:00", "fd10:");
        let more = if node == NODE { masquerade } else { "" };
        let service = "      global: true
    - namespace: default
      name: outside
      cluster_ips: [10.2.0.54]
      ports: [{port: 7000}]
      backends: [{address: 172.18.9.9}]
";
        let text = if node == NODE { text.replace("      global: true\n", service) } else { text };
        let text = text
            .replace(
                &format!("addresses: [172.18.0.{number}]"),
                &format!("addresses: [172.18.0.{number}, \"fd18::{number}\"]"),
            )
            .replace(&format!("pod_cidrs: [{pods}.0/24]"), &format!("pod_cidrs: [{pods}.0/24, \"{pods6}:/64\"]"))
            .replace("pod_cidrs: [10.1.0.0/16]", "pod_cidrs: [10.1.0.0/16, \"fd10:100::/24\"]")
            .replace("pod_cidrs: [10.0.0.0/16]", "pod_cidrs: [10.0.0.0/16, \"fd10::/24\"]")
            .replace("node_cidrs: [172.18.0.0/16]", "node_cidrs: [172.18.0.0/16, \"fd18::/64\"]");
        fs::create_dir_all(folder.path().join(&config).parent().expect("a folder")).expect("made");
        fs::write(folder.path().join(&config), format!("{text}\n{more}\n")).expect("written");
        let line = |text: String| format!("        - {text}\n");
        let address = line(format!("ip address add 172.18.0.{number}/16 dev eth0"));
        let mut both = address.clone();
        both += &line(format!("ip address add fd18::{number}/64 dev eth0 nodad"));
        // A neighbor is found only where the address is on the very link.
        both += &line(format!("ip address add {pods6}:1/128 dev pod-webpod nodad"));
        both += &line(format!("ip address add {pods6}:1/128 dev pod-client nodad"));
        both += &line(format!("ip route add {pods6}:10 dev pod-webpod"));
        both += &line(format!("ip route add {pods6}:20 dev pod-client"));
        both += &line("ip route add default via 172.18.9.9".to_owned());
        both += &line("ip route add default via fd18::99".to_owned());
        both += &line("ip route add 169.254.9.9 via 172.18.9.9".to_owned());
        topology = topology.replace(&address, &both);
        for pod in ["10", "20"] {
            let address = line(format!("ip address add {pods}.{pod}/32 dev eth0"));
            let mut both = address.clone();
            both += &line(format!("ip address add {pods6}:{pod}/128 dev eth0 nodad"));
            both += &line(format!("ip route add {pods6}:1 dev eth0"));
            both += &line(format!("ip route add default via {pods6}:1"));
            topology = topology.replace(&address, &both);
        }
    }
    let outside = "    outside:
      labels: {meshd.lab/role: pod}
      exec:
        - ip address add 172.18.9.9/16 dev eth0
        - ip address add fd18::99/64 dev eth0 nodad
        - ip address add 203.0.113.9/32 dev lo
        - ip address add 2001:db8:9::9/128 dev lo
        - ip address add 169.254.9.9/32 dev lo
        - ip address add 10.1.9.9/32 dev lo
        - ip route add 10.0.1.0/24 via 172.18.0.5
        - ip route add fd10:1::/64 via fd18::5
  links:
    - endpoints: [\"outside:eth0\", \"fabric:outside\"]
";
    let topology = topology.replace("  links:\n", outside);
    let path = folder.path().join("west-east.clab.yml");
    fs::write(&path, topology).expect("written");
    let mesh = Mesh::up(path.to_str().expect("a path"), WEST_EAST);
    (mesh, folder)
}

/// Waits until the node's rules are in place and all its exclusions, and that it is well.
fn wait_installed(mesh: &Mesh) {
    let is_installed = || {
        let status = mesh.ask(NODE, &["status"]);
        let masquerade = &status["masquerade"];
        masquerade["installed"] == true && masquerade["exclusions"] == masquerade["exclusions_installed"]
    };
    assert!(eventually(is_installed), "{:#}; its log:\n{}", mesh.ask(NODE, &["status"]), mesh.log(NODE));
}

fn shell(mesh: &Mesh, node: &str, line: &str) -> String {
    let output = mesh.node(node).exec(&["sh", "-c", line]).expect("sh runs");
    output.ok().unwrap_or_else(|error| panic!("{line}: {error}"))
}

/// The source that each kind of packet from the pod has at an address of the witness.
fn sources(mesh: &Mesh, witness: &Witness, target: &str) -> Vec<String> {
    Kind::ALL.iter().map(|kind| ask(&mesh.node(POD), witness, target, *kind)).collect()
}

fn assert_sources(mesh: &Mesh, witness: &Witness, target: &str, expected: &str, case: &str) {
    assert_eq!(sources(mesh, witness, target), vec![expected; Kind::ALL.len()], "{case}: to {target}");
}

#[test]
fn sources_stay_inside_the_mesh_and_become_the_nodes_outside_whatever_others_do() {
    let (mesh, _folder) = assert_sources_whatever_others_do("masquerade: {enabled: true, by: nftables}", "nftables");
    mesh.finish();
}

#[test]
fn programs_of_the_datapath_do_the_same() {
    let (mesh, _folder) = assert_sources_whatever_others_do("masquerade: {enabled: true}", "programs");
    // What asks a pod from outside by its own address is answered from that address.
    let own = Witness::start(&mesh.node(POD), &POD_ADDRESSES);
    for kind in Kind::ALL {
        assert_eq!(ask(&mesh.node("outside"), &own, POD_ADDRESSES[0], kind), "172.18.9.9", "{kind:?}");
    }
    // The packet filter is left with what stays inside of the mesh, and with protocols that the programs do not know.
    let rules = shell(&mesh, NODE, "nft list table inet meshd");
    let mut leaving = rules.lines().filter(|rule| rule.contains("masquerade comment"));
    assert!(leaving.all(|rule| rule.contains("l4proto != { icmp, tcp, udp, ipv6-icmp, sctp }")), "{rules}");
    for (pod, target, expected) in [(0, OUTSIDE[0], NODE_ADDRESSES[0]), (1, OUTSIDE[1], NODE_ADDRESSES[1])] {
        let capture = capture_of_gre(&mesh.node("outside"));
        let sent = mesh.node(POD).within(|| send_gre(target.parse().expect("an address"))).expect("inside");
        sent.expect("sent");
        let said = capture.finish(CAPTURED).expect("tcpdump ends").stdout;
        assert!(said.contains(&format!("{expected} > {target}")), "from {}: {said}", POD_ADDRESSES[pod]);
    }
    mesh.finish();
}

/// The next packet of generic routing encapsulation that arrives.
fn capture_of_gre(at: &Node) -> Running {
    let what = "ip proto 47 or ip6 proto 47";
    let capture = at.spawn(&["tcpdump", "-n", "-l", "-i", "any", "-c", "1", what]).expect("tcpdump starts");
    assert!(eventually(|| capture.so_far().is_ok_and(|said| said.contains("listening on"))), "tcpdump does not listen");
    capture
}

fn send_gre(target: IpAddr) -> std::io::Result<usize> {
    /// A header without options, and four octets of what it says to be IPv4: the kernel gives no other source to what is shorter.
    const PACKET: [u8; 8] = [0, 0, 8, 0, 0, 0, 0, 0];
    let domain = if target.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(47)))?;
    socket.send_to(&PACKET, &SocketAddr::new(target, 0).into())
}

/// Brings the lab up with a configuration in which `by` gives the node's address to what leaves, and looks at every kind of packet.
fn assert_sources_whatever_others_do(config: &str, by: &str) -> (Mesh, tempfile::TempDir) {
    let (mesh, folder) = up(config);
    wait_installed(&mesh);
    let is_done_by = || mesh.ask(NODE, &["status"])["masquerade"]["by"] == by;
    assert!(eventually(is_done_by), "{:#}; its log:\n{}", mesh.ask(NODE, &["status"]), mesh.log(NODE));
    mesh.wait_healthy(&[NODE]);
    let far = Witness::start(&mesh.node("east-worker-webpod"), &FAR_POD);
    let near = Witness::start(&mesh.node("west-worker-webpod"), &NEAR_POD);
    let outside = Witness::start(&mesh.node("outside"), &OUTSIDE);
    // A node of the mesh that is not the pod's own.
    let node = Witness::start(&mesh.node("east-worker"), &FAR_NODE);
    let iptables = |program: &str| {
        format!(
            "for i in {program} {}; do $i -t nat -A POSTROUTING -s $([ $i = {program} ] && echo 10.0.0.0/8 || echo fd10::/16) ! -o cni0 -j MASQUERADE; done",
            program.replace("iptables", "ip6tables")
        )
    };
    let nft = "nft -f - <<'END'
table inet foreign {
  chain c {
    type nat hook postrouting priority srcnat;
    ip saddr 10.0.0.0/8 oifname != \"cni0\" masquerade
    ip6 saddr fd10::/16 oifname != \"cni0\" masquerade
  }
}
END";
    let foreign = [
        ("nobody else", "true".to_owned(), "true"),
        ("iptables-nft", iptables("iptables-nft"), "iptables-nft -t nat -F; ip6tables-nft -t nat -F"),
        ("iptables-legacy", iptables("iptables-legacy"), "iptables-legacy -t nat -F; ip6tables-legacy -t nat -F"),
        ("nft", nft.to_owned(), "nft delete table inet foreign"),
    ];
    // What a foreign rule has counted is none of ours.
    let others =
        "nft list ruleset | awk '/^table/ {ours = ($0 ~ /inet meshd/)} !ours' | sed 's/packets [0-9]* bytes [0-9]*//'";
    for (case, add, remove) in foreign {
        shell(&mesh, NODE, &add);
        let before = shell(&mesh, NODE, others);
        for family in 0..2 {
            let pod = POD_ADDRESSES[family];
            assert_sources(&mesh, &far, FAR_POD[family], pod, case);
            assert_sources(&mesh, &near, NEAR_POD[family], pod, case);
            assert_sources(&mesh, &node, FAR_NODE[family], pod, case);
            assert_sources(&mesh, &outside, OUTSIDE[family], NODE_ADDRESSES[family], case);
        }
        // A backend outside of the mesh, also when its neighbor is known by then.
        for _ in 0..3 {
            assert_eq!(ask(&mesh.node(POD), &outside, SERVICE, Kind::Tcp), NODE_ADDRESSES[0], "{case}: to a service");
        }
        assert_eq!(shell(&mesh, NODE, others), before, "{case}: other tables are as they were");
        shell(&mesh, NODE, remove);
    }
    let status = mesh.ask(NODE, &["status"]);
    assert_eq!(status["masquerade"]["uplinks"], serde_json::json!(["eth0"]));
    assert_eq!(mesh.ask(NODE, &["plan"]), serde_json::json!({"actions": []}));
    // What arrives from another cluster keeps its source in front of our pods, too.
    shell(&mesh, NODE, &iptables("iptables-nft"));
    let answer = ask(&mesh.node("east-worker-webpod"), &near, NEAR_POD[0], Kind::Tcp);
    assert_eq!(answer, FAR_POD[0]);
    shell(&mesh, NODE, "iptables-nft -t nat -F; ip6tables-nft -t nat -F");
    (mesh, folder)
}

#[test]
fn exclusions_follow_announcements_the_agents_file_and_link_local() {
    let files = tempfile::tempdir().expect("a folder");
    let file = files.path().join("ip-masq-agent");
    let agent = |text: &str| {
        // Written beside and renamed, as a volume is.
        let new = files.path().join("new");
        fs::write(&new, text).expect("written");
        fs::rename(&new, &file).expect("renamed");
    };
    agent("nonMasqueradeCIDRs: [198.51.100.0/24]\n");
    let (mesh, _folder) = up(&format!("masquerade: {{enabled: true, agent_file: {}}}", file.display()));
    wait_installed(&mesh);
    let outside = Witness::start(&mesh.node("outside"), &OUTSIDE);
    let source = |target: &str| ask(&mesh.node(POD), &outside, target, Kind::Tcp);
    let becomes = |what: &str, target: &str, expected: &str| {
        let reached = eventually(|| source(target) == expected);
        assert!(reached, "{what}: {target} sees {}; {:#}", source(target), mesh.ask(NODE, &["get", "exclusions"]));
    };
    let (pod, node) = (POD_ADDRESSES[0], NODE_ADDRESSES[0]);

    // A PodCIDR of the peer cluster, and its node.
    assert_eq!(source("10.1.9.9"), node, "nobody has announced it");
    let store = Admin::embedded(mesh.node("east-control-plane"));
    let good: serde_json::Value =
        serde_json::from_str(&store.get("cilium/state/nodes/v1/east/east-worker")).expect("a record");
    let mut record = good;
    record["Name"] = "new".into();
    record["IPAddresses"] = serde_json::json!([{"Type": "InternalIP", "IP": "172.18.9.9"}]);
    record["IPv4AllocCIDR"] = serde_json::json!({"IP": "10.1.9.0", "Mask": "////AA=="});
    record["IPv6AllocCIDR"] = serde_json::Value::Null;
    for secondary in ["IPv4SecondaryAllocCIDRs", "IPv6SecondaryAllocCIDRs"] {
        record[secondary] = serde_json::Value::Null;
    }
    store.put("cilium/state/nodes/v1/east/new", &record.to_string());
    becomes("announced", "10.1.9.9", pod);
    assert_eq!(source("172.18.9.9"), pod, "a node of the mesh");
    store.delete("cilium/state/nodes/v1/east/new");
    becomes("withdrawn", "10.1.9.9", node);

    // The agent's file.
    assert_eq!(source(OUTSIDE[0]), node);
    agent("nonMasqueradeCIDRs: [203.0.113.0/24]\nmasqLinkLocal: false\n");
    becomes("in the file", OUTSIDE[0], pod);
    assert_eq!(source("169.254.9.9"), pod, "link-local");
    agent("nonMasqueradeCIDRs: [\n");
    let has_problem = || mesh.ask(NODE, &["status"])["problems"].to_string().contains("the last good version stays");
    assert!(eventually(has_problem), "{:#}", mesh.ask(NODE, &["status"]));
    assert_eq!(source(OUTSIDE[0]), pod, "a broken file changes nothing");
    agent("{\"nonMasqueradeCIDRs\": [], \"masqLinkLocal\": true}");
    becomes("no longer in the file", OUTSIDE[0], node);
    becomes("masqueraded link-local", "169.254.9.9", node);
    fs::remove_file(&file).expect("removed");
    becomes("the defaults", OUTSIDE[0], pod);
    becomes("the defaults", "169.254.9.9", pod);
    mesh.finish();
}

#[test]
fn native_prefixes_and_those_of_the_configuration_keep_sources() {
    const SECTIONS: &str = "masquerade: {enabled: true, exclude: [\"2001:db8:9::/64\"]}";
    let (mesh, folder) = up(&format!("routing: {{native_cidrs: [203.0.113.0/24]}}\n{SECTIONS}"));
    wait_installed(&mesh);
    let outside = Witness::start(&mesh.node("outside"), &OUTSIDE);
    let edit = |from: &str, to: &str| {
        let path = folder.path().join("west-east").join(NODE).join("meshd.yaml");
        let text = fs::read_to_string(&path).expect("a configuration");
        assert!(text.contains(from), "{text}");
        fs::write(&path, text.replace(from, to)).expect("written");
    };
    let is_by = |by: &str| {
        let is = || mesh.ask(NODE, &["status"])["masquerade"]["by"] == by;
        assert!(eventually(is), "{:#}; its log:\n{}", mesh.ask(NODE, &["status"]), mesh.log(NODE));
    };
    is_by("programs");
    let keep = |case: &str| {
        for family in 0..2 {
            assert_sources(&mesh, &outside, OUTSIDE[family], POD_ADDRESSES[family], case);
        }
        // Nobody has announced it.
        assert_eq!(ask(&mesh.node(POD), &outside, "10.1.9.9", Kind::Tcp), NODE_ADDRESSES[0], "{case}");
    };
    keep("by programs");
    edit("enabled: true, exclude:", "enabled: true, by: nftables, exclude:");
    mesh.daemon(NODE).restart().expect("restarted");
    wait_installed(&mesh);
    is_by("nftables");
    keep("by nftables");
    // What is no longer excluded gets the node's address when the next connection begins.
    edit("[\"2001:db8:9::/64\"]", "[]");
    mesh.daemon(NODE).reload().expect("reloaded");
    let source = |family: usize| ask(&mesh.node(POD), &outside, OUTSIDE[family], Kind::Tcp);
    assert!(eventually(|| source(1) == NODE_ADDRESSES[1]), "{}: {:#}", source(1), mesh.ask(NODE, &["status"]));
    assert_eq!(source(0), POD_ADDRESSES[0]);
    mesh.finish();
}

#[test]
fn what_others_translated_is_left_alone() {
    let (mesh, _folder) = up("masquerade: {enabled: true}");
    wait_installed(&mesh);
    let far = Witness::start(&mesh.node("east-worker-webpod"), &FAR_POD);
    let own = Witness::start(&mesh.node(POD), &POD_ADDRESSES);
    let outside = Witness::start(&mesh.node("outside"), &OUTSIDE);
    // Two services of somebody else's: one leads to another node, the other back to the pod that asks.
    shell(&mesh, "outside", "ip route add 198.51.100.77 via 172.18.0.5");
    for line in [
        "-A PREROUTING -d 198.51.100.77 -j DNAT --to-destination 10.1.1.10",
        "-A PREROUTING -d 198.51.100.78 -j DNAT --to-destination 10.0.1.20",
        "-A POSTROUTING -m conntrack --ctstate DNAT -j MASQUERADE",
    ] {
        shell(&mesh, NODE, &format!("iptables-nft -t nat {line}"));
    }
    let through = ask(&mesh.node("outside"), &far, "198.51.100.77", Kind::Tcp);
    assert_eq!(through, NODE_ADDRESSES[0], "the answer has to come back this way");
    assert_eq!(ask(&mesh.node(POD), &far, "198.51.100.77", Kind::Tcp), POD_ADDRESSES[0], "inside the mesh");
    let hairpin = ask(&mesh.node(POD), &own, "198.51.100.78", Kind::Tcp);
    assert!(hairpin.parse::<std::net::IpAddr>().is_ok() && hairpin != POD_ADDRESSES[0], "{hairpin}");

    // The marks: what carries one is not touched, and what keeps its source carries the other.
    shell(
        &mesh,
        NODE,
        "nft -f - <<'END'
table ip marks {
  chain translated {
    type filter hook prerouting priority mangle;
    ip daddr 203.0.113.9 meta mark set 0x40
  }
  chain kept {
    type filter hook postrouting priority 300;
    ip daddr 10.1.1.10 ct state new meta mark & 0x20 == 0x20 counter
  }
}
END",
    );
    assert_eq!(ask(&mesh.node(POD), &outside, OUTSIDE[0], Kind::Tcp), POD_ADDRESSES[0]);
    assert_eq!(ask(&mesh.node(POD), &far, FAR_POD[0], Kind::Tcp), POD_ADDRESSES[0]);
    let marked = shell(&mesh, NODE, "nft list chain ip marks kept");
    assert!(marked.contains("packets 1 "), "{marked}");
    mesh.finish();
}
