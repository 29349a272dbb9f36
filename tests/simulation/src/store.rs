//! A store that behaves like etcd as far as readers and writers can see: revisions, old versions until they are
//! compacted, pages, watches with catch-up, leases, and a new id whenever its history is lost.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    time::Duration,
};

use ipnet::IpNet;

/// A stored value. `good` is what the harness knows about it and a reader does not: the node a writer of the right
/// cluster described with it. Damaged and hostile values have none.
#[derive(Debug, Clone)]
pub(crate) struct Value {
    pub(crate) bytes: Rc<[u8]>,
    pub(crate) good: Option<Rc<Good>>,
}

/// A record that every reader has to accept, unless it claims something of the reader's own.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Good {
    pub(crate) node: usize,
    pub(crate) pod_cidrs: Vec<IpNet>,
}

pub(crate) type Key = Rc<[u8]>;
/// A key with its value, or without one when it was deleted.
pub(crate) type Row = (Key, Option<Value>);

/// A watch of one reader.
#[derive(Debug, Clone)]
pub(crate) struct Watch<W> {
    pub(crate) who: W,
    pub(crate) from: Vec<u8>,
    pub(crate) end: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) rows: Vec<Row>,
    pub(crate) more: bool,
}

/// The revision that was asked for is compacted.
#[derive(Debug)]
pub(crate) struct Compacted;

#[derive(Debug)]
pub(crate) struct Store<W> {
    pub(crate) id: u64,
    pub(crate) revision: i64,
    pub(crate) up: bool,
    compacted: i64,
    keys: BTreeMap<Key, Vec<(i64, Option<Value>)>>,
    log: VecDeque<(i64, Row)>,
    leases: BTreeMap<Key, Duration>,
    pub(crate) watches: Vec<Watch<W>>,
}

impl<W: Clone> Store<W> {
    pub(crate) fn new(id: u64) -> Self {
        Self {
            id,
            revision: 1,
            up: true,
            compacted: 0,
            keys: BTreeMap::new(),
            log: VecDeque::new(),
            leases: BTreeMap::new(),
            watches: Vec::new(),
        }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Value> {
        self.keys.get(key)?.last()?.1.as_ref()
    }

    /// Writes or (`None`) deletes a key; returns the watches that have to hear it.
    pub(crate) fn put(&mut self, key: &[u8], value: Option<Value>, lease: Option<Duration>) -> Vec<W> {
        if value.is_none() && self.get(key).is_none() {
            return Vec::new();
        }
        self.revision += 1;
        let key: Key = key.into();
        match lease {
            Some(until) => self.leases.insert(key.clone(), until),
            None => self.leases.remove(&key),
        };
        self.keys.entry(key.clone()).or_default().push((self.revision, value.clone()));
        let told = self.watches.iter().filter(|watch| inside(&key, &watch.from, &watch.end));
        let told = told.map(|watch| watch.who.clone()).collect();
        self.log.push_back((self.revision, (key, value)));
        told
    }

    pub(crate) fn keep_alive(&mut self, key: &[u8], until: Duration) {
        if let Some(expiry) = self.leases.get_mut(key) {
            *expiry = until;
        }
    }

    pub(crate) fn expired(&self, now: Duration) -> BTreeSet<Key> {
        self.leases.iter().filter(|(_, until)| **until <= now).map(|(key, _)| key.clone()).collect()
    }

    /// After a crash every lease starts anew, as etcd does it.
    pub(crate) fn renew_leases(&mut self, until: Duration) {
        self.leases.values_mut().for_each(|expiry| *expiry = until);
    }

    pub(crate) fn list(&self, from: &[u8], end: &[u8], revision: i64, limit: usize) -> Result<Page, Compacted> {
        let at = if revision == 0 { self.revision } else { revision };
        if at < self.compacted {
            return Err(Compacted);
        }
        let mut rows = Vec::new();
        for (key, versions) in self.keys.range::<[u8], _>((std::ops::Bound::Included(from), std::ops::Bound::Unbounded))
        {
            if !inside(key, from, end) {
                break;
            }
            let Some((_, Some(value))) = versions.iter().rev().find(|(revision, _)| *revision <= at) else { continue };
            if rows.len() == limit {
                return Ok(Page { rows, more: true });
            }
            rows.push((key.clone(), Some(value.clone())));
        }
        Ok(Page { rows, more: false })
    }

    /// Opens a watch; returns what it missed since `revision`.
    pub(crate) fn watch(&mut self, watch: Watch<W>, revision: i64) -> Result<Vec<Row>, Compacted> {
        if revision <= self.compacted {
            return Err(Compacted);
        }
        let missed = self.log.iter().filter(|(at, (key, _))| *at >= revision && inside(key, &watch.from, &watch.end));
        let missed = missed.map(|(_, row)| row.clone()).collect();
        self.watches.push(watch);
        Ok(missed)
    }

    pub(crate) fn compact(&mut self) {
        self.compacted = self.revision;
        self.log.clear();
        for versions in self.keys.values_mut() {
            versions.drain(..versions.len() - 1);
        }
        self.keys.retain(|_, versions| versions.last().is_some_and(|(_, value)| value.is_some()));
    }
}

fn inside(key: &[u8], from: &[u8], end: &[u8]) -> bool {
    if end.is_empty() { key == from } else { key >= from && (end == [0] || key < end) }
}
