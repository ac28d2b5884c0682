//! What an application holds: the agent, and each of its connections.
//!
//! Invariant: an [`Admission`] becomes a [`Connection`] or is turned back by its drop; a [`Connection`] ends with
//! its drop. So the counts are right however a task ends, also by a panic.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use evenkeel_model::{Connections, Duration, Incarnation, Rng, Select, State};
use evenkeel_protocol::agent::{Agent, AgentConfig as MachineConfig, LinkId};
use evenkeel_protocol::close::CloseReason;
use evenkeel_protocol::executor::{Admit, Closes, UnderWay};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::clock::{Clock, spawn};
use crate::config::{AgentConfig, Checked, StartError};
use crate::driver::{Driver, Lag, Status, Terms};
use crate::link::{Credential, Link};
use crate::registry::{Entry, Registry};
use crate::usage::Usage;

/// Header and value that a refusal carries while the server takes no new connections, next to status 503: a
/// gateway that sees it goes elsewhere and counts no failure.
pub const DRAINING: (&str, &str) = ("Evenkeel-Draining", "1");

/// Events that may wait for the agent's task; a full queue holds the controller's messages back.
const EVENTS_MAX: usize = 256;

/// Steps of [`AgentHandle::leave`]: 10 ms apart closes look even to everybody.
const LEAVE_STEP: Duration = Duration::from_millis(10);

/// Links close within 1 s; a little more for the tasks to go.
const STOP_WITHIN: Duration = Duration::from_millis(1_500);

/// A running agent. Cheap to clone; the agent ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct AgentHandle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Arc<Registry>,
    clock: Clock,
    terms: Arc<Terms>,
    status: watch::Receiver<Status>,
    /// Dropped with the last handle, which ends every task.
    stop: watch::Sender<bool>,
}

/// The server takes no new connections: answer the handshake 503 with [`DRAINING`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server takes no new connections: it is {}", self.reason())]
pub struct Draining {
    admit: Admit,
}

impl Draining {
    /// Short code for logs: `draining` or `cordoned`.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        self.admit.as_str()
    }

    /// What to say in `Retry-After`, in seconds: by then a gateway has gone elsewhere.
    #[must_use]
    pub const fn retry_after_s(&self) -> u64 {
        1
    }
}

/// One handshake that was let in. Turn it into a [`Connection`] after the 101; its drop turns it back.
#[derive(Debug)]
#[must_use = "a dropped admission counts as a handshake that failed"]
pub struct Admission {
    registry: Arc<Registry>,
    clock: Clock,
    opened: bool,
}

/// One open connection. Its drop says that the connection is gone.
#[derive(Debug)]
pub struct Connection {
    registry: Arc<Registry>,
    clock: Clock,
    entry: Arc<Entry>,
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
        let driver = prepare(checked, clock, status_sender, &stopping);
        let (registry, terms) = (Arc::clone(&driver.registry), Arc::clone(&driver.terms));
        spawn(driver.run(stopping));
        Ok(Self(Arc::new(Inner { registry, clock, terms, status, stop })))
    }

    /// Asks whether a handshake may be answered with 101.
    ///
    /// # Errors
    /// [`Draining`]: answer 503 with [`DRAINING`] and `Retry-After`.
    pub fn admit(&self) -> Result<Admission, Draining> {
        match self.0.registry.arrive() {
            Ok(()) => {
                Ok(Admission { registry: Arc::clone(&self.0.registry), clock: self.0.clock, opened: false })
            }
            Err(admit) => Err(Draining { admit }),
        }
    }

    /// Connections open now.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.0.registry.held().connections.get()
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
    /// controller says, tells all connections to close, evenly over `within`, and waits at most `grace` longer for
    /// them to go. Says how many are left.
    ///
    /// # Cancel safety
    /// Admission stays closed and connections told to close stay told; call it again to go on.
    pub async fn leave(&self, within: Duration, grace: Duration) -> u32 {
        let registry = &self.0.registry;
        registry.leave();
        let steps = u32::try_from(within.as_millis() / LEAVE_STEP.as_millis()).unwrap_or(u32::MAX).max(1);
        for left in (1..=steps).rev() {
            let held = registry.held();
            let open = held.connections.saturating_sub(held.closing);
            if (open + held.arriving).is_zero() {
                break;
            }
            self.choose_to_leave(Connections(open.get().div_ceil(left)));
            tokio::time::sleep(LEAVE_STEP).await;
        }
        // Handshakes that were let in before may have opened since.
        self.choose_to_leave(Connections::MAX);
        let empty = async {
            loop {
                let emptied = registry.emptied.notified();
                if registry.held().connections.is_zero() {
                    return;
                }
                emptied.await;
            }
        };
        let _ = timeout(grace, empty).await;
        registry.held().connections.get()
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

    fn choose_to_leave(&self, count: Connections) {
        let closes = Closes {
            count,
            select: Select::Idle,
            min_age: Duration::ZERO,
            under_way: UnderWay::End,
            reason: CloseReason::Stopped,
        };
        // Idle first draws nothing.
        self.0.registry.choose(&closes, self.0.clock.now(), &mut Rng::new(0));
    }
}

/// Starts the links and makes the driver that the caller starts.
fn prepare(
    checked: Checked,
    clock: Clock,
    status: watch::Sender<Status>,
    stop: &watch::Receiver<bool>,
) -> Driver {
    let now = clock.now();
    // Time and process tell agents apart that start together; it is chance for pacing, not for secrets.
    let mut rng = Rng::new(now.0 ^ (u64::from(std::process::id()) << 32));
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    let credential = Arc::new(Credential::default());
    for (index, node) in checked.nodes.into_iter().enumerate() {
        let link = Link {
            id: LinkId(index),
            node,
            token: checked.token.clone(),
            credential: Arc::clone(&credential),
            events: sender.clone(),
            rng: rng.fork(index as u64),
        };
        spawn(link.run(stop.clone()));
    }
    let config = MachineConfig {
        id: checked.id,
        inc: Incarnation(now.as_millis()),
        profile: checked.profile,
        caps: Vec::new(),
    };
    Driver {
        agent: Agent::new(config, rng.fork(100), now),
        clock,
        registry: Arc::default(),
        terms: Arc::default(),
        credential,
        status,
        events,
        links: Default::default(),
        usage: Usage::of_this_process(now),
        lag: Lag::default(),
        measure_at: now,
        quiet_until: now,
        rng,
    }
}

impl Admission {
    /// The handshake is done: counts it as a connection.
    #[must_use]
    pub fn open(mut self) -> Connection {
        self.opened = true;
        Connection {
            entry: self.registry.open(self.clock.now()),
            registry: Arc::clone(&self.registry),
            clock: self.clock,
            abnormal: AtomicBool::new(false),
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if !self.opened {
            self.registry.turn_back();
        }
    }
}

impl Connection {
    /// Waits until this connection is chosen to leave; then send a Close frame and end it.
    ///
    /// # Cancel safety
    /// Yes; once chosen it resolves at once each time.
    pub async fn closing(&self) -> Closing {
        Closing(self.entry.chosen().await)
    }

    /// A message of so many bytes passed, in either direction. Cheap: two atomic writes.
    #[inline]
    pub fn touch(&self, bytes: usize) {
        self.entry.touch(bytes as u64, self.clock.now());
    }

    /// The connection ended without a Close frame. Many of these at once look like an outage to the controller,
    /// which then does not take the drop of load for idleness.
    pub fn broke(&self) {
        self.abnormal.store(true, Ordering::Relaxed);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.registry.end(&self.entry, self.abnormal.load(Ordering::Relaxed));
    }
}
