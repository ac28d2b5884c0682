//! A simulated gateway process: the placing machine, its queue, its snapshot.

use std::sync::Arc;

use evenkeel_fleet::admission::Admission;
use evenkeel_fleet::gateway::{Gateway, GatewayConfig};
use evenkeel_fleet::snapshot::{Health, Snapshot};
use evenkeel_model::{FleetId, GatewayId, Instant, Rng, State};

use crate::plant::Bug;
use crate::world::{Event, World};

/// A gateway tells the controller its counts so often, as the shell does.
const VIEW_EACH: std::time::Duration = std::time::Duration::from_millis(250);

#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) machine: Gateway,
    pub(crate) admission: Admission,
    /// As the controller published it, before any planted mistake.
    pub(crate) snapshot: Option<Arc<Snapshot>>,
    pub(crate) wake_at: Option<Instant>,
}

impl Front {
    pub(crate) fn new(
        index: u32,
        fleet: &FleetId,
        place: &evenkeel_fleet::config::PlaceConfig,
        rng: Rng,
    ) -> Self {
        let id = GatewayId::new(&format!("g{index}")).unwrap_or_else(|_| unreachable!("a valid id"));
        Self {
            machine: Gateway::new(GatewayConfig { id, fleet: fleet.clone() }, rng, Instant::ZERO),
            admission: Admission::new(place),
            snapshot: None,
            wake_at: None,
        }
    }
}

impl World {
    pub(crate) fn install(&mut self, front: usize, snapshot: Arc<Snapshot>) {
        let doctored =
            if self.bug == Some(Bug::HidesDrains) { hide_drains(&snapshot) } else { Arc::clone(&snapshot) };
        let now = self.now;
        self.fronts[front].machine.install(&doctored, now);
        self.fronts[front].snapshot = Some(snapshot);
        self.poll_front(front);
    }

    /// A gateway's timer.
    pub(crate) fn front_wakes(&mut self, front: usize) {
        let now = self.now;
        if self.fronts[front].wake_at != Some(now) {
            return;
        }
        self.fronts[front].wake_at = None;
        self.fronts[front].machine.handle_timeout(now);
        self.poll_front(front);
    }

    /// Lets those through that have credit now.
    pub(crate) fn poll_front(&mut self, index: usize) {
        let now = self.now;
        let front = &mut self.fronts[index];
        for (ticket, outcome) in front.admission.poll(&mut front.machine, now) {
            match outcome {
                Ok(placement) => self.shake(ticket.0, index, placement),
                Err(refusal) => self.refused(ticket.0, refusal),
            }
        }
        self.arm_front(index);
    }

    /// Wakes a gateway when it next wants to be.
    pub(crate) fn arm_front(&mut self, index: usize) {
        let front = &mut self.fronts[index];
        let due = front.machine.poll_timeout().into_iter().chain(front.admission.poll_timeout()).min();
        let Some(due) = due.map(|due| due.max(self.now)) else { return };
        if front.wake_at.is_none_or(|at| due < at) {
            front.wake_at = Some(due);
            self.schedule(due, Event::FrontWakes(index));
        }
    }

    pub(crate) fn view(&mut self, front: usize) {
        let view = self.fronts[front].machine.view(self.now);
        let arrives = self.network.message(self.now);
        self.schedule(arrives, Event::Viewed(view));
        self.schedule(self.now + VIEW_EACH, Event::View(front));
    }
}

fn hide_drains(snapshot: &Snapshot) -> Arc<Snapshot> {
    let mut doctored = snapshot.clone();
    for server in &mut doctored.servers {
        server.state = State::Active;
        server.health = Health::Ok;
        server.ceilings.clear();
    }
    Arc::new(doctored)
}
