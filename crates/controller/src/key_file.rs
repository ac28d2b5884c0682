//! The file with a fleet's master key: generated once, private, looked at each second.
//!
//! In: a path. Out: the [`MasterKey`] in it, at the start and after each change. Invariants: a file that others may
//! read, or that holds anything but a key, is refused, at the start for good and later with the old key going on; the
//! key appears in no log and no error. Elsewhere: what comes of it (`evenkeel_protocol::keys`).

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use evenkeel_model::{Duration, FleetId};
use evenkeel_protocol::keys::MasterKey;
use evenkeel_runtime::file::{Access, WriteError, make_folder, write_atomic};
use evenkeel_runtime::{Clock, Phase, Shutdown};
use tokio::sync::watch;
use tracing::{error, info};

use crate::fleet::chain;

/// Between two looks. Whoever replaces the file because a key leaked waits no longer; a look costs one small read.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Read of a file at most: a key and its line end are 44 bytes.
const READ_MAX: u64 = 64;

/// Why there is no master key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file cannot be read.
    #[error("could not read the key file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others than its owner may read or change it.
    #[error("could not take the key file {}: its mode is {mode:04o}, allowed is 0600 or 0400; chmod 600 it, and replace the key if others can have read it", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It holds no key.
    #[error("could not take the key file {}: it must be one line of 43 characters, base64url of 32 bytes; remove the file to have one generated", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// No key could be generated.
    #[error("could not draw random bytes for a master key")]
    Random {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It could not be written.
    #[error("could not keep a master key (fleets.*.key_file)")]
    Write {
        /// What went wrong.
        #[source]
        source: WriteError,
    },
}

impl KeyFileError {
    /// Short code for logs and scripts.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "key_file_unreadable",
            Self::Open { .. } => "key_file_open",
            Self::Malformed { .. } => "key_file_malformed",
            Self::Random { .. } => "key_file_random",
            Self::Write { .. } => "key_file_unwritable",
        }
    }

    fn is_absent(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Reads the key in `path`, or generates one into it (0600), in a folder that is made (0700) if it is missing.
///
/// # Errors
/// [`KeyFileError`].
pub fn load_or_create(path: &Path) -> Result<MasterKey, KeyFileError> {
    match read(path) {
        Err(error) if error.is_absent() => create(path),
        outcome => outcome,
    }
}

fn read(path: &Path) -> Result<MasterKey, KeyFileError> {
    let failed = |source| KeyFileError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Open { path: path.to_owned(), mode });
    }
    let mut text = Vec::new();
    Read::by_ref(&mut file).take(READ_MAX).read_to_end(&mut text).map_err(failed)?;
    let key = std::str::from_utf8(&text).ok().and_then(|text| MasterKey::parse(text).ok());
    key.ok_or_else(|| KeyFileError::Malformed { path: path.to_owned() })
}

fn create(path: &Path) -> Result<MasterKey, KeyFileError> {
    let key =
        MasterKey::from_bytes(crate::token::random().map_err(|source| KeyFileError::Random { source })?);
    make_folder(path.parent().unwrap_or(Path::new("")))
        .and_then(|()| write_atomic(path, key.to_text().as_bytes(), Access::Private))
        .map_err(|source| KeyFileError::Write { source })?;
    info!(path = %path.display(), "master key generated");
    // What is there now counts: another process may have been faster.
    read(path)
}

/// One fleet's file, and where its key goes.
#[derive(Debug)]
pub(crate) struct KeyFile {
    pub(crate) fleet: FleetId,
    pub(crate) path: PathBuf,
    pub(crate) master: watch::Sender<MasterKey>,
}

/// Looks at the files each second until shutdown. Another key is handed on; a file that is not a key any more is
/// complained of once, until that changes.
pub(crate) async fn watch_files(files: Vec<KeyFile>, clock: Clock, shutdown: Shutdown) {
    let mut complaints: Vec<Option<&'static str>> = vec![None; files.len()];
    loop {
        tokio::select! {
            () = clock.sleep(LOOK_EVERY) => {}
            () = shutdown.reached(Phase::Stop) => return,
        }
        for (file, complaint) in files.iter().zip(&mut complaints) {
            let path = file.path.clone();
            let Ok(outcome) = tokio::task::spawn_blocking(move || read(&path)).await else { return };
            *complaint = file.take(outcome, *complaint);
        }
    }
}

impl KeyFile {
    /// Hands on what was read, or complains. Returns what is complained of.
    fn take(
        &self,
        outcome: Result<MasterKey, KeyFileError>,
        before: Option<&'static str>,
    ) -> Option<&'static str> {
        let error = match outcome {
            Ok(key) => {
                let changed = self.master.send_if_modified(|held| {
                    let changed = *held != key;
                    *held = key;
                    changed
                });
                if changed {
                    info!(fleet = %self.fleet, path = %self.path.display(), "master key replaced: assignments and tickets of the old one are void");
                }
                return None;
            }
            Err(error) => error,
        };
        if before != Some(error.reason()) {
            error!(fleet = %self.fleet, error = chain(&error), reason = error.reason(), "key file not taken; the old master key goes on");
        }
        Some(error.reason())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn with_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_key_is_generated_private_and_kept() {
        let path = crate::testing::directory("key").join("not/there/yet/chat.key");
        let first = load_or_create(&path).unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(fs::read_to_string(&path).unwrap(), first.to_text());
        assert_eq!(load_or_create(&path).unwrap(), first);
        with_mode(&path, 0o400);
        assert_eq!(load_or_create(&path).unwrap(), first);
    }

    #[test]
    fn a_file_that_others_may_read_or_that_is_no_key_is_refused_and_left_alone() {
        let path = crate::testing::directory("key").join("chat.key");
        let text = load_or_create(&path).unwrap().to_text();
        for open in [0o604, 0o640, 0o620, 0o644, 0o666, 0o610] {
            with_mode(&path, open);
            let error = load_or_create(&path).unwrap_err();
            assert_eq!(error.reason(), "key_file_open");
            assert!(error.to_string().contains(&format!("{open:04o}")), "{error}");
        }
        with_mode(&path, 0o600);
        for bad in ["", "\n", "secret\n", &text.trim()[1..], &text.repeat(2), &"A".repeat(1 << 20), "\u{e4}"]
        {
            fs::write(&path, bad).unwrap();
            let error = load_or_create(&path).unwrap_err();
            assert_eq!(error.reason(), "key_file_malformed");
            assert!(!error.to_string().contains(text.trim()), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), bad);
        }
        let in_the_way = path.join("chat.key");
        assert_eq!(load_or_create(&in_the_way).unwrap_err().reason(), "key_file_unreadable");
    }

    #[test]
    fn another_key_is_handed_on_once_and_a_bad_file_changes_nothing() {
        let (master, mut seen) = watch::channel(MasterKey::from_bytes([1; 32]));
        let fleet = FleetId::new("chat").unwrap();
        let file = KeyFile { fleet, path: PathBuf::from("chat.key"), master };
        let malformed = || Err(KeyFileError::Malformed { path: PathBuf::from("chat.key") });
        assert_eq!(file.take(Ok(MasterKey::from_bytes([1; 32])), None), None);
        assert!(!seen.has_changed().unwrap());
        let told = file.take(malformed(), None);
        assert_eq!(file.take(malformed(), told), Some("key_file_malformed"));
        assert!(!seen.has_changed().unwrap());
        assert_eq!(file.take(Ok(MasterKey::from_bytes([2; 32])), told), None);
        assert!(seen.has_changed().unwrap());
        assert_eq!(*seen.borrow_and_update(), MasterKey::from_bytes([2; 32]));
    }
}
