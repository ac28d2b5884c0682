//! Decides what a server's answer to a handshake means: a WebSocket, elsewhere, or an answer for the client.
//!
//! In: one whole head, its lines already checked by [`crate::head`], and the [`Request`] it answers. Out: an
//! [`Answered`], or a [`ResponseError`] that becomes 502. Invariants: only a 101 with the right `Upgrade`,
//! `Connection`, `Sec-WebSocket-Accept` and nothing the client did not offer opens a tunnel; heads towards the
//! client are written from parsed fields. Elsewhere: collecting the bytes ([`crate::handshake`]).

use base64::Engine as _;
use sha1::{Digest as _, Sha1};

use crate::head::{FIELDS_MAX, Name, list, push_field};
use crate::request::{Request, extension_name};

/// Most bytes of a body that a server's refusal may carry to the client. Error pages fit; more is cut.
pub const BODY_MAX: usize = 64 * 1024;
/// What RFC 6455 §1.3 appends to the key.
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The `Sec-WebSocket-Accept` that answers `key`.
#[must_use]
pub fn accept_for(key: &str) -> String {
    let digest = Sha1::new().chain_update(key.as_bytes()).chain_update(ACCEPT_GUID).finalize();
    base64::engine::general_purpose::STANDARD.encode(digest)
}

/// Why an answer is unusable. The client gets 502.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    /// Not a status line and fields.
    #[error("the server's answer is not HTTP/1.1")]
    Syntax,
    /// The answer's head is larger than we hold.
    #[error("the head of the server's answer is too large")]
    TooLarge,
    /// An interim answer other than 101.
    #[error("the server sent an interim answer instead of 101")]
    Interim,
    /// A 101 to something else.
    #[error("the server's 101 is no upgrade to websocket")]
    Upgrade,
    /// A 101 that proves nothing.
    #[error("the server's Sec-WebSocket-Accept is missing or wrong")]
    Accept,
    /// A subprotocol or extension the client did not offer.
    #[error("the server chose a subprotocol or extension that was not offered")]
    NotOffered,
    /// A 101 with a body, or a body whose end has two readings.
    #[error("the length of the server's answer is ambiguous")]
    Length,
}

impl ResponseError {
    /// Short code for logs and metrics.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Syntax => "bad_syntax",
            Self::TooLarge => "head_too_large",
            Self::Interim => "interim",
            Self::Upgrade => "upgrade",
            Self::Accept => "accept",
            Self::NotOffered => "not_offered",
            Self::Length => "length",
        }
    }
}

/// A server's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// A WebSocket: this head goes to the client, then bytes pass.
    Switched(Vec<u8>),
    /// 503 with `Evenkeel-Draining`: the server is fine and wants us elsewhere.
    Draining,
    /// Any other status, for the client.
    Refused(Refused),
}

/// A server's own refusal, to be relayed with its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The status.
    pub status: u16,
    phrase: String,
    fields: Vec<u8>,
    length: Length,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    None,
    Known(u64),
    Chunked,
    UntilClose,
}

/// Reads one whole head that answers `request`; `conn` is the connection's id for the client.
///
/// # Errors
/// [`ResponseError`] when it must not reach the client.
pub fn read_answer(head: &[u8], request: &Request, conn: &str) -> Result<Answered, ResponseError> {
    let mut slots = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut parsed = httparse::Response::new(&mut slots);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        _ => return Err(ResponseError::Syntax),
    }
    let status = parsed.code.unwrap_or_default();
    let mut fields = Fields::default();
    for field in parsed.headers.iter() {
        fields.sort(field.name, field.value)?;
    }
    match status {
        101 if parsed.version != Some(1) => Err(ResponseError::Upgrade),
        101 => fields.switch(request, conn).map(Answered::Switched),
        ..200 | 600.. => Err(ResponseError::Interim),
        503 if fields.draining => Ok(Answered::Draining),
        _ => fields.refuse(status, parsed.reason.unwrap_or_default()).map(Answered::Refused),
    }
}

#[derive(Default)]
struct Fields<'a> {
    upgrade: Vec<&'a str>,
    connection: Vec<&'a str>,
    accept: Option<&'a str>,
    protocol: Option<&'a str>,
    extensions: Vec<&'a str>,
    content_length: Option<u64>,
    transfer: Vec<&'a str>,
    draining: bool,
    end_to_end: Vec<(&'a str, &'a [u8])>,
}

