//! Who is who in these tests, and the configurations that they share.
//!
//! Router number N has the addresses 192.0.2.N and fd00::N and originates 10.N.0.0/24, with communities of all three kinds
//! ([`assert_marked`]), and fd10:N::/64. Ours is number 10 and has the prefix 10.0.1.0/24 of workloads.
//! Nobody waits longer than a second before connecting again.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tests::routers::{Blueprint, EXABGP_API, Network, Path, Router};

/// Our AS.
pub(super) const OURS_AS: u32 = 4_200_000_000;
/// Our address, as peers know us.
pub(super) const OURS: &str = "192.0.2.10";
/// The same for IPv6.
pub(super) const OURS_V6: &str = "fd00::10";

/// The node of ours in a configuration; with [`PODS`] behind it, it has workloads.
pub(super) const NODE: &str = "name: ours, addresses: [192.0.2.10]";
/// Its prefix of workloads.
pub(super) const PODS: &str = ", pod_cidrs: [10.0.1.0/24]";

/// A key file that only its owner reads, as ours wants it; made by [`with_key`].
pub(super) const KEY_FILE: &str = "/run/bgp.key";

/// What every path of IPv4 has to carry after it crossed sessions.
pub(super) fn assert_marked(path: &Path, as_path: &str) {
    assert_eq!((path.origin.as_str(), path.as_path.as_str()), ("igp", as_path), "{path:?}");
    assert_eq!(path.communities, ["65001:1".to_owned(), "65001:2".to_owned()].into(), "{path:?}");
    assert_eq!(path.large, ["4200000001:1:2".to_owned()].into(), "{path:?}");
    assert_eq!(path.extended, ["rt:65001:7".to_owned()].into(), "{path:?}");
}

/// No router has complained.
pub(super) fn assert_content(network: &Network, routers: &[&str]) {
    for router in routers {
        assert_eq!(network.router(router).unwrap().complaints().unwrap(), Vec::<String>::new(), "{router}");
    }
}

/// The configuration of one node with its own store: `node` stands between the braces, and `bgp` are the lines of that section
/// behind our AS.
pub(super) fn configuration(node: &str, asn: u32, bgp: &str) -> String {
    format!(
        r#"
cluster: {{name: west, id: 1}}
node: {{{node}}}
store: {{mode: embedded, listen: "127.0.0.1:2379"}}
bgp:
  asn: {asn}
{bgp}
"#
    )
}

/// A router of ours; each of `peers` is what stands between braces in the list of peers, and `more` are lines of the section
/// `bgp`. Peers of the group `open` may say everything and are told everything.
pub(super) fn ours(peers: &[&str], more: &str) -> Blueprint {
    let mut bgp = r#"  policies: {all: [{}]}
  advertise: [{pod_cidrs: true, communities: ["65001:1", "65001:2", "4200000001:1:2", "rt:65001:7"]}]
  peer_groups:
    open: {import: [all], export: [all], families: {ipv4: {}, ipv6: {}}, timers: {connect_retry_s: 1}}
"#
    .to_owned();
    for line in more.lines() {
        bgp.push_str(&format!("  {line}\n"));
    }
    bgp.push_str("  peers:\n");
    for peer in peers {
        bgp.push_str(&format!("    - {{{peer}}}\n"));
    }
    Blueprint::meshd("ours", &configuration(&format!("{NODE}{PODS}"), OURS_AS, &bgp))
        .address(&format!("{OURS}/24"))
        .address(&format!("{OURS_V6}/64"))
}

/// FRR and BIRD with ours between them, when each has what the other one originates.
pub(super) fn frr_and_bird() -> Network {
    frr_and_bird_with("")
}

/// The same with more lines in the section `bgp` of ours.
pub(super) fn frr_and_bird_with(more: &str) -> Network {
    tests::need_root();
    let network = Network::up(&[
        Frr::USUAL.blueprint("frr"),
        Bird::USUAL.blueprint("bird"),
        ours(
            &[
                "group: open, address: 192.0.2.2, remote_as: 65002",
                "group: open, address: 192.0.2.1, remote_as: 4200000001",
            ],
            more,
        ),
    ])
    .unwrap();
    network.router("frr").unwrap().wait_path("10.1.0.0/24").unwrap();
    network.router("bird").unwrap().wait_path("10.2.0.0/24").unwrap();
    network
}

