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

/// The states of a pattern; the first is where it begins, the last is [`State::Match`].
#[derive(Clone, Debug)]
pub(super) struct Machine {
    states: Vec<State>,
}

impl Machine {
    /// `None` when there would be too many states.
    pub(super) fn build(tree: &Tree) -> Option<Self> {
        let mut machine = Self { states: Vec::new() };
        machine.add(tree)?;
        machine.push(State::Match)?;
        Some(machine)
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
#[derive(Clone, Copy)]
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

    fn iter(&self) -> impl Iterator<Item = u16> {
        (0u16..).step_by(64).zip(self.0).flat_map(|(base, word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = u16::try_from(rest.checked_ilog2()?).ok()?;
                rest &= !(1 << bit);
                Some(base + bit)
            })
        })
    }
}

/// A pattern on its way over a text, which is written into it.
pub(super) struct Run<'a> {
    machine: &'a Machine,
    states: States,
    matched: bool,
    begun: bool,
}

impl<'a> Run<'a> {
    pub(super) fn new(machine: &'a Machine) -> Self {
        let mut run = Self { machine, states: States::NONE, matched: false, begun: false };
        run.states = run.closure(&[0], false);
        run
    }

    /// True when the pattern matched what was written so far.
    pub(super) const fn has_matched(&self) -> bool {
        self.matched
    }

    /// True when it matches the whole text.
    pub(super) fn finish(mut self) -> bool {
        let mut waiting = [0; STATES_MAX];
        let count = self.states.iter().zip(waiting.iter_mut()).map(|(state, slot)| *slot = state).count();
        self.closure(waiting.get(..count).unwrap_or_default(), true);
        self.matched
    }

    fn take(&mut self, octet: u8) {
        let bit = set_of(octet).unwrap_or(0);
        self.begun = true;
        let mut next = [0; STATES_MAX];
        let mut count = 0;
        for state in self.states.iter() {
            if let Some(State::One(set)) = self.machine.states.get(usize::from(state))
                && set & bit != 0
                && let Some(slot) = next.get_mut(count)
            {
                *slot = state + 1;
                count += 1;
            }
        }
        // A pattern may begin anywhere.
        if let Some(slot) = next.get_mut(count) {
            *slot = 0;
            count += 1;
        }
        self.states = self.closure(next.get(..count).unwrap_or_default(), false);
    }

    /// Everything that is reached from `from` without a character. [`State::End`] stays in the set until the end is known.
    fn closure(&mut self, from: &[u16], at_end: bool) -> States {
        let mut reached = States::NONE;
        let mut waiting = [0; STATES_MAX];
        let mut count = 0;
        let push = |reached: &mut States, count: &mut usize, waiting: &mut [u16; STATES_MAX], state: u16| {
            // Every state is in it once at most, so there is always room.
            if reached.insert(state)
                && let Some(slot) = waiting.get_mut(*count)
            {
                *slot = state;
                *count += 1;
            }
        };
        for state in from {
            push(&mut reached, &mut count, &mut waiting, *state);
        }
        while let Some(state) = count.checked_sub(1).and_then(|top| waiting.get(top)).copied() {
            count -= 1;
            match self.machine.states.get(usize::from(state)) {
                Some(State::Split(one, other)) => {
                    push(&mut reached, &mut count, &mut waiting, *one);
                    push(&mut reached, &mut count, &mut waiting, *other);
                }
                Some(State::Begin) if !self.begun => push(&mut reached, &mut count, &mut waiting, state + 1),
                Some(State::End) if at_end => push(&mut reached, &mut count, &mut waiting, state + 1),
                Some(State::Match) => self.matched = true,
                Some(State::One(_) | State::Begin | State::End) | None => {}
            }
        }
        reached
    }
}

impl fmt::Write for Run<'_> {
    /// Fails as soon as the pattern has matched: more text changes nothing.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for octet in text.bytes() {
            if self.matched {
                return Err(fmt::Error);
            }
            self.take(octet);
        }
        Ok(())
    }
}
