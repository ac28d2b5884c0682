//! The machine of one client session: dials, comes back when the connection is lost, and moves when it is told to.
//!
//! In: [`Input`] (what happened to its sockets, what the application wants), `now` and a [`Chance`]. Out: [`Output`],
//! to be performed in order, and [`Mover::poll_timeout`]. Invariants: at most two sockets; the application hears of
//! one only while it owns the session; in a dialogue the old socket is never closed from here, because a browser
//! drops what arrives after its own close; what is held back leaves in order, once, or is given back. Elsewhere:
//! sockets, negotiating, tickets and ctl (the caller), waits (`backoff`), texts (`frame`).

mod moves;

use alloc::collections::VecDeque;
use alloc::string::{String, ToString};

use evenkeel_model::{Duration, Instant};

use super::frame::{Parsed, parse};
use super::{Buffer, BufferMax, Ctl, Frame, Opaque, Payload, frame};
use crate::backoff::{Backoff, Chance, ComeBack};
use crate::close::{CloseCode, CloseReason};
use crate::negotiate::Cause;

use moves::Move;

/// A dial that neither opened nor failed by then has failed. 10 s: name resolution, negotiate, TCP, TLS and the
/// handshake on a bad path. The caller has its own, shorter limits for each.
pub const DIAL_WITHIN: Duration = Duration::from_secs(10);

/// A closing handshake that is not through by then is over.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// What a connection that broke without a Close frame ends with (RFC 6455 §7.1.5).
pub const ABNORMAL: u16 = 1006;

/// One socket of the session, counted from 0 in the order of the dials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId(pub u32);

/// What a mover takes in. What is said of a socket that it has given up is ignored.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input<M> {
    /// Make the first dial.
    Start,
    /// A dial succeeded.
    Opened {
        /// Which.
        socket: SocketId,
        /// The `_ekm` it was dialled with.
        ctl: Ctl,
        /// The session as the server knows it: from negotiate, else the client's own.
        sid: String,
    },
    /// A dial failed.
    Failed {
        /// Which.
        socket: SocketId,
        /// How.
        failure: Failure,
    },
    /// A whole message arrived.
    Received {
        /// Where.
        socket: SocketId,
        /// What.
        message: M,
    },
    /// A socket is closed, by whomever.
    Closed {
        /// Which.
        socket: SocketId,
        /// The code, [`ABNORMAL`] if there was none.
        code: u16,
        /// The reason.
        reason: String,
    },
    /// The application sends.
    Send(M),
    /// The application ends the session.
    Close {
        /// With this code.
        code: u16,
        /// And this reason.
        reason: String,
    },
    /// There is no network: do not dial.
    Offline,
    /// There is one again.
    Online,
    /// A negotiate named the range of waits.
    Retry {
        /// First range.
        base: Duration,
        /// Widest range.
        cap: Duration,
    },
}

/// How a dial failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// Nobody could be asked: the name, the network, the gateway.
    NoAnswer,
    /// The server that was assigned did not admit the client, or did not answer.
    Handshake,
    /// Refused for lack of room (503, 429), with a time to come back.
    NoCredit(ComeBack),
}

