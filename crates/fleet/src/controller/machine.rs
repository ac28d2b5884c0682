//! The machine: what it remembers of a fleet, when it acts, and the order of its outputs.
//!
//! Invariants: what is due is done before an input is taken; a record is stored before anything that depends on it
//! is published; a publication precedes the orders to agents and the answer that rely on it.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;

use evenkeel_model::{
    Average, Connections, Desired, Duration, Epoch, Fence, FleetId, GatewayId, Incarnation, Instant,
    PerSecond, Rng, ServerId,
};

use super::member::Member;
use super::{Event, Explanation, FleetRecord, Input, Intent, Output, ServerRecord, ServerStatus};
use crate::config::FleetConfig;
use crate::scale;
use crate::snapshot::Snapshot;

/// Runs the control loop of one fleet. See the documentation of [`crate::controller`].
#[derive(Debug)]
pub struct Controller {
    pub(super) config: FleetConfig,
    pub(super) epoch: Epoch,
    pub(super) members: BTreeMap<ServerId, Member>,
    pub(super) gateways: BTreeMap<GatewayId, Door>,
    pub(super) fixed: Option<u32>,
    /// The highest order of this term to a server that was forgotten: one that comes back may still hold it.
    pub(super) forgotten: Fence,
    pub(super) due: Due,
    pub(super) hold: Hold,
    pub(super) traffic: Traffic,
    pub(super) losses: Losses,
    /// Whether rebalancing is under way.
    pub(super) rebalancing: bool,
    pub(super) memory: scale::Memory,
    pub(super) explanation: Explanation,
    /// Agents to be told what is wanted of them.
    pub(super) to_desire: Vec<ServerId>,
    outputs: VecDeque<Output>,
    /// The last `now` given.
    latest: Instant,
}

/// What one gateway said last.
#[derive(Debug)]
pub(super) struct Door {
    /// When its last view was taken.
    pub(super) at: Instant,
    /// When it arrived here.
    pub(super) arrived: Instant,
    pub(super) waiting: u32,
    pub(super) refused_prefixes: u32,
    pub(super) placed_per_s: Average,
}

/// When the machine acts next.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) health: Instant,
    pub(super) round: Instant,
    pub(super) scale: Instant,
    pub(super) publish: Option<Instant>,
}

/// After a restart: how long to keep still until servers and gateways were heard.
#[derive(Debug)]
pub(super) struct Hold {
    /// No publication but for an order: gateways hold a fuller table than ours.
    pub(super) publish: Instant,
    /// No moves: orders of our former self may still be in force.
    pub(super) moves: Instant,
    /// No scale: running servers may not have been adopted yet.
    pub(super) scale: Instant,
    /// The longest a publication is held.
    pub(super) latest: Instant,
    /// Servers known from before the restart that were not heard since; until they are, gateways hold the fuller table.
    pub(super) awaited: BTreeSet<ServerId>,
}

/// Placements and failures over all gateways.
#[derive(Debug)]
pub(super) struct Traffic {
    /// Since the last round.
    pub(super) placed: u32,
    pub(super) failed: u32,
    /// Averages per second.
    pub(super) arrivals: Average,
    pub(super) failures: Average,
    pub(super) placements: Average,
    /// Arrivals before things began to move.
    pub(super) quiet_arrivals: f64,
    /// Whether anything moves, and since when.
    pub(super) moving: bool,
    pub(super) turned_at: Instant,
    pub(super) counted_at: Instant,
}

/// Connections of servers that died, until their clients are back.
#[derive(Debug, Default)]
pub(super) struct Losses {
    pub(super) each: VecDeque<(Instant, Connections)>,
    /// What the others held when the first of them happened.
    pub(super) others: Connections,
}

/// How soon gateways must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Publish {
    /// With whatever else happens in the next moment.
    Soon,
    /// With the outputs of this input.
    Now,
}

