//! Decides whether a request is a WebSocket handshake that may reach a server, and writes the new head for it.
//!
//! In: one whole head, its lines already checked by [`crate::head`]. Out: a [`Request`], a [`Plain`] request for the
//! few places that answer those, or a [`RequestError`] with the status that RFC 9110, 9112 and 6455 ask for. Invariants: a head towards a server is written from
//! parsed fields, never copied; what is hop-by-hop, nominated by `Connection`, a claim about forwarding, or
//! ours (`Evenkeel-*`) does not pass; nothing with a body, another upgrade or two readings passes.
//! Elsewhere: picking the server (`fleet`), retries and deadlines ([`crate::handshake`]).

use core::net::IpAddr;

use crate::head::{FIELDS_MAX, HeadError, Name, authority, is_token, list, push_field};
use crate::negotiate::without;

/// Longest request target. Longer than browsers' practical 2 KiB, shorter than the head may be.
pub const TARGET_MAX: usize = 8 * 1024;
/// A `Sec-WebSocket-Key` in base64: 16 bytes (RFC 6455 §4.1).
pub const KEY_LEN: usize = 24;

/// Why a request was refused. Nothing of it reaches a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The head's lines are not HTTP/1.1.
    #[error("could not read the request: {0}")]
    Head(#[from] HeadError),
    /// Not a request line and fields.
    #[error("could not read the request: {0}")]
    Syntax(&'static str),
    /// Another version of HTTP.
    #[error("only HTTP/1.1 is spoken here")]
    HttpVersion,
    /// Another method than GET.
    #[error("only GET opens a WebSocket")]
    Method,
    /// Not a path with an optional query (RFC 9112 §3.2.1).
    #[error("the request target must be a plain path with an optional query")]
    Target,
    /// Not exactly one valid `Host`.
    #[error("exactly one valid Host is needed")]
    Host,
    /// No wish for a WebSocket: a plain request.
    #[error("this is a WebSocket endpoint: send Upgrade: websocket")]
    NoUpgrade,
    /// Another upgrade beside websocket, or an `Upgrade` without its `Connection`.
    #[error("the upgrade must be to websocket alone, and Connection must name it")]
    Upgrade,
    /// Not exactly one `Sec-WebSocket-Key` of 16 bytes.
    #[error("exactly one Sec-WebSocket-Key of 16 bytes in base64 is needed")]
    Key,
    /// Another `Sec-WebSocket-Version` than 13.
    #[error("only WebSocket version 13 is spoken here")]
    WebSocketVersion,
    /// A field that a handshake cannot have, or has twice.
    #[error("the handshake must not carry this: {0}")]
    Field(&'static str),
    /// A body without `Content-Length`.
    #[error("a body needs a Content-Length here")]
    LengthRequired,
    /// More bytes before the 101 than are held.
    #[error("too many bytes were sent before the handshake was answered")]
    Early,
    /// The head was not there in time.
    #[error("the request did not arrive in time")]
    Late,
}

impl RequestError {
    /// The status to answer with.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Head(HeadError::TargetTooLong) => 414,
            Self::Head(HeadError::TooLong | HeadError::TooManyFields) => 431,
            Self::HttpVersion => 505,
            Self::Method => 405,
            Self::NoUpgrade | Self::WebSocketVersion => 426,
            Self::Late => 408,
            Self::LengthRequired => 411,
            _ => 400,
        }
    }

    /// Short code for logs and metrics.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Head(HeadError::TargetTooLong) => "target_too_long",
            Self::Head(HeadError::TooLong | HeadError::TooManyFields) => "head_too_large",
            Self::Head(_) | Self::Syntax(_) => "bad_syntax",
            Self::HttpVersion => "http_version",
            Self::Method => "method",
            Self::Target => "target",
            Self::Host => "host",
            Self::NoUpgrade => "no_upgrade",
            Self::Upgrade => "upgrade",
            Self::Key => "key",
            Self::WebSocketVersion => "websocket_version",
            Self::Field(_) => "field",
            Self::LengthRequired => "length_required",
            Self::Early => "early_bytes",
            Self::Late => "head_timeout",
        }
    }

    /// Fields that belong to the status.
    #[must_use]
    pub const fn fields(self) -> &'static str {
        match self {
            Self::Method => "Allow: GET\r\n",
            Self::NoUpgrade => "Upgrade: websocket\r\n",
            Self::WebSocketVersion => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
            _ => "",
        }
    }
}

