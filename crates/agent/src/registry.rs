//! Knows every connection of this server: how many there are, which leave first and how, and whom to admit.
//!
//! In: admissions, opens, touches, ends, how moves ended; orders to have so many leave. Out: counts and chosen
//! connections, each told through its own entry; what the agent is to tell the nodes (4,096 of each kind at most, of
//! more the oldest are dropped). Invariants: opening and ending cost O(1) under one short lock, a touch is two atomic
//! writes without any; a connection that leaves is chosen once, unless it stays after all; an admission is open, ended
//! or counted as arriving; a client that comes to take a session over counts as arriving until it has. Elsewhere: how
//! many leave and when (`evenkeel_protocol::executor`), the dialogue of a move (`evenkeel_protocol::moving`).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use evenkeel_model::{Connections, Duration, Instant, Rng, Select, Totals};
use evenkeel_protocol::agent::Held;
use evenkeel_protocol::close::CloseReason;
use evenkeel_protocol::executor::{Admit, Closes, UnderWay};
use evenkeel_protocol::message::{Event, EventState, MoveResult, Moved};
use evenkeel_protocol::moving::server::Settled;
use futures_util::task::AtomicWaker;
use tokio::sync::Notify;

/// A rebalance leaves a client alone for so long that did not answer, would not go or just came.
const SPARED_FOR: Duration = Duration::from_secs(600);

/// A client that could not go is not asked again before.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Notices to one client of a server that empties, before it is closed instead. One that did not answer at all is
/// closed in its next turn; refusals for lack of credit, which name a time, do not count.
const NOTICES_MAX: u8 = 3;

/// What waits for the agent's task.
const TOLD_MAX: usize = 4_096;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    slots: Mutex<Slots>,
    admit: AtomicU8,
    /// Set for good when the application leaves; outranks every order.
    leaving: AtomicU8,
    /// The nodes' time when the door was closed, in Unix milliseconds.
    closed_at: AtomicU64,
    /// There are keys to move clients with.
    can_move: AtomicBool,
    arriving: AtomicU32,
    movable: AtomicU32,
    refused: AtomicU64,
    told: Mutex<Told>,
    /// Something of the above changed.
    pub(crate) changed: Notify,
    /// The door was closed: sessions that are about to come do better elsewhere.
    pub(crate) drains: Arc<Notify>,
    /// No connection is left.
    pub(crate) emptied: Notify,
}

#[derive(Debug, Default)]
struct Slots {
    entries: Vec<Option<Arc<Entry>>>,
    free: Vec<u32>,
    open: u32,
    closing: u32,
    accepted: u64,
    closed: u64,
    closed_abnormal: u64,
}

/// What is known of one connection.
#[derive(Debug)]
pub(crate) struct Entry {
    slot: u32,
    opened: Instant,
    /// Last message, as [`Instant`].
    touched: AtomicU64,
    bytes: AtomicU64,
    /// Its client can be moved now.
    movable: AtomicBool,
    /// Notices that count towards [`NOTICES_MAX`].
    notices: AtomicU8,
    /// Not asked again before, as [`Instant`].
    again: AtomicU64,
    /// Left alone by rebalancing until, as [`Instant`].
    spared: AtomicU64,
    /// 0, or 1 + the place of the reason in [`CloseReason::ALL`], with [`MOVES`] set for a move.
    chosen: AtomicU16,
    woken: Notify,
    waker: AtomicWaker,
}

/// See [`Entry::chosen`].
const MOVES: u16 = 1 << 15;

/// How a chosen connection leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    Close(CloseReason),
    Move(CloseReason),
}

/// Which of those that an order selects alike go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    /// All as the order says.
    Any,
    /// Those that can be moved, because they need the time.
    Movable,
}

/// What the agent is to tell the nodes.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// What became of assignments.
    pub(crate) events: VecDeque<Event>,
    /// How moves ended.
    pub(crate) moved: VecDeque<Moved>,
}

impl Registry {
    pub(crate) fn admit(&self) -> Admit {
        if self.leaving.load(Ordering::SeqCst) != 0 {
            return Admit::Draining;
        }
        match self.admit.load(Ordering::SeqCst) {
            0 => Admit::Open,
            1 => Admit::Cordoned,
            _ => Admit::Draining,
        }
    }

