//! Counters and gauges: one registry that is passed in, and the one list of names.
//!
//! Elsewhere: each role defines and registers its own metrics under these [`names`]; the admin listener serves
//! [`encode`].

use std::sync::{Arc, Mutex, PoisonError};

pub use prometheus_client::registry::{Registry, Unit};

/// The registry as the admin listener and late registrations share it. Locked for a registration and for one
/// scrape, never on a data path.
pub type Shared = Arc<Mutex<Registry>>;

/// A registry whose names begin with `evenkeel_`; [`names`] are given without that prefix.
#[must_use]
pub fn registry() -> Registry {
    Registry::with_prefix("evenkeel")
}

/// The text that `/metrics` serves, with its content type [`CONTENT_TYPE`].
#[must_use]
pub fn encode(registry: &Shared) -> String {
    let mut text = String::new();
    let registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
    // Writing into a string does not fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

/// Content type of [`encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Names as registered: the registry adds the prefix `evenkeel_`, the encoder `_total` to counters and the unit
/// where one is given.
pub mod names {
    /// Gauge: tunnels open now.
    pub const GATEWAY_CONNECTIONS: &str = "gateway_connections";
    /// Counter by outcome: handshakes.
    pub const GATEWAY_HANDSHAKES: &str = "gateway_handshakes";
    /// Counter by reason: placements, `connected` or how they failed.
    pub const GATEWAY_PLACEMENTS: &str = "gateway_placements";
    /// Counter by outcome: questions where to connect.
    pub const GATEWAY_NEGOTIATES: &str = "gateway_negotiates";
    /// Counter by outcome: requests that `routes.auth` was asked about.
    pub const GATEWAY_AUTH: &str = "gateway_auth";
    /// Counter by reason: assignments and tickets of clients that were not good.
    pub const GATEWAY_CREDENTIALS_REFUSED: &str = "gateway_credentials_refused";
    /// Gauge: polling sessions now.
    pub const GATEWAY_SESSIONS: &str = "gateway_sessions";
    /// Counter by outcome: plain requests of routes of kind `http`.
    pub const GATEWAY_REQUESTS: &str = "gateway_requests";
    /// Gauge: handshakes waiting for credit.
    pub const GATEWAY_WAITING: &str = "gateway_waiting";
    /// Counter by close reason: tunnels ended.
    pub const GATEWAY_TUNNELS_CLOSED: &str = "gateway_tunnels_closed";
    /// Counter by close code: tunnels ended.
    pub const GATEWAY_CLOSES: &str = "gateway_closes";
    /// Counter by outcome: active checks of servers without agent.
    pub const GATEWAY_CHECKS: &str = "gateway_checks";
    /// Counter by direction: bytes carried.
    pub const GATEWAY_BYTES: &str = "gateway_bytes";
    /// Counter: views dropped because the controller did not keep up.
    pub const GATEWAY_VIEWS_DROPPED: &str = "gateway_views_dropped";
    /// Histogram in seconds: from request head to 101.
    pub const GATEWAY_HANDSHAKE_DURATION: &str = "gateway_handshake_duration";

    /// Gauge by fleet and server: connections held.
    pub const CONTROLLER_SERVER_CONNECTIONS: &str = "controller_server_connections";
    /// Gauge by fleet and server: connections it should hold.
    pub const CONTROLLER_SERVER_TARGET: &str = "controller_server_target";
    /// Gauge by fleet and server: 0 idle, 1 full.
    pub const CONTROLLER_SERVER_SCORE: &str = "controller_server_score";
    /// Gauge by fleet and server: connections it would hold at score 1.
    pub const CONTROLLER_SERVER_CAPACITY: &str = "controller_server_capacity";
    /// Gauge by fleet and state: servers.
    pub const CONTROLLER_SERVERS: &str = "controller_servers";
    /// Gauge by fleet and health: servers.
    pub const CONTROLLER_SERVERS_BY_HEALTH: &str = "controller_servers_by_health";
    /// Gauge by fleet: agents linked.
    pub const CONTROLLER_AGENTS: &str = "controller_agents";
    /// Counter by fleet and result: moves that agents reported.
    pub const CONTROLLER_MOVES: &str = "controller_moves";
    /// Counter by fleet, order and result.
    pub const CONTROLLER_ORDERS: &str = "controller_orders";
    /// Counter by fleet and kind.
    pub const CONTROLLER_EVENTS: &str = "controller_events";
    /// Counter by fleet and outcome: reports.
    pub const CONTROLLER_REPORTS: &str = "controller_reports";
    /// Counter by fleet: times the fleet's task ended by a panic or a store error and began again.
    pub const CONTROLLER_RESTARTS: &str = "controller_restarts";
    /// Counter by fleet: events that a queue had no room for.
    pub const CONTROLLER_DROPPED: &str = "controller_dropped";
    /// Histogram in seconds by fleet: time one round takes.
    pub const CONTROLLER_ROUND_DURATION: &str = "controller_round_duration";
    /// Counter by fleet and how: server processes started, ended, restarted.
    pub const CONTROLLER_PROCESSES: &str = "controller_processes";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_the_prefix_and_the_unit_of_a_counter() {
        let counter: prometheus_client::metrics::counter::Counter = Default::default();
        counter.inc();
        let mut registry = registry();
        registry.register(names::GATEWAY_HANDSHAKES, "Handshakes", counter);
        let text = encode(&Arc::new(Mutex::new(registry)));
        assert!(text.contains("evenkeel_gateway_handshakes_total 1"), "{text}");
    }
}
