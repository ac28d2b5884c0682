//! An agent for a server without SDK: counts its sockets, measures its process, and closes by destroying sockets.
//!
//! In: what the kernel says of the sockets at the server's port (twice a report) and of its process; the controller's
//! orders. Out: the same reports as of any agent; on order the end of the sockets of clients, at the pace. Invariants:
//! each life of the server is one life of the agent, which begins when it listens and ends with its process or, where
//! that cannot be seen, with its listening socket; nothing is closed but on order, also not when the sidecar ends; who
//! cannot close says so in its hello (`report_only`), and the gateways close their tunnels to the server instead.
//!
//! Less than the SDK can do: a destroyed socket is a reset, without Close frame; handshakes are not refused (gateways
//! place nobody on a server that drains); a connection that came and went between two looks is not counted.
//! Elsewhere: how many and when (`evenkeel_protocol::executor`), what the kernel is asked (`diag`).

mod table;

use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use evenkeel_model::{Connections, Duration, Incarnation, Instant, Measures, Rng};
use evenkeel_protocol::agent::{Held, NodeClock};
use evenkeel_protocol::executor::{Admit, Closes};
use evenkeel_protocol::message::{Key, REPORT_ONLY};
use rustix::io::Errno;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::http::Uri;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::config::{AgentConfig, Checked, Dial, StartError};
use crate::diag::{Diagnosis, Found};
use crate::driver::Status;
use crate::handle::{Life, STOP_WITHIN, prepare};
use crate::process;
use crate::registry::Told;
use crate::source::Source;
use crate::usage::Usage;
use table::Table;

/// A server that is not there is looked for so often, and one that is whether it still is.
const LOOK_EACH: Duration = Duration::from_millis(100);

/// A look at the sockets is good enough to choose from for so long; longer ones would hold those that are gone.
const FRESH: Duration = Duration::from_millis(250);

/// Where the server's process is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerProcess {
    /// It listens at the port. Of several that share the socket the one that began the others counts.
    Listens,
    /// By its id. The sidecar ends with it, since another start has another id.
    Id(u32),
    /// By a file that holds its id, read again for each start.
    File(PathBuf),
}

/// What a sidecar is told at its start.
#[derive(Debug, Clone)]
pub struct SidecarConfig {
    /// The server, and whom to dial. Its `url` has the port whose sockets count. Nobody is admitted by a sidecar, so
    /// `admit`, `origins` and `moves` say nothing here.
    pub agent: AgentConfig,
    /// Where the process is found.
    pub process: ServerProcess,
    /// Closes nothing, even if it could: gateways close their tunnels, with a Close frame. Their counts are the
    /// server's then, so this is for servers whose clients all come through gateways.
    pub report_only: bool,
}

/// Why a sidecar could not start.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// What is said about the server cannot be used.
    #[error(transparent)]
    Config(#[from] StartError),
    /// The kernel does not say which sockets there are.
    #[error("could not ask the kernel for sockets (sock_diag)")]
    Diagnosis(#[source] std::io::Error),
    /// Called outside a tokio runtime.
    #[error("could not start the sidecar outside a tokio runtime")]
    NoRuntime,
}

impl SidecarError {
    /// Short code for logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Config(error) => error.reason(),
            Self::Diagnosis(_) => "no_sock_diag",
            Self::NoRuntime => "no_runtime",
        }
    }
}

/// Whether a sidecar closes connections on order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// It does, by destroying sockets.
    Destroys,
    /// It was told not to.
    ReportOnly,
    /// It may not: `CAP_NET_ADMIN` is missing.
    NotPermitted,
    /// The kernel cannot (`CONFIG_INET_DIAG_DESTROY`), or there is no loopback to try it on.
    NotPossible,
}

impl Closing {
    /// Short code for logs.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Destroys => "destroys",
            Self::ReportOnly => REPORT_ONLY,
            Self::NotPermitted => "no_cap_net_admin",
            Self::NotPossible => "no_inet_diag_destroy",
        }
    }
}

/// A sidecar that is ready to run. See the module's documentation.
#[derive(Debug)]
pub struct Sidecar {
    dial: Dial,
    process: ServerProcess,
    place: Place,
    closing: Closing,
    clock: Clock,
}

/// Where the server listens, as its URL says.
#[derive(Debug, Clone, Copy)]
struct Place {
    port: u16,
    /// Where the URL names an address: of several sockets at the port that one counts.
    host: Option<IpAddr>,
}

/// One life of the server.
struct Server {
    listening: Vec<Found>,
    process: Option<Started>,
    inc: Incarnation,
}

/// A process, told apart from a later one with its id.
#[derive(Debug, Clone, Copy)]
struct Started {
    id: u32,
    started_s: f64,
}

/// How a life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Server,
    Sidecar,
}

