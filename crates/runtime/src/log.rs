//! Structured logs on stderr, so that stdout stays for answers.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// How a line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// For people; coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

impl Format {
    /// The format of that name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is not one.
    #[error(
        "could not take {level:?} as log level: use error, warn, info, debug or trace, or a filter such as \"info,evenkeel_gateway=debug\""
    )]
    Level {
        /// As given.
        level: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Somebody else logs already.
    #[error("could not start logging: it was started before")]
    Started,
}

impl LogError {
    /// Short code for scripts.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Level { .. } => "log_level",
            Self::Started => "log_started",
        }
    }
}

/// Starts logging to stderr. `level` is a level or a filter in the syntax of `tracing_subscriber::EnvFilter`.
///
/// # Errors
/// [`LogError`] for a bad level, or when called twice.
pub fn init(format: Format, level: &str) -> Result<(), LogError> {
    let filter = filter(level)?;
    let lines =
        fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    match format {
        Format::Text => lines.with_target(false).try_init(),
        Format::Json => lines.json().flatten_event(true).try_init(),
    }
    .map_err(|_| LogError::Started)
}

/// Checks a level without starting anything.
///
/// # Errors
/// [`LogError::Level`].
pub fn check_level(level: &str) -> Result<(), LogError> {
    filter(level).map(drop)
}

fn filter(level: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(level).map_err(|source| LogError::Level { level: level.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_level_is_refused_with_its_text() {
        assert!(check_level("info,evenkeel_gateway=debug").is_ok());
        let refused = check_level("evenkeel=loud").unwrap_err();
        assert!(refused.to_string().contains("evenkeel=loud"), "{refused}");
    }
}
