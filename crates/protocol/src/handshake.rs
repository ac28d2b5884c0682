//! The handshake of one proxied connection: a machine without sockets and clock.
//!
//! In: the client's bytes, the server that was picked, the server's bytes, and `now`. Out: a [`Step`] each time.
//! It ends in an [`Outcome`]: an answer for the client, or a tunnel. What the shell answers itself it takes out,
//! [`Handshake::take_request`] or [`Handshake::take_plain`]: the connection may go on then. Invariants: no byte goes to a server before the whole request was
//! checked; client bytes behind the head are held, at most [`EARLY_MAX`], and go to the server only after its
//! 101; the request can be asked of another server until a 101 or a refusal came.
//! Elsewhere: picking and retrying ([`Step::Pick`], [`Step::Elsewhere`]) is the shell's, with `fleet`.

use evenkeel_model::{Duration, Instant};

use crate::head::{HeadError, HeadOf, HeadScan};
use crate::request::{Parsed, Peer, Plain, Request, RequestError, Said};
use crate::response::{Answered, BODY_MAX, Refused, ResponseError, read_answer};

/// Client bytes held before the 101. Clients may not send before it (RFC 6455 §4.1); those that do send little.
pub const EARLY_MAX: usize = 4 * 1024;

/// How long each part may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// From accept to the end of the client's head, in total. Default 10 s: slow phones fit, a drip of one byte
    /// a second does not hold a descriptor for longer.
    pub client_head: Duration,
    /// From the head's last byte sent to a server to the end of the server's head. Default 1 s: then another
    /// server is asked.
    pub server_head: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { client_head: Duration::from_secs(10), server_head: Duration::from_secs(1) }
    }
}

/// What the shell does next.
#[derive(Debug)]
pub enum Step {
    /// Wait for more bytes or for [`Handshake::poll_timeout`].
    Need,
    /// The request is whole: pick a server and [`Handshake::ask`] it, or [`Handshake::refuse`].
    Pick,
    /// A request that wants no WebSocket: [`Handshake::take_plain`], or [`Handshake::refuse_plain`].
    Plain,
    /// The server cannot serve this: close it, then pick another, or [`Handshake::refuse`].
    Elsewhere(Elsewhere),
    /// It is decided.
    End(Outcome),
}

/// Why a server cannot serve a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elsewhere {
    /// It is draining and said so.
    Draining,
    /// Its head did not come in time.
    Late,
    /// It closed before its head was whole.
    Closed,
    /// What it answered is no proper answer.
    Bad(ResponseError),
}

/// The end of a handshake.
#[derive(Debug)]
pub enum Outcome {
    /// These bytes go to the client, then everything closes.
    Answer(Answer),
    /// The WebSocket is open.
    Tunnel(Tunnel),
}

/// An answer for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its status; 0 with no bytes at all for a client that never spoke.
    pub status: u16,
    /// Short code for logs and metrics.
    pub reason: &'static str,
    /// Head and body.
    pub bytes: Vec<u8>,
}

/// What each end must still get when the tunnel opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// The 101's head: not part of the WebSocket's bytes.
    pub head: Vec<u8>,
    /// First bytes of the server behind its head.
    pub to_client: Vec<u8>,
    /// First bytes of the client behind its head.
    pub to_server: Vec<u8>,
}

/// One handshake. See the module's documentation.
#[derive(Debug)]
pub struct Handshake {
    deadlines: Deadlines,
    due: Option<Instant>,
    state: State,
    /// What the current head's bytes are collected in.
    buffer: Vec<u8>,
    early: Vec<u8>,
}

#[derive(Debug)]
enum State {
    Reading(HeadScan),
    Picking(Box<Request>),
    Plain(Box<Plain>),
    Asking { request: Box<Request>, scan: HeadScan, conn: String },
    Relaying(Box<Refused>),
    Ended,
}

impl Handshake {
    /// A handshake of a client that was accepted at `now`.
    #[must_use]
    pub fn new(deadlines: Deadlines, now: Instant) -> Self {
        Self {
            deadlines,
            due: Some(now + deadlines.client_head),
            state: State::Reading(HeadScan::new(HeadOf::Request)),
            buffer: Vec::new(),
            early: Vec::new(),
        }
    }