/// Routers number 3, which waits for our connection, and number 4, which calls us: each gets everything of ours and of the other
/// one, and we of both.
pub(super) fn both_directions(waiting: Blueprint, calling: Blueprint, is_gobgp: bool) -> Network {
    tests::need_root();
    let ours = ours(
        &[
            "group: open, address: 192.0.2.3, remote_as: 4200000003",
            "group: open, address: 192.0.2.4, remote_as: 4200000004, passive: true",
        ],
        "",
    );
    let network = Network::up(&[waiting, calling, ours]).unwrap();
    let (waiting, calling, ours) =
        (network.router("waiting").unwrap(), network.router("calling").unwrap(), network.router("ours").unwrap());
    for (router, number, ends) in [(&waiting, 3, "remote_address"), (&calling, 4, "local_address")] {
        router.wait_established(OURS).unwrap();
        originate(router, number, is_gobgp);
        let address = format!("192.0.2.{number}");
        ours.wait_established(&address).unwrap();
        let view = neighbor(&ours, &address).unwrap();
        assert!(view[ends].as_str().unwrap().ends_with(":179"), "who connected? {view}");
        assert_marked(&ours.wait_path(&format!("10.{number}.0.0/24")).unwrap(), &format!("420000000{number}"));
        assert_marked(&router.wait_path("10.0.1.0/24").unwrap(), "4200000000");
    }
    for (router, number) in [(&waiting, 4), (&calling, 3)] {
        let path = router.wait_path(&format!("10.{number}.0.0/24")).unwrap();
        assert_marked(&path, &format!("4200000000 420000000{number}"));
        assert_eq!(path.next_hops, [OURS]);
        let path = router.wait_path(&format!("fd10:{number}::/64")).unwrap();
        assert_eq!(path.as_path, format!("4200000000 420000000{number}"));
    }
    network
}

/// Puts the key where our configuration names it.
pub(super) fn with_key(ours: Blueprint, key: &str) -> Blueprint {
    ours.run(&format!("sh -c 'umask 077; echo {key} > {KEY_FILE}'"))
}

/// Replaces words in the configuration of ours and has it read again.
pub(super) fn reconfigure(ours: &Router, from: &str, to: &str) {
    const FILE: &str = "/etc/meshd/meshd.yaml";
    let text = ours.run(&["cat", FILE]).unwrap();
    assert!(text.contains(from), "no {from:?} in {text}");
    // The file is mounted: it is written to, not replaced.
    ours.run(&["sh", "-c", "printf %s \"$1\" > \"$2\"", "sh", &text.replace(from, to), FILE]).unwrap();
    ours.node().daemon("meshd").unwrap().reload().unwrap();
}

/// What `meshd bgp neighbors` says about one peer.
pub(super) fn neighbor(ours: &Router, name: &str) -> anyhow::Result<Value> {
    let views = ours.json(&format!("bgp neighbors {name}"))?;
    views.get(0).cloned().with_context(|| format!("no neighbor {name}: {views}"))
}

/// Waits until the last session ended for a reason with these words.
pub(super) fn wait_reset(ours: &Router, name: &str, words: &str) {
    wait_reason(ours, name, "last_reset", words);
}

/// Waits until the last attempt failed for a reason with these words.
pub(super) fn wait_failure(ours: &Router, name: &str, words: &str) {
    wait_reason(ours, name, "last_failure", words);
}

fn wait_reason(ours: &Router, name: &str, field: &str, words: &str) {
    ours.wait(&format!("{field} of {name} with {words:?}"), || {
        let view = neighbor(ours, name)?;
        let reason = view[field]["reason"].as_str().unwrap_or_default();
        ensure!(reason.contains(words), "it says {reason:?}");
        Ok(())
    })
    .unwrap();
}

/// Waits until `meshd status` names the peer with these words.
pub(super) fn wait_problem(ours: &Router, name: &str, words: &str) {
    ours.wait(&format!("a problem of {name} with {words:?}"), || {
        // Not healthy, which the exit status says as well.
        let status: Value = serde_json::from_str(&ours.node().exec(&["meshd", "status", "-o", "json"])?.stdout)?;
        let problems = status["problems"].as_array().context("a list")?;
        let component = format!("bgp/{name}");
        let found = problems.iter().any(|problem| {
            problem["component"] == component.as_str()
                && problem["message"].as_str().is_some_and(|message| message.contains(words))
        });
        ensure!(found, "{problems:?}");
        Ok(())
    })
    .unwrap();
}

