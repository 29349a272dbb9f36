//! `workloads.services` and the section `services` from text to values and findings.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use meshd_core::observed::{
    Affinity, ForwardingMode, OnRemoval, OwnServiceRow, Protocol, ServiceKind, ServiceName, TrafficPolicy,
};
use tempfile::TempDir;

use super::model::services::{BackendAlgorithm, DsrKind, LinkPattern, ServiceMaps, XdpUse};
use super::{Config, ConfigErrors, Environment, Overrides};

const BASE: &str = "cluster: {name: west, id: 1}\nnode: {addresses: [172.18.0.5], pod_cidrs: [10.0.1.0/24]}\nstore: {mode: embedded, listen: \"127.0.0.1:2379\"}\n";

fn load(sections: &str) -> Result<Config, ConfigErrors> {
    let (_folder, config) = load_with(sections, &[]);
    config
}

fn load_with(sections: &str, included: &[(&str, &str)]) -> (TempDir, Result<Config, ConfigErrors>) {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("conf.d")).unwrap();
    for (name, text) in included {
        fs::write(folder.path().join("conf.d").join(name), text).unwrap();
    }
    let file = folder.path().join("meshd.yaml");
    fs::write(&file, format!("{BASE}include: conf.d\n{sections}")).unwrap();
    let config = Config::load(&file, &Environment::new(), &Overrides::new());
    (folder, config)
}

fn service<'a>(config: &'a Config, name: &str) -> &'a OwnServiceRow {
    let name = ServiceName { namespace: "default".into(), name: name.into() };
    &config.own_services[&name]
}

/// Everything that is wrong with one service, each finding with its hint.
fn wrong(service: &str) -> Vec<String> {
    wrong_services(&format!("[{{{service}}}]"))
}

fn wrong_services(services: &str) -> Vec<String> {
    let errors = load(&format!("workloads: {{services: {services}}}\n")).expect_err(services);
    let line = |it: &super::Finding| format!("{}: {} [{}]", it.key, it.message, it.hint.clone().unwrap_or_default());
    errors.findings().iter().map(line).collect()
}

