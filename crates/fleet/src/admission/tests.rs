use alloc::vec;

use evenkeel_model::{
    Connections, Desired, Duration, Fence, FleetId, GatewayId, Incarnation, PerSecond, Rng, ServerId, State,
};

use super::*;
use crate::config::HealthConfig;
use crate::gateway::GatewayConfig;
use crate::snapshot::{Executor, Health, ServerView, Snapshot};

fn at(ms: u64) -> Instant {
    Instant::from_millis(1_000_000 + ms)
}

fn server(name: &str, per_s: f64, state: State) -> ServerView {
    ServerView {
        id: ServerId::new(name).unwrap(),
        inc: Incarnation(1),
        url: alloc::sync::Arc::from("ws://127.0.0.1:1"),
        public_url: None,
        capacity: Connections(100_000),
        reported: None,
        elsewhere: Connections::ZERO,
        ceilings: Vec::new(),
        health: Health::Ok,
        state,
        admit: PerSecond::new(per_s),
        open_since: Instant::ZERO,
        executor: Executor::Agent,
        desired: Desired::active(Fence::default()),
    }
}

fn snapshot(servers: Vec<ServerView>, place: &PlaceConfig) -> alloc::sync::Arc<Snapshot> {
    alloc::sync::Arc::new(Snapshot {
        fleet: FleetId::new("chat").unwrap(),
        at: at(0),
        servers,
        gateways: 1,
        placed_per_s: PerSecond::ZERO,
        health: HealthConfig::default(),
        place: place.clone(),
    })
}

/// One server that admits ten a second.
fn front(place: &PlaceConfig) -> (Gateway, Admission) {
    let config = GatewayConfig { id: GatewayId::new("g").unwrap(), fleet: FleetId::new("chat").unwrap() };
    let mut gateway = Gateway::new(config, Rng::new(1), at(0));
    gateway.install(&snapshot(vec![server("a", 10.0, State::Active)], place), at(0));
    (gateway, Admission::new(place))
}

fn from(prefix: u64) -> Ask<'static> {
    Ask { prefix, ..Ask::default() }
}

/// Runs until nobody waits; each ticket's end in ms, in order.
fn run(gateway: &mut Gateway, admission: &mut Admission) -> Vec<(u64, Ticket, bool)> {
    let mut ends = Vec::new();
    while let Some(due) = admission.poll_timeout() {
        for (ticket, outcome) in admission.poll(gateway, due) {
            ends.push((due.since(at(0)).as_millis() as u64, ticket, outcome.is_ok()));
        }
    }
    ends
}

#[test]
fn those_that_wait_are_placed_as_credit_comes() {
    let (mut gateway, mut admission) = front(&PlaceConfig::default());
    assert!(matches!(admission.arrive(&mut gateway, Ticket(0), &from(1), at(0)), Arrival::Placed(_)));
    for ticket in 1..=3 {
        assert_eq!(admission.arrive(&mut gateway, Ticket(ticket), &from(1), at(0)), Arrival::Waits);
    }
    let ends = run(&mut gateway, &mut admission);
    assert_eq!(ends, [(100, Ticket(1), true), (200, Ticket(2), true), (300, Ticket(3), true)]);
    assert_eq!(gateway.view(at(300)).waiting, 0);
}

#[test]
fn nobody_overtakes_those_that_wait() {
    let (mut gateway, mut admission) = front(&PlaceConfig::default());
    for ticket in 0..=2 {
        admission.arrive(&mut gateway, Ticket(ticket), &from(1), at(0));
    }
    assert_eq!(
        admission.arrive(&mut gateway, Ticket(9), &from(2), at(150)),
        Arrival::Waits,
        "there is credit"
    );
}

#[test]
fn a_prefix_with_many_does_not_starve_one_with_few() {
    let (mut gateway, mut admission) = front(&PlaceConfig::default());
    for ticket in 0..20 {
        admission.arrive(&mut gateway, Ticket(ticket), &from(1), at(0));
    }
    admission.arrive(&mut gateway, Ticket(100), &from(2), at(0));
    admission.arrive(&mut gateway, Ticket(101), &from(2), at(0));
    let order: Vec<u64> = run(&mut gateway, &mut admission).iter().map(|(_, ticket, _)| ticket.0).collect();
    assert_eq!(order[..5], [1, 100, 2, 101, 3]);
}

#[test]
fn a_wait_ends_at_its_deadline_and_the_client_counts_as_refused() {
    let place = PlaceConfig { admission_wait: Duration::from_millis(250), ..PlaceConfig::default() };
    let (mut gateway, mut admission) = front(&place);
    for ticket in 0..=4 {
        admission.arrive(&mut gateway, Ticket(ticket), &from(ticket), at(0));
    }
    let ends = run(&mut gateway, &mut admission);
    let (placed, given_up) = ends.split_at(2);
    assert_eq!(placed, [(100, Ticket(1), true), (200, Ticket(2), true)]);
    assert_eq!(given_up, [(250, Ticket(3), false), (250, Ticket(4), false)]);
    assert_eq!(gateway.view(at(250)).refused_prefixes, 2);
}

#[test]
fn a_full_queue_refuses_at_once() {
    let place = PlaceConfig { admission_queue: 2, ..PlaceConfig::default() };
    let (mut gateway, mut admission) = front(&place);
    for ticket in 0..=2 {
        admission.arrive(&mut gateway, Ticket(ticket), &from(ticket), at(0));
    }
    let refused = admission.arrive(&mut gateway, Ticket(3), &from(3), at(0));
    assert!(matches!(refused, Arrival::Refused(Refusal::OutOfCredit { .. })), "{refused:?}");
    assert_eq!(admission.enqueue(Ticket(4), 4, at(0)), Err(Full { waiting: 2 }));
    admission.poll(&mut gateway, at(1));
    let view = gateway.view(at(1));
    assert_eq!((view.waiting, view.refused_prefixes), (2, 2));
}

