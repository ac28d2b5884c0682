//! The constants of the control law, with their defaults and why. Validated by whoever reads a file; from here on
//! no checks.

use alloc::collections::BTreeMap;
use alloc::string::String;

use evenkeel_model::{Connections, Duration, FleetId, PerSecond, Ratio, Select};

/// Policy of one fleet.
#[derive(Debug, Clone, PartialEq)]
pub struct FleetConfig {
    /// Its name.
    pub id: FleetId,
    /// How terms become a score.
    pub score: ScoreConfig,
    /// How capacity is learned.
    pub capacity: CapacityConfig,
    /// When silence counts.
    pub health: HealthConfig,
    /// How fast a server admits and how gateways place.
    pub place: PlaceConfig,
    /// How connections leave.
    pub moves: MoveConfig,
    /// When servers start and stop; `None`: the set of servers is not ours to change.
    pub scale: Option<ScaleConfig>,
}

impl FleetConfig {
    /// All defaults.
    #[must_use]
    pub fn new(id: FleetId) -> Self {
        Self {
            id,
            score: ScoreConfig::default(),
            capacity: CapacityConfig::default(),
            health: HealthConfig::default(),
            place: PlaceConfig::default(),
            moves: MoveConfig::default(),
            scale: None,
        }
    }

    /// Divides every time of the control law by `speed` (> 0): the demo runs it at a multiple. Rates and
    /// network-bound times (health, pending placements) stay.
    #[must_use]
    pub fn at_speed(mut self, speed: f64) -> Self {
        let fast = |duration: &mut Duration| *duration = duration.div_f64(speed);
        fast(&mut self.score.tau);
        for duration in [
            &mut self.capacity.cost_window,
            &mut self.capacity.overload_after,
            &mut self.capacity.overload_release_after,
        ] {
            fast(duration);
        }
        fast(&mut self.health.act_after);
        fast(&mut self.place.slow_start);
        for duration in [
            &mut self.moves.soft,
            &mut self.moves.deadline,
            &mut self.moves.arrivals_window,
            &mut self.moves.shed_lasts,
            &mut self.moves.round,
        ] {
            fast(duration);
        }
        if let Some(scale) = &mut self.scale {
            for duration in [&mut scale.window, &mut scale.boot_time, &mut scale.round] {
                fast(duration);
            }
        }
        self
    }
}

/// How terms become a score: each value over its full mark, then combined.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreConfig {
    /// Largest term, or weighted sum.
    pub combine: Combine,
    /// CPU share that counts as full. Default 0.9: above it latency grows steeply.
    pub cpu_full: f64,
    /// Memory share that counts as full. Default 0.9.
    pub memory_full: f64,
    /// Event-loop lag that counts as full, in ms. Default 200: what a person notices.
    pub lag_full_ms: f64,
    /// Terms of the user's own by name; a reported name that is not listed counts with the default term.
    pub custom: BTreeMap<String, CustomTerm>,
    /// Time constant of averages kept for agents that send none. Default 10 s.
    pub tau: Duration,
}

impl Default for ScoreConfig {
    fn default() -> Self {
        Self {
            combine: Combine::Max,
            cpu_full: 0.9,
            memory_full: 0.9,
            lag_full_ms: 200.0,
            custom: BTreeMap::new(),
            tau: evenkeel_model::Average::TAU,
        }
    }
}

/// How the terms of a score are combined.
#[derive(Debug, Clone, PartialEq)]
pub enum Combine {
    /// The largest term: what fills up first decides.
    Max,
    /// Σ weight · term / Σ weight, over the terms present: the classical "connections plus CPU average".
    Sum {
        /// Weight by term name (`connections`, `cpu`, `memory`, `lag`, custom names); absent ones weigh 0.
        weights: BTreeMap<String, f64>,
    },
}

/// One term of the user's own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CustomTerm {
    /// Value that counts as full. Default 1.
    pub full: f64,
    /// Whether it falls as connections leave. Default true; an inelastic term never sheds nor scales.
    pub elastic: bool,
}

impl Default for CustomTerm {
    fn default() -> Self {
        Self { full: 1.0, elastic: true }
    }
}

