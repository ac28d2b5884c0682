//! Which fleet a server id belongs to, and how to reach the fleets' tasks.
//!
//! Invariant: an id belongs to one fleet at a time.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use evenkeel_fleet::controller::{Input, Order};
use evenkeel_model::{Desired, Duration, FleetId, ServerId};
use tokio::sync::{mpsc, oneshot};

use crate::fleet::{OrderAnswer, ToFleet};
use crate::status::FleetStatus;

/// Servers known in one process; a bound on memory and on metric series. More than any fleet we have figures for.
pub const SERVERS_MAX: usize = 20_000;

/// Longest wait for a fleet's task, which may be restarting.
const ASK_WAIT: Duration = Duration::from_secs(5);
/// Longest wait for the answer to an order: durable and obeyed by this process's gateways.
const ORDER_WAIT: Duration = Duration::from_secs(10);

/// Owner of each server id. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Owners(Arc<Mutex<BTreeMap<ServerId, FleetId>>>);

/// Why a fleet cannot have a server id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ClaimError {
    #[error("server id {server} belongs to fleet {owner}")]
    Taken { server: ServerId, owner: FleetId },
    #[error("there are {SERVERS_MAX} servers already")]
    Full,
}

impl Owners {
    /// Takes an id for a fleet; again is harmless.
    pub(crate) fn claim(&self, server: &ServerId, fleet: &FleetId) -> Result<(), ClaimError> {
        let mut owners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = owners.len() >= SERVERS_MAX;
        match owners.entry(server.clone()) {
            Entry::Occupied(owner) if owner.get() == fleet => Ok(()),
            Entry::Occupied(owner) => {
                Err(ClaimError::Taken { server: server.clone(), owner: owner.get().clone() })
            }
            Entry::Vacant(_) if full => Err(ClaimError::Full),
            Entry::Vacant(free) => {
                free.insert(fleet.clone());
                Ok(())
            }
        }
    }

    /// Gives an id back.
    pub(crate) fn release(&self, server: &ServerId, fleet: &FleetId) {
        let mut owners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if owners.get(server) == Some(fleet) {
            owners.remove(server);
        }
    }

    fn of(&self, server: &ServerId) -> Option<FleetId> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(server).cloned()
    }
}

/// How to reach one fleet's task.
#[derive(Debug, Clone)]
pub(crate) struct FleetHandle {
    pub(crate) id: FleetId,
    pub(crate) inputs: mpsc::Sender<ToFleet>,
    pub(crate) report_interval: Duration,
}

/// The fleet's task did not answer: it is restarting or gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the fleet's control loop is restarting; try again in a second")]
pub(crate) struct Unavailable;

impl FleetHandle {
    /// Hands over an input and waits for room, at most 5 s.
    pub(crate) async fn send(&self, input: ToFleet) -> Result<(), Unavailable> {
        self.inputs.send_timeout(input, ASK_WAIT).await.map_err(|_| Unavailable)
    }

    /// Asks for something that the task answers on its own.
    pub(crate) async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>) -> ToFleet,
    ) -> Result<T, Unavailable> {
        self.ask_within(ASK_WAIT, question).await
    }

    /// The fleet at this moment.
    pub(crate) async fn status(&self) -> Result<Arc<FleetStatus>, Unavailable> {
        self.ask(ToFleet::Ask).await
    }

    /// Gives an order and waits until it is durable and obeyed by this process's gateways.
    pub(crate) async fn order(&self, order: Order) -> Result<OrderAnswer, Unavailable> {
        self.ask_within(ORDER_WAIT, |reply| ToFleet::Ordered { order, reply }).await
    }

    async fn ask_within<T>(
        &self,
        wait: Duration,
        question: impl FnOnce(oneshot::Sender<T>) -> ToFleet,
    ) -> Result<T, Unavailable> {
        let (reply, answer) = oneshot::channel();
        self.send(question(reply)).await?;
        tokio::time::timeout(wait, answer).await.map_err(|_| Unavailable)?.map_err(|_| Unavailable)
    }

    /// Hands over what a gateway says, or gives it back where there is no room.
    pub(crate) fn offer(&self, input: Input) -> Option<Input> {
        match self.inputs.try_send(ToFleet::Said(input)).err()?.into_inner() {
            ToFleet::Said(input) => Some(input),
            // What comes back is what was sent.
            _ => None,
        }
    }
}

/// All fleets. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Directory {
    fleets: Arc<BTreeMap<FleetId, FleetHandle>>,
    owners: Owners,
}

impl Directory {
    pub(crate) fn new(fleets: BTreeMap<FleetId, FleetHandle>, owners: Owners) -> Self {
        Self { fleets: Arc::new(fleets), owners }
    }

    pub(crate) fn fleets(&self) -> impl Iterator<Item = &FleetHandle> {
        self.fleets.values()
    }

    pub(crate) fn fleet(&self, id: &FleetId) -> Option<&FleetHandle> {
        self.fleets.get(id)
    }

    /// The fleet a known server belongs to.
    pub(crate) fn fleet_of(&self, server: &ServerId) -> Option<&FleetHandle> {
        self.owners.of(server).and_then(|fleet| self.fleets.get(&fleet))
    }

    /// The fleet that a server asks for or belongs to; the only one where there is only one.
    pub(crate) fn fleet_for(
        &self,
        server: &ServerId,
        asked: Option<&FleetId>,
    ) -> Result<&FleetHandle, FleetForError> {
        match asked {
            Some(asked) => self.fleet(asked).ok_or_else(|| FleetForError::Unknown { fleet: asked.clone() }),
            None => match self.fleet_of(server) {
                Some(fleet) => Ok(fleet),
                None if self.fleets.len() == 1 => self.fleets.values().next().ok_or(FleetForError::Missing),
                None => Err(FleetForError::Missing),
            },
        }
    }
}

/// Why a server has no fleet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FleetForError {
    #[error("there is no fleet {fleet}")]
    Unknown { fleet: FleetId },
    #[error("fleet is missing, and there are several")]
    Missing,
}

/// What is desired of `server` among the results of an order.
pub(crate) fn desired_of(server: &ServerId, results: &[(ServerId, Desired)]) -> Option<Desired> {
    results.iter().find(|(id, _)| id == server).map(|(_, desired)| desired.clone())
}
