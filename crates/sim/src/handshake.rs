//! Clients: they dial a gateway, are placed, wait, are tried elsewhere, are refused, stay, leave, dial again.

use std::time::Duration;

use evenkeel_fleet::admission::{Arrival, Ticket};
use evenkeel_fleet::gateway::{Ask, Failure, Placement, Refusal, ServerKey};
use evenkeel_fleet::snapshot::{Health, ServerView};
use evenkeel_model::State;
use evenkeel_protocol::executor::Admit;

use crate::chance;
use crate::host::{Age, Host, Status};
use crate::world::{Event, World};

/// Servers tried for one handshake: the first and two more.
const TRIES: usize = 3;
/// A frozen server is given up after so long.
const HEAD_WITHIN: Duration = Duration::from_secs(1);
/// A silent server gets nothing after 1.5 s, and what publishing that takes.
const SUSPECT_WITHIN: Duration = Duration::from_millis(1_550);
/// A controller that began later has not heard everybody yet: it waits six seconds for those who were well before.
const SETTLED_AFTER: Duration = Duration::from_secs(7);
/// A refused client comes back after one to three seconds, as `Retry-After` tells it.
const COMES_BACK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));
/// A sinkhole closes after this.
const SWALLOWS: Duration = Duration::from_millis(5);

/// Somebody without a connection.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) prefix: u64,
    pub(crate) avoid: Vec<ServerKey>,
}

/// How a handshake ended.
#[derive(Debug, Clone)]
pub(crate) struct Shaken {
    pub(crate) client: u64,
    pub(crate) front: usize,
    pub(crate) placement: Placement,
    /// The server and its life that accepted, or what went wrong.
    pub(crate) outcome: Result<(usize, u64), Failure>,
}

impl World {
    /// Poisson arrivals at the present rate.
    pub(crate) fn arrives(&mut self, generation: u64) {
        if generation != self.rate_generation {
            return;
        }
        self.tally.arrivals += 1;
        self.newcomer(self.now);
        self.next_arrival();
    }

    pub(crate) fn next_arrival(&mut self) {
        if self.arrivals_per_s > 0.0 {
            let at = self.now + chance::wait(self.arrivals_per_s, &mut self.load);
            self.schedule(at, Event::Arrives(self.rate_generation));
        }
    }

    /// A client without connection dials at that time.
    pub(crate) fn newcomer(&mut self, at: evenkeel_model::Instant) {
        self.next_client += 1;
        // 4,096 networks: enough that fairness between them matters and few share one.
        let client = Client { prefix: self.load.below(4_096), avoid: Vec::new() };
        self.clients.insert(self.next_client, client);
        self.schedule(at, Event::Dials(self.next_client));
    }

    /// The client of a connection that was closed dials again.
    pub(crate) fn redials(&mut self) {
        let spread = self.scenario.clients.redial.mul_f64(self.load.unit());
        self.newcomer(self.now + spread);
    }

    pub(crate) fn dials(&mut self, id: u64) {
        let front = self.load.below(self.fronts.len() as u64) as usize;
        self.asks(id, front);
    }

    /// A gateway looks for a server.
    pub(crate) fn asks(&mut self, id: u64, front: usize) {
        let Some(client) = self.clients.get(&id) else { return };
        let ask = Ask { prefix: client.prefix, avoid: &client.avoid, source: None };
        let gateway = &mut self.fronts[front];
        match gateway.admission.arrive(&mut gateway.machine, Ticket(id), &ask, self.now) {
            Arrival::Placed(placement) => self.shake(id, front, placement),
            Arrival::Waits => self.tally.waited += 1,
            Arrival::Refused(refusal) => self.refused(id, refusal),
        }
        self.arm_front(front);
    }

    /// A placement's handshake goes to its server.
    pub(crate) fn shake(&mut self, client: u64, front: usize, placement: Placement) {
        self.tally.placed += 1;
        let known = self.fronts[front].snapshot.as_deref();
        self.oracle.placed(&placement.server, known, self.now);
        self.check_not_frozen(front, &placement);
        let at = self.now + self.network.half_handshake();
        self.schedule(at, Event::Reaches { client, front, placement });
    }

