//! One tunnel: bytes pass as they are, frame headers are followed, and a Close can be put between two messages.
//!
//! In: which socket is ready, orders, the present. Out: bytes, and the tunnel's end. Invariants: no buffer of its
//! own while nothing waits; at most [`READ_MAX`] bytes wait per direction, and while they do the other end is not
//! read; a Close of ours never cuts a message unless its time is up; behind it the server's bytes are dropped, and
//! the client's pass until its own Close went through.
//!
//! When a server vanishes without a Close, the client gets one (1012 `ek:server_gone`) if the stream stands between
//! two messages, so that it comes back at once; in the middle of a message only the TCP connection ends.
//!
//! Elsewhere: [`crate::portable`] owns tunnels, waits for their sockets and keeps their time.
//!
//! [`READ_MAX`]: crate::engine::READ_MAX

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use evenkeel_model::Instant;
use evenkeel_protocol::close::{CloseCode, CloseReason};
use evenkeel_protocol::frame::{FrameTracker, Sender, close_frame};
use evenkeel_runtime::Clock;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use crate::engine::{Carry, ConnId, End, Note, READS_PER_TURN, TunnelLimits};

/// What RFC 6455 §7.1.5 calls a connection that ended without a Close.
const ABNORMAL: u16 = 1006;

/// What all tunnels of a thread share; one at a time has its turn with it.
pub(crate) struct Turn {
    pub(crate) clock: Clock,
    pub(crate) limits: TunnelLimits,
    pub(crate) buffer: Box<[u8]>,
    /// The present as of this batch, so that no message reads the clock.
    pub(crate) tick: Instant,
    /// Bytes carried since the post last counted them.
    pub(crate) to_client: u64,
    pub(crate) to_server: u64,
}

/// What a turn came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// Nothing until a socket is ready again.
    Wait,
    /// There is more to read, and others have their turn first.
    Again,
    Ended(End),
}

/// See the module's documentation.
pub(crate) struct Tunnel {
    pub(crate) id: ConnId,
    /// Last bytes in either direction.
    active: Instant,
    bytes: u64,
    note: Arc<Note>,
    /// The timer that is set for it.
    pub(crate) timer: Option<Instant>,
    pub(crate) client: Side,
    pub(crate) server: Side,
    heard: Arc<AtomicBool>,
    up: Lane,
    down: Lane,
    closing: Closing,
}

/// One socket and what its last events said. Events come once (edge-triggered), so what is left undone is noted.
pub(crate) struct Side {
    pub(crate) socket: std::net::TcpStream,
    readable: bool,
    writable: bool,
    /// Its last byte is on its way: read on to the end, however short a read is.
    hung_up: bool,
}

/// One direction.
#[derive(Default)]
struct Lane {
    tracker: FrameTracker,
    backlog: Option<Box<Backlog>>,
    /// The source has sent its last byte.
    ended: bool,
    /// The sink was told so.
    shut: bool,
    /// Nothing passes any more: what comes is read and dropped.
    discard: bool,
}

/// Bytes that the sink did not take yet.
struct Backlog {
    bytes: Vec<u8>,
    sent: usize,
    /// When the sink last took something.
    since: Instant,
}

/// Where our own Close stands.
#[derive(Clone, Copy)]
enum Closing {
    No,
    /// Waits for a boundary.
    Wanted {
        code: CloseCode,
        reason: CloseReason,
        due: Instant,
    },
    /// Went out; the client's own is awaited.
    Sent {
        reason: CloseReason,
        due: Instant,
    },
}

enum Broken {
    Source,
    Sink,
}

enum Read {
    Bytes(usize),
    Nothing,
}

impl Side {
    pub(crate) fn new(socket: std::net::TcpStream) -> Self {
        // Nothing is known yet: one try each says how it stands.
        Self { socket, readable: true, writable: true, hung_up: false }
    }

