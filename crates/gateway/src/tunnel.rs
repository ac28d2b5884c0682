//! One tunnel: bytes pass as they are, frame headers are followed, and a Close can be put between two messages.
//!
//! In: both sockets after the 101, and orders through [`Control`]. Out: bytes, and the tunnel's end. Invariants:
//! no buffer of its own while nothing waits; at most [`READ_MAX`] bytes wait per direction, and while they do the
//! other end is not read; a Close of ours never cuts a message unless its time is up; behind it the server's bytes
//! are dropped, and the client's pass until its own Close went through.
//!
//! When a server vanishes without a Close, the client gets one (1012 `ek:server_gone`) if the stream stands between
//! two messages, so that it comes back at once; in the middle of a message only the TCP connection ends.
//!
//! Elsewhere: [`crate::engine`] starts tunnels and keeps their list.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use evenkeel_model::Instant;
use evenkeel_protocol::close::{CloseCode, CloseReason};
use evenkeel_protocol::frame::{FrameTracker, Sender, close_frame};
use evenkeel_protocol::handshake;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::engine::{Control, End, READS_PER_TURN, Shared};

/// What RFC 6455 §7.1.5 calls a connection that ended without a Close.
const ABNORMAL: u16 = 1006;

/// See the module's documentation.
pub(crate) struct Tunnel {
    shared: Rc<Shared>,
    control: Rc<Control>,
    client: TcpStream,
    server: TcpStream,
    /// Client to server.
    up: Lane,
    /// Server to client.
    down: Lane,
    closing: Closing,
    timer: Option<Timer>,
    ended: Option<End>,
}

/// When it wakes and the sleep itself; there is none while nothing is due.
type Timer = (Instant, Pin<Box<dyn Future<Output = ()>>>);

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

impl Tunnel {
    pub(crate) fn new(
        shared: Rc<Shared>,
        control: Rc<Control>,
        client: TcpStream,
        server: TcpStream,
        first: handshake::Tunnel,
    ) -> Self {
        let now = control.opened;
        let (mut up, mut down) = (Lane::default(), Lane::default());
        down.tracker.feed(&first.to_client);
        up.tracker.feed(&first.to_server);
        let mut head = first.head;
        head.extend_from_slice(&first.to_client);
        down.backlog = Backlog::of(head, now);
        up.backlog = Backlog::of(first.to_server, now);
        Self { shared, control, client, server, up, down, closing: Closing::No, timer: None, ended: None }
    }

    fn take_order(&mut self) {
        if self.control.aborted.get() {
            self.ended = Some(End::Aborted);
        }
        if let Some((code, reason)) = self.control.order.take()
            && matches!(self.closing, Closing::No)
        {
            let due = self.shared.clock.now() + self.shared.limits.close_wait;
            self.closing = Closing::Wanted { code, reason, due };
        }
    }

    /// Moves what can be moved; says how the tunnel ended, if it did.
    fn turn(&mut self, context: &mut Context<'_>) -> Option<End> {
        let shared = Rc::clone(&self.shared);
        let mut buffer = shared.buffer.borrow_mut();
        if let Err(broken) = self.pump_down(context, &mut buffer) {
            match broken {
                Broken::Sink => return Some(self.client_lost()),
                Broken::Source => {
                    self.down.ended = true;
                    self.up.discard = true;
                }
            }
        }
        if let Err(broken) = self.pump_up(context, &mut buffer) {
            match broken {
                Broken::Source => return Some(self.client_lost()),
                // Its last bytes may still be on their way down.
                Broken::Sink => self.up.give_up(),
            }
        }
        if self.down.ended && self.down.tracker.closed().is_none() && self.up.tracker.closed().is_none() {
            self.server_gone(context);
        }
        if let Err(Broken::Sink) = self.down.finish(&mut self.client, context) {
            return Some(self.client_lost());
        }
        if self.up.finish(&mut self.server, context).is_err() {
            self.up.give_up();
        }
        self.after_close(context);
        self.over()
    }

    /// A client that breaks off after our Close did as it was told.
    fn client_lost(&self) -> End {
        match self.closing {
            Closing::Sent { reason, .. } if reason != CloseReason::ServerGone => End::Ordered(reason),
            _ => End::ClientLost,
        }
    }

    fn pump_down(&mut self, context: &mut Context<'_>, buffer: &mut [u8]) -> Result<(), Broken> {
        for _ in 0..READS_PER_TURN {
            if self.down.flush(&mut self.client, context, &self.shared)?.is_pending() {
                return Ok(());
            }
            if matches!(self.closing, Closing::Wanted { .. }) && self.down.tracker.between_messages() {
                self.inject(context)?;
            }
            let Poll::Ready(read) = self.down.read(&mut self.server, context, buffer) else { return Ok(()) };
            let bytes = &buffer[..read?];
            if bytes.is_empty() {
                return Ok(());
            }
            self.control.heard.set(true);
            self.note(bytes.len(), &self.shared.to_client);
            if self.down.discard {
                continue;
            }
            let pass = match self.closing {
                Closing::Wanted { .. } => self.down.tracker.feed_to_boundary(bytes).unwrap_or(bytes.len()),
                _ => {
                    self.down.tracker.feed(bytes);
                    bytes.len()
                }
            };
            self.down.send(&mut self.client, context, &bytes[..pass], &self.shared)?;
        }
        context.waker().wake_by_ref();
        Ok(())
    }

