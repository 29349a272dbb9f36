//! Virtual time and chance, both from one seed.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

/// SplitMix64: small, fast, and the same on every machine and with every release of every crate.
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed ^ 0x6d65_7368_6473_696d)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).expect("below a usize")
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A duration from `low` to `high`, in milliseconds.
    pub(crate) fn ms(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(low + self.next() % (high - low + 1))
    }

    /// One element of a list that is not empty.
    pub(crate) fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

/// What will happen, in order of time; equal times in the order they were entered.
#[derive(Debug)]
pub(crate) struct Agenda<E> {
    pub(crate) now: Duration,
    entered: u64,
    /// What is next, and where it is: events are moved once on their way in and once on their way out.
    order: BinaryHeap<Reverse<(Duration, u64, usize)>>,
    events: Vec<Option<E>>,
    free: Vec<usize>,
}

impl<E> Agenda<E> {
    pub(crate) fn new() -> Self {
        Self { now: Duration::ZERO, entered: 0, order: BinaryHeap::new(), events: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn at(&mut self, time: Duration, event: E) {
        self.entered += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[place] = Some(event);
        self.order.push(Reverse((time.max(self.now), self.entered, place)));
    }

    pub(crate) fn after(&mut self, delay: Duration, event: E) {
        self.at(self.now + delay, event);
    }

    /// The next event not later than `end`; time moves to it.
    pub(crate) fn pop(&mut self, end: Duration) -> Option<E> {
        let Reverse((time, _, place)) = *self.order.peek()?;
        if time > end {
            return None;
        }
        self.order.pop();
        self.free.push(place);
        self.now = time;
        self.events[place].take()
    }
}