    /// The request, from [`Step::Pick`] until a server answered it.
    #[must_use]
    pub fn request(&self) -> Option<&Request> {
        match &self.state {
            State::Picking(request) | State::Asking { request, .. } => Some(request),
            _ => None,
        }
    }

    /// The plain request, from [`Step::Plain`] until it is taken.
    #[must_use]
    pub fn plain(&self) -> Option<&Plain> {
        match &self.state {
            State::Plain(plain) => Some(plain),
            _ => None,
        }
    }

    /// Asks servers for another target than the client did: the same session by the name that its server gave it.
    pub fn retarget(&mut self, target: String) {
        if let State::Picking(request) = &mut self.state {
            request.retarget(target);
        }
    }

    /// Takes bytes of the client.
    pub fn client_bytes(&mut self, bytes: &[u8]) -> Step {
        match &mut self.state {
            // Most heads come in one piece, and need not be kept.
            State::Reading(scan) if self.buffer.is_empty() => match scan.find(bytes) {
                Ok(None) => {
                    self.buffer.extend_from_slice(bytes);
                    Step::Need
                }
                Ok(Some(head)) => self.request_head(bytes, head),
                Err(error) => self.refuse_request(error.into()),
            },
            State::Reading(scan) => {
                self.buffer.extend_from_slice(bytes);
                match scan.find(&self.buffer) {
                    Ok(None) => Step::Need,
                    Ok(Some(head)) => {
                        let buffer = core::mem::take(&mut self.buffer);
                        self.request_head(&buffer, head)
                    }
                    Err(error) => self.refuse_request(error.into()),
                }
            }
            State::Picking(_) | State::Asking { .. } => self.hold(bytes).unwrap_or(Step::Need),
            State::Plain(_) | State::Relaying(_) | State::Ended => Step::Need,
        }
    }

    fn request_head(&mut self, buffer: &[u8], head: core::ops::Range<usize>) -> Step {
        let parsed = match Parsed::read(&buffer[head.clone()]) {
            Ok(parsed) => parsed,
            Err(error) => return self.refuse_request(error),
        };
        match parsed {
            Parsed::Handshake(request) => {
                self.due = None;
                self.state = State::Picking(Box::new(request));
                self.hold(&buffer[head.end..]).unwrap_or(Step::Pick)
            }
            Parsed::Plain(plain) => {
                self.early = buffer[head.end..].to_vec();
                self.state = State::Plain(Box::new(plain));
                Step::Plain
            }
        }
    }

    /// A plain request and the bytes that came behind its head. The handshake is over then.
    pub fn take_plain(&mut self) -> Option<(Plain, Vec<u8>)> {
        match core::mem::replace(&mut self.state, State::Ended) {
            State::Plain(plain) => {
                self.due = None;
                Some((*plain, core::mem::take(&mut self.early)))
            }
            other => {
                self.state = other;
                None
            }
        }
    }

