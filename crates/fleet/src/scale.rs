//! Decides whether to start a server, rescue one that drains, or drain one.
//!
//! In: all servers with their [`Role`]s, a [`Demand`], one [`ScaleConfig`], a [`Memory`] of what was needed before.
//! Out: a [`Step`] and a [`Reason`] for it, also when nothing is to be done. Invariants: never above `max`
//! processes nor, by its own choice, below `min` serving servers; at most `step_max` started at once; in doubt up
//! is allowed and down is not; a drain that scale began is rescued before anything is created.
//! Elsewhere: ids of new servers, intents and provider actions (`controller`), how a victim empties (`drain`).

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use evenkeel_model::{Connections, Duration, Instant, Ratio};

use crate::allot::{Cause, Server, allot};
use crate::config::ScaleConfig;

/// Connections that the fleet must be able to hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Demand {
    /// Held by all servers, draining ones included.
    pub live: Connections,
    /// Held by servers that died a moment ago and not back yet.
    pub lost: Connections,
    /// Placements on their way.
    pub pending: Connections,
    /// Handshakes waiting at gateways.
    pub waiting: Connections,
    /// Distinct client prefixes refused in the worst second of the last ten.
    pub refused: Connections,
}

impl Demand {
    /// All of it.
    #[must_use]
    pub fn total(self) -> Connections {
        self.live + self.lost + self.pending + self.waiting + self.refused
    }
}

/// What a server is to the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Serves, and the provider may stop it.
    Victim,
    /// Serves, and is not ours to stop: not from the provider, cordoned, or in trouble.
    Serving,
    /// On its way, counted as if it served.
    Booting,
    /// Drains because scale said so, not closing yet.
    Rescuable {
        /// When the drain began.
        ordered_at: Instant,
    },
    /// A process that serves nobody: draining, drained, or long dead.
    Leaving,
    /// No process at all.
    Absent,
}

impl Role {
    const fn serves(self) -> bool {
        matches!(self, Self::Victim | Self::Serving | Self::Booting)
    }
}

/// Why servers must not be stopped now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// A server is suspect or dead for a moment only.
    Health,
    /// A server is on its way and has not reported yet.
    Reports,
}

impl Doubt {
    /// Short code.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Health => "health",
            Self::Reports => "reports",
        }
    }
}

/// What holds for the fleet in one round of scale.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Policy.
    pub config: &'a ScaleConfig,
    /// What must be held.
    pub demand: Demand,
    /// Capacity expected of a server that is created.
    pub typical: Connections,
    /// An operator's number, instead of the policy.
    pub fixed: Option<u32>,
    /// Why down is frozen, if it is.
    pub doubt: Option<Doubt>,
}

/// What is to be done. Indices are those of the servers given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// Drains to end.
    pub rescue: Vec<usize>,
    /// Servers to start.
    pub create: u32,
    /// Servers to drain.
    pub drain: Vec<usize>,
}

/// Why.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reason {
    /// It fits, and no server can be spared.
    Enough,
    /// So many connections do not fit.
    Short(Connections),
    /// Fewer serve than the minimum.
    BelowMin,
    /// An operator's number.
    Fixed(u32),
    /// No more processes are allowed.
    AtMax,
    /// So many boots in a row failed: creation stopped.
    BootsFailed(u32),
    /// So many could go; not yet for the whole window.
    Window {
        /// Servers that could go.
        spare: u32,
        /// Until then.
        left: Duration,
    },
    /// So many could go; down is frozen.
    Frozen {
        /// Servers that could go.
        spare: u32,
        /// Why it is frozen.
        doubt: Doubt,
    },
    /// So many go.
    Spare(u32),
}

impl Reason {
    /// Short code for logs, metrics and the API.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Enough => "enough",
            Self::Short(_) => "short",
            Self::BelowMin => "below_min",
            Self::Fixed(_) => "fixed",
            Self::AtMax => "at_max",
            Self::BootsFailed(_) => "boots_failed",
            Self::Window { .. } => "window",
            Self::Frozen { .. } => "down_frozen",
            Self::Spare(_) => "spare",
        }
    }
}

/// What was needed before, and how boots went.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Servers needed, as a decreasing run: its front is the most needed in the window.
    needed: VecDeque<(Instant, u32)>,
    observed_since: Option<Instant>,
    boots: VecDeque<Duration>,
    failed_boots: u32,
    failed_at: Option<Instant>,
}

/// Boot times remembered: enough for a 95th percentile that follows a change within a day of scaling.
const BOOTS_MAX: usize = 20;

impl Memory {
    /// A server came up after `took`.
    pub fn booted(&mut self, took: Duration) {
        self.failed_boots = 0;
        self.failed_at = None;
        if self.boots.len() == BOOTS_MAX {
            self.boots.pop_front();
        }
        self.boots.push_back(took);
    }

