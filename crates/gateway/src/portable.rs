//! The portable engine: one thread, one epoll set, one list of tunnels. No task, no timer and no lock per message.
//!
//! In: orders from its [`Post`]. Out: bytes, events to the same post. Invariants: each socket is added once,
//! edge-triggered, and never modified; no tunnel has a buffer of its own while nothing waits; at most [`READ_MAX`]
//! bytes wait per direction, and while they do the other end is not read; the post hears when the thread ends, however
//! it ends. Elsewhere: a tunnel's rules ([`crate::tunnel`]), the interface ([`crate::engine`]).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use evenkeel_model::{Duration, Instant};
use evenkeel_runtime::Clock;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tracing::error;

use crate::engine::{Carry, End, Event, Going, Order, Post, READ_MAX, READS_PER_TURN, TunnelLimits};
use crate::seats::{Seat, Seats};
use crate::socket;
use crate::tunnel::{Action, Side, Tunnel, Turn};

/// Events taken at once.
const BATCH: usize = 256;
/// The post's own token; those of sockets are a place and a side.
const ORDERED: u64 = u64::MAX;

/// Starts the engine's thread.
///
/// # Errors
/// What the system said to another epoll set or thread.
pub(crate) fn start(post: Arc<Post>, clock: Clock, limits: TunnelLimits) -> io::Result<JoinHandle<()>> {
    let poll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&poll, &post.ordered, EventData::new_u64(ORDERED), EventFlags::IN)?;
    let carrier = Carrier {
        turn: Turn { limits, tick: clock.now(), to_client: 0, to_server: 0 },
        buffer: vec![0; READ_MAX].into_boxed_slice(),
        clock,
        post,
        poll,
        seats: Seats::new(),
        again: Vec::new(),
        ended: Vec::new(),
    };
    std::thread::Builder::new().name("tunnels".into()).spawn(move || carrier.run())
}

struct Carrier {
    turn: Turn,
    buffer: Box<[u8]>,
    clock: Clock,
    post: Arc<Post>,
    poll: OwnedFd,
    seats: Seats<Ends>,
    /// Places that want another turn without an event.
    again: Vec<u32>,
    ended: Vec<Event>,
}

struct Ends {
    client: Wire,
    server: Wire,
}

/// One socket and what its last events said. Events come once (edge-triggered), so what is left undone is noted.
struct Wire {
    socket: std::net::TcpStream,
    readable: bool,
    writable: bool,
    /// Its last byte is on its way: read on to the end, however short a read is.
    hung_up: bool,
    /// What it did not take yet.
    backlog: Option<Box<Backlog>>,
}

struct Backlog {
    bytes: Vec<u8>,
    sent: usize,
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.post.leave();
    }
}

impl Carrier {
    fn run(mut self) {
        let none = epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        let mut ready = [none; BATCH];
        loop {
            let limit = self.limit();
            let count = match epoll::wait(&self.poll, &mut ready[..], limit.as_ref()) {
                Ok(count) => count,
                Err(Errno::INTR) => 0,
                Err(errno) => return error!(error = %errno, "tunnels cannot be waited for"),
            };
            self.turn.tick = self.clock.now();
            let ordered = self.batch(&ready[..count]);
            for at in std::mem::take(&mut self.again) {
                self.run_turn(at);
            }
            while let Some(at) = self.seats.fire(self.turn.tick) {
                if let Some(seat) = self.seats.get(at) {
                    seat.tunnel.handle_timeout(&self.turn);
                }
                self.run_turn(at);
            }
            let going = if ordered { self.take_orders() } else { Going::On };
            self.seats.batch_over();
            self.post
                .count(std::mem::take(&mut self.turn.to_client), std::mem::take(&mut self.turn.to_server));
            self.post.report(&mut self.ended);
            if going == Going::Stop {
                return;
            }
        }
    }

    /// How long to wait for events; `None`: until there are some.
    fn limit(&self) -> Option<Timespec> {
        let left =
            if self.again.is_empty() { self.seats.next_timer(self.clock.now())? } else { Duration::ZERO };
        // The system may round down to a millisecond; one more keeps the thread from waking for nothing.
        let left = if left.is_zero() { left } else { left + Duration::from_millis(1) };
        Timespec::try_from(left).ok()
    }

