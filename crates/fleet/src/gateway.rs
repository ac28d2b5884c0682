//! The machine that places connections at one gateway, for one fleet.
//!
//! Owns: this gateway's counts of every server (own connections, placements on their way), its evidence of their
//! health, its credit. In: the controller's [`Snapshot`], outcomes of handshakes, ends of connections, time. Out: a
//! [`Placement`] or a typed [`Refusal`] for each connection, and a [`GatewayView`] for the controller.
//! Invariants: nothing is placed on a server that the last snapshot calls draining or dead; live + pending never
//! passes a server's ceiling by this gateway's own doing; each placement ends as exactly one of connected, failed,
//! expired. With the controller gone it goes on with the last snapshot and what it sees itself.
//! Elsewhere: clients that connect by themselves ([`assign`]), the choice itself (`pick`), targets (`allot`), waiting
//! for credit (`admission`), sockets (the shell).

pub mod assign;
mod recall;
mod refused;
mod slot;

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use evenkeel_model::{
    Average, Connections, Duration, FleetId, GatewayId, Incarnation, Instant, PerSecond, Ratio, Rng,
    ServerId, Share, State,
};

use crate::allot::{Allotments, Cause, Ceiling, Server, allot};
use crate::config::PlaceConfig;
use crate::credit::{Rate, slow_start};
use crate::ledger::Ledger;
use crate::pick::{Picker, Seat, Seats, Weight, Wish};
use crate::probation::Probation;
use crate::snapshot::{Executor, GatewayView, Health, ServerView, Snapshot};
use assign::Assignments;
use refused::RefusedPrefixes;
use slot::Slot;

/// Targets are computed anew after this at the latest. Default 100 ms: counts between are current anyway, and a
/// target moves by what arrives in that time. Shorter costs CPU with thousands of servers.
pub const REFRESH: Duration = Duration::from_millis(100);
/// What a large and a small server admit at the most and at the least, as a part of what one of mean size admits:
/// a claim of size is only a claim, and a small one may be all that is left.
const CREDIT_BY_SIZE: (f64, f64) = (0.1, 4.0);
/// With nothing open, a server that is dead by this gateway's own evidence is tried so often at most.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// After so long without a snapshot the controller counts as gone and its word on health as old.
const CONTROLLER_GONE_AFTER: Duration = Duration::from_secs(3);
/// Purpose of the random stream that names this life's assignments.
const ASSIGNMENTS: u64 = 0x6173_7369_676e;

/// A server's slot in one [`Gateway`], stable for as long as the gateway lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerKey(pub u32);

/// One placement on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlacementId(pub u64);

/// What a handshake asks for.
#[derive(Debug, Clone, Default)]
pub struct Ask<'a> {
    /// Hash of the client's prefix (/32, /64): for fairness and for counting the refused.
    pub prefix: u64,
    /// Servers already tried.
    pub avoid: &'a [ServerKey],
    /// The source of a move: never picked, and only receivers less utilised than it are.
    pub source: Option<ServerKey>,
}

/// Where one connection goes. Pending until [`Gateway::connected`] or [`Gateway::failed`], or it expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Settles it.
    pub id: PlacementId,
    /// The server's slot.
    pub key: ServerKey,
    /// The server.
    pub server: ServerId,
    /// Its life, as far as known.
    pub inc: Incarnation,
    /// Where to connect.
    pub url: Arc<str>,
    /// Only a server with an agent checks assignments.
    pub executor: Executor,
}

/// Why no server was picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The fleet has no server at all.
    NoServer,
    /// None is open: starting, draining, suspect, dead or full.
    NothingOpen,
    /// Every open server was already tried.
    AllTried,
    /// Open servers are out of credit until then; waiting helps.
    OutOfCredit {
        /// When the first of them has credit again.
        until: Instant,
    },
}

impl Refusal {
    /// Short code for logs, metrics and the API.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NoServer => "no_server",
            Self::NothingOpen => "nothing_open",
            Self::AllTried => "all_tried",
            Self::OutOfCredit { .. } => "out_of_credit",
        }
    }
}