    /// A server did not come up. Says how many in a row did not.
    pub fn boot_failed(&mut self, now: Instant) -> u32 {
        self.failed_boots = self.failed_boots.saturating_add(1);
        self.failed_at = Some(now);
        self.failed_boots
    }

    /// An operator wants it tried again.
    pub fn forgive(&mut self) {
        self.failed_boots = 0;
        self.failed_at = None;
    }

    /// How long a boot may take before it counts as failed: 2 · p95 of those seen.
    #[must_use]
    pub fn boot_allowance(&self, config: &ScaleConfig) -> Duration {
        if self.boots.is_empty() {
            return 2 * config.boot_time;
        }
        let mut sorted: Vec<Duration> = self.boots.iter().copied().collect();
        sorted.sort_unstable();
        let p95 = sorted[(sorted.len() * 95).div_ceil(100) - 1];
        // A process that came up within a second may still take a moment on a busy machine.
        2 * p95.max(config.boot_time / 10)
    }

    /// Failed boots in a row that stop creation now; one try more after a whole window.
    fn blocked(&self, config: &ScaleConfig, now: Instant) -> Option<u32> {
        let recent = self.failed_at.is_some_and(|at| now.since(at) < config.window);
        (self.failed_boots >= config.failed_boots_max && recent).then_some(self.failed_boots)
    }

    fn remember(&mut self, needed: u32, window: Duration, now: Instant) {
        self.observed_since.get_or_insert(now);
        while self.needed.back().is_some_and(|&(_, before)| before <= needed) {
            self.needed.pop_back();
        }
        self.needed.push_back((now, needed));
        while self.needed.len() > 1 && self.needed[0].0 + window < now {
            self.needed.pop_front();
        }
    }

    /// The most that was needed in the window, or how long it is still to be watched.
    fn most_needed(&self, window: Duration, now: Instant) -> Result<u32, Duration> {
        let watched = self.observed_since.map_or(Duration::ZERO, |since| now.since(since));
        match self.needed.front() {
            Some(&(_, needed)) if watched >= window => Ok(needed),
            _ => Err(window.saturating_sub(watched)),
        }
    }
}

/// Decides one round of scale.
pub fn scale(
    servers: &[Server],
    roles: &[Role],
    facts: Facts<'_>,
    memory: &mut Memory,
    now: Instant,
) -> (Step, Vec<Reason>) {
    debug_assert_eq!(servers.len(), roles.len());
    let fleet = Fleet { servers, roles, facts };
    let (step, reasons) = fleet.decide(memory, now);
    debug_assert!(step.create <= facts.config.step_max, "at most step_max at once");
    debug_assert!(step.create == 0 || step.drain.is_empty(), "never both ways");
    (step, reasons)
}

struct Fleet<'a> {
    servers: &'a [Server],
    roles: &'a [Role],
    facts: Facts<'a>,
}

/// One condition: so many connections must fit at this level.
#[derive(Clone, Copy)]
struct Test {
    demand: Connections,
    level: Ratio,
}

