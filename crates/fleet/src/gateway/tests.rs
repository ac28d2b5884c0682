use alloc::string::String;
use alloc::vec;

use evenkeel_model::{Desired, Fence, Incarnation};

use super::*;
use crate::config::{HealthConfig, PickRule};
use crate::snapshot::{Executor, Reported};

mod recall;

pub(super) fn at(ms: u64) -> Instant {
    Instant::from_millis(1_000_000 + ms)
}

pub(super) fn server(name: &str, capacity: u32) -> ServerView {
    ServerView {
        id: ServerId::new(name).unwrap(),
        inc: Incarnation(1),
        url: Arc::from(alloc::format!("ws://{name}")),
        public_url: None,
        capacity: Connections(capacity),
        reported: None,
        elsewhere: Connections::ZERO,
        ceilings: Vec::new(),
        health: Health::Ok,
        state: State::Active,
        admit: PerSecond::new(200.0),
        open_since: Instant::ZERO,
        executor: Executor::Agent,
        desired: Desired::active(Fence::default()),
    }
}

fn snapshot(servers: Vec<ServerView>, now: Instant) -> Arc<Snapshot> {
    Arc::new(snapshot_of(servers, 1, now))
}

fn snapshot_of(servers: Vec<ServerView>, gateways: u32, now: Instant) -> Snapshot {
    Snapshot {
        fleet: FleetId::new("chat").unwrap(),
        at: now,
        servers,
        gateways,
        placed_per_s: PerSecond::ZERO,
        health: HealthConfig::default(),
        place: PlaceConfig { admit_per_s: PerSecond::new(200.0), ..PlaceConfig::default() },
    }
}

pub(super) struct Front {
    pub(super) gateway: Gateway,
    now: u64,
}

impl Front {
    pub(super) fn new(servers: Vec<ServerView>) -> Self {
        Self::with(snapshot_of(servers, 1, at(0)))
    }

    fn with(snapshot: Snapshot) -> Self {
        let config = GatewayConfig { id: GatewayId::new("g").unwrap(), fleet: FleetId::new("chat").unwrap() };
        let mut gateway = Gateway::new(config, Rng::new(1), at(0));
        gateway.install(&Arc::new(snapshot), at(0));
        Self { gateway, now: 0 }
    }

    pub(super) fn now(&self) -> Instant {
        at(self.now)
    }

    pub(super) fn pass(&mut self, ms: u64) {
        let end = self.now + ms;
        while let Some(due) = self.gateway.poll_timeout().filter(|due| *due <= at(end)) {
            self.gateway.handle_timeout(due);
        }
        self.now = end;
    }

    pub(super) fn install(&mut self, servers: Vec<ServerView>) {
        let now = self.now();
        self.gateway.install(&snapshot(servers, now), now);
    }

    pub(super) fn place(&mut self) -> Result<Placement, Refusal> {
        self.gateway.place(&Ask::default(), at(self.now))
    }

    fn placed_on(&mut self) -> String {
        self.place()
            .map_or_else(|refusal| String::from(refusal.reason()), |it| String::from(it.server.as_str()))
    }

    fn fail(&mut self, failure: Failure) -> String {
        let placement = self.place().unwrap();
        self.gateway.failed(placement.id, failure, at(self.now));
        String::from(placement.server.as_str())
    }

    fn connect(&mut self) -> String {
        let placement = self.place().unwrap();
        self.gateway.connected(placement.id, at(self.now));
        String::from(placement.server.as_str())
    }

    /// Connects so many, slowly enough that credit does not matter.
    fn connect_many(&mut self, count: u32) {
        for _ in 0..count {
            self.connect();
            self.pass(10);
        }
    }

    pub(super) fn counts(&self) -> Vec<(u32, u32)> {
        let (servers, _) = self.gateway.allotments();
        servers.iter().map(|server| (server.live.get(), server.pending.get())).collect()
    }

