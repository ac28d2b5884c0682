//! What a sidecar remembers of the sockets of its server from one look to the next.
//!
//! In: looks, orders to have so many leave. Out: counts and totals, who may leave in which order. Invariants: a socket
//! counts as accepted once and as closed once, by its cookie; `accepted - closed` is the count.

use std::collections::BTreeMap;

use evenkeel_model::{Connections, Instant, Rng, Select, Totals};
use evenkeel_protocol::agent::Held;
use evenkeel_protocol::executor::Closes;

use crate::diag::{Found, Identity};

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// By cookie.
    known: BTreeMap<u64, Known>,
    /// Established for the kernel, and not accepted by the server yet.
    arriving: u32,
    accepted: u64,
    closed: u64,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    found: Found,
    first: Instant,
    /// Of its last data.
    active: Instant,
}

impl Table {
    /// Takes a look: these are all there are now.
    pub(super) fn take(&mut self, all: &[Found], now: Instant) {
        let mut before = std::mem::take(&mut self.known);
        self.arriving = 0;
        for found in all {
            if found.inode == 0 {
                self.arriving += 1;
                continue;
            }
            let cookie = found.identity.cookie();
            let known = before.remove(&cookie);
            self.accepted += u64::from(known.is_none());
            let first = known.map_or(now, |known| known.first);
            let active = Instant(now.0.saturating_sub(found.idle.as_nanos().try_into().unwrap_or(u64::MAX)));
            self.known.insert(cookie, Known { found: *found, first, active });
        }
        self.closed = self.accepted - self.known.len() as u64;
    }

    /// A socket is gone.
    pub(super) fn gone(&mut self, identity: &Identity) {
        self.closed += u64::from(self.known.remove(&identity.cookie()).is_some());
    }

    /// The counts as of the last look, less those that went since by our hand.
    pub(super) fn held(&self) -> Held {
        let connections = Connections(u32::try_from(self.known.len()).unwrap_or(u32::MAX));
        Held {
            connections,
            arriving: Connections(self.arriving),
            totals: Totals { accepted: self.accepted, closed: self.closed, ..Totals::default() },
            ..Held::default()
        }
    }

    /// Who may leave, in the order of the order. A connection that never sent a byte is no client yet: it is a check
    /// of the port, or its handshake is still to come.
    pub(super) fn candidates(&self, closes: &Closes, now: Instant, rng: &mut Rng) -> Vec<Identity> {
        let may = |known: &&Known| known.found.received > 0 && now.since(known.first) >= closes.min_age;
        let mut ranked: Vec<_> = self
            .known
            .values()
            .filter(may)
            .map(|known| (known.rank(closes.select, rng), known.found.identity))
            .collect();
        ranked.sort_unstable_by_key(|(rank, identity)| (*rank, identity.cookie()));
        ranked.into_iter().map(|(_, identity)| identity).collect()
    }
}

impl Known {
    /// Lower ranks leave first.
    fn rank(&self, select: Select, rng: &mut Rng) -> u64 {
        match select {
            Select::Idle => self.active.0,
            Select::Newest => u64::MAX - self.first.0,
            Select::Oldest => self.first.0,
            Select::Random => rng.next_u64(),
            Select::Heaviest => u64::MAX - self.found.received.saturating_add(self.found.sent),
        }
    }
}

#[cfg(test)]
mod tests {
    use evenkeel_model::Duration;
    use evenkeel_protocol::close::CloseReason;
    use evenkeel_protocol::executor::UnderWay;

    use super::*;

    const T0: Instant = Instant::from_millis(1_000_000);

    fn socket(cookie: u32, idle_s: u64, received: u64) -> Found {
        let identity = Identity::test(cookie);
        Found { identity, inode: cookie, idle: Duration::from_secs(idle_s), received, sent: 0 }
    }

    fn cookies(table: &Table, select: Select, min_age: Duration, now: Instant) -> Vec<u64> {
        let closes = Closes {
            count: Connections(1),
            select,
            min_age,
            under_way: UnderWay::Finish,
            reason: CloseReason::Draining,
        };
        let candidates = table.candidates(&closes, now, &mut Rng::new(1));
        candidates.iter().map(Identity::cookie).collect()
    }

    #[test]
    fn sockets_count_once_as_accepted_and_once_as_closed() {
        let mut table = Table::default();
        let counts = |table: &Table| {
            let held = table.held();
            (held.connections.get(), held.arriving.get(), held.totals.accepted, held.totals.closed)
        };
        let waiting = Found { inode: 0, ..socket(9, 0, 0) };
        table.take(&[socket(1, 0, 1), socket(2, 0, 1), waiting], T0);
        assert_eq!(counts(&table), (2, 1, 2, 0));
        table.take(&[socket(1, 0, 1), socket(2, 0, 1)], T0);
        assert_eq!(counts(&table), (2, 0, 2, 0), "a second look at the same time");
        table.gone(&Identity::test(1));
        assert_eq!(counts(&table), (1, 0, 2, 1));
        table.gone(&Identity::test(1));
        table.take(&[socket(3, 0, 1)], T0 + Duration::from_secs(1));
        assert_eq!(counts(&table), (1, 0, 3, 2));
    }

    #[test]
    fn the_order_says_who_leaves_first() {
        let mut table = Table::default();
        table.take(&[socket(1, 5, 10)], T0);
        let now = T0 + Duration::from_secs(10);
        table.take(&[socket(1, 1, 10), socket(2, 9, 30), socket(3, 4, 20)], now);
        let order = |select| cookies(&table, select, Duration::ZERO, now);
        assert_eq!(order(Select::Idle), [2, 3, 1]);
        assert_eq!(order(Select::Oldest)[0], 1);
        assert_eq!(order(Select::Newest)[2], 1);
        assert_eq!(order(Select::Heaviest), [2, 3, 1]);
        assert_eq!(order(Select::Random).len(), 3);
    }

    #[test]
    fn young_connections_and_those_that_sent_nothing_stay() {
        let mut table = Table::default();
        table.take(&[socket(1, 5, 10), socket(2, 5, 0)], T0);
        let now = T0 + Duration::from_secs(60);
        table.take(&[socket(1, 5, 10), socket(2, 5, 0), socket(3, 5, 10)], now);
        assert_eq!(cookies(&table, Select::Idle, Duration::from_secs(60), now), [1]);
    }
}
