//! The BGP speaker.

mod advertise;
mod lists;
mod peer;
mod rules;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ::bgp::policy::{GuardSettings, Martians, PrefixList, RuleSet, Vrps};
use ::bgp::{Asn, RouterId};
use meshd_core::id::{Metric, ROUTE_METRIC};

use self::advertise::Advertisement;
use super::Validator;
use crate::config::error::nearest;
use crate::config::model::NodeConfig;
use crate::config::model::bgp::{
    BgpConfederation, BgpConfig, BgpDecision, BgpImport, BgpMultipath, BgpPeer, BgpRestart, BmpStation, MrtConfig,
};
use crate::config::raw::Name;
use crate::config::raw::bgp::{
    IdentifierText, RawBgp, RawBgpBmp, RawBgpConfederation, RawBgpImport, RawBgpListen, RawBgpMrt, RawBgpMultipath,
    RawBgpRestart, RawMartians,
};
use crate::config::raw::bgp_peer::{RawBgpPeer, RawBgpPeerGroup};

/// Port of BGP.
const BGP_PORT: u16 = 179;
/// Hold time unless said otherwise.
const HOLD_TIME_S: u16 = 90;
/// Largest restart time: 12 bits.
const RESTART_TIME_S_MAX: u16 = 4_095;
/// Largest long-lived stale time: 24 bits.
const LONG_LIVED_S_MAX: u32 = 16_777_215;
/// Paths used at once at most.
const MULTIPATH_MAX: u16 = 128;
/// Routes to install unless said otherwise.
const ROUTES_MAX: u32 = 1_000_000;
/// The number that says "cluster" in a large community unless said otherwise.
const MESH_FUNCTION: u32 = 77;
/// MRT: seconds between two tables, and between two files of messages.
const TABLE_INTERVAL_S: u32 = 7_200;
const ROTATE_S: u32 = 300;
/// MRT: files to keep.
const KEEP: u32 = 24;
/// BMP: seconds between two reports.
const STATISTICS_S: u32 = 60;

/// What the parts of the section have to know of each other.
struct Context {
    asn: Asn,
    confederation: Option<BgpConfederation>,
    port: u16,
    hold_time_s: u16,
    restart: bool,
    policies: BTreeMap<String, Arc<RuleSet>>,
    accept: Option<Arc<PrefixList>>,
    advertisements: Vec<Advertisement>,
}