/// What a mover gives out, to be performed in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Output<M> {
    /// Open a socket: negotiate where that is configured, choose a ctl, connect.
    Dial {
        /// Its number.
        socket: SocketId,
        /// The `cause` of the negotiate.
        cause: Cause,
        /// The ticket of the notice, for a move.
        ticket: Option<Opaque>,
        /// What for.
        errand: Errand,
    },
    /// Send a frame of ours as one text message.
    Say {
        /// Where.
        socket: SocketId,
        /// The text.
        text: String,
    },
    /// Send a message of the application.
    Send {
        /// Where.
        socket: SocketId,
        /// What.
        message: M,
    },
    /// Close a socket or give up its dial. Nothing more is heard from it, so the caller sees to its end.
    Close {
        /// Which.
        socket: SocketId,
        /// With this code.
        code: u16,
        /// And this reason.
        reason: String,
    },
    /// Application: the session is up.
    Open {
        /// Whether it was up before.
        again: Again,
    },
    /// Application: a message.
    Deliver(M),
    /// Application: a move began.
    Moving {
        /// Which.
        mid: String,
        /// Why, as the notice says.
        why: String,
    },
    /// Application: the session is on its new server.
    Moved {
        /// By which move.
        mid: String,
    },
    /// Application: the move came to nothing, the session is where it was.
    Stayed {
        /// Which.
        mid: String,
        /// Why.
        why: StayReason,
    },
    /// Application: the connection is lost; it is being dialled again.
    Lost {
        /// Close code.
        code: u16,
        /// Close reason.
        reason: String,
    },
    /// Application: something sent or to be received before this may be missing.
    Gap {
        /// Where the hole may be.
        why: GapReason,
    },
    /// Application: this message will not be sent.
    Unsent {
        /// Which.
        message: M,
        /// Why.
        why: UnsentReason,
    },
    /// Application: the session is over.
    Closed {
        /// Close code.
        code: u16,
        /// Close reason.
        reason: String,
    },
}

/// What a socket is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Errand {
    /// To be served.
    Serve,
    /// To park: the URL says `_ekc=move`, `_eks`, `_ekt`.
    Park,
}

/// Whether the session was up before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Again {
    /// It was not.
    First,
    /// It was.
    Again,
}

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$item:meta])* $variant:ident = $code:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$item])* $variant,)*
        }

        impl $name {
            /// Short code for logs, metrics and events.
            #[must_use]
            pub const fn reason(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }
        }
    };
}

reasons! {
    /// Why a move came to nothing.
    StayReason {
        /// No new connection could be opened and parked.
        Unreachable = "unreachable",
        /// The time of the notice ran out before the `cut`.
        Lapsed = "lapsed",
        /// The old server took it back or did not take the `cut`.
        Refused = "refused",
        /// The application ended the session.
        Closed = "closed",
    }
}

reasons! {
    /// Where messages may be missing.
    GapReason {
        /// The connection was lost outside of a move.
        Lost = "lost",
        /// The old connection ended between `cut` and `done`.
        NoDone = "no_done",
        /// The new connection ended between `cut` and `resumed`: the state is lost.
        NoResumed = "no_resumed",
        /// A move between servers that hold no dialogue.
        NoDialogue = "no_dialogue",
    }
}

reasons! {
    /// Why a message was not sent.
    UnsentReason {
        /// So much is held back already.
        Full = "full",
        /// The session is over or ending.
        Closed = "closed",
    }
}

/// What becomes of a session whose connection is lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum OnLoss {
    /// It is dialled again.
    #[default]
    Redial,
    /// It is over, for a caller that dials by itself.
    End,
}

