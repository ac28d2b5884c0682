//! A gateway with a table of our own making, raw servers that record what they see, raw clients.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown as Half, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use evenkeel_fleet::config::{HealthConfig, PickRule, PlaceConfig};
use evenkeel_fleet::snapshot::{Executor, GatewaySays, Health, ServerView, Settlements, Snapshot, Table};
use evenkeel_gateway::{FleetSettings, GatewayConfig, Limits, Links, Route, Running, start};
use evenkeel_model::{
    Connections, Desired, Fence, FleetId, GatewayId, Incarnation, Instant, PerSecond, ServerId, State,
};
use evenkeel_protocol::keys::MasterKey;
use evenkeel_protocol::response::accept_for;
use evenkeel_runtime::metrics::{self, Shared};
use evenkeel_runtime::{Clock, Phase, Shutdown, Trigger};
use tokio::sync::{mpsc, watch};

/// No step of a test may take longer.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// The master key of the fleet.
pub(crate) const MASTER: MasterKey = MasterKey::from_bytes([7; 32]);

/// The usual upgrade fields.
pub(crate) const WS: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\n";

/// A whole handshake for a path.
pub(crate) fn handshake(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: ws.example.com\r\n{WS}\r\n").into_bytes()
}

/// Waits until `met`, looking again and again; says what was awaited when it does not come.
pub(crate) fn wait_until(what: &str, mut met: impl FnMut() -> bool) {
    let clock = Clock::start();
    let until = clock.now() + SOON;
    while !met() {
        assert!(clock.now() < until, "did not come within {SOON:?}: {what}");
        // sleep: between two looks.
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A gateway under test.
pub(crate) struct Gate {
    pub(crate) addr: SocketAddr,
    pub(crate) says: mpsc::Receiver<GatewaySays>,
    pub(crate) trigger: Trigger,
    #[allow(dead_code)] // Of one of the binaries that share this file.
    pub(crate) master: watch::Sender<MasterKey>,
    #[allow(dead_code)] // Of one of the binaries that share this file.
    pub(crate) settle: mpsc::Sender<Settlements>,
    table: watch::Sender<Arc<Table>>,
    installed: watch::Receiver<u64>,
    registry: Shared,
    running: Option<Running>,
}

/// What a test changes of the defaults.
pub(crate) struct Setup {
    pub(crate) limits: Limits,
    pub(crate) settings: FleetSettings,
    pub(crate) routes: Vec<Route>,
    pub(crate) public_url: Option<String>,
}

impl Default for Setup {
    fn default() -> Self {
        let mut limits = Limits::for_open_files(4_096);
        // A busy machine may hold a test's server up for a second; deadlines are the subject of tests of their own.
        limits.heads.server_head = SOON;
        limits.connect = SOON;
        Self { limits, settings: FleetSettings::default(), routes: Vec::new(), public_url: None }
    }
}

pub(crate) fn fleet() -> FleetId {
    FleetId::new("chat").unwrap()
}

/// An active server with an agent, so that the gateway neither checks it nor closes its tunnels.
pub(crate) fn server(id: &str, addr: SocketAddr) -> ServerView {
    ServerView {
        id: ServerId::new(id).unwrap(),
        inc: Incarnation(1),
        url: format!("ws://{addr}").into(),
        public_url: None,
        capacity: Connections(1_000),
        reported: None,
        elsewhere: Connections::ZERO,
        ceilings: Vec::new(),
        health: Health::Ok,
        state: State::Active,
        admit: PerSecond::new(100_000.0),
        open_since: Instant::ZERO,
        executor: Executor::Agent,
        desired: Desired::active(Fence::default()),
    }
}

impl Gate {
    pub(crate) fn new(servers: Vec<ServerView>) -> Self {
        Self::with(servers, Setup::default())
    }

    pub(crate) fn with(servers: Vec<ServerView>, setup: Setup) -> Self {
        let (table, table_rx) = watch::channel(Arc::new(Table::default()));
        let (says_tx, says) = mpsc::channel(256);
        let (installed_tx, installed) = watch::channel(0);
        let (trigger, shutdown) = Shutdown::new();
        let (master, master_rx) = watch::channel(MASTER);
        let (settle, settlements) = mpsc::channel(64);
        let config = GatewayConfig {
            id: GatewayId::new("g1").unwrap(),
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            public_url: setup.public_url,
            routes: setup.routes,
            fleets: BTreeMap::from([(fleet(), setup.settings)]),
            engine: crate::ENGINE,
            limits: setup.limits,
            seed: 7,
        };
        let mut registry = metrics::registry();
        let links = Links {
            table: table_rx,
            says: says_tx,
            installed: installed_tx,
            masters: BTreeMap::from([(fleet(), master_rx)]),
            settlements,
            recalled: Arc::default(),
            memory: None,
        };
        let running = start(config, links, Clock::start(), shutdown, &mut registry).unwrap();
        let addr = running.addrs()[0];
        let registry = Arc::new(Mutex::new(registry));
        let mut gate =
            Self { addr, says, trigger, master, settle, table, installed, registry, running: Some(running) };
        gate.publish(servers);
        gate
    }

    /// Publishes a table and waits until the gateway obeys it.
    pub(crate) fn publish(&mut self, mut servers: Vec<ServerView>) {
        servers.sort_by(|a, b| a.id.cmp(&b.id));
        let version = self.table.borrow().version + 1;
        let snapshot = Snapshot {
            fleet: fleet(),
            at: Instant::ZERO,
            servers,
            gateways: 1,
            placed_per_s: PerSecond::ZERO,
            health: HealthConfig::default(),
            place: PlaceConfig { pick: PickRule::Leastconn, ..PlaceConfig::default() },
        };
        let fleets = BTreeMap::from([(fleet(), Arc::new(snapshot))]);
        self.table.send_replace(Arc::new(Table { version, fleets }));
        let installed = self.installed.clone();
        wait_until("the table is installed", || *installed.borrow() >= version);
    }

    /// A client that has sent nothing yet.
    pub(crate) fn client(&self) -> TcpStream {
        connect(self.addr)
    }

    /// A client with an open WebSocket.
    pub(crate) fn open(&self) -> TcpStream {
        let mut client = self.client();
        client.write_all(&handshake("/")).unwrap();
        let head = read_head(&mut client);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        client
    }

    /// The engine that carries its tunnels.
    #[allow(dead_code)] // Of one of the binaries that share this file.
    pub(crate) fn engine(&self) -> &'static str {
        self.running.as_ref().unwrap().engine()
    }

    /// The value of a metric whose line begins so.
    pub(crate) fn metric(&self, line: &str) -> f64 {
        let text = metrics::encode(&self.registry);
        let found = text.lines().find_map(|found| found.strip_prefix(line));
        found.and_then(|rest| rest.trim().parse().ok()).unwrap_or(0.0)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.trigger.advance(Phase::Stop);
        if let Some(running) = self.running.take() {
            let ended = running.join();
            assert!(std::thread::panicking() || ended.is_ok(), "the gateway's thread panicked");
        }
    }
}

pub(crate) fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    stream
}