/// A WebSocket handshake that may reach a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    target: String,
    host: String,
    key: String,
    origin: Option<String>,
    /// Offered subprotocols and extensions, each list joined by commas.
    protocols: String,
    extensions: String,
    /// End-to-end fields, written out.
    fields: Vec<u8>,
}

/// Who sent a request, for the fields that tell the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The client's address.
    pub ip: IpAddr,
    /// How it came: `ws` or `wss`.
    pub scheme: Scheme,
}

/// What a gateway itself says to a server in a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said<'a> {
    /// The connection's id, as on the 101.
    pub conn: &'a str,
    /// What it hands on or adds.
    pub assignment: Assignment<'a>,
}

/// The assignment of a proxied handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assignment<'a> {
    /// None: the server checks none.
    None,
    /// Made for this handshake.
    Minted(&'a str),
    /// The one that the client brought as `_ek`, checked; its target keeps it.
    Brought(&'a str),
}

impl Assignment<'_> {
    const fn token(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Minted(token) | Self::Brought(token) => Some(token),
        }
    }

    /// The fields of ours that a server has no use for.
    fn drops(&self, name: &str) -> bool {
        name == "_ekr" || (name == "_ek" && !matches!(self, Self::Brought(_)))
    }
}

/// How a client reached us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain.
    Ws,
    /// Through TLS.
    Wss,
}

impl Scheme {
    /// The word in a URL.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ws => "ws",
            Self::Wss => "wss",
        }
    }
}

impl Request {
    /// Reads one whole head of a handshake, from the request line to the empty line.
    ///
    /// # Errors
    /// [`RequestError`] with the status to answer.
    pub fn parse(head: &[u8]) -> Result<Self, RequestError> {
        match Parsed::read(head)? {
            Parsed::Handshake(request) => Ok(request),
            Parsed::Plain(plain) => Err(plain.refusal()),
        }
    }
    /// Path and query, as the client sent them. The query may hold secrets: never log it.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    pub(crate) fn retarget(&mut self, target: String) {
        self.target = target;
    }

    /// The path without the query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// Host and port, as the client sent them.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The `Origin`, if there is one.
    #[must_use]
    pub fn origin(&self) -> Option<&str> {
        self.origin.as_deref()
    }

    /// End-to-end fields, written out, each with its CR LF; without Host and those of the handshake.
    #[must_use]
    pub fn fields(&self) -> &[u8] {
        &self.fields
    }

    /// The client's `Sec-WebSocket-Key`.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether the client offered this subprotocol.
    #[must_use]
    pub fn offers_protocol(&self, name: &str) -> bool {
        list(&self.protocols).any(|offered| offered == name)
    }

    /// Whether the client offered this extension, whatever its parameters.
    #[must_use]
    pub fn offers_extension(&self, name: &str) -> bool {
        list(&self.extensions).any(|offered| extension_name(offered).eq_ignore_ascii_case(name))
    }

    /// The new head for a server whose URL has the path `prefix` (`""` or `/…` without a slash at its end).
    #[must_use]
    pub fn head_for(&self, prefix: &str, peer: &Peer, said: &Said<'_>) -> Vec<u8> {
        let token = said.assignment.token();
        let length = self.fields.len() + self.target.len() + self.host.len() + token.map_or(0, str::len);
        let mut head = Vec::with_capacity(length + 400);
        head.extend_from_slice(b"GET ");
        head.extend_from_slice(prefix.as_bytes());
        head.extend_from_slice(without(&self.target, |name| said.assignment.drops(name)).as_bytes());
        head.extend_from_slice(b" HTTP/1.1\r\n");
        push_field(&mut head, "Host", self.host.as_bytes());
        head.extend_from_slice(b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n");
        push_field(&mut head, "Sec-WebSocket-Key", self.key.as_bytes());
        head.extend_from_slice(&self.fields);
        push_field(&mut head, "X-Forwarded-For", peer.ip.to_canonical().to_string().as_bytes());
        let proto: &[u8] = match peer.scheme {
            Scheme::Ws => b"http",
            Scheme::Wss => b"https",
        };
        push_field(&mut head, "X-Forwarded-Proto", proto);
        push_field(&mut head, "Evenkeel-Conn", said.conn.as_bytes());
        if let Some(token) = token {
            push_field(&mut head, "Evenkeel-Assignment", token.as_bytes());
        }
        head.extend_from_slice(b"\r\n");
        head
    }
}