/// Publications are collected for so long, so that a fleet of 10,000 reporting servers costs ten a second.
const PUBLISH_AFTER: Duration = Duration::from_millis(100);
/// A walk over all servers costs as much as looking up one in so many of them.
const LOOK_UP_SHARE: usize = 8;
/// Gateways show within two views whether they hold a table from before a restart.
const HOLD_MIN: Duration = Duration::from_millis(500);
/// A machine that is driven this late was itself silent, so the silence of others proves nothing.
const LATE: Duration = Duration::from_millis(500);
/// A gateway without a view for so long is gone, and its tunnels with it.
const GATEWAY_GONE: Duration = Duration::from_secs(10);

impl Controller {
    /// A controller for a fleet, with what was stored of it. `epoch` is one above every epoch used before; in the
    /// first one of all nothing can be in force yet, so it holds nothing back.
    #[must_use]
    pub fn new(config: FleetConfig, epoch: Epoch, record: &FleetRecord, mut rng: Rng, now: Instant) -> Self {
        let members = record
            .servers
            .iter()
            .map(|stored| (stored.server.clone(), restored(stored, epoch, &config, now)));
        let restarted = epoch > Epoch(1);
        let wait = |duration: Duration| if restarted { now + duration } else { now };
        let (tau, suspect_after) = (config.score.tau, config.health.suspect_after);
        let scale_round = config.scale.as_ref().map_or(Duration::MAX, |scale| scale.round);
        Self {
            members: members.collect(),
            gateways: BTreeMap::new(),
            fixed: record.fixed,
            forgotten: Fence { epoch, ..Fence::default() },
            due: Due {
                health: now + suspect_after,
                round: now + rng.jitter(config.moves.round, 0.2),
                scale: wait(suspect_after).min(now + scale_round),
                publish: None,
            },
            hold: Hold {
                publish: wait(HOLD_MIN),
                latest: wait(suspect_after),
                moves: wait(Desired::LEASE),
                scale: wait(suspect_after),
                awaited: BTreeSet::new(),
            },
            traffic: Traffic::new(tau, now),
            losses: Losses::default(),
            rebalancing: false,
            memory: scale::Memory::default(),
            explanation: Explanation::default(),
            to_desire: Vec::new(),
            outputs: VecDeque::new(),
            latest: now,
            config,
            epoch,
        }
    }

    /// Takes one input. What is due is done first.
    pub fn handle(&mut self, input: Input, now: Instant) {
        self.handle_timeout(now);
        match input {
            Input::Registered(registration) => self.on_registered(registration, now),
            Input::Reported { server, report } => self.on_report(&server, report, now),
            Input::LinkLost { server, inc } => self.on_link_lost(&server, inc, now),
            Input::Spoke { server } => self.on_spoke(&server, now),
            Input::Applied { server, fence } => self.on_applied(&server, fence, now),
            Input::Drained { server, fence } => self.on_drained(&server, fence, now),
            Input::Checked(checked) => self.on_checked(checked, now),
            Input::Viewed(view) => self.on_view(&view, now),
            Input::Ordered(id, order) => self.on_order(id, order, now),
            Input::Provided(provided) => self.on_provided(provided, now),
            Input::Unlisted(server) => self.on_unlisted(&server, now),
        }
        self.flush(now);
        self.check_invariants();
    }

