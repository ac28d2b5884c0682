//! What `leastconn` without moves would have made of the same arrivals: replays a recorded timeline through the
//! same placing machine.
//!
//! In: when servers came and went and when clients came and went. Out: the utilisation of the fullest server over
//! the mean, at every change of the second.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use evenkeel_fleet::config::{HealthConfig, PickRule, PlaceConfig};
use evenkeel_fleet::gateway::{Ask, Gateway, GatewayConfig};
use evenkeel_fleet::snapshot::{Executor, Health, ServerView, Snapshot};
use evenkeel_model::{
    Connections, Desired, Fence, FleetId, GatewayId, Incarnation, Instant, PerSecond, Rng, ServerId, State,
};
use serde::Serialize;

use crate::chance;

/// Something that was seen to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A server began to take connections.
    ServerOpened {
        /// Which.
        server: ServerId,
        /// What it can hold.
        capacity: Connections,
    },
    /// A server went, whatever the reason; its clients dialled again.
    ServerGone {
        /// Which.
        server: ServerId,
    },
    /// Clients connected.
    Connected(u32),
    /// Clients left by themselves.
    Disconnected(u32),
}

/// The fleet at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Utilisation {
    /// Since the recording began.
    pub at_s: f64,
    /// Connections.
    pub connections: u32,
    /// Utilisation of the fullest server over that of the fleet; 1 without connections.
    pub max_over_mean: f64,
}

/// Replays a timeline, in order of time, with exact `leastconn` at one gateway that sees everything, without moves.
/// Which clients leave is drawn from `seed`. One sample a second.
#[must_use]
pub fn leastconn(timeline: &[(Duration, Change)], seed: u64) -> Vec<Utilisation> {
    let mut replay = Replay::new(seed);
    let mut samples = Vec::new();
    let mut next = Duration::ZERO;
    for (at, change) in timeline {
        while *at >= next {
            samples.push(replay.utilisation(next));
            next += Duration::from_secs(1);
        }
        replay.apply(change, Instant::ZERO + *at);
    }
    samples.push(replay.utilisation(next));
    samples
}

#[derive(Debug)]
struct Replay {
    gateway: Gateway,
    rng: Rng,
    open: BTreeMap<ServerId, Connections>,
    held: BTreeMap<ServerId, u32>,
}

impl Replay {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let id = GatewayId::new("replay").unwrap_or_else(|_| unreachable!("a valid id"));
        let gateway = Gateway::new(GatewayConfig { id, fleet: fleet() }, rng.fork(1), Instant::ZERO);
        Self { gateway, rng, open: BTreeMap::new(), held: BTreeMap::new() }
    }

    fn apply(&mut self, change: &Change, now: Instant) {
        match change {
            Change::ServerOpened { server, capacity } => {
                self.open.insert(server.clone(), *capacity);
                self.install(now);
            }
            Change::ServerGone { server } => {
                self.open.remove(server);
                self.install(now);
                let homeless = self.held.remove(server).unwrap_or(0);
                (0..homeless).for_each(|_| self.close(server, now));
                self.connect(homeless, now);
            }
            Change::Connected(count) => self.connect(*count, now),
            Change::Disconnected(count) => (0..*count).for_each(|_| self.disconnect(now)),
        }
    }

    fn connect(&mut self, count: u32, now: Instant) {
        for _ in 0..count {
            // With nothing open the client is refused; the recording has it connected, so it is left out here.
            let Ok(placement) = self.gateway.place(&Ask::default(), now) else { return };
            self.gateway.connected(placement.id, now);
            *self.held.entry(placement.server).or_default() += 1;
        }
    }

    fn disconnect(&mut self, now: Instant) {
        let leaving = chance::weighted(self.held.values().copied(), &mut self.rng);
        let Some(server) = leaving.and_then(|index| self.held.keys().nth(index).cloned()) else { return };
        if let Some(held) = self.held.get_mut(&server) {
            *held -= 1;
        }
        self.close(&server, now);
    }

    fn close(&mut self, server: &ServerId, now: Instant) {
        if let Some(key) = self.gateway.key(server) {
            self.gateway.closed(key, Duration::from_secs(3_600), now);
        }
    }

    fn install(&mut self, now: Instant) {
        let servers = self.open.iter().map(|(id, capacity)| view(id, *capacity)).collect();
        let snapshot = Snapshot {
            fleet: fleet(),
            at: now,
            servers,
            gateways: 1,
            placed_per_s: PerSecond::ZERO,
            health: HealthConfig::default(),
            place: PlaceConfig { pick: PickRule::Leastconn, ..PlaceConfig::default() },
        };
        self.gateway.install(&Arc::new(snapshot), now);
    }

    fn utilisation(&self, at: Duration) -> Utilisation {
        let of = |server: &ServerId| f64::from(self.held.get(server).copied().unwrap_or(0));
        let connections: u32 = self.held.values().sum();
        let capacity: f64 = self.open.values().map(|capacity| f64::from(capacity.get())).sum();
        let mean = f64::from(connections) / capacity.max(1.0);
        let each = self.open.iter().map(|(id, capacity)| of(id) / f64::from(capacity.get().max(1)));
        let max = each.fold(0.0, f64::max);
        let max_over_mean = if connections > 0 { max / mean } else { 1.0 };
        Utilisation { at_s: at.as_secs_f64(), connections, max_over_mean }
    }
}

fn view(id: &ServerId, capacity: Connections) -> ServerView {
    ServerView {
        id: id.clone(),
        inc: Incarnation(1),
        url: Arc::from("ws://replay:80"),
        public_url: None,
        capacity,
        reported: None,
        elsewhere: Connections::ZERO,
        ceilings: Vec::new(),
        health: Health::Ok,
        state: State::Active,
        // The recording already is what was admitted.
        admit: PerSecond::new(1e9),
        open_since: Instant::ZERO,
        executor: Executor::Agent,
        desired: Desired::active(Fence::default()),
    }
}

fn fleet() -> FleetId {
    FleetId::new("replay").unwrap_or_else(|_| unreachable!("a valid id"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> ServerId {
        ServerId::new(name).unwrap()
    }

    fn at(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn a_server_that_joins_late_stays_short_without_moves() {
        let open = |server| Change::ServerOpened { server: id(server), capacity: Connections(1_000) };
        let timeline = [
            (at(0), open("a")),
            (at(1), Change::Connected(300)),
            (at(2), open("b")),
            (at(3), Change::Connected(100)),
            (at(9), Change::Connected(0)),
        ];
        let samples = leastconn(&timeline, 1);
        assert_eq!(samples.len(), 11);
        let last = samples.last().unwrap();
        assert_eq!(last.connections, 400);
        assert!((last.max_over_mean - 1.5).abs() < 1e-9, "300 and 100: {last:?}");
    }

    #[test]
    fn clients_of_a_server_that_went_are_placed_again() {
        let open = |server| Change::ServerOpened { server: id(server), capacity: Connections(1_000) };
        let timeline = [
            (at(0), open("a")),
            (at(0), open("b")),
            (at(0), Change::Connected(100)),
            (at(1), Change::ServerGone { server: id("a") }),
            (at(2), Change::Disconnected(40)),
        ];
        let last = *leastconn(&timeline, 1).last().unwrap();
        assert_eq!((last.connections, last.max_over_mean), (60, 1.0));
    }
}
