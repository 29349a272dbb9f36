//! The file: tables of postcard values, one row per record.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions, Permissions},
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use imbl::OrdMap;
use ipnet::IpNet;
use jiff::Timestamp;
use meshd_core::{
    clustermesh::Interner,
    id::{ClusterId, ClusterName, NodeName, NumericIdentity},
    observed::{Change, ClusterChange, ClusterTables, EndpointRow, IdentityRow, Labels, NodeRow},
    table::RowDiff,
};
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageError, TableDefinition,
    WriteTransaction,
};
use serde::Serialize;
use thiserror::Error;

use super::{Loaded, SetAside};

/// Version of the tables below. A file of a higher version was written by a newer meshd.
const FORMAT: u64 = 1;
/// Memory the database may use for pages.
const CACHE_BYTES: usize = 1024 * 1024;
/// Highest number tried for the name of a file set aside.
const SET_ASIDE_MAX: u32 = 100;

const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const CLUSTERS: TableDefinition<'_, &str, u16> = TableDefinition::new("clusters");
const NODES: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("nodes");
const ENDPOINTS: TableDefinition<'_, (&str, &[u8]), &[u8]> = TableDefinition::new("endpoints");
const IDENTITIES: TableDefinition<'_, (&str, u32), &str> = TableDefinition::new("identities");
const OWNERS: TableDefinition<'_, &[u8], &str> = TableDefinition::new("owners");
const LABELS: TableDefinition<'_, &str, u32> = TableDefinition::new("labels");

/// Names in `NUMBERS`.
const NUMBER_FORMAT: &str = "format";
const NUMBER_STORE_ID: &str = "store_id";

/// Why the state file cannot be used at all.
#[derive(Debug, Error)]
pub enum StateError {
    /// The file cannot be opened, created or renamed.
    #[error("failed to {action} state file {}: {reason}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Another process has it open.
    #[error("state file {} is in use by another process", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Reading or writing rows failed.
    #[error("failed to {action} rows in the state file: {reason}")]
    Rows {
        /// What was tried.
        action: &'static str,
        /// What the database said.
        reason: String,
    },
}

/// The content cannot be used.
#[derive(Debug)]
struct Unreadable(String);

macro_rules! unreadable_from {
    ($($source:ty),*) => {
        $(impl From<$source> for Unreadable {
            fn from(error: $source) -> Self {
                Self(error.to_string())
            }
        })*
    };
}

unreadable_from!(
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError,
    postcard::Error,
    meshd_core::id::IdError
);

/// The open file.
pub(super) struct Disk {
    database: Database,
}

/// What changes with one transaction.
pub(super) struct Changes<'a> {
    pub(super) clusters: (&'a OrdMap<ClusterName, ClusterTables>, &'a OrdMap<ClusterName, ClusterTables>),
    pub(super) owners: Vec<(IpNet, Option<ClusterName>)>,
    pub(super) ids: &'a BTreeMap<ClusterName, ClusterId>,
    pub(super) labels: Option<&'a BTreeMap<Labels, NumericIdentity>>,
    pub(super) store_id: Option<u64>,
}

