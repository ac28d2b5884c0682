//! Text to messages.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use evenkeel_model::report::CONNECTIONS_MAX;
use evenkeel_model::{
    Connections, Desired, Duration, Epoch, Fence, FleetId, Generation, Incarnation, Instant, Measures,
    PerSecond, Report, Select, ServerId, State, Totals,
};
use serde_json::Value;

use super::fields::{Fields, cut, object};
use super::{
    Down, EVENTS_MAX, Event, EventState, Hello, Key, LABELS_MAX, MessageError, MoveResult, Moved, Posted,
    Profile, Received, Up, VERSION, Welcome,
};

/// Longest URL, also the default limit of a request line.
const URL_MAX: usize = 2_048;
/// Longest free text such as a zone, a `rid` or a `why`.
const TEXT_MAX: usize = 256;
/// Longest duration, a year in milliseconds: anything above is a unit mistake.
const MS_MAX: u64 = 366 * 24 * 3_600 * 1_000;
/// Highest pace in moves per second; above it a number is a mistake.
const MOVES_MAX: f64 = 1_000_000.0;

/// Reads one message from an agent.
///
/// # Errors
/// [`MessageError`]; nothing of the message may then be used.
pub fn parse_up(text: &str) -> Result<Up, MessageError> {
    let map = object(text)?;
    let fields = Fields::new(&map);
    match op(&fields)? {
        "hello" => hello(&fields).map(Up::Hello),
        "report" => report(&fields).map(Up::Report),
        "event" => events(&fields).map(Up::Event),
        "moved" => moved(&fields).map(Up::Moved),
        "applied" => fence(&fields).map(Up::Applied),
        "drained" => fence(&fields).map(Up::Drained),
        op => Err(MessageError::UnknownOp { op: cut(op) }),
    }
}

/// Reads one message from a node.
///
/// # Errors
/// [`MessageError`]; nothing of the message may then be used.
pub fn parse_down(text: &str) -> Result<Received, MessageError> {
    let map = object(text)?;
    let fields = Fields::new(&map);
    let node_now = fields.integer("now_ms")?.map(Instant::from_millis);
    let message = match op(&fields)? {
        "welcome" => Down::Welcome(welcome(&fields)?),
        "desired" => Down::Desired(desired(&fields)?),
        "keys" => Down::Keys(keys(&fields)?),
        "stale" => Down::Stale { known: Incarnation(fields.needed("known")?) },
        "error" => Down::Error { why: cut(fields.text("why", super::MESSAGE_MAX)?.unwrap_or("unknown")) },
        op => return Err(MessageError::UnknownOp { op: cut(op) }),
    };
    Ok(Received { node_now, message })
}

/// Reads the body of `POST /v1/servers/{id}/report`: the fields of a `report`, and of a `hello` where it has a
/// `url`.
///
/// # Errors
/// [`MessageError`]; nothing of the body may then be used.
pub fn parse_report(text: &str) -> Result<Posted, MessageError> {
    let map = object(text)?;
    let fields = Fields::new(&map);
    let report = report(&fields)?;
    let profile = fields.value("url").map(|_| profile(&fields)).transpose()?;
    Ok(Posted { report, profile })
}

fn op<'a>(fields: &Fields<'a>) -> Result<&'a str, MessageError> {
    const ALLOWED: &str = "the name of a message";
    let value = fields.value("op").ok_or_else(|| fields.missing("op", ALLOWED))?;
    value.as_str().ok_or_else(|| fields.bad("op", value, ALLOWED))
}

fn hello(fields: &Fields<'_>) -> Result<Hello, MessageError> {
    const ID: &str = "1 to 128 characters of A-Z a-z 0-9 . _ -, the first a letter or digit";
    match fields.needed("ver")? {
        VERSION => {}
        ver => return Err(MessageError::UnsupportedVersion { ver }),
    }
    let id = fields.value("id").ok_or_else(|| fields.missing("id", ID))?;
    let id = id.as_str().and_then(|id| ServerId::new(id).ok()).ok_or_else(|| fields.bad("id", id, ID))?;
    let applied = fields.nested("applied")?.map(|applied| fence(&applied)).transpose()?;
    Ok(Hello {
        id,
        inc: Incarnation(fields.needed("inc")?),
        profile: profile(fields)?,
        caps: caps(fields)?,
        applied,
    })
}

