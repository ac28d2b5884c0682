//! The interface between accepting connections and carrying their bytes: the engine, seen from the gateway's thread.
//!
//! In: tunnels to adopt, closes, an abort. Out: [`Event`]s, and what can be asked at any time (who is held where,
//! since when, how busy). An engine knows sockets and frames, nothing of fleets; [`Owner`] is a number to it. It
//! works on a thread of its own and talks through one [`Post`]. Invariants: every adopted tunnel ends in exactly
//! one [`Event::Closed`]; a close is an order, carried out at the next boundary between two messages; at most one
//! order to adopt, one to close and one event per connection wait, so the connections' bound is the queues' bound.
//! Elsewhere: the engines there are ([`crate::uring`], [`crate::portable`]), who to close ([`crate::execute`]), the handshake
//! ([`crate::connection`]).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use evenkeel_fleet::gateway::ServerKey;
use evenkeel_model::{Duration, Instant};
use evenkeel_protocol::close::{CloseCode, CloseReason};
use evenkeel_protocol::handshake;
use evenkeel_runtime::Clock;
use rustix::event::{EventfdFlags, eventfd};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// Most bytes read at once, and so most bytes that wait in one direction when the other end is slow. 32 KiB takes
/// a 16 KiB message with its header in one read; a larger one only grows what a slow reader costs.
pub(crate) const READ_MAX: usize = 32 * 1024;
/// Reads of one direction in one turn, so that a fast sender does not starve the other tunnels.
pub(crate) const READS_PER_TURN: u32 = 8;

/// How tunnels end that do not end by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelLimits {
    /// Bytes that a slow end does not take for so long end its tunnel. Default 10 s, as NATS does.
    pub write_deadline: Duration,
    /// From our Close frame to the end of the TCP connections. Default 5 s: a few round trips of a bad network.
    pub close_wait: Duration,
    /// When one end has sent its last byte, the other may go on for so long. Default 30 s.
    pub half_open: Duration,
    /// Silence in both directions that ends a tunnel. Default none: WebSockets may be silent for hours.
    pub idle: Option<Duration>,
}

impl Default for TunnelLimits {
    fn default() -> Self {
        Self {
            write_deadline: Duration::from_secs(10),
            close_wait: Duration::from_secs(5),
            half_open: Duration::from_secs(30),
            idle: None,
        }
    }
}

/// What carries the bytes of tunnels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineKind {
    /// io_uring where the kernel gives what it needs, else the portable engine.
    #[default]
    Auto,
    /// One epoll set: every Linux.
    Portable,
    /// io_uring, or the gateway does not start.
    IoUring,
}

/// A tunnel's number in this gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnId(pub(crate) u64);

/// Whose tunnel it is: a fleet's number in this gateway and a server's slot in that fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owner {
    pub(crate) fleet: u32,
    pub(crate) server: ServerKey,
}

/// A tunnel to carry, as the gateway hands it over.
pub(crate) struct Adopt {
    pub(crate) id: ConnId,
    pub(crate) owner: Owner,
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
    /// What each end must still get.
    pub(crate) first: handshake::Tunnel,
    /// Where to note that the server spoke.
    pub(crate) heard: Arc<AtomicBool>,
}

/// The same, ready for the engine's thread.
pub(crate) struct Carry {
    pub(crate) id: ConnId,
    pub(crate) client: std::net::TcpStream,
    pub(crate) server: std::net::TcpStream,
    pub(crate) first: handshake::Tunnel,
    pub(crate) heard: Arc<AtomicBool>,
    pub(crate) note: Arc<Note>,
}

/// What an engine's thread is told.
pub(crate) enum Order {
    Carry(Box<Carry>),
    /// End it with a Close frame at the next boundary between two messages.
    Close {
        id: ConnId,
        code: CloseCode,
        reason: CloseReason,
    },
    /// End all tunnels now, then the thread.
    Stop,
}

/// Whether an engine's thread goes on.
#[derive(PartialEq, Eq)]
pub(crate) enum Going {
    On,
    Stop,
}

/// What an engine's thread notes of a tunnel as it goes. It alone writes.
#[derive(Debug, Default)]
pub(crate) struct Note {
    active: AtomicU64,
    bytes: AtomicU64,
}

