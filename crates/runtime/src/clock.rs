//! The one place that reads a clock.
//!
//! Out: [`Instant`]s, Unix-based and monotonic in one process, and futures that wait for one. Elsewhere: machines
//! take `now` and say by `poll_timeout` when they want to be woken.

use std::future::pending;
use std::time::{SystemTime, UNIX_EPOCH};

use evenkeel_model::{Duration, Instant};

/// The process's clock. Cheap to copy; copies agree. Make one at start and hand it out: a second one may differ
/// by whatever the wall clock was set in between.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
    started: std::time::Instant,
}

impl Clock {
    /// A clock that starts at the present wall-clock time and from then on only goes forward.
    #[must_use]
    #[allow(clippy::disallowed_methods)] // This is the allowed place.
    pub fn start() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { origin: Instant::ZERO + unix, started: std::time::Instant::now() }
    }

    /// The present.
    #[must_use]
    #[inline]
    pub fn now(&self) -> Instant {
        self.origin + self.started.elapsed()
    }

    /// Waits until `at`; at once if that is past, forever for `None`.
    ///
    /// # Cancel safety
    /// Yes: a dropped wait leaves nothing behind.
    pub async fn sleep_until(&self, at: Option<Instant>) {
        let deadline = at.and_then(|at| self.started.checked_add(at.since(self.origin)));
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
            None => pending().await,
        }
    }

    /// Waits for `duration`.
    ///
    /// # Cancel safety
    /// Yes.
    pub async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn clock_goes_forward_and_wakes_no_earlier_than_asked() {
        let clock = Clock::start();
        let at = clock.now() + Duration::from_millis(20);
        clock.sleep_until(Some(at)).await;
        assert!(clock.now() >= at);
        clock.sleep_until(Some(Instant::ZERO)).await;
    }

    #[test]
    fn clock_counts_from_the_unix_epoch() {
        // 2024-01-01; the machine's clock is younger than this source.
        assert!(Clock::start().now() > Instant::from_millis(1_704_067_200_000));
    }
}
