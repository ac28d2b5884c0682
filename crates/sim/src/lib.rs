//! A discrete-event simulator over the decision code.
//!
//! It drives the same machines as the product: [`evenkeel_fleet::gateway::Gateway`] with its admission queue,
//! [`evenkeel_fleet::controller::Controller`], [`evenkeel_protocol::agent::Agent`] with real messages. Time, chance
//! and the network are simulated; connections are counts. Every run replays from its scenario and seed.
//!
//! [`Scenario`] says what happens, [`run`] runs it, [`Outcome`] tells what came of it, and after every step the
//! oracles check what must never happen ([`Violation`]). [`compare`] replays recorded arrivals with `leastconn`.

pub mod compare;
pub mod outcome;
pub mod plant;
pub mod scenario;

mod chance;
mod chaos;
mod front;
mod handshake;
mod host;
mod network;
mod node;
mod oracle;
mod servers;
mod world;

pub use outcome::{Outcome, Violation};
pub use scenario::{Scenario, ScenarioError};

/// Runs a scenario. `progress` is told the share done, 0 to 1.
#[must_use]
pub fn run(scenario: &Scenario, seed: u64, progress: &mut dyn FnMut(f64)) -> Outcome {
    run_with(scenario, seed, None, progress)
}

/// Runs a scenario with a mistake planted into the environment, to see that an oracle catches it.
#[must_use]
pub fn run_with(
    scenario: &Scenario,
    seed: u64,
    bug: Option<plant::Bug>,
    progress: &mut dyn FnMut(f64),
) -> Outcome {
    if scenario.chaos {
        let random = Scenario { about: scenario.about.clone(), ..chaos::scenario(seed, scenario.duration) };
        return world::World::new(random, seed, bug).run(progress);
    }
    world::World::new(scenario.clone(), seed, bug).run(progress)
}
