//! Policies: named lists of rules.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ::bgp::policy::{
    Action, AsPathList, LocalSource, Match, NextHopEdit, NumberEdit, PrefixList, PrependAs, Rule, RuleSet, SourceKind,
    Then, Validity,
};
use ::bgp::session::PeerKind;
use ::bgp::wire::attributes::Origin;
use ::bgp::{Asn, Family, NextHop};

use super::Validator;
use super::lists::Lists;
use crate::config::raw::Name;
use crate::config::raw::bgp_policy::{
    RawBgpMatch, RawBgpRule, RawBgpSet, RawFamilyName, RawOrigin, RawPrepend, RawSource, RawThen, RawValidity,
};

/// Most numbers that one rule puts in front of a path.
const PREPEND_MAX: u16 = 32;

impl Validator<'_> {
    pub(super) fn bgp_policies(
        &mut self,
        raw: &BTreeMap<String, Vec<RawBgpRule>>,
        lists: &Lists,
    ) -> BTreeMap<String, Arc<RuleSet>> {
        let mut policies = BTreeMap::new();
        for (name, rules) in raw {
            let key = format!("bgp.policies.{name}");
            if rules.is_empty() {
                self.error(&key, "a policy without rules rejects everything", "add rules, or remove it");
            }
            let mut names = BTreeSet::new();
            let mut set = RuleSet { name: name.as_str().into(), rules: Vec::with_capacity(rules.len()) };
            for (i, raw) in rules.iter().enumerate() {
                let key = format!("{key}[{i}]");
                let rule = self.rule(&key, i, raw, lists);
                if !names.insert(rule.name.clone()) {
                    let hint = "give each rule of a policy a name of its own";
                    self.error(&key, format!("rule {:?} is there twice", rule.name), hint);
                }
                set.rules.push(rule);
            }
            policies.insert(name.clone(), Arc::new(set));
        }
        policies
    }

    fn rule(&mut self, key: &str, index: usize, raw: &RawBgpRule, lists: &Lists) -> Rule {
        let mut matches = self.matches(&format!("{key}.match"), &raw.r#match, lists);
        if let Some(unless) = &raw.unless {
            let unless = self.matches(&format!("{key}.unless"), unless, lists);
            // Not all of them: at least one does not hold.
            matches.push(Match::Any(unless.into_iter().map(|one| Match::Not(Box::new(one))).collect()));
        }
        let then = match raw.then {
            Some(RawThen::Accept) | None => Then::Accept,
            Some(RawThen::Reject) => Then::Reject,
            Some(RawThen::Next) => Then::Next,
            Some(RawThen::NextPolicy) => Then::NextPolicy,
        };
        let actions = self.actions(&format!("{key}.set"), &raw.set);
        if then == Then::Reject && !actions.is_empty() {
            let hint = "remove set, or write then: accept";
            self.error(&format!("{key}.set"), "a path that is rejected is not changed", hint);
        }
        let name = raw.name.as_ref().map_or_else(|| (index + 1).to_string(), |name| name.0.clone());
        Rule { name: name.into(), matches, actions, then }
    }

    fn matches(&mut self, key: &str, raw: &RawBgpMatch, lists: &Lists) -> Vec<Match> {
        let mut all = Vec::new();
        if let Some(lines) = &raw.prefixes {
            all.push(Match::Prefix(self.prefix_list(&format!("{key}.prefixes"), lines)));
        }
        if let Some(names) = &raw.prefix_lists {
            let of = |list: &Arc<PrefixList>| Match::Prefix(Arc::clone(list));
            all.push(self.named(&format!("{key}.prefix_lists"), "prefix list", names, &lists.prefixes, of));
        }
        if let Some(families) = &raw.families {
            all.push(Match::Any(families.iter().map(|name| Match::Family(family(*name))).collect()));
        }
        self.community_matches(key, raw, lists, &mut all);
        self.as_path_matches(key, raw, lists, &mut all);
        if let Some(sources) = &raw.sources {
            all.push(Match::Source(sources.iter().map(|source| source_kind(*source)).collect()));
        }
        if let Some(peers) = &raw.peers {
            all.push(Match::Peer(self.addresses(&format!("{key}.peers"), peers).into()));
        }
        if let Some(texts) = &raw.peer_as {
            all.push(Match::PeerAs(self.ranges(&format!("{key}.peer_as"), texts)));
        }
        if let Some(lines) = &raw.next_hop {
            all.push(Match::NextHop(self.prefix_list(&format!("{key}.next_hop"), lines)));
        }
        if let Some(origins) = &raw.origin {
            all.push(Match::Origin(origins.iter().map(|one| origin(*one)).collect()));
        }
        if let Some(range) = raw.med.as_ref().and_then(|text| self.range(&format!("{key}.med"), text)) {
            all.push(Match::Med(range));
        }
        if let Some(range) = raw.local_pref.as_ref().and_then(|text| self.range(&format!("{key}.local_pref"), text)) {
            all.push(Match::LocalPref(range));
        }
        if let Some(states) = &raw.rpki {
            all.push(Match::Rpki(states.iter().map(|one| validity(*one)).collect()));
        }
        all
    }

    fn community_matches(&mut self, key: &str, raw: &RawBgpMatch, lists: &Lists, all: &mut Vec<Match>) {
        if let Some(texts) = &raw.communities {
            all.push(Match::AnyCommunity(self.community_patterns(&format!("{key}.communities"), texts)));
        }
        if let Some(names) = &raw.community_lists {
            let of = |list: &Arc<[_]>| Match::AnyCommunity(Arc::clone(list));
            all.push(self.named(&format!("{key}.community_lists"), "community list", names, &lists.communities, of));
        }
        if let Some(texts) = &raw.all_communities {
            all.push(Match::AllCommunities(self.community_patterns(&format!("{key}.all_communities"), texts)));
        }
    }

    fn as_path_matches(&mut self, key: &str, raw: &RawBgpMatch, lists: &Lists, all: &mut Vec<Match>) {
        if let Some(lines) = &raw.as_path {
            all.push(Match::AsPath(self.as_path_list(&format!("{key}.as_path"), lines)));
        }
        if let Some(names) = &raw.as_path_lists {
            let of = |list: &Arc<AsPathList>| Match::AsPath(Arc::clone(list));
            all.push(self.named(&format!("{key}.as_path_lists"), "AS path list", names, &lists.as_paths, of));
        }
        let length = raw.as_path_length.as_ref();
        if let Some(range) = length.and_then(|text| self.range(&format!("{key}.as_path_length"), text)) {
            all.push(Match::AsPathLength(range));
        }
        if let Some(texts) = &raw.neighbor_as {
            all.push(Match::NeighborAs(self.ranges(&format!("{key}.neighbor_as"), texts)));
        }
        if let Some(texts) = &raw.origin_as {
            all.push(Match::OriginAs(self.ranges(&format!("{key}.origin_as"), texts)));
        }
    }

    /// One of several named lists.
    fn named<T>(
        &mut self,
        key: &str,
        what: &str,
        names: &[Name],
        known: &BTreeMap<String, T>,
        of: impl Fn(&T) -> Match,
    ) -> Match {
        let mut found = Vec::with_capacity(names.len());
        for (i, name) in names.iter().enumerate() {
            match known.get(name.as_str()) {
                Some(list) => found.push(of(list)),
                None => self.unknown(&format!("{key}[{i}]"), what, name, known.keys().map(String::as_str)),
            }
        }
        match found.pop() {
            Some(only) if found.is_empty() => only,
            Some(last) => {
                found.push(last);
                Match::Any(found)
            }
            None => Match::Any(found),
        }
    }

    fn actions(&mut self, key: &str, raw: &RawBgpSet) -> Vec<Action> {
        let mut all = Vec::new();
        let number = |set: Option<u32>, add: Option<u32>, subtract: Option<u32>| {
            let edits = [set.map(NumberEdit::Set), add.map(NumberEdit::Add), subtract.map(NumberEdit::Subtract)];
            let mut edits = edits.into_iter().flatten();
            (edits.next(), edits.next().is_some())
        };
        let (local_pref, several) = number(raw.local_pref, raw.add_local_pref, raw.subtract_local_pref);
        all.extend(local_pref.map(Action::LocalPref));
        let (med, several_med) = number(raw.med, raw.add_med, raw.subtract_med);
        all.extend(med.map(Action::Med));
        let removes_med = raw.remove_med == Some(true);
        if removes_med {
            all.push(Action::RemoveMed);
        }
        if several || several_med || (removes_med && med.is_some()) {
            let what = if several { "LOCAL_PREF" } else { "MED" };
            self.error(key, format!("{what} is changed in two ways"), "keep one of the keys");
        }
        all.extend(raw.origin.map(|one| Action::Origin(origin(one))));
        if !raw.remove_communities.is_empty() {
            let patterns = self.community_patterns(&format!("{key}.remove_communities"), &raw.remove_communities);
            all.push(Action::RemoveCommunities(patterns));
        }
        if !raw.communities.is_empty() {
            let list = self.communities(&format!("{key}.communities"), &raw.communities);
            all.push(Action::SetCommunities(list.into()));
        }
        if !raw.add_communities.is_empty() {
            let list = self.communities(&format!("{key}.add_communities"), &raw.add_communities);
            all.push(Action::AddCommunities(list.into()));
        }
        all.extend(raw.prepend.as_ref().and_then(|raw| self.prepend(&format!("{key}.prepend"), raw)));
        if let Some(text) = &raw.next_hop {
            let edit = match (text.as_str(), text.as_str().parse::<IpAddr>()) {
                ("self", _) => Some(NextHopEdit::Own),
                ("unchanged", _) => Some(NextHopEdit::Unchanged),
                (_, Ok(address)) => Some(NextHopEdit::Address(NextHop::from(address))),
                (_, Err(_)) => None,
            };
            match edit {
                Some(edit) => all.push(Action::NextHop(edit)),
                None => {
                    let message = format!("{:?} is not a next hop", text.as_str());
                    self.error(&format!("{key}.next_hop"), message, "write self, unchanged or an address");
                }
            }
        }
        all
    }

    fn prepend(&mut self, key: &str, raw: &RawPrepend) -> Option<Action> {
        let what = match raw.r#as.as_ref().map_or("own", |text| text.as_str()) {
            "own" => PrependAs::Own,
            "first" => PrependAs::First,
            text => match text.parse::<u32>().ok().filter(|number| *number != 0) {
                Some(number) => PrependAs::Number(Asn(number)),
                None => {
                    self.error(&format!("{key}.as"), format!("{text:?} is not an AS"), "write own, first or a number");
                    return None;
                }
            },
        };
        let count = raw.count.unwrap_or(1);
        match u8::try_from(count) {
            Ok(times) if (1..=PREPEND_MAX).contains(&count) => Some(Action::Prepend(what, times)),
            Ok(_) | Err(_) => {
                self.error(&format!("{key}.count"), format!("{count} times is not possible"), "write 1 to 32");
                None
            }
        }
    }
}

