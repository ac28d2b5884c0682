//! What the controller remembers of one server: its life, its counts, what it was told.
//!
//! In: facts that `observe` takes from inputs. Out: counts, ceilings, state, the order in force. Invariants: an
//! older incarnation or report never replaces a newer; a change of what is wanted raises the generation, repeating
//! it does not.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use evenkeel_model::{
    Average, Connections, Desired, Duration, Epoch, Fence, GatewayId, Generation, Incarnation, Instant,
    Measures, PerSecond, Ratio, Report, Select, ServerId, State,
};

use crate::allot::{Cause, Ceiling, Server};
use crate::capacity::{Claim, Learner, Sample};
use crate::config::FleetConfig;
use crate::controller::{Intent, Output, Phase};
use crate::drain::Shown;
use crate::membership::Pulse;
use crate::score;
use crate::snapshot::{Executor, Health, ServerView};

/// One server.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) id: ServerId,
    pub(super) inc: Incarnation,
    /// `None` until the provider or its agent said it.
    pub(super) url: Option<Arc<str>>,
    /// Where clients connect directly: what its agent says, and what is configured for when it says nothing.
    pub(super) public_url: Option<Arc<str>>,
    pub(super) listed_public_url: Option<Arc<str>>,
    pub(super) declared: Option<Connections>,
    pub(super) executor: Executor,
    /// Its agent says that it closes nothing: gateways do.
    pub(super) report_only: bool,
    /// Whether the configuration lists it.
    pub(super) listed: bool,
    pub(super) process: Process,
    /// Whether it reported or passed a check in this life.
    pub(super) alive: bool,
    /// Since when this life is expected to come up; `None` once it did.
    pub(super) boots_since: Option<Instant>,
    /// Whether this boot already counted as failed.
    pub(super) boot_failed: bool,
    /// When this life, or what is known of it, began.
    pub(super) life_since: Instant,
    pub(super) open_since: Instant,
    pub(super) pulse: Pulse,
    pub(super) report: Option<Newest>,
    pub(super) measured: Measured,
    pub(super) learner: Learner,
    /// What was learned by the last round; `None`: its claim.
    learned: Option<Connections>,
    pub(super) seen: Vec<Seen>,
    pub(super) peaks: Peaks,
    pub(super) admit: Admit,
    pub(super) intent: Option<Intent>,
    pub(super) phase: Option<Phase>,
    pub(super) want: Want,
    pub(super) agent: AgentSaid,
    /// Whether a record of it is stored.
    pub(super) stored: bool,
    pub(super) on_probation: bool,
    /// When its agent was told last.
    pub(super) desired_at: Instant,
    /// When the provider was asked last to end it.
    pub(super) stop_asked: Option<Instant>,
    pub(super) trouble: Option<String>,
    /// Known from before a restart and not heard since: the capacity that it was published with.
    pub(super) recalled: Option<Connections>,
    pub(super) obeys: Obeys,
}

/// Whether an agent closes what it is told to close.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Obeys {
    /// What it held when last looked at, if it is ordered to close any.
    left: Option<Connections>,
    /// Since when it could have closed one and did not.
    since: Option<Instant>,
    /// It had time enough.
    pub(super) not: bool,
}

/// The newest report by (incarnation, seq).
#[derive(Debug)]
pub(super) struct Newest {
    pub(super) report: Report,
    pub(super) at: Instant,
    /// Whether a round took its measures already.
    pub(super) sampled: bool,
}

/// What the provider says of a server's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Process {
    /// Not from our provider.
    NotOurs,
    /// Creation was ordered.
    Ordered,
    /// It runs.
    Running,
    /// It ended by itself and is started again.
    Restarting,
    /// It ended, or could not be started, and stays down until it is created again.
    Down,
}

/// What one gateway said of this server last.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) gateway: GatewayId,
    pub(super) connections: Connections,
    pub(super) pending: Connections,
    pub(super) probation: bool,
}

/// The most that gateways showed on a server, placements on their way included, of late.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Peaks {
    since: Instant,
    /// Since then, and in the time before.
    each: [u32; 2],
}

/// A report is this old at most when it is compared with what gateways show: an interval of reports and a slow way.
const PEAK_OVER: Duration = Duration::from_millis(1_500);

impl Peaks {
    fn note(&mut self, held: u32, now: Instant) {
        if now.since(self.since) >= PEAK_OVER {
            let before = if now.since(self.since) < 2 * PEAK_OVER { self.each[0] } else { held };
            (self.since, self.each) = (now, [held, before]);
        }
        self.each[0] = self.each[0].max(held);
    }

