//! From what is written to what is meant: [`RawFile`] → [`Settings`], with every mistake noted.
//!
//! One function for each table of the file, in the file's order. A table that is absent keeps its defaults; keys
//! of features that are not built yet are refused by name.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use evenkeel_controller::registration::{check_public_url, check_server_url};
use evenkeel_fleet::config::{PickRule, ScaleConfig};
use evenkeel_gateway::config::{AuthConfig, CheckConfig, CheckKind, EngineKind, RouteKind, Scheme};
use evenkeel_model::{Connections, FleetId, GatewayId, ServerId};
use evenkeel_protocol::negotiate::LocationForm;
use evenkeel_protocol::origin::{Origin, Origins};
use evenkeel_runtime::log::{self, Format};
use toml::Value;

use super::law::law;
use super::problem::{At, Problems, Reader};
use super::raw::{
    Named, RawAdmin, RawAuth, RawCheck, RawFile, RawFleet, RawGateway, RawLog, RawProvider, RawRoute,
    RawServer, RawStore,
};
use super::settings::{Admin, Fleet, Gateway, Log, Process, Route, Server, Settings, Store};
use super::unit::show_duration;

pub(super) const DAY: Duration = Duration::from_secs(86_400);
pub(super) const HOUR: Duration = Duration::from_secs(3_600);
pub(super) const MILLI: Duration = Duration::from_millis(1);

/// Placement rules by name.
pub(super) const PICKS: [(&str, PickRule); 6] = [
    ("auto", PickRule::Auto),
    ("least_utilised", PickRule::LeastUtilised),
    ("sampled", PickRule::Sampled),
    ("leastconn", PickRule::Leastconn),
    ("round_robin", PickRule::RoundRobin),
    ("random", PickRule::Random),
];
/// Kinds of check by name.
pub(super) const CHECKS: [(&str, CheckKind); 3] =
    [("websocket", CheckKind::WebSocket), ("http", CheckKind::Http), ("tcp", CheckKind::Tcp)];
/// Engines by name.
pub(super) const ENGINES: [(&str, EngineKind); 3] =
    [("auto", EngineKind::Auto), ("portable", EngineKind::Portable), ("io_uring", EngineKind::IoUring)];
/// Schemes by name.
pub(super) const SCHEMES: [(&str, Scheme); 3] =
    [("auto", Scheme::Auto), ("proxy", Scheme::Proxy), ("redirect", Scheme::Redirect)];
/// Kinds of route by name.
pub(super) const KINDS: [(&str, RouteKind); 3] =
    [("websocket", RouteKind::WebSocket), ("http", RouteKind::Http), ("signalr", RouteKind::SignalR)];
/// Forms of a `Location` by name.
pub(super) const LOCATIONS: [(&str, LocationForm); 3] =
    [("ws", LocationForm::Ws), ("http", LocationForm::Http), ("relative", LocationForm::Relative)];
/// Log formats by name.
pub(super) const FORMATS: [(&str, Format); 2] = [("text", Format::Text), ("json", Format::Json)];

impl RawFile {
    /// Checks everything. `base` is where relative paths start.
    pub(crate) fn check(&self, base: &Path) -> Result<Settings, Problems> {
        let mut problems = Problems::default();
        let mut settings = Settings::under(base);
        let p = &mut problems;
        if let Some(raw) = &self.admin {
            admin(raw, base, &mut settings.admin, p);
        }
        if let Some(raw) = &self.gateway {
            gateway(raw, &mut settings.gateway, p);
        }
        if let Some(raw) = &self.log {
            log_settings(raw, &mut settings.log, p);
        }
        if let Some(raw) = &self.store {
            store(raw, base, &mut settings.store, p);
        }
        for (key, value) in [("dns", &self.dns), ("drivers", &self.drivers), ("cluster", &self.cluster)] {
            p.not_yet(&At::TOP, key, value.as_ref(), "");
        }
        settings.fleets = fleets(self.fleets.as_ref(), base, p);
        pending(self.fleets.as_ref(), &mut settings, p);
        settings.routes = routes(self.routes.as_deref().unwrap_or_default(), &settings.fleets, p);
        distinct_listeners(&settings, p);
        if problems.0.is_empty() { Ok(settings) } else { Err(problems) }
    }
}

