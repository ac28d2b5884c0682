//! The task of one fleet: owns its [`Controller`], feeds it, and performs its outputs strictly in order.
//!
//! In: [`ToFleet`] from agent links, gateways, the provider and the admin API. Out: the store, the publication,
//! agent links, the provider, answers, events. Invariants: an output is performed only after everything persisted
//! before it is on disk; after a panic or a failed write the machine is dropped and restored from the store under a
//! new epoch, links and server processes stay (crash-only). Elsewhere: every decision (`evenkeel_fleet`).

mod shell;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use evenkeel_fleet::controller::{Controller, Input, Order, OrderError, OrderId, Provided, Registration};
use evenkeel_fleet::snapshot::Snapshot;
use evenkeel_model::{Desired, Duration, Epoch, Fence, Incarnation, Report, Rng, ServerId};
use evenkeel_protocol::close::CloseReason;
use evenkeel_runtime::tasks::catch_panic;
use evenkeel_runtime::{Clock, Phase, Shutdown, Tasks};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use crate::config::FleetSettings;
use crate::directory::Owners;
use crate::events::Events;
use crate::metrics::Metrics;
use crate::providers;
use crate::publish::Publisher;
use crate::status::FleetStatus;
use crate::store::{Change, Store, StoreError};

/// Waits before a restart after a panic or a failed write: first and longest.
const RESTART_FIRST: Duration = Duration::from_millis(100);
const RESTART_MAX: Duration = Duration::from_secs(5);
/// A task that ran for so long begins again with the first wait.
const STEADY_AFTER: Duration = Duration::from_secs(30);
/// At the start the provider has so long to say what still runs, before anything is decided.
const RESUME_WAIT: Duration = Duration::from_secs(5);

/// Tells one agent link from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LinkId(pub(crate) u64);

/// The fleet's end of an agent link. Dropping it ends the link.
#[derive(Debug)]
pub(crate) struct LinkEnd {
    pub(crate) id: LinkId,
    pub(crate) inc: Incarnation,
    /// The newest order; sent again whenever it is set, which renews the lease.
    pub(crate) desired: watch::Sender<Option<Desired>>,
}

/// What a hello is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Greeting {
    Welcome,
    Stale { known: Incarnation },
    Refused { why: String, close: CloseReason },
}

/// What a posted report is answered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PostAnswer {
    Desired(Desired),
    Stale { known: Incarnation },
    Unknown,
    Refused { why: String },
}

/// What an order is answered.
pub(crate) type OrderAnswer = Result<Vec<(ServerId, Desired)>, OrderFailure>;

/// Why an order did not take effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OrderFailure {
    #[error(transparent)]
    Refused(#[from] OrderError),
    #[error("the order could not be stored, so it does not take effect: {why}")]
    Store { why: String },
}

/// What reaches a fleet's task.
#[derive(Debug)]
pub(crate) enum ToFleet {
    /// An agent introduces itself.
    Hello { registration: Registration, link: LinkEnd, reply: oneshot::Sender<Greeting> },
    /// A report over a link.
    Reported { server: ServerId, link: LinkId, report: Report },
    /// A report over HTTP.
    Posted {
        server: ServerId,
        registration: Option<Registration>,
        report: Report,
        reply: oneshot::Sender<PostAnswer>,
    },
    /// An agent said something that is nobody's business but shows that it lives.
    Spoke { server: ServerId, link: LinkId },
    /// An agent obeys an order.
    Applied { server: ServerId, link: LinkId, fence: Fence },
    /// An agent is empty under an order.
    Drained { server: ServerId, link: LinkId, fence: Fence },
    /// A link ended.
    LinkLost { server: ServerId, link: LinkId, inc: Incarnation },
    /// An operator's order.
    Ordered { order: Order, reply: oneshot::Sender<OrderAnswer> },
    /// A gateway's word.
    Said(Input),
    /// How does the fleet look?
    Ask(oneshot::Sender<Arc<FleetStatus>>),
    /// Tests only: what a defect does.
    #[cfg(test)]
    Panic,
}

/// Everything a fleet's task works with. Outlives the machine.
pub(crate) struct Fleet {
    pub(crate) settings: FleetSettings,
    pub(crate) store: Store,
    pub(crate) owners: Owners,
    pub(crate) publisher: Publisher,
    pub(crate) events: Events,
    pub(crate) metrics: Metrics,
    pub(crate) provider: Option<providers::Handle>,
    pub(crate) clock: Clock,
    pub(crate) shutdown: Shutdown,
    pub(crate) tasks: Tasks,
    pub(crate) memory: Memory,
}