/// What a mover is told once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Config {
    /// What becomes of a lost session.
    pub on_loss: OnLoss,
    /// What may be held back.
    pub buffer: BufferMax,
}

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mover<M> {
    config: Config,
    backoff: Backoff,
    phase: Phase,
    /// Held back while nothing may be sent.
    buffer: Buffer<M>,
    /// The next socket's number.
    next: u32,
    network: Network,
    opened: Again,
    /// The application wants to end the session as soon as nothing is held back.
    goodbye: Option<Goodbye>,
    /// The old socket after `done`: its server closes it, unless it died meanwhile.
    leaving: Option<Leaving>,
    outputs: VecDeque<Output<M>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Phase {
    Idle,
    /// Waits to dial; without network for as long as that lasts.
    Waiting {
        cause: Cause,
        until: Option<Instant>,
    },
    Dialling {
        cause: Cause,
        socket: SocketId,
        until: Instant,
    },
    Open(Line),
    Closing {
        socket: SocketId,
        until: Instant,
    },
    Ended,
}

/// The connection that owns the session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Line {
    socket: SocketId,
    ctl: Ctl,
    sid: String,
    /// Up without a loss since then, moves included.
    since: Instant,
    moving: Option<Move>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Network {
    Online,
    Offline,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Goodbye {
    code: u16,
    reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Leaving {
    socket: SocketId,
    until: Instant,
}

impl<M: Payload> Mover<M> {
    /// A session that waits for [`Input::Start`].
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            backoff: Backoff::default(),
            phase: Phase::Idle,
            buffer: Buffer::new(config.buffer),
            next: 0,
            network: Network::Online,
            opened: Again::First,
            goodbye: None,
            leaving: None,
            outputs: VecDeque::new(),
            config,
        }
    }

    /// Takes one input; fires what is due first.
    pub fn handle(&mut self, input: Input<M>, now: Instant, chance: Chance) {
        self.handle_timeout(now, chance);
        match input {
            Input::Start => self.start(now),
            Input::Opened { socket, ctl, sid } => self.dialled(socket, ctl, sid, now),
            Input::Failed { socket, failure } => self.failed(socket, failure, now, chance),
            Input::Received { socket, message } => self.received(socket, message, now, chance),
            Input::Closed { socket, code, reason } => self.closed(socket, code, reason, now, chance),
            Input::Send(message) => self.send(message),
            Input::Close { code, reason } => self.close(Goodbye { code, reason }, now),
            Input::Offline => self.offline(),
            Input::Online => self.online(now, chance),
            Input::Retry { base, cap } => self.backoff.range(base, cap),
        }
        self.check_invariants();
    }

    /// Fires what is due.
    pub fn handle_timeout(&mut self, now: Instant, chance: Chance) {
        if let Some(leaving) = self.leaving.filter(|leaving| now >= leaving.until) {
            self.leaving = None;
            self.close_socket(leaving.socket, CloseReason::Moved);
        }
        match self.phase {
            Phase::Waiting { cause, until: Some(until) } if now >= until => self.dial(cause, now),
            Phase::Dialling { socket, until, .. } if now >= until => {
                self.close_socket(socket, CloseReason::TimedOut);
                self.failed(socket, Failure::Handshake, now, chance);
            }
            Phase::Closing { until, .. } if now >= until => self.end(ABNORMAL, String::new()),
            Phase::Open(_) => self.move_timeout(now, chance),
            _ => {}
        }
    }

    /// When to call [`Mover::handle_timeout`] next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let phase = match &self.phase {
            Phase::Waiting { until, .. } => *until,
            Phase::Dialling { until, .. } | Phase::Closing { until, .. } => Some(*until),
            Phase::Open(line) => line.moving.as_ref().map(Move::until),
            Phase::Idle | Phase::Ended => None,
        };
        let leaving = self.leaving.map(|leaving| leaving.until);
        [phase, leaving].into_iter().flatten().min()
    }

    /// The next thing to perform.
    pub fn poll_output(&mut self) -> Option<Output<M>> {
        self.outputs.pop_front()
    }

    /// Bytes of messages held back.
    #[must_use]
    pub const fn buffered(&self) -> usize {
        self.buffer.bytes
    }

    /// Whether the session is over.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    fn start(&mut self, now: Instant) {
        if self.phase != Phase::Idle {
            return;
        }
        match self.network {
            Network::Online => self.dial(Cause::Start, now),
            Network::Offline => self.phase = Phase::Waiting { cause: Cause::Start, until: None },
        }
    }

    fn dial(&mut self, cause: Cause, now: Instant) {
        let socket = self.next_socket();
        self.phase = Phase::Dialling { cause, socket, until: now + DIAL_WITHIN };
        self.outputs.push_back(Output::Dial { socket, cause, ticket: None, errand: Errand::Serve });
    }

    const fn next_socket(&mut self) -> SocketId {
        let socket = SocketId(self.next);
        self.next += 1;
        socket
    }

    fn dialled(&mut self, socket: SocketId, ctl: Ctl, sid: String, now: Instant) {
        match &self.phase {
            Phase::Dialling { socket: dialled, .. } if *dialled == socket => {
                self.phase = Phase::Open(Line { socket, ctl, sid, since: now, moving: None });
                self.outputs.push_back(Output::Open { again: self.opened });
                self.opened = Again::Again;
                self.flush(now);
            }
            Phase::Open(_) => self.move_dialled(socket, ctl, sid, now),
            _ => {}
        }
    }

    fn failed(&mut self, socket: SocketId, failure: Failure, now: Instant, chance: Chance) {
        match self.phase {
            Phase::Dialling { socket: dialled, cause, .. } if dialled == socket => {
                if self.config.on_loss == OnLoss::End {
                    self.end(ABNORMAL, String::new());
                    return;
                }
                let cause = if failure == Failure::Handshake { Cause::Refused } else { cause };
                let told = match failure {
                    Failure::NoCredit(told) => told,
                    Failure::NoAnswer | Failure::Handshake => ComeBack::default(),
                };
                let wait = self.backoff.wait_as_told(told, chance);
                self.wait(cause, now + wait);
            }
            Phase::Open(_) => self.move_failed(socket, failure),
            _ => {}
        }
    }

    fn wait(&mut self, cause: Cause, until: Instant) {
        let until = (self.network == Network::Online).then_some(until);
        self.phase = Phase::Waiting { cause, until };
    }

    fn received(&mut self, socket: SocketId, message: M, now: Instant, chance: Chance) {
        let Phase::Open(line) = &self.phase else { return };
        if socket == line.socket {
            self.received_from_owner(message, now, chance);
        } else if line.moving.as_ref().is_some_and(|moving| moving.socket() == Some(socket)) {
            self.received_from_new(&message, now, chance);
        }
    }

    fn received_from_owner(&mut self, message: M, now: Instant, chance: Chance) {
        let Phase::Open(line) = &self.phase else { return };
        // After `done` the new server speaks for the session.
        if line.moving.as_ref().is_some_and(Move::is_handed_over) {
            return;
        }
        match message.text().map_or(Parsed::Foreign, |text| parse(&line.ctl, text)) {
            Parsed::Foreign => self.outputs.push_back(Output::Deliver(message)),
            Parsed::Unknown { mid } => self.say(&Frame::nak(mid, frame::UNSUPPORTED)),
            Parsed::Frame(Frame::Move(notice)) => self.noticed(notice, now),
            Parsed::Frame(Frame::Done { mid, state }) => self.done(&mid, state, now, chance),
            Parsed::Frame(Frame::Nak(nak)) => self.move_refused(nak.mid.as_deref(), now),
            // The client's own words, or those of a server that it does not park at.
            Parsed::Frame(_) => {}
        }
    }

    /// Says something to the owner of the session.
    fn say(&mut self, frame: &Frame) {
        if let Phase::Open(line) = &self.phase {
            let (socket, text) = (line.socket, frame.encode(&line.ctl));
            self.outputs.push_back(Output::Say { socket, text });
        }
    }

    fn closed(&mut self, socket: SocketId, code: u16, reason: String, now: Instant, chance: Chance) {
        if self.leaving.is_some_and(|leaving| leaving.socket == socket) {
            self.leaving = None;
            return;
        }
        match &self.phase {
            Phase::Dialling { socket: dialled, .. } if *dialled == socket => {
                self.failed(socket, Failure::Handshake, now, chance);
            }
            Phase::Closing { socket: closing, .. } if *closing == socket => self.end(code, reason),
            Phase::Open(line) if line.socket == socket => {
                let why = match &line.moving {
                    Some(moving) if moving.is_cut() => GapReason::NoDone,
                    _ => GapReason::Lost,
                };
                self.lose(code, reason, why, now, chance);
            }
            Phase::Open(_) => self.move_closed(socket, now, chance),
            _ => {}
        }
    }

    /// The connection that owned the session is gone.
    fn lose(&mut self, code: u16, reason: String, why: GapReason, now: Instant, chance: Chance) {
        let Phase::Open(line) = &mut self.phase else { return };
        let (since, moving) = (line.since, line.moving.take());
        if let Some(socket) = moving.and_then(|moving| moving.socket()) {
            self.close_socket(socket, CloseReason::Unused);
        }
        let over = self.goodbye.is_some() || self.config.on_loss == OnLoss::End || is_final(code, &reason);
        if over {
            self.end(code, reason);
            return;
        }
        self.backoff.lived(now.since(since));
        let wait = self.backoff.wait(chance);
        self.wait(Cause::Lost, now + wait);
        self.outputs.extend([Output::Lost { code, reason }, Output::Gap { why }]);
    }

    fn send(&mut self, message: M) {
        if self.goodbye.is_some() || matches!(self.phase, Phase::Closing { .. } | Phase::Ended) {
            self.outputs.push_back(Output::Unsent { message, why: UnsentReason::Closed });
            return;
        }
        match &self.phase {
            Phase::Open(line) if !line.moving.as_ref().is_some_and(Move::is_cut) => {
                self.outputs.push_back(Output::Send { socket: line.socket, message });
            }
            _ => {
                if let Err(message) = self.buffer.hold(message) {
                    self.outputs.push_back(Output::Unsent { message, why: UnsentReason::Full });
                }
            }
        }
    }

    /// Sends what was held back, then goes if the application wants to.
    fn flush(&mut self, now: Instant) {
        let Phase::Open(line) = &self.phase else { return };
        let socket = line.socket;
        for message in self.buffer.take() {
            self.outputs.push_back(Output::Send { socket, message });
        }
        if let Some(goodbye) = self.goodbye.take() {
            self.close(goodbye, now);
        }
    }

    fn close(&mut self, goodbye: Goodbye, now: Instant) {
        match &self.phase {
            // What was sent goes first: the end of the move decides where to.
            Phase::Open(line) if line.moving.as_ref().is_some_and(Move::is_cut) => {
                self.goodbye.get_or_insert(goodbye);
            }
            Phase::Open(line) => {
                let socket = line.socket;
                self.stay(StayReason::Closed, now);
                self.phase = Phase::Closing { socket, until: now + CLOSE_WITHIN };
                let Goodbye { code, reason } = goodbye;
                self.outputs.push_back(Output::Close { socket, code, reason });
            }
            Phase::Dialling { socket, .. } => {
                let socket = *socket;
                self.close_socket(socket, CloseReason::Unused);
                self.end(goodbye.code, goodbye.reason);
            }
            Phase::Idle | Phase::Waiting { .. } => self.end(goodbye.code, goodbye.reason),
            Phase::Closing { .. } | Phase::Ended => {}
        }
    }

    fn end(&mut self, code: u16, reason: String) {
        self.phase = Phase::Ended;
        self.goodbye = None;
        for message in self.buffer.take() {
            self.outputs.push_back(Output::Unsent { message, why: UnsentReason::Closed });
        }
        self.outputs.push_back(Output::Closed { code, reason });
    }

    const fn offline(&mut self) {
        self.network = Network::Offline;
        if let Phase::Waiting { until, .. } = &mut self.phase {
            *until = None;
        }
    }

    fn online(&mut self, now: Instant, chance: Chance) {
        self.network = Network::Online;
        let soon = now + self.backoff.soon(chance);
        if let Phase::Waiting { until: until @ None, .. } = &mut self.phase {
            *until = Some(soon);
        }
    }

    /// Closes a socket that no message of the application is on its way on any more.
    fn close_socket(&mut self, socket: SocketId, reason: CloseReason) {
        let (code, reason) = (CloseCode::NORMAL.get(), reason.as_str().to_string());
        self.outputs.push_back(Output::Close { socket, code, reason });
    }

    fn check_invariants(&self) {
        let may_send = match &self.phase {
            Phase::Open(line) => !line.moving.as_ref().is_some_and(Move::is_cut),
            Phase::Closing { .. } | Phase::Ended => true,
            Phase::Idle | Phase::Waiting { .. } | Phase::Dialling { .. } => false,
        };
        debug_assert!(!may_send || self.buffer.messages.is_empty(), "nothing is held back without need");
        debug_assert!(self.goodbye.is_none() || matches!(self.phase, Phase::Open(_)), "who left has left");
    }
}

/// Whether a close means that coming back does not help: the server said goodbye, or cannot speak with this client.
/// A close of ours always means to come back.
fn is_final(code: u16, reason: &str) -> bool {
    !reason.starts_with("ek:") && matches!(code, 1000 | 1002 | 1003 | 1007..=1010)
}
