//! The engine on io_uring: one thread, one ring. What its sockets receive comes with the completions of one wait, what
//! it sends goes with the next: one system call for a batch of messages instead of four for each.
//!
//! In: orders from its [`Post`]. Out: bytes, events to the same post. Invariants: one receive and one send at most are
//! under way per socket, so bytes never overtake each other; received bytes are sent from where they lie if the socket
//! takes them at once, and a slow socket never holds the ring's buffers; while [`READ_MAX`] bytes or more wait for one
//! end, the other is not received from, and what came before that took effect is at most what the ring's buffers hold;
//! no tunnel has a buffer of its own while nothing waits; sockets close when the ring has nothing under way on them,
//! and then the post hears of it; it also hears when the thread ends, however it ends.
//! Elsewhere: a tunnel's rules ([`crate::tunnel`]), the ring ([`evenkeel_ring`]), the interface ([`crate::engine`]).

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

use evenkeel_ring::{Done, Op, Payload, Piece, Ring, Sizes, Unavailable, What};
use evenkeel_runtime::Clock;
use tracing::error;

use crate::engine::{Carry, End, Event, Going, Order, Post, READ_MAX, TunnelLimits};
use crate::seats::{Seat, Seats};
use crate::socket;
use crate::tunnel::{Action, Side, Tunnel, Turn};

/// From so many bytes on a piece is sent by a call of its own at once: left for the batch, it would be out of the
/// cache by then.
const AT_ONCE: usize = 4 * 1024;
/// The post's own token; those of sockets are a place, a side and whether it is a send.
const ORDERED: u64 = u64::MAX;
/// When the thread stops, sockets get so often …
const LAST_WAITS: u32 = 20;
/// … so long to be let go of.
const LAST_WAIT: std::time::Duration = std::time::Duration::from_millis(10);

/// Why the engine did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotStarted {
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error("could not start the engine's thread")]
    Thread(#[source] io::Error),
}

/// Starts the engine's thread, once its ring works.
pub(crate) fn start(
    post: Arc<Post>,
    clock: Clock,
    limits: TunnelLimits,
) -> Result<JoinHandle<()>, NotStarted> {
    let (ready, started) = sync_channel(1);
    let run = move || match Ring::new(&Sizes::default()) {
        Err(error) => drop(ready.send(Err(error))),
        Ok(ring) => {
            let carrier = Carrier::new(ring, post, clock, limits);
            let _ = ready.send(Ok(()));
            carrier.run();
        }
    };
    let thread = std::thread::Builder::new().name("tunnels".into()).spawn(run).map_err(NotStarted::Thread)?;
    match started.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(NotStarted::Thread(io::Error::other("the thread ended"))),
    }
}

struct Carrier {
    // Before the sockets: dropping it ends what is under way on them.
    ring: Ring,
    turn: Turn,
    clock: Clock,
    post: Arc<Post>,
    seats: Seats<Ends>,
    /// Receives to start before the next wait.
    arm: Vec<(u32, Side)>,
    /// Number of this batch, to know who received in it.
    batch: u32,
    ended: Vec<Event>,
}

struct Ends {
    client: Wire,
    server: Wire,
    /// The tunnel is over: its sockets wait for what is under way on them.
    over: Option<End>,
}

/// One socket and what is under way on it.
struct Wire {
    socket: std::net::TcpStream,
    receiving: Option<Op>,
    /// Too much waits for the other end.
    paused: bool,
    /// The batch in which it last received.
    received_in: u32,
    sending: Option<Op>,
    /// What waits behind the send under way.
    behind: Vec<u8>,
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.post.leave();
    }
}

const fn token(at: u32, side: Side, send: bool) -> u64 {
    (at as u64) << 2 | (matches!(side, Side::Server) as u64) << 1 | send as u64
}

const fn side_of(token: u64) -> Side {
    if token & 2 == 0 { Side::Client } else { Side::Server }
}

impl Carrier {
    fn new(ring: Ring, post: Arc<Post>, clock: Clock, limits: TunnelLimits) -> Self {
        Self {
            ring,
            turn: Turn { limits, tick: clock.now(), to_client: 0, to_server: 0 },
            clock,
            post,
            seats: Seats::new(),
            arm: Vec::new(),
            batch: 0,
            ended: Vec::new(),
        }
    }

