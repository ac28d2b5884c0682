//! The fleet's task without sockets: restarts, failed writes, order of effects.

use std::sync::atomic::{AtomicBool, Ordering};

use evenkeel_fleet::config::FleetConfig;
use evenkeel_fleet::snapshot::{Executor, Table};
use evenkeel_model::{Connections, FleetId, Generation, Measures, State};
use evenkeel_runtime::{Trigger, metrics};

use super::*;
use crate::config::Provider;
use crate::directory::FleetHandle;

const PATIENCE: Duration = Duration::from_secs(20);

struct Task {
    handle: FleetHandle,
    table: watch::Receiver<Arc<Table>>,
    installed: watch::Sender<u64>,
    disk_full: Arc<AtomicBool>,
    trigger: Trigger,
    tasks: Tasks,
    _says: mpsc::Sender<Provided>,
}

fn id() -> FleetId {
    FleetId::new("chat").unwrap()
}

fn server(name: &str) -> ServerId {
    ServerId::new(name).unwrap()
}

fn registration(name: &str, inc: u64, applied: Option<Fence>) -> Registration {
    Registration {
        id: server(name),
        inc: Incarnation(inc),
        url: Arc::from("ws://127.0.0.1:9001"),
        public_url: None,
        capacity: Some(Connections(100)),
        labels: Vec::new(),
        zone: None,
        executor: Executor::Agent,
        applied,
    }
}

fn report(inc: u64, seq: u64, connections: u32) -> Report {
    Report {
        inc: Incarnation(inc),
        seq,
        connections: Connections(connections),
        movable: Connections(0),
        raw: Measures::default(),
        averaged: None,
        totals: None,
    }
}

impl Task {
    fn begin() -> Self {
        let disk_full = Arc::new(AtomicBool::new(false));
        Self::begin_on(Store::on_disk(Arc::clone(&disk_full)), disk_full)
    }

    fn begin_on(store: Store, disk_full: Arc<AtomicBool>) -> Self {
        let (trigger, shutdown) = Shutdown::new();
        let (table, seen) = watch::channel(Arc::new(Table::default()));
        let (installed, gateway) = watch::channel(u64::MAX);
        let (inputs, receiver) = mpsc::channel(64);
        let (says, provided) = mpsc::channel(4);
        let tasks = Tasks::new();
        let fleet = Fleet {
            settings: FleetSettings {
                policy: FleetConfig::new(id()),
                servers: Vec::new(),
                provider: Provider::Static,
                report_interval: Duration::from_secs(1),
                key_file: std::path::PathBuf::from("chat.key"),
            },
            store,
            owners: Owners::default(),
            publisher: Publisher::new(table, vec![gateway]),
            events: Events::default(),
            metrics: Metrics::register(&mut metrics::registry()),
            provider: None,
            clock: Clock::start(),
            shutdown,
            tasks: tasks.clone(),
            memory: Memory::default(),
        };
        tasks.spawn("fleet", fleet.run(receiver, provided));
        let handle = FleetHandle { id: id(), inputs, report_interval: Duration::from_secs(1) };
        Self { handle, table: seen, installed, disk_full, trigger, tasks, _says: says }
    }

    /// An agent that introduces itself and reports once.
    async fn link(&self, name: &str, inc: u64, applied: Option<Fence>) -> watch::Receiver<Option<Desired>> {
        let (desired, seen) = watch::channel(None);
        let link = LinkEnd { id: LinkId(inc), inc: Incarnation(inc), desired };
        let registration = registration(name, inc, applied);
        let ask = |reply| ToFleet::Hello { registration, link, reply };
        assert_eq!(self.handle.ask(ask).await.unwrap(), Greeting::Welcome);
        self.report(name, inc, 1).await;
        seen
    }

    async fn report(&self, name: &str, inc: u64, seq: u64) {
        let reported =
            ToFleet::Reported { server: server(name), link: LinkId(inc), report: report(inc, seq, 10) };
        self.handle.send(reported).await.unwrap();
    }

    async fn epoch(&self) -> u64 {
        // While the task restarts it does not answer; the question waits in its queue.
        let status = tokio::time::timeout(PATIENCE, self.handle.status()).await;
        status.unwrap().unwrap().epoch.get()
    }

    async fn end(self) {
        self.trigger.advance(Phase::Stop);
        self.tasks.join_all(PATIENCE).await.unwrap();
    }
}

async fn wait_for(seen: &mut watch::Receiver<Option<Desired>>, wanted: impl Fn(&Desired) -> bool) -> Desired {
    let found = seen.wait_for(|desired| desired.as_ref().is_some_and(&wanted));
    tokio::time::timeout(PATIENCE, found).await.expect("the order comes").unwrap().clone().unwrap()
}

fn state_in(table: &Table, name: &str) -> Option<State> {
    let servers = &table.fleets.get(&id())?.servers;
    servers.iter().find(|view| view.id == server(name)).map(|view| view.state)
}

#[tokio::test]
async fn panic_restarts_the_loop_alone_and_links_get_orders_of_the_next_epoch() {
    let task = Task::begin();
    let mut a = task.link("a", 1, None).await;
    let mut b = task.link("b", 1, None).await;
    task.handle.order(Order::Drain { server: server("a"), force: true }).await.unwrap().unwrap();
    let before = wait_for(&mut a, |desired| desired.state == State::Draining).await;
    task.handle.send(ToFleet::Panic).await.unwrap();
    let after = wait_for(&mut a, |desired| desired.fence.epoch > before.fence.epoch).await;
    assert_eq!((after.state, after.fence.epoch), (State::Draining, before.fence.epoch.next()));
    wait_for(&mut b, |desired| {
        desired.fence.epoch == before.fence.epoch.next() && desired.state == State::Active
    })
    .await;
    // And it goes on as before.
    let undrained = task.handle.order(Order::Undrain { server: server("a") }).await.unwrap().unwrap();
    assert_eq!(undrained[0].1.state, State::Active);
    task.end().await;
}