const fn family(name: RawFamilyName) -> Family {
    match name {
        RawFamilyName::Ipv4 => Family::Ipv4Unicast,
        RawFamilyName::Ipv6 => Family::Ipv6Unicast,
    }
}

const fn origin(origin: RawOrigin) -> Origin {
    match origin {
        RawOrigin::Igp => Origin::Igp,
        RawOrigin::Egp => Origin::Egp,
        RawOrigin::Incomplete => Origin::Incomplete,
    }
}

const fn validity(validity: RawValidity) -> Validity {
    match validity {
        RawValidity::Valid => Validity::Valid,
        RawValidity::Invalid => Validity::Invalid,
        RawValidity::NotFound => Validity::NotFound,
    }
}

const fn source_kind(source: RawSource) -> SourceKind {
    match source {
        RawSource::PodCidr => SourceKind::Local(LocalSource::PodCidr),
        RawSource::Service => SourceKind::Local(LocalSource::Service),
        RawSource::NodeAddress => SourceKind::Local(LocalSource::NodeAddress),
        RawSource::Static => SourceKind::Local(LocalSource::Static),
        RawSource::Aggregate => SourceKind::Local(LocalSource::Aggregate),
        RawSource::External => SourceKind::Peer(PeerKind::External),
        RawSource::Internal => SourceKind::Peer(PeerKind::Internal),
        RawSource::Confederation => SourceKind::Peer(PeerKind::Confederation),
    }
}