/// What a proper head is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Parsed {
    Handshake(Request),
    Plain(Plain),
}

impl Parsed {
    pub(crate) fn read(head: &[u8]) -> Result<Self, RequestError> {
        let mut slots = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut parsed = httparse::Request::new(&mut slots);
        match parsed.parse(head) {
            Ok(httparse::Status::Complete(length)) if length == head.len() => {}
            Ok(_) => return Err(RequestError::Syntax("it does not end where it should")),
            Err(error) => return Err(parse_error(error, head)),
        }
        let method = check_line(&parsed)?;
        let mut fields = Fields::default();
        for field in parsed.headers.iter() {
            fields.sort(field.name, field.value)?;
        }
        fields.finish(method, parsed.path.unwrap_or_default())
    }
}

/// Methods of plain requests that are answered somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// GET.
    Get,
    /// POST.
    Post,
    /// OPTIONS: a browser asks whether a page may do more.
    Options,
}

impl Method {
    /// The word on the request line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Options => "OPTIONS",
        }
    }
}

/// A request that wants no WebSocket. As strictly read: a body only with `Content-Length`, no other upgrade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plain {
    /// Its method.
    pub method: Method,
    target: String,
    host: String,
    origin: Option<String>,
    /// Bytes of its body.
    pub content_length: u64,
    /// Whether it takes JSON by name.
    pub accepts_json: bool,
    /// Whether the client ends the connection behind it.
    pub closes: bool,
    fields: Vec<u8>,
}

impl Plain {
    /// Path and query, as the client sent them. The query may hold secrets: never log it.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The path without the query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// Host and port, as the client sent them.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The `Origin`, if there is one.
    #[must_use]
    pub fn origin(&self) -> Option<&str> {
        self.origin.as_deref()
    }

    /// End-to-end fields, written out, each with its CR LF; without Host and Content-Length.
    #[must_use]
    pub fn fields(&self) -> &[u8] {
        &self.fields
    }

    /// Why it is refused where only handshakes are answered.
    #[must_use]
    pub const fn refusal(&self) -> RequestError {
        match self.method {
            Method::Get => RequestError::NoUpgrade,
            Method::Post | Method::Options => RequestError::Method,
        }
    }
}

pub(crate) fn extension_name(offer: &str) -> &str {
    offer.split(';').next().unwrap_or_default().trim_matches([' ', '\t'])
}

fn parse_error(error: httparse::Error, head: &[u8]) -> RequestError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooManyFields.into(),
        httparse::Error::Version if names_http_version(head) => RequestError::HttpVersion,
        httparse::Error::Version => RequestError::Syntax("the version is not HTTP/1.1"),
        httparse::Error::Token => RequestError::Syntax("the method or the request line is malformed"),
        httparse::Error::HeaderName => RequestError::Syntax("a field name is malformed"),
        httparse::Error::HeaderValue => RequestError::Syntax("a field value is malformed"),
        _ => RequestError::Syntax("a line is malformed"),
    }
}

/// Whether the request line ends in a well-formed version that is not ours.
fn names_http_version(head: &[u8]) -> bool {
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let version = line.rsplit(|&byte| byte == b' ').next().unwrap_or_default();
    matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit())
}

fn check_line(parsed: &httparse::Request<'_, '_>) -> Result<Method, RequestError> {
    if parsed.version != Some(1) {
        return Err(RequestError::HttpVersion);
    }
    let method = match parsed.method {
        Some("GET") => Method::Get,
        Some("POST") => Method::Post,
        Some("OPTIONS") => Method::Options,
        _ => return Err(RequestError::Method),
    };
    let target = parsed.path.unwrap_or_default();
    if target.len() > TARGET_MAX {
        return Err(HeadError::TargetTooLong.into());
    }
    match method {
        _ if is_target(target) => Ok(method),
        Method::Get => Err(RequestError::Target),
        // Such as `OPTIONS *`: there is nothing here for it, whatever the target.
        Method::Post | Method::Options => Err(RequestError::Method),
    }
}

/// Whether it is a plain path with an optional query that may be asked of a server.
pub(crate) fn is_target(target: &str) -> bool {
    let (path, _query) = target.split_once('?').unwrap_or((target, ""));
    // `"`, `<`, `>` and `#` are in no target a client builds by the URL standard, and break logs and links.
    let plain = target.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>#".contains(&byte));
    plain && target.len() <= TARGET_MAX && path.starts_with('/') && !has_dot_segment(path)
}

