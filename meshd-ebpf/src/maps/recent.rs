//! Connections whose packets were seen a moment ago, in front of the table of connections: answers, those of IPv6, and what is not in
//! [`packed`](super::packed).
//!
//! A hash table of the kernel takes a call and three or four cache lines that are far apart: with a hundred thousand connections
//! that is most of what a packet costs. Here the element's place follows from the tuple, and of IPv4 it is one line. What an element
//! says counts in the tick in which it was written only. So the table gets to know in each tick that the connection is alive, and
//! whatever happens to its entry is noticed within a second even where nobody says so; programs that replace or remove an entry do
//! say so ([`forget`]), and user space does when it removes some that are in use ([`EPOCH`]).
//!
//! Elements are shared by all CPUs. Writers exclude each other by a lock; readers take none, and look at a sequence number before and
//! after. That is enough where loads stay in order and stores do, and the loader leaves this out elsewhere.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, bpf_spin_lock},
    btf_maps::Array,
    helpers::{bpf_spin_lock as lock, bpf_spin_unlock as unlock},
    macros::btf_map,
};
use meshd_abi::{Address, Connection, ConnectionKey, Scope, V4, V6};

use meshd_steps::bucket::pair;

use super::Tables;

/// What asks for a connection: a key alone does not say which of its ends sent a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A packet for a service, asked from there.
    Asks(Scope),
    /// An answer.
    Answers,
}

impl Side {
    /// A number of its own.
    #[inline(always)]
    const fn octet(self) -> u8 {
        match self {
            Self::Asks(scope) => scope as u8,
            Self::Answers => 2,
        }
    }
}

/// Elements begin at a page: one of IPv4 is a cache line then.
const ALIGNED: usize = BPF_F_MMAPABLE as usize;
/// Elements in which a connection may be, a power of two: the later ones cost little, as they follow in memory, and with fewer more
/// connections find their places taken.
const WAYS: u32 = 4;
/// A moment in which no packet comes.
const NEVER: Moment = Moment(u64::MAX);

/// An element.
#[repr(C)]
pub struct Recent<A> {
    /// Of who writes.
    lock: bpf_spin_lock,
    /// Odd while it is written.
    sequence: u32,
    /// When it was written: the tick, and in the upper half the epoch.
    stamp: u64,
    key: ConnectionKey<A>,
    connection: Connection<A>,
}

const _: () = assert!(size_of::<Recent<V4>>() == 64 && size_of::<Recent<V6>>() == 112);

/// Counts how often entries were removed by user space that may be in use.
#[btf_map]
static EPOCH: Array<u32, 1> = Array::new();
#[btf_map]
static RECENT4: Array<Recent<V4>, 262_144, ALIGNED> = Array::new();
#[btf_map]
static RECENT6: Array<Recent<V6>, 65_536, ALIGNED> = Array::new();

/// Number of elements of IPv4 less one, which the loader sets; 0: none of them is used. In a section of its own, because the compiler
/// may use a constant for every other one that has the same value.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".rodata.recent")]
static RECENT4_MASK: u32 = 0;
/// The same of IPv6.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".rodata.recent")]
static RECENT6_MASK: u32 = 0;

/// The elements of a family.
pub trait Elements: Address {
    /// A key in double words.
    type Key: Copy + PartialEq + AsRef<[u64]>;
    /// Number of double words of a connection.
    const CONNECTION: usize;

    /// A key in double words, with who asks.
    fn halves(key: &ConnectionKey<Self>, side: Side) -> Self::Key;
    /// Number of elements less one; 0: none.
    fn mask() -> u32;
    /// An element.
    fn element(index: u32) -> Option<*mut Recent<Self>>;
    /// Calls the family's function that looks for a connection, or the one that writes.
    fn call(key: &ConnectionKey<Self>, side: Side, now: Moment, write: bool) -> u32;
}

impl Elements for V4 {
    type Key = [u64; 2];
    const CONNECTION: usize = size_of::<Connection<Self>>() / 8;

    #[inline(always)]
    fn halves(key: &ConnectionKey<Self>, side: Side) -> [u64; 2] {
        let ([source, ..], [destination, ..]) = (key.source.words(), key.destination.words());
        [pair(source.into(), destination.into(), 32), rest(key, side)]
    }
    #[inline(always)]
    fn mask() -> u32 {
        // SAFETY: a static of this program; volatile, because the loader changes it.
        unsafe { (&raw const RECENT4_MASK).read_volatile() }
    }
    #[inline(always)]
    fn element(index: u32) -> Option<*mut Recent<Self>> {
        RECENT4.get_ptr_mut(index)
    }
    #[inline(always)]
    fn call(key: &ConnectionKey<Self>, side: Side, now: Moment, write: bool) -> u32 {
        let [addresses, rest] = Self::halves(key, side);
        if write { remember4(addresses, rest, now.0) } else { recall4(addresses, rest, now.0) }
    }
}

