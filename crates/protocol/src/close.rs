//! Why a WebSocket is closed: the code and the reason text that Evenkeel puts into a Close frame.
//!
//! In: a [`CloseReason`]. Out: the text `ek:<code>` and the code that goes with it by default.
//! Invariant: every text fits a Close frame (125 bytes less the code). Elsewhere: the frame itself (`frame`), when
//! to close (`executor`, `evenkeel_fleet`).

use core::fmt;

/// A WebSocket close code (RFC 6455 §7.4, IANA registry).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CloseCode(pub u16);

impl CloseCode {
    /// The purpose was fulfilled.
    pub const NORMAL: Self = Self(1000);
    /// The endpoint goes away.
    pub const GOING_AWAY: Self = Self(1001);
    /// The peer broke the protocol.
    pub const PROTOCOL: Self = Self(1002);
    /// The peer broke a rule of ours; also our answer to an unusable agent message.
    pub const POLICY: Self = Self(1008);
    /// A message was larger than allowed.
    pub const TOO_BIG: Self = Self(1009);
    /// We failed.
    pub const INTERNAL: Self = Self(1011);
    /// Service restart: come back. The default of every planned close, because it says that the trouble is
    /// ours and that coming back helps (no code brings every client library back).
    pub const RESTART: Self = Self(1012);
    /// Come back later.
    pub const TRY_LATER: Self = Self(1013);

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// Whether an endpoint may put it into a Close frame: 1000 to 4999 without the reserved ones.
    #[must_use]
    pub const fn is_sendable(self) -> bool {
        matches!(self.0, 1000..=1003 | 1007..=1014 | 3000..=4999)
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $close:ident;)*) => {
        /// Why we close a WebSocket, on the wire `ek:<code>`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum CloseReason {
            $($(#[$doc])* $name,)*
        }

        impl CloseReason {
            /// Every reason, for tables and tests.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The text of the Close frame: `ek:<code>`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => concat!("ek:", $code),)* }
            }

            /// The bare code for logs, metrics and the API.
            #[must_use]
            pub const fn reason(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// The close code that goes with it unless the route sets another one.
            #[must_use]
            pub const fn code(self) -> CloseCode {
                match self { $(Self::$name => CloseCode::$close,)* }
            }
        }
    };
}

reasons! {
    /// The connection was moved; its client already has the next one.
    Moved = "moved", RESTART;
    /// Opened for a move that did not come about.
    Unused = "unused", NORMAL;
    /// The server takes no new connections and empties.
    Draining = "draining", RESTART;
    /// An operator ordered the server to hold fewer.
    Shed = "shed", RESTART;
    /// Other servers have room: this one holds more than its share.
    Rebalance = "rebalance", RESTART;
    /// The process ends.
    Stopped = "stopped", RESTART;
    /// The server behind the gateway went away.
    ServerGone = "server_gone", RESTART;
    /// The peer reads or writes too slowly, or is silent for too long.
    TimedOut = "timed_out", POLICY;
    /// The agent speaks for an older life of its server.
    Stale = "stale", POLICY;
    /// A newer link of the same server and life took over.
    Replaced = "replaced", POLICY;
    /// The message was no JSON object with an `op`.
    BadMessage = "bad_message", POLICY;
    /// No such `op`.
    UnknownOp = "unknown_op", POLICY;
    /// `ver` is none we speak.
    UnsupportedVersion = "unsupported_version", POLICY;
    /// A needed field is absent.
    MissingField = "missing_field", POLICY;
    /// A field has a wrong type or a value that is not allowed.
    BadField = "bad_field", POLICY;
    /// The message is longer than allowed.
    TooLong = "too_long", POLICY;
    /// The message does not fit this point of the dialogue, for example a report before the hello.
    Unexpected = "unexpected", POLICY;
    /// The fleet in the hello does not exist here.
    UnknownFleet = "unknown_fleet", POLICY;
    /// The credential does not cover this server.
    Forbidden = "forbidden", POLICY;
}

impl CloseReason {
    /// The reason whose text or bare code this is.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let code = text.strip_prefix("ek:").unwrap_or(text);
        Self::ALL.iter().copied().find(|reason| reason.reason() == code)
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_fits_a_close_frame_and_comes_back_from_its_text() {
        for &reason in CloseReason::ALL {
            assert!(reason.as_str().len() <= 123);
            assert!(reason.code().is_sendable());
            assert_eq!(reason.as_str(), format!("ek:{}", reason.reason()));
            assert_eq!(CloseReason::parse(reason.as_str()), Some(reason));
        }
        assert_eq!(CloseReason::parse("ek:nonsense"), None);
    }

    #[test]
    fn reserved_codes_are_not_sendable() {
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000] {
            assert!(!CloseCode(code).is_sendable(), "{code}");
        }
    }
}
