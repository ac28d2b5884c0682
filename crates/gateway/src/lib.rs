//! The front door: accepts clients, checks their handshakes, places them on servers and carries their bytes.
//!
//! One thread with a runtime for handshakes and everything that waits, with plain shared state; one thread for the
//! bytes of the tunnels. Decisions are made by machines of `evenkeel_fleet` and
//! `evenkeel_protocol` that are driven from here.
//!
//! | step | module |
//! |---|---|
//! | accept, or refuse early; when full, idle clients go first | `accept`, `reading` |
//! | one client's handshake, with retries | `connection`, `connect` |
//! | which server (waiting for credit), how it went | `fleet` |
//! | assignments and tickets: signed, checked | `credentials` |
//! | where to connect: by HTTP, by 307; who may ask | `plain`, `redirect`, `auth`, `fleet::offer`, `backlog` |
//! | plain requests of socket.io's long polling, each to the server of its session | `http_route`, `sessions` |
//! | carry the bytes | `engine` (interface), `uring`, `portable` (with `seats`, `socket`) |
//! | what passes, close between two messages | `tunnel` |
//! | close for servers without agent | `execute` |
//! | check servers without agent | `check` |
//! | tables in, views out, what is due | `pulse` |
//! | what to begin with after a restart | `memory` |
//!
//! Left out so far: TLS, PROXY protocol, trusted forwarding peers. Without a table, published or recalled, a
//! handshake waits for one for as long as it may wait for credit, then gets 503.

mod accept;
mod auth;
mod backlog;
mod check;
pub mod config;
mod connect;
mod connection;
mod credentials;
mod engine;
mod execute;
mod fleet;
mod http_route;
mod memory;
mod metrics;
mod plain;
mod portable;
mod pulse;
mod reading;
mod redirect;
mod seats;
mod sessions;
mod shell;
mod socket;
mod tunnel;
mod uring;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use evenkeel_model::{FleetId, Rng};
use evenkeel_protocol::keys::MasterKey;
use evenkeel_runtime::metrics::Registry;
use evenkeel_runtime::{Clock, ListenError, Shutdown, Tasks, listen};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tracing::{error, info};

pub use config::{
    AuthConfig, CheckConfig, CheckKind, EngineKind, FleetSettings, GatewayConfig, Limits, Links, Route,
    RouteKind, Scheme, TunnelLimits,
};

pub use memory::{RecallError, recall};

use crate::fleet::Fleet;
use crate::metrics::Metrics;
use crate::shell::Shell;

/// Why a gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The engine that was asked for.
    #[error(
        "gateway.engine = \"io_uring\" does not run on this kernel; \"auto\" takes the portable engine instead"
    )]
    Engine(#[source] evenkeel_ring::Unavailable),
    /// A thread or its runtime.
    #[error("could not start the gateway's thread")]
    Thread(#[source] std::io::Error),
}

impl StartError {
    /// Short code for logs and scripts.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Listen(error) => error.reason(),
            Self::Engine(error) => error.reason(),
            Self::Thread(_) => "thread",
        }
    }
}

/// A gateway at work. It ends with its [`Shutdown`].
#[derive(Debug)]
pub struct Running {
    addrs: Vec<SocketAddr>,
    engine: &'static str,
    thread: std::thread::JoinHandle<()>,
}

impl Running {
    /// Where it listens, with the ports that were free.
    #[must_use]
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// The engine that carries its tunnels: `portable` or `io_uring`.
    #[must_use]
    pub fn engine(&self) -> &'static str {
        self.engine
    }

    /// Whether its thread has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end. Blocks: not for async code.
    ///
    /// # Errors
    /// When its thread panicked.
    pub fn join(self) -> std::thread::Result<()> {
        self.thread.join()
    }
}

/// Binds all listeners, then serves on a thread of its own. Clients that come before the first table wait in the
/// kernel for no time and get 503.
///
/// # Errors
/// [`StartError`]; nothing runs then.
pub fn start(
    config: GatewayConfig,
    links: Links,
    clock: Clock,
    shutdown: Shutdown,
    metrics: &mut Registry,
) -> Result<Running, StartError> {
    let mut listeners = Vec::with_capacity(config.listen.len());
    for addr in &config.listen {
        let listener = listen(*addr, "gateway.listen")?;
        connect::prepare(&socket2::SockRef::from(&listener)).map_err(StartError::Thread)?;
        listeners.push(listener);
    }
    let addrs: Result<Vec<_>, _> = listeners.iter().map(std::net::TcpListener::local_addr).collect();
    let addrs = addrs.map_err(StartError::Thread)?;
    let metrics = Metrics::register(metrics);
    let (ready, started) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name("gateway".into())
        .spawn(move || run(config, listeners, links, (clock, shutdown, metrics), &ready))
        .map_err(StartError::Thread)?;
    // An error is a thread that ended before it said anything.
    let ended = || Err(StartError::Thread(std::io::Error::other("the thread ended")));
    let engine = started.recv().unwrap_or_else(|_| ended())?;
    info!(engine, "gateway started");
    Ok(Running { addrs, engine, thread })
}

