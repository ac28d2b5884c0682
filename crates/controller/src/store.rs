//! What outlives the process: epochs, intents about servers, fixed sizes, server processes.
//!
//! One redb file. Invariants: a write is on disk (fsync) when the call returns; an epoch is given out once; a
//! record that cannot be read stops the start with its key, nothing is guessed.
//! Calls block for an fsync; callers on a runtime use `spawn_blocking`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use evenkeel_fleet::controller::{By, FleetRecord, Intent, ServerRecord};
use evenkeel_model::{Connections, Epoch, FleetId, Generation, Instant, ServerId};
use redb::{
    Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
    WriteTransaction,
};
use serde::{Deserialize, Serialize};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const FLEETS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("fleets");
const SERVERS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("servers");
const PROCESSES: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("processes");

/// Layout of the tables. A higher one in the file means a newer program wrote it.
const FORMAT: u64 = 1;

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("could not open {}: another evenkeel uses it; stop that one or set another store.dir", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is not a store or is damaged.
    #[error("could not open {}: it is damaged or not a store; move it away to start afresh (drains and cordons under way are then forgotten)", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: redb::Error,
    },
    /// A newer program wrote it.
    #[error("could not open {}: a newer evenkeel wrote it (format {found}, this one knows {FORMAT})", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// The system refused it.
    #[error("could not open {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl OpenError {
    /// Short code for logs and scripts.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::InUse { .. } => "store_in_use",
            Self::Damaged { .. } => "store_damaged",
            Self::Newer { .. } => "store_newer",
            Self::Io { .. } => "store_io",
        }
    }
}

/// Why a read or write failed. Nothing of a failed write is kept, except where only the very last fsync failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file could not be read or written.
    #[error("could not {verb} {what} in the store")]
    Database {
        /// `read` or `write`.
        verb: &'static str,
        /// Which record.
        what: String,
        /// What is wrong.
        #[source]
        source: Box<redb::Error>,
    },
    /// A record does not read as what it should be.
    #[error("could not read {what} in the store: {why}")]
    Record {
        /// Which record.
        what: String,
        /// What is wrong with it.
        why: String,
    },
}

impl StoreError {
    /// Short code for logs, metrics and the API.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Database { .. } => "store_failed",
            Self::Record { .. } => "store_record",
        }
    }
}

/// One durable change of a fleet.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// What is wished of a server.
    Server(ServerRecord),
    /// A server that is gone.
    Forget(ServerId),
    /// The number of servers an operator fixed.
    Fixed(Option<u32>),
}

/// What the process provider must know after a restart to find a server again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Which server.
    pub server: String,
    /// Marks this one start in the process's environment, so that it is found even if we died before writing
    /// down its pid.
    pub nonce: String,
    /// The port it was told to listen on; kept over restarts.
    pub port: u16,
    /// Its process, once known.
    pub pid: Option<u32>,
    /// Field 22 of `/proc/PID/stat`: tells it from another process of the same pid.
    pub started: Option<u64>,
    /// Which boot of the machine `started` counts from.
    pub boot: Option<String>,
    /// Whether it is to run. A stopped one is ended and then forgotten.
    pub wanted: bool,
}

/// The open store. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    /// `None` after a failure: redb takes nothing more after an I/O error until the file is opened again.
    database: Mutex<Option<Database>>,
    open: Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

