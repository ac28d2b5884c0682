//! Handshakes whose head is not whole yet: the first to go when there is no room for another client.
//!
//! A client that sends its head at once is here for an instant. One that drips or is silent stays until its deadline,
//! and ten thousand of those would keep everybody else out until then. Invariants: nobody goes who has been here for
//! less than [`PATIENCE`]; who has sent a whole head never goes. Elsewhere: the bound itself (`shell`).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use evenkeel_model::{Duration, Instant};
use tokio::sync::Notify;

use crate::engine::ConnId;

/// For so long a client may read and write before it can be displaced: one lost packet of a head is sent again
/// within it. A larger one keeps others out for longer while idle clients fill the gateway.
const PATIENCE: Duration = Duration::from_secs(1);

/// All of them, the oldest first: ids grow.
#[derive(Default)]
pub(crate) struct Reading(RefCell<BTreeMap<ConnId, Slow>>);

struct Slow {
    since: Instant,
    go: Rc<Notify>,
}

/// One of them; dropped, it is no longer.
pub(crate) struct Reader {
    of: Rc<Reading>,
    id: ConnId,
    go: Rc<Notify>,
}

impl Reading {
    pub(crate) fn enter(self: &Rc<Self>, id: ConnId, now: Instant) -> Reader {
        let go = Rc::new(Notify::new());
        self.0.borrow_mut().insert(id, Slow { since: now, go: Rc::clone(&go) });
        Reader { of: Rc::clone(self), id, go }
    }

    /// Tells the oldest to go, if it has been here for long enough. Its place is free a moment later.
    pub(crate) fn displace(&self, now: Instant) -> bool {
        let mut reading = self.0.borrow_mut();
        match reading.first_entry() {
            Some(oldest) if now.since(oldest.get().since) >= PATIENCE => {
                oldest.remove().go.notify_one();
                true
            }
            _ => false,
        }
    }
}

impl Reader {
    /// Returns when it has to go.
    ///
    /// # Cancel safety
    /// Yes.
    pub(crate) async fn displaced(&self) {
        self.go.notified().await;
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.of.0.borrow_mut().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_once_it_had_its_time_and_only_once() {
        let at = Instant::from_millis;
        let reading = Rc::new(Reading::default());
        assert!(!reading.displace(at(9_000)), "nobody is here");
        let _first = reading.enter(ConnId(1), at(0));
        let second = reading.enter(ConnId(2), at(500));
        assert!(!reading.displace(at(999)));
        assert!(reading.displace(at(1_000)));
        assert!(!reading.displace(at(1_499)), "the second has half a second left");
        drop(second);
        assert!(!reading.displace(at(9_000)), "a whole head is not displaced");
    }
}
