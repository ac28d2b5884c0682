//! When messages arrive: links keep order and lose nothing, reports may be lost, doubled, delayed and overtaken.

use std::time::Duration;

use evenkeel_model::{Instant, Rng};

use crate::scenario::Network as Conditions;

/// The network between servers, controller and gateways.
#[derive(Debug)]
pub(crate) struct Network {
    conditions: Conditions,
    rng: Rng,
    /// Whether faults of the network have ended.
    calm: bool,
}

impl Network {
    pub(crate) fn new(conditions: Conditions, rng: Rng) -> Self {
        Self { conditions, rng, calm: false }
    }

    /// From now on nothing is lost, doubled or overtaken.
    pub(crate) fn calm_down(&mut self) {
        self.calm = true;
    }

    pub(crate) fn report_each(&self) -> Duration {
        self.conditions.report_each
    }

    /// The longest way of an order.
    pub(crate) fn order_delay_max(&self) -> Duration {
        self.conditions.delay.mul_f64(1.2)
    }

    /// The longest way of a report.
    pub(crate) fn report_delay_max(&self) -> Duration {
        self.conditions.delay + self.conditions.jitter
    }

    /// Half of a handshake, ± 50 %.
    pub(crate) fn half_handshake(&mut self) -> Duration {
        self.rng.jitter(self.conditions.handshake / 2, 0.5)
    }

    /// When an ordered message arrives that follows one which arrives at `last`.
    pub(crate) fn ordered(&mut self, last: &mut Instant, now: Instant) -> Instant {
        *last = (now + self.rng.jitter(self.conditions.delay, 0.2)).max(*last);
        *last
    }

    /// When a message arrives that follows no other.
    pub(crate) fn message(&mut self, now: Instant) -> Instant {
        now + self.rng.jitter(self.conditions.delay, 0.2)
    }

    /// When the copies of a report arrive: none, one or two.
    pub(crate) fn report(&mut self, now: Instant) -> Vec<Instant> {
        let mut copies = Vec::with_capacity(2);
        if self.calm || self.rng.unit() >= self.conditions.loss {
            copies.push(self.unordered(now));
            if !self.calm && self.rng.unit() < self.conditions.duplicate {
                copies.push(self.unordered(now));
            }
        }
        copies
    }

    fn unordered(&mut self, now: Instant) -> Instant {
        let jitter = if self.calm { 0.0 } else { self.rng.unit() };
        now + self.conditions.delay + self.conditions.jitter.mul_f64(jitter)
    }
}
