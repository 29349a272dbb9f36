//! Masquerade.

use ipnet::IpNet;
use meshd_core::desired::EXCLUSIONS_MAX;

use super::Validator;
use crate::config::model::{MasqueradeConfig, NodeConfig};
use crate::config::raw::{MasqueradeByWord, PrefixText, RawMasquerade};

/// Longest name of a link (`IFNAMSIZ` without the end of the string).
const LINK_NAME_MAX: usize = 15;

impl Validator<'_> {
    /// `None` when it is off; what is written meanwhile is looked at all the same.
    pub(super) fn masquerade(&mut self, raw: RawMasquerade, node: &NodeConfig) -> Option<MasqueradeConfig> {
        let exclude: Vec<IpNet> =
            raw.exclude.iter().enumerate().filter_map(|(i, text)| self.excluded(i, text)).collect();
        if exclude.len() > EXCLUSIONS_MAX {
            let message = format!("{} prefixes are more than the {EXCLUSIONS_MAX} that can be excluded", exclude.len());
            self.error("masquerade.exclude", message, "write fewer and shorter prefixes");
        }
        let addresses = self.addresses("masquerade.address", &raw.address);
        for is_ipv4 in [true, false] {
            if addresses.iter().filter(|address| address.is_ipv4() == is_ipv4).count() > 1 {
                let family = if is_ipv4 { "IPv4" } else { "IPv6" };
                let message = format!("there are several {family} addresses");
                self.error("masquerade.address", message, "write at most one per family");
            }
        }
        for (i, name) in raw.uplinks.iter().enumerate() {
            let name = name.as_str();
            let fits = !name.is_empty() && name.len() <= LINK_NAME_MAX;
            if !fits || name.contains(|c: char| c == '/' || c == '*' || c == '"' || c.is_whitespace() || c.is_control())
            {
                let key = format!("masquerade.uplinks[{i}]");
                self.error(
                    &key,
                    format!("{name:?} is no name of a link"),
                    "write a name as `ip link` shows it, such as eth0",
                );
            }
        }
        if raw.enabled != Some(true) {
            return None;
        }
        if node.pod_cidrs.is_empty() {
            let message = "there are no workloads to masquerade: node.pod_cidrs is empty";
            self.warn("masquerade.enabled", message, "add node: {pod_cidrs: [PREFIX]}");
        }
        Some(MasqueradeConfig {
            exclude,
            link_local: raw.link_local.unwrap_or(false),
            agent_file: raw.agent_file.map(|path| self.path(&path)),
            uplinks: raw.uplinks.into_iter().map(|name| name.0).collect(),
            addresses,
            by_programs: raw.by != Some(MasqueradeByWord::Nftables),
        })
    }

    /// Any prefix but everything: also reserved ones, which agents exclude as well.
    fn excluded(&mut self, i: usize, text: &PrefixText) -> Option<IpNet> {
        let key = format!("masquerade.exclude[{i}]");
        match text.as_str().parse::<IpNet>() {
            Ok(prefix) if prefix.prefix_len() > 0 && prefix == prefix.trunc() => Some(prefix),
            Ok(prefix) if prefix.prefix_len() == 0 => {
                self.error(&key, format!("{prefix} excludes every address"), "write masquerade: {enabled: false}");
                None
            }
            // The words for everything else are those of other prefixes.
            Ok(_) | Err(_) => self.prefix(&key, text),
        }
    }
}
