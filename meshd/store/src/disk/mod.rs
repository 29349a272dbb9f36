//! The data file: everything a restart must not lose, in one redb file.
//!
//! One table holds the records by position, as they were written; a put is an append, and compaction removes what it
//! dropped from memory. Beside it are the leases and a few numbers. Writes are committed in groups: whatever arrived
//! while the last group was being written forms the next one, with a single sync for all of them.
//!
//! A file that cannot be read is renamed and kept, and the store starts empty under a new cluster id.

pub(crate) mod codec;
mod writer;

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::{
    Builder, Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageError, TableDefinition,
};

use crate::engine::{Journal, LeaseChange, LeaseId, Loaded, Position, Revision};
use crate::store::StoreError;

pub(crate) use writer::DiskWriter;

const RECORDS: TableDefinition<'_, (i64, u32), &[u8]> = TableDefinition::new("records");
const LEASES: TableDefinition<'_, i64, i64> = TableDefinition::new("leases");
const NUMBERS: TableDefinition<'_, &str, i64> = TableDefinition::new("numbers");

const FORMAT: i64 = 1;
/// Page cache; the engine holds everything in memory, so the file is read only once.
const CACHE_BYTES: usize = 4 << 20;
/// Highest number tried for the name of a file set aside.
const SET_ASIDE_MAX: u32 = 1_000;

/// Who this store is. Lives as long as its history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) cluster_id: u64,
    pub(crate) member_id: u64,
    /// Number of starts, shown as the raft term.
    pub(crate) term: u64,
}

impl Identity {
    /// A new identity for a new history.
    pub(crate) fn random() -> Self {
        Self { cluster_id: rand::random::<u64>().max(1), member_id: rand::random::<u64>().max(1), term: 1 }
    }
}

/// Why the store starts without its history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HistoryLoss {
    /// There was no data file: a first start, or somebody removed it.
    NoFile,
    /// The data file could not be read and was renamed.
    Unreadable {
        /// Where it is now.
        set_aside: PathBuf,
        /// What was wrong with it.
        reason: String,
    },
    /// The store has no data file by configuration.
    NotPersistent,
}

/// An open data file with what was in it.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) file: DataFile,
    pub(crate) identity: Identity,
    pub(crate) loaded: Loaded,
    pub(crate) loss: Option<HistoryLoss>,
}

/// What went wrong with the data file.
#[derive(Debug)]
enum OpenFailure {
    /// The content is no store.
    Unreadable(String),
    /// The file may be fine but cannot be used now.
    Refused(StoreError),
}

/// The open file.
#[derive(Debug)]
pub(crate) struct DataFile {
    path: PathBuf,
    database: Option<Database>,
}

impl DataFile {
    /// Opens or creates the file, and sets an unreadable one aside.
    pub(crate) fn open(path: &Path) -> Result<Opened, StoreError> {
        let refused = |source: io::Error| StoreError::DataFile { path: path.to_owned(), reason: source.to_string() };
        let existed = match std::fs::metadata(path) {
            Ok(metadata) => metadata.len() > 0,
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(refused(error)),
        };
        if existed {
            match Self::read(path) {
                Ok((file, identity, loaded)) => {
                    return Ok(Opened { file, identity, loaded, loss: None });
                }
                Err(OpenFailure::Refused(error)) => return Err(error),
                Err(OpenFailure::Unreadable(reason)) => return Self::replace(path, &reason),
            }
        }
        Self::create(path, HistoryLoss::NoFile)
    }

    /// Sets the file aside and starts a new one. The file must not be open.
    pub(crate) fn replace(path: &Path, reason: &str) -> Result<Opened, StoreError> {
        let set_aside = set_aside(path)
            .map_err(|source| StoreError::DataFile { path: path.to_owned(), reason: source.to_string() })?;
        let reason = reason.to_owned();
        Self::create(path, HistoryLoss::Unreadable { set_aside, reason })
    }

    fn create(path: &Path, loss: HistoryLoss) -> Result<Opened, StoreError> {
        let database = open_database(path).map_err(|failure| match failure {
            OpenFailure::Refused(error) => error,
            OpenFailure::Unreadable(reason) => StoreError::DataFile { path: path.to_owned(), reason },
        })?;
        let identity = Identity::random();
        let loaded = Loaded { revision: Revision::FIRST, compacted: Revision(-1), ..Loaded::default() };
        let mut file = Self { path: path.to_owned(), database: Some(database) };
        let journal = Journal { revision: loaded.revision, compacted: Some(loaded.compacted), ..Journal::default() };
        let written = file.commit(&[&journal]).and_then(|()| file.write_identity(identity));
        written.map_err(|error| StoreError::DataFile { path: path.to_owned(), reason: error.to_string() })?;
        Ok(Opened { file, identity, loaded, loss: Some(loss) })
    }

    /// Reads an existing file. A damaged one may make the database library panic; that too is "unreadable".
    fn read(path: &Path) -> Result<(Self, Identity, Loaded), OpenFailure> {
        let attempt = catch_unwind(AssertUnwindSafe(|| {
            let database = open_database(path)?;
            let (mut identity, loaded) = load(&database).map_err(|error| OpenFailure::Unreadable(error.to_string()))?;
            identity.term = identity.term.saturating_add(1);
            let file = Self { path: path.to_owned(), database: Some(database) };
            file.write_identity(identity).map_err(|error| {
                OpenFailure::Refused(StoreError::DataFile { path: path.to_owned(), reason: error.to_string() })
            })?;
            Ok((file, identity, loaded))
        }));
        attempt.unwrap_or_else(|_| Err(OpenFailure::Unreadable("reading the file failed".to_owned())))
    }

