//! The figures the control law has to reach, each from a scenario in `testdata/scenarios`.

use evenkeel_sim::{Outcome, Scenario, run};

fn scenario(name: &str) -> Scenario {
    let path = format!("{}/../../testdata/scenarios/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    let text =
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("could not read {path}: {error}"));
    Scenario::parse(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn outcome(scenario: &Scenario, seed: u64) -> Outcome {
    let outcome = run(scenario, seed, &mut |_| {});
    assert_eq!(outcome.violations, [], "seed {seed}");
    outcome
}

fn fair_after(outcome: &Outcome) -> f64 {
    outcome.join.as_ref().and_then(|join| join.fair_after_s).expect("the joined server fills")
}

#[test]
fn every_scenario_file_is_readable_and_says_what_it_shows() {
    let folder = format!("{}/../../testdata/scenarios", env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let scenario = Scenario::parse(&std::fs::read_to_string(&path).unwrap());
        assert!(scenario.is_ok_and(|it| !it.about.is_empty()), "{}", path.display());
        seen += 1;
    }
    assert!(seen >= 14, "{seen} scenarios");
}

#[test]
fn arrivals_alone_fill_a_new_server_nearly_as_fast_as_exact_leastconn() {
    let scenario = scenario("scale-out");
    for seed in 1..=3 {
        let (ours, leastconn) = (outcome(&scenario, seed), outcome(&scenario.with_leastconn_alone(), seed));
        assert_eq!(ours.moved, 0);
        let (ours, leastconn) = (fair_after(&ours), fair_after(&leastconn));
        assert!(ours <= 1.5 * leastconn, "seed {seed}: {ours} s, exact leastconn {leastconn} s");
    }
}

#[test]
fn moves_fill_a_new_server_at_the_pace_and_then_everything_stays_still() {
    for (name, held, servers) in [("rebalance-20", 100_000.0, 20.0), ("rebalance-100", 500_000.0, 100.0)] {
        let scenario = scenario(name);
        let ideal = held / ((servers + 1.0) * scenario.fleet.pace);
        for seed in 1..=3 {
            let outcome = outcome(&scenario, seed);
            let (fair, join) = (fair_after(&outcome), outcome.join.as_ref().unwrap());
            assert!(fair <= 1.2 * ideal, "{name}, seed {seed}: {fair} s, ideal {ideal} s");
            let last = join.last_move_after_s.expect("it was filled by moves");
            assert!(last <= 1.3 * ideal, "{name}, seed {seed}: the last move came after {last} s");
            let needed = held / (servers + 1.0);
            assert!(join.moves as f64 <= 1.05 * needed, "{name}, seed {seed}: {} moves", join.moves);
        }
    }
}

#[test]
fn a_burst_of_reconnects_keeps_to_the_admission_cap_and_ends_even() {
    let scenario = scenario("burst");
    for seed in 1..=3 {
        let outcome = outcome(&scenario, seed);
        assert_eq!(outcome.refused_total(), 0, "seed {seed}");
        assert!(outcome.peak_over_cap <= 1.2, "seed {seed}: {} of the cap", outcome.peak_over_cap);
        assert!(outcome.max_over_mean <= 1.02, "seed {seed}: {}", outcome.max_over_mean);
    }
}

#[test]
fn a_burst_beyond_all_credit_fills_servers_of_unequal_size_in_proportion() {
    let scenario = scenario("unequal");
    for seed in 1..=3 {
        let outcome = outcome(&scenario, seed);
        assert_eq!((outcome.refused_total(), outcome.moved), (0, 0), "seed {seed}");
        let crowded = outcome.samples.iter().filter(|sample| sample.connections > 300);
        let worst = crowded.map(|sample| sample.max_over_mean).fold(0.0, f64::max);
        assert!(worst <= 1.1, "seed {seed}: {worst}");
    }
}

#[test]
fn cpu_noise_moves_next_to_nothing() {
    let scenario = scenario("cpu-noise");
    for seed in 1..=3 {
        let outcome = outcome(&scenario, seed);
        let an_hour =
            0.001 * f64::from(scenario.clients.connections) * scenario.duration.as_secs_f64() / 3_600.0;
        assert!((outcome.moved as f64) < an_hour, "seed {seed}: {} moves in an hour", outcome.moved);
    }
}

#[test]
fn a_server_whose_cost_doubles_is_below_score_1_within_150_s() {
    let scenario = scenario("hot-server");
    let mut times: Vec<f64> = (1..=21)
        .map(|seed| {
            outcome(&scenario, seed).hot.and_then(|hot| hot.relieved_after_s).unwrap_or(f64::INFINITY)
        })
        .collect();
    times.sort_by(f64::total_cmp);
    assert!(times[20] <= 150.0, "{times:?}");
    assert!(times[10] <= 100.0, "{times:?}");
}

#[test]
fn a_drain_empties_at_the_pace_while_clients_come_and_go() {
    let scenario = scenario("drain");
    for seed in 1..=3 {
        let outcome = outcome(&scenario, seed);
        let drain = outcome.drain.unwrap();
        let soft = 5.0;
        let ideal = soft + f64::from(drain.held) / scenario.fleet.pace;
        let empty = drain.empty_after_s.expect("it empties");
        assert!(
            (0.85 * ideal..=1.1 * ideal + 1.0).contains(&empty),
            "seed {seed}: {empty} s, ideal {ideal} s"
        );
        assert_eq!(outcome.refused.len(), 0, "seed {seed}");
    }
}

#[test]
fn a_sinkhole_gets_at_most_two_in_a_hundred_arrivals_once_detected() {
    let scenario = scenario("sinkhole");
    for seed in 1..=3 {
        let share = outcome(&scenario, seed).sinkhole.unwrap().share;
        assert!(share > 0.0 && share <= 0.02, "seed {seed}: {share}");
    }
}

#[test]
fn no_client_is_refused_when_a_server_dies_or_freezes_or_the_controller_does() {
    for name in ["crash", "freeze", "restart"] {
        let scenario = scenario(name);
        for seed in 1..=5 {
            let outcome = outcome(&scenario, seed);
            assert_eq!(outcome.refused, [], "{name}, seed {seed}");
            assert!(outcome.max_over_mean < 1.1, "{name}, seed {seed}: {}", outcome.max_over_mean);
        }
    }
}

#[test]
fn servers_start_and_stop_with_the_load_and_no_client_notices() {
    let scenario = scenario("scale");
    for seed in 1..=3 {
        let outcome = outcome(&scenario, seed);
        assert_eq!((outcome.refused_total(), outcome.lost), (0, 0), "seed {seed}");
        let open: Vec<u32> = outcome.samples.iter().map(|sample| sample.open).collect();
        let (most, last) = (open.iter().max().copied(), open.last().copied());
        assert!(most >= Some(4), "seed {seed}: at most {most:?} servers");
        assert_eq!(last, Some(2), "seed {seed}");
    }
}

#[test]
fn a_run_replays_from_its_seed() {
    let scenario = scenario("chaos");
    assert_eq!(run(&scenario, 7, &mut |_| {}), run(&scenario, 7, &mut |_| {}));
    assert_ne!(run(&scenario, 7, &mut |_| {}), run(&scenario, 8, &mut |_| {}));
}