    fn highest(&self) -> Connections {
        Connections(self.each[0].max(self.each[1]))
    }
}

/// What the agent said of orders.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct AgentSaid {
    /// The order that began its drain.
    pub(super) drain: Option<Fence>,
    pub(super) applied: Option<Fence>,
    pub(super) drained: Option<Fence>,
    /// Reports since its drain was ordered: the second one answers an order that the first one fetched.
    pub(super) reports_since_order: u32,
}

/// Measures averaged for a server whose agent does not.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// What the score is made of.
    pub(super) averaged: Measures,
    averages: BTreeMap<String, Average>,
}

/// Admission rate of one server: halved by handshake errors, growing back without.
#[derive(Debug, Clone, Copy)]
pub(super) struct Admit {
    pub(super) rate: PerSecond,
    pub(super) changed: Instant,
}

/// What is wanted of a server, with an absolute deadline.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Want {
    pub(super) fence: Fence,
    pub(super) state: State,
    pub(super) target: Connections,
    pub(super) moves_per_s: PerSecond,
    pub(super) deadline: Option<Instant>,
    pub(super) select: Select,
    /// A faster order that may still be in force at the executor, until then.
    pub(super) loose: Option<(PerSecond, Instant)>,
}

impl Want {
    fn active(fence: Fence, select: Select) -> Self {
        let Desired { state, target, moves_per_s, .. } = Desired::active(fence);
        Self { fence, state, target, moves_per_s, deadline: None, select, loose: None }
    }

    pub(super) fn desired(&self, now: Instant) -> Desired {
        Desired {
            fence: self.fence,
            lease: Desired::LEASE,
            state: self.state,
            target: self.target,
            moves_per_s: self.moves_per_s,
            deadline: self.deadline.map(|deadline| deadline.since(now)),
            select: self.select,
        }
    }

    /// Moves per second that the executor may be carrying out above what it is told now.
    pub(super) fn reserved(&self, now: Instant) -> PerSecond {
        let loose = self.loose.filter(|(_, until)| now < *until);
        PerSecond::new(loose.map_or(0.0, |(rate, _)| rate.get() - self.moves_per_s.get()))
    }
}

impl Member {
    pub(super) fn new(id: ServerId, fence: Fence, config: &FleetConfig, now: Instant) -> Self {
        Self {
            id,
            inc: Incarnation::default(),
            url: None,
            public_url: None,
            listed_public_url: None,
            declared: None,
            executor: Executor::Gateways,
            report_only: false,
            listed: false,
            process: Process::NotOurs,
            alive: false,
            boots_since: Some(now),
            boot_failed: false,
            life_since: now,
            open_since: now,
            pulse: Pulse::new(now),
            report: None,
            measured: Measured::default(),
            learner: Learner::new(&config.capacity),
            learned: None,
            seen: Vec::new(),
            peaks: Peaks::default(),
            admit: Admit { rate: config.place.admit_per_s, changed: now },
            intent: None,
            phase: None,
            want: Want::active(fence, config.moves.select),
            agent: AgentSaid::default(),
            stored: false,
            on_probation: false,
            desired_at: now,
            stop_asked: None,
            trouble: None,
            recalled: None,
            obeys: Obeys::default(),
        }
    }

    /// As a former controller published it: alive and well, presumed heard at that time.
    pub(super) fn recall(&mut self, view: &ServerView, presumed: Instant, now: Instant) {
        self.inc = view.inc;
        self.url = Some(Arc::clone(&view.url));
        self.public_url.clone_from(&view.public_url);
        self.executor = view.executor;
        self.alive = true;
        self.boots_since = None;
        self.open_since = view.open_since.min(now);
        self.pulse.noise(presumed);
        self.admit.rate = view.admit.min(self.admit.rate);
        self.recalled = Some(view.capacity);
        self.report = view.reported.map(|reported| Newest {
            report: Report {
                inc: view.inc,
                seq: reported.seq,
                connections: reported.connections,
                movable: Connections::ZERO,
                raw: Measures::default(),
                averaged: None,
                totals: None,
            },
            at: reported.at,
            // Its measures are not known, so there is nothing to learn from it.
            sampled: true,
        });
    }

