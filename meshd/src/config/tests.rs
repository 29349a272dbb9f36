//! Files on disk to configurations or findings.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::model::{StoreConfig, UserRole};
use super::{Config, ConfigErrors, Environment, Overrides};

/// The smallest configuration, and what a test adds to it.
const BASE: &str = "cluster: {name: west, id: 1}\nnode: {pod_cidrs: [10.0.1.0/24, \"fd00:1::/64\"]}\nstore: {mode: embedded, listen: \"127.0.0.1:2379\"}\n";

struct Files {
    dir: TempDir,
}

impl Files {
    fn new(main: &str) -> Self {
        let files = Self { dir: tempfile::tempdir().unwrap() };
        files.write("meshd.yaml", main);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn load(&self) -> Result<Config, ConfigErrors> {
        Config::load(&self.path("meshd.yaml"), &Environment::new(), &Overrides::new())
    }

    fn load_with(&self, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let flags = flags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned(), format!("--set {k}"))).collect();
        Config::load(&self.path("meshd.yaml"), &environment, &flags)
    }

    /// Certificate files for `tls: {ca: ca.crt, cert: c.crt, key: c.key}`.
    fn certificates(&self) {
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        self.write("ca.crt", &cert.pem());
        self.write("c.crt", &cert.pem());
        self.write("c.key", &key.serialize_pem());
        set_mode(&self.path("c.key"), 0o600);
    }
}

