//! The table of connections: where an entry is, and how it comes and goes while other processors look.
//!
//! A hash table of the kernel takes a call and three or four cache lines, on as many pages, for each of the two entries of a
//! connection. Here both are neighbors: entries are in buckets of [`WAYS`], each with a line of words in front, and the bucket follows
//! from the end of the tuple that is the client's, which the question and the answer share unless the source is replaced. A connection
//! that begins meets one bucket.
//!
//! An entry that finds its bucket full goes to one of [`GROUP`] others, which follow from its whole tuple; its bucket counts those, so that
//! only who misses an entry there looks further. A word is
//!
//! | bits | what |
//! |---|---|
//! | 0 | 1: the entry is written |
//! | 1 to 16 | of the first way: how many entries of this bucket are in others, at most [`MOST`], which it then keeps |
//! | 17 | 1: the way is somebody's |
//! | 18 to 63 | bits of the hash of the tuple and of which end is the client's |
//!
//! and changes by compare and exchange; there are no locks. Who makes an entry takes its way, writes it, and says then that it is written: until
//! then nobody finds it, and nobody makes another one for the same tuple. Who replaces what an entry says takes that back first. Two processors that make
//! the same entry at the same moment see each other's words, and at most one goes on. The hash begins with a random number, so that nobody outside can choose tuples that meet in a bucket.

use meshd_abi::{Address, ConnectionKey, WAYS};

use crate::choose::reduce;

/// Other buckets in which an entry may be: neighbors in memory.
pub const GROUP: u32 = 4;
/// Most entries in others that a bucket counts.
pub const MOST: u64 = (1 << 16) - 1;

/// The entry is written.
const WRITTEN: u64 = 1;
/// One entry that is counted.
const ONE: u64 = 1 << 1;
const COUNT: u64 = MOST * ONE;
/// The way is somebody's.
const TAKEN: u64 = 1 << 17;
/// What tells entries apart.
const TAG: u64 = !(COUNT | WRITTEN | TAKEN);

/// Which end of a tuple the bucket follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Client {
    /// The source: of everything that is no answer.
    Source = 0,
    /// The destination: of answers (`connection_flags::REPLY`).
    Destination = 1,
}

impl Client {
    /// The other direction's.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
}

/// A key in double words, as it lies in memory.
pub trait Words: Copy + PartialEq {
    /// What stands for the source, address and port, and for the destination, with the protocol in both.
    fn ends(self, seed: u64) -> [u64; 2];
}

/// IPv4: both addresses, then ports and protocol.
impl Words for [u64; 2] {
    #[inline(always)]
    fn ends(self, _: u64) -> [u64; 2] {
        ends(halves(self[0], 32), self[1])
    }
}

/// IPv6: two for each address, then ports and protocol.
impl Words for [u64; 5] {
    #[inline(always)]
    fn ends(self, seed: u64) -> [u64; 2] {
        ends6([self[0], self[1]], [self[2], self[3]], self[4], seed)
    }
}

/// The ends of a key of IPv6: two words of each address, and its last one.
#[must_use]
#[inline(always)]
pub fn ends6(source: [u64; 2], destination: [u64; 2], rest: u64, seed: u64) -> [u64; 2] {
    // Twice, because what differs in the highest bits only differs after one multiplication in the same bits whatever the seed.
    let folded = |[first, second]: [u64; 2]| fold(fold(fold(seed, first), seed), second);
    ends([folded(source), folded(destination)], rest)
}

#[inline(always)]
fn ends([source, destination]: [u64; 2], rest: u64) -> [u64; 2] {
    let [ports, kind] = halves(rest, 32);
    let [source_port, destination_port] = halves(ports, 16);
    // The protocol is the octet that lies first.
    let protocol = u64::from((kind as u32).to_le()) << 48;
    [source ^ source_port << 32 ^ protocol, destination ^ destination_port << 32 ^ protocol]
}

/// A word of two halves of `bits` bits, in the order in which they lie in memory.
#[must_use]
#[inline(always)]
pub const fn pair(first: u64, second: u64, bits: u32) -> u64 {
    if cfg!(target_endian = "little") { first | second << bits } else { first << bits | second }
}

