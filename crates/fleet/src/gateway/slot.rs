//! What a gateway knows of one server: the controller's view, its own counts and its own evidence.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use evenkeel_model::{Connections, Duration, Incarnation, Instant, ServerId, State};

use super::Failure;
use crate::allot::{Cause, Ceiling};
use crate::credit::{Credit, Rate};
use crate::snapshot::{Executor, Health, ServerCounts, ServerView};

/// A server that answered "draining" gets nothing for so long; the snapshot that says so is on its way.
const ELSEWHERE_FOR: Duration = Duration::from_secs(1);
/// A server without reports that was found dead here is trusted again when snapshots still call it healthy after
/// this: the controller had time to hear of it (views each 250 ms) and to check it (each second).
const CHECKED_AFTER: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) view: ServerView,
    pub(super) listed: bool,
    pub(super) own: u32,
    pub(super) foreign: u32,
    /// When connections came that are neither ours nor in the last report: agents told of them.
    arrived: VecDeque<Instant>,
    /// Assignments on their way that count, and what they count as in the seat's pending.
    pub(super) assigned: u32,
    pub(super) assigned_share: u32,
    /// Highest own + pending since the last report.
    pub(super) peak: u32,
    pub(super) report: Option<(Incarnation, u64)>,
    pub(super) credit: Credit,
    pub(super) rate: Rate,
    pub(super) dead_here: Option<DeadHere>,
    pub(super) elsewhere_until: Instant,
    pub(super) heard: Option<Instant>,
    pub(super) failed_in_a_row: u32,
    pub(super) placed: u32,
    pub(super) failed: u32,
    pub(super) refused: u32,
    /// Nothing but probation keeps it closed.
    pub(super) trial: bool,
    /// Nothing but death by our own evidence, not shared by the controller, or by an old snapshot keeps it closed.
    pub(super) probe: bool,
}

/// This gateway's own evidence of a server's death.
#[derive(Debug, Clone, Copy)]
pub(super) struct DeadHere {
    pub(super) since: Instant,
    /// Whether a snapshot agreed meanwhile; the next one that does not ends it.
    pub(super) confirmed: bool,
}

impl Slot {
    pub(super) fn new(view: ServerView) -> Self {
        Self {
            view,
            listed: false,
            own: 0,
            foreign: 0,
            arrived: VecDeque::new(),
            assigned: 0,
            assigned_share: 0,
            peak: 0,
            report: None,
            credit: Credit::default(),
            rate: Rate::default(),
            dead_here: None,
            elsewhere_until: Instant::ZERO,
            heard: None,
            failed_in_a_row: 0,
            placed: 0,
            failed: 0,
            refused: 0,
            trial: false,
            probe: false,
        }
    }

    /// Whether the slot belongs to a server that is listed or still holds something.
    pub(super) fn kept(&self, pending: u32) -> bool {
        self.listed || self.own > 0 || pending > 0
    }

    /// Connections that are not ours.
    pub(super) fn not_ours(&self) -> u32 {
        self.foreign.saturating_add(u32::try_from(self.arrived.len()).unwrap_or(u32::MAX))
    }

    /// Our own connections and handshakes, which are in a report at some moment before or after it; clients that
    /// connect by themselves are told of one by one.
    pub(super) fn ours(&self, pending: u32) -> u32 {
        self.own + pending - self.assigned_share
    }

    /// A client came by itself.
    pub(super) fn arrive(&mut self, now: Instant) {
        /// Beyond it reports must have stopped, and when each came matters no more.
        const ARRIVED_MAX: usize = 4_096;
        if self.arrived.len() >= ARRIVED_MAX {
            self.arrived.pop_front();
            self.foreign = self.foreign.saturating_add(1);
        }
        self.arrived.push_back(now);
    }

