//! Puts the controller together and starts it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use evenkeel_fleet::controller::Provided;
use evenkeel_fleet::snapshot::{Settlements, Table};
use evenkeel_model::FleetId;
use evenkeel_protocol::keys::MasterKey;
use evenkeel_runtime::file::make_folder;
use evenkeel_runtime::metrics::Shared;
use evenkeel_runtime::{Clock, ListenError, Shutdown, Tasks, listen};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::admin::{self, Admin, Guard};
use crate::config::{ControllerConfig, FleetSettings, Links, ProcessConfig, Provider};
use crate::directory::{Directory, FleetHandle, Owners};
use crate::events::Events;
use crate::fleet::{Fleet, Memory, ToFleet};
use crate::key_file::{KeyFile, KeyFileError, load_or_create, watch_files};
use crate::link::Masters;
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::route::route;
use crate::store::{OpenError, Store};
use crate::token::{Token, TokenError};
use crate::{link, providers};

/// Inputs that wait for a fleet's task: some seconds of reports of a large fleet. Full: links wait, views are
/// dropped, orders are refused after 5 s.
const INPUTS: usize = 1_024;
/// Words of a provider that wait; keepers wait for room.
const PROVIDED: usize = 256;

/// Why the controller did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state folder cannot be made.
    #[error("could not make the folder {} (store.dir)", path.display())]
    StateDir {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// No admin token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// No master key of a fleet.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// No store.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// No admin listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The listener cannot be used.
    #[error("could not use the admin listener")]
    Listener {
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl StartError {
    /// Short code for logs and scripts.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::StateDir { .. } => "state_dir",
            Self::Token(error) => error.reason(),
            Self::Key(error) => error.reason(),
            Self::Store(error) => error.reason(),
            Self::Listen(error) => error.reason(),
            Self::Listener { .. } => "listen_failed",
        }
    }
}

/// What all parts are given.
#[derive(Debug, Clone)]
pub struct Shell {
    /// The clock.
    pub clock: Clock,
    /// When to leave.
    pub shutdown: Shutdown,
    /// Where tasks run.
    pub tasks: Tasks,
    /// Where metrics are registered and read.
    pub registry: Shared,
}

/// A controller that runs. Dropping it leaves it running; it ends with the shutdown it was given, and server
/// processes then stay, to be found again by the next start.
#[derive(Debug)]
pub struct Running {
    admin: SocketAddr,
    masters: Masters,
    providers: Vec<providers::Handle>,
}

impl Running {
    /// Where the admin listener is bound.
    #[must_use]
    pub const fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The master keys as they are now and become, for gateways.
    #[must_use]
    pub fn masters(&self) -> BTreeMap<FleetId, watch::Receiver<MasterKey>> {
        BTreeMap::clone(&self.masters)
    }

    /// Ends every server process that we started and waits for it; no other is started from then on. For a
    /// process that owns its servers, such as the demo. Call it before shutdown reaches [`evenkeel_runtime::Phase::Stop`].
    pub async fn stop_all(mut self) {
        for provider in &mut self.providers {
            provider.stop_all().await;
        }
    }
}

/// Starts the controller: store, token and admin listener first, then the fleets. The store comes first because only
/// one process can have it: a second one on the same folder is refused before it makes or changes anything. The token
/// file is there before the listener accepts.
///
/// # Errors
/// [`StartError`]; nothing runs then.
pub async fn start(config: ControllerConfig, links: Links, shell: Shell) -> Result<Running, StartError> {
    make_folder(&config.state_dir)
        .map_err(|error| StartError::StateDir { path: config.state_dir.clone(), source: error.source })?;
    let store = Store::open(&config.state_dir.join("controller.redb"))?;
    let token = Token::load_or_create(&config.admin.token_file)?;
    let (key_files, masters) = load_keys(&config.fleets)?;
    let listener = listen(config.admin.listen, "admin.listen")?;
    let listener = TcpListener::from_std(listener).map_err(|source| StartError::Listener { source })?;
    let admin_addr = listener.local_addr().map_err(|source| StartError::Listener { source })?;

    let metrics = Metrics::register(&mut shell.registry.lock().unwrap_or_else(PoisonError::into_inner));
    let Links { table, says, installed, settlements, recalled, ready } = links;
    let parts = Parts {
        store,
        owners: Owners::default(),
        publisher: Publisher::new(table, installed),
        events: Events::default(),
        metrics,
        recalled,
        state_dir: config.state_dir,
        shell,
    };
    let mut handles = BTreeMap::new();
    let mut providers = Vec::new();
    for settings in config.fleets {
        let handle = parts.start_fleet(settings, &mut providers);
        handles.insert(handle.id.clone(), handle);
    }
    let directory = Directory::new(handles, parts.owners.clone());
    parts.shell.tasks.spawn(
        "gateway_says",
        route(says, directory.clone(), parts.metrics.clone(), parts.shell.shutdown.clone()),
    );
    let guard = Guard::new(token, admin_addr, &config.admin.hosts);
    let (clock, shutdown) = (parts.shell.clock, parts.shell.shutdown.clone());
    parts.shell.tasks.spawn("key_files", watch_files(key_files, clock, shutdown));
    parts.start_admin(listener, Agents { directory, masters: masters.clone(), settlements }, guard, ready);
    info!(addr = %admin_addr, "admin listener accepts");
    Ok(Running { admin: admin_addr, masters, providers })
}