    /// Gives those with events their turn; says whether orders wait.
    fn batch(&mut self, ready: &[epoll::Event]) -> bool {
        let mut ordered = false;
        for &epoll::Event { flags, data } in ready {
            let token = data.u64();
            if token == ORDERED {
                ordered = true;
                continue;
            }
            let at = (token >> 1) as u32;
            if let Some(seat) = self.seats.get(at) {
                seat.ends.wire(if token & 1 == 0 { Side::Client } else { Side::Server }).ready(flags);
                self.run_turn(at);
            }
        }
        ordered
    }

    fn take_orders(&mut self) -> Going {
        let mut going = Going::On;
        for order in self.post.take_orders() {
            match order {
                Order::Carry(carry) => self.carry(*carry),
                Order::Close { id, code, reason } => {
                    let Some(at) = self.seats.find(id) else { continue };
                    if let Some(seat) = self.seats.get(at) {
                        seat.tunnel.close(code, reason, &self.turn);
                    }
                    self.run_turn(at);
                }
                Order::Stop => going = Going::Stop,
            }
        }
        if going == Going::Stop {
            for at in self.seats.places() {
                self.end(at, End::Aborted);
            }
        }
        going
    }

    fn carry(&mut self, carry: Carry) {
        let at = self.seats.place();
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let add = |socket: &std::net::TcpStream, side: u64| {
            epoll::add(&self.poll, socket, EventData::new_u64(u64::from(at) << 1 | side), flags)
        };
        if add(&carry.client, 0).and_then(|()| add(&carry.server, 1)).is_err() {
            self.seats.spare(at);
            self.ended.push(Event::Closed { id: carry.id, why: End::Unwatched, code: 1006 });
            return;
        }
        let Carry { id, client, server, first, heard, note } = carry;
        let (to_client, to_server) = (&first.to_client, &first.to_server);
        let mut tunnel = Tunnel::new((id, note, heard), to_client, to_server, self.turn.tick);
        let head = [first.head, first.to_client].concat();
        let mut ends = Ends { client: Wire::new(client), server: Wire::new(server) };
        for (side, bytes) in [(Side::Client, head), (Side::Server, first.to_server)] {
            if !bytes.is_empty() {
                ends.wire(side).backlog = Some(Box::new(Backlog { bytes, sent: 0 }));
                tunnel.sink_waits(side, self.turn.tick);
            }
        }
        self.seats.sit(at, Seat { tunnel, ends });
        self.run_turn(at);
    }

    fn run_turn(&mut self, at: u32) {
        let Some(seat) = self.seats.get(at) else { return };
        match seat.turn(&mut self.buffer, &mut self.turn) {
            After::Wait => {}
            After::Again => self.again.push(at),
            After::Ended(end) => return self.end(at, end),
        }
        self.seats.set_timer(at, &self.turn.limits);
    }

    /// Closes its sockets.
    fn end(&mut self, at: u32, why: End) {
        if let Some(seat) = self.seats.leave(at) {
            self.ended.push(Event::Closed { id: seat.tunnel.id, why, code: seat.tunnel.close_code() });
        }
    }
}

/// What a turn came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// Nothing until a socket is ready again.
    Wait,
    /// There is more to read, and others have their turn first.
    Again,
    Ended(End),
}

impl Ends {
    fn wire(&mut self, side: Side) -> &mut Wire {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }

    /// The wires that bytes from this end take.
    fn lane(&mut self, from: Side) -> (&mut Wire, &mut Wire) {
        match from {
            Side::Client => (&mut self.client, &mut self.server),
            Side::Server => (&mut self.server, &mut self.client),
        }
    }
}

impl Seat<Ends> {
    /// Moves what can be moved.
    fn turn(&mut self, buffer: &mut [u8], turn: &mut Turn) -> After {
        if let Some(end) = self.act(turn) {
            return After::Ended(end);
        }
        let down = self.pump(Side::Server, buffer, turn);
        let up = self.pump(Side::Client, buffer, turn);
        match self.act(turn) {
            Some(end) => After::Ended(end),
            None if down || up => After::Again,
            None => After::Wait,
        }
    }