    fn run(mut self) {
        self.ring.await_readable(self.post.ordered.as_fd(), ORDERED);
        loop {
            self.start_receives();
            if let Err(error) = self.ring.wait(self.limit()) {
                return error!(%error, "tunnels cannot be waited for");
            }
            self.turn.tick = self.clock.now();
            let ordered = self.take_done();
            while let Some(at) = self.seats.fire(self.turn.tick) {
                if let Some(seat) = self.seats.get(at) {
                    seat.tunnel.handle_timeout(&self.turn);
                }
                self.settle(at);
            }
            let going = if ordered { self.take_orders() } else { Going::On };
            self.seats.batch_over();
            self.post
                .count(std::mem::take(&mut self.turn.to_client), std::mem::take(&mut self.turn.to_server));
            if going == Going::Stop {
                self.end_all();
            }
            self.post.report(&mut self.ended);
            if going == Going::Stop {
                return;
            }
        }
    }

    /// How long to wait; `None`: until something happens.
    fn limit(&self) -> Option<std::time::Duration> {
        self.seats.next_timer(self.clock.now())
    }

    /// Receives on sockets whose receive has stopped. Those that got nothing in this batch come first, so that one
    /// fast sender does not take all buffers again and again.
    fn start_receives(&mut self) {
        let (arm, batch) = (std::mem::take(&mut self.arm), self.batch);
        let fed = |seats: &mut Seats<Ends>, at, side| {
            seats.get(at).is_some_and(|seat| seat.ends.wire(side).received_in == batch)
        };
        let (later, first): (Vec<_>, Vec<_>) =
            arm.into_iter().partition(|(at, side)| fed(&mut self.seats, *at, *side));
        for (at, side) in first.into_iter().chain(later) {
            let Some(Seat { tunnel, ends }) = self.seats.get(at) else { continue };
            let wire = ends.wire(side);
            if !wire.paused && wire.receiving.is_none() && tunnel.listens(side) {
                wire.receiving = Some(self.ring.receive(wire.socket.as_fd(), token(at, side, false)));
            }
        }
        self.batch = batch.wrapping_add(1);
    }

    /// Takes what happened; says whether orders wait.
    fn take_done(&mut self) -> bool {
        let mut ordered = false;
        while let Some(Done { token, over, what }) = self.ring.next() {
            if token == ORDERED {
                ordered = true;
                if over {
                    self.ring.await_readable(self.post.ordered.as_fd(), ORDERED);
                }
                continue;
            }
            let (at, side) = ((token >> 2) as u32, side_of(token));
            match what {
                What::Received(piece) => self.received(at, side, piece),
                What::Finished => self.with(at, |tunnel| tunnel.source_ended(side)),
                What::Failed(_) => self.with(at, |tunnel| tunnel.source_broke(side)),
                What::Stopped | What::Ready => {}
                What::Sent(payload, count) => self.sent(at, side, payload, count),
                What::NotSent(payload, _) => self.not_sent(at, side, payload),
            }
            if over && token & 1 == 0 {
                self.stopped(at, side);
            }
            self.settle(at);
        }
        ordered
    }

    /// Tells a tunnel something, unless it is over.
    fn with(&mut self, at: u32, tell: impl FnOnce(&mut Tunnel)) {
        if let Some(seat) = self.seats.get(at)
            && seat.ends.over.is_none()
        {
            tell(&mut seat.tunnel);
        }
    }

    /// A receive has ended.
    fn stopped(&mut self, at: u32, side: Side) {
        if let Some(seat) = self.seats.get(at) {
            seat.ends.wire(side).receiving = None;
            self.arm.push((at, side));
        }
    }

    fn received(&mut self, at: u32, from: Side, mut piece: Piece) {
        let Some(Seat { tunnel, ends }) = self.seats.get(at) else { return self.ring.give_back(piece) };
        if ends.over.is_some() {
            return self.ring.give_back(piece);
        }
        ends.wire(from).received_in = self.batch;
        let pass = tunnel.received(from, self.ring.bytes(&piece), &mut self.turn);
        piece.truncate(pass);
        self.send(at, from.other(), piece);
    }

