//! Servers' processes and their agents: messages, orders, measures, life and death.

use std::time::Duration;

use evenkeel_fleet::controller::Provided;
use evenkeel_model::{Fence, ServerId};
use evenkeel_protocol::agent::{Input, LinkId, Output};
use evenkeel_protocol::executor::Closes;
use evenkeel_protocol::message::{Down, encode_down, parse_down};

use crate::chance;
use crate::host::{Age, Host, Status};
use crate::plant::Bug;
use crate::world::{Event, World};

/// The one link of each agent.
pub(crate) const LINK: LinkId = LinkId(0);
/// CPU is measured so often.
const MEASURE_EACH: Duration = Duration::from_secs(1);
/// A lost link is dialled again within this.
const REDIAL_LINK: Duration = Duration::from_secs(1);

impl World {
    /// A server's process starts and dials the controller.
    pub(crate) fn add_host(&mut self, id: ServerId, capacity: u32) -> usize {
        let rng = self.seeds.fork(self.hosts.len() as u64);
        let gateways = self.fronts.len() as u32;
        let host = Host::new(id.clone(), capacity, gateways, &self.scenario.cpu, rng, self.now);
        self.hosts.push(host);
        let index = self.hosts.len() - 1;
        self.by_id.insert(id, index);
        self.dial_link(index);
        self.schedule(self.now, Event::Measures { host: index, life: 1 });
        index
    }

    pub(crate) fn dial_link(&mut self, host: usize) {
        let at = self.now + REDIAL_LINK.mul_f64(self.seeds.unit());
        self.schedule(at, Event::LinkOpens { host, life: self.hosts[host].life });
    }

    pub(crate) fn link_opens(&mut self, host: usize, life: u64) {
        if self.hosts[host].life != life || self.hosts[host].status == Status::Down {
            return;
        }
        if self.node.controller.is_none() || self.hosts[host].status == Status::Frozen {
            self.dial_link(host);
            return;
        }
        self.node.links.insert(host, life);
        self.tell_agent(host, Input::Opened(LINK));
    }

    /// The agent loses its link and dials again.
    pub(crate) fn link_breaks(&mut self, host: usize) {
        self.tell_agent(host, Input::Closed(LINK));
        self.dial_link(host);
    }

    /// A message from the controller arrives at a server.
    pub(crate) fn host_hears(&mut self, host: usize, life: u64, text: String) {
        let it = &mut self.hosts[host];
        if it.life != life || it.status == Status::Down {
            return;
        }
        if it.status == Status::Frozen {
            it.inbox.push(text);
            return;
        }
        let Ok(received) = parse_down(&text) else {
            self.oracle.note("messages", format!("{} could not read {text}", self.hosts[host].id), self.now);
            return;
        };
        let Down::Desired(desired) = received.message else {
            self.tell_agent(host, Input::Text(LINK, &text));
            return;
        };
        let (mut delivered, obeyed) = (desired.clone(), self.hosts[host].obeyed);
        match self.bug {
            Some(Bug::LosesOrders) => return,
            Some(Bug::ForgetsOrders) => {
                let epoch = self.hosts[host].agent.desired().map_or(0, |held| held.fence.epoch.get());
                delivered.fence = Fence { epoch: evenkeel_model::Epoch(epoch + 1), ..desired.fence };
            }
            _ => {}
        }
        let text = encode_down(&Down::Desired(delivered.clone()), self.now);
        self.tell_agent(host, Input::Text(LINK, &text));
        if self.hosts[host].agent.desired().map(|held| held.fence) == Some(delivered.fence) {
            self.oracle.obeyed(&self.hosts[host].id, obeyed, desired.fence, self.now);
            self.hosts[host].obeyed = obeyed.max(Some(desired.fence));
        }
    }

    /// The agent is told how many connections its server holds.
    pub(crate) fn tell_counts(&mut self, host: usize) {
        if self.hosts[host].status == Status::Up {
            let counts = self.hosts[host].counts();
            self.tell_agent(host, Input::Held(counts));
        }
    }

    pub(crate) fn measures(&mut self, host: usize, life: u64) {
        if self.hosts[host].life != life || self.hosts[host].status == Status::Down {
            return;
        }
        self.schedule(self.now + MEASURE_EACH, Event::Measures { host, life });
        if self.hosts[host].status == Status::Up {
            let measures = self.hosts[host].measure(self.now);
            self.tell_agent(host, Input::Measured(measures));
        }
    }

    pub(crate) fn host_wakes(&mut self, host: usize) {
        if self.hosts[host].wake_at != Some(self.now) {
            return;
        }
        self.hosts[host].wake_at = None;
        if self.hosts[host].status == Status::Up {
            self.hosts[host].agent.handle_timeout(self.now);
            self.perform_agent(host);
        }
    }

    fn tell_agent(&mut self, host: usize, input: Input<'_>) {
        self.hosts[host].agent.handle(input, self.now);
        self.perform_agent(host);
    }