    fn key(&self, name: &str) -> ServerKey {
        self.gateway.key(&ServerId::new(name).unwrap()).unwrap()
    }
}

pub(super) fn with(mut view: ServerView, change: impl FnOnce(&mut ServerView)) -> ServerView {
    change(&mut view);
    view
}

pub(super) fn reported(view: ServerView, connections: u32, seq: u64, now: Instant) -> ServerView {
    with(view, |view| view.reported = Some(Reported { connections: Connections(connections), seq, at: now }))
}

#[test]
fn without_a_snapshot_or_a_server_there_is_none() {
    let config = GatewayConfig { id: GatewayId::new("g").unwrap(), fleet: FleetId::new("chat").unwrap() };
    let mut gateway = Gateway::new(config, Rng::new(1), at(0));
    assert_eq!(gateway.place(&Ask::default(), at(0)), Err(Refusal::NoServer));
    assert_eq!(Front::new(vec![]).place(), Err(Refusal::NoServer));
}

#[test]
fn unequal_servers_fill_in_proportion_to_capacity() {
    let mut front = Front::new(vec![server("a", 1_000), server("b", 3_000)]);
    front.connect_many(400);
    assert_eq!(front.counts(), [(100, 0), (300, 0)]);
}

#[test]
fn a_placement_counts_until_it_is_settled_or_expires() {
    let mut front = Front::new(vec![server("a", 100), server("b", 100)]);
    let (first, second) = (front.place().unwrap(), front.place().unwrap());
    assert_eq!(front.counts(), [(0, 1), (0, 1)]);
    front.gateway.connected(first.id, at(0));
    front.gateway.failed(second.id, Failure::ClientGone, at(0));
    front.gateway.failed(second.id, Failure::ClientGone, at(0));
    front.gateway.connected(second.id, at(0));
    assert_eq!(front.counts(), [(1, 0), (0, 0)], "settled once");
    let third = front.place().unwrap();
    assert_eq!(third.server.as_str(), "b");
    front.pass(9_900);
    assert_eq!(front.counts(), [(1, 0), (0, 1)]);
    front.pass(200);
    assert_eq!(front.counts(), [(1, 0), (0, 0)]);
    front.gateway.connected(third.id, front.now());
    assert_eq!(front.counts(), [(1, 0), (1, 0)], "a very late 101 is still a connection");
}

#[test]
fn no_ceiling_is_passed_between_two_refreshes() {
    let ceiling = Ceiling { at_most: Connections(3), cause: Cause::Operator };
    let a = with(server("a", 1_000), |view| view.ceilings.push(ceiling));
    let mut front = Front::new(vec![a, server("b", 2)]);
    for _ in 0..5 {
        front.connect();
    }
    assert_eq!(front.place(), Err(Refusal::NothingOpen));
    front.gateway.closed(front.key("a"), Duration::from_secs(9), at(0));
    assert_eq!(front.placed_on(), "a");
    assert_eq!(front.place(), Err(Refusal::NothingOpen));
}

#[test]
fn nothing_is_placed_on_a_server_that_is_not_open() {
    let states = [State::Starting, State::Cordoned, State::Draining, State::Drained, State::Stopped];
    for state in states {
        let mut front = Front::new(vec![with(server("a", 9), |view| view.state = state), server("b", 9)]);
        (0..9).for_each(|_| assert_eq!(front.connect(), "b", "{state}"));
        assert_eq!(front.place(), Err(Refusal::NothingOpen), "{state}");
    }
    for health in [Health::Suspect, Health::Dead] {
        let mut front = Front::new(vec![with(server("a", 9), |view| view.health = health)]);
        assert_eq!(front.place(), Err(Refusal::NothingOpen), "{health:?}");
    }
    let pinned = Ceiling { at_most: Connections(9), cause: Cause::Inelastic(crate::allot::TermKind::Memory) };
    let mut front = Front::new(vec![with(server("a", 9), |view| view.ceilings.push(pinned))]);
    assert_eq!(front.place(), Err(Refusal::NothingOpen));
}

