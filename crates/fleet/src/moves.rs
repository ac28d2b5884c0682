//! Decides how many connections leave a server that holds more than its target, and how fast.
//!
//! In: servers with their [`Allotments`] and [`Standing`], one [`Facts`]. Out: [`Moves`] with a [`Verdict`] for
//! every server above its target, also when nothing moves. Invariants: each such server is exactly one of relieved,
//! refused, deferred; Σ rates ≤ [`pace`], those still in force included; what is ordered and not ended fits into the receivers, so none passes its
//! target (in a drain: its ceiling) through it; suspect servers and those on probation give nothing.
//! Elsewhere: which connection goes (the executor: idle first, not the young), where it goes (`pick`), the phases
//! of a drain (`drain`).

use alloc::vec::Vec;

use evenkeel_model::{Connections, PerSecond, Share};

use crate::allot::{Allotment, Allotments, Cause, Server};
use crate::config::{Band, DeadlinePolicy, MoveConfig, PickRule};
use crate::controller::Phase;
use crate::snapshot::Health;

/// What the mover must know of a server besides its counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// Whether it can be trusted to answer.
    pub health: Health,
    /// Whether a gateway has it on probation.
    pub probation: bool,
    /// Of its drain.
    pub phase: Option<Phase>,
    /// Moves a second that it may be carrying out by earlier orders: until it obeys a slower one, its share of the
    /// pace is not free.
    pub in_force: PerSecond,
}

/// What holds for the whole fleet this round.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Policy.
    pub config: &'a MoveConfig,
    /// How gateways place: rebalancing needs a rule that looks at targets.
    pub pick: PickRule,
    /// Whether rebalancing was under way.
    pub active: bool,
    /// Connections that arrive without being moved.
    pub arrivals: PerSecond,
    /// Whether handshakes fail more than usual.
    pub failing: bool,
}

/// What one server is told: shed down to `target`, at `moves_per_s`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Relief {
    /// The count at which shedding stops.
    pub target: Connections,
    /// Pace of this server.
    pub moves_per_s: PerSecond,
}

/// All choices about moves of one round.
#[derive(Debug, Clone, PartialEq)]
pub struct Moves {
    /// Parallel to the servers; `None`: leave it alone.
    pub each: Vec<Option<Relief>>,
    /// For every server above its target, by index.
    pub verdicts: Vec<(usize, Verdict)>,
    /// Whether rebalancing is under way.
    pub active: bool,
    /// What could have moved in a second.
    pub pace: PerSecond,
}

/// What became of one server above its target.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// So many leave it.
    Relieved(Connections, PerSecond),
    /// It gives nothing: look at another server.
    Refused(Why),
    /// Not in this round.
    Deferred(Why),
}

/// What to do about a veto.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// This server gives nothing; others may.
    OtherServer,
    /// Nothing of this kind moves in this round.
    Wait,
}

/// Why a server gives nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Dead: it cannot carry out an order.
    Dead,
    /// Suspect: what it holds is not known.
    Suspect,
    /// On probation: its count is not trusted.
    Probation,
    /// `round_robin` and `random` place without looking at targets, so moves would not settle.
    PickRule,
    /// Its drain waits for clients to go by themselves.
    Soft,
    /// Within the band around its target.
    WithinBand,
    /// Handshakes fail more than usual.
    HandshakeErrors,
    /// No open server holds less than its target.
    NoReceiver,
    /// Expected arrivals fill the receivers.
    ArrivalsFirst,
    /// Others used up the pace.
    Pace,
    /// The controller keeps still: just restarted, or the plan did not pass its check.
    Held,
}

impl Why {
    /// Short code for logs, metrics and the API.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Suspect => "suspect",
            Self::Probation => "probation",
            Self::PickRule => "pick_rule",
            Self::Soft => "soft",
            Self::WithinBand => "within_band",
            Self::HandshakeErrors => "handshake_errors",
            Self::NoReceiver => "no_receiver",
            Self::ArrivalsFirst => "arrivals_first",
            Self::Pace => "pace",
            Self::Held => "held",
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn scope(self) -> Scope {
        match self {
            Self::Dead | Self::Suspect | Self::Probation | Self::PickRule => Scope::OtherServer,
            _ => Scope::Wait,
        }
    }

