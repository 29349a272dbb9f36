//! The table of known connections.
//!
//! How entries come and go is in `meshd_steps::bucket`. Each way to use the table is a function of its own per family, verified once and
//! not with every way to get there. What they need of a connection that begins they take from this CPU's [`Beginning`](crate::steps::connect::Beginning).

use core::{
    arch::asm,
    intrinsics::{AtomicOrdering, atomic_cxchg},
};

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, PerCpuArray},
    macros::btf_map,
};
use meshd_abi::{Address, Bucket, Connection, ConnectionKey, Entry, V4, V6};
use meshd_steps::bucket::{
    Buckets, Claim, Client, Place, Position, Words, claim, claim_anywhere, ends6, find, find_once, pair, publish,
    release, replace,
};

use super::Tables;

/// Buckets begin at a page, and with it at a cache line.
const ALIGNED: usize = BPF_F_MMAPABLE as usize;

/// Element 0: the random number that places of entries depend on. User space draws it before any program runs.
#[btf_map]
static SEED: Array<u64, 1> = Array::new();
#[btf_map]
static CONNECTIONS4: Array<Bucket<V4>, 131_072, ALIGNED> = Array::new();
#[btf_map]
static CONNECTIONS6: Array<Bucket<V6>, 32_768, ALIGNED> = Array::new();
/// A key of IPv6 on its way into a function: more words than a call takes.
#[btf_map]
static ASKED6: PerCpuArray<[u64; 5], 1> = PerCpuArray::new();

/// Number of buckets of IPv4, which the loader sets. In a section of its own, because the compiler may use a constant for every other
/// one that has the same value.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".rodata.connections")]
static CONNECTIONS4_BUCKETS: u32 = 0;
/// The same of IPv6.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".rodata.connections")]
static CONNECTIONS6_BUCKETS: u32 = 0;
/// 0 on processors that keep loads in order, and stores: elsewhere it has to be asked for.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".rodata.connections")]
static CHANGES_ORDER: u32 = 0;

/// A direction of the connection in this CPU's [`Beginning`](crate::steps::connect::Beginning).
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Way {
    /// From the client.
    Forward = 0,
    /// The answers.
    Answer = 1,
}

/// What is to become of the entry of a [`Way`].
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Act {
    /// It must be new.
    Add = 0,
    /// Whatever is there.
    Put = 2,
    Remove = 4,
}

/// The table of a family.
pub trait Connections: Address {
    /// A key in double words.
    type Lookup: Words + InWords;

    /// A key that lies in a map, at a double word.
    ///
    /// # Safety
    /// It is a whole key.
    unsafe fn lying(key: *const ConnectionKey<Self>) -> Self::Lookup;
    /// Number of buckets.
    fn buckets() -> u32;
    /// A bucket.
    fn bucket(index: u32) -> Option<*mut Bucket<Self>>;
    /// Calls the family's function that looks for an entry; `None`: whichever end is the client's.
    fn look(key: &ConnectionKey<Self>, client: Option<Client>) -> Position;
    /// Calls the one that makes or removes one.
    fn act(what: u32) -> bool;
    /// Calls the one that makes one where it belongs.
    fn claim(what: u32) -> Claim;
    /// Calls the one that makes one where there is room.
    fn seek(what: u32) -> Claim;
    /// Calls the one that takes an entry which is there, to write it again.
    fn replace(what: u32, at: Position) -> bool;
    /// Writes what is asked to an entry that is ours.
    fn write(what: u32, at: Position) -> bool;
}

/// Double words that are read one by one.
pub trait InWords {
    /// How many there are.
    const COUNT: usize;
    /// One of them.
    fn word(&self, at: usize) -> u64;
}

impl InWords for [u64; 2] {
    const COUNT: usize = 2;
    #[inline(always)]
    fn word(&self, at: usize) -> u64 {
        if at == 0 { self[0] } else { self[1] }
    }
}

/// A key of IPv6, which is too long to be carried around.
#[derive(Clone, Copy, PartialEq)]
pub struct Lying(*const u64);

impl InWords for Lying {
    const COUNT: usize = 5;
    #[inline(always)]
    fn word(&self, at: usize) -> u64 {
        // SAFETY: of a whole key; volatile, so that it is read when it is asked for.
        unsafe { self.0.add(at).read_volatile() }
    }
}

impl Words for Lying {
    #[inline(always)]
    fn ends(self, seed: u64) -> [u64; 2] {
        ends6([self.word(0), self.word(1)], [self.word(2), self.word(3)], self.word(4), seed)
    }
}

