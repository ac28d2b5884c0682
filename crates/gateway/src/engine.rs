//! The interface between accepting connections and carrying their bytes, and its first implementation: tasks on
//! the gateway's own thread.
//!
//! In: [`Order`]s (adopt both sockets, close, abort). Out: [`Event`]s. An engine knows sockets and frames, nothing
//! of fleets; [`Owner`] is a number to it. Invariants: every adopted tunnel ends in exactly one [`Event::Closed`],
//! also when its task panics; a close is an order, carried out at the next boundary between two messages.
//! Elsewhere: one tunnel ([`crate::tunnel`]), who to close ([`crate::execute`]), the handshake
//! ([`crate::connection`]).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::task::Waker;

use evenkeel_fleet::gateway::ServerKey;
use evenkeel_model::{Duration, Instant};
use evenkeel_protocol::close::{CloseCode, CloseReason};
use evenkeel_protocol::handshake;
use evenkeel_runtime::{Clock, Tasks};
use tokio::net::TcpStream;

use crate::tunnel::Tunnel;

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

/// A tunnel's number in this gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnId(pub(crate) u64);

/// Whose tunnel it is: a fleet's number in this gateway and a server's slot in that fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owner {
    pub(crate) fleet: u32,
    pub(crate) server: ServerKey,
}

/// A tunnel to carry: both sockets, what each end must still get, and where to note that the server spoke.
pub(crate) struct Adopt {
    pub(crate) id: ConnId,
    pub(crate) owner: Owner,
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
    pub(crate) first: handshake::Tunnel,
    pub(crate) heard: Rc<Cell<bool>>,
}

/// What an engine is told.
pub(crate) enum Order {
    /// Carry this tunnel.
    Adopt(Box<Adopt>),
    /// End it with a Close frame at the next boundary between two messages.
    Close { id: ConnId, owner: Owner, code: CloseCode, reason: CloseReason },
    /// End all now.
    AbortAll,
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
}

impl End {
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::ClientLost => "client_lost",
            Self::ServerLost => "server_lost",
            Self::Ordered(reason) => reason.reason(),
            Self::WriteDeadline => "write_deadline",
            Self::HalfOpen => "half_open",
            Self::Aborted => "aborted",
        }
    }
}

/// What an engine reports.
#[derive(Clone, Copy)]
pub(crate) enum Event {
    /// The tunnel is gone.
    Closed {
        id: ConnId,
        owner: Owner,
        why: End,
        /// The close code seen first, whoever sent it; 1006 without one (RFC 6455 §7.1.5).
        code: u16,
        lasted: Duration,
    },
}

/// What can be chosen by when connections leave.
pub(crate) struct Held {
    pub(crate) id: ConnId,
    pub(crate) opened: Instant,
    pub(crate) active: Instant,
    pub(crate) bytes: u64,
}

/// What a tunnel's task and the engine share.
pub(crate) struct Control {
    pub(crate) id: ConnId,
    pub(crate) owner: Owner,
    pub(crate) opened: Instant,
    /// Last bytes in either direction, to the engine's coarse clock.
    pub(crate) active: Cell<Instant>,
    pub(crate) bytes: Cell<u64>,
    pub(crate) heard: Rc<Cell<bool>>,
    pub(crate) order: Cell<Option<(CloseCode, CloseReason)>>,
    pub(crate) aborted: Cell<bool>,
    /// A close was ordered once; a second one changes nothing.
    closing: Cell<bool>,
    pub(crate) waker: RefCell<Option<Waker>>,
}

impl Control {
    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

/// What the engine's tunnels share: one buffer, one coarse clock, plain counters.
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    pub(crate) limits: TunnelLimits,
    pub(crate) buffer: RefCell<Box<[u8]>>,
    /// The present to within a tick, so that no message reads the clock.
    pub(crate) tick: Cell<Instant>,
    pub(crate) to_client: Cell<u64>,
    pub(crate) to_server: Cell<u64>,
    tunnels: RefCell<BTreeMap<(Owner, ConnId), Rc<Control>>>,
    events: Box<dyn Fn(Event)>,
}

