//! The machine of one connection at a server: sends its client away when told to, or parks one that came and takes
//! its session over.
//!
//! In: [`Input`] (what the client sent, what the application and the agent want) and `now`. Out: [`Output`], to be
//! performed in order, and [`Session::poll_timeout`]. Invariants: everything the client sent before `cut` is
//! delivered before [`Output::Detach`]; everything the application sent before it handed over is sent before `done`;
//! a state is taken at most once; the application hears of a parked connection only by [`Output::Attach`]; each
//! session ends with exactly one of [`Output::Detach`] and [`Output::Gone`]. Elsewhere: making tickets, sealing and
//! opening states (the caller, with `ticket` and `seal`), whom to order away and when (`executor`).

use alloc::collections::VecDeque;
use alloc::string::{String, ToString};

use evenkeel_model::{Duration, Instant};

use super::frame::{self, Nak, Parsed, parse};
use super::{Buffer, BufferMax, Ctl, DETACH_WITHIN, Frame, Notice, Opaque, PARKED_FOR, Payload, STEP_WITHIN};
use crate::close::{CloseCode, CloseReason};

/// What a connection's URL says of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Arrival {
    /// `_ekm`; without one the client knows no moves and is never told of them.
    pub ctl: Option<Ctl>,
    /// What for.
    pub errand: Errand,
    /// What may be held back while the application takes over.
    pub buffer: BufferMax,
}

/// What a connection comes for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Errand {
    /// To be served.
    Serve,
    /// To park (`_ekc=move`).
    Park {
        /// The session it was admitted for: of its assignment, which has it from the ticket; without one `_eks`.
        sid: String,
        /// What `parked` says: for whom the state is to be sealed, so this server's name in [`crate::seal`].
        at: String,
    },
}

/// What a session takes in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input<M> {
    /// A whole message arrived from the client.
    Received(M),
    /// The connection is closed, by whomever.
    Closed,
    /// The application sends.
    Send(M),
    /// The agent orders the client away.
    Order(Notice),
    /// Answer to [`Output::Detach`]: the application handed over, and this is its state, sealed.
    Detached {
        /// Which move.
        mid: String,
        /// Sealed to session, move and receiver.
        state: Opaque,
    },
    /// Answer to [`Output::Attach`]: the state was opened and the application has taken over.
    Attached,
    /// Answer to [`Output::Attach`]: the state could not be opened or the application did not take it.
    NotAttached,
    /// The server is told to drain.
    Drain,
    /// Close the connection, whatever it does.
    Close(CloseReason, CloseCode),
}

/// What a session gives out, to be performed in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Output<M> {
    /// Send a frame of ours as one text message.
    Say(String),
    /// Send a message of the application.
    Send(M),
    /// Close the connection after all that was sent.
    Close(CloseReason, CloseCode),
    /// Application: a message.
    Deliver(M),
    /// Application: hand over after everything delivered so far, at once ([`DETACH_WITHIN`]), then answer with
    /// [`Input::Detached`]. The session is over here. The caller seals the state to session, `mid` and `at`.
    Detach {
        /// Which move.
        mid: String,
        /// The receiver.
        at: String,
    },
    /// Open the state, which must be sealed to this session, move and server, have the application take it over, then
    /// answer with [`Input::Attached`] or [`Input::NotAttached`].
    Attach {
        /// The session it was admitted for.
        sid: String,
        /// Which move.
        mid: String,
        /// Sealed.
        state: Opaque,
    },
    /// Application: the client is gone.
    Gone,
    /// Application: this message will not be sent.
    Unsent(M),
    /// How an ordered move ended.
    Settled {
        /// Which.
        mid: String,
        /// How.
        how: Settled,
    },
}

/// How an ordered move ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Settled {
    /// The client took the state with it.
    Moved,
    /// The client stays.
    Refused {
        /// As its `nak` says.
        why: String,
        /// Not again before.
        retry: Option<Duration>,
    },
    /// No `cut` came in time. No answer is no refusal.
    Lapsed,
    /// The client knows no moves, or one is under way.
    NotSent,
    /// The application did not hand over in time.
    Overdue,
    /// The connection ended meanwhile.
    Gone,
}

