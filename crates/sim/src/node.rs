//! The controller's process: links, store, provider, publication around the one machine, as the shell does it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use evenkeel_fleet::controller::{
    Controller, FleetRecord, Input, Order, OrderId, Output, Provided, Registration, ServerRecord,
};
use evenkeel_fleet::snapshot::{Executor, GatewayView, Snapshot};
use evenkeel_model::{Desired, Epoch, Instant, ServerId, State};
use evenkeel_protocol::message::{Down, Hello, Up, Welcome, encode_down, parse_up};

use crate::plant::Bug;
use crate::world::{Event, World};

/// A snapshot reaches a gateway after this: they share a process or a rack.
const INSTALL_AFTER: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) controller: Option<Controller>,
    /// Counts its processes.
    pub(crate) life: u64,
    began: Instant,
    pub(crate) epoch: Epoch,
    /// What is on disk.
    pub(crate) record: FleetRecord,
    /// What its gateways obeyed last: a restarted process begins with it.
    published: Option<Arc<Snapshot>>,
    /// Servers with a link, and the life that opened it.
    pub(crate) links: BTreeMap<usize, u64>,
    /// Servers that the provider runs.
    pub(crate) provided: BTreeMap<ServerId, Provided>,
    pub(crate) orders: u64,
    pub(crate) wake_at: Option<Instant>,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self {
            controller: None,
            life: 0,
            began: Instant::ZERO,
            epoch: Epoch(0),
            record: FleetRecord::default(),
            published: None,
            links: BTreeMap::new(),
            provided: BTreeMap::new(),
            orders: 0,
            wake_at: None,
        }
    }
}

impl Node {
    /// How long its present process has lived; zero between two.
    pub(crate) fn lived(&self, now: Instant) -> Duration {
        if self.controller.is_some() { now.since(self.began) } else { Duration::ZERO }
    }
}

impl World {
    pub(crate) fn node_starts(&mut self) {
        if self.node.controller.is_some() {
            return;
        }
        self.node.life += 1;
        self.node.began = self.now;
        self.node.epoch = self.node.epoch.next();
        let policy = self.scenario.policy();
        let rng = self.seeds.fork(self.node.life);
        let mut controller = Controller::new(policy, self.node.epoch, &self.node.record, rng, self.now);
        if let Some(published) = &self.node.published {
            controller.recall(published, self.now);
        }
        self.node.controller = Some(controller);
        self.node.wake_at = None;
        for word in self.node.provided.values().cloned().collect::<Vec<_>>() {
            self.feed(Input::Provided(word));
        }
        self.perform_node();
    }

    /// The process ends without notice. Its orders on the way still arrive, also late ones after the next began.
    pub(crate) fn node_dies(&mut self, down: Duration) {
        /// A copy of an old order that took another way arrives so long after the next controller began.
        const STRAY_AFTER: Duration = Duration::from_secs(3);
        let Some(controller) = self.node.controller.take() else { return };
        for (host, life) in self.node.links.clone() {
            if let Some(desired) = controller.desired(&self.hosts[host].id) {
                let text = encode_down(&Down::Desired(desired), self.now);
                self.schedule(self.now + down + STRAY_AFTER, Event::HostHears { host, life, text });
            }
        }
        let links: Vec<usize> = std::mem::take(&mut self.node.links).into_keys().collect();
        for host in links {
            self.schedule(self.now, Event::LinkBreaks { host, life: self.hosts[host].life });
        }
        self.schedule(self.now + down, Event::NodeStarts);
    }

    pub(crate) fn node_hears(&mut self, node: u64, host: usize, life: u64, text: &str) {
        if node != self.node.life || self.node.controller.is_none() {
            return;
        }
        let up = match parse_up(text) {
            Ok(up) => up,
            Err(error) => {
                self.oracle.note(
                    "messages",
                    format!("the controller could not read {text}: {error}"),
                    self.now,
                );
                return;
            }
        };
        let server = self.hosts[host].id.clone();
        match up {
            Up::Hello(hello) => self.hello(host, life, hello),
            // Posted reports of an earlier life may still arrive; the machine has to know them.
            Up::Report(report) => {
                self.feed(Input::Reported { server: server.clone(), report });
                self.send_desired(host, &server);
            }
            Up::Applied(fence) => self.feed(Input::Applied { server, fence }),
            Up::Drained(fence) => self.feed(Input::Drained { server, fence }),
            Up::Event(_) | Up::Moved(_) => {}
        }
    }