    const fn verdict(self) -> Verdict {
        match self.scope() {
            Scope::OtherServer => Verdict::Refused(self),
            Scope::Wait => Verdict::Deferred(self),
        }
    }
}

/// Moves per second that the fleet carries now: the configured pace or what open receivers admit.
#[must_use]
pub fn pace(servers: &[Server], all: &Allotments, config: &MoveConfig) -> PerSecond {
    let open = servers.iter().zip(&all.each).filter(|(_, allotment)| allotment.open);
    PerSecond::new(open.map(|(server, _)| server.admit.get()).sum()).min(config.pace)
}

/// Connections above target that may leave. What pins a server loses nothing.
#[must_use]
pub fn excess(server: &Server, allotment: &Allotment) -> Connections {
    let on_the_way =
        if allotment.bound_by.is_some_and(Cause::pins) { Connections::ZERO } else { server.pending };
    (server.live + on_the_way).saturating_sub(allotment.target.ceil()).min(server.live)
}

/// How far a server is below its target, what is on its way to it included.
fn room(server: &Server, allotment: &Allotment) -> Share {
    let held = Share::from_connections(server.live + server.pending);
    Share(allotment.target.0.saturating_sub(held.0))
}

/// Tells the room of a server: [`room`], or in tests a mistake about it.
pub(crate) type Room = fn(&Server, &Allotment) -> Share;

/// The part of a [`Share`] below one connection.
const PART: u64 = (1 << Share::BITS) - 1;

/// Width of a band around a target, in connections.
#[must_use]
pub fn width(band: Band, target: Share) -> f64 {
    let target = target.as_f64();
    (band.ratio * target).max(band.sqrt * libm::sqrt(target)).max(band.min)
}

/// Decides all moves of one round.
#[must_use]
pub fn moves(servers: &[Server], all: &Allotments, standing: &[Standing], facts: Facts<'_>) -> Moves {
    moves_by(room, servers, all, standing, facts)
}

/// The same with another idea of room.
pub(crate) fn moves_by(
    room: Room,
    servers: &[Server],
    all: &Allotments,
    standing: &[Standing],
    facts: Facts<'_>,
) -> Moves {
    debug_assert!(servers.len() == all.each.len() && servers.len() == standing.len());
    let fleet = Fleet { servers, all, standing, facts, room };
    let pace = pace(servers, all, facts.config);
    let mut plan = Moves {
        each: alloc::vec![None; servers.len()],
        verdicts: Vec::new(),
        active: fleet.is_active(),
        pace,
    };
    let mut left = pace;
    let given = fleet.drain(&mut plan, &mut left);
    fleet.relieve(&mut plan, left, given);
    fleet.limit_rises(&mut plan);
    plan.verdicts.sort_unstable_by_key(|(i, _)| *i);
    plan
}

/// A fleet in one round.
struct Fleet<'a> {
    servers: &'a [Server],
    all: &'a Allotments,
    standing: &'a [Standing],
    facts: Facts<'a>,
    room: Room,
}

/// A server above its target.
#[derive(Clone, Copy)]
struct Source {
    i: usize,
    excess: Connections,
}

/// What receivers can take this round.
#[derive(Clone, Copy)]
struct Receivers {
    /// Connections below target, for those who must leave.
    lack: u64,
    /// The same for those who leave only to even out.
    even: u64,
    /// Of these, those that arrivals will not fill.
    need: u64,
    /// What those below target admit.
    admit: PerSecond,
    /// What is left of the pace.
    pace: PerSecond,
    active: bool,
}

