//! Decides when clients come back that a negotiate refuses.
//!
//! In: each negotiate, let in or refused, with its time. Out: what to wait, and a window over which to spread. The more are
//! refused for each one let in, the longer the window: those who come back arrive at about the rate at which clients get
//! in. Invariant: never below [`WINDOW_MIN`] nor above [`WINDOW_MAX`]. Elsewhere: the credit itself
//! (`evenkeel_fleet`).

use evenkeel_model::{Duration, Instant};

/// Refusals of one moment come back over this at least: a client's retry would be answered by the same credit else.
const WINDOW_MIN: Duration = Duration::from_secs(1);
/// The longest: more would make people wait who could be served.
const WINDOW_MAX: Duration = Duration::from_secs(30);

/// The negotiates of this second and of the one before.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    second: u64,
    now: Tally,
    before: Tally,
}

#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    let_in: u64,
    refused: u64,
}

impl Backlog {
    pub(crate) fn let_in(&mut self, now: Instant) {
        self.turn(now);
        self.now.let_in += 1;
    }

    /// Counts one that is refused, and says over which time those that are should come back.
    pub(crate) fn refused(&mut self, now: Instant) -> Duration {
        self.turn(now);
        self.now.refused += 1;
        let refused = self.now.refused + self.before.refused;
        let let_in = (self.now.let_in + self.before.let_in).max(1);
        Duration::from_millis(1_000 * refused / let_in).clamp(WINDOW_MIN, WINDOW_MAX)
    }

    fn turn(&mut self, now: Instant) {
        let second = now.as_millis() / 1_000;
        if second == self.second {
            return;
        }
        self.before = if second == self.second + 1 { self.now } else { Tally::default() };
        (self.second, self.now) = (second, Tally::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_grows_with_those_who_wait_for_each_who_gets_in() {
        let at = Instant::from_millis;
        let mut backlog = Backlog::default();
        for _ in 0..100 {
            backlog.let_in(at(500));
        }
        assert_eq!(backlog.refused(at(600)), WINDOW_MIN);
        let last = (0..999).map(|_| backlog.refused(at(700))).last();
        assert_eq!(last, Some(Duration::from_secs(10)), "a thousand for a hundred in a second: ten seconds");
        assert_eq!(backlog.refused(at(1_700)), Duration::from_millis(10_010), "the second before counts");
        assert_eq!(backlog.refused(at(9_000)), WINDOW_MIN, "older ones do not");
        let with_nobody_let_in = (0..100).map(|_| backlog.refused(at(9_000))).last();
        assert_eq!(with_nobody_let_in, Some(WINDOW_MAX));
    }
}
