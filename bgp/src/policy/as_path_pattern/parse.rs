//! From the text of a pattern to a tree.

use super::machine::{ANY, DIGITS, Set, set_of};

/// Groups in each other at most: parsing goes one call deeper for each.
const DEPTH_MAX: usize = 32;
/// Largest number between braces.
const REPEAT_MAX: u32 = 64;

/// A regular expression.
#[derive(Clone, Debug)]
pub(super) enum Tree {
    /// One character of these.
    One(Set),
    /// Nothing, before the first character.
    Begin,
    /// Nothing, after the last character.
    End,
    /// Begin, end or one separator: `_`.
    Edge,
    /// One after the other.
    Sequence(Vec<Tree>),
    /// One or another.
    Either(Vec<Tree>),
    /// At least so many, at most so many, or without end.
    Repeat(Box<Tree>, u32, Option<u32>),
}

/// What is wrong and at which octet.
type Wrong = (&'static str, usize);

pub(super) fn parse(text: &str) -> Result<Tree, Wrong> {
    let mut parser = Parser { text: text.as_bytes(), at: 0, depth: 0 };
    let tree = parser.either()?;
    if parser.at < parser.text.len() {
        return Err(("this `)` closes nothing", parser.at));
    }
    Ok(tree)
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let octet = self.peek()?;
        self.at += 1;
        Some(octet)
    }

    fn either(&mut self) -> Result<Tree, Wrong> {
        let mut ways = vec![self.sequence()?];
        while self.peek() == Some(b'|') {
            self.at += 1;
            ways.push(self.sequence()?);
        }
        Ok(Tree::Either(ways))
    }

    fn sequence(&mut self) -> Result<Tree, Wrong> {
        let mut parts = Vec::new();
        while let Some(octet) = self.peek() {
            if matches!(octet, b'|' | b')') {
                break;
            }
            let atom = self.atom()?;
            parts.push(self.repeated(atom)?);
        }
        Ok(Tree::Sequence(parts))
    }

    fn atom(&mut self) -> Result<Tree, Wrong> {
        let at = self.at;
        match self.next() {
            Some(b'^') => Ok(Tree::Begin),
            Some(b'$') => Ok(Tree::End),
            Some(b'_') => Ok(Tree::Edge),
            Some(b'.') => Ok(Tree::One(ANY)),
            Some(b'(') => self.group(at),
            Some(b'[') => self.class(at),
            Some(b'*' | b'+' | b'?') => Err(("nothing to repeat", at)),
            Some(b'\\') => {
                let octet = self.next().ok_or(("nothing after the backslash", at))?;
                if octet == b'd' {
                    return Ok(Tree::One(DIGITS));
                }
                literal(octet, at)
            }
            Some(octet) => literal(octet, at),
            None => Err(("something is missing", at)),
        }
    }

    fn group(&mut self, at: usize) -> Result<Tree, Wrong> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(("too many groups in each other", at));
        }
        let inner = self.either()?;
        if self.next() != Some(b')') {
            return Err(("this `(` is not closed", at));
        }
        self.depth -= 1;
        Ok(inner)
    }

    fn class(&mut self, at: usize) -> Result<Tree, Wrong> {
        const OPEN: Wrong = ("this `[` is not closed", 0);
        let open = (OPEN.0, at);
        let inverted = self.peek() == Some(b'^');
        if inverted {
            self.at += 1;
        }
        let mut set = 0;
        let first = self.at;
        loop {
            let at = self.at;
            let low = self.next().ok_or(open)?;
            // A bracket that comes first is one of the characters.
            if low == b']' && at != first {
                break;
            }
            let is_range = self.peek() == Some(b'-') && self.text.get(self.at + 1).is_some_and(|octet| *octet != b']');
            if !is_range {
                set |= set_of(low).ok_or((NOT_IN_PATHS, at))?;
                continue;
            }
            self.at += 1;
            let high = self.next().ok_or(open)?;
            if !low.is_ascii_digit() || !high.is_ascii_digit() || low > high {
                return Err(("a range goes from one digit to a larger one", at));
            }
            set |= (low..=high).filter_map(set_of).fold(0, |all, one| all | one);
        }
        Ok(Tree::One(if inverted { ANY & !set } else { set }))
    }

    fn repeated(&mut self, mut atom: Tree) -> Result<Tree, Wrong> {
        let mut marks = 0;
        loop {
            let at = self.at;
            let (low, high) = match self.peek() {
                Some(b'*') => (0, None),
                Some(b'+') => (1, None),
                Some(b'?') => (0, Some(1)),
                Some(b'{') => {
                    self.at += 1;
                    self.braces(at)?
                }
                Some(_) | None => return Ok(atom),
            };
            if self.text.get(at) != Some(&b'{') {
                self.at += 1;
            }
            marks += 1;
            if marks > DEPTH_MAX {
                return Err(("too many repetitions of one thing", at));
            }
            atom = Tree::Repeat(Box::new(atom), low, high);
        }
    }

    /// `N}`, `N,}` or `N,M}`.
    fn braces(&mut self, at: usize) -> Result<(u32, Option<u32>), Wrong> {
        let wrong = ("write {2}, {2,} or {2,4}; for a brace of an AS_SET write \\{", at);
        let rest = self.text.get(self.at..).unwrap_or_default();
        let end = rest.iter().position(|octet| *octet == b'}').ok_or(wrong)?;
        let inner = std::str::from_utf8(rest.get(..end).unwrap_or_default()).map_err(|_| wrong)?;
        self.at += end + 1;
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_digit());
            let number = if digits { text.parse::<u32>().ok() } else { None };
            number.filter(|number| *number <= REPEAT_MAX).ok_or(wrong)
        };
        let (low, high) = match inner.split_once(',') {
            None => (number(inner)?, Some(number(inner)?)),
            Some((low, "")) => (number(low)?, None),
            Some((low, high)) => (number(low)?, Some(number(high)?)),
        };
        if high.is_some_and(|high| high < low) {
            return Err(wrong);
        }
        Ok((low, high))
    }
}

const NOT_IN_PATHS: &str = "an AS path has digits, spaces and brackets only";

fn literal(octet: u8, at: usize) -> Result<Tree, Wrong> {
    set_of(octet).map(Tree::One).ok_or((NOT_IN_PATHS, at))
}
