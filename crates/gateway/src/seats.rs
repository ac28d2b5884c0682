//! The tunnels of one engine thread: where each sits, by which number it is found, and what is due when.
//!
//! Invariants: a seat that was left is given away only after the batch, so a stale event of the batch finds nobody,
//! never a new tenant; at most one timer stands for a tunnel, the earliest: what is due later is seen when it fires.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use evenkeel_model::{Duration, Instant};

use crate::engine::{ConnId, TunnelLimits};
use crate::tunnel::Tunnel;

/// A tunnel and what its engine keeps for it.
pub(crate) struct Seat<S> {
    pub(crate) tunnel: Tunnel,
    pub(crate) ends: S,
}

pub(crate) struct Seats<S> {
    seats: Vec<Option<Box<Seat<S>>>>,
    free: Vec<u32>,
    /// Free after the batch.
    left: Vec<u32>,
    by_id: BTreeMap<ConnId, u32>,
    timers: BinaryHeap<Reverse<(Instant, u32, ConnId)>>,
}

impl<S> Seats<S> {
    pub(crate) fn new() -> Self {
        Self {
            seats: Vec::new(),
            free: Vec::new(),
            left: Vec::new(),
            by_id: BTreeMap::new(),
            timers: BinaryHeap::new(),
        }
    }

    /// A free place, for [`Seats::sit`].
    pub(crate) fn place(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.seats.push(None);
            (self.seats.len() - 1) as u32
        })
    }

    /// Gives a place back that nobody took.
    pub(crate) fn spare(&mut self, at: u32) {
        self.free.push(at);
    }

    pub(crate) fn sit(&mut self, at: u32, seat: Seat<S>) {
        self.by_id.insert(seat.tunnel.id, at);
        self.seats[at as usize] = Some(Box::new(seat));
    }

    pub(crate) fn get(&mut self, at: u32) -> Option<&mut Seat<S>> {
        self.seats.get_mut(at as usize)?.as_deref_mut()
    }

    pub(crate) fn find(&self, id: ConnId) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    /// Takes a tunnel out.
    pub(crate) fn leave(&mut self, at: u32) -> Option<Box<Seat<S>>> {
        let seat = self.seats.get_mut(at as usize)?.take()?;
        self.left.push(at);
        self.by_id.remove(&seat.tunnel.id);
        Some(seat)
    }

    /// All places there are, taken or not.
    pub(crate) fn places(&self) -> std::ops::Range<u32> {
        0..self.seats.len() as u32
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    pub(crate) fn batch_over(&mut self) {
        self.free.append(&mut self.left);
    }

    /// Sets a tunnel's timer if it has something due before the one that is set.
    pub(crate) fn set_timer(&mut self, at: u32, limits: &TunnelLimits) {
        let Some(Seat { tunnel, .. }) = self.seats.get_mut(at as usize).and_then(Option::as_deref_mut) else {
            return;
        };
        if let Some(due) = tunnel.due(limits)
            && tunnel.timer.is_none_or(|timer| due < timer)
        {
            tunnel.timer = Some(due);
            self.timers.push(Reverse((due, at, tunnel.id)));
        }
    }

    /// How long until the next timer.
    pub(crate) fn next_timer(&self, now: Instant) -> Option<Duration> {
        self.timers.peek().map(|Reverse((due, ..))| due.since(now))
    }

    /// A tunnel whose timer fires.
    pub(crate) fn fire(&mut self, now: Instant) -> Option<u32> {
        while let Some(Reverse((due, at, id))) = self.timers.peek().copied().filter(|timer| timer.0.0 <= now)
        {
            self.timers.pop();
            // An earlier timer may have replaced this one, or another tunnel the one it was for.
            if let Some(Seat { tunnel, .. }) = self.get(at)
                && tunnel.id == id
                && tunnel.timer == Some(due)
            {
                tunnel.timer = None;
                return Some(at);
            }
        }
        None
    }
}
