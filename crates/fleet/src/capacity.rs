//! Learns how many connections a server would hold at score 1.
//!
//! In: one [`Sample`] a round, the declared capacity, one [`CapacityConfig`]. Out: a capacity that moves slowly, an
//! overload ceiling that acts fast but only when sustained, and an inelastic pin for a term that does not fall as
//! connections leave. Invariants: never above what was declared; a server holding next to nothing is taken at its
//! word; one loud sample changes nothing.
//! Elsewhere: the terms (`score`), what the ceilings do (`allot`).

use evenkeel_model::{Average, Connections, Duration, Instant};

use crate::allot::{Cause, Ceiling, TermKind};
use crate::config::CapacityConfig;

/// A busyness and the term it comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Which term is the largest.
    pub kind: TermKind,
    /// Share of the full mark.
    pub value: f64,
    /// Whether the measure is at its end, so that the load behind it may be larger.
    pub saturated: bool,
}

/// What one server showed in one round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Connections it held.
    pub connections: Connections,
    /// What its connections cost: see [`crate::score::load`].
    pub load: Option<Load>,
    /// The largest term that does not fall as connections leave.
    pub inelastic: Option<Load>,
}

/// What a server says it can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// It or its configuration declared it: a prior worth a whole cost window.
    Declared(Connections),
    /// Nobody did: a guess that gives way as soon as something was measured.
    Assumed(Connections),
}

impl Claim {
    /// The number.
    #[must_use]
    pub const fn connections(self) -> Connections {
        match self {
            Self::Declared(connections) | Self::Assumed(connections) => connections,
        }
    }
}

/// Learns the capacity of one life of one server.
#[derive(Debug, Clone, PartialEq)]
pub struct Learner {
    last: Option<Instant>,
    base: Average,
    cost: Cost,
    /// Time for which there was nothing to learn from, that in which there was since taken off: what was learned gives way
    /// to the claim as slowly as it came, else a server whose learned share is small would swing across the line.
    doubt: Duration,
    above: Sustained,
    below: Sustained,
    overload: Option<Overload>,
    inelastic: Option<TermKind>,
}

/// Cost per connection as a ratio of two averages over the same time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Cost {
    load: f64,
    connections: f64,
    over: Duration,
    /// Set from a sustained overload: proven, so the declared capacity has no say any more.
    proven: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Overload {
    ceiling: Ceiling,
    kind: TermKind,
    /// Count and load when it began, to see whether the load follows the count.
    began: (Connections, f64),
}

/// How far and how long a load has been above a line, as time: what was below it is taken off again, so noise that
/// dips delays a verdict and does not restart it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sustained {
    held: Duration,
    sum: f64,
    samples: u32,
    /// Whether the measure was at its end in that time.
    saturated: bool,
}

impl Sustained {
    /// Takes a load for `elapsed`, which weighs as much as `load` is away from `line`: once at `line` + `unit` and
    /// never more above it, so that no single sample is a verdict.
    fn weigh(&mut self, load: Load, line: f64, unit: f64, elapsed: Duration) {
        let weight = (load.value - line) / unit;
        let (more, less) = (elapsed.mul_f64(weight.clamp(0.0, 1.0)), elapsed.mul_f64((-weight).max(0.0)));
        self.take(weight > 0.0, more, less, load);
    }

    /// Takes whether it holds for `elapsed`; twice the time it does not is taken off.
    fn update(&mut self, holds: bool, load: Load, elapsed: Duration) {
        self.take(holds, elapsed, 2 * elapsed, load);
    }

    fn take(&mut self, holds: bool, more: Duration, less: Duration, load: Load) {
        self.held = if holds { self.held + more } else { self.held.saturating_sub(less) };
        if self.held.is_zero() {
            *self = Self::default();
        } else {
            self.sum += load.value;
            self.samples += 1;
            self.saturated |= load.saturated;
        }
    }

    fn mean(&self) -> f64 {
        self.sum / f64::from(self.samples.max(1))
    }
}

