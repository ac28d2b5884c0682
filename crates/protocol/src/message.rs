//! What an agent and a node (controller or gateway) say to each other: the message types of
//! docs/reference/agent.md, read from and written to JSON text.
//!
//! In: one text frame, or the body of `POST /v1/servers/{id}/report`. Out: [`Up`], [`Down`] or [`Posted`], or a
//! [`MessageError`] that names the field, what it held and what it may hold. Invariants: unknown fields are
//! ignored; absent and null are the same; a message is taken as a whole or changes nothing; nothing from outside
//! panics. Elsewhere: what to say when (`agent`), what a report may claim (`evenkeel_model::report`).
//!
//! Fields are read one by one from the parsed object instead of through derived types, because a refusal must
//! name the field and its value, also where the text is no JSON at all (`"cpu": NaN`).

mod encode;
mod fields;
mod parse;

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use evenkeel_model::{
    Connections, Desired, Duration, Fence, FleetId, Incarnation, Instant, Report, ReportError, ServerId,
};

use crate::close::CloseReason;

pub use encode::{encode_desired, encode_down, encode_report, encode_up};
pub use parse::{parse_down, parse_report, parse_up};

/// Version of the agent messages, `ver` in the hello.
pub const VERSION: u64 = 1;

/// Longest message in bytes, 64 KiB: a hello with every label and a report with every custom term stay below
/// 16 KiB. A larger bound only gives a broken peer more of our memory.
pub const MESSAGE_MAX: usize = 64 * 1024;

/// Most labels of one server; a bound on memory.
pub const LABELS_MAX: usize = 32;

/// Capability of an agent that closes nothing on order: the gateways close their tunnels to its server instead.
pub const REPORT_ONLY: &str = "report_only";

/// Most events in one message; a bound on memory.
pub const EVENTS_MAX: usize = 256;

/// From an agent to a node.
#[derive(Debug, Clone, PartialEq)]
pub enum Up {
    /// Who it is. First message on every link, and again after `stale`.
    Hello(Hello),
    /// How busy it is.
    Report(Report),
    /// What became of placements handed to clients.
    Event(Vec<Event>),
    /// How a move ended.
    Moved(Moved),
    /// It obeys this order now.
    Applied(Fence),
    /// It holds no connections any more, under this order to drain or stop.
    Drained(Fence),
}

/// What an agent says of its server once.
#[derive(Debug, Clone, PartialEq)]
pub struct Hello {
    /// Its id.
    pub id: ServerId,
    /// Which life of it: start time in Unix milliseconds.
    pub inc: Incarnation,
    /// What is configured about it.
    pub profile: Profile,
    /// What it can do, for example `move`.
    pub caps: Vec<String>,
    /// Highest order it applied in this life or a former one.
    pub applied: Option<Fence>,
}

/// What is configured about a server that registers itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Its fleet; needed only where there are several.
    pub fleet: Option<FleetId>,
    /// Where gateways connect: `ws://` or `wss://`.
    pub url: String,
    /// Where clients connect directly, if they can.
    pub public_url: Option<String>,
    /// Its zone.
    pub zone: Option<String>,
    /// Free labels, at most [`LABELS_MAX`].
    pub labels: BTreeMap<String, String>,
    /// Connections it says it can hold.
    pub capacity: Option<Connections>,
}

impl Profile {
    /// A server at `url` of which nothing else is known.
    #[must_use]
    pub fn at(url: impl Into<String>) -> Self {
        Self {
            fleet: None,
            url: url.into(),
            public_url: None,
            zone: None,
            labels: BTreeMap::new(),
            capacity: None,
        }
    }
}

/// What became of one placement that was handed to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The placement.
    pub rid: String,
    /// What became of it.
    pub state: EventState,
}

/// See [`Event`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventState {
    /// The client came.
    Connected,
    /// It did not come in time.
    Expired,
}

impl EventState {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Expired => "expired",
        }
    }
}

/// How a move ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// Which move.
    pub mid: String,
    /// Whether the client went.
    pub result: MoveResult,
    /// Why not.
    pub why: Option<String>,
}

/// See [`Moved`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoveResult {
    /// It went.
    Ok,
    /// It stayed.
    Nak,
}

impl MoveResult {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Nak => "nak",
        }
    }
}

/// From a node to an agent. Each message also carries the node's time, see [`Received`].
#[derive(Debug, Clone, PartialEq)]
pub enum Down {
    /// The answer to a hello.
    Welcome(Welcome),
    /// What the server should look like.
    Desired(Desired),
    /// The complete live list of keys.
    Keys(Vec<Key>),
    /// The hello's incarnation is lower than `known`, or equal while another link with it lives.
    Stale {
        /// The highest known incarnation.
        known: Incarnation,
    },
    /// The last message was unusable; a Close 1008 follows.
    Error {
        /// What was wrong with it, for a human.
        why: String,
    },
}

