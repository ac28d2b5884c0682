//! Chooses the server for one new connection.
//!
//! In: one [`Seat`] a server (counts, target, whether it takes one, when it has credit), the rule, what the
//! connection asks for. Out: the index of the chosen seat, or why there is none. Invariants: a chosen seat is
//! open, has credit and was not tried before; a move never goes to its source nor to a server that is as utilised
//! as its source; utilisations are compared in integers, so the choice replays exactly.
//! Elsewhere: what seats hold (`gateway`), targets (`allot`), credit (`credit`), waiting for it (`admission`).

mod tournament;

use alloc::vec::Vec;
use core::cmp::Ordering;

use evenkeel_model::{Duration, Instant, Rng, Share};

use crate::config::PickRule;
use crate::gateway::{Refusal, ServerKey};
use tournament::Tournament;

/// Up to so many servers `auto` looks at all of them: cheaper than drawing, and exact.
pub const EXACT_UP_TO: usize = 16;

/// The emptiest server is looked up again after this at the latest. Default 50 ms: the age at which eight
/// gateways' memories of it do not yet make them follow each other (anchors: placement §1). Longer follows slower.
pub const EMPTIEST_FOR: Duration = Duration::from_millis(50);

/// What a pick needs to know of one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat {
    /// Connections it holds, as this gateway counts.
    pub live: u32,
    /// This gateway's placements on their way to it.
    pub pending: u32,
    /// What it should hold.
    pub target: Share,
    /// The most it may hold.
    pub at_most: u32,
    /// Whether every wish about it lets new connections come.
    pub permits: bool,
    /// Trusted until then: a suspect server only for a while after it was heard.
    pub trusted_until: Instant,
    /// When an arrival finds credit.
    pub arrival_at: Instant,
    /// When a move finds credit.
    pub move_at: Instant,
    /// Order of its last placement among all placements.
    pub used: u64,
    /// Order of the last change of its count.
    pub changed: u64,
}

impl Default for Seat {
    fn default() -> Self {
        Self {
            live: 0,
            pending: 0,
            target: Share::ZERO,
            at_most: 0,
            permits: false,
            trusted_until: Instant::ZERO,
            arrival_at: Instant::ZERO,
            move_at: Instant::ZERO,
            used: 0,
            changed: 0,
        }
    }
}

impl Seat {
    /// Whether it may take a connection now, credit aside.
    #[must_use]
    pub fn open(&self, now: Instant) -> bool {
        self.permits
            && now < self.trusted_until
            && self.target > Share::ZERO
            && self.live.saturating_add(self.pending) < self.at_most
    }
}

/// How much one pending placement of this gateway weighs: it stands for those that the other gateways make
/// meanwhile. Fixed point, [`Weight::ONE`] is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(u64);

impl Weight {
    /// One placement counts as one.
    pub const ONE: Self = Self(1 << Share::BITS);

    /// Fleet's placement rate over this gateway's, 1..`gateways`.
    #[must_use]
    pub fn new(fleet_per_s: f64, own_per_s: f64, gateways: u32) -> Self {
        let most = f64::from(gateways.max(1));
        let weight = if fleet_per_s > 0.0 && own_per_s > 0.0 { fleet_per_s / own_per_s } else { most };
        Self((weight.clamp(1.0, most) * f64::from(1u32 << Share::BITS)) as u64)
    }

    fn of(self, count: u32) -> u64 {
        u64::from(count) * self.0
    }
}

/// A count over a target, compared without rounding. With a target of zero it is above every other.
#[derive(Debug, Clone, Copy)]
struct Utilisation {
    count: u64,
    target: u64,
}

impl Utilisation {
    fn cmp(self, other: Self) -> Ordering {
        match (self.target, other.target) {
            (0, 0) => Ordering::Equal,
            (0, _) => Ordering::Greater,
            (_, 0) => Ordering::Less,
            _ => (u128::from(self.count) * u128::from(other.target))
                .cmp(&(u128::from(other.count) * u128::from(self.target))),
        }
    }
}