#[test]
fn a_suspect_server_that_was_heard_takes_placements_until_it_falls_silent() {
    let mut front = Front::new(vec![server("a", 9)]);
    front.connect();
    let suspect = || {
        let ceiling = Ceiling { at_most: Connections::ZERO, cause: Cause::Suspect };
        with(server("a", 9), |view| {
            view.health = Health::Suspect;
            view.ceilings.push(ceiling);
        })
    };
    front.pass(1_000);
    front.gateway.heard(front.key("a"), front.now());
    front.install(vec![suspect()]);
    front.pass(1_450);
    assert_eq!(front.placed_on(), "a");
    front.pass(49);
    assert_eq!(front.placed_on(), "a");
    front.pass(1);
    assert_eq!(
        front.place(),
        Err(Refusal::NothingOpen),
        "1.5 s after the last byte, not at the next refresh"
    );
}

#[test]
fn a_refused_connect_closes_a_server_until_a_newer_report() {
    let view = |seq, now| vec![reported(server("a", 99), 0, seq, at(now)), server("b", 99)];
    let mut front = Front::new(view(1, 0));
    assert_eq!(front.fail(Failure::Refused), "a");
    (0..9).for_each(|_| assert_eq!(front.connect(), "b"));
    front.pass(500);
    front.install(view(1, 0));
    assert_ne!(front.placed_on(), "a", "the same report again says nothing new");
    front.install(view(2, 400));
    assert_eq!(front.placed_on(), "a");
}

#[test]
fn a_server_without_reports_is_trusted_again_after_a_passed_check() {
    let view = |health| {
        vec![
            with(server("a", 99), |view| (view.executor, view.health) = (Executor::Gateways, health)),
            server("b", 99),
        ]
    };
    let mut front = Front::new(view(Health::Ok));
    assert_eq!(front.fail(Failure::Refused), "a");
    front.pass(300);
    front.install(view(Health::Ok));
    assert_eq!(front.connect(), "b", "the controller has not heard of it yet");
    front.install(view(Health::Dead));
    assert_eq!(front.connect(), "b");
    front.install(view(Health::Ok));
    assert_eq!(front.connect(), "a");

    assert_eq!(front.fail(Failure::Refused), "a");
    front.pass(2_000);
    front.install(view(Health::Ok));
    assert_eq!(front.connect(), "a", "a controller that had time to hear of it and still trusts it");
}

#[test]
fn three_failed_handshakes_in_a_row_close_a_server() {
    let mut front = Front::new(vec![server("a", 9)]);
    front.fail(Failure::Unreachable);
    front.fail(Failure::BadAnswer);
    front.connect();
    front.fail(Failure::Unreachable);
    front.fail(Failure::Unreachable);
    front.fail(Failure::Answered);
    front.fail(Failure::ClientGone);
    front.fail(Failure::Unreachable);
    front.fail(Failure::Unreachable);
    assert_eq!(front.gateway.view(at(0)).servers[0].failed_in_a_row, 2);
    front.fail(Failure::Unreachable);
    assert_eq!(front.place(), Err(Refusal::NothingOpen), "at once");
    front.pass(100);
    front.probe_once();
    assert_eq!(front.place(), Err(Refusal::NothingOpen));
}

impl Front {
    /// Spends the one probe that a fleet found dead gets each second.
    fn probe_once(&mut self) {
        let probe = self.place().unwrap();
        self.gateway.failed(probe.id, Failure::Unreachable, self.now());
    }
}