/// `.` and `..`, however written: clients resolve them, so one that arrives wants past a route. Servers exist that
/// take an encoded slash or a backslash for a slash, and drop what stands behind a semicolon.
fn has_dot_segment(path: &str) -> bool {
    if !path.contains(['.', '%']) {
        return false;
    }
    let mut path = path.to_ascii_lowercase().replace('\\', "/");
    for (encoded, plain) in [("%2e", "."), ("%2f", "/"), ("%5c", "/"), ("%3b", ";")] {
        path = path.replace(encoded, plain);
    }
    path.split('/').any(|segment| matches!(segment.split(';').next(), Some("." | "..")))
}

/// The fields of a request, sorted by what they mean for a handshake.
#[derive(Default)]
struct Fields<'a> {
    host: Option<&'a str>,
    key: Option<&'a str>,
    version: Option<&'a str>,
    upgrade: Option<&'a str>,
    connection: Vec<&'a str>,
    origin: Option<&'a str>,
    protocols: String,
    extensions: String,
    content_length: Option<&'a str>,
    accepts_json: bool,
    /// Whether a body comes in another coding than as it is.
    coded: bool,
    /// First field that no handshake has.
    refused: Option<&'static str>,
    end_to_end: Vec<(&'a str, &'a [u8])>,
}

impl<'a> Fields<'a> {
    fn sort(&mut self, name: &'a str, value: &'a [u8]) -> Result<(), RequestError> {
        let known = Name::of(name);
        let lower = known.as_str();
        if lower == "content-length" {
            self.refused.get_or_insert("Content-Length");
            return once(&mut self.content_length, value, RequestError::Field("Content-Length"));
        }
        if lower == "transfer-encoding" {
            // Named with the length that a plain request needs instead.
            self.coded = true;
            self.refused.get_or_insert("Transfer-Encoding");
            return Ok(());
        }
        if let Some(what) = refused(lower) {
            return Err(RequestError::Field(what));
        }
        if is_dropped(lower) || (known.underscored && is_ours(lower)) {
            return Ok(());
        }
        match lower {
            "host" => once(&mut self.host, value, RequestError::Host),
            "sec-websocket-key" => once(&mut self.key, value, RequestError::Key),
            "sec-websocket-version" => {
                once(&mut self.version, value, RequestError::Field("Sec-WebSocket-Version twice"))
            }
            "upgrade" => once(&mut self.upgrade, value, RequestError::Upgrade),
            "connection" => {
                let value = text(value).ok_or(RequestError::Upgrade)?;
                self.connection.extend(list(value));
                Ok(())
            }
            _ => self.sort_end_to_end(lower, name, value),
        }
    }

    fn sort_end_to_end(&mut self, lower: &str, name: &'a str, value: &'a [u8]) -> Result<(), RequestError> {
        match lower {
            "accept" => {
                self.accepts_json |= text(value).is_some_and(|value| {
                    list(value).any(|kind| extension_name(kind).eq_ignore_ascii_case("application/json"))
                });
            }
            "origin" => once(&mut self.origin, value, RequestError::Field("Origin twice or malformed"))?,
            "sec-websocket-protocol" => {
                let value = text(value)
                    .filter(|value| list(value).next().is_some() && list(value).all(is_token))
                    .ok_or(RequestError::Field("a malformed Sec-WebSocket-Protocol"))?;
                append(&mut self.protocols, value);
            }
            "sec-websocket-extensions" => {
                let value = text(value)
                    .filter(|value| list(value).next().is_some() && list(value).all(is_offer))
                    .ok_or(RequestError::Field("a malformed Sec-WebSocket-Extensions"))?;
                append(&mut self.extensions, value);
            }
            "authorization" if self.end_to_end.iter().any(|(other, _)| other.eq_ignore_ascii_case(name)) => {
                return Err(RequestError::Field("Authorization twice"));
            }
            _ => {}
        }
        self.end_to_end.push((name, value));
        Ok(())
    }

