//! The sections `routing`, `peers[].routing` and `tunnel`.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use meshd_core::{
    derive::TunnelSettings,
    id::{ClusterName, Metric, NodeName, ROUTE_METRIC},
    probe::ProbeSettings,
};

use super::Validator;
use crate::config::model::{Peer, RoutingConfig};
use crate::config::raw::RoutingMode;
use crate::config::raw::routing::{RawNodeRouting, RawProbe, RawRouting, RawTunnel, TunnelProtocol, TunnelSources};

/// Port of VXLAN unless `tunnel.port` says otherwise: the one that Cilium and the Linux kernel use.
const TUNNEL_PORT: u16 = 8472;
/// The same of Geneve (RFC 8926).
const GENEVE_PORT: u16 = 6081;
/// VNI unless `tunnel.vni` says otherwise: what Cilium calls `world`.
const TUNNEL_VNI: u32 = 2;
/// A VNI has 24 bits, and 0 is nobody.
const VNIS: RangeInclusive<u32> = 1..=0x00ff_ffff;
/// Port of probes unless `routing.probe.port` says otherwise.
const PROBE_PORT: u16 = 7747;

impl Validator<'_> {
    /// `services`: the kernel's programs are wanted.
    pub(super) fn routing(
        &mut self,
        raw: RawRouting,
        tunnel: Option<RawTunnel>,
        peers: &[Peer],
        services: bool,
    ) -> RoutingConfig {
        let mode = raw.mode.unwrap_or(RoutingMode::Auto);
        let metric = raw.metric.unwrap_or(ROUTE_METRIC);
        if metric == 0 {
            // The kernel turns metric 0 of an IPv6 route into 1024, so what we read back would differ.
            self.error("routing.metric", "metric 0 is not possible", "write 1 or more; the default is 77");
        }
        let fast_path = raw.fast_path.unwrap_or(false);
        if fast_path && !services {
            let hint = "write services: {enabled: true}, or leave the key out";
            self.error("routing.fast_path", "the kernel's programs, which are switched off, do it", hint);
        }
        let has_tunnel = tunnel.is_some();
        let tunnel = tunnel.map(|tunnel| self.tunnel(&tunnel, services));
        let nodes = self.node_modes(&raw.nodes);
        if !has_tunnel {
            let hint = "add the section tunnel, for instance tunnel: {protocol: vxlan}";
            let message = "there is no tunnel";
            if mode == RoutingMode::Tunnel {
                self.error("routing.mode", message, hint);
            }
            if nodes.values().any(|mode| *mode == RoutingMode::Tunnel) {
                self.error("routing.nodes", message, hint);
            }
            for peer in peers.iter().filter(|peer| peer.mode == Some(RoutingMode::Tunnel)) {
                self.error(&format!("peers[{}].routing.mode", peer.cluster), message, hint);
            }
        }
        let probe = self.probe(&raw.probe);
        if tunnel.is_some_and(|tunnel| tunnel.port == probe.port) {
            self.error("routing.probe.port", "it is the port of the tunnel", "choose another one");
        }
        RoutingConfig {
            mode,
            nodes,
            native_cidrs: self.prefixes("routing.native_cidrs", &raw.native_cidrs),
            nexthop_objects: raw.nexthop_objects.unwrap_or(true),
            metric: Metric(metric),
            probe,
            tunnel,
            mss_clamp: raw.mss_clamp.unwrap_or(false),
            fast_path,
        }
    }

    fn tunnel(&mut self, raw: &RawTunnel, services: bool) -> TunnelSettings {
        let geneve = raw.protocol == Some(TunnelProtocol::Geneve);
        if geneve && !services {
            let hint = "write services: {enabled: true} on every node, or protocol: vxlan";
            self.error("tunnel.protocol", "geneve is written by the kernel's programs, which are switched off", hint);
        }
        let port = raw.port.unwrap_or(if geneve { GENEVE_PORT } else { TUNNEL_PORT });
        if port == 0 {
            let hint = "write 8472, 6081 for geneve, or the port the other nodes use";
            self.error("tunnel.port", "port 0 is not possible", hint);
        }
        let vni = raw.vni.unwrap_or(TUNNEL_VNI);
        if !VNIS.contains(&vni) {
            self.error("tunnel.vni", format!("{vni} is not possible"), "write 1 to 16777215; the default is 2");
        }
        TunnelSettings { port, vni, geneve, any_source: raw.sources == Some(TunnelSources::Any) }
    }

    fn node_modes(&mut self, raw: &[RawNodeRouting]) -> BTreeMap<(ClusterName, NodeName), RoutingMode> {
        let mut modes = BTreeMap::new();
        for (i, raw) in raw.iter().enumerate() {
            let key = format!("routing.nodes[{i}]");
            for (name, example, is_missing) in [
                ("cluster", "cluster: NAME", raw.cluster.is_none()),
                ("node", "node: NAME", raw.node.is_none()),
                ("mode", "mode: native", raw.mode.is_none()),
            ] {
                if is_missing {
                    self.missing(&format!("{key}.{name}"), example);
                }
            }
            let cluster = raw.cluster.as_ref().and_then(|name| self.cluster_name(&format!("{key}.cluster"), name));
            let (Some(cluster), Some(node), Some(mode)) = (cluster, &raw.node, raw.mode) else { continue };
            match node.as_str().parse::<NodeName>() {
                Ok(node) => {
                    if modes.insert((cluster, node), mode).is_some() {
                        self.error(&key, "the node is there twice", "write each node once");
                    }
                }
                Err(error) => {
                    self.error(
                        &format!("{key}.node"),
                        error.to_string(),
                        "write the name the node has in `meshd get nodes`",
                    );
                }
            }
        }
        modes
    }

    fn probe(&mut self, raw: &RawProbe) -> ProbeSettings {
        let ms = |value: u32| Duration::from_millis(value.into());
        let port = raw.port.unwrap_or(PROBE_PORT);
        if port == 0 {
            self.error("routing.probe.port", "port 0 is not possible", "write 7747, or the port the other nodes use");
        }
        ProbeSettings {
            interval: ms(self.within("routing.probe.interval_ms", raw.interval_ms.unwrap_or(200), 50..=10_000)),
            timeout: ms(self.within("routing.probe.timeout_ms", raw.timeout_ms.unwrap_or(500), 20..=10_000)),
            failures: self.within("routing.probe.failures", raw.failures.unwrap_or(3), 2..=100),
            successes: self.within("routing.probe.successes", raw.successes.unwrap_or(10), 2..=1_000),
            hold: Duration::from_secs(self.within("routing.probe.hold_s", raw.hold_s.unwrap_or(3), 1..=300).into()),
            port,
        }
    }

    fn within(&mut self, key: &str, value: u32, range: RangeInclusive<u32>) -> u32 {
        if !range.contains(&value) {
            let hint = format!("write {} to {}", range.start(), range.end());
            self.error(key, format!("{value} is not possible"), hint);
        }
        value
    }
}