/// What is kept over a restart of the machine.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Live agent links.
    links: BTreeMap<ServerId, LinkEnd>,
    /// The last word of each server that registered itself.
    registered: BTreeMap<ServerId, Registration>,
    /// Where each server of the provider runs or ran, and its last trouble.
    provided: BTreeMap<ServerId, (Arc<str>, Option<Provided>)>,
    /// Orders not yet answered.
    pending: BTreeMap<OrderId, Pending>,
    next_order: u64,
    /// Highest epoch an agent says it obeyed.
    seen: Epoch,
    epoch: Epoch,
    /// Version of the last publication.
    version: u64,
    /// The last publication, at first the last one before this process: what the next machine begins with.
    published: Option<Arc<Snapshot>>,
}

#[derive(Debug)]
struct Pending {
    order: &'static str,
    reply: oneshot::Sender<OrderAnswer>,
}

/// The machine is to be restored: nothing of its last outputs took effect.
#[derive(Debug)]
struct Fault(StoreError);

impl Fleet {
    /// Runs until shutdown; restores the machine from the store whenever it fails.
    pub(crate) async fn run(
        mut self,
        mut inputs: mpsc::Receiver<ToFleet>,
        mut provided: mpsc::Receiver<Provided>,
    ) {
        self.hear_provider(&mut provided).await;
        let mut failures = 0;
        loop {
            let began = self.clock.now();
            let ended = catch_panic(self.run_machine(&mut inputs, &mut provided)).await;
            // Whoever waits for an answer hears that the task restarts.
            self.memory.pending.clear();
            let fleet = &self.settings.policy.id;
            match ended {
                Ok(Ok(())) => return,
                Ok(Err(Fault(error))) => {
                    error!(%fleet, error = chain(&error), reason = error.reason(), "fleet task restarts from the store");
                    self.metrics.restarted(fleet, "store");
                }
                Err(panic) => {
                    error!(%fleet, %panic, "fleet task panicked; it restarts from the store");
                    self.metrics.restarted(fleet, "panic");
                }
            }
            failures = if self.clock.now().since(began) >= STEADY_AFTER { 0 } else { failures };
            let wait = RESTART_FIRST.saturating_mul(1 << failures.min(10)).min(RESTART_MAX);
            failures += 1;
            tokio::select! {
                () = self.clock.sleep(wait) => {}
                () = self.shutdown.reached(Phase::Stop) => return,
            }
        }
    }

    /// Waits until the provider has said of every stored process what became of it, so that nothing is started
    /// beside what still runs.
    async fn hear_provider(&mut self, provided: &mut mpsc::Receiver<Provided>) {
        if self.provider.is_none() {
            return;
        }
        let (store, fleet) = (self.store.clone(), self.settings.policy.id.clone());
        // What cannot be read is reported by the provider.
        let stored =
            tokio::task::spawn_blocking(move || store.processes(&fleet)).await.ok().and_then(Result::ok);
        let mut awaited: BTreeSet<String> =
            stored.unwrap_or_default().into_iter().map(|process| process.server).collect();
        let deadline = self.clock.now() + RESUME_WAIT;
        while !awaited.is_empty() {
            tokio::select! {
                word = provided.recv() => match word {
                    Some(word) => {
                        awaited.remove(server_of(&word).as_str());
                        self.note_provided(&word);
                    }
                    None => return,
                },
                () = self.clock.sleep_until(Some(deadline)) => {
                    warn!(fleet = %self.settings.policy.id, servers = awaited.len(), "server processes not heard of in time");
                    return;
                }
                () = self.shutdown.reached(Phase::Stop) => return,
            }
        }
    }