    /// Notes what an event said.
    pub(crate) fn ready(&mut self, flags: EventFlags) {
        let over = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        self.hung_up |= over;
        self.readable |= over || flags.contains(EventFlags::IN);
        // A broken socket is written to so that it says so, also while its reading is paused.
        self.writable |= flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR);
    }

    /// Reads once; a read shorter than the buffer has drained the socket, so no second one is made to hear so.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let room = buffer.len();
        match recv(&self.socket, buffer, RecvFlags::empty()) {
            Ok((_, length)) => {
                self.readable = length == room || (self.hung_up && length > 0);
                Ok(length)
            }
            Err(error) => {
                self.readable = false;
                Err(error)
            }
        }
    }

    /// Writes once. 0: the socket is full.
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        match send(&self.socket, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) => Ok(sent),
            Err(Errno::AGAIN) => {
                self.writable = false;
                Ok(0)
            }
            Err(Errno::INTR) => self.write(bytes),
            Err(_) => Err(Broken::Sink),
        }
    }

    fn finish(&self) -> Result<(), Broken> {
        shutdown(&self.socket, Shutdown::Write).map_err(|_| Broken::Sink)
    }
}

impl Tunnel {
    pub(crate) fn new(carry: Carry, now: Instant) -> Self {
        let Carry { id, client, server, first, heard, note } = carry;
        let (mut up, mut down) = (Lane::default(), Lane::default());
        down.tracker.feed(&first.to_client);
        up.tracker.feed(&first.to_server);
        let mut head = first.head;
        head.extend_from_slice(&first.to_client);
        down.backlog = Backlog::of(head, now);
        up.backlog = Backlog::of(first.to_server, now);
        Self {
            id,
            active: now,
            bytes: 0,
            note,
            timer: None,
            client: Side::new(client),
            server: Side::new(server),
            heard,
            up,
            down,
            closing: Closing::No,
        }
    }

    /// Wants a Close of ours at the next boundary.
    pub(crate) fn close(&mut self, code: CloseCode, reason: CloseReason, due: Instant) {
        if matches!(self.closing, Closing::No) {
            self.closing = Closing::Wanted { code, reason, due };
        }
    }

    /// Moves what can be moved.
    pub(crate) fn turn(&mut self, turn: &mut Turn) -> After {
        let mut again = false;
        match self.pump_down(turn) {
            Ok(more) => again |= more,
            Err(Broken::Sink) => return After::Ended(self.client_lost()),
            Err(Broken::Source) => {
                self.down.ended = true;
                self.up.discard = true;
            }
        }
        match self.pump_up(turn) {
            Ok(more) => again |= more,
            Err(Broken::Source) => return After::Ended(self.client_lost()),
            // Its last bytes may still be on their way down.
            Err(Broken::Sink) => self.up.give_up(),
        }
        if (self.down.ended || self.up.ended || !matches!(self.closing, Closing::No))
            && let Some(end) = self.towards_the_end(turn)
        {
            return After::Ended(end);
        }
        if again { After::Again } else { After::Wait }
    }

    /// Passes on what has ended; says how the tunnel ended, if it did.
    fn towards_the_end(&mut self, turn: &mut Turn) -> Option<End> {
        let server_first = self.down.ended && !self.up.ended;
        if server_first && self.down.tracker.closed().is_none() && self.up.tracker.closed().is_none() {
            self.server_gone(turn);
        }
        if self.down.finish(&self.client).is_err() {
            return Some(self.client_lost());
        }
        if self.up.finish(&self.server).is_err() {
            self.up.give_up();
        }
        self.after_close();
        self.over()
    }

    /// A client that breaks off after our Close did as it was told.
    fn client_lost(&self) -> End {
        match self.closing {
            Closing::Sent { reason, .. } if reason != CloseReason::ServerGone => End::Ordered(reason),
            _ => End::ClientLost,
        }
    }

    fn pump_down(&mut self, turn: &mut Turn) -> Result<bool, Broken> {
        for _ in 0..READS_PER_TURN {
            if !self.down.flush(&mut self.client, turn)? {
                return Ok(false);
            }
            if matches!(self.closing, Closing::Wanted { .. }) && self.down.tracker.between_messages() {
                self.inject(turn)?;
            }
            let Read::Bytes(length) = self.down.read(&mut self.server, turn)? else { return Ok(false) };
            self.heard.store(true, Ordering::Relaxed);
            turn.to_client += length as u64;
            self.note(length, turn.tick);
            if self.down.discard {
                continue;
            }
            let bytes = &turn.buffer[..length];
            let pass = match self.closing {
                Closing::Wanted { .. } => self.down.tracker.feed_to_boundary(bytes).unwrap_or(length),
                _ => {
                    self.down.tracker.feed(bytes);
                    length
                }
            };
            self.down.send(&mut self.client, &bytes[..pass], turn.clock)?;
        }
        Ok(true)
    }