    /// When [`Controller::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let publish = self.due.publish.map(|at| at.max(self.hold.publish));
        let scale = self.config.scale.is_some().then_some(self.due.scale);
        [Some(self.due.health), Some(self.due.round), scale, publish].into_iter().flatten().min()
    }

    /// Does what is due: health, a round of moves, a round of scale.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.latest = now.max(self.latest);
        if now >= self.due.health {
            self.judge_all(now);
        }
        if now >= self.due.round {
            self.due.round = now + self.config.moves.round;
            self.round(now);
        }
        if let Some(scale) = &self.config.scale
            && now >= self.due.scale
        {
            self.due.scale = now + scale.round;
            self.scale_round(now);
        }
        self.flush(now);
        self.check_invariants();
    }

    /// The next output, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The present view of the fleet.
    #[must_use]
    pub fn snapshot(&self, now: Instant) -> Arc<Snapshot> {
        self.tell_snapshot(now)
    }

    /// All servers, sorted by id.
    #[must_use]
    pub fn servers(&self, now: Instant) -> Vec<ServerStatus> {
        self.tell_servers(now)
    }

    /// What is desired of one server, to be sent again to an agent that redials or reports. A deadline in it counts
    /// from the last thing that happened to this machine.
    #[must_use]
    pub fn desired(&self, server: &ServerId) -> Option<Desired> {
        self.members.get(server).map(|member| member.want.desired(self.latest))
    }

    /// Highest life known of a server.
    #[must_use]
    pub fn incarnation(&self, server: &ServerId) -> Option<Incarnation> {
        self.members.get(server).map(|member| member.inc)
    }

    /// Why the last round did what it did.
    #[must_use]
    pub fn explanation(&self) -> &Explanation {
        &self.explanation
    }

    /// Which fleet.
    #[must_use]
    pub fn fleet(&self) -> &FleetId {
        &self.config.id
    }

    pub(super) fn put(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    pub(super) fn event(
        &mut self,
        server: Option<&ServerId>,
        kind: &'static str,
        text: alloc::string::String,
        now: Instant,
    ) {
        self.put(Output::Event(Event { at: now, server: server.cloned(), kind, text }));
    }

    /// Gateways must know of a change.
    pub(super) fn changed(&mut self, publish: Publish, now: Instant) {
        let at = match publish {
            Publish::Soon => now + PUBLISH_AFTER,
            Publish::Now => now,
        };
        self.due.publish = Some(self.due.publish.map_or(at, |due| due.min(at)));
    }

    /// Publishes if that is due and not held, then tells the agents.
    pub(super) fn flush(&mut self, now: Instant) {
        if now >= self.hold.latest && !self.hold.awaited.is_empty() {
            self.await_no_longer();
        }
        if self.due.publish.is_some_and(|at| now >= at) && now >= self.hold.publish {
            self.publish(now);
        }
        self.desire_all(now);
    }

    /// Publishes whatever holds it back: an order waits for it.
    pub(super) fn publish(&mut self, now: Instant) {
        self.due.publish = None;
        let snapshot = self.tell_snapshot(now);
        self.put(Output::Publish(snapshot));
    }

    pub(super) fn desire_all(&mut self, now: Instant) {
        let mut told = core::mem::take(&mut self.to_desire);
        told.sort_unstable();
        told.dedup();
        // Many are found by walking along, few by looking them up.
        if told.len() > self.members.len() / LOOK_UP_SHARE {
            let mut wanted = told.drain(..).peekable();
            for (server, member) in &mut self.members {
                while wanted.next_if(|next| next < server).is_some() {}
                if wanted.next_if(|next| next == server).is_some() {
                    self.outputs.extend(member.told(now));
                }
            }
        }
        for server in told.drain(..) {
            self.outputs.extend(self.members.get_mut(&server).and_then(|member| member.told(now)));
        }
        self.to_desire = told;
    }

    /// Sets the intent of a server and what is wanted of it, stores it. The caller publishes.
    pub(super) fn intend(&mut self, server: &ServerId, intent: Option<Intent>, now: Instant) {
        let (epoch, deadline) = (self.epoch, self.config.moves.deadline);
        let Some(member) = self.members.get_mut(server) else { return };
        let was_draining = matches!(member.intent, Some(Intent::Drain { .. }));
        member.intent = intent;
        let mut want = member.at_rest(&self.config);
        match intent {
            Some(Intent::Drain { ordered_at, .. }) => want.deadline = Some(ordered_at + deadline),
            _ => member.phase = None,
        }
        let changed = member.wants(want, epoch, now);
        if !was_draining && matches!(intent, Some(Intent::Drain { .. })) {
            member.agent.drain = Some(member.want.fence);
            member.agent.reports_since_order = 0;
        }
        let record =
            ServerRecord { server: server.clone(), generation: member.want.fence.generation, intent };
        member.stored = true;
        if changed {
            self.to_desire.push(server.clone());
        }
        self.put(Output::Persist(record));
        self.changed(Publish::Now, now);
    }

    /// Publishes and tells agents at once, held or not: what follows relies on it.
    pub(super) fn enforce(&mut self, now: Instant) {
        self.publish(now);
        self.desire_all(now);
    }

    /// Forgets a server.
    pub(super) fn forget(&mut self, server: &ServerId, now: Instant) {
        if let Some(member) = self.members.remove(server) {
            if member.want.fence.epoch == self.epoch {
                self.forgotten = self.forgotten.max(member.want.fence);
            }
            self.heard_again(server, now);
            self.put(Output::Forget(server.clone()));
            self.changed(Publish::Now, now);
        }
    }

    /// Judges the health of all servers, and forgets gateways that are gone.
    fn judge_all(&mut self, now: Instant) {
        let suspect_after = self.config.health.suspect_after;
        if now.since(self.due.health) > LATE.max(suspect_after) {
            // Inputs that waited for us come next; they say who is really silent.
            self.due.health = now + LATE / 2;
            return;
        }
        self.gateways.retain(|_, door| now.since(door.arrived) < GATEWAY_GONE);
        let (gateways, health) = (&self.gateways, &self.config.health);
        let mut next = now + suspect_after;
        let mut turned = Vec::new();
        for member in self.members.values_mut() {
            member.seen.retain(|seen| gateways.contains_key(&seen.gateway));
            if member.pulse.turned(now, health).is_some() {
                turned.push(member.id.clone());
            } else if let Some(at) = member.pulse.suspect_at(health) {
                next = next.min(at);
            }
        }
        self.due.health = next;
        for server in turned {
            self.judge(&server, now);
        }
        if self.due.publish.is_some() {
            self.changed(Publish::Now, now);
        }
    }

    /// What must hold after each input.
    fn check_invariants(&self) {
        debug_assert!(
            self.members.iter().all(|(id, member)| *id == member.id),
            "members are kept by their id"
        );
        debug_assert!(
            self.members
                .values()
                .all(|member| member.want.fence.epoch >= self.epoch || member.want.moves_per_s.is_zero()),
            "nothing is moved under an older epoch"
        );
        debug_assert!(
            self.members
                .values()
                .all(|member| !matches!(member.intent, Some(Intent::Stop { .. })) || member.stored),
            "nothing is stopped that is not stored"
        );
        debug_assert!(
            self.to_desire.is_empty(),
            "agents are told with the input that changed what is wanted"
        );
    }
}