    /// One life of the machine.
    async fn run_machine(
        &mut self,
        inputs: &mut mpsc::Receiver<ToFleet>,
        provided: &mut mpsc::Receiver<Provided>,
    ) -> Result<(), Fault> {
        let mut controller = self.restore().await?;
        self.replay(&mut controller).await?;
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.reached(Phase::Stop) => return Ok(()),
                Some(word) = provided.recv() => {
                    self.note_provided(&word);
                    let server = server_of(&word).clone();
                    self.feed(&mut controller, Input::Provided(word)).await?;
                    if controller.desired(&server).is_none() {
                        self.forget(&server);
                    }
                }
                // One at a time: an input that makes the machine fail takes no other with it.
                input = inputs.recv() => match input {
                    Some(input) => self.take(&mut controller, input).await?,
                    None => return Ok(()),
                },
                () = self.clock.sleep_until(controller.poll_timeout()) => {
                    let (now, round) = (self.clock.now(), controller.explanation().round);
                    controller.handle_timeout(now);
                    if controller.explanation().round != round {
                        self.metrics.round(&self.settings.policy.id, self.clock.now().since(now));
                    }
                    self.perform(&mut controller).await?;
                }
            }
        }
    }

    async fn restore(&mut self) -> Result<Controller, Fault> {
        let (store, fleet, seen) = (self.store.clone(), self.settings.policy.id.clone(), self.memory.seen);
        let (epoch, record) = blocking(move || store.begin_epoch(&fleet, seen)).await.map_err(Fault)?;
        self.memory.epoch = epoch;
        for stored in &record.servers {
            // So that an operator can reach a server whose agent is not back yet.
            if let Err(error) = self.owners.claim(&stored.server, &self.settings.policy.id) {
                error!(fleet = %self.settings.policy.id, server = %stored.server, %error, "stored server left out");
            }
        }
        let seed = crate::token::random().map_or(self.clock.now().0, |bytes| {
            u64::from_le_bytes([
                bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7],
            ])
        });
        info!(
            fleet = %self.settings.policy.id, epoch = epoch.get(), intents = record.servers.len(), "control loop begins"
        );
        let now = self.clock.now();
        let mut controller =
            Controller::new(self.settings.policy.clone(), epoch, &record, Rng::new(seed), now);
        if let Some(published) = &self.memory.published {
            controller.recall(published, now);
        }
        Ok(controller)
    }

    /// Tells a new machine what its predecessor knew.
    async fn replay(&mut self, controller: &mut Controller) -> Result<(), Fault> {
        for registration in self.settings.servers.clone() {
            self.feed(controller, Input::Registered(registration)).await?;
        }
        for (server, (url, trouble)) in self.memory.provided.clone() {
            self.feed(controller, Input::Provided(Provided::Running { server, url })).await?;
            if let Some(trouble) = trouble {
                self.feed(controller, Input::Provided(trouble)).await?;
            }
        }
        for registration in self.memory.registered.values().cloned().collect::<Vec<_>>() {
            let server = registration.id.clone();
            self.feed(controller, Input::Registered(registration)).await?;
            self.send_desired(controller, &server);
        }
        Ok(())
    }

    async fn feed(&mut self, controller: &mut Controller, input: Input) -> Result<(), Fault> {
        controller.handle(input, self.clock.now());
        self.perform(controller).await
    }

    /// Performs the outputs, in order; what is to be stored is on disk before anything that follows it.
    async fn perform(&mut self, controller: &mut Controller) -> Result<(), Fault> {
        let mut changes = Vec::new();
        while let Some(output) = controller.poll_output() {
            match shell::change(output) {
                Ok(change) => changes.push(change),
                Err(output) => {
                    self.store(controller, &mut changes).await?;
                    self.perform_one(output);
                }
            }
        }
        self.store(controller, &mut changes).await
    }

    async fn store(&mut self, controller: &Controller, changes: &mut Vec<Change>) -> Result<(), Fault> {
        if changes.is_empty() {
            return Ok(());
        }
        let changes = std::mem::take(changes);
        let gone = changes.iter().filter_map(|change| match change {
            Change::Forget(server) => Some(server.clone()),
            _ => None,
        });
        let gone: Vec<_> = gone.filter(|server| controller.desired(server).is_none()).collect();
        let (store, fleet) = (self.store.clone(), self.settings.policy.id.clone());
        match blocking(move || store.commit(&fleet, &changes)).await {
            Ok(()) => {
                gone.iter().for_each(|server| self.forget(server));
                Ok(())
            }
            Err(error) => {
                self.memory.fail_orders(&error);
                Err(Fault(error))
            }
        }
    }
}

impl Memory {
    /// Of a process that knows what was published before it.
    pub(crate) fn recalling(published: Option<Arc<Snapshot>>) -> Self {
        Self { published, ..Self::default() }
    }

    fn linked(&self, server: &ServerId) -> bool {
        // A link whose task ended does not listen any more.
        self.links.get(server).is_some_and(|link| !link.desired.is_closed())
    }

    /// The link, if `id` is the present one of that server.
    fn is_link(&self, server: &ServerId, id: LinkId) -> bool {
        self.links.get(server).is_some_and(|link| link.id == id)
    }

    fn fail_orders(&mut self, error: &StoreError) {
        for (_, pending) in std::mem::take(&mut self.pending) {
            // Whoever asked may have gone.
            let _ = pending.reply.send(Err(OrderFailure::Store { why: chain(error) }));
        }
    }
}

fn server_of(word: &Provided) -> &ServerId {
    match word {
        Provided::Running { server, .. }
        | Provided::Exited { server, .. }
        | Provided::Failed { server, .. }
        | Provided::Gone { server } => server,
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            Err(StoreError::Record { what: String::from("the store's answer"), why: error.to_string() })
        }
    }
}

/// An error with all its sources.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests;