    fn pump_up(&mut self, turn: &mut Turn) -> Result<bool, Broken> {
        for _ in 0..READS_PER_TURN {
            if !self.up.flush(&mut self.server, turn)? {
                return Ok(false);
            }
            let Read::Bytes(length) = self.up.read(&mut self.client, turn)? else { return Ok(false) };
            turn.to_server += length as u64;
            self.note(length, turn.tick);
            let bytes = &turn.buffer[..length];
            self.up.tracker.feed(bytes);
            if !self.up.discard {
                self.up.send(&mut self.server, bytes, turn.clock)?;
            }
        }
        Ok(true)
    }

    fn note(&mut self, bytes: usize, tick: Instant) {
        self.bytes += bytes as u64;
        self.active = tick;
        self.note.set(tick, self.bytes);
    }

    /// Puts our Close behind what the client still gets. From here on the server's bytes are dropped.
    fn inject(&mut self, turn: &mut Turn) -> Result<(), Broken> {
        let Closing::Wanted { code, reason, .. } = self.closing else { return Ok(()) };
        let due = turn.clock.now() + turn.limits.close_wait;
        self.closing = Closing::Sent { reason, due };
        self.down.discard = true;
        let frame = close_frame(Sender::Server, code.get(), reason.as_str(), [0; 4]);
        self.down.tracker.feed(&frame);
        self.down.send(&mut self.client, &frame, turn.clock)
    }

    /// The server ended without a Close: tell the client if that cuts nothing.
    fn server_gone(&mut self, turn: &mut Turn) {
        let (code, reason) = match self.closing {
            Closing::Sent { .. } => return,
            Closing::Wanted { code, reason, .. } => (code, reason),
            Closing::No => (CloseReason::ServerGone.code(), CloseReason::ServerGone),
        };
        let due = turn.clock.now() + turn.limits.close_wait;
        if self.down.tracker.between_messages() {
            self.closing = Closing::Wanted { code, reason, due };
            // A client that is gone as well is noticed when the rest is flushed.
            let _ = self.inject(turn);
        } else {
            self.closing = Closing::Sent { reason, due };
        }
    }

    /// Once the client answered our Close (or is gone), both TCP connections may end, the server's by itself.
    fn after_close(&mut self) {
        let answered = self.up.tracker.closed().is_some() || self.up.ended;
        if !matches!(self.closing, Closing::Sent { .. }) || !answered || self.up.backlog.is_some() {
            return;
        }
        self.up.discard = true;
        if self.down.backlog.is_none() && !self.down.shut {
            self.down.shut = true;
            let _ = self.client.finish();
        }
    }

    fn over(&self) -> Option<End> {
        let Closing::Sent { reason, .. } = self.closing else {
            let closed = self.up.tracker.closed().or(self.down.tracker.closed()).is_some();
            // Without a Close it was the client that went first, else the server would be the one that is gone.
            let end = if closed { End::Finished } else { End::ClientLost };
            return (self.up.shut && self.down.shut).then_some(end);
        };
        let client_done = self.up.ended || self.up.tracker.closed().is_some();
        let flushed = self.up.backlog.is_none() && self.down.backlog.is_none();
        (client_done && flushed && self.down.ended).then_some(ended_by(reason))
    }

    /// When something must happen though no byte moves.
    pub(crate) fn due(&self, limits: &TunnelLimits) -> Option<Instant> {
        let closing = match self.closing {
            Closing::No => limits.idle.map(|idle| self.active + idle),
            Closing::Wanted { due, .. } | Closing::Sent { due, .. } => Some(due),
        };
        let stalled =
            |lane: &Lane| lane.backlog.as_ref().map(|backlog| backlog.since + limits.write_deadline);
        [closing, stalled(&self.up), stalled(&self.down), self.half_open_due(limits)]
            .into_iter()
            .flatten()
            .min()
    }

    /// Counted from the last byte of either end.
    fn half_open_due(&self, limits: &TunnelLimits) -> Option<Instant> {
        let half = self.up.ended || self.down.ended || self.up.tracker.closed().is_some();
        half.then(|| self.active + limits.half_open)
    }

