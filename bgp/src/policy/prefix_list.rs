//! Prefix lists.

use std::{fmt, str::FromStr};

use ipnet::IpNet;

use super::nested::Nested;
use crate::family::Family;

/// One line of a prefix list: prefixes inside `prefix` whose length is in a range.
///
/// Written as FRR does (`10.0.0.0/8 ge 16 le 24`) or as BIRD does (`10.0.0.0/8{16,24}`, `10.0.0.0/8+`), with `permit` or
/// `deny` in front. Without a range it is this very prefix, with `ge` alone everything from there on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixEntry {
    /// What the prefixes lie in.
    pub prefix: IpNet,
    /// Their shortest length.
    pub length_min: u8,
    /// Their longest length.
    pub length_max: u8,
    /// Whether what matches is on the list or is taken off it.
    pub permit: bool,
}

impl PrefixEntry {
    /// This very prefix.
    #[must_use]
    pub fn exact(prefix: IpNet) -> Self {
        Self { prefix, length_min: prefix.prefix_len(), length_max: prefix.prefix_len(), permit: true }
    }

    /// This prefix and everything inside it.
    #[must_use]
    pub fn or_longer(prefix: IpNet) -> Self {
        Self { prefix, length_min: prefix.prefix_len(), length_max: prefix.max_prefix_len(), permit: true }
    }

    const fn admits(&self, length: u8) -> bool {
        self.length_min <= length && length <= self.length_max
    }
}

/// Why a text is not a line of a prefix list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixEntryError {
    /// No prefix where one is needed.
    #[error("{0:?} is not a prefix")]
    Prefix(String),
    /// Bits behind the length.
    #[error("{prefix} has host bits set: write {}", prefix.trunc())]
    HostBits {
        /// As written.
        prefix: IpNet,
    },
    /// Something else after the prefix.
    #[error("{0:?} is not `ge LENGTH` or `le LENGTH`")]
    Range(String),
    /// Lengths that no prefix can have.
    #[error("lengths must satisfy {length} <= ge <= le <= {max}, but ge is {ge} and le is {le}")]
    Lengths {
        /// Length of the prefix.
        length: u8,
        /// Longest of the family.
        max: u8,
        /// As written or implied.
        ge: u8,
        /// As written or implied.
        le: u8,
    },
}

impl FromStr for PrefixEntry {
    type Err = PrefixEntryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut rest = text.trim();
        let mut permit = true;
        for (word, meaning) in [("permit", true), ("deny", false)] {
            if let Some(after) = rest.strip_prefix(word).filter(|after| after.starts_with(char::is_whitespace)) {
                (rest, permit) = (after.trim_start(), meaning);
                break;
            }
        }
        let end = rest.find(|c: char| c.is_whitespace() || matches!(c, '{' | '+')).unwrap_or(rest.len());
        let (prefix, range) = rest.split_at(end);
        let prefix: IpNet = prefix.parse().map_err(|_| PrefixEntryError::Prefix(prefix.to_owned()))?;
        if prefix != prefix.trunc() {
            return Err(PrefixEntryError::HostBits { prefix });
        }
        let (length, max) = (prefix.prefix_len(), prefix.max_prefix_len());
        let (ge, le) = lengths(range.trim(), max)?;
        let (length_min, length_max) = match (ge, le) {
            (None, None) => (length, length),
            (Some(ge), None) => (ge, max),
            (None, Some(le)) => (length, le),
            (Some(ge), Some(le)) => (ge, le),
        };
        if length > length_min || length_min > length_max || length_max > max {
            return Err(PrefixEntryError::Lengths { length, max, ge: length_min, le: length_max });
        }
        Ok(Self { prefix, length_min, length_max, permit })
    }
}

/// What follows the prefix: the values of `ge` and `le`.
fn lengths(text: &str, longest: u8) -> Result<(Option<u8>, Option<u8>), PrefixEntryError> {
    let wrong = || PrefixEntryError::Range(text.to_owned());
    let number = |text: &str| text.trim().parse::<u8>().map_err(|_| wrong());
    if text == "+" {
        return Ok((None, Some(longest)));
    }
    if let Some(inner) = text.strip_prefix('{') {
        let (low, high) = inner.strip_suffix('}').and_then(|inner| inner.split_once(',')).ok_or_else(wrong)?;
        return Ok((Some(number(low)?), Some(number(high)?)));
    }
    let (mut ge, mut le) = (None, None);
    let mut words = text.split_whitespace();
    while let Some(word) = words.next() {
        let slot = match word {
            "ge" => &mut ge,
            "le" => &mut le,
            _ => return Err(wrong()),
        };
        let value = number(words.next().ok_or_else(wrong)?)?;
        if slot.replace(value).is_some() {
            return Err(wrong());
        }
    }
    Ok((ge, le))
}

/// As FRR writes it.
impl fmt::Display for PrefixEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.permit {
            f.write_str("deny ")?;
        }
        self.prefix.fmt(f)?;
        let (length, max) = (self.prefix.prefix_len(), self.prefix.max_prefix_len());
        if self.length_min == length && self.length_max == length {
            return Ok(());
        }
        if self.length_min != length {
            write!(f, " ge {}", self.length_min)?;
        }
        if self.length_max != max || self.length_min == length {
            write!(f, " le {}", self.length_max)?;
        }
        Ok(())
    }
}

/// A list of prefixes. The first line that matches decides, and a prefix that no line matches is not on the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixList {
    /// With the number of the line.
    lines: Nested<(u32, PrefixEntry)>,
    permits: (bool, bool),
}

