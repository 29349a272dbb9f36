//! Planned writes, carried out on the maps in their order, in batches where neighbors of a kind allow it.

use meshd_abi::V4;
use meshd_core::plan::datapath::Write;
use meshd_datapath::{DatapathError, Maps, Table};

/// Carries out all writes, also after a failure.
///
/// # Errors
/// The first refusal; what it kept from happening is not in the maps.
pub(super) fn run(maps: &Maps, writes: Vec<Write>) -> Result<(), DatapathError> {
    let mut outcome = Ok(());
    let mut run = Run { maps, identities4: Batch::default(), identities6: Batch::default() };
    for write in writes {
        outcome = outcome.and(run.one(write));
    }
    outcome.and(run.identities4.flush(&maps.v4.identities)).and(run.identities6.flush(&maps.v6.identities))
}

/// Identities come in hundreds of thousands and depend on nothing: they are collected.
struct Run<'a> {
    maps: &'a Maps,
    identities4: Batch<V4, meshd_abi::Identity>,
    identities6: Batch<meshd_abi::V6, meshd_abi::Identity>,
}

impl Run<'_> {
    fn one(&mut self, write: Write) -> Result<(), DatapathError> {
        let maps = self.maps;
        match write {
            Write::Backend4(index, backend) => maps.v4.backends.put(&index, &backend),
            Write::Backend6(index, backend) => maps.v6.backends.put(&index, &backend),
            Write::Members(begin, members) => {
                let places: Vec<u32> = (begin..).take(members.len()).collect();
                maps.members.put_all(&places, &members)
            }
            Write::Chunk(index, slots) => maps.put_chunk(index, &slots),
            Write::Service4(key, Some(entry)) => maps.v4.services.put(&key, &entry),
            Write::Service4(key, None) => maps.v4.services.remove(&key).map(drop::<bool>),
            Write::Service6(key, Some(entry)) => maps.v6.services.put(&key, &entry),
            Write::Service6(key, None) => maps.v6.services.remove(&key).map(drop::<bool>),
            Write::NextHop(index, hop) => maps.next_hops.put(&index, &hop),
            Write::Neighbor(key, Some(index)) => maps.neighbors.put(&key, &index),
            Write::Neighbor(key, None) => maps.neighbors.remove(&key).map(drop::<bool>),
            Write::Identity4(address, identity) => self.identities4.add(address, identity, &maps.v4.identities),
            Write::Identity6(address, identity) => self.identities6.add(address, identity, &maps.v6.identities),
        }
    }
}

/// Elements to write together.
struct Batch<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
    gone: Vec<K>,
}

/// Elements of one batch.
const BATCH: usize = 16_384;

impl<K, V> Default for Batch<K, V> {
    fn default() -> Self {
        Self { keys: Vec::new(), values: Vec::new(), gone: Vec::new() }
    }
}

impl<K: Copy, V: Copy> Batch<K, V> {
    fn add(&mut self, key: K, value: Option<V>, table: &Table<K, V>) -> Result<(), DatapathError> {
        match value {
            Some(value) => {
                // What was to go and comes again must go first.
                let flushed = if self.gone.is_empty() { Ok(()) } else { self.flush(table) };
                self.keys.push(key);
                self.values.push(value);
                flushed?;
            }
            None => {
                let flushed = if self.keys.is_empty() { Ok(()) } else { self.flush(table) };
                self.gone.push(key);
                flushed?;
            }
        }
        if self.keys.len() + self.gone.len() >= BATCH { self.flush(table) } else { Ok(()) }
    }

    fn flush(&mut self, table: &Table<K, V>) -> Result<(), DatapathError> {
        let outcome = table.put_all(&self.keys, &self.values).and(table.remove_all(&self.gone));
        self.keys.clear();
        self.values.clear();
        self.gone.clear();
        outcome
    }
}