impl<'a> Fields<'a> {
    fn sort(&mut self, name: &'a str, value: &'a [u8]) -> Result<(), ResponseError> {
        let known = Name::of(name);
        let lower = known.as_str();
        let text = || core::str::from_utf8(value).map_err(|_| ResponseError::Syntax);
        match lower {
            "upgrade" => self.upgrade.extend(list(text()?)),
            "connection" => self.connection.extend(list(text()?)),
            "sec-websocket-accept" => {
                if self.accept.replace(text()?).is_some() {
                    return Err(ResponseError::Accept);
                }
            }
            "content-length" => self.content_length(text()?)?,
            "transfer-encoding" => self.transfer.extend(list(text()?)),
            "evenkeel-draining" => self.draining = true,
            "keep-alive" | "trailer" | "te" | "proxy-connection" => {}
            _ if lower.starts_with("evenkeel-") => {}
            _ => self.sort_end_to_end(lower, name, value)?,
        }
        Ok(())
    }

    fn sort_end_to_end(&mut self, lower: &str, name: &'a str, value: &'a [u8]) -> Result<(), ResponseError> {
        let text = || core::str::from_utf8(value).map_err(|_| ResponseError::Syntax);
        match lower {
            "sec-websocket-protocol" if self.protocol.replace(text()?).is_some() => {
                return Err(ResponseError::NotOffered);
            }
            "sec-websocket-extensions" => self.extensions.extend(list(text()?)),
            _ => {}
        }
        self.end_to_end.push((name, value));
        Ok(())
    }

    fn content_length(&mut self, value: &str) -> Result<(), ResponseError> {
        let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        let length = value.parse().ok().filter(|_| digits).ok_or(ResponseError::Length)?;
        match self.content_length.replace(length) {
            Some(before) if before != length => Err(ResponseError::Length),
            _ => Ok(()),
        }
    }

    fn switch(self, request: &Request, conn: &str) -> Result<Vec<u8>, ResponseError> {
        if self.content_length.is_some() || !self.transfer.is_empty() {
            return Err(ResponseError::Length);
        }
        let [upgrade] = self.upgrade[..] else { return Err(ResponseError::Upgrade) };
        let names_upgrade = self.connection.iter().any(|option| option.eq_ignore_ascii_case("upgrade"));
        if !upgrade.eq_ignore_ascii_case("websocket") || !names_upgrade {
            return Err(ResponseError::Upgrade);
        }
        let accept = accept_for(request.key());
        if self.accept != Some(accept.as_str()) {
            return Err(ResponseError::Accept);
        }
        let offered = self.protocol.is_none_or(|name| request.offers_protocol(name))
            && self.extensions.iter().all(|extension| request.offers_extension(extension_name(extension)));
        if !offered {
            return Err(ResponseError::NotOffered);
        }
        let mut head = Vec::with_capacity(320);
        head.extend_from_slice(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
        );
        push_field(&mut head, "Sec-WebSocket-Accept", accept.as_bytes());
        self.write_end_to_end(&mut head);
        push_field(&mut head, "Evenkeel-Conn", conn.as_bytes());
        head.extend_from_slice(b"\r\n");
        Ok(head)
    }

    fn refuse(self, status: u16, phrase: &str) -> Result<Refused, ResponseError> {
        let length = match (self.content_length, &self.transfer[..]) {
            _ if matches!(status, 204 | 205 | 304) => Length::None,
            (Some(length), []) => Length::Known(length),
            (None, [coding]) if coding.eq_ignore_ascii_case("chunked") => Length::Chunked,
            (None, []) => Length::UntilClose,
            _ => return Err(ResponseError::Length),
        };
        let mut fields = Vec::with_capacity(256);
        self.write_end_to_end(&mut fields);
        Ok(Refused { status, phrase: phrase.into(), fields, length })
    }

    fn write_end_to_end(&self, to: &mut Vec<u8>) {
        for (name, value) in &self.end_to_end {
            if !self.connection.iter().any(|nominated| nominated.eq_ignore_ascii_case(name)) {
                push_field(to, name, value);
            }
        }
    }
}