impl Fleet<'_> {
    fn serving(&self) -> u32 {
        self.roles.iter().filter(|role| role.serves()).count() as u32
    }

    fn decide(&self, memory: &mut Memory, now: Instant) -> (Step, Vec<Reason>) {
        let config = self.facts.config;
        let serving = self.serving();
        if let Some(fixed) = self.facts.fixed {
            let mut reasons = alloc::vec![Reason::Fixed(fixed)];
            if serving > fixed {
                let drain = self.cheapest((serving - fixed) as usize);
                return (Step { drain, ..Step::default() }, reasons);
            }
            let step = self.add(fixed - serving, memory, now, &mut reasons);
            return (step, reasons);
        }
        let (short, missing) = self.short();
        let spare = if missing > 0 { 0 } else { self.spare(serving) };
        if self.facts.doubt.is_none() {
            memory.remember((serving + missing).saturating_sub(spare), config.window, now);
        }
        let below_min = config.min.saturating_sub(serving);
        if missing > 0 || below_min > 0 {
            let why = if missing > 0 { Reason::Short(short) } else { Reason::BelowMin };
            let mut reasons = alloc::vec![why];
            let step = self.add(missing.max(below_min), memory, now, &mut reasons);
            return (step, reasons);
        }
        self.down(spare, serving, memory, now)
    }

    fn down(&self, spare: u32, serving: u32, memory: &Memory, now: Instant) -> (Step, Vec<Reason>) {
        if spare == 0 {
            return (Step::default(), alloc::vec![Reason::Enough]);
        }
        if let Some(doubt) = self.facts.doubt {
            return (Step::default(), alloc::vec![Reason::Frozen { spare, doubt }]);
        }
        match memory.most_needed(self.facts.config.window, now) {
            Err(left) => (Step::default(), alloc::vec![Reason::Window { spare, left }]),
            Ok(needed) => {
                let go = serving.saturating_sub(needed).min(spare);
                if go == 0 {
                    return (
                        Step::default(),
                        alloc::vec![Reason::Window { spare, left: self.facts.config.window }],
                    );
                }
                let drain = self.cheapest(go as usize);
                debug_assert!(serving - drain.len() as u32 >= self.facts.config.min, "never below min");
                (Step { drain, ..Step::default() }, alloc::vec![Reason::Spare(go)])
            }
        }
    }

    fn buffered(&self) -> Connections {
        let demand = self.facts.demand.total();
        let share = (f64::from(demand.get()) * self.facts.config.buffer_ratio) as u32;
        demand + self.facts.config.buffer.max(Connections(share))
    }

    fn tests(&self, level: Ratio, buffer_level: Ratio) -> [Test; 2] {
        let demand = self.facts.demand.total();
        [Test { demand, level }, Test { demand: self.buffered(), level: buffer_level }]
    }

    /// Connections that do not fit at the levels for up, and the servers that would take them.
    fn short(&self) -> (Connections, u32) {
        let config = self.facts.config;
        let of_test = self.tests(config.up_level, config.up_buffer_level).map(|test| {
            let unplaced = allot(self.servers, test.demand, test.level).unplaced.ceil();
            let each = (f64::from(self.facts.typical.get()) * test.level.get()).max(1.0);
            (unplaced, libm::ceil(f64::from(unplaced.get()) / each) as u32)
        });
        (of_test[0].0.max(of_test[1].0), of_test[0].1.max(of_test[1].1))
    }

    /// How many of the cheapest victims could go with everything still fitting at the levels for down.
    fn spare(&self, serving: u32) -> u32 {
        let config = self.facts.config;
        let victims = self.cheapest(self.servers.len());
        let most = serving.saturating_sub(config.min).min(victims.len() as u32);
        let spare_at = |test: Test| {
            let each = allot(self.servers, test.demand, test.level).each;
            let all: u64 = each.iter().map(|allotment| u64::from(allotment.at_most.get())).sum();
            let mut left = all;
            let fits = |&i: &usize| {
                left -= u64::from(each[i].at_most.get());
                left >= u64::from(test.demand.get())
            };
            victims.iter().take(most as usize).map(fits).take_while(|fits| *fits).count() as u32
        };
        let [plain, buffered] = self.tests(config.down_level, config.down_buffer_level);
        spare_at(plain).min(spare_at(buffered))
    }

    /// The victims with the fewest connections, newest first among equals.
    fn cheapest(&self, count: usize) -> Vec<usize> {
        let mut victims: Vec<usize> =
            (0..self.servers.len()).filter(|&i| self.roles[i] == Role::Victim).collect();
        // `chat-10` is newer than `chat-9`.
        let age = |i: usize| (self.servers[i].id.as_str().len(), self.servers[i].id.as_str());
        victims.sort_unstable_by(|&a, &b| {
            self.servers[a].live.cmp(&self.servers[b].live).then_with(|| age(b).cmp(&age(a)))
        });
        victims.truncate(count);
        victims
    }

    /// Adds servers: rescues first, then creates what is left within the limits.
    fn add(&self, count: u32, memory: &Memory, now: Instant, reasons: &mut Vec<Reason>) -> Step {
        let config = self.facts.config;
        let mut draining: Vec<(Instant, usize)> = self
            .roles
            .iter()
            .enumerate()
            .filter_map(|(i, role)| match role {
                Role::Rescuable { ordered_at } => Some((*ordered_at, i)),
                _ => None,
            })
            .collect();
        // The one that began last has lost the fewest connections.
        draining.sort_unstable_by(|a, b| b.cmp(a));
        draining.truncate(count as usize);
        let rescue: Vec<usize> = draining.into_iter().map(|(_, i)| i).collect();
        let wanted = count - rescue.len() as u32;
        let processes = self.roles.iter().filter(|role| **role != Role::Absent).count() as u32;
        let allowed = config.max.saturating_sub(processes);
        let create = match memory.blocked(config, now) {
            Some(failed) if wanted > 0 => {
                reasons.push(Reason::BootsFailed(failed));
                0
            }
            _ => wanted.min(allowed).min(config.step_max),
        };
        if wanted > allowed {
            reasons.push(Reason::AtMax);
        }
        Step { rescue, create, drain: Vec::new() }
    }
}

/// The ceilings of a server that scale looks at: not those that pass by themselves.
#[must_use]
pub fn lasts(cause: Cause) -> bool {
    !matches!(cause, Cause::Starting | Cause::Suspect | Cause::Dead | Cause::Probation | Cause::Inelastic(_))
}

#[cfg(test)]
mod tests;
