//! The table of identities, and the lines in front of that of IPv4 (`meshd_steps::identity`).
//!
//! The table has every address; a line has those of its own that it has room for, and says when that is not all. A line says also when it is
//! changed, and who looks at it meanwhile asks the table: so nothing is missed, and what is found is whole.

use std::{
    io,
    marker::PhantomData,
    ops::ControlFlow,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    ptr::NonNull,
};

use meshd_abi::{Address, IDENTITY_WAYS, Identity, IdentityLine, V4, identity_flags};
use meshd_steps::identity::home;

use crate::{DatapathError, Table, pins, programs, sys};

/// The map of lines, and what an error calls it.
pub(crate) const LINES: &str = "IDENTITY_LINES4";
/// The number of lines, in the programs.
pub(crate) const LINES_COUNT: &str = "IDENTITY_LINES4_COUNT";

/// The identities of a family. Who writes them is one process at a time, and one thread of it.
#[derive(Debug)]
pub struct Identities<A> {
    table: Table<A, Identity>,
    /// Only of IPv4.
    lines: Option<Lines>,
    family: PhantomData<fn(A)>,
}

impl<A: Address> Identities<A> {
    pub(crate) fn new(table: Table<A, Identity>, lines: Option<Lines>) -> Self {
        Self { table, lines, family: PhantomData }
    }

    /// What is known of an address.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn get(&self, address: &A) -> Result<Option<Identity>, DatapathError> {
        self.table.get(address)
    }

    /// Every address; see [`Table::all`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn all(&self) -> Result<Vec<(A, Identity)>, DatapathError> {
        self.table.all()
    }

    /// Calls a function with every address until it has seen enough; see [`Table::all`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn walk_until(&self, visit: impl FnMut(&A, &Identity) -> ControlFlow<()>) -> Result<(), DatapathError> {
        self.table.walk_until(visit)
    }

    /// Adds or replaces what is known of an address.
    ///
    /// # Errors
    /// When the kernel refuses, for instance because the map is full.
    pub fn put(&self, address: &A, identity: &Identity) -> Result<(), DatapathError> {
        self.put_all(std::slice::from_ref(address), std::slice::from_ref(identity))
    }

    /// The same for many; both lists are of the same length.
    ///
    /// # Errors
    /// At the first that the kernel refuses; programs may find those before it or not.
    pub fn put_all(&self, addresses: &[A], identities: &[Identity]) -> Result<(), DatapathError> {
        if addresses.is_empty() {
            return Ok(());
        }
        self.table.put_all(addresses, identities)?;
        let Some(lines) = self.view()? else { return Ok(()) };
        for (address, identity) in addresses.iter().zip(identities) {
            lines.of(v4(address)).put(v4(address), identity);
        }
        Ok(())
    }

    /// Removes what is known of an address; false when nothing was.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self, address: &A) -> Result<bool, DatapathError> {
        if let Some(lines) = self.view()? {
            lines.of(v4(address)).remove(v4(address));
        }
        self.table.remove(address)
    }

    /// The same for many; those of which nothing is known are passed over.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_all(&self, addresses: &[A]) -> Result<(), DatapathError> {
        if addresses.is_empty() {
            return Ok(());
        }
        if let Some(lines) = self.view()? {
            for address in addresses {
                lines.of(v4(address)).remove(v4(address));
            }
        }
        self.table.remove_all(addresses)
    }

    /// The table without the lines, for who calls [`Identities::rebuild`] afterwards.
    pub(crate) fn table(&self) -> &Table<A, Identity> {
        &self.table
    }

    /// Makes the lines say what the table holds, whatever they said: those of a process that was killed at the wrong moment may say something
    /// else. Programs may look at them meanwhile.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn rebuild(&self) -> Result<(), DatapathError> {
        let Some(lines) = self.view()? else { return Ok(()) };
        let mut all = Vec::new();
        self.table.walk(|address, identity| {
            if v4(address) != V4::default() {
                all.push((home(v4(address), lines.count), v4(address), *identity));
            }
        })?;
        all.sort_unstable_by_key(|(line, address, _)| (*line, address.0));
        let mut rest = &all[..];
        for index in 0..lines.count {
            let (own, others) = rest.split_at(rest.partition_point(|(line, ..)| *line == index));
            rest = others;
            lines.line(index).set(own);
        }
        Ok(())
    }

    fn view(&self) -> Result<Option<View>, DatapathError> {
        self.lines.as_ref().map(Lines::view).transpose()
    }
}

/// The address of what has lines.
fn v4<A: Address>(address: &A) -> V4 {
    V4::from_words(address.words())
}

/// The map of lines.
#[derive(Debug)]
pub(crate) struct Lines {
    map: OwnedFd,
    count: u32,
}

impl Lines {
    /// Opens the pinned map.
    pub(crate) fn open(pin: &Path) -> Result<Self, DatapathError> {
        let count = pins::shape_of(pin, LINES)?.map_or(0, |shape| shape.max_entries);
        Ok(Self { map: programs::open(pin, LINES)?, count })
    }

