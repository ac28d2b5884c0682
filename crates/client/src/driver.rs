//! The session's task: feeds the machine with what happens and performs what it says.
//!
//! In: commands of the application, what happens on sockets, time. Out: events, orders to sockets. Invariants: outputs
//! are performed in order and never awaited; while the application does not take its events no socket is read; while a
//! socket has no room no command is taken; either way the other direction goes on. Elsewhere: every decision
//! (`evenkeel_protocol::moving::client`).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use evenkeel_model::Rng;
use evenkeel_protocol::backoff::Chance;
use evenkeel_protocol::moving::client::{
    Again, Config as MoverConfig, GapReason, Input, Mover, OnLoss, Output, SocketId, StayReason, UnsentReason,
};
use evenkeel_protocol::moving::{BufferMax, Ctl};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::EVENTS_MAX;
use crate::assign::Memory;
use crate::clock::{Clock, random, spawn};
use crate::config::Service;
use crate::dial::{Dial, Happened};
use crate::socket::{Message, Order, Told};

/// Frames of ours and single messages that a socket's queue has room for besides everything held back.
const QUEUE_SPARE: usize = 64;

/// What an application hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The session is up.
    Open {
        /// Whether it was before.
        again: Again,
    },
    /// A message.
    Message(Message),
    /// A move to another server began.
    Moving {
        /// Its name.
        mid: String,
        /// Why, as the server says: `drain`, `rebalance` …
        why: String,
    },
    /// The session is on another server; nothing was lost.
    Moved {
        /// The name of the move.
        mid: String,
    },
    /// The move came to nothing; the session is where it was and nothing was lost.
    Stayed {
        /// The name of the move.
        mid: String,
        /// Why.
        why: StayReason,
    },
    /// The connection is lost and is being dialled again.
    Lost {
        /// Close code, 1006 without one.
        code: u16,
        /// Close reason.
        reason: String,
    },
    /// Something sent or to be received before this may be missing.
    Gap {
        /// Where.
        why: GapReason,
    },
    /// A message will not be sent.
    Unsent {
        /// The message.
        message: Message,
        /// Why.
        why: UnsentReason,
    },
    /// The session is over; nothing follows.
    Closed {
        /// Close code.
        code: u16,
        /// Close reason.
        reason: String,
    },
}

/// What an application wants.
#[derive(Debug)]
pub(crate) enum Command {
    Send(Message),
    Close { code: u16, reason: String },
}

/// What the task does next.
enum Next {
    Happened(SocketId, Happened),
    Command(Command),
    Wake,
    Look,
    Over,
}

/// See the module's documentation.
pub(crate) struct Driver {
    service: Arc<Service>,
    buffer: BufferMax,
    memory: Memory,
    mover: Mover<Message>,
    clock: Clock,
    rng: Rng,
    inbox: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    /// Events that the application has not taken yet.
    pending: VecDeque<Event>,
    sockets: BTreeMap<SocketId, mpsc::Sender<Order>>,
    sender: mpsc::Sender<(SocketId, Happened)>,
    happened: mpsc::Receiver<(SocketId, Happened)>,
    drained: Arc<Notify>,
}

impl Driver {
    pub(crate) fn new(
        service: Service,
        buffer: BufferMax,
        inbox: mpsc::Receiver<Command>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let (sender, happened) = mpsc::channel(EVENTS_MAX);
        let seed = random().map_or(0, u64::from_le_bytes);
        // A name, not a secret: what admits is signed.
        let sid = Ctl::new(random().unwrap_or_default()).as_str().to_owned();
        Self {
            service: Arc::new(service),
            buffer,
            memory: Memory::new(sid),
            mover: Mover::new(MoverConfig { on_loss: OnLoss::Redial, buffer }),
            clock: Clock::start(),
            rng: Rng::new(seed),
            inbox,
            events,
            pending: VecDeque::new(),
            sockets: BTreeMap::new(),
            sender,
            happened,
            drained: Arc::default(),
        }
    }

    /// Runs to the session's end, or until the client is dropped.
    pub(crate) async fn run(mut self, mut ended: oneshot::Receiver<()>) {
        self.feed(Input::Start);
        loop {
            if self.mover.is_ended() && self.pending.is_empty() {
                return;
            }
            match self.next(&mut ended).await {
                Next::Over => return,
                Next::Wake => self.wake(),
                Next::Look => {}
                Next::Happened(socket, happened) => self.take(socket, happened),
                Next::Command(Command::Send(message)) => self.feed(Input::Send(message)),
                Next::Command(Command::Close { code, reason }) => self.feed(Input::Close { code, reason }),
            }
        }
    }

