//! The whole gate, as steps with their durations.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::{run, test, tidy};

/// The version of cargo-deny that is installed where none is. Built without optimisation: it runs for a second
/// and building it takes a minute instead of several.
const CARGO_DENY: &str = "0.20.2";

/// One step of the gate.
type Step = (&'static str, fn() -> Result<()>);

const STEPS: &[Step] = &[
    ("format", || run::run(run::cargo(&["fmt", "--all", "--check"]))),
    ("tidy", tidy::tidy),
    ("dependencies", dependencies),
    ("lints", || {
        run::run(run::cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))
    }),
    ("docs", docs),
    ("demo", demo),
];

/// Runs all steps; stops at the first that fails.
pub(crate) fn ci() -> Result<()> {
    let mut timed = Timed { began: now(), steps: Vec::new() };
    for (name, step) in STEPS {
        timed.step(name, step)?;
    }
    let counts = timed.step("tests", || test::test(&test::Options::default()))?;
    println!("\n== all green in {}", run::human(timed.began.elapsed()));
    for (name, took) in timed.steps {
        println!("   {name:<14}{}", run::human(took));
    }
    println!("{counts}");
    Ok(())
}

struct Timed {
    began: Instant,
    steps: Vec<(&'static str, Duration)>,
}

impl Timed {
    fn step<T>(&mut self, name: &'static str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("\n== {name}");
        let at = now();
        let outcome = step().with_context(|| format!("step {name} failed"))?;
        self.steps.push((name, at.elapsed()));
        Ok(outcome)
    }
}

#[allow(clippy::disallowed_methods)] // The gate is not a role: nothing is decided by this clock.
fn now() -> Instant {
    Instant::now()
}

fn docs() -> Result<()> {
    let mut doc = run::cargo(&["doc", "--workspace", "--no-deps", "--locked"]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    run::run(doc)
}

/// The first command of the README, shortened; it fails by itself if an invariant broke.
fn demo() -> Result<()> {
    run::run(run::cargo(&[
        "run",
        "--release",
        "--locked",
        "--",
        "demo",
        "--duration",
        "40s",
        "--clients",
        "300",
    ]))
}

fn dependencies() -> Result<()> {
    if !run::succeeds(run::cargo(&["deny", "--version"])) {
        println!("cargo-deny is missing: installing it");
        run::run(run::cargo(&["install", "cargo-deny", "--version", CARGO_DENY, "--locked", "--debug"]))?;
    }
    run::run(run::cargo(&["deny", "--locked", "check", "bans", "licenses", "sources"]))
}
