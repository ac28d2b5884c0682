//! Collects what is wrong with a file, all of it, so that one run shows every mistake.
//!
//! Each problem names the key path, the value, what is allowed and an example.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Value;

use super::unit::{parse_duration, show_duration};

/// One wrong value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Where, for example `fleets.chat.move.pace`.
    pub(crate) key: String,
    /// What stands there; `None`: nothing, although something must.
    pub(crate) value: Option<String>,
    /// What may stand there.
    pub(crate) allowed: String,
    /// A value that would be taken; empty where none would.
    pub(crate) example: String,
    /// Flag or variable that set it, when it was not the file.
    pub(crate) set_by: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{} = {value}", self.key)?,
            None => write!(f, "{} is missing", self.key)?,
        }
        if let Some(set_by) = &self.set_by {
            write!(f, " (set by {set_by})")?;
        }
        write!(f, ": {}", self.allowed)?;
        if !self.example.is_empty() {
            write!(f, "; for example {}", self.example)?;
        }
        Ok(())
    }
}

/// All problems of one file.
#[derive(Debug, Default)]
pub(crate) struct Problems(pub(crate) Vec<Problem>);

impl Problems {
    /// Notes one.
    pub(crate) fn note(&mut self, key: String, value: &Value, allowed: impl Into<String>, example: &str) {
        let problem = Problem {
            key,
            value: Some(show(value)),
            allowed: allowed.into(),
            example: example.to_owned(),
            set_by: None,
        };
        self.0.push(problem);
    }

    /// Notes that something must be given.
    pub(crate) fn missing(&mut self, key: String, allowed: impl Into<String>, example: &str) {
        let problem =
            Problem { key, value: None, allowed: allowed.into(), example: example.to_owned(), set_by: None };
        self.0.push(problem);
    }

    /// Refuses a key of a feature that is not built yet.
    pub(crate) fn not_yet(&mut self, at: &At<'_>, key: &str, value: Option<&Value>, instead: &str) {
        if let Some(value) = value {
            let instead = if instead.is_empty() { "leave it out" } else { instead };
            self.note(at.key(key), value, format!("not available yet; {instead}"), "");
        }
    }
}

/// A place in the file, for key paths.
#[derive(Debug, Clone)]
pub(crate) struct At<'a>(pub(crate) std::borrow::Cow<'a, str>);

impl At<'_> {
    /// The top of the file.
    pub(crate) const TOP: At<'static> = At(std::borrow::Cow::Borrowed(""));

    /// The path of a key here.
    pub(crate) fn key(&self, key: &str) -> String {
        if self.0.is_empty() { key.to_owned() } else { format!("{}.{key}", self.0) }
    }

    /// The table of that name here.
    pub(crate) fn table(&self, name: &str) -> At<'static> {
        At(self.key(name).into())
    }

    /// The n-th of a list here.
    pub(crate) fn item(&self, name: &str, index: usize) -> At<'static> {
        At(format!("{}[{index}]", self.key(name)).into())
    }
}

/// Reads typed values at one place and notes what is wrong. An absent or wrong value leaves the default.
pub(crate) struct Reader<'a> {
    pub(crate) at: At<'a>,
    pub(crate) problems: &'a mut Problems,
}