fn profile(fields: &Fields<'_>) -> Result<Profile, MessageError> {
    let fleet = match fields.value("fleet") {
        None => None,
        Some(value) => Some(
            value
                .as_str()
                .and_then(|fleet| FleetId::new(fleet).ok())
                .ok_or_else(|| fields.bad("fleet", value, "the name of a fleet"))?,
        ),
    };
    Ok(Profile {
        fleet,
        url: url(fields, "url")?.ok_or_else(|| fields.missing("url", "a ws:// or wss:// URL"))?,
        public_url: url(fields, "public_url")?,
        zone: fields.text("zone", TEXT_MAX)?.map(ToOwned::to_owned),
        labels: fields.texts("labels", LABELS_MAX)?,
        capacity: connections(fields, "capacity")?,
    })
}

fn caps(fields: &Fields<'_>) -> Result<Vec<String>, MessageError> {
    let items = fields.array("caps", LABELS_MAX)?;
    let cap = |item: &Value| match item.as_str() {
        Some(cap) if cap.len() <= TEXT_MAX => Ok(cap.to_owned()),
        _ => Err(fields.bad("caps", item, "an array of short texts")),
    };
    items.iter().map(cap).collect()
}

fn url(fields: &Fields<'_>, name: &str) -> Result<Option<String>, MessageError> {
    const ALLOWED: &str = "a ws:// or wss:// URL of at most 2048 printable ASCII characters";
    let Some(value) = fields.value(name) else { return Ok(None) };
    let url = value.as_str().filter(|url| {
        let rest = url.strip_prefix("ws://").or_else(|| url.strip_prefix("wss://"));
        let host = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['/', '?', '#', ':']));
        host && url.len() <= URL_MAX && url.bytes().all(|b| b.is_ascii_graphic())
    });
    url.map(|url| Some(url.to_owned())).ok_or_else(|| fields.bad(name, value, ALLOWED))
}

fn connections(fields: &Fields<'_>, name: &str) -> Result<Option<Connections>, MessageError> {
    let number = fields.at_most(name, CONNECTIONS_MAX, "0 to 100000000")?;
    Ok(number.map(|number| Connections(u32::try_from(number).unwrap_or(u32::MAX))))
}

fn report(fields: &Fields<'_>) -> Result<Report, MessageError> {
    let held = connections(fields, "connections")?;
    let report = Report {
        inc: Incarnation(fields.needed("inc")?),
        seq: fields.needed("seq")?,
        connections: held.ok_or_else(|| fields.missing("connections", "0 to 100000000"))?,
        // Only an SDK that can move clients has any to name.
        movable: connections(fields, "movable")?.unwrap_or_default(),
        raw: Measures {
            cpu: fields.number("cpu")?,
            memory: fields.number("memory")?,
            lag_ms: fields.number("lag_ms")?,
            custom: fields.numbers("custom")?.unwrap_or_default(),
        },
        averaged: averaged(fields)?,
        totals: totals(fields)?,
    };
    report.check()?;
    Ok(report)
}

fn averaged(fields: &Fields<'_>) -> Result<Option<Measures>, MessageError> {
    let custom = fields.numbers("custom_avg")?;
    let averaged = Measures {
        cpu: fields.number("cpu_avg")?,
        memory: fields.number("memory_avg")?,
        lag_ms: fields.number("lag_avg_ms")?,
        custom: custom.unwrap_or_else(BTreeMap::new),
    };
    Ok((averaged != Measures::default()).then_some(averaged))
}

fn totals(fields: &Fields<'_>) -> Result<Option<Totals>, MessageError> {
    let accepted = fields.integer("accepted_total")?;
    let closed = fields.integer("closed_total")?;
    let abnormal = fields.integer("closed_abnormal_total")?;
    let refused = fields.integer("refused_total")?;
    let any = accepted.or(closed).or(abnormal).or(refused).is_some();
    Ok(any.then(|| Totals {
        accepted: accepted.unwrap_or(0),
        closed: closed.unwrap_or(0),
        closed_abnormal: abnormal.unwrap_or(0),
        refused: refused.unwrap_or(0),
    }))
}

fn events(fields: &Fields<'_>) -> Result<Vec<Event>, MessageError> {
    const ALLOWED: &str = "an array of {rid, state: \"connected\" | \"expired\"}";
    let event = |item: &Value| {
        let map = item.as_object()?;
        let rid = map.get("rid")?.as_str().filter(|rid| !rid.is_empty() && rid.len() <= TEXT_MAX)?;
        let state = match map.get("state")?.as_str()? {
            "connected" => EventState::Connected,
            "expired" => EventState::Expired,
            _ => return None,
        };
        Some(Event { rid: rid.to_owned(), state })
    };
    if fields.value("events").is_none() {
        return Err(fields.missing("events", ALLOWED));
    }
    let items = fields.array("events", EVENTS_MAX)?;
    items.iter().map(|item| event(item).ok_or_else(|| fields.bad("events", item, ALLOWED))).collect()
}

