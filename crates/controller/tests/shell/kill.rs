//! `kill -9` of a controller: a second process of this test binary runs it, so that it can really be killed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use evenkeel_controller::{ProcessConfig, Provider};
use evenkeel_fleet::config::ScaleConfig;
use evenkeel_model::Duration;
use evenkeel_runtime::Clock;

use crate::kit::{PATIENCE, Peer, World, config, fleet};

const STATE: &str = "EVENKEEL_TEST_STATE";
const FLEET: &str = "EVENKEEL_TEST_FLEET";
const ADDR: &str = "addr";

/// Not a test by itself: the controller that the tests below start and kill.
#[tokio::test]
async fn controller_process() {
    let (Some(state), Ok(name)) = (std::env::var_os(STATE).map(PathBuf::from), std::env::var(FLEET)) else {
        return;
    };
    let mut settings = fleet(&name, &[]);
    settings.policy.scale = Some(ScaleConfig { min: 2, max: 2, ..ScaleConfig::default() });
    let command = ["sleep", "1000"].map(String::from).to_vec();
    settings.provider = Provider::Process(ProcessConfig::new(command));
    let world = World::start(config(&state, "127.0.0.1:0".parse().unwrap(), vec![settings])).await.unwrap();
    let written = state.join("addr.new");
    std::fs::write(&written, world.addr.to_string()).unwrap();
    std::fs::rename(written, state.join(ADDR)).unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_second_controller_on_a_folder_is_refused_before_it_makes_or_changes_anything() {
    let first = World::with_servers(&["a"]).await;
    let before = files(&first.state);
    let mut second = config(&first.state, "127.0.0.1:0".parse().unwrap(), vec![fleet("chat", &["b"])]);
    second.admin.token_file = first.state.join("another.token");
    let refused = World::start(second).await.err().expect("the folder is taken");
    assert_eq!(refused.reason(), "store_in_use", "{refused}");
    assert_eq!(files(&first.state), before);
    first.end().await;
}

/// Names and bytes of all files of a folder.
fn files(folder: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.clone(), std::fs::read(&path).unwrap())).collect()
}

struct Controller {
    process: Child,
    peer: Peer,
}

impl Controller {
    async fn start(state: &Path, fleet: &str) -> Self {
        let _ = std::fs::remove_file(state.join(ADDR));
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill::controller_process", "--nocapture"])
            .env(STATE, state)
            .env(FLEET, fleet)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let addr = wait_for(|| std::fs::read_to_string(state.join(ADDR)).ok()).await;
        let token = std::fs::read_to_string(state.join("admin.token")).unwrap().trim().to_owned();
        Self { process, peer: Peer { addr: addr.parse().unwrap(), token } }
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

async fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let clock = Clock::start();
    let deadline = clock.now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(clock.now() < deadline, "it does not happen");
        clock.sleep(Duration::from_millis(10)).await;
    }
}

/// Server processes of that fleet that run, by pid.
fn servers(fleet: &str) -> BTreeSet<u32> {
    let mark = format!("EVENKEEL_SERVER={fleet}/");
    let pids = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|entry| entry.starts_with(mark.as_bytes()))
    })
    .collect()
}

/// Ends the servers that a test leaves.
struct Servers(String);

impl Drop for Servers {
    fn drop(&mut self) {
        for pid in servers(&self.0) {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
    }
}

#[tokio::test]
async fn servers_survive_kill_9_and_are_adopted_not_doubled() {
    let state = crate::kit::directory();
    let name = format!("adopt{}", std::process::id());
    let _servers = Servers(name.clone());
    let first = Controller::start(&state, &name).await;
    let before = wait_for(|| Some(servers(&name)).filter(|found| found.len() == 2)).await;
    first.kill();
    assert_eq!(servers(&name), before, "they survive");

    let second = Controller::start(&state, &name).await;
    let adopted = format!("evenkeel_controller_processes_total{{fleet=\"{name}\",step=\"adopted\"}} 2");
    let clock = Clock::start();
    let deadline = clock.now() + PATIENCE;
    let metrics = loop {
        let metrics = second.peer.get("/metrics").await.body;
        let epoch = second.peer.get("/v1/fleets").await.json()[0]["epoch"].clone();
        if metrics.contains(&adopted) && epoch == 2 {
            break metrics;
        }
        assert!(clock.now() < deadline, "{metrics}");
        clock.sleep(Duration::from_millis(10)).await;
    };
    assert!(!metrics.contains("step=\"started\""), "{metrics}");
    assert_eq!(servers(&name), before, "none was started beside them");
    assert_eq!(second.peer.get("/v1/servers").await.json().as_array().unwrap().len(), 2);
    second.kill();
}

#[tokio::test]
async fn drain_goes_on_after_kill_9() {
    let state = crate::kit::directory();
    let name = format!("drain{}", std::process::id());
    let _servers = Servers(name.clone());
    let report = |seq: u64| {
        format!(r#"{{"inc": 1, "seq": {seq}, "connections": 9, "movable": 0, "url": "ws://127.0.0.1:9001"}}"#)
    };
    let first = Controller::start(&state, &name).await;
    let reported = first.peer.post("/v1/servers/mine/report", &report(1)).await;
    assert_eq!(reported.status, 200, "{reported:?}");
    let ordered = first.peer.post("/v1/servers/mine/drain", "{\"force\": true}").await;
    assert_eq!(ordered.status, 200, "{ordered:?}");
    first.kill();

    let second = Controller::start(&state, &name).await;
    // Known again before it speaks, so that an operator can order something else.
    second.peer.wait_for_server("mine", |server| server["desired"]["state"] == "draining").await;
    let again = second.peer.post("/v1/servers/mine/drain", "{\"force\": true}").await;
    assert_ne!(again.status, 404, "{again:?}");
    let answer = second.peer.post("/v1/servers/mine/report", &report(2)).await;
    let (desired, before) = (answer.json(), ordered.json());
    assert_eq!(desired["state"], "draining", "{answer:?}");
    assert!(desired["epoch"].as_u64() > before["desired"]["epoch"].as_u64(), "{answer:?}");
    second.kill();
}
