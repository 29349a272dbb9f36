//! Changing attributes without taking them all apart.
//!
//! Only values that change are copied; the rest is taken over as octets when the result is put together.

use super::{
    candidate::NextHopEdit,
    community::{Community, CommunityPattern},
    rule::{Action, PrependAs},
};
use crate::{
    id::Asn,
    wire::{
        as_path::{AsPath, SegmentKind, prepend},
        attributes::{Attributes, LargeCommunity, code, flag, known_flags, write_attribute},
    },
};

/// A path that is being changed.
pub(super) struct Edit<'a> {
    base: Attributes<'a>,
    /// New values by ascending code; `None` takes the attribute out.
    changed: Vec<(u8, Option<Vec<u8>>)>,
    /// What is said of the next hop so far.
    pub(super) next_hop: NextHopEdit,
}

impl<'a> Edit<'a> {
    pub(super) const fn new(base: Attributes<'a>, next_hop: NextHopEdit) -> Self {
        Self { base, changed: Vec::new(), next_hop }
    }

    pub(super) fn apply(&mut self, action: &Action, local_as: Asn) {
        match action {
            Action::LocalPref(edit) => {
                let value = edit.local_pref(self.number(code::LOCAL_PREF));
                self.set(code::LOCAL_PREF, Some(value.to_be_bytes().to_vec()));
            }
            Action::Med(edit) => {
                let value = edit.med(self.number(code::MED));
                self.set(code::MED, Some(value.to_be_bytes().to_vec()));
            }
            Action::RemoveMed => self.set(code::MED, None),
            Action::Origin(origin) => self.set(code::ORIGIN, Some(vec![*origin as u8])),
            Action::SetCommunities(list) => self.set_communities(list),
            Action::AddCommunities(list) => self.add_communities(list),
            Action::RemoveCommunities(patterns) => self.remove_communities(patterns),
            Action::Prepend(what, count) => self.prepend(*what, *count, local_as),
            Action::NextHop(edit) => self.next_hop = *edit,
        }
    }

    /// The new attributes; `None` when nothing is different.
    pub(super) fn finish(self) -> Option<Vec<u8>> {
        let is_changed = |(code, value): &(u8, Option<Vec<u8>>)| self.base.get(*code) != value.as_deref();
        if !self.changed.iter().any(is_changed) {
            return None;
        }
        let more: usize = self.changed.iter().filter_map(|(_, value)| Some(value.as_ref()?.len() + 4)).sum();
        let mut out = Vec::with_capacity(self.base.0.len() + more);
        let mut changed = self.changed.iter().peekable();
        for attribute in self.base.iter() {
            while let Some((code, value)) = changed.next_if(|(code, _)| *code < attribute.code) {
                write_new(&mut out, *code, value.as_deref());
            }
            match changed.next_if(|(code, _)| *code == attribute.code) {
                // Partial was set by somebody on the way and stays.
                Some((code, Some(value))) => {
                    write_attribute(&mut out, attribute.flags & !flag::EXTENDED_LENGTH, *code, value);
                }
                Some((_, None)) => {}
                None => out.extend_from_slice(attribute.octets),
            }
        }
        for (code, value) in changed {
            write_new(&mut out, *code, value.as_deref());
        }
        Some(out)
    }

    fn get(&self, code: u8) -> Option<&[u8]> {
        match self.changed.binary_search_by_key(&code, |(code, _)| *code) {
            Ok(index) => self.changed.get(index)?.1.as_deref(),
            Err(_) => self.base.get(code),
        }
    }

    fn number(&self, code: u8) -> Option<u32> {
        self.get(code)?.first_chunk().map(|octets| u32::from_be_bytes(*octets))
    }

    fn set(&mut self, code: u8, value: Option<Vec<u8>>) {
        match self.changed.binary_search_by_key(&code, |(code, _)| *code) {
            Ok(index) => {
                if let Some(slot) = self.changed.get_mut(index) {
                    slot.1 = value;
                }
            }
            Err(index) => self.changed.insert(index, (code, value)),
        }
    }

