//! Planned writes, carried out on the maps in their order, in batches where neighbors of a kind allow it.
//!
//! The kernel may refuse one: a map is full, or there is no memory. What depends on nothing is kept and tried again ([`Refused`]); a
//! service whose table was refused keeps the entries it has, and is planned again.

use std::{collections::BTreeMap, mem};

use meshd_abi::{Address, Identity, NeighborKey, RangeKey, ReceiverKey, V4, V6};
use meshd_core::plan::datapath::{Carried, Write};
use meshd_datapath::{DatapathError, Identities, Maps};

/// Elements of one batch.
const BATCH: usize = 16_384;
/// Refused writes that are tried again at a time: as long as a map is full, each is one call in vain.
const RETRIES: usize = 4_096;

/// What a write changes; a later one to the same replaces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Backend4(u32),
    Backend6(u32),
    Direct4(u32),
    Direct6(u32),
    Receiver4(ReceiverKey<V4>),
    Receiver6(ReceiverKey<V6>),
    NextHop(u32),
    Neighbor(u32, [u8; 6]),
    Tunnel(u32),
    FarEnd([u8; 16]),
    Identity4([u8; 4]),
    Identity6([u8; 16]),
    Cidr4(u32, [u8; 4]),
    Cidr6(u32, [u8; 16]),
    Mesh4(u32, [u8; 4]),
    Mesh6(u32, [u8; 16]),
    Range4(RangeKey<V4>),
    Range6(RangeKey<V6>),
}

impl Target {
    /// `None` for what belongs to the tables of a service, which are written again as a whole.
    fn of(write: &Write) -> Option<Self> {
        Some(match write {
            Write::Backend4(index, _) => Self::Backend4(*index),
            Write::Backend6(index, _) => Self::Backend6(*index),
            Write::Direct4(index, _) => Self::Direct4(*index),
            Write::Direct6(index, _) => Self::Direct6(*index),
            Write::Receiver4(key, _) => Self::Receiver4(*key),
            Write::Receiver6(key, _) => Self::Receiver6(*key),
            Write::NextHop(index, _) => Self::NextHop(*index),
            Write::Neighbor(NeighborKey { link, address, .. }, _) => Self::Neighbor(*link, *address),
            Write::Tunnel(index, _) => Self::Tunnel(*index),
            Write::FarEnd(address, _) => Self::FarEnd(address.octets()),
            Write::Identity4(address, _) => Self::Identity4(address.octets()),
            Write::Identity6(address, _) => Self::Identity6(address.octets()),
            Write::Cidr4(key, _) => Self::Cidr4(key.length, key.address.octets()),
            Write::Cidr6(key, _) => Self::Cidr6(key.length, key.address.octets()),
            Write::Mesh4(key, _) => Self::Mesh4(key.length, key.address.octets()),
            Write::Mesh6(key, _) => Self::Mesh6(key.length, key.address.octets()),
            Write::Range4(key, _) => Self::Range4(*key),
            Write::Range6(key, _) => Self::Range6(*key),
            Write::Members(..) | Write::Chunk(..) | Write::Service4(..) | Write::Service6(..) => return None,
        })
    }
}

/// Writes that the kernel refused, to be tried again. There are never more than elements were planned.
#[derive(Debug, Default)]
pub(super) struct Refused {
    writes: BTreeMap<Target, Write>,
    /// Why, the last time.
    error: Option<DatapathError>,
    /// Where the next attempt begins.
    at: Option<Target>,
}

impl Refused {
    /// Carries out writes of which none names what another one could fail to write.
    pub(super) fn run(&mut self, maps: &Maps, writes: Vec<Write>) {
        if !self.writes.is_empty() {
            for target in writes.iter().filter_map(Target::of) {
                self.writes.remove(&target);
            }
        }
        let mut run = Run { maps, identities4: Batch::default(), identities6: Batch::default(), refused: Vec::new() };
        for write in writes {
            run.independent(write);
        }
        run.identities4.flush(&maps.v4.identities, Write::Identity4, &mut run.refused);
        run.identities6.flush(&maps.v6.identities, Write::Identity6, &mut run.refused);
        for (write, error) in run.refused {
            if let Some(target) = Target::of(&write) {
                self.writes.insert(target, write);
            }
            self.error = Some(error);
        }
    }

