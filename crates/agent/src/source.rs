//! What an agent speaks for: where its counts and measures come from, and who carries its orders out.
//!
//! Two of them: [`Own`], the connections of this process, and with the feature `sidecar` those of a process beside it
//! ([`crate::sidecar`]). Elsewhere: when what is asked ([`crate::driver`]).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use evenkeel_model::{Connections, Incarnation, Instant, Measures, Rng};
use evenkeel_protocol::agent::{Held, NodeClock};
use evenkeel_protocol::executor::{Admit, Closes};
use evenkeel_protocol::message::Key;

use crate::admission::Shared;
use crate::registry::{First, Told};
use crate::usage::Usage;

/// See the module's documentation.
pub(crate) trait Source: Send + Sync + 'static {
    /// Waits until the counts changed. Cancel-safe.
    fn changed(&self) -> impl Future<Output = ()> + Send;

    /// A timer that was planned for then fired now.
    fn woken(&mut self, planned: Instant, now: Instant);

    /// The counts as they are now.
    fn held(&mut self) -> Held;

    /// What the nodes are to be told, once.
    fn told(&mut self) -> Told;

    /// How busy it is now.
    fn measures(&mut self, now: Instant) -> Measures;

    /// Has so many connections leave; says how many were found.
    fn leave(&mut self, closes: &Closes, now: Instant, rng: &mut Rng) -> Connections;

    /// Takes an order about new connections.
    fn admit(&mut self, admit: Admit, now: Instant);

    /// Takes the complete live list of keys for this life of the server.
    fn keys(&mut self, inc: Incarnation, keys: &[Key]);

    /// Takes the nodes' time.
    fn clock(&mut self, clock: Option<NodeClock>);
}

/// The user's own terms.
pub(crate) type Terms = Mutex<BTreeMap<String, f64>>;

/// This process, whose application tells us of each connection.
pub(crate) struct Own {
    pub(crate) shared: Arc<Shared>,
    pub(crate) terms: Arc<Terms>,
    pub(crate) usage: Usage,
    pub(crate) lag: Lag,
}

impl Source for Own {
    async fn changed(&self) {
        self.shared.registry.changed.notified().await;
    }

    fn woken(&mut self, planned: Instant, now: Instant) {
        self.lag.woken(planned, now);
    }

    fn held(&mut self) -> Held {
        self.shared.registry.held()
    }

    fn told(&mut self) -> Told {
        self.shared.registry.take_told()
    }

    fn measures(&mut self, now: Instant) -> Measures {
        let custom = self.terms.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Measures {
            cpu: self.usage.cpu(now),
            memory: self.usage.memory(),
            lag_ms: Some(self.lag.take()),
            custom,
        }
    }

    fn leave(&mut self, closes: &Closes, now: Instant, rng: &mut Rng) -> Connections {
        self.shared.registry.choose(closes, First::Any, now, rng)
    }

    fn admit(&mut self, admit: Admit, now: Instant) {
        self.shared.registry.set_admit(admit, self.shared.keyring.node_now(now));
    }

    fn keys(&mut self, inc: Incarnation, keys: &[Key]) {
        self.shared.keyring.set_keys(inc, keys);
        self.shared.registry.set_can_move(self.shared.keyring.can_move());
    }

    fn clock(&mut self, clock: Option<NodeClock>) {
        self.shared.keyring.set_clock(clock);
    }
}

/// How late timers fire: the lag of the runtime this server works on.
#[derive(Debug, Default)]
pub(crate) struct Lag {
    sum_ms: f64,
    times: u32,
    last_ms: f64,
}

impl Lag {
    /// The timer wheel's own step; what is below says nothing.
    const STEP_MS: f64 = 1.0;

    fn woken(&mut self, planned: Instant, now: Instant) {
        self.sum_ms += (now.since(planned).as_secs_f64() * 1_000.0 - Self::STEP_MS).max(0.0);
        self.times += 1;
    }

    /// Mean since the last call, in milliseconds; the last one again when no timer fired.
    fn take(&mut self) -> f64 {
        if self.times > 0 {
            self.last_ms = self.sum_ms / f64::from(self.times);
            (self.sum_ms, self.times) = (0.0, 0);
        }
        self.last_ms
    }
}
