//! Builds a static library without std over `evenkeel_fleet`: see `xtask/no_std_proof/src/lib.rs`.

use std::fs;

use anyhow::{Context, Result};

use crate::run;

/// An error if it does not build.
pub(super) fn prove() -> Result<()> {
    let proof = run::root().join("xtask/no_std_proof");
    // The proof is about the very versions that the workspace uses; cargo drops what it does not need.
    fs::copy(run::root().join("Cargo.lock"), proof.join("Cargo.lock"))
        .context("could not copy Cargo.lock to the no_std proof")?;
    let mut build = run::cargo(&["build", "--quiet", "--manifest-path"]);
    build.arg(proof.join("Cargo.toml")).arg("--target-dir").arg(run::target_dir().join("no_std_proof"));
    run::run(build).context("evenkeel-fleet does not build without std")
}