impl Refused {
    /// Whether `received`, the bytes behind the head, hold all of the body that will be relayed.
    #[must_use]
    pub fn is_whole(&self, received: &[u8]) -> bool {
        match self.length {
            Length::None => true,
            Length::Known(length) => received.len() as u64 >= length.min(BODY_MAX as u64),
            Length::Chunked => received.len() >= 2 * BODY_MAX || unchunk(received).whole,
            Length::UntilClose => received.len() >= BODY_MAX,
        }
    }

    /// The answer for the client: head and body, cut to [`BODY_MAX`]. The connection closes behind it.
    #[must_use]
    pub fn answer(&self, received: &[u8]) -> Vec<u8> {
        let unchunked;
        let body = match self.length {
            Length::None => &[],
            Length::Known(length) => {
                &received[..usize::try_from(length).map_or(received.len(), |n| n.min(received.len()))]
            }
            Length::UntilClose => received,
            Length::Chunked => {
                unchunked = unchunk(received).body;
                &unchunked[..]
            }
        };
        let body = &body[..body.len().min(BODY_MAX)];
        let mut answer = Vec::with_capacity(self.fields.len() + body.len() + 128);
        answer.extend_from_slice(format!("HTTP/1.1 {} {}\r\n", self.status, self.phrase).as_bytes());
        answer.extend_from_slice(&self.fields);
        if self.length != Length::None {
            push_field(&mut answer, "Content-Length", body.len().to_string().as_bytes());
        }
        answer.extend_from_slice(b"Connection: close\r\n\r\n");
        answer.extend_from_slice(body);
        answer
    }
}

struct Unchunked {
    body: Vec<u8>,
    /// The last chunk was seen, or nothing further can be read.
    whole: bool,
}

