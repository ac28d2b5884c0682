//! From what is meant back to what would be written: the effective configuration with every key, for
//! `print-config`. What it prints reads back as the same settings (a test holds that).

use std::path::Path;

use evenkeel_fleet::config::{
    Band, CapacityConfig, Combine, HealthConfig, MoveConfig, PlaceConfig, ScaleConfig, ScoreConfig,
};
use evenkeel_gateway::config::CheckConfig;
use evenkeel_protocol::origin::Origins;
use toml::Value;

use super::check::{CHECKS, ENGINES, FORMATS, KINDS, LOCATIONS, PICKS, SCHEMES};
use super::law::DEADLINES;
use super::raw::{
    Named, RawAdmin, RawAuth, RawBand, RawCapacity, RawCheck, RawFile, RawFleet, RawGateway, RawHealth,
    RawLog, RawMove, RawPlace, RawProvider, RawRoute, RawScale, RawScore, RawServer, RawStore, RawTerm,
};
use super::settings::{Fleet, Gateway, Process, Route, Server, Settings};
use super::unit::show_duration;

/// The whole file.
pub(crate) fn print(settings: &Settings) -> Result<String, toml::ser::Error> {
    toml::to_string(&raw(settings))
}

fn raw(settings: &Settings) -> RawFile {
    let base = &settings.base;
    RawFile {
        admin: Some(RawAdmin {
            listen: text(settings.admin.listen),
            token_file: path(&settings.admin.token_file, base),
            hosts: texts(&settings.admin.hosts),
            tls: None,
        }),
        gateway: Some(gateway(&settings.gateway)),
        log: Some(RawLog { level: text(&settings.log.level), format: word(settings.log.format, &FORMATS) }),
        store: Some(RawStore { dir: path(&settings.store.dir, base) }),
        fleets: Some(settings.fleets.iter().map(|(id, it)| (id.to_string(), fleet(it, base))).collect()),
        routes: (!settings.routes.is_empty()).then(|| settings.routes.iter().map(route).collect()),
        dns: None,
        drivers: None,
        cluster: None,
    }
}

fn gateway(it: &Gateway) -> RawGateway {
    let limits = &it.limits;
    RawGateway {
        id: text(&it.id),
        listen: texts(&it.listen),
        public_url: it.public_url.as_ref().and_then(text),
        engine: word(it.engine, &ENGINES),
        threads: whole(1),
        connections_max: it.connections_max.and_then(whole),
        handshakes_per_prefix_max: whole(limits.handshakes_per_prefix_max),
        client_head_timeout: time(limits.heads.client_head),
        server_head_timeout: time(limits.heads.server_head),
        connect_timeout: time(limits.connect),
        retries: whole(u32::try_from(limits.retries).unwrap_or(u32::MAX)),
        close_timeout: time(limits.tunnel.close_wait),
        write_timeout: time(limits.tunnel.write_deadline),
        half_open_timeout: time(limits.tunnel.half_open),
        long_poll_timeout: time(limits.long_poll),
        idle_timeout: limits.tunnel.idle.and_then(time),
        stop_within: time(limits.stop_within),
        ..RawGateway::default()
    }
}

fn fleet(it: &Fleet, base: &Path) -> RawFleet {
    RawFleet {
        scheme: word(it.scheme, &SCHEMES),
        pick: word(it.law.place.pick, &PICKS),
        speed: number(it.speed),
        key_file: path(&it.key_file, base),
        origins: origins(&it.origins),
        servers: (!it.servers.is_empty()).then(|| it.servers.iter().map(server).collect()),
        score: Some(score(&it.law.score)),
        capacity: Some(capacity(&it.law.capacity)),
        health: Some(health(&it.law.health, it.report_interval)),
        place: Some(place(&it.law.place)),
        check: Some(check(&it.check)),
        provider: it.provider.as_ref().map(|it| provider(it, base)),
        scale: it.law.scale.as_ref().map(scale),
        r#move: Some(moves(&it.law.moves)),
    }
}

fn server(it: &Server) -> RawServer {
    RawServer {
        id: text(&it.id),
        url: text(&it.url),
        public_url: it.public_url.as_ref().and_then(text),
        capacity: it.capacity.and_then(|capacity| whole(capacity.get())),
        zone: it.zone.as_ref().and_then(text),
        labels: named(it.labels.iter().map(|(name, label)| (name, text(label)))),
        addresses: (!it.addresses.is_empty()).then(|| texts(&it.addresses)).flatten(),
    }
}

fn score(it: &ScoreConfig) -> RawScore {
    let (combine, weights) = match &it.combine {
        Combine::Max => ("max", None),
        Combine::Sum { weights } => {
            ("sum", named(weights.iter().map(|(name, weight)| (name, number(*weight)))))
        }
    };
    let term = |term: &evenkeel_fleet::config::CustomTerm| RawTerm {
        full: number(term.full),
        elastic: Some(Value::Boolean(term.elastic)),
    };
    let custom: Named<RawTerm> = it.custom.iter().map(|(name, it)| (name.clone(), term(it))).collect();
    RawScore {
        combine: text(combine),
        cpu: number(it.cpu_full),
        memory: number(it.memory_full),
        lag: time(std::time::Duration::from_secs_f64(it.lag_full_ms / 1_000.0)),
        tau: time(it.tau),
        weights,
        custom: (!custom.is_empty()).then_some(custom),
    }
}

