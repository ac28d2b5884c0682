//! Guards against a sinkhole: a server that accepts connections and closes them at once looks empty, so every rule
//! that likes empty servers would feed it.
//!
//! In: handshakes that succeeded and connections that closed, with how long they lasted. Out: which servers are on
//! probation, and when one of them gets a trial. Invariants: at most max(1, a third) of the servers are on
//! probation (if more deserve it, the clients are at fault and nobody is); a server on probation gets one trial in
//! [`TRIAL_EVERY`] arrivals (more where arrivals are few) until [`TRIALS_HELD`] in a row have held.
//! Elsewhere: what probation means for a server's ceiling (`allot`), placing the trials (`gateway`).

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use evenkeel_model::{Duration, Instant};

/// A connection that ends sooner was not held. Default 2 s: longer than any handshake, shorter than any use.
/// Larger values mistake short sessions for failures.
pub const HELD_AFTER: Duration = Duration::from_secs(2);
/// Placements are judged over the last 30 s: [`PERIODS`] of [`PERIOD`].
const PERIOD: Duration = Duration::from_secs(5);
const PERIODS: usize = 6;
/// Fewer placements prove nothing.
const PLACED_MIN: u32 = 10;
/// A larger share closed at once is suspicious, whatever the others do.
const SHARE_MIN: f64 = 0.2;
/// … and it must be so many times the fleet's median: clients that come and go affect every server.
const MEDIAN_TIMES: f64 = 3.0;
/// One in so many arrivals goes to each server on probation.
pub const TRIAL_EVERY: u32 = 100;
/// Where arrivals are few a trial comes after so long all the same, so that a cured server is known to be cured
/// within two minutes …
const TRIAL_AFTER: Duration = Duration::from_secs(30);
/// … but never more often than one in so many arrivals.
const TRIAL_EVERY_MIN: u32 = 10;
/// So many trials in a row must hold. More keeps a cured server waiting, fewer lets a coin-flipper back.
pub const TRIALS_HELD: u32 = 3;

#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    period: u64,
    placed: u32,
    closed_at_once: u32,
}

#[derive(Debug, Clone, Default)]
struct Watched {
    tallies: [Tally; PERIODS],
    trials: Option<Trials>,
}

/// Of a server on probation.
#[derive(Debug, Clone, Default)]
struct Trials {
    since: Instant,
    /// Trial connections that have not yet held long enough, by their start.
    open: VecDeque<Instant>,
    held_in_a_row: u32,
}

impl Watched {
    fn tally(&mut self, now: Instant) -> &mut Tally {
        let period = now.0 / PERIOD.as_nanos() as u64;
        let tally = &mut self.tallies[period as usize % PERIODS];
        if tally.period != period {
            *tally = Tally { period, ..Tally::default() };
        }
        tally
    }

    /// Placements in the window and the share of them closed at once.
    fn share(&self, now: Instant) -> (u32, f64) {
        let oldest = (now.0 / PERIOD.as_nanos() as u64).saturating_sub(PERIODS as u64 - 1);
        let fresh = || self.tallies.iter().filter(|tally| tally.period >= oldest);
        let placed: u32 = fresh().map(|tally| tally.placed).sum();
        let closed: u32 = fresh().map(|tally| tally.closed_at_once).sum();
        (placed, f64::from(closed) / f64::from(placed.max(1)))
    }
}

/// The servers of one fleet, by slot, as one gateway saw them behave.
#[derive(Debug, Clone, Default)]
pub struct Probation {
    each: Vec<Watched>,
    arrivals: u32,
    tried_at: Instant,
    turn: usize,
    on: Vec<u32>,
}

impl Probation {
    /// Makes room for a slot, or forgets what its last life did.
    pub fn reset(&mut self, slot: u32) {
        let slot = slot as usize;
        if self.each.len() <= slot {
            self.each.resize_with(slot + 1, Watched::default);
        }
        self.each[slot] = Watched::default();
        self.on.retain(|on| *on as usize != slot);
    }

    /// A handshake on it succeeded.
    pub fn connected(&mut self, slot: u32, now: Instant) {
        /// Trials watched at once; more in flight prove nothing more.
        const OPEN_MAX: usize = 8;
        let watched = &mut self.each[slot as usize];
        watched.tally(now).placed += 1;
        if let Some(trials) = watched.trials.as_mut().filter(|trials| trials.open.len() < OPEN_MAX) {
            trials.open.push_back(now);
        }
    }