impl PrefixList {
    /// A list of these lines in their order.
    #[must_use]
    pub fn new(entries: impl IntoIterator<Item = PrefixEntry>) -> Self {
        let mut permits = (false, false);
        let lines = (0u32..).zip(entries).inspect(|(_, entry)| match Family::of(&entry.prefix) {
            Family::Ipv4Unicast => permits.0 |= entry.permit,
            Family::Ipv6Unicast => permits.1 |= entry.permit,
        });
        let lines = Nested::build(lines.map(|(line, entry)| (entry.prefix, (line, entry))));
        Self { lines, permits }
    }

    /// Is the prefix on the list?
    #[must_use]
    pub fn contains(&self, prefix: &IpNet) -> bool {
        let admits = |(_, entry): &&(u32, PrefixEntry)| entry.admits(prefix.prefix_len());
        let first = self.lines.covering(prefix).filter(admits).min_by_key(|(line, _)| *line);
        first.is_some_and(|(_, entry)| entry.permit)
    }

    /// How many lines it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// True without any line.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Can a prefix of this family be on it?
    #[must_use]
    pub const fn admits_family(&self, family: Family) -> bool {
        match family {
            Family::Ipv4Unicast => self.permits.0,
            Family::Ipv6Unicast => self.permits.1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str) -> PrefixEntry {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    #[test]
    fn lines_are_read_in_the_ways_of_both_daemons_and_written_in_one() {
        for (text, min, max, written) in [
            ("10.0.0.0/8", 8, 8, "10.0.0.0/8"),
            ("permit 10.0.0.0/8 ge 16", 16, 32, "10.0.0.0/8 ge 16"),
            ("10.0.0.0/8 le 24", 8, 24, "10.0.0.0/8 le 24"),
            ("10.0.0.0/8 ge 16 le 24", 16, 24, "10.0.0.0/8 ge 16 le 24"),
            ("10.0.0.0/8 le 24 ge 16", 16, 24, "10.0.0.0/8 ge 16 le 24"),
            ("10.0.0.0/8{16,24}", 16, 24, "10.0.0.0/8 ge 16 le 24"),
            ("10.0.0.0/8+", 8, 32, "10.0.0.0/8 le 32"),
            ("2001:db8::/32+", 32, 128, "2001:db8::/32 le 128"),
            ("::/0 ge 128", 128, 128, "::/0 ge 128"),
            ("192.0.2.1/32 le 32", 32, 32, "192.0.2.1/32"),
        ] {
            let entry = entry(text);
            assert_eq!((entry.length_min, entry.length_max, entry.permit), (min, max, true), "{text}");
            assert_eq!(entry.to_string(), written);
            assert_eq!(written.parse(), Ok(entry));
        }
        assert!(!entry("deny 10.0.0.0/8").permit);
        assert_eq!(entry("deny 10.0.0.0/8 le 9").to_string(), "deny 10.0.0.0/8 le 9");
    }

    #[test]
    fn wrong_lines_say_what_is_wrong() {
        for (text, message) in [
            ("10.0.0.0", "\"10.0.0.0\" is not a prefix"),
            ("deny", "\"deny\" is not a prefix"),
            ("10.0.0.1/8", "10.0.0.1/8 has host bits set: write 10.0.0.0/8"),
            ("10.0.0.0/8 lt 9", "\"lt 9\" is not `ge LENGTH` or `le LENGTH`"),
            ("10.0.0.0/8 ge", "\"ge\" is not `ge LENGTH` or `le LENGTH`"),
            ("10.0.0.0/8 ge 9 ge 10", "\"ge 9 ge 10\" is not `ge LENGTH` or `le LENGTH`"),
            ("10.0.0.0/8 ge 7", "lengths must satisfy 8 <= ge <= le <= 32, but ge is 7 and le is 32"),
            ("10.0.0.0/8 ge 24 le 16", "lengths must satisfy 8 <= ge <= le <= 32, but ge is 24 and le is 16"),
            ("10.0.0.0/8 le 33", "lengths must satisfy 8 <= ge <= le <= 32, but ge is 8 and le is 33"),
            ("10.0.0.0/8{16}", "\"{16}\" is not `ge LENGTH` or `le LENGTH`"),
        ] {
            assert_eq!(text.parse::<PrefixEntry>().expect_err(text).to_string(), message);
        }
    }

    #[test]
    fn the_first_line_that_matches_decides() {
        let list = PrefixList::new(
            ["deny 10.1.0.0/16 le 32", "10.0.0.0/8 ge 16 le 24", "deny 10.0.0.0/8 le 32", "0.0.0.0/0 le 32"].map(entry),
        );
        for (prefix, on) in [
            ("10.1.2.0/24", false),
            ("10.2.2.0/24", true),
            ("10.2.2.0/25", false),
            ("10.0.0.0/8", false),
            ("10.0.0.0/7", true),
            ("192.0.2.0/24", true),
            ("2001:db8::/32", false),
        ] {
            assert_eq!(list.contains(&net(prefix)), on, "{prefix}");
        }
        assert!(list.admits_family(Family::Ipv4Unicast) && !list.admits_family(Family::Ipv6Unicast));
    }

    #[test]
    fn a_hundred_thousand_lines_cost_a_binary_search() {
        let lines = (0..100_000u32)
            .map(|n| PrefixEntry::or_longer(net(&format!("{}/24", std::net::Ipv4Addr::from_bits(n << 8)))));
        let list = PrefixList::new(lines);
        assert_eq!(list.len(), 100_000);
        let hits = (0..200_000u32).filter(|n| {
            let host = std::net::Ipv4Addr::from_bits(n << 8 | 7);
            list.contains(&IpNet::from(std::net::IpAddr::V4(host)))
        });
        assert_eq!(hits.count(), 100_000);
    }
}