    fn hello(&mut self, host: usize, life: u64, hello: Hello) {
        let known = self.node.controller.as_ref().and_then(|controller| controller.incarnation(&hello.id));
        if let Some(known) = known.filter(|known| hello.inc < *known) {
            self.send_down(host, life, &Down::Stale { known });
            return;
        }
        let registration = Registration {
            id: hello.id.clone(),
            inc: hello.inc,
            url: hello.profile.url.into(),
            public_url: None,
            capacity: hello.profile.capacity,
            labels: Vec::new(),
            zone: None,
            executor: Executor::Agent,
            applied: hello.applied,
        };
        let welcome = Welcome { report: self.network.report_each(), keys: Vec::new(), credential: None };
        self.send_down(host, life, &Down::Welcome(welcome));
        self.feed(Input::Registered(registration));
        self.send_desired(host, &hello.id);
    }

    /// Repeats a server's order, which renews its lease.
    fn send_desired(&mut self, host: usize, server: &ServerId) {
        let desired = self.node.controller.as_ref().and_then(|controller| controller.desired(server));
        if let Some((desired, life)) = desired.zip(self.node.links.get(&host).copied()) {
            self.send_down(host, life, &Down::Desired(desired));
        }
    }

    fn send_down(&mut self, host: usize, life: u64, message: &Down) {
        let text = encode_down(message, self.now);
        let at = self.network.ordered(&mut self.hosts[host].down_until, self.now);
        self.schedule(at, Event::HostHears { host, life, text });
    }

    pub(crate) fn node_loses(&mut self, host: usize) {
        if let Some(life) = self.node.links.remove(&host) {
            let (server, inc) = (self.hosts[host].id.clone(), evenkeel_model::Incarnation(life));
            self.feed(Input::LinkLost { server, inc });
        }
    }

    pub(crate) fn viewed(&mut self, view: GatewayView) {
        self.feed(Input::Viewed(view));
    }

    pub(crate) fn provided(&mut self, word: Provided) {
        match &word {
            Provided::Running { server, .. } => {
                self.node.provided.insert(server.clone(), word.clone());
            }
            Provided::Gone { server } => {
                self.node.provided.remove(server);
            }
            Provided::Exited { .. } | Provided::Failed { .. } => {}
        }
        self.feed(Input::Provided(word));
    }

    pub(crate) fn order(&mut self, order: Order) {
        self.node.orders += 1;
        let id = OrderId(self.node.orders);
        self.feed(Input::Ordered(id, order));
    }

    pub(crate) fn node_wakes(&mut self, life: u64) {
        if life != self.node.life || self.node.wake_at != Some(self.now) {
            return;
        }
        self.node.wake_at = None;
        if let Some(controller) = &mut self.node.controller {
            controller.handle_timeout(self.now);
            self.perform_node();
        }
    }

    fn feed(&mut self, input: Input) {
        if let Some(controller) = &mut self.node.controller {
            controller.handle(input, self.now);
            self.perform_node();
        }
    }

    fn perform_node(&mut self) {
        while let Some(output) = self.node.controller.as_mut().and_then(Controller::poll_output) {
            self.perform(output);
        }
        let due = self.node.controller.as_ref().and_then(Controller::poll_timeout);
        let Some(due) = due.map(|due| due.max(self.now)) else { return };
        if self.node.wake_at.is_none_or(|at| due < at) {
            self.node.wake_at = Some(due);
            self.schedule(due, Event::NodeWakes(self.node.life));
        }
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Persist(record) => self.persist(record),
            Output::Forget(server) => self.node.record.servers.retain(|record| record.server != server),
            Output::PersistFixed(fixed) => self.node.record.fixed = fixed,
            Output::Publish(snapshot) => {
                self.node.published = Some(Arc::clone(&snapshot));
                for front in 0..self.fronts.len() {
                    let snapshot = snapshot.clone();
                    self.schedule(self.now + INSTALL_AFTER, Event::Installs { front, snapshot });
                }
            }
            Output::Desire(server, desired) => self.desire(&server, desired),
            Output::Create(server) => {
                let boot = self.scenario.scale.as_ref().map_or(Duration::ZERO, |scale| scale.boot);
                self.schedule(self.now + boot, Event::Boots(server));
            }
            Output::Terminate(server) => self.schedule(self.now, Event::Terminates(server)),
            Output::Answer(_, Ok(_)) => {}
            Output::Answer(_, Err(error)) => self.tally.say(self.now, error.to_string()),
            Output::Event(event) => self.tally.say(event.at, format!("{}: {}", event.kind, event.text)),
        }
    }

    fn persist(&mut self, record: ServerRecord) {
        self.node.record.servers.retain(|other| other.server != record.server);
        self.node.record.servers.push(record);
    }

    fn desire(&mut self, server: &ServerId, desired: Desired) {
        let Some(host) = self.by_id.get(server).copied() else { return };
        if self.bug == Some(Bug::StopsEarly) && desired.state == State::Draining {
            self.schedule(self.now, Event::Terminates(server.clone()));
        }
        if let Some(life) = self.node.links.get(&host).copied() {
            self.send_down(host, life, &Down::Desired(desired));
        }
    }
}
