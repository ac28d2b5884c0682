//! Begins where a former controller stopped: servers that were well in its last snapshot count as they did then,
//! until they are heard again.
//!
//! In: the last snapshot. Out: members, and a hold on publishing, so that gateways keep their fuller table meanwhile.
//! Invariants: the hold ends with the last server heard, and at the latest after [`BACK_WITHIN`]; who was not heard by
//! then is suspect like everybody who is silent; what is stored about a server (its intent, its fence) is not touched.
//! Elsewhere: what gateways do meanwhile (`gateway::recall`).

use evenkeel_model::{Duration, Instant, ServerId, State};

use super::machine::{Controller, Publish};
use crate::snapshot::{Executor, Health, Snapshot};

/// Agents redial within 5 s, then say hello and report. Publishing earlier would send everybody to those that happened
/// to dial first; later keeps a dead server in the table for longer than its silence alone would.
const BACK_WITHIN: Duration = Duration::from_secs(6);

impl Controller {
    /// Takes the last snapshot of a former controller of this fleet. To be called before any input. A server that was
    /// not well in it is left out: it has to show itself.
    pub fn recall(&mut self, snapshot: &Snapshot, now: Instant) {
        let until = now + BACK_WITHIN;
        let well = |health, state| health == Health::Ok && state != State::Starting;
        for view in snapshot.servers.iter().filter(|view| well(view.health, view.state)) {
            let presumed = until - self.config.health.suspect_after;
            self.known(&view.id, now).recall(view, presumed, now);
            self.hold.awaited.insert(view.id.clone());
        }
        if !self.hold.awaited.is_empty() {
            self.hold.latest = self.hold.latest.max(until);
            self.hold.publish = self.hold.latest;
            self.changed(Publish::Now, now);
        }
    }

    /// A server spoke for itself, or is known to be gone.
    pub(super) fn heard_again(&mut self, server: &ServerId, now: Instant) {
        if self.hold.awaited.remove(server) {
            if let Some(member) = self.members.get_mut(server) {
                member.recalled = None;
            }
            if self.hold.awaited.is_empty() {
                self.hold.publish = self.hold.publish.min(now);
            }
        }
    }

    /// Waits no longer for those not heard yet. Of a listed server whose agent did not come back gateways take charge,
    /// as if it never had one.
    pub(super) fn await_no_longer(&mut self) {
        for server in core::mem::take(&mut self.hold.awaited) {
            let Some(member) = self.members.get_mut(&server) else { continue };
            member.recalled = None;
            if member.listed && member.executor == Executor::Agent {
                member.executor = Executor::Gateways;
            }
        }
    }
}
