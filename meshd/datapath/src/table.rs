//! Maps as tables of our own types.
//!
//! The loader library wants a marker trait on every key and value, which types of another crate cannot have, and knows no
//! batches. A [`Table`] is a descriptor with two types, and works in batches wherever there is more than one element.

use std::{
    io,
    marker::PhantomData,
    mem::MaybeUninit,
    ops::ControlFlow,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use crate::{
    DatapathError,
    sys::{self, Batch, Cursor, Element},
};

/// Elements of one batch. The kernel holds a bucket's lock for its own elements only, so a batch delays nobody.
const BATCH: usize = 4_096;

/// A map with keys `K` and values `V`, plain types of `meshd-abi` of which any bytes are a value.
#[derive(Debug)]
pub struct Table<K, V> {
    name: &'static str,
    map: OwnedFd,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Copy, V: Copy> Table<K, V> {
    /// The caller has compared the sizes of both types with those of the map.
    pub(crate) fn new(name: &'static str, map: OwnedFd) -> Self {
        Self { name, map, types: PhantomData }
    }

    /// The map itself.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }

    /// The value of a key.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn get(&self, key: &K) -> Result<Option<V>, DatapathError> {
        let mut value = MaybeUninit::<V>::uninit();
        // SAFETY: key and value are as long as the map's.
        let answer = unsafe {
            sys::element(Element::Lookup, self.map.as_fd(), (&raw const *key).cast(), value.as_mut_ptr().cast())
        };
        match answer {
            // SAFETY: the kernel has written all of it.
            Ok(()) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.error("read", error)),
        }
    }

    /// Adds or replaces one element.
    ///
    /// # Errors
    /// When the kernel refuses, for instance because the map is full.
    pub fn put(&self, key: &K, value: &V) -> Result<(), DatapathError> {
        // SAFETY: key and value are as long as the map's; the value is only read.
        let answer = unsafe {
            sys::element(
                Element::Update,
                self.map.as_fd(),
                (&raw const *key).cast(),
                (&raw const *value).cast_mut().cast(),
            )
        };
        answer.map_err(|error| self.error("write to", error))
    }

    /// Removes one element; false when there was none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self, key: &K) -> Result<bool, DatapathError> {
        // SAFETY: the key is as long as the map's, and a deletion takes no value.
        let answer =
            unsafe { sys::element(Element::Delete, self.map.as_fd(), (&raw const *key).cast(), std::ptr::null_mut()) };
        match answer {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.error("delete from", error)),
        }
    }

    /// Adds or replaces many elements; both lists are of the same length.
    ///
    /// # Errors
    /// At the first element the kernel refuses; those before it are written.
    pub fn put_all(&self, keys: &[K], values: &[V]) -> Result<(), DatapathError> {
        for (keys, values) in keys.chunks(BATCH).zip(values.chunks(BATCH)) {
            // SAFETY: both slices have that many elements; an update reads them only.
            let (_, answer) = unsafe {
                sys::batch(
                    Batch::Update,
                    self.map.as_fd(),
                    keys.as_ptr().cast_mut().cast(),
                    values.as_ptr().cast_mut().cast(),
                    keys.len() as u32,
                    (None, None),
                )
            };
            match answer {
                Err(error) if is_without_batches(&error) => {
                    for (key, value) in keys.iter().zip(values) {
                        self.put(key, value)?;
                    }
                }
                answer => answer.map_err(|error| self.error("write to", error))?,
            }
        }
        Ok(())
    }

    /// Removes many elements; those that are not there are passed over.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_all(&self, keys: &[K]) -> Result<(), DatapathError> {
        let mut rest = keys;
        while !rest.is_empty() {
            let part = &rest[..rest.len().min(BATCH)];
            // SAFETY: the slice has that many elements; a deletion reads them only.
            let (done, answer) = unsafe {
                sys::batch(
                    Batch::Delete,
                    self.map.as_fd(),
                    part.as_ptr().cast_mut().cast(),
                    std::ptr::null_mut(),
                    part.len() as u32,
                    (None, None),
                )
            };
            let done = (done as usize).min(part.len());
            rest = match answer {
                Ok(()) => &rest[part.len()..],
                Err(error) if is_without_batches(&error) => {
                    for key in part {
                        self.remove(key)?;
                    }
                    &rest[part.len()..]
                }
                // The batch stops at the first key that is not there.
                Err(error) if error.kind() == io::ErrorKind::NotFound => &rest[(done + 1).min(rest.len())..],
                Err(error) => return Err(self.error("delete from", error)),
            };
        }
        Ok(())
    }

    /// Every element. Elements that come or go meanwhile may be told or not; none is told twice, unless it was replaced.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn all(&self) -> Result<Vec<(K, V)>, DatapathError> {
        let mut all = Vec::new();
        self.walk(|key, value| all.push((*key, *value)))?;
        Ok(all)
    }

    /// Calls a function with every element; see [`Table::all`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn walk(&self, mut visit: impl FnMut(&K, &V)) -> Result<(), DatapathError> {
        self.walk_until(|key, value| {
            visit(key, value);
            ControlFlow::Continue(())
        })
    }

    /// The same until the function has seen enough.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn walk_until(&self, mut visit: impl FnMut(&K, &V) -> ControlFlow<()>) -> Result<(), DatapathError> {
        let mut size = BATCH;
        let mut keys: Vec<MaybeUninit<K>> = vec![MaybeUninit::uninit(); size];
        let mut values: Vec<MaybeUninit<V>> = vec![MaybeUninit::uninit(); size];
        let mut at: Option<Cursor> = None;
        loop {
            let mut next: Cursor = [0; 64];
            // SAFETY: both buffers have room for `size` elements.
            let (count, answer) = unsafe {
                sys::batch(
                    Batch::Lookup,
                    self.map.as_fd(),
                    keys.as_mut_ptr().cast(),
                    values.as_mut_ptr().cast(),
                    size as u32,
                    (at.as_ref(), Some(&mut next)),
                )
            };
            let is_last = match answer {
                Ok(()) => false,
                Err(error) if is_without_batches(&error) => return self.walk_singly(visit),
                Err(error) if error.kind() == io::ErrorKind::NotFound => true,
                // A bucket has more elements than there is room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && size < 1 << 20 => {
                    size *= 4;
                    keys.resize(size, MaybeUninit::uninit());
                    values.resize(size, MaybeUninit::uninit());
                    continue;
                }
                Err(error) => return Err(self.error("list", error)),
            };
            for at in 0..(count as usize).min(size) {
                // SAFETY: the kernel has written that many of both.
                let seen = unsafe { visit(keys[at].assume_init_ref(), values[at].assume_init_ref()) };
                if seen.is_break() {
                    return Ok(());
                }
            }
            if is_last {
                return Ok(());
            }
            at = Some(next);
        }
    }

    /// The same with a call for each key and each value. Kinds of maps without batches are arrays and tries of few elements; in a hash
    /// the walk would begin again at a key that vanished under it.
    fn walk_singly(&self, mut visit: impl FnMut(&K, &V) -> ControlFlow<()>) -> Result<(), DatapathError> {
        let mut at: Option<K> = None;
        loop {
            let mut next = MaybeUninit::<K>::uninit();
            let before = at.as_ref().map_or(std::ptr::null(), |key| (&raw const *key).cast());
            // SAFETY: both are as long as the map's keys.
            let answer = unsafe { sys::element(Element::NextKey, self.map.as_fd(), before, next.as_mut_ptr().cast()) };
            let key = match answer {
                // SAFETY: the kernel has written all of it.
                Ok(()) => unsafe { next.assume_init() },
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(self.error("list", error)),
            };
            if let Some(value) = self.get(&key)?
                && visit(&key, &value).is_break()
            {
                return Ok(());
            }
            at = Some(key);
        }
    }

    fn error(&self, operation: &'static str, source: io::Error) -> DatapathError {
        DatapathError::Elements { operation, map: self.name, source }
    }
}

