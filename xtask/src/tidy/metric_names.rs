//! Compares the metrics that the code names with those that docs/reference/metrics.md describes.

use std::collections::BTreeSet;

use super::{File, Finding};

const PAGE: &str = "docs/reference/metrics.md";
const CODE: &str = "crates/runtime/src/metrics";

/// What only one side has.
pub(super) fn check(files: &[File]) -> Vec<Finding> {
    let (mut code, mut page) = (BTreeSet::new(), BTreeSet::new());
    for file in files {
        if file.path == PAGE {
            page.extend(names(&file.text, '`'));
        } else if file.path.starts_with(CODE) && file.is_rust() {
            code.extend(names(&file.text, '"'));
        }
    }
    let find = |what: String| Finding { path: PAGE.to_owned(), line: 0, what };
    let missing = code.difference(&page).map(|name| find(format!("{name} is not described")));
    let stale = page.difference(&code).map(|name| find(format!("{name} does not exist in {CODE}")));
    missing.chain(stale).collect()
}

/// Quoted words that begin with `evenkeel_`; labels in braces are no part of the name.
fn names(text: &str, quote: char) -> BTreeSet<String> {
    let valid = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    text.split(quote)
        .filter_map(|word| word.split('{').next())
        .filter(|word| word.starts_with("evenkeel_") && valid(word))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{file, lines};
    use super::*;

    #[test]
    fn names_on_one_side_only_are_found() {
        let files = [
            file("crates/runtime/src/metrics.rs", "const A: &str = \"evenkeel_a_total\";\n\"evenkeel_b\"\n"),
            file(PAGE, "| `evenkeel_a_total{reason}` | x |\n| `evenkeel_c` |\n"),
        ];
        assert_eq!(
            lines(&check(&files)),
            [
                "docs/reference/metrics.md: evenkeel_b is not described",
                "docs/reference/metrics.md: evenkeel_c does not exist in crates/runtime/src/metrics"
            ]
        );
    }
}
