//! The machine driven by a small world: servers that report and obey, one gateway that places by the published
//! table.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;

use evenkeel_model::{
    Connections, Desired, Duration, Epoch, Fence, FleetId, GatewayId, Generation, Incarnation, Instant,
    Measures, Ratio, Report, Rng, ServerId, State,
};

use super::*;
use crate::allot::{Server, allot};
use crate::config::{FleetConfig, ScaleConfig};
use crate::snapshot::{Checked, Executor, GatewayView, Health, ServerCounts, Snapshot};

mod chaos;
mod loops;
mod orders;
mod recall;
mod reports;
mod scaling;

fn id(name: &str) -> ServerId {
    ServerId::new(name).unwrap()
}

fn config() -> FleetConfig {
    FleetConfig::new(FleetId::new("chat").unwrap())
}

fn scaled(scale: ScaleConfig) -> FleetConfig {
    FleetConfig { scale: Some(scale), ..config() }
}

/// One server of the world.
#[derive(Debug, Clone)]
struct Host {
    inc: u64,
    seq: u64,
    capacity: u32,
    live: u32,
    cpu: Option<f64>,
    agent: bool,
    answers: bool,
    /// Whether orders reach it.
    hears: bool,
    desired: Option<(Desired, Instant)>,
    owed: f64,
    moved: Cell<u32>,
}

impl Host {
    fn new(capacity: u32, live: u32) -> Self {
        Self {
            inc: 1,
            seq: 0,
            capacity,
            live,
            cpu: None,
            agent: true,
            answers: true,
            hears: true,
            desired: None,
            owed: 0.0,
            moved: Cell::new(0),
        }
    }
}

/// A world of servers and one gateway around one controller.
struct World {
    controller: Controller,
    config: FleetConfig,
    now: Instant,
    hosts: BTreeMap<ServerId, Host>,
    table: Option<Arc<Snapshot>>,
    stored: BTreeMap<ServerId, ServerRecord>,
    fixed: Option<u32>,
    epoch: u64,
    outputs: Vec<Output>,
    placed: BTreeMap<ServerId, u32>,
    homeless: u32,
    /// What a created server holds at score 1, and how long it boots.
    makes: (u32, Duration),
    booting: Vec<(Instant, ServerId)>,
    moves_by_second: BTreeMap<u64, u32>,
    provider_works: bool,
}

const TICK: Duration = Duration::from_millis(250);

impl World {
    fn new(config: FleetConfig, hosts: &[(&str, Host)]) -> Self {
        let now = Instant::from_millis(1_000_000);
        let controller = Controller::new(config.clone(), Epoch(1), &FleetRecord::default(), Rng::new(7), now);
        let mut world = Self {
            controller,
            config,
            now,
            hosts: BTreeMap::new(),
            table: None,
            stored: BTreeMap::new(),
            fixed: None,
            epoch: 1,
            outputs: Vec::new(),
            placed: BTreeMap::new(),
            homeless: 0,
            makes: (1_000, Duration::from_secs(5)),
            booting: Vec::new(),
            moves_by_second: BTreeMap::new(),
            provider_works: true,
        };
        for (name, host) in hosts {
            world.join(name, host.clone());
        }
        world
    }

    fn join(&mut self, name: &str, host: Host) {
        self.hosts.insert(id(name), host);
        self.introduce(name);
    }

    fn introduce(&mut self, name: &str) {
        let host = self.hosts[&id(name)].clone();
        let executor = if host.agent { Executor::Agent } else { Executor::Gateways };
        self.handle(Input::Registered(Registration {
            id: id(name),
            inc: Incarnation(if host.agent { host.inc } else { 0 }),
            url: Arc::from(format!("ws://{name}")),
            public_url: None,
            capacity: Some(Connections(host.capacity)),
            labels: Vec::new(),
            zone: None,
            executor,
            applied: None,
        }));
    }

    fn handle(&mut self, input: Input) {
        self.controller.handle(input, self.now);
        self.perform();
    }

    fn order(&mut self, order: Order) -> Result<Vec<(ServerId, Desired)>, OrderError> {
        let from = self.outputs.len();
        self.handle(Input::Ordered(OrderId(1), order));
        let answer = self.outputs[from..].iter().find_map(|output| match output {
            Output::Answer(OrderId(1), answer) => Some(answer.clone()),
            _ => None,
        });
        answer.expect("every order is answered")
    }

