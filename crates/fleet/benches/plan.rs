//! How long a round takes: `allot` alone, and a full plan of the controller, at 10, 1,000 and 10,000 servers.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use evenkeel_fleet::allot::{Cause, Ceiling, Server, TermKind, allot};
use evenkeel_fleet::config::FleetConfig;
use evenkeel_fleet::controller::{Controller, FleetRecord, Input, Registration};
use evenkeel_fleet::snapshot::Executor;
use evenkeel_model::{
    Connections, Duration, Epoch, FleetId, Incarnation, Instant, Measures, PerSecond, Ratio, Report, Rng,
    ServerId,
};

const SIZES: [u32; 3] = [10, 1_000, 10_000];

fn id(i: u32) -> ServerId {
    ServerId::new(&format!("chat-{i}")).expect("a valid id")
}

/// Servers of different capacity, a tenth of them with a ceiling of their own.
fn servers(count: u32) -> Vec<Server> {
    let mut rng = Rng::new(1);
    let one = |i| {
        let capacity = 500 + rng.below(1_000) as u32;
        let overload = Ceiling { at_most: Connections(capacity / 2), cause: Cause::Overload(TermKind::Cpu) };
        Server {
            id: id(i),
            capacity: Connections(capacity),
            live: Connections(rng.below(u64::from(capacity)) as u32),
            pending: Connections(rng.below(3) as u32),
            admit: PerSecond::new(200.0),
            ceilings: if i % 10 == 0 { vec![overload] } else { Vec::new() },
        }
    };
    (0..count).map(one).collect()
}

fn bench_allot(c: &mut Criterion) {
    let mut group = c.benchmark_group("allot_with_ceilings");
    for size in SIZES {
        let servers = servers(size);
        let demand = servers.iter().map(|server| server.live + server.pending).sum();
        group.bench_with_input(BenchmarkId::from_parameter(size), &servers, |b, servers| {
            b.iter(|| black_box(allot(black_box(servers), demand, Ratio::ONE)));
        });
    }
    group.finish();
}

/// A controller whose servers all report, unevenly filled, so that a round plans moves over all of them.
struct Fleet {
    controller: Controller,
    servers: Vec<(ServerId, u32)>,
    seq: u64,
    now: Instant,
}

impl Fleet {
    fn new(size: u32) -> Self {
        let config = FleetConfig::new(FleetId::new("chat").expect("a valid id"));
        let now = Instant::from_millis(1_000_000);
        let mut controller = Controller::new(config, Epoch(1), &FleetRecord::default(), Rng::new(1), now);
        let mut rng = Rng::new(2);
        let servers: Vec<(ServerId, u32)> = (0..size).map(|i| (id(i), 200 + rng.below(600) as u32)).collect();
        for (server, _) in &servers {
            let registration = Registration {
                id: server.clone(),
                inc: Incarnation(1),
                url: Arc::from(format!("ws://{server}")),
                public_url: None,
                capacity: Some(Connections(1_000)),
                labels: Vec::new(),
                zone: None,
                executor: Executor::Agent,
                applied: None,
            };
            controller.handle(Input::Registered(registration), now);
        }
        Self { controller, servers, seq: 0, now }
    }

    /// All servers report anew; a second later a round is due.
    fn report(&mut self) {
        self.seq += 1;
        self.now = self.now + Duration::from_millis(50);
        for (server, connections) in &self.servers {
            let measures =
                Measures { cpu: Some(0.4), memory: Some(0.3), lag_ms: Some(2.0), ..Measures::default() };
            let report = Report {
                inc: Incarnation(1),
                seq: self.seq,
                connections: Connections(*connections),
                movable: Connections::ZERO,
                raw: measures.clone(),
                averaged: Some(measures),
                totals: None,
            };
            self.controller.handle(Input::Reported { server: server.clone(), report }, self.now);
        }
        while self.controller.poll_output().is_some() {}
        self.now = self.now + Duration::from_millis(1_050);
    }

    fn round(&mut self) -> usize {
        self.controller.handle_timeout(self.now);
        let mut outputs = 0;
        while self.controller.poll_output().is_some() {
            outputs += 1;
        }
        outputs
    }
}

fn bench_plan(c: &mut Criterion) {
    let mut group = c.benchmark_group("full_plan");
    group.sample_size(20);
    for size in SIZES {
        let mut fleet = Fleet::new(size);
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    fleet.report();
                    #[allow(clippy::disallowed_methods)] // A benchmark reads the clock.
                    let begun = std::time::Instant::now();
                    black_box(fleet.round());
                    spent += begun.elapsed();
                }
                spent
            });
        });
    }
    group.finish();
    let mut group = c.benchmark_group("snapshot");
    group.sample_size(20);
    for size in SIZES {
        let fleet = Fleet::new(size);
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter_batched(
                || (),
                |()| black_box(fleet.controller.snapshot(fleet.now)),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, bench_allot, bench_plan);
criterion_main!(benches);
