//! What came of a run: counts, times, a timeline, violations; as a table and as JSON.

use std::fmt;

use evenkeel_fleet::gateway::Refusal;
use evenkeel_model::Instant;
use serde::Serialize;

/// What came of one run. Times are seconds after warm-up.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Outcome {
    /// What the scenario shows.
    pub about: String,
    /// Replays the run.
    pub seed: u64,
    /// Simulated seconds.
    pub simulated_s: f64,
    /// New clients.
    pub arrivals: u64,
    /// Placements, repeated ones included.
    pub placed: u64,
    /// Handshakes that waited for credit.
    pub waited: u64,
    /// Handshakes that failed at a server and were tried elsewhere.
    pub failed: u64,
    /// Clients refused with 503, once per refusal, by reason.
    pub refused: Vec<(&'static str, u64)>,
    /// When the last client was refused.
    pub last_refused_s: Option<f64>,
    /// Connections closed on order.
    pub moved: u64,
    /// Connections lost with their server.
    pub lost: u64,
    /// Connections that ended by themselves.
    pub left: u64,
    /// Servers that joined.
    pub join: Option<Join>,
    /// A drain.
    pub drain: Option<Drain>,
    /// A server whose connections became more expensive.
    pub hot: Option<Hot>,
    /// A server that closed at once.
    pub sinkhole: Option<Sinkhole>,
    /// Most accepts of one server in 500 ms, as a share of what it admits in that time.
    pub peak_over_cap: f64,
    /// Utilisation of the fullest open server over the mean, at the end.
    pub max_over_mean: f64,
    /// Connections of each server at the end.
    pub servers: Vec<(String, u32)>,
    /// Each second.
    pub samples: Vec<Sample>,
    /// Events worth telling.
    pub said: Vec<String>,
    /// What must not happen and did.
    pub violations: Vec<Violation>,
}

/// Servers joined.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Join {
    /// When.
    pub at_s: f64,
    /// How long until the emptiest of them held 95 % of its fair share.
    pub fair_after_s: Option<f64>,
    /// Moves from the join to the end.
    pub moves: u64,
    /// When the last of these was, after the join.
    pub last_move_after_s: Option<f64>,
}

/// A server was drained.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Drain {
    /// When.
    pub at_s: f64,
    /// Connections it held then.
    pub held: u32,
    /// How long until it was empty.
    pub empty_after_s: Option<f64>,
}

/// A server's connections became more expensive.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Hot {
    /// When.
    pub at_s: f64,
    /// How long until its true score stayed below 1.
    pub relieved_after_s: Option<f64>,
}

/// A server accepted and closed at once.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sinkhole {
    /// Since when.
    pub at_s: f64,
    /// Its share of placements from ten seconds later.
    pub share: f64,
}

/// The fleet at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sample {
    /// When.
    pub at_s: f64,
    /// Connections.
    pub connections: u32,
    /// Servers that take connections.
    pub open: u32,
    /// Utilisation of the fullest open server over that of the fleet.
    pub max_over_mean: f64,
    /// Moves so far.
    pub moved: u64,
}

/// Something that must never happen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Violation {
    /// When.
    pub at_s: f64,
    /// Which oracle saw it: `placed frozen budget stopped fence converged messages`.
    pub oracle: &'static str,
    /// One sentence.
    pub text: String,
}

/// Counts while a run goes on.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) arrivals: u64,
    pub(crate) placed: u64,
    pub(crate) waited: u64,
    pub(crate) failed: u64,
    pub(crate) moved: u64,
    pub(crate) lost: u64,
    pub(crate) left: u64,
    pub(crate) refused: std::collections::BTreeMap<&'static str, u64>,
    pub(crate) last_refused: Option<Instant>,
    pub(crate) said: Vec<(Instant, String)>,
}

impl Tally {
    pub(crate) fn refuse(&mut self, refusal: Refusal, now: Instant) {
        *self.refused.entry(refusal.reason()).or_default() += 1;
        self.last_refused = Some(now);
    }

    pub(crate) fn say(&mut self, at: Instant, text: String) {
        /// The first ones tell the story; a run of days would fill memory.
        const SAID_MAX: usize = 1_000;
        if self.said.len() < SAID_MAX {
            self.said.push((at, text));
        }
    }
}

impl Outcome {
    /// As JSON, one object.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
    }

    /// Clients refused, for any reason.
    #[must_use]
    pub fn refused_total(&self) -> u64 {
        self.refused.iter().map(|(_, count)| count).sum()
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let seconds = |value: Option<f64>| value.map_or("never".to_owned(), |value| format!("{value:.1} s"));
        let mut rows = vec![
            ("seed", self.seed.to_string()),
            ("simulated", format!("{:.0} s", self.simulated_s)),
            ("arrivals", self.arrivals.to_string()),
            ("placements", self.placed.to_string()),
            ("waited for credit", self.waited.to_string()),
            ("failed at a server", self.failed.to_string()),
            ("refused", self.refused_total().to_string()),
            ("moved", self.moved.to_string()),
            ("lost with a server", self.lost.to_string()),
            ("peak accepts / cap", format!("{:.2}", self.peak_over_cap)),
            ("max / mean at the end", format!("{:.3}", self.max_over_mean)),
        ];
        if let Some(join) = &self.join {
            rows.push(("joined server at 95 % of fair", seconds(join.fair_after_s)));
            rows.push(("moves since the join", join.moves.to_string()));
            rows.push(("last of them", seconds(join.last_move_after_s)));
        }
        if let Some(drain) = &self.drain {
            rows.push(("drained connections", drain.held.to_string()));
            rows.push(("drain empty", seconds(drain.empty_after_s)));
        }
        if let Some(hot) = &self.hot {
            rows.push(("hot server below score 1", seconds(hot.relieved_after_s)));
        }
        if let Some(sinkhole) = &self.sinkhole {
            rows.push(("sinkhole's share of placements", format!("{:.1} %", sinkhole.share * 100.0)));
        }
        rows
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.about.is_empty() {
            writeln!(f, "{}\n", self.about)?;
        }
        for (name, value) in self.rows() {
            writeln!(f, "  {name:<30} {value:>14}")?;
        }
        writeln!(
            f,
            "\n  {:>8} {:>12} {:>5} {:>10} {:>8}",
            "time", "connections", "open", "max/mean", "moved"
        )?;
        let step = self.samples.len().div_ceil(12).max(1);
        for sample in self.samples.iter().step_by(step) {
            let Sample { at_s, connections, open, max_over_mean, moved } = sample;
            writeln!(f, "  {at_s:>6.0} s {connections:>12} {open:>5} {max_over_mean:>10.3} {moved:>8}")?;
        }
        if self.violations.is_empty() {
            return writeln!(f, "\n  nothing happened that must not");
        }
        writeln!(f, "\n  violations:")?;
        self.violations
            .iter()
            .try_for_each(|it| writeln!(f, "  {:>8.2} s {}: {}", it.at_s, it.oracle, it.text))
    }
}
