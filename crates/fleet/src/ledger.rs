//! Remembers placements on their way: which server each went to, until its outcome is known or it expires.
//!
//! In: placements in the order they are made, with what is to be known of each (its server, at least), outcomes in
//! any order. Out: what is known of it and whether it still counted as pending. Invariants: a placement counts as pending exactly once, from [`Ledger::open`] to
//! the first of its outcome and its expiry; memory is bounded by the placements of [`KEPT_TTLS`] lifetimes.
//! Elsewhere: the counts themselves (`gateway`).

use alloc::collections::VecDeque;

use evenkeel_model::{Duration, Instant};

/// An expired placement stays known for so many lifetimes, so that a very late 101 still finds its server.
/// Larger values only cost memory (24 bytes a placement).
pub const KEPT_TTLS: u32 = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Pending,
    Expired,
    Settled,
}

#[derive(Debug, Clone, Copy)]
struct Entry<T> {
    of: T,
    outcome: Outcome,
    at: Instant,
}

/// What a settled placement was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled<T = u32> {
    /// What was noted of it: the server's slot, at least.
    pub of: T,
    /// Whether it counted as pending until now; false after it expired.
    pub was_pending: bool,
}

/// Placements on their way, oldest first. Numbers are given in turn, so a placement's entry is found by
/// subtraction.
#[derive(Debug, Clone)]
pub struct Ledger<T = u32> {
    first: u64,
    /// Entries before this index are no longer pending.
    unexpired: usize,
    entries: VecDeque<Entry<T>>,
}

impl<T> Default for Ledger<T> {
    fn default() -> Self {
        Self { first: 0, unexpired: 0, entries: VecDeque::new() }
    }
}

impl<T: Copy> Ledger<T> {
    /// Notes a placement and gives it its number.
    pub fn open(&mut self, of: T, now: Instant) -> u64 {
        self.entries.push_back(Entry { of, outcome: Outcome::Pending, at: now });
        self.first + self.entries.len() as u64 - 1
    }

    /// What was noted of a placement that is not forgotten.
    #[must_use]
    pub fn of(&self, placement: u64) -> Option<T> {
        let index = usize::try_from(placement.checked_sub(self.first)?).ok()?;
        self.entries.get(index).map(|entry| entry.of)
    }

    /// Ends a placement. `None` when it was settled before, or forgotten long after its expiry.
    pub fn settle(&mut self, placement: u64) -> Option<Settled<T>> {
        let index = usize::try_from(placement.checked_sub(self.first)?).ok()?;
        let entry = self.entries.get_mut(index)?;
        if entry.outcome == Outcome::Settled {
            return None;
        }
        let settled = Settled { of: entry.of, was_pending: entry.outcome == Outcome::Pending };
        entry.outcome = Outcome::Settled;
        while self.entries.front().is_some_and(|entry| entry.outcome == Outcome::Settled) {
            self.drop_first();
        }
        Some(settled)
    }

    /// One more placement that is older than `ttl` and counted as pending until now.
    pub fn expire(&mut self, ttl: Duration, now: Instant) -> Option<T> {
        while let Some(entry) = self.entries.get_mut(self.unexpired) {
            if now.since(entry.at) < ttl {
                break;
            }
            self.unexpired += 1;
            if entry.outcome == Outcome::Pending {
                entry.outcome = Outcome::Expired;
                return Some(entry.of);
            }
        }
        while self.entries.front().is_some_and(|entry| now.since(entry.at) >= ttl * KEPT_TTLS) {
            self.drop_first();
        }
        None
    }

    /// When the oldest placement that may be pending expires.
    #[must_use]
    pub fn expires_at(&self, ttl: Duration) -> Option<Instant> {
        self.entries.get(self.unexpired).map(|entry| entry.at + ttl)
    }

    /// What was noted of those that count as pending, for tests.
    #[cfg(test)]
    pub(crate) fn pending(&self) -> impl Iterator<Item = T> {
        self.entries.iter().filter(|entry| entry.outcome == Outcome::Pending).map(|entry| entry.of)
    }

    /// Placements remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn drop_first(&mut self) {
        self.entries.pop_front();
        self.first += 1;
        self.unexpired = self.unexpired.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn at(s: u64) -> Instant {
        Instant::from_millis(s * 1_000)
    }

    fn pending(slot: u32) -> Option<Settled> {
        Some(Settled { of: slot, was_pending: true })
    }

    #[test]
    fn a_placement_is_settled_once_whatever_the_order() {
        let mut ledger = Ledger::<u32>::default();
        let a = ledger.open(7, at(0));
        let b = ledger.open(8, at(0));
        assert_eq!(ledger.settle(b), pending(8));
        assert_eq!(ledger.settle(b), None);
        assert_eq!(ledger.settle(a), pending(7));
        assert_eq!(ledger.settle(a), None);
        let c = ledger.open(9, at(1));
        assert_eq!(ledger.settle(c), pending(9));
        assert_eq!(ledger.settle(c + 1), None);
    }

    #[test]
    fn a_placement_without_evidence_expires_once_and_is_still_known_afterwards() {
        let mut ledger = Ledger::<u32>::default();
        let a = ledger.open(1, at(0));
        let b = ledger.open(2, at(1));
        ledger.open(3, at(5));
        assert_eq!(ledger.expires_at(TTL), Some(at(10)));
        assert_eq!(ledger.settle(b), pending(2));
        assert_eq!(ledger.expire(TTL, at(9)), None);
        assert_eq!(ledger.expire(TTL, at(11)), Some(1));
        assert_eq!(ledger.expire(TTL, at(11)), None, "b was settled");
        assert_eq!(ledger.settle(a), Some(Settled { of: 1, was_pending: false }));
        assert_eq!(ledger.expire(TTL, at(15)), Some(3));
    }

    #[test]
    fn memory_is_bounded_when_nothing_is_ever_settled() {
        let mut ledger = Ledger::<u32>::default();
        for second in 0..1_000 {
            ledger.open(0, at(second));
            while ledger.expire(TTL, at(second)).is_some() {}
        }
        assert!(ledger.len() <= 61, "{}", ledger.len());
        let next = ledger.open(4, at(1_000));
        assert_eq!(ledger.settle(next), pending(4), "numbers stay right after forgetting");
    }
}