    /// While the controller lives nothing goes to a server that fell silent a while ago, unless its gateway knows of no
    /// other that is open: then it may try, now and then, whether that one answers again.
    fn check_not_frozen(&mut self, front: usize, placement: &Placement) {
        let Some(host) = self.by_id.get(&placement.server).map(|host| &self.hosts[*host]) else { return };
        let heard_at_last = host.frozen_at + self.network.report_delay_max();
        let silent = self.now.since(heard_at_last);
        let open = |view: &ServerView| {
            view.id != placement.server && view.state == State::Active && view.health == Health::Ok
        };
        let others = self.fronts[front].snapshot.iter().any(|known| known.servers.iter().any(open));
        if host.status == Status::Frozen
            && others
            && silent > SUSPECT_WITHIN
            && self.node.lived(self.now) > SETTLED_AFTER
        {
            let text = format!("placed on {}, frozen and silent for {silent:?}", placement.server);
            self.oracle.note("frozen", text, self.now);
        }
    }

    /// A handshake arrives at its server.
    pub(crate) fn reaches(&mut self, client: u64, front: usize, placement: Placement) {
        let host = self.by_id.get(&placement.server).copied();
        let back = self.network.half_handshake();
        let (outcome, after) = match host.map(|host| (host, self.hosts[host].status)) {
            None | Some((_, Status::Down)) => (Err(Failure::Refused), back),
            Some((_, Status::Frozen)) => (Err(Failure::Unreachable), HEAD_WITHIN),
            Some((host, Status::Up)) if self.hosts[host].agent.admit() != Admit::Open => {
                (Err(Failure::Draining), back)
            }
            Some((host, Status::Up)) => {
                self.hosts[host].accept(front, self.now);
                self.tell_counts(host);
                (Ok((host, self.hosts[host].life)), back)
            }
        };
        let shaken = Shaken { client, front, placement, outcome };
        self.schedule(self.now + after, Event::Shaken(shaken));
    }

    /// The gateway hears how a handshake ended.
    pub(crate) fn shaken(&mut self, shaken: Shaken) {
        let Shaken { client, front, placement, outcome } = shaken;
        let (id, key, now) = (placement.id, placement.key, self.now);
        match outcome {
            Ok((host, life)) => {
                self.clients.remove(&client);
                self.fronts[front].machine.connected(id, now);
                if self.hosts[host].life != life || self.hosts[host].status == Status::Down {
                    // It died in between: the gateway sees its tunnel end at once.
                    self.fronts[front].machine.closed(key, Duration::ZERO, now);
                    self.tally.lost += 1;
                    self.redials();
                } else if self.hosts[host].sinkhole {
                    self.schedule(now + SWALLOWS, Event::Swallows { front, host, life });
                }
            }
            Err(failure) => {
                self.fronts[front].machine.failed(id, failure, now);
                self.tally.failed += 1;
                let Some(waiting) = self.clients.get_mut(&client) else { return };
                waiting.avoid.push(key);
                if waiting.avoid.len() < TRIES {
                    self.asks(client, front);
                } else {
                    self.refused(client, Refusal::AllTried);
                }
            }
        }
        self.arm_front(front);
    }

    /// A sinkhole closes what it accepted.
    pub(crate) fn swallows(&mut self, front: usize, host: usize, life: u64) {
        let it = &self.hosts[host];
        if it.life == life && it.status == Status::Up && it.held[front] > 0 {
            self.close(host, front, Age::Newest);
            self.redials();
        }
    }

    /// The gateway answers 503; the client comes back.
    pub(crate) fn refused(&mut self, client: u64, refusal: Refusal) {
        self.tally.refuse(refusal, self.now);
        if self.clients.remove(&client).is_some() {
            let (base, window) = COMES_BACK;
            let after = base + window.mul_f64(self.load.unit());
            self.newcomer(self.now + after);
        }
    }

    /// Ends one connection, at the server and at its gateway.
    pub(crate) fn close(&mut self, host: usize, front: usize, age: Age) {
        let lasted = self.hosts[host].release(front, age, self.now, &mut self.life);
        if let Some(key) = self.fronts[front].machine.key(&self.hosts[host].id) {
            self.fronts[front].machine.closed(key, lasted, self.now);
        }
        self.tell_counts(host);
    }

    /// Some clients leave by themselves: each as likely in any moment.
    pub(crate) fn churn(&mut self, passed: Duration) {
        let held: u32 = self.hosts.iter().map(Host::total).sum();
        let leave = 1.0 - (-passed.as_secs_f64() / self.scenario.clients.life.as_secs_f64()).exp();
        let leaving = chance::poisson(f64::from(held) * leave, &mut self.life).min(held);
        for _ in 0..leaving {
            let totals = self.hosts.iter().map(Host::total);
            let Some(host) = chance::weighted(totals, &mut self.life) else { return };
            let Some(front) = chance::weighted(self.hosts[host].held.iter().copied(), &mut self.life) else {
                return;
            };
            self.close(host, front, Age::Any);
            self.tally.left += 1;
        }
    }
}
