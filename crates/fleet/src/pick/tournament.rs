//! Keeps the best seat of a large fleet at hand for the exact rules: a tournament over the seats that can take a
//! connection, in which one changed seat plays its log₂ n matches anew.
//!
//! Invariant: the winner is the seat that a look at all of them would choose.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use evenkeel_model::Instant;

use super::{Rule, Seats, before};

/// No seat.
const NONE: u32 = u32::MAX;

/// The tournament of one fleet.
#[derive(Debug, Clone, Default)]
pub(super) struct Tournament {
    /// A complete binary tree: the final at 1, the seats at `leaves` and up. Empty while the rule needs none.
    winners: Vec<u32>,
    leaves: usize,
    /// Seats that come in when they have credit again.
    waiting: BTreeSet<(Instant, u32)>,
}

impl Tournament {
    /// Plays all matches anew.
    pub(super) fn refill(&mut self, seats: &Seats<'_>, rule: Rule) {
        self.leaves = seats.each.len().next_power_of_two();
        self.winners.clear();
        self.winners.resize(2 * self.leaves, NONE);
        self.waiting.clear();
        for index in 0..seats.each.len() as u32 {
            self.enter(seats, index);
        }
        for node in (1..self.leaves).rev() {
            self.play(seats, rule, node);
        }
    }

    pub(super) fn clear(&mut self) {
        self.winners.clear();
        self.waiting.clear();
    }

    pub(super) fn is_used(&self) -> bool {
        !self.winners.is_empty()
    }

    /// A seat's counts, credit or permission changed.
    pub(super) fn changed(&mut self, seats: &Seats<'_>, rule: Rule, index: u32) {
        self.enter(seats, index);
        let mut node = (self.leaves + index as usize) / 2;
        while node > 0 {
            let before = self.winners[node];
            self.play(seats, rule, node);
            // A match that it neither won nor wins changes nothing further up.
            if self.winners[node] == before && before != index {
                break;
            }
            node /= 2;
        }
    }

    /// The best seat that can take a connection now.
    pub(super) fn winner(&mut self, seats: &Seats<'_>, rule: Rule) -> Option<u32> {
        while let Some((_, index)) = self.waiting.first().copied().filter(|(at, _)| *at <= seats.now) {
            self.waiting.pop_first();
            self.changed(seats, rule, index);
        }
        loop {
            let winner = self.winners.get(1).copied().unwrap_or(NONE);
            let seat = seats.each.get(winner as usize)?;
            if seat.open(seats.now) && seat.arrival_at <= seats.now {
                return Some(winner);
            }
            // Trust in it ran out since it last played.
            self.changed(seats, rule, winner);
        }
    }

    fn enter(&mut self, seats: &Seats<'_>, index: u32) {
        let seat = &seats.each[index as usize];
        let open = seat.open(seats.now);
        let has_credit = seat.arrival_at <= seats.now;
        self.winners[self.leaves + index as usize] = if open && has_credit { index } else { NONE };
        if open && !has_credit {
            self.waiting.insert((seat.arrival_at, index));
        }
    }

    fn play(&mut self, seats: &Seats<'_>, rule: Rule, node: usize) {
        let (a, b) = (self.winners[2 * node], self.winners[2 * node + 1]);
        let wins_b = match (seats.each.get(a as usize), seats.each.get(b as usize)) {
            (Some(left), Some(right)) => before(rule, right, left, seats.weight),
            (left, _) => left.is_none(),
        };
        self.winners[node] = if wins_b { b } else { a };
    }
}
