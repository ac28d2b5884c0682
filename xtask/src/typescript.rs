//! Builds and tests the TypeScript packages.
//!
//! They are mirrored to `target/typescript` first, so that nothing npm installs lies in the tree. The mirror is as
//! deep as the original: paths to `testdata` are the same in both.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::run;
use crate::test::Counts;

/// What `--package` calls them.
pub(crate) const NAME: &str = "typescript";
/// Folders that belong to npm and to builds, not to the sources.
const NOT_SOURCES: &[&str] = &["node_modules", "dist"];
/// What vitest says of its run.
const REPORT: &str = "vitest.json";

/// Installs what is pinned, builds both packages and the binary that they are tried against, runs their tests.
pub(crate) fn test() -> Result<(Result<()>, Counts)> {
    run::run(run::cargo(&["build", "--package", "evenkeel"]))?;
    let mirror = prepare()?;
    run::run(npm(&mirror, &["run", "check"]))?;
    let report = mirror.join(REPORT);
    let _ = fs::remove_file(&report);
    let mut tests = npm(&mirror, &["exec", "--", "vitest", "run", "--reporter=default", "--reporter=json"]);
    tests.arg(format!("--outputFile.json={}", report.display()));
    let outcome = run::run(tests);
    let counts = match fs::read_to_string(&report) {
        Ok(text) => from_report(&text).with_context(|| format!("could not read {}", report.display()))?,
        Err(_) => Counts::default(),
    };
    Ok((outcome, counts))
}

/// The mirror, with everything installed and built.
pub(crate) fn prepare() -> Result<PathBuf> {
    let mirror = run::root().join("target/typescript");
    mirror_to(&run::root().join("clients/typescript"), &mirror)?;
    let lock = fs::read_to_string(mirror.join("package-lock.json")).context("no package-lock.json")?;
    let stamp = mirror.join("node_modules/.installed");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == lock) {
        println!("npm packages are as the lock file says");
    } else {
        run::run(npm(&mirror, &["ci", "--no-audit", "--no-fund"]))?;
        fs::write(&stamp, lock).with_context(|| format!("could not write {}", stamp.display()))?;
    }
    run::run(npm(&mirror, &["run", "build"]))?;
    Ok(mirror)
}

fn npm(folder: &Path, arguments: &[&str]) -> std::process::Command {
    let mut npm = run::command("npm");
    npm.current_dir(folder).args(arguments);
    npm
}

/// Makes `to` hold the sources of `from` and nothing else but what npm and builds put there.
fn mirror_to(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("could not make {}", to.display()))?;
    let names = |folder: &Path| -> Result<BTreeSet<std::ffi::OsString>> {
        let entries = fs::read_dir(folder).with_context(|| format!("could not read {}", folder.display()))?;
        let names = entries.map(|entry| Ok(entry?.file_name()));
        let sources = names.filter(|name: &Result<_>| {
            name.as_ref().map_or(true, |name| !NOT_SOURCES.iter().any(|other| name == other))
        });
        sources.collect()
    };
    let (wanted, there) = (names(from)?, names(to)?);
    for gone in there.difference(&wanted).filter(|name| *name != REPORT) {
        let path = to.join(gone);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("could not remove {}", path.display()))?;
    }
    for name in wanted {
        let (source, copy) = (from.join(&name), to.join(&name));
        if source.is_dir() {
            mirror_to(&source, &copy)?;
        } else {
            let bytes = fs::read(&source).with_context(|| format!("could not read {}", source.display()))?;
            if fs::read(&copy).is_ok_and(|there| there == bytes) {
                continue;
            }
            fs::write(&copy, bytes).with_context(|| format!("could not write {}", copy.display()))?;
        }
    }
    Ok(())
}

/// `{"numPassedTests": 3, "numFailedTests": 0, "numPendingTests": 0, …}`
fn from_report(text: &str) -> Result<Counts> {
    let report: serde_json::Value = serde_json::from_str(text)?;
    let of = |key: &str| report[key].as_u64().with_context(|| format!("no {key}"));
    Ok(Counts {
        passed: of("numPassedTests")?,
        // A suite that fails as a whole, because it does not compile, has no failed test.
        failed: of("numFailedTests")?.max(of("numFailedTestSuites")?.min(1)),
        skipped: of("numPendingTests")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_follows_the_sources_and_keeps_what_npm_installed() {
        let base = std::env::temp_dir().join(format!("evenkeel-mirror-{}", std::process::id()));
        let (from, to) = (base.join("from"), base.join("to"));
        fs::create_dir_all(from.join("src")).unwrap();
        fs::write(from.join("src/a.ts"), "a").unwrap();
        mirror_to(&from, &to).unwrap();
        fs::create_dir_all(to.join("node_modules/x")).unwrap();
        fs::remove_file(from.join("src/a.ts")).unwrap();
        fs::write(from.join("src/b.ts"), "b").unwrap();
        mirror_to(&from, &to).unwrap();
        assert!(!to.join("src/a.ts").exists() && to.join("node_modules/x").exists());
        assert_eq!(fs::read_to_string(to.join("src/b.ts")).unwrap(), "b");
        fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn counts_are_read_from_the_report() {
        let text = r#"{"numPassedTests":7,"numFailedTests":0,"numPendingTests":1,"numFailedTestSuites":0}"#;
        assert_eq!(from_report(text).unwrap(), Counts { passed: 7, failed: 0, skipped: 1 });
        assert!(from_report("{}").is_err());
    }
}