/// True for the answer about a kind of map for which a kernel has no batches.
fn is_without_batches(error: &io::Error) -> bool {
    error.raw_os_error() == Some(sys::ENOTSUPP)
}

/// An array of which every CPU has a copy.
#[derive(Debug)]
pub struct CpuArray<V> {
    table: Table<u32, u8>,
    cpus: usize,
    values: PhantomData<V>,
}

impl<V: Copy + Default> CpuArray<V> {
    pub(crate) fn new(name: &'static str, map: OwnedFd, cpus: usize) -> Self {
        Self { table: Table::new(name, map), cpus, values: PhantomData }
    }

    /// The copies of one element.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn get(&self, index: u32) -> Result<Vec<V>, DatapathError> {
        // The kernel rounds each copy up to eight bytes.
        let stride = size_of::<V>().next_multiple_of(8);
        let mut room = vec![0u8; stride * self.cpus];
        // SAFETY: the key is an index, and there is room for the copies of all possible CPUs.
        let answer = unsafe {
            sys::element(Element::Lookup, self.table.map.as_fd(), (&raw const index).cast(), room.as_mut_ptr())
        };
        answer.map_err(|error| self.table.error("read", error))?;
        Ok(room
            .chunks_exact(stride)
            // SAFETY: the kernel has written a value to the beginning of each chunk.
            .map(|copy| unsafe { copy.as_ptr().cast::<V>().read_unaligned() })
            .collect())
    }

    /// The copies of the first `count` elements, added up by `plus`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn sums(&self, count: u32, plus: impl Fn(V, V) -> V) -> Result<Vec<V>, DatapathError> {
        let stride = size_of::<V>().next_multiple_of(8);
        let mut keys = vec![0u32; count as usize];
        let mut room = vec![0u8; stride * self.cpus * count as usize];
        let mut next: Cursor = [0; 64];
        // SAFETY: there is room for that many keys, and for the copies of all possible CPUs of as many elements.
        let (_, answer) = unsafe {
            sys::batch(
                Batch::Lookup,
                self.table.map.as_fd(),
                keys.as_mut_ptr().cast(),
                room.as_mut_ptr(),
                count,
                (None, Some(&mut next)),
            )
        };
        match answer {
            Ok(()) => {}
            // The array ends here.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(self.table.error("read", error)),
        }
        let sum = |copies: &[u8]| {
            copies
                .chunks_exact(stride)
                // SAFETY: the kernel has written a value to the beginning of each chunk.
                .map(|copy| unsafe { copy.as_ptr().cast::<V>().read_unaligned() })
                .fold(V::default(), &plus)
        };
        Ok(room.chunks_exact(stride * self.cpus).map(sum).collect())
    }
}
