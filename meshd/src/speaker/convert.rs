//! From the configuration to what the speaker is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU8,
    sync::Arc,
};

use bgp::{
    PerFamily, RouterId,
    policy::{ImportGuard, LocalSource, Vrps},
    rib::{Aggregate, DecisionOptions, Limits, LocalRoute, NextHopMode, PeerSettings as TableSettings, RibConfig},
    session::{
        Confederation, FamilyConfig, HostName, IfName, PeerKey, RemoteAs, RestartConfig, RoleConfig, SessionConfig,
    },
    speaker::PeerConfig,
    wire::attributes::{Builder, LargeCommunity, Origin, code},
};
use ipnet::IpNet;
use meshd_core::{
    clustermesh::{Accept, PeerContext},
    derive::LocalNode,
    id::{ClusterId, ClusterName},
};

use super::{
    bfd,
    settings::{MeshSettings, PeerSettings, RangeSettings, Settings},
    transport::{AoKey, Distance, Key, Secret, Transport, ao},
};
use crate::config::{
    Config,
    model::{
        ClusterConfig, Peer,
        bgp::{
            AoAlgorithm, BgpConfig, BgpPeer, LimitAction, PeerAuthentication, PeerBfd, PeerDistance, PeerFamily,
            PeerNextHop, PeerPlace, RemoteAs as ConfiguredAs,
        },
    },
    secret,
};

/// What of the configuration the speaker follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpeakerConfig {
    /// Its section.
    pub bgp: BgpConfig,
    /// The own cluster.
    pub cluster: ClusterConfig,
    /// Remote clusters that BGP may tell.
    pub peers: Vec<Peer>,
    /// Remote clusters that a store tells.
    pub by_store: BTreeSet<ClusterName>,
}

impl SpeakerConfig {
    /// `None` when there is to be no speaker.
    #[must_use]
    pub fn of(config: &Config) -> Option<Self> {
        let bgp = config.bgp.clone()?;
        let (peers, with_store): (Vec<Peer>, Vec<Peer>) =
            config.peers.iter().cloned().partition(|peer| peer.over_bgp.is_some());
        let mut by_store: BTreeSet<ClusterName> = with_store.into_iter().map(|peer| peer.cluster).collect();
        let files = config.peers_dir.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten();
        // Whatever has the name of a cluster there may be one: its rows are not the speaker's to remove.
        by_store.extend(files.filter_map(|file| file.ok()?.file_name().to_str()?.parse().ok()));
        by_store.retain(|name| !peers.iter().any(|peer| peer.cluster == *name));
        Some(Self { bgp, cluster: config.cluster.clone(), peers, by_store })
    }
}

/// A peer that cannot be what it is configured to be. It is kept down: a session never runs with less than was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The peer.
    pub peer: String,
    /// What is wrong, and what to do.
    pub reason: String,
}

/// A speaker needs an identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the BGP speaker needs a router identifier: this node has no IPv4 address; set bgp.router_id")]
pub struct NoRouterId;

/// What the speaker of this node is told, and which peers had to be kept down. `known` are the VRPs of before, which stay
/// when the file is as it was, or wrong.
///
/// # Errors
/// [`NoRouterId`].
pub fn settings(
    whole: &SpeakerConfig,
    local: &LocalNode,
    known: Option<Arc<Vrps>>,
) -> Result<(Settings, Vec<Refused>), NoRouterId> {
    let config = &whole.bgp;
    let router_id = router_id(config, local).ok_or(NoRouterId)?;
    let mut rib = RibConfig::new(config.asn, router_id, 0);
    rib.cluster_id = config.cluster_id.unwrap_or(router_id);
    rib.confederation = config.confederation.as_ref().map(|it| it.id);
    rib.decision = DecisionOptions {
        always_compare_med: config.decision.always_compare_med,
        missing_med_is_worst: config.decision.missing_med_is_worst,
        prefer_oldest: config.decision.prefer_oldest,
        multipath_external: config.multipath.external,
        multipath_internal: config.multipath.internal,
        multipath_relax: config.multipath.relax,
        weighted: config.multipath.weighted,
    };
    let guard = Arc::new(ImportGuard::new(local.reserved(), config.import.guard));
    let maker = Maker { config, router_id, host: local.name.as_str(), guard };
    let (mut peers, mut ranges, mut refused) = (BTreeMap::new(), Vec::new(), Vec::new());
    for peer in &config.peers {
        let made = maker.peer(peer, &mut refused);
        match (&peer.place, key(peer)) {
            (PeerPlace::Range(prefix, limit), _) => {
                let limit = usize::try_from(*limit).unwrap_or(usize::MAX);
                ranges.push(RangeSettings { prefix: *prefix, limit, template: made });
            }
            (_, Some(key)) => {
                peers.insert(key, made);
            }
            (place, None) => refused.push(Refused {
                peer: place.to_string(),
                reason: "a link-local address needs `device`, the link it is on".to_owned(),
            }),
        }
    }
    let settings = Settings {
        rib,
        listen: config.listen.clone(),
        peers,
        ranges,
        originate: originate(config, local, whole.cluster.id),
        aggregates: config.originate.aggregates.iter().map(|(prefix, only)| (*prefix, aggregate(*only))).collect(),
        install: config.import.install,
        routes_max: usize::try_from(config.import.routes_max).unwrap_or(usize::MAX),
        vrps: vrps(config, known, &mut refused),
        name: local.name.to_string(),
        cluster: local.cluster.clone(),
        service_vips: config.originate.service_vips,
        reserved: local.reserved(),
        guard: config.import.guard,
        mesh: mesh(whole, local),
        stations: config.stations.clone(),
        mrt: config.mrt.clone(),
    };
    Ok((settings, refused))
}