/// How a placement failed before the 101.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Connect refused: the process is not there.
    Refused,
    /// Connect or head took too long, or the connection broke.
    Unreachable,
    /// The answer was no proper 101.
    BadAnswer,
    /// 503 with `Evenkeel-Draining`: elsewhere, no trouble counted.
    Draining,
    /// The server answered the request itself (401, 404 …): not its fault.
    Answered,
    /// The client went away first.
    ClientGone,
}

/// What a gateway is told once.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Its id.
    pub id: GatewayId,
    /// The fleet it places for.
    pub fleet: FleetId,
}

/// Places connections of one fleet. See the module's documentation.
#[derive(Debug)]
pub struct Gateway {
    config: GatewayConfig,
    rng: Rng,
    snapshot: Option<Arc<Snapshot>>,
    /// Whether the snapshot is one of an earlier life, which any published one replaces.
    recalled: bool,
    installed_at: Instant,
    by_id: BTreeMap<ServerId, u32>,
    /// One for each server, parallel: what we know, what a pick needs, what `allot` needs.
    slots: Vec<Slot>,
    seats: Vec<Seat>,
    servers: Vec<Server>,
    allotments: Allotments,
    /// Slots of the servers in the snapshot.
    listed: Vec<u32>,
    /// Slots of servers that are gone, to be used again.
    free: Vec<u32>,
    picker: Picker,
    ledger: Ledger,
    assignments: Assignments,
    probation: Probation,
    weight: Weight,
    own_rate: Average,
    placed_since_refresh: u32,
    refreshed_at: Instant,
    refresh_at: Instant,
    probe_at: Instant,
    /// Counts placements and changes of counts, for ties.
    ticks: u64,
    refused: RefusedPrefixes,
    waiting: u32,
}

impl Gateway {
    /// A gateway that knows no server yet.
    #[must_use]
    pub fn new(config: GatewayConfig, rng: Rng, now: Instant) -> Self {
        let assignments = Assignments::new(rng.clone().fork(ASSIGNMENTS).next_u64());
        Self {
            config,
            rng,
            snapshot: None,
            recalled: false,
            installed_at: now,
            by_id: BTreeMap::new(),
            slots: Vec::new(),
            seats: Vec::new(),
            servers: Vec::new(),
            allotments: Allotments { each: Vec::new(), level: Ratio::ZERO, unplaced: Share::ZERO },
            listed: Vec::new(),
            free: Vec::new(),
            picker: Picker::default(),
            ledger: Ledger::default(),
            assignments,
            probation: Probation::default(),
            weight: Weight::ONE,
            own_rate: Average::new(Average::TAU),
            placed_since_refresh: 0,
            refreshed_at: now,
            refresh_at: now + REFRESH,
            probe_at: now,
            ticks: 0,
            refused: RefusedPrefixes::default(),
            waiting: 0,
        }
    }

    /// Takes a new snapshot. Own counts stay; a server that is gone keeps its slot until its last tunnel closes.
    pub fn install(&mut self, snapshot: &Arc<Snapshot>, now: Instant) {
        for slot in &mut self.slots {
            slot.listed = false;
        }
        self.listed.clear();
        for view in &snapshot.servers {
            let index = self.slot_for(view);
            let slot = &mut self.slots[index as usize];
            let pending = self.seats[index as usize].pending;
            if view.inc > slot.view.inc {
                self.probation.reset(index);
            }
            slot.read(view, pending, snapshot.at);
            self.listed.push(index);
        }
        self.snapshot = Some(Arc::clone(snapshot));
        self.recalled = false;
        self.installed_at = now;
        self.refresh(now);
    }

    /// Picks a server for one new connection and counts it as pending there.
    ///
    /// # Errors
    /// [`Refusal`] when none can take it now.
    pub fn place(&mut self, ask: &Ask<'_>, now: Instant) -> Result<Placement, Refusal> {
        self.refresh_if_due(now);
        let picked = if self.listed.is_empty() { Err(Refusal::NoServer) } else { self.choose(ask, now) };
        match picked {
            Ok(index) => Ok(self.note_placement(index, ask, now)),
            Err(refusal) => {
                if !matches!(refusal, Refusal::OutOfCredit { .. }) {
                    self.note_refused(ask.prefix, now);
                }
                Err(refusal)
            }
        }
    }

