//! What one life of a gateway leaves to the next, and how the next begins with it.
//!
//! In: the last snapshot and what this gateway saw itself; at the start of the next life, what was left. Out: a
//! [`Snapshot`]. Invariants: a recalled snapshot obeys no order (the right to close is a lease, and it is over); any
//! published snapshot replaces it as a whole. Elsewhere: the file it waits in (`evenkeel_gateway::memory`).

use alloc::sync::Arc;

use evenkeel_model::{Connections, Desired, Fence, Instant};

use super::Gateway;
use super::slot::Slot;
use crate::allot::Cause;
use crate::snapshot::{Health, ServerView, Snapshot};

impl Gateway {
    /// What the gateway that comes after this one should begin with: the last snapshot with its age, but of each
    /// server only those connections that do not end with this process, and as dead those found dead here. `None`
    /// before the first snapshot.
    #[must_use]
    pub fn to_recall(&self) -> Option<Snapshot> {
        let snapshot = self.snapshot.as_ref()?;
        let servers = snapshot.servers.iter().zip(&self.listed);
        let servers = servers.map(|(view, index)| left(view, &self.slots[*index as usize])).collect();
        Some(Snapshot { servers, ..Snapshot::clone(snapshot) })
    }

    /// Begins with what an earlier life left, until the controller publishes. Older than
    /// [`act_after`](crate::config::HealthConfig::act_after) only what somebody ordered is believed: servers count as
    /// empty and healthy until this gateway sees otherwise.
    pub fn recall(&mut self, left: &Snapshot, now: Instant) {
        let old = now.since(left.at) > left.health.act_after;
        let servers = left.servers.iter().map(|view| believed(view, old)).collect();
        self.install(&Arc::new(Snapshot { servers, ..left.clone() }), now);
        self.recalled = true;
    }
}

/// A server without the connections that end with this process.
fn left(view: &ServerView, slot: &Slot) -> ServerView {
    let mut view = ServerView { desired: Desired::active(Fence::default()), ..view.clone() };
    if let Some(reported) = &mut view.reported {
        reported.connections = Connections(slot.not_ours());
    }
    if slot.dead_here.is_some() {
        view.health = Health::Dead;
    }
    view
}

fn believed(view: &ServerView, old: bool) -> ServerView {
    let mut view = ServerView { desired: Desired::active(Fence::default()), ..view.clone() };
    if old {
        view.reported = None;
        view.elsewhere = Connections::ZERO;
        view.health = Health::Ok;
        view.ceilings.retain(|ceiling| {
            matches!(
                ceiling.cause,
                Cause::Declared | Cause::Operator | Cause::Cordon | Cause::Drain | Cause::Starting
            )
        });
    }
    view
}