/// What the gateway's thread says once: the name of its engine, or why it does not run.
type Ready = std::sync::mpsc::SyncSender<Result<&'static str, StartError>>;

/// The gateway's thread.
fn run(
    config: GatewayConfig,
    listeners: Vec<std::net::TcpListener>,
    links: Links,
    base: (Clock, Shutdown, Metrics),
    ready: &Ready,
) {
    let options = tokio::runtime::LocalOptions::default();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build_local(options) {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(StartError::Thread(error)))),
    };
    runtime.block_on(async {
        let (shell, wake) = match shell(config, base, &links.masters) {
            Ok(made) => made,
            Err(error) => return drop(ready.send(Err(StartError::Thread(error)))),
        };
        // Before the first client: it is placed as if nothing had happened.
        for fleet in &shell.fleets {
            if let Some(left) = links.recalled.fleets.get(&fleet.id) {
                fleet.recall(left, shell.clock.now());
            }
        }
        if let Some(path) = links.memory.clone() {
            shell.tasks.spawn_local("memory", memory::remember(Rc::clone(&shell), path));
        }
        for listener in listeners {
            let listener = match TcpListener::from_std(listener) {
                Ok(listener) => listener,
                Err(error) => return drop(ready.send(Err(StartError::Thread(error)))),
            };
            shell.tasks.spawn_local("accept", accept::accept(Rc::clone(&shell), listener));
        }
        let (tunnels, engine) = match start_engine(&shell) {
            Ok(started) => started,
            Err(error) => return drop(ready.send(Err(error))),
        };
        let _ = ready.send(Ok(engine));
        pulse_until_the_end(shell, links, wake, tunnels).await;
    });
}

/// Starts the engine that the configuration asks for; says its name too.
fn start_engine(shell: &Shell) -> Result<(std::thread::JoinHandle<()>, &'static str), StartError> {
    let limits = shell.config.limits.tunnel;
    if shell.config.engine != EngineKind::Portable {
        match uring::start(shell.engine.post(), shell.clock, limits) {
            Ok(thread) => return Ok((thread, "io_uring")),
            Err(uring::NotStarted::Thread(error)) => return Err(StartError::Thread(error)),
            Err(uring::NotStarted::Unavailable(error)) if shell.config.engine == EngineKind::IoUring => {
                return Err(StartError::Engine(error));
            }
            Err(uring::NotStarted::Unavailable(error)) => {
                info!(reason = error.reason(), error = %error, "no io_uring here, so the portable engine");
            }
        }
    }
    let thread = portable::start(shell.engine.post(), shell.clock, limits).map_err(StartError::Thread)?;
    Ok((thread, "portable"))
}

/// Drives the gateway; ends with it, or when its engine does.
async fn pulse_until_the_end(
    shell: Rc<Shell>,
    links: Links,
    wake: Rc<Notify>,
    tunnels: std::thread::JoinHandle<()>,
) {
    let mut ends = shell.tasks.spawn_local("ends", Rc::clone(&shell).take_ends());
    tokio::select! { biased;
        () = pulse::run(Rc::clone(&shell), links, wake) => {}
        // It never ends by itself: better no gateway than one whose tunnels are stuck.
        _ = &mut ends => error!("engine ended, so the gateway does"),
    }
    shell.engine.stop();
    let _ = shell.tasks.join_all(LAST_WAIT).await;
    if tunnels.join().is_err() {
        error!("engine panicked");
    }
}

/// Handshakes under way and aborted tunnels get so long at the very end.
const LAST_WAIT: std::time::Duration = std::time::Duration::from_millis(200);

fn shell(
    config: GatewayConfig,
    (clock, shutdown, metrics): (Clock, Shutdown, Metrics),
    masters: &BTreeMap<FleetId, watch::Receiver<MasterKey>>,
) -> std::io::Result<(Rc<Shell>, Rc<Notify>)> {
    let wake = Rc::new(Notify::new());
    let mut rng = Rng::new(config.seed);
    let fleets = config.fleets.iter().zip(0..).map(|((id, settings), index)| {
        let base = (clock, metrics.clone(), Rc::clone(&wake), masters.get(id).cloned());
        let rng = rng.fork(u64::from(index));
        Rc::new(Fleet::new(id.clone(), index, settings.clone(), &config.id, base, rng))
    });
    let fleets = fleets.collect();
    let shell = Shell::new(config, (clock, shutdown, metrics, Tasks::new()), fleets, rng)?;
    Ok((shell, wake))
}