    /// Another life of the same server: what was known of the last one is void, wishes about it stay.
    pub(super) fn new_life(&mut self, inc: Incarnation, config: &FleetConfig, now: Instant) {
        debug_assert!(inc >= self.inc);
        self.inc = inc;
        self.alive = false;
        self.boots_since.get_or_insert(now);
        self.boot_failed = false;
        self.life_since = now;
        self.pulse = Pulse::new(now);
        self.report = None;
        self.measured = Measured::default();
        self.learner = Learner::new(&config.capacity);
        self.learned = None;
        self.agent = AgentSaid::default();
        self.recalled = None;
    }

    pub(super) fn health(&self) -> Health {
        self.pulse.health()
    }

    /// Whether its process is known to be gone.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.process, Process::Ordered | Process::Restarting | Process::Down)
    }

    /// Looks whether its agent closes what an order of a drain or shed lets it close. True once, when it had time
    /// enough to close one and none left. Young connections stay in a rebalance, so that shows nothing.
    pub(super) fn stops_obeying(&mut self, now: Instant) -> bool {
        let wish = matches!(self.intent, Some(Intent::Drain { drained: false, .. } | Intent::Shed { .. }));
        let live = self.live();
        let left = (wish && self.executor == Executor::Agent).then_some(live);
        if left.is_none() || left < self.obeys.left {
            self.obeys = Obeys::default();
        }
        self.obeys.left = left;
        let asked = left.is_some() && live > self.want.target && !self.want.moves_per_s.is_zero();
        if !asked || self.health() != Health::Ok {
            self.obeys.since = None;
            return false;
        }
        let since = *self.obeys.since.get_or_insert(now);
        // A day is longer than any deadline and short enough for a duration.
        let one = Duration::from_secs_f64((1.0 / self.want.moves_per_s.get()).min(86_400.0));
        let fresh = !self.obeys.not && now.since(since) >= DISOBEYS_AFTER.saturating_add(one);
        self.obeys.not |= fresh;
        fresh
    }

    /// What an operator should know of it: that it does not obey, else its last trouble.
    pub(super) fn told_trouble(&self) -> Option<String> {
        let text = || {
            alloc::format!(
                "reports and closes none of its {} connections although it is told to: its agent does not obey",
                self.live()
            )
        };
        if self.obeys.not { Some(text()) } else { self.trouble.clone() }
    }

    /// Connections it holds, as far as anybody can tell.
    pub(super) fn live(&self) -> Connections {
        if self.is_gone() {
            return Connections::ZERO;
        }
        match (&self.report, self.executor, self.health()) {
            (Some(newest), Executor::Agent, Health::Ok | Health::Suspect) => newest.report.connections,
            // The report of a dead server is about the past; its tunnels break at the gateways.
            _ => self.seen.iter().map(|seen| seen.connections).sum(),
        }
    }

    /// Remembers what gateways show now.
    pub(super) fn note_peak(&mut self, now: Instant) {
        let held: Connections = self.seen.iter().map(|seen| seen.connections + seen.pending).sum();
        self.peaks.note(held.get(), now);
    }

    /// Connections it holds as gateways count, which know of a move at once and of both its ends together, and what
    /// its report shows beyond all that they held of late: came another way.
    pub(super) fn live_by_gateways(&self) -> Connections {
        let own: Connections = self.seen.iter().map(|seen| seen.connections).sum();
        own + self.live().saturating_sub(self.peaks.highest().max(own))
    }

    pub(super) fn pending(&self) -> Connections {
        self.seen.iter().map(|seen| seen.pending).sum()
    }

    pub(super) fn state(&self) -> State {
        match self.intent {
            Some(Intent::Drain { drained: true, .. }) => State::Drained,
            Some(Intent::Drain { drained: false, .. }) => State::Draining,
            Some(Intent::Stop { .. }) => State::Stopped,
            _ if !self.alive => State::Starting,
            Some(Intent::Cordon) => State::Cordoned,
            Some(Intent::Shed { .. }) | None => State::Active,
        }
    }

    pub(super) fn claim(&self, config: &FleetConfig) -> Claim {
        self.declared.map_or(Claim::Assumed(config.capacity.assumed), Claim::Declared)
    }

    pub(super) fn capacity(&self, config: &FleetConfig) -> Connections {
        let claimed = self.claim(config).connections();
        if let Some(recalled) = self.recalled {
            return recalled;
        }
        self.learned.map_or(claimed, |learned| learned.min(claimed))
    }

    /// All wishes about it that gateways share. Probation is each gateway's own.
    pub(super) fn ceilings(&self) -> Vec<Ceiling> {
        let zero = |cause| Ceiling { at_most: Connections::ZERO, cause };
        let live = |cause| Ceiling { at_most: self.live(), cause };
        let mut ceilings = Vec::new();
        match self.health() {
            Health::Ok => {}
            Health::Suspect => ceilings.push(live(Cause::Suspect)),
            Health::Dead => ceilings.push(zero(Cause::Dead)),
        }
        if !self.alive {
            ceilings.push(zero(Cause::Starting));
        }
        match self.intent {
            Some(Intent::Drain { .. } | Intent::Stop { .. }) => ceilings.push(zero(Cause::Drain)),
            Some(Intent::Cordon) => ceilings.push(live(Cause::Cordon)),
            Some(Intent::Shed { to, .. }) => ceilings.push(Ceiling { at_most: to, cause: Cause::Operator }),
            None => {}
        }
        ceilings.extend(self.learner.ceiling(self.live()));
        ceilings
    }

    /// As the water-fill sees it, with those `wishes`.
    pub(super) fn server(&self, wishes: Vec<Ceiling>, config: &FleetConfig, now: Instant) -> Server {
        let slow = slow_start(self.open_since, config, now);
        Server {
            id: self.id.clone(),
            capacity: self.capacity(config),
            live: self.live(),
            pending: self.pending(),
            admit: PerSecond::new(self.admit.rate.get() * slow),
            ceilings: wishes,
        }
    }

    /// Takes the measures of the newest report, once.
    pub(super) fn sample(&mut self, config: &FleetConfig, now: Instant) -> Option<Ceiling> {
        let newest = self.report.as_mut().filter(|newest| !newest.sampled)?;
        newest.sampled = true;
        self.measured.take(&newest.report, newest.at, config.score.tau);
        let (live, declared) = (newest.report.connections, self.claim(config).connections());
        let sample = Sample {
            connections: live,
            load: score::load(&self.measured.averaged, live, declared, &config.score),
            inelastic: score::inelastic(&self.measured.averaged, &config.score),
        };
        let overload = self.learner.observe(sample, now, &config.capacity);
        self.learned = Some(self.learner.capacity(self.claim(config), &config.capacity));
        overload
    }

    /// Wants something of it. Says whether that is anything new, and raises the generation then.
    pub(super) fn wants(&mut self, next: Want, epoch: Epoch, now: Instant) -> bool {
        let fence = self.want.fence;
        if (Want { fence, loose: None, ..next }) == (Want { loose: None, ..self.want }) {
            return false;
        }
        let before = self.want;
        self.want = Want { fence: raised(fence, epoch), ..next };
        if self.live().is_zero() || before.moves_per_s.get() <= next.moves_per_s.get() {
            // A rise of an order whose fall is still loose keeps what was loose.
            self.want.loose = before.loose.filter(|(_, until)| now < *until);
        } else {
            let rate = before.moves_per_s.get() + before.reserved(now).get();
            let lapses = match self.executor {
                Executor::Agent => Desired::LEASE,
                Executor::Gateways => OBEYS_AFTER,
            };
            self.want.loose = Some((PerSecond::new(rate), now + lapses));
        }
        true
    }

    /// What a server of that state is told when nothing is to leave it.
    pub(super) fn at_rest(&self, config: &FleetConfig) -> Want {
        // By the intent alone: a server that was not heard yet in this life is wanted as it was before.
        let (state, target) = match self.intent {
            None => (State::Active, Connections::MAX),
            Some(Intent::Shed { to, .. }) => (State::Active, to),
            Some(Intent::Cordon) => (State::Cordoned, Connections::MAX),
            Some(Intent::Drain { .. }) => (State::Draining, Connections::ZERO),
            Some(Intent::Stop { .. }) => (State::Stopped, Connections::ZERO),
        };
        // A drain's deadline is its own matter (`drain::course`).
        let deadline = match self.intent {
            Some(Intent::Shed { until, .. }) => Some(until),
            _ => None,
        };
        Want {
            fence: self.want.fence,
            state,
            target,
            moves_per_s: PerSecond::ZERO,
            deadline,
            select: config.moves.select,
            loose: None,
        }
    }

    /// What its agent is told now, if it has one.
    pub(super) fn told(&mut self, now: Instant) -> Option<Output> {
        if self.executor != Executor::Agent || self.inc == Incarnation::default() {
            return None;
        }
        self.desired_at = now;
        Some(Output::Desire(self.id.clone(), self.want.desired(now)))
    }

    /// An executor that applied a higher order than we know of must not refuse ours.
    pub(super) fn overtake(&mut self, applied: Fence) {
        if applied >= self.want.fence {
            self.want.fence = Fence { epoch: applied.epoch, generation: applied.generation.next() };
        }
    }

    /// What its executor shows of a drain.
    pub(super) fn shown(&self) -> Shown {
        if self.is_gone() {
            return Shown::Gone;
        }
        if !self.alive || self.recalled.is_some() {
            // Known from the store, the configuration or a former controller only: nobody counted there yet.
            return Shown::Unknown;
        }
        match (self.executor, &self.report) {
            (Executor::Gateways, _) => Shown::Gateways,
            (Executor::Agent, None) => Shown::Unknown,
            (Executor::Agent, Some(newest)) => {
                let told = |fence: Option<Fence>| fence.is_some() && fence >= self.agent.drain;
                let knows = told(self.agent.applied) || self.agent.reports_since_order >= 2;
                if knows || told(self.agent.drained) {
                    return Shown::Draining(newest.report.connections);
                }
                Shown::Unknown
            }
        }
    }

    pub(super) fn seen_by(&mut self, gateway: &GatewayId) -> &mut Seen {
        let found = self.seen.iter().position(|seen| seen.gateway == *gateway);
        let i = found.unwrap_or_else(|| {
            self.seen.push(Seen {
                gateway: gateway.clone(),
                connections: Connections::ZERO,
                pending: Connections::ZERO,
                probation: false,
            });
            self.seen.len() - 1
        });
        &mut self.seen[i]
    }
}

