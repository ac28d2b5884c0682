//! How long one placement takes: the choice alone by the exact rule and by the sampled one, and a whole placement
//! with its counts, credit and ledger, at 10, 1,000 and 10,000 servers.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use evenkeel_fleet::config::{HealthConfig, PickRule, PlaceConfig};
use evenkeel_fleet::gateway::{Ask, Gateway, GatewayConfig};
use evenkeel_fleet::pick::{Picker, Seat, Seats, Weight, Wish};
use evenkeel_fleet::snapshot::{Executor, Health, ServerView, Snapshot};
use evenkeel_model::{
    Connections, Desired, Duration, Fence, FleetId, GatewayId, Incarnation, Instant, PerSecond, Rng,
    ServerId, Share, State,
};

const SIZES: [u32; 3] = [10, 1_000, 10_000];

fn seats(count: u32) -> Vec<Seat> {
    let mut rng = Rng::new(1);
    let one = |_| {
        let target = 500 + rng.below(1_000) as u32;
        Seat {
            live: target - rng.below(50) as u32,
            pending: rng.below(3) as u32,
            target: Share::from_connections(Connections(target)),
            at_most: 2 * target,
            permits: true,
            trusted_until: Instant(u64::MAX),
            used: rng.below(1_000_000),
            ..Seat::default()
        }
    };
    (0..count).map(one).collect()
}

/// The choice and the change of the chosen seat's counts; every second one ends a connection elsewhere.
fn bench_pick(c: &mut Criterion, name: &str, rule: PickRule) {
    let mut group = c.benchmark_group(name);
    for size in SIZES {
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            let mut each = seats(size);
            let mut picker = Picker::default();
            let mut now = Instant::from_millis(1_000_000);
            picker.refresh(rule, 8, &Seats { each: &each, weight: Weight::ONE, now });
            let (mut rng, mut tick) = (Rng::new(2), 1_000_000);
            b.iter(|| {
                // 20,000 placements a second.
                now = now + Duration::from_micros(50);
                let seats = Seats { each: &each, weight: Weight::ONE, now };
                let chosen = picker.pick(&seats, &Wish::default(), &mut rng).expect("all are open");
                tick += 1;
                let seat = &mut each[chosen as usize];
                seat.live += 1;
                (seat.used, seat.changed) = (tick, tick);
                picker.changed(&Seats { each: &each, weight: Weight::ONE, now }, chosen);
                let left = rng.below(u64::from(size)) as u32;
                let seat = &mut each[left as usize];
                seat.live = seat.live.saturating_sub(1);
                picker.changed(&Seats { each: &each, weight: Weight::ONE, now }, left);
                black_box(chosen)
            });
        });
    }
    group.finish();
}

fn view(index: u32) -> ServerView {
    ServerView {
        id: ServerId::new(&format!("chat-{index}")).expect("a valid id"),
        inc: Incarnation(1),
        url: Arc::from(format!("ws://chat-{index}:80")),
        public_url: None,
        capacity: Connections(100_000),
        reported: None,
        elsewhere: Connections::ZERO,
        ceilings: Vec::new(),
        health: Health::Ok,
        state: State::Active,
        admit: PerSecond::new(1e9),
        open_since: Instant::ZERO,
        executor: Executor::Agent,
        desired: Desired::active(Fence::default()),
    }
}

/// A placement from the handshake to the end of its connection, with the refreshes that come in between.
fn bench_place(c: &mut Criterion, name: &str, gateways: u32) {
    let mut group = c.benchmark_group(name);
    for size in SIZES {
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            let fleet = FleetId::new("chat").expect("a valid id");
            let id = GatewayId::new("g1").expect("a valid id");
            let mut now = Instant::from_millis(1_000_000);
            let mut gateway = Gateway::new(GatewayConfig { id, fleet: fleet.clone() }, Rng::new(1), now);
            let snapshot = Snapshot {
                fleet,
                at: now,
                servers: (0..size).map(view).collect(),
                gateways,
                placed_per_s: PerSecond::ZERO,
                health: HealthConfig::default(),
                place: PlaceConfig::default(),
            };
            gateway.install(&Arc::new(snapshot), now);
            b.iter(|| {
                now = now + Duration::from_micros(50);
                let placement = gateway.place(&Ask::default(), now).expect("all are open");
                gateway.connected(placement.id, now);
                gateway.closed(placement.key, Duration::from_secs(60), now);
                black_box(placement)
            });
        });
    }
    group.finish();
}

fn benches(c: &mut Criterion) {
    bench_pick(c, "pick_exact", PickRule::LeastUtilised);
    bench_pick(c, "pick_sampled", PickRule::Sampled);
    bench_place(c, "place_one_gateway", 1);
    bench_place(c, "place_eight_gateways", 8);
}

criterion_group!(place, benches);
criterion_main!(place);
