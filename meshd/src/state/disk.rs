//! The file: tables of postcard values, one row per record.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions, Permissions},
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use imbl::OrdMap;
use ipnet::IpNet;
use jiff::Timestamp;
use meshd_core::{
    clustermesh::Interner,
    id::{ClusterId, ClusterName, NodeName, NumericIdentity},
    observed::{
        Change, ClusterChange, ClusterTables, EndpointRow, IdentityRow, Labels, NodeRow, ServiceName, ServiceRow,
    },
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
const SERVICES: TableDefinition<'_, (&str, &str, &str), &[u8]> = TableDefinition::new("services");
/// Zones of backends, by the key of their service. A table of its own, so that rows of services stay as earlier releases wrote them.
const ZONES: TableDefinition<'_, (&str, &str, &str), &[u8]> = TableDefinition::new("zones");
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

/// Why rows could not be read or written.
#[derive(Debug)]
enum Trouble {
    /// The content cannot be used: another file is needed.
    Content(String),
    /// The system refused, for instance because the disk is full: that says nothing about the content.
    System(String),
}

impl Trouble {
    fn from_database(error: redb::Error) -> Self {
        match &error {
            redb::Error::Io(source) if matches!(source.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {
                Self::Content(error.to_string())
            }
            redb::Error::Io(_) | redb::Error::PreviousIo => Self::System(error.to_string()),
            _ => Self::Content(error.to_string()),
        }
    }

    fn during(self, action: &'static str) -> StateError {
        let (Self::Content(reason) | Self::System(reason)) = self;
        StateError::Rows { action, reason }
    }
}

macro_rules! trouble_from {
    ($($source:ty),* => $make:expr) => {
        $(impl From<$source> for Trouble {
            fn from(error: $source) -> Self {
                $make(error)
            }
        })*
    };
}

trouble_from!(
    redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError
    => |error| Self::from_database(redb::Error::from(error))
);
trouble_from!(
    postcard::Error, meshd_core::id::IdError
    => |error: _| Self::Content(ToString::to_string(&error))
);

/// Every row of the file.
#[derive(Debug, Default)]
pub(super) struct Content {
    rows: BTreeMap<ClusterName, Vec<ClusterChange>>,
    owners: BTreeMap<IpNet, ClusterName>,
    known_ids: BTreeMap<ClusterName, ClusterId>,
    identities: BTreeMap<Labels, NumericIdentity>,
    store_id: Option<u64>,
    /// Clusters that have nodes or prefixes, so routes.
    pub(super) clusters: BTreeSet<ClusterName>,
}

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
    /// Opens or creates the file and reads every row of it. A file with anything in it that cannot be used is renamed,
    /// and a new one begins.
    pub(super) fn open(path: &Path) -> Result<(Self, Content, Option<SetAside>), StateError> {
        let reason = match Self::try_open(path)? {
            Ok((disk, content)) => return Ok((disk, content, None)),
            Err(reason) => reason,
        };
        let aside = set_aside(path).map_err(|error| StateError::File {
            action: "set aside",
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        match Self::try_open(path)? {
            Ok((disk, content)) => Ok((disk, content, Some(SetAside { path: aside, reason }))),
            Err(reason) => Err(StateError::File { action: "create", path: path.to_owned(), reason }),
        }
    }

    /// The inner error means that the content cannot be used. A damaged file may make the database library panic (a text
    /// that is not UTF-8 does); that too is such content.
    fn try_open(path: &Path) -> Result<Result<(Self, Content), String>, StateError> {
        let attempt = catch_unwind(AssertUnwindSafe(|| {
            let disk = match open_database(path)? {
                Ok(database) => Self { database },
                Err(reason) => return Ok(Err(reason)),
            };
            match disk.begin().and_then(|()| disk.read()) {
                Ok(content) => Ok(Ok((disk, content))),
                Err(Trouble::Content(reason)) => Ok(Err(reason)),
                Err(trouble @ Trouble::System(_)) => Err(trouble.during("read")),
            }
        }));
        attempt.unwrap_or_else(|_| Ok(Err("its rows are damaged".to_owned())))
    }

    /// Checks the format, or writes it with the tables into a new file.
    fn begin(&self) -> Result<(), Trouble> {
        let transaction = self.database.begin_write()?;
        {
            let mut numbers = transaction.open_table(NUMBERS)?;
            let format = numbers.get(NUMBER_FORMAT)?.map(|value| value.value());
            match format {
                Some(FORMAT) => {}
                Some(newer) if newer > FORMAT => {
                    return Err(Trouble::Content(format!(
                        "it has format {newer}, and this meshd knows {FORMAT}: a newer one wrote it"
                    )));
                }
                Some(unknown) => return Err(Trouble::Content(format!("it has the unknown format {unknown}"))),
                None => drop(numbers.insert(NUMBER_FORMAT, FORMAT)?),
            }
            transaction.open_table(CLUSTERS)?;
            transaction.open_table(NODES)?;
            transaction.open_table(ENDPOINTS)?;
            transaction.open_table(IDENTITIES)?;
            transaction.open_table(SERVICES)?;
            transaction.open_table(ZONES)?;
            transaction.open_table(OWNERS)?;
            transaction.open_table(LABELS)?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Reads every row, also those of clusters that may not be configured: which are is asked with what the file knows.
    fn read(&self) -> Result<Content, Trouble> {
        let transaction = self.database.begin_read()?;
        let mut content = Content::default();
        let mut names = Names::default();
        let mut interner = Interner::default();
        for entry in transaction.open_table(NODES)?.iter()? {
            let (key, value) = entry?;
            let (cluster, node) = key.value();
            let row: NodeRow = postcard::from_bytes(value.value())?;
            let node: NodeName = node.parse()?;
            let cluster = names.get(cluster)?;
            content.clusters.insert(cluster.clone());
            content.rows.entry(cluster).or_default().push(ClusterChange::Node(node, Some(Arc::new(row))));
        }
        for entry in transaction.open_table(IDENTITIES)?.iter()? {
            let (key, value) = entry?;
            let (cluster, id) = key.value();
            let row = IdentityRow { labels: Labels(value.value().into()) };
            let change = ClusterChange::Identity(NumericIdentity(id), Some(row));
            content.rows.entry(names.get(cluster)?).or_default().push(change);
        }
        for entry in transaction.open_table(ENDPOINTS)?.iter()? {
            let (key, value) = entry?;
            let (cluster, prefix) = key.value();
            let mut row: EndpointRow = postcard::from_bytes(value.value())?;
            row.namespace = interner.intern(&row.namespace);
            let change = ClusterChange::Endpoint(prefix_of(prefix)?, Some(row));
            content.rows.entry(names.get(cluster)?).or_default().push(change);
        }
        let zones = transaction.open_table(ZONES)?;
        for entry in transaction.open_table(SERVICES)?.iter()? {
            let (key, value) = entry?;
            let (cluster, namespace, name) = key.value();
            let mut row: ServiceRow = postcard::from_bytes(value.value())?;
            if let Some(told) = zones.get(key.value())? {
                row.zones = postcard::from_bytes(told.value())?;
            }
            let name = ServiceName { namespace: interner.intern(namespace), name: name.into() };
            let change = ClusterChange::Service(name, Some(Arc::new(row)));
            content.rows.entry(names.get(cluster)?).or_default().push(change);
        }
        for entry in transaction.open_table(OWNERS)?.iter()? {
            let (prefix, owner) = entry?;
            let owner = names.get(owner.value())?;
            content.clusters.insert(owner.clone());
            content.owners.insert(prefix_of(prefix.value())?, owner);
        }
        for entry in transaction.open_table(CLUSTERS)?.iter()? {
            let (name, id) = entry?;
            let id = ClusterId::new(id.value().into(), meshd_core::id::MaxClusters::C511)?;
            content.known_ids.insert(names.get(name.value())?, id);
        }
        for entry in transaction.open_table(LABELS)?.iter()? {
            let (labels, id) = entry?;
            content.identities.insert(Labels(labels.value().into()), NumericIdentity(id.value()));
        }
        content.store_id = transaction.open_table(NUMBERS)?.get(NUMBER_STORE_ID)?.map(|value| value.value());
        Ok(content)
    }

    /// Keeps what belongs to `configured` clusters. The file is left as it is.
    pub(super) fn keep(content: Content, configured: &BTreeSet<ClusterName>, now: Timestamp) -> Loaded {
        let (owners, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
            content.owners.into_iter().partition(|(_, owner)| configured.contains(owner));
        let mut loaded = Loaded {
            owners,
            left_over: others.into_keys().collect(),
            known_ids: content.known_ids,
            identities: content.identities,
            store_id: content.store_id,
            ..Loaded::default()
        };
        loaded.known_ids.retain(|name, _| configured.contains(name));
        for (cluster, mut changes) in content.rows {
            if configured.contains(&cluster) {
                changes.push(ClusterChange::Stale(now));
                loaded.observed.apply(Change::Cluster(cluster, changes), now);
            }
        }
        loaded
    }

    /// Removes from the file what does not belong to `configured` clusters.
    pub(super) fn forget_others(&self, configured: &BTreeSet<ClusterName>) -> Result<(), StateError> {
        self.remove_others(configured).map_err(|trouble| trouble.during("remove"))
    }

    fn remove_others(&self, configured: &BTreeSet<ClusterName>) -> Result<(), Trouble> {
        let is_other = |name: &str| !configured.contains(name);
        let transaction = self.database.begin_write()?;
        transaction.open_table(CLUSTERS)?.retain(|name, _| !is_other(name))?;
        transaction.open_table(NODES)?.retain(|(name, _), _| !is_other(name))?;
        transaction.open_table(ENDPOINTS)?.retain(|(name, _), _| !is_other(name))?;
        transaction.open_table(IDENTITIES)?.retain(|(name, _), _| !is_other(name))?;
        transaction.open_table(SERVICES)?.retain(|(name, ..), _| !is_other(name))?;
        transaction.open_table(ZONES)?.retain(|(name, ..), _| !is_other(name))?;
        transaction.open_table(OWNERS)?.retain(|_, name| !is_other(name))?;
        transaction.commit()?;
        Ok(())
    }

    /// Writes changes in one transaction; returns how many rows changed.
    pub(super) fn save(&self, changes: &Changes<'_>) -> Result<usize, StateError> {
        self.write(changes).map_err(|trouble| trouble.during("write"))
    }

    fn write(&self, changes: &Changes<'_>) -> Result<usize, Trouble> {
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

/// Names of clusters, made once: there is one cluster and many rows.
#[derive(Default)]
struct Names(BTreeSet<ClusterName>);

impl Names {
    fn get(&mut self, text: &str) -> Result<ClusterName, Trouble> {
        if let Some(known) = self.0.get(text) {
            return Ok(known.clone());
        }
        let name: ClusterName = text.parse()?;
        self.0.insert(name.clone());
        Ok(name)
    }
}

fn write_cluster(
    transaction: &WriteTransaction,
    name: &ClusterName,
    old: &ClusterTables,
    new: &ClusterTables,
) -> Result<usize, Trouble> {
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
    let mut diffs = new.services.diff(&old.services).peekable();
    if diffs.peek().is_some() {
        let (mut table, mut zones) = (transaction.open_table(SERVICES)?, transaction.open_table(ZONES)?);
        for diff in diffs {
            count += 1;
            let ServiceName { namespace, name: service } = diff.key();
            let key = (name, &**namespace, &**service);
            let row = match diff {
                RowDiff::Added(_, row) | RowDiff::Changed(_, _, row) => Some(row),
                RowDiff::Removed(..) => None,
            };
            match row {
                Some(row) => drop(table.insert(key, &*bytes(&**row)?)?),
                None => drop(table.remove(key)?),
            }
            match row.filter(|row| !row.zones.is_empty()) {
                Some(row) => drop(zones.insert(key, &*bytes(&row.zones)?)?),
                None => drop(zones.remove(key)?),
            }
        }
    }
    Ok(count)
}

fn bytes<T: Serialize>(row: &T) -> Result<Vec<u8>, Trouble> {
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

fn prefix_of(bytes: &[u8]) -> Result<IpNet, Trouble> {
    let bad = || Trouble::Content("a prefix has an impossible form".to_owned());
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
