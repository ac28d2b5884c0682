//! The event loop and everything that exists in one run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use evenkeel_fleet::controller::{Order, Provided};
use evenkeel_fleet::gateway::Placement;
use evenkeel_fleet::snapshot::{GatewayView, Snapshot};
use evenkeel_model::{Connections, Instant, Rng, ServerId, State};

use crate::front::Front;
use crate::handshake::{Client, Shaken};
use crate::host::{CPU_FULL, Host, PEAK_OVER, Status};
use crate::network::Network;
use crate::node::Node;
use crate::oracle::Oracle;
use crate::outcome::{Drain, Hot, Join, Outcome, Sample, Sinkhole, Tally};
use crate::plant::Bug;
use crate::scenario::{Scenario, What};
use crate::servers::{name, url};

/// Before a run begins servers have reported and slow start is over.
const WARM_UP: Duration = Duration::from_secs(45);
/// Clients leave in steps of this.
const CHURN_EACH: Duration = Duration::from_millis(50);
/// Fairness and scores are looked at so often.
const LOOK_EACH: Duration = Duration::from_millis(500);
/// A joined server counts as filled at this part of its fair share.
const FAIR: f64 = 0.95;
/// A sinkhole's share counts from here: time to be detected.
const DETECTED_AFTER: Duration = Duration::from_secs(10);

/// Something due.
#[derive(Debug)]
pub(crate) enum Event {
    Begins,
    Arrives(u64),
    Dials(u64),
    Reaches { client: u64, front: usize, placement: Placement },
    Shaken(Shaken),
    Swallows { front: usize, host: usize, life: u64 },
    Churns,
    FrontWakes(usize),
    Installs { front: usize, snapshot: Arc<Snapshot> },
    View(usize),
    Viewed(GatewayView),
    LinkOpens { host: usize, life: u64 },
    LinkBreaks { host: usize, life: u64 },
    HostHears { host: usize, life: u64, text: String },
    HostWakes(usize),
    Measures { host: usize, life: u64 },
    Thaws { host: usize, life: u64 },
    Revives(usize),
    Cured(usize),
    NodeStarts,
    NodeHears { node: u64, host: usize, life: u64, text: String },
    NodeWakes(u64),
    Boots(ServerId),
    Terminates(ServerId),
    Happens(usize),
    Looks,
    Calms,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) bug: Option<Bug>,
    pub(crate) now: Instant,
    pub(crate) start: Instant,
    queue: BTreeMap<(Instant, u64), Event>,
    scheduled: u64,
    pub(crate) load: Rng,
    pub(crate) life: Rng,
    pub(crate) seeds: Rng,
    pub(crate) network: Network,
    pub(crate) fronts: Vec<Front>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) by_id: BTreeMap<ServerId, usize>,
    pub(crate) node: Node,
    pub(crate) clients: BTreeMap<u64, Client>,
    pub(crate) next_client: u64,
    pub(crate) arrivals_per_s: f64,
    pub(crate) rate_generation: u64,
    pub(crate) oracle: Oracle,
    pub(crate) tally: Tally,
    seed: u64,
    watch: Watch,
}

/// What a scenario's events are measured by.
#[derive(Debug, Default)]
struct Watch {
    samples: Vec<Sample>,
    join: Option<(Instant, u64)>,
    fair_at: Option<Instant>,
    last_move: Option<(Instant, u64)>,
    drain: Option<(Instant, usize, u32)>,
    empty_at: Option<Instant>,
    hot: Option<(Instant, usize)>,
    hot_until: Option<Instant>,
    sinkhole: Option<(Instant, usize)>,
    swallowed: Option<(u64, u64)>,
    swallowed_until: Option<(u64, u64)>,
}

impl World {
    pub(crate) fn new(scenario: Scenario, seed: u64, bug: Option<Bug>) -> Self {
        let mut seeds = Rng::new(seed);
        let start = Instant::ZERO + WARM_UP;
        let policy = scenario.policy();
        let network = Network::new(scenario.network.clone(), seeds.fork(1));
        let fronts = (0..scenario.fleet.gateways)
            .map(|index| Front::new(index, &policy.id, &policy.place, seeds.fork(100 + u64::from(index))))
            .collect();
        let joins: u32 = scenario
            .events
            .iter()
            .map(|event| match event.what {
                What::Join { count } => count,
                _ => 0,
            })
            .sum();
        let servers = scenario.fleet.servers + joins + scenario.scale.as_ref().map_or(0, |scale| scale.max);
        let oracle = Oracle::new(start, policy.moves.pace.get(), servers, network.order_delay_max());
        let (load, life) = (seeds.fork(2), seeds.fork(3));
        let arrivals_per_s = scenario.arrivals_per_s();
        Self {
            scenario,
            bug,
            now: Instant::ZERO,
            start,
            queue: BTreeMap::new(),
            scheduled: 0,
            load,
            life,
            seeds,
            network,
            fronts,
            hosts: Vec::new(),
            by_id: BTreeMap::new(),
            node: Node::new(),
            clients: BTreeMap::new(),
            next_client: 0,
            arrivals_per_s,
            rate_generation: 0,
            oracle,
            tally: Tally::default(),
            seed,
            watch: Watch::default(),
        }
    }