    /// Takes the controller's view of the server.
    pub(super) fn read(&mut self, view: &ServerView, pending: u32, snapshot_at: Instant) {
        self.listed = true;
        if view.inc > self.view.inc {
            (self.failed_in_a_row, self.heard, self.dead_here) = (0, None, None);
            self.arrived.clear();
        }
        let said = view.reported.map(|reported| (view.inc, reported.seq));
        let newer = said > self.report;
        match (view.executor, view.reported) {
            (Executor::Gateways, _) => self.foreign = view.elsewhere.get(),
            (Executor::Agent, Some(reported)) if newer => {
                let ours = self.peak.max(self.ours(pending));
                self.foreign = reported.connections.get().saturating_sub(ours);
                self.peak = self.ours(pending);
                self.arrived.retain(|at| *at > reported.at);
            }
            (Executor::Agent, Some(_)) => {}
            (Executor::Agent, None) => self.foreign = 0,
        }
        if newer {
            self.report = said;
        }
        if let Some(dead) = self.dead_here {
            self.dead_here = dead.after(view, newer, snapshot_at);
            if self.dead_here.is_none() {
                self.failed_in_a_row = 0;
            }
        }
        self.view.clone_from(view);
    }

    pub(super) fn note_failure(&mut self, failure: Failure, dead_after: u32, now: Instant) {
        match failure {
            Failure::Refused | Failure::Unreachable | Failure::BadAnswer => {
                self.failed += 1;
                self.failed_in_a_row += 1;
                self.refused += u32::from(failure == Failure::Refused);
                if failure == Failure::Refused || self.failed_in_a_row >= dead_after {
                    self.dead_here = Some(DeadHere { since: now, confirmed: false });
                }
            }
            Failure::Draining => self.elsewhere_until = now + ELSEWHERE_FOR,
            Failure::Answered => {
                self.failed_in_a_row = 0;
                self.heard = Some(now);
            }
            Failure::ClientGone => {}
        }
    }

    /// The controller's ceilings and our own, probation aside.
    pub(super) fn wishes(&self, heard: bool, now: Instant, into: &mut Vec<Ceiling>) {
        let none = |cause| Ceiling { at_most: Connections::ZERO, cause };
        let believed = |ceiling: &&Ceiling| !(heard && ceiling.cause == Cause::Suspect);
        into.extend(self.view.ceilings.iter().filter(believed));
        match self.view.state {
            State::Starting => into.push(none(Cause::Starting)),
            State::Cordoned => into.push(none(Cause::Cordon)),
            State::Draining => into.push(none(Cause::Drain)),
            State::Drained | State::Stopped => into.push(none(Cause::Drain)),
            State::Active => {}
        }
        match self.view.health {
            Health::Dead => into.push(none(Cause::Dead)),
            Health::Suspect if !heard => into.push(none(Cause::Suspect)),
            Health::Suspect | Health::Ok => {}
        }
        if self.dead_here.is_some() || !self.listed {
            into.push(none(Cause::Dead));
        }
        if now < self.elsewhere_until {
            into.push(none(Cause::Drain));
        }
    }

    pub(super) fn report(&mut self, id: &ServerId, pending: u32, probation: bool) -> ServerCounts {
        let counts = ServerCounts {
            server: id.clone(),
            connections: Connections(self.own),
            pending: Connections(pending),
            placed: self.placed,
            failed: self.failed,
            refused: self.refused,
            failed_in_a_row: self.failed_in_a_row,
            probation,
            heard: self.heard,
        };
        (self.placed, self.failed, self.refused) = (0, 0, 0);
        counts
    }
}

impl DeadHere {
    /// What is left of the evidence after a snapshot: a report newer than it or a check passed after it ends it.
    fn after(self, view: &ServerView, newer: bool, snapshot_at: Instant) -> Option<Self> {
        let reported = newer && view.reported.is_some_and(|reported| reported.at > self.since);
        let passed = view.reported.is_none()
            && view.health == Health::Ok
            && (self.confirmed || snapshot_at.since(self.since) >= CHECKED_AFTER);
        let confirmed = self.confirmed || view.health == Health::Dead;
        (!reported && !passed).then_some(Self { confirmed, ..self })
    }
}
