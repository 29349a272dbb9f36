use super::*;

fn parse(text: &str) -> Result<Topology, TopologyError> {
    Topology::parse(text, "/labs".into())
}

/// A file with one node `a` whose keys are given, each on a line of its own from line 5 on.
fn node(keys: &str) -> Result<NodeSpec, TopologyError> {
    let indented: String = keys.lines().map(|line| format!("      {line}\n")).collect();
    parse(&format!("name: t\ntopology:\n  nodes:\n    a:\n{indented}")).map(|topology| topology.nodes[0].clone())
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

#[test]
fn a_node_is_read_in_full() {
    let read = node(
        "kind: linux
image: busybox
cmd: meshd run --config '/etc/my config'
exec: [ip link show, \"sh -c 'a b'\"]
binds: [\"x/__clabNodeName__:/y:ro\", \"/z:/z\"]
env: {A: 1, B: two}
startup-delay: 3
labels: {other: label, meshd.lab/daemon.web: httpd -f, meshd.lab/cert.node: cn=node-west client san=10.0.0.1 days=2}
healthcheck: {test: [CMD-SHELL, true && true], timeout: 5, interval: 1}",
    )
    .unwrap();
    assert_eq!(read.role, Role::Node);
    assert_eq!(read.exec, [words("ip link show"), vec!["sh".into(), "-c".into(), "a b".into()]]);
    assert_eq!(read.binds[0], Bind { source: "x/a".into(), target: "/y".into(), read_only: true });
    assert!(!read.binds[1].read_only);
    assert_eq!(read.env, BTreeMap::from([("A".into(), "1".into()), ("B".into(), "two".into())]));
    assert_eq!(read.startup_delay_s, 3);
    assert_eq!(read.daemons[0].name, "meshd");
    assert_eq!(read.daemons[0].command[3], "/etc/my config");
    assert_eq!(read.daemons[1], DaemonSpec { name: "web".into(), command: words("httpd -f") });
    let check = read.healthcheck.unwrap();
    assert_eq!((check.command[2].as_str(), check.timeout_s), ("true && true", 5));
    assert_eq!(
        read.certificates,
        [CertificateSpec {
            name: "node".into(),
            common_name: "node-west".into(),
            sans: vec!["10.0.0.1".into()],
            server: false,
            client: true,
            days: Some(2),
        }]
    );
}

#[test]
fn a_node_inherits_from_defaults_kinds_and_groups() {
    let topology = parse(
        "name: t
topology:
  defaults: {kind: linux, env: {A: default, B: default}, exec: [one], cmd: base, binds: [\"/d:/x\"]}
  kinds:
    linux: {env: {B: kind, C: kind}, exec: [two]}
  groups:
    g: {env: {C: group}}
  nodes:
    a: {group: g, exec: [three], binds: [\"/own:/x\"]}
    b:
",
    )
    .unwrap();
    let (a, b) = (topology.node("a").unwrap(), topology.node("b").unwrap());
    let env = |node: &NodeSpec| node.env.values().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!((env(a), env(b)), ("default kind group".to_owned(), "default kind kind".to_owned()));
    assert_eq!(a.exec.concat(), ["one", "two", "three"]);
    assert_eq!(a.binds.iter().map(|bind| bind.source.as_str()).collect::<Vec<_>>(), ["/own"]);
    assert_eq!(b.daemons[0].command, ["base"]);
}

#[test]
fn keys_without_meaning_here_are_accepted() {
    node(
        "kind: linux
ports: [\"80:80\"]
mgmt-ipv4: 192.0.2.1
network-mode: none
cpu: 2
memory: 1Gb
dns: {servers: [192.0.2.53]}
certificate: {issue: true}
extras: {anything: [1, 2]}",
    )
    .unwrap();
    parse("name: t\nprefix: \"\"\nmgmt: {network: m, mtu: 1400}\ntopology: {nodes: {a: {kind: linux}}}").unwrap();
}

#[test]
fn errors_name_key_and_line() {
    for (keys, expected) in [
        ("kind: linux\nbind: [a:/b]", "line 6: unknown key topology.nodes.a.bind; the nearest known one is binds"),
        ("kind: linux\nbinds: [a]", "line 6: topology.nodes.a.binds has \"a\", which is not source:target"),
        (
            "kind: linux\nbinds: [\"a:b\"]",
            "line 6: topology.nodes.a.binds has \"a:b\", whose target must be an absolute path",
        ),
        ("kind: linux\nexec: ip link", "line 6: topology.nodes.a.exec must be a list, not a string"),
        ("kind: linux\nexec: [\"sh -c 'x\"]", "line 6: topology.nodes.a.exec has a quote that is never closed"),
        (
            "kind: linux\nstartup-delay: soon",
            "line 6: topology.nodes.a.startup-delay must be a whole number that is not negative, not a string",
        ),
        ("kind: crpd", "line 5: topology.nodes.a.kind is \"crpd\", but only linux and bridge run in plain namespaces"),
        ("image: x", "line 4: topology.nodes.a has no kind, neither of its own nor from defaults"),
        (
            "kind: linux\nruntime: rkt",
            "line 6: topology.nodes.a.runtime is \"rkt\", allowed are docker, podman, ignite",
        ),
        (
            "kind: linux\nlabels: {meshd.lab/rolle: pod}",
            "line 6: topology.nodes.a.labels.meshd.lab/rolle is no label of the lab; known are role, daemon.NAME and cert.NAME",
        ),
        (
            "kind: linux\nlabels: {meshd.lab/cert.x: client}",
            "line 6: topology.nodes.a.labels.meshd.lab/cert.x needs cn=",
        ),
        (
            "kind: linux\nhealthcheck: {test: [meshd]}",
            "line 6: topology.nodes.a.healthcheck.test must start with CMD or CMD-SHELL",
        ),
        (
            "kind: linux\nstages: {create: {wait-for: [{node: b, stage: healthy}]}}",
            "line 5: topology.nodes.a.stages.wait-for names \"b\", which is no node of this topology",
        ),
        (
            "kind: linux\nstages: {create: {wait-for: [{node: a, stage: healthy}]}}",
            "line 5: topology.nodes.a.stages.wait-for makes a wait for itself",
        ),
        (
            "kind: linux\nstages: {create: {exec: {on-enter: [x]}}}",
            "line 6: topology.nodes.a.stages.create.exec.on-enter is not run in plain namespaces; use exec, or stages.healthy.exec.on-exit",
        ),
    ] {
        assert_eq!(node(keys).unwrap_err().to_string(), expected);
    }
}

#[test]
fn links_are_read_in_both_forms() {
    let topology = parse(
        "name: t
topology:
  defaults: {kind: linux}
  nodes: {sw: {kind: bridge}, a: , b: }
  links:
    - endpoints: [\"a:eth0\", \"sw:p1\"]
      mtu: 9000
    - type: veth
      endpoints:
        - {node: a, interface: eth1, mac: 02:00:00:00:00:01}
        - {node: b, interface: eth0}
",
    )
    .unwrap();
    assert_eq!(topology.bridges, ["sw"]);
    assert_eq!(topology.links[0].mtu, Some(9000));
    assert_eq!(topology.links[1].endpoints[0].mac.as_deref(), Some("02:00:00:00:00:01"));
    assert_eq!(topology.links[1].endpoints[1], Endpoint { node: "b".into(), link: "eth0".into(), mac: None });
}

#[test]
fn wrong_links_are_refused() {
    for (link, expected) in [
        ("{endpoints: [\"a:eth0\"]}", "has a link with 1 endpoints, not 2"),
        ("{endpoints: [\"a:eth0\", \"c:eth0\"]}", "names \"c\", which is no node of this topology"),
        ("{endpoints: [\"a:eth0\", \"b\"]}", "must be node:link"),
        ("{endpoints: [\"a:a-very-long-link-name\", \"b:x\"]}", "which the kernel does not take as a link name"),
        ("{endpoints: [\"a:e0\", \"b:e0\"]}, {endpoints: [\"a:e0\", \"b:e1\"]}", "has two links called e0 in a"),
        ("{endpoints: [\"a:e0\", \"sw:sw\"]}", "has two links called sw in the bridges' namespace"),
        ("{type: macvlan, endpoint: {node: a, interface: e0}}", "which leads out of the lab"),
        ("{type: wifi}", "which is no link type"),
    ] {
        let text = format!(
            "name: t\ntopology:\n  defaults: {{kind: linux}}\n  nodes: {{sw: {{kind: bridge}}, a: , b: }}\n  links: [{link}]\n"
        );
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.starts_with("line 5: ") && error.contains(expected), "{error}");
    }
}

#[test]
fn what_must_be_there_is_named() {
    assert_eq!(parse("topology: {nodes: {}}").unwrap_err().to_string(), "name is missing");
    assert_eq!(parse("name: t").unwrap_err().to_string(), "topology is missing");
    assert_eq!(parse("name: t\ntopology: {}").unwrap_err().to_string(), "topology.nodes is missing");
    assert!(parse("name: a/b\ntopology: {nodes: {}}").unwrap_err().to_string().contains("has the name \"a/b\""));
}

/// The addresses and PodCIDRs of the west/east lab are a contract: other tests and documents repeat them.
#[test]
fn west_and_east_have_their_agreed_addresses() {
    for name in ["west-east", "west-east-etcd"] {
        let topology = crate::catalog::load(name).unwrap();
        for (node, address, pod_net) in [
            ("west-control-plane", "172.18.0.4", "10.0.0"),
            ("west-worker", "172.18.0.5", "10.0.1"),
            ("east-control-plane", "172.18.0.3", "10.1.0"),
            ("east-worker", "172.18.0.2", "10.1.1"),
        ] {
            let spec = topology.node(node).unwrap();
            assert_eq!(spec.exec[0], words(&format!("ip address add {address}/16 dev eth0")));
            assert_eq!(spec.daemons[0].name, "meshd");
            for (pod, host) in [("webpod", 10), ("client", 20)] {
                let pod = topology.node(&format!("{node}-{pod}")).unwrap();
                assert_eq!(pod.role, Role::Pod);
                assert_eq!(pod.exec[0], words(&format!("ip address add {pod_net}.{host}/32 dev eth0")));
            }
            let config = topology.folder.join(&spec.binds[0].source);
            let text = std::fs::read_to_string(config).unwrap();
            for part in [address, &format!("{pod_net}.0/24"), &format!("{pod_net}.10"), &format!("name: {node}")] {
                assert!(text.contains(part), "{node}: {part}");
            }
        }
    }
}

#[test]
fn the_ipv6_topology_has_no_ipv4() {
    let topology = crate::catalog::load("single-l2-ipv6").unwrap();
    assert_eq!(topology.nodes.iter().filter(|node| node.role == Role::Node).count(), 4);
    for command in topology.nodes.iter().flat_map(|node| &node.exec) {
        assert_eq!(command[..2], ["ip", "-6"], "{command:?}");
    }
}
