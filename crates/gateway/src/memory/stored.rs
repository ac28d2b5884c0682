//! The file's text: JSON with a format number.
//!
//! Invariants: what [`encode`] wrote [`decode`] reads as it was, orders and policies apart, which are not stored; any
//! other bytes are refused with what is wrong, never guessed at.

use std::collections::BTreeMap;
use std::sync::Arc;

use evenkeel_fleet::allot::{Cause, Ceiling, TermKind};
use evenkeel_fleet::config::{HealthConfig, PlaceConfig};
use evenkeel_fleet::snapshot::{Executor, Health, Reported, ServerView, Snapshot};
use evenkeel_model::{
    Connections, Desired, Fence, FleetId, Incarnation, Instant, PerSecond, ServerId, State,
};
use serde::{Deserialize, Serialize};

use crate::connect::Target;

/// Raised with every change of what the fields mean. Another one is not read: the memory of a second is not worth a
/// migration.
pub(super) const FORMAT: u64 = 1;

/// Whether to write when things were seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ages {
    /// As they are.
    Kept,
    /// Left out, to see whether anything else changed.
    Left,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum DecodeError {
    Foreign(u64),
    Damaged(String),
}

#[derive(Deserialize)]
struct Head {
    format: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredTable {
    format: u64,
    fleets: BTreeMap<String, StoredFleet>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredFleet {
    at_ns: u64,
    gateways: u32,
    servers: Vec<StoredServer>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredServer {
    id: String,
    inc: u64,
    url: String,
    public_url: Option<String>,
    capacity: u32,
    reported: Option<StoredReport>,
    elsewhere: u32,
    ceilings: Vec<StoredCeiling>,
    health: StoredHealth,
    state: String,
    admit_per_s: f64,
    open_since_ns: u64,
    agent: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredReport {
    connections: u32,
    seq: u64,
    at_ns: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredCeiling {
    at_most: u32,
    cause: StoredCause,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredHealth {
    Ok,
    Suspect,
    Dead,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredCause {
    Declared,
    Overload(StoredTerm),
    Operator,
    Starting,
    Probation,
    Suspect,
    Inelastic(StoredTerm),
    Cordon,
    Drain,
    Dead,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredTerm {
    Connections,
    Cpu,
    Memory,
    Lag,
    Custom,
}

/// The text of a table.
pub(super) fn encode(fleets: &BTreeMap<FleetId, Snapshot>, ages: Ages) -> Vec<u8> {
    let fleets = fleets.iter().map(|(id, snapshot)| (id.as_str().to_owned(), fleet(snapshot, ages)));
    let table = StoredTable { format: FORMAT, fleets: fleets.collect() };
    // Plain structs of numbers and strings: serialising them does not fail.
    serde_json::to_vec(&table).unwrap_or_default()
}

fn fleet(snapshot: &Snapshot, ages: Ages) -> StoredFleet {
    StoredFleet {
        at_ns: aged(snapshot.at, ages),
        gateways: snapshot.gateways,
        servers: snapshot.servers.iter().map(|view| server(view, ages)).collect(),
    }
}

const fn aged(at: Instant, ages: Ages) -> u64 {
    match ages {
        Ages::Kept => at.0,
        Ages::Left => 0,
    }
}

fn server(view: &ServerView, ages: Ages) -> StoredServer {
    let report = |reported: Reported| StoredReport {
        connections: reported.connections.get(),
        // A report that says the same again only makes it younger.
        seq: if ages == Ages::Kept { reported.seq } else { 0 },
        at_ns: aged(reported.at, ages),
    };
    let ceiling =
        |ceiling: &Ceiling| StoredCeiling { at_most: ceiling.at_most.get(), cause: ceiling.cause.into() };
    StoredServer {
        id: view.id.as_str().to_owned(),
        inc: view.inc.get(),
        url: view.url.to_string(),
        public_url: view.public_url.as_deref().map(str::to_owned),
        capacity: view.capacity.get(),
        reported: view.reported.map(report),
        elsewhere: view.elsewhere.get(),
        ceilings: view.ceilings.iter().map(ceiling).collect(),
        health: match view.health {
            Health::Ok => StoredHealth::Ok,
            Health::Suspect => StoredHealth::Suspect,
            Health::Dead => StoredHealth::Dead,
        },
        state: view.state.as_str().to_owned(),
        admit_per_s: view.admit.get(),
        open_since_ns: view.open_since.0,
        agent: view.executor == Executor::Agent,
    }
}

/// Reads a text.
pub(super) fn decode(bytes: &[u8]) -> Result<BTreeMap<FleetId, Snapshot>, DecodeError> {
    let damaged = |error: &dyn std::fmt::Display| DecodeError::Damaged(error.to_string());
    // First the format: of another one nothing else is known.
    let Head { format } = serde_json::from_slice(bytes).map_err(|error| damaged(&error))?;
    if format != FORMAT {
        return Err(DecodeError::Foreign(format));
    }
    let table: StoredTable = serde_json::from_slice(bytes).map_err(|error| damaged(&error))?;
    let mut fleets = BTreeMap::new();
    for (id, stored) in table.fleets {
        let id = FleetId::new(&id).map_err(|error| damaged(&error))?;
        let snapshot = read_fleet(id.clone(), stored).map_err(DecodeError::Damaged)?;
        fleets.insert(id, snapshot);
    }
    Ok(fleets)
}

fn read_fleet(id: FleetId, stored: StoredFleet) -> Result<Snapshot, String> {
    let servers = stored.servers.into_iter().map(read_server).collect::<Result<Vec<_>, _>>()?;
    if !servers.is_sorted_by(|one, next| one.id < next.id) {
        return Err(format!("the servers of {id} are not in order"));
    }
    Ok(Snapshot {
        fleet: id,
        at: Instant(stored.at_ns),
        servers,
        gateways: stored.gateways.max(1),
        placed_per_s: PerSecond::ZERO,
        health: HealthConfig::default(),
        place: PlaceConfig::default(),
    })
}

fn read_server(stored: StoredServer) -> Result<ServerView, String> {
    let id = ServerId::new(&stored.id).map_err(|error| error.to_string())?;
    Target::parse(&stored.url).ok_or_else(|| format!("server {id} has no URL to connect to"))?;
    let state = State::parse(&stored.state).ok_or_else(|| format!("server {id} is in no known state"))?;
    let report = |stored: StoredReport| Reported {
        connections: Connections(stored.connections),
        seq: stored.seq,
        at: Instant(stored.at_ns),
    };
    let ceiling =
        |stored: StoredCeiling| Ceiling { at_most: Connections(stored.at_most), cause: stored.cause.into() };
    Ok(ServerView {
        id,
        inc: Incarnation(stored.inc),
        url: Arc::from(stored.url),
        public_url: stored.public_url.map(Arc::from),
        capacity: Connections(stored.capacity),
        reported: stored.reported.map(report),
        elsewhere: Connections(stored.elsewhere),
        ceilings: stored.ceilings.into_iter().map(ceiling).collect(),
        health: match stored.health {
            StoredHealth::Ok => Health::Ok,
            StoredHealth::Suspect => Health::Suspect,
            StoredHealth::Dead => Health::Dead,
        },
        state,
        admit: PerSecond::new(stored.admit_per_s),
        open_since: Instant(stored.open_since_ns),
        executor: if stored.agent { Executor::Agent } else { Executor::Gateways },
        // An order is a lease of a controller that lives.
        desired: Desired::active(Fence::default()),
    })
}

impl From<Cause> for StoredCause {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Declared => Self::Declared,
            Cause::Overload(term) => Self::Overload(term.into()),
            Cause::Operator => Self::Operator,
            Cause::Starting => Self::Starting,
            Cause::Probation => Self::Probation,
            Cause::Suspect => Self::Suspect,
            Cause::Inelastic(term) => Self::Inelastic(term.into()),
            Cause::Cordon => Self::Cordon,
            Cause::Drain => Self::Drain,
            Cause::Dead => Self::Dead,
        }
    }
}

impl From<StoredCause> for Cause {
    fn from(cause: StoredCause) -> Self {
        match cause {
            StoredCause::Declared => Self::Declared,
            StoredCause::Overload(term) => Self::Overload(term.into()),
            StoredCause::Operator => Self::Operator,
            StoredCause::Starting => Self::Starting,
            StoredCause::Probation => Self::Probation,
            StoredCause::Suspect => Self::Suspect,
            StoredCause::Inelastic(term) => Self::Inelastic(term.into()),
            StoredCause::Cordon => Self::Cordon,
            StoredCause::Drain => Self::Drain,
            StoredCause::Dead => Self::Dead,
        }
    }
}

impl From<TermKind> for StoredTerm {
    fn from(term: TermKind) -> Self {
        match term {
            TermKind::Connections => Self::Connections,
            TermKind::Cpu => Self::Cpu,
            TermKind::Memory => Self::Memory,
            TermKind::Lag => Self::Lag,
            TermKind::Custom => Self::Custom,
        }
    }
}

impl From<StoredTerm> for TermKind {
    fn from(term: StoredTerm) -> Self {
        match term {
            StoredTerm::Connections => Self::Connections,
            StoredTerm::Cpu => Self::Cpu,
            StoredTerm::Memory => Self::Memory,
            StoredTerm::Lag => Self::Lag,
            StoredTerm::Custom => Self::Custom,
        }
    }
}