#[test]
fn a_fleet_found_dead_is_tried_once_a_second_until_it_answers() {
    let mut front = Front::new(vec![server("a", 9), server("b", 9)]);
    front.fail(Failure::Refused);
    front.fail(Failure::Refused);
    let mut probes = 0;
    for _ in 0..100 {
        front.pass(50);
        if let Ok(probe) = front.place() {
            probes += 1;
            front.gateway.failed(probe.id, Failure::Refused, front.now());
        }
    }
    assert_eq!(probes, 5);
    front.pass(1_000);
    let probe = front.place().unwrap();
    front.gateway.connected(probe.id, front.now());
    front.pass(100);
    assert_eq!(front.placed_on(), probe.server.as_str());
}

#[test]
fn a_server_that_the_controller_calls_dead_is_tried_only_once_the_controller_is_gone() {
    let dead = || with(server("a", 9), |view| view.health = Health::Dead);
    let mut front = Front::new(vec![server("a", 9)]);
    front.fail(Failure::Refused);
    front.install(vec![dead()]);
    front.pass(2_900);
    assert_eq!(front.place(), Err(Refusal::NothingOpen));
    front.pass(300);
    assert_eq!(front.placed_on(), "a");
    assert_eq!(front.place(), Err(Refusal::NothingOpen), "once a second");
}

#[test]
fn a_server_that_says_draining_is_left_alone_and_counted_as_no_trouble() {
    let mut front = Front::new(vec![server("a", 9), server("b", 9)]);
    assert_eq!(front.fail(Failure::Draining), "a");
    (0..5).for_each(|_| assert_eq!(front.connect(), "b"));
    let view = front.gateway.view(at(0));
    assert_eq!((view.servers[0].failed, view.servers[0].failed_in_a_row), (0, 0));
    front.pass(1_100);
    assert_eq!(front.connect(), "a");
}

#[test]
fn servers_already_tried_are_not_tried_again() {
    let mut front = Front::new(vec![server("a", 9), server("b", 9)]);
    let (a, b) = (front.key("a"), front.key("b"));
    let (one, both) = ([a], [a, b]);
    assert_eq!(front.gateway.place(&Ask { avoid: &one, ..Ask::default() }, at(0)).unwrap().key, b);
    assert_eq!(front.gateway.place(&Ask { avoid: &both, ..Ask::default() }, at(0)), Err(Refusal::AllTried));
}

#[test]
fn connections_that_came_another_way_count_and_own_ones_count_once() {
    let view =
        |connections, seq| vec![reported(server("a", 1_000), connections, seq, at(0)), server("b", 1_000)];
    let mut front = Front::new(view(0, 1));
    front.connect_many(20);
    assert_eq!(front.counts(), [(10, 0), (10, 0)]);
    front.install(view(10, 2));
    assert_eq!(front.counts(), [(10, 0), (10, 0)]);
    front.install(view(17, 3));
    assert_eq!(front.counts(), [(17, 0), (10, 0)]);
    front.install(view(99, 3));
    assert_eq!(front.counts(), [(17, 0), (10, 0)], "the same report is read once");
}

#[test]
fn a_report_taken_before_own_connections_ended_makes_no_foreign_ones() {
    let view = |connections, seq| vec![reported(server("a", 1_000), connections, seq, at(0))];
    let mut front = Front::new(view(0, 1));
    front.connect_many(10);
    front.install(view(10, 2));
    (0..6).for_each(|_| front.gateway.closed(front.key("a"), Duration::from_secs(60), front.now()));
    front.install(view(10, 3));
    assert_eq!(front.counts(), [(4, 0)]);
    front.install(view(4, 4));
    assert_eq!(front.counts(), [(4, 0)]);
}

#[test]
fn counts_of_a_server_without_reports_are_those_of_all_gateways() {
    let a = with(server("a", 1_000), |view| {
        (view.executor, view.elsewhere) = (Executor::Gateways, Connections(5));
    });
    let mut front = Front::new(vec![a, server("b", 1_000)]);
    (0..5).for_each(|_| assert_eq!(front.connect(), "b"));
    assert_eq!(front.counts(), [(5, 0), (5, 0)]);
}

