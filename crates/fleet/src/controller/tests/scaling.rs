use super::*;

fn policy() -> ScaleConfig {
    ScaleConfig { window: Duration::from_secs(60), ..ScaleConfig::default() }
}

fn serving(world: &World) -> usize {
    world.hosts.len()
}

#[test]
fn the_minimum_is_started_at_once() {
    let mut world = World::new(scaled(ScaleConfig { min: 2, ..policy() }), &[]);
    world.run(1);
    let created: Vec<_> = world.booting.iter().map(|(_, server)| server.to_string()).collect();
    assert_eq!(created, ["chat-1", "chat-2"]);
    world.run(8);
    assert_eq!(world.status("chat-1").state, State::Active);
    world.run(120);
    assert_eq!(serving(&world), 2, "and it stays there: {:?}", world.events());
}

#[test]
fn load_starts_servers_and_its_fall_drains_and_stops_them() {
    let mut world = World::new(scaled(policy()), &[]);
    world.run(10);
    for _ in 0..200 {
        world.arrive(10);
        world.run(1);
    }
    assert_eq!(world.homeless, 0, "{:?}", world.counts());
    // 2,000 at 0.75 of 1,000 each.
    assert_eq!(serving(&world), 3, "{:?}", world.counts());
    world.run(120);
    let counts = world.counts();
    assert!(counts.iter().all(|count| (600..=734).contains(count)), "{counts:?}");
    for _ in 0..190 {
        world.depart(10);
        world.run(1);
    }
    world.until(600, |world| serving(world) == 1);
    assert_eq!(world.counts(), [100]);
    assert_eq!(world.homeless, 0);
    assert!(world.kinds("scale_down") >= 2 && world.kinds("stopped") >= 2);
    assert_eq!(world.kinds("scale_down"), world.kinds("stopped"));
    assert!(world.stored.is_empty(), "forgotten with the server: {:?}", world.stored);
}

#[test]
fn never_below_the_minimum_nor_above_the_maximum() {
    let mut world = World::new(scaled(ScaleConfig { min: 2, max: 3, ..policy() }), &[]);
    world.run(10);
    for _ in 0..300 {
        world.arrive(20);
        world.run(1);
        assert!(world.controller.servers(world.now).len() <= 3);
    }
    assert!(world.said().contains(&"at_max".to_string()), "{:?}", world.said());
    for _ in 0..300 {
        world.depart(40);
        world.run(1);
        assert!(serving(&world) >= 2);
    }
}

#[test]
fn load_that_returns_rescues_before_anything_is_created() {
    let mut config = scaled(policy());
    config.moves.soft = Duration::from_secs(60);
    let mut world = World::new(config, &[]);
    world.run(10);
    world.arrive(900);
    world.run(60);
    assert_eq!(serving(&world), 2);
    world.depart(700);
    world.until(200, |world| world.kinds("scale_down") == 1);
    let created = world.kinds("scale_up");
    world.arrive(700);
    world.run(10);
    assert_eq!(world.kinds("rescue"), 1);
    assert_eq!(world.kinds("scale_up"), created);
    assert!(world.stored.values().all(|record| record.intent.is_none()));
    assert_eq!(world.homeless, 0);
}

#[test]
fn a_drain_ordered_by_an_operator_is_not_rescued_and_its_server_is_replaced() {
    let mut world = World::new(scaled(ScaleConfig { min: 2, ..policy() }), &[]);
    world.run(20);
    world.arrive(100);
    world.run(5);
    world.order(Order::Drain { server: id("chat-1"), force: false }).unwrap();
    world.arrive(1_500);
    world.run(60);
    assert_eq!(world.kinds("rescue"), 0);
    assert!(!world.hosts.contains_key(&id("chat-1")), "empty, so it was stopped");
    assert!(serving(&world) >= 2);
}

#[test]
fn a_fixed_number_overrides_the_policy_within_its_limits() {
    let mut world = World::new(scaled(ScaleConfig { min: 1, max: 5, ..policy() }), &[]);
    world.run(10);
    assert_eq!(world.order(Order::Scale { servers: Some(9) }).unwrap_err().reason(), "out_of_range");
    world.order(Order::Scale { servers: Some(3) }).unwrap();
    assert_eq!(world.fixed, Some(3));
    world.run(20);
    assert_eq!(serving(&world), 3);
    world.run(200);
    assert_eq!(serving(&world), 3, "idle, and fixed all the same");
    world.order(Order::Scale { servers: Some(1) }).unwrap();
    world.run(40);
    assert_eq!(serving(&world), 1);
    world.order(Order::Scale { servers: None }).unwrap();
    assert_eq!(world.fixed, None);
}

#[test]
fn a_fixed_number_of_none_ends_every_server_once_it_is_empty_and_starts_no_other() {
    let mut world = World::new(scaled(ScaleConfig { min: 2, max: 5, ..policy() }), &[]);
    world.until(60, |world| serving(world) >= 2);
    world.run(3);
    world.arrive(3);
    world.order(Order::Scale { servers: Some(0) }).unwrap();
    world.run(60);
    let held: u32 = world.counts().iter().sum();
    assert_eq!(held, 3, "nobody is thrown out: {:?}", world.live());
    world.depart(3);
    world.until(60, |world| world.hosts.is_empty());
    world.run(120);
    assert!(world.hosts.is_empty() && world.booting.is_empty(), "none is started again");
    world.order(Order::Scale { servers: None }).unwrap();
    world.until(60, |world| serving(world) >= 2);
}