/// Both halves of such a word.
#[inline(always)]
const fn halves(word: u64, bits: u32) -> [u64; 2] {
    let (low, high) = (word & ((1 << bits) - 1), word >> bits & ((1 << bits) - 1));
    if cfg!(target_endian = "little") { [low, high] } else { [high, low] }
}

/// A multiplication that every bit of both takes part in.
#[inline(always)]
const fn fold(hash: u64, word: u64) -> u64 {
    let product = (hash ^ word).wrapping_mul(0xd6e8_feb8_6659_fd93);
    product ^ product >> 32
}

/// What the hash of an answer's first end differs in: the last bit of the way, and one that no end of IPv4 has, so that no other end of a question makes up
/// for it. Ends of IPv6 are hashes themselves.
const ANSWER: u64 = 1 << 63 | 1 << 32;

/// Where an entry may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its bucket.
    pub home: u32,
    /// The way of that bucket that is looked at first: of an answer the neighbor of the question's, in the same pair.
    pub way: usize,
    /// The first of the group of other buckets.
    others: u32,
    /// Its word, without a count.
    word: u64,
}

impl Place {
    /// Where the entry of a key is, in a table of so many buckets, a multiple of [`GROUP`].
    #[inline(always)]
    pub fn of<K: Words>(key: K, client: Client, seed: u64, buckets: u32) -> Self {
        let [source, destination] = key.ends(seed);
        let answers = u64::from(client as u32 != 0);
        // Without a branch: both are in registers.
        let swap = (source ^ destination) & answers.wrapping_neg();
        // The bucket comes from the lower half, and the way from the other.
        let home = fold(fold(seed, source ^ swap), seed) ^ answers.wrapping_neg() & ANSWER;
        // The answer of one connection and the question of another one may be a tuple and its reverse: what a workload asks a service for
        // is answered by the backend, to which masquerade sends the question. So the direction goes in, too.
        let whole = fold(fold(home, destination ^ swap), seed);
        Self {
            home: reduce(home as u32, buckets),
            way: (home >> 32) as usize & (WAYS - 1),
            others: reduce(whole as u32, buckets / GROUP) * GROUP,
            word: whole & TAG | TAKEN,
        }
    }

    /// The same for user space, where nothing is known of the family.
    #[must_use]
    pub fn of_key<A: Address>(key: &ConnectionKey<A>, client: Client, seed: u64, buckets: u32) -> Self {
        let (source, destination) = (key.source.words(), key.destination.words());
        let ports = pair(key.source_port.into(), key.destination_port.into(), 16);
        let rest = pair(ports, u32::from_ne_bytes([key.protocol, 0, 0, 0]).into(), 32);
        let two = |first: u32, second: u32| pair(first.into(), second.into(), 32);
        if A::IS_V4 {
            return Self::of([two(source[0], destination[0]), rest], client, seed, buckets);
        }
        let halves = |[a, b, c, d]: [u32; 4]| [two(a, b), two(c, d)];
        let ([a, b], [c, d]) = (halves(source), halves(destination));
        Self::of([a, b, c, d, rest], client, seed, buckets)
    }

    /// True when a word is that of an entry here, whether it is written or not and whatever it counts besides.
    #[must_use]
    #[inline(always)]
    pub const fn is(&self, word: u64) -> bool {
        (word ^ self.word) & !(COUNT | WRITTEN) == 0
    }

    /// The same of one that is written.
    #[must_use]
    #[inline(always)]
    pub const fn is_written(&self, word: u64) -> bool {
        (word ^ (self.word | WRITTEN)) & !COUNT == 0
    }
}

#[inline(always)]
const fn is_free(word: u64) -> bool {
    word & TAKEN == 0
}

/// How many entries of a bucket are in others, by its first word.
#[inline(always)]
const fn count(word: u64) -> u64 {
    (word & COUNT) / ONE
}

/// An entry: its bucket and way. What [`Position::NONE`] means depends on who answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(pub u64);

impl Position {
    /// No entry.
    pub const NONE: Self = Self(0);

