//! The portable engine: one epoll set and one list of tunnels on the gateway's own thread.
//!
//! The set is itself waited for by the thread's runtime, so that tunnels cost no task, no timer and no lock, and
//! everything else keeps its convenience. Invariants: each socket is added once, edge-triggered, and never
//! modified; a tunnel that has ended leaves its slot only after the batch, so a stale event finds nobody, never a
//! new tenant; events are handed out only when the engine is not borrowed. Elsewhere: one tunnel
//! ([`crate::tunnel`]), the interface ([`crate::engine`]).

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use evenkeel_model::Instant;
use evenkeel_protocol::close::{CloseCode, CloseReason};
use evenkeel_runtime::Clock;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::engine::{Adopt, ConnId, End, Event, Held, Order, Owner, READ_MAX, TunnelLimits};
use crate::tunnel::{After, Tunnel, Turn};

/// Events taken at once; a full batch lets the runtime's other tasks run before the next.
const BATCH: usize = 256;

/// See the module's documentation. Clones are the same engine.
#[derive(Clone)]
pub(crate) struct Engine {
    inner: Rc<RefCell<Inner>>,
    poll: Rc<AsyncFd<OwnedFd>>,
    /// Something is to be done without an event.
    wake: Rc<Notify>,
    events: Rc<dyn Fn(Event)>,
}

struct Inner {
    clock: Clock,
    limits: TunnelLimits,
    /// `None`: free, or being taken care of.
    slots: Vec<Option<Box<Tunnel>>>,
    free: Vec<u32>,
    /// Free after the batch.
    freed: Vec<u32>,
    by_owner: BTreeMap<(Owner, ConnId), u32>,
    /// Slots that want another turn without an event.
    again: Vec<u32>,
    timers: BinaryHeap<Reverse<(Instant, u32, ConnId)>>,
    buffer: Box<[u8]>,
    ready: Vec<epoll::Event>,
    tick: Instant,
    to_client: u64,
    to_server: u64,
    ended: Vec<Event>,
}

impl Engine {
    /// An engine without tunnels; what ends is told to `events`.
    ///
    /// # Errors
    /// What the system said to another epoll set.
    pub(crate) fn new(clock: Clock, limits: TunnelLimits, events: Rc<dyn Fn(Event)>) -> io::Result<Self> {
        let poll = epoll::create(CreateFlags::CLOEXEC)?;
        let none = epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        let inner = Inner {
            clock,
            limits,
            slots: Vec::new(),
            free: Vec::new(),
            freed: Vec::new(),
            by_owner: BTreeMap::new(),
            again: Vec::new(),
            timers: BinaryHeap::new(),
            buffer: vec![0; READ_MAX].into_boxed_slice(),
            ready: vec![none; BATCH],
            tick: clock.now(),
            to_client: 0,
            to_server: 0,
            ended: Vec::new(),
        };
        // Its replacement is unsafe only for types that may close their descriptor while registered; this one owns it.
        #[allow(deprecated)]
        let poll = AsyncFd::with_interest(poll, Interest::READABLE)?;
        Ok(Self { inner: Rc::new(RefCell::new(inner)), poll: Rc::new(poll), wake: Rc::default(), events })
    }