    fn finish(self, method: Method, target: &str) -> Result<Parsed, RequestError> {
        let host = self.host.filter(|host| authority(host).is_some()).ok_or(RequestError::Host)?;
        match self.check_upgrade() {
            Err(RequestError::NoUpgrade) if self.upgrade.is_none() => {
                return self.plain(method, target, host);
            }
            checked => checked?,
        }
        if method != Method::Get {
            return Err(RequestError::Method);
        }
        if let Some(what) = self.refused {
            return Err(RequestError::Field(what));
        }
        if self.version != Some("13") {
            return Err(RequestError::WebSocketVersion);
        }
        let key = self.key.filter(|key| is_key(key)).ok_or(RequestError::Key)?;
        if has_twin(&self.protocols) {
            return Err(RequestError::Field("a subprotocol offered twice"));
        }
        let fields = self.passed_on();
        Ok(Parsed::Handshake(Request {
            target: target.into(),
            host: host.into(),
            key: key.into(),
            origin: self.origin.map(Into::into),
            protocols: self.protocols,
            extensions: self.extensions,
            fields,
        }))
    }

    fn plain(self, method: Method, target: &str, host: &str) -> Result<Parsed, RequestError> {
        if self.coded {
            return Err(RequestError::LengthRequired);
        }
        let content_length = match self.content_length {
            None => 0,
            // Digits alone: a sign or a list is read in two ways.
            Some(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                text.parse().map_err(|_| RequestError::Field("Content-Length"))?
            }
            Some(_) => return Err(RequestError::Field("Content-Length")),
        };
        let option = |name: &str| self.connection.iter().any(|option| option.eq_ignore_ascii_case(name));
        Ok(Parsed::Plain(Plain {
            method,
            target: target.into(),
            host: host.into(),
            origin: self.origin.map(Into::into),
            content_length,
            accepts_json: self.accepts_json,
            closes: option("close"),
            fields: self.passed_on(),
        }))
    }

    /// End-to-end fields, written out.
    fn passed_on(&self) -> Vec<u8> {
        let mut fields = Vec::with_capacity(256);
        for (name, value) in &self.end_to_end {
            if !self.connection.iter().any(|nominated| nominated.eq_ignore_ascii_case(name)) {
                push_field(&mut fields, name, value);
            }
        }
        fields
    }

    fn check_upgrade(&self) -> Result<(), RequestError> {
        let upgrade = self.upgrade.ok_or(RequestError::NoUpgrade)?;
        if !list(upgrade).any(|protocol| protocol.eq_ignore_ascii_case("websocket")) {
            return Err(RequestError::NoUpgrade);
        }
        if !upgrade.eq_ignore_ascii_case("websocket")
            || !self.connection.iter().all(|option| is_token(option))
        {
            return Err(RequestError::Upgrade);
        }
        if !self.connection.iter().any(|option| option.eq_ignore_ascii_case("upgrade")) {
            return Err(RequestError::Upgrade);
        }
        let nominates = |option: &&str| is_ours(&option.to_ascii_lowercase());
        if self.connection.iter().any(nominates) {
            return Err(RequestError::Field("a Connection that names a field of the handshake"));
        }
        Ok(())
    }
}

/// Fields that no WebSocket handshake has: a body, another protocol, a second round trip.
fn refused(name: &str) -> Option<&'static str> {
    Some(match name {
        "expect" => "Expect",
        "http2-settings" => "HTTP2-Settings",
        "trailer" => "Trailer",
        _ => return None,
    })
}

/// Hop-by-hop fields (RFC 9110 §7.6.1), claims about forwarding (no peer is trusted to make them) and ours.
fn is_dropped(name: &str) -> bool {
    matches!(
        name,
        "keep-alive"
            | "te"
            | "proxy-connection"
            | "proxy-authorization"
            | "proxy-authenticate"
            | "proxy"
            | "forwarded"
            | "x-real-ip"
            | "sec-websocket-accept"
    ) || name.starts_with("x-forwarded")
        || name.starts_with("evenkeel-")
}

/// Fields of the handshake itself: not to be nominated away, not to be imitated with an underscore.
fn is_ours(name: &str) -> bool {
    matches!(name, "host" | "connection" | "origin" | "authorization" | "cookie")
        || name.starts_with("sec-websocket-")
}

fn text(value: &[u8]) -> Option<&str> {
    core::str::from_utf8(value).ok().filter(|text| text.is_ascii())
}

fn once<'a>(slot: &mut Option<&'a str>, value: &'a [u8], error: RequestError) -> Result<(), RequestError> {
    let value = text(value).ok_or(error)?;
    if slot.replace(value).is_some() { Err(error) } else { Ok(()) }
}

fn append(list: &mut String, value: &str) {
    if !list.is_empty() {
        list.push(',');
    }
    list.push_str(value);
}

