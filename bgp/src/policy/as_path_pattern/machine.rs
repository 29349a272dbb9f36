//! From the tree of a pattern to states, and moving over them.

use std::fmt;

use super::parse::Tree;

/// Characters that the text of a path can have, as bits.
pub(super) type Set = u32;

const CHARACTERS: [u8; 18] = *b"0123456789 ,{}()[]";
/// All of them.
pub(super) const ANY: Set = (1 << CHARACTERS.len()) - 1;
/// The digits.
pub(super) const DIGITS: Set = (1 << 10) - 1;
/// All others: what `_` stands for.
const SEPARATORS: Set = ANY & !DIGITS;

/// The bit of a character, if a path can have it.
pub(super) fn set_of(octet: u8) -> Option<Set> {
    if octet.is_ascii_digit() {
        return Some(1 << (octet - b'0'));
    }
    let index = CHARACTERS.iter().position(|character| *character == octet)?;
    Some(1 << index)
}

/// States of one pattern at most.
const STATES_MAX: usize = 512;
const WORDS: usize = STATES_MAX / 64;

#[derive(Clone, Copy, Debug)]
enum State {
    /// Takes one character and goes to the next state.
    One(Set),
    /// Goes to both.
    Split(u16, u16),
    /// Goes to the next state before the first character only.
    Begin,
    /// Goes to the next state after the last character only.
    End,
    /// The pattern matches.
    Match,
}

/// The states of a pattern; the first is where it begins, the last is [`State::Match`]. What is reached without a character
/// is known before any text is.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    states: Vec<State>,
    /// Words of a set of states that are used.
    words: usize,
    /// Where a text begins.
    begin: States,
    /// Where a text that has begun may begin to match as well.
    restart: States,
    /// For each state, what is reached from the one behind it.
    behind: Vec<States>,
    /// States from which the end of a text leads to a match.
    at_end: States,
    matches_empty: bool,
}

impl Machine {
    /// `None` when there would be too many states.
    pub(super) fn build(tree: &Tree) -> Option<Self> {
        let mut machine = Self {
            states: Vec::new(),
            words: 0,
            begin: States::NONE,
            restart: States::NONE,
            behind: Vec::new(),
            at_end: States::NONE,
            matches_empty: false,
        };
        machine.add(tree)?;
        machine.push(State::Match)?;
        machine.close();
        Some(machine)
    }

    /// Follows everything that needs no character.
    fn close(&mut self) {
        let count = u16::try_from(self.states.len()).unwrap_or(u16::MAX);
        let accept = count.saturating_sub(1);
        self.words = self.states.len().div_ceil(64).min(WORDS);
        self.begin = self.closure(0, true, false);
        self.restart = self.closure(0, false, false);
        self.behind = (0..count).map(|state| self.closure(state + 1, false, false)).collect();
        self.matches_empty = self.closure(0, true, true).contains(accept);
        for state in 0..count {
            if self.closure(state, false, true).contains(accept) {
                self.at_end.insert(state);
            }
        }
    }

    /// Everything that is reached from a state without a character.
    fn closure(&self, from: u16, at_begin: bool, at_end: bool) -> States {
        let mut reached = States::NONE;
        let mut waiting = vec![from];
        while let Some(state) = waiting.pop() {
            if !reached.insert(state) {
                continue;
            }
            match self.states.get(usize::from(state)) {
                Some(State::Split(one, other)) => waiting.extend([*one, *other]),
                Some(State::Begin) if at_begin => waiting.push(state + 1),
                Some(State::End) if at_end => waiting.push(state + 1),
                Some(State::One(_) | State::Begin | State::End | State::Match) | None => {}
            }
        }
        reached
    }

    fn here(&self) -> Option<u16> {
        u16::try_from(self.states.len()).ok()
    }

    fn push(&mut self, state: State) -> Option<usize> {
        let index = self.states.len();
        if index == STATES_MAX {
            return None;
        }
        self.states.push(state);
        Some(index)
    }

    fn set(&mut self, index: usize, state: State) {
        if let Some(slot) = self.states.get_mut(index) {
            *slot = state;
        }
    }

    /// A way to the next state, or to where [`Self::set`] will say.
    fn placeholder(&mut self) -> Option<usize> {
        let next = self.here()?.checked_add(1)?;
        self.push(State::Split(next, next))
    }

