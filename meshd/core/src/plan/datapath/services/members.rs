//! Backends of a group that take new connections, each at a place of its own among the members.
//!
//! With a table a backend keeps its place as long as it stays, and the last one moves to the place of one that goes: a change touches two places
//! and not all of them. Without one a hash means a place, so places are in the order of addresses, which is the same on all nodes. A program that
//! still has the old table or count finds another backend of the service at such a place, which is as good.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

use crate::maglev::{Maglev, Slots, Table};

/// Address and port of a backend.
pub(super) type At = (IpAddr, u16);

/// Places that slots of a table can name.
const MOST: usize = u16::MAX as usize - 1;

#[derive(Debug, Clone, Copy)]
struct Seat {
    at: At,
    /// The backend's element.
    index: u32,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Members {
    seats: Vec<Seat>,
    places: HashMap<At, u16>,
    weights: HashMap<At, u16>,
    maglev: Option<Maglev>,
    /// Places that the map does not hold yet.
    unwritten: BTreeSet<u16>,
    /// The table in the maps is that of other members, or there is none.
    is_stale: bool,
}

impl Members {
    /// Nobody. `slots`: with a table of this size.
    pub(super) fn new(slots: Option<Slots>, seed: u32) -> Self {
        Self {
            seats: Vec::new(),
            places: HashMap::new(),
            weights: HashMap::new(),
            maglev: slots.map(|slots| Maglev::new(slots, seed)),
            unwritten: BTreeSet::new(),
            is_stale: true,
        }
    }

    /// How many there are.
    pub(super) const fn count(&self) -> u16 {
        // There are no more than [`MOST`].
        self.seats.len() as u16
    }

    /// Gives a backend a place, or another weight at the place it has. False when all places are taken.
    pub(super) fn put(&mut self, at: At, index: u32, weight: u16) -> bool {
        let place = match self.places.get(&at) {
            Some(place) => *place,
            None if self.seats.len() >= MOST => return false,
            None => {
                let place = match self.maglev {
                    Some(_) => self.seats.len(),
                    None => self.seats.partition_point(|seat| seat.at < at),
                };
                self.seats.insert(place, Seat { at, index });
                self.number(place);
                place as u16
            }
        };
        if let Some(seat) = self.seats.get_mut(usize::from(place)).filter(|seat| seat.index != index) {
            seat.index = index;
            self.unwritten.insert(place);
        }
        if self.weights.insert(at, weight) != Some(weight) {
            self.seat(at, place, weight);
        }
        true
    }

    /// Takes a backend its place.
    pub(super) fn remove(&mut self, at: &At) {
        let Some(place) = self.places.remove(at) else { return };
        self.weights.remove(at);
        if let Some(maglev) = &mut self.maglev {
            maglev.remove(&SocketAddr::from(*at));
        }
        self.is_stale = true;
        if self.maglev.is_none() {
            self.seats.remove(usize::from(place));
            self.unwritten.remove(&self.count());
            self.number(place.into());
            return;
        }
        self.seats.swap_remove(usize::from(place));
        self.unwritten.remove(&self.count());
        if let Some(moved) = self.seats.get(usize::from(place)).copied() {
            self.places.insert(moved.at, place);
            self.unwritten.insert(place);
            let weight = self.weights.get(&moved.at).copied().unwrap_or(0);
            self.seat(moved.at, place, weight);
        }
    }

    /// Tells those from this place on which place they have.
    fn number(&mut self, from: usize) {
        for (place, seat) in (0..).zip(&self.seats).skip(from) {
            self.places.insert(seat.at, place);
            self.unwritten.insert(place);
        }
    }

    fn seat(&mut self, at: At, place: u16, weight: u16) {
        self.is_stale = true;
        if let Some(maglev) = &mut self.maglev {
            maglev.put(SocketAddr::from(at), place, weight);
        }
    }

    /// The map holds these elements at the first places already.
    pub(super) fn inherit(&mut self, held: &[u32]) {
        let is_other = |place: &u16| {
            let at = usize::from(*place);
            self.seats.get(at).map(|seat| seat.index) != held.get(at).copied()
        };
        self.unwritten = (0..self.count()).filter(is_other).collect();
    }

    /// Nothing of it is in the maps for sure.
    pub(super) fn lose(&mut self) {
        self.is_stale = true;
        self.unwritten = (0..self.count()).collect();
    }

    /// Elements by place, all of them: they are to be written to a new range.
    pub(super) fn all(&mut self) -> Vec<u32> {
        self.unwritten.clear();
        self.seats.iter().map(|seat| seat.index).collect()
    }

