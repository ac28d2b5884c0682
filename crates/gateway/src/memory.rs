//! The file that a gateway begins with while the controller has not published yet: what it obeyed last, and counts.
//!
//! In: what the fleets' machines leave to the next life (`evenkeel_fleet::gateway::Gateway::to_recall`). Out: a
//! [`Table`] of recalled snapshots. Invariants: the file is whole or the one before; it is written at most once a
//! second and only when something but its age changed; nothing in it is believed that is not checked; a file that
//! cannot be read costs the memory and nothing else. Elsewhere: what is believed of it (`evenkeel_fleet`).

mod stored;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use evenkeel_fleet::snapshot::{Snapshot, Table};
use evenkeel_model::{Duration, FleetId, Instant};
use evenkeel_runtime::Phase;
use evenkeel_runtime::file::{Access, WriteError, write_atomic};
use tracing::warn;

use crate::shell::Shell;

/// Between two writes. Shorter wears the disk out, longer makes what a restart begins with older.
const WRITE_EACH: Duration = Duration::from_secs(1);
/// A file in which only the age changed is written anew after this, so that the age of what still holds stays far
/// below what is believed (30 s).
const AGE_EACH: Duration = Duration::from_secs(10);
/// Most bytes read: some three times what 20,000 servers with long ids and URLs take.
const BYTES_MAX: u64 = 64 << 20;

/// Why a file of another life is not used. None is an error of ours: a gateway begins without.
#[derive(Debug, thiserror::Error)]
pub enum RecallError {
    /// It cannot be read.
    #[error("could not read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another version of the program wrote it.
    #[error("could not use {}: it has format {found}, this evenkeel knows {}", path.display(), stored::FORMAT)]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// It holds something else than it should.
    #[error("could not use {}: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl RecallError {
    /// Short code for logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "snapshot_unreadable",
            Self::Foreign { .. } => "snapshot_foreign",
            Self::Damaged { .. } => "snapshot_damaged",
        }
    }
}

/// Reads what an earlier gateway left; empty where there is no file. How to place and when silence counts are not in
/// it: they stand at their defaults until the caller sets what the configuration says now.
///
/// # Errors
/// [`RecallError`]; to be logged and gone on without.
pub fn recall(path: &Path) -> Result<Table, RecallError> {
    let unreadable = |source| RecallError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Table::default()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut bytes = Vec::new();
    // One more than allowed shows that there is more.
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(RecallError::Damaged {
            path: path.to_owned(),
            why: format!("it is larger than {BYTES_MAX} bytes"),
        });
    }
    let fleets = stored::decode(&bytes).map_err(|error| match error {
        stored::DecodeError::Foreign(found) => RecallError::Foreign { path: path.to_owned(), found },
        stored::DecodeError::Damaged(why) => RecallError::Damaged { path: path.to_owned(), why },
    })?;
    Ok(Table { version: 0, fleets: fleets.into_iter().map(|(id, it)| (id, Arc::new(it))).collect() })
}

/// Keeps the file up to date until the gateway leaves.
pub(crate) async fn remember(shell: Rc<Shell>, path: PathBuf) {
    let mut writer = Writer { path, written: None, failed: false };
    loop {
        tokio::select! { biased;
            () = shell.shutdown.reached(Phase::Stop) => return,
            () = shell.clock.sleep(WRITE_EACH) => {}
        }
        let left: BTreeMap<_, _> =
            shell.fleets.iter().filter_map(|fleet| Some((fleet.id.clone(), fleet.to_recall()?))).collect();
        let now = shell.clock.now();
        // An fsync takes as long as the disk likes: not on the gateway's thread.
        let turn = tokio::task::spawn_blocking(move || {
            writer.write(&left, now);
            writer
        });
        match turn.await {
            Ok(done) => writer = done,
            Err(error) => return warn!(%error, "gateway stopped writing its snapshot"),
        }
    }
}

/// Writes where something changed.
struct Writer {
    path: PathBuf,
    /// What is in the file but for ages, and when it was written.
    written: Option<(Vec<u8>, Instant)>,
    failed: bool,
}

impl Writer {
    fn write(&mut self, left: &BTreeMap<FleetId, Snapshot>, now: Instant) {
        let ageless = stored::encode(left, stored::Ages::Left);
        let same = |(before, at): &(Vec<u8>, Instant)| *before == ageless && now.since(*at) < AGE_EACH;
        if left.is_empty() || self.written.as_ref().is_some_and(same) {
            return;
        }
        let outcome = write_atomic(&self.path, &stored::encode(left, stored::Ages::Kept), Access::Private);
        self.note(outcome);
        self.written = Some((ageless, now));
    }

    /// Says once that it does not work, and once that it works again.
    fn note(&mut self, outcome: Result<(), WriteError>) {
        match outcome {
            Ok(()) => {
                if std::mem::take(&mut self.failed) {
                    tracing::info!(path = %self.path.display(), "gateway writes its snapshot again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    let source = error.source.to_string();
                    warn!(%error, source, reason = error.reason(), "gateway cannot write its snapshot; a restart would begin without");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
