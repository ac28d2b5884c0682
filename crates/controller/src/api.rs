//! The JSON of the admin API, written by the admin listener and read by the command line.
//!
//! Fields are only added. Counts are whole connections, `*_ms` are durations except `at_ms` (Unix time).

use evenkeel_fleet::controller::{Explanation, Said, ServerStatus};
use evenkeel_model::report::CONNECTIONS_MAX;
use evenkeel_model::{Desired, FleetId};
use serde::{Deserialize, Serialize};

use crate::events::Numbered;
use crate::status::FleetStatus;

/// One element of `GET /v1/servers`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Server {
    /// Its id.
    pub id: String,
    /// Its fleet.
    pub fleet: String,
    /// `starting active cordoned draining drained stopped`.
    pub state: String,
    /// `ok suspect dead`.
    pub health: String,
    /// Of its drain: `soft moving closing`, else null.
    pub phase: Option<String>,
    /// Connections it holds.
    pub connections: u32,
    /// Placements on their way to it.
    pub pending: u32,
    /// Connections it should hold.
    pub target: u32,
    /// 0 idle, 1 full; the largest term.
    pub score: f64,
    /// Connections it would hold at score 1.
    pub capacity: u32,
    /// Whether nobody declared the capacity.
    pub capacity_assumed: bool,
    /// What the score is made of.
    pub terms: Vec<Term>,
    /// Why it gets no more, if something binds.
    pub bound_by: Option<String>,
    /// Where gateways connect.
    pub url: String,
    /// Its life.
    pub inc: u64,
    /// What is desired of it.
    pub desired: DesiredState,
    /// Silence since its last sign of life.
    pub silent_ms: Option<u64>,
    /// Last trouble, for example its last output lines after an early death.
    pub trouble: Option<String>,
}

/// One term of a score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Term {
    /// `connections cpu memory lag` or a custom name.
    pub name: String,
    /// Share of its full mark.
    pub value: f64,
    /// Whether it falls as connections leave.
    pub elastic: bool,
}

/// What is desired of a server, as in the agent's message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DesiredState {
    /// The controller's term.
    pub epoch: u64,
    /// The change within it.
    #[serde(rename = "gen")]
    pub generation: u64,
    /// Right to move and close, from receipt.
    pub lease_ms: u64,
    /// `active cordoned draining stopped`.
    pub state: String,
    /// The count at which shedding stops.
    pub target: u32,
    /// Pace of moves and closes.
    pub moves_per_s: f64,
    /// After it even moves under way are closed.
    pub deadline_ms: Option<u64>,
    /// Which connections leave first.
    pub select: String,
}

/// One element of `GET /v1/fleets`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fleet {
    /// Its id.
    pub id: String,
    /// When this was so.
    pub at_ms: u64,
    /// The controller's term.
    pub epoch: u64,
    /// Servers known.
    pub servers: usize,
    /// Servers in state active.
    pub active: usize,
    /// Agents linked.
    pub agents: usize,
    /// Connections held by all servers.
    pub connections: u64,
    /// Connections that want a place, those on their way included.
    pub demand: u32,
    /// Utilisation of every server that nothing else binds.
    pub level: f64,
    /// Whether a provider of ours starts and stops servers.
    pub provided: bool,
}

/// One element of `GET /v1/explain`: why the last round did what it did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explained {
    /// Which fleet.
    pub fleet: String,
    /// Number of the round.
    pub round: u64,
    /// When.
    pub at_ms: u64,
    /// Utilisation of every server that nothing else binds.
    pub level: f64,
    /// Connections that want a place.
    pub demand: u32,
    /// About moves.
    pub moves: Vec<Reason>,
    /// About scale.
    pub scale: Vec<Reason>,
    /// About single servers' ceilings.
    pub ceilings: Vec<Reason>,
}

/// One reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reason {
    /// Which server, if one.
    pub server: Option<String>,
    /// Short code, for scripts.
    pub reason: String,
    /// One sentence, for people.
    pub text: String,
}