type Rule = fn(&Fleet<'_>, Source, &Receivers) -> Option<Why>;

/// Vetoes on the relief of a server that is not draining, in order: the first that speaks decides.
const RULES: [Rule; 7] = [
    |fleet, source, _| untrusted(fleet.standing[source.i]),
    |fleet, source, _| {
        let blind = matches!(fleet.facts.pick, PickRule::RoundRobin | PickRule::Random);
        (blind && fleet.urgency(source) != Urgency::Ordered).then_some(Why::PickRule)
    },
    |fleet, source, receivers| {
        let calm = !receivers.active && fleet.urgency(source) == Urgency::None;
        calm.then_some(Why::WithinBand)
    },
    |fleet, _, _| fleet.facts.failing.then_some(Why::HandshakeErrors),
    |fleet, source, receivers| {
        let lack = if fleet.urgency(source) == Urgency::None { receivers.even } else { receivers.lack };
        (lack == 0).then_some(Why::NoReceiver)
    },
    |fleet, source, receivers| {
        let fills = receivers.need == 0 && fleet.urgency(source) == Urgency::None;
        fills.then_some(Why::ArrivalsFirst)
    },
    |_, _, receivers| receivers.pace.is_zero().then_some(Why::Pace),
];

/// A server whose counts are not trusted or that cannot hear an order gives nothing, draining or not.
const fn untrusted(standing: Standing) -> Option<Why> {
    match (standing.health, standing.probation) {
        (Health::Dead, _) => Some(Why::Dead),
        (Health::Suspect, _) => Some(Why::Suspect),
        (Health::Ok, true) if standing.phase.is_none() => Some(Why::Probation),
        (Health::Ok, _) => None,
    }
}

/// How pressing the relief of one server is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Urgency {
    /// Only to even out.
    None,
    /// It is too busy.
    Overload,
    /// An operator said so.
    Ordered,
}

