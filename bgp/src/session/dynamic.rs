//! Peers that nobody configured one by one: who connects from a listen range becomes a peer.

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;
use thiserror::Error;

use super::key::PeerKey;

/// A range of addresses from which peers are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenRange {
    /// The addresses.
    pub prefix: IpNet,
    /// Name of the template that configures these peers.
    pub template: Arc<str>,
    /// At most so many peers at a time.
    pub limit: u32,
}

/// The listen ranges with the peers that came from them.
#[derive(Clone, Debug, Default)]
pub struct DynamicPeers {
    ranges: Vec<Range>,
    /// Peers with the index of their range.
    members: BTreeMap<PeerKey, usize>,
    limit: usize,
}

#[derive(Clone, Debug)]
struct Range {
    config: ListenRange,
    members: u32,
}

/// Why somebody is not taken as a peer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AdmitError {
    /// No range has the address.
    #[error("{0} is not in any listen range")]
    NoRange(PeerKey),
    /// As many as the range allows.
    #[error("listen range {prefix} has its {limit} peers already")]
    RangeFull {
        /// The range.
        prefix: IpNet,
        /// Its limit.
        limit: u32,
    },
    /// As many as all ranges together allow.
    #[error("there are {0} dynamic peers already, the limit of all listen ranges together")]
    Full(usize),
}

impl DynamicPeers {
    /// Ranges with a limit for all of them together. Of ranges with the same prefix only the last is used.
    #[must_use]
    pub fn new(limit: usize, ranges: impl IntoIterator<Item = ListenRange>) -> Self {
        let mut peers = Self { limit, ..Self::default() };
        peers.set_ranges(ranges);
        peers
    }

    /// Takes a peer in, or finds it again, and names its range: the longest prefix that has the address.
    pub fn admit(&mut self, key: &PeerKey) -> Result<&ListenRange, AdmitError> {
        let index = match self.members.get(key) {
            Some(index) => *index,
            None => self.place(key)?,
        };
        self.ranges.get(index).map(|range| &range.config).ok_or_else(|| AdmitError::NoRange(key.clone()))
    }

    /// The peer is gone. False when it was none of ours.
    pub fn release(&mut self, key: &PeerKey) -> bool {
        let Some(index) = self.members.remove(key) else {
            return false;
        };
        if let Some(range) = self.ranges.get_mut(index) {
            range.members = range.members.saturating_sub(1);
        }
        true
    }

