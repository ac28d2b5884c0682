//! A controller on free ports, and just enough HTTP to talk to it byte by byte.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use evenkeel_controller::{
    AdminConfig, ControllerConfig, FleetSettings, Links, Provider, Running, Shell, StartError, start,
};
use evenkeel_fleet::config::FleetConfig;
use evenkeel_fleet::controller::Registration;
use evenkeel_fleet::snapshot::{Executor, GatewaySays, Settlements, Table};
use evenkeel_model::{Connections, Duration, FleetId, Incarnation, ServerId};
use evenkeel_runtime::{Clock, Phase, Shutdown, Tasks, Trigger, metrics};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

/// Longest wait for anything that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A controller and the ends that other roles would hold.
pub(crate) struct World {
    pub(crate) addr: SocketAddr,
    pub(crate) token: String,
    pub(crate) state: PathBuf,
    pub(crate) ready: watch::Sender<bool>,
    /// What a gateway is told of assignments.
    pub(crate) settled: mpsc::Receiver<Settlements>,
    _table: watch::Receiver<Arc<Table>>,
    _running: Running,
    _says: mpsc::Sender<GatewaySays>,
    trigger: Trigger,
    tasks: Tasks,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The `field` of an error, after checking that the body is one.
    pub(crate) fn refused_field(&self) -> Option<String> {
        let json = self.json();
        assert!(json["error"].is_string() && json["message"].is_string(), "{self:?}");
        assert!(json.as_object().unwrap().contains_key("field"), "{self:?}");
        json["field"].as_str().map(str::to_owned)
    }
}

/// A new empty folder below the system's temporary one.
pub(crate) fn directory() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let unique = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("evenkeel-shell-{}-{unique}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

pub(crate) fn fleet(id: &str, servers: &[&str]) -> FleetSettings {
    let servers = servers.iter().map(|id| Registration {
        id: ServerId::new(id).unwrap(),
        inc: Incarnation(0),
        url: Arc::from("ws://127.0.0.1:9001"),
        public_url: None,
        capacity: Some(Connections(100)),
        labels: Vec::new(),
        zone: None,
        executor: Executor::Gateways,
        applied: None,
    });
    FleetSettings {
        policy: FleetConfig::new(FleetId::new(id).unwrap()),
        servers: servers.collect(),
        provider: Provider::Static,
        report_interval: Duration::from_secs(1),
        key_file: directory().join(format!("{id}.key")),
    }
}

pub(crate) fn config(state: &Path, listen: SocketAddr, fleets: Vec<FleetSettings>) -> ControllerConfig {
    ControllerConfig {
        admin: AdminConfig { listen, token_file: state.join("admin.token"), hosts: Vec::new() },
        fleets,
        state_dir: state.to_owned(),
    }
}

impl World {
    /// A controller with one fleet `chat` of configured servers.
    pub(crate) async fn with_servers(servers: &[&str]) -> Self {
        Self::with_fleets(vec![fleet("chat", servers)]).await
    }

    pub(crate) async fn with_fleets(fleets: Vec<FleetSettings>) -> Self {
        let state = directory();
        let config = config(&state, "127.0.0.1:0".parse().unwrap(), fleets);
        Self::start(config).await.unwrap()
    }

    pub(crate) async fn start(config: ControllerConfig) -> Result<Self, StartError> {
        let state = config.state_dir.clone();
        let (trigger, shutdown) = Shutdown::new();
        let (table, seen) = watch::channel(Arc::new(Table::default()));
        let (says, said) = mpsc::channel(16);
        let (ready, is_ready) = watch::channel(false);
        let (settlements, settled) = mpsc::channel(16);
        let links = Links {
            table,
            says: said,
            installed: Vec::new(),
            settlements: vec![settlements],
            recalled: Arc::default(),
            ready: is_ready,
        };
        let registry = Arc::new(Mutex::new(metrics::registry()));
        let tasks = Tasks::new();
        let shell = Shell { clock: Clock::start(), shutdown, tasks: tasks.clone(), registry };
        let running = start(config, links, shell).await?;
        let token = std::fs::read_to_string(state.join("admin.token")).unwrap().trim().to_owned();
        let addr = running.admin();
        Ok(Self {
            addr,
            token,
            state,
            ready,
            settled,
            _table: seen,
            _running: running,
            _says: says,
            trigger,
            tasks,
        })
    }

    pub(crate) fn peer(&self) -> Peer {
        Peer { addr: self.addr, token: self.token.clone() }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.peer().get(path).await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        self.peer().post(path, body).await
    }

    pub(crate) async fn end(self) {
        self.trigger.advance(Phase::Stop);
        self.tasks.join_all(PATIENCE).await.unwrap();
    }
}

/// Whoever has the address and the token.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) addr: SocketAddr,
    pub(crate) token: String,
}

impl Peer {
    pub(crate) async fn get(&self, path: &str) -> Answer {
        let Self { addr, token } = self;
        send(*addr, &format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nAuthorization: Bearer {token}\r\n"), "")
            .await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        let Self { addr, token } = self;
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {addr}\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n",
            body.len()
        );
        send(*addr, &head, body).await
    }

    /// The server as `GET /v1/servers` has it, once it is as `wanted`.
    pub(crate) async fn wait_for_server(&self, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let clock = Clock::start();
        let deadline = clock.now() + PATIENCE;
        loop {
            let servers = self.get("/v1/servers").await.json();
            let found = servers.as_array().unwrap().iter().find(|server| server["id"] == id).cloned();
            if let Some(found) = found.clone().filter(&wanted) {
                return found;
            }
            assert!(clock.now() < deadline, "{id} is {found:?}");
            clock.sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Sends a request as it is written and reads the answer to the end of the connection.
pub(crate) async fn send(addr: SocketAddr, head: &str, body: &str) -> Answer {
    let exchange = async {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(format!("{head}Connection: close\r\n\r\n{body}").as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        // A refusal may close before all was read.
        let _ = stream.read_to_end(&mut bytes).await;
        String::from_utf8(bytes).unwrap()
    };
    let text = tokio::time::timeout(PATIENCE, exchange).await.expect("the controller answers");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}