/// A message down with the clock that came with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Received {
    /// The node's Unix time (`now_ms`); tokens are checked on it.
    pub node_now: Option<Instant>,
    /// The message.
    pub message: Down,
}

/// The answer to a hello.
#[derive(Debug, Clone, PartialEq)]
pub struct Welcome {
    /// How often to report.
    pub report: Duration,
    /// The complete live list of keys.
    pub keys: Vec<Key>,
    /// A join token bound to this id, to be sent from then on.
    pub credential: Option<String>,
}

/// One symmetric key of a JWK Set (RFC 7517).
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// Its name.
    pub kid: String,
    /// What it is for: `HS256` for assignment tokens, `A256GCM` for moves.
    pub alg: String,
    /// The key, base64url without padding.
    pub k: String,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the key itself: this ends in logs.
        f.debug_struct("Key").field("kid", &self.kid).field("alg", &self.alg).finish_non_exhaustive()
    }
}

/// The body of `POST /v1/servers/{id}/report`: a report, and with `url` also who the server is.
#[derive(Debug, Clone, PartialEq)]
pub struct Posted {
    /// How busy the server is.
    pub report: Report,
    /// Present when the body has a `url`: registers the server.
    pub profile: Option<Profile>,
}

/// Why a message was refused as a whole.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MessageError {
    /// Longer than [`MESSAGE_MAX`].
    #[error("could not take a message of {length} bytes, allowed are {MESSAGE_MAX}")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// No JSON. `NaN` and numbers that do not fit are no JSON either, so the field is found by position.
    #[error("could not read the message as JSON{}: {why}", at_field(.field.as_ref()))]
    NotJson {
        /// The field whose value could not be read, where one can be told.
        field: Option<String>,
        /// What the parser said.
        why: String,
    },
    /// JSON, but no object.
    #[error("could not take the message: it is {found}, not an object")]
    NotObject {
        /// What it is.
        found: &'static str,
    },
    /// No such `op`.
    #[error("could not take the message: there is no op {op:?}")]
    UnknownOp {
        /// The unknown name, cut to 64 characters.
        op: String,
    },
    /// `ver` is none we speak.
    #[error("could not take the hello: ver is {ver}, allowed is {VERSION}")]
    UnsupportedVersion {
        /// The version asked for.
        ver: u64,
    },
    /// A needed field is absent or null.
    #[error("could not take the message: {field} is missing, it must be {allowed}")]
    MissingField {
        /// Its name.
        field: String,
        /// What it may hold.
        allowed: &'static str,
    },
    /// A field has a wrong type or a value that is not allowed.
    #[error("could not take the message: {field} is {value}, allowed is {allowed}")]
    BadField {
        /// Its name, dotted where it is nested: `applied.gen`, `custom.queue`.
        field: String,
        /// What it held, as JSON, cut to 64 characters.
        value: String,
        /// What it may hold.
        allowed: &'static str,
    },
}

impl MessageError {
    /// The offending field as named on the wire, where one is to blame.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::NotJson { field, .. } => field.as_deref(),
            Self::UnknownOp { .. } => Some("op"),
            Self::UnsupportedVersion { .. } => Some("ver"),
            Self::MissingField { field, .. } | Self::BadField { field, .. } => Some(field),
            Self::TooLong { .. } | Self::NotObject { .. } => None,
        }
    }

    /// The reason of the Close 1008 that answers it.
    #[must_use]
    pub const fn close(&self) -> CloseReason {
        match self {
            Self::TooLong { .. } => CloseReason::TooLong,
            Self::NotJson { .. } | Self::NotObject { .. } => CloseReason::BadMessage,
            Self::UnknownOp { .. } => CloseReason::UnknownOp,
            Self::UnsupportedVersion { .. } => CloseReason::UnsupportedVersion,
            Self::MissingField { .. } => CloseReason::MissingField,
            Self::BadField { .. } => CloseReason::BadField,
        }
    }

    /// Short code for logs, metrics, close frames and the API (`error` there).
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        self.close().reason()
    }
}

impl From<ReportError> for MessageError {
    fn from(error: ReportError) -> Self {
        Self::BadField { field: error.field, value: error.value, allowed: error.allowed }
    }
}

fn at_field(field: Option<&String>) -> String {
    field.map_or_else(String::new, |field| alloc::format!(" at {field}"))
}
