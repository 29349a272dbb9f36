//! From the text of the file and the configuration to the row; pure.

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;
use meshd_core::observed::{KeptBy, MasqueradeRow, MasqueradeSetting};
use yaml_rust2::{Yaml, YamlLoader};

use super::MasqueradeSources;

/// What the agent excludes without a file, as it is documented for it.
pub const DEFAULTS: [&str; 11] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "240.0.0.0/4",
];
/// Link-local destinations of the two families.
const LINK_LOCAL: [&str; 2] = ["169.254.0.0/16", "fe80::/10"];

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentFile {
    /// `nonMasqueradeCIDRs`
    pub kept: Vec<IpNet>,
    /// `masqLinkLocal`
    pub link_local: bool,
    /// `masqLinkLocalIPv6`
    pub link_local_ipv6: bool,
}

impl Default for AgentFile {
    fn default() -> Self {
        Self { kept: prefixes(&DEFAULTS), link_local: false, link_local_ipv6: false }
    }
}

/// Reads the text of the file: YAML, of which JSON is a part.
///
/// # Errors
/// What is wrong with it, as one line.
pub fn parse(text: &str) -> Result<AgentFile, String> {
    let documents = YamlLoader::load_from_str(text).map_err(|error| error.to_string())?;
    let table = match documents.first() {
        None | Some(Yaml::Null | Yaml::BadValue) => return Ok(AgentFile::default()),
        Some(Yaml::Hash(table)) => table,
        Some(_) => return Err("it does not hold a table".to_owned()),
    };
    let mut file = AgentFile { kept: Vec::new(), link_local: false, link_local_ipv6: false };
    for (key, value) in table {
        match key.as_str().unwrap_or_default() {
            "nonMasqueradeCIDRs" => file.kept = kept(value)?,
            "masqLinkLocal" => file.link_local = flag("masqLinkLocal", value)?,
            "masqLinkLocalIPv6" => file.link_local_ipv6 = flag("masqLinkLocalIPv6", value)?,
            // How often the agent reads it, and whatever else is about how it works.
            _ => {}
        }
    }
    Ok(file)
}

fn kept(value: &Yaml) -> Result<Vec<IpNet>, String> {
    let items = match value {
        Yaml::Null => return Ok(Vec::new()),
        Yaml::Array(items) => items,
        _ => return Err("nonMasqueradeCIDRs is not a list".to_owned()),
    };
    let prefix = |(i, item): (usize, &Yaml)| {
        let prefix = item.as_str().and_then(|text| text.trim().parse::<IpNet>().ok());
        // Go takes host bits and forgets them.
        prefix.map(|prefix| prefix.trunc()).ok_or_else(|| format!("nonMasqueradeCIDRs[{i}] is no prefix"))
    };
    items.iter().enumerate().map(prefix).collect()
}

fn flag(key: &str, value: &Yaml) -> Result<bool, String> {
    match value {
        Yaml::Null => Ok(false),
        Yaml::Boolean(flag) => Ok(*flag),
        _ => Err(format!("{key} is neither true nor false")),
    }
}

/// What is wanted; `agent` is what the file says, where there is to be one.
#[must_use]
pub fn setting(sources: &MasqueradeSources, agent: Option<&AgentFile>) -> MasqueradeSetting {
    let Some(config) = &sources.config else { return MasqueradeSetting::Off };
    let mut kept: BTreeMap<IpNet, KeptBy> = BTreeMap::new();
    let mut keep = |prefixes: &[IpNet], by: KeptBy| {
        for prefix in prefixes {
            kept.entry(*prefix).or_insert(by);
        }
    };
    keep(&config.exclude, KeptBy::Configuration);
    keep(&sources.native, KeptBy::Native);
    keep(agent.map_or(&[], |agent| &agent.kept), KeptBy::AgentFile);
    let by_agent = agent.map_or([false; 2], |agent| [agent.link_local, agent.link_local_ipv6]);
    for (prefix, by_agent) in LINK_LOCAL.iter().zip(by_agent) {
        if !config.link_local && !by_agent {
            keep(&prefixes(&[prefix]), KeptBy::LinkLocal);
        }
    }
    let uplinks = config.uplinks.iter().map(|name| name.as_str().into()).collect();
    MasqueradeSetting::On(Arc::new(MasqueradeRow { kept, uplinks, addresses: config.addresses.clone() }))
}