#[test]
fn waiting_is_pointless_once_nothing_is_open() {
    let place = PlaceConfig::default();
    let (mut gateway, mut admission) = front(&place);
    for ticket in 0..=2 {
        admission.arrive(&mut gateway, Ticket(ticket), &from(1), at(0));
    }
    gateway.install(&snapshot(vec![server("a", 10.0, State::Draining)], &place), at(50));
    let ends = run(&mut gateway, &mut admission);
    assert!(ends.iter().all(|(ms, _, placed)| *ms <= 100 && !placed), "{ends:?}");
    assert_eq!(ends.len(), 2);
    let refused = admission.arrive(&mut gateway, Ticket(9), &from(1), at(200));
    assert_eq!(refused, Arrival::Refused(Refusal::NothingOpen));
}

#[test]
fn who_cancelled_takes_no_credit() {
    let (mut gateway, mut admission) = front(&PlaceConfig::default());
    for ticket in 0..=2 {
        admission.arrive(&mut gateway, Ticket(ticket), &from(1), at(0));
    }
    admission.cancel(Ticket(1));
    admission.cancel(Ticket(1));
    admission.cancel(Ticket(77));
    assert_eq!(run(&mut gateway, &mut admission), [(100, Ticket(2), true)]);
}

#[test]
fn who_already_tried_the_server_with_credit_does_not_hold_up_the_others() {
    let place = PlaceConfig::default();
    let (mut gateway, mut admission) = front(&place);
    let both = vec![server("a", 10.0, State::Active), server("b", 1.0, State::Active)];
    gateway.install(&snapshot(both, &place), at(0));
    let b_is_spent = gateway.place(&from(1), at(0)).and(gateway.place(&from(1), at(0)));
    assert!(b_is_spent.is_ok());
    let a = gateway.key(&ServerId::new("a").unwrap()).unwrap();
    let picky = Ask { prefix: 1, avoid: &[a], source: None };
    admission.enqueue_ask(Ticket(1), &picky, at(0)).unwrap();
    admission.enqueue(Ticket(2), 2, at(0)).unwrap();
    let ends = run(&mut gateway, &mut admission);
    assert_eq!(ends[0], (100, Ticket(2), true));
    assert_eq!((ends[1].1, ends[1].2), (Ticket(1), true));
    assert!((1_000..=1_100).contains(&ends[1].0), "{ends:?}");
}

#[test]
fn with_nothing_open_a_handshake_waits_for_a_server_that_starts_and_for_no_other() {
    let place = PlaceConfig::default();
    let dead = ServerView { health: Health::Dead, ..server("a", 10.0, State::Starting) };
    for (view, waits) in [
        (server("a", 10.0, State::Starting), true),
        (server("a", 10.0, State::Draining), false),
        (server("a", 10.0, State::Cordoned), false),
        (dead, false),
    ] {
        let (mut gateway, mut admission) = front(&place);
        gateway.install(&snapshot(vec![view.clone()], &place), at(0));
        let arrival = admission.arrive(&mut gateway, Ticket(1), &from(1), at(0));
        assert_eq!(arrival == Arrival::Waits, waits, "{view:?}: {arrival:?}");
    }
}

#[test]
fn who_waits_for_a_server_that_starts_is_placed_once_it_opens_and_refused_once_it_cannot() {
    let place = PlaceConfig::default();
    for (state, health, placed) in [(State::Active, Health::Ok, true), (State::Starting, Health::Dead, false)]
    {
        let (mut gateway, mut admission) = front(&place);
        gateway.install(&snapshot(vec![server("a", 10.0, State::Starting)], &place), at(0));
        assert_eq!(admission.arrive(&mut gateway, Ticket(1), &from(1), at(0)), Arrival::Waits);
        assert_eq!(admission.poll(&mut gateway, at(150)), [], "not yet");
        let view = ServerView { health, ..server("a", 10.0, state) };
        gateway.install(&snapshot(vec![view], &place), at(200));
        let ends = run(&mut gateway, &mut admission);
        assert_eq!(ends, [(250, Ticket(1), placed)]);
    }
    let config = GatewayConfig { id: GatewayId::new("g").unwrap(), fleet: FleetId::new("chat").unwrap() };
    let (mut gateway, mut admission) = (Gateway::new(config, Rng::new(1), at(0)), Admission::new(&place));
    assert_eq!(admission.arrive(&mut gateway, Ticket(1), &from(1), at(0)), Arrival::Waits, "no word yet");
    assert_eq!(admission.poll(&mut gateway, at(50)), [], "no word yet");
    gateway.install(&snapshot(vec![], &place), at(100));
    assert_eq!(run(&mut gateway, &mut admission), [(150, Ticket(1), false)], "there is none");

    let (mut gateway, mut admission) = front(&place);
    gateway.install(&snapshot(vec![server("a", 10.0, State::Starting)], &place), at(0));
    assert_eq!(admission.arrive(&mut gateway, Ticket(1), &from(1), at(0)), Arrival::Waits);
    assert_eq!(run(&mut gateway, &mut admission), [(3_000, Ticket(1), false)], "for so long at most");
}
