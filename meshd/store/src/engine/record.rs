//! The values of the engine: revisions, lease ids and one version of one key.

use std::fmt;
use std::sync::Arc;

use etcd_client::proto::PbKeyValue;

/// A main revision: one number per committed write, shared by every key the write touched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub i64);

impl Revision {
    /// The revision of a store nobody has written to.
    pub const FIRST: Self = Self(1);

    /// The revision after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The revision before this one.
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0 - 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a change stands in the history: the write it belongs to, then its place inside that write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Revision of the write.
    pub main: Revision,
    /// Index of the change inside the write.
    pub sub: u32,
}

/// A lease number as it is on the wire; 0 is "no lease".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

impl LeaseId {
    /// The value that means "not attached to a lease".
    pub const NONE: Self = Self(0);
}

/// One version of one key. A tombstone is a record with version 0 and no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The key.
    pub key: Arc<[u8]>,
    /// The value; empty for a tombstone.
    pub value: Box<[u8]>,
    /// When this version was written.
    pub position: Position,
    /// When the key was created, counted anew after each deletion; 0 for a tombstone.
    pub create: Revision,
    /// Number of writes since the key was created; 0 for a tombstone.
    pub version: i64,
    /// The lease the version is attached to.
    pub lease: LeaseId,
}

impl Record {
    /// Memory charged for a record beside its key and its value: the record itself, its place in the index and
    /// in the history, and what the allocator adds.
    pub const OVERHEAD_BYTES: usize = 192;

    /// True if this version says that the key does not exist.
    #[must_use]
    pub fn is_tombstone(&self) -> bool {
        self.version == 0
    }

    /// Memory this record is charged for.
    #[must_use]
    pub fn cost_bytes(&self) -> usize {
        self.key.len() + self.value.len() + Self::OVERHEAD_BYTES
    }

    /// Memory an answer with this record is charged for.
    #[must_use]
    pub fn answer_bytes(&self, keys_only: bool) -> usize {
        self.cost_bytes() - if keys_only { self.value.len() } else { 0 }
    }

    /// The wire form; a tombstone shows only its key and the revision of the deletion.
    #[must_use]
    pub fn to_wire(&self, keys_only: bool) -> PbKeyValue {
        PbKeyValue {
            key: self.key.to_vec(),
            create_revision: self.create.0,
            mod_revision: self.position.main.0,
            version: self.version,
            value: if keys_only { Vec::new() } else { self.value.to_vec() },
            lease: self.lease.0,
        }
    }
}