fn set_mode(path: &std::path::Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// `BASE` with a section of it replaced or one added.
fn with(section: &str, text: &str) -> String {
    let kept: Vec<&str> = BASE.lines().filter(|line| !line.starts_with(&format!("{section}:"))).collect();
    format!("{}\n{text}\n", kept.join("\n"))
}

/// The findings without the path in front, each with its hint.
fn findings(errors: &ConfigErrors) -> Vec<String> {
    let line = |finding: &super::Finding| {
        let place = match &finding.origin {
            Some(super::Origin::File { line: Some(line), .. }) => format!("{line}: "),
            Some(super::Origin::File { line: None, .. }) | None => String::new(),
            Some(other) => format!("{other}: "),
        };
        format!("{place}{}: {} [{}]", finding.key, finding.message, finding.hint.clone().unwrap_or_default())
    };
    errors.findings().iter().map(line).collect()
}

/// Exactly one finding, with these words in it.
fn expect_one(main: &str, words: &[&str]) {
    let errors = Files::new(main).load().expect_err(main);
    let lines = findings(&errors);
    assert_eq!(lines.len(), 1, "{main}\n{lines:#?}");
    for word in words {
        assert!(lines[0].contains(word), "{word:?} is not in {:?}\n{main}", lines[0]);
    }
    assert!(errors.findings()[0].hint.is_some(), "no hint: {lines:?}");
}

#[test]
fn the_smallest_configuration_has_the_defaults() {
    let config = Files::new(BASE).load().unwrap();
    assert_eq!((config.cluster.name.as_str(), config.cluster.id.get()), ("west", 1));
    assert_eq!(config.cluster.max_clusters.get(), 255);
    assert_eq!(config.node.name, None);
    assert_eq!(config.node.addresses, Vec::<std::net::IpAddr>::new());
    assert!(config.routing.nexthop_objects);
    assert_eq!(config.routing.metric.0, 77);
    assert_eq!(config.state_dir, PathBuf::from("/var/lib/meshd"));
    assert_eq!(config.api.socket, PathBuf::from("/run/meshd/meshd.sock"));
    assert_eq!(config.api.metrics, None);
    assert_eq!(config.log.filter, "info");
    assert_eq!(config.peers, Vec::new());
    assert_eq!(config.warnings, Vec::new());
    let StoreConfig::Embedded { users, .. } = config.store else { panic!("not embedded") };
    let users: Vec<(&str, UserRole)> = users.iter().map(|user| (user.name.as_str(), user.role)).collect();
    assert_eq!(
        users,
        [
            ("admin-west", UserRole::Root),
            ("local-west", UserRole::Local),
            ("node-west", UserRole::Node),
            ("remote", UserRole::Remote)
        ]
    );
}

#[test]
fn every_kind_of_mistake_is_named_with_line_key_and_hint() {
    let peer = |rest: &str| {
        format!("{BASE}peers:\n  - cluster: east\n    endpoints: [\"http://localhost:2379\"]\n    {rest}\n")
    };
    for (main, words) in [
        // unknown keys
        (format!("{BASE}routng: {{}}\n"), vec!["4: routng: unknown key routng", "did you mean routing?"]),
        (
            with("cluster", "cluster:\n  name: west\n  id: 1\n  nme: x"),
            vec!["6: cluster.nme: unknown key nme", "did you mean name?"],
        ),
        (peer("acept: {}"), vec!["7: peers[0].acept", "did you mean accept?"]),
        (format!("{BASE}routing: {{zebra: 1}}\n"), vec!["known keys here: mode, native_cidrs"]),
        // wrong types
        (
            with("cluster", "cluster: {name: west, id: one}"),
            vec!["cluster.id: wrong type: expected a whole number", "found the text \"one\""],
        ),
        (with("cluster", "cluster: west"), vec!["cluster: wrong type: expected a table"]),
        (
            format!("{BASE}peers: {{cluster: east}}\n"),
            vec!["4: peers: wrong type: expected a list of tables, found a table"],
        ),
        (
            format!("{BASE}routing: {{nexthop_objects: 7}}\n"),
            vec!["routing.nexthop_objects: wrong type: expected true or false"],
        ),
        (format!("{BASE}routing: {{mode: nativ}}\n"), vec!["unknown value \"nativ\"", "did you mean native?"]),
        (format!("{BASE}routing: {{metric: -1}}\n"), vec!["wrong type", "the number -1"]),
        // missing keys
        (with("cluster", "cluster: {id: 1}"), vec!["cluster.name: required key is missing", "MESHD_CLUSTER__NAME"]),
        (with("store", ""), vec!["store.mode: required key is missing"]),
        // cluster
        (
            with("cluster", "cluster: {name: West_1, id: 1}"),
            vec!["3: cluster.name: invalid cluster name \"West_1\"", "for instance west-1"],
        ),
        (with("cluster", "cluster: {name: default, id: 1}"), vec!["reserved"]),
        (with("cluster", "cluster: {name: west, id: 0}"), vec!["cluster id 0 is outside 1 to 255"]),
        (with("cluster", "cluster: {name: west, id: 256}"), vec!["cluster id 256 is outside 1 to 255"]),
        (with("cluster", "cluster: {name: west, id: 1, max_clusters: 300}"), vec!["max_clusters is 300"]),
        // addresses and prefixes
        (with("node", "node: {addresses: [172.18.0.0/16]}"), vec!["not an address", "without prefix length"]),
        (with("node", "node: {addresses: [0.0.0.0]}"), vec!["unspecified"]),
        (with("node", "node: {addresses: [\"ff02::1\"]}"), vec!["multicast"]),
        (with("node", "node: {addresses: [\"::ffff:1.2.3.4\"]}"), vec!["IPv4 address in IPv6 form"]),
        (with("node", "node: {addresses: [172.18.0.5, 172.18.0.5]}"), vec!["node.addresses[1]", "twice"]),
        (with("node", "node: {pod_cidrs: [10.0.1.5/24]}"), vec!["has host bits set", "write 10.0.1.0/24"]),
        (with("node", "node: {pod_cidrs: [10.0.1.0]}"), vec!["not a prefix", "10.0.1.0/32"]),
        (with("node", "node: {pod_cidrs: [0.0.0.0/0]}"), vec!["covers every address"]),
        (with("node", "node: {pod_cidrs: [10.0.0.0/16, 10.0.1.0/24]}"), vec!["overlaps 10.0.0.0/16"]),
        // accept
        (
            peer("accept: {pod_cidrs: [10.0.1.0/24]}"),
            vec!["7: peers[0].accept.pod_cidrs[0]", "is this node's own pod_cidrs", "broader"],
        ),
        (peer("accept: {pod_cidrs: [10.0.1.128/25]}"), vec!["is inside this node's own pod_cidrs 10.0.1.0/24"]),
        (
            format!("{BASE}peers_defaults: {{accept: {{pod_cidrs: [10.0.1.0/24]}}}}\n"),
            vec!["peers_defaults.accept.pod_cidrs[0]"],
        ),
        // peers
        (
            peer("tls: {ca: ca.crt, cert: c.crt, key: c.key}")
                .replace("http:", "https:")
                .replace("tls: {ca: ca.crt, cert: c.crt, key: c.key}", "accept: {}"),
            vec!["https needs certificates"],
        ),
        (
            peer("accept: {}").replace("http://localhost:2379", "localhost:2379"),
            vec!["peers[0].endpoints[0]", "not a URL"],
        ),
        (peer("accept: {}").replace("cluster: east", "cluster: west"), vec!["own name"]),
        (
            format!("{}  - cluster: east\n    endpoints: [\"http://localhost:1\"]\n", peer("accept: {}")),
            vec!["peers[1].cluster", "configured twice"],
        ),
        // store
        (with("store", "store: {mode: embedded}"), vec!["store.tls", "0.0.0.0:2379 needs certificates"]),
        (with("store", "store: {mode: etcd}"), vec!["store.endpoints: required key is missing"]),
        (
            with("store", "store: {mode: etcd, endpoints: [\"http://localhost:2379\"], listen: \"127.0.0.1:1\"}"),
            vec!["store.listen", "only possible with store.mode: embedded"],
        ),
        (with("store", "store: {mode: embedded, listen: localhost}"), vec!["not an address with a port"]),
        // workloads
        (
            format!("{BASE}workloads: {{static: [{{name: a, addresses: [10.9.0.1]}}]}}\n"),
            vec!["10.9.0.1 is outside node.pod_cidrs", "10.0.1.0/24"],
        ),
        (
            format!(
                "{BASE}workloads: {{static: [{{name: a, addresses: [10.0.1.1]}}, {{name: b, addresses: [10.0.1.1]}}]}}\n"
            ),
            vec!["belongs to workload default/a"],
        ),
        (format!("{BASE}workloads: {{static: [{{name: A, addresses: [10.0.1.1]}}]}}\n"), vec!["\"A\" is not a name"]),
        (format!("{BASE}api: {{metrics: 9962}}\n"), vec!["\"9962\" is not an address with a port", "127.0.0.1:9962"]),
        (format!("{BASE}api: {{metrics: \"127.0.0.1:0\"}}\n"), vec!["port 0 is a different one"]),
        // later versions
        (
            format!("{BASE}routing: {{mode: tunnel}}\n"),
            vec!["routing.mode", "there is no tunnel", "add the section tunnel"],
        ),
        (
            format!("{BASE}tunnel: {{protocol: geneve}}\n"),
            vec!["tunnel.protocol: geneve is written by the kernel's programs", "services: {enabled: true}"],
        ),
        (format!("{BASE}tunnel: {{vni: 0}}\n"), vec!["tunnel.vni: 0 is not possible", "1 to 16777215"]),
        (
            format!("{BASE}routing: {{nodes: [{{cluster: east, node: a, mode: tunnel}}]}}\n"),
            vec!["routing.nodes: there is no tunnel"],
        ),
        (
            format!("{BASE}routing: {{probe: {{failures: 1}}}}\n"),
            vec!["routing.probe.failures: 1 is not possible", "write 2 to 100"],
        ),
        (
            format!("{BASE}routing: {{probe: {{port: 8472}}}}\ntunnel: {{}}\n"),
            vec!["routing.probe.port: it is the port of the tunnel"],
        ),
        (format!("{BASE}kubernetes: {{enabled: auto}}\n"), vec!["kubernetes: not supported"]),
        // syntax
        ("cluster: [1\nnode: 2".to_owned(), vec!["invalid YAML"]),
        (format!("{BASE}log: {{level: \"meshd=nope=x\"}}\n"), vec!["not a log filter"]),
    ] {
        expect_one(&main, &words);
    }
}

#[test]
fn metrics_for_everybody_are_a_warning() {
    let load = |address: &str| Files::new(&format!("{BASE}api: {{metrics: \"{address}\"}}\n")).load().unwrap();
    let config = load("127.0.0.1:9962");
    assert_eq!((config.api.metrics, config.warnings), ("127.0.0.1:9962".parse().ok(), Vec::new()));
    let config = load("[::]:9962");
    assert_eq!(config.api.metrics, "[::]:9962".parse().ok());
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].to_string().contains("can read the metrics"), "{}", config.warnings[0]);
}