/// How capacity is learned (simulated in the scenarios `cpu-noise` and `hot-server`).
#[derive(Debug, Clone, PartialEq)]
pub struct CapacityConfig {
    /// Capacity of a server that declares none. Default 10,000.
    pub assumed: Connections,
    /// Cost per connection is averaged over this. Default 10 min: the 10 s averages churn a fleet to pieces.
    pub cost_window: Duration,
    /// Below so many connections the declared capacity counts. Default 50: base cost dominates before.
    pub trust_from: Connections,
    /// So long at a score of `overload_release_below` + 0.2 puts an overload ceiling; twice as long half as far above
    /// it, and what is below is taken off again. Default 25 s: noise is shorter.
    pub overload_after: Duration,
    /// The ceiling is live · this / score. Default 0.85.
    pub overload_factor: f64,
    /// The ceiling goes when the score stays below this … Default 0.9.
    pub overload_release_below: f64,
    /// … for so long. Default 5 min.
    pub overload_release_after: Duration,
}

impl Default for CapacityConfig {
    fn default() -> Self {
        Self {
            assumed: Connections(10_000),
            cost_window: Duration::from_secs(600),
            trust_from: Connections(50),
            overload_after: Duration::from_secs(25),
            overload_factor: 0.85,
            overload_release_below: 0.9,
            overload_release_after: Duration::from_secs(300),
        }
    }
}

/// When silence counts.
#[derive(Debug, Clone, PartialEq)]
pub struct HealthConfig {
    /// Silence after which a server takes no placements. Default 1.5 s: one missed report plus jitter.
    pub suspect_after: Duration,
    /// Suspicion or death touches scale and drain only after so long. Default 30 s.
    pub act_after: Duration,
    /// Failed handshakes in a row that make a server dead. Default 3.
    pub dead_after: u32,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            suspect_after: Duration::from_millis(1_500),
            act_after: Duration::from_secs(30),
            dead_after: 3,
        }
    }
}

/// How fast a server admits and how gateways place.
#[derive(Debug, Clone, PartialEq)]
pub struct PlaceConfig {
    /// The rule.
    pub pick: PickRule,
    /// Placements per second that a server of mean capacity admits over all gateways; larger and smaller ones admit
    /// in proportion, a tenth to four times as many. Default 200.
    pub admit_per_s: PerSecond,
    /// Burst of the credit as time at the full rate, at least one placement. Default 100 ms.
    pub admit_burst: Duration,
    /// A new server's credit grows linearly over this. Default 30 s.
    pub slow_start: Duration,
    /// Where it starts. Default 0.1.
    pub slow_start_floor: Ratio,
    /// A placement without evidence is forgotten after this. Default 10 s.
    pub pending_ttl: Duration,
    /// Longest wait of a handshake for credit. Default 3 s.
    pub admission_wait: Duration,
    /// Most handshakes waiting at one gateway. Default 10,000; above: refused at once.
    pub admission_queue: usize,
}

impl Default for PlaceConfig {
    fn default() -> Self {
        Self {
            pick: PickRule::Auto,
            admit_per_s: PerSecond::new(200.0),
            admit_burst: Duration::from_millis(100),
            slow_start: Duration::from_secs(30),
            slow_start_floor: Ratio::new(0.1),
            pending_ttl: Duration::from_secs(10),
            admission_wait: Duration::from_secs(3),
            admission_queue: 10_000,
        }
    }
}

/// The placement rules by name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PickRule {
    /// The exact minimum with one gateway or up to 16 servers, else the sampled three.
    #[default]
    Auto,
    /// Lowest `(live + pending·G + 1) / target`.
    LeastUtilised,
    /// Lowest of two draws in proportion to target and the emptiest server remembered.
    Sampled,
    /// Lowest `(count + 1) / target`, an empty server counts 0, ties to the least recently changed.
    Leastconn,
    /// In turn. Switches rebalancing off.
    RoundRobin,
    /// In proportion to target, at random. Switches rebalancing off.
    Random,
}

/// A deviation from target, in connections: `max(ratio · target, sqrt · √target, min)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Band {
    /// Share of the target.
    pub ratio: f64,
    /// Multiple of the target's root: what chance alone causes.
    pub sqrt: f64,
    /// Connections.
    pub min: f64,
}

