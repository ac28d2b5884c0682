//! The immutable view of a fleet that the controller publishes and gateways and DNS place by.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use evenkeel_model::{
    Connections, Desired, FleetId, GatewayId, Incarnation, Instant, PerSecond, ServerId, State,
};

use crate::allot::{Cause, Ceiling};
use crate::config::{HealthConfig, PlaceConfig};

/// Whether a server can be trusted to answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// Reports or checks are fresh.
    #[default]
    Ok,
    /// Silent or its link broken: no placements.
    Suspect,
    /// Connect refused, process gone, or failed handshakes in a row.
    Dead,
}

impl Health {
    /// The word in logs and in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
        }
    }
}

/// Who closes connections of a server on order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Executor {
    /// Its own agent.
    Agent,
    /// The gateways that hold its tunnels; they also check it and their counts are its count.
    Gateways,
}

/// What a server last said of its count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reported {
    /// Connections it held.
    pub connections: Connections,
    /// Orders reports within one incarnation; a gateway re-reads its own count when it changes.
    pub seq: u64,
    /// When the controller received it.
    pub at: Instant,
}

/// One server as gateways see it.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerView {
    /// Its id.
    pub id: ServerId,
    /// Its life.
    pub inc: Incarnation,
    /// Where to connect: `ws://host:port[/prefix]`, validated.
    pub url: Arc<str>,
    /// Where clients connect directly: `ws://` or `wss://`, validated; `None`: only through a gateway.
    pub public_url: Option<Arc<str>>,
    /// Connections it would hold at score 1.
    pub capacity: Connections,
    /// Its last report; `None`: gateways count.
    pub reported: Option<Reported>,
    /// Connections that other gateways hold on a server without reports.
    pub elsewhere: Connections,
    /// All wishes about it.
    pub ceilings: Vec<Ceiling>,
    /// Whether it can be trusted to answer.
    pub health: Health,
    /// Its life as the controller sees it.
    pub state: State,
    /// Placements per second that it admits over all gateways.
    pub admit: PerSecond,
    /// When it last became able to take connections: slow start counts from here.
    pub open_since: Instant,
    /// Who closes its connections on order.
    pub executor: Executor,
    /// The order, for gateways that execute it.
    pub desired: Desired,
}

impl ServerView {
    /// Whether connections leave it because somebody ordered that, whatever their age.
    #[must_use]
    pub fn sheds_on_order(&self) -> bool {
        matches!(self.state, State::Draining | State::Drained | State::Stopped)
            || self.ceilings.iter().any(|ceiling| ceiling.cause == Cause::Operator)
    }
}

/// Immutable view of one fleet.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Which fleet.
    pub fleet: FleetId,
    /// When it was taken.
    pub at: Instant,
    /// Sorted by id.
    pub servers: Vec<ServerView>,
    /// Gateways that share the credit, at least 1.
    pub gateways: u32,
    /// Placements per second of all gateways together, summed by the controller from their views over the last
    /// ten seconds or so. A gateway weighs its own pending placements by this over its own rate; 0: unknown, then
    /// by `gateways`.
    pub placed_per_s: PerSecond,
    /// When silence and failed handshakes count: a gateway that saw bytes from a suspect server within
    /// `suspect_after` places on it all the same, and avoids one that failed `dead_after` times in a row at once.
    pub health: HealthConfig,
    /// How to place.
    pub place: PlaceConfig,
}

/// All fleets, as a gateway gets them. A higher version replaces a lower one as a whole.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    /// Counts up with each publication of this controller process.
    pub version: u64,
    /// By id.
    pub fleets: BTreeMap<FleetId, Arc<Snapshot>>,
}

/// What one gateway tells the controller of one server, since its last view.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerCounts {
    /// Which server.
    pub server: ServerId,
    /// Connections the gateway holds on it now.
    pub connections: Connections,
    /// Placements on their way.
    pub pending: Connections,
    /// Placements since the last view.
    pub placed: u32,
    /// Handshakes that failed at the server since the last view (refused, timed out, bad answer).
    pub failed: u32,
    /// Of these, connect refused: the process is not there.
    pub refused: u32,
    /// Failed in a row, up to now; 0 after a success.
    pub failed_in_a_row: u32,
    /// Whether it is on probation here.
    pub probation: bool,
    /// Last 101 or bytes seen from it.
    pub heard: Option<Instant>,
}

/// What one gateway tells the controller of a fleet, each 250 ms or on a change.
#[derive(Debug, Clone, PartialEq)]
pub struct GatewayView {
    /// Which gateway.
    pub gateway: GatewayId,
    /// Which fleet.
    pub fleet: FleetId,
    /// When it was taken.
    pub at: Instant,
    /// One for each server it knows.
    pub servers: Vec<ServerCounts>,
    /// Handshakes waiting for credit.
    pub waiting: u32,
    /// Distinct client prefixes refused for want of room or credit, in the worst second of the last ten.
    pub refused_prefixes: u32,
}

impl GatewayView {
    /// Adds what an older view of the same gateway counted, which was not taken: the counts of now stay, sums add up.
    pub fn add(&mut self, older: &Self) {
        let at: BTreeMap<ServerId, usize> =
            self.servers.iter().enumerate().map(|(i, counts)| (counts.server.clone(), i)).collect();
        for before in &older.servers {
            if let Some(i) = at.get(&before.server) {
                let counts = &mut self.servers[*i];
                counts.placed = counts.placed.saturating_add(before.placed);
                counts.failed = counts.failed.saturating_add(before.failed);
                counts.refused = counts.refused.saturating_add(before.refused);
            } else {
                let none = Connections::ZERO;
                self.servers.push(ServerCounts { connections: none, pending: none, ..before.clone() });
            }
        }
    }
}

/// Outcome of one active check of a server without agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Which server.
    pub server: ServerId,
    /// `Err` with what was seen.
    pub outcome: Result<(), alloc::string::String>,
}

/// What became of an assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its client came.
    Connected,
    /// Its client did not come in time.
    Expired,
}

/// What an agent says of assignments of its server; the controller passes it on to every gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlements {
    /// The server's fleet.
    pub fleet: FleetId,
    /// The agent's server: it speaks for no other.
    pub server: ServerId,
    /// The assignments by `rid`, and what became of each.
    pub outcomes: Vec<(alloc::string::String, Outcome)>,
}

/// Everything a gateway says to a controller.
#[derive(Debug, Clone, PartialEq)]
pub enum GatewaySays {
    /// Its counts.
    Viewed(GatewayView),
    /// An active check of a server of that fleet.
    Checked(FleetId, Checked),
}