    /// Whether a server that is not known to be dead has yet to say its first word, or the controller has. With
    /// nothing open a handshake does better to wait than to be refused: right after a start both take a moment.
    #[must_use]
    pub fn opens_soon(&self) -> bool {
        self.snapshot.is_none()
            || self.recalled
            || self.listed.iter().any(|index| {
                let slot = &self.slots[*index as usize];
                let dead = slot.view.health == Health::Dead || slot.dead_here.is_some();
                slot.view.state == State::Starting && !dead
            })
    }

    /// The server answered 101: the placement becomes a connection.
    pub fn connected(&mut self, placement: PlacementId, now: Instant) {
        let Some(settled) = self.ledger.settle(placement.0) else { return };
        let slot = &mut self.slots[settled.of as usize];
        let seat = &mut self.seats[settled.of as usize];
        seat.pending -= u32::from(settled.was_pending);
        seat.live = seat.live.saturating_add(1);
        slot.own += 1;
        slot.peak = slot.peak.max(slot.ours(seat.pending));
        slot.failed_in_a_row = 0;
        slot.dead_here = None;
        slot.heard = Some(now);
        self.note_change(settled.of, now);
        self.probation.connected(settled.of, now);
    }

    /// The placement came to nothing.
    pub fn failed(&mut self, placement: PlacementId, failure: Failure, now: Instant) {
        let Some(settled) = self.ledger.settle(placement.0) else { return };
        self.ticks += 1;
        let seat = &mut self.seats[settled.of as usize];
        seat.pending -= u32::from(settled.was_pending);
        seat.changed = self.ticks;
        let dead_after = self.snapshot.as_ref().map_or(u32::MAX, |snapshot| snapshot.health.dead_after);
        let slot = &mut self.slots[settled.of as usize];
        slot.note_failure(failure, dead_after, now);
        if failure == Failure::Refused {
            // The process died: that its last connections were short says nothing about the next one.
            self.probation.reset(settled.of);
        }
        // A closed door is closed at once, not at the next refresh.
        if slot.dead_here.is_some() || now < slot.elsewhere_until {
            seat.permits = false;
        }
        self.note_change(settled.of, now);
    }

    /// A connection ended after `lasted`.
    pub fn closed(&mut self, key: ServerKey, lasted: Duration, now: Instant) {
        let Some(slot) = self.slots.get_mut(key.0 as usize).filter(|slot| slot.own > 0) else { return };
        slot.own -= 1;
        self.ticks += 1;
        let seat = &mut self.seats[key.0 as usize];
        seat.live = seat.live.saturating_sub(1);
        seat.changed = self.ticks;
        // A server that empties or sheds on order closes young connections too; that says nothing about it.
        if !slot.view.sheds_on_order() {
            self.probation.closed(key.0, lasted, now);
        }
    }

    /// Bytes came from the server at that time or later: it was not frozen, whatever its reports.
    pub fn heard(&mut self, key: ServerKey, at: Instant) {
        if let Some(slot) = self.slots.get_mut(key.0 as usize) {
            slot.heard = slot.heard.max(Some(at));
        }
    }