fn admin(raw: &RawAdmin, base: &Path, into: &mut Admin, problems: &mut Problems) {
    let mut r = Reader { at: At::TOP.table("admin"), problems };
    if let Some(addr) = address(&mut r, "listen", raw.listen.as_ref(), "127.0.0.1:9900") {
        into.listen = addr;
    }
    if let Some(path) = path(&mut r, "token_file", raw.token_file.as_ref(), base, "admin.token") {
        into.token_file = path;
    }
    let host = |text: &str| valid_host(text).then(|| text.to_ascii_lowercase());
    if let Some(hosts) =
        r.list("hosts", raw.hosts.as_ref(), host, "host names without port", "evenkeel.internal")
    {
        into.hosts = hosts;
    }
    r.not_yet("tls", raw.tls.as_ref(), "listen on a loopback address");
}

fn gateway(raw: &RawGateway, into: &mut Gateway, problems: &mut Problems) {
    let mut r = Reader { at: At::TOP.table("gateway"), problems };
    let id = |text: &str| GatewayId::new(text).ok();
    if let Some(id) = r.text("id", raw.id.as_ref(), id, ID_ALLOWED, "gateway-1") {
        into.id = id;
    }
    let addr = |text: &str| text.parse::<SocketAddr>().ok();
    if let Some(listen) = r.list("listen", raw.listen.as_ref(), addr, ADDR_ALLOWED, "127.0.0.1:8080") {
        if raw.listen.as_ref().and_then(Value::as_array).is_some_and(Vec::is_empty) {
            let raw = Value::Array(Vec::new());
            r.problems.note(
                r.at.key("listen"),
                &raw,
                "allowed is at least one address with port",
                "[\"127.0.0.1:8080\"]",
            );
        }
        into.listen = listen;
    }
    let public = |text: &str| check_public_url(text).is_ok().then(|| text.to_owned());
    into.public_url =
        r.text("public_url", raw.public_url.as_ref(), public, PUBLIC_URL_ALLOWED, "wss://ws.example.com");
    engine(&mut r, raw, into);
    limits(&mut r, raw, into);
    for (key, value) in [
        ("ping_interval", &raw.ping_interval),
        ("tls", &raw.tls),
        ("limits", &raw.limits),
        ("trusted_proxies", &raw.trusted_proxies),
        ("proxy_protocol", &raw.proxy_protocol),
    ] {
        r.not_yet(key, value.as_ref(), "");
    }
}

fn limits(r: &mut Reader<'_>, raw: &RawGateway, into: &mut Gateway) {
    if raw.connections_max.is_some() {
        let mut most = 0;
        r.whole("connections_max", raw.connections_max.as_ref(), &mut most, 1..=10_000_000, 100_000);
        into.connections_max = Some(most);
    }
    let it = &mut into.limits;
    let prefix = &mut it.handshakes_per_prefix_max;
    r.whole(
        "handshakes_per_prefix_max",
        raw.handshakes_per_prefix_max.as_ref(),
        prefix,
        1..=10_000_000,
        1_000,
    );
    let mut retries = u32::try_from(it.retries).unwrap_or(u32::MAX);
    r.whole("retries", raw.retries.as_ref(), &mut retries, 0..=10, 2);
    it.retries = retries as usize;
    for (key, raw, into, example) in [
        ("client_head_timeout", &raw.client_head_timeout, &mut it.heads.client_head, "10s"),
        ("server_head_timeout", &raw.server_head_timeout, &mut it.heads.server_head, "1s"),
        ("connect_timeout", &raw.connect_timeout, &mut it.connect, "1s"),
        ("close_timeout", &raw.close_timeout, &mut it.tunnel.close_wait, "5s"),
        ("write_timeout", &raw.write_timeout, &mut it.tunnel.write_deadline, "10s"),
        ("half_open_timeout", &raw.half_open_timeout, &mut it.tunnel.half_open, "30s"),
        ("long_poll_timeout", &raw.long_poll_timeout, &mut it.long_poll, "60s"),
        ("stop_within", &raw.stop_within, &mut it.stop_within, "2s"),
    ] {
        r.duration(key, raw.as_ref(), into, MILLI..=HOUR, example);
    }
    if raw.idle_timeout.is_some() {
        let mut idle = DAY;
        r.duration(
            "idle_timeout",
            raw.idle_timeout.as_ref(),
            &mut idle,
            Duration::from_secs(1)..=7 * DAY,
            "1h",
        );
        it.tunnel.idle = Some(idle);
    }
}

