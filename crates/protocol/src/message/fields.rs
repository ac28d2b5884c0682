//! Reads one JSON object field by field, with refusals that name the field, its value and what is allowed.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};

use serde_json::{Map, Value};

use super::{MESSAGE_MAX, MessageError};

/// Longest text quoted in a refusal.
const QUOTED_MAX: usize = 64;

/// One object, and what its fields are called in refusals.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    prefix: &'a str,
}

/// Parses `text` to an object.
pub(super) fn object(text: &str) -> Result<Map<String, Value>, MessageError> {
    if text.len() > MESSAGE_MAX {
        return Err(MessageError::TooLong { length: text.len() });
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(MessageError::NotObject { found: kind(&other) }),
        Err(error) => {
            Err(MessageError::NotJson { field: field_before(text, &error), why: error.to_string() })
        }
    }
}

impl<'a> Fields<'a> {
    pub(super) const fn new(map: &'a Map<String, Value>) -> Self {
        Self { map, prefix: "" }
    }

    /// The field as named in a refusal.
    pub(super) fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    /// The value, where it is present and not null.
    pub(super) fn value(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn bad(&self, name: &str, value: &Value, allowed: &'static str) -> MessageError {
        MessageError::BadField { field: self.path(name), value: quoted(value), allowed }
    }

    pub(super) fn missing(&self, name: &str, allowed: &'static str) -> MessageError {
        MessageError::MissingField { field: self.path(name), allowed }
    }

    /// A text of at most `max` bytes without control characters.
    pub(super) fn text(&self, name: &str, max: usize) -> Result<Option<&'a str>, MessageError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        match value.as_str() {
            Some(text) if text.len() <= max && !text.chars().any(char::is_control) => Ok(Some(text)),
            Some(_) => Err(self.bad(name, value, "a shorter text without control characters")),
            None => Err(self.bad(name, value, "a text")),
        }
    }

    /// A whole number. `5.0` is one, because to many JSON writers all numbers are the same.
    pub(super) fn integer(&self, name: &str) -> Result<Option<u64>, MessageError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        whole(value).map(Some).ok_or_else(|| self.bad(name, value, "an integer from 0"))
    }

    /// A whole number that must be there.
    pub(super) fn needed(&self, name: &str) -> Result<u64, MessageError> {
        self.integer(name)?.ok_or_else(|| self.missing(name, "an integer from 0"))
    }

    /// A whole number from 0 to `max`.
    pub(super) fn at_most(
        &self,
        name: &str,
        max: u64,
        allowed: &'static str,
    ) -> Result<Option<u64>, MessageError> {
        match self.integer(name)? {
            Some(number) if number > max => {
                Err(MessageError::BadField { field: self.path(name), value: number.to_string(), allowed })
            }
            number => Ok(number),
        }
    }

    /// Any number; ranges are the caller's.
    pub(super) fn number(&self, name: &str) -> Result<Option<f64>, MessageError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.bad(name, value, "a number"))
    }

    /// A map of numbers; ranges are the caller's.
    pub(super) fn numbers(&self, name: &'a str) -> Result<Option<BTreeMap<String, f64>>, MessageError> {
        let Some(fields) = self.nested(name)? else { return Ok(None) };
        let mut numbers = BTreeMap::new();
        for key in fields.map.keys() {
            if let Some(number) = fields.number(key)? {
                numbers.insert(key.clone(), number);
            }
        }
        Ok(Some(numbers))
    }

    /// A map of at most `max` texts.
    pub(super) fn texts(&self, name: &'a str, max: usize) -> Result<BTreeMap<String, String>, MessageError> {
        let Some(fields) = self.nested(name)? else { return Ok(BTreeMap::new()) };
        let mut texts = BTreeMap::new();
        for key in fields.map.keys() {
            if key.len() > 128 || texts.len() >= max {
                return Err(MessageError::BadField {
                    field: self.path(name),
                    value: cut(key),
                    allowed: "at most 32 names of up to 128 bytes",
                });
            }
            if let Some(text) = fields.text(key, 256)? {
                texts.insert(key.clone(), text.to_owned());
            }
        }
        Ok(texts)
    }

    /// An object inside.
    pub(super) fn nested(&self, name: &'a str) -> Result<Option<Fields<'a>>, MessageError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { map, prefix: name })),
            Some(value) => Err(self.bad(name, value, "an object")),
        }
    }

    /// An array inside; absent is empty.
    pub(super) fn array(&self, name: &str, max: usize) -> Result<&'a [Value], MessageError> {
        match self.value(name) {
            None => Ok(&[]),
            Some(Value::Array(items)) if items.len() <= max => Ok(items),
            Some(value) => Err(self.bad(name, value, "an array of bounded length")),
        }
    }
}

/// A whole number from 0, also where it was written as `5.0` or `5e0`.
pub(super) fn whole(value: &Value) -> Option<u64> {
    // Above 2^53 a float no longer holds every integer.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_u64().or_else(|| {
        let number = value.as_f64()?;
        let exact = (0.0..=EXACT).contains(&number) && number % 1.0 == 0.0;
        exact.then_some(number as u64)
    })
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn quoted(value: &Value) -> String {
    cut(&value.to_string())
}

/// At most [`QUOTED_MAX`] characters of it.
pub(super) fn cut(text: &str) -> String {
    if text.chars().count() <= QUOTED_MAX {
        return text.to_owned();
    }
    text.chars().take(QUOTED_MAX - 1).chain(['…']).collect()
}

/// The last `"name":` before the place where the parser gave up: that field's value could not be read.
fn field_before(text: &str, error: &serde_json::Error) -> Option<String> {
    let line_start: usize = text.split_inclusive('\n').take(error.line().checked_sub(1)?).map(str::len).sum();
    let mut end = (line_start + error.column()).min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let head = &text[..end];
    // A colon inside a text is no separator: it is not preceded by a closing quote.
    head.rmatch_indices(':').find_map(|(colon, _)| {
        let name = head[..colon].trim_end().strip_suffix('"')?;
        let name = &name[name.rfind('"')? + 1..];
        (!name.is_empty() && name.len() <= QUOTED_MAX && !name.contains(':')).then(|| name.to_owned())
    })
}
