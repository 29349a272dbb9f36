//! The section `services`: how services are loaded into the kernel. The services themselves are checked in [`own`](self::own).

mod own;

pub(super) use self::own::ServiceRules;

use std::ops::RangeInclusive;
use std::time::Duration;

use meshd_core::observed::ForwardingMode;

use super::Validator;
use crate::config::model::services::{BackendAlgorithm, DsrKind, LinkPattern, ServiceMaps, ServicesConfig, XdpUse};
use crate::config::raw::services::{LinkText, PortRangeText, RawServiceMaps, RawServices, ServiceMode};

/// Ports of nodes unless `services.node_port_range` says otherwise.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// Source ports of translated packets unless `services.snat_ports` says otherwise.
const SNAT_PORTS: RangeInclusive<u16> = 61_000..=65_535;
/// Ports below are those of well-known services.
const PORT_MIN: u16 = 1_024;
/// Fewest source ports that can be searched for a free one in a few steps.
const SNAT_PORTS_MIN: usize = 64;
/// Entries a Maglev table can have; both are prime.
const TABLE_SIZES: [u32; 2] = [16_381, 65_521];
/// Shortest and longest silence, in seconds, before a cluster is unreachable.
const REMOTE_TIMEOUT_S: RangeInclusive<u32> = 5..=86_400;
/// Fewest and most entries of a map.
const MAP_ENTRIES: RangeInclusive<u32> = 1_024..=16_777_216;
/// Longest name of a link (`IFNAMSIZ` less the end).
const LINK_NAME_MAX: usize = 15;

impl Validator<'_> {
    pub(super) fn services(&mut self, raw: RawServices) -> ServicesConfig {
        let enabled = raw.enabled.unwrap_or(false);
        let table_size = raw.table_size.unwrap_or(TABLE_SIZES[0]);
        if !TABLE_SIZES.contains(&table_size) {
            self.error("services.table_size", format!("{table_size} is not possible"), "write 16381 or 65521");
        }
        let node_port_range =
            self.port_range("services.node_port_range", raw.node_port_range.as_ref()).unwrap_or(NODE_PORTS);
        let snat_ports = self.port_range("services.snat_ports", raw.snat_ports.as_ref()).unwrap_or(SNAT_PORTS);
        if node_port_range.start() <= snat_ports.end() && snat_ports.start() <= node_port_range.end() {
            self.error(
                "services.snat_ports",
                format!("{} overlaps services.node_port_range {}", words(&snat_ports), words(&node_port_range)),
                "choose ranges that have no port in common",
            );
        }
        if snat_ports.len() < SNAT_PORTS_MIN {
            let hint = format!("give at least {SNAT_PORTS_MIN} ports");
            self.error("services.snat_ports", format!("{} is too small", words(&snat_ports)), hint);
        }
        let timeout_s = raw.remote_timeout_s.map_or(meshd_core::derive::REMOTE_TIMEOUT, |seconds| {
            if !REMOTE_TIMEOUT_S.contains(&seconds) {
                self.error("services.remote_timeout_s", format!("{seconds} is not possible"), "write 5 to 86400");
            }
            Duration::from_secs(seconds.into())
        });
        ServicesConfig {
            enabled,
            mode: mode(raw.mode.unwrap_or(ServiceMode::Snat)),
            dsr: raw.dsr.unwrap_or(DsrKind::Option),
            algorithm: raw.algorithm.unwrap_or(BackendAlgorithm::Maglev),
            table_size,
            uplinks: self.links("services.uplinks", &raw.uplinks),
            cgroup: raw.cgroup.map(|path| self.path(&path)),
            workload_links: self.links("services.workload_links", &raw.workload_links),
            xdp: raw.xdp.unwrap_or(XdpUse::Auto),
            node_port_range,
            snat_ports,
            remote_timeout: timeout_s,
            maps: self.maps(&raw.maps),
        }
    }

    fn port_range(&mut self, key: &str, text: Option<&PortRangeText>) -> Option<RangeInclusive<u16>> {
        let text = text?.as_str();
        let parsed = text
            .split_once('-')
            .and_then(|(first, last)| Some((first.trim().parse::<u16>().ok()?, last.trim().parse::<u16>().ok()?)));
        match parsed {
            Some((first, last)) if PORT_MIN <= first && first <= last => Some(first..=last),
            Some(_) => {
                self.error(
                    key,
                    format!("{text:?} is not a range from {PORT_MIN} up"),
                    "write for instance 30000-32767",
                );
                None
            }
            None => {
                self.error(key, format!("{text:?} is not a range of ports"), "write for instance 30000-32767");
                None
            }
        }
    }

    fn links(&mut self, key: &str, texts: &[LinkText]) -> Vec<LinkPattern> {
        let mut patterns = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            let text = text.as_str();
            let (name, is_prefix) = text.strip_suffix('*').map_or((text, false), |start| (start, true));
            let is_name = name.len() <= LINK_NAME_MAX
                && (is_prefix || !name.is_empty())
                && !name.contains(['/', '*', ':'])
                && !name.contains(char::is_whitespace);
            if is_name {
                let name = name.to_owned();
                patterns.push(if is_prefix { LinkPattern::Prefix(name) } else { LinkPattern::Name(name) });
            } else {
                let hint = "write a name as `ip link` shows it, with * at the end for all that begin so";
                self.error(&format!("{key}[{i}]"), format!("{text:?} is not a link name"), hint);
            }
        }
        patterns
    }

    fn maps(&mut self, raw: &RawServiceMaps) -> ServiceMaps {
        let mut maps = ServiceMaps::default();
        let entries = [
            ("services", raw.services, &mut maps.services),
            ("backends", raw.backends, &mut maps.backends),
            ("connections", raw.connections, &mut maps.connections),
            ("affinity", raw.affinity, &mut maps.affinity),
            ("identities", raw.identities, &mut maps.identities),
            ("sockets", raw.sockets, &mut maps.sockets),
            ("members", raw.members, &mut maps.members),
            ("maglev", raw.maglev, &mut maps.maglev),
            ("fragments", raw.fragments, &mut maps.fragments),
            ("prefixes", raw.prefixes, &mut maps.prefixes),
            ("source_ranges", raw.source_ranges, &mut maps.source_ranges),
            ("next_hops", raw.next_hops, &mut maps.next_hops),
            ("policy", raw.policy, &mut maps.policy),
        ];
        for (name, wanted, size) in entries {
            let Some(wanted) = wanted else { continue };
            if MAP_ENTRIES.contains(&wanted) {
                *size = wanted;
            } else {
                let key = format!("services.maps.{name}");
                self.error(&key, format!("{wanted} entries are not possible"), "write 1024 to 16777216");
            }
        }
        maps
    }
}

fn mode(mode: ServiceMode) -> ForwardingMode {
    match mode {
        ServiceMode::Snat => ForwardingMode::Snat,
        ServiceMode::Dsr => ForwardingMode::Dsr,
    }
}

fn words(range: &RangeInclusive<u16>) -> String {
    format!("{}-{}", range.start(), range.end())
}