impl Reader<'_> {
    /// A duration in a range.
    pub(crate) fn duration(
        &mut self,
        key: &str,
        raw: Option<&Value>,
        into: &mut Duration,
        range: RangeInclusive<Duration>,
        example: &str,
    ) {
        let Some(raw) = raw else { return };
        match raw.as_str().and_then(parse_duration).filter(|duration| range.contains(duration)) {
            Some(duration) => *into = duration,
            None => {
                let (low, high) = (show_duration(*range.start()), show_duration(*range.end()));
                let allowed = format!("allowed is a duration with a unit, {low} to {high}");
                self.problems.note(self.at.key(key), raw, allowed, &format!("{example:?}"));
            }
        }
    }

    /// A number in a range.
    pub(crate) fn number(
        &mut self,
        key: &str,
        raw: Option<&Value>,
        into: &mut f64,
        range: RangeInclusive<f64>,
        example: f64,
    ) {
        let Some(raw) = raw else { return };
        #[allow(clippy::cast_precision_loss)]
        let number = raw.as_float().or_else(|| raw.as_integer().map(|whole| whole as f64));
        match number.filter(|number| range.contains(number)) {
            Some(number) => *into = number,
            None => {
                let allowed = format!("allowed is a number, {} to {}", range.start(), range.end());
                self.problems.note(self.at.key(key), raw, allowed, &example.to_string());
            }
        }
    }

    /// A whole number in a range.
    pub(crate) fn whole(
        &mut self,
        key: &str,
        raw: Option<&Value>,
        into: &mut u32,
        range: RangeInclusive<u32>,
        example: u32,
    ) {
        let Some(raw) = raw else { return };
        let whole = raw.as_integer().and_then(|whole| u32::try_from(whole).ok());
        match whole.filter(|whole| range.contains(whole)) {
            Some(whole) => *into = whole,
            None => {
                let allowed = format!("allowed is a whole number, {} to {}", range.start(), range.end());
                self.problems.note(self.at.key(key), raw, allowed, &example.to_string());
            }
        }
    }

    /// `true` or `false`.
    pub(crate) fn flag(&mut self, key: &str, raw: Option<&Value>, into: &mut bool) {
        let Some(raw) = raw else { return };
        match raw.as_bool() {
            Some(flag) => *into = flag,
            None => self.problems.note(self.at.key(key), raw, "allowed is true or false", "true"),
        }
    }

    /// One of a list of words.
    pub(crate) fn word<T: Copy>(
        &mut self,
        key: &str,
        raw: Option<&Value>,
        into: &mut T,
        words: &[(&str, T)],
    ) {
        let Some(raw) = raw else { return };
        let known = raw.as_str().and_then(|text| words.iter().find(|(word, _)| *word == text));
        match known {
            Some((_, value)) => *into = *value,
            None => {
                let allowed =
                    words.iter().map(|(word, _)| format!("{word:?}")).collect::<Vec<_>>().join(", ");
                let example = format!("{:?}", words[0].0);
                self.problems.note(self.at.key(key), raw, format!("allowed is one of {allowed}"), &example);
            }
        }
    }

    /// Anything that a text can be read as.
    pub(crate) fn text<T>(
        &mut self,
        key: &str,
        raw: Option<&Value>,
        parse: impl FnOnce(&str) -> Option<T>,
        allowed: &str,
        example: &str,
    ) -> Option<T> {
        let raw = raw?;
        let parsed = raw.as_str().and_then(parse);
        if parsed.is_none() {
            self.problems.note(
                self.at.key(key),
                raw,
                format!("allowed is {allowed}"),
                &format!("{example:?}"),
            );
        }
        parsed
    }

    /// A list of texts, each of which can be read as something; a single text counts as a list of one.
    pub(crate) fn list<T>(
        &mut self,
        key: &str,
        raw: Option<&Value>,
        parse: impl Fn(&str) -> Option<T>,
        allowed: &str,
        example: &str,
    ) -> Option<Vec<T>> {
        let raw = raw?;
        let items = match raw {
            Value::Array(items) => items.as_slice(),
            single => std::slice::from_ref(single),
        };
        let mut parsed = Vec::with_capacity(items.len());
        for item in items {
            match item.as_str().and_then(&parse) {
                Some(value) => parsed.push(value),
                None => {
                    let allowed = format!("allowed is a list of {allowed}");
                    self.problems.note(self.at.key(key), item, allowed, &format!("[{example:?}]"));
                }
            }
        }
        Some(parsed)
    }

    /// Refuses a key of a feature that is not built yet.
    pub(crate) fn not_yet(&mut self, key: &str, raw: Option<&Value>, instead: &str) {
        self.problems.not_yet(&self.at, key, raw, instead);
    }
}

/// A value in one line.
fn show(value: &Value) -> String {
    match value {
        Value::Table(_) => String::from("{ … }"),
        Value::Array(items) if items.len() > 8 => format!("[… {} items]", items.len()),
        other => {
            let text = other.to_string();
            if text.chars().count() > 200 { text.chars().take(200).chain(['…']).collect() } else { text }
        }
    }
}