/// The entry of a key; its fields may be changed in place.
#[inline(always)]
pub fn get<A: Connections>(key: &ConnectionKey<A>, client: Client) -> Option<&'static mut Connection<A>> {
    // SAFETY: programs on other CPUs may change the same entry; they write single aligned fields, and the last one wins.
    entry(A::look(key, Some(client))).map(|entry: *mut Entry<A>| unsafe { &mut (*entry).connection })
}

/// The entry of a key, whichever end is the client's.
#[inline(always)]
pub fn get_any<A: Connections>(key: &ConnectionKey<A>) -> Option<&'static mut Connection<A>> {
    // SAFETY: as above.
    entry(A::look(key, None)).map(|entry: *mut Entry<A>| unsafe { &mut (*entry).connection })
}

/// Adds a direction of this CPU's [`Beginning`](crate::steps::connect::Beginning); false when it exists or there is no room.
#[inline(always)]
pub fn add<A: Connections>(way: Way) -> bool {
    A::act(Act::Add as u32 | way as u32)
}

/// Adds or replaces a direction of this CPU's [`Beginning`](crate::steps::connect::Beginning); false when there is no room.
#[inline(always)]
pub fn put<A: Connections>(way: Way) -> bool {
    A::act(Act::Put as u32 | way as u32)
}

/// Removes a direction of this CPU's [`Beginning`](crate::steps::connect::Beginning), if it is there.
#[inline(always)]
pub fn remove<A: Connections>(way: Way) {
    A::act(Act::Remove as u32 | way as u32);
}

/// An entry by its position.
#[inline(always)]
fn entry<A: Connections>(at: Position) -> Option<*mut Entry<A>> {
    if at == Position::NONE {
        return None;
    }
    let bucket = A::bucket(at.bucket())?;
    // SAFETY: inside of the bucket.
    Some(unsafe { (&raw mut (*bucket).entries).cast::<Entry<A>>().add(at.way()) })
}

/// The table, as the steps see it.
struct Table<A>(core::marker::PhantomData<A>);

impl<A> Table<A> {
    const NEW: Self = Self(core::marker::PhantomData);
}

impl<A: Connections> Buckets<A::Lookup> for Table<A> {
    type Bucket = *mut Bucket<A>;

    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<*mut Bucket<A>> {
        A::bucket(index)
    }

    #[inline(always)]
    fn way(&self, way: usize) -> usize {
        let mut way = way;
        // SAFETY: one instruction on one register, which the compiler would leave out.
        unsafe { asm!("{way} &= 7", way = inout(reg) way, options(nomem, nostack, preserves_flags)) };
        way
    }

    #[inline(always)]
    fn word(&self, bucket: *mut Bucket<A>, way: usize) -> u64 {
        // SAFETY: a word of the bucket; volatile, because others write it meanwhile.
        unsafe { (&raw const (*bucket).words).cast::<u64>().add(way).read_volatile() }
    }

    #[inline(always)]
    fn exchange(&self, bucket: *mut Bucket<A>, way: usize, from: u64, to: u64) -> bool {
        const ORDER: AtomicOrdering = AtomicOrdering::SeqCst;
        // SAFETY: a word of the bucket.
        unsafe {
            let word = (&raw mut (*bucket).words).cast::<u64>().add(way);
            atomic_cxchg::<u64, ORDER, ORDER>(word, from, to).1
        }
    }

    #[inline(always)]
    fn set(&self, bucket: *mut Bucket<A>, way: usize, to: u64) {
        if changes_order() {
            self.exchange(bucket, way, self.word(bucket, way), to);
            return;
        }
        // SAFETY: a word of the bucket; volatile, because others read it meanwhile.
        unsafe { (&raw mut (*bucket).words).cast::<u64>().add(way).write_volatile(to) }
    }

    #[inline(always)]
    fn has(&self, bucket: *mut Bucket<A>, way: usize, key: &A::Lookup) -> bool {
        // SAFETY: inside of the bucket.
        let there = unsafe { (&raw const (*bucket).entries).cast::<Entry<A>>().add(way).cast::<u64>() };
        let (mut differ, mut at) = (0, 0);
        while at < A::Lookup::COUNT {
            // SAFETY: the words of an entry's key, with which it begins; volatile, because others write them meanwhile.
            differ |= unsafe { there.add(at).read_volatile() } ^ key.word(at);
            at += 1;
        }
        // What is read of the entry from here on is not older than its key.
        if differ == 0 && changes_order() {
            let word = self.word(bucket, way);
            self.exchange(bucket, way, word, word);
        }
        differ == 0
    }
}

#[inline(always)]
fn changes_order() -> bool {
    // SAFETY: a static of this program; volatile, because the loader changes it.
    unsafe { (&raw const CHANGES_ORDER).read_volatile() != 0 }
}

