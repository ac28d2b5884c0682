//! One fleet as the gateway's thread holds it: the placing machine, the queue of those that wait for credit, and
//! who closes and checks for servers without agent.
//!
//! In: snapshots, handshakes that ask for a server, how they went. Out: placements, views, orders to the engine.
//! Invariants: every placement is settled exactly once ([`Placed`] sees to it, however its task ends); a borrow
//! never lasts over an await. Elsewhere: every decision (`evenkeel_fleet::gateway`, `::admission`,
//! `evenkeel_protocol::executor`).

pub(crate) mod offer;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use evenkeel_fleet::admission::{Admission, Arrival, Ticket};
use evenkeel_fleet::config::PlaceConfig;
use evenkeel_fleet::gateway::{
    Ask, Failure, Gateway, GatewayConfig as MachineConfig, Placement, Refusal, ServerKey,
};
use evenkeel_fleet::snapshot::{Executor, GatewayView, Settlements, Snapshot};
use evenkeel_model::{Connections, Duration, FleetId, GatewayId, Instant, Rng, ServerId};
use evenkeel_protocol::keys::MasterKey;
use evenkeel_protocol::refusal::Refusal as BadToken;
use evenkeel_protocol::token::{self, Audience, Wanted};
use evenkeel_runtime::Clock;
use tokio::sync::{Notify, oneshot, watch};

use crate::backlog::Backlog;
use crate::config::FleetSettings;
use crate::connect::Target;
use crate::credentials::{Bound, Credentials, MintError, Session};
use crate::engine::{Engine, Owner};
use crate::execute::Executors;
use crate::metrics::Metrics;
use crate::sessions::Sessions;

/// See the module's documentation.
pub(crate) struct Fleet {
    pub(crate) id: FleetId,
    pub(crate) settings: FleetSettings,
    index: u32,
    clock: Clock,
    metrics: Metrics,
    /// Wakes the gateway's loop: something is due earlier than it knew.
    pulse: Rc<Notify>,
    inner: RefCell<Inner>,
    credentials: RefCell<Credentials>,
    backlog: RefCell<Backlog>,
    /// A failure was seen that the controller should hear of now.
    urgent: Cell<bool>,
}

struct Inner {
    machine: Gateway,
    admission: Admission,
    waiters: BTreeMap<Ticket, oneshot::Sender<Result<Placement, Refusal>>>,
    executors: Executors,
    targets: BTreeMap<Arc<str>, Option<Rc<Target>>>,
    heard: BTreeMap<ServerKey, Arc<AtomicBool>>,
    /// When that was looked at last.
    heard_until: Instant,
    snapshot: Option<Arc<Snapshot>>,
    /// Whether any server in it can be reached by clients themselves.
    public: bool,
}

impl Inner {
    /// Knows where to connect from here on.
    fn reach(&mut self, snapshot: &Arc<Snapshot>) {
        let mut before = std::mem::take(&mut self.targets);
        for server in &snapshot.servers {
            self.targets.entry(Arc::clone(&server.url)).or_insert_with(|| {
                before.remove(&server.url).unwrap_or_else(|| Target::parse(&server.url).map(Rc::new))
            });
        }
        self.public = snapshot
            .servers
            .iter()
            .any(|server| server.public_url.is_some() && server.executor == Executor::Agent);
        self.snapshot = Some(Arc::clone(snapshot));
    }
}

/// A placement that its holder must settle; dropped unsettled, the client went away first.
pub(crate) struct Placed {
    fleet: Rc<Fleet>,
    placement: Placement,
    settled: bool,
}

impl Fleet {
    pub(crate) fn new(
        id: FleetId,
        index: u32,
        settings: FleetSettings,
        gateway: &GatewayId,
        shell: (Clock, Metrics, Rc<Notify>, Option<watch::Receiver<MasterKey>>),
        mut rng: Rng,
    ) -> Self {
        let (clock, metrics, pulse, master) = shell;
        let credentials = RefCell::new(Credentials::new(id.clone(), master));
        let config = MachineConfig { id: gateway.clone(), fleet: id.clone() };
        let executors = Executors::new(rng.fork(2));
        let inner = Inner {
            machine: Gateway::new(config, rng.fork(1), clock.now()),
            admission: Admission::new(&PlaceConfig::default()),
            waiters: BTreeMap::new(),
            executors,
            targets: BTreeMap::new(),
            heard: BTreeMap::new(),
            heard_until: clock.now(),
            snapshot: None,
            public: false,
        };
        Self {
            id,
            settings,
            index,
            clock,
            metrics,
            pulse,
            inner: RefCell::new(inner),
            credentials,
            backlog: RefCell::default(),
            urgent: Cell::new(false),
        }
    }

