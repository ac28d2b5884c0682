//! What an application holds: the agent, and each of its connections.
//!
//! Invariant: an [`Admission`] becomes a [`Connection`] or is turned back by its drop; a [`Connection`] ends with
//! its drop. So the counts are right however a task ends, also by a panic.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use evenkeel_model::{Connections, Duration, Incarnation, Rng, Select, State};
use evenkeel_protocol::agent::{Agent, AgentConfig as MachineConfig, LinkId};
use evenkeel_protocol::close::CloseReason;
use evenkeel_protocol::executor::{Closes, UnderWay};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::admission::{Admission, Handshake, Moves, Refused, Shared};
use crate::clock::{Clock, spawn};
use crate::config::{AgentConfig, Checked, Dial, StartError};
use crate::driver::{Driver, Status};
use crate::keyring::Keyring;
use crate::link::{Credential, Link};
use crate::registry::{Entry, First, Registry};
use crate::source::{Lag, Own, Source, Terms};
use crate::usage::Usage;

/// A client that is to be moved has so long for its `cut`: to negotiate and dial, and to park, 5 s each.
pub const NOTICE: Duration = Duration::from_secs(10);

/// What a process needs beside its connections from SIGTERM to its end.
const PROCESS: Duration = Duration::from_secs(10);

/// Events that may wait for the agent's task; a full queue holds the controller's messages back.
const EVENTS_MAX: usize = 256;

/// Steps of [`AgentHandle::leave`]: 10 ms apart they look even to everybody.
const LEAVE_STEP: Duration = Duration::from_millis(10);

/// Links close within 1 s; a little more for the tasks to go.
pub(crate) const STOP_WITHIN: Duration = Duration::from_millis(1_500);

/// A running agent. Cheap to clone; the agent ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct AgentHandle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    terms: Arc<Terms>,
    status: watch::Receiver<Status>,
    /// Dropped with the last handle, which ends every task.
    stop: watch::Sender<bool>,
}

/// One open connection. Its drop says that the connection is gone.
#[derive(Debug)]
pub struct Connection {
    shared: Arc<Shared>,
    pub(crate) entry: Arc<Entry>,
    abnormal: AtomicBool,
}

/// This connection was chosen to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closing(CloseReason);

impl Closing {
    /// The close code: 1012, service restart, unless the reason has its own.
    #[must_use]
    pub const fn code(self) -> u16 {
        self.0.code().get()
    }

    /// The text of the Close frame, for example `ek:draining`.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        self.0.as_str()
    }
}

impl AgentHandle {
    /// Starts an agent on the current tokio runtime. Controllers are dialled in the background: a server works
    /// whether they are there or not.
    ///
    /// # Errors
    /// [`StartError`] when the configuration cannot be used or there is no tokio runtime.
    pub fn start(config: AgentConfig) -> Result<Self, StartError> {
        let checked = Checked::try_from(config)?;
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(StartError::NoRuntime);
        }
        let clock = Clock::start();
        let (stop, stopping) = watch::channel(false);
        let (status_sender, status) = watch::channel(Status::START);
        let now = clock.now();
        let inc = Incarnation(now.as_millis());
        let caps = if checked.moves == Moves::Yes { vec![String::from("move")] } else { Vec::new() };
        let shared = Arc::new(Shared {
            keyring: Keyring::new(checked.dial.id.clone(), inc),
            policy: checked.policy,
            origins: checked.origins,
            registry: Registry::default(),
            clock,
            moves: checked.moves,
        });
        let terms = Arc::default();
        let own = Own {
            shared: Arc::clone(&shared),
            terms: Arc::clone(&terms),
            usage: Usage::of_this_process(now),
            lag: Lag::default(),
        };
        let driver = prepare(checked.dial, Life { inc, caps }, own, clock, status_sender, &stopping);
        spawn(driver.run(stopping));
        Ok(Self(Arc::new(Inner { shared, terms, status, stop })))
    }

    /// Asks whether a handshake may be answered with 101.
    ///
    /// # Errors
    /// [`Refused`]: answer with [`Refused::response`] instead.
    pub fn admit(&self, handshake: &Handshake<'_>) -> Result<Admission, Refused> {
        self.0.shared.admit(handshake)
    }

    /// Connections open now.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.0.shared.registry.held().connections.get()
    }

    /// What the controller wants of this server: `active` until it says something else.
    #[must_use]
    pub fn state(&self) -> State {
        self.0.status.borrow().state
    }

    /// Whether at least one controller knows this server now.
    #[must_use]
    pub fn is_linked(&self) -> bool {
        self.0.status.borrow().linked
    }

    /// Sets one of the user's own terms, 0 idle to 1 full, reported until it is set again or removed with NaN.
    /// Names are 1 to 64 printable ASCII characters, at most 16 of them; others are not reported.
    pub fn set_term(&self, name: impl Into<String>, value: f64) {
        let mut terms = self.0.terms.lock().unwrap_or_else(PoisonError::into_inner);
        if value.is_nan() {
            terms.remove(&name.into());
        } else {
            terms.insert(name.into(), value);
        }
    }

    /// Waits until the controller wants the process to end and no connection is left. Forever without one.
    ///
    /// # Cancel safety
    /// Yes.
    pub async fn finished(&self) {
        let mut status = self.0.status.clone();
        if status.wait_for(|status| status.finished).await.is_err() {
            // The agent's task ended without saying so; nobody may take that for an order.
            std::future::pending::<()>().await;
        }
    }

    /// Leaves on the application's own decision, for example on SIGTERM: admits nobody from now on, whatever the
    /// controller says, has `per_second` clients leave, those first that can be moved, and waits at most `grace`
    /// longer for them to go. Says how many are left. [`grace_period`] says how long a process needs for that.
    ///
    /// # Cancel safety
    /// Admission stays closed and connections told to leave stay told; call it again to go on.
    pub async fn leave(&self, per_second: f64, grace: Duration) -> u32 {
        let Shared { registry, clock, keyring, .. } = &*self.0.shared;
        let started = clock.now();
        registry.leave(keyring.node_now(started));
        let held = registry.held();
        let deadline = started + paced((held.connections + held.arriving).get(), per_second) + grace;
        let mut told = 0.0;
        loop {
            let (held, now) = (registry.held(), clock.now());
            if (held.connections + held.arriving).is_zero() || now >= deadline {
                return held.connections.get();
            }
            let owed = now.since(started).as_secs_f64() * per_second + 1.0 - told;
            // Who could not be moved comes back into this count, to be told again, and closed in the end.
            let open = held.connections.saturating_sub(held.closing);
            let under_way = if now + grace / 2 < deadline { UnderWay::Finish } else { UnderWay::End };
            told += f64::from(self.tell_to_leave(open.min(Connections(owed as u32)), under_way).get());
            tokio::time::sleep(LEAVE_STEP).await;
        }
    }

    /// Ends the agent's tasks and its links to the controllers in good order, within about a second. The server
    /// works on, alone.
    ///
    /// # Cancel safety
    /// The end goes on when this is dropped.
    pub async fn stop(&self) {
        self.0.stop.send_replace(true);
        // Every task holds a receiver. Late ones end by themselves.
        let _ = timeout(STOP_WITHIN, self.0.stop.closed()).await;
    }

    fn tell_to_leave(&self, count: Connections, under_way: UnderWay) -> Connections {
        let closes = Closes {
            count,
            select: Select::Idle,
            min_age: Duration::ZERO,
            under_way,
            reason: CloseReason::Stopped,
        };
        let Shared { registry, clock, .. } = &*self.0.shared;
        // Idle first draws nothing.
        registry.choose(&closes, First::Movable, clock.now(), &mut Rng::new(0))
    }
}