    /// The request that waits for a server, and the bytes that came behind its head, to be answered in another way. The
    /// handshake is over then.
    pub fn take_request(&mut self) -> Option<(Request, Vec<u8>)> {
        match core::mem::replace(&mut self.state, State::Ended) {
            State::Picking(request) => Some((*request, core::mem::take(&mut self.early))),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// Answers a plain request where only handshakes are.
    pub fn refuse_plain(&mut self) -> Step {
        match &self.state {
            State::Plain(plain) => self.refuse_request(plain.refusal()),
            _ => Step::Need,
        }
    }

    /// Holds bytes that came before the 101; says how it ends if they are too many.
    fn hold(&mut self, bytes: &[u8]) -> Option<Step> {
        if self.early.len() + bytes.len() > EARLY_MAX {
            return Some(self.refuse_request(RequestError::Early));
        }
        self.early.extend_from_slice(bytes);
        None
    }

    /// Writes the head for the server that was picked. Its URL has the path `prefix`. Empty when no request is
    /// waiting for a server.
    pub fn ask(&mut self, prefix: &str, peer: &Peer, said: &Said<'_>, now: Instant) -> Vec<u8> {
        self.buffer.clear();
        match core::mem::replace(&mut self.state, State::Ended) {
            State::Picking(request) | State::Asking { request, .. } => {
                let head = request.head_for(prefix, peer, said);
                self.due = Some(now + self.deadlines.server_head);
                self.state =
                    State::Asking { request, scan: HeadScan::new(HeadOf::Response), conn: said.conn.into() };
                head
            }
            other => {
                self.state = other;
                Vec::new()
            }
        }
    }

    /// Takes bytes of the server that was asked.
    pub fn server_bytes(&mut self, bytes: &[u8]) -> Step {
        match &mut self.state {
            State::Asking { scan, .. } => {
                self.buffer.extend_from_slice(bytes);
                match scan.find(&self.buffer) {
                    Ok(None) => Step::Need,
                    Ok(Some(head)) => self.response_head(head.end),
                    Err(HeadError::TooLong | HeadError::TooManyFields) => {
                        self.elsewhere(Elsewhere::Bad(ResponseError::TooLarge))
                    }
                    Err(_) => self.elsewhere(Elsewhere::Bad(ResponseError::Syntax)),
                }
            }
            State::Relaying(_) => {
                let room = (2 * BODY_MAX).saturating_sub(self.buffer.len());
                self.buffer.extend_from_slice(&bytes[..bytes.len().min(room)]);
                self.relay(More::MayCome)
            }
            _ => Step::Need,
        }
    }

    fn response_head(&mut self, end: usize) -> Step {
        let State::Asking { request, conn, .. } = &self.state else { return Step::Need };
        match read_answer(&self.buffer[..end], request, conn) {
            Err(error) => self.elsewhere(Elsewhere::Bad(error)),
            Ok(Answered::Draining) => self.elsewhere(Elsewhere::Draining),
            Ok(Answered::Switched(head)) => {
                let to_client = self.buffer.split_off(end);
                self.end(Outcome::Tunnel(Tunnel { head, to_client, to_server: Vec::new() }))
            }
            Ok(Answered::Refused(refused)) => {
                self.buffer.drain(..end);
                self.state = State::Relaying(Box::new(refused));
                self.relay(More::MayCome)
            }
        }
    }

    fn relay(&mut self, more: More) -> Step {
        let State::Relaying(refused) = &self.state else { return Step::Need };
        if more == More::MayCome && !refused.is_whole(&self.buffer) {
            return Step::Need;
        }
        let answer =
            Answer { status: refused.status, reason: "answered", bytes: refused.answer(&self.buffer) };
        self.end(Outcome::Answer(answer))
    }

    /// The server closed or its connection broke.
    pub fn server_closed(&mut self) -> Step {
        match self.state {
            State::Asking { .. } => self.elsewhere(Elsewhere::Closed),
            State::Relaying(_) => self.relay(More::Ended),
            _ => Step::Need,
        }
    }

    /// When [`Handshake::handle_timeout`] is due.
    #[must_use]
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) -> Step {
        if self.due.is_none_or(|due| now < due) {
            return Step::Need;
        }
        self.due = None;
        match self.state {
            // A browser's spare connection that was never used.
            State::Reading(_) if self.buffer.is_empty() => {
                self.end(Outcome::Answer(Answer { status: 0, reason: "silent", bytes: Vec::new() }))
            }
            State::Reading(_) => self.refuse_request(RequestError::Late),
            State::Asking { .. } => self.elsewhere(Elsewhere::Late),
            State::Relaying(_) => self.relay(More::Ended),
            State::Picking(_) | State::Plain(_) | State::Ended => Step::Need,
        }
    }

    /// Ends the handshake with an answer of our own in plain text.
    pub fn refuse(&mut self, status: u16, reason: &'static str, fields: &str, text: &str) -> Step {
        let bytes = answer_bytes(status, fields, text);
        self.end(Outcome::Answer(Answer { status, reason, bytes }))
    }

    /// Ends the handshake with an answer of our own, of which `fields` say what `body` is.
    pub fn answer(&mut self, status: u16, reason: &'static str, fields: &str, body: &str) -> Step {
        let bytes = answer_with(status, fields, body, After::Closes);
        self.end(Outcome::Answer(Answer { status, reason, bytes }))
    }

    fn refuse_request(&mut self, error: RequestError) -> Step {
        self.refuse(error.status(), error.reason(), error.fields(), &error.to_string())
    }

    fn elsewhere(&mut self, why: Elsewhere) -> Step {
        self.due = None;
        self.buffer = Vec::new();
        Step::Elsewhere(why)
    }

    fn end(&mut self, mut outcome: Outcome) -> Step {
        if let Outcome::Tunnel(tunnel) = &mut outcome {
            tunnel.to_server = core::mem::take(&mut self.early);
        }
        self.state = State::Ended;
        self.due = None;
        self.buffer = Vec::new();
        self.early = Vec::new();
        Step::End(outcome)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum More {
    MayCome,
    Ended,
}

/// What becomes of the connection behind an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It closes.
    Closes,
    /// The next request may come.
    Stays,
}

/// Writes an answer of our own: plain text, and the connection closes behind it. `fields` are whole lines.
#[must_use]
pub fn answer_bytes(status: u16, fields: &str, text: &str) -> Vec<u8> {
    let fields = format!("{fields}Content-Type: text/plain\r\n");
    answer_with(status, &fields, &format!("{text}\n"), After::Closes)
}

/// Writes an answer of our own. `fields` are whole lines, the body's type among them.
#[must_use]
pub fn answer_with(status: u16, fields: &str, body: &str, after: After) -> Vec<u8> {
    let status_text = status.to_string();
    let length = body.len().to_string();
    let (name, length) = match status {
        // An answer without content has no length either (RFC 9110 §8.6).
        204 => ("", ""),
        _ => ("Content-Length: ", &*length),
    };
    let end = match (after, status) {
        (After::Closes, 204) => "Connection: close\r\n\r\n",
        (After::Closes, _) => "\r\nConnection: close\r\n\r\n",
        (After::Stays, 204) => "\r\n",
        (After::Stays, _) => "\r\n\r\n",
    };
    let parts = ["HTTP/1.1 ", &status_text, " ", phrase(status), "\r\n", fields, name, length, end, body];
    parts.concat().into_bytes()
}

const fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Refused",
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;
    use crate::request::{Assignment, Scheme};

    const REQUEST: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    const PEER: Peer = Peer { ip: IpAddr::V4(core::net::Ipv4Addr::LOCALHOST), scheme: Scheme::Ws };

    const SAID: Said<'_> = Said { conn: "c1", assignment: Assignment::None };

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn fresh() -> Handshake {
        Handshake::new(Deadlines::default(), at(0))
    }

    fn asked() -> Handshake {
        let mut handshake = fresh();
        assert!(matches!(handshake.client_bytes(REQUEST.as_bytes()), Step::Pick));
        assert!(handshake.ask("", &PEER, &SAID, at(5)).starts_with(b"GET /chat HTTP/1.1\r\n"));
        handshake
    }

    fn answer(step: Step) -> Answer {
        match step {
            Step::End(Outcome::Answer(answer)) => answer,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_can_be_taken_with_what_came_behind_it_until_a_server_is_asked() {
        let mut handshake = fresh();
        let two = format!("{REQUEST}GET /n HTTP/1.1\r\n");
        assert!(matches!(handshake.client_bytes(two.as_bytes()), Step::Pick));
        let (request, behind) = handshake.take_request().unwrap();
        assert_eq!((request.path(), &behind[..]), ("/chat", &b"GET /n HTTP/1.1\r\n"[..]));
        assert!(handshake.request().is_none() && handshake.take_request().is_none());
        assert!(asked().take_request().is_none());
    }

    #[test]
    fn bytes_on_either_side_of_the_heads_reach_the_other_end() {
        let mut handshake = fresh();
        assert!(matches!(handshake.client_bytes(&REQUEST.as_bytes()[..20]), Step::Need));
        assert!(matches!(
            handshake.client_bytes(&[&REQUEST.as_bytes()[20..], b"early"].concat()),
            Step::Pick
        ));
        handshake.ask("", &PEER, &SAID, at(5));
        assert!(matches!(handshake.client_bytes(b"-later"), Step::Need));
        assert!(matches!(handshake.server_bytes(&SWITCH.as_bytes()[..40]), Step::Need));
        let Step::End(Outcome::Tunnel(tunnel)) =
            handshake.server_bytes(&[&SWITCH.as_bytes()[40..], b"hello"].concat())
        else {
            panic!("no tunnel")
        };
        assert_eq!((&tunnel.to_server[..], &tunnel.to_client[..]), (&b"early-later"[..], &b"hello"[..]));
        assert!(tunnel.head.ends_with(b"Evenkeel-Conn: c1\r\n\r\n"));
    }

    #[test]
    fn too_many_early_bytes_are_refused() {
        assert_eq!(answer(asked().client_bytes(&[0; EARLY_MAX + 1])).status, 400);
        let mut handshake = asked();
        assert!(matches!(handshake.client_bytes(&[0; EARLY_MAX]), Step::Need));
        assert_eq!(answer(handshake.client_bytes(&[0])).reason, "early_bytes");
    }

    #[test]
    fn a_server_that_fails_leaves_the_request_for_another() {
        let mut handshake = asked();
        assert!(matches!(handshake.server_closed(), Step::Elsewhere(Elsewhere::Closed)));
        assert!(handshake.ask("/b", &PEER, &SAID, at(9)).starts_with(b"GET /b/chat "));
        assert!(matches!(handshake.handle_timeout(at(1_008)), Step::Need));
        assert!(matches!(handshake.handle_timeout(at(1_009)), Step::Elsewhere(Elsewhere::Late)));
        handshake.ask("", &PEER, &SAID, at(2_000));
        assert!(matches!(handshake.server_bytes(b"nonsense\r\n\r\n"), Step::Elsewhere(Elsewhere::Bad(_))));
        handshake.ask("", &PEER, &SAID, at(2_100));
        assert!(matches!(handshake.server_bytes(SWITCH.as_bytes()), Step::End(Outcome::Tunnel(_))));
    }

    #[test]
    fn a_refusal_of_the_server_is_relayed_when_its_body_is_whole_or_ends() {
        let mut handshake = asked();
        assert!(matches!(
            handshake.server_bytes(b"HTTP/1.1 404 No\r\nContent-Length: 4\r\n\r\nno"),
            Step::Need
        ));
        let whole = answer(handshake.server_bytes(b"ne"));
        assert!(whole.status == 404 && whole.bytes.ends_with(b"\r\n\r\nnone"));
        let mut handshake = asked();
        assert!(matches!(handshake.server_bytes(b"HTTP/1.1 500 No\r\n\r\nhalf"), Step::Need));
        assert!(answer(handshake.server_closed()).bytes.ends_with(b"half"));
    }

    #[test]
    fn a_head_that_drips_is_cut_off_at_the_deadline_in_total() {
        let mut handshake = fresh();
        for byte in REQUEST.as_bytes().iter().take(50) {
            assert!(matches!(handshake.client_bytes(&[*byte]), Step::Need));
        }
        assert_eq!(handshake.poll_timeout(), Some(at(10_000)));
        assert_eq!(answer(handshake.handle_timeout(at(10_000))).status, 408);
        assert_eq!(answer(fresh().handle_timeout(at(10_000))).bytes, b"");
    }

    #[test]
    fn nothing_but_bounded_buffers_grows_under_a_flood() {
        let mut handshake = asked();
        let step =
            handshake.server_bytes(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n");
        assert!(matches!(step, Step::Need));
        let mut steps = 0;
        let last = loop {
            steps += 1;
            match handshake.server_bytes(&[b'x'; 16_384]) {
                Step::Need => assert!(handshake.buffer.len() <= 2 * BODY_MAX),
                other => break other,
            }
        };
        assert!(steps <= 9 && answer(last).bytes.len() < BODY_MAX + 200);
    }
}