/// Reads up to and with the empty line.
pub(crate) fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&head)),
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// Reads exactly so many bytes.
pub(crate) fn read_exact(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Reads up to the end; a reset is an end too.
pub(crate) fn read_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return bytes,
            Ok(length) => bytes.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return bytes,
            Err(error) => panic!("{error}"),
        }
    }
}

/// A frame as a server writes it, or as a client does with a mask of zeros.
pub(crate) fn frame(fin: bool, opcode: u8, masked: bool, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![opcode | if fin { 0x80 } else { 0 }];
    let bit = if masked { 0x80 } else { 0 };
    if payload.len() < 126 {
        out.push(bit | payload.len() as u8);
    } else {
        out.push(bit | 126);
        out.extend_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
    }
    out.extend_from_slice(if masked { &[0; 4] } else { &[] });
    out.extend_from_slice(payload);
    out
}

/// A WebSocket server written by hand: each connection gets a thread that runs the script.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    /// Connections accepted so far.
    pub(crate) accepted: Arc<AtomicUsize>,
    /// All bytes received, in order of arrival.
    pub(crate) seen: Arc<Mutex<Vec<u8>>>,
}

impl Server {
    /// `script` gets the connection and what was read of it: nothing yet.
    pub(crate) fn new(script: impl Fn(&mut Link) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (accepted, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (count, record, script) = (Arc::clone(&accepted), Arc::clone(&seen), Arc::new(script));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(SOON)).unwrap();
                let (script, seen) = (Arc::clone(&script), Arc::clone(&record));
                std::thread::spawn(move || script(&mut Link { stream, seen }));
            }
        });
        Self { addr, accepted, seen }
    }

    /// Takes every handshake, then runs the script.
    pub(crate) fn websocket(script: impl Fn(&mut Link) + Send + Sync + 'static) -> Self {
        Self::new(move |link| {
            if link.accept() {
                script(link);
            }
        })
    }

    /// Takes every handshake and sends back what it gets, byte by byte as it is, until the end.
    pub(crate) fn echo() -> Self {
        Self::websocket(|link| {
            let mut piece = [0; 65_536];
            while let Ok(length @ 1..) = link.stream.read(&mut piece) {
                link.seen.lock().unwrap().extend_from_slice(&piece[..length]);
                if link.stream.write_all(&piece[..length]).is_err() {
                    return;
                }
            }
        })
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    pub(crate) fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }
}

/// One connection at a [`Server`].
pub(crate) struct Link {
    pub(crate) stream: TcpStream,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Link {
    /// Reads the handshake; empty if the other end went away.
    pub(crate) fn request(&mut self) -> String {
        let head = read_head(&mut self.stream);
        self.seen.lock().unwrap().extend_from_slice(head.as_bytes());
        head
    }

    /// Answers the handshake with a proper 101; false if there was none.
    pub(crate) fn accept(&mut self) -> bool {
        let head = self.request();
        self.switch(&head)
    }

    /// Answers a request with a proper 101; false if it is no handshake.
    pub(crate) fn switch(&mut self, head: &str) -> bool {
        let Some(key) = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")) else {
            return false;
        };
        let accept = accept_for(key);
        self.write(
            format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {accept}\r\n\r\n"
            )
            .as_bytes(),
        );
        true
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Reads and records up to the end.
    pub(crate) fn record(&mut self) {
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = self.stream.read(&mut piece) {
            self.seen.lock().unwrap().extend_from_slice(&piece[..length]);
        }
    }

    pub(crate) fn finish(&mut self) {
        let _ = self.stream.shutdown(Half::Write);
    }
}

/// An address where nobody listens: it was free a moment ago.
pub(crate) fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
