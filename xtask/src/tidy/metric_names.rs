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
            page.extend(file.text.split('`').filter_map(as_registered));
        } else if file.path.starts_with(CODE) && file.is_rust() {
            code.extend(file.text.split('"').filter(|word| is_name(word)).map(str::to_owned));
        }
    }
    let find = |what: String| Finding { path: PAGE.to_owned(), line: 0, what };
    let missing = code.difference(&page).map(|name| find(format!("{name} is not described")));
    let stale = page.difference(&code).map(|name| find(format!("{name} does not exist in {CODE}.rs")));
    missing.chain(stale).collect()
}

/// What the registry was given for a metric as scraped: without prefix, labels, and the suffixes that the encoder
/// adds to counters and to names with a unit.
fn as_registered(scraped: &str) -> Option<String> {
    let name = scraped.split('{').next()?.strip_prefix("evenkeel_")?;
    let name = name.strip_suffix("_total").or_else(|| name.strip_suffix("_seconds")).unwrap_or(name);
    is_name(name).then(|| name.to_owned())
}

/// A metric begins with the role that keeps it.
fn is_name(word: &str) -> bool {
    (word.starts_with("gateway_") || word.starts_with("controller_"))
        && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::super::tests::{file, lines};
    use super::*;

    #[test]
    fn names_on_one_side_only_are_found() {
        let files = [
            file("crates/runtime/src/metrics.rs", "const A: &str = \"gateway_a\";\n\"gateway_b\"\n"),
            file(PAGE, "| `evenkeel_gateway_a_total{reason}` | x |\n| `evenkeel_gateway_c` |\n"),
        ];
        assert_eq!(
            lines(&check(&files)),
            [
                "docs/reference/metrics.md: gateway_b is not described",
                "docs/reference/metrics.md: gateway_c does not exist in crates/runtime/src/metrics.rs"
            ]
        );
    }
}