/// Whether a list has an element twice; sorted first, so that a long one costs little.
fn has_twin(names: &str) -> bool {
    let mut names: Vec<&str> = list(names).collect();
    names.sort_unstable();
    names.windows(2).any(|pair| pair[0] == pair[1])
}

/// An extension with its parameters (RFC 6455 §9.1): `name; flag; key=value`, a value maybe in quotes.
fn is_offer(offer: &str) -> bool {
    let mut parts = offer.split(';').map(|part| part.trim_matches([' ', '\t']));
    let is_value =
        |value: &str| is_token(value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value));
    parts.next().is_some_and(is_token)
        && parts.all(|part| match part.split_once('=') {
            Some((key, value)) => is_token(key.trim_end()) && is_value(value.trim_start()),
            None => is_token(part),
        })
}

/// 16 bytes in base64. Unused bits of the last digit are not judged: clients that draw 22 random digits exist.
fn is_key(key: &str) -> bool {
    key.len() == KEY_LEN
        && key.ends_with("==")
        && key[..KEY_LEN - 2].bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "GET /chat?x=1 HTTP/1.1\r\nHost: ws.example.com:8080\r\nUpgrade: websocket\r\n\
        Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";

    fn with(fields: &str) -> Result<Request, RequestError> {
        Request::parse(format!("{GOOD}{fields}\r\n").as_bytes())
    }

    const PEER: Peer = Peer { ip: IpAddr::V4(core::net::Ipv4Addr::new(192, 0, 2, 1)), scheme: Scheme::Ws };
    const SAID: Said<'_> = Said { conn: "c1", assignment: Assignment::None };

    fn head(fields: &str) -> String {
        String::from_utf8(with(fields).unwrap().head_for("/app", &PEER, &SAID)).unwrap()
    }

    #[test]
    fn the_new_head_is_written_from_parsed_fields() {
        expect_test::expect![[r"
            GET /app/chat?x=1 HTTP/1.1
            Host: ws.example.com:8080
            Upgrade: websocket
            Connection: Upgrade
            Sec-WebSocket-Version: 13
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==
            Origin: https://app.example
            Cookie: a=b
            X-Own: 1
            X-Forwarded-For: 192.0.2.1
            X-Forwarded-Proto: http
            Evenkeel-Conn: c1

        "]]
        .assert_eq(
            &head("Origin: https://app.example\r\nCookie:  a=b \r\nX-Own: 1\r\n").replace("\r\n", "\n"),
        );
    }

    fn plain(head: &str) -> Result<Plain, RequestError> {
        match Parsed::read(head.as_bytes())? {
            Parsed::Plain(plain) => Ok(plain),
            Parsed::Handshake(_) => panic!("a handshake"),
        }
    }

    #[test]
    fn a_plain_request_is_read_as_strictly() {
        let post = plain(
            "POST /n?x=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\nAccept: text/html, application/json;q=0.9\r\n\
             Connection: close, X-Own\r\nX-Own: 1\r\nCookie: a=b\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n",
        )
        .unwrap();
        assert_eq!((post.method, post.path(), post.host()), (Method::Post, "/n", "a"));
        assert!(post.content_length == 12 && post.accepts_json && post.closes);
        let fields = String::from_utf8(post.fields().to_vec()).unwrap();
        assert!(
            fields.contains("Cookie: a=b\r\n") && !fields.contains("10.0.0.1") && !fields.contains("X-Own")
        );
        let error = |fields: &str| {
            plain(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).unwrap_err().reason()
        };
        for bad in ["+1", "-1", "1, 1", "", "99999999999999999999"] {
            assert_eq!(error(&format!("Content-Length: {bad}\r\n")), "field", "{bad}");
        }
        assert_eq!(error("Content-Length: 1\r\nContent-Length: 1\r\n"), "field");
        assert_eq!(error("Transfer-Encoding: chunked\r\n"), "length_required");
        assert_eq!(error("Upgrade: h2c\r\n"), "no_upgrade");
        assert_eq!(plain("PUT / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap_err().status(), 405);
    }

    #[test]
    fn a_handshake_has_no_body_and_no_other_method() {
        let post = GOOD.replace("GET ", "POST ") + "\r\n";
        assert_eq!(Request::parse(post.as_bytes()).unwrap_err().status(), 405);
        assert_eq!(with("Content-Length: 0\r\n").unwrap_err().reason(), "field");
    }

    #[test]
    fn fields_of_other_hops_do_not_pass() {
        let sent = "X-Forwarded-For: 10.0.0.1\r\nX_Forwarded_For: 10.0.0.2\r\nForwarded: for=10.0.0.3\r\nX-Real-IP: 10.0.0.4\r\n\
            TE: trailers\r\nKeep-Alive: timeout=5\r\nEvenkeel-Conn: forged\r\n\
            Evenkeel-Something-That-Has-A-Very-Long-Name: forged\r\nX-Forwarded-For-The-Servers-Behind-Us: 10.0.0.5\r\nProxy-Authorization: x\r\nSec_WebSocket_Key: x\r\n";
        let head = head(sent);
        for gone in ["10.0.0.", "TE:", "Keep-Alive", "forged", "Proxy", "Sec_"] {
            assert!(!head.contains(gone), "{gone} in {head}");
        }
    }

    #[test]
    fn a_server_gets_one_assignment_and_every_mark_that_is_for_it() {
        let get = GOOD.replace("/chat?x=1", "/chat?_ek=old&x=1&_ekr=1&_ekm=c&_ekc=move&_eks=s&_ekt=t");
        let get = format!("{get}Evenkeel-Assignment: forged\r\n\r\n");
        let request = Request::parse(get.as_bytes()).unwrap();
        let head = |assignment| {
            let said = Said { conn: "c1", assignment };
            String::from_utf8(request.head_for("", &PEER, &said)).unwrap()
        };
        let marks = "x=1&_ekm=c&_ekc=move&_eks=s&_ekt=t HTTP/1.1\r\n";
        let minted = head(Assignment::Minted("new"));
        assert!(minted.starts_with(&format!("GET /chat?{marks}")), "{minted}");
        assert!(minted.contains("\r\nEvenkeel-Assignment: new\r\n") && !minted.contains("old"), "{minted}");
        let brought = head(Assignment::Brought("old"));
        assert!(brought.starts_with(&format!("GET /chat?_ek=old&{marks}")), "{brought}");
        assert!(brought.contains("\r\nEvenkeel-Assignment: old\r\n"), "{brought}");
        let none = head(Assignment::None);
        assert!(none.starts_with(&format!("GET /chat?{marks}")), "{none}");
        for head in [minted, brought, none.clone()] {
            assert!(!head.contains("forged") && !head.contains("_ekr"), "{head}");
        }
        assert!(!none.contains("Assignment"), "{none}");
    }

    #[test]
    fn fields_that_connection_names_do_not_pass() {
        let head =
            GOOD.replace("keep-alive, Upgrade", "Upgrade, X-Auth") + "X-Auth: admin\r\nX-Other: kept\r\n\r\n";
        let request = Request::parse(head.as_bytes()).unwrap();
        let peer = Peer { scheme: Scheme::Wss, ..PEER };
        let written = String::from_utf8(request.head_for("", &peer, &SAID)).unwrap();
        assert!(
            !written.contains("X-Auth")
                && written.contains("X-Other: kept")
                && written.contains("Proto: https")
        );
    }

    #[test]
    fn hosts_are_a_name_or_an_address_and_a_port() {
        for good in ["a", "a.b-c_d:1", "127.0.0.1:65535", "[::1]", "[2001:db8::1]:443"] {
            assert!(authority(good).is_some(), "{good}");
        }
        for bad in [
            "", "a b", "a,b", "u@a", "a/b", "a:", "a:0", "a:65536", "a:+1", "a:1:2", "[::1", "[x]", "[::1]x",
            "ä", "a%00b",
        ] {
            assert!(authority(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn offers_are_read_over_several_fields() {
        let request = with("Sec-WebSocket-Protocol: a, b\r\nSec-WebSocket-Protocol: c\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n").unwrap();
        assert!(
            ["a", "b", "c"].iter().all(|name| request.offers_protocol(name)) && !request.offers_protocol("d")
        );
        assert!(request.offers_extension("permessage-deflate") && !request.offers_extension("x-other"));
    }

    #[test]
    fn offers_of_extensions_may_have_parameters() {
        for good in [
            "permessage-deflate",
            "permessage-deflate; client_max_window_bits, permessage-deflate",
            "permessage-deflate;server_no_context_takeover; client_max_window_bits=15 , x-y;a=\"b\"",
        ] {
            assert!(with(&format!("Sec-WebSocket-Extensions: {good}\r\n")).is_ok(), "{good}");
        }
    }

    #[test]
    fn each_refusal_has_the_status_the_rfcs_ask_for() {
        let cases = [
            (GOOD.replace("GET", "POST"), 405),
            (GOOD.replace("GET", "get"), 405),
            (GOOD.replace("HTTP/1.1", "HTTP/1.0"), 505),
            (GOOD.replace("HTTP/1.1", "HTTP/2.0"), 505),
            (GOOD.replace("HTTP/1.1", "http/1.1"), 400),
            (GOOD.replace("/chat", "http://a/chat"), 400),
            (GOOD.replace("/chat", "/a/%2e./b"), 400),
            (GOOD.replace("/chat", "/a/..;x=1/b"), 400),
            (GOOD.replace("/chat", "/a%2F..%2fb"), 400),
            (GOOD.replace("/chat", "/a/..\\b"), 400),
            (GOOD.replace("/chat", "/a/%2E%2E%3bx%5Cb"), 400),
            (GOOD.replace("/chat", &format!("/{}", "a".repeat(TARGET_MAX))), 414),
            (GOOD.replace("Upgrade: websocket", "X: y"), 426),
            (GOOD.replace("Upgrade: websocket", "Upgrade: h2c"), 426),
            (GOOD.replace("Upgrade: websocket", "Upgrade: websocket, h2c"), 400),
            (GOOD.replace("keep-alive, Upgrade", "close"), 400),
            (GOOD.replace("keep-alive, Upgrade", "Upgrade, Sec-WebSocket-Key"), 400),
            (GOOD.replace("Version: 13", "Version: 8"), 426),
            (GOOD.replace("==", "="), 400),
            (format!("{GOOD}Host: b\r\n"), 400),
            (format!("{GOOD}Content-Length: 0\r\n"), 400),
            (format!("{GOOD}Content_Length: 5\r\n"), 400),
            (format!("{GOOD}X : y\r\n"), 400),
            (format!("{GOOD}: y\r\n"), 400),
            (format!("{GOOD}Sec-WebSocket-Protocol: \r\n"), 400),
            (format!("{GOOD}Sec-WebSocket-Protocol: a, b\r\nSec-WebSocket-Protocol: a\r\n"), 400),
            (format!("{GOOD}Sec-WebSocket-Extensions: ;;;\r\n"), 400),
            (format!("{GOOD}Sec-WebSocket-Extensions: a; b=\r\n"), 400),
            (format!("{GOOD}Sec-WebSocket-Extensions: a b\r\n"), 400),
        ];
        for (head, status) in cases {
            let error = Request::parse(format!("{head}\r\n").as_bytes()).expect_err(&head);
            assert_eq!(error.status(), status, "{error} for {head}");
        }
    }

    proptest::proptest! {
        /// Whatever damage passes, the head that is written has one reading: it ends where it ends, and reading it
        /// again gives the same handshake and the same head.
        #[test]
        fn what_is_accepted_is_written_with_one_reading(
            edits in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), 0u8..4, proptest::prelude::any::<u8>()), 0..4),
            extra in proptest::sample::select(vec![
                "", "Cookie: a=b\r\n", "X-A:\t b \r\n", "Connection: X-B\r\nX-B: c\r\n", "Sec-WebSocket-Protocol: a,,b\r\n", "Te: x\r\n",
            ]),
        ) {
            let mut head = format!("{GOOD}{extra}\r\n").into_bytes();
            for (at, kind, byte) in edits {
                let at = at.index(head.len());
                match kind {
                    0 => head[at] = byte,
                    1 => head.insert(at, byte),
                    2 => drop(head.remove(at)),
                    _ => head.insert(at, b"\r\n: ,;\t_"[usize::from(byte) % 8]),
                }
            }
            let mut scan = crate::head::HeadScan::new(crate::head::HeadOf::Request);
            if let Ok(Some(range)) = scan.find(&head)
                && let Ok(request) = Request::parse(&head[range])
            {
                let written = request.head_for("", &PEER, &SAID);
                let mut scan = crate::head::HeadScan::new(crate::head::HeadOf::Request);
                proptest::prop_assert_eq!(scan.find(&written), Ok(Some(0..written.len())));
                let again = Request::parse(&written).expect("what we write can be read");
                proptest::prop_assert_eq!(again.head_for("", &PEER, &SAID), written);
            }
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let _ = Request::parse(&bytes);
        }
    }
}
