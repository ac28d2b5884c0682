//! The tables of a fleet that hold constants of the control law: `score`, `capacity`, `health`, `place`, `move`,
//! `scale`. Same rules as in [`check`](super::check).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use evenkeel_fleet::config::{
    Band, CapacityConfig, Combine, CustomTerm, DeadlinePolicy, MoveConfig, PlaceConfig, ScaleConfig,
    ScoreConfig,
};
use evenkeel_model::{Connections, PerSecond, Ratio, Select};
use toml::Value;

use super::check::{DAY, HOUR, MILLI};
use super::problem::{At, Problems, Reader};
use super::raw::{RawBand, RawCapacity, RawFleet, RawHealth, RawMove, RawPlace, RawScale, RawScore};
use super::settings::Fleet;

/// Deadline policies by name.
pub(super) const DEADLINES: [(&str, DeadlinePolicy); 2] =
    [("extend", DeadlinePolicy::Extend), ("enforce", DeadlinePolicy::Enforce)];

const SELECTS: [(&str, Select); 5] = [
    ("idle", Select::Idle),
    ("newest", Select::Newest),
    ("oldest", Select::Oldest),
    ("random", Select::Random),
    ("heaviest", Select::Heaviest),
];

/// The tables that hold constants of the control law.
pub(super) fn law(raw: &RawFleet, at: &At<'_>, fleet: &mut Fleet, problems: &mut Problems) {
    if let Some(raw) = &raw.score {
        score(raw, Reader { at: at.table("score"), problems }, &mut fleet.law.score);
    }
    if let Some(raw) = &raw.capacity {
        capacity(raw, Reader { at: at.table("capacity"), problems }, &mut fleet.law.capacity);
    }
    if let Some(raw) = &raw.health {
        health(raw, Reader { at: at.table("health"), problems }, fleet);
    }
    if let Some(raw) = &raw.place {
        place(raw, Reader { at: at.table("place"), problems }, &mut fleet.law.place);
    }
    if let Some(raw) = &raw.r#move {
        moves(raw, at, &mut fleet.law.moves, problems);
    }
    if let (Some(raw), Some(into)) = (&raw.scale, &mut fleet.law.scale) {
        scale(raw, Reader { at: at.table("scale"), problems }, into);
    }
}

fn score(raw: &RawScore, mut r: Reader<'_>, into: &mut ScoreConfig) {
    r.number("cpu", raw.cpu.as_ref(), &mut into.cpu_full, 0.01..=1.0, 0.9);
    r.number("memory", raw.memory.as_ref(), &mut into.memory_full, 0.01..=1.0, 0.9);
    lag(raw, &mut r, into);
    r.duration("tau", raw.tau.as_ref(), &mut into.tau, Duration::from_millis(100)..=HOUR, "10s");
    let mut sum = false;
    r.word("combine", raw.combine.as_ref(), &mut sum, &[("max", false), ("sum", true)]);
    if sum {
        let mut weights = BTreeMap::new();
        for (name, value) in raw.weights.iter().flatten() {
            let mut weight = 0.0;
            r.number(&format!("weights.{name}"), Some(value), &mut weight, 0.0..=1_000_000.0, 1.0);
            weights.insert(name.clone(), weight);
        }
        if weights.values().all(|weight| *weight == 0.0) {
            let allowed = "combine = \"sum\" needs at least one weight above 0";
            r.problems.missing(r.at.key("weights"), allowed, "weights = { connections = 1, cpu = 1 }");
        }
        into.combine = Combine::Sum { weights };
    } else if let Some(name) = raw.weights.iter().flatten().map(|(name, _)| name).next() {
        let value = Value::String(name.clone());
        r.problems.note(r.at.key("weights"), &value, "weights count only with combine = \"sum\"", "");
    }
    for (name, term) in raw.custom.iter().flatten() {
        let mut custom = CustomTerm::default();
        let full = &mut custom.full;
        r.number(&format!("custom.{name}.full"), term.full.as_ref(), full, 0.000_001..=1.0, 0.8);
        r.flag(&format!("custom.{name}.elastic"), term.elastic.as_ref(), &mut custom.elastic);
        into.custom.insert(name.clone(), custom);
    }
}

/// The full mark of lag is a time like any other in the file, milliseconds inside.
fn lag(raw: &RawScore, r: &mut Reader<'_>, into: &mut ScoreConfig) {
    let mut lag = Duration::from_secs_f64(into.lag_full_ms / 1_000.0);
    r.duration("lag", raw.lag.as_ref(), &mut lag, MILLI..=HOUR, "200ms");
    into.lag_full_ms = lag.as_secs_f64() * 1_000.0;
}