fn engine(r: &mut Reader<'_>, raw: &RawGateway, into: &mut Gateway) {
    r.word("engine", raw.engine.as_ref(), &mut into.engine, &ENGINES);
    if raw.threads.as_ref().and_then(Value::as_integer).is_some_and(|threads| threads > 1) {
        r.not_yet("threads", raw.threads.as_ref(), "use 1");
    } else {
        r.whole("threads", raw.threads.as_ref(), &mut 1, 1..=1, 1);
    }
}

fn log_settings(raw: &RawLog, into: &mut Log, problems: &mut Problems) {
    let mut r = Reader { at: At::TOP.table("log"), problems };
    let level = |text: &str| log::check_level(text).is_ok().then(|| text.to_owned());
    let allowed = "error, warn, info, debug, trace, or a filter by module";
    if let Some(level) = r.text("level", raw.level.as_ref(), level, allowed, "info,evenkeel_gateway=debug") {
        into.level = level;
    }
    r.word("format", raw.format.as_ref(), &mut into.format, &FORMATS);
}

fn store(raw: &RawStore, base: &Path, into: &mut Store, problems: &mut Problems) {
    let mut r = Reader { at: At::TOP.table("store"), problems };
    if let Some(dir) = path(&mut r, "dir", raw.dir.as_ref(), base, "evenkeel.state") {
        into.dir = dir;
    }
}

fn fleets(raw: Option<&Named<RawFleet>>, base: &Path, problems: &mut Problems) -> BTreeMap<FleetId, Fleet> {
    let mut fleets = BTreeMap::new();
    let mut servers = BTreeSet::new();
    for (name, raw) in raw.into_iter().flatten() {
        let at = At::TOP.table("fleets").table(name);
        match FleetId::new(name) {
            Ok(id) => {
                let fleet = fleet(id.clone(), raw, &at, base, problems);
                for (index, server) in fleet.servers.iter().enumerate() {
                    if !servers.insert(server.id.clone()) {
                        let value = Value::String(server.id.to_string());
                        let key = at.item("servers", index).key("id");
                        problems.note(
                            key,
                            &value,
                            "allowed is an id that no other server has, over all fleets",
                            "",
                        );
                    }
                }
                fleets.insert(id, fleet);
            }
            Err(_) => problems.note(
                String::from("fleets"),
                &Value::String(name.clone()),
                format!("allowed as name is {ID_ALLOWED}"),
                "[fleets.chat]",
            ),
        }
    }
    if raw.is_none_or(BTreeMap::is_empty) {
        let allowed = "at least one fleet is needed";
        let example = "fleets.chat.servers = [{ id = \"a\", url = \"ws://127.0.0.1:9001\" }]";
        problems.missing(String::from("fleets"), allowed, example);
    }
    fleets
}

/// A placement may be on its way for as long as a server has to accept and to answer, and counts until then: a drain
/// that no longer sees it would end the server under it.
fn pending(raw: Option<&Named<RawFleet>>, settings: &mut Settings, problems: &mut Problems) {
    let limits = &settings.gateway.limits;
    let least = limits.connect.saturating_add(limits.heads.server_head);
    for (id, fleet) in &mut settings.fleets {
        let place = raw.and_then(|fleets| fleets.get(id.as_str())?.place.as_ref());
        let ttl = &mut fleet.law.place.pending_ttl;
        match place.and_then(|place| place.pending_ttl.as_ref()) {
            None => *ttl = (*ttl).max(least),
            Some(given) if *ttl < least => {
                let key = At::TOP.table("fleets").table(id.as_str()).table("place").key("pending_ttl");
                let allowed = format!(
                    "allowed is at least gateway.connect_timeout and gateway.server_head_timeout together, {}",
                    show_duration(least)
                );
                problems.note(key, given, allowed, &format!("{:?}", show_duration(least)));
            }
            Some(_) => {}
        }
    }
}

