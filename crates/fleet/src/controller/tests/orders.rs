use super::*;

fn three() -> World {
    let mut world = World::new(
        config(),
        &[("a", Host::new(1_000, 100)), ("b", Host::new(1_000, 100)), ("c", Host::new(1_000, 100))],
    );
    world.run(4);
    world
}

fn drain(name: &str) -> Order {
    Order::Drain { server: id(name), force: false }
}

#[test]
fn an_order_is_stored_then_published_then_told_then_answered() {
    let mut world = three();
    world.outputs.clear();
    let answer = world.order(drain("b")).unwrap();
    let kinds: Vec<_> = world.outputs.iter().map(kind_of).filter(|kind| *kind != "event").collect();
    assert_eq!(kinds, ["persist", "publish", "desire", "answer"]);
    let (server, desired) = &answer[0];
    assert_eq!((server, desired.state, desired.target), (&id("b"), State::Draining, Connections::ZERO));
    assert_eq!(desired.deadline, Some(Duration::from_secs(600)));
    assert!(desired.moves_per_s.is_zero(), "soft first");
    let table = world.table.clone().unwrap();
    assert_eq!(table.servers[1].state, State::Draining);
    let servers: Vec<Server> = world.controller.as_allotted(world.now);
    assert!(!allot(&servers, Connections(300), Ratio::ONE).each[1].open);
}

#[test]
fn a_drain_goes_soft_moving_drained_and_a_static_server_stays_drained() {
    let mut world = three();
    world.order(drain("b")).unwrap();
    world.run(3);
    assert_eq!(world.status("b").phase, Some(Phase::Soft));
    assert_eq!(world.counts(), [100, 100, 100], "nothing leaves in the soft phase");
    let took = world.until(30, |world| world.hosts[&id("b")].live == 0);
    // 100 at 20/s after what is left of the 5 s.
    assert!((6.0..9.5).contains(&took), "{took}");
    world.until(5, |world| world.status("b").state == State::Drained);
    assert_eq!(world.counts(), [150, 0, 150]);
    world.run(30);
    assert_eq!(world.status("b").state, State::Drained);
    assert!(!world.outputs.iter().any(|output| matches!(output, Output::Terminate(_))));
    assert_eq!((world.kinds("draining"), world.kinds("drained")), (1, 1));
    assert_eq!(world.homeless, 0);
}

#[test]
fn a_drain_that_the_others_cannot_hold_is_refused_unless_forced() {
    let mut world = World::new(config(), &[("a", Host::new(100, 80)), ("b", Host::new(100, 80))]);
    world.run(4);
    let refused = world.order(drain("a"));
    assert_eq!(refused, Err(OrderError::NoRoom { server: id("a"), unplaced: Connections(60) }));
    assert_eq!(world.status("a").state, State::Active);
    assert!(world.stored.is_empty(), "a refused order changes nothing");
    world.order(Order::Drain { server: id("a"), force: true }).unwrap();
    world.run(60);
    assert_eq!(world.counts(), [60, 100], "what fits has moved, the rest waits for room");
    world.join("c", Host::new(100, 0));
    world.until(40, |world| world.hosts[&id("a")].live == 0);
    assert_eq!(world.homeless, 0);
}

#[test]
fn a_drain_resumes_after_a_restart_with_its_first_order_time() {
    let mut world = World::new(config(), &[("a", Host::new(1_000, 400)), ("b", Host::new(1_000, 100))]);
    world.run(4);
    world.order(drain("a")).unwrap();
    world.run(10);
    let left = world.hosts[&id("a")].live;
    assert!((200..400).contains(&left), "{left}");
    let before = world.hosts[&id("a")].desired.clone().unwrap().0.fence;
    world.restart();
    world.introduce("a");
    world.introduce("b");
    assert_eq!(world.status("a").state, State::Draining);
    let after = world.hosts[&id("a")].desired.clone().unwrap().0;
    assert!(after.fence > before, "{} {before}", after.fence);
    assert_eq!(after.deadline, Some(Duration::from_secs(590)), "counted from the first order");
    world.until(60, |world| world.status("a").state == State::Drained);
    assert_eq!(world.counts(), [0, 500]);
}

#[test]
fn a_drained_server_is_not_believed_before_it_knows_that_it_drains() {
    let mut world = World::new(config(), &[("a", Host::new(1_000, 0)), ("b", Host::new(1_000, 0))]);
    world.run(4);
    // Orders get lost on the way: the desired state never arrives.
    let mut deaf = world.hosts.remove(&id("a")).unwrap();
    world.order(drain("a")).unwrap();
    world.hosts.insert(id("a"), deaf.clone());
    world.tick();
    assert_eq!(world.status("a").state, State::Draining);
    deaf.live = 1;
    world.hosts.insert(id("a"), deaf);
    world.run(3);
    assert_eq!(world.status("a").state, State::Draining, "it took one more before it knew");
}

