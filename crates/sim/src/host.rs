//! A simulated server: its agent, its connections as counts, its CPU.

use std::collections::VecDeque;
use std::time::Duration;

use evenkeel_model::{Connections, Fence, Incarnation, Instant, Measures, Rng, ServerId, Totals};
use evenkeel_protocol::agent::{Agent, AgentConfig, Held};
use evenkeel_protocol::message::Profile;

use crate::chance;
use crate::scenario::Cpu;

/// Accepts are counted over this, as the figures of the product are.
pub(crate) const PEAK_OVER: Duration = Duration::from_millis(500);

/// CPU share that counts as full by default.
pub(crate) const CPU_FULL: f64 = 0.9;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// It works.
    Up,
    /// It does nothing, and keeps its sockets.
    Frozen,
    /// There is no process.
    Down,
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) id: ServerId,
    pub(crate) capacity: u32,
    /// Counts its processes.
    pub(crate) life: u64,
    pub(crate) status: Status,
    pub(crate) agent: Agent,
    /// Connections by gateway.
    pub(crate) held: Vec<u32>,
    pub(crate) sinkhole: bool,
    /// Messages that arrived while it was frozen.
    pub(crate) inbox: Vec<String>,
    pub(crate) frozen_at: Instant,
    pub(crate) wake_at: Option<Instant>,
    pub(crate) up_until: Instant,
    pub(crate) down_until: Instant,
    /// Highest order it obeyed, over all lives.
    pub(crate) obeyed: Option<Fence>,
    /// Most accepts in any window since counting began.
    pub(crate) peak: u32,
    pub(crate) accepted: u64,
    /// When it joined, if it was not there from the start.
    pub(crate) joined: Option<Instant>,
    totals: Totals,
    /// Accepts of the last window.
    recent: VecDeque<Instant>,
    /// Connections by the second they were accepted in, those of the last minutes.
    young: VecDeque<(u64, u32)>,
    cost: f64,
    base: f64,
    noise: Noise,
    measured_at: Instant,
    /// CPU time of work that waits.
    backlog_s: f64,
}

#[derive(Debug)]
struct Noise {
    level: f64,
    deviation: f64,
    correlation: Duration,
    at: Instant,
    rng: Rng,
}

impl Host {
    pub(crate) fn new(
        id: ServerId,
        capacity: u32,
        gateways: u32,
        cpu: &Cpu,
        mut rng: Rng,
        now: Instant,
    ) -> Self {
        let spread = 1.0 + cpu.spread * (2.0 * rng.unit() - 1.0);
        let cost = cpu.cost * spread;
        let capacity = if cpu.declared && cost > 0.0 {
            capacity.min(((CPU_FULL - cpu.base) / cost).max(1.0) as u32)
        } else {
            capacity
        };
        let noise = Noise {
            level: 0.0,
            deviation: cpu.noise,
            correlation: cpu.correlation,
            at: now,
            rng: rng.fork(1),
        };
        Self {
            agent: agent(&id, capacity, 1, rng.fork(2), now),
            id,
            capacity,
            life: 1,
            status: Status::Up,
            held: vec![0; gateways as usize],
            sinkhole: false,
            inbox: Vec::new(),
            frozen_at: now,
            wake_at: None,
            up_until: now,
            down_until: now,
            obeyed: None,
            peak: 0,
            accepted: 0,
            joined: None,
            totals: Totals::default(),
            recent: VecDeque::new(),
            young: VecDeque::new(),
            cost,
            base: cpu.base,
            noise,
            measured_at: now,
            backlog_s: 0.0,
        }
    }

    /// Connections it holds.
    pub(crate) fn total(&self) -> u32 {
        self.held.iter().sum()
    }

    pub(crate) fn utilisation(&self) -> f64 {
        f64::from(self.total()) / f64::from(self.capacity.max(1))
    }

    /// A new process with a higher incarnation and no connections.
    pub(crate) fn revive(&mut self, mut rng: Rng, now: Instant) {
        self.life += 1;
        self.status = Status::Up;
        self.agent = agent(&self.id, self.capacity, self.life, rng.fork(2), now);
        self.held.iter_mut().for_each(|held| *held = 0);
        self.young.clear();
        self.inbox.clear();
        self.totals = Totals::default();
        self.wake_at = None;
        (self.measured_at, self.backlog_s) = (now, 0.0);
        // The fence is the controller's to keep over lives; a process starts without one.
        self.obeyed = None;
    }

    pub(crate) fn accept(&mut self, gateway: usize, now: Instant) {
        self.held[gateway] += 1;
        self.accepted += 1;
        self.totals.accepted += 1;
        self.recent.push_back(now);
        while self.recent.front().is_some_and(|at| now.since(*at) >= PEAK_OVER) {
            self.recent.pop_front();
        }
        self.peak = self.peak.max(self.recent.len() as u32);
        let second = now.as_millis() / 1_000;
        match self.young.back_mut() {
            Some((last, count)) if *last == second => *count += 1,
            _ => self.young.push_back((second, 1)),
        }
    }