fn fleet(id: FleetId, raw: &RawFleet, at: &At<'_>, base: &Path, problems: &mut Problems) -> Fleet {
    let mut speed = 1.0;
    let mut r = Reader { at: at.clone(), problems };
    r.number("speed", raw.speed.as_ref(), &mut speed, 0.01..=1_000.0, 10.0);
    let mut fleet = Fleet::new(id.clone(), speed, base);
    if raw.scale.is_some() {
        let mut scaled = evenkeel_fleet::config::FleetConfig::new(id);
        scaled.scale = Some(ScaleConfig::default());
        fleet.law = scaled.at_speed(speed);
    }
    r.word("scheme", raw.scheme.as_ref(), &mut fleet.scheme, &SCHEMES);
    r.word("pick", raw.pick.as_ref(), &mut fleet.law.place.pick, &PICKS);
    if let Some(path) = path(&mut r, "key_file", raw.key_file.as_ref(), base, "chat.key") {
        fleet.key_file = path;
    }
    if let Some(origins) = origins(&mut r, raw.origins.as_ref()) {
        fleet.origins = origins;
    }
    for (index, raw) in raw.servers.iter().flatten().enumerate() {
        fleet.servers.extend(server(raw, at.item("servers", index), problems));
    }
    law(raw, at, &mut fleet, problems);
    if let Some(raw) = &raw.check {
        check(raw, Reader { at: at.table("check"), problems }, &mut fleet.check);
    }
    silence(raw, &at.table("health"), &mut fleet, problems);
    if let Some(raw) = &raw.provider {
        fleet.provider = provider(raw, base, Reader { at: at.table("provider"), problems });
    } else if raw.scale.is_some() {
        let allowed = "only a provider starts and stops servers; leave scale out, or add one";
        problems.missing(
            at.key("provider"),
            allowed,
            &format!("kind = \"process\", command = {COMMAND_EXAMPLE}"),
        );
    }
    fleet
}

fn server(raw: &RawServer, at: At<'static>, problems: &mut Problems) -> Option<Server> {
    let mut r = Reader { at, problems };
    require(&mut r, "id", raw.id.as_ref(), ID_ALLOWED, "a");
    require(&mut r, "url", raw.url.as_ref(), URL_ALLOWED, "ws://127.0.0.1:9001");
    let id = r.text("id", raw.id.as_ref(), |text| ServerId::new(text).ok(), ID_ALLOWED, "a");
    let url = if raw.url.as_ref().and_then(Value::as_str).is_some_and(|url| url.starts_with("wss://")) {
        r.not_yet("url", raw.url.as_ref(), "gateways reach servers by ws:// only");
        None
    } else {
        let url = |text: &str| check_server_url(text).is_ok().then(|| text.to_owned());
        r.text("url", raw.url.as_ref(), url, URL_ALLOWED, "ws://127.0.0.1:9001")
    };
    let public = |text: &str| check_public_url(text).is_ok().then(|| text.to_owned());
    let example = "wss://a.ws.example.com";
    let public_url = r.text("public_url", raw.public_url.as_ref(), public, PUBLIC_URL_ALLOWED, example);
    let mut capacity = 0;
    r.whole("capacity", raw.capacity.as_ref(), &mut capacity, 1..=100_000_000, 10_000);
    let word = |text: &str| (!text.is_empty() && text.len() <= 128).then(|| text.to_owned());
    let zone = r.text("zone", raw.zone.as_ref(), word, "a text of 1 to 128 characters", "z1");
    let labels = labels(&mut r, raw.labels.as_ref());
    let address =
        |text: &str| text.parse::<IpAddr>().ok().filter(|ip| !ip.is_unspecified() && !ip.is_multicast());
    let addresses =
        r.list("addresses", raw.addresses.as_ref(), address, "IP addresses without port", "192.0.2.1");
    let addresses = addresses.unwrap_or_default();
    let capacity = (capacity > 0).then_some(Connections(capacity));
    Some(Server { id: id?, url: url?, public_url, capacity, zone, labels, addresses })
}

