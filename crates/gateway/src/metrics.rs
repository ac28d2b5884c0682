//! The gateway's counters. Labels are closed sets: outcomes, reasons, codes, directions; never clients or paths.

use evenkeel_runtime::metrics::{Registry, Unit, names};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

type Label = [(&'static str, &'static str); 1];

/// Registered once at start; cloned handles count into the same numbers.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    connections: Gauge,
    polling: Gauge,
    waiting: Gauge,
    handshakes: Family<Label, Counter>,
    /// One of them, found once: a redirect costs little else.
    redirected: Counter,
    requests: Family<Label, Counter>,
    placements: Family<Label, Counter>,
    credentials: Family<Label, Counter>,
    negotiates: Family<Label, Counter>,
    auth: Family<Label, Counter>,
    closes: Family<Label, Counter>,
    codes: Family<Label, Counter>,
    bytes: Family<Label, Counter>,
    checks: Family<Label, Counter>,
    views_dropped: Counter,
    handshake_seconds: Histogram,
}

/// From a near server's answer to the longest wait for credit and three servers that do not answer.
const HANDSHAKE_BUCKETS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 3.0, 10.0];

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let handshakes = Family::<Label, Counter>::default();
        let redirected = handshakes.get_or_create(&[("outcome", "redirected")]).clone();
        let metrics = Self {
            connections: Gauge::default(),
            polling: Gauge::default(),
            waiting: Gauge::default(),
            handshakes,
            redirected,
            requests: Family::default(),
            placements: Family::default(),
            credentials: Family::default(),
            negotiates: Family::default(),
            auth: Family::default(),
            closes: Family::default(),
            codes: Family::default(),
            bytes: Family::default(),
            checks: Family::default(),
            views_dropped: Counter::default(),
            handshake_seconds: Histogram::new(HANDSHAKE_BUCKETS),
        };
        let it = metrics.clone();
        registry.register(names::GATEWAY_CONNECTIONS, "Tunnels open now", it.connections);
        registry.register(names::GATEWAY_SESSIONS, "Polling sessions now", it.polling);
        registry.register(names::GATEWAY_REQUESTS, "Plain requests of http routes by outcome", it.requests);
        registry.register(names::GATEWAY_WAITING, "Handshakes waiting for credit", it.waiting);
        registry.register(names::GATEWAY_HANDSHAKES, "Handshakes by outcome", it.handshakes);
        registry.register(names::GATEWAY_PLACEMENTS, "Placements by how they went", it.placements);
        registry.register(names::GATEWAY_NEGOTIATES, "Questions where to connect, by outcome", it.negotiates);
        registry.register(
            names::GATEWAY_AUTH,
            "Requests that routes.auth was asked about, by outcome",
            it.auth,
        );
        registry.register(
            names::GATEWAY_CREDENTIALS_REFUSED,
            "Assignments and tickets of clients that were not good",
            it.credentials,
        );
        registry.register(names::GATEWAY_TUNNELS_CLOSED, "Tunnels ended by reason", it.closes);
        registry.register(names::GATEWAY_CLOSES, "Tunnels ended by close code", it.codes);
        registry.register(names::GATEWAY_BYTES, "Bytes carried by direction", it.bytes);
        registry.register(names::GATEWAY_CHECKS, "Active checks by outcome", it.checks);
        registry.register(
            names::GATEWAY_VIEWS_DROPPED,
            "Views the controller had no room for",
            it.views_dropped,
        );
        registry.register_with_unit(
            names::GATEWAY_HANDSHAKE_DURATION,
            "From a whole request to its 101",
            Unit::Seconds,
            it.handshake_seconds,
        );
        metrics
    }

    pub(crate) fn handshake(&self, outcome: &'static str) {
        self.handshakes.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub(crate) fn request(&self, outcome: &'static str) {
        self.requests.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub(crate) fn polling(&self, sessions: usize) {
        self.polling.set(i64::try_from(sessions).unwrap_or(i64::MAX));
    }

    pub(crate) fn redirected(&self) {
        self.redirected.inc();
    }

    pub(crate) fn opened_after(&self, seconds: f64) {
        self.handshake("opened");
        self.handshake_seconds.observe(seconds);
    }

    pub(crate) fn placement(&self, reason: &'static str) {
        self.placements.get_or_create(&[("reason", reason)]).inc();
    }

    pub(crate) fn negotiate(&self, outcome: &'static str) {
        self.negotiates.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub(crate) fn authenticated(&self, outcome: &'static str) {
        self.auth.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub(crate) fn credential_refused(&self, reason: &'static str) {
        self.credentials.get_or_create(&[("reason", reason)]).inc();
    }

    pub(crate) fn closed(&self, reason: &'static str, code: u16) {
        self.closes.get_or_create(&[("reason", reason)]).inc();
        self.codes.get_or_create(&[("code", code_label(code))]).inc();
    }

    pub(crate) fn checked(&self, outcome: &'static str) {
        self.checks.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub(crate) fn view_dropped(&self) {
        self.views_dropped.inc();
    }

    pub(crate) fn set(&self, connections: usize, waiting: usize) {
        self.connections.set(i64::try_from(connections).unwrap_or(i64::MAX));
        self.waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }

    pub(crate) fn carried(&self, to_client: u64, to_server: u64) {
        self.bytes.get_or_create(&[("direction", "to_client")]).inc_by(to_client);
        self.bytes.get_or_create(&[("direction", "to_server")]).inc_by(to_server);
    }
}

/// Clients choose codes, so only those of the registry have a label of their own.
const fn code_label(code: u16) -> &'static str {
    match code {
        1000 => "1000",
        1001 => "1001",
        1002 => "1002",
        1003 => "1003",
        1005 => "1005",
        1006 => "1006",
        1007 => "1007",
        1008 => "1008",
        1009 => "1009",
        1010 => "1010",
        1011 => "1011",
        1012 => "1012",
        1013 => "1013",
        1014 => "1014",
        3000..=3999 => "3xxx",
        4000..=4999 => "4xxx",
        _ => "other",
    }
}
