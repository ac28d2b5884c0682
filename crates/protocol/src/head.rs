//! Finds the end of an HTTP/1.1 head while its bytes arrive, and refuses line structure that two parsers could
//! read in two ways: bare LF or CR, folded lines, control characters.
//!
//! In: a growing buffer. Out: where the head ends, or why it never will. Invariants: every byte is looked at
//! once however it drips (a head of n bytes costs O(n), never O(n²)); a bad byte is refused when it arrives,
//! not at the end of the head. Elsewhere: what the fields mean ([`crate::request`], [`crate::response`]).

use crate::request::TARGET_MAX;

/// Longest head of a request or an answer. 16 KiB is what HAProxy holds by default and double the largest
/// cookie jar browsers send; a larger one only buys memory for attackers.
pub const HEAD_MAX: usize = 16 * 1024;
/// Most fields in a head. Browsers send about 20; the parser's slots are on the stack.
pub const FIELDS_MAX: usize = 64;
/// `GET ` and ` HTTP/1.1`, with room for longer methods so that they are told apart from long targets.
const REQUEST_LINE_REST: usize = 64;

/// Whose head it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeadOf {
    Request,
    Response,
}

/// Why the bytes can be no head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// LF without CR or CR without LF (RFC 9112 §2.2): the classic smuggling gap.
    #[error("a line of the head does not end in CR LF")]
    LineEnd,
    /// A line that begins with a space or tab (RFC 9112 §5.2).
    #[error("a line of the head is folded")]
    Fold,
    /// NUL or another control character (RFC 9110 §5.5).
    #[error("the head holds a control character")]
    Control,
    /// More than [`FIELDS_MAX`] fields.
    #[error("the head has more than {FIELDS_MAX} fields")]
    TooManyFields,
    /// More than [`HEAD_MAX`] bytes.
    #[error("the head is longer than {HEAD_MAX} bytes")]
    TooLong,
    /// The request line is longer than a target may be.
    #[error("the request target is longer than {TARGET_MAX} bytes")]
    TargetTooLong,
}

/// Where the search stands. Feed it the whole buffer each time; it goes on behind what it has seen.
#[derive(Debug)]
pub(crate) struct HeadScan {
    of: HeadOf,
    seen: usize,
    /// Where the current line begins.
    line: usize,
    /// Where the head begins: behind an empty first line of a request.
    start: usize,
    lines: usize,
    after_cr: bool,
}

impl HeadScan {
    pub(crate) const fn new(of: HeadOf) -> Self {
        Self { of, seen: 0, line: 0, start: 0, lines: 0, after_cr: false }
    }

    /// Says which part of `buffer` is the head, once it is whole.
    pub(crate) fn find(&mut self, buffer: &[u8]) -> Result<Option<core::ops::Range<usize>>, HeadError> {
        while let Some(&byte) = buffer.get(self.seen) {
            let at = self.seen;
            self.seen += 1;
            if at - self.start >= HEAD_MAX {
                return Err(HeadError::TooLong);
            }
            if self.take(byte, at)? {
                return Ok(Some(self.start..self.seen));
            }
        }
        Ok(None)
    }

    /// Whether `byte` at `at` ends the head.
    fn take(&mut self, byte: u8, at: usize) -> Result<bool, HeadError> {
        match byte {
            b'\n' if self.after_cr => {
                self.after_cr = false;
                return self.line_done(at);
            }
            b'\n' => return Err(HeadError::LineEnd),
            _ if self.after_cr => return Err(HeadError::LineEnd),
            b'\r' => self.after_cr = true,
            b' ' | b'\t' if at == self.line => return Err(HeadError::Fold),
            b'\t' => {}
            ..=0x1f | 0x7f => return Err(HeadError::Control),
            _ => {}
        }
        if self.of == HeadOf::Request && self.lines == 0 && at - self.line > TARGET_MAX + REQUEST_LINE_REST {
            return Err(HeadError::TargetTooLong);
        }
        Ok(false)
    }

    fn line_done(&mut self, at: usize) -> Result<bool, HeadError> {
        let empty = at == self.line + 1;
        self.line = at + 1;
        if !empty {
            self.lines += 1;
            return if self.lines > FIELDS_MAX + 1 { Err(HeadError::TooManyFields) } else { Ok(false) };
        }
        if self.lines > 0 {
            return Ok(true);
        }
        // RFC 9112 §2.2: one empty line before a request is ignored. A second one is no accident.
        if self.of == HeadOf::Response || self.start > 0 {
            return Err(HeadError::LineEnd);
        }
        self.start = self.line;
        Ok(false)
    }
}

/// Whether `text` is a token (RFC 9110 §5.6.2).
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// The elements of a comma-separated list, without the empty ones (RFC 9110 §5.6.1.2).
pub(crate) fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(|element| element.trim_matches([' ', '\t'])).filter(|element| !element.is_empty())
}