/// `None`: not given. `"*"` among them allows all.
fn origins(r: &mut Reader<'_>, raw: Option<&Value>) -> Option<Origins> {
    // `None` inside stands for `"*"`.
    let origin = |text: &str| match text {
        "*" => Some(None),
        text => Origin::parse(text).ok().map(Some),
    };
    let listed = r.list("origins", raw, origin, ORIGINS_ALLOWED, "https://app.example.com")?;
    Some(listed.into_iter().collect::<Option<Vec<_>>>().map_or(Origins::Any, Origins::Only))
}

fn labels(r: &mut Reader<'_>, raw: Option<&Named<Value>>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for (name, value) in raw.into_iter().flatten() {
        let text = |text: &str| Some(text.to_owned());
        if let Some(text) = r.text(&format!("labels.{name}"), Some(value), text, "a text", "v2") {
            labels.insert(name.clone(), text);
        }
    }
    labels
}

/// Silence counts only after a sign of life is missing: the default grows with the interval between two of them,
/// and what the file says must be longer, or healthy servers would be suspect between two reports.
fn silence(raw: &RawFleet, at: &At<'_>, fleet: &mut Fleet, problems: &mut Problems) {
    let checked = raw.check.as_ref().and_then(|check| check.interval.as_ref());
    let (key, interval) = match checked {
        Some(_) if fleet.check.interval > fleet.report_interval => ("check.interval", fleet.check.interval),
        _ => ("health.report_interval", fleet.report_interval),
    };
    let suspect_after = &mut fleet.law.health.suspect_after;
    match raw.health.as_ref().and_then(|health| health.suspect_after.as_ref()) {
        None => *suspect_after = (*suspect_after).max(interval.mul_f64(1.5)),
        Some(given) if *suspect_after < interval.mul_f64(1.25) => {
            let allowed =
                format!("allowed is at least 1.25 times {key}, {}", show_duration(interval.mul_f64(1.25)));
            let example = format!("{:?}", show_duration(interval.mul_f64(1.5)));
            problems.note(at.key("suspect_after"), given, allowed, &example);
        }
        Some(_) => {}
    }
}

fn check(raw: &RawCheck, mut r: Reader<'_>, into: &mut CheckConfig) {
    r.word("kind", raw.kind.as_ref(), &mut into.kind, &CHECKS);
    let path = |text: &str| valid_path(text).then(|| text.to_owned());
    if let Some(path) = r.text("path", raw.path.as_ref(), path, PATH_ALLOWED, "/health") {
        into.path = path;
    }
    let range = Duration::from_millis(10)..=HOUR;
    r.duration("interval", raw.interval.as_ref(), &mut into.interval, range.clone(), "1s");
    r.duration("timeout", raw.timeout.as_ref(), &mut into.timeout, range, "1s");
    r.whole("fall", raw.fall.as_ref(), &mut into.fall, 1..=1_000, 2);
    r.whole("rise", raw.rise.as_ref(), &mut into.rise, 1..=1_000, 1);
}

