//! Real processes, started, watched, left, adopted and stopped.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use evenkeel_fleet::controller::Provided;
use evenkeel_model::{Duration, FleetId, Instant, ServerId};
use evenkeel_runtime::{Clock, Phase, Shutdown, Tasks, Trigger, metrics};
use tokio::sync::mpsc;

use super::{Context, Handle, Want, proc, run};
use crate::config::ProcessConfig;
use crate::metrics::Metrics;
use crate::store::{Process, Store};
use crate::testing::directory;

const PATIENCE: Duration = Duration::from_secs(20);

/// A provider as one life of the controller has it.
struct Life {
    handle: Handle,
    says: mpsc::Receiver<Provided>,
    store: Store,
    trigger: Trigger,
    tasks: Tasks,
    clock: Clock,
    logs: PathBuf,
}

fn fleet() -> FleetId {
    FleetId::new("chat").unwrap()
}

fn id() -> ServerId {
    ServerId::new("chat-1").unwrap()
}

impl Life {
    fn begin(state: &std::path::Path, script: &str, grace: Duration) -> Self {
        let words = ["sh", "-c", script, "server", "{port}", "{id}"].map(String::from);
        Self::begin_with(state, ProcessConfig { grace, ..ProcessConfig::new(words.to_vec()) })
    }

    fn begin_with(state: &std::path::Path, config: ProcessConfig) -> Self {
        let (trigger, shutdown) = Shutdown::new();
        let (says, heard) = mpsc::channel(16);
        let (handle, wanted, ended) = Handle::new();
        let store = Store::open(&state.join("controller.redb")).unwrap();
        let (tasks, clock, logs) = (Tasks::new(), Clock::start(), state.join("logs"));
        let context = Context {
            fleet: fleet(),
            config,
            log_dir: logs.clone(),
            store: store.clone(),
            says,
            clock,
            shutdown,
            tasks: tasks.clone(),
            ports: Mutex::new(BTreeSet::new()),
            metrics: Metrics::register(&mut metrics::registry()),
        };
        tasks.spawn("provider", run(context, wanted, ended));
        Self { handle, says: heard, store, trigger, tasks, clock, logs }
    }

    async fn next(&mut self) -> Provided {
        tokio::time::timeout(PATIENCE, self.says.recv()).await.expect("the provider says something").unwrap()
    }

    async fn running(&mut self) -> Arc<str> {
        match self.next().await {
            Provided::Running { url, .. } => url,
            other => panic!("{other:?}"),
        }
    }

    async fn exited(&mut self) -> (String, Instant) {
        match self.next().await {
            Provided::Exited { why, restart_at: Some(at), .. } => (why, at),
            other => panic!("{other:?}"),
        }
    }

    async fn gone(&mut self) {
        assert_eq!(self.next().await, Provided::Gone { server: id() });
    }

    fn process(&self) -> Process {
        self.store.processes(&fleet()).unwrap().remove(0)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.logs.join("chat-1.log")).unwrap_or_default()
    }

    async fn wait_for_log(&self, text: &str) {
        let deadline = self.clock.now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(self.clock.now() < deadline, "no {text:?} in {:?}", self.log());
            self.clock.sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether nothing is said for a while.
    async fn is_silent(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(300), self.says.recv()).await.is_err()
    }

    /// The server runs, and it is that process alone. Ends both.
    async fn has_adopted(mut self, process: &Process) {
        self.running().await;
        assert_eq!(self.process(), *process);
        assert_eq!(leaders(process), [process.pid.unwrap()]);
        self.handle.stop_all().await;
        self.end().await;
    }

    /// As a killed controller does: everything of it ends, its servers do not.
    async fn end(self) {
        self.trigger.advance(Phase::Stop);
        self.tasks.join_all(PATIENCE).await.unwrap();
    }
}

/// Leaders that carry the mark of that start: how many servers really run.
fn leaders(process: &Process) -> Vec<u32> {
    let mark = format!("chat/{}/{}", process.server, process.nonce);
    proc::marked(&mark).unwrap().into_iter().filter(|pid| proc::leads_group(*pid)).collect()
}