/// Waits for words in the log of a router.
pub(super) fn wait_log(router: &Router, words: &str) {
    router
        .wait(&format!("{words:?} in the log"), || {
            ensure!(router.log()?.contains(words), "not there");
            Ok(())
        })
        .unwrap();
}

/// A number of the kernel's about the network of a router, such as `TcpExtTCPMD5Failure`.
pub(super) fn counter(router: &Router, name: &str) -> anyhow::Result<u64> {
    let text = router.run(&["nstat", "-asz", name])?;
    let line = text.lines().find(|line| line.starts_with(name)).with_context(|| text.clone())?;
    Ok(line.split_whitespace().nth(1).with_context(|| text.clone())?.parse()?)
}

/// Waits until the kernel has counted something.
pub(super) fn wait_counted(router: &Router, name: &str) {
    router
        .wait(&format!("{name} above 0"), || {
            ensure!(counter(router, name)? > 0, "it is 0");
            Ok(())
        })
        .unwrap();
}

/// Routes of a protocol at the kernel, as `PREFIX via GATEWAY`.
pub(super) fn installed(router: &Router, protocol: &str) -> anyhow::Result<Vec<String>> {
    let mut routes = Vec::new();
    for family in ["-4", "-6"] {
        let output = router.node().exec(&["ip", family, "-j", "route", "show", "proto", protocol])?;
        for route in output.json()?.as_array().context("a list")? {
            let gateway = match (route["gateway"].as_str(), route["via"]["host"].as_str()) {
                (Some(gateway), _) => gateway.to_owned(),
                (None, Some(via)) => format!("{} {via}", route["via"]["family"].as_str().unwrap_or_default()),
                (None, None) => "nothing".to_owned(),
            };
            routes.push(format!("{} via {gateway}", route["dst"].as_str().context("a prefix")?));
        }
    }
    routes.sort();
    Ok(routes)
}

/// Waits until the kernel has exactly these routes of a protocol.
pub(super) fn wait_installed(router: &Router, protocol: &str, wanted: &[&str]) {
    router
        .wait("the routes at the kernel", || {
            let routes = installed(router, protocol)?;
            ensure!(routes == wanted, "it has {routes:?}");
            Ok(())
        })
        .unwrap();
}

/// FRR with one peer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frr<'a> {
    /// Its number; its AS is 65000 and that.
    pub(super) number: u8,
    /// The peer and its AS.
    pub(super) peer: (&'a str, u32),
    /// Settings of the peer, each behind `neighbor PEER`.
    pub(super) session: &'a [&'a str],
    /// The same inside of IPv4.
    pub(super) ipv4: &'a [&'a str],
    /// Further lines of `router bgp`.
    pub(super) more: &'a [&'a str],
}

impl Frr<'_> {
    /// Number 2 with us as its peer.
    pub(super) const USUAL: Self = Self { number: 2, peer: (OURS, OURS_AS), session: &[], ipv4: &[], more: &[] };

    /// Its configuration. The route map comes first: a later one would be applied only after five seconds.
    pub(super) fn text(self) -> String {
        let Self { number, peer: (peer, asn), session, ipv4, more } = self;
        let remote = if peer.contains(['.', ':']) {
            format!(" neighbor {peer} remote-as {asn}\n")
        } else {
            format!(" neighbor {peer} interface remote-as {asn}\n")
        };
        let session: String = session.iter().map(|line| format!(" neighbor {peer} {line}\n")).collect();
        let ipv4: String = ipv4.iter().map(|line| format!("  neighbor {peer} {line}\n")).collect();
        let more: String = more.iter().map(|line| format!(" {line}\n")).collect();
        format!(
            "route-map marked permit 10
 set community 65001:1 65001:2
 set large-community 4200000001:1:2
 set extcommunity rt 65001:7
router bgp 6500{number}
 bgp router-id 192.0.2.{number}
 no bgp ebgp-requires-policy
 bgp log-neighbor-changes
 no bgp network import-check
{remote} neighbor {peer} timers connect 1
{session}{more} address-family ipv4 unicast
  network 10.{number}.0.0/24 route-map marked
  neighbor {peer} activate
{ipv4} exit-address-family
 address-family ipv6 unicast
  network fd10:{number}::/64
  neighbor {peer} activate
 exit-address-family
"
        )
    }

    /// It with its addresses.
    pub(super) fn blueprint(self, name: &str) -> Blueprint {
        placed(Blueprint::frr(name, &self.text()).zebra(""), self.number)
    }
}

