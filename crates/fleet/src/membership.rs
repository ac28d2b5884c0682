//! Decides whether a server can be trusted to answer, from its signs of life.
//!
//! In: reports, passed and failed checks, broken links, failed handshakes, bytes seen, process exits. Out: a
//! [`Health`] and since when. Invariants: silence makes a server suspect, never dead; only a refused connect, an
//! exit or failures in a row make it dead; a report or a passed check ends both.
//! Elsewhere: what suspicion does to a server (`allot`: it is pinned), what a gateway sees for itself (`gateway`).

use evenkeel_model::{Duration, Instant};

use crate::config::HealthConfig;
use crate::snapshot::Health;

/// Signs of life of one server.
#[derive(Debug, Clone, PartialEq)]
pub struct Pulse {
    heard: Option<Instant>,
    broken: bool,
    dead: bool,
    failed_checks: u32,
    health: Health,
    since: Instant,
}

impl Pulse {
    /// A server nobody heard of yet.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self { heard: None, broken: false, dead: false, failed_checks: 0, health: Health::Ok, since: now }
    }

    /// A report or a passed check: it lives.
    pub fn beat(&mut self, now: Instant) {
        self.heard = Some(now);
        self.broken = false;
        self.dead = false;
        self.failed_checks = 0;
    }

    /// Any other message or bytes from it at that time: it is not silent, but a dead one stays dead. A time ahead
    /// presumes it heard until then; the next beat ends the presumption.
    pub fn noise(&mut self, at: Instant) {
        self.heard = self.heard.max(Some(at));
    }

    /// Its link broke: suspect at once, until the next beat.
    pub fn broke(&mut self) {
        self.broken = true;
    }

    /// Connect refused, process gone, failed handshakes in a row: dead until the next beat.
    pub fn died(&mut self) {
        self.dead = true;
    }

    /// A check failed. So many in a row make it dead.
    pub fn failed_check(&mut self, config: &HealthConfig) {
        self.failed_checks = self.failed_checks.saturating_add(1);
        self.dead |= self.failed_checks >= config.dead_after;
    }

    /// What it is now, if that is not what it was judged last.
    #[must_use]
    pub fn turned(&self, now: Instant, config: &HealthConfig) -> Option<Health> {
        let silent = self.silent(now).is_some_and(|silent| silent >= config.suspect_after);
        let next = match (self.dead, self.broken || silent) {
            (true, _) => Health::Dead,
            (false, true) => Health::Suspect,
            (false, false) => Health::Ok,
        };
        (next != self.health).then_some(next)
    }

    /// Judges anew and says the health if it changed.
    pub fn judge(&mut self, now: Instant, config: &HealthConfig) -> Option<Health> {
        let next = self.turned(now, config)?;
        self.health = next;
        self.since = now;
        Some(next)
    }

    /// As judged last.
    #[must_use]
    pub const fn health(&self) -> Health {
        self.health
    }

    /// Last sign of life.
    #[must_use]
    pub const fn heard(&self) -> Option<Instant> {
        self.heard
    }

    /// Silence since its last sign of life.
    #[must_use]
    pub fn silent(&self, now: Instant) -> Option<Duration> {
        self.heard.map(|heard| now.since(heard))
    }

    /// Whether its trouble is older than `act_after`, so that scale and drain may act on it.
    #[must_use]
    pub fn is_lasting(&self, now: Instant, config: &HealthConfig) -> bool {
        self.health != Health::Ok && now.since(self.since) >= config.act_after
    }

    /// Since when it has this health.
    #[must_use]
    pub const fn since(&self) -> Instant {
        self.since
    }

    /// When silence would make it suspect.
    #[must_use]
    pub fn suspect_at(&self, config: &HealthConfig) -> Option<Instant> {
        self.heard.filter(|_| self.health == Health::Ok).map(|heard| heard + config.suspect_after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: HealthConfig = HealthConfig {
        suspect_after: Duration::from_millis(1_500),
        act_after: Duration::from_secs(30),
        dead_after: 3,
    };

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    #[test]
    fn silence_makes_suspect_and_never_dead() {
        let mut pulse = Pulse::new(at(0));
        assert_eq!(pulse.judge(at(60_000), &CONFIG), None, "nobody heard of it yet");
        pulse.beat(at(60_000));
        assert_eq!(pulse.judge(at(61_499), &CONFIG), None);
        assert_eq!(pulse.suspect_at(&CONFIG), Some(at(61_500)));
        assert_eq!(pulse.judge(at(61_500), &CONFIG), Some(Health::Suspect));
        assert_eq!(pulse.judge(at(900_000), &CONFIG), None);
        assert!(pulse.is_lasting(at(900_000), &CONFIG));
        pulse.beat(at(900_001));
        assert_eq!(pulse.judge(at(900_001), &CONFIG), Some(Health::Ok));
    }

    #[test]
    fn a_broken_link_is_suspect_at_once() {
        let mut pulse = Pulse::new(at(0));
        pulse.beat(at(0));
        pulse.broke();
        assert_eq!(pulse.judge(at(1), &CONFIG), Some(Health::Suspect));
        assert!(!pulse.is_lasting(at(29_000), &CONFIG));
    }

    #[test]
    fn bytes_end_silence_but_do_not_raise_the_dead() {
        let mut pulse = Pulse::new(at(0));
        pulse.beat(at(0));
        pulse.noise(at(1_400));
        assert_eq!(pulse.judge(at(2_000), &CONFIG), None);
        pulse.died();
        pulse.noise(at(2_100));
        assert_eq!(pulse.judge(at(2_100), &CONFIG), Some(Health::Dead));
    }

    #[test]
    fn three_failed_checks_in_a_row_make_dead_and_one_passed_ends_it() {
        let mut pulse = Pulse::new(at(0));
        pulse.failed_check(&CONFIG);
        pulse.failed_check(&CONFIG);
        assert_eq!(pulse.judge(at(1), &CONFIG), None);
        pulse.failed_check(&CONFIG);
        assert_eq!(pulse.judge(at(2), &CONFIG), Some(Health::Dead));
        pulse.beat(at(3));
        assert_eq!(pulse.judge(at(3), &CONFIG), Some(Health::Ok));
    }

    #[test]
    fn an_earlier_sign_that_arrives_later_changes_nothing() {
        let mut pulse = Pulse::new(at(0));
        pulse.beat(at(1_000));
        pulse.noise(at(500));
        assert_eq!(pulse.heard(), Some(at(1_000)));
    }
}
