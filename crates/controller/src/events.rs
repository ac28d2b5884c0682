//! The last events, numbered, for `GET /v1/events` and whoever follows.
//!
//! Invariant: numbers count up by one over all fleets of this process. Full: the oldest is forgotten; a follower
//! that fell behind sees the gap in the numbers.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use evenkeel_fleet::controller::Event;
use evenkeel_model::FleetId;
use tokio::sync::watch;

/// Events kept: some hours of an ordinary fleet, minutes of a restless one, below 1 MiB.
const KEPT: usize = 1_000;

/// One event with its number and fleet.
#[derive(Debug, Clone, PartialEq)]
pub struct Numbered {
    /// Counts up from 1.
    pub seq: u64,
    /// Whose.
    pub fleet: FleetId,
    /// What.
    pub event: Event,
}

/// The ring. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Events(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ring: Mutex<VecDeque<Arc<Numbered>>>,
    newest: watch::Sender<u64>,
}

impl Default for Events {
    fn default() -> Self {
        Self(Arc::new(Inner { ring: Mutex::default(), newest: watch::Sender::new(0) }))
    }
}

impl Events {
    /// Adds one and says its number.
    pub fn push(&self, fleet: &FleetId, event: Event) -> u64 {
        let mut ring = self.0.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let seq = *self.0.newest.borrow() + 1;
        if ring.len() == KEPT {
            ring.pop_front();
        }
        ring.push_back(Arc::new(Numbered { seq, fleet: fleet.clone(), event }));
        self.0.newest.send_replace(seq);
        seq
    }

    /// Those kept with a number above `seq`, oldest first.
    #[must_use]
    pub fn since(&self, seq: u64) -> Vec<Arc<Numbered>> {
        let ring = self.0.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.iter().filter(|event| event.seq > seq).cloned().collect()
    }

    /// Changes whenever there is a new one.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.0.newest.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use evenkeel_model::Instant;

    use super::*;

    #[test]
    fn ring_keeps_the_newest_and_numbers_them_without_gaps() {
        let events = Events::default();
        let fleet = FleetId::new("f").unwrap();
        for n in 0..KEPT as u64 + 5 {
            let text = n.to_string();
            events.push(&fleet, Event { at: Instant::ZERO, server: None, kind: "joined", text });
        }
        let kept = events.since(0);
        assert_eq!((kept.len(), kept[0].seq), (KEPT, 6));
        assert!(kept.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1));
        assert_eq!(events.since(KEPT as u64 + 4).len(), 1);
    }
}
