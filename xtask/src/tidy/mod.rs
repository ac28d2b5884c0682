//! Checks what the compiler cannot: layering, the no_std proof, sizes, leftovers, links, metric names.
//!
//! Each check is a pure function from text to [`Finding`]s; this module reads the tracked files once and hands
//! them out. A finding fails the run; sizes beyond what STYLE asks for but within the hard limit are reported.

mod layers;
mod leftovers;
mod links;
mod metric_names;
mod no_std;
mod sizes;
mod source;

use std::fmt;
use std::fs;

use anyhow::{Context, Result, bail};

use crate::run;

/// One tracked text file.
pub(crate) struct File {
    /// Relative to the root, with `/`.
    path: String,
    text: String,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn is_markdown(&self) -> bool {
        self.path.ends_with(".md")
    }
}

/// Something that must change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    path: String,
    /// From 1; 0: the file as a whole.
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.what),
            line => write!(f, "{}:{line}: {}", self.path, self.what),
        }
    }
}

/// Runs all checks; an error if one finds something.
pub(crate) fn tidy() -> Result<()> {
    let files = tracked()?;
    let (mut findings, long) = sizes::check(&files);
    for line in long {
        println!("long   {line}");
    }
    findings.extend(leftovers::check(&files, &run::root()));
    findings.extend(links::check(&files));
    findings.extend(metric_names::check(&files));
    findings.extend(layers::check(&layers::metadata()?)?);
    for finding in &findings {
        println!("tidy   {finding}");
    }
    no_std::prove()?;
    if !findings.is_empty() {
        bail!("tidy found {} things to change", findings.len());
    }
    println!(
        "tidy   {} files: layering, no_std proof, sizes, leftovers, links and metric names hold",
        files.len()
    );
    Ok(())
}

/// Every text file that git tracks or would track.
fn tracked() -> Result<Vec<File>> {
    let mut list = run::command("git");
    list.args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"]);
    let names = run::output(list)?;
    let mut files = Vec::new();
    for path in names.split('\0').filter(|path| !path.is_empty()) {
        let full = run::root().join(path);
        // Listed, but deleted in the work tree.
        if !full.is_file() {
            continue;
        }
        let bytes = fs::read(&full).with_context(|| format!("could not read {path}"))?;
        if let Ok(text) = String::from_utf8(bytes) {
            files.push(File { path: path.to_owned(), text });
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file for the tests of the checks.
    pub(super) fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    /// Findings as lines.
    pub(super) fn lines(findings: &[Finding]) -> Vec<String> {
        findings.iter().map(ToString::to_string).collect()
    }
}
