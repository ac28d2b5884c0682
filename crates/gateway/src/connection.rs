//! Drives one client's handshake: its bytes into the machine, the machine's wishes onto sockets.
//!
//! In: an accepted socket. Out: an answer and the end of the connection, or a tunnel handed to the engine.
//! Invariants: a server sees nothing before the whole request was checked; at most [`crate::config::Limits::retries`]
//! servers after the first; every wait has a deadline and ends when the client goes away.
//! Elsewhere: what is a proper handshake (`evenkeel_protocol::handshake`), which server (`crate::fleet`).

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use evenkeel_fleet::gateway::{Ask, Failure, Refusal, ServerKey};
use evenkeel_model::{Duration, Instant};
use evenkeel_protocol::engine_io;
use evenkeel_protocol::handshake::{
    After, Answer, Elsewhere, Handshake, Outcome, Step, Tunnel, answer_bytes,
};
use evenkeel_protocol::negotiate::{Cause, Marks};
use evenkeel_protocol::origin::{self, OriginError};
use evenkeel_protocol::refusal::Refusal as BadCredential;
use evenkeel_protocol::request::{Assignment, Method, Peer, Plain, Said, Scheme};
use tokio::net::TcpStream;
use tracing::debug;

use crate::auth::{AuthError, Subject};
use crate::config::RouteKind;
use crate::connect::{ConnectError, Target};
use crate::credentials;
use crate::engine::{Adopt, ConnId};
use crate::fleet::{Fleet, Placed};
use crate::http_route::{self, Forward, Forwarded, Known};
use crate::sessions::Session;
use crate::shell::{Admitted, Shell};

/// Longest time for a client to take an answer and close.
pub(crate) const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// Most bytes read and dropped from a client that was refused while it goes on sending.
const LINGER_BYTES_MAX: usize = 256 * 1024;

/// One client until it has a tunnel or an answer.
pub(crate) struct Connection {
    pub(crate) shell: Rc<Shell>,
    pub(crate) client: TcpStream,
    pub(crate) peer: Peer,
    pub(crate) prefix: u64,
    pub(crate) id: ConnId,
    pub(crate) handshake: Handshake,
    /// Where it is placed already, to be tried before another is picked.
    pub(crate) first: Option<Placed>,
    /// Its place among the connections.
    admitted: Admitted,
    /// The polling session that its tunnel takes over.
    upgrades: Option<Rc<Session>>,
}

/// What ends a handshake.
pub(crate) enum Ended {
    Answer(Answer),
    Open {
        placed: Placed,
        server: TcpStream,
        first: Tunnel,
    },
    ClientGone,
    /// Another client got its place while its head was not whole.
    Displaced,
    /// An answer to a plain request, counted already.
    Answered(Answer),
    /// A server answered, and the connection ends behind it.
    Finished,
    /// A server was answering, and one of both ends broke off; or a client went that had been answered.
    Carried,
}

/// What follows a request.
pub(crate) enum Next {
    Ended(Ended),
    /// Another one, of which so much is here.
    Request(Vec<u8>),
}