/// A load that nobody reports counts for nothing.
const UNKNOWN: Load = Load { kind: TermKind::Connections, value: 0.0, saturated: false };
/// Longest time one sample stands for: after a silence the time between is unknown.
const STEP_MAX: Duration = Duration::from_secs(5);
/// A base cost above this is no base: the server was busy with something else while it was empty.
const BASE_MAX: f64 = 0.5;
/// An inelastic term pins from 1 and lets go below this.
const INELASTIC_RELEASE: f64 = 0.95;
/// A load this far above the line from which an overload counts lets the time pass as it is. A CPU that can do no
/// more shows 1 / 0.9 of its full mark, this far above the line 0.9.
const OVERLOAD_UNIT: f64 = 0.2;
/// A load that keeps this share of itself …
const STUCK_LOAD: f64 = 0.97;
/// … after the count fell to this share is not caused by connections.
const STUCK_COUNT: f64 = 0.9;
/// The same for a measure at its end, which stays there until the work falls below what can be done: a server whose
/// connections became twice as costly at a level of 0.75 must lose a third before its CPU shows it.
const STUCK_COUNT_SATURATED: f64 = 0.5;

impl Learner {
    /// A learner that knows nothing but the claim.
    #[must_use]
    pub fn new(config: &CapacityConfig) -> Self {
        Self {
            last: None,
            base: Average::new(config.overload_after),
            cost: Cost::default(),
            doubt: Duration::ZERO,
            above: Sustained::default(),
            below: Sustained::default(),
            overload: None,
            inelastic: None,
        }
    }

    /// Takes the sample of one round. Says the overload that it began, if it did.
    pub fn observe(&mut self, sample: Sample, now: Instant, config: &CapacityConfig) -> Option<Ceiling> {
        let elapsed = self.last.map_or(Duration::ZERO, |last| now.since(last).min(STEP_MAX));
        self.last = Some(now);
        self.pin(sample);
        if sample.connections < config.trust_from || sample.load.is_none() {
            self.doubt = (self.doubt + elapsed).min(config.cost_window);
            if self.doubt == config.cost_window {
                self.cost = Cost::default();
            }
        } else {
            self.doubt = self.doubt.saturating_sub(elapsed);
        }
        let Some(load) = sample.load else {
            return self.judge(sample.connections, UNKNOWN, elapsed, config);
        };
        if sample.connections.get() <= config.trust_from.get() / 10 {
            self.base.update(load.value, now);
        }
        if sample.connections >= config.trust_from && self.inelastic != Some(load.kind) {
            self.learn(load.value - self.base_cost(), sample.connections, elapsed, config);
        }
        self.judge(sample.connections, load, elapsed, config)
    }

    /// Connections it would hold at score 1.
    #[must_use]
    pub fn capacity(&self, claim: Claim, config: &CapacityConfig) -> Connections {
        let claimed = claim.connections();
        let settled = self.cost.proven || self.cost.over >= config.overload_after;
        if !settled || self.cost.load <= 0.0 {
            return claimed;
        }
        let learned = (1.0 - self.base_cost()) * self.cost.connections / self.cost.load;
        let weight = match claim {
            Claim::Declared(_) if !self.cost.proven => {
                (self.cost.over.as_secs_f64() / config.cost_window.as_secs_f64().max(1e-9)).min(1.0)
            }
            _ => 1.0,
        };
        let trust = 1.0 - self.doubt.as_secs_f64() / config.cost_window.as_secs_f64().max(1e-9);
        let claimed_f = f64::from(claimed.get());
        // Between the two by ratio: halving and doubling weigh the same.
        let between = claimed_f * libm::pow((learned / claimed_f.max(1.0)).max(1e-9), weight * trust);
        Connections((between.min(claimed_f) as u32).max(1)).min(claimed)
    }

    /// Its overload ceiling or its inelastic pin.
    #[must_use]
    pub fn ceiling(&self, live: Connections) -> Option<Ceiling> {
        match (self.inelastic, self.overload) {
            (Some(kind), _) => Some(Ceiling { at_most: live, cause: Cause::Inelastic(kind) }),
            (None, overload) => overload.map(|overload| overload.ceiling),
        }
    }

    fn base_cost(&self) -> f64 {
        self.base.value().unwrap_or(0.0).clamp(0.0, BASE_MAX)
    }

