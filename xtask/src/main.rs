//! Builds, tests and checks Evenkeel: `cargo xtask test | ci | tidy | nightly | bench`.
//!
//! `ci` is the whole gate and contains the very same `test`; `.ci/run` only calls it. Everything a check needs
//! besides cargo, git and a C compiler is installed by the command that needs it, or named if it cannot be.

mod bench;
mod ci;
mod nightly;
mod peers;
mod run;
mod test;
mod tidy;
mod typescript;

use std::process::ExitCode;

use clap::Parser;

/// Builds, tests and checks Evenkeel.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
enum Command {
    /// Runs every test: Rust's with cargo-nextest where it is installed, else with cargo alone, and TypeScript's.
    Test(test::Options),
    /// Runs the whole gate: format, lints, docs, tidy, dependencies, tests.
    Ci,
    /// Measures beside other programs.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Runs what takes too long for every change: many seeds, many cases.
    Nightly(nightly::Options),
    /// Checks what the compiler cannot: layering, the no_std proof, sizes, leftovers, links, metric names.
    Tidy,
}

fn main() -> ExitCode {
    let outcome = match Command::parse() {
        Command::Test(options) => test::test(&options).map(|_| ()),
        Command::Ci => ci::ci(),
        Command::Bench(what) => bench::bench(&what),
        Command::Nightly(options) => nightly::nightly(&options),
        Command::Tidy => tidy::tidy(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
