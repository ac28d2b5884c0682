use proptest::prelude::*;

use super::*;

fn report(inc: u64, seq: u64, connections: u32) -> Report {
    Report {
        inc: Incarnation(inc),
        seq,
        connections: Connections(connections),
        movable: Connections::ZERO,
        raw: Measures::default(),
        averaged: None,
        totals: None,
    }
}

fn one() -> World {
    let mut world = World::new(config(), &[("a", Host { inc: 5, ..Host::new(1_000, 10) })]);
    world.run(2);
    world
}

#[test]
fn an_older_report_or_life_changes_nothing() {
    let mut world = one();
    let seq = world.hosts[&id("a")].seq;
    world.handle(Input::Reported { server: id("a"), report: report(5, seq + 3, 77) });
    assert_eq!(world.status("a").connections, Connections(77));
    for (inc, seq) in [(5, seq + 3), (5, seq + 2), (4, 1_000), (0, 1_000)] {
        world.handle(Input::Reported { server: id("a"), report: report(inc, seq, 5) });
        assert_eq!(world.status("a").connections, Connections(77), "{inc}.{seq}");
    }
    world.handle(Input::Reported { server: id("a"), report: report(6, 1, 3) });
    assert_eq!((world.status("a").connections, world.status("a").inc), (Connections(3), Incarnation(6)));
}

#[test]
fn a_registration_of_an_older_life_changes_nothing() {
    let mut world = one();
    world.hosts.get_mut(&id("a")).unwrap().inc = 4;
    world.introduce("a");
    assert_eq!(world.status("a").inc, Incarnation(5));
    assert_eq!(world.controller.incarnation(&id("a")), Some(Incarnation(5)));
}

#[test]
fn an_agent_that_applied_a_higher_order_is_overtaken() {
    let mut world = one();
    let applied = Fence { epoch: Epoch(9), generation: Generation(40) };
    world.handle(Input::Registered(Registration {
        id: id("b"),
        inc: Incarnation(1),
        url: Arc::from("ws://b"),
        public_url: None,
        capacity: None,
        labels: Vec::new(),
        zone: None,
        executor: Executor::Agent,
        applied: Some(applied),
    }));
    assert!(world.controller.desired(&id("b")).unwrap().fence > applied);
}

#[test]
fn a_server_that_passed_a_check_before_its_agent_spoke_stays_up() {
    let mut world = World::new(config(), &[]);
    let url = Arc::from("ws://a");
    world.handle(Input::Provided(Provided::Running { server: id("a"), url }));
    world.handle(Input::Checked(Checked { server: id("a"), outcome: Ok(()) }));
    assert_eq!(world.status("a").state, State::Active);
    world.join("a", Host { inc: 9, ..Host::new(1_000, 0) });
    assert_eq!((world.status("a").state, world.status("a").inc), (State::Active, Incarnation(9)));
    assert_eq!(world.kinds("active"), 1);
}

#[test]
fn a_server_that_nobody_lists_is_forgotten_but_not_what_an_operator_ordered_of_it() {
    let mut world = World::new(config(), &[("a", Host::new(10, 0)), ("b", Host::new(10, 0))]);
    world.run(2);
    world.order(Order::Cordon { server: id("b") }).unwrap();
    for host in world.hosts.values_mut() {
        host.answers = false;
    }
    world.run(610);
    let known: Vec<ServerId> =
        world.controller.servers(world.now).into_iter().map(|status| status.id).collect();
    assert_eq!(known, [id("b")]);
    assert_eq!(world.kinds("left"), 1);
    // The shell remembers more of a server than what is stored, so it must hear of every one that is gone.
    assert!(world.outputs.contains(&Output::Forget(id("a"))));
}

#[test]
fn orders_of_a_server_that_was_forgotten_go_on_above_the_old_ones() {
    let mut world = World::new(config(), &[("a", Host::new(10, 0)), ("b", Host::new(10, 0))]);
    world.run(2);
    world.order(Order::Cordon { server: id("a") }).unwrap();
    world.order(Order::Undrain { server: id("a") }).unwrap();
    let before = world.status("a").desired.fence;
    world.hosts.get_mut(&id("a")).unwrap().answers = false;
    world.run(610);
    assert_eq!(world.kinds("left"), 1);
    // One that posts its reports does not say what it applied.
    world.hosts.get_mut(&id("a")).unwrap().answers = true;
    world.introduce("a");
    world.order(Order::Cordon { server: id("a") }).unwrap();
    assert!(world.status("a").desired.fence > before);
}

#[test]
fn silence_pins_a_server_and_the_next_report_frees_it() {
    let mut world = World::new(config(), &[("a", Host::new(1_000, 10)), ("b", Host::new(1_000, 10))]);
    world.run(3);
    world.hosts.get_mut(&id("a")).unwrap().answers = false;
    world.run(2);
    let status = world.status("a");
    assert_eq!((status.health, status.bound_by), (Health::Suspect, Some(Cause::Suspect)));
    assert_eq!(world.table.as_ref().unwrap().servers[0].health, Health::Suspect);
    world.arrive(20);
    assert_eq!(world.counts(), [10, 30]);
    world.hosts.get_mut(&id("a")).unwrap().answers = true;
    world.run(2);
    assert_eq!(world.status("a").health, Health::Ok);
    assert_eq!(world.kinds("suspect"), 1, "told once: {:?}", world.events());
}