impl Note {
    pub(crate) fn set(&self, active: Instant, bytes: u64) {
        self.active.store(active.0, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }
}

/// Why a tunnel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum End {
    /// Both ends finished by themselves.
    Finished,
    /// The client vanished.
    ClientLost,
    /// The server vanished without a Close frame.
    ServerLost,
    /// We ordered it.
    Ordered(CloseReason),
    /// One end did not take its bytes in time.
    WriteDeadline,
    /// One end finished and the other did not.
    HalfOpen,
    /// The process ends.
    Aborted,
    /// Its sockets could not be waited for.
    Unwatched,
}

impl End {
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::ClientLost => "client_lost",
            Self::ServerLost => "server_gone",
            Self::Ordered(reason) => reason.reason(),
            Self::WriteDeadline => "write_deadline",
            Self::HalfOpen => "half_open",
            Self::Aborted => "aborted",
            Self::Unwatched => "unwatched",
        }
    }
}

/// What an engine's thread reports.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    /// The tunnel is gone.
    Closed {
        id: ConnId,
        why: End,
        /// The close code seen first, whoever sent it; 1006 without one (RFC 6455 §7.1.5).
        code: u16,
    },
}

/// A tunnel that is gone, as the gateway hears of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Closed {
    pub(crate) id: ConnId,
    pub(crate) owner: Owner,
    pub(crate) why: End,
    pub(crate) code: u16,
    pub(crate) lasted: Duration,
}

/// What can be chosen by when connections leave.
pub(crate) struct Held {
    pub(crate) id: ConnId,
    pub(crate) opened: Instant,
    pub(crate) active: Instant,
    pub(crate) bytes: u64,
}

/// Both queues between the gateway's thread and the engine's. Each lock is held for a push or a swap, once per
/// batch of the engine and never per message.
pub(crate) struct Post {
    orders: Mutex<Vec<Order>>,
    /// Readable while orders wait.
    pub(crate) ordered: OwnedFd,
    events: Mutex<Vec<Event>>,
    told: Notify,
    gone: AtomicBool,
    to_client: AtomicU64,
    to_server: AtomicU64,
}

impl Post {
    fn new() -> io::Result<Self> {
        Ok(Self {
            orders: Mutex::default(),
            ordered: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            events: Mutex::default(),
            told: Notify::new(),
            gone: AtomicBool::new(false),
            to_client: AtomicU64::new(0),
            to_server: AtomicU64::new(0),
        })
    }

    fn order(&self, order: Order) {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let first = orders.is_empty();
        orders.push(order);
        drop(orders);
        if first {
            // It cannot fill up: it counts batches that the thread has not seen.
            let _ = rustix::io::write(&self.ordered, &1u64.to_ne_bytes());
        }
    }

    /// For the engine's thread: all orders that wait.
    pub(crate) fn take_orders(&self) -> Vec<Order> {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.ordered, &mut count);
        std::mem::take(&mut *self.orders.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// For the engine's thread: reports a batch and empties it.
    pub(crate) fn report(&self, events: &mut Vec<Event>) {
        if !events.is_empty() {
            self.events.lock().unwrap_or_else(PoisonError::into_inner).append(events);
            self.told.notify_one();
        }
    }

    /// For the engine's thread: counts bytes carried.
    pub(crate) fn count(&self, to_client: u64, to_server: u64) {
        self.to_client.fetch_add(to_client, Ordering::Relaxed);
        self.to_server.fetch_add(to_server, Ordering::Relaxed);
    }

    /// For the engine's thread, when it ends: nothing more will come.
    pub(crate) fn leave(&self) {
        self.gone.store(true, Ordering::Release);
        self.told.notify_one();
    }
}

/// An engine as the gateway's thread holds it.
pub(crate) struct Engine {
    clock: Clock,
    post: Arc<Post>,
    tunnels: RefCell<BTreeMap<ConnId, Entry>>,
    by_owner: RefCell<BTreeSet<(Owner, ConnId)>>,
}

struct Entry {
    owner: Owner,
    opened: Instant,
    note: Arc<Note>,
    /// A close was ordered; a second order changes nothing.
    ordered: Cell<bool>,
}

impl Engine {
    /// An engine without tunnels, and without a thread yet: that takes [`Engine::post`].
    pub(crate) fn new(clock: Clock) -> io::Result<Self> {
        let post = Arc::new(Post::new()?);
        Ok(Self { clock, post, tunnels: RefCell::default(), by_owner: RefCell::default() })
    }

