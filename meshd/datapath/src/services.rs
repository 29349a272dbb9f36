//! The table of services, and the filter in front of it (`meshd_abi::frontend_slot`).

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use meshd_abi::{Address, FRONTEND_WORDS, Service, ServiceKey, frontend_slot};

use crate::{DatapathError, Table};

/// The services of a family. Who writes them is one process at a time, and one thread of it.
#[derive(Debug)]
pub struct Services<A> {
    table: Table<ServiceKey<A>, Service>,
    frontends: Arc<Frontends>,
}

impl<A: Address> Services<A> {
    pub(crate) fn new(table: Table<ServiceKey<A>, Service>, frontends: &Arc<Frontends>) -> Self {
        Self { table, frontends: Arc::clone(frontends) }
    }

    /// The service of a frontend.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn get(&self, key: &ServiceKey<A>) -> Result<Option<Service>, DatapathError> {
        self.table.get(key)
    }

    /// Every service; see [`Table::all`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn all(&self) -> Result<Vec<(ServiceKey<A>, Service)>, DatapathError> {
        self.table.all()
    }

    /// Adds or replaces one.
    ///
    /// # Errors
    /// When the kernel refuses, for instance because the map is full.
    pub fn put(&self, key: &ServiceKey<A>, service: &Service) -> Result<(), DatapathError> {
        self.frontends.add(key)?;
        let outcome = self.table.put(key, service);
        if outcome.is_err() {
            self.frontends.say_too_much.store(true, Ordering::Relaxed);
        }
        outcome
    }

    /// Removes one; false when there was none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self, key: &ServiceKey<A>) -> Result<bool, DatapathError> {
        self.frontends.say_too_much.store(true, Ordering::Relaxed);
        self.table.remove(key)
    }

    /// The table without the filter, for who calls [`Frontends::rebuild`] afterwards.
    pub(crate) fn table(&self) -> &Table<ServiceKey<A>, Service> {
        &self.table
    }
}

/// The filter.
#[derive(Debug)]
pub(crate) struct Frontends {
    words: Table<u32, u64>,
    /// A service was removed, whose bits are still there.
    say_too_much: AtomicBool,
}

impl Frontends {
    /// It is not known what the map says.
    pub(crate) fn new(words: Table<u32, u64>) -> Self {
        Self { words, say_too_much: AtomicBool::new(true) }
    }

    fn add<A: Address>(&self, key: &ServiceKey<A>) -> Result<(), DatapathError> {
        let (word, bit) = frontend_slot(&key.address, key.port);
        let old = self.words.get(&word)?.unwrap_or(0);
        if old & bit != 0 { Ok(()) } else { self.words.put(&word, &(old | bit)) }
    }

    /// Makes it say what these tables hold, and no more, when it may say more.
    pub(crate) fn trim<A: Address, B: Address>(
        &self,
        one: &Services<A>,
        other: &Services<B>,
    ) -> Result<(), DatapathError> {
        if self.say_too_much.load(Ordering::Relaxed) { self.rebuild(one, other) } else { Ok(()) }
    }

    /// The same whatever was written to them.
    pub(crate) fn rebuild<A: Address, B: Address>(
        &self,
        one: &Services<A>,
        other: &Services<B>,
    ) -> Result<(), DatapathError> {
        let mut wanted = vec![0; FRONTEND_WORDS as usize];
        let mut add = |(word, bit): (u32, u64)| wanted[word as usize] |= bit;
        one.table.walk(|key, _| add(frontend_slot(&key.address, key.port)))?;
        other.table.walk(|key, _| add(frontend_slot(&key.address, key.port)))?;
        let mut actual = vec![0; FRONTEND_WORDS as usize];
        self.words.walk(|word, bits| actual[*word as usize] = *bits)?;
        for ((word, wanted), actual) in (0..).zip(wanted).zip(actual) {
            if wanted != actual {
                self.words.put(&word, &wanted)?;
            }
        }
        self.say_too_much.store(false, Ordering::Relaxed);
        Ok(())
    }
}