/// Undoes the chunked coding (RFC 9112 §7.1) as far as `received` goes; stops where it is malformed.
fn unchunk(received: &[u8]) -> Unchunked {
    let mut body = Vec::new();
    let mut rest = received;
    let whole = loop {
        match httparse::parse_chunk_size(rest) {
            Ok(httparse::Status::Complete((_, 0))) | Err(_) => break true,
            Ok(httparse::Status::Partial) => break false,
            Ok(httparse::Status::Complete((start, size))) => {
                let data = &rest[start..];
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                body.extend_from_slice(&data[..size.min(data.len())]);
                // The data's own CR LF; parse_chunk_size would refuse a size that does not follow it.
                match data.get(size..).and_then(|behind| behind.get(2..)) {
                    Some(next) if body.len() < BODY_MAX => rest = next,
                    Some(_) => break true,
                    None => break body.len() >= BODY_MAX,
                }
            }
        }
    };
    Unchunked { body, whole }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const GOOD: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";

    fn request() -> Request {
        Request::parse(
            format!(
                "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Protocol: chat, v2\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
            )
            .as_bytes(),
        )
        .unwrap()
    }

    fn read(head: &str) -> Result<Answered, ResponseError> {
        read_answer(format!("{head}\r\n").as_bytes(), &request(), "c1")
    }

    #[test]
    fn accept_is_computed_as_in_the_rfc() {
        assert_eq!(accept_for(KEY), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_good_101_passes_with_the_servers_own_fields_and_our_id() {
        let sent = format!(
            "{GOOD}Sec-WebSocket-Protocol: v2\r\nSet-Cookie: a=b\r\nEvenkeel-Conn: forged\r\nKeep-Alive: 5\r\n"
        );
        let Ok(Answered::Switched(head)) = read(&sent) else { panic!("no switch") };
        expect_test::expect![[r"
            HTTP/1.1 101 Switching Protocols
            Upgrade: websocket
            Connection: Upgrade
            Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=
            Sec-WebSocket-Protocol: v2
            Set-Cookie: a=b
            Evenkeel-Conn: c1

        "]]
        .assert_eq(&String::from_utf8(head).unwrap().replace("\r\n", "\n"));
    }

    #[test]
    fn a_101_that_proves_nothing_is_refused() {
        let cases = [
            (GOOD.replace("s3p", "S3p"), ResponseError::Accept),
            (GOOD.replace("Sec-WebSocket-Accept", "X-Accept"), ResponseError::Accept),
            (format!("{GOOD}Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), ResponseError::Accept),
            (GOOD.replace("Upgrade: websocket", "X: y"), ResponseError::Upgrade),
            (GOOD.replace("Upgrade: websocket", "Upgrade: h2c"), ResponseError::Upgrade),
            (GOOD.replace("Connection: Upgrade", "Connection: close"), ResponseError::Upgrade),
            (format!("{GOOD}Content-Length: 5\r\n"), ResponseError::Length),
            (format!("{GOOD}Transfer-Encoding: chunked\r\n"), ResponseError::Length),
            (format!("{GOOD}Sec-WebSocket-Protocol: other\r\n"), ResponseError::NotOffered),
            (format!("{GOOD}Sec-WebSocket-Extensions: x-other\r\n"), ResponseError::NotOffered),
            ("HTTP/1.1 100 Continue\r\n".into(), ResponseError::Interim),
            ("SSH-2.0-x\r\n".into(), ResponseError::Syntax),
        ];
        for (head, error) in cases {
            assert_eq!(read(&head), Err(error), "{head}");
        }
    }

    #[test]
    fn draining_is_told_from_a_plain_503() {
        assert_eq!(
            read("HTTP/1.1 503 Busy\r\nEvenkeel-Draining: 1\r\nContent-Length: 0\r\n"),
            Ok(Answered::Draining)
        );
        assert!(matches!(read("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n"), Ok(Answered::Refused(_))));
    }

    fn relay(head: &str, body: &[u8]) -> (bool, String) {
        let Ok(Answered::Refused(refused)) = read(head) else { panic!("not refused: {head}") };
        (refused.is_whole(body), String::from_utf8(refused.answer(body)).unwrap())
    }

    #[test]
    fn a_refusal_is_relayed_with_its_body_however_it_is_framed() {
        let (whole, answer) =
            relay("HTTP/1.1 401 No\r\nContent-Length: 3\r\nWWW-Authenticate: x\r\n", b"no!more");
        assert!(whole && answer.ends_with("Content-Length: 3\r\nConnection: close\r\n\r\nno!"), "{answer}");
        assert!(answer.starts_with("HTTP/1.1 401 No\r\nWWW-Authenticate: x\r\n"), "{answer}");
        let chunked = "HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n";
        assert!(!relay(chunked, b"3\r\nno!\r\n").0);
        let (whole, answer) = relay(chunked, b"3\r\nno!\r\n1\r\n?\r\n0\r\n\r\n");
        assert!(whole && answer.ends_with("Content-Length: 4\r\nConnection: close\r\n\r\nno!?"), "{answer}");
        let (whole, answer) = relay("HTTP/1.1 500 No\r\n", b"until the end");
        assert!(!whole && answer.ends_with("until the end"), "{answer}");
        assert!(!relay("HTTP/1.1 304 Same\r\nContent-Length: 3\r\n", b"").1.contains("Content-Length"));
    }

    #[test]
    fn a_body_is_cut_where_the_bound_is() {
        let (whole, answer) = relay("HTTP/1.1 500 No\r\nContent-Length: 1000000\r\n", &vec![b'x'; 70_000]);
        assert!(whole && answer.contains("Content-Length: 65536\r\n"));
    }

    #[test]
    fn a_body_with_two_lengths_is_refused() {
        assert_eq!(
            read("HTTP/1.1 404 No\r\nContent-Length: 3\r\nContent-Length: 4\r\n"),
            Err(ResponseError::Length)
        );
        assert_eq!(
            read("HTTP/1.1 404 No\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n"),
            Err(ResponseError::Length)
        );
        assert_eq!(read("HTTP/1.1 404 No\r\nContent-Length: +3\r\n"), Err(ResponseError::Length));
    }

    proptest::proptest! {
        #[test]
        fn no_damage_to_an_answer_panics(
            edits in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), proptest::prelude::any::<u8>()), 0..4),
            chunked in proptest::prelude::any::<bool>(),
            body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..100),
        ) {
            let refusal = "HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\nServer: x\r\n";
            let mut head = format!("{}\r\n", if chunked { refusal } else { GOOD }).into_bytes();
            for (at, byte) in edits {
                let at = at.index(head.len());
                head[at] = byte;
            }
            if let Ok(Answered::Refused(refused)) = read_answer(&head, &request(), "c1") {
                let _ = refused.is_whole(&body);
                let _ = refused.answer(&body);
            }
        }
    }
}