fn capacity(raw: &RawCapacity, mut r: Reader<'_>, into: &mut CapacityConfig) {
    connections(&mut r, "assumed", raw.assumed.as_ref(), &mut into.assumed, 1..=100_000_000, 10_000);
    connections(&mut r, "trust_from", raw.trust_from.as_ref(), &mut into.trust_from, 0..=1_000_000, 50);
    r.duration("cost_window", raw.cost_window.as_ref(), &mut into.cost_window, MILLI..=DAY, "10m");
    r.duration("overload_after", raw.overload_after.as_ref(), &mut into.overload_after, MILLI..=DAY, "25s");
    r.number("overload_factor", raw.overload_factor.as_ref(), &mut into.overload_factor, 0.1..=1.0, 0.85);
    let below = &mut into.overload_release_below;
    r.number("overload_release_below", raw.overload_release_below.as_ref(), below, 0.1..=1.0, 0.9);
    let after = &mut into.overload_release_after;
    r.duration("overload_release_after", raw.overload_release_after.as_ref(), after, MILLI..=DAY, "5m");
}

fn health(raw: &RawHealth, mut r: Reader<'_>, fleet: &mut Fleet) {
    let interval = &mut fleet.report_interval;
    let range = Duration::from_millis(50)..=Duration::from_secs(60);
    r.duration("report_interval", raw.report_interval.as_ref(), interval, range, "1s");
    let into = &mut fleet.law.health;
    let suspect = &mut into.suspect_after;
    r.duration(
        "suspect_after",
        raw.suspect_after.as_ref(),
        suspect,
        Duration::from_millis(100)..=HOUR,
        "1500ms",
    );
    r.duration("act_after", raw.act_after.as_ref(), &mut into.act_after, Duration::ZERO..=DAY, "30s");
    r.whole("dead_after", raw.dead_after.as_ref(), &mut into.dead_after, 1..=1_000, 3);
}

fn place(raw: &RawPlace, mut r: Reader<'_>, into: &mut PlaceConfig) {
    rate(&mut r, "admit_per_s", raw.admit_per_s.as_ref(), &mut into.admit_per_s, 1.0..=1_000_000.0, 200.0);
    r.duration("admit_burst", raw.admit_burst.as_ref(), &mut into.admit_burst, MILLI..=HOUR, "100ms");
    r.duration("slow_start", raw.slow_start.as_ref(), &mut into.slow_start, Duration::ZERO..=DAY, "30s");
    ratio(
        &mut r,
        "slow_start_floor",
        raw.slow_start_floor.as_ref(),
        &mut into.slow_start_floor,
        0.01..=1.0,
        0.1,
    );
    let ttl = &mut into.pending_ttl;
    r.duration("pending_ttl", raw.pending_ttl.as_ref(), ttl, Duration::from_millis(100)..=HOUR, "10s");
    let wait = &mut into.admission_wait;
    r.duration("admission_wait", raw.admission_wait.as_ref(), wait, Duration::ZERO..=HOUR, "3s");
    let mut queue = u32::try_from(into.admission_queue).unwrap_or(u32::MAX);
    r.whole("admission_queue", raw.admission_queue.as_ref(), &mut queue, 0..=10_000_000, 10_000);
    into.admission_queue = queue as usize;
}

fn scale(raw: &RawScale, mut r: Reader<'_>, into: &mut ScaleConfig) {
    r.whole("min", raw.min.as_ref(), &mut into.min, 0..=10_000, 2);
    r.whole("max", raw.max.as_ref(), &mut into.max, 1..=10_000, 10);
    ratio(&mut r, "up_level", raw.up_level.as_ref(), &mut into.up_level, 0.05..=1.0, 0.75);
    ratio(
        &mut r,
        "up_buffer_level",
        raw.up_buffer_level.as_ref(),
        &mut into.up_buffer_level,
        0.05..=1.0,
        0.95,
    );
    ratio(&mut r, "down_level", raw.down_level.as_ref(), &mut into.down_level, 0.01..=1.0, 0.6);
    let down = &mut into.down_buffer_level;
    ratio(&mut r, "down_buffer_level", raw.down_buffer_level.as_ref(), down, 0.01..=1.0, 0.9);
    connections(&mut r, "buffer", raw.buffer.as_ref(), &mut into.buffer, 0..=100_000_000, 500);
    r.number("buffer_ratio", raw.buffer_ratio.as_ref(), &mut into.buffer_ratio, 0.0..=10.0, 0.1);
    r.duration("window", raw.window.as_ref(), &mut into.window, Duration::ZERO..=DAY, "10m");
    r.whole("step_max", raw.step_max.as_ref(), &mut into.step_max, 1..=1_000, 4);
    r.duration("boot_time", raw.boot_time.as_ref(), &mut into.boot_time, MILLI..=DAY, "30s");
    r.whole("failed_boots_max", raw.failed_boots_max.as_ref(), &mut into.failed_boots_max, 1..=1_000, 3);
    r.duration("round", raw.round.as_ref(), &mut into.round, Duration::from_millis(10)..=HOUR, "5s");
    r.flag("dry_run", raw.dry_run.as_ref(), &mut into.dry_run);
    if into.min > into.max {
        let value = Value::Integer(into.min.into());
        let allowed = format!("allowed is at most max, which is {}", into.max);
        r.problems.note(r.at.key("min"), &value, allowed, &into.max.to_string());
    }
    for (down, up, name, limit) in [
        (into.down_level, into.up_level, "down_level", "up_level"),
        (into.down_buffer_level, into.up_buffer_level, "down_buffer_level", "up_buffer_level"),
    ] {
        if down.get() >= up.get() {
            let allowed = format!(
                "allowed is less than {limit}, which is {}; else a fleet goes up and down by turns",
                up.get()
            );
            r.problems.note(
                r.at.key(name),
                &Value::Float(down.get()),
                allowed,
                &format!("{:.2}", up.get() * 0.8),
            );
        }
    }
}