    /// Carries out the writes of one service. An entry is not written when what it names could not be. Also answers the first refusal of a
    /// table or an entry.
    pub(super) fn run_service(&mut self, maps: &Maps, writes: Vec<Write>) -> (Carried, Option<DatapathError>) {
        let (mut carried, mut first) = (Carried::All, None);
        for write in writes {
            let result = match write {
                Write::Members(..) | Write::Chunk(..) if carried == Carried::NoTables => continue,
                Write::Service4(_, Some(_)) | Write::Service6(_, Some(_)) if carried == Carried::NoTables => continue,
                Write::Members(..) | Write::Chunk(..) => one(maps, &write).map_err(|error| (Carried::NoTables, error)),
                Write::Service4(..) | Write::Service6(..) => {
                    one(maps, &write).map_err(|error| (carried.max(Carried::NoEntries), error))
                }
                independent => {
                    self.run(maps, vec![independent]);
                    continue;
                }
            };
            if let Err((worse, error)) = result {
                carried = worse;
                first.get_or_insert(error);
            }
        }
        (carried, first)
    }

    /// Tries some of the refused writes again.
    pub(super) fn retry(&mut self, maps: &Maps) {
        if self.writes.is_empty() {
            return;
        }
        let after = self.at.take();
        let is_later = |target: &Target| after.as_ref().is_none_or(|after| target > after);
        let some: Vec<(Target, Write)> = self
            .writes
            .iter()
            .filter(|(target, _)| is_later(target))
            .take(RETRIES)
            .map(|(target, write)| (*target, write.clone()))
            .collect();
        // From the beginning again after the last ones.
        self.at = some.last().map(|(target, _)| *target);
        self.run(maps, some.into_iter().map(|(_, write)| write).collect());
        if self.writes.is_empty() {
            self.error = None;
        }
    }

    /// What is wrong, for people.
    pub(super) fn problem(&self) -> Option<String> {
        let error = self.error.as_ref()?;
        let count = self.writes.len();
        (count > 0).then(|| format!("{count} elements are not in the maps: {}", super::error_chain(error)))
    }
}

fn one(maps: &Maps, write: &Write) -> Result<(), DatapathError> {
    match write {
        Write::Backend4(index, backend) => maps.v4.backends.put(index, backend),
        Write::Backend6(index, backend) => maps.v6.backends.put(index, backend),
        Write::Direct4(index, direct) => maps.v4.direct.put(index, direct),
        Write::Direct6(index, direct) => maps.v6.direct.put(index, direct),
        Write::Receiver4(key, Some(index)) => maps.v4.receivers.put(key, index),
        Write::Receiver4(key, None) => maps.v4.receivers.remove(key).map(drop::<bool>),
        Write::Receiver6(key, Some(index)) => maps.v6.receivers.put(key, index),
        Write::Receiver6(key, None) => maps.v6.receivers.remove(key).map(drop::<bool>),
        Write::Members(begin, members) => {
            let places: Vec<u32> = (*begin..).take(members.len()).collect();
            maps.members.put_all(&places, members)
        }
        Write::Chunk(index, slots) => maps.put_chunk(*index, slots),
        Write::Service4(key, Some(entry)) => maps.v4.services.put(key, entry),
        Write::Service4(key, None) => maps.v4.services.remove(key).map(drop::<bool>),
        Write::Service6(key, Some(entry)) => maps.v6.services.put(key, entry),
        Write::Service6(key, None) => maps.v6.services.remove(key).map(drop::<bool>),
        Write::Range4(key, true) => maps.v4.ranges.put(key, &1),
        Write::Range4(key, false) => maps.v4.ranges.remove(key).map(drop::<bool>),
        Write::Range6(key, true) => maps.v6.ranges.put(key, &1),
        Write::Range6(key, false) => maps.v6.ranges.remove(key).map(drop::<bool>),
        Write::NextHop(index, hop) => maps.next_hops.put(index, hop),
        Write::Neighbor(key, Some(index)) => maps.neighbors.put(key, index),
        Write::Neighbor(key, None) => maps.neighbors.remove(key).map(drop::<bool>),
        Write::Tunnel(index, tunnel) => maps.tunnels.put(index, tunnel),
        Write::FarEnd(address, Some(index)) => maps.far_ends.put(address, index),
        Write::FarEnd(address, None) => maps.far_ends.remove(address).map(drop::<bool>),
        Write::Identity4(address, Some(identity)) => maps.v4.identities.put(address, identity),
        Write::Identity4(address, None) => maps.v4.identities.remove(address).map(drop::<bool>),
        Write::Identity6(address, Some(identity)) => maps.v6.identities.put(address, identity),
        Write::Identity6(address, None) => maps.v6.identities.remove(address).map(drop::<bool>),
        Write::Cidr4(key, Some(identity)) => maps.v4.cidrs.put(key, identity),
        Write::Cidr4(key, None) => maps.v4.cidrs.remove(key).map(drop::<bool>),
        Write::Cidr6(key, Some(identity)) => maps.v6.cidrs.put(key, identity),
        Write::Cidr6(key, None) => maps.v6.cidrs.remove(key).map(drop::<bool>),
        Write::Mesh4(key, Some(flags)) => maps.v4.mesh.put(key, flags),
        Write::Mesh4(key, None) => maps.v4.mesh.remove(key).map(drop::<bool>),
        Write::Mesh6(key, Some(flags)) => maps.v6.mesh.put(key, flags),
        Write::Mesh6(key, None) => maps.v6.mesh.remove(key).map(drop::<bool>),
    }
}