impl Elements for V6 {
    type Key = [u64; 5];
    const CONNECTION: usize = size_of::<Connection<Self>>() / 8;

    #[inline(always)]
    fn halves(key: &ConnectionKey<Self>, side: Side) -> [u64; 5] {
        let ([a, b, c, d], [e, f, g, h]) = (key.source.words(), key.destination.words());
        let two = |first: u32, second: u32| pair(first.into(), second.into(), 32);
        [two(a, b), two(c, d), two(e, f), two(g, h), rest(key, side)]
    }
    #[inline(always)]
    fn mask() -> u32 {
        // SAFETY: as of IPv4.
        unsafe { (&raw const RECENT6_MASK).read_volatile() }
    }
    #[inline(always)]
    fn element(index: u32) -> Option<*mut Recent<Self>> {
        RECENT6.get_ptr_mut(index)
    }
    #[inline(always)]
    fn call(key: &ConnectionKey<Self>, side: Side, now: Moment, write: bool) -> u32 {
        // More words than a call takes.
        let Some(room) = Self::beginning() else { return 0 };
        let to = (&raw mut room.recent_key).cast::<u64>();
        for (at, word) in Self::halves(key, side).iter().enumerate() {
            // SAFETY: inside of the key; volatile, so that double words are written and read as such.
            unsafe { to.add(at).write_volatile(*word) };
        }
        if write { remember6(now.0) } else { recall6(now.0) }
    }
}

/// Ports, protocol and who asks.
#[inline(always)]
fn rest<A>(key: &ConnectionKey<A>, side: Side) -> u64 {
    let kind = u32::from_ne_bytes([key.protocol, side.octet(), 0, 0]);
    pair(pair(key.source_port.into(), key.destination_port.into(), 16), kind.into(), 32)
}

/// The first element in which a key may be.
#[inline(always)]
fn place<A: Elements>(words: A::Key) -> u32 {
    let mut hash = 0x9e37_79b9_7f4a_7c15_u64;
    for word in words.as_ref() {
        hash = (hash ^ word).wrapping_mul(0xd6e8_feb8_6659_fd93);
        hash ^= hash >> 32;
    }
    (hash as u32) & A::mask() & !(WAYS - 1)
}

/// The tick in which a program works and, in the upper half, the epoch: to be taken before anything is looked up that is then remembered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Moment(pub u64);

impl Moment {
    /// The moment of a tick.
    #[inline(always)]
    pub fn of(tick: u32) -> Option<Self> {
        // SAFETY: a word of a map; volatile, because user space changes it.
        let epoch = EPOCH.get(0).map(|epoch| unsafe { core::ptr::from_ref(epoch).read_volatile() })?;
        Some(Self(u64::from(tick) | u64::from(epoch) << 32))
    }

    /// The tick.
    #[inline(always)]
    pub const fn tick(self) -> u32 {
        self.0 as u32
    }

    /// The epoch.
    #[inline(always)]
    pub const fn epoch(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// True when an element has this key.
#[inline(always)]
fn has<A: Elements>(element: *const Recent<A>, words: A::Key) -> bool {
    // SAFETY: the words of the element's key; volatile, because somebody else may write them.
    let key = unsafe { (&raw const (*element).key).cast::<u64>() };
    let mut differ = 0;
    for (at, word) in words.as_ref().iter().enumerate() {
        // SAFETY: as above.
        differ |= unsafe { key.add(at).read_volatile() } ^ word;
    }
    differ == 0
}

/// The connection of a tuple when one of its packets was seen in this tick: a copy of this CPU's own, until the program asks for its
/// [`super::Beginning`].
#[inline(always)]
pub fn recall<A: Tables>(key: &ConnectionKey<A>, side: Side, now: Moment) -> Option<&'static mut Connection<A>> {
    if A::mask() == 0 || A::call(key, side, now, false) == 0 {
        return None;
    }
    A::beginning().map(|room| &mut room.forward)
}

/// Copies a connection to this CPU's room, where [`recall`] and the beginning of a connection leave theirs: the verifier then does not
/// follow each of the three to the end of the packet. What others are to see of it must have been written before.
#[inline(always)]
pub fn take<A: Tables>(connection: &Connection<A>) -> Option<&'static mut Connection<A>> {
    let room = A::beginning()?;
    // SAFETY: double words of two whole connections, which do not overlap; volatile, because others write the first.
    unsafe { copy::<A>(connection, &raw mut room.forward) };
    Some(&mut room.forward)
}

