use crate::gateway::{Ask, Gateway, GatewayConfig, PlacementId};

use super::*;

fn three() -> World {
    let host = || Host::new(1_000, 10);
    let mut world = World::new(config(), &[("a", host()), ("b", host()), ("c", host())]);
    world.run(3);
    world
}

impl World {
    /// A new controller that knows what the last one published.
    pub(super) fn restart_recalling(&mut self) {
        self.restart();
        if let Some(table) = &self.table {
            self.controller.recall(table, self.now);
        }
        self.outputs.clear();
    }

    /// Lets time pass in which nobody says anything.
    fn idle(&mut self, ms: u64) {
        let until = self.now + Duration::from_millis(ms);
        while let Some(due) = self.controller.poll_timeout().filter(|due| *due <= until) {
            self.now = due.max(self.now);
            self.controller.handle_timeout(self.now);
            self.perform();
        }
        self.now = until;
    }

    fn comes_back(&mut self, name: &str) {
        self.introduce(name);
        self.report(&id(name));
    }

    fn published(&self) -> bool {
        self.outputs.iter().any(|output| matches!(output, Output::Publish(_)))
    }

    fn in_table(&self) -> Vec<(String, State, Health)> {
        let view = |view: &crate::snapshot::ServerView| (view.id.to_string(), view.state, view.health);
        self.table.iter().flat_map(|table| &table.servers).map(view).collect()
    }
}

fn well(name: &str) -> (String, State, Health) {
    (name.to_string(), State::Active, Health::Ok)
}

#[test]
fn nothing_is_published_until_every_recalled_server_was_heard_and_then_at_once() {
    let mut world = three();
    world.restart_recalling();
    world.idle(2_000);
    for name in ["a", "b"] {
        world.comes_back(name);
        world.idle(400);
    }
    assert!(!world.published(), "gateways hold the fuller table");
    world.comes_back("c");
    assert_eq!(world.in_table(), [well("a"), well("b"), well("c")]);
}

#[test]
fn a_hello_alone_does_not_end_the_wait_for_a_report() {
    let mut world = three();
    world.restart_recalling();
    ["a", "b", "c"].iter().for_each(|name| world.introduce(name));
    world.idle(1_000);
    assert!(!world.published());
}

#[test]
fn who_is_not_back_after_the_longest_redial_is_suspect_and_the_wait_is_over() {
    let mut world = three();
    world.restart_recalling();
    for _ in 0..5 {
        world.idle(1_000);
        world.report(&id("a"));
        world.report(&id("b"));
    }
    assert!(!world.published());
    world.idle(1_000);
    let lost = ("c".to_string(), State::Active, Health::Suspect);
    assert_eq!(world.in_table(), [well("a"), well("b"), lost]);
    world.comes_back("c");
    world.idle(200);
    assert_eq!(world.in_table()[2], well("c"));
}

#[test]
fn a_server_that_spoke_and_fell_silent_again_is_suspect_after_the_usual_time() {
    let mut world = three();
    world.restart_recalling();
    world.comes_back("a");
    world.idle(1_400);
    assert_eq!(world.status("a").health, Health::Ok);
    world.idle(200);
    assert_eq!((world.status("a").health, world.status("b").health), (Health::Suspect, Health::Ok));
}

#[test]
fn an_order_publishes_at_once_and_with_all_recalled_servers() {
    let mut world = three();
    world.restart_recalling();
    world.comes_back("a");
    world.order(Order::Cordon { server: id("c") }).unwrap();
    let cordoned = ("c".to_string(), State::Cordoned, Health::Ok);
    assert_eq!(world.in_table(), [well("a"), well("b"), cordoned]);
}

#[test]
fn a_stored_intent_counts_more_than_what_was_published() {
    let mut world = three();
    world.order(Order::Drain { server: id("b"), force: true }).unwrap();
    let stored = world.stored.clone();
    world.order(Order::Undrain { server: id("b") }).unwrap();
    world.stored = stored;
    world.restart_recalling();
    assert_eq!(world.status("b").state, State::Draining);
    // Nobody counted there in this term, so it is not empty.
    world.view();
    world.idle(2_000);
    assert_eq!(world.status("b").state, State::Draining);
}

#[test]
fn a_server_that_was_not_well_has_to_show_itself() {
    let mut world = three();
    world.with_host("b", |host| host.answers = false);
    world.run(3);
    world.restart_recalling();
    world.comes_back("a");
    world.comes_back("c");
    assert_eq!(world.in_table(), [well("a"), well("c")], "nobody waits for b");
}

#[test]
fn a_recalled_server_found_dead_by_a_gateway_is_not_waited_for() {
    let mut world = three();
    world.restart_recalling();
    world.comes_back("a");
    world.comes_back("c");
    world.now = world.now + TICK;
    let refused = ServerCounts {
        server: id("b"),
        connections: Connections::ZERO,
        pending: Connections::ZERO,
        placed: 1,
        failed: 1,
        refused: 1,
        failed_in_a_row: 1,
        probation: false,
        heard: None,
    };
    world.handle(Input::Viewed(GatewayView {
        gateway: GatewayId::new("g").unwrap(),
        fleet: world.config.id.clone(),
        at: world.now,
        servers: vec![refused],
        waiting: 0,
        refused_prefixes: 0,
    }));
    assert_eq!(world.in_table(), [well("a"), ("b".to_string(), State::Active, Health::Dead), well("c")]);
}