#[tokio::test]
async fn order_that_cannot_be_stored_is_refused_and_has_no_effect() {
    let task = Task::begin();
    let a = task.link("a", 1, None).await;
    task.disk_full.store(true, Ordering::SeqCst);
    let refused = task.handle.order(Order::Cordon { server: server("a") }).await.unwrap();
    assert!(matches!(refused, Err(OrderFailure::Store { .. })), "{refused:?}");
    assert!(a.borrow().as_ref().is_none_or(|desired| desired.state == State::Active));
    assert_ne!(state_in(&task.table.borrow(), "a"), Some(State::Cordoned));
    task.disk_full.store(false, Ordering::SeqCst);
    assert_eq!(task.epoch().await, 2, "restored under a new epoch");
    task.report("a", 1, 2).await;
    task.handle.order(Order::Cordon { server: server("a") }).await.unwrap().unwrap();
    assert_eq!(state_in(&task.table.borrow(), "a"), Some(State::Cordoned));
    task.end().await;
}

#[tokio::test]
async fn order_is_answered_once_gateways_obey_it_and_not_before() {
    let task = Task::begin();
    let _a = task.link("a", 1, None).await;
    task.installed.send_replace(0);
    let mut table = task.table.clone();
    let mut order = Box::pin(task.handle.order(Order::Cordon { server: server("a") }));
    let published = async {
        table.wait_for(|table| state_in(table, "a") == Some(State::Cordoned)).await.unwrap().version
    };
    let version = tokio::select! {
        version = published => version,
        answer = order.as_mut() => panic!("answered before gateways saw it: {answer:?}"),
    };
    let early = tokio::time::timeout(Duration::from_millis(100), order.as_mut()).await;
    assert!(early.is_err(), "answered before gateways obeyed: {early:?}");
    task.installed.send_replace(version);
    order.await.unwrap().unwrap();
    task.end().await;
}

#[tokio::test]
async fn stuck_gateway_delays_an_answer_and_does_not_prevent_it() {
    let task = Task::begin();
    let _a = task.link("a", 1, None).await;
    task.installed.send_replace(0);
    let order = task.handle.order(Order::Cordon { server: server("a") });
    assert!(tokio::time::timeout(PATIENCE, order).await.unwrap().unwrap().is_ok());
    task.end().await;
}

#[tokio::test]
async fn agent_that_obeyed_a_lost_controller_is_given_higher_orders() {
    let task = Task::begin();
    let applied = Fence { epoch: Epoch(40), generation: Generation(7) };
    let mut a = task.link("a", 1, Some(applied)).await;
    assert!(wait_for(&mut a, |_| true).await.fence > applied);
    // The next term is above it as well, also for servers that come later.
    task.handle.send(ToFleet::Panic).await.unwrap();
    assert!(task.epoch().await > 40);
    task.end().await;
}

#[tokio::test]
async fn the_highest_believable_epoch_locks_nobody_out() {
    let task = Task::begin();
    let greet = async |name: &str, applied: Fence| {
        let link = LinkEnd { id: LinkId(90), inc: Incarnation(1), desired: watch::channel(None).0 };
        let registration = registration(name, 1, Some(applied));
        task.handle.ask(|reply| ToFleet::Hello { registration, link, reply }).await.unwrap()
    };
    let highest = Fence { epoch: Epoch(1 << 53), generation: Generation(1) };
    let absurd = Fence { epoch: Epoch((1 << 53) + 9), generation: Generation(1) };
    assert!(matches!(greet("a", absurd).await, Greeting::Refused { .. }));
    assert_eq!(greet("a", highest).await, Greeting::Welcome);
    task.handle.send(ToFleet::Panic).await.unwrap();
    let epoch = Epoch(task.epoch().await);
    assert!(epoch > highest.epoch);
    // What every agent will have obeyed from now on.
    let ours = Fence { epoch, generation: Generation(3) };
    assert_eq!(greet("b", ours).await, Greeting::Welcome);
    let no_next = Fence { generation: Generation(u64::MAX), ..ours };
    for refused in [absurd, no_next] {
        assert!(matches!(greet("c", refused).await, Greeting::Refused { .. }), "{refused}");
    }
    task.end().await;
}

#[tokio::test]
async fn second_life_of_a_server_is_told_from_the_first() {
    let task = Task::begin();
    let first = task.link("a", 5, None).await;
    let greet = async |inc: u64| {
        let link = LinkEnd { id: LinkId(90 + inc), inc: Incarnation(inc), desired: watch::channel(None).0 };
        let registration = registration("a", inc, None);
        task.handle.ask(|reply| ToFleet::Hello { registration, link, reply }).await.unwrap()
    };
    assert_eq!(greet(4).await, Greeting::Stale { known: Incarnation(5) });
    assert_eq!(greet(5).await, Greeting::Stale { known: Incarnation(5) }, "another link with it lives");
    drop(first);
    assert_eq!(greet(5).await, Greeting::Welcome, "an agent that lost its link comes back with its own");
    assert_eq!(greet(6).await, Greeting::Welcome);
    task.end().await;
}

#[tokio::test]
async fn newer_life_ends_the_link_of_the_older() {
    let task = Task::begin();
    let mut first = task.link("a", 1, None).await;
    let _second = task.link("a", 2, None).await;
    let ended = async { while first.changed().await.is_ok() {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("the older link ends");
    task.end().await;
}