    /// When [`Gateway::handle_timeout`] is due: expiring placements, targets every 100 ms.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.snapshot.as_ref().map(|_| self.refresh_at)
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if now >= self.refresh_at {
            self.refresh(now);
        }
    }

    /// What the controller should know, and starts the next interval of its counters.
    pub fn view(&mut self, now: Instant) -> GatewayView {
        let mut servers = Vec::with_capacity(self.by_id.len());
        for (id, index) in &self.by_id {
            let pending = self.seats[*index as usize].pending;
            servers.push(self.slots[*index as usize].report(id, pending, self.probation.is_on(*index)));
        }
        GatewayView {
            gateway: self.config.id.clone(),
            fleet: self.config.fleet.clone(),
            at: now,
            servers,
            waiting: self.waiting,
            refused_prefixes: self.refused.worst_second(now),
        }
    }

    /// The servers as this gateway counts them, and their allotments, for the API and for tests.
    #[must_use]
    pub fn allotments(&self) -> (Vec<Server>, Allotments) {
        let kept = |index: &usize| self.slots[*index].kept(self.seats[*index].pending);
        let indexes: Vec<usize> = (0..self.slots.len()).filter(kept).collect();
        let servers = indexes.iter().map(|index| {
            let seat = &self.seats[*index];
            Server {
                live: Connections(seat.live),
                pending: Connections(seat.pending),
                ..self.servers[*index].clone()
            }
        });
        let each = indexes.iter().map(|index| self.allotments.each[*index]).collect();
        (servers.collect(), Allotments { each, ..self.allotments })
    }

    /// Connections this gateway holds on a server.
    #[must_use]
    pub fn connections(&self, key: ServerKey) -> Connections {
        Connections(self.slots.get(key.0 as usize).map_or(0, |slot| slot.own))
    }

    /// The slot of a server.
    #[must_use]
    pub fn key(&self, server: &ServerId) -> Option<ServerKey> {
        self.by_id.get(server).map(|index| ServerKey(*index))
    }

    /// Counts connections that this gateway holds without having placed them: those of its former process, whose
    /// sockets it took over. They are no arrivals, so neither credit nor probation is touched.
    pub fn adopt(&mut self, key: ServerKey, connections: Connections) {
        let Some(slot) = self.slots.get_mut(key.0 as usize) else { return };
        let seat = &mut self.seats[key.0 as usize];
        slot.own = slot.own.saturating_add(connections.get());
        seat.live = seat.live.saturating_add(connections.get());
        slot.peak = slot.peak.max(slot.ours(seat.pending));
        // Targets follow at the next refresh.
        self.refresh_at = Instant::ZERO;
    }

    /// Stands for a connection that this gateway holds on a server already, whatever state that one is in, so that a
    /// tunnel can take it over. Nothing is counted, now or when it is settled.
    #[must_use]
    pub fn held(&self, server: &ServerId) -> Option<Placement> {
        let key = self.key(server)?;
        let view = &self.slots.get(key.0 as usize)?.view;
        // No placement ever has this number.
        let id = PlacementId(u64::MAX);
        let url = Arc::clone(&view.url);
        Some(Placement { id, key, server: server.clone(), inc: view.inc, url, executor: view.executor })
    }

    /// How to place, as the last snapshot says.
    #[must_use]
    pub fn place_config(&self) -> Option<&PlaceConfig> {
        self.snapshot.as_ref().map(|snapshot| &snapshot.place)
    }

    /// How many handshakes wait for credit, for the next view.
    pub(crate) fn note_waiting(&mut self, waiting: u32) {
        self.waiting = waiting;
    }

    /// Counts a client that got no server.
    pub(crate) fn note_refused(&mut self, prefix: u64, now: Instant) {
        self.refused.note(prefix, now);
    }

    /// The slot of a server, a free one, or a new one.
    fn slot_for(&mut self, view: &ServerView) -> u32 {
        if let Some(index) = self.by_id.get(&view.id) {
            return *index;
        }
        let index = self.free.pop().map_or(self.slots.len(), |index| index as usize);
        let slot = Slot::new(view.clone());
        let server = Server {
            id: view.id.clone(),
            capacity: view.capacity,
            live: Connections::ZERO,
            pending: Connections::ZERO,
            admit: view.admit,
            ceilings: Vec::new(),
        };
        if index == self.slots.len() {
            self.slots.push(slot);
            self.seats.push(Seat::default());
            self.servers.push(server);
        } else {
            self.slots[index] = slot;
            self.seats[index] = Seat::default();
            self.servers[index] = server;
        }
        let index = index as u32;
        self.probation.reset(index);
        self.by_id.insert(view.id.clone(), index);
        index
    }

    fn refresh_if_due(&mut self, now: Instant) {
        if now >= self.refresh_at {
            self.handle_timeout(now);
        }
    }

    fn choose(&mut self, ask: &Ask<'_>, now: Instant) -> Result<u32, Refusal> {
        if ask.source.is_none()
            && let Some(trial) = self.probation.trial(now).filter(|slot| self.may_try(*slot, ask, now))
        {
            return Ok(trial);
        }
        let seats = Seats { each: &self.seats, weight: self.weight, now };
        let wish = Wish { avoid: ask.avoid, source: ask.source };
        let refusal = match self.picker.pick(&seats, &wish, &mut self.rng) {
            Ok(index) => return Ok(index),
            Err(refusal) if ask.source.is_some() => return Err(refusal),
            Err(refusal @ (Refusal::OutOfCredit { .. } | Refusal::NoServer)) => return Err(refusal),
            Err(refusal) => refusal,
        };
        // A server on probation is better than none.
        if let Some(slot) = self.probation.on().iter().find(|slot| self.may_try(**slot, ask, now)) {
            return Ok(*slot);
        }
        self.probe(ask, now).filter(|_| refusal == Refusal::NothingOpen).ok_or(refusal)
    }

    /// Whether a server on probation may get this connection.
    fn may_try(&self, slot: u32, ask: &Ask<'_>, now: Instant) -> bool {
        let seat = &self.seats[slot as usize];
        self.slots[slot as usize].trial
            && seat.live.saturating_add(seat.pending) < self.slots[slot as usize].view.capacity.get()
            && seat.arrival_at <= now
            && !ask.avoid.contains(&ServerKey(slot))
    }

    /// With everything dead by our own evidence, somebody has to find out when that ends.
    fn probe(&mut self, ask: &Ask<'_>, now: Instant) -> Option<u32> {
        if now < self.probe_at {
            return None;
        }
        let may = |slot: &u32| self.slots[*slot as usize].probe && !ask.avoid.contains(&ServerKey(*slot));
        let slot =
            self.listed.iter().copied().filter(may).min_by_key(|slot| self.seats[*slot as usize].used)?;
        self.probe_at = now + PROBE_EVERY;
        Some(slot)
    }

    fn note_placement(&mut self, index: u32, ask: &Ask<'_>, now: Instant) -> Placement {
        let slot = &mut self.slots[index as usize];
        let seat = &mut self.seats[index as usize];
        if ask.source.is_some() {
            slot.credit.spend_on_move(&slot.rate, now);
        } else {
            slot.credit.spend(&slot.rate, now);
        }
        seat.arrival_at = slot.credit.arrival_at(&slot.rate);
        seat.move_at = slot.credit.move_at(&slot.rate);
        self.open_placement(index, now)
    }

    /// Counts one more on its way to a server.
    fn open_placement(&mut self, index: u32, now: Instant) -> Placement {
        self.ticks += 1;
        self.placed_since_refresh += 1;
        let slot = &mut self.slots[index as usize];
        let seat = &mut self.seats[index as usize];
        seat.pending += 1;
        (seat.used, seat.changed) = (self.ticks, self.ticks);
        slot.placed += 1;
        slot.peak = slot.peak.max(slot.ours(seat.pending));
        self.note_change(index, now);
        let slot = &self.slots[index as usize];
        Placement {
            id: PlacementId(self.ledger.open(index, now)),
            key: ServerKey(index),
            server: slot.view.id.clone(),
            inc: slot.view.inc,
            url: Arc::clone(&slot.view.url),
            executor: slot.view.executor,
        }
    }

    fn note_change(&mut self, index: u32, now: Instant) {
        let seats = Seats { each: &self.seats, weight: self.weight, now };
        self.picker.changed(&seats, index);
    }

    /// Expires placements, judges probation and computes targets and credit anew.
    fn refresh(&mut self, now: Instant) {
        let Some(snapshot) = self.snapshot.clone() else { return };
        while let Some(slot) = self.ledger.expire(snapshot.place.pending_ttl, now) {
            self.seats[slot as usize].pending -= 1;
        }
        self.expire_assigned(snapshot.place.pending_ttl, now);
        self.probation.judge(&self.listed, now);
        let stale = now.since(self.installed_at) > CONTROLLER_GONE_AFTER;
        let mut demand = Connections::ZERO;
        for index in 0..self.slots.len() {
            self.refresh_slot(index, &snapshot, stale, now);
            demand += self.servers[index].live + self.servers[index].pending;
        }
        // And the one that comes next: where pinned servers hold all there are, an empty one has a target only by it.
        self.allotments = allot(&self.servers, demand + Connections(1), Ratio::ONE);
        for (seat, allotment) in self.seats.iter_mut().zip(&self.allotments.each) {
            seat.target = allotment.target;
            seat.at_most = allotment.at_most.get();
        }
        self.refresh_credit(&snapshot, now);
        self.refresh_weight(&snapshot, now);
        let seats = Seats { each: &self.seats, weight: self.weight, now };
        self.picker.refresh(snapshot.place.pick, snapshot.gateways, &seats);
        self.refreshed_at = now;
        self.refresh_at = now + REFRESH;
    }

    /// All wishes about one server, the controller's and our own.
    fn refresh_slot(&mut self, index: usize, snapshot: &Snapshot, stale: bool, now: Instant) {
        self.recount_assigned(index);
        let slot = &mut self.slots[index];
        let (seat, server) = (&mut self.seats[index], &mut self.servers[index]);
        if !slot.kept(seat.pending) && self.by_id.get(&slot.view.id) == Some(&(index as u32)) {
            self.by_id.remove(&slot.view.id);
            self.free.push(index as u32);
        }
        let heard_until =
            slot.heard.map(|heard| heard + snapshot.health.suspect_after).filter(|until| now < *until);
        server.ceilings.clear();
        slot.wishes(heard_until.is_some(), now, &mut server.ceilings);
        let on_probation = self.probation.is_on(index as u32);
        slot.trial = on_probation && server.ceilings.iter().all(|ceiling| ceiling.cause.permits());
        let dead_there = slot.view.health == Health::Dead;
        slot.probe = slot.dead_here.is_some() && !dead_there || stale && slot.view.health != Health::Ok;
        slot.probe &= server
            .ceilings
            .iter()
            .all(|ceiling| ceiling.cause.permits() || matches!(ceiling.cause, Cause::Dead | Cause::Suspect));
        if on_probation {
            server.ceilings.push(Ceiling { at_most: Connections::ZERO, cause: Cause::Probation });
        }
        seat.live = slot.own.saturating_add(slot.not_ours());
        seat.permits = server.ceilings.iter().all(|ceiling| ceiling.cause.permits());
        let suspect = slot.view.health == Health::Suspect;
        seat.trusted_until = heard_until.filter(|_| suspect).unwrap_or(Instant(u64::MAX));
        server.capacity = slot.view.capacity;
        server.admit = slot.view.admit;
        server.live = Connections(seat.live);
        server.pending = Connections(seat.pending);
    }

    /// Each server's rate here: its own by its size, this gateway's share, slow start relative to the fleet.
    /// By size, because arrivals beyond all credit fill servers by their credit: with equal credit the small one
    /// would be filled as fast as the large one, whatever their targets.
    fn refresh_credit(&mut self, snapshot: &Snapshot, now: Instant) {
        let place = &snapshot.place;
        let factor =
            |slot: &Slot| slow_start(slot.view.open_since, place.slow_start, place.slow_start_floor, now);
        let open = |index: &&u32| self.seats[**index as usize].permits;
        let largest = self.listed.iter().filter(open).map(|index| factor(&self.slots[*index as usize]));
        let largest = largest.fold(0.0, f64::max).max(1e-9);
        let share = 1.0 / f64::from(snapshot.gateways.max(1));
        let size = |slot: &Slot| f64::from(slot.view.capacity.get());
        let (servers, sizes) = (self.listed.iter().filter(open))
            .fold((0.0, 0.0), |(servers, sizes), index| {
                (servers + 1.0, sizes + size(&self.slots[*index as usize]))
            });
        let mean = (sizes / f64::max(servers, 1.0)).max(1.0);
        for index in &self.listed {
            let slot = &mut self.slots[*index as usize];
            let by_size = (size(slot) / mean).clamp(CREDIT_BY_SIZE.0, CREDIT_BY_SIZE.1);
            let part = (factor(slot) / largest).min(1.0) * share * by_size;
            slot.rate = Rate::new(PerSecond::new(slot.view.admit.get() * part), place.admit_burst);
            let seat = &mut self.seats[*index as usize];
            seat.arrival_at = slot.credit.arrival_at(&slot.rate);
            seat.move_at = slot.credit.move_at(&slot.rate);
        }
    }

    fn refresh_weight(&mut self, snapshot: &Snapshot, now: Instant) {
        let passed = now.since(self.refreshed_at).as_secs_f64();
        if passed > 0.0 {
            self.own_rate.update(f64::from(self.placed_since_refresh) / passed, now);
            self.placed_since_refresh = 0;
        }
        let own = self.own_rate.value().unwrap_or(0.0);
        self.weight = Weight::new(snapshot.placed_per_s.get(), own, snapshot.gateways);
    }
}

#[cfg(test)]
mod tests;