    /// Sets an attribute that is not written when it is empty.
    fn set_list(&mut self, code: u8, value: Vec<u8>) {
        self.set(code, if value.is_empty() { None } else { Some(value) });
    }

    fn set_communities(&mut self, list: &[Community]) {
        for code in [code::COMMUNITIES, code::EXTENDED_COMMUNITIES, code::LARGE_COMMUNITIES] {
            if list.iter().any(|community| code_of(*community) == code) {
                self.set(code, None);
            }
        }
        self.add_communities(list);
    }

    fn add_communities(&mut self, list: &[Community]) {
        for community in list {
            let code = code_of(*community);
            let octets = octets_of(*community);
            let before = self.get(code).unwrap_or_default();
            if before.chunks(octets.len()).any(|one| one == octets) {
                continue;
            }
            let mut value = before.to_vec();
            value.extend_from_slice(&octets);
            // More does not fit into the length of an attribute.
            if value.len() <= usize::from(u16::MAX) {
                self.set(code, Some(value));
            }
        }
    }

    fn remove_communities(&mut self, patterns: &[CommunityPattern]) {
        let stays = |community: Community| !patterns.iter().any(|pattern| pattern.matches(community));
        for (code, width) in [(code::COMMUNITIES, 4), (code::EXTENDED_COMMUNITIES, 8), (code::LARGE_COMMUNITIES, 12)] {
            let Some(before) = self.get(code) else { continue };
            let kept = before.chunks_exact(width).filter(|octets| community_of(octets).is_none_or(stays));
            let value = kept.collect::<Vec<_>>().concat();
            if value.len() != before.len() {
                self.set_list(code, value);
            }
        }
    }

    fn prepend(&mut self, what: PrependAs, count: u8, local_as: Asn) {
        let before = AsPath::of_canonical(self.get(code::AS_PATH).unwrap_or_default());
        let asn = match what {
            PrependAs::Own => Some(local_as),
            PrependAs::First => before.neighbor(),
            PrependAs::Number(asn) => Some(asn),
        };
        let Some(asn) = asn else { return };
        // A sequence in front of segments of our confederation would hide where the confederation ends.
        let kind = match before.segments().next().map(|segment| segment.kind) {
            Some(SegmentKind::ConfedSequence | SegmentKind::ConfedSet) => SegmentKind::ConfedSequence,
            Some(SegmentKind::Sequence | SegmentKind::Set) | None => SegmentKind::Sequence,
        };
        let value = prepend(before, kind, asn, count);
        if value.len() <= usize::from(u16::MAX) {
            self.set(code::AS_PATH, Some(value));
        }
    }
}

fn write_new(out: &mut Vec<u8>, code: u8, value: Option<&[u8]>) {
    if let Some(value) = value {
        write_attribute(out, known_flags(code).unwrap_or(flag::OPTIONAL | flag::TRANSITIVE), code, value);
    }
}

const fn code_of(community: Community) -> u8 {
    match community {
        Community::Standard(_) => code::COMMUNITIES,
        Community::Extended(_) => code::EXTENDED_COMMUNITIES,
        Community::Large(_) => code::LARGE_COMMUNITIES,
    }
}

fn octets_of(community: Community) -> Vec<u8> {
    match community {
        Community::Standard(value) => value.to_be_bytes().to_vec(),
        Community::Extended(octets) => octets.to_vec(),
        Community::Large(LargeCommunity { global, local_1, local_2 }) => {
            [global, local_1, local_2].map(u32::to_be_bytes).concat()
        }
    }
}

/// The community of so many octets.
fn community_of(octets: &[u8]) -> Option<Community> {
    let word = |at: usize| octets.get(at..at + 4)?.first_chunk().map(|octets| u32::from_be_bytes(*octets));
    match octets.len() {
        4 => word(0).map(Community::Standard),
        8 => octets.first_chunk().map(|octets| Community::Extended(*octets)),
        12 => Some(Community::Large(LargeCommunity { global: word(0)?, local_1: word(4)?, local_2: word(8)? })),
        _ => None,
    }
}