/// Who may say what over BGP.
fn mesh(config: &SpeakerConfig, local: &LocalNode) -> MeshSettings {
    let function = config.bgp.mesh_function;
    let context = |(peer, id): (&Peer, ClusterId)| PeerContext {
        cluster: peer.cluster.clone(),
        id,
        max_clusters: config.cluster.max_clusters,
        own: false,
        accept: Accept { pod_cidrs: peer.accept.pod_cidrs.clone(), node_cidrs: peer.accept.node_cidrs.clone() },
        own_pod_cidrs: local.pod_cidrs.clone(),
        own_addresses: local.addresses.clone(),
    };
    let told = config.peers.iter().filter_map(|peer| Some((peer, peer.over_bgp?)));
    MeshSettings {
        function,
        clusters: told.filter(|_| function.is_some()).map(context).collect(),
        by_store: config.by_store.clone(),
    }
}

/// The VRPs of the file. Without them every path counts as not found, which rules may say something about.
fn vrps(config: &BgpConfig, known: Option<Arc<Vrps>>, refused: &mut Vec<Refused>) -> Option<Arc<Vrps>> {
    let file = config.vrps.as_ref()?;
    let read = std::fs::read(file).map_err(|error| format!("failed to read {}: {error}", file.display()));
    match read.and_then(|text| Vrps::from_json(&text).map_err(|error| format!("{}: {error}", file.display()))) {
        Ok(vrps) if known.as_deref() == Some(&vrps) => known,
        Ok(vrps) => Some(Arc::new(vrps)),
        Err(reason) => {
            refused.push(Refused { peer: "rpki".to_owned(), reason });
            known
        }
    }
}

fn router_id(config: &BgpConfig, local: &LocalNode) -> Option<RouterId> {
    let first = local.addresses.iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(RouterId::from(*address)),
        IpAddr::V6(_) => None,
    });
    config.router_id.or(first)
}

fn key(peer: &BgpPeer) -> Option<PeerKey> {
    let link = || peer.device.as_deref().and_then(|name| name.parse::<IfName>().ok());
    match &peer.place {
        PeerPlace::Address(ip @ IpAddr::V6(v6)) if v6.is_unicast_link_local() => {
            Some(PeerKey::Address(*ip, Some(link()?)))
        }
        PeerPlace::Address(ip) => Some(PeerKey::Address(*ip, None)),
        PeerPlace::Interface(name) => name.parse().ok().map(PeerKey::Interface),
        PeerPlace::Range(..) => None,
    }
}

struct Maker<'a> {
    config: &'a BgpConfig,
    router_id: RouterId,
    host: &'a str,
    guard: Arc<ImportGuard>,
}

