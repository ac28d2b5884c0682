//! Finds what must not be committed: marks of unfinished work, unsafe code outside its one crate, tests switched off
//! without a reason, sleeps used as synchronisation in tests, paths of one machine, sources of crates other than the
//! public registry.

use std::path::Path;

use super::source::tests_begin;
use super::{File, Finding};

/// Marks of unfinished work. Written in two halves, so that this file does not hold them.
const MARKS: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("To be ", "written"),
];

/// Beginnings of paths that exist on one machine only.
const MACHINE_PATHS: &[&str] =
    &[concat!("/ho", "me/"), concat!("/Us", "ers/"), concat!("/ro", "ot/"), concat!("/wo", "rk/")];

/// Titles of papers that are not in this repository: a reader cannot follow them.
const ELSEWHERE: &[&str] = &[concat!("INTER", "FACES"), concat!("DESI", "GN §"), concat!("anch", "ors/")];

/// What switches the workspace's ban on unsafe code off, …
const UNSAFE: &str = concat!("(unsafe", "_code)");
/// … and the only crate where that may be (ADR 0008).
const UNSAFE_HOME: &str = "crates/ring/src/";

/// Ways to sleep.
const SLEEPS: &[&str] = &["thread::sleep(", "time::sleep(", "Delay::new("];

/// Excuses a sleep on its own or the next line: `// sleep: why it is not synchronisation`.
const EXCUSE: &str = "// sleep: ";

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Looks at every file.
pub(super) fn check(files: &[File], root: &Path) -> Vec<Finding> {
    files.iter().flat_map(|file| check_file(file, root)).collect()
}

fn check_file(file: &File, root: &Path) -> Vec<Finding> {
    let mut found = Vec::new();
    let tests = if file.path.contains("/tests/") { 0 } else { tests_begin(&file.text) };
    let mut before = "";
    for (at, line) in file.text.lines().enumerate() {
        let mut find = |what: String| found.push(Finding { path: file.path.clone(), line: at + 1, what });
        if let Some(mark) = MARKS.iter().find(|mark| line.contains(**mark)) {
            find(format!("mark of unfinished work: {mark}"));
        }
        if let Some(title) = ELSEWHERE.iter().find(|title| line.contains(**title)) {
            find(format!("refers to a paper that is not in the repository: {title}"));
        }
        if let Some(path) = machine_path(line, root) {
            find(format!("path of one machine: {path}"));
        }
        if file.is_rust() {
            if line.contains(UNSAFE) && !file.path.starts_with(UNSAFE_HOME) {
                find(format!("unsafe code is for {UNSAFE_HOME} alone"));
            }
            if line.trim() == concat!("#[ign", "ore]") {
                find("a test switched off without a reason".to_owned());
            }
            let excused = line.contains(EXCUSE) || before.contains(EXCUSE);
            if at >= tests
                && !excused
                && SLEEPS.iter().any(|sleep| line.contains(sleep))
                && !line.contains('"')
            {
                find("sleep in a test: wait for a condition with a deadline".to_owned());
            }
        }
        if file.path.ends_with("Cargo.lock") && line.starts_with("source = ") && !line.contains(REGISTRY) {
            find("crate from elsewhere than the public registry".to_owned());
        }
        before = line;
    }
    found
}

fn machine_path(line: &str, root: &Path) -> Option<String> {
    let root = root.to_string_lossy();
    if root.len() > 1 && line.contains(&*root) {
        return Some(root.into_owned());
    }
    let starts = |path: &&&str| {
        line.match_indices(**path).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            !before.is_some_and(|c| {
                c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | '*' | '}' | ')' | '`')
            })
        })
    };
    MACHINE_PATHS.iter().find(starts).map(|path| (*path).to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{file, lines};
    use super::*;

    fn check_one(path: &str, text: &str) -> Vec<String> {
        lines(&check(&[file(path, text)], Path::new("/checkout/evenkeel")))
    }

    #[test]
    fn marks_of_unfinished_work_are_found() {
        let text = format!("fn a() {{\n    {}\n}}\n", concat!("todo", "!()"));
        assert_eq!(
            check_one("a.rs", &text),
            [format!("a.rs:2: mark of unfinished work: {}", concat!("todo", "!("))]
        );
    }

    #[test]
    fn sleeps_are_found_in_tests_only_and_can_be_excused() {
        let call = concat!("std::thread::sl", "eep(pause);\n");
        assert_eq!(check_one("src/a.rs", call), Vec::<String>::new());
        assert_eq!(check_one("x/tests/a.rs", call).len(), 1);
        let text = format!("#[cfg(test)]\nmod tests {{\n{call}}}\n");
        assert_eq!(check_one("src/a.rs", &text).len(), 1);
        assert_eq!(
            check_one("x/tests/a.rs", &format!("// sleep: between two looks\n{call}")),
            Vec::<String>::new()
        );
    }

    #[test]
    fn unsafe_code_is_found_outside_its_crate() {
        let text = concat!("#![allow(unsafe", "_code)]\n");
        assert_eq!(check_one("crates/gateway/src/lib.rs", text).len(), 1);
        assert_eq!(check_one("crates/ring/src/lib.rs", text), Vec::<String>::new());
    }

    #[test]
    fn paths_of_one_machine_are_found() {
        let home = concat!("/ho", "me/someone/x");
        assert_eq!(check_one("a.md", home).len(), 1);
        assert_eq!(check_one("a.md", "see /checkout/evenkeel/README.md").len(), 1);
        assert_eq!(check_one("a.md", &format!("https://example.com{home}")), Vec::<String>::new());
    }

    #[test]
    fn crates_from_elsewhere_are_found() {
        let text = "source = \"git+https://example.com/x\"\n";
        assert_eq!(check_one("Cargo.lock", text).len(), 1);
        assert_eq!(check_one("Cargo.lock", &format!("source = \"{REGISTRY}\"\n")), Vec::<String>::new());
    }
}