impl Disk {
    /// Opens or creates the file. One that cannot be used is renamed, and a new one begins.
    pub(super) fn open(path: &Path) -> Result<(Self, Option<SetAside>), StateError> {
        let reason = match open_database(path)? {
            Ok(database) => {
                let disk = Self { database };
                match disk.check() {
                    Ok(()) => return Ok((disk, None)),
                    Err(Unreadable(reason)) => reason,
                }
            }
            Err(reason) => reason,
        };
        let aside = set_aside(path).map_err(|error| StateError::File {
            action: "set aside",
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        match open_database(path)? {
            Ok(database) => {
                let disk = Self { database };
                let fresh = disk.check();
                fresh.map_err(|Unreadable(reason)| StateError::Rows { action: "create", reason })?;
                Ok((disk, Some(SetAside { path: aside, reason })))
            }
            Err(reason) => Err(StateError::File { action: "create", path: path.to_owned(), reason }),
        }
    }

    /// Checks the format, reads every row once, and writes the format into a new file.
    fn check(&self) -> Result<(), Unreadable> {
        let transaction = self.database.begin_write()?;
        {
            let mut numbers = transaction.open_table(NUMBERS)?;
            let format = numbers.get(NUMBER_FORMAT)?.map(|value| value.value());
            match format {
                Some(FORMAT) => {}
                Some(newer) if newer > FORMAT => {
                    return Err(Unreadable(format!(
                        "it has format {newer}, and this meshd knows {FORMAT}: a newer one wrote it"
                    )));
                }
                Some(unknown) => return Err(Unreadable(format!("it has the unknown format {unknown}"))),
                None => drop(numbers.insert(NUMBER_FORMAT, FORMAT)?),
            }
            transaction.open_table(CLUSTERS)?;
            transaction.open_table(NODES)?;
            transaction.open_table(ENDPOINTS)?;
            transaction.open_table(IDENTITIES)?;
            transaction.open_table(OWNERS)?;
            transaction.open_table(LABELS)?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Every cluster that has nodes or prefixes here, so routes.
    pub(super) fn clusters(&self) -> Result<BTreeSet<ClusterName>, StateError> {
        let read = || -> Result<BTreeSet<ClusterName>, Unreadable> {
            let transaction = self.database.begin_read()?;
            let mut names = BTreeSet::new();
            for entry in transaction.open_table(NODES)?.iter()? {
                let (key, _) = entry?;
                insert(&mut names, key.value().0)?;
            }
            for entry in transaction.open_table(OWNERS)?.iter()? {
                let (_, owner) = entry?;
                insert(&mut names, owner.value())?;
            }
            Ok(names)
        };
        read().map_err(|Unreadable(reason)| StateError::Rows { action: "read", reason })
    }

    /// Loads what belongs to `configured` clusters and removes what belongs to others.
    pub(super) fn load(&self, configured: &BTreeSet<ClusterName>, now: Timestamp) -> Result<Loaded, StateError> {
        let rows = |action| move |Unreadable(reason)| StateError::Rows { action, reason };
        let loaded = self.read(configured, now).map_err(rows("read"))?;
        self.forget_others(configured).map_err(rows("remove"))?;
        Ok(loaded)
    }

    fn read(&self, configured: &BTreeSet<ClusterName>, now: Timestamp) -> Result<Loaded, Unreadable> {
        let transaction = self.database.begin_read()?;
        let mut loaded = Loaded::default();
        let mut rows: BTreeMap<ClusterName, Vec<ClusterChange>> = BTreeMap::new();
        let mut interner = Interner::default();
        for entry in transaction.open_table(NODES)?.iter()? {
            let (key, value) = entry?;
            let (cluster, node) = key.value();
            let Some(cluster) = configured.get(cluster) else { continue };
            let row: NodeRow = postcard::from_bytes(value.value())?;
            let node: NodeName = node.parse()?;
            rows.entry(cluster.clone()).or_default().push(ClusterChange::Node(node, Some(Arc::new(row))));
        }
        for entry in transaction.open_table(IDENTITIES)?.iter()? {
            let (key, value) = entry?;
            let (cluster, id) = key.value();
            let Some(cluster) = configured.get(cluster) else { continue };
            let row = IdentityRow { labels: Labels(value.value().into()) };
            rows.entry(cluster.clone()).or_default().push(ClusterChange::Identity(NumericIdentity(id), Some(row)));
        }
        for entry in transaction.open_table(ENDPOINTS)?.iter()? {
            let (key, value) = entry?;
            let (cluster, prefix) = key.value();
            let Some(cluster) = configured.get(cluster) else { continue };
            let mut row: EndpointRow = postcard::from_bytes(value.value())?;
            row.namespace = interner.intern(&row.namespace);
            rows.entry(cluster.clone()).or_default().push(ClusterChange::Endpoint(prefix_of(prefix)?, Some(row)));
        }
        for (cluster, mut changes) in rows {
            changes.push(ClusterChange::Stale(now));
            loaded.observed.apply(Change::Cluster(cluster, changes), now);
        }
        for entry in transaction.open_table(OWNERS)?.iter()? {
            let (prefix, owner) = entry?;
            if let Some(owner) = configured.get(owner.value()) {
                loaded.owners.insert(prefix_of(prefix.value())?, owner.clone());
            }
        }
        for entry in transaction.open_table(CLUSTERS)?.iter()? {
            let (name, id) = entry?;
            let id = ClusterId::new(id.value().into(), meshd_core::id::MaxClusters::C511)?;
            if let Some(name) = configured.get(name.value()) {
                loaded.known_ids.insert(name.clone(), id);
            }
        }
        for entry in transaction.open_table(LABELS)?.iter()? {
            let (labels, id) = entry?;
            loaded.identities.insert(Labels(labels.value().into()), NumericIdentity(id.value()));
        }
        loaded.store_id = transaction.open_table(NUMBERS)?.get(NUMBER_STORE_ID)?.map(|value| value.value());
        Ok(loaded)
    }

    fn forget_others(&self, configured: &BTreeSet<ClusterName>) -> Result<(), Unreadable> {
        let is_other = |name: &str| !configured.contains(name);
        let transaction = self.database.begin_write()?;
        transaction.open_table(CLUSTERS)?.retain(|name, _| !is_other(name))?;
        transaction.open_table(NODES)?.retain(|(name, _), _| !is_other(name))?;
        transaction.open_table(ENDPOINTS)?.retain(|(name, _), _| !is_other(name))?;
        transaction.open_table(IDENTITIES)?.retain(|(name, _), _| !is_other(name))?;
        transaction.open_table(OWNERS)?.retain(|_, name| !is_other(name))?;
        transaction.commit()?;
        Ok(())
    }

    /// Writes changes in one transaction; returns how many rows changed.
    pub(super) fn save(&self, changes: &Changes<'_>) -> Result<usize, StateError> {
        self.write(changes).map_err(|Unreadable(reason)| StateError::Rows { action: "write", reason })
    }

    fn write(&self, changes: &Changes<'_>) -> Result<usize, Unreadable> {
        let transaction = self.database.begin_write()?;
        let mut count = 0;
        let (before, after) = changes.clusters;
        let none = ClusterTables::default();
        let names: BTreeSet<&ClusterName> = before.keys().chain(after.keys()).collect();
        for name in names {
            let (old, new) = (before.get(name).unwrap_or(&none), after.get(name).unwrap_or(&none));
            count += write_cluster(&transaction, name, old, new)?;
        }
        {
            let mut owners = transaction.open_table(OWNERS)?;
            for (prefix, owner) in &changes.owners {
                let key = prefix_bytes(*prefix);
                match owner {
                    Some(owner) => drop(owners.insert(&*key, owner.as_str())?),
                    None => drop(owners.remove(&*key)?),
                }
                count += 1;
            }
            let mut clusters = transaction.open_table(CLUSTERS)?;
            for (name, id) in changes.ids {
                clusters.insert(name.as_str(), id.get())?;
            }
            for gone in before.keys().filter(|name| !after.contains_key(*name)) {
                clusters.remove(gone.as_str())?;
            }
            if let Some(labels) = changes.labels {
                let mut table = transaction.open_table(LABELS)?;
                table.retain(|text, id| labels.get(&Labels(text.into())).is_some_and(|known| known.0 == id))?;
                for (text, id) in labels {
                    table.insert(&*text.0, id.0)?;
                }
                count += labels.len();
            }
            if let Some(id) = changes.store_id {
                transaction.open_table(NUMBERS)?.insert(NUMBER_STORE_ID, id)?;
            }
        }
        transaction.commit()?;
        Ok(count)
    }
}

/// Adds a name; looks before it makes one, because there is one cluster and many rows.
fn insert(names: &mut BTreeSet<ClusterName>, name: &str) -> Result<(), Unreadable> {
    if !names.contains(name) {
        names.insert(name.parse()?);
    }
    Ok(())
}

fn write_cluster(
    transaction: &WriteTransaction,
    name: &ClusterName,
    old: &ClusterTables,
    new: &ClusterTables,
) -> Result<usize, Unreadable> {
    let name = name.as_str();
    let mut count = 0;
    let mut diffs = new.nodes.diff(&old.nodes).peekable();
    if diffs.peek().is_some() {
        let mut table = transaction.open_table(NODES)?;
        for diff in diffs {
            count += 1;
            match diff {
                RowDiff::Added(key, row) | RowDiff::Changed(key, _, row) => {
                    table.insert((name, key.as_str()), &*bytes(&**row)?)?;
                }
                RowDiff::Removed(key, _) => drop(table.remove((name, key.as_str()))?),
            }
        }
    }
    let mut diffs = new.identities.diff(&old.identities).peekable();
    if diffs.peek().is_some() {
        let mut table = transaction.open_table(IDENTITIES)?;
        for diff in diffs {
            count += 1;
            match diff {
                RowDiff::Added(key, row) | RowDiff::Changed(key, _, row) => {
                    table.insert((name, key.0), &*row.labels.0)?;
                }
                RowDiff::Removed(key, _) => drop(table.remove((name, key.0))?),
            }
        }
    }
    let mut diffs = new.endpoints.diff(&old.endpoints).peekable();
    if diffs.peek().is_some() {
        let mut table = transaction.open_table(ENDPOINTS)?;
        let mut buffer = Vec::new();
        for diff in diffs {
            count += 1;
            let key = prefix_bytes(*diff.key());
            match diff {
                RowDiff::Added(_, row) | RowDiff::Changed(_, _, row) => {
                    buffer.clear();
                    buffer = postcard::to_extend(row, buffer)?;
                    table.insert((name, &*key), &*buffer)?;
                }
                RowDiff::Removed(..) => drop(table.remove((name, &*key))?),
            }
        }
    }
    Ok(count)
}

fn bytes<T: Serialize>(row: &T) -> Result<Vec<u8>, Unreadable> {
    Ok(postcard::to_stdvec(row)?)
}

/// Address bytes and prefix length: sorts by family and address.
fn prefix_bytes(prefix: IpNet) -> Vec<u8> {
    let mut bytes = match prefix.addr() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    bytes.push(prefix.prefix_len());
    bytes
}

fn prefix_of(bytes: &[u8]) -> Result<IpNet, Unreadable> {
    let bad = || Unreadable("a prefix has an impossible form".to_owned());
    let (length, address) = bytes.split_last().ok_or_else(bad)?;
    let address = match (<[u8; 4]>::try_from(address), <[u8; 16]>::try_from(address)) {
        (Ok(octets), _) => IpAddr::V4(Ipv4Addr::from(octets)),
        (_, Ok(octets)) => IpAddr::V6(Ipv6Addr::from(octets)),
        (Err(_), Err(_)) => return Err(bad()),
    };
    IpNet::new(address, *length).map_err(|_| bad())
}

/// The inner error means that the content cannot be used.
fn open_database(path: &Path) -> Result<Result<Database, String>, StateError> {
    let refused = |reason: String| StateError::File { action: "open", path: path.to_owned(), reason };
    let file = private_file(path).map_err(|error| refused(error.to_string()))?;
    match Builder::new().set_cache_size(CACHE_BYTES).create_file(file) {
        Ok(database) => Ok(Ok(database)),
        Err(DatabaseError::DatabaseAlreadyOpen) => Err(StateError::InUse { path: path.to_owned() }),
        Err(error @ (DatabaseError::RepairAborted | DatabaseError::UpgradeRequired(_))) => Ok(Err(error.to_string())),
        Err(DatabaseError::Storage(StorageError::Corrupted(reason))) => Ok(Err(reason)),
        Err(DatabaseError::Storage(StorageError::Io(source)))
            if matches!(source.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) =>
        {
            Ok(Err(source.to_string()))
        }
        Err(other) => Err(refused(other.to_string())),
    }
}

/// Opens the file so that only its owner can read it, whatever it was created with.
fn private_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Renames a file that cannot be used to the first free name.
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
