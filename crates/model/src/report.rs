//! What a server says of itself, validated: nothing absurd gets past [`Report::check`].

use alloc::collections::BTreeMap;
use alloc::string::String;

use crate::id::Incarnation;
use crate::number::Connections;

/// Measures of how busy a server process is. Absent ones are unknown and count for nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measures {
    /// Share of the process's CPU quota in use, 0..=1; without a quota, of the machine's cores.
    pub cpu: Option<f64>,
    /// Share of the process's memory limit in use, 0..=1.
    pub memory: Option<f64>,
    /// Lag of the event loop in milliseconds, ≥ 0.
    pub lag_ms: Option<f64>,
    /// The user's own terms, each 0..=1. At most [`CUSTOM_MAX`].
    pub custom: BTreeMap<String, f64>,
}

/// Most custom terms in one report; a bound on memory and on metric series.
pub const CUSTOM_MAX: usize = 16;
/// Most connections one report may claim: above every real server, below what would overflow sums over 10,000 servers.
pub const CONNECTIONS_MAX: u64 = 100_000_000;

/// Monotonic totals since the incarnation began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections closed, however.
    pub closed: u64,
    /// Of these, closed without a Close frame.
    pub closed_abnormal: u64,
    /// Handshakes refused.
    pub refused: u64,
}

/// One report of one server. The newest by (incarnation, seq) wins, so order and repetition do not matter.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Which life of the server speaks.
    pub inc: Incarnation,
    /// Counts up within one incarnation.
    pub seq: u64,
    /// Connections held now. Never averaged.
    pub connections: Connections,
    /// Of these, held by clients that can be moved without losing a message.
    pub movable: Connections,
    /// As measured now.
    pub raw: Measures,
    /// As averaged by the agent over 10 s; `None`: the receiver averages.
    pub averaged: Option<Measures>,
    /// Monotonic totals, if the server keeps them.
    pub totals: Option<Totals>,
}

/// Why a report was refused. It changes nothing.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("could not take the report: {field} is {value}, allowed is {allowed}")]
pub struct ReportError {
    /// The offending field as named on the wire.
    pub field: String,
    /// What it held.
    pub value: String,
    /// What it may hold.
    pub allowed: &'static str,
}

impl Report {
    /// Checks every number: finite, in its range, `movable` ≤ `connections`.
    ///
    /// # Errors
    /// [`ReportError`] naming the first bad field.
    pub fn check(&self) -> Result<(), ReportError> {
        if self.movable > self.connections {
            return Err(refused("movable", self.movable, "at most connections"));
        }
        if u64::from(self.connections.get()) > CONNECTIONS_MAX {
            return Err(refused("connections", self.connections, "0 to 100000000"));
        }
        self.raw.check("")?;
        self.averaged.as_ref().map_or(Ok(()), |averaged| averaged.check("_avg"))
    }
}

impl Measures {
    fn check(&self, suffix: &str) -> Result<(), ReportError> {
        const UNIT: core::ops::RangeInclusive<f64> = 0.0..=1.0;
        // An hour: anything above is a unit mistake.
        const LAG: core::ops::RangeInclusive<f64> = 0.0..=3_600_000.0;
        let fields = [
            (alloc::format!("cpu{suffix}"), self.cpu, UNIT, "0 to 1"),
            (alloc::format!("memory{suffix}"), self.memory, UNIT, "0 to 1"),
            (lag_field(suffix), self.lag_ms, LAG, "0 to 3600000"),
        ];
        for (field, value, range, allowed) in fields {
            if let Some(value) = value.filter(|value| !range.contains(value)) {
                return Err(refused(&field, value, allowed));
            }
        }
        if self.custom.len() > CUSTOM_MAX {
            return Err(refused("custom", self.custom.len(), "at most 16 names"));
        }
        for (name, value) in &self.custom {
            if name.is_empty() || name.len() > 64 || !name.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(refused(
                    "custom",
                    alloc::format!("{name:?}"),
                    "names of 1 to 64 printable ASCII characters",
                ));
            }
            if !UNIT.contains(value) {
                return Err(refused(&alloc::format!("custom{suffix}.{name}"), value, "0 to 1"));
            }
        }
        Ok(())
    }
}

fn lag_field(suffix: &str) -> String {
    if suffix.is_empty() { String::from("lag_ms") } else { String::from("lag_avg_ms") }
}

fn refused(field: &str, value: impl core::fmt::Display, allowed: &'static str) -> ReportError {
    ReportError { field: String::from(field), value: alloc::format!("{value}"), allowed }
}