/// The next fence: a newer epoch, else the next generation.
pub(super) fn raised(fence: Fence, epoch: Epoch) -> Fence {
    if epoch > fence.epoch {
        Fence { epoch, generation: Generation(1).max(fence.generation.next()) }
    } else {
        Fence { epoch: fence.epoch, generation: fence.generation.next() }
    }
}

/// Share of its admission rate that a server has by now.
fn slow_start(open_since: Instant, config: &FleetConfig, now: Instant) -> f64 {
    let place = &config.place;
    let floor: Ratio = place.slow_start_floor;
    let grown = now.since(open_since).as_secs_f64() / place.slow_start.as_secs_f64().max(1e-9);
    (floor.get() + (1.0 - floor.get()) * grown).min(1.0)
}

impl Measured {
    /// The agent's averages, or our own over its raw measures.
    fn take(&mut self, report: &Report, at: Instant, tau: Duration) {
        if let Some(averaged) = &report.averaged {
            self.averaged = averaged.clone();
            return;
        }
        let raw = &report.raw;
        let averages = &mut self.averages;
        let mut average = |name: &str, value: f64| {
            if !averages.contains_key(name) {
                averages.insert(String::from(name), Average::new(tau));
            }
            averages.get_mut(name).map_or(value, |average| average.update(value, at))
        };
        // Custom names are printable, so a leading space keeps our own apart.
        let cpu = raw.cpu.map(|value| average(" cpu", value));
        let memory = raw.memory.map(|value| average(" memory", value));
        let lag_ms = raw.lag_ms.map(|value| average(" lag", value));
        let custom: BTreeMap<String, f64> =
            raw.custom.iter().map(|(name, &value)| (name.clone(), average(name, value))).collect();
        averages.retain(|name, _| name.starts_with(' ') || custom.contains_key(name));
        self.averaged = Measures { cpu, memory, lag_ms, custom };
    }
}