    /// Maps their memory, for as long as it is worked with: mapped pages count as ours.
    fn view(&self) -> Result<View, DatapathError> {
        let octets = self.count as usize * size_of::<IdentityLine>();
        let error = |source: io::Error| DatapathError::Elements { operation: "map", map: LINES, source };
        let memory = sys::Memory::map(self.map.as_fd(), octets).map_err(error)?;
        Ok(View { memory, count: self.count })
    }
}

/// Lines whose memory is mapped.
struct View {
    memory: sys::Memory,
    count: u32,
}

impl View {
    fn of(&self, address: V4) -> Line<'_> {
        self.line(home(address, self.count))
    }

    fn line(&self, index: u32) -> Line<'_> {
        assert!(index < self.count, "there is no line {index}");
        // SAFETY: inside of the memory.
        let line = unsafe { self.memory.start().cast::<IdentityLine>().add(index as usize) };
        Line { line, memory: PhantomData }
    }
}

/// One line, which programs read at any time.
struct Line<'a> {
    line: NonNull<IdentityLine>,
    memory: PhantomData<&'a View>,
}

impl Line<'_> {
    /// Of an address that is in the table with this identity.
    fn put(&self, address: V4, identity: &Identity) {
        if address == V4::default() {
            return;
        }
        match self.way_of(address).or_else(|| self.way_of(V4::default())) {
            Some(way) if self.address(way) == address && self.identity(way) == *identity => {}
            Some(way) => self.change(self.has_more(), || self.write(way, address, identity)),
            None if self.has_more() => {}
            None => self.change(true, || {}),
        }
    }

    /// Of one that is to leave the table.
    fn remove(&self, address: V4) {
        if address != V4::default()
            && let Some(way) = self.way_of(address)
        {
            self.change(self.has_more(), || self.write(way, V4::default(), &Identity::default()));
        }
    }

    /// These addresses are all of the line's that the table holds.
    fn set(&self, all: &[(u32, V4, Identity)]) {
        let has_more = all.len() > IDENTITY_WAYS;
        let all = &all[..all.len().min(IDENTITY_WAYS)];
        let ways = (0..IDENTITY_WAYS).map(|way| all.get(way).map_or_else(Default::default, |(_, a, i)| (*a, *i)));
        let is_right = ways.clone().enumerate().all(|(way, said)| (self.address(way), self.identity(way)) == said);
        if is_right && self.has_more() == has_more && !self.is_changing() {
            return;
        }
        self.change(has_more, || {
            for (way, (address, identity)) in ways.enumerate() {
                self.write(way, address, &identity);
            }
        });
    }

    /// Changes the line. Who looks at it meanwhile asks the table, and so does everybody after a process that died here, until the next one
    /// has set the line. Where a processor changes the order of stores nobody looks at lines.
    fn change(&self, has_more: bool, write: impl FnOnce()) {
        let more = if has_more { identity_flags::MORE } else { 0 };
        let count = |state: u16| state & identity_flags::LINE & !identity_flags::MORE;
        // Odd, also after somebody who did not come to the end.
        let begun = count(self.state()).wrapping_add(identity_flags::CHANGE) | identity_flags::CHANGE;
        self.set_state(count(begun));
        write();
        self.set_state(count(begun.wrapping_add(identity_flags::CHANGE)) | more);
    }

    fn write(&self, way: usize, address: V4, identity: &Identity) {
        let line = if way == 0 { self.state() & identity_flags::LINE } else { 0 };
        let identity = Identity { flags: identity.flags & !identity_flags::LINE | line, ..*identity };
        // SAFETY: of the line, which says that it changes.
        unsafe {
            self.identities().add(way).write_volatile(identity);
            self.addresses().add(way).write_volatile(address);
        }
    }

    fn way_of(&self, address: V4) -> Option<usize> {
        (0..IDENTITY_WAYS).find(|way| self.address(*way) == address)
    }

    fn address(&self, way: usize) -> V4 {
        // SAFETY: one of the line's.
        unsafe { self.addresses().add(way).read_volatile() }
    }

    fn identity(&self, way: usize) -> Identity {
        // SAFETY: one of the line's.
        let identity = unsafe { self.identities().add(way).read_volatile() };
        Identity { flags: identity.flags & !identity_flags::LINE, ..identity }
    }

    fn has_more(&self) -> bool {
        self.state() & identity_flags::MORE != 0
    }

    fn is_changing(&self) -> bool {
        self.state() & identity_flags::CHANGE != 0
    }

    /// The flags of the first way, with those of the line.
    fn state(&self) -> u16 {
        // SAFETY: a field of the line's first.
        unsafe { (&raw const (*self.identities()).flags).read_volatile() }
    }

    /// Writes the flags of the line; the first way keeps its own.
    fn set_state(&self, line: u16) {
        let own = self.state() & !identity_flags::LINE;
        // SAFETY: a field of the line's first, which nobody else writes.
        unsafe { (&raw mut (*self.identities()).flags).write_volatile(own | line) };
    }

    fn addresses(&self) -> *mut V4 {
        // SAFETY: a field of the line.
        unsafe { (&raw mut (*self.line.as_ptr()).addresses).cast() }
    }

    fn identities(&self) -> *mut Identity {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.line.as_ptr()).identities).cast() }
    }
}
