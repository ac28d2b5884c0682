//! Files that are either the old or the new one, never half, and folders that stay, also after a power cut.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only we (0600): tokens and keys.
    Private,
    /// Whoever the system's mask allows (0644).
    Public,
}

impl Access {
    const fn mode(self) -> u32 {
        match self {
            Self::Private => 0o600,
            Self::Public => 0o644,
        }
    }
}

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("could not write {}", path.display())]
pub struct WriteError {
    /// Which file.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl WriteError {
    /// Short code for logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        "write_failed"
    }
}

/// Replaces `path` by `bytes`: temporary file beside it, fsync, rename, fsync of the directory.
///
/// # Errors
/// [`WriteError`]; the old file is then still there, whole.
pub fn write_atomic(path: &Path, bytes: &[u8], access: Access) -> Result<(), WriteError> {
    replace(path, bytes, access).map_err(|source| WriteError { path: path.to_owned(), source })
}

/// Makes a folder and those above it that are missing, each private (0700). When this returns the entry of each one
/// made is on disk in its parent. A folder that is there stays as it is.
///
/// # Errors
/// [`WriteError`]; some of the folders above may then be there.
pub fn make_folder(path: &Path) -> Result<(), WriteError> {
    make(path).map_err(|source| WriteError { path: path.to_owned(), source })
}

fn make(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let parent = parent_of(path);
    make(parent)?;
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => File::open(parent)?.sync_all(),
        // Somebody else was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn replace(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let directory = parent_of(path);
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = directory.join(temporary);
    let written = fill(&temporary, bytes, access)
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| File::open(directory)?.sync_all());
    if written.is_err() {
        // The error that counts is the first one.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn fill(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    // A leftover of a process that died here would keep its old mode.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(access.mode()).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn write_atomic_replaces_whole_and_keeps_secrets_private() {
        let directory = std::env::temp_dir().join(format!("evenkeel-file-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("token");
        write_atomic(&path, b"first, longer", Access::Private).unwrap();
        write_atomic(&path, b"second", Access::Private).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn make_folder_makes_what_is_missing_private_and_leaves_what_is_there() {
        let top = std::env::temp_dir().join(format!("evenkeel-folder-{}", std::process::id()));
        fs::create_dir_all(&top).unwrap();
        fs::set_permissions(&top, fs::Permissions::from_mode(0o755)).unwrap();
        let deep = top.join("a/b");
        make_folder(&deep).unwrap();
        make_folder(&deep).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!([mode(&top), mode(&top.join("a")), mode(&deep)], [0o755, 0o700, 0o700]);
        fs::write(deep.join("file"), b"").unwrap();
        let refused = make_folder(&deep.join("file/below")).unwrap_err();
        assert!(refused.to_string().contains("file/below"), "{refused}");
        make_folder(Path::new("")).unwrap();
        fs::remove_dir_all(&top).unwrap();
    }

    #[test]
    fn write_atomic_into_nowhere_names_the_file() {
        let refused = write_atomic(Path::new("/nonexistent/evenkeel"), b"", Access::Public).unwrap_err();
        assert!(refused.to_string().contains("/nonexistent/evenkeel"));
    }
}