#[test]
fn any_message_ends_silence() {
    let said = |world: &mut World, what: u8| {
        let (server, fence) = (id("a"), world.status("a").desired.fence);
        world.handle(match what {
            0 => Input::Spoke { server },
            1 => Input::Applied { server, fence },
            _ => Input::Drained { server, fence: Fence::default() },
        });
    };
    for what in 0..3 {
        let mut world = World::new(config(), &[("a", Host::new(1_000, 10)), ("b", Host::new(1_000, 10))]);
        world.run(3);
        world.hosts.get_mut(&id("a")).unwrap().answers = false;
        world.run(2);
        assert_eq!(world.status("a").health, Health::Suspect);
        said(&mut world, what);
        assert_eq!(world.status("a").health, Health::Ok, "{what}");
        world.run(2);
        assert_eq!(world.status("a").health, Health::Suspect, "and silent it is again");
    }
}

#[test]
fn a_broken_link_is_suspect_at_once_but_not_for_an_older_life() {
    let mut world = one();
    world.handle(Input::LinkLost { server: id("a"), inc: Incarnation(4) });
    assert_eq!(world.status("a").health, Health::Ok);
    world.handle(Input::LinkLost { server: id("a"), inc: Incarnation(5) });
    assert_eq!(world.status("a").health, Health::Suspect);
}

#[test]
fn a_starting_server_takes_nothing_before_its_first_report() {
    let mut world = World::new(config(), &[]);
    world.hosts.insert(id("a"), Host::new(10, 0));
    world.introduce("a");
    world.tick();
    let status = world.status("a");
    assert_eq!((status.state, status.bound_by), (State::Starting, Some(Cause::Starting)));
    world.run(1);
    assert_eq!(world.status("a").state, State::Active);
    assert_eq!(world.kinds("active"), 1);
}

#[test]
fn three_failures_or_a_refused_connect_at_a_gateway_make_a_server_dead() {
    for (refused, in_a_row, health) in [(0, 2, Health::Ok), (0, 3, Health::Dead), (1, 1, Health::Dead)] {
        let mut world = one();
        let view = |at: Instant| GatewayView {
            gateway: GatewayId::new("other").unwrap(),
            fleet: FleetId::new("chat").unwrap(),
            at,
            servers: vec![ServerCounts {
                server: id("a"),
                connections: Connections(1),
                pending: Connections::ZERO,
                placed: 1,
                failed: 1,
                refused,
                failed_in_a_row: in_a_row,
                probation: false,
                heard: None,
            }],
            waiting: 0,
            refused_prefixes: 0,
        };
        world.now = world.now + Duration::from_millis(10);
        let at = world.now;
        world.handle(Input::Viewed(view(at)));
        assert_eq!(world.status("a").health, health, "{refused} {in_a_row}");
        world.report(&id("a"));
        assert_eq!(world.status("a").health, Health::Ok, "the next report ends it");
        world.handle(Input::Viewed(view(at)));
        assert_eq!(world.status("a").health, Health::Ok, "an older view changes nothing");
    }
}

#[test]
fn a_late_clock_blames_itself_before_the_servers() {
    let mut world = one();
    let paused = world.now + Duration::from_secs(20);
    world.controller.handle_timeout(paused);
    world.now = paused;
    world.perform();
    assert_eq!(world.status("a").health, Health::Ok, "its reports wait behind us");
    world.controller.handle_timeout(paused + Duration::from_secs(1));
    world.now = paused + Duration::from_secs(1);
    world.perform();
    assert_eq!(world.status("a").health, Health::Suspect);
}

#[test]
fn gateways_keep_their_fuller_table_while_servers_come_back_after_a_restart() {
    let mut world = World::new(config(), &[("a", Host::new(1_000, 10)), ("b", Host::new(1_000, 10))]);
    world.run(3);
    world.restart();
    world.outputs.clear();
    world.introduce("a");
    world.view();
    world.run(1);
    assert!(!world.outputs.iter().any(|output| matches!(output, Output::Publish(_))));
    world.introduce("b");
    world.run(1);
    let table = world.table.clone().unwrap();
    assert!(world.outputs.iter().any(|output| matches!(output, Output::Publish(_))));
    assert!(table.servers.iter().all(|server| server.state == State::Active), "{table:?}");
}