fn provider(raw: &RawProvider, base: &Path, mut r: Reader<'_>) -> Option<Process> {
    let kind = raw.kind.as_ref();
    if let Some("exec" | "kubernetes") = kind.and_then(Value::as_str) {
        r.not_yet("kind", kind, "use \"process\" or \"static\"");
        return None;
    }
    require(&mut r, "kind", kind, "a provider is one of \"process\", \"static\"", "process");
    let mut process = true;
    r.word("kind", kind, &mut process, &[("process", true), ("static", false)]);
    if !process {
        let unused = [("command", &raw.command), ("grace", &raw.grace), ("log_dir", &raw.log_dir)];
        for (key, value) in unused {
            if let Some(value) = value {
                r.problems.note(r.at.key(key), value, "a static provider starts nothing; leave it out", "");
            }
        }
        return None;
    }
    let allowed = "texts: a program and its arguments, with {port} and {id} where they are wanted";
    if raw.command.is_none() {
        r.problems.missing(r.at.key("command"), allowed, &format!("command = {COMMAND_EXAMPLE}"));
    }
    let text = |text: &str| (!text.contains('\0')).then(|| text.to_owned());
    let command = r.list("command", raw.command.as_ref(), text, allowed, "my-server").unwrap_or_default();
    command_can_run(raw, &command, allowed, &mut r);
    let mut process =
        Process { command, env: BTreeMap::new(), grace: Duration::from_secs(10), log_dir: None };
    for (name, value) in raw.env.iter().flatten() {
        if let Some(value) = r.text(&format!("env.{name}"), Some(value), text, "a text", "{port}") {
            process.env.insert(name.clone(), value);
        }
    }
    process.log_dir = path(&mut r, "log_dir", raw.log_dir.as_ref(), base, "logs");
    let range = Duration::from_millis(10)..=HOUR;
    r.duration("grace", raw.grace.as_ref(), &mut process.grace, range, "10s");
    Some(process)
}

/// Refuses what would start nothing, or a server that cannot know its port.
fn command_can_run(raw: &RawProvider, command: &[String], allowed: &str, r: &mut Reader<'_>) {
    let Some(given) = &raw.command else { return };
    let key = r.at.key("command");
    let no_shell = given.as_str().is_some_and(|text| text.contains(char::is_whitespace));
    if no_shell || command.first().is_none_or(String::is_empty) {
        let allowed = format!("allowed is a list of {allowed}; no shell splits a text");
        return r.problems.note(key, given, allowed, COMMAND_EXAMPLE);
    }
    let in_env = |value: &Value| value.as_str().is_some_and(|text| text.contains("{port}"));
    let knows = command.iter().any(|word| word.contains("{port}"))
        || raw.env.iter().flatten().any(|(_, value)| in_env(value));
    if !knows {
        let allowed = "{port} must stand in it or in env: the server listens on the port that it is given";
        r.problems.note(key, given, allowed, COMMAND_EXAMPLE);
    }
}

fn routes(raw: &[RawRoute], fleets: &BTreeMap<FleetId, Fleet>, problems: &mut Problems) -> Vec<Route> {
    let mut routes = Vec::new();
    for (index, raw) in raw.iter().enumerate() {
        routes.extend(route(raw, At::TOP.item("routes", index), fleets, problems));
    }
    if raw.is_empty() && fleets.len() > 1 {
        let allowed = "with more than one fleet, [[routes]] says which host and path goes to which";
        problems.missing(
            String::from("routes"),
            allowed,
            "routes = [{ path = \"/chat\", fleet = \"chat\" }]",
        );
    }
    routes
}

fn route(
    raw: &RawRoute,
    at: At<'static>,
    fleets: &BTreeMap<FleetId, Fleet>,
    problems: &mut Problems,
) -> Option<Route> {
    let mut r = Reader { at, problems };
    let mut kind = RouteKind::default();
    r.word("kind", raw.kind.as_ref(), &mut kind, &KINDS);
    let mut scheme = Scheme::default();
    r.word("scheme", raw.scheme.as_ref(), &mut scheme, &SCHEMES);
    let scheme = raw.scheme.as_ref().map(|_| scheme);
    let mut location = LocationForm::default();
    r.word("location", raw.location.as_ref(), &mut location, &LOCATIONS);
    let origins = origins(&mut r, raw.origins.as_ref());
    let auth =
        raw.auth.as_ref().and_then(|raw| auth(raw, Reader { at: r.at.table("auth"), problems: r.problems }));
    let host = |text: &str| valid_host(text).then(|| text.to_ascii_lowercase());
    let host = r.text("host", raw.host.as_ref(), host, "a host name without port", "ws.example.com");
    let path = |text: &str| valid_path(text).then(|| text.to_owned());
    let path = r.text("path", raw.path.as_ref(), path, PATH_ALLOWED, "/chat");
    let names = fleets.keys().map(|id| format!("{id:?}")).collect::<Vec<_>>().join(", ");
    let allowed = format!("the name of a fleet here ({names})");
    require(&mut r, "fleet", raw.fleet.as_ref(), &allowed, "chat");
    let known = |text: &str| fleets.keys().find(|id| id.as_str() == text).cloned();
    let example = fleets.keys().next().map_or("chat", FleetId::as_str);
    let fleet = r.text("fleet", raw.fleet.as_ref(), known, &allowed, example)?;
    let path = path.unwrap_or_else(|| String::from("/"));
    Some(Route { host, path, fleet, origins, kind, scheme, location, auth })
}

