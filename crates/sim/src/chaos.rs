//! Small random fleets with faults, and whether everything is well again some time after the faults stop.

use std::time::Duration;

use evenkeel_model::{Rng, State};

use crate::host::Status;
use crate::scenario::{Clients, Event, Fleet, Network, Scenario, What};
use crate::servers::name;
use crate::world::World;

/// Time given to converge after the last fault: a cured server's probation lasts three trials of half a minute,
/// then the slowest pace fills it.
pub(crate) const QUIET: Duration = Duration::from_secs(200);
/// The law's times run so much faster: a minute covers overload holds and drains' soft phases.
const SPEED: f64 = 4.0;

/// A random fleet whose faults stop after `faults`.
pub(crate) fn scenario(seed: u64, faults: Duration) -> Scenario {
    let mut rng = Rng::new(seed ^ 0xC4A0_5EED);
    let servers = 2 + rng.below(6) as u32;
    let unequal = rng.below(2) == 0;
    let fleet = Fleet {
        servers,
        // Room for everybody on the smallest one alone, so that no refusal is due to the sizes.
        capacity: 2_500,
        capacities: (0..servers + 2).map(|_| if unequal { 2_500 << rng.below(3) } else { 2_500 }).collect(),
        gateways: 1 + rng.below(3) as u32,
        pace: 5.0 + rng.below(40) as f64,
        speed: SPEED,
        ..Fleet::default()
    };
    let network = Network {
        jitter: Duration::from_millis(rng.below(500)),
        loss: 0.2 * rng.unit(),
        duplicate: 0.2 * rng.unit(),
        ..Network::default()
    };
    let clients = Clients {
        connections: servers * (20 + rng.below(80) as u32),
        life: Duration::from_secs(60 + rng.below(600)),
        ..Clients::default()
    };
    let events = events(servers, faults, &mut rng);
    Scenario { duration: faults, seed, chaos: true, fleet, clients, network, events, ..Scenario::default() }
}

fn events(servers: u32, faults: Duration, rng: &mut Rng) -> Vec<Event> {
    // One server is ordered to drain in every run, so that there is always something to carry through.
    let drained = rng.below(u64::from(servers)) as usize;
    let mut events = vec![Event {
        at: faults.mul_f64(0.5 * rng.unit()),
        what: What::Drain { server: name(drained).to_string() },
    }];
    for _ in 0..3 + rng.below(6) {
        let at = faults.mul_f64(rng.unit());
        let server = name(rng.below(u64::from(servers)) as usize).to_string();
        let lasts = Duration::from_millis(500 + rng.below(9_500));
        let what = match rng.below(8) {
            0 | 1 => What::Crash { server, down: lasts },
            2 | 3 => What::Freeze { server, lasts },
            4 => What::Join { count: 1 },
            5 => What::RestartController { down: lasts },
            6 => What::Arrive { count: rng.below(200) as u32, within: lasts },
            _ => What::Sinkhole { server, lasts },
        };
        events.push(Event { at, what });
    }
    events.sort_by_key(|event| event.at);
    events
}

impl World {
    /// The oracle of the end: faults stopped long ago, so everything is where it should be.
    pub(crate) fn check_converged(&mut self) {
        for text in self.unconverged() {
            self.oracle.note("converged", text, self.now);
        }
    }

    fn unconverged(&self) -> Vec<String> {
        let mut all = Vec::new();
        let Some(controller) = &self.node.controller else { return vec!["there is no controller".into()] };
        let band = self.scenario.policy().moves.start;
        for status in controller.servers(self.now) {
            let Some(host) = self.by_id.get(&status.id).map(|host| &self.hosts[*host]) else { continue };
            let (id, held, target) = (&status.id, host.total(), status.target.as_f64());
            // What changed since the last report is not known yet.
            if status.connections.get().abs_diff(held) > 3 + held / 20 {
                all.push(format!("{id} holds {held}, the controller believes {}", status.connections));
            }
            match status.state {
                State::Active => {
                    let allowed = (band.ratio * target).max(band.sqrt * target.sqrt()).max(band.min) + 1.0;
                    if (f64::from(held) - target).abs() > allowed {
                        all.push(format!("{id} holds {held} of a target of {target:.1}"));
                    }
                }
                State::Draining | State::Drained | State::Stopped if held > 0 => {
                    all.push(format!("{id} still holds {held} and is {}", status.state));
                }
                State::Starting => all.push(format!("{id} is still starting")),
                State::Draining => all.push(format!("{id} is empty and still draining")),
                State::Cordoned | State::Drained | State::Stopped => {}
            }
        }
        all.extend(self.front_counts());
        let quiet_since = self.start + self.scenario.duration;
        if let Some(at) = self.tally.last_refused.filter(|at| at.since(quiet_since) > QUIET / 2) {
            all.push(format!(
                "a client was refused {:.0} s after the faults",
                at.since(quiet_since).as_secs_f64()
            ));
        }
        all
    }

    /// What gateways believe to hold is what servers hold for them, handshakes under way aside.
    fn front_counts(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (index, front) in self.fronts.iter().enumerate() {
            for host in self.hosts.iter().filter(|host| host.status == Status::Up) {
                let counted =
                    front.machine.key(&host.id).map_or(0, |key| front.machine.connections(key).get());
                let under_way = 2 + self.clients.len() as u32;
                if counted.abs_diff(host.held[index]) > under_way {
                    all.push(format!(
                        "gateway {index} counts {counted} on {}, which holds {}",
                        host.id, host.held[index]
                    ));
                }
            }
        }
        all
    }
}