#[test]
fn undrain_ends_a_drain_and_the_server_fills_again() {
    let mut world = three();
    world.order(drain("b")).unwrap();
    world.until(30, |world| world.hosts[&id("b")].live == 0);
    let answer = world.order(Order::Undrain { server: id("b") }).unwrap();
    assert_eq!(answer[0].1.state, State::Active);
    assert_eq!(world.stored[&id("b")].intent, None);
    world.run(60);
    let counts = world.counts();
    assert!(counts.iter().all(|count| (95..=105).contains(count)), "{counts:?}");
}

#[test]
fn a_cordoned_server_takes_none_and_loses_none() {
    let mut world = three();
    world.order(Order::Cordon { server: id("b") }).unwrap();
    world.arrive(90);
    world.run(30);
    assert_eq!(world.counts(), [145, 100, 145]);
    assert_eq!(world.status("b").state, State::Cordoned);
    world.order(Order::Undrain { server: id("b") }).unwrap();
    assert_eq!(world.status("b").state, State::Active);
}

#[test]
fn shed_relieves_down_to_its_number_and_ends_by_itself() {
    let mut world = three();
    world.order(Order::Shed { server: id("a"), to: Connections(40) }).unwrap();
    world.until(20, |world| world.hosts[&id("a")].live == 40);
    world.run(10);
    assert_eq!(world.counts(), [40, 130, 130]);
    assert_eq!(world.status("a").bound_by, Some(Cause::Operator));
    world.run(620);
    assert_eq!(world.stored[&id("a")].intent, None);
    let counts = world.counts();
    assert!(counts.iter().all(|count| (90..=110).contains(count)), "{counts:?}");
}

#[test]
fn the_last_connection_of_a_shed_leaves_too_where_each_receiver_lacks_half_a_one() {
    let mut world = World::new(
        config(),
        &[("a", Host::new(1_000, 21)), ("b", Host::new(1_000, 50)), ("c", Host::new(1_000, 50))],
    );
    world.run(3);
    world.order(Order::Shed { server: id("a"), to: Connections(20) }).unwrap();
    world.until(20, |world| world.hosts[&id("a")].live == 20);
}

#[test]
fn orders_that_make_no_sense_are_refused_with_their_reason() {
    let mut world = three();
    let unknown = world.order(drain("zz"));
    assert_eq!(unknown.unwrap_err().reason(), "unknown_server");
    world.order(drain("b")).unwrap();
    assert_eq!(world.order(Order::Cordon { server: id("b") }).unwrap_err().reason(), "wrong_state");
    assert_eq!(
        world.order(Order::Shed { server: id("b"), to: Connections(1) }).unwrap_err().reason(),
        "wrong_state"
    );
    assert_eq!(world.order(Order::Scale { servers: Some(2) }).unwrap_err().reason(), "no_provider");
    assert_eq!(world.kinds("order_refused"), 4);
}

#[test]
fn repeating_an_order_is_harmless() {
    let mut world = three();
    let first = world.order(drain("b")).unwrap();
    world.run(1);
    world.outputs.clear();
    let again = world.order(drain("b")).unwrap();
    assert_eq!(first[0].1.fence, again[0].1.fence);
    assert!(!world.outputs.iter().any(|output| matches!(output, Output::Persist(_))));
    world.order(Order::Undrain { server: id("a") }).unwrap();
    assert_eq!(world.status("a").state, State::Active);
}

#[test]
fn enforce_closes_without_a_receiver_at_the_deadline_and_extend_waits() {
    use crate::config::DeadlinePolicy::{Enforce, Extend};
    for (policy, left) in [(Extend, 60), (Enforce, 0)] {
        let mut config = config();
        config.moves.deadline = Duration::from_secs(60);
        config.moves.deadline_policy = policy;
        let mut world = World::new(config, &[("a", Host::new(100, 60))]);
        world.run(4);
        world.order(Order::Drain { server: id("a"), force: true }).unwrap();
        world.run(50);
        assert_eq!(world.hosts[&id("a")].live, 60, "{policy:?}");
        world.run(25);
        assert_eq!(world.hosts[&id("a")].live, left, "{policy:?}");
    }
}