/// Serves one accepted client up to its tunnel.
pub(crate) async fn serve(shell: Rc<Shell>, client: TcpStream, peer: SocketAddr, admitted: Admitted) {
    let (prefix, upgrades) = (admitted.prefix, None);
    let id = shell.next_id();
    let now = shell.clock.now();
    let handshake = Handshake::new(shell.config.limits.heads, now);
    let peer = Peer { ip: peer.ip(), scheme: Scheme::Ws };
    let first = None;
    let mut connection = Connection { shell, client, peer, prefix, id, handshake, first, admitted, upgrades };
    let ended = connection.run().await;
    let shell = Rc::clone(&connection.shell);
    match ended {
        Ended::ClientGone => shell.metrics.handshake("client_gone"),
        // Without an answer: to wait until it is taken would hold the place.
        Ended::Displaced => shell.metrics.handshake("displaced"),
        Ended::Carried => {}
        Ended::Finished => connection.finish(shell.clock.now() + ANSWER_WAIT).await,
        Ended::Answered(answer) => connection.answer(&answer.bytes).await,
        Ended::Answer(answer) => {
            shell.metrics.handshake(answer.reason);
            debug!(conn = %shell.conn_text(id), status = answer.status, reason = answer.reason, "handshake refused");
            connection.answer(&answer.bytes).await;
        }
        Ended::Open { placed, server, first } => {
            let owner = placed.owner();
            debug!(conn = %shell.conn_text(id), server = %placed.id(), "tunnel opened");
            if let Some(session) = &connection.upgrades
                && shell.sessions.upgraded(session, id)
            {
                placed.adopt();
            }
            let heard = placed.connected();
            heard.store(true, std::sync::atomic::Ordering::Relaxed);
            shell.opened();
            let adopt = Adopt { id, owner, client: connection.client, server, first, heard };
            shell.engine.adopt(adopt);
        }
    }
}

impl Connection {
    /// Takes one request after the other, until one needs the connection for itself.
    async fn run(&mut self) -> Ended {
        let (mut behind, mut answered) = (Vec::new(), false);
        loop {
            let step = if behind.is_empty() { Step::Need } else { self.handshake.client_bytes(&behind) };
            match self.request(step).await {
                // It had its answers, and asks no more.
                Next::Ended(Ended::ClientGone) if answered => return Ended::Carried,
                Next::Ended(Ended::Answer(answer)) if answered && answer.status == 0 => {
                    return Ended::Carried;
                }
                Next::Ended(ended) => return ended,
                Next::Request(rest) => {
                    (behind, answered) = (rest, true);
                    self.handshake = Handshake::new(self.shell.config.limits.heads, self.shell.clock.now());
                }
            }
        }
    }

    async fn request(&mut self, mut step: Step) -> Next {
        let reader = self.shell.reading.enter(self.id, self.shell.clock.now());
        loop {
            match step {
                Step::Need => {}
                Step::Pick => {
                    drop(reader);
                    if let Some(ended) = self.authorize().await {
                        return Next::Ended(ended);
                    }
                    if let Some(next) = self.redirect().await {
                        return next;
                    }
                    return Next::Ended(self.proxy().await);
                }
                Step::Plain if let Some(kind) = self.kind() => return self.answer_plain(kind, reader).await,
                Step::Plain if self.is_forwarded() => {
                    drop(reader);
                    return self.forward().await;
                }
                Step::Plain => {
                    step = self.handshake.refuse_plain();
                    continue;
                }
                Step::End(Outcome::Answer(answer)) => return Next::Ended(Ended::Answer(answer)),
                // Neither can come before a server was asked.
                Step::Elsewhere(_) | Step::End(Outcome::Tunnel(_)) => return Next::Ended(Ended::ClientGone),
            }
            let ready = tokio::select! { biased;
                () = self.shell.clock.sleep_until(self.handshake.poll_timeout()) => Ready::Timeout,
                _ = self.client.readable() => Ready::Client,
                // Last: a head that is here now is taken.
                () = reader.displaced() => return Next::Ended(Ended::Displaced),
            };
            step = match self.take(ready, None) {
                Some(step) => step,
                None => return Next::Ended(Ended::ClientGone),
            };
        }
    }

    /// Whether the plain request is one that servers answer.
    fn is_forwarded(&self) -> bool {
        let routed =
            self.handshake.plain().and_then(|plain| self.shell.config.route(plain.host(), plain.path()));
        routed.is_some_and(|routed| routed.kind == RouteKind::Http)
    }