fn prefixes(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::MasqueradeConfig;

    fn kept(setting: &MasqueradeSetting) -> Vec<(String, &'static str)> {
        let MasqueradeSetting::On(row) = setting else { panic!("{setting:?}") };
        row.kept.iter().map(|(prefix, by)| (prefix.to_string(), by.as_str())).collect()
    }

    #[test]
    fn an_empty_file_means_the_defaults_and_one_without_a_list_no_prefixes() {
        assert_eq!(AgentFile::default().kept.len(), DEFAULTS.len());
        for empty in ["", "\n", "---\n", "# nothing\n", "null"] {
            assert_eq!(parse(empty), Ok(AgentFile::default()), "{empty:?}");
        }
        for without in ["{}", "resyncInterval: 60s", "nonMasqueradeCIDRs:", "masqLinkLocal: false"] {
            assert_eq!(parse(without).unwrap().kept, [], "{without}");
        }
    }

    #[test]
    fn yaml_and_json_mean_the_same() {
        let yaml = "nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- 192.168.1.7/16\n- fd00::/8\nmasqLinkLocal: true\nmasqLinkLocalIPv6: false\n";
        let json = r#"{"nonMasqueradeCIDRs": ["10.0.0.0/8", "192.168.0.0/16", "fd00::/8"], "masqLinkLocal": true}"#;
        let file = parse(yaml).unwrap();
        assert_eq!(file.kept, prefixes(&["10.0.0.0/8", "192.168.0.0/16", "fd00::/8"]));
        assert!(file.link_local && !file.link_local_ipv6);
        assert_eq!(parse(json), Ok(file));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, what) in [
            ("nonMasqueradeCIDRs: [10.0.0.0/8, nonsense]", "nonMasqueradeCIDRs[1]"),
            ("nonMasqueradeCIDRs: [10.0.0.1]", "nonMasqueradeCIDRs[0]"),
            ("nonMasqueradeCIDRs: 10.0.0.0/8", "not a list"),
            ("masqLinkLocal: maybe", "masqLinkLocal"),
            ("- 10.0.0.0/8", "table"),
            ("nonMasqueradeCIDRs: [", "line"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
        }
    }

    #[test]
    fn link_local_is_kept_unless_the_configuration_or_the_file_says_otherwise() {
        let mut sources =
            MasqueradeSources { config: Some(MasqueradeConfig::default()), native: prefixes(&["10.0.0.0/8"]) };
        let link_local = |setting: &MasqueradeSetting| -> Vec<String> {
            kept(setting).into_iter().filter(|(_, by)| *by == "link_local").map(|(prefix, _)| prefix).collect()
        };
        assert_eq!(link_local(&setting(&sources, None)), LINK_LOCAL);
        assert_eq!(link_local(&setting(&sources, Some(&AgentFile::default()))), LINK_LOCAL);
        let file = AgentFile { link_local: true, ..AgentFile::default() };
        assert_eq!(link_local(&setting(&sources, Some(&file))), ["fe80::/10"]);
        assert!(kept(&setting(&sources, Some(&file))).contains(&("10.0.0.0/8".to_owned(), "native_cidrs")));
        sources.config.as_mut().unwrap().link_local = true;
        assert_eq!(kept(&setting(&sources, None)), [("10.0.0.0/8".to_owned(), "native_cidrs")]);
        sources.config = None;
        assert_eq!(setting(&sources, None), MasqueradeSetting::Off);
    }
}
