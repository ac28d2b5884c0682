//! The machine that places connections at one gateway, for one fleet.
//!
//! It reads the controller's [`Snapshot`], adds what it sees itself (own connections, placements in flight,
//! failures), runs `allot` over the sum and picks. With the controller gone it goes on with what it has.

use alloc::sync::Arc;
use alloc::vec::Vec;

use evenkeel_model::{Connections, Duration, GatewayId, Instant, Rng, ServerId};

use crate::allot::{Allotments, Server};
use crate::snapshot::{GatewayView, Snapshot};

/// A server's slot in one [`Gateway`], stable for as long as the gateway lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerKey(pub u32);

/// One placement on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlacementId(pub u64);

/// What a handshake asks for.
#[derive(Debug, Clone, Default)]
pub struct Ask<'a> {
    /// Hash of the client's prefix (/32, /64): for fairness and for counting the refused.
    pub prefix: u64,
    /// Servers already tried.
    pub avoid: &'a [ServerKey],
    /// The source of a move: never picked, and only receivers less utilised than it are.
    pub source: Option<ServerKey>,
}

/// Where one connection goes. Pending until [`Gateway::connected`] or [`Gateway::failed`], or it expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Settles it.
    pub id: PlacementId,
    /// The server's slot.
    pub key: ServerKey,
    /// The server.
    pub server: ServerId,
    /// Where to connect.
    pub url: Arc<str>,
}

/// Why no server was picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The fleet has no server at all.
    NoServer,
    /// None is open: starting, draining, suspect, dead or full.
    NothingOpen,
    /// Every open server was already tried.
    AllTried,
    /// Open servers are out of credit until then; waiting helps.
    OutOfCredit {
        /// When the first of them has credit again.
        until: Instant,
    },
}

impl Refusal {
    /// Short code for logs, metrics and the API.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NoServer => "no_server",
            Self::NothingOpen => "nothing_open",
            Self::AllTried => "all_tried",
            Self::OutOfCredit { .. } => "out_of_credit",
        }
    }
}

/// How a placement failed before the 101.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Connect refused: the process is not there.
    Refused,
    /// Connect or head took too long, or the connection broke.
    Unreachable,
    /// The answer was no proper 101.
    BadAnswer,
    /// 503 with `Evenkeel-Draining`: elsewhere, no trouble counted.
    Draining,
    /// The server answered the request itself (401, 404 …): not its fault.
    Answered,
    /// The client went away first.
    ClientGone,
}

/// What a gateway is told once.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Its id.
    pub id: GatewayId,
}

/// Places connections of one fleet. See the module's documentation.
#[derive(Debug)]
pub struct Gateway {}

impl Gateway {
    /// A gateway that knows no server yet.
    #[must_use]
    pub fn new(_config: GatewayConfig, _rng: Rng, _now: Instant) -> Self {
        todo!()
    }

    /// Takes a new snapshot. Own counts stay; a server that is gone keeps its slot until its last tunnel closes.
    pub fn install(&mut self, _snapshot: &Arc<Snapshot>, _now: Instant) {
        todo!()
    }

    /// Picks a server for one new connection and counts it as pending there.
    ///
    /// # Errors
    /// [`Refusal`] when none can take it now.
    pub fn place(&mut self, _ask: &Ask<'_>, _now: Instant) -> Result<Placement, Refusal> {
        todo!()
    }

    /// The server answered 101: the placement becomes a connection.
    pub fn connected(&mut self, _placement: PlacementId, _now: Instant) {
        todo!()
    }

    /// The placement came to nothing.
    pub fn failed(&mut self, _placement: PlacementId, _failure: Failure, _now: Instant) {
        todo!()
    }

    /// A connection ended after `lasted`.
    pub fn closed(&mut self, _key: ServerKey, _lasted: Duration, _now: Instant) {
        todo!()
    }

    /// Bytes came from the server: it is not frozen, whatever its reports.
    pub fn heard(&mut self, _key: ServerKey, _now: Instant) {
        todo!()
    }

    /// When [`Gateway::handle_timeout`] is due: expiring placements, targets every 100 ms.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        todo!()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, _now: Instant) {
        todo!()
    }

    /// What the controller should know, and starts the next interval of its counters.
    pub fn view(&mut self, _now: Instant) -> GatewayView {
        todo!()
    }

    /// The servers as this gateway counts them, and their allotments, for the API and for tests.
    #[must_use]
    pub fn allotments(&self) -> (Vec<Server>, Allotments) {
        todo!()
    }

    /// Connections this gateway holds on a server.
    #[must_use]
    pub fn connections(&self, _key: ServerKey) -> Connections {
        todo!()
    }
}