/// Identities come in hundreds of thousands and depend on nothing: they are collected.
struct Run<'a> {
    maps: &'a Maps,
    identities4: Batch<V4>,
    identities6: Batch<V6>,
    refused: Vec<(Write, DatapathError)>,
}

impl Run<'_> {
    fn independent(&mut self, write: Write) {
        let maps = self.maps;
        match write {
            Write::Identity4(address, identity) => {
                self.identities4.add(address, identity, &maps.v4.identities, Write::Identity4, &mut self.refused);
            }
            Write::Identity6(address, identity) => {
                self.identities6.add(address, identity, &maps.v6.identities, Write::Identity6, &mut self.refused);
            }
            other => {
                if let Err(error) = one(maps, &other) {
                    self.refused.push((other, error));
                }
            }
        }
    }
}

/// Identities to write together.
struct Batch<K> {
    keys: Vec<K>,
    values: Vec<Identity>,
    gone: Vec<K>,
}

impl<K> Default for Batch<K> {
    fn default() -> Self {
        Self { keys: Vec::new(), values: Vec::new(), gone: Vec::new() }
    }
}

impl<A: Address> Batch<A> {
    fn add(
        &mut self,
        key: A,
        value: Option<Identity>,
        table: &Identities<A>,
        write: fn(A, Option<Identity>) -> Write,
        refused: &mut Vec<(Write, DatapathError)>,
    ) {
        // What was to go and comes again must go first, and the other way round.
        let other = if value.is_some() { self.gone.len() } else { self.keys.len() };
        if other > 0 || self.keys.len() + self.gone.len() >= BATCH {
            self.flush(table, write, refused);
        }
        match value {
            Some(value) => {
                self.keys.push(key);
                self.values.push(value);
            }
            None => self.gone.push(key),
        }
    }

    fn flush(
        &mut self,
        table: &Identities<A>,
        write: fn(A, Option<Identity>) -> Write,
        refused: &mut Vec<(Write, DatapathError)>,
    ) {
        let (keys, values, gone) = (mem::take(&mut self.keys), mem::take(&mut self.values), mem::take(&mut self.gone));
        if table.put_all(&keys, &values).is_err() {
            // One of them was refused, which says nothing about the others.
            for (key, value) in keys.iter().zip(&values) {
                if let Err(error) = table.put(key, value) {
                    refused.push((write(*key, Some(*value)), error));
                }
            }
        }
        if table.remove_all(&gone).is_err() {
            for key in &gone {
                if let Err(error) = table.remove(key) {
                    refused.push((write(*key, None), error));
                }
            }
        }
    }
}