fn moved(fields: &Fields<'_>) -> Result<Moved, MessageError> {
    const RESULT: &str = "\"ok\" or \"nak\"";
    let mid = fields.text("mid", TEXT_MAX)?.ok_or_else(|| fields.missing("mid", "a text"))?.to_owned();
    let result = match fields.value("result") {
        None => return Err(fields.missing("result", RESULT)),
        Some(value) => match value.as_str() {
            Some("ok") => MoveResult::Ok,
            Some("nak") => MoveResult::Nak,
            _ => return Err(fields.bad("result", value, RESULT)),
        },
    };
    Ok(Moved { mid, result, why: fields.text("why", TEXT_MAX)?.map(ToOwned::to_owned) })
}

fn fence(fields: &Fields<'_>) -> Result<Fence, MessageError> {
    Ok(Fence { epoch: Epoch(fields.needed("epoch")?), generation: Generation(fields.needed("gen")?) })
}

fn welcome(fields: &Fields<'_>) -> Result<Welcome, MessageError> {
    const REPORT: core::ops::RangeInclusive<u64> = 10..=3_600_000;
    let report_ms = fields.needed("report_ms")?;
    if !REPORT.contains(&report_ms) {
        return Err(MessageError::BadField {
            field: "report_ms".to_owned(),
            value: alloc::format!("{report_ms}"),
            allowed: "10 to 3600000",
        });
    }
    Ok(Welcome {
        report: Duration::from_millis(report_ms),
        keys: keys(fields)?,
        credential: fields.text("credential", 4_096)?.map(ToOwned::to_owned),
    })
}

fn desired(fields: &Fields<'_>) -> Result<Desired, MessageError> {
    let moves = fields.number("moves_per_s")?.unwrap_or(0.0);
    if !(0.0..=MOVES_MAX).contains(&moves) {
        return Err(MessageError::BadField {
            field: "moves_per_s".to_owned(),
            value: alloc::format!("{moves}"),
            allowed: "0 to 1000000",
        });
    }
    Ok(Desired {
        fence: fence(fields)?,
        lease: duration(fields, "lease_ms")?.unwrap_or(Desired::LEASE),
        state: state(fields)?,
        target: connections(fields, "target")?.unwrap_or(Connections::MAX),
        moves_per_s: PerSecond::new(moves),
        deadline: duration(fields, "deadline_ms")?,
        select: select(fields)?,
    })
}

fn duration(fields: &Fields<'_>, name: &str) -> Result<Option<Duration>, MessageError> {
    Ok(fields.at_most(name, MS_MAX, "0 to 31622400000 milliseconds")?.map(Duration::from_millis))
}

fn state(fields: &Fields<'_>) -> Result<State, MessageError> {
    const ALLOWED: &str = "active, cordoned, draining or stopped";
    let value = fields.value("state").ok_or_else(|| fields.missing("state", ALLOWED))?;
    value
        .as_str()
        .and_then(State::parse)
        .filter(|state| matches!(state, State::Active | State::Cordoned | State::Draining | State::Stopped))
        .ok_or_else(|| fields.bad("state", value, ALLOWED))
}

fn select(fields: &Fields<'_>) -> Result<Select, MessageError> {
    let Some(value) = fields.value("select") else { return Ok(Select::default()) };
    value
        .as_str()
        .and_then(Select::parse)
        .ok_or_else(|| fields.bad("select", value, "idle, newest, oldest, random or heaviest"))
}

/// The keys of a JWK Set that are symmetric and complete; others are left out, as RFC 7517 §5 asks. Both the bare
/// array and a whole set (`{"keys": [...]}`) are taken.
fn keys(fields: &Fields<'_>) -> Result<Vec<Key>, MessageError> {
    const KEYS_MAX: usize = 64;
    let items = match fields.value("keys") {
        Some(Value::Object(set)) => Fields::new(set).array("keys", KEYS_MAX)?,
        _ => fields.array("keys", KEYS_MAX)?,
    };
    let key = |item: &Value| {
        let text = |name: &str| item.get(name).and_then(Value::as_str);
        (text("kty") == Some("oct")).then_some(())?;
        Some(Key { kid: text("kid")?.to_owned(), alg: text("alg")?.to_owned(), k: text("k")?.to_owned() })
    };
    Ok(items.iter().filter_map(key).collect())
}
