//! The configuration after all checks: what `serve` composes the roles from. From here on nothing is checked.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use evenkeel_fleet::config::FleetConfig;
use evenkeel_gateway::config::{AuthConfig, CheckConfig, EngineKind, Limits, RouteKind, Scheme};
use evenkeel_model::{Connections, FleetId, GatewayId, ServerId};
use evenkeel_protocol::negotiate::LocationForm;
use evenkeel_protocol::origin::Origins;
use evenkeel_runtime::log::Format;

/// A whole configuration.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    /// Where relative paths start: the file's directory.
    pub(crate) base: PathBuf,
    /// `[admin]`
    pub(crate) admin: Admin,
    /// `[gateway]`
    pub(crate) gateway: Gateway,
    /// `[log]`
    pub(crate) log: Log,
    /// `[store]`
    pub(crate) store: Store,
    /// `[fleets.NAME]`, by name; never empty for a file that passed.
    pub(crate) fleets: BTreeMap<FleetId, Fleet>,
    /// `[[routes]]`, in order.
    pub(crate) routes: Vec<Route>,
}

/// The admin listener.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Admin {
    /// Where it listens. Default 127.0.0.1:9900.
    pub(crate) listen: SocketAddr,
    /// Bearer token for every change. Default `admin.token` beside the file, generated.
    pub(crate) token_file: PathBuf,
    /// Host names besides the listen address and `localhost` that a request may carry. Default none: a web page
    /// that rebinds its name to a loopback address gets nothing.
    pub(crate) hosts: Vec<String>,
}

/// The public listener.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Gateway {
    /// Its id. Default `gateway`.
    pub(crate) id: GatewayId,
    /// Where it listens. Default 127.0.0.1:8080.
    pub(crate) listen: Vec<SocketAddr>,
    /// How clients name it. Default: by the `Host` of their request.
    pub(crate) public_url: Option<String>,
    /// What carries the bytes of tunnels. Default `auto`.
    pub(crate) engine: EngineKind,
    /// Most client connections at once, handshakes included. Default: what the open-file limit allows.
    pub(crate) connections_max: Option<u32>,
    /// All other bounds. `connections_max` in here is a placeholder until the role starts.
    pub(crate) limits: Limits,
}

/// Logs on stderr.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Log {
    /// Level or filter. Default `info`.
    pub(crate) level: String,
    /// `text` or `json`. Default `text`.
    pub(crate) format: Format,
}

/// Where intents, process records and output of servers are kept.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Store {
    /// Directory, made if absent. Default `evenkeel.state` beside the file.
    pub(crate) dir: PathBuf,
}

/// One fleet.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fleet {
    /// The control law's constants.
    pub(crate) law: FleetConfig,
    /// Divides every default time of the control law; times written in the file count as written. Default 1.
    pub(crate) speed: f64,
    /// How clients reach servers. Default: whoever asks is redirected, the rest proxied.
    pub(crate) scheme: Scheme,
    /// The master key of assignments and moves. Default `NAME.key` beside the file, generated.
    pub(crate) key_file: PathBuf,
    /// Which web pages may connect. Default: those of the host that the request names.
    pub(crate) origins: Origins,
    /// Servers known by name.
    pub(crate) servers: Vec<Server>,
    /// Active checks of servers without agent.
    pub(crate) check: CheckConfig,
    /// How often agents report. Default 1 s.
    pub(crate) report_interval: Duration,
    /// What starts and stops servers; `None`: static.
    pub(crate) provider: Option<Process>,
}

/// One configured server.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Server {
    /// Its id, unique over all fleets.
    pub(crate) id: ServerId,
    /// Where gateways connect.
    pub(crate) url: String,
    /// Where clients connect directly.
    pub(crate) public_url: Option<String>,
    /// Connections it can hold.
    pub(crate) capacity: Option<Connections>,
    /// Zone.
    pub(crate) zone: Option<String>,
    /// Labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// What DNS answers with; empty: the address in a URL of it.
    pub(crate) addresses: Vec<IpAddr>,
}

/// The process provider.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Process {
    /// Program and arguments, with `{port}` and `{id}`.
    pub(crate) command: Vec<String>,
    /// Added to our own environment; values may hold `{port}` and `{id}`.
    pub(crate) env: BTreeMap<String, String>,
    /// From SIGTERM to SIGKILL. Default 10 s.
    pub(crate) grace: Duration,
    /// Where each server's output goes, as `ID.log`. Default `logs` in the store's directory.
    pub(crate) log_dir: Option<PathBuf>,
}

/// One route.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Route {
    /// Host without port, lower case; `None`: any.
    pub(crate) host: Option<String>,
    /// Path prefix at segment boundaries. Default `/`.
    pub(crate) path: String,
    /// Where it leads.
    pub(crate) fleet: FleetId,
    /// Which web pages may connect; `None`: those of the fleet.
    pub(crate) origins: Option<Origins>,
    /// What is spoken there. Default `websocket`.
    pub(crate) kind: RouteKind,
    /// How clients reach servers; `None`: as the fleet says.
    pub(crate) scheme: Option<Scheme>,
    /// How a 307 names the server. Default `ws`.
    pub(crate) location: LocationForm,
    /// Who is asked before anybody is let in.
    pub(crate) auth: Option<AuthConfig>,
}

impl Settings {
    /// All defaults, with relative paths under `base`, and no fleet.
    pub(crate) fn under(base: &std::path::Path) -> Self {
        Self {
            base: base.to_owned(),
            admin: Admin {
                listen: SocketAddr::from(([127, 0, 0, 1], 9900)),
                token_file: base.join("admin.token"),
                hosts: Vec::new(),
            },
            gateway: Gateway::default(),
            log: Log { level: String::from("info"), format: Format::Text },
            store: Store { dir: base.join("evenkeel.state") },
            fleets: BTreeMap::new(),
            routes: Vec::new(),
        }
    }
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            id: GatewayId::new("gateway").expect("the word is an id"),
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 8080))],
            public_url: None,
            engine: EngineKind::Auto,
            connections_max: None,
            // The file must mean the same on every machine; the open-file limit is asked when the role starts.
            limits: Limits::for_open_files(0),
        }
    }
}

impl Fleet {
    /// All defaults at a speed, with relative paths under `base`.
    pub(crate) fn new(id: FleetId, speed: f64, base: &std::path::Path) -> Self {
        Self {
            key_file: base.join(format!("{id}.key")),
            law: FleetConfig::new(id).at_speed(speed),
            speed,
            scheme: Scheme::Auto,
            origins: Origins::default(),
            servers: Vec::new(),
            check: CheckConfig::default(),
            report_interval: Duration::from_secs(1),
            provider: None,
        }
    }
}