    pub(crate) fn owner(&self, server: ServerKey) -> Owner {
        Owner { fleet: self.index, server }
    }

    /// Takes what an agent said of assignments of its server.
    pub(crate) fn settle(&self, settled: &Settlements, now: Instant) {
        let machine = &mut self.inner.borrow_mut().machine;
        for (rid, outcome) in &settled.outcomes {
            machine.settled(rid, &settled.server, *outcome, now);
        }
    }

    /// Takes a snapshot.
    pub(crate) fn install(&self, snapshot: &Arc<Snapshot>, now: Instant) {
        let inner = &mut *self.inner.borrow_mut();
        if inner.snapshot.as_ref().is_some_and(|held| Arc::ptr_eq(held, snapshot)) {
            return;
        }
        inner.machine.install(snapshot, now);
        inner.reach(snapshot);
        let machine = &inner.machine;
        let own = |id: &ServerId| machine.key(id).map(|key| (key, machine.connections(key)));
        inner.executors.take(snapshot, own, now);
        self.credentials.borrow_mut().retain(|id| machine.key(id).is_some());
    }

    /// Begins with what an earlier life left. It orders nothing, so there is nothing to execute.
    pub(crate) fn recall(&self, left: &Arc<Snapshot>, now: Instant) {
        let inner = &mut *self.inner.borrow_mut();
        inner.machine.recall(left, now);
        inner.reach(left);
    }

    /// What the next life should begin with; `None`: nothing is known yet.
    pub(crate) fn to_recall(&self) -> Option<Snapshot> {
        self.inner.borrow().machine.to_recall()
    }

    /// Servers that this gateway checks, with where.
    pub(crate) fn to_check(&self) -> Vec<(ServerId, Arc<str>)> {
        let inner = self.inner.borrow();
        let servers = inner.snapshot.as_ref().map_or(&[][..], |snapshot| &snapshot.servers);
        let without_agent = servers.iter().filter(|server| server.executor == Executor::Gateways);
        without_agent.map(|server| (server.id.clone(), Arc::clone(&server.url))).collect()
    }

    /// Picks a server; waits for credit where that is all that lacks.
    ///
    /// # Cancel safety
    /// Yes: dropped, it leaves the queue, and a placement that had just come is given back.
    pub(crate) async fn place(self: &Rc<Self>, ticket: u64, ask: &Ask<'_>) -> Result<Placed, Refusal> {
        let ticket = Ticket(ticket);
        let arrival = {
            let inner = &mut *self.inner.borrow_mut();
            inner.admission.arrive(&mut inner.machine, ticket, ask, self.clock.now())
        };
        match arrival {
            Arrival::Placed(placement) => Ok(self.placed(placement)),
            Arrival::Refused(refusal) => Err(refusal),
            Arrival::Waits => {
                let (sender, outcome) = oneshot::channel();
                self.inner.borrow_mut().waiters.insert(ticket, sender);
                self.pulse.notify_one();
                let mut waiting = Waiting { fleet: Rc::clone(self), ticket, outcome };
                let outcome = (&mut waiting.outcome).await;
                // The sender lives in our own list until it has sent.
                outcome.unwrap_or(Err(Refusal::NothingOpen)).map(|placement| self.placed(placement))
            }
        }
    }

    /// Picks a receiver for a connection that is moved; nobody who has a connection waits.
    ///
    /// # Errors
    /// [`Refusal`] when none is better than the source: the client stays where it is.
    pub(crate) fn place_move(self: &Rc<Self>, ask: &Ask<'_>) -> Result<Placed, Refusal> {
        let placement = self.inner.borrow_mut().machine.place(ask, self.clock.now())?;
        Ok(self.placed(placement))
    }

    /// Places a client on the server that its assignment names.
    ///
    /// # Errors
    /// Why the assignment is not good.
    pub(crate) fn redeem(
        self: &Rc<Self>,
        brought: &str,
        path: &str,
        origin: Option<&str>,
    ) -> Result<Placed, BadToken> {
        let now = self.clock.now();
        let audience = token::names(brought.as_bytes())?;
        let prefix = self.prefix_of(&audience).ok_or(BadToken::OtherServer)?;
        let path = format!("{prefix}{path}");
        let wanted = Wanted { audience: &audience, path: &path, origin };
        let claims = self.credentials.borrow_mut().check(brought, &wanted, now)?;
        let machine = &mut self.inner.borrow_mut().machine;
        let placement = machine.redeem(&claims.rid, &audience.server, now).ok_or(BadToken::OtherServer)?;
        Ok(self.placed(placement))
    }