#[test]
fn features_of_later_versions_may_be_switched_off() {
    let off = "bgp: null\nservices: {enabled: false}\nmasquerade: {enabled: false, exclude: []}\nkubernetes: {enabled: no}\npolicy: {}\n";
    Files::new(&format!("{BASE}{off}")).load().unwrap();
}

#[test]
fn masquerade_is_off_unless_it_is_enabled_and_checked_in_any_case() {
    assert_eq!(Files::new(BASE).load().unwrap().masquerade, None);
    assert_eq!(Files::new(&format!("{BASE}masquerade: {{exclude: [10.0.0.0/8]}}\n")).load().unwrap().masquerade, None);
    let section = "masquerade: {enabled: true, exclude: [10.0.0.0/8, 240.0.0.0/4], agent_file: agent, uplinks: [eth0.7], address: [192.0.2.1, \"2001:db8::1\"]}";
    let files = Files::new(&format!("{BASE}{section}\n"));
    let config = files.load().unwrap();
    assert_eq!(config.warnings, Vec::new());
    let masquerade = config.masquerade.unwrap();
    assert_eq!(masquerade.exclude, ["10.0.0.0/8".parse().unwrap(), "240.0.0.0/4".parse().unwrap()]);
    assert_eq!((masquerade.link_local, masquerade.agent_file), (false, Some(files.path("agent"))));
    assert_eq!((masquerade.uplinks, masquerade.addresses.len()), (vec!["eth0.7".to_owned()], 2));
    for (section, expected) in [
        (
            "exclude: [0.0.0.0/0]",
            "masquerade.exclude[0]: 0.0.0.0/0 excludes every address [write masquerade: {enabled: false}]",
        ),
        ("exclude: [10.0.0.1/8]", "masquerade.exclude[0]: 10.0.0.1/8 has host bits set [write 10.0.0.0/8]"),
        (
            "address: [192.0.2.1, 192.0.2.2]",
            "masquerade.address: there are several IPv4 addresses [write at most one per family]",
        ),
        (
            "uplinks: [\"eth*\"]",
            "masquerade.uplinks[0]: \"eth*\" is no name of a link [write a name as `ip link` shows it, such as eth0]",
        ),
    ] {
        let errors = Files::new(&format!("{BASE}masquerade: {{{section}}}\n")).load().unwrap_err();
        let found = findings(&errors);
        assert!(found.len() == 1 && found[0].ends_with(expected), "{found:#?}");
    }
    let node = with("node", "node: {name: a}\nmasquerade: {enabled: true}");
    assert_eq!(Files::new(&node).load().unwrap().warnings.len(), 1, "nothing to masquerade");
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let main = "cluster: {name: W, id: 0}\nnode: {pod_cidrs: [10.0.1.5/24]}\nstore: {mode: etcd}\n";
    assert_eq!(findings(&Files::new(main).load().unwrap_err()).len(), 4);
    let main = "clustr: {}\nnode: {nme: x}\nstore: {mode: 7}\n";
    assert_eq!(findings(&Files::new(main).load().unwrap_err()).len(), 3);
}

