//! Says when a server may take its next placement from this gateway: its share of the server's admission rate.
//!
//! In: the server's rate over all gateways, this gateway's share, slow start. Out: an instant from which the next
//! placement is allowed. Invariants: over any time t a server takes at most `rate · t + burst` placements from one
//! gateway; over all gateways together at most that of the whole rate. Integer arithmetic (the generic cell rate
//! algorithm, ITU-T I.371: one instant a server, no drift), so that it replays exactly.
//! Elsewhere: choosing among servers with credit (`pick`), waiting for it (`admission`).

use evenkeel_model::{Duration, Instant, PerSecond, Ratio};

/// Moves may always use this part of a receiver's rate, so that a drain ends under any load of arrivals.
pub const MOVES_PART: u32 = 4;

/// How fast one server may be placed on by one gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rate {
    /// Time between placements in the long run.
    every: Duration,
    /// How far placements may run ahead of that.
    ahead: Duration,
}

impl Rate {
    /// A rate with a burst of what comes in `burst` at that rate, at least one placement.
    #[must_use]
    pub fn new(per_s: PerSecond, burst: Duration) -> Self {
        /// Longest time between placements: a rate of (nearly) zero still has an end one can wait for.
        const EVERY_MAX: f64 = 3_600.0;
        let every = Duration::from_secs_f64((1.0 / per_s.get().max(1e-9)).min(EVERY_MAX));
        Self { every, ahead: burst.saturating_sub(every) }
    }

    /// The rate of something that spends only `part` of `whole` each.
    #[must_use]
    pub fn part(&self, part: u32, whole: u32) -> Self {
        Self { every: self.every * part / whole.max(1), ..*self }
    }
}

/// What one gateway has spent on one server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Credit {
    /// When the last placement's time at the long-run rate is over.
    spent_until: Instant,
    /// The same for the part that is kept for moves.
    moves_until: Instant,
}

impl Credit {
    /// When the next arrival may be placed.
    #[must_use]
    pub fn arrival_at(&self, rate: &Rate) -> Instant {
        self.spent_until - rate.ahead
    }

    /// When the next move may be placed: with the arrivals, or on the part kept for moves.
    #[must_use]
    pub fn move_at(&self, rate: &Rate) -> Instant {
        self.arrival_at(rate).min(self.moves_until)
    }

    /// Spends one placement of an arrival.
    pub fn spend(&mut self, rate: &Rate, now: Instant) {
        self.spent_until = self.spent_until.max(now) + rate.every;
    }

    /// Spends one placement of a move: on the kept part too, so that arrivals and moves together keep the rate.
    pub fn spend_on_move(&mut self, rate: &Rate, now: Instant) {
        if self.arrival_at(rate) > now {
            self.moves_until = self.moves_until.max(now) + rate.every * MOVES_PART;
        }
        self.spend(rate, now);
    }
}

/// Slow start of one server: its part of the full rate, linear from `floor` over `lasts`.
#[must_use]
pub fn slow_start(open_since: Instant, lasts: Duration, floor: Ratio, now: Instant) -> f64 {
    let age = now.since(open_since).as_secs_f64();
    let lasts = lasts.as_secs_f64();
    if age >= lasts {
        return 1.0;
    }
    let floor = floor.get().clamp(0.0, 1.0);
    floor + (1.0 - floor) * age / lasts
}

#[cfg(test)]
mod tests {
    use super::*;

    const BURST: Duration = Duration::from_millis(100);

    fn at(ms: u64) -> Instant {
        Instant::from_millis(100_000 + ms)
    }

    fn taken(rate: &Rate, credit: &mut Credit, from: u64, to: u64) -> u32 {
        let mut count = 0;
        for ms in from..to {
            while credit.arrival_at(rate) <= at(ms) {
                credit.spend(rate, at(ms));
                count += 1;
            }
        }
        count
    }

    #[test]
    fn a_burst_is_the_rate_over_its_time_and_then_the_rate_holds() {
        let rate = Rate::new(PerSecond::new(200.0), BURST);
        let mut credit = Credit::default();
        assert_eq!(taken(&rate, &mut credit, 0, 1), 20);
        assert_eq!(taken(&rate, &mut credit, 1, 1_001), 200);
        assert_eq!(taken(&rate, &mut credit, 61_000, 61_001), 20, "unused credit does not pile up");
    }

    #[test]
    fn a_slow_server_still_takes_one_at_once() {
        let rate = Rate::new(PerSecond::new(0.5), BURST);
        let mut credit = Credit::default();
        assert_eq!(taken(&rate, &mut credit, 0, 10), 1);
        assert_eq!(credit.arrival_at(&rate), at(2_000));
        assert_eq!(taken(&rate, &mut credit, 10, 2_001), 1);
    }

    #[test]
    fn a_rate_of_zero_can_be_waited_for() {
        let rate = Rate::new(PerSecond::ZERO, BURST);
        let mut credit = Credit::default();
        credit.spend(&rate, at(0));
        assert_eq!(credit.arrival_at(&rate), at(3_600_000));
    }

    #[test]
    fn moves_keep_a_quarter_when_arrivals_take_everything() {
        let rate = Rate::new(PerSecond::new(100.0), BURST);
        let (mut credit, mut moves, mut arrivals) = (Credit::default(), 0, 0);
        for ms in 0..10_000 {
            while credit.arrival_at(&rate) <= at(ms) {
                credit.spend(&rate, at(ms));
                arrivals += 1;
            }
            while credit.move_at(&rate) <= at(ms) {
                credit.spend_on_move(&rate, at(ms));
                moves += 1;
            }
        }
        assert!((240..=275).contains(&moves), "{moves} moves");
        assert!((1_000..=1_015).contains(&(moves + arrivals)), "{} in 10 s at 100/s", moves + arrivals);
    }

    #[test]
    fn slow_start_is_linear_from_its_floor() {
        let lasts = Duration::from_secs(30);
        let factor = |s: u64| slow_start(at(0), lasts, Ratio::new(0.1), at(s * 1_000));
        assert!((factor(0) - 0.1).abs() < 1e-12);
        assert!((factor(15) - 0.55).abs() < 1e-12);
        assert_eq!(factor(30), 1.0);
        assert_eq!(factor(3_000), 1.0);
    }
}