    /// Writes journals in order, all of them or none, and returns when they are on disk.
    pub(crate) fn commit(&mut self, journals: &[&Journal]) -> Result<(), DiskError> {
        let database = self.database()?;
        let transaction = database.begin_write()?;
        {
            let mut records = transaction.open_table(RECORDS)?;
            let mut leases = transaction.open_table(LEASES)?;
            let mut numbers = transaction.open_table(NUMBERS)?;
            for journal in journals {
                for record in &journal.records {
                    let key = (record.position.main.0, record.position.sub);
                    records.insert(key, codec::encode(record).as_slice())?;
                }
                for position in &journal.removed {
                    records.remove((position.main.0, position.sub))?;
                }
                for change in &journal.leases {
                    match change {
                        LeaseChange::Granted(id, ttl_s) => leases.insert(id.0, ttl_s)?,
                        LeaseChange::Gone(id) => leases.remove(id.0)?,
                    };
                }
                if let Some(compacted) = journal.compacted {
                    numbers.insert("compacted", compacted.0)?;
                }
                numbers.insert("revision", journal.revision.0)?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Closes and opens the file again, as redb demands after a failed commit.
    pub(crate) fn reopen(&mut self) -> Result<(), DiskError> {
        self.database = None;
        match open_database(&self.path) {
            Ok(database) => {
                self.database = Some(database);
                Ok(())
            }
            Err(OpenFailure::Unreadable(reason)) => Err(DiskError(reason)),
            Err(OpenFailure::Refused(error)) => Err(DiskError(error.to_string())),
        }
    }

    /// Where the file is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn database(&self) -> Result<&Database, DiskError> {
        self.database.as_ref().ok_or_else(|| DiskError("file is not open".to_owned()))
    }

    fn write_identity(&self, identity: Identity) -> Result<(), DiskError> {
        let transaction = self.database()?.begin_write()?;
        {
            let mut numbers = transaction.open_table(NUMBERS)?;
            numbers.insert("format", FORMAT)?;
            numbers.insert("cluster_id", identity.cluster_id.cast_signed())?;
            numbers.insert("member_id", identity.member_id.cast_signed())?;
            numbers.insert("term", identity.term.cast_signed())?;
        }
        transaction.commit()?;
        Ok(())
    }
}

/// Any failure of the database library, as text: there is nothing a caller could do differently.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct DiskError(String);

macro_rules! disk_error_from {
    ($($source:ty),*) => {
        $(impl From<$source> for DiskError {
            fn from(error: $source) -> Self {
                Self(error.to_string())
            }
        })*
    };
}

disk_error_from!(redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError, codec::CodecError);

fn open_database(path: &Path) -> Result<Database, OpenFailure> {
    let refused = |reason: String| OpenFailure::Refused(StoreError::DataFile { path: path.to_owned(), reason });
    let file = private_file(path).map_err(|error| refused(error.to_string()))?;
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder.create_file(file).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => OpenFailure::Refused(StoreError::DataFileInUse { path: path.to_owned() }),
        DatabaseError::RepairAborted | DatabaseError::UpgradeRequired(_) => OpenFailure::Unreadable(error.to_string()),
        DatabaseError::Storage(StorageError::Corrupted(reason)) => OpenFailure::Unreadable(reason),
        DatabaseError::Storage(StorageError::Io(source))
            if matches!(source.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) =>
        {
            OpenFailure::Unreadable(source.to_string())
        }
        other => refused(other.to_string()),
    })
}

/// Opens the file so that only its owner can read it, whatever it was created with.
fn private_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

fn load(database: &Database) -> Result<(Identity, Loaded), DiskError> {
    let transaction = database.begin_read()?;
    let numbers = transaction.open_table(NUMBERS)?;
    let number = |name: &str| -> Result<i64, DiskError> {
        let value = numbers.get(name)?.map(|value| value.value());
        value.ok_or_else(|| DiskError(format!("number {name} is missing")))
    };
    let format = number("format")?;
    if format != FORMAT {
        return Err(DiskError(format!("format {format} is not known")));
    }
    let identity = Identity {
        cluster_id: number("cluster_id")?.cast_unsigned(),
        member_id: number("member_id")?.cast_unsigned(),
        term: number("term")?.cast_unsigned(),
    };
    if identity.cluster_id == 0 || identity.member_id == 0 {
        return Err(DiskError("cluster id or member id is 0".to_owned()));
    }
    let mut loaded = Loaded {
        revision: Revision(number("revision")?),
        compacted: Revision(number("compacted")?),
        ..Loaded::default()
    };
    for entry in transaction.open_table(RECORDS)?.iter()? {
        let (key, value) = entry?;
        let (main, sub) = key.value();
        let position = Position { main: Revision(main), sub };
        loaded.records.push(codec::decode(position, value.value())?);
    }
    for entry in transaction.open_table(LEASES)?.iter()? {
        let (id, ttl_s) = entry?;
        loaded.leases.push((LeaseId(id.value()), ttl_s.value()));
    }
    Ok((identity, loaded))
}

/// Renames an unreadable file to the first free name.
fn set_aside(path: &Path) -> io::Result<PathBuf> {
    for number in 1..=SET_ASIDE_MAX {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".unreadable-{number}"));
        let target = PathBuf::from(name);
        if !target.try_exists()? {
            std::fs::rename(path, &target)?;
            return Ok(target);
        }
    }
    Err(io::Error::new(ErrorKind::AlreadyExists, "too many unreadable files were set aside; remove some"))
}

#[cfg(test)]
mod tests;
