//! What takes too long for every change: many seeds of the simulated faults, many cases of each property.

use anyhow::{Context, Result};
use clap::Args;

use crate::run;

/// How long it looks.
#[derive(Args)]
pub(crate) struct Options {
    /// Seeds of the simulated fleets with faults; the gate runs a few hundred.
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// Cases of each property that sets no number of its own; the gate runs 256.
    #[arg(long, default_value_t = 10_000)]
    cases: u64,
}

/// Seconds for which clients only ask where to connect; the gate takes three.
const ASKING_S: &str = "60";

/// Runs all; an error names the seeds to replay.
pub(crate) fn nightly(options: &Options) -> Result<()> {
    println!("== {} seeds of simulated faults", options.seeds);
    let mut seeds = run::cargo(&["test", "--package", "evenkeel-sim", "--test", "oracles"]);
    seeds.env("EVENKEEL_SIM_SEEDS", options.seeds.to_string());
    run::run(seeds).context("some seeds failed; the commands above replay them")?;

    println!("== {} cases of each property", options.cases);
    let pure = ["-p", "evenkeel-model", "-p", "evenkeel-fleet", "-p", "evenkeel-protocol"];
    let mut properties = run::cargo(&["test", "--lib"]);
    properties.args(pure).env("PROPTEST_CASES", options.cases.to_string());
    run::run(properties).context("a property failed; the smallest case is above")?;

    println!("== {ASKING_S} s of clients that only ask");
    let mut asking = run::cargo(&["test", "--package", "evenkeel-gateway", "--test", "it"]);
    asking.args(["many_who_only_ask"]).env("EVENKEEL_ASKING_S", ASKING_S);
    run::run(asking).context("clients that only ask kept others out")
}
