//! `state.db`: what [`super::state`] holds, kept over restarts.
//!
//! Nothing here may ever keep the daemon from starting or from serving: what
//! cannot be read is renamed away and begun anew, and without any database
//! the state lives in memory alone.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
};

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, backends::FileBackend};
use rustix::fs::{Mode, OFlags};
use sctl_sys::openat::{check_file, open_beneath};

use super::{
    dirs::unlink,
    state::{Changes, Rows},
};

/// Raise it whenever the tables change; another version's file is begun anew.
const SCHEMA: u64 = 1;

/// Pages that redb may keep in memory. The tables have a few KiB.
const PAGE_CACHE_BYTES: usize = 1 << 20;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const LAST_USED: TableDefinition<'_, &str, i64> = TableDefinition::new("last_used");
const LEASES: TableDefinition<'_, &str, &str> = TableDefinition::new("leases");

/// The database, if there is one.
#[derive(Debug)]
pub(super) struct StateFile {
    database: Option<Database>,
    dir: OwnedFd,
    name: String,
}

#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("it is of version {0}")]
    Version(u64),
    #[error("it is damaged")]
    Panicked,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Redb(#[from] redb::Error),
}

impl StateFile {
    /// Opens or creates the database; a damaged one is renamed away.
    ///
    /// `thorough` has every page checked against its checksum, which costs a
    /// commit (some 15 ms). Without it, damage that a crash cannot do (redb
    /// recovers from that anyway) is noticed only when it is in the way.
    pub(super) fn open(dir: OwnedFd, name: String, thorough: bool) -> (Self, Rows) {
        let mut opened = Self { database: None, dir, name };
        for attempt in 0..2 {
            match open(opened.dir.as_fd(), &opened.name, thorough) {
                Ok((database, rows)) => {
                    opened.database = Some(database);
                    return (opened, rows);
                }
                Err(OpenError::Redb(redb::Error::DatabaseAlreadyOpen)) => {
                    tracing::warn!("another process has the cache's database open; this one goes without");
                    break;
                }
                Err(error) if attempt == 0 => {
                    tracing::warn!(%error, "the cache's database cannot be used and is rebuilt from the files");
                    opened.set_aside();
                }
                Err(error) => tracing::warn!(%error, "the cache goes without a database"),
            }
        }
        (opened, Rows::default())
    }

    /// Writes changes; a database that fails is given up until the next start.
    pub(super) fn write(&mut self, changes: &Changes) {
        let Some(database) = &self.database else { return };
        // redb may panic on pages that were damaged behind its back.
        let written = catch_unwind(AssertUnwindSafe(|| write(database, changes)));
        let error = match written {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it is damaged".to_owned(),
        };
        tracing::warn!(error, "the cache's database failed; it is rebuilt at the next start");
        // Closing a damaged one may panic as well.
        let database = self.database.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(database)));
        self.set_aside();
    }

    /// Keeps one damaged database for whoever wants to know why.
    fn set_aside(&self) {
        let aside = format!("{}.damaged", self.name);
        if rustix::fs::renameat(&self.dir, &self.name, &self.dir, aside.as_str()).is_err()
            && let Err(error) = unlink(self.dir.as_fd(), &self.name)
        {
            tracing::warn!(%error, "cannot remove the damaged database");
        }
    }
}

fn open(dir: BorrowedFd<'_>, name: &str, thorough: bool) -> Result<(Database, Rows), OpenError> {
    let file = open_beneath(dir, name, OFlags::RDWR | OFlags::CREATE, Mode::RUSR | Mode::WUSR)?;
    check_file(&file).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    catch_unwind(AssertUnwindSafe(|| read(File::from(file), thorough))).unwrap_or(Err(OpenError::Panicked))
}

fn read(file: File, thorough: bool) -> Result<(Database, Rows), OpenError> {
    let redb = |error: redb::Error| OpenError::Redb(error);
    let backend = FileBackend::new(file).map_err(|error| redb(error.into()))?;
    let database = Database::builder()
        .set_cache_size(PAGE_CACHE_BYTES)
        .set_check_integrity_on_open(thorough)
        .create_with_backend(backend)
        .map_err(|error| redb(error.into()))?;
    let rows = (|| -> Result<Result<Rows, u64>, redb::Error> {
        let transaction = database.begin_write()?;
        let version = transaction.open_table(META)?.get("schema")?.map(|value| value.value());
        match version {
            Some(SCHEMA) => transaction.abort()?,
            Some(other) => return Ok(Err(other)),
            None => {
                transaction.open_table(META)?.insert("schema", SCHEMA)?;
                transaction.open_table(LAST_USED)?;
                transaction.open_table(LEASES)?;
                transaction.commit()?;
            }
        }
        read_rows(&database).map(Ok)
    })();
    match rows.map_err(redb)? {
        Ok(rows) => Ok((database, rows)),
        Err(version) => Err(OpenError::Version(version)),
    }
}

fn read_rows(database: &Database) -> Result<Rows, redb::Error> {
    let transaction = database.begin_read()?;
    let mut rows = Rows::default();
    for row in transaction.open_table(LAST_USED)?.iter()? {
        let (name, used) = row?;
        rows.last_used.insert(name.value().to_owned(), used.value());
    }
    for row in transaction.open_table(LEASES)?.iter()? {
        let (name, lease) = row?;
        // A lease that cannot be read has to be earned again, as any lost one.
        if let (Ok(name), Ok(lease)) = (serde_json::from_str(name.value()), serde_json::from_str(lease.value())) {
            rows.leases.push((name, lease));
        }
    }
    let meta = transaction.open_table(META)?;
    rows.fetched_bytes = meta.get("fetched_bytes")?.map_or(0, |value| value.value());
    rows.reused_bytes = meta.get("reused_bytes")?.map_or(0, |value| value.value());
    Ok(rows)
}

fn write(database: &Database, changes: &Changes) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    // Immediate although no row is precious: pages of a transaction without
    // durability are not freed before the next durable one, and only the
    // worker waits here.
    transaction.set_durability(Durability::Immediate)?;
    {
        let mut last_used = transaction.open_table(LAST_USED)?;
        for (id, used) in &changes.last_used {
            match used {
                Some(used) => last_used.insert(id.to_string().as_str(), used)?,
                None => last_used.remove(id.to_string().as_str())?,
            };
        }
    }
    if let Some(leases) = &changes.leases {
        transaction.delete_table(LEASES)?;
        let mut table = transaction.open_table(LEASES)?;
        for (name, lease) in leases {
            // Both are plain data, which JSON always can express.
            if let (Ok(name), Ok(lease)) = (serde_json::to_string(name), serde_json::to_string(lease)) {
                table.insert(name.as_str(), lease.as_str())?;
            }
        }
    }
    if let Some((fetched_bytes, reused_bytes)) = changes.counters {
        let mut meta = transaction.open_table(META)?;
        meta.insert("fetched_bytes", fetched_bytes)?;
        meta.insert("reused_bytes", reused_bytes)?;
    }
    transaction.commit()?;
    Ok(())
}