#[test]
fn a_server_that_is_gone_keeps_its_slot_until_its_last_connection_ends() {
    let mut front = Front::new(vec![server("a", 9), server("b", 9)]);
    (0..4).for_each(|_| drop(front.connect()));
    let a = front.key("a");
    front.install(vec![server("b", 9), server("c", 9)]);
    assert_ne!(front.key("c"), a);
    assert_eq!(front.gateway.connections(a), Connections(2));
    assert_eq!(front.connect(), "c");
    front.gateway.closed(a, Duration::from_secs(5), at(0));
    front.gateway.closed(a, Duration::from_secs(5), at(0));
    front.pass(100);
    assert_eq!(front.gateway.view(front.now()).servers.len(), 2);
    front.install(vec![server("b", 9), server("c", 9), server("d", 9)]);
    assert_eq!(front.key("d"), a, "its slot is used again");
    assert_eq!(front.gateway.connections(a), Connections::ZERO);
}

#[test]
fn connections_taken_over_from_a_former_process_are_own_ones() {
    let mut front = Front::new(vec![server("a", 100), server("b", 100)]);
    front.gateway.adopt(front.key("a"), Connections(50));
    (0..20).for_each(|_| assert_eq!(front.connect(), "b"));
    front.install(vec![reported(server("a", 100), 50, 1, at(0)), server("b", 100)]);
    assert_eq!(front.counts(), [(50, 0), (20, 0)]);
}

#[test]
fn credit_bounds_what_one_server_takes_and_says_when_there_is_more() {
    let mut front = Front::new(vec![server("a", 1_000)]);
    (0..20).for_each(|_| drop(front.connect()));
    assert_eq!(front.place(), Err(Refusal::OutOfCredit { until: at(5) }));
    front.pass(4);
    assert_eq!(front.placed_on(), "out_of_credit");
    front.pass(1);
    assert_eq!(front.placed_on(), "a");
}

#[test]
fn servers_of_unequal_size_fill_by_their_size_also_where_credit_is_short() {
    let mut front = Front::new(vec![server("a", 1_000), server("b", 3_000), server("c", 4_000)]);
    while front.now < 2_000 {
        match front.place() {
            Ok(placement) => front.gateway.connected(placement.id, front.now()),
            Err(_) => front.pass(1),
        }
    }
    let counts: Vec<u32> = front.counts().iter().map(|(live, _)| *live).collect();
    let total: u32 = counts.iter().sum();
    assert!((1_200..=1_270).contains(&total), "{counts:?}: 600/s and a burst of 60");
    for (count, eighths) in counts.iter().zip([1, 3, 4]) {
        assert!(count.abs_diff(total * eighths / 8) <= 4, "{counts:?}");
    }
}

#[test]
fn a_server_that_calls_itself_huge_admits_four_times_the_rate_at_most() {
    let servers = (0..9).map(|i| server(&alloc::format!("s{i}"), 100));
    let mut front = Front::new(servers.chain([server("z", 100_000_000)]).collect());
    while front.now < 1_000 {
        match front.place() {
            Ok(placement) => front.gateway.connected(placement.id, front.now()),
            Err(_) => front.pass(1),
        }
    }
    assert!((800..=880).contains(&front.counts()[9].0), "{:?}", front.counts());
}

#[test]
fn gateways_split_the_credit() {
    let mut front = Front::with(snapshot_of(vec![server("a", 10_000)], 8, at(0)));
    let mut placed = 0;
    for _ in 0..10_000 {
        placed += i32::from(front.place().is_ok());
        front.pass(1);
    }
    assert!((250..=253).contains(&placed), "{placed} in 10 s of 200/s over 8 gateways");
}

