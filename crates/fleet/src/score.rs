//! Says how busy a server is: its terms, each a share of its full mark, and the score over them.
//!
//! In: averaged measures, a count, a capacity, one [`ScoreConfig`]. Out: a [`Score`] with its breakdown.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use evenkeel_model::{Connections, Measures, Ratio};

use crate::allot::TermKind;
use crate::config::{Combine, ScoreConfig};

/// One measure of busyness as a share of its full mark: 0 idle, 1 full.
#[derive(Debug, Clone, PartialEq)]
pub struct Term {
    /// Which.
    pub kind: TermKind,
    /// `connections`, `cpu`, `memory`, `lag` or the custom name.
    pub name: String,
    /// Share of the full mark.
    pub value: Ratio,
    /// Whether it falls as connections leave. Memory never does for us.
    pub elastic: bool,
}

/// How busy a server is, with its breakdown. Lower is better.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// 0 idle, 1 full; above 1 overloaded.
    pub value: Ratio,
    /// What it is made of, in the order connections, cpu, memory, lag, custom by name.
    pub terms: Vec<Term>,
}

/// Scores one server. Unknown measures count for nothing; a reported custom name that is not configured counts
/// with the default of [`CustomTerm`](crate::config::CustomTerm).
#[must_use]
pub fn score(averaged: &Measures, live: Connections, capacity: Connections, config: &ScoreConfig) -> Score {
    let terms = terms(averaged, live, capacity, config);
    let value = match &config.combine {
        Combine::Max => terms.iter().map(|term| term.value.get()).fold(0.0, f64::max),
        Combine::Sum { weights } => weighted_mean(&terms, weights),
    };
    Score { value: Ratio::new(value), terms }
}

impl Score {
    /// The largest term that falls as connections leave, the count itself aside: what a server's own load says.
    #[must_use]
    pub fn load(&self) -> Option<&Term> {
        largest(self.terms.iter().filter(|term| term.elastic && term.kind != TermKind::Connections))
    }

    /// The largest term that does not fall as connections leave.
    #[must_use]
    pub fn inelastic(&self) -> Option<&Term> {
        largest(self.terms.iter().filter(|term| !term.elastic))
    }
}

fn largest<'a>(terms: impl Iterator<Item = &'a Term>) -> Option<&'a Term> {
    terms.reduce(|a, b| if b.value > a.value { b } else { a })
}

fn terms(averaged: &Measures, live: Connections, capacity: Connections, config: &ScoreConfig) -> Vec<Term> {
    let term = |kind, name: &str, value: f64, full: f64, elastic| Term {
        kind,
        name: String::from(name),
        value: Ratio::new(value / full),
        elastic,
    };
    let count = f64::from(live.get());
    let mut terms = alloc::vec![term(
        TermKind::Connections,
        "connections",
        count,
        f64::from(capacity.get().max(1)),
        true
    )];
    terms.extend(averaged.cpu.map(|cpu| term(TermKind::Cpu, "cpu", cpu, config.cpu_full, true)));
    terms.extend(
        averaged.memory.map(|memory| term(TermKind::Memory, "memory", memory, config.memory_full, false)),
    );
    terms.extend(averaged.lag_ms.map(|lag| term(TermKind::Lag, "lag", lag, config.lag_full_ms, true)));
    for (name, &value) in &averaged.custom {
        let custom = config.custom.get(name).copied().unwrap_or_default();
        terms.push(term(TermKind::Custom, name, value, custom.full, custom.elastic));
    }
    terms
}

fn weighted_mean(terms: &[Term], weights: &BTreeMap<String, f64>) -> f64 {
    let weighed =
        terms.iter().map(|term| (term.value.get(), weights.get(&term.name).copied().unwrap_or(0.0)));
    let (sum, weight) =
        weighed.fold((0.0, 0.0), |(sum, all), (value, weight)| (sum + value * weight, all + weight));
    if weight > 0.0 { sum / weight } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(cpu: f64, memory: f64, lag_ms: f64) -> Measures {
        Measures { cpu: Some(cpu), memory: Some(memory), lag_ms: Some(lag_ms), custom: BTreeMap::new() }
    }

    #[test]
    fn the_largest_term_is_the_score_and_the_breakdown_keeps_its_order() {
        let mut measures = busy(0.45, 0.09, 50.0);
        measures.custom.insert(String::from("rooms"), 0.7);
        let score = score(&measures, Connections(100), Connections(1_000), &ScoreConfig::default());
        let names: Vec<&str> = score.terms.iter().map(|term| term.name.as_str()).collect();
        assert_eq!(names, ["connections", "cpu", "memory", "lag", "rooms"]);
        let values: Vec<f64> =
            score.terms.iter().map(|term| libm::round(term.value.get() * 1e9) / 1e9).collect();
        assert_eq!(values, [0.1, 0.5, 0.1, 0.25, 0.7]);
        assert_eq!(score.value.get(), 0.7);
        assert_eq!(score.load().unwrap().name, "rooms");
        assert_eq!(score.inelastic().unwrap().name, "memory");
    }

    #[test]
    fn unknown_measures_count_for_nothing() {
        let score =
            score(&Measures::default(), Connections(250), Connections(1_000), &ScoreConfig::default());
        assert_eq!(score.value.get(), 0.25);
        assert_eq!(score.terms.len(), 1);
        assert!(score.load().is_none());
    }

    #[test]
    fn a_weighted_sum_is_the_mean_over_the_terms_present() {
        let weights = [("connections", 1.0), ("cpu", 3.0), ("absent", 9.0)];
        let weights = weights.map(|(name, weight)| (String::from(name), weight)).into_iter().collect();
        let config = ScoreConfig { combine: Combine::Sum { weights }, ..ScoreConfig::default() };
        let score = score(&busy(0.9, 0.9, 0.0), Connections(0), Connections(10), &config);
        assert_eq!(score.value.get(), 0.75);
    }

    #[test]
    fn a_server_that_declares_no_room_still_scores_finite() {
        let score = score(&Measures::default(), Connections(3), Connections(0), &ScoreConfig::default());
        assert_eq!(score.value.get(), 3.0);
    }
}