    /// Opens or closes the door, at that time of the nodes.
    pub(crate) fn set_admit(&self, admit: Admit, node_now: Instant) {
        let number = match admit {
            Admit::Open => 0,
            Admit::Cordoned => 1,
            Admit::Draining => 2,
        };
        if admit != Admit::Open {
            self.closes(node_now);
        }
        self.admit.store(number, Ordering::SeqCst);
        if admit != Admit::Open {
            self.drains.notify_waiters();
        }
    }

    /// From now on admits nobody, whatever is ordered.
    pub(crate) fn leave(&self, node_now: Instant) {
        self.closes(node_now);
        self.leaving.store(1, Ordering::SeqCst);
        self.drains.notify_waiters();
    }

    fn closes(&self, node_now: Instant) {
        if self.admit() == Admit::Open {
            self.closed_at.store(node_now.as_millis(), Ordering::SeqCst);
        }
    }

    /// Whether clients can be moved.
    pub(crate) fn set_can_move(&self, can_move: bool) {
        self.can_move.store(can_move, Ordering::Relaxed);
    }

    /// Counts one handshake as arriving, unless none is admitted. Through a closed door come those whose assignment
    /// was minted before it was closed: gateways sent them in good faith.
    pub(crate) fn arrive(&self, minted: Option<Instant>) -> Result<(), Admit> {
        // Counted before the look at `admit`, and in one order with it for everybody: whoever closes the door and
        // then counts finds every handshake that still came through.
        self.arriving.fetch_add(1, Ordering::SeqCst);
        let admit = self.admit();
        let earlier = minted.is_some_and(|at| at.as_millis() <= self.closed_at.load(Ordering::SeqCst));
        if admit == Admit::Open || earlier {
            return Ok(());
        }
        self.arriving.fetch_sub(1, Ordering::SeqCst);
        self.changed.notify_one();
        Err(admit)
    }

    /// A handshake was refused.
    pub(crate) fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// An arriving handshake came to nothing; so did its assignment, which is used up.
    pub(crate) fn turn_back(&self, rid: Option<String>) {
        self.settle(rid, EventState::Expired);
        self.arriving.fetch_sub(1, Ordering::SeqCst);
        self.changed.notify_one();
    }

    /// The client of an assignment came.
    pub(crate) fn connected(&self, rid: String) {
        self.settle(Some(rid), EventState::Connected);
    }

    fn settle(&self, rid: Option<String>, state: EventState) {
        if let Some(rid) = rid {
            push(&mut self.told().events, Event { rid, state });
        }
    }