    /// Does what the tunnel says, up to its end.
    fn act(&mut self, turn: &Turn) -> Option<End> {
        while let Some(action) = self.tunnel.next(turn) {
            match action {
                Action::Close(frame) => self.send(Side::Client, &frame, turn.tick),
                Action::Finish(side) => {
                    if socket::finish(&self.ends.wire(side).socket).is_err() {
                        self.sink_broke(side);
                    }
                }
                Action::End(end) => return Some(end),
            }
        }
        None
    }

    /// Passes on what came from this end; true: there is more, for another turn.
    fn pump(&mut self, from: Side, buffer: &mut [u8], turn: &mut Turn) -> bool {
        for _ in 0..READS_PER_TURN {
            if !self.flush(from.other(), turn.tick) || !self.tunnel.listens(from) {
                return false;
            }
            let source = self.ends.wire(from);
            if !source.readable {
                return false;
            }
            match source.read(buffer) {
                Ok(0) => {
                    self.tunnel.source_ended(from);
                    return false;
                }
                Ok(length) => {
                    let pass = self.tunnel.received(from, &buffer[..length], turn);
                    self.send(from.other(), &buffer[..pass], turn.tick);
                }
                Err(Errno::AGAIN) => return false,
                Err(_) => {
                    self.tunnel.source_broke(from);
                    return false;
                }
            }
        }
        true
    }

    /// Writes at once, while the bytes are hot; what the sink does not take waits.
    fn send(&mut self, to: Side, bytes: &[u8], now: Instant) {
        let (_, sink) = self.ends.lane(to.other());
        if let Some(backlog) = &mut sink.backlog {
            return backlog.bytes.extend_from_slice(bytes);
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match sink.write(rest) {
                Ok(0) => {
                    sink.backlog = Some(Box::new(Backlog { bytes: rest.to_vec(), sent: 0 }));
                    return self.tunnel.sink_waits(to, now);
                }
                Ok(sent) => rest = &rest[sent..],
                Err(_) => return self.sink_broke(to),
            }
        }
    }

    /// Writes what waits; false: the sink takes no more for now.
    fn flush(&mut self, to: Side, now: Instant) -> bool {
        let sink = self.ends.wire(to);
        let Some(backlog) = &mut sink.backlog else { return true };
        if !sink.writable {
            return false;
        }
        let before = backlog.sent;
        let outcome = flush(&sink.socket, backlog);
        let took = backlog.sent > before;
        match outcome {
            Ok(true) => {
                sink.backlog = None;
                self.tunnel.sink_flushed(to, now);
                true
            }
            Ok(false) => {
                sink.writable = false;
                if took {
                    self.tunnel.sink_took(to, now);
                }
                false
            }
            // What comes for it is read and dropped.
            Err(_) => {
                self.sink_broke(to);
                true
            }
        }
    }

    fn sink_broke(&mut self, to: Side) {
        self.ends.wire(to).backlog = None;
        self.tunnel.sink_broke(to);
    }
}

/// Writes until all is gone (true) or the socket is full (false).
fn flush(sink: &std::net::TcpStream, backlog: &mut Backlog) -> Result<bool, Errno> {
    while backlog.sent < backlog.bytes.len() {
        match socket::write(sink, &backlog.bytes[backlog.sent..])? {
            0 => return Ok(false),
            sent => backlog.sent += sent,
        }
    }
    Ok(true)
}

impl Wire {
    fn new(socket: std::net::TcpStream) -> Self {
        // Nothing is known yet: one try each says how it stands.
        Self { socket, readable: true, writable: true, hung_up: false, backlog: None }
    }

    /// Notes what an event said.
    fn ready(&mut self, flags: EventFlags) {
        let over = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        self.hung_up |= over;
        self.readable |= over || flags.contains(EventFlags::IN);
        // A broken socket is written to so that it says so, also while its reading is paused.
        self.writable |= flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR);
    }

    /// Reads once; a read shorter than the buffer has drained the socket, so no second one is made to hear so.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        loop {
            match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
                Ok((_, length)) => {
                    self.readable = length == buffer.len() || (self.hung_up && length > 0);
                    return Ok(length);
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    self.readable = false;
                    return Err(error);
                }
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        let sent = socket::write(&self.socket, bytes)?;
        self.writable &= sent > 0;
        Ok(sent)
    }
}
