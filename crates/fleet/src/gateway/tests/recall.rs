use super::*;
use crate::allot::Ceiling;

/// A gateway that begins with what was left, and nothing else.
fn begun(left: &Snapshot, now: Instant) -> Gateway {
    let config = GatewayConfig { id: GatewayId::new("g").unwrap(), fleet: left.fleet.clone() };
    let mut gateway = Gateway::new(config, Rng::new(2), now);
    gateway.recall(left, now);
    gateway
}

fn placed_on(gateway: &mut Gateway, now: Instant) -> String {
    let placed = gateway.place(&Ask::default(), now);
    placed.map_or_else(|refusal| String::from(refusal.reason()), |it| String::from(it.server.as_str()))
}

fn live(gateway: &Gateway) -> Vec<u32> {
    gateway.allotments().0.iter().map(|server| server.live.get()).collect()
}

#[test]
fn of_each_server_what_does_not_end_with_the_process_is_left() {
    let mut front = Front::new(vec![reported(server("a", 100), 0, 1, at(0)), server("b", 100)]);
    front.connect_many(6);
    // a holds 3 of ours and 7 that came by other ways.
    front.install(vec![reported(server("a", 100), 10, 2, front.now()), server("b", 100)]);
    assert_eq!(front.counts(), [(10, 0), (3, 0)]);
    let left = front.gateway.to_recall().unwrap();
    let mut next = begun(&left, at(front.now + 500));
    assert_eq!(live(&next), [7, 0]);
    assert_eq!(placed_on(&mut next, at(front.now + 500)), "b");
}

#[test]
fn what_was_left_is_left_again_with_its_age_until_something_is_published() {
    let front = Front::new(vec![reported(server("a", 100), 5, 1, at(0)), server("b", 100)]);
    let left = front.gateway.to_recall().unwrap();
    let next = begun(&left, at(20_000));
    assert_eq!(next.to_recall().unwrap(), left);
}

#[test]
fn a_server_found_dead_here_is_left_as_dead() {
    let mut front = Front::new(vec![server("a", 100), server("b", 100)]);
    let dead = front.fail(Failure::Refused);
    let mut next = begun(&front.gateway.to_recall().unwrap(), at(100));
    let other = if dead == "a" { "b" } else { "a" };
    for _ in 0..10 {
        assert_eq!(placed_on(&mut next, at(100)), other);
    }
}

#[test]
fn any_published_snapshot_replaces_what_was_left_as_a_whole() {
    let mut young = server("a", 100);
    young.desired = Desired::active(Fence { epoch: evenkeel_model::Epoch(9), ..Fence::default() });
    let left = Front::new(vec![young, server("b", 100)]).gateway.to_recall().unwrap();
    let mut next = begun(&left, at(10));
    // Of an older term and an older time, and yet it is what lives.
    next.install(&snapshot(vec![with(server("c", 100), |view| view.inc = Incarnation(0))], at(0)), at(20));
    assert_eq!(placed_on(&mut next, at(20)), "c");
    assert_eq!(next.key(&ServerId::new("a").unwrap()), None);
}

#[test]
fn what_was_left_orders_nothing() {
    let moving = with(server("a", 100), |view| view.desired.moves_per_s = PerSecond::new(9.0));
    let left = Front::new(vec![moving]).gateway.to_recall().unwrap();
    assert_eq!(left.servers[0].desired, Desired::active(Fence::default()));
}

#[test]
fn a_server_that_empties_or_was_not_well_gets_nothing_from_what_was_left() {
    let zero = |cause| vec![Ceiling { at_most: Connections::ZERO, cause }];
    let left = Front::new(vec![
        with(server("a", 100), |view| view.health = Health::Suspect),
        with(server("b", 100), |view| view.health = Health::Dead),
        with(server("c", 100), |view| (view.state, view.ceilings) = (State::Draining, zero(Cause::Drain))),
        with(server("d", 100), |view| view.state = State::Cordoned),
        with(server("e", 100), |view| view.state = State::Starting),
        server("f", 100),
    ]);
    let mut next = begun(&left.gateway.to_recall().unwrap(), at(5_000));
    for _ in 0..10 {
        assert_eq!(placed_on(&mut next, at(5_000)), "f");
    }
}

#[test]
fn of_what_is_older_than_half_a_minute_only_orders_are_believed() {
    let zero = |cause| vec![Ceiling { at_most: Connections::ZERO, cause }];
    let silent = with(reported(server("a", 100), 60, 1, at(0)), |view| {
        (view.health, view.ceilings) = (Health::Suspect, zero(Cause::Suspect));
    });
    let drained =
        with(server("b", 100), |view| (view.state, view.ceilings) = (State::Draining, zero(Cause::Drain)));
    let left = Front::new(vec![silent, drained, server("c", 100)]).gateway.to_recall().unwrap();
    let mut young = begun(&left, at(30_000));
    assert_eq!(live(&young), [60, 0, 0]);
    assert_eq!(placed_on(&mut young, at(30_000)), "c");
    let mut old = begun(&left, at(30_001));
    assert_eq!(live(&old), [0, 0, 0]);
    let seen: alloc::collections::BTreeSet<String> =
        (0..10).map(|_| placed_on(&mut old, at(30_001))).collect();
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["a", "c"]);
}

#[test]
fn with_nothing_left_alive_a_handshake_waits_for_the_controller() {
    let front = Front::new(vec![server("a", 100)]);
    let mut next = begun(&front.gateway.to_recall().unwrap(), at(100));
    let placement = next.place(&Ask::default(), at(100)).unwrap();
    next.failed(placement.id, Failure::Refused, at(100));
    assert!(next.opens_soon());
    next.install(
        &snapshot(vec![with(server("a", 100), |view| view.health = Health::Dead)], at(200)),
        at(200),
    );
    assert!(!next.opens_soon());
}