fn moves(raw: &RawMove, at: &At<'_>, into: &mut MoveConfig, problems: &mut Problems) {
    let at = at.table("move");
    let mut r = Reader { at: at.clone(), problems };
    rate(&mut r, "pace", raw.pace.as_ref(), &mut into.pace, 0.01..=1_000_000.0, 20.0);
    r.duration("soft", raw.soft.as_ref(), &mut into.soft, Duration::ZERO..=DAY, "5s");
    r.duration(
        "deadline",
        raw.deadline.as_ref(),
        &mut into.deadline,
        Duration::from_millis(100)..=7 * DAY,
        "10m",
    );
    r.word("deadline_policy", raw.deadline_policy.as_ref(), &mut into.deadline_policy, &DEADLINES);
    close_code(&mut r, raw.close_code.as_ref(), &mut into.close_code);
    r.word("select", raw.select.as_ref(), &mut into.select, &SELECTS);
    r.duration("round", raw.round.as_ref(), &mut into.round, Duration::from_millis(10)..=HOUR, "1s");
    let window = &mut into.arrivals_window;
    r.duration("arrivals_window", raw.arrivals_window.as_ref(), window, Duration::ZERO..=DAY, "60s");
    let lasts = &mut into.shed_lasts;
    r.duration("shed_lasts", raw.shed_lasts.as_ref(), lasts, Duration::from_millis(100)..=7 * DAY, "10m");
    r.number("overload_from", raw.overload_from.as_ref(), &mut into.overload_from, 0.0..=1.0, 0.05);
    for (name, raw, into) in [("start", &raw.start, &mut into.start), ("stop", &raw.stop, &mut into.stop)] {
        if let Some(raw) = raw {
            band(raw, Reader { at: at.table(name), problems }, into);
        }
    }
}

/// 1000 and 1005 tell a client not to come back, so they are not offered.
fn close_code(r: &mut Reader<'_>, raw: Option<&Value>, into: &mut u16) {
    let Some(raw) = raw else { return };
    let code = raw.as_integer().and_then(|code| u16::try_from(code).ok());
    match code.filter(|code| matches!(code, 1001 | 1011..=1014 | 3000..=4999)) {
        Some(code) => *into = code,
        None => {
            let allowed = "allowed is 1001, 1011 to 1014, or 3000 to 4999";
            r.problems.note(r.at.key("close_code"), raw, allowed, "1012");
        }
    }
}

fn band(raw: &RawBand, mut r: Reader<'_>, into: &mut Band) {
    r.number("ratio", raw.ratio.as_ref(), &mut into.ratio, 0.0..=10.0, 0.15);
    r.number("sqrt", raw.sqrt.as_ref(), &mut into.sqrt, 0.0..=100.0, 3.0);
    r.number("min", raw.min.as_ref(), &mut into.min, 0.0..=1_000_000.0, 10.0);
}

fn connections(
    r: &mut Reader<'_>,
    key: &str,
    raw: Option<&Value>,
    into: &mut Connections,
    range: RangeInclusive<u32>,
    example: u32,
) {
    r.whole(key, raw, &mut into.0, range, example);
}

fn rate(
    r: &mut Reader<'_>,
    key: &str,
    raw: Option<&Value>,
    into: &mut PerSecond,
    range: RangeInclusive<f64>,
    example: f64,
) {
    let mut number = into.get();
    r.number(key, raw, &mut number, range, example);
    *into = PerSecond::new(number);
}

fn ratio(
    r: &mut Reader<'_>,
    key: &str,
    raw: Option<&Value>,
    into: &mut Ratio,
    range: RangeInclusive<f64>,
    example: f64,
) {
    let mut number = into.get();
    r.number(key, raw, &mut number, range, example);
    *into = Ratio::new(number);
}
