//! The one place of this crate that reads a clock, draws chance and starts tasks. The SDK ships alone, so it may not
//! use the project's shared shell.

use std::future::{Future, pending};

use evenkeel_model::Instant;
use ring::rand::{SecureRandom, SystemRandom};

/// Time since the session began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(tokio::time::Instant);

impl Clock {
    #[allow(clippy::disallowed_methods)] // This is the allowed place.
    pub(crate) fn start() -> Self {
        Self(tokio::time::Instant::now())
    }

    pub(crate) fn now(self) -> Instant {
        Instant::ZERO + self.0.elapsed()
    }

    /// Waits until `at`; forever for `None`. Cancel-safe.
    pub(crate) async fn sleep_until(self, at: Option<Instant>) {
        match at {
            Some(at) => tokio::time::sleep_until(self.0 + at.since(Instant::ZERO)).await,
            None => pending().await,
        }
    }
}

/// Random bytes that nobody can foresee. `None`: the system gives none.
pub(crate) fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).ok().map(|()| bytes)
}

/// Runs a task on the current runtime.
#[allow(clippy::disallowed_methods)] // This is the allowed place.
pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(future);
}
