//! What the gateway is told at start, validated by whoever reads it; from here on no checks.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use evenkeel_fleet::snapshot::Table;
use evenkeel_model::{Duration, FleetId, GatewayId};
use evenkeel_protocol::handshake::Deadlines;
use evenkeel_protocol::keys::MasterKey;
use evenkeel_protocol::negotiate::LocationForm;
use evenkeel_protocol::origin::Origins;

pub use crate::check::{CheckConfig, CheckKind};
pub use crate::engine::{EngineKind, TunnelLimits};

/// A gateway: where it listens, what goes to which fleet, what it puts up with.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Its id, unique among the gateways of the same fleets; part of every connection's id.
    pub id: GatewayId,
    /// Where clients come.
    pub listen: Vec<SocketAddr>,
    /// How clients name this gateway: `ws://` or `wss://`. Default `None`: `ws://` and the `Host` of their request.
    pub public_url: Option<String>,
    /// Which fleet takes a host and path. Empty: the only fleet takes everything.
    pub routes: Vec<Route>,
    /// The fleets it places for.
    pub fleets: BTreeMap<FleetId, FleetSettings>,
    /// What carries the bytes of tunnels.
    pub engine: EngineKind,
    /// Bounds.
    pub limits: Limits,
    /// Seed of all chance in this gateway.
    pub seed: u64,
}

/// One route. Of those that match, one with a host wins over one without, then the longest path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Host without port, compared without case; `None`: every host.
    pub host: Option<String>,
    /// Path whose segments the request's path begins with: `/chat` takes `/chat` and `/chat/room`.
    pub path: String,
    /// Where it leads.
    pub fleet: FleetId,
    /// Which pages may connect; `None`: those of the fleet.
    pub origins: Option<Origins>,
    /// What is spoken there.
    pub kind: RouteKind,
    /// How clients reach servers; `None`: as the fleet says.
    pub scheme: Option<Scheme>,
    /// How a 307 names the server.
    pub location: LocationForm,
    /// Who is asked before anybody is let in.
    pub auth: Option<AuthConfig>,
}

/// What is spoken on a route.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RouteKind {
    /// WebSockets.
    #[default]
    WebSocket,
    /// WebSockets, and plain requests too: socket.io with its long polling.
    Http,
    /// ASP.NET SignalR: WebSockets, and its own question where to connect.
    SignalR,
}

/// How clients reach servers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scheme {
    /// Whoever asks is redirected, the rest is proxied.
    #[default]
    Auto,
    /// Everybody is proxied, also who asks.
    Proxy,
    /// Every handshake gets a 307, except a browser's, which does not follow one.
    Redirect,
}

/// Who is asked whether a request may go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthConfig {
    /// `http://host[:port][/path]`; asked by GET: 2xx lets in, 401 and 403 refuse.
    pub url: String,
    /// Longest time to its answer. Default 2 s.
    pub timeout: Duration,
}

impl AuthConfig {
    /// The default of [`AuthConfig::timeout`]: longer than a busy service takes, shorter than clients wait.
    pub const TIMEOUT: Duration = Duration::from_secs(2);
}

/// Where a request leads, and by which rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Routed<'a> {
    pub(crate) fleet: &'a FleetId,
    pub(crate) origins: &'a Origins,
    pub(crate) kind: RouteKind,
    pub(crate) scheme: Scheme,
    pub(crate) location: LocationForm,
    pub(crate) auth: Option<&'a AuthConfig>,
}

/// What a gateway needs to know of a fleet beside its snapshots.
#[derive(Debug, Clone)]
pub struct FleetSettings {
    /// How servers without agent are checked.
    pub check: CheckConfig,
    /// Code of the Close frames by which this gateway closes tunnels on order. Default 1012.
    pub close_code: u16,
    /// Which pages may connect, where the route does not say. Default: those of the request's own host.
    pub origins: Origins,
    /// How clients reach servers, where the route does not say.
    pub scheme: Scheme,
}