    /// Running means until the window is full, then decayed ones.
    fn learn(&mut self, load: f64, connections: Connections, elapsed: Duration, config: &CapacityConfig) {
        let cost = &mut self.cost;
        cost.over = (cost.over + elapsed).min(config.cost_window);
        let weight = if cost.connections == 0.0 {
            1.0
        } else {
            (elapsed.as_secs_f64() / cost.over.as_secs_f64().max(1e-9)).min(1.0)
        };
        cost.load += (load.max(0.0) - cost.load) * weight;
        cost.connections += (f64::from(connections.get()) - cost.connections) * weight;
    }

    fn judge(
        &mut self,
        live: Connections,
        load: Load,
        elapsed: Duration,
        config: &CapacityConfig,
    ) -> Option<Ceiling> {
        if self.inelastic == Some(load.kind) {
            self.above = Sustained::default();
            return None;
        }
        self.above.weigh(load, config.overload_release_below, OVERLOAD_UNIT, elapsed);
        if let Some(overload) = self.overload {
            self.below.update(load.value < config.overload_release_below, load, elapsed);
            if self.below.held >= config.overload_release_after {
                self.overload = None;
                self.below = Sustained::default();
            } else if self.above.held >= config.overload_after && self.is_stuck(overload, live, load) {
                self.inelastic = Some(overload.kind);
                self.overload = None;
                self.cost = Cost::default();
                return None;
            }
        }
        if self.above.held < config.overload_after || live < config.trust_from {
            return None;
        }
        self.overload(live, load.kind, config)
    }

    /// Whether the load stayed although the connections left. A measure that was at its end at any time since it rose
    /// may have had more work behind it.
    fn is_stuck(&self, overload: Overload, live: Connections, load: Load) -> bool {
        let (count, value) = overload.began;
        let share = if self.above.saturated { STUCK_COUNT_SATURATED } else { STUCK_COUNT };
        load.kind == overload.kind
            && f64::from(live.get()) <= share * f64::from(count.get())
            && load.value >= STUCK_LOAD * value
    }

    /// Sets the ceiling and restarts the cost from the fast estimate. Says the ceiling when it is new.
    fn overload(&mut self, live: Connections, kind: TermKind, config: &CapacityConfig) -> Option<Ceiling> {
        let mean = self.above.mean().max(1.0);
        let at_most = Connections((f64::from(live.get()) * config.overload_factor / mean) as u32);
        let ceiling = Ceiling { at_most, cause: Cause::Overload(kind) };
        let is_new = self.overload.is_none();
        let began = self.overload.map_or((live, mean), |overload| overload.began);
        self.overload = Some(Overload { ceiling, kind, began });
        self.cost = Cost {
            load: (mean - self.base_cost()).max(0.0),
            connections: f64::from(live.get()),
            over: config.overload_after,
            proven: true,
        };
        self.above = Sustained::default();
        self.below = Sustained::default();
        is_new.then_some(ceiling)
    }