    /// The entry of a way of a bucket.
    #[must_use]
    #[inline(always)]
    pub const fn new(bucket: u32, way: usize) -> Self {
        Self((bucket as u64) << 4 | (way as u64) << 1 | 1)
    }

    /// The bucket.
    #[must_use]
    #[inline(always)]
    pub const fn bucket(self) -> u32 {
        (self.0 >> 4) as u32
    }

    /// The way, which is one of [`WAYS`].
    #[must_use]
    #[inline(always)]
    pub const fn way(self) -> usize {
        (self.0 >> 1) as usize & (WAYS - 1)
    }
}

/// Memory that others use at the same time.
pub trait Buckets<K> {
    /// A bucket that there is.
    type Bucket: Copy;

    /// A bucket; `None` beyond the last.
    fn bucket(&self, index: u32) -> Option<Self::Bucket>;
    /// The same way, so that the verifier sees that it is one of [`WAYS`]: that of Linux 6.1 loses sight of numbers that are put together of two.
    fn way(&self, way: usize) -> usize {
        way & (WAYS - 1)
    }
    /// The word of a way.
    fn word(&self, bucket: Self::Bucket, way: usize) -> u64;
    /// Puts `to` in place of `from`, in order with everything before and after; false when something else was there.
    fn exchange(&self, bucket: Self::Bucket, way: usize, from: u64, to: u64) -> bool;
    /// The same where nobody else changes the word.
    fn set(&self, bucket: Self::Bucket, way: usize, to: u64);
    /// True when the entry of a way has this key.
    fn has(&self, bucket: Self::Bucket, way: usize, key: &K) -> bool;
}

/// The entry with a key.
#[inline(always)]
pub fn find<K, B: Buckets<K>>(table: &B, key: &K, place: &Place) -> Position {
    let Some(home) = table.bucket(place.home) else { return Position::NONE };
    // Its first way, whose lines are fetched together with that of the words, and are those that are written if there is no entry.
    let first = table.way(place.way);
    let is_there = table.has(home, first, key);
    if place.is_written(table.word(home, first)) && is_there {
        return Position::new(place.home, first);
    }
    if let Some(way) = way_of(table, home, |way, word| place.is_written(word) && table.has(home, way, key)) {
        return Position::new(place.home, way);
    }
    if count(table.word(home, 0)) == 0 {
        return Position::NONE;
    }
    find_in_others(table, place, |bucket, way, word| place.is_written(word) && table.has(bucket, way, key))
}

/// The same where there is little stack: what has the entry's word but not its key hides the one that has both, once in 2^40 times or less.
#[inline(always)]
pub fn find_once<K, B: Buckets<K>>(table: &B, key: &K, place: &Place) -> Position {
    let at = by_word(table, place, |_, word| place.is_written(word));
    match table.bucket(at.bucket()) {
        Some(bucket) if at != Position::NONE && table.has(bucket, at.way(), key) => at,
        _ => Position::NONE,
    }
}

/// An entry by its word.
#[inline(always)]
fn by_word<K, B: Buckets<K>>(table: &B, place: &Place, is: impl Fn(Position, u64) -> bool) -> Position {
    let Some(home) = table.bucket(place.home) else { return Position::NONE };
    if let Some(way) = way_of(table, home, |way, word| is(Position::new(place.home, way), word)) {
        return Position::new(place.home, way);
    }
    if count(table.word(home, 0)) == 0 {
        return Position::NONE;
    }
    let mut next = 0;
    while next < GROUP {
        let index = place.others + next;
        next += 1;
        let Some(bucket) = table.bucket(index).filter(|_| index != place.home) else { continue };
        if let Some(way) = way_of(table, bucket, |way, word| is(Position::new(index, way), word)) {
            return Position::new(index, way);
        }
    }
    Position::NONE
}

/// A way of a bucket of which the caller says yes.
#[inline(always)]
fn way_of<K, B: Buckets<K>>(table: &B, bucket: B::Bucket, is: impl Fn(usize, u64) -> bool) -> Option<usize> {
    let mut way = 0;
    while way < WAYS {
        if is(way, table.word(bucket, way)) {
            return Some(way);
        }
        way += 1;
    }
    None
}