/// What happens when a drain's deadline passes and nothing can receive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeadlinePolicy {
    /// Wait until a receiver has room.
    #[default]
    Extend,
    /// Close at the fleet's pace all the same.
    Enforce,
}

/// How connections leave.
#[derive(Debug, Clone, PartialEq)]
pub struct MoveConfig {
    /// Moves and closes per second, whole fleet. Default 20.
    pub pace: PerSecond,
    /// A drain waits so long for clients to go by themselves. Default 5 s.
    pub soft: Duration,
    /// From the order of a drain to its enforced end. Default 10 min.
    pub deadline: Duration,
    /// What then happens without receivers.
    pub deadline_policy: DeadlinePolicy,
    /// Close code for ordinary clients. Default 1012, service restart.
    pub close_code: u16,
    /// Rebalancing starts when one open server deviates by more. Default max(15 %, 3·√target, 10).
    pub start: Band,
    /// It stops when all are within. Default max(5 %, √target, 3).
    pub stop: Band,
    /// A server bound by overload gives from this share over target. Default 0.05.
    pub overload_from: f64,
    /// Arrivals expected in so long are subtracted from what must move. Default 60 s.
    pub arrivals_window: Duration,
    /// An operator's `shed --to N` lasts so long. Default 10 min.
    pub shed_lasts: Duration,
    /// Which connections leave first. Default idle.
    pub select: Select,
    /// Time between rounds. Default 1 s.
    pub round: Duration,
}

impl Default for MoveConfig {
    fn default() -> Self {
        Self {
            pace: PerSecond::new(20.0),
            soft: Duration::from_secs(5),
            deadline: Duration::from_secs(600),
            deadline_policy: DeadlinePolicy::Extend,
            close_code: 1012,
            start: Band { ratio: 0.15, sqrt: 3.0, min: 10.0 },
            stop: Band { ratio: 0.05, sqrt: 1.0, min: 3.0 },
            overload_from: 0.05,
            arrivals_window: Duration::from_secs(60),
            shed_lasts: Duration::from_secs(600),
            select: Select::Idle,
            round: Duration::from_secs(1),
        }
    }
}

/// When servers start and stop.
#[derive(Debug, Clone, PartialEq)]
pub struct ScaleConfig {
    /// Never fewer. Default 1.
    pub min: u32,
    /// Never more. Default 10.
    pub max: u32,
    /// Up while `allot(D, this)` leaves anything unplaced. Default 0.75.
    pub up_level: Ratio,
    /// Up while `allot(D + buffer, this)` leaves anything unplaced. Default 0.95.
    pub up_buffer_level: Ratio,
    /// Down only if `allot(D, this)` stays whole without the victim. Default 0.60.
    pub down_level: Ratio,
    /// Down only if `allot(D + buffer, this)` stays whole without the victim. Default 0.90.
    pub down_buffer_level: Ratio,
    /// Buffer in connections; the larger of this and `buffer_ratio · D`. Default 0.
    pub buffer: Connections,
    /// Buffer as a share of demand. Default 0.1.
    pub buffer_ratio: f64,
    /// Down only if it would have been whole for so long. Default 10 min.
    pub window: Duration,
    /// Most servers started in one round. Default 4.
    pub step_max: u32,
    /// Boot time assumed until one was measured. Default 30 s.
    pub boot_time: Duration,
    /// Failed boots in a row that stop creation. Default 3.
    pub failed_boots_max: u32,
    /// Time between rounds. Default 5 s.
    pub round: Duration,
    /// Decide and explain, start and stop nothing. Default false.
    pub dry_run: bool,
}

impl Default for ScaleConfig {
    fn default() -> Self {
        Self {
            min: 1,
            max: 10,
            up_level: Ratio::new(0.75),
            up_buffer_level: Ratio::new(0.95),
            down_level: Ratio::new(0.60),
            down_buffer_level: Ratio::new(0.90),
            buffer: Connections::ZERO,
            buffer_ratio: 0.1,
            window: Duration::from_secs(600),
            step_max: 4,
            boot_time: Duration::from_secs(30),
            failed_boots_max: 3,
            round: Duration::from_secs(5),
            dry_run: false,
        }
    }
}
