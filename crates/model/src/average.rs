//! Time-decayed average of a measure that arrives at irregular times.

use core::time::Duration;

use crate::time::Instant;

/// Exponentially decayed average, correct for irregular intervals: `a' = a + (x − a)(1 − exp(−Δt/τ))`.
///
/// The first sample is taken as it is. A sample from before the last one is ignored, so merging late or
/// repeated samples changes nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Average {
    tau: Duration,
    last: Option<(Instant, f64)>,
}

impl Average {
    /// Default time constant τ of reported measures: 10 s. Shorter follows noise, longer hides overload.
    pub const TAU: Duration = Duration::from_secs(10);

    /// An average without samples.
    #[must_use]
    pub const fn new(tau: Duration) -> Self {
        Self { tau, last: None }
    }

    /// Takes one sample and says the new average.
    pub fn update(&mut self, sample: f64, now: Instant) -> f64 {
        let next = match self.last {
            None => sample,
            Some((at, average)) if now <= at => return average,
            Some((at, average)) => {
                let fresh = 1.0 - libm::exp(-now.since(at).as_secs_f64() / self.tau.as_secs_f64().max(1e-9));
                average + (sample - average) * fresh
            }
        };
        self.last = Some((now, next));
        next
    }

    /// The average so far, if there was a sample.
    #[must_use]
    pub fn value(&self) -> Option<f64> {
        self.last.map(|(_, average)| average)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn average_does_not_depend_on_how_often_a_constant_is_sampled() {
        let at = |ms| Instant::from_millis(ms);
        let mut often = Average::new(Average::TAU);
        let mut seldom = Average::new(Average::TAU);
        often.update(0.0, at(0));
        seldom.update(0.0, at(0));
        for ms in (100..=7_000).step_by(100) {
            often.update(1.0, at(ms));
        }
        seldom.update(1.0, at(7_000));
        let (a, b) = (often.value().unwrap(), seldom.value().unwrap());
        assert!((a - b).abs() < 1e-9, "{a} {b}");
    }

    #[test]
    fn late_and_repeated_samples_change_nothing() {
        let mut average = Average::new(Average::TAU);
        average.update(0.5, Instant::from_millis(1_000));
        average.update(0.9, Instant::from_millis(1_000));
        average.update(0.9, Instant::from_millis(500));
        assert_eq!(average.value(), Some(0.5));
    }
}