fn auth(raw: &RawAuth, mut r: Reader<'_>) -> Option<AuthConfig> {
    require(&mut r, "url", raw.url.as_ref(), AUTH_ALLOWED, AUTH_EXAMPLE);
    let url = |text: &str| {
        let as_server = text.strip_prefix("http://").map(|rest| format!("ws://{rest}"))?;
        (check_server_url(&as_server).is_ok() && !text.contains(['?', '#'])).then(|| text.to_owned())
    };
    let url = r.text("url", raw.url.as_ref(), url, AUTH_ALLOWED, AUTH_EXAMPLE);
    let mut timeout = AuthConfig::TIMEOUT;
    r.duration("timeout", raw.timeout.as_ref(), &mut timeout, MILLI..=HOUR, "2s");
    Some(AuthConfig { url: url?, timeout })
}

/// No two listeners on one address; port 0 takes a free one each time.
fn distinct_listeners(settings: &Settings, problems: &mut Problems) {
    let mut seen = BTreeMap::from([(settings.admin.listen, "admin.listen")]);
    for addr in &settings.gateway.listen {
        if addr.port() == 0 {
            continue;
        }
        if let Some(other) = seen.insert(*addr, "gateway.listen") {
            let value = Value::String(addr.to_string());
            let key = String::from("gateway.listen");
            problems.note(key, &value, format!("{other} listens there already"), "\"127.0.0.1:8080\"");
        }
    }
}

const ID_ALLOWED: &str = "1 to 128 characters of A-Z a-z 0-9 . _ -, the first a letter or digit";
const AUTH_ALLOWED: &str = "http:// with a host and, where wanted, port and path; without query";
const AUTH_EXAMPLE: &str = "http://127.0.0.1:4180/auth";
const PUBLIC_URL_ALLOWED: &str =
    "ws:// or wss:// with a host that clients can connect to, without user, query and fragment";
const ADDR_ALLOWED: &str = "an IP address with port";
const URL_ALLOWED: &str = "ws:// with a host and port";
const ORIGINS_ALLOWED: &str = "origins as browsers send them, scheme://host[:port] in ASCII without path and without / at the end, or \"*\" for all";
const PATH_ALLOWED: &str = "a path that begins with / and has no query";
const COMMAND_EXAMPLE: &str = "[\"my-server\", \"--port\", \"{port}\"]";

fn require(r: &mut Reader<'_>, key: &str, raw: Option<&Value>, allowed: &str, example: &str) {
    if raw.is_none() {
        r.problems.missing(r.at.key(key), allowed, &format!("{key} = {example:?}"));
    }
}

fn address(r: &mut Reader<'_>, key: &str, raw: Option<&Value>, example: &str) -> Option<SocketAddr> {
    r.text(key, raw, |text| text.parse().ok(), ADDR_ALLOWED, example)
}

fn path(r: &mut Reader<'_>, key: &str, raw: Option<&Value>, base: &Path, example: &str) -> Option<PathBuf> {
    let path = |text: &str| (!text.is_empty()).then(|| base.join(text));
    r.text(key, raw, path, "a path, relative to this file or absolute", example)
}

fn valid_host(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        })
}

fn valid_path(text: &str) -> bool {
    text.starts_with('/')
        && text.len() <= 2_048
        && text
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#' | b'"' | b'<' | b'>' | b'\\'))
}