/// Notes the connection that was [taken](take), of which a packet is seen, unless others have its places in this tick.
#[inline(always)]
pub fn remember<A: Tables>(key: &ConnectionKey<A>, side: Side, now: Moment) {
    if A::mask() != 0 {
        A::call(key, side, now, true);
    }
}

/// Makes sure that nobody is told of a connection whose entry is replaced or removed, whoever asks.
#[inline(always)]
pub fn forget<A: Tables>(key: &ConnectionKey<A>) {
    if A::mask() != 0 {
        for side in [Side::Asks(Scope::External), Side::Asks(Scope::Internal), Side::Answers] {
            A::call(key, side, NEVER, true);
        }
        A::unpack(key);
    }
}

/// The functions of a family: verified once each, and not with every way to get there. They answer 1 for what was done.
macro_rules! functions {
    ($recall:ident, $remember:ident, $family:ty, ($($argument:ident),*), $words:expr) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $recall($($argument: u64,)* now: u64) -> u32 {
            find::<$family>($words, Moment(now)).is_some().into()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $remember($($argument: u64,)* now: u64) -> u32 {
            note::<$family>($words, Moment(now)).is_some().into()
        }
    };
}

functions!(recall4, remember4, V4, (addresses, rest), [addresses, rest]);
functions!(recall6, remember6, V6, (), {
    let Some(room) = V6::beginning() else { return 0 };
    // SAFETY: the key of this CPU's own room, laid down by the caller.
    unsafe { (&raw const room.recent_key).cast::<[u64; 5]>().read() }
});

/// Looks for a connection and copies what is there to this CPU's room.
#[inline(always)]
fn find<A: Tables>(words: A::Key, now: Moment) -> Option<()> {
    let (first, stamp) = (place::<A>(words), now.0);
    let room = A::beginning()?;
    let mut way = 0;
    while way < WAYS {
        let element = A::element(first ^ way)?;
        // SAFETY: fields of an element; volatile, because somebody else may write them meanwhile.
        unsafe {
            let sequence = (&raw const (*element).sequence).read_volatile();
            if (&raw const (*element).stamp).read_volatile() == stamp && has(element, words) {
                copy::<A>(&raw const (*element).connection, &raw mut room.forward);
                let is_whole = sequence & 1 == 0 && (&raw const (*element).sequence).read_volatile() == sequence;
                return is_whole.then_some(());
            }
        }
        way += 1;
    }
    None
}

/// Writes what is in this CPU's room to an element that the connection has already, or whose time is over; or only that what is there
/// counts no longer.
#[inline(always)]
fn note<A: Tables>(words: A::Key, now: Moment) -> Option<()> {
    let (first, stamp) = (place::<A>(words), now.0);
    let is_over = now == NEVER;
    let room = A::beginning()?;
    let mut way = 0;
    while way < WAYS {
        let element = A::element(first ^ way)?;
        // SAFETY: fields of an element, written with its lock held.
        unsafe {
            let is_known = has(element, words);
            if is_known || !is_over && (&raw const (*element).stamp).read_volatile() != stamp {
                let sequence = &raw mut (*element).sequence;
                let key = (&raw mut (*element).key).cast::<u64>();
                lock(&raw mut (*element).lock);
                sequence.write_volatile(sequence.read_volatile() | 1);
                (&raw mut (*element).stamp).write_volatile(stamp);
                for (at, word) in words.as_ref().iter().enumerate() {
                    key.add(at).write_volatile(*word);
                }
                copy::<A>(&raw const room.forward, &raw mut (*element).connection);
                sequence.write_volatile(sequence.read_volatile().wrapping_add(1));
                unlock(&raw mut (*element).lock);
                return Some(());
            }
        }
        way += 1;
    }
    None
}

/// # Safety
/// Both are whole connections, in maps.
#[inline(always)]
unsafe fn copy<A: Elements>(from: *const Connection<A>, to: *mut Connection<A>) {
    let (from, to) = (from.cast::<u64>(), to.cast::<u64>());
    let mut at = 0;
    while at < A::CONNECTION {
        // SAFETY: inside of both; volatile, because others may write them meanwhile.
        unsafe { to.add(at).write_volatile(from.add(at).read_volatile()) };
        at += 1;
    }
}
