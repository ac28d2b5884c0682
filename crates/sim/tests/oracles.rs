//! Small random fleets with faults: nothing happens that must not, over many seeds. And for each oracle a planted
//! mistake that it catches.

use evenkeel_sim::plant::Bug;
use evenkeel_sim::{Scenario, run, run_with};

/// Seeds of the fast gate; a run takes some 40 ms. `EVENKEEL_SIM_SEEDS` asks for more.
const SEEDS: u64 = 300;

fn chaos() -> Scenario {
    let text = include_str!("../../../testdata/scenarios/chaos.toml");
    Scenario::parse(text).unwrap()
}

#[test]
fn nothing_forbidden_happens_and_everything_converges_over_many_seeds() {
    let scenario = chaos();
    let seeds = std::env::var("EVENKEEL_SIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    let mut failed = Vec::new();
    for seed in 1..=seeds {
        // A panic of a machine is a finding like any other.
        let result = std::panic::catch_unwind(|| run(&scenario, seed, &mut |_| {}));
        match result {
            Ok(outcome) if outcome.violations.is_empty() => {}
            Ok(outcome) => failed.push((seed, format!("{:?}", outcome.violations[0]))),
            Err(_) => failed.push((seed, "panicked".to_owned())),
        }
    }
    let replay: String = failed
        .iter()
        .map(|(seed, why)| format!("evenkeel sim testdata/scenarios/chaos.toml --seed {seed}\n    {why}\n"))
        .collect();
    assert!(failed.is_empty(), "{} of {seeds} seeds failed; replay with\n{replay}", failed.len());
}

/// Whether an oracle sees a planted mistake within a few seeds, and says so in words.
fn caught(bug: Bug, oracle: &str) {
    let scenario = chaos();
    for seed in 1..=20 {
        let outcome = run_with(&scenario, seed, Some(bug), &mut |_| {});
        if outcome.violations.iter().any(|violation| violation.oracle == oracle && !violation.text.is_empty())
        {
            return;
        }
    }
    panic!("{bug:?} was planted and the oracle {oracle:?} saw nothing");
}

#[test]
fn placing_on_a_draining_or_dead_server_is_seen() {
    caught(Bug::HidesDrains, "placed");
}

#[test]
fn placing_on_a_frozen_server_is_seen() {
    caught(Bug::HidesDrains, "frozen");
}

#[test]
fn moving_more_than_the_budget_is_seen() {
    caught(Bug::ClosesTwice, "budget");
}

#[test]
fn stopping_a_server_that_holds_connections_is_seen() {
    caught(Bug::StopsEarly, "stopped");
}

#[test]
fn obeying_an_order_of_an_older_epoch_is_seen() {
    caught(Bug::ForgetsOrders, "fence");
}

#[test]
fn a_fleet_that_does_not_converge_is_seen() {
    caught(Bug::LosesOrders, "converged");
}