#[test]
fn a_broader_accept_list_is_fine() {
    let peer = "peers: [{cluster: east, endpoints: [\"http://localhost:2379\"], accept: {pod_cidrs: [10.0.0.0/8], node_cidrs: [172.16.0.0/12]}}]";
    let config = Files::new(&format!("{BASE}{peer}\n")).load().unwrap();
    assert_eq!(config.peers[0].accept.pod_cidrs, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(config.warnings, Vec::new());
}

#[test]
fn an_accept_list_that_opens_the_underlay_is_a_warning() {
    let warnings = |pods: &str, nodes: &str, endpoint: &str| {
        let node = with("node", "node: {addresses: [192.0.2.5], pod_cidrs: [10.0.1.0/24]}");
        let peer = format!(
            "peers: [{{cluster: east, endpoints: [\"http://{endpoint}:2379\"], accept: {{pod_cidrs: [{pods}], node_cidrs: [{nodes}]}}}}]"
        );
        let config = Files::new(&format!("{node}{peer}\n")).load().unwrap();
        let all = config.warnings.iter().map(ToString::to_string);
        all.filter(|warning| warning.contains("peers[0].accept.pod_cidrs")).collect::<Vec<_>>()
    };
    let one = |found: Vec<String>, words: &str| {
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains(words), "{found:?}");
    };
    one(
        warnings("192.0.2.0/24", "198.51.100.0/24", "127.0.0.1"),
        "192.0.2.0/24 contains 192.0.2.5, an address of this",
    );
    one(warnings("10.0.0.0/8", "10.9.0.0/16", "127.0.0.1"), "10.0.0.0/8 contains 10.9.0.0/16, which is in node_cidrs");
    one(warnings("10.0.0.0/8", "192.0.2.0/24", "10.9.0.1"), "10.0.0.0/8 contains 10.9.0.1, an address of its store");
    // On purpose: workloads have a part of the network of the nodes.
    assert_eq!(warnings("10.9.64.0/18", "10.9.0.0/16", "10.9.0.1"), Vec::<String>::new());
}