impl Sidecar {
    /// Checks what it is told, and tries on a connection of its own whether it may destroy sockets.
    ///
    /// # Errors
    /// [`SidecarError`].
    pub fn new(config: SidecarConfig) -> Result<Self, SidecarError> {
        let place = Place::of(&config.agent.url);
        let Checked { dial, .. } = Checked::try_from(config.agent)?;
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(SidecarError::NoRuntime);
        }
        let mut kernel = open()?;
        let closing = if config.report_only { Closing::ReportOnly } else { tried(&mut kernel) };
        Ok(Self { dial, process: config.process, place, closing, clock: Clock::start() })
    }

    /// Whether it closes connections on order.
    #[must_use]
    pub const fn closing(&self) -> Closing {
        self.closing
    }

    /// Speaks for the server, life after life, until `stop`, or the end of a process that was named by its id.
    ///
    /// # Errors
    /// [`SidecarError::Diagnosis`].
    ///
    /// # Cancel safety
    /// Dropped, its links end without a Close.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), SidecarError> {
        tokio::pin!(stop);
        loop {
            let server = tokio::select! {
                () = &mut stop => return Ok(()),
                server = self.appears() => server?,
            };
            info!(
                port = self.place.port,
                pid = server.process.map(|process| process.id),
                inc = server.inc.0,
                "server found"
            );
            if self.live(server, &mut stop).await? == Ended::Sidecar {
                return Ok(());
            }
            warn!(port = self.place.port, "server ended");
            if matches!(self.process, ServerProcess::Id(_)) {
                return Ok(());
            }
        }
    }

    /// Waits until the server listens.
    async fn appears(&self) -> Result<Server, SidecarError> {
        let mut kernel = open()?;
        let mut waits = false;
        loop {
            let listening = self.place.listening(&mut kernel).map_err(failed)?;
            if let Some(server) = self.server(listening) {
                return Ok(server);
            }
            if !waits {
                info!(port = self.place.port, "waiting for the server to listen");
                waits = true;
            }
            sleep(LOOK_EACH).await;
        }
    }

    /// The server behind these sockets; `None`: not there, or going.
    fn server(&self, listening: Vec<Found>) -> Option<Server> {
        if listening.is_empty() {
            return None;
        }
        let root = Path::new("/");
        let id = match &self.process {
            ServerProcess::Id(id) => Some(*id),
            ServerProcess::File(path) => Some(std::fs::read_to_string(path).ok()?.trim().parse().ok()?),
            ServerProcess::Listens => {
                let inodes: Vec<_> = listening.iter().map(|found| found.inode).collect();
                process::owner(root, &inodes)
            }
        };
        let Some(id) = id else {
            return Some(Server { listening, process: None, inc: Incarnation(self.clock.now().as_millis()) });
        };
        let started_s = process::stat(root, &id.to_string()).filter(|stat| !stat.ended)?.started_s;
        let unix = Duration::from_secs_f64((process::booted_s(root)? + started_s).max(0.0));
        let inc = Incarnation(unix.as_millis() as u64);
        Some(Server { listening, process: Some(Started { id, started_s }), inc })
    }

    /// One life of the server, to its end or ours.
    async fn live(
        &self,
        server: Server,
        stop: &mut (impl Future<Output = ()> + Unpin),
    ) -> Result<Ended, SidecarError> {
        if server.process.is_none() {
            warn!("could not see the server's process: its CPU and memory are unknown");
        }
        let caps = if self.closing == Closing::Destroys { Vec::new() } else { vec![REPORT_ONLY.to_owned()] };
        let now = self.clock.now();
        let beside = Beside {
            kernel: open()?,
            port: self.place.port,
            addresses: addresses(&server.listening),
            table: Table::default(),
            looked: None,
            usage: server.process.map(|process| Usage::of_process(process.id, now)),
            closing: self.closing,
            troubled: false,
        };
        let life = Life { inc: server.inc, caps };
        let (stopping, stopped) = watch::channel(false);
        let (status, _) = watch::channel(Status::START);
        let driver = prepare(self.dial.clone(), life, beside, self.clock, status, &stopped);
        let ended = tokio::select! {
            () = &mut *stop => Ended::Sidecar,
            () = self.ends(&server) => Ended::Server,
            () = driver.run(stopped) => Ended::Sidecar,
        };
        // The links say goodbye, each in its own task.
        stopping.send_replace(true);
        let _ = timeout(STOP_WITHIN, stopping.closed()).await;
        Ok(ended)
    }

    /// Waits for the end of the server.
    async fn ends(&self, server: &Server) {
        let Ok(mut kernel) = open() else { return };
        loop {
            sleep(LOOK_EACH).await;
            let there = match server.process {
                Some(process) => process.lives(),
                // What could not be asked says nothing.
                None => self.place.listening(&mut kernel).map_or(true, |now| listens(server, &now)),
            };
            if !there {
                return;
            }
        }
    }
}

/// Whether one of the sockets of this life is still there.
fn listens(server: &Server, now: &[Found]) -> bool {
    now.iter().any(|found| server.listening.iter().any(|before| before.inode == found.inode))
}