/// BIRD with one peer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bird<'a> {
    /// Its number; its AS is 4200000000 and that.
    pub(super) number: u8,
    /// The peer and its AS.
    pub(super) peer: (&'a str, u32),
    /// Lines of the protocol, which is called `toward`.
    pub(super) session: &'a str,
    /// Lines of the channel of IPv4, in place of importing and exporting everything.
    pub(super) ipv4: &'a str,
    /// Further protocols.
    pub(super) more: &'a str,
}

impl Bird<'_> {
    /// Number 1 with us as its peer.
    pub(super) const USUAL: Self =
        Self { number: 1, peer: (OURS, OURS_AS), session: "", ipv4: "import all; export all;", more: "" };

    /// Its configuration.
    pub(super) fn text(self) -> String {
        let Self { number, peer: (peer, asn), session, ipv4, more } = self;
        let local = if peer.contains(':') { format!("fd00::{number}") } else { format!("192.0.2.{number}") };
        format!(
            "
router id 192.0.2.{number};
protocol static {{ ipv4; route 10.{number}.0.0/24 blackhole {{
  bgp_med = 7; bgp_community.add((65001,1)); bgp_community.add((65001,2));
  bgp_large_community.add((4200000001,1,2)); bgp_ext_community.add((rt,65001,7)); }}; }}
protocol static {{ ipv6; route fd10:{number}::/64 blackhole; }}
protocol bgp toward {{ local {local} as 420000000{number}; neighbor {peer} as {asn};
  connect delay time 1; connect retry time 1; error wait time 1, 2; {session}
  ipv4 {{ {ipv4} }}; ipv6 {{ import all; export all; }}; }}
{more}
"
        )
    }

    /// It with its addresses.
    pub(super) fn blueprint(self, name: &str) -> Blueprint {
        placed(Blueprint::bird(name, &self.text()), self.number)
    }
}

/// GoBGP with one peer; `passive` when it waits to be connected to. What it originates it is told by [`originate`].
pub(super) fn gobgp(name: &str, number: u8, (peer, asn): (&str, u32), passive: bool) -> Blueprint {
    let text = format!(
        "
global: {{config: {{as: 420000000{number}, router-id: 192.0.2.{number}}}}}
neighbors:
  - config: {{neighbor-address: {peer}, peer-as: {asn}}}
    transport: {{config: {{passive-mode: {passive}}}}}
    timers: {{config: {{connect-retry: 1, idle-hold-time-after-reset: 1}}}}
    afi-safis: [{{config: {{afi-safi-name: ipv4-unicast}}}}, {{config: {{afi-safi-name: ipv6-unicast}}}}]
"
    );
    placed(Blueprint::gobgp(name, &text), number)
}

/// ExaBGP with one peer. What it originates it is told by [`originate`].
pub(super) fn exabgp(name: &str, number: u8, (peer, asn): (&str, u32), session: &str) -> Blueprint {
    let text = format!(
        "neighbor {peer} {{ router-id 192.0.2.{number}; local-address 192.0.2.{number};
           local-as 420000000{number}; peer-as {asn}; {session}
           family {{ ipv4 unicast; ipv6 unicast; }} {EXABGP_API} }}"
    );
    placed(Blueprint::exabgp(name, &text), number)
}

/// Has GoBGP or ExaBGP originate what FRR and BIRD have in their configuration.
pub(super) fn originate(router: &Router, number: u8, is_gobgp: bool) {
    let (v4, v6) = (format!("10.{number}.0.0/24"), format!("fd10:{number}::/64"));
    if is_gobgp {
        let marks = "origin igp community 65001:1,65001:2 large-community 4200000001:1:2 rt 65001:7";
        router.text(&format!("global rib add {v4} {marks}")).unwrap();
        router.text(&format!("global rib add -a ipv6 {v6} nexthop fd00::{number}")).unwrap();
    } else {
        let marks = "community [65001:1 65001:2] large-community [4200000001:1:2] extended-community [target:65001:7]";
        router.tell(&format!("announce route {v4} next-hop 192.0.2.{number} {marks}")).unwrap();
        router.tell(&format!("announce route {v6} next-hop fd00::{number}")).unwrap();
    }
}

fn placed(router: Blueprint, number: u8) -> Blueprint {
    router.address(&format!("192.0.2.{number}/24")).address(&format!("fd00::{number}/64"))
}