#[test]
fn a_server_without_agent_drains_by_its_gateways() {
    let gatewayed = |live| Host { agent: false, ..Host::new(1_000, live) };
    let mut world = World::new(config(), &[("a", gatewayed(50)), ("b", gatewayed(50))]);
    world.run(4);
    let status = world.status("a");
    assert_eq!((status.state, status.connections), (State::Active, Connections(50)));
    world.order(drain("a")).unwrap();
    world.run(6);
    let view = world.table.as_ref().unwrap().servers[0].clone();
    assert_eq!((view.executor, view.desired.state), (Executor::Gateways, State::Draining));
    assert!(view.desired.moves_per_s.get() > 0.0);
    assert!(!world.outputs.iter().any(|output| matches!(output, Output::Desire(..))));
    world.hosts.get_mut(&id("a")).unwrap().live = 0;
    world.run(3);
    assert_eq!(world.status("a").state, State::Drained);
}

#[test]
fn a_restored_drain_is_not_concluded_before_its_server_is_back() {
    let mut world = World::new(config(), &[("a", Host::new(1_000, 400)), ("b", Host::new(1_000, 100))]);
    world.run(4);
    world.order(drain("a")).unwrap();
    world.run(1);
    world.restart();
    world.hosts.get_mut(&id("a")).unwrap().answers = false;
    let away = world.hosts.remove(&id("a")).unwrap();
    world.run(20);
    assert_eq!(world.status("a").state, State::Draining);
    world.hosts.insert(id("a"), Host { answers: true, ..away });
    world.introduce("a");
    world.run(2);
    assert_eq!((world.status("a").state, world.status("a").phase), (State::Draining, Some(Phase::Moving)));
}

#[test]
fn a_draining_server_that_cannot_hear_does_not_hold_up_the_others() {
    let mut world = World::new(
        config(),
        &[("a", Host::new(5_000, 4_000)), ("b", Host::new(5_000, 200)), ("c", Host::new(10_000, 0))],
    );
    world.run(2);
    for name in ["a", "b"] {
        world.order(drain(name)).unwrap();
    }
    let a = world.hosts.get_mut(&id("a")).unwrap();
    (a.answers, a.hears) = (false, false);
    // Until its lease must have ended it may still be closing, so that part of the pace is its own.
    world.run(25);
    assert_eq!(world.hosts[&id("b")].live, 0, "it gets the whole pace");
}

#[test]
fn a_late_report_or_check_stops_no_drain() {
    for agent in [true, false] {
        let host = |live| Host { agent, ..Host::new(1_000, live) };
        let mut world = World::new(config(), &[("a", host(400)), ("b", host(100))]);
        world.run(4);
        world.order(drain("a")).unwrap();
        world.run(7);
        // Two and a half seconds without a word of a: suspect, so that nobody is placed there.
        world.hosts.get_mut(&id("a")).unwrap().hears = false;
        for tick in 0..10 {
            world.now = world.now + TICK;
            world.report(&id("b"));
            let desired = world.status("a").desired;
            assert!(desired.moves_per_s.get() >= 19.0, "agent {agent}, tick {tick}: {}", desired.moves_per_s);
        }
        assert_eq!(world.status("a").health, Health::Suspect, "agent {agent}");
    }
}

#[test]
fn an_agent_that_reports_and_closes_nothing_is_said_to_disobey_once() {
    let mut world = three();
    world.order(drain("b")).unwrap();
    world.hosts.get_mut(&id("b")).unwrap().hears = false;
    let reason = |world: &World| {
        let moves = &world.controller.explanation().moves;
        moves.iter().find(|said| said.server == Some(id("b"))).map(|said| said.reason)
    };
    world.run(14);
    assert_eq!((reason(&world), world.kinds("disobeys")), (Some("relieved"), 0), "it may still begin");
    world.run(4);
    assert_eq!((reason(&world), world.kinds("disobeys")), (Some("disobeys"), 1));
    let trouble = world.status("b").trouble.expect("its status says so");
    assert!(trouble.contains("none of its 100 connections"), "{trouble}");
    world.run(60);
    assert_eq!(world.kinds("disobeys"), 1, "told once");

    world.hosts.get_mut(&id("b")).unwrap().hears = true;
    world.run(3);
    assert_eq!((reason(&world), world.status("b").trouble), (Some("relieved"), None), "it obeys after all");
    world.until(30, |world| world.status("b").state == State::Drained);
    assert_eq!(world.kinds("disobeys"), 1);
}

#[test]
fn an_agent_that_leaves_young_connections_alone_obeys() {
    let mut world = World::new(config(), &[("a", Host::new(1_000, 600)), ("b", Host::new(1_000, 0))]);
    world.hosts.get_mut(&id("a")).unwrap().hears = false;
    world.run(60);
    assert_eq!(world.kinds("disobeys"), 0, "rebalancing leaves connections younger than a minute alone");
}

#[test]
fn an_empty_fleet_has_no_demand() {
    let mut world = World::new(config(), &[("a", Host::new(1_000, 0))]);
    world.run(3);
    assert_eq!(world.controller.explanation().demand, Connections::ZERO);
}
