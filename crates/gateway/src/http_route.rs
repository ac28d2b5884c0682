//! Carries plain requests on routes of kind `http` to servers: socket.io's long polling, with every request of a session
//! going to the server that has it.
//!
//! In: one checked request whose body is still to come. Out: the server's answer, streamed to the client, or an answer
//! of our own. Invariants: a body is at most [`BODY_MAX`] and whole before a server is asked; all bodies together are at
//! most [`BODIES_MAX`]; a server connection carries one request; nothing of an answer is held but a few pieces, and the
//! first answer of a session; every wait has a deadline and ends when the client goes away.
//! Elsewhere: what is known of sessions ([`crate::sessions`]), their names and packets (`evenkeel_protocol::engine_io`),
//! which request comes here ([`crate::connection`]).

mod answer;
mod link;

use std::pin::pin;
use std::rc::Rc;

use evenkeel_fleet::gateway::{Ask, Failure, Refusal, ServerKey};
use evenkeel_model::{Duration, Instant};
use evenkeel_protocol::engine_io::{self, CLOSE_PACKET, Open, Packets};
use evenkeel_protocol::handshake::{After, Answer};
use evenkeel_protocol::negotiate::{Cause, without};
use evenkeel_protocol::request::{Method, Peer, Plain, Scheme};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::http::response::Parts;
use tokio::net::TcpStream;
use tracing::debug;

use crate::connect::Target;
use crate::credentials;
use crate::engine::ConnId;
use crate::fleet::{Fleet, Placed};
use crate::sessions::{Session, Since};
use crate::shell::Shell;

pub(crate) use answer::unknown_session;
use answer::{Answering, head_of, left, own_answer, send};
use link::{Link, Why};

/// Longest body of a request. The engine's own limit is 1 MB.
pub(crate) const BODY_MAX: u64 = 1 << 20;
/// Most bytes of bodies that are held for all requests together; beyond, requests with a body get 503.
pub(crate) const BODIES_MAX: usize = 64 << 20;
/// Longest time for a body to arrive.
const BODY_WAIT: Duration = Duration::from_secs(30);
/// Most bytes of a next request that are read while one is under way: reading is how a client that went away is seen.
const BEHIND_MAX: usize = 16 * 1024;
/// Seconds that a connection has to be kept at least between two requests, or it is not kept at all.
const IDLE_LEAST: u64 = 3;
/// For a session that another gateway opened: the engine's default, since its first answer was not seen here.
const PATIENCE: Duration = Duration::from_secs(45);

/// One request on a route of kind `http`.
pub(crate) struct Forward<'a> {
    pub(crate) shell: &'a Rc<Shell>,
    pub(crate) client: &'a TcpStream,
    pub(crate) peer: &'a Peer,
    pub(crate) prefix: u64,
    pub(crate) id: ConnId,
    pub(crate) fleet: &'a Rc<Fleet>,
    pub(crate) plain: &'a Plain,
    /// What came behind the request's head.
    pub(crate) behind: Vec<u8>,
}

/// How a request ended.
pub(crate) enum Forwarded {
    /// With an answer of our own, still to be sent.
    Answer(Answer),
    /// The server's answer was sent whole; what came of the next request.
    Done { after: After, behind: Vec<u8> },
    /// The client went away, or the server broke off in the middle of its answer.
    Broken(&'static str),
}

/// What is known of the session that a request names.
pub(crate) enum Known {
    /// It names none.
    None,
    /// Nobody has it any more.
    Gone,
    Session(Rc<Session>),
}

/// Finds the session that a target names: one that is known here, or one whose name says where it lives.
pub(crate) fn session_of(shell: &Shell, fleet: &Rc<Fleet>, target: &str) -> Known {
    let Some(named) = engine_io::sid(target) else { return Known::None };
    let (own, tag) = engine_io::split(&named);
    let number = fleet.number();
    if let Some(known) = shell.sessions.find(number, &named).or_else(|| shell.sessions.find(number, own)) {
        return Known::Session(known);
    }
    let Some((home, key)) = tag.and_then(|tag| fleet.home_of(own, tag)) else { return Known::Gone };
    if shell.sessions.len() >= shell.config.limits.connections_max {
        return Known::Gone;
    }
    let since = Since { opened: shell.clock.now(), patience: PATIENCE };
    let session = Session::new(shell.next_id(), fleet.owner(key), home, own.into(), since);
    fleet.adopt(key);
    shell.enter_session(&session);
    Known::Session(session)
}

/// The target as the session's server knows it.
pub(crate) fn target_of(session: &Session, target: &str) -> String {
    match engine_io::sid(target) {
        Some(named) if named != session.sid => engine_io::untagged(target),
        _ => target.into(),
    }
}

/// How asking a server went.
enum Asked {
    Response(hyper::Response<Incoming>, Link),
    Failed(Trouble),
    /// The session was told to leave while it waited; what its server still had to say.
    Left(Option<(hyper::Response<Incoming>, Link)>),
    ClientGone,
}

/// What waiting for an answer ended with.
enum Waited {
    Answered(hyper::Result<hyper::Response<Incoming>>),
    /// The session was told to leave; the last answer to its poll.
    Left(Option<hyper::Response<Incoming>>),
    ClientGone,
    Late,
}

/// A poll, and how to say goodbye for its client.
struct Poll<'a> {
    session: &'a Session,
    goodbye: Option<hyper::Request<Full<Bytes>>>,
}