    /// Ends one connection of a gateway; how long it had lasted, as near as counts can tell.
    pub(crate) fn release(&mut self, gateway: usize, age: Age, now: Instant, rng: &mut Rng) -> Duration {
        self.forget_old(now);
        let young: u32 = self.young.iter().map(|(_, count)| count).sum();
        let total = self.total();
        debug_assert!(self.held[gateway] > 0 && young <= total);
        self.held[gateway] -= 1;
        self.totals.closed += 1;
        let nth = match age {
            Age::Any => Some(rng.below(u64::from(total)) as u32).filter(|nth| *nth < young),
            Age::Newest => young.checked_sub(1),
            // The oldest that are told apart, once the others are gone.
            Age::Old => (young == total && young > 0).then_some(0),
        };
        let Some(second) = nth.and_then(|nth| self.take_young(nth)) else { return KEPT };
        now.since(Instant::from_millis(second * 1_000))
    }

    fn take_young(&mut self, mut nth: u32) -> Option<u64> {
        for (second, count) in &mut self.young {
            if nth < *count {
                *count -= 1;
                return Some(*second);
            }
            nth -= *count;
        }
        None
    }

    /// Connections that are at least that old.
    pub(crate) fn older_than(&mut self, age: Duration, now: Instant) -> u32 {
        self.forget_old(now);
        let limit = (now - age).as_millis();
        let younger: u32 = self
            .young
            .iter()
            .filter(|(second, _)| (second + 1) * 1_000 > limit)
            .map(|(_, count)| count)
            .sum();
        self.total().saturating_sub(younger)
    }

    fn forget_old(&mut self, now: Instant) {
        let limit = (now - KEPT).as_millis() / 1_000;
        while self.young.front().is_some_and(|(second, count)| *second < limit || *count == 0) {
            self.young.pop_front();
        }
    }

    pub(crate) fn counts(&self) -> Held {
        Held {
            connections: Connections(self.total()),
            closing: Connections::ZERO,
            arriving: Connections::ZERO,
            movable: Connections::ZERO,
            totals: self.totals,
        }
    }

    pub(crate) fn costs(&mut self, times: f64) {
        self.cost *= times;
    }

    /// CPU share without noise.
    pub(crate) fn load(&self) -> Option<f64> {
        (self.cost > 0.0 || self.base > 0.0).then(|| self.base + self.cost * f64::from(self.total()))
    }

    /// What it measured since it last did. A CPU does no more than it can; what comes above that waits, and is
    /// done when less comes.
    pub(crate) fn measure(&mut self, now: Instant) -> Measures {
        /// Work that waits longer is given up: clients no longer want it.
        const BACKLOG_MAX_S: f64 = 2.0;
        let passed = now.since(self.measured_at).as_secs_f64();
        self.measured_at = now;
        let noise = self.noise.next(now);
        let cpu = self.load().filter(|_| passed > 0.0).map(|load| {
            let work = load * (1.0 + noise).max(0.0) * passed + self.backlog_s;
            let done = work.min(passed);
            self.backlog_s = (work - done).min(BACKLOG_MAX_S);
            done / passed
        });
        Measures { cpu, ..Measures::default() }
    }
}

/// Connections are told apart by age up to this.
const KEPT: Duration = Duration::from_secs(600);

/// Which connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Age {
    /// Each is as likely.
    Any,
    /// The last accepted.
    Newest,
    /// An old one.
    Old,
}

impl Noise {
    /// Ornstein–Uhlenbeck: keeps its deviation, forgets over the correlation time.
    fn next(&mut self, now: Instant) -> f64 {
        let kept = (-now.since(self.at).as_secs_f64() / self.correlation.as_secs_f64().max(1e-3)).exp();
        self.at = now;
        let fresh = self.deviation * (1.0 - kept * kept).sqrt();
        self.level = self.level * kept + fresh * chance::normal(&mut self.rng);
        self.level
    }
}

fn agent(id: &ServerId, capacity: u32, life: u64, rng: Rng, now: Instant) -> Agent {
    let profile =
        Profile { capacity: Some(Connections(capacity)), ..Profile::at(format!("ws://{id}.sim:80")) };
    let config = AgentConfig { id: id.clone(), inc: Incarnation(life), profile, caps: Vec::new() };
    Agent::new(config, rng, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_keeps_its_deviation_and_forgets_over_its_correlation_time() {
        let mut noise = Noise {
            level: 0.0,
            deviation: 0.3,
            correlation: Duration::from_secs(5),
            at: Instant::ZERO,
            rng: Rng::new(3),
        };
        let series: Vec<f64> =
            (1..=200_000).map(|second| noise.next(Instant::from_millis(second * 1_000))).collect();
        let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / series.len() as f64;
        let deviation = mean(&mut series.iter().map(|level| level * level)).sqrt();
        assert!((deviation - 0.3).abs() < 0.01, "{deviation}");
        let after_5_s =
            mean(&mut series.iter().zip(&series[5..]).map(|(a, b)| a * b)) / (deviation * deviation);
        assert!((after_5_s - (-1.0f64).exp()).abs() < 0.02, "{after_5_s}");
    }
}