fn capacity(it: &CapacityConfig) -> RawCapacity {
    RawCapacity {
        assumed: whole(it.assumed.get()),
        cost_window: time(it.cost_window),
        trust_from: whole(it.trust_from.get()),
        overload_after: time(it.overload_after),
        overload_factor: number(it.overload_factor),
        overload_release_below: number(it.overload_release_below),
        overload_release_after: time(it.overload_release_after),
    }
}

fn health(it: &HealthConfig, report_interval: std::time::Duration) -> RawHealth {
    RawHealth {
        report_interval: time(report_interval),
        suspect_after: time(it.suspect_after),
        act_after: time(it.act_after),
        dead_after: whole(it.dead_after),
    }
}

fn place(it: &PlaceConfig) -> RawPlace {
    RawPlace {
        admit_per_s: number(it.admit_per_s.get()),
        admit_burst: time(it.admit_burst),
        slow_start: time(it.slow_start),
        slow_start_floor: number(it.slow_start_floor.get()),
        pending_ttl: time(it.pending_ttl),
        admission_wait: time(it.admission_wait),
        admission_queue: whole(u32::try_from(it.admission_queue).unwrap_or(u32::MAX)),
    }
}

fn check(it: &CheckConfig) -> RawCheck {
    RawCheck {
        kind: word(it.kind, &CHECKS),
        path: text(&it.path),
        interval: time(it.interval),
        timeout: time(it.timeout),
        fall: whole(it.fall),
        rise: whole(it.rise),
    }
}

fn provider(it: &Process, base: &Path) -> RawProvider {
    RawProvider {
        kind: text("process"),
        command: texts(&it.command),
        env: named(it.env.iter().map(|(name, value)| (name, text(value)))),
        grace: time(it.grace),
        log_dir: it.log_dir.as_ref().and_then(|dir| path(dir, base)),
    }
}

fn scale(it: &ScaleConfig) -> RawScale {
    RawScale {
        min: whole(it.min),
        max: whole(it.max),
        up_level: number(it.up_level.get()),
        up_buffer_level: number(it.up_buffer_level.get()),
        down_level: number(it.down_level.get()),
        down_buffer_level: number(it.down_buffer_level.get()),
        buffer: whole(it.buffer.get()),
        buffer_ratio: number(it.buffer_ratio),
        window: time(it.window),
        step_max: whole(it.step_max),
        boot_time: time(it.boot_time),
        failed_boots_max: whole(it.failed_boots_max),
        round: time(it.round),
        dry_run: Some(Value::Boolean(it.dry_run)),
    }
}

fn moves(it: &MoveConfig) -> RawMove {
    RawMove {
        pace: number(it.pace.get()),
        soft: time(it.soft),
        deadline: time(it.deadline),
        deadline_policy: word(it.deadline_policy, &DEADLINES),
        close_code: whole(it.close_code.into()),
        select: text(it.select.as_str()),
        round: time(it.round),
        arrivals_window: time(it.arrivals_window),
        shed_lasts: time(it.shed_lasts),
        overload_from: number(it.overload_from),
        start: Some(band(&it.start)),
        stop: Some(band(&it.stop)),
    }
}

fn band(it: &Band) -> RawBand {
    RawBand { ratio: number(it.ratio), sqrt: number(it.sqrt), min: number(it.min) }
}

fn route(it: &Route) -> RawRoute {
    RawRoute {
        host: it.host.as_ref().and_then(text),
        path: text(&it.path),
        fleet: text(&it.fleet),
        kind: word(it.kind, &KINDS),
        scheme: it.scheme.and_then(|scheme| word(scheme, &SCHEMES)),
        origins: it.origins.as_ref().and_then(origins),
        location: word(it.location, &LOCATIONS),
        auth: it.auth.as_ref().map(|auth| RawAuth { url: text(&auth.url), timeout: time(auth.timeout) }),
    }
}

/// The default is no list: it cannot be written down.
fn origins(it: &Origins) -> Option<Value> {
    match it {
        Origins::Own => None,
        Origins::Only(origins) => texts(origins),
        Origins::Any => texts(&["*"]),
    }
}

fn text(value: impl std::fmt::Display + Copy) -> Option<Value> {
    Some(Value::String(value.to_string()))
}

/// Relative to the file where it lies below it, so that what is printed can stand in the file's place.
fn path(path: &Path, base: &Path) -> Option<Value> {
    text(&path.strip_prefix(base).unwrap_or(path).display())
}

fn texts<T: ToString>(values: &[T]) -> Option<Value> {
    Some(Value::Array(values.iter().map(|value| Value::String(value.to_string())).collect()))
}

fn time(duration: std::time::Duration) -> Option<Value> {
    Some(Value::String(show_duration(duration)))
}

fn whole(number: u32) -> Option<Value> {
    Some(Value::Integer(number.into()))
}

fn number(number: f64) -> Option<Value> {
    Some(Value::Float(number))
}

fn word<T: PartialEq + Copy>(value: T, words: &[(&str, T)]) -> Option<Value> {
    words.iter().find(|(_, known)| *known == value).and_then(|(word, _)| text(word))
}

fn named<'a>(values: impl Iterator<Item = (&'a String, Option<Value>)>) -> Option<Named<Value>> {
    let named: Named<Value> = values.filter_map(|(name, value)| Some((name.clone(), value?))).collect();
    (!named.is_empty()).then_some(named)
}
