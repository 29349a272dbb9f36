//! Patterns of AS paths: the regular expressions of routers.
//!
//! A pattern is matched against the text of a path (`65001 65002 {65010 65011} (65100)`): POSIX extended regular expressions,
//! in which `_` stands for the begin, the end or what separates numbers. `_65001_` is every path by way of AS 65001, `^65001_`
//! one from that neighbor, `_65001$` one that it originated, `^$` one of our own AS, `^65001( 65001)*$` one of nobody else.
//!
//! Matching never goes back (a set of states moves over the text once), so that the time is bounded by length of the path
//! times size of the pattern whatever both are, and it makes no text: the path is written into the matcher. The most common
//! forms are compared as numbers.

use std::{
    fmt::{self, Write as _},
    str::FromStr,
};

use crate::{
    id::Asn,
    wire::as_path::{AsPath, SegmentKind},
};

mod machine;
mod parse;

use machine::{Machine, Run};

/// Longest pattern, in octets.
pub const PATTERN_LEN_MAX: usize = 512;

/// A pattern of AS paths.
#[derive(Clone, Debug)]
pub struct AsPathPattern {
    text: String,
    form: Form,
    machine: Machine,
}

/// Forms that need no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `^$`
    Empty,
    /// `_N_`
    Has(Asn),
    /// `^N_`
    From(Asn),
    /// `_N$`
    By(Asn),
    Other,
}

/// Why a text is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an AS path pattern: {reason} at character {position}")]
pub struct AsPathPatternError {
    /// The whole pattern.
    pub text: String,
    /// What is wrong.
    pub reason: &'static str,
    /// Where, from 1.
    pub position: usize,
}

impl AsPathPattern {
    /// Does the path match?
    #[must_use]
    pub fn matches(&self, path: AsPath<'_>) -> bool {
        match self.form {
            Form::Empty => path.segments().next().is_none(),
            Form::Has(asn) => path.contains(asn),
            Form::From(asn) => path
                .segments()
                .next()
                .is_some_and(|first| first.kind == SegmentKind::Sequence && first.numbers().next() == Some(asn)),
            Form::By(asn) => path
                .segments()
                .last()
                .is_some_and(|last| last.kind == SegmentKind::Sequence && last.numbers().next_back() == Some(asn)),
            Form::Other => self.matches_text(path),
        }
    }

    /// As [`Self::matches`], always by way of the text.
    pub(crate) fn matches_text(&self, path: AsPath<'_>) -> bool {
        let mut run = Run::new(&self.machine);
        // Writing fails only when the run says that more text changes nothing.
        if write!(run, "{path}").is_err() {
            return run.has_matched();
        }
        run.finish()
    }

    /// The pattern as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for AsPathPattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for AsPathPattern {}

impl FromStr for AsPathPattern {
    type Err = AsPathPatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |(reason, position)| AsPathPatternError { text: text.to_owned(), reason, position: position + 1 };
        if text.len() > PATTERN_LEN_MAX {
            return Err(wrong(("a pattern has at most 512 characters", PATTERN_LEN_MAX)));
        }
        let tree = parse::parse(text).map_err(wrong)?;
        let machine = Machine::build(&tree).ok_or_else(|| wrong(("the pattern is too large", 0)))?;
        Ok(Self { text: text.to_owned(), form: form_of(text), machine })
    }
}

impl fmt::Display for AsPathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn form_of(text: &str) -> Form {
    if text == "^$" {
        return Form::Empty;
    }
    let number = |text: &str| {
        // As a path is written: no sign and no zero in front.
        let asn: u32 = text.parse().ok()?;
        (asn.to_string() == text).then_some(Asn(asn))
    };
    let between = |start: &str, end: &str| number(text.strip_prefix(start)?.strip_suffix(end)?);
    if let Some(asn) = between("_", "_") {
        Form::Has(asn)
    } else if let Some(asn) = between("^", "_") {
        Form::From(asn)
    } else if let Some(asn) = between("_", "$") {
        Form::By(asn)
    } else {
        Form::Other
    }
}

/// A list of patterns. The first that matches decides; a path that none matches is not on the list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AsPathList {
    /// Each with whether it permits.
    pub entries: Vec<(AsPathPattern, bool)>,
}

impl AsPathList {
    /// Is the path on the list?
    #[must_use]
    pub fn contains(&self, path: AsPath<'_>) -> bool {
        self.entries.iter().find(|(pattern, _)| pattern.matches(path)).is_some_and(|(_, permit)| *permit)
    }
}

#[cfg(test)]
mod tests;
