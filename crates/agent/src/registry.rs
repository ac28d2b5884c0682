//! Knows every connection of this server: how many there are, which to close first, and whom to admit.
//!
//! In: admissions, opens, touches, ends; orders to close so many. Out: counts and chosen connections, each told
//! through its own entry. Invariants: opening and ending cost O(1) under one short lock, a touch is two atomic
//! writes without any; a connection is chosen at most once; an admission is open, ended or counted as arriving.
//! Elsewhere: how many to close and when (`evenkeel_protocol::executor`).

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use evenkeel_model::{Connections, Instant, Rng, Select, Totals};
use evenkeel_protocol::agent::Held;
use evenkeel_protocol::close::CloseReason;
use evenkeel_protocol::executor::{Admit, Closes};
use tokio::sync::Notify;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    slots: Mutex<Slots>,
    admit: AtomicU8,
    /// Set for good when the application leaves; outranks every order.
    leaving: AtomicU8,
    arriving: AtomicU32,
    refused: AtomicU64,
    /// Something of the above changed.
    pub(crate) changed: Notify,
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
    /// 0, or 1 + the place of the reason in [`CloseReason::ALL`].
    chosen: AtomicU8,
    woken: Notify,
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

    pub(crate) fn set_admit(&self, admit: Admit) {
        let number = match admit {
            Admit::Open => 0,
            Admit::Cordoned => 1,
            Admit::Draining => 2,
        };
        self.admit.store(number, Ordering::SeqCst);
    }

    /// From now on admits nobody, whatever is ordered.
    pub(crate) fn leave(&self) {
        self.leaving.store(1, Ordering::SeqCst);
    }

    /// Counts one handshake as arriving, unless none is admitted.
    pub(crate) fn arrive(&self) -> Result<(), Admit> {
        // Counted before the look at `admit`, and in one order with it for everybody: whoever closes the door and
        // then counts finds every handshake that still came through.
        self.arriving.fetch_add(1, Ordering::SeqCst);
        let admit = self.admit();
        if admit == Admit::Open {
            return Ok(());
        }
        self.arriving.fetch_sub(1, Ordering::SeqCst);
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_one();
        Err(admit)
    }

    /// An arriving handshake came to nothing.
    pub(crate) fn turn_back(&self) {
        self.arriving.fetch_sub(1, Ordering::SeqCst);
        self.changed.notify_one();
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
            chosen: AtomicU8::new(0),
            woken: Notify::new(),
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

    /// A connection ended.
    pub(crate) fn end(&self, entry: &Entry, abnormal: bool) {
        let mut slots = self.lock();
        debug_assert!(slots.entries[entry.slot as usize].is_some(), "a connection ends once");
        slots.entries[entry.slot as usize] = None;
        slots.free.push(entry.slot);
        slots.open -= 1;
        slots.closing -= u32::from(entry.reason().is_some());
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
            movable: Connections::ZERO,
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
    pub(crate) fn choose(&self, wanted: &Closes, now: Instant, rng: &mut Rng) -> Connections {
        let mut slots = self.lock();
        let mut candidates: Vec<(u64, u32)> = slots
            .entries
            .iter()
            .flatten()
            .filter(|entry| entry.reason().is_none() && now.since(entry.opened) >= wanted.min_age)
            .map(|entry| (entry.rank(wanted.select, rng), entry.slot))
            .collect();
        let count = (wanted.count.get() as usize).min(candidates.len());
        if count > 0 && count < candidates.len() {
            // Only the first so many in any order: linear, where sorting 10,000 for each close is not.
            candidates.select_nth_unstable(count - 1);
        }
        for &(_, slot) in &candidates[..count] {
            if let Some(entry) = &slots.entries[slot as usize] {
                entry.choose(wanted.reason);
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

    /// Why this connection was chosen, once it is.
    pub(crate) fn reason(&self) -> Option<CloseReason> {
        let place = usize::from(self.chosen.load(Ordering::Acquire)).checked_sub(1)?;
        CloseReason::ALL.get(place).copied()
    }

    /// Waits until this connection is chosen. Cancel-safe.
    pub(crate) async fn chosen(&self) -> CloseReason {
        loop {
            let woken = self.woken.notified();
            if let Some(reason) = self.reason() {
                return reason;
            }
            woken.await;
        }
    }

    fn choose(&self, reason: CloseReason) {
        let place = CloseReason::ALL.iter().position(|&other| other == reason).unwrap_or(0);
        self.chosen.store(u8::try_from(place + 1).unwrap_or(u8::MAX), Ordering::Release);
        // `notified()` above is made before the look, so this wakes it even if it was not polled yet.
        self.woken.notify_waiters();
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

#[cfg(test)]
mod tests {
    use evenkeel_model::Duration;
    use evenkeel_protocol::executor::UnderWay;

    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn open(registry: &Registry, ms: u64) -> Arc<Entry> {
        registry.arrive().unwrap();
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
        let chosen = registry.choose(&wanted(2, select, 0), at(10_000), &mut Rng::new(1));
        assert_eq!(chosen, Connections(2));
        (0..3).filter(|&index| entries[index].reason().is_some()).collect()
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
        assert_eq!(registry.choose(&wanted(20, Select::Idle, 5_000), at(10_000), &mut rng), Connections(6));
        assert_eq!(registry.choose(&wanted(20, Select::Idle, 5_000), at(10_000), &mut rng), Connections(0));
        assert_eq!(registry.choose(&wanted(20, Select::Idle, 0), at(10_000), &mut rng), Connections(4));
        assert_eq!(registry.held().closing, Connections(10));
    }

    #[test]
    fn slots_are_used_again_and_every_count_returns_to_zero() {
        let registry = Registry::default();
        for round in 0..3 {
            let entries: Vec<_> = (0..100).map(|_| open(&registry, round)).collect();
            registry.choose(&wanted(30, Select::Random, 0), at(10_000), &mut Rng::new(round));
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
        registry.set_admit(Admit::Draining);
        assert_eq!(registry.arrive(), Err(Admit::Draining));
        registry.set_admit(Admit::Open);
        assert_eq!(registry.arrive(), Ok(()));
        registry.turn_back();
        registry.leave();
        assert_eq!(registry.arrive(), Err(Admit::Draining));
        assert_eq!(registry.held().totals.refused, 2);
        assert_eq!(registry.held().arriving, Connections::ZERO);
    }

    #[tokio::test]
    async fn a_chosen_connection_hears_of_it_whenever_it_starts_to_listen() {
        let registry = Arc::new(Registry::default());
        let (early, late) = (open(&registry, 0), open(&registry, 0));
        let listening = {
            let early = Arc::clone(&early);
            async move { early.chosen().await }
        };
        let order = async { registry.choose(&wanted(2, Select::Idle, 0), at(1), &mut Rng::new(1)) };
        let (reason, _) = tokio::join!(listening, order);
        assert_eq!(reason, CloseReason::Rebalance);
        assert_eq!(late.chosen().await, CloseReason::Rebalance);
    }
}
