//! Says how busy a server is: its terms, each a share of its full mark, and the score over them.
//!
//! In: averaged measures, a count, a capacity, one [`ScoreConfig`]. Out: a [`Score`] with its breakdown.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use evenkeel_model::{Connections, Measures, Ratio};

use crate::allot::TermKind;
use crate::capacity::Load;
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

/// What a server's connections cost it: the largest term that falls as connections leave, the count itself aside.
/// With a weighted sum every such term has its part in it, the count too.
#[must_use]
pub fn load(
    averaged: &Measures,
    live: Connections,
    capacity: Connections,
    config: &ScoreConfig,
) -> Option<Load> {
    let elastic = values(averaged, live, capacity, config).filter(|value| value.elastic);
    match &config.combine {
        Combine::Max => largest(elastic.filter(|value| value.kind != TermKind::Connections)),
        Combine::Sum { weights } => {
            let weight = |name: &str| weights.get(name).copied().unwrap_or(0.0);
            let all: f64 = values(averaged, live, capacity, config).map(|value| weight(value.name)).sum();
            let parts = elastic.map(|value| Value { value: value.value * weight(value.name) / all, ..value });
            let sum: f64 = parts.clone().map(|part| part.value).sum();
            largest(parts).filter(|_| all > 0.0).map(|largest| Load { value: sum, ..largest })
        }
    }
}

/// The largest term that does not fall as connections leave.
#[must_use]
pub fn inelastic(averaged: &Measures, config: &ScoreConfig) -> Option<Load> {
    largest(values(averaged, Connections::ZERO, Connections::ZERO, config).filter(|value| !value.elastic))
}

/// A term without a name of its own, so that a round over thousands of servers allocates nothing.
#[derive(Clone, Copy)]
struct Value<'a> {
    kind: TermKind,
    name: &'a str,
    value: f64,
    elastic: bool,
    saturated: bool,
}

/// A share this near its end shows no more than that: a CPU with twice the work it can do measures 1.
const SATURATED: f64 = 0.95;

fn largest<'a>(values: impl Iterator<Item = Value<'a>>) -> Option<Load> {
    values
        .map(|value| Load { kind: value.kind, value: value.value, saturated: value.saturated })
        .reduce(|a, b| if b.value > a.value { b } else { a })
}

/// The terms in their order: connections, cpu, memory, lag, custom by name.
fn values<'a>(
    averaged: &'a Measures,
    live: Connections,
    capacity: Connections,
    config: &'a ScoreConfig,
) -> impl Iterator<Item = Value<'a>> + Clone {
    let one = |kind, name, value: Option<f64>, full: f64, elastic| {
        // Lag and the count have no end.
        let ends = matches!(kind, TermKind::Cpu | TermKind::Memory);
        value.map(|value| Value {
            kind,
            name,
            value: value / full,
            elastic,
            saturated: ends && value >= SATURATED,
        })
    };
    let (count, capacity) = (f64::from(live.get()), f64::from(capacity.get().max(1)));
    let own = [
        one(TermKind::Connections, "connections", Some(count), capacity, true),
        one(TermKind::Cpu, "cpu", averaged.cpu, config.cpu_full, true),
        one(TermKind::Memory, "memory", averaged.memory, config.memory_full, false),
        one(TermKind::Lag, "lag", averaged.lag_ms, config.lag_full_ms, true),
    ];
    let custom = averaged.custom.iter().map(|(name, &value)| {
        let custom = config.custom.get(name).copied().unwrap_or_default();
        let saturated = value >= SATURATED;
        Value { kind: TermKind::Custom, name, value: value / custom.full, elastic: custom.elastic, saturated }
    });
    own.into_iter().flatten().chain(custom)
}

fn terms(averaged: &Measures, live: Connections, capacity: Connections, config: &ScoreConfig) -> Vec<Term> {
    let named = |value: Value<'_>| Term {
        kind: value.kind,
        name: String::from(value.name),
        value: Ratio::new(value.value),
        elastic: value.elastic,
    };
    values(averaged, live, capacity, config).map(named).collect()
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
        let config = ScoreConfig::default();
        let load = load(&measures, Connections(100), Connections(1_000), &config).unwrap();
        assert_eq!((load.kind, load.value), (TermKind::Custom, 0.7));
        assert_eq!(inelastic(&measures, &config).unwrap().kind, TermKind::Memory);
    }

    #[test]
    fn unknown_measures_count_for_nothing() {
        let score =
            score(&Measures::default(), Connections(250), Connections(1_000), &ScoreConfig::default());
        assert_eq!(score.value.get(), 0.25);
        assert_eq!(score.terms.len(), 1);
        let load = load(&Measures::default(), Connections(250), Connections(1_000), &ScoreConfig::default());
        assert_eq!(load, None, "the count says nothing about its cost");
    }

    #[test]
    fn a_weighted_sum_is_the_mean_over_the_terms_present() {
        let weights = [("connections", 1.0), ("cpu", 3.0), ("absent", 9.0)];
        let weights = weights.map(|(name, weight)| (String::from(name), weight)).into_iter().collect();
        let config = ScoreConfig { combine: Combine::Sum { weights }, ..ScoreConfig::default() };
        let score = score(&busy(0.9, 0.9, 0.0), Connections(0), Connections(10), &config);
        assert_eq!(score.value.get(), 0.75);
        let load = load(&busy(0.9, 0.9, 0.0), Connections(10), Connections(10), &config).unwrap();
        assert_eq!((load.kind, load.value), (TermKind::Cpu, 1.0), "the count has its part in it");
    }

    #[test]
    fn a_server_that_declares_no_room_still_scores_finite() {
        let score = score(&Measures::default(), Connections(3), Connections(0), &ScoreConfig::default());
        assert_eq!(score.value.get(), 3.0);
    }
}