/// How long a process needs from SIGTERM to its end, for `terminationGracePeriodSeconds` and its like: everybody told
/// at the pace, the last one's notice ([`NOTICE`]), and 10 s for the process itself.
#[must_use]
pub fn grace_period(connections: u32, per_second: f64) -> Duration {
    paced(connections, per_second) + NOTICE + PROCESS
}

/// Waits for SIGTERM, the order of most supervisors to end; then [`AgentHandle::leave`].
///
/// # Errors
/// When the signal cannot be taken over.
///
/// # Cancel safety
/// Yes. From the first call on SIGTERM no longer ends the process by itself.
pub async fn terminated() -> io::Result<()> {
    signal(SignalKind::terminate())?.recv().await;
    Ok(())
}

/// Time in which so many are told; at most a day.
fn paced(connections: u32, per_second: f64) -> Duration {
    const DAY_S: f64 = 86_400.0;
    Duration::from_secs_f64((f64::from(connections) / per_second.max(f64::MIN_POSITIVE)).min(DAY_S))
}

/// One life of a server, as its hello says.
pub(crate) struct Life {
    pub(crate) inc: Incarnation,
    pub(crate) caps: Vec<String>,
}

/// Starts the links and makes the driver that the caller starts.
pub(crate) fn prepare<S: Source>(
    dial: Dial,
    Life { inc, caps }: Life,
    source: S,
    clock: Clock,
    status: watch::Sender<Status>,
    stop: &watch::Receiver<bool>,
) -> Driver<S> {
    let now = clock.now();
    // Time and process tell agents apart that start together; it is chance for pacing, not for secrets.
    let mut rng = Rng::new(now.0 ^ (u64::from(std::process::id()) << 32));
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    let credential = Arc::new(Credential::default());
    for (index, node) in dial.nodes.into_iter().enumerate() {
        let link = Link {
            id: LinkId(index),
            node,
            token: dial.token.clone(),
            credential: Arc::clone(&credential),
            events: sender.clone(),
            rng: rng.fork(index as u64),
        };
        spawn(link.run(stop.clone()));
    }
    let config = MachineConfig { id: dial.id, inc, profile: dial.profile, caps };
    Driver {
        agent: Agent::new(config, rng.fork(100), now),
        source,
        clock,
        credential,
        status,
        events,
        links: Default::default(),
        measure_at: now,
        quiet_until: now,
        rng,
    }
}

impl Connection {
    pub(crate) const fn new(shared: Arc<Shared>, entry: Arc<Entry>) -> Self {
        Self { shared, entry, abnormal: AtomicBool::new(false) }
    }

    /// Waits until this connection is chosen to leave; then send a Close frame and end it.
    ///
    /// # Cancel safety
    /// Yes; once chosen it resolves at once each time.
    pub async fn closing(&self) -> Closing {
        Closing(self.entry.closing().await)
    }

    /// A message of so many bytes passed, in either direction. Cheap: two atomic writes.
    #[inline]
    pub fn touch(&self, bytes: usize) {
        self.entry.touch(bytes as u64, self.shared.clock.now());
    }

    /// The connection ended without a Close frame. Many of these at once look like an outage to the controller,
    /// which then does not take the drop of load for idleness.
    pub fn broke(&self) {
        self.abnormal.store(true, Ordering::Relaxed);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.registry.end(&self.entry, self.abnormal.load(Ordering::Relaxed));
    }
}
