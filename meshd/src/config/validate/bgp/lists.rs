//! Lists of prefixes, communities and AS path patterns.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ::bgp::policy::{
    AsPathList, AsPathPattern, Community, CommunityPattern, PrefixEntry, PrefixEntryError, PrefixList,
};

use super::Validator;
use crate::config::raw::bgp_policy::{AsPathText, CommunityText, PrefixLineText, RangeText};

/// All lists by name.
#[derive(Default)]
pub(super) struct Lists {
    pub(super) prefixes: BTreeMap<String, Arc<PrefixList>>,
    pub(super) communities: BTreeMap<String, Arc<[CommunityPattern]>>,
    pub(super) as_paths: BTreeMap<String, Arc<AsPathList>>,
}

impl Validator<'_> {
    pub(super) fn bgp_lists(
        &mut self,
        prefixes: &BTreeMap<String, Vec<PrefixLineText>>,
        communities: &BTreeMap<String, Vec<CommunityText>>,
        as_paths: &BTreeMap<String, Vec<AsPathText>>,
    ) -> Lists {
        let mut lists = Lists::default();
        for (name, lines) in prefixes {
            lists.prefixes.insert(name.clone(), self.prefix_list(&format!("bgp.prefix_lists.{name}"), lines));
        }
        for (name, lines) in communities {
            let patterns = self.community_patterns(&format!("bgp.community_lists.{name}"), lines);
            lists.communities.insert(name.clone(), patterns);
        }
        for (name, lines) in as_paths {
            lists.as_paths.insert(name.clone(), self.as_path_list(&format!("bgp.as_path_lists.{name}"), lines));
        }
        lists
    }

    pub(super) fn prefix_list(&mut self, key: &str, lines: &[PrefixLineText]) -> Arc<PrefixList> {
        let mut entries = Vec::with_capacity(lines.len());
        for (i, line) in lines.iter().enumerate() {
            match line.as_str().parse::<PrefixEntry>() {
                Ok(entry) => entries.push(entry),
                Err(error) => {
                    let hint = match &error {
                        PrefixEntryError::HostBits { prefix } => format!("write {}", prefix.trunc()),
                        PrefixEntryError::Prefix(_) | PrefixEntryError::Range(_) | PrefixEntryError::Lengths { .. } => {
                            "write for instance 10.0.0.0/8 le 24 or 10.0.0.0/8{16,24}".to_owned()
                        }
                    };
                    self.error(&format!("{key}[{i}]"), error.to_string(), hint);
                }
            }
        }
        Arc::new(PrefixList::new(entries))
    }

    pub(super) fn community_patterns(&mut self, key: &str, lines: &[CommunityText]) -> Arc<[CommunityPattern]> {
        let mut patterns = Vec::with_capacity(lines.len());
        for (i, line) in lines.iter().enumerate() {
            match line.as_str().parse() {
                Ok(pattern) => patterns.push(pattern),
                Err(error) => {
                    let error: ::bgp::policy::CommunityError = error;
                    self.error(
                        &format!("{key}[{i}]"),
                        error.to_string(),
                        "write for instance 65000:* or rt:65000:1-99",
                    );
                }
            }
        }
        patterns.into()
    }

    pub(super) fn communities(&mut self, key: &str, texts: &[CommunityText]) -> Vec<Community> {
        let mut communities = Vec::with_capacity(texts.len());
        for (i, text) in texts.iter().enumerate() {
            match text.as_str().parse() {
                Ok(community) => communities.push(community),
                Err(error) => {
                    let error: ::bgp::policy::CommunityError = error;
                    self.error(&format!("{key}[{i}]"), error.to_string(), "write for instance 65000:1 or no-export");
                }
            }
        }
        communities
    }

    pub(super) fn as_path_list(&mut self, key: &str, lines: &[AsPathText]) -> Arc<AsPathList> {
        let mut entries = Vec::with_capacity(lines.len());
        for (i, line) in lines.iter().enumerate() {
            let text = line.as_str().trim();
            let (text, permit) = match (text.strip_prefix("deny "), text.strip_prefix("permit ")) {
                (Some(rest), _) => (rest, false),
                (None, Some(rest)) => (rest, true),
                (None, None) => (text, true),
            };
            match text.trim_start().parse::<AsPathPattern>() {
                Ok(pattern) => entries.push((pattern, permit)),
                Err(error) => {
                    let hint = "write for instance _65001_, ^65001( 65001)*$ or ^$";
                    self.error(&format!("{key}[{i}]"), error.to_string(), hint);
                }
            }
        }
        Arc::new(AsPathList { entries })
    }

    pub(super) fn range(&mut self, key: &str, text: &RangeText) -> Option<RangeInclusive<u32>> {
        let (low, high) = text.as_str().split_once('-').unwrap_or((text.as_str(), text.as_str()));
        let range = low.trim().parse().ok().zip(high.trim().parse().ok());
        match range {
            Some((low, high)) if low <= high => Some(low..=high),
            Some(_) | None => {
                let message = format!("{:?} is neither a number nor a range", text.as_str());
                self.error(key, message, "write for instance 65001 or 65001-65010");
                None
            }
        }
    }

    pub(super) fn ranges(&mut self, key: &str, texts: &[RangeText]) -> Arc<[RangeInclusive<u32>]> {
        let mut ranges = Vec::with_capacity(texts.len());
        for (i, text) in texts.iter().enumerate() {
            ranges.extend(self.range(&format!("{key}[{i}]"), text));
        }
        ranges.into()
    }
}