#[test]
fn a_new_server_starts_slowly_unless_all_are_new() {
    let young = |name| with(server(name, 10_000), |view| view.open_since = at(0));
    let placed_in_a_second = |servers: Vec<ServerView>| {
        let mut front = Front::new(servers);
        for _ in 0..4_000 {
            if let Ok(placement) = front.place() {
                front.gateway.connected(placement.id, front.now());
            } else {
                front.pass(1);
            }
            if front.now >= 1_000 {
                break;
            }
        }
        front.counts().iter().map(|(live, _)| *live).collect::<Vec<u32>>()
    };
    let beside_an_old = placed_in_a_second(vec![server("a", 10_000), young("b")]);
    assert!((200..=225).contains(&beside_an_old[0]), "{beside_an_old:?}");
    assert!((20..=26).contains(&beside_an_old[1]), "{beside_an_old:?}");
    let alone = placed_in_a_second(vec![young("a"), young("b")]);
    assert!(alone.iter().all(|placed| (200..=225).contains(placed)), "{alone:?}");
}

#[test]
fn a_sinkhole_gets_few_of_the_arrivals() {
    let mut front = Front::new(vec![server("a", 10_000), server("b", 10_000), server("c", 10_000)]);
    front.connect_many(300);
    let mut into_the_hole = 0;
    for arrival in 0..2_000 {
        front.pass(10);
        let placement = front.place().unwrap();
        front.gateway.connected(placement.id, front.now());
        if placement.server.as_str() == "b" {
            into_the_hole += i32::from(arrival >= 200);
            front.gateway.closed(placement.key, Duration::from_millis(3), front.now());
        }
    }
    assert!((10..=36).contains(&into_the_hole), "{into_the_hole} of 1,800 after detection");
    assert!(front.gateway.view(front.now()).servers[1].probation);
}

#[test]
fn a_server_that_empties_or_sheds_on_order_is_no_sinkhole() {
    let servers = || vec![server("a", 10_000), server("b", 10_000), server("c", 10_000)];
    let few = Ceiling { at_most: Connections(1), cause: Cause::Operator };
    for ordered in [
        with(server("b", 10_000), |view| view.state = State::Draining),
        with(server("b", 10_000), |view| view.ceilings.push(few)),
    ] {
        let mut front = Front::new(servers());
        front.connect_many(90);
        let b = front.key("b");
        front.install(vec![server("a", 10_000), ordered, server("c", 10_000)]);
        (0..30).for_each(|_| front.gateway.closed(b, Duration::from_millis(500), front.now()));
        front.install(servers());
        front.pass(1_000);
        assert!(!front.gateway.view(front.now()).servers[1].probation);
    }
}

#[test]
fn a_server_that_crashed_with_many_young_connections_is_no_sinkhole() {
    let crash = |front: &mut Front| {
        let servers = || vec![server("a", 10_000), server("b", 10_000), server("c", 10_000)];
        front.install(servers());
        for _ in 0..20 {
            let placement = front.place().unwrap();
            front.gateway.connected(placement.id, front.now());
        }
        let b = front.key("b");
        while !front.gateway.connections(b).is_zero() {
            front.gateway.closed(b, Duration::from_millis(500), front.now());
        }
    };
    let mut front = Front::new(vec![]);
    crash(&mut front);
    assert_eq!(front.fail(Failure::Refused), "b");
    front.pass(1_000);
    assert!(!front.gateway.view(front.now()).servers[1].probation, "its process was gone");

    let mut front = Front::new(vec![]);
    crash(&mut front);
    let reborn = with(server("b", 10_000), |view| view.inc = Incarnation(2));
    front.install(vec![server("a", 10_000), reborn, server("c", 10_000)]);
    front.pass(1_000);
    assert!(!front.gateway.view(front.now()).servers[1].probation, "it is another process");
}