    fn pump_up(&mut self, context: &mut Context<'_>, buffer: &mut [u8]) -> Result<(), Broken> {
        for _ in 0..READS_PER_TURN {
            if self.up.flush(&mut self.server, context, &self.shared)?.is_pending() {
                return Ok(());
            }
            let Poll::Ready(read) = self.up.read(&mut self.client, context, buffer) else { return Ok(()) };
            let bytes = &buffer[..read?];
            if bytes.is_empty() {
                return Ok(());
            }
            self.note(bytes.len(), &self.shared.to_server);
            if self.up.tracker.closed().is_none() {
                self.up.tracker.feed(bytes);
            }
            if !self.up.discard {
                self.up.send(&mut self.server, context, bytes, &self.shared)?;
            }
        }
        context.waker().wake_by_ref();
        Ok(())
    }

    fn note(&self, bytes: usize, total: &std::cell::Cell<u64>) {
        let bytes = bytes as u64;
        total.set(total.get() + bytes);
        self.control.bytes.set(self.control.bytes.get() + bytes);
        self.control.active.set(self.shared.tick.get());
    }

    /// Puts our Close behind what the client still gets. From here on the server's bytes are dropped.
    fn inject(&mut self, context: &mut Context<'_>) -> Result<(), Broken> {
        let Closing::Wanted { code, reason, .. } = self.closing else { return Ok(()) };
        let due = self.shared.clock.now() + self.shared.limits.close_wait;
        self.closing = Closing::Sent { reason, due };
        self.down.discard = true;
        let frame = close_frame(Sender::Server, code.get(), reason.as_str(), [0; 4]);
        self.down.send(&mut self.client, context, &frame, &self.shared)
    }

    /// The server ended without a Close: tell the client if that cuts nothing.
    fn server_gone(&mut self, context: &mut Context<'_>) {
        if matches!(self.closing, Closing::Sent { .. }) {
            return;
        }
        let (code, reason) = match self.closing {
            Closing::Wanted { code, reason, .. } => (code, reason),
            _ => (CloseReason::ServerGone.code(), CloseReason::ServerGone),
        };
        let due = self.shared.clock.now() + self.shared.limits.close_wait;
        if self.down.tracker.between_messages() {
            self.closing = Closing::Wanted { code, reason, due };
            // A client that is gone as well is noticed when the rest is flushed.
            let _ = self.inject(context);
        } else {
            self.closing = Closing::Sent { reason, due };
        }
    }

    /// Once the client answered our Close (or is gone), both TCP connections may end, the server's by itself.
    fn after_close(&mut self, context: &mut Context<'_>) {
        let answered = self.up.tracker.closed().is_some() || self.up.ended;
        if !matches!(self.closing, Closing::Sent { .. }) || !answered || self.up.backlog.is_some() {
            return;
        }
        self.up.discard = true;
        if self.down.backlog.is_none() && !self.down.shut {
            self.down.shut = true;
            let _ = Pin::new(&mut self.client).poll_shutdown(context);
        }
    }

    fn over(&self) -> Option<End> {
        let reason = match self.closing {
            Closing::Sent { reason: CloseReason::ServerGone, .. } => Some(End::ServerLost),
            Closing::Sent { reason, .. } => Some(End::Ordered(reason)),
            _ => None,
        };
        if let Some(end) = reason {
            let client_done = self.up.ended || self.up.tracker.closed().is_some();
            let flushed = self.up.backlog.is_none() && self.down.backlog.is_none();
            return (client_done && flushed && self.down.ended).then_some(end);
        }
        (self.up.shut && self.down.shut).then_some(End::Finished)
    }

    /// When something must happen though no byte moves.
    fn due(&self) -> Option<Instant> {
        let limits = &self.shared.limits;
        let closing = match self.closing {
            Closing::No => None,
            Closing::Wanted { due, .. } | Closing::Sent { due, .. } => Some(due),
        };
        let stalled =
            |lane: &Lane| lane.backlog.as_ref().map(|backlog| backlog.since + limits.write_deadline);
        [closing, stalled(&self.up), stalled(&self.down), self.half_open_due()].into_iter().flatten().min()
    }

    /// Counted from the last byte of either end.
    fn half_open_due(&self) -> Option<Instant> {
        let half = self.up.ended || self.down.ended || self.up.tracker.closed().is_some();
        half.then(|| self.control.active.get() + self.shared.limits.half_open)
    }