/// What one connection asks of the pick.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish<'a> {
    /// Seats already tried.
    pub avoid: &'a [ServerKey],
    /// The seat it leaves, for a move.
    pub source: Option<ServerKey>,
}

/// The seats of one fleet at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Seats<'a> {
    /// One for each slot.
    pub each: &'a [Seat],
    /// What a pending placement weighs.
    pub weight: Weight,
    /// The moment.
    pub now: Instant,
}

/// The rule that is in force, with what it remembers from pick to pick.
#[derive(Debug, Clone, Default)]
pub struct Picker {
    rule: Rule,
    draws: Draws,
    tournament: Tournament,
    emptiest: Option<u32>,
    look_again_at: Instant,
    turn: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Rule {
    #[default]
    LeastUtilised,
    Sampled,
    Leastconn,
    RoundRobin,
    Random,
}

impl Picker {
    /// Takes new targets. `auto` becomes the exact minimum or the sampled three here.
    pub fn refresh(&mut self, rule: PickRule, gateways: u32, seats: &Seats<'_>) {
        let permitted = || seats.each.iter().filter(|seat| seat.permits).count();
        self.rule = match rule {
            PickRule::Auto if gateways <= 1 || permitted() <= EXACT_UP_TO => Rule::LeastUtilised,
            PickRule::Auto | PickRule::Sampled => Rule::Sampled,
            PickRule::LeastUtilised => Rule::LeastUtilised,
            PickRule::Leastconn => Rule::Leastconn,
            PickRule::RoundRobin => Rule::RoundRobin,
            PickRule::Random => Rule::Random,
        };
        if matches!(self.rule, Rule::Sampled | Rule::Random) {
            self.draws.refill(seats.each);
        } else {
            self.draws.clear();
        }
        let exact = matches!(self.rule, Rule::LeastUtilised | Rule::Leastconn);
        if exact && seats.each.len() > EXACT_UP_TO {
            self.tournament.refill(seats, self.rule);
        } else {
            self.tournament.clear();
        }
    }

    /// A seat changed since the last refresh or pick. To be told of each change, so that the exact rules need not
    /// look at all seats for each connection.
    pub fn changed(&mut self, seats: &Seats<'_>, index: u32) {
        if self.tournament.is_used() {
            self.tournament.changed(seats, self.rule, index);
        }
    }

    /// Chooses a seat.
    ///
    /// # Errors
    /// [`Refusal`] when none can take the connection now.
    pub fn pick(&mut self, seats: &Seats<'_>, wish: &Wish<'_>, rng: &mut Rng) -> Result<u32, Refusal> {
        if let Some(source) = wish.source {
            return self.pick_for_move(seats, wish, source);
        }
        match self.rule {
            Rule::LeastUtilised | Rule::Leastconn if wish.avoid.is_empty() && self.tournament.is_used() => {
                self.tournament.winner(seats, self.rule).ok_or_else(|| why_none(seats, wish))
            }
            Rule::LeastUtilised | Rule::Leastconn => self.lowest(seats, wish),
            Rule::Sampled => self.lowest_of_three(seats, wish, rng),
            Rule::RoundRobin => self.next_in_turn(seats, wish),
            Rule::Random => self.at_random(seats, wish, rng),
        }
    }

    /// Chooses a seat at random in proportion to targets, whatever the rule: for connections that do not count, which
    /// would otherwise all find the same seat the emptiest. One that moves still only goes where it helps.
    ///
    /// # Errors
    /// [`Refusal`] when none can take the connection now.
    pub fn spread(&self, seats: &Seats<'_>, wish: &Wish<'_>, rng: &mut Rng) -> Result<u32, Refusal> {
        match wish.source {
            Some(source) => self.pick_for_move(seats, wish, source),
            None => self.at_random(seats, wish, rng),
        }
    }