/// What agent links work with.
struct Agents {
    directory: Directory,
    masters: Masters,
    settlements: Vec<mpsc::Sender<Settlements>>,
}

/// Reads or generates the master key of each fleet.
fn load_keys(fleets: &[FleetSettings]) -> Result<(Vec<KeyFile>, Masters), KeyFileError> {
    let mut files = Vec::new();
    let mut masters = BTreeMap::new();
    for settings in fleets {
        let (fleet, path) = (settings.policy.id.clone(), settings.key_file.clone());
        let (master, seen) = watch::channel(load_or_create(&path)?);
        masters.insert(fleet.clone(), seen);
        files.push(KeyFile { fleet, path, master });
    }
    Ok((files, Arc::new(masters)))
}

struct Parts {
    store: Store,
    owners: Owners,
    publisher: Publisher,
    events: Events,
    metrics: Metrics,
    recalled: Arc<Table>,
    state_dir: PathBuf,
    shell: Shell,
}

impl Parts {
    fn start_fleet(&self, settings: FleetSettings, providers: &mut Vec<providers::Handle>) -> FleetHandle {
        let id = settings.policy.id.clone();
        for server in &settings.servers {
            // Ids were checked to be unique when the configuration was read.
            if let Err(error) = self.owners.claim(&server.id, &id) {
                warn!(fleet = %id, server = %server.id, %error, "configured server left out");
            }
        }
        let (inputs, receiver) = mpsc::channel::<ToFleet>(INPUTS);
        let (says, provided) = mpsc::channel::<Provided>(PROVIDED);
        let provider = match &settings.provider {
            Provider::Static => {
                self.warn_of_orphans(&settings);
                None
            }
            Provider::Process(config) => Some(self.start_provider(&settings, config.clone(), says)),
        };
        providers.extend(provider.clone());
        let memory = Memory::recalling(self.recalled.fleets.get(&id).cloned());
        let handle = FleetHandle { id, inputs, report_interval: settings.report_interval };
        let fleet = Fleet {
            settings,
            store: self.store.clone(),
            owners: self.owners.clone(),
            publisher: self.publisher.clone(),
            events: self.events.clone(),
            metrics: self.metrics.clone(),
            provider,
            clock: self.shell.clock,
            shutdown: self.shell.shutdown.clone(),
            tasks: self.shell.tasks.clone(),
            memory,
        };
        self.shell.tasks.spawn("fleet", fleet.run(receiver, provided));
        handle
    }

    fn start_provider(
        &self,
        settings: &FleetSettings,
        config: ProcessConfig,
        says: mpsc::Sender<Provided>,
    ) -> providers::Handle {
        let (handle, wanted, ended) = providers::Handle::new();
        let log_dir = config.log_dir.clone().unwrap_or_else(|| self.state_dir.join("logs"));
        let context = providers::Context {
            fleet: settings.policy.id.clone(),
            config,
            log_dir,
            store: self.store.clone(),
            says,
            clock: self.shell.clock,
            shutdown: self.shell.shutdown.clone(),
            tasks: self.shell.tasks.clone(),
            ports: Mutex::default(),
            metrics: self.metrics.clone(),
        };
        self.shell.tasks.spawn("provider", providers::run(context, wanted, ended));
        handle
    }

    /// A fleet that used to have a process provider may have left processes behind.
    fn warn_of_orphans(&self, settings: &FleetSettings) {
        for process in self.store.processes(&settings.policy.id).unwrap_or_default() {
            warn!(
                fleet = %settings.policy.id, server = process.server, pid = process.pid,
                "server process of an earlier provider is no longer ours to stop"
            );
        }
    }

    fn start_admin(&self, listener: TcpListener, agents: Agents, guard: Guard, ready: watch::Receiver<bool>) {
        let Shell { clock, shutdown, tasks, registry } = self.shell.clone();
        let Agents { directory, masters, settlements } = agents;
        let links = link::Links {
            directory: directory.clone(),
            masters,
            settlements: settlements.into(),
            clock,
            shutdown: shutdown.clone(),
            metrics: self.metrics.clone(),
            next: Arc::new(AtomicU64::new(1)),
        };
        let router = admin::router(Admin {
            directory,
            events: self.events.clone(),
            links,
            guard,
            ready,
            registry,
            metrics: self.metrics.clone(),
            clock,
            shutdown: shutdown.clone(),
            tasks: tasks.clone(),
        });
        tasks.spawn("admin", admin::serve(listener, router, admin::CONNECTIONS_MAX, shutdown, tasks.clone()));
    }
}
