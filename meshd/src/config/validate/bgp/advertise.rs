//! What this node advertises, and the policies that make it so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ::bgp::policy::{
    Action, End, LocalSource, Match, NumberEdit, Policy, PrefixEntry, PrefixList, Rule, RuleSet, SourceKind, Then,
};
use ::bgp::session::PeerKind;
use ipnet::IpNet;

use super::{Context, Validator};
use crate::config::model::bgp::{BgpOriginate, PeerPlace};
use crate::config::raw::Name;
use crate::config::raw::bgp::RawBgpAdvertise;
use crate::config::raw::bgp_peer::{RawBgpPeer, RawBgpPeerGroup};

/// Name of the rules that an `advertise` list becomes, and of those of `import.accept`.
const ADVERTISE: &str = "advertise";
const IMPORT: &str = "import";

/// All sources of this node.
const LOCAL: [LocalSource; 5] =
    [LocalSource::PodCidr, LocalSource::Service, LocalSource::NodeAddress, LocalSource::Static, LocalSource::Aggregate];

/// One entry of the list.
pub(super) struct Advertisement {
    sources: Vec<LocalSource>,
    prefixes: Vec<IpNet>,
    actions: Vec<Action>,
    peers: Option<Vec<String>>,
    groups: Option<Vec<String>>,
}

impl Advertisement {
    fn is_for(&self, place: &PeerPlace, group: Option<&str>) -> bool {
        let named = self.peers.as_ref().is_some_and(|names| names.iter().any(|name| names_place(name, place)));
        let grouped = self.groups.as_ref().is_some_and(|names| names.iter().any(|name| Some(name.as_str()) == group));
        (self.peers.is_none() && self.groups.is_none()) || named || grouped
    }

    /// `several`: other entries have prefixes too, so that the source alone does not tell them apart.
    fn matches(&self, several: bool) -> Vec<Match> {
        let source = |source: &LocalSource| SourceKind::Local(*source);
        let is_listed = |source: &LocalSource| matches!(source, LocalSource::Static | LocalSource::Aggregate);
        let mut matches = vec![Match::Source(self.sources.iter().map(source).collect())];
        if several && self.sources.iter().any(is_listed) {
            let list = PrefixList::new(self.prefixes.iter().copied().map(PrefixEntry::exact));
            let whole = Match::Source(LOCAL.iter().filter(|source| !is_listed(source)).map(source).collect());
            matches.push(Match::Any(vec![whole, Match::Prefix(Arc::new(list))]));
        }
        matches
    }
}

/// Is this the peer that is written so?
fn names_place(name: &str, place: &PeerPlace) -> bool {
    match place {
        PeerPlace::Address(address) => name.parse() == Ok(*address),
        PeerPlace::Interface(interface) => name == interface,
        PeerPlace::Range(prefix, _) => name.parse() == Ok(*prefix),
    }
}