/// A server as it was stored.
fn restored(stored: &ServerRecord, epoch: Epoch, config: &FleetConfig, now: Instant) -> Member {
    let fence = Fence { epoch, generation: stored.generation.next() };
    let mut member = Member::new(stored.server.clone(), fence, config, now);
    member.intent = stored.intent;
    member.stored = true;
    member.want = member.at_rest(config);
    if let Some(Intent::Drain { ordered_at, .. }) = stored.intent {
        member.want.deadline = Some(ordered_at + config.moves.deadline);
        member.agent.drain = Some(fence);
    }
    member
}

impl Traffic {
    fn new(tau: Duration, now: Instant) -> Self {
        let average = Average::new(tau);
        Self {
            placed: 0,
            failed: 0,
            arrivals: average,
            failures: average,
            placements: average,
            quiet_arrivals: 0.0,
            moving: false,
            turned_at: Instant::ZERO,
            counted_at: now,
        }
    }

    /// Connections that arrive without being moved, a second.
    pub(super) fn arrivals_per_s(&self) -> PerSecond {
        PerSecond::new(self.arrivals.value().unwrap_or(0.0))
    }
}

impl Losses {
    /// A server died with so many; the others hold so many.
    pub(super) fn add(&mut self, lost: Connections, others: Connections, now: Instant) {
        if self.each.is_empty() {
            self.others = others;
        }
        self.each.push_back((now, lost));
    }

    /// Of the connections lost within `window`, those not back yet: what the others gained since came from there.
    pub(super) fn missing(&mut self, live: Connections, window: Duration, now: Instant) -> Connections {
        while self.each.front().is_some_and(|(at, _)| now.since(*at) >= window) {
            self.each.pop_front();
        }
        let lost: Connections = self.each.iter().map(|(_, lost)| *lost).sum();
        lost.saturating_sub(live.saturating_sub(self.others))
    }
}
