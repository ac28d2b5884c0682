//! Closes this gateway's tunnels and polling sessions of servers that have no agent to do so, by the same orders.
//!
//! In: snapshots with `desired`, the tunnels held. Out: close orders to the engine. Invariants: a server with an
//! agent is never touched; of an order's target and pace this gateway takes the share of the tunnels it holds.
//! Elsewhere: how many and how fast (`evenkeel_protocol::executor`), the Close itself ([`crate::tunnel`]).

use std::collections::BTreeMap;

use evenkeel_fleet::gateway::ServerKey;
use evenkeel_fleet::snapshot::{Executor as Executes, ServerView, Snapshot};
use evenkeel_model::{Connections, Desired, Duration, Instant, PerSecond, Rng, Select, ServerId};
use evenkeel_protocol::close::CloseCode;
use evenkeel_protocol::executor::{Closes, Executor};
use tracing::debug;

use crate::engine::{ConnId, Engine, Held, Owner};
use crate::sessions::Sessions;

/// How often this gateway counts its tunnels for the executors; sets how long young ones stay (60 times it).
const COUNTED_EACH: Duration = Duration::from_secs(1);
/// Longest time before an order in force is looked at again: the count changes without telling us.
const LOOK_EACH: Duration = Duration::from_millis(250);

/// The executors of one fleet's servers without agent.
pub(crate) struct Executors {
    by_server: BTreeMap<ServerId, Entry>,
    due: Option<Instant>,
    rng: Rng,
}

struct Entry {
    key: ServerKey,
    executor: Executor,
}

impl Executors {
    pub(crate) fn new(rng: Rng) -> Self {
        Self { by_server: BTreeMap::new(), due: None, rng }
    }

    /// Takes the orders of a fresh snapshot; each renews its lease. `own` says a server's slot and the tunnels this
    /// gateway holds on it.
    pub(crate) fn take(
        &mut self,
        snapshot: &Snapshot,
        own: impl Fn(&ServerId) -> Option<(ServerKey, Connections)>,
        now: Instant,
    ) {
        let ours = |server: &&ServerView| server.executor == Executes::Gateways;
        let mut before = std::mem::take(&mut self.by_server);
        for server in snapshot.servers.iter().filter(ours) {
            let known = before.remove(&server.id);
            let Some((key, held)) = own(&server.id) else { continue };
            let executor = known.map_or_else(|| Executor::new(COUNTED_EACH, now), |entry| entry.executor);
            let entry = self.by_server.entry(server.id.clone()).or_insert(Entry { key, executor });
            if let Err(older) = entry.executor.take(share(server, held), now) {
                debug!(server = %server.id, error = %older, "older order refused");
            }
        }
        self.due = Some(now);
    }

    /// Orders the closes that are due.
    pub(crate) fn turn(
        &mut self,
        (engine, sessions): (&Engine, &Sessions),
        owner: impl Fn(ServerKey) -> Owner,
        code: u16,
        now: Instant,
    ) {
        if self.due.is_none_or(|due| now < due) {
            return;
        }
        let mut next: Option<Instant> = None;
        let moving = |entry: &&mut Entry| {
            entry.executor.desired().is_some_and(|desired| !desired.moves_per_s.is_zero())
        };
        for entry in self.by_server.values_mut().filter(moving) {
            let of = owner(entry.key);
            let mut held = engine.held(of);
            held.extend(sessions.held(of));
            let count = count_of(held.len());
            if let Some(closes) = entry.executor.due(count, now) {
                let chosen = choose(held, &closes, &mut self.rng, now);
                entry.executor.chosen(closes.count, count_of(chosen.len()), now);
                for id in chosen {
                    if !sessions.leave(of, id) {
                        engine.close(id, CloseCode(code), closes.reason);
                    }
                }
            }
            let due =
                entry.executor.poll_timeout(count).map_or(now + LOOK_EACH, |due| due.min(now + LOOK_EACH));
            next = Some(next.map_or(due, |next| next.min(due)));
        }
        self.due = next;
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }
}

/// This gateway's share of an order, by the tunnels it holds of all there are.
fn share(server: &ServerView, held: Connections) -> Desired {
    let mut desired = server.desired.clone();
    let (held, elsewhere) = (u64::from(held.get()), u64::from(server.elsewhere.get()));
    if elsewhere > 0 {
        let all = held + elsewhere;
        // Rounded up: all gateways together never close below the target.
        let target = (u64::from(desired.target.get()) * held).div_ceil(all);
        desired.target = Connections(u32::try_from(target).unwrap_or(u32::MAX));
        desired.moves_per_s = PerSecond::new(desired.moves_per_s.get() * held as f64 / all as f64);
    }
    desired
}

fn count_of(length: usize) -> Connections {
    Connections(u32::try_from(length).unwrap_or(u32::MAX))
}

/// The tunnels that leave first, at most as many as asked for, none younger than allowed.
fn choose(mut held: Vec<Held>, closes: &Closes, rng: &mut Rng, now: Instant) -> Vec<ConnId> {
    held.retain(|tunnel| now.since(tunnel.opened) >= closes.min_age);
    match closes.select {
        Select::Idle => held.sort_unstable_by_key(|tunnel| (tunnel.active, tunnel.id)),
        Select::Oldest => held.sort_unstable_by_key(|tunnel| (tunnel.opened, tunnel.id)),
        Select::Newest => held.sort_unstable_by_key(|tunnel| std::cmp::Reverse((tunnel.opened, tunnel.id))),
        Select::Heaviest => held.sort_unstable_by_key(|tunnel| (std::cmp::Reverse(tunnel.bytes), tunnel.id)),
        Select::Random => {
            for at in (1..held.len()).rev() {
                let other = rng.below(at as u64 + 1);
                held.swap(at, usize::try_from(other).unwrap_or(at));
            }
        }
    }
    held.iter().take(closes.count.get() as usize).map(|tunnel| tunnel.id).collect()
}