    fn perform(&mut self) {
        while let Some(output) = self.controller.poll_output() {
            match &output {
                Output::Publish(snapshot) => self.table = Some(snapshot.clone()),
                Output::Desire(server, desired) => self.desire(server, desired),
                Output::Persist(record) => {
                    self.stored.insert(record.server.clone(), record.clone());
                }
                Output::Forget(server) => {
                    self.stored.remove(server);
                }
                Output::PersistFixed(fixed) => self.fixed = *fixed,
                Output::Create(server) if self.provider_works => {
                    self.booting.push((self.now + self.makes.1, server.clone()));
                }
                Output::Terminate(server) => {
                    let host = self.hosts.remove(server);
                    assert_eq!(host.map_or(0, |host| host.live), 0, "{server} was stopped with connections");
                    self.outputs.push(output.clone());
                    self.controller
                        .handle(Input::Provided(Provided::Gone { server: server.clone() }), self.now);
                    continue;
                }
                _ => {}
            }
            self.outputs.push(output);
        }
    }

    fn desire(&mut self, server: &ServerId, desired: &Desired) {
        let Some(host) = self.hosts.get_mut(server).filter(|host| host.hears) else { return };
        if let Some((held, _)) = &host.desired {
            assert!(desired.fence >= held.fence, "orders of one server never go back");
        }
        host.desired = Some((desired.clone(), self.now));
        let fence = desired.fence;
        self.controller.handle(Input::Applied { server: server.clone(), fence }, self.now);
    }