    async fn next(&mut self, ended: &mut oneshot::Receiver<()>) -> Next {
        let room = self.has_room();
        let (pending, events) = (&mut self.pending, &self.events);
        tokio::select! { biased;
            _ = ended => Next::Over,
            permit = events.reserve(), if !pending.is_empty() => match (permit, pending.pop_front()) {
                (Ok(permit), Some(event)) => {
                    permit.send(event);
                    Next::Look
                }
                _ => Next::Over,
            },
            () = self.clock.sleep_until(self.mover.poll_timeout()) => Next::Wake,
            // Never closed: a sender is ours.
            Some((socket, happened)) = self.happened.recv(), if pending.len() < EVENTS_MAX => {
                Next::Happened(socket, happened)
            }
            () = self.drained.notified(), if !room => Next::Look,
            command = self.inbox.recv(), if room && !self.mover.is_ended() => {
                command.map_or(Next::Over, Next::Command)
            }
        }
    }

    /// Whether every socket could take all that is held back, and then some.
    fn has_room(&self) -> bool {
        self.sockets.values().all(|orders| orders.capacity() >= self.buffer.messages + QUEUE_SPARE / 2)
    }

    fn feed(&mut self, input: Input<Message>) {
        let chance = Chance::draw(&mut self.rng);
        self.mover.handle(input, self.clock.now(), chance);
        self.perform();
    }

    fn wake(&mut self) {
        let chance = Chance::draw(&mut self.rng);
        self.mover.handle_timeout(self.clock.now(), chance);
        self.perform();
    }

    fn take(&mut self, socket: SocketId, happened: Happened) {
        match happened {
            Happened::Opened { ctl, learnt } => {
                if !self.sockets.contains_key(&socket) {
                    return;
                }
                self.memory.learn(&learnt);
                if let Some((base, cap)) = learnt.retry {
                    self.feed(Input::Retry { base, cap });
                }
                self.feed(Input::Opened { socket, ctl, sid: learnt.sid });
            }
            Happened::Failed { failure, refused } => {
                self.sockets.remove(&socket);
                for url in refused {
                    self.memory.avoid(&url);
                }
                self.feed(Input::Failed { socket, failure });
            }
            Happened::Received(message) => self.feed(Input::Received { socket, message }),
            Happened::Closed { code, reason } => {
                self.sockets.remove(&socket);
                self.feed(Input::Closed { socket, code, reason });
            }
        }
    }

    fn perform(&mut self) {
        while let Some(output) = self.mover.poll_output() {
            let event = match output {
                Output::Dial { socket, cause, ticket, errand } => {
                    let dial = Dial {
                        service: Arc::clone(&self.service),
                        memory: self.memory.clone(),
                        cause,
                        ticket,
                        errand,
                    };
                    self.dial(socket, dial);
                    continue;
                }
                Output::Say { socket, text } => {
                    self.order(socket, Order::Send(Message::text(text)));
                    continue;
                }
                Output::Send { socket, message } => {
                    self.order(socket, Order::Send(message));
                    continue;
                }
                Output::Close { socket, code, reason } => {
                    self.order(socket, Order::Close { code, reason });
                    self.sockets.remove(&socket);
                    continue;
                }
                Output::Open { again } => Event::Open { again },
                Output::Deliver(message) => Event::Message(message),
                Output::Moving { mid, why } => Event::Moving { mid, why },
                Output::Moved { mid } => Event::Moved { mid },
                Output::Stayed { mid, why } => Event::Stayed { mid, why },
                Output::Lost { code, reason } => Event::Lost { code, reason },
                Output::Gap { why } => Event::Gap { why },
                Output::Unsent { message, why } => Event::Unsent { message, why },
                Output::Closed { code, reason } => Event::Closed { code, reason },
            };
            self.pending.push_back(event);
        }
    }

    fn dial(&mut self, socket: SocketId, dial: Dial) {
        let (orders, inbox) = mpsc::channel(2 * self.buffer.messages + QUEUE_SPARE);
        self.sockets.insert(socket, orders);
        let told = Told { id: socket, events: self.sender.clone(), drained: Arc::clone(&self.drained) };
        spawn(dial.run(inbox, told));
    }

    fn order(&self, socket: SocketId, order: Order) {
        if let Some(orders) = self.sockets.get(&socket) {
            // There is room (see `has_room`); a task that has ended has said so or is about to.
            let _ = orders.try_send(order);
        }
    }
}