    /// The least utilised of all, if it is less utilised than the source will be without the connection.
    fn pick_for_move(&self, seats: &Seats<'_>, wish: &Wish<'_>, source: ServerKey) -> Result<u32, Refusal> {
        let receiver = self.lowest(seats, wish)?;
        let Some(source) = seats.each.get(source.0 as usize) else { return Ok(receiver) };
        let source = Utilisation {
            count: u64::from(source.live) << Share::BITS,
            target: if source.at_most == 0 { 0 } else { source.target.0 },
        };
        let after = utilisation_with_one_more(&seats.each[receiver as usize], seats.weight);
        if after.cmp(source) == Ordering::Less { Ok(receiver) } else { Err(Refusal::NothingOpen) }
    }

    fn lowest(&self, seats: &Seats<'_>, wish: &Wish<'_>) -> Result<u32, Refusal> {
        let mut best: Option<(u32, &Seat)> = None;
        for (index, seat) in (0u32..).zip(seats.each) {
            if may_take(seats, index, wish)
                && best.is_none_or(|(_, best)| before(self.rule, seat, best, seats.weight))
            {
                best = Some((index, seat));
            }
        }
        best.map(|(index, _)| index).ok_or_else(|| why_none(seats, wish))
    }

    fn lowest_of_three(&mut self, seats: &Seats<'_>, wish: &Wish<'_>, rng: &mut Rng) -> Result<u32, Refusal> {
        let mut best = self.emptiest(seats, wish)?;
        for _ in 0..2 {
            let Some(drawn) = self.draws.draw(rng) else { continue };
            if may_take(seats, drawn, wish)
                && before(self.rule, &seats.each[drawn as usize], &seats.each[best as usize], seats.weight)
            {
                best = drawn;
            }
        }
        Ok(best)
    }

    /// The emptiest seat as last seen; looked up again when that is long ago or it cannot take this connection.
    fn emptiest(&mut self, seats: &Seats<'_>, wish: &Wish<'_>) -> Result<u32, Refusal> {
        if let Some(emptiest) = self.emptiest
            && seats.now < self.look_again_at
            && may_take(seats, emptiest, wish)
        {
            return Ok(emptiest);
        }
        let found = self.lowest(seats, wish)?;
        if wish.avoid.is_empty() {
            self.emptiest = Some(found);
            self.look_again_at = seats.now + EMPTIEST_FOR;
        }
        Ok(found)
    }

    fn next_in_turn(&mut self, seats: &Seats<'_>, wish: &Wish<'_>) -> Result<u32, Refusal> {
        let count = seats.each.len();
        let next = (0..count)
            .map(|step| (self.turn + step) % count)
            .find(|index| may_take(seats, *index as u32, wish))
            .ok_or_else(|| why_none(seats, wish))?;
        self.turn = next + 1;
        Ok(next as u32)
    }

