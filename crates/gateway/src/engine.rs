//! The interface between accepting connections and carrying their bytes.
//!
//! In: [`Order`]s (adopt both sockets, close, abort). Out: [`Event`]s. An engine knows sockets and frames, nothing
//! of fleets; [`Owner`] is a number to it. Invariants: every adopted tunnel ends in exactly one [`Event::Closed`];
//! a close is an order, carried out at the next boundary between two messages.
//! Elsewhere: the engine there is ([`crate::portable`]), who to close ([`crate::execute`]), the handshake
//! ([`crate::connection`]).

use std::cell::Cell;
use std::rc::Rc;

use evenkeel_fleet::gateway::ServerKey;
use evenkeel_model::{Duration, Instant};
use evenkeel_protocol::close::{CloseCode, CloseReason};
use evenkeel_protocol::handshake;
use tokio::net::TcpStream;

/// Most bytes read at once, and so most bytes that wait in one direction when the other end is slow. 32 KiB takes
/// a 16 KiB message with its header in one read; a larger one only grows what a slow reader costs.
pub(crate) const READ_MAX: usize = 32 * 1024;
/// Reads of one direction in one turn, so that a fast sender does not starve the other tunnels.
pub(crate) const READS_PER_TURN: u32 = 8;

/// How tunnels end that do not end by themselves. Checked each 100 ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelLimits {
    /// Bytes that a slow end does not take for so long end its tunnel. Default 10 s, as NATS does.
    pub write_deadline: Duration,
    /// From our Close frame to the end of the TCP connections. Default 5 s: a few round trips of a bad network.
    pub close_wait: Duration,
    /// When one end has sent its last byte, the other may go on for so long. Default 30 s.
    pub half_open: Duration,
    /// Silence in both directions that ends a tunnel. Default none: WebSockets may be silent for hours.
    pub idle: Option<Duration>,
}

impl Default for TunnelLimits {
    fn default() -> Self {
        Self {
            write_deadline: Duration::from_secs(10),
            close_wait: Duration::from_secs(5),
            half_open: Duration::from_secs(30),
            idle: None,
        }
    }
}

/// A tunnel's number in this gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnId(pub(crate) u64);

/// Whose tunnel it is: a fleet's number in this gateway and a server's slot in that fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owner {
    pub(crate) fleet: u32,
    pub(crate) server: ServerKey,
}

/// A tunnel to carry: both sockets, what each end must still get, and where to note that the server spoke.
pub(crate) struct Adopt {
    pub(crate) id: ConnId,
    pub(crate) owner: Owner,
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
    pub(crate) first: handshake::Tunnel,
    pub(crate) heard: Rc<Cell<bool>>,
}

/// What an engine is told.
pub(crate) enum Order {
    /// Carry this tunnel.
    Adopt(Box<Adopt>),
    /// End it with a Close frame at the next boundary between two messages.
    Close { id: ConnId, owner: Owner, code: CloseCode, reason: CloseReason },
    /// End all now.
    AbortAll,
}

/// Why a tunnel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum End {
    /// Both ends finished by themselves.
    Finished,
    /// The client vanished.
    ClientLost,
    /// The server vanished without a Close frame.
    ServerLost,
    /// We ordered it.
    Ordered(CloseReason),
    /// One end did not take its bytes in time.
    WriteDeadline,
    /// One end finished and the other did not.
    HalfOpen,
    /// The process ends.
    Aborted,
    /// Its sockets could not be waited for.
    Unwatched,
}

impl End {
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::ClientLost => "client_lost",
            Self::ServerLost => "server_lost",
            Self::Ordered(reason) => reason.reason(),
            Self::WriteDeadline => "write_deadline",
            Self::HalfOpen => "half_open",
            Self::Aborted => "aborted",
            Self::Unwatched => "unwatched",
        }
    }
}

/// What an engine reports.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    /// The tunnel is gone.
    Closed {
        id: ConnId,
        owner: Owner,
        why: End,
        /// The close code seen first, whoever sent it; 1006 without one (RFC 6455 §7.1.5).
        code: u16,
        lasted: Duration,
    },
}

/// What can be chosen by when connections leave.
pub(crate) struct Held {
    pub(crate) id: ConnId,
    pub(crate) opened: Instant,
    pub(crate) active: Instant,
    pub(crate) bytes: u64,
}
