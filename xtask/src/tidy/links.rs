//! Finds links in Markdown files that lead nowhere: files that do not exist, headings that no file has.

use super::{File, Finding};

/// Looks at every Markdown file. Links out of the repository are not followed.
pub(super) fn check(files: &[File]) -> Vec<Finding> {
    let mut found = Vec::new();
    for file in files.iter().filter(|file| file.is_markdown()) {
        for (line, target) in targets(&file.text) {
            if let Some(what) = problem(file, target, files) {
                found.push(Finding { path: file.path.clone(), line, what });
            }
        }
    }
    found
}

/// `[text](target)` outside code fences, with line numbers from 1.
fn targets(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        let mut rest = line;
        while let Some((_, after)) = rest.split_once("](") {
            let Some((target, next)) = after.split_once(')') else { break };
            found.push((at + 1, target));
            rest = next;
        }
    }
    found
}

fn problem(file: &File, target: &str, files: &[File]) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, heading) =
        target.split_once('#').map_or((target, None), |(path, heading)| (path, Some(heading)));
    let path = if path.is_empty() { file.path.clone() } else { resolve(&file.path, path) };
    let folder = format!("{}/", path.trim_end_matches('/'));
    let there = files.iter().find(|other| other.path == path);
    if there.is_none() && !files.iter().any(|other| other.path.starts_with(&folder)) {
        return Some(format!("link leads nowhere: {target}"));
    }
    let heading = heading?;
    let headed = there.is_some_and(|other| headings(&other.text).iter().any(|known| known == heading));
    (!headed).then(|| format!("no such heading: {target}"))
}

/// `target` as seen from the folder of `from`.
fn resolve(from: &str, target: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.join("/")
}

/// Anchors of the headings, as code hosts make them.
fn headings(text: &str) -> Vec<String> {
    let plain = |line: &str| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    text.lines().filter(|line| line.starts_with('#')).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{file, lines};
    use super::*;

    #[test]
    fn links_that_lead_nowhere_are_found() {
        let files = [
            file(
                "README.md",
                "[a](docs/a.md) [b](docs/b.md#two-words) [c](docs/)\n[d](docs/none.md) [e](#none)\n",
            ),
            file("docs/a.md", "[up](../README.md) [web](https://example.com)\n```\n[code](none)\n```\n"),
            file("docs/b.md", "# One\n## Two words!\n"),
        ];
        assert_eq!(
            lines(&check(&files)),
            ["README.md:2: link leads nowhere: docs/none.md", "README.md:2: no such heading: #none"]
        );
    }
}