    /// Peers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// True without peers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Peers with their ranges, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&PeerKey, &ListenRange)> {
        self.members.iter().filter_map(|(key, index)| Some((key, &self.ranges.get(*index)?.config)))
    }

    /// Other ranges and another limit. Returns the peers that are no longer taken: their range is gone, has another template,
    /// or is full now. Peers that stay are not disturbed, also when a longer prefix would take them today.
    pub fn reconfigure(&mut self, limit: usize, ranges: impl IntoIterator<Item = ListenRange>) -> Vec<PeerKey> {
        let before = std::mem::take(&mut self.members);
        let old: Vec<ListenRange> = std::mem::take(&mut self.ranges).into_iter().map(|range| range.config).collect();
        self.limit = limit;
        self.set_ranges(ranges);
        let mut gone = Vec::new();
        for (key, index) in before {
            let same = old.get(index).and_then(|old| {
                self.ranges
                    .iter()
                    .position(|range| range.config.prefix == old.prefix && range.config.template == old.template)
            });
            if same.is_none_or(|index| self.put(&key, index).is_err()) {
                gone.push(key);
            }
        }
        gone
    }

    fn set_ranges(&mut self, ranges: impl IntoIterator<Item = ListenRange>) {
        let by_prefix: BTreeMap<IpNet, ListenRange> =
            ranges.into_iter().map(|range| (range.prefix.trunc(), range)).collect();
        self.ranges = by_prefix.into_values().map(|config| Range { config, members: 0 }).collect();
        // The longest prefix first, so that the first that fits is the right one.
        self.ranges.sort_by_key(|range| std::cmp::Reverse(range.config.prefix.prefix_len()));
    }

    fn place(&mut self, key: &PeerKey) -> Result<usize, AdmitError> {
        let address = key.address().ok_or_else(|| AdmitError::NoRange(key.clone()))?;
        let index = self
            .ranges
            .iter()
            .position(|range| range.config.prefix.contains(&address))
            .ok_or_else(|| AdmitError::NoRange(key.clone()))?;
        self.put(key, index)?;
        Ok(index)
    }

    fn put(&mut self, key: &PeerKey, index: usize) -> Result<(), AdmitError> {
        if self.members.len() >= self.limit {
            return Err(AdmitError::Full(self.limit));
        }
        let range = self.ranges.get_mut(index).ok_or_else(|| AdmitError::NoRange(key.clone()))?;
        if range.members >= range.config.limit {
            return Err(AdmitError::RangeFull { prefix: range.config.prefix, limit: range.config.limit });
        }
        range.members += 1;
        self.members.insert(key.clone(), index);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(prefix: &str, template: &str, limit: u32) -> ListenRange {
        ListenRange { prefix: prefix.parse().expect("a prefix"), template: template.into(), limit }
    }

    fn key(text: &str) -> PeerKey {
        text.parse().expect("a key")
    }

    fn template(peers: &mut DynamicPeers, address: &str) -> Result<String, AdmitError> {
        peers.admit(&key(address)).map(|range| range.template.to_string())
    }

    #[test]
    fn the_longest_prefix_decides() {
        let ranges =
            [range("10.0.0.0/8", "wide", 9), range("10.1.0.0/16", "narrow", 9), range("2001:db8::/32", "six", 9)];
        let mut peers = DynamicPeers::new(10, ranges);
        assert_eq!(template(&mut peers, "10.2.0.1").as_deref(), Ok("wide"));
        assert_eq!(template(&mut peers, "10.1.0.1").as_deref(), Ok("narrow"));
        assert_eq!(template(&mut peers, "2001:db8::1").as_deref(), Ok("six"));
        assert_eq!(template(&mut peers, "192.0.2.1"), Err(AdmitError::NoRange(key("192.0.2.1"))));
        assert_eq!(template(&mut peers, "eth0"), Err(AdmitError::NoRange(key("eth0"))));
        assert_eq!(
            peers.iter().map(|(key, _)| key.to_string()).collect::<Vec<_>>(),
            ["10.1.0.1", "10.2.0.1", "2001:db8::1"]
        );
    }

    #[test]
    fn a_range_and_all_ranges_have_limits() {
        let mut peers = DynamicPeers::new(3, [range("10.0.0.0/24", "a", 2), range("10.0.1.0/24", "b", 9)]);
        for address in ["10.0.0.1", "10.0.0.2", "10.0.0.1"] {
            assert_eq!(template(&mut peers, address).as_deref(), Ok("a"));
        }
        let prefix = "10.0.0.0/24".parse().expect("a prefix");
        assert_eq!(template(&mut peers, "10.0.0.3"), Err(AdmitError::RangeFull { prefix, limit: 2 }));
        assert_eq!(template(&mut peers, "10.0.1.1").as_deref(), Ok("b"));
        assert_eq!(template(&mut peers, "10.0.1.2"), Err(AdmitError::Full(3)));
        assert!(peers.release(&key("10.0.0.1")) && !peers.release(&key("10.0.0.1")));
        assert_eq!(template(&mut peers, "10.0.0.3").as_deref(), Ok("a"));
        assert_eq!(peers.len(), 3);
    }

    #[test]
    fn a_change_keeps_whom_it_can() {
        let mut peers = DynamicPeers::new(9, [range("10.0.0.0/24", "a", 9), range("10.0.1.0/24", "b", 9)]);
        for address in ["10.0.0.1", "10.0.0.2", "10.0.1.1"] {
            assert!(peers.admit(&key(address)).is_ok());
        }
        let gone = peers.reconfigure(9, [range("10.0.0.0/24", "a", 1), range("10.0.1.0/24", "other", 9)]);
        assert_eq!(gone, [key("10.0.0.2"), key("10.0.1.1")]);
        assert_eq!(peers.len(), 1);
        // A longer prefix does not take a peer away that is there already.
        assert_eq!(peers.reconfigure(9, [range("10.0.0.0/24", "a", 1), range("10.0.0.1/32", "c", 9)]), []);
        assert_eq!(template(&mut peers, "10.0.0.1").as_deref(), Ok("a"));
        assert_eq!(peers.reconfigure(0, [range("10.0.0.0/24", "a", 1)]), [key("10.0.0.1")]);
        assert!(peers.is_empty());
    }
}