#[test]
fn nothing_moves_while_orders_of_a_former_term_may_be_in_force() {
    let mut world = World::new(config(), &[("a", Host::new(1_000, 400)), ("b", Host::new(1_000, 0))]);
    world.run(3);
    world.restart();
    world.introduce("a");
    world.introduce("b");
    world.run(4);
    assert!(world.hosts.values().all(|host| host.desired.as_ref().unwrap().0.moves_per_s.is_zero()));
    world.run(4);
    assert!(world.hosts[&id("a")].desired.as_ref().unwrap().0.moves_per_s.get() > 0.0);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn reports_late_twice_or_reordered_give_the_same(
        reports in prop::collection::vec((1..3u64, 1..6u64, 0..500u32, 0.0..1.0f64), 1..10),
        order in prop::collection::vec(0..10usize, 1..30),
    ) {
        // One content for each (inc, seq), as a server sends it.
        let mut contents = BTreeMap::new();
        for (inc, seq, connections, cpu) in &reports {
            contents.entry((*inc, *seq)).or_insert((*connections, *cpu));
        }
        let all: Vec<Report> = contents
            .iter()
            .map(|((inc, seq), (connections, cpu))| Report {
                raw: Measures { cpu: Some(*cpu), ..Measures::default() },
                ..report(*inc, *seq, *connections)
            })
            .collect();
        let result = |reports: Vec<Report>| {
            let mut world = World::new(config(), &[("a", Host { inc: 1, ..Host::new(1_000, 0) })]);
            for report in reports {
                world.handle(Input::Reported { server: id("a"), report });
            }
            world.controller.handle_timeout(world.now + Duration::from_secs(2));
            world.perform();
            world.controller.servers(world.now)
        };
        let mut shuffled: Vec<Report> = order.iter().map(|i| all[i % all.len()].clone()).collect();
        shuffled.extend(all.iter().rev().cloned());
        prop_assert_eq!(result(all), result(shuffled));
    }
}

#[test]
fn silence_is_published_at_the_instant_it_is_a_second_and_a_half() {
    let mut world = World::new(config(), &[("a", Host::new(1_000, 5)), ("b", Host::new(1_000, 5))]);
    world.run(4);
    world.now = world.now + Duration::from_millis(137);
    world.report(&id("a"));
    let last = world.now;
    // From here on it is driven exactly when it asks for it; b and the gateway go on.
    while world.status("a").health == Health::Ok {
        world.now = world.controller.poll_timeout().unwrap().max(world.now + Duration::from_millis(1));
        assert!(world.now <= last + Duration::from_millis(1_500), "{:?} late", world.now.since(last));
        world.outputs.clear();
        world.controller.handle_timeout(world.now);
        world.perform();
        world.report(&id("b"));
    }
    assert_eq!(world.now, last + Duration::from_millis(1_500));
    let published = world.outputs.iter().any(|output| match output {
        Output::Publish(table) => table.servers[0].health == Health::Suspect,
        _ => false,
    });
    assert!(published, "gateways hear of it in the same instant");
}

#[test]
fn clients_are_told_the_public_url_that_the_agent_says_else_the_configured_one() {
    let mut world = one();
    let register = |world: &mut World, inc: u64, url: Option<&str>| {
        world.handle(Input::Registered(Registration {
            id: id("a"),
            inc: Incarnation(inc),
            url: Arc::from("ws://a"),
            public_url: url.map(Arc::from),
            capacity: None,
            labels: Vec::new(),
            zone: None,
            executor: if inc == 0 { Executor::Gateways } else { Executor::Agent },
            applied: None,
        }));
        world.run(1);
        let table = world.table.clone().unwrap();
        (table.servers[0].inc.get(), table.servers[0].public_url.as_deref().map(String::from))
    };
    let url = |text: &str| Some(String::from(text));
    assert_eq!(register(&mut world, 0, None), (5, None));
    assert_eq!(register(&mut world, 5, Some("wss://a.example")), (5, url("wss://a.example")));
    assert_eq!(register(&mut world, 0, Some("wss://listed")), (5, url("wss://a.example")));
    assert_eq!(register(&mut world, 5, Some("wss://b.example")), (5, url("wss://b.example")));
    assert_eq!(register(&mut world, 5, None), (5, url("wss://listed")));
    assert_eq!(register(&mut world, 0, None), (5, None));
}

#[test]
fn of_a_server_whose_agent_only_reports_the_gateways_close() {
    let mut world = one();
    let executor = |world: &World| world.table.as_ref().unwrap().servers[0].executor;
    assert_eq!(executor(&world), Executor::Agent);
    let register = |world: &mut World, executor| {
        world.handle(Input::Registered(Registration {
            id: id("a"),
            inc: Incarnation(5),
            url: Arc::from("ws://a"),
            public_url: None,
            capacity: None,
            labels: Vec::new(),
            zone: None,
            executor,
            applied: None,
        }));
        world.run(2);
    };
    register(&mut world, Executor::Gateways);
    assert_eq!(executor(&world), Executor::Gateways, "its reports change nothing of that");
    assert_eq!(world.status("a").state, State::Active);
    register(&mut world, Executor::Agent);
    assert_eq!(executor(&world), Executor::Agent, "another agent of it can close");
}