    /// Has a server answer a plain request.
    async fn forward(&mut self) -> Next {
        let Some((plain, behind)) = self.handshake.take_plain() else {
            return Next::Ended(Ended::ClientGone);
        };
        let routed = self.shell.route(plain.host(), plain.path());
        let Some((fleet, origins)) = routed else { return Next::Ended(Ended::ClientGone) };
        if let Err(error) = origins.check(plain.origin(), plain.host()) {
            let bytes = answer_bytes(error.status(), "", &error.to_string());
            return Next::Ended(Ended::Answer(Answer {
                status: error.status(),
                reason: error.reason(),
                bytes,
            }));
        }
        if let Some(error) = self.bars(&plain).await {
            let bytes = answer_bytes(error.status(), "Cache-Control: no-store\r\n", &error.to_string());
            let answer = Answer { status: error.status(), reason: error.reason(), bytes };
            return Next::Ended(Ended::Answer(answer));
        }
        self.admitted.carries();
        let Self { shell, client, peer, prefix, id, .. } = &*self;
        let (prefix, id) = (*prefix, *id);
        let forward = Forward { shell, client, peer, prefix, id, fleet: &fleet, plain: &plain, behind };
        match forward.run().await {
            Forwarded::Answer(answer) => {
                shell.metrics.request(answer.reason);
                Next::Ended(Ended::Answered(answer))
            }
            Forwarded::Broken(why) => {
                shell.metrics.request(why);
                Next::Ended(Ended::Carried)
            }
            Forwarded::Done { after, behind } => {
                shell.metrics.request("answered");
                match after {
                    After::Stays => Next::Request(behind),
                    After::Closes => Next::Ended(Ended::Finished),
                }
            }
        }
    }

    /// Why the operator's service does not let a plain request in. It is asked about those that begin something: a
    /// session was let in when it began, and a browser's preflight says nothing of who asks.
    async fn bars(&self, plain: &Plain) -> Option<AuthError> {
        if plain.method == Method::Options || engine_io::sid(plain.target()).is_some() {
            return None;
        }
        let auth = self.shell.config.route(plain.host(), plain.path())?.auth?;
        let (host, fields, method) = (plain.host(), plain.fields(), plain.method.as_str());
        let subject = Subject { method, target: plain.target(), host, peer: &self.peer, fields };
        self.shell.ask_auth(auth, &subject).await.err()
    }

    /// The polling session that a handshake takes over.
    fn session_of(&self, fleet: &Rc<Fleet>) -> Known {
        let Some(request) = self.handshake.request() else { return Known::None };
        match self.shell.config.route(request.host(), request.path()) {
            Some(routed) if routed.kind == RouteKind::Http => {
                http_route::session_of(&self.shell, fleet, request.target())
            }
            _ => Known::None,
        }
    }

    /// Opens the tunnel of a polling session at the server that has it, whatever state that one is in.
    async fn upgrade(&mut self, fleet: &Rc<Fleet>, session: Rc<Session>) -> Ended {
        let Some(placed) = fleet.held(&session.home) else {
            self.shell.end_session(&session);
            return Ended::Answer(http_route::unknown_session());
        };
        let request = self.handshake.request();
        let target = request.map(|request| http_route::target_of(&session, request.target()));
        self.handshake.retarget(target.unwrap_or_default());
        let coming =
            Coming { session: self.session(&Marks::default()), parks: None, brought: Brought::Nothing };
        session.works();
        let tried = self.try_server(&placed, &coming).await;
        session.rests(self.shell.clock.now());
        match tried {
            Tried::Open(server, first) => {
                self.upgrades = Some(session);
                Ended::Open { placed, server, first }
            }
            Tried::Answer(answer) | Tried::Refused(answer) => Ended::Answer(answer),
            Tried::ClientGone => Ended::ClientGone,
            Tried::OutOfMeans => self.busy("out_of_means"),
            Tried::Failed(Trouble::Refused | Trouble::Closed) => {
                self.shell.end_session(&session);
                Ended::Answer(http_route::unknown_session())
            }
            Tried::Failed(trouble) => self.refuse_placement(Refusal::AllTried, Some(trouble)),
        }
    }

