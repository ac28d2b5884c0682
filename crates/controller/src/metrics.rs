//! What the controller counts. Names are in `evenkeel_runtime::metrics::names`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use evenkeel_fleet::controller::{Event, ServerStatus};
use evenkeel_fleet::snapshot::Health;
use evenkeel_model::{Duration, FleetId, Instant, State};
use evenkeel_runtime::metrics::{Registry, Unit, names};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::status::FleetStatus;

type Labels = Vec<(&'static str, String)>;
type Counters = Family<Labels, Counter>;

/// A step in the life of a server process.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ProcessStep {
    Started,
    Adopted,
    Exited,
    Failed,
    Stopped,
}

impl ProcessStep {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Adopted => "adopted",
            Self::Exited => "exited",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

/// All counters and gauges of a controller. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    moves: Counters,
    orders: Counters,
    events: Counters,
    reports: Counters,
    restarts: Counters,
    dropped: Counters,
    processes: Counters,
    rounds: Family<Labels, Histogram, fn() -> Histogram>,
    statuses: Statuses,
}

impl Metrics {
    /// Registers everything.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        fn counters(registry: &mut Registry, name: &str, help: &str) -> Counters {
            let counters = Counters::default();
            registry.register(name, help, counters.clone());
            counters
        }
        let rounds = Family::new_with_constructor(round_histogram as fn() -> Histogram);
        let statuses = Statuses::default();
        let metrics = Self {
            moves: counters(registry, names::CONTROLLER_MOVES, "Moves that agents reported, by result"),
            orders: counters(registry, names::CONTROLLER_ORDERS, "Orders of operators, by order and result"),
            events: counters(registry, names::CONTROLLER_EVENTS, "Events, by kind"),
            reports: counters(registry, names::CONTROLLER_REPORTS, "Reports of servers, by outcome"),
            restarts: counters(registry, names::CONTROLLER_RESTARTS, "Restarts of a fleet's task, by cause"),
            dropped: counters(registry, names::CONTROLLER_DROPPED, "Inputs dropped because a queue was full"),
            processes: counters(registry, names::CONTROLLER_PROCESSES, "Steps of server processes"),
            rounds: rounds.clone(),
            statuses: statuses.clone(),
        };
        registry.register_with_unit(
            names::CONTROLLER_ROUND_DURATION,
            "Time one round takes",
            Unit::Seconds,
            rounds,
        );
        registry.register_collector(Box::new(statuses));
        metrics
    }

    pub(crate) fn moved(&self, fleet: &FleetId, result: &'static str) {
        self.moves.get_or_create(&labels(fleet, &[("result", result)])).inc();
    }

    pub(crate) fn ordered(&self, fleet: &FleetId, order: &'static str, result: &'static str) {
        self.orders.get_or_create(&labels(fleet, &[("order", order), ("result", result)])).inc();
    }

    pub(crate) fn event(&self, fleet: &FleetId, event: &Event) {
        self.events.get_or_create(&labels(fleet, &[("kind", event.kind)])).inc();
    }

    pub(crate) fn reported(&self, fleet: &FleetId, outcome: &'static str) {
        self.reports.get_or_create(&labels(fleet, &[("outcome", outcome)])).inc();
    }

    pub(crate) fn restarted(&self, fleet: &FleetId, cause: &'static str) {
        self.restarts.get_or_create(&labels(fleet, &[("cause", cause)])).inc();
    }

    pub(crate) fn dropped(&self, fleet: &FleetId, what: &'static str) {
        self.dropped.get_or_create(&labels(fleet, &[("what", what)])).inc();
    }

    pub(crate) fn process(&self, fleet: &FleetId, step: ProcessStep) {
        self.processes.get_or_create(&labels(fleet, &[("step", step.as_str())])).inc();
    }

    pub(crate) fn round(&self, fleet: &FleetId, took: Duration) {
        self.rounds.get_or_create(&labels(fleet, &[])).observe(took.as_secs_f64());
    }

    /// What the gauges show from now on.
    pub(crate) fn show(&self, statuses: Vec<Arc<FleetStatus>>, now: Instant) {
        *self.statuses.lock() = Shown { statuses, at: Some(now) };
    }

    /// Whether what the gauges show was taken after that time.
    pub(crate) fn shown_since(&self, time: Instant) -> bool {
        self.statuses.lock().at.is_some_and(|at| at > time)
    }
}