/// How a server failed a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Trouble {
    why: Why,
    /// Whether it may have seen the request.
    sent: bool,
}

/// Room for one body among all of them.
struct BodyRoom {
    shell: Rc<Shell>,
    taken: usize,
}

impl Drop for BodyRoom {
    fn drop(&mut self) {
        self.shell.bodies.set(self.shell.bodies.get() - self.taken);
    }
}

/// A server's answer.
struct Reply<'a> {
    parts: Parts,
    /// What was read of its body already.
    first: Vec<u8>,
    body: Incoming,
    link: Link,
    session: Option<&'a Session>,
}

impl<'a> Reply<'a> {
    fn new(parts: Parts, body: Incoming, link: Link) -> Self {
        Self { parts, first: Vec::new(), body, link, session: None }
    }

    fn of(self, session: &'a Session) -> Self {
        Self { session: Some(session), ..self }
    }
}

fn is_draining(response: &hyper::Response<Incoming>) -> bool {
    response.status() == 503 && response.headers().contains_key("evenkeel-draining")
}

/// Says goodbye and waits for what the server answers to the poll then.
async fn take_leave(
    shell: &Shell,
    target: &Target,
    polls: Option<Poll<'_>>,
    asking: impl Future<Output = hyper::Result<hyper::Response<Incoming>>>,
) -> Option<hyper::Response<Incoming>> {
    let soon = shell.clock.now() + shell.config.limits.heads.server_head;
    let said = async {
        if let Some(poll) = polls {
            say_goodbye(shell, target, poll).await;
        }
    };
    let last = async {
        tokio::select! { biased;
            answered = asking => answered.ok(),
            () = shell.clock.sleep_until(Some(soon)) => None,
        }
    };
    tokio::join!(said, last).1
}

/// Ends a session at its server in its client's name: unlike a poll that breaks off, this loses nothing of what the
/// server has written.
async fn say_goodbye(shell: &Shell, target: &Target, poll: Poll<'_>) {
    let Poll { session, goodbye: Some(goodbye) } = poll else { return };
    let until = shell.clock.now() + shell.config.limits.heads.server_head;
    let said = async {
        // Two posts at once are an error to the engine; the poll itself is under way too.
        session.is_quiet().await;
        if let Ok(mut link) = Link::open(shell, target).await {
            let _ = link.ask(goodbye).await;
        }
    };
    tokio::select! { biased;
        () = said => {}
        () = shell.clock.sleep_until(Some(until)) => {}
    }
}

/// A request of a session under way.
struct Visit<'a> {
    shell: &'a Shell,
    session: &'a Session,
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.session.rests(self.shell.clock.now());
    }
}