    /// The path of the URL of this life of a server, as far as it is known.
    fn prefix_of(&self, audience: &Audience) -> Option<String> {
        let inner = self.inner.borrow();
        let servers = &inner.snapshot.as_ref()?.servers;
        let at = servers.binary_search_by(|server| server.id.cmp(&audience.server)).ok()?;
        let server = servers.get(at).filter(|server| server.inc == audience.inc)?;
        Some(inner.targets.get(&server.url)?.as_ref()?.prefix.clone())
    }

    /// Who a ticket says that a client is, and the server that it leaves, if that is still here.
    ///
    /// # Errors
    /// Why the ticket is not good.
    pub(crate) fn read_ticket(&self, ticket: &str) -> Result<(String, Option<ServerKey>), BadToken> {
        let ticket = self.credentials.borrow_mut().check_ticket(ticket, self.clock.now())?;
        let source = self.inner.borrow().machine.key(&ticket.source);
        Ok((ticket.sid, source))
    }

    fn placed(self: &Rc<Self>, placement: Placement) -> Placed {
        Placed { fleet: Rc::clone(self), placement, settled: false }
    }

    fn failed(&self, placement: &Placement, failure: Failure) {
        let inner = &mut *self.inner.borrow_mut();
        inner.machine.failed(placement.id, failure, self.clock.now());
        self.metrics.placement(failure_reason(failure));
        if matches!(failure, Failure::Refused | Failure::Unreachable | Failure::BadAnswer) {
            self.urgent.set(true);
            self.pulse.notify_one();
        }
    }

    /// Its number in this gateway.
    pub(crate) const fn number(&self) -> u32 {
        self.index
    }

    /// The tag of a session's name; `None` without a master key.
    pub(crate) fn tag(&self, home: &Audience, sid: &str) -> Option<String> {
        Some(self.credentials.borrow_mut().session_key(self.clock.now())?.tag(home, sid))
    }

    /// The life of a server that a session's tag names.
    pub(crate) fn home_of(&self, sid: &str, tag: &str) -> Option<(Audience, ServerKey)> {
        let key = self.credentials.borrow_mut().session_key(self.clock.now())?;
        let inner = self.inner.borrow();
        let homes = inner.snapshot.as_ref()?.servers.iter();
        let mut homes = homes.map(|server| Audience { server: server.id.clone(), inc: server.inc });
        let home = homes.find(|home| key.tag(home, sid) == tag)?;
        let slot = inner.machine.key(&home.server)?;
        Some((home, slot))
    }

    /// Stands for a session at its server, whatever state that one is in; `None`: that life of it is over.
    pub(crate) fn held(self: &Rc<Self>, home: &Audience) -> Option<Placed> {
        let placement = self.inner.borrow().machine.held(&home.server)?;
        (placement.inc == home.inc).then(|| Placed { fleet: Rc::clone(self), placement, settled: true })
    }

    /// Counts a connection that nobody placed here.
    pub(crate) fn adopt(&self, server: ServerKey) {
        self.inner.borrow_mut().machine.adopt(server, Connections(1));
    }

    /// The server answered something: it is not frozen.
    pub(crate) fn heard(&self, server: ServerKey) {
        self.inner.borrow_mut().machine.heard(server, self.clock.now());
    }

    /// A tunnel or a polling session ended.
    pub(crate) fn closed(&self, server: ServerKey, lasted: Duration) {
        self.inner.borrow_mut().machine.closed(server, lasted, self.clock.now());
    }

    /// Does what is due: who spoke, targets, the queue, closes.
    pub(crate) fn turn(&self, engine: &Engine, sessions: &Sessions, now: Instant) {
        let inner = &mut *self.inner.borrow_mut();
        for (key, heard) in &inner.heard {
            if heard.swap(false, Ordering::Relaxed) {
                // Some time since the last look: taken for the start of it, or a server that fell silent right
                // after would be trusted for longer than silence is.
                inner.machine.heard(*key, inner.heard_until);
            }
        }
        inner.heard_until = now;
        inner.machine.handle_timeout(now);
        for (ticket, outcome) in inner.admission.poll(&mut inner.machine, now) {
            let Some(waiter) = inner.waiters.remove(&ticket) else {
                give_back(&mut inner.machine, outcome, now);
                continue;
            };
            if let Err(outcome) = waiter.send(outcome) {
                give_back(&mut inner.machine, outcome, now);
            }
        }
        let close_code = self.settings.close_code;
        inner.executors.turn((engine, sessions), |server| self.owner(server), close_code, now);
    }