    /// Feeds the machine what is ready. `None`: the client is gone.
    fn take(&mut self, ready: Ready, server: Option<&TcpStream>) -> Option<Step> {
        let handshake = &mut self.handshake;
        match (ready, server) {
            (Ready::Server, Some(server)) => {
                let read = self.shell.read(server, |bytes| handshake.server_bytes(bytes));
                Some(read.unwrap_or_else(|| self.handshake.server_closed()))
            }
            (Ready::Timeout, _) => Some(handshake.handle_timeout(self.shell.clock.now())),
            _ => self.shell.read(&self.client, |bytes| handshake.client_bytes(bytes)),
        }
    }

    /// The request is whole and proper: find a server that takes it.
    async fn proxy(&mut self) -> Ended {
        let started = self.shell.clock.now();
        let fleet = match self.route() {
            Ok(fleet) => fleet,
            Err(NoWay::Route) => return self.refuse(404, "no_route", "", "nothing is served here"),
            Err(NoWay::Origin(error)) => {
                return self.refuse(error.status(), error.reason(), "", &error.to_string());
            }
        };
        match self.session_of(&fleet) {
            Known::None => {}
            Known::Gone => return Ended::Answer(http_route::unknown_session()),
            Known::Session(session) => return self.upgrade(&fleet, session).await,
        }
        let mut coming = match self.coming(&fleet) {
            Ok(coming) => coming,
            Err(bad) => return self.refuse_credential(bad),
        };
        let mut tried: Vec<ServerKey> = Vec::new();
        let mut last: Option<Trouble> = None;
        while tried.len() <= self.shell.config.limits.retries {
            let placed = match self.next_server(&fleet, &mut coming, &tried).await {
                Ok(placed) => placed,
                Err(Unplaced::ClientGone) => return Ended::ClientGone,
                Err(Unplaced::Answered(answer)) => return Ended::Answer(answer),
                Err(Unplaced::Refused(refusal)) => return self.refuse_placement(refusal, last),
            };
            tried.push(placed.server());
            match self.try_server(&placed, &coming).await {
                Tried::Open(server, first) => {
                    let took = self.shell.clock.now().since(started);
                    self.shell.metrics.opened_after(took.as_secs_f64());
                    return Ended::Open { placed, server, first };
                }
                Tried::Answer(answer) => {
                    placed.failed(Failure::Answered);
                    return Ended::Answer(answer);
                }
                Tried::ClientGone => return Ended::ClientGone,
                Tried::Refused(answer) => return Ended::Answer(answer),
                Tried::OutOfMeans => {
                    // Given back without blame.
                    drop(placed);
                    return self.busy("out_of_means");
                }
                Tried::Failed(trouble) => {
                    placed.failed(trouble.failure());
                    if trouble == Trouble::BadAnswer {
                        return self.refuse(502, "bad_answer", "", "the server gave no proper answer");
                    }
                    last = Some(trouble);
                }
            }
            // It was good for that server only.
            coming.brought = Brought::Nothing;
        }
        self.refuse_placement(Refusal::AllTried, last)
    }

    /// Who comes, by the fields of ours in the URL.
    fn coming(&self, fleet: &Rc<Fleet>) -> Result<Coming, BadCredential> {
        let Some(request) = self.handshake.request() else { return Err(BadCredential::Missing) };
        let marks = Marks::of(request.target());
        let mut coming = Coming { session: self.session(&marks), parks: None, brought: Brought::Nothing };
        if let Some(token) = marks.token {
            let placed = fleet.redeem(token, request.path(), request.origin())?;
            coming.brought = Brought::Token(token.into(), Some(placed));
        } else if marks.parks {
            let (sid, source) = fleet.read_ticket(marks.ticket.unwrap_or_default())?;
            coming.session.sid = sid;
            coming.parks = Some(Source(source));
        }
        Ok(coming)
    }