    /// Memory and other inelastic terms pin from full on; a term found inelastic lets go when it falls by itself.
    fn pin(&mut self, sample: Sample) {
        let full = sample.inelastic.filter(|load| load.value >= 1.0);
        self.inelastic = match (self.inelastic, full) {
            (None, full) => full.map(|load| load.kind),
            (Some(kind), _) => {
                let shown =
                    [sample.inelastic, sample.load].into_iter().flatten().find(|load| load.kind == kind);
                shown.is_some_and(|load| load.value >= INELASTIC_RELEASE).then_some(kind)
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(value: f64) -> Option<Load> {
        Some(Load { kind: TermKind::Cpu, value, saturated: false })
    }

    /// Feeds one sample a second for `seconds`; `load` of the second and the count.
    struct Server {
        learner: Learner,
        config: CapacityConfig,
        second: u64,
    }

    impl Server {
        fn new() -> Self {
            let config = CapacityConfig::default();
            Self { learner: Learner::new(&config), config, second: 0 }
        }

        fn run(&mut self, seconds: u64, connections: u32, load: impl Fn(u64) -> f64) -> Option<Ceiling> {
            let mut began = None;
            for _ in 0..seconds {
                self.second += 1;
                let sample = Sample {
                    connections: Connections(connections),
                    load: cpu(load(self.second)),
                    inelastic: None,
                };
                let now = Instant::from_millis(self.second * 1_000);
                began = began.or(self.learner.observe(sample, now, &self.config));
            }
            began
        }

        fn capacity(&self, claim: Claim) -> u32 {
            self.learner.capacity(claim, &self.config).get()
        }
    }

    const DECLARED: Claim = Claim::Declared(Connections(1_000));
    const ASSUMED: Claim = Claim::Assumed(Connections(10_000));

    #[test]
    fn a_nearly_empty_server_is_taken_at_its_word() {
        let mut server = Server::new();
        server.run(600, 49, |_| 0.9);
        assert_eq!(server.capacity(DECLARED), 1_000);
    }

    #[test]
    fn cost_per_connection_decides_after_a_whole_window() {
        let mut server = Server::new();
        server.run(700, 400, |_| 0.8);
        assert_eq!(server.capacity(DECLARED), 500);
    }

    #[test]
    fn an_assumed_capacity_gives_way_as_soon_as_cost_was_measured() {
        let mut server = Server::new();
        server.run(40, 400, |_| 0.8);
        assert_eq!(server.capacity(ASSUMED), 500);
        assert!(server.capacity(DECLARED) > 900, "a declared one is worth the whole window");
    }

    #[test]
    fn capacity_never_passes_what_was_declared() {
        let mut server = Server::new();
        server.run(700, 400, |_| 0.01);
        assert_eq!(server.capacity(DECLARED), 1_000);
    }

    #[test]
    fn base_cost_of_an_empty_server_is_not_charged_to_connections() {
        let mut server = Server::new();
        server.run(120, 0, |_| 0.2);
        // 0.2 base and 0.4 for 400 connections: 0.8 is left for 800.
        server.run(700, 400, |_| 0.6);
        let capacity = server.capacity(ASSUMED);
        assert!((790..=810).contains(&capacity), "{capacity}");
    }

    #[test]
    fn what_was_learned_gives_way_slowly_while_a_server_holds_too_few_to_learn_from() {
        let mut server = Server::new();
        server.run(700, 400, |_| 0.8);
        let mut before = server.capacity(DECLARED);
        for _ in 0..60 {
            server.run(10, 40, |_| 0.5);
            let now = server.capacity(DECLARED);
            assert!(now >= before && now <= before + 12, "a little at a time: {before} {now}");
            before = now;
        }
        assert_eq!(server.capacity(DECLARED), 1_000);
    }

    #[test]
    fn an_overload_of_which_nothing_is_reported_any_more_ends() {
        let mut server = Server::new();
        server.run(40, 600, |_| 1.2);
        for second in 41..400 {
            let sample = Sample { connections: Connections(400), load: None, inelastic: None };
            server.learner.observe(sample, Instant::from_millis(second * 1_000), &server.config);
        }
        assert_eq!(server.learner.ceiling(Connections(400)), None);
    }

    #[test]
    fn noise_across_the_line_puts_no_ceiling() {
        let mut server = Server::new();
        // Above 1 for ten seconds of every thirty.
        assert_eq!(server.run(3_600, 500, |s| if s % 30 < 10 { 1.2 } else { 0.5 }), None);
        assert_eq!(server.learner.ceiling(Connections(500)), None);
    }

    #[test]
    fn sustained_overload_puts_a_ceiling_and_restarts_the_cost() {
        let mut server = Server::new();
        server.run(1_200, 600, |_| 0.6);
        assert_eq!(server.capacity(DECLARED), 1_000);
        assert_eq!(server.run(15, 600, |_| 1.2), None);
        let ceiling = server.run(10, 600, |_| 1.2).expect("above for 25 s");
        assert_eq!(ceiling, Ceiling { at_most: Connections(425), cause: Cause::Overload(TermKind::Cpu) });
        assert_eq!(server.capacity(DECLARED), 500);
    }

    #[test]
    fn overload_ends_after_five_quiet_minutes() {
        let mut server = Server::new();
        server.run(40, 600, |_| 1.2);
        server.run(299, 400, |_| 0.8);
        assert!(server.learner.ceiling(Connections(400)).is_some());
        server.run(5, 400, |_| 0.8);
        assert_eq!(server.learner.ceiling(Connections(400)), None);
    }

    #[test]
    fn a_load_that_stays_while_connections_leave_is_inelastic_and_sheds_no_more() {
        let mut server = Server::new();
        server.run(40, 600, |_| 1.2);
        assert_eq!(server.learner.ceiling(Connections(600)).unwrap().cause, Cause::Overload(TermKind::Cpu));
        server.run(40, 500, |_| 1.2);
        let pin = server.learner.ceiling(Connections(500)).unwrap();
        assert_eq!(pin, Ceiling { at_most: Connections(500), cause: Cause::Inelastic(TermKind::Cpu) });
        assert_eq!(server.capacity(DECLARED), 1_000, "it says nothing about connections");
        server.run(5, 500, |_| 0.5);
        assert_eq!(server.learner.ceiling(Connections(500)), None);
    }

    #[test]
    fn a_saturated_cpu_is_not_inelastic_because_it_stays_full_at_first() {
        let mut server = Server::new();
        let full = |connections| Sample {
            connections: Connections(connections),
            load: Some(Load { kind: TermKind::Cpu, value: 1.11, saturated: true }),
            inelastic: None,
        };
        let mut run = |connections: u32| {
            for _ in 0..40 {
                server.second += 1;
                let now = Instant::from_millis(server.second * 1_000);
                server.learner.observe(full(connections), now, &server.config);
            }
            server.learner.ceiling(Connections(connections)).unwrap().cause
        };
        assert_eq!(run(600), Cause::Overload(TermKind::Cpu));
        assert_eq!(
            run(450),
            Cause::Overload(TermKind::Cpu),
            "the work behind it may still be more than full"
        );
        assert_eq!(run(290), Cause::Inelastic(TermKind::Cpu), "half is gone and nothing fell");
    }

    #[test]
    fn a_cpu_that_was_full_and_dips_for_a_moment_is_not_inelastic() {
        let mut server = Server::new();
        let mut run = |seconds: u64, connections: u32, value: f64| {
            for _ in 0..seconds {
                server.second += 1;
                let load = Some(Load { kind: TermKind::Cpu, value, saturated: value >= 1.06 });
                let sample = Sample { connections: Connections(connections), load, inelastic: None };
                server.learner.observe(sample, Instant::from_millis(server.second * 1_000), &server.config);
            }
            server.learner.ceiling(Connections(connections)).unwrap().cause
        };
        assert_eq!(run(30, 600, 1.08), Cause::Overload(TermKind::Cpu));
        run(20, 520, 1.1);
        assert_eq!(run(10, 500, 1.055), Cause::Overload(TermKind::Cpu), "it was full a moment ago");
    }

    #[test]
    fn one_loud_sample_puts_no_ceiling() {
        let mut server = Server::new();
        server.run(60, 600, |_| 0.5);
        assert_eq!(server.run(1, 600, |_| 40.0), None);
        assert_eq!(server.run(60, 600, |_| 0.5), None);
    }

    #[test]
    fn full_memory_stops_admission_and_never_sheds() {
        let config = CapacityConfig::default();
        let mut learner = Learner::new(&config);
        let memory = |value| Sample {
            connections: Connections(500),
            load: cpu(0.5),
            inelastic: Some(Load { kind: TermKind::Memory, value, saturated: false }),
        };
        learner.observe(memory(1.0), Instant::from_millis(1_000), &config);
        let pin = learner.ceiling(Connections(500)).unwrap();
        assert_eq!(pin.cause, Cause::Inelastic(TermKind::Memory));
        learner.observe(memory(0.96), Instant::from_millis(2_000), &config);
        assert!(learner.ceiling(Connections(500)).is_some());
        learner.observe(memory(0.94), Instant::from_millis(3_000), &config);
        assert_eq!(learner.ceiling(Connections(500)), None);
    }
}
