//! One client's WebSocket, whichever server it came from and goes to: what an application that hands sessions over
//! reads and writes instead of its library's socket.
//!
//! In: the socket of a WebSocket library, what its handshake said, orders of the agent. Out: [`Event`]s. All work is
//! done in the calls of the application, in its task. Invariants: outputs of the machine are performed in its order;
//! a call that is dropped half-way loses nothing; an application hears of a client that came to take its session over
//! only by [`Event::Attach`], and nothing more arrives after [`Event::Detach`]; a connection is counted from when the
//! application has it to when its socket is closed. Elsewhere: every decision (`evenkeel_protocol::moving::server`),
//! which connection leaves and when (`registry`), keys (`keyring`).

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use evenkeel_model::{Duration, Instant};
use evenkeel_protocol::close::{CloseCode, CloseReason};
use evenkeel_protocol::executor::Admit;
use evenkeel_protocol::moving::frame::Dialogue;
use evenkeel_protocol::moving::server::{Arrival, Errand, Input, Output, Session, Settled};
use evenkeel_protocol::moving::{BufferMax, Ctl, Notice, Opaque};
use evenkeel_protocol::seal::Handover;
use futures_util::{Sink, Stream};
use tokio::sync::futures::OwnedNotified;
use tokio::time::{Sleep, timeout};
use tracing::{debug, warn};

use crate::admission::{Admission, Shared};
use crate::clock::random;
use crate::handle::{Connection, NOTICE};
use crate::keyring::SealError;
use crate::registry::Leave;
use crate::wire::{Carried, Kind, Wire};

/// A client that takes nothing for so long is given up.
const SEND_WITHIN: Duration = Duration::from_secs(10);

/// How long a client may take to answer our Close.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// What happens at a [`MovableSocket`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<M> {
    /// A new client is here. First event, unless it is [`Event::Attach`].
    Open,
    /// A client is here that another server handed over with this state, at most 16 KiB. What it sent there was
    /// delivered there. The next call on the socket takes the session over; [`MovableSocket::refuse`] does not.
    Attach(Vec<u8>),
    /// A text or binary message.
    Message(M),
    /// The client goes to another server. Nothing more arrives. Send what it still must get from here, then answer
    /// with [`MovableSocket::detach`], all within 2 s: else the client comes back with a gap.
    Detach,
}

/// A message that will not be sent: the client is gone, or takes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("could not send: the connection is {}", self.reason())]
pub enum SendError {
    /// It is closed, closing or handed over.
    Closed,
    /// The client took nothing for 10 s.
    Stuck,
}

impl SendError {
    /// Short code for logs.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Stuck => "stuck",
        }
    }
}

/// Why a session was not handed over. Its client is closed and comes back with a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DetachError {
    /// No [`Event::Detach`] asks for it.
    #[error("nobody asked to hand this session over")]
    NotAsked,
    /// The state is longer than 16 KiB.
    #[error("could not hand over a state of {length} bytes, allowed are 16384")]
    TooLarge {
        /// Its length in bytes.
        length: usize,
    },
    /// There is no key to seal it with.
    #[error("there is no key to seal the state with")]
    NoKey,
    /// It took longer than 2 s, or the client is gone.
    #[error("the session ended before it was handed over")]
    Late,
}

impl DetachError {
    /// Short code for logs.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NotAsked => "not_asked",
            Self::TooLarge { .. } => "too_large",
            Self::NoKey => "no_key",
            Self::Late => "late",
        }
    }
}

/// See the module's documentation. Made by [`Admission::socket`].
pub struct MovableSocket<S, M> {
    native: S,
    shared: Arc<Shared>,
    hold: Hold,
    sid: String,
    session: Session<Carried<M>>,
    events: VecDeque<Event<M>>,
    out: Out<M>,
    /// The move whose state is asked for: `mid` and `at`.
    detaching: Option<(String, String)>,
    /// [`Event::Attach`] was given out.
    taking_over: bool,
    /// The application can hand it over now.
    marked: bool,
    /// An order that was seen.
    ordered: Option<Leave>,
    /// Fires when the door closes, while the client is parked.
    drains: Option<Pin<Box<OwnedNotified>>>,
    timer: Option<(Instant, Pin<Box<Sleep>>)>,
    moved: bool,
    ended: bool,
}

/// What is on its way to the client.
struct Out<M> {
    queue: VecDeque<M>,
    unsent: bool,
    flushed: bool,
    /// A Close frame was queued, the last of all: until when its answer is waited for.
    closing: Option<Instant>,
    /// The client's came.
    goodbye: bool,
}

