//! The section `bgp` from text to values and findings.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use ::bgp::policy::{Candidate, LocalSource, Outcome, PeerSource, Policy, Source};
use ::bgp::session::PeerKind;
use ::bgp::wire::attributes::{Attributes, Builder, code};
use ::bgp::{Asn, RouterId};
use tempfile::TempDir;

use super::model::bgp::{
    AoAlgorithm, BgpConfig, LimitAction, PeerAuthentication, PeerDistance, PeerNextHop, PeerPlace, RemoteAs,
};
use super::{Config, ConfigErrors, Environment, Overrides};

const BASE: &str = "cluster: {name: west, id: 1}\nnode: {addresses: [172.18.0.5, \"fd00::5\"], pod_cidrs: [10.0.1.0/24], labels: {rack: r1, tier: leaf}}\nstore: {mode: embedded, listen: \"127.0.0.1:2379\"}\n";

/// A section `bgp` after the base; its first line is the fourth.
fn load(section: &str) -> (TempDir, Result<Config, ConfigErrors>) {
    let folder = tempfile::tempdir().unwrap();
    for (name, mode) in [("password", 0o600), ("open", 0o644)] {
        let path = folder.path().join(name);
        fs::write(&path, "hunter2\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::write(folder.path().join("empty"), "\n").unwrap();
    fs::set_permissions(folder.path().join("empty"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(folder.path().join("vrps.json"), r#"{"roas": [{"asn": 65001, "prefix": "10.0.0.0/8"}]}"#).unwrap();
    fs::write(folder.path().join("wrong.json"), "{\n\"roas\": 7}").unwrap();
    let path = folder.path().join("meshd.yaml");
    fs::write(&path, format!("{BASE}{section}")).unwrap();
    let config = Config::load(&path, &Environment::new(), &Overrides::new());
    (folder, config)
}

fn bgp(section: &str) -> BgpConfig {
    let (_, config) = load(section);
    config.unwrap_or_else(|error| panic!("{section}\n{error}")).bgp.expect("a speaker")
}

fn warnings(section: &str) -> Vec<String> {
    let (_, config) = load(section);
    let config = config.unwrap_or_else(|error| panic!("{section}\n{error}"));
    assert!(config.warnings.iter().all(|warning| warning.hint.is_some()), "{:?}", config.warnings);
    let mut lines: Vec<String> =
        config.warnings.iter().map(|warning| format!("{}: {}", warning.key, warning.message)).collect();
    lines.sort();
    lines
}

/// The findings as `LINE: KEY: MESSAGE [HINT]`.
fn findings(section: &str) -> Vec<String> {
    let (_, config) = load(section);
    let errors = config.expect_err(section);
    let line = |finding: &super::Finding| {
        let place = match &finding.origin {
            Some(super::Origin::File { line: Some(line), .. }) => format!("{line}: "),
            other => format!("{other:?} "),
        };
        format!("{place}{}: {} [{}]", finding.key, finding.message, finding.hint.clone().expect("a hint"))
    };
    errors.findings().iter().map(line).collect()
}

#[test]
fn the_smallest_speaker_has_the_defaults() {
    let config = bgp("bgp: {asn: 64512}\n");
    assert_eq!((config.asn, config.router_id), (Asn(64_512), Some(RouterId(0xac12_0005))));
    let listen: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["0.0.0.0:179", "[::]:179"]);
    let restart = config.restart.expect("graceful restart");
    assert_eq!((restart.restart_time_s, restart.stale_time, restart.long_lived_s), (120, Duration::from_secs(360), 0));
    assert_eq!((config.multipath.external, config.multipath.internal, config.multipath.weighted), (1, 1, true));
    assert_eq!((config.import.metric.0, config.import.routes_max, config.import.install), (77, 1_000_000, true));
    assert_eq!((config.peers.len(), config.mesh_function, config.stations.len()), (0, None, 0));
    assert_eq!((config.cluster_id, config.confederation, config.vrps, config.mrt), (None, None, None, None));
    for off in ["bgp: {enabled: false, asn: 64512}\n", "bgp: null\n", ""] {
        assert_eq!(load(off).1.unwrap().bgp, None, "{off}");
    }
}

#[test]
fn a_peer_has_everything_that_is_said() {
    let section = "bgp:
  asn: 64512
  listen: {addresses: [172.18.0.5], port: 1179}
  confederation: {id: 65000, members: [64513]}
  peers:
    - address: fe80::1
      device: eth0
      remote_as: 65001
      local_as: 64600
      description: ToR 1
      shutdown: maintenance until 18:00
      port: 179
      passive: true
      source: fd00::5
      password_file: password
      ttl_security: 1
      timers: {hold_time_s: 30, keepalive_s: 10, connect_retry_s: 2, delay_open_s: 1}
      bfd: {transmit_ms: 50, receive_ms: 60, multiplier: 4, echo_ms: 20, passive: true, strict: true}
      families:
        ipv4:
          add_path: {send: all, receive: true}
          max_prefixes: {limit: 1000, warn_percent: 80, action: restart, restart_after_s: 60}
          next_hop: self
          next_hop_address: 172.18.0.5
        ipv6: {add_path: {send: 4}, max_prefixes: {limit: 5, action: warn}, next_hop: unchanged}
      role: customer
      role_strict: true
      route_server_client: true
      allow_own_as: 2
      enforce_first_as: false
      remove_private_as: true
      graceful_restart: false
      extended_messages: false
      import: [all]
      export: [all]
    - {address: 192.0.2.2, remote_as: 64513, tcp_ao: {key_file: password, send_id: 7, receive_id: 8, algorithm: aes-128-cmac-96}}
    - {range: 10.9.0.0/16, limit: 7, remote_as: internal, route_reflector_client: true, multihop: 3}
    - {interface: eth1, remote_as: external, import: [all], export: [all], bfd: {enabled: false}}
  policies: {all: [{}]}
";
    let config = bgp(section);
    assert_eq!(config.confederation.expect("a confederation").members, [Asn(64_512), Asn(64_513)]);
    let [first, second, third, fourth] = config.peers.as_slice() else { panic!("{:?}", config.peers) };
    assert_eq!(first.place, PeerPlace::Address("fe80::1".parse().unwrap()));
    assert_eq!(
        (first.remote_as, first.kind, first.local_as),
        (RemoteAs::Number(Asn(65_001)), PeerKind::External, Some(Asn(64_600)))
    );
    assert_eq!((first.description.as_str(), first.shutdown.as_deref()), ("ToR 1", Some("maintenance until 18:00")));
    assert_eq!((first.port, first.passive, first.device.as_deref()), (179, true, Some("eth0")));
    assert!(matches!(&first.authentication, PeerAuthentication::Md5(path) if path.ends_with("password")));
    assert_eq!(first.distance, PeerDistance::Secured(1));
    assert_eq!((first.timers.hold_time_s, first.timers.keepalive_s), (30, Some(10)));
    assert_eq!((first.timers.connect_retry.as_secs(), first.timers.delay_open), (2, Some(Duration::from_secs(1))));
    let bfd = first.bfd.expect("BFD");
    assert_eq!((bfd.transmit.as_millis(), bfd.receive.as_millis(), bfd.multiplier), (50, 60, 4));
    assert_eq!((bfd.echo, bfd.passive, bfd.strict), (Some(Duration::from_millis(20)), true, true));
    assert_eq!(bfd.echo_transmit, None);
    let ipv4 = first.families.ipv4.expect("IPv4");
    assert_eq!((ipv4.add_path_send, ipv4.add_path_receive, ipv4.extended_next_hop), (Some(0), true, true));
    let limit = ipv4.prefixes_max.expect("a limit");
    assert_eq!(
        (limit.limit, limit.warn_percent, limit.action),
        (1000, 80, LimitAction::Restart(Duration::from_secs(60)))
    );
    assert_eq!((ipv4.next_hop, ipv4.next_hop_address), (PeerNextHop::Own, Some("172.18.0.5".parse().unwrap())));
    let ipv6 = first.families.ipv6.expect("IPv6");
    assert_eq!((ipv6.add_path_send, ipv6.next_hop, ipv6.extended_next_hop), (Some(4), PeerNextHop::Unchanged, false));
    assert_eq!(ipv6.prefixes_max.expect("a limit").action, LimitAction::Warn);
    assert_eq!(first.role, Some((::bgp::wire::capability::Role::Customer, true)));
    assert!(first.route_server_client && first.remove_private_as && !first.enforce_first_as);
    assert!(!first.graceful_restart && !first.extended_messages);
    assert_eq!(first.own_as_max, 2);

    assert_eq!(
        (second.kind, second.port, second.distance),
        (PeerKind::Confederation, 1179, PeerDistance::Multihop(255))
    );
    let PeerAuthentication::Ao { send_id, receive_id, algorithm, .. } = second.authentication else {
        panic!("{second:?}")
    };
    assert_eq!((send_id, receive_id, algorithm), (7, 8, AoAlgorithm::AesCmac));
    assert_eq!((second.families.ipv4.is_some(), second.families.ipv6.is_some()), (true, false));
    assert_eq!(third.place, PeerPlace::Range("10.9.0.0/16".parse().unwrap(), 7));
    assert!(third.passive && third.route_reflector_client && third.kind == PeerKind::Internal);
    assert_eq!((third.distance, third.import == Policy::accept_all()), (PeerDistance::Multihop(3), true));
    assert_eq!((fourth.place.clone(), fourth.bfd), (PeerPlace::Interface("eth1".to_owned()), None));
    assert!(fourth.families.ipv4.expect("IPv4").extended_next_hop && fourth.graceful_restart);
}

#[test]
fn a_peer_has_of_its_group_what_it_does_not_say_itself() {
    let config = bgp("bgp:
  asn: 64512
  peer_groups:
    tor:
      remote_as: 65001
      ttl_security: 1
      bfd: {transmit_ms: 50, receive_ms: 50, echo_transmit_ms: 30}
      timers: {hold_time_s: 30}
      families: {ipv4: {max_prefixes: {limit: 1000}, next_hop: self}, ipv6: {}}
      import: [a, b]
  peers:
    - {address: 192.0.2.1, group: tor}
    - address: 192.0.2.2
      group: tor
      remote_as: 65002
      bfd: {multiplier: 5}
      families: {ipv4: {max_prefixes: {warn_percent: 50}}, ipv6: {enabled: false}}
      import: [b]
  policies: {a: [{then: next}], b: [{}]}
");
    let [first, second] = config.peers.as_slice() else { panic!("{:?}", config.peers) };
    assert_eq!((first.remote_as, second.remote_as), (RemoteAs::Number(Asn(65_001)), RemoteAs::Number(Asn(65_002))));
    assert_eq!((first.distance, second.distance), (PeerDistance::Secured(1), PeerDistance::Secured(1)));
    let bfd = second.bfd.expect("BFD");
    assert_eq!((bfd.transmit.as_millis(), bfd.multiplier), (50, 5));
    assert_eq!(bfd.echo_transmit, Some(Duration::from_millis(30)));
    let limit = |peer: &super::model::bgp::BgpPeer| peer.families.ipv4.expect("IPv4").prefixes_max.expect("a limit");
    assert_eq!((limit(first).limit, limit(first).warn_percent), (1000, 75));
    assert_eq!((limit(second).limit, limit(second).warn_percent), (1000, 50));
    assert_eq!(second.families.ipv4.expect("IPv4").next_hop, PeerNextHop::Own);
    assert_eq!((first.families.ipv6.is_some(), second.families.ipv6.is_some()), (true, false));
    assert_ne!(first.import, second.import);
}

#[test]
fn peers_apply_where_the_labels_of_the_node_fit() {
    let config = bgp("bgp:
  asn: 64512
  peer_groups:
    r1: {remote_as: internal, node_selector: {rack: r1}}
    r2: {remote_as: internal, node_selector: {rack: r2}}
  peers:
    - {address: 192.0.2.1, group: r1}
    - {address: 192.0.2.1, group: r2}
    - {address: 192.0.2.3, group: r1, node_selector: {tier: spine}}
    - {address: 192.0.2.4, group: r1, node_selector: {tier: leaf}}
");
    let places: Vec<String> = config.peers.iter().map(|peer| peer.place.to_string()).collect();
    assert_eq!(places, ["192.0.2.1", "192.0.2.4"]);
}

#[test]
fn every_kind_of_mistake_is_named_with_line_key_and_hint() {
    let peer = |rest: &str| format!("bgp:\n  asn: 64512\n  peers:\n    - {{address: 192.0.2.1, {rest}}}\n");
    let rule = |rest: &str| format!("bgp:\n  asn: 64512\n  policies:\n    in:\n      - {{{rest}}}\n");
    let whole = |rest: &str| format!("bgp:\n  asn: 64512\n  {rest}\n");
    let mut wrong = Vec::new();
    for (section, words) in [
        ("bgp: {}\n".to_owned(), vec!["4: bgp.asn: required key is missing", "MESHD_BGP__ASN"]),
        ("bgp: {asn: 0}\n".to_owned(), vec!["AS 0 is no AS", "64512"]),
        ("bgp: {asn: 23456}\n".to_owned(), vec!["stand-in"]),
        (whole("router_id: 0.0.0.0"), vec!["6: bgp.router_id", "not an identifier"]),
        (whole("hold_time_s: 2"), vec!["6: bgp.hold_time_s", "write 0 for none, or 3"]),
        (whole("graceful_restart: {restart_time_s: 4096}"), vec!["restart_time_s", "4095"]),
        (whole("multipath: {ebgp: 0}"), vec!["bgp.multipath.ebgp", "1 to 128"]),
        (whole("listen: {port: 0}"), vec!["bgp.listen.port"]),
        (whole("import: {metric: 0}"), vec!["bgp.import.metric"]),
        (whole("import: {accept: [10.0.0.0/8 lt 9]}"), vec!["6: bgp.import.accept[0]", "ge LENGTH"]),
        (whole("rpki: {vrps: missing.json}"), vec!["bgp.rpki.vrps: failed to read", "rpki-client"]),
        (whole("rpki: {vrps: wrong.json}"), vec!["bgp.rpki.vrps", "at line 2 column"]),
        (whole("confederation: {id: 64512, members: [64513]}"), vec!["bgp.confederation.id", "is a member"]),
        (whole("bmp: {stations: [{address: nowhere}]}"), vec!["bgp.bmp.stations[0].address", "192.0.2.1:11019"]),
        (whole("mrt: {updates: true}"), vec!["bgp.mrt.folder: required key"]),
        (whole("advertise: [{}]"), vec!["bgp.advertise[0]: this entry advertises nothing"]),
        (whole("advertise: [{pod_cidrs: true, groups: [tor]}]"), vec!["there is no group \"tor\""]),
        (
            "bgp:\n  asn: 64512\n  advertise: [{pod_cidrs: true, peers: [192.0.2.2]}]\n  peers: [{address: 192.0.2.1, remote_as: internal}]\n".to_owned(),
            vec!["6: bgp.advertise[0].peers[0]", "there is no peer \"192.0.2.2\"", "did you mean 192.0.2.1?"],
        ),
        // peers
        (peer("remote_as: here"), vec!["7: bgp.peers[0].remote_as", "write a number, external or internal"]),
        (peer("remot_as: 1"), vec!["7: bgp.peers[0].remot_as: unknown key", "did you mean remote_as?"]),
        (peer("port: 179"), vec!["7: bgp.peers[0].remote_as: required key is missing"]),
        (peer("remote_as: internal, interface: eth0"), vec!["more than one of address, interface and range"]),
        (peer("remote_as: internal, limit: 3"), vec!["only a range of peers has a limit"]),
        (peer("remote_as: internal, group: tor"), vec!["there is no group \"tor\"", "add one"]),
        (peer("remote_as: internal, import: [in]"), vec!["bgp.peers[0].import[0]: there is no policy \"in\""]),
        (peer("remote_as: internal, password_file: missing"), vec!["password_file: failed to read the secret", "chmod 0600"]),
        (peer("remote_as: internal, password_file: open"), vec!["can be read or changed by everybody", "chmod 0600"]),
        (peer("remote_as: internal, password_file: empty"), vec!["the first line of", "is empty"]),
        (peer("remote_as: internal, password_file: password, tcp_ao: {key_file: password}"), vec!["exclude each other"]),
        (peer("remote_as: internal, tcp_ao: {}"), vec!["tcp_ao.key_file: required key"]),
        (peer("remote_as: internal, ttl_security: 1, multihop: 2"), vec!["ttl_security and multihop exclude each other"]),
        (peer("remote_as: internal, ttl_security: 255"), vec!["255 is outside 1 to 254"]),
        (peer("remote_as: internal, role: peer"), vec!["a role is for external peers only"]),
        (peer("remote_as: internal, local_as: 64600"), vec!["only external peers can be told another AS"]),
        (peer("remote_as: internal, route_server_client: true"), vec!["served to external peers only"]),
        (peer("remote_as: external, route_reflector_client: true"), vec!["reflected to internal peers only"]),
        (peer("remote_as: internal, timers: {keepalive_s: 90}"), vec!["do not keep a hold time of 90"]),
        (peer("remote_as: internal, bfd: {transmit_ms: 1}"), vec!["bfd.transmit_ms", "10 or more"]),
        (peer("remote_as: internal, bfd: {echo_ms: 50}"), vec!["bfd.echo_ms", "several hops"]),
        (peer("remote_as: internal, bfd: {echo_transmit_ms: 50}"), vec!["bfd.echo_transmit_ms", "several hops"]),
        (peer("remote_as: 7, bfd: {echo_transmit_ms: 5}"), vec!["bfd.echo_transmit_ms", "10 or more"]),
        (
            whole("peers: [{interface: eth1, remote_as: 7, bfd: {echo_transmit_ms: 50}}]"),
            vec!["bfd.echo_transmit_ms", "link-local"],
        ),
        (peer("remote_as: internal, families: {ipv4: {enabled: false}}"), vec!["no address family is left"]),
        (peer("remote_as: internal, families: {ipv6: {extended_next_hop: true}}"), vec!["IPv6 prefixes always"]),
        (peer("remote_as: internal, families: {ipv4: {max_prefixes: {}}}"), vec!["max_prefixes.limit: required key"]),
        (peer("remote_as: internal, families: {ipv4: {add_path: {send: some}}}"), vec!["add_path.send", "or all"]),
        (whole("peers: [{remote_as: internal}]"), vec!["neither address, interface nor range"]),
        (whole("peers: [{interface: much-too-long-a-name, remote_as: internal}]"), vec!["not the name of a link"]),
        (whole("peers: [{address: \"fe80::1\", remote_as: internal}]"), vec!["is link-local and needs a link"]),
        (whole("peers: [{range: 10.9.0.0/16, remote_as: internal, passive: false}]"), vec!["cannot connect to a range"]),
        (
            whole("peers: [{address: 192.0.2.1, remote_as: internal}, {address: 192.0.2.1, remote_as: 7, role: peer, ttl_security: 1}]"),
            vec!["bgp.peers[1]: peer 192.0.2.1 is configured twice"],
        ),
        // groups, whether used or not
        (whole("peer_groups: {tor: {port: 0}}"), vec!["6: bgp.peer_groups.tor.port"]),
        (whole("peer_groups: {tor: {prt: 0}}"), vec!["6: bgp.peer_groups.tor.prt: unknown key", "did you mean port?"]),
        (
            whole("peer_groups: {tor: {port: 0, remote_as: internal}}\n  peers: [{address: 192.0.2.1, group: tor}]"),
            vec!["6: bgp.peer_groups.tor.port"],
        ),
        (
            whole("peer_groups: {tor: {remote_as: internal}}\n  peers: [{address: 192.0.2.1, group: tr}]"),
            vec!["7: bgp.peers[0].group: there is no group \"tr\"", "did you mean tor?"],
        ),
        // policies and lists
        (whole("policies: {in: []}"), vec!["bgp.policies.in: a policy without rules"]),
        (whole("policies: {in: [{name: a}, {name: a}]}"), vec!["bgp.policies.in[1]: rule \"a\" is there twice"]),
        (whole("prefix_lists: {pods: [10.0.0.1/8]}"), vec!["bgp.prefix_lists.pods[0]", "[write 10.0.0.0/8]"]),
        (whole("community_lists: {c: [65536:1]}"), vec!["bgp.community_lists.c[0]: \"65536:1\" is not a community pattern"]),
        (whole("as_path_lists: {a: [\"_65001\", AS1]}"), vec!["bgp.as_path_lists.a[1]", "at character 1"]),
        (rule("match: {prefix_lists: [pod]}"), vec!["8: bgp.policies.in[0].match.prefix_lists[0]: there is no prefix list"]),
        (rule("match: {community_lists: [c]}"), vec!["there is no community list \"c\""]),
        (rule("unless: {as_path_lists: [c]}"), vec!["in[0].unless.as_path_lists[0]: there is no AS path list \"c\""]),
        (rule("match: {med: 5-1}"), vec!["in[0].match.med", "neither a number nor a range"]),
        (rule("match: {rpki: [unknown]}"), vec!["in[0].match.rpki[0]: unknown value", "possible: valid, invalid"]),
        (rule("set: {med: 1, add_med: 2}"), vec!["MED is changed in two ways"]),
        (rule("set: {local_pref: 1, subtract_local_pref: 2}"), vec!["LOCAL_PREF is changed in two ways"]),
        (rule("set: {med: 1}, then: reject"), vec!["a path that is rejected is not changed"]),
        (rule("set: {add_communities: [\"65000:*\"]}"), vec!["is not a community", "65000:1"]),
        (rule("set: {prepend: {count: 33}}"), vec!["in[0].set.prepend.count: 33 times"]),
        (rule("set: {prepend: {as: theirs}}"), vec!["in[0].set.prepend.as", "write own, first or a number"]),
        (rule("set: {next_hop: me}"), vec!["in[0].set.next_hop", "write self, unchanged or an address"]),
        (rule("then: maybe"), vec!["in[0].then: unknown value \"maybe\""]),
    ] {
        let lines = findings(&section);
        let has_all = |line: &String| words.iter().all(|word| line.contains(word));
        if lines.len() != 1 || !lines.iter().all(has_all) {
            wrong.push(format!("{section}{words:?}\n{lines:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn a_node_without_ipv4_address_needs_an_identifier() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("meshd.yaml");
    fs::write(&path, BASE.replace("172.18.0.5, ", "") + "bgp: {asn: 64512}\n").unwrap();
    let error = Config::load(&path, &Environment::new(), &Overrides::new()).expect_err("no identifier");
    assert!(error.to_string().contains("bgp.router_id: required key is missing"), "{error}");
}

#[test]
fn what_may_not_be_meant_is_a_warning() {
    let peer = |rest: &str| warnings(&format!("bgp: {{asn: 64512, peers: [{{address: 192.0.2.1, {rest}}}]}}\n"));
    let open = "bgp.peers[0]: anybody who can send packets to this node can end the session with 192.0.2.1";
    let nothing = |what: &str, verb: &str| {
        format!("bgp.peers[0].{what}: external peer 192.0.2.1 has no policy: nothing is {verb} (RFC 8212)")
    };
    assert_eq!(peer("remote_as: internal"), Vec::<String>::new());
    assert_eq!(
        peer("remote_as: 65001"),
        [nothing("export", "exported"), nothing("import", "imported"), open.to_owned()]
    );
    assert_eq!(
        peer("remote_as: 65001, ttl_security: 1"),
        [nothing("export", "exported"), nothing("import", "imported")]
    );
    assert_eq!(peer("remote_as: 65001, password_file: password").len(), 2);
    let short = peer("remote_as: internal, timers: {hold_time_s: 3}");
    assert!(short.len() == 1 && short[0].contains("ends the session with 192.0.2.1 under load"), "{short:?}");
    assert_eq!(peer("remote_as: internal, timers: {hold_time_s: 3}, bfd: {}"), Vec::<String>::new());
    let never = peer("remote_as: internal, timers: {hold_time_s: 0}");
    assert!(never.len() == 1 && never[0].contains("is never noticed"), "{never:?}");
    // Advertising and accepting are policies.
    let full = "bgp: {asn: 64512, advertise: [{pod_cidrs: true}], import: {accept: [10.0.0.0/8+]}, peers: [{address: 192.0.2.1, remote_as: 7, ttl_security: 1}]}\n";
    assert_eq!(warnings(full), Vec::<String>::new());
    // A peer of other nodes is their matter.
    assert_eq!(peer("remote_as: 65001, node_selector: {rack: r9}"), Vec::<String>::new());
}

/// What a policy does: the name of the rule, and the new communities, MED and LOCAL_PREF.
fn ask(policy: &Policy, prefix: &str, source: Source) -> (String, String) {
    let octets = Builder::new().number(code::LOCAL_PREF, 100).build();
    let candidate = Candidate {
        prefix: prefix.parse().unwrap(),
        attributes: Attributes(&octets),
        next_hop: None,
        source,
        local_as: Asn(64_512),
        vrps: None,
    };
    let decision = policy.evaluate(&candidate);
    let rule = policy.rule_name(decision.rule).to_owned();
    let outcome = match decision.outcome {
        Outcome::Accept => "accept".to_owned(),
        Outcome::Reject => "reject".to_owned(),
        Outcome::Edit(edited) => {
            let octets = edited.attributes.unwrap_or(octets);
            let view = Attributes(&octets);
            format!("{:?} {:?} {:?}", view.communities().collect::<Vec<_>>(), view.med(), view.local_pref())
        }
    };
    (rule, outcome)
}

fn from_peer(kind: PeerKind) -> Source {
    Source::Peer(PeerSource { kind, asn: Asn(65_009), address: IpAddr::from([192, 0, 2, 9]) })
}

#[test]
fn what_is_advertised_goes_to_whom_it_is_for() {
    let config = bgp("bgp:
  asn: 64512
  peer_groups: {tor: {remote_as: 65001, ttl_security: 1, import: [all]}}
  policies:
    all: [{}]
    out: [{name: pods, match: {sources: [pod-cidr]}, set: {add_med: 5}}]
  advertise:
    - {pod_cidrs: true, communities: [\"1:1\"], med: 7, groups: [tor]}
    - {prefixes: [203.0.113.0/24], peers: [192.0.2.3]}
    - {prefixes: [198.51.100.0/24], aggregates: [{prefix: 10.0.0.0/8, summary_only: true}], local_pref: 50}
  peers:
    - {address: 192.0.2.1, group: tor}
    - {address: 192.0.2.2, group: tor, export: [out]}
    - {address: 192.0.2.3, remote_as: internal}
");
    let originate = &config.originate;
    assert!(originate.pod_cidrs && !originate.service_vips && !originate.node_addresses);
    assert_eq!(originate.prefixes, ["198.51.100.0/24", "203.0.113.0/24"].map(|text| text.parse().unwrap()));
    assert_eq!(originate.aggregates, [("10.0.0.0/8".parse().unwrap(), true)]);
    let pod = ("10.0.1.0/24", Source::Local(LocalSource::PodCidr));
    let one = ("203.0.113.0/24", Source::Local(LocalSource::Static));
    let other = ("198.51.100.0/24", Source::Local(LocalSource::Static));
    let sum = ("10.0.0.0/8", Source::Local(LocalSource::Aggregate));
    let transit = ("8.8.8.0/24", from_peer(PeerKind::External));
    for (peer, (prefix, source), rule, outcome) in [
        (0, pod, "advertise/1", "[65537] Some(7) Some(100)"),
        (0, one, "advertise/for others", "reject"),
        (0, other, "advertise/3", "[] None Some(50)"),
        (0, sum, "advertise/3", "[] None Some(50)"),
        (0, transit, "end of policy", "reject"),
        (1, pod, "out/pods", "[65537] Some(12) Some(100)"),
        (1, other, "end of policy", "reject"),
        (2, pod, "advertise/for others", "reject"),
        (2, one, "advertise/2", "accept"),
        (2, other, "advertise/3", "[] None Some(50)"),
        (2, transit, "end of policy", "accept"),
    ] {
        let found = ask(&config.peers[peer].export, prefix, source);
        assert_eq!(found, (rule.to_owned(), outcome.to_owned()), "peer {peer}, {prefix}");
    }
    // Nothing is looked at per prefix where sources tell entries apart.
    let simple = bgp(
        "bgp: {asn: 64512, advertise: [{pod_cidrs: true, prefixes: [203.0.113.0/24]}], peers: [{address: 192.0.2.1, remote_as: 7, ttl_security: 1, import: [a]}], policies: {a: [{}]}}\n",
    );
    assert!(!simple.peers[0].export.depends_on_prefix());
}

#[test]
fn what_is_imported_depends_on_policies_and_kind() {
    let config = bgp("bgp:
  asn: 64512
  import: {accept: [10.0.0.0/8 ge 16 le 24], default_route: true, martians: not-on-internet, covering_own: true}
  prefix_lists: {pods: [10.1.0.0/16+]}
  policies:
    in:
      - {name: bad, match: {prefix_lists: [pods]}, unless: {peer_as: [65001-65009]}, then: reject}
      - {name: mark, set: {add_communities: [\"1:1\"]}, then: next}
      - {name: pods, match: {prefixes: [10.1.0.0/16+, 10.2.0.0/16+], communities: [\"1:*\"]}, set: {subtract_local_pref: 10}}
  peers:
    - {address: 192.0.2.1, remote_as: 65001, ttl_security: 1}
    - {address: 192.0.2.2, remote_as: 65001, ttl_security: 1, import: [in]}
");
    let guard = config.import.guard;
    assert!(guard.default_route && guard.covering_own && guard.refuse_as_sets && !guard.blackhole);
    assert_eq!(guard.martians, ::bgp::policy::Martians::NotOnInternet);
    let source = from_peer(PeerKind::External);
    for (peer, prefix, rule, outcome) in [
        (0, "10.1.0.0/16", "import/accept", "accept"),
        (0, "10.1.0.0/25", "end of policy", "reject"),
        (1, "10.1.0.0/16", "in/pods", "[65537] None Some(90)"),
        (1, "10.3.0.0/16", "end of policy", "reject"),
    ] {
        let found = ask(&config.peers[peer].import, prefix, source);
        assert_eq!(found, (rule.to_owned(), outcome.to_owned()), "peer {peer}, {prefix}");
    }
    let stranger =
        Source::Peer(PeerSource { kind: PeerKind::External, asn: Asn(7), address: IpAddr::from([192, 0, 2, 9]) });
    assert_eq!(ask(&config.peers[1].import, "10.1.0.0/16", stranger).0, "in/bad");
}

#[test]
fn files_of_the_include_folder_add_peers() {
    let (folder, _) = load("");
    let path = folder.path().join("meshd.yaml");
    fs::create_dir(folder.path().join("conf.d")).unwrap();
    fs::write(folder.path().join("conf.d/a.yaml"), "bgp: {peers: [{address: 192.0.2.2, group: in}]}\n").unwrap();
    let section = "include: conf.d\nbgp: {asn: 64512, peer_groups: {in: {remote_as: internal}}, peers: [{address: 192.0.2.1, group: in}]}\n";
    fs::write(&path, format!("{BASE}{section}")).unwrap();
    let config = Config::load(&path, &Environment::new(), &Overrides::new()).unwrap().bgp.unwrap();
    assert_eq!(config.peers.len(), 2);
    let environment = [("MESHD_BGP__ASN", "64600"), ("MESHD_BGP__LISTEN__ENABLED", "false")];
    let environment: Environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let config = Config::load(&path, &environment, &Overrides::new()).unwrap().bgp.unwrap();
    assert_eq!((config.asn, config.listen.len()), (Asn(64_600), 0));
}

#[test]
fn a_cluster_over_bgp_has_a_number_and_nothing_of_a_store() {
    let mesh = "bgp: {asn: 65001, mesh: {enabled: true}}\n";
    let accept = "accept: {pod_cidrs: [10.2.0.0/16], node_cidrs: [192.0.2.0/24]}";
    let (_folder, config) = load(&format!("{mesh}peers: [{{cluster: east, id: 2, {accept}}}]\n"));
    let config = config.unwrap();
    assert_eq!(config.peers[0].over_bgp.map(|id| id.get()), Some(2));
    assert_eq!(config.bgp.unwrap().mesh_function, Some(77));

    let found = |section: &str, words: &[&str]| {
        let findings = findings(section).join("\n");
        assert!(words.iter().all(|word| findings.contains(word)), "{words:?}: {findings}");
    };
    let entry = format!("peers: [{{cluster: east, id: 2, {accept}}}]\n");
    found(&format!("bgp: {{asn: 65001}}\n{entry}"), &["peers[0].id", "the mesh over BGP is off"]);
    found(&entry, &["peers[0].id", "the mesh over BGP is off"]);
    found(&format!("{mesh}{}", entry.replace("id: 2", "id: 1")), &["this cluster has the id 1 already"]);
    found(&format!("{mesh}{}", entry.replace("id: 2", "id: 300")), &["peers[0].id", "outside 1 to 255"]);
    let twins = format!("{mesh}peers: [{{cluster: east, id: 2, {accept}}}, {{cluster: north, id: 2, {accept}}}]\n");
    found(&twins, &["peers[1].id", "cluster east has the id 2 already"]);
    let both = entry.replace("id: 2", "id: 2, endpoints: [\"http://127.0.0.1:2379\"]");
    found(&format!("{mesh}{both}"), &["peers[0].id", "says its id there"]);
    found(&format!("{mesh}{}", entry.replace("id: 2, ", "")), &["peers[0].endpoints", "required key is missing"]);
}