fn alive(pid: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[tokio::test]
async fn server_that_dies_at_once_is_told_with_its_last_lines_and_backed_off() {
    let state = directory("provider");
    let mut life = Life::begin(&state, "echo one; echo two >&2; exit 3", ProcessConfig::GRACE);
    life.handle.want(id(), Want::Run);
    let mut waits = Vec::new();
    for _ in 0..4 {
        life.running().await;
        let (why, restart_at) = life.exited().await;
        waits.push(restart_at.since(life.clock.now()));
        assert!(why.contains("exit status: 3") && why.contains("last output: one | two"), "{why}");
    }
    for (wait, nominal) in waits.iter().zip([100, 200, 400, 800]) {
        // Spread by a fifth; what passed since the word was said only shortens it.
        assert!(*wait <= Duration::from_millis(nominal * 6 / 5), "{waits:?}");
    }
    assert!(waits[3] > waits[0], "{waits:?}");
    life.handle.want(id(), Want::Stop);
    life.gone().await;
    life.end().await;
}

#[tokio::test]
async fn program_that_is_not_there_is_named() {
    let state = directory("provider");
    let mut life = Life::begin_with(&state, ProcessConfig::new(vec![String::from("/nonexistent/server")]));
    life.handle.want(id(), Want::Run);
    match life.next().await {
        Provided::Failed { why, .. } => assert!(why.contains("/nonexistent/server"), "{why}"),
        other => panic!("{other:?}"),
    }
    life.handle.want(id(), Want::Stop);
    while life.next().await != (Provided::Gone { server: id() }) {}
    life.end().await;
}

#[tokio::test]
async fn stop_is_a_sigterm_and_leaves_nothing_behind() {
    let state = directory("provider");
    let script = "trap 'echo bye; exit 0' TERM; echo up $1 $2; while :; do sleep 0.02; done";
    let mut life = Life::begin(&state, script, PATIENCE);
    life.handle.want(id(), Want::Run);
    let url = life.running().await;
    let process = life.process();
    life.wait_for_log(&format!("up {} chat-1", process.port)).await;
    assert_eq!(*url, *format!("ws://127.0.0.1:{}", process.port));
    life.handle.want(id(), Want::Stop);
    life.gone().await;
    assert!(life.log().contains("bye"), "{}", life.log());
    assert!(!alive(process.pid.unwrap()));
    assert_eq!(life.store.processes(&fleet()).unwrap(), []);
    life.end().await;
}

#[tokio::test]
async fn server_that_ignores_sigterm_is_killed_with_all_it_started() {
    let state = directory("provider");
    let script = "trap '' TERM; sleep 1000 & echo child $!; while :; do sleep 0.02; done";
    let mut life = Life::begin(&state, script, Duration::from_millis(200));
    life.handle.want(id(), Want::Run);
    life.running().await;
    life.wait_for_log("child ").await;
    let child = life.log().trim().rsplit(' ').next().unwrap().parse().unwrap();
    let pid = life.process().pid.unwrap();
    assert!(alive(pid) && alive(child));
    let ordered = life.clock.now();
    life.handle.want(id(), Want::Stop);
    life.gone().await;
    assert!(
        life.clock.now().since(ordered) >= Duration::from_millis(200),
        "killed before its grace was over"
    );
    assert!(!alive(pid) && !alive(child));
    life.end().await;
}

#[tokio::test]
async fn servers_outlive_us_and_are_adopted_and_not_started_twice() {
    let state = directory("provider");
    let mut life = Life::begin(&state, "exec sleep 1000", Duration::from_secs(5));
    life.handle.want(id(), Want::Run);
    let url = life.running().await;
    let before = life.process();
    life.end().await;
    assert!(alive(before.pid.unwrap()));

    let mut life = Life::begin(&state, "exec sleep 1000", Duration::from_secs(5));
    assert_eq!(life.running().await, url);
    life.handle.want(id(), Want::Run);
    assert_eq!(life.process(), before);
    assert_eq!(leaders(&before), [before.pid.unwrap()]);

    // The end of a process that is not our child is noticed, and it is started again on its port.
    let held =
        proc::Held::if_began(before.pid.unwrap(), before.started.unwrap(), &before.boot.unwrap()).unwrap();
    held.unwrap().signal(rustix::process::Signal::KILL);
    life.exited().await;
    assert_eq!(life.running().await, url);
    assert_ne!(life.process().pid, before.pid);
    life.handle.want(id(), Want::Stop);
    life.gone().await;
    life.end().await;
}

#[tokio::test]
async fn server_whose_pid_was_never_written_down_is_found_by_its_mark() {
    let state = directory("provider");
    let mut life = Life::begin(&state, "exec sleep 1000", Duration::from_secs(5));
    life.handle.want(id(), Want::Run);
    let url = life.running().await;
    let before = life.process();
    life.store
        .put_process(&fleet(), &Process { pid: None, started: None, boot: None, ..before.clone() })
        .unwrap();
    life.end().await;

    let mut life = Life::begin(&state, "exec sleep 1000", Duration::from_secs(5));
    assert_eq!(life.running().await, url);
    assert_eq!(life.process(), before);
    assert_eq!(leaders(&before).len(), 1);
    life.handle.stop_all().await;
    life.gone().await;
    assert!(!alive(before.pid.unwrap()));
    life.end().await;
}

#[tokio::test]
async fn stop_that_was_interrupted_is_finished_by_the_next_life() {
    let state = directory("provider");
    let mut life = Life::begin(&state, "exec sleep 1000", Duration::from_secs(5));
    life.handle.want(id(), Want::Run);
    life.running().await;
    let before = life.process();
    life.store.put_process(&fleet(), &Process { wanted: false, ..before.clone() }).unwrap();
    life.end().await;

    let mut life = Life::begin(&state, "exec sleep 1000", Duration::from_secs(5));
    while life.next().await != (Provided::Gone { server: id() }) {}
    assert!(!alive(before.pid.unwrap()));
    assert_eq!(life.store.processes(&fleet()).unwrap(), []);
    life.end().await;
}

#[tokio::test]
async fn nothing_starts_once_everything_is_to_stop() {
    let state = directory("provider");
    let mut life = Life::begin(&state, "exec sleep 1000", Duration::from_secs(5));
    life.handle.want(id(), Want::Run);
    life.running().await;
    let pid = life.process().pid.unwrap();
    life.handle.stop_all().await;
    assert!(!alive(pid));
    life.gone().await;
    life.handle.want(ServerId::new("chat-2").unwrap(), Want::Run);
    assert_eq!(life.store.processes(&fleet()).unwrap(), []);
    life.end().await;
}

/// Lowers the open-file limit of this process, which under nextest is this test alone.
fn without_descriptors() -> impl Drop {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    struct Restore(Rlimit);
    impl Drop for Restore {
        fn drop(&mut self) {
            setrlimit(Resource::Nofile, self.0).unwrap();
        }
    }
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..before }).unwrap();
    Restore(before)
}