#[inline(always)]
fn find_in_others<K, B: Buckets<K>>(table: &B, place: &Place, is: impl Fn(B::Bucket, usize, u64) -> bool) -> Position {
    let mut next = 0;
    while next < GROUP {
        let index = place.others + next;
        next += 1;
        let Some(bucket) = table.bucket(index).filter(|_| index != place.home) else { continue };
        if let Some(way) = way_of(table, bucket, |way, word| is(bucket, way, word)) {
            return Position::new(index, way);
        }
    }
    Position::NONE
}

/// What became of a try to make an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is the caller's to write and to [`publish`].
    Made(Position),
    /// There is one already, which somebody may just be writing.
    Exists(Position),
    /// Every way in which it may be is taken.
    Full,
    /// To be asked of [`claim_anywhere`].
    Elsewhere,
}

impl Claim {
    /// There is one already: the bit beside the position.
    const EXISTS: u64 = 1 << 63;
    const ELSEWHERE: u64 = Self::EXISTS - 1;

    /// As a number, for what a function of the kernel can answer.
    #[must_use]
    #[inline(always)]
    pub const fn number(self) -> u64 {
        match self {
            Self::Made(position) => position.0,
            Self::Exists(position) => position.0 | Self::EXISTS,
            Self::Full => 0,
            Self::Elsewhere => Self::ELSEWHERE,
        }
    }

    /// The other way round.
    #[must_use]
    #[inline(always)]
    pub const fn of(number: u64) -> Self {
        match number {
            0 => Self::Full,
            Self::ELSEWHERE => Self::Elsewhere,
            _ if number & Self::EXISTS != 0 => Self::Exists(Position(number & !Self::EXISTS)),
            _ => Self::Made(Position(number)),
        }
    }
}

/// Makes an entry in its first way, when that is free and no other bucket has entries of this one: what happens most of the time.
#[inline(always)]
pub fn claim<K, B: Buckets<K>>(table: &B, place: &Place) -> Claim {
    let Some(home) = table.bucket(place.home) else { return Claim::Full };
    let first = table.way(place.way);
    let seen = table.word(home, first);
    let is_free = is_free(seen) && count(table.word(home, 0)) == 0;
    if !is_free || !table.exchange(home, first, seen, seen & COUNT | place.word) {
        return Claim::Elsewhere;
    }
    // After it, so that of two who do this at a time one sees the other.
    let other = way_of(table, home, |way, word| way != first && place.is(word));
    // Others may have been sent away meanwhile, one with this key among them.
    if other.is_none() && count(table.word(home, 0)) == 0 {
        return Claim::Made(Position::new(place.home, first));
    }
    clear(table, home, first, place);
    Claim::Elsewhere
}

/// Makes an entry wherever there is room, unless there is one.
#[inline(always)]
pub fn claim_anywhere<K, B: Buckets<K>>(table: &B, place: &Place) -> Claim {
    let known = seen(table, place, Position::NONE);
    if known != Position::NONE {
        return Claim::Exists(known);
    }
    let Some(home) = table.bucket(place.home) else { return Claim::Full };
    let mut made = Position::NONE;
    if let Some(way) = take_way(table, home, place) {
        made = Position::new(place.home, way);
    } else if add_to_count(table, home, true) {
        made = take_in_others(table, place);
        if made == Position::NONE {
            add_to_count(table, home, false);
        }
    }
    if made == Position::NONE {
        return Claim::Full;
    }
    let known = seen(table, place, made);
    if known == Position::NONE {
        return Claim::Made(made);
    }
    release(table, place, made);
    Claim::Exists(known)
}

/// An entry with the word of this place but the one at `except`, written or not.
#[inline(always)]
fn seen<K, B: Buckets<K>>(table: &B, place: &Place, except: Position) -> Position {
    by_word(table, place, |at, word| place.is(word) && at != except)
}

/// Takes a free way of a bucket.
#[inline(always)]
fn take_way<K, B: Buckets<K>>(table: &B, bucket: B::Bucket, place: &Place) -> Option<usize> {
    let mut way = 0;
    while way < WAYS {
        let seen = table.word(bucket, way);
        if is_free(seen) && table.exchange(bucket, way, seen, seen & COUNT | place.word) {
            return Some(way);
        }
        way += 1;
    }
    None
}

