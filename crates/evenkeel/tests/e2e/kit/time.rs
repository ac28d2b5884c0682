//! Waiting for conditions, with a deadline each. The only place of the scenarios that sleeps.

use std::time::{Duration, Instant};

/// Time between two looks at a condition.
const LOOK: Duration = Duration::from_millis(20);

/// Measures durations.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    #[allow(clippy::disallowed_methods)] // Scenarios measure real time; no decision depends on it.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Since the start.
    pub(crate) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// Looks until `look` gives something; panics with `what` after `deadline`.
pub(crate) async fn until<T>(what: &str, deadline: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let watch = Stopwatch::start();
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(watch.elapsed() < deadline, "not within {deadline:?}: {what}");
        pause(LOOK).await;
    }
}

/// Lets time pass where time itself is what a scenario is about: an arrival rate, an observation window.
pub(crate) async fn pause(duration: Duration) {
    // sleep: paces arrivals and observation windows, synchronises nothing.
    tokio::time::sleep(duration).await;
}

/// Runs something beside the scenario, which sees to its end.
#[allow(clippy::disallowed_methods)] // A scenario is no role.
pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(future);
}