    fn perform_agent(&mut self, host: usize) {
        while let Some(output) = self.hosts[host].agent.poll_output() {
            match output {
                Output::Send(_, text) => self.send_up(host, &text),
                Output::Close(closes) => self.close_chosen(host, &closes),
                Output::Ping(_) if self.node.links.contains_key(&host) => {
                    self.hosts[host].agent.handle(Input::Heard(LINK), self.now);
                }
                Output::End(..) => {
                    self.node_loses(host);
                    self.dial_link(host);
                }
                Output::Refused { why } => self.oracle.note("messages", why, self.now),
                // The count after the door closed, without which nothing is drained.
                Output::Admit(_) => {
                    let counts = self.hosts[host].counts();
                    self.hosts[host].agent.handle(Input::Held(counts), self.now);
                }
                Output::Ping(_) | Output::Credential(_) | Output::Keys { .. } | Output::Finished => {}
            }
        }
        let Some(due) = self.hosts[host].agent.poll_timeout().map(|due| due.max(self.now)) else { return };
        if self.hosts[host].wake_at.is_none_or(|at| due < at) {
            self.hosts[host].wake_at = Some(due);
            self.schedule(due, Event::HostWakes(host));
        }
    }

    fn send_up(&mut self, host: usize, text: &str) {
        let (life, node) = (self.hosts[host].life, self.node.life);
        let arrivals = if text.contains("\"op\":\"report\"") {
            self.network.report(self.now)
        } else {
            vec![self.network.ordered(&mut self.hosts[host].up_until, self.now)]
        };
        for at in arrivals {
            self.schedule(at, Event::NodeHears { node, host, life, text: text.to_owned() });
        }
    }

    /// The server closes connections on order; their clients dial again.
    fn close_chosen(&mut self, host: usize, closes: &Closes) {
        let eligible = self.hosts[host].older_than(closes.min_age, self.now);
        let chosen = closes.count.get().min(eligible);
        let age = if closes.min_age.is_zero() { Age::Any } else { Age::Old };
        let closing = if self.bug == Some(Bug::ClosesTwice) {
            (chosen * 2).min(self.hosts[host].total())
        } else {
            chosen
        };
        let answer = Input::Chosen { asked: closes.count, chosen: evenkeel_model::Connections(chosen) };
        self.hosts[host].agent.handle(answer, self.now);
        for _ in 0..closing {
            let held = self.hosts[host].held.iter().copied();
            let Some(front) = chance::weighted(held, &mut self.life) else { break };
            self.close(host, front, age);
            self.redials();
        }
        self.tally.moved += u64::from(closing);
        self.oracle.closed(closing, self.now);
    }

    /// The process is gone at once, with all its connections.
    pub(crate) fn kill(&mut self, host: usize) {
        self.hosts[host].status = Status::Down;
        for front in 0..self.fronts.len() {
            for _ in 0..self.hosts[host].held[front] {
                self.close(host, front, Age::Any);
                self.tally.lost += 1;
                self.redials();
            }
        }
        self.node_loses(host);
    }

    pub(crate) fn revives(&mut self, host: usize) {
        if self.hosts[host].status != Status::Down {
            return;
        }
        let rng = self.seeds.fork(host as u64);
        self.hosts[host].revive(rng, self.now);
        let life = self.hosts[host].life;
        self.schedule(self.now, Event::Measures { host, life });
        self.dial_link(host);
    }

    pub(crate) fn thaws(&mut self, host: usize, life: u64) {
        if self.hosts[host].life != life || self.hosts[host].status != Status::Frozen {
            return;
        }
        self.hosts[host].status = Status::Up;
        for text in std::mem::take(&mut self.hosts[host].inbox) {
            self.host_hears(host, life, text);
        }
        self.tell_counts(host);
        self.perform_agent(host);
    }

    /// The provider has started a server.
    pub(crate) fn boots(&mut self, id: ServerId) {
        if self.by_id.contains_key(&id) {
            return;
        }
        let capacity = self.scenario.fleet.capacity;
        let host = self.add_host(id.clone(), capacity);
        self.hosts[host].joined = Some(self.now);
        self.provided(Provided::Running { url: url(&id), server: id });
    }

    /// The provider ends a server's process.
    pub(crate) fn terminates(&mut self, id: &ServerId) {
        let Some(host) = self.by_id.get(id).copied() else { return };
        self.oracle.stopped(id, self.hosts[host].total(), self.now);
        self.kill(host);
        self.by_id.remove(id);
        self.provided(Provided::Gone { server: id.clone() });
    }
}

/// The server of that number, counted from 0.
pub(crate) fn name(index: usize) -> ServerId {
    ServerId::new(&format!("s{}", index + 1)).unwrap_or_else(|_| unreachable!("a valid id"))
}

/// Where its clients are sent.
pub(crate) fn url(server: &ServerId) -> std::sync::Arc<str> {
    format!("ws://{server}.sim:80").into()
}