#[inline(always)]
fn place<A: Connections>(key: A::Lookup, client: Client) -> Option<Place> {
    let seed = SEED.get(0)?;
    Some(Place::of(key, client, *seed, A::buckets()))
}

/// The key of a direction of this CPU's [`Beginning`](crate::steps::connect::Beginning), and which end is the client's.
#[inline(always)]
fn asked_key<A: Tables>(what: u32) -> Option<(A::Lookup, Client)> {
    let beginning = A::beginning()?;
    let is_answer = what & Way::Answer as u32 != 0;
    let key = if is_answer { &raw const beginning.answer_key } else { &raw const beginning.key };
    // SAFETY: a whole key.
    let key = unsafe { A::lying(key) };
    Some((key, if is_answer { Client::Destination } else { Client::Source }))
}

/// The same key, and its place.
#[inline(always)]
fn asked<A: Tables>(what: u32) -> Option<(A::Lookup, Place)> {
    let (key, client) = asked_key::<A>(what)?;
    Some((key, place::<A>(key, client)?))
}

/// Does with an entry of this CPU's [`Beginning`](crate::steps::connect::Beginning) what is asked.
#[inline(always)]
fn act<A: Tables>(what: u32) -> Option<()> {
    let claimed = match A::claim(what) {
        Claim::Elsewhere => A::seek(what),
        claimed => claimed,
    };
    let at = match claimed {
        Claim::Made(at) => at,
        Claim::Exists(at) if what & Act::Put as u32 != 0 && A::replace(what, at) => at,
        Claim::Exists(_) | Claim::Full | Claim::Elsewhere => return None,
    };
    A::write(what, at).then_some(())
}

/// Writes what is asked to an entry that is ours, and says that it is written.
#[inline(always)]
fn write_at<A: Tables>(what: u32, at: Position) -> Option<()> {
    let beginning = A::beginning()?;
    let is_answer = what & Way::Answer as u32 != 0;
    let key = if is_answer { &raw const beginning.answer_key } else { &raw const beginning.key };
    // SAFETY: a whole key.
    let key = unsafe { A::lying(key) };
    let connection = if is_answer { &raw const beginning.answer } else { &raw const beginning.forward };
    let to: *mut Entry<A> = entry(at)?;
    // SAFETY: double words of the entry and of the connection; volatile, because the compiler may otherwise make a call of it.
    unsafe {
        let (to_key, mut at) = (to.cast::<u64>(), 0);
        while at < A::Lookup::COUNT {
            to_key.add(at).write_volatile(key.word(at));
            at += 1;
        }
        let (to, from) = ((&raw mut (*to).connection).cast::<u64>(), connection.cast::<u64>());
        let mut at = 0;
        while at < size_of::<Connection<A>>() / 8 {
            to.add(at).write_volatile(from.add(at).read_volatile());
            at += 1;
        }
    }
    publish(&Table::<A>::NEW, at).then_some(())
}

#[inline(always)]
fn look_once<A: Connections>(key: A::Lookup, client: Client) -> Position {
    place::<A>(key, client).map_or(Position::NONE, |place| find_once(&Table::<A>::NEW, &key, &place))
}