#[test]
fn peers_take_the_defaults_they_do_not_override() {
    let peers = "peers_defaults: {accept: {pod_cidrs: [10.0.0.0/8], node_cidrs: [172.16.0.0/12]}}\npeers:\n- {cluster: east, endpoints: [\"http://localhost:1\"]}\n- {cluster: north, endpoints: [\"http://localhost:2\"], accept: {pod_cidrs: [10.9.0.0/16]}}\n";
    let config = Files::new(&format!("{BASE}{peers}")).load().unwrap();
    assert_eq!(config.peers[0].accept, config.peers_defaults);
    assert_eq!(config.peers[1].accept.pod_cidrs, ["10.9.0.0/16".parse().unwrap()]);
    assert_eq!(config.peers[1].accept.node_cidrs, Vec::new());
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].to_string().contains("no node_cidrs"), "{}", config.warnings[0]);
}

#[test]
fn high_cluster_ids_are_a_warning() {
    let config = Files::new(&with("cluster", "cluster: {name: west, id: 200}")).load().unwrap();
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].to_string().contains(":3: cluster.id: cluster id 200 is above 127"));
}

#[test]
fn certificate_files_are_looked_at() {
    let main = with("store", "store: {mode: embedded, tls: {ca: ca.crt, cert: c.crt, key: c.key}}");
    let files = Files::new(&main);
    files.certificates();
    files.load().unwrap();

    set_mode(&files.path("c.key"), 0o644);
    let lines = findings(&files.load().unwrap_err());
    assert!(
        lines[0].contains("3: store.tls.key: key file") && lines[0].contains("can be read by everybody"),
        "{lines:?}"
    );
    assert!(lines[0].contains("chmod 0600"), "{lines:?}");

    let other = rcgen::KeyPair::generate().unwrap();
    files.write("c.key", &other.serialize_pem());
    set_mode(&files.path("c.key"), 0o600);
    let lines = findings(&files.load().unwrap_err());
    assert!(lines[0].contains("does not belong to certificate"), "{lines:?}");

    files.write("c.key", "garbage");
    let lines = findings(&files.load().unwrap_err());
    assert!(lines[0].contains("holds no PEM key"), "{lines:?}");

    fs::remove_file(files.path("c.key")).unwrap();
    let lines = findings(&files.load().unwrap_err());
    assert!(lines[0].contains("failed to read key") && lines[0].contains("No such file"), "{lines:?}");

    let half = Files::new(&with("store", "store: {mode: embedded, tls: {ca: ca.crt, key: c.key}}"));
    let lines = findings(&half.load().unwrap_err());
    assert!(lines.iter().any(|line| line.contains("store.tls.cert: required key is missing")), "{lines:?}");
}