/// One line of `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventLine {
    /// Counts up from 1 in one process.
    pub seq: u64,
    /// When.
    pub at_ms: u64,
    /// Which fleet.
    pub fleet: String,
    /// Which server, if one.
    pub server: Option<String>,
    /// Short code, for scripts.
    pub kind: String,
    /// One sentence, for people.
    pub text: String,
}

/// The body of every answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Short code, for scripts.
    pub error: String,
    /// One sentence, for people.
    pub message: String,
    /// The offending field, if one is.
    pub field: Option<String>,
}

impl Server {
    /// One server of a fleet.
    #[must_use]
    pub fn of(fleet: &FleetId, status: &ServerStatus) -> Self {
        Self {
            id: status.id.to_string(),
            fleet: fleet.to_string(),
            state: status.state.to_string(),
            health: status.health.as_str().to_owned(),
            phase: status.phase.map(|phase| phase.as_str().to_owned()),
            connections: status.connections.get(),
            pending: status.pending.get(),
            target: status.target.round().get(),
            score: rounded(status.score.value.get()),
            capacity: status.capacity.get(),
            capacity_assumed: status.capacity_assumed,
            terms: status.score.terms.iter().map(Term::of).collect(),
            bound_by: status.bound_by.map(|cause| cause.reason().to_owned()),
            url: status.url.to_string(),
            inc: status.inc.get(),
            desired: DesiredState::of(&status.desired),
            silent_ms: status.silent.map(millis),
            trouble: status.trouble.clone(),
        }
    }
}

impl Term {
    fn of(term: &evenkeel_fleet::score::Term) -> Self {
        Self { name: term.name.clone(), value: rounded(term.value.get()), elastic: term.elastic }
    }
}

impl DesiredState {
    /// As JSON has it.
    #[must_use]
    pub fn of(desired: &Desired) -> Self {
        Self {
            epoch: desired.fence.epoch.get(),
            generation: desired.fence.generation.get(),
            lease_ms: millis(desired.lease),
            state: desired.state.to_string(),
            // The bound of the wire; "no limit" and the bound mean the same.
            target: desired.target.get().min(CONNECTIONS_MAX as u32),
            moves_per_s: desired.moves_per_s.get(),
            deadline_ms: desired.deadline.map(millis),
            select: desired.select.as_str().to_owned(),
        }
    }
}

impl Fleet {
    /// One fleet.
    #[must_use]
    pub fn of(status: &FleetStatus) -> Self {
        Self {
            id: status.fleet.to_string(),
            at_ms: status.at.as_millis(),
            epoch: status.epoch.get(),
            servers: status.servers.len(),
            active: status
                .servers
                .iter()
                .filter(|server| server.state == evenkeel_model::State::Active)
                .count(),
            agents: status.agents,
            connections: status.servers.iter().map(|server| u64::from(server.connections.get())).sum(),
            demand: status.explanation.demand.get(),
            level: rounded(status.explanation.level.get()),
            provided: status.provided,
        }
    }
}

impl Explained {
    /// One fleet's last round.
    #[must_use]
    pub fn of(fleet: &FleetId, explanation: &Explanation) -> Self {
        let reasons = |said: &[Said]| said.iter().map(Reason::of).collect();
        Self {
            fleet: fleet.to_string(),
            round: explanation.round,
            at_ms: explanation.at.as_millis(),
            level: rounded(explanation.level.get()),
            demand: explanation.demand.get(),
            moves: reasons(&explanation.moves),
            scale: reasons(&explanation.scale),
            ceilings: reasons(&explanation.ceilings),
        }
    }
}

impl Reason {
    fn of(said: &Said) -> Self {
        Self {
            server: said.server.as_ref().map(ToString::to_string),
            reason: said.reason.to_owned(),
            text: said.text.clone(),
        }
    }
}

impl EventLine {
    /// One numbered event.
    #[must_use]
    pub fn of(numbered: &Numbered) -> Self {
        Self {
            seq: numbered.seq,
            at_ms: numbered.event.at.as_millis(),
            fleet: numbered.fleet.to_string(),
            server: numbered.event.server.as_ref().map(ToString::to_string),
            kind: numbered.event.kind.to_owned(),
            text: numbered.event.text.clone(),
        }
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Four digits are enough for people and keep the JSON short.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}
