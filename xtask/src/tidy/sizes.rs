//! Reports long files and functions; fails beyond the hard limits.

use super::source::{functions, tests_begin};
use super::{File, Finding};

/// A file beyond it is reported, without its tests.
const FILE_REPORTED: usize = 700;
/// A file beyond it fails: by then it decides more than one thing.
const FILE_MAX: usize = 900;
/// A function beyond it is reported.
const FUNCTION_REPORTED: usize = 70;
/// A function beyond it fails, in tests too.
const FUNCTION_MAX: usize = 100;

/// What fails, and one line for each that is long but passes.
pub(super) fn check(files: &[File]) -> (Vec<Finding>, Vec<String>) {
    let (mut findings, mut long) = (Vec::new(), Vec::new());
    let mut look = |finding: Finding, size: usize, reported: usize, max: usize| {
        if size > max {
            findings.push(finding);
        } else if size > reported {
            long.push(finding.to_string());
        }
    };
    for file in files.iter().filter(|file| file.is_rust()) {
        let size = tests_begin(&file.text);
        let what = format!("{size} lines without tests; split it below {FILE_REPORTED}");
        look(Finding { path: file.path.clone(), line: 0, what }, size, FILE_REPORTED, FILE_MAX);
        for function in functions(&file.text) {
            let what = format!(
                "fn {} has {} lines; split it below {FUNCTION_REPORTED}",
                function.name, function.lines
            );
            let finding = Finding { path: file.path.clone(), line: function.line, what };
            look(finding, function.lines, FUNCTION_REPORTED, FUNCTION_MAX);
        }
    }
    (findings, long)
}

#[cfg(test)]
mod tests {
    use super::super::tests::file;
    use super::*;

    #[test]
    fn a_long_function_is_reported_and_a_huge_one_fails() {
        let function = |lines: usize| format!("fn f() {{\n{}}}\n", "    x();\n".repeat(lines - 2));
        let (findings, long) = check(&[file("a.rs", &function(70))]);
        assert!(findings.is_empty() && long.is_empty());
        let (findings, long) = check(&[file("a.rs", &function(71))]);
        assert!(findings.is_empty());
        assert_eq!(long, ["a.rs:1: fn f has 71 lines; split it below 70"]);
        let (findings, _) = check(&[file("a.rs", &function(101))]);
        assert_eq!(findings.len(), 1);
    }

    #[test]
    fn tests_do_not_count_towards_the_size_of_a_file() {
        let text = format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", "//\n".repeat(899), "//\n".repeat(500));
        assert!(check(&[file("a.rs", &text)]).0.is_empty());
        assert_eq!(check(&[file("a.rs", &"//\n".repeat(901))]).0.len(), 1);
    }
}