    pub(crate) fn schedule(&mut self, at: Instant, event: Event) {
        self.scheduled += 1;
        self.queue.insert((at.max(self.now), self.scheduled), event);
    }

    pub(crate) fn run(mut self, progress: &mut dyn FnMut(f64)) -> Outcome {
        let quiet = if self.scenario.chaos { crate::chaos::QUIET } else { Duration::ZERO };
        let end = self.start + self.scenario.duration + quiet;
        self.prepare();
        let mut told = Instant::ZERO;
        while let Some(((at, _), event)) = self.queue.pop_first() {
            if at > end {
                break;
            }
            debug_assert!(at >= self.now);
            self.now = at;
            self.handle(event);
            if at.since(told) >= Duration::from_secs(1) {
                told = at;
                progress(at.0 as f64 / end.0 as f64);
            }
        }
        self.now = end;
        if self.scenario.chaos {
            self.check_converged();
        }
        progress(1.0);
        self.outcome()
    }

    fn prepare(&mut self) {
        self.schedule(Instant::ZERO, Event::NodeStarts);
        for index in 0..self.scenario.fleet.servers as usize {
            let capacity = self.scenario.capacity(index);
            self.add_host(name(index), capacity);
            if self.scenario.scale.is_some() {
                let word = Provided::Running { server: name(index), url: url(&name(index)) };
                self.node.provided.insert(name(index), word);
            }
        }
        for front in 0..self.fronts.len() {
            self.schedule(Instant::from_millis(front as u64 * 7), Event::View(front));
        }
        self.schedule(self.start, Event::Begins);
        for index in 0..self.scenario.events.len() {
            let at = self.start + self.scenario.events[index].at;
            self.schedule(at, Event::Happens(index));
        }
        if self.scenario.chaos {
            self.schedule(self.start + self.scenario.duration, Event::Calms);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Begins => self.begins(),
            Event::Arrives(generation) => self.arrives(generation),
            Event::Dials(client) => self.dials(client),
            Event::Reaches { client, front, placement } => self.reaches(client, front, placement),
            Event::Shaken(shaken) => self.shaken(shaken),
            Event::Swallows { front, host, life } => self.swallows(front, host, life),
            Event::Churns => {
                self.churn(CHURN_EACH);
                self.schedule(self.now + CHURN_EACH, Event::Churns);
            }
            Event::FrontWakes(front) => self.front_wakes(front),
            Event::Installs { front, snapshot } => self.install(front, snapshot),
            Event::View(front) => self.view(front),
            Event::Viewed(view) => self.viewed(view),
            Event::LinkOpens { host, life } => self.link_opens(host, life),
            Event::LinkBreaks { host, life } if self.hosts[host].life == life => self.link_breaks(host),
            Event::LinkBreaks { .. } => {}
            Event::HostHears { host, life, text } => self.host_hears(host, life, text),
            Event::HostWakes(host) => self.host_wakes(host),
            Event::Measures { host, life } => self.measures(host, life),
            Event::Thaws { host, life } => self.thaws(host, life),
            Event::Revives(host) => self.revives(host),
            Event::Cured(host) => self.cured(host),
            Event::NodeStarts => self.node_starts(),
            Event::NodeHears { node, host, life, text } => self.node_hears(node, host, life, &text),
            Event::NodeWakes(life) => self.node_wakes(life),
            Event::Boots(server) => self.boots(server),
            Event::Terminates(server) => self.terminates(&server),
            Event::Happens(index) => self.happens(index),
            Event::Looks => self.looks(),
            Event::Calms => {
                self.network.calm_down();
                self.scenario.events.clear();
            }
        }
    }

    /// Warm-up is over: the connections held from the start exist now, evenly over gateways.
    fn begins(&mut self) {
        let total: u64 = self.hosts.iter().map(|host| u64::from(host.capacity)).sum();
        let gateways = self.fronts.len() as u64;
        let mut cumulated = (0u64, 0u64);
        for host in 0..self.hosts.len() {
            // Rounded so that the parts add up.
            cumulated.0 += u64::from(self.hosts[host].capacity);
            let upto = u64::from(self.scenario.clients.connections) * cumulated.0 / total;
            let share = upto - cumulated.1;
            cumulated.1 = upto;
            for front in 0..self.fronts.len() {
                let part = share * (front as u64 + 1) / gateways - share * front as u64 / gateways;
                let Some(key) = self.fronts[front].machine.key(&self.hosts[host].id) else { continue };
                self.fronts[front].machine.adopt(key, Connections(part as u32));
                self.hosts[host].held[front] += part as u32;
            }
            self.tell_counts(host);
            self.hosts[host].peak = 0;
        }
        self.next_arrival();
        self.schedule(self.now, Event::Looks);
        self.schedule(self.now + CHURN_EACH, Event::Churns);
    }

