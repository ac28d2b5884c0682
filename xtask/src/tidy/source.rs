//! Looks at Rust source as lines. Relies on rustfmt: a body ends at the first `}` with the indent of its head.

/// One function and where it stands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function<'a> {
    pub(crate) name: &'a str,
    /// Line of its head, from 1.
    pub(crate) line: usize,
    /// From `fn` to its closing brace.
    pub(crate) lines: usize,
}

/// All functions with a body, nested ones too.
pub(crate) fn functions(text: &str) -> Vec<Function<'_>> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = indent_of(line);
        if line.ends_with('}') || line.ends_with(';') {
            continue;
        }
        let end = lines[at + 1..].iter().position(|next| {
            indent_of(next) == indent && matches!(next.trim_start(), "}" | "};" | "});")
                || ends_signature(next, indent)
        });
        let Some(end) = end.map(|offset| at + 1 + offset) else { continue };
        if lines[end].trim_start().starts_with('}') {
            found.push(Function { name, line: at + 1, lines: end - at + 1 });
        }
    }
    found
}

/// A signature over several lines that ends without a body, as in a trait.
fn ends_signature(line: &str, indent: usize) -> bool {
    indent_of(line) == indent && line.trim_start().starts_with(')') && line.ends_with(';')
}

fn function_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    loop {
        if let Some(name) = rest.strip_prefix("fn ") {
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_')?;
            return (end > 0).then(|| &name[..end]);
        }
        let (word, after) = rest.split_once(' ')?;
        let known =
            word.starts_with("pub") || matches!(word, "const" | "async" | "unsafe" | "extern" | "\"C\"");
        if !known {
            return None;
        }
        rest = after;
    }
}

fn indent_of(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The line from which a file holds only tests, from 0; the number of lines where there is none.
pub(crate) fn tests_begin(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let module =
        |at: usize| lines.get(at + 1).is_some_and(|next| next.starts_with("mod ") && next.ends_with('{'));
    (0..lines.len()).find(|&at| lines[at] == "#[cfg(test)]" && module(at)).unwrap_or(lines.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_measured_from_head_to_closing_brace() {
        let text = "\
fn one() {
    let x = |y| {
        y
    };
}

impl T {
    pub(crate) async fn two(
        a: u8,
    ) -> u8 {
        a
    }

    fn three() {}
}

trait U {
    fn four(
        a: u8,
    ) -> u8;
}
";
        let found: Vec<_> = functions(text).into_iter().map(|f| (f.name, f.line, f.lines)).collect();
        assert_eq!(found, [("one", 1, 5), ("two", 8, 5)]);
    }

    #[test]
    fn tests_begin_at_their_module() {
        assert_eq!(tests_begin("fn a() {}\n#[cfg(test)]\nmod tests {\n}\n"), 1);
        assert_eq!(tests_begin("#[cfg(test)]\nfn only_in_tests() {}\n"), 2);
    }
}