impl Maker<'_> {
    fn peer(&self, peer: &BgpPeer, refused: &mut Vec<Refused>) -> PeerSettings {
        let mut shutdown = peer.shutdown.clone();
        let key = match key_of(&peer.authentication) {
            Ok(secret) => secret,
            Err(reason) => {
                refused.push(Refused { peer: peer.place.to_string(), reason });
                shutdown.get_or_insert_with(|| "authentication is not available".to_owned());
                None
            }
        };
        let next_hop = |family: &Option<PeerFamily>| family.as_ref().and_then(|family| family.next_hop_address);
        PeerSettings {
            config: PeerConfig {
                session: self.session(peer),
                tables: self.tables(peer),
                refuse_as_sets: self.config.import.guard.refuse_as_sets,
            },
            transport: Transport {
                key,
                distance: match peer.distance {
                    PeerDistance::Adjacent => Distance::Adjacent,
                    PeerDistance::Secured(hops) => Distance::Secured(hops),
                    PeerDistance::Multihop(hops) => Distance::Multihop(hops),
                },
                source: peer.source,
                device: peer.device.clone(),
            },
            port: peer.port,
            description: peer.description.clone(),
            bfd: peer.bfd.as_ref().map(bfd_settings),
            shutdown,
            next_hop: [next_hop(&peer.families.ipv4), next_hop(&peer.families.ipv6)],
        }
    }

    fn session(&self, peer: &BgpPeer) -> SessionConfig {
        let remote_as = match peer.remote_as {
            ConfiguredAs::Number(asn) => RemoteAs::Number(asn),
            ConfiguredAs::External => RemoteAs::External,
            ConfiguredAs::Internal => RemoteAs::Internal,
        };
        let restart = self.config.restart.filter(|_| peer.graceful_restart);
        let family = |family: &PeerFamily| FamilyConfig {
            add_path_receive: family.add_path_receive,
            add_path_send: family.add_path_send.is_some(),
            extended_next_hop: family.extended_next_hop,
            restart: restart.is_some(),
            stale_time_s: restart.map(|restart| restart.long_lived_s).filter(|seconds| *seconds > 0),
        };
        let limit_restart = |family: &Option<PeerFamily>| match family.as_ref()?.prefixes_max?.action {
            LimitAction::Restart(after) => Some(after),
            LimitAction::Teardown | LimitAction::Warn => None,
        };
        let confederation = self
            .config
            .confederation
            .as_ref()
            .map(|it| Confederation { identifier: it.id, members: it.members.iter().copied().collect() });
        SessionConfig {
            local_as_override: peer.local_as,
            confederation,
            hold_time_s: peer.timers.hold_time_s,
            keepalive_s: peer.timers.keepalive_s,
            connect_retry: peer.timers.connect_retry,
            delay_open: peer.timers.delay_open,
            passive: peer.passive,
            prefix_limit_restart: PerFamily {
                ipv4: limit_restart(&peer.families.ipv4),
                ipv6: limit_restart(&peer.families.ipv6),
            },
            bfd_strict: peer.bfd.is_some_and(|bfd| bfd.strict),
            families: PerFamily {
                ipv4: peer.families.ipv4.as_ref().map(family),
                ipv6: peer.families.ipv6.as_ref().map(family),
            },
            extended_message: peer.extended_messages,
            graceful_restart: restart.map(|restart| RestartConfig {
                restart_time_s: restart.restart_time_s,
                stale_path_time: restart.stale_time,
                ..RestartConfig::default()
            }),
            role: peer.role.map(|(role, strict)| RoleConfig { role, strict }),
            host_name: Some(HostName { host: self.host.to_owned(), domain: String::new() }),
            ..SessionConfig::new(self.config.asn, remote_as, self.router_id)
        }
    }

    fn tables(&self, peer: &BgpPeer) -> TableSettings {
        let address = match &peer.place {
            PeerPlace::Address(address) => *address,
            PeerPlace::Interface(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
            PeerPlace::Range(prefix, _) => prefix.addr(),
        };
        let limits = |family: &Option<PeerFamily>| {
            family.as_ref().and_then(|family| family.prefixes_max).map_or_else(Limits::default, |limit| Limits {
                received_max: Some(limit.limit),
                accepted_max: None,
                warning_percent: limit.warn_percent,
                warns_only: limit.action == LimitAction::Warn,
            })
        };
        let next_hop = |family: &Option<PeerFamily>| match family.as_ref().map(|family| family.next_hop) {
            Some(PeerNextHop::Auto) | None => NextHopMode::Default,
            Some(PeerNextHop::Own) => NextHopMode::Own,
            Some(PeerNextHop::Unchanged) => NextHopMode::Unchanged,
        };
        let add_path_max =
            |family: &Option<PeerFamily>| family.as_ref().and_then(|family| family.add_path_send).unwrap_or_default();
        let families = &peer.families;
        TableSettings {
            limits: PerFamily { ipv4: limits(&peer.families.ipv4), ipv6: limits(&peer.families.ipv6) },
            reflector_client: peer.route_reflector_client,
            route_server_client: peer.route_server_client,
            next_hop: PerFamily { ipv4: next_hop(&families.ipv4), ipv6: next_hop(&families.ipv6) },
            own_as_max: peer.own_as_max,
            enforce_first_as: peer.enforce_first_as,
            remove_private_as: peer.remove_private_as,
            add_path_max: PerFamily { ipv4: add_path_max(&families.ipv4), ipv6: add_path_max(&families.ipv6) },
            ..TableSettings::new(address, peer.import.with_guard(self.guard.clone()), peer.export.clone())
        }
    }
}