    /// Sends a piece, behind what is under way.
    fn send(&mut self, at: u32, to: Side, mut piece: Piece) {
        let Some(Seat { tunnel, ends }) = self.seats.get(at) else { return self.ring.give_back(piece) };
        let wire = ends.wire(to);
        let busy = wire.sending.is_some();
        if !busy && !piece.is_empty() && piece.len() < AT_ONCE {
            let socket = wire.socket.as_fd();
            wire.sending = Some(self.ring.send(socket, token(at, to, true), Payload::Piece(piece)));
            return tunnel.sink_asked(to);
        }
        if busy {
            wire.behind.extend_from_slice(self.ring.bytes(&piece));
            if wire.behind.len() >= READ_MAX {
                pause(&mut self.ring, ends.wire(to.other()));
            }
        } else if !piece.is_empty() {
            match socket::write(&wire.socket, self.ring.bytes(&piece)) {
                Ok(sent) => piece.advance(sent),
                Err(_) => {
                    piece.truncate(0);
                    tunnel.sink_broke(to);
                }
            }
            if !piece.is_empty() {
                let rest = self.ring.bytes(&piece).to_vec();
                self.send_later(at, to, rest.into());
            }
        }
        self.ring.give_back(piece);
    }

    /// Sends bytes of our own, at once where nothing is under way.
    fn send_own(&mut self, at: u32, to: Side, mut bytes: Vec<u8>) {
        let Some(Seat { tunnel, ends }) = self.seats.get(at) else { return };
        let wire = ends.wire(to);
        if wire.sending.is_some() {
            return wire.behind.append(&mut bytes);
        }
        if bytes.is_empty() {
            return;
        }
        match socket::write(&wire.socket, &bytes) {
            Ok(sent) if sent == bytes.len() => {}
            Ok(sent) => self.send_later(at, to, Payload::Owned { bytes, sent }),
            Err(_) => tunnel.sink_broke(to),
        }
    }

    /// Lets the ring send as soon as the socket takes something. Bytes of the ring's buffers must not come here: they
    /// would be held for as long as the socket is slow.
    fn send_later(&mut self, at: u32, to: Side, payload: Payload) {
        let Some(Seat { tunnel, ends }) = self.seats.get(at) else { return };
        let wire = ends.wire(to);
        wire.sending = Some(self.ring.send(wire.socket.as_fd(), token(at, to, true), payload));
        tunnel.sink_waits(to, self.turn.tick);
    }

    fn sent(&mut self, at: u32, to: Side, payload: Payload, count: usize) {
        let Some(Seat { tunnel, ends }) = self.seats.get(at) else { return self.give_back(payload) };
        let wire = ends.wire(to);
        wire.sending = None;
        if ends.over.is_some() {
            return self.give_back(payload);
        }
        let rest = match payload {
            Payload::Piece(piece) => {
                let rest = self.ring.bytes(&piece).to_vec();
                self.ring.give_back(piece);
                rest.into()
            }
            owned @ Payload::Owned { .. } => owned,
        };
        let wire = ends.wire(to);
        if rest.is_empty() && wire.behind.is_empty() {
            tunnel.sink_flushed(to, self.turn.tick);
            return self.resume(at, to.other());
        }
        if count > 0 {
            tunnel.sink_took(to, self.turn.tick);
        }
        let rest = if rest.is_empty() { std::mem::take(&mut wire.behind).into() } else { rest };
        self.send_later(at, to, rest);
    }

    fn not_sent(&mut self, at: u32, to: Side, payload: Payload) {
        self.give_back(payload);
        let Some(Seat { tunnel, ends }) = self.seats.get(at) else { return };
        let wire = ends.wire(to);
        wire.sending = None;
        wire.behind = Vec::new();
        if ends.over.is_none() {
            tunnel.sink_broke(to);
            // What comes for it is received and dropped.
            self.resume(at, to.other());
        }
    }

