//! The table of connections, which programs change while we do.
//!
//! It is an array of the kernel's, used through its memory: `meshd_steps::bucket` says how, here as there. The memory is mapped for as long
//! as it is worked with ([`View`]) and not kept, because mapped pages count as ours.

use std::{
    io,
    marker::PhantomData,
    mem::MaybeUninit,
    ops::ControlFlow,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use meshd_abi::{Address, Bucket, Connection, ConnectionKey, Entry, WAYS, connection_flags};
use meshd_steps::bucket::{
    Buckets, Claim, Client, Place, Position, claim, claim_anywhere, find, freed, is_taken, publish, release, replace,
};

use tracing::warn;

use crate::{DatapathError, Table, pins, programs, sys};

/// Name of the map with the number that places of entries depend on.
const SEED: &str = "SEED";

/// The number of buckets in the programs, for a table of connections.
pub(crate) fn buckets_of(map: &str) -> Option<&'static str> {
    match map {
        "CONNECTIONS4" => Some("CONNECTIONS4_BUCKETS"),
        "CONNECTIONS6" => Some("CONNECTIONS6_BUCKETS"),
        _ => None,
    }
}

/// A key and what is known of it.
type Known<A> = (ConnectionKey<A>, Connection<A>);

/// Known connections of a family: each direction is an entry.
#[derive(Debug)]
pub struct Connections<A> {
    name: &'static str,
    map: OwnedFd,
    buckets: u32,
    seed: u64,
    family: PhantomData<fn(A)>,
}

/// Draws the random number on which places of entries depend, unless an earlier process did. To be called before anything is written, by
/// the daemon only.
pub(crate) fn draw_seed(folder: &Path) -> Result<(), DatapathError> {
    let seed: Table<u32, u64> = programs::table(&folder.join(SEED), SEED)?;
    while seed.get(&0)?.unwrap_or(0) == 0 {
        let drawn = sys::random().map_err(|source| DatapathError::Random { source })?;
        seed.put(&0, &drawn)?;
    }
    Ok(())
}

impl<A: Address> Connections<A> {
    /// Opens the table that is pinned in a folder; `None` when there is none of this layout, or nobody uses it yet.
    pub(crate) fn open(folder: &Path, name: &'static str) -> Result<Option<Self>, DatapathError> {
        let pin = folder.join(name);
        let Some(shape) = pins::shape_of(&pin, name)? else { return Ok(None) };
        if shape.value_size as usize != size_of::<Bucket<A>>() {
            return Ok(None);
        }
        // Maps are made in any order, and removed in any: of those without one nothing can be read.
        if pins::shape_of(&folder.join(SEED), SEED)?.is_none() {
            return Ok(None);
        }
        let seed: Table<u32, u64> = programs::table(&folder.join(SEED), SEED)?;
        // 0 before the daemon has drawn it: then nothing has been written either.
        let Some(seed) = seed.get(&0)?.filter(|seed| *seed != 0) else { return Ok(None) };
        let map = programs::open(&pin, name)?;
        Ok(Some(Self { name, map, buckets: shape.max_entries, seed, family: PhantomData }))
    }

    /// What errors call it.
    pub(crate) const fn name(&self) -> &'static str {
        self.name
    }

    /// The map itself.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }

    /// Entries that there is room for, if all of them find it.
    #[must_use]
    pub fn room(&self) -> usize {
        self.buckets as usize * WAYS
    }

    /// Maps the memory of the table: what is cheap for many entries is not for one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn view(&self) -> Result<View<'_, A>, DatapathError> {
        let octets = self.buckets as usize * size_of::<Bucket<A>>();
        let memory = sys::Memory::map(self.map.as_fd(), octets).map_err(|error| self.error("map", error))?;
        Ok(View { table: self, memory })
    }

    /// The entry of a key, whichever end is the client's.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn get(&self, key: &ConnectionKey<A>) -> Result<Option<Connection<A>>, DatapathError> {
        let view = self.view()?;
        Ok(view.get(key, Client::Source).or_else(|| view.get(key, Client::Destination)))
    }

    /// Adds or replaces one entry.
    ///
    /// # Errors
    /// When there is no room for it, or the kernel refuses.
    pub fn put(&self, key: &ConnectionKey<A>, connection: &Connection<A>) -> Result<(), DatapathError> {
        self.view()?.put(key, connection)
    }

    /// Removes the entries of which a function says so, and answers how many.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_if(
        &self,
        mut is: impl FnMut(&ConnectionKey<A>, &Connection<A>) -> bool,
    ) -> Result<usize, DatapathError> {
        let view = self.view()?;
        let mut removed = 0;
        view.walk(|key, connection| {
            removed += usize::from(is(key, connection) && view.remove(key, client_of(connection)));
        });
        Ok(removed)
    }

    /// Every entry. Those that come or go meanwhile may be told or not.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn all(&self) -> Result<Vec<Known<A>>, DatapathError> {
        let mut all = Vec::new();
        self.walk(|key, connection| all.push((*key, *connection)))?;
        Ok(all)
    }

    /// Calls a function with every entry; see [`Connections::all`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn walk(&self, visit: impl FnMut(&ConnectionKey<A>, &Connection<A>)) -> Result<(), DatapathError> {
        self.view()?.walk(visit);
        Ok(())
    }

    /// The same until the function has seen enough.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn walk_until(
        &self,
        visit: impl FnMut(&ConnectionKey<A>, &Connection<A>) -> ControlFlow<()>,
    ) -> Result<(), DatapathError> {
        self.view()?.walk_until(visit);
        Ok(())
    }

    fn error(&self, operation: &'static str, source: io::Error) -> DatapathError {
        DatapathError::Elements { operation, map: self.name, source }
    }
}