    /// Carries tunnels for as long as the thread lives.
    pub(crate) async fn run(self) {
        loop {
            let mut full = false;
            tokio::select! { biased;
                ready = poll_fn(|context| self.poll.poll_read_ready(context)) => match ready {
                    Ok(mut ready) => {
                        full = self.batch() == BATCH;
                        if !full {
                            ready.clear_ready();
                        }
                    }
                    // The runtime is going away.
                    Err(_) => return,
                },
                () = self.wake.notified() => {}
            }
            let again = self.again();
            self.hand_out();
            if again {
                self.wake.notify_one();
            }
            if again || full {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Takes the events there are and says how many.
    fn batch(&self) -> usize {
        const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        let inner = &mut *self.inner.borrow_mut();
        let count = match epoll::wait(self.poll.get_ref(), &mut inner.ready[..], Some(&AT_ONCE)) {
            Ok(count) => count,
            // Look again, as after a full batch.
            Err(rustix::io::Errno::INTR) => return BATCH,
            Err(_) => return 0,
        };
        for at in 0..count {
            let epoll::Event { flags, data } = inner.ready[at];
            let token = data.u64();
            let slot = (token >> 1) as u32;
            let Some(tunnel) = inner.slots.get_mut(slot as usize).and_then(Option::as_mut) else { continue };
            let side = if token & 1 == 0 { &mut tunnel.client } else { &mut tunnel.server };
            side.ready(flags);
            inner.turn(slot);
        }
        count
    }

    /// Gives those another turn that wanted one; says whether some want a third.
    fn again(&self) -> bool {
        let inner = &mut *self.inner.borrow_mut();
        for slot in std::mem::take(&mut inner.again) {
            inner.turn(slot);
        }
        !inner.again.is_empty()
    }

    /// Reports what ended, with the engine free to be called.
    fn hand_out(&self) {
        let ended = {
            let inner = &mut *self.inner.borrow_mut();
            inner.free.append(&mut inner.freed);
            std::mem::take(&mut inner.ended)
        };
        for event in ended {
            (self.events)(event);
        }
    }

    /// Carries an order out, or notes it for the engine's next turn. What ends by it is reported later.
    pub(crate) fn order(&self, order: Order) {
        let inner = &mut *self.inner.borrow_mut();
        match order {
            Order::Adopt(adopt) => inner.adopt(*adopt, self.poll.get_ref()),
            Order::Close { id, owner, code, reason } => inner.close(id, owner, code, reason),
            Order::AbortAll => {
                let all: Vec<u32> = inner.by_owner.values().copied().collect();
                for slot in all {
                    inner.end(slot, End::Aborted);
                }
            }
        }
        if !inner.again.is_empty() || !inner.ended.is_empty() {
            self.wake.notify_one();
        }
    }

    /// Tunnels of one owner that no close was ordered for.
    pub(crate) fn held(&self, owner: Owner) -> Vec<Held> {
        let inner = self.inner.borrow();
        let slots =
            inner.by_owner.range((owner, ConnId(0))..=(owner, ConnId(u64::MAX))).map(|(_, slot)| *slot);
        let tunnels = slots.filter_map(|slot| inner.slots[slot as usize].as_deref());
        let open = tunnels.filter(|tunnel| !tunnel.ordered);
        open.map(|tunnel| Held {
            id: tunnel.id,
            opened: tunnel.opened,
            active: tunnel.active,
            bytes: tunnel.bytes,
        })
        .collect()
    }

    /// All tunnels that no close was ordered for.
    pub(crate) fn open(&self) -> Vec<(Owner, ConnId)> {
        let inner = self.inner.borrow();
        let open = |slot: u32| inner.slots[slot as usize].as_ref().is_some_and(|tunnel| !tunnel.ordered);
        inner.by_owner.iter().filter(|(_, slot)| open(**slot)).map(|(key, _)| *key).collect()
    }

    /// Tunnels there are.
    pub(crate) fn len(&self) -> usize {
        self.inner.borrow().by_owner.len()
    }

    /// Moves the coarse clock and does what is due by it.
    pub(crate) fn tick(&self, now: Instant) {
        let inner = &mut *self.inner.borrow_mut();
        inner.tick = now;
        inner.handle_timeouts(now);
        inner.close_idle(now);
        if !inner.again.is_empty() || !inner.ended.is_empty() {
            self.wake.notify_one();
        }
    }

    /// Bytes carried towards clients and towards servers since the last call.
    pub(crate) fn take_bytes(&self) -> (u64, u64) {
        let inner = &mut *self.inner.borrow_mut();
        (std::mem::take(&mut inner.to_client), std::mem::take(&mut inner.to_server))
    }
}

impl Inner {
    fn adopt(&mut self, adopt: Adopt, poll: &OwnedFd) {
        let now = self.clock.now();
        let sockets = adopt.client.into_std().and_then(|client| Ok((client, adopt.server.into_std()?)));
        let Ok((client, server)) = sockets else {
            return self.report(adopt.id, adopt.owner, End::Unwatched, 1006, now);
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let add = |socket: &std::net::TcpStream, side: u64| {
            epoll::add(poll, socket, EventData::new_u64(u64::from(slot) << 1 | side), flags)
        };
        if add(&client, 0).and_then(|()| add(&server, 1)).is_err() {
            self.free.push(slot);
            return self.report(adopt.id, adopt.owner, End::Unwatched, 1006, now);
        }
        let tunnel = Tunnel::new((adopt.id, adopt.owner), (client, server), adopt.first, adopt.heard, now);
        self.by_owner.insert((adopt.owner, adopt.id), slot);
        self.slots[slot as usize] = Some(Box::new(tunnel));
        self.turn(slot);
    }

    fn close(&mut self, id: ConnId, owner: Owner, code: CloseCode, reason: CloseReason) {
        let Some(slot) = self.by_owner.get(&(owner, id)).copied() else { return };
        let due = self.clock.now() + self.limits.close_wait;
        if let Some(tunnel) = self.slots[slot as usize].as_mut().filter(|tunnel| !tunnel.ordered) {
            tunnel.close(code, reason, due);
            self.again.push(slot);
        }
    }

    fn turn(&mut self, slot: u32) {
        let Some(mut tunnel) = self.slots.get_mut(slot as usize).and_then(Option::take) else { return };
        let after = tunnel.turn(&mut self.shared());
        if let After::Ended(end) = after {
            return self.ended(slot, &tunnel, end);
        }
        if after == After::Again {
            self.again.push(slot);
        }
        self.set_timer(&mut tunnel, slot);
        self.slots[slot as usize] = Some(tunnel);
    }

    fn shared(&mut self) -> Turn<'_> {
        Turn {
            clock: self.clock,
            limits: &self.limits,
            buffer: &mut self.buffer,
            tick: self.tick,
            to_client: &mut self.to_client,
            to_server: &mut self.to_server,
        }
    }

    /// One timer stands for a tunnel, the earliest; what is due later is seen when it fires.
    fn set_timer(&mut self, tunnel: &mut Tunnel, slot: u32) {
        if let Some(due) = tunnel.due(&self.limits)
            && tunnel.timer.is_none_or(|timer| due < timer)
        {
            tunnel.timer = Some(due);
            self.timers.push(Reverse((due, slot, tunnel.id)));
        }
    }

    fn handle_timeouts(&mut self, now: Instant) {
        while let Some(Reverse((due, slot, id))) = self.timers.peek().copied() {
            if due > now {
                return;
            }
            self.timers.pop();
            // An earlier timer has replaced this one, or the tunnel is gone.
            let current = |tunnel: &mut Box<Tunnel>| tunnel.id == id && tunnel.timer == Some(due);
            let Some(mut tunnel) = self.slots.get_mut(slot as usize).and_then(|slot| slot.take_if(current))
            else {
                continue;
            };
            tunnel.timer = None;
            if let Some(end) = tunnel.handle_timeout(now, &mut self.shared()) {
                self.ended(slot, &tunnel, end);
                continue;
            }
            self.set_timer(&mut tunnel, slot);
            self.slots[slot as usize] = Some(tunnel);
        }
    }

    fn close_idle(&mut self, now: Instant) {
        let Some(idle) = self.limits.idle else { return };
        let silent = |tunnel: &&Tunnel| !tunnel.ordered && now.since(tunnel.active) > idle;
        let tunnels = self.slots.iter().filter_map(Option::as_deref).filter(silent);
        let all: Vec<_> = tunnels.map(|tunnel| (tunnel.id, tunnel.owner)).collect();
        for (id, owner) in all {
            self.close(id, owner, CloseReason::TimedOut.code(), CloseReason::TimedOut);
        }
    }

    fn end(&mut self, slot: u32, why: End) {
        if let Some(tunnel) = self.slots.get_mut(slot as usize).and_then(Option::take) {
            self.ended(slot, &tunnel, why);
        }
    }

    /// Its sockets close with it; its slot is free after the batch.
    fn ended(&mut self, slot: u32, tunnel: &Tunnel, why: End) {
        self.freed.push(slot);
        self.by_owner.remove(&(tunnel.owner, tunnel.id));
        self.report(tunnel.id, tunnel.owner, why, tunnel.close_code(), tunnel.opened);
    }

    fn report(&mut self, id: ConnId, owner: Owner, why: End, code: u16, opened: Instant) {
        let lasted = self.clock.now().since(opened);
        self.ended.push(Event::Closed { id, owner, why, code, lasted });
    }
}