macro_rules! functions {
    ($look:ident, $look_any:ident, $act:ident, $claim:ident, $seek:ident, $spot:ident, $free:ident, $replace:ident, $family:ty, ($($argument:ident),*), $key:expr) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $look($($argument: u64,)* client: u32) -> u64 {
            let key = $key;
            let client = if client == Client::Source as u32 { Client::Source } else { Client::Destination };
            place::<$family>(key, client).map_or(0, |place| find(&Table::<$family>::NEW, &key, &place).0)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $look_any($($argument: u64),*) -> u64 {
            let key = $key;
            match look_once::<$family>(key, Client::Source) {
                Position::NONE => look_once::<$family>(key, Client::Destination).0,
                at => at.0,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $act(what: u32) -> u32 {
            if what & Act::Remove as u32 != 0 {
                let at = $spot(what);
                if at == 0 { 0 } else { $free(what, at) }
            } else {
                act::<$family>(what).is_some().into()
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $claim(what: u32) -> u64 {
            match asked::<$family>(what) {
                Some((_, place)) => claim(&Table::<$family>::NEW, &place).number(),
                None => 0,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $seek(what: u32) -> u64 {
            match asked::<$family>(what) {
                Some((_, place)) => claim_anywhere(&Table::<$family>::NEW, &place).number(),
                None => 0,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $spot(what: u32) -> u64 {
            match asked::<$family>(what) {
                Some((key, place)) => find_once(&Table::<$family>::NEW, &key, &place).0,
                None => 0,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $free(what: u32, at: u64) -> u32 {
            match asked::<$family>(what) {
                Some((_, place)) => release(&Table::<$family>::NEW, &place, Position(at)).into(),
                None => 0,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $replace(what: u32, at: u64) -> u32 {
            match asked_key::<$family>(what) {
                Some((key, client)) => {
                    replace(&Table::<$family>::NEW, &key, || place::<$family>(key, client), Position(at)).into()
                }
                None => 0,
            }
        }
    };
}

functions!(look4, look_any4, act4, claim4, seek4, spot4, free4, replace4, V4, (addresses, rest), [addresses, rest]);
functions!(look6, look_any6, act6, claim6, seek6, spot6, free6, replace6, V6, (), {
    let Some(asked) = ASKED6.get(0) else { return 0 };
    Lying(asked.as_ptr())
});

/// A function of its own for the sake of the stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn write6(what: u32, at: u64) -> u32 {
    write_at::<V6>(what, Position(at)).is_some().into()
}

impl Connections for V4 {
    type Lookup = [u64; 2];

    #[inline(always)]
    unsafe fn lying(key: *const ConnectionKey<V4>) -> [u64; 2] {
        let words = key.cast::<u64>();
        // SAFETY: the caller's.
        unsafe { [words.read(), words.add(1).read()] }
    }
    #[inline(always)]
    fn buckets() -> u32 {
        // SAFETY: a static of this program; volatile, because the loader changes it.
        unsafe { (&raw const CONNECTIONS4_BUCKETS).read_volatile() }
    }
    #[inline(always)]
    fn bucket(index: u32) -> Option<*mut Bucket<V4>> {
        CONNECTIONS4.get_ptr_mut(index)
    }
    #[inline(always)]
    fn look(key: &ConnectionKey<V4>, client: Option<Client>) -> Position {
        // Field by field: what was written octet by octet a load of a double word has to wait for.
        let addresses = pair(key.source.0.into(), key.destination.0.into(), 32);
        let ports = pair(key.source_port.into(), key.destination_port.into(), 16);
        let rest = pair(ports, u32::from_ne_bytes([key.protocol, 0, 0, 0]).into(), 32);
        Position(match client {
            Some(client) => look4(addresses, rest, client as u32),
            None => look_any4(addresses, rest),
        })
    }
    #[inline(always)]
    fn act(what: u32) -> bool {
        act4(what) != 0
    }
    #[inline(always)]
    fn claim(what: u32) -> Claim {
        Claim::of(claim4(what))
    }
    #[inline(always)]
    fn seek(what: u32) -> Claim {
        Claim::of(seek4(what))
    }
    #[inline(always)]
    fn replace(what: u32, at: Position) -> bool {
        replace4(what, at.0) != 0
    }
    #[inline(always)]
    fn write(what: u32, at: Position) -> bool {
        write_at::<V4>(what, at).is_some()
    }
}

impl Connections for V6 {
    type Lookup = Lying;

    #[inline(always)]
    unsafe fn lying(key: *const ConnectionKey<V6>) -> Lying {
        Lying(key.cast())
    }
    #[inline(always)]
    fn buckets() -> u32 {
        // SAFETY: as of IPv4.
        unsafe { (&raw const CONNECTIONS6_BUCKETS).read_volatile() }
    }
    #[inline(always)]
    fn bucket(index: u32) -> Option<*mut Bucket<V6>> {
        CONNECTIONS6.get_ptr_mut(index)
    }
    #[inline(always)]
    fn look(key: &ConnectionKey<V6>, client: Option<Client>) -> Position {
        let Some(asked) = ASKED6.get_ptr_mut(0) else { return Position::NONE };
        let (to, from) = (asked.cast::<u64>(), core::ptr::from_ref(key).cast::<u32>());
        let mut at = 0;
        while at < 5 {
            // SAFETY: inside of both; volatile, so that the key stays where it is, and double words are written and read as such.
            unsafe {
                let (first, second) = (from.add(2 * at).read_volatile(), from.add(2 * at + 1).read_volatile());
                to.add(at).write_volatile(pair(first.into(), second.into(), 32));
            }
            at += 1;
        }
        Position(match client {
            Some(client) => look6(client as u32),
            None => look_any6(),
        })
    }
    #[inline(always)]
    fn act(what: u32) -> bool {
        act6(what) != 0
    }
    #[inline(always)]
    fn claim(what: u32) -> Claim {
        Claim::of(claim6(what))
    }
    #[inline(always)]
    fn seek(what: u32) -> Claim {
        Claim::of(seek6(what))
    }
    #[inline(always)]
    fn replace(what: u32, at: Position) -> bool {
        replace6(what, at.0) != 0
    }
    #[inline(always)]
    fn write(what: u32, at: Position) -> bool {
        write6(what, at.0) != 0
    }
}