    /// A connection on it ended after `lasted`.
    pub fn closed(&mut self, slot: u32, lasted: Duration, now: Instant) {
        if lasted >= HELD_AFTER {
            return;
        }
        let watched = &mut self.each[slot as usize];
        watched.tally(now).closed_at_once += 1;
        if let Some(trials) = watched.trials.as_mut().filter(|trials| trials.since <= now - lasted) {
            trials.open.pop_back();
            trials.held_in_a_row = 0;
        }
    }

    /// Judges all servers anew. `slots` are those that count as the fleet.
    pub fn judge(&mut self, slots: &[u32], now: Instant) {
        for watched in &mut self.each {
            let Some(trials) = &mut watched.trials else { continue };
            while trials.open.front().is_some_and(|start| now.since(*start) >= HELD_AFTER) {
                trials.open.pop_front();
                trials.held_in_a_row += 1;
            }
            if trials.held_in_a_row >= TRIALS_HELD {
                *watched = Watched::default();
            }
        }
        let suspicious = self.suspicious(slots, now);
        let most = (slots.len() / 3).max(1);
        let on = |each: &[Watched], slot: u32| each[slot as usize].trials.is_some();
        let all = slots.iter().filter(|slot| on(&self.each, **slot) || suspicious.contains(slot)).count();
        for slot in slots {
            let trials = &mut self.each[*slot as usize].trials;
            if all > most {
                *trials = None;
            } else if trials.is_none() && suspicious.contains(slot) {
                *trials = Some(Trials { since: now, ..Trials::default() });
            }
        }
        self.on.clear();
        self.on.extend(slots.iter().filter(|slot| self.each[**slot as usize].trials.is_some()));
    }

    fn suspicious(&self, slots: &[u32], now: Instant) -> Vec<u32> {
        let seen = || slots.iter().map(|slot| (*slot, self.each[*slot as usize].share(now)));
        if !seen().any(|(_, (placed, share))| placed >= PLACED_MIN && share > SHARE_MIN) {
            return Vec::new();
        }
        // One that got few placements proves little and closed few at once: a hole swallows what the others would
        // get, and a single short visit to each of them must not excuse it.
        let mut shares: Vec<f64> = seen()
            .map(|(_, (placed, share))| share * f64::from(placed) / f64::from(placed.max(PLACED_MIN)))
            .collect();
        shares.sort_by(f64::total_cmp);
        let median = shares.get(shares.len().saturating_sub(1) / 2).copied().unwrap_or(0.0);
        let most = SHARE_MIN.max(MEDIAN_TIMES * median);
        seen()
            .filter(|(_, (placed, share))| *placed >= PLACED_MIN && *share > most)
            .map(|(slot, _)| slot)
            .collect()
    }

    /// Whether a server is on probation.
    #[must_use]
    pub fn is_on(&self, slot: u32) -> bool {
        self.on.contains(&slot)
    }

    /// The servers on probation.
    #[must_use]
    pub fn on(&self) -> &[u32] {
        &self.on
    }

    /// Counts one arrival and says whether it is a trial, and on which server.
    pub fn trial(&mut self, now: Instant) -> Option<u32> {
        if self.on.is_empty() {
            (self.arrivals, self.tried_at) = (0, now);
            return None;
        }
        self.arrivals += self.on.len() as u32;
        let overdue = now.since(self.tried_at) >= TRIAL_AFTER && self.arrivals >= TRIAL_EVERY_MIN;
        if self.arrivals < TRIAL_EVERY && !overdue {
            return None;
        }
        self.arrivals = self.arrivals.saturating_sub(TRIAL_EVERY);
        self.tried_at = now;
        self.turn = (self.turn + 1) % self.on.len();
        Some(self.on[self.turn])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(1_000_000 + ms)
    }

    fn fleet(servers: u32) -> (Probation, Vec<u32>) {
        let mut probation = Probation::default();
        (0..servers).for_each(|slot| probation.reset(slot));
        (probation, (0..servers).collect())
    }

    fn place(probation: &mut Probation, slot: u32, placed: u32, closed_at_once: u32, now: Instant) {
        (0..placed).for_each(|_| probation.connected(slot, now));
        (0..closed_at_once).for_each(|_| probation.closed(slot, Duration::from_millis(5), now));
    }

    #[test]
    fn a_server_that_closes_at_once_is_put_on_probation() {
        let (mut probation, slots) = fleet(4);
        (0..4).for_each(|slot| place(&mut probation, slot, 20, 0, at(0)));
        place(&mut probation, 2, 5, 7, at(0));
        probation.judge(&slots, at(100));
        assert_eq!(probation.on(), [2]);
    }

    #[test]
    fn one_short_visit_to_each_of_the_others_does_not_excuse_a_hole() {
        let (mut probation, slots) = fleet(4);
        (0..3).for_each(|slot| place(&mut probation, slot, 1, 1, at(0)));
        place(&mut probation, 3, 20, 20, at(0));
        probation.judge(&slots, at(100));
        assert_eq!(probation.on(), [3]);
    }