impl Validator<'_> {
    pub(super) fn bgp(&mut self, raw: Option<RawBgp>, node: &NodeConfig) -> Option<BgpConfig> {
        let RawBgp {
            enabled,
            asn,
            router_id,
            listen,
            hold_time_s,
            graceful_restart,
            multipath,
            decision,
            cluster_id,
            confederation,
            peer_groups,
            peers,
            advertise,
            import,
            policies,
            prefix_lists,
            community_lists,
            as_path_lists,
            rpki,
            mesh,
            bmp,
            mrt,
        } = raw?;
        let asn = match asn {
            Some(asn) => self.asn("bgp.asn", asn),
            None => {
                self.missing("bgp.asn", "bgp: {asn: NUMBER}");
                None
            }
        };
        let router_id = self.router_id(router_id.as_ref(), node);
        let confederation = confederation.and_then(|raw| self.confederation(&raw, asn));
        let lists = self.bgp_lists(&prefix_lists, &community_lists, &as_path_lists);
        let policies = self.bgp_policies(&policies, &lists);
        let (listen, port) = self.bgp_listen(&listen);
        let restart = self.bgp_restart(&graceful_restart);
        let accept = import.accept.as_ref().map(|lines| self.prefix_list("bgp.import.accept", lines));
        let (originate, advertisements) = self.advertise(&advertise, &peers, &peer_groups);
        let context = Context {
            // Nothing is built when it is missing.
            asn: asn.unwrap_or_default(),
            confederation,
            port,
            hold_time_s: self.hold_time("bgp.hold_time_s", hold_time_s.unwrap_or(HOLD_TIME_S)),
            restart: restart.is_some(),
            policies,
            accept,
            advertisements,
        };
        let peers = self.bgp_peers(peer_groups, peers, &context, node);
        let config = BgpConfig {
            asn: context.asn,
            router_id,
            listen,
            port,
            restart,
            multipath: self.bgp_multipath(&multipath),
            decision: BgpDecision {
                always_compare_med: decision.always_compare_med.unwrap_or(false),
                missing_med_is_worst: decision.missing_med_is_worst.unwrap_or(false),
                prefer_oldest: decision.prefer_oldest.unwrap_or(false),
            },
            cluster_id: cluster_id.and_then(|text| self.identifier("bgp.cluster_id", &text)),
            confederation: context.confederation,
            peers,
            originate,
            import: self.bgp_import(&import),
            vrps: rpki.vrps.map(|path| self.path(&path)),
            mesh_function: mesh.enabled.unwrap_or(false).then(|| mesh.function.unwrap_or(MESH_FUNCTION)),
            stations: self.bmp(&bmp),
            mrt: self.mrt(mrt),
        };
        if let Some(path) = &config.vrps {
            self.vrps(path);
        }
        enabled.unwrap_or(true).then_some(config)
    }

    /// A number that is the AS of somebody.
    fn asn(&mut self, key: &str, number: u32) -> Option<Asn> {
        let what = match number {
            0 => "no AS (RFC 7607)",
            23_456 => "the stand-in for large numbers (RFC 6793)",
            65_535 | u32::MAX => "reserved (RFC 7300)",
            _ => return Some(Asn(number)),
        };
        let hint = "for private use there are 64512 to 65534 and 4200000000 to 4294967294";
        self.error(key, format!("AS {number} is {what}"), hint);
        None
    }

    /// An identifier that is written like an address.
    fn identifier(&mut self, key: &str, text: &IdentifierText) -> Option<RouterId> {
        match text.as_str().parse::<Ipv4Addr>() {
            Ok(address) if !address.is_unspecified() => Some(address.into()),
            Ok(_) | Err(_) => {
                let message = format!("{:?} is not an identifier", text.as_str());
                self.error(key, message, "write four numbers such as 172.18.0.5, not all 0");
                None
            }
        }
    }

    fn router_id(&mut self, text: Option<&IdentifierText>, node: &NodeConfig) -> Option<RouterId> {
        if let Some(text) = text {
            return self.identifier("bgp.router_id", text);
        }
        let has_ipv4 = node.addresses.iter().any(IpAddr::is_ipv4);
        if !has_ipv4 && !node.addresses.is_empty() {
            let message = "required key is missing: the node has no IPv4 address to take it from";
            self.error("bgp.router_id", message, "write four numbers that no other speaker has, such as 10.255.0.5");
        }
        node.addresses.iter().find_map(|address| match address {
            IpAddr::V4(address) => Some((*address).into()),
            IpAddr::V6(_) => None,
        })
    }

    fn confederation(&mut self, raw: &RawBgpConfederation, asn: Option<Asn>) -> Option<BgpConfederation> {
        if raw.members.is_empty() {
            self.missing("bgp.confederation.members", "members: [AS, …]");
        }
        let mut members: Vec<Asn> = asn.into_iter().collect();
        for (i, number) in raw.members.iter().enumerate() {
            members.extend(self.asn(&format!("bgp.confederation.members[{i}]"), *number));
        }
        members.sort_unstable();
        members.dedup();
        let Some(number) = raw.id else {
            self.missing("bgp.confederation.id", "confederation: {id: NUMBER}");
            return None;
        };
        let id = self.asn("bgp.confederation.id", number)?;
        if members.contains(&id) {
            let hint = "the confederation has a number of its own; bgp.asn is that of the member";
            self.error("bgp.confederation.id", format!("AS {id} is a member of the confederation"), hint);
        }
        Some(BgpConfederation { id, members })
    }

    fn bgp_listen(&mut self, raw: &RawBgpListen) -> (Vec<SocketAddr>, u16) {
        let port = self.port("bgp.listen.port", raw.port.unwrap_or(BGP_PORT));
        if raw.enabled == Some(false) {
            return (Vec::new(), port);
        }
        let mut addresses = Vec::new();
        for (i, text) in raw.addresses.iter().enumerate() {
            match text.as_str().parse::<IpAddr>() {
                Ok(address) => addresses.push(address),
                Err(_) => {
                    let message = format!("{:?} is not an address", text.as_str());
                    let hint = "write an own address, 0.0.0.0 for all of IPv4 or :: for all of IPv6";
                    self.error(&format!("bgp.listen.addresses[{i}]"), message, hint);
                }
            }
        }
        if raw.addresses.is_empty() {
            addresses = vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        }
        (addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect(), port)
    }

    fn port(&mut self, key: &str, port: u16) -> u16 {
        if port == 0 {
            self.error(key, "port 0 is not possible", "write 179, or the port the other side listens on");
        }
        port
    }

    fn hold_time(&mut self, key: &str, seconds: u16) -> u16 {
        if matches!(seconds, 1 | 2) {
            let hint = "write 0 for none, or 3 and more (RFC 4271)";
            self.error(key, format!("a hold time of {seconds} seconds is not possible"), hint);
        }
        seconds
    }

    fn bgp_restart(&mut self, raw: &RawBgpRestart) -> Option<BgpRestart> {
        let restart_time_s = raw.restart_time_s.unwrap_or(120);
        let long_lived_s = raw.long_lived_s.unwrap_or(0);
        if restart_time_s > RESTART_TIME_S_MAX {
            let message = format!("{restart_time_s} seconds do not fit");
            self.error("bgp.graceful_restart.restart_time_s", message, "write at most 4095, or use long_lived_s");
        }
        if long_lived_s > LONG_LIVED_S_MAX {
            let message = format!("{long_lived_s} seconds do not fit");
            self.error("bgp.graceful_restart.long_lived_s", message, "write at most 16777215 (194 days)");
        }
        let stale_time = Duration::from_secs(raw.stale_time_s.unwrap_or(360).into());
        raw.enabled.unwrap_or(true).then_some(BgpRestart { restart_time_s, stale_time, long_lived_s })
    }

    fn bgp_multipath(&mut self, raw: &RawBgpMultipath) -> BgpMultipath {
        let mut paths = |key: &str, paths: Option<u16>| {
            let paths = paths.unwrap_or(1);
            if !(1..=MULTIPATH_MAX).contains(&paths) {
                self.error(key, format!("{paths} paths at once are not possible"), "write 1 to 128");
            }
            paths
        };
        BgpMultipath {
            external: paths("bgp.multipath.ebgp", raw.ebgp),
            internal: paths("bgp.multipath.ibgp", raw.ibgp),
            relax: raw.relax.unwrap_or(false),
            weighted: raw.weighted.unwrap_or(true),
        }
    }

    fn bgp_import(&mut self, raw: &RawBgpImport) -> BgpImport {
        let defaults = GuardSettings::default();
        let guard = GuardSettings {
            martians: match raw.martians {
                Some(RawMartians::Accept) => Martians::Accept,
                Some(RawMartians::NotOnInternet) => Martians::NotOnInternet,
                Some(RawMartians::Unroutable) | None => Martians::Unroutable,
            },
            default_route: raw.default_route.unwrap_or(defaults.default_route),
            covering_own: raw.covering_own.unwrap_or(defaults.covering_own),
            refuse_as_sets: raw.refuse_as_sets.unwrap_or(defaults.refuse_as_sets),
            graceful_shutdown: raw.graceful_shutdown.unwrap_or(defaults.graceful_shutdown),
            blackhole: raw.blackhole.unwrap_or(defaults.blackhole),
        };
        let metric = raw.metric.unwrap_or(ROUTE_METRIC);
        if metric == 0 {
            self.error("bgp.import.metric", "metric 0 is not possible", "write 1 or more; the default is 77");
        }
        BgpImport {
            guard,
            install: raw.install.unwrap_or(true),
            metric: Metric(metric),
            routes_max: raw.max_routes.unwrap_or(ROUTES_MAX),
        }
    }

    fn vrps(&mut self, path: &std::path::Path) {
        let key = "bgp.rpki.vrps";
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) => {
                let hint = "export it from the validator (rpki-client -j, routinator vrps --format json)";
                self.error(key, format!("failed to read {}: {error}", path.display()), hint);
                return;
            }
        };
        if let Err(error) = Vrps::from_json(&text) {
            let hint = "it must be the JSON export of a validator: {\"roas\": [{\"asn\", \"prefix\", \"maxLength\"}]}";
            self.error(key, format!("{}: {error}", path.display()), hint);
        }
    }

    fn bmp(&mut self, raw: &RawBgpBmp) -> Vec<BmpStation> {
        let mut stations = Vec::new();
        for (i, raw) in raw.stations.iter().enumerate() {
            let key = format!("bgp.bmp.stations[{i}].address");
            let Some(text) = &raw.address else {
                self.missing(&key, "address: \"ADDRESS:PORT\"");
                continue;
            };
            let Some(address) = self.socket_address(&key, text.as_str(), "192.0.2.1:11019") else { continue };
            self.port(&key, address.port());
            stations.push(BmpStation {
                address,
                adj_rib_in_pre_policy: raw.adj_rib_in_pre_policy.unwrap_or(true),
                adj_rib_in_post_policy: raw.adj_rib_in_post_policy.unwrap_or(false),
                loc_rib: raw.loc_rib.unwrap_or(false),
                adj_rib_out: raw.adj_rib_out.unwrap_or(false),
                statistics: seconds(raw.statistics_s.unwrap_or(STATISTICS_S)),
            });
        }
        stations
    }

    fn mrt(&mut self, raw: RawBgpMrt) -> Option<MrtConfig> {
        let updates = raw.updates.unwrap_or(false);
        let Some(folder) = raw.folder else {
            if updates {
                self.missing("bgp.mrt.folder", "folder: PATH");
            }
            return None;
        };
        let rotate = seconds(raw.rotate_s.unwrap_or(ROTATE_S));
        if updates && rotate.is_none() {
            self.error("bgp.mrt.rotate_s", "0 seconds are not possible", "write for instance 300");
        }
        Some(MrtConfig {
            folder: self.path(&folder),
            table_interval: seconds(raw.table_interval_s.unwrap_or(TABLE_INTERVAL_S)),
            updates_rotate: if updates { rotate } else { None },
            keep: raw.keep.unwrap_or(KEEP).max(1),
        })
    }

    /// Groups are checked for themselves, whether or not a peer uses them. Of the peers, those for this node are kept.
    fn bgp_peers(
        &mut self,
        groups: BTreeMap<String, RawBgpPeerGroup>,
        raw: Vec<RawBgpPeer>,
        context: &Context,
        node: &NodeConfig,
    ) -> Vec<BgpPeer> {
        let names: Vec<String> = groups.keys().cloned().collect();
        for (name, group) in groups {
            self.bgp_group(&format!("bgp.peer_groups.{name}"), group, context);
        }
        let mut peers: Vec<BgpPeer> = Vec::new();
        for (i, raw) in raw.into_iter().enumerate() {
            let key = format!("bgp.peers[{i}]");
            if let Some(group) = &raw.group
                && !names.contains(&group.0)
            {
                self.unknown(&format!("{key}.group"), "group", group, names.iter().map(String::as_str));
                // What else is missing is likely to be in the group that was meant.
                continue;
            }
            let applies = raw.node_selector.iter().all(|(label, value)| node.labels.get(label) == Some(value));
            let before = self.warnings.len();
            let Some(peer) = self.bgp_peer(&key, raw, context) else { continue };
            if !applies {
                // What is odd about it matters where it applies.
                self.warnings.truncate(before);
                continue;
            }
            if peers.iter().any(|other| other.place == peer.place) {
                let hint = "remove one of the two, or let node_selector choose between them";
                self.error(&key, format!("peer {} is configured twice", peer.place), hint);
            }
            peers.push(peer);
        }
        peers
    }

    /// A name that nothing has.
    fn unknown<'a>(&mut self, key: &str, what: &str, name: &Name, known: impl Iterator<Item = &'a str> + Clone) {
        let hint = match nearest(name.as_str(), known.clone()) {
            Some(near) => format!("did you mean {near}?"),
            None => match known.collect::<Vec<_>>() {
                known if known.is_empty() => format!("there is no {what} in the section bgp; add one"),
                known => format!("there are: {}", known.join(", ")),
            },
        };
        self.error(key, format!("there is no {what} {:?}", name.as_str()), hint);
    }
}

/// Some time; 0 means none.
fn seconds(seconds: u32) -> Option<Duration> {
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}
