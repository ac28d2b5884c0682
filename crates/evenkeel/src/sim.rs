//! `evenkeel sim`: runs one scenario and prints what came of it. Everything else is in `evenkeel_sim`.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use evenkeel_sim::{Outcome, Scenario};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::{Output, exit};

/// `sim`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  evenkeel sim testdata/scenarios/scale-out.toml
  evenkeel sim testdata/scenarios/scale-out.toml --leastconn
  evenkeel sim testdata/scenarios/chaos.toml --seed 7 --output json

The same scenario and seed give the same run. Exit code 1 when something happened that must not.")]
pub(crate) struct Args {
    /// Scenario file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Seed of all chance; without it the scenario's own
    #[arg(long)]
    seed: Option<u64>,
    /// The same arrivals with exact leastconn at one gateway, without moves
    #[arg(long)]
    leastconn: bool,
    /// How to answer
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Runs the scenario.
pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let text = std::fs::read_to_string(&args.file)
        .with_context(|| format!("could not read the scenario {}", args.file.display()))?;
    let scenario = Scenario::parse(&text)?;
    let scenario = if args.leastconn { scenario.with_leastconn_alone() } else { scenario };
    let outcome = simulate(&scenario, args.seed.unwrap_or(scenario.seed));
    let text = match args.output {
        Output::Json => format!("{}\n", outcome.to_json()),
        Output::Text => outcome.to_string(),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        written => written.context("could not write the outcome")?,
    }
    if outcome.violations.is_empty() {
        return Ok(exit::OK);
    }
    eprintln!("replay: evenkeel sim {} --seed {}", args.file.display(), outcome.seed);
    Ok(exit::FAILED)
}

/// With a bar on standard error, which draws itself only on a terminal.
fn simulate(scenario: &Scenario, seed: u64) -> Outcome {
    const STEPS: u64 = 1_000;
    let bar = ProgressBar::new(STEPS);
    if let Ok(style) = ProgressStyle::with_template("simulating {wide_bar} {percent:>3} %  {eta} left") {
        bar.set_style(style);
    }
    let outcome =
        evenkeel_sim::run(scenario, seed, &mut |done| bar.set_position((done * STEPS as f64) as u64));
    bar.finish_and_clear();
    outcome
}