fn labels(fleet: &FleetId, more: &[(&'static str, &'static str)]) -> Labels {
    let more = more.iter().map(|(name, value)| (*name, (*value).to_owned()));
    [("fleet", fleet.to_string())].into_iter().chain(more).collect()
}

fn round_histogram() -> Histogram {
    // 10 µs to 0.3 s: the goal is 10 ms for 10,000 servers.
    Histogram::new(exponential_buckets(10e-6, 2.0, 15))
}

/// Gauges of servers, taken from the fleets when somebody asks for `/metrics`, at most once a second: one consistent
/// view, and nothing of servers that are gone.
#[derive(Debug, Clone, Default)]
struct Statuses(Arc<Mutex<Shown>>);

#[derive(Debug, Default)]
struct Shown {
    statuses: Vec<Arc<FleetStatus>>,
    at: Option<Instant>,
}

impl Statuses {
    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Statuses {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let fleets = self.lock().statuses.clone();
        type Gauge = (&'static str, &'static str, fn(&ServerStatus) -> f64);
        let gauges: [Gauge; 4] = [
            (names::CONTROLLER_SERVER_CONNECTIONS, "Connections held.", |s| s.connections.get().into()),
            (names::CONTROLLER_SERVER_TARGET, "Connections it should hold.", |s| s.target.as_f64()),
            (names::CONTROLLER_SERVER_SCORE, "How busy: 0 idle, 1 full.", |s| s.score.value.get()),
            (names::CONTROLLER_SERVER_CAPACITY, "Connections it would hold at score 1.", |s| {
                s.capacity.get().into()
            }),
        ];
        for (name, help, value) in gauges {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (fleet, server) in
                fleets.iter().flat_map(|f| f.servers.iter().map(move |server| (&f.fleet, server)))
            {
                let labels = [("fleet", fleet.as_str()), ("server", server.id.as_str())];
                ConstGauge::new(value(server)).encode(family.encode_family(&labels)?)?;
            }
        }
        let mut states = encoder.encode_descriptor(
            names::CONTROLLER_SERVERS,
            "Servers by state.",
            None,
            MetricType::Gauge,
        )?;
        for fleet in &fleets {
            for state in STATES {
                let count = fleet.servers.iter().filter(|server| server.state == state).count();
                let labels = [("fleet", fleet.fleet.as_str()), ("state", state.as_str())];
                ConstGauge::new(count as f64).encode(states.encode_family(&labels)?)?;
            }
        }
        let (name, help) = (names::CONTROLLER_SERVERS_BY_HEALTH, "Servers by health.");
        let mut healths = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for fleet in &fleets {
            for health in [Health::Ok, Health::Suspect, Health::Dead] {
                let count = fleet.servers.iter().filter(|server| server.health == health).count();
                let labels = [("fleet", fleet.fleet.as_str()), ("health", health.as_str())];
                ConstGauge::new(count as f64).encode(healths.encode_family(&labels)?)?;
            }
        }
        let mut agents =
            encoder.encode_descriptor(names::CONTROLLER_AGENTS, "Agents linked.", None, MetricType::Gauge)?;
        for fleet in &fleets {
            let labels = [("fleet", fleet.fleet.as_str())];
            ConstGauge::new(fleet.agents as f64).encode(agents.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

const STATES: [State; 6] =
    [State::Starting, State::Active, State::Cordoned, State::Draining, State::Drained, State::Stopped];