impl Validator<'_> {
    pub(super) fn advertise(
        &mut self,
        raw: &[RawBgpAdvertise],
        peers: &[RawBgpPeer],
        groups: &BTreeMap<String, RawBgpPeerGroup>,
    ) -> (BgpOriginate, Vec<Advertisement>) {
        let mut originate = BgpOriginate::default();
        let (mut prefixes, mut aggregates) = (BTreeSet::new(), BTreeMap::new());
        let mut list = Vec::with_capacity(raw.len());
        for (i, raw) in raw.iter().enumerate() {
            let key = format!("bgp.advertise[{i}]");
            let fixed = self.prefixes(&format!("{key}.prefixes"), &raw.prefixes);
            let mut all = fixed.clone();
            for (j, aggregate) in raw.aggregates.iter().enumerate() {
                let key = format!("{key}.aggregates[{j}].prefix");
                let Some(text) = &aggregate.prefix else {
                    self.missing(&key, "prefix: PREFIX");
                    continue;
                };
                let Some(prefix) = self.prefix(&key, text) else { continue };
                aggregates.insert(prefix, aggregate.summary_only.unwrap_or(false));
                all.push(prefix);
            }
            originate.pod_cidrs |= raw.pod_cidrs == Some(true);
            originate.service_vips |= raw.service_vips == Some(true);
            originate.node_addresses |= raw.node_addresses == Some(true);
            prefixes.extend(fixed.iter().copied());
            let sources: Vec<LocalSource> = [
                (raw.pod_cidrs == Some(true), LocalSource::PodCidr),
                (raw.service_vips == Some(true), LocalSource::Service),
                (raw.node_addresses == Some(true), LocalSource::NodeAddress),
                (!fixed.is_empty(), LocalSource::Static),
                (!raw.aggregates.is_empty(), LocalSource::Aggregate),
            ]
            .into_iter()
            .filter_map(|(wanted, source)| wanted.then_some(source))
            .collect();
            if sources.is_empty() && raw.prefixes.is_empty() {
                let hint = "add pod_cidrs: true, service_vips: true, node_addresses: true, prefixes or aggregates";
                self.error(&key, "this entry advertises nothing", hint);
            }
            let advertisement = Advertisement {
                sources,
                prefixes: all,
                actions: self.advertised_with(&key, raw),
                peers: raw.peers.as_ref().map(|names| self.known_peers(&format!("{key}.peers"), names, peers)),
                groups: raw.groups.as_ref().map(|names| self.known_groups(&format!("{key}.groups"), names, groups)),
            };
            list.push(advertisement);
        }
        originate.prefixes = prefixes.into_iter().collect();
        originate.aggregates = aggregates.into_iter().collect();
        (originate, list)
    }

    fn advertised_with(&mut self, key: &str, raw: &RawBgpAdvertise) -> Vec<Action> {
        let mut actions = Vec::new();
        if !raw.communities.is_empty() {
            let communities = self.communities(&format!("{key}.communities"), &raw.communities);
            actions.push(Action::AddCommunities(communities.into()));
        }
        actions.extend(raw.med.map(|med| Action::Med(NumberEdit::Set(med))));
        actions.extend(raw.local_pref.map(|value| Action::LocalPref(NumberEdit::Set(value))));
        actions
    }

    fn known_peers(&mut self, key: &str, names: &[Name], peers: &[RawBgpPeer]) -> Vec<String> {
        let written = |peer: &RawBgpPeer| {
            let address = peer.address.as_ref().map(|address| address.as_str().to_owned());
            let interface = peer.interface.as_ref().map(|name| name.0.clone());
            address.or(interface).or_else(|| peer.range.as_ref().map(|range| range.as_str().to_owned()))
        };
        let known: Vec<String> = peers.iter().filter_map(written).collect();
        for (i, name) in names.iter().enumerate() {
            if !known.contains(&name.0) {
                self.unknown(&format!("{key}[{i}]"), "peer", name, known.iter().map(String::as_str));
            }
        }
        names.iter().map(|name| name.0.clone()).collect()
    }

    fn known_groups(&mut self, key: &str, names: &[Name], groups: &BTreeMap<String, RawBgpPeerGroup>) -> Vec<String> {
        for (i, name) in names.iter().enumerate() {
            if !groups.contains_key(name.as_str()) {
                self.unknown(&format!("{key}[{i}]"), "group", name, groups.keys().map(String::as_str));
            }
        }
        names.iter().map(|name| name.0.clone()).collect()
    }

    /// What is done with what a peer sends, without the guard.
    pub(super) fn import_policy(
        &mut self,
        key: &str,
        names: Option<&[Name]>,
        kind: PeerKind,
        context: &Context,
    ) -> Policy {
        if let Some(names) = names {
            let sets = self.rule_sets(&format!("{key}.import"), names, context);
            return self.policy(key, &sets, End::Reject);
        }
        if let Some(accept) = &context.accept {
            let rule = Rule {
                name: "accept".into(),
                matches: vec![Match::Prefix(Arc::clone(accept))],
                actions: Vec::new(),
                then: Then::Accept,
            };
            let set = Arc::new(RuleSet { name: IMPORT.into(), rules: vec![rule] });
            return self.policy(key, &[set], End::Reject);
        }
        match kind {
            PeerKind::External => Policy::reject_all(),
            PeerKind::Internal | PeerKind::Confederation => Policy::accept_all(),
        }
    }

    /// What is done with what a peer is sent. First it is decided which of our own paths it gets; then its policies
    /// are asked, of which there are none for most peers.
    pub(super) fn export_policy(
        &mut self,
        key: &str,
        names: Option<&[Name]>,
        kind: PeerKind,
        peer: (&PeerPlace, Option<&str>),
        context: &Context,
    ) -> Policy {
        let (place, group) = peer;
        let then = if names.is_some() { Then::NextPolicy } else { Then::Accept };
        let with_prefixes = context.advertisements.iter().filter(|entry| !entry.prefixes.is_empty()).count();
        let mut rules = Vec::new();
        for (i, entry) in context.advertisements.iter().enumerate().filter(|(_, entry)| entry.is_for(place, group)) {
            let (matches, actions) = (entry.matches(with_prefixes > 1), entry.actions.clone());
            rules.push(Rule { name: (i + 1).to_string().into(), matches, actions, then });
        }
        let for_others = |entry: &Advertisement| !entry.is_for(place, group);
        if context.advertisements.iter().any(for_others) {
            let own = Match::Source(LOCAL.map(SourceKind::Local).to_vec());
            let (matches, actions) = (vec![own], Vec::new());
            rules.push(Rule { name: "for others".into(), matches, actions, then: Then::Reject });
        }
        let mut sets = Vec::new();
        if !rules.is_empty() {
            sets.push(Arc::new(RuleSet { name: ADVERTISE.into(), rules }));
        }
        sets.extend(self.rule_sets(&format!("{key}.export"), names.unwrap_or_default(), context));
        match (names, kind) {
            (Some(_), _) => self.policy(key, &sets, End::Reject),
            (None, PeerKind::External) if sets.is_empty() => Policy::reject_all(),
            (None, PeerKind::External) => self.policy(key, &sets, End::Reject),
            (None, PeerKind::Internal | PeerKind::Confederation) if sets.is_empty() => Policy::accept_all(),
            (None, PeerKind::Internal | PeerKind::Confederation) => self.policy(key, &sets, End::Accept),
        }
    }

    fn rule_sets(&mut self, key: &str, names: &[Name], context: &Context) -> Vec<Arc<RuleSet>> {
        let mut sets = Vec::with_capacity(names.len());
        for (i, name) in names.iter().enumerate() {
            match context.policies.get(name.as_str()) {
                Some(set) => sets.push(Arc::clone(set)),
                None => {
                    let known = context.policies.keys().map(String::as_str);
                    self.unknown(&format!("{key}[{i}]"), "policy", name, known);
                }
            }
        }
        sets
    }

    fn policy(&mut self, key: &str, sets: &[Arc<RuleSet>], end: End) -> Policy {
        match Policy::new(sets, end) {
            Ok(policy) => policy,
            Err(error) => {
                self.error(key, error.to_string(), "use fewer policies, and lists in place of rules");
                Policy::reject_all()
            }
        }
    }
}