impl Store {
    /// Opens or makes the file.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let fresh = !path.exists();
        let file = path.to_owned();
        let store =
            Self::opened_by(move || Database::create(&file)).map_err(|error| open_error(path, error))?;
        store.check_format(path)?;
        if fresh && let Some(directory) = path.parent() {
            let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
            std::fs::File::open(directory)
                .and_then(|directory| directory.sync_all())
                .map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
        }
        Ok(store)
    }

    fn opened_by(
        open: impl Fn() -> Result<Database, DatabaseError> + Send + Sync + 'static,
    ) -> Result<Self, DatabaseError> {
        let database = Mutex::new(Some(open()?));
        Ok(Self(Arc::new(Inner { database, open: Box::new(open) })))
    }

    /// Works on the database. After a failure it is opened again at the next call.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, redb::Error> {
        let mut database = self.0.database.lock().unwrap_or_else(PoisonError::into_inner);
        let open = match database.take() {
            Some(open) => open,
            None => (self.0.open)()?,
        };
        let done = work(&open)?;
        *database = Some(open);
        Ok(done)
    }

    fn check_format(&self, path: &Path) -> Result<(), OpenError> {
        let damaged = |source| OpenError::Damaged { path: path.to_owned(), source };
        let found = self.format().map_err(damaged)?;
        if found > FORMAT {
            return Err(OpenError::Newer { path: path.to_owned(), found });
        }
        Ok(())
    }

    fn format(&self) -> Result<u64, redb::Error> {
        self.with(|database| {
            let write = database.begin_write()?;
            let found = {
                let mut meta = write.open_table(META)?;
                let found = meta.get("format")?.map(|value| value.value());
                if found.is_none() {
                    meta.insert("format", FORMAT)?;
                }
                write.open_table(FLEETS)?;
                write.open_table(SERVERS)?;
                write.open_table(PROCESSES)?;
                found
            };
            write.commit()?;
            Ok(found.unwrap_or(FORMAT))
        })
    }

    /// Begins a term: an epoch above every earlier one of this fleet and above `seen`, and what is stored.
    ///
    /// # Errors
    /// [`StoreError`]; the epoch is then not used.
    pub fn begin_epoch(&self, fleet: &FleetId, seen: Epoch) -> Result<(Epoch, FleetRecord), StoreError> {
        let mut head = self.head(fleet)?;
        let epoch = Epoch(head.epoch).max(seen).next();
        head.epoch = epoch.get();
        self.write(|write| {
            write.open_table(FLEETS)?.insert(fleet.as_str(), json(&head).as_slice())?;
            Ok(())
        })
        .map_err(|source| database("write", format!("epoch of fleet {fleet}"), source))?;
        Ok((epoch, FleetRecord { servers: self.servers(fleet)?, fixed: head.fixed }))
    }

    /// Writes changes of a fleet, all or none.
    ///
    /// # Errors
    /// [`StoreError`]: none of them is kept.
    pub fn commit(&self, fleet: &FleetId, changes: &[Change]) -> Result<(), StoreError> {
        let mut head = self.head(fleet)?;
        self.write(|write| {
            let mut servers = write.open_table(SERVERS)?;
            for change in changes {
                match change {
                    Change::Server(record) => {
                        let value = json(&StoredServer::from(record));
                        servers.insert((fleet.as_str(), record.server.as_str()), value.as_slice())?;
                    }
                    Change::Forget(server) => {
                        servers.remove((fleet.as_str(), server.as_str()))?;
                    }
                    Change::Fixed(fixed) => {
                        head.fixed = *fixed;
                        write.open_table(FLEETS)?.insert(fleet.as_str(), json(&head).as_slice())?;
                    }
                }
            }
            Ok(())
        })
        .map_err(|source| database("write", format!("intents of fleet {fleet}"), source))
    }

    /// Server processes of a fleet, by server id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn processes(&self, fleet: &FleetId) -> Result<Vec<Process>, StoreError> {
        let rows = self
            .rows(PROCESSES, fleet)
            .map_err(|source| database("read", format!("server processes of fleet {fleet}"), source))?;
        rows.into_iter()
            .map(|(server, bytes)| {
                serde_json::from_slice(&bytes)
                    .map_err(|error| record(format!("process of {fleet}/{server}"), &error))
            })
            .collect()
    }

    /// Writes one server process.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn put_process(&self, fleet: &FleetId, process: &Process) -> Result<(), StoreError> {
        let key = (fleet.as_str(), process.server.as_str());
        self.write(|write| {
            write.open_table(PROCESSES)?.insert(key, json(process).as_slice())?;
            Ok(())
        })
        .map_err(|source| database("write", format!("process of {fleet}/{}", process.server), source))
    }

    /// Forgets a server process.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_process(&self, fleet: &FleetId, server: &ServerId) -> Result<(), StoreError> {
        self.write(|write| {
            write.open_table(PROCESSES)?.remove((fleet.as_str(), server.as_str()))?;
            Ok(())
        })
        .map_err(|source| database("write", format!("process of {fleet}/{server}"), source))
    }

    /// Tests only: a record as a disk may have left it.
    #[cfg(test)]
    pub(crate) fn put_raw_process(&self, fleet: &FleetId, server: &ServerId, bytes: &[u8]) {
        let key = (fleet.as_str(), server.as_str());
        self.write(|write| {
            write.open_table(PROCESSES)?.insert(key, bytes)?;
            Ok(())
        })
        .unwrap();
    }

    /// One transaction, on disk when this returns.
    fn write(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), redb::Error> {
        self.with(|database| {
            let mut write = database.begin_write()?;
            write.set_durability(Durability::Immediate)?;
            // A second fsync: when the first fails, which is what a full disk does, the old state stands and an
            // order that was answered with an error does not come up after a restart.
            write.set_two_phase_commit(true);
            work(&write)?;
            Ok(write.commit()?)
        })
    }

    fn head(&self, fleet: &FleetId) -> Result<StoredFleet, StoreError> {
        let read = self.with(|database| {
            let read = database.begin_read()?;
            Ok(read.open_table(FLEETS)?.get(fleet.as_str())?.map(|value| value.value().to_vec()))
        });
        let what = || format!("fleet {fleet}");
        match read.map_err(|source| database("read", what(), source))? {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|error| record(what(), &error)),
            None => Ok(StoredFleet::default()),
        }
    }

    fn servers(&self, fleet: &FleetId) -> Result<Vec<ServerRecord>, StoreError> {
        let rows = self
            .rows(SERVERS, fleet)
            .map_err(|source| database("read", format!("intents of fleet {fleet}"), source))?;
        rows.into_iter()
            .map(|(server, bytes)| {
                let what = || format!("intent of {fleet}/{server}");
                let stored: StoredServer =
                    serde_json::from_slice(&bytes).map_err(|error| record(what(), &error))?;
                let server = ServerId::new(&server).map_err(|error| record(what(), &error))?;
                Ok(stored.into_record(server))
            })
            .collect()
    }

    fn rows(
        &self,
        table: TableDefinition<'_, (&'static str, &'static str), &'static [u8]>,
        fleet: &FleetId,
    ) -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
        self.with(|database| {
            let read = database.begin_read()?;
            let table = read.open_table(table)?;
            let mut rows = Vec::new();
            for row in table.range((fleet.as_str(), "")..)? {
                let (key, value) = row?;
                let (owner, server) = key.value();
                if owner != fleet.as_str() {
                    break;
                }
                rows.push((server.to_owned(), value.value().to_vec()));
            }
            Ok(rows)
        })
    }
}

