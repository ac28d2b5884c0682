//! The one place of this crate that reads a clock, draws chance and starts tasks.
//!
//! The SDK ships alone, so it may not use the project's shared shell; what it needs of it is this much.

use std::future::{Future, pending};
use std::time::{SystemTime, UNIX_EPOCH};

use evenkeel_model::Instant;
use ring::rand::{SecureRandom, SystemRandom};

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
        match at.and_then(|at| self.on_timer(at)) {
            Some(at) => tokio::time::sleep_until(at).await,
            None => pending().await,
        }
    }

    /// `at` as the runtime's timers count; `None`: too far away for any.
    pub(crate) fn on_timer(&self, at: Instant) -> Option<tokio::time::Instant> {
        self.started.checked_add(at.since(self.origin)).map(Into::into)
    }
}

/// Random bytes that nobody can foresee. `None`: the system gives none.
pub(crate) fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).ok().map(|()| bytes)
}

/// Runs a task on the current runtime. The agent's tasks end when its handle and all its clones are dropped.
#[allow(clippy::disallowed_methods)] // This is the allowed place.
pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(future);
}
