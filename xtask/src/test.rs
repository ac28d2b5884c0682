//! Runs every test of the workspace and prints what came of it; peers that are missing are installed first.
//!
//! With cargo-nextest where it is installed (one process a test, times, groups), else with `cargo test`, so that
//! a machine with nothing but cargo passes too. Both end with one line `N passed, N failed, N skipped`.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{peers, run, typescript};

/// What to run.
#[derive(Debug, Args, Default)]
pub(crate) struct Options {
    /// Only this package; `typescript` stands for those of npm.
    #[arg(short, long, value_name = "NAME")]
    package: Option<String>,
    /// Only tests whose name contains this.
    filter: Option<String>,
    /// With cargo alone, even where cargo-nextest is installed.
    #[arg(long)]
    plain: bool,
}

/// How many tests ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Runs the tests; an error if one fails or none ran.
pub(crate) fn test(options: &Options) -> Result<Counts> {
    if options.package.as_deref() == Some(typescript::NAME) {
        peers::ensure_for_tests()?;
        let (outcome, counts) = typescript::test()?;
        println!("\n{counts}");
        return outcome.map(|()| counts);
    }
    let everything = options.package.is_none() && options.filter.is_none();
    if everything {
        peers::ensure_for_tests()?;
    }
    let nextest = !options.plain && run::succeeds(run::cargo(&["nextest", "--version"]));
    let (outcome, counts) = if nextest { with_nextest(options)? } else { with_cargo(options)? };
    let (outcome, counts) = if everything {
        let (typescript, more) = typescript::test()?;
        (outcome.and(typescript), counts.plus(more))
    } else {
        (outcome, counts)
    };
    println!("\n{counts}");
    outcome?;
    if counts.passed == 0 {
        bail!("no test ran");
    }
    Ok(counts)
}

fn selection(options: &Options) -> Vec<&str> {
    options.package.as_deref().map_or_else(|| vec!["--workspace"], |package| vec!["--package", package])
}

/// Examples in the documentation first (nextest does not know them), then everything else.
fn with_nextest(options: &Options) -> Result<(Result<()>, Counts)> {
    let mut counts = Counts::default();
    let mut examples = Ok(());
    if options.package.is_none() && options.filter.is_none() {
        let (outcome, counted) = counted(run::cargo(&["test", "--doc", "--workspace"]))?;
        (examples, counts) = (outcome, counted);
    }
    let report = run::target_dir().join("nextest/default/junit.xml");
    if report.exists() {
        fs::remove_file(&report).with_context(|| format!("could not remove the old {}", report.display()))?;
    }
    let mut tests = run::cargo(&["nextest", "run", "--no-tests", "pass"]);
    tests.args(selection(options)).args(&options.filter);
    let outcome = run::run(tests);
    // Without a report nothing was run: it did not compile.
    if let Ok(xml) = fs::read_to_string(&report) {
        counts = counts.plus(from_junit(&xml).context("could not read the counts in junit.xml")?);
    }
    Ok((outcome.and(examples), counts))
}

fn with_cargo(options: &Options) -> Result<(Result<()>, Counts)> {
    let mut tests = run::cargo(&["test", "--no-fail-fast"]);
    tests.args(selection(options)).args(&options.filter);
    counted(tests)
}

/// Runs a `cargo test`, passing its output on, and adds up its `test result:` lines.
fn counted(mut command: Command) -> Result<(Result<()>, Counts)> {
    let line = run::line(&command);
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("could not start {line}"))?;
    let mut counts = Counts::default();
    if let Some(stdout) = child.stdout.take() {
        let mut ours = std::io::stdout().lock();
        for text in BufReader::new(stdout).split(b'\n') {
            let text = text.with_context(|| format!("could not read from {line}"))?;
            ours.write_all(&text)?;
            ours.write_all(b"\n")?;
            counts = counts.plus(from_result_line(&String::from_utf8_lossy(&text)).unwrap_or_default());
        }
    }
    let status = child.wait().with_context(|| format!("could not wait for {line}"))?;
    let outcome = if status.success() { Ok(()) } else { Err(anyhow::anyhow!("{line} ended with {status}")) };
    Ok((outcome, counts))
}

impl Counts {
    fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s`
fn from_result_line(line: &str) -> Option<Counts> {
    let rest = line.trim().strip_prefix("test result: ")?;
    let of = |word: &str| {
        rest.split([';', '.'])
            .find_map(|part| part.trim().strip_suffix(word))
            .and_then(|number| number.trim().parse().ok())
    };
    Some(Counts { passed: of("passed")?, failed: of("failed")?, skipped: of("ignored")? })
}

/// `<testsuites name="nextest-run" tests="12" failures="1" errors="0" …>`
fn from_junit(xml: &str) -> Option<Counts> {
    let head = xml.split("<testsuites").nth(1)?.split('>').next()?;
    let of = |name: &str| head.split(&format!(" {name}=\"")).nth(1)?.split('"').next()?.parse::<u64>().ok();
    let (tests, failures, errors) = (of("tests")?, of("failures")?, of("errors")?);
    let skipped = xml.matches("<skipped").count() as u64;
    let failed = failures + errors;
    Some(Counts { passed: tests.saturating_sub(failed + skipped), failed, skipped })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_both_runners() {
        let line = "test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 9 filtered out; finished in 0.00s";
        assert_eq!(from_result_line(line), Some(Counts { passed: 3, failed: 2, skipped: 1 }));
        assert_eq!(from_result_line("running 3 tests"), None);
        let xml = r#"<?xml version="1.0"?>
<testsuites name="nextest-run" tests="12" failures="1" errors="0" uuid="x" time="1.2">"#;
        assert_eq!(from_junit(xml), Some(Counts { passed: 11, failed: 1, skipped: 0 }));
        assert_eq!(from_junit("<other/>"), None);
    }
}