    /// Does what is due by now; says how the tunnel ended, if it did.
    pub(crate) fn handle_timeout(&mut self, turn: &mut Turn) -> Option<End> {
        let now = turn.tick;
        match self.closing {
            Closing::No if turn.limits.idle.is_some_and(|idle| now >= self.active + idle) => {
                let due = now + turn.limits.close_wait;
                self.close(CloseReason::TimedOut.code(), CloseReason::TimedOut, due);
            }
            Closing::Sent { reason, due } if now >= due => return Some(ended_by(reason)),
            Closing::Wanted { reason, due, .. } if now >= due => {
                // A message that does not end: a control frame may still stand between two of its frames.
                if self.down.tracker.between_frames() && self.down.backlog.is_none() {
                    let _ = self.inject(turn);
                    let _ = self.client.finish();
                }
                return Some(End::Ordered(reason));
            }
            _ => {}
        }
        let limit = turn.limits.write_deadline;
        let stalled = |lane: &Lane| lane.backlog.as_ref().is_some_and(|backlog| now >= backlog.since + limit);
        if stalled(&self.up) || stalled(&self.down) {
            return Some(End::WriteDeadline);
        }
        self.half_open_due(&turn.limits).filter(|due| now >= *due).map(|_| End::HalfOpen)
    }

    /// The code of the first Close that went to the client, else of the client's own; 1006 without any.
    pub(crate) fn close_code(&self) -> u16 {
        self.down.tracker.closed().or(self.up.tracker.closed()).unwrap_or(ABNORMAL)
    }
}

const fn ended_by(reason: CloseReason) -> End {
    match reason {
        CloseReason::ServerGone => End::ServerLost,
        reason => End::Ordered(reason),
    }
}

impl Lane {
    fn read(&mut self, source: &mut Side, turn: &mut Turn) -> Result<Read, Broken> {
        if self.ended || !source.readable {
            return Ok(Read::Nothing);
        }
        match source.read(&mut turn.buffer) {
            Ok(0) => {
                self.ended = true;
                Ok(Read::Nothing)
            }
            Ok(length) => Ok(Read::Bytes(length)),
            Err(Errno::AGAIN) => Ok(Read::Nothing),
            Err(Errno::INTR) => {
                source.readable = true;
                self.read(source, turn)
            }
            Err(_) => {
                self.ended = true;
                Err(Broken::Source)
            }
        }
    }

    /// Writes at once, while the bytes are hot; what the sink does not take waits.
    fn send(&mut self, sink: &mut Side, bytes: &[u8], clock: Clock) -> Result<(), Broken> {
        if let Some(backlog) = &mut self.backlog {
            backlog.bytes.extend_from_slice(bytes);
            return Ok(());
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let sent = sink.write(rest)?;
            if sent == 0 {
                self.backlog = Backlog::of(rest.to_vec(), clock.now());
                break;
            }
            rest = &rest[sent..];
        }
        Ok(())
    }

    /// Writes what waits; false: the sink takes no more for now.
    fn flush(&mut self, sink: &mut Side, turn: &Turn) -> Result<bool, Broken> {
        let Some(backlog) = &mut self.backlog else { return Ok(true) };
        while backlog.sent < backlog.bytes.len() {
            let sent = if sink.writable { sink.write(&backlog.bytes[backlog.sent..])? } else { 0 };
            if sent == 0 {
                return Ok(false);
            }
            backlog.sent += sent;
            backlog.since = turn.clock.now();
        }
        self.backlog = None;
        Ok(true)
    }

    /// Passes the source's end on, once everything before it went out.
    fn finish(&mut self, sink: &Side) -> Result<(), Broken> {
        if self.ended && !self.shut && self.backlog.is_none() {
            self.shut = true;
            return sink.finish();
        }
        Ok(())
    }

    /// The sink is gone: nothing more can reach it.
    fn give_up(&mut self) {
        self.discard = true;
        self.backlog = None;
        self.shut = true;
    }
}

impl Backlog {
    fn of(bytes: Vec<u8>, since: Instant) -> Option<Box<Self>> {
        (!bytes.is_empty()).then(|| Box::new(Self { bytes, sent: 0, since }))
    }
}