    fn happens(&mut self, index: usize) {
        let Some(event) = self.scenario.events.get(index).cloned() else { return };
        let now = self.now;
        match event.what {
            What::Join { count } => self.join(count),
            What::Drain { server } => self.drain(&server),
            What::Undrain { server } => self.on(&server, |id| Order::Undrain { server: id }),
            What::Cordon { server } => self.on(&server, |id| Order::Cordon { server: id }),
            What::Shed { server, to } => {
                self.on(&server, |id| Order::Shed { server: id, to: Connections(to) });
            }
            What::Crash { server, down } => {
                if let Some(host) = self.up(&server) {
                    self.kill(host);
                    self.schedule(now + down, Event::Revives(host));
                }
            }
            What::Freeze { server, lasts } => {
                if let Some(host) = self.up(&server) {
                    self.hosts[host].status = Status::Frozen;
                    self.hosts[host].frozen_at = now;
                    self.schedule(now + lasts, Event::Thaws { host, life: self.hosts[host].life });
                }
            }
            What::Sinkhole { server, lasts } => {
                if let Some(host) = self.up(&server) {
                    self.hosts[host].sinkhole = true;
                    self.watch.sinkhole = Some((now, host));
                    (self.watch.swallowed, self.watch.swallowed_until) = (None, None);
                    self.schedule(now + lasts, Event::Cured(host));
                }
            }
            What::Cost { server, times } => {
                if let Some(host) = self.up(&server) {
                    self.hosts[host].costs(times);
                    self.watch.hot = Some((now, host));
                }
            }
            What::Arrive { count, within } => {
                for _ in 0..count {
                    let at = now + within.mul_f64(self.load.unit());
                    self.tally.arrivals += 1;
                    self.newcomer(at);
                }
            }
            What::Rate { arrivals_per_s } => {
                self.arrivals_per_s = arrivals_per_s;
                self.rate_generation += 1;
                self.next_arrival();
            }
            What::RestartController { down } => self.node_dies(down),
        }
    }

    fn up(&self, server: &str) -> Option<usize> {
        let id = ServerId::new(server).ok()?;
        self.by_id.get(&id).copied().filter(|host| self.hosts[*host].status == Status::Up)
    }

    fn on(&mut self, server: &str, order: impl FnOnce(ServerId) -> Order) {
        if let Ok(id) = ServerId::new(server) {
            self.order(order(id));
        }
    }

    fn join(&mut self, count: u32) {
        for _ in 0..count {
            let index = self.hosts.len();
            let capacity = self.scenario.capacity(index);
            let host = self.add_host(name(index), capacity);
            self.hosts[host].joined = Some(self.now);
        }
        self.watch.join = Some((self.now, self.tally.moved));
    }

    fn drain(&mut self, server: &str) {
        if let Some(host) = self.up(server) {
            self.watch.drain = Some((self.now, host, self.hosts[host].total()));
        }
        self.on(server, |id| Order::Drain { server: id, force: true });
    }

    fn cured(&mut self, host: usize) {
        self.hosts[host].sinkhole = false;
        if self.watch.sinkhole.is_some_and(|(_, watched)| watched == host) {
            self.watch.swallowed_until = Some(self.swallowed(host));
        }
    }

    /// Its accepts and everybody's.
    fn swallowed(&self, host: usize) -> (u64, u64) {
        (self.hosts[host].accepted, self.hosts.iter().map(|host| host.accepted).sum())
    }

    /// Whether a server takes connections as far as the controller is concerned.
    fn open(&self, host: &Host) -> bool {
        let state = host.agent.desired().map_or(State::Active, |desired| desired.state);
        host.status == Status::Up && state == State::Active
    }

