//! What a fleet looks like at one moment, for the admin API and the metrics.

use evenkeel_fleet::controller::{Explanation, ServerStatus};
use evenkeel_model::{Epoch, FleetId, Instant};

/// One fleet at one moment.
#[derive(Debug, Clone)]
pub struct FleetStatus {
    /// Which.
    pub fleet: FleetId,
    /// When.
    pub at: Instant,
    /// The controller's term.
    pub epoch: Epoch,
    /// All servers, sorted by id.
    pub servers: Vec<ServerStatus>,
    /// Agents linked.
    pub agents: usize,
    /// Why the last round did what it did.
    pub explanation: Explanation,
    /// Whether a provider of ours starts and stops servers.
    pub provided: bool,
}