impl Forward<'_> {
    /// Carries the request and the answer.
    pub(crate) async fn run(mut self) -> Forwarded {
        let (_room, body) = match self.body().await {
            Ok(body) => body,
            Err(ended) => return ended,
        };
        match session_of(self.shell, self.fleet, self.plain.target()) {
            Known::None => self.forward_any(&body).await,
            Known::Gone => {
                debug!(conn = %self.shell.conn_text(self.id), fleet = %self.fleet.id, "session unknown");
                Forwarded::Answer(unknown_session())
            }
            Known::Session(session) => self.ask_session(&session, body).await,
        }
    }

    /// Reads the body, if there is room for it.
    async fn body(&mut self) -> Result<(BodyRoom, Bytes), Forwarded> {
        let refuse = |status, reason, text| Err(Forwarded::Answer(own_answer(status, reason, "", text)));
        let length = match usize::try_from(self.plain.content_length) {
            Ok(length) if length as u64 <= BODY_MAX => length,
            _ => return refuse(413, "body_too_long", "a body has at most 1 MiB here"),
        };
        if self.shell.bodies.get() + length > BODIES_MAX {
            return Err(Forwarded::Answer(self.busy("bodies_max")));
        }
        self.shell.bodies.set(self.shell.bodies.get() + length);
        let room = BodyRoom { shell: Rc::clone(self.shell), taken: length };
        let until = self.shell.clock.now() + BODY_WAIT;
        while self.behind.len() < length {
            tokio::select! { biased;
                _ = self.client.readable() => {}
                () = self.shell.clock.sleep_until(Some(until)) => {
                    return refuse(408, "body_timeout", "the body did not arrive in time");
                }
            }
            let behind = &mut self.behind;
            if self.shell.read(self.client, |bytes| behind.extend_from_slice(bytes)).is_none() {
                return Err(Forwarded::Broken("client_gone"));
            }
        }
        let rest = self.behind.split_off(length);
        Ok((room, Bytes::from(std::mem::replace(&mut self.behind, rest))))
    }

    /// A request of no session: it goes where a new connection would.
    async fn forward_any(&mut self, body: &Bytes) -> Forwarded {
        let begins = self.plain.method == Method::Get && engine_io::begins(self.plain.target());
        if begins && self.shell.sessions.len() >= self.shell.config.limits.connections_max {
            return Forwarded::Answer(self.busy("sessions_max"));
        }
        let mut tried: Vec<ServerKey> = Vec::new();
        let mut last = None;
        while tried.len() <= self.shell.config.limits.retries {
            let placed = match self.place(&tried).await {
                Ok(placed) => placed,
                Err(Unplaced::ClientGone) => return Forwarded::Broken("client_gone"),
                Err(Unplaced::Refused(refusal)) => {
                    return Forwarded::Answer(
                        last.map_or_else(|| self.busy(refusal.reason()), |why| self.failed(why)),
                    );
                }
            };
            tried.push(placed.server());
            let target = placed.target();
            let deadline = if begins {
                self.shell.config.limits.heads.server_head
            } else {
                self.shell.config.limits.long_poll
            };
            match self.ask_any(&placed, target.as_deref(), body, deadline).await {
                Asked::Response(response, link) => {
                    return self.answer_any(placed, begins, response, link).await;
                }
                Asked::ClientGone | Asked::Left(_) => return Forwarded::Broken("client_gone"),
                Asked::Failed(trouble) => {
                    placed.failed(trouble.why.failure());
                    last = Some(trouble.why);
                    // What may have been done already is not done again elsewhere.
                    let again =
                        self.plain.method != Method::Post || !trouble.sent || trouble.why == Why::Draining;
                    if !again || trouble.why == Why::OutOfMeans {
                        break;
                    }
                }
            }
        }
        let answer = last.map_or_else(|| self.busy("all_tried"), |why| self.failed(why));
        Forwarded::Answer(answer)
    }

    async fn place(&mut self, tried: &[ServerKey]) -> Result<Placed, Unplaced> {
        let ask = Ask { prefix: self.prefix, avoid: tried, source: None };
        let placing = self.fleet.place(self.id.0, &ask);
        tokio::select! { biased;
            placed = placing => placed.map_err(Unplaced::Refused),
            () = client_gone(self.shell, self.client, &mut self.behind) => Err(Unplaced::ClientGone),
        }
    }

    async fn ask_any(
        &mut self,
        placed: &Placed,
        target: Option<&Target>,
        body: &Bytes,
        deadline: Duration,
    ) -> Asked {
        let Some(target) = target else { return Asked::Failed(Trouble { why: Why::Closed, sent: false }) };
        let session =
            credentials::Session { sid: self.shell.new_sid(), cause: Cause::Start, caps: Vec::new() };
        let path = format!("{}{}", target.prefix, self.plain.path());
        // Without an assignment the server decides what it does with the client.
        let assignment = placed.mint(&path, self.plain.origin(), &session).unwrap_or_default();
        let request = self.request(target, self.plain.target(), body, assignment.as_deref());
        self.ask(target, request, None, deadline).await
    }

    /// The answer of a server that was picked: maybe the beginning of a session.
    async fn answer_any(
        &mut self,
        placed: Placed,
        begins: bool,
        response: hyper::Response<Incoming>,
        mut link: Link,
    ) -> Forwarded {
        let (parts, mut body) = response.into_parts();
        let mut first = Vec::new();
        let length = body.size_hint().exact();
        let plain = parts.status == 200 && !parts.headers.contains_key(CONTENT_ENCODING);
        if begins && plain && length.is_some_and(|length| length <= engine_io::OPEN_MAX as u64) {
            let until = self.shell.clock.now() + self.shell.config.limits.heads.server_head;
            match self.collect(&mut link, &mut body, until).await {
                Ok(whole) => first = whole,
                Err(why) => {
                    placed.failed(Failure::Unreachable);
                    return Forwarded::Broken(why);
                }
            }
        }
        let Some(open) = Open::read(&first) else {
            placed.failed(Failure::Answered);
            return self.relay(Reply { first, ..Reply::new(parts, body, link) }).await;
        };
        let session = self.begin(placed, &open);
        if let Some(tagged) =
            self.fleet.tag(&session.home, &open.sid).and_then(|tag| open.tagged(&first, &tag))
        {
            first = tagged;
        }
        session.works();
        let visit = Visit { shell: self.shell, session: &session };
        let ended = self.relay(Reply { first, ..Reply::new(parts, body, link).of(&session) }).await;
        drop(visit);
        ended
    }

    /// A server opened a session: the placement becomes a connection.
    fn begin(&self, placed: Placed, open: &Open) -> Rc<Session> {
        let since = Since { opened: self.shell.clock.now(), patience: open.patience };
        let id = self.shell.next_id();
        let session = Session::new(id, placed.owner(), placed.home(), open.sid.clone(), since);
        debug!(conn = %self.shell.conn_text(id), server = %placed.id(), "session opened");
        placed.connected().store(true, std::sync::atomic::Ordering::Relaxed);
        self.shell.enter_session(&session);
        session
    }

    /// A request of a session goes to its server, whatever state that one is in.
    async fn ask_session(&mut self, session: &Rc<Session>, body: Bytes) -> Forwarded {
        if session.is_over() {
            self.shell.end_session(session);
            let polls = self.plain.method == Method::Get;
            return Forwarded::Answer(if polls { left() } else { unknown_session() });
        }
        session.works();
        let visit = Visit { shell: self.shell, session };
        if self.shell.sessions.counts_again(session) {
            self.fleet.adopt(session.owner.server);
        }
        session.carried(body.len());
        let ended = self.ask_home(session, body).await;
        drop(visit);
        ended
    }

    async fn ask_home(&mut self, session: &Rc<Session>, body: Bytes) -> Forwarded {
        let mut packets = Packets::default();
        packets.take(&body);
        let Some(target) = self.fleet.held(&session.home).and_then(|held| held.target()) else {
            self.shell.end_session(session);
            return Forwarded::Answer(unknown_session());
        };
        let renamed = target_of(session, self.plain.target());
        let request = self.request(&target, &renamed, &body, None);
        let goodbye = self.goodbye(&target, &renamed);
        let polls = (self.plain.method == Method::Get).then_some(Poll { session, goodbye });
        match self.ask(&target, request, polls, self.shell.config.limits.long_poll).await {
            Asked::Response(response, link) => {
                self.fleet.heard(session.owner.server);
                let over = packets.closed() || !response.status().is_success();
                if !response.status().is_success() {
                    debug!(conn = %self.shell.conn_text(session.id), server = %session.home.server, status = response.status().as_u16(), "session refused");
                }
                let (parts, body) = response.into_parts();
                let ended = self.relay(Reply::new(parts, body, link).of(session)).await;
                if over {
                    self.shell.end_session(session);
                }
                ended
            }
            Asked::Left(last) => {
                debug!(conn = %self.shell.conn_text(session.id), server = %session.home.server, "session left");
                self.last_words(session, last).await
            }
            Asked::ClientGone => Forwarded::Broken("client_gone"),
            Asked::Failed(Trouble { why: why @ (Why::Refused | Why::Closed), .. }) => {
                debug!(conn = %self.shell.conn_text(session.id), server = %session.home.server, reason = why.reason(), "session lost");
                self.shell.end_session(session);
                Forwarded::Answer(unknown_session())
            }
            Asked::Failed(trouble) => Forwarded::Answer(self.failed(trouble.why)),
        }
    }

    /// The request for a server; `None` if its target or fields are none that HTTP knows.
    fn request(
        &self,
        target: &Target,
        of: &str,
        body: &Bytes,
        assignment: Option<&str>,
    ) -> Option<hyper::Request<Full<Bytes>>> {
        let own = without(of, |name| matches!(name, "_ek" | "_ekr"));
        let uri: hyper::Uri = format!("{}{own}", target.prefix).parse().ok()?;
        let mut request = hyper::Request::new(Full::new(body.clone()));
        *request.method_mut() = self.plain.method.as_str().parse().ok()?;
        *request.uri_mut() = uri;
        let fields = request.headers_mut();
        fields.insert(HOST, HeaderValue::from_str(self.plain.host()).ok()?);
        for line in self.plain.fields().split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let at = line.iter().position(|byte| *byte == b':')?;
            let name = HeaderName::from_bytes(&line[..at]).ok()?;
            fields.append(name, HeaderValue::from_bytes(line[at + 1..].trim_ascii()).ok()?);
        }
        let proto = match self.peer.scheme {
            Scheme::Ws => "http",
            Scheme::Wss => "https",
        };
        let ip = self.peer.ip.to_canonical().to_string();
        let conn = self.shell.conn_text(self.id);
        let own = [("x-forwarded-for", &*ip), ("x-forwarded-proto", proto), ("evenkeel-conn", &*conn)];
        let assignment = assignment.map(|token| ("evenkeel-assignment", token));
        for (name, value) in own.into_iter().chain(assignment) {
            fields.insert(HeaderName::from_static(name), HeaderValue::from_str(value).ok()?);
        }
        Some(request)
    }

    /// Asks one server over a connection of its own.
    async fn ask(
        &mut self,
        target: &Target,
        request: Option<hyper::Request<Full<Bytes>>>,
        polls: Option<Poll<'_>>,
        deadline: Duration,
    ) -> Asked {
        let failed = |why, sent| Asked::Failed(Trouble { why, sent });
        let (shell, client) = (Rc::clone(self.shell), self.client);
        // A target that hyper cannot write is no server's fault, and no server's answer either.
        let Some(request) = request else { return failed(Why::Closed, true) };
        let mut link = match Link::open(&shell, target).await {
            Ok(link) => link,
            Err(why) => return failed(why, false),
        };
        let until = shell.clock.now() + deadline;
        let told = async {
            match &polls {
                Some(poll) => poll.session.told_to_leave().await,
                None => std::future::pending().await,
            }
        };
        let waited = {
            let mut asking = pin!(link.ask(request));
            tokio::select! { biased;
                answered = &mut asking => Waited::Answered(answered),
                () = told => Waited::Left(take_leave(&shell, target, polls, asking).await),
                () = client_gone(&shell, client, &mut self.behind) => Waited::ClientGone,
                () = shell.clock.sleep_until(Some(until)) => Waited::Late,
            }
        };
        match waited {
            Waited::ClientGone => Asked::ClientGone,
            Waited::Left(last) => Asked::Left(last.map(|response| (response, link))),
            Waited::Late => failed(Why::Late, true),
            Waited::Answered(Err(_)) => failed(Why::Closed, true),
            Waited::Answered(Ok(response)) if response.status().is_informational() => {
                failed(Why::Closed, true)
            }
            Waited::Answered(Ok(response)) if is_draining(&response) => failed(Why::Draining, true),
            Waited::Answered(Ok(response)) => Asked::Response(response, link),
        }
    }

    /// All of a short body.
    async fn collect(
        &mut self,
        link: &mut Link,
        body: &mut Incoming,
        until: Instant,
    ) -> Result<Vec<u8>, &'static str> {
        let whole = async {
            let mut whole = Vec::new();
            while let Some(frame) = body.frame().await {
                let Ok(frame) = frame else { return Err("server_closed") };
                whole.extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..]));
            }
            Ok(whole)
        };
        tokio::select! { biased;
            whole = link.beside(whole) => whole,
            () = client_gone(self.shell, self.client, &mut self.behind) => Err("client_gone"),
            () = self.shell.clock.sleep_until(Some(until)) => Err("server_late"),
        }
    }

    /// What the server of a session that leaves still had to say. The close packet is for the next poll: stock clients
    /// take what stands in front of one in the same payload for not received, and get it again when they recover.
    async fn last_words(
        &mut self,
        session: &Session,
        last: Option<(hyper::Response<Incoming>, Link)>,
    ) -> Forwarded {
        match last {
            Some((response, link)) if response.status() == 200 => {
                self.shell.session_over(session);
                let (parts, body) = response.into_parts();
                self.relay(Reply::new(parts, body, link).of(session)).await
            }
            _ => {
                self.shell.end_session(session);
                Forwarded::Answer(left())
            }
        }
    }

    /// The request by which a client ends a session.
    fn goodbye(&self, target: &Target, of: &str) -> Option<hyper::Request<Full<Bytes>>> {
        let mut goodbye = self.request(target, of, &Bytes::from_static(CLOSE_PACKET.as_bytes()), None)?;
        *goodbye.method_mut() = hyper::Method::POST;
        goodbye.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain;charset=UTF-8"));
        Some(goodbye)
    }

    /// Sends the server's answer to the client as it comes.
    async fn relay(&mut self, reply: Reply<'_>) -> Forwarded {
        let Reply { parts, first, body, mut link, session } = reply;
        let idle = self.shell.config.limits.heads.client_head.as_secs();
        let after = if self.plain.closes || idle < IDLE_LEAST { After::Closes } else { After::Stays };
        let rest = body.size_hint().exact();
        let length = rest.map(|rest| rest + first.len() as u64);
        let head = head_of(&parts, length, (after, idle));
        let mut packets = Packets::default();
        let (shell, client) = (Rc::clone(self.shell), self.client);
        let coded = parts.headers.contains_key(CONTENT_ENCODING);
        let answering = Answering { head, first, body, chunked: length.is_none() };
        let sent = send(&shell, client, answering, |piece| {
            if !coded {
                packets.take(piece);
            }
            if let Some(session) = session {
                session.carried(piece.len());
            }
        });
        let sent = tokio::select! { biased;
            sent = link.beside(sent) => sent,
            () = client_gone(&shell, client, &mut self.behind) => Err("client_gone"),
        };
        if let (Some(session), true) = (session, packets.closed()) {
            self.shell.end_session(session);
        }
        match sent {
            Err(why) => Forwarded::Broken(why),
            Ok(()) => Forwarded::Done { after, behind: std::mem::take(&mut self.behind) },
        }
    }

    fn failed(&self, why: Why) -> Answer {
        match why {
            Why::Late => self.come_back(504, why.reason(), "no server answered in time"),
            _ => self.busy(why.reason()),
        }
    }

    fn busy(&self, reason: &'static str) -> Answer {
        self.come_back(503, reason, "no server can take this request now")
    }

    fn come_back(&self, status: u16, reason: &'static str, text: &str) -> Answer {
        let fields = format!("Retry-After: {}\r\n", self.shell.retry_after_s());
        own_answer(status, reason, &fields, text)
    }
}

/// Why there is no server.
enum Unplaced {
    Refused(Refusal),
    ClientGone,
}

/// Returns when the client is gone; what it sends meanwhile is kept for its next request.
///
/// # Cancel safety
/// Yes: what was read is kept.
async fn client_gone(shell: &Shell, client: &TcpStream, behind: &mut Vec<u8>) {
    while behind.len() < BEHIND_MAX {
        if client.readable().await.is_err() {
            return;
        }
        if shell.read(client, |bytes| behind.extend_from_slice(bytes)).is_none() {
            return;
        }
    }
    std::future::pending::<()>().await;
}