    pub(crate) fn session(&self, marks: &Marks<'_>) -> credentials::Session {
        credentials::Session {
            sid: marks.sid.map_or_else(|| self.shell.new_sid(), Into::into),
            cause: if marks.parks { Cause::Move } else { Cause::Start },
            caps: marks.moves.then(|| String::from("move")).into_iter().collect(),
        }
    }

    /// The server that the client names, or one that is picked.
    async fn next_server(
        &mut self,
        fleet: &Rc<Fleet>,
        coming: &mut Coming,
        tried: &[ServerKey],
    ) -> Result<Placed, Unplaced> {
        if let Some(placed) = self.first.take() {
            return Ok(placed);
        }
        if let Brought::Token(_, placed) = &mut coming.brought
            && let Some(placed) = placed.take()
        {
            return Ok(placed);
        }
        match &coming.parks {
            Some(Source(source)) => {
                let ask = Ask { prefix: self.prefix, avoid: tried, source: *source };
                fleet.place_move(&ask).map_err(Unplaced::Refused)
            }
            None => self.place(fleet, tried).await,
        }
    }

    /// Where the request leads, if its page may go there.
    fn route(&self) -> Result<Rc<Fleet>, NoWay> {
        let request = self.handshake.request().ok_or(NoWay::Route)?;
        let (fleet, origins) = self.shell.route(request.host(), request.path()).ok_or(NoWay::Route)?;
        origins.check(request.origin(), request.host()).map_err(|error| {
            let origin = origin::shown(request.origin().unwrap_or_default());
            debug!(conn = %self.shell.conn_text(self.id), fleet = %fleet.id, origin, host = request.host(), reason = error.reason(), "origin refused");
            NoWay::Origin(error)
        })?;
        Ok(fleet)
    }

    /// Waits for a server while watching the client.
    async fn place(&mut self, fleet: &Rc<Fleet>, tried: &[ServerKey]) -> Result<Placed, Unplaced> {
        let ask = Ask { prefix: self.prefix, avoid: tried, source: None };
        let placing = fleet.place(self.id.0, &ask);
        tokio::pin!(placing);
        loop {
            tokio::select! { biased;
                placed = &mut placing => return placed.map_err(Unplaced::Refused),
                _ = self.client.readable() => match self.take(Ready::Client, None) {
                    Some(Step::Need) => {}
                    Some(Step::End(Outcome::Answer(answer))) => return Err(Unplaced::Answered(answer)),
                    _ => return Err(Unplaced::ClientGone),
                },
            }
        }
    }

    /// Writes the head for a server, with the assignment that it may ask for.
    fn head(&mut self, target: &Target, placed: &Placed, coming: &Coming) -> Vec<u8> {
        let now = self.shell.clock.now();
        let minted = match (&coming.brought, self.handshake.request()) {
            (Brought::Nothing, Some(request)) => {
                let path = format!("{}{}", target.prefix, request.path());
                placed.mint(&path, request.origin(), &coming.session).unwrap_or_else(|error| {
                    // The server decides what it does with a client without one.
                    debug!(conn = %self.shell.conn_text(self.id), server = %placed.id(), %error, "no assignment");
                    None
                })
            }
            _ => None,
        };
        let assignment = match (&coming.brought, &minted) {
            (Brought::Token(token, _), _) => Assignment::Brought(token),
            (Brought::Nothing, Some(token)) => Assignment::Minted(token),
            (Brought::Nothing, None) => Assignment::None,
        };
        let conn = self.shell.conn_text(self.id);
        self.handshake.ask(&target.prefix, &self.peer, &Said { conn: &conn, assignment }, now)
    }

