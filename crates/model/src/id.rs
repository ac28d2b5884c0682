//! Identifiers: short validated strings and fencing numbers, each its own type so that they cannot be mixed up.

use alloc::sync::Arc;
use core::fmt;

/// Longest identifier in bytes: fits a DNS label pair and a log line.
pub const ID_MAX: usize = 128;

/// Why a text cannot be an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "could not take {text:?} as {what} id: 1 to 128 characters of A-Z a-z 0-9 . _ - are allowed, the first a letter or digit"
)]
pub struct InvalidId {
    /// Which id was asked for, for example `server`.
    pub what: &'static str,
    /// The refused text, cut to 128 characters.
    pub text: alloc::string::String,
}

fn valid(text: &str) -> bool {
    (1..=ID_MAX).contains(&text.len())
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes a text of 1 to 128 characters of `A-Z a-z 0-9 . _ -`, the first a letter or digit.
            ///
            /// # Errors
            /// [`InvalidId`] with the refused text.
            pub fn new(text: &str) -> Result<Self, InvalidId> {
                if valid(text) {
                    return Ok(Self(Arc::from(text)));
                }
                Err(InvalidId { what: $what, text: text.chars().take(ID_MAX).collect() })
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

text_id!(
    /// One process holding WebSockets. Unique over all fleets; stable over restarts.
    ServerId, "server");
text_id!(
    /// Servers that share one policy.
    FleetId, "fleet");
text_id!(
    /// One front door. Each keeps its own counts and its own share of the credit.
    GatewayId, "gateway");

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The number itself.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The next higher one; saturates.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number_id!(
    /// One life of a server: its start time in Unix milliseconds. A higher one wins, an older is stale.
    Incarnation);
number_id!(
    /// Fencing number of one server's desired state, counted up by each change.
    Generation);
number_id!(
    /// Fencing number of a controller's term. Outranks every [`Generation`] of an older epoch.
    Epoch);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_refuse_what_could_break_a_log_line_or_a_url() {
        for bad in ["", "-a", "a b", "a\n", "a/b", "ä", &"x".repeat(129)] {
            assert!(ServerId::new(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "chat-1", "10.0.0.1", "A_b.c-9", &"x".repeat(128)] {
            assert!(ServerId::new(good).is_ok(), "{good:?}");
        }
    }
}