    fn add(&mut self, tree: &Tree) -> Option<()> {
        match tree {
            Tree::One(set) => self.push(State::One(*set)).map(|_| ()),
            Tree::Begin => self.push(State::Begin).map(|_| ()),
            Tree::End => self.push(State::End).map(|_| ()),
            Tree::Edge => self.either(&[Tree::Begin, Tree::End, Tree::One(SEPARATORS)]),
            Tree::Sequence(parts) => parts.iter().try_for_each(|part| self.add(part)),
            Tree::Either(ways) => self.either(ways),
            Tree::Repeat(inner, low, high) => self.repeat(inner, *low, *high),
        }
    }

    fn either(&mut self, ways: &[Tree]) -> Option<()> {
        let mut ends = Vec::new();
        for (index, way) in ways.iter().enumerate() {
            let is_last = index + 1 == ways.len();
            let split = if is_last { None } else { Some(self.placeholder()?) };
            self.add(way)?;
            if let Some(split) = split {
                ends.push(self.placeholder()?);
                let first = u16::try_from(split).ok()?.checked_add(1)?;
                self.set(split, State::Split(first, self.here()?));
            }
        }
        let after = self.here()?;
        for end in ends {
            self.set(end, State::Split(after, after));
        }
        Some(())
    }

    fn repeat(&mut self, inner: &Tree, low: u32, high: Option<u32>) -> Option<()> {
        for _ in 0..low {
            self.add(inner)?;
        }
        let Some(high) = high else {
            let split = self.placeholder()?;
            self.add(inner)?;
            let back = u16::try_from(split).ok()?;
            self.push(State::Split(back, back))?;
            self.set(split, State::Split(back.checked_add(1)?, self.here()?));
            return Some(());
        };
        let mut splits = Vec::new();
        for _ in low..high {
            splits.push(self.placeholder()?);
            self.add(inner)?;
        }
        let after = self.here()?;
        for split in splits {
            let next = u16::try_from(split).ok()?.checked_add(1)?;
            self.set(split, State::Split(next, after));
        }
        Some(())
    }
}

/// A set of states.
#[derive(Clone, Copy, Debug)]
struct States([u64; WORDS]);

impl States {
    const NONE: Self = Self([0; WORDS]);

    /// False when it was in already.
    fn insert(&mut self, state: u16) -> bool {
        let Some(word) = self.0.get_mut(usize::from(state) / 64) else { return false };
        let bit = 1 << (state % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    fn contains(&self, state: u16) -> bool {
        self.0.get(usize::from(state) / 64).is_some_and(|word| word & (1 << (state % 64)) != 0)
    }
}

/// A pattern on its way over a text, which is written into it.
pub(super) struct Run<'a> {
    machine: &'a Machine,
    states: States,
    begun: bool,
}

impl<'a> Run<'a> {
    pub(super) const fn new(machine: &'a Machine) -> Self {
        Self { machine, states: machine.begin, begun: false }
    }

    /// True when the pattern matched what was written so far.
    pub(super) fn has_matched(&self) -> bool {
        let accept = self.machine.states.len().wrapping_sub(1);
        u16::try_from(accept).is_ok_and(|accept| self.states.contains(accept))
    }

    /// True when it matches the whole text.
    pub(super) fn finish(self) -> bool {
        if !self.begun {
            return self.machine.matches_empty;
        }
        let mut pairs = self.states.0.iter().zip(&self.machine.at_end.0).take(self.machine.words);
        pairs.any(|(reached, accepting)| reached & accepting != 0)
    }

    fn take(&mut self, octet: u8) {
        let bit = set_of(octet).unwrap_or(0);
        self.begun = true;
        // A pattern may begin anywhere.
        let mut next = self.machine.restart;
        for (base, word) in (0..).step_by(64).zip(self.states.0).take(self.machine.words) {
            let mut rest = word;
            while rest != 0 {
                let state = base + rest.trailing_zeros() as usize;
                rest &= rest - 1;
                if let Some(State::One(set)) = self.machine.states.get(state)
                    && set & bit != 0
                    && let Some(behind) = self.machine.behind.get(state)
                {
                    let words = next.0.iter_mut().zip(&behind.0).take(self.machine.words);
                    words.for_each(|(word, behind)| *word |= behind);
                }
            }
        }
        self.states = next;
    }
}

impl fmt::Write for Run<'_> {
    /// Fails as soon as the pattern has matched: more text changes nothing.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for octet in text.bytes() {
            if self.has_matched() {
                return Err(fmt::Error);
            }
            self.take(octet);
        }
        Ok(())
    }
}