#[tokio::test]
async fn server_is_left_alone_while_it_cannot_be_told_whether_it_runs() {
    let state = directory("provider");
    let mut life = Life::begin(&state, "exec sleep 1000", Duration::from_secs(5));
    life.handle.want(id(), Want::Run);
    life.running().await;
    let before = life.process();
    life.end().await;

    let mut life = Life::begin(&state, "exec sleep 1000", Duration::from_secs(5));
    let few = without_descriptors();
    life.handle.want(id(), Want::Run);
    assert!(life.is_silent().await, "it is neither running nor failed");
    drop(few);
    life.has_adopted(&before).await;
}

#[tokio::test]
async fn nothing_starts_while_it_is_not_known_what_runs() {
    let state = directory("provider");
    let mut life = Life::begin(&state, "exec sleep 1000", Duration::from_secs(5));
    life.handle.want(id(), Want::Run);
    life.running().await;
    let before = life.process();
    life.store.put_raw_process(&fleet(), &id(), b"{");
    life.end().await;

    let mut life = Life::begin(&state, "exec sleep 1000", Duration::from_secs(5));
    life.handle.want(id(), Want::Run);
    assert!(life.is_silent().await);
    life.store.put_process(&fleet(), &before).unwrap();
    life.has_adopted(&before).await;
}

#[tokio::test]
async fn a_wish_to_stop_is_answered_once() {
    let state = directory("provider");
    let mut life = Life::begin(&state, "exec sleep 1000", Duration::from_secs(5));
    life.handle.want(id(), Want::Stop);
    life.gone().await;
    assert!(life.is_silent().await);
    life.handle.want(id(), Want::Stop);
    life.gone().await;
    life.end().await;
}