    fn give_back(&mut self, payload: Payload) {
        if let Payload::Piece(piece) = payload {
            self.ring.give_back(piece);
        }
    }

    fn resume(&mut self, at: u32, from: Side) {
        if let Some(seat) = self.seats.get(at)
            && std::mem::take(&mut seat.ends.wire(from).paused)
        {
            self.arm.push((at, from));
        }
    }

    /// Does what the tunnel says; lets go of its sockets once it is over and nothing is under way on them.
    fn settle(&mut self, at: u32) {
        loop {
            let Some(Seat { tunnel, ends }) = self.seats.get(at) else { return };
            if ends.over.is_some() {
                break;
            }
            match tunnel.next(&self.turn) {
                None => return self.seats.set_timer(at, &self.turn.limits),
                Some(Action::Close(frame)) => self.send_own(at, Side::Client, frame),
                Some(Action::Finish(side)) => {
                    if socket::finish(&ends.wire(side).socket).is_err() {
                        tunnel.sink_broke(side);
                    }
                }
                Some(Action::End(end)) => self.end(at, end),
            }
        }
        self.let_go(at);
    }

    fn end(&mut self, at: u32, why: End) {
        let Some(Seat { ends, .. }) = self.seats.get(at) else { return };
        ends.over.get_or_insert(why);
        for wire in [&mut ends.client, &mut ends.server] {
            for op in [wire.receiving, wire.sending].into_iter().flatten() {
                self.ring.cancel(op);
            }
        }
    }

    /// Closes the sockets of a tunnel that is over if nothing is under way on them.
    fn let_go(&mut self, at: u32) {
        let Some(Seat { ends, .. }) = self.seats.get(at) else { return };
        let (Some(why), false) = (ends.over, ends.client.busy() || ends.server.busy()) else { return };
        if let Some(seat) = self.seats.leave(at) {
            self.ended.push(Event::Closed { id: seat.tunnel.id, why, code: seat.tunnel.close_code() });
        }
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
                    self.settle(at);
                }
                Order::Stop => going = Going::Stop,
            }
        }
        going
    }

    fn carry(&mut self, carry: Carry) {
        let Carry { id, client, server, first, heard, note } = carry;
        let tunnel = Tunnel::new((id, note, heard), &first.to_client, &first.to_server, self.turn.tick);
        let ends = Ends { client: Wire::new(client), server: Wire::new(server), over: None };
        let at = self.seats.place();
        self.seats.sit(at, Seat { tunnel, ends });
        self.send_own(at, Side::Client, [first.head, first.to_client].concat());
        self.send_own(at, Side::Server, first.to_server);
        self.arm.extend([(at, Side::Client), (at, Side::Server)]);
        self.settle(at);
    }

    /// Ends all tunnels and waits a little for their sockets to be let go of.
    fn end_all(&mut self) {
        for at in self.seats.places() {
            self.end(at, End::Aborted);
            self.let_go(at);
        }
        for _ in 0..LAST_WAITS {
            if self.seats.is_empty() || self.ring.wait(Some(LAST_WAIT)).is_err() {
                break;
            }
            self.take_done();
        }
        for at in self.seats.places() {
            // Dropping the ring ends what is still under way.
            if let Some(seat) = self.seats.get(at) {
                let (id, code) = (seat.tunnel.id, seat.tunnel.close_code());
                self.ended.push(Event::Closed { id, why: seat.ends.over.unwrap_or(End::Aborted), code });
            }
        }
    }
}

/// Stops receiving on a wire until what waits for the other one is gone.
fn pause(ring: &mut Ring, source: &mut Wire) {
    if !source.paused {
        source.paused = true;
        if let Some(op) = source.receiving {
            ring.cancel(op);
        }
    }
}

impl Ends {
    fn wire(&mut self, side: Side) -> &mut Wire {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }
}

impl Wire {
    fn new(socket: std::net::TcpStream) -> Self {
        let (receiving, paused, sending) = (None, false, None);
        Self { socket, receiving, paused, received_in: u32::MAX, sending, behind: Vec::new() }
    }

    const fn busy(&self) -> bool {
        self.receiving.is_some() || self.sending.is_some()
    }
}