#[test]
fn toml_and_json_mean_the_same_as_yaml() {
    let files = Files::new(BASE);
    files.write("meshd.toml", "[cluster]\nname = \"west\"\nid = 1\n[node]\npod_cidrs = [\"10.0.1.0/24\", \"fd00:1::/64\"]\n[store]\nmode = \"embedded\"\nlisten = \"127.0.0.1:2379\"\n");
    files.write("meshd.json", "{\"cluster\": {\"name\": \"west\", \"id\": 1}, \"node\": {\"pod_cidrs\": [\"10.0.1.0/24\", \"fd00:1::/64\"]}, \"store\": {\"mode\": \"embedded\", \"listen\": \"127.0.0.1:2379\"}}");
    let yaml = files.load().unwrap();
    for name in ["meshd.toml", "meshd.json"] {
        let mut other = Config::load(&files.path(name), &Environment::new(), &Overrides::new()).unwrap();
        other.file.clone_from(&yaml.file);
        assert_eq!(other, yaml, "{name}");
    }
    for (name, text, words) in [
        ("bad.toml", "[cluster\nname = 1\n", "1: : invalid TOML"),
        ("bad.json", "{\"cluster\": {\n\"name\" \"x\"}}", "2: : invalid JSON"),
        ("meshd.ini", "", "unknown kind of configuration file"),
    ] {
        files.write(name, text);
        let errors = Config::load(&files.path(name), &Environment::new(), &Overrides::new()).unwrap_err();
        assert!(findings(&errors)[0].contains(words), "{:?}", findings(&errors));
    }
    let missing = Config::load(&files.path("none.yaml"), &Environment::new(), &Overrides::new()).unwrap_err();
    assert!(findings(&missing)[0].contains("failed to read the configuration"), "{missing}");
}

#[test]
fn environment_and_flags_go_over_the_file() {
    let files = Files::new(BASE);
    let config = files
        .load_with(
            &[
                ("MESHD_CLUSTER__NAME", "north"),
                ("MESHD_CLUSTER__ID", "3"),
                ("MESHD_NODE__ADDRESSES", "172.18.0.5, fd00::5"),
                ("MESHD_STATE_DIR", "/srv/meshd"),
                ("MESHD_PEERS", "[{\"cluster\": \"east\", \"endpoints\": [\"http://localhost:1\"]}]"),
                ("MESHD_SOCKET", "/not/the/configuration"),
                ("MESHD_PORT", "tcp://10.0.0.1:2379"),
            ],
            &[("cluster.id", "4"), ("routing.nexthop_objects", "false")],
        )
        .unwrap();
    assert_eq!((config.cluster.name.as_str(), config.cluster.id.get()), ("north", 4));
    assert_eq!(config.node.addresses.len(), 2);
    assert_eq!(config.state_dir, PathBuf::from("/srv/meshd"));
    assert_eq!(config.peers[0].cluster.as_str(), "east");
    assert!(!config.routing.nexthop_objects);

    let errors =
        files.load_with(&[("MESHD_CLUSTER__NMAE", "x"), ("MESHD_CLUSTER__ID", "none")], &[("cluster.max", "1")]);
    let lines = findings(&errors.unwrap_err());
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("environment variable MESHD_CLUSTER__NMAE: cluster.nmae: unknown key")
                && line.contains("did you mean name?")),
        "{lines:#?}"
    );
    assert!(
        lines.iter().any(|line| line.starts_with("environment variable MESHD_CLUSTER__ID: cluster.id: wrong type")),
        "{lines:#?}"
    );
    assert!(
        lines.iter().any(|line| line.starts_with("flag --set cluster.max: cluster.max: unknown key")),
        "{lines:#?}"
    );
}