#[inline(always)]
fn take_in_others<K, B: Buckets<K>>(table: &B, place: &Place) -> Position {
    let mut next = 0;
    while next < GROUP {
        let index = place.others + next;
        next += 1;
        let Some(bucket) = table.bucket(index).filter(|_| index != place.home) else { continue };
        if let Some(way) = take_way(table, bucket, place) {
            return Position::new(index, way);
        }
    }
    Position::NONE
}

/// One more entry of a bucket, or one less, is in others. False when it cannot be said now.
#[inline(always)]
fn add_to_count<K, B: Buckets<K>>(table: &B, home: B::Bucket, more: bool) -> bool {
    change(table, home, 0, |word| match count(word) {
        // What was not counted cannot be taken back.
        MOST => Some(word),
        0 if !more => Some(word),
        _ if more => Some(word + ONE),
        _ => Some(word - ONE),
    })
}

/// Says that an entry is written: to be called by whoever made it, or took it to [replace](replace) it.
#[inline(always)]
pub fn publish<K, B: Buckets<K>>(table: &B, at: Position) -> bool {
    let (Some(bucket), way) = (table.bucket(at.bucket()), at.way()) else { return false };
    // Only the first word counts, and is changed by others therefore.
    if way != 0 {
        table.set(bucket, way, table.word(bucket, way) | WRITTEN);
        return true;
    }
    change(table, bucket, way, |word| Some(word | WRITTEN))
}

/// Takes the entry of a key, so that it can be written again; false when it is another one's, or somebody else just writes it. Nobody finds it until it
/// is [published](publish). Its place is asked for when the key has been compared: so both need no stack at once.
#[inline(always)]
pub fn replace<K, B: Buckets<K>>(table: &B, key: &K, place: impl FnOnce() -> Option<Place>, at: Position) -> bool {
    let Some(bucket) = table.bucket(at.bucket()).filter(|bucket| table.has(*bucket, at.way(), key)) else {
        return false;
    };
    let Some(place) = place() else { return false };
    change(table, bucket, at.way(), |word| if place.is_written(word) { Some(word & !WRITTEN) } else { None })
}

/// Changes a word, whatever is counted in it meanwhile; false when there is nothing to change.
#[inline(always)]
fn change<K, B: Buckets<K>>(table: &B, bucket: B::Bucket, way: usize, to: impl Fn(u64) -> Option<u64>) -> bool {
    /// Others may change the count that often.
    const TRIES: u32 = 16;
    let mut tries = 0;
    while tries < TRIES {
        let seen = table.word(bucket, way);
        let Some(wanted) = to(seen) else { return false };
        if table.exchange(bucket, way, seen, wanted) {
            return true;
        }
        tries += 1;
    }
    false
}

/// Frees the way of an entry; false when somebody else did.
#[inline(always)]
pub fn release<K, B: Buckets<K>>(table: &B, place: &Place, at: Position) -> bool {
    let Some(bucket) = table.bucket(at.bucket()) else { return false };
    if !clear(table, bucket, at.way(), place) {
        return false;
    }
    if at.bucket() != place.home
        && let Some(home) = table.bucket(place.home)
    {
        // Left as it is, who misses an entry looks further than needed.
        add_to_count(table, home, false);
    }
    true
}

/// Clears a word.
#[inline(always)]
fn clear<K, B: Buckets<K>>(table: &B, bucket: B::Bucket, way: usize, place: &Place) -> bool {
    change(table, bucket, way, |word| if place.is(word) { Some(freed(word)) } else { None })
}

/// A word without its entry: what is counted in it stays.
#[must_use]
pub const fn freed(word: u64) -> u64 {
    word & COUNT
}

/// True when a word is somebody's.
#[must_use]
pub const fn is_taken(word: u64) -> bool {
    word & TAKEN != 0
}

/// True when a word says that there is an entry.
#[must_use]
pub const fn is_written(word: u64) -> bool {
    word & WRITTEN != 0
}