/// Splits a name or address with an optional port; no user, no list, no path (RFC 9112 §3.2, RFC 3986 §3.2.2). An
/// IPv6 address keeps its brackets.
pub(crate) fn authority(text: &str) -> Option<(&str, Option<u16>)> {
    let at = match text.strip_prefix('[') {
        Some(rest) => {
            let end = rest.find(']')?;
            rest[..end].parse::<core::net::Ipv6Addr>().ok()?;
            end + 2
        }
        None => text.find(':').unwrap_or(text.len()),
    };
    let (host, port) = text.split_at(at);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    if host.is_empty() || host.len() > HOST_MAX || !(host.starts_with('[') || host.bytes().all(plain)) {
        return None;
    }
    if port.is_empty() {
        return Some((host, None));
    }
    let digits = port.strip_prefix(':').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    let number = digits.parse::<u16>().ok().filter(|number| *number > 0)?;
    Some((host, Some(number)))
}

/// Longest host: a DNS name (RFC 1035 §2.3.4).
const HOST_MAX: usize = 255;

/// Longer than every whole field name that has a meaning here; what is longer is told by how it begins.
const NAME_MAX: usize = 32;

/// A field name in lower case with `_` read as `-`, as a careless server would (CGI does): so that
/// `Content_Length` cannot pass where `Content-Length` does not.
pub(crate) struct Name {
    bytes: [u8; NAME_MAX],
    length: usize,
    pub(crate) underscored: bool,
}

impl Name {
    pub(crate) fn of(name: &str) -> Self {
        let mut bytes = [0; NAME_MAX];
        let mut underscored = false;
        for (to, from) in bytes.iter_mut().zip(name.bytes()) {
            underscored |= from == b'_';
            *to = if from == b'_' { b'-' } else { from.to_ascii_lowercase() };
        }
        Self { bytes, length: name.len().min(NAME_MAX), underscored }
    }

    pub(crate) fn as_str(&self) -> &str {
        // The bytes come from a `str` and only ASCII ones were changed, each to one ASCII byte. A cut through a
        // character would leave no name, but the parser takes ASCII names only.
        core::str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }
}

/// Writes one field.
pub(crate) fn push_field(head: &mut Vec<u8>, name: &str, value: &[u8]) {
    head.extend_from_slice(name.as_bytes());
    head.extend_from_slice(b": ");
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(bytes: &[u8]) -> Result<Option<core::ops::Range<usize>>, HeadError> {
        HeadScan::new(HeadOf::Request).find(bytes)
    }

    #[test]
    fn a_head_is_found_wherever_it_is_cut() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest";
        for cut in 0..head.len() {
            let mut scan = HeadScan::new(HeadOf::Request);
            let first = scan.find(&head[..cut]).unwrap();
            let end = if let Some(end) = first { end } else { scan.find(head).unwrap().unwrap() };
            assert_eq!(end, 0..head.len() - 4);
        }
    }

    #[test]
    fn ambiguous_line_ends_are_refused_when_they_arrive() {
        assert_eq!(find(b"GET / HTTP/1.1\n"), Err(HeadError::LineEnd));
        assert_eq!(find(b"GET / HTTP/1.1\rH"), Err(HeadError::LineEnd));
        assert_eq!(find(b"GET / HTTP/1.1\r\nA: b\r\n c"), Err(HeadError::Fold));
        assert_eq!(find(b"GET /\0"), Err(HeadError::Control));
        assert_eq!(find(b"\x16\x03\x01"), Err(HeadError::Control));
    }

    #[test]
    fn one_empty_line_before_a_request_is_ignored_and_no_more() {
        assert_eq!(find(b"\r\nGET / HTTP/1.1\r\n\r\n"), Ok(Some(2..20)));
        assert_eq!(find(b"\r\n\r\nGET"), Err(HeadError::LineEnd));
    }

    #[test]
    fn each_bound_has_its_own_reason() {
        assert_eq!(find(&[b"GET /", &[b'a'; 9_000][..]].concat()), Err(HeadError::TargetTooLong));
        assert_eq!(find(&[b"GET / HTTP/1.1\r\nA: ", &[b'a'; 17_000][..]].concat()), Err(HeadError::TooLong));
        let fields = "A: b\r\n".repeat(65);
        assert_eq!(find(format!("GET / HTTP/1.1\r\n{fields}").as_bytes()), Err(HeadError::TooManyFields));
    }

    #[test]
    fn names_are_compared_as_a_careless_server_would_read_them() {
        assert_eq!(Name::of("Content_Length").as_str(), "content-length");
        assert_eq!(Name::of(&"A".repeat(40)).as_str(), "a".repeat(NAME_MAX));
    }
}
