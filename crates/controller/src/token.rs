//! The admin token: generated once into a private file, compared in constant time.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use evenkeel_runtime::file::{Access, WriteError, make_folder, write_atomic};
use tracing::{info, warn};

/// Bytes of chance in a token: 256 bits cannot be guessed.
const TOKEN_BYTES: usize = 32;
/// Shortest token taken from a file that somebody wrote by hand.
const TOKEN_MIN: usize = 16;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file exists and cannot be read.
    #[error("could not read the admin token {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file holds no usable token.
    #[error("could not take the admin token in {}: it must be {TOKEN_MIN} or more printable ASCII characters; remove the file to have one generated", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
    },
    /// It could not be generated.
    #[error("could not draw random bytes for the admin token")]
    Random {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It could not be written.
    #[error("could not keep the admin token (admin.token_file)")]
    Write {
        /// What went wrong.
        #[source]
        source: WriteError,
    },
}

impl TokenError {
    /// Short code for logs and scripts.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "token_unreadable",
            Self::Unusable { .. } => "token_unusable",
            Self::Random { .. } => "token_random",
            Self::Write { .. } => "token_unwritable",
        }
    }
}

/// The token. Its text appears in no log.
#[derive(Clone)]
pub struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// Reads the token from `path`, or generates one into it (0600), in a folder that is made (0700) if it is missing.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn load_or_create(path: &Path) -> Result<Self, TokenError> {
        match fs::read_to_string(path) {
            Ok(text) => {
                warn_if_open(path);
                let text = text.trim();
                if text.len() < TOKEN_MIN || !text.bytes().all(|b| b.is_ascii_graphic()) {
                    return Err(TokenError::Unusable { path: path.to_owned() });
                }
                Ok(Self(text.to_owned()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let text = URL_SAFE_NO_PAD.encode(random().map_err(|source| TokenError::Random { source })?);
                make_folder(path.parent().unwrap_or(Path::new("")))
                    .and_then(|()| write_atomic(path, format!("{text}\n").as_bytes(), Access::Private))
                    .map_err(|source| TokenError::Write { source })?;
                info!(path = %path.display(), "admin token generated");
                Ok(Self(text))
            }
            Err(source) => Err(TokenError::Read { path: path.to_owned(), source }),
        }
    }

    /// Whether `offered` is the token. Takes as long for a near miss as for a wild guess.
    #[must_use]
    pub fn is(&self, offered: &str) -> bool {
        let (own, offered) = (self.0.as_bytes(), offered.as_bytes());
        let mut differs = u8::from(own.len() != offered.len());
        for (index, byte) in own.iter().enumerate() {
            differs |= byte ^ offered.get(index).copied().unwrap_or(0);
        }
        std::hint::black_box(differs) == 0
    }
}

fn warn_if_open(path: &Path) {
    let open = fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0);
    if open {
        warn!(path = %path.display(), "admin token can be read by others; chmod 600 it");
    }
}

/// Random bytes of the system.
pub(crate) fn random() -> io::Result<[u8; TOKEN_BYTES]> {
    let mut bytes = [0; TOKEN_BYTES];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_generated_private_and_kept() {
        let directory = crate::testing::directory("token");
        let path = directory.join("admin.token");
        let first = Token::load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(&path).unwrap();
        let second = Token::load_or_create(&path).unwrap();
        assert!(first.is(text.trim()) && second.is(text.trim()));
        assert_eq!(text.trim().len(), 43);
        for wrong in ["", "a", &text.trim()[1..], &format!("{}x", text.trim())] {
            assert!(!first.is(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn token_may_be_kept_in_a_folder_that_is_not_there_yet() {
        let folder = crate::testing::directory("token").join("run/secrets");
        Token::load_or_create(&folder.join("admin.token")).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        let in_the_way = folder.join("admin.token/admin.token");
        assert_eq!(Token::load_or_create(&in_the_way).unwrap_err().reason(), "token_unreadable");
    }

    #[test]
    fn short_token_file_is_refused_by_name() {
        let path = crate::testing::directory("token").join("admin.token");
        fs::write(&path, "secret\n").unwrap();
        let refused = Token::load_or_create(&path).unwrap_err();
        assert!(refused.to_string().contains("admin.token"), "{refused}");
    }
}