    #[test]
    fn fewer_than_ten_placements_prove_nothing() {
        let (mut probation, slots) = fleet(4);
        place(&mut probation, 2, 9, 9, at(0));
        probation.judge(&slots, at(100));
        assert!(probation.on().is_empty());
        place(&mut probation, 2, 1, 1, at(0));
        probation.judge(&slots, at(200));
        assert_eq!(probation.on(), [2]);
    }

    #[test]
    fn connections_that_held_two_seconds_do_not_count() {
        let (mut probation, slots) = fleet(3);
        place(&mut probation, 0, 20, 0, at(0));
        (0..20).for_each(|_| probation.closed(0, Duration::from_millis(2_000), at(2_000)));
        probation.judge(&slots, at(2_000));
        assert!(probation.on().is_empty());
    }

    #[test]
    fn short_sessions_everywhere_are_no_fault_of_a_server() {
        let (mut probation, slots) = fleet(4);
        (0..4).for_each(|slot| place(&mut probation, slot, 100, 30 + slot * 10, at(0)));
        probation.judge(&slots, at(100));
        assert!(probation.on().is_empty(), "60 % against a median of 40 %");
    }

    #[test]
    fn nobody_is_on_probation_when_more_than_a_third_deserves_it() {
        let (mut probation, slots) = fleet(9);
        (0..9).for_each(|slot| place(&mut probation, slot, 20, if slot < 3 { 20 } else { 0 }, at(0)));
        probation.judge(&slots, at(100));
        assert_eq!(probation.on(), [0, 1, 2]);
        place(&mut probation, 3, 20, 20, at(200));
        probation.judge(&slots, at(300));
        assert!(probation.on().is_empty());
    }

    #[test]
    fn what_happened_half_a_minute_ago_is_forgotten() {
        let (mut probation, slots) = fleet(4);
        place(&mut probation, 2, 20, 20, at(0));
        probation.judge(&slots, at(31_000));
        assert!(probation.on().is_empty());
    }

    #[test]
    fn one_in_a_hundred_arrivals_is_a_trial_for_each() {
        let (mut probation, slots) = fleet(6);
        place(&mut probation, 1, 20, 20, at(0));
        place(&mut probation, 4, 20, 20, at(0));
        probation.judge(&slots, at(100));
        let trials: Vec<u32> = (0..1_000).filter_map(|_| probation.trial(at(100))).collect();
        assert_eq!(trials.iter().filter(|slot| **slot == 1).count(), 10);
        assert_eq!(trials.iter().filter(|slot| **slot == 4).count(), 10);
    }

    #[test]
    fn few_arrivals_do_not_keep_a_cured_server_waiting() {
        let (mut probation, slots) = fleet(4);
        place(&mut probation, 1, 20, 20, at(0));
        probation.judge(&slots, at(0));
        let trial = |probation: &mut Probation, s: u64| probation.trial(at(s * 1_000));
        assert_eq!(trial(&mut probation, 0), None);
        // One arrival each second: a trial each 30 s.
        let trials = (1..=120).filter(|second| trial(&mut probation, *second).is_some()).count();
        assert_eq!(trials, 4);
        // One each five seconds: a trial each 50 s, one in ten.
        let trials = (0..100).filter(|step| trial(&mut probation, 200 + step * 5).is_some()).count();
        assert_eq!(trials, 10);
    }

    #[test]
    fn probation_ends_when_three_trials_in_a_row_have_held() {
        let (mut probation, slots) = fleet(4);
        place(&mut probation, 2, 20, 20, at(0));
        probation.judge(&slots, at(0));
        for second in [40, 50] {
            probation.connected(2, at(second * 1_000));
            probation.judge(&slots, at(second * 1_000 + 2_000));
        }
        place(&mut probation, 2, 1, 1, at(60_000));
        probation.judge(&slots, at(63_000));
        assert!(probation.is_on(2), "the third trial failed, so the count starts again");
        for second in [70, 80, 90] {
            assert!(probation.is_on(2));
            probation.connected(2, at(second * 1_000));
            probation.judge(&slots, at(second * 1_000 + 2_000));
        }
        assert!(!probation.is_on(2));
    }

    #[test]
    fn a_new_life_starts_without_probation() {
        let (mut probation, slots) = fleet(4);
        place(&mut probation, 2, 20, 20, at(0));
        probation.judge(&slots, at(0));
        probation.reset(2);
        assert!(!probation.is_on(2));
        probation.judge(&slots, at(100));
        assert!(!probation.is_on(2));
    }
}