#[test]
fn boots_that_fail_in_a_row_stop_creation_and_say_so() {
    let mut world = World::new(scaled(policy()), &[]);
    world.provider_works = false;
    world.until(10, |world| world.kinds("scale_up") > 0);
    for _ in 0..3 {
        let why = "exit status 1: no such file".to_string();
        let restart_at = Some(world.now + Duration::from_secs(1));
        let url = Arc::from("ws://x");
        world.handle(Input::Provided(Provided::Running { server: id("chat-1"), url }));
        world.handle(Input::Provided(Provided::Exited { server: id("chat-1"), why, restart_at }));
        world.run(2);
    }
    assert_eq!((world.kinds("exited"), world.kinds("boots_failed")), (3, 1));
    let created = world.kinds("scale_up");
    world.run(50);
    assert_eq!(world.kinds("scale_up"), created);
    assert!(world.said().contains(&"boots_failed".to_string()), "{:?}", world.said());
    let outcome = Err("connection refused".to_string());
    world.handle(Input::Checked(Checked { server: id("chat-1"), outcome }));
    let status = world.status("chat-1");
    assert_eq!(status.trouble.as_deref(), Some("exit status 1: no such file"));
    assert_eq!(status.state, State::Starting);
}

#[test]
fn a_dead_process_counts_nothing_and_its_clients_are_expected_back() {
    let mut world = World::new(scaled(ScaleConfig { min: 3, ..policy() }), &[]);
    world.run(20);
    world.arrive(900);
    world.run(5);
    let killed = world.hosts.remove(&id("chat-2")).unwrap();
    let restart_at = Some(world.now + Duration::from_secs(1));
    let why = "signal 9".to_string();
    world.handle(Input::Provided(Provided::Exited { server: id("chat-2"), why, restart_at }));
    assert_eq!(world.status("chat-2").connections, Connections::ZERO);
    assert_eq!(world.status("chat-2").health, Health::Dead);
    world.arrive(killed.live);
    world.run(5);
    assert_eq!(world.kinds("scale_up"), 3, "its share is back on the others, not needed twice");
    world.join("chat-2", Host { inc: killed.inc + 1, ..Host::new(1_000, 0) });
    world.run(60);
    let counts = world.counts();
    assert!(counts.iter().all(|count| (270..=330).contains(count)), "{counts:?}");
}

#[test]
fn doubt_freezes_down_and_not_up() {
    let mut world = World::new(scaled(ScaleConfig { min: 1, ..policy() }), &[]);
    world.run(10);
    world.arrive(1_500);
    world.run(60);
    let before = serving(&world);
    world.depart(1_450);
    world.run(58);
    world.hosts.get_mut(&id("chat-1")).unwrap().answers = false;
    world.run(20);
    assert_eq!(serving(&world), before, "{:?}", world.said());
    assert!(world.said().contains(&"down_frozen".to_string()), "{:?}", world.said());
    world.hosts.get_mut(&id("chat-1")).unwrap().answers = true;
    world.until(200, |world| serving(world) < before);
}

#[test]
fn dry_run_decides_and_does_nothing() {
    let mut world = World::new(scaled(ScaleConfig { dry_run: true, ..policy() }), &[]);
    world.run(20);
    assert!(world.booting.is_empty() && world.hosts.is_empty());
    assert!(world.said().contains(&"dry_run".to_string()), "{:?}", world.said());
}

#[test]
fn a_stop_in_progress_resumes_after_a_restart() {
    let mut world = World::new(scaled(policy()), &[]);
    world.run(10);
    let record = ServerRecord {
        server: id("chat-7"),
        generation: Generation(3),
        intent: Some(Intent::Stop { ordered_at: world.now }),
    };
    world.stored.insert(id("chat-7"), record);
    world.restart();
    world.outputs.clear();
    let url: Arc<str> = Arc::from("ws://chat-7");
    world.handle(Input::Provided(Provided::Running { server: id("chat-7"), url: url.clone() }));
    world.handle(Input::Provided(Provided::Running { server: id("chat-1"), url }));
    world.introduce("chat-1");
    world.run(10);
    assert!(
        world
            .outputs
            .iter()
            .any(|output| matches!(output, Output::Terminate(server) if *server == id("chat-7")))
    );
    assert!(
        !world.outputs.iter().any(|output| matches!(output, Output::Create(_))),
        "what runs is not started twice"
    );
    assert!(!world.stored.contains_key(&id("chat-7")));
}

/// What scale sees of 100 connections over three servers of 50 while they move, with reports up to 1.1 s old.
#[test]
fn connections_that_move_are_in_demand_once() {
    let config = scaled(ScaleConfig { min: 3, max: 10, ..policy() });
    let mut world =
        World::new(config, &[("a", Host::new(50, 34)), ("b", Host::new(50, 33)), ("c", Host::new(50, 33))]);
    world.run(5);
    for round in 0..200u32 {
        // One of each server's connections moves to the next: its tunnels tell at once, its report a second later.
        let names = ["a", "b", "c"];
        let (from, to) = (id(names[(round % 3) as usize]), id(names[((round / 2 + 1) % 3) as usize]));
        let moving = world.hosts[&from].live.min(12);
        world.hosts.get_mut(&from).unwrap().live -= moving;
        world.hosts.get_mut(&to).unwrap().live += moving;
        world.now = world.now + Duration::from_millis(10);
        world.view();
        // The receiver's report is fresh, the source's is not.
        world.report(&to);
        let demand = world.controller.demand(world.now);
        assert!(demand.total() <= Connections(100), "round {round}: {demand:?}");
        world.tick();
    }
}