impl Shared {
    /// Takes the tunnel off the list and reports its end.
    pub(crate) fn closed(&self, control: &Control, why: End, code: u16) {
        self.tunnels.borrow_mut().remove(&(control.owner, control.id));
        let lasted = self.clock.now().since(control.opened);
        (self.events)(Event::Closed { id: control.id, owner: control.owner, why, code, lasted });
    }
}

/// Carries tunnels as tasks on this thread.
#[derive(Clone)]
pub(crate) struct Engine {
    shared: Rc<Shared>,
    tasks: Tasks,
}

impl Engine {
    pub(crate) fn new(clock: Clock, limits: TunnelLimits, tasks: Tasks, events: Box<dyn Fn(Event)>) -> Self {
        let shared = Shared {
            clock,
            limits,
            buffer: RefCell::new(vec![0; READ_MAX].into_boxed_slice()),
            tick: Cell::new(clock.now()),
            to_client: Cell::new(0),
            to_server: Cell::new(0),
            tunnels: RefCell::default(),
            events,
        };
        Self { shared: Rc::new(shared), tasks }
    }

    pub(crate) fn order(&self, order: Order) {
        match order {
            Order::Adopt(adopt) => self.adopt(*adopt),
            Order::Close { id, owner, code, reason } => {
                let control = self.shared.tunnels.borrow().get(&(owner, id)).cloned();
                if let Some(control) = control.filter(|control| !control.closing.replace(true)) {
                    control.order.set(Some((code, reason)));
                    control.wake();
                }
            }
            Order::AbortAll => {
                let all: Vec<_> = self.shared.tunnels.borrow().values().cloned().collect();
                for control in all {
                    control.aborted.set(true);
                    control.wake();
                }
            }
        }
    }

    fn adopt(&self, adopt: Adopt) {
        let now = self.shared.clock.now();
        let control = Rc::new(Control {
            id: adopt.id,
            owner: adopt.owner,
            opened: now,
            active: Cell::new(now),
            bytes: Cell::new(0),
            heard: adopt.heard,
            order: Cell::new(None),
            aborted: Cell::new(false),
            closing: Cell::new(false),
            waker: RefCell::new(None),
        });
        self.shared.tunnels.borrow_mut().insert((adopt.owner, adopt.id), Rc::clone(&control));
        let tunnel = Tunnel::new(Rc::clone(&self.shared), control, adopt.client, adopt.server, adopt.first);
        self.tasks.spawn_local("tunnel", tunnel);
    }

    /// Tunnels of one owner that no close was ordered for.
    pub(crate) fn held(&self, owner: Owner) -> Vec<Held> {
        let tunnels = self.shared.tunnels.borrow();
        let of_owner = tunnels.range((owner, ConnId(0))..=(owner, ConnId(u64::MAX)));
        let open = of_owner.filter(|(_, control)| !control.closing.get());
        open.map(|(_, control)| Held {
            id: control.id,
            opened: control.opened,
            active: control.active.get(),
            bytes: control.bytes.get(),
        })
        .collect()
    }

    /// All tunnels that no close was ordered for.
    pub(crate) fn open(&self) -> Vec<(Owner, ConnId)> {
        let tunnels = self.shared.tunnels.borrow();
        tunnels.iter().filter(|(_, control)| !control.closing.get()).map(|(key, _)| *key).collect()
    }

    /// Tunnels there are.
    pub(crate) fn len(&self) -> usize {
        self.shared.tunnels.borrow().len()
    }

    /// Moves the coarse clock and orders the idle ones closed.
    pub(crate) fn tick(&self, now: Instant) {
        self.shared.tick.set(now);
        let Some(idle) = self.shared.limits.idle else { return };
        let silent =
            |control: &&Rc<Control>| !control.closing.get() && now.since(control.active.get()) > idle;
        let all: Vec<_> = self.shared.tunnels.borrow().values().filter(silent).cloned().collect();
        for control in all {
            let reason = CloseReason::TimedOut;
            self.order(Order::Close { id: control.id, owner: control.owner, code: reason.code(), reason });
        }
    }

    /// Bytes carried towards clients and towards servers since the last call.
    pub(crate) fn take_bytes(&self) -> (u64, u64) {
        (self.shared.to_client.take(), self.shared.to_server.take())
    }
}
