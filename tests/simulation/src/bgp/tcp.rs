//! Connections: octets in order, in pieces of any size, with a delay of their own.

use std::{collections::BTreeMap, time::Duration};

use ::bgp::{PeerId, session::Slot};

/// A connection. End 0 is the one that opened it.
#[derive(Debug)]
pub(crate) struct Tcp {
    pub(crate) ends: [End; 2],
    /// Whatever is sent gets lost, and nobody is told.
    pub(crate) cut: bool,
}

#[derive(Debug)]
pub(crate) struct End {
    pub(crate) speaker: usize,
    /// A speaker that restarted does not know the connections of the one before.
    pub(crate) incarnation: u64,
    /// Whose connection it is there; `None` before it was accepted and after it was closed.
    place: Option<(PeerId, Slot)>,
    /// What arrived and was not used yet: the beginning of a message.
    pub(crate) unread: Vec<u8>,
    /// When the last of what travels here arrives.
    pub(crate) last: Duration,
}

impl End {
    pub(crate) fn new(speaker: usize, incarnation: u64) -> Self {
        Self { speaker, incarnation, place: None, unread: Vec::new(), last: Duration::ZERO }
    }

    pub(crate) const fn place(&self) -> Option<(PeerId, Slot)> {
        self.place
    }
}

/// All connections there are, by number.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    all: BTreeMap<u64, Tcp>,
    /// Which end is in which place of a speaker.
    places: BTreeMap<(usize, PeerId, Slot), (u64, usize)>,
    opened: u64,
}

impl Connections {
    pub(crate) fn open(&mut self, ends: [End; 2]) -> u64 {
        self.opened += 1;
        self.all.insert(self.opened, Tcp { ends, cut: false });
        self.opened
    }

    pub(crate) fn get(&self, id: u64) -> Option<&Tcp> {
        self.all.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut Tcp> {
        self.all.get_mut(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Tcp)> {
        self.all.iter().map(|(id, tcp)| (*id, tcp))
    }

    /// The connection in this place of a speaker, and which end of it that is.
    pub(crate) fn at(&self, speaker: usize, peer: PeerId, slot: Slot) -> Option<(u64, usize)> {
        self.places.get(&(speaker, peer, slot)).copied()
    }

    /// Puts an end into a place, which must be free: a speaker that mixes up connections is found here.
    pub(crate) fn put(&mut self, id: u64, end: usize, place: (PeerId, Slot)) -> Result<(), String> {
        let Some(tcp) = self.all.get_mut(&id) else {
            return Err(format!("connection {id} does not exist"));
        };
        let speaker = tcp.ends[end].speaker;
        if self.places.insert((speaker, place.0, place.1), (id, end)).is_some() {
            return Err(format!("speaker {speaker} uses {place:?} twice"));
        }
        tcp.ends[end].place = Some(place);
        Ok(())
    }

    /// Takes an end out of its place: it is closed there.
    pub(crate) fn take(&mut self, id: u64, end: usize) {
        let Some(tcp) = self.all.get_mut(&id) else {
            return;
        };
        let end = &mut tcp.ends[end];
        if let Some((peer, slot)) = end.place.take() {
            self.places.remove(&(end.speaker, peer, slot));
        }
        end.unread.clear();
        if tcp.ends.iter().all(|end| end.place.is_none()) {
            self.all.remove(&id);
        }
    }

    /// Connections between these two.
    pub(crate) fn between(&self, one: usize, other: usize) -> Vec<u64> {
        let is_it = |tcp: &Tcp| {
            let speakers = tcp.ends.each_ref().map(|end| end.speaker);
            speakers == [one, other] || speakers == [other, one]
        };
        self.iter().filter(|(_, tcp)| is_it(tcp)).map(|(id, _)| id).collect()
    }

    /// Connections of this speaker.
    pub(crate) fn of(&self, speaker: usize) -> Vec<u64> {
        self.iter().filter(|(_, tcp)| tcp.ends.iter().any(|end| end.speaker == speaker)).map(|(id, _)| id).collect()
    }
}
