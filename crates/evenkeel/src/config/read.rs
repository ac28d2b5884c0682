//! Reads a text as [`RawFile`], past keys that do not exist: each is noted and left out, so that one run shows every
//! mistake of a file and not the first one.

use std::ops::Range;

use serde::Deserialize;
use toml::Deserializer;
use toml::de::{DeTable, DeValue, Error};

use super::problem::{At, Problem, Problems};
use super::raw::RawFile;

/// How serde begins what it says of a key that does not exist.
const UNKNOWN: &str = "unknown field";

/// Reads a text.
///
/// # Errors
/// When it is no TOML, or a table or list stands where another kind of value must. Then there is nothing to check.
pub(super) fn read(text: &str, problems: &mut Problems) -> Result<RawFile, Error> {
    let mut left_out: Vec<Range<usize>> = Vec::new();
    loop {
        let mut table = DeTable::parse(text)?;
        for key in &left_out {
            leave_out(table.get_mut(), key);
        }
        let mut error = match RawFile::deserialize(Deserializer::from(table.clone())) {
            Ok(raw) => return Ok(raw),
            Err(error) => error,
        };
        let key = error.span().filter(|_| error.message().starts_with(UNKNOWN));
        // Each time one more is left out, so this ends.
        match key.and_then(|key| Some((find(table.get_ref(), &At::TOP, text, &key)?, key))) {
            Some(((path, value), key)) => {
                let line = text[..key.start].matches('\n').count() + 1;
                let allowed = format!("{} (line {line})", error.message());
                let value = Some(value);
                let example = String::new();
                problems.0.push(Problem { key: path, value, allowed, example, set_by: None });
                left_out.push(key);
            }
            None => {
                error.set_input(Some(text));
                return Err(error);
            }
        }
    }
}

/// Path and value of the key that stands there.
fn find(table: &DeTable<'_>, at: &At<'_>, text: &str, key: &Range<usize>) -> Option<(String, String)> {
    table.iter().find_map(|(name, value)| {
        if name.span() == *key {
            let shown = match value.get_ref() {
                DeValue::Table(_) | DeValue::Array(_) => String::from("…"),
                _ => text.get(value.span()).unwrap_or_default().chars().take(200).collect(),
            };
            return Some((at.key(name.get_ref()), shown));
        }
        match value.get_ref() {
            DeValue::Table(inner) => find(inner, &at.table(name.get_ref()), text, key),
            DeValue::Array(items) => items.iter().enumerate().find_map(|(index, item)| {
                find(item.get_ref().as_table()?, &at.item(name.get_ref(), index), text, key)
            }),
            _ => None,
        }
    })
}

/// Takes the key that stands there out of the table it is in. Says whether it was there.
fn leave_out(table: &mut DeTable<'_>, key: &Range<usize>) -> bool {
    let name = table.iter().map(|(name, _)| name).find(|name| name.span() == *key).cloned();
    if let Some(name) = name {
        return table.remove(&name).is_some();
    }
    table.iter_mut().any(|(_, value)| match value.get_mut() {
        DeValue::Table(inner) => leave_out(inner, key),
        DeValue::Array(items) => items.iter_mut().any(|item| match item.get_mut() {
            DeValue::Table(inner) => leave_out(inner, key),
            _ => false,
        }),
        _ => false,
    })
}