impl Fleet<'_> {
    fn held(&self, i: usize) -> Connections {
        self.servers[i].live + self.servers[i].pending
    }

    /// Whether its distance from its target says anything: it may take and give.
    fn counts(&self, i: usize) -> bool {
        let standing = self.standing[i];
        let free = self.all.each[i].bound_by.is_none_or(Cause::permits);
        free && standing.phase.is_none() && standing.health == Health::Ok && !standing.probation
    }

    fn is_active(&self) -> bool {
        let band = if self.facts.active { self.facts.config.stop } else { self.facts.config.start };
        let off = |i: usize| (f64::from(self.held(i).get()) - self.all.each[i].target.as_f64()).abs();
        (0..self.servers.len()).any(|i| self.counts(i) && off(i) > width(band, self.all.each[i].target))
    }

    fn urgency(&self, source: Source) -> Urgency {
        let allotment = &self.all.each[source.i];
        match allotment.bound_by {
            Some(Cause::Operator) => Urgency::Ordered,
            Some(Cause::Overload(_)) => {
                let from = self.facts.config.overload_from * allotment.target.as_f64();
                if f64::from(source.excess.get()) > from { Urgency::Overload } else { Urgency::None }
            }
            _ => Urgency::None,
        }
    }

    fn sources(&self) -> impl Iterator<Item = Source> {
        (0..self.servers.len())
            .map(|i| Source { i, excess: excess(&self.servers[i], &self.all.each[i]) })
            .filter(|source| !source.excess.is_zero())
    }

    /// Orders the drains, ahead of everything else. Says how many connections they send to the receivers.
    fn drain(&self, plan: &mut Moves, left: &mut PerSecond) -> u64 {
        let mut given = 0;
        let mut ready: Vec<Source> = Vec::new();
        for source in self.sources() {
            let Some(phase) = self.standing[source.i].phase else { continue };
            if let Some(why) = untrusted(self.standing[source.i]) {
                plan.verdicts.push((source.i, why.verdict()));
                continue;
            }
            match phase {
                Phase::Soft => plan.verdicts.push((source.i, Why::Soft.verdict())),
                Phase::Moving | Phase::Closing => ready.push(source),
            }
        }
        let enforced = |source: &Source| {
            let closing = self.standing[source.i].phase == Some(Phase::Closing);
            closing && self.facts.config.deadline_policy == DeadlinePolicy::Enforce
        };
        // A close at an enforced deadline needs no receiver, so it may use the configured pace.
        let room = self.room();
        if room == 0 && ready.iter().any(enforced) {
            *left = self.facts.config.pace;
        }
        let total: u64 = ready.iter().map(|source| u64::from(source.excess.get())).sum();
        let (budget, mut room_left) = (*left, room);
        for source in &ready {
            let gives = if enforced(source) { source.excess } else { fits(source.excess, room_left) };
            room_left = room_left.saturating_sub(u64::from(gives.get()));
            let rate = PerSecond::new(budget.get() * f64::from(source.excess.get()) / total as f64);
            let verdict = match (gives.is_zero(), rate.is_zero()) {
                (true, _) => Why::NoReceiver.verdict(),
                (_, true) => Why::Pace.verdict(),
                _ => Verdict::Relieved(gives, rate),
            };
            plan.verdicts.push((source.i, verdict));
            if let Verdict::Relieved(..) = verdict {
                let target = self.servers[source.i].live.saturating_sub(gives);
                plan.each[source.i] = Some(Relief { target, moves_per_s: rate });
                *left = PerSecond::new(left.get() - rate.get());
                given += u64::from(gives.get());
            }
        }
        given
    }

    /// Connections that open servers hold less than their ceilings.
    fn room(&self) -> u64 {
        let open = (0..self.servers.len()).filter(|&i| self.all.each[i].open);
        open.map(|i| u64::from(self.all.each[i].at_most.saturating_sub(self.held(i)).get())).sum()
    }

    fn receivers(&self, plan: &Moves, pace: PerSecond, given: u64) -> Receivers {
        let below = |i: &usize| self.all.each[*i].open && self.held(*i) < self.all.each[*i].target.ceil();
        let below = (0..self.servers.len()).filter(below);
        let admit = PerSecond::new(below.map(|i| self.servers[i].admit.get()).sum());
        let lack = self.lack(|_| true).saturating_sub(given);
        let even = self.lack_to_even_out().saturating_sub(given);
        let arriving = self.facts.arrivals.min(admit).get() * self.facts.config.arrivals_window.as_secs_f64();
        let need = even.saturating_sub(arriving as u64);
        Receivers { lack, even, need, admit, pace, active: plan.active }
    }

    /// Connections that open servers together hold less than their targets: exact parts are summed, and only the sum
    /// is rounded down, so that half a place at each of two servers is one. The last place of a receiver, of which
    /// only a part is below its target, counts where `takes` says so.
    fn lack(&self, takes: impl Fn(&Allotment) -> bool) -> u64 {
        let open = self.servers.iter().zip(&self.all.each).filter(|(_, allotment)| allotment.open);
        let rooms = open.map(|(server, allotment)| {
            let room = (self.room)(server, allotment).0;
            if takes(allotment) { room } else { room & !PART }
        });
        rooms.sum::<u64>() >> Share::BITS
    }

    /// Who leaves only to even out is placed where it is emptiest, which may be the server it came from: the last
    /// place of a receiver counts only if it is less full with it than the fullest source without relief.
    fn lack_to_even_out(&self) -> u64 {
        let even = |source: &Source| {
            let standing = self.standing[source.i];
            let stays = standing.phase.is_none() && untrusted(standing).is_none();
            stays && self.urgency(*source) == Urgency::None
        };
        let full =
            |i: usize| (u128::from(self.held(i).get()) << Share::BITS, u128::from(self.all.each[i].target.0));
        let sources = self.sources().filter(even).map(|source| full(source.i));
        let Some(fullest) = sources.max_by(|a, b| (a.0 * b.1.max(1)).cmp(&(b.0 * a.1.max(1)))) else {
            return 0;
        };
        self.lack(|receiver| {
            let with_it = u128::from(receiver.target.ceil().get()) << Share::BITS;
            with_it * fullest.1 < fullest.0 * u128::from(receiver.target.0)
        })
    }

    /// Orders the relief of servers that stay: the pressing ones first, then evening out.
    fn relieve(&self, plan: &mut Moves, pace: PerSecond, given: u64) {
        let mut receivers = self.receivers(plan, pace, given);
        let (mut pressing, mut rest) = (Vec::new(), Vec::new());
        for source in self.sources().filter(|source| self.standing[source.i].phase.is_none()) {
            match RULES.iter().find_map(|rule| rule(self, source, &receivers)) {
                Some(why) => plan.verdicts.push((source.i, why.verdict())),
                None if self.urgency(source) == Urgency::None => rest.push(source),
                None => pressing.push(source),
            }
        }
        let urgent = self.give(plan, &pressing, receivers.lack, &mut receivers);
        let need = receivers.need.min(receivers.lack - urgent);
        self.give(plan, &rest, need, &mut receivers);
    }

    /// Orders reach servers one by one: what one server gives up is not handed to another before it obeys.
    fn limit_rises(&self, plan: &mut Moves) {
        let in_force = |i: usize| self.standing[i].in_force.get();
        let planned = |plan: &Moves, i: usize| plan.each[i].map_or(0.0, |relief| relief.moves_per_s.get());
        let held: f64 = (0..self.servers.len()).map(in_force).sum();
        let rises: f64 = (0..self.servers.len()).map(|i| (planned(plan, i) - in_force(i)).max(0.0)).sum();
        let free = (self.facts.config.pace.get() - held).max(0.0);
        if rises <= free {
            return;
        }
        for at in 0..plan.verdicts.len() {
            let (i, Verdict::Relieved(gives, rate)) = plan.verdicts[at] else { continue };
            let rise = rate.get() - in_force(i);
            if rise <= 0.0 {
                continue;
            }
            let rate = PerSecond::new(in_force(i) + rise * free / rises);
            plan.each[i] = plan.each[i].filter(|_| !rate.is_zero());
            plan.verdicts[at].1 = match &mut plan.each[i] {
                Some(relief) => {
                    relief.moves_per_s = rate;
                    Verdict::Relieved(gives, rate)
                }
                None => Why::Pace.verdict(),
            };
        }
    }

    /// Shares `total` over the sources in proportion to their excess. Says how much was given.
    fn give(&self, plan: &mut Moves, sources: &[Source], total: u64, receivers: &mut Receivers) -> u64 {
        let excess: u64 = sources.iter().map(|source| u64::from(source.excess.get())).sum();
        let total = total.min(excess);
        let round = self.facts.config.round.as_secs_f64().max(1e-3);
        let rate = receivers.pace.min(receivers.admit).min(PerSecond::new(total as f64 / round));
        let (mut before, mut sum) = (0, 0);
        for source in sources {
            sum += u64::from(source.excess.get());
            let upto = (u128::from(total) * u128::from(sum) / u128::from(excess.max(1))) as u64;
            let gives = fits(source.excess, upto - before);
            before = upto;
            let rate = PerSecond::new(rate.get() * f64::from(gives.get()) / total.max(1) as f64);
            if gives.is_zero() || rate.is_zero() {
                plan.verdicts.push((source.i, Why::Pace.verdict()));
                continue;
            }
            plan.verdicts.push((source.i, Verdict::Relieved(gives, rate)));
            let target = self.held(source.i).saturating_sub(gives);
            plan.each[source.i] = Some(Relief { target, moves_per_s: rate });
        }
        receivers.pace = PerSecond::new(receivers.pace.get() - rate.get());
        total
    }
}

/// The smaller of a count and a number that need not fit one.
fn fits(count: Connections, most: u64) -> Connections {
    count.min(Connections(u32::try_from(most).unwrap_or(u32::MAX)))
}

#[cfg(test)]
mod tests;