#[test]
fn a_server_whose_process_is_started_again_is_waited_for_and_one_that_stays_down_is_not() {
    for (restart, published) in [(true, false), (false, true)] {
        let mut world = three();
        world.restart_recalling();
        world.comes_back("a");
        world.comes_back("b");
        let restart_at = restart.then(|| world.now + Duration::from_millis(100));
        let exited = Provided::Exited { server: id("c"), why: "killed".to_string(), restart_at };
        world.handle(Input::Provided(exited));
        world.idle(500);
        assert_eq!(world.published(), published);
        world.with_host("c", |host| (host.inc, host.seq) = (9, 0));
        world.comes_back("c");
        world.idle(100);
        assert_eq!(world.in_table()[2], well("c"));
    }
}

#[test]
fn a_listed_server_whose_agent_does_not_come_back_is_checked_by_gateways() {
    let mut world = three();
    world.restart_recalling();
    world.with_host("c", |host| host.agent = false);
    world.introduce("c");
    world.idle(6_000);
    let executor = |world: &World| {
        world.table.as_ref().unwrap().servers.iter().find(|view| view.id == id("c")).unwrap().executor
    };
    assert_eq!(executor(&world), Executor::Gateways);
    world.report(&id("c"));
    world.idle(200);
    assert_eq!(world.in_table()[2], well("c"));
}

#[test]
fn a_server_that_comes_back_in_another_life_starts_anew() {
    let mut world = three();
    world.restart_recalling();
    world.with_host("c", |host| (host.inc, host.seq) = (9, 0));
    world.introduce("c");
    assert_eq!(world.status("c").state, State::Starting);
    ["a", "b", "c"].iter().for_each(|name| world.report(&id(name)));
    assert_eq!(world.in_table(), [well("a"), well("b"), well("c")]);
}

#[test]
fn a_fleet_is_not_scaled_while_servers_are_awaited() {
    let scale = ScaleConfig { min: 1, max: 9, ..ScaleConfig::default() };
    let mut world = World::new(scaled(scale), &[]);
    world.makes = (100, Duration::from_secs(2));
    world.run(20);
    let servers = world.hosts.len();
    assert!(servers >= 1);
    world.arrive(60);
    world.run(2);
    world.restart_recalling();
    world.idle(5_900);
    assert!(!world.outputs.iter().any(|output| matches!(output, Output::Create(_))), "{:?}", world.said());
}

/// One gateway and one controller, both begun anew with what the gateway obeyed last; agents come back one by one.
struct Return {
    world: World,
    gateway: Gateway,
    open: Vec<(ServerId, PlacementId)>,
}

impl Return {
    fn new(world: World, rng: Rng) -> Self {
        let left = world.table.clone().unwrap();
        let config = GatewayConfig { id: GatewayId::new("g").unwrap(), fleet: world.config.id.clone() };
        let mut gateway = Gateway::new(config, rng, world.now);
        gateway.recall(&left, world.now);
        Self { world, gateway, open: Vec::new() }
    }

    /// One more client; the handshake before the last one is done by now.
    fn arrives(&mut self) {
        let now = self.world.now;
        let placement = self.gateway.place(&Ask::default(), now).expect("everybody is placed at once");
        self.open.push((placement.server, placement.id));
        if self.open.len() > 2 {
            let (server, id) = self.open.remove(0);
            self.gateway.connected(id, now);
            self.world.hosts.get_mut(&server).unwrap().live += 1;
        }
    }

    fn view(&mut self) {
        let view = self.gateway.view(self.world.now);
        self.world.handle(Input::Viewed(view));
    }

    fn passes(&mut self, ms: u64) {
        let before = self.world.table.clone().unwrap();
        self.world.idle(ms);
        let table = self.world.table.clone().unwrap();
        if !Arc::ptr_eq(&before, &table) {
            self.gateway.install(&table, self.world.now);
        }
        self.gateway.handle_timeout(self.world.now);
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        failure_persistence: None, cases: 64, ..proptest::prelude::ProptestConfig::default()
    })]

    #[test]
    fn after_a_restart_nobody_waits_and_no_server_gets_more_than_a_fifth_above_its_share(
        backs in proptest::collection::vec(0..5_000u64, 2..12),
        seed in 0..u64::MAX,
        every in 5..40u64,
    ) {
        let names: Vec<String> = (0..backs.len()).map(|i| format!("s{i:02}")).collect();
        let hosts: Vec<(&str, Host)> = names.iter().map(|name| (name.as_str(), Host::new(1_000, 0))).collect();
        let mut world = World::new(config(), &hosts);
        world.run(3);
        world.restart_recalling();
        let start = world.now;
        let mut both = Return::new(world, Rng::new(seed));
        let mut clock = 0;
        let mut placed = 0_u32;
        while clock < 7_000 {
            both.passes(every);
            let before = clock;
            clock += every;
            both.arrives();
            placed += 1;
            if clock / 250 != before / 250 {
                both.view();
            }
            for (name, back) in names.iter().zip(&backs) {
                let (was, is) = (before.saturating_sub(*back) / 1_000, clock.saturating_sub(*back) / 1_000);
                if before <= *back && *back < clock {
                    both.world.comes_back(name);
                } else if *back < clock && was != is {
                    both.world.report(&id(name));
                }
            }
            let most = both.world.counts().into_iter().max().unwrap();
            let fair = placed.div_ceil(names.len() as u32);
            assert!(most <= fair + fair / 5 + 1, "{most} of {placed}, {:?} after {:?}", both.world.counts(), both.world.now.since(start));
        }
    }
}