#[test]
fn included_files_are_merged_in_the_order_of_their_names() {
    let files = Files::new(&format!(
        "{BASE}include: conf.d\nrouting: {{metric: 1, mode: native}}\npeers: [{{cluster: east, endpoints: [\"http://localhost:1\"]}}]\n"
    ));
    fs::create_dir(files.path("conf.d")).unwrap();
    files.load().expect("an empty folder has no files");
    files.write(
        "conf.d/10-north.yaml",
        "peers: [{cluster: north, endpoints: [\"http://localhost:2\"]}]\nrouting: {metric: 10}\n",
    );
    files.write(
        "conf.d/20-south.toml",
        "[[peers]]\ncluster = \"south\"\nendpoints = [\"http://localhost:3\"]\n[routing]\nmetric = 20\n",
    );
    files.write("conf.d/README", "not a configuration");
    files.write("conf.d/.hidden.yaml", "nonsense: 1");
    let config = files.load().unwrap();
    let peers: Vec<&str> = config.peers.iter().map(|peer| peer.cluster.as_str()).collect();
    assert_eq!(peers, ["east", "north", "south"]);
    assert_eq!(config.peers[1].source, files.path("conf.d/10-north.yaml"));
    assert_eq!(config.routing.metric.0, 20);
    assert_eq!(config.routing.mode, super::model::RoutingMode::Native);

    files.write("conf.d/30-bad.yaml", "include: x\npeers: [{cluster: South, endpoints: [\"http://localhost:3\"]}]\n");
    let errors = files.load().unwrap_err();
    assert!(errors.to_string().contains("an included file cannot include more"), "{errors}");
    files.write("conf.d/30-bad.yaml", "\npeers: [{cluster: South, endpoints: [\"http://localhost:3\"]}]\n");
    let errors = files.load().unwrap_err();
    assert!(errors.to_string().contains("30-bad.yaml:2: peers[3].cluster: invalid cluster name"), "{errors}");
}

#[test]
fn an_include_folder_that_is_missing_is_an_error_and_not_no_files() {
    let files = Files::new(&format!("{BASE}include: conf.d\n"));
    let folder = files.path("conf.d");
    let errors = files.load().unwrap_err();
    let expected = format!("meshd.yaml:4: include: the folder {} does not exist", folder.display());
    assert!(errors.to_string().ends_with(&expected), "{errors}");
    assert!(errors.findings()[0].hint.is_some());
    let errors = files.load_with(&[("MESHD_INCLUDE", "of-variable")], &[]).unwrap_err();
    assert!(errors.to_string().starts_with("environment variable MESHD_INCLUDE: include: the folder "), "{errors}");
    let errors = files.load_with(&[("MESHD_INCLUDE", "of-variable")], &[("include", "of-flag")]).unwrap_err();
    assert!(errors.to_string().starts_with("flag --set include: include: the folder "), "{errors}");

    let path = files.path("meshd.yaml");
    let source = super::ConfigSource::new(path, Environment::new(), Overrides::new());
    super::ConfigSource { makes_include: true, ..source }.load().expect("who asks makes the folder");
    files.write("conf.d", "not a folder");
    let errors = files.load().unwrap_err();
    assert!(errors.to_string().contains("include: failed to read the folder"), "{errors}");
    Files::new(BASE).load().expect("without the key there is no folder to miss");
    Files::new(&format!("{BASE}include: null\n")).load().expect("null is a key that is not there");

    files.write("of-flag/east.yaml", "peers: [{cluster: east, endpoints: [\"http://localhost:1\"]}]\n");
    let config = files.load_with(&[], &[("include", "of-flag")]).unwrap();
    assert_eq!((config.peers.len(), config.include), (1, Some(files.path("of-flag"))));
}