    /// What is due by now, if anything.
    fn overdue(&mut self, now: Instant, context: &mut Context<'_>) -> Option<End> {
        match self.closing {
            Closing::Sent { reason, due } if now >= due => {
                let lost = reason == CloseReason::ServerGone;
                return Some(if lost { End::ServerLost } else { End::Ordered(reason) });
            }
            Closing::Wanted { reason, due, .. } if now >= due => {
                // A message that does not end: a control frame may still stand between two of its frames.
                if self.down.tracker.between_frames() && self.down.backlog.is_none() {
                    let _ = self.inject(context);
                    let _ = Pin::new(&mut self.client).poll_shutdown(context);
                }
                return Some(End::Ordered(reason));
            }
            _ => {}
        }
        let limit = self.shared.limits.write_deadline;
        let stalled = |lane: &Lane| lane.backlog.as_ref().is_some_and(|backlog| now >= backlog.since + limit);
        if stalled(&self.up) || stalled(&self.down) {
            return Some(End::WriteDeadline);
        }
        self.half_open_due().filter(|due| now >= *due).map(|_| End::HalfOpen)
    }

    /// Sleeps until what is due; says whether it is.
    fn poll_timer(&mut self, context: &mut Context<'_>) -> bool {
        let Some(due) = self.due() else {
            self.timer = None;
            return false;
        };
        if self.timer.as_ref().is_none_or(|(at, _)| *at != due) {
            let clock = self.shared.clock;
            self.timer = Some((due, Box::pin(async move { clock.sleep_until(Some(due)).await })));
        }
        self.timer.as_mut().is_some_and(|(_, sleep)| sleep.as_mut().poll(context).is_ready())
    }

    fn remember(&self, context: &Context<'_>) {
        let known =
            self.control.waker.borrow().as_ref().is_some_and(|waker| waker.will_wake(context.waker()));
        if !known {
            *self.control.waker.borrow_mut() = Some(context.waker().clone());
        }
    }
}

impl Future for Tunnel {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        this.remember(context);
        this.take_order();
        loop {
            if this.ended.is_none() {
                this.ended = this.turn(context);
            }
            if this.ended.is_some() {
                return Poll::Ready(());
            }
            if !this.poll_timer(context) {
                return Poll::Pending;
            }
            this.timer = None;
            let now = this.shared.clock.now();
            // Nothing after all: what is due has moved on, and the next round sets the timer anew.
            this.ended = this.overdue(now, context);
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let ours = match self.closing {
            Closing::Sent { .. } if self.down.discard => self.down.tracker.closed(),
            _ => None,
        };
        let code = ours.or(self.up.tracker.closed()).or(self.down.tracker.closed()).unwrap_or(ABNORMAL);
        self.shared.closed(&self.control, self.ended.unwrap_or(End::Aborted), code);
    }
}

impl Lane {
    /// Reads once; 0 is the end or nothing to read any more.
    fn read(
        &mut self,
        source: &mut TcpStream,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<Result<usize, Broken>> {
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        let mut into = ReadBuf::new(buffer);
        // A read shorter than the buffer marks the socket as drained: no second call only to hear so.
        let read = ready!(Pin::new(source).poll_read(context, &mut into));
        let length = into.filled().len();
        self.ended = read.is_err() || length == 0;
        Poll::Ready(read.map(|()| length).map_err(|_| Broken::Source))
    }

    /// Writes at once, while the bytes are hot; what the sink does not take waits.
    fn send(
        &mut self,
        sink: &mut TcpStream,
        context: &mut Context<'_>,
        bytes: &[u8],
        shared: &Shared,
    ) -> Result<(), Broken> {
        if let Some(backlog) = &mut self.backlog {
            backlog.bytes.extend_from_slice(bytes);
            return Ok(());
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match Pin::new(&mut *sink).poll_write(context, rest) {
                Poll::Ready(written) => rest = &rest[written.map_err(|_| Broken::Sink)?..],
                Poll::Pending => {
                    self.backlog = Backlog::of(rest.to_vec(), shared.clock.now());
                    break;
                }
            }
        }
        Ok(())
    }

    /// Writes what waits. Pending: the sink takes no more for now.
    fn flush(
        &mut self,
        sink: &mut TcpStream,
        context: &mut Context<'_>,
        shared: &Shared,
    ) -> Result<Poll<()>, Broken> {
        let Some(backlog) = &mut self.backlog else { return Ok(Poll::Ready(())) };
        while backlog.sent < backlog.bytes.len() {
            match Pin::new(&mut *sink).poll_write(context, &backlog.bytes[backlog.sent..]) {
                Poll::Ready(written) => {
                    backlog.sent += written.map_err(|_: io::Error| Broken::Sink)?;
                    backlog.since = shared.clock.now();
                }
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
        self.backlog = None;
        Ok(Poll::Ready(()))
    }

    /// Passes the source's end on, once everything before it went out.
    fn finish(&mut self, sink: &mut TcpStream, context: &mut Context<'_>) -> Result<(), Broken> {
        if self.ended && !self.shut && self.backlog.is_none() {
            self.shut = true;
            if let Poll::Ready(Err(_)) = Pin::new(sink).poll_shutdown(context) {
                return Err(Broken::Sink);
            }
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
