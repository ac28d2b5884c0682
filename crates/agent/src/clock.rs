//! The one place of this crate that reads a clock and starts tasks.
//!
//! The SDK ships alone, so it may not use the project's shared shell; what it needs of it is this much.

use std::future::{Future, pending};
use std::time::{SystemTime, UNIX_EPOCH};

use evenkeel_model::Instant;

/// The agent's clock: Unix time at its start, monotonic from then on. Copies agree.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    origin: Instant,
    started: std::time::Instant,
}

impl Clock {
    #[allow(clippy::disallowed_methods)] // This is the allowed place.
    pub(crate) fn start() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { origin: Instant::ZERO + unix, started: std::time::Instant::now() }
    }

    #[inline]
    pub(crate) fn now(&self) -> Instant {
        self.origin + self.started.elapsed()
    }

    /// Waits until `at`; at once if that is past, forever for `None`. Cancel-safe.
    pub(crate) async fn sleep_until(&self, at: Option<Instant>) {
        match at.and_then(|at| self.started.checked_add(at.since(self.origin))) {
            Some(at) => tokio::time::sleep_until(at.into()).await,
            None => pending().await,
        }
    }
}

/// Runs a task on the current runtime. The agent's tasks end when its handle and all its clones are dropped.
#[allow(clippy::disallowed_methods)] // This is the allowed place.
pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(future);
}
