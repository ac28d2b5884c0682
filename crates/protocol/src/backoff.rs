//! Decides how long a client waits before it dials again.
//!
//! In: the attempts so far, what a server said about coming back, one [`Chance`] per answer. Out: a wait. Invariants:
//! without a word from a server the wait is even over 0 to min(cap, base · 2ⁿ) (full jitter: most client libraries
//! have none, and a fleet that comes back in step falls over in step); with one it lies within the window the
//! server gave; only a connection that lived counts as success. Elsewhere: when to dial (`moving::client`).

use evenkeel_model::{Duration, Rng};

/// A connection that lived so long was a success: the next wait is a first one. One that the server closes at once
/// (refused credentials, a crash on connect) must not be dialled at full speed for ever.
pub const MIN_UPTIME: Duration = Duration::from_secs(5);

/// First range of waits until a negotiate says otherwise.
pub const BASE: Duration = Duration::from_millis(500);

/// Longest range of waits until a negotiate says otherwise. Larger values leave clients away long after a server
/// is back, smaller ones make a fleet that is down be dialled more often.
pub const CAP: Duration = Duration::from_secs(20);

/// Doublings after which the range no longer grows; far above every cap.
const DOUBLINGS_MAX: u32 = 20;

/// A share from 0 to below 1, drawn evenly by the caller, so that the machines here draw nothing themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Chance(u32);

impl Chance {
    /// A fresh one.
    pub fn draw(rng: &mut Rng) -> Self {
        Self((rng.next_u64() >> 32) as u32)
    }

    /// The share `value`, cut to 0 to just below 1; for tests and for callers with their own source of chance.
    #[must_use]
    pub fn new(value: f64) -> Self {
        Self((value.clamp(0.0, 1.0) * f64::from(u32::MAX)).round() as u32)
    }

    /// That share of a duration.
    #[must_use]
    pub fn of(self, range: Duration) -> Duration {
        let nanos = (range.as_nanos() * u128::from(self.0)) >> 32;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// When a server that refused wants to be asked again: after `wait`, spread evenly over `window`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ComeBack {
    /// Not before.
    pub wait: Duration,
    /// Spread of the clients told so.
    pub window: Duration,
}

/// The waits of one session. See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    attempt: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: BASE, cap: CAP, attempt: 0 }
    }
}

impl Backoff {
    /// Takes the range a negotiate named (`retry`), at least a millisecond and with the cap not below the base.
    pub fn range(&mut self, base: Duration, cap: Duration) {
        self.base = base.max(Duration::from_millis(1));
        self.cap = cap.max(self.base);
    }

    /// Says how long the connection that just ended had lived.
    pub fn lived(&mut self, uptime: Duration) {
        if uptime >= MIN_UPTIME {
            self.attempt = 0;
        }
    }

    /// The next wait by our own rule.
    pub fn wait(&mut self, chance: Chance) -> Duration {
        let range = self.base.saturating_mul(1 << self.attempt.min(DOUBLINGS_MAX)).min(self.cap);
        self.attempt = self.attempt.saturating_add(1);
        chance.of(range)
    }

    /// The next wait as a server wants it; by our own rule where it names no time at all, because a mistake there
    /// must not make clients dial without a pause.
    pub fn wait_as_told(&mut self, told: ComeBack, chance: Chance) -> Duration {
        if told == ComeBack::default() {
            return self.wait(chance);
        }
        told.wait + chance.of(told.window)
    }

    /// A soon wait that does not count as an attempt: the network came back.
    #[must_use]
    pub fn soon(&self, chance: Chance) -> Duration {
        chance.of(self.base)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use evenkeel_model::Rng;

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// The widest waits of the next attempts.
    fn widest(backoff: &mut Backoff, times: usize) -> Vec<u128> {
        let almost_one = Chance(u32::MAX);
        (0..times).map(|_| (backoff.wait(almost_one) + ms(1)).as_millis()).collect()
    }

    #[test]
    fn the_range_doubles_up_to_the_cap_and_starts_over_after_a_connection_that_lived() {
        let mut backoff = Backoff::default();
        assert_eq!(widest(&mut backoff, 7), [500, 1_000, 2_000, 4_000, 8_000, 16_000, 20_000]);
        backoff.lived(ms(4_999));
        assert_eq!(widest(&mut backoff, 1), [20_000]);
        backoff.lived(ms(5_000));
        assert_eq!(widest(&mut backoff, 2), [500, 1_000]);
    }

    #[test]
    fn a_server_that_names_no_time_is_not_dialled_without_a_pause() {
        let mut backoff = Backoff::default();
        let told = ComeBack { wait: ms(700), window: ms(200) };
        assert_eq!(backoff.wait_as_told(told, Chance::new(0.5)).as_millis(), 800);
        assert_eq!(backoff.wait_as_told(ComeBack::default(), Chance::new(0.5)).as_millis(), 250);
        assert_eq!(backoff.wait_as_told(ComeBack::default(), Chance::new(0.5)).as_millis(), 500);
    }

    #[test]
    fn waits_of_many_clients_are_spread_evenly_over_the_range() {
        let mut rng = Rng::new(7);
        let mut tenths = [0u32; 10];
        for _ in 0..10_000 {
            let wait = Backoff::default().wait(Chance::draw(&mut rng));
            tenths[(wait.as_millis() / 50) as usize] += 1;
        }
        assert!(tenths.iter().all(|&n| (850..=1_150).contains(&n)), "{tenths:?}");
    }

    proptest! {
        #[test]
        fn a_wait_never_leaves_its_range(base in 0u64..5_000, cap in 0u64..90_000, unit in 0.0f64..1.0, tries in 1usize..40) {
            let mut backoff = Backoff::default();
            backoff.range(ms(base), ms(cap));
            for _ in 0..tries {
                prop_assert!(backoff.wait(Chance::new(unit)) <= ms(cap.max(base).max(1)));
            }
        }
    }
}
