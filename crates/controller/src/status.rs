//! What a fleet looks like at one moment, for the admin API and the metrics.

use evenkeel_fleet::controller::{Explanation, ServerStatus};
use evenkeel_fleet::snapshot::Health;
use evenkeel_model::{Epoch, FleetId, Instant, State};

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

impl FleetStatus {
    /// What an operator should know after an order: that nobody is left who takes new connections.
    #[must_use]
    pub fn nothing_open(&self) -> Option<String> {
        let takes = |server: &ServerStatus| {
            server.state == State::Active
                && server.health == Health::Ok
                && server.bound_by.is_none_or(|cause| cause.permits())
        };
        if self.servers.iter().any(takes) {
            return None;
        }
        let comes = |server: &ServerStatus| matches!(server.state, State::Starting | State::Active);
        let until = if self.servers.iter().any(comes) { " until one is up and well" } else { "" };
        let fleet = &self.fleet;
        Some(format!(
            "no server of {fleet} takes new connections now: clients are refused{until}; undrain one or add one"
        ))
    }
}