impl Settled {
    /// Short code for logs and metrics, and the `why` of an agent's `moved`.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::Refused { .. } => "refused",
            Self::Lapsed => "lapsed",
            Self::NotSent => "not_sent",
            Self::Overdue => "overdue",
            Self::Gone => "gone",
        }
    }
}

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Session<M> {
    ctl: Option<Ctl>,
    phase: Phase,
    /// What the application sends before `resumed`.
    buffer: Buffer<M>,
    outputs: VecDeque<Output<M>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Phase {
    /// Owns the session.
    Serving {
        open: Option<Open>,
    },
    /// `cut` came, the application hands over.
    Detaching {
        mid: String,
        until: Instant,
    },
    /// Came to park and has not said so.
    Awaiting {
        sid: String,
        at: String,
        until: Instant,
    },
    /// Said `park`, calling the session by a name of its own: a client that did not negotiate made one up.
    Parked {
        sid: String,
        said: String,
        mid: String,
        since: Instant,
        until: Instant,
    },
    /// Said `resume`, the application takes over.
    Attaching {
        mid: String,
        until: Instant,
    },
    /// Closed from here. The application hears of its end where it owned it.
    Closing {
        owned: Owned,
    },
    Ended,
}

/// A notice that was sent and not answered.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Open {
    mid: String,
    by: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Owned {
    Yes,
    No,
}

impl<M: Payload> Session<M> {
    /// A connection whose handshake is done.
    #[must_use]
    pub fn new(arrival: Arrival, now: Instant) -> Self {
        let phase = match arrival.errand {
            Errand::Serve => Phase::Serving { open: None },
            Errand::Park { sid, at } => Phase::Awaiting { sid, at, until: now + STEP_WITHIN },
        };
        Self { ctl: arrival.ctl, phase, buffer: Buffer::new(arrival.buffer), outputs: VecDeque::new() }
    }

    /// Takes one input; fires what is due first.
    pub fn handle(&mut self, input: Input<M>, now: Instant) {
        self.handle_timeout(now);
        match input {
            Input::Received(message) => self.received(message, now),
            Input::Closed => self.closed(),
            Input::Send(message) => self.send(message),
            Input::Order(notice) => self.order(notice, now),
            Input::Detached { mid, state } => self.detached(&mid, state),
            Input::Attached => self.attached(),
            Input::NotAttached => self.not_attached(),
            Input::Drain => self.drain(now),
            Input::Close(reason, code) => self.close(reason, code),
        }
        self.check_invariants();
    }

    /// Fires what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|until| now < until) {
            return;
        }
        match &mut self.phase {
            Phase::Serving { open } => {
                if let Some(open) = open.take() {
                    self.settle(open.mid, Settled::Lapsed);
                }
            }
            Phase::Detaching { .. } => {
                self.close_as(CloseReason::TimedOut, CloseCode::RESTART, Settled::Overdue);
            }
            Phase::Awaiting { .. } => self.close(CloseReason::Unexpected, CloseCode::PROTOCOL),
            Phase::Parked { .. } | Phase::Attaching { .. } => {
                self.close(CloseReason::TimedOut, CloseCode::RESTART);
            }
            Phase::Closing { .. } | Phase::Ended => {}
        }
    }

    /// When to call [`Session::handle_timeout`] next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Serving { open } => open.as_ref().map(|open| open.by),
            Phase::Detaching { until, .. }
            | Phase::Awaiting { until, .. }
            | Phase::Parked { until, .. }
            | Phase::Attaching { until, .. } => Some(*until),
            Phase::Closing { .. } | Phase::Ended => None,
        }
    }

    /// The next thing to perform.
    pub fn poll_output(&mut self) -> Option<Output<M>> {
        self.outputs.pop_front()
    }

    /// Whether its client could be ordered away now.
    #[must_use]
    pub fn is_movable(&self) -> bool {
        self.ctl.is_some() && matches!(self.phase, Phase::Serving { open: None })
    }

    /// Whether a move is under way: the notice is out, or the application is handing over.
    #[must_use]
    pub const fn is_moving(&self) -> bool {
        matches!(self.phase, Phase::Serving { open: Some(_) } | Phase::Detaching { .. })
    }

    /// Whether it came to park and its session was not taken over.
    #[must_use]
    pub const fn is_parked(&self) -> bool {
        matches!(self.phase, Phase::Awaiting { .. } | Phase::Parked { .. })
    }

    fn received(&mut self, message: M, now: Instant) {
        let parsed = match (&self.ctl, message.text()) {
            (Some(ctl), Some(text)) => parse(ctl, text),
            _ => Parsed::Foreign,
        };
        match &self.phase {
            Phase::Serving { .. } => match parsed {
                Parsed::Foreign => self.outputs.push_back(Output::Deliver(message)),
                Parsed::Frame(Frame::Cut { mid, at }) => self.cut(mid, at, now),
                Parsed::Frame(Frame::Nak(nak)) => self.refused(nak),
                Parsed::Unknown { mid } => self.say(&Frame::nak(mid, frame::UNSUPPORTED)),
                Parsed::Frame(_) => {}
            },
            Phase::Awaiting { .. } | Phase::Parked { .. } | Phase::Attaching { .. } => match parsed {
                Parsed::Frame(Frame::Park { sid, mid }) => self.park(sid, mid, now),
                Parsed::Frame(Frame::Resume { sid, mid, state }) => self.resume(&sid, &mid, state, now),
                Parsed::Unknown { mid } => self.say(&Frame::nak(mid, frame::UNSUPPORTED)),
                Parsed::Frame(Frame::Nak(_)) => {}
                Parsed::Foreign | Parsed::Frame(_) => self.break_off(),
            },
            // Nothing follows a `cut`, and nothing is heard after our close.
            Phase::Detaching { .. } | Phase::Closing { .. } | Phase::Ended => {}
        }
    }

    fn say(&mut self, frame: &Frame) {
        if let Some(ctl) = &self.ctl {
            self.outputs.push_back(Output::Say(frame.encode(ctl)));
        }
    }

    fn settle(&mut self, mid: String, how: Settled) {
        self.outputs.push_back(Output::Settled { mid, how });
    }

    fn order(&mut self, notice: Notice, now: Instant) {
        if !self.is_movable() {
            self.settle(notice.mid, Settled::NotSent);
            return;
        }
        let open = Open { mid: notice.mid.clone(), by: now + notice.by };
        self.phase = Phase::Serving { open: Some(open) };
        self.say(&Frame::Move(notice));
    }

    fn refused(&mut self, nak: Nak) {
        let Phase::Serving { open } = &mut self.phase else { return };
        if let Some(open) = open.take_if(|open| nak.mid.as_deref() == Some(open.mid.as_str())) {
            self.settle(open.mid, Settled::Refused { why: nak.why, retry: nak.retry });
        }
    }

    fn cut(&mut self, mid: String, at: String, now: Instant) {
        let Phase::Serving { open } = &mut self.phase else { return };
        if open.take_if(|open| open.mid == mid).is_none() {
            self.say(&Frame::nak(Some(mid), frame::EXPIRED));
            return;
        }
        self.phase = Phase::Detaching { mid: mid.clone(), until: now + DETACH_WITHIN };
        self.outputs.push_back(Output::Detach { mid, at });
    }

    fn detached(&mut self, mid: &str, state: Opaque) {
        // Too late: the client was told that there is no state.
        if !matches!(&self.phase, Phase::Detaching { mid: detaching, .. } if detaching == mid) {
            return;
        }
        self.say(&Frame::Done { mid: mid.to_string(), state });
        self.close_as(CloseReason::Moved, CloseReason::Moved.code(), Settled::Moved);
    }

    fn park(&mut self, said: String, mid: String, now: Instant) {
        let Phase::Awaiting { sid, at, .. } = &mut self.phase else { return self.break_off() };
        let (sid, at) = (core::mem::take(sid), core::mem::take(at));
        let parked = Frame::Parked { mid: mid.clone(), at };
        self.phase = Phase::Parked { sid, said, mid, since: now, until: now + PARKED_FOR };
        self.say(&parked);
    }

    fn resume(&mut self, same: &str, for_move: &str, state: Opaque, now: Instant) {
        match &mut self.phase {
            Phase::Parked { sid, said, mid, .. } if said == same && mid == for_move => {
                let (sid, mid) = (core::mem::take(sid), core::mem::take(mid));
                self.phase = Phase::Attaching { mid: mid.clone(), until: now + STEP_WITHIN };
                self.outputs.push_back(Output::Attach { sid, mid, state });
            }
            _ => self.break_off(),
        }
    }

    /// The client says what it may not say here.
    fn break_off(&mut self) {
        self.close(CloseReason::Unexpected, CloseCode::PROTOCOL);
    }

    fn attached(&mut self) {
        match &self.phase {
            Phase::Attaching { mid, .. } => {
                let resumed = Frame::Resumed { mid: mid.clone() };
                self.phase = Phase::Serving { open: None };
                self.say(&resumed);
                for message in self.buffer.take() {
                    self.outputs.push_back(Output::Send(message));
                }
            }
            // The connection ended while the application took over.
            Phase::Closing { .. } | Phase::Ended => {
                self.give_back();
                self.outputs.push_back(Output::Gone);
            }
            // Nobody asked.
            _ => {}
        }
    }

    fn not_attached(&mut self) {
        if let Phase::Attaching { mid, .. } = &self.phase {
            let nak = Frame::nak(Some(mid.clone()), frame::REFUSED);
            self.say(&nak);
            self.close(CloseReason::Forbidden, CloseReason::Forbidden.code());
        }
        self.give_back();
    }

    fn send(&mut self, message: M) {
        match &self.phase {
            Phase::Serving { .. } | Phase::Detaching { .. } => self.outputs.push_back(Output::Send(message)),
            Phase::Attaching { .. } => {
                if let Err(message) = self.buffer.hold(message) {
                    self.outputs.push_back(Output::Unsent(message));
                }
            }
            _ => self.outputs.push_back(Output::Unsent(message)),
        }
    }

    fn give_back(&mut self) {
        for message in self.buffer.take() {
            self.outputs.push_back(Output::Unsent(message));
        }
    }

    /// A parked client whose old server may be handing over is waited for as long as that takes; one that has not
    /// parked yet is not.
    fn drain(&mut self, now: Instant) {
        match &mut self.phase {
            Phase::Awaiting { .. } => {
                self.close(CloseReason::Draining, CloseReason::Draining.code());
            }
            Phase::Parked { since, until, .. } => {
                *until = (*until).min(*since + STEP_WITHIN);
                self.handle_timeout(now);
            }
            _ => {}
        }
    }

    fn close(&mut self, reason: CloseReason, code: CloseCode) {
        self.close_as(reason, code, Settled::Gone);
    }

    fn close_as(&mut self, reason: CloseReason, code: CloseCode, how: Settled) {
        let owned = match &self.phase {
            Phase::Serving { .. } => Owned::Yes,
            Phase::Closing { .. } | Phase::Ended => return,
            _ => Owned::No,
        };
        self.outputs.push_back(Output::Close(reason, code));
        self.finish_move(how);
        self.phase = Phase::Closing { owned };
    }

    fn closed(&mut self) {
        let gone = matches!(self.phase, Phase::Serving { .. } | Phase::Closing { owned: Owned::Yes });
        self.finish_move(Settled::Gone);
        self.phase = Phase::Ended;
        if gone {
            self.outputs.push_back(Output::Gone);
        }
    }

    fn finish_move(&mut self, how: Settled) {
        let mid = match &mut self.phase {
            Phase::Serving { open } => open.take().map(|open| open.mid),
            Phase::Detaching { mid, .. } => Some(core::mem::take(mid)),
            _ => None,
        };
        if let Some(mid) = mid {
            self.settle(mid, how);
        }
    }

    fn check_invariants(&self) {
        let taking_over =
            matches!(self.phase, Phase::Attaching { .. } | Phase::Closing { .. } | Phase::Ended);
        debug_assert!(taking_over || self.buffer.messages.is_empty(), "nothing is held back without need");
        debug_assert!(self.ctl.is_some() || !self.is_moving(), "who knows no moves is not moved");
    }
}