/// A table of connections whose memory is mapped.
#[derive(Debug)]
pub struct View<'a, A> {
    table: &'a Connections<A>,
    memory: sys::Memory,
}

/// Entries of which somebody said that they are his, and that he has not written, in the order of the table.
#[derive(Debug, Default)]
pub struct Unwritten(Vec<(Position, u64)>);

impl<A: Address> View<'_, A> {
    /// The entry of a key.
    #[must_use]
    pub fn get(&self, key: &ConnectionKey<A>, client: Client) -> Option<Connection<A>> {
        let at = find(self, key, &self.place(key, client));
        (at != Position::NONE).then(|| self.read(at).connection)
    }

    /// Adds or replaces one entry. Of a connection that is the same only what its packets change is written, so that there is no moment without it.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn put(&self, key: &ConnectionKey<A>, connection: &Connection<A>) -> Result<(), DatapathError> {
        let place = self.place(key, client_of(connection));
        let claimed = match claim(self, &place) {
            Claim::Elsewhere => claim_anywhere(self, &place),
            claimed => claimed,
        };
        let at = match claimed {
            Claim::Made(at) => at,
            Claim::Exists(at) => {
                let there = self.read(at);
                let Connection { used, flags, closed_by, .. } = *connection;
                let is_same =
                    there.key == *key && Connection { used, flags, closed_by, ..there.connection } == *connection;
                if is_same {
                    self.touch(at, connection);
                }
                // Who writes it at this moment is a program, and knows better.
                if is_same || !replace(self, key, || Some(place), at) {
                    return Ok(());
                }
                at
            }
            Claim::Full | Claim::Elsewhere => {
                return Err(self.table.error("write to", io::Error::from_raw_os_error(libc::E2BIG)));
            }
        };
        self.write(at, &Entry { key: *key, connection: *connection });
        // Others change the word at this very moment, again and again: the next sweep but one frees the entry.
        let is_told = publish(self, at);
        if is_told { Ok(()) } else { Err(self.table.error("write to", io::ErrorKind::ResourceBusy.into())) }
    }

    /// Removes one entry; false when there was none.
    pub fn remove(&self, key: &ConnectionKey<A>, client: Client) -> bool {
        let place = self.place(key, client);
        let at = find(self, key, &place);
        at != Position::NONE && release(self, &place, at)
    }

    /// Calls a function with every entry; see [`Connections::all`].
    pub fn walk(&self, mut visit: impl FnMut(&ConnectionKey<A>, &Connection<A>)) {
        self.walk_until(|key, connection| {
            visit(key, connection);
            ControlFlow::Continue(())
        });
    }

    /// The same until the function has seen enough.
    pub fn walk_until(&self, mut visit: impl FnMut(&ConnectionKey<A>, &Connection<A>) -> ControlFlow<()>) {
        self.look_at_all(|_, _, entry| {
            entry.map_or(ControlFlow::Continue(()), |entry| visit(&entry.key, &entry.connection))
        });
    }

    /// Calls a function with every entry, and frees those that were claimed and not written by whoever died between: they are what has
    /// not changed since the walk before this one.
    pub fn sweep(&self, unwritten: &mut Unwritten, mut visit: impl FnMut(&ConnectionKey<A>, &Connection<A>)) {
        let mut found = Vec::new();
        self.look_at_all(|at, word, entry| {
            match entry {
                Some(entry) => visit(&entry.key, &entry.connection),
                None => found.push((at, word)),
            }
            ControlFlow::Continue(())
        });
        let mut gone = 0;
        found.retain(|(at, word)| {
            let is_left = unwritten.0.binary_search(&(*at, *word)).is_ok();
            if is_left && let Some(bucket) = self.bucket(at.bucket()) {
                // Where it belongs, nobody knows: a bucket that counts one too many looks further than needed.
                gone += usize::from(self.exchange(bucket, at.way(), *word, freed(*word)));
            }
            !is_left
        });
        unwritten.0 = found;
        if gone > 0 {
            warn!(
                table = self.table.name,
                entries = gone,
                "freed what somebody took in the table of connections and never wrote"
            );
        }
    }

    /// Calls a function with the position and the word of every way that is somebody's, and with the entry where it is written.
    fn look_at_all(&self, mut visit: impl FnMut(Position, u64, Option<Entry<A>>) -> ControlFlow<()>) {
        for index in 0..self.table.buckets {
            let Some(bucket) = self.bucket(index) else { return };
            for way in 0..WAYS {
                let word = self.word(bucket, way);
                if !is_taken(word) {
                    continue;
                }
                let at = Position::new(index, way);
                let entry = self.read(at);
                // What is where nobody looks for it is nobody's.
                let is_whole = self.place(&entry.key, client_of(&entry.connection)).is_written(word);
                // What went or was replaced meanwhile is somebody else's.
                if self.word(bucket, way) == word && visit(at, word, is_whole.then_some(entry)).is_break() {
                    return;
                }
            }
        }
    }

    fn place(&self, key: &ConnectionKey<A>, client: Client) -> Place {
        Place::of_key(key, client, self.table.seed, self.table.buckets)
    }

    fn entry(&self, bucket: NonNull<Bucket<A>>, way: usize) -> *mut Entry<A> {
        assert!(way < WAYS, "a bucket has no way {way}");
        // SAFETY: inside of the bucket.
        unsafe { (&raw mut (*bucket.as_ptr()).entries).cast::<Entry<A>>().add(way) }
    }

    /// Copies an entry. Others may write it meanwhile, and then it is none that anybody wrote.
    fn read(&self, at: Position) -> Entry<A> {
        let Some(bucket) = self.bucket(at.bucket()) else { return Entry::default() };
        let from = self.entry(bucket, at.way()).cast::<u64>();
        let mut copy = MaybeUninit::<Entry<A>>::uninit();
        let to = copy.as_mut_ptr().cast::<u64>();
        // SAFETY: double words of two entries, of which any octets are one; volatile, because others write the first.
        unsafe {
            for word in 0..size_of::<Entry<A>>() / 8 {
                to.add(word).write_unaligned(from.add(word).read_volatile());
            }
            copy.assume_init()
        }
    }

    /// Writes an entry that is ours.
    fn write(&self, at: Position, entry: &Entry<A>) {
        let Some(bucket) = self.bucket(at.bucket()) else { return };
        let to = self.entry(bucket, at.way()).cast::<u64>();
        let from = (&raw const *entry).cast::<u64>();
        // SAFETY: double words of two entries; volatile, because programs may read the first meanwhile.
        unsafe {
            for word in 0..size_of::<Entry<A>>() / 8 {
                to.add(word).write_volatile(from.add(word).read_unaligned());
            }
        }
    }

    /// Writes what packets of a connection change.
    fn touch(&self, at: Position, connection: &Connection<A>) {
        let Some(bucket) = self.bucket(at.bucket()) else { return };
        let to = self.entry(bucket, at.way());
        // SAFETY: fields of an entry; volatile, because programs write them as well.
        unsafe {
            (&raw mut (*to).connection.used).write_volatile(connection.used);
            (&raw mut (*to).connection.flags).write_volatile(connection.flags);
            (&raw mut (*to).connection.closed_by).write_volatile(connection.closed_by);
        }
    }

    fn atom(&self, bucket: NonNull<Bucket<A>>, way: usize) -> &AtomicU64 {
        assert!(way < WAYS, "a bucket has no way {way}");
        // SAFETY: a word of the bucket, which is mapped as long as this is, and which everybody changes as a whole.
        unsafe { AtomicU64::from_ptr((&raw mut (*bucket.as_ptr()).words).cast::<u64>().add(way)) }
    }
}