    /// What is to be told, once.
    pub(crate) fn take_told(&self) -> Told {
        std::mem::take(&mut *self.told())
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An arriving handshake became a connection.
    pub(crate) fn open(&self, now: Instant) -> Arc<Entry> {
        let mut slots = self.lock();
        let slot = slots.free.pop().unwrap_or_else(|| {
            slots.entries.push(None);
            u32::try_from(slots.entries.len() - 1).unwrap_or(u32::MAX)
        });
        let entry = Arc::new(Entry {
            slot,
            opened: now,
            touched: AtomicU64::new(now.0),
            bytes: AtomicU64::new(0),
            movable: AtomicBool::new(false),
            notices: AtomicU8::new(0),
            again: AtomicU64::new(0),
            spared: AtomicU64::new(0),
            chosen: AtomicU16::new(0),
            woken: Notify::new(),
            waker: AtomicWaker::new(),
        });
        slots.entries[slot as usize] = Some(Arc::clone(&entry));
        slots.open += 1;
        slots.accepted += 1;
        // Under the lock, so that no count sees the handshake twice or not at all.
        self.arriving.fetch_sub(1, Ordering::SeqCst);
        drop(slots);
        self.changed.notify_one();
        entry
    }

    /// The client of a connection can, or cannot, be moved from now on.
    pub(crate) fn set_movable(&self, entry: &Entry, movable: bool) {
        match (entry.movable.swap(movable, Ordering::Relaxed), movable) {
            (false, true) => _ = self.movable.fetch_add(1, Ordering::Relaxed),
            (true, false) => _ = self.movable.fetch_sub(1, Ordering::Relaxed),
            _ => {}
        }
    }

    /// The move of a connection ended. It stays, unless it moved or ended.
    pub(crate) fn settled(&self, entry: &Entry, mid: String, how: &Settled, now: Instant) {
        let (result, why) = match how {
            Settled::Moved => (MoveResult::Ok, None),
            // The client's word, at most 256 bytes of it.
            Settled::Refused { why, .. } => (MoveResult::Nak, Some(why.clone())),
            _ => (MoveResult::Nak, Some(how.reason().to_owned())),
        };
        push(&mut self.told().moved, Moved { mid, result, why });
        let (again, spared) = match how {
            Settled::Moved | Settled::Overdue | Settled::Gone => return self.changed.notify_one(),
            Settled::NotSent => (now, now),
            Settled::Refused { retry: Some(retry), .. } => {
                let again = now + AGAIN_AFTER.max(*retry);
                (again, again)
            }
            Settled::Refused { retry: None, .. } => {
                entry.notices.fetch_add(1, Ordering::Relaxed);
                (now + AGAIN_AFTER, now + SPARED_FOR)
            }
            Settled::Lapsed => {
                entry.notices.store(NOTICES_MAX, Ordering::Relaxed);
                (now, now + SPARED_FOR)
            }
        };
        entry.again.store(again.0, Ordering::Relaxed);
        entry.spare(spared);
        self.stay(entry);
    }

    /// A chosen connection stays after all.
    fn stay(&self, entry: &Entry) {
        let mut slots = self.lock();
        if entry.chosen.swap(0, Ordering::AcqRel) != 0 {
            slots.closing -= 1;
        }
        drop(slots);
        self.changed.notify_one();
    }

    /// A connection ended.
    pub(crate) fn end(&self, entry: &Entry, abnormal: bool) {
        self.set_movable(entry, false);
        let mut slots = self.lock();
        debug_assert!(slots.entries[entry.slot as usize].is_some(), "a connection ends once");
        slots.entries[entry.slot as usize] = None;
        slots.free.push(entry.slot);
        slots.open -= 1;
        slots.closing -= u32::from(entry.leaves().is_some());
        slots.closed += 1;
        slots.closed_abnormal += u64::from(abnormal);
        let empty = slots.open == 0;
        drop(slots);
        self.changed.notify_one();
        if empty {
            self.emptied.notify_waiters();
        }
    }

    /// The counts as they are now.
    pub(crate) fn held(&self) -> Held {
        let slots = self.lock();
        Held {
            connections: Connections(slots.open),
            closing: Connections(slots.closing),
            arriving: Connections(self.arriving.load(Ordering::SeqCst)),
            movable: Connections(self.movable.load(Ordering::Relaxed)),
            totals: Totals {
                accepted: slots.accepted,
                closed: slots.closed,
                closed_abnormal: slots.closed_abnormal,
                refused: self.refused.load(Ordering::Relaxed),
            },
        }
    }

    /// Chooses at most `count` connections that are at least `min_age` old, in the order of `select`, and tells
    /// them. Says how many were found.
    pub(crate) fn choose(&self, wanted: &Closes, first: First, now: Instant, rng: &mut Rng) -> Connections {
        let mut slots = self.lock();
        let mut candidates: Vec<(bool, u64, u32)> = slots
            .entries
            .iter()
            .flatten()
            .filter(|entry| entry.leaves().is_none() && entry.may_leave(wanted, now))
            .map(|entry| {
                let later = first == First::Movable && !entry.movable.load(Ordering::Relaxed);
                (later, entry.rank(wanted.select, rng), entry.slot)
            })
            .collect();
        let count = (wanted.count.get() as usize).min(candidates.len());
        if count > 0 && count < candidates.len() {
            // Only the first so many in any order: linear, where sorting 10,000 for each close is not.
            candidates.select_nth_unstable(count - 1);
        }
        let can_move = self.can_move.load(Ordering::Relaxed);
        for &(_, _, slot) in &candidates[..count] {
            if let Some(entry) = &slots.entries[slot as usize] {
                entry.choose(entry.way(wanted, can_move));
            }
        }
        let chosen = u32::try_from(count).unwrap_or(u32::MAX);
        slots.closing += chosen;
        debug_assert!(slots.closing <= slots.open);
        Connections(chosen)
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        // Every change is complete before anything under the lock could panic.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    #[inline]
    pub(crate) fn touch(&self, bytes: u64, now: Instant) {
        self.touched.store(now.0, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Rebalancing leaves it alone until then.
    pub(crate) fn spare(&self, until: Instant) {
        self.spared.store(until.0, Ordering::Relaxed);
    }

    /// The same for a client that was just moved here.
    pub(crate) fn spare_moved(&self, now: Instant) {
        self.spare(now + SPARED_FOR);
    }

    /// How this connection leaves, once it is chosen.
    pub(crate) fn leaves(&self) -> Option<Leave> {
        let chosen = self.chosen.load(Ordering::Acquire);
        let place = usize::from(chosen & !MOVES).checked_sub(1)?;
        let reason = CloseReason::ALL.get(place).copied()?;
        Some(if chosen & MOVES == 0 { Leave::Close(reason) } else { Leave::Move(reason) })
    }

    /// Waits until this connection is chosen to close. Cancel-safe.
    pub(crate) async fn closing(&self) -> CloseReason {
        loop {
            let woken = self.woken.notified();
            if let Some(Leave::Close(reason)) = self.leaves() {
                return reason;
            }
            woken.await;
        }
    }

    /// Wakes this task, and only the last one that asked, when the connection is chosen.
    pub(crate) fn wakes(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    fn choose(&self, leave: Leave) {
        let (reason, moves) = match leave {
            Leave::Close(reason) => (reason, 0),
            Leave::Move(reason) => (reason, MOVES),
        };
        let place = CloseReason::ALL.iter().position(|&other| other == reason).unwrap_or(0);
        self.chosen.store(u16::try_from(place + 1).unwrap_or(1) | moves, Ordering::Release);
        // `notified()` above is made before the look, so this wakes it even if it was not polled yet.
        self.woken.notify_waiters();
        self.waker.wake();
    }

    fn may_leave(&self, wanted: &Closes, now: Instant) -> bool {
        let past = |at: &AtomicU64| now.0 >= at.load(Ordering::Relaxed);
        let rested = wanted.under_way == UnderWay::End || past(&self.again);
        let spared = wanted.reason == CloseReason::Rebalance && !past(&self.spared);
        now.since(self.opened) >= wanted.min_age && rested && !spared
    }

    /// Moves where that may still come about.
    fn way(&self, wanted: &Closes, can_move: bool) -> Leave {
        let empties = matches!(wanted.reason, CloseReason::Draining | CloseReason::Stopped);
        let asked_enough = empties && self.notices.load(Ordering::Relaxed) >= NOTICES_MAX;
        let movable = can_move && self.movable.load(Ordering::Relaxed);
        if movable && wanted.under_way == UnderWay::Finish && !asked_enough {
            Leave::Move(wanted.reason)
        } else {
            Leave::Close(wanted.reason)
        }
    }

    /// Lower ranks leave first.
    fn rank(&self, select: Select, rng: &mut Rng) -> u64 {
        match select {
            Select::Idle => self.touched.load(Ordering::Relaxed),
            Select::Newest => u64::MAX - self.opened.0,
            Select::Oldest => self.opened.0,
            Select::Random => rng.next_u64(),
            Select::Heaviest => u64::MAX - self.bytes.load(Ordering::Relaxed),
        }
    }
}

/// Holds one more to be told; without room the oldest goes.
fn push<T>(queue: &mut VecDeque<T>, item: T) {
    if queue.len() >= TOLD_MAX {
        queue.pop_front();
    }
    queue.push_back(item);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn open(registry: &Registry, ms: u64) -> Arc<Entry> {
        registry.arrive(None).unwrap();
        registry.open(at(ms))
    }

    fn wanted(count: u32, select: Select, min_age_ms: u64) -> Closes {
        Closes {
            count: Connections(count),
            select,
            min_age: Duration::from_millis(min_age_ms),
            under_way: UnderWay::Finish,
            reason: CloseReason::Rebalance,
        }
    }

    /// Which of three connections leave first: opened at 1, 2, 3 s, last touched and weighing as given.
    fn first_two(select: Select) -> Vec<usize> {
        let registry = Registry::default();
        let entries: Vec<_> = (1..=3).map(|second| open(&registry, second * 1_000)).collect();
        for (entry, (bytes, touched)) in entries.iter().zip([(10, 9_000), (300, 7_000), (20, 8_000)]) {
            entry.touch(bytes, at(touched));
        }
        let chosen = registry.choose(&wanted(2, select, 0), First::Any, at(10_000), &mut Rng::new(1));
        assert_eq!(chosen, Connections(2));
        (0..3).filter(|&index| entries[index].leaves().is_some()).collect()
    }

    #[test]
    fn each_selection_chooses_by_its_own_measure() {
        assert_eq!(first_two(Select::Idle), [1, 2]);
        assert_eq!(first_two(Select::Newest), [1, 2]);
        assert_eq!(first_two(Select::Oldest), [0, 1]);
        assert_eq!(first_two(Select::Heaviest), [1, 2]);
        assert_eq!(first_two(Select::Random).len(), 2);
    }

    #[test]
    fn a_connection_is_chosen_once_and_young_ones_stay() {
        let registry = Registry::default();
        let _held: Vec<_> = (0..10).map(|second| open(&registry, second * 1_000)).collect();
        let mut rng = Rng::new(1);
        assert_eq!(
            registry.choose(&wanted(20, Select::Idle, 5_000), First::Any, at(10_000), &mut rng),
            Connections(6)
        );
        assert_eq!(
            registry.choose(&wanted(20, Select::Idle, 5_000), First::Any, at(10_000), &mut rng),
            Connections(0)
        );
        assert_eq!(
            registry.choose(&wanted(20, Select::Idle, 0), First::Any, at(10_000), &mut rng),
            Connections(4)
        );
        assert_eq!(registry.held().closing, Connections(10));
    }

    #[test]
    fn slots_are_used_again_and_every_count_returns_to_zero() {
        let registry = Registry::default();
        for round in 0..3 {
            let entries: Vec<_> = (0..100).map(|_| open(&registry, round)).collect();
            registry.choose(&wanted(30, Select::Random, 0), First::Any, at(10_000), &mut Rng::new(round));
            for (index, entry) in entries.iter().enumerate() {
                registry.end(entry, index < 10);
            }
        }
        let held = registry.held();
        assert_eq!((held.connections, held.closing, held.arriving), Default::default());
        assert_eq!((held.totals.accepted, held.totals.closed, held.totals.closed_abnormal), (300, 300, 30));
        assert_eq!(registry.lock().entries.len(), 100);
    }

    #[test]
    fn nobody_arrives_while_draining_and_leaving_outranks_orders() {
        let registry = Registry::default();
        registry.set_admit(Admit::Draining, at(5_000));
        assert_eq!(registry.arrive(None), Err(Admit::Draining));
        registry.set_admit(Admit::Open, at(6_000));
        assert_eq!(registry.arrive(None), Ok(()));
        registry.turn_back(None);
        registry.leave(at(7_000));
        assert_eq!(registry.arrive(None), Err(Admit::Draining));
        assert_eq!(registry.held().arriving, Connections::ZERO);
    }

    #[tokio::test]
    async fn a_chosen_connection_hears_of_it_whenever_it_starts_to_listen() {
        let registry = Arc::new(Registry::default());
        let (early, late) = (open(&registry, 0), open(&registry, 0));
        let listening = {
            let early = Arc::clone(&early);
            async move { early.closing().await }
        };
        let order =
            async { registry.choose(&wanted(2, Select::Idle, 0), First::Any, at(1), &mut Rng::new(1)) };
        let (reason, _) = tokio::join!(listening, order);
        assert_eq!(reason, CloseReason::Rebalance);
        assert_eq!(late.closing().await, CloseReason::Rebalance);
    }
}