    async fn try_server(&mut self, placed: &Placed, coming: &Coming) -> Tried {
        let limits = self.shell.config.limits;
        let Some(target) = placed.target() else { return Tried::Failed(Trouble::Closed) };
        let server = match target.connect(limits.connect, self.shell.clock).await {
            Ok(server) => server,
            Err(ConnectError::Refused) => return Tried::Failed(Trouble::Refused),
            Err(ConnectError::Broken) => return Tried::Failed(Trouble::Closed),
            Err(ConnectError::Late) => return Tried::Failed(Trouble::Late),
            Err(ConnectError::OutOfMeans) => return Tried::OutOfMeans,
        };
        let head = self.head(&target, placed, coming);
        let deadline = self.shell.clock.now() + limits.heads.server_head;
        if let Err(error) = self.write_all(&server, &head, deadline).await {
            return Tried::Failed(match error.kind() {
                io::ErrorKind::TimedOut => Trouble::Late,
                _ => Trouble::Closed,
            });
        }
        let mut step = Step::Need;
        loop {
            match step {
                Step::Need => {}
                Step::End(Outcome::Tunnel(first)) => return Tried::Open(server, first),
                Step::End(Outcome::Answer(answer)) if answer.reason == "answered" => {
                    return Tried::Answer(answer);
                }
                Step::End(Outcome::Answer(answer)) => return Tried::Refused(answer),
                Step::Elsewhere(why) => return Tried::Failed(why.into()),
                // A machine that is asking does not read another request.
                Step::Pick | Step::Plain => return Tried::Failed(Trouble::Closed),
            }
            // The deadline first: a peer that never stops sending must not put it off.
            let ready = tokio::select! { biased;
                () = self.shell.clock.sleep_until(self.handshake.poll_timeout()) => Ready::Timeout,
                _ = server.readable() => Ready::Server,
                _ = self.client.readable() => Ready::Client,
            };
            step = match self.take(ready, Some(&server)) {
                Some(step) => step,
                None => return Tried::ClientGone,
            };
        }
    }

    pub(crate) fn refuse(&mut self, status: u16, reason: &'static str, fields: &str, text: &str) -> Ended {
        match self.handshake.refuse(status, reason, fields, text) {
            Step::End(Outcome::Answer(answer)) => Ended::Answer(answer),
            _ => Ended::ClientGone,
        }
    }