impl<A: Address> Buckets<ConnectionKey<A>> for View<'_, A> {
    type Bucket = NonNull<Bucket<A>>;

    fn bucket(&self, index: u32) -> Option<NonNull<Bucket<A>>> {
        // SAFETY: the memory has that many.
        (index < self.table.buckets).then(|| unsafe { self.memory.start().cast::<Bucket<A>>().add(index as usize) })
    }

    fn word(&self, bucket: NonNull<Bucket<A>>, way: usize) -> u64 {
        self.atom(bucket, way).load(Ordering::SeqCst)
    }

    fn exchange(&self, bucket: NonNull<Bucket<A>>, way: usize, from: u64, to: u64) -> bool {
        self.atom(bucket, way).compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn set(&self, bucket: NonNull<Bucket<A>>, way: usize, to: u64) {
        self.atom(bucket, way).store(to, Ordering::SeqCst);
    }

    fn has(&self, bucket: NonNull<Bucket<A>>, way: usize, key: &ConnectionKey<A>) -> bool {
        let from = self.entry(bucket, way).cast::<u64>();
        let words = size_of::<ConnectionKey<A>>() / 8;
        // SAFETY: double words of two keys; volatile, because others write the first.
        let is = unsafe {
            let wanted = (&raw const *key).cast::<u64>();
            (0..words).all(|word| from.add(word).read_volatile() == wanted.add(word).read_unaligned())
        };
        fence(Ordering::SeqCst);
        is
    }
}

/// Which end of its tuple is the client's.
#[must_use]
pub fn client_of<A>(connection: &Connection<A>) -> Client {
    if connection.flags & connection_flags::REPLY == 0 { Client::Source } else { Client::Destination }
}