    /// When [`Fleet::turn`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let inner = self.inner.borrow();
        let dues =
            [inner.machine.poll_timeout(), inner.admission.poll_timeout(), inner.executors.poll_timeout()];
        dues.into_iter().flatten().min()
    }

    /// What the controller should know.
    pub(crate) fn view(&self, now: Instant) -> GatewayView {
        self.urgent.set(false);
        self.inner.borrow_mut().machine.view(now)
    }

    /// Whether a view is wanted before its time.
    pub(crate) fn is_urgent(&self) -> bool {
        self.urgent.get()
    }

    /// Handshakes that wait for credit.
    pub(crate) fn waiting(&self) -> usize {
        self.inner.borrow().admission.len()
    }
}

fn give_back(machine: &mut Gateway, outcome: Result<Placement, Refusal>, now: Instant) {
    if let Ok(placement) = outcome {
        machine.failed(placement.id, Failure::ClientGone, now);
    }
}

const fn failure_reason(failure: Failure) -> &'static str {
    match failure {
        Failure::Refused => "refused",
        Failure::Unreachable => "unreachable",
        Failure::BadAnswer => "bad_answer",
        Failure::Draining => "draining",
        Failure::Answered => "answered",
        Failure::ClientGone => "client_gone",
    }
}

impl Placed {
    pub(crate) fn server(&self) -> ServerKey {
        self.placement.key
    }

    pub(crate) fn id(&self) -> &ServerId {
        &self.placement.server
    }

    /// The life of the server that it is placed in.
    pub(crate) fn home(&self) -> Audience {
        Audience { server: self.placement.server.clone(), inc: self.placement.inc }
    }

    pub(crate) fn owner(&self) -> Owner {
        self.fleet.owner(self.placement.key)
    }

    /// Where to connect; `None` for a URL that cannot be connected to.
    pub(crate) fn target(&self) -> Option<Rc<Target>> {
        let inner = self.fleet.inner.borrow();
        match inner.targets.get(&self.placement.url) {
            Some(target) => target.clone(),
            // The snapshot changed between pick and connect.
            None => Target::parse(&self.placement.url).map(Rc::new),
        }
    }

    /// The assignment for the server's eyes; `None`: it checks none.
    ///
    /// # Errors
    /// [`MintError`].
    pub(crate) fn mint(
        &self,
        path: &str,
        origin: Option<&str>,
        session: &Session,
    ) -> Result<Option<String>, MintError> {
        if self.placement.executor == Executor::Gateways {
            return Ok(None);
        }
        let rid = self.fleet.inner.borrow().machine.rid_of(self.placement.id);
        let Placement { server, inc, .. } = &self.placement;
        let bound = Bound { server, inc: *inc, rid: &rid, path, origin };
        let now = self.fleet.clock.now();
        self.fleet.credentials.borrow_mut().assignment(&bound, session, now).map(Some)
    }

    /// The server answered 101; says where to note that it speaks.
    pub(crate) fn connected(mut self) -> Arc<AtomicBool> {
        self.settled = true;
        let inner = &mut *self.fleet.inner.borrow_mut();
        inner.machine.connected(self.placement.id, self.fleet.clock.now());
        self.fleet.metrics.placement("connected");
        Arc::clone(inner.heard.entry(self.placement.key).or_default())
    }

    /// Counts a tunnel of a session that nothing stood for.
    pub(crate) fn adopt(&self) {
        self.fleet.adopt(self.placement.key);
    }

    pub(crate) fn failed(mut self, failure: Failure) {
        self.settled = true;
        self.fleet.failed(&self.placement, failure);
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        if !self.settled {
            self.fleet.failed(&self.placement, Failure::ClientGone);
        }
    }
}

/// A handshake in the queue.
struct Waiting {
    fleet: Rc<Fleet>,
    ticket: Ticket,
    outcome: oneshot::Receiver<Result<Placement, Refusal>>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let inner = &mut *self.fleet.inner.borrow_mut();
        inner.admission.cancel(self.ticket);
        inner.waiters.remove(&self.ticket);
        // Only if it was sent and never taken.
        if let Ok(outcome) = self.outcome.try_recv() {
            give_back(&mut inner.machine, outcome, self.fleet.clock.now());
        }
    }
}