    fn at_random(&self, seats: &Seats<'_>, wish: &Wish<'_>, rng: &mut Rng) -> Result<u32, Refusal> {
        /// Draws before looking at all seats: enough unless most of the fleet is closed or out of credit.
        const DRAWS: usize = 8;
        for _ in 0..DRAWS {
            if let Some(drawn) = self.draws.draw(rng).filter(|drawn| may_take(seats, *drawn, wish)) {
                return Ok(drawn);
            }
        }
        let takers = || (0u32..).zip(seats.each).filter(|(index, _)| may_take(seats, *index, wish));
        let mut ball = rng.below(takers().map(|(_, seat)| seat.target.0).sum());
        for (index, seat) in takers() {
            if ball < seat.target.0 {
                return Ok(index);
            }
            ball -= seat.target.0;
        }
        Err(why_none(seats, wish))
    }
}

/// Whether `a` is to be chosen before `b`.
fn before(rule: Rule, a: &Seat, b: &Seat, weight: Weight) -> bool {
    let (order, a_last, b_last) = if rule == Rule::Leastconn {
        (leastconn(a).cmp(leastconn(b)), a.changed, b.changed)
    } else {
        (utilisation_with_one_more(a, weight).cmp(utilisation_with_one_more(b, weight)), a.used, b.used)
    };
    order.then(a_last.cmp(&b_last)) == Ordering::Less
}

fn may_take(seats: &Seats<'_>, index: u32, wish: &Wish<'_>) -> bool {
    let Some(seat) = seats.each.get(index as usize) else { return false };
    credit_at(seat, wish) <= seats.now && seat.open(seats.now) && !excluded(index, wish)
}

fn credit_at(seat: &Seat, wish: &Wish<'_>) -> Instant {
    if wish.source.is_some() { seat.move_at } else { seat.arrival_at }
}

fn excluded(index: u32, wish: &Wish<'_>) -> bool {
    wish.source == Some(ServerKey(index)) || wish.avoid.contains(&ServerKey(index))
}

fn utilisation_with_one_more(seat: &Seat, weight: Weight) -> Utilisation {
    let count = ((u64::from(seat.live) + 1) << Share::BITS) + weight.of(seat.pending);
    Utilisation { count, target: seat.target.0 }
}

fn leastconn(seat: &Seat) -> Utilisation {
    let held = u64::from(seat.live) + u64::from(seat.pending);
    let count = if held == 0 { 0 } else { held + 1 };
    Utilisation { count, target: seat.target.0 }
}

fn why_none(seats: &Seats<'_>, wish: &Wish<'_>) -> Refusal {
    let open = || (0u32..).zip(seats.each).filter(|(_, seat)| seat.open(seats.now));
    if open().next().is_none() {
        return Refusal::NothingOpen;
    }
    open()
        .filter(|(index, _)| !excluded(*index, wish))
        .map(|(_, seat)| credit_at(seat, wish))
        .min()
        .map_or(Refusal::AllTried, |until| Refusal::OutOfCredit { until })
}

/// Draws seats in proportion to their targets in constant time (alias method: Walker 1977, Vose 1991).
#[derive(Debug, Clone, Default)]
struct Draws {
    columns: Vec<Column>,
    /// Work space, kept to save allocations.
    small: Vec<u32>,
    large: Vec<u32>,
    parts: Vec<u128>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Column {
    seat: u32,
    alias: u32,
    /// Part of the column that is the seat's own, of 2⁶⁴.
    own: u64,
}

impl Draws {
    fn clear(&mut self) {
        self.columns.clear();
    }

    fn refill(&mut self, seats: &[Seat]) {
        self.columns.clear();
        self.parts.clear();
        let drawn = |seat: &Seat| seat.permits && seat.target > Share::ZERO;
        for (index, seat) in (0u32..).zip(seats).filter(|(_, seat)| drawn(seat)) {
            self.columns.push(Column { seat: index, alias: index, own: u64::MAX });
            self.parts.push(u128::from(seat.target.0));
        }
        let total: u128 = self.parts.iter().sum();
        let count = self.columns.len() as u128;
        self.small.clear();
        self.large.clear();
        for (index, part) in (0u32..).zip(&mut self.parts) {
            *part *= count;
            if *part < total { self.small.push(index) } else { self.large.push(index) }
        }
        // Each step fills one column: what a small seat leaves free goes to a large one.
        while let (Some(small), Some(large)) = (self.small.pop(), self.large.last().copied()) {
            let (s, l) = (small as usize, large as usize);
            self.columns[s].own = fraction(self.parts[s], total);
            self.columns[s].alias = self.columns[l].seat;
            self.parts[l] -= total - self.parts[s];
            if self.parts[l] < total {
                self.large.pop();
                self.small.push(large);
            }
        }
    }

    fn draw(&self, rng: &mut Rng) -> Option<u32> {
        // The high half of the product is the column, the low half a fresh coin within it.
        let product = u128::from(rng.next_u64()) * self.columns.len() as u128;
        let column = self.columns.get((product >> 64) as usize)?;
        Some(if (product as u64) < column.own { column.seat } else { column.alias })
    }
}

/// `part / total` of 2⁶⁴, for `part < total < 2⁹⁶`.
fn fraction(part: u128, total: u128) -> u64 {
    let (mut rest, mut bits) = (part, 0u128);
    for _ in 0..2 {
        rest <<= 32;
        bits = (bits << 32) | (rest / total);
        rest %= total;
    }
    bits as u64
}

#[cfg(test)]
mod tests;