impl Started {
    fn lives(self) -> bool {
        let stat = process::stat(Path::new("/"), &self.id.to_string());
        stat.is_some_and(|stat| !stat.ended && stat.started_s == self.started_s)
    }
}

impl Place {
    fn of(url: &str) -> Self {
        let uri = url.parse::<Uri>().unwrap_or_default();
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("wss") { 443 } else { 80 });
        let host = uri.host().map(|host| host.trim_start_matches('[').trim_end_matches(']'));
        Self { port, host: host.and_then(|host| host.parse().ok()) }
    }

    /// The sockets that listen there.
    fn listening(self, kernel: &mut Diagnosis) -> Result<Vec<Found>, Errno> {
        let all = kernel.listening(self.port)?;
        let wanted = |found: &&Found| Some(found.identity.local().to_canonical()) == self.host;
        let named: Vec<_> = all.iter().filter(wanted).copied().collect();
        Ok(if named.is_empty() { all } else { named })
    }
}

fn open() -> Result<Diagnosis, SidecarError> {
    Diagnosis::open().map_err(failed)
}

fn failed(error: Errno) -> SidecarError {
    SidecarError::Diagnosis(error.into())
}

/// Tries to destroy a connection of our own.
fn tried(kernel: &mut Diagnosis) -> Closing {
    let mut attempt = || -> std::io::Result<()> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let addr = listener.local_addr()?;
        let _near = TcpStream::connect(addr)?;
        let found = kernel.established(addr.port())?;
        let far = found.first().ok_or(std::io::ErrorKind::NotFound)?;
        Ok(kernel.destroy(&far.identity)?)
    };
    match attempt() {
        Ok(()) => Closing::Destroys,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Closing::NotPermitted,
        Err(_) => Closing::NotPossible,
    }
}

/// The local addresses of connections to these sockets; none: any.
fn addresses(listening: &[Found]) -> Vec<Ipv6Addr> {
    let all: Vec<_> = listening.iter().map(|found| found.identity.local()).collect();
    let any = all.iter().any(|addr| addr.to_canonical().is_unspecified());
    if any { Vec::new() } else { all }
}

/// A process beside this one, as an agent speaks for it.
struct Beside {
    kernel: Diagnosis,
    port: u16,
    addresses: Vec<Ipv6Addr>,
    table: Table,
    looked: Option<Instant>,
    usage: Option<Usage>,
    closing: Closing,
    /// Said once.
    troubled: bool,
}

impl Beside {
    fn look(&mut self, now: Instant) {
        match self.kernel.established(self.port) {
            Ok(mut found) => {
                let ours = |found: &Found| self.addresses.contains(&found.identity.local());
                found.retain(|found| self.addresses.is_empty() || ours(found));
                self.table.take(&found, now);
                self.looked = Some(now);
            }
            // The last count stands; the next look is half a report away.
            Err(error) => self.trouble("could not ask the kernel for sockets", error),
        }
    }

    fn trouble(&mut self, what: &'static str, error: Errno) {
        if !self.troubled {
            warn!(error = %error, "{what}");
            self.troubled = true;
        }
    }
}

impl Source for Beside {
    /// The kernel does not say when sockets come and go: they are looked at with each measure.
    fn changed(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    fn woken(&mut self, _: Instant, _: Instant) {}

    fn held(&mut self) -> Held {
        self.table.held()
    }

    fn told(&mut self) -> Told {
        Told::default()
    }

    fn measures(&mut self, now: Instant) -> Measures {
        self.look(now);
        let usage = self.usage.as_mut();
        let (cpu, memory) = usage.map_or((None, None), |usage| (usage.cpu(now), usage.memory()));
        Measures { cpu, memory, ..Measures::default() }
    }

    fn leave(&mut self, closes: &Closes, now: Instant, rng: &mut Rng) -> Connections {
        if self.closing != Closing::Destroys {
            return Connections::ZERO;
        }
        if self.looked.is_none_or(|looked| now.since(looked) > FRESH) {
            self.look(now);
        }
        let mut destroyed = Connections::ZERO;
        for identity in self.table.candidates(closes, now, rng) {
            if destroyed >= closes.count {
                break;
            }
            match self.kernel.destroy(&identity) {
                Ok(()) => destroyed += Connections(1),
                // It went by itself; the kernel knows it by its cookie, so no other one was hit.
                Err(Errno::NOENT | Errno::STALE) => {}
                Err(error) => {
                    self.trouble("could not destroy a socket", error);
                    break;
                }
            }
            self.table.gone(&identity);
        }
        destroyed
    }

    /// The door is the server's own: gateways place nobody there meanwhile.
    fn admit(&mut self, _: Admit, _: Instant) {}

    /// Assignments are not checked here.
    fn keys(&mut self, _: Incarnation, _: &[Key]) {}

    fn clock(&mut self, _: Option<NodeClock>) {}
}