/// How packets of a peer are signed. What cannot be is an error: a session never runs without what was asked for.
fn key_of(authentication: &PeerAuthentication) -> Result<Option<Key>, String> {
    let read = |file: &std::path::Path| match secret::read(file) {
        Ok(secret) => Ok(Secret::new(secret.octets().to_vec())),
        Err(error) => Err(format!("{error}; the session stays down")),
    };
    match authentication {
        PeerAuthentication::None => Ok(None),
        PeerAuthentication::Md5(file) => Ok(Some(Key::Md5(read(file)?))),
        PeerAuthentication::Ao { key_file, send_id, receive_id, algorithm } => {
            ao::probe().map_err(|error| format!("{error}; the session stays down: use `password_file`"))?;
            let algorithm = match algorithm {
                AoAlgorithm::HmacSha1 => ao::Algorithm::HmacSha1,
                AoAlgorithm::AesCmac => ao::Algorithm::AesCmac,
                AoAlgorithm::HmacSha256 => ao::Algorithm::HmacSha256,
            };
            let (send_id, receive_id) = (*send_id, *receive_id);
            Ok(Some(Key::Ao(AoKey { secret: read(key_file)?, send_id, receive_id, algorithm })))
        }
    }
}

fn bfd_settings(peer: &PeerBfd) -> bfd::Settings {
    let millis =
        |time: std::time::Duration| bfd::Interval::from_millis(u32::try_from(time.as_millis()).unwrap_or(u32::MAX));
    bfd::Settings {
        min_transmit: millis(peer.transmit),
        min_receive: millis(peer.receive),
        multiplier: NonZeroU8::new(peer.multiplier).unwrap_or(NonZeroU8::MIN),
        passive: peer.passive,
        min_echo_receive: peer.echo.map_or(bfd::Interval::NONE, millis),
        min_echo_transmit: peer.echo_transmit.map_or(bfd::Interval::NONE, millis),
        ..bfd::Settings::default()
    }
}

/// What is advertised of this node, as local paths.
fn originate(config: &BgpConfig, local: &LocalNode, own_id: ClusterId) -> Vec<(IpNet, LocalRoute)> {
    let wanted = &config.originate;
    let mark = config.mesh_function.map(|function| LargeCommunity {
        global: config.asn.0,
        local_1: function,
        local_2: own_id.get().into(),
    });
    let route = |source: LocalSource| {
        let is_marked = source == LocalSource::PodCidr;
        local_route_with(source, mark.filter(|_| is_marked))
    };
    let pods = local.pod_cidrs.iter().filter(|_| wanted.pod_cidrs).map(|prefix| (*prefix, LocalSource::PodCidr));
    let addresses = local.addresses.iter().filter(|_| wanted.node_addresses);
    let addresses = addresses.map(|address| (IpNet::from(*address), LocalSource::NodeAddress));
    let fixed = wanted.prefixes.iter().map(|prefix| (*prefix, LocalSource::Static));
    pods.chain(addresses).chain(fixed).map(|(prefix, source)| (prefix, route(source))).collect()
}

pub(super) fn local_route(source: LocalSource) -> LocalRoute {
    local_route_with(source, None)
}

fn local_route_with(source: LocalSource, mark: Option<LargeCommunity>) -> LocalRoute {
    let mut attributes = Builder::new();
    attributes.origin(Origin::Igp).set(code::AS_PATH, Vec::new()).large_communities(mark);
    LocalRoute { source, attributes: attributes.build(), next_hop: None }
}

fn aggregate(summary_only: bool) -> Aggregate {
    Aggregate { attributes: Builder::new().origin(Origin::Igp).build(), summary_only }
}