#[test]
fn a_server_on_probation_is_better_than_none() {
    let mut front = Front::new(vec![server("a", 10_000), server("b", 10_000), server("c", 10_000)]);
    for _ in 0..100 {
        front.pass(10);
        let placement = front.place().unwrap();
        front.gateway.connected(placement.id, front.now());
        if placement.server.as_str() == "b" {
            front.gateway.closed(placement.key, Duration::from_millis(3), front.now());
        }
    }
    front.install(vec![
        server("b", 10_000),
        with(server("a", 10_000), |view| view.health = Health::Dead),
        with(server("c", 10_000), |view| view.state = State::Draining),
    ]);
    assert_eq!(front.placed_on(), "b");
}

#[test]
fn a_move_goes_only_where_it_is_emptier_than_its_source() {
    let mut front = Front::new(vec![server("a", 1_000), server("b", 1_000)]);
    let a = front.key("a");
    let from_a = Ask { source: Some(a), ..Ask::default() };
    front.connect_many(20);
    assert_eq!(front.gateway.place(&from_a, front.now()), Err(Refusal::NothingOpen), "10 and 10");
    (0..3).for_each(|_| front.gateway.closed(front.key("b"), Duration::from_secs(9), front.now()));
    assert_eq!(front.gateway.place(&from_a, front.now()).unwrap().server.as_str(), "b");
    let draining = |state| vec![with(server("a", 1_000), |view| view.state = state), server("b", 1_000)];
    front.pass(1_000);
    front.install(draining(State::Draining));
    (0..15).for_each(|_| {
        assert_eq!(front.gateway.place(&from_a, front.now()).unwrap().server.as_str(), "b");
    });
}

#[test]
fn a_view_counts_since_the_last_one() {
    let mut front = Front::new(vec![server("a", 100)]);
    front.connect();
    front.fail(Failure::Refused);
    let view = front.gateway.view(at(0));
    let counts = &view.servers[0];
    assert_eq!((counts.connections.get(), counts.pending.get()), (1, 0));
    assert_eq!((counts.placed, counts.failed, counts.refused, counts.failed_in_a_row), (2, 1, 1, 1));
    let counts = &front.gateway.view(at(0)).servers[0];
    assert_eq!((counts.placed, counts.failed, counts.refused, counts.failed_in_a_row), (0, 0, 0, 1));
}

#[test]
fn refused_prefixes_are_those_of_the_worst_second_of_the_last_ten() {
    let mut front = Front::new(vec![with(server("a", 9), |view| view.state = State::Draining)]);
    for (second, prefixes) in [(0, 3u64), (1, 7), (2, 2)] {
        front.now = second * 1_000;
        for prefix in 0..prefixes {
            let ask = Ask { prefix, ..Ask::default() };
            (0..3).for_each(|_| assert!(front.gateway.place(&ask, front.now()).is_err()));
        }
    }
    assert_eq!(front.gateway.view(front.now()).refused_prefixes, 7);
    front.pass(9_000);
    assert_eq!(front.gateway.view(front.now()).refused_prefixes, 2);
    front.pass(9_000);
    assert_eq!(front.gateway.view(front.now()).refused_prefixes, 0);
}

#[test]
fn the_same_seed_and_inputs_give_the_same_placements() {
    let run = || {
        let mut snapshot =
            snapshot_of((0..40).map(|i| server(&alloc::format!("s{i}"), 100)).collect(), 4, at(0));
        snapshot.place.pick = PickRule::Sampled;
        let mut front = Front::with(snapshot);
        (0..200).map(|_| front.placed_on()).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

#[test]
fn an_empty_server_takes_clients_while_every_other_connection_is_on_pinned_servers() {
    for state in [State::Cordoned, State::Active] {
        let pinned = with(reported(server("a", 100), 60, 1, at(0)), |view| {
            view.state = state;
            view.health = if state == State::Active { Health::Suspect } else { Health::Ok };
        });
        let mut front = Front::new(vec![pinned, server("b", 100)]);
        for _ in 0..20 {
            assert_eq!(front.connect(), "b", "{state}");
            front.pass(10);
        }
    }
}
