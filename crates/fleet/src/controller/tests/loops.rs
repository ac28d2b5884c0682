use super::*;

/// Most moves in any window of so many seconds.
fn peak(world: &World, seconds: u64) -> u32 {
    let by_second = &world.moves_by_second;
    by_second
        .keys()
        .map(|&from| by_second.range(from..from + seconds).map(|(_, moves)| moves).sum())
        .max()
        .unwrap_or(0)
}

#[test]
fn a_new_server_fills_by_moves_within_its_time_and_then_all_stays_still() {
    let mut hosts: Vec<(String, Host)> =
        (0..20).map(|i| (format!("s{i:02}"), Host::new(1_000, 500))).collect();
    hosts.push(("new".into(), Host::new(1_000, 0)));
    let named: Vec<(&str, Host)> = hosts.iter().map(|(name, host)| (name.as_str(), host.clone())).collect();
    let mut world = World::new(config(), &named);
    let took = world.until(60, |world| f64::from(world.hosts[&id("new")].live) >= 0.95 * 10_000.0 / 21.0);
    // 1.2 · C / ((N + 1) · pace), and two rounds to notice.
    assert!(took <= 1.2 * 10_000.0 / (21.0 * 20.0) + 2.0, "{took}");
    world.run(5);
    let settled = world.counts();
    world.run(300);
    assert_eq!(world.counts(), settled, "still");
    assert!(peak(&world, 5) <= 105, "{}", peak(&world, 5));
    assert_eq!((world.kinds("rebalancing"), world.kinds("balanced")), (1, 1));
}

#[test]
fn small_servers_near_their_share_are_left_alone() {
    let hosts: Vec<(String, Host)> =
        (0..10).map(|i| (format!("s{i}"), Host::new(1_000, 7 + i % 7))).collect();
    let named: Vec<(&str, Host)> = hosts.iter().map(|(name, host)| (name.as_str(), host.clone())).collect();
    let mut world = World::new(config(), &named);
    world.run(600);
    assert!(world.hosts.values().all(|host| host.moved.get() == 0));
}

#[test]
fn one_server_growing_to_two_evens_out() {
    let mut world = World::new(config(), &[("a", Host::new(1_000, 760))]);
    world.run(3);
    world.join("b", Host::new(1_000, 0));
    let took = world.until(60, |world| world.hosts[&id("b")].live >= 361);
    assert!(took <= 1.2 * 380.0 / 20.0 + 3.0, "{took}");
}

#[test]
fn arrivals_come_first_where_they_fill_the_gap() {
    let mut world = World::new(config(), &[("a", Host::new(1_000, 300)), ("b", Host::new(1_000, 300))]);
    for _ in 0..20 {
        world.arrive(10);
        world.depart(10);
        world.run(1);
    }
    world.join("c", Host::new(1_000, 0));
    for _ in 0..30 {
        world.arrive(10);
        world.depart(10);
        world.run(1);
    }
    let moved: u32 = world.hosts.values().map(|host| host.moved.get()).sum();
    assert_eq!(moved, 0, "200 are missing, 600 arrive within a minute");
    assert!(world.hosts[&id("c")].live > 150);
}

#[test]
fn a_burst_before_a_join_is_soon_forgotten_also_while_connections_move() {
    let mut world = World::new(config(), &[("a", Host::new(1_000, 0)), ("b", Host::new(1_000, 0))]);
    world.run(3);
    world.arrive(300);
    world.run(1);
    world.join("c", Host::new(1_000, 0));
    world.run(3);
    let said = &world.controller.explanation().moves[0].text;
    assert!(
        said.contains("arrivals_first") && said.contains("within 60s") && said.contains("each 10s"),
        "{said}"
    );
    let took = world.until(120, |world| world.hosts[&id("c")].live >= 90);
    assert!(took <= 75.0, "{took}");
}