impl Default for FleetSettings {
    fn default() -> Self {
        Self {
            check: CheckConfig::default(),
            close_code: 1012,
            origins: Origins::default(),
            scheme: Scheme::default(),
        }
    }
}

/// Bounds on what clients and servers can cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most connections at once, handshakes included; above, 503 at once. Default by [`Limits::connections_within`].
    pub connections_max: usize,
    /// Most handshakes under way of one client prefix (/32, /64), loopback excepted, where a proxy or a test may
    /// stand for many clients. Default 1,000: an office behind one address reconnecting; above, 503.
    pub handshakes_per_prefix_max: u32,
    /// Deadlines of the heads.
    pub heads: Deadlines,
    /// Longest time for a server to accept. Default 1 s: three SYNs of a near network, then another server.
    pub connect: Duration,
    /// Servers tried after the first. Default 2.
    pub retries: usize,
    /// How tunnels end that do not end by themselves.
    pub tunnel: TunnelLimits,
    /// Longest silence of a server that answers a plain request, before and within the answer. Default 60 s: socket.io
    /// answers a poll after its `pingInterval` of 25 s at the latest.
    pub long_poll: Duration,
    /// On leaving, all tunnels are told so within this. Default 2 s: spread, so that clients do not come back in
    /// one instant.
    pub stop_within: Duration,
}

/// Descriptors kept for what is there whatever the fleets are: about 40 for streams, event loops, listeners, store
/// and logs, 64 clients that are refused because there are too many, and as many people and scripts at the admin
/// listener.
const FILES_ALWAYS: u64 = 192;
/// Descriptors kept for each server that is expected: its agent's link or our check of it, its process, its output
/// while it starts, and a new link beside one that is not known to be dead yet.
const FILES_PER_SERVER: u64 = 4;
/// One descriptor in so many is kept as well, for servers that nobody expected: they come by agents.
const FILES_SHARE: u64 = 32;

impl Limits {
    /// The most connections of a process that may open so many files and expects so many servers: each takes two
    /// files, and enough stay free for everything else in the process, but at most half. A gateway that took those
    /// too would lock out agents and operators just when they matter.
    #[must_use]
    pub fn connections_within(open_files: u64, servers: u64) -> usize {
        let kept =
            servers.saturating_mul(FILES_PER_SERVER).saturating_add(FILES_ALWAYS + open_files / FILES_SHARE);
        let connections = (open_files - kept.min(open_files / 2)) / 2;
        usize::try_from(connections).unwrap_or(usize::MAX).max(1)
    }

    /// The defaults for a process that may open so many files and expects no servers by name.
    #[must_use]
    pub fn for_open_files(open_files: u64) -> Self {
        Self {
            connections_max: Self::connections_within(open_files, 0),
            handshakes_per_prefix_max: 1_000,
            heads: Deadlines::default(),
            connect: Duration::from_secs(1),
            retries: 2,
            tunnel: TunnelLimits::default(),
            long_poll: Duration::from_secs(60),
            stop_within: Duration::from_secs(2),
        }
    }
}

impl GatewayConfig {
    /// Where a request leads; `None`: nobody takes it.
    pub(crate) fn route(&self, host: &str, path: &str) -> Option<Routed<'_>> {
        if self.routes.is_empty() {
            let (fleet, settings) = self.fleets.iter().next()?;
            return Some(settings.routed(fleet));
        }
        let path = decoded(path);
        let matching = self.of_host(host).filter(|route| covers(&decoded(&route.path), &path));
        let route = matching.max_by_key(|route| (route.host.is_some(), route.path.len()))?;
        self.routed(route)
    }

    /// Everywhere that a request for this host may lead, whatever its path.
    pub(crate) fn anywhere(&self, host: &str) -> impl Iterator<Item = Routed<'_>> {
        let only = self.fleets.iter().next().filter(|_| self.routes.is_empty());
        let only = only.map(|(fleet, settings)| settings.routed(fleet));
        self.of_host(host).filter_map(|route| self.routed(route)).chain(only)
    }

    fn of_host(&self, host: &str) -> impl Iterator<Item = &Route> {
        let name = host_name(host).to_owned();
        let mine = move |own: &str| own.eq_ignore_ascii_case(&name);
        self.routes.iter().filter(move |route| route.host.as_deref().is_none_or(&mine))
    }

    fn routed<'a>(&'a self, route: &'a Route) -> Option<Routed<'a>> {
        let (fleet, settings) = self.fleets.get_key_value(&route.fleet)?;
        Some(Routed {
            fleet,
            origins: route.origins.as_ref().unwrap_or(&settings.origins),
            kind: route.kind,
            scheme: route.scheme.unwrap_or(settings.scheme),
            location: route.location,
            auth: route.auth.as_ref(),
        })
    }
}