    /// Elements that the map does not hold yet, in ranges with the first place of each.
    pub(super) fn take_unwritten(&mut self) -> Vec<(u16, Vec<u32>)> {
        let mut ranges: Vec<(u16, Vec<u32>)> = Vec::new();
        for place in std::mem::take(&mut self.unwritten) {
            let Some(seat) = self.seats.get(usize::from(place)) else { continue };
            match ranges.last_mut() {
                Some((begin, elements)) if usize::from(*begin) + elements.len() == usize::from(place) => {
                    elements.push(seat.index);
                }
                _ => ranges.push((place, vec![seat.index])),
            }
        }
        ranges
    }

    /// True when the table has to be built again.
    pub(super) const fn is_stale(&self) -> bool {
        self.is_stale
    }

    /// The table; `None` without one, or without anybody who gets connections.
    pub(super) fn table(&self) -> Option<Table> {
        self.maglev.as_ref()?.table()
    }

    /// The maps hold the table, or there is none to hold.
    pub(super) fn set_written(&mut self) {
        self.is_stale = false;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn at(number: u8) -> At {
        (IpAddr::from([10, 0, 0, number]), 80)
    }

    #[test]
    fn who_stays_keeps_its_place_and_the_last_one_fills_the_gap() {
        let mut members = Members::new(Some(Slots::Normal), 0);
        for number in 0..5 {
            assert!(members.put(at(number), 100 + u32::from(number), 1));
        }
        assert_eq!(members.all(), [100, 101, 102, 103, 104]);
        members.remove(&at(1));
        assert_eq!(members.take_unwritten(), [(1, vec![104])]);
        members.put(at(9), 109, 1);
        members.put(at(8), 108, 1);
        members.remove(&at(0));
        assert_eq!(members.take_unwritten(), [(0, vec![108]), (4, vec![109])]);
        members.put(at(2), 102, 1);
        assert_eq!((members.take_unwritten(), members.all()), (vec![], vec![108, 104, 102, 103, 109]));
    }

    #[test]
    fn without_a_table_places_are_in_the_order_of_addresses() {
        let mut members = Members::new(None, 0);
        for number in [3, 1, 4, 0, 2] {
            assert!(members.put(at(number), 100 + u32::from(number), 1));
        }
        assert_eq!(members.all(), [100, 101, 102, 103, 104]);
        members.remove(&at(1));
        assert_eq!(members.take_unwritten(), [(1, vec![102, 103, 104])]);
        members.put(at(1), 101, 1);
        members.remove(&at(4));
        assert_eq!(members.take_unwritten(), [(1, vec![101, 102, 103])]);
    }

    #[test]
    fn there_are_no_more_places_than_slots_can_name() {
        let mut members = Members::new(None, 0);
        let at = |number: u32| (IpAddr::from(number.to_be_bytes()), 80);
        for number in 0..MOST as u32 {
            assert!(members.put(at(number), number, 1));
        }
        assert!(!members.put(at(u32::MAX), 7, 1));
        assert!(members.put(at(5), 5, 2), "it has one");
        members.remove(&at(9));
        assert!(members.put(at(u32::MAX), 7, 1));
        assert_eq!(members.count(), u16::MAX - 1);
    }

    proptest! {
        /// The map and the table are those of a group that was made at once, whatever came and went, but for the order of places.
        #[test]
        fn the_way_there_does_not_matter(steps in proptest::collection::vec((0u8..12, 0u16..4, any::<bool>()), 1..60)) {
            let mut members = Members::new(Some(Slots::Normal), 7);
            let mut wanted = BTreeMap::new();
            let mut map = Vec::new();
            for (number, weight, writes) in steps {
                if weight == 0 {
                    members.remove(&at(number));
                    wanted.remove(&number);
                } else {
                    prop_assert!(members.put(at(number), number.into(), weight));
                    wanted.insert(number, weight);
                }
                if writes {
                    for (begin, elements) in members.take_unwritten() {
                        for (place, element) in (usize::from(begin)..).zip(elements) {
                            if map.len() <= place {
                                map.resize(place + 1, u32::MAX);
                            }
                            map[place] = element;
                        }
                    }
                    prop_assert_eq!(&map[..members.count().into()], members.all());
                }
            }
            let mut fresh = Maglev::new(Slots::Normal, 7);
            for (number, weight) in &wanted {
                fresh.put(SocketAddr::from(at(*number)), (*number).into(), *weight);
            }
            let places = members.all();
            let backends = |table: Option<Table>| table.map(|table| table.slots().to_vec());
            let ours = backends(members.table())
                .map(|slots| slots.into_iter().map(|place| places[usize::from(place)] as u16).collect::<Vec<_>>());
            prop_assert_eq!(ours, backends(fresh.table()));
        }
    }
}