fn open_error(path: &Path, error: DatabaseError) -> OpenError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path },
        // redb says `InvalidData` of a file that is not a database.
        DatabaseError::Storage(StorageError::Io(source))
            if source.kind() != std::io::ErrorKind::InvalidData =>
        {
            OpenError::Io { path, source }
        }
        error => OpenError::Damaged { path, source: error.into() },
    }
}

fn database(verb: &'static str, what: String, source: redb::Error) -> StoreError {
    StoreError::Database { verb, what, source: Box::new(source) }
}

fn record(what: String, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Record { what, why: error.to_string() }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // Plain structs of numbers and strings: serialising them does not fail.
    serde_json::to_vec(value).unwrap_or_default()
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct StoredFleet {
    epoch: u64,
    fixed: Option<u32>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredServer {
    generation: u64,
    intent: Option<StoredIntent>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum StoredIntent {
    Drain { by: StoredBy, ordered_at_ns: u64, drained: bool },
    Cordon,
    Shed { to: u32, until_ns: u64 },
    Stop { ordered_at_ns: u64 },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredBy {
    Operator,
    Scale,
}

impl From<&ServerRecord> for StoredServer {
    fn from(record: &ServerRecord) -> Self {
        let intent = record.intent.map(|intent| match intent {
            Intent::Drain { by, ordered_at, drained } => StoredIntent::Drain {
                by: match by {
                    By::Operator => StoredBy::Operator,
                    By::Scale => StoredBy::Scale,
                },
                ordered_at_ns: ordered_at.0,
                drained,
            },
            Intent::Cordon => StoredIntent::Cordon,
            Intent::Shed { to, until } => StoredIntent::Shed { to: to.get(), until_ns: until.0 },
            Intent::Stop { ordered_at } => StoredIntent::Stop { ordered_at_ns: ordered_at.0 },
        });
        Self { generation: record.generation.get(), intent }
    }
}

impl StoredServer {
    fn into_record(self, server: ServerId) -> ServerRecord {
        let intent = self.intent.map(|intent| match intent {
            StoredIntent::Drain { by, ordered_at_ns, drained } => Intent::Drain {
                by: match by {
                    StoredBy::Operator => By::Operator,
                    StoredBy::Scale => By::Scale,
                },
                ordered_at: Instant(ordered_at_ns),
                drained,
            },
            StoredIntent::Cordon => Intent::Cordon,
            StoredIntent::Shed { to, until_ns } => {
                Intent::Shed { to: Connections(to), until: Instant(until_ns) }
            }
            StoredIntent::Stop { ordered_at_ns } => Intent::Stop { ordered_at: Instant(ordered_at_ns) },
        });
        ServerRecord { server, generation: Generation(self.generation), intent }
    }
}

#[cfg(test)]
mod tests;
