//! What the controller needs to know. Plain and already validated; the binary reads files and flags.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use evenkeel_fleet::config::FleetConfig;
use evenkeel_fleet::controller::Registration;
use evenkeel_fleet::snapshot::{GatewaySays, Settlements, Table};
use evenkeel_model::Duration;
use tokio::sync::{mpsc, watch};

/// Everything about one controller.
#[derive(Debug, Clone)]
pub struct ControllerConfig {
    /// The admin listener.
    pub admin: AdminConfig,
    /// Fleets, each with its own id. At least one.
    pub fleets: Vec<FleetSettings>,
    /// Folder of the store and of server logs; made if absent (0700). One process at a time.
    pub state_dir: PathBuf,
}

/// The admin listener.
#[derive(Debug, Clone)]
pub struct AdminConfig {
    /// Where to listen. Port 0 takes a free one, see [`crate::Running::admin`].
    pub listen: SocketAddr,
    /// The bearer token; generated (0600) if absent.
    pub token_file: PathBuf,
    /// `Host` names taken besides loopback names and the listening address.
    pub hosts: Vec<String>,
}

/// One fleet.
#[derive(Debug, Clone)]
pub struct FleetSettings {
    /// The control law's constants, and the fleet's id.
    pub policy: FleetConfig,
    /// Configured servers. Others may come by agents.
    pub servers: Vec<Registration>,
    /// Who starts and stops servers.
    pub provider: Provider,
    /// How often agents report. Default 1 s.
    pub report_interval: Duration,
    /// The master key; generated (0600) if absent. Another key in it takes effect within a second or two.
    pub key_file: PathBuf,
}

/// Who starts and stops servers.
#[derive(Debug, Clone)]
pub enum Provider {
    /// Nobody here: the servers are there or come by themselves.
    Static,
    /// We do, as processes on this machine.
    Process(ProcessConfig),
}

/// Servers as processes of ours.
#[derive(Debug, Clone)]
pub struct ProcessConfig {
    /// Program and arguments; `{port}` and `{id}` are replaced in each.
    pub command: Vec<String>,
    /// Added to our own environment; `{port}` and `{id}` are replaced in values.
    pub env: BTreeMap<String, String>,
    /// From SIGTERM to SIGKILL. Default 10 s: enough to flush; a drained server holds no connections.
    pub grace: Duration,
    /// Output of each server, `<id>.log`. Default `state_dir/logs`.
    pub log_dir: Option<PathBuf>,
}

impl ProcessConfig {
    /// Default of [`ProcessConfig::grace`].
    pub const GRACE: Duration = Duration::from_secs(10);

    /// A command with the defaults.
    #[must_use]
    pub fn new(command: Vec<String>) -> Self {
        Self { command, env: BTreeMap::new(), grace: Self::GRACE, log_dir: None }
    }
}

/// The other roles of this process, as ends of channels. The types are `evenkeel_fleet`'s, so that no role knows
/// another.
#[derive(Debug)]
pub struct Links {
    /// The table, to gateways.
    pub table: watch::Sender<Arc<Table>>,
    /// What gateways say. Full: they drop a view and send a newer one.
    pub says: mpsc::Receiver<GatewaySays>,
    /// For each gateway of this process, the highest table version that it obeys. Empty: there is none.
    pub installed: Vec<watch::Receiver<u64>>,
    /// What agents say of assignments, to each gateway of this process. Full: it is dropped, and the gateway counts the
    /// assignment until it expires.
    pub settlements: Vec<mpsc::Sender<Settlements>>,
    /// What the gateways of this process obeyed before it was started, to begin with it. Empty: nothing is known.
    pub recalled: Arc<Table>,
    /// Whether every listener of the process accepts: `/readyz`.
    pub ready: watch::Receiver<bool>,
}