#[test]
fn a_service_has_defaults_and_everything_can_be_said() {
    let short = "workloads: {services: [{name: a, cluster_ips: [10.2.0.1], ports: [{port: 80}]}]}\n";
    let config = load(short).unwrap();
    let row = service(&config, "a");
    assert_eq!((row.kind, row.global, row.shared, row.affinity), (ServiceKind::ClusterIp, false, true, Affinity::None));
    assert_eq!((&*row.ports[0].name, row.ports[0].protocol, row.ports[0].target_port), ("", Protocol::Tcp, 80));
    assert_eq!((row.mode, row.session_affinity, row.local_minimum), (None, None, 1));
    assert!(!row.by_source);
    assert_eq!(config.warnings.len(), 1, "it can have no backend: {:?}", config.warnings);

    let long = "
workloads:
  services:
    - namespace: default
      name: b
      type: load_balancer
      cluster_ips: [10.2.0.2, \"fd02::2\"]
      external_ips: [192.0.2.2]
      load_balancer_ips: [198.51.100.2]
      ports:
        - {name: http, port: 80, target_port: 8080, node_port: 30080}
        - {name: dns, protocol: udp, port: 53}
      selector: {app: b}
      backends: [{address: 172.18.0.77, weight: 50, state: terminating, zone: z1}]
      global: true
      shared: false
      affinity: local
      local_minimum: 2
      cluster_weights: {east: 10, west: 0}
      session_affinity_s: 600
      hash: source
      external_traffic_policy: local
      internal_traffic_policy: local
      source_ranges: [192.0.2.0/24]
      mode: dsr
      on_backend_removal: kill
      topology: zone
";
    let config = load(long).unwrap();
    let row = service(&config, "b");
    assert_eq!(
        (row.kind, row.global, row.shared, row.affinity),
        (ServiceKind::LoadBalancer, true, false, Affinity::Local)
    );
    assert_eq!((row.ports[0].target_port, row.ports[0].node_port), (8080, Some(30080)));
    assert_eq!((row.ports[1].protocol, row.ports[1].target_port), (Protocol::Udp, 53));
    assert_eq!((row.backends[0].weight, row.backends[0].terminating), (50, true));
    assert_eq!((row.local_minimum, row.session_affinity, row.mode), (2, Some(600), Some(ForwardingMode::Dsr)));
    assert!(row.by_source);
    assert_eq!((row.external_policy, row.internal_policy), (TrafficPolicy::Local, TrafficPolicy::Local));
    assert_eq!(
        row.weights.iter().map(|(name, weight)| (name.as_str(), *weight)).collect::<Vec<_>>(),
        [("east", 10), ("west", 0)]
    );
    assert_eq!((row.on_removal, row.source_ranges.len()), (OnRemoval::Kill, 1));
    assert_eq!((row.topology, row.backends[0].zone.as_deref()), (meshd_core::observed::Topology::Zone, Some("z1")));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn include_files_add_services_and_a_conflict_between_files_is_found() {
    let one = |name: &str, ip: &str| {
        format!(
            "workloads: {{services: [{{name: {name}, global: true, cluster_ips: [{ip}], ports: [{{port: 80}}]}}]}}\n"
        )
    };
    let (_folder, config) = load_with(&one("a", "10.2.0.1"), &[("b.yaml", &one("b", "10.2.0.2"))]);
    assert_eq!(config.unwrap().own_services.len(), 2);
    let (_folder, config) = load_with(&one("a", "10.2.0.1"), &[("b.yaml", &one("b", "10.2.0.1"))]);
    let errors = config.unwrap_err();
    assert!(errors.to_string().contains("b.yaml:1"), "{errors}");
    assert!(errors.to_string().contains("10.2.0.1 80/tcp is service default/a's already"), "{errors}");
}

#[test]
fn what_is_wrong_with_a_service_is_said_with_a_hint() {
    const HTTP: &str = "name: a, cluster_ips: [10.2.0.1], ports: [{port: 80}]";
    for (text, words) in [
        ("cluster_ips: [10.2.0.1], ports: [{port: 80}]", "name: required key is missing [add name: NAME]"),
        ("name: A, cluster_ips: [10.2.0.1], ports: [{port: 80}]", "name: \"A\" is not a name"),
        ("name: a, cluster_ips: [10.2.0.1]", "ports: required key is missing"),
        (
            "name: a, ports: [{port: 80}]",
            "cluster_ips: required key is missing [add cluster_ips: [ADDRESS], or say type",
        ),
        ("name: a, cluster_ips: [10.2.0.1], ports: [{port: 0}]", "ports[0].port: port 0 is not possible"),
        ("name: a, cluster_ips: [10.2.0.1], ports: [{target_port: 80}]", "ports[0].port: required key is missing"),
        ("name: a, cluster_ips: [10.2.0.1], ports: [{port: 80}, {name: b, port: 81}]", "ports[0].name: required key"),
        (
            "name: a, cluster_ips: [10.2.0.1], ports: [{name: b, port: 80}, {name: b, port: 81}]",
            "port b is there twice",
        ),
        (
            "name: a, cluster_ips: [10.2.0.1], ports: [{name: b, port: 80}, {name: c, port: 80}]",
            "10.2.0.1 80/tcp is twice",
        ),
        ("name: a, cluster_ips: [10.2.0.1], ports: [{name: B, port: 80}]", "\"B\" is not a port name"),
        ("name: a, cluster_ips: [10.2.0.1/32], ports: [{port: 80}]", "is not an address [write 10.2.0.1,"),
        ("name: a, cluster_ips: [10.0.1.1], ports: [{port: 80}]", "inside 10.0.1.0/24, where workloads are"),
        ("name: a, cluster_ips: [172.18.0.5], ports: [{port: 80}]", "172.18.0.5 is an address of this node"),
        ("name: a, type: headless, cluster_ips: [10.2.0.1], ports: [{port: 80}]", "not possible with type headless"),
        ("name: a, type: node_port, ports: [{port: 80, node_port: 80}]", "80 is outside services.node_port_range"),
        (
            "name: a, cluster_ips: [10.2.0.1], ports: [{port: 80, node_port: 30000}]",
            "only possible with type node_port",
        ),
        ("name: a, cluster_ips: [10.2.0.1], load_balancer_ips: [10.2.0.9], ports: [{port: 80}]", "type load_balancer"),
    ] {
        let found = wrong(text);
        assert!(found.iter().any(|line| line.contains(words)), "{text}: {found:#?}");
    }
    for (text, words) in [
        ("affinity: local", "affinity: counts only for a global service"),
        ("affinity: local", "[add global: true, or remove affinity]"),
        ("cluster_weights: {east: 1}", "counts only for a global service"),
        ("local_minimum: 2", "counts only with affinity local"),
        ("global: true, cluster_weights: {east: 1001}", "1001 is not possible"),
        ("global: true, cluster_weights: {EAST: 1}", "invalid cluster name"),
        ("session_affinity_s: 0", "session_affinity_s: 0 is not possible"),
        ("source_ranges: [192.0.2.0/24]", "only possible with type load_balancer"),
        ("selector: {pod-template-hash: a}", "no part of an identity"),
        ("selector: {\"a=b\": c}", "is not a label key"),
        ("backends: [{weight: 1}]", "backends[0].address: required key is missing"),
        ("backends: [{address: 127.0.0.1}]", "127.0.0.1 is loopback"),
        ("backends: [{address: 192.0.2.1, weight: 1001}]", "1001 is not possible"),
        ("backends: [{address: 192.0.2.1}, {address: 192.0.2.1}]", "192.0.2.1 is there twice"),
        ("backends: [{address: 192.0.2.1, port: 0}]", "port 0 is not possible"),
        ("backends: [{address: 192.0.2.1, zone: \"a;b\"}]", "backends[0].zone: \"a;b\" is not the name of a zone"),
        ("topology: rack", "topology"),
    ] {
        let found = wrong(&format!("{HTTP}, {text}"));
        assert!(found.iter().any(|line| line.contains(words)), "{text}: {found:#?}");
    }
    let two = "name: a, cluster_ips: [10.2.0.1], ports: [{name: a, port: 1}, {name: b, port: 2}], backends: [{address: 192.0.2.1, port: 3}]";
    assert!(wrong(two)[0].contains("which of the several ports is meant"));
    let twice = wrong_services(&format!("[{{{HTTP}}}, {{{HTTP}}}]"));
    assert!(twice[0].contains("service default/a is there twice"), "{twice:#?}");
    let node_ports = "[{name: a, type: node_port, ports: [{port: 1, node_port: 30000}]}, {name: b, type: node_port, ports: [{port: 2, node_port: 30000}]}]";
    assert!(wrong_services(node_ports)[0].contains("node port 30000/tcp is service default/a's already"));
}

#[test]
fn one_address_serves_several_services_on_different_ports_and_protocols() {
    let services = "[{name: a, cluster_ips: [10.2.0.1], ports: [{port: 53}]}, {name: b, cluster_ips: [10.2.0.1], ports: [{port: 53, protocol: udp}]}]";
    assert_eq!(load(&format!("workloads: {{services: {services}}}\n")).unwrap().own_services.len(), 2);
}

#[test]
fn the_section_services_has_defaults_and_bounds() {
    let config = load("").unwrap().services;
    assert_eq!((config.enabled, config.mode, config.dsr), (false, ForwardingMode::Snat, DsrKind::Option));
    assert_eq!((config.algorithm, config.table_size), (BackendAlgorithm::Maglev, 16_381));
    assert_eq!((config.node_port_range, config.snat_ports), (30_000..=32_767, 61_000..=65_535));
    assert_eq!((config.remote_timeout, config.maps), (Duration::from_secs(120), ServiceMaps::default()));
    let enabled = load("services: {enabled: true, xdp: on}\n").unwrap();
    assert!(enabled.warnings.is_empty() && enabled.services.enabled, "{:?}", enabled.warnings);
    assert_eq!(enabled.services.xdp, XdpUse::On);
    let group = load(
        "services: {enabled: true, cgroup: /sys/fs/cgroup/mesh, maps: {sockets: 2048}}\
",
    )
    .unwrap()
    .services;
    assert_eq!((group.cgroup, group.maps.sockets), (Some(PathBuf::from("/sys/fs/cgroup/mesh")), 2_048));
    for (word, kind) in [("option", DsrKind::Option), ("ipip", DsrKind::Ipip), ("geneve", DsrKind::Geneve)] {
        let config = load(&format!(
            "services: {{enabled: true, mode: dsr, dsr: {word}}}\
"
        ))
        .expect(word)
        .services;
        assert_eq!((config.mode, config.dsr), (ForwardingMode::Dsr, kind));
    }
    let section = "services: {mode: dsr, dsr: geneve, algorithm: random, table_size: 65521, uplinks: [eth0], \
                   cgroup: /sys/fs/cgroup/mesh, workload_links: [\"pod-*\"], node_port_range: 20000-20010, snat_ports: 30000-40000, \
                   remote_timeout_s: 5, maps: {backends: 1024, next_hops: 2048, prefixes: 2049}}\n";
    let config = load(section).unwrap();
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let config = config.services;
    assert_eq!((config.mode, config.dsr, config.table_size), (ForwardingMode::Dsr, DsrKind::Geneve, 65_521));
    assert_eq!(config.workload_links, [LinkPattern::Prefix("pod-".to_owned())]);
    assert!(config.workload_links[0].matches("pod-webpod") && !config.uplinks[0].matches("eth01"));
    assert_eq!((config.maps.backends, config.maps.services), (1024, 65_536));
    assert_eq!((config.maps.next_hops, config.maps.prefixes, config.maps.source_ranges), (2048, 2049, 65_536));
    for (text, words) in [
        ("table_size: 1000", "write 16381 or 65521"),
        ("node_port_range: 30000", "not a range of ports"),
        ("node_port_range: 80-90", "not a range from 1024 up"),
        ("node_port_range: 31000-30000", "not a range"),
        ("snat_ports: 32000-40000", "overlaps services.node_port_range 30000-32767"),
        ("snat_ports: 40000-40010", "is too small"),
        ("remote_timeout_s: 1", "write 5 to 86400"),
        ("uplinks: [\"e*h\"]", "is not a link name"),
        ("maps: {backends: 5}", "write 1024 to 16777216"),
    ] {
        let errors = load(&format!("services: {{{text}}}\n")).expect_err(text);
        let found: Vec<String> =
            errors.findings().iter().map(|it| format!("{it} [{}]", it.hint.clone().unwrap_or_default())).collect();
        assert!(found.len() == 1 && found[0].contains(words), "{text}: {found:#?}");
    }
}