/// As what the connection counts.
enum Hold {
    /// Arriving: the application has not heard of it.
    Parked(Option<Admission>),
    Open(Connection),
}

impl<S, M> fmt::Debug for MovableSocket<S, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MovableSocket")
            .field("sid", &self.sid)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl Admission {
    /// The handshake is done: the socket of a client that can be moved, if it knows how.
    pub fn socket<S, M, E>(self, native: S) -> MovableSocket<S, M>
    where
        S: Stream<Item = Result<M, E>> + Sink<M, Error = E> + Unpin,
        M: Wire,
        E: fmt::Display,
    {
        MovableSocket::new(self, native)
    }
}

impl<S, M, E> MovableSocket<S, M>
where
    S: Stream<Item = Result<M, E>> + Sink<M, Error = E> + Unpin,
    M: Wire,
    E: fmt::Display,
{
    fn new(admission: Admission, native: S) -> Self {
        let shared = Arc::clone(&admission.shared);
        let client = admission.client.clone();
        let errand = if client.parks {
            Errand::Park { sid: client.sid.clone(), at: shared.keyring.at() }
        } else {
            Errand::Serve
        };
        let arrival = Arrival { ctl: client.ctl, errand, buffer: BufferMax::default() };
        let mut socket = Self {
            native,
            sid: client.sid,
            session: Session::new(arrival, shared.clock.now()),
            events: VecDeque::new(),
            out: Out { queue: VecDeque::new(), unsent: false, flushed: true, closing: None, goodbye: false },
            detaching: None,
            taking_over: false,
            marked: true,
            ordered: None,
            drains: client.parks.then(|| Box::pin(Arc::clone(&shared.registry.drains).notified_owned())),
            timer: None,
            moved: false,
            ended: false,
            hold: if client.parks { Hold::Parked(Some(admission)) } else { Hold::Open(admission.open()) },
            shared,
        };
        if !client.parks {
            socket.events.push_back(Event::Open);
        }
        // A door that closed since the admission.
        if socket.shared.registry.admit() != Admit::Open {
            socket.input(Input::Drain);
        }
        socket.mark();
        socket
    }

    /// The session's name, the same before and after a move. No secret.
    #[must_use]
    pub fn sid(&self) -> &str {
        &self.sid
    }

    /// Whether the session may be handed over. Default true; clear it while it holds what cannot be: then an order
    /// closes the connection instead.
    pub fn set_movable(&mut self, movable: bool) {
        self.marked = movable;
        self.mark();
    }

    /// The next event; `None`: the connection is closed. Moves, orders and closing go on only while this is awaited
    /// or called again soon.
    ///
    /// # Cancel safety
    /// Yes.
    pub async fn next(&mut self) -> Option<Event<M>> {
        self.take_over();
        poll_fn(|cx| self.poll_event(cx)).await
    }

    /// Sends a message and waits until it is with the operating system.
    ///
    /// # Errors
    /// [`SendError`].
    ///
    /// # Cancel safety
    /// The message is queued at once or not at all; a queued one is sent by the next call on this socket.
    pub async fn send(&mut self, message: M) -> Result<(), SendError> {
        self.take_over();
        self.flush().await?;
        match message.kind() {
            Kind::Data => {
                let size = message.size();
                self.input(Input::Send(Carried(message)));
                self.touch(size);
            }
            Kind::Control => self.out.push(message),
            Kind::Close => self.hang_up(message),
        }
        if std::mem::take(&mut self.out.unsent) {
            return Err(SendError::Closed);
        }
        self.flush().await
    }

    /// Hands the session over, answering [`Event::Detach`], and waits until the client has gone with it.
    ///
    /// # Errors
    /// [`DetachError`].
    ///
    /// # Cancel safety
    /// The state is queued at once; [`MovableSocket::next`] goes on.
    pub async fn detach(&mut self, state: impl AsRef<[u8]>) -> Result<(), DetachError> {
        let (mid, at) = self.detaching.take().ok_or(DetachError::NotAsked)?;
        let sealed = self.seal(&mid, &at, state.as_ref());
        match &sealed {
            Ok(state) => self.input(Input::Detached { mid, state: state.clone() }),
            // The client is told that there is no state now and not when the time is over.
            Err(_) => self.input(Input::Close(CloseReason::TimedOut, CloseCode::RESTART)),
        }
        self.finish().await;
        sealed?;
        if self.moved { Ok(()) } else { Err(DetachError::Late) }
    }

    /// Does not take the session over that [`Event::Attach`] brought: its client comes back with a gap.
    pub async fn refuse(&mut self) {
        if std::mem::take(&mut self.taking_over) {
            self.input(Input::NotAttached);
            self.finish().await;
        }
    }

    /// Closes with this code and reason, after all that was sent, and waits for the client's answer.
    pub async fn close(&mut self, code: u16, reason: &str) {
        self.hang_up(M::close(code, reason));
        self.finish().await;
    }

    /// Goes on until the connection is closed; nothing more is for the application.
    async fn finish(&mut self) {
        while poll_fn(|cx| self.poll_event(cx)).await.is_some() {}
    }

    async fn flush(&mut self) -> Result<(), SendError> {
        if timeout(SEND_WITHIN, poll_fn(|cx| self.poll_write(cx))).await.is_err() {
            self.end("the client takes nothing");
            return Err(SendError::Stuck);
        }
        if self.ended { Err(SendError::Closed) } else { Ok(()) }
    }

    fn seal(&self, mid: &str, at: &str, state: &[u8]) -> Result<Opaque, DetachError> {
        let handover = Handover { sid: &self.sid, mid, at };
        self.shared.keyring.seal(&handover, state, self.shared.clock.now()).map_err(|error| match error {
            SealError::TooLarge(error) => DetachError::TooLarge { length: error.length },
            SealError::NoKey => DetachError::NoKey,
        })
    }

    /// Nothing more is for or of the machine: the application closes.
    fn hang_up(&mut self, close: M) {
        if self.out.closing.is_none() {
            self.input(Input::Closed);
            self.out.close(close, self.shared.clock.now());
        }
    }

    fn take_over(&mut self) {
        if std::mem::take(&mut self.taking_over) {
            self.input(Input::Attached);
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event<M>>> {
        loop {
            let _ = self.poll_write(cx);
            if let Some(event) = self.events.pop_front() {
                self.taking_over = matches!(event, Event::Attach(_));
                return Poll::Ready(Some(event));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            let woken =
                self.poll_order(cx) || self.poll_drain(cx) || self.poll_read(cx) || self.poll_timer(cx);
            if !woken {
                return Poll::Pending;
            }
        }
    }

    /// Writes what is queued. Ready: all is written, or nothing more can be.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.ended && !self.out.queue.is_empty() {
            match Pin::new(&mut self.native).poll_ready(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => self.failed(&error),
                Poll::Ready(Ok(())) => {
                    let Some(message) = self.out.queue.pop_front() else { break };
                    self.out.flushed = false;
                    if let Err(error) = Pin::new(&mut self.native).start_send(message) {
                        self.failed(&error);
                    }
                }
            }
        }
        if self.ended || self.out.flushed {
            return Poll::Ready(());
        }
        match Pin::new(&mut self.native).poll_flush(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => {
                self.out.flushed = true;
                Poll::Ready(())
            }
            Poll::Ready(Err(error)) => {
                self.failed(&error);
                Poll::Ready(())
            }
        }
    }

    fn poll_order(&mut self, cx: &Context<'_>) -> bool {
        let Hold::Open(connection) = &self.hold else { return false };
        connection.entry.wakes(cx.waker());
        let leaves = connection.entry.leaves();
        if leaves == self.ordered {
            return false;
        }
        self.ordered = leaves;
        match leaves {
            // It stays after all.
            None => return false,
            Some(Leave::Close(reason)) => self.input(Input::Close(reason, reason.code())),
            Some(Leave::Move(reason)) => match self.notice(reason) {
                Some(notice) => self.input(Input::Order(notice)),
                // The key or the chance is gone since it was chosen.
                None => self.input(Input::Close(reason, reason.code())),
            },
        }
        true
    }

    fn notice(&self, reason: CloseReason) -> Option<Notice> {
        Some(Notice {
            mid: Ctl::new(random()?).as_str().to_owned(),
            ticket: self.shared.keyring.ticket(&self.sid, self.shared.clock.now())?,
            by: NOTICE,
            why: reason.reason().to_owned(),
            dialogue: Dialogue::Park,
        })
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(drains) = &mut self.drains else { return false };
        if drains.as_mut().poll(cx).is_pending() {
            return false;
        }
        *drains = Box::pin(Arc::clone(&self.shared.registry.drains).notified_owned());
        self.input(Input::Drain);
        true
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> bool {
        let message = match Pin::new(&mut self.native).poll_next(cx) {
            Poll::Pending => return false,
            Poll::Ready(None) => {
                self.end("closed");
                return true;
            }
            Poll::Ready(Some(Err(error))) => {
                self.failed(&error);
                return true;
            }
            Poll::Ready(Some(Ok(message))) => message,
        };
        match message.kind() {
            Kind::Data => {
                self.touch(message.size());
                self.input(Input::Received(Carried(message)));
            }
            Kind::Control => {}
            // The library answers it with the next read, and then the stream ends.
            Kind::Close => self.out.goodbye = true,
        }
        true
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let due = self.session.poll_timeout().into_iter().chain(self.out.closing).min();
        let Some(at) = due else {
            self.timer = None;
            return false;
        };
        if self.timer.as_ref().is_none_or(|(armed, _)| *armed != at) {
            let Some(on_timer) = self.shared.clock.on_timer(at) else { return false };
            self.timer = Some((at, Box::pin(tokio::time::sleep_until(on_timer))));
        }
        if self.timer.as_mut().is_some_and(|(_, sleep)| sleep.as_mut().poll(cx).is_pending()) {
            return false;
        }
        self.timer = None;
        let now = self.shared.clock.now();
        if self.out.closing.is_some_and(|until| now >= until) {
            self.end("no answer to our Close");
        } else {
            self.session.handle_timeout(now);
            self.perform(now);
        }
        true
    }

    fn failed(&mut self, error: &E) {
        debug!(sid = self.sid, error = %error, "connection failed");
        self.end("failed");
    }

    /// The socket is closed, by whomever.
    fn end(&mut self, how: &'static str) {
        if self.ended {
            return;
        }
        self.ended = true;
        self.out.queue.clear();
        if let Hold::Open(connection) = &self.hold
            && !self.out.goodbye
            && self.out.closing.is_none()
        {
            connection.broke();
        }
        debug!(sid = self.sid, how, "connection ended");
        self.input(Input::Closed);
    }

    fn input(&mut self, input: Input<Carried<M>>) {
        let now = self.shared.clock.now();
        self.session.handle(input, now);
        self.perform(now);
    }

    fn perform(&mut self, now: Instant) {
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::Say(frame) => self.out.push(M::from_text(frame)),
                Output::Send(Carried(message)) => self.out.push(message),
                Output::Close(reason, code) => self.out.close(M::close(code.get(), reason.as_str()), now),
                Output::Deliver(Carried(message)) => self.events.push_back(Event::Message(message)),
                Output::Detach { mid, at } => {
                    self.detaching = Some((mid, at));
                    self.events.push_back(Event::Detach);
                }
                Output::Attach { sid, mid, state } => self.attach(&sid, &mid, &state, now),
                // The application learns it from the end of the events.
                Output::Gone => {}
                Output::Unsent(_) => self.out.unsent = true,
                Output::Settled { mid, how } => self.settled(mid, &how, now),
            }
        }
        self.mark();
    }

    fn attach(&mut self, sid: &str, mid: &str, state: &Opaque, now: Instant) {
        match self.shared.keyring.open(state, sid, mid, now) {
            Ok(state) => {
                self.own(now);
                self.events.push_back(Event::Attach(state));
            }
            Err(refusal) => {
                warn!(sid, reason = refusal.reason(), "state of a moved session refused");
                self.session.handle(Input::NotAttached, now);
            }
        }
    }

    /// The application has it from now on.
    fn own(&mut self, now: Instant) {
        if let Hold::Parked(admission) = &mut self.hold
            && let Some(admission) = admission.take()
        {
            let connection = admission.open();
            connection.entry.spare_moved(now);
            self.hold = Hold::Open(connection);
            self.drains = None;
        }
    }

    fn settled(&mut self, mid: String, how: &Settled, now: Instant) {
        self.moved |= *how == Settled::Moved;
        debug!(sid = self.sid, mid, how = how.reason(), "move ended");
        if !matches!(how, Settled::Moved | Settled::Overdue | Settled::Gone) {
            // It stays, and may be chosen anew at once, also for the same reason.
            self.ordered = None;
        }
        if let Hold::Open(connection) = &self.hold {
            self.shared.registry.settled(&connection.entry, mid, how, now);
        }
    }

    fn mark(&self) {
        if let Hold::Open(connection) = &self.hold {
            let movable = self.marked && !self.ended && self.session.is_movable();
            self.shared.registry.set_movable(&connection.entry, movable);
        }
    }

    fn touch(&self, bytes: usize) {
        if let Hold::Open(connection) = &self.hold {
            connection.touch(bytes);
        }
    }
}

impl<M> Out<M> {
    /// Nothing follows a Close frame.
    fn push(&mut self, message: M) {
        if self.closing.is_none() {
            self.queue.push_back(message);
        } else {
            self.unsent = true;
        }
    }

    fn close(&mut self, frame: M, now: Instant) {
        if self.closing.is_none() {
            self.queue.push_back(frame);
            self.closing = Some(now + CLOSE_WITHIN);
        }
    }
}