impl FleetSettings {
    /// Without routes.
    fn routed<'a>(&'a self, fleet: &'a FleetId) -> Routed<'a> {
        let Self { origins, scheme, .. } = self;
        let (kind, location) = (RouteKind::default(), LocationForm::default());
        Routed { fleet, origins, kind, scheme: *scheme, location, auth: None }
    }
}

/// The name in a `Host` field: without port, and without the dot that ends a full DNS name.
fn host_name(host: &str) -> &str {
    let name =
        host.rsplit_once(':').map_or(host, |(name, port)| if port.ends_with(']') { host } else { name });
    name.strip_suffix('.').unwrap_or(name)
}

/// A path as a careless server may read it: percent-encoding undone, so that `/%63hat` does not go round the route of
/// `/chat` and its rules. The server gets the path as it was sent.
fn decoded(path: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, behind @ ..] = rest {
        rest = behind;
        out.push(*first);
        if let (b'%', [high, low, behind @ ..]) = (*first, behind)
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            rest = behind;
            out.pop();
            out.push(high << 4 | low);
        }
    }
    out
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// Whether the segments of `prefix` begin `path`. Empty segments do not count, nor what stands behind `;`: there are
/// servers that drop them.
fn covers(prefix: &[u8], path: &[u8]) -> bool {
    let mut path = segments(path);
    segments(prefix).all(|wanted| path.next() == Some(wanted))
}

fn segments(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let names = path
        .split(|byte| *byte == b'/')
        .map(|segment| segment.split(|byte| *byte == b';').next().unwrap_or_default());
    names.filter(|name| !name.is_empty())
}

/// What connects a gateway with a controller in the same process.
#[derive(Debug)]
pub struct Links {
    /// The latest table; the sender gone means: go on with what there is.
    pub table: tokio::sync::watch::Receiver<std::sync::Arc<Table>>,
    /// Views and checks. When it is full, a view is not taken and a newer one follows.
    pub says: tokio::sync::mpsc::Sender<evenkeel_fleet::snapshot::GatewaySays>,
    /// Highest version of the table that is obeyed.
    pub installed: tokio::sync::watch::Sender<u64>,
    /// The master key of each fleet, as it is now and becomes. A fleet without one makes no assignments.
    pub masters: BTreeMap<FleetId, tokio::sync::watch::Receiver<MasterKey>>,
    /// What agents say of assignments; the sender gone means: they expire.
    pub settlements: tokio::sync::mpsc::Receiver<evenkeel_fleet::snapshot::Settlements>,
    /// What an earlier gateway left, to place by until the first table comes; see [`crate::recall`].
    pub recalled: std::sync::Arc<Table>,
    /// The file in which to leave the same for a later one; `None`: nothing is left.
    pub memory: Option<std::path::PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(fleet: &str) -> FleetId {
        FleetId::new(fleet).unwrap()
    }

    fn config(routes: &[(Option<&str>, &str, &str)]) -> GatewayConfig {
        let route = |(host, path, fleet): &(Option<&str>, &str, &str)| Route {
            host: host.map(Into::into),
            path: (*path).into(),
            fleet: id(fleet),
            origins: None,
            kind: RouteKind::WebSocket,
            scheme: None,
            location: LocationForm::Ws,
            auth: None,
        };
        let fleets = routes.iter().map(|(_, _, fleet)| *fleet).chain(routes.is_empty().then_some("only"));
        GatewayConfig {
            id: GatewayId::new("g").unwrap(),
            listen: Vec::new(),
            public_url: None,
            routes: routes.iter().map(route).collect(),
            fleets: fleets.map(|fleet| (id(fleet), FleetSettings::default())).collect(),
            engine: EngineKind::Auto,
            limits: Limits::for_open_files(1_024),
            seed: 1,
        }
    }