    pub(crate) fn post(&self) -> Arc<Post> {
        Arc::clone(&self.post)
    }

    /// Hands a tunnel over.
    pub(crate) fn adopt(&self, adopt: Adopt) {
        let Adopt { id, owner, client, server, first, heard } = adopt;
        let opened = self.clock.now();
        let note = Arc::new(Note::default());
        note.set(opened, 0);
        let entry = Entry { owner, opened, note: Arc::clone(&note), ordered: Cell::new(false) };
        self.tunnels.borrow_mut().insert(id, entry);
        self.by_owner.borrow_mut().insert((owner, id));
        match client.into_std().and_then(|client| Ok((client, server.into_std()?))) {
            Ok((client, server)) => {
                self.post.order(Order::Carry(Box::new(Carry { id, client, server, first, heard, note })));
            }
            Err(_) => self.post.report(&mut vec![Event::Closed { id, why: End::Unwatched, code: 1006 }]),
        }
    }

    /// Orders a close; one per tunnel counts.
    pub(crate) fn close(&self, id: ConnId, code: CloseCode, reason: CloseReason) {
        let tunnels = self.tunnels.borrow();
        if tunnels.get(&id).is_some_and(|entry| !entry.ordered.replace(true)) {
            self.post.order(Order::Close { id, code, reason });
        }
    }

    /// Ends all tunnels and the engine.
    pub(crate) fn stop(&self) {
        self.post.order(Order::Stop);
    }

    /// Waits for tunnels that ended; `None`: the engine has ended.
    ///
    /// # Cancel safety
    /// Yes: nothing is taken before it returns.
    pub(crate) async fn closed(&self) -> Option<Vec<Closed>> {
        loop {
            let events =
                std::mem::take(&mut *self.post.events.lock().unwrap_or_else(PoisonError::into_inner));
            if !events.is_empty() {
                return Some(events.into_iter().filter_map(|event| self.forget(event)).collect());
            }
            if self.post.gone.load(Ordering::Acquire) {
                return None;
            }
            self.post.told.notified().await;
        }
    }

    fn forget(&self, event: Event) -> Option<Closed> {
        let Event::Closed { id, why, code } = event;
        let Entry { owner, opened, .. } = self.tunnels.borrow_mut().remove(&id)?;
        self.by_owner.borrow_mut().remove(&(owner, id));
        Some(Closed { id, owner, why, code, lasted: self.clock.now().since(opened) })
    }

    /// Tunnels of one owner that no close was ordered for.
    pub(crate) fn held(&self, owner: Owner) -> Vec<Held> {
        let (tunnels, by_owner) = (self.tunnels.borrow(), self.by_owner.borrow());
        let ids = by_owner.range((owner, ConnId(0))..=(owner, ConnId(u64::MAX))).map(|(_, id)| *id);
        let of_owner = ids.filter_map(|id| Some((id, tunnels.get(&id)?)));
        let open = of_owner.filter(|(_, entry)| !entry.ordered.get());
        open.map(|(id, entry)| Held {
            id,
            opened: entry.opened,
            active: Instant(entry.note.active.load(Ordering::Relaxed)),
            bytes: entry.note.bytes.load(Ordering::Relaxed),
        })
        .collect()
    }

    /// All tunnels that no close was ordered for.
    pub(crate) fn open(&self) -> Vec<(Owner, ConnId)> {
        let tunnels = self.tunnels.borrow();
        let open = tunnels.iter().filter(|(_, entry)| !entry.ordered.get());
        open.map(|(id, entry)| (entry.owner, *id)).collect()
    }

    /// Tunnels there are.
    pub(crate) fn len(&self) -> usize {
        self.tunnels.borrow().len()
    }

    /// Bytes carried towards clients and towards servers since the last call.
    pub(crate) fn take_bytes(&self) -> (u64, u64) {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        (take(&self.post.to_client), take(&self.post.to_server))
    }
}