    /// One tick: boots, closes, placements, a view; reports each second.
    fn tick(&mut self) {
        self.now = self.now + TICK;
        let due: Vec<_> = self.booting.iter().filter(|(at, _)| *at <= self.now).cloned().collect();
        self.booting.retain(|(at, _)| *at > self.now);
        for (_, server) in due {
            let url = Arc::from(format!("ws://{server}"));
            self.handle(Input::Provided(Provided::Running { server: server.clone(), url }));
            let capacity = self.makes.0;
            self.join(server.as_str(), Host { inc: self.now.as_millis(), ..Host::new(capacity, 0) });
        }
        self.close_as_told();
        if self.now.as_millis().is_multiple_of(1_000) {
            self.report_all();
        }
        self.view();
        self.controller.handle_timeout(self.now);
        self.perform();
    }

    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds * 4 {
            self.tick();
        }
    }

    /// Runs until that holds, at most so many seconds. Says how many it took.
    fn until(&mut self, seconds: u64, holds: impl Fn(&Self) -> bool) -> f64 {
        for tick in 0..seconds * 4 {
            if holds(self) {
                return tick as f64 / 4.0;
            }
            self.tick();
        }
        panic!("not within {seconds} s: {:#?}\n{:#?}", self.live(), self.controller.explanation());
    }

    fn report_all(&mut self) {
        let names: Vec<ServerId> = self.hosts.keys().cloned().collect();
        for name in names {
            self.report(&name);
        }
    }

    fn report(&mut self, server: &ServerId) {
        let Some(host) = self.hosts.get_mut(server).filter(|host| host.answers) else { return };
        if !host.agent {
            return self.handle(Input::Checked(Checked { server: server.clone(), outcome: Ok(()) }));
        }
        host.seq += 1;
        let measures = Measures { cpu: host.cpu, ..Measures::default() };
        let report = Report {
            inc: Incarnation(host.inc),
            seq: host.seq,
            connections: Connections(host.live),
            movable: Connections::ZERO,
            raw: measures.clone(),
            averaged: Some(measures),
            totals: None,
        };
        self.handle(Input::Reported { server: server.clone(), report });
    }

    fn view(&mut self) {
        let counts = |(server, host): (&ServerId, &Host)| ServerCounts {
            server: server.clone(),
            connections: Connections(host.live),
            pending: Connections::ZERO,
            placed: self.placed.get(server).copied().unwrap_or(0),
            failed: 0,
            refused: 0,
            failed_in_a_row: 0,
            probation: false,
            heard: host.answers.then_some(self.now),
        };
        let view = GatewayView {
            gateway: GatewayId::new("g").unwrap(),
            fleet: self.config.id.clone(),
            at: self.now,
            servers: self.hosts.iter().map(counts).collect(),
            waiting: 0,
            refused_prefixes: 0,
        };
        self.placed.clear();
        self.handle(Input::Viewed(view));
    }

    fn close_as_told(&mut self) {
        let mut moved = 0;
        for host in self.hosts.values_mut() {
            let Some((desired, at)) = &host.desired else { continue };
            if desired.moves_per_s.is_zero() || self.now.since(*at) > desired.lease || !host.answers {
                host.owed = 0.0;
                continue;
            }
            host.owed =
                (host.owed + desired.moves_per_s.get() * TICK.as_secs_f64()).min(5.0_f64.max(host.owed));
            let closes = (host.owed as u32).min(host.live.saturating_sub(desired.target.get()));
            host.owed -= f64::from(host.owed as u32);
            host.live -= closes;
            host.moved.set(host.moved.get() + closes);
            moved += closes;
        }
        *self.moves_by_second.entry(self.now.as_millis() / 1_000).or_default() += moved;
        self.arrive(moved);
    }

    /// Places so many by the published table, as one gateway does.
    fn arrive(&mut self, count: u32) {
        let Some(table) = self.table.clone() else {
            self.homeless += count;
            return;
        };
        for _ in 0..count {
            let servers: Vec<Server> = table
                .servers
                .iter()
                .map(|view| Server {
                    id: view.id.clone(),
                    capacity: view.capacity,
                    live: Connections(self.hosts.get(&view.id).map_or(0, |host| host.live)),
                    pending: Connections::ZERO,
                    admit: view.admit,
                    ceilings: view.ceilings.clone(),
                })
                .collect();
            let demand: Connections = servers.iter().map(|server| server.live).sum();
            let all = allot(&servers, demand + Connections(1), Ratio::ONE);
            let ratio = |i: usize| f64::from(servers[i].live.get() + 1) / all.each[i].target.as_f64();
            // A server that is gone refuses, and the next one is tried.
            let open =
                (0..servers.len()).filter(|&i| all.each[i].open && self.hosts.contains_key(&servers[i].id));
            match open.min_by(|&a, &b| ratio(a).total_cmp(&ratio(b))) {
                Some(i) => {
                    self.hosts.get_mut(&servers[i].id).unwrap().live += 1;
                    *self.placed.entry(servers[i].id.clone()).or_default() += 1;
                }
                None => self.homeless += 1,
            }
        }
    }

    /// Closes so many from the fullest servers.
    fn depart(&mut self, count: u32) {
        for _ in 0..count {
            if let Some(host) = self.hosts.values_mut().max_by_key(|host| host.live) {
                host.live = host.live.saturating_sub(1);
            }
        }
    }

    fn restart(&mut self) {
        self.epoch += 1;
        let record = FleetRecord { servers: self.stored.values().cloned().collect(), fixed: self.fixed };
        let rng = Rng::new(self.epoch);
        self.controller = Controller::new(self.config.clone(), Epoch(self.epoch), &record, rng, self.now);
    }

    fn with_host(&mut self, name: &str, change: impl FnOnce(&mut Host)) {
        change(self.hosts.get_mut(&id(name)).unwrap());
    }

    fn live(&self) -> Vec<(String, u32)> {
        self.hosts.iter().map(|(server, host)| (server.to_string(), host.live)).collect()
    }

    fn counts(&self) -> Vec<u32> {
        self.hosts.values().map(|host| host.live).collect()
    }

    fn status(&self, name: &str) -> ServerStatus {
        let all = self.controller.servers(self.now);
        all.into_iter().find(|status| status.id == id(name)).unwrap_or_else(|| panic!("{name} is known"))
    }

    fn events(&self) -> Vec<(&'static str, String)> {
        let event = |output: &Output| match output {
            Output::Event(event) => {
                Some((event.kind, event.server.as_ref().map_or(String::new(), ServerId::to_string)))
            }
            _ => None,
        };
        self.outputs.iter().filter_map(event).collect()
    }

    fn kinds(&self, kind: &str) -> usize {
        self.events().iter().filter(|(found, _)| *found == kind).count()
    }

    fn said(&self) -> Vec<String> {
        self.controller.explanation().scale.iter().map(|said| said.reason.to_string()).collect()
    }
}

fn kind_of(output: &Output) -> &'static str {
    match output {
        Output::Persist(_) => "persist",
        Output::Forget(_) => "forget",
        Output::PersistFixed(_) => "persist_fixed",
        Output::Publish(_) => "publish",
        Output::Desire(..) => "desire",
        Output::Create(_) => "create",
        Output::Terminate(_) => "terminate",
        Output::Answer(..) => "answer",
        Output::Event(_) => "event",
    }
}