    #[test]
    fn without_routes_the_only_fleet_takes_everything() {
        assert_eq!(config(&[]).route("any", "/x").unwrap().fleet.as_str(), "only");
    }

    #[test]
    fn the_most_specific_route_takes_a_request() {
        let config = config(&[
            (None, "/", "rest"),
            (None, "/chat", "chat"),
            (Some("a.example"), "/", "a"),
            (Some("a.example"), "/chat/vip", "vip"),
        ]);
        for (host, path, fleet) in [
            ("b.example", "/x", "rest"),
            ("b.example:80", "/chat", "chat"),
            ("b.example", "/chat/room", "chat"),
            ("b.example", "/chatter", "rest"),
            ("A.example:80", "/chat", "a"),
            ("a.example", "/chat/vip", "vip"),
            ("[::1]:80", "/", "rest"),
            ("a.example.", "/chat/vip/room", "vip"),
        ] {
            assert_eq!(config.route(host, path).unwrap().fleet.as_str(), fleet, "{host}{path}");
        }
    }

    #[test]
    fn no_other_spelling_of_a_path_goes_round_its_route() {
        let config = config(&[(None, "/", "rest"), (None, "/chat/caf%c3%a9", "chat")]);
        for path in [
            "/chat/caf%C3%A9",
            "/%63h%61t/caf%C3%A9/room",
            "//chat///caf%C3%A9",
            "/chat%2Fcaf%C3%A9",
            "/chat;a=b/caf%C3%A9;c",
        ] {
            assert_eq!(config.route("a", path).unwrap().fleet.as_str(), "chat", "{path}");
        }
        for path in [
            "/",
            "/chat",
            "/chat/caf",
            "/chat/caf%C3%A9s",
            "/chat/caf%C3%A",
            "/%",
            "/%+63hat",
            "/chat%252Fcaf%C3%A9",
        ] {
            assert_eq!(config.route("a", path).unwrap().fleet.as_str(), "rest", "{path}");
        }
    }

    #[test]
    fn the_origins_of_a_route_replace_those_of_its_fleet() {
        let mut config = config(&[(None, "/", "chat"), (None, "/open", "chat")]);
        config.fleets.get_mut(&id("chat")).unwrap().origins = Origins::Only(Vec::new());
        config.routes[1].origins = Some(Origins::Any);
        assert_eq!(config.route("a", "/x").unwrap().origins, &Origins::Only(Vec::new()));
        assert_eq!(config.route("a", "/open/x").unwrap().origins, &Origins::Any);
    }

    #[test]
    fn nothing_takes_what_no_route_covers() {
        assert_eq!(config(&[(None, "/chat", "chat")]).route("a", "/other"), None);
    }

    #[test]
    fn the_open_file_limit_bounds_connections() {
        assert_eq!(Limits::for_open_files(20_000).connections_max, (20_000 - 192 - 625) / 2);
        assert_eq!(Limits::for_open_files(0).connections_max, 1);
    }

    #[test]
    fn what_is_kept_free_grows_with_the_servers_up_to_half() {
        for (open_files, servers) in [(1_024, 3), (20_000, 500), (1 << 20, 10_000)] {
            let tunnels = 2 * Limits::connections_within(open_files, servers) as u64;
            assert!(open_files - tunnels >= 192 + 4 * servers, "{open_files} {servers}");
            assert!(tunnels >= open_files / 2, "{open_files} {servers}");
        }
        assert_eq!(Limits::connections_within(1_024, 10_000), 256);
        assert_eq!(
            Limits::connections_within(u64::MAX, u64::MAX),
            usize::try_from(u64::MAX / 4 + 1).unwrap()
        );
    }
}