    fn looks(&mut self) {
        let now = self.now;
        self.schedule(now + LOOK_EACH, Event::Looks);
        let sample = self.sample();
        if now.since(self.start).as_millis().is_multiple_of(1_000) {
            self.watch.samples.push(sample);
        }
        if self.watch.last_move.is_none_or(|(_, moved)| moved != self.tally.moved) {
            self.watch.last_move = Some((now, self.tally.moved));
        }
        if self.watch.join.is_some() && self.watch.fair_at.is_none() && self.joined_fair() {
            self.watch.fair_at = Some(now);
        }
        if let Some((_, host, _)) = self.watch.drain
            && self.watch.empty_at.is_none()
            && self.hosts[host].total() == 0
        {
            self.watch.empty_at = Some(now);
        }
        if let Some((_, host)) = self.watch.hot
            && self.true_score(host) >= 1.0
        {
            self.watch.hot_until = Some(now);
        }
        if let Some((at, host)) = self.watch.sinkhole
            && self.watch.swallowed.is_none()
            && now.since(at) >= DETECTED_AFTER
        {
            self.watch.swallowed = Some(self.swallowed(host));
        }
    }

    fn sample(&self) -> Sample {
        let open: Vec<&Host> = self.hosts.iter().filter(|host| self.open(host)).collect();
        let connections = self.hosts.iter().map(Host::total).sum();
        let held: u32 = open.iter().map(|host| host.total()).sum();
        let capacity: u32 = open.iter().map(|host| host.capacity).sum();
        let mean = f64::from(held) / f64::from(capacity.max(1));
        let max = open.iter().map(|host| host.utilisation()).fold(0.0, f64::max);
        Sample {
            at_s: self.since_start(self.now),
            connections,
            open: open.len() as u32,
            max_over_mean: if mean > 0.0 { max / mean } else { 1.0 },
            moved: self.tally.moved,
        }
    }

    fn joined_fair(&self) -> bool {
        let open = || self.hosts.iter().filter(|host| self.open(host));
        let held: u32 = self.hosts.iter().map(Host::total).sum();
        let capacity: u32 = open().map(|host| host.capacity).sum();
        let level = f64::from(held) / f64::from(capacity.max(1));
        self.hosts.iter().filter(|host| host.joined.is_some()).all(|host| host.utilisation() >= FAIR * level)
    }

    /// The score a server would have without noise.
    fn true_score(&self, host: usize) -> f64 {
        self.hosts[host].load().map_or(0.0, |load| load / CPU_FULL).max(self.hosts[host].utilisation())
    }

    fn since_start(&self, at: Instant) -> f64 {
        at.since(self.start).as_secs_f64()
    }

    fn outcome(mut self) -> Outcome {
        let last = self.sample();
        let cap = self.scenario.fleet.admit_per_s * PEAK_OVER.as_secs_f64();
        let peak = self.hosts.iter().map(|host| host.peak).max().unwrap_or(0);
        let watch = std::mem::take(&mut self.watch);
        let after = |from: Instant, at: Option<Instant>| at.map(|at| at.since(from).as_secs_f64());
        let said = self.tally.said.iter().map(|(at, text)| format!("{:.1} s {text}", self.since_start(*at)));
        Outcome {
            about: self.scenario.about.clone(),
            seed: self.seed,
            simulated_s: self.since_start(self.now),
            arrivals: self.tally.arrivals,
            placed: self.tally.placed,
            waited: self.tally.waited,
            failed: self.tally.failed,
            refused: self.tally.refused.iter().map(|(why, count)| (*why, *count)).collect(),
            last_refused_s: self.tally.last_refused.map(|at| self.since_start(at)),
            moved: self.tally.moved,
            lost: self.tally.lost,
            left: self.tally.left,
            join: watch.join.map(|(at, moved)| Join {
                at_s: self.since_start(at),
                fair_after_s: after(at, watch.fair_at),
                moves: self.tally.moved - moved,
                last_move_after_s: watch
                    .last_move
                    .filter(|(_, all)| *all > moved)
                    .and_then(|(last, _)| after(at, Some(last))),
            }),
            drain: watch.drain.map(|(at, _, held)| Drain {
                at_s: self.since_start(at),
                held,
                empty_after_s: after(at, watch.empty_at),
            }),
            hot: watch.hot.map(|(at, host)| Hot {
                at_s: self.since_start(at),
                relieved_after_s: (self.true_score(host) < 1.0).then(|| {
                    watch.hot_until.map_or(0.0, |until| (until + LOOK_EACH).since(at).as_secs_f64())
                }),
            }),
            sinkhole: watch.sinkhole.map(|(at, host)| {
                let until = watch.swallowed_until.unwrap_or_else(|| self.swallowed(host));
                let (its, all) = watch.swallowed.unwrap_or(until);
                Sinkhole {
                    at_s: self.since_start(at),
                    share: until.0.saturating_sub(its) as f64 / until.1.saturating_sub(all).max(1) as f64,
                }
            }),
            peak_over_cap: f64::from(peak) / cap,
            max_over_mean: last.max_over_mean,
            servers: self.hosts.iter().map(|host| (host.id.to_string(), host.total())).collect(),
            samples: watch.samples,
            said: said.collect(),
            violations: std::mem::take(&mut self.oracle.violations),
        }
    }
}