    /// What a client is told whose assignment or ticket is not good: as its server would.
    pub(crate) fn refuse_credential(&mut self, bad: BadCredential) -> Ended {
        self.shell.metrics.credential_refused(bad.reason());
        let body = format!(r#"{{"why":"{}"}}"#, bad.reason());
        let fields = "Content-Type: application/json\r\nCache-Control: no-store\r\n";
        match self.handshake.answer(401, "credential", fields, &body) {
            Step::End(Outcome::Answer(answer)) => Ended::Answer(answer),
            _ => Ended::ClientGone,
        }
    }

    /// What the client is told when no server takes it.
    /// Only silence is a 504: a server that refuses or closes has answered, in its way, that it cannot serve now.
    fn refuse_placement(&mut self, refusal: Refusal, last: Option<Trouble>) -> Ended {
        match last {
            Some(Trouble::Late) => {
                self.come_back(504, "server_late", "no server answered the handshake in time")
            }
            Some(Trouble::Refused) => self.busy("server_refused"),
            Some(Trouble::Closed) => self.busy("server_closed"),
            Some(Trouble::Draining | Trouble::BadAnswer) | None => self.busy(refusal.reason()),
        }
    }

    pub(crate) fn busy(&mut self, reason: &'static str) -> Ended {
        self.come_back(503, reason, "no server can take this connection now")
    }

    /// A refusal that says when to come back.
    fn come_back(&mut self, status: u16, reason: &'static str, text: &str) -> Ended {
        let fields = format!("Retry-After: {}\r\n", self.shell.retry_after_s());
        self.refuse(status, reason, &fields, text)
    }

    pub(crate) async fn write_all(&self, to: &TcpStream, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        // Nearly always the socket takes all of it at once.
        let rest = match to.try_write(bytes) {
            Ok(written) if written == bytes.len() => return Ok(()),
            Ok(written) => &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => bytes,
            Err(error) => return Err(error),
        };
        tokio::select! { biased;
            written = write_all(to, rest) => written,
            () = self.shell.clock.sleep_until(Some(deadline)) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Sends an answer and closes so that it arrives: unread bytes at close would make the kernel reset the
    /// connection, and with it the answer on its way.
    async fn answer(&self, bytes: &[u8]) {
        let deadline = self.shell.clock.now() + ANSWER_WAIT;
        if !bytes.is_empty() && self.write_all(&self.client, bytes, deadline).await.is_ok() {
            self.finish(deadline).await;
        }
    }

    async fn finish(&self, deadline: Instant) {
        let _ = socket2::SockRef::from(&self.client).shutdown(std::net::Shutdown::Write);
        let rest = async {
            let mut dropped = 0;
            while dropped <= LINGER_BYTES_MAX && self.client.readable().await.is_ok() {
                let Some(length) = self.shell.read(&self.client, <[u8]>::len) else { return };
                dropped += length;
            }
        };
        tokio::select! { biased;
            () = rest => {}
            () = self.shell.clock.sleep_until(Some(deadline)) => {}
        }
    }
}

/// What a wait ended with.
#[derive(Clone, Copy)]
enum Ready {
    Client,
    Server,
    Timeout,
}

/// A client, by what its URL says.
struct Coming {
    session: credentials::Session,
    /// It comes to take its session over from there.
    parks: Option<Source>,
    brought: Brought,
}

/// The server that a moving client leaves; `None`: it is not here any more.
struct Source(Option<ServerKey>);

enum Brought {
    Nothing,
    /// An assignment, and until it was tried the placement that it stands for.
    Token(String, Option<Placed>),
}

/// Why a request leads nowhere.
enum NoWay {
    Route,
    Origin(OriginError),
}

/// Why there is no server.
enum Unplaced {
    Refused(Refusal),
    /// The client broke the rules meanwhile.
    Answered(Answer),
    ClientGone,
}

/// How asking one server went.
enum Tried {
    Open(TcpStream, Tunnel),
    /// The server's own refusal, to be relayed.
    Answer(Answer),
    /// The client broke the rules meanwhile.
    Refused(Answer),
    Failed(Trouble),
    /// No descriptor or port of ours is free.
    OutOfMeans,
    ClientGone,
}

/// How a server failed a handshake. Finer than what the fleet counts: a client is told of silence in another way than
/// of a closed door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// Nobody listens there.
    Refused,
    /// No way to it, or its connection ended before an answer.
    Closed,
    /// It did not accept or answer in time.
    Late,
    Draining,
    BadAnswer,
}

impl Trouble {
    /// What the fleet counts it as.
    const fn failure(self) -> Failure {
        match self {
            Self::Refused => Failure::Refused,
            Self::Closed | Self::Late => Failure::Unreachable,
            Self::Draining => Failure::Draining,
            Self::BadAnswer => Failure::BadAnswer,
        }
    }
}

impl From<Elsewhere> for Trouble {
    fn from(why: Elsewhere) -> Self {
        match why {
            Elsewhere::Draining => Self::Draining,
            Elsewhere::Late => Self::Late,
            Elsewhere::Closed => Self::Closed,
            Elsewhere::Bad(_) => Self::BadAnswer,
        }
    }
}

/// Reads what there is; 0 at the end.
///
/// # Cancel safety
/// Yes: nothing is taken from the socket before it returns.
pub(crate) async fn read(from: &TcpStream, into: &mut [u8]) -> io::Result<usize> {
    loop {
        from.readable().await?;
        match from.try_read(into) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}

pub(crate) async fn write_all(to: &TcpStream, bytes: &[u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        match to.try_write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