impl Admit {
    /// Handshakes failed: fewer from now on, at most once a second.
    pub(super) fn failed(&mut self, now: Instant) {
        if now.since(self.changed) >= Duration::from_secs(1) {
            self.rate = PerSecond::new((self.rate.get() * DECREASE).max(1.0));
            self.changed = now;
        }
    }

    /// A second without errors: a step back to the configured rate.
    pub(super) fn recover(&mut self, full: PerSecond, now: Instant) {
        if self.rate.get() < full.get() && now.since(self.changed) >= Duration::from_secs(1) {
            self.rate = PerSecond::new(self.rate.get() + INCREASE * full.get()).min(full);
            self.changed = now;
        }
    }
}

/// An agent that was told to close has closed one after so long, and the time that its pace gives to one: a client
/// has 5 s to answer its Close, and an order and a report have to travel.
const DISOBEYS_AFTER: Duration = Duration::from_secs(10);
/// So long after a publication gateways obey it.
pub(super) const OBEYS_AFTER: Duration = Duration::from_millis(500);
/// Multiplicative decrease of admission on handshake errors: TCP's half loses more than a burst of errors tells.
const DECREASE: f64 = 0.7;
/// Additive increase a second, of the configured rate: back at full within 20 s.
const INCREASE: f64 = 0.05;
