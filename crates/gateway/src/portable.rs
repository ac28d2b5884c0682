//! The portable engine: one thread, one epoll set, one list of tunnels. No task, no timer and no lock per message.
//!
//! In: orders from its [`Post`]. Out: bytes, events to the same post. Invariants: each socket is added once,
//! edge-triggered, and never modified; a tunnel that has ended leaves its slot only after the batch, so a stale
//! event finds nobody, never a new tenant; the post hears when the thread ends, however it ends.
//! Elsewhere: one tunnel ([`crate::tunnel`]), the interface ([`crate::engine`]).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use evenkeel_model::{Duration, Instant};
use evenkeel_protocol::close::{CloseCode, CloseReason};
use evenkeel_runtime::Clock;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use tracing::error;

use crate::engine::{Carry, ConnId, End, Event, Order, Post, READ_MAX, TunnelLimits};
use crate::tunnel::{After, Tunnel, Turn};

/// Events taken at once.
const BATCH: usize = 256;
/// The post's own token; those of sockets are a slot and a side.
const ORDERED: u64 = u64::MAX;

/// Starts the engine's thread.
///
/// # Errors
/// What the system said to another epoll set or thread.
pub(crate) fn start(post: Arc<Post>, clock: Clock, limits: TunnelLimits) -> io::Result<JoinHandle<()>> {
    let poll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&poll, &post.ordered, EventData::new_u64(ORDERED), EventFlags::IN)?;
    let buffer = vec![0; READ_MAX].into_boxed_slice();
    let carrier = Carrier {
        turn: Turn { clock, limits, buffer, tick: clock.now(), to_client: 0, to_server: 0 },
        post,
        poll,
        slots: Vec::new(),
        free: Vec::new(),
        freed: Vec::new(),
        by_id: BTreeMap::new(),
        again: Vec::new(),
        timers: BinaryHeap::new(),
        ended: Vec::new(),
    };
    std::thread::Builder::new().name("tunnels".into()).spawn(move || carrier.run())
}

struct Carrier {
    turn: Turn,
    post: Arc<Post>,
    poll: OwnedFd,
    slots: Vec<Option<Box<Tunnel>>>,
    free: Vec<u32>,
    /// Free after the batch.
    freed: Vec<u32>,
    by_id: BTreeMap<ConnId, u32>,
    /// Slots that want another turn without an event.
    again: Vec<u32>,
    timers: BinaryHeap<Reverse<(Instant, u32, ConnId)>>,
    ended: Vec<Event>,
}

/// Whether the thread goes on.
#[derive(PartialEq, Eq)]
enum Going {
    On,
    Stop,
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
                Err(rustix::io::Errno::INTR) => 0,
                Err(errno) => return error!(error = %errno, "tunnels cannot be waited for"),
            };
            self.turn.tick = self.turn.clock.now();
            let ordered = self.batch(&ready[..count]);
            for slot in std::mem::take(&mut self.again) {
                self.run_turn(slot);
            }
            self.handle_timeouts();
            let going = if ordered { self.take_orders() } else { Going::On };
            self.free.append(&mut self.freed);
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
        let left = match self.timers.peek() {
            _ if !self.again.is_empty() => Duration::ZERO,
            Some(Reverse((due, ..))) => due.since(self.turn.clock.now()),
            None => return None,
        };
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
            let slot = (token >> 1) as u32;
            if let Some(tunnel) = self.slots.get_mut(slot as usize).and_then(Option::as_mut) {
                let side = if token & 1 == 0 { &mut tunnel.client } else { &mut tunnel.server };
                side.ready(flags);
                self.run_turn(slot);
            }
        }
        ordered
    }

    fn take_orders(&mut self) -> Going {
        let mut going = Going::On;
        for order in self.post.take_orders() {
            match order {
                Order::Carry(carry) => self.carry(*carry),
                Order::Close { id, code, reason } => self.close(id, code, reason),
                Order::Stop => going = Going::Stop,
            }
        }
        if going == Going::Stop {
            for slot in 0..self.slots.len() {
                self.end(slot as u32, End::Aborted);
            }
        }
        going
    }

    fn carry(&mut self, carry: Carry) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let add = |socket: &std::net::TcpStream, side: u64| {
            epoll::add(&self.poll, socket, EventData::new_u64(u64::from(slot) << 1 | side), flags)
        };
        if add(&carry.client, 0).and_then(|()| add(&carry.server, 1)).is_err() {
            self.free.push(slot);
            self.ended.push(Event::Closed { id: carry.id, why: End::Unwatched, code: 1006 });
            return;
        }
        self.by_id.insert(carry.id, slot);
        self.slots[slot as usize] = Some(Box::new(Tunnel::new(carry, self.turn.tick)));
        self.run_turn(slot);
    }

    fn close(&mut self, id: ConnId, code: CloseCode, reason: CloseReason) {
        let Some(slot) = self.by_id.get(&id).copied() else { return };
        let due = self.turn.tick + self.turn.limits.close_wait;
        if let Some(tunnel) = self.slots[slot as usize].as_mut() {
            tunnel.close(code, reason, due);
            self.run_turn(slot);
        }
    }

    fn run_turn(&mut self, slot: u32) {
        let Some(tunnel) = self.slots.get_mut(slot as usize).and_then(Option::as_deref_mut) else { return };
        match tunnel.turn(&mut self.turn) {
            After::Wait => {}
            After::Again => self.again.push(slot),
            After::Ended(end) => return self.end(slot, end),
        }
        // One timer stands for a tunnel, the earliest; what is due later is seen when it fires.
        if let Some(due) = tunnel.due(&self.turn.limits)
            && tunnel.timer.is_none_or(|timer| due < timer)
        {
            tunnel.timer = Some(due);
            self.timers.push(Reverse((due, slot, tunnel.id)));
        }
    }

    fn handle_timeouts(&mut self) {
        while let Some(Reverse((due, slot, id))) =
            self.timers.peek().copied().filter(|timer| timer.0.0 <= self.turn.tick)
        {
            self.timers.pop();
            let Some(tunnel) = self.slots.get_mut(slot as usize).and_then(Option::as_deref_mut) else {
                continue;
            };
            // An earlier timer has replaced this one, or another tunnel the one it was for.
            if tunnel.id != id || tunnel.timer != Some(due) {
                continue;
            }
            tunnel.timer = None;
            let end = tunnel.handle_timeout(&mut self.turn);
            match end {
                Some(end) => self.end(slot, end),
                // It may have a Close to send, and surely another time to wait for.
                None => self.run_turn(slot),
            }
        }
    }

    /// Closes its sockets; its slot is free after the batch.
    fn end(&mut self, slot: u32, why: End) {
        if let Some(tunnel) = self.slots.get_mut(slot as usize).and_then(Option::take) {
            self.freed.push(slot);
            self.by_id.remove(&tunnel.id);
            self.ended.push(Event::Closed { id: tunnel.id, why, code: tunnel.close_code() });
        }
    }
}