#[test]
fn two_drains_and_a_rebalance_share_one_pace() {
    let mut world = World::new(
        config(),
        &[
            ("a", Host::new(2_000, 300)),
            ("b", Host::new(2_000, 300)),
            ("c", Host::new(2_000, 900)),
            ("d", Host::new(2_000, 0)),
        ],
    );
    world.run(2);
    for name in ["a", "b"] {
        world.order(Order::Drain { server: id(name), force: false }).unwrap();
    }
    world.run(120);
    assert!(peak(&world, 1) <= 26 && peak(&world, 10) <= 205, "{} {}", peak(&world, 1), peak(&world, 10));
    assert_eq!(world.status("a").state, State::Drained);
    assert_eq!(world.status("b").state, State::Drained);
    let counts = world.counts();
    assert!(counts[2].abs_diff(counts[3]) <= 80, "{counts:?}");
}

#[test]
fn a_cpu_hot_server_is_relieved_and_the_rest_takes_over() {
    let mut world = World::new(
        config(),
        &[("a", Host::new(1_000, 600)), ("b", Host::new(1_000, 600)), ("c", Host::new(1_000, 600))],
    );
    let cost = |world: &mut World, hot: f64| {
        for (name, host) in &mut world.hosts {
            let each = if name.as_str() == "a" { hot } else { 0.001 };
            host.cpu = Some((f64::from(host.live) * each * 0.9).min(1.0));
        }
    };
    for _ in 0..700 {
        cost(&mut world, 0.001);
        world.run(1);
    }
    assert!(world.hosts.values().all(|host| host.moved.get() == 0), "even cost moves nobody");
    for _ in 0..150 {
        cost(&mut world, 0.002);
        world.run(1);
    }
    assert!(world.hosts[&id("a")].live < 500, "below score 1: {:?}", world.counts());
    let (a, b) = (world.status("a").capacity.get(), world.status("b").capacity.get());
    assert!((450..=550).contains(&a) && b > 950, "what it costs now decides: {a} {b}");
    assert_eq!(world.kinds("overload"), 1);
}

#[test]
fn every_server_above_target_is_relieved_refused_or_deferred() {
    let mut world = World::new(
        config(),
        &[("a", Host::new(1_000, 500)), ("b", Host::new(1_000, 200)), ("c", Host::new(1_000, 10))],
    );
    world.run(4);
    world.order(Order::Drain { server: id("b"), force: false }).unwrap();
    world.run(1);
    let moves = &world.controller.explanation().moves;
    let of = |name: &str| {
        let of = moves.iter().filter(|said| said.server == Some(id(name)));
        of.map(|said| said.reason).collect::<Vec<_>>()
    };
    assert_eq!(of("a"), ["relieved"]);
    assert_eq!(of("b"), ["deferred"], "soft");
    assert_eq!(of("c"), [""; 0]);
    assert_eq!(moves.iter().filter(|said| said.server.is_none()).count(), 1, "one for the fleet");
}

#[test]
fn the_same_inputs_give_the_same_outputs() {
    let run = || {
        let mut world = World::new(config(), &[("a", Host::new(1_000, 400)), ("b", Host::new(500, 100))]);
        world.run(10);
        world.order(Order::Drain { server: id("a"), force: false }).ok();
        world.arrive(50);
        world.run(20);
        format!("{:?}", world.outputs)
    };
    assert_eq!(run(), run());
}

#[test]
fn round_robin_switches_rebalancing_off() {
    let mut config = config();
    config.place.pick = crate::config::PickRule::RoundRobin;
    let mut world = World::new(config, &[("a", Host::new(1_000, 400)), ("b", Host::new(1_000, 0))]);
    world.run(30);
    assert_eq!(world.hosts[&id("a")].moved.get(), 0);
    let said = &world.controller.explanation().moves;
    assert!(said.iter().any(|said| said.reason == "refused" && said.text.contains("pick_rule")), "{said:?}");
}
