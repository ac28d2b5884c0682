//! Counts the clients that got no server, for the scale policy.

use alloc::collections::BTreeSet;

use evenkeel_model::Instant;

/// Distinct prefixes counted in one second; more than that is "very many" to the scale policy anyway.
const PREFIXES_MAX: usize = 4_096;

/// Distinct client prefixes that got no server, by second, over the last ten.
#[derive(Debug, Default)]
pub(super) struct RefusedPrefixes {
    second: u64,
    now: BTreeSet<u64>,
    past: [(u64, u32); 10],
}

impl RefusedPrefixes {
    pub(super) fn note(&mut self, prefix: u64, now: Instant) {
        self.turn(now);
        if self.now.len() < PREFIXES_MAX {
            self.now.insert(prefix);
        }
    }

    fn turn(&mut self, now: Instant) {
        let second = now.as_millis() / 1_000;
        if second != self.second {
            self.past[self.second as usize % self.past.len()] = (self.second, self.now.len() as u32);
            self.now.clear();
            self.second = second;
        }
    }

    pub(super) fn worst_second(&mut self, now: Instant) -> u32 {
        self.turn(now);
        let recent = |(second, _): &&(u64, u32)| self.second - second.min(&self.second) <= 9;
        let past = self.past.iter().filter(recent).map(|(_, count)| *count).max().unwrap_or(0);
        past.max(self.now.len() as u32)
    }
}