#[test]
fn an_entry_of_the_include_folder_that_cannot_be_read_is_an_error() {
    use std::os::unix::fs::symlink;

    let files = Files::new(&format!("{BASE}include: conf.d\n"));
    files.write("conf.d/10-east.yaml", "peers: [{cluster: east, endpoints: [\"http://localhost:1\"]}]\n");
    symlink("nowhere", files.path("conf.d/20-dangling.yaml")).unwrap();
    symlink("30-loop.yaml", files.path("conf.d/30-loop.yaml")).unwrap();
    fs::create_dir(files.path("conf.d/40-folder.yaml")).unwrap();
    let errors = files.load().unwrap_err();
    assert!(errors.findings().iter().all(|finding| finding.hint.is_some()), "{errors:#?}");
    let lines: Vec<String> = errors.findings().iter().map(ToString::to_string).collect();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    for (line, (name, what)) in lines.iter().zip([
        ("20-dangling.yaml", "it is a link to nothing"),
        ("30-loop.yaml", "symbolic links"),
        ("40-folder.yaml", "it is not a file"),
    ]) {
        assert!(line.contains(&format!("conf.d/{name}: failed to read the included file: ")), "{line}");
        assert!(line.contains(what), "{line}");
    }

    // What is not ours to read is nobody's mistake: editors leave such links.
    for (from, to) in [("20-dangling.yaml", ".#20.yaml"), ("30-loop.yaml", "loop"), ("40-folder.yaml", "folder")] {
        fs::rename(files.path("conf.d").join(from), files.path("conf.d").join(to)).unwrap();
    }
    symlink("../east.yaml", files.path("conf.d/50-link.yaml")).unwrap();
    files.write("east.yaml", "routing: {metric: 7}\n");
    let config = files.load().unwrap();
    assert_eq!((config.peers.len(), config.routing.metric.0), (1, 7));
}

#[test]
fn labels_keep_their_case_and_dots() {
    let main = format!(
        "{BASE}workloads: {{static: [{{namespace: shop, name: web-1, addresses: [10.0.1.10, \"fd00:1::10\"], labels: {{App.kubernetes.io/name: Web, version: 2}}}}]}}\n"
    );
    let config = Files::new(&main).load().unwrap();
    let workload = &config.workloads[0];
    assert_eq!((workload.namespace.as_str(), workload.name.as_str()), ("shop", "web-1"));
    assert_eq!(workload.labels.get("App.kubernetes.io/name").map(String::as_str), Some("Web"));
    assert_eq!(workload.labels.get("version").map(String::as_str), Some("2"));
    assert_eq!(workload.addresses.len(), 2);
}

#[test]
fn the_zone_of_a_node_is_the_value_of_a_label() {
    for (zone, is_right) in [("eu-1a", true), ("-eu", false), ("a;b", false), ("", false), (&*"z".repeat(64), false)] {
        let labels = format!("labels: {{topology.kubernetes.io/zone: \"{zone}\"}}");
        let files = Files::new(&BASE.replace("node: {", &format!("node: {{{labels}, ")));
        let found = files.load().err().map(|wrong| findings(&wrong)).unwrap_or_default();
        let words = "node.labels.topology.kubernetes.io/zone";
        assert_eq!(found.iter().any(|line| line.contains(words)), !is_right, "{zone}: {found:#?}");
    }
}

#[test]
fn an_empty_file_misses_the_required_keys_only() {
    let lines = findings(&Files::new("# nothing\n").load().unwrap_err());
    assert_eq!(lines.len(), 3, "{lines:#?}");
}
